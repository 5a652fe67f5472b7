//! Access tokens: who may do what, from where and how long.
//!
//! An access token is a secret text with a name and a [`Role`]. Only keyed hashes of the text are kept.

use crate::address::Network;
use crate::lookup::KeyedHash;
use crate::time::Lifespan;
use crate::{Refusal, Timestamp, Version};
use std::fmt;
use std::net::IpAddr;

/// What the holder of a token may do. The numbers are part of the format on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Role {
    /// Register servers, check them in and see them, and nothing else.
    Enrol = 1,
    /// Read everything but secrets.
    View = 2,
    /// Besides, change servers and codes.
    Operate = 3,
    /// Besides, change settings and access tokens.
    Admin = 4,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::Enrol, Self::View, Self::Operate, Self::Admin];

    /// Whether a token with this role is good where `least` is the least role. `Admin` includes
    /// `Operate`, which includes `View`. `Enrol` stands alone: installed machines hold such tokens.
    pub const fn permits(self, least: Self) -> bool {
        match least {
            Self::Enrol => matches!(self, Self::Enrol),
            _ => self as u8 >= least as u8,
        }
    }

    /// Returns its name in commands, pages and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enrol => "enrol",
            Self::View => "view",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }

    /// Returns the role with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// The longest time for which a credential that is good once can be used, in seconds: tickets are good
/// for at most an hour, install tokens for an hour after the confirm.
pub const ONE_TIME_SECONDS: u64 = 3600;

/// The number of an access token in the order of creation, from 1. It is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenNumber(pub u32);

/// Says whether the access token with this number is good, wherever it is used from.
pub type IsGood = dyn Fn(TokenNumber) -> bool + Send + Sync;

/// The record of an access token. It never contains the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessToken {
    /// Its number in the order of creation.
    pub number: TokenNumber,
    /// Its name, as [`Self::parse_name`] accepts it. No two tokens that are not revoked share one.
    pub name: String,
    /// What its holder may do.
    pub role: Role,
    /// The keyed hash of its text.
    pub secret: KeyedHash,
    /// The keyed hash of an earlier text that is still good after a rotation, and the first second in which
    /// it is not good any more.
    pub previous: Option<(KeyedHash, Timestamp)>,
    /// When it was created.
    pub created_at: Timestamp,
    /// The first second in which it is not good any more; `None` if it has no end.
    pub expires_at: Option<Timestamp>,
    /// The networks that it may be used from, at most [`Self::NETWORKS`]. Empty: any.
    pub networks: Vec<Network>,
    /// Addresses that are given install tickets of this token without showing it, at most
    /// [`Self::ADDRESSES`]. Only a token to enrol has some.
    pub addresses: Vec<IpAddr>,
    /// The number of servers that it may enrol, revoked ones not counted; 0 for no bound.
    pub max_servers: u32,
    /// When it was last used; 0 if it never was. Written apart from the rest, some seconds later.
    pub last_used: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// The number of times the record was written; uses do not count.
    pub version: Version,
}

/// Why a genuine access token is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// It was revoked.
    Revoked,
    /// Its time is over, or it was created in the future: a clock was wrong.
    Expired,
    /// It is used from a network that it may not be used from.
    WrongNetwork,
}

impl AccessToken {
    /// The longest name, in characters.
    pub const NAME: usize = 64;
    /// The most networks that one token has.
    pub const NETWORKS: usize = 64;
    /// The most addresses that one token has.
    pub const ADDRESSES: usize = 1024;
    /// The longest grace of a rotation, in seconds: 30 days.
    pub const MAX_GRACE: u64 = 30 * 86_400;

    /// Checks the name of a token. White space around it is dropped.
    ///
    /// # Errors
    /// [`Refusal::InvalidField`] unless it has 1 to [`Self::NAME`] characters and no control character.
    pub fn parse_name(text: &str) -> Result<String, Refusal> {
        let name = text.trim();
        let length = name.chars().count();
        if (1..=Self::NAME).contains(&length) && !name.chars().any(char::is_control) {
            return Ok(name.to_owned());
        }
        let words =
            format!("name must have 1 to {} characters and no control characters.", Self::NAME);
        Err(Refusal::InvalidField(words))
    }

