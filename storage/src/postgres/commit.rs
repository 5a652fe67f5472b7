//! Batches of changes. Each is one transaction whose statements are all sent at once, so nothing
//! waits for a round trip between its first statement and its end.
//!
//! The first statement of each transaction counts the batches of this process, in a row of its own.
//! After a broken connection that count tells whether the batch was committed. Raising it once more
//! ensures that a transaction which is still on its way can no longer commit.

use super::batch::{self, Member};
use super::connect::{Connector, Found, Line, Planned, Use};
use super::statement::{Statement, reference, types};
use super::{Inner, epoch, failed, no_connection, peer_marks, told, unreadable};
use crate::{Change, CommitError, ReadError, Verdict, Watermark};
use deadpool_postgres::{Client, ClientWrapper};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row};

/// How long to look for the outcome of a batch after a connection has broken, before its callers
/// get the answer that it is unknown. Longer than a promotion of a standby takes (0.3 s measured,
/// plus some seconds until somebody starts it).
const SETTLE: Duration = Duration::from_secs(10);
/// How long one look may take, and how long all looks before a later commit may take together.
const LOOK: Duration = Duration::from_secs(3);
/// The pause between two looks.
const AGAIN: Duration = Duration::from_millis(100);

/// Counts the batch, or fails if this process is not at the batch before it.
const MARK: &str = "WITH marked AS (
    UPDATE process SET batch = $2, seen_at = clock_timestamp(), ended = false
    WHERE id = $1 AND name = $4::text::uuid AND batch = $3 RETURNING 1)
    SELECT all_or_nothing(1 + (SELECT count(*) FROM marked), 2), (SELECT number FROM epoch)";

/// Reads where this process was in the database before a batch. If the batch was not written, also
/// makes sure that it never will be. Waits for the transaction in doubt if that is still running.
const FENCE_BATCH: &str = "WITH before AS (
    SELECT batch FROM process WHERE id = $1 AND name = $4::text::uuid FOR UPDATE)
    UPDATE process
    SET batch = CASE WHEN before.batch = $2::bigint - 1 THEN $3::bigint ELSE before.batch END
    FROM before WHERE id = $1 RETURNING before.batch";

/// The one connection that commits.
struct Open {
    client: ClientWrapper,
    line: Arc<Line>,
}

impl From<Found> for Open {
    fn from(found: Found) -> Self {
        Self { client: ClientWrapper::new(found.client, found.driver), line: found.line }
    }
}

/// The state of commits: the process that commits, and what it has committed.
pub(super) struct Writer {
    open: Option<Open>,
    planned: Planned,
    /// The timeline of all that was committed, and of all that was read to decide on commits.
    timeline: u32,
    /// The last batch that was written or will never be written.
    batch: i64,
    /// The number of the next event.
    next_seq: i64,
    /// Whether the outcome of the last batch is unknown.
    in_doubt: bool,
    /// The process that commits.
    process: Process,
    /// The epoch in which that was acknowledged.
    epoch: i64,
}

/// A start of a server.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) id: i32,
    /// Unique, even if ids repeat after the database returned to an earlier state.
    name: String,
}

/// The outcome of a batch whose answers were lost.
enum Settled {
    Written,
    Never,
    /// The database lacks changes that were acknowledged before it.
    Behind,
}

/// Why a transaction did not get an answer to each of its statements.
enum Trouble {
    /// It could not be sent.
    NotSent(String),
    /// It was rolled back, because this statement failed.
    RolledBack(Error),
    /// The connection broke, and the answers were lost.
    Broken(String),
    /// The database lacks changes that were acknowledged.
    Behind,
    /// A standby was promoted; this is its timeline.
    Replaced(u32),
}

type Answers<'a> = Pin<Box<dyn Future<Output = Result<Option<Row>, Error>> + Send + 'a>>;

impl Writer {
    pub(super) fn new(process: Process, epoch: i64, timeline: u32) -> Self {
        Self {
            open: None,
            planned: Planned::default(),
            timeline,
            batch: 0,
            next_seq: 1,
            in_doubt: false,
            process,
            epoch,
        }
    }

