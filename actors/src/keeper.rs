//! What the code registry and the activation actor have in common: records at work are kept in
//! memory, leave it when they can play no part any more, and leave the store after their retention.

use crate::Failure;
use crate::handles::Handles;
use crate::mailbox::{Actor, Mailbox, Receive};
use crate::observed::ActorMetrics;
use crate::persistence::{Committed, Fate};
use crate::reader::Sought;
use crate::reply::Reply;
use crate::tuning::Tuning;
use crate::work::{Command, Work};
use actix::Message;
use hashbrown::HashMap;
use iptunnel_domain::time::Timer;
use iptunnel_domain::{Timestamp, Version};
use iptunnel_storage::{Change, ReadError, Store, Write};
use std::collections::VecDeque;
use std::hash::Hash;
use std::sync::Arc;

/// A record that is kept.
pub(crate) trait Kept: Clone + Send + 'static {
    /// What it is found by.
    type Key: Copy + Eq + Hash + Send;
    /// Its place in the order in which they came.
    type Number: Copy;

    fn key(&self) -> Self::Key;
    fn number(&self) -> Self::Number;
    fn version(&self) -> Version;
    /// Whether it can still play a part on the way of a request.
    fn is_at_work(&self, now: Timestamp, tuning: &Tuning) -> bool;
    /// Whether it has been closed for as long as it is kept.
    fn is_forgettable(&self, now: Timestamp, tuning: &Tuning) -> bool;
    /// Whether its date lies in a future that never came.
    fn is_dated_ahead(&self, now: Timestamp) -> bool;
    /// Removes it from the store.
    fn forget(&self) -> Write;
    /// The oldest in the store, those after a number only.
    fn oldest(
        store: &dyn Store,
        after: Option<Self::Number>,
        count: usize,
    ) -> Result<Vec<Self>, ReadError>;
}

/// The records at work. Runs ahead of the disk; void where another generation has begun.
pub(crate) struct Memory<R: Kept> {
    /// Each with the fate of its last change.
    records: HashMap<R::Key, (R, Fate)>,
    /// Keys in the order in which they came, to be looked at in turn.
    watched: VecDeque<R::Key>,
    generation: u32,
    retention: Timer,
    /// Where retention is due: for how many ticks more the clock has to say so, and the earliest that
    /// it has said since.
    to_retain: Option<(u8, Timestamp)>,
}

