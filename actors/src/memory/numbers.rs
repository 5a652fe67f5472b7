//! The numbers of records, which give their order of creation.

use iptunnel_domain::Timestamp;

/// A source of increasing numbers, owned by one actor.
///
/// A server alone on its store counts. Where several servers share a store, a number consists of the
/// time in seconds, the number of the server's process, and a count. So numbers increase across servers
/// from second to second, and no two are equal. If a second's count is used up, or the clock was set
/// back, the numbers run ahead of the time. The bits of the process never change.
#[derive(Debug)]
pub(crate) enum Numbers {
    /// The last number.
    Counted(u64),
    Timed {
        /// The last second and its count: the last number without the bits of the process.
        last: u64,
        process: u64,
    },
}

/// Bits of the count: 65,536 numbers a second, more than one server creates (31,000 were measured).
const COUNT: u32 = 16;
/// Bits of the process number, which grows with each start. Two processes have the same bits only if
/// their numbers differ by a multiple of 8,192.
const PROCESS: u32 = 13;
/// The last second of the clock that is used, in the year 2242. Numbers that run ahead of it fit into
/// the signed integers of databases for as long again.
const LATEST: u64 = 1 << 33;

impl Numbers {
    /// Creates a source that continues after `last`, the highest number in the store.
    pub(crate) const fn new(last: u64, process: Option<u32>) -> Self {
        match process {
            None => Self::Counted(last),
            // Another process may have created the last number. The next second is beyond it.
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
    fn a_server_alone_on_its_store_counts() {
        let mut numbers = Numbers::new(7, None);
        assert_eq!([numbers.next(Timestamp(9)), numbers.next(Timestamp(3))], [8, 9]);
    }

    const BASE: u64 = 1_900_000_000;

    proptest! {
        /// Clocks jump, servers restart, and a second's count is used up.
        #[test]
        fn numbers_increase_and_keep_their_process_bits_at_any_clock(
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
            prop_assert!(i64::try_from(last).is_ok(), "it fits into a signed integer");
        }
    }

    #[test]
    fn servers_that_continue_after_the_same_future_number_never_collide() {
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
    fn numbers_of_several_servers_never_collide_and_increase_with_the_time() {
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
        assert!(i64::try_from(newest).is_ok(), "it fits into a signed integer");
    }
}
