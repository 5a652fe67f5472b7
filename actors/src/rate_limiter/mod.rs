//! The rate-limiter actor: charges limited requests and forwards those it grants.

mod shared;

pub(crate) use shared::{DueCharge, charge_first};

pub use crate::messages::limited::Limited;

use crate::Failure;
use crate::handles::Handles;
use crate::memory::counters::{Counters, Restored};
use crate::messages::servers::ChargeTicket;
use crate::messages::{Command, Shutdown, Tick};
use crate::persistence::Committed;
use crate::runtime::mailbox::{Actor, Receive};
use crate::runtime::metrics::Metrics;
use crate::runtime::metrics::{ActorMetrics, LimitMetrics};
use crate::runtime::reply::Reply;
use crate::runtime::tuning::ActorSettings;
use actix::Message;
use arc_swap::ArcSwap;
use iptunnel_domain::limit::{Policy, Standing, Subject, retry_after};
use iptunnel_domain::time::Timer;
use iptunnel_domain::{Refusal, Timestamp};
use iptunnel_storage::{Change, CounterRow, Write};
use shared::Reached;
use std::sync::Arc;

/// A command that is subject to rate limits.
pub trait LimitedCommand: Command {
    /// Whether it may repeat an earlier grant. No limit refuses such a repeat.
    const MAY_REPEAT: bool;
    /// Whether its change carries its charge where servers share a store: one question to the store instead of
    /// two. The actor that decides it sends it back to be charged ([`charge_first`]) where it leads to no change.
    const IS_CHARGED_BY_CHANGE: bool = false;

    /// Sends the command to the actor that decides it.
    fn forward(self, reply: Reply<Self::Answer>, handles: &Handles);
}

impl LimitedCommand for ChargeTicket {
    const MAY_REPEAT: bool = false;

    fn forward(self, reply: Reply<()>, _: &Handles) {
        reply.grant(());
    }
}

/// The charge of one request. It is given back if the request does not count after all.
pub(crate) struct Charge {
    counters: Vec<(u64, Timestamp)>,
    handles: Arc<Handles>,
}

impl Charge {
    fn of(subjects: &[Subject], now: Timestamp, handles: Arc<Handles>) -> Self {
        let counters = subjects.iter().map(|s| (s.key(), s.policy.window_end(now))).collect();
        Self { counters, handles }
    }

    pub(crate) fn give_back(self) {
        self.handles.rate_limiter.send(GiveBack(self.counters));
    }
}

struct GiveBack(Vec<(u64, Timestamp)>);

impl Message for GiveBack {
    type Result = ();
}

/// The counted decisions of each policy.
struct Decisions([LimitMetrics; Policy::ALL.len()]);

impl Decisions {
    /// Counts a decision on these standings, as they were before it.
    fn count(&self, standings: &[Standing]) {
        for standing in standings {
            if let Some(metrics) = self.0.get(standing.policy as usize) {
                if standing.refuses() { &metrics.refused } else { &metrics.granted }.inc();
            }
        }
    }

    /// Counts a grant on these standings, as they are after it.
    fn count_granted(&self, standings: &[Standing]) {
        let before = |one: &Standing| Standing { used: one.used.saturating_sub(1), ..*one };
        self.count(&standings.iter().map(before).collect::<Vec<_>>());
    }
}

/// The outcome of a commit of counters: the slots that are still not written.
struct Flushed {
    still_dirty: Vec<u32>,
}

impl Message for Flushed {
    type Result = ();
}

/// Ticks between two writes of the counters: half of what may be lost in a crash. The other half is
/// left for the commit.
const FLUSH_TICKS: u8 = 2;
/// Counters of ended windows that one tick removes: some ten microseconds of work.
const EXPIRE_BUDGET: usize = 1000;

/// The only writer of counters.
pub(crate) struct RateLimiter {
    counters: Counters,
    tuning: Arc<ArcSwap<ActorSettings>>,
    handles: Arc<Handles>,
    metrics: ActorMetrics,
    decisions: Arc<Decisions>,
    observed: Metrics,
    ticks: u8,
    /// The number of counters that the current flush still has to write.
    to_flush: usize,
    /// The limits that the shared store reported as reached.
    reached: Reached,
    forget: Timer,
    ended: bool,
}

impl RateLimiter {
    pub(crate) fn new(
        counters: Counters,
        tuning: Arc<ArcSwap<ActorSettings>>,
        handles: Arc<Handles>,
        observed: &Metrics,
        now: Timestamp,
    ) -> Self {
        Self {
            counters,
            tuning,
            handles,
            metrics: observed.actor("rate_limiter"),
            decisions: Arc::new(Decisions(observed.limits())),
            observed: observed.clone(),
            ticks: 0,
            to_flush: 0,
            reached: Reached::default(),
            forget: Timer::due_at(now.plus(shared::FORGET_EVERY)),
            ended: false,
        }
    }

    /// Charges `subjects`, all or none.
    fn admit(&mut self, subjects: &[Subject], now: Timestamp) -> Admission {
        let tuning = self.tuning.load();
        let limits = &tuning.limits;
        let standings: Vec<Standing> =
            subjects.iter().map(|s| self.counters.standing(s, limits, now)).collect();
        self.decisions.count(&standings);
        if let Some(retry_after) = retry_after(&standings, now) {
            return Admission::Refused { retry_after, standings };
        }
        if self.counters.make_room(subjects, limits, now).is_err() {
            return Admission::TableFull;
        }
        for subject in subjects {
            self.counters.charge(subject, now);
        }
        Admission::Granted(
            standings.into_iter().map(|s| Standing { used: s.used + 1, ..s }).collect(),
        )
    }

