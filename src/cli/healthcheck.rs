//! `healthcheck`: asks the running server whether it is ready.

use super::client::{admin_address, agent};
use super::error::CliError;
use crate::config::Config;

/// Asks `/readyz` on the operators' listener.
///
/// # Errors
/// Where nobody answers, or the server is not ready.
pub fn healthcheck(config: &Config) -> Result<(), CliError> {
    let address = admin_address(config);
    let asked = agent().get(format!("http://{address}/readyz")).call();
    let answer = asked.map_err(|error| CliError::Listen(address, error.into_io()))?;
    if answer.status().as_u16() != 200 {
        return Err(CliError::Other(format!("{address}: not ready")));
    }
    println!("ready");
    Ok(())
}
