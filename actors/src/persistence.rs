//! The persistence actor: a thread of its own that commits whatever has gathered, then answers.
//!
//! There is no timer: it commits when its queue has run dry or a batch is full, and while the
//! engine syncs, the next batch gathers. A lone change costs one sync; a thousand waiting ones
//! share one. It is a plain loop over a queue and not an actix actor, because an actix actor is
//! handed one message at a time and never learns that its queue has run dry.

use crate::Failure;
use crate::runtime::health::Health;
use crate::runtime::metrics::{ActorMetrics, Metrics};
use crate::runtime::tuning::ActorSettings;
use arc_swap::ArcSwap;
use iptunnel_storage::{Change, CommitError, Outage, Store, Verdict};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What became of a change, as told to whoever sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    /// It is on disk, and so is everything that was sent before it.
    Written,
    /// It was decided on a record that has changed since; nothing was written.
    Conflict,
    /// The store refused, and nothing was written; or it may or may not be on disk.
    Failed(Failure),
}

type Done = Box<dyn FnOnce(Committed) + Send>;

struct Job {
    what: What,
    /// The generation of the store on which this was decided; `None` where it rests on nothing that
    /// a refused commit could have taken back.
    generation: Option<u32>,
    done: Done,
}

/// What somebody waits for.
enum What {
    /// A change, until it is on disk.
    Write(Change),
    /// That what was read, or what memory held, is on disk, so that an answer may rest on it.
    Confirm,
    /// That everything sent before has come to its end.
    Follow,
}

#[derive(Default)]
struct Queue {
    jobs: Vec<Job>,
    /// The store refuses: whoever comes hears so at once, and waits for nobody.
    refusing: bool,
    stopping: bool,
}

/// The way into the persistence actor.
pub(crate) struct Persistence {
    queue: Mutex<Queue>,
    arrived: Condvar,
    metrics: ActorMetrics,
    /// Grows each time the store refuses a commit: what was decided before rests on changes that
    /// never came to be.
    generation: AtomicU32,
    /// Since when the store has had the batch that it has now.
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

    /// Queues `change` and calls `done` when it is known what became of it.
    pub(crate) fn commit(
        &self,
        change: Change,
        generation: Option<u32>,
        done: impl FnOnce(Committed) + Send + 'static,
    ) {
        self.queue(What::Write(change), generation, done);
    }

    /// Calls `done` once an answer may be given that rests on what was read or on what memory holds:
    /// everything sent before is on disk, and so is whatever other servers have written that was
    /// visible when it was read. What is visible in a shared store need not be confirmed by its
    /// standby; a commit of our own that comes later, and is, proves all before it.
    pub(crate) fn confirm(
        &self,
        generation: Option<u32>,
        done: impl FnOnce(Committed) + Send + 'static,
    ) {
        self.queue(What::Confirm, generation, done);
    }

    /// Calls `done` once everything sent before has come to its end.
    pub(crate) fn follow(&self, done: impl FnOnce(Committed) + Send + 'static) {
        self.queue(What::Follow, None, done);
    }

    fn queue(
        &self,
        what: What,
        generation: Option<u32>,
        done: impl FnOnce(Committed) + Send + 'static,
    ) {
        let mut queue = self.lock();
        if queue.refusing {
            drop(queue);
            return done(Committed::Failed(Failure::StorageUnavailable));
        }
        self.metrics.depth.inc();
        queue.jobs.push(Job { what, generation, done: Box::new(done) });
        let first = queue.jobs.len() == 1;
        drop(queue);
        if first {
            self.arrived.notify_one();
        }
    }

    /// The present generation: whoever reads in order to decide names the one in which they began.
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    /// For how long the store has had the batch that it has now.
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

    /// Waits for work, at most `patience`. `None` when it is time to end.
    fn take(&self, patience: Duration) -> Option<Vec<Job>> {
        let queue = self.lock();
        let idle = |queue: &mut Queue| queue.jobs.is_empty() && !queue.stopping;
        let (mut queue, _) = self
            .arrived
            .wait_timeout_while(queue, patience, idle)
            .unwrap_or_else(PoisonError::into_inner);
        if queue.jobs.is_empty() && queue.stopping {
            return None;
        }
        Some(std::mem::take(&mut queue.jobs))
    }

    /// How many changes wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().jobs.len()
    }

    /// Who takes the changes out. `recovered` is called with the new generation when the store
    /// works again after it has refused.
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

/// How often a store that refused is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long a shared store is left without a commit: whether it takes any is known within seconds.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// The thread has nothing to do on its own; it wakes up all the same, which costs nothing.
const IDLE: Duration = Duration::from_secs(60);

/// Commits what has gathered, and answers: three steps, which a thread takes one after the other and
/// a simulation with other things between them.
pub(crate) struct Writer {
    inbox: Arc<Persistence>,
    store: Arc<dyn Store>,
    tuning: Arc<ArcSwap<ActorSettings>>,
    health: Arc<Health>,
    observed: Metrics,
    recovered: Box<dyn Fn(u32) + Send>,
    /// On where the last commit was refused: then nothing is tried but a probe, once a second.
    refuses: Outage,
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.health.is_draining() {
            self.health.fail("the persistence thread has ended");
        }
    }
}

