//! The install code: its written form, and its life from issue to its last use.

use crate::activation::ActivationRef;
use crate::lookup::{KeyedHash, LookupKey, Purpose};
use crate::time::{Lifespan, Lifetimes, Timestamp};
use crate::{Refusal, Version};
use std::fmt;

/// The 32 characters of a code: capital letters and digits without I, O, 0 and 1, which people
/// mistake for each other. 32 of them carry five bits each.
const ALPHABET: &[u8; 32] = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789";

/// Characters that carry the code's randomness: three groups of six.
const BODY: usize = 18;
const GROUP: usize = 6;
const PREFIX: &str = "IPT-";
/// `IPT-SD-` and three groups of six, two hyphens between them.
const WRITTEN: usize = 4 + 2 + 1 + BODY + 2;

/// The two letters by which a code names its product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProductLetters([u8; 2]);

impl ProductLetters {
    /// Two capital letters A–Z, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        match text.as_bytes() {
            [a, b] if a.is_ascii_alphabetic() && b.is_ascii_alphabetic() => {
                Some(Self([a.to_ascii_uppercase(), b.to_ascii_uppercase()]))
            }
            _ => None,
        }
    }

    /// The letters as bytes.
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

/// A code as people read and type it: a secret until it is spent.
#[derive(Clone, PartialEq, Eq)]
pub struct InstallCode {
    product: ProductLetters,
    body: [u8; BODY],
}

impl InstallCode {
    /// A code from random bits: the lowest 90 of `bits`, five to a character.
    pub fn from_random_bits(product: ProductLetters, mut bits: u128) -> Self {
        let body = std::array::from_fn(|_| {
            let character = ALPHABET.get((bits & 31) as usize).copied().unwrap_or(b'A');
            bits >>= 5;
            character
        });
        Self { product, body }
    }

    /// Reads a code in any case, with blanks around it.
    ///
    /// # Errors
    /// [`Refusal::InvalidField`] where the text is not `IPT-`, two letters and three groups of six
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

    /// The product's letters.
    pub const fn product(&self) -> ProductLetters {
        self.product
    }

    /// The code in full, in its canonical spelling. Whoever calls this handles a secret.
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

    /// What may be shown of a code: its first 11 characters, three dots, its last six.
    pub fn hint(&self) -> String {
        let text = self.reveal();
        let head = text.get(..11).unwrap_or_default();
        let tail = text.get(text.len() - GROUP..).unwrap_or_default();
        format!("{head}...{tail}")
    }

    /// The hash under which the code is stored and found.
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

/// A code's place in the order of issue; rises by one, never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CodeNumber(pub u64);

/// What is known of a code. It never holds the code itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// Its place in the order of issue.
    pub number: CodeNumber,
    /// The hash under which it is found.
    pub hash: CodeHash,
    /// The product it installs.
    pub product: ProductLetters,
    /// The browser session that asked for it.
    pub session: KeyedHash,
    /// When it was first issued.
    pub issued_at: Timestamp,
    /// When it stops being good; releases move it.
    pub expires_at: Timestamp,
    /// How often it has been activated, releases not counted back.
    pub activations: u32,
    /// Issued, or consumed and by which activation.
    pub state: CodeState,
    /// How often the record has been written.
    pub version: Version,
}

/// Where a code stands. That it has expired is not a state: it follows from the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeState {
    /// Good for whoever comes first, until it expires.
    Issued,
    /// Spent on this activation.
    Consumed(ActivationRef),
}

/// What precheck finds out from the code alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precheck {
    /// The code is good.
    Ready,
    /// The code is consumed: whether the asker holds it is the activation's to say.
    Held(ActivationRef),
}

/// What activate finds out from the code alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Activate {
    /// The code as consumed by the new activation.
    Consume(Code),
    /// The code is consumed: whether the asker holds it is the activation's to say.
    Held(ActivationRef),
}

impl Code {
    /// A code as issued at `now`.
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

    /// Seconds until the code expires.
    pub const fn left(&self, now: Timestamp) -> u64 {
        self.lifespan().left(now)
    }

    /// Over from the second of `expires_at` on; there is no leeway. A code that was issued in a future
    /// that never came is over as well.
    pub const fn is_expired(&self, now: Timestamp) -> bool {
        self.lifespan().is_over(now)
    }

    /// Whether the code may begin an installation. Changes nothing.
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

    /// Consumes the code for `by`. A precheck that came before the code expired carries it past
    /// that moment: `prechecked_at` counts, not the present.
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

    /// Whether one more activation would be one too many.
    pub fn is_worn_out(&self, life: &Lifetimes) -> bool {
        self.activations >= life.max_activations
    }

    /// The code as consumed by one more activation.
    pub fn consumed_by(&self, by: ActivationRef) -> Self {
        Self {
            state: CodeState::Consumed(by),
            activations: self.activations.saturating_add(1),
            version: self.version.saturating_add(1),
            ..self.clone()
        }
    }

