//! The persistence actor: a thread of its own that commits queued changes in batches, then answers.
//!
//! There is no timer. It commits as soon as its queue is empty or a batch is full, and the next batch
//! gathers while the engine syncs. A single change costs one sync; a thousand waiting changes share
//! one. Where the store has a pace ([`Store::pace`]), the next commit begins when the store should be
//! done with the last one, before that is known. It is a plain loop over a queue, not an actix actor:
//! actix hands over one message at a time, and its actors cannot tell when their queue is empty.

use crate::Failure;
use crate::runtime::health::Health;
use crate::runtime::metrics::{ActorMetrics, Metrics};
use crate::runtime::tuning::ActorSettings;
use arc_swap::ArcSwap;
use iptunnel_storage::{Change, CommitError, Outage, Store, Verdict};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The outcome of a change, reported to its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    /// It is on disk, and so is everything sent before it.
    Written,
    /// The record it was decided on has changed since, or a limit is reached. Nothing was written.
    Conflict,
    /// The store refused and nothing was written, or the outcome is unknown.
    Failed(Failure),
}

/// The counts of the limits of a change with a charge, if they are known.
pub(crate) type Counts = Option<Vec<u32>>;

type Done = Box<dyn FnOnce(Committed, Counts) + Send>;

struct Job {
    what: What,
    /// The generation of the store on which this was decided. `None` if it depends on no change that
    /// a refused commit could have lost.
    generation: Option<u32>,
    done: Done,
}

/// What a sender waits for.
enum What {
    /// Writes a change.
    Write(Change),
    /// Confirms that what was read or cached is on disk, so that an answer may depend on it.
    Confirm,
    /// Waits until everything sent before has ended.
    Follow,
}

type Outcome = Result<Vec<Verdict>, CommitError>;

#[derive(Default)]
struct Queue {
    jobs: Vec<Job>,
    /// The outcomes of commits that were under way, in their order.
    ended: VecDeque<Outcome>,
    /// The store refuses commits: new jobs fail at once.
    refusing: bool,
    stopping: bool,
}

/// The queue of the persistence actor.
pub(crate) struct Persistence {
    queue: Mutex<Queue>,
    arrived: Condvar,
    metrics: ActorMetrics,
    /// Increases each time the store refuses a commit. Earlier decisions may depend on changes that
    /// were never written.
    generation: AtomicU32,
    /// The start of the commit in progress.
    writing_since: Mutex<Option<Instant>>,
}

impl Persistence {
    pub(crate) fn new(observed: &Metrics) -> Self {
        Self {
            queue: Mutex::default(),
            arrived: Condvar::new(),
            metrics: observed.actor("persistence"),
            generation: AtomicU32::new(0),
            writing_since: Mutex::default(),
        }
    }

    /// Queues `change` and calls `done` with its outcome.
    pub(crate) fn commit(
        &self,
        change: Change,
        generation: Option<u32>,
        done: impl FnOnce(Committed) + Send + 'static,
    ) {
        self.queue(What::Write(change), generation, |committed, _| done(committed));
    }

    /// The same for a change with a charge: `done` gets the counts of its limits too.
    pub(crate) fn commit_charged(
        &self,
        change: Change,
        generation: Option<u32>,
        done: impl FnOnce(Committed, Counts) + Send + 'static,
    ) {
        self.queue(What::Write(change), generation, done);
    }

    /// Calls `done` once an answer may depend on what was read or cached: everything sent before is on
    /// disk, and so is everything that other servers have written and that was visible when it was
    /// read. A shared store may show changes that its standby has not confirmed. A later commit of our
    /// own that the standby confirms proves all changes before it.
    pub(crate) fn confirm(
        &self,
        generation: Option<u32>,
        done: impl FnOnce(Committed) + Send + 'static,
    ) {
        self.queue(What::Confirm, generation, |committed, _| done(committed));
    }

    /// Calls `done` once everything sent before has ended.
    pub(crate) fn follow(&self, done: impl FnOnce(Committed) + Send + 'static) {
        self.queue(What::Follow, None, |committed, _| done(committed));
    }

