//! The traits of a store: [`Store`], and [`Shared`] for a store that several servers share.

use crate::{
    Attempts, BackupError, Change, Charged, CheckInOf, CommitError, Contents, Counted, Counter,
    Disk, Entry, Finding, LastNumbers, Listener, Pace, ReadError, Verdict, Watermark,
};
use iptunnel_domain::Timestamp;
use iptunnel_domain::access::{AccessToken, TokenNumber};
use iptunnel_domain::activation::{Activation, ActivationId, ActivationNumber};
use iptunnel_domain::audit::Head;
use iptunnel_domain::code::{Code, CodeHash, CodeNumber};
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::server::{Server, ServerId, ServerNumber};
use std::time::Duration;

/// The key under which the secrets in a store are hashed, for [`Store::agree`].
pub const LOOKUP_KEY: &str = "lookup key";

/// The operations that servers need in addition when they share a store.
///
/// Such a store assigns the number of a new server. The caller that writes version 1 of a
/// [`Server`] reads it back to learn its number.
pub trait Shared: Send + Sync {
    /// Returns the number of this start of this server. No other start on the same store has it.
    fn process(&self) -> u32;
    /// Returns the servers with these ids, in the order of `ids`.
    fn servers_of(&self, ids: &[ServerId]) -> Result<Vec<Option<Server>>, ReadError>;
    /// Returns the servers at the addresses with these ids, in the order of `addresses`.
    fn servers_at(&self, addresses: &[ServerId]) -> Result<Vec<Option<Server>>, ReadError>;
    /// Returns how many servers an access token has enrolled, revoked and deleted ones not counted.
    fn enrolled(&self, by: TokenNumber) -> Result<u64, ReadError>;
    /// Writes when servers were last seen, outside of the commits, so that requests do not wait for
    /// it. Returns the check-ins that were not written because another server is writing them.
    fn check_in(&self, seen: Vec<CheckInOf>) -> Result<Vec<CheckInOf>, ReadError>;
    /// Returns the check-ins that other servers have written since the last call. Each is returned
    /// once.
    fn seen_elsewhere(&self) -> Result<Vec<(ServerId, Timestamp)>, ReadError>;
    /// Publishes what this server has for `what`, and returns how many other running servers have
    /// published something else.
    fn publish(&self, what: &str, hash: KeyedHash) -> Result<u64, ReadError>;
    /// Counts requests, each against all of its limits or against none.
    fn charge(&self, requests: Vec<Vec<Counted>>) -> Result<Vec<Charged>, ReadError>;
    /// Takes back counts of [`Shared::charge`].
    fn give_back(&self, counters: Vec<(u64, Timestamp)>) -> Result<(), ReadError>;
    /// Checks whether the database keeps the promises of a store.
    fn examine(&self) -> Result<Vec<Finding>, ReadError>;
    /// Checks whether a commit would succeed now: it tries one that changes nothing and waits for
    /// it for some seconds at most. This is not a commit of [`Store::commit`], so it decides
    /// nothing.
    ///
    /// # Errors
    /// The reason why a commit would fail.
    fn takes_commits(&self) -> Result<(), ReadError> {
        Ok(())
    }
    /// Returns how many hosts reported to be the primary when they were last asked. More than one
    /// means that a standby was promoted and the old primary has come back.
    fn primaries(&self) -> u32 {
        1
    }
    /// Deletes the counters whose windows are over by `now` and by the store's clock. Where more than
    /// `most` are left, also deletes those that have counted least and have not reached their limit.
    fn forget_counters(&self, now: Timestamp, most: u32) -> Result<(), ReadError>;
    /// Returns the time of the store's clock, in milliseconds since the Unix epoch.
    fn clock(&self) -> Result<u64, ReadError>;
}

/// What was acknowledged, and the epochs of a store. An epoch begins when a store holds less than that.
pub trait Epochs: Send + Sync {
    /// Returns what the store must hold from now on; `None` once it is closed.
    fn watermark(&self) -> Option<Watermark>;

    /// Checks whether the store holds what `mark` demands.
    fn contains(&self, mark: &Watermark) -> Result<bool, ReadError>;

    /// Begins the epoch after `last`, unless a later one has already begun. It makes every unspent
    /// code and every open activation void. The watermark from then on demands more than `last`
    /// did, so no older copy of the store satisfies it. Returns the current epoch.
    fn begin_epoch(&self, last: &Watermark, why: &str, now: Timestamp) -> Result<u64, CommitError>;
}

