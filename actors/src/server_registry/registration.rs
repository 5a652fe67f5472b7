//! Registers servers, and registers them again.

use super::check_ins::note_seen;
use super::{Changing, Next, Register, ServerRegistry, happened};
use crate::Failure;
use crate::messages::Work;
use crate::runtime::mailbox::Receive;
use crate::runtime::reader::ServerKey;
use crate::runtime::reply::Reply;
use actix::Message;
use iptunnel_domain::Refusal;
use iptunnel_domain::access::TokenNumber;
use iptunnel_domain::audit::{Action, Actor as Who, Event};
use iptunnel_domain::server::{EnrolledBy, Server, ServerId, ServerNumber};
use std::sync::Arc;

/// A registration, and how many servers its access token has enrolled in a shared store.
struct Counted(Work<Register, Server>, u64);

impl Message for Counted {
    type Result = ();
}

fn registered(server: &Server, asked: &Register) -> Event {
    let activation = match asked.credential.by {
        EnrolledBy::Activation(name) => Some(name),
        _ => None,
    };
    Event {
        activation,
        code: asked.code,
        ..happened(
            Action::ServerRegistered,
            (Who::Agent, &asked.by),
            server,
            asked.now,
            Some(asked.from),
        )
    }
}

impl Receive<Work<Register, Server>> for ServerRegistry {
    fn receive(&mut self, work: Work<Register, Server>) {
        self.metrics.taken();
        self.register(work, None);
    }
}

impl Receive<Counted> for ServerRegistry {
    fn receive(&mut self, Counted(work, enrolled): Counted) {
        self.metrics.taken();
        self.register(work, Some(enrolled));
    }
}

impl ServerRegistry {
    /// Registers a server. `enrolled` is how many servers its access token has enrolled in a shared store,
    /// if that was counted.
    fn register(&mut self, work: Work<Register, Server>, enrolled: Option<u64>) {
        let address = work.command.address_id;
        let id = self.at(address).unwrap_or(address);
        let Some(mut work) = self.current(work).and_then(|work| self.park(id, work)) else {
            return;
        };
        let key = ServerKey::Address(address);
        let found = self.found(id, &mut work);
        if found.is_none() && self.at(address).is_none_or(|id| self.lacks(id)) && self.is_shared() {
            return self.look_up(work, key, None);
        }
        let number = self.at(address).and_then(|id| self.servers.number_of(id));
        match (found, number) {
            (None | Some(None), None) => self.register_new(work, enrolled),
            (Some(Some(server)), _) if self.is_fresh(&server) => {
                self.register_again(work, server, enrolled);
            }
            (None, number) => self.look_up(work, key, number),
            (Some(_), number) => self.look_up_again(work, key, number),
        }
    }

    fn register_new(&mut self, work: Work<Register, Server>, enrolled: Option<u64>) {
        let Some(work) = self.may_enrol(work, None, enrolled).filter(|work| work.reply.claim())
        else {
            return;
        };
        let Register { address_id, ip, hostname, credential, now, .. } = &work.command;
        let mut id = *address_id;
        // An imported server may have this id, at another address.
        while self.servers.live.contains_key(&id) {
            id = ServerId(id.0.wrapping_add(1));
        }
        if id != *address_id {
            self.owners.expect(*address_id, id);
        }
        let number = ServerNumber(self.next_number);
        let place = (*address_id, *ip);
        let server = Server::register(number, id, place, hostname.clone(), credential, *now);
        self.next_number += 1;
        self.write_registered(work, server, true);
    }

    fn register_again(
        &mut self,
        work: Work<Register, Server>,
        server: Server,
        enrolled: Option<u64>,
    ) {
        // It may have another id than its address: then its changes stand under that.
        let Some(work) = self.park(server.id, work) else { return };
        let Register { hostname, credential, from_its_address, is_good, now, .. } = &work.command;
        let (hostname, is_good) = (hostname.clone(), is_good.as_ref());
        let next = server.register_again(hostname, credential, *from_its_address, is_good, *now);
        let next = match next {
            // These answers depend on what was read.
            Err(refusal) => return self.answer(work, Err(refusal)),
            Ok(None) if credential.made_ms.is_none() => {
                // It counts as a check-in.
                if let Some(mut live) = self.servers.live.get_mut(&server.id) {
                    note_seen(&mut live, server.id, *now, &mut self.unwritten);
                }
                let server = Server { last_checkin: *now, ..server };
                return self.answer(work, Ok(server));
            }
            Ok(None) => return self.answer(work, Ok(server)),
            Ok(Some(next)) => next,
        };
        let is_counted = server.enrolled_by == credential.by && !server.deleted;
        let may = |this: &mut Self, work| {
            if is_counted { Some(work) } else { this.may_enrol(work, Some(server), enrolled) }
        };
        if let Some(work) = may(self, work).filter(|work| work.reply.claim()) {
            self.write_registered(work, next, !is_counted);
        }
    }

    /// Returns the registration of one more server, if its access token may enrol it.
    fn may_enrol(
        &mut self,
        mut work: Work<Register, Server>,
        found: Option<Server>,
        enrolled: Option<u64>,
    ) -> Option<Work<Register, Server>> {
        let EnrolledBy::Token(token) = work.command.credential.by else { return Some(work) };
        if work.command.max_servers == 0 {
            return Some(work);
        }
        let pending = |changing: &Changing| changing.enrols == Some(token);
        let enrolled = match (self.is_shared(), enrolled) {
            (false, _) => {
                let pending = self.changing.values().filter(|changing| pending(changing)).count();
                self.owners.enrolled(token) + pending as u64
            }
            // The database may have counted the one that is pending.
            (true, _) if self.changing.values().any(pending) => {
                let id = self.changing.iter().find(|(_, one)| pending(one)).map(|(id, _)| *id)?;
                return self.park(id, work);
            }
            (true, Some(enrolled)) => enrolled,
            (true, None) => {
                work.found = Some(found);
                self.count_enrolled(work, token);
                return None;
            }
        };
        if enrolled < u64::from(work.command.max_servers) {
            return Some(work);
        }
        self.answer(work, Err(Refusal::TooManyServers));
        None
    }

    /// Counts the servers that an access token has enrolled in a shared store, and then goes on.
    fn count_enrolled(&self, work: Work<Register, Server>, token: TokenNumber) {
        let (reader, back) = (self.handles.reader.clone(), Arc::clone(&self.handles));
        self.handles.reader.run(move |store| {
            let Some(shared) = store.shared() else { return };
            match reader.noted(shared.enrolled(token)) {
                Ok(enrolled) => {
                    back.server_registry.send(Counted(work, enrolled));
                }
                Err(_) => work.reply.fail(Failure::StorageUnavailable),
            }
        });
    }

    fn write_registered(&mut self, work: Work<Register, Server>, server: Server, enrols: bool) {
        let event = registered(&server, &work.command);
        if let EnrolledBy::Token(token) = server.enrolled_by {
            self.changing.entry(server.id).or_default().enrols = enrols.then_some(token);
        }
        self.write(Next::Is(server), event, work, Reply::grant);
    }
}
