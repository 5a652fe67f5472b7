//! The same actors, run step by step: one message, one commit, one read at a time, in an order that a
//! simulation chooses. There is no thread, no arbiter and no timer; nothing happens between two steps.
//!
//! What happens on other threads in several moments is several steps here: a batch is gathered,
//! written, answered; a record is read, and then returned to its actor.

use crate::handles::{Actors, Addresses, Assembled, Dependencies, Handles, Restored, StartError};
use crate::memory::limit_counter::LimitCounterThread;
use crate::persistence::{Batch, Writer};
use crate::runtime::mailbox::{Address, Inbox};
use crate::runtime::reader::Continuation;
use crate::runtime::reply::Permits;
use crate::{
    activation::Activation, code_registry::CodeRegistry, rate_limiter::RateLimiter,
    server_registry::ServerRegistry,
};
use iptunnel_storage::{CommitError, Verdict};
use std::collections::VecDeque;
use std::sync::Arc;

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// The rate limiter takes a message.
    RateLimiter,
    /// The code registry takes a message.
    CodeRegistry,
    /// The activation actor takes a message.
    Activation,
    /// The server registry takes a message.
    ServerRegistry,
    /// The waiting changes are gathered into a batch.
    Gather,
    /// The batch is written.
    Write,
    /// The senders of the batch are answered.
    Answer,
    /// A store that refuses commits is probed.
    Probe,
    /// The waiting lookups are read from the store.
    Read,
    /// The first result of a read is returned to its actor.
    HandOnFound,
    /// A shared store counts the waiting requests.
    Count,
    /// The first result of a count is returned to its actor.
    HandOnCounted,
}

/// The state of the batch in progress.
enum Commit {
    None,
    Gathered(Batch),
    Written(Batch, Result<Vec<Verdict>, CommitError>),
}

/// The actors of one server, run step by step. Dropping this kills the server: no request is answered
/// and nothing is written any more.
pub struct Stepped {
    handles: Arc<Handles>,
    actors: Actors,
    inboxes: Inboxes,
    writer: Writer,
    commit: Commit,
    counting: Option<LimitCounterThread>,
    read: VecDeque<Continuation>,
    counted: VecDeque<Continuation>,
}

struct Inboxes {
    rate_limiter: Inbox<RateLimiter>,
    code_registry: Inbox<CodeRegistry>,
    activation: Inbox<Activation>,
    server_registry: Inbox<ServerRegistry>,
}

/// Records that are read together.
const TOGETHER: usize = 16;

impl Stepped {
    /// Starts the actors.
    ///
    /// # Errors
    /// [`StartError`] if the store cannot be read.
    pub fn start(parts: Dependencies) -> Result<Self, StartError> {
        let permits = Permits::with_quick(parts.permits, Permits::stepped);
        let inboxes = Inboxes {
            rate_limiter: Inbox::new(),
            code_registry: Inbox::new(),
            activation: Inbox::new(),
            server_registry: Inbox::new(),
        };
        let addresses = Addresses {
            rate_limiter: Address::Stepped(inboxes.rate_limiter.clone()),
            code_registry: Address::Stepped(inboxes.code_registry.clone()),
            activation: Address::Stepped(inboxes.activation.clone()),
            server_registry: Address::Stepped(inboxes.server_registry.clone()),
        };
        let Assembled { handles, actors, writer, counting } =
            Restored::read(parts)?.assemble(addresses, permits, None);
        let (read, counted) = (VecDeque::new(), VecDeque::new());
        let commit = Commit::None;
        Ok(Self { handles, actors, inboxes, writer, commit, counting, read, counted })
    }

    /// Returns the handles to the actors.
    pub const fn handles(&self) -> &Arc<Handles> {
        &self.handles
    }

    /// Returns the number of waiting messages, changes and reads.
    pub fn queued(&self) -> usize {
        let Inboxes { rate_limiter, code_registry, activation, server_registry } = &self.inboxes;
        rate_limiter.len()
            + code_registry.len()
            + activation.len()
            + server_registry.len()
            + self.handles.persistence.waiting()
            + self.handles.reader.waiting()
            + self.read.len()
            + self.counted.len()
    }

    /// Whether the store refuses commits and is only probed.
    pub fn is_refusing(&self) -> bool {
        self.writer.is_refusing()
    }

    /// Whether a batch has been gathered and not answered yet.
    pub const fn is_committing(&self) -> bool {
        !matches!(self.commit, Commit::None)
    }

    /// Lists the possible next steps. [`Step::Count`] is always listed for a shared store, because only
    /// counting shows whether anything waits. [`Step::Probe`] is listed while the store refuses.
    pub fn ready(&self, steps: &mut Vec<Step>) {
        steps.clear();
        let Inboxes { rate_limiter, code_registry, activation, server_registry } = &self.inboxes;
        let commit = match self.commit {
            Commit::None => (Step::Gather, self.handles.persistence.waiting() > 0),
            Commit::Gathered(_) => (Step::Write, true),
            Commit::Written(..) => (Step::Answer, true),
        };
        let all = [
            (Step::RateLimiter, rate_limiter.len() > 0),
            (Step::CodeRegistry, code_registry.len() > 0),
            (Step::Activation, activation.len() > 0),
            (Step::ServerRegistry, server_registry.len() > 0),
            commit,
            (Step::Probe, self.writer.is_refusing()),
            (Step::Read, self.handles.reader.waiting() > 0),
            (Step::HandOnFound, !self.read.is_empty()),
            (Step::Count, self.counting.is_some()),
            (Step::HandOnCounted, !self.counted.is_empty()),
        ];
        steps.extend(all.into_iter().filter(|(_, ready)| *ready).map(|(step, _)| step));
    }

    /// Takes one step. Returns `false` if there was nothing to do.
    pub fn step(&mut self, step: Step) -> bool {
        match step {
            Step::RateLimiter => self.inboxes.rate_limiter.step(&mut self.actors.rate_limiter),
            Step::CodeRegistry => self.inboxes.code_registry.step(&mut self.actors.code_registry),
            Step::Activation => self.inboxes.activation.step(&mut self.actors.activation),
            Step::ServerRegistry => {
                self.inboxes.server_registry.step(&mut self.actors.server_registry)
            }
            Step::Gather | Step::Write | Step::Answer => self.commit(),
            Step::Probe => {
                self.writer.probe();
                true
            }
            Step::Read => {
                let found = self.handles.reader.read_now(self.handles.store().as_ref(), TOGETHER);
                self.read.extend(found);
                true
            }
            Step::HandOnFound => self.read.pop_front().map(|hand_on| hand_on()).is_some(),
            Step::Count => {
                let store = self.handles.store().as_ref();
                let counted = self.counting.as_ref().and_then(|counting| counting.count_now(store));
                let did = counted.is_some();
                self.counted.extend(counted.into_iter().flatten());
                did
            }
            Step::HandOnCounted => self.counted.pop_front().map(|hand_on| hand_on()).is_some(),
        }
    }

    fn commit(&mut self) -> bool {
        self.commit = match std::mem::replace(&mut self.commit, Commit::None) {
            Commit::None => match self.writer.gather_now() {
                Some(batch) => Commit::Gathered(batch),
                None => return false,
            },
            Commit::Gathered(batch) => {
                let outcome = self.writer.write(&batch);
                Commit::Written(batch, outcome)
            }
            Commit::Written(batch, outcome) => {
                self.writer.answer(batch, outcome);
                Commit::None
            }
        };
        true
    }
}
