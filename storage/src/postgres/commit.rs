//! Batches of changes, each as one transaction that is sent at once: between its first statement
//! and its end nobody waits for anybody.
//!
//! The first statement of each transaction counts the batches of this process up in a row of its
//! own. After a connection has broken that count tells whether the batch came to be; and counting
//! it up once more makes sure that a transaction which is still somewhere on its way cannot come to
//! be any more.

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

/// How long the outcome of a batch is looked for after a connection has broken, before those who
/// wait for it are told that it is unknown: longer than a standby takes to be promoted (0.3 s were
/// measured, and some seconds until somebody does it).
const SETTLE: Duration = Duration::from_secs(10);
/// How long one look may take, and how long those together that come before a later commit.
const LOOK: Duration = Duration::from_secs(3);
/// Between two looks.
const AGAIN: Duration = Duration::from_millis(100);

/// Counts the batch, or fails where this process is not at the batch before it.
const MARK: &str = "WITH marked AS (
    UPDATE process SET batch = $2, seen_at = clock_timestamp(), ended = false
    WHERE id = $1 AND name = $4::text::uuid AND batch = $3 RETURNING 1)
    SELECT all_or_nothing(1 + (SELECT count(*) FROM marked), 2), (SELECT number FROM epoch)";

/// Where this process was in the database before a batch, and that the batch can be written no more
/// where it was not. Waits for the transaction in doubt where that is still under way.
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

/// Who commits, and what was committed.
pub(super) struct Writer {
    open: Option<Open>,
    planned: Planned,
    /// The timeline on which everything counts that was committed, and that was read for what is to
    /// be committed.
    timeline: u32,
    /// The last batch that was written or will never be.
    batch: i64,
    /// The number of the next event.
    next_seq: i64,
    /// The last batch may or may not have been written.
    in_doubt: bool,
    /// Who commits.
    process: Process,
    /// The epoch in which that was acknowledged.
    epoch: i64,
}

/// A start of a server.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) id: i32,
    /// No two have the same, also where ids come again with an earlier state of the database.
    name: String,
}

/// What the database says of a batch whose answers were lost.
enum Settled {
    Written,
    Never,
    /// The database lacks what was acknowledged before it.
    Behind,
}

/// Why a transaction did not end with an answer to each of its statements.
enum Trouble {
    /// There was no way to send it.
    NotSent(String),
    /// It was rolled back: this statement failed.
    RolledBack(Error),
    /// The connection broke, and with it the answers.
    Broken(String),
    /// The database lacks what was acknowledged.
    Behind,
    /// A standby was promoted: this is its timeline.
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

    /// What the database must hold of this server's commits from now on.
    pub(super) fn watermark(&self) -> Watermark {
        let commits = if self.in_doubt { self.batch - 1 } else { self.batch };
        Watermark {
            epoch: self.epoch.cast_unsigned(),
            process: self.process.name.clone(),
            commits: commits.cast_unsigned(),
            ..Watermark::default()
        }
    }

    /// An epoch has begun that this server knows of, and must find from now on.
    pub(super) fn has_begun(&mut self, epoch: i64) {
        self.epoch = self.epoch.max(epoch);
    }

