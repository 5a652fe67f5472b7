//! Logs one line when something begins to fail, and one when it works again.

use crate::ReadError;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// The state of something that may fail, and since when it fails. However many requests meet the
/// failure, it is logged once when it begins and once when it ends.
#[derive(Debug)]
pub struct Outage {
    begun: &'static str,
    over: &'static str,
    since: Mutex<Option<Instant>>,
}

impl Outage {
    /// Makes an outage that has not begun. `begun` is logged when it begins, `over` when it ends.
    pub const fn new(begun: &'static str, over: &'static str) -> Self {
        Self { begun, over, since: Mutex::new(None) }
    }

    /// Records a failure and its reason. Returns whether the outage has just begun, and so was
    /// logged.
    pub fn begins(&self, why: &str) -> bool {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let news = since.is_none();
        if news {
            *since = Some(Instant::now());
            tracing::error!(why, "{}", self.begun);
        }
        news
    }

    /// Records a success, which ends the outage.
    pub fn ends(&self) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(begun) = since.take() {
            let seconds = begun.elapsed().as_secs_f64();
            tracing::warn!(seconds, "{}", self.over);
        }
    }

    /// Records whether a request to the store failed, and returns its result.
    ///
    /// # Errors
    /// Those of the request.
    pub fn noted<T>(&self, result: Result<T, ReadError>) -> Result<T, ReadError> {
        match &result {
            Ok(_) => self.ends(),
            Err(error) => {
                self.begins(&error.to_string());
            }
        }
        result
    }

    /// Returns whether the outage is on.
    pub fn is_on(&self) -> bool {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}
