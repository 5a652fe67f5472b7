//! The backups that a running server makes: one at a time, when an operator asks or by the schedule.

use super::State;
use crate::age::Recipient;
use crate::backup::error::BackupError;
use crate::backup::{kept, make, pace};
use crate::config::Config;
use crate::http::respond::rfc3339;
use crate::os::Clock;
use crate::signed_head::Verifier;
use actix_web::rt::spawn;
use actix_web::web::{Data, block};
use iptunnel_domain::Timestamp;
use iptunnel_domain::audit::{Action, Actor, Event};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use serde::Serialize;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The interval at which the schedule is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Seconds after a failure until the schedule tries again.
const AGAIN: u64 = 600;

/// A backup that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Made {
    /// Its name: that of its folder.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// When it was made, by RFC 3339.
    pub made_at: String,
    /// Its bytes.
    pub size: u64,
    /// The last record of the journal that it has.
    pub position: u64,
    /// Whether it has the secrets, encrypted.
    pub has_keys: bool,
    /// The same time in seconds since the Unix epoch.
    #[serde(skip)]
    pub at: Timestamp,
}

impl Made {
    fn of(kept: kept::Kept, folder: PathBuf) -> Self {
        let kept::Kept { name, manifest } = kept;
        Self {
            name,
            folder,
            size: manifest.size(),
            position: manifest.position,
            has_keys: manifest.has(crate::backup::name_of(crate::secrets::Secret::LookupKey)),
            at: Timestamp(manifest.made),
            made_at: manifest.made_at,
        }
    }
}

/// A backup that could not be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// Its name.
    pub name: String,
    /// When it failed, by RFC 3339.
    pub at: String,
    /// Why.
    pub why: String,
    #[serde(skip)]
    time: Timestamp,
}

/// What is known of the backups.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Progress {
    /// The name of the one that is being made.
    pub running: Option<String>,
    /// The last one that was made.
    pub last: Option<Made>,
    /// The last one that failed since.
    pub failure: Option<Failed>,
    /// When the last one in the folder of the settings was made.
    #[serde(skip)]
    in_folder: Option<Timestamp>,
}

/// The backup that somebody asks for.
pub struct Wanted {
    /// Its folder. `None`: a new one in the folder of the settings.
    pub folder: Option<PathBuf>,
    /// To whom the secrets are encrypted. `None`: as the settings say.
    pub keys: Option<Recipient>,
    /// Who asks.
    pub actor: Actor,
    /// The name of whoever asks.
    pub by: String,
    /// Where it asks from.
    pub from: Option<IpAddr>,
}

impl Wanted {
    /// The backup of the schedule.
    fn by_schedule() -> Self {
        let (actor, by) = (Actor::Administrator, "schedule".to_owned());
        Self { folder: None, keys: None, actor, by, from: None }
    }
}

/// A backup that is being made. The message is that of the error.
pub type Pending = oneshot::Receiver<Result<Made, String>>;

/// The backups of this server.
pub struct Backups {
    progress: Mutex<Progress>,
    stop: Arc<AtomicBool>,
    failures: Counter,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Backups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.progress().fmt(f)
    }
}

/// The metrics, as of the moment at which they are asked for.
impl Collector for Backups {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(last) = self.progress().last else { return Ok(()) };
        let age = ConstGauge::new(self.clock.now().since(last.at).cast_signed());
        let help = "Time since the last backup was made";
        let metric = age.metric_type();
        let unit = Some(&Unit::Seconds);
        age.encode(encoder.encode_descriptor("backup_age", help, unit, metric)?)?;
        let size = ConstGauge::new(last.size.cast_signed());
        let help = "Size of the last backup";
        let unit = Some(&Unit::Bytes);
        size.encode(encoder.encode_descriptor("backup_size", help, unit, metric)?)
    }
}

