//! The address under which browsers reach the server.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// An origin as browsers write it (RFC 6454 section 6.2): `http` or `https`, a host in lower case,
/// and a port if it is not the scheme's default. A cookie's `Secure` and the check of
/// `Origin` depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicUrl(String);

impl PublicUrl {
    /// Reads an address without path, query or user name. Ignores one slash at the end.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let own_port = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let (host, port) = split_port(rest.strip_suffix('/').unwrap_or(rest))?;
        let host = canonical_host(host)?;
        let origin = match port {
            Some(port) if port != own_port => format!("{scheme}://{host}:{port}"),
            _ => format!("{scheme}://{host}"),
        };
        Some(Self(origin))
    }

    /// Returns the address, without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether browsers connect with TLS.
    pub fn is_https(&self) -> bool {
        self.0.starts_with("https:")
    }

    /// Returns the host, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        let (_, authority) = self.0.split_once("://").unwrap_or_default();
        let host = split_port(authority).map_or(authority, |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Returns whether only browsers on this machine reach it: a loopback address, or a name that means one
    /// (RFC 6761, section 6.3).
    pub fn is_loopback(&self) -> bool {
        let host = self.host();
        let address = host.parse::<std::net::IpAddr>();
        let is_name = host == "localhost" || host.ends_with(".localhost");
        is_name || address.is_ok_and(|address| address.is_loopback())
    }

    /// Returns the value of `Origin` that a browser on this address sends.
    pub fn origin(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PublicUrl {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("not the address of a site")
    }
}

impl From<PublicUrl> for String {
    fn from(url: PublicUrl) -> Self {
        url.0
    }
}

/// Splits `authority` into host and port. A colon inside brackets belongs to an IPv6 address.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
            let port = port.parse().ok().filter(|port| digits && *port != 0)?;
            Some((host, Some(port)))
        }
        _ => Some((authority, None)),
    }
}

/// Returns the host as browsers write it: an address in canonical form, a name in lower case.
fn canonical_host(host: &str) -> Option<String> {
    if let Some(inner) = host.strip_prefix('[') {
        let address: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
        return Some(format!("[{address}]"));
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return Some(address.to_string());
    }
    let well_formed = host.len() <= 253 && host.split('.').all(is_label);
    // Browsers read a name that ends in a number as an IPv4 address, and this one is not valid.
    let ends_in_digits = host.rsplit('.').next()?.bytes().all(|b| b.is_ascii_digit());
    (well_formed && !ends_in_digits).then(|| host.to_ascii_lowercase())
}

/// Returns whether `label` is a label of a name, RFC 1035 section 2.3.4. Names of one label are allowed: `localhost`.
fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_kept_as_browsers_write_its_origin() {
        for (given, kept) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("https://Get.Example.COM/", "https://get.example.com"),
            ("HTTPS://example.com:443", "https://example.com"),
            ("http://example.com:80/", "http://example.com"),
            ("http://example.com:443", "http://example.com:443"),
            ("http://localhost", "http://localhost"),
            ("http://[0:0::1]:8080", "http://[::1]:8080"),
            ("https://[::1]", "https://[::1]"),
        ] {
            let url = PublicUrl::parse(given).unwrap();
            assert_eq!((url.as_str(), url.origin()), (kept, kept), "{given}");
            assert_eq!(url.is_https(), kept.starts_with("https"), "{given}");
        }
    }

    #[test]
    fn the_host_and_whether_it_is_this_machine_are_known() {
        for (given, host, is_loopback) in [
            ("http://127.0.0.1:8080", "127.0.0.1", true),
            ("http://127.9.9.9", "127.9.9.9", true),
            ("https://[::1]:443", "::1", true),
            ("http://localhost", "localhost", true),
            ("http://a.localhost:80", "a.localhost", true),
            ("https://localhost.example.com", "localhost.example.com", false),
            ("https://10.0.0.1:8443", "10.0.0.1", false),
            ("https://[2600::1]", "2600::1", false),
        ] {
            let url = PublicUrl::parse(given).unwrap();
            assert_eq!((url.host(), url.is_loopback()), (host, is_loopback), "{given}");
        }
    }

    #[test]
    fn an_address_that_is_not_an_origin_is_refused() {
        for text in [
            "",
            "example.com",
            "ftp://example.com",
            "http://",
            "http:///",
            "https://example.com/app",
            "https://example.com//",
            "https://example.com?x",
            "https://example.com#x",
            "https://user@example.com",
            "https://user:pw@example.com",
            "https://example.com:",
            "https://example.com:0",
            "https://example.com:65536",
            "https://example.com:+80",
            "https://exa mple.com",
            "https://example.com.",
            "https://-example.com",
            "https://bücher.example",
            "https://1.2.3",
            "https://example.com'",
            "https://example.com';reboot;'",
            "https://$(reboot).com",
            "https://example.com\nreboot",
            "https://1.2.3.400",
            "https://::1",
            "https://[::1",
            "https://[::1]x",
            "https://[1.2.3.4]",
        ] {
            assert_eq!(PublicUrl::parse(text), None, "{text}");
        }
    }
}
