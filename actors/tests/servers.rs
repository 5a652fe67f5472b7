//! Registered servers: credentials that are good once, bounds of access tokens, imports and deletions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use arc_swap::ArcSwap;
use iptunnel_actors::server_registry::{
    CheckIn, CheckedIn, Delete, DeleteUnseen, Filter, Import, Imported, Register, SetNote,
    SetRevoked,
};
use iptunnel_actors::stepped::Stepped;
use iptunnel_actors::{
    ActorSettings, Batches, Dependencies, Failure, Handles, Health, Metrics, Pending,
};
use iptunnel_domain::access::TokenNumber;
use iptunnel_domain::audit::{Action, Event};
use iptunnel_domain::fleet::Silence;
use iptunnel_domain::import::Listed;
use iptunnel_domain::limit::Limits;
use iptunnel_domain::lookup::{KeyedHash, LookupKey};
use iptunnel_domain::server::{Bearer, Credential, EnrolledBy, Server, ServerId};
use iptunnel_domain::time::Lifetimes;
use iptunnel_domain::{Refusal, Timestamp};
use iptunnel_storage::{AuditLog, Disks, EmbeddedStore, Records, Store};
use rand_core::SeedableRng;
use std::net::IpAddr;
use std::sync::Arc;

const NOW: Timestamp = Timestamp(1_800_000_000);
const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(9, 9, 9, 9));
const DAY: u64 = 86_400;
const DELETED: Filter =
    Filter { revoked: None, seen_before: None, seen_since: None, enrolled_by: None, deleted: true };
/// The access token of most tests.
const TOKEN: TokenNumber = TokenNumber(7);

/// The actors of one server, run by hand.
struct TestServer {
    actors: Stepped,
    store: Arc<EmbeddedStore>,
    tuning: Arc<ArcSwap<ActorSettings>>,
    _folder: tempfile::TempDir,
}

impl TestServer {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        let store = EmbeddedStore::open(Disks::at(path("rows"), path("journal"))).unwrap();
        let (store, tuning) = (Arc::new(store), Arc::new(ArcSwap::from_pointee(tuning())));
        let actors = Stepped::start(parts(&store, &tuning)).unwrap();
        Self { actors, store, tuning, _folder: folder }
    }

    /// Begins again with what is on disk.
    fn restart(&mut self) {
        self.actors = Stepped::start(parts(&self.store, &self.tuning)).unwrap();
    }

    fn run(&mut self) {
        let mut steps = Vec::new();
        loop {
            self.actors.ready(&mut steps);
            if !steps.iter().any(|step| self.actors.step(*step)) {
                return;
            }
        }
    }

    fn ask<T>(
        &mut self,
        send: impl FnOnce(&Handles) -> Result<Pending<T>, Failure>,
    ) -> Result<T, Refusal> {
        let mut pending = send(self.actors.handles()).unwrap();
        self.run();
        pending.answered().expect("it is answered").outcome.expect("it does not fail")
    }

    fn register(&mut self, register: Register) -> Result<Server, Refusal> {
        self.ask(|handles| handles.register(register))
    }

    fn check_in(
        &mut self,
        id: ServerId,
        bearer: Bearer,
        now: Timestamp,
    ) -> Result<CheckedIn, Refusal> {
        self.check_in_from(FROM, id, bearer, now)
    }

    fn check_in_from(
        &mut self,
        from: IpAddr,
        id: ServerId,
        bearer: Bearer,
        now: Timestamp,
    ) -> Result<CheckedIn, Refusal> {
        self.ask(|handles| handles.check_in(CheckIn { id, bearer, from, now }))
    }

    /// Lets the time pass, with what is done then.
    fn tick(&mut self, now: Timestamp) {
        self.actors.handles().tick(now);
        self.run();
    }

    /// Returns the events of this kind, in their order.
    fn logged(&self, action: Action) -> Vec<Event> {
        let mut events = Vec::new();
        let each = &mut |entry: iptunnel_storage::Entry| {
            events.extend((entry.event.action == action).then_some(entry.event));
            true
        };
        self.store.audit_from(1, each).unwrap();
        events
    }

    fn set_revoked(&mut self, id: ServerId, revoked: bool) -> Result<(), Refusal> {
        let set = SetRevoked { id, revoked, by: "office".into(), from: FROM, now: NOW };
        self.ask(|handles| handles.set_revoked(set))
    }

    fn note(&mut self, id: ServerId) -> Result<(), Refusal> {
        let set = SetNote { id, note: "n".into(), by: "office".into(), from: FROM, now: NOW };
        self.ask(|handles| handles.set_note(set))
    }

    fn delete(&mut self, id: ServerId, now: Timestamp) -> Result<(), Refusal> {
        let delete = Delete { id, by: "office".into(), from: FROM, now };
        self.ask(|handles| handles.delete_server(delete))
    }

    fn import(&mut self, listed: &[Listed]) -> Imported {
        self.import_with(listed, false)
    }

    fn import_with(&mut self, listed: &[Listed], dry_run: bool) -> Imported {
        let servers = listed.iter().map(|one| (address_id(one.ip), one.clone())).collect();
        let import = Import { servers, dry_run, by: "office".into(), from: FROM, now: NOW };
        self.ask(|handles| handles.import_servers(import)).unwrap()
    }

    fn count(&self, filter: Filter) -> usize {
        self.actors.handles().servers().count(&filter)
    }

    fn listed(&self) -> usize {
        self.count(Filter::default())
    }

    /// The last events, each as action, name and id.
    fn events(&self) -> Vec<(&'static str, String, Option<ServerId>)> {
        let mut events = Vec::new();
        let each = &mut |entry: iptunnel_storage::Entry| {
            let event = entry.event;
            events.push((event.action.name(), event.by, event.server));
            true
        };
        iptunnel_storage::AuditLog::audit_from(self.store.as_ref(), 1, each).unwrap();
        events
    }
}