impl Backups {
    /// Creates the value and registers its metrics.
    pub fn new(clock: Arc<dyn Clock>, registry: &mut Registry) -> Arc<Self> {
        let failures = Counter::default();
        registry.register("backup_failures", "Backups that failed", failures.clone());
        let (progress, stop) = (Mutex::default(), Arc::default());
        let backups = Arc::new(Self { progress, stop, failures, clock });
        registry.register_collector(Box::new(Arc::clone(&backups)));
        backups
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what is known now.
    pub fn progress(&self) -> Progress {
        self.lock().clone()
    }

    /// Ends the backup that is being made. The server stops.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether the schedule wants a backup now. A time in the future was dated by a wrong clock.
    fn is_due(&self, config: &Config, now: Timestamp) -> bool {
        let every = config.backup.every_hours.saturating_mul(3600);
        let progress = self.lock();
        let over = |since: Option<Timestamp>, seconds: u64| {
            since.is_none_or(|since| since > now || since.plus(seconds) <= now)
        };
        let failed = progress.failure.as_ref().map(|failure| failure.time);
        every > 0
            && progress.running.is_none()
            && over(progress.in_folder, every)
            && over(failed, AGAIN.min(every))
    }

    /// Takes the place of the one backup that is made at a time.
    fn take_place(&self, name: &str) -> bool {
        let mut progress = self.lock();
        let is_free = progress.running.is_none();
        if is_free {
            progress.running = Some(name.to_owned());
        }
        is_free
    }

    fn note(&self, name: String, outcome: Result<Made, String>, in_folder: bool) {
        let now = self.clock.now();
        let mut progress = self.lock();
        progress.running = None;
        match outcome {
            Ok(made) => {
                if in_folder {
                    progress.in_folder = Some(made.at);
                }
                progress.last = Some(made);
                progress.failure = None;
            }
            Err(why) => {
                self.failures.inc();
                progress.failure = Some(Failed { name, at: rfc3339(now), why, time: now });
            }
        }
    }
}

/// Why no backup was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotBegun {
    /// Another one is being made.
    Busy,
    /// The store is a database that servers share.
    Shared,
}

/// Begins a backup, which goes on if nobody waits for it. Returns its name.
///
/// # Errors
/// Another one is being made, or the store is a database.
pub fn begin(state: &Data<State>, wanted: Wanted) -> Result<(String, Pending), NotBegun> {
    if state.handles.store().shared().is_some() {
        return Err(NotBegun::Shared);
    }
    let now = state.clock.now();
    let name = match &wanted.folder {
        Some(folder) => folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        None => kept::free_name(&state.live.config.load().backup.folder, now),
    };
    if !state.backups.take_place(&name) {
        return Err(NotBegun::Busy);
    }
    let (done, pending) = oneshot::channel();
    let (state, of_task) = (state.clone(), name.clone());
    spawn(async move {
        let outcome = run(&state, of_task, wanted, now).await;
        // Whoever asked may have gone.
        let _ = done.send(outcome);
    });
    Ok((name, pending))
}

/// Makes a backup, notes its outcome, and enters it into the audit log.
async fn run(
    state: &Data<State>,
    name: String,
    wanted: Wanted,
    now: Timestamp,
) -> Result<Made, String> {
    let Wanted { folder, keys, actor, by, from } = wanted;
    let (in_folder, begun) = (folder.is_none(), Instant::now());
    let (of_thread, of_name) = (state.clone(), name.clone());
    let make = move || make_one(&of_thread, of_name, folder, keys, now);
    let made = match block(make).await {
        Ok(made) => made.map_err(|error| error.to_string()),
        Err(_) => Err("its thread has ended".to_owned()),
    };
    let seconds = begun.elapsed().as_secs_f64();
    let (action, detail) = match &made {
        Ok(made) => {
            let (size, position) = (made.size, made.position);
            tracing::info!(name, size, position, seconds, "a backup was made");
            (Action::BackupMade, format!("{size} bytes, position {position}"))
        }
        Err(error) => {
            tracing::error!(name, error, seconds, "a backup could not be made");
            (Action::BackupFailed, Event::kept(error).to_owned())
        }
    };
    state.backups.note(name.clone(), made.clone(), in_folder);
    if !state.backups.stop.load(Ordering::Relaxed) {
        let event = Event { subject: name, detail, by, ..Event::new(action, actor, now, from) };
        state.enter(vec![event]).await;
    }
    made
}

