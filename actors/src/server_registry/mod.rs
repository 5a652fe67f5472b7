//! The server-registry actor: the only writer of servers.
//!
//! The few bytes of a server that every check-in needs stay in memory, published for readers in a
//! [`DashMap`](dashmap::DashMap). The rest stays on disk and is read when a record changes. Memory
//! follows the disk here: a server appears, is revoked or restored in memory once that is on disk.
//! Check-ins go the other way: they are answered at once and written together, a little later.

mod changes;
mod check_ins;
mod clones;
mod import;
mod listening;
mod published;
mod registration;
mod silence;
mod sweep;
mod together;

pub use crate::messages::servers::{
    ChargeTicket, CheckIn, CheckedIn, Delete, DeleteUnseen, Import, Imported, Register,
    RegisterInstalled, SetNote, SetRevoked,
};
pub(crate) use published::Registered;
pub use published::Silent;
pub use published::{ByState, Filter, Page, Placed, Servers, Sort};
pub(crate) use silence::Heard;

use crate::Failure;
use crate::handles::Handles;
use crate::memory::check_ins::CheckIns;
use crate::memory::record_cache::Parked;
use crate::messages::{Command, Shutdown, Tick, Work};
use crate::persistence::Committed;
use crate::runtime::mailbox::{Actor, Receive};
use crate::runtime::metrics::{ActorMetrics, Metrics};
use crate::runtime::reader::ServerKey;
use crate::runtime::reply::Reply;
use crate::runtime::tuning::ActorSettings;
use actix::Message;
use arc_swap::ArcSwap;
use check_ins::SeenElsewhere;
use clones::Reported;
use iptunnel_domain::access::TokenNumber;
use iptunnel_domain::audit::{Action, Actor as Who, Event};
use iptunnel_domain::server::{Server, ServerId, ServerNumber};
use iptunnel_domain::time::Timer;
use iptunnel_domain::{Refusal, Timestamp};
use iptunnel_storage::{Change, ReadError, Store, Write};
use listening::Listening;
use published::{Flags, Live, Owners};
use silence::Watch;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use sweep::Sweep;

/// A record as read from the store, in this generation of the store; and whether its server has checked in
/// since it registered.
struct Found(Server, u32, bool);

impl Message for Found {
    type Result = ();
}

/// Another process has reported a clone of this server, at this time.
pub(crate) struct CloneReported(pub(crate) ServerId, pub(crate) Timestamp);

impl Message for CloneReported {
    type Result = ();
}

/// Another process has deleted a server. This was read in this generation of the store.
struct Gone(ServerId, u32);

impl Message for Gone {
    type Result = ();
}

/// What becomes of a server's record.
enum Next {
    /// It is written.
    Is(Server),
    /// It is removed; this is what it was.
    Gone(Server),
    /// Another server is written over it. The deleted one had this id.
    Replaced(Server, ServerId),
}

impl Next {
    const fn server(&self) -> &Server {
        match self {
            Self::Is(server) | Self::Gone(server) | Self::Replaced(server, _) => server,
        }
    }

    fn into_server(self) -> Server {
        match self {
            Self::Is(server) | Self::Gone(server) | Self::Replaced(server, _) => server,
        }
    }

    /// Returns the ids under which commands may wait for it. One may stand there twice.
    const fn ids(&self) -> [ServerId; 3] {
        let (Self::Is(server) | Self::Gone(server) | Self::Replaced(server, _)) = self;
        let was = if let Self::Replaced(_, was) = self { *was } else { server.id };
        [server.id, server.address_id, was]
    }

    fn write(&self) -> Write {
        match self {
            Self::Is(server) | Self::Replaced(server, _) => Write::Server(server.clone()),
            Self::Gone(server) => Write::ForgetServer(server.number, server.version),
        }
    }
}

/// A server's record has been written or removed.
struct Written {
    next: Next,
    /// The generation of the store in which it was decided.
    generation: u32,
    /// Answers the caller once memory has the record, so that the caller's next request finds it there.
    /// If the actor has already shut down, this message is dropped and the outcome is unknown.
    answer: Box<dyn FnOnce(Server) + Send>,
}

