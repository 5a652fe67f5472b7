//! `healthcheck`: asks the running server whether it is ready.

use super::client::{CONNECT_TIMEOUT, admin_address, agent};
use super::error::CliError;
use super::terminal::tell;
use crate::config::Config;
use std::time::Duration;

/// The longest wait for the answer's head, and again for its body.
const ANSWER_TIMEOUT: Duration = CONNECT_TIMEOUT;

/// Asks `/readyz` on the operators' listener, at `admin.url` if it is set. A server that accepts the connection and stays silent
/// fails after [`ANSWER_TIMEOUT`].
///
/// # Errors
/// The server cannot be reached, does not answer in time, or is not ready.
pub fn healthcheck(config: &Config) -> Result<(), CliError> {
    let address = match config.admin.url.trim_end_matches('/') {
        "" => format!("http://{}", admin_address(config)),
        given => given.to_owned(),
    };
    let request = agent(config)
        .get(format!("{address}/readyz"))
        .config()
        .timeout_recv_response(Some(ANSWER_TIMEOUT))
        .timeout_recv_body(Some(ANSWER_TIMEOUT))
        .build();
    let answer = request.call();
    let answer = answer.map_err(|error| CliError::Unreachable(address.clone(), error.into_io()))?;
    if answer.status().as_u16() != 200 {
        return Err(CliError::Other(format!(
            "the server at {address} is not ready; ask {address}/readyz for the reason"
        )));
    }
    Ok(tell("ready")?)
}
