//! An activation: one machine's hold on a consumed code, from open to confirmed or released.

use crate::address::HostName;
use crate::code::{Code, CodeHash};
use crate::lookup::KeyedHash;
use crate::time::{Lifespan, Lifetimes, Timestamp};
use crate::{Refusal, Version};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// The name of an activation in the API: 64 random bits, a capability while it is open.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActivationId(pub u64);

impl ActivationId {
    /// Reads `act_` and 16 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("act_")?;
        let well_formed =
            digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        well_formed.then(|| u64::from_str_radix(digits, 16).ok().map(Self))?
    }

    /// The id in full. Whoever calls this handles a capability.
    pub fn reveal(self) -> String {
        format!("act_{:016x}", self.0)
    }
}

impl fmt::Debug for ActivationId {
    /// The first eight characters: as much as logs, pages and metrics may show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "act_{:04x}…", self.0 >> 48)
    }
}

/// An activation's place in the order of opening; rises by one, never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActivationNumber(pub u64);

/// How a code names the activation that consumed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActivationRef {
    /// Its place in the order of opening.
    pub number: ActivationNumber,
    /// Its name in the API.
    pub id: ActivationId,
}

/// The machine that asks: hashes of its machine id and of its SSH fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The keyed hash of the machine id.
    pub machine: KeyedHash,
    /// The keyed hash of the SSH fingerprint.
    pub fingerprint: KeyedHash,
}

/// What the installed server will be known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Its host name.
    pub hostname: HostName,
    /// Its public address.
    pub public_ip: IpAddr,
}

/// What an installer asks for beyond the binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asks.
    pub holder: Holder,
    /// What to bind.
    pub binding: Binding,
    /// The version of the installed software that is asked for.
    pub requested_ref: String,
    /// The installer's own version.
    pub installer_version: String,
    /// The name of the key that signs the install token, so that the same token can be made again.
    pub signing_key: String,
}

/// What is known of an activation. Its install token is not stored: it is signed anew from these
/// facts, byte for byte the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activation {
    /// Its place and its name.
    pub at: ActivationRef,
    /// The code it consumed.
    pub code: CodeHash,
    /// Who holds it, and what was asked for. Shared: an activation is in memory, on its way to the
    /// disk and in an answer at once.
    pub request: Arc<Request>,
    /// When it was opened; the token's `iat`.
    pub opened_at: Timestamp,
    /// When its token runs out; the token's `exp`.
    pub expires_at: Timestamp,
    /// Open, confirmed or released.
    pub state: ActivationState,
    /// How often the record has been written.
    pub version: Version,
}

/// Where an activation stands. That it has lapsed is not a state: it follows from the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationState {
    /// The machine is installing.
    Open,
    /// The installation is done, since this instant.
    Confirmed(Timestamp),
    /// The code was given back, or another activation of the same machine took its place.
    Released(Timestamp),
}

/// What becomes of an activate for a code that is consumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// The same machine asks for the same: it gets the same activation again.
    Repeat,
    /// The same machine asks for another binding: this activation, released, makes room.
    Replace(Activation),
    /// The activation has given the code back already: whoever sees the code consumed is late.
    Stale,
}

/// What becomes of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// The code is to be given back; the activation as released.
    GiveBack(Activation),
    /// The token ran out before: nothing changes, the code stays used.
    Lapsed,
    /// The installation was confirmed before: nothing changes.
    Confirmed,
}

/// Where an activation stands at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its machine may go on.
    Open,
    /// Its token ran out.
    Lapsed,
    /// Its install is complete.
    Confirmed,
    /// It gave the code back.
    Released,
}

impl Stage {
    /// Every stage.
    pub const ALL: [Self; 4] = [Self::Open, Self::Lapsed, Self::Confirmed, Self::Released];

    /// As people call it.
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
    /// An activation as opened at `now`.
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

    /// Whether its token has run out, or was made in a future that never came.
    const fn is_over(&self, now: Timestamp) -> bool {
        Lifespan { from: self.opened_at, until: self.expires_at }.is_over(now)
    }

