//! Counts requests against their limits. One statement counts all that have gathered, and writes
//! each counter once, however many requests use it.

use super::rows::{signed, time, timestamp};
use super::statement::{Value, each};
use super::unreadable;
use crate::{Charged, Counted as Limit, ReadError};
use iptunnel_domain::Timestamp;
use std::collections::BTreeMap;
use std::time::SystemTime;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

/// Counts as many requests as a limit still allows. Returns no row for a limit that was reached
/// before. Counters come in the order of their keys, so that no two statements wait for each other.
/// The row of this server records what was counted, so that it can be read again: see
/// [`super::counting`].
pub(super) const CHARGE: &str = "WITH turn AS (
         SELECT FROM charge WHERE id = $1::text::uuid AND number = $2 FOR UPDATE),
     counted AS (
         INSERT INTO counter AS c (key, window_end, policy, before, used, allowed)
         SELECT key, window_end, policy, 0, least(times, allowed), allowed
         FROM unnest($3::bigint[], $4::timestamptz[], $5::text[], $6::bigint[], $7::bigint[])
             AS asked (key, window_end, policy, times, allowed)
         WHERE allowed > 0 AND EXISTS (SELECT FROM turn) ORDER BY key, window_end
         ON CONFLICT (key, window_end) DO UPDATE SET before = c.used,
             used = least(c.used + excluded.used, excluded.allowed), allowed = excluded.allowed
         WHERE c.used < excluded.allowed
         RETURNING key, window_end, before, used)
     UPDATE charge SET number = number + 1, at = clock_timestamp(),
         keys = counted.keys, ends = counted.ends, before = counted.before, used = counted.used
     FROM (SELECT array_agg(key) AS keys, array_agg(window_end) AS ends,
               array_agg(before) AS before, array_agg(used) AS used FROM counted) AS counted
     WHERE id = $1::text::uuid AND number = $2
     RETURNING charge.keys, charge.ends, charge.before, charge.used";

/// The counted requests of one counter.
pub(super) struct Counted {
    place: (i64, Timestamp),
    before: u32,
    used: u32,
}

impl Counted {
    /// The counter, and its count before.
    pub(super) const fn start(&self) -> ((i64, Timestamp), u32) {
        (self.place, self.before)
    }

    /// Each request that was counted.
    pub(super) fn charges(&self) -> impl Iterator<Item = (u64, Timestamp)> {
        let (key, end) = self.place;
        let times = self.used.saturating_sub(self.before);
        std::iter::repeat_n((key.cast_unsigned(), end), times as usize)
    }
}

/// What the row of a server records of its last counting statement; nothing if it counted nothing.
pub(super) fn counted(row: &Row) -> Result<Vec<Counted>, ReadError> {
    let keys: Option<Vec<i64>> = row.try_get("keys").map_err(unreadable)?;
    let ends: Option<Vec<SystemTime>> = row.try_get("ends").map_err(unreadable)?;
    let before: Option<Vec<i32>> = row.try_get("before").map_err(unreadable)?;
    let used: Option<Vec<i32>> = row.try_get("used").map_err(unreadable)?;
    let places = keys.unwrap_or_default().into_iter().zip(ends.unwrap_or_default());
    let counts = before.unwrap_or_default().into_iter().zip(used.unwrap_or_default());
    places
        .zip(counts)
        .map(|((key, end), (before, used))| {
            Ok(Counted {
                place: (key, timestamp(end, "ends")?),
                before: before.cast_unsigned(),
                used: used.cast_unsigned(),
            })
        })
        .collect()
}

/// The requests for one counter, and its state.
struct Asked {
    policy: &'static str,
    times: i64,
    allowed: u32,
    /// Its count, including the requests that it was given to.
    used: u32,
    /// How many more of them were counted.
    left: u32,
}

/// Counters by key and end of the window.
type Counters = BTreeMap<(i64, Timestamp), Asked>;

/// Requests that are counted together.
pub(super) struct Charge {
    requests: Vec<Vec<Limit>>,
    counters: Counters,
}

impl Charge {
    pub(super) fn of(requests: Vec<Vec<Limit>>) -> Self {
        let mut counters = Counters::new();
        for one in requests.iter().flatten() {
            let asked = counters.entry(place(one)).or_insert_with(|| Asked {
                policy: one.policy.name(),
                times: 0,
                allowed: 0,
                // The database returns no row for a reached limit.
                used: one.allowed,
                left: 0,
            });
            asked.times += 1;
            asked.allowed = one.allowed;
        }
        Self { requests, counters }
    }

