//! The clock and the randomness of the operating system: the one file that asks for either.
//! Everyone else is handed time and random bits.

#![allow(clippy::disallowed_methods)]

use iptunnel_domain::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::{Registry, Unit};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Tells the time. Asked once for each request, at the edge.
pub trait Clock: Send + Sync + 'static {
    /// The present, in whole seconds. It goes back only where the clock that counts was set back by
    /// more than a second.
    fn now(&self) -> Timestamp;

    /// Goes by another clock, which is ahead of the machine's by so many milliseconds.
    fn correct(&self, ahead: i64);

    /// What is counted of each time that it went back.
    fn set_backs(&self) -> &SetBacks;
}

/// How often a clock went back, and by how much in all.
#[derive(Clone, Debug, Default)]
pub struct SetBacks {
    count: Counter,
    seconds: Counter<f64, AtomicU64>,
}

impl SetBacks {
    /// Enters both into `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let help = "How often the clock was set back by more than a second";
        registry.register("clock_set_backs", help, self.count.clone());
        let help = "By how much the clock was set back in all";
        registry.register_with_unit("clock_set_back", help, Unit::Seconds, self.seconds.clone());
    }
}

/// What a machine's clocks say at one moment, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Since the Unix epoch, by the wall clock. It may jump.
    pub wall: u64,
    /// Since some instant, by the monotonic clock. It never jumps.
    pub monotonic: u64,
}

/// Where a [`SystemClock`] looks.
pub trait TimeSource: Send + Sync + 'static {
    /// What both clocks say now.
    fn read(&self) -> Reading;
}

/// The clocks of the operating system.
#[derive(Debug)]
pub struct Machine {
    begun: Instant,
}

impl Default for Machine {
    fn default() -> Self {
        Self { begun: Instant::now() }
    }
}

/// Monotonic milliseconds within which both clocks are read. A process that was paused in between
/// would take the pause for a jump of the wall clock.
const ONE_MOMENT: u64 = 10;

