//! The audit log of several servers: the order of all events, and the feed of them.
//!
//! A commit writes its events in the order of their process. Their place in the log, and the hash
//! that chains them, is settled later by the first server that finds events without a place; the
//! other servers leave it to that one. So the log is a moment behind, and only its readers wait for
//! the order: no installer and no agent does.

use super::rows::{
    EVENT, event, event_heard_of, get_hash, is_understood, place, rows, signed, time,
};
use super::{Inner, counting, no_connection, peer_check_ins, unreadable};
use crate::{Attempts, Entry, OUT_OF_ORDER, ReadError};
use deadpool_postgres::{Client, GenericClient};
use iptunnel_domain::Timestamp;
use iptunnel_domain::audit::{Action, Actor, ChainHash, Event, Head};
use iptunnel_domain::code::CodeHash;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, ToSql};

/// A lock number that no other program on the database is likely to use: `IPTunlog` in ASCII.
const LOCK: i64 = 0x4950_5475_6E6C_6F67;
/// How often servers look for new events. A revocation must take effect everywhere within a second.
const EVERY: Duration = Duration::from_millis(100);
/// The pause after the database did not answer.
const LATER: Duration = Duration::from_millis(300);
/// How many events of one process get their places at once.
const STEP: i64 = 500;
/// Rows of `link` that are read at once.
const LINKS: i64 = 100;
/// The last event of a process that is in the log. It is kept in a table that no commit writes, so
/// a server that hangs while it settles the order delays no commit.
const CHAINED: &str = "coalesce((SELECT seq FROM chained WHERE chained.process = process.id), 0)";
/// The last event of a process: one index look-up for each. With a question whether any event
/// follows the last one chained, a plan made while the table is small would later read all of it.
const LAST: &str = "(SELECT coalesce(max(seq), 0) FROM event WHERE event.process = process.id)";

fn hash(row: &Row, column: &str) -> Result<ChainHash, ReadError> {
    let bytes: &[u8] = row.try_get(column).map_err(unreadable)?;
    bytes.try_into().map(ChainHash).map_err(|_| ReadError(format!("{column} is not a hash")))
}

fn number(row: &Row, column: &str) -> Result<u64, ReadError> {
    row.try_get(column).map(i64::cast_unsigned).map_err(unreadable)
}

fn encoded(event: &Event) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    event.encode(&mut bytes);
    bytes
}

/// Reads one row with a statement that is prepared once per connection.
async fn answer<T: for<'row> FromSql<'row>>(
    client: &impl GenericClient,
    sql: &str,
    values: &[&(dyn ToSql + Sync)],
) -> Result<T, ReadError> {
    let statement = client.prepare_cached(sql).await.map_err(unreadable)?;
    let row = client.query_one(&statement, values).await.map_err(unreadable)?;
    row.try_get(0).map_err(unreadable)
}

/// Returns the number and hash of the last entry.
pub(super) async fn head(client: &impl GenericClient) -> Result<Head, ReadError> {
    let sql = "SELECT last, after FROM link ORDER BY first DESC LIMIT 1";
    rows(client, sql, &[]).await?.first().map_or_else(
        || Ok(Head::default()),
        |row| Ok(Head { entries: number(row, "last")?, hash: hash(row, "after")? }),
    )
}

/// Gives every event without a place its place in the log, before the log is read. If another
/// server is doing this, waits for it.
pub(super) async fn settle(client: &mut Client) -> Result<(), ReadError> {
    let wait = turn("true FROM pg_advisory_xact_lock($1)");
    // A turn settles all events that existed when it began, unless a process had more than one step
    // of them. Events that arrive meanwhile are not waited for: under load that would never end.
    while settle_some(client, &wait).await?.len() >= STEP as usize {}
    Ok(())
}

/// Does nothing if another server is settling the order.
const TRY: &str = "pg_try_advisory_xact_lock($1)";

/// Takes the lock with `lock`. A server that hangs while it holds the lock loses it after a second.
/// No event is delivered in that time, and a revocation must take effect everywhere in about a
/// second.
fn turn(lock: &str) -> String {
    let soon = "set_config('idle_in_transaction_session_timeout', '1000', true)";
    format!("SELECT locked FROM (SELECT {lock}) AS turn (locked), {soon}")
}

