//! Time in whole seconds. The caller reads the clock and passes the time in.
//!
//! A clock may be wrong for a while and then be corrected. So no rule trusts a date in the future: a
//! [`Lifespan`] that begins there is over, and a [`Timer`] set there is due.

/// Whole seconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Returns the time `seconds` later; saturates instead of wrapping.
    pub const fn plus(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// Returns the seconds from `earlier` to this time; 0 if `earlier` is later.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the seconds between two dates, whichever is the earlier one. A date in
    /// the future is no younger than one as long ago.
    pub const fn distance(self, other: Self) -> u64 {
        self.0.abs_diff(other.0)
    }

    /// Whether this date is more than [`SLACK`] after `now`, so that a wrong clock must have written
    /// it.
    pub const fn is_ahead_of(self, now: Self) -> bool {
        self.since(now) > SLACK
    }

    /// Returns the later of two dates. If only one of them is ahead of `now`, a wrong clock wrote it:
    /// the other is returned.
    pub fn or_later(self, other: Self, now: Self) -> Self {
        match (self.is_ahead_of(now), other.is_ahead_of(now)) {
            (true, false) => other,
            (false, true) => self,
            _ => self.max(other),
        }
    }

    /// Whether `end`, which was set at most `seconds` ahead, is still in the future. If it lies further
    /// ahead, a wrong clock set it, and it counts as past.
    pub const fn is_before(self, end: Self, seconds: u64) -> bool {
        self.0 < end.0 && end.since(self) <= seconds
    }
}

/// The seconds by which a date may lie ahead of the time of a request. A request keeps its time of
/// arrival and may wait ten seconds (`server.request_timeout_ms`); meanwhile others may write the
/// records that it then reads. Clocks may differ by some seconds more: those of servers that share a
/// store (a server whose clock is off by more than a second is not ready), and one server's clock
/// before and after a small correction. A wrong clock wrote any date that lies further ahead.
pub const SLACK: u64 = 15;

/// The lifespan of a code, an activation or a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifespan {
    /// The second in which it was made.
    pub from: Timestamp,
    /// The first second in which it is over.
    pub until: Timestamp,
}

impl Lifespan {
    /// Returns the seconds left at `now`: at most the whole lifespan and [`SLACK`]. 0 if it begins in
    /// the future, since a wrong clock dated it.
    pub const fn left(self, now: Timestamp) -> u64 {
        if self.from.is_ahead_of(now) { 0 } else { self.until.since(now) }
    }

    /// Whether no time is left at `now`.
    pub const fn is_over(self, now: Timestamp) -> bool {
        self.left(now) == 0
    }
}

/// A timer for work that repeats after a pause of some seconds. The default timer is due at once.
///
/// A timer set further ahead than its own pause is due, so a clock that was briefly ahead delays the
/// work by at most one pause.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timer {
    next: Timestamp,
}

impl Timer {
    /// Returns a timer that is due at `next` for the first time.
    pub const fn due_at(next: Timestamp) -> Self {
        Self { next }
    }

    /// Whether it is due at `now`. If so, sets it to `pause` seconds later.
    pub const fn is_due(&mut self, now: Timestamp, pause: u64) -> bool {
        if now.is_before(self.next, pause) {
            return false;
        }
        self.next = now.plus(pause);
        true
    }
}

/// The configured lifetimes. The defaults are those of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Seconds from issue until a code expires.
    pub code: u64,
    /// Seconds a precheck token is valid.
    pub precheck_token: u64,
    /// Seconds an activation stays open.
    pub install_token: u64,
    /// Seconds a released code is valid again, at least.
    pub restored: u64,
    /// Seconds from first issue; no release prolongs a code beyond that.
    pub max_lifetime: u64,
    /// The number of activations that a code allows.
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
        /// The clock may jump in both directions between the two.
        #[test]
        fn the_time_left_is_at_most_the_lifetime_and_the_slack(
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
        fn a_timer_is_due_within_its_pause_after_any_clock_jumps(
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
    fn the_later_of_two_dates_counts_unless_only_it_lies_in_the_future() {
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
        // A new timer is due even at time 0.
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