impl Machine {
    fn monotonic(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl TimeSource for Machine {
    fn read(&self) -> Reading {
        let mut before = self.monotonic();
        loop {
            let wall = machine_milliseconds();
            let monotonic = self.monotonic();
            if monotonic.saturating_sub(before) <= ONE_MOMENT {
                return Reading { wall, monotonic };
            }
            before = monotonic;
        }
    }
}

/// Monotonic milliseconds between two looks at the wall clock: it is followed within a second also
/// where nobody but the actors' tick asks for the time.
const COMPARE_EVERY: u64 = 200;
/// Milliseconds by which the wall clock may fall behind before the time is set back. Smaller
/// corrections, as NTP makes them, are waited for.
const WAIT_AT_MOST: i64 = 1000;

/// The machine's clock: monotonic time carries it, and the wall clock is followed.
///
/// Where the wall clock is ahead it is followed at once; where it is a little behind the time stands
/// still until it has caught up; where it is further behind the time is set back, logged and counted.
#[derive(Debug)]
pub struct SystemClock<S = Machine> {
    source: S,
    carried: Mutex<Carried>,
    set_backs: SetBacks,
}

/// What the time is, in milliseconds.
#[derive(Debug, Default)]
struct Carried {
    /// What the wall clock, corrected, was ahead of the monotonic one at the last look.
    base: i64,
    /// What was told before the last look, where the wall clock has not caught up with that.
    at_least: i64,
    /// When the wall clock was last looked at, in monotonic milliseconds; `None` where that is due.
    looked: Option<u64>,
    /// What the clock that counts is ahead of the machine's.
    ahead: i64,
}

impl Carried {
    fn at(&self, monotonic: u64) -> i64 {
        self.base.saturating_add_unsigned(monotonic).max(self.at_least)
    }

    /// Follows the wall clock: by how much that was ahead.
    fn follow(&mut self, Reading { wall, monotonic }: Reading) -> i64 {
        let told = self.at(monotonic);
        let wall = wall.cast_signed().saturating_add(self.ahead);
        let ahead = wall.saturating_sub(told);
        self.base = wall.saturating_sub_unsigned(monotonic);
        self.at_least = if ahead < -WAIT_AT_MOST { wall } else { told };
        self.looked = Some(monotonic);
        ahead
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new(Machine::default())
    }
}

impl<S: TimeSource> SystemClock<S> {
    /// A clock that goes by `source`.
    pub fn new(source: S) -> Self {
        let mut carried = Carried::default();
        carried.follow(source.read());
        Self { source, carried: Mutex::new(carried), set_backs: SetBacks::default() }
    }

    /// The time in milliseconds, and by how much the wall clock was ahead of it where that was looked
    /// at.
    fn look(&self) -> (i64, i64) {
        let mut carried = self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        let read = self.source.read();
        let due =
            carried.looked.is_none_or(|at| read.monotonic.saturating_sub(at) >= COMPARE_EVERY);
        let ahead = if due { carried.follow(read) } else { 0 };
        (carried.at(read.monotonic), ahead)
    }
}

impl<S: TimeSource> Clock for SystemClock<S> {
    fn now(&self) -> Timestamp {
        let (now, ahead) = self.look();
        let seconds = ahead.unsigned_abs() as f64 / 1000.0;
        if ahead < -WAIT_AT_MOST {
            self.set_backs.count.inc();
            self.set_backs.seconds.inc_by(seconds);
            tracing::warn!(seconds, "the clock was set back, and the server follows it");
        } else if ahead > WAIT_AT_MOST {
            tracing::warn!(seconds, "the clock was set ahead, and the server follows it");
        }
        Timestamp(u64::try_from(now).unwrap_or_default() / 1000)
    }

    fn correct(&self, ahead: i64) {
        let mut carried = self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        carried.ahead = ahead;
        carried.looked = None;
    }

    fn set_backs(&self) -> &SetBacks {
        &self.set_backs
    }
}

/// What the machine's clock says, in milliseconds since the Unix epoch.
pub fn machine_milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Why the operating system gave no randomness.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gives no random bytes: {0}")]
pub struct NoRandomness(String);

/// Random bytes from the operating system.
///
/// # Errors
/// Where it has none to give.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| NoRandomness(e.to_string()))?;
    Ok(bytes)
}

/// A generator of codes and ids, seeded by the operating system.
///
/// # Errors
/// Where it has no randomness to give.
pub fn seeded_generator() -> Result<ChaCha20Rng, NoRandomness> {
    Ok(ChaCha20Rng::from_seed(random_bytes()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// Clocks that the test sets.
    #[derive(Clone)]
    struct Set(Arc<Mutex<Reading>>);

    impl Set {
        fn at(wall: u64) -> (Self, SystemClock<Self>) {
            let set = Self(Arc::new(Mutex::new(Reading { wall, monotonic: 0 })));
            let clock = SystemClock::new(set.clone());
            (set, clock)
        }

        /// The wall clock jumps, and then time passes on both.
        fn step(&self, jump: i64, passes: u64) {
            let mut set = self.0.lock().unwrap();
            set.wall = set.wall.saturating_add_signed(jump) + passes;
            set.monotonic += passes;
        }
    }

    impl TimeSource for Set {
        fn read(&self) -> Reading {
            *self.0.lock().unwrap()
        }
    }

    const MONTH: i64 = 30 * 86_400_000;

    #[test]
    fn a_clock_that_was_30_days_ahead_is_followed_back_and_the_step_is_counted() {
        let (set, clock) = Set::at(1_000_000);
        set.step(MONTH, COMPARE_EVERY);
        assert_eq!(clock.now(), Timestamp(1000 + 30 * 86_400));
        assert_eq!(clock.set_backs().count.get(), 0);
        set.step(-MONTH, COMPARE_EVERY);
        assert_eq!(clock.now(), Timestamp(1000));
        assert_eq!(clock.set_backs().count.get(), 1);
        assert!((clock.set_backs().seconds.get() - 30.0 * 86_400.0).abs() < 1.0);
        set.step(0, COMPARE_EVERY);
        assert_eq!((clock.now(), clock.set_backs().count.get()), (Timestamp(1000), 1));
    }

    #[test]
    fn a_small_correction_back_is_waited_for() {
        let (set, clock) = Set::at(1_000_900);
        set.step(0, 200);
        assert_eq!(clock.now(), Timestamp(1001));
        set.step(-900, 200);
        for _ in 0..4 {
            assert_eq!(clock.now(), Timestamp(1001));
            set.step(0, 200);
        }
        set.step(0, 800);
        assert_eq!(clock.now(), Timestamp(1002));
        assert_eq!(clock.set_backs().count.get(), 0);
    }

    #[test]
    fn monotonic_time_carries_the_clock_between_two_looks() {
        let (set, clock) = Set::at(1_000_900);
        set.step(MONTH, COMPARE_EVERY - 1);
        assert_eq!(clock.now(), Timestamp(1001), "the wall clock is not looked at yet");
    }

    #[test]
    fn another_clock_that_counts_is_followed_at_once_in_both_directions() {
        let (_, clock) = Set::at(1_000_000);
        clock.correct(MONTH);
        assert_eq!(clock.now(), Timestamp(1000 + 30 * 86_400));
        clock.correct(-100_000);
        assert_eq!(clock.now(), Timestamp(900));
        assert_eq!(clock.set_backs().count.get(), 1);
    }

    proptest! {
        /// Whatever the wall clock did, a second later the time is the wall clock's, to within what
        /// is waited for; and it never goes back by less than that.
        #[test]
        fn the_wall_clock_is_followed_within_a_second(
            steps in prop::collection::vec((-10_000i64..10_000, 0u64..2_000), 1..30),
        ) {
            let (set, clock) = Set::at(1_000_000_000);
            let mut last = clock.look().0;
            for (jump, passes) in steps {
                set.step(jump, passes);
                let now = clock.look().0;
                prop_assert!(now >= last || now < last - WAIT_AT_MOST + passes.cast_signed());
                last = now;
            }
            set.step(0, 1000);
            let (now, wall) = (clock.look().0, set.read().wall.cast_signed());
            prop_assert!((wall..=wall + WAIT_AT_MOST).contains(&now));
        }
    }
}
