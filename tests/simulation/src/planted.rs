//! Faults that are planted to check that the simulation finds them.

use clap::ValueEnum;

/// A fault in the layer below the actors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// The guard of a code checks only its version, and not the activation that holds it.
    GuardByVersion,
    /// No guard of a code is checked.
    NoGuard,
    /// A commit without changes does nothing. It should confirm an answer.
    NoBarrier,
    /// No server notices that another primary was promoted.
    SilentFailover,
    /// A server's watermark covers only its own commits.
    OwnMark,
    /// A commit is answered before it is written.
    AnswerBeforeSync,
    /// Charges are not given back.
    KeepCharges,
    /// A start reads revoked servers as not revoked.
    ForgetRevoked,
    /// The record of a deleted server does not say which ticket the server has used.
    ForgetTickets,
    /// The watermark is ahead of the commits.
    MarkAhead,
}

/// Which faults are planted.
#[derive(Clone, Debug, Default)]
pub struct Planted(pub Vec<Fault>);

impl Planted {
    /// Whether this fault is planted.
    pub fn has(&self, fault: Fault) -> bool {
        self.0.contains(&fault)
    }
}
