//! The reader: looks up records that memory lacks, on threads of its own, and sends the command back
//! with the record.
//!
//! A stale read does no harm: a change decided on it names the record's version, and the guard of the
//! commit detects that it is outdated.

use crate::Failure;
use crate::messages::{Command, Work};
use iptunnel_domain::activation::{Activation, ActivationId};
use iptunnel_domain::code::{Code, CodeHash};
use iptunnel_domain::server::{Server, ServerId};
use iptunnel_storage::{Outage, ReadError, Shared, Store};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Reads may wait for the disk. With two threads, one slow page does not hold up all other reads.
const THREADS: usize = 2;
/// Records read from a shared store at once: many take hardly longer than one.
const TOGETHER: usize = 256;

/// A record that is looked up by its key.
pub(crate) trait FindByKey: Sized + Send + 'static {
    type Key: Copy;

    fn read(store: &dyn Store, keys: &[Self::Key]) -> Result<Vec<Option<Self>>, ReadError>;
    fn job(lookup: Lookup<Self>) -> Job;
}

impl FindByKey for Code {
    type Key = CodeHash;

    fn read(store: &dyn Store, keys: &[CodeHash]) -> Result<Vec<Option<Self>>, ReadError> {
        store.codes(keys)
    }
    fn job(lookup: Lookup<Self>) -> Job {
        Job::Code(lookup)
    }
}

impl FindByKey for Activation {
    type Key = ActivationId;

    fn read(store: &dyn Store, keys: &[ActivationId]) -> Result<Vec<Option<Self>>, ReadError> {
        store.activations(keys)
    }
    fn job(lookup: Lookup<Self>) -> Job {
        Job::Activation(lookup)
    }
}

/// How a registered server is found in a shared store.
#[derive(Clone, Copy)]
pub(crate) enum ServerKey {
    /// By its id.
    Id(ServerId),
    /// By the id of its address.
    Address(ServerId),
}

impl FindByKey for Server {
    type Key = ServerKey;

    fn read(store: &dyn Store, keys: &[ServerKey]) -> Result<Vec<Option<Self>>, ReadError> {
        let Some(shared) = store.shared() else { return Ok(Vec::new()) };
        let (mut ids, mut addresses) = (Vec::new(), Vec::new());
        for key in keys {
            match key {
                ServerKey::Id(id) => ids.push(*id),
                ServerKey::Address(id) => addresses.push(*id),
            }
        }
        let some = |ids: Vec<ServerId>, read: fn(&dyn Shared, &[ServerId]) -> _| {
            if ids.is_empty() { Ok(Vec::new()) } else { read(shared, &ids) }
        };
        let mut by_id = some(ids, |shared, ids| shared.servers_of(ids))?.into_iter();
        let mut by_address = some(addresses, |shared, ids| shared.servers_at(ids))?.into_iter();
        let found = keys.iter().map(|key| match key {
            ServerKey::Id(_) => by_id.next().flatten(),
            ServerKey::Address(_) => by_address.next().flatten(),
        });
        Ok(found.collect())
    }
    fn job(lookup: Lookup<Self>) -> Job {
        Job::Server(lookup)
    }
}

/// A key, and the callback for the record.
pub(crate) struct Lookup<R: FindByKey> {
    key: R::Key,
    done: Box<dyn FnOnce(Result<Option<R>, ReadError>) + Send>,
}

type Run = Box<dyn FnOnce(&dyn Store) + Send>;

pub(crate) enum Job {
    Code(Lookup<Code>),
    Activation(Lookup<Activation>),
    Server(Lookup<Server>),
    Other(Run),
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Jobs of unproven callers and of callers over a limit. They are looked up only when no other job
    /// waits, so that a flood of them does not delay others.
    unproven: VecDeque<Job>,
    stopped: bool,
}

/// The number of unproven callers that may wait. More are refused as overloaded at once.
const UNPROVEN: usize = 256;

/// The queue of the reader threads. The permits of the waiting requests bound it.
#[derive(Clone)]
pub(crate) struct Reader(Arc<Inner>);

struct Inner {
    queue: Mutex<Queue>,
    arrived: Condvar,
    fails: Outage,
}

impl Default for Reader {
    fn default() -> Self {
        let fails = Outage::new("records cannot be read", "records can be read again");
        Self(Arc::new(Inner { queue: Mutex::default(), arrived: Condvar::new(), fails }))
    }
}

impl Reader {
    /// Starts the reader threads.
    pub(crate) fn spawn(&self, store: &Arc<dyn Store>) -> std::io::Result<Vec<JoinHandle<()>>> {
        (0..THREADS)
            .map(|number| {
                let (reader, store) = (self.clone(), Arc::clone(store));
                std::thread::Builder::new()
                    .name(format!("reader-{number}"))
                    .spawn(move || reader.work(store.as_ref()))
            })
            .collect()
    }

    /// Returns the number of waiting jobs.
    pub(crate) fn waiting(&self) -> usize {
        let queue = self.lock();
        queue.jobs.len() + queue.unproven.len()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, job: Job) {
        let mut queue = self.lock();
        // A dropped job notifies its caller.
        if !queue.stopped {
            queue.jobs.push_back(job);
            drop(queue);
            self.0.arrived.notify_one();
        }
    }

    /// Runs `job` on a reader thread. Drops it if the server is shutting down.
    pub(crate) fn run(&self, job: impl FnOnce(&dyn Store) + Send + 'static) {
        self.send(Job::Other(Box::new(job)));
    }

