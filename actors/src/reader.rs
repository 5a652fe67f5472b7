//! Looks up what memory lacks, on threads of its own, and sends the command back with the record.
//!
//! A stale read is harmless: whatever is decided on it names its version, and the commit's guard
//! catches it.

use crate::Failure;
use crate::work::{Command, Work};
use iptunnel_storage::{ReadError, Store};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce(&dyn Store) + Send>;

/// Reads may wait for the disk; two at a time keep one slow page from holding up the rest.
const THREADS: usize = 2;

/// The way to the readers. Bounded by the permits of the requests that wait in it.
pub(crate) struct Reader(Mutex<Option<Sender<Job>>>);

impl Reader {
    pub(crate) fn spawn(store: &Arc<dyn Store>) -> std::io::Result<(Self, Vec<JoinHandle<()>>)> {
        let (sender, jobs) = channel();
        let jobs = Arc::new(Mutex::new(jobs));
        let threads = (0..THREADS)
            .map(|number| {
                let (jobs, store) = (Arc::clone(&jobs), Arc::clone(store));
                std::thread::Builder::new()
                    .name(format!("reader-{number}"))
                    .spawn(move || run(&jobs, store.as_ref()))
            })
            .collect::<Result<_, _>>()?;
        Ok((Self(Mutex::new(Some(sender))), threads))
    }

    /// Runs `job` on a reader thread; drops it when the server goes down.
    pub(crate) fn run(&self, job: impl FnOnce(&dyn Store) + Send + 'static) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = sender.as_ref() {
            // Fails only when the threads have ended; the dropped job tells its caller.
            let _ = sender.send(Box::new(job));
        }
    }

    /// Reads a record with `read` and hands the command on with what was found. Where that fails
    /// the caller is told, after `on_error` has been called.
    pub(crate) fn look_up<C: Command, R: Send + 'static>(
        &self,
        mut work: Work<C, R>,
        read: impl FnOnce(&dyn Store, &C) -> Result<Option<R>, ReadError> + Send + 'static,
        forward: impl FnOnce(Work<C, R>) + Send + 'static,
        on_error: impl FnOnce() + Send + 'static,
    ) {
        self.run(move |store| match read(store, &work.command) {
            Ok(found) => {
                work.found = Some(found);
                forward(work);
            }
            Err(error) => {
                tracing::error!(%error, "a record could not be read");
                on_error();
                work.reply.fail(Failure::StorageUnavailable);
            }
        });
    }

    /// Lets the threads end once their queue is empty.
    pub(crate) fn stop(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

fn run(jobs: &Mutex<Receiver<Job>>, store: &dyn Store) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => job(store),
            Err(_) => return,
        }
    }
}
