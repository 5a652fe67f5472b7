//! What operators change: revocations, notes, deletions.

use super::{Delete, Next, ServerRegistry, SetNote, SetRevoked, happened};
use crate::messages::{Command, Work};
use crate::runtime::mailbox::Receive;
use crate::runtime::reader::ServerKey;
use iptunnel_domain::Refusal;
use iptunnel_domain::audit::{Action, Actor as Who, Event};
use iptunnel_domain::server::{Deletion, Server, ServerId};

impl Receive<Work<SetRevoked, Server>> for ServerRegistry {
    fn receive(&mut self, work: Work<SetRevoked, Server>) {
        self.metrics.taken();
        let SetRevoked { id, revoked, by, from, now } = work.command.clone();
        let action = if revoked { Action::ServerRevoked } else { Action::ServerRestored };
        self.change(work, id, |server| {
            // A deleted server that was revoked can be restored.
            let is_known = !server.deleted || server.revoked;
            let Some(server) = server.set_revoked(revoked).filter(|_| is_known) else {
                return unchanged(is_known);
            };
            let event = happened(action, (Who::Operator, &by), &server, now, Some(from));
            Ok(Some((Next::Is(server), event)))
        });
    }
}

impl Receive<Work<SetNote, Server>> for ServerRegistry {
    fn receive(&mut self, work: Work<SetNote, Server>) {
        self.metrics.taken();
        let SetNote { id, note, by, from, now } = work.command.clone();
        self.change(work, id, |server| {
            let is_known = !server.deleted;
            let Some(server) = server.set_note(note).filter(|_| is_known) else {
                return unchanged(is_known);
            };
            let who = (Who::Operator, by.as_str());
            let event = Event {
                detail: server.note.clone(),
                ..happened(Action::ServerNoted, who, &server, now, Some(from))
            };
            Ok(Some((Next::Is(server), event)))
        });
    }
}

impl Receive<Work<Delete, Server>> for ServerRegistry {
    fn receive(&mut self, work: Work<Delete, Server>) {
        self.metrics.taken();
        let Delete { id, by, from, now } = work.command.clone();
        self.change(work, id, |server| {
            let next = deletion(server.delete(now), server).ok_or(Refusal::ServerNotFound)?;
            let who = (Who::Operator, by.as_str());
            let event = happened(Action::ServerDeleted, who, server, now, Some(from));
            Ok(Some((next, event)))
        });
    }
}

/// Returns what becomes of a server's record that is deleted.
pub(super) fn deletion(deletion: Option<Deletion>, server: &Server) -> Option<Next> {
    Some(match deletion? {
        Deletion::Remove => Next::Gone(server.clone()),
        Deletion::Hide(server) => Next::Is(server),
    })
}

/// What is written of a server, if anything.
type Changed = Result<Option<(Next, Event)>, Refusal>;

const fn unchanged(is_known: bool) -> Changed {
    if is_known { Ok(None) } else { Err(Refusal::ServerNotFound) }
}

impl ServerRegistry {
    /// Changes a server's record for an operator. `change` returns the new record and its audit event, or
    /// `None` if there is nothing to change.
    fn change<C: Command<Answer = ()>>(
        &mut self,
        work: Work<C, Server>,
        id: ServerId,
        change: impl FnOnce(&Server) -> Changed,
    ) where
        Self: Receive<Work<C, Server>>,
    {
        let Some(mut work) = self.current(work).and_then(|work| self.park(id, work)) else {
            return;
        };
        let key = ServerKey::Id(id);
        let found = self.found(id, &mut work);
        if found.is_none() && self.lacks(id) {
            return self.look_up(work, key, None);
        }
        let looked_up = found.is_some();
        // A record may have been given to another server while it was read.
        let found = found.flatten().filter(|server| server.id == id && self.is_fresh(server));
        let Some(server) = found else {
            return match self.servers.number_of(id) {
                Some(number) if looked_up => self.look_up_again(work, key, Some(number)),
                Some(number) => self.look_up(work, key, Some(number)),
                None => self.answer(work, Err(Refusal::ServerNotFound)),
            };
        };
        match change(&server) {
            Err(refusal) => self.answer(work, Err(refusal)),
            Ok(None) => self.answer(work, Ok(())),
            Ok(Some((next, event))) if work.reply.claim() => {
                self.write(next, event, work, |reply, _| reply.grant(()));
            }
            Ok(Some(_)) => {}
        }
    }
}
