//! Batches of changes. Each is one transaction whose statements are all sent at once, so nothing
//! waits for a round trip between its first statement and its end. The next batch may be sent before
//! the one before it is answered: the database takes them one after the other.
//!
//! The first statement of each transaction numbers the batch in the row of this process, and fails
//! if the last number there is not that of the batch before it. So a batch is only written if the
//! one before it was, and no number is ever given twice. After a broken connection the number tells
//! which batches were committed. Raising it ensures that a transaction which is still on its way can
//! no longer commit.
//!
//! Batches end in the order in which they were begun. If one is not written in one piece, those
//! that were sent behind it are not written either. They are sent again after its changes have been
//! written one at a time; if it was refused, so are they.

use super::batch::{self, Member, Rest};
use super::connect::{Connector, Found, Line, Planned, Use};
use super::rows::signed;
use super::shared::counter;
use super::statement::{Statement, reference, types};
use super::{Inner, epoch, failed, no_connection, peer_marks, told, unreadable};
use crate::{Change, CommitError, Counted, ReadError, Verdict, Watermark};
use deadpool_postgres::{Client, ClientWrapper};
use iptunnel_domain::Timestamp;
use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
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

/// Numbers the batch, or fails if the last batch of this process is not the one before it.
const MARK: &str = "WITH marked AS (
    UPDATE process SET batch = $2, seen_at = clock_timestamp(), ended = false
    WHERE id = $1 AND name = $4::text::uuid AND batch = $3 RETURNING 1)
    SELECT all_or_nothing(1 + (SELECT count(*) FROM marked), 2), (SELECT number FROM epoch)";

/// Reads the number of the last batch that was written. If it is one of $2, more batches may be on
/// their way: then raises it to a number that says which one it was, so that they can never be
/// written. Waits for a transaction that is still running.
const FENCE_BATCHES: &str = "WITH before AS (
    SELECT batch FROM process WHERE id = $1 AND name = $4::text::uuid FOR UPDATE)
    UPDATE process SET batch =
        coalesce($3::bigint + array_position($2::bigint[], before.batch), before.batch)
    FROM before WHERE id = $1 RETURNING before.batch";

/// The one connection that commits.
#[derive(Clone)]
struct Open {
    client: Arc<ClientWrapper>,
    line: Arc<Line>,
}

impl From<Found> for Open {
    fn from(found: Found) -> Self {
        let client = Arc::new(ClientWrapper::new(found.client, found.driver));
        Self { client, line: found.line }
    }
}

/// The state of commits: the process that commits, and what it has committed.
pub(super) struct Writer {
    open: Option<Open>,
    planned: Planned,
    /// The timeline of all that was committed, and of all that was read to decide on commits.
    timeline: u32,
    /// The number of the last batch that was written, or to which it was raised.
    batch: i64,
    /// The highest number that a batch was given.
    highest: i64,
    /// The batches that were sent since and have not ended, the oldest first.
    sent: VecDeque<i64>,
    /// Whether the outcome of the sent batches is unknown until it is read back.
    in_doubt: bool,
    /// Batches that were begun and have not ended.
    begun: usize,
    /// Grows when a batch fails: those that were sent behind it are not written, except as `settled`
    /// says.
    chain: u64,
    /// How many of the batches behind a broken connection were written after all.
    settled: usize,
    /// How many of the begun batches fail, because one before them did.
    doomed: usize,
    /// How many of these may have been written, if they were sent.
    doomed_unknown: usize,
    /// Ends when the last batch that was begun has ended.
    last: Option<oneshot::Receiver<()>>,
    /// The number of the next event.
    next_seq: i64,
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

/// The outcome of batches whose answers were lost.
enum Settled {
    /// So many of them were written; the others never will be.
    Written(usize),
    /// The database lacks changes that were acknowledged before them.
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

type Answer = Result<Option<Row>, Error>;

/// The content of a batch.
struct Batch {
    members: Vec<Member>,
    rest: Rest,
    changes: usize,
    process: i32,
}

impl Batch {
    fn of(changes: Vec<Change>, next_seq: &mut i64, process: i32) -> Self {
        let count = changes.len();
        let (members, rest) = batch::sort_out(changes, next_seq);
        Self { members, rest, changes: count, process }
    }

