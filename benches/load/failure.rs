//! The only error of the load generator: a sentence for the person who runs it. The generator recovers from no
//! error, so it needs no kinds of errors.

use std::fmt::{self, Display};

/// The reason why the measurement ended early.
#[derive(Debug)]
pub struct Failure(String);

/// The result of every fallible function here.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// Creates a failure with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Adds the failed action before an error.
pub trait Context<T> {
    /// `doing` begins a sentence, for example "cannot read the master token". It is also built without an error,
    /// so on the measured path it must be a constant.
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