fn parts(store: &Arc<EmbeddedStore>, tuning: &Arc<ArcSwap<ActorSettings>>) -> Dependencies {
    Dependencies {
        store: Arc::clone(store) as Arc<dyn Store>,
        tuning: Arc::clone(tuning),
        permits: 100,
        health: Arc::new(Health::default()),
        observed: Metrics::new(&mut prometheus_client::registry::Registry::default()),
        random: rand_chacha::ChaCha20Rng::seed_from_u64(1),
        lookup_key: LookupKey::new(&[7; LookupKey::BYTES]),
        now: NOW,
    }
}

fn tuning() -> ActorSettings {
    ActorSettings {
        forget_after_seconds: 0,
        silence: Silence { interval: 86_400, after_intervals: 3, share_percent: 20 },
        lifetimes: Lifetimes::default(),
        limits: Limits::new(|_| 100, 1000),
        retention_seconds: DAY,
        checkin_flush_seconds: 1,
        batches: Batches {
            code_registry: 100,
            activation: 100,
            rate_limiter: 100,
            server_registry: 100,
            persistence: 100,
        },
    }
}

fn ip(number: u8) -> IpAddr {
    IpAddr::from([8, 8, 8, number])
}

fn address_id(ip: IpAddr) -> ServerId {
    ServerId::of(ip, &LookupKey::new(&[7; LookupKey::BYTES]))
}

/// A registration of the server at an address.
fn with(number: u8, credential: Credential) -> Register {
    Register {
        address_id: address_id(ip(number)),
        ip: ip(number),
        hostname: "ns1".into(),
        credential,
        code: None,
        max_servers: 0,
        is_good: Arc::new(|_| true),
        by: "office".into(),
        from: FROM,
        from_its_address: false,
        now: NOW,
    }
}

fn master() -> Credential {
    Credential { hash: KeyedHash([1; 16]), by: EnrolledBy::Master, made_ms: None }
}

fn token() -> Credential {
    Credential { hash: KeyedHash([2; 16]), by: EnrolledBy::Token(TOKEN), made_ms: None }
}

/// A ticket that was made so many milliseconds ago.
fn ticket(hash: u8, ago: u64) -> Credential {
    let made_ms = Some(NOW.0 * 1000 - ago);
    Credential { hash: KeyedHash([hash; 16]), by: EnrolledBy::Token(TOKEN), made_ms }
}

fn in_list(id: u64, number: u8) -> Listed {
    Listed {
        id: ServerId(id),
        ip: ip(number),
        hostname: format!("ns{number}"),
        registered_at: Timestamp(NOW.0 - 90 * DAY),
        last_checkin: Timestamp(NOW.0 - 60),
        revoked: false,
        note: "from before".into(),
    }
}

