//! Servers that are taken over from another program's list.

use crate::Timestamp;
use crate::address::parse_public_ip;
use crate::server::{EnrolledBy, Server, ServerId, ServerNumber};
use std::collections::HashSet;
use std::net::IpAddr;

/// A server in the list of another program, to be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its id there, which it keeps.
    pub id: ServerId,
    /// Its address.
    pub ip: IpAddr,
    /// Its host name, at most [`Server::HOSTNAME`] characters; may be empty.
    pub hostname: String,
    /// When it first registered there.
    pub registered_at: Timestamp,
    /// When it last registered or checked in there.
    pub last_checkin: Timestamp,
    /// Whether it was revoked there.
    pub revoked: bool,
    /// The note there, at most [`Server::NOTE`] characters.
    pub note: String,
}

/// A row of such a list, before it is checked.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The id.
    pub server_id: &'a str,
    /// The address.
    pub ip: &'a str,
    /// The host name.
    pub hostname: &'a str,
    /// When it first registered.
    pub registered_at: Timestamp,
    /// When it last registered or checked in; `None` if it never checked in.
    pub last_checkin: Option<Timestamp>,
    /// Whether it was revoked.
    pub revoked: bool,
    /// The note.
    pub note: &'a str,
}

impl Listed {
    /// Checks a row. Addresses that the Internet cannot reach are valid only with `allow_private`.
    ///
    /// # Errors
    /// The name of a field, and what it must be.
    pub fn check(row: &Row<'_>, allow_private: bool) -> Result<Self, String> {
        let longer = |name: &str, text: &str, most: usize| {
            let is_longer = text.chars().count() > most;
            is_longer.then(|| format!("{name} must be at most {most} characters long"))
        };
        let id = ServerId::parse(row.server_id).ok_or("server_id must be 16 hexadecimal digits")?;
        let ip = parse_public_ip(row.ip, allow_private)
            .ok_or("ip must be an IPv4 or IPv6 address that the Internet can reach")?;
        let too_long = longer("hostname", row.hostname, Server::HOSTNAME)
            .or_else(|| longer("note", row.note, Server::NOTE));
        match too_long {
            Some(problem) => Err(problem),
            None => Ok(Self {
                id,
                ip,
                hostname: row.hostname.to_owned(),
                registered_at: row.registered_at,
                last_checkin: row.last_checkin.unwrap_or(row.registered_at),
                revoked: row.revoked,
                note: row.note.to_owned(),
            }),
        }
    }
}

/// A list whose rows were checked: each has an id and an address of its own.
#[derive(Debug, Default)]
pub struct List {
    rows: Vec<Listed>,
    ids: HashSet<ServerId>,
    addresses: HashSet<IpAddr>,
}

impl List {
    /// Checks the next row and adds it.
    ///
    /// # Errors
    /// As [`Listed::check`]; or an earlier row has its id or its address.
    pub fn add(&mut self, row: &Row<'_>, allow_private: bool) -> Result<(), String> {
        let listed = Listed::check(row, allow_private)?;
        if !self.ids.insert(listed.id) {
            return Err("server_id is that of an earlier row".into());
        }
        if !self.addresses.insert(listed.ip) {
            return Err("ip is that of an earlier row".into());
        }
        self.rows.push(listed);
        Ok(())
    }

    /// Returns the rows, in their order.
    pub fn into_rows(self) -> Vec<Listed> {
        self.rows
    }
}

/// What the store has of a row of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The server with the row's id.
    pub by_id: Option<Server>,
    /// The server at the row's address. It may be the same one.
    pub at_address: Option<Server>,
}

/// What an import does with a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Takeover {
    /// The server is new.
    New(Server),
    /// The server is new. It is written over the record of the deleted server at its address, which had
    /// this id. So the revocation of that one holds, and the tickets that it has used stay used.
    Replaces(Server, ServerId),
    /// The server has changed in the list since.
    Changed(Server),
    /// The server is as in the list.
    Unchanged,
    /// The row is not taken over.
    LeftAlone {
        /// Why not.
        why: LeftAlone,
        /// Whether the row is revoked in the list, and the server here is not.
        is_not_revoked: bool,
    },
}

