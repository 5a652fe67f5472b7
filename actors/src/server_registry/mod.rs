//! The server-registry actor: the only writer of servers.
//!
//! The few bytes of a server that every check-in needs stay in memory, published for readers in a
//! [`DashMap`](dashmap::DashMap). The rest stays on disk and is read when a record changes. Memory
//! follows the disk here: a server appears, is revoked or restored in memory once that is on disk.
//! Check-ins go the other way: they are answered at once and written together, a little later.

mod published;

pub use crate::messages::servers::{CheckIn, CheckedIn, Register, SetNote, SetRevoked};
pub(crate) use published::Registered;
pub use published::{Filter, Servers, Sort};

use crate::Failure;
use crate::handles::Handles;
use crate::memory::check_ins::CheckIns;
use crate::memory::record_cache::Parked;
use crate::messages::{Command, Shutdown, Tick, Work};
use crate::persistence::Committed;
use crate::runtime::mailbox::{Actor, Receive};
use crate::runtime::metrics::{ActorMetrics, Metrics};
use crate::runtime::reply::Reply;
use crate::runtime::tuning::ActorSettings;
use actix::Message;
use arc_swap::ArcSwap;
use iptunnel_domain::audit::{Action, Actor as Who, Event};
use iptunnel_domain::server::{Server, ServerId, ServerNumber};
use iptunnel_domain::time::Timer;
use iptunnel_domain::{Refusal, Timestamp};
use iptunnel_storage::{Change, CheckIn as Seen, ReadError, Store, Write};
use published::Live;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};

/// A record as read from the store, in this generation of the store.
struct Found(Server, u32);

impl Message for Found {
    type Result = ();
}

/// Check-ins that other processes have taken.
struct SeenElsewhere(Vec<(ServerId, Timestamp)>);

impl Message for SeenElsewhere {
    type Result = ();
}

/// A server's record has been written.
struct Written {
    server: Server,
    /// The generation of the store in which it was decided.
    generation: u32,
    /// Answers the caller once memory has the record, so that the caller's next request finds it there.
    /// If the actor has already shut down, this message is dropped and the outcome is unknown.
    answer: Box<dyn FnOnce(Server) + Send>,
}

impl Message for Written {
    type Result = ();
}

/// A server's record could not be written.
struct NotWritten(ServerId);

impl Message for NotWritten {
    type Result = ();
}

/// The store works again after it had refused: this is its generation. Sent by persistence.
pub(crate) struct Recovered(pub(crate) u32);

impl Message for Recovered {
    type Result = ();
}

/// The only writer of servers.
pub(crate) struct ServerRegistry {
    servers: Arc<Servers>,
    next_number: u32,
    /// The generation of the store that memory follows.
    generation: u32,
    /// Servers with a pending change, and the commands that wait for its end.
    changing: HashMap<ServerId, Vec<Parked>>,
    /// The unwritten check-ins: the last one of each server.
    unwritten: CheckIns,
    flush: Timer,
    /// The time of the last tick.
    now: Timestamp,
    tuning: Arc<ArcSwap<ActorSettings>>,
    handles: Arc<Handles>,
    metrics: ActorMetrics,
    observed: Metrics,
    ended: bool,
}

impl ServerRegistry {
    pub(crate) fn new(
        registered: Registered,
        tuning: Arc<ArcSwap<ActorSettings>>,
        handles: Arc<Handles>,
        observed: &Metrics,
        now: Timestamp,
    ) -> Self {
        let Registered { servers, last_number } = registered;
        Self {
            servers,
            next_number: last_number.map_or(0, |last| last.0 + 1),
            generation: 0,
            changing: HashMap::new(),
            unwritten: CheckIns::default(),
            flush: Timer::default(),
            now,
            tuning,
            handles,
            metrics: observed.actor("server_registry"),
            observed: observed.clone(),
            ended: false,
        }
    }

