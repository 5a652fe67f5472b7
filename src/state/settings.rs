//! Changes of the configuration while the server runs: by signal from the file, by an operator from
//! the console.
//!
//! What an operator changes is laid over file, environment and command line, and kept in the store:
//! it survives a restart, and reading the file again. One change at a time: each is checked as a
//! whole, written with what the audit log says of it, and then put into force.

use super::live::Live;
use crate::config::{Config, ConfigError, Layers, Loaded, Setting, settings};
use crate::hex::hex;
use crate::os::Clock;
use arc_swap::ArcSwap;
use iptunnel_actors::{Failure, Handles};
use iptunnel_domain::Refusal;
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_storage::Setting as StoredSetting;
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Called when other values have come into force.
pub type OnChange = Box<dyn Fn(&Config) + Send + Sync>;

/// The source of a value that an operator has changed.
const OVERRIDE: &str = "override";

/// What is in force.
pub struct InForce {
    /// Every key.
    pub settings: Vec<Setting>,
    /// Names this state of them, for `ETag` and `If-Match` (RFC 9110 section 8.8.3).
    pub tag: String,
}

impl InForce {
    /// `kept` are the changes that operators have made, also those that do not count.
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

    /// Whether the value of `key` is an operator's change.
    fn overrides(&self, key: &str) -> bool {
        self.find(key).is_some_and(|setting| setting.source == OVERRIDE)
    }
}

struct Inner {
    layers: Layers,
    /// Every change that is kept, also one that does not count because of what the file says now.
    overrides: Vec<(String, String)>,
}

/// Changes what is in force.
pub struct Settings {
    live: Arc<Live>,
    handles: Arc<Handles>,
    clock: Arc<dyn Clock>,
    /// Held for the whole of a change.
    inner: tokio::sync::Mutex<Inner>,
    in_force: ArcSwap<InForce>,
    on_change: OnChange,
}

/// One change that an operator wants: a key with its value as text, or `None` to undo an earlier
/// change.
pub type Wanted = (String, Option<String>);

/// Why settings were not changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingsError {
    /// They are not what they were when the caller read them.
    HaveChanged,
    /// What is wanted is not allowed.
    Refused(Refusal),
    /// The store did not take the change, or nobody knows whether it did.
    Failed(Failure),
    /// The change broke off, which should not happen.
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

/// How long following what other servers have changed may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long until it is tried again.
const AGAIN: Duration = Duration::from_secs(2);

impl Settings {
    /// What is in force at the start: `loaded` is `layers` with the `kept` changes.
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

    /// A change as the log tells it.
    fn event(&self, actor: Actor, from: Option<IpAddr>, key: &str, detail: String) -> Event {
        Event {
            subject: key.to_owned(),
            detail,
            ..Event::new(Action::SettingChanged, actor, self.clock.now(), from)
        }
    }

    /// What is in force.
    pub fn in_force(&self) -> Arc<InForce> {
        self.in_force.load_full()
    }

    /// Says what has come into force after `before`: to the log, to whoever follows, and to the next
    /// change.
    fn applied(&self, before: &Config, after: &Config, loaded: &Loaded, in_force: InForce) {
        (self.on_change)(after);
        for change in before.changes(&loaded.config) {
            let (key, old, new) = (change.key, change.old, change.new);
            if change.at_run_time {
                tracing::info!(key, old, new, "a setting has changed");
            } else {
                tracing::warn!(key, old, new, "this setting changes with a restart only");
            }
        }
        self.in_force.store(Arc::new(in_force));
    }

    /// Puts other files and variables into force, operators' changes laid over them. On any error
    /// everything stays as it was.
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
            tracing::warn!(problem, "an operator's earlier change does not count any more");
        }
        let changes =
            before.changes(&loaded.config).into_iter().filter(|change| change.at_run_time);
        events.extend(changes.map(|change| {
            let detail = format!("{} -> {}", change.old, change.new);
            self.event(Actor::Administrator, None, &change.key, detail)
        }));
        if events.is_empty() {
            return;
        }
        let entered = match self.handles.keep_settings(Vec::new(), events) {
            Ok(pending) => pending.within(self.live.patience()).await.outcome.is_ok(),
            Err(_) => false,
        };
        if !entered {
            tracing::error!("what has changed could not be entered into the audit log");
        }
    }

    /// Follows what operators change on other servers, whenever `changed` says that they did, for as
    /// long as the server runs.
    pub async fn keep_following(self: Arc<Self>, changed: Arc<Notify>) {
        loop {
            changed.notified().await;
            if !tokio::time::timeout(PATIENCE, self.follow()).await.unwrap_or(false) {
                tokio::time::sleep(AGAIN).await;
                changed.notify_one();
            }
        }
    }

    /// Takes over what operators have changed on other servers. `false` where that has to be tried
    /// again.
    async fn follow(&self) -> bool {
        let mut inner = self.inner.lock().await;
        let store = Arc::clone(self.handles.store());
        let kept = match actix_web::web::block(move || store.settings()).await {
            Ok(Ok(kept)) => kept,
            Ok(Err(error)) => {
                tracing::error!(%error, "settings could not be read");
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

    /// Changes settings as an operator wants it, all of them or none. A change that has begun goes
    /// on to its end, though nobody may wait for it any more.
    ///
    /// # Errors
    /// Where `tag` is not what is in force any more, what is wanted is not allowed, or the store does
    /// not take it. Then everything is as it was, except where the outcome of the store is unknown.
    pub async fn change(
        self: &Arc<Self>,
        wanted: Vec<Wanted>,
        tag: Option<String>,
        from: IpAddr,
    ) -> Result<Arc<InForce>, SettingsError> {
        let settings = Arc::clone(self);
        let change = actix_web::rt::spawn(async move {
            settings.keep_and_apply(&wanted, tag.as_deref(), from).await
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
        from: IpAddr,
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
        // What is wanted and what counts already must be allowed together. What does not count, as
        // the file has overtaken it, counts again where this change makes room for it, just as it
        // would at the next start: what is in force is always what a start makes of what is kept.
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
        let moved = after.settings.iter().filter(|now| {
            named(&now.key) || before.find(&now.key).is_some_and(|then| then.value != now.value)
        });
        let events = moved.map(|now| {
            let told = |setting: &Setting| format!("{} ({})", setting.value, setting.source);
            let then = before.find(&now.key).map_or(String::new(), told);
            self.event(Actor::Operator, Some(from), &now.key, format!("{then} -> {}", told(now)))
        });
        let kept = wanted.iter().map(|(key, value)| StoredSetting {
            key: key.clone(),
            value: value.as_ref().map(|value| value.trim().to_owned()),
        });
        let written = self.handles.keep_settings(kept.collect(), events.collect());
        written?.within(Duration::MAX).await.outcome??;
        inner.overrides = overrides;
        // It is kept from here on, so nothing may fail: files of keys are SIGHUP's to read again.
        self.live.retune(config.clone());
        self.applied(&config_before, &config, &loaded, after);
        Ok(self.in_force())
    }
}
