//! The one error of the load generator: a sentence for the person who ran it. Nothing here is recovered from,
//! so nothing needs to be told apart.

use std::fmt::{self, Display};

/// Why the measurement ended early.
#[derive(Debug)]
pub struct Failure(String);

/// What every fallible function here returns.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure told by `message`.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Puts what was being done before what went wrong.
pub trait Context<T> {
    /// `doing` reads as the beginning of a sentence: "cannot read the master token". It is made before it is
    /// known whether it is needed: on the measured path only a constant will do.
    fn context(self, doing: impl Display) -> Result<T>;
}

impl<T, E: Display> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: impl Display) -> Result<T> {
        self.map_err(|error| Failure(format!("{doing}: {error}")))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, doing: impl Display) -> Result<T> {
        self.ok_or_else(|| Failure(doing.to_string()))
    }
}
