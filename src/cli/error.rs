//! Why a command failed.

use crate::app::RunError;
use crate::config::ConfigError;
use crate::secrets::SecretError;
use std::net::SocketAddr;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// What was configured is not allowed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A secret could not be read or made.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The server could not run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// An address could not be listened on, or asked.
    #[error("{0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}