    /// Whether `given` is the hash of its text, or of an earlier text that is still good at `now`. Compares
    /// in constant time.
    pub fn has_secret(&self, given: &KeyedHash, now: Timestamp) -> bool {
        let is_earlier = |(hash, _): (KeyedHash, _)| hash.ct_eq(given);
        self.secret.ct_eq(given) || self.earlier(now).is_some_and(is_earlier)
    }

    /// Returns the earlier text that is still good at `now`, and its end.
    pub fn earlier(&self, now: Timestamp) -> Option<(KeyedHash, Timestamp)> {
        self.previous.filter(|(_, until)| now.is_before(*until, Self::MAX_GRACE))
    }

    /// Checks whether it is good at `now` for a caller at `from`; `None` for a caller on this machine.
    /// The caller has already verified the secret.
    ///
    /// # Errors
    /// The reason why it is not.
    pub fn is_good(&self, now: Timestamp, from: Option<IpAddr>) -> Result<(), WhyNot> {
        let is_over = |until| Lifespan { from: self.created_at, until }.is_over(now);
        let is_inside = |from: IpAddr| self.networks.iter().any(|network| network.contains(from));
        if self.revoked_at.is_some() {
            Err(WhyNot::Revoked)
        } else if self.expires_at.is_some_and(is_over) {
            Err(WhyNot::Expired)
        } else if !self.networks.is_empty() && !from.is_none_or(is_inside) {
            Err(WhyNot::WrongNetwork)
        } else {
            Ok(())
        }
    }

    /// Returns it with another secret. The secret of now stays good for `grace` seconds, at most
    /// [`Self::MAX_GRACE`]; after 0 no earlier one is good.
    ///
    /// If the grace of another rotation still runs, the oldest secret stays good in its place, until the
    /// later of the two ends: the answer with the secret of now may have been lost, and then only the oldest
    /// one is in use.
    #[must_use]
    pub fn rotate(&self, secret: KeyedHash, grace: u64, now: Timestamp) -> Self {
        let until = now.plus(grace);
        let oldest = self.earlier(now).map(|(hash, end)| (hash, end.max(until)));
        let kept = oldest.unwrap_or((self.secret, until));
        Self { secret, previous: (grace > 0).then_some(kept), ..self.changed() }
    }

    /// Returns it as revoked, without its lists, which nobody asks for any more; `None` if it already is.
    pub fn revoke(&self, now: Timestamp) -> Option<Self> {
        self.revoked_at.is_none().then(|| Self {
            revoked_at: Some(now),
            networks: Vec::new(),
            addresses: Vec::new(),
            ..self.changed()
        })
    }

    /// Returns it with another name; `None` if it already has this name.
    pub fn rename(&self, name: String) -> Option<Self> {
        (self.name != name).then(|| Self { name, ..self.changed() })
    }

    /// Returns it with the version of its next write. For changes of several fields at once.
    #[must_use]
    pub fn changed(&self) -> Self {
        Self { version: self.version.saturating_add(1), ..self.clone() }
    }
}

/// The characters of a token's text: each carries 5.95 bits.
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const PREFIX: &str = "ipt_";
/// The random characters of a text: 190 bits.
const RANDOM: usize = 32;
/// The characters of its checksum: 62^6 is more than 2^32.
const CHECKSUM: usize = 6;

/// Returns the text of a new token: `ipt_`, 32 random characters and six of their CRC-32. The checksum
/// tells a mistyped token from an unknown one, and lets scanners that search files for secrets be sure
/// of what they found.
///
/// `random` must be uniformly random. The text is a secret.
pub fn token_text(random: [u8; 32]) -> String {
    let mut number = random;
    let body: String = (0..RANDOM).map(|_| take_digit(&mut number)).collect();
    format!("{PREFIX}{body}{}", checksum(&body))
}

