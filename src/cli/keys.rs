//! `keys`: the keys that sign tokens.

use super::error::CliError;
use crate::config::Config;
use crate::secrets::SigningFile;
use clap::Subcommand;
use std::path::Path;
use std::time::Duration;

/// What is done with the keys.
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Show the names of the keys, the signing one first
    List,
    /// Add a key that verifies, but does not sign yet
    Add,
    /// Make a key sign: the one named, else the one added last
    Promote {
        /// Its name
        kid: Option<String>,
    },
    /// Drop the key named, or all but the signing one
    ///
    /// Tokens and cookies that a dropped key has signed are void. Wait for the longest of their
    /// lifetimes after a promotion, or say --force.
    Prune {
        /// Its name
        kid: Option<String>,
        /// Do not look at how long ago the file was changed
        #[arg(long)]
        force: bool,
    },
}

/// Does it, and says so.
///
/// # Errors
/// Where the file cannot be read or written, or a key is dropped too early.
pub fn keys(config: &Config, action: Keys) -> Result<(), CliError> {
    let path = &config.auth.signing_key_file;
    let mut file = SigningFile::read_or_make(path)?;
    match action {
        Keys::List => {
            for (place, key) in file.keys().iter().enumerate() {
                println!("{}{}", key.kid, if place == 0 { "  signs" } else { "" });
            }
        }
        Keys::Add => println!("{} added: it verifies; `keys promote` makes it sign", file.add()?),
        Keys::Promote { kid } => println!("{} signs now", file.promote(kid.as_deref())?),
        Keys::Prune { kid, force } => {
            if !force {
                refuse_early_prune(config, path)?;
            }
            println!("dropped: {}", file.prune(kid.as_deref())?.join(" "));
        }
    }
    println!("A running server reads the file again on SIGHUP.");
    Ok(())
}

/// What a key signed may be in use for the longest lifetime after it stopped signing.
fn refuse_early_prune(config: &Config, path: &Path) -> Result<(), CliError> {
    let life = &config.lifetimes;
    let longest = life.precheck_token.max(life.install_token).max(config.session_ttl_seconds);
    let age = std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let age = age.and_then(|modified| modified.elapsed().ok()).unwrap_or_default();
    if age < Duration::from_secs(longest) {
        return Err(CliError::Other(format!(
            "{}: changed {} s ago, and what its keys have signed lives for up to {longest} s: \
             wait, or say --force",
            path.display(),
            age.as_secs()
        )));
    }
    Ok(())
}
