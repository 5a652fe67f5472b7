//! The actors: the only place where state changes, and the only one that knows actix (the actor
//! crate).
//!
//! Commands travel one way and carry their [`Reply`] with them; the last room answers. No actor
//! waits for another, and no handler blocks: it translates, decides by the rules of the domain,
//! and forwards.
//!
//! * [`RateLimiter`](rate_limiter): charges limited requests and forwards what it lets through
//! * [`CodeRegistry`](code_registry): the only writer of codes
//! * [`Activation`](activation): the only writer of activations
//! * [`ServerRegistry`](server_registry): the only writer of servers
//! * [`Persistence`](persistence): a thread that commits whatever has gathered, then answers
//! * [`Reader`](reader): threads that look up what memory lacks, before a command is decided
//! * [`Charger`](charger): a thread that counts for the rate limiter where servers share a store
//!
//! [`Handles`] is the whole of it as seen from outside.

pub mod activation;
mod attempts;
mod charger;
mod check_ins;
pub mod code_registry;
mod counters;
mod handles;
mod health;
mod keeper;
mod mailbox;
mod numbers;
mod observed;
mod outbox;
mod persistence;
mod rate_limiter;
mod reader;
mod reply;
pub mod server_registry;
pub mod stepped;
mod tuning;
mod work;

pub use attempts::RefusedEarly;
pub use handles::{Handles, Parts, StartError, start};
pub use health::Health;
pub use observed::Observed;
pub use rate_limiter::{Limited, LimitedCommand};
pub use reply::{Answer, Failure, Outcome, Pending, Rates, Reply};
pub use tuning::{Batches, Tuning};
pub use work::{Command, Tick, Work};
