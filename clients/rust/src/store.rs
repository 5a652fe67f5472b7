//! Where the state of an installation is kept.

use crate::state::State;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Keeps the state of one installation. A closure that takes a state is one too.
pub trait Store {
    /// Keeps `state` in place of the one before. When this returns, a crash must not lose it.
    ///
    /// # Errors
    /// The state is not kept. The step that rests on it is not done.
    fn save(&mut self, state: &State) -> io::Result<()>;
}

impl<F: FnMut(&State) -> io::Result<()>> Store for F {
    fn save(&mut self, state: &State) -> io::Result<()> {
        self(state)
    }
}

/// Keeps the state in a file that only its owner can read. While it exists, no other program opens the
/// same file: two installations would overwrite each other's state.
pub struct FileStore {
    path: PathBuf,
    /// Locked for as long as it is open.
    _lock: File,
}

impl FileStore {
    /// Opens the file at `path`, which need not exist yet; its folder must. Makes a file `path.lock`
    /// beside it, which stays.
    ///
    /// # Errors
    /// The folder cannot be written to, or another program has opened the same file
    /// ([`io::ErrorKind::WouldBlock`]).
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let lock = private().truncate(false).open(beside(&path, "lock"))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::Error(error) => error,
            fs::TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::WouldBlock,
                "another installation is running with the same state; wait until it has ended",
            ),
        })?;
        Ok(Self { path, _lock: lock })
    }

    /// Returns what was kept last. None if nothing was kept yet.
    ///
    /// # Errors
    /// The file cannot be read, or it holds something else.
    pub fn load(&self) -> io::Result<Option<State>> {
        let text = match fs::read(&self.path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(serde_json::from_slice(&text)?))
    }
}

impl Store for FileStore {
    fn save(&mut self, state: &State) -> io::Result<()> {
        let text = Zeroizing::new(serde_json::to_vec(state)?);
        let draft = beside(&self.path, "draft");
        // A draft that a crash left behind may have another mode.
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = private().create_new(true).open(&draft)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&draft, &self.path)?;
        // The new name is on disk once its folder is.
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

/// Opens files that only their owner can read.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Machine;
    use crate::secret::{AgentToken, Code};
    use std::os::unix::fs::PermissionsExt;
    use tempfile::TempDir;

    fn state(code: &str) -> State {
        let machine = Machine { id: "m".into(), ssh_fingerprint: "f".into() };
        State::new("slowdns".into(), machine, Code::new(code), AgentToken::new("ipa_0"))
    }

    #[test]
    fn the_state_that_was_kept_last_is_loaded_by_the_next_program() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("state");
        let mut store = FileStore::open(&path).unwrap();
        assert_eq!(store.load().unwrap(), None);
        store.save(&state("one")).unwrap();
        store.save(&state("two")).unwrap();
        drop(store);
        assert_eq!(FileStore::open(&path).unwrap().load().unwrap(), Some(state("two")));
    }

    #[test]
    fn only_the_owner_can_read_it_also_after_a_crash_left_a_draft_for_all() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("state");
        let draft = folder.path().join("state.draft");
        fs::write(&draft, "half").unwrap();
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o666)).unwrap();
        FileStore::open(&path).unwrap().save(&state("one")).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!draft.exists());
    }

    #[test]
    fn two_programs_do_not_open_the_same_state() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("state");
        let first = FileStore::open(&path).unwrap();
        let refused = FileStore::open(&path).err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        drop(first);
        FileStore::open(&path).unwrap();
    }

    #[test]
    fn a_file_that_holds_something_else_is_an_error_and_stays_as_it_is() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("state");
        fs::write(&path, "{}").unwrap();
        assert!(FileStore::open(&path).unwrap().load().is_err());
        assert_eq!(fs::read(&path).unwrap(), b"{}");
    }
}
