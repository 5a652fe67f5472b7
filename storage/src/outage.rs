//! One line in the log when something begins to fail, and one when it works again.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Whether something fails, and since when: however many requests meet it, the log tells of it once
/// when it begins and once when it ends.
#[derive(Debug)]
pub struct Outage {
    begun: &'static str,
    over: &'static str,
    since: Mutex<Option<Instant>>,
}

impl Outage {
    /// Nothing fails yet. What the log says when it begins, and when it is over.
    pub const fn new(begun: &'static str, over: &'static str) -> Self {
        Self { begun, over, since: Mutex::new(None) }
    }

    /// It fails, and this is why. Returns whether that is news, and so was logged.
    pub fn begins(&self, why: &str) -> bool {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let news = since.is_none();
        if news {
            *since = Some(Instant::now());
            tracing::error!(why, "{}", self.begun);
        }
        news
    }

    /// It works.
    pub fn ends(&self) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(begun) = since.take() {
            let seconds = begun.elapsed().as_secs_f64();
            tracing::warn!(seconds, "{}", self.over);
        }
    }

    /// Whether it fails.
    pub fn is_on(&self) -> bool {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}
