//! Guarded commits, reads and scans: everything the rooms above know of a database.
//!
//! A [`Store`] keeps records and judges guards; it knows no rule about codes, activations or
//! servers. [`EmbeddedStore`] keeps them in two files, a journal before a [`RedbStore`], for one
//! server; [`PostgresStore`] keeps them in a database that several servers share. Nothing above this
//! crate learns which one it is, only whether it is [`Store::shared`].
//!
//! **Durability**: when [`Store::commit`] returns, every change it reports as written is on disk
//! and survives the loss of the process and of power, as far as the disk keeps what it says it
//! has synced.

mod copy;
mod embedded;
mod epoch;
mod feed;
mod outage;
mod postgres;
mod record;
mod walk;

pub use copy::{CopyError, Sum, copy, sums};
#[cfg(any(test, feature = "simulated"))]
pub use embedded::simulated;
pub use embedded::{Disk, Disks, EmbeddedStore, FORMAT_VERSION, FileDisk, OpenDisk, RedbStore};
pub use feed::Listener;
pub use outage::Outage;
pub use postgres::{Inspection, PostgresStore};

use iptunnel_domain::activation::{Activation, ActivationId, ActivationNumber};
use iptunnel_domain::audit::{Event, Head};
use iptunnel_domain::code::{Code, CodeHash, CodeNumber};
use iptunnel_domain::limit::Policy;
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::server::{Server, ServerId, ServerNumber};
use iptunnel_domain::{Timestamp, Version};
use std::sync::Arc;

/// One record to write or to remove.
///
/// A record carries its own guard: version 1 is written only where nothing is stored, version
/// *n* only over version *n* − 1.
///
/// Over a store that several servers share a version is no identity for a code: two servers may each
/// have decided on a version of the same number. There a code is written only over one that is
/// consumed by the activation which the same change closes (its first [`Write::Activation`] of a
/// version above 1), or by none where the change closes none. What else is guarded by its version was
/// read from the store when it was decided on, or changes only once.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// A code, new or changed. New codes arrive in the order of their numbers.
    Code(Code),
    /// An activation, new or changed. New activations arrive in the order of their numbers.
    Activation(Activation),
    /// A server, new or changed.
    Server(Server),
    /// Forgets a code that still has this version.
    ForgetCode(CodeNumber, Version),
    /// Forgets an activation that still has this version.
    ForgetActivation(ActivationNumber, Version),
    /// When servers were last seen. Not guarded: later wins.
    CheckIns(Vec<CheckIn>),
    /// The state of counters. Not guarded: they have one writer.
    Counters(Vec<CounterRow>),
    /// Enters an event into the audit log, in the commit that it describes. Shared: it is on its way to
    /// the journal, to the engine and to whoever follows at once.
    Audit(Arc<Event>),
    /// Notes an attempt on a code that exists: the first [`ATTEMPTS`] whole, then their number.
    /// Not guarded. An event that names no code, or one that is not there, is not noted.
    Attempt(Event),
    /// Keeps a setting that an operator has changed, or forgets that it was. Not guarded: settings
    /// have one writer.
    Setting(Setting),
}

/// How many attempts on one code are kept whole.
pub const ATTEMPTS: usize = 100;

/// A setting that an operator has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Section and key.
    pub key: String,
    /// The value as text; `None` where the change is undone.
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

/// What was tried on a code and changed nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// The first ones.
    pub kept: Vec<Event>,
    /// How many more there were.
    pub more: u64,
}

/// When a server was last seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CheckIn {
    /// The server.
    pub server: ServerNumber,
    /// When.
    pub at: Timestamp,
}

/// What one limit has counted for one subject in one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// The subject's key.
    pub key: u64,
    /// The policy.
    pub policy: Policy,
    /// How many were charged.
    pub used: u32,
    /// When the window is over.
    pub window_end: Timestamp,
}

/// A numbered place for a counter; `None` where it is free again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterRow {
    /// The place's number; low numbers are used first.
    pub slot: u32,
    /// What stands there.
    pub counter: Option<Counter>,
}

/// Writes that belong together: all of them happen, or none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change(pub Vec<Write>);

/// What became of one change of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is on disk.
    Written,
    /// A guard did not hold: the store has a newer record, and nothing of the change was written.
    Conflict,
}

/// Why a commit did not end with verdicts.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Certainly nothing was written.
    #[error("the store refused a commit: {0}")]
    Refused(String),
    /// The changes may or may not be on disk, and only a new start can tell.
    #[error("the fate of a commit is unknown: {0}")]
    Unknown(String),
}

