//! The raw configuration: the sections, keys and units of `config.toml`, and the defaults.
//!
//! Values are merged over the defaults before they are read, so any section or key may be absent.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;

use ipnet::{IpNet, Ipv4Net};
use iptunnel_domain::code::ProductLetters;
use iptunnel_domain::limit::{Limits, Policy};
use iptunnel_domain::time::Lifetimes;
use serde::{Deserialize, Serialize};

use super::model::{
    ActorSize, Actors, Admin, Auth, Backend, Config, Log, LogFormat, LogLevel, Pages, Servers,
    Storage,
};
use super::url::PublicUrl;

/// The whole file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) server: RawServer,
    pub(super) admin: Admin,
    pub(super) storage: Storage,
    pub(super) auth: Auth,
    pub(super) products: BTreeMap<String, Letters>,
    pub(super) pages: Pages,
    pub(super) session: RawSession,
    pub(super) codes: RawCodes,
    /// The limits by name of their policy, and `max_tracked`.
    pub(super) limits: BTreeMap<String, u32>,
    pub(super) servers: Servers,
    pub(super) actors: Actors,
    pub(super) log: Log,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawServer {
    pub(super) bind: SocketAddr,
    pub(super) public_url: PublicUrl,
    pub(super) trusted_proxies: Vec<Network>,
    pub(super) allow_private_ips: bool,
    pub(super) workers: usize,
    pub(super) max_connections: NonZeroUsize,
    pub(super) request_timeout_ms: u64,
    pub(super) shutdown_grace_seconds: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSession {
    pub(super) ttl_seconds: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCodes {
    pub(super) ttl_seconds: u64,
    pub(super) precheck_token_ttl_seconds: u64,
    pub(super) install_token_ttl_seconds: u64,
    pub(super) restored_ttl_seconds: u64,
    pub(super) max_lifetime_seconds: u64,
    pub(super) max_activations_per_code: u32,
}

/// A network, or a single address.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Network(pub(super) IpNet);

impl Network {
    /// Reads an address or a network. An IPv4-mapped one becomes its IPv4 network, because
    /// callers are compared by their IPv4 address.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let host = |_| text.parse::<IpAddr>().map(IpNet::from);
        let network: IpNet = text.parse().or_else(host).ok()?;
        Some(Self(as_ipv4(network).unwrap_or(network).trunc()))
    }
}

/// The IPv4 network that an IPv4-mapped one (`::ffff:0:0/96`, RFC 4291 section 2.5.5.2) stands for.
fn as_ipv4(network: IpNet) -> Option<IpNet> {
    let IpNet::V6(network) = network else { return None };
    let address = network.addr().to_ipv4_mapped()?;
    let length = network.prefix_len().checked_sub(96)?;
    Ipv4Net::new(address, length).ok().map(IpNet::V4)
}

impl TryFrom<String> for Network {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("not an address or network")
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.0.to_string()
    }
}

/// A product's letters.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Letters(pub(super) ProductLetters);

impl TryFrom<String> for Letters {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        ProductLetters::parse(&text).map(Self).ok_or("not two letters")
    }
}

impl From<Letters> for String {
    fn from(letters: Letters) -> Self {
        letters.0.to_string()
    }
}

impl From<&Lifetimes> for RawCodes {
    fn from(life: &Lifetimes) -> Self {
        Self {
            ttl_seconds: life.code,
            precheck_token_ttl_seconds: life.precheck_token,
            install_token_ttl_seconds: life.install_token,
            restored_ttl_seconds: life.restored,
            max_lifetime_seconds: life.max_lifetime,
            max_activations_per_code: life.max_activations,
        }
    }
}

/// The only key in `[limits]` that is not a policy.
pub(super) const MAX_TRACKED: &str = "max_tracked";

pub(super) fn raw_limits(limits: &Limits) -> BTreeMap<String, u32> {
    let named = Policy::ALL.map(|policy| (policy.name().to_owned(), limits.allowed(policy)));
    named.into_iter().chain([(MAX_TRACKED.to_owned(), limits.max_tracked)]).collect()
}

impl Default for Raw {
    fn default() -> Self {
        let product = |letters| ("slowdns".to_owned(), Letters(letters));
        Self {
            server: RawServer::default(),
            admin: Admin { bind: local(9090) },
            storage: Storage {
                backend: Backend::Redb,
                path: "data/iptunnel.redb".into(),
                url: String::new(),
                allow_async_failover: false,
                retention_days: 90,
            },
            auth: Auth {
                signing_key_file: "data/signing.keys".into(),
                lookup_key_file: "data/lookup.key".into(),
                master_token_file: "data/master.token".into(),
            },
            products: ProductLetters::parse("SD").map(product).into_iter().collect(),
            pages: Pages {
                install_command:
                    "curl -fsSL {public_url}/{product}/install.sh | sudo bash -s -- {code}".into(),
                unattended_command:
                    "curl -fsSL {public_url}/{product}/install.sh | sudo {variable}={code} bash"
                        .into(),
            },
            session: RawSession { ttl_seconds: 1800 },
            codes: RawCodes::from(&Lifetimes::default()),
            limits: raw_limits(&Limits::default()),
            servers: default_servers(),
            actors: default_actors(),
            log: Log { format: LogFormat::Auto, level: LogLevel::Info },
        }
    }
}

impl Default for RawServer {
    fn default() -> Self {
        Self {
            bind: local(8080),
            public_url: PublicUrl::of(local(8080)),
            trusted_proxies: Vec::new(),
            allow_private_ips: false,
            workers: 0,
            max_connections: NonZeroUsize::MIN.saturating_add(24_999),
            // Installers give up after 15 s. Two thirds of that leave time for the network.
            request_timeout_ms: 10_000,
            shutdown_grace_seconds: 30,
        }
    }
}

const fn local(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

const fn default_servers() -> Servers {
    Servers {
        stale_after_hours: 48,
        checkin_flush_seconds: 5,
        revoked_checkin_status: 403,
        next_checkin_seconds: 86_400,
    }
}

const fn default_actors() -> Actors {
    const fn size(batch: usize) -> ActorSize {
        ActorSize { queue: 4096, batch }
    }
    Actors {
        code_registry: size(512),
        activation: size(512),
        rate_limiter: size(1024),
        server_registry: size(65_536),
        persistence: size(1024),
    }
}

impl Default for Config {
    fn default() -> Self {
        Raw::default().into()
    }
}
