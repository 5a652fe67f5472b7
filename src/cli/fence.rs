//! `fence`: voids every unspent code and every open activation.

use super::error::CliError;
use super::terminal::{remark, tell};
use crate::app::RunError;
use crate::config::{Backend, Config, Storage};
use crate::os::{Clock, SystemClock};
use crate::store::files::{files, is_there, open};
use crate::store::watermark;
use std::io::{BufRead, IsTerminal, Read, stdin};

/// The longest answer that is read, in bytes.
const LONGEST: u64 = 100;

/// Starts a new epoch, which voids every unspent code and every open activation. Asks first, unless
/// `yes` is set.
///
/// # Errors
/// There is no store, nobody has agreed, or the store cannot be opened or refuses the commit.
pub fn fence(config: &Config, yes: bool) -> Result<(), CliError> {
    if !is_there(config).map_err(RunError::Store)? {
        return Err(CliError::Other(format!(
            "there is no store at {}; run this command in the server's folder, with its configuration",
            place(&config.storage)
        )));
    }
    let what = format!(
        "Every unspent code and every open activation in {} will be void, for good. Whoever has such a code \
         needs a new one, and installations under way begin again. Servers, and what is confirmed, stay.",
        place(&config.storage)
    );
    if !yes && !agreed(&what)? {
        return Err(CliError::Other("nothing has changed".into()));
    }
    let store =
        open(config, files(&config.storage.path)).map_err(|error| RunError::Store(error.into()))?;
    let epoch =
        watermark::fence(store.as_ref(), &config.storage.path, SystemClock::default().now());
    store.close();
    let epoch = epoch.map_err(|error| CliError::Other(error.to_string()))?;
    tell(&format!(
        "epoch {epoch} has begun: codes that were issued before and not spent are void"
    ))?;
    Ok(())
}

/// Says what is going to happen, and returns whether the person at the terminal agrees.
fn agreed(what: &str) -> Result<bool, CliError> {
    if !stdin().is_terminal() {
        return Err(CliError::Other(format!(
            "{what} Nothing has changed yet: there is no terminal to ask at; repeat the command with --yes"
        )));
    }
    remark(what);
    remark("Type yes to go on:");
    let mut answer = String::new();
    stdin().lock().take(LONGEST).read_line(&mut answer).map_err(|error| {
        CliError::Other(format!(
            "the answer cannot be read: {error}; repeat the command with --yes"
        ))
    })?;
    Ok(answer.trim().eq_ignore_ascii_case("yes"))
}

/// Returns where the store is, without what is secret in its address.
fn place(storage: &Storage) -> String {
    match storage.backend {
        Backend::Redb => storage.path.display().to_string(),
        Backend::Postgres => "storage.url".into(),
    }
}
