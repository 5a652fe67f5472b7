//! What a server does that shares its store with others: it goes by the store's clock, and looks
//! whether the store takes commits and keeps what it promises.

use super::error::StoreError;
use crate::os::{Clock, machine_milliseconds};
use iptunnel_actors::Health;
use iptunnel_domain::lookup::{LookupKey, Purpose};
use iptunnel_storage::{Finding, Grade, Outage, ReadError, Shared, Store};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// Servers that share a store must find in it what the others have written.
///
/// # Errors
/// Where this server has another key, or the store cannot be asked.
pub fn agree(store: &dyn Store, lookup: &LookupKey) -> Result<(), StoreError> {
    let hash = lookup.hash(Purpose::Agreement, b"");
    match store.shared().map(|shared| shared.agree("lookup key", hash)) {
        None | Some(Ok(true)) => Ok(()),
        Some(Ok(false)) => Err(StoreError::OtherKey),
        Some(Err(error)) => Err(error.into()),
    }
}

/// What `/metrics` says of a shared store.
pub struct Figures {
    /// Seconds by which the store's clock is ahead.
    offset: Gauge<f64, AtomicU64>,
    /// Hosts that say that they are the primary.
    primaries: Gauge,
}

impl Figures {
    /// Makes the figures known to the registry.
    pub fn new(registry: &mut Registry) -> Self {
        let figures = Self { offset: Gauge::default(), primaries: Gauge::default() };
        let help = "Seconds by which the shared store's clock is ahead of this machine's";
        registry.register("clock_offset_seconds", help, figures.offset.clone());
        let help =
            "Hosts of storage.url that say that they are the primary: more than one is wrong";
        registry.register("store_primaries", help, figures.primaries.clone());
        figures
    }
}

/// How often the shared store is asked for the time, and so whether it is there.
const ASK_TIME: Duration = Duration::from_secs(2);
/// How long it may say nothing until it counts as away.
const SILENCE: Duration = Duration::from_secs(3);
/// How long anything else that it is asked may take, so that it is asked for the time again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many times that is until it is looked at more closely.
const EXAMINE: u32 = 10;
/// Milliseconds by which a machine's clock may differ before its server is not ready: what is left
/// of a lifetime is then not what others say it is.
const CLOCK_MAY_DIFFER: i64 = 1000;

/// Whether a server may go by its machine's clock where the store's is so far `ahead` of it.
pub const fn clock_is_right(ahead: i64) -> bool {
    ahead.abs() <= CLOCK_MAY_DIFFER
}

/// A sentence about a store's clock that is so many milliseconds `ahead` of this machine's.
pub fn clock_words(ahead: i64) -> String {
    let (by, side) = (ahead.unsigned_abs(), if ahead < 0 { "behind" } else { "ahead of" });
    format!("the database's clock is {side} this machine's by {by} ms")
}

/// How often the store is asked for the time in a row: what took longest tells least.
const LOOKS: usize = 3;

/// How long a look at a store's clock took, and by how much that is ahead of this machine's, both in
/// milliseconds: the latter to within half of the former.
type Look = (u64, i64);

fn look(clock: impl Fn() -> Result<u64, ReadError>) -> Option<Look> {
    let before = machine_milliseconds();
    let theirs = clock().ok()?;
    let took = machine_milliseconds().saturating_sub(before);
    let ours = before.saturating_add(took / 2);
    Some((took, theirs.cast_signed().saturating_sub(ours.cast_signed())))
}

/// Milliseconds by which a store's `clock` is ahead of this machine's, by the quickest of some looks.
pub fn clock_ahead(clock: impl Fn() -> Result<u64, ReadError>) -> Option<i64> {
    let best = (0..LOOKS).filter_map(|_| look(&clock)).min();
    best.map(|(_, ahead)| ahead)
}

/// What a server watches that shares its store.
pub struct Cluster {
    /// The shared store.
    pub store: Arc<dyn Store>,
    /// The clock that goes by the store's.
    pub clock: Arc<dyn Clock>,
    /// Whether the server is fit.
    pub health: Arc<Health>,
    /// What `/metrics` says of it.
    pub figures: Figures,
    /// Whether it is known that a failover may bring spent codes back.
    pub allow_async_failover: bool,
}

