//! Counts requests where several servers share a store: a thread that hands whatever has gathered to
//! the store at once, and says what became of each.

use iptunnel_domain::Timestamp;
use iptunnel_storage::{Charged, Counted, ReadError, Store};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

type Done = Box<dyn FnOnce(Option<Charged>) + Send>;

enum Job {
    Charge(Vec<Counted>, Done),
    GiveBack(Vec<(u64, Timestamp)>),
}

/// The way to the thread. Bounded by the permits of the requests that wait in it.
pub(crate) struct Charger(Mutex<Option<Sender<Job>>>);

/// Requests that are counted at once: their statements travel together, and the last one's answer
/// waits for all.
const BATCH: usize = 256;

impl Charger {
    /// Starts the thread; `None` where the store is this server's alone.
    pub(crate) fn spawn(store: &Arc<dyn Store>) -> std::io::Result<Option<(Self, JoinHandle<()>)>> {
        if store.shared().is_none() {
            return Ok(None);
        }
        let ((sender, jobs), store) = (channel(), Arc::clone(store));
        let thread = std::thread::Builder::new().name("charger".into());
        let thread = thread.spawn(move || run(&jobs, store.as_ref()))?;
        Ok(Some((Self(Mutex::new(Some(sender))), thread)))
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

fn run(jobs: &Receiver<Job>, store: &dyn Store) {
    let Some(shared) = store.shared() else { return };
    let failed = |error: ReadError| tracing::warn!(%error, "the store does not count");
    while let Ok(first) = jobs.recv() {
        let (mut charges, mut waiting, mut back) = (Vec::new(), Vec::new(), Vec::new());
        for job in std::iter::once(first).chain(jobs.try_iter().take(BATCH)) {
            match job {
                Job::Charge(counters, done) => {
                    charges.push(counters);
                    waiting.push(done);
                }
                Job::GiveBack(counters) => back.extend(counters),
            }
        }
        if !back.is_empty() {
            // What cannot be given back counts until its window ends.
            let _ = shared.give_back(back).map_err(failed);
        }
        if charges.is_empty() {
            continue;
        }
        match shared.charge(charges).map_err(failed) {
            Ok(charged) => {
                let answers = charged.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
                waiting.into_iter().zip(answers).for_each(|(done, answer)| done(answer));
            }
            Err(()) => waiting.into_iter().for_each(|done| done(None)),
        }
    }
}
