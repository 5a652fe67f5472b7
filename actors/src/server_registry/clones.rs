//! Clones: two machines that check in as one server. See [`fleet::is_clone`] for the rule.

use super::{CheckIn, ServerRegistry};
use iptunnel_domain::Timestamp;
use iptunnel_domain::audit::{Action, Actor as Who, Event};
use iptunnel_domain::fleet::{self, Difference, Source};
use iptunnel_domain::server::ServerId;
use iptunnel_domain::time::Timer;
use std::collections::HashMap;

/// The most clones of which it is remembered that they were reported, about 20 bytes each. Further ones
/// are counted, and reported later.
const REMEMBERED: usize = 10_000;
/// Seconds between two looks for reports that are old enough to be forgotten.
const PAUSE: u64 = 60;

/// The clones that were reported within the last interval.
#[derive(Default)]
pub(super) struct Reported {
    at: HashMap<ServerId, Timestamp>,
    forget: Timer,
}

impl Reported {
    fn is_due(&self, id: ServerId, now: Timestamp, interval: u64) -> bool {
        match self.at.get(&id) {
            Some(at) => !now.is_before(at.plus(interval), interval),
            None => self.at.len() < REMEMBERED,
        }
    }

    /// Notes that a clone was reported, here or by another server.
    pub(super) fn note(&mut self, id: ServerId, at: Timestamp) {
        if self.at.len() < REMEMBERED || self.at.contains_key(&id) {
            self.at.insert(id, at);
        }
    }

    /// Forgets reports that are older than an interval.
    pub(super) fn forget_old(&mut self, now: Timestamp, interval: u64) {
        if self.forget.is_due(now, PAUSE) {
            self.at.retain(|_, at| now.is_before(at.plus(interval), interval));
        }
    }
}

/// A check-in that differs from the last one of its server.
pub(super) struct Differs {
    pub(super) how: Difference,
    /// Where the last one came from.
    pub(super) last: Source,
    /// When it came.
    pub(super) last_at: Timestamp,
    /// Whether this one was refused, because its token is not the server's.
    pub(super) refused: bool,
}

impl ServerRegistry {
    /// Reports a clone if the two check-ins are so close that two machines must have sent them: one event
    /// for each server and interval.
    pub(super) fn report_clone(&mut self, check_in: &CheckIn, differs: &Differs) {
        let CheckIn { id, from, now, .. } = *check_in;
        let interval = self.tuning.load().silence.interval;
        let seconds = now.since(differs.last_at);
        if differs.last_at.is_ahead_of(now) || !fleet::is_clone(seconds, interval) {
            return;
        }
        self.observed.clone_check_ins.inc();
        if !self.reported.is_due(id, now, interval) {
            return;
        }
        let before = match differs.last.network() {
            Some(network) => format!("{seconds} s after a check-in from {network}"),
            None => format!("{seconds} s after the last check-in"),
        };
        let what = match (differs.how, differs.refused) {
            (Difference::Network, _) => "",
            (Difference::Token, false) => ", with another token",
            (Difference::Token, true) => {
                ", with a token that is not this server's, and was refused"
            }
        };
        let event = Event {
            server: Some(id),
            address: differs.last.network(),
            detail: format!("{before}{what}"),
            ..Event::new(Action::CloneSeen, Who::Agent, now, Some(from))
        };
        if self.handles.alarms.add(event) {
            self.reported.note(id, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_is_reported_once_in_an_interval_and_memory_is_bounded() {
        let mut reported = Reported::default();
        let (now, interval) = (Timestamp(1_000_000), 60);
        for id in 0..2 * REMEMBERED as u64 {
            reported.note(ServerId(id), now);
        }
        assert_eq!(reported.at.len(), REMEMBERED);
        assert!(!reported.is_due(ServerId(1), now.plus(59), interval));
        assert!(reported.is_due(ServerId(1), now.plus(60), interval));
        assert!(!reported.is_due(ServerId(u64::MAX), now, interval), "there is no place");
        reported.forget_old(now.plus(60), interval);
        assert!(reported.at.is_empty() && reported.is_due(ServerId(u64::MAX), now, interval));
    }
}
