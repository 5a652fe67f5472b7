//! Commands that write many servers: they are answered once all of these have been written.

use super::{Next, NotWritten, ServerRegistry, written};
use crate::Failure;
use crate::persistence::Committed;
use crate::runtime::reply::Reply;
use iptunnel_domain::audit::Event;
use iptunnel_storage::{Change, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// The answer that many writes share.
pub(super) struct Together<A>(Arc<Mutex<Shared<A>>>);

struct Shared<A> {
    /// How many of the writes have not ended.
    left: usize,
    /// What is answered, and to whom. `None` if nobody waits.
    answer: Option<(Reply<A>, A)>,
    /// Why one of the writes failed.
    failure: Option<Failure>,
}

impl<A: Send + 'static> Together<A> {
    /// The answer of `left` writes.
    pub(super) fn new(left: usize, answer: Option<(Reply<A>, A)>) -> Self {
        Self(Arc::new(Mutex::new(Shared { left, answer, failure: None })))
    }

    /// Notes the end of one write. After the last one the caller is answered.
    fn has_ended(&self, failure: Option<Failure>) {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // That the outcome is unknown is true of all of them together.
        if shared.failure != Some(Failure::OutcomeUnknown) {
            shared.failure = failure.or(shared.failure);
        }
        shared.left = shared.left.saturating_sub(1);
        let answer = if shared.left == 0 { shared.answer.take() } else { None };
        match (answer, shared.failure) {
            (Some((reply, _)), Some(failure)) => reply.fail(failure),
            (Some((reply, answer)), None) => reply.grant(answer),
            (None, _) => {}
        }
    }
}

impl ServerRegistry {
    /// Writes or removes one of many records. Those that conflict are left to a repetition of the command.
    pub(super) fn write_together<A: Send + 'static>(
        &mut self,
        next: Next,
        event: Event,
        generation: u32,
        together: &Together<A>,
    ) {
        let ids = next.ids();
        for id in ids {
            self.changing.entry(id).or_default();
        }
        let handles = Arc::clone(&self.handles);
        let together = Together(Arc::clone(&together.0));
        let change = Change(vec![next.write(), Write::Audit(Arc::new(event))]);
        self.handles.persistence.commit(change, Some(generation), move |committed| {
            let failure = match committed {
                Committed::Written => {
                    return written(
                        &handles,
                        next,
                        generation,
                        Box::new(move |_| together.has_ended(None)),
                    );
                }
                Committed::Conflict => Failure::Overloaded,
                Committed::Failed(failure) => failure,
            };
            together.has_ended(Some(failure));
            handles.server_registry.send::<NotWritten>(NotWritten(ids));
        });
    }
}
