//! Answers check-ins from memory at once, and takes over those that other processes have answered.

use super::clones::Differs;
use super::published::{Flags, Live};
use super::{CheckIn, CheckedIn, ServerRegistry};
use crate::memory::check_ins::CheckIns;
use crate::messages::Work;
use crate::runtime::mailbox::Receive;
use crate::runtime::reader::ServerKey;
use actix::Message;
use iptunnel_domain::address::caller_network;
use iptunnel_domain::audit::{Action, Actor as Who, Event};
use iptunnel_domain::fleet::{Difference, Source};
use iptunnel_domain::server::{Bearer, Server, ServerId};
use iptunnel_domain::{Refusal, Timestamp};
use iptunnel_storage::{Change, CheckIn as Seen, Write};
use std::sync::Arc;

/// Check-ins that other processes have taken.
pub(super) struct SeenElsewhere(pub(super) Vec<(ServerId, Timestamp)>);

impl Message for SeenElsewhere {
    type Result = ();
}

/// Notes that a server was there at `now`, unless it was seen later already.
pub(super) fn note_seen(live: &mut Live, id: ServerId, now: Timestamp, unwritten: &mut CheckIns) {
    if live.last_checkin().or_later(now, now) != live.last_checkin() {
        live.set_last_checkin(now);
        unwritten.note(id, Seen { server: live.number, at: now });
    }
}

impl Receive<Work<CheckIn, Server>> for ServerRegistry {
    fn receive(&mut self, work: Work<CheckIn, Server>) {
        self.metrics.taken();
        let Some(mut work) = self.current(work) else { return };
        let id = work.command.id;
        let found = self.found(id, &mut work);
        let was_read = found.is_some();
        match found {
            Some(Some(server)) => {
                self.is_fresh(&server);
            }
            // Another server may have registered it just now.
            None if self.lacks(id) => return self.look_up(work, ServerKey::Id(id), None),
            Some(None) if self.lacks(id) => {
                return self.answer(work, Err(Refusal::ServerNotFound));
            }
            _ => {}
        }
        let Some(mut live) = self.servers.live.get_mut(&id) else {
            return work.reply.refuse(Refusal::ServerNotFound);
        };
        if live.is_as_if_gone() {
            drop(live);
            return self.answer(work, Err(Refusal::ServerNotFound));
        }
        if self.is_shared() && !was_read && !live.key.accepts(&work.command.bearer) {
            drop(live);
            // Another server may have registered it again just now, with another token.
            return self.look_up(work, ServerKey::Id(id), None);
        }
        let Work { command, reply, .. } = work;
        let CheckIn { bearer, from, now, .. } = command;
        let (last, last_at) = (live.source, live.last_checkin());
        if !live.key.accepts(&bearer) {
            drop(live);
            if let Bearer::Token(_) = bearer {
                let how = Difference::Token;
                self.report_clone(&command, &Differs { how, last, last_at, refused: true });
            }
            return reply.refuse(Refusal::Unauthorized);
        }
        if live.flags.has(Flags::REVOKED) {
            return reply.grant(CheckedIn::Revoked);
        }
        let source = Source::of(from, &bearer);
        live.source = last.then(source);
        let is_first = live.flags.has(Flags::AWAITED);
        live.flags.set(Flags::AWAITED, false);
        note_seen(&mut live, id, now, &mut self.unwritten);
        drop(live);
        if is_first {
            self.note_first_check_in(&command);
        }
        if let Some(how) = last.difference(source) {
            self.report_clone(&command, &Differs { how, last, last_at, refused: false });
        }
        reply.grant(CheckedIn::Active);
    }
}

impl ServerRegistry {
    /// Writes to the log that an installed server has checked in for the first time. No request waits for it.
    fn note_first_check_in(&self, check_in: &CheckIn) {
        let CheckIn { id, from, now, .. } = *check_in;
        let from = Some(caller_network(from));
        let event = Event {
            server: Some(id),
            ..Event::new(Action::ServerCheckedIn, Who::Agent, now, from)
        };
        let change = Change(vec![Write::Audit(Arc::new(event))]);
        // If the store refuses it, only other servers do not hear of it.
        self.handles.persistence.commit(change, None, |_| {});
    }
}

impl Receive<SeenElsewhere> for ServerRegistry {
    fn receive(&mut self, SeenElsewhere(seen): SeenElsewhere) {
        self.metrics.taken();
        for (id, at) in &seen {
            if let Some(mut live) = self.servers.live.get_mut(id) {
                let last = live.last_checkin().or_later(*at, self.now);
                if last != live.last_checkin() {
                    live.set_last_checkin(last);
                    live.source = Source::default();
                }
            }
        }
    }
}
