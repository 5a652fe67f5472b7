//! `healthcheck`: asks the running server whether it is ready.

use super::client::admin_address;
use super::error::CliError;
use crate::config::Config;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Asks `/readyz` on the operators' listener.
///
/// # Errors
/// Where nobody answers, or the server is not ready.
pub fn healthcheck(config: &Config) -> Result<(), CliError> {
    const PATIENCE: Duration = Duration::from_secs(3);
    let address = admin_address(config);
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| CliError::Listen(address, error))?;
    if answer.starts_with("HTTP/1.1 200") {
        println!("ready");
        return Ok(());
    }
    Err(CliError::Other(format!("{address}: not ready")))
}
