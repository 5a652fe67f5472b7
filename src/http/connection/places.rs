//! The places for connections: how many one network may hold, so that there is room for others.

use crate::counts::Counts;
use crate::http::caller::Proxies;
use iptunnel_domain::address::caller_network;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The shortest time between two log lines about refused connections.
const SELDOM: Duration = Duration::from_secs(60);

/// The places of one listener.
#[derive(Debug)]
pub struct Places {
    taken: Counts<IpAddr>,
    of_one: usize,
    /// All open connections, those of proxies included.
    open: AtomicUsize,
    in_all: usize,
    proxies: Proxies,
    last_logged: Mutex<Option<Instant>>,
}

impl Places {
    /// Makes the places of a listener with room for `in_all` connections. One network gets at most
    /// `of_one` of them, and never more than half. Trusted proxies hold connections for many callers
    /// and are not counted.
    pub fn new(of_one: usize, in_all: usize, proxies: Proxies) -> Self {
        let of_one = of_one.min((in_all / 2).max(1));
        Self {
            taken: Counts::default(),
            of_one,
            open: AtomicUsize::new(0),
            in_all,
            proxies,
            last_logged: Mutex::default(),
        }
    }

    /// Takes a place for a connection of `peer`. Returns `None` if there are no more, or if its network
    /// may have no more.
    pub fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        // The counts are raised before the comparisons, so that two connections cannot both take the
        // last place.
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        let network = (!self.proxies.trusts(peer)).then(|| caller_network(peer));
        let of_network = network.map_or(0, |network| self.taken.up(network));
        let place = Place { places: Arc::clone(self), network };
        if let Some(network) = network.filter(|_| of_network > self.of_one) {
            self.log_refusal(network);
            return None;
        }
        (open <= self.in_all).then_some(place)
    }

    fn log_refusal(&self, network: IpAddr) {
        let mut last = self.last_logged.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= SELDOM) {
            *last = Some(Instant::now());
            tracing::warn!(
                %network,
                most = self.of_one,
                "a connection was closed, or a request over HTTP/2 refused, because its network holds as \
                 many as one may; if it is a \
                 proxy, name it in server.trusted_proxies, else see server.max_connections_per_ip"
            );
        }
    }
}

/// The place of an open connection. Dropping it frees the place.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    /// Not that of a trusted proxy.
    network: Option<IpAddr>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(network) = &self.network {
            self.places.taken.down(network);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(of_one: usize, in_all: usize) -> Arc<Places> {
        let proxies = Proxies(vec!["10.0.0.0/8".parse().unwrap()]);
        Arc::new(Places::new(of_one, in_all, proxies))
    }

    fn take(places: &Arc<Places>, peer: &str) -> Option<Place> {
        places.take(peer.parse().unwrap())
    }

    #[test]
    fn a_network_has_so_many_places_and_gets_them_back() {
        let places = places(2, 100);
        let held = [take(&places, "1.1.1.1").unwrap(), take(&places, "::ffff:1.1.1.1").unwrap()];
        assert!(take(&places, "1.1.1.1").is_none());
        assert!(take(&places, "1.1.1.2").is_some());
        drop(held);
        assert!(places.taken.is_empty());
        assert!(take(&places, "1.1.1.1").is_some());
    }

    #[test]
    fn addresses_of_one_ipv6_network_of_64_bits_share_their_places() {
        let places = places(1, 100);
        let _held = take(&places, "2600:1:2:3::1").unwrap();
        assert!(take(&places, "2600:1:2:3:ffff::9").is_none());
        assert!(take(&places, "2600:1:2:4::1").is_some());
    }

    #[test]
    fn one_network_never_has_more_than_half_of_all_places() {
        let places = places(1000, 4);
        let _held = [take(&places, "1.1.1.1").unwrap(), take(&places, "1.1.1.1").unwrap()];
        assert!(take(&places, "1.1.1.1").is_none());
    }

    #[test]
    fn there_are_no_more_places_than_in_all() {
        let places = places(1, 2);
        let held = [take(&places, "1.1.1.1").unwrap(), take(&places, "10.0.0.1").unwrap()];
        assert!(take(&places, "1.1.1.2").is_none());
        drop(held);
        assert!(take(&places, "1.1.1.2").is_some());
    }

    #[test]
    fn a_trusted_proxy_is_not_counted() {
        let places = places(1, 100);
        let held: Vec<_> = (0..50).map(|_| take(&places, "10.0.0.1").unwrap()).collect();
        assert_eq!(held.len(), 50);
        assert!(places.taken.is_empty());
    }
}
