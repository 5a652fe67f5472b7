//! Faults that are planted to check that the simulation finds them.

use clap::ValueEnum;

/// A fault in the layer below the actors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// The guard of a code names its version only, and not who holds it.
    GuardByVersion,
    /// No guard of a code is checked.
    NoGuard,
    /// A commit without changes, by which an answer is confirmed, does nothing.
    NoBarrier,
    /// No server notices that another primary was promoted.
    SilentFailover,
    /// A server's watermark covers its own commits only.
    OwnMark,
    /// A commit is answered before it is written.
    AnswerBeforeSync,
    /// Charges are not given back.
    KeepCharges,
    /// Whether a server is revoked is forgotten when it is read at a start.
    ForgetRevoked,
    /// The watermark is ahead of the commits.
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
