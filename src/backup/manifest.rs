//! The manifest: what a backup holds.

use super::error::BackupError;
use super::{MANIFEST, NAMES, SIGNATURE, STORE};
use crate::config::Backend;
use crate::http::respond::rfc3339;
use crate::private_file::{self, Owner};
use crate::signed_head::{HeadKey, Verifier};
use iptunnel_domain::Timestamp;
use iptunnel_domain::hex::hex;
use iptunnel_storage::{Contents, Pace};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// The format of backups that this program makes, and the newest that it reads.
const FORMAT: u32 = 1;
/// The bytes that are read at once for a checksum.
const PIECE: usize = 64 << 10;
/// The most bytes of a manifest. One has less than two thousand.
const LARGEST: u64 = 64 << 10;

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The format of the backup.
    pub backup_format: u32,
    /// The version of the program that made it.
    pub program: String,
    /// When it was made, in seconds since the Unix epoch.
    pub made: u64,
    /// The same by RFC 3339, for people.
    pub made_at: String,
    /// The engine of the store.
    pub engine: Backend,
    /// The data format of the store.
    pub data_format: u32,
    /// The last record of the journal that the store has.
    pub position: u64,
    /// The epoch of the store.
    pub epoch: u64,
    /// The number of the last entry of the audit log.
    pub audit_entries: u64,
    /// The hash of that entry.
    pub audit_head: String,
    /// The files.
    pub files: Vec<Entry>,
}

/// A file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its name in the folder.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// Its SHA-256, in hexadecimal digits.
    pub sha256: String,
}

impl Manifest {
    /// Returns the manifest of a store without its files.
    pub fn of(engine: Backend, contents: &Contents, epoch: u64, made: Timestamp) -> Self {
        Self {
            backup_format: FORMAT,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            made: made.0,
            made_at: rfc3339(made),
            engine,
            data_format: contents.data_format,
            position: contents.position,
            epoch,
            audit_entries: contents.head.entries,
            audit_head: contents.head.hash.to_hex(),
            files: Vec::new(),
        }
    }

    /// Returns the bytes of all files.
    pub fn size(&self) -> u64 {
        self.files.iter().fold(0, |all, file| all.saturating_add(file.size))
    }

    /// Whether the backup has this file.
    pub fn has(&self, name: &str) -> bool {
        self.files.iter().any(|file| file.name == name)
    }

    /// Whether the backup has the files of a store of its engine.
    fn is_complete(&self) -> bool {
        self.engine == Backend::Postgres || self.has(STORE)
    }

    /// Adds a file of the folder.
    ///
    /// # Errors
    /// It cannot be read, or `pace` says that the backup is to end.
    pub fn add(&mut self, folder: &Path, name: &str, pace: &Pace) -> Result<(), BackupError> {
        let (size, sha256) = sum(&folder.join(name), pace)?;
        self.files.push(Entry { name: name.to_owned(), size, sha256 });
        Ok(())
    }

