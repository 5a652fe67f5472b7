//! The actors. Only they change state, and only this crate knows actix (the actor crate).
//!
//! A command travels one way and carries its [`Reply`] with it. The last actor on the way answers.
//! No actor waits for another, and no handler blocks: a handler translates, decides by the rules of
//! the domain, and forwards.
//!
//! Actors:
//!
//! * [`RateLimiter`](rate_limiter): charges limited requests and forwards those it grants
//! * [`CodeRegistry`](code_registry): the only writer of codes
//! * [`Activation`](activation): the only writer of activations
//! * [`ServerRegistry`](server_registry): the only writer of servers
//! * [`Persistence`](persistence): a thread that commits queued changes in batches, then answers
//! * [`Reader`](runtime::reader): threads that read records which memory lacks, before a command is decided
//! * [`LimitCounter`](memory::limit_counter): a thread that counts for the rate limiter where servers share a store
//!
//! Other modules:
//!
//! * [`messages`]: what the actors and the handlers send, with the reply types
//! * [`memory`]: what actors keep in memory: cached records, counters, check-ins, attempts
//! * [`runtime`]: how messages and replies travel: mailboxes, reply queues, permits, health, metrics
//!
//! [`Handles`] is the interface to all of them from outside.

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
