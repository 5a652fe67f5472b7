//! The content of a batch: changes in the order in which they are written, changes of the same kind
//! side by side, and rows that are written as sets.

use super::charge::{self, Counted};
use super::rows::{signed, time};
use super::statement::{Part, Statement, each, told_of, value};
use crate::{ATTEMPTS, Change, CheckIn, Counted as Limit, Counter, Verdict, Write};
use iptunnel_domain::Timestamp;
use iptunnel_domain::access::TokenNumber;
use iptunnel_domain::activation::ActivationNumber;
use iptunnel_domain::audit::Event;
use iptunnel_domain::code::{CodeHash, CodeNumber};
use iptunnel_domain::server::{ServerId, ServerNumber};
use std::collections::HashMap;
use std::ops::Range;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

/// A change of a batch.
pub(super) struct Member {
    /// Its place in the batch.
    pub(super) place: usize,
    /// How many earlier changes of the batch concern the same record: it comes after them.
    round: usize,
    /// The shape of its writes. Changes of a round with the same shape are written by one
    /// statement.
    shape: Vec<Part>,
    about: About,
    change: Change,
    /// The numbers of its events.
    pub(super) seqs: Range<i64>,
}

impl Member {
    /// Returns the limits that its charge counts against.
    pub(super) fn limits(&self) -> Option<&[Limit]> {
        self.change.limits()
    }

    /// Returns whether one statement writes both.
    pub(super) fn goes_with(&self, other: &Self) -> bool {
        self.round == other.round && self.shape == other.shape
    }

    /// New servers stay in the order of their arrival, by which they are numbered.
    fn order(&self) -> (usize, &[Part], Option<About>) {
        let new =
            matches!(self.about, About::Server(_)) && self.shape.first() == Some(&Part::NewServer);
        (self.round, &self.shape, (!new).then_some(self.about))
    }
}

/// The record that a change concerns. Changes of the same record depend on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum About {
    Code(CodeHash),
    Server(ServerId),
    /// A deletion. No other change concerns it, because no live record is deleted.
    ForgottenCode(CodeNumber),
    ForgottenActivation(ActivationNumber),
    /// Whoever deletes a server lets other commands on it wait.
    ForgottenServer(ServerNumber),
    AccessToken(TokenNumber),
    Settings,
    /// It depends on nothing.
    Nothing,
}

/// The writes of a batch that are written as sets.
#[derive(Default)]
pub(super) struct Rest {
    /// With their sequence numbers.
    pub(super) attempts: Vec<(i64, Event)>,
    pub(super) check_ins: Vec<CheckIn>,
    pub(super) counters: Vec<Counter>,
    pub(super) uses: Vec<(TokenNumber, Timestamp)>,
}

impl Rest {
    /// Moves the writes without guards out of a change and keeps the others.
    fn take_from(&mut self, change: Change) -> Change {
        let keep = |write| {
            match write {
                Write::Attempt(event) => self.attempts.push((0, event)),
                Write::CheckIns(seen) => self.check_ins.extend(seen),
                Write::Counters(rows) => {
                    self.counters.extend(rows.into_iter().filter_map(|row| row.counter));
                }
                Write::TokenUses(uses) => self.uses.extend(uses),
                write => return Some(write),
            }
            None
        };
        Change(change.0.into_iter().filter_map(keep).collect())
    }
}

fn about(change: &Change) -> About {
    let of = |write: &Write| match write {
        Write::Code(code) => Some(About::Code(code.hash)),
        Write::Activation(activation) => Some(About::Code(activation.code)),
        Write::Server(server) => Some(About::Server(server.id)),
        Write::ForgetCode(number, _) => Some(About::ForgottenCode(*number)),
        Write::ForgetActivation(number, _) => Some(About::ForgottenActivation(*number)),
        Write::ForgetServer(number, _) => Some(About::ForgottenServer(*number)),
        Write::AccessToken(token) => Some(About::AccessToken(token.number)),
        Write::Setting(_) => Some(About::Settings),
        _ => None,
    };
    change.0.iter().find_map(of).unwrap_or(About::Nothing)
}