    /// Lets the command wait for the end of the pending change. Returns the command if there is none.
    fn park<C>(&mut self, id: ServerId, mut work: Work<C, Server>) -> Option<Work<C, Server>>
    where
        C: Command,
        Self: Receive<Work<C, Server>>,
    {
        let Some(parked) = self.changing.get_mut(&id) else { return Some(work) };
        let handles = Arc::clone(&self.handles);
        // The record that was read is out of date when the change has ended.
        work.found = None;
        parked.push(Box::new(move || {
            handles.server_registry.send(work);
        }));
        None
    }

    /// Ends a pending change. The waiting commands go on, in the order of arrival.
    fn has_ended(&mut self, id: ServerId) {
        for command in self.changing.remove(&id).unwrap_or_default() {
            command();
        }
    }

    /// Whether a record that was read is not older than memory. A newer one, written by another process,
    /// is published.
    fn is_fresh(&mut self, server: &Server) -> bool {
        let known = self.servers.live.get(&server.id).filter(|live| !live.is_void);
        let Some(known) = known.map(|live| live.version) else {
            self.publish(server);
            return true;
        };
        // Memory has half of a version's bits. A distance of more than half their range is a step back.
        let ahead = (server.version as u16).wrapping_sub(known);
        if (1..=u16::MAX / 2).contains(&ahead) {
            self.publish(server);
        }
        ahead <= u16::MAX / 2
    }

    /// The request, unless what it rests on was read in an earlier generation of the store than memory
    /// follows.
    fn current<C: Command>(&self, mut work: Work<C, Server>) -> Option<Work<C, Server>> {
        if self.generation_of(&mut work.reply) >= self.generation {
            return Some(work);
        }
        work.reply.fail(Failure::StorageUnavailable);
        None
    }

    /// What the store was found to hold of a server, if it was looked at. What it does not hold any
    /// more was lost with a primary, and leaves memory.
    fn found<C>(&self, id: ServerId, work: &mut Work<C, Server>) -> Option<Option<Server>>
    where
        C: Command,
    {
        let found = work.found.take();
        if matches!(found, Some(None)) {
            self.servers.remove_void(id);
        }
        found
    }

    /// Publishes the record on disk for readers and check-ins.
    fn publish(&mut self, server: &Server) {
        let mut live = Live::of(server);
        if let Some(before) = self.servers.live.get(&server.id) {
            let (now, known) = (self.now, before.last_checkin());
            live.set_last_checkin(live.last_checkin().or_later(known, now));
        }
        self.servers.insert(server.id, live);
    }

    /// Reads a server's record once everything sent before is on disk, and forwards the command with
    /// it.
    fn look_up<C>(&self, mut work: Work<C, Server>, id: ServerId, number: Option<ServerNumber>)
    where
        C: Command,
        Self: Receive<Work<C, Server>>,
    {
        self.generation_of(&mut work.reply);
        let handles = Arc::clone(&self.handles);
        self.handles.persistence.follow(move |committed| {
            if let Committed::Failed(failure) = committed {
                return work.reply.fail(failure);
            }
            let back = Arc::clone(&handles);
            let forward = move |work| {
                back.server_registry.send(work);
            };
            if handles.is_shared() {
                return handles.reader.look_up(work, id, forward);
            }
            let read =
                move |store: &dyn Store| number.map_or(Ok(None), |number| store.server(number));
            handles.reader.look_up_with(work, read, forward);
        });
    }

    /// Reads the record again, a few times, because the last read was older than memory.
    fn look_up_again<C>(&self, work: Work<C, Server>, id: ServerId, number: Option<ServerNumber>)
    where
        C: Command,
        Self: Receive<Work<C, Server>>,
    {
        if let Some(work) = work.again() {
            self.look_up(work, id, number);
        }
    }

    /// Returns the generation of the store in which a request was first handled. After a new generation
    /// began, for example by the promotion of a standby, earlier reads may differ from the store.
    fn generation_of<A>(&self, reply: &mut Reply<A>) -> u32 {
        reply.generation(self.handles.persistence.generation())
    }

