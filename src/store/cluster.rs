//! The monitoring of a store that several servers share: the server follows the store's clock, and checks
//! whether the store accepts commits and keeps acknowledged changes.

use super::troubles::{Trouble, Troubles};
use crate::os::{Clock, machine_milliseconds};
use iptunnel_actors::Health;
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_storage::{Finding, Grade, Outage, ReadError, Shared, Store};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// The metrics of a shared store.
pub struct Figures {
    /// Seconds by which the store's clock is ahead.
    offset: Gauge<f64, AtomicU64>,
    /// Hosts that claim to be the primary.
    primaries: Gauge,
    /// Other servers with other signing keys, or another master token.
    other_secrets: Gauge,
}

impl Figures {
    /// Creates the metrics and registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let figures = Self {
            offset: Gauge::default(),
            primaries: Gauge::default(),
            other_secrets: Gauge::default(),
        };
        let help = "Seconds by which the shared store's clock is ahead of this machine's";
        registry.register("clock_offset_seconds", help, figures.offset.clone());
        let help =
            "Hosts of storage.url that say that they are the primary: more than one is wrong";
        registry.register("store_primaries", help, figures.primaries.clone());
        let help =
            "Other servers on the store whose signing keys or master token differ from this one's";
        registry.register("servers_with_other_secrets", help, figures.other_secrets.clone());
        figures
    }
}

/// The interval at which the shared store is asked for the time, which also shows that it answers.
const ASK_TIME: Duration = Duration::from_secs(2);
/// The time without an answer after which the store counts as unavailable.
const SILENCE: Duration = Duration::from_secs(3);
/// The milliseconds from which on even the quickest of some simple answers is late: a commit takes several times as
/// long, and the pages promise an answer within a second.
const LATE: u64 = 300;
/// The longest time for the thorough examination, so that the next question for the time is not delayed.
const PATIENCE: Duration = Duration::from_secs(10);
/// The number of rounds from one thorough examination to the next.
const EXAMINE: u32 = 10;
/// The number of rounds from one comparison of secrets to the next.
const COMPARE: u32 = 4;
/// Milliseconds by which a machine's clock may differ from the store's before its server is not ready.
/// Beyond that, servers disagree on the remaining time of a code or token.
const CLOCK_MAY_DIFFER: i64 = 1000;

/// Returns whether a difference of `ahead` milliseconds between the store's clock and the machine's is
/// acceptable.
pub const fn clock_is_right(ahead: i64) -> bool {
    ahead.abs() <= CLOCK_MAY_DIFFER
}

/// Returns a sentence about a store's clock that is `ahead` milliseconds ahead of this machine's.
pub fn clock_words(ahead: i64) -> String {
    let (by, side) = (ahead.unsigned_abs(), if ahead < 0 { "behind" } else { "ahead of" });
    format!("the database's clock is {side} this machine's by {by} ms")
}

/// How often the store is asked for the time in a row. The quickest answer is the most exact.
const LOOKS: usize = 3;

/// One reading of a store's clock: the milliseconds that it took, and the milliseconds by which the clock
/// is ahead of this machine's. The second value is exact to half of the first.
type Look = (u64, i64);

fn look(clock: impl Fn() -> Result<u64, ReadError>) -> Option<Look> {
    let before = machine_milliseconds();
    let theirs = clock().ok()?;
    let took = machine_milliseconds().saturating_sub(before);
    let ours = before.saturating_add(took / 2);
    Some((took, theirs.cast_signed().saturating_sub(ours.cast_signed())))
}

/// Returns the milliseconds by which a store's `clock` is ahead of this machine's, from the quickest of
/// several readings. `None` if no reading succeeded.
pub fn clock_ahead(clock: impl Fn() -> Result<u64, ReadError>) -> Option<i64> {
    let best = (0..LOOKS).filter_map(|_| look(&clock)).min();
    best.map(|(_, ahead)| ahead)
}