impl<R: Kept> Memory<R> {
    pub(crate) fn new() -> Self {
        Self {
            records: HashMap::new(),
            watched: VecDeque::new(),
            generation: 0,
            retention: Timer::default(),
            to_retain: None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn get(&self, key: R::Key) -> Option<(R, Fate)> {
        self.records.get(&key).cloned()
    }

    /// What is known of a record, where `found` is what the store was found to hold, if it was looked
    /// at: memory may be ahead of it, or behind what another server has written.
    pub(crate) fn newest(&mut self, key: R::Key, found: Option<&Option<R>>) -> Option<(R, Fate)> {
        match (self.get(key), found) {
            (Some((known, _)), Some(Some(found))) if known.version() < found.version() => {
                self.records.remove(&key);
                Some((found.clone(), Fate::default()))
            }
            (None, Some(found)) => found.clone().map(|found| (found, Fate::default())),
            (known, _) => known,
        }
    }

    /// Takes a record for what it will be once its change, whose fate this is, is on disk.
    pub(crate) fn remember(&mut self, record: R, fate: Fate) {
        let key = record.key();
        if self.records.insert(key, (record, fate)).is_none() {
            self.watched.push_back(key);
        }
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// Checks on which state of the store a request was decided so far. A later one than ours:
    /// ours is void. An earlier one: the request rests on what never was, and this is `false`.
    pub(crate) fn is_current<A>(&mut self, reply: &mut Reply<A>) -> bool {
        let theirs = reply.generation(self.generation);
        self.reload(theirs);
        theirs == self.generation
    }

    fn reload(&mut self, generation: u32) {
        if generation > self.generation {
            self.generation = generation;
            self.records.clear();
            self.watched.clear();
        }
    }

    /// Looks at the oldest keys, `step` of them or one in a hundred where that is more, and returns
    /// those that are done; the others are looked at again later.
    fn done(&mut self, now: Timestamp, step: usize, tuning: &Tuning) -> Vec<(R::Key, Version)> {
        let step = step.max(self.watched.len() / 100).min(self.watched.len());
        let mut done = Vec::new();
        for _ in 0..step {
            let Some(key) = self.watched.pop_front() else { break };
            match self.records.get(&key) {
                None => {}
                Some((record, _)) if record.is_at_work(now, tuning) => self.watched.push_back(key),
                Some((record, _)) => done.push((key, record.version())),
            }
        }
        done
    }

    /// The time by which records may be forgotten, where it is time to look for such.
    ///
    /// What is forgotten does not come back. So a clock that is ahead for a moment decides nothing:
    /// the earliest of what it says over some seconds does.
    fn retain_at(&mut self, now: Timestamp) -> Option<Timestamp> {
        let (ticks, earliest) = match self.to_retain.take() {
            Some((ticks, earliest)) => (ticks, earliest.min(now)),
            None if self.retention.is_due(now, RETENTION_EVERY) => (RETENTION_TICKS, now),
            None => return None,
        };
        if ticks == 0 {
            return Some(earliest);
        }
        self.to_retain = Some((ticks - 1, earliest));
        None
    }

    /// Drops what has not changed since it was found to be done.
    fn evict(&mut self, done: Vec<(R::Key, Version)>) {
        for (key, version) in done {
            match self.records.get(&key) {
                Some((record, _)) if record.version() == version => {
                    self.records.remove(&key);
                }
                Some(_) => self.watched.push_back(key),
                None => {}
            }
        }
    }
}

/// What keeps the memory of an actor in order. Sent by the actors to themselves, by the clock, and
/// by persistence.
pub(crate) enum Upkeep<R: Kept> {
    /// The time.
    Tick(Timestamp),
    /// These are on disk and were done when they were last looked at.
    Evict(Vec<(R::Key, Version)>),
    /// Records in the store that may be forgotten at this time.
    Forgettable(Vec<R>, Timestamp),
    /// So many were forgotten that there may be more.
    LookAgain(Timestamp),
    /// A commit showed that what memory holds of this record is not what the store holds.
    Disown(R::Key),
    /// The store works again after it had refused: whatever memory holds is void.
    Reload(u32),
}

impl<R: Kept> Message for Upkeep<R> {
    type Result = ();
}

/// An actor that keeps records.
pub(crate) trait Keeper: Actor + Receive<Upkeep<Self::Record>> {
    type Record: Kept;

    fn memory(&mut self) -> &mut Memory<Self::Record>;
    fn metrics(&self) -> &ActorMetrics;
    fn handles(&self) -> &Arc<Handles>;
    fn tuning(&self) -> Arc<Tuning>;
    /// How many records are looked at in one step.
    fn step(tuning: &Tuning) -> usize;
    fn mailbox(handles: &Handles) -> &Mailbox<Self>;

    /// Does one piece of upkeep.
    fn keep(&mut self, upkeep: Upkeep<Self::Record>) {
        match upkeep {
            Upkeep::Tick(now) => tick(self, now),
            Upkeep::Evict(done) => self.memory().evict(done),
            Upkeep::Forgettable(records, now) => forget(self, &records, now),
            Upkeep::LookAgain(now) => look_for_forgettable(self, now),
            Upkeep::Disown(key) => {
                self.memory().records.remove(&key);
            }
            Upkeep::Reload(generation) => self.memory().reload(generation),
        }
    }
}

/// A command with what is known of its record, and what becomes of the change that this rests on.
pub(crate) type Held<C, R> = (Work<C, R>, R, Fate);

/// The command with its record; nothing where there is no such record, which is for `missing` to
/// answer, or where the command went to look the record up first. Where servers share the store it is
/// looked up even though memory holds it, unless what memory holds is `enough`: it leads to a write,
/// which the guard keeps from being wrong. `on_error` is called where it cannot be read.
pub(crate) fn find<K, C>(
    keeper: &mut K,
    mut work: Work<C, K::Record>,
    key: <K::Record as Kept>::Key,
    enough: impl FnOnce(&C, &K::Record) -> bool,
    missing: impl FnOnce(&Handles, Work<C, K::Record>),
    on_error: impl FnOnce(&Handles) + Send + 'static,
) -> Option<Held<C, K::Record>>
where
    K: Keeper + Receive<Work<C, K::Record>>,
    K::Record: Sought<Key = <K::Record as Kept>::Key>,
    C: Command,
{
    keeper.metrics().taken();
    if !keeper.memory().is_current(&mut work.reply) {
        work.reply.fail(Failure::StorageUnavailable);
        return None;
    }
    let found = work.found.take();
    let handles = Arc::clone(keeper.handles());
    match (keeper.memory().newest(key, found.as_ref()), found) {
        (Some((record, fate)), Some(_)) => Some((work, record, fate)),
        (Some((record, fate)), None) if !handles.is_shared() || enough(&work.command, &record) => {
            Some((work, record, fate))
        }
        (None, Some(_)) => {
            missing(&handles, work);
            None
        }
        (_, None) => {
            let (back, of_error) = (Arc::clone(&handles), Arc::clone(&handles));
            let forward = move |work| {
                K::mailbox(&back).send(work);
            };
            handles.reader.look_up(work, key, forward, move || on_error(&of_error));
            None
        }
    }
}

/// Seconds between two looks at the oldest records.
const RETENTION_EVERY: u64 = 60;
/// Pages of the oldest records that are looked at in one go: a clock that has fallen far behind takes
/// all that there are for records of the future.
const PAGES: usize = 100;
/// Ticks for which the clock must say that it is time: five seconds.
const RETENTION_TICKS: u8 = 25;

fn tick<K: Keeper>(keeper: &mut K, now: Timestamp) {
    let tuning = keeper.tuning();
    let done = keeper.memory().done(now, K::step(&tuning), &tuning);
    if !done.is_empty() {
        keeper.metrics().batch.observe(done.len() as f64);
        let handles = Arc::clone(keeper.handles());
        // Behind the queue, so that whatever was last written of them is on disk.
        keeper.handles().persistence.commit(Change::default(), None, move |_| {
            K::mailbox(&handles).send(Upkeep::Evict(done));
        });
    }
    if let Some(now) = keeper.memory().retain_at(now) {
        look_for_forgettable(keeper, now);
    }
}

/// Looks for records that may be forgotten; [`Upkeep::Forgettable`] brings them back.
fn look_for_forgettable<K: Keeper>(keeper: &K, now: Timestamp) {
    let (handles, tuning) = (Arc::clone(keeper.handles()), keeper.tuning());
    let count = K::step(&tuning).max(1);
    keeper.handles().reader.run(move |store| match forgettable(store, count, now, &tuning) {
        Ok(records) => {
            K::mailbox(&handles).send(Upkeep::Forgettable(records, now));
        }
        Err(error) => tracing::warn!(%error, "the oldest records could not be read"),
    });
}

/// The oldest records that may be forgotten, at most `count`. Those dated in the future are passed
/// over, so that they keep no others.
fn forgettable<R: Kept>(
    store: &dyn Store,
    count: usize,
    now: Timestamp,
    tuning: &Tuning,
) -> Result<Vec<R>, ReadError> {
    let (mut found, mut after) = (Vec::new(), None);
    for _ in 0..PAGES {
        let page = R::oldest(store, after, count)?;
        let is_last = page.len() < count;
        for record in page {
            after = Some(record.number());
            if record.is_forgettable(now, tuning) {
                found.push(record);
            } else if !record.is_dated_ahead(now) {
                return Ok(found);
            }
            if found.len() == count {
                return Ok(found);
            }
        }
        if is_last {
            break;
        }
    }
    Ok(found)
}

fn forget<K: Keeper>(keeper: &mut K, records: &[K::Record], now: Timestamp) {
    for record in records {
        keeper.memory().records.remove(&record.key());
        let change = Change(vec![record.forget()]);
        // Where it has changed since it was read, the guard keeps it.
        keeper.handles().persistence.commit(change, None, |_| {});
    }
    if records.len() >= K::step(&keeper.tuning()).max(1) {
        let handles = Arc::clone(keeper.handles());
        keeper.handles().persistence.commit(Change::default(), None, move |committed| {
            if committed == Committed::Written {
                K::mailbox(&handles).send(Upkeep::LookAgain(now));
            }
        });
    }
}
