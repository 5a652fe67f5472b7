//! Install tickets: what lets one machine register once, instead of an access token that lets many.
//!
//! A ticket is a text that only this server can have made: it names the access token that vouches for
//! the machine, when it was made and for how long it is good, and proves all that for one address. So no
//! ticket is stored. That each is good once follows from the record of the server at that address (see
//! [`Server::register_again`](crate::server::Server::register_again)).

use crate::access::{ONE_TIME_SECONDS, TokenNumber};
use crate::hex::{bytes_of, hex};
use crate::lookup::{LookupKey, Purpose};
use crate::time::{Lifespan, Timestamp};
use std::net::IpAddr;
use subtle::ConstantTimeEq;

/// The first letters of every ticket.
pub const PREFIX: &str = "itk_";

/// The bytes of the fields: token (3), time (6), lifetime (2), chance (1).
const FIELDS: usize = 12;
/// The bytes of the proof: a guess is right once in 2^96 times.
const PROOF: usize = 12;

/// The fields of a ticket. The text besides proves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The access token that vouches for the machine. Its number is below 2^24.
    pub token: TokenNumber,
    /// When it was made, in milliseconds since the Unix epoch, below 2^48.
    pub made_ms: u64,
    /// For how many seconds it is good.
    pub ttl_seconds: u16,
    /// Tells tickets apart that several servers make in the same millisecond.
    pub chance: u8,
}

impl Ticket {
    /// The shortest lifetime, in seconds.
    pub const MIN_TTL: u16 = 60;
    /// The longest lifetime, in seconds.
    pub const MAX_TTL: u16 = ONE_TIME_SECONDS as u16;
    /// The lifetime if nobody asks for another, in seconds.
    pub const TTL: u16 = 600;

    /// Returns from when until when it is good.
    pub const fn life(&self) -> Lifespan {
        let made = Timestamp(self.made_ms / 1000);
        Lifespan { from: made, until: made.plus(self.ttl_seconds as u64) }
    }

    fn fields(&self) -> Option<[u8; FIELDS]> {
        let [0, a, b, c] = self.token.0.to_be_bytes() else { return None };
        let [0, 0, d, e, f, g, h, i] = self.made_ms.to_be_bytes() else { return None };
        let [j, k] = self.ttl_seconds.to_be_bytes();
        Some([a, b, c, d, e, f, g, h, i, j, k, self.chance])
    }

    /// Returns the text of the ticket for the machine at `address`: a secret. `None` if a field is too
    /// large, which no server reaches: 2^24 access tokens, or the year 10889.
    pub fn text(&self, address: IpAddr, key: &LookupKey) -> Option<String> {
        let fields = self.fields()?;
        let proof = proof(&fields, address, key);
        Some(format!("{PREFIX}{}{}", hex(&fields), hex(&proof)))
    }

    /// Returns the ticket with this text, if it was made here for the machine at `address`. Its time may be
    /// over.
    pub fn verify(text: &str, address: IpAddr, key: &LookupKey) -> Option<Self> {
        let bytes: [u8; FIELDS + PROOF] = bytes_of(text.strip_prefix(PREFIX)?)?;
        let (fields, given) = bytes.split_first_chunk::<FIELDS>()?;
        if !bool::from(proof(fields, address, key).ct_eq(given)) {
            return None;
        }
        let [a, b, c, d, e, f, g, h, i, j, k, chance] = *fields;
        Some(Self {
            token: TokenNumber(u32::from_be_bytes([0, a, b, c])),
            made_ms: u64::from_be_bytes([0, 0, d, e, f, g, h, i]),
            ttl_seconds: u16::from_be_bytes([j, k]),
            chance,
        })
    }
}

/// Returns the proof that this server made a ticket with these fields for the machine at `address`.
fn proof(fields: &[u8; FIELDS], address: IpAddr, key: &LookupKey) -> [u8; PROOF] {
    let address = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let hash = key.hash(Purpose::Ticket, &[&fields[..], &address[..]].concat());
    let mut proof = [0; PROOF];
    proof.copy_from_slice(hash.0.split_at(PROOF).0);
    proof
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(8, 8, 8, 8));

    fn key() -> LookupKey {
        LookupKey::new(&[7; 32])
    }

    fn ticket() -> Ticket {
        let made_ms = 1_900_000_000_123;
        Ticket { token: TokenNumber(3), made_ms, ttl_seconds: Ticket::TTL, chance: 0xab }
    }

    #[test]
    fn a_ticket_has_the_text_that_it_always_had() {
        let text = ticket().text(ADDRESS, &key()).unwrap();
        assert_eq!(text, "itk_00000301ba60d3387b0258abe26f381110bea4c083f16cf0");
    }

    #[test]
    fn a_ticket_is_good_from_its_second_for_its_lifetime() {
        let life = ticket().life();
        assert_eq!((life.from.0, life.until.0), (1_900_000_000, 1_900_000_600));
        assert!(!life.is_over(Timestamp(1_900_000_599)) && life.is_over(life.until));
    }

    #[test]
    fn a_field_that_does_not_fit_makes_no_ticket() {
        let large = Ticket { token: TokenNumber(1 << 24), ..ticket() };
        let late = Ticket { made_ms: 1 << 48, ..ticket() };
        for ticket in [large, late] {
            assert_eq!(ticket.text(ADDRESS, &key()), None);
        }
    }

    #[test]
    fn a_ticket_is_good_for_its_address_under_its_key_alone() {
        let text = ticket().text(ADDRESS, &key()).unwrap();
        assert_eq!(Ticket::verify(&text, ADDRESS, &key()), Some(ticket()));
        assert_eq!(Ticket::verify(&text, IpAddr::from([8, 8, 8, 9]), &key()), None);
        assert_eq!(Ticket::verify(&text, ADDRESS, &LookupKey::new(&[8; 32])), None);
    }

    proptest! {
        #[test]
        fn every_ticket_is_read_back_and_a_changed_one_never_is(
            token in 0u32..1 << 24, made_ms in 0u64..1 << 48, ttl_seconds: u16, chance: u8,
            place in 0usize..52, other in "[ -~]",
        ) {
            let ticket = Ticket { token: TokenNumber(token), made_ms, ttl_seconds, chance };
            let text = ticket.text(ADDRESS, &key()).unwrap();
            prop_assert_eq!(text.len(), 52);
            prop_assert_eq!(Ticket::verify(&text, ADDRESS, &key()), Some(ticket));
            let mut changed = text.clone();
            changed.replace_range(place..=place, &other);
            if changed != text {
                prop_assert_eq!(Ticket::verify(&changed, ADDRESS, &key()), None);
            }
            prop_assert_eq!(Ticket::verify(&text[..place], ADDRESS, &key()), None);
        }

        #[test]
        fn reading_any_text_never_panics(text in "(itk_)?.{0,60}") {
            let _ = Ticket::verify(&text, ADDRESS, &key());
        }
    }
}
