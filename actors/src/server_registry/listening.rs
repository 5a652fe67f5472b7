//! For how long servers could check in here. Whoever was not heard in that time is silent; before it nobody
//! knows.

use iptunnel_domain::Timestamp;

/// Of the time for which servers must have been listened to, the part that one step of the clock may take:
/// a tenth. Ticks come several times a second, so a step is the time by which the clock was set, or for
/// which the machine slept. A server that seems silent for a tenth longer than it is does no harm.
const PART: u64 = 10;
/// The longest step in seconds that is allowed in any time.
const LONGEST: u64 = 600;

/// The steps of the clock that matter, in either direction.
pub(super) struct Listening {
    last_tick: Timestamp,
    /// When the clock made a step, and its length in seconds. Each is longer than all after it, and those
    /// above [`LONGEST`] count alike, so there are at most 602. The first one is the start.
    steps: Vec<(Timestamp, u64)>,
}

impl Listening {
    /// Begins to listen.
    pub(super) fn from(now: Timestamp) -> Self {
        Self { last_tick: now, steps: vec![(now, LONGEST + 1)] }
    }

    /// Notes the time of a tick.
    pub(super) fn note(&mut self, now: Timestamp) {
        let step = now.0.abs_diff(self.last_tick.0).min(LONGEST + 1);
        self.last_tick = now;
        if step > 1 {
            self.steps.retain(|(_, before)| *before > step);
            self.steps.push((now, step));
        }
    }

    /// Whether every server could have been heard in the last `seconds`.
    pub(super) fn covers(&self, seconds: u64) -> bool {
        let allowed = (seconds / PART).min(LONGEST);
        let last = self.steps.iter().rfind(|(_, step)| *step > allowed);
        last.is_some_and(|(at, _)| self.last_tick.since(*at) >= seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp(1_000_000);
    const MINUTE: u64 = 60;

    /// Ticks each second for so many seconds.
    fn ticks(listening: &mut Listening, seconds: u64) {
        for _ in 0..seconds {
            listening.note(listening.last_tick.plus(1));
        }
    }

    #[test]
    fn nothing_is_known_of_the_time_before_the_start() {
        let mut listening = Listening::from(START);
        ticks(&mut listening, 3 * MINUTE - 1);
        assert!(listening.covers(2 * MINUTE) && !listening.covers(3 * MINUTE));
        ticks(&mut listening, 1);
        assert!(listening.covers(3 * MINUTE));
    }

    #[test]
    fn after_a_step_in_either_direction_the_time_begins_again() {
        for there in [START.0 + 1_000_000, START.0 - 500_000] {
            let mut listening = Listening::from(START);
            ticks(&mut listening, 4 * MINUTE);
            let back = listening.last_tick;
            for to in [Timestamp(there), back] {
                listening.note(to);
                assert!(!listening.covers(3 * MINUTE), "{to:?}");
                ticks(&mut listening, 3 * MINUTE - 1);
                assert!(!listening.covers(3 * MINUTE), "{to:?}");
                ticks(&mut listening, 1);
                assert!(listening.covers(3 * MINUTE), "{to:?}");
            }
        }
    }

    #[test]
    fn a_short_step_matters_where_the_time_is_short() {
        for step in [30, -30] {
            let mut listening = Listening::from(START);
            ticks(&mut listening, 6 * MINUTE);
            listening.note(Timestamp(listening.last_tick.0.saturating_add_signed(step)));
            assert!(!listening.covers(2 * MINUTE), "it is a quarter of two minutes");
            assert!(listening.covers(5 * MINUTE), "and a tenth of five");
            // A shorter one later does not hide it.
            ticks(&mut listening, 10);
            listening.note(listening.last_tick.plus(20));
            ticks(&mut listening, 60);
            assert!(listening.covers(MINUTE) && !listening.covers(3 * MINUTE));
        }
    }

    #[test]
    fn a_long_time_allows_no_long_step_and_steps_fill_no_memory() {
        let mut listening = Listening::from(START);
        for step in (2..=LONGEST + 100).rev() {
            listening.note(listening.last_tick.plus(step));
            listening.note(Timestamp(listening.last_tick.0 - step));
        }
        assert!(listening.steps.len() <= 602, "{}", listening.steps.len());
        ticks(&mut listening, 86_399);
        assert!(!listening.covers(86_400));
        ticks(&mut listening, 1);
        assert!(listening.covers(86_400));
    }
}