/// Sorts the changes of a batch into the order in which they are written, and numbers their events.
/// Every server locks rows in nearly the same order. If two still deadlock, one of them fails and
/// writes its changes one by one.
pub(super) fn sort_out(changes: Vec<Change>, next_seq: &mut i64) -> (Vec<Member>, Rest) {
    let mut rounds: HashMap<About, usize> = HashMap::new();
    let (mut members, mut rest) = (Vec::with_capacity(changes.len()), Rest::default());
    for (place, change) in changes.into_iter().enumerate() {
        let change = rest.take_from(change);
        let (shape, about) = (Part::all_of(&change), about(&change));
        if shape.is_empty() {
            continue;
        }
        let round = if about == About::Nothing {
            0
        } else {
            let next = rounds.entry(about).or_default();
            std::mem::replace(next, *next + 1)
        };
        members.push(Member { place, round, shape, about, change, seqs: 0..0 });
    }
    // Stable: servers get their numbers, and events their sequence numbers, in the order of their
    // arrival.
    members.sort_by(|a, b| a.order().cmp(&b.order()));
    for member in &mut members {
        let events = member.shape.iter().filter(|part| **part == Part::Event).count();
        let first = *next_seq;
        *next_seq += events as i64;
        member.seqs = first..*next_seq;
    }
    for (seq, _) in &mut rest.attempts {
        *seq = *next_seq;
        *next_seq += 1;
    }
    (members, rest)
}

/// Returns the statement of changes with the same shape.
pub(super) fn statement_of(group: &[Member], process: i32) -> Statement<'_> {
    let changes: Vec<_> = group.iter().map(|one| (&one.change, one.seqs.start)).collect();
    let shape = group.first().map_or(&[][..], |one| &one.shape);
    Statement::of(shape, &changes, process)
}

/// Returns the verdicts of `group` by the answer to its statement.
pub(super) fn verdicts_of(group: &[Member], row: &Row) -> Vec<Verdict> {
    let charges = group.iter().any(|one| one.shape.contains(&Part::Charge));
    let counted = if charges { charge::counted(row).unwrap_or_default() } else { Vec::new() };
    let mut counts: HashMap<(i64, Timestamp), u32> = counted.iter().map(Counted::start).collect();
    let verdict = |(one, written): (&Member, bool)| {
        if !written {
            return Verdict::Conflict;
        }
        // A counter is counted up once for each change, in their order.
        let mut count = |limit: &Limit| {
            let used = counts.get_mut(&charge::place(limit))?;
            *used += 1;
            Some(*used)
        };
        let used = one.limits().and_then(|limits| limits.iter().map(&mut count).collect());
        used.map_or(Verdict::Written, Verdict::Charged)
    };
    group.iter().zip(written_of(group, row)).map(verdict).collect()
}

/// Returns which of `group` its statement reports as written.
fn written_of(group: &[Member], row: &Row) -> Vec<bool> {
    // If the answer cannot be read, the change is decided again, on what is then stored.
    let places: Option<Vec<i64>> = row.try_get(0).unwrap_or_else(|_| Some(Vec::new()));
    let Some(places) = places else { return vec![true; group.len()] };
    let mut written = vec![false; group.len()];
    for place in places {
        let place = usize::try_from(place - 1).ok();
        if let Some(one) = place.and_then(|place| written.get_mut(place)) {
            *one = true;
        }
    }
    written
}