/// Gives some events their places. Returns none if there is nothing to do, or if `turn` does not
/// get the lock.
async fn settle_some(client: &mut Client, turn: &str) -> Result<Vec<Entry>, ReadError> {
    let pending =
        format!("SELECT EXISTS (SELECT FROM process WHERE NOT ended AND {CHAINED} < {LAST})");
    if !answer::<bool>(client, &pending, &[]).await? {
        return Ok(Vec::new());
    }
    let step = client.transaction().await.map_err(unreadable)?;
    if !answer::<bool>(&step, turn, &[&LOCK]).await? {
        return Ok(Vec::new());
    }
    let before = head(&step).await?;
    let sql = format!(
        "SELECT {EVENT} FROM process CROSS JOIN LATERAL (
             SELECT * FROM event WHERE event.process = process.id AND seq > {CHAINED}
             ORDER BY seq LIMIT $1) AS of_process
         WHERE NOT process.ended
         ORDER BY max(at) OVER (PARTITION BY process ORDER BY seq), process, seq"
    );
    let (mut after, mut latest, mut settled) = (before, Timestamp(0), Vec::new());
    let (mut processes, mut seqs) = (Vec::new(), Vec::new());
    let mut not_understood = HashSet::new();
    for row in rows(&step, &sql, &[&STEP]).await? {
        let (process, seq) = place(&row)?;
        // Only a newer program can chain an event of a newer kind, and the later events of that
        // server too.
        if not_understood.contains(&process) || !is_understood(&row)? {
            not_understood.insert(process);
            continue;
        }
        let event = event(&row)?;
        after = after.after(&encoded(&event));
        latest = Timestamp(latest.0.max(event.at.0));
        processes.push(process);
        seqs.push(seq);
        settled.push(Entry { event, head: after });
    }
    if settled.is_empty() {
        return Ok(settled);
    }
    // A time that is far in the future, from a wrong clock, does not stay the latest.
    let link = "INSERT INTO link (first, last, processes, seqs, before, after, latest)
         SELECT $1, $2, $3, $4, $5, $6, greatest($7, (
             SELECT CASE WHEN latest < clock_timestamp() + interval '1 minute' THEN latest END
             FROM link ORDER BY first DESC LIMIT 1))";
    let (first, last) = (signed(before.entries + 1), signed(after.entries));
    let (hash_before, hash_after) = (&before.hash.0[..], &after.hash.0[..]);
    let values: [&(dyn ToSql + Sync); 7] =
        [&first, &last, &processes, &seqs, &hash_before, &hash_after, &time(latest)];
    rows(&step, link, &values).await?;
    let chained = "INSERT INTO chained (process, seq)
         SELECT process, max(seq) FROM unnest($1::integer[], $2::bigint[])
             AS settled (process, seq) GROUP BY process
         ON CONFLICT (process) DO UPDATE SET seq = excluded.seq";
    rows(&step, chained, &[&processes, &seqs]).await?;
    step.commit().await.map_err(unreadable)?;
    Ok(settled)
}

/// Reads the entries of the links that `links` selects, in their order.
async fn entries(
    client: &impl GenericClient,
    links: &str,
    from: i64,
    event: fn(&Row) -> Result<Event, ReadError>,
) -> Result<Vec<Entry>, ReadError> {
    let sql = format!(
        "SELECT first, before, {EVENT} FROM ({links}) AS link
         CROSS JOIN LATERAL unnest(processes, seqs) WITH ORDINALITY AS member (p, s, place)
         CROSS JOIN LATERAL (SELECT * FROM event WHERE process = p AND seq = s LIMIT 1) AS event
         ORDER BY first, member.place"
    );
    let rows = rows(client, &sql, &[&from, &LINKS]).await?;
    let (mut entries, mut head): (Vec<Entry>, Head) =
        (Vec::with_capacity(rows.len()), Head::default());
    let mut link = 0;
    for row in &rows {
        let first = number(row, "first")?;
        if first != link {
            link = first;
            head = Head { entries: first.saturating_sub(1), hash: hash(row, "before")? };
        }
        let event = event(row)?;
        head = head.after(&encoded(&event));
        entries.push(Entry { event, head });
    }
    Ok(entries)
}

/// Reads entries from number `first` on, and perhaps some before it. Returns none if there are none
/// from `first` on.
pub(super) async fn page_from(
    client: &impl GenericClient,
    first: i64,
    event: fn(&Row) -> Result<Event, ReadError>,
) -> Result<Vec<Entry>, ReadError> {
    // The link that contains `first` begins at or before it, and links do not overlap.
    let links = "SELECT * FROM link WHERE last >= $1 AND first >= coalesce(
             (SELECT max(first) FROM link WHERE first <= $1), 0)
         ORDER BY first LIMIT $2";
    entries(client, links, first, event).await
}

/// Reads entries before number `before`, the oldest first, and perhaps some after it.
pub(super) async fn page_before(
    client: &impl GenericClient,
    before: i64,
) -> Result<Vec<Entry>, ReadError> {
    let links = "SELECT * FROM link WHERE first < $1 ORDER BY first DESC LIMIT $2";
    entries(client, links, before, event).await
}

