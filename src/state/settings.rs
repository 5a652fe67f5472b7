//! Changes of the configuration while the server runs: a signal reads the file again, and an operator
//! changes settings in the console.
//!
//! An operator's change overrides file, environment and command line. It is kept in the store and
//! survives a restart and a reload of the file. Only one change runs at a time. Each is checked as a
//! whole, then written together with its entries in the audit log, and then applied.

use super::access::caller::Caller;
use super::live::Live;
use crate::config::{Config, ConfigError, Layers, Loaded, Setting, settings};
use crate::os::Clock;
use arc_swap::ArcSwap;
use iptunnel_actors::{Failure, Handles};
use iptunnel_domain::Refusal;
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_domain::hex::hex;
use iptunnel_storage::Setting as StoredSetting;
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// The function to call when other values take effect.
pub type OnChange = Box<dyn Fn(&Config) + Send + Sync>;

/// The source of a value that an operator has changed.
const OVERRIDE: &str = "override";

/// The settings in effect.
pub struct InForce {
    /// Every key.
    pub settings: Vec<Setting>,
    /// Identifies this state of the settings, for `ETag` and `If-Match` (RFC 9110 section 8.8.3).
    pub tag: String,
}

impl InForce {
    /// `kept` holds all operators' changes, including those that have no effect.
    fn of(config: &Config, loaded: &Loaded, kept: &[(String, String)]) -> Self {
        let mut settings = settings(config, &loaded.sources);
        for setting in settings.iter_mut().filter(|setting| setting.source != OVERRIDE) {
            let change = kept.iter().find(|(key, _)| *key == setting.key);
            setting.overtaken = change.map(|(_, value)| value.clone());
        }
        let mut hash = Sha256::new();
        for setting in &settings {
            let Setting { key, value, source, overtaken, .. } = setting;
            hash.update(format!("{key}={value} {source} {overtaken:?}\n"));
        }
        let hash = hash.finalize();
        Self { settings, tag: hex(hash.first_chunk::<8>().map_or(&[][..], |first| first)) }
    }

    fn find(&self, key: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.key == key)
    }

    /// Returns whether the value of `key` is an operator's change.
    fn overrides(&self, key: &str) -> bool {
        self.find(key).is_some_and(|setting| setting.source == OVERRIDE)
    }
}

struct Inner {
    layers: Layers,
    /// Every change that is kept, including those that have no effect because of the current file.
    overrides: Vec<(String, String)>,
}

/// The service that changes the settings in effect.
pub struct Settings {
    live: Arc<Live>,
    handles: Arc<Handles>,
    clock: Arc<dyn Clock>,
    /// Locked for the whole of a change.
    inner: tokio::sync::Mutex<Inner>,
    in_force: ArcSwap<InForce>,
    on_change: OnChange,
}

/// One change that an operator requests: a key with its value as text, or `None` to undo an earlier
/// change.
pub type Wanted = (String, Option<String>);

/// The reasons why settings were not changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingsError {
    /// The settings have changed since the caller read them.
    HaveChanged,
    /// The requested change is not allowed.
    Refused(Refusal),
    /// The store refused the change, or its outcome is unknown.
    Failed(Failure),
    /// The task of the change ended early, which should not happen.
    BrokenOff,
}

impl From<Refusal> for SettingsError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Failure> for SettingsError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

fn refused(words: String) -> SettingsError {
    Refusal::InvalidField(words).into()
}

/// Returns how a setting has changed, as the audit log says it; `None` if it has not changed.
fn difference(then: &Setting, now: &Setting) -> Option<String> {
    if (&then.value, then.source) != (&now.value, now.source) {
        return Some(format!("{} ({}) -> {} ({})", then.value, then.source, now.value, now.source));
    }
    let inactive = |setting: &Setting| setting.overtaken.clone().unwrap_or("nothing".to_owned());
    (then.overtaken != now.overtaken)
        .then(|| format!("inactive: {} -> {}", inactive(then), inactive(now)))
}

/// The longest time to apply the changes of other servers.
const PATIENCE: Duration = Duration::from_secs(10);
/// The time until the next try.
const AGAIN: Duration = Duration::from_secs(2);

