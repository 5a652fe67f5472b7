//! The clock and the random generator of the operating system. This is the only file that asks for the
//! date and for randomness: all other code receives them as arguments.

#![allow(clippy::disallowed_methods)]

use iptunnel_domain::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::{Registry, Unit};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A source of the current time. It is read once for each request, when the request arrives.
pub trait Clock: Send + Sync + 'static {
    /// Returns the current time in whole seconds. It goes back only if the reference clock was set back
    /// by more than a second.
    fn now(&self) -> Timestamp {
        Timestamp(self.now_ms() / 1000)
    }

    /// Returns the current time in milliseconds since the Unix epoch.
    fn now_ms(&self) -> u64;

    /// Follows another reference clock, which is `ahead` milliseconds ahead of this machine's clock.
    fn correct(&self, ahead: i64);

    /// Returns the counters of the times that this clock went back.
    fn set_backs(&self) -> &SetBacks;
}

/// The counters of how often a clock went back, and by how many seconds in total.
#[derive(Clone, Debug, Default)]
pub struct SetBacks {
    count: Counter,
    seconds: Counter<f64, AtomicU64>,
}

impl SetBacks {
    /// Registers both counters.
    pub fn register(&self, registry: &mut Registry) {
        let help = "How often the clock was set back by more than a second";
        registry.register("clock_set_backs", help, self.count.clone());
        let help = "By how much the clock was set back in all";
        registry.register_with_unit("clock_set_back", help, Unit::Seconds, self.seconds.clone());
    }
}

/// The readings of a machine's clocks at one moment, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// The wall clock, since the Unix epoch. It may jump.
    pub wall: u64,
    /// The monotonic clock, since some instant. It never jumps.
    pub monotonic: u64,
}

/// The clocks that a [`SystemClock`] reads.
pub trait TimeSource: Send + Sync + 'static {
    /// Reads both clocks.
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

/// The most monotonic milliseconds between the two readings of one [`Reading`]. Without this limit, a
/// pause of the process between them would look like a jump of the wall clock.
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

/// Monotonic milliseconds between two comparisons with the wall clock. The wall clock is followed within
/// a second even if only the actors' tick reads the time.
const COMPARE_EVERY: u64 = 200;
/// Milliseconds by which the wall clock may fall behind before the time is set back. At smaller
/// corrections, such as those of NTP, the time stands still until the wall clock has caught up.
const WAIT_AT_MOST: i64 = 1000;

/// The machine's clock: it advances with monotonic time and follows the wall clock.
///
/// If the wall clock is ahead, the time jumps to it at once. If the wall clock is up to a second behind,
/// the time stands still until the wall clock has caught up. If it is further behind, the time is set
/// back, which is logged and counted.
#[derive(Debug)]
pub struct SystemClock<S = Machine> {
    source: S,
    carried: Mutex<Carried>,
    set_backs: SetBacks,
}

/// The state of a [`SystemClock`], in milliseconds.
#[derive(Debug, Default)]
struct Carried {
    /// By how much the corrected wall clock was ahead of the monotonic clock at the last comparison.
    base: i64,
    /// The lower limit of the time: the time before the last comparison.
    at_least: i64,
    /// The monotonic time of the last comparison; `None` if a comparison is due.
    looked: Option<u64>,
    /// By how much the reference clock is ahead of the machine's.
    ahead: i64,
}

impl Carried {
    fn at(&self, monotonic: u64) -> i64 {
        self.base.saturating_add_unsigned(monotonic).max(self.at_least)
    }

    /// Follows the wall clock. Returns by how much it was ahead.
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
    /// Creates a clock that reads `source`.
    pub fn new(source: S) -> Self {
        let mut carried = Carried::default();
        carried.follow(source.read());
        Self { source, carried: Mutex::new(carried), set_backs: SetBacks::default() }
    }

    /// Returns the time in milliseconds, and by how much the wall clock was ahead of it if both were
    /// compared, else 0.
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
    fn now_ms(&self) -> u64 {
        let (now, ahead) = self.look();
        let seconds = ahead.unsigned_abs() as f64 / 1000.0;
        if ahead < -WAIT_AT_MOST {
            self.set_backs.count.inc();
            self.set_backs.seconds.inc_by(seconds);
            tracing::warn!(seconds, "the clock was set back; the server follows it");
        } else if ahead > WAIT_AT_MOST {
            tracing::warn!(seconds, "the clock was set ahead; the server follows it");
        }
        u64::try_from(now).unwrap_or_default()
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

/// Returns the machine's wall clock, in milliseconds since the Unix epoch.
pub fn machine_milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The error of an operating system that gives no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gives no random bytes: {0}; start the server again")]
pub struct NoRandomness(String);

/// Returns random bytes from the operating system.
///
/// # Errors
/// The operating system gives none.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| NoRandomness(e.to_string()))?;
    Ok(bytes)
}

/// Returns a random generator for codes and ids, seeded by the operating system.
///
/// # Errors
/// The operating system gives no random bytes.
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
    fn the_time_stands_still_during_a_small_correction_back() {
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
    fn the_clock_advances_with_monotonic_time_between_two_comparisons() {
        let (set, clock) = Set::at(1_000_900);
        set.step(MONTH, COMPARE_EVERY - 1);
        assert_eq!(clock.now(), Timestamp(1001), "the wall clock is not read yet");
    }

    #[test]
    fn another_reference_clock_is_followed_at_once_in_both_directions() {
        let (_, clock) = Set::at(1_000_000);
        clock.correct(MONTH);
        assert_eq!(clock.now(), Timestamp(1000 + 30 * 86_400));
        clock.correct(-100_000);
        assert_eq!(clock.now(), Timestamp(900));
        assert_eq!(clock.set_backs().count.get(), 1);
    }

    proptest! {
        /// A second after any jump of the wall clock the time is the wall clock's, to within
        /// `WAIT_AT_MOST`; and the time never goes back by less than that.
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