    /// The code as given back by the activation that holds it: good until its old expiry or
    /// `life.restored` from now, whichever is later, within `life.max_lifetime` of its first
    /// issue. `None` where `by` does not hold it.
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

    /// Whether the code can still play a part on the hot path: it is unexpired, a precheck in time
    /// may carry it, or an activation that took it at the last moment may be open.
    pub fn is_live(&self, now: Timestamp, life: &Lifetimes) -> bool {
        let until = self.expires_at.plus(life.precheck_token).plus(life.install_token);
        !Lifespan { from: self.issued_at, until }.is_over(now)
    }

    /// Whether it was issued in a future that never came: it is over, and stays where it is until then.
    pub const fn is_dated_ahead(&self, now: Timestamp) -> bool {
        self.issued_at.is_ahead_of(now)
    }

    /// Whether nothing has happened to the code, and nothing could, for `retention` seconds.
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
        fn every_code_reads_back_from_what_it_shows_in_any_case_and_with_blanks(bits: u128) {
            let code = InstallCode::from_random_bits(letters(), bits);
            let text = code.reveal();
            prop_assert_eq!(&InstallCode::parse(&text).unwrap(), &code);
            let sloppy = format!("  {} \t", text.to_lowercase());
            prop_assert_eq!(InstallCode::parse(&sloppy).unwrap(), code);
        }

        #[test]
        fn reading_any_text_never_panics(text: String) {
            let _ = InstallCode::parse(&text);
        }

        #[test]
        fn a_release_never_shortens_a_code_and_never_carries_it_past_its_longest_life(
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
    fn ninety_bits_make_the_code_and_every_one_of_them_counts() {
        let zero = InstallCode::from_random_bits(letters(), 0);
        assert_eq!(zero.reveal(), "IPT-SD-AAAAAA-AAAAAA-AAAAAA");
        for bit in 0..90 {
            assert_ne!(InstallCode::from_random_bits(letters(), 1 << bit), zero, "bit {bit}");
        }
        assert_eq!(InstallCode::from_random_bits(letters(), 1 << 90), zero);
    }

    #[test]
    fn codes_of_a_wrong_form_are_named_as_such() {
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
    fn the_hint_shows_eleven_characters_and_six() {
        let code = InstallCode::parse("IPT-SD-ABCDEF-GHJKLM-NPQRST").unwrap();
        assert_eq!(code.hint(), "IPT-SD-ABCD...NPQRST");
        assert_eq!(format!("{code:?}"), "InstallCode(IPT-SD-…)");
    }

    proptest! {
        /// Whatever the clock says later, and whatever it said when the code was made or given back.
        #[test]
        fn what_is_left_of_a_code_is_never_more_than_its_lifetime_and_the_slack(
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
    fn a_code_dated_in_a_future_that_never_came_is_expired() {
        let code = issued_at(1000 + 10 * 365 * 86_400);
        assert_eq!(code.precheck(Timestamp(1000), &LIFE), Err(Refusal::CodeExpired));
        assert_eq!(code.activate(by(1), Timestamp(1000), &LIFE), Err(Refusal::CodeExpired));
        assert!(!code.is_live(Timestamp(1000), &LIFE));
    }

    #[test]
    fn a_code_is_good_on_a_server_whose_clock_is_a_little_behind() {
        let code = issued_at(1000);
        let behind = Timestamp(1000 - SLACK);
        assert_eq!(code.precheck(behind, &LIFE), Ok(Precheck::Ready));
        assert!(code.is_expired(Timestamp(behind.0 - 1)));
    }

    #[test]
    fn a_code_is_good_until_exactly_its_last_second() {
        let code = issued_at(1000);
        assert_eq!(code.precheck(Timestamp(1299), &LIFE), Ok(Precheck::Ready));
        assert_eq!(code.precheck(Timestamp(1300), &LIFE), Err(Refusal::CodeExpired));
    }

    #[test]
    fn a_precheck_in_time_carries_the_activation_past_the_expiry() {
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
    fn only_the_activation_that_holds_a_code_gives_it_back() {
        let code = consume(&issued_at(1000), 7, 1000);
        assert_eq!(code.restore(by(8), Timestamp(1001), &LIFE), None);
        let restored = code.restore(by(7), Timestamp(1001), &LIFE).unwrap();
        assert_eq!((restored.state, restored.expires_at), (CodeState::Issued, Timestamp(1301)));
        assert_eq!(restored.restore(by(7), Timestamp(1001), &LIFE), None);
    }

    #[test]
    fn after_the_fifth_activation_a_code_is_restored_but_takes_no_sixth() {
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
    fn a_code_restored_after_its_longest_life_is_expired() {
        let code = consume(&issued_at(1000), 1, 1000);
        let late = Timestamp(1000 + 3600);
        assert!(code.restore(by(1), late, &LIFE).unwrap().is_expired(late));
    }
}
