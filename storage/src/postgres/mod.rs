//! The PostgreSQL store, which several servers share.
//!
//! Guards are conditional writes. If another server has changed a record since it was read, nothing
//! is written, and the caller reads and decides again. The only lock that a request waits for is
//! the database's own, on the row that it writes.
//!
//! Each start of a server is a *process* with a number of its own. Its commits follow one another,
//! so its events have an order without gaps. The order of the events of all processes in the audit
//! log is settled a little later (`log`), by the first server that finds them.

mod agreed;
mod batch;
mod charge;
mod commit;
mod connect;
mod counting;
mod epoch;
mod examine;
mod inspect;
mod log;
mod migrate;
mod peer_check_ins;
mod peer_marks;
mod quick;
mod rows;
mod shared;
mod statement;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
mod tests;
mod tls;
mod trial;
mod watched;
mod webhooks;

pub use agreed::Others;
pub use inspect::Inspection;

use crate::embedded::engine::ALONE;
use crate::feed::{Feed, Listener};
use crate::{
    Attempts, AuditLog, Change, CommitError, Counter, Ended, Entry, Epochs, LastNumbers, OpenError,
    ReadError, Records, Shared, Store, Verdict, Watermark, WebhookStates,
};
use commit::Writer;
use connect::{Connector, Use};
use counting::Counting;
use deadpool_postgres::{Client, Pool, PoolError, TimeoutType};
use iptunnel_domain::Timestamp;
use iptunnel_domain::access::AccessToken;
use iptunnel_domain::activation::{Activation, ActivationId, ActivationNumber};
use iptunnel_domain::audit::Head;
use iptunnel_domain::code::{Code, CodeHash, CodeNumber};
use iptunnel_domain::limit::Policy;
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::server::{Server, ServerNumber};
use peer_check_ins::PeerCheckIns;
use peer_marks::PeerMarks;
use quick::Quick;
use rows::{ACCESS_TOKEN, ACTIVATION, CODE, SERVER, signed};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row};
use trial::Trial;

/// Threads that talk to the database. One thread is enough, because the database does the work, and
/// it delivers answers without waking another thread for each.
const THREADS: usize = 1;
/// Rows per read where many are read.
const PAGE: i64 = 10_000;

/// A store in a PostgreSQL database.
pub struct PostgresStore {
    inner: Arc<Inner>,
    handle: Handle,
    runtime: Mutex<Option<Runtime>>,
}

/// The state that tasks share.
struct Inner {
    way: Arc<Connector>,
    /// The pool for reads.
    pool: Pool,
    /// The connector for work that may take long: the schema, and a new epoch.
    upkeep: Pool,
    trial: tokio::sync::Mutex<Trial>,
    /// The number of this start of this server.
    process: AtomicI32,
    writer: tokio::sync::Mutex<Writer>,
    /// How long the database works on a batch, as a moving average in microseconds.
    pace: AtomicU64,
    /// How long a question and its answer are on their way, in microseconds.
    distance: AtomicU64,
    counting: tokio::sync::Mutex<Counting>,
    flushing: tokio::sync::Mutex<Quick>,
    /// The epoch in which this server started, or which it began. In a later epoch all records in
    /// memory are void.
    epoch: AtomicI64,
    /// The commits of the other servers.
    others: PeerMarks,
    feed: Feed,
    /// How far the feed of events has come.
    told: tokio::sync::Mutex<log::Published>,
    /// How far the check-ins of other servers have been read.
    sightings: tokio::sync::Mutex<PeerCheckIns>,
}

impl Inner {
    fn process(&self) -> i32 {
        self.process.load(Ordering::Relaxed)
    }

    /// Returns what the database must hold from now on, including the commits of other servers.
    fn watermark(&self, writer: &Writer) -> Watermark {
        Watermark { others: self.others.counts(), ..writer.watermark() }
    }

