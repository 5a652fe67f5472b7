//! Host names, public addresses, and the network under which a caller is counted.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A host name in canonical spelling: lower case, no trailing dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostName(String);

impl HostName {
    /// The longest name in text form, in bytes (RFC 1035 section 2.3.4).
    pub const MAX_BYTES: usize = 253;
    /// The longest label, in bytes (RFC 1035 section 2.3.4).
    const MAX_LABEL: usize = 63;

    /// Parses a name of two or more labels of letters, digits and inner hyphens. The last label must
    /// not be all digits, since such a name can be mistaken for an address.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.len() > Self::MAX_BYTES || !text.is_ascii() {
            return None;
        }
        let labels: Vec<&str> = text.split('.').collect();
        let last = labels.last()?;
        let well_formed = labels.len() >= 2
            && labels.iter().all(|label| Self::is_label(label))
            && !last.bytes().all(|b| b.is_ascii_digit());
        well_formed.then(|| Self(text.to_ascii_lowercase()))
    }

    fn is_label(label: &str) -> bool {
        (1..=Self::MAX_LABEL).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// IPv4 blocks that are not global: those that the IANA special-purpose address registry (RFC 6890
/// and its updates) does not list as globally reachable, multicast (RFC 5771) and 240.0.0.0/4.
const NOT_GLOBAL_V4: [(Ipv4Addr, u32); 14] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 2), 32),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// The two addresses in 192.0.0.0/24 that the registry lists as globally reachable (RFC 7723,
/// RFC 8155).
const GLOBAL_V4_EXCEPTIONS: [Ipv4Addr; 2] =
    [Ipv4Addr::new(192, 0, 0, 9), Ipv4Addr::new(192, 0, 0, 10)];

/// IPv6 blocks that the special-purpose registry lists as globally reachable although they lie
/// outside 2000::/3 or inside a block that is not: translation (RFC 6052), the anycast addresses of
/// RFC 7723, RFC 8155 and RFC 9665, AMT (RFC 7450), AS112 (RFC 7535), ORCHIDv2 (RFC 7343) and
/// drone remote ids (RFC 9374).
const GLOBAL_V6: [(Ipv6Addr, u32); 8] = [
    (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96),
    (Ipv6Addr::new(0x2001, 1, 0, 0, 0, 0, 0, 1), 128),
    (Ipv6Addr::new(0x2001, 1, 0, 0, 0, 0, 0, 2), 128),
    (Ipv6Addr::new(0x2001, 1, 0, 0, 0, 0, 0, 3), 128),
    (Ipv6Addr::new(0x2001, 3, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2001, 4, 0x112, 0, 0, 0, 0, 0), 48),
    (Ipv6Addr::new(0x2001, 0x20, 0, 0, 0, 0, 0, 0), 28),
    (Ipv6Addr::new(0x2001, 0x30, 0, 0, 0, 0, 0, 0), 28),
];

/// Blocks inside 2000::/3 that the registry does not list as globally reachable: protocol
/// assignments (RFC 2928), documentation (RFC 3849, RFC 9637) and 6to4 (RFC 3056, "N/A").
const NOT_GLOBAL_V6: [(Ipv6Addr, u32); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// The global unicast block allocated so far, RFC 4291 section 2.4 and the IANA address space registry.
const GLOBAL_UNICAST_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

fn contains_v4((network, length): &(Ipv4Addr, u32), address: Ipv4Addr) -> bool {
    (network.to_bits() ^ address.to_bits()).checked_shr(32 - length).unwrap_or(0) == 0
}

fn contains_v6((network, length): &(Ipv6Addr, u32), address: Ipv6Addr) -> bool {
    (network.to_bits() ^ address.to_bits()).checked_shr(128 - length).unwrap_or(0) == 0
}

/// Whether `address` is globally reachable according to the IANA registries.
pub fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            GLOBAL_V4_EXCEPTIONS.contains(&v4) || !NOT_GLOBAL_V4.iter().any(|b| contains_v4(b, v4))
        }
        IpAddr::V6(v6) => {
            GLOBAL_V6.iter().any(|b| contains_v6(b, v6))
                || (contains_v6(&GLOBAL_UNICAST_V6, v6)
                    && !NOT_GLOBAL_V6.iter().any(|b| contains_v6(b, v6)))
        }
    }
}

/// Parses a server's public address, IPv4 or IPv6. It must be globally reachable unless
/// `allow_private` is set.
pub fn parse_public_ip(text: &str, allow_private: bool) -> Option<IpAddr> {
    let address = text.parse().ok()?;
    (allow_private || is_global(address)).then_some(address)
}

/// A network: the addresses that share the first bits of its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    address: IpAddr,
    length: u8,
}

impl Network {
    /// Returns the network of this address and prefix length. `None` if the length is more than the
    /// address has bits, if bits after it are set, or if the address is an IPv4-mapped IPv6 address.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let rest = |bits: u32| bits.checked_sub(length.into());
        let is_network = match address {
            IpAddr::V4(v4) => rest(32).is_some_and(|rest| v4.to_bits().trailing_zeros() >= rest),
            IpAddr::V6(v6) => rest(128).is_some_and(|rest| v6.to_bits().trailing_zeros() >= rest),
        };
        (is_network && address == address.to_canonical()).then_some(Self { address, length })
    }

    /// Parses a network such as `10.0.0.0/8`, or one address.
    pub fn parse(text: &str) -> Option<Self> {
        let Some((address, length)) = text.split_once('/') else {
            let address = text.parse().ok()?;
            return Self::new(address, if matches!(address, IpAddr::V4(_)) { 32 } else { 128 });
        };
        let is_number = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| Self::new(address.parse().ok()?, length.parse().ok()?))?
    }

    /// Returns its first address.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Returns its prefix length in bits.
    pub const fn length(&self) -> u8 {
        self.length
    }

    /// Whether `address` belongs to it. An IPv4-mapped IPv6 address counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(v4)) => {
                contains_v4(&(network, self.length.into()), v4)
            }
            (IpAddr::V6(network), IpAddr::V6(v6)) => {
                contains_v6(&(network, self.length.into()), v6)
            }
            _ => false,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// Returns the network under which a caller is counted. For IPv4 it is the address itself, also if
