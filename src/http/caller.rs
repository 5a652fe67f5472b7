//! The caller's address, which rate limits use, and the request id for tracing.

use actix_web::HttpRequest;
use actix_web::http::header::HeaderMap;
use ipnet::IpNet;
use iptunnel_domain::address::caller_network;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The networks of trusted proxies: their `X-Forwarded-For` is believed.
#[derive(Clone, Debug, Default)]
pub struct Proxies(pub Vec<IpNet>);

impl Proxies {
    /// Returns whether a peer is a trusted proxy.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address.to_canonical()))
    }

    /// Returns the caller's address: the TCP peer, or the address that trusted proxies report. The
    /// caller cannot change it with headers of its own.
    pub fn caller(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut caller = peer.to_canonical();
        if !self.trusts(caller) {
            return caller;
        }
        // Several header lines form one list in order. The nearest proxy wrote the last entry.
        let lines: Vec<&str> =
            headers.get_all("x-forwarded-for").map(|line| line.to_str().unwrap_or("?")).collect();
        for entry in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
            let Some(address) = parse_entry(entry.trim()) else { break };
            caller = address.to_canonical();
            if !self.trusts(caller) {
                break;
            }
        }
        caller
    }
}

/// Notices proxies that are not trusted: without a word, all callers behind one would share one limit.
#[derive(Debug, Default)]
pub struct UntrustedProxies {
    requests: Counter,
    warned: AtomicBool,
}

impl UntrustedProxies {
    /// Registers the counter.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Requests whose X-Forwarded-For or Forwarded header was ignored, because the peer is \
                    not in server.trusted_proxies";
        registry.register("forwarded_ignored", help, self.requests.clone());
    }

    /// Counts a request with a header that is not believed. Warns at the first one: anybody can send
    /// such a header, and nobody may fill the log with it.
    pub fn notice(&self, peer: IpAddr, headers: &HeaderMap, proxies: &Proxies) {
        let is_forwarded =
            headers.contains_key("x-forwarded-for") || headers.contains_key("forwarded");
        if !is_forwarded || proxies.trusts(peer) {
            return;
        }
        self.requests.inc();
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                peer = %peer.to_canonical(),
                "a request with X-Forwarded-For came from a peer that is not trusted, so the header was \
                 ignored; if the peer is your proxy, name it in server.trusted_proxies, or all callers \
                 share one limit; this is logged once, the metric forwarded_ignored counts on"
            );
        }
    }
}

/// Parses an address, with or without a port or brackets.
fn parse_entry(entry: &str) -> Option<IpAddr> {
    let bare = entry.strip_prefix('[').and_then(|e| e.strip_suffix(']')).unwrap_or(entry);
    bare.parse().ok().or_else(|| entry.parse().ok().map(|socket: SocketAddr| socket.ip()))
}

/// Returns the caller's address.
pub fn address_of(request: &HttpRequest, proxies: &Proxies) -> IpAddr {
    // Only a handler's test makes requests without a peer.
    let peer = request.peer_addr().map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.ip());
    proxies.caller(peer, request.headers())
}

/// Returns the network that the rate limits count a request for.
pub fn network_of(request: &HttpRequest, proxies: &Proxies) -> IpAddr {
    caller_network(address_of(request, proxies))
}

/// Returns the token in the `Authorization` header of a request; empty if there is none. `Bearer TOKEN`
/// and `TOKEN` are equal. A header that is not text counts as a wrong token, not as a missing one.
pub fn token_of(request: &HttpRequest) -> &str {
    let header = request.headers().get("authorization");
    bare_token(header.map_or("", |header| header.to_str().unwrap_or("?")))
}

/// Returns a token without its scheme.
fn bare_token(text: &str) -> &str {
    let text = text.trim();
    match text.split_at_checked(7) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer ") => token.trim(),
        _ if text.eq_ignore_ascii_case("bearer") => "",
        _ => text,
    }
}

/// Makes request ids. They are unique within a process; a random start separates processes.
#[derive(Debug)]
pub struct RequestIds(AtomicU64);

