//! How often and for how long a request is repeated.

use std::time::Duration;

/// How often and for how long a request is repeated that got no usable answer. The defaults outlast the
/// restart of a server, and end before a person gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// The most tries of one request, the first included. Prechecks and activates are limited by day, and a
    /// try whose answer is lost may count.
    pub tries: u32,
    /// The longest wait for the answer to one try.
    pub per_try: Duration,
    /// The longest time for all tries of one request and the pauses between them.
    pub whole: Duration,
    /// The pause after the first try. It doubles after each further one.
    pub first_pause: Duration,
    /// The longest pause, where the server does not ask for a longer one.
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            tries: 8,
            per_try: Duration::from_secs(15),
            whole: Duration::from_secs(90),
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(15),
        }
    }
}

impl Patience {
    /// One try and no repeat.
    ///
    /// ```
    /// assert_eq!(iptunnel_client::Patience::once().tries, 1);
    /// ```
    pub fn once() -> Self {
        Self { tries: 1, ..Self::default() }
    }

    /// For a last word, when an installation is dropped: at most two short tries.
    pub(crate) fn shortened(self) -> Self {
        let [per_try, whole] = [5, 10].map(Duration::from_secs);
        Self {
            tries: self.tries.min(2),
            per_try: self.per_try.min(per_try),
            whole: self.whole.min(whole),
            ..self
        }
    }

    /// Returns the pause after try number `tried` (the first is 1). `chance` spreads it over the upper half
    /// of its length, so that many clients of a server that was away do not come back at once. A pause that
    /// the server asks for comes on top.
    pub(crate) fn pause(&self, tried: u32, chance: u8, retry_after: Option<Duration>) -> Duration {
        let doubled = 2_u32.checked_pow(tried.saturating_sub(1)).unwrap_or(u32::MAX);
        let half = self.first_pause.saturating_mul(doubled).min(self.longest_pause) / 2;
        let spread = half + half * u32::from(chance) / u32::from(u8::MAX);
        spread.saturating_add(retry_after.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_are_spread_over_their_upper_half() {
        let patience = Patience::default();
        let pauses = |chance| [1, 2, 3, 6, 100].map(|tried| patience.pause(tried, chance, None));
        let milliseconds = |pauses: [u64; 5]| pauses.map(Duration::from_millis);
        assert_eq!(pauses(255), milliseconds([500, 1000, 2000, 15_000, 15_000]));
        assert_eq!(pauses(0), milliseconds([250, 500, 1000, 7500, 7500]));
    }

    #[test]
    fn a_pause_is_never_shorter_than_what_the_server_asks_for() {
        let asked = Duration::from_secs(20);
        assert!(Patience::default().pause(1, 0, Some(asked)) >= asked);
        assert_eq!(Patience::default().pause(1, 0, Some(Duration::MAX)), Duration::MAX);
    }
}
