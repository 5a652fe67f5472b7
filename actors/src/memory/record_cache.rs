//! The record cache of the code registry and of the activation actor. Records in use stay in memory.
//! They are evicted when no request can need them any more, and deleted from the store after their
//! retention.

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

/// A record that can be cached.
pub(crate) trait CachedRecord: Clone + Send + 'static {
    /// The key by which it is found.
    type Key: Copy + Eq + Hash + Send;
    /// Its place in the order of creation.
    type Number: Copy;

    fn key(&self) -> Self::Key;
    fn number(&self) -> Self::Number;
    fn version(&self) -> Version;
    /// Whether a request may still need it.
    fn is_at_work(&self, now: Timestamp, tuning: &ActorSettings) -> bool;
    /// Whether it has been closed for its whole retention.
    fn is_forgettable(&self, now: Timestamp, tuning: &ActorSettings) -> bool;
    /// Whether it is dated in the future, which happens when a clock was wrong.
    fn is_dated_ahead(&self, now: Timestamp) -> bool;
    /// Returns the write that deletes it from the store.
    fn forget(&self) -> Write;
    /// Reads the oldest `count` records of the store, only those after a number.
    fn oldest(
        store: &dyn Store,
        after: Option<Self::Number>,
        count: usize,
    ) -> Result<Vec<Self>, ReadError>;
}

/// The records for which a table always has room. Fewer are not worth the work of making it smaller.
const LEAST_KEPT: usize = 1024;

/// A command that waits for the end of a pending change. Calling it sends the command again.
pub(crate) type Parked = Box<dyn FnOnce() + Send>;

/// The cached records. They are void once another generation of the store has begun.
///
/// Where only this server uses the store, the cache runs ahead of it: a record is cached as changed as
/// soon as its change is in persistence's queue. Every answer that depends on the change comes after
/// it in that queue.
///
/// Where servers share the store, the cache follows it. Another server's change may win, and a decision
/// based on a change that was not written would be wrong. So a record with a pending change is not
/// read, and commands about it wait for the end of the change.
///
/// In both cases commands also wait while another actor still has to agree to the change.
pub(crate) struct RecordCache<R: CachedRecord> {
    records: HashMap<R::Key, R>,
    /// The records with a pending change, and the commands that wait for its end.
    changing: HashMap<R::Key, Vec<Parked>>,
    /// Keys in the order of arrival, examined in turn for eviction.
    watched: VecDeque<R::Key>,
    generation: u32,
    retention: Timer,
    /// While retention is due: the number of ticks still to wait, and the earliest time that the clock
    /// has shown since.
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

    /// Returns the newest known version of a record. `found` is the record in the store, if it was
    /// read. The cache may be ahead of the store, or behind what another server has written.
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

    /// Caches a record that the store holds or soon will.
    pub(crate) fn remember(&mut self, record: R) {
        let key = record.key();
        if self.records.insert(key, record).is_none() {
            self.watched.push_back(key);
        }
    }

    /// Whether the record has a pending change.
    pub(crate) fn is_changing(&self, key: R::Key) -> bool {
        self.changing.contains_key(&key)
    }

    /// Whether the cached record has no pending change, and a command that is decided on it leads to a change.
    pub(crate) fn leads_to_change(&self, key: R::Key, leads: impl FnOnce(&R) -> bool) -> bool {
        !self.is_changing(key) && self.records.get(&key).is_some_and(leads)
    }

    /// Lets a command wait for the end of the pending change. Runs it at once if there is none.
    pub(crate) fn park(&mut self, key: R::Key, command: Parked) {
        match self.changing.get_mut(&key) {
            Some(parked) => parked.push(command),
            None => command(),
        }
    }

    /// Ends a pending change. `record` is the new record, or `None` if it was not written; in a shared
    /// store another server's change may have won then. The waiting commands go on, in the order of
    /// arrival.
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

    /// Whether a request was decided so far on this cache's generation of the store. If its generation
    /// is later, the cache is void and is cleared. If it is earlier, the request depends on changes that
    /// were never written, and this returns `false`.
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

    /// Examines the oldest keys: `step` of them, or one in a hundred if that is more. Returns those
    /// that no request needs any more. The others are examined again later.
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

    /// Returns the time to use for retention, if it is time to search for expired records.
    ///
    /// A deleted record does not come back. So a clock that is ahead for a moment must not decide: the
    /// earliest time that it shows within some seconds does.
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

    /// Evicts the records that have not changed since they were examined, and returns them.
    fn evict(&mut self, done: Vec<(R::Key, Version)>) -> Vec<R> {
        let mut evicted = Vec::with_capacity(done.len());
        for (key, version) in done {
            match self.records.get(&key) {
                Some(record) if record.version() == version => {
                    evicted.extend(self.records.remove(&key));
                }
                Some(_) => self.watched.push_back(key),
                None => {}
            }
        }
        self.shrink();
        evicted
    }

    /// Evicts the record with this key if `is_done` says that no request needs it and that it is on disk.
    pub(crate) fn evict_if(&mut self, key: R::Key, is_done: impl FnOnce(&R) -> bool) {
        if self.records.get(&key).is_some_and(is_done) {
            self.records.remove(&key);
        }
    }

    /// Returns the memory of a wave of records that is over. A table never shrinks by itself.
    pub(crate) fn shrink(&mut self) {
        let kept = self.records.len().max(LEAST_KEPT);
        if self.records.capacity() / 8 > kept {
            self.records.shrink_to(kept * 2);
        }
        if self.watched.capacity() / 8 > kept {
            self.watched.shrink_to(kept * 2);
        }
    }
}