/// Why a record could not be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store cannot be read: {0}")]
pub struct ReadError(pub String);

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk or the engine said no.
    #[error("the store cannot be opened: {0}")]
    Engine(String),
    /// A later program wrote this store.
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

/// The last numbers given out, as far as the store knows.
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
    /// When the window is over.
    pub window_end: Timestamp,
    /// How many it allows in a window.
    pub allowed: u32,
}

/// A check-in with the name of its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CheckInOf {
    /// The number of the server, and when.
    pub seen: CheckIn,
    /// Its name.
    pub id: ServerId,
}

/// How much of what was acknowledged a store must hold. Kept outside of the store, it tells whether
/// the store has become an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watermark {
    /// How often a store was found to be an earlier one.
    pub epoch: u64,
    /// Whose commits are counted: the name of a start of a server.
    pub process: String,
    /// How many of its commits were acknowledged.
    pub commits: u64,
    /// The highest timeline of a shared database that was ever seen: each promotion of a standby
    /// begins another one. 0 where none was seen.
    pub timeline: u32,
    /// The same counts of other servers on the same store, by the names of their starts: what one
    /// server was told of survives in the marks of all.
    pub others: Vec<(String, u64)>,
}

/// By how much the mark of an unfinished epoch asks for more than was acknowledged: no store holds it.
const UNFINISHED: u64 = 1 << 62;
/// What earlier programs wrote for it, without saying what was acknowledged.
const UNFINISHED_BEFORE: u64 = i64::MAX.cast_unsigned();

impl Watermark {
    /// The mark of an epoch whose beginning takes many commits, until the last of them: a start after
    /// an interruption finds that the store does not hold it, and begins anew.
    #[must_use]
    pub fn unfinished(&self) -> Self {
        Self { commits: self.acknowledged().saturating_add(UNFINISHED), ..self.clone() }
    }

    /// How many commits were acknowledged, also where the epoch is unfinished; 0 where that is not
    /// known.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        match self.commits {
            UNFINISHED_BEFORE => 0,
            commits => commits.checked_sub(UNFINISHED).unwrap_or(commits),
        }
    }
}

impl std::fmt::Display for Watermark {
    /// A first line that programs before timelines read as well, and a line for each other server.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { epoch, process, commits, timeline, others } = self;
        writeln!(f, "{epoch} {process} {commits} {timeline}")?;
        others.iter().try_for_each(|(process, commits)| writeln!(f, "{process} {commits}"))
    }
}

impl std::str::FromStr for Watermark {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut lines = text.lines();
        let mut words = lines.next().ok_or(())?.split_whitespace();
        let mut next = || words.next().ok_or(());
        let epoch = next()?.parse().map_err(|_| ())?;
        let process = next()?.to_owned();
        let commits = next()?.parse().map_err(|_| ())?;
        // Marks of before timelines end here.
        let timeline = next().map_or(Ok(0), str::parse).map_err(|_| ())?;
        let other = |line: &str| {
            let (process, commits) = line.split_once(' ').ok_or(())?;
            Ok((process.to_owned(), commits.trim().parse().map_err(|_| ())?))
        };
        let others = lines.filter(|line| !line.trim().is_empty()).map(other);
        Ok(Self { epoch, process, commits, timeline, others: others.collect::<Result<_, ()>>()? })
    }
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// It is as it should be.
    Good,
    /// It costs speed, or will cause trouble.
    Warns,
    /// Requests are refused or wait for as long as it lasts; nothing is lost by it.
    Stops,
    /// What was answered may be lost, so that a spent code comes back.
    Breaks,
}

/// Something found out about a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub grade: Grade,
    /// What was found.
    pub what: String,
    /// Why it matters.
    pub why: &'static str,
    /// What mends it; empty where nothing has to be.
    pub mend: String,
}

/// What became of counting a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charged {
    /// Whether it was counted, against all of its limits; else it was against none.
    pub granted: bool,
    /// How many each limit has counted now, in their order.
    pub used: Vec<u32>,
}

