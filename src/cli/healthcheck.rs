//! `healthcheck`: asks the running server whether it is ready.

use super::client::{AT_SOCKET, CONNECT_TIMEOUT, admin_address, agent, agent_of_socket};
use super::error::CliError;
use super::terminal::tell;
use crate::config::Config;
use crate::http::respond::READY;
use crate::http::tls::files::Files;
use std::time::Duration;

/// The longest answer that is read, in bytes.
const LONGEST: u64 = 1024;
/// The longest wait for the answer's head, and again for its body.
const ANSWER_TIMEOUT: Duration = CONNECT_TIMEOUT;

/// Asks `/readyz` on the operators' listener: at `admin.url` if it is set, else at `admin.bind`; but through
/// the socket where that listener speaks HTTPS, since its certificate is for another name than this machine has
/// for itself. A server that accepts the connection and stays silent fails after [`ANSWER_TIMEOUT`].
///
/// # Errors
/// The server cannot be reached, does not answer in time, or is not ready, or something else answers.
pub fn healthcheck(config: &Config) -> Result<(), CliError> {
    let given = config.admin.url.trim_end_matches('/');
    let (agent, url, place) = if !given.is_empty() {
        (agent(config)?, given.to_owned(), given.to_owned())
    } else if Files::of_operators(config).is_some() {
        let (agent, place) = agent_of_socket(config)?;
        (agent, AT_SOCKET.to_owned(), place)
    } else {
        let url = format!("http://{}", admin_address(config));
        (agent(config)?, url.clone(), url)
    };
    let request = agent
        .get(format!("{url}/readyz"))
        .config()
        .timeout_recv_response(Some(ANSWER_TIMEOUT))
        .timeout_recv_body(Some(ANSWER_TIMEOUT))
        .build();
    let answer = request.call();
    let answer = answer.map_err(|error| CliError::Unreachable(place.clone(), error.into_io()))?;
    let is_good = answer.status().as_u16() == 200;
    // Anything may listen at the address, and many programs answer 200 to everything.
    let words = answer.into_body().into_with_config().limit(LONGEST).read_to_string();
    if is_good && words.ok().as_deref() != Some(READY) {
        return Err(CliError::Other(format!(
            "{place}: the answer is not one of this server: another service is at this address; check \
             admin.bind and --url"
        )));
    }
    if !is_good {
        return Err(CliError::Other(format!(
            "the server at {place} is not ready; its log and /readyz of its operators' listener say why"
        )));
    }
    Ok(tell("ready")?)
}