/// Returns the statement for attempts on codes that exist: the first are kept whole, all are
/// counted.
pub(super) fn attempts_of(process: i32, attempts: &[(i64, Event)]) -> Option<Statement<'_>> {
    if attempts.is_empty() {
        return None;
    }
    let columns = "seq, at, action, actor, source, identity, code, activation, digits, server, \
         address, subject, detail";
    let sql = format!(
        "WITH asked AS (
             SELECT * FROM unnest($2::bigint[], $3::timestamptz[], $4::text[], $5::text[],
                 $6::inet[], $7::bytea[], $8::bytea[], $9::bigint[], $10::integer[], $11::bytea[],
                 $12::inet[], $13::text[], $14::text[]) AS asked ({columns})
             WHERE EXISTS (SELECT FROM code WHERE code.hash = asked.code)),
         tally AS (
             INSERT INTO attempts_of_code AS old (code, tried)
             SELECT code, count(*) FROM asked GROUP BY code ORDER BY code
             ON CONFLICT (code) DO UPDATE SET tried = old.tried + excluded.tried
             RETURNING code, tried),
         placed AS (
             SELECT asked.*, tally.tried - count(*) OVER (PARTITION BY code)
                 + row_number() OVER (PARTITION BY code ORDER BY seq) AS place
             FROM asked JOIN tally USING (code))
         INSERT INTO attempt (process, {columns})
         SELECT $1, {columns} FROM placed WHERE place <= {ATTEMPTS}"
    );
    let events: Vec<&Event> = attempts.iter().map(|(_, event)| event).collect();
    let mut values =
        vec![value(Type::INT4, process), each(Type::INT8_ARRAY, attempts, |(seq, _)| *seq)];
    values.extend(told_of(&events).map(|(_, values)| values));
    Some(Statement::set(sql, values))
}

/// Returns the statement for check-ins that come with a commit. Running servers write theirs
/// outside of commits.
pub(super) fn check_ins_of(check_ins: &[CheckIn]) -> Option<Statement<'_>> {
    if check_ins.is_empty() {
        return None;
    }
    let sql = "UPDATE presence SET last_seen = seen.at
         FROM (SELECT server, max(at) AS at, max(max(at)) OVER () AS latest
             FROM unnest($1::integer[], $2::timestamptz[]) AS seen (server, at) GROUP BY server) AS seen
         WHERE presence.server = seen.server
             AND is_news(presence.last_seen, seen.at, seen.latest)";
    let values = vec![
        each(Type::INT4_ARRAY, check_ins, |seen| seen.server.0.cast_signed()),
        each(Type::TIMESTAMPTZ_ARRAY, check_ins, |seen| time(seen.at)),
    ];
    Some(Statement::set(sql.into(), values))
}

/// Returns the statement for the last uses of access tokens. A server may write a use minutes after
/// another one has written a later one, so a later time is never taken for that of a wrong clock. Readers
/// do not believe a time in the future.
pub(super) fn uses_of(uses: &[(TokenNumber, Timestamp)]) -> Option<Statement<'_>> {
    if uses.is_empty() {
        return None;
    }
    let sql = "UPDATE access_token SET last_used = used.at
         FROM (SELECT number, max(at) AS at
             FROM unnest($1::integer[], $2::timestamptz[]) AS used (number, at) GROUP BY number) AS used
         WHERE access_token.number = used.number AND access_token.last_used < used.at";
    let values = vec![
        each(Type::INT4_ARRAY, uses, |(token, _)| token.0.cast_signed()),
        each(Type::TIMESTAMPTZ_ARRAY, uses, |(_, at)| time(*at)),
    ];
    Some(Statement::set(sql.into(), values))
}

/// Returns the statement that stores counters copied from another store.
pub(super) fn counters_of(counters: &[Counter]) -> Option<Statement<'_>> {
    if counters.is_empty() {
        return None;
    }
    let sql = "INSERT INTO counter (key, window_end, policy, used, allowed)
         SELECT *, 0 FROM unnest($1::bigint[], $2::timestamptz[], $3::text[], $4::integer[])
         ON CONFLICT (key, window_end) DO UPDATE SET used = excluded.used";
    let values = vec![
        each(Type::INT8_ARRAY, counters, |one| signed(one.key)),
        each(Type::TIMESTAMPTZ_ARRAY, counters, |one| time(one.window_end)),
        each(Type::TEXT_ARRAY, counters, |one| one.policy.name()),
        each(Type::INT4_ARRAY, counters, |one| one.used.cast_signed()),
    ];
    Some(Statement::set(sql.into(), values))
}
