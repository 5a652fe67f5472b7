//! Why a command failed.

use crate::app::RunError;
use crate::config::ConfigError;
use crate::secrets::SecretError;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A secret could not be read or created.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The server could not run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The folder of the store could not be created.
    #[error(
        "the folder of {} cannot be created: {problem}; check storage.path and the rights of its folder",
        path.display()
    )]
    Folder {
        /// The file of the store.
        path: PathBuf,
        /// The error.
        problem: std::io::Error,
    },
    /// The server could not listen on an address.
    #[error("cannot listen on {0}: {1}; free the address, or change server.bind or admin.bind")]
    Listen(SocketAddr, std::io::Error),
    /// The server at an address could not be reached, or did not answer in time.
    #[error(
        "no answer from the server at {0}: {1}; check that it runs, and that admin.bind or --url is right"
    )]
    Unreachable(String, std::io::Error),
    /// Any other error, as a message.
    #[error("{0}")]
    Other(String),
}

impl From<String> for CliError {
    fn from(message: String) -> Self {
        Self::Other(message)
    }
}
