//! What fields may be, for the handlers and the API reference: their maximum length in characters, and
//! which addresses servers may have.

use iptunnel_domain::address::HostName;

/// Why no server can register at an address, and no ticket is made for it.
pub const UNREACHABLE: &str = "ip must be an IPv4 or IPv6 address that the Internet can reach.";

/// The longest machine id, in characters.
pub const MACHINE_ID: usize = 128;
/// The longest SSH fingerprint, in characters.
pub const FINGERPRINT: usize = 255;
/// The longest token.
pub const TOKEN: usize = 4096;
/// The stored part of an installer's version.
pub const VERSION: usize = 64;
/// The stored part of `requested_ref`.
pub const REF: usize = 255;
/// Longer than any code, so that a malformed code gets an error about its form, not its length.
pub const CODE: usize = 1024;
/// One more than the longest host name, so that a name that is too long gets its own error.
pub const HOSTNAME: usize = HostName::MAX_BYTES + 1;
/// The longest address.
pub const ADDRESS: usize = 64;
/// Fields of the main stack's routes: longer than any valid token or id.
pub const FIELD: usize = 4096;
