//! The embedded engine: one redb file.
//!
//! Rows are stored under **rising numbers**, so rows written together lie together. A row stored
//! under a hash would touch a page of its own and cost ten times as much. An [`index`] finds rows
//! by hash or id. Check-ins and counters are stored many to a value ([`pages`]).

mod agreed;
mod audit;
mod commit;
mod copy;
mod index;
mod pages;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
mod webhooks;

use crate::embedded::disk::Watched;
use crate::feed::{Feed, Listener};
use crate::{
    Attempts, AuditLog, BackupError, Change, CommitError, Contents, Counter, Disk, Entry, Epochs,
    LastNumbers, OpenError, Pace, ReadError, Records, Store, Verdict, Watermark, WebhookStates,
    record,
};
use iptunnel_domain::Timestamp;
use iptunnel_domain::access::AccessToken;
use iptunnel_domain::activation::{Activation, ActivationId, ActivationNumber};
use iptunnel_domain::audit::Head;
use iptunnel_domain::code::{Code, CodeHash, CodeNumber};
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::server::{Server, ServerNumber};
use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition,
    TableError, TableHandle, TransactionError, WriteTransaction,
};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The data format this program writes, and the newest it reads. 2: there may be a journal beside
/// the file; otherwise as 1. 3: an audit log, attempts and settings. 4: the indexes cover all rows.
/// 5: access tokens, names in events, and servers that say who enrolled them.
pub const FORMAT_VERSION: u32 = 5;

/// Opens the disk. Called again after a failure, when the disk opened before has been dropped.
pub type OpenDisk = Box<dyn Fn() -> io::Result<Box<dyn Disk>> + Send + Sync>;

/// The cache size: enough for the branches of every tree beside a million installs, for those of
/// both indexes beside ten million, and for the leaves in use. Other pages are most likely in the
/// kernel's cache. A page of 4 KiB takes 5 KiB of memory, because the two counters before it do not
/// fit into the allocator's size of 4 KiB. redb's own default of 1 GiB would let memory grow
/// without need. `docs/performance.md` has the sizes that were measured.
const CACHE_BYTES: usize = 16 << 20;

const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
const CODES: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("codes");
const ACTIVATIONS: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("activations");
const SERVERS: TableDefinition<'static, u32, &[u8]> = TableDefinition::new("servers");
const CHECK_INS: TableDefinition<'static, u32, &[u8]> = TableDefinition::new("check_ins");
const COUNTERS: TableDefinition<'static, u32, &[u8]> = TableDefinition::new("counters");
const ACCESS_TOKENS: TableDefinition<'static, u32, &[u8]> = TableDefinition::new("access_tokens");
/// When access tokens were last used.
const TOKEN_USES: TableDefinition<'static, u32, u64> = TableDefinition::new("token_uses");
/// Settings that operators have changed, by key.
const SETTINGS: TableDefinition<'static, &str, &str> = TableDefinition::new("settings");
/// The data format of the whole file.
const FORMAT_KEY: &str = "format";
/// The number of commits. After a failure it tells whether the last one is on disk.
const COMMITS_KEY: &str = "commits";
/// The last journal record whose changes are in the tables.
const TAKEN_OVER_KEY: &str = "checkpointed";

/// Present while attempts from before data format 4 may exist on codes that do not exist: how far
/// commits have searched for them.
const OLD_ATTEMPTS_KEY: &str = "old_attempts";

/// The process name in the watermark of a store with one server.
pub(crate) const ALONE: &str = Watermark::ALONE;

/// A [`Store`] in one file.
pub struct RedbStore {
    open_disk: OpenDisk,
    sync_failed: Arc<AtomicBool>,
    /// `None` between a failure and the moment the file could be opened again.
    database: RwLock<Option<Database>>,
    feed: Feed,
    copies: copy::Copies,
}

/// Converts any error of redb into the error of a read.
fn unreadable(error: impl Into<redb::Error>) -> ReadError {
    ReadError(error.into().to_string())
}