#[test]
fn a_ticket_registers_one_server_and_its_repetition_gets_the_same_answer() {
    let mut test = TestServer::start();
    let server = test.register(with(1, ticket(9, 500))).unwrap();
    assert_eq!(server.enrolled_by, EnrolledBy::Token(TOKEN));
    test.restart();
    assert_eq!(test.register(with(1, ticket(9, 500))), Ok(server.clone()));
    assert_eq!(test.register(with(1, ticket(8, 600))), Err(Refusal::CredentialUsed));
    assert_eq!(test.register(with(1, ticket(8, 400))).map(|server| server.version), Ok(2));
    assert_eq!(test.register(with(1, ticket(9, 500))), Err(Refusal::CredentialUsed));
    let by_name = ("server_registered", "office".to_owned(), Some(server.id));
    assert_eq!(test.events(), [by_name.clone(), by_name], "a repetition is no event");
}

#[test]
fn a_server_checks_in_with_its_own_token_or_any_good_secret_of_its_access_token() {
    let mut test = TestServer::start();
    let id = test.register(with(1, token())).unwrap().id;
    for (bearer, expected) in [
        (Bearer::Token(KeyedHash([2; 16])), Ok(CheckedIn::Active)),
        (Bearer::Access(TOKEN), Ok(CheckedIn::Active)),
        (Bearer::Access(TokenNumber(8)), Err(Refusal::Unauthorized)),
        (Bearer::Token(KeyedHash([3; 16])), Err(Refusal::Unauthorized)),
    ] {
        assert_eq!(test.check_in(id, bearer, NOW), expected, "{bearer:?}");
    }
}

#[test]
fn an_access_token_never_enrols_more_servers_than_it_may() {
    let mut test = TestServer::start();
    let bounded = |number| Register { max_servers: 3, ..with(number, token()) };
    // All of them wait for the disk at once.
    let handles = Arc::clone(test.actors.handles());
    let mut asked: Vec<_> = (1..=5).map(|n| handles.register(bounded(n)).unwrap()).collect();
    test.run();
    let outcomes: Vec<_> =
        asked.iter_mut().map(|one| one.answered().unwrap().outcome.unwrap()).collect();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 3, "{outcomes:?}");
    test.restart();
    assert_eq!(test.register(bounded(6)), Err(Refusal::TooManyServers));
    assert!(test.register(bounded(1)).is_ok(), "one that it has enrolled registers again");
    let gone = outcomes.into_iter().flatten().next().unwrap().id;
    test.set_revoked(gone, true).unwrap();
    assert!(test.register(bounded(6)).is_ok(), "a revoked one does not count");
    assert_eq!(test.register(bounded(7)), Err(Refusal::TooManyServers));
    let other = test.register(with(9, master())).unwrap();
    assert_eq!(
        test.register(bounded(9)),
        Err(Refusal::TooManyServers),
        "it would take {other:?} over"
    );
    test.delete(address_id(ip(6)), NOW).unwrap();
    assert!(test.register(bounded(7)).is_ok(), "a deleted one does not count");
}

#[test]
fn a_deleted_server_is_gone_and_registers_as_a_new_one() {
    let mut test = TestServer::start();
    let server = test.register(with(1, master())).unwrap();
    let later = NOW.plus(2 * 3600);
    test.delete(server.id, later).unwrap();
    assert_eq!(test.listed(), 0);
    assert_eq!(test.check_in(server.id, Bearer::Nobody, later), Err(Refusal::ServerNotFound));
    assert_eq!(test.delete(server.id, later), Err(Refusal::ServerNotFound));
    assert_eq!(test.store.servers_before(None, 9).unwrap(), []);
    test.restart();
    let again = test.register(with(1, master())).unwrap();
    assert!(again.id == server.id && again.number > server.number && again.version == 1);
    let actions: Vec<_> = test.events().into_iter().map(|(action, by, _)| (action, by)).collect();
    assert_eq!(actions[1], ("server_deleted", "office".into()));
}

#[test]
fn a_server_that_was_deleted_at_once_does_not_come_back_with_its_used_ticket() {
    let mut test = TestServer::start();
    let server = test.register(with(1, ticket(9, 500))).unwrap();
    test.delete(server.id, NOW).unwrap();
    test.restart();
    assert_eq!(test.listed(), 0);
    for result in
        [test.set_revoked(server.id, true), test.note(server.id), test.delete(server.id, NOW)]
    {
        assert_eq!(result, Err(Refusal::ServerNotFound));
    }
    assert_eq!(test.check_in(server.id, Bearer::Nobody, NOW), Err(Refusal::ServerNotFound));
    assert_eq!(test.register(with(1, ticket(9, 500))), Err(Refusal::CredentialUsed));
    assert!(test.register(with(1, ticket(8, 400))).is_ok());
    assert_eq!(test.listed(), 1);
}

