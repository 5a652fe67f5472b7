//! A registered server: its identity, its last check-in, and whether it is revoked.

use crate::lookup::{KeyedHash, LookupKey, Purpose};
use crate::{Refusal, Timestamp, Version};
use std::fmt;
use std::net::IpAddr;

/// The id of a server in the API: 16 hexadecimal digits. It is derived from the server's address, so
/// the same address always has the same id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(pub u64);

impl ServerId {
    /// Returns the id of the server at `address`.
    pub fn of(address: IpAddr, key: &LookupKey) -> Self {
        let canonical = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        Self(key.hash(Purpose::Server, &canonical).as_u64())
    }

    /// Parses 16 hexadecimal digits.
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

/// The number of a server in the order of registration. It only rises and is never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerNumber(pub u32);

/// The record of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its number in the order of registration.
    pub number: ServerNumber,
    /// Its id in the API.
    pub id: ServerId,
    /// Its address.
    pub ip: IpAddr,
    /// Its host name in the last registration; may be empty.
    pub hostname: String,
    /// When it first registered.
    pub registered_at: Timestamp,
    /// When it last registered or checked in.
    pub last_checkin: Timestamp,
    /// The keyed hash of the token of its last registration.
    pub token: KeyedHash,
    /// Whether its registration was revoked.
    pub revoked: bool,
    /// The operator's note about it.
    pub note: String,
    /// The number of times the record was written; check-ins do not count.
    pub version: Version,
}

impl Server {
    /// The longest host name kept, in bytes: the limit of RFC 1035 section 2.3.4 in text form.
    pub const HOSTNAME_BYTES: usize = 253;

    /// Returns the server as registered again, with its new host name and token.
    ///
    /// # Errors
    /// [`Refusal::ServerRevoked`] if it is revoked: registering again does not undo a revocation.
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

    /// Returns the server with this note, cut to [`Self::NOTE`] characters; `None` if it already has
    /// this note.
    pub fn set_note(&self, note: String) -> Option<Self> {
        let note: String = note.chars().take(Self::NOTE).collect();
        (self.note != note).then(|| Self {
            note,
            version: self.version.saturating_add(1),
            ..self.clone()
        })
    }

    /// Returns the server as revoked or restored; `None` if it already is.
    pub fn set_revoked(&self, revoked: bool) -> Option<Self> {
        (self.revoked != revoked).then(|| Self {
            revoked,
            version: self.version.saturating_add(1),
            ..self.clone()
        })
    }
}

/// The credential that a check-in brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bearer {
    /// No token was sent.
    Nobody,
    /// The current master token.
    Master,
    /// Another token, as its keyed hash.
    Token(KeyedHash),
}

impl Bearer {
    /// Whether the check-in is accepted for a server that registered with `token`.
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
    fn the_same_address_always_has_the_same_id_and_ids_parse_back() {
        let key = LookupKey::new(&[3; 32]);
        let id = ServerId::of(IpAddr::from([1, 2, 3, 4]), &key);
        assert_eq!(id, ServerId::of(IpAddr::from([1, 2, 3, 4]), &key));
        assert_ne!(id, ServerId::of(IpAddr::from([1, 2, 3, 5]), &key));
        assert_eq!(ServerId::parse(&id.to_string()), Some(id));
        assert_eq!(ServerId::parse("+123456789abcdef"), None);
    }

    #[test]
    fn a_token_checks_in_its_own_server_and_the_master_token_any() {
        let (own, other) = (KeyedHash([1; 16]), KeyedHash([2; 16]));
        assert!(Bearer::Nobody.may_speak_for(&own));
        assert!(Bearer::Master.may_speak_for(&own));
        assert!(Bearer::Token(own).may_speak_for(&own));
        assert!(!Bearer::Token(other).may_speak_for(&own));
    }
}
