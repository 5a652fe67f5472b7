//! The audit log over several servers: the order of all events, and whoever hears of them.
//!
//! Events are written with what they describe, and stand in the order of their process. Which place
//! they have in the log, and the hash that chains them, is settled by whichever server first finds
//! them without one; the others leave it to that one. So the log is a moment behind, and only whoever
//! reads it waits for its order: no installer and no agent does.

use super::rows::{EVENT, event, event_heard_of, get_hash, is_understood, place, signed, time};
use super::{Inner, counting, no_connection, peer_check_ins, unreadable};
use crate::{Attempts, Entry, ReadError};
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

/// Any number that no other program on the database is likely to lock: `IPTunlog` in ASCII.
const LOCK: i64 = 0x4950_5475_6E6C_6F67;
/// How often servers look for what has happened. A revocation must bind everywhere within a second.
const EVERY: Duration = Duration::from_millis(100);
/// After the database did not answer.
const LATER: Duration = Duration::from_millis(300);
/// Events of one process that are given their places at once.
const STEP: i64 = 500;
/// Rows of links read at once.
const LINKS: i64 = 100;
/// The last event of a process that stands in the log. Kept in a table that no commit writes: a server
/// that stands still while it settles holds up nobody who commits.
const CHAINED: &str = "coalesce((SELECT seq FROM chained WHERE chained.process = process.id), 0)";
/// The last event of a process: one look into the index for each. Were it asked whether there is any
/// behind the last one chained, a plan made while the table is small would go on to read all of it.
const LAST: &str = "(SELECT coalesce(max(seq), 0) FROM event WHERE event.process = process.id)";
/// How far times may be out of order in the log: see the embedded engine.
const SLACK: u64 = 60;

fn hash(row: &Row, column: &str) -> Result<ChainHash, ReadError> {
    let bytes: &[u8] = row.try_get(column).map_err(unreadable)?;
    bytes.try_into().map(ChainHash).map_err(|_| ReadError(format!("{column} is no hash")))
}

fn number(row: &Row, column: &str) -> Result<u64, ReadError> {
    row.try_get(column).map(i64::cast_unsigned).map_err(unreadable)
}

fn encoded(event: &Event) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    event.encode(&mut bytes);
    bytes
}

/// Reads with a statement that is prepared once a connection.
pub(super) async fn rows(
    client: &impl GenericClient,
    sql: &str,
    values: &[&(dyn ToSql + Sync)],
) -> Result<Vec<Row>, ReadError> {
    let statement = client.prepare_cached(sql).await.map_err(unreadable)?;
    client.query(&statement, values).await.map_err(unreadable)
}

/// The same where one row is the answer.
async fn answer<T: for<'row> FromSql<'row>>(
    client: &impl GenericClient,
    sql: &str,
    values: &[&(dyn ToSql + Sync)],
) -> Result<T, ReadError> {
    let statement = client.prepare_cached(sql).await.map_err(unreadable)?;
    let row = client.query_one(&statement, values).await.map_err(unreadable)?;
    row.try_get(0).map_err(unreadable)
}

/// How far the log goes.
pub(super) async fn head(client: &impl GenericClient) -> Result<Head, ReadError> {
    let sql = "SELECT last, after FROM link ORDER BY first DESC LIMIT 1";
    rows(client, sql, &[]).await?.first().map_or_else(
        || Ok(Head::default()),
        |row| Ok(Head { entries: number(row, "last")?, hash: hash(row, "after")? }),
    )
}

/// Gives every event that has none its place in the log, for whoever is about to read it: where
/// another server is at it, that is waited for.
pub(super) async fn settle(client: &mut Client) -> Result<(), ReadError> {
    let wait = turn("true FROM pg_advisory_xact_lock($1)");
    // A turn takes up all that was there when it began, unless a process has had more than a step of it:
    // what comes meanwhile is not waited for, or under load there would be no end.
    while settle_some(client, &wait).await?.len() >= STEP as usize {}
    Ok(())
}

/// Leaves the log to another server that is at it.
const TRY: &str = "pg_try_advisory_xact_lock($1)";

/// Takes a turn as `lock` says. A server that stands still in it loses it after a second, in which nothing
/// that happens is heard of: a revocation must bind everywhere in about that time.
fn turn(lock: &str) -> String {
    let soon = "set_config('idle_in_transaction_session_timeout', '1000', true)";
    format!("SELECT locked FROM (SELECT {lock}) AS turn (locked), {soon}")
}

/// Gives some events their places; none where there is nothing to do here, or not for whoever takes
/// `turn`.
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
        // What a newer program says is for its like to chain, and what that server did since as well.
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
    // A time from a future that never came does not stay the latest.
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

/// Reads entries of some links, whose rows `links` selects, in their order.
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

