//! `fence`: makes void what is unspent.

use super::error::CliError;
use super::terminal::tell;
use crate::app::RunError;
use crate::config::Config;
use crate::os::{Clock, SystemClock};
use crate::store::files::{files, open};
use crate::store::watermark;

/// Lets a new epoch begin, whatever the store holds.
///
/// # Errors
/// Where the store cannot be opened, or does not take a commit.
pub fn fence(config: &Config) -> Result<(), CliError> {
    let store =
        open(config, files(&config.storage.path)).map_err(|error| RunError::Store(error.into()))?;
    let epoch =
        watermark::fence(store.as_ref(), &config.storage.path, SystemClock::default().now());
    store.close();
    let epoch = epoch.map_err(|error| CliError::Other(error.to_string()))?;
    tell(&format!("epoch {epoch}: what was issued and not spent before is void"));
    Ok(())
}