impl Message for Written {
    type Result = ();
}

/// A record could not be written. Commands may wait for it under these ids.
struct NotWritten([ServerId; 3]);

impl Message for NotWritten {
    type Result = ();
}

/// The store works again after it had refused: this is its generation. Sent by persistence.
pub(crate) struct Recovered(pub(crate) u32);

impl Message for Recovered {
    type Result = ();
}

/// A pending change of a server.
#[derive(Default)]
struct Changing {
    /// The commands that wait for its end.
    parked: Vec<Parked>,
    /// The access token that will have enrolled one server more.
    enrols: Option<TokenNumber>,
}

/// The only writer of servers.
pub(crate) struct ServerRegistry {
    servers: Arc<Servers>,
    owners: Owners,
    next_number: u32,
    /// The generation of the store that memory follows.
    generation: u32,
    /// Servers with a pending change, by their ids. That of an import stands under the id of the address
    /// as well, and under that of the deleted server whose record it takes.
    changing: HashMap<ServerId, Changing>,
    /// The unwritten check-ins: the last one of each server.
    unwritten: CheckIns,
    flush: Timer,
    sweep: Sweep,
    /// The clones that were reported not long ago.
    reported: Reported,
    silence: Watch,
    listening: Listening,
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
        let Registered { servers, owners, last_number } = registered;
        Self {
            servers,
            owners,
            next_number: last_number.map_or(0, |last| last.0 + 1),
            generation: 0,
            changing: HashMap::new(),
            unwritten: CheckIns::default(),
            flush: Timer::default(),
            sweep: Sweep::default(),
            reported: Reported::default(),
            silence: Watch::default(),
            listening: Listening::from(now),
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
        let Some(changing) = self.changing.get_mut(&id) else { return Some(work) };
        let handles = Arc::clone(&self.handles);
        // The record that was read is out of date when the change has ended.
        work.found = None;
        changing.parked.push(Box::new(move || {
            handles.server_registry.send(work);
        }));
        None
    }

    /// Ends a pending change. The waiting commands go on, in the order of arrival.
    fn has_ended(&mut self, id: ServerId) {
        for command in self.changing.remove(&id).unwrap_or_default().parked {
            command();
        }
    }

    /// Returns what memory has of a server, or of the one that has its record now, under another id.
    fn known(&self, server: &Server) -> Option<Live> {
        let live = |id| self.servers.live.get(&id).map(|live| *live);
        let there = || self.at(server.address_id).and_then(live);
        live(server.id).or_else(|| there().filter(|live| live.number == server.number))
    }