    /// Writes the next counters of a flush, a few at a time: a commit with many would delay every
    /// request that waits for it.
    fn flush(&mut self, step: usize) {
        let rows = self.counters.take_dirty(step.min(self.to_flush));
        if rows.is_empty() {
            self.to_flush = 0;
            return;
        }
        self.to_flush -= rows.len().min(self.to_flush);
        self.metrics.batch.observe(rows.len() as f64);
        let slots: Vec<u32> = rows.iter().map(|row: &CounterRow| row.slot).collect();
        let handles = Arc::clone(&self.handles);
        let change = Change(vec![Write::Counters(rows)]);
        self.handles.persistence.commit(change, None, move |committed| {
            let still_dirty = if committed == Committed::Written { Vec::new() } else { slots };
            handles.rate_limiter.send(Flushed { still_dirty });
        });
    }
}

enum Admission {
    Granted(Vec<Standing>),
    Refused { retry_after: u64, standings: Vec<Standing> },
    TableFull,
}

impl Actor for RateLimiter {
    fn has_ended(&self) -> bool {
        self.ended
    }
}

impl<C: LimitedCommand> Receive<Limited<C>> for RateLimiter {
    fn receive(&mut self, message: Limited<C>) {
        self.metrics.taken();
        if self.handles.is_shared() {
            return self.ask_the_store(message);
        }
        let Limited { subjects, command, now, reply } = message;
        match self.admit(&subjects, now) {
            Admission::Granted(standings) => {
                self.let_through(Limited { subjects, command, now, reply }, standings);
            }
            Admission::Refused { retry_after, standings } => {
                self.over_limit(Limited { subjects, command, now, reply }, retry_after, standings);
            }
            Admission::TableFull => reply.fail(Failure::Overloaded),
        }
    }
}

impl RateLimiter {
    /// Forwards a request that has been charged.
    fn let_through<C: LimitedCommand>(&self, request: Limited<C>, standings: Vec<Standing>) {
        let Limited { subjects, command, now, mut reply } = request;
        let charge = Charge::of(&subjects, now, Arc::clone(&self.handles));
        reply.charged(Some(charge), standings);
        match command {
            Ok(command) => command.forward(reply, &self.handles),
            Err(refusal) => reply.refuse(refusal),
        }
    }

    fn refuse<C: LimitedCommand>(&self, request: Limited<C>, standings: Vec<Standing>) {
        self.decisions.count(&standings);
        let retry_after = retry_after(&standings, request.now).unwrap_or(1);
        self.over_limit(request, retry_after, standings);
    }

    /// Handles a request whose limit is reached. A machine must not lose what it holds, so a command
    /// that may repeat an earlier grant goes on, and is granted nothing new.
    fn over_limit<C: LimitedCommand>(
        &self,
        request: Limited<C>,
        retry_after: u64,
        standings: Vec<Standing>,
    ) {
        let Limited { command, mut reply, .. } = request;
        reply.over_limit(retry_after, standings);
        match command {
            Ok(command) if C::MAY_REPEAT => command.forward(reply, &self.handles),
            _ => reply.refuse(Refusal::RateLimited { retry_after }),
        }
    }
}

impl Receive<GiveBack> for RateLimiter {
    fn receive(&mut self, GiveBack(counters): GiveBack) {
        self.metrics.taken();
        if let Some(limit_counter) = &self.handles.limit_counter {
            for (key, _) in &counters {
                self.reached.remove(*key);
            }
            return limit_counter.give_back(counters);
        }
        for (key, window_end) in counters {
            self.counters.give_back(key, window_end);
        }
    }
}

impl Receive<Flushed> for RateLimiter {
    fn receive(&mut self, Flushed { still_dirty }: Flushed) {
        self.metrics.taken();
        if still_dirty.is_empty() {
            let step = self.tuning.load().batches.rate_limiter;
            return self.flush(step);
        }
        // The store refused. The next flush tries again.
        self.to_flush = 0;
        for slot in still_dirty {
            self.counters.mark_dirty(slot);
        }
    }
}

impl Receive<Tick> for RateLimiter {
    fn receive(&mut self, Tick(now): Tick) {
        self.metrics.taken();
        if self.handles.is_shared() {
            self.forget_ended(now);
            self.observed.counters_in_memory.set(self.reached.len() as i64);
            return;
        }
        self.counters.expire(EXPIRE_BUDGET, now);
        self.observed.counters_in_memory.set(self.counters.len() as i64);
        self.ticks = (self.ticks + 1) % FLUSH_TICKS;
        if self.ticks == 0 && self.to_flush == 0 {
            let step = self.tuning.load().batches.rate_limiter;
            self.to_flush = self.counters.dirty();
            self.flush(step);
        }
    }
}

impl Receive<Shutdown> for RateLimiter {
    fn receive(&mut self, shutdown: Shutdown) {
        self.metrics.taken();
        self.to_flush = self.counters.dirty();
        self.flush(usize::MAX);
        self.handles.code_registry.send(shutdown);
        self.ended = true;
    }
}

/// Loads the stored counters into memory.
pub(crate) fn restore_counters(
    store: &dyn iptunnel_storage::Store,
    now: Timestamp,
) -> Result<Counters, iptunnel_storage::ReadError> {
    let mut restored = Restored::new(now);
    if store.shared().is_none() {
        store.each_counter(&mut |slot, counter| restored.add(slot, counter))?;
    }
    Ok(restored.finish())
}
