//! Where servers share a store: it counts, and what it said is remembered where a limit is reached.

use super::{Limited, LimitedCommand, RateLimiter};
use crate::Failure;
use crate::mailbox::Receive;
use actix::Message;
use iptunnel_domain::Timestamp;
use iptunnel_domain::limit::{Standing, Subject, retry_after};
use iptunnel_storage::{Charged, Counted};
use std::sync::Arc;

/// A limit that was reached when the store was last asked.
pub(super) struct Reached {
    window_end: Timestamp,
    used: u32,
    /// Until when the store is not asked again.
    until: Timestamp,
}

/// Seconds for which a limit that was reached counts as reached: another server may have given a
/// charge back meanwhile, and a flood costs the store one question in this time.
const REACHED: u64 = 5;

/// Seconds between two times that a shared store is told to forget counters of ended windows.
const FORGET_EVERY: u64 = 60;

/// A request that the shared store has counted, or has not.
struct Weighed<C: LimitedCommand> {
    request: Limited<C>,
    standings: Vec<Standing>,
    /// `None` where the store could not.
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
            let before =
                standings.iter().map(|s| Standing { used: s.used.saturating_sub(1), ..*s });
            self.count(&before.collect::<Vec<_>>());
            return self.let_through(request, standings);
        }
        self.remember(&request.subjects, &standings, request.now);
        self.refuse(request, standings);
    }
}

impl RateLimiter {
    /// Lets the shared store count a request, unless it is known that a limit is reached.
    pub(super) fn ask_the_store<C: LimitedCommand>(&mut self, request: Limited<C>) {
        let tuning = self.tuning.load();
        let standing = |subject: &Subject| {
            let window_end = subject.policy.window_end(request.now);
            let known = self
                .reached
                .get(&subject.key())
                .filter(|reached| reached.window_end == window_end && request.now < reached.until);
            let allowed = tuning.limits.allowed(subject.policy);
            let used = known.map_or(0, |reached| reached.used);
            Standing { policy: subject.policy, allowed, used, window_end }
        };
        let standings: Vec<Standing> = request.subjects.iter().map(standing).collect();
        if retry_after(&standings, request.now).is_some() {
            return self.refuse(request, standings);
        }
        let counted = request.subjects.iter().zip(&standings).map(|(subject, standing)| Counted {
            key: subject.key(),
            policy: subject.policy,
            window_end: standing.window_end,
            allowed: standing.allowed,
        });
        let handles = Arc::clone(&self.handles);
        if let Some(charger) = &self.handles.charger {
            charger.charge(counted.collect(), move |charged| {
                handles.rate_limiter.send(Weighed { request, standings, charged });
            });
        }
    }

    /// Remembers which limits are reached, so that a flood costs the store nothing. What there is no
    /// room for is asked again.
    fn remember(&mut self, subjects: &[Subject], standings: &[Standing], now: Timestamp) {
        let room = self.tuning.load().limits.max_tracked as usize;
        for (subject, standing) in subjects.iter().zip(standings) {
            if standing.refuses() && self.reached.len() < room {
                let Standing { window_end, used, .. } = *standing;
                let reached = Reached { window_end, used, until: now.plus(REACHED) };
                self.reached.insert(subject.key(), reached);
            }
        }
    }

    /// Forgets limits that are reached no more, here and in the store.
    pub(super) fn forget_ended(&mut self, now: Timestamp) {
        if now >= self.next_forget {
            self.next_forget = now.plus(FORGET_EVERY);
            self.reached.retain(|_, reached| reached.until > now);
            let most = self.tuning.load().limits.max_tracked;
            self.handles.reader.run(move |store| {
                let forgotten = store.shared().map(|shared| shared.forget_counters(now, most));
                if let Some(Err(error)) = forgotten {
                    tracing::warn!(%error, "counters of ended windows could not be forgotten");
                }
            });
        }
    }
}