    /// Returns the statements of what is written as sets.
    fn sets(&self) -> Vec<Statement<'_>> {
        let Rest { attempts, check_ins, counters, uses } = &self.rest;
        let sets = [
            batch::attempts_of(self.process, attempts),
            batch::check_ins_of(check_ins),
            batch::counters_of(counters),
            batch::uses_of(uses),
        ];
        sets.into_iter().flatten().collect()
    }
}

/// Returns the members that one statement writes, together.
fn groups(members: &[Member]) -> Vec<&[Member]> {
    members.chunk_by(Member::goes_with).collect()
}

/// Returns the statements of members.
fn statements(members: &[Member], process: i32) -> Vec<Statement<'_>> {
    groups(members).into_iter().map(|group| batch::statement_of(group, process)).collect()
}

/// What is needed to send a batch.
struct Ready {
    open: Open,
    mark: tokio_postgres::Statement,
    prepared: Vec<tokio_postgres::Statement>,
    /// Its number, and that of the batch before it.
    number: i64,
    before: i64,
    /// Whether nothing else was under way.
    alone: bool,
    process: Process,
    chain: u64,
}

/// The questions of a batch that was sent, in their order, and the answers so far.
struct Asked<'a> {
    questions: Vec<Pin<Box<dyn Future<Output = Answer> + Send + 'a>>>,
    answers: Vec<Option<Answer>>,
    since: Instant,
}

/// The answers of a batch.
struct Answers {
    all: Vec<Answer>,
    /// How long the first one took.
    first: Duration,
    /// How long the database worked on it.
    took: Duration,
}

impl<'a> Asked<'a> {
    /// Sends a whole transaction: polls all questions once, in their order.
    async fn send(ready: &'a Ready, statements: &'a [&'a Statement<'a>]) -> Asked<'a> {
        let Ready { open, mark, prepared, number, before, process, .. } = ready;
        let client = &open.client;
        let mut questions: Vec<Pin<Box<dyn Future<Output = Answer> + Send + 'a>>> =
            Vec::with_capacity(prepared.len() + 3);
        questions.push(Box::pin(async move { client.batch_execute("BEGIN").await.map(|()| None) }));
        questions.push(Box::pin(async move {
            let marked: [&(dyn ToSql + Sync); 4] = [&process.id, number, before, &process.name];
            client.query_one(mark, &marked).await.map(Some)
        }));
        for (prepared, statement) in prepared.iter().zip(statements) {
            let values: Vec<_> = statement.values.iter().map(reference).collect();
            questions.push(Box::pin(async move { client.query_opt(prepared, &values).await }));
        }
        questions
            .push(Box::pin(async move { client.batch_execute("COMMIT").await.map(|()| None) }));
        let mut answers = Vec::with_capacity(questions.len());
        poll_fn(|context| {
            for one in &mut questions {
                answers.push(match one.as_mut().poll(context) {
                    Poll::Ready(answer) => Some(answer),
                    Poll::Pending => None,
                });
            }
            Poll::Ready(())
        })
        .await;
        Self { questions, answers, since: Instant::now() }
    }

    /// Awaits one answer after the other: they arrive in the order of the questions.
    async fn answers(self) -> Answers {
        let mut all = Vec::with_capacity(self.questions.len());
        let mut begun = None;
        for (question, answer) in self.questions.into_iter().zip(self.answers) {
            all.push(match answer {
                Some(answer) => answer,
                None => question.await,
            });
            begun.get_or_insert_with(Instant::now);
        }
        let begun = begun.unwrap_or(self.since);
        Answers { all, first: begun - self.since, took: begun.elapsed() }
    }
}

/// The first try to write a batch, made before those before it have ended.
enum First {
    NotMade,
    Failed(Trouble),
    Sent(Ready, Answers),
}

