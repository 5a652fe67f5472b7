//! What the code registry and the activation actor have in common: records at work are kept in
//! memory, leave it when they can play no part any more, and leave the store after their retention.

use crate::Failure;
use crate::handles::Handles;
use crate::memory::pending_change::{PendingChange, Unsettled};
use crate::messages::{Command, Work};
use crate::persistence::Committed;
use crate::runtime::mailbox::{Actor, Mailbox, Receive};
use crate::runtime::metrics::ActorMetrics;
use crate::runtime::reader::FindByKey;
use crate::runtime::reply::Reply;
use crate::runtime::tuning::ActorSettings;
use actix::Message;
use hashbrown::HashMap;
use iptunnel_domain::time::Timer;
use iptunnel_domain::{Timestamp, Version};
use iptunnel_storage::{Change, ReadError, Store, Write};
use std::collections::VecDeque;
use std::hash::Hash;
use std::sync::Arc;

/// A record that is kept.
pub(crate) trait CachedRecord: Clone + Send + 'static {
    /// What it is found by.
    type Key: Copy + Eq + Hash + Send;
    /// Its place in the order in which they came.
    type Number: Copy;

    fn key(&self) -> Self::Key;
    fn number(&self) -> Self::Number;
    fn version(&self) -> Version;
    /// Whether it can still play a part on the way of a request.
    fn is_at_work(&self, now: Timestamp, tuning: &ActorSettings) -> bool;
    /// Whether it has been closed for as long as it is kept.
    fn is_forgettable(&self, now: Timestamp, tuning: &ActorSettings) -> bool;
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

/// A command that waits for the end of a change, and how it is sent on its way again.
pub(crate) type Parked = Box<dyn FnOnce() + Send>;

/// The records at work; void where another generation of the store has begun.
///
/// Where the store is this server's alone memory runs ahead of it: a record is taken for what it will
/// be as soon as its change waits in persistence's queue, behind which every answer comes that rests on
/// it. Where servers share the store memory follows: another server
/// may be faster, and whatever had been decided on a change that never came to be would be wrong. There
/// a record with a change under way is not looked at; commands about it wait for the end of the change.
/// So they do in both cases where another actor has yet to agree to the change.
pub(crate) struct RecordCache<R: CachedRecord> {
    records: HashMap<R::Key, R>,
    /// Of which records a change is under way, and what waits for its end.
    changing: HashMap<R::Key, Vec<Parked>>,
    /// Keys in the order in which they came, to be looked at in turn.
    watched: VecDeque<R::Key>,
    generation: u32,
    retention: Timer,
    /// Where retention is due: for how many ticks more the clock has to say so, and the earliest that
    /// it has said since.
    to_retain: Option<(u8, Timestamp)>,
}

