//! The raw configuration: the sections, keys and units of `config.toml`, whose values are the defaults.
//!
//! Values are merged over the defaults before they are read, so any section or key may be absent.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::LazyLock;

use ipnet::{IpNet, Ipv4Net};
use iptunnel_domain::code::ProductLetters;
use iptunnel_domain::limit::{Limits, Policy};
use iptunnel_domain::time::Lifetimes;
use serde::{Deserialize, Serialize};
use toml::Table;

use super::model::{
    Actors, Admin, Auth, Backup, Installer, Log, Pages, Servers, Storage, Webhooks,
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
    pub(super) backup: Backup,
    pub(super) products: BTreeMap<String, Letters>,
    pub(super) pages: Pages,
    pub(super) installer: Installer,
    pub(super) webhooks: Webhooks,
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
    pub(super) tls_cert: PathBuf,
    pub(super) tls_key: PathBuf,
    /// 180 days: the least that the usual tests of sites call strong (Qualys, SSL Server Rating Guide).
    pub(super) hsts_seconds: u64,
    pub(super) trusted_proxies: Vec<Network>,
    pub(super) allow_private_ips: bool,
    pub(super) workers: usize,
    pub(super) max_connections: NonZeroUsize,
    pub(super) max_connections_per_ip: NonZeroUsize,
    pub(super) idle_timeout_seconds: u64,
    /// Installers give up after 15 s. The default, two thirds of that, leaves time for the network.
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

/// The shipped file: every key with its default. Its comments say what each key is for.
pub(super) const SHIPPED: &str = include_str!("../../config.toml");

/// Returns the defaults: the values of the shipped file.
pub(super) fn defaults() -> Table {
    static DEFAULTS: LazyLock<Table> =
        LazyLock::new(|| toml::from_str(SHIPPED).unwrap_or_default());
    // A test reads the file as a configuration. A key that is missing here would be named by the error
    // of whoever reads the table.
    DEFAULTS.clone()
}
