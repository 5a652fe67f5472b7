//! The location of the store, and how it is opened.

use super::error::StoreError;
use crate::config::{Backend, Config};
use crate::private_file::{self, Beside};
use iptunnel_storage::{
    Disks, EmbeddedStore, Inspection, OpenError, PostgresStore, ReadError, Store,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Returns the store's files: the one at `path`, and its journal beside it.
pub fn files(path: &Path) -> Disks {
    let [rows, journal] = names(path);
    Disks::at(rows, journal)
}

fn names(path: &Path) -> [PathBuf; 2] {
    [path.to_owned(), Beside::Journal.of(path)]
}

/// Returns whether there is a store. Looks only, and changes nothing.
///
/// # Errors
/// Nobody can tell: a folder cannot be read, or the database cannot be asked.
pub fn is_there(config: &Config) -> Result<bool, StoreError> {
    match config.storage.backend {
        Backend::Redb => is_there_at(&config.storage.path),
        Backend::Postgres => {
            let hidden = |error: ReadError| StoreError::Hidden {
                place: "storage.url".into(),
                problem: error.0,
            };
            Inspection::of(&config.storage.url, 0)?.has_store().map_err(hidden)
        }
    }
}

/// Returns whether there is an embedded store at `path`.
///
/// # Errors
/// Nobody can tell.
pub fn is_there_at(path: &Path) -> Result<bool, StoreError> {
    for file in names(path) {
        let found = private_file::exists(&file).map_err(|error| StoreError::Hidden {
            place: file.display().to_string(),
            problem: error.to_string(),
        })?;
        if found {
            return Ok(true);
        }
    }
    Ok(false)
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
