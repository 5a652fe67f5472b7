//! The location of the store, and how it is opened.

use crate::config::{Backend, Config};
use iptunnel_storage::{Disks, EmbeddedStore, OpenError, PostgresStore, Store};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Returns the store's files: the one at `path`, and its journal beside it.
pub fn files(path: &Path) -> Disks {
    Disks::at(path.to_owned(), beside(path, ".journal"))
}

/// Returns `path` with `ending` added to the name of the file.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
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