/// written as an IPv4-mapped IPv6 address. For IPv6 it is the first 64 bits: a subscriber has at
/// least a /64 (RFC 6177).
pub fn caller_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn host_names_are_lower_cased_and_lose_one_trailing_dot() {
        assert_eq!(HostName::parse("NS1.Example.COM.").unwrap().as_str(), "ns1.example.com");
        let long = format!(
            "{}.{}.{}.{}.com",
            "a".repeat(63),
            "b".repeat(63),
            "c".repeat(63),
            "d".repeat(57)
        );
        assert_eq!(long.len(), 253);
        assert!(HostName::parse(&long).is_some());
        assert!(HostName::parse(&format!("{long}.")).is_some());
        assert!(HostName::parse(&format!("e{long}")).is_none());
    }

    #[test]
    fn malformed_host_names_are_refused() {
        for wrong in [
            "",
            ".",
            "localhost",
            "a..b",
            ".a.b",
            "a.b..",
            "-a.b",
            "a-.b",
            "a.b-",
            "a_b.c",
            "1.2.3.4",
            "a.1",
            "ä.com",
            "a b.com",
            "a.b\0",
        ] {
            assert_eq!(HostName::parse(wrong), None, "{wrong:?}");
        }
        assert!(HostName::parse(&format!("{}.com", "a".repeat(64))).is_none());
    }

    #[test]
    fn special_purpose_addresses_are_not_public() {
        for wrong in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.1.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:1.2.3.4",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:2::1",
            "2001:10::1",
            "2001:db8::1",
            "2002::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fe80::1",
            "ff02::1",
            "1.2.3",
            "1.2.3.4.5",
            "01.2.3.4",
            "1.2.3.4/24",
            "[2600::1]",
            "",
        ] {
            assert_eq!(parse_public_ip(wrong, false), None, "{wrong}");
        }
    }

    #[test]
    fn global_addresses_pass_in_canonical_spelling() {
        for (given, canonical) in [
            ("1.2.3.4", "1.2.3.4"),
            ("100.63.255.255", "100.63.255.255"),
            ("100.128.0.0", "100.128.0.0"),
            ("172.15.0.1", "172.15.0.1"),
            ("172.32.0.1", "172.32.0.1"),
            ("192.0.0.9", "192.0.0.9"),
            ("192.0.1.1", "192.0.1.1"),
            ("223.255.255.255", "223.255.255.255"),
            ("2600:0:0:0::1", "2600::1"),
            ("64:ff9b::1.2.3.4", "64:ff9b::102:304"),
            ("2001:1::1", "2001:1::1"),
            ("2001:20::1", "2001:20::1"),
            ("2001:4860:4860::8888", "2001:4860:4860::8888"),
        ] {
            let address = parse_public_ip(given, false).unwrap_or_else(|| panic!("{given}"));
            assert_eq!(address.to_string(), canonical);
        }
        assert!(parse_public_ip("10.1.2.3", true).is_some());
        assert!(parse_public_ip("nonsense", true).is_none());
    }

    #[test]
    fn a_network_contains_the_addresses_that_share_its_first_bits() {
        let contains = |network: &str, address: &str| {
            let network = Network::parse(network).unwrap();
            assert_eq!(Network::parse(&network.to_string()), Some(network));
            network.contains(address.parse().unwrap())
        };
        assert!(contains("10.0.0.0/8", "10.255.0.1"));
        assert!(contains("10.0.0.0/8", "::ffff:10.0.0.1"));
        assert!(!contains("10.0.0.0/8", "11.0.0.1"));
        assert!(contains("0.0.0.0/0", "1.2.3.4"));
        assert!(!contains("0.0.0.0/0", "2600::1"));
        assert!(contains("1.2.3.4", "1.2.3.4"));
        assert!(!contains("1.2.3.4/32", "1.2.3.5"));
        assert!(contains("2600::/32", "2600:0:1::"));
        assert!(contains("::/0", "2600:0:1::"));
        assert!(!contains("2600::/32", "2600:1::"));
        for wrong in [
            "",
            "/",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "::1/129",
            "::ffff:1.2.3.4",
            "a/8",
            "1.2.3.0/+24",
        ] {
            assert_eq!(Network::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_caller_is_counted_by_its_ipv4_address_or_its_ipv6_64() {
        let network = |text: &str| caller_network(text.parse().unwrap()).to_string();
        assert_eq!(network("1.2.3.4"), "1.2.3.4");
        assert_eq!(network("::ffff:1.2.3.4"), "1.2.3.4");
        assert_eq!(network("2600:1:2:3:4:5:6:7"), "2600:1:2:3::");
    }

    proptest! {
        #[test]
        fn parsing_any_text_as_a_host_name_never_panics_and_is_stable(text: String) {
            if let Some(name) = HostName::parse(&text) {
                prop_assert_eq!(HostName::parse(name.as_str()).unwrap(), name);
            }
        }
    }
}
