//! The HTTP client for a running server: it uses the operators' listener and the master token.

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

/// The `data` of an answer, or an error message.
pub type Answer = Result<Value, String>;

/// Returns `path` if the file exists. Commands that only read must not create the server's files.
///
/// # Errors
/// The file does not exist.
pub fn existing(path: &Path) -> Result<&Path, String> {
    let missing = || {
        format!(
            "{}: the file is missing; run this command in the server's folder, with its configuration",
            path.display()
        )
    };
    path.exists().then_some(path).ok_or_else(missing)
}

/// Returns the address at which this machine reaches the operators' listener.
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

/// The longest wait for a connection. It does not limit the wait for an answer: an export may take
/// longer.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Returns an HTTP client that does not treat an error status as an error.
pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .proxy(None)
        .build()
        .into()
}

impl Server {
    /// Returns a client of the configured server.
    ///
    /// # Errors
    /// The file of the master token is missing or cannot be read.
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
        format!("no answer from the server at {}: {error}; check that it runs", self.url)
    }

    /// Says that what answered is something else.
    fn not_the_operators(&self) -> String {
        format!(
            "{}: the answer is not one of the operators' listener: the public listener or another \
             service is at this address; check admin.bind",
            self.url
        )
    }

    /// Returns the `data` of an answer, or the error message that the server sent.
    fn data(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Answer {
        let mut answer = answer.map_err(|error| self.unreachable(&error))?;
        let text = answer.body_mut().read_to_string().map_err(|error| self.unreachable(&error))?;
        let mut body: Value = serde_json::from_str(&text).map_err(|_| self.not_the_operators())?;
        if let Some(message) = body.pointer("/error/message").and_then(Value::as_str) {
            return Err(message.to_owned());
        }
        body.get_mut("data").map(Value::take).ok_or_else(|| self.not_the_operators())
    }

    /// Sends a `GET` request.
    ///
    /// # Errors
    /// The server does not answer, or it answers with an error: then its message.
    pub fn get(&self, path: &str, query: &[(&str, &str)]) -> Answer {
        let request = self.agent.get(format!("{}{path}", self.url));
        let request = request.query_pairs(query.iter().copied());
        self.data(request.header("authorization", self.bearer()).call())
    }

    /// Sends a `POST` request.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        let request = self.agent.post(format!("{}{path}", self.url));
        self.data(request.header("authorization", self.bearer()).send(body.to_string()))
    }

    /// Sends a `PATCH` request that applies to any current state (`If-Match: *`).
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn patch(&self, path: &str, body: &Value) -> Answer {
        let request = self.agent.patch(format!("{}{path}", self.url)).header("if-match", "*");
        self.data(request.header("authorization", self.bearer()).send(body.to_string()))
    }

    /// Returns a reader of the whole audit log, one line for each entry.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn export(&self) -> Result<Box<dyn BufRead>, String> {
        let request = self.agent.get(format!("{}/audit/export", self.url));
        let answer = request.header("authorization", self.bearer()).call();
        let answer = answer.map_err(|error| self.unreachable(&error))?;
        if answer.status().as_u16() != 200 {
            return self.data(Ok(answer)).and(Err(self.not_the_operators()));
        }
        let kind = answer.headers().get("content-type").and_then(|kind| kind.to_str().ok());
        if kind != Some("application/jsonl") {
            return Err(self.not_the_operators());
        }
        Ok(Box::new(BufReader::new(answer.into_body().into_reader())))
    }
}