#[test]
fn a_deleted_revoked_server_stays_revoked_until_it_is_restored_by_its_id() {
    let mut test = TestServer::start();
    let id = test.register(with(1, master())).unwrap().id;
    test.set_revoked(id, true).unwrap();
    test.delete(id, NOW.plus(9 * DAY)).unwrap();
    test.restart();
    assert_eq!((test.listed(), test.count(DELETED)), (0, 1));
    assert_eq!(test.register(with(1, master())), Err(Refusal::ServerRevoked(id)));
    assert_eq!(test.check_in(id, Bearer::Nobody, NOW), Ok(CheckedIn::Revoked));
    assert_eq!(test.delete(id, NOW), Err(Refusal::ServerNotFound));
    test.set_revoked(id, false).unwrap();
    assert_eq!(test.listed(), 1);
    assert!(test.register(with(1, master())).is_ok());
}

#[test]
fn an_imported_server_keeps_its_id_also_when_it_registers_again() {
    let mut test = TestServer::start();
    let imported = test.import(&[in_list(0xABC, 1), in_list(0xDEF, 2)]);
    assert_eq!(imported, Imported { new: 2, ..Imported::default() });
    for _ in 0..2 {
        let unknown_token = Bearer::Token(KeyedHash([5; 16]));
        assert_eq!(test.check_in(ServerId(0xABC), unknown_token, NOW), Ok(CheckedIn::Active));
        test.restart();
    }
    let server = test.register(with(1, token())).unwrap();
    assert_eq!((server.id, server.note.as_str()), (ServerId(0xABC), "from before"));
    assert_eq!(server.registered_at, in_list(0, 1).registered_at);
    let other = Bearer::Token(KeyedHash([5; 16]));
    assert_eq!(test.check_in(server.id, other, NOW), Err(Refusal::Unauthorized));
    assert_eq!(test.listed(), 2);
    let by_name = ("server_imported", "office".to_owned(), Some(server.id));
    assert_eq!(test.events()[0], by_name);
}

#[test]
fn an_imported_revocation_is_not_evaded_by_registering_anew() {
    let mut test = TestServer::start();
    let revoked = Listed { revoked: true, ..in_list(0xABC, 1) };
    test.import(&[revoked]);
    test.restart();
    let refused = Err(Refusal::ServerRevoked(ServerId(0xABC)));
    assert_eq!(test.register(with(1, master())), refused);
    test.delete(ServerId(0xABC), NOW).unwrap();
    assert_eq!(test.register(with(1, master())), refused);
    assert_eq!(test.check_in(ServerId(0xABC), Bearer::Nobody, NOW), Ok(CheckedIn::Revoked));
}

#[test]
fn importing_again_changes_what_has_changed_in_the_list_alone() {
    let mut test = TestServer::start();
    let list = [in_list(1, 1), in_list(2, 2), in_list(3, 3)];
    assert_eq!(test.import_with(&list, true).new, 3);
    assert_eq!((test.listed(), test.events().len()), (0, 0), "a dry run writes nothing");
    test.import(&list);
    let again = test.import(&list);
    assert_eq!(again, Imported { unchanged: 3, ..Imported::default() });
    assert_eq!(test.events().len(), 3);
    test.set_revoked(ServerId(1), true).unwrap();
    test.set_revoked(ServerId(1), false).unwrap();
    test.note(ServerId(2)).unwrap();
    let revoked = list.clone().map(|one| Listed { revoked: true, ..one });
    test.restart();
    let third = test.import(&revoked);
    let changed_here = vec![ServerId(1), ServerId(2)];
    let not_revoked = changed_here.clone();
    let expected = Imported { changed: 1, changed_here, not_revoked, ..Imported::default() };
    assert_eq!(third, expected);
    assert_eq!(test.check_in(ServerId(1), Bearer::Nobody, NOW), Ok(CheckedIn::Active));
    assert_eq!(test.check_in(ServerId(3), Bearer::Nobody, NOW), Ok(CheckedIn::Revoked));
}

