//! A model of the shared database: its guards, transactions and standby, and the faults of the database and
//! its connections. Its writes and guards follow the statements of the real engine. A test compares both.
//!
//! A commit is atomic and takes no time here. What takes time in reality (the request, the standby, the
//! answer) is modelled by states: a commit that *waits* for the standby is not visible and locks its rows.

use crate::chance::Chance;
use crate::coverage::{Coverage, State};
use crate::planted::{Fault, Planted};
use iptunnel_domain::Timestamp;
use iptunnel_domain::access::{AccessToken, TokenNumber};
use iptunnel_domain::activation::{
    Activation, ActivationId, ActivationNumber, ActivationRef, ActivationState,
};
use iptunnel_domain::audit::{Action, Actor, Event, Head};
use iptunnel_domain::code::{Code, CodeHash, CodeNumber, CodeState};
use iptunnel_domain::limit::Subject;
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::server::{EnrolledBy, Server, ServerId, ServerNumber};
use iptunnel_storage::{
    Attempts, AuditLog, Change, Charged, CheckInOf, CommitError, Counted, Counter, Entry, Epochs,
    Finding, LastNumbers, Listener, ReadError, Records, Setting, Shared, Store, Verdict, Watermark,
    Write,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The content of a database.
#[derive(Clone, Default)]
pub struct Tables {
    /// By their numbers.
    pub codes: BTreeMap<u64, Code>,
    /// By their numbers.
    pub activations: BTreeMap<u64, Activation>,
    servers: BTreeMap<ServerId, Server>,
    counters: BTreeMap<(u64, Timestamp), u32>,
    settings: BTreeMap<String, String>,
    access_tokens: BTreeMap<TokenNumber, AccessToken>,
    /// The events of each process, in their order.
    events: Vec<(u32, Event)>,
    /// The last batch of each process.
    batches: BTreeMap<u32, u64>,
    epoch: u64,
}

/// A row that a transaction may lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    Code(u64),
    Activation(u64),
    Server(ServerId),
    ForgottenServer(ServerNumber),
    AccessToken(TokenNumber),
    Process(u32),
}

/// A transaction that was sent.
#[derive(Clone)]
struct Transaction {
    process: u32,
    batch: u64,
    rows: BTreeSet<Row>,
    writes: Vec<Write>,
}

/// The connection between the primary and its standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standby {
    /// It confirms every commit before the commit is answered.
    Synchronous,
    /// It is cut off, and commits wait for it.
    CutOff,
    /// Commits are answered before it receives them.
    Asynchronous,
}

struct Cluster {
    primary: Tables,
    /// The content of the standby.
    replica: Tables,
    /// The commits that wait for the standby. They are not visible, and their rows are locked.
    waiting: Vec<Transaction>,
    /// Whether a visible commit is missing on the standby, though commits wait for it.
    unconfirmed: bool,
    standby: Standby,
    next_process: u32,
    next_server: u32,
    timeline: u32,
    /// The number of events that each promoted standby had.
    promoted: Vec<usize>,
    /// Connections no longer break by chance.
    stable: bool,
    chance: Chance,
    coverage: Coverage,
    trace: Vec<String>,
    reachable: bool,
    planted: Planted,
}

/// The database, with the faults that a world can inject.
#[derive(Clone)]
pub struct Database(Arc<Mutex<Cluster>>);

