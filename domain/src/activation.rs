//! The activation: the record that a machine consumed a code. It is open, then confirmed or released.

use crate::access::ONE_TIME_SECONDS;
use crate::address::HostName;
use crate::code::{Code, CodeHash};
use crate::lookup::KeyedHash;
use crate::time::{Lifespan, Lifetimes, Timestamp};
use crate::{Refusal, Version};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// The id of an activation in the API: 64 random bits. It is a secret while the activation is open:
/// knowing it gives rights.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActivationId(pub u64);

impl ActivationId {
    /// Parses `act_` and 16 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("act_")?;
        let well_formed =
            digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        well_formed.then(|| u64::from_str_radix(digits, 16).ok().map(Self))?
    }

    /// Returns the full id as text. The caller then handles a secret.
    pub fn reveal(self) -> String {
        format!("act_{:016x}", self.0)
    }
}

impl fmt::Debug for ActivationId {
    /// Writes the first eight characters: logs, pages and metrics may show no more.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "act_{:04x}…", self.0 >> 48)
    }
}

/// The number of an activation in the order of opening. It only rises and is never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActivationNumber(pub u64);

/// The reference from a code to the activation that consumed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActivationRef {
    /// Its number in the order of opening.
    pub number: ActivationNumber,
    /// Its id in the API.
    pub id: ActivationId,
}

/// The name of an activation in the log: its number, and the part of its id that may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActivationName {
    /// Its number in the order of opening.
    pub number: ActivationNumber,
    /// The first four of its id's sixteen hexadecimal digits.
    pub digits: u16,
}

impl From<ActivationRef> for ActivationName {
    fn from(at: ActivationRef) -> Self {
        Self { number: at.number, digits: (at.id.0 >> 48) as u16 }
    }
}

impl ActivationName {
    /// Whether `id` begins with the same digits.
    pub const fn may_be(&self, id: ActivationId) -> bool {
        self.digits == (id.0 >> 48) as u16
    }
}

impl fmt::Display for ActivationName {
    /// Writes the first eight characters of its id.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "act_{:04x}", self.digits)
    }
}

/// The machine that sends a request: hashes of its machine id and of its SSH fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The keyed hash of the machine id.
    pub machine: KeyedHash,
    /// The keyed hash of the SSH fingerprint.
    pub fingerprint: KeyedHash,
}

/// The host name and public address of the server that is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Its host name.
    pub hostname: HostName,
    /// Its public address.
    pub public_ip: IpAddr,
}

/// The fields of an activate request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The machine that sends it.
    pub holder: Holder,
    /// The host name and address to bind.
    pub binding: Binding,
    /// The requested version of the software to install.
    pub requested_ref: String,
    /// The installer's own version.
    pub installer_version: String,
    /// The name of the key that signs the install token. It is kept so that the same token can be
    /// signed again.
    pub signing_key: String,
}

/// The record of an activation. Its install token is not stored: signing these fields again gives
/// the same token, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activation {
    /// Its number and its id.
    pub at: ActivationRef,
    /// The code it consumed.
    pub code: CodeHash,
    /// The request that opened it, with the machine that holds it. It is shared (`Arc`), because the
    /// cache, a pending commit and a reply use the same activation at the same time.
    pub request: Arc<Request>,
    /// When it was opened; the token's `iat`.
    pub opened_at: Timestamp,
    /// When its token expires; the token's `exp`.
    pub expires_at: Timestamp,
    /// Open, confirmed or released.
    pub state: ActivationState,
    /// The number of times the record was written.
    pub version: Version,
}

/// The stored state of an activation. Lapsed is not a stored state: it follows from the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationState {
    /// The machine is installing.
    Open,
    /// The installation was confirmed at this time.
    Confirmed(Timestamp),
    /// The code was given back at this time, or another activation of the same machine replaced this
    /// one.
    Released(Timestamp),
}

/// The outcome of an activate for a code that is consumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// The same machine asks for the same binding: it gets the same activation again.
    Repeat,
    /// The same machine asks for another binding: a new activation replaces this one, which is
    /// returned as released.
    Replace(Activation),
    /// The activation was released and the code given back. The caller decided on an old version of
    /// the code.
    Stale,
}

/// The outcome of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// The code must be given back. Holds the activation as released.
    GiveBack(Activation),
    /// The token has expired: nothing changes, and the code stays used.
    Lapsed,
    /// The installation is already confirmed: nothing changes.
    Confirmed,
}

/// The stage of an activation at a given time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its machine may continue.
    Open,
    /// Its token has expired.
    Lapsed,
    /// Its installation is complete.
    Confirmed,
    /// It gave the code back or was replaced.
    Released,
}