    /// Answers a command that changes nothing, once the state that the answer depends on is on disk.
    fn answer<C: Command>(&self, work: Work<C, Server>, decision: Result<C::Answer, Refusal>) {
        let mut reply = work.reply;
        let generation = self.generation_of(&mut reply);
        self.handles.answer_once_confirmed(reply, generation, decision);
    }

    /// Writes a server's record, and then answers with `grant`.
    fn write<C>(
        &mut self,
        server: Server,
        event: Event,
        mut work: Work<C, Server>,
        grant: impl FnOnce(Reply<C::Answer>, Server) + Send + 'static,
    ) where
        C: Command,
        Self: Receive<Work<C, Server>>,
    {
        self.changing.entry(server.id).or_default();
        let handles = Arc::clone(&self.handles);
        let change = Change(vec![Write::Server(server.clone()), Write::Audit(Arc::new(event))]);
        let generation = self.generation_of(&mut work.reply);
        self.handles.persistence.commit(change, Some(generation), move |committed| {
            if committed == Committed::Written && server.version == 1 && handles.is_shared() {
                return read_back(&handles, work.reply, server, generation, grant);
            }
            if committed == Committed::Written {
                let answer = Box::new(|server| grant(work.reply, server));
                handles.server_registry.send::<Written>(Written { server, generation, answer });
                return;
            }
            handles.server_registry.send::<NotWritten>(NotWritten(server.id));
            if let Committed::Failed(failure) = committed {
                work.reply.fail(failure);
            } else if let Some(work) = work.again() {
                handles.server_registry.send(work);
            }
        });
    }
}

/// Reads the record of a server again that another process may have changed.
pub(crate) fn follow(handles: &Arc<Handles>, id: ServerId) {
    let back = Arc::clone(handles);
    let generation = handles.persistence.generation();
    handles.reader.find(id, move |found| {
        let missed = match found {
            Ok(Some(server)) => !back.server_registry.send(Found(server, generation)),
            Ok(None) => false,
            // The next tick tries again.
            Err(_) => true,
        };
        if missed {
            back.missed.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        }
    });
}

/// Reads the number that a shared store has given to a new server, and then answers.
fn read_back<A: Send + 'static>(
    handles: &Arc<Handles>,
    reply: Reply<A>,
    server: Server,
    generation: u32,
    grant: impl FnOnce(Reply<A>, Server) + Send + 'static,
) {
    let back = Arc::clone(handles);
    handles.reader.find(server.id, move |found: Result<Option<Server>, ReadError>| match found {
        Ok(Some(found)) => {
            let answer = Box::new(|server| grant(reply, server));
            back.server_registry.send(Written { server: found, generation, answer });
        }
        // The record is written, and is read at the next request for it or at the next tick.
        Ok(None) | Err(_) => {
            back.server_registry.send(NotWritten(server.id));
            back.missed.lock().unwrap_or_else(PoisonError::into_inner).insert(server.id);
            grant(reply, server);
        }
    });
}

/// Returns the audit event of a change of a server.
fn happened(
    action: Action,
    (who, by): (Who, &str),
    to: &Server,
    at: Timestamp,
    from: IpAddr,
) -> Event {
    Event {
        server: Some(to.id),
        address: Some(to.ip),
        subject: to.hostname.clone(),
        by: by.to_owned(),
        ..Event::new(action, who, at, Some(from))
    }
}

fn registered(server: &Server, asked: &Register) -> Event {
    happened(Action::ServerRegistered, (Who::Agent, &asked.by), server, asked.now, asked.from)
}

impl Actor for ServerRegistry {
    fn has_ended(&self) -> bool {
        self.ended
    }
}