#[test]
fn an_address_that_is_registered_here_or_twice_in_the_list_is_named_and_left_alone() {
    let mut test = TestServer::start();
    let here = test.register(with(1, master())).unwrap();
    let list = [in_list(1, 1), in_list(2, 2), in_list(3, 2), in_list(2, 4)];
    let imported = test.import(&list);
    let address_taken = vec![ServerId(1), ServerId(3), ServerId(2)];
    assert_eq!(imported, Imported { new: 1, address_taken, ..Imported::default() });
    assert_eq!(test.register(with(1, master())).map(|server| server.id), Ok(here.id));
    // Imported under the id that this address would have.
    let stranger = in_list(address_id(ip(7)).0, 6);
    assert_eq!(test.import(&[stranger]).new, 1);
    let beside = test.register(with(7, master())).unwrap();
    assert_eq!(beside.id.0, address_id(ip(7)).0 + 1);
    test.restart();
    assert_eq!(test.register(with(7, master())).map(|server| server.id), Ok(beside.id));
    let stranger = test.register(with(6, master())).unwrap();
    assert_eq!(stranger.id, address_id(ip(7)));
}

#[test]
fn the_address_of_a_deleted_server_is_imported_at_once_and_its_used_ticket_stays_used() {
    let mut test = TestServer::start();
    let here = test.register(with(1, ticket(9, 500))).unwrap();
    let list = [in_list(0xABC, 1)];
    let taken = Imported { address_taken: vec![ServerId(0xABC)], ..Imported::default() };
    assert_eq!(test.import(&list), taken);
    test.delete(here.id, NOW).unwrap();
    assert_eq!(test.import_with(&list, true).new, 1);
    assert_eq!(test.import(&list), Imported { new: 1, ..Imported::default() });
    for restarts in [false, true] {
        if restarts {
            test.restart();
        }
        let not_found = Err(Refusal::ServerNotFound);
        assert_eq!(test.check_in(here.id, Bearer::Nobody, NOW), not_found, "{restarts}");
        assert_eq!(test.set_revoked(here.id, true), Err(Refusal::ServerNotFound));
        assert_eq!(test.check_in(ServerId(0xABC), Bearer::Nobody, NOW), Ok(CheckedIn::Active));
        assert_eq!(test.register(with(1, ticket(9, 500))), Err(Refusal::CredentialUsed));
        assert_eq!((test.listed(), test.count(DELETED)), (1, 0));
    }
    // What the list changes later makes the ticket no better.
    let noted = [Listed { note: "later".into(), ..in_list(0xABC, 1) }];
    assert_eq!(test.import(&noted).changed, 1);
    assert_eq!(test.register(with(1, ticket(9, 500))), Err(Refusal::CredentialUsed));
    let again = test.register(with(1, ticket(8, 400))).unwrap();
    assert_eq!((again.id, again.note.as_str()), (ServerId(0xABC), "later"));
}

#[test]
fn a_server_imported_at_the_address_of_a_deleted_revoked_one_is_revoked_until_it_is_restored() {
    let mut test = TestServer::start();
    let here = test.register(with(1, master())).unwrap();
    test.set_revoked(here.id, true).unwrap();
    test.delete(here.id, NOW).unwrap();
    let list = [in_list(0xABC, 1)];
    let still_revoked = vec![ServerId(0xABC)];
    let imported = test.import(&list);
    assert_eq!(imported, Imported { new: 1, still_revoked, ..Imported::default() });
    assert_eq!(test.import(&list).changed_here, [ServerId(0xABC)], "the list undoes nothing");
    test.restart();
    let refused = Err(Refusal::ServerRevoked(ServerId(0xABC)));
    assert_eq!(test.register(with(1, master())), refused);
    assert_eq!(test.check_in(ServerId(0xABC), Bearer::Nobody, NOW), Ok(CheckedIn::Revoked));
    test.set_revoked(ServerId(0xABC), false).unwrap();
    assert_eq!(test.register(with(1, master())).map(|server| server.id), Ok(ServerId(0xABC)));
}

#[test]
fn an_imported_server_that_was_deleted_here_is_not_imported_again_while_that_is_remembered() {
    let mut test = TestServer::start();
    let list = [in_list(1, 1), in_list(2, 2)];
    test.import(&list);
    test.delete(ServerId(1), NOW).unwrap();
    test.restart();
    let again = test.import(&list);
    let changed_here = vec![ServerId(1)];
    assert_eq!(again, Imported { unchanged: 1, changed_here, ..Imported::default() });
    assert_eq!(test.listed(), 1);
    // The machine may come back. This is for it to decide.
    assert_eq!(test.register(with(1, master())).map(|server| server.id), Ok(ServerId(1)));
    test.delete(ServerId(1), NOW).unwrap();
    // Another server that the list has at its address is not the one that was deleted.
    assert_eq!(test.import(&[in_list(3, 1)]).new, 1);
    assert_eq!(test.listed(), 2);
}

