//! `fence`: voids every unspent code and every open activation.

use super::error::CliError;
use super::terminal::tell;
use crate::app::RunError;
use crate::config::Config;
use crate::os::{Clock, SystemClock};
use crate::store::files::{files, open};
use crate::store::watermark;

/// Starts a new epoch, which voids every unspent code and every open activation.
///
/// # Errors
/// The store cannot be opened, or refuses the commit.
pub fn fence(config: &Config) -> Result<(), CliError> {
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
