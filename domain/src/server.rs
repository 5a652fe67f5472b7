//! A registered server: who it is, when it was last seen, and whether it may go on.

use crate::lookup::{KeyedHash, LookupKey, Purpose};
use crate::{Refusal, Timestamp, Version};
use std::fmt;
use std::net::IpAddr;

/// The name of a server in the API: 16 hexadecimal digits, derived from its address, so that the
/// same address always has the same id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(pub u64);

impl ServerId {
    /// The id of the server at `address`.
    pub fn of(address: IpAddr, key: &LookupKey) -> Self {
        let canonical = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        Self(key.hash(Purpose::Server, &canonical).as_u64())
    }

    /// Reads 16 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let well_formed = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        well_formed.then(|| u64::from_str_radix(text, 16).ok().map(Self))?
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A server's place in the order of registration; rises by one, never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerNumber(pub u32);

/// What is known of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its place in the order of registration.
    pub number: ServerNumber,
    /// Its name in the API.
    pub id: ServerId,
    /// Its address.
    pub ip: IpAddr,
    /// Its host name as it last registered; may be empty.
    pub hostname: String,
    /// When it first registered.
    pub registered_at: Timestamp,
    /// When it last registered or checked in.
    pub last_checkin: Timestamp,
    /// The keyed hash of the token that last registered it.
    pub token: KeyedHash,
    /// Whether its registration was revoked.
    pub revoked: bool,
    /// What its owner wrote about it.
    pub note: String,
    /// How often the record has been written; check-ins do not count.
    pub version: Version,
}

impl Server {
    /// The longest host name kept, in bytes: the limit of RFC 1035 section 2.3.4 in text form.
    pub const HOSTNAME_BYTES: usize = 253;

    /// The server as registered again, with its new host name and token.
    ///
    /// # Errors
    /// [`Refusal::ServerRevoked`]: revocation is sticky.
    pub fn register_again(
        &self,
        hostname: String,
        token: KeyedHash,
        now: Timestamp,
    ) -> Result<Self, Refusal> {
        if self.revoked {
            return Err(Refusal::ServerRevoked(self.id));
        }
        Ok(Self {
            hostname,
            token,
            last_checkin: now,
            version: self.version.saturating_add(1),
            ..self.clone()
        })
    }

    /// The longest note kept, in characters.
    pub const NOTE: usize = 500;

    /// The server with this note, cut where it is too long; `None` where it has it already.
    pub fn set_note(&self, note: String) -> Option<Self> {
        let note: String = note.chars().take(Self::NOTE).collect();
        (self.note != note).then(|| Self {
            note,
            version: self.version.saturating_add(1),
            ..self.clone()
        })
    }

    /// The server as revoked or restored; `None` where it is so already.
    pub fn set_revoked(&self, revoked: bool) -> Option<Self> {
        (self.revoked != revoked).then(|| Self {
            revoked,
            version: self.version.saturating_add(1),
            ..self.clone()
        })
    }
}

/// Who a check-in says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bearer {
    /// No token was sent.
    Nobody,
    /// Today's master token.
    Master,
    /// Some other token.
    Token(KeyedHash),
}

impl Bearer {
    /// Whether a server registered with `token` may be spoken for.
    pub fn may_speak_for(&self, token: &KeyedHash) -> bool {
        match self {
            Self::Nobody | Self::Master => true,
            Self::Token(given) => given.ct_eq(token),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_address_always_has_the_same_id_and_ids_read_back() {
        let key = LookupKey::new(&[3; 32]);
        let id = ServerId::of(IpAddr::from([1, 2, 3, 4]), &key);
        assert_eq!(id, ServerId::of(IpAddr::from([1, 2, 3, 4]), &key));
        assert_ne!(id, ServerId::of(IpAddr::from([1, 2, 3, 5]), &key));
        assert_eq!(ServerId::parse(&id.to_string()), Some(id));
        assert_eq!(ServerId::parse("+123456789abcdef"), None);
    }

    #[test]
    fn a_bearer_speaks_for_the_server_it_registered_and_the_master_for_all() {
        let (own, other) = (KeyedHash([1; 16]), KeyedHash([2; 16]));
        assert!(Bearer::Nobody.may_speak_for(&own));
        assert!(Bearer::Master.may_speak_for(&own));
        assert!(Bearer::Token(own).may_speak_for(&own));
        assert!(!Bearer::Token(other).may_speak_for(&own));
    }
}