#[test]
fn the_clock_forgets_a_deleted_server_after_the_retention_whatever_else_it_deletes() {
    let mut test = TestServer::start();
    let revoked = test.register(with(4, master())).unwrap().id;
    test.set_revoked(revoked, true).unwrap();
    test.import(&[in_list(1, 1), in_list(2, 2)]);
    for id in [revoked, ServerId(1)] {
        test.delete(id, NOW.plus(60)).unwrap();
    }
    let registered = test.register(with(3, ticket(9, 500))).unwrap().id;
    test.delete(registered, NOW).unwrap();
    assert_eq!(test.count(DELETED), 3);
    // It listens for three intervals first, and the retention here is a day.
    let now = tick_through(&mut test, NOW, 3 * DAY - 600);
    assert_eq!(test.count(DELETED), 3);
    tick_through(&mut test, now, 1200);
    assert_eq!((test.count(DELETED), test.listed()), (1, 1), "the revoked one stays");
    test.restart();
    assert_eq!(test.import(&[in_list(1, 1)]).new, 1);
    assert_eq!(test.check_in(revoked, Bearer::Nobody, NOW), Ok(CheckedIn::Revoked));
}

#[test]
fn no_revocation_in_a_list_is_lost_without_a_word() {
    let mut test = TestServer::start();
    let elsewhere = test.register(with(4, master())).unwrap();
    test.import(&[in_list(1, 1), in_list(2, 2), in_list(3, 3)]);
    test.note(ServerId(2)).unwrap();
    let revoked = |id, number| Listed { revoked: true, ..in_list(id, number) };
    let moved = [revoked(1, 9), revoked(2, 2), revoked(3, 3), revoked(5, 4), in_list(6, 6)];
    let imported = test.import(&moved);
    let expected = Imported {
        new: 1,
        changed: 1,
        changed_here: vec![ServerId(2)],
        other_address: vec![ServerId(1)],
        address_taken: vec![ServerId(5)],
        not_revoked: vec![ServerId(1), ServerId(2), ServerId(5)],
        ..Imported::default()
    };
    assert_eq!(imported, expected);
    for id in [ServerId(1), ServerId(2), elsewhere.id] {
        assert_eq!(test.check_in(id, Bearer::Nobody, NOW), Ok(CheckedIn::Active));
        test.set_revoked(id, true).unwrap();
    }
    assert_eq!(test.import(&moved).not_revoked, [], "they are revoked here too");
}

#[test]
fn a_list_that_is_too_long_for_one_message_is_refused() {
    let mut test = TestServer::start();
    let servers = vec![(ServerId(1), in_list(1, 1)); Import::STEP + 1];
    let import = Import { servers, dry_run: true, by: String::new(), from: FROM, now: NOW };
    let refused = test.ask(|handles| handles.import_servers(import));
    assert!(matches!(refused, Err(Refusal::InvalidField(_))), "{refused:?}");
}

#[test]
fn servers_that_were_not_seen_for_long_are_deleted_together_and_the_others_stay() {
    let mut test = TestServer::start();
    let list: Vec<Listed> = (1..=200)
        .map(|n| Listed {
            last_checkin: Timestamp(NOW.0 - u64::from(n) * DAY),
            ..in_list(n.into(), n)
        })
        .collect();
    test.import(&list);
    test.set_revoked(ServerId(200), true).unwrap();
    assert_eq!(test.check_in(ServerId(199), Bearer::Nobody, NOW), Ok(CheckedIn::Active));
    let before = Timestamp(NOW.0 - 100 * DAY);
    let mut deleted = Vec::new();
    while deleted.last() != Some(&0) {
        let unseen = DeleteUnseen { before, by: "office".into(), from: FROM, now: NOW };
        deleted.push(test.ask(|handles| handles.delete_unseen(unseen)).unwrap());
    }
    assert_eq!(deleted, [99, 0]);
    test.restart();
    assert_eq!((test.listed(), test.count(DELETED)), (101, 99));
}

/// Ticks every ten minutes from `from` until so many seconds later.
fn tick_through(test: &mut TestServer, from: Timestamp, seconds: u64) -> Timestamp {
    for later in (0..=seconds).step_by(600) {
        tick(test, from.plus(later));
    }
    from.plus(seconds)
}