pub(super) async fn number_at(
    client: &impl GenericClient,
    at: Timestamp,
) -> Result<u64, ReadError> {
    let at = time(Timestamp(at.0.saturating_sub(OUT_OF_ORDER)));
    let sql = "SELECT first FROM link WHERE latest >= $1 ORDER BY latest, first LIMIT 1";
    match rows(client, sql, &[&at]).await?.first() {
        Some(row) => number(row, "first"),
        None => Ok(head(client).await?.entries.max(1)),
    }
}

/// Reads the attempts on each of `codes`, in their order.
pub(super) async fn attempts(
    client: &impl GenericClient,
    codes: &[CodeHash],
) -> Result<Vec<Attempts>, ReadError> {
    let keys: Vec<&[u8]> = codes.iter().map(|code| &code.0.0[..]).collect();
    let mut tried: HashMap<CodeHash, Attempts> = HashMap::new();
    let counts = "SELECT code, tried FROM attempts_of_code WHERE code = ANY ($1)";
    for row in rows(client, counts, &[&keys]).await? {
        let code = CodeHash(get_hash(&row, "code")?);
        tried.insert(code, Attempts { kept: Vec::new(), more: number(&row, "tried")? });
    }
    if !tried.is_empty() {
        let sql =
            format!("SELECT {EVENT} FROM attempt WHERE code = ANY ($1) ORDER BY at, process, seq");
        for row in rows(client, &sql, &[&keys]).await? {
            let event = event(&row)?;
            if let Some(attempts) = event.code.and_then(|code| tried.get_mut(&code)) {
                attempts.more = attempts.more.saturating_sub(1);
                attempts.kept.push(event);
            }
        }
    }
    Ok(codes.iter().map(|code| tried.remove(code).unwrap_or_default()).collect())
}

/// How far the feed of this server has come.
pub(super) struct Published {
    /// The last entry of the log.
    entry: u64,
    /// The ends of the links that were published lately, the newest last. A promoted standby may
    /// lack the newest links of its old primary and continue with other entries under the same
    /// numbers.
    lately: VecDeque<Head>,
    /// The timeline on which they were read.
    timeline: u32,
    /// The last published attempt of each process.
    attempts: HashMap<i32, i64>,
}

/// How many ends of links are kept. Under load there are about ten a second, so they reach back for
/// longer than a standby can be cut off before commits wait for it.
const LATELY: usize = 1000;

impl Published {
    /// Begins at the present end of the log: everything before counts as published.
    pub(super) async fn now(client: &Client, timeline: u32) -> Result<Self, ReadError> {
        let head = head(client).await?;
        let sql = "SELECT id, coalesce((SELECT max(seq) FROM attempt WHERE process = id), 0)
             FROM process WHERE NOT ended";
        let rows = rows(client, sql, &[]).await?;
        let last = |row: &Row| {
            Ok((row.try_get(0).map_err(unreadable)?, row.try_get(1).map_err(unreadable)?))
        };
        let attempts = rows.iter().map(last).collect::<Result<_, ReadError>>()?;
        let (entry, lately) = (head.entries, VecDeque::from([head]));
        Ok(Self { entry, lately, timeline, attempts })
    }

    fn has_published(&mut self, end: Head) {
        self.entry = end.entries;
        self.lately.push_back(end);
        if self.lately.len() > LATELY {
            self.lately.pop_front();
        }
    }

    /// After another primary took over, goes back to the last entry that the log still has as it
    /// was published. The entries after it are new. Returns `false` if that entry is no longer
    /// known.
    pub(super) async fn go_back(
        &mut self,
        client: &Client,
        timeline: u32,
    ) -> Result<bool, ReadError> {
        if timeline == self.timeline {
            return Ok(true);
        }
        while let Some(end) = self.lately.back() {
            let sql = "SELECT after FROM link WHERE last = $1";
            let is_there = match rows(client, sql, &[&signed(end.entries)]).await?.first() {
                Some(row) => hash(row, "after")? == end.hash,
                None => end.entries == 0,
            };
            if is_there {
                (self.entry, self.timeline) = (end.entries, timeline);
                return Ok(true);
            }
            self.lately.pop_back();
        }
        Ok(false)
    }

    /// Returns the events of these entries that follow the last published one.
    fn new_of(&mut self, settled: Vec<Entry>) -> Vec<Event> {
        let (mut events, mut end) = (Vec::with_capacity(settled.len()), None);
        for entry in settled {
            if entry.head.entries == self.entry + 1 {
                self.entry += 1;
                end = Some(entry.head);
                events.push(entry.event);
            }
        }
        if let Some(end) = end {
            self.has_published(end);
        }
        events
    }

