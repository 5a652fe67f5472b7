//! Takes over servers from another program's list.

use super::together::Together;
use super::{Import, Imported, Next, ServerRegistry, happened, sweep};
use crate::Failure;
use crate::messages::Work;
use crate::persistence::Committed;
use crate::runtime::mailbox::Receive;
use actix::Message;
use iptunnel_domain::Refusal;
use iptunnel_domain::audit::{Action, Actor as Who};
use iptunnel_domain::server::{Listed, Server, ServerId, ServerNumber};
use std::sync::Arc;

/// Servers to import, each with what the store has under its id and, if it is shared, at its address.
struct Compared {
    work: Work<Import>,
    stored: Vec<Option<Server>>,
    at: Vec<Option<Server>>,
}

impl Message for Compared {
    type Result = ();
}

impl Receive<Work<Import>> for ServerRegistry {
    fn receive(&mut self, mut work: Work<Import>) {
        self.metrics.taken();
        let generation = self.generation_of(&mut work.reply);
        if generation < self.generation {
            return work.reply.fail(Failure::StorageUnavailable);
        }
        if work.command.servers.len() > Import::STEP {
            let words = format!("servers must be at most {} at a time.", Import::STEP);
            return work.reply.refuse(Refusal::InvalidField(words));
        }
        let numbers: Vec<Option<ServerNumber>> =
            work.command.servers.iter().map(|(_, one)| self.servers.number_of(one.id)).collect();
        let handles = Arc::clone(&self.handles);
        self.handles.persistence.follow(move |committed| {
            if let Committed::Failed(failure) = committed {
                return work.reply.fail(failure);
            }
            let back = Arc::clone(&handles);
            handles.reader.run(move |store| {
                let rows = &work.command.servers;
                let (stored, at) = match store.shared() {
                    Some(shared) => {
                        let (addresses, ids): (Vec<ServerId>, Vec<ServerId>) =
                            rows.iter().map(|(address, one)| (*address, one.id)).unzip();
                        (shared.servers_of(&ids), shared.servers_at(&addresses))
                    }
                    None => {
                        let known = numbers.iter().zip(rows);
                        let keys: Vec<_> = known
                            .filter_map(|(number, (_, one))| number.map(|number| (one.id, number)))
                            .collect();
                        let found = sweep::read(store, &keys).map(|found| {
                            let mut found = found.into_iter();
                            let next = |number: &Option<_>| number.and_then(|_| found.next()?);
                            numbers.iter().map(next).collect()
                        });
                        (found, Ok(Vec::new()))
                    }
                };
                match (back.reader.noted(stored), back.reader.noted(at)) {
                    (Ok(stored), Ok(at)) => {
                        back.server_registry.send(Compared { work, stored, at });
                    }
                    _ => work.reply.fail(Failure::StorageUnavailable),
                }
            });
        });
    }
}

impl Receive<Compared> for ServerRegistry {
    fn receive(&mut self, compared: Compared) {
        self.metrics.taken();
        let Compared { mut work, stored, at } = compared;
        let generation = self.generation_of(&mut work.reply);
        if generation < self.generation {
            return work.reply.fail(Failure::StorageUnavailable);
        }
        let is_fresh = stored.iter().chain(&at).flatten().all(|one| self.is_fresh(one));
        let rows = &work.command.servers;
        let is_changing = |id: &ServerId| self.changing.contains_key(id);
        if !is_fresh
            || rows.iter().any(|(address, one)| is_changing(address) || is_changing(&one.id))
        {
            // What was read is out of date already, or soon will be.
            if let Some(work) = work.again() {
                self.receive(work);
            }
            return;
        }
        let mut imported = Imported::default();
        let mut next = Vec::new();
        let mut used = std::collections::HashSet::new();
        for ((address, listed), stored) in rows.iter().cloned().zip(stored) {
            let id = listed.id;
            // Twice in the list: the first one counts.
            let is_first = used.insert(id) & (used.insert(address) || address == id);
            if !is_first {
                imported.address_taken.push(id);
            } else if let Some(server) = self.compare(address, listed, stored, &mut imported) {
                next.push(server);
            }
        }
        if work.command.dry_run || next.is_empty() {
            return self.handles.answer_once_confirmed(work.reply, generation, Ok(imported));
        }
        if !work.reply.claim() {
            return;
        }
        let Work { command: Import { by, from, now, .. }, reply, .. } = work;
        let together = Together::new(next.len(), Some((reply, imported)));
        for server in next {
            let who = (Who::Operator, by.as_str());
            let event = happened(Action::ServerImported, who, &server, now, Some(from));
            self.write_together(Next::Is(server), event, generation, &together);
        }
    }
}

impl ServerRegistry {
    /// Returns what is to be written of a server in the list, and notes in `imported` what that is.
    fn compare(
        &mut self,
        address: ServerId,
        listed: Listed,
        stored: Option<Server>,
        imported: &mut Imported,
    ) -> Option<Server> {
        let id = listed.id;
        let Some(server) = stored else {
            if self.at(address).is_some_and(|id| self.servers.number_of(id).is_some()) {
                imported.address_taken.push(id);
                return None;
            }
            imported.new += 1;
            let number = ServerNumber(self.next_number);
            self.next_number += 1;
            return Some(Server::import(number, address, listed));
        };
        let again = server.import_again(listed);
        match &again {
            Some(_) => imported.changed += 1,
            None if server.changed_here => imported.changed_here.push(id),
            None => imported.unchanged += 1,
        }
        again
    }
}
