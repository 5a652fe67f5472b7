//! `healthcheck`: asks the running server whether it is ready.

use super::client::{CONNECT_TIMEOUT, admin_address, agent};
use super::error::CliError;
use super::terminal::tell;
use crate::config::Config;
use crate::http::respond::READY;
use std::time::Duration;

/// The longest answer that is read, in bytes.
const LONGEST: u64 = 1024;
/// The longest wait for the answer's head, and again for its body.
const ANSWER_TIMEOUT: Duration = CONNECT_TIMEOUT;

/// Asks `/readyz` on the operators' listener, at `admin.url` if it is set. A server that accepts the
/// connection and stays silent fails after [`ANSWER_TIMEOUT`].
///
/// # Errors
/// The server cannot be reached, does not answer in time, or is not ready, or something else answers.
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
    let is_good = answer.status().as_u16() == 200;
    // Anything may listen at the address, and many programs answer 200 to everything.
    let words = answer.into_body().into_with_config().limit(LONGEST).read_to_string();
    if is_good && words.ok().as_deref() != Some(READY) {
        return Err(CliError::Other(format!(
            "{address}: the answer is not one of this server: another service is at this address; check \
             admin.bind and --url"
        )));
    }
    if !is_good {
        return Err(CliError::Other(format!(
            "the server at {address} is not ready; ask {address}/readyz for the reason"
        )));
    }
    Ok(tell("ready")?)
}