/// What servers that share a store need beyond what one needs of its own.
///
/// Over such a store a new server's number is the store's to give: whoever writes version 1 of a
/// [`Server`] reads it back to learn its number.
pub trait Shared: Send + Sync {
    /// The number of this start of this server: no other start on the same store has it.
    fn process(&self) -> u32;
    /// The servers with these ids, in their order.
    fn servers_of(&self, ids: &[ServerId]) -> Result<Vec<Option<Server>>, ReadError>;
    /// Writes when servers were last seen, beside the commits: requests do not wait for it. What is
    /// left was not written, since another server has it in hand.
    fn check_in(&self, seen: Vec<CheckInOf>) -> Result<Vec<CheckInOf>, ReadError>;
    /// Who has checked in with other servers, as far as they have written it since this was last
    /// asked. It is told once.
    fn seen_elsewhere(&self) -> Result<Vec<(ServerId, Timestamp)>, ReadError>;
    /// Whether all servers on the store have the same of something, whose hash this is; the first one
    /// that asks says what it is.
    fn agree(&self, what: &str, hash: KeyedHash) -> Result<bool, ReadError>;
    /// Counts requests, each against all of its limits or against none.
    fn charge(&self, requests: Vec<Vec<Counted>>) -> Result<Vec<Charged>, ReadError>;
    /// Takes back what was counted.
    fn give_back(&self, counters: Vec<(u64, Timestamp)>) -> Result<(), ReadError>;
    /// Whether the database keeps what a store promises.
    fn examine(&self) -> Result<Vec<Finding>, ReadError>;
    /// Whether a commit would come to be now: one that changes nothing is tried, and waited for at most
    /// some seconds. It is no commit of [`Store::commit`], so nothing is decided by it.
    ///
    /// # Errors
    /// Why it would not.
    fn takes_commits(&self) -> Result<(), ReadError> {
        Ok(())
    }
    /// How many hosts said that they are the primary when they were last asked. More than one means
    /// that a standby was promoted and the old primary has come back.
    fn primaries(&self) -> u32 {
        1
    }
    /// Forgets the counters whose windows are over, and, where there are more than `most`, those that
    /// have counted least and have not reached their limit.
    fn forget_counters(&self, now: Timestamp, most: u32) -> Result<(), ReadError>;
    /// What the store's clock says, in milliseconds since the Unix epoch.
    fn clock(&self) -> Result<u64, ReadError>;
}

