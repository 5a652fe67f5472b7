//! The variables of the environment that are settings.

use std::ffi::OsString;

/// The beginning of the names of such variables.
const PREFIX: &[u8] = b"IPTUNNEL_";

/// Returns the variables of this process that are settings. Others are not looked at: they may hold any
/// bytes.
///
/// # Errors
/// A setting that is not UTF-8. The message names it without its value, which may be a secret.
pub fn variables() -> Result<Vec<(String, String)>, String> {
    let ours = |(name, _): &(OsString, OsString)| name.as_encoded_bytes().starts_with(PREFIX);
    std::env::vars_os().filter(ours).map(as_text).collect()
}

fn as_text((name, value): (OsString, OsString)) -> Result<(String, String), String> {
    let problem = |name: &str, what: &str| {
        format!(
            "{name}: the {what} of this environment variable is not UTF-8; correct it or remove it"
        )
    };
    let name = name.into_string().map_err(|name| problem(&name.to_string_lossy(), "name"))?;
    match value.into_string() {
        Ok(value) => Ok((name, value)),
        Err(_) => Err(problem(&name, "value")),
    }
}