impl<R: CachedRecord> RecordCache<R> {
    pub(crate) fn new() -> Self {
        Self {
            records: HashMap::new(),
            changing: HashMap::new(),
            watched: VecDeque::new(),
            generation: 0,
            retention: Timer::default(),
            to_retain: None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn get(&self, key: R::Key) -> Option<R> {
        self.records.get(&key).cloned()
    }

    /// What is known of a record, where `found` is what the store was found to hold, if it was looked
    /// at: memory may be ahead of it, or behind what another server has written.
    pub(crate) fn newest(&mut self, key: R::Key, found: Option<&Option<R>>) -> Option<R> {
        match (self.get(key), found) {
            (Some(known), Some(Some(found))) if known.version() < found.version() => {
                self.records.remove(&key);
                Some(found.clone())
            }
            (None, Some(found)) => found.clone(),
            (known, _) => known,
        }
    }

    /// Takes a record for what the store holds, or soon will.
    pub(crate) fn remember(&mut self, record: R) {
        let key = record.key();
        if self.records.insert(key, record).is_none() {
            self.watched.push_back(key);
        }
    }

    /// Whether a change of the record is under way.
    pub(crate) fn is_changing(&self, key: R::Key) -> bool {
        self.changing.contains_key(&key)
    }

    /// Lets a command wait for the end of the change that is under way; at once where there is none.
    pub(crate) fn park(&mut self, key: R::Key, command: Parked) {
        match self.changing.get_mut(&key) {
            Some(parked) => parked.push(command),
            None => command(),
        }
    }

    /// A change has come to its end: the record as it is then, or nothing where it was not written.
    /// Over a shared store another server has then perhaps been faster. Who waited goes on, in the order
    /// in which they came.
    fn settle(&mut self, key: R::Key, generation: u32, record: Option<R>, is_shared: bool) {
        match record {
            Some(record) if generation == self.generation => self.remember(record),
            None if !is_shared => {}
            _ => {
                self.records.remove(&key);
            }
        }
        for command in self.changing.remove(&key).unwrap_or_default() {
            command();
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
    fn done(
        &mut self,
        now: Timestamp,
        step: usize,
        tuning: &ActorSettings,
    ) -> Vec<(R::Key, Version)> {
        let step = step.max(self.watched.len() / 100).min(self.watched.len());
        let mut done = Vec::new();
        for _ in 0..step {
            let Some(key) = self.watched.pop_front() else { break };
            match self.records.get(&key) {
                None => {}
                Some(record) if record.is_at_work(now, tuning) => self.watched.push_back(key),
                Some(record) => done.push((key, record.version())),
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
                Some(record) if record.version() == version => {
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
pub(crate) enum Eviction<R: CachedRecord> {
    /// The time.
    Tick(Timestamp),
    /// These are on disk and were done when they were last looked at.
    Evict(Vec<(R::Key, Version)>),
    /// Records in the store that may be forgotten at this time.
    Forgettable(Vec<R>, Timestamp),
    /// So many were forgotten that there may be more.
    LookAgain(Timestamp),
    /// A change of this record has come to its end, decided in this generation: the record as it is
    /// then, or nothing where that is not known.
    Settled(R::Key, u32, Option<R>),
    /// The store works again after it had refused: whatever memory holds is void.
    Reload(u32),
}

impl<R: CachedRecord> Message for Eviction<R> {
    type Result = ();
}

/// An actor that keeps records.
pub(crate) trait CacheOwner: Actor + Receive<Eviction<Self::Record>> {
    type Record: CachedRecord;

    fn memory(&mut self) -> &mut RecordCache<Self::Record>;
    fn metrics(&self) -> &ActorMetrics;
    fn handles(&self) -> &Arc<Handles>;
    fn tuning(&self) -> Arc<ActorSettings>;
    /// How many records are looked at in one step.
    fn step(tuning: &ActorSettings) -> usize;
    fn mailbox(handles: &Handles) -> &Mailbox<Self>;

    /// Does one piece of upkeep.
    fn keep(&mut self, upkeep: Eviction<Self::Record>) {
        match upkeep {
            Eviction::Tick(now) => tick(self, now),
            Eviction::Evict(done) => self.memory().evict(done),
            Eviction::Forgettable(records, now) => forget(self, &records, now),
            Eviction::LookAgain(now) => look_for_forgettable(self, now),
            Eviction::Settled(key, generation, record) => {
                let is_shared = self.handles().is_shared();
                self.memory().settle(key, generation, record, is_shared);
            }
            Eviction::Reload(generation) => self.memory().reload(generation),
        }
    }
}

/// A change of the record with this key begins, and is committed at once: over a shared store nothing
/// may be decided on it until it has ended.
pub(crate) fn begin_change<K: CacheOwner>(
    keeper: &mut K,
    key: <K::Record as CachedRecord>::Key,
) -> PendingChange<K> {
    if keeper.handles().is_shared() { forward_change(keeper, key) } else { PendingChange(None) }
}

/// The same where another actor has to agree before it is committed, whatever the store: until then
/// nothing of it waits in persistence's queue, and an answer that rested on it would be too early.
pub(crate) fn forward_change<K: CacheOwner>(
    keeper: &mut K,
    key: <K::Record as CachedRecord>::Key,
) -> PendingChange<K> {
    let handles = Arc::clone(keeper.handles());
    let memory = keeper.memory();
    memory.changing.entry(key).or_default();
    let generation = memory.generation;
    PendingChange(Some(Unsettled { handles, key, generation, outcome: None }))
}

/// Takes a record for what its change, which has been sent on its way, will make of it, where memory
/// may run ahead of the store.
pub(crate) fn run_ahead<K: CacheOwner>(keeper: &mut K, record: K::Record) {
    if !keeper.handles().is_shared() {
        keeper.memory().remember(record);
    }
}

/// A command with what is known of its record.
pub(crate) type Loaded<C, R> = (Work<C, R>, R);

/// The command with its record; nothing where there is no such record, which is for `missing` to
/// answer, or where the command waits for the end of a change, or went to look the record up first.
/// Where servers share the store it is looked up even though memory holds it, unless what memory holds
/// is `enough`: it leads to a write, which the guard keeps from being wrong.
pub(crate) fn find<K, C>(
    keeper: &mut K,
    mut work: Work<C, K::Record>,
    key: <K::Record as CachedRecord>::Key,
    enough: impl FnOnce(&C, &K::Record) -> bool,
    missing: impl FnOnce(&Handles, Work<C, K::Record>),
) -> Option<Loaded<C, K::Record>>
where
    K: CacheOwner + Receive<Work<C, K::Record>>,
    K::Record: FindByKey<Key = <K::Record as CachedRecord>::Key>,
    C: Command,
{
    keeper.metrics().taken();
    if !keeper.memory().is_current(&mut work.reply) {
        work.reply.fail(Failure::StorageUnavailable);
        return None;
    }
    let handles = Arc::clone(keeper.handles());
    let back = Arc::clone(&handles);
    if keeper.memory().is_changing(key) {
        // What was read of it is out of date when the change has ended.
        work.found = None;
        let command = Box::new(move || {
            K::mailbox(&back).send(work);
        });
        keeper.memory().park(key, command);
        return None;
    }
    let found = work.found.take();
    match (keeper.memory().newest(key, found.as_ref()), found) {
        (Some(record), Some(_)) => Some((work, record)),
        (Some(record), None) if !handles.is_shared() || enough(&work.command, &record) => {
            Some((work, record))
        }
        (None, Some(_)) => {
            missing(&handles, work);
            None
        }
        (_, None) => {
            let forward = move |work| {
                K::mailbox(&back).send(work);
            };
            handles.reader.look_up(work, key, forward);
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

fn tick<K: CacheOwner>(keeper: &mut K, now: Timestamp) {
    let tuning = keeper.tuning();
    let done = keeper.memory().done(now, K::step(&tuning), &tuning);
    if !done.is_empty() {
        keeper.metrics().batch.observe(done.len() as f64);
        let handles = Arc::clone(keeper.handles());
        // Behind the queue, so that whatever was last written of them is on disk.
        keeper.handles().persistence.follow(move |committed| {
            // Else memory is void, and read again when the store works.
            if committed == Committed::Written {
                K::mailbox(&handles).send(Eviction::Evict(done));
            }
        });
    }
    if let Some(now) = keeper.memory().retain_at(now) {
        look_for_forgettable(keeper, now);
    }
}

/// Looks for records that may be forgotten; [`Eviction::Forgettable`] brings them back.
fn look_for_forgettable<K: CacheOwner>(keeper: &K, now: Timestamp) {
    let (handles, tuning) = (Arc::clone(keeper.handles()), keeper.tuning());
    let count = K::step(&tuning).max(1);
    keeper.handles().reader.run(move |store| {
        let oldest = forgettable(store, count, now, &tuning);
        if let Ok(records) = handles.reader.noted(oldest) {
            K::mailbox(&handles).send(Eviction::Forgettable(records, now));
        }
    });
}

/// The oldest records that may be forgotten, at most `count`. Those dated in the future are passed
/// over, so that they keep no others.
fn forgettable<R: CachedRecord>(
    store: &dyn Store,
    count: usize,
    now: Timestamp,
    tuning: &ActorSettings,
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

fn forget<K: CacheOwner>(keeper: &mut K, records: &[K::Record], now: Timestamp) {
    for record in records {
        keeper.memory().records.remove(&record.key());
        let change = Change(vec![record.forget()]);
        // Where it has changed since it was read, the guard keeps it.
        keeper.handles().persistence.commit(change, None, |_| {});
    }
    if records.len() >= K::step(&keeper.tuning()).max(1) {
        let handles = Arc::clone(keeper.handles());
        keeper.handles().persistence.follow(move |committed| {
            if committed == Committed::Written {
                K::mailbox(&handles).send(Eviction::LookAgain(now));
            }
        });
    }
}