/// Codes, activations, servers, access tokens and counters, as they were last written.
pub trait Records: Send + Sync {
    /// Returns the last numbers that were assigned.
    fn frontier(&self) -> Result<LastNumbers, ReadError>;
    /// Returns the code with this hash.
    fn code(&self, hash: CodeHash) -> Result<Option<Code>, ReadError>;
    /// Returns the activation with this id.
    fn activation(&self, id: ActivationId) -> Result<Option<Activation>, ReadError>;
    /// Returns the codes with these hashes, in the order of `hashes`.
    fn codes(&self, hashes: &[CodeHash]) -> Result<Vec<Option<Code>>, ReadError> {
        hashes.iter().map(|hash| self.code(*hash)).collect()
    }
    /// Returns the activations with these ids, in the order of `ids`.
    fn activations(&self, ids: &[ActivationId]) -> Result<Vec<Option<Activation>>, ReadError> {
        ids.iter().map(|id| self.activation(*id)).collect()
    }
    /// Returns the server with this number.
    fn server(&self, number: ServerNumber) -> Result<Option<Server>, ReadError>;
    /// Returns the servers with these numbers, in the order of `numbers`.
    fn servers_numbered(&self, numbers: &[ServerNumber]) -> Result<Vec<Option<Server>>, ReadError> {
        numbers.iter().map(|number| self.server(*number)).collect()
    }
    /// Returns at most `limit` servers that were registered before `before`, the newest first.
    fn servers_before(
        &self,
        before: Option<ServerNumber>,
        limit: usize,
    ) -> Result<Vec<Server>, ReadError>;
    /// Calls `each` with every server, the oldest first.
    fn each_server(&self, each: &mut dyn FnMut(Server)) -> Result<(), ReadError>;
    /// Returns all access tokens, in the order of their numbers, each with its last use.
    fn access_tokens(&self) -> Result<Vec<AccessToken>, ReadError>;
    /// Calls `each` with every counter, in the order of their slots.
    fn each_counter(&self, each: &mut dyn FnMut(u32, Counter)) -> Result<(), ReadError>;
    /// Returns the codes that were issued last, at most `limit`, the newest first.
    fn newest_codes(&self, limit: usize) -> Result<Vec<Code>, ReadError>;
    /// Returns the activations that were opened last, at most `limit`, the newest first.
    fn newest_activations(&self, limit: usize) -> Result<Vec<Activation>, ReadError>;
    /// Returns the codes that were issued first, or first after number `after`: at most `limit`,
    /// the oldest first.
    fn oldest_codes(&self, after: Option<CodeNumber>, limit: usize)
    -> Result<Vec<Code>, ReadError>;
    /// Returns the activations that were opened first, or first after number `after`: at most
    /// `limit`, the oldest first.
    fn oldest_activations(
        &self,
        after: Option<ActivationNumber>,
        limit: usize,
    ) -> Result<Vec<Activation>, ReadError>;
}

/// How far times may be out of order in the audit log, in seconds. Between the time stamp of a request and its
/// commit its body is read, for which it has ten seconds by default.
pub const OUT_OF_ORDER: u64 = 60;

/// The audit log: what happened, in the order of the commits, and what was tried on codes.
pub trait AuditLog: Send + Sync {
    /// Returns the number and hash of the last entry of the audit log.
    fn audit_head(&self) -> Result<Head, ReadError>;
    /// Calls `each` with the entries from number `first` on, the oldest first, until it returns
    /// `false`.
    fn audit_from(&self, first: u64, each: &mut dyn FnMut(Entry) -> bool) -> Result<(), ReadError>;
    /// Calls `each` with the entries before number `before`, the newest first, until it returns
    /// `false`.
    fn audit_before(
        &self,
        before: u64,
        each: &mut dyn FnMut(Entry) -> bool,
    ) -> Result<(), ReadError>;
    /// Returns a number before which no entry is as late as `at`. Entries stand in the order of
    /// their commits, and their times may be out of order by [`OUT_OF_ORDER`] seconds: so it is the number of
    /// the first entry that is about so much earlier than `at`.
    fn audit_number_at(&self, at: Timestamp) -> Result<u64, ReadError>;
    /// Returns the attempts on a code: what was tried on it and changed nothing.
    fn attempts(&self, code: CodeHash) -> Result<Attempts, ReadError>;
    /// Returns the attempts on several codes, in the order of `codes`.
    fn attempts_on(&self, codes: &[CodeHash]) -> Result<Vec<Attempts>, ReadError> {
        codes.iter().map(|code| self.attempts(*code)).collect()
    }
}