    fn queue(
        &self,
        what: What,
        generation: Option<u32>,
        done: impl FnOnce(Committed, Counts) + Send + 'static,
    ) {
        let mut queue = self.lock();
        if queue.refusing {
            drop(queue);
            return done(Committed::Failed(Failure::StorageUnavailable), None);
        }
        self.metrics.depth.inc();
        queue.jobs.push(Job { what, generation, done: Box::new(done) });
        let first = queue.jobs.len() == 1;
        drop(queue);
        if first {
            self.arrived.notify_one();
        }
    }

    /// Returns the current generation. A command is decided in the generation in which its reads began.
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Returns how long the commit in progress has taken so far; zero if there is none.
    pub(crate) fn writes_for(&self) -> Duration {
        let since = *self.writing_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Lets the thread end once its queue is empty.
    pub(crate) fn stop(&self) {
        self.lock().stopping = true;
        self.arrived.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a commit has ended, or until jobs wait and the time `begin` has come from which the next
    /// commit may be begun; at most `patience`. Takes at most `count` jobs.
    fn next(
        &self,
        under_way: usize,
        begin: Option<Instant>,
        patience: Duration,
        count: usize,
    ) -> Next {
        let end = Instant::now() + patience;
        let mut queue = self.lock();
        loop {
            if let Some(outcome) = queue.ended.pop_front() {
                return Next::Ended(outcome);
            }
            let now = Instant::now();
            let waits = !queue.jobs.is_empty();
            if waits && begin.is_some_and(|begin| begin <= now) {
                let count = count.min(queue.jobs.len());
                return Next::Begin(queue.jobs.drain(..count).collect());
            }
            if !waits && queue.stopping && under_way == 0 {
                return Next::Stop;
            }
            if end <= now {
                return Next::Idle;
            }
            let wake = begin.filter(|_| waits).map_or(end, |begin| begin.min(end));
            let woken = self.arrived.wait_timeout(queue, wake - now);
            (queue, _) = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn has_ended(&self, outcome: Outcome) {
        self.lock().ended.push_back(outcome);
        self.arrived.notify_one();
    }

    /// Returns the number of waiting jobs.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().jobs.len()
    }

    /// Creates the writer of this queue. It calls `recovered` with the new generation when the store
    /// works again after a refused commit.
    pub(crate) fn writer(
        self: &Arc<Self>,
        store: Arc<dyn Store>,
        tuning: Arc<ArcSwap<ActorSettings>>,
        health: Arc<Health>,
        observed: &Metrics,
        recovered: impl Fn(u32) + Send + 'static,
    ) -> Writer {
        Writer {
            inbox: Arc::clone(self),
            store,
            tuning,
            health,
            observed: observed.clone(),
            recovered: Box::new(recovered),
            refuses: Outage::new(
                "the store does not take commits",
                "the store takes commits again",
            ),
        }
    }
}

/// What the thread does next.
enum Next {
    /// The oldest commit has ended.
    Ended(Outcome),
    /// These jobs wait.
    Begin(Vec<Job>),
    /// Nothing has happened for some time.
    Idle,
    /// The thread ends.
    Stop,
}

/// The most commits under way. With the 1 to 2 ms for which a database works on one, so many fill a round trip of
/// 10 ms; beyond that commits grow.
const UNDER_WAY: usize = 8;
/// How often a store that refuses commits is probed.
const RETRY: Duration = Duration::from_secs(1);
/// The longest time without a commit to a shared store, so that a failure is noticed within seconds.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// How long an idle thread waits. It has nothing to do then, and waking up costs nothing.
const IDLE: Duration = Duration::from_secs(60);

/// Gathers a batch, commits it, and answers. A thread takes these three steps one after the other; a
/// simulation does other things between them.
pub(crate) struct Writer {
    inbox: Arc<Persistence>,
    store: Arc<dyn Store>,
    tuning: Arc<ArcSwap<ActorSettings>>,
    health: Arc<Health>,
    observed: Metrics,
    recovered: Box<dyn Fn(u32) + Send>,
    /// On after a refused commit. Then the store is only probed, once a second.
    refuses: Outage,
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.health.is_draining() {
            self.health.fail("the persistence thread has ended");
        }
    }
}

/// Changes that are committed together, and the senders that wait.
pub(crate) struct Batch {
    changes: Vec<Change>,
    /// Whether a sender waits until the changes of other servers are confirmed.
    confirms: bool,
    /// Each waiting sender, and whether one of the changes is theirs. If not, they only wait for the
    /// changes sent before.
    waiting: Vec<(bool, Done)>,
}

impl Writer {
    /// Starts the thread.
    pub(crate) fn spawn(self) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("persistence".into()).spawn(move || self.run())
    }

    /// Whether the store refuses commits and is only probed.
    pub(crate) fn is_refusing(&self) -> bool {
        self.refuses.is_on()
    }

    /// Takes the waiting jobs that fit into one commit. Returns `None` if there are none.
    pub(crate) fn gather_now(&mut self) -> Option<Batch> {
        let mut queue = self.inbox.lock();
        let count = self.tuning.load().batches.persistence.max(1).min(queue.jobs.len());
        let jobs: Vec<Job> = queue.jobs.drain(..count).collect();
        drop(queue);
        (count > 0).then(|| self.gather(jobs))
    }

    /// Where the store has a pace, begins a commit when the store should be done with the one before it, although
    /// the answer to that may still be on its way. So a store that is far away is kept as busy as a near one, and
    /// commits are as large.
    fn run(mut self) {
        let is_shared = self.store.shared().is_some();
        let idle = if is_shared { SIGN_OF_LIFE } else { IDLE };
        let mut probed = Instant::now();
        let mut begun = probed;
        let mut under_way: VecDeque<(Batch, Instant)> = VecDeque::new();
        loop {
            let is_refusing = self.is_refusing();
            let begin = match under_way.len() {
                0 => Some(begun),
                1..UNDER_WAY if !is_refusing => self.store.pace().map(|pace| begun + pace),
                _ => None,
            };
            let patience = if is_refusing { RETRY } else { idle };
            let count = self.tuning.load().batches.persistence.max(1);
            match self.inbox.next(under_way.len(), begin, patience, count) {
                Next::Ended(outcome) => {
                    let Some((batch, since)) = under_way.pop_front() else { continue };
                    self.has_written(since);
                    self.is_writing(under_way.front().map(|(_, since)| *since));
                    self.answer(batch, outcome);
                }
                Next::Begin(jobs) => {
                    let batch = self.gather(jobs);
                    if !batch.changes.is_empty() || batch.confirms {
                        begun = Instant::now();
                        let oldest = under_way.front().map_or(begun, |(_, since)| *since);
                        self.is_writing(Some(oldest));
                        under_way.push_back((self.begin(batch), begun));
                    } else if let Some((last, _)) = under_way.back_mut() {
                        // These wait only for what was sent before.
                        last.waiting.extend(batch.waiting);
                    } else {
                        self.answer(batch, Ok(Vec::new()));
                    }
                }
                // No job waits. But a server that cannot commit to a shared store must not report that it is ready.
                Next::Idle if is_shared && under_way.is_empty() && !is_refusing => {
                    let alive = Batch { changes: Vec::new(), confirms: true, waiting: Vec::new() };
                    begun = Instant::now();
                    self.is_writing(Some(begun));
                    under_way.push_back((self.begin(alive), begun));
                }
                Next::Idle => {}
                Next::Stop => return,
            }
            if self.is_refusing() && under_way.is_empty() && probed.elapsed() >= RETRY {
                probed = Instant::now();
                self.probe();
            }
        }
    }

    /// Begins to write a batch.
    fn begin(&self, mut batch: Batch) -> Batch {
        self.inbox.metrics.batch.observe(batch.changes.len() as f64);
        let inbox = Arc::clone(&self.inbox);
        let changes = std::mem::take(&mut batch.changes);
        self.store.begin(changes, Box::new(move |outcome| inbox.has_ended(outcome)));
        batch
    }

    fn has_written(&self, since: Instant) {
        self.observed.commit_seconds.observe(since.elapsed().as_secs_f64());
        self.observed.commits.inc();
    }

    /// Makes jobs into a batch. Jobs of an earlier generation fail.
    fn gather(&mut self, jobs: Vec<Job>) -> Batch {
        let metrics = &self.inbox.metrics;
        metrics.depth.dec_by(jobs.len() as i64);
        metrics.messages.inc_by(jobs.len() as u64);
        let generation = self.inbox.generation.load(Ordering::Relaxed);
        let mut changes = Vec::with_capacity(jobs.len());
        let mut waiting = Vec::with_capacity(jobs.len());
        let mut confirms = false;
        let is_refusing = self.is_refusing();
        for Job { what, generation: decided_on, done } in jobs {
            if is_refusing || decided_on.is_some_and(|decided_on| decided_on != generation) {
                done(Committed::Failed(Failure::StorageUnavailable), None);
                continue;
            }
            let writes = matches!(what, What::Write(_));
            match what {
                What::Write(change) => changes.push(change),
                What::Confirm => confirms = true,
                What::Follow => {}
            }
            waiting.push((writes, done));
        }
        // A store that is not shared holds only what this server has written.
        confirms &= self.store.shared().is_some();
        Batch { changes, confirms, waiting }
    }

    /// Writes a batch.
    pub(crate) fn write(&self, batch: &Batch) -> Outcome {
        let changes = &batch.changes;
        if changes.is_empty() && !batch.confirms {
            return Ok(Vec::new());
        }
        self.inbox.metrics.batch.observe(changes.len() as f64);
        let started = Instant::now();
        self.is_writing(Some(started));
        let outcome = self.store.commit(changes);
        self.is_writing(None);
        self.has_written(started);
        outcome
    }

    fn is_writing(&self, since: Option<Instant>) {
        *self.inbox.writing_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Reports the outcome to every sender.
    pub(crate) fn answer(&mut self, batch: Batch, outcome: Outcome) {
        let waiting = batch.waiting;
        let failed = match outcome {
            Ok(verdicts) => {
                let mut verdicts = verdicts.into_iter();
                for (writes, done) in waiting {
                    match if writes { verdicts.next() } else { Some(Verdict::Written) } {
                        Some(Verdict::Written) => done(Committed::Written, None),
                        Some(Verdict::Charged(used)) => done(Committed::Written, Some(used)),
                        Some(Verdict::Conflict) => done(Committed::Conflict, None),
                        None => done(Committed::Failed(Failure::OutcomeUnknown), None),
                    }
                }
                return;
            }
            Err(CommitError::Refused(reason)) => {
                self.refuse(&reason);
                Failure::StorageUnavailable
            }
            Err(CommitError::Unknown(reason)) => {
                self.refuse(&reason);
                Failure::OutcomeUnknown
            }
        };
        for (_, done) in waiting {
            done(Committed::Failed(failed), None);
        }
        // A shared store resolves the outcome itself before it takes the next commit.
        if failed == Failure::OutcomeUnknown && self.store.shared().is_none() {
            // After the answers, because from here on the server shuts down.
            self.health.fail("the outcome of a commit is unknown");
        }
    }

    /// Begins a new generation, because earlier decisions may depend on the refused changes.
    fn refuse(&self, reason: &str) {
        self.refuses.begins(reason);
        self.inbox.lock().refusing = true;
        self.health.note_store_works(false);
        self.inbox.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// Checks whether the store takes commits again.
    pub(crate) fn probe(&mut self) {
        if self.health.has_failed() {
            return;
        }
        match self.store.probe() {
            Ok(_) => {
                self.inbox.lock().refusing = false;
                (self.recovered)(self.inbox.generation.load(Ordering::Relaxed));
                self.health.note_store_works(true);
                self.refuses.ends();
            }
            Err(CommitError::Refused(_)) => {}
            Err(CommitError::Unknown(reason)) => {
                if self.store.shared().is_none() {
                    self.health.fail(&format!("the store cannot be opened again: {reason}"));
                }
            }
        }
    }
}