/// Changes that are committed together, and who waits for each.
pub(crate) struct Batch {
    changes: Vec<Change>,
    /// Whether somebody waits for what others have written to be confirmed.
    confirms: bool,
    /// Whether one of the changes is theirs; else they only wait for what was sent before.
    waiting: Vec<(bool, Done)>,
}

impl Writer {
    /// Starts the thread.
    pub(crate) fn spawn(self) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("persistence".into()).spawn(move || self.run())
    }

    /// Whether the store refuses, and is only probed.
    pub(crate) fn is_refusing(&self) -> bool {
        self.refuses.is_on()
    }

    /// What waits now, as much as goes into one commit; `None` where there is nothing.
    pub(crate) fn gather_now(&mut self) -> Option<Batch> {
        let mut queue = self.inbox.lock();
        let count = self.tuning.load().batches.persistence.max(1).min(queue.jobs.len());
        let jobs: Vec<Job> = queue.jobs.drain(..count).collect();
        drop(queue);
        (count > 0).then(|| self.gather(jobs))
    }

    fn run(mut self) {
        let mut probed = Instant::now();
        let idle = if self.store.shared().is_some() { SIGN_OF_LIFE } else { IDLE };
        let patience = |refusing| if refusing { RETRY } else { idle };
        while let Some(jobs) = self.inbox.take(patience(self.is_refusing())) {
            if jobs.is_empty() && !self.is_refusing() && self.store.shared().is_some() {
                // Nobody waits; but a server that could not commit must not be called ready.
                let alive = Batch { changes: Vec::new(), confirms: true, waiting: Vec::new() };
                let outcome = self.write(&alive);
                self.answer(alive, outcome);
            }
            let batch = self.tuning.load().batches.persistence.max(1);
            let mut jobs = jobs.into_iter();
            loop {
                let step: Vec<Job> = jobs.by_ref().take(batch).collect();
                if step.is_empty() {
                    break;
                }
                let batch = self.gather(step);
                let outcome = self.write(&batch);
                self.answer(batch, outcome);
            }
            if self.is_refusing() && probed.elapsed() >= RETRY {
                probed = Instant::now();
                self.probe();
            }
        }
    }

    /// Takes up what may be committed; the rest hears that it may not.
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
                done(Committed::Failed(Failure::StorageUnavailable));
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
        // What is this server's alone holds nothing that this server has not written.
        confirms &= self.store.shared().is_some();
        Batch { changes, confirms, waiting }
    }

    /// Writes a batch.
    pub(crate) fn write(&self, batch: &Batch) -> Result<Vec<Verdict>, CommitError> {
        let changes = &batch.changes;
        if changes.is_empty() && !batch.confirms {
            return Ok(Vec::new());
        }
        self.inbox.metrics.batch.observe(changes.len() as f64);
        let started = Instant::now();
        self.is_writing(Some(started));
        let outcome = self.store.commit(changes);
        self.is_writing(None);
        self.observed.commit_seconds.observe(started.elapsed().as_secs_f64());
        self.observed.commits.inc();
        outcome
    }

    fn is_writing(&self, since: Option<Instant>) {
        *self.inbox.writing_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Tells everyone what became of their change.
    pub(crate) fn answer(&mut self, batch: Batch, outcome: Result<Vec<Verdict>, CommitError>) {
        let waiting = batch.waiting;
        let failed = match outcome {
            Ok(verdicts) => {
                let mut verdicts = verdicts.into_iter();
                for (writes, done) in waiting {
                    done(match if writes { verdicts.next() } else { Some(Verdict::Written) } {
                        Some(Verdict::Written) => Committed::Written,
                        Some(Verdict::Conflict) => Committed::Conflict,
                        None => Committed::Failed(Failure::OutcomeUnknown),
                    });
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
            done(Committed::Failed(failed));
        }
        // A shared store finds out what became of it before it takes the next one.
        if failed == Failure::OutcomeUnknown && self.store.shared().is_none() {
            // After the answers: from here on the server is on its way out.
            self.health.fail("the outcome of a commit is unknown");
        }
    }

    /// Everything decided so far may rest on what was refused: a new generation begins.
    fn refuse(&self, reason: &str) {
        self.refuses.begins(reason);
        self.inbox.lock().refusing = true;
        self.health.store_works(false);
        self.inbox.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// Tries whether the store takes commits again.
    pub(crate) fn probe(&mut self) {
        if self.health.has_failed() {
            return;
        }
        match self.store.probe() {
            Ok(_) => {
                self.inbox.lock().refusing = false;
                (self.recovered)(self.inbox.generation.load(Ordering::Relaxed));
                self.health.store_works(true);
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