    /// Returns what the database must hold of this server's commits from now on.
    pub(super) fn watermark(&self) -> Watermark {
        let commits = if self.in_doubt { self.batch - 1 } else { self.batch };
        Watermark {
            epoch: self.epoch.cast_unsigned(),
            process: self.process.name.clone(),
            commits: commits.cast_unsigned(),
            ..Watermark::default()
        }
    }

    /// Records that an epoch has begun; the database must have it from now on.
    pub(super) fn has_begun(&mut self, epoch: i64) {
        self.epoch = self.epoch.max(epoch);
    }

    /// Begins a new epoch, because the database returned to an earlier state: every unspent code
    /// and open activation in it becomes void, unless another server has done so. Decisions made
    /// before no longer count.
    async fn begin_epoch_after_loss(&mut self, store: &Inner) -> CommitError {
        self.open = None;
        let anew = async {
            let why = "the database lacked what had been acknowledged";
            let epoch = store.begin_epoch(self.epoch, why, None).await?;
            let client = store.pool.get().await.map_err(|error| no_connection(&error).0)?;
            let others =
                peer_marks::read_first(&client).await.map_err(|error| error.to_string())?;
            let process = register(&client).await.map_err(|error| error.to_string())?;
            store.others.replace(others);
            Ok::<_, String>((epoch, process))
        };
        match anew.await {
            Ok((epoch, process)) => {
                store.set_process(process.id);
                *self = Self::new(process, epoch, self.timeline);
                let words =
                    format!("the database lacked what had been acknowledged: epoch {epoch}");
                CommitError::Refused(words)
            }
            Err(error) => CommitError::Refused(error),
        }
    }

    /// Begins a new epoch if the database lacks changes that were acknowledged.
    pub(super) async fn check_watermark(
        &mut self,
        client: &Client,
        store: &Inner,
    ) -> Result<(), ReadError> {
        let held = epoch::contains(client, &store.watermark(self)).await.map_err(unreadable)?;
        if !held {
            let error = self.begin_epoch_after_loss(store).await;
            tracing::error!(%error, "the database has returned to an earlier state");
        }
        Ok(())
    }

    async fn open(&mut self, way: &Arc<Connector>) -> Result<&Open, String> {
        let open = match self.open.take() {
            Some(open) if !open.client.is_closed() => open,
            _ => way.connect(Use::Commit).await?.into(),
        };
        // An error here shows again in the next statement.
        let _ = self.planned.anew(&open.client).await;
        Ok(self.open.insert(open))
    }

    /// Commits a batch and returns one verdict for each change, in their order. An empty batch is a
    /// commit like any other: it is counted and confirmed by the standbys. It also confirms
    /// everything read before, which precedes it in the database's log.
    pub(super) async fn commit(
        &mut self,
        store: &Inner,
        changes: Vec<Change>,
    ) -> Result<Vec<Verdict>, CommitError> {
        if self.in_doubt {
            // Its callers have been answered. From here on the outcome is known.
            let settled = self.settle(store, Instant::now() + LOOK).await;
            if let Settled::Behind = settled.map_err(CommitError::Refused)? {
                return Err(self.begin_epoch_after_loss(store).await);
            }
        }
        let mut verdicts = vec![Verdict::Written; changes.len()];
        let (members, rest) = batch::sort_out(changes, &mut self.next_seq);
        let sets = [
            batch::attempts_of(self.process.id, &rest.attempts),
            batch::check_ins_of(&rest.check_ins),
            batch::counters_of(&rest.counters),
            batch::uses_of(&rest.uses),
        ];
        let sets: Vec<Statement<'_>> = sets.into_iter().flatten().collect();
        let written = match self.write_surely(store, &members, &sets).await? {
            Ok(written) => written,
            Err(error) if members.is_empty() || !is_of_statement(&error) => {
                return Err(CommitError::Refused(told(&error)));
            }
            Err(error) => {
                let error = told(&error);
                tracing::debug!(error, "a batch failed; writing its changes one at a time");
                let mut written = Vec::with_capacity(members.len());
                for one in &members {
                    let alone = std::slice::from_ref(one);
                    let alone = match self.write_surely(store, alone, &[]).await {
                        Ok(Ok(mut alone)) => alone.pop().unwrap_or(Verdict::Conflict),
                        // Another server has written one of its rows, or a limit is reached: this is a
                        // conflict like any other.
                        Ok(Err(error)) if is_conflict(&error) => Verdict::Conflict,
                        Ok(Err(error)) => return Err(after(&written, told(&error))),
                        Err(CommitError::Refused(error)) => return Err(after(&written, error)),
                        Err(error) => return Err(error),
                    };
                    written.push(alone);
                }
                // No caller waits for these.
                if let Err(error) = self.write_surely(store, &[], &sets).await {
                    tracing::warn!(%error, "attempts on codes could not be stored");
                }
                written
            }
        };
        for (one, verdict) in members.iter().zip(written) {
            set(&mut verdicts, one.place, verdict);
        }
        Ok(verdicts)
    }

