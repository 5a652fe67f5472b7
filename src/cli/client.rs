//! The HTTP client for a running server. It uses the server's Unix socket, which only the server's user
//! can open, so that the master token goes to nobody who happens to listen on a port. With `admin.url`
//! it uses that address and the master token.

use super::transport::ToSocket;
use crate::config::{Config, PublicUrl};
use crate::http::tls::files::read_certificates;
use crate::operator::socket::path_of;
use crate::private_file;
use crate::secrets::{SecretError, master_token};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsProvider};
use ureq::unversioned::resolver::DefaultResolver;
use zeroize::Zeroizing;

/// A running server.
pub struct Server {
    agent: ureq::Agent,
    url: String,
    /// The socket or the address, for messages.
    place: String,
    /// The master token. None on the socket.
    token: Option<Zeroizing<String>>,
}

/// The `data` of an answer, or an error message.
pub type Answer = Result<Value, String>;

/// Returns the message about a secret that a command needs. A command that is run in another folder is
/// the most frequent reason why one is missing.
pub fn of_command(error: SecretError) -> String {
    match error {
        SecretError::Missing { secret, path } => format!(
            "{}: {} does not exist; run this command in the server's folder, with its configuration",
            secret.setting(),
            path.display()
        ),
        other => other.to_string(),
    }
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

/// The time that an answer may take beyond the server's own deadline for requests.
const ON_THE_WAY: Duration = Duration::from_secs(5);

/// Returns an HTTP client for `admin.url` that does not treat an error status as an error.
///
/// # Errors
/// A file that TLS needs cannot be used.
pub fn agent(config: &Config) -> Result<ureq::Agent, String> {
    let is_https = PublicUrl::parse(&config.admin.url).is_some_and(|url| url.is_https());
    let tls = if is_https { tls(config)? } else { TlsConfig::default() };
    Ok(settings(config, tls).into())
}

/// Returns an HTTP client for the socket of a server, as [`agent`], and the socket's path for messages.
///
/// # Errors
/// There is no socket.
pub fn agent_of_socket(config: &Config) -> Result<(ureq::Agent, String), String> {
    let path = path_of(config);
    let place = path.display().to_string();
    let found = path
        .try_exists()
        .map_err(|error| format!("{place}: {error}; run this command as the server's user"))?;
    if !found {
        return Err(format!(
            "{place}: no server listens there; start it, or run this command in the server's folder, \
             with its configuration and as its user; if its log says that it has no socket, use --url"
        ));
    }
    let settings = settings(config, TlsConfig::default());
    let agent = ureq::Agent::with_parts(settings, ToSocket(path), DefaultResolver::default());
    Ok((agent, place))
}

/// An address that no resolver has to look up, for requests through the socket.
pub const AT_SOCKET: &str = "http://127.0.0.1";

fn settings(config: &Config, tls: TlsConfig) -> ureq::config::Config {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(config.server.request_timeout + ON_THE_WAY))
        .proxy(None)
        .tls_config(tls)
        .build()
}

/// Returns whom to trust at `admin.url`, and what to show there.
fn tls(config: &Config) -> Result<TlsConfig, String> {
    let admin = &config.admin;
    let certificates = |setting, path| {
        let read = read_certificates(setting, path).map_err(|error| error.to_string())?;
        Ok::<_, String>(read.iter().map(|one| Certificate::from_der(one).to_owned()).collect())
    };
    let roots: Vec<_> = if admin.url_ca.as_os_str().is_empty() {
        let found = rustls_native_certs::load_native_certs().certs;
        found.iter().map(|one| Certificate::from_der(one).to_owned()).collect()
    } else {
        certificates("admin.url_ca", &admin.url_ca)?
    };
    if roots.is_empty() {
        return Err(
            "this machine trusts no certificates; install the package ca-certificates, or name \
                    those to trust in admin.url_ca"
                .into(),
        );
    }
    let shown = if admin.url_cert.as_os_str().is_empty() {
        None
    } else {
        let chain: Vec<_> = certificates("admin.url_cert", &admin.url_cert)?;
        let path = admin.url_key.display();
        let key = private_file::read(&admin.url_key)
            .map_err(|error| format!("admin.url_key: {path} cannot be read: {error}"))?
            .ok_or_else(|| format!("admin.url_key: {path} does not exist; check the path"))?;
        let key = PrivateKey::from_pem(&key).map_err(|_| {
            format!("admin.url_key: {path} holds no private key in PEM that is not encrypted")
        })?;
        Some(ClientCert::new_with_certs(&chain, key))
    };
    Ok(TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::from(roots))
        .client_cert(shown)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build())
}

impl Server {
    /// Returns a client of the configured server.
    ///
    /// # Errors
    /// There is no socket; or with `admin.url`, the file of the master token is missing or cannot be
    /// read.
    pub fn of(config: &Config) -> Result<Self, String> {
        if config.admin.url.is_empty() {
            return Self::at_socket(config);
        }
        let place = config.admin.url.trim_end_matches('/').to_owned();
        let token = Some(master_token(&config.auth.master_token_file).map_err(of_command)?);
        Ok(Self { agent: agent(config)?, url: format!("{place}/admin"), place, token })
    }

    fn at_socket(config: &Config) -> Result<Self, String> {
        let (agent, place) = agent_of_socket(config)?;
        Ok(Self { agent, url: format!("{AT_SOCKET}/admin"), place, token: None })
    }

    fn signed<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {}", **token)),
            None => request,
        }
    }

    fn unreachable(&self, error: &ureq::Error) -> String {
        let hint = match error {
            ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                "run this command as the server's user"
            }
            _ => "check that it runs",
        };
        format!("no answer from the server at {}: {error}; {hint}", self.place)
    }

    /// Says that what answered is something else.
    fn not_the_operators(&self) -> String {
        format!(
            "{}: the answer is not one of the operators' listener: the public listener or another \
             service is at this address, or it speaks HTTPS; check admin.url",
            self.place
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
        self.data(self.signed(request).call())
    }

    /// Sends a `POST` request.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        let request = self.agent.post(format!("{}{path}", self.url));
        self.data(self.signed(request).send(body.to_string()))
    }

    /// Sends a `PATCH` request that applies to any current state (`If-Match: *`).
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn patch(&self, path: &str, body: &Value) -> Answer {
        let request = self.agent.patch(format!("{}{path}", self.url)).header("if-match", "*");
        self.data(self.signed(request).send(body.to_string()))
    }

    /// Returns a reader of the whole audit log, one line for each entry.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn export(&self) -> Result<Box<dyn BufRead>, String> {
        let request = self.agent.get(format!("{}/audit/export", self.url));
        let answer = self.signed(request).call();
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
