//! Small files beside the store, in which the console keeps what is to survive a restart: its sessions, and
//! the figures of its charts.
//!
//! The first line is a keyed hash of the others. So a file that was damaged, was made by hand, or is of a
//! server with another lookup key, is not taken for true. It is no loss then either: the console begins anew.

use crate::private_file::{self, Beside, Owner};
use iptunnel_domain::lookup::{KeyedHash, LookupKey, Purpose};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The largest file that is read, in bytes: more than the most sessions with the longest names.
const LARGEST: u64 = 4 << 20;

/// A file beside the store.
#[derive(Debug)]
pub struct KeptFile {
    path: PathBuf,
    /// What tells the kinds of files apart, so that none is taken for another.
    kind: String,
    lookup: LookupKey,
}

impl KeptFile {
    /// Returns one of the files beside the store at `store`. It need not exist.
    pub fn of(store: &Path, beside: Beside, lookup: LookupKey) -> Self {
        Self { path: beside.of(store), kind: format!("{beside:?}\n"), lookup }
    }

    fn hash(&self, content: &str) -> KeyedHash {
        self.lookup.hash(Purpose::KeptFile, [&self.kind, content].concat().as_bytes())
    }

    /// Returns what the file holds. Logs why a file that exists is not read.
    pub fn read<T: DeserializeOwned>(&self) -> Option<T> {
        self.try_read().unwrap_or_else(|error| {
            let path = self.path.display();
            tracing::warn!(%path, %error, "a file of the console is not used: it begins anew");
            None
        })
    }

    fn try_read<T: DeserializeOwned>(&self) -> io::Result<Option<T>> {
        if !private_file::exists(&self.path)? {
            return Ok(None);
        }
        if fs::metadata(&self.path)?.len() > LARGEST {
            return Err(io::Error::other("it is larger than this program writes it"));
        }
        let text = fs::read_to_string(&self.path)?;
        let (hash, content) = text.split_once('\n').unwrap_or_default();
        if !KeyedHash::from_hex(hash).is_some_and(|hash| hash.ct_eq(&self.hash(content))) {
            return Err(io::Error::other("it was changed, or written with another lookup key"));
        }
        serde_json::from_str(content).map(Some).map_err(io::Error::other)
    }

    /// Replaces what the file holds. It is on disk when this returns; after a power cut before that there is
    /// either this or what was there before.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, value: &impl Serialize) -> io::Result<()> {
        let content = serde_json::to_string(value)?;
        let hash = self.hash(&content).to_hex();
        let text = format!("{hash}\n{content}");
        private_file::replace(&self.path, text.as_bytes(), Owner::MayChange)?;
        private_file::sync_folder_of(&self.path)
    }

    /// Removes the file. There may be none.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove(&self) -> io::Result<()> {
        private_file::remove(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_changed_or_is_of_another_kind_or_key_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("s");
        let of = |beside, key| KeptFile::of(&store, beside, LookupKey::new(&[key; 32]));
        let file = of(Beside::Charts, 1);
        assert_eq!(file.read::<Vec<u32>>(), None);
        file.write(&[1, 2]).unwrap();
        assert_eq!(file.read::<Vec<u32>>(), Some(vec![1, 2]));
        assert_eq!(file.read::<String>(), None, "it holds something else");
        assert_eq!(of(Beside::Charts, 2).read::<Vec<u32>>(), None);
        fs::copy(Beside::Charts.of(&store), Beside::Sessions.of(&store)).unwrap();
        assert_eq!(of(Beside::Sessions, 1).read::<Vec<u32>>(), None);
        let good = fs::read(Beside::Charts.of(&store)).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x81;
            fs::write(Beside::Charts.of(&store), bad).unwrap();
            assert_eq!(file.read::<Vec<u32>>(), None);
            fs::write(Beside::Charts.of(&store), &good[..at]).unwrap();
            assert_eq!(file.read::<Vec<u32>>(), None);
        }
        file.remove().unwrap();
        file.remove().unwrap();
    }
}
