//! The messages that travel between the actors and from the handlers, with their reply types.
//!
//! This module holds types alone. Each actor's own module says how it handles and forwards them.

pub(crate) mod activations;
pub(crate) mod codes;
pub(crate) mod limited;
pub(crate) mod servers;
pub(crate) mod work;

pub(crate) use work::{Command, Shutdown, Tick, Work};
