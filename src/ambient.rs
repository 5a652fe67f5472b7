//! The clock and the randomness of the operating system: the one file that asks for either.
//! Everyone else is handed time and random bits.

#![allow(clippy::disallowed_methods)]

use iptunnel_domain::Timestamp;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Tells the time. Asked once for each request, at the edge.
pub trait Clock: Send + Sync + 'static {
    /// The present, in whole seconds; never earlier than what was told before.
    fn now(&self) -> Timestamp;

    /// Goes by another clock, which is ahead of the machine's by so many milliseconds.
    fn correct(&self, ahead: i64) {
        let _ = ahead;
    }
}

/// The machine's clock, kept from running backwards.
#[derive(Debug, Default)]
pub struct SystemClock {
    told: AtomicU64,
    /// Milliseconds by which the clock that counts is ahead of the machine's.
    ahead: AtomicI64,
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let ahead = self.ahead.load(Ordering::Relaxed);
        let seconds = machine_milliseconds().saturating_add_signed(ahead) / 1000;
        Timestamp(self.told.fetch_max(seconds, Ordering::Relaxed).max(seconds))
    }

    fn correct(&self, ahead: i64) {
        self.ahead.store(ahead, Ordering::Relaxed);
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
