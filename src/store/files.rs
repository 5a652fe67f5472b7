//! The location of the store, and how it is opened.

use crate::config::{Backend, Config};
use crate::private_file::beside;
use iptunnel_storage::{Disks, EmbeddedStore, FileDisk, OpenDisk, OpenError, PostgresStore, Store};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Returns the store's files: the one at `path`, and its journal beside it.
pub fn files(path: &Path) -> Disks {
    Disks { rows: file_disk(path.to_owned()), journal: file_disk(beside(path, ".journal")) }
}

fn file_disk(path: PathBuf) -> OpenDisk {
    Box::new(move || Ok(Box::new(FileDisk::open(&path)?)))
}

/// Opens the configured store. Settings that are kept in the store cannot change its location.
///
/// # Errors
/// The store cannot be opened.
pub fn open(config: &Config, disks: Disks) -> Result<Arc<dyn Store>, OpenError> {
    Ok(match config.storage.backend {
        Backend::Redb => Arc::new(EmbeddedStore::open(disks)?),
        Backend::Postgres => Arc::new(PostgresStore::open(&config.storage.url)?),
    })
}
