//! Asks a running server, over the operators' listener and with the master token.

use crate::config::Config;
use crate::secrets::master_token;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// A running server.
pub struct Server {
    agent: ureq::Agent,
    url: String,
    token: String,
}

/// The `data` of an answer, or what went wrong, in words.
pub type Answer = Result<Value, String>;

/// A file of the server's: a command that only asks must not make one.
///
/// # Errors
/// Where there is none.
pub fn existing(path: &Path) -> Result<&Path, String> {
    let missing = || format!("{}: is missing; is this where the server runs?", path.display());
    path.exists().then_some(path).ok_or_else(missing)
}

/// The operators' listener as this machine reaches it.
pub fn admin_address(config: &Config) -> SocketAddr {
    let mut address = config.admin.bind;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// How long a server is waited for: until it is reached, and then until it begins to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Asks with HTTP, and takes every status for an answer.
pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(PATIENCE))
        .proxy(None)
        .build()
        .into()
}

impl Server {
    /// The server that is configured here. Its master token must be there.
    ///
    /// # Errors
    /// Where it is not, or cannot be read.
    pub fn of(config: &Config) -> Result<Self, String> {
        let path = existing(&config.auth.master_token_file)?;
        let token = master_token(path).map_err(|error| error.to_string())?.token;
        let url = format!("http://{}/admin", admin_address(config));
        Ok(Self { agent: agent(), url, token: token.to_string() })
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    fn unreachable(&self, error: &ureq::Error) -> String {
        format!("{}: {error}", self.url)
    }

    /// The `data` of an answer, or what the server says is wrong.
    fn data(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Answer {
        let mut answer = answer.map_err(|error| self.unreachable(&error))?;
        let text = answer.body_mut().read_to_string().map_err(|error| self.unreachable(&error))?;
        let mut body: Value = serde_json::from_str(&text)
            .map_err(|_| format!("{}: not an answer of this server", self.url))?;
        match body.pointer("/error/message").and_then(Value::as_str) {
            Some(message) => Err(message.to_owned()),
            None => Ok(body.get_mut("data").map_or(Value::Null, Value::take)),
        }
    }

    /// Asks with `GET`.
    ///
    /// # Errors
    /// Where nobody answers, or what the server says is wrong.
    pub fn get(&self, path: &str, query: &[(&str, &str)]) -> Answer {
        let request = self.agent.get(format!("{}{path}", self.url));
        let request = request.query_pairs(query.iter().copied());
        self.data(request.header("authorization", self.bearer()).call())
    }

    /// Asks with `POST`.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        let request = self.agent.post(format!("{}{path}", self.url));
        self.data(request.header("authorization", self.bearer()).send(body.to_string()))
    }

    /// Asks with `PATCH`, whatever is there now.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn patch(&self, path: &str, body: &Value) -> Answer {
        let request = self.agent.patch(format!("{}{path}", self.url)).header("if-match", "*");
        self.data(request.header("authorization", self.bearer()).send(body.to_string()))
    }

    /// The whole audit log, a line for each entry.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn export(&self) -> Result<Box<dyn BufRead>, String> {
        let request = self.agent.get(format!("{}/audit/export", self.url));
        let answer = request.header("authorization", self.bearer()).call();
        let answer = answer.map_err(|error| self.unreachable(&error))?;
        if answer.status().as_u16() != 200 {
            return Err(format!("{}: status {}", self.url, answer.status()));
        }
        Ok(Box::new(BufReader::new(answer.into_body().into_reader())))
    }
}
