//! The disk under the embedded store, as five operations, so that a test can replace it with one
//! that fails.

use std::fmt::Debug;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// A disk with the content of one file.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Returns its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Reads from `offset` on until `out` is full.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Sets its length to `len` bytes; new bytes are zero.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Writes all of `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Returns when everything written before survives a loss of power.
    fn sync(&self) -> io::Result<()>;
    /// Returns whether it is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A real file, locked by one process at a time.
#[derive(Debug)]
pub struct FileDisk(File);

impl FileDisk {
    /// Opens or creates the file at `path`, readable for its owner only, and locks it.
    ///
    /// # Errors
    /// Those of the file system, and [`io::ErrorKind::WouldBlock`] if another process has locked
    /// it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => {
                Err(io::Error::new(io::ErrorKind::WouldBlock, "another process has the store open"))
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Drop for FileDisk {
    /// A child process that is just being started still has the file, and with it the lock, until it runs its
    /// program.
    fn drop(&mut self) {
        // It cannot fail for a file that is locked. If it did, the lock would end with the file.
        let _ = self.0.unlock();
    }
}

impl Disk for FileDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// A disk for redb that remembers whether a sync failed. After a failed sync the content of the
/// disk is unknown, while a failed write leaves the last synced state in place.
#[derive(Debug)]
pub(crate) struct Watched {
    disk: Box<dyn Disk>,
    sync_failed: std::sync::Arc<AtomicBool>,
}

impl Watched {
    pub(crate) fn new(disk: Box<dyn Disk>, sync_failed: std::sync::Arc<AtomicBool>) -> Self {
        Self { disk, sync_failed }
    }
}

impl redb::StorageBackend for Watched {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.disk.sync().inspect_err(|_| self.sync_failed.store(true, Ordering::SeqCst))
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.write(offset, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_closed_is_unlocked_though_a_child_process_still_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let disk = FileDisk::open(&path).unwrap();
        assert_eq!(FileDisk::open(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        // A child has the same open file, as this copy is.
        let of_child = disk.0.try_clone().unwrap();
        drop(disk);
        FileDisk::open(&path).unwrap();
        drop(of_child);
    }
}