/// What may be wrong with a shared store: each is logged where it begins and where it ends.
struct Outages {
    silent: Outage,
    refuses: Outage,
    differs: Outage,
    loses: Outage,
}

impl Outages {
    const fn new() -> Self {
        Self {
            silent: Outage::new("the store does not answer", "the store answers again"),
            refuses: Outage::new(
                "the store takes no commits: not ready",
                "the store takes commits",
            ),
            differs: Outage::new(
                "the machine's clock differs from the store's: not ready",
                "the machine's clock is the store's again",
            ),
            loses: Outage::new(
                "the store may lose what was answered: not ready",
                "the store keeps what was answered",
            ),
        }
    }
}

impl Cluster {
    /// Watches the store for as long as the server runs.
    pub async fn watch(self) {
        let outages = Outages::new();
        let (mut ask, mut rounds) = (tokio::time::interval(ASK_TIME), 0u32);
        loop {
            ask.tick().await;
            let ahead = self.store_ahead(&outages.silent).await;
            let works = ahead.is_some() && self.takes_commits(&outages.refuses).await;
            self.health.store_is_there(works);
            if let Some(ahead) = ahead {
                self.go_by(ahead, &outages.differs);
                if rounds.is_multiple_of(EXAMINE) {
                    let looked = self.look_closely(&outages.loses);
                    let _ = tokio::time::timeout(PATIENCE, looked).await;
                }
            }
            if let Some(shared) = self.store.shared() {
                self.figures.primaries.set(i64::from(shared.primaries()));
            }
            rounds = rounds.wrapping_add(1);
        }
    }

    /// Milliseconds by which the store's clock is ahead, asked beside everything else. Where the store
    /// says nothing for a while it counts as away until it does.
    async fn store_ahead(&self, silent: &Outage) -> Option<i64> {
        let mut best: Option<Look> = None;
        for _ in 0..LOOKS {
            let store = Arc::clone(&self.store);
            let ask = move || store.shared().and_then(|shared| look(|| shared.clock()));
            let mut asked = pin!(actix_web::web::block(ask));
            let told = if let Ok(told) = tokio::time::timeout(SILENCE, &mut asked).await {
                told
            } else {
                // It may stand still without having closed a connection.
                self.health.store_is_there(false);
                silent.begins("it was asked for the time");
                asked.await
            };
            if let Some(told) = told.ok().flatten() {
                best = Some(best.map_or(told, |best| best.min(told)));
            }
        }
        if best.is_some() {
            silent.ends();
        }
        best.map(|(_, ahead)| ahead)
    }

    /// Goes by the store's clock from now on.
    fn go_by(&self, ahead: i64, differs: &Outage) {
        self.clock.correct(ahead);
        self.figures.offset.set(ahead as f64 / 1000.0);
        let fit = clock_is_right(ahead);
        if fit {
            differs.ends();
        } else {
            differs.begins(&clock_words(ahead));
        }
        self.health.clock_is_right(fit);
    }

    /// Whether the store takes commits: nobody has to lose a request to find out.
    async fn takes_commits(&self, refuses: &Outage) -> bool {
        let store = Arc::clone(&self.store);
        let tried = move || store.shared().map_or(Ok(()), Shared::takes_commits);
        match actix_web::web::block(tried).await {
            Ok(Ok(())) => {
                refuses.ends();
                true
            }
            Ok(Err(ReadError(why))) => {
                refuses.begins(&why);
                false
            }
            Err(_) => false,
        }
    }

    /// Whether the store keeps what it promises. Where it does not the server is not ready, unless
    /// its operator knows.
    async fn look_closely(&self, loses: &Outage) {
        let store = Arc::clone(&self.store);
        let examined = move || store.shared().map(Shared::examine);
        let Ok(Some(Ok(findings))) = actix_web::web::block(examined).await else { return };
        let broken = findings.iter().filter(|finding| finding.grade == Grade::Breaks);
        let broken: Vec<String> = broken
            .map(|Finding { what, why, mend, .. }| format!("{what}: {why}; mend it with: {mend}"))
            .collect();
        let is_fit = broken.is_empty() || self.allow_async_failover;
        if is_fit {
            loses.ends();
        } else {
            loses.begins(&broken.join("; "));
        }
        self.health.store_is_safe(is_fit);
    }
}