/// Divides a number, the highest byte first, by 62, and returns the remainder as a character.
fn take_digit(number: &mut [u8]) -> char {
    let mut rest = 0;
    for byte in number {
        let value = rest << 8 | u32::from(*byte);
        // A quotient of a remainder below 62 and one more byte is below 256.
        *byte = (value / 62) as u8;
        rest = value % 62;
    }
    BASE62.get(rest as usize).copied().map_or('0', char::from)
}

fn checksum(body: &str) -> String {
    let mut number = crc32(body.as_bytes()).to_be_bytes();
    let mut digits: Vec<char> = (0..CHECKSUM).map(|_| take_digit(&mut number)).collect();
    digits.reverse();
    digits.into_iter().collect()
}

/// The CRC-32 of ISO 3309, which zip and PNG use.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// What a text is that should be an access token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenForm {
    /// It has the form of an access token and the right checksum. Whether it is one, its hash tells.
    WellFormed,
    /// It begins like an access token, and something in it is wrong: a typing error, or a part is missing.
    Mistyped,
    /// It is something else.
    NotOne,
}

impl TokenForm {
    /// Returns what `text` is.
    pub fn of(text: &str) -> Self {
        let Some(rest) = text.strip_prefix(PREFIX) else { return Self::NotOne };
        let is_right = |(body, sum): (&str, &str)| {
            body.bytes().all(|byte| byte.is_ascii_alphanumeric()) && sum == checksum(body)
        };
        if rest.split_at_checked(RANDOM).is_some_and(is_right) {
            Self::WellFormed
        } else {
            Self::Mistyped
        }
    }
}

