//! One try of a delivery: resolves the receiver's name, connects to an address that is allowed, and reads
//! how it answers.

use super::endpoints::Endpoint;
use super::message::Message;
use actix_web::http::header::HttpDate;
use iptunnel_domain::Timestamp;
use iptunnel_domain::webhook::is_outside;
use std::io;
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use ureq::config::Config;
use ureq::http::{HeaderMap, StatusCode, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

/// The longest time of a try, from the look-up of the name to the end of the answer. Standard Webhooks 1.0
/// advises 15 to 30 s.
pub const LONGEST: Duration = Duration::from_secs(15);
/// The bytes that are read of an answer's body, so that the connection can be used again. A longer one is
/// cut off with its connection.
const ANSWER: u64 = 16 << 10;
/// The longest head of an answer.
const ANSWER_HEAD: usize = 16 << 10;

/// How a try ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver has it.
    Delivered,
    /// The receiver wants nothing more (410).
    Gone,
    /// It failed.
    Failed {
        /// Why, for people.
        why: String,
        /// After how many seconds the receiver wants to be asked again.
        retry_after: Option<u64>,
    },
}

/// Resolves names, and leaves out the addresses that are not allowed. The client connects to the addresses
/// that it returns and to no others, so no second look-up can lead elsewhere.
#[derive(Debug)]
struct Checked {
    allow_private: bool,
}

impl Resolver for Checked {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = DefaultResolver::default().resolve(uri, config, timeout)?;
        let mut allowed = self.empty();
        for address in found.iter().filter(|one| self.allow_private || is_outside(one.ip())) {
            allowed.push(*address);
        }
        if allowed.is_empty() {
            let words = "its address is not globally reachable, and allow_private is not set";
            return Err(ureq::Error::Io(io::Error::other(words)));
        }
        Ok(allowed)
    }
}

/// Sends messages to one receiver.
#[derive(Clone, Debug)]
pub struct Sender {
    endpoint: Endpoint,
    agent: ureq::Agent,
}

impl Sender {
    /// Returns a sender that trusts the certificates that the machine trusts.
    pub fn to(endpoint: Endpoint, roots: &Arc<Vec<Certificate<'static>>>) -> Self {
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::Specific(Arc::clone(roots)))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_response_header_size(ANSWER_HEAD)
            .timeout_global(Some(LONGEST))
            .proxy(None)
            .user_agent(concat!("iptunnel-server/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .build();
        let resolver = Checked { allow_private: endpoint.allow_private };
        let agent = ureq::Agent::with_parts(config, DefaultConnector::default(), resolver);
        Self { endpoint, agent }
    }

    /// Returns the receiver.
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Tries to deliver a message. Waits for [`LONGEST`] at most.
    pub fn send(&self, message: &Message, now: Timestamp) -> Outcome {
        let request = self
            .agent
            .post(&self.endpoint.url)
            .header("content-type", "application/json")
            .header("webhook-id", &message.id)
            .header("webhook-timestamp", now.0.to_string())
            .header("webhook-signature", message.signature(&self.endpoint.secrets, now));
        match request.send(&message.body) {
            Ok(mut answer) => {
                let outcome = outcome_of(answer.status(), answer.headers(), now);
                // What it says is of no interest, and is neither kept nor logged.
                let _ = io::copy(&mut answer.body_mut().as_reader().take(ANSWER), &mut io::sink());
                outcome
            }
            Err(error) => Outcome::Failed { why: error.to_string(), retry_after: None },
        }
    }
}

fn outcome_of(status: StatusCode, headers: &HeaderMap, now: Timestamp) -> Outcome {
    if status.is_success() {
        return Outcome::Delivered;
    }
    if status == StatusCode::GONE {
        return Outcome::Gone;
    }
    let is_asked =
        [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&status);
    let after = headers.get("retry-after").and_then(|value| value.to_str().ok());
    let retry_after = after.filter(|_| is_asked).and_then(|text| seconds_of(text.trim(), now));
    Outcome::Failed { why: format!("it answered {}", status.as_u16()), retry_after }
}

/// Reads the value of `Retry-After`: seconds, or a date (RFC 9110, sections 10.2.3 and 5.6.7).
fn seconds_of(text: &str, now: Timestamp) -> Option<u64> {
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let at = SystemTime::from(text.parse::<HttpDate>().ok()?).duration_since(UNIX_EPOCH).ok()?;
    Some(Timestamp(at.as_secs()).since(now))
}

/// Returns the certificates that the machine trusts.
pub fn roots_of_machine() -> Arc<Vec<Certificate<'static>>> {
    let found = rustls_native_certs::load_native_certs().certs;
    Arc::new(found.iter().map(|one| Certificate::from_der(one).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_by_its_status_and_by_what_it_asks_for() {
        let now = Timestamp(946_684_739);
        let outcome = |status: u16, after: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", after.parse().unwrap());
            outcome_of(StatusCode::from_u16(status).unwrap(), &headers, now)
        };
        let failed = |status, retry_after| Outcome::Failed {
            why: format!("it answered {status}"),
            retry_after,
        };
        assert_eq!(outcome(200, "5"), Outcome::Delivered);
        assert_eq!(outcome(204, "5"), Outcome::Delivered);
        assert_eq!(outcome(410, "5"), Outcome::Gone);
        assert_eq!(outcome(301, "5"), failed(301, None));
        assert_eq!(outcome(500, "5"), failed(500, None));
        assert_eq!(outcome(429, "120"), failed(429, Some(120)));
        assert_eq!(outcome(503, "Fri, 31 Dec 1999 23:59:59 GMT"), failed(503, Some(60)));
        assert_eq!(outcome(503, "soon"), failed(503, None));
    }
}
