//! `fence`: voids every unspent code and every open activation.

use super::error::CliError;
use super::terminal::tell;
use crate::app::RunError;
use crate::config::{Backend, Config, Storage};
use crate::os::{Clock, SystemClock};
use crate::store::files::{files, is_there, open};
use crate::store::watermark;

/// Starts a new epoch, which voids every unspent code and every open activation.
///
/// # Errors
/// There is no store, it cannot be opened, or it refuses the commit.
pub fn fence(config: &Config) -> Result<(), CliError> {
    if !is_there(config).map_err(RunError::Store)? {
        return Err(CliError::Other(format!(
            "there is no store at {}; run this command in the server's folder, with its configuration",
            place(&config.storage)
        )));
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

/// Returns where the store is, without what is secret in its address.
fn place(storage: &Storage) -> String {
    match storage.backend {
        Backend::Redb => storage.path.display().to_string(),
        Backend::Postgres => "storage.url".into(),
    }
}
