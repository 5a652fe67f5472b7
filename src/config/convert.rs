//! Conversions between the raw configuration of the file and the checked configuration.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use iptunnel_domain::limit::Limits;
use iptunnel_domain::time::Lifetimes;

use super::model::{Config, Product, Server};
use super::raw::{Letters, MAX_TRACKED, Network, Raw, RawCodes, RawServer, RawSession, raw_limits};

/// The most threads: the upper limit of `workers`, and of the default from the number of processors.
pub(super) const MAX_WORKERS: usize = 1024;

impl From<RawCodes> for Lifetimes {
    fn from(raw: RawCodes) -> Self {
        Self {
            code: raw.ttl_seconds,
            precheck_token: raw.precheck_token_ttl_seconds,
            install_token: raw.install_token_ttl_seconds,
            restored: raw.restored_ttl_seconds,
            max_lifetime: raw.max_lifetime_seconds,
            max_activations: raw.max_activations_per_code,
        }
    }
}

fn limits(raw: &BTreeMap<String, u32>) -> Limits {
    // The defaults provide every limit. A missing one would be 0, which refuses every request.
    let value = |name| raw.get(name).copied().unwrap_or(0);
    Limits::new(|policy| value(policy.name()), value(MAX_TRACKED))
}

impl From<RawServer> for Server {
    fn from(raw: RawServer) -> Self {
        let processors = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let workers = if raw.workers == 0 { processors() } else { raw.workers };
        Self {
            bind: raw.bind,
            public_url: raw.public_url,
            tls_cert: raw.tls_cert,
            tls_key: raw.tls_key,
            hsts: Duration::from_secs(raw.hsts_seconds),
            trusted_proxies: raw.trusted_proxies.into_iter().map(|network| network.0).collect(),
            allow_private_ips: raw.allow_private_ips,
            workers: NonZeroUsize::new(workers.min(MAX_WORKERS)).unwrap_or(NonZeroUsize::MIN),
            max_connections: raw.max_connections,
            max_connections_per_ip: raw.max_connections_per_ip,
            idle_timeout: Duration::from_secs(raw.idle_timeout_seconds),
            request_timeout: Duration::from_millis(raw.request_timeout_ms),
            shutdown_grace: Duration::from_secs(raw.shutdown_grace_seconds),
        }
    }
}

impl From<&Server> for RawServer {
    fn from(server: &Server) -> Self {
        Self {
            bind: server.bind,
            public_url: server.public_url.clone(),
            tls_cert: server.tls_cert.clone(),
            tls_key: server.tls_key.clone(),
            hsts_seconds: server.hsts.as_secs(),
            trusted_proxies: server.trusted_proxies.iter().copied().map(Network).collect(),
            allow_private_ips: server.allow_private_ips,
            workers: server.workers.get(),
            max_connections: server.max_connections,
            max_connections_per_ip: server.max_connections_per_ip,
            idle_timeout_seconds: server.idle_timeout.as_secs(),
            request_timeout_ms: u64::try_from(server.request_timeout.as_millis())
                .unwrap_or(u64::MAX),
            shutdown_grace_seconds: server.shutdown_grace.as_secs(),
        }
    }
}

impl From<Raw> for Config {
    fn from(raw: Raw) -> Self {
        let product = |(name, letters): (String, Letters)| Product { name, letters: letters.0 };
        Self {
            server: raw.server.into(),
            admin: raw.admin,
            storage: raw.storage,
            auth: raw.auth,
            backup: raw.backup,
            products: raw.products.into_iter().map(product).collect(),
            pages: raw.pages,
            installer: raw.installer,
            webhooks: raw.webhooks,
            session_ttl_seconds: raw.session.ttl_seconds,
            lifetimes: raw.codes.into(),
            limits: limits(&raw.limits),
            servers: raw.servers,
            actors: raw.actors,
            log: raw.log,
        }
    }
}

impl From<&Config> for Raw {
    fn from(config: &Config) -> Self {
        let product = |product: &Product| (product.name.clone(), Letters(product.letters));
        Self {
            server: (&config.server).into(),
            admin: config.admin.clone(),
            storage: config.storage.clone(),
            auth: config.auth.clone(),
            backup: config.backup.clone(),
            products: config.products.iter().map(product).collect(),
            pages: config.pages.clone(),
            installer: config.installer.clone(),
            webhooks: config.webhooks.clone(),
            session: RawSession { ttl_seconds: config.session_ttl_seconds },
            codes: (&config.lifetimes).into(),
            limits: raw_limits(&config.limits),
            servers: config.servers.clone(),
            actors: config.actors.clone(),
            log: config.log.clone(),
        }
    }
}
