//! The numbers that put records in the order in which they came.

use iptunnel_domain::Timestamp;

/// Numbers that rise, given out by one actor.
///
/// Alone on a store they count. Where several servers share one they are made of the time, the
/// number of the server's process and a count, so that they rise across servers from second to
/// second and no two are the same. What goes beyond a second's count, or is given out after the clock
/// was set back, runs ahead of the time; the bits of the process are the same whatever happens.
#[derive(Debug)]
pub(crate) enum Numbers {
    /// The last one.
    Counted(u64),
    Timed {
        /// The last second and its count: a number without the bits of the process.
        last: u64,
        process: u64,
    },
}

/// Bits of the count: 65,536 numbers in a second, more than one server makes (31,000 were measured).
const COUNT: u32 = 16;
/// Bits of the process: servers whose numbers differ by 8,192 starts do not meet.
const PROCESS: u32 = 13;
/// The last second that is followed, in the year 2242: what runs ahead of it fits into the signed
/// numbers of databases for as long again.
const LATEST: u64 = 1 << 33;

impl Numbers {
    /// Numbers that go on from `last`, the highest on the store.
    pub(crate) const fn new(last: u64, process: Option<u32>) -> Self {
        match process {
            None => Self::Counted(last),
            // Whoever gave out the last number, the next second is beyond it.
            Some(process) => Self::Timed {
                last: (last >> (PROCESS + COUNT) << COUNT) | ((1 << COUNT) - 1),
                process: process as u64 % (1 << PROCESS),
            },
        }
    }

    pub(crate) fn next(&mut self, now: Timestamp) -> u64 {
        match self {
            Self::Counted(last) => {
                *last = last.saturating_add(1);
                *last
            }
            Self::Timed { last, process } => {
                *last = (*last + 1).max(now.0.min(LATEST) << COUNT);
                let (second, count) = (*last >> COUNT, *last % (1 << COUNT));
                second << (PROCESS + COUNT) | *process << COUNT | count
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn a_server_alone_counts() {
        let mut numbers = Numbers::new(7, None);
        assert_eq!([numbers.next(Timestamp(9)), numbers.next(Timestamp(3))], [8, 9]);
    }

    const BASE: u64 = 1_900_000_000;

    proptest! {
        /// Clocks jump, servers start again, and one second gives out more than it has.
        #[test]
        fn whatever_the_clock_says_numbers_keep_the_bits_of_their_process_and_rise(
            process in 0u32..u32::MAX, frontier in 0u64..u64::MAX >> 2,
            steps in prop::collection::vec((0u64..1 << 36, 0usize..100_000), 1..6),
        ) {
            let mut numbers = Numbers::new(frontier, Some(process));
            let mut last = frontier;
            for (now, count) in steps {
                for _ in 0..=count {
                    let number = numbers.next(Timestamp(now));
                    prop_assert!(number > last);
                    prop_assert_eq!((number >> COUNT) % (1 << PROCESS), u64::from(process) % (1 << PROCESS));
                    last = number;
                }
            }
            prop_assert!(i64::try_from(last).is_ok(), "databases have signed numbers");
        }
    }

    #[test]
    fn servers_that_go_on_from_the_same_future_never_meet() {
        let ahead = Numbers::new(0, Some(7)).next(Timestamp(BASE + 30 * 86_400));
        let mut servers = [7, 8, 9].map(|process| Numbers::new(ahead, Some(process)));
        let mut seen = HashSet::new();
        for _ in 0..70_000 {
            for server in &mut servers {
                assert!(seen.insert(server.next(Timestamp(BASE))));
            }
        }
    }

    #[test]
    fn numbers_of_several_servers_never_meet_and_rise_with_the_time() {
        let mut servers = [1, 2, 8191].map(|process| Numbers::new(0, Some(process)));
        let mut seen = HashSet::new();
        let mut newest = 0;
        for second in BASE..BASE + 10 {
            let before = newest;
            for server in &mut servers {
                for _ in 0..1000 {
                    let number = server.next(Timestamp(second));
                    assert!(number > before && seen.insert(number));
                    newest = newest.max(number);
                }
            }
        }
        assert!(i64::try_from(newest).is_ok(), "databases have signed numbers");
    }
}
