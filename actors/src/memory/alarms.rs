//! Events that need a person, before they are written to the audit log: clones, a silent fleet, spent codes
//! that another machine has tried.
//!
//! No request waits for them. They are written a few times a second, at most [`A_MINUTE`] in a minute, so
//! that nobody can fill the log with them.

use iptunnel_domain::audit::Event;
use prometheus_client::metrics::counter::Counter;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The most events that one server writes in a minute: about 15 MB of log in a day, if it goes on.
const A_MINUTE: usize = 50;

/// Events that are not written yet.
#[derive(Default)]
pub(crate) struct Alarms {
    inner: Mutex<Inner>,
    not_kept: Counter,
}

#[derive(Default)]
struct Inner {
    events: Vec<Event>,
    /// The minutes since the Unix epoch, and the events of that minute.
    minute: (u64, usize),
}

impl Alarms {
    pub(crate) fn new(not_kept: Counter) -> Self {
        Self { inner: Mutex::default(), not_kept }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event. Returns whether it is kept; it is counted if there were too many in its minute.
    pub(crate) fn add(&self, event: Event) -> bool {
        let mut inner = self.lock();
        let minute = event.at.0 / 60;
        if inner.minute.0 != minute {
            inner.minute = (minute, 0);
        }
        let is_kept = inner.minute.1 < A_MINUTE && inner.events.len() < A_MINUTE;
        if is_kept {
            inner.minute.1 += 1;
            inner.events.push(event);
        } else {
            self.not_kept.inc();
        }
        is_kept
    }

    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.lock().events)
    }

    /// Takes back events that the store has refused. They are written at the next opportunity.
    pub(crate) fn take_back(&self, mut events: Vec<Event>) {
        let mut inner = self.lock();
        events.append(&mut inner.events);
        inner.events = events;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iptunnel_domain::Timestamp;
    use iptunnel_domain::audit::{Action, Actor};

    fn event(at: u64) -> Event {
        Event::new(Action::CloneSeen, Actor::Agent, Timestamp(at), None)
    }

    #[test]
    fn a_flood_writes_a_bounded_number_of_events_in_a_minute() {
        let alarms = Alarms::default();
        let kept = (0..1000).filter(|_| alarms.add(event(60)) && !alarms.take().is_empty()).count();
        assert_eq!((kept, alarms.not_kept.get()), (A_MINUTE, 1000 - A_MINUTE as u64));
        assert!(alarms.add(event(120)), "the next minute");
    }

    #[test]
    fn events_that_the_store_refused_are_written_later_in_their_order() {
        let alarms = Alarms::default();
        alarms.add(event(1));
        let refused = alarms.take();
        alarms.add(event(2));
        alarms.take_back(refused);
        let times: Vec<u64> = alarms.take().iter().map(|event| event.at.0).collect();
        assert_eq!(times, [1, 2]);
    }
}