    /// Writes the manifest, which makes a backup of the folder.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, folder: &Path, key: &HeadKey) -> Result<(), BackupError> {
        let (path, signature) = (folder.join(MANIFEST), folder.join(SIGNATURE));
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|error| BackupError::at(&path)(error.into()))?;
        text.push('\n');
        let signed = format!("{}\n", key.sign_manifest(text.as_bytes()));
        private_file::create(&signature, signed.as_bytes()).map_err(BackupError::at(&signature))?;
        // By a rename, so that it is there as a whole or not at all.
        private_file::replace(&path, text.as_bytes(), Owner::MayChange)
            .and_then(|()| private_file::sync_folder_of(&path))
            .map_err(BackupError::at(&path))
    }

    /// Reads the manifest of a backup.
    ///
    /// # Errors
    /// The folder is no whole backup, a newer program made it, or the manifest was changed.
    pub fn read(folder: &Path) -> Result<Unverified, BackupError> {
        let path = folder.join(MANIFEST);
        let text = text_of(&path)?.ok_or_else(|| {
            let why = "it has no manifest.json, so it is no backup, or one that was not finished";
            BackupError::refused(folder, why)
        })?;
        let signature = folder.join(SIGNATURE);
        let signature = text_of(&signature)?
            .ok_or_else(|| BackupError::refused(folder, "it has no manifest.sig"))?;
        let manifest = Self::parse(&text).map_err(|why| BackupError::refused(&path, why))?;
        Ok(Unverified { manifest, text, signature })
    }

    /// Reads the text of a manifest.
    ///
    /// # Errors
    /// Why it is none that this program restores, to follow "is refused".
    pub fn parse(text: &str) -> Result<Self, String> {
        let broken = |error: serde_json::Error| format!("it was changed or cut short ({error})");
        let value: serde_json::Value = serde_json::from_str(text).map_err(broken)?;
        let format = value.get("backup_format").and_then(serde_json::Value::as_u64);
        if format.is_some_and(|format| format > u64::from(FORMAT)) {
            return Err("a newer program made this backup; restore it with that program".into());
        }
        let manifest: Self = serde_json::from_value(value).map_err(broken)?;
        if let Some(other) = manifest.files.iter().find(|file| !NAMES.contains(&&*file.name)) {
            return Err(format!("it names a file that no backup has: {:?}", other.name));
        }
        if !manifest.is_complete() {
            return Err("it names no store".into());
        }
        Ok(manifest)
    }

    /// Compares every file with its size and its checksum.
    ///
    /// # Errors
    /// A file is missing, or is another one than was written.
    pub fn check_files(&self, folder: &Path) -> Result<(), BackupError> {
        self.files.iter().try_for_each(|entry| entry.check(&folder.join(&entry.name)))
    }

    /// Compares a copy of one of the files with its size and its checksum.
    ///
    /// # Errors
    /// It is another one than was written.
    pub fn check_copy(&self, name: &str, copy: &Path) -> Result<(), BackupError> {
        self.files.iter().filter(|entry| entry.name == name).try_for_each(|entry| entry.check(copy))
    }
}

impl Entry {
    fn check(&self, path: &Path) -> Result<(), BackupError> {
        let found = std::fs::metadata(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => BackupError::refused(path, "the file is missing"),
            _ => BackupError::at(path)(error),
        })?;
        if found.len() != self.size {
            let why = format!("it has {} bytes, and {} were written", found.len(), self.size);
            return Err(BackupError::refused(path, why));
        }
        if sum(path, &super::pace::alone())?.1 != self.sha256 {
            let why = "its content is not what was written: its checksum differs";
            return Err(BackupError::refused(path, why));
        }
        Ok(())
    }
}

/// A manifest that was read, and whose signature nobody has looked at.
#[derive(Debug)]
pub struct Unverified {
    /// What it says.
    pub manifest: Manifest,
    text: String,
    signature: String,
}

impl Unverified {
    /// Whether the server with this key signed the manifest.
    pub fn is_by(&self, verifier: &Verifier) -> bool {
        verifier.is_manifest(self.text.as_bytes(), self.signature.trim())
    }

    /// Returns the manifest if the server with this key signed it.
    pub fn verified(self, verifier: &Verifier) -> Option<Manifest> {
        self.is_by(verifier).then_some(self.manifest)
    }
}

/// Reads a short text. `None` if there is no such file.
fn text_of(path: &Path) -> Result<Option<String>, BackupError> {
    if !private_file::exists(path).map_err(BackupError::at(path))? {
        return Ok(None);
    }
    let mut text = String::new();
    let file = File::open(path).map_err(BackupError::at(path))?;
    match file.take(LARGEST).read_to_string(&mut text) {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            Err(BackupError::refused(path, "it was changed: it is not text"))
        }
        Err(error) => Err(BackupError::at(path)(error)),
    }
}

/// Returns size and SHA-256 of a file.
fn sum(path: &Path, pace: &Pace) -> Result<(u64, String), BackupError> {
    let mut file = File::open(path).map_err(BackupError::at(path))?;
    let (mut hash, mut size, mut piece) = (Sha256::new(), 0, vec![0; PIECE]);
    loop {
        let read = file.read(&mut piece).map_err(BackupError::at(path))?;
        if read == 0 {
            return Ok((size, hex(&hash.finalize())));
        }
        hash.update(piece.get(..read).unwrap_or_default());
        size += read as u64;
        if !pace() {
            return Err(iptunnel_storage::BackupError::Stopped.into());
        }
    }
}
