//! The install code: its written form, and its states from issue to expiry.

use crate::activation::ActivationRef;
use crate::lookup::{KeyedHash, LookupKey, Purpose};
use crate::time::{Lifespan, Lifetimes, Timestamp};
use crate::{Refusal, Version};
use std::fmt;

/// The 32 characters of a code: capital letters and digits without I, O, 0 and 1, which people
/// confuse. Each character carries five bits.
const ALPHABET: &[u8; 32] = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789";

/// The number of random characters in a code: three groups of six.
const BODY: usize = 18;
const GROUP: usize = 6;
const PREFIX: &str = "IPT-";
/// The length of a written code: `IPT-SD-` and three groups of six with two hyphens between them.
const WRITTEN: usize = 4 + 2 + 1 + BODY + 2;

/// The two letters in a code that name its product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProductLetters([u8; 2]);

impl ProductLetters {
    /// Parses two letters A–Z in any case.
    pub fn parse(text: &str) -> Option<Self> {
        match text.as_bytes() {
            [a, b] if a.is_ascii_alphabetic() && b.is_ascii_alphabetic() => {
                Some(Self([a.to_ascii_uppercase(), b.to_ascii_uppercase()]))
            }
            _ => None,
        }
    }

    /// Returns the letters as bytes.
    pub const fn bytes(self) -> [u8; 2] {
        self.0
    }
}

impl fmt::Display for ProductLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = self.0;
        write!(f, "{}{}", char::from(a), char::from(b))
    }
}

/// A code as people read and type it. It is a secret until it is consumed.
#[derive(Clone, PartialEq, Eq)]
pub struct InstallCode {
    product: ProductLetters,
    body: [u8; BODY],
}

impl InstallCode {
    /// Makes a code from the lowest 90 of `bits`, five bits per character.
    pub fn from_random_bits(product: ProductLetters, mut bits: u128) -> Self {
        let body = std::array::from_fn(|_| {
            let character = ALPHABET.get((bits & 31) as usize).copied().unwrap_or(b'A');
            bits >>= 5;
            character
        });
        Self { product, body }
    }

    /// Parses a code in any case; white space around it is allowed.
    ///
    /// # Errors
    /// [`Refusal::InvalidField`] if the text is not `IPT-`, two letters and three groups of six
    /// characters of the alphabet.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        Self::read(text.trim()).ok_or_else(|| {
            Refusal::InvalidField(
                "install_code must have the form IPT-SD-XXXXXX-XXXXXX-XXXXXX.".into(),
            )
        })
    }

    fn read(text: &str) -> Option<Self> {
        if text.len() != WRITTEN || !text.is_ascii() {
            return None;
        }
        let text = text.to_ascii_uppercase();
        let mut groups = text.strip_prefix(PREFIX)?.split('-');
        let product = ProductLetters::parse(groups.next()?)?;
        let mut body = [0; BODY];
        for place in body.chunks_mut(GROUP) {
            let group = groups.next()?.as_bytes();
            if group.len() != GROUP || !group.iter().all(|c| ALPHABET.contains(c)) {
                return None;
            }
            place.copy_from_slice(group);
        }
        groups.next().is_none().then_some(Self { product, body })
    }

    /// Returns the product's letters.
    pub const fn product(&self) -> ProductLetters {
        self.product
    }

    /// Returns the full code in canonical spelling. The caller then handles a secret.
    pub fn reveal(&self) -> String {
        let mut text = String::with_capacity(WRITTEN);
        text.push_str(PREFIX);
        text.extend(self.product.0.map(char::from));
        for group in self.body.chunks(GROUP) {
            text.push('-');
            text.extend(group.iter().copied().map(char::from));
        }
        text
    }

    /// Returns the part of a code that may be shown: its first 11 characters, three dots, its last six.
    pub fn hint(&self) -> String {
        let text = self.reveal();
        let head = text.get(..11).unwrap_or_default();
        let tail = text.get(text.len() - GROUP..).unwrap_or_default();
        format!("{head}...{tail}")
    }

    /// Returns the hash under which the code is stored and looked up.
    pub fn hash(&self, key: &LookupKey) -> CodeHash {
        CodeHash(key.hash(Purpose::Code, self.reveal().as_bytes()))
    }
}

impl fmt::Debug for InstallCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstallCode({PREFIX}{}-…)", self.product)
    }
}

/// The keyed hash of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CodeHash(pub KeyedHash);

/// The number of a code in the order of issue. It only rises and is never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CodeNumber(pub u64);

