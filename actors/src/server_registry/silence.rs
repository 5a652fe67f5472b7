//! Silent servers: how many there are, and when they are so many that operators are told.

use super::published::{Flags, Silent};
use super::{ServerRegistry, Servers};
use crate::runtime::mailbox::Receive;
use actix::Message;
use iptunnel_domain::Timestamp;
use iptunnel_domain::audit::{Action, Actor as Who, Event};
use iptunnel_domain::time::Timer;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

/// Seconds between two counts. Each examines all servers, on a reader thread: a million take about 50 ms.
const PAUSE: u64 = 5;

/// The subject of the event that a fleet is silent.
const BEGINS: &str = "silent";
/// The subject of the event that it is not silent any more.
const ENDS: &str = "over";

/// The servers were counted.
struct Counted {
    servers: u64,
    of: u64,
}

impl Message for Counted {
    type Result = ();
}

/// Another server has reported that the fleet is silent, or is not any more.
pub(crate) struct Heard(bool);

impl Heard {
    /// Returns the message about an event of [`Action::FleetSilent`].
    pub(crate) fn of(event: &Event) -> Self {
        Self(event.subject == BEGINS)
    }
}

impl Message for Heard {
    type Result = ();
}

/// What the registry knows of silence.
#[derive(Default)]
pub(super) struct Watch {
    count: Timer,
    is_counting: Arc<AtomicBool>,
    is_silent: bool,
}

impl Servers {
    /// Returns how many servers are silent, as last counted.
    pub fn silent(&self) -> Silent {
        *self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many servers that are not revoked are not known to have been seen since `instant`, and
    /// how many there are. A check-in that is dated after `now` does not count: it was dated by another
    /// clock, or before this one was set back.
    fn unseen_since(&self, instant: Timestamp, now: Timestamp) -> (u64, u64) {
        let is_unseen = |at: Timestamp| at < instant || at.is_ahead_of(now);
        let live = self.live.iter();
        live.filter(|live| !live.flags.has(Flags::REVOKED) && !live.flags.has(Flags::DELETED))
            .fold((0, 0), |(silent, all), live| {
                (silent + u64::from(is_unseen(live.last_checkin())), all + 1)
            })
    }
}

impl ServerRegistry {
    /// Counts the silent servers on another thread, if it is time.
    pub(super) fn look_for_silence(&mut self) {
        let is_due = self.silence.count.is_due(self.now, PAUSE);
        if !is_due || self.silence.is_counting.swap(true, Ordering::Relaxed) {
            return;
        }
        let (now, instant) = (self.now, self.tuning.load().silence.since(self.now));
        let (servers, handles) = (Arc::clone(&self.servers), Arc::clone(&self.handles));
        let is_counting = Arc::clone(&self.silence.is_counting);
        self.handles.reader.run(move |_| {
            let (silent, of) = servers.unseen_since(instant, now);
            handles.server_registry.send(Counted { servers: silent, of });
            is_counting.store(false, Ordering::Relaxed);
        });
    }
}

impl Receive<Counted> for ServerRegistry {
    fn receive(&mut self, Counted { servers, of }: Counted) {
        self.metrics.taken();
        self.observed.servers_silent.set(servers.cast_signed());
        let rule = self.tuning.load().silence;
        let was = self.silence.is_silent;
        let is_silent = rule.is_fleet_silent(was, servers, of);
        if is_silent != was && (was || self.listening.covers(rule.seconds())) {
            let seconds = rule.seconds();
            let event = Event {
                subject: if is_silent { BEGINS } else { ENDS }.to_owned(),
                detail: format!(
                    "{servers} of {of} servers have not checked in for more than {seconds} s"
                ),
                ..Event::new(Action::FleetSilent, Who::Agent, self.now, None)
            };
            if self.handles.alarms.add(event) {
                self.silence.is_silent = is_silent;
            }
        }
        let (after_seconds, is_fleet) = (rule.seconds(), self.silence.is_silent);
        let silent = Silent { servers, of, after_seconds, is_fleet };
        *self.servers.silent.lock().unwrap_or_else(PoisonError::into_inner) = silent;
    }
}

impl Receive<Heard> for ServerRegistry {
    fn receive(&mut self, Heard(is_silent): Heard) {
        self.metrics.taken();
        self.silence.is_silent = is_silent;
    }
}