impl RequestIds {
    /// Makes ids that start at a random number.
    pub fn starting_at(random: u64) -> Self {
        Self(AtomicU64::new(random))
    }

    /// Makes a new id.
    pub fn make(&self) -> String {
        // As long as it gets: it becomes a header without a copy.
        let mut id = String::with_capacity(16);
        // Writing to a string cannot fail.
        let _ = write!(id, "{:016x}", self.0.fetch_add(1, Ordering::Relaxed));
        id
    }

    /// Returns the id that a trusted proxy set, else a new one.
    pub fn of(&self, peer: Option<IpAddr>, headers: &HeaderMap, proxies: &Proxies) -> String {
        let given = headers.get("x-request-id").and_then(|id| id.to_str().ok());
        let usable =
            |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
        match given.filter(usable) {
            Some(id) if peer.is_some_and(|peer| proxies.trusts(peer)) => id.to_owned(),
            _ => self.make(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::{HeaderName, HeaderValue};

    fn caller(peer: &str, lines: &[&str]) -> String {
        let networks = ["10.0.0.0/8", "127.0.0.1/32", "fd00::/8"];
        let proxies = Proxies(networks.iter().map(|n| n.parse().unwrap()).collect());
        let mut headers = HeaderMap::new();
        for line in lines {
            let name = HeaderName::from_static("x-forwarded-for");
            headers.append(name, HeaderValue::from_str(line).unwrap());
        }
        proxies.caller(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn headers_of_an_untrusted_peer_do_not_change_the_caller() {
        assert_eq!(caller("8.8.8.8", &["1.1.1.1"]), "8.8.8.8");
        assert_eq!(caller("::ffff:8.8.8.8", &["1.1.1.1"]), "8.8.8.8");
    }

    #[test]
    fn the_caller_is_the_last_address_that_is_not_a_trusted_proxy() {
        assert_eq!(caller("127.0.0.1", &["1.1.1.1, 2.2.2.2"]), "2.2.2.2");
        assert_eq!(caller("127.0.0.1", &["1.1.1.1, 2.2.2.2, 10.1.1.1"]), "2.2.2.2");
        assert_eq!(caller("::ffff:127.0.0.1", &["1.1.1.1,2.2.2.2 , ::ffff:10.1.1.1"]), "2.2.2.2");
        assert_eq!(caller("127.0.0.1", &["10.1.1.1"]), "10.1.1.1");
        assert_eq!(caller("127.0.0.1", &[]), "127.0.0.1");
    }

    #[test]
    fn several_header_lines_form_one_list_in_order() {
        assert_eq!(caller("127.0.0.1", &["1.1.1.1", "2.2.2.2"]), "2.2.2.2");
        assert_eq!(caller("127.0.0.1", &["1.1.1.1, 2.2.2.2", "10.0.0.1"]), "2.2.2.2");
    }

    #[test]
    fn a_token_may_stand_alone_or_after_its_scheme() {
        for text in ["secret", "Bearer secret", "bearer  secret ", " secret "] {
            assert_eq!(bare_token(text), "secret", "{text:?}");
        }
        for text in ["", " ", "Bearer", "bearer "] {
            assert_eq!(bare_token(text), "", "{text:?}");
        }
    }

    #[test]
    fn an_entry_may_have_a_port_and_an_invalid_entry_ends_the_search() {
        assert_eq!(caller("127.0.0.1", &["2.2.2.2:443"]), "2.2.2.2");
        assert_eq!(caller("127.0.0.1", &["[2600::1]:443"]), "2600::1");
        assert_eq!(caller("127.0.0.1", &["[2600::1]"]), "2600::1");
        assert_eq!(caller("127.0.0.1", &["1.1.1.1, unknown"]), "127.0.0.1");
        assert_eq!(caller("127.0.0.1", &["1.1.1.1, junk, 10.0.0.1"]), "10.0.0.1");
        assert_eq!(caller("127.0.0.1", &["1.1.1.1,"]), "127.0.0.1");
    }
}
