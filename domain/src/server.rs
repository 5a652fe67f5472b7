//! A registered server: its identity, its last check-in, and whether it is revoked or deleted.

use crate::access::{IsGood, ONE_TIME_SECONDS, TokenNumber};
use crate::activation::ActivationName;
use crate::lookup::{KeyedHash, LookupKey, Purpose};
use crate::{Refusal, Timestamp, Version};
use std::fmt;
use std::net::IpAddr;
use subtle::ConstantTimeEq;

/// The id of a server in the API: 16 hexadecimal digits. A server that first registered here has the
/// id of its address. A server that was imported keeps the id that it had elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(pub u64);

impl ServerId {
    /// Returns the id of an address. The same address always has the same id.
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

/// Who vouched for a server when it last registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnrolledBy {
    /// Not recorded: an earlier version registered it.
    Unknown,
    /// The holder of the master token.
    Master,
    /// The holder of this access token, or of an install ticket of it.
    Token(TokenNumber),
    /// The machine that confirmed this activation.
    Activation(ActivationName),
    /// Nobody here: it was imported and has not registered since.
    Import,
}

/// What a machine registers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The keyed hash of what its check-ins show from now on: of the agent token that the machine has made
    /// for itself, or of the text of this credential.
    pub hash: KeyedHash,
    /// Who vouches for the machine.
    pub by: EnrolledBy,
    /// For a credential that is good once, a ticket or an install token: when it was made, in
    /// milliseconds since the Unix epoch. `None` for one that is good many times.
    pub made_ms: Option<u64>,
}

impl Credential {
    /// Returns when it was made; for one that is good many times the end of the second `now`. So every
    /// credential that is good once and was made up to then is used up.
    fn ms(&self, now: Timestamp) -> u64 {
        self.made_ms.unwrap_or_else(|| now.0.saturating_mul(1000).saturating_add(999))
    }
}

/// The record of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its number in the order of registration.
    pub number: ServerNumber,
    /// Its id in the API.
    pub id: ServerId,
    /// The id of its address, under which it is found when it registers again.
    pub address_id: ServerId,
    /// Its address.
    pub ip: IpAddr,
    /// Its host name in the last registration; may be empty.
    pub hostname: String,
    /// When it first registered.
    pub registered_at: Timestamp,
    /// When it last registered or checked in. If it is deleted and not revoked: when it was deleted, since
    /// nothing else of it is shown.
    pub last_checkin: Timestamp,
    /// The keyed hash of what its check-ins show: the agent token or the token of its last registration.
    /// `None` if it was imported and has not registered since.
    pub token: Option<KeyedHash>,
    /// Who vouched for it in its last registration.
    pub enrolled_by: EnrolledBy,
    /// When the credential of its last registration was made, in milliseconds since the Unix epoch. A
    /// credential that is good once and was made earlier is used up.
    pub credential_ms: u64,
    /// Whether its registration was revoked.
    pub revoked: bool,
    /// Whether it was deleted. Its record stays so that the deletion undoes no revocation, makes no used
    /// ticket good again, and is not undone by an import.
    pub deleted: bool,
    /// Whether it was changed here: registered, revoked, restored, noted or deleted. Another import
    /// then leaves it alone.
    pub changed_here: bool,
    /// The operator's note about it.
    pub note: String,
    /// The number of times the record was written; check-ins do not count.
    pub version: Version,
}

/// What becomes of the record of a server that is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// It is removed.
    Remove,
    /// It stays, hidden.
    Hide(Server),
}

impl Server {
    /// The longest host name kept, in characters, whichever way it comes in: what RFC 1035 section 2.3.4
    /// allows in text form. Whatever else it consists of is kept as sent.
    pub const HOSTNAME: usize = 253;

    /// Returns a new server, registered at `now`.
    pub fn register(
        number: ServerNumber,
        id: ServerId,
        (address_id, ip): (ServerId, IpAddr),
        hostname: String,
        credential: &Credential,
        now: Timestamp,
    ) -> Self {
        Self {
            number,
            id,
            address_id,
            ip,
            hostname,
            registered_at: now,
            last_checkin: now,
            token: Some(credential.hash),
            enrolled_by: credential.by,
            credential_ms: credential.ms(now),
            revoked: false,
            deleted: false,
            changed_here: true,
            note: String::new(),
            version: 1,
        }
    }