    /// Returns the values of [`CHARGE`], after those that name the row of this server.
    pub(super) fn values(&self) -> [Value<'static>; 5] {
        let counters = &self.counters;
        [
            each(Type::INT8_ARRAY, counters.keys(), |(key, _)| *key),
            each(Type::TIMESTAMPTZ_ARRAY, counters.keys(), |(_, end)| time(*end)),
            each(Type::TEXT_ARRAY, counters.values(), |one| one.policy),
            each(Type::INT8_ARRAY, counters.values(), |one| one.times),
            each(Type::INT8_ARRAY, counters.values(), |one| i64::from(one.allowed)),
        ]
    }

    /// Reads the counters from the answer of the database.
    pub(super) fn counted(&mut self, row: &Row) -> Result<(), ReadError> {
        for Counted { place, before, used } in counted(row)? {
            self.stands(place, before, used);
        }
        Ok(())
    }

    fn stands(&mut self, place: (i64, Timestamp), before: u32, used: u32) {
        if let Some(asked) = self.counters.get_mut(&place) {
            (asked.used, asked.left) = (before, used.saturating_sub(before));
        }
    }

    /// Returns the outcome of the requests, in the order of their arrival: each is granted by all
    /// of its limits or counts for none. Also returns the counts that no granted request uses.
    pub(super) fn outcome(mut self) -> (Vec<Charged>, Vec<(u64, Timestamp)>) {
        let mut charged = Vec::with_capacity(self.requests.len());
        for request in &self.requests {
            let places = || request.iter().map(place);
            let granted =
                places().all(|at| self.counters.get(&at).is_some_and(|asked| asked.left > 0));
            let mut used = Vec::with_capacity(request.len());
            for at in places() {
                let Some(asked) = self.counters.get_mut(&at) else { continue };
                if granted {
                    asked.used += 1;
                    asked.left = asked.left.saturating_sub(1);
                }
                used.push(asked.used);
            }
            charged.push(Charged { granted, used });
        }
        let spare = self.counters.iter().flat_map(|(&(key, end), asked)| {
            std::iter::repeat_n((key.cast_unsigned(), end), asked.left as usize)
        });
        (charged, spare.collect())
    }
}

/// The key of a counter in the table.
pub(super) fn place(one: &Limit) -> (i64, Timestamp) {
    (signed(one.key), one.window_end)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use iptunnel_domain::limit::Policy;

    const END: Timestamp = Timestamp(3600);

    fn limit(key: u64, allowed: u32) -> Limit {
        Limit { key, policy: Policy::IssuePerIpDay, window_end: END, allowed }
    }

    fn granted(charged: &[Charged]) -> Vec<bool> {
        charged.iter().map(|one| one.granted).collect()
    }

    #[test]
    fn what_is_left_of_a_limit_goes_to_those_who_came_first() {
        let mut charge = Charge::of(vec![vec![limit(1, 5)]; 4]);
        charge.stands((1, END), 3, 5);
        let (charged, spare) = charge.outcome();
        assert_eq!(granted(&charged), [true, true, false, false]);
        let used: Vec<u32> = charged.iter().map(|one| one.used[0]).collect();
        assert_eq!(used, [4, 5, 5, 5]);
        assert!(spare.is_empty());
    }

    #[test]
    fn a_request_that_one_limit_refuses_counts_for_none() {
        let asked = vec![vec![limit(1, 9), limit(2, 1)], vec![limit(1, 9), limit(3, 9)]];
        let mut charge = Charge::of(asked);
        charge.stands((1, END), 0, 2);
        charge.stands((3, END), 0, 1);
        // Of 2 nothing is said: it was reached.
        let (charged, spare) = charge.outcome();
        assert_eq!(charged[0], Charged { granted: false, used: vec![0, 1] });
        assert_eq!(charged[1], Charged { granted: true, used: vec![1, 1] });
        assert_eq!(spare, [(1, END)]);
    }

    #[test]
    fn what_one_request_cannot_use_is_there_for_the_next() {
        let asked = vec![vec![limit(1, 1), limit(2, 1)], vec![limit(1, 1)]];
        let mut charge = Charge::of(asked);
        charge.stands((1, END), 0, 1);
        let (charged, spare) = charge.outcome();
        assert_eq!(granted(&charged), [false, true]);
        assert!(spare.is_empty());
    }
}
