//! Why a backup cannot be made, read or restored.

use crate::age::AgeError;
use crate::secrets::SecretError;
use crate::store::error::{StoreError, WatermarkError};
use std::io;
use std::path::{Path, PathBuf};

/// Why a backup cannot be made, read or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file system returned an error.
    #[error("{}: {problem}; check the path, its rights and the space there", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The error.
        problem: io::Error,
    },
    /// The folder for a new backup has something in it.
    #[error("{} is not empty; name a folder that is new or empty", .0.display())]
    NotEmpty(PathBuf),
    /// The backup would fill the disk, on which the store may be too.
    #[error(
        "{}: the disk has {free} bytes left, and the backup needs up to {needed}; remove something, or use \
         another disk",
        path.display()
    )]
    NoSpace {
        /// The folder.
        path: PathBuf,
        /// What is left, in bytes.
        free: u64,
        /// What may be needed, in bytes.
        needed: u64,
    },
    /// The store could not be copied.
    #[error("the backup was not made: {0}")]
    Copy(#[from] iptunnel_storage::BackupError),
    /// A secret could not be encrypted or decrypted.
    #[error("{}: {problem}", path.display())]
    Age {
        /// The file.
        path: PathBuf,
        /// The error.
        problem: AgeError,
    },
    /// A secret could not be read or written.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The mark in the server's place could not be read.
    #[error(transparent)]
    Watermark(#[from] WatermarkError),
    /// The restored store could not be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The backup, or what it holds, is refused.
    #[error("{} is refused: {why}", path.display())]
    Refused {
        /// The backup or the file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Something in the server's place keeps the backup from being restored.
    #[error("nothing was restored: {0}")]
    InTheWay(String),
}

impl BackupError {
    /// Turns an error of the file system into this error.
    pub fn at(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        move |problem| Self::File { path: path.to_owned(), problem }
    }

    /// Refuses a backup or a file of it.
    pub fn refused(path: &Path, why: impl Into<String>) -> Self {
        Self::Refused { path: path.to_owned(), why: why.into() }
    }
}
