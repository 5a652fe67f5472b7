//! The live values: the values in effect, which can be replaced while the server runs.

use crate::config::Config;
use crate::secrets::{SecretError, SigningFile, lookup_key, master_token};
use crate::tokens::Tokens;
use arc_swap::ArcSwap;
use iptunnel_actors::{ActorSettings, Batches};
use iptunnel_domain::Timestamp;
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_domain::lookup::{KeyedHash, LookupKey, Purpose};
use iptunnel_domain::server::Bearer;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// The live values. Each is replaced as a whole.
pub struct Live {
    /// The configuration.
    pub config: ArcSwap<Config>,
    /// The part of the configuration that the actors use.
    pub tuning: Arc<ArcSwap<ActorSettings>>,
    /// The keys that sign and verify tokens.
    pub tokens: ArcSwap<Tokens>,
    /// The keyed hash of the master token.
    pub master: ArcSwap<KeyedHash>,
    /// The lookup key. It never changes.
    pub lookup: LookupKey,
}

/// Returns the part of a configuration that the actors use.
fn actor_settings(config: &Config) -> ActorSettings {
    let actors = &config.actors;
    ActorSettings {
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

/// Returns the keyed hash of the master token, for comparisons.
fn master_hash(config: &Config, lookup: &LookupKey) -> Result<KeyedHash, SecretError> {
    let master = master_token(&config.auth.master_token_file)?;
    Ok(lookup.hash(Purpose::Token, master.token.as_bytes()))
}

impl Live {
    /// Returns the values of a server that starts with `config`. Creates missing secrets.
    ///
    /// # Errors
    /// A secret cannot be read or created.
    pub fn begin(config: Config) -> Result<Self, SecretError> {
        let lookup = lookup_key(&config.auth.lookup_key_file)?;
        let tokens = Tokens::new(&SigningFile::read_or_make(&config.auth.signing_key_file)?);
        let master = master_hash(&config, &lookup)?;
        Ok(Self {
            tuning: Arc::new(ArcSwap::from_pointee(actor_settings(&config))),
            config: ArcSwap::from_pointee(config),
            tokens: ArcSwap::from_pointee(tokens),
            master: ArcSwap::from_pointee(master),
            lookup,
        })
    }

    /// Returns the longest time that a request may take.
    pub fn patience(&self) -> Duration {
        self.config.load().server.request_timeout
    }

    /// Applies a checked configuration, and reads the keys and the master token from their files again.
    /// Returns the changes of keys and token as entries for the audit log.
    ///
    /// # Errors
    /// One of the files cannot be read. Then nothing changes.
    pub fn reload(&self, config: Config, now: Timestamp) -> Result<Vec<Event>, SecretError> {
        let file = SigningFile::read(&config.auth.signing_key_file)?;
        let master = master_hash(&config, &self.lookup)?;
        let tokens = Arc::new(Tokens::new(&file));
        let before = self.tokens.swap(Arc::clone(&tokens));
        let mut events = Vec::new();
        let changed = |subject: &str, detail: String| {
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

    /// Applies a checked configuration. Keys and master token stay as they are.
    pub fn retune(&self, config: Config) {
        self.tuning.store(Arc::new(actor_settings(&config)));
        self.config.store(Arc::new(config));
    }

    /// Returns the keyed hash of a network, which is the key of its rate limits.
    pub fn network_hash(&self, network: IpAddr) -> KeyedHash {
        match network {
            IpAddr::V4(v4) => self.lookup.hash(Purpose::Network, &v4.octets()),
            IpAddr::V6(v6) => self.lookup.hash(Purpose::Network, &v6.octets()),
        }
    }

    /// Returns the caller that an `Authorization` header identifies. `Bearer TOKEN` and `TOKEN` are equal.
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
