//! Deletes servers that were not seen for long, for an operator or by the clock. The clock also removes the
//! records of deleted servers that were kept for long enough.

use super::changes::deletion;
use super::published::{Live, Smallest};
use super::together::Together;
use super::{DeleteUnseen, ServerRegistry, Servers, happened};
use crate::Failure;
use crate::messages::Work;
use crate::runtime::mailbox::Receive;
use crate::runtime::reply::Reply;
use actix::Message;
use iptunnel_domain::Timestamp;
use iptunnel_domain::audit::{Action, Actor as Who, Event};
use iptunnel_domain::server::{Deletion, Server, ServerId, ServerNumber};
use iptunnel_domain::time::Timer;
use iptunnel_storage::{ReadError, Store};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Seconds between two looks for servers that are to be deleted by the clock.
const PAUSE: u64 = 60;
/// The servers that the clock deletes at once. They are few: where the clock is wrong, there is time to
/// notice it.
const FEW: usize = 100;
/// The shortest time in seconds for which this process has listened before the clock deletes: a day.
const LISTEN: u64 = 86_400;

/// When the clock deletes servers. A server that could not check in, because this program was away or its
/// clock was wrong, is not deleted for that.
#[derive(Default)]
pub(super) struct Sweep {
    timer: Timer,
    /// When servers were restored: a revoked server that checks in is not seen.
    restored: HashMap<ServerId, Timestamp>,
}

impl Sweep {
    /// Notes that a server was restored.
    pub(super) fn note_restored(&mut self, id: ServerId, now: Timestamp) {
        self.restored.insert(id, now);
    }

    /// Whether servers are to be looked for at `now`. A restored one is given so many seconds to check in.
    fn is_due(&mut self, now: Timestamp, seconds: u64) -> bool {
        if !self.timer.is_due(now, PAUSE) {
            return false;
        }
        self.restored.retain(|_, at| now.since(*at) < seconds);
        true
    }
}

/// Servers to delete, as read from the store.
struct Unseen {
    servers: Vec<Server>,
    /// Those that were not seen since then.
    before: Timestamp,
    /// The seconds for which the record of a deleted server is kept. `None` if such records stay.
    retention: Option<u64>,
    now: Timestamp,
    who: Who,
    by: String,
    from: Option<IpAddr>,
    /// The generation of the store in which they were read.
    generation: u32,
    reply: Option<Reply<usize>>,
}

impl Message for Unseen {
    type Result = ();
}

impl ServerRegistry {
    /// Looks for servers that were not seen for long, where that is set, and for records of deleted
    /// servers that were kept for long enough, if it is time.
    pub(super) fn sweep_if_due(&mut self) {
        let tuning = self.tuning.load_full();
        let listen = tuning.silence.seconds().max(LISTEN);
        if self.listening.covers(listen) && self.sweep.is_due(self.now, listen) {
            let before = match tuning.forget_after_seconds {
                0 => Timestamp(0),
                after => Timestamp(self.now.0.saturating_sub(after)),
            };
            let unseen = Unseen {
                servers: Vec::new(),
                before,
                retention: Some(tuning.retention_seconds),
                now: self.now,
                who: Who::Administrator,
                by: String::new(),
                from: None,
                generation: self.handles.persistence.generation(),
                reply: None,
            };
            self.look_for(unseen, FEW);
        }
    }

    /// Looks for at most `limit` servers, on a reader thread, and goes on with them.
    fn look_for(&self, mut unseen: Unseen, limit: usize) {
        let (servers, handles) = (Arc::clone(&self.servers), Arc::clone(&self.handles));
        self.handles.reader.run(move |store| {
            let deleted = unseen.retention.map(|kept| (unseen.now, kept));
            let found = servers.unseen(unseen.before, deleted, limit);
            if found.is_empty() && unseen.reply.is_none() {
                return;
            }
            match handles.reader.noted(read(store, &found)) {
                Ok(found) => {
                    unseen.servers = found.into_iter().flatten().collect();
                    handles.server_registry.send(unseen);
                }
                Err(_) => {
                    if let Some(reply) = unseen.reply {
                        reply.fail(Failure::StorageUnavailable);
                    }
                }
            }
        });
    }
}