    /// Writes a transaction. If the connection breaks before it is committed, sends it again over
    /// another. Returns the verdict on each of `members`, or why all was rolled back.
    async fn write_surely(
        &mut self,
        store: &Inner,
        members: &[Member],
        sets: &[Statement<'_>],
    ) -> Result<Result<Vec<Verdict>, Error>, CommitError> {
        let mut last_try = false;
        loop {
            let error = match self.write(store, members, sets).await {
                Ok(written) => return Ok(Ok(written)),
                Err(Trouble::RolledBack(error)) if self.open.is_some() || last_try => {
                    return Ok(Err(error));
                }
                Err(Trouble::RolledBack(error)) => told(&error),
                Err(Trouble::NotSent(error)) => error,
                Err(Trouble::Behind) => return Err(self.begin_epoch_after_loss(store).await),
                Err(Trouble::Replaced(timeline)) => {
                    // Commits of other servers must be there before this server decides on what it
                    // reads.
                    let client = store.pool.get().await;
                    let client = client.map_err(|e| CommitError::Refused(no_connection(&e).0))?;
                    let held = self.check_watermark(&client, store).await;
                    held.map_err(|error| CommitError::Refused(error.0))?;
                    self.timeline = timeline;
                    return Err(CommitError::Refused(format!(
                        "the database was replaced by its standby, which begins timeline \
                         {timeline}: what was read before may not be there"
                    )));
                }
                Err(Trouble::Broken(error)) => {
                    if let Some(written) = self.read_back(store, members, &error).await? {
                        return Ok(Ok(written));
                    }
                    error
                }
            };
            if last_try {
                return Err(CommitError::Refused(error));
            }
            tracing::debug!(
                error,
                "a transaction failed; sending it again over another connection"
            );
            last_try = true;
        }
    }

    /// Sends a whole transaction and then reads its answers. Returns the verdict on each of `members`.
    async fn write(
        &mut self,
        store: &Inner,
        members: &[Member],
        sets: &[Statement<'_>],
    ) -> Result<Vec<Verdict>, Trouble> {
        let (before, batch, process) = (self.batch, self.batch + 1, self.process.clone());
        let timeline = self.timeline;
        let Open { client, line } = self.open(&store.way).await.map_err(Trouble::NotSent)?;
        let line = Arc::clone(line);
        if line.timeline() != timeline {
            return Err(Trouble::Replaced(line.timeline()));
        }
        line.take_cancelled();
        let groups: Vec<&[Member]> = members.chunk_by(Member::goes_with).collect();
        let own: Vec<Statement<'_>> =
            groups.iter().map(|group| batch::statement_of(group, process.id)).collect();
        let statements = own.iter().chain(sets);
        let mut ready = Vec::with_capacity(own.len() + sets.len());
        let prepared = async {
            let mark = client.prepare_cached(MARK).await?;
            for statement in statements {
                let types = types(&statement.values);
                let prepared = client.prepare_typed_cached(&statement.sql, &types).await?;
                ready.push((prepared, &statement.values));
            }
            Ok(mark)
        };
        let mark = match prepared.await {
            Ok(mark) => mark,
            Err(error) => {
                let error = said(&line, &error);
                self.open = None;
                return Err(Trouble::NotSent(error));
            }
        };
        let marked: [&(dyn ToSql + Sync); 4] = [&process.id, &batch, &before, &process.name];
        let mut answers: Vec<Answers<'_>> = Vec::with_capacity(ready.len() + 3);
        answers.push(Box::pin(async { client.batch_execute("BEGIN").await.map(|()| None) }));
        answers.push(Box::pin(async { client.query_one(&mark, &marked).await.map(Some) }));
        for (statement, values) in &ready {
            let values: Vec<_> = values.iter().map(reference).collect();
            answers.push(Box::pin(async move { client.query_opt(statement, &values).await }));
        }
        answers.push(Box::pin(async { client.batch_execute("COMMIT").await.map(|()| None) }));
        let answers = all_at_once(answers).await;
        self.batch = batch;
        let last = answers.len() - 1;
        let (mut written, mut epoch) = (Vec::with_capacity(members.len()), self.epoch);
        let mut groups = groups.into_iter();
        for (place, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(None) => {}
                Ok(Some(row)) if place == 1 => epoch = row.try_get(1).unwrap_or(epoch),
                Ok(Some(row)) => {
                    if let Some(group) = groups.next() {
                        written.extend(batch::verdicts_of(group, &row));
                    }
                }
                Err(error) if place == 0 => {
                    self.open = None;
                    return Err(Trouble::Broken(said(&line, &error)));
                }
                Err(error) if place == 1 && error.code().is_some_and(|c| c.code() == "IP001") => {
                    self.batch = before;
                    return Err(Trouble::Behind);
                }
                // The database reported an error before COMMIT, so COMMIT was a rollback.
                Err(error) if place < last && error.as_db_error().is_some() => {
                    if !is_of_statement(&error) {
                        self.open = None;
                    }
                    self.batch = before;
                    return Err(Trouble::RolledBack(error));
                }
                Err(error) => {
                    self.open = None;
                    return Err(Trouble::Broken(said(&line, &error)));
                }
            }
        }
        if line.take_cancelled() {
            return Err(Trouble::Broken("the wait for a standby was cancelled".into()));
        }
        self.epoch = epoch;
        Ok(written)
    }

    /// Finds out after a broken connection which of `members` were written. Returns `None` if the
    /// batch was not written and never will be.
    async fn read_back(
        &mut self,
        store: &Inner,
        members: &[Member],
        error: &str,
    ) -> Result<Option<Vec<Verdict>>, CommitError> {
        tracing::warn!(error, "the outcome of a commit is unknown; reading it back");
        self.in_doubt = true;
        let settled = self.settle(store, Instant::now() + SETTLE).await;
        match settled.map_err(CommitError::Unknown)? {
            Settled::Written => {}
            Settled::Never => return Ok(None),
            Settled::Behind => return Err(self.begin_epoch_after_loss(store).await),
        }
        let seqs: Vec<i64> = members.iter().flat_map(|one| one.seqs.clone()).collect();
        let found = self.events(store, &seqs).await.map_err(CommitError::Unknown)?;
        // No caller waits for a change without an event.
        let written = |one: &Member| {
            let is = one.seqs.is_empty() || found.iter().any(|seq| one.seqs.contains(seq));
            if is { Verdict::Written } else { Verdict::Conflict }
        };
        Ok(Some(members.iter().map(written).collect()))
    }

    async fn events(&mut self, store: &Inner, seqs: &[i64]) -> Result<Vec<i64>, String> {
        let process = self.process.id;
        let Open { client, line } = self.open(&store.way).await?;
        let read = "SELECT seq FROM event WHERE process = $1 AND seq = ANY ($2)";
        let rows = client.query(read, &[&process, &seqs]).await;
        let rows = rows.map_err(|error| said(line, &error))?;
        rows.iter().map(|row| row.try_get(0).map_err(|error| error.to_string())).collect()
    }

    /// Finds out the outcome of the batch in doubt, and fixes it.
    async fn settle(&mut self, store: &Inner, until: Instant) -> Result<Settled, String> {
        loop {
            let looked = timeout(LOOK, self.look(store)).await;
            match looked.unwrap_or_else(|_| Err("the database does not answer".into())) {
                // The batch stays in doubt until a new epoch has begun.
                Ok(Settled::Behind) => return Ok(Settled::Behind),
                Ok(settled) => {
                    self.in_doubt = false;
                    return Ok(settled);
                }
                Err(error) => {
                    self.open = None;
                    if Instant::now() + AGAIN >= until {
                        return Err(error);
                    }
                    tracing::debug!(error, "the outcome of a commit could not be read; retrying");
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn look(&mut self, store: &Inner) -> Result<Settled, String> {
        let (process, batch) = (self.process.clone(), self.batch);
        let Open { client, line } = self.open(&store.way).await?;
        line.take_cancelled();
        let asked: [&(dyn ToSql + Sync); 4] = [&process.id, &batch, &(batch + 1), &process.name];
        let row = client.query_opt(FENCE_BATCH, &asked).await;
        let row = row.map_err(|error| said(line, &error))?;
        if line.take_cancelled() {
            return Err("the wait for a standby was cancelled".into());
        }
        let Some(row) = row else { return Ok(Settled::Behind) };
        let found: i64 = row.try_get(0).map_err(|error| told(&error))?;
        Ok(match found - batch {
            0 => Settled::Written,
            // One more if an earlier look raised the count and its answer was lost.
            -1 | 1 => {
                self.batch = batch + 1;
                Settled::Never
            }
            _ => Settled::Behind,
        })
    }
}

/// Describes the failure of a statement: the database's message, or why the connection ended.
fn said(line: &Line, error: &Error) -> String {
    match (error.as_db_error(), line.why_it_ended()) {
        (None, Some(why)) => format!("{}: {why}", line.host),
        _ => format!("{}: {}", line.host, told(error)),
    }
}

/// Returns the error for a batch that stopped in the middle: refused only if nothing of it was
/// written.
fn after(written: &[Verdict], error: String) -> CommitError {
    if written.iter().any(Verdict::is_written) {
        CommitError::Unknown(error)
    } else {
        CommitError::Refused(error)
    }
}

fn set(verdicts: &mut [Verdict], place: usize, verdict: Verdict) {
    if let Some(one) = verdicts.get_mut(place) {
        *one = verdict;
    }
}

/// Polls all futures once in their order, which sends them, and then awaits one after the other:
/// answers arrive in the order of the statements.
async fn all_at_once<T>(mut asked: Vec<Pin<Box<dyn Future<Output = T> + Send + '_>>>) -> Vec<T> {
    let mut answers: Vec<Option<T>> = Vec::with_capacity(asked.len());
    poll_fn(|context| {
        for one in &mut asked {
            answers.push(match one.as_mut().poll(context) {
                Poll::Ready(answer) => Some(answer),
                Poll::Pending => None,
            });
        }
        Poll::Ready(())
    })
    .await;
    let mut all = Vec::with_capacity(asked.len());
    for (one, answer) in asked.into_iter().zip(answers) {
        all.push(match answer {
            Some(answer) => answer,
            None => one.await,
        });
    }
    all
}

/// Whether a statement failed because of rows of another server: a unique constraint, a part of a
/// change, or a deadlock.
fn is_conflict(error: &Error) -> bool {
    error.code().is_some_and(|code| {
        let code = code.code();
        code.starts_with("23") || code.starts_with("40") || code == "IP001"
    })
}

/// Whether the statement caused the error, and not the database or the connection.
fn is_of_statement(error: &Error) -> bool {
    is_conflict(error) || error.code().is_some_and(|code| code.code().starts_with("22"))
}

/// Registers a start of this server in the database.
pub(super) async fn register(client: &Client) -> Result<Process, crate::OpenError> {
    let new = "INSERT INTO process DEFAULT VALUES RETURNING id, name::text";
    let row = client.query_one(new, &[]).await.map_err(failed)?;
    Ok(Process {
        id: row.try_get("id").map_err(failed)?,
        name: row.try_get("name").map_err(failed)?,
    })
}
