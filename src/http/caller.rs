//! Who calls: the address a request is counted by, and the id it is traced by.

use actix_web::HttpRequest;
use actix_web::http::header::HeaderMap;
use ipnet::IpNet;
use iptunnel_domain::address::caller_network;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

/// Whose word about the caller is believed.
#[derive(Clone, Debug, Default)]
pub struct Proxies(pub Vec<IpNet>);

impl Proxies {
    fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address.to_canonical()))
    }

    /// The caller's address: the TCP peer, or what trusted proxies say about it. Nothing that the
    /// caller writes moves it.
    pub fn caller(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut caller = peer.to_canonical();
        if !self.trusts(caller) {
            return caller;
        }
        // Several lines are one list, in their order; the nearest proxy wrote last.
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

/// An address, perhaps with a port, perhaps in brackets.
fn parse_entry(entry: &str) -> Option<IpAddr> {
    let bare = entry.strip_prefix('[').and_then(|e| e.strip_suffix(']')).unwrap_or(entry);
    bare.parse().ok().or_else(|| entry.parse().ok().map(|socket: SocketAddr| socket.ip()))
}

/// The network by which a request is counted.
pub fn network_of(request: &HttpRequest, proxies: &Proxies) -> IpAddr {
    // Without a peer there is no connection; such a request comes from a test of a handler.
    let peer = request.peer_addr().map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.ip());
    caller_network(proxies.caller(peer, request.headers()))
}

/// The `Authorization` of a request. A header that is no text is somebody's token, though never a
/// good one.
pub fn authorization(request: &HttpRequest) -> Option<&str> {
    request.headers().get("authorization").map(|header| header.to_str().unwrap_or("?"))
}

/// Makes request ids: unique within a process and, by a random start, among several.
#[derive(Debug)]
pub struct RequestIds(AtomicU64);

impl RequestIds {
    /// Ids that begin at a random place.
    pub fn starting_at(random: u64) -> Self {
        Self(AtomicU64::new(random))
    }

    /// The id that a trusted proxy gave the request, else a new one.
    pub fn of(&self, peer: Option<IpAddr>, headers: &HeaderMap, proxies: &Proxies) -> String {
        let given = headers.get("x-request-id").and_then(|id| id.to_str().ok());
        let usable =
            |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
        match given.filter(usable) {
            Some(id) if peer.is_some_and(|peer| proxies.trusts(peer)) => id.to_owned(),
            _ => format!("{:016x}", self.0.fetch_add(1, Ordering::Relaxed)),
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
    fn a_peer_that_is_no_trusted_proxy_is_the_caller_whatever_it_writes() {
        assert_eq!(caller("8.8.8.8", &["1.1.1.1"]), "8.8.8.8");
        assert_eq!(caller("::ffff:8.8.8.8", &["1.1.1.1"]), "8.8.8.8");
    }

    #[test]
    fn the_right_most_address_that_is_no_trusted_proxy_is_the_caller() {
        assert_eq!(caller("127.0.0.1", &["1.1.1.1, 2.2.2.2"]), "2.2.2.2");
        assert_eq!(caller("127.0.0.1", &["1.1.1.1, 2.2.2.2, 10.1.1.1"]), "2.2.2.2");
        assert_eq!(caller("::ffff:127.0.0.1", &["1.1.1.1,2.2.2.2 , ::ffff:10.1.1.1"]), "2.2.2.2");
        assert_eq!(caller("127.0.0.1", &["10.1.1.1"]), "10.1.1.1");
        assert_eq!(caller("127.0.0.1", &[]), "127.0.0.1");
    }

    #[test]
    fn several_lines_are_one_list_in_order() {
        assert_eq!(caller("127.0.0.1", &["1.1.1.1", "2.2.2.2"]), "2.2.2.2");
        assert_eq!(caller("127.0.0.1", &["1.1.1.1, 2.2.2.2", "10.0.0.1"]), "2.2.2.2");
    }

    #[test]
    fn an_entry_may_carry_a_port_and_one_that_is_no_address_ends_the_search() {
        assert_eq!(caller("127.0.0.1", &["2.2.2.2:443"]), "2.2.2.2");
        assert_eq!(caller("127.0.0.1", &["[2600::1]:443"]), "2600::1");
        assert_eq!(caller("127.0.0.1", &["[2600::1]"]), "2600::1");
        assert_eq!(caller("127.0.0.1", &["1.1.1.1, unknown"]), "127.0.0.1");
        assert_eq!(caller("127.0.0.1", &["1.1.1.1, junk, 10.0.0.1"]), "10.0.0.1");
        assert_eq!(caller("127.0.0.1", &["1.1.1.1,"]), "127.0.0.1");
    }
}
