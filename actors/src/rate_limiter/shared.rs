//! Rate limits where servers share a store: the store counts, and reached limits are remembered here.

use super::{Charge, Decisions, Limited, LimitedCommand, RateLimiter};
use crate::Failure;
use crate::handles::Handles;
use crate::messages::Work;
use crate::runtime::mailbox::Receive;
use crate::runtime::reply::Rates;
use actix::Message;
use hashbrown::HashMap;
use iptunnel_domain::Timestamp;
use iptunnel_domain::limit::{Standing, Subject, retry_after};
use iptunnel_storage::{Charged, Counted};
use std::collections::VecDeque;
use std::sync::Arc;

/// Seconds for which a reached limit is remembered. Not longer, because another server may give a
/// charge back meanwhile. During this time a flood costs the store one query.
const REACHED: u64 = 5;

/// The largest number of remembered limits. A table of this size grows in some hundred microseconds.
/// Requests of further callers query the store.
const REMEMBERED: usize = 1 << 14;

/// The limits that were reached when the store was last queried.
#[derive(Default)]
pub(super) struct Reached {
    by_key: HashMap<u64, ReachedLimit>,
    /// Keys in the order of their expiry, each with its time.
    in_order: VecDeque<(u64, Timestamp)>,
}

#[derive(Clone, Copy)]
struct ReachedLimit {
    window_end: Timestamp,
    used: u32,
    /// Until this time the store is not queried again.
    until: Timestamp,
}

impl Reached {
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Returns the number of charges in the window that ends at `window_end`, if its limit is remembered
    /// as reached.
    fn used(&self, key: u64, window_end: Timestamp, now: Timestamp) -> Option<u32> {
        let reached = self.by_key.get(&key)?;
        let counts = reached.window_end == window_end && now.is_before(reached.until, REACHED);
        counts.then_some(reached.used)
    }

    /// Remembers a reached limit. If the table is full, the store is queried again instead.
    fn remember(&mut self, key: u64, window_end: Timestamp, used: u32, now: Timestamp) {
        if self.in_order.len() < REMEMBERED {
            let until = now.plus(REACHED);
            self.by_key.insert(key, ReachedLimit { window_end, used, until });
            self.in_order.push_back((key, until));
        }
    }

    pub(super) fn remove(&mut self, key: u64) {
        self.by_key.remove(&key);
    }

    /// Removes the limits whose time is over.
    fn forget(&mut self, now: Timestamp) {
        while let Some((key, until)) = self.in_order.front().copied() {
            if now.is_before(until, REACHED) {
                return;
            }
            self.in_order.pop_front();
            // It may have been reached again since then.
            if self.by_key.get(&key).is_some_and(|reached| reached.until == until) {
                self.by_key.remove(&key);
            }
        }
    }
}

/// Seconds between two deletions of counters of ended windows from a shared store.
pub(super) const FORGET_EVERY: u64 = 60;

/// A request with the shared store's decision.
struct Weighed<C: LimitedCommand> {
    request: Limited<C>,
    standings: Vec<Standing>,
    /// `None` if the store failed.
    charged: Option<Charged>,
}

impl<C: LimitedCommand> Message for Weighed<C> {
    type Result = ();
}

impl<C: LimitedCommand> Receive<Weighed<C>> for RateLimiter {
    fn receive(&mut self, weighed: Weighed<C>) {
        self.metrics.taken();
        let Weighed { request, mut standings, charged } = weighed;
        let Some(Charged { granted, used }) = charged else {
            return request.reply.fail(Failure::StorageUnavailable);
        };
        for (standing, used) in standings.iter_mut().zip(used) {
            standing.used = used;
        }
        if granted {
            self.decisions.count_granted(&standings);
            return self.let_through(request, standings);
        }
        self.remember(&request.subjects, &standings, request.now);
        self.refuse(request, standings);
    }
}

/// The charge of a request that goes on uncharged: its change will carry it, or it is made after all.
pub(crate) struct DueCharge {
    subjects: Vec<Subject>,
    now: Timestamp,
    /// The standings before it, in which the counts are not known.
    standings: Vec<Standing>,
    handles: Arc<Handles>,
    decisions: Arc<Decisions>,
}

impl DueCharge {
    /// Returns what the change has to carry.
    pub(crate) fn limits(&self) -> Vec<Counted> {
        counted(&self.subjects, &self.standings)
    }

    /// Returns the charge and the standings once the change is written. `used` are the counts after it, if the
    /// store knows them.
    pub(crate) fn charged(mut self, used: Option<Vec<u32>>) -> (Charge, Option<Rates>) {
        let known = used.is_some();
        for (standing, used) in self.standings.iter_mut().zip(used.unwrap_or_default()) {
            standing.used = used;
        }
        self.decisions.count_granted(&self.standings);
        let charge = Charge::of(&self.subjects, self.now, self.handles);
        (charge, known.then_some(self.standings))
    }
}

fn counted(subjects: &[Subject], standings: &[Standing]) -> Vec<Counted> {
    let one = |(subject, standing): (&Subject, &Standing)| Counted {
        key: subject.key(),
        policy: subject.policy,
        window_end: standing.window_end,
        allowed: standing.allowed,
    };
    subjects.iter().zip(standings).map(one).collect()
}

/// A request that is to be charged before it is decided.
struct ChargeFirst<C: LimitedCommand>(Limited<C>);

impl<C: LimitedCommand> Message for ChargeFirst<C> {
    type Result = ();
}