impl fmt::Display for TokenNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::SLACK;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn token() -> AccessToken {
        AccessToken {
            number: TokenNumber(1),
            name: "office".into(),
            role: Role::View,
            secret: KeyedHash([1; 16]),
            previous: None,
            created_at: NOW,
            expires_at: None,
            networks: Vec::new(),
            addresses: Vec::new(),
            max_servers: 0,
            last_used: Timestamp(0),
            revoked_at: None,
            version: 1,
        }
    }

    #[test]
    fn each_role_includes_those_below_it_and_enrol_stands_alone() {
        let permits = |role: Role| Role::ALL.map(|least| role.permits(least));
        assert_eq!(permits(Role::Enrol), [true, false, false, false]);
        assert_eq!(permits(Role::View), [false, true, false, false]);
        assert_eq!(permits(Role::Operate), [false, true, true, false]);
        assert_eq!(permits(Role::Admin), [false, true, true, true]);
        for role in Role::ALL {
            assert_eq!(Role::from_name(role.name()), Some(role));
        }
        assert_eq!(Role::from_name("root"), None);
    }

    #[test]
    fn a_checksum_is_the_well_known_crc_32() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(checksum("123456789").len(), CHECKSUM);
        let text = token_text(std::array::from_fn(|place| place as u8));
        assert_eq!(text, "ipt_flDIBkGwcRKRL9GXCgaFM3UNu2jQTClj37DPMA");
    }

    proptest! {
        #[test]
        fn every_token_is_well_formed_and_any_changed_character_is_noticed(
            random: [u8; 32], place in 0usize..42, other in "[ -~]",
        ) {
            let text = token_text(random);
            prop_assert_eq!(text.len(), 42);
            prop_assert_eq!(TokenForm::of(&text), TokenForm::WellFormed);
            let mut wrong = text.clone();
            wrong.replace_range(place..=place, &other);
            if wrong != text {
                let form = if place < PREFIX.len() { TokenForm::NotOne } else { TokenForm::Mistyped };
                prop_assert_eq!(TokenForm::of(&wrong), form);
            }
            prop_assert_eq!(TokenForm::of(&text[..place.max(4)]), TokenForm::Mistyped);
        }

        #[test]
        fn examining_any_text_never_panics(text in "(ipt_)?.{0,50}") {
            let _ = TokenForm::of(&text);
            let _ = AccessToken::parse_name(&text);
        }
    }

    #[test]
    fn two_random_numbers_make_two_tokens() {
        assert_ne!(token_text([1; 32]), token_text([2; 32]));
        assert_eq!(TokenForm::of("master"), TokenForm::NotOne);
    }

    #[test]
    fn a_token_is_good_until_its_end_from_its_networks_and_until_it_is_revoked() {
        let from = |text: &str| Some(text.parse().unwrap());
        let token = AccessToken {
            expires_at: Some(NOW.plus(60)),
            networks: vec![Network::parse("10.0.0.0/8").unwrap()],
            ..token()
        };
        assert_eq!(token.is_good(NOW.plus(59), from("10.1.2.3")), Ok(()));
        assert_eq!(token.is_good(NOW.plus(59), from("::ffff:10.1.2.3")), Ok(()));
        assert_eq!(token.is_good(NOW, None), Ok(()));
        assert_eq!(token.is_good(NOW, from("11.1.2.3")), Err(WhyNot::WrongNetwork));
        assert_eq!(token.is_good(NOW.plus(60), from("10.1.2.3")), Err(WhyNot::Expired));
        let early = Timestamp(NOW.0 - SLACK - 1);
        assert_eq!(token.is_good(early, from("10.1.2.3")), Err(WhyNot::Expired));
        let revoked = token.revoke(NOW).unwrap();
        assert_eq!(revoked.is_good(NOW, from("10.1.2.3")), Err(WhyNot::Revoked));
        assert_eq!((revoked.version, revoked.revoke(NOW)), (2, None));
    }

    #[test]
    fn after_a_rotation_the_old_text_is_good_for_its_grace_alone() {
        let (old, new) = (KeyedHash([1; 16]), KeyedHash([2; 16]));
        let token = token().rotate(new, 60, NOW);
        assert!(token.has_secret(&new, NOW.plus(1000)));
        assert!(token.has_secret(&old, NOW.plus(59)));
        assert!(!token.has_secret(&old, NOW.plus(60)));
        assert!(!token.has_secret(&KeyedHash([3; 16]), NOW));
        assert!(!token.rotate(old, 0, NOW).has_secret(&new, NOW));
        let by_a_wrong_clock =
            token.rotate(KeyedHash([3; 16]), 60, NOW.plus(10 * AccessToken::MAX_GRACE));
        assert!(!by_a_wrong_clock.has_secret(&new, NOW));
    }

    #[test]
    fn a_repeated_rotation_keeps_the_secret_in_use_until_the_later_end() {
        let [used, lost, last] = [1, 2, 3].map(|byte| KeyedHash([byte; 16]));
        for (first, second, end) in [(600, 60, 600), (60, 600, 610)] {
            let token = token().rotate(lost, first, NOW).rotate(last, second, NOW.plus(10));
            assert!(token.has_secret(&used, NOW.plus(end - 1)));
            assert!(!token.has_secret(&used, NOW.plus(end)));
            assert!(
                !token.has_secret(&lost, NOW.plus(10)) && token.has_secret(&last, NOW.plus(10))
            );
        }
        let rotated = token().rotate(lost, 60, NOW);
        let void = rotated.rotate(last, 0, NOW.plus(10));
        assert!(!void.has_secret(&used, NOW.plus(10)) && !void.has_secret(&lost, NOW.plus(10)));
        let after = rotated.rotate(last, 60, NOW.plus(60));
        assert!(after.has_secret(&lost, NOW.plus(60)) && !after.has_secret(&used, NOW.plus(60)));
    }

    #[test]
    fn names_have_1_to_64_characters_and_no_control_characters() {
        assert_eq!(AccessToken::parse_name(" Büro 1 "), Ok("Büro 1".into()));
        assert!(AccessToken::parse_name(&"ä".repeat(64)).is_ok());
        for wrong in ["", "  ", "a\nb", "a\u{1b}[2J", &"a".repeat(65)] {
            assert!(AccessToken::parse_name(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(token().rename("office".into()), None);
        assert_eq!(token().rename("home".into()).unwrap().version, 2);
    }
}