fn tick(test: &mut TestServer, at: Timestamp) -> usize {
    test.actors.handles().tick(at);
    test.run();
    // The next step of the sweep follows on the time of this tick.
    test.actors.handles().tick(at);
    test.run();
    test.listed()
}

/// Starts a server with a list of servers that were last seen 40 days ago, and with the setting that the
/// clock deletes servers after 30 days.
fn with_unseen(count: u8) -> TestServer {
    let mut test = TestServer::start();
    let seen = Timestamp(NOW.0 - 40 * DAY);
    let list: Vec<Listed> =
        (1..=count).map(|n| Listed { last_checkin: seen, ..in_list(n.into(), n) }).collect();
    test.import(&list);
    test.tuning.store(Arc::new(ActorSettings { forget_after_seconds: 30 * DAY, ..tuning() }));
    test
}

#[test]
fn the_clock_deletes_a_few_unseen_servers_each_minute_if_that_is_set() {
    let mut test = with_unseen(150);
    let now = tick_through(&mut test, NOW, 3 * DAY - 1);
    assert_eq!(test.listed(), 150, "each is given three intervals to check in");
    let left = [1, 2, 60, 62, 200].map(|later| tick(&mut test, now.plus(later)));
    assert_eq!(left, [50, 50, 50, 0, 0]);
    let events = test.events();
    let deleted =
        events.iter().filter(|(action, by, _)| *action == "server_deleted" && by.is_empty());
    assert_eq!(deleted.count(), 150);
}

#[test]
fn after_a_step_of_the_clock_servers_are_given_time_to_check_in_again() {
    let mut test = with_unseen(10);
    let now = tick_through(&mut test, NOW, 3 * DAY - 1);
    let ahead = now.plus(20 * DAY);
    assert_eq!(tick(&mut test, ahead), 10, "the clock was set ahead");
    assert_eq!(tick(&mut test, now.plus(2)), 10, "and back");
    let now = tick_through(&mut test, now.plus(2), 3 * DAY - 600);
    assert_eq!(test.listed(), 10);
    assert_eq!(tick(&mut test, now.plus(600)), 0);
}

#[test]
fn a_server_that_was_restored_is_given_time_to_check_in() {
    let mut test = with_unseen(2);
    let now = tick_through(&mut test, NOW, DAY);
    test.set_revoked(ServerId(2), true).unwrap();
    let now = tick_through(&mut test, now, 2 * DAY - 600);
    test.set_revoked(ServerId(2), false).unwrap();
    assert_eq!(tick(&mut test, now.plus(600)), 1);
    tick_through(&mut test, now.plus(600), 3 * DAY - 1200);
    assert_eq!(test.listed(), 1);
    assert_eq!(tick(&mut test, now.plus(3 * DAY)), 0);
}

const HOUR: u64 = 3600;

fn network(last: u8) -> IpAddr {
    IpAddr::from([8, 8, 4, last])
}

/// Starts a server on which servers check in once an hour.
fn hourly() -> TestServer {
    let test = TestServer::start();
    let silence = Silence { interval: HOUR, after_intervals: 3, share_percent: 50 };
    test.tuning.store(Arc::new(ActorSettings { silence, ..tuning() }));
    test
}

#[test]
fn two_networks_within_an_interval_are_one_clone_event_and_the_next_interval_has_another() {
    let mut test = hourly();
    let id = test.register(with(1, master())).unwrap().id;
    let check_in = |test: &mut TestServer, from, seconds| {
        test.check_in_from(network(from), id, Bearer::Nobody, NOW.plus(seconds)).unwrap();
        test.tick(NOW.plus(seconds));
    };
    check_in(&mut test, 1, 10);
    assert_eq!(test.logged(Action::CloneSeen), []);
    for seconds in [20, 30, 40] {
        check_in(&mut test, 2, seconds);
        check_in(&mut test, 1, seconds + 5);
    }
    let logged = test.logged(Action::CloneSeen);
    assert_eq!(logged.len(), 1, "{logged:?}");
    assert_eq!((logged[0].from, logged[0].address), (Some(network(2)), Some(network(1))));
    assert_eq!(logged[0].server, Some(id));
    assert_eq!(logged[0].detail, "10 s after a check-in from 8.8.4.1");
    check_in(&mut test, 2, HOUR + 10);
    check_in(&mut test, 1, HOUR + 20);
    assert_eq!(test.logged(Action::CloneSeen).len(), 2);
}

