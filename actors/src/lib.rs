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
//! * [`Reader`](runtime::reader): threads that look up what memory lacks, before a command is decided
//! * [`LimitCounter`](memory::limit_counter): a thread that counts for the rate limiter where servers share a store
//!
//! [`Handles`] is the whole of it as seen from outside.

pub mod activation;
pub mod code_registry;
mod handles;
mod memory;
mod messages;
mod persistence;
mod rate_limiter;
mod runtime;
pub mod server_registry;

pub use handles::{Dependencies, Handles, StartError, start};
pub use memory::attempts::RefusedEarly;
pub use messages::work::{Command, Tick, Work};
pub use rate_limiter::{Limited, LimitedCommand};
pub use runtime::health::Health;
pub use runtime::metrics::Metrics;
pub use runtime::reply::{Answer, Failure, Outcome, Pending, Rates, Reply};
pub use runtime::stepped;
pub use runtime::tuning::{ActorSettings, Batches};