/// Commits a batch and returns one verdict for each change, in their order. An empty batch is a
/// commit like any other: it is counted and confirmed by the standbys. It also confirms everything
/// read before, which precedes it in the database's log.
///
/// Drops `sent` when the next batch may be begun. Batches end in the order in which this is first
/// polled: the next one ends after the returned sender is dropped.
pub(super) async fn commit(
    store: &Inner,
    changes: Vec<Change>,
    sent: impl Send,
) -> (Result<Vec<Verdict>, CommitError>, oneshot::Sender<()>) {
    let (ended, last) = oneshot::channel::<()>();
    let mut writer = store.writer.lock().await;
    let before = writer.last.replace(last);
    writer.begun += 1;
    let process = writer.process.id;
    let batch = Batch::of(changes, &mut writer.next_seq, process);
    let (own, sets) = (statements(&batch.members, process), batch.sets());
    let all: Vec<&Statement<'_>> = own.iter().chain(&sets).collect();
    // If it cannot be sent now, it is sent when the batches before it have ended.
    let alone = writer.begun == 1;
    let ready = if writer.may_send() { Some(writer.ready(store, &all).await) } else { None };
    let answers = {
        let asked = match &ready {
            Some(Ok(ready)) => {
                writer.has_sent(ready);
                Some(Asked::send(ready, &all).await)
            }
            _ => None,
        };
        drop(writer);
        drop(sent);
        match asked {
            Some(asked) => Some(asked.answers().await),
            None => None,
        }
    };
    let first = match (ready, answers) {
        (Some(Ok(ready)), Some(answers)) => First::Sent(ready, answers),
        (Some(Err(trouble)), _) if alone => First::Failed(trouble),
        _ => First::NotMade,
    };
    if let Some(before) = before {
        // Its sender is dropped.
        let _ = before.await;
    }
    let mut writer = store.writer.lock().await;
    (writer.end(store, &batch, first).await, ended)
}

impl Writer {
    pub(super) fn new(process: Process, epoch: i64, timeline: u32) -> Self {
        Self {
            open: None,
            planned: Planned::default(),
            timeline,
            batch: 0,
            highest: 0,
            sent: VecDeque::new(),
            in_doubt: false,
            begun: 0,
            chain: 0,
            settled: 0,
            doomed: 0,
            doomed_unknown: 0,
            last: None,
            next_seq: 1,
            process,
            epoch,
        }
    }

    /// Whether no commit is under way.
    pub(super) const fn is_idle(&self) -> bool {
        self.begun == 0
    }

