//! Time as the rules see it: whole seconds, handed in by whoever owns a clock.
//!
//! A clock may be wrong for a while and then be set right. So nothing here trusts a date that lies in
//! the future: a [`Lifespan`] that begins there is over, and a [`Timer`] set there is due.

/// Whole seconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The instant `seconds` later; stays at the end of time instead of wrapping.
    pub const fn plus(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// Seconds from `earlier` to this instant, 0 where `earlier` is later.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Whether a clock that was wrong wrote this date: at `now` it lies in the future, by more than
    /// [`SLACK`].
    pub const fn is_ahead_of(self, now: Self) -> bool {
        self.since(now) > SLACK
    }

    /// The later one of two dates, but of one that a wrong clock wrote and one that it did not the
    /// latter.
    pub fn or_later(self, other: Self, now: Self) -> Self {
        match (self.is_ahead_of(now), other.is_ahead_of(now)) {
            (true, false) => other,
            (false, true) => self,
            _ => self.max(other),
        }
    }

    /// Whether an `end` that was set at most `seconds` ahead is still to come. One that lies further
    /// ahead was set by a clock that was wrong, and counts as past.
    pub const fn is_before(self, end: Self, seconds: u64) -> bool {
        self.0 < end.0 && end.since(self) <= seconds
    }
}

/// Seconds by which a date may lie ahead of the time of a request. A request keeps the time at which it
/// came, and may wait for ten seconds (`server.request_timeout_ms`) while others write what it then
/// meets; and clocks may differ by some seconds more: those of servers that share a store (one whose
/// clock is off by more than a second is not ready), and one server's before and after a small
/// correction. A date further ahead than this was written by a clock that was wrong.
pub const SLACK: u64 = 15;

/// The time from when something is made until it is over: a code, an activation, a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifespan {
    /// The second in which it was made.
    pub from: Timestamp,
    /// The first second in which it is over.
    pub until: Timestamp,
}

impl Lifespan {
    /// Seconds left at `now`, never more than the whole lifespan and [`SLACK`]: what was made in a
    /// future that never came has none left.
    pub const fn left(self, now: Timestamp) -> u64 {
        if self.from.is_ahead_of(now) { 0 } else { self.until.since(now) }
    }

    /// Whether it is over at `now`.
    pub const fn is_over(self, now: Timestamp) -> bool {
        self.left(now) == 0
    }
}

/// What is done again and again, with a pause of some seconds in between. New ones are due at once.
///
/// A clock that was ahead for a moment costs one pause at most: a timer that is set further ahead than
/// its own pause is due.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timer {
    next: Timestamp,
}

impl Timer {
    /// Whether it is due at `now`. If so, it is set to `pause` seconds later.
    pub const fn is_due(&mut self, now: Timestamp, pause: u64) -> bool {
        if now.is_before(self.next, pause) {
            return false;
        }
        self.next = now.plus(pause);
        true
    }
}

/// How long things live. All configurable; the defaults are those of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Seconds from issue until a code expires.
    pub code: u64,
    /// Seconds a precheck carries an install further.
    pub precheck_token: u64,
    /// Seconds an activation stays open.
    pub install_token: u64,
    /// Seconds a released code is good again, at least.
    pub restored: u64,
    /// Seconds from first issue beyond which no release prolongs a code.
    pub max_lifetime: u64,
    /// How many activations one code may see in its life.
    pub max_activations: u32,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            code: 300,
            precheck_token: 900,
            install_token: 600,
            restored: 300,
            max_lifetime: 3600,
            max_activations: 5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Made by an honest step at any time, seen at any other: clocks jump both ways.
        #[test]
        fn what_is_left_is_never_more_than_the_lifetime_and_the_slack(
            made: u64, lifetime in 0u64..1_000_000_000, now: u64, close in 0u64..2_000,
        ) {
            let made = Timestamp(made);
            let life = Lifespan { from: made, until: made.plus(lifetime) };
            for now in [Timestamp(now), made.plus(close), Timestamp(made.0.saturating_sub(close))] {
                prop_assert!(life.left(now) <= lifetime + SLACK);
                prop_assert_eq!(life.is_over(now), life.left(now) == 0);
            }
            prop_assert_eq!(life.left(made), made.plus(lifetime).since(made));
        }

        #[test]
        fn a_timer_is_never_silent_for_longer_than_its_pause(
            jumps in prop::collection::vec(any::<u32>(), 0..9), now in 0u64..u64::from(u32::MAX),
            pause in 1u64..2_000,
        ) {
            let mut timer = Timer::default();
            for jump in jumps {
                timer.is_due(Timestamp(u64::from(jump)), pause);
            }
            let rings = (now..=now + pause).any(|at| timer.is_due(Timestamp(at), pause));
            prop_assert!(rings);
        }
    }

    #[test]
    fn of_two_dates_the_later_one_counts_unless_it_lies_in_the_future() {
        let now = Timestamp(1000);
        let last = now.0 + SLACK;
        let dates =
            [(1, 2, 2), (900, last, last), (900, last + 1, 900), (last + 1, last + 2, last + 2)];
        for (one, other, counts) in dates {
            assert_eq!(Timestamp(one).or_later(Timestamp(other), now), Timestamp(counts));
            assert_eq!(Timestamp(other).or_later(Timestamp(one), now), Timestamp(counts));
        }
    }

    #[test]
    fn a_timer_is_due_at_once_and_then_after_each_pause() {
        let mut timer = Timer::default();
        let rings = [0, 1, 59, 60, 61, 119, 120].map(|at| timer.is_due(Timestamp(at), 60));
        // A new one at time 0 waits for nothing.
        assert_eq!(rings, [true, false, false, true, false, false, true]);
    }

    #[test]
    fn a_timer_that_was_set_by_a_clock_30_days_ahead_is_due() {
        let mut timer = Timer::default();
        assert!(timer.is_due(Timestamp(30 * 86_400), 60));
        assert!(timer.is_due(Timestamp(1000), 60));
        assert!(!timer.is_due(Timestamp(1059), 60));
    }
}