/// What each webhook has had of the audit log: a row for each, whose bytes are the caller's. One server at a
/// time delivers and writes these rows: the one that holds the lease.
///
/// They are no part of the commits, and no guard rests on them: a row that is lost is a delivery that is repeated.
pub trait WebhookStates: Send + Sync {
    /// Takes the lease, or makes it longer, for so many seconds from now on. Returns whether this server has
    /// it. A store of one server always grants it.
    fn hold(&self, seconds: u32) -> Result<bool, ReadError>;
    /// Gives the lease back, so that another server need not wait for its end.
    fn release(&self) -> Result<(), ReadError>;
    /// Returns the rows, in the order of their names.
    fn states(&self) -> Result<Vec<(String, Vec<u8>)>, ReadError>;
    /// Writes rows, if this server has the lease. Returns whether it has.
    fn keep(&self, states: &[(String, Vec<u8>)]) -> Result<bool, ReadError>;
}

/// Is called with the outcome of a commit.
pub type Ended = Box<dyn FnOnce(Result<Vec<Verdict>, CommitError>) + Send>;

/// A database of records, as the crates above use it. One thread commits; any thread reads. Who only
/// reads takes one of the narrower traits.
pub trait Store: Epochs + Records + AuditLog + 'static {
    /// Writes `changes` in their order and returns when they are on disk, with one verdict for
    /// each. A change is written whole if its guards hold, else not at all.
    ///
    /// # Errors
    /// [`CommitError::Refused`] if certainly nothing was written; the store works again as soon as
    /// a later commit succeeds. [`CommitError::Unknown`] if only a restart can tell.
    fn commit(&self, changes: &[Change]) -> Result<Vec<Verdict>, CommitError>;

    /// Begins to commit `changes` like [`Store::commit`], and calls `ended` when that is done: before this
    /// returns, or later on another thread. Commits end in the order in which they were begun. If one fails,
    /// so do those that were begun meanwhile.
    fn begin(&self, changes: Vec<Change>, ended: Ended) {
        ended(self.commit(&changes));
    }

    /// Returns how long after a commit was begun the next one may be, if the first has not ended by then: the
    /// time that the store works on one. `None` where the store is near: the next one is begun when the last has
    /// ended.
    fn pace(&self) -> Option<Duration> {
        None
    }

    /// Tries all steps of a commit after one was refused, as far as this is possible without a
    /// change. A fault that it does not find shows in the next commit.
    ///
    /// # Errors
    /// Those of [`Store::commit`].
    fn probe(&self) -> Result<(), CommitError> {
        self.commit(&[]).map(|_| ())
    }

    /// Returns the operations of a store that several servers share. `None` if the store belongs to
    /// this server alone: then the records in memory are those that the store has or soon will
    /// have.
    fn shared(&self) -> Option<&dyn Shared> {
        None
    }

    /// Returns the states of webhooks. `None` if the store keeps none.
    fn webhooks(&self) -> Option<&dyn WebhookStates> {
        None
    }

    /// From now on calls `listener` for every event that was written, in the order of the commits,
    /// after the event is on disk. Can be set once; the listener must be quick.
    fn follow(&self, listener: Listener);

    /// Writes a copy of the store at one moment to an empty disk, while commits and reads go on. The copy
    /// has everything that was committed before the call, and is on disk when this returns. Calls `pace`
    /// between the pieces of its work.
    ///
    /// # Errors
    /// Other servers share the store, it cannot be read, the copy cannot be written, or `pace` says that
    /// it is to end.
    fn back_up(&self, _to: Box<dyn Disk>, _pace: &Pace) -> Result<Contents, BackupError> {
        Err(BackupError::Shared)
    }

    /// Closes the engine in order, so that the next open has nothing to repair. The store must not
    /// be used afterwards.
    fn close(&self);

    /// Returns the settings that operators have changed, in the order of their keys.
    fn settings(&self) -> Result<Vec<(String, String)>, ReadError>;

    /// Returns the hash that every start on this store must have for `what`; `None` if no start has
    /// set one.
    fn agreed(&self, what: &str) -> Result<Option<KeyedHash>, ReadError>;
    /// Returns whether `hash` is the one that every start must have for `what`. The first one that
    /// asks sets it.
    fn agree(&self, what: &str, hash: KeyedHash) -> Result<bool, ReadError>;
}
