//! A command on its way, with everything it needs to be decided and answered.

use crate::runtime::reply::Reply;
use iptunnel_domain::Timestamp;

/// Something an actor can be asked to do.
pub trait Command: Send + 'static {
    /// What it answers where nothing refuses.
    type Answer: Send + 'static;

    /// Whether whoever asks has shown something that proves what they ask about. An id or a code that
    /// anybody can invent is looked up behind those that are not invented.
    fn is_proven(&self) -> bool {
        true
    }
}

/// A command on its way.
pub struct Work<C: Command, R = ()> {
    /// What to do.
    pub command: C,
    /// Who waits for it.
    pub reply: Reply<C::Answer>,
    /// What the store holds, where memory lacked the record and it was looked up.
    pub(crate) found: Option<Option<R>>,
    /// How often it was decided and had to be decided again.
    pub(crate) retries: u8,
}

/// How often a command whose decision was overtaken is decided again before the server gives up.
const MAX_RETRIES: u8 = 3;

impl<C: Command, R> Work<C, R> {
    /// A command at the start of its way.
    pub fn new(command: C, reply: Reply<C::Answer>) -> Self {
        Self { command, reply, found: None, retries: 0 }
    }

    /// The same request with another command for the next room.
    pub(crate) fn then<D, S>(self, next: impl FnOnce(C) -> D) -> Work<D, S>
    where
        D: Command<Answer = C::Answer>,
    {
        let Self { command, reply, retries, .. } = self;
        Work { command: next(command), reply, found: None, retries }
    }

    /// Whether it may be decided once more.
    pub(crate) fn may_try_again(&self) -> bool {
        self.retries < MAX_RETRIES
    }

    /// The command once more, to be decided on fresh records; `None` (and `overloaded` for the
    /// caller) where that happened often enough.
    pub(crate) fn again(mut self) -> Option<Self> {
        self.retries += 1;
        self.found = None;
        if self.retries <= MAX_RETRIES {
            return Some(self);
        }
        self.reply.fail(crate::Failure::Overloaded);
        None
    }
}

impl<C: Command, R: 'static> actix::Message for Work<C, R> {
    type Result = ();
}

/// The time, told to every actor several times a second.
#[derive(Clone, Copy, Debug)]
pub struct Tick(pub Timestamp);

impl actix::Message for Tick {
    type Result = ();
}

/// The end: flush what is dirty and pass it on.
pub(crate) struct Shutdown(pub(crate) tokio::sync::oneshot::Sender<()>);

impl actix::Message for Shutdown {
    type Result = ();
}