/// Returns the names and the hashes of the secrets that all servers on a store must have in common.
pub type InCommon = Box<dyn Fn() -> [(&'static str, KeyedHash); 2] + Send + Sync>;

/// The monitor of a shared store.
pub struct Cluster {
    /// The shared store.
    pub store: Arc<dyn Store>,
    /// The server's clock, which follows the store's.
    pub clock: Arc<dyn Clock>,
    /// The health of the server.
    pub health: Arc<Health>,
    /// The metrics of the store.
    pub figures: Figures,
    /// Whether the operator accepts that a failover may make spent codes valid again.
    pub allow_async_failover: bool,
    /// This server's secrets, as hashes.
    pub secrets: InCommon,
    /// What is wrong at present.
    pub troubles: Arc<Troubles>,
}

/// The possible faults of a shared store. The begin and the end of each are logged.
struct Outages {
    silent: Outage,
    refuses: Outage,
    differs: Outage,
    loses: Outage,
    disagrees: Outage,
}

impl Outages {
    const fn new() -> Self {
        Self {
            silent: Outage::new("the store does not answer", "the store answers again"),
            refuses: Outage::new(
                "the store accepts no commits; the server is not ready",
                "the store accepts commits again",
            ),
            differs: Outage::new(
                "the machine's clock differs from the store's; the server is not ready",
                "the machine's clock agrees with the store's again",
            ),
            loses: Outage::new(
                "the store may lose acknowledged changes; the server is not ready",
                "the store keeps acknowledged changes again",
            ),
            disagrees: Outage::new(
                "other servers on the store have other secrets; what one server accepts, another refuses",
                "all servers on the store have the same secrets again",
            ),
        }
    }
}

impl Cluster {
    /// Monitors the store for as long as the server runs.
    pub async fn watch(self) {
        let outages = Outages::new();
        let (mut ask, mut rounds) = (tokio::time::interval(ASK_TIME), 0u32);
        loop {
            ask.tick().await;
            let ahead = self.store_ahead(&outages.silent).await;
            let works = ahead.is_some() && self.takes_commits(&outages.refuses).await;
            self.health.store_is_there(works);
            let silent = ahead.is_none().then(|| "the database does not answer".to_owned());
            self.troubles.note(Trouble::Silent, silent);
            if let Some(ahead) = ahead {
                self.go_by(ahead, &outages.differs);
                if rounds.is_multiple_of(EXAMINE) {
                    let looked = self.look_closely(&outages.loses);
                    let _ = tokio::time::timeout(PATIENCE, looked).await;
                }
                if rounds.is_multiple_of(COMPARE) {
                    let compared = self.compare_secrets(&outages.disagrees);
                    let _ = tokio::time::timeout(SILENCE, compared).await;
                }
            }
            if let Some(shared) = self.store.shared() {
                self.figures.primaries.set(i64::from(shared.primaries()));
            }
            rounds = rounds.wrapping_add(1);
        }
    }

    /// Returns the milliseconds by which the store's clock is ahead. A store that does not answer within
    /// [`SILENCE`] counts as unavailable until it answers.
    async fn store_ahead(&self, silent: &Outage) -> Option<i64> {
        let mut best: Option<Look> = None;
        for _ in 0..LOOKS {
            let store = Arc::clone(&self.store);
            let ask = move || store.shared().and_then(|shared| look(|| shared.clock()));
            let mut asked = pin!(actix_web::web::block(ask));
            let told = if let Ok(told) = tokio::time::timeout(SILENCE, &mut asked).await {
                told
            } else {
                // The store may hang without closing its connections.
                self.health.store_is_there(false);
                silent.begins("it was asked for the time");
                let words = "the database does not answer".to_owned();
                self.troubles.note(Trouble::Silent, Some(words));
                asked.await
            };
            if let Some(told) = told.ok().flatten() {
                best = Some(best.map_or(told, |best| best.min(told)));
            }
        }
        if let Some((took, _)) = best {
            silent.ends();
            let late =
                (took >= LATE).then(|| format!("the database takes {took} ms to tell the time"));
            self.troubles.note(Trouble::Slow, late);
        }
        best.map(|(_, ahead)| ahead)
    }

    /// Makes the server's clock follow the store's.
    fn go_by(&self, ahead: i64, differs: &Outage) {
        self.clock.correct(ahead);
        self.figures.offset.set(ahead as f64 / 1000.0);
        let fit = clock_is_right(ahead);
        if fit {
            differs.ends();
        } else {
            differs.begins(&clock_words(ahead));
        }
        self.troubles.note(Trouble::Clock, (!fit).then(|| clock_words(ahead)));
        self.health.clock_is_right(fit);
    }

    /// Returns whether the store accepts commits. Without this test, a failed request would be the first sign.
    async fn takes_commits(&self, refuses: &Outage) -> bool {
        let store = Arc::clone(&self.store);
        let tried = move || store.shared().map_or(Ok(()), Shared::takes_commits);
        match actix_web::web::block(tried).await {
            Ok(Ok(())) => {
                refuses.ends();
                self.troubles.note(Trouble::Refuses, None);
                true
            }
            Ok(Err(ReadError(why))) => {
                refuses.begins(&why);
                let words = format!("the database takes no commits: {why}");
                self.troubles.note(Trouble::Refuses, Some(words));
                false
            }
            Err(_) => false,
        }
    }

    /// Checks whether the store keeps acknowledged changes. If it may lose them, the server is not ready,
    /// unless `allow_async_failover` is set.
    async fn look_closely(&self, loses: &Outage) {
        let store = Arc::clone(&self.store);
        let examined = move || store.shared().map(Shared::examine);
        let Ok(Some(Ok(findings))) = actix_web::web::block(examined).await else { return };
        let told = |is_meant: &dyn Fn(Grade) -> bool| -> Vec<String> {
            let meant = findings.iter().filter(|finding| is_meant(finding.grade));
            meant
                .map(|Finding { what, why, mend, .. }| {
                    format!("{what}: {why}; mend it with: {mend}")
                })
                .collect()
        };
        let broken = told(&|grade| grade == Grade::Breaks);
        // What breaks although the operator accepts it needs nobody.
        let is_accepted = |grade| grade == Grade::Breaks && self.allow_async_failover;
        let wrong = told(&|grade| grade != Grade::Good && !is_accepted(grade));
        self.troubles.note(Trouble::Settings, (!wrong.is_empty()).then(|| wrong.join("; ")));
        let is_fit = broken.is_empty() || self.allow_async_failover;
        if is_fit {
            loses.ends();
        } else {
            loses.begins(&broken.join("; "));
        }
        self.health.store_is_safe(is_fit);
    }

    /// Tells the other servers the hashes of this server's secrets, and hears who has others.
    async fn compare_secrets(&self, disagrees: &Outage) {
        let (store, secrets) = (Arc::clone(&self.store), (self.secrets)());
        let compared = move || {
            let Some(shared) = store.shared() else { return Ok([].into()) };
            let differ = |(name, hash)| Ok((name, shared.publish(name, hash)?));
            secrets.into_iter().map(differ).collect::<Result<Vec<_>, ReadError>>()
        };
        // A store that cannot be asked is reported elsewhere.
        let Ok(Ok(differ)) = actix_web::web::block(compared).await else { return };
        let most = differ.iter().map(|(_, servers)| *servers).max().unwrap_or_default();
        self.figures.other_secrets.set(most.cast_signed());
        let words = differ.iter().filter(|(_, servers)| *servers > 0);
        let words: Vec<String> = words
            .map(|(name, servers)| {
                format!("{servers} running servers have another value of: {name}")
            })
            .collect();
        if words.is_empty() {
            disagrees.ends();
        } else {
            disagrees.begins(&format!(
                "{}; copy the files of [auth] from one server to all others, and send them SIGHUP",
                words.join("; ")
            ));
        }
    }
}
