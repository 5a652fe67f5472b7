//! What a code, an activation, a server and a limit **are** and **may do**.
//!
//! This crate knows no I/O, no clock, no randomness, no async runtime and no wire format: time and
//! random bits arrive as arguments, and every rule is a function from a state and a command to a
//! new state or a [`Refusal`].
//!
//! * [`code`]: the install code, its written form and its life (`issued`, `consumed`, `expired`)
//! * [`activation`]: one machine's hold on a consumed code, from open to confirmed or released
//! * [`server`]: a registered server, its check-ins and its revocation
//! * [`limit`]: fixed-window limits as arithmetic
//! * [`address`]: host names, public addresses, a caller's network
//! * [`audit`]: what happened and who did it, as a chain that shows tampering
//! * [`lookup`]: the keyed hashes under which secrets are found again
//! * [`time`]: whole seconds since the Unix epoch, and why a date in the future is not believed
//! * [`refusal`]: every way in which the rules say no

pub mod activation;
pub mod address;
pub mod audit;
pub mod code;
pub mod limit;
pub mod lookup;
pub mod refusal;
pub mod server;
pub mod time;

pub use refusal::Refusal;
pub use time::Timestamp;

/// How often a record has been written: 1 when it is new, one more with each change.
///
/// A change is decided on one version and stored only where the store still holds that version.
pub type Version = u32;