    /// Notes how long the database has worked on a batch, and how long the first answer took if nothing else
    /// was under way.
    fn note_pace(&self, took: Duration, first: Option<Duration>) {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let (took, before) = (micros(took), self.pace.load(Ordering::Relaxed));
        let pace = if before == 0 { took } else { before - before / 8 + took / 8 };
        self.pace.store(pace, Ordering::Relaxed);
        if let Some(first) = first.map(micros) {
            // A busy machine makes an answer late, and nothing makes it early.
            let before = self.distance.load(Ordering::Relaxed);
            let later = if before == 0 { first } else { before + (before / 16).max(1) };
            self.distance.store(first.min(later), Ordering::Relaxed);
        }
    }

    fn set_process(&self, process: i32) {
        self.process.store(process, Ordering::Relaxed);
    }

    /// Begins the epoch after `last`, unless a later one has already begun. Returns the current
    /// epoch. A trial commit comes first: if commits hang, it fails sooner than this one would.
    async fn begin_epoch(
        &self,
        last: i64,
        why: &str,
        now: Option<Timestamp>,
    ) -> Result<i64, String> {
        self.trial.lock().await.commits(&self.way).await?;
        let mut client = self.upkeep.get().await.map_err(|error| no_connection(&error).0)?;
        epoch::begin(&mut client, last, why, now).await
    }
}

/// Returns the database's message, without the values that it may contain.
fn told(error: &Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{} ({})", said.message(), said.code().code()),
        None => {
            if let Some(ours) = ours(error) {
                return ours;
            }
            let mut words = error.to_string();
            let mut cause = std::error::Error::source(error);
            while let Some(next) = cause {
                words = format!("{words}: {next}");
                cause = next.source();
            }
            words
        }
    }
}

/// Says why no connection could be made, in words of ours.
fn ours(error: &Error) -> Option<String> {
    let cause = std::error::Error::source(error)?.downcast_ref::<std::io::Error>()?;
    (cause.kind() == std::io::ErrorKind::NotConnected).then(|| cause.to_string())
}

fn failed(error: Error) -> OpenError {
    OpenError::Engine(told(&error))
}

fn unreadable(error: Error) -> ReadError {
    ReadError(told(&error))
}

impl PostgresStore {
    /// Opens the store at `url` and brings its schema up to date.
    ///
    /// # Errors
    /// If the URL is wrong, the database cannot be reached or refuses, or a newer program has made
    /// its schema.
    pub fn open(url: &str) -> Result<Self, OpenError> {
        let way = Connector::to(url)?;
        let (pool, upkeep) = (way.pool(Use::Read)?, way.pool(Use::Upkeep)?);
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("postgres")
            .enable_all()
            .build()
            .map_err(|error| OpenError::Engine(error.to_string()))?;
        let handle = runtime.handle().clone();
        let opened = wait(&handle, async move {
            let read = |error: ReadError| OpenError::Engine(error.0);
            let mut trial = Trial::default();
            trial.commits(&way).await.map_err(OpenError::Engine)?;
            let client = upkeep.get().await;
            let mut client = client.map_err(|error| read(no_connection(&error)))?;
            migrate::migrate(&mut client).await?;
            drop(client);
            let client = pool.get().await;
            let mut client = client.map_err(|error| read(no_connection(&error)))?;
            let epoch = epoch::present(&client).await.map_err(failed)?;
            // This comes before the first commit of this server, which confirms it.
            let others = peer_marks::read_first(&client).await.map_err(read)?;
            let process = commit::register(&client).await?;
            log::settle(&mut client).await.map_err(read)?;
            let told = log::Published::now(&client, way.newest()).await.map_err(read)?;
            let sightings = PeerCheckIns::now(&client).await.map_err(read)?;
            drop(client);
            let timeline = way.newest();
            Ok(Inner {
                way,
                pool,
                upkeep,
                trial: tokio::sync::Mutex::new(trial),
                process: AtomicI32::new(process.id),
                writer: tokio::sync::Mutex::new(Writer::new(process, epoch, timeline)),
                pace: AtomicU64::new(0),
                distance: AtomicU64::new(0),
                counting: tokio::sync::Mutex::default(),
                flushing: tokio::sync::Mutex::default(),
                epoch: AtomicI64::new(epoch),
                others: PeerMarks::of(others),
                feed: Feed::default(),
                told: tokio::sync::Mutex::new(told),
                sightings: tokio::sync::Mutex::new(sightings),
            })
        });
        let opened = opened.unwrap_or_else(|| Err(OpenError::Engine("a task has ended".into())));
        let inner = match opened {
            Ok(inner) => inner,
            Err(error) => {
                // As when the store is dropped.
                runtime.shutdown_background();
                return Err(error);
            }
        };
        Ok(Self { inner: Arc::new(inner), handle, runtime: Mutex::new(Some(runtime)) })
    }

