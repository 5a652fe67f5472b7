//! The rate-limiter actor: charges limited requests, and forwards what it lets through.

mod shared;

pub use crate::messages::limited::Limited;

use crate::Failure;
use crate::handles::Handles;
use crate::memory::counters::Counters;
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

/// A command that is let through only within limits.
pub trait LimitedCommand: Command {
    /// Whether it may be granted as what was granted before, which no limit refuses.
    const MAY_REPEAT: bool;

    /// Hands the command to the actor that decides it.
    fn forward(self, reply: Reply<Self::Answer>, handles: &Handles);
}

/// What one request was charged, to be given back where it does not count after all.
pub(crate) struct Charge {
    counters: Vec<(u64, Timestamp)>,
    handles: Arc<Handles>,
}

impl Charge {
    pub(crate) fn give_back(self) {
        self.handles.rate_limiter.send(GiveBack(self.counters));
    }
}

struct GiveBack(Vec<(u64, Timestamp)>);

impl Message for GiveBack {
    type Result = ();
}

/// What became of the commit of some counters: the slots in which the store is still behind.
struct Flushed {
    still_dirty: Vec<u32>,
}

impl Message for Flushed {
    type Result = ();
}

/// Seconds between two writes of the counters: half of what a crash may forgive, so that the other
/// half is left for the commit.
const FLUSH_TICKS: u8 = 2;
/// Counters of ended windows that are dropped in one step: some ten microseconds.
const EXPIRE_BUDGET: usize = 1000;

/// The only writer of counters.
pub(crate) struct RateLimiter {
    counters: Counters,
    tuning: Arc<ArcSwap<ActorSettings>>,
    handles: Arc<Handles>,
    metrics: ActorMetrics,
    decisions: [LimitMetrics; Policy::ALL.len()],
    observed: Metrics,
    ticks: u8,
    /// How many counters the flush under way has yet to send.
    to_flush: usize,
    /// Limits that the shared store said are reached.
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
    ) -> Self {
        Self {
            counters,
            tuning,
            handles,
            metrics: observed.actor("rate_limiter"),
            decisions: observed.limits(),
            observed: observed.clone(),
            ticks: 0,
            to_flush: 0,
            reached: Reached::default(),
            forget: Timer::default(),
            ended: false,
        }
    }

    /// Charges `subjects`, all or none.
    fn admit(&mut self, subjects: &[Subject], now: Timestamp) -> Admission {
        let tuning = self.tuning.load();
        let limits = &tuning.limits;
        let standings: Vec<Standing> =
            subjects.iter().map(|s| self.counters.standing(s, limits, now)).collect();
        self.count(&standings);
        if let Some(retry_after) = retry_after(&standings, now) {
            return Admission::Refused { retry_after, standings };
        }
        if self.counters.make_room(subjects, limits, now).is_err() {
            return Admission::NoRoom;
        }
        for subject in subjects {
            self.counters.charge(subject, now);
        }
        Admission::Granted(
            standings.into_iter().map(|s| Standing { used: s.used + 1, ..s }).collect(),
        )
    }

    fn count(&self, standings: &[Standing]) {
        for standing in standings {
            if let Some(metrics) = self.decisions.get(standing.policy as usize) {
                if standing.refuses() { &metrics.refused } else { &metrics.granted }.inc();
            }
        }
    }

    /// Sends the next counters of a flush. A few at a time: a commit that carries many would hold
    /// up everyone who waits for it.
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
    NoRoom,
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
            Admission::NoRoom => reply.fail(Failure::Overloaded),
        }
    }
}

impl RateLimiter {
    /// Hands a request on that has been counted.
    fn let_through<C: LimitedCommand>(&self, request: Limited<C>, standings: Vec<Standing>) {
        let Limited { subjects, command, now, mut reply } = request;
        let counters = subjects.iter().map(|s| (s.key(), s.policy.window_end(now))).collect();
        let charge = Charge { counters, handles: Arc::clone(&self.handles) };
        reply.charged(Some(charge), standings);
        match command {
            Ok(command) => command.forward(reply, &self.handles),
            Err(refusal) => reply.refuse(refusal),
        }
    }

    fn refuse<C: LimitedCommand>(&self, request: Limited<C>, standings: Vec<Standing>) {
        self.count(&standings);
        let retry_after = retry_after(&standings, request.now).unwrap_or(1);
        self.over_limit(request, retry_after, standings);
    }

    /// A limit is reached. It must not cost a machine what it holds: what may repeat what was granted
    /// before goes on, and is granted nothing else.
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
        // The store refuses: the next flush tries again.
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

/// Puts the counters that the store kept back into memory.
pub(crate) fn restore_counters(
    store: &dyn iptunnel_storage::Store,
    now: Timestamp,
) -> Result<Counters, iptunnel_storage::ReadError> {
    let mut counters = Counters::new();
    if store.shared().is_some() {
        return Ok(counters);
    }
    store.each_counter(&mut |slot, counter| counters.restore(slot, counter, now))?;
    Ok(counters)
}
