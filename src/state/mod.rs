//! What both listeners share.
//!
//! * [`settings`]: changes of the configuration while the server runs
//! * [`watchers`]: the pages that watch codes

pub mod settings;
pub mod watchers;

use crate::config::Config;
use crate::http::body::{self, Body};
use crate::http::caller::{Proxies, RequestIds};
use crate::http::metrics::HttpMetrics;
use crate::os::Clock;
use crate::secrets::{SecretError, SigningFile, master_token};
use crate::tokens::Tokens;
use actix_web::web::Payload;
use arc_swap::ArcSwap;
use iptunnel_actors::{Answer, Batches, Failure, Handles, Health, Pending, Tuning};
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_domain::lookup::{KeyedHash, LookupKey, Purpose};
use iptunnel_domain::server::Bearer;
use settings::Tuner;
use std::net::IpAddr;
use std::sync::Arc;
use watchers::Watchers;

/// What the handlers share. One value for all workers.
pub struct State {
    /// The way to the actors.
    pub handles: Arc<Handles>,
    /// The configuration in force; replaced as a whole on reload.
    pub config: ArcSwap<Config>,
    /// The way to other values.
    pub tuner: Tuner,
    /// What the actors look at.
    pub tuning: Arc<ArcSwap<Tuning>>,
    /// The keys that sign and verify; replaced as a whole on reload.
    pub tokens: ArcSwap<Tokens>,
    /// The keyed hash of the master token.
    pub master: ArcSwap<KeyedHash>,
    /// The key for lookups.
    pub lookup: LookupKey,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Whether the server is fit.
    pub health: Arc<Health>,
    /// Whose word about callers is believed.
    pub proxies: Proxies,
    /// Where request ids come from.
    pub request_ids: RequestIds,
    /// The pages that watch codes.
    pub watchers: Arc<Watchers>,
    /// What is counted at the edge.
    pub metrics: HttpMetrics,
}

/// The actors' share of a configuration.
pub fn tuning_of(config: &Config) -> Tuning {
    let actors = &config.actors;
    Tuning {
        lifetimes: config.lifetimes,
        limits: config.limits,
        retention_seconds: config.storage.retention_days.saturating_mul(86_400),
        checkin_flush_seconds: config.servers.checkin_flush_seconds,
        batches: Batches {
            code_registry: actors.code_registry.batch,
            activation: actors.activation.batch,
            rate_limiter: actors.rate_limiter.batch,
            server_registry: actors.server_registry.batch,
            persistence: actors.persistence.batch,
        },
    }
}

/// The keyed hash under which the master token is compared.
pub fn master_hash(config: &Config, lookup: &LookupKey) -> Result<KeyedHash, SecretError> {
    let master = master_token(&config.auth.master_token_file)?;
    Ok(lookup.hash(Purpose::Token, master.token.as_bytes()))
}

impl State {
    /// Puts a checked configuration into force, with the keys and the master token as their files
    /// hold them now. What has changed of these, as the audit log tells it.
    ///
    /// # Errors
    /// Where one of the files cannot be read: then everything stays as it was.
    pub fn reload(&self, config: Config) -> Result<Vec<Event>, SecretError> {
        let file = SigningFile::read(&config.auth.signing_key_file)?;
        let master = master_hash(&config, &self.lookup)?;
        let tokens = Arc::new(Tokens::new(&file));
        let before = self.tokens.swap(Arc::clone(&tokens));
        let mut events = Vec::new();
        let changed = |subject: &str, detail: String| {
            let now = self.clock.now();
            let event = Event::new(Action::KeysChanged, Actor::Administrator, now, None);
            Event { subject: subject.to_owned(), detail, ..event }
        };
        if !tokens.has_keys_of(&before) {
            let names = format!("{} -> {}", before.key_names(), tokens.key_names());
            events.push(changed("signing keys", names));
        }
        if *self.master.swap(Arc::new(master)) != master {
            events.push(changed("master token", String::new()));
        }
        self.retune(config);
        Ok(events)
    }

    /// Puts a checked configuration into force, keys and master token as they are.
    pub fn retune(&self, config: Config) {
        self.tuning.store(Arc::new(tuning_of(&config)));
        self.config.store(Arc::new(config));
    }

    /// Reads a request's body as long as a request may take.
    ///
    /// # Errors
    /// Where it has not arrived by then.
    pub async fn read(&self, payload: Payload) -> Result<Body, Failure> {
        body::read(payload, self.config.load().server.request_timeout).await
    }

    /// Waits for an answer as long as a request may take.
    pub async fn wait<T>(&self, pending: Result<Pending<T>, Failure>) -> Answer<T> {
        match pending {
            Ok(pending) => {
                let deadline = self.config.load().server.request_timeout;
                pending.within(deadline).await
            }
            Err(failure) => failure.into(),
        }
    }

    /// The keyed hash under which a network is counted.
    pub fn network_hash(&self, network: IpAddr) -> KeyedHash {
        match network {
            IpAddr::V4(v4) => self.lookup.hash(Purpose::Network, &v4.octets()),
            IpAddr::V6(v6) => self.lookup.hash(Purpose::Network, &v6.octets()),
        }
    }

    /// Whom an `Authorization` header speaks for. `Bearer` and the bare token are the same.
    pub fn bearer(&self, authorization: Option<&str>) -> Bearer {
        let text = authorization.unwrap_or_default().trim();
        let token = match text.split_at_checked(7) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer ") => token.trim(),
            _ if text.eq_ignore_ascii_case("bearer") => "",
            _ => text,
        };
        if token.is_empty() {
            return Bearer::Nobody;
        }
        let hash = self.lookup.hash(Purpose::Token, token.as_bytes());
        if hash.ct_eq(&self.master.load()) { Bearer::Master } else { Bearer::Token(hash) }
    }
}