    /// Returns the events entered into the log since the last call. They count as published once
    /// all of them are read.
    pub(super) async fn entered(&mut self, client: &Client) -> Result<Vec<Event>, ReadError> {
        if head(client).await?.entries <= self.entry {
            return Ok(Vec::new());
        }
        let mut page = page_from(client, signed(self.entry + 1), event_heard_of).await?;
        page.retain(|entry| entry.head.entries > self.entry);
        if let Some(last) = page.last() {
            self.has_published(last.head);
        }
        Ok(page.into_iter().map(|entry| entry.event).collect())
    }

    /// Returns the attempts since the last call. They count as published once all of them are read.
    async fn attempted(&mut self, client: &Client) -> Result<Vec<Event>, ReadError> {
        let sql = format!(
            "SELECT {EVENT} FROM process
             LEFT JOIN unnest($1::integer[], $2::bigint[]) AS told (id, last) USING (id)
             CROSS JOIN LATERAL (SELECT * FROM attempt
                 WHERE attempt.process = process.id AND seq > coalesce(told.last, 0)
                 ORDER BY seq LIMIT $3) AS of_process
             WHERE NOT ended ORDER BY process, seq"
        );
        let ids: Vec<i32> = self.attempts.keys().copied().collect();
        let last: Vec<i64> = self.attempts.values().copied().collect();
        let rows = rows(client, &sql, &[&ids, &last, &STEP]).await?;
        let events = rows.iter().map(event_heard_of).collect::<Result<Vec<_>, _>>()?;
        let places = rows.iter().map(place).collect::<Result<Vec<_>, _>>()?;
        self.attempts.extend(places);
        Ok(events)
    }
}

/// Publishes every event of every server, for as long as the store exists.
pub(super) async fn follow(store: Weak<Inner>) {
    let mut rounds = 0u64;
    loop {
        let Some(inner) = store.upgrade() else { return };
        let told = tell(&inner, rounds).await;
        drop(inner);
        rounds += 1;
        let pause = match told {
            Ok(()) => EVERY,
            Err(error) => {
                tracing::debug!(%error, "the events of other servers cannot be read; retrying");
                LATER
            }
        };
        tokio::time::sleep(pause).await;
    }
}

impl Inner {
    /// Publishes events to the listener, except the beginning of an epoch: a server that began it at its
    /// start, or started after it, is already in it.
    fn tell(&self, events: &[Event]) {
        let others = events.iter().filter(|event| event.action != Action::StoreFenced);
        others.for_each(|event| self.feed.tell(event));
    }
}

/// Rounds between two updates of `seen_at`.
const ALIVE: u64 = 100;

async fn tell(inner: &Inner, rounds: u64) -> Result<(), ReadError> {
    let mut client = inner.pool.get().await.map_err(|error| no_connection(&error))?;
    if rounds.is_multiple_of(ALIVE) {
        let alive = "UPDATE process SET seen_at = clock_timestamp(), ended = false WHERE id = $1";
        client.execute(alive, &[&inner.process()]).await.map_err(unreadable)?;
        let ended = format!(
            "UPDATE process SET ended = true WHERE NOT ended AND {CHAINED} >= {LAST}
             AND seen_at < clock_timestamp() - interval '1 hour'"
        );
        client.execute(&ended, &[]).await.map_err(unreadable)?;
        // A `seen_at` in the future, from a wrong clock, is reset, so that the hour counts from
        // now.
        let ahead = "UPDATE process SET seen_at = clock_timestamp()
             WHERE seen_at > clock_timestamp() + interval '1 minute'";
        client.execute(ahead, &[]).await.map_err(unreadable)?;
        peer_check_ins::forget(&client).await?;
        counting::forget(&client).await?;
        if let Ok(mut counting) = inner.counting.try_lock() {
            counting.settle(inner).await?;
        }
    }
    // An idle server must also notice that the database was replaced by an earlier state of itself.
    if let Ok(mut writer) = inner.writer.try_lock()
        && writer.is_idle()
    {
        writer.check_watermark(&client, inner).await?;
    }
    let epoch = super::epoch::present(&client).await.map_err(unreadable)?;
    let mut told = inner.told.lock().await;
    let follows = told.go_back(&client, inner.way.newest()).await?;
    if epoch > inner.epoch.load(Ordering::Relaxed) || !follows {
        let now = Timestamp(0);
        inner.feed.tell(&Event::new(Action::StoreFenced, Actor::Administrator, now, None));
        return Ok(());
    }
    loop {
        let settled = settle_some(&mut client, &turn(TRY)).await?;
        if settled.is_empty() {
            break;
        }
        inner.tell(&told.new_of(settled));
    }
    inner.tell(&told.entered(&client).await?);
    inner.tell(&told.attempted(&client).await?);
    Ok(())
}
