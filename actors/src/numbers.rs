//! The numbers that put records in the order in which they came.

use iptunnel_domain::Timestamp;

/// Numbers that rise, given out by one actor.
///
/// Alone on a store they count. Where several servers share one they are made of the time, the
/// number of the server's process and a count, so that they rise across servers from second to
/// second and no two are the same.
#[derive(Debug)]
pub(crate) struct Numbers {
    last: u64,
    process: Option<u32>,
}

/// Bits of the count: 65,536 numbers in a second, more than one server makes (31,000 were measured).
/// What goes beyond it runs ahead of the time.
const COUNT: u32 = 16;
/// Bits of the process: servers whose numbers differ by 8,192 starts do not meet.
const PROCESS: u32 = 13;

impl Numbers {
    pub(crate) const fn new(last: u64, process: Option<u32>) -> Self {
        Self { last, process }
    }

    pub(crate) fn next(&mut self, now: Timestamp) -> u64 {
        self.last = self.last.saturating_add(1);
        if let Some(process) = self.process {
            let process = u64::from(process) & ((1 << PROCESS) - 1);
            self.last = self.last.max(now.0 << (PROCESS + COUNT) | process << COUNT);
        }
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_server_alone_counts() {
        let mut numbers = Numbers::new(7, None);
        assert_eq!([numbers.next(Timestamp(9)), numbers.next(Timestamp(3))], [8, 9]);
    }

    #[test]
    fn numbers_of_several_servers_never_meet_and_rise_with_the_time() {
        let mut servers = [1, 2, 8191].map(|process| Numbers::new(0, Some(process)));
        let mut seen = HashSet::new();
        let mut newest = 0;
        for second in 1_900_000_000..1_900_000_010 {
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
