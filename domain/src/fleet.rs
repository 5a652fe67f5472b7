//! The fleet of servers: two machines that check in as one server, and many servers that are silent.

use crate::Timestamp;
use crate::address::caller_network;
use crate::server::Bearer;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where a server's check-in came from: nine bytes, kept in memory for each server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// The caller's network, see [`caller_network`]: the first eight bytes of an IPv6 address, or four
    /// zeros and an IPv4 address. No IPv6 address that reaches a server begins with four zeros. Zeros if
    /// it is not known.
    network: [u8; 8],
    /// One byte of the keyed hash of the token that was shown; 0 if none was. Two tokens are told apart
    /// in 254 of 255 cases.
    token: u8,
}

/// How two check-ins of one server differ, so that two machines must have sent them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// They came from two networks.
    Network,
    /// They showed two tokens.
    Token,
}

impl Source {
    /// Returns the source of a check-in.
    pub fn of(from: IpAddr, bearer: &Bearer) -> Self {
        let mut network = [0; 8];
        match caller_network(from) {
            IpAddr::V4(v4) => network[4..].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => network = ((v6.to_bits() >> 64) as u64).to_be_bytes(),
        }
        let token = match bearer {
            // What counts as the master token or as an access token changes when that is rotated or
            // revoked, while the machine goes on to send the same text.
            Bearer::Nobody | Bearer::Master | Bearer::Access(_) => 0,
            Bearer::Token(hash) => (hash.as_u128() as u8).max(1),
        };
        Self { network, token }
    }

    /// Returns the network; `None` if it is not known.
    pub fn network(self) -> Option<IpAddr> {
        if self.network == [0; 8] {
            return None;
        }
        let bits = u64::from_be_bytes(self.network);
        Some(match u32::try_from(bits) {
            Ok(v4) => Ipv4Addr::from_bits(v4).into(),
            Err(_) => Ipv6Addr::from_bits(u128::from(bits) << 64).into(),
        })
    }

    /// Returns how the next check-in differs from this one, if two machines must have sent them. A machine
    /// with an IPv4 and an IPv6 address may use either, so a change between these two says nothing.
    pub fn difference(self, next: Self) -> Option<Difference> {
        let is_other_network = match (self.network(), next.network()) {
            (Some(one), Some(other)) => one != other && one.is_ipv4() == other.is_ipv4(),
            _ => false,
        };
        let is_other_token = self.token != 0 && next.token != 0 && self.token != next.token;
        match (is_other_network, is_other_token) {
            (true, _) => Some(Difference::Network),
            (false, true) => Some(Difference::Token),
            (false, false) => None,
        }
    }

    /// Returns what is kept after the next check-in. One without a token does not end what is known of the
    /// token.
    #[must_use]
    pub const fn then(self, next: Self) -> Self {
        Self { token: if next.token == 0 { self.token } else { next.token }, ..next }
    }
}

/// Whether a check-in `seconds` after one that differs from it shows a clone, where servers check in once
/// in `interval` seconds.
///
/// It does within half an interval. Two machines that each check in once in an interval are never further
/// apart than that in both orders, so both are seen by the end of their second interval. A machine that has
/// moved to another address checks in a whole interval later, more or less, and is no clone. One that
/// moves and is started again within half an interval looks like a clone, once.
pub const fn is_clone(seconds: u64, interval: u64) -> bool {
    seconds.saturating_mul(2) <= interval
}

/// When many servers count as silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// Seconds between two check-ins of a server.
    pub interval: u64,
    /// The intervals without a check-in after which a server is silent.
    pub after_intervals: u64,
    /// The share of silent servers at which the fleet is silent, in percent; 0 for never.
    pub share_percent: u64,
}

impl Silence {
    /// Returns the seconds without a check-in after which a server is silent.
    pub const fn seconds(&self) -> u64 {
        self.interval.saturating_mul(self.after_intervals)
    }