impl Database {
    /// Creates an empty database.
    pub fn new(standby: Standby, chance: Chance, planted: Planted) -> Self {
        let tables = Tables { epoch: 1, ..Tables::default() };
        Self(Arc::new(Mutex::new(Cluster {
            primary: tables.clone(),
            replica: tables,
            waiting: Vec::new(),
            unconfirmed: false,
            standby,
            next_process: 1,
            next_server: 0,
            timeline: 1,
            promoted: Vec::new(),
            stable: false,
            chance,
            coverage: Coverage::default(),
            trace: Vec::new(),
            reachable: true,
            planted,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Cluster> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns its content, for the checks at the end.
    pub fn tables(&self) -> Tables {
        self.lock().primary.clone()
    }

    /// Takes the states reached since the last call.
    pub fn coverage(&self) -> Coverage {
        std::mem::take(&mut self.lock().coverage)
    }

    /// Takes the events since the last call.
    pub fn trace(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().trace)
    }

    /// Makes the database unreachable or reachable.
    pub fn set_reachable(&self, reachable: bool) {
        self.lock().reachable = reachable;
    }

    /// Cuts the standby off from its primary.
    pub fn cut_off(&self) {
        let mut cluster = self.lock();
        if cluster.standby == Standby::Synchronous {
            cluster.standby = Standby::CutOff;
        }
    }

    /// Connects the standby again. It catches up and confirms the commits that wait.
    pub fn rejoin(&self) {
        let cluster = &mut *self.lock();
        if cluster.standby == Standby::CutOff {
            cluster.standby = Standby::Synchronous;
            cluster.end_waiting();
        }
        cluster.replica = cluster.primary.clone();
        cluster.unconfirmed = false;
    }

    /// Restarts the primary, or ends its sessions. The commits that wait become visible, though no standby
    /// has them.
    pub fn restart(&self) {
        let cluster = &mut *self.lock();
        if !cluster.waiting.is_empty() {
            cluster.coverage.reach(State::VisibleUnconfirmed);
            cluster.unconfirmed = true;
            cluster.end_waiting();
        }
    }

    /// Loses the primary and promotes its standby. A new standby follows it.
    pub fn fail_over(&self) {
        let cluster = &mut *self.lock();
        if !cluster.waiting.is_empty() || cluster.unconfirmed {
            cluster.coverage.reach(State::LostUnconfirmed);
        }
        if cluster.standby == Standby::Asynchronous {
            cluster.coverage.reach(State::LostAcknowledged);
        } else {
            cluster.standby = Standby::Synchronous;
        }
        cluster.waiting.clear();
        cluster.unconfirmed = false;
        cluster.primary = cluster.replica.clone();
        cluster.timeline += 1;
        cluster.promoted.push(cluster.primary.events.len());
    }

    /// Lets an asynchronous standby catch up.
    pub fn catch_up(&self) {
        let cluster = &mut *self.lock();
        if cluster.standby == Standby::Asynchronous {
            cluster.replica = cluster.primary.clone();
        }
    }

    /// Returns the events after the first `from`, each with the process that wrote it.
    pub fn events_from(&self, from: usize) -> Vec<(u32, Event)> {
        self.lock().primary.events.get(from..).unwrap_or_default().to_vec()
    }

    /// The number of events. It decreases when a tail is lost.
    pub fn events(&self) -> usize {
        self.lock().primary.events.len()
    }

    /// The timeline of the primary.
    pub fn timeline(&self) -> u32 {
        self.lock().timeline
    }

    /// The smallest number of events since `timeline` was the current one.
    pub fn shortest_since(&self, timeline: u32) -> usize {
        let cluster = self.lock();
        let since = cluster.promoted.get(timeline as usize - 1..).unwrap_or_default();
        since.iter().copied().min().unwrap_or(usize::MAX)
    }

    /// Returns the count of a limit in the window of `now`.
    pub fn used(&self, subject: &Subject, now: Timestamp) -> u32 {
        let place = (subject.key(), subject.policy.window_end(now));
        self.lock().primary.counters.get(&place).copied().unwrap_or(0)
    }

    /// From now on, no connection breaks by chance.
    pub fn keep_connections(&self) {
        self.lock().stable = true;
    }

    /// The current epoch.
    pub fn epoch(&self) -> u64 {
        self.lock().primary.epoch
    }

    /// Connects a server that starts.
    pub fn open(&self) -> Result<Connection, ReadError> {
        let cluster = &mut *self.lock();
        cluster.reach()?;
        let process = cluster.next_process;
        cluster.next_process += 1;
        cluster.primary.batches.insert(process, 0);
        // The row of a start is committed like any other, before the server accepts requests.
        if cluster.standby != Standby::Asynchronous {
            cluster.replica.batches.insert(process, 0);
        }
        let (epoch, timeline) = (cluster.primary.epoch, cluster.timeline);
        let others = BTreeMap::new();
        let own = Own { process, batch: 0, in_doubt: false, epoch, timeline, others };
        Ok(Connection { database: self.clone(), own: Mutex::new(own), process })
    }
}

impl Cluster {
    fn reach(&self) -> Result<(), ReadError> {
        if self.reachable { Ok(()) } else { Err(ReadError("the database is unreachable".into())) }
    }

    fn end_waiting(&mut self) {
        for transaction in std::mem::take(&mut self.waiting) {
            self.primary.batches.insert(transaction.process, transaction.batch);
            for write in transaction.writes {
                self.primary.write(transaction.process, write, &mut self.next_server);
            }
        }
    }

    /// Decides on a batch of `process`: the verdicts, the writes to make, and the rows to lock.
    fn judge(&self, process: u32, changes: &[Change]) -> Judged {
        let mut scratch = self.primary.clone();
        let mut next_server = self.next_server;
        let (mut verdicts, mut writes) = (vec![Verdict::Conflict; changes.len()], Vec::new());
        let mut rows = BTreeSet::from([Row::Process(process)]);
        for (place, change) in in_rounds(changes) {
            rows.extend(change.0.iter().filter_map(row));
            if scratch.holds(change, &self.planted) {
                for write in &change.0 {
                    scratch.write(process, write.clone(), &mut next_server);
                    writes.push(write.clone());
                }
                let used =
                    |limits: &[Counted]| limits.iter().map(|one| scratch.used(one)).collect();
                verdicts[place] =
                    change.limits().map(used).map_or(Verdict::Written, Verdict::Charged);
            }
        }
        Judged { verdicts, writes, rows }
    }
}

struct Judged {
    verdicts: Vec<Verdict>,
    writes: Vec<Write>,
    rows: BTreeSet<Row>,
}

/// Returns the activation that a change closes. That activation must hold the code of the change. If the
/// change closes none, no activation may hold it.
fn closed_by(Change(writes): &Change) -> Option<ActivationRef> {
    writes.iter().find_map(|write| match write {
        Write::Activation(activation) if activation.version > 1 => Some(activation.at),
        _ => None,
    })
}

/// Returns the changes, each with its place in the batch, in the order in which they are written: a later
/// change of a server comes after the first changes of all others. If two servers want the same address, the
/// order decides.
fn in_rounds(changes: &[Change]) -> Vec<(usize, &Change)> {
    let server_of = |change: &Change| {
        change.0.iter().find_map(|write| match write {
            Write::Server(server) => Some(server.id),
            _ => None,
        })
    };
    let servers: Vec<Option<ServerId>> = changes.iter().map(server_of).collect();
    let round = |(place, _): &(usize, &Change)| {
        let of_same =
            |earlier: &&Option<ServerId>| earlier.is_some() && **earlier == servers[*place];
        servers[..*place].iter().filter(of_same).count()
    };
    let mut ordered: Vec<(usize, &Change)> = changes.iter().enumerate().collect();
    ordered.sort_by_key(round);
    ordered
}

/// Whether a server was seen after the known time, or the known time lies in the future.
fn is_news(known: Timestamp, seen: Timestamp, latest: Timestamp) -> bool {
    known < seen || known > latest.plus(60)
}

fn row(write: &Write) -> Option<Row> {
    Some(match write {
        Write::Code(code) => Row::Code(code.number.0),
        Write::Activation(activation) => Row::Activation(activation.at.number.0),
        Write::Server(server) => Row::Server(server.id),
        Write::ForgetCode(number, _) => Row::Code(number.0),
        Write::ForgetActivation(number, _) => Row::Activation(number.0),
        Write::ForgetServer(number, _) => Row::ForgottenServer(*number),
        Write::AccessToken(token) => Row::AccessToken(token.number),
        _ => return None,
    })
}

impl Tables {
    /// Whether every guard of a change holds, as in the engine's statements.
    fn holds(&self, change: &Change, planted: &Planted) -> bool {
        change.0.iter().all(|write| match write {
            Write::Code(code) if code.version == 1 => {
                !self.codes.contains_key(&code.number.0)
                    && self.codes.values().all(|other| other.hash != code.hash)
            }
            Write::Code(code) => {
                let Some(before) = self.codes.get(&code.number.0) else { return false };
                let holder = match before.state {
                    CodeState::Issued => None,
                    CodeState::Consumed(by) => Some(by),
                };
                planted.has(Fault::NoGuard)
                    || before.version + 1 == code.version
                        && (planted.has(Fault::GuardByVersion) || holder == closed_by(change))
            }
            Write::Activation(activation) if activation.version == 1 => {
                let closes = |one: &Activation| {
                    change.0.iter().any(|write| {
                        matches!(write, Write::Activation(other)
                            if other.at == one.at && other.version > 1)
                    })
                };
                let holds_the_code = |one: &Activation| {
                    one.code == activation.code
                        && one.state == ActivationState::Open
                        && !closes(one)
                };
                !self.activations.contains_key(&activation.at.number.0)
                    && self.activations.values().all(|one| one.at.id != activation.at.id)
                    && !self.activations.values().any(holds_the_code)
            }
            Write::Activation(activation) => {
                let before = self.activations.get(&activation.at.number.0);
                before.is_some_and(|before| before.version + 1 == activation.version)
            }
            Write::Server(server) if server.version == 1 => {
                !self.servers.contains_key(&server.id) && self.is_free(server)
            }
            Write::Server(server) => {
                // A server that was deleted and has registered again has another number.
                let decided_on =
                    |one: &Server| one.number == server.number && one.version + 1 == server.version;
                self.servers.get(&server.id).is_some_and(decided_on) && self.is_free(server)
            }
            Write::ForgetCode(number, version) => {
                self.codes.get(&number.0).is_some_and(|code| code.version == *version)
            }
            Write::ForgetActivation(number, version) => {
                self.activations.get(&number.0).is_some_and(|one| one.version == *version)
            }
            Write::ForgetServer(number, version) => {
                let mut servers = self.servers.values();
                servers.any(|one| one.number == *number && one.version == *version)
            }
            Write::AccessToken(token) => {
                let before = self.access_tokens.get(&token.number);
                let has_the_name = |other: &AccessToken| {
                    other.number != token.number
                        && other.name == token.name
                        && other.revoked_at.is_none()
                };
                before.map_or(0, |before| before.version) + 1 == token.version
                    && (token.revoked_at.is_some()
                        || !self.access_tokens.values().any(has_the_name))
            }
            Write::CheckIns(_)
            | Write::TokenUses(_)
            | Write::Counters(_)
            | Write::Audit(_)
            | Write::Attempt(_)
            | Write::Setting(_) => true,
            Write::Charge(limits) => limits.iter().all(|one| self.used(one) < one.allowed),
        })
    }

    fn used(&self, one: &Counted) -> u32 {
        self.counters.get(&(one.key, one.window_end)).copied().unwrap_or(0)
    }

    /// Whether no other server is at the address.
    fn is_free(&self, server: &Server) -> bool {
        let mut others = self.servers.values().filter(|other| other.id != server.id);
        others.all(|other| other.address_id != server.address_id)
    }

    fn write(&mut self, process: u32, write: Write, next_server: &mut u32) {
        match write {
            Write::Code(code) => {
                self.codes.insert(code.number.0, code);
            }
            Write::Activation(activation) => {
                // As the statement does: only the state and the version of a row change.
                let (state, version) = (activation.state, activation.version);
                let row = self.activations.entry(activation.at.number.0).or_insert(activation);
                (row.state, row.version) = (state, version);
            }
            Write::Server(mut server) => {
                if server.version == 1 {
                    server.number = ServerNumber(*next_server);
                    *next_server += 1;
                } else if let Some(before) = self.servers.get(&server.id) {
                    let (known, seen) = (before.last_checkin, server.last_checkin);
                    server.last_checkin = if is_news(known, seen, seen) { seen } else { known };
                }
                self.servers.insert(server.id, server);
            }
            Write::ForgetCode(number, _) => {
                self.codes.remove(&number.0);
            }
            Write::ForgetActivation(number, _) => {
                self.activations.remove(&number.0);
            }
            Write::ForgetServer(number, _) => {
                self.servers.retain(|_, server| server.number != number);
            }
            Write::AccessToken(mut token) => {
                if let Some(before) = self.access_tokens.get(&token.number) {
                    token.last_used = before.last_used;
                }
                self.access_tokens.insert(token.number, token);
            }
            Write::TokenUses(uses) => {
                for (token, at) in uses {
                    if let Some(token) = self.access_tokens.get_mut(&token) {
                        token.last_used = token.last_used.max(at);
                    }
                }
            }
            Write::Audit(event) => self.events.push((process, event.as_ref().clone())),
            Write::Setting(Setting { key, value: Some(value) }) => {
                self.settings.insert(key, value);
            }
            Write::Setting(Setting { key, value: None }) => {
                self.settings.remove(&key);
            }
            Write::Charge(limits) => {
                for one in limits {
                    *self.counters.entry((one.key, one.window_end)).or_default() += 1;
                }
            }
            Write::CheckIns(_) | Write::Counters(_) | Write::Attempt(_) => {}
        }
    }

    /// Begins the next epoch and voids every code and activation that could still be used.
    fn void(&mut self, process: u32, why: &str) {
        self.epoch += 1;
        for code in self.codes.values_mut() {
            if code.state == CodeState::Issued && code.expires_at > code.issued_at {
                code.expires_at = code.issued_at;
                code.version += 1;
            }
        }
        for one in self.activations.values_mut() {
            if one.state == ActivationState::Open && one.expires_at > one.opened_at {
                one.expires_at = one.opened_at;
                one.version += 1;
            }
        }
        let event = Event::new(Action::StoreFenced, Actor::Administrator, Timestamp(0), None);
        self.events.push((process, Event { detail: why.to_owned(), ..event }));
    }
}

/// A server's state of its own commits.
struct Own {
    process: u32,
    batch: u64,
    in_doubt: bool,
    epoch: u64,
    /// The timeline of the primary that took the last commit.
    timeline: u32,
    /// The last batches of other processes when the watermark was last written.
    others: BTreeMap<u32, u64>,
}

/// The connection of one process of a server.
pub struct Connection {
    database: Database,
    own: Mutex<Own>,
    /// The number of the process at its start.
    process: u32,
}

impl Connection {
    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, read: impl FnOnce(&Tables) -> T) -> Result<T, ReadError> {
        let cluster = self.database.lock();
        cluster.reach()?;
        Ok(read(&cluster.primary))
    }

    /// Returns the outcome of a batch in doubt, if it can be determined.
    fn settle(cluster: &mut Cluster, own: &mut Own) -> Result<(), CommitError> {
        let refused = |words: &str| CommitError::Refused(words.to_owned());
        if cluster.waiting.iter().any(|waiting| waiting.process == own.process) {
            return Err(refused("the commit in doubt still waits for the standby"));
        }
        // Reading the outcome back also writes, and so also waits for the standby.
        if cluster.standby == Standby::CutOff {
            return Err(refused("nothing is confirmed by the standby"));
        }
        match cluster.primary.batches.get(&own.process) {
            Some(found) if *found == own.batch => cluster.coverage.reach(State::ReadBackWritten),
            Some(found) if found + 1 == own.batch => {
                cluster.coverage.reach(State::ReadBackNever);
                cluster.set_batch(own.process, own.batch);
            }
            _ => return Err(Self::begin_anew(cluster, own)),
        }
        own.in_doubt = false;
        Ok(())
    }

    /// Begins an epoch, because the database lacks acknowledged commits.
    fn begin_anew(cluster: &mut Cluster, own: &mut Own) -> CommitError {
        let epoch = begin(cluster, own.epoch, "the database lacked what had been acknowledged");
        let process = cluster.next_process;
        cluster.next_process += 1;
        cluster.set_batch(process, 0);
        let (timeline, others) = (cluster.timeline, BTreeMap::new());
        *own = Own { process, batch: 0, in_doubt: false, epoch, timeline, others };
        CommitError::Refused("a new epoch has begun".into())
    }
}

impl Cluster {
    fn set_batch(&mut self, process: u32, batch: u64) {
        self.primary.batches.insert(process, batch);
        if self.standby == Standby::Synchronous {
            self.replica.batches.insert(process, batch);
        }
    }
}

/// Begins the epoch after `last`, unless a later one has begun. Returns the current epoch.
fn begin(cluster: &mut Cluster, last: u64, why: &str) -> u64 {
    if cluster.primary.epoch > last {
        cluster.coverage.reach(State::EpochFoundBegun);
        return cluster.primary.epoch;
    }
    cluster.coverage.reach(State::EpochBegan);
    cluster.trace.push(format!("epoch {} begins: {why}", last + 1));
    cluster.primary.epoch = last;
    let process = cluster.next_process;
    cluster.next_process += 1;
    cluster.primary.void(process, why);
    // The answer waits until the standby has it.
    if cluster.standby == Standby::Synchronous {
        cluster.replica = cluster.primary.clone();
    }
    cluster.primary.epoch
}

impl Store for Connection {
    fn commit(&self, changes: &[Change]) -> Result<Vec<Verdict>, CommitError> {
        let (cluster, own) = (&mut *self.database.lock(), &mut *self.own());
        let unreachable = |error: ReadError| CommitError::Refused(error.0);
        cluster.reach().map_err(unreachable)?;
        if own.timeline != cluster.timeline {
            own.timeline = cluster.timeline;
            // The known commits of others must be there before the server decides on this content.
            let lacks = |(id, batch): (&u32, &u64)| cluster.primary.batches.get(id) < Some(batch);
            if own.others.iter().any(lacks) {
                return Err(Self::begin_anew(cluster, own));
            }
            if !cluster.planted.has(Fault::SilentFailover) {
                return Err(CommitError::Refused("another primary was promoted".into()));
            }
        }
        if changes.is_empty() && cluster.planted.has(Fault::NoBarrier) && !own.in_doubt {
            return Ok(Vec::new());
        }
        if own.in_doubt {
            Self::settle(cluster, own)?;
        }
        if cluster.primary.batches.get(&own.process) != Some(&own.batch) {
            return Err(Self::begin_anew(cluster, own));
        }
        let Judged { verdicts, writes, rows } = cluster.judge(own.process, changes);
        own.batch += 1;
        if cluster.waiting.iter().any(|waiting| !waiting.rows.is_disjoint(&rows)) {
            // It waits for locked rows until the server gives its connection up.
            own.in_doubt = true;
            cluster.coverage.reach(State::Unknown);
            return Err(CommitError::Unknown("its rows are locked".into()));
        }
        let breaks = if cluster.stable { 2 } else { cluster.chance.below(60) };
        if breaks == 0 {
            // The connection broke before the commit, and the outcome could not be read back for long.
            own.in_doubt = true;
            cluster.coverage.reach(State::Unknown);
            return Err(CommitError::Unknown("the connection broke".into()));
        }
        let transaction = Transaction { process: own.process, batch: own.batch, rows, writes };
        cluster.waiting.push(transaction);
        if cluster.standby == Standby::CutOff {
            cluster.coverage.reach(State::WaitedForStandby);
            cluster.coverage.reach(State::Unknown);
            own.in_doubt = true;
            return Err(CommitError::Unknown("no standby confirms".into()));
        }
        cluster.end_waiting();
        if cluster.standby == Standby::Synchronous {
            cluster.replica = cluster.primary.clone();
        }
        if breaks == 1 {
            // The connection broke after the commit.
            own.in_doubt = true;
            if cluster.chance.one_in(2) {
                cluster.coverage.reach(State::Unknown);
                return Err(CommitError::Unknown("the connection broke".into()));
            }
            Self::settle(cluster, own)?;
        }
        if verdicts.contains(&Verdict::Conflict) {
            cluster.coverage.reach(State::Conflict);
        }
        own.epoch = own.epoch.max(cluster.primary.epoch);
        Ok(verdicts)
    }

    fn shared(&self) -> Option<&dyn Shared> {
        Some(self)
    }

    fn close(&self) {}

    fn follow(&self, _: Listener) {}

    fn settings(&self) -> Result<Vec<(String, String)>, ReadError> {
        self.read(|tables| tables.settings.clone().into_iter().collect())
    }

    fn agreed(&self, _: &str) -> Result<Option<KeyedHash>, ReadError> {
        Ok(None)
    }

    fn agree(&self, _: &str, _: KeyedHash) -> Result<bool, ReadError> {
        Ok(true)
    }
}

impl Epochs for Connection {
    fn watermark(&self) -> Option<Watermark> {
        let (cluster, mut own) = (self.database.lock(), self.own());
        let commits = own.batch.saturating_sub(u64::from(own.in_doubt));
        // Visible changes may be missing on the standby.
        let unconfirmed = cluster.unconfirmed || cluster.standby == Standby::CutOff;
        let moved = own.timeline != cluster.timeline;
        if !unconfirmed && !moved && !cluster.planted.has(Fault::OwnMark) {
            own.others = cluster.primary.batches.clone();
        }
        let process = own.process;
        own.others.remove(&process);
        let others = own.others.iter().map(|(id, batch)| (id.to_string(), *batch)).collect();
        let process = process.to_string();
        Some(Watermark { epoch: own.epoch, process, commits, timeline: own.timeline, others })
    }

    fn contains(&self, mark: &Watermark) -> Result<bool, ReadError> {
        self.read(|tables| {
            let own = [(mark.process.clone(), mark.commits)];
            let mut all = own.iter().chain(&mark.others);
            all.all(|(process, commits)| {
                let found = process.parse().ok().and_then(|id: u32| tables.batches.get(&id));
                found.is_some_and(|found| found >= commits)
            }) && tables.epoch >= mark.epoch
        })
    }

    fn begin_epoch(&self, last: &Watermark, why: &str, _: Timestamp) -> Result<u64, CommitError> {
        let (cluster, own) = (&mut *self.database.lock(), &mut *self.own());
        cluster.reach().map_err(|error| CommitError::Refused(error.0))?;
        if cluster.standby == Standby::CutOff {
            return Err(CommitError::Refused("no standby confirms".into()));
        }
        let epoch = begin(cluster, last.epoch, why);
        own.epoch = own.epoch.max(epoch);
        Ok(epoch)
    }
}

impl Records for Connection {
    fn frontier(&self) -> Result<LastNumbers, ReadError> {
        Ok(LastNumbers::default())
    }

    fn code(&self, hash: CodeHash) -> Result<Option<Code>, ReadError> {
        self.read(|tables| tables.codes.values().find(|code| code.hash == hash).cloned())
    }

    fn activation(&self, id: ActivationId) -> Result<Option<Activation>, ReadError> {
        self.read(|tables| tables.activations.values().find(|one| one.at.id == id).cloned())
    }

    fn server(&self, number: ServerNumber) -> Result<Option<Server>, ReadError> {
        self.read(|tables| tables.servers.values().find(|one| one.number == number).cloned())
    }

    fn servers_before(
        &self,
        before: Option<ServerNumber>,
        limit: usize,
    ) -> Result<Vec<Server>, ReadError> {
        self.read(|tables| {
            let mut servers: Vec<Server> = tables.servers.values().cloned().collect();
            servers.retain(|server| before.is_none_or(|before| server.number < before));
            servers.sort_by_key(|server| std::cmp::Reverse(server.number));
            servers.truncate(limit);
            servers
        })
    }

    fn each_server(&self, each: &mut dyn FnMut(Server)) -> Result<(), ReadError> {
        self.read(|tables| tables.servers.values().cloned().for_each(each))
    }

    fn access_tokens(&self) -> Result<Vec<AccessToken>, ReadError> {
        self.read(|tables| tables.access_tokens.values().cloned().collect())
    }

    fn each_counter(&self, _: &mut dyn FnMut(u32, Counter)) -> Result<(), ReadError> {
        Ok(())
    }

    fn newest_codes(&self, _: usize) -> Result<Vec<Code>, ReadError> {
        Ok(Vec::new())
    }

    fn newest_activations(&self, _: usize) -> Result<Vec<Activation>, ReadError> {
        Ok(Vec::new())
    }

    fn oldest_codes(
        &self,
        after: Option<CodeNumber>,
        limit: usize,
    ) -> Result<Vec<Code>, ReadError> {
        let first = after.map_or(0, |number| number.0 + 1);
        self.read(|tables| {
            tables.codes.range(first..).take(limit).map(|(_, code)| code.clone()).collect()
        })
    }

    fn oldest_activations(
        &self,
        after: Option<ActivationNumber>,
        limit: usize,
    ) -> Result<Vec<Activation>, ReadError> {
        let first = after.map_or(0, |number| number.0 + 1);
        self.read(|tables| {
            tables.activations.range(first..).take(limit).map(|(_, one)| one.clone()).collect()
        })
    }
}

impl AuditLog for Connection {
    fn audit_head(&self) -> Result<Head, ReadError> {
        Ok(Head::default())
    }

    fn audit_from(&self, _: u64, _: &mut dyn FnMut(Entry) -> bool) -> Result<(), ReadError> {
        Ok(())
    }

    fn audit_before(&self, _: u64, _: &mut dyn FnMut(Entry) -> bool) -> Result<(), ReadError> {
        Ok(())
    }

    fn audit_number_at(&self, _: Timestamp) -> Result<u64, ReadError> {
        Ok(1)
    }

    fn attempts(&self, _: CodeHash) -> Result<Attempts, ReadError> {
        Ok(Attempts::default())
    }
}

impl Shared for Connection {
    fn process(&self) -> u32 {
        self.process
    }

    fn servers_of(&self, ids: &[ServerId]) -> Result<Vec<Option<Server>>, ReadError> {
        self.read(|tables| ids.iter().map(|id| tables.servers.get(id).cloned()).collect())
    }

    fn servers_at(&self, addresses: &[ServerId]) -> Result<Vec<Option<Server>>, ReadError> {
        self.read(|tables| {
            let at = |id: &ServerId| {
                tables.servers.values().find(|server| server.address_id == *id).cloned()
            };
            addresses.iter().map(at).collect()
        })
    }

    fn enrolled(&self, by: TokenNumber) -> Result<u64, ReadError> {
        let counts = |server: &&Server| {
            server.enrolled_by == EnrolledBy::Token(by) && !server.revoked && !server.deleted
        };
        self.read(|tables| tables.servers.values().filter(counts).count() as u64)
    }

    fn check_in(&self, seen: Vec<CheckInOf>) -> Result<Vec<CheckInOf>, ReadError> {
        let cluster = &mut *self.database.lock();
        cluster.reach()?;
        let latest = seen.iter().map(|one| one.seen.at).max().unwrap_or_default();
        for CheckInOf { seen, id } in seen {
            if let Some(server) = cluster.primary.servers.get_mut(&id)
                && is_news(server.last_checkin, seen.at, latest)
            {
                server.last_checkin = seen.at;
            }
        }
        Ok(Vec::new())
    }

    fn seen_elsewhere(&self) -> Result<Vec<(ServerId, Timestamp)>, ReadError> {
        Ok(Vec::new())
    }

    fn publish(&self, _: &str, _: KeyedHash) -> Result<u64, ReadError> {
        Ok(0)
    }

    fn charge(&self, requests: Vec<Vec<Counted>>) -> Result<Vec<Charged>, ReadError> {
        let cluster = &mut *self.database.lock();
        cluster.reach()?;
        let counters = &mut cluster.primary.counters;
        let mut charged = Vec::with_capacity(requests.len());
        for request in &requests {
            let place = |one: &Counted| (one.key, one.window_end);
            let granted = request
                .iter()
                .all(|one| counters.get(&place(one)).copied().unwrap_or(0) < one.allowed);
            let mut used = Vec::with_capacity(request.len());
            for one in request {
                let count = counters.entry(place(one)).or_default();
                *count += u32::from(granted);
                // If the limit was lowered below the count, the answer shows only that it is reached.
                used.push((*count).min(one.allowed));
            }
            charged.push(Charged { granted, used });
        }
        Ok(charged)
    }

    fn give_back(&self, counters: Vec<(u64, Timestamp)>) -> Result<(), ReadError> {
        // If the real database is unreachable, the store gives the charges back later.
        let cluster = &mut *self.database.lock();
        if cluster.planted.has(Fault::KeepCharges) {
            return Ok(());
        }
        for place in counters {
            if let Some(count) = cluster.primary.counters.get_mut(&place) {
                *count = count.saturating_sub(1);
            }
        }
        Ok(())
    }

    fn examine(&self) -> Result<Vec<Finding>, ReadError> {
        Ok(Vec::new())
    }

    fn forget_counters(&self, now: Timestamp, _: u32) -> Result<(), ReadError> {
        let cluster = &mut *self.database.lock();
        cluster.reach()?;
        let last = now.plus(25 * 3600);
        cluster.primary.counters.retain(|(_, end), _| *end > now && *end <= last);
        Ok(())
    }

    fn clock(&self) -> Result<u64, ReadError> {
        Ok(0)
    }
}