/// The record of a code. It never contains the code itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// Its number in the order of issue.
    pub number: CodeNumber,
    /// The hash under which it is looked up.
    pub hash: CodeHash,
    /// The product it installs.
    pub product: ProductLetters,
    /// The keyed hash of the browser session that requested it.
    pub session: KeyedHash,
    /// When it was first issued.
    pub issued_at: Timestamp,
    /// When it expires. A release may move this to a later time.
    pub expires_at: Timestamp,
    /// The number of activations so far. A release does not lower it.
    pub activations: u32,
    /// Issued, or consumed by an activation.
    pub state: CodeState,
    /// The number of times the record was written.
    pub version: Version,
}

/// The stored state of a code. Expired is not a stored state: it follows from the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeState {
    /// The first machine to activate it gets it, until it expires.
    Issued,
    /// This activation consumed it.
    Consumed(ActivationRef),
}

/// The outcome of a precheck as far as the code alone decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precheck {
    /// The code can be activated.
    Ready,
    /// The code is consumed. This activation decides whether the caller holds it.
    Held(ActivationRef),
}

/// The outcome of an activate as far as the code alone decides it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Activate {
    /// The new activation may consume the code. Holds the code as consumed.
    Consume(Code),
    /// The code is consumed. This activation decides whether the caller holds it.
    Held(ActivationRef),
}

impl Code {
    /// Returns a new code, issued at `now`.
    pub fn issue(
        number: CodeNumber,
        hash: CodeHash,
        product: ProductLetters,
        session: KeyedHash,
        now: Timestamp,
        life: &Lifetimes,
    ) -> Self {
        Self {
            number,
            hash,
            product,
            session,
            issued_at: now,
            expires_at: now.plus(life.code),
            activations: 0,
            state: CodeState::Issued,
            version: 1,
        }
    }

    const fn lifespan(&self) -> Lifespan {
        Lifespan { from: self.issued_at, until: self.expires_at }
    }

    /// Returns the seconds until the code expires.
    pub const fn left(&self, now: Timestamp) -> u64 {
        self.lifespan().left(now)
    }

    /// Whether the code has expired. It expires in the second `expires_at`, without leeway. A code
    /// dated in the future (a clock was wrong) counts as expired.
    pub const fn is_expired(&self, now: Timestamp) -> bool {
        self.lifespan().is_over(now)
    }

    /// Checks whether an installation may begin with the code. Changes nothing.
    ///
    /// # Errors
    /// [`Refusal::CodeExpired`], then [`Refusal::CodeMaxActivations`].
    pub fn precheck(&self, now: Timestamp, life: &Lifetimes) -> Result<Precheck, Refusal> {
        match self.state {
            CodeState::Consumed(by) => Ok(Precheck::Held(by)),
            CodeState::Issued if self.is_expired(now) => Err(Refusal::CodeExpired),
            CodeState::Issued if self.is_worn_out(life) => Err(Refusal::CodeMaxActivations),
            CodeState::Issued => Ok(Precheck::Ready),
        }
    }

    /// Consumes the code for `by`. The code must not have been expired at `prechecked_at`, the time of
    /// the precheck. It may have expired since.
    ///
    /// # Errors
    /// [`Refusal::CodeExpired`], then [`Refusal::CodeMaxActivations`].
    pub fn activate(
        &self,
        by: ActivationRef,
        prechecked_at: Timestamp,
        life: &Lifetimes,
    ) -> Result<Activate, Refusal> {
        match self.state {
            CodeState::Consumed(by) => Ok(Activate::Held(by)),
            CodeState::Issued if self.is_expired(prechecked_at) => Err(Refusal::CodeExpired),
            CodeState::Issued if self.is_worn_out(life) => Err(Refusal::CodeMaxActivations),
            CodeState::Issued => Ok(Activate::Consume(self.consumed_by(by))),
        }
    }

    /// Whether the code allows no more activations.
    pub fn is_worn_out(&self, life: &Lifetimes) -> bool {
        self.activations >= life.max_activations
    }

    /// Returns the code as consumed by one more activation.
    pub fn consumed_by(&self, by: ActivationRef) -> Self {
        Self {
            state: CodeState::Consumed(by),
            activations: self.activations.saturating_add(1),
            version: self.version.saturating_add(1),
            ..self.clone()
        }
    }

    /// Returns the code as given back by `by`, or `None` if `by` does not hold it. The code is then
    /// valid until its old expiry or for `life.restored` seconds from now, whichever is later. A
    /// release never prolongs it beyond `life.max_lifetime` seconds from its first issue.
    pub fn restore(&self, by: ActivationRef, now: Timestamp, life: &Lifetimes) -> Option<Self> {
        if self.state != CodeState::Consumed(by) {
            return None;
        }
        let prolonged = now.plus(life.restored).min(self.issued_at.plus(life.max_lifetime));
        Some(Self {
            state: CodeState::Issued,
            expires_at: self.expires_at.max(prolonged),
            version: self.version.saturating_add(1),
            ..self.clone()
        })
    }

