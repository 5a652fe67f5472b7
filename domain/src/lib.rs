//! What a code, an activation, a server and a limit **are** and **may do**.
//!
//! This crate has no I/O, no clock, no randomness, no async runtime and no wire format. Time and
//! random bits are arguments. Every rule is a function of a state and a command that returns a new
//! state or a [`Refusal`].
//!
//! * [`access`]: access tokens and their roles
//! * [`code`]: the install code, its written form and its states (issued, consumed, expired)
//! * [`activation`]: the record that a machine consumed a code: open, confirmed or released
//! * [`server`]: a registered server, its check-ins and its revocation
//! * [`import`]: servers that are taken over from another program's list
//! * [`ticket`]: what lets one machine register once
//! * [`agent_token`]: the secret with which a server checks in
//! * [`fleet`]: two machines that check in as one server, and many servers that are silent
//! * [`limit`]: fixed-window limits as arithmetic
//! * [`address`]: host names, public addresses, and a caller's network
//! * [`audit`]: the audit log: events in a hash chain that reveals tampering
//! * [`webhook`]: which events are told to whom, in which order, and when a delivery is given up
//! * [`lookup`]: keyed hashes under which secrets are stored and looked up
//! * [`time`]: whole seconds since the Unix epoch, and how dates in the future are treated
//! * [`refusal`]: every reason for which a request is refused

pub mod access;
pub mod activation;
pub mod address;
pub mod agent_token;
pub mod audit;
pub mod code;
pub mod fleet;
pub mod hex;
pub mod import;
pub mod limit;
pub mod lookup;
pub mod refusal;
pub mod server;
pub mod ticket;
pub mod time;
pub mod webhook;

pub use refusal::Refusal;
pub use time::Timestamp;

/// The version of a record: 1 when it is new, one more with each change.
///
/// The store accepts a change only if it still has the version on which the change was decided.
pub type Version = u32;