/// Upkeep of an actor's cache. Sent by the actors to themselves, by the clock, and by persistence.
pub(crate) enum Eviction<R: CachedRecord> {
    /// The current time.
    Tick(Timestamp),
    /// These records are on disk, and no request needed them when they were last examined.
    Evict(Vec<(R::Key, Version)>),
    /// These records of the store may be deleted at this time.
    Forgettable(Vec<R>, Timestamp),
    /// A full batch was deleted, so there may be more.
    LookAgain(Timestamp),
    /// The pending change of this record, decided in this generation, has ended. Carries the new record,
    /// or `None` if it was not written or is not known.
    Settled(R::Key, u32, Option<R>),
    /// The store works again after a refused commit. The cache is void.
    Reload(u32),
}

impl<R: CachedRecord> Message for Eviction<R> {
    type Result = ();
}

/// An actor that owns a record cache.
pub(crate) trait CacheOwner: Actor + Receive<Eviction<Self::Record>> {
    type Record: CachedRecord;

    fn memory(&mut self) -> &mut RecordCache<Self::Record>;
    fn metrics(&self) -> &ActorMetrics;
    fn handles(&self) -> &Arc<Handles>;
    fn tuning(&self) -> Arc<ActorSettings>;
    /// The number of records examined in one step.
    fn step(tuning: &ActorSettings) -> usize;
    fn mailbox(handles: &Handles) -> &Mailbox<Self>;

    /// Is told which records were evicted because no request needs them any more.
    fn evicted(&self, _: Vec<Self::Record>) {}

    /// Handles one upkeep message.
    fn keep(&mut self, upkeep: Eviction<Self::Record>) {
        match upkeep {
            Eviction::Tick(now) => tick(self, now),
            Eviction::Evict(done) => {
                let evicted = self.memory().evict(done);
                if !evicted.is_empty() {
                    self.evicted(evicted);
                }
            }
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

/// Begins a change of the record with this key that is sent to persistence at once. In a shared store
/// nothing may be decided on the record until the change has ended.
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

/// Returns the command with its record. Returns `None` if the command waits for the end of a pending
/// change, if the record is being looked up first, or if the record does not exist; then `missing`
/// answers.
///
/// Where servers share the store, a cached record is looked up again unless it is `enough`: the command
/// then leads to a write, and the write's guard detects an outdated record.
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
        // The record that was read is out of date when the change has ended.
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

/// Seconds between two searches for expired records.
const RETENTION_EVERY: u64 = 60;
/// Pages of the oldest records that one search reads. The bound matters where the clock is far behind:
/// then all records seem to be dated in the future.
const PAGES: usize = 100;
/// Ticks for which retention must be due before anything is deleted: five seconds.
const RETENTION_TICKS: u8 = 25;

fn tick<K: CacheOwner>(keeper: &mut K, now: Timestamp) {
    let tuning = keeper.tuning();
    let done = keeper.memory().done(now, K::step(&tuning), &tuning);
    if !done.is_empty() {
        keeper.metrics().batch.observe(done.len() as f64);
        let handles = Arc::clone(keeper.handles());
        // Queued, so that their last change is on disk before they are evicted.
        keeper.handles().persistence.follow(move |committed| {
            // Otherwise the cache is void, and is read again when the store works.
            if committed == Committed::Written {
                K::mailbox(&handles).send(Eviction::Evict(done));
            }
        });
    }
    if let Some(now) = keeper.memory().retain_at(now) {
        look_for_forgettable(keeper, now);
    }
}

/// Searches the store for records that may be deleted. [`Eviction::Forgettable`] returns them.
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

/// Returns the oldest records that may be deleted, at most `count`. Records dated in the future are
/// skipped, so that they do not block others.
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
        // If it has changed since it was read, the guard prevents the deletion.
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

#[cfg(test)]
mod tests {
    use super::*;
    use iptunnel_domain::code::CodeNumber;

    #[derive(Clone)]
    struct Record(u64);

    impl CachedRecord for Record {
        type Key = u64;
        type Number = u64;

        fn key(&self) -> u64 {
            self.0
        }
        fn number(&self) -> u64 {
            self.0
        }
        fn version(&self) -> Version {
            1
        }
        fn is_at_work(&self, _: Timestamp, _: &ActorSettings) -> bool {
            false
        }
        fn is_forgettable(&self, _: Timestamp, _: &ActorSettings) -> bool {
            false
        }
        fn is_dated_ahead(&self, _: Timestamp) -> bool {
            false
        }
        fn forget(&self) -> Write {
            Write::ForgetCode(CodeNumber(self.0), 1)
        }
        fn oldest(_: &dyn Store, _: Option<u64>, _: usize) -> Result<Vec<Self>, ReadError> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn a_wave_of_records_that_is_over_leaves_no_large_table_behind() {
        const WAVE: usize = 50_000;
        let mut cache = RecordCache::new();
        (0..WAVE as u64).for_each(|number| cache.remember(Record(number)));
        assert!(cache.records.capacity() >= WAVE);
        let done = std::mem::take(&mut cache.watched).into_iter().map(|key| (key, 1)).collect();
        cache.evict(done);
        assert_eq!(cache.len(), 0);
        assert!(cache.records.capacity() <= 4 * LEAST_KEPT);
    }
}