/// Entries from number `first` on, and perhaps some before it; none where there are none from it on.
pub(super) async fn page_from(
    client: &impl GenericClient,
    first: i64,
    event: fn(&Row) -> Result<Event, ReadError>,
) -> Result<Vec<Entry>, ReadError> {
    // The link that holds it begins before it, and links do not overlap.
    let links = "SELECT * FROM link WHERE last >= $1 AND first >= coalesce(
             (SELECT max(first) FROM link WHERE first <= $1), 0)
         ORDER BY first LIMIT $2";
    entries(client, links, first, event).await
}

/// Entries before number `before`, the oldest first, and perhaps some behind it.
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
    let at = time(Timestamp(at.0.saturating_sub(SLACK)));
    let sql = "SELECT first FROM link WHERE latest >= $1 ORDER BY latest, first LIMIT 1";
    match rows(client, sql, &[&at]).await?.first() {
        Some(row) => number(row, "first"),
        None => Ok(head(client).await?.entries.max(1)),
    }
}

/// What was tried on each of `codes`, in their order.
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

/// How far whoever follows has been told.
pub(super) struct Published {
    /// The last entry of the log.
    entry: u64,
    /// Where links ended that were told lately, the newest last: a promoted standby may lack the end of
    /// what its primary showed, and go on otherwise under the same numbers.
    lately: VecDeque<Head>,
    /// The timeline on which that was so.
    timeline: u32,
    /// The last attempt of each process.
    attempts: HashMap<i32, i64>,
}

/// Ends of links that are remembered: some ten to a second under load, so that they reach back for
/// longer than a standby can be cut off before commits wait for it.
const LATELY: usize = 1000;

impl Published {
    /// Everything so far counts as told.
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

    fn has_told(&mut self, end: Head) {
        self.entry = end.entries;
        self.lately.push_back(end);
        if self.lately.len() > LATELY {
            self.lately.pop_front();
        }
    }

    /// Goes back to where the log is still what was told, where another primary has taken over: what
    /// stands there behind it is news. `false` where that is not known any more.
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

    /// What of these entries has not been told, where they follow on what has.
    fn new_of(&mut self, settled: Vec<Entry>) -> Vec<Event> {
        let (mut news, mut end) = (Vec::with_capacity(settled.len()), None);
        for entry in settled {
            if entry.head.entries == self.entry + 1 {
                self.entry += 1;
                end = Some(entry.head);
                news.push(entry.event);
            }
        }
        if let Some(end) = end {
            self.has_told(end);
        }
        news
    }

    /// What has been entered into the log since. It counts as told once all of it is read.
    pub(super) async fn entered(&mut self, client: &Client) -> Result<Vec<Event>, ReadError> {
        if head(client).await?.entries <= self.entry {
            return Ok(Vec::new());
        }
        let mut page = page_from(client, signed(self.entry + 1), event_heard_of).await?;
        page.retain(|entry| entry.head.entries > self.entry);
        if let Some(last) = page.last() {
            self.has_told(last.head);
        }
        Ok(page.into_iter().map(|entry| entry.event).collect())
    }

    /// What has been tried since. The same.
    async fn tried(&mut self, client: &Client) -> Result<Vec<Event>, ReadError> {
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
        let news = rows.iter().map(event_heard_of).collect::<Result<Vec<_>, _>>()?;
        let places = rows.iter().map(place).collect::<Result<Vec<_>, _>>()?;
        self.attempts.extend(places);
        Ok(news)
    }
}

/// Tells whoever follows of everything that happens, on every server, for as long as the store
/// exists.
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
                tracing::debug!(%error, "what happens on other servers is not known");
                LATER
            }
        };
        tokio::time::sleep(pause).await;
    }
}

impl Inner {
    /// An epoch that began is not news by its entry in the log: whoever began it at its start, or
    /// started after, lives in it already.
    fn tell(&self, news: &[Event]) {
        let others = news.iter().filter(|event| event.action != Action::StoreFenced);
        others.for_each(|event| self.feed.tell(event));
    }
}

/// Rounds between two signs of life.
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
        // Heard of at a time that never came: from now on an hour counts for it as well.
        let ahead = "UPDATE process SET seen_at = clock_timestamp()
             WHERE seen_at > clock_timestamp() + interval '1 minute'";
        client.execute(ahead, &[]).await.map_err(unreadable)?;
        peer_check_ins::forget(&client).await?;
        counting::forget(&client).await?;
        if let Ok(mut counting) = inner.counting.try_lock() {
            counting.settle(inner).await?;
        }
    }
    // An idle server must notice, too, that the database has become an earlier one.
    if let Ok(mut writer) = inner.writer.try_lock() {
        writer.hold_against(&client, inner).await?;
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
    inner.tell(&told.tried(&client).await?);
    Ok(())
}