    /// Neither confirmed nor released, and its token still good.
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.state == ActivationState::Open && !self.is_over(now)
    }

    /// Whether the code was given back, or another activation of the same machine took its place.
    pub const fn is_released(&self) -> bool {
        matches!(self.state, ActivationState::Released(_))
    }

    /// Where it stands.
    pub fn stage(&self, now: Timestamp) -> Stage {
        match self.state {
            ActivationState::Open if self.is_open(now) => Stage::Open,
            ActivationState::Open => Stage::Lapsed,
            ActivationState::Confirmed(_) => Stage::Confirmed,
            ActivationState::Released(_) => Stage::Released,
        }
    }

    /// Whether `holder` may go on with a code that this activation consumed.
    ///
    /// # Errors
    /// [`Refusal::CodeUsed`] for everyone but the machine that holds an open activation.
    pub fn precheck(&self, holder: &Holder, now: Timestamp) -> Result<(), Refusal> {
        if self.is_open(now) && self.request.holder == *holder {
            Ok(())
        } else {
            Err(Refusal::CodeUsed)
        }
    }

    /// What becomes of an activate for the code that this activation consumed.
    ///
    /// # Errors
    /// [`Refusal::CodeUsed`] for everyone but the machine that holds an open activation;
    /// [`Refusal::CodeMaxActivations`] where a changed binding would be one activation too many.
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

    /// Confirms the installation. Whether the token is good was decided before.
    ///
    /// # Errors
    /// [`Refusal::TokenUsed`] after the first time, [`Refusal::ActivationNotFound`] after a
    /// release, [`Refusal::TokenInvalid`] once the token has run out.
    pub fn confirm(&self, now: Timestamp) -> Result<Self, Refusal> {
        match self.state {
            ActivationState::Confirmed(_) => Err(Refusal::TokenUsed),
            ActivationState::Released(_) => Err(Refusal::ActivationNotFound),
            ActivationState::Open if self.is_over(now) => Err(Refusal::TokenInvalid),
            ActivationState::Open => Ok(self.become_state(ActivationState::Confirmed(now))),
        }
    }

    /// Gives the code back where the installation is still open.
    ///
    /// # Errors
    /// [`Refusal::ActivationNotFound`] where that happened before.
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

    /// When it was closed: by its confirmation or its release, else by the end of its token.
    const fn closed_at(&self) -> Timestamp {
        match self.state {
            ActivationState::Open => self.expires_at,
            ActivationState::Confirmed(at) | ActivationState::Released(at) => at,
        }
    }

    /// Whether the activation has been closed for `retention` seconds.
    pub fn is_forgettable(&self, now: Timestamp, retention: u64) -> bool {
        now >= self.closed_at().plus(retention)
    }

    /// Whether it was opened, confirmed or released in a future that never came.
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
    fn ids_read_back_and_show_eight_characters_at_most() {
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
    fn the_machine_that_holds_it_resumes_and_every_other_hears_used() {
        assert_eq!(resume(1, "a.example.com", NOW), Ok(Resume::Repeat));
        assert_eq!(resume(2, "a.example.com", NOW), Err(Refusal::CodeUsed));
        assert!(matches!(resume(1, "b.example.com", NOW), Ok(Resume::Replace(_))));
    }

    #[test]
    fn a_lapsed_activation_holds_its_code_against_everyone() {
        let lapsed = NOW.plus(600);
        assert_eq!(resume(1, "a.example.com", lapsed), Err(Refusal::CodeUsed));
        let (_, activation) = opened();
        assert_eq!(activation.release(lapsed), Ok(Release::Lapsed));
        assert_eq!(activation.confirm(lapsed), Err(Refusal::TokenInvalid));
    }

    proptest! {
        #[test]
        fn an_activation_is_open_for_its_lifetime_and_the_slack_at_most(now in 0u64..10_000) {
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
    fn another_binding_is_refused_where_it_would_be_one_activation_too_many() {
        let (mut code, activation) = opened();
        code.activations = 5;
        let other = request(1, "b.example.com");
        assert_eq!(
            activation.resume(&other, &code, NOW, &Lifetimes::default()),
            Err(Refusal::CodeMaxActivations)
        );
    }

    #[test]
    fn it_is_confirmed_once_and_a_release_afterwards_is_harmless() {
        let (_, activation) = opened();
        let confirmed = activation.confirm(NOW).unwrap();
        assert_eq!(confirmed.confirm(NOW), Err(Refusal::TokenUsed));
        assert_eq!(confirmed.release(NOW), Ok(Release::Confirmed));
        assert_eq!(confirmed.release(NOW.plus(9999)), Ok(Release::Confirmed));
        assert_eq!(confirmed.precheck(&activation.request.holder, NOW), Err(Refusal::CodeUsed));
    }

    #[test]
    fn it_is_released_once_and_not_confirmed_afterwards() {
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
