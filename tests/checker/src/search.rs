//! Searches for an order of concurrent operations that a sequential model allows.
//!
//! The algorithm is that of Wing and Gong: the next operation in the order was requested before the first
//! answer among the remaining operations. If the model allows none of them, the search backtracks. With
//! Lowe's improvement, as in Porcupine, no configuration is visited twice. A configuration is the set of
//! operations in the order so far, with the state after them.

use std::collections::HashSet;
use std::hash::Hash;

/// The time in which an operation may have taken effect, in any unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// The earliest time.
    pub from: u64,
    /// The latest time, or [`Span::OPEN`] if it is unknown.
    pub to: u64,
}

impl Span {
    /// The latest time of an operation that may take effect at any time, or never.
    pub const OPEN: u64 = u64::MAX;

    const fn is_open(self) -> bool {
        self.to == Self::OPEN
    }
}

/// The outcome of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// There is an order.
    Exists,
    /// There is none.
    None,
    /// The bound was reached before the search ended.
    Undecided,
}

/// The set of operations that already have a place in the order.
type Done = Box<[u64]>;

fn is_done(done: &Done, operation: usize) -> bool {
    done.get(operation / 64).is_some_and(|word| word >> (operation % 64) & 1 == 1)
}

fn with_done(done: &Done, operation: usize) -> Done {
    let mut done = done.clone();
    if let Some(word) = done.get_mut(operation / 64) {
        *word |= 1 << (operation % 64);
    }
    done
}

/// Searches for an order of the operations in `spans`, from the state `initial`. `after(state, n)` returns
/// the possible states after operation `n`. It returns none if the model does not allow the answer in that
/// state. An operation with an open span need not happen at all.
///
/// The search visits at most `bound` configurations.
pub fn search<S: Clone + Eq + Hash>(
    spans: &[Span],
    initial: S,
    bound: usize,
    only_reads: impl Fn(usize) -> bool,
    after: impl Fn(&S, usize) -> Vec<S>,
) -> Order {
    let mut by_begin: Vec<usize> = (0..spans.len()).collect();
    by_begin.sort_by_key(|n| spans.get(*n).map(|span| span.from));
    let spans_of = |n: &usize| spans.get(*n).map(|span| (*n, *span));
    let by_begin: Vec<(usize, Span)> = by_begin.iter().filter_map(spans_of).collect();

    let nothing: Done = vec![0; spans.len().div_ceil(64)].into();
    let mut seen = HashSet::from([(nothing.clone(), initial.clone())]);
    let mut open = vec![(nothing, initial)];
    while let Some((done, state)) = open.pop() {
        let left = || by_begin.iter().filter(|(n, _)| !is_done(&done, *n));
        // An answered operation comes before every operation that was requested after its answer.
        let Some(horizon) = left().map(|(_, span)| span.to).filter(|to| *to != Span::OPEN).min()
        else {
            return Order::Exists;
        };
        let mut next = Vec::new();
        for (n, span) in left().take_while(|(_, span)| span.from <= horizon) {
            let states = after(&state, *n);
            if !states.is_empty() && only_reads(*n) {
                next = vec![(with_done(&done, *n), state)];
                break;
            }
            let states = states.into_iter().filter(|next| !span.is_open() || *next != state);
            next.extend(states.map(|state| (with_done(&done, *n), state)));
        }
        for configuration in next {
            if seen.len() >= bound {
                return Order::Undecided;
            }
            if seen.insert(configuration.clone()) {
                open.push(configuration);
            }
        }
    }
    Order::None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register: `Some` writes, `None` with a value reads.
    #[derive(Clone, Copy)]
    enum Step {
        Write(u8),
        Read(u8),
    }
    use Step::{Read, Write};

    fn order(steps: &[(u64, u64, Step)]) -> Order {
        let spans: Vec<Span> =
            steps.iter().map(|(from, to, _)| Span { from: *from, to: *to }).collect();
        let reads = |n: usize| matches!(steps[n].2, Read(_));
        search(&spans, 0, 10_000, reads, |state, n| match steps[n].2 {
            Write(value) => vec![value],
            Read(value) if value == *state => vec![value],
            Read(_) => vec![],
        })
    }

    #[test]
    fn an_order_is_found_among_operations_that_overlap() {
        assert_eq!(order(&[(0, 10, Write(1)), (1, 9, Read(0)), (2, 8, Read(1))]), Order::Exists);
        assert_eq!(order(&[(0, 10, Write(1)), (1, 2, Read(1)), (3, 4, Read(0))]), Order::None);
    }

    #[test]
    fn an_answered_operation_comes_before_later_requests() {
        assert_eq!(order(&[(0, 1, Write(1)), (2, 3, Read(0))]), Order::None);
        assert_eq!(order(&[(0, 2, Write(1)), (2, 3, Read(0))]), Order::Exists);
    }

    #[test]
    fn an_unanswered_operation_may_happen_at_any_time_or_never() {
        let open = Span::OPEN;
        assert_eq!(order(&[(0, open, Write(1)), (2, 3, Read(0))]), Order::Exists);
        assert_eq!(order(&[(0, open, Write(1)), (2, 3, Read(0)), (4, 5, Read(1))]), Order::Exists);
        assert_eq!(order(&[(0, open, Write(1)), (2, 3, Read(1)), (4, 5, Read(0))]), Order::None);
        assert_eq!(order(&[(2, open, Write(1)), (0, 1, Read(1))]), Order::None);
    }

    #[test]
    fn the_search_handles_more_operations_than_a_word_has_bits() {
        let mut steps: Vec<_> =
            (0..200).map(|n| (2 * n, 2 * n + 1, Write((n % 250) as u8))).collect();
        steps.push((400, 401, Read(199)));
        assert_eq!(order(&steps), Order::Exists);
        steps.push((402, 403, Read(7)));
        assert_eq!(order(&steps), Order::None);
    }

    #[test]
    fn a_search_that_reaches_its_bound_is_undecided() {
        let spans = vec![Span { from: 0, to: 1 }; 40];
        let order = search(&spans, 0_u64, 100, |_| false, |state, n| vec![state | 1 << n]);
        // The model allows every order, but even the first one needs more than 100 configurations.
        assert_eq!(order, Order::Undecided);
        let never = search(
            &spans,
            0_u64,
            100,
            |_| false,
            |state, n| {
                if n == 39 { vec![] } else { vec![state | 1 << n] }
            },
        );
        assert_eq!(never, Order::Undecided);
    }
}
