//! The embedded store: a [`Journal`] before a [`RedbStore`].
//!
//! A commit is answered when it is in the journal. A [`Checkpointer`], run by a thread, writes the
//! gathered changes to the engine, many commits at a time. Until then a change is *pending*, and
//! reads find it in memory. After a crash the engine first gets the changes that it lacks.
//!
//! Every pending change is in the journal, and a record leaves the journal only after the engine
//! has synced its changes.

mod disk;
pub(crate) mod engine;
mod journal;
mod pending;
#[cfg(any(test, feature = "simulated"))]
pub mod simulated;
#[cfg(test)]
mod tests;

pub use disk::{Disk, FileDisk};
pub use engine::{FORMAT_VERSION, OpenDisk};

use crate::embedded::engine::{ALONE, RedbStore, Row};
use crate::embedded::journal::{AppendError, Journal};
use crate::feed::{Feed, Listener};
use crate::{
    Attempts, AuditLog, BackupError, Change, CommitError, Contents, Counter, Entry, Epochs,
    LastNumbers, OpenError, Pace, ReadError, Records, Store, Verdict, Watermark, WebhookStates,
    record,
};
use iptunnel_domain::Timestamp;
use iptunnel_domain::access::AccessToken;
use iptunnel_domain::activation::{Activation, ActivationId, ActivationNumber};
use iptunnel_domain::audit::Head;
use iptunnel_domain::code::{Code, CodeHash, CodeNumber};
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::server::{Server, ServerNumber};
use pending::{Pending, guards};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The two files of a store.
pub struct Disks {
    /// The file of the engine.
    pub rows: OpenDisk,
    /// The file of the journal.
    pub journal: OpenDisk,
}

impl Disks {
    /// The files at these paths.
    #[must_use]
    pub fn at(rows: PathBuf, journal: PathBuf) -> Self {
        let file =
            |path: PathBuf| -> OpenDisk { Box::new(move || Ok(Box::new(FileDisk::open(&path)?))) };
        Self { rows: file(rows), journal: file(journal) }
    }
}

/// The number of changes that are checkpointed without waiting for more: enough to share the cost
/// of a commit of the engine, few enough to keep that commit short. With a thousand, one activation
/// in a hundred waits a third longer for the processor and the disk.
const ENOUGH: usize = 400;
/// How long fewer than [`ENOUGH`] changes wait for more. This bounds the work of a start after a
/// crash.
const PATIENCE: Duration = Duration::from_millis(100);
/// How many commits a watermark may be behind. It is behind by some seconds, in which there are
/// never so many commits.
const MARK_IS_BEHIND: u64 = 1 << 20;
/// The interval at which an engine that refuses is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A [`Store`] in two files.
pub struct EmbeddedStore {
    engine: Arc<RedbStore>,
    /// `None` once the store is closed.
    journal: Mutex<Option<Journal>>,
    shared: Arc<Shared>,
    checkpointer: Arc<Checkpointer>,
    feed: Feed,
    /// How often this store was found to be in an earlier state, according to its watermark.
    epoch: AtomicU64,
    /// The thread of the checkpointer. `None` once the store is closed, and in a store without a
    /// thread: there a caller that has to wait for the engine runs the step.
    thread: Mutex<Option<JoinHandle<()>>>,
    stepped: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Signals a change that the thread, or a caller, may wait for.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    pending: Pending,
    /// The last record that the engine has.
    checkpointed: u64,
    trouble: Trouble,
    /// Whether a caller waits for pending changes.
    urgent: bool,
    stopping: bool,
    /// Whether the thread has ended: then pending changes stay pending.
    ended: bool,
}

/// The fault of the engine.
#[derive(Clone, Default)]
enum Trouble {
    #[default]
    None,
    /// It refuses, and is tried again.
    Refuses(String),
    /// Only a new start can help.
    Fatal(String),
}

