//! Counts requests where several servers share a store: a thread that hands whatever has gathered to
//! the store at once, and says what became of each.

use iptunnel_domain::Timestamp;
use iptunnel_storage::{Charged, Counted, Outage, ReadError, Store};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

type Done = Box<dyn FnOnce(Option<Charged>) + Send>;

enum Job {
    Charge(Vec<Counted>, Done),
    GiveBack(Vec<(u64, Timestamp)>),
}

/// The way to the thread. Bounded by the permits of the requests that wait in it.
pub(crate) struct LimitCounter(Mutex<Option<Sender<Job>>>);

/// Takes out what waits to be counted.
pub(crate) struct LimitCounterThread {
    jobs: Receiver<Job>,
    silent: Outage,
}

/// Requests that are counted at once: their statements travel together, and the last one's answer
/// waits for all.
const BATCH: usize = 256;

impl LimitCounter {
    /// The way, and its other end; `None` where the store is this server's alone.
    pub(crate) fn new(store: &dyn Store) -> Option<(Self, LimitCounterThread)> {
        store.shared()?;
        let (sender, jobs) = channel();
        let silent = Outage::new("the store does not count", "the store counts again");
        Some((Self(Mutex::new(Some(sender))), LimitCounterThread { jobs, silent }))
    }

    fn send(&self, job: Job) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = sender.as_ref() {
            // Fails only when the thread has ended; the dropped reply tells its caller.
            let _ = sender.send(job);
        }
    }

    /// Counts a request; `done` hears `None` where the store could not.
    pub(crate) fn charge(
        &self,
        counters: Vec<Counted>,
        done: impl FnOnce(Option<Charged>) + Send + 'static,
    ) {
        self.send(Job::Charge(counters, Box::new(done)));
    }

    /// Takes back what was counted.
    pub(crate) fn give_back(&self, counters: Vec<(u64, Timestamp)>) {
        self.send(Job::GiveBack(counters));
    }

    /// Lets the thread end once its queue is empty.
    pub(crate) fn stop(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Hands on what the store said of requests.
pub(crate) type Continuation = Box<dyn FnOnce() + Send>;

impl LimitCounterThread {
    /// Starts the thread.
    pub(crate) fn spawn(self, store: Arc<dyn Store>) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("limit-counter".into()).spawn(move || {
            while let Ok(first) = self.jobs.recv() {
                let jobs = std::iter::once(first).chain(self.jobs.try_iter().take(BATCH));
                self.count(store.as_ref(), jobs).into_iter().for_each(|hand_on| hand_on());
            }
        })
    }

    /// Counts what waits now. What the store said is handed on by calling what is returned, each
    /// once; `None` where nothing waits.
    pub(crate) fn count_now(&self, store: &dyn Store) -> Option<Vec<Continuation>> {
        let jobs: Vec<Job> = self.jobs.try_iter().take(BATCH).collect();
        (!jobs.is_empty()).then(|| self.count(store, jobs))
    }

    fn count(&self, store: &dyn Store, jobs: impl IntoIterator<Item = Job>) -> Vec<Continuation> {
        let (mut charges, mut waiting, mut back) = (Vec::new(), Vec::new(), Vec::new());
        for job in jobs {
            match job {
                Job::Charge(counters, done) => {
                    charges.push(counters);
                    waiting.push(done);
                }
                Job::GiveBack(counters) => back.extend(counters),
            }
        }
        let Some(shared) = store.shared() else { return Vec::new() };
        if !back.is_empty() {
            // What cannot be given back counts until its window ends.
            let _ = self.noted(shared.give_back(back));
        }
        if charges.is_empty() {
            return Vec::new();
        }
        let charged = self.noted(shared.charge(charges)).unwrap_or_default();
        let answers = charged.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        let hand_on =
            |(done, answer): (Done, Option<Charged>)| -> Continuation { Box::new(|| done(answer)) };
        waiting.into_iter().zip(answers).map(hand_on).collect()
    }

    /// What the store said, where it did.
    fn noted<T>(&self, said: Result<T, ReadError>) -> Option<T> {
        match &said {
            Ok(_) => self.silent.ends(),
            Err(error) => {
                self.silent.begins(&error.to_string());
            }
        }
        said.ok()
    }
}