    /// Returns what the database must hold of this server's commits from now on.
    pub(super) fn watermark(&self) -> Watermark {
        Watermark {
            epoch: self.epoch.cast_unsigned(),
            process: self.process.name.clone(),
            commits: self.batch.cast_unsigned(),
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
                let (begun, chain, last) = (self.begun, self.chain + 1, self.last.take());
                *self = Self { begun, chain, last, ..Self::new(process, epoch, self.timeline) };
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

    /// Whether a batch may be sent now: every batch that was begun before it has been sent, and none
    /// has failed.
    fn may_send(&self) -> bool {
        let unsent = self.begun.saturating_sub(1 + self.sent.len());
        let cancelled = self.open.as_ref().is_some_and(|open| open.line.was_cancelled());
        unsent == 0 && !self.in_doubt && (self.sent.is_empty() || !cancelled)
    }

    /// Prepares the sending of a batch.
    async fn ready(
        &mut self,
        store: &Inner,
        statements: &[&Statement<'_>],
    ) -> Result<Ready, Trouble> {
        let (timeline, under_way) = (self.timeline, !self.sent.is_empty());
        if under_way && self.open.as_ref().is_none_or(|open| open.client.is_closed()) {
            return Err(Trouble::NotSent("the connection has ended".into()));
        }
        let open = self.open(&store.way).await.map_err(Trouble::NotSent)?.clone();
        if open.line.timeline() != timeline {
            return Err(Trouble::Replaced(open.line.timeline()));
        }
        if !under_way {
            open.line.take_cancelled();
        }
        let mut prepared = Vec::with_capacity(statements.len());
        let done = async {
            let mark = open.client.prepare_cached(MARK).await?;
            for statement in statements {
                let types = types(&statement.values);
                prepared.push(open.client.prepare_typed_cached(&statement.sql, &types).await?);
            }
            Ok(mark)
        };
        let mark = match done.await {
            Ok(mark) => mark,
            Err(error) => {
                let error = said(&open.line, &error);
                self.open = None;
                return Err(Trouble::NotSent(error));
            }
        };
        let (number, before) = (self.highest + 1, self.sent.back().copied().unwrap_or(self.batch));
        let (process, chain) = (self.process.clone(), self.chain);
        Ok(Ready { open, mark, prepared, number, before, alone: !under_way, process, chain })
    }

    fn has_sent(&mut self, ready: &Ready) {
        self.highest = ready.number;
        self.sent.push_back(ready.number);
    }

    /// Ends a batch, when all before it have ended.
    async fn end(
        &mut self,
        store: &Inner,
        batch: &Batch,
        first: First,
    ) -> Result<Vec<Verdict>, CommitError> {
        self.begun -= 1;
        if self.doomed > 0 {
            self.doomed -= 1;
            let unknown = self.doomed_unknown > 0 && matches!(first, First::Sent(..));
            self.doomed_unknown = self.doomed_unknown.saturating_sub(1);
            let why = "a batch before it was not written".to_owned();
            return Err(if unknown {
                CommitError::Unknown(why)
            } else {
                CommitError::Refused(why)
            });
        }
        let outcome = self.outcome_of(store, batch, first).await;
        if outcome.is_err() {
            // What was begun meanwhile was decided on a state of the store that may be gone.
            self.doomed = self.begun;
            self.doomed_unknown = if self.in_doubt { self.begun } else { self.settled };
            self.settled = 0;
            self.chain += 1;
        }
        outcome
    }

    async fn outcome_of(
        &mut self,
        store: &Inner,
        batch: &Batch,
        first: First,
    ) -> Result<Vec<Verdict>, CommitError> {
        let members = &batch.members;
        let written = match first {
            First::Sent(ready, answers) if ready.chain == self.chain => {
                let judged = self.judge(&ready, members, answers, store);
                self.write_surely(store, members, &batch.sets(), Some(judged)).await?
            }
            First::Sent(..) if self.settled > 0 => {
                self.settled -= 1;
                Ok(self.read_verdicts(store, members).await?)
            }
            First::Failed(trouble) => {
                self.write_surely(store, members, &batch.sets(), Some(Err(trouble))).await?
            }
            First::NotMade | First::Sent(..) => self.write_now(store, batch).await?,
        };
        let written = match written {
            Ok(written) => written,
            Err(error) if members.is_empty() || !is_of_statement(&error) => {
                return Err(CommitError::Refused(told(&error)));
            }
            Err(error) => self.write_one_by_one(store, batch, &error).await?,
        };
        let mut verdicts = vec![Verdict::Written; batch.changes];
        for (one, verdict) in members.iter().zip(written) {
            set(&mut verdicts, one.place, verdict);
        }
        Ok(verdicts)
    }

    /// Writes a batch that could not be sent before those before it had ended.
    async fn write_now(
        &mut self,
        store: &Inner,
        batch: &Batch,
    ) -> Result<Result<Vec<Verdict>, Error>, CommitError> {
        if self.in_doubt {
            // Its callers have been answered. From here on the outcome is known.
            let settled = self.settle(store, Instant::now() + LOOK).await;
            if let Settled::Behind = settled.map_err(CommitError::Refused)? {
                return Err(self.begin_epoch_after_loss(store).await);
            }
        }
        self.write_surely(store, &batch.members, &batch.sets(), None).await
    }

    /// Writes the changes of a batch, which has failed, one at a time.
    async fn write_one_by_one(
        &mut self,
        store: &Inner,
        batch: &Batch,
        error: &Error,
    ) -> Result<Vec<Verdict>, CommitError> {
        let error = told(error);
        tracing::debug!(error, "a batch failed; writing its changes one at a time");
        let members = &batch.members;
        let mut written = Vec::with_capacity(members.len());
        for one in members {
            let alone = std::slice::from_ref(one);
            let alone = match self.write_surely(store, alone, &[], None).await {
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
        if let Err(error) = self.write_surely(store, &[], &batch.sets(), None).await {
            tracing::warn!(%error, "attempts on codes could not be stored");
        }
        Ok(written)
    }

    /// Writes a transaction, whose first try may have been made. If the connection breaks before it is
    /// committed, sends it again over another. Returns the verdict on each of `members`, or why all was
    /// rolled back.
    async fn write_surely(
        &mut self,
        store: &Inner,
        members: &[Member],
        sets: &[Statement<'_>],
        mut first: Option<Result<Vec<Verdict>, Trouble>>,
    ) -> Result<Result<Vec<Verdict>, Error>, CommitError> {
        let mut last_try = false;
        loop {
            let tried = match first.take() {
                Some(tried) => tried,
                None => self.write(store, members, sets).await,
            };
            let error = match tried {
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
        let own = statements(members, self.process.id);
        let all: Vec<&Statement<'_>> = own.iter().chain(sets).collect();
        let ready = self.ready(store, &all).await?;
        self.has_sent(&ready);
        let answers = Asked::send(&ready, &all).await.answers().await;
        self.judge(&ready, members, answers, store)
    }

    /// Reads the answers of the oldest batch that was sent. Returns the verdict on each of `members`.
    fn judge(
        &mut self,
        ready: &Ready,
        members: &[Member],
        answers: Answers,
        store: &Inner,
    ) -> Result<Vec<Verdict>, Trouble> {
        let Answers { all, first, took } = answers;
        let judged = self.judged(&ready.open.line, members, all);
        match &judged {
            Ok(_) => {
                self.batch = ready.number;
                self.sent.pop_front();
                store.note_pace(took, ready.alone.then_some(first));
            }
            Err(Trouble::Broken(_)) => self.chain += 1,
            Err(_) => {
                self.sent.clear();
                self.chain += 1;
            }
        }
        judged
    }

    fn judged(
        &mut self,
        line: &Line,
        members: &[Member],
        answers: Vec<Answer>,
    ) -> Result<Vec<Verdict>, Trouble> {
        let last = answers.len() - 1;
        let (mut written, mut epoch) = (Vec::with_capacity(members.len()), self.epoch);
        let mut groups = groups(members).into_iter();
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
                    return Err(Trouble::Broken(said(line, &error)));
                }
                Err(error) if place == 1 && error.code().is_some_and(|c| c.code() == "IP001") => {
                    return Err(Trouble::Behind);
                }
                // The database reported an error before COMMIT, so COMMIT was a rollback.
                Err(error) if place < last && error.as_db_error().is_some() => {
                    if !is_of_statement(&error) {
                        self.open = None;
                    }
                    return Err(Trouble::RolledBack(error));
                }
                Err(error) => {
                    self.open = None;
                    return Err(Trouble::Broken(said(line, &error)));
                }
            }
        }
        if line.was_cancelled() {
            // The warning may be that of a batch behind it.
            self.open = None;
            return Err(Trouble::Broken("the wait for a standby was cancelled".into()));
        }
        self.epoch = epoch;
        Ok(written)
    }

    /// Finds out after a broken connection which of `members`, the changes of the oldest batch that
    /// was sent, were written. Returns `None` if the batch was not written and never will be.
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
            Settled::Written(0) => Ok(None),
            Settled::Written(count) => {
                self.settled = count - 1;
                self.read_verdicts(store, members).await.map(Some)
            }
            Settled::Behind => Err(self.begin_epoch_after_loss(store).await),
        }
    }

    /// Returns which of `members` were written, as the verdicts of a batch that was written.
    async fn read_verdicts(
        &mut self,
        store: &Inner,
        members: &[Member],
    ) -> Result<Vec<Verdict>, CommitError> {
        let seqs: Vec<i64> = members.iter().flat_map(|one| one.seqs.clone()).collect();
        let found = self.events(store, &seqs).await.map_err(CommitError::Unknown)?;
        let counts = self.counts(store, members).await.map_err(CommitError::Unknown)?;
        let verdict = |one: &Member| {
            // No caller waits for a change without an event.
            if !one.seqs.is_empty() && !found.iter().any(|seq| one.seqs.contains(seq)) {
                return Verdict::Conflict;
            }
            let used = |one: &Counted| counts.get(&(one.key, one.window_end)).copied();
            let used = one.limits().and_then(|limits| limits.iter().map(used).collect());
            used.map_or(Verdict::Written, Verdict::Charged)
        };
        Ok(members.iter().map(verdict).collect())
    }

    /// Returns the counts of the limits of `members`, as they are now.
    async fn counts(
        &mut self,
        store: &Inner,
        members: &[Member],
    ) -> Result<HashMap<(u64, Timestamp), u32>, String> {
        let limits = members.iter().filter_map(Member::limits).flatten();
        let keys: Vec<i64> = limits.map(|one| signed(one.key)).collect();
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let Open { client, line } = self.open(&store.way).await?;
        let read = "SELECT key, window_end, policy, used FROM counter WHERE key = ANY ($1)";
        let rows = client.query(read, &[&keys]).await.map_err(|error| said(line, &error))?;
        let count = |row: &Row| {
            let counter = counter(row).map_err(|error| error.0)?;
            Ok(((counter.key, counter.window_end), counter.used))
        };
        rows.iter().map(count).collect()
    }

    async fn events(&mut self, store: &Inner, seqs: &[i64]) -> Result<Vec<i64>, String> {
        let process = self.process.id;
        let Open { client, line } = self.open(&store.way).await?;
        let read = "SELECT seq FROM event WHERE process = $1 AND seq = ANY ($2)";
        let rows = client.query(read, &[&process, &seqs]).await;
        let rows = rows.map_err(|error| said(line, &error))?;
        rows.iter().map(|row| row.try_get(0).map_err(|error| error.to_string())).collect()
    }

    /// Finds out the outcome of the batches that were sent, and fixes it.
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
        let process = self.process.clone();
        // After so many of them were written, the number is this. It is raised unless all were.
        let mut numbers: Vec<i64> =
            std::iter::once(self.batch).chain(self.sent.iter().copied()).collect();
        let (count, all) = (self.sent.len(), numbers.pop().unwrap_or(self.batch));
        let raised = self.highest;
        let Open { client, line } = self.open(&store.way).await?;
        line.take_cancelled();
        let asked: [&(dyn ToSql + Sync); 4] = [&process.id, &numbers, &raised, &process.name];
        let row = client.query_opt(FENCE_BATCHES, &asked).await;
        let row = row.map_err(|error| said(line, &error))?;
        if line.take_cancelled() {
            return Err("the wait for a standby was cancelled".into());
        }
        let Some(row) = row else { return Ok(Settled::Behind) };
        let found: i64 = row.try_get(0).map_err(|error| told(&error))?;
        let place = |written: usize| raised + 1 + i64::try_from(written).unwrap_or(i64::MAX);
        let written = if found == all {
            count
        } else if let Some(written) = numbers.iter().position(|number| *number == found) {
            written
        } else if let Some(written) = (0..count).find(|written| place(*written) == found) {
            // An earlier look has raised it, and its answer was lost.
            written
        } else {
            return Ok(Settled::Behind);
        };
        self.batch = if written == count { all } else { place(written) };
        self.highest = self.highest.max(place(count));
        self.sent.clear();
        Ok(Settled::Written(written))
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
