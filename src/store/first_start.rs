//! The first start makes the secrets. A start is the first one if there is no store yet: the secrets
//! are made before it, so that a start that is interrupted leaves no store without them.

use super::error::StoreError;
use super::files;
use crate::config::Config;
use crate::secrets::{Secret, SecretError, missing};
use iptunnel_domain::Timestamp;

/// Makes the secrets that are missing if this is the first start. Returns what it has made.
///
/// # Errors
/// A secret is missing although there is a store, nobody can tell whether there is one, or a file cannot
/// be written.
pub fn make_secrets(config: &Config, now: Timestamp) -> Result<Vec<Secret>, StoreError> {
    let wanted = wanted(config)?;
    for secret in &wanted {
        secret.make(&config.auth, now)?;
    }
    Ok(wanted)
}

/// Returns what a start would have to make. Looks only.
///
/// # Errors
/// A secret is missing although there is a store, or nobody can tell whether there is one.
pub fn wanted(config: &Config) -> Result<Vec<Secret>, StoreError> {
    let missing = missing(&config.auth)?;
    let Some(first) = missing.first() else { return Ok(missing) };
    if files::is_there(config)? {
        let path = first.file(&config.auth).to_owned();
        return Err(SecretError::Missing { secret: *first, path }.into());
    }
    Ok(missing)
}