impl Trouble {
    fn check(&self) -> Result<(), CommitError> {
        match self {
            Self::None => Ok(()),
            Self::Refuses(reason) => Err(CommitError::Refused(reason.clone())),
            Self::Fatal(reason) => Err(CommitError::Unknown(reason.clone())),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EmbeddedStore {
    /// Opens the store, or creates one if the disks are empty. Writes to the engine what a crash
    /// has left in the journal.
    ///
    /// # Errors
    /// Those of [`RedbStore::open`]; also if the journal lacks a record that the engine needs.
    pub fn open(disks: Disks) -> Result<Self, OpenError> {
        let store = Self::open_without_thread(disks)?;
        let checkpointer = Arc::clone(&store.checkpointer);
        let thread = std::thread::Builder::new()
            .name("rows".into())
            .spawn(move || checkpointer.run())
            .map_err(|e| {
                OpenError::Engine(format!("the checkpoint thread could not be started: {e}"))
            })?;
        *store.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(store)
    }

    /// Opens the store as [`Self::open`] does, without a thread. [`Self::checkpoint`], and a caller
    /// that has to wait for the engine, write the pending changes, so a simulation decides when.
    ///
    /// # Errors
    /// As [`Self::open`].
    #[cfg(any(test, feature = "simulated"))]
    pub fn open_stepped(disks: Disks) -> Result<Self, OpenError> {
        let mut store = Self::open_without_thread(disks)?;
        store.stepped = true;
        Ok(store)
    }

    /// Writes the pending changes to the engine, once. Returns whether it wrote any: `false` also
    /// if the engine refused and must be tried again.
    #[cfg(any(test, feature = "simulated"))]
    pub fn checkpoint(&self) -> bool {
        matches!(self.checkpointer.step(), Step::Checkpointed)
    }

    fn open_without_thread(disks: Disks) -> Result<Self, OpenError> {
        let unreadable = |e: std::io::Error| OpenError::Engine(format!("the journal: {e}"));
        let disk = (disks.journal)().map_err(unreadable)?;
        let engine = Arc::new(RedbStore::open(disks.rows)?);
        let had = engine.checkpointed().map_err(|e| OpenError::Engine(e.to_string()))?;
        let (mut journal, records) = Journal::open(disk, had).map_err(unreadable)?;
        let last = recover(&engine, had, records).map_err(OpenError::Engine)?;
        journal.begin_after(last);
        let shared = Arc::new(Shared::default());
        shared.lock().checkpointed = last;
        let checkpointer = Checkpointer {
            engine: Arc::clone(&engine),
            shared: Arc::clone(&shared),
            batch: Mutex::default(),
        };
        Ok(Self {
            engine,
            journal: Mutex::new(Some(journal)),
            shared,
            checkpointer: Arc::new(checkpointer),
            feed: Feed::default(),
            epoch: AtomicU64::new(1),
            thread: Mutex::default(),
            stepped: false,
        })
    }

    fn journal(&self) -> MutexGuard<'_, Option<Journal>> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks the guards of changes, one after the other, against pending changes and the engine.
    fn verdicts(&self, changes: &[Change]) -> Result<Vec<Verdict>, ReadError> {
        // Locked while the engine's versions are read: what is no longer pending is in them.
        let state = self.shared.lock();
        let stored = self.engine.versions()?;
        let mut since: HashMap<Row, Option<u32>> = HashMap::new();
        let mut verdicts = Vec::with_capacity(changes.len());
        for Change(writes) in changes {
            let mut holds = true;
            for guard in writes.iter().filter_map(guards) {
                let version =
                    match since.get(&guard.row).copied().or(state.pending.version(guard.row)) {
                        Some(version) => version,
                        None => stored.of(guard.row)?,
                    };
                holds &= version == guard.expects;
            }
            if holds {
                since.extend(
                    writes.iter().filter_map(guards).map(|guard| (guard.row, guard.becomes)),
                );
            }
            verdicts.push(if holds { Verdict::Written } else { Verdict::Conflict });
        }
        Ok(verdicts)
    }

    /// Waits until the engine has record `last`.
    fn wait_for(&self, last: u64) -> Result<(), CommitError> {
        if self.stepped && self.shared.lock().checkpointed < last {
            self.checkpointer.step();
        }
        let mut state = self.shared.lock();
        while state.checkpointed < last {
            state.trouble.check()?;
            if state.ended {
                return Err(is_closed());
            }
            if !std::mem::replace(&mut state.urgent, true) {
                self.shared.changed.notify_all();
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Has the engine write `changes` by itself, as record `number`, after all that is pending. The
    /// journal continues after it.
    fn write_through(
        &self,
        journal: &mut Journal,
        changes: &[Change],
        number: u64,
    ) -> Result<(), CommitError> {
        let last = self.shared.lock().pending.last();
        self.wait_for(last)?;
        let outcome = match self.engine.checkpoint(changes, number) {
            Ok(verdicts) if verdicts.contains(&Verdict::Conflict) => {
                Err(CommitError::Refused("the store was changed by another commit".into()))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        let mut state = self.shared.lock();
        match &outcome {
            Ok(()) => {
                journal.begin_after(number);
                state.checkpointed = number;
            }
            // It is unknown whether the engine has the number, so no record may use it.
            Err(CommitError::Unknown(reason)) => state.trouble = Trouble::Fatal(reason.clone()),
            Err(CommitError::Refused(_)) => {}
        }
        self.shared.changed.notify_all();
        outcome
    }

    /// Raises the numbers of records above all that a watermark can name. So the demand of a
    /// watermark never decreases, and every older copy of the store is noticed.
    fn go_on_above(&self, acknowledged: u64) -> Result<(), CommitError> {
        let mut journal = self.journal();
        let journal = journal.as_mut().ok_or_else(is_closed)?;
        let number = acknowledged.max(journal.last()).saturating_add(MARK_IS_BEHIND);
        self.write_through(journal, &[], number)
    }

    /// Has the engine try again if it refuses.
    fn probe(&self) -> Result<(), CommitError> {
        if !matches!(self.shared.lock().trouble, Trouble::Refuses(_)) {
            return Ok(());
        }
        match self.engine.commit(&[]) {
            // An empty commit has no outcome that could be unknown.
            Err(CommitError::Unknown(reason)) if !self.engine.has_failed_a_sync() => {
                return Err(CommitError::Refused(reason));
            }
            outcome => outcome?,
        };
        let mut state = self.shared.lock();
        if matches!(state.trouble, Trouble::Refuses(_)) {
            state.trouble = Trouble::None;
        }
        let last = state.pending.last();
        self.shared.changed.notify_all();
        drop(state);
        self.wait_for(last)
    }

    /// Returns the engine, once it has the record that `last` names.
    fn engine_with(&self, last: fn(&Pending) -> u64) -> Result<&RedbStore, ReadError> {
        let last = last(&self.shared.lock().pending);
        self.wait_for(last).map_err(|e| ReadError(e.to_string()))?;
        Ok(&self.engine)
    }
}

fn is_closed() -> CommitError {
    CommitError::Refused("the store is closed".into())
}

/// Writes to the engine, which has all up to record `had`, the records that it lacks. Returns the
/// last record that it then has.
fn recover(engine: &RedbStore, had: u64, records: Vec<journal::Record>) -> Result<u64, String> {
    let mut last = had;
    let mut changes = Vec::new();
    for (number, payload) in records {
        if number != last + 1 {
            return Err(format!(
                "the journal continues at record {number} and lacks record {}: that record is \
                 damaged, or the two files are not from the same moment. Restore both files; \
                 without the journal the last commits are lost",
                last + 1
            ));
        }
        changes.extend(record::decode_changes(&payload).map_err(|e| e.to_string())?);
        last = number;
    }
    if last > had {
        let verdicts = engine.checkpoint(&changes, last).map_err(|e| e.to_string())?;
        if verdicts.contains(&Verdict::Conflict) {
            return Err("the journal does not follow on the store: the two files are not of \
                 the same store or moment. Restore both files of one backup"
                .into());
        }
        tracing::info!(commits = last - had, "wrote the journal's commits to the engine");
    }
    Ok(last)
}

/// Writes pending changes to the engine.
struct Checkpointer {
    engine: Arc<RedbStore>,
    shared: Arc<Shared>,
    /// The changes that are being written, and the last record that they come from: kept until the
    /// engine has them. Locked for a whole step, so only one step runs at a time.
    batch: Mutex<Option<(Vec<Change>, u64)>>,
}

/// The outcome of a step of the checkpointer.
enum Step {
    /// Nothing was pending.
    Nothing,
    /// The engine has all that was pending.
    Checkpointed,
    /// The engine refuses, and must be tried again.
    Refused(String),
    /// Only a new start can help.
    Fatal(String),
}

/// Records that the thread of the checkpointer has ended, because callers would otherwise wait
/// forever.
struct LastWord<'a>(&'a Shared);

impl Drop for LastWord<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.ended = true;
        if !state.stopping && !matches!(state.trouble, Trouble::Fatal(_)) {
            state.trouble =
                Trouble::Fatal("the checkpoint thread has ended; restart the server".into());
        }
        self.0.changed.notify_all();
    }
}

impl Checkpointer {
    fn run(&self) {
        let _last_word = LastWord(&self.shared);
        while self.has_gathered() {
            // Repeats as often as the engine refuses. At the end the journal has what is left, and
            // the next start writes it to the engine.
            loop {
                match self.step() {
                    Step::Nothing | Step::Checkpointed => break,
                    Step::Refused(reason) if self.pause_after(&reason) => {}
                    Step::Refused(_) | Step::Fatal(_) => return,
                }
            }
        }
    }

    /// Writes all pending changes to the engine, once. If the engine refuses, the next step writes
    /// the same.
    fn step(&self) -> Step {
        let mut batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
        let is_tried_again = batch.is_some();
        let mut state = self.shared.lock();
        if let Trouble::Fatal(reason) = &state.trouble {
            return Step::Fatal(reason.clone());
        }
        if batch.is_none() {
            state.urgent = false;
            *batch = state.pending.take();
        }
        drop(state);
        let Some((changes, last)) = batch.as_ref() else { return Step::Nothing };
        // If it was unknown whether they were written, the engine knows now.
        let has_them =
            is_tried_again && self.engine.checkpointed().is_ok_and(|taken| taken >= *last);
        let step = if has_them { Step::Checkpointed } else { self.write_to_engine(changes, *last) };
        let mut state = self.shared.lock();
        match &step {
            Step::Nothing => {}
            Step::Checkpointed => {
                state.trouble = Trouble::None;
                state.checkpointed = *last;
                state.pending.forget(*last);
                *batch = None;
            }
            Step::Refused(reason) => state.trouble = Trouble::Refuses(reason.clone()),
            Step::Fatal(reason) => state.trouble = Trouble::Fatal(reason.clone()),
        }
        self.shared.changed.notify_all();
        step
    }

    fn write_to_engine(&self, changes: &[Change], last: u64) -> Step {
        match self.engine.checkpoint(changes, last) {
            Ok(verdicts) if verdicts.contains(&Verdict::Conflict) => {
                Step::Fatal("the journal does not follow on the store".into())
            }
            Ok(_) => Step::Checkpointed,
            Err(CommitError::Unknown(reason)) if self.engine.has_failed_a_sync() => {
                Step::Fatal(reason)
            }
            Err(CommitError::Refused(reason) | CommitError::Unknown(reason)) => {
                Step::Refused(reason)
            }
        }
    }

    /// Waits until enough is pending. Returns `false` at the end.
    fn has_gathered(&self) -> bool {
        let mut state = self.shared.lock();
        loop {
            let waited = state.pending.waited();
            let enough = state.pending.waiting() >= ENOUGH || state.urgent || state.stopping;
            match waited {
                Some(waited) if enough || waited >= PATIENCE => return true,
                None if state.stopping => return false,
                _ => {}
            }
            let patience = waited.map_or(PATIENCE * 600, |waited| PATIENCE - waited);
            (state, _) = self
                .shared
                .changed
                .wait_timeout(state, patience)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Logs that the engine refuses and waits until it is time to try again. Returns `false` at the
    /// end.
    fn pause_after(&self, reason: &str) -> bool {
        tracing::error!(reason, "the journal cannot be checkpointed; retrying");
        let state = self.shared.lock();
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, RETRY, |state| {
                matches!(state.trouble, Trouble::Refuses(_)) && !state.stopping
            })
            .unwrap_or_else(PoisonError::into_inner);
        !state.stopping
    }
}

impl Store for EmbeddedStore {
    fn commit(&self, changes: &[Change]) -> Result<Vec<Verdict>, CommitError> {
        let mut journal = self.journal();
        let journal = journal.as_mut().ok_or_else(is_closed)?;
        if changes.is_empty() {
            self.probe()?;
        }
        self.shared.lock().trouble.check()?;
        let verdicts = self.verdicts(changes).map_err(|e| CommitError::Refused(e.to_string()))?;
        let held: Vec<Change> = changes
            .iter()
            .zip(&verdicts)
            .filter(|(_, verdict)| **verdict == Verdict::Written)
            .map(|(change, _)| change.clone())
            .collect();
        if held.is_empty() && !changes.is_empty() {
            return Ok(verdicts);
        }
        let payload =
            record::encode_changes(&held).map_err(|e| CommitError::Refused(e.to_string()))?;
        if !Journal::can_hold(payload.len()) {
            let number = journal.last().saturating_add(1);
            self.write_through(journal, &held, number)?;
            self.feed.publish(changes, &verdicts);
            return Ok(verdicts);
        }
        self.wait_for(journal.waits_for(payload.len()))?;
        let number = journal.append(&payload).map_err(|error| match error {
            AppendError::Refused(reason) => CommitError::Refused(reason),
            AppendError::Unknown(reason) => CommitError::Unknown(reason),
        })?;
        let mut state = self.shared.lock();
        let is_first = state.pending.waited().is_none();
        state.pending.add(number, held);
        if is_first || state.pending.waiting() >= ENOUGH {
            self.shared.changed.notify_all();
        }
        drop(state);
        self.feed.publish(changes, &verdicts);
        Ok(verdicts)
    }

    fn close(&self) {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A thread that panicked has recorded its trouble.
            let _ = thread.join();
        } else if self.stepped {
            self.checkpointer.step();
        }
        self.engine.close();
        // The next open must find both files unlocked, even if somebody still holds this value.
        self.journal().take();
    }

    fn follow(&self, listener: Listener) {
        self.feed.follow(listener);
    }

    /// What is pending now is checkpointed first, so the copy needs no journal.
    fn back_up(&self, to: Box<dyn Disk>, pace: &Pace) -> Result<Contents, BackupError> {
        self.engine_with(Pending::last)?.back_up(to, pace)
    }

    fn settings(&self) -> Result<Vec<(String, String)>, ReadError> {
        self.engine_with(Pending::last)?.settings()
    }

    /// Not in the journal: a row that is lost is a delivery that is repeated.
    fn webhooks(&self) -> Option<&dyn WebhookStates> {
        self.engine.webhooks()
    }

    /// Not in the journal: it is asked once at the start, and needs no change of the journal's format.
    fn agreed(&self, what: &str) -> Result<Option<KeyedHash>, ReadError> {
        self.engine.agreed(what)
    }

    fn agree(&self, what: &str, hash: KeyedHash) -> Result<bool, ReadError> {
        self.engine.agree(what, hash)
    }
}

impl Epochs for EmbeddedStore {
    fn watermark(&self) -> Option<Watermark> {
        Some(Watermark {
            epoch: self.epoch.load(Ordering::Relaxed),
            process: ALONE.into(),
            commits: self.journal().as_ref().map(Journal::last)?,
            ..Watermark::default()
        })
    }

    fn contains(&self, mark: &Watermark) -> Result<bool, ReadError> {
        // Only the watermark knows about epochs.
        self.epoch.fetch_max(mark.epoch, Ordering::Relaxed);
        // The watermark of another kind of store says nothing about this one.
        let held = self.journal().as_ref().map_or(0, Journal::last);
        Ok(mark.process != ALONE || mark.commits <= held)
    }

    fn begin_epoch(&self, last: &Watermark, why: &str, now: Timestamp) -> Result<u64, CommitError> {
        self.go_on_above(if last.process == ALONE { last.acknowledged() } else { 0 })?;
        let (codes, activations) = crate::epoch::void(self, why, now)?;
        let epoch = last.epoch.saturating_add(1);
        self.epoch.fetch_max(epoch, Ordering::Relaxed);
        tracing::error!(epoch, why, codes, activations, "codes and open activations are void");
        Ok(epoch)
    }
}

impl Records for EmbeddedStore {
    fn frontier(&self) -> Result<LastNumbers, ReadError> {
        self.engine_with(Pending::last)?.frontier()
    }

    fn code(&self, hash: CodeHash) -> Result<Option<Code>, ReadError> {
        let pending = self.shared.lock().pending.code(hash);
        pending.map_or_else(|| self.engine.code(hash), |code| Ok(Some(code)))
    }

    fn activation(&self, id: ActivationId) -> Result<Option<Activation>, ReadError> {
        let pending = self.shared.lock().pending.activation(id);
        pending.map_or_else(|| self.engine.activation(id), |activation| Ok(Some(activation)))
    }

    fn server(&self, number: ServerNumber) -> Result<Option<Server>, ReadError> {
        self.engine_with(Pending::last_of_servers)?.server(number)
    }

    fn servers_numbered(&self, numbers: &[ServerNumber]) -> Result<Vec<Option<Server>>, ReadError> {
        self.engine_with(Pending::last_of_servers)?.servers_numbered(numbers)
    }

    fn servers_before(
        &self,
        before: Option<ServerNumber>,
        limit: usize,
    ) -> Result<Vec<Server>, ReadError> {
        self.engine_with(Pending::last_of_servers)?.servers_before(before, limit)
    }

    fn each_server(&self, each: &mut dyn FnMut(Server)) -> Result<(), ReadError> {
        self.engine_with(Pending::last_of_servers)?.each_server(each)
    }

    fn access_tokens(&self) -> Result<Vec<AccessToken>, ReadError> {
        self.engine_with(Pending::last)?.access_tokens()
    }

    fn each_counter(&self, each: &mut dyn FnMut(u32, Counter)) -> Result<(), ReadError> {
        self.engine_with(Pending::last)?.each_counter(each)
    }

    fn newest_codes(&self, limit: usize) -> Result<Vec<Code>, ReadError> {
        self.engine_with(Pending::last)?.newest_codes(limit)
    }

    fn newest_activations(&self, limit: usize) -> Result<Vec<Activation>, ReadError> {
        self.engine_with(Pending::last)?.newest_activations(limit)
    }

    /// Pending changes are not included: recently changed records are not deleted yet.
    fn oldest_codes(
        &self,
        after: Option<CodeNumber>,
        limit: usize,
    ) -> Result<Vec<Code>, ReadError> {
        self.engine_with(Pending::last)?.oldest_codes(after, limit)
    }

    /// Pending changes are not included, as in `oldest_codes`.
    fn oldest_activations(
        &self,
        after: Option<ActivationNumber>,
        limit: usize,
    ) -> Result<Vec<Activation>, ReadError> {
        self.engine_with(Pending::last)?.oldest_activations(after, limit)
    }
}

impl AuditLog for EmbeddedStore {
    fn audit_head(&self) -> Result<Head, ReadError> {
        self.engine_with(Pending::last)?.audit_head()
    }

    fn audit_from(&self, first: u64, each: &mut dyn FnMut(Entry) -> bool) -> Result<(), ReadError> {
        self.engine_with(Pending::last)?.audit_from(first, each)
    }

    fn audit_before(
        &self,
        before: u64,
        each: &mut dyn FnMut(Entry) -> bool,
    ) -> Result<(), ReadError> {
        self.engine_with(Pending::last)?.audit_before(before, each)
    }

    fn audit_number_at(&self, at: Timestamp) -> Result<u64, ReadError> {
        self.engine_with(Pending::last)?.audit_number_at(at)
    }

    fn attempts(&self, code: CodeHash) -> Result<Attempts, ReadError> {
        self.engine_with(Pending::last)?.attempts(code)
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.close();
    }
}
