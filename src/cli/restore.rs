//! `restore`: checks a backup, puts it into the server's place, and begins a new epoch.

use super::backup::passphrase;
use super::error::CliError;
use super::terminal::{remark, tell};
use crate::age::Opener;
use crate::app::RunError;
use crate::backup::restore::{Order, restore as put_back};
use crate::config::{Backend, Config};
use crate::operator::socket::path_of;
use crate::os::{Clock, SystemClock};
use crate::signed_head::Verifier;
use crate::store::agreement::SIGNING_KEYS;
use crate::store::error::StoreError;
use clap::Args;
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_storage::Inspection;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// What opens the secrets of a backup.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct Keys {
    /// The file of the key, which age-keygen has made, for the secrets in the backup
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// The file whose first line is the passphrase of the secrets in the backup
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// Who must have signed a backup.
#[derive(Debug, Args)]
pub struct Signer {
    /// Refuse a backup that the server with this key did not sign. `audit public-key` shows the key of a server; on
    /// a machine without the server's lookup key nothing else tells its backups from those of others
    #[arg(long, value_name = "KEY")]
    public_key: Option<String>,
}

impl Signer {
    fn read(&self) -> Result<Option<Verifier>, String> {
        let words = "--public-key must be the 64 hexadecimal digits that `audit public-key` shows";
        let read = |key: &String| Verifier::with_public_key(key).ok_or_else(|| words.to_owned());
        self.public_key.as_ref().map(read).transpose()
    }
}

impl Keys {
    fn read(&self) -> Result<Option<Opener>, String> {
        match (&self.identity, &self.passphrase_file) {
            (Some(path), _) => {
                let text = std::fs::read_to_string(path).map(Zeroizing::new);
                let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
                Opener::identities(&text).map(Some).ok_or_else(|| {
                    format!(
                        "{}: has no key of age, which begins with AGE-SECRET-KEY-1",
                        path.display()
                    )
                })
            }
            (None, Some(path)) => Ok(Some(Opener::Passphrase(passphrase(path)?))),
            (None, None) => Ok(None),
        }
    }
}

/// Restores the backup in `folder`.
///
/// # Errors
/// The backup is not whole or not of this server, or its place is in use. Then nothing was changed.
pub fn restore(
    config: &Config,
    folder: &Path,
    keys: &Keys,
    signer: &Signer,
) -> Result<(), CliError> {
    let (opener, signer) = (keys.read()?, signer.read()?);
    let socket = path_of(config);
    if UnixStream::connect(&socket).is_ok() {
        return Err(CliError::Other(format!(
            "nothing was restored: a server runs here and listens at {}; stop it first",
            socket.display()
        )));
    }
    if config.storage.backend == Backend::Postgres {
        check_that_none_runs(config)?;
    }
    let now = SystemClock::default().now();
    let order = Order { config, folder, opener: opener.as_ref(), signer: signer.as_ref(), now };
    let restored = put_back(&order).map_err(|error| CliError::Other(error.to_string()))?;
    tell(&format!(
        "restored the backup of {}, position {}; epoch {} has begun: codes that were issued before and not \
         spent are void",
        restored.manifest.made_at, restored.manifest.position, restored.epoch
    ))?;
    let is_new = restored.secrets.contains(&config.auth.lookup_key_file);
    for path in restored.secrets {
        tell(&format!("{} was written", path.display()))?;
    }
    // A passphrase is known to whoever made the backup; an address, to everybody.
    if is_new && matches!(opener, Some(Opener::Identities(_))) && signer.is_none() {
        remark(
            "Nothing has shown that this backup is yours: anybody can encrypt to the address. If a stranger could \
             write its folder, compare `audit public-key` with the one that you know.",
        );
    }
    for secret in restored.missing {
        remark(&format!(
            "{} is missing: {} is not in the backup, and a server does not start without it",
            secret.setting(),
            secret.file(&config.auth).display()
        ));
    }
    remark(
        "What happened after the backup is gone: revoke again the servers and the access tokens that were \
         revoked since.",
    );
    Ok(())
}

/// Servers on a database keep in memory what it held before.
fn check_that_none_runs(config: &Config) -> Result<(), CliError> {
    let database = Inspection::of(&config.storage.url, 0)
        .map_err(|error| RunError::Store(StoreError::from(error)))?;
    let running = database.others(SIGNING_KEYS, KeyedHash([0; 16]));
    match running.map_err(|error| RunError::Store(StoreError::from(error)))?.all {
        0 => Ok(()),
        some => Err(CliError::Other(format!(
            "nothing was restored: {some} servers run on this database, or did half a minute ago; stop them, and \
             repeat the command"
        ))),
    }
}
