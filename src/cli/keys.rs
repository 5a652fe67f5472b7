//! `keys`: manages the keys that sign tokens.

use super::client::{Server, of_command};
use super::error::CliError;
use super::terminal::{field, remark, rows, tell};
use crate::config::Config;
use crate::os::{Clock, SystemClock};
use crate::private_file::lock_folder_of;
use crate::secrets::signing::Promoted;
use crate::secrets::{SecretError, SigningFile};
use clap::Subcommand;
use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

/// The subcommands of `keys`.
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Show the names of the keys, the signing key first
    #[command(after_help = "\
Examples:
  iptunnel-server keys list")]
    List,
    /// Add a key that verifies tokens but does not sign yet
    #[command(after_help = "\
Examples:
  iptunnel-server keys add && systemctl reload iptunnel-server")]
    Add,
    /// Sign with the named key, or with the newest one
    ///
    /// Repeated, it changes nothing.
    #[command(after_help = "\
Examples:
  iptunnel-server keys promote && systemctl reload iptunnel-server
  iptunnel-server keys promote k1a2b3c4d")]
    Promote {
        /// The name of the key
        kid: Option<String>,
    },
    /// Remove the named key, or all keys except the signing key
    ///
    /// Tokens and cookies that a removed key signed become invalid. After a promotion, wait for the
    /// longest of their lifetimes, or use --force.
    #[command(after_help = "\
Examples:
  iptunnel-server keys prune && systemctl reload iptunnel-server
  iptunnel-server keys prune --force k1a2b3c4d")]
    Prune {
        /// The name of the key
        kid: Option<String>,
        /// Remove keys even if the file was changed recently
        #[arg(long)]
        force: bool,
    },
}

/// Runs the subcommand and prints the result.
///
/// # Errors
/// The file cannot be read or written, or a key would be removed too early.
pub fn keys(config: &Config, action: Keys) -> Result<(), CliError> {
    let path = &config.auth.signing_key_file;
    let _turn = if matches!(action, Keys::List) { None } else { turn(path)? };
    let mut file = SigningFile::read(path).map_err(|error| CliError::Other(of_command(error)))?;
    match action {
        Keys::List => {
            for (place, key) in file.keys().iter().enumerate() {
                tell(&format!("{}{}", key.kid, if place == 0 { "  signs" } else { "" }))?;
            }
            return Ok(());
        }
        Keys::Add => {
            let kid = file.add(SystemClock::default().now())?;
            tell(&format!("{kid} added: it verifies tokens; run `keys promote` to sign with it"))?;
        }
        Keys::Promote { kid } => match file.promote(kid.as_deref())? {
            Promoted::Now(kid) => tell(&format!("{kid} is now the signing key"))?,
            Promoted::Already(kid) => {
                return Ok(tell(&format!(
                    "{kid} is the signing key already; nothing has changed"
                ))?);
            }
        },
        Keys::Prune { kid, force } => {
            if !force {
                refuse_early_prune(config, path)?;
            }
            let removed = file.prune(kid.as_deref())?;
            if removed.is_empty() {
                return Ok(tell("there is no other key; nothing has changed")?);
            }
            tell(&format!("removed: {}", removed.join(" ")))?;
        }
    }
    Ok(tell("Send SIGHUP to a running server: it then reads the file again.")?)
}

/// Waits until no other command changes the file. None may change it until the returned value is dropped.
fn turn(path: &Path) -> Result<Option<File>, CliError> {
    match lock_folder_of(path) {
        // That it is missing is said when it is read.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SecretError::Io { path: path.to_owned(), source }.into()),
        Ok(turn) => Ok(Some(turn)),
    }
}

/// The settings that say how long something signed lives, in seconds.
const LIVES: [&str; 3] =
    ["codes.precheck_token_ttl_seconds", "codes.install_token_ttl_seconds", "session.ttl_seconds"];

/// Returns how long something signed may live, in seconds. What operators have set in the console is
/// known to the running server alone.
fn longest_life(config: &Config) -> u64 {
    let life = &config.lifetimes;
    let own = life.precheck_token.max(life.install_token).max(config.session_ttl_seconds);
    match longest_live(config) {
        Ok(live) => own.max(live),
        Err(error) => {
            remark(&format!("Longer lifetimes that the console has set are not known: {error}"));
            own
        }
    }
}

fn longest_live(config: &Config) -> Result<u64, String> {
    let data = Server::of(config)?.get("/config", &[])?;
    let settings = rows(&data, "settings")?.iter();
    let lives = settings.filter(|row| LIVES.contains(&field(row, "key").as_str()));
    Ok(lives.filter_map(|row| field(row, "value").parse().ok()).max().unwrap_or(0))
}

/// Refuses to remove keys while a token that they signed may still be in use: for the longest lifetime
/// after the last change of the file.
fn refuse_early_prune(config: &Config, path: &Path) -> Result<(), CliError> {
    let longest = longest_life(config);
    let age = std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let age = age.and_then(|modified| modified.elapsed().ok()).unwrap_or_default();
    if age < Duration::from_secs(longest) {
        return Err(CliError::Other(format!(
            "{}: the file was changed {} s ago, and tokens that its keys signed live for up to \
             {longest} s; wait that long, or use --force",
            path.display(),
            age.as_secs()
        )));
    }
    Ok(())
}