/// Why a row is not taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftAlone {
    /// The server was changed here since: registered, revoked, restored, noted or deleted. An import
    /// undoes nothing that was done here.
    ChangedHere,
    /// The server has another address here.
    OtherAddress,
    /// Another server has the address here.
    AddressTaken,
}

impl Takeover {
    /// Decides on a row. `address_id` is the id of its address, `number` that of a server that is new.
    pub fn decide(
        listed: Listed,
        address_id: ServerId,
        known: &Known,
        number: ServerNumber,
    ) -> Self {
        let left_alone = |why, here: &Server| {
            let is_not_revoked = listed.revoked && !here.revoked;
            Self::LeftAlone { why, is_not_revoked }
        };
        match (&known.by_id, &known.at_address) {
            // It stays deleted, and cannot register again.
            (Some(here), _) if here.deleted && listed.revoked => here
                .set_revoked(true)
                .map_or_else(|| left_alone(LeftAlone::ChangedHere, here), Self::Changed),
            (Some(here), _) if here.changed_here => left_alone(LeftAlone::ChangedHere, here),
            (Some(here), _) if here.ip != listed.ip => left_alone(LeftAlone::OtherAddress, here),
            (Some(here), _) => here.import_again(listed).map_or(Self::Unchanged, Self::Changed),
            (None, None) => Self::New(Server::import(number, address_id, listed)),
            (None, Some(here)) if here.deleted => Self::Replaces(here.import_over(listed), here.id),
            (None, Some(here)) => left_alone(LeftAlone::AddressTaken, here),
        }
    }
}

impl Server {
    /// Returns a new server that is taken over from another program's list.
    pub fn import(number: ServerNumber, address_id: ServerId, listed: Listed) -> Self {
        let Listed { id, ip, hostname, registered_at, last_checkin, revoked, note } = listed;
        Self {
            number,
            id,
            address_id,
            ip,
            hostname,
            registered_at,
            last_checkin,
            token: None,
            enrolled_by: EnrolledBy::Import,
            credential_ms: 0,
            revoked,
            deleted: false,
            changed_here: false,
            note,
            version: 1,
        }
    }

    /// Returns the server as the list of another program has it now; `None` if there is nothing to
    /// change.
    fn import_again(&self, listed: Listed) -> Option<Self> {
        let last_checkin = self.last_checkin.max(listed.last_checkin);
        let server = Self { last_checkin, ..self.as_listed(listed) };
        let is_news = Self { version: self.version, ..server.clone() } != *self;
        is_news.then_some(server)
    }

    /// Returns the server of a list that takes the record of this one, which is deleted, at its address.
    /// It is revoked if this one is; then that was done here, and no list undoes it.
    fn import_over(&self, listed: Listed) -> Self {
        let server = self.as_listed(listed);
        Self { revoked: self.revoked || server.revoked, changed_here: self.revoked, ..server }
    }

