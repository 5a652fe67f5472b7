//! How many characters of a field are read: by the handlers, and as the reference tells it.

use iptunnel_domain::address::HostName;

/// The longest machine id, in characters.
pub const MACHINE_ID: usize = 128;
/// The longest SSH fingerprint.
pub const FINGERPRINT: usize = 255;
/// The longest token that is looked at.
pub const TOKEN: usize = 4096;
/// What is kept of an installer's version.
pub const VERSION: usize = 64;
/// What is kept of the version that is asked for.
pub const REF: usize = 255;
/// Longer than any code, so that a code of a wrong form is named as that.
pub const CODE: usize = 1024;
/// One more than a host name may have.
pub const HOSTNAME: usize = HostName::MAX_BYTES + 1;
/// The longest address.
pub const ADDRESS: usize = 64;
/// The longest activation id.
pub const ACTIVATION_ID: usize = 255;
/// Of a registered server: longer than any token or id that is good.
pub const FIELD: usize = 4096;