/// What the rooms above need of a database. One thread commits; any thread reads.
pub trait Store: Send + Sync + 'static {
    /// Writes `changes` in their order, each whole where its guards hold, and returns when they
    /// are on disk: one verdict for each.
    ///
    /// # Errors
    /// [`CommitError::Refused`] where certainly nothing was written; the store works again as soon
    /// as a later commit succeeds. [`CommitError::Unknown`] where only a new start can tell.
    fn commit(&self, changes: &[Change]) -> Result<Vec<Verdict>, CommitError>;

    /// Tries the whole way of a commit, after one was refused: as much as can be tried without changing
    /// anything. What it does not find out shows in the next commit.
    ///
    /// # Errors
    /// Those of [`Store::commit`].
    fn probe(&self) -> Result<(), CommitError> {
        self.commit(&[]).map(|_| ())
    }

    /// The store as several servers share it; `None` where it is this server's alone, so that what
    /// memory holds is what the store holds or soon will.
    fn shared(&self) -> Option<&dyn Shared> {
        None
    }

    /// What the store must hold from now on; `None` once it is closed.
    fn watermark(&self) -> Option<Watermark>;

    /// Whether the store holds what it must.
    fn contains(&self, mark: &Watermark) -> Result<bool, ReadError>;

    /// Lets the epoch after `last` begin, unless a later one has begun already: every code that is not
    /// spent, and every open activation, is void. What the store asks for from then on is more than
    /// `last` did, so that no older copy of it holds that. Returns the present epoch.
    fn begin_epoch(&self, last: &Watermark, why: &str, now: Timestamp) -> Result<u64, CommitError>;

    /// Lets go of the engine, in order: whoever opens the store next finds nothing to repair.
    /// Nothing may be asked of it afterwards.
    fn close(&self);

    /// The last numbers given out.
    fn frontier(&self) -> Result<LastNumbers, ReadError>;
    /// The code with this hash.
    fn code(&self, hash: CodeHash) -> Result<Option<Code>, ReadError>;
    /// The activation with this id.
    fn activation(&self, id: ActivationId) -> Result<Option<Activation>, ReadError>;
    /// The codes with these hashes, in their order.
    fn codes(&self, hashes: &[CodeHash]) -> Result<Vec<Option<Code>>, ReadError> {
        hashes.iter().map(|hash| self.code(*hash)).collect()
    }
    /// The activations with these ids, in their order.
    fn activations(&self, ids: &[ActivationId]) -> Result<Vec<Option<Activation>>, ReadError> {
        ids.iter().map(|id| self.activation(*id)).collect()
    }
    /// The server with this number.
    fn server(&self, number: ServerNumber) -> Result<Option<Server>, ReadError>;
    /// At most `limit` servers registered before `before`, the newest first.
    fn servers_before(
        &self,
        before: Option<ServerNumber>,
        limit: usize,
    ) -> Result<Vec<Server>, ReadError>;
    /// Hands every server to `each`, the oldest first.
    fn each_server(&self, each: &mut dyn FnMut(Server)) -> Result<(), ReadError>;
    /// Hands every counter to `each`, in the order of their slots.
    fn each_counter(&self, each: &mut dyn FnMut(u32, Counter)) -> Result<(), ReadError>;
    /// From now on tells `listener` of every event that was written, in the order of the commits,
    /// each after it is on disk. Set once; it must be quick.
    fn follow(&self, listener: Listener);
    /// How far the audit log goes.
    fn audit_head(&self) -> Result<Head, ReadError>;
    /// Hands the entries from number `first` on to `each`, the oldest first, until it returns
    /// `false`.
    fn audit_from(&self, first: u64, each: &mut dyn FnMut(Entry) -> bool) -> Result<(), ReadError>;
    /// Hands the entries before number `before` to `each`, the newest first, until it returns
    /// `false`.
    fn audit_before(
        &self,
        before: u64,
        each: &mut dyn FnMut(Entry) -> bool,
    ) -> Result<(), ReadError>;
    /// A number before which no entry is as late as `at`. Entries stand in the order of their
    /// commits, in which times may be some seconds out of order.
    fn audit_number_at(&self, at: Timestamp) -> Result<u64, ReadError>;
    /// What was tried on a code and changed nothing.
    fn attempts(&self, code: CodeHash) -> Result<Attempts, ReadError>;
    /// The same of several codes, in their order.
    fn attempts_on(&self, codes: &[CodeHash]) -> Result<Vec<Attempts>, ReadError> {
        codes.iter().map(|code| self.attempts(*code)).collect()
    }
    /// The settings that operators have changed, by key.
    fn settings(&self) -> Result<Vec<(String, String)>, ReadError>;
    /// The codes issued last, at most `limit`, the newest first.
    fn newest_codes(&self, limit: usize) -> Result<Vec<Code>, ReadError>;
    /// The activations opened last, ditto.
    fn newest_activations(&self, limit: usize) -> Result<Vec<Activation>, ReadError>;
    /// The codes issued first, or first after the one with this number: at most `limit`, the oldest
    /// first.
    fn oldest_codes(&self, after: Option<CodeNumber>, limit: usize)
    -> Result<Vec<Code>, ReadError>;
    /// The activations opened first, ditto.
    fn oldest_activations(
        &self,
        after: Option<ActivationNumber>,
        limit: usize,
    ) -> Result<Vec<Activation>, ReadError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let others = vec![("c0ffee".to_owned(), 9), ("decade".to_owned(), u64::MAX)];
        for others in [Vec::new(), others] {
            let mark =
                Watermark { epoch: 3, process: "facade".into(), commits: 12, timeline: 7, others };
            assert_eq!(mark.to_string().parse(), Ok(mark));
        }
    }

    #[test]
    fn a_mark_of_before_timelines_is_read() {
        let mark =
            Watermark { epoch: 1, process: "redb".into(), commits: 5, ..Watermark::default() };
        assert_eq!("1 redb 5\n".parse(), Ok(mark));
    }

    #[test]
    fn an_unfinished_mark_asks_for_more_than_there_is_and_still_says_what_was_acknowledged() {
        let mark = Watermark { commits: 7, ..Watermark::default() };
        let unfinished = mark.unfinished();
        assert!(unfinished.commits > u64::from(u32::MAX));
        assert_eq!((mark.acknowledged(), unfinished.acknowledged()), (7, 7));
        assert_eq!(unfinished.unfinished(), unfinished);
        let before = Watermark { commits: i64::MAX.cast_unsigned(), ..mark };
        assert_eq!(before.acknowledged(), 0);
    }

    #[test]
    fn what_is_no_mark_is_refused() {
        for text in ["", "1", "1 redb", "1 redb five", "1 redb 5 seven", "1 redb 5 7\nalone"] {
            assert_eq!(text.parse::<Watermark>(), Err(()), "{text:?}");
        }
    }
}
