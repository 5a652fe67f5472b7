//! Why a store cannot be worked with.

use iptunnel_storage::{CommitError, OpenError, ReadError};
use std::path::PathBuf;

/// Why a server cannot work with its store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What it holds could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What it must hold could not be read.
    #[error(transparent)]
    Watermark(#[from] WatermarkError),
    /// It did not take the commit by which a new epoch begins.
    #[error("the server has to be started again: {0}")]
    Epoch(CommitError),
    /// Another server on it has other keys.
    #[error(
        "auth.lookup_key_file: this is not the key of the other servers on this database: copy the \
         files of [auth] from one of them"
    )]
    OtherKey,
}

/// Why a mark cannot be read. Without it nobody can tell whether the store has become an earlier one.
#[derive(Debug, thiserror::Error)]
#[error(
    "the mark of the store, {}, cannot be read: {problem}. It tells whether the store lacks what was \
     answered. Put the file back as it was, or run iptunnel-server fence: it writes a new one, and \
     codes that are not spent are no longer good",
    file.display()
)]
pub struct WatermarkError {
    pub(super) file: PathBuf,
    pub(super) problem: String,
}