fn make_one(
    state: &State,
    name: String,
    folder: Option<PathBuf>,
    keys: Option<Recipient>,
    now: Timestamp,
) -> Result<Made, BackupError> {
    let (config, lookup) = (state.live.config.load_full(), &state.live.lookup);
    let by_settings = || Recipient::address(&config.backup.keys_recipient);
    let keys = keys.or_else(by_settings);
    let in_folder = folder.is_none();
    let folder = folder.unwrap_or_else(|| config.backup.folder.join(&name));
    let order = make::Order {
        config: &config,
        lookup,
        folder: &folder,
        keys: keys.as_ref(),
        now,
        pace: pace::beside_requests(Arc::clone(&state.backups.stop)),
    };
    let manifest = make::make(&order, state.handles.store().as_ref())?;
    if in_folder {
        prune(state, &config, now);
    }
    Ok(Made::of(kept::Kept { name, manifest }, folder))
}

/// Removes old backups. One that stays is in the way of nothing.
fn prune(state: &State, config: &Config, now: Timestamp) {
    let Some(verifier) = Verifier::with_lookup_key(state.live.lookup.clone()) else { return };
    let keep = config.backup.keep;
    match kept::prune(&config.backup.folder, &verifier, keep, now) {
        Ok(gone) => {
            for folder in gone {
                tracing::info!(folder = %folder.display(), "an old backup was removed");
            }
        }
        Err(error) => tracing::error!(%error, "old backups could not be removed"),
    }
}

/// Returns the backups in the folder of the settings, the oldest first.
///
/// # Errors
/// The folder cannot be read.
pub fn list(state: &State, folder: &Path) -> Result<Vec<Made>, BackupError> {
    let Some(verifier) = Verifier::with_lookup_key(state.live.lookup.clone()) else {
        return Ok(Vec::new());
    };
    let kept = kept::list(folder, &verifier)?;
    Ok(kept
        .into_iter()
        .map(|one| (folder.join(&one.name), one))
        .map(|(at, one)| Made::of(one, at))
        .collect())
}

/// Makes the backups of the schedule for as long as the server runs. The first look at the folder tells when
/// the last one was made, so that a restart is no reason for another.
pub async fn keep(state: Data<State>) {
    if state.handles.store().shared().is_some() {
        return;
    }
    let of_thread = state.clone();
    let folder = state.live.config.load().backup.folder.clone();
    match block(move || list(&of_thread, &folder)).await {
        Ok(Ok(all)) => {
            if let Some(last) = all.into_iter().next_back() {
                let mut progress = state.backups.lock();
                progress.in_folder = Some(last.at);
                progress.last.get_or_insert(last);
            }
        }
        Ok(Err(error)) => tracing::error!(%error, "the folder of the backups cannot be read"),
        Err(_) => {}
    }
    loop {
        tokio::time::sleep(LOOK).await;
        if state.backups.is_due(&state.live.config.load(), state.clock.now())
            && let Ok((_, pending)) = begin(&state, Wanted::by_schedule())
        {
            // Its outcome is noted.
            let _ = pending.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::SystemClock;

    fn config(every_hours: u64) -> Config {
        let mut config = Config::load(&Default::default()).unwrap();
        config.backup.every_hours = every_hours;
        config
    }

    #[test]
    fn a_backup_is_due_after_its_hours_and_ten_minutes_after_a_failure() {
        let backups = Backups::new(Arc::new(SystemClock::default()), &mut Registry::default());
        let due = |hours, seconds| backups.is_due(&config(hours), Timestamp(seconds));
        assert!(!due(0, 1_000_000) && due(2, 1_000_000), "none was made yet");
        backups.lock().in_folder = Some(Timestamp(1_000_000));
        assert!(!due(2, 1_007_199) && due(2, 1_007_200));
        assert!(due(2, 999_999), "it was dated by a clock that was wrong");
        let failed = |time| Failed {
            name: String::new(),
            at: String::new(),
            why: String::new(),
            time: Timestamp(time),
        };
        backups.lock().failure = Some(failed(1_007_200));
        assert!(!due(2, 1_007_799) && due(2, 1_007_800));
        assert!(backups.take_place("one") && !backups.take_place("two"));
        assert!(!due(2, 1_007_800));
    }
}
