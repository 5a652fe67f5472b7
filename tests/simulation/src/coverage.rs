//! Counts how often the important states were reached. A run that reached none of them has tested
//! nothing.

use std::collections::BTreeMap;

/// An important state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// An activate was granted.
    Granted,
    /// The machine that holds a code got its activation again.
    Repeated,
    /// A machine changed its binding.
    Replaced,
    /// A code was given back, and granted to another machine.
    GivenToAnother,
    /// An installation was confirmed.
    Confirmed,
    /// Two machines had an activate of one code under way at once.
    Raced,
    /// A release and an activate with another binding of one code were under way at once.
    ReplaceRacedRelease,
    /// A request was abandoned at its deadline while its change was under way.
    AbandonedClaimed,
    /// A limit refused.
    LimitRefused,
    /// A guard did not hold: another server was faster.
    Conflict,
    /// A commit was refused.
    Refused,
    /// The outcome of a commit was unknown.
    Unknown,
    /// An outcome was read back after the connection had broken, and the commit had been written.
    ReadBackWritten,
    /// An outcome was read back after the connection had broken, and the commit had not been written.
    ReadBackNever,
    /// A commit waited for a standby that was cut off.
    WaitedForStandby,
    /// Such a commit became visible though no standby had it.
    VisibleUnconfirmed,
    /// A standby was promoted while the primary held commits that it lacked.
    LostUnconfirmed,
    /// A standby without a tail of acknowledged commits was promoted.
    LostAcknowledged,
    /// An epoch began.
    EpochBegan,
    /// A server wanted to begin an epoch that another one had begun.
    EpochFoundBegun,
    /// An epoch began while an activate was under way.
    FencedAmidActivate,
    /// A server was killed with requests under way.
    Killed,
    /// A server was killed in the middle of a commit.
    KilledAmidCommit,
    /// A server stood still while others went on.
    Paused,
    /// A revoked server checked in.
    RevokedCheckIn,
    /// A revoked server wanted to register again.
    RevokedRegister,
    /// A server registered with a ticket.
    Enrolled,
    /// A ticket had been used.
    TicketUsed,
    /// A server was deleted.
    Deleted,
    /// A clock was set back.
    ClockSetBack,
    /// A disk lost what was not synced.
    PowerLost,
    /// A disk failed a write.
    WriteFailed,
    /// A disk failed a sync.
    SyncFailed,
    /// A store was replaced by an earlier copy of itself.
    Restored,
    /// A code had been activated too often.
    WornOut,
    /// A code had expired.
    Expired,
    /// An activation had lapsed.
    Lapsed,
    /// A request met a server without a permit left.
    NoPermit,
    /// A plot caused a coincidence that is rare by chance.
    Plotted,
    /// One order was found that explains all answers.
    OrderFound,
    /// The search for such an order took too long.
    OrderUndecided,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 40] = [
        Self::Granted,
        Self::Repeated,
        Self::Replaced,
        Self::GivenToAnother,
        Self::Confirmed,
        Self::Raced,
        Self::ReplaceRacedRelease,
        Self::AbandonedClaimed,
        Self::LimitRefused,
        Self::Conflict,
        Self::Refused,
        Self::Unknown,
        Self::ReadBackWritten,
        Self::ReadBackNever,
        Self::WaitedForStandby,
        Self::VisibleUnconfirmed,
        Self::LostUnconfirmed,
        Self::LostAcknowledged,
        Self::EpochBegan,
        Self::EpochFoundBegun,
        Self::FencedAmidActivate,
        Self::Killed,
        Self::KilledAmidCommit,
        Self::Paused,
        Self::RevokedCheckIn,
        Self::RevokedRegister,
        Self::Enrolled,
        Self::TicketUsed,
        Self::Deleted,
        Self::ClockSetBack,
        Self::PowerLost,
        Self::WriteFailed,
        Self::SyncFailed,
        Self::Restored,
        Self::WornOut,
        Self::Expired,
        Self::Lapsed,
        Self::NoPermit,
        Self::Plotted,
        Self::OrderFound,
    ];
}

/// The counts of each state.
#[derive(Clone, Debug, Default)]
pub struct Coverage(BTreeMap<State, u64>);

impl Coverage {
    /// Counts a state as reached once more.
    pub fn reach(&mut self, state: State) {
        *self.0.entry(state).or_default() += 1;
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Self) {
        for (state, count) in &other.0 {
            *self.0.entry(*state).or_default() += count;
        }
    }

    /// Returns how often a state was reached.
    pub fn of(&self, state: State) -> u64 {
        self.0.get(&state).copied().unwrap_or(0)
    }
}