    /// Returns the server as registered again, with its new host name and credential. `None` if the
    /// credential is good once and is that of its last registration, with the same agent token: then its
    /// answer was lost, and is given again. Likewise if one that is good many times says nothing new.
    /// `from_its_address` says whether the request came from the address that registers: that shows that
    /// the machine has it.
    ///
    /// # Errors
    /// [`Refusal::ServerRevoked`] if it is revoked: registering again does not undo a revocation.
    /// [`Refusal::ServerOfAnotherToken`] if it belongs to somebody else.
    /// [`Refusal::CredentialUsed`] if the credential is good once and this server has registered with
    /// it or with a later one.
    pub fn register_again(
        &self,
        hostname: String,
        credential: &Credential,
        from_its_address: bool,
        is_good: &IsGood,
        now: Timestamp,
    ) -> Result<Option<Self>, Refusal> {
        if self.revoked {
            return Err(Refusal::ServerRevoked(self.id));
        }
        if self.belongs_to_another(credential, from_its_address, is_good) {
            return Err(Refusal::ServerOfAnotherToken);
        }
        // A machine that registers with a new ticket may keep its agent token: then only the date differs.
        let is_same = self.shows(credential) && credential.made_ms == Some(self.credential_ms);
        // A date in the future is not believed: a wrong clock wrote it.
        let is_ahead = Timestamp(self.credential_ms / 1000).is_ahead_of(now);
        let earlier = if is_ahead { 0 } else { self.credential_ms };
        if credential.made_ms.is_some() {
            if is_same && !self.deleted {
                return Ok(None);
            }
            if is_same || credential.ms(now) <= earlier {
                return Err(Refusal::CredentialUsed);
            }
        } else if !is_ahead && !self.deleted && self.is_registered_as(&hostname, credential) {
            return Ok(None);
        }
        let mut server = Self {
            hostname,
            token: Some(credential.hash),
            enrolled_by: credential.by,
            credential_ms: credential.ms(now).max(earlier),
            last_checkin: now,
            ..self.changed()
        };
        if self.deleted {
            // It is new to the operator who deleted it.
            server = Self { deleted: false, registered_at: now, note: String::new(), ..server };
        }
        Ok(Some(server))
    }

    fn is_registered_as(&self, hostname: &str, credential: &Credential) -> bool {
        self.shows(credential) && self.enrolled_by == credential.by && self.hostname == hostname
    }

    /// Whether its check-ins show already what they would after a registration with `credential`.
    fn shows(&self, credential: &Credential) -> bool {
        self.token.is_some_and(|token| token.ct_eq(&credential.hash))
    }

    /// Whether it belongs to somebody else than the holder of `credential`. Access tokens and their tickets
    /// lie on installed machines: one that is stolen must not take the servers of others over. And
    /// everybody gets an install token on the page, for any address: it takes over no server of an access
    /// token, and others only from their own address.
    fn belongs_to_another(
        &self,
        credential: &Credential,
        from_its_address: bool,
        is_good: &IsGood,
    ) -> bool {
        if self.deleted || self.enrolled_by == credential.by {
            return false;
        }
        match (self.enrolled_by, credential.by) {
            (EnrolledBy::Token(owner), EnrolledBy::Token(_) | EnrolledBy::Activation(_)) => {
                is_good(owner)
            }
            (EnrolledBy::Activation(_), EnrolledBy::Token(_)) | (_, EnrolledBy::Activation(_)) => {
                !from_its_address && !self.shows(credential)
            }
            _ => false,
        }
    }

    /// The longest note kept, in characters.
    pub const NOTE: usize = 500;

    /// Returns the server with this note, cut to [`Self::NOTE`] characters; `None` if it already has
    /// this note.
    pub fn set_note(&self, note: String) -> Option<Self> {
        let note: String = note.chars().take(Self::NOTE).collect();
        (self.note != note).then(|| Self { note, ..self.changed() })
    }

    /// Returns the server as revoked or restored; `None` if it already is. A restored server is not
    /// deleted any more.
    pub fn set_revoked(&self, revoked: bool) -> Option<Self> {
        let deleted = self.deleted && revoked;
        (self.revoked != revoked).then(|| Self { revoked, deleted, ..self.changed() })
    }

