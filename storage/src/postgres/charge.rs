//! Requests counted against their limits: all that have gathered as one statement, in which each
//! counter is written once, however many ask for it.

use super::rows::{signed, time};
use super::statement::{Value, each};
use crate::{Charged, Counted};
use iptunnel_domain::Timestamp;
use std::collections::BTreeMap;
use tokio_postgres::types::Type;
use tokio_postgres::{Error, Row};

/// Counts as many requests as a limit still allows. Says nothing of a limit that was reached before.
/// Counters come in the order of their keys, so that no two statements wait for each other.
pub(super) const CHARGE: &str = "INSERT INTO counter AS c
         (key, window_end, policy, before, used, allowed)
     SELECT key, window_end, policy, 0, least(times, allowed), allowed
     FROM unnest($1::bigint[], $2::timestamptz[], $3::text[], $4::bigint[], $5::bigint[])
         AS asked (key, window_end, policy, times, allowed)
     WHERE allowed > 0 ORDER BY key, window_end
     ON CONFLICT (key, window_end) DO UPDATE SET before = c.used,
         used = least(c.used + excluded.used, excluded.allowed), allowed = excluded.allowed
     WHERE c.used < excluded.allowed
     RETURNING key, extract(epoch FROM window_end)::bigint, before, used";

/// What requests ask of one counter, and what it has.
struct Asked {
    policy: &'static str,
    times: i64,
    allowed: u32,
    /// Where it stands, with those of these requests that it has been given to.
    used: u32,
    /// How many more of them were counted.
    left: u32,
}

/// Counters by key and end of the window.
type Counters = BTreeMap<(i64, Timestamp), Asked>;

/// Requests that are counted at once.
pub(super) struct Charge {
    requests: Vec<Vec<Counted>>,
    counters: Counters,
}

impl Charge {
    pub(super) fn of(requests: Vec<Vec<Counted>>) -> Self {
        let mut counters = Counters::new();
        for one in requests.iter().flatten() {
            let asked = counters.entry(place(one)).or_insert_with(|| Asked {
                policy: one.policy.name(),
                times: 0,
                allowed: 0,
                // Of a reached limit nothing more is said.
                used: one.allowed,
                left: 0,
            });
            asked.times += 1;
            asked.allowed = one.allowed;
        }
        Self { requests, counters }
    }

    /// The values of [`CHARGE`].
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

    /// What the database says of a counter.
    pub(super) fn counted(&mut self, row: &Row) -> Result<(), Error> {
        let end = row.try_get::<_, i64>(1)?.cast_unsigned();
        let (before, used): (i32, i32) = (row.try_get(2)?, row.try_get(3)?);
        self.stands(
            (row.try_get(0)?, Timestamp(end)),
            before.cast_unsigned(),
            used.cast_unsigned(),
        );
        Ok(())
    }

    fn stands(&mut self, place: (i64, Timestamp), before: u32, used: u32) {
        if let Some(asked) = self.counters.get_mut(&place) {
            (asked.used, asked.left) = (before, used.saturating_sub(before));
        }
    }

    /// What became of the requests, in the order in which they came: each is granted by all of its
    /// limits or counts for none. And what was counted all the same.
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

fn place(one: &Counted) -> (i64, Timestamp) {
    (signed(one.key), one.window_end)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use iptunnel_domain::limit::Policy;

    const END: Timestamp = Timestamp(3600);

    fn limit(key: u64, allowed: u32) -> Counted {
        Counted { key, policy: Policy::IssuePerIpDay, window_end: END, allowed }
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