impl Settings {
    /// Creates the service at the start. `loaded` is `layers` with the `kept` changes.
    pub fn new(
        (layers, kept): (Layers, Vec<(String, String)>),
        loaded: &Loaded,
        on_change: OnChange,
        live: Arc<Live>,
        handles: Arc<Handles>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let in_force = InForce::of(&loaded.config, loaded, &kept);
        Self {
            live,
            handles,
            clock,
            inner: tokio::sync::Mutex::new(Inner { layers, overrides: kept }),
            in_force: ArcSwap::from_pointee(in_force),
            on_change,
        }
    }

    /// Returns the entry of a change for the audit log.
    fn event(&self, actor: Actor, key: &str, detail: String) -> Event {
        Event {
            subject: key.to_owned(),
            detail,
            ..Event::new(Action::SettingChanged, actor, self.clock.now(), None)
        }
    }

    /// Returns the settings in effect.
    pub fn in_force(&self) -> Arc<InForce> {
        self.in_force.load_full()
    }

    /// Publishes the settings that took effect: logs the differences from `before`, calls `on_change`,
    /// and stores the new state for the next change.
    fn applied(&self, before: &Config, after: &Config, loaded: &Loaded, in_force: InForce) {
        (self.on_change)(after);
        for change in before.changes(&loaded.config) {
            let (key, old, new) = (change.key, change.old, change.new);
            if change.at_run_time {
                tracing::info!(key, old, new, "a setting has changed");
            } else {
                tracing::warn!(
                    key,
                    old,
                    new,
                    "a changed setting takes effect only after a restart"
                );
            }
        }
        self.in_force.store(Arc::new(in_force));
    }

    /// Reads files and variables again, and applies them together with the operators' changes. On any
    /// error nothing changes.
    pub async fn reload(&self, read: impl FnOnce() -> Result<Layers, ConfigError>) {
        let stays = |error: &str| tracing::error!(error, "the configuration stays as it was");
        let mut inner = self.inner.lock().await;
        let layers = match read() {
            Ok(layers) => layers,
            Err(error) => return stays(&error.to_string()),
        };
        let loaded = match layers.with_kept(Vec::new(), inner.overrides.clone()) {
            Ok(loaded) => loaded,
            Err(error) => return stays(&error.to_string()),
        };
        let before = self.live.config.load_full();
        let after = before.with_run_time_values(&loaded.config);
        let mut events = match self.live.reload(after.clone(), self.clock.now()) {
            Ok(events) => events,
            Err(error) => return stays(&error.to_string()),
        };
        let in_force = InForce::of(&after, &loaded, &inner.overrides);
        self.applied(&before, &after, &loaded, in_force);
        inner.layers = layers;
        tracing::info!("configuration and keys have been read again");
        for problem in &loaded.left_out {
            tracing::warn!(
                problem,
                "an operator's earlier change is no longer valid and has no effect"
            );
        }
        let changes =
            before.changes(&loaded.config).into_iter().filter(|change| change.at_run_time);
        events.extend(changes.map(|change| {
            let detail = format!("{} -> {}", change.old, change.new);
            self.event(Actor::Administrator, &change.key, detail)
        }));
        if events.is_empty() {
            return;
        }
        let entered = match self.handles.keep_settings(Vec::new(), events) {
            Ok(pending) => pending.within(self.live.patience()).await.outcome.is_ok(),
            Err(_) => false,
        };
        if !entered {
            tracing::error!("the changes were applied, but could not be written to the audit log");
        }
    }

    /// Applies the changes that operators make on other servers, at each notification of `changed`, for
    /// as long as the server runs.
    pub async fn keep_following(self: Arc<Self>, changed: Arc<Notify>) {
        loop {
            changed.notified().await;
            if !tokio::time::timeout(PATIENCE, self.follow()).await.unwrap_or(false) {
                tokio::time::sleep(AGAIN).await;
                changed.notify_one();
            }
        }
    }

    /// Applies the changes that operators made on other servers. Returns `false` if it must be tried
    /// again.
    async fn follow(&self) -> bool {
        let mut inner = self.inner.lock().await;
        let store = Arc::clone(self.handles.store());
        let kept = match actix_web::web::block(move || store.settings()).await {
            Ok(Ok(kept)) => kept,
            Ok(Err(error)) => {
                tracing::error!(%error, "the settings in the store cannot be read; the server tries again");
                return false;
            }
            Err(_) => return true,
        };
        if kept == inner.overrides {
            return true;
        }
        let loaded = match inner.layers.with_kept(Vec::new(), kept.clone()) {
            Ok(loaded) => loaded,
            Err(error) => {
                tracing::error!(%error, "the configuration stays as it was");
                return true;
            }
        };
        let before = self.live.config.load_full();
        let after = before.with_run_time_values(&loaded.config);
        self.live.retune(after.clone());
        let in_force = InForce::of(&after, &loaded, &kept);
        self.applied(&before, &after, &loaded, in_force);
        inner.overrides = kept;
        true
    }

