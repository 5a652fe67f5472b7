//! A command in flight, with everything needed to decide and answer it.

use crate::runtime::reply::Reply;
use iptunnel_domain::Timestamp;

/// A command to an actor.
pub trait Command: Send + 'static {
    /// The answer if it is granted.
    type Answer: Send + 'static;

    /// Whether the caller has proven to know the record. An unproven id or code may be a guess, so it
    /// is looked up only after all proven ones.
    fn is_proven(&self) -> bool {
        true
    }
}

/// A command in flight.
pub struct Work<C: Command, R = ()> {
    /// The command.
    pub command: C,
    /// The reply to the caller.
    pub reply: Reply<C::Answer>,
    /// The record in the store, if it was looked up because memory lacked it.
    pub(crate) found: Option<Option<R>>,
}

/// The number of retries of a command whose decision was overtaken.
const MAX_RETRIES: u8 = 3;

impl<C: Command, R> Work<C, R> {
    /// Creates a command that no actor has looked up.
    pub fn new(command: C, reply: Reply<C::Answer>) -> Self {
        Self { command, reply, found: None }
    }

    /// Returns the same request with another command, for the next actor.
    pub(crate) fn then<D, S>(self, next: impl FnOnce(C) -> D) -> Work<D, S>
    where
        D: Command<Answer = C::Answer>,
    {
        Work::new(next(self.command), self.reply)
    }

    /// Whether another retry is left.
    pub(crate) fn may_try_again(&self) -> bool {
        self.reply.retries() < MAX_RETRIES
    }

    /// Returns the command for a retry on fresh records. Returns `None`, and fails the request as
    /// overloaded, if no retry is left.
    pub(crate) fn again(mut self) -> Option<Self> {
        self.found = None;
        if self.may_try_again() {
            self.reply.count_retry();
            return Some(self);
        }
        self.reply.fail(crate::Failure::Overloaded);
        None
    }
}

impl<C: Command, R: 'static> actix::Message for Work<C, R> {
    type Result = ();
}

/// The current time. Sent to every actor several times a second.
#[derive(Clone, Copy, Debug)]
pub struct Tick(pub Timestamp);

impl actix::Message for Tick {
    type Result = ();
}

/// Shuts an actor down: it writes what is unwritten and forwards this message.
pub(crate) struct Shutdown(pub(crate) tokio::sync::oneshot::Sender<()>);

impl actix::Message for Shutdown {
    type Result = ();
}
