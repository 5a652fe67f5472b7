//! Unwritten check-ins. Memory keeps the last one of each registered server and writes them some
//! seconds later. This module also receives the check-ins that other processes have taken.
//!
//! A flush goes from step to step by itself, on the writing threads. No step waits in a mailbox.

use crate::handles::Handles;
use crate::persistence::Committed;
use crate::runtime::reader::Reader;
use iptunnel_domain::Timestamp;
use iptunnel_domain::server::ServerId;
use iptunnel_storage::{Change, CheckIn, CheckInOf, Store, Write};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Check-ins written to a shared store at once. This takes some tens of milliseconds, during which one
/// of the reader threads is busy.
const SHARED_STEP: usize = 8192;

/// The check-ins that are not written yet.
#[derive(Default)]
pub(crate) struct CheckIns {
    noted: HashMap<ServerId, CheckIn>,
    flush: Arc<Flush>,
    listening: Arc<AtomicBool>,
}

/// The current flush.
#[derive(Default)]
struct Flush {
    state: Mutex<State>,
    /// The server shuts down: steps no longer yield to other work.
    in_a_hurry: AtomicBool,
}

enum State {
    Writing,
    /// It has ended, and these are not written.
    Over(Vec<CheckInOf>),
}

impl Default for State {
    fn default() -> Self {
        Self::Over(Vec::new())
    }
}

impl Flush {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CheckIns {
    pub(crate) fn note(&mut self, id: ServerId, seen: CheckIn) {
        self.noted.insert(id, seen);
    }

    /// Drops the check-in of a server that was deleted.
    pub(crate) fn forget(&mut self, id: ServerId) {
        self.noted.remove(&id);
    }

    /// Starts to write all check-ins, `step` at a time, unless a flush is still running. Returns their
    /// number.
    pub(crate) fn flush(&mut self, handles: &Arc<Handles>, step: usize) -> usize {
        if matches!(&*self.flush.state(), State::Writing) {
            return 0;
        }
        self.take_back();
        self.write(handles, step)
    }

    /// Takes back the check-ins that the last flush did not write, if it has ended.
    fn take_back(&mut self) {
        let left = match &mut *self.flush.state() {
            State::Over(left) => std::mem::take(left),
            State::Writing => return,
        };
        for CheckInOf { seen, id } in left {
            // A check-in noted since then is newer, even if the clock was set back.
            self.noted.entry(id).or_insert(seen);
        }
    }

    /// Writes all check-ins because the server shuts down. A running flush goes on without pauses.
    pub(crate) fn finish(&mut self, handles: &Arc<Handles>) {
        self.flush.in_a_hurry.store(true, Ordering::Relaxed);
        self.take_back();
        self.write(handles, usize::MAX);
    }

    fn write(&mut self, handles: &Arc<Handles>, step: usize) -> usize {
        let rest: Vec<CheckInOf> =
            self.noted.drain().map(|(id, seen)| CheckInOf { seen, id }).collect();
        let count = rest.len();
        if count > 0 {
            *self.flush.state() = State::Writing;
            let step = if handles.is_shared() { SHARED_STEP } else { step.max(1) };
            let (flush, handles) = (Arc::clone(&self.flush), Arc::clone(handles));
            Writing { rest, left: Vec::new(), step, tries: OFFERS, flush, handles }.go_on();
        }
        count
    }

    /// Passes the check-ins that other processes have written to `hear`, unless an earlier call is still
    /// running. `hear` returns whether it took them; if not, they are offered again, for a second.
    pub(crate) fn listen(
        &self,
        handles: &Handles,
        hear: impl Fn(Vec<(ServerId, Timestamp)>) -> bool + Send + 'static,
    ) {
        if self.listening.swap(true, Ordering::Relaxed) {
            return;
        }
        let (listening, reader) = (Arc::clone(&self.listening), handles.reader.clone());
        handles.reader.run(move |store| {
            listen(store, &reader, hear);
            listening.store(false, Ordering::Relaxed);
        });
    }
}

/// A running flush.
struct Writing {
    rest: Vec<CheckInOf>,
    /// Not written, because other servers had the rows locked or the store refused.
    left: Vec<CheckInOf>,
    step: usize,
    /// The retries left for these at the end.
    tries: usize,
    flush: Arc<Flush>,
    handles: Arc<Handles>,
}

impl Writing {
    fn next(&mut self) -> Vec<CheckInOf> {
        self.rest.split_off(self.rest.len().saturating_sub(self.step))
    }

    fn end(mut self) {
        self.left.append(&mut self.rest);
        *self.flush.state() = State::Over(self.left);
    }

    /// Queues the next step. A commit with many check-ins would delay every request that waits for it,
    /// and so would a long absence of a reader thread.
    fn go_on(mut self) {
        let handles = Arc::clone(&self.handles);
        if handles.is_shared() {
            return handles.reader.run(move |store| self.write_beside(store));
        }
        let some = self.next();
        if some.is_empty() {
            return self.end();
        }
        let change = Change(vec![Write::CheckIns(some.iter().map(|one| one.seen).collect())]);
        handles.persistence.commit(change, None, move |committed| {
            if committed == Committed::Written {
                return self.go_on();
            }
            self.left.extend(some);
            self.end();
        });
    }

    /// Writes to a shared store, in parallel to the commits, so that no request waits for it.
    fn write_beside(mut self, store: &dyn Store) {
        let Some(shared) = store.shared() else { return self.end() };
        loop {
            let some = self.next();
            if some.is_empty() {
                let in_a_hurry = self.flush.in_a_hurry.load(Ordering::Relaxed);
                if self.left.is_empty() || !in_a_hurry || self.tries == 0 {
                    return self.end();
                }
                // Another server has the rows locked for some milliseconds.
                self.tries -= 1;
                self.rest = std::mem::take(&mut self.left);
                std::thread::sleep(PAUSE);
                continue;
            }
            match shared.check_in(some.clone()) {
                Ok(left) => self.left.extend(left),
                Err(error) => {
                    tracing::debug!(%error, "cannot write check-ins to the store; the next flush tries again");
                    self.left.extend(some);
                    return self.end();
                }
            }
            if !self.flush.in_a_hurry.load(Ordering::Relaxed) {
                return self.go_on();
            }
        }
    }
}

/// Check-ins of other processes passed on at once: some hundred microseconds of work.
const STEP: usize = 1000;
/// The pause before a retry, where check-ins were not taken or rows are locked.
const PAUSE: Duration = Duration::from_millis(10);
/// The number of such retries.
const OFFERS: usize = 100;

fn listen(store: &dyn Store, reader: &Reader, hear: impl Fn(Vec<(ServerId, Timestamp)>) -> bool) {
    let Some(shared) = store.shared() else { return };
    loop {
        let seen = match reader.noted(shared.seen_elsewhere()) {
            Ok(seen) if !seen.is_empty() => seen,
            _ => return,
        };
        for some in seen.chunks(STEP) {
            let taken = (0..OFFERS).any(|_| {
                let taken = hear(some.to_vec());
                if !taken {
                    std::thread::sleep(PAUSE);
                }
                taken
            });
            if !taken {
                return;
            }
        }
    }
}
