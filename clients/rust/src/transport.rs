//! How requests travel.

use crate::error::{Error, Problem};
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use zeroize::Zeroizing;

/// The largest answer that is read. A server keeps payloads of up to 4 MiB.
const MAX_ANSWER: u64 = 8 << 20;

/// A request. It has no `Debug`, since its body and its token are secret.
#[derive(Clone)]
pub struct Request {
    /// The whole address.
    pub url: String,
    /// What is sent as `Authorization: Bearer`.
    pub bearer: Option<Zeroizing<String>>,
    /// The JSON of a `POST`. None for a `GET`.
    pub body: Option<Zeroizing<String>>,
}

/// An answer, from whomever.
#[derive(Clone)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// The headers, in any order.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Response {
    /// Returns the value of a header. `name` is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// Carries one request to the server and its answer back. It does not repeat anything, follows no
/// redirects, and takes an error status for an answer like any other.
pub trait Transport: Send + Sync {
    /// Sends the request and reads the answer to its end.
    ///
    /// # Errors
    /// There is no answer within `patience`. The server may have done what it was asked to do.
    fn send(&self, request: &Request, patience: Duration) -> Result<Response, Problem>;
}

impl<F> Transport for F
where
    F: Fn(&Request, Duration) -> Result<Response, Problem> + Send + Sync,
{
    fn send(&self, request: &Request, patience: Duration) -> Result<Response, Problem> {
        self(request, patience)
    }
}

/// The network. Each request has a connection of its own: there are few, and none then finds a connection
/// that has died meanwhile. Certificates are checked against those that the machine trusts.
pub struct Network {
    agent: ureq::Agent,
}

impl Network {
    /// Returns the way to `url`. It leads through the proxy that the environment names
    /// (`https_proxy` and so on), if there is one.
    ///
    /// # Errors
    /// [`Error::Settings`]: `url` begins with `https:`, and the machine has no certificates to check with.
    pub fn new(url: &str) -> Result<Self, Error> {
        Self::with(url, ureq::Proxy::try_from_env())
    }

    /// As [`Self::new`], but never through a proxy.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn direct(url: &str) -> Result<Self, Error> {
        Self::with(url, None)
    }

    fn with(url: &str, proxy: Option<ureq::Proxy>) -> Result<Self, Error> {
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_idle_connections(0)
            .user_agent(concat!("iptunnel-client/", env!("CARGO_PKG_VERSION")))
            .proxy(proxy);
        if url.starts_with("https:") {
            config = config.tls_config(trusted_by_the_machine()?);
        }
        Ok(Self { agent: config.build().into() })
    }
}

fn trusted_by_the_machine() -> Result<TlsConfig, Error> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err(Error::Settings(
            "this machine has no certificates to check the server with; install the package \
             ca-certificates"
                .to_owned(),
        ));
    }
    let roots = found.certs.iter().map(|root| Certificate::from_der(root).to_owned());
    Ok(TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::from(roots))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build())
}

impl Transport for Network {
    fn send(&self, request: &Request, patience: Duration) -> Result<Response, Problem> {
        let bearer =
            request.bearer.as_ref().map(|token| Zeroizing::new(format!("Bearer {}", **token)));
        let answer = match &request.body {
            Some(body) => {
                let post = self.agent.post(&request.url).header("content-type", "application/json");
                let post = post.config().timeout_global(Some(patience)).build();
                authorized(post, bearer.as_deref()).send(body.as_str())
            }
            None => {
                let get = self.agent.get(&request.url);
                let get = get.config().timeout_global(Some(patience)).build();
                authorized(get, bearer.as_deref()).call()
            }
        };
        read(answer.map_err(|error| problem(&error))?)
    }
}

fn authorized<B>(
    request: ureq::RequestBuilder<B>,
    bearer: Option<&String>,
) -> ureq::RequestBuilder<B> {
    match bearer {
        Some(value) => request.header("authorization", value),
        None => request,
    }
}

fn read(answer: ureq::http::Response<ureq::Body>) -> Result<Response, Problem> {
    let (head, mut body) = answer.into_parts();
    let text = |value: &ureq::http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let headers =
        head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let mut content = Vec::new();
    // One byte more than allowed, to notice that it is too large.
    let reader = body.as_reader().take(MAX_ANSWER + 1).read_to_end(&mut content);
    reader.map_err(|error| problem(&ureq::Error::from(error)))?;
    if content.len() as u64 > MAX_ANSWER {
        return Err(Problem::NotThisApi { status: head.status.as_u16() });
    }
    Ok(Response { status: head.status.as_u16(), headers, body: content })
}

fn problem(error: &ureq::Error) -> Problem {
    match error {
        ureq::Error::Timeout(_) => Problem::Timeout,
        ureq::Error::HostNotFound => Problem::Network("its name cannot be resolved".to_owned()),
        error => Problem::Network(error.to_string()),
    }
}
