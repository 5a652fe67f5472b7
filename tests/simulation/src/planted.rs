//! Faults that are planted on purpose, to see that they are found.

use clap::ValueEnum;

/// A fault in what lies beneath the actors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// The guard of a code names its version only, and not who holds it.
    GuardByVersion,
    /// No guard of a code is judged.
    NoGuard,
    /// A commit without changes, by which an answer is confirmed, does nothing.
    NoBarrier,
    /// Nobody is told that another primary has taken over.
    SilentFailover,
    /// A server's watermark speaks of its own commits only.
    OwnMark,
    /// A commit is answered before it is written.
    AnswerBeforeSync,
    /// What was charged is not given back.
    KeepCharges,
    /// Whether a server is revoked is forgotten when it is read at a start.
    ForgetRevoked,
    /// The watermark is ahead of what was committed.
    MarkAhead,
}

/// Which faults are planted.
#[derive(Clone, Debug, Default)]
pub struct Planted(pub Vec<Fault>);

impl Planted {
    /// Whether this one is.
    pub fn has(&self, fault: Fault) -> bool {
        self.0.contains(&fault)
    }
}
