//! One server of a simulated world: its actors, run step by step, and its state outside the store.

use crate::chance::Chance;
use crate::planted::Planted;
use arc_swap::ArcSwap;
use iptunnel_actors::stepped::{Step, Stepped};
use iptunnel_actors::{ActorSettings, Batches, Dependencies, Handles, Health, Metrics};
use iptunnel_domain::Timestamp;
use iptunnel_domain::fleet::Silence;
use iptunnel_domain::limit::Limits;
use iptunnel_domain::lookup::LookupKey;
use iptunnel_domain::time::Lifetimes;
use iptunnel_storage::{Store, Watermark};
use std::sync::Arc;

/// A running server.
pub struct Running {
    pub stepped: Stepped,
    pub store: Arc<dyn Store>,
    pub health: Arc<Health>,
    /// The epoch in which it started. It ends when a later epoch begins.
    pub epoch: u64,
    /// The number of events it has received.
    pub events: usize,
    /// The last timeline it noticed.
    pub timeline: u32,
}

/// A server, and the state that outlives its processes.
#[derive(Default)]
pub struct Site {
    pub running: Option<Running>,
    /// The watermark file outside the store.
    pub mark: Option<Watermark>,
    /// It is paused until this time, in virtual milliseconds.
    pub paused_until: u64,
    /// It is not started before this step.
    pub away_until: u64,
    /// The number of steps during which nothing of it reaches the store.
    pub slow_for: u64,
}

/// What all servers of a world share.
pub struct Common {
    pub limits: Limits,
    pub key: LookupKey,
    pub planted: Planted,
    pub permits: usize,
}

/// The lifetimes of all simulated servers: the defaults.
pub fn life() -> Lifetimes {
    Lifetimes::default()
}

impl Site {
    /// Starts the server on `store` as the real one starts: it first checks that the store holds what it
    /// must. Returns an error if it does not start.
    pub fn start(
        &mut self,
        store: Arc<dyn Store>,
        common: &Common,
        now: Timestamp,
        (events, timeline): (usize, u32),
        chance: &mut Chance,
    ) -> Result<bool, String> {
        let mut fenced = false;
        if let Some(mark) = &self.mark
            && !store.contains(mark).map_err(|error| error.to_string())?
        {
            let begun = store.begin_epoch(mark, "the store lacked acknowledged changes", now);
            begun.map_err(|error| error.to_string())?;
            fenced = true;
            self.mark = store.watermark();
        }
        let health = Arc::new(Health::default());
        let tuning = ActorSettings {
            forget_after_seconds: 0,
            silence: Silence { interval: 86_400, after_intervals: 3, share_percent: 20 },
            lifetimes: life(),
            limits: common.limits,
            retention_seconds: 90 * 86_400,
            checkin_flush_seconds: 1,
            batches: Batches {
                code_registry: 16,
                activation: 16,
                rate_limiter: 16,
                server_registry: 16,
                persistence: 8,
            },
        };
        let parts = Dependencies {
            store: Arc::clone(&store),
            tuning: Arc::new(ArcSwap::from_pointee(tuning)),
            permits: common.permits,
            health: Arc::clone(&health),
            observed: Metrics::new(&mut prometheus_client::registry::Registry::default()),
            random: chance.generator(),
            lookup_key: common.key.clone(),
            now,
        };
        let stepped = Stepped::start(parts).map_err(|error| error.to_string())?;
        let epoch = store.watermark().map_or(0, |mark| mark.epoch);
        self.running = Some(Running { stepped, store, health, epoch, events, timeline });
        Ok(fenced)
    }
}

impl Running {
    pub fn handles(&self) -> &Arc<Handles> {
        self.stepped.handles()
    }

    /// Takes one of the possible steps, and returns it.
    pub fn step(
        &mut self,
        chance: &mut Chance,
        ready: &mut Vec<Step>,
        commits: bool,
    ) -> Option<Step> {
        self.stepped.ready(ready);
        ready.retain(|step| commits || !matches!(step, Step::Gather | Step::Write));
        // A probe comes once a second, so it is only rarely chosen among the steps.
        if ready.len() > 1 && !chance.one_in(3) {
            ready.retain(|step| *step != Step::Probe);
        }
        let step = *chance.pick(ready)?;
        self.stepped.step(step).then_some(step)
    }

    /// Takes all possible steps. If it does not commit, nothing of it reaches the store.
    pub fn settle(&mut self, ready: &mut Vec<Step>, commits: bool) -> usize {
        let mut done = 0;
        loop {
            self.stepped.ready(ready);
            ready.retain(|step| commits || !matches!(step, Step::Gather | Step::Write));
            let mut any = false;
            for step in ready.iter().filter(|step| **step != Step::Probe) {
                any |= self.stepped.step(*step);
                done += 1;
            }
            if !any || done > 100_000 {
                return done;
            }
        }
    }
}