/// Reads servers. Their order is that of `keys`.
fn read(
    store: &dyn Store,
    keys: &[(ServerId, ServerNumber)],
) -> Result<Vec<Option<Server>>, ReadError> {
    match store.shared() {
        Some(shared) => shared.servers_of(&keys.iter().map(|(id, _)| *id).collect::<Vec<_>>()),
        None => store.servers_numbered(&keys.iter().map(|(_, number)| *number).collect::<Vec<_>>()),
    }
}

impl Receive<Work<DeleteUnseen>> for ServerRegistry {
    fn receive(&mut self, work: Work<DeleteUnseen>) {
        self.metrics.taken();
        let Work { command, mut reply, .. } = work;
        let DeleteUnseen { before, by, from, now } = command;
        let unseen = Unseen {
            servers: Vec::new(),
            before,
            // The clock alone forgets what an operator has deleted.
            retention: None,
            now,
            who: Who::Operator,
            by,
            from: Some(from),
            generation: self.generation_of(&mut reply),
            reply: Some(reply),
        };
        self.look_for(unseen, DeleteUnseen::STEP);
    }
}

impl Receive<Unseen> for ServerRegistry {
    fn receive(&mut self, unseen: Unseen) {
        self.metrics.taken();
        let Unseen { servers, before, retention, now, who, by, from, generation, reply } = unseen;
        if generation < self.generation {
            return reply.into_iter().for_each(|reply| reply.fail(Failure::StorageUnavailable));
        }
        let mut next = Vec::with_capacity(servers.len());
        for server in servers {
            if self.changing.contains_key(&server.id) || !self.is_fresh(&server) {
                continue;
            }
            let live = self.servers.live.get(&server.id);
            let is_unseen =
                live.is_some_and(|live| live.last_checkin().max(server.last_checkin) < before);
            let was_restored = self.sweep.restored.contains_key(&server.id);
            let (end, detail) = match &reply {
                _ if server.deleted => {
                    let is_over = retention.is_some_and(|kept| server.is_removable(now, kept));
                    (is_over.then_some(Deletion::Remove), "deleted before".to_owned())
                }
                Some(_) if is_unseen => (server.delete(now), not_seen_since(before)),
                None if is_unseen && !was_restored => (server.forget(now), not_seen_since(before)),
                _ => continue,
            };
            if let Some(end) = deletion(end, &server) {
                let event = happened(Action::ServerDeleted, (who, &by), &server, now, from);
                next.push((end, Event { detail, ..event }));
            }
        }
        match reply {
            Some(reply) if next.is_empty() => {
                return self.handles.answer_once_confirmed(reply, generation, Ok(0));
            }
            Some(reply) if !reply.claim() => return,
            _ => {}
        }
        let together = Together::new(next.len(), reply.map(|reply| (reply, next.len())));
        for (next, event) in next {
            self.write_together(next, event, generation, &together);
        }
    }
}

fn not_seen_since(before: Timestamp) -> String {
    format!("not seen since {}", before.0)
}

impl Servers {
    /// Returns at most `limit` servers that were last seen before `before`, those not seen for longest
    /// first. With the time and a retention in seconds also those that were deleted so long ago, unless
    /// they are revoked.
    ///
    /// It examines all servers, unless there can be none: a million take about 50 ms.
    fn unseen(
        &self,
        before: Timestamp,
        deleted: Option<(Timestamp, u64)>,
        limit: usize,
    ) -> Vec<(ServerId, ServerNumber)> {
        if before == Timestamp(0) && self.live.len() == self.len() {
            return Vec::new();
        }
        let is_over = |live: &Live| {
            if !live.is_hidden() {
                return live.last_checkin() < before;
            }
            let is_old = |(now, kept)| live.last_checkin().distance(now) > kept;
            live.is_as_if_gone() && deleted.is_some_and(is_old)
        };
        let mut first = Smallest::new(limit);
        for live in self.live.iter().filter(|live| is_over(live)) {
            first.add((live.last_checkin(), *live.key(), live.number));
        }
        first.sorted().into_iter().map(|(_, id, number)| (id, number)).collect()
    }
}