    /// Checks the URL of a database without connecting to it.
    ///
    /// # Errors
    /// If the URL, or a file that it names, is wrong.
    pub fn check_url(url: &str) -> Result<(), OpenError> {
        Connector::to(url).map(drop)
    }

    /// Reads on the runtime's threads, so that any thread may call this.
    fn read<T, F>(&self, read: impl FnOnce(Client) -> F + Send + 'static) -> Result<T, ReadError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ReadError>> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        let found = wait(&self.handle, async move {
            let client = inner.pool.get().await.map_err(|error| no_connection(&error))?;
            let timeline = inner.way.newest();
            let found = read(client).await;
            // The answer may come from a database that was left behind.
            if inner.way.newest() == timeline { found } else { Err(replaced()) }
        });
        found.unwrap_or_else(|| Err(gone()))
    }

    fn rows<T: Send + 'static>(
        &self,
        sql: impl Into<String>,
        values: Vec<Box<dyn ToSql + Send + Sync>>,
        row: fn(&Row) -> Result<T, ReadError>,
    ) -> Result<Vec<T>, ReadError> {
        let sql = sql.into();
        self.read(move |client| async move {
            let statement = client.prepare_cached(&sql).await.map_err(unreadable)?;
            let values: Vec<&(dyn ToSql + Sync)> =
                values.iter().map(|value| value.as_ref() as &(dyn ToSql + Sync)).collect();
            let rows = client.query(&statement, &values).await.map_err(unreadable)?;
            rows.iter().map(row).collect()
        })
    }

    fn servers(
        &self,
        condition: &str,
        values: Vec<Box<dyn ToSql + Send + Sync>>,
    ) -> Result<Vec<Server>, ReadError> {
        let from = "server CROSS JOIN LATERAL (
             SELECT last_seen FROM presence WHERE presence.server = server.number LIMIT 1) AS seen";
        self.rows(format!("SELECT {SERVER} FROM {from} WHERE {condition}"), values, rows::server)
    }
}

/// Who waits for a commit. It may be under way when the store is closed.
struct UnderWay(Option<Ended>);

impl UnderWay {
    fn with(&mut self, outcome: Result<Vec<Verdict>, CommitError>) {
        if let Some(ended) = self.0.take() {
            ended(outcome);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.with(Err(closed()));
    }
}

fn closed() -> CommitError {
    CommitError::Unknown("the store is closed".into())
}

/// Runs a future on the runtime and waits for it. `None` if the runtime has ended.
///
/// All futures become one type of task: each further type would be compiled again, with all the
/// code that the runtime has for it.
fn wait<T: Send + 'static>(
    handle: &Handle,
    future: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let (done, end) = std::sync::mpsc::sync_channel::<()>(0);
    let found = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&found);
    let task: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
        let result = future.await;
        *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        drop(done);
    });
    handle.spawn(task);
    // Nothing is ever sent: the sender is dropped when the task has ended or was dropped itself.
    let _ = end.recv();
    found.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn gone() -> ReadError {
    ReadError("the store is closed".into())
}

fn replaced() -> ReadError {
    ReadError("a standby was promoted meanwhile".into())
}

fn no_connection(error: &PoolError) -> ReadError {
    ReadError(match error {
        PoolError::Backend(error) => told(error),
        PoolError::Timeout(TimeoutType::Wait) => {
            "all connections of this server to the database are in use".into()
        }
        error => error.to_string(),
    })
}

fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

impl Drop for PostgresStore {
    /// A runtime panics if it is dropped while something waits in it.
    fn drop(&mut self) {
        self.close();
    }
}