impl Receive<Work<CheckIn, Server>> for ServerRegistry {
    fn receive(&mut self, work: Work<CheckIn, Server>) {
        self.metrics.taken();
        let Some(mut work) = self.current(work) else { return };
        let id = work.command.id;
        match self.found(id, &mut work) {
            Some(Some(server)) => {
                self.is_fresh(&server);
            }
            // Another server may have registered it just now.
            None if self.lacks(id) => return self.look_up(work, id, None),
            Some(None) if self.lacks(id) => {
                return self.answer(work, Err(Refusal::ServerNotFound));
            }
            _ => {}
        }
        let Work { command: CheckIn { id, bearer, now }, reply, .. } = work;
        let Some(mut live) = self.servers.live.get_mut(&id) else {
            return reply.refuse(Refusal::ServerNotFound);
        };
        if !live.key.accepts(&bearer) {
            return reply.refuse(Refusal::Unauthorized);
        }
        if live.revoked {
            return reply.grant(CheckedIn::Revoked);
        }
        if live.last_checkin().or_later(now, now) != live.last_checkin() {
            live.set_last_checkin(now);
            self.unwritten.note(id, Seen { server: live.number, at: now });
        }
        drop(live);
        reply.grant(CheckedIn::Active);
    }
}

impl Receive<Work<Register, Server>> for ServerRegistry {
    fn receive(&mut self, work: Work<Register, Server>) {
        self.metrics.taken();
        let id = work.command.address_id;
        let Some(mut work) = self.current(work).and_then(|work| self.park(id, work)) else {
            return;
        };
        let found = self.found(id, &mut work);
        if found.is_none() && self.lacks(id) {
            return self.look_up(work, id, None);
        }
        let known = self.servers.live.get(&id).map(|live| live.number);
        match (found, known) {
            (None | Some(None), None) if work.reply.claim() => self.register_new(work),
            (None | Some(None), None) => {}
            (Some(Some(server)), _) if self.is_fresh(&server) => {
                let Register { hostname, credential, now, .. } = &work.command;
                match server.register_again(hostname.clone(), credential, *now) {
                    // This answer depends on what was read.
                    Err(refusal) => self.answer(work, Err(refusal)),
                    Ok(None) => self.answer(work, Ok(server)),
                    Ok(Some(server)) if work.reply.claim() => {
                        let event = registered(&server, &work.command);
                        self.write(server, event, work, Reply::grant);
                    }
                    Ok(Some(_)) => {}
                }
            }
            (None, number) => self.look_up(work, id, number),
            (Some(_), number) => self.look_up_again(work, id, number),
        }
    }
}

impl ServerRegistry {
    fn register_new(&mut self, work: Work<Register, Server>) {
        let Register { address_id, ip, hostname, credential, now, .. } = &work.command;
        let number = ServerNumber(self.next_number);
        let place = (*address_id, *ip);
        let server =
            Server::register(number, *address_id, place, hostname.clone(), credential, *now);
        self.next_number += 1;
        let event = registered(&server, &work.command);
        self.write(server, event, work, Reply::grant);
    }
}

impl Receive<Work<SetRevoked, Server>> for ServerRegistry {
    fn receive(&mut self, work: Work<SetRevoked, Server>) {
        self.metrics.taken();
        let SetRevoked { id, revoked, by, from, now } = work.command.clone();
        let action = if revoked { Action::ServerRevoked } else { Action::ServerRestored };
        self.change(work, id, |server| {
            let server = server.set_revoked(revoked)?;
            let event = happened(action, (Who::Operator, &by), &server, now, from);
            Some((server, event))
        });
    }
}

impl Receive<Work<SetNote, Server>> for ServerRegistry {
    fn receive(&mut self, work: Work<SetNote, Server>) {
        self.metrics.taken();
        let SetNote { id, note, by, from, now } = work.command.clone();
        self.change(work, id, |server| {
            let server = server.set_note(note)?;
            let event = Event {
                detail: server.note.clone(),
                ..happened(Action::ServerNoted, (Who::Operator, &by), &server, now, from)
            };
            Some((server, event))
        });
    }
}