    /// Returns the instant before which the last check-in of a silent server lies.
    pub const fn since(&self, now: Timestamp) -> Timestamp {
        Timestamp(now.0.saturating_sub(self.seconds()))
    }

    /// Whether the fleet is silent, where `silent` of `all` servers are. It stays so until less than half
    /// of the share is silent, so that a few servers that come and go do not begin and end it again and
    /// again.
    pub const fn is_fleet_silent(&self, was: bool, silent: u64, all: u64) -> bool {
        let parts = if was { 200 } else { 100 };
        let share = all.saturating_mul(self.share_percent);
        share > 0 && silent.saturating_mul(parts) >= share
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lookup::KeyedHash;

    fn from(address: &str) -> Source {
        Source::of(address.parse().unwrap(), &Bearer::Nobody)
    }

    fn with(token: u8) -> Source {
        Source::of(IpAddr::from([8, 8, 8, 8]), &Bearer::Token(KeyedHash([token; 16])))
    }

    #[test]
    fn a_source_is_nine_bytes_and_knows_its_network() {
        assert_eq!(size_of::<Source>(), 9);
        let network = |text| from(text).network().map(|network| network.to_string());
        assert_eq!(network("8.8.4.4").as_deref(), Some("8.8.4.4"));
        assert_eq!(network("::ffff:8.8.4.4").as_deref(), Some("8.8.4.4"));
        assert_eq!(network("2001:db8:1:2:3:4:5:6").as_deref(), Some("2001:db8:1:2::"));
        assert_eq!(Source::default().network(), None);
    }

    #[test]
    fn another_network_of_the_same_family_or_another_token_is_another_machine() {
        let differ = |one: &str, other: &str| from(one).difference(from(other));
        assert_eq!(differ("8.8.8.8", "8.8.4.4"), Some(Difference::Network));
        assert_eq!(differ("2001:db8::1", "2001:db8:0:1::1"), Some(Difference::Network));
        assert_eq!(differ("2001:db8::1", "2001:db8::2"), None, "one network");
        assert_eq!(differ("8.8.8.8", "2001:db8::1"), None, "a machine may have both");
        assert_eq!(Source::default().difference(from("8.8.8.8")), None);
        assert_eq!(with(1).difference(with(2)), Some(Difference::Token));
        assert_eq!(with(1).difference(with(1)), None);
    }

    #[test]
    fn a_check_in_without_a_token_does_not_hide_the_change_of_a_token() {
        let silent = Source::of(IpAddr::from([8, 8, 8, 8]), &Bearer::Nobody);
        assert_eq!(with(1).difference(silent), None);
        assert_eq!(with(1).then(silent).difference(with(2)), Some(Difference::Token));
        let master = Source::of(IpAddr::from([8, 8, 8, 8]), &Bearer::Master);
        assert_eq!(with(1).difference(master), None, "its text may be the same");
    }

    #[test]
    fn two_machines_are_within_half_an_interval_in_one_of_the_two_orders() {
        for interval in 1..100 {
            for gap in 0..=interval {
                assert!(is_clone(gap, interval) || is_clone(interval - gap, interval));
            }
            assert!(!is_clone(interval, interval), "a machine that moved");
        }
    }

    #[test]
    fn a_fleet_is_silent_from_its_share_until_half_of_that() {
        let silence = Silence { interval: 60, after_intervals: 3, share_percent: 20 };
        assert_eq!(silence.since(Timestamp(1000)), Timestamp(820));
        let is_silent = |was, silent| silence.is_fleet_silent(was, silent, 100);
        assert!(!is_silent(false, 19) && is_silent(false, 20));
        assert!(is_silent(true, 10) && !is_silent(true, 9));
        assert!(!silence.is_fleet_silent(false, 0, 0), "there are no servers");
        let never = Silence { share_percent: 0, ..silence };
        assert!(!never.is_fleet_silent(true, 100, 100));
    }
}