    /// Returns the server of a list in the place of this record. Whoever has used a ticket here cannot
    /// use it again.
    fn as_listed(&self, listed: Listed) -> Self {
        Self {
            credential_ms: self.credential_ms,
            version: self.version.saturating_add(1),
            ..Self::import(self.number, self.address_id, listed)
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Refusal;
    use crate::access::TokenNumber;
    use crate::lookup::KeyedHash;
    use crate::server::tests::{again as register_again, ticket};
    use crate::server::{CheckInKey, Deletion};
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp(1_000_000);
    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(8, 8, 8, 8));
    const ADDRESS: ServerId = ServerId(1);

    pub(crate) fn listed() -> Listed {
        Listed {
            id: ServerId(9),
            ip: IP,
            hostname: "ns1".into(),
            registered_at: Timestamp(5),
            last_checkin: Timestamp(6),
            revoked: false,
            note: "old".into(),
        }
    }

    fn decide(listed: Listed, by_id: Option<&Server>, at_address: Option<&Server>) -> Takeover {
        let known = Known { by_id: by_id.cloned(), at_address: at_address.cloned() };
        Takeover::decide(listed, ADDRESS, &known, ServerNumber(3))
    }

    fn imported() -> Server {
        match decide(listed(), None, None) {
            Takeover::New(server) => server,
            other => panic!("{other:?}"),
        }
    }

    fn again(server: &Server, listed: Listed) -> Takeover {
        decide(listed, Some(server), Some(server))
    }

    fn left_alone(why: LeftAlone, is_not_revoked: bool) -> Takeover {
        Takeover::LeftAlone { why, is_not_revoked }
    }

    /// A server that a ticket has registered here, deleted at once.
    fn deleted(revoked: bool) -> Server {
        let id = ServerId(2);
        let ticket = ticket(1, NOW.0 * 1000);
        let server =
            Server::register(ServerNumber(1), id, (ADDRESS, IP), "here".into(), &ticket, NOW);
        let server = server.set_revoked(revoked).unwrap_or(server);
        match server.delete(NOW) {
            Some(Deletion::Hide(hidden)) => hidden,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_imported_server_follows_its_list_until_it_is_changed_here() {
        let server = imported();
        assert_eq!((server.number, server.id, server.version), (ServerNumber(3), ServerId(9), 1));
        assert_eq!(again(&server, listed()), Takeover::Unchanged);
        let revoked = Listed { revoked: true, ..listed() };
        let Takeover::Changed(changed) = again(&server, revoked.clone()) else {
            panic!("as before")
        };
        assert!(changed.revoked && changed.version == 2 && changed.number == server.number);
        let earlier = Listed { last_checkin: Timestamp(1), ..listed() };
        assert_eq!(again(&server, earlier), Takeover::Unchanged);
        let restored = changed.set_revoked(false).unwrap();
        assert_eq!(again(&restored, revoked), left_alone(LeftAlone::ChangedHere, true));
        assert_eq!(again(&restored, listed()), left_alone(LeftAlone::ChangedHere, false));
    }

    #[test]
    fn an_imported_server_checks_in_with_any_token_until_it_registers() {
        let key = CheckInKey::of(&imported());
        assert!(key.accepts(&crate::server::Bearer::Token(KeyedHash([5; 16]))));
        assert!(key.accepts(&crate::server::Bearer::Access(TokenNumber(1))));
        let server = register_again(&imported(), &ticket(1, 0), NOW);
        assert_eq!(server, Err(Refusal::CredentialUsed), "no ticket is as old as the epoch");
    }

    #[test]
    fn a_server_at_another_address_and_one_whose_address_is_taken_are_left_alone() {
        let moved = |revoked| Listed { ip: IpAddr::from([8, 8, 4, 4]), revoked, ..listed() };
        for revoked in [false, true] {
            let known = decide(moved(revoked), Some(&imported()), None);
            assert_eq!(known, left_alone(LeftAlone::OtherAddress, revoked));
            let other = Server { id: ServerId(5), ..imported() };
            let taken = Listed { revoked, ..listed() };
            let taken = decide(taken, None, Some(&other));
            assert_eq!(taken, left_alone(LeftAlone::AddressTaken, revoked));
        }
        let revoked = Server { revoked: true, ..imported() };
        let known = decide(moved(true), Some(&revoked), None);
        assert_eq!(known, left_alone(LeftAlone::OtherAddress, false), "it is revoked here too");
    }

    #[test]
    fn a_server_that_was_deleted_here_stays_deleted() {
        let Some(Deletion::Hide(hidden)) = imported().delete(NOW) else { panic!("removed") };
        assert_eq!(again(&hidden, listed()), left_alone(LeftAlone::ChangedHere, false));
        let revoked = Listed { revoked: true, ..listed() };
        let Takeover::Changed(both) = again(&hidden, revoked.clone()) else { panic!("as before") };
        assert!(both.deleted && both.revoked, "a revocation is taken over");
        for listed in [listed(), revoked] {
            assert_eq!(again(&both, listed), left_alone(LeftAlone::ChangedHere, false));
        }
    }

    #[test]
    fn a_server_takes_the_record_of_the_deleted_one_at_its_address_and_no_used_ticket_is_good() {
        let hidden = deleted(false);
        let Takeover::Replaces(server, was) = decide(listed(), None, Some(&hidden)) else {
            panic!("left alone")
        };
        assert_eq!((was, server.id, server.number), (hidden.id, ServerId(9), hidden.number));
        assert_eq!(server.version, hidden.version + 1);
        assert!(!server.deleted && !server.revoked && !server.changed_here);
        let noted = Listed { note: "new".into(), ..listed() };
        let Takeover::Changed(noted) = again(&server, noted) else { panic!("as before") };
        for server in [server, noted] {
            let used = register_again(&server, &ticket(1, NOW.0 * 1000), NOW.plus(9));
            assert_eq!(used, Err(Refusal::CredentialUsed));
            let new = register_again(&server, &ticket(2, NOW.0 * 1000 + 1), NOW.plus(9));
            assert_eq!(new.unwrap().unwrap().id, ServerId(9));
        }
    }

    #[test]
    fn the_revocation_of_a_deleted_server_holds_for_the_one_that_takes_its_record() {
        for revoked in [false, true] {
            let row = Listed { revoked, ..listed() };
            let Takeover::Replaces(server, _) = decide(row, None, Some(&deleted(true))) else {
                panic!("left alone")
            };
            assert!(server.revoked && !server.deleted);
            let refused = register_again(&server, &ticket(2, NOW.0 * 2000), NOW.plus(9));
            assert_eq!(refused, Err(Refusal::ServerRevoked(ServerId(9))));
            assert_eq!(again(&server, listed()), left_alone(LeftAlone::ChangedHere, false));
        }
    }

    fn row() -> Row<'static> {
        Row {
            server_id: "00112233445566ff",
            ip: "8.8.8.8",
            hostname: "ns1.example.com",
            registered_at: Timestamp(5),
            last_checkin: None,
            revoked: false,
            note: "moved",
        }
    }

    #[test]
    fn a_row_is_checked_field_by_field_and_the_first_bad_one_is_named() {
        let read = Listed::check(&row(), false).unwrap();
        assert_eq!((read.id.0, read.ip), (0x0011_2233_4455_66ff, IP));
        assert_eq!((&*read.hostname, &*read.note), ("ns1.example.com", "moved"));
        assert_eq!(read.last_checkin, read.registered_at);
        let (name, note) = ("ä".repeat(Server::HOSTNAME), "ä".repeat(Server::NOTE));
        let longest = Row { hostname: &name, note: &note, ..row() };
        assert!(Listed::check(&longest, false).is_ok());
        let (name, note) = (name + "x", note + "x");
        for (field, bad) in [
            ("server_id", Row { server_id: "short", ip: "", ..row() }),
            ("ip", Row { ip: "10.0.0.1", ..row() }),
            ("ip", Row { ip: "", ..row() }),
            ("hostname", Row { hostname: &name, note: &note, ..row() }),
            ("note", Row { note: &note, ..row() }),
        ] {
            let error = Listed::check(&bad, false).unwrap_err();
            assert!(error.starts_with(&format!("{field} must ")), "{error}");
        }
        assert!(Listed::check(&Row { ip: "10.0.0.1", ..row() }, true).is_ok());
    }

    #[test]
    fn two_rows_of_a_list_have_different_ids_and_addresses() {
        let mut list = List::default();
        list.add(&row(), false).unwrap();
        let same_id = Row { server_id: "00112233445566FF", ip: "8.8.4.4", ..row() };
        let error = list.add(&same_id, false).unwrap_err();
        assert_eq!(error, "server_id is that of an earlier row");
        let same_ip = Row { server_id: "00112233445566fe", ..row() };
        assert_eq!(list.add(&same_ip, false).unwrap_err(), "ip is that of an earlier row");
        assert_eq!(list.into_rows().len(), 1);
    }

    proptest! {
        /// So the list of this program's own servers is always taken.
        #[test]
        fn whatever_a_server_has_here_is_a_good_row(
            id: u64, address: u32, hostname: String, note: String, at: u32, revoked: bool,
        ) {
            let ip = IpAddr::from(address.to_be_bytes());
            let name: String = hostname.chars().take(Server::HOSTNAME).collect();
            let token = ticket(1, 1);
            let place = (ADDRESS, ip);
            let now = Timestamp(at.into());
            let server =
                Server::register(ServerNumber(1), ServerId(id), place, name, &token, now);
            let server = server.set_note(note).unwrap_or(server);
            let server = server.set_revoked(revoked).unwrap_or(server);
            let row = Row {
                server_id: &server.id.to_string(),
                ip: &server.ip.to_string(),
                hostname: &server.hostname,
                registered_at: server.registered_at,
                last_checkin: Some(server.last_checkin),
                revoked: server.revoked,
                note: &server.note,
            };
            let read = Listed::check(&row, true).unwrap();
            prop_assert_eq!(read.hostname.as_str(), &*server.hostname);
            prop_assert_eq!((read.id, read.ip, read.revoked), (server.id, ip, revoked));
            prop_assert_eq!(read.note, server.note);
        }

        #[test]
        fn no_row_makes_the_check_panic_and_what_it_takes_is_within_bounds(
            server_id: String, ip: String, hostname: String, note: String,
        ) {
            let row = Row {
                server_id: &server_id, ip: &ip, hostname: &hostname, note: &note, ..row()
            };
            if let Ok(read) = Listed::check(&row, false) {
                prop_assert!(read.hostname.chars().count() <= Server::HOSTNAME);
                prop_assert!(read.note.chars().count() <= Server::NOTE);
            }
        }

        /// Lists come in any order, and say anything of the server at one address.
        #[test]
        fn no_list_undoes_a_revocation_or_a_deletion_here(
            steps in prop::collection::vec((0u8..5, 0u64..3, any::<bool>()), 1..40),
        ) {
            let mut here: Option<Server> = None;
            let mut revoked_here = false;
            for (step, id, flag) in steps {
                let before = here.clone();
                match (step, &before) {
                    (0, Some(server)) => {
                        if let Some(next) = server.set_revoked(flag) {
                            revoked_here = flag;
                            here = Some(next);
                        }
                    }
                    (1, Some(server)) => match server.delete(NOW) {
                        Some(Deletion::Hide(hidden)) => here = Some(hidden),
                        Some(Deletion::Remove) => here = None,
                        None => {}
                    },
                    _ => {
                        let row = Listed { id: ServerId(id), revoked: flag, ..listed() };
                        let by_id = before.as_ref().filter(|server| server.id == row.id);
                        let taken = decide(row.clone(), by_id, before.as_ref());
                        here = match taken {
                            Takeover::New(server)
                            | Takeover::Replaces(server, _)
                            | Takeover::Changed(server) => Some(server),
                            Takeover::Unchanged => before.clone(),
                            Takeover::LeftAlone { is_not_revoked, .. } => {
                                let is_revoked = before.as_ref().is_some_and(|one| one.revoked);
                                prop_assert_eq!(is_not_revoked, flag && !is_revoked);
                                before.clone()
                            }
                        };
                        let after = here.clone().unwrap();
                        prop_assert!(after.revoked || !revoked_here, "it is good again");
                        if let Some(before) = before.filter(|one| one.id == after.id) {
                            prop_assert_eq!(after.deleted, before.deleted);
                            prop_assert!(after.changed_here || !before.changed_here);
                        }
                    }
                }
            }
        }
    }
}
