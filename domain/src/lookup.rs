//! Keyed hashes, under which secrets and identities are looked up without being stored.

use crate::hex::bytes_of;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fmt;

/// A 128-bit keyed hash: the first half of an HMAC-SHA-256.
///
/// With 128 bits the chance of a collision among 2^40 values is one in 2^49. Without the key nobody
/// can search for a value with a given hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyedHash(pub [u8; 16]);

impl KeyedHash {
    /// Returns the hash as a number, for keys and indexes.
    pub const fn as_u128(self) -> u128 {
        u128::from_be_bytes(self.0)
    }

    /// Returns the first eight bytes as a number.
    pub const fn as_u64(self) -> u64 {
        (self.as_u128() >> 64) as u64
    }

    /// Returns 32 lower-case hexadecimal digits.
    pub fn to_hex(self) -> String {
        format!("{:032x}", self.as_u128())
    }

    /// Parses a hash that [`Self::to_hex`] wrote; `None` if the text has another form.
    pub fn from_hex(text: &str) -> Option<Self> {
        bytes_of(text).map(Self)
    }

    /// Compares in constant time, so that the duration does not reveal where the two differ.
    pub fn ct_eq(&self, other: &Self) -> bool {
        subtle::ConstantTimeEq::ct_eq(&self.0[..], &other.0[..]).into()
    }
}

impl fmt::Debug for KeyedHash {
    /// Writes the first eight digits: enough to distinguish two hashes in a log, too few to use as a
    /// hash.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}…", (self.as_u128() >> 96) as u32)
    }
}

/// The kind of value that is hashed. The same text has unrelated hashes for two purposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// An install code.
    Code,
    /// A machine id.
    Machine,
    /// An SSH fingerprint.
    Fingerprint,
    /// A browser session id.
    Session,
    /// A caller's network.
    Network,
    /// A browser: its network and its `User-Agent`.
    Browser,
    /// A token: the master token, an access token, or what else registers a server.
    Token,
    /// The key that proves an install ticket.
    Ticket,
    /// The address from which a server's id is derived.
    Server,
    /// The head of the audit log, as earlier programs signed it.
    AuditHead,
    /// The key that signs the heads of the audit log.
    AuditKey,
    /// The settings that servers with a shared store must have in common.
    Agreement,
    /// The key of the cookies in which browsers keep their codes.
    CodeCookie,
    /// A file of the console that a restart reads.
    KeptFile,
}

impl Purpose {
    const fn label(self) -> &'static [u8] {
        match self {
            Self::Code => b"code\0",
            Self::Machine => b"machine\0",
            Self::Fingerprint => b"fingerprint\0",
            Self::Session => b"session\0",
            Self::Network => b"network\0",
            Self::Browser => b"browser\0",
            Self::Token => b"token\0",
            Self::Ticket => b"ticket\0",
            Self::Server => b"server\0",
            Self::AuditHead => b"audit head\0",
            Self::AuditKey => b"audit key\0",
            Self::CodeCookie => b"code cookie\0",
            Self::Agreement => b"agreement\0",
            Self::KeptFile => b"kept file\0",
        }
    }
}

/// The key of all keyed hashes. It is made once and never rotated: with another key no stored record
/// could be found.
#[derive(Clone)]
pub struct LookupKey(Hmac<Sha256>);

impl LookupKey {
    /// The length of a key in bytes: the output size of SHA-256, as RFC 2104 section 3 recommends.
    pub const BYTES: usize = 32;

    /// Makes a key from its bytes.
    pub fn new(bytes: &[u8; Self::BYTES]) -> Self {
        // RFC 2104 section 2: a shorter key is padded with zeros to the hash's block size.
        let mut block = [0; 64];
        block.split_at_mut(Self::BYTES).0.copy_from_slice(bytes);
        Self(<Hmac<Sha256> as KeyInit>::new(&block.into()))
    }

    /// Returns the keyed hash of `value` for `purpose`.
    pub fn hash(&self, purpose: Purpose, value: &[u8]) -> KeyedHash {
        let mut half = [0; 16];
        half.copy_from_slice(self.mac(purpose, value).split_at(16).0);
        KeyedHash(half)
    }

    /// Returns another key, derived from this one for `purpose`: a secret.
    pub fn derive(&self, purpose: Purpose) -> [u8; Self::BYTES] {
        self.mac(purpose, b"")
    }

    fn mac(&self, purpose: Purpose, value: &[u8]) -> [u8; 32] {
        let mut mac = self.0.clone();
        mac.update(purpose.label());
        mac.update(value);
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for LookupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LookupKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_text_has_unrelated_hashes_for_two_purposes_and_two_keys() {
        let (a, b) = (LookupKey::new(&[1; 32]), LookupKey::new(&[2; 32]));
        let hash = a.hash(Purpose::Code, b"x");
        assert_eq!(hash, a.hash(Purpose::Code, b"x"));
        assert_ne!(hash, a.hash(Purpose::Machine, b"x"));
        assert_ne!(hash, b.hash(Purpose::Code, b"x"));
    }

    #[test]
    fn only_32_lower_case_hexadecimal_digits_parse_as_a_hash() {
        let hash = KeyedHash(*b"\x00\x01\x0f\x10\xab\xcd\xef\xff89ABCDEF");
        let text = hash.to_hex();
        assert_eq!(text, "00010f10abcdefff3839414243444546");
        assert_eq!(KeyedHash::from_hex(&text), Some(hash));
        for wrong in
            ["", &text[1..], &format!("{text}0"), &text.to_uppercase(), &text.replace('a', "g")]
        {
            assert_eq!(KeyedHash::from_hex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn debug_output_reveals_neither_the_key_nor_a_whole_hash() {
        let key = LookupKey::new(&[7; 32]);
        let hash = key.hash(Purpose::Code, b"x");
        assert_eq!(format!("{key:?}"), "LookupKey(..)");
        assert!(!format!("{hash:?}").contains(&hash.to_hex()));
    }
}