impl Stage {
    /// Every stage.
    pub const ALL: [Self; 4] = [Self::Open, Self::Lapsed, Self::Confirmed, Self::Released];

    /// Returns the name that pages and exports show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Lapsed => "lapsed",
            Self::Confirmed => "confirmed",
            Self::Released => "released",
        }
    }
}

impl Activation {
    /// Returns a new activation, opened at `now`.
    pub fn open(
        at: ActivationRef,
        code: CodeHash,
        request: Arc<Request>,
        now: Timestamp,
        life: &Lifetimes,
    ) -> Self {
        Self {
            at,
            code,
            request,
            opened_at: now,
            expires_at: now.plus(life.install_token),
            state: ActivationState::Open,
            version: 1,
        }
    }

    /// Whether its token has expired, or is dated in the future (a clock was wrong).
    const fn is_over(&self, now: Timestamp) -> bool {
        Lifespan { from: self.opened_at, until: self.expires_at }.is_over(now)
    }

    /// Whether it is neither confirmed nor released, and its token has not expired.
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.state == ActivationState::Open && !self.is_over(now)
    }

    /// Whether the code was given back, or another activation of the same machine replaced this one.
    pub const fn is_released(&self) -> bool {
        matches!(self.state, ActivationState::Released(_))
    }

    /// Returns its stage at `now`.
    pub fn stage(&self, now: Timestamp) -> Stage {
        match self.state {
            ActivationState::Open if self.is_open(now) => Stage::Open,
            ActivationState::Open => Stage::Lapsed,
            ActivationState::Confirmed(_) => Stage::Confirmed,
            ActivationState::Released(_) => Stage::Released,
        }
    }

    /// Checks that `holder` may continue with the code that this activation consumed.
    ///
    /// # Errors
    /// [`Refusal::CodeUsed`] unless `holder` is the machine that holds this activation and it is open.
    pub fn precheck(&self, holder: &Holder, now: Timestamp) -> Result<(), Refusal> {
        if self.is_open(now) && self.request.holder == *holder {
            Ok(())
        } else {
            Err(Refusal::CodeUsed)
        }
    }

    /// Decides on an activate for the code that this activation consumed.
    ///
    /// # Errors
    /// [`Refusal::CodeUsed`] unless the request is of the machine that holds this activation and it
    /// is open; [`Refusal::CodeMaxActivations`] if the binding changed and the code allows no more
    /// activations.
    pub fn resume(
        &self,
        request: &Request,
        code: &Code,
        now: Timestamp,
        life: &Lifetimes,
    ) -> Result<Resume, Refusal> {
        if self.is_released() {
            return Ok(Resume::Stale);
        }
        self.precheck(&request.holder, now)?;
        if self.request.binding == request.binding {
            return Ok(Resume::Repeat);
        }
        if code.is_worn_out(life) {
            return Err(Refusal::CodeMaxActivations);
        }
        Ok(Resume::Replace(self.become_state(ActivationState::Released(now))))
    }

    /// Confirms the installation. The caller has already verified the token.
    ///
    /// # Errors
    /// [`Refusal::TokenUsed`] if it is already confirmed, [`Refusal::ActivationNotFound`] if it was
    /// released, [`Refusal::TokenInvalid`] if the token has expired.
    pub fn confirm(&self, now: Timestamp) -> Result<Self, Refusal> {
        match self.state {
            ActivationState::Confirmed(_) => Err(Refusal::TokenUsed),
            ActivationState::Released(_) => Err(Refusal::ActivationNotFound),
            ActivationState::Open if self.is_over(now) => Err(Refusal::TokenInvalid),
            ActivationState::Open => Ok(self.become_state(ActivationState::Confirmed(now))),
        }
    }

    /// Returns when the installation was confirmed, if its token may register the server at `ip`: for an hour
    /// from then, at the address that was bound. The caller has already verified the token.
    ///
    /// # Errors
    /// [`Refusal::ActivationNotFound`] if it was released, [`Refusal::InvalidField`] if it is bound to another
    /// address, [`Refusal::TokenInvalid`] if it is not confirmed, or was confirmed too long ago.
    pub fn enrols(&self, ip: IpAddr, now: Timestamp) -> Result<Timestamp, Refusal> {
        let confirmed_at = self.confirmed_lately(now)?;
        if self.request.binding.public_ip != ip {
            let message = "ip must be the address that the installation was activated for.";
            return Err(Refusal::InvalidField(message.into()));
        }
        Ok(confirmed_at)
    }

    /// Returns when the installation was confirmed, if that was less than an hour ago.
    fn confirmed_lately(&self, now: Timestamp) -> Result<Timestamp, Refusal> {
        let confirmed_at = match self.state {
            ActivationState::Confirmed(at) => at,
            ActivationState::Released(_) => return Err(Refusal::ActivationNotFound),
            ActivationState::Open => return Err(Refusal::TokenInvalid),
        };
        let life = Lifespan { from: confirmed_at, until: confirmed_at.plus(ONE_TIME_SECONDS) };
        if life.is_over(now) { Err(Refusal::TokenInvalid) } else { Ok(confirmed_at) }
    }

    /// Checks that the machine may load what it installs: while the activation is open, and for an hour from
    /// the confirm. The caller has already verified the token.
    ///
    /// # Errors
    /// [`Refusal::ActivationNotFound`] if it was released, [`Refusal::TokenInvalid`] if it has lapsed, or was
    /// confirmed too long ago.
    pub fn installs(&self, now: Timestamp) -> Result<(), Refusal> {
        if self.is_open(now) { Ok(()) } else { self.confirmed_lately(now).map(drop) }
    }

    /// Releases the activation if it is still open, so that the code can be given back.
    ///
    /// # Errors
    /// [`Refusal::ActivationNotFound`] if it was already released.
    pub fn release(&self, now: Timestamp) -> Result<Release, Refusal> {
        match self.state {
            ActivationState::Released(_) => Err(Refusal::ActivationNotFound),
            ActivationState::Confirmed(_) => Ok(Release::Confirmed),
            ActivationState::Open if self.is_over(now) => Ok(Release::Lapsed),
            ActivationState::Open => {
                Ok(Release::GiveBack(self.become_state(ActivationState::Released(now))))
            }
        }
    }

    /// Returns when it was confirmed or released, or else when its token expires.
    const fn closed_at(&self) -> Timestamp {
        match self.state {
            ActivationState::Open => self.expires_at,
            ActivationState::Confirmed(at) | ActivationState::Released(at) => at,
        }
    }

    /// Whether it has been closed for `retention` seconds, so that its record may be deleted.
    pub fn is_forgettable(&self, now: Timestamp, retention: u64) -> bool {
        now >= self.closed_at().plus(retention)
    }

    /// Whether it was opened, confirmed or released at a time in the future (a clock was wrong).
    pub fn is_dated_ahead(&self, now: Timestamp) -> bool {
        let is_open = self.state == ActivationState::Open;
        let last = if is_open { self.opened_at } else { self.closed_at() };
        self.opened_at.max(last).is_ahead_of(now)
    }

    fn become_state(&self, state: ActivationState) -> Self {
        Self { state, version: self.version.saturating_add(1), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::{CodeNumber, ProductLetters};
    use crate::time::SLACK;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp(1000);

    fn at(number: u64) -> ActivationRef {
        ActivationRef { number: ActivationNumber(number), id: ActivationId(number) }
    }

    fn request(machine: u8, host: &str) -> Arc<Request> {
        Arc::new(Request {
            holder: Holder {
                machine: KeyedHash([machine; 16]),
                fingerprint: KeyedHash([machine; 16]),
            },
            binding: Binding {
                hostname: HostName::parse(host).unwrap(),
                public_ip: IpAddr::from([1, 2, 3, 4]),
            },
            requested_ref: "main".into(),
            installer_version: "1".into(),
            signing_key: "k".into(),
        })
    }

    fn opened() -> (Code, Activation) {
        let life = Lifetimes::default();
        let hash = CodeHash(KeyedHash([9; 16]));
        let letters = ProductLetters::parse("SD").unwrap();
        let code = Code::issue(CodeNumber(1), hash, letters, hash.0, NOW, &life).consumed_by(at(1));
        (code, Activation::open(at(1), hash, request(1, "a.example.com"), NOW, &life))
    }

    fn resume(machine: u8, host: &str, now: Timestamp) -> Result<Resume, Refusal> {
        let (code, activation) = opened();
        activation.resume(&request(machine, host), &code, now, &Lifetimes::default())
    }

    #[test]
    fn a_confirmed_activation_enrols_its_address_for_an_hour() {
        let (_, open) = opened();
        let (here, there) = (open.request.binding.public_ip, IpAddr::from([1, 2, 3, 5]));
        assert_eq!(open.enrols(here, NOW), Err(Refusal::TokenInvalid));
        let confirmed = open.confirm(NOW.plus(60)).unwrap();
        let end = NOW.plus(60 + ONE_TIME_SECONDS);
        for now in [NOW.plus(60), Timestamp(end.0 - 1)] {
            assert_eq!(confirmed.enrols(here, now), Ok(NOW.plus(60)));
        }
        assert_eq!(confirmed.enrols(here, end), Err(Refusal::TokenInvalid));
        assert!(matches!(confirmed.enrols(there, NOW.plus(60)), Err(Refusal::InvalidField(_))));
        let Release::GiveBack(released) = open.release(NOW).unwrap() else { panic!() };
        assert_eq!(released.enrols(here, NOW), Err(Refusal::ActivationNotFound));
    }

    #[test]
    fn a_machine_may_load_what_it_installs_until_an_hour_after_the_confirm() {
        let (_, open) = opened();
        let lapses = NOW.plus(600);
        assert_eq!(open.installs(Timestamp(lapses.0 - 1)), Ok(()));
        assert_eq!(open.installs(lapses), Err(Refusal::TokenInvalid));
        let confirmed = open.confirm(NOW.plus(60)).unwrap();
        let end = NOW.plus(60 + ONE_TIME_SECONDS);
        assert_eq!(confirmed.installs(Timestamp(end.0 - 1)), Ok(()));
        assert_eq!(confirmed.installs(end), Err(Refusal::TokenInvalid));
        let Release::GiveBack(released) = open.release(NOW).unwrap() else { panic!() };
        assert_eq!(released.installs(NOW), Err(Refusal::ActivationNotFound));
    }

    #[test]
    fn ids_parse_back_and_debug_output_shows_eight_characters() {
        let id = ActivationId(0xa1b2_c3d4_e5f6_a7b8);
        assert_eq!(id.reveal(), "act_a1b2c3d4e5f6a7b8");
        assert_eq!(ActivationId::parse(&id.reveal()), Some(id));
        assert_eq!(format!("{id:?}"), "act_a1b2…");
        for wrong in
            ["", "act_", "act_a1b2c3d4e5f6a7b", "act_A1B2C3D4E5F6A7B8", "act_+1b2c3d4e5f6a7b8"]
        {
            assert_eq!(ActivationId::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_the_holding_machine_resumes_and_others_get_code_used() {
        assert_eq!(resume(1, "a.example.com", NOW), Ok(Resume::Repeat));
        assert_eq!(resume(2, "a.example.com", NOW), Err(Refusal::CodeUsed));
        assert!(matches!(resume(1, "b.example.com", NOW), Ok(Resume::Replace(_))));
    }

    #[test]
    fn a_lapsed_activation_keeps_its_code_used_for_every_machine() {
        let lapsed = NOW.plus(600);
        assert_eq!(resume(1, "a.example.com", lapsed), Err(Refusal::CodeUsed));
        let (_, activation) = opened();
        assert_eq!(activation.release(lapsed), Ok(Release::Lapsed));
        assert_eq!(activation.confirm(lapsed), Err(Refusal::TokenInvalid));
    }

    proptest! {
        #[test]
        fn an_activation_is_open_for_at_most_its_lifetime_and_the_slack(now in 0u64..10_000) {
            let (_, activation) = opened();
            let now = Timestamp(now);
            let earliest = NOW.0 - SLACK;
            let may_be_open = earliest <= now.0 && now < NOW.plus(600);
            prop_assert_eq!(activation.is_open(now), may_be_open);
            prop_assert_eq!(activation.confirm(now).is_ok(), may_be_open);
            let given_back = matches!(activation.release(now), Ok(Release::GiveBack(_)));
            prop_assert_eq!(given_back, may_be_open);
        }
    }

    #[test]
    fn another_binding_is_refused_once_the_code_allows_no_more_activations() {
        let (mut code, activation) = opened();
        code.activations = 5;
        let other = request(1, "b.example.com");
        assert_eq!(
            activation.resume(&other, &code, NOW, &Lifetimes::default()),
            Err(Refusal::CodeMaxActivations)
        );
    }

    #[test]
    fn an_activation_is_confirmed_once_and_a_later_release_changes_nothing() {
        let (_, activation) = opened();
        let confirmed = activation.confirm(NOW).unwrap();
        assert_eq!(confirmed.confirm(NOW), Err(Refusal::TokenUsed));
        assert_eq!(confirmed.release(NOW), Ok(Release::Confirmed));
        assert_eq!(confirmed.release(NOW.plus(9999)), Ok(Release::Confirmed));
        assert_eq!(confirmed.precheck(&activation.request.holder, NOW), Err(Refusal::CodeUsed));
    }

    #[test]
    fn an_activation_is_released_once_and_cannot_be_confirmed_afterwards() {
        let (code, activation) = opened();
        let Ok(Release::GiveBack(released)) = activation.release(NOW) else {
            panic!("not released")
        };
        assert_eq!(released.release(NOW), Err(Refusal::ActivationNotFound));
        assert_eq!(released.confirm(NOW), Err(Refusal::ActivationNotFound));
        let again = released.resume(&activation.request, &code, NOW, &Lifetimes::default());
        assert_eq!(again, Ok(Resume::Stale));
    }
}
