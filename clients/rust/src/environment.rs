//! Time and chance. Only this file asks the operating system for either, so tests bring their own.

use std::time::{Duration, Instant};

/// What the client needs of the machine besides the network.
pub trait Environment: Send + Sync {
    /// Returns the time since some fixed moment. It never goes back.
    fn now(&self) -> Duration;
    /// Waits.
    fn sleep(&self, pause: Duration);
    /// Fills `bytes` with unpredictable ones.
    ///
    /// # Errors
    /// There are none to be had.
    fn random(&self, bytes: &mut [u8]) -> std::io::Result<()>;
}

/// The machine that the program runs on.
pub struct System {
    begun: Instant,
}

impl Default for System {
    fn default() -> Self {
        Self { begun: Instant::now() }
    }
}

impl Environment for System {
    fn now(&self) -> Duration {
        self.begun.elapsed()
    }
    fn sleep(&self, pause: Duration) {
        std::thread::sleep(pause);
    }
    #[expect(clippy::disallowed_methods, reason = "this is the place that the others ask")]
    fn random(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        getrandom::fill(bytes).map_err(std::io::Error::other)
    }
}