    /// Returns what becomes of its record when it is deleted at `now`; `None` if it already is deleted.
    /// That of an imported server stays as well, so that its list does not bring it back.
    pub fn delete(&self, now: Timestamp) -> Option<Deletion> {
        if self.deleted {
            None
        } else if self.revoked {
            Some(Deletion::Hide(Self { deleted: true, ..self.changed() }))
        } else if self.was_imported() || !self.is_past_replay(now) {
            Some(Deletion::Hide(Self { deleted: true, last_checkin: now, ..self.changed() }))
        } else {
            Some(Deletion::Remove)
        }
    }

    /// Returns what becomes of its record when it is deleted at `now` because it was not seen for long.
    /// Nobody has decided that: a list may bring an imported server back.
    pub fn forget(&self, now: Timestamp) -> Option<Deletion> {
        match self.delete(now) {
            Some(Deletion::Hide(_)) if !self.revoked && self.is_past_replay(now) => {
                Some(Deletion::Remove)
            }
            end => end,
        }
    }

    /// Whether a deleted server's record has no use any more: it is not revoked, the tickets that it has
    /// used have run out, and it was deleted more than `retention` seconds ago.
    pub fn is_removable(&self, now: Timestamp, retention: u64) -> bool {
        let is_over = now.distance(self.last_checkin) > retention;
        self.deleted && !self.revoked && self.is_past_replay(now) && is_over
    }

    /// Whether it came from another program's list, as far as its record tells: a server whose id there is
    /// that of its address here is not told from others once it has registered here.
    fn was_imported(&self) -> bool {
        self.id != self.address_id || self.enrolled_by == EnrolledBy::Import
    }

    /// Whether every ticket that was made up to its last registration has run out. Also if the clock was
    /// set back since by less than a ticket's time.
    fn is_past_replay(&self, now: Timestamp) -> bool {
        now.distance(Timestamp(self.credential_ms / 1000)) > ONE_TIME_SECONDS
    }

    fn changed(&self) -> Self {
        Self { changed_here: true, version: self.version.saturating_add(1), ..self.clone() }
    }
}

/// The credential that a check-in brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bearer {
    /// No token was sent.
    Nobody,
    /// The current master token.
    Master,
    /// An access token that is good.
    Access(TokenNumber),
    /// Another token, as its keyed hash.
    Token(KeyedHash),
}

/// What memory keeps of a server's last registration, to check the credentials of check-ins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckInKey {
    /// The first eight bytes of the keyed hash of its token, zeros if it has none. Nobody can search for
    /// a token with a given hash, and a guess is right once in 2^64 times.
    token: [u8; 8],
    /// The number of the access token that enrolled it; 0 if none did.
    access: u32,
}

impl CheckInKey {
    /// Returns the key of a server.
    pub fn of(server: &Server) -> Self {
        let access = match server.enrolled_by {
            EnrolledBy::Token(TokenNumber(number)) => number,
            _ => 0,
        };
        Self { token: server.token.map_or([0; 8], short), access }
    }

    /// Returns the access token that enrolled the server.
    pub const fn access_token(&self) -> Option<TokenNumber> {
        if self.access == 0 { None } else { Some(TokenNumber(self.access)) }
    }

    /// Whether the check-in with this bearer is accepted. An imported server may have any token: here
    /// nobody knows the one that it registered with.
    pub fn accepts(&self, bearer: &Bearer) -> bool {
        match bearer {
            Bearer::Nobody | Bearer::Master => true,
            _ if self.token == [0; 8] => true,
            Bearer::Access(TokenNumber(number)) => *number == self.access,
            Bearer::Token(given) => short(*given).ct_eq(&self.token).into(),
        }
    }
}