    /// Whether requests may still use the code: it has not expired, a precheck token from before its
    /// expiry may still be valid, or an activation opened with such a token may still be open.
    pub fn is_live(&self, now: Timestamp, life: &Lifetimes) -> bool {
        let until = self.expires_at.plus(life.precheck_token).plus(life.install_token);
        !Lifespan { from: self.issued_at, until }.is_over(now)
    }

    /// Whether it was issued at a time in the future (a clock was wrong). It counts as expired, and its
    /// record is kept until that time has passed.
    pub const fn is_dated_ahead(&self, now: Timestamp) -> bool {
        self.issued_at.is_ahead_of(now)
    }

    /// Whether the code could not have changed for `retention` seconds, so that its record may be
    /// deleted.
    pub fn is_forgettable(&self, now: Timestamp, retention: u64, life: &Lifetimes) -> bool {
        let longest = life.max_lifetime.max(life.code) + life.precheck_token + life.install_token;
        let closed = self.expires_at.max(self.issued_at.plus(longest));
        now >= closed.plus(retention)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::{ActivationId, ActivationNumber};
    use crate::time::SLACK;
    use proptest::prelude::*;

    const LIFE: Lifetimes = Lifetimes {
        code: 300,
        precheck_token: 900,
        install_token: 600,
        restored: 300,
        max_lifetime: 3600,
        max_activations: 5,
    };

    fn letters() -> ProductLetters {
        ProductLetters::parse("SD").unwrap()
    }

    fn by(number: u64) -> ActivationRef {
        ActivationRef { number: ActivationNumber(number), id: ActivationId(number + 100) }
    }

    fn issued_at(now: u64) -> Code {
        let hash = KeyedHash([1; 16]);
        Code::issue(CodeNumber(1), CodeHash(hash), letters(), hash, Timestamp(now), &LIFE)
    }

    fn consume(code: &Code, number: u64, at: u64) -> Code {
        match code.activate(by(number), Timestamp(at), &LIFE) {
            Ok(Activate::Consume(code)) => code,
            other => panic!("not consumed: {other:?}"),
        }
    }

    proptest! {
        #[test]
        fn every_code_parses_back_in_any_case_and_with_white_space(bits: u128) {
            let code = InstallCode::from_random_bits(letters(), bits);
            let text = code.reveal();
            prop_assert_eq!(&InstallCode::parse(&text).unwrap(), &code);
            let sloppy = format!("  {} \t", text.to_lowercase());
            prop_assert_eq!(InstallCode::parse(&sloppy).unwrap(), code);
        }

        #[test]
        fn parsing_any_text_never_panics(text: String) {
            let _ = InstallCode::parse(&text);
        }

        #[test]
        fn a_release_never_shortens_a_code_nor_prolongs_it_past_its_max_lifetime(
            issued in 0u64..10_000, lag in 0u64..10_000,
        ) {
            let code = consume(&issued_at(issued), 1, issued);
            let now = Timestamp(issued + lag);
            let restored = code.restore(by(1), now, &LIFE).unwrap();
            prop_assert!(restored.expires_at >= code.expires_at);
            prop_assert!(restored.expires_at <= Timestamp(issued + LIFE.max_lifetime));
        }
    }

    #[test]
    fn each_of_the_ninety_bits_changes_the_code() {
        let zero = InstallCode::from_random_bits(letters(), 0);
        assert_eq!(zero.reveal(), "IPT-SD-AAAAAA-AAAAAA-AAAAAA");
        for bit in 0..90 {
            assert_ne!(InstallCode::from_random_bits(letters(), 1 << bit), zero, "bit {bit}");
        }
        assert_eq!(InstallCode::from_random_bits(letters(), 1 << 90), zero);
    }

    #[test]
    fn malformed_codes_are_refused_as_an_invalid_field() {
        for text in [
            "",
            "IPT",
            "IPT-SD-AAAAAA-AAAAAA-AAAAA",
            "IPT-SD-AAAAAA-AAAAAA-AAAAAAA",
            "IPT-SD-AAAAAI-AAAAAA-AAAAAA",
            "IPT-SD-AAAAA0-AAAAAA-AAAAAA",
            "IPT-SD-AAAAAAA-AAAAA-AAAAAA",
            "IPT-S1-AAAAAA-AAAAAA-AAAAAA",
            "IPX-SD-AAAAAA-AAAAAA-AAAAAA",
            "IPT-SD-AAAAAA_AAAAAA-AAAAAA",
            "IPT-SD-ÄAAAAA-AAAAAA-AAAAA",
        ] {
            let refusal = InstallCode::parse(text).unwrap_err();
            assert!(
                matches!(&refusal, Refusal::InvalidField(m) if m.contains("install_code")),
                "{text}"
            );
        }
    }

    #[test]
    fn the_hint_shows_the_first_eleven_and_the_last_six_characters() {
        let code = InstallCode::parse("IPT-SD-ABCDEF-GHJKLM-NPQRST").unwrap();
        assert_eq!(code.hint(), "IPT-SD-ABCD...NPQRST");
        assert_eq!(format!("{code:?}"), "InstallCode(IPT-SD-…)");
    }

    proptest! {
        /// Clocks may be wrong when the code is issued, given back or used.
        #[test]
        fn the_time_left_of_a_code_is_at_most_its_lifetime_and_the_slack(
            issued in 0u64..10_000, lag in 0u64..10_000, now in 0u64..20_000,
        ) {
            let now = Timestamp(now);
            let code = issued_at(issued);
            prop_assert!(code.left(now) <= LIFE.code + SLACK);
            prop_assert_eq!(code.is_expired(now), code.left(now) == 0);
            let consumed = consume(&code, 1, issued);
            let restored = consumed.restore(by(1), Timestamp(issued + lag), &LIFE).unwrap();
            prop_assert!(restored.left(now) <= LIFE.max_lifetime + SLACK);
        }
    }

    #[test]
    fn a_code_dated_in_the_future_is_expired() {
        let code = issued_at(1000 + 10 * 365 * 86_400);
        assert_eq!(code.precheck(Timestamp(1000), &LIFE), Err(Refusal::CodeExpired));
        assert_eq!(code.activate(by(1), Timestamp(1000), &LIFE), Err(Refusal::CodeExpired));
        assert!(!code.is_live(Timestamp(1000), &LIFE));
    }

    #[test]
    fn a_code_is_valid_on_a_server_whose_clock_is_a_little_behind() {
        let code = issued_at(1000);
        let behind = Timestamp(1000 - SLACK);
        assert_eq!(code.precheck(behind, &LIFE), Ok(Precheck::Ready));
        assert!(code.is_expired(Timestamp(behind.0 - 1)));
    }

    #[test]
    fn a_code_is_valid_until_exactly_its_last_second() {
        let code = issued_at(1000);
        assert_eq!(code.precheck(Timestamp(1299), &LIFE), Ok(Precheck::Ready));
        assert_eq!(code.precheck(Timestamp(1300), &LIFE), Err(Refusal::CodeExpired));
    }

    #[test]
    fn a_precheck_before_the_expiry_allows_an_activation_after_it() {
        let code = issued_at(1000);
        assert!(matches!(code.activate(by(1), Timestamp(1299), &LIFE), Ok(Activate::Consume(_))));
        assert_eq!(code.activate(by(1), Timestamp(1300), &LIFE), Err(Refusal::CodeExpired));
    }

    #[test]
    fn a_consumed_code_points_to_its_holder() {
        let code = consume(&issued_at(1000), 7, 1000);
        assert_eq!(code.precheck(Timestamp(9999), &LIFE), Ok(Precheck::Held(by(7))));
        assert_eq!(code.activate(by(8), Timestamp(1000), &LIFE), Ok(Activate::Held(by(7))));
    }

    #[test]
    fn only_the_activation_that_holds_a_code_can_give_it_back() {
        let code = consume(&issued_at(1000), 7, 1000);
        assert_eq!(code.restore(by(8), Timestamp(1001), &LIFE), None);
        let restored = code.restore(by(7), Timestamp(1001), &LIFE).unwrap();
        assert_eq!((restored.state, restored.expires_at), (CodeState::Issued, Timestamp(1301)));
        assert_eq!(restored.restore(by(7), Timestamp(1001), &LIFE), None);
    }

    #[test]
    fn a_code_can_be_restored_after_its_fifth_activation_but_not_activated_again() {
        let mut code = issued_at(1000);
        for number in 0..5 {
            code = consume(&code, number, 1000);
            code = code.restore(by(number), Timestamp(1000), &LIFE).unwrap();
        }
        assert!(!code.is_expired(Timestamp(1000)));
        assert_eq!(code.precheck(Timestamp(1000), &LIFE), Err(Refusal::CodeMaxActivations));
        assert_eq!(code.activate(by(9), Timestamp(1000), &LIFE), Err(Refusal::CodeMaxActivations));
    }

    #[test]
    fn a_code_restored_after_its_max_lifetime_is_expired() {
        let code = consume(&issued_at(1000), 1, 1000);
        let late = Timestamp(1000 + 3600);
        assert!(code.restore(by(1), late, &LIFE).unwrap().is_expired(late));
    }
}