impl Store for PostgresStore {
    fn commit(&self, changes: &[Change]) -> Result<Vec<Verdict>, CommitError> {
        let (inner, changes) = (Arc::clone(&self.inner), changes.to_vec());
        let committed =
            wait(&self.handle, async move { commit::commit(&inner, changes, ()).await.0 });
        committed.unwrap_or_else(|| Err(closed()))
    }

    fn begin(&self, changes: Vec<Change>, ended: Ended) {
        let inner = Arc::clone(&self.inner);
        let (sending, sent) = std::sync::mpsc::sync_channel::<()>(0);
        let mut ended = UnderWay(Some(ended));
        let task: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
            let (outcome, next) = commit::commit(&inner, changes, sending).await;
            ended.with(outcome);
            drop(next);
        });
        self.handle.spawn(task);
        // Nothing is ever sent. The next commit is begun after this one was sent.
        let _ = sent.recv();
    }

    fn pace(&self) -> Option<Duration> {
        let pace = self.inner.pace.load(Ordering::Relaxed);
        // A near database is not kept busier by sending ahead, and batches would be smaller.
        let is_far = self.inner.distance.load(Ordering::Relaxed) >= pace / 2;
        is_far.then(|| Duration::from_micros(pace))
    }

    fn probe(&self) -> Result<(), CommitError> {
        self.commit(&[])?;
        let tried = self.read(|client| async move {
            trial::tables_are_free(&client).await.map_err(unreadable)?;
            trial::room(&client).await.map_err(unreadable)
        });
        tried.map_err(|error| CommitError::Refused(error.0))
    }

    fn close(&self) {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(runtime) = runtime {
            runtime.shutdown_background();
        }
    }

    fn shared(&self) -> Option<&dyn Shared> {
        Some(self)
    }

    fn follow(&self, listener: Listener) {
        self.inner.feed.follow(listener);
        self.handle.spawn(log::follow(Arc::downgrade(&self.inner)));
        self.handle.spawn(peer_marks::follow(Arc::downgrade(&self.inner)));
    }

    fn settings(&self) -> Result<Vec<(String, String)>, ReadError> {
        let sql = "SELECT key, value FROM setting ORDER BY key";
        self.rows(sql, Vec::new(), |row| {
            Ok((row.try_get(0).map_err(unreadable)?, row.try_get(1).map_err(unreadable)?))
        })
    }

    fn webhooks(&self) -> Option<&dyn WebhookStates> {
        Some(self)
    }

    fn agreed(&self, what: &str) -> Result<Option<KeyedHash>, ReadError> {
        let what = what.to_owned();
        self.read(|client| async move { agreed::find(&client, &what).await })
    }

    fn agree(&self, what: &str, hash: KeyedHash) -> Result<bool, ReadError> {
        let what = what.to_owned();
        self.read(move |client| async move { agreed::agree(&client, &what, hash).await })
    }
}

impl Epochs for PostgresStore {
    fn watermark(&self) -> Option<Watermark> {
        let inner = Arc::clone(&self.inner);
        wait(&self.handle, async move {
            let mark = inner.watermark(&*inner.writer.lock().await);
            Watermark { timeline: inner.way.newest(), ..mark }
        })
    }

    fn contains(&self, mark: &Watermark) -> Result<bool, ReadError> {
        // The watermark of another kind of store says nothing about this one.
        if mark.process == ALONE {
            return Ok(true);
        }
        let (mark, way) = (mark.clone(), Arc::clone(&self.inner.way));
        let timeline = mark.timeline;
        let found = self.read(|client| async move {
            let epoch = epoch::present(&client).await.map_err(unreadable)?.cast_unsigned();
            // In a later epoch the timeline of the watermark no longer counts: that epoch may have
            // begun on a database that was restored to an older timeline on purpose.
            if epoch <= mark.epoch && way.newest() < mark.timeline {
                return Ok(None);
            }
            epoch::contains(&client, &mark).await.map(Some).map_err(unreadable)
        })?;
        found.ok_or_else(|| {
            // Only after the read, which fails if a newer timeline becomes known meanwhile.
            let present = self.inner.way.newest();
            self.inner.way.know(timeline);
            ReadError(connect::left_behind("the database", present, timeline))
        })
    }