    /// Reads the record with this key and forwards the command with it. If the read fails, the request
    /// fails.
    pub(crate) fn look_up<C: Command, R: FindByKey>(
        &self,
        work: Work<C, R>,
        key: R::Key,
        forward: impl FnOnce(Work<C, R>) + Send + 'static,
    ) {
        if work.command.is_proven() && work.reply.limit_reached().is_none() {
            return self.find(key, |found| hand_on(found, work, forward));
        }
        let mut queue = self.lock();
        if queue.stopped || queue.unproven.len() >= UNPROVEN {
            drop(queue);
            return match work.reply.limit_reached() {
                Some(limit) => work.reply.refuse(limit),
                None => work.reply.fail(Failure::Overloaded),
            };
        }
        let done = Box::new(move |found| hand_on(found, work, forward));
        queue.unproven.push_back(R::job(Lookup { key, done }));
        drop(queue);
        self.0.arrived.notify_one();
    }

    /// Reads the record with this key.
    pub(crate) fn find<R: FindByKey>(
        &self,
        key: R::Key,
        done: impl FnOnce(Result<Option<R>, ReadError>) + Send + 'static,
    ) {
        self.send(R::job(Lookup { key, done: Box::new(done) }));
    }

    /// Reads a record with `read` and forwards the command with it.
    pub(crate) fn look_up_with<C: Command, R: Send + 'static>(
        &self,
        work: Work<C, R>,
        read: impl FnOnce(&dyn Store) -> Result<Option<R>, ReadError> + Send + 'static,
        forward: impl FnOnce(Work<C, R>) + Send + 'static,
    ) {
        let reader = self.clone();
        self.run(move |store| hand_on(reader.noted(read(store)), work, forward));
    }

    /// Lets the threads end once their queue is empty.
    pub(crate) fn stop(&self) {
        self.lock().stopped = true;
        self.0.arrived.notify_all();
    }

    /// Waits for the next job, and takes with it the jobs behind it that can be looked up together.
    /// Returns an empty list at the end.
    fn next(&self, together: usize) -> Vec<Job> {
        let idle = |queue: &mut Queue| queue.is_empty() && !queue.stopped;
        let queue = self.0.arrived.wait_while(self.lock(), idle);
        let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
        queue.take(together)
    }

    fn work(&self, store: &dyn Store) {
        let together = if store.shared().is_some() { TOGETHER } else { 1 };
        loop {
            let jobs = self.next(together);
            if jobs.is_empty() {
                return;
            }
            self.read(store, jobs).into_iter().for_each(|found| found());
        }
    }

    /// Reads for the jobs that wait now. Calling the returned continuations, each once, forwards the
    /// results.
    pub(crate) fn read_now(&self, store: &dyn Store, together: usize) -> Vec<Continuation> {
        let jobs = self.lock().take(together);
        self.read(store, jobs)
    }

    fn read(&self, store: &dyn Store, jobs: Vec<Job>) -> Vec<Continuation> {
        let (mut codes, mut activations, mut servers) = (Vec::new(), Vec::new(), Vec::new());
        let mut found = Vec::with_capacity(jobs.len());
        for job in jobs {
            match job {
                Job::Code(lookup) => codes.push(lookup),
                Job::Activation(lookup) => activations.push(lookup),
                Job::Server(lookup) => servers.push(lookup),
                Job::Other(job) => job(store),
            }
        }
        self.read_all(store, codes, &mut found);
        self.read_all(store, activations, &mut found);
        self.read_all(store, servers, &mut found);
        found
    }

    fn read_all<R: FindByKey>(
        &self,
        store: &dyn Store,
        lookups: Vec<Lookup<R>>,
        hand_on: &mut Vec<Continuation>,
    ) {
        if lookups.is_empty() {
            return;
        }
        let keys: Vec<R::Key> = lookups.iter().map(|lookup| lookup.key).collect();
        match R::read(store, &keys) {
            // One unreadable record must not fail the other lookups.
            Err(_) if lookups.len() > 1 => {
                for lookup in lookups {
                    self.read_all(store, vec![lookup], hand_on);
                }
            }
            said => {
                let mut found = self.noted(said).map(Vec::into_iter);
                for lookup in lookups {
                    let found = match &mut found {
                        Ok(found) => Ok(found.next().flatten()),
                        Err(error) => Err(error.clone()),
                    };
                    hand_on.push(Box::new(move || (lookup.done)(found)));
                }
            }
        }
    }

    /// Passes on the result of a read. Logs the begin and the end of an outage.
    pub(crate) fn noted<T>(&self, said: Result<T, ReadError>) -> Result<T, ReadError> {
        self.0.fails.noted(said)
    }
}

impl Queue {
    fn take(&mut self, together: usize) -> Vec<Job> {
        let lookup = |job: &Job| !matches!(job, Job::Other(_));
        let jobs = if self.jobs.is_empty() { &mut self.unproven } else { &mut self.jobs };
        let lookups = jobs.iter().take(together).take_while(|job| lookup(job)).count();
        let count = lookups.max(1).min(jobs.len());
        jobs.drain(..count).collect()
    }

    fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.unproven.is_empty()
    }
}

/// Forwards the result of a read or a count to the command that waits for it.
pub(crate) type Continuation = Box<dyn FnOnce() + Send>;

fn hand_on<C: Command, R: Send + 'static>(
    found: Result<Option<R>, ReadError>,
    mut work: Work<C, R>,
    forward: impl FnOnce(Work<C, R>),
) {
    match found {
        Ok(found) => {
            work.found = Some(found);
            forward(work);
        }
        Err(_) => work.reply.fail(Failure::StorageUnavailable),
    }
}