impl<C: LimitedCommand> Receive<ChargeFirst<C>> for RateLimiter {
    fn receive(&mut self, ChargeFirst(request): ChargeFirst<C>) {
        self.metrics.taken();
        if let Some((request, standings)) = self.unless_reached(request) {
            self.charge(request, standings);
        }
    }
}

/// Sends an uncharged command back to the rate limiter, because it may lead to no change.
pub(crate) fn charge_first<C: LimitedCommand, R>(handles: &Handles, work: Work<C, R>) {
    let Work { command, mut reply, .. } = work;
    let Some(due) = reply.take_due() else { return command.forward(reply, handles) };
    let DueCharge { subjects, now, .. } = *due;
    handles.rate_limiter.send(ChargeFirst(Limited { subjects, command: Ok(command), now, reply }));
}

impl RateLimiter {
    /// Lets the shared store charge a request, unless a limit is remembered as reached.
    pub(super) fn ask_the_store<C: LimitedCommand>(&mut self, request: Limited<C>) {
        let Some((request, standings)) = self.unless_reached(request) else { return };
        match request {
            Limited { subjects, command: Ok(command), now, mut reply }
                if C::IS_CHARGED_BY_CHANGE =>
            {
                let (handles, decisions) = (Arc::clone(&self.handles), Arc::clone(&self.decisions));
                reply.owes(DueCharge { subjects, now, standings, handles, decisions });
                command.forward(reply, &self.handles);
            }
            request => self.charge(request, standings),
        }
    }

    /// Returns the request with its standings, in which the counts are not known. Refuses it if a limit is
    /// remembered as reached.
    fn unless_reached<C: LimitedCommand>(
        &self,
        request: Limited<C>,
    ) -> Option<(Limited<C>, Vec<Standing>)> {
        let tuning = self.tuning.load();
        let standing = |subject: &Subject| {
            let window_end = subject.policy.window_end(request.now);
            let allowed = tuning.limits.allowed(subject.policy);
            let used = self.reached.used(subject.key(), window_end, request.now).unwrap_or(0);
            Standing { policy: subject.policy, allowed, used, window_end }
        };
        let standings: Vec<Standing> = request.subjects.iter().map(standing).collect();
        if retry_after(&standings, request.now).is_some() {
            self.refuse(request, standings);
            return None;
        }
        Some((request, standings))
    }

    fn charge<C: LimitedCommand>(&self, request: Limited<C>, standings: Vec<Standing>) {
        let counted = counted(&request.subjects, &standings);
        let handles = Arc::clone(&self.handles);
        if let Some(limit_counter) = &self.handles.limit_counter {
            limit_counter.charge(counted, move |charged| {
                handles.rate_limiter.send(Weighed { request, standings, charged });
            });
        }
    }

    /// Remembers the reached limits, so that a flood does not query the store.
    fn remember(&mut self, subjects: &[Subject], standings: &[Standing], now: Timestamp) {
        for (subject, standing) in subjects.iter().zip(standings) {
            if standing.refuses() {
                let Standing { window_end, used, .. } = *standing;
                self.reached.remember(subject.key(), window_end, used, now);
            }
        }
    }

    /// Removes limits that are no longer reached, here and in the store.
    pub(super) fn forget_ended(&mut self, now: Timestamp) {
        self.reached.forget(now);
        if self.forget.is_due(now, FORGET_EVERY) {
            let most = self.tuning.load().limits.max_tracked;
            self.handles.reader.run(move |store| {
                let forgotten = store.shared().map(|shared| shared.forget_counters(now, most));
                if let Some(Err(error)) = forgotten {
                    tracing::warn!(%error, "cannot delete the counters of ended windows; the next attempt is in a minute");
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: Timestamp = Timestamp(86_400);

    #[test]
    fn a_reached_limit_is_remembered_for_seconds_within_its_window() {
        let mut reached = Reached::default();
        reached.remember(1, END, 5, Timestamp(100));
        assert_eq!(reached.used(1, END, Timestamp(104)), Some(5));
        assert_eq!(reached.used(1, END.plus(86_400), Timestamp(104)), None, "another window");
        assert_eq!(reached.used(1, END, Timestamp(105)), None);
    }

    #[test]
    fn a_clock_that_was_ahead_leaves_no_reached_limit() {
        let mut reached = Reached::default();
        reached.remember(1, END, 5, Timestamp(7200));
        assert_eq!(reached.used(1, END, Timestamp(100)), None);
        reached.remember(2, END, 5, Timestamp(100));
        reached.forget(Timestamp(101));
        assert_eq!((reached.len(), reached.used(2, END, Timestamp(101))), (1, Some(5)));
    }

    #[test]
    fn a_limit_reached_again_is_remembered_for_the_full_time_again() {
        let mut reached = Reached::default();
        reached.remember(1, END, 5, Timestamp(100));
        reached.remember(1, END, 6, Timestamp(103));
        reached.forget(Timestamp(105));
        assert_eq!(reached.used(1, END, Timestamp(105)), Some(6));
        reached.forget(Timestamp(108));
        assert_eq!((reached.len(), reached.in_order.len()), (0, 0));
    }

    #[test]
    fn a_flood_fills_the_table_up_to_its_bound() {
        let mut reached = Reached::default();
        for key in 0..20_000 {
            reached.remember(key, END, 5, Timestamp(100));
        }
        assert_eq!(reached.len(), REMEMBERED);
    }
}