impl RedbStore {
    /// Opens the store, or creates one if the disk is empty.
    ///
    /// # Errors
    /// [`OpenError::NewerFormat`] if a newer program wrote it, [`OpenError::Engine`] if it cannot
    /// be opened or is not such a store.
    pub fn open(open_disk: OpenDisk) -> Result<Self, OpenError> {
        let store = Self {
            open_disk,
            sync_failed: Arc::new(AtomicBool::new(false)),
            database: RwLock::new(None),
            feed: Feed::default(),
            copies: copy::Copies::default(),
        };
        let database = store.open_database().map_err(OpenError::Engine)?;
        prepare(&database)?;
        *store.write_lock() = Some(database);
        Ok(store)
    }

    fn open_database(&self) -> Result<Database, String> {
        let disk = (self.open_disk)().map_err(|e| e.to_string())?;
        discard_unfinished(disk.as_ref()).map_err(|e| e.to_string())?;
        Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(Watched::new(disk, Arc::clone(&self.sync_failed)))
            .map_err(|e| e.to_string())
    }

    fn read_lock(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lock(&self) -> RwLockWriteGuard<'_, Option<Database>> {
        self.database.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin_read(&self) -> Result<ReadTransaction, ReadError> {
        let guard = self.read_lock();
        let database = guard.as_ref().ok_or_else(|| ReadError("it is closed".into()))?;
        database.begin_read().map_err(unreadable)
    }

    /// Returns what is certain after a failed commit that would have been number `attempted`.
    ///
    /// redb refuses every write after an I/O error until the file is opened again. The file then
    /// holds the truth, unless a *sync* failed: then the page cache may show data that the disk
    /// does not have.
    fn judge(&self, attempted: u64, reason: String) -> CommitOutcome {
        let _none = self.copies.end();
        let mut guard = self.write_lock();
        // Closed before it is opened again: the disk has one holder at a time.
        *guard = None;
        if self.sync_failed.load(Ordering::SeqCst) {
            return CommitOutcome::Failed(CommitError::Unknown(reason));
        }
        let reopened = self.open_database().and_then(|database| {
            let commits = commit_count(&database).map_err(|e| e.to_string())?;
            Ok((database, commits))
        });
        match reopened {
            Ok((database, commits)) => {
                *guard = Some(database);
                if commits == attempted {
                    CommitOutcome::Committed
                } else {
                    CommitOutcome::Failed(CommitError::Refused(reason))
                }
            }
            Err(error) => CommitOutcome::Failed(CommitError::Unknown(format!(
                "{reason}; and the store cannot be opened again: {error}"
            ))),
        }
    }
}

/// Length of the magic number at the start of every complete redb file.
const MAGIC: usize = 9;
/// Length of the header that contains it.
const HEAD: usize = 4096;
/// A file whose creation was cut short is no larger than a fresh one, of 72 KiB.
const UNFINISHED_AT_MOST: u64 = 128 * 1024;

/// Empties a disk on which the creation of a store was cut short.
///
/// redb writes its magic number last. If it is missing from a header that is otherwise present, or
/// if nothing was written at all, nothing was ever committed. A store that lost its header looks
/// different and is left alone, like any other content.
fn discard_unfinished(disk: &dyn Disk) -> io::Result<()> {
    let len = disk.len()?;
    if len == 0 || len > UNFINISHED_AT_MOST {
        return Ok(());
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    disk.read(0, &mut bytes)?;
    let is_blank = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    let (magic, _) = bytes.split_at(MAGIC.min(bytes.len()));
    let (head, body) = bytes.split_at(HEAD.min(bytes.len()));
    if is_blank(magic) && (is_blank(body) || !is_blank(head)) {
        tracing::warn!("the store's file was never finished; it is made anew");
        disk.set_len(0)?;
    }
    Ok(())
}

enum CommitOutcome {
    Committed,
    Failed(CommitError),
}

/// Creates the tables of a new file and checks the format of an old one.
fn prepare(database: &Database) -> Result<(), OpenError> {
    let engine = |e: ReadError| OpenError::Engine(e.to_string());
    let found = format_of(database).map_err(engine)?;
    match found {
        Some(found) if found > u64::from(FORMAT_VERSION) => Err(OpenError::NewerFormat {
            found: u32::try_from(found).unwrap_or(u32::MAX),
            known: FORMAT_VERSION,
        }),
        Some(found) if found < u64::from(FORMAT_VERSION) => {
            upgrade(database, found).map_err(engine)
        }
        Some(_) => Ok(()),
        None => create(database).map_err(|e| OpenError::Engine(e.to_string())),
    }
}

/// Creates what an older file lacks, and marks the file so that no older program opens it. An older
/// program would miss the journal, the log or rows that only an index has.
fn upgrade(database: &Database, found: u64) -> Result<(), ReadError> {
    let write = begin_write(database).map_err(unreadable)?;
    if found < 4 {
        upgrade_to_format_4(&write)?;
    }
    write.open_table(ACCESS_TOKENS).map_err(unreadable)?;
    write.open_table(TOKEN_USES).map_err(unreadable)?;
    let mut meta = write.open_table(META).map_err(unreadable)?;
    meta.insert(FORMAT_KEY, u64::from(FORMAT_VERSION)).map_err(unreadable)?;
    drop(meta);
    write.commit().map_err(unreadable)
}

fn upgrade_to_format_4(write: &WriteTransaction) -> Result<(), ReadError> {
    audit::create(write).map_err(unreadable)?;
    write.open_table(SETTINGS).map_err(unreadable)?;
    index::upgrade(&index::CODES, write, CODES, |number, row| {
        Ok(record::decode_code(number, row)?.hash.0.as_u128())
    })?;
    index::upgrade(&index::ACTIVATIONS, write, ACTIVATIONS, |number, row| {
        Ok(u128::from(record::decode_activation(number, row)?.at.id.0))
    })?;
    index::end_upgrade(write)?;
    let mut meta = write.open_table(META).map_err(unreadable)?;
    meta.insert(OLD_ATTEMPTS_KEY, 0).map_err(unreadable)?;
    Ok(())
}

fn format_of(database: &Database) -> Result<Option<u64>, ReadError> {
    format_in(&database.begin_read().map_err(unreadable)?)
}

fn format_in(read: &ReadTransaction) -> Result<Option<u64>, ReadError> {
    match read.open_table(META) {
        Ok(meta) => Ok(meta.get(FORMAT_KEY).map_err(unreadable)?.map(|format| format.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(unreadable(error)),
    }
}

/// Begins a write. A start after a crash need not read every page of the file, if the last write began here.
fn begin_write(database: &Database) -> Result<WriteTransaction, TransactionError> {
    let mut write = database.begin_write()?;
    write.set_quick_repair(true);
    Ok(write)
}

fn create(database: &Database) -> Result<(), redb::Error> {
    let write = begin_write(database)?;
    write.open_table(META)?.insert(FORMAT_KEY, u64::from(FORMAT_VERSION))?;
    write.open_table(META)?.insert(COMMITS_KEY, 0)?;
    for table in [CODES, ACTIVATIONS] {
        write.open_table(table)?;
    }
    for table in [SERVERS, CHECK_INS, COUNTERS, ACCESS_TOKENS] {
        write.open_table(table)?;
    }
    write.open_table(TOKEN_USES)?;
    for index in [index::CODES, index::ACTIVATIONS] {
        index.create(&write)?;
    }
    audit::create(&write)?;
    write.open_table(SETTINGS)?;
    write.commit()?;
    Ok(())
}

fn commit_count(database: &Database) -> Result<u64, ReadError> {
    let read = database.begin_read().map_err(unreadable)?;
    let meta = read.open_table(META).map_err(unreadable)?;
    let commits = meta.get(COMMITS_KEY).map_err(unreadable)?;
    Ok(commits.map_or(0, |commits| commits.value()))
}

/// The last journal record whose changes are in the tables.
fn checkpointed(read: &ReadTransaction) -> Result<u64, ReadError> {
    let meta = read.open_table(META).map_err(unreadable)?;
    let record = meta.get(TAKEN_OVER_KEY).map_err(unreadable)?;
    Ok(record.map_or(0, |record| record.value()))
}

/// A row of any kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Row {
    Code(u64),
    Activation(u64),
    Server(u32),
    AccessToken(u32),
}

/// The versions of all rows at one moment.
pub(crate) struct Versions {
    codes: ReadOnlyTable<u64, &'static [u8]>,
    activations: ReadOnlyTable<u64, &'static [u8]>,
    servers: ReadOnlyTable<u32, &'static [u8]>,
    access_tokens: ReadOnlyTable<u32, &'static [u8]>,
}

impl Versions {
    pub(crate) fn of(&self, row: Row) -> Result<Option<u32>, ReadError> {
        let found = match row {
            Row::Code(number) => self.codes.get(number),
            Row::Activation(number) => self.activations.get(number),
            Row::Server(number) => self.servers.get(number),
            Row::AccessToken(number) => self.access_tokens.get(number),
        };
        found.map_err(unreadable)?.map(|row| record::version(row.value())).transpose()
    }
}

impl Store for RedbStore {
    fn commit(&self, changes: &[Change]) -> Result<Vec<Verdict>, CommitError> {
        let verdicts = self.write_all(changes, None)?;
        self.feed.publish(changes, &verdicts);
        Ok(verdicts)
    }

    fn close(&self) {
        let _none = self.copies.end();
        *self.write_lock() = None;
    }

    fn follow(&self, listener: Listener) {
        self.feed.follow(listener);
    }

    fn settings(&self) -> Result<Vec<(String, String)>, ReadError> {
        let read = self.begin_read()?;
        let table = read.open_table(SETTINGS).map_err(unreadable)?;
        let rows = table.iter().map_err(unreadable)?;
        rows.map(|row| {
            let (key, value) = row.map_err(unreadable)?;
            Ok((key.value().to_owned(), value.value().to_owned()))
        })
        .collect()
    }

    fn webhooks(&self) -> Option<&dyn WebhookStates> {
        Some(self)
    }

    fn agreed(&self, what: &str) -> Result<Option<KeyedHash>, ReadError> {
        agreed::find(&self.begin_read()?, what)
    }

    fn agree(&self, what: &str, hash: KeyedHash) -> Result<bool, ReadError> {
        if let Some(agreed) = self.agreed(what)? {
            return Ok(agreed.ct_eq(&hash));
        }
        let guard = self.read_lock();
        let database = guard.as_ref().ok_or_else(|| ReadError("it is closed".into()))?;
        agreed::set(database, what, hash)?;
        Ok(true)
    }
}

impl WebhookStates for RedbStore {
    fn hold(&self, _: u32) -> Result<bool, ReadError> {
        Ok(true)
    }

    fn release(&self) -> Result<(), ReadError> {
        Ok(())
    }

    fn states(&self) -> Result<Vec<(String, Vec<u8>)>, ReadError> {
        webhooks::all(&self.begin_read()?)
    }

    fn keep(&self, states: &[(String, Vec<u8>)]) -> Result<bool, ReadError> {
        let guard = self.read_lock();
        let database = guard.as_ref().ok_or_else(|| ReadError("it is closed".into()))?;
        webhooks::keep(database, states).map(|()| true)
    }
}

impl Epochs for RedbStore {
    /// With a journal, it holds what was checkpointed.
    fn watermark(&self) -> Option<Watermark> {
        let commits = self.checkpointed().ok()?;
        Some(Watermark { epoch: 1, process: ALONE.into(), commits, ..Watermark::default() })
    }

    fn contains(&self, mark: &Watermark) -> Result<bool, ReadError> {
        Ok(mark.process != ALONE || mark.commits <= self.checkpointed()?)
    }

    fn begin_epoch(&self, last: &Watermark, why: &str, now: Timestamp) -> Result<u64, CommitError> {
        crate::epoch::void(self, why, now)?;
        Ok(last.epoch.saturating_add(1))
    }
}

impl Records for RedbStore {
    fn frontier(&self) -> Result<LastNumbers, ReadError> {
        let read = self.begin_read()?;
        let meta = read.open_table(META).map_err(unreadable)?;
        let last = |rows: TableDefinition<'static, u64, &[u8]>| -> Result<u64, ReadError> {
            let forgotten = meta.get(rows.name()).map_err(unreadable)?.map_or(0, |n| n.value());
            let rows = read.open_table(rows).map_err(unreadable)?;
            Ok(rows
                .last()
                .map_err(unreadable)?
                .map_or(forgotten, |(n, _)| forgotten.max(n.value())))
        };
        let servers = read.open_table(SERVERS).map_err(unreadable)?;
        let server = servers.last().map_err(unreadable)?.map(|(number, _)| number.value());
        let forgotten = meta.get(SERVERS.name()).map_err(unreadable)?;
        // Their numbers begin with 0.
        let forgotten = forgotten.and_then(|number| u32::try_from(number.value()).ok());
        Ok(LastNumbers {
            code: CodeNumber(last(CODES)?),
            activation: ActivationNumber(last(ACTIVATIONS)?),
            server: server.max(forgotten).map(ServerNumber),
        })
    }

    fn code(&self, hash: CodeHash) -> Result<Option<Code>, ReadError> {
        let read = self.begin_read()?;
        let Some(number) = index::CODES.find(&read, hash.0.as_u128())? else { return Ok(None) };
        let table = read.open_table(CODES).map_err(unreadable)?;
        let Some(row) = table.get(number).map_err(unreadable)? else { return Ok(None) };
        let code = record::decode_code(number, row.value())?;
        Ok((code.hash == hash).then_some(code))
    }

    fn activation(&self, id: ActivationId) -> Result<Option<Activation>, ReadError> {
        let read = self.begin_read()?;
        let Some(number) = index::ACTIVATIONS.find(&read, u128::from(id.0))? else {
            return Ok(None);
        };
        let table = read.open_table(ACTIVATIONS).map_err(unreadable)?;
        let Some(row) = table.get(number).map_err(unreadable)? else { return Ok(None) };
        let activation = record::decode_activation(number, row.value())?;
        Ok((activation.at.id == id).then_some(activation))
    }

    fn server(&self, number: ServerNumber) -> Result<Option<Server>, ReadError> {
        Ok(self.servers_numbered(&[number])?.pop().flatten())
    }

    fn servers_numbered(&self, numbers: &[ServerNumber]) -> Result<Vec<Option<Server>>, ReadError> {
        let read = self.begin_read()?;
        let table = read.open_table(SERVERS).map_err(unreadable)?;
        let check_ins = read.open_table(CHECK_INS).map_err(unreadable)?;
        let mut page = pages::CheckInReader::new(&check_ins);
        let find = |number: &ServerNumber| {
            let Some(row) = table.get(number.0).map_err(unreadable)? else { return Ok(None) };
            let mut server = record::decode_server(number.0, row.value())?;
            server.last_checkin = server.last_checkin.max(page.at(server.number)?);
            Ok(Some(server))
        };
        numbers.iter().map(find).collect()
    }

    fn servers_before(
        &self,
        before: Option<ServerNumber>,
        limit: usize,
    ) -> Result<Vec<Server>, ReadError> {
        let read = self.begin_read()?;
        let table = read.open_table(SERVERS).map_err(unreadable)?;
        let check_ins = read.open_table(CHECK_INS).map_err(unreadable)?;
        let end = before.map_or(u32::MAX, |before| before.0);
        let mut page = pages::CheckInReader::new(&check_ins);
        let mut servers = Vec::with_capacity(limit.min(1024));
        for row in table.range(..end).map_err(unreadable)?.rev().take(limit) {
            let (number, row) = row.map_err(unreadable)?;
            let mut server = record::decode_server(number.value(), row.value())?;
            server.last_checkin = server.last_checkin.max(page.at(server.number)?);
            servers.push(server);
        }
        Ok(servers)
    }

    fn each_server(&self, each: &mut dyn FnMut(Server)) -> Result<(), ReadError> {
        let read = self.begin_read()?;
        let table = read.open_table(SERVERS).map_err(unreadable)?;
        let check_ins = read.open_table(CHECK_INS).map_err(unreadable)?;
        let mut page = pages::CheckInReader::new(&check_ins);
        for row in table.iter().map_err(unreadable)? {
            let (number, row) = row.map_err(unreadable)?;
            let mut server = record::decode_server(number.value(), row.value())?;
            server.last_checkin = server.last_checkin.max(page.at(server.number)?);
            each(server);
        }
        Ok(())
    }

    fn access_tokens(&self) -> Result<Vec<AccessToken>, ReadError> {
        let read = self.begin_read()?;
        let tokens = read.open_table(ACCESS_TOKENS).map_err(unreadable)?;
        let uses = read.open_table(TOKEN_USES).map_err(unreadable)?;
        let mut all = Vec::new();
        for row in tokens.iter().map_err(unreadable)? {
            let (number, row) = row.map_err(unreadable)?;
            let used = uses.get(number.value()).map_err(unreadable)?;
            let used = Timestamp(used.map_or(0, |at| at.value()));
            all.push(record::decode_access_token(number.value(), row.value(), used)?);
        }
        Ok(all)
    }

    fn each_counter(&self, each: &mut dyn FnMut(u32, Counter)) -> Result<(), ReadError> {
        let read = self.begin_read()?;
        let table = read.open_table(COUNTERS).map_err(unreadable)?;
        for row in table.iter().map_err(unreadable)? {
            let (page, row) = row.map_err(unreadable)?;
            pages::each_counter(page.value(), row.value(), each)?;
        }
        Ok(())
    }

    fn newest_codes(&self, limit: usize) -> Result<Vec<Code>, ReadError> {
        self.rows(CODES, None, true, limit, record::decode_code)
    }

    fn newest_activations(&self, limit: usize) -> Result<Vec<Activation>, ReadError> {
        self.rows(ACTIVATIONS, None, true, limit, record::decode_activation)
    }

    fn oldest_codes(
        &self,
        after: Option<CodeNumber>,
        limit: usize,
    ) -> Result<Vec<Code>, ReadError> {
        self.rows(CODES, after.map(|number| number.0), false, limit, record::decode_code)
    }

    fn oldest_activations(
        &self,
        after: Option<ActivationNumber>,
        limit: usize,
    ) -> Result<Vec<Activation>, ReadError> {
        self.rows(
            ACTIVATIONS,
            after.map(|number| number.0),
            false,
            limit,
            record::decode_activation,
        )
    }
}

impl AuditLog for RedbStore {
    fn audit_head(&self) -> Result<Head, ReadError> {
        audit::head(&self.begin_read()?.open_table(audit::AUDIT).map_err(unreadable)?)
    }

    fn audit_from(&self, first: u64, each: &mut dyn FnMut(Entry) -> bool) -> Result<(), ReadError> {
        audit::from(&self.begin_read()?, first, each)
    }

    fn audit_before(
        &self,
        before: u64,
        each: &mut dyn FnMut(Entry) -> bool,
    ) -> Result<(), ReadError> {
        audit::before(&self.begin_read()?, before, each)
    }

    fn audit_number_at(&self, at: Timestamp) -> Result<u64, ReadError> {
        audit::number_at(&self.begin_read()?, at)
    }

    fn attempts(&self, code: CodeHash) -> Result<Attempts, ReadError> {
        audit::attempts(&self.begin_read()?, code)
    }
}

impl RedbStore {
    /// Commits, and records in the same commit that the journal is checkpointed up to
    /// `checkpointed`.
    fn write_all(
        &self,
        changes: &[Change],
        checkpointed: Option<u64>,
    ) -> Result<Vec<Verdict>, CommitError> {
        let (attempted, outcome) = {
            let guard = self.read_lock();
            let Some(database) = guard.as_ref() else {
                drop(guard);
                return self.reopen_then_refuse();
            };
            commit::commit(database, changes, checkpointed)
        };
        match outcome {
            Ok(verdicts) => Ok(verdicts),
            Err((reason, verdicts)) => match (self.judge(attempted, reason), verdicts) {
                (CommitOutcome::Committed, Some(verdicts)) => Ok(verdicts),
                (CommitOutcome::Committed, None) => {
                    Err(CommitError::Unknown("a commit came true that was not asked for".into()))
                }
                (CommitOutcome::Failed(error), _) => Err(error),
            },
        }
    }

    /// Commits changes that the journal holds up to record `last`: all of them, or none if one
    /// conflicts.
    pub(crate) fn checkpoint(
        &self,
        changes: &[Change],
        last: u64,
    ) -> Result<Vec<Verdict>, CommitError> {
        self.write_all(changes, Some(last))
    }

    /// Copies the store at this moment to an empty disk.
    pub(crate) fn back_up(&self, to: Box<dyn Disk>, pace: &Pace) -> Result<Contents, BackupError> {
        let copying = self.copies.begin(pace);
        let read = self.begin_read()?;
        let contents = copy::contents(&read)?;
        copy::copy(read, to, copying)?;
        Ok(contents)
    }

    /// Returns what the store holds.
    pub(crate) fn contents(&self) -> Result<Contents, ReadError> {
        copy::contents(&self.begin_read()?)
    }

    /// Compares every page with its checksum.
    ///
    /// # Errors
    /// A page is damaged.
    pub(crate) fn check_integrity(&self) -> Result<(), String> {
        let mut guard = self.write_lock();
        let database = guard.as_mut().ok_or("it is closed")?;
        match database.check_integrity() {
            Ok(true) => Ok(()),
            Ok(false) => Err("its pages were damaged".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Returns whether a sync has failed. Then the content of the file is unknown.
    pub(crate) fn has_failed_a_sync(&self) -> bool {
        self.sync_failed.load(Ordering::SeqCst)
    }

    /// The last journal record whose changes are in the tables.
    pub(crate) fn checkpointed(&self) -> Result<u64, ReadError> {
        checkpointed(&self.begin_read()?)
    }

    /// Returns the present versions of rows.
    pub(crate) fn versions(&self) -> Result<Versions, ReadError> {
        let read = self.begin_read()?;
        Ok(Versions {
            codes: read.open_table(CODES).map_err(unreadable)?,
            activations: read.open_table(ACTIVATIONS).map_err(unreadable)?,
            servers: read.open_table(SERVERS).map_err(unreadable)?,
            access_tokens: read.open_table(ACCESS_TOKENS).map_err(unreadable)?,
        })
    }

    /// Returns the first rows of a table after a number, or the last ones, the last first.
    fn rows<T>(
        &self,
        table: TableDefinition<'static, u64, &[u8]>,
        after: Option<u64>,
        newest_first: bool,
        limit: usize,
        decode: fn(u64, &[u8]) -> Result<T, ReadError>,
    ) -> Result<Vec<T>, ReadError> {
        let read = self.begin_read()?;
        let table = read.open_table(table).map_err(unreadable)?;
        let first = after.map_or(0, |after| after.saturating_add(1));
        let mut rows = table.range(first..).map_err(unreadable)?;
        let next = || if newest_first { rows.next_back() } else { rows.next() };
        std::iter::from_fn(next)
            .take(limit)
            .map(|row| {
                let (number, row) = row.map_err(unreadable)?;
                decode(number.value(), row.value())
            })
            .collect()
    }

    /// A commit on a closed store opens it again but always fails itself, because decisions made on
    /// records in memory must be checked first.
    fn reopen_then_refuse<T>(&self) -> Result<T, CommitError> {
        if self.has_failed_a_sync() {
            // What can be read then may differ from what the disk has.
            return Err(CommitError::Unknown("a sync has failed".into()));
        }
        let _none = self.copies.end();
        let mut guard = self.write_lock();
        match self.open_database() {
            Ok(database) => {
                *guard = Some(database);
                Err(CommitError::Refused("the store was closed after a failure".into()))
            }
            Err(reason) => Err(CommitError::Refused(reason)),
        }
    }
}
