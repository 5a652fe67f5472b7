//! Takes over servers from another program's list.

use super::together::Together;
use super::{Import, Imported, Next, ServerRegistry, happened};
use crate::Failure;
use crate::messages::Work;
use crate::persistence::Committed;
use crate::runtime::mailbox::Receive;
use actix::Message;
use iptunnel_domain::Refusal;
use iptunnel_domain::audit::{Action, Actor as Who};
use iptunnel_domain::import::{Known, LeftAlone, Listed, Takeover};
use iptunnel_domain::server::{ServerId, ServerNumber};
use iptunnel_storage::{ReadError, Store};
use std::collections::HashSet;
use std::sync::Arc;

/// The number of the server with the id of a row, and of that at its address, as far as memory knows them.
type Numbers = (Option<ServerNumber>, Option<ServerNumber>);

/// Servers to import, each with what the store has of it.
struct Compared {
    work: Work<Import>,
    known: Vec<Known>,
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
        let rows = work.command.servers.iter();
        let numbers: Vec<Numbers> = rows.map(|row| self.numbers_of(row)).collect();
        let handles = Arc::clone(&self.handles);
        self.handles.persistence.follow(move |committed| {
            if let Committed::Failed(failure) = committed {
                return work.reply.fail(failure);
            }
            let back = Arc::clone(&handles);
            handles.reader.run(move |store| {
                match back.reader.noted(read(store, &work.command.servers, &numbers)) {
                    Ok(known) => {
                        back.server_registry.send(Compared { work, known });
                    }
                    Err(_) => work.reply.fail(Failure::StorageUnavailable),
                }
            });
        });
    }
}

/// Reads what the store has of each row.
fn read(
    store: &dyn Store,
    rows: &[(ServerId, Listed)],
    numbers: &[Numbers],
) -> Result<Vec<Known>, ReadError> {
    if let Some(shared) = store.shared() {
        let (addresses, ids): (Vec<ServerId>, Vec<ServerId>) =
            rows.iter().map(|(address, one)| (*address, one.id)).unzip();
        let found = shared.servers_of(&ids)?.into_iter().zip(shared.servers_at(&addresses)?);
        return Ok(found.map(|(by_id, at_address)| Known { by_id, at_address }).collect());
    }
    let numbered = |number: Option<ServerNumber>| match number {
        Some(number) => store.server(number),
        None => Ok(None),
    };
    let known = numbers.iter().map(|(id, address)| {
        let by_id = numbered(*id)?;
        let at_address = if id == address { by_id.clone() } else { numbered(*address)? };
        Ok(Known { by_id, at_address })
    });
    known.collect()
}

impl Receive<Compared> for ServerRegistry {
    fn receive(&mut self, Compared { mut work, known }: Compared) {
        self.metrics.taken();
        let generation = self.generation_of(&mut work.reply);
        if generation < self.generation {
            return work.reply.fail(Failure::StorageUnavailable);
        }
        let mut rows = work.command.servers.iter().zip(&known);
        if !rows.all(|(row, known)| self.is_current(row, known)) {
            // What was read is out of date already, or soon will be.
            if let Some(work) = work.again() {
                self.receive(work);
            }
            return;
        }
        let (imported, next) = self.decide(&work.command, known);
        if work.command.dry_run || next.is_empty() {
            return self.handles.answer_once_confirmed(work.reply, generation, Ok(imported));
        }
        if !work.reply.claim() {
            return;
        }
        let Work { command: Import { by, from, now, .. }, reply, .. } = work;
        let together = Together::new(next.len(), Some((reply, imported)));
        for next in next {
            let who = (Who::Operator, by.as_str());
            let event = happened(Action::ServerImported, who, next.server(), now, Some(from));
            self.write_together(next, event, generation, &together);
        }
    }
}

impl ServerRegistry {
    fn numbers_of(&self, (address, listed): &(ServerId, Listed)) -> Numbers {
        let at_address = self.at(*address).and_then(|id| self.servers.number_of(id));
        (self.servers.number_of(listed.id), at_address)
    }

    /// Whether what was read of a row is not older than memory, and nothing of it is about to change.
    fn is_current(&mut self, row: &(ServerId, Listed), known: &Known) -> bool {
        let found = [&known.by_id, &known.at_address];
        if !found.into_iter().flatten().all(|server| self.is_fresh(server)) {
            return false;
        }
        let numbers = found.map(|found| found.as_ref().map(|server| server.number));
        // Over a shared store, memory may not have heard yet that a server is gone.
        if !self.is_shared() && self.numbers_of(row) != numbers.into() {
            return false;
        }
        let (address, listed) = row;
        let there = known.at_address.as_ref().map_or(*address, |server| server.id);
        ![*address, listed.id, there].iter().any(|id| self.changing.contains_key(id))
    }

    /// Decides on each row: what is to be written, and what is told of it.
    fn decide(&mut self, import: &Import, known: Vec<Known>) -> (Imported, Vec<Next>) {
        let mut imported = Imported::default();
        let mut next = Vec::new();
        let mut used = HashSet::new();
        for ((address, listed), known) in import.servers.iter().cloned().zip(known) {
            let (id, is_revoked) = (listed.id, listed.revoked);
            // Twice in the list: the first one counts.
            let is_first = used.insert(id) & (used.insert(address) || address == id);
            let takeover = if is_first {
                Takeover::decide(listed, address, &known, ServerNumber(self.next_number))
            } else {
                let why = LeftAlone::AddressTaken;
                Takeover::LeftAlone { why, is_not_revoked: is_revoked }
            };
            match takeover {
                Takeover::New(server) => {
                    imported.new += 1;
                    // A dry run uses no numbers up.
                    self.next_number += u32::from(!import.dry_run);
                    next.push(Next::Is(server));
                }
                Takeover::Replaces(server, was) => {
                    imported.new += 1;
                    imported.still_revoked.extend((server.revoked && !is_revoked).then_some(id));
                    next.push(Next::Replaced(server, was));
                }
                Takeover::Changed(server) => {
                    imported.changed += 1;
                    next.push(Next::Is(server));
                }
                Takeover::Unchanged => imported.unchanged += 1,
                Takeover::LeftAlone { why, is_not_revoked } => {
                    imported.not_revoked.extend(is_not_revoked.then_some(id));
                    match why {
                        LeftAlone::ChangedHere => imported.changed_here.push(id),
                        LeftAlone::OtherAddress => imported.other_address.push(id),
                        LeftAlone::AddressTaken => imported.address_taken.push(id),
                    }
                }
            }
        }
        (imported, next)
    }
}
