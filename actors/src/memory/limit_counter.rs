//! The limit counter: a thread that charges requests in a shared store. It sends all waiting requests
//! to the store at once and reports the outcome of each.

use crate::runtime::reader::Continuation;
use iptunnel_domain::Timestamp;
use iptunnel_storage::{Charged, Counted, Outage, Store};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

type Done = Box<dyn FnOnce(Option<Charged>) + Send>;

enum Job {
    Charge(Vec<Counted>, Done),
    GiveBack(Vec<(u64, Timestamp)>),
}

/// The queue of the thread. The permits of the waiting requests bound it.
pub(crate) struct LimitCounter(Mutex<Option<Sender<Job>>>);

/// The thread that takes requests from the queue.
pub(crate) struct LimitCounterThread {
    jobs: Receiver<Job>,
    silent: Outage,
}

/// Requests charged at once. Their statements are sent together, and the last answer waits for all.
const BATCH: usize = 256;

impl LimitCounter {
    /// Creates the queue and its thread. Returns `None` if the store is not shared.
    pub(crate) fn new(store: &dyn Store) -> Option<(Self, LimitCounterThread)> {
        store.shared()?;
        let (sender, jobs) = channel();
        let silent = Outage::new(
            "the store does not count requests for the rate limits",
            "the store counts requests for the rate limits again",
        );
        Some((Self(Mutex::new(Some(sender))), LimitCounterThread { jobs, silent }))
    }

    fn send(&self, job: Job) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = sender.as_ref() {
            // This fails only if the thread has ended. The dropped reply notifies its caller.
            let _ = sender.send(job);
        }
    }

    /// Charges a request. Calls `done` with `None` if the store failed.
    pub(crate) fn charge(
        &self,
        counters: Vec<Counted>,
        done: impl FnOnce(Option<Charged>) + Send + 'static,
    ) {
        self.send(Job::Charge(counters, Box::new(done)));
    }

    /// Gives charges back.
    pub(crate) fn give_back(&self, counters: Vec<(u64, Timestamp)>) {
        self.send(Job::GiveBack(counters));
    }

    /// Lets the thread end once its queue is empty.
    pub(crate) fn stop(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

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

    /// Charges the requests that wait now. Calling the returned continuations, each once, forwards the
    /// decisions. Returns `None` if no request waits.
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
            // A charge that cannot be given back counts until its window ends.
            let _ = self.silent.noted(shared.give_back(back));
        }
        if charges.is_empty() {
            return Vec::new();
        }
        let charged = self.silent.noted(shared.charge(charges)).unwrap_or_default();
        let answers = charged.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        let hand_on =
            |(done, answer): (Done, Option<Charged>)| -> Continuation { Box::new(|| done(answer)) };
        waiting.into_iter().zip(answers).map(hand_on).collect()
    }
}