impl ServerRegistry {
    /// Changes a server's record for an operator. `change` returns the new record and its audit event, or
    /// `None` if there is nothing to change.
    fn change<C: Command<Answer = ()>>(
        &mut self,
        work: Work<C, Server>,
        id: ServerId,
        change: impl FnOnce(&Server) -> Option<(Server, Event)>,
    ) where
        Self: Receive<Work<C, Server>>,
    {
        let Some(mut work) = self.current(work).and_then(|work| self.park(id, work)) else {
            return;
        };
        let found = self.found(id, &mut work);
        if found.is_none() && self.lacks(id) {
            return self.look_up(work, id, None);
        }
        let looked_up = found.is_some();
        let found = found.flatten().filter(|server| self.is_fresh(server));
        let number = self.servers.live.get(&id).map(|live| live.number);
        let Some(server) = found else {
            return match number {
                Some(_) if looked_up => self.look_up_again(work, id, number),
                Some(_) => self.look_up(work, id, number),
                None => self.answer(work, Err(Refusal::ServerNotFound)),
            };
        };
        match change(&server) {
            None => self.answer(work, Ok(())),
            Some((server, event)) if work.reply.claim() => {
                self.write(server, event, work, |reply, _| reply.grant(()));
            }
            Some(_) => {}
        }
    }
}

impl ServerRegistry {
    /// Whether memory lacks a server that a shared store may hold.
    fn lacks(&self, id: ServerId) -> bool {
        self.handles.is_shared() && self.servers.live.get(&id).is_none_or(|live| live.is_void)
    }
}

impl Receive<SeenElsewhere> for ServerRegistry {
    fn receive(&mut self, SeenElsewhere(seen): SeenElsewhere) {
        self.metrics.taken();
        for (id, at) in &seen {
            if let Some(mut live) = self.servers.live.get_mut(id) {
                let last = live.last_checkin().or_later(*at, self.now);
                live.set_last_checkin(last);
            }
        }
    }
}

impl Receive<Found> for ServerRegistry {
    fn receive(&mut self, Found(server, generation): Found) {
        self.metrics.taken();
        if generation >= self.generation {
            self.is_fresh(&server);
        }
    }
}

impl Receive<Recovered> for ServerRegistry {
    /// What is visible in a shared store may be lost when a standby is promoted, and its version's number
    /// given to something else. So each server is read again before anything rests on it.
    fn receive(&mut self, Recovered(generation): Recovered) {
        self.metrics.taken();
        if self.handles.is_shared() {
            self.generation = generation;
            self.servers.live.iter_mut().for_each(|mut live| live.is_void = true);
        }
    }
}

impl Receive<Written> for ServerRegistry {
    fn receive(&mut self, Written { server, generation, answer }: Written) {
        self.metrics.taken();
        if generation >= self.generation {
            self.publish(&server);
        }
        self.observed.servers.set(self.servers.len() as i64);
        let id = server.id;
        answer(server);
        self.has_ended(id);
    }
}

impl Receive<NotWritten> for ServerRegistry {
    fn receive(&mut self, NotWritten(id): NotWritten) {
        self.metrics.taken();
        self.has_ended(id);
    }
}

impl Receive<Tick> for ServerRegistry {
    fn receive(&mut self, Tick(now): Tick) {
        self.metrics.taken();
        self.observed.servers.set(self.servers.len() as i64);
        self.now = now;
        let tuning = self.tuning.load_full();
        if self.flush.is_due(now, tuning.checkin_flush_seconds) {
            let step = tuning.batches.server_registry;
            let flushed = self.unwritten.flush(&self.handles, step);
            if flushed > 0 {
                self.metrics.batch.observe(flushed.min(step) as f64);
            }
            if self.handles.is_shared() {
                let handles = Arc::clone(&self.handles);
                let hear = move |seen| handles.server_registry.send(SeenElsewhere(seen));
                self.unwritten.listen(&self.handles, hear);
            }
        }
    }
}

impl Receive<Shutdown> for ServerRegistry {
    fn receive(&mut self, Shutdown(done): Shutdown) {
        self.metrics.taken();
        self.unwritten.finish(&self.handles);
        self.handles.persistence.follow(move |_| {
            // This fails if the caller has stopped waiting.
            let _ = done.send(());
        });
        self.handles.persistence.stop();
        self.ended = true;
    }
}
