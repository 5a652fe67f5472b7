//! The live values: the values in effect, which can be replaced while the server runs.

use crate::config::{Auth, Config};
use crate::secrets::{SecretError, SigningFile, lookup_key, master_token, warn_of_loose};
use crate::store::agreement;
use crate::tokens::Tokens;
use arc_swap::ArcSwap;
use iptunnel_actors::{ActorSettings, Batches};
use iptunnel_domain::Timestamp;
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_domain::fleet::Silence;
use iptunnel_domain::lookup::{KeyedHash, LookupKey, Purpose};
use std::net::IpAddr;
use std::path::Path;
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
        forget_after_seconds: config.servers.forget_after_days.saturating_mul(86_400),
        silence: Silence {
            interval: config.servers.next_checkin_seconds,
            after_intervals: config.servers.silent_after_intervals,
            share_percent: config.servers.silent_share_percent,
        },
        batches: Batches {
            code_registry: actors.code_registry.batch,
            activation: actors.activation.batch,
            rate_limiter: actors.rate_limiter.batch,
            server_registry: actors.server_registry.batch,
            persistence: actors.persistence.batch,
        },
    }
}

/// Reads the signing keys, and the master token as its keyed hash. Makes neither.
///
/// # Errors
/// One of the files is missing, cannot be read, or is invalid.
pub fn read_secrets(auth: &Auth, lookup: &LookupKey) -> Result<(Tokens, KeyedHash), SecretError> {
    let tokens = Tokens::new(&SigningFile::read(&auth.signing_key_file)?);
    let master = master_token(&auth.master_token_file)?;
    Ok((tokens, lookup.hash(Purpose::Token, master.as_bytes())))
}

impl Live {
    /// Returns the values of a server that starts with `config`.
    ///
    /// # Errors
    /// A secret cannot be read.
    pub fn begin(config: Config, lookup: LookupKey) -> Result<Self, SecretError> {
        let (tokens, master) = read_secrets(&config.auth, &lookup)?;
        warn_of_loose(&config.auth);
        Ok(Self {
            tuning: Arc::new(ArcSwap::from_pointee(actor_settings(&config))),
            config: ArcSwap::from_pointee(config),
            tokens: ArcSwap::from_pointee(tokens),
            master: ArcSwap::from_pointee(master),
            lookup,
        })
    }

    /// Returns the secrets that servers on one store must have in common, as hashes.
    pub fn in_common(&self) -> [(&'static str, KeyedHash); 2] {
        agreement::in_common(&self.lookup, &self.tokens.load(), &self.master.load())
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
        let (tokens, master) = read_secrets(&config.auth, &self.lookup)?;
        self.look_at_lookup_key(&config.auth.lookup_key_file);
        warn_of_loose(&config.auth);
        let tokens = Arc::new(tokens);
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

    /// Logs that the file does not hold the lookup key any more. The key in use never changes, and the
    /// next start would refuse.
    fn look_at_lookup_key(&self, file: &Path) {
        let hash = agreement::hash_of_lookup_key;
        let problem = match lookup_key(file) {
            Ok(found) if hash(&found).ct_eq(&hash(&self.lookup)) => return,
            Ok(_) => format!("{}: it is another key than the one in use", file.display()),
            Err(error) => error.to_string(),
        };
        tracing::error!(
            problem,
            "this server will not start again with this lookup key; restore it"
        );
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
}