    /// The database has become an earlier one: what is left of it that could be spent twice is void,
    /// unless another server has seen to that. Nothing that was decided counts any more.
    async fn begin_anew(&mut self, store: &Inner) -> CommitError {
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

    /// Sees to it that a new epoch begins where the database lacks what was acknowledged.
    pub(super) async fn hold_against(
        &mut self,
        client: &Client,
        store: &Inner,
    ) -> Result<(), ReadError> {
        let held = epoch::contains(client, &store.watermark(self)).await.map_err(unreadable)?;
        if !held {
            let error = self.begin_anew(store).await;
            tracing::error!(%error, "the database has become an earlier one");
        }
        Ok(())
    }

    async fn open(&mut self, way: &Arc<Connector>) -> Result<&Open, String> {
        let open = match self.open.take() {
            Some(open) if !open.client.is_closed() => open,
            _ => way.connect(Use::Commit).await?.into(),
        };
        // What goes wrong shows in what is sent next.
        let _ = self.planned.anew(&open.client).await;
        Ok(self.open.insert(open))
    }

    /// Commits a batch; one verdict a change, in the order of the changes. One without changes is a
    /// commit like any other: it counts the batch, and is confirmed by whatever confirms commits. So
    /// is everything that was read before, for it stands before it in the database's log.
    pub(super) async fn commit(
        &mut self,
        store: &Inner,
        changes: Vec<Change>,
    ) -> Result<Vec<Verdict>, CommitError> {
        if self.in_doubt {
            // Whoever waited for it has been told; from here on it is one or the other.
            let settled = self.settle(store, Instant::now() + LOOK).await;
            if let Settled::Behind = settled.map_err(CommitError::Refused)? {
                return Err(self.begin_anew(store).await);
            }
        }
        let mut verdicts = vec![Verdict::Written; changes.len()];
        let (members, rest) = batch::sort_out(changes, &mut self.next_seq);
        let sets = [
            batch::attempts_of(self.process.id, &rest.attempts),
            batch::check_ins_of(&rest.check_ins),
            batch::counters_of(&rest.counters),
        ];
        let sets: Vec<Statement<'_>> = sets.into_iter().flatten().collect();
        let written = match self.write_surely(store, &members, &sets).await? {
            Ok(written) => written,
            Err(error) if members.is_empty() || !is_of_statement(&error) => {
                return Err(CommitError::Refused(told(&error)));
            }
            Err(error) => {
                let error = told(&error);
                tracing::debug!(error, "a batch is written again, one change at a time");
                let mut written = Vec::with_capacity(members.len());
                for one in &members {
                    let alone = std::slice::from_ref(one);
                    let alone = match self.write_surely(store, alone, &[]).await {
                        Ok(Ok(alone)) => alone == [true],
                        // A part of it met what another server has written: a guard like any other.
                        Ok(Err(error)) if is_conflict(&error) => false,
                        Ok(Err(error)) => return Err(after(&written, told(&error))),
                        Err(CommitError::Refused(error)) => return Err(after(&written, error)),
                        Err(error) => return Err(error),
                    };
                    written.push(alone);
                }
                // Nobody waits for these.
                if let Err(error) = self.write_surely(store, &[], &sets).await {
                    tracing::warn!(%error, "attempts are not kept");
                }
                written
            }
        };
        for (one, written) in members.iter().zip(written) {
            if !written {
                set(&mut verdicts, one.place, Verdict::Conflict);
            }
        }
        Ok(verdicts)
    }

    /// Writes a transaction, over another connection where one broke before it came to be: for each
    /// of `members` whether it was written, or why all was rolled back.
    async fn write_surely(
        &mut self,
        store: &Inner,
        members: &[Member],
        sets: &[Statement<'_>],
    ) -> Result<Result<Vec<bool>, Error>, CommitError> {
        let mut last_try = false;
        loop {
            let error = match self.write(store, members, sets).await {
                Ok(written) => return Ok(Ok(written)),
                Err(Trouble::RolledBack(error)) if self.open.is_some() || last_try => {
                    return Ok(Err(error));
                }
                Err(Trouble::RolledBack(error)) => told(&error),
                Err(Trouble::NotSent(error)) => error,
                Err(Trouble::Behind) => return Err(self.begin_anew(store).await),
                Err(Trouble::Replaced(timeline)) => {
                    // What others had committed must be there before anything is decided on what is.
                    let client = store.pool.get().await;
                    let client = client.map_err(|e| CommitError::Refused(no_connection(&e).0))?;
                    let held = self.hold_against(&client, store).await;
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
            tracing::debug!(error, "a transaction is sent again over another connection");
            last_try = true;
        }
    }

    /// Sends a transaction whole, and then reads its answers: for each of `members` whether it was
    /// written.
    async fn write(
        &mut self,
        store: &Inner,
        members: &[Member],
        sets: &[Statement<'_>],
    ) -> Result<Vec<bool>, Trouble> {
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
                        written.extend(batch::written_of(group, &row));
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
                // Said by the database of a statement before the end: the end was a rollback.
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

    /// After a connection has broken: which of `members` were written, `None` where
    /// it was not and will never be.
    async fn read_back(
        &mut self,
        store: &Inner,
        members: &[Member],
        error: &str,
    ) -> Result<Option<Vec<bool>>, CommitError> {
        tracing::warn!(error, "a commit's outcome is read back");
        self.in_doubt = true;
        let settled = self.settle(store, Instant::now() + SETTLE).await;
        match settled.map_err(CommitError::Unknown)? {
            Settled::Written => {}
            Settled::Never => return Ok(None),
            Settled::Behind => return Err(self.begin_anew(store).await),
        }
        let seqs: Vec<i64> = members.iter().flat_map(|one| one.seqs.clone()).collect();
        let found = self.events(store, &seqs).await.map_err(CommitError::Unknown)?;
        // A change without an event is one that nobody waits for.
        let written =
            |one: &Member| one.seqs.is_empty() || found.iter().any(|seq| one.seqs.contains(seq));
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

    /// What became of the batch in doubt. From here on it is so for good.
    async fn settle(&mut self, store: &Inner, until: Instant) -> Result<Settled, String> {
        loop {
            let looked = timeout(LOOK, self.look(store)).await;
            match looked.unwrap_or_else(|_| Err("the database does not say".into())) {
                // In doubt until a new epoch has begun.
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
                    tracing::debug!(error, "the outcome is looked for again");
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
            // One more where an earlier look has come that far, and its answer was lost.
            -1 | 1 => {
                self.batch = batch + 1;
                Settled::Never
            }
            _ => Settled::Behind,
        })
    }
}

/// What became of a statement: the database's words, or why its connection has ended.
fn said(line: &Line, error: &Error) -> String {
    match (error.as_db_error(), line.why_it_ended()) {
        (None, Some(why)) => format!("{}: {why}", line.host),
        _ => format!("{}: {}", line.host, told(error)),
    }
}

/// Why a batch ended in its middle: only where nothing of it was written is that certain.
fn after(written: &[bool], error: String) -> CommitError {
    if written.contains(&true) { CommitError::Unknown(error) } else { CommitError::Refused(error) }
}

fn set(verdicts: &mut [Verdict], place: usize, verdict: Verdict) {
    if let Some(one) = verdicts.get_mut(place) {
        *one = verdict;
    }
}

/// Polls all once in their order, which sends them, and then waits for one after the other: answers
/// come in the order of the questions.
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

/// Whether another server's rows are what a statement failed on: a unique constraint, a part of a
/// change, two that waited for each other.
fn is_conflict(error: &Error) -> bool {
    error.code().is_some_and(|code| {
        let code = code.code();
        code.starts_with("23") || code.starts_with("40") || code == "IP001"
    })
}

/// Whether the statement is at fault, and not the database or the way to it.
fn is_of_statement(error: &Error) -> bool {
    is_conflict(error) || error.code().is_some_and(|code| code.code().starts_with("22"))
}

/// Makes a start of this server known to the database.
pub(super) async fn register(client: &Client) -> Result<Process, crate::OpenError> {
    let new = "INSERT INTO process DEFAULT VALUES RETURNING id, name::text";
    let row = client.query_one(new, &[]).await.map_err(failed)?;
    Ok(Process {
        id: row.try_get("id").map_err(failed)?,
        name: row.try_get("name").map_err(failed)?,
    })
}