    fn begin_epoch(&self, last: &Watermark, why: &str, now: Timestamp) -> Result<u64, CommitError> {
        let (last, why, inner) = (last.epoch, why.to_owned(), Arc::clone(&self.inner));
        let begun = wait(&self.handle, async move {
            let begun = inner.begin_epoch(last.cast_signed(), &why, Some(now)).await?;
            inner.epoch.fetch_max(begun, Ordering::Relaxed);
            inner.writer.lock().await.has_begun(begun);
            Ok(begun.cast_unsigned())
        });
        begun.unwrap_or_else(|| Err(gone().0)).map_err(CommitError::Refused)
    }
}

impl Records for PostgresStore {
    /// Numbers of codes and activations come from the time: `Shared::process` tells servers apart.
    fn frontier(&self) -> Result<LastNumbers, ReadError> {
        Ok(LastNumbers::default())
    }

    fn code(&self, hash: CodeHash) -> Result<Option<Code>, ReadError> {
        Ok(self.codes(&[hash])?.pop().flatten())
    }

    fn activation(&self, id: ActivationId) -> Result<Option<Activation>, ReadError> {
        Ok(self.activations(&[id])?.pop().flatten())
    }

    fn codes(&self, hashes: &[CodeHash]) -> Result<Vec<Option<Code>>, ReadError> {
        let sql = format!("SELECT {CODE} FROM code WHERE hash = ANY ($1)");
        let keys: Vec<Vec<u8>> = hashes.iter().map(|hash| hash.0.0.to_vec()).collect();
        let codes = self.rows(sql, vec![Box::new(keys)], rows::code)?;
        let codes: HashMap<CodeHash, Code> =
            codes.into_iter().map(|code| (code.hash, code)).collect();
        Ok(hashes.iter().map(|hash| codes.get(hash).cloned()).collect())
    }

    fn activations(&self, ids: &[ActivationId]) -> Result<Vec<Option<Activation>>, ReadError> {
        let sql = format!("SELECT {ACTIVATION} FROM activation WHERE id = ANY ($1)");
        let keys: Vec<Vec<u8>> = ids.iter().map(|id| id.0.to_be_bytes().to_vec()).collect();
        let found = self.rows(sql, vec![Box::new(keys)], rows::activation)?;
        let found: HashMap<ActivationId, Activation> =
            found.into_iter().map(|activation| (activation.at.id, activation)).collect();
        Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
    }

    fn server(&self, number: ServerNumber) -> Result<Option<Server>, ReadError> {
        Ok(self.servers_numbered(&[number])?.pop().flatten())
    }

    fn servers_numbered(&self, numbers: &[ServerNumber]) -> Result<Vec<Option<Server>>, ReadError> {
        let keys: Vec<i32> = numbers.iter().map(|number| number.0.cast_signed()).collect();
        let found = self.servers("number = ANY ($1)", vec![Box::new(keys)])?;
        let found: HashMap<ServerNumber, Server> =
            found.into_iter().map(|server| (server.number, server)).collect();
        Ok(numbers.iter().map(|number| found.get(number).cloned()).collect())
    }

    fn servers_before(
        &self,
        before: Option<ServerNumber>,
        limit: usize,
    ) -> Result<Vec<Server>, ReadError> {
        let before = before.map_or(i32::MAX, |number| number.0.cast_signed());
        let newest = "number < $1 ORDER BY number DESC LIMIT $2";
        self.servers(newest, vec![Box::new(before), Box::new(count(limit))])
    }

    fn each_server(&self, each: &mut dyn FnMut(Server)) -> Result<(), ReadError> {
        let mut last = i32::MIN;
        loop {
            let next = "number > $1 ORDER BY number LIMIT $2";
            let page = self.servers(next, vec![Box::new(last), Box::new(PAGE)])?;
            let Some(end) = page.last() else { return Ok(()) };
            last = end.number.0.cast_signed();
            page.into_iter().for_each(&mut *each);
        }
    }

    fn access_tokens(&self) -> Result<Vec<AccessToken>, ReadError> {
        let sql = format!("SELECT {ACCESS_TOKEN} FROM access_token ORDER BY number");
        self.rows(sql, Vec::new(), rows::access_token)
    }

