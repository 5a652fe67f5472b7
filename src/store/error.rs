//! The reasons why a store cannot be used.

use crate::secrets::SecretError;
use iptunnel_storage::{CommitError, OpenError, ReadError};
use std::path::PathBuf;

/// The reasons why a server cannot use its store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The content of the store cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store's mark cannot be read.
    #[error(transparent)]
    Watermark(#[from] WatermarkError),
    /// The store refused the commit that begins a new epoch.
    #[error("a new epoch could not begin: {0}; start the server again")]
    Epoch(CommitError),
    /// The store was made with another lookup key.
    #[error(
        "auth.lookup_key_file: {} is not the key that the store was made with, and nothing in the store \
         can be found with another one. Restore the file from the backup of this store, or copy the files \
         of [auth] from another server on the same database",
        file.display()
    )]
    OtherKey {
        /// The file of the key.
        file: PathBuf,
    },
    /// A secret cannot be read or created.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Nobody can tell whether there is a store.
    #[error(
        "nobody can tell whether there is a store at {place}: {problem}; check {place} and its rights"
    )]
    Hidden {
        /// Where the store would be.
        place: String,
        /// Why it cannot be looked at.
        problem: String,
    },
}

/// The error of a mark that cannot be read. Without the mark the server cannot detect that the store was
/// set back to an earlier state.
#[derive(Debug, thiserror::Error)]
#[error(
    "the mark of the store, {}, cannot be read: {problem}. Without it the server cannot detect that \
     the store lacks acknowledged changes. Restore the file, or run iptunnel-server fence: it writes \
     a new mark and voids all unspent codes",
    file.display()
)]
pub struct WatermarkError {
    pub(super) file: PathBuf,
    pub(super) problem: String,
}