fn short(hash: KeyedHash) -> [u8; 8] {
    hash.as_u64().to_be_bytes()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::activation::ActivationNumber;
    use crate::import::tests::listed;
    use crate::import::{Known, Listed, Takeover};
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp(1_000_000);
    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(1, 2, 3, 4));

    fn master() -> Credential {
        Credential { hash: KeyedHash([99; 16]), by: EnrolledBy::Master, made_ms: None }
    }

    pub(crate) fn ticket(hash: u8, made_ms: u64) -> Credential {
        let by = EnrolledBy::Token(TokenNumber(7));
        Credential { hash: KeyedHash([hash; 16]), by, made_ms: Some(made_ms) }
    }

    fn activation(number: u64) -> ActivationName {
        ActivationName { number: ActivationNumber(number), digits: 0 }
    }

    fn registered(credential: &Credential, now: Timestamp) -> Server {
        let id = ServerId(1);
        Server::register(ServerNumber(1), id, (id, IP), "ns1".into(), credential, now)
    }

    pub(crate) fn again(
        server: &Server,
        credential: &Credential,
        now: Timestamp,
    ) -> Result<Option<Server>, Refusal> {
        server.register_again("ns2".into(), credential, false, &|_| true, now)
    }

    /// The server that an import puts in the place of this one, if any.
    fn imported_at(server: &Server, id: ServerId) -> Option<Server> {
        let listed = Listed { id, ip: IP, ..listed() };
        let by_id = (server.id == id).then(|| server.clone());
        let known = Known { by_id, at_address: Some(server.clone()) };
        match Takeover::decide(listed, server.address_id, &known, ServerNumber(9)) {
            Takeover::New(server) | Takeover::Replaces(server, _) | Takeover::Changed(server) => {
                Some(server)
            }
            Takeover::Unchanged | Takeover::LeftAlone { .. } => None,
        }
    }

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
        let key = CheckInKey::of(&registered(&ticket(1, 0), NOW));
        assert!(key.accepts(&Bearer::Nobody));
        assert!(key.accepts(&Bearer::Master));
        assert!(key.accepts(&Bearer::Token(KeyedHash([1; 16]))));
        assert!(!key.accepts(&Bearer::Token(KeyedHash([2; 16]))));
        assert!(key.accepts(&Bearer::Access(TokenNumber(7))));
        assert!(!key.accepts(&Bearer::Access(TokenNumber(8))));
        let key = CheckInKey::of(&registered(&master(), NOW));
        assert_eq!(key.access_token(), None);
        assert!(!key.accepts(&Bearer::Access(TokenNumber(7))));
    }

    #[test]
    fn a_ticket_registers_once_and_its_repeat_gets_the_same_server() {
        let server = registered(&ticket(1, 1000), NOW);
        assert_eq!(again(&server, &ticket(1, 1000), NOW), Ok(None));
        assert_eq!(again(&server, &ticket(2, 1000), NOW), Err(Refusal::CredentialUsed));
        assert_eq!(again(&server, &ticket(2, 999), NOW), Err(Refusal::CredentialUsed));
        let later = again(&server, &ticket(2, 1001), NOW).unwrap().unwrap();
        assert_eq!((later.hostname.as_str(), later.version), ("ns2", 2));
        assert_eq!(again(&later, &ticket(1, 1000), NOW), Err(Refusal::CredentialUsed));
    }

    /// A machine's own agent token, brought with a ticket.
    fn with_agent(agent: u8, made_ms: u64) -> Credential {
        ticket(agent, made_ms)
    }

    #[test]
    fn a_repeat_needs_the_same_ticket_and_the_same_agent_token() {
        let server = registered(&with_agent(1, 1000), NOW);
        assert_eq!(again(&server, &with_agent(1, 1000), NOW), Ok(None));
        for other in [with_agent(2, 1000), with_agent(1, 999), with_agent(2, 999)] {
            assert_eq!(again(&server, &other, NOW), Err(Refusal::CredentialUsed), "{other:?}");
        }
    }

    #[test]
    fn a_later_ticket_registers_a_machine_again_that_keeps_its_agent_token() {
        let server = registered(&with_agent(1, 1000), NOW);
        let later = again(&server, &with_agent(1, 1001), NOW).unwrap().unwrap();
        assert_eq!((later.hostname.as_str(), later.credential_ms), ("ns2", 1001));
        assert_eq!(CheckInKey::of(&later), CheckInKey::of(&server));
        assert_eq!(again(&later, &with_agent(1, 1001), NOW), Ok(None));
        for used in [with_agent(1, 1000), with_agent(2, 1001)] {
            assert_eq!(again(&later, &used, NOW), Err(Refusal::CredentialUsed), "{used:?}");
        }
    }

    #[test]
    fn a_stranger_takes_no_server_over_and_a_machine_that_has_the_address_does() {
        let again = |server: Server, by, from_its_address| {
            let credential = Credential { by, ..ticket(9, NOW.0 * 2000) };
            server.register_again("ns2".into(), &credential, from_its_address, &|_| true, NOW)
        };
        let installed = EnrolledBy::Activation(activation(1));
        let token = EnrolledBy::Token(TokenNumber(7));
        let owned = |by| registered(&Credential { by, ..ticket(1, 1000) }, NOW);
        let refused = Err(Refusal::ServerOfAnotherToken);
        for owner in [installed, EnrolledBy::Master, EnrolledBy::Import, EnrolledBy::Unknown] {
            let other = EnrolledBy::Activation(activation(2));
            assert_eq!(again(owned(owner), other, false), refused, "{owner:?}");
            assert_eq!(again(owned(owner), other, true).unwrap().unwrap().enrolled_by, other);
        }
        assert_eq!(again(owned(installed), token, false), refused);
        assert!(again(owned(installed), token, true).is_ok());
        // A machine with a stolen token cannot move its server away from it.
        for from_its_address in [false, true] {
            assert_eq!(again(owned(token), installed, from_its_address), refused);
        }
        let deleted = Server { deleted: true, ..owned(token) };
        assert!(again(deleted, installed, false).is_ok());
    }

    #[test]
    fn a_registration_with_a_token_that_says_nothing_new_changes_nothing() {
        let server = registered(&master(), NOW);
        let same = server.hostname.clone();
        let again = |hostname: &str, by: &Credential| {
            server.register_again(hostname.into(), by, false, &|_| true, NOW.plus(60))
        };
        assert_eq!(again(&same, &master()), Ok(None));
        assert!(again("other", &master()).unwrap().is_some());
        let other = Credential { hash: KeyedHash([98; 16]), ..master() };
        assert!(again(&same, &other).unwrap().is_some());
    }

    #[test]
    fn an_access_token_takes_over_no_server_of_another_one_that_is_good() {
        let of = |number| EnrolledBy::Token(TokenNumber(number));
        let by = |by| Credential { by, ..master() };
        let (own, others) =
            (by(of(7)), [by(of(8)), Credential { by: of(8), ..ticket(1, NOW.0 * 2000) }]);
        let server = registered(&own, NOW);
        for other in &others {
            assert_eq!(again(&server, other, NOW), Err(Refusal::ServerOfAnotherToken));
            let after =
                server.register_again("ns2".into(), other, false, &|number| number.0 != 7, NOW);
            assert_eq!(
                after.unwrap().unwrap().enrolled_by,
                of(8),
                "its token is not good any more"
            );
            assert!(again(&registered(&master(), NOW), other, NOW).is_ok());
        }
        for allowed in [&own, &master()] {
            assert!(again(&server, allowed, NOW).is_ok(), "{allowed:?}");
        }
        let Some(Deletion::Hide(deleted)) = server.delete(NOW) else { panic!("removed") };
        assert!(again(&deleted, &others[0], NOW).is_ok(), "the operator has given it up");
    }

    #[test]
    fn the_master_token_uses_up_the_tickets_that_were_made_before() {
        let server = registered(&ticket(1, 1000), NOW);
        let server = again(&server, &master(), NOW).unwrap().unwrap();
        assert_eq!(again(&server, &ticket(1, 1000), NOW), Err(Refusal::CredentialUsed));
        let same_second = ticket(2, NOW.0 * 1000 + 999);
        assert_eq!(again(&server, &same_second, NOW), Err(Refusal::CredentialUsed));
        assert!(again(&server, &ticket(2, NOW.0 * 1000 + 1000), NOW).is_ok());
        assert_eq!(again(&server, &master(), NOW), Ok(None), "it is good many times");
    }

    #[test]
    fn a_registration_by_a_clock_that_was_ahead_does_not_shut_out_later_tickets() {
        let server = registered(&master(), NOW.plus(1_000_000));
        assert!(again(&server, &ticket(1, NOW.0 * 1000), NOW).unwrap().is_some());
    }

    #[test]
    fn a_deleted_server_is_removed_unless_it_is_revoked_or_its_ticket_could_be_used_again() {
        let server = registered(&ticket(1, NOW.0 * 1000), NOW);
        assert_eq!(server.delete(NOW.plus(3601)), Some(Deletion::Remove));
        let Some(Deletion::Hide(hidden)) = server.delete(NOW.plus(3600)) else { panic!("removed") };
        assert_eq!(hidden.delete(NOW), None);
        let deleted_at = NOW.plus(3600);
        assert_eq!(hidden.last_checkin, deleted_at);
        assert!(!hidden.is_removable(deleted_at, 0) && !hidden.is_removable(deleted_at.plus(9), 9));
        assert!(hidden.is_removable(deleted_at.plus(10), 9));
        assert!(hidden.is_removable(Timestamp(NOW.0 - 9000), 9), "it was dated by a wrong clock");
        let set_back = Timestamp(NOW.0 - 60);
        assert!(matches!(server.delete(set_back), Some(Deletion::Hide(_))));
        assert_eq!(again(&hidden, &ticket(1, NOW.0 * 1000), NOW), Err(Refusal::CredentialUsed));
        let new = again(&hidden, &master(), NOW.plus(5)).unwrap().unwrap();
        assert_eq!((new.deleted, new.registered_at), (false, NOW.plus(5)));
    }

    #[test]
    fn a_deleted_server_that_was_imported_is_hidden_unless_the_clock_deletes_it() {
        let native = registered(&master(), NOW);
        let kept_its_id = Server { id: ServerId(9), ..native.clone() };
        let not_registered_since = Server { enrolled_by: EnrolledBy::Import, ..native };
        for server in [kept_its_id, not_registered_since] {
            assert!(matches!(server.delete(NOW.plus(9999)), Some(Deletion::Hide(_))));
            assert_eq!(server.forget(NOW.plus(9999)), Some(Deletion::Remove));
            let at_once = server.forget(NOW.plus(9));
            assert!(matches!(at_once, Some(Deletion::Hide(_))), "its ticket is good");
            let revoked = server.set_revoked(true).unwrap();
            assert!(matches!(revoked.forget(NOW.plus(9999)), Some(Deletion::Hide(_))));
        }
    }

    #[test]
    fn a_deleted_server_that_was_revoked_stays_revoked_until_it_is_restored() {
        let revoked = registered(&master(), NOW).set_revoked(true).unwrap();
        let Some(Deletion::Hide(hidden)) = revoked.delete(NOW.plus(99_999)) else {
            panic!("removed")
        };
        assert_eq!(again(&hidden, &master(), NOW), Err(Refusal::ServerRevoked(hidden.id)));
        assert_eq!(hidden.last_checkin, revoked.last_checkin);
        assert!(!hidden.is_removable(NOW.plus(99_999), 0));
        let restored = hidden.set_revoked(false).unwrap();
        assert_eq!((restored.revoked, restored.deleted), (false, false));
    }

    proptest! {
        /// Whatever happens to the server in between, and wherever its clock stands within the hour.
        #[test]
        fn a_ticket_never_changes_a_server_twice(
            steps in prop::collection::vec((0u8..7, 1u64..50, 0u64..60, 0u8..3), 1..40),
        ) {
            let (mut server, mut now) = (registered(&master(), NOW), NOW);
            let mut used = std::collections::HashSet::new();
            for (step, which, later, agent) in steps {
                now = now.plus(later);
                let made_ms = NOW.0 * 1000 + which * 1000;
                let next = match step {
                    0 => server.set_revoked(true),
                    1 => server.set_revoked(false),
                    2 => match server.delete(now) {
                        Some(Deletion::Hide(hidden)) => Some(hidden),
                        _ => None,
                    },
                    3 => again(&server, &master(), now).ok().flatten(),
                    4 => imported_at(&server, ServerId(which)),
                    // No ticket comes before it is made: its time is not begun, so it is refused before.
                    _ if made_ms > now.0 * 1000 => None,
                    _ => {
                        // With an agent token of three, or without one.
                        let hash = if agent == 0 { which as u8 } else { 200 + agent };
                        let next = again(&server, &ticket(hash, made_ms), now).ok().flatten();
                        if next.is_some() {
                            prop_assert!(used.insert(which), "used twice");
                        }
                        next
                    }
                };
                server = next.unwrap_or(server);
            }
        }
    }
}