    fn each_counter(&self, each: &mut dyn FnMut(u32, Counter)) -> Result<(), ReadError> {
        let sql = "SELECT key, window_end, policy, used FROM counter ORDER BY key, window_end";
        let counters = self.rows(sql, Vec::new(), shared::counter)?;
        (0..).zip(counters).for_each(|(slot, counter)| each(slot, counter));
        Ok(())
    }

    fn newest_codes(&self, limit: usize) -> Result<Vec<Code>, ReadError> {
        let sql = format!("SELECT {CODE} FROM code ORDER BY number DESC LIMIT $1");
        self.rows(sql, vec![Box::new(count(limit))], rows::code)
    }

    fn newest_activations(&self, limit: usize) -> Result<Vec<Activation>, ReadError> {
        let sql = format!("SELECT {ACTIVATION} FROM activation ORDER BY number DESC LIMIT $1");
        self.rows(sql, vec![Box::new(count(limit))], rows::activation)
    }

    fn oldest_codes(
        &self,
        after: Option<CodeNumber>,
        limit: usize,
    ) -> Result<Vec<Code>, ReadError> {
        let after = after.map_or(i64::MIN, |number| signed(number.0));
        let sql = format!("SELECT {CODE} FROM code WHERE number > $1 ORDER BY number LIMIT $2");
        self.rows(sql, vec![Box::new(after), Box::new(count(limit))], rows::code)
    }

    fn oldest_activations(
        &self,
        after: Option<ActivationNumber>,
        limit: usize,
    ) -> Result<Vec<Activation>, ReadError> {
        let after = after.map_or(i64::MIN, |number| signed(number.0));
        let from = "activation WHERE number > $1 ORDER BY number LIMIT $2";
        let sql = format!("SELECT {ACTIVATION} FROM {from}");
        self.rows(sql, vec![Box::new(after), Box::new(count(limit))], rows::activation)
    }
}

impl AuditLog for PostgresStore {
    fn audit_head(&self) -> Result<Head, ReadError> {
        self.read(|mut client| async move {
            log::settle(&mut client).await?;
            log::head(&client).await
        })
    }

    fn audit_from(&self, first: u64, each: &mut dyn FnMut(Entry) -> bool) -> Result<(), ReadError> {
        let mut next = first;
        loop {
            let page = self.read(move |mut client| async move {
                log::settle(&mut client).await?;
                log::page_from(&client, signed(next), rows::event).await
            })?;
            let Some(last) = page.last() else { return Ok(()) };
            next = last.head.entries.saturating_add(1);
            for entry in page {
                if entry.head.entries >= first && !each(entry) {
                    return Ok(());
                }
            }
        }
    }

    fn audit_before(
        &self,
        before: u64,
        each: &mut dyn FnMut(Entry) -> bool,
    ) -> Result<(), ReadError> {
        let mut end = before;
        loop {
            let page = self.read(move |mut client| async move {
                log::settle(&mut client).await?;
                log::page_before(&client, end.min(i64::MAX as u64).cast_signed()).await
            })?;
            let Some(first) = page.first() else { return Ok(()) };
            end = first.head.entries;
            for entry in page.into_iter().rev() {
                if entry.head.entries < before && !each(entry) {
                    return Ok(());
                }
            }
        }
    }

    fn audit_number_at(&self, at: Timestamp) -> Result<u64, ReadError> {
        self.read(move |client| async move { log::number_at(&client, at).await })
    }

    fn attempts(&self, code: CodeHash) -> Result<Attempts, ReadError> {
        Ok(self.attempts_on(&[code])?.pop().unwrap_or_default())
    }

    fn attempts_on(&self, codes: &[CodeHash]) -> Result<Vec<Attempts>, ReadError> {
        let codes = codes.to_vec();
        self.read(move |client| async move { log::attempts(&client, &codes).await })
    }
}

/// The policy with this name.
fn policy(name: &str) -> Option<Policy> {
    Policy::ALL.into_iter().find(|policy| policy.name() == name)
}