    /// Whether a record that was read is not older than memory. A newer one, written by another process,
    /// is published.
    fn is_fresh(&mut self, server: &Server) -> bool {
        let known = self.known(server).filter(|live| !live.flags.has(Flags::VOID));
        let Some((number, known)) = known.map(|live| (live.number, live.version)) else {
            self.publish(server);
            return true;
        };
        if number != server.number {
            // It was deleted, and has registered again since.
            let is_newer = server.number > number;
            if is_newer {
                self.publish(server);
            }
            return is_newer;
        }
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
    fn found<C>(&mut self, id: ServerId, work: &mut Work<C, Server>) -> Option<Option<Server>>
    where
        C: Command,
    {
        let found = work.found.take();
        if matches!(found, Some(None)) {
            self.forget_if(id, None, |live| live.flags.has(Flags::VOID) || live.is_as_if_gone());
        }
        found
    }

    /// Publishes the record on disk for readers and check-ins.
    fn publish(&mut self, server: &Server) {
        self.forget_replaced(server);
        let mut live = Live::of(server);
        let before = self.servers.live.get(&server.id).map(|live| *live);
        let is_registered_as_before =
            |before: &&Live| before.number == server.number && before.key == live.key;
        live.await_check_in(server, before.as_ref().filter(is_registered_as_before));
        if let Some(before) = before.filter(|before| before.number == server.number) {
            let (now, known) = (self.now, before.last_checkin());
            live.set_last_checkin(live.last_checkin().or_later(known, now));
            // After a new registration the next check-in may come from anywhere.
            if live.key == before.key {
                live.source = before.source;
            }
            if before.flags.has(Flags::REVOKED) && !live.flags.has(Flags::REVOKED) {
                self.sweep.note_restored(server.id, now);
            }
        }
        self.owners.note(server, before.as_ref(), &live);
        self.servers.insert(server.id, live);
    }

    /// Forgets the deleted server at the address of this one if this one has its record.
    fn forget_replaced(&mut self, server: &Server) {
        let there = self.at(server.address_id).filter(|id| *id != server.id);
        if let Some(there) = there {
            let address = Some(server.address_id);
            self.forget_if(there, address, |live| live.number == server.number);
        }
    }

    /// Forgets a server if `is_gone` says so.
    fn forget_if(
        &mut self,
        id: ServerId,
        address: Option<ServerId>,
        is_gone: impl FnOnce(&Live) -> bool,
    ) {
        if let Some(before) = self.servers.remove(id, is_gone) {
            self.owners.forget(address, &before);
            self.unwritten.forget(id);
        }
    }

    /// Returns the id of the server at an address, as far as memory knows it.
    fn at(&self, address: ServerId) -> Option<ServerId> {
        let has_its_id = |live: &Live| !live.flags.has(Flags::IMPORTED);
        let own =
            || self.servers.live.get(&address).filter(|live| has_its_id(live)).map(|_| address);
        self.owners.imported(address).or_else(own)
    }

    /// Reads a server's record once everything sent before is on disk, and forwards the command with
    /// it.
    fn look_up<C>(&self, mut work: Work<C, Server>, key: ServerKey, number: Option<ServerNumber>)
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
                return handles.reader.look_up(work, key, forward);
            }
            let read =
                move |store: &dyn Store| number.map_or(Ok(None), |number| store.server(number));
            handles.reader.look_up_with(work, read, forward);
        });
    }

    /// Reads the record again, a few times, because the last read was older than memory.
    fn look_up_again<C>(&self, work: Work<C, Server>, key: ServerKey, number: Option<ServerNumber>)
    where
        C: Command,
        Self: Receive<Work<C, Server>>,
    {
        if let Some(work) = work.again() {
            self.look_up(work, key, number);
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

    /// Writes or removes a server's record, and then answers with `grant`.
    fn write<C>(
        &mut self,
        next: Next,
        event: Event,
        mut work: Work<C, Server>,
        grant: impl FnOnce(Reply<C::Answer>, Server) + Send + 'static,
    ) where
        C: Command,
        Self: Receive<Work<C, Server>>,
    {
        let ids = next.ids();
        self.changing.entry(next.server().id).or_default();
        let handles = Arc::clone(&self.handles);
        let change = Change(vec![next.write(), Write::Audit(Arc::new(event))]);
        let generation = self.generation_of(&mut work.reply);
        self.handles.persistence.commit(change, Some(generation), move |committed| {
            if committed == Committed::Written {
                let answer = Box::new(|server| grant(work.reply, server));
                return written(&handles, next, generation, answer);
            }
            handles.server_registry.send::<NotWritten>(NotWritten(ids));
            if let Committed::Failed(failure) = committed {
                work.reply.fail(failure);
            } else if let Some(work) = work.again() {
                handles.server_registry.send(work);
            }
        });
    }
}

/// Reads the record of a server again that another process may have changed. `has_checked_in` says whether
/// the first check-in since its registration was there.
pub(crate) fn follow(handles: &Arc<Handles>, id: ServerId, has_checked_in: bool) {
    let back = Arc::clone(handles);
    let generation = handles.persistence.generation();
    handles.reader.find(ServerKey::Id(id), move |found| {
        let missed = match found {
            Ok(Some(server)) => {
                !back.server_registry.send(Found(server, generation, has_checked_in))
            }
            Ok(None) => !back.server_registry.send(Gone(id, generation)),
            // The next tick tries again.
            Err(_) => true,
        };
        if missed {
            back.missed.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        }
    });
}

/// Reports that a record was written. Reads the number first that a shared store has given to a new server.
fn written(
    handles: &Arc<Handles>,
    next: Next,
    generation: u32,
    answer: Box<dyn FnOnce(Server) + Send>,
) {
    let new = match next {
        Next::Is(server) if server.version == 1 && handles.is_shared() => server,
        next => {
            handles.server_registry.send::<Written>(Written { next, generation, answer });
            return;
        }
    };
    let back = Arc::clone(handles);
    let key = ServerKey::Id(new.id);
    handles.reader.find(key, move |found: Result<Option<Server>, ReadError>| match found {
        Ok(Some(found)) => {
            back.server_registry.send(Written { next: Next::Is(found), generation, answer });
        }
        // The record is written, and is read at the next request for it or at the next tick.
        Ok(None) | Err(_) => {
            back.server_registry.send(NotWritten(Next::Is(new.clone()).ids()));
            back.missed.lock().unwrap_or_else(PoisonError::into_inner).insert(new.id);
            answer(new);
        }
    });
}

/// Returns the audit event of a change of a server.
fn happened(
    action: Action,
    (who, by): (Who, &str),
    to: &Server,
    at: Timestamp,
    from: Option<IpAddr>,
) -> Event {
    Event {
        server: Some(to.id),
        address: Some(to.ip),
        subject: to.hostname.clone(),
        by: by.to_owned(),
        ..Event::new(action, who, at, from)
    }
}

impl Actor for ServerRegistry {
    fn has_ended(&self) -> bool {
        self.ended
    }
}

impl ServerRegistry {
    fn is_shared(&self) -> bool {
        self.handles.is_shared()
    }

    /// Whether memory lacks a server that a shared store may hold.
    fn lacks(&self, id: ServerId) -> bool {
        let is_void = |live: &Live| live.flags.has(Flags::VOID) || live.is_as_if_gone();
        self.is_shared() && self.servers.live.get(&id).is_none_or(|live| is_void(&live))
    }
}

impl Receive<CloneReported> for ServerRegistry {
    fn receive(&mut self, CloneReported(id, at): CloneReported) {
        self.metrics.taken();
        self.reported.note(id, at);
    }
}

impl Receive<Found> for ServerRegistry {
    fn receive(&mut self, Found(server, generation, has_checked_in): Found) {
        self.metrics.taken();
        if generation >= self.generation {
            self.is_fresh(&server);
            if let Some(mut live) = self.servers.live.get_mut(&server.id).filter(|_| has_checked_in)
            {
                live.flags.set(Flags::AWAITED, false);
            }
        }
    }
}

impl Receive<Gone> for ServerRegistry {
    fn receive(&mut self, Gone(id, generation): Gone) {
        self.metrics.taken();
        if generation >= self.generation && !self.changing.contains_key(&id) {
            self.forget_if(id, None, |_| true);
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
            self.servers.live.iter_mut().for_each(|mut live| live.flags.set(Flags::VOID, true));
        }
    }
}

impl Receive<Written> for ServerRegistry {
    fn receive(&mut self, Written { next, generation, answer }: Written) {
        self.metrics.taken();
        if generation >= self.generation {
            match &next {
                Next::Is(server) | Next::Replaced(server, _) => self.publish(server),
                Next::Gone(server) => self.forget_if(server.id, Some(server.address_id), |_| true),
            }
        }
        self.observed.servers.set(self.servers.len() as i64);
        let ids = next.ids();
        answer(next.into_server());
        ids.into_iter().for_each(|id| self.has_ended(id));
    }
}

impl Receive<NotWritten> for ServerRegistry {
    fn receive(&mut self, NotWritten(ids): NotWritten) {
        self.metrics.taken();
        ids.into_iter().for_each(|id| self.has_ended(id));
    }
}

impl Receive<Tick> for ServerRegistry {
    fn receive(&mut self, Tick(now): Tick) {
        self.metrics.taken();
        self.observed.servers.set(self.servers.len() as i64);
        self.now = now;
        self.listening.note(now);
        let tuning = self.tuning.load_full();
        self.sweep_if_due();
        self.reported.forget_old(now, tuning.silence.interval);
        self.look_for_silence();
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