#[test]
fn a_server_that_moves_is_no_clone() {
    let mut test = hourly();
    let id = test.register(with(1, master())).unwrap().id;
    for (number, from) in [1, 1, 2, 2].into_iter().enumerate() {
        // Agents are some minutes early or late.
        let now = NOW.plus(number as u64 * (HOUR - 300));
        test.check_in_from(network(from), id, Bearer::Nobody, now).unwrap();
        test.tick(now);
    }
    assert_eq!(test.logged(Action::CloneSeen), []);
}

#[test]
fn a_token_that_is_not_the_servers_is_a_clone_of_it_and_stays_refused() {
    let mut test = hourly();
    let id = test.register(with(1, ticket(1, 0))).unwrap().id;
    test.check_in(id, Bearer::Token(KeyedHash([1; 16])), NOW.plus(1)).unwrap();
    let stale = Bearer::Token(KeyedHash([9; 16]));
    let refused = test.check_in(id, stale, NOW.plus(2));
    assert_eq!(refused, Err(Refusal::Unauthorized));
    test.tick(NOW.plus(3));
    let logged = test.logged(Action::CloneSeen);
    assert_eq!(logged.len(), 1);
    assert!(logged[0].detail.ends_with("and was refused"), "{}", logged[0].detail);
}

#[test]
fn a_silent_fleet_is_one_event_when_it_begins_and_one_when_it_is_over() {
    let mut test = hourly();
    let ids = [1, 2, 3, 4].map(|number| test.register(with(number, master())).unwrap().id);
    let log = |test: &TestServer| -> Vec<(String, String)> {
        let logged = test.logged(Action::FleetSilent).into_iter();
        logged.map(|event| (event.subject, event.detail)).collect()
    };
    // Nobody can have been heard before the start.
    let now = tick_through(&mut test, NOW, 3 * HOUR - 10);
    assert_eq!(log(&test), []);
    test.check_in(ids[0], Bearer::Nobody, now.plus(10)).unwrap();
    test.check_in(ids[1], Bearer::Nobody, now.plus(10)).unwrap();
    test.set_revoked(ids[3], true).unwrap();
    let now = tick_through(&mut test, now.plus(20), 0);
    assert_eq!(log(&test), [], "one of three is less than half");
    let now = tick_through(&mut test, now, 5 * HOUR);
    let begun = log(&test);
    assert_eq!(begun.len(), 1, "{begun:?}");
    assert_eq!(begun[0].0, "silent");
    assert_eq!(begun[0].1, "3 of 3 servers have not checked in for more than 10800 s");
    for id in &ids[..3] {
        test.check_in(*id, Bearer::Nobody, now.plus(10)).unwrap();
    }
    tick(&mut test, now.plus(20));
    let over = log(&test);
    assert_eq!((over.len(), over[1].0.as_str()), (2, "over"));
}

#[test]
fn no_fleet_is_silent_because_the_clock_was_set_and_one_that_is_stays_so() {
    let mut test = hourly();
    let ids = [1, 2].map(|number| test.register(with(number, master())).unwrap().id);
    let log = |test: &TestServer| -> Vec<String> {
        test.logged(Action::FleetSilent).into_iter().map(|event| event.subject).collect()
    };
    // Checks in once an hour for some hours, and returns the time then.
    let hours = |test: &mut TestServer, mut now: Timestamp, hours: u64| {
        for _ in 0..hours {
            for id in ids {
                test.check_in(id, Bearer::Nobody, now).unwrap();
            }
            now = tick_through(test, now, HOUR);
        }
        now
    };
    let now = hours(&mut test, NOW, 4);
    let ahead = tick_through(&mut test, now.plus(20 * DAY), HOUR / 2);
    assert_eq!(log(&test), Vec::<String>::new(), "the clock was set ahead");
    hours(&mut test, ahead, 4);
    let now = tick_through(&mut test, now.plus(600), HOUR / 2);
    assert_eq!(log(&test), Vec::<String>::new(), "and back");
    let now = hours(&mut test, now, 4);
    assert_eq!(log(&test), Vec::<String>::new());
    let now = tick_through(&mut test, now, 4 * HOUR);
    assert_eq!(log(&test), ["silent"]);
    let now = tick_through(&mut test, Timestamp(now.0 - 10 * HOUR), HOUR);
    assert_eq!(log(&test), ["silent"], "nobody has checked in since the clock was set back");
    hours(&mut test, now, 1);
    assert_eq!(log(&test), ["silent", "over"]);
}
