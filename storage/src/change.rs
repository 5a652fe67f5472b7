//! The types that a store writes and reads, and its errors.

use iptunnel_domain::Timestamp;
use iptunnel_domain::Version;
use iptunnel_domain::access::{AccessToken, TokenNumber};
use iptunnel_domain::activation::{Activation, ActivationNumber};
use iptunnel_domain::audit::{Event, Head};
use iptunnel_domain::code::{Code, CodeNumber};
use iptunnel_domain::limit::Policy;
use iptunnel_domain::server::{Server, ServerId, ServerNumber};
use std::sync::Arc;

/// One record to write or to remove.
///
/// A record carries its own guard: version 1 is written only if nothing is stored, version *n* only
/// over version *n* − 1.
///
/// In a store that several servers share, the version alone does not identify a state of a code,
/// because two servers may each decide on the same version. There a code is written only over one
/// that was consumed by the activation which the same change closes (its first
/// [`Write::Activation`] of a version above 1). If the change closes none, the stored code must be
/// consumed by none. Other guarded records were read from the store before the decision, or change
/// only once.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// A code, new or changed. New codes arrive in the order of their numbers.
    Code(Code),
    /// An activation, new or changed. New activations arrive in the order of their numbers.
    Activation(Activation),
    /// A server, new or changed.
    Server(Server),
    /// Deletes a code that still has this version.
    ForgetCode(CodeNumber, Version),
    /// Deletes an activation that still has this version.
    ForgetActivation(ActivationNumber, Version),
    /// Deletes a server that still has this version. Its number is not used again.
    ForgetServer(ServerNumber, Version),
    /// An access token, new or changed. The time of its last use is not written with it. No two that are
    /// not revoked have the same name: a shared store guards this as well.
    AccessToken(AccessToken),
    /// When access tokens were last used. Not guarded: the later time wins.
    TokenUses(Vec<(TokenNumber, Timestamp)>),
    /// When servers were last seen. Not guarded: the later time wins.
    CheckIns(Vec<CheckIn>),
    /// The state of counters. Not guarded: counters have one writer.
    Counters(Vec<CounterRow>),
    /// Adds an event to the audit log, in the commit that it describes. In an `Arc`, because the
    /// journal, the engine and the listener use it at the same time.
    Audit(Arc<Event>),
    /// Records an attempt on a code that exists: the first [`ATTEMPTS`] whole, the rest as a count.
    /// Not guarded. An event without a code, or with an unknown code, is ignored.
    Attempt(Event),
    /// Stores a setting that an operator has changed, or removes the change. Not guarded: settings
    /// have one writer.
    Setting(Setting),
    /// Counts the request that the change grants against its limits. The change is written only if all of
    /// them allow one more; the guards before it are checked first. Only for a store that several servers
    /// share: the limits of one server are counted in its memory.
    Charge(Vec<Counted>),
}

/// How many attempts on one code are kept whole.
pub const ATTEMPTS: usize = 100;

/// A setting that an operator has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Section and key.
    pub key: String,
    /// The value as text; `None` to undo the change.
    pub value: Option<String>,
}

/// An entry of the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What happened.
    pub event: Event,
    /// The entry's number and hash.
    pub head: Head,
}

/// Attempts on a code: what was tried and changed nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// The first attempts, at most [`ATTEMPTS`].
    pub kept: Vec<Event>,
    /// How many more there were.
    pub more: u64,
}

/// When a server was last seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CheckIn {
    /// The server.
    pub server: ServerNumber,
    /// The time.
    pub at: Timestamp,
}

/// The count of one limit for one subject in one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// The subject's key.
    pub key: u64,
    /// The policy.
    pub policy: Policy,
    /// How many requests were counted.
    pub used: u32,
    /// When the window ends.
    pub window_end: Timestamp,
}

/// A numbered slot for a counter; `None` if it is free again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterRow {
    /// The number of the slot; low numbers are used first.
    pub slot: u32,
    /// The counter in the slot.
    pub counter: Option<Counter>,
}

/// Writes that belong together: all of them happen, or none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change(pub Vec<Write>);

impl Change {
    /// The limits that its charge counts against; `None` if it has no charge.
    #[must_use]
    pub fn limits(&self) -> Option<&[Counted]> {
        self.0.iter().find_map(|write| match write {
            Write::Charge(limits) => Some(limits.as_slice()),
            _ => None,
        })
    }
}

/// The outcome of one change of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The change is on disk. If it has a charge, the counts are not known.
    Written,
    /// The change is on disk, with its charge: the counts of its limits, in their order.
    Charged(Vec<u32>),
    /// A guard did not hold: the store has a newer record; or a limit is reached. Nothing of the change was
    /// written, and nothing counted.
    Conflict,
}

impl Verdict {
    /// Whether the change is on disk.
    pub const fn is_written(&self) -> bool {
        !matches!(self, Self::Conflict)
    }
}

/// Why a commit ended without verdicts.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Certainly nothing was written.
    #[error("the store refused a commit: {0}")]
    Refused(String),
    /// The changes may or may not be on disk. Only a restart can tell.
    #[error("the outcome of a commit is unknown: {0}")]
    Unknown(String),
}

/// Why a record could not be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store cannot be read: {0}")]
pub struct ReadError(pub String);

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk or the engine refused.
    #[error("the store cannot be opened: {0}")]
    Engine(String),
    /// A newer program wrote this store.
    #[error(
        "the store has data format {found}, and this program knows formats up to {known}: \
         start the newer program that wrote it"
    )]
    NewerFormat {
        /// The format in the store.
        found: u32,
        /// The newest format this program knows.
        known: u32,
    },
}

/// The last numbers that were assigned, as far as the store knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastNumbers {
    /// The last code.
    pub code: CodeNumber,
    /// The last activation.
    pub activation: ActivationNumber,
    /// The last server; `None` while there is none.
    pub server: Option<ServerNumber>,
}

/// A limit that one request is counted against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The subject's key.
    pub key: u64,
    /// The policy.
    pub policy: Policy,
    /// When the window ends.
    pub window_end: Timestamp,
    /// How many requests it allows in a window.
    pub allowed: u32,
}

/// A check-in together with the id of its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CheckInOf {
    /// The number of the server and the time.
    pub seen: CheckIn,
    /// The id of the server.
    pub id: ServerId,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// All is well.
    Good,
    /// It costs speed, or will cause trouble.
    Warns,
    /// Requests fail or wait as long as it lasts; nothing is lost.
    Stops,
    /// Changes that were acknowledged may be lost, so that a spent code becomes valid again.
    Breaks,
}

/// One result of examining a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub grade: Grade,
    /// What was found.
    pub what: String,
    /// Why it matters.
    pub why: &'static str,
    /// How to repair it; empty if no repair is needed.
    pub mend: String,
}

/// The outcome of counting a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charged {
    /// Whether it was counted. It is counted against all of its limits or against none.
    pub granted: bool,
    /// The counts of its limits now, in their order.
    pub used: Vec<u32>,
}
