//! Check-ins on their way to the store: noted in memory, of each server the last, and written some
//! seconds later; and what is heard of those that other servers have taken.
//!
//! A flush goes from step to step by itself, on the threads that write: nothing of it waits in a
//! mailbox, which might be full.

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

/// Check-ins that are written to a shared store at once: some tens of milliseconds, in which one of
/// the readers is busy with it.
const SHARED_STEP: usize = 8192;

/// Check-ins that are not written.
#[derive(Default)]
pub(crate) struct CheckIns {
    noted: HashMap<ServerId, CheckIn>,
    flush: Arc<Flush>,
    listening: Arc<AtomicBool>,
}

/// The flush under way.
#[derive(Default)]
struct Flush {
    state: Mutex<State>,
    /// The server goes down: no step makes room for others any more.
    in_a_hurry: AtomicBool,
}

enum State {
    Writing,
    /// It is over, and these are not written.
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

    /// Begins to write all that is noted, `step` at a time, unless that is still under way: how many
    /// they are.
    pub(crate) fn flush(&mut self, handles: &Arc<Handles>, step: usize) -> usize {
        if matches!(&*self.flush.state(), State::Writing) {
            return 0;
        }
        self.take_back();
        self.write(handles, step)
    }

    /// Notes what the last flush has left, where it is over.
    fn take_back(&mut self) {
        let left = match &mut *self.flush.state() {
            State::Over(left) => std::mem::take(left),
            State::Writing => return,
        };
        for CheckInOf { seen, id } in left {
            // What has been noted since is newer, also where the clock was set back.
            self.noted.entry(id).or_insert(seen);
        }
    }

    /// Writes all that is noted, and lets a flush under way go on without a pause: the server goes
    /// down.
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

    /// Hands what other servers have seen on to `hear`, unless that is still under way. `hear` says
    /// whether it took them; if not, they are offered again, for a second.
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

/// What is left of a flush.
struct Writing {
    rest: Vec<CheckInOf>,
    /// Not written, since other servers had them in hand or the store takes none.
    left: Vec<CheckInOf>,
    step: usize,
    /// How often what is left may be tried once more, at the end.
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

    /// Writes the next step where its turn comes: a commit that carries many would hold up everyone
    /// who waits for it, and so would a reader that is away for long.
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

    /// Writes to a shared store, beside the commits: no request waits for it.
    fn write_beside(mut self, store: &dyn Store) {
        let Some(shared) = store.shared() else { return self.end() };
        loop {
            let some = self.next();
            if some.is_empty() {
                let in_a_hurry = self.flush.in_a_hurry.load(Ordering::Relaxed);
                if self.left.is_empty() || !in_a_hurry || self.tries == 0 {
                    return self.end();
                }
                // Another server has them in hand, for some milliseconds.
                self.tries -= 1;
                self.rest = std::mem::take(&mut self.left);
                std::thread::sleep(PAUSE);
                continue;
            }
            match shared.check_in(some.clone()) {
                Ok(left) => self.left.extend(left),
                Err(error) => {
                    tracing::debug!(%error, "check-ins are still to be written");
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

/// How many check-ins of others are handed on at once: some hundred microseconds.
const STEP: usize = 1000;
/// How long is waited, and how often, for whoever cannot take them, or has rows in hand.
const PAUSE: Duration = Duration::from_millis(10);
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