    /// Applies the changes of an operator at the address `from`, all of them or none. A change that has begun runs to its end, even
    /// if the caller no longer waits.
    ///
    /// # Errors
    /// `tag` is no longer that of the settings in effect, a change is not allowed, or the store refuses
    /// it. Then nothing has changed, except if the outcome in the store is unknown.
    pub async fn change(
        self: &Arc<Self>,
        wanted: Vec<Wanted>,
        tag: Option<String>,
        (caller, from): (&Caller, IpAddr),
    ) -> Result<Arc<InForce>, SettingsError> {
        let (settings, by) = (Arc::clone(self), caller.shown().to_owned());
        let change = actix_web::rt::spawn(async move {
            settings.keep_and_apply(&wanted, tag.as_deref(), (&by, from)).await
        });
        match tokio::time::timeout(self.live.patience(), change).await {
            Ok(ended) => ended.unwrap_or(Err(SettingsError::BrokenOff)),
            Err(_) => Err(Failure::OutcomeUnknown.into()),
        }
    }

    async fn keep_and_apply(
        &self,
        wanted: &[Wanted],
        tag: Option<&str>,
        (by, from): (&str, IpAddr),
    ) -> Result<Arc<InForce>, SettingsError> {
        let mut inner = self.inner.lock().await;
        let before = self.in_force();
        if tag.is_some_and(|tag| tag != before.tag) {
            return Err(SettingsError::HaveChanged);
        }
        let mut overrides = inner.overrides.clone();
        for (key, value) in wanted {
            overrides.retain(|(other, _)| other != key);
            match value {
                Some(value) => overrides.push((key.clone(), value.trim().to_owned())),
                None => match before.find(key) {
                    Some(setting) if setting.at_run_time => {}
                    Some(_) => return Err(refused(format!("{key} changes with a restart only."))),
                    None => return Err(refused(format!("{key} is no key of the configuration."))),
                },
            }
        }
        // The requested changes and those in effect must be allowed together. A kept change that has
        // no effect because of the file takes effect again if this change makes it valid, just as it
        // would at the next start: the settings in effect are always those of a fresh start.
        let named = |key: &str| wanted.iter().any(|(other, _)| other == key);
        let (firm, overtaken) =
            overrides.iter().cloned().partition(|(key, _)| named(key) || before.overrides(key));
        let loaded = inner
            .layers
            .with_kept(firm, overtaken)
            .map_err(|error| refused(error.problems().join(" ")))?;
        let config_before = self.live.config.load_full();
        let config = config_before.with_run_time_values(&loaded.config);
        let after = InForce::of(&config, &loaded, &overrides);
        let events: Vec<Event> = after
            .settings
            .iter()
            .filter_map(|now| {
                let detail = difference(before.find(&now.key)?, now)?;
                let event = self.event(Actor::Operator, &now.key, detail);
                Some(Event { by: by.to_owned(), from: Some(from), ..event })
            })
            .collect();
        let is_kept = |(key, value): &Wanted| {
            let kept = inner.overrides.iter().find(|(other, _)| other == key);
            kept.map(|(_, value)| value.as_str()) == value.as_deref().map(str::trim)
        };
        if events.is_empty() && wanted.iter().all(is_kept) {
            return Ok(before);
        }
        let kept = wanted.iter().map(|(key, value)| StoredSetting {
            key: key.clone(),
            value: value.as_ref().map(|value| value.trim().to_owned()),
        });
        let written = self.handles.keep_settings(kept.collect(), events);
        written?.within(Duration::MAX).await.outcome??;
        inner.overrides = overrides;
        // The change is stored from here on, so nothing may fail. Only SIGHUP reads the key files again.
        self.live.retune(config.clone());
        self.applied(&config_before, &config, &loaded, after);
        Ok(self.in_force())
    }
}
