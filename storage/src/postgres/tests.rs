//! Tests with a real database: `scripts/test` starts a cluster and names it in `TEST_POSTGRES`.

mod proxy;

use super::log::Published;
use super::{PostgresStore, migrate};
use crate::embedded::engine::samples::{
    access_token, activation, at, code, event, server, server_of,
};
use crate::{
    Attempts, AuditLog, Change, Charged, CheckIn, CheckInOf, CommitError, Counted, Entry, Epochs,
    OpenError, Records, Setting, Shared, Store, Verdict, WebhookStates, Write,
};
use iptunnel_domain::access::{AccessToken, TokenNumber};
use iptunnel_domain::activation::Activation;
use iptunnel_domain::audit::{Event, Head};
use iptunnel_domain::code::{Code, CodeState};
use iptunnel_domain::limit::Policy;
use iptunnel_domain::server::{Server, ServerId, ServerNumber};
use iptunnel_domain::{Timestamp, Version};
use proxy::{Mishap, Proxy};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A fresh database.
struct Database {
    cluster: String,
    name: String,
}

impl Database {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let cluster = std::env::var("TEST_POSTGRES").expect("scripts/test starts a cluster");
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        let name = format!("store_{}_{number}", std::process::id());
        let new = Self { cluster, name };
        execute(&format!("{}/postgres", new.cluster), &format!("CREATE DATABASE {}", new.name));
        new
    }
    fn url(&self) -> String {
        format!("{}/{}", self.cluster, self.name)
    }
    fn store(&self) -> PostgresStore {
        PostgresStore::open(&self.url()).unwrap()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        execute(&format!("{}/postgres", self.cluster), &drop);
    }
}

fn execute(url: &str, sql: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (client, connection) =
            tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(sql).await.unwrap();
    });
}

fn audited(number: u64) -> Write {
    Write::Audit(Arc::new(event(number)))
}

fn issue(number: u64) -> Change {
    Change(vec![Write::Code(code(number, 1, 0)), audited(number)])
}

fn consumed(number: u64, version: Version) -> Code {
    code(number, version, 1)
}

fn open(number: u64) -> Change {
    let write = Write::Activation(activation(number, 1, 0));
    Change(vec![Write::Code(consumed(number, 2)), write, audited(number)])
}

fn commit(store: &dyn Store, changes: &[Change]) -> Vec<Verdict> {
    store.commit(changes).unwrap()
}

fn log(store: &dyn Store) -> Vec<Entry> {
    let mut all = Vec::new();
    store
        .audit_from(1, &mut |entry| {
            all.push(entry);
            true
        })
        .unwrap();
    all
}

use Verdict::{Conflict, Written};

#[test]
fn records_read_back_as_they_were_written() {
    let database = Database::new();
    let store = database.store();
    let writes = |writes: Vec<Write>| writes.into_iter().map(|write| Change(vec![write]));
    let new: Vec<Change> = writes(vec![
        Write::Code(code(1, 1, 0)),
        Write::Code(code(2, 1, 2)),
        Write::Activation(activation(3, 1, 0)),
        Write::Activation(activation(4, 1, 0)),
        Write::Server(server(5, 1)),
    ])
    .collect();
    assert_eq!(commit(&store, &new), [const { Written }; 5]);
    let changed = [
        Change(vec![Write::Code(consumed(1, 2))]),
        Change(vec![Write::Activation(activation(3, 2, 1))]),
        Change(vec![Write::Activation(activation(4, 2, 2))]),
    ];
    assert_eq!(commit(&store, &changed), [const { Written }; 3]);
    for wanted in [consumed(1, 2), code(2, 1, 2)] {
        assert_eq!(store.code(wanted.hash).unwrap(), Some(wanted));
    }
    for wanted in [activation(3, 2, 1), activation(4, 2, 2)] {
        assert_eq!(store.activation(wanted.at.id).unwrap(), Some(wanted));
    }
    // The database gives a server its number.
    let wanted = server(5, 1);
    let found = store.servers_of(&[wanted.id]).unwrap()[0].clone().unwrap();
    assert_eq!(found, iptunnel_domain::server::Server { number: found.number, ..wanted.clone() });
    assert_eq!(store.server(found.number).unwrap(), Some(found.clone()));
    assert_eq!(store.servers_before(None, 9).unwrap(), std::slice::from_ref(&found));
    let mut all = Vec::new();
    store.each_server(&mut |server| all.push(server)).unwrap();
    assert_eq!(all, [found]);
    assert_eq!(store.code(code(9, 1, 0).hash).unwrap(), None);
    assert_eq!(store.newest_codes(1).unwrap()[0].number.0, 2);
    assert_eq!(store.oldest_codes(None, 1).unwrap()[0].number.0, 1);
    assert_eq!(store.newest_activations(9).unwrap().len(), 2);
    assert_eq!(store.oldest_activations(None, 1).unwrap()[0].at.number.0, 3);
}

#[test]
fn a_change_whose_guard_fails_is_not_written_and_its_neighbours_are() {
    let database = Database::new();
    let store = database.store();
    let batch = [issue(1), Change(vec![Write::Code(consumed(2, 5)), audited(2)]), issue(3)];
    assert_eq!(commit(&store, &batch), [Written, Conflict, Written]);
    assert_eq!(commit(&store, &[issue(1)]), [Conflict], "a number that is taken");
    let told: Vec<u64> = log(&store).into_iter().map(|entry| entry.event.at.0).collect();
    assert_eq!(told, [1, 3], "an unwritten change has no entry in the log");
}

#[test]
fn a_change_that_fits_only_in_part_is_not_written_and_its_neighbours_are() {
    let database = Database::new();
    let store = database.store();
    assert_eq!(commit(&store, &[issue(1), open(1), issue(2)]), [const { Written }; 3]);
    // The activation has the version that the change was decided on, and the code has not.
    let torn = Change(vec![
        Write::Activation(activation(1, 2, 2)),
        Write::Code(code(1, 7, 0)),
        audited(1),
    ]);
    assert_eq!(commit(&store, &[torn, issue(3)]), [Conflict, Written]);
    assert_eq!(store.activation(at(1).id).unwrap(), Some(activation(1, 1, 0)));
    assert_eq!(log(&store).len(), 4);
}

#[test]
fn changes_of_one_record_in_a_batch_follow_one_another() {
    let database = Database::new();
    let store = database.store();
    let again = |version, state| Change(vec![Write::Code(code(1, version, state)), audited(1)]);
    let released = Change(vec![
        Write::Activation(activation(1, 2, 2)),
        Write::Code(code(1, 3, 0)),
        audited(1),
    ]);
    // Between changes of others with the same shape.
    let batch = [issue(1), issue(2), open(1), open(2), released, again(4, 0), issue(3)];
    assert_eq!(commit(&store, &batch), [const { Written }; 7]);
    assert_eq!(store.code(code(1, 1, 0).hash).unwrap(), Some(code(1, 4, 0)));
    assert_eq!(store.activation(at(1).id).unwrap(), Some(activation(1, 2, 2)));
    // A change that depends on an unwritten one is not written either.
    let batch = [again(6, 1), again(7, 0), again(5, 0)];
    assert_eq!(commit(&store, &batch), [Conflict, Conflict, Written]);
    let setting = |value: &str| {
        let value = Some(value.to_owned());
        Change(vec![Write::Setting(Setting { key: "a.key".into(), value }), audited(1)])
    };
    assert_eq!(commit(&store, &[setting("1"), setting("2"), setting("3")]), [const { Written }; 3]);
    assert_eq!(store.settings().unwrap(), [("a.key".into(), "3".into())]);
}

#[test]
fn one_of_two_registrations_of_a_server_counts_and_its_neighbours_do_too() {
    let database = Database::new();
    let (one, other) = (database.store(), database.store());
    let register = |number| Change(vec![Write::Server(server(number, 1)), audited(number.into())]);
    assert_eq!(commit(&one, &[register(1)]), [Written]);
    let batch = [register(3), register(1), register(2), register(2)];
    assert_eq!(commit(&other, &batch), [Written, Conflict, Written, Conflict]);
    let mut found = Vec::new();
    one.each_server(&mut |server| found.push(server.id)).unwrap();
    assert_eq!(found, [1, 3, 2].map(|number| server(number, 1).id), "in the order they came");
    assert_eq!(log(&one).len(), 3);
}

#[test]
fn servers_of_all_kinds_are_found_by_id_and_by_address_and_forgotten() {
    let database = Database::new();
    let store = database.store();
    let all: Vec<Server> = (8..16).map(|seed| server_of(seed, 1)).collect();
    let change = |server: &Server| Change(vec![Write::Server(server.clone())]);
    assert_eq!(commit(&store, &all.iter().map(change).collect::<Vec<_>>()), [const { Written }; 8]);
    let ids: Vec<ServerId> = all.iter().map(|server| server.id).collect();
    let addresses: Vec<ServerId> = all.iter().map(|server| server.address_id).collect();
    let found = store.servers_of(&ids).unwrap();
    assert_eq!(store.servers_at(&addresses).unwrap(), found);
    let found: Vec<Server> = found.into_iter().flatten().collect();
    let mut numbers: Vec<ServerNumber> = found.iter().rev().map(|server| server.number).collect();
    numbers.insert(1, ServerNumber(u32::MAX));
    let mut wanted: Vec<_> = found.iter().rev().cloned().map(Some).collect();
    wanted.insert(1, None);
    assert_eq!(store.servers_numbered(&numbers).unwrap(), wanted);
    for (found, wanted) in found.iter().zip(&all) {
        assert_eq!(found, &Server { number: found.number, ..wanted.clone() });
    }
    // Of the two that it enrolled one was deleted.
    assert_eq!(store.enrolled(TokenNumber(7)).unwrap(), 1);
    let imported = found.iter().find(|server| server.id != server.address_id).unwrap();
    let beside = Server { id: imported.address_id, ..imported.clone() };
    assert_eq!(commit(&store, &[change(&beside)]), [Conflict], "the address is taken");
    let moved = Server { address_id: ServerId(77), version: 2, ..imported.clone() };
    let forget = |version| Change(vec![Write::ForgetServer(imported.number, version)]);
    assert_eq!(commit(&store, &[change(&moved)]), [Written]);
    assert_eq!(store.servers_at(&[ServerId(77)]).unwrap(), [Some(moved.clone())]);
    let renamed = Server { id: ServerId(78), version: 3, ..moved };
    let neighbour = found.iter().find(|server| server.id != imported.id).unwrap();
    let other = Server { id: ServerId(79), address_id: ServerId(79), ..neighbour.clone() };
    let taken = Server { id: ServerId(79), version: 2, ..neighbour.clone() };
    let batch = [change(&other), change(&taken), change(&renamed)];
    assert_eq!(commit(&store, &batch), [Written, Conflict, Written], "the id is taken");
    assert_eq!(store.servers_of(&[ServerId(78), imported.id]).unwrap(), [Some(renamed), None]);
    assert_eq!(commit(&store, &[forget(2), forget(3), forget(3)]), [Conflict, Written, Conflict]);
    assert_eq!(store.servers_of(&[ServerId(78)]).unwrap(), [None]);
}

#[test]
fn an_access_token_has_a_number_and_a_name_of_its_own() {
    let database = Database::new();
    let (one, other) = (database.store(), database.store());
    let write = |token: &AccessToken| Change(vec![Write::AccessToken(token.clone()), audited(1)]);
    let (first, second) = (access_token(4, 1), access_token(6, 1));
    assert_eq!(commit(&one, &[write(&first)]), [Written]);
    let same_name = AccessToken { name: first.name.clone(), ..second.clone() };
    assert_eq!(commit(&other, &[write(&first)]), [Conflict]);
    assert_eq!(commit(&other, &[write(&same_name)]), [Conflict]);
    assert_eq!(commit(&other, &[write(&second)]), [Written]);
    let taken = second.rename(first.name.clone()).unwrap();
    let free = second.rename("free".into()).unwrap();
    assert_eq!(commit(&one, &[write(&taken)]), [Conflict]);
    assert_eq!(commit(&one, &[write(&free)]), [Written]);
    assert_eq!(commit(&other, &[write(&taken)]), [Conflict], "its version is old");
    let used = [(first.number, Timestamp(2000)), (first.number, Timestamp(2050))];
    commit(&one, &[Change(vec![Write::TokenUses(used.to_vec())])]);
    for late in [2020, 100] {
        let used = Write::TokenUses(vec![(first.number, Timestamp(late))]);
        commit(&one, &[Change(vec![used])]);
    }
    let revoked = first.revoke(Timestamp(9)).unwrap();
    assert_eq!(commit(&one, &[write(&revoked)]), [Written]);
    let revoked = AccessToken { last_used: Timestamp(2050), ..revoked };
    assert_eq!(other.access_tokens().unwrap(), [revoked, free.clone()]);
    let taken = free.rename(first.name.clone()).unwrap();
    assert_eq!(commit(&other, &[write(&taken)]), [Written], "a revoked token's name is free");
    assert_eq!(log(&one).len(), 5);
}

#[test]
fn an_event_with_a_name_reads_back_and_an_older_program_does_not_settle_it() {
    let database = Database::new();
    let store = database.store();
    let named = Event { by: "office: north".into(), ..event(1) };
    commit(&store, &[Change(vec![Write::Audit(Arc::new(named.clone()))])]);
    assert_eq!(log(&store)[0].event, named);
    let known = "SELECT count(*) FROM event WHERE actor IN ('installer')";
    assert_eq!(number_of(&database.url(), known), 0);
}

#[test]
fn servers_registered_before_the_schemas_third_step_are_read_and_changed() {
    let database = Database::new();
    for step in &migrate::STEPS[..2] {
        execute(&database.url(), step);
    }
    let register =
        "INSERT INTO server (id, ip, hostname, registered_at, token, revoked, note, version)
         VALUES (decode(repeat('07', 8), 'hex'), '8.8.8.8', 'old', '2001-01-01',
             decode(repeat('08', 16), 'hex'), false, '', 1);
         INSERT INTO presence SELECT number, '2001-01-01' FROM server";
    let before = "CREATE TABLE schema_step (
             step integer PRIMARY KEY, done_at timestamptz NOT NULL DEFAULT clock_timestamp());
         INSERT INTO schema_step (step) VALUES (1), (2)";
    execute(&database.url(), before);
    execute(&database.url(), register);
    let store = database.store();
    // A server of the older version registers another one meanwhile.
    execute(
        &database.url(),
        &register
            .replace("07", "09")
            .replace("INTO presence SELECT number", "INTO presence SELECT max(number)"),
    );
    let ids = [7, 9].map(|byte| ServerId(u64::from_be_bytes([byte; 8])));
    let found = store.servers_at(&ids).unwrap();
    for (found, id) in found.iter().zip(ids) {
        let found = found.clone().unwrap();
        assert_eq!((found.id, found.address_id, found.deleted), (id, id, false));
        assert_eq!(found.enrolled_by, iptunnel_domain::server::EnrolledBy::Unknown);
        let revoked = found.set_revoked(true).unwrap();
        assert_eq!(commit(&store, &[Change(vec![Write::Server(revoked)])]), [Written]);
    }
}

#[test]
fn of_two_servers_that_decide_on_one_record_one_gets_a_conflict() {
    let database = Database::new();
    let (one, other) = (database.store(), database.store());
    assert_ne!(one.process(), other.process());
    let codes: Vec<Change> = (1..=50).map(issue).collect();
    assert_eq!(commit(&one, &codes), [const { Written }; 50]);
    // Each in an order of its own: neither waits for the other forever.
    let forth: Vec<Change> = (1..=50).map(open).collect();
    let back: Vec<Change> = (1..=50)
        .rev()
        .map(|number| Change(vec![Write::Code(consumed(number, 2)), audited(number)]))
        .collect();
    let (mine, theirs) = std::thread::scope(|scope| {
        let theirs = scope.spawn(|| commit(&other, &back));
        (commit(&one, &forth), theirs.join().unwrap())
    });
    for (mine, theirs) in mine.iter().zip(theirs.iter().rev()) {
        assert_ne!(mine, theirs);
    }
    assert_eq!(log(&one).len(), 100);
}

#[test]
fn a_code_cannot_have_two_open_activations() {
    let database = Database::new();
    let store = database.store();
    assert_eq!(commit(&store, &[issue(1), open(1)]), [const { Written }; 2]);
    let mut second = activation(2, 1, 0);
    second.code = code(1, 1, 0).hash;
    let mut again = consumed(1, 3);
    again.state = CodeState::Consumed(second.at);
    let change = Change(vec![Write::Code(again), Write::Activation(second), audited(2)]);
    assert_eq!(commit(&store, &[change, issue(5)]), [Conflict, Written]);
    assert_eq!(store.code(code(1, 1, 0).hash).unwrap(), Some(consumed(1, 2)));
}

#[test]
fn a_change_decided_on_a_replaced_record_is_not_written_although_its_version_fits() {
    let database = Database::new();
    let (one, other) = (database.store(), database.store());
    let activation_of_1 = |number, version, state| {
        Write::Activation(Activation {
            code: code(1, 1, 0).hash,
            ..activation(number, version, state)
        })
    };
    let consumed_by = |number, version, activations| {
        let state = CodeState::Consumed(at(number));
        Write::Code(Code { state, activations, ..code(1, version, 0) })
    };
    let given_back =
        |version, activations| Write::Code(Code { activations, ..code(1, version, 0) });
    let first = Change(vec![consumed_by(1, 2, 1), activation_of_1(1, 1, 0), audited(1)]);
    assert_eq!(commit(&one, &[issue(1), first]), [const { Written }; 2]);
    // One releases the first activation and decides on that: another machine gets the code.
    let released = Change(vec![activation_of_1(1, 2, 2), given_back(3, 1), audited(1)]);
    let third = Change(vec![consumed_by(3, 4, 2), activation_of_1(3, 1, 0), audited(3)]);
    // The other was faster: its machine has replaced the first activation, and is done.
    let replaced = Change(vec![
        activation_of_1(1, 2, 2),
        consumed_by(2, 3, 2),
        activation_of_1(2, 1, 0),
        audited(2),
    ]);
    let confirmed = Change(vec![activation_of_1(2, 2, 1), audited(2)]);
    assert_eq!(commit(&other, &[replaced, confirmed]), [const { Written }; 2]);
    assert_eq!(commit(&one, &[released, third]), [const { Conflict }; 2]);
    let stored = one.code(code(1, 1, 0).hash).unwrap().unwrap();
    assert_eq!((stored.version, stored.state), (3, CodeState::Consumed(at(2))));
}

#[test]
fn a_code_is_changed_only_over_the_activation_that_the_change_closes() {
    let database = Database::new();
    let store = database.store();
    assert_eq!(
        commit(&store, &[issue(1), open(1), issue(2), open(2), issue(3)]),
        [const { Written }; 5]
    );
    let closing = |closed: u64, changed: u64, version| {
        let write = Write::Activation(activation(closed, 2, 2));
        Change(vec![write, Write::Code(code(changed, version, 0)), audited(1)])
    };
    let alone = |number, version| Change(vec![Write::Code(code(number, version, 0)), audited(1)]);
    // Nothing is closed; another code's holder is; a code is that nobody holds.
    for torn in [alone(1, 3), closing(1, 2, 3), closing(1, 3, 2)] {
        assert_eq!(commit(&store, &[torn]), [Conflict]);
    }
    // Side by side in one statement, each by its own.
    assert_eq!(
        commit(&store, &[closing(1, 1, 3), closing(2, 2, 3), alone(3, 2)]),
        [const { Written }; 3]
    );
    assert_eq!(store.code(code(2, 1, 0).hash).unwrap(), Some(code(2, 3, 0)));
}

#[test]
fn the_log_of_several_servers_has_one_order_and_one_chain_without_gaps() {
    let database = Database::new();
    let stores: Vec<_> = (0..3).map(|_| database.store()).collect();
    std::thread::scope(|scope| {
        for (place, store) in (0u64..).zip(&stores) {
            scope.spawn(move || {
                for number in 0..40 {
                    commit(store, &[issue(place * 1000 + number)]);
                    if number % 7 == 0 {
                        store.audit_head().unwrap();
                    }
                }
            });
        }
    });
    let first = log(&stores[0]);
    assert_eq!((first.len(), &first), (120, &log(&stores[2])));
    let mut head = Head::default();
    for entry in &first {
        let mut bytes = Vec::new();
        entry.event.encode(&mut bytes);
        head = head.after(&bytes);
        assert_eq!(entry.head, head);
    }
    assert_eq!(stores[1].audit_head().unwrap(), head);
    let mut backwards = Vec::new();
    stores[1]
        .audit_before(u64::MAX, &mut |entry| {
            backwards.push(entry);
            true
        })
        .unwrap();
    backwards.reverse();
    assert_eq!(backwards, first);
    let mut some = Vec::new();
    stores[1]
        .audit_before(60, &mut |entry| {
            some.push(entry.head.entries);
            some.len() < 3
        })
        .unwrap();
    assert_eq!(some, [59, 58, 57]);
}

/// A number for locks of tests that no part of the program takes.
const GATE: i64 = 42;

/// Reads a number from the database, from outside of the store.
fn number_of(url: &str, sql: &str) -> i64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (client, connection) =
            tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.query_one(sql, &[]).await.unwrap().get(0)
    })
}

fn wait_until(what: &str, is: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < Duration::from_secs(10), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_server_that_pauses_while_it_settles_the_log_delays_no_commit() {
    let database = Database::new();
    let stores: Vec<_> = (0..3).map(|_| database.store()).collect();
    for (number, store) in (1..).zip(&stores) {
        commit(store, &[issue(number)]);
    }
    // A server that settles the log hangs just before its commit, as long as the gate is held.
    let url = database.url();
    execute(
        &url,
        &format!(
            "CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM pg_advisory_xact_lock({GATE}); RETURN NULL; END $$;
             CREATE CONSTRAINT TRIGGER pause AFTER INSERT ON link DEFERRABLE INITIALLY DEFERRED
                 FOR EACH ROW EXECUTE FUNCTION pause()"
        ),
    );
    let paused = "SELECT count(*) FROM pg_locks JOIN pg_database ON oid = database
         WHERE datname = current_database() AND locktype = 'advisory' AND objid = 42 AND NOT granted";
    std::thread::scope(|scope| {
        while_locked(&url, &format!("SELECT pg_advisory_xact_lock({GATE})"), || {
            scope.spawn(|| stores[0].audit_head().unwrap());
            wait_until("a server settles the log", || number_of(&url, paused) == 1);
            let (done, committed) = std::sync::mpsc::channel();
            for (number, store) in (11..).zip(&stores) {
                let done = done.clone();
                scope.spawn(move || done.send(commit(store, &[issue(number)])));
            }
            for _ in &stores {
                let within = Duration::from_secs(3);
                assert_eq!(committed.recv_timeout(within).expect("a commit waits"), [Written]);
            }
            assert_eq!(number_of(&url, paused), 1, "nobody settles any more");
        });
    });
    assert_eq!(log(&stores[1]).len(), 6);
}

#[test]
fn entries_settled_before_the_schemas_second_step_are_not_settled_again() {
    let database = Database::new();
    execute(&database.url(), migrate::STEPS[0]);
    let old = "CREATE TABLE schema_step (
             step integer PRIMARY KEY, done_at timestamptz NOT NULL DEFAULT clock_timestamp());
         INSERT INTO schema_step (step) VALUES (1);
         INSERT INTO process (batch, chained) VALUES (3, 2), (0, 0);
         INSERT INTO event (process, seq, at, action, actor, subject, detail)
         SELECT 1, seq, '2001-01-01', 'code_issued', 'browser', '', ''
         FROM generate_series(1, 3) AS seq;
         INSERT INTO link VALUES (1, 2, ARRAY[1, 1], ARRAY[1, 2], decode(repeat('00', 32), 'hex'),
             decode(repeat('77', 32), 'hex'), '2001-01-01')";
    execute(&database.url(), old);
    let store = database.store();
    assert_eq!(store.audit_head().unwrap().entries, 3);
    // A server of the older version finds nothing to settle, whatever it has written since.
    commit(&store, &[issue(1)]);
    let pending = "SELECT count(*) FROM process WHERE NOT ended AND chained <
         (SELECT coalesce(max(seq), 0) FROM event WHERE event.process = process.id)";
    assert_eq!(number_of(&database.url(), pending), 0);
    execute(&database.url(), "INSERT INTO process DEFAULT VALUES");
    assert_eq!(number_of(&database.url(), "SELECT min(chained) FROM process"), i64::MAX);
}

#[test]
fn the_feed_delivers_the_events_of_every_server() {
    let database = Database::new();
    let (one, other) = (database.store(), database.store());
    commit(&one, &[issue(1)]);
    let heard = Arc::new(Mutex::new(Vec::<Event>::new()));
    let of_listener = Arc::clone(&heard);
    other.follow(Box::new(move |event| of_listener.lock().unwrap().push(event.clone())));
    let tried = Event { action: iptunnel_domain::audit::Action::PrecheckPassed, ..event(1) };
    commit(&one, &[open(1), Change(vec![Write::Attempt(tried.clone())])]);
    commit(&other, &[issue(2)]);
    let begun = Instant::now();
    let all = [event(1), tried, event(2)];
    while !all.iter().all(|event| heard.lock().unwrap().contains(event)) {
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", heard.lock().unwrap());
        std::thread::sleep(Duration::from_millis(5));
    }
    let attempts = other.attempts(code(1, 1, 0).hash).unwrap();
    assert_eq!(attempts.kept.len(), 1);
}

#[test]
fn events_are_delivered_while_a_server_hangs_in_settling_the_log() {
    let database = Database::new();
    let (proxy, one) = through_a_proxy(&database);
    let other = database.store();
    let heard = Arc::new(Mutex::new(Vec::<Event>::new()));
    let of_listener = Arc::clone(&heard);
    other.follow(Box::new(move |event| of_listener.lock().unwrap().push(event.clone())));
    // The one has taken its turn, and then hangs.
    proxy.stall_at("INSERT INTO link");
    std::thread::scope(|scope| {
        let stalled = scope.spawn(|| {
            for number in 1.. {
                commit(&one, &[issue(number)]);
                if one.audit_head().is_err() {
                    return;
                }
            }
        });
        wait_until("one server hangs", || proxy.has_stalled());
        let begun = Instant::now();
        commit(&other, &[issue(1000)]);
        wait_until("the event is delivered", || heard.lock().unwrap().contains(&event(1000)));
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        stalled.join().unwrap();
    });
}

#[test]
fn events_of_a_newer_program_are_delivered_although_not_understood() {
    let database = Database::new();
    let (one, other) = (database.store(), database.store());
    let heard = Arc::new(Mutex::new(Vec::<Event>::new()));
    let of_listener = Arc::clone(&heard);
    other.follow(Box::new(move |event| of_listener.lock().unwrap().push(event.clone())));
    // A third server: it revokes the server with this id in a way of its own, and settles nothing yet.
    let sql = format!(
        "INSERT INTO process (batch) VALUES (1);
         INSERT INTO event (process, seq, at, action, actor, server, subject, detail)
         SELECT max(id), 1, '2001-01-01', 'server_revoked_tomorrow', 'an_auditor', '\\x{:016x}', '', ''
         FROM process",
        7
    );
    execute(&database.url(), &sql);
    commit(&one, &[issue(1)]);
    // The others continue without it.
    assert_eq!(log(&one).len(), 1);
    let link = "INSERT INTO link SELECT last + 1, last + 1, ARRAY[(SELECT max(id) FROM process)],
             ARRAY[1::bigint], after, after, latest FROM link ORDER BY first DESC LIMIT 1;
         INSERT INTO chained SELECT max(id), 1 FROM process";
    execute(&database.url(), link);
    commit(&one, &[issue(2)]);
    let begun = Instant::now();
    let has_heard = |of: &dyn Fn(&Event) -> bool| heard.lock().unwrap().iter().any(of);
    let of_it = |event: &Event| {
        event.server.is_some_and(|id| id.0 == 7)
            && event.action == iptunnel_domain::audit::Action::Unknown
    };
    while !has_heard(&of_it) || !has_heard(&|heard| *heard == event(2)) {
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", heard.lock().unwrap());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns what a feed at `told` delivers next on this timeline; `None` if the log does not
/// continue from any entry that it knows.
fn hear(store: &PostgresStore, told: Published, timeline: u32) -> (Published, Option<Vec<Event>>) {
    let (inner, mut told) = (Arc::clone(&store.inner), told);
    let heard = super::wait(&store.handle, async move {
        let client = inner.pool.get().await.unwrap();
        let follows = told.go_back(&client, timeline).await.unwrap();
        let news = if follows { Some(told.entered(&client).await.unwrap()) } else { None };
        (told, news)
    });
    heard.unwrap()
}

#[test]
fn after_a_promotion_the_feed_delivers_entries_that_replaced_a_lost_end_of_the_log() {
    let database = Database::new();
    let store = database.store();
    let enter = |number, entries| {
        commit(&store, &[issue(number)]);
        assert_eq!(log(&store).len(), entries);
    };
    enter(1, 1);
    let inner = Arc::clone(&store.inner);
    let told = super::wait(&store.handle, async move {
        Published::now(&inner.pool.get().await.unwrap(), 1).await.unwrap()
    });
    enter(2, 2);
    let (told, heard) = hear(&store, told.unwrap(), 1);
    assert_eq!(heard, Some(vec![event(2)]));
    // The standby has only the first entry, and continues with another one under the second's
    // number.
    execute(&database.url(), "DELETE FROM link WHERE first = 2");
    enter(3, 2);
    let (told, heard) = hear(&store, told, 1);
    assert_eq!(heard, Some(Vec::new()), "the entry with its number was already delivered");
    let (told, heard) = hear(&store, told, 2);
    assert_eq!(heard, Some(vec![event(3)]));
    let (told, heard) = hear(&store, told, 2);
    assert_eq!(heard, Some(Vec::new()), "once");
    // One that has none of the published entries.
    execute(&database.url(), "UPDATE link SET after = before");
    let (_, heard) = hear(&store, told, 3);
    assert_eq!(heard, None);
}

#[test]
fn events_are_delivered_although_attempts_cannot_be_read() {
    let database = Database::new();
    let (one, other) = (database.store(), database.store());
    let heard = Arc::new(Mutex::new(Vec::<Event>::new()));
    let of_listener = Arc::clone(&heard);
    other.follow(Box::new(move |event| of_listener.lock().unwrap().push(event.clone())));
    execute(&database.url(), "ALTER TABLE attempt RENAME TO away");
    // Most of it is put in order by the one, and read by the other.
    for number in 1..=9 {
        commit(&one, &[issue(number)]);
        one.audit_head().unwrap();
    }
    let begun = Instant::now();
    while !(1..=9).all(|number| heard.lock().unwrap().contains(&event(number))) {
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", heard.lock().unwrap());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_first_attempts_on_a_code_are_kept_and_all_are_counted() {
    let database = Database::new();
    let store = database.store();
    commit(&store, &[issue(1)]);
    let tried = || Change(vec![Write::Attempt(event(1)), Write::Attempt(event(77))]);
    for _ in 0..2 {
        commit(&store, &(0..60).map(|_| tried()).collect::<Vec<_>>());
    }
    let Attempts { kept, more } = store.attempts(code(1, 1, 0).hash).unwrap();
    assert_eq!((kept.len(), more), (100, 20));
    assert_eq!(store.attempts(code(77, 1, 0).hash).unwrap(), Attempts::default());
    let forget = Write::ForgetCode(code(1, 1, 0).number, 1);
    assert_eq!(commit(&store, &[Change(vec![forget.clone()])]), [Written]);
    assert_eq!(commit(&store, &[Change(vec![forget])]), [Conflict]);
    assert_eq!(store.attempts(code(1, 1, 0).hash).unwrap(), Attempts::default());
}

fn limit(key: u64, allowed: u32) -> Counted {
    Counted { key, policy: Policy::IssuePerIpDay, window_end: Timestamp(86_400), allowed }
}

#[test]
fn servers_count_together_and_never_let_one_too_many_through() {
    let database = Database::new();
    let stores: Vec<_> = (0..3).map(|_| database.store()).collect();
    let granted = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for (place, store) in (0u64..).zip(&stores) {
            let granted = &granted;
            scope.spawn(move || {
                for round in 0..10 {
                    // One limit that all share and one of each request's own.
                    let own = place * 100 + round * 10;
                    let asked = (0..5).map(|n| vec![limit(7, 40), limit(1000 + own + n, 9)]);
                    let charged = store.charge(asked.collect()).unwrap();
                    let through = charged.iter().filter(|one| one.granted).count();
                    granted.fetch_add(through as u32, Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(granted.into_inner(), 40);
    let ask = |allowed| {
        let mut charged = stores[0].charge(vec![vec![limit(8, 9), limit(7, allowed)]]).unwrap();
        charged.remove(0)
    };
    assert_eq!(ask(40), Charged { granted: false, used: vec![0, 40] });
    // Two charges of the same limit, given back together.
    let back = (7, Timestamp(86_400));
    stores[1].give_back(vec![back, (1_000_000, back.1), back]).unwrap();
    assert_eq!(ask(40), Charged { granted: true, used: vec![1, 39] });
    assert_eq!(ask(40), Charged { granted: true, used: vec![2, 40] });
    let mut kept = 0;
    stores[0].forget_counters(Timestamp(86_399), 1000).unwrap();
    stores[0].each_counter(&mut |_, _| kept += 1).unwrap();
    assert!(kept > 40);
    stores[0].forget_counters(Timestamp(86_400), 1000).unwrap();
    stores[0].each_counter(&mut |_, _| kept = 0).unwrap();
    assert!(kept > 0, "all are forgotten, none is handed out");
}

/// A store that connects to its database through a proxy of its own.
fn through_a_proxy(database: &Database) -> (Proxy, PostgresStore) {
    let proxy = Proxy::before(&database.cluster);
    let store = PostgresStore::open(&proxy.url(&database.name)).unwrap();
    (proxy, store)
}

/// Charges one request, and returns the count of its limit.
fn count_one(store: &PostgresStore) -> Result<u32, crate::ReadError> {
    let charged = store.charge(vec![vec![limit(7, 40)]])?;
    assert!(charged[0].granted);
    Ok(charged[0].used[0])
}

#[test]
fn a_charge_whose_answer_was_lost_is_counted_once_and_granted() {
    let database = Database::new();
    let (proxy, store) = through_a_proxy(&database);
    assert_eq!(count_one(&store).unwrap(), 1);
    proxy.set(Mishap::AnswerLost, Mishap::None);
    assert_eq!(count_one(&store).unwrap(), 2);
    assert_eq!(count_one(&store).unwrap(), 3);
}

#[test]
fn a_charge_that_arrives_after_its_connection_broke_counts_nothing() {
    let database = Database::new();
    let (proxy, store) = through_a_proxy(&database);
    assert_eq!(count_one(&store).unwrap(), 1);
    proxy.set(Mishap::Delayed, Mishap::None);
    assert_eq!(count_one(&store).unwrap(), 2);
    proxy.let_through();
    assert_eq!(count_one(&store).unwrap(), 3);
}

#[test]
fn an_unanswered_charge_is_given_back_as_soon_as_the_database_answers() {
    let database = Database::new();
    let (proxy, store) = through_a_proxy(&database);
    assert_eq!(count_one(&store).unwrap(), 1);
    proxy.set(Mishap::AnswerLost, Mishap::Away);
    assert!(count_one(&store).is_err());
    proxy.set(Mishap::None, Mishap::None);
    assert_eq!(count_one(&store).unwrap(), 2);
    // The same if the statement was never committed.
    proxy.set(Mishap::Delayed, Mishap::Away);
    assert!(count_one(&store).is_err());
    proxy.set(Mishap::None, Mishap::None);
    assert_eq!(count_one(&store).unwrap(), 3);
    proxy.let_through();
    assert_eq!(count_one(&store).unwrap(), 4);
}

#[test]
fn a_charge_is_given_back_once_even_if_the_answer_is_lost() {
    let database = Database::new();
    let (proxy, store) = through_a_proxy(&database);
    (1..=5).for_each(|used| assert_eq!(count_one(&store).unwrap(), used));
    let back = || store.give_back(vec![(7, Timestamp(86_400))]);
    for mishap in [Mishap::AnswerLost, Mishap::Delayed] {
        proxy.set(mishap, Mishap::None);
        back().unwrap();
        assert_eq!(count_one(&store).unwrap(), 5, "{mishap:?}");
    }
    proxy.let_through();
    assert_eq!(count_one(&store).unwrap(), 6);
    // Counts that could not be given back are owed.
    proxy.set(Mishap::Delayed, Mishap::Away);
    assert!(back().is_err());
    proxy.set(Mishap::None, Mishap::None);
    assert_eq!(count_one(&store).unwrap(), 6);
}

/// A change that opens an activation and carries the charge of its request.
fn open_charged(number: u64, limits: &[Counted]) -> Change {
    let mut change = open(number);
    change.0.push(Write::Charge(limits.to_vec()));
    change
}

#[test]
fn a_change_and_its_charge_are_written_both_or_neither() {
    let database = Database::new();
    let (store, other) = (database.store(), database.store());
    commit(&store, &(1..=5).map(issue).collect::<Vec<_>>());
    let first = [
        open_charged(1, &[limit(7, 3), limit(11, 9)]),
        open_charged(2, &[limit(12, 9), limit(7, 3)]),
    ];
    let charged = |used: &[u32]| Verdict::Charged(used.to_vec());
    assert_eq!(commit(&store, &first), [charged(&[1, 1]), charged(&[1, 2])]);
    // A change that is not written counts nothing, and its neighbours are written.
    let again = [first[0].clone(), open_charged(3, &[limit(7, 3)]), issue(6)];
    assert_eq!(commit(&other, &again), [Conflict, charged(&[3]), Written]);
    // Nor is a change written whose limit is reached, and nothing is counted for it.
    let reached = [open_charged(4, &[limit(13, 9), limit(7, 3)]), open_charged(5, &[limit(13, 9)])];
    assert_eq!(commit(&store, &reached), [Conflict, charged(&[1])]);
    assert_eq!(store.code(code(4, 1, 0).hash).unwrap().unwrap().version, 1);
    let asked = vec![vec![limit(11, 9)], vec![limit(12, 9)], vec![limit(7, 3)]];
    let used: Vec<_> = store.charge(asked).unwrap().into_iter().map(|one| one.used).collect();
    assert_eq!(used, [[2], [2], [3]]);
}

type Outcome = Result<Vec<Verdict>, CommitError>;

/// Begins a commit. The outcome comes later.
fn begin(store: &PostgresStore, changes: &[Change]) -> Receiver<Outcome> {
    let (send, outcome) = channel();
    store.begin(changes.to_vec(), Box::new(move |ended| send.send(ended).unwrap()));
    outcome
}

fn confirmed(number: u64) -> Change {
    Change(vec![Write::Activation(activation(number, 2, 1)), audited(number)])
}

/// The first number of changes that only prepare statements.
const PREPARING: u64 = 1000;

/// Prepares the statements of all changes here, so that a batch of them is sent without waiting for an answer.
fn prepare(store: &PostgresStore, place: u64) {
    let number = PREPARING + 2 * place;
    let opened = [open(number), open_charged(number + 1, &[limit(number, 9)])];
    for changes in [&[issue(number), issue(number + 1)][..], &opened[..], &[confirmed(number)]] {
        assert!(commit(store, changes).iter().all(Verdict::is_written));
    }
}

/// Returns the numbers of the changes in the log, in its order.
fn logged(store: &PostgresStore) -> Vec<u64> {
    let numbers = log(store).into_iter().map(|entry| entry.event.at.0);
    numbers.filter(|number| *number < PREPARING).collect()
}

/// Begins two commits that are under way at once, lets so many arrive at the database and so many answers
/// come back before the connection breaks. Returns their outcomes.
fn both(
    (proxy, store): &(Proxy, PostgresStore),
    url: &str,
    changes: [&[Change]; 2],
    arrivals: Option<usize>,
    answers: Option<usize>,
) -> [Outcome; 2] {
    let batches = "SELECT sum(batch)::bigint FROM process WHERE NOT ended";
    let before = number_of(url, batches);
    proxy.hold(arrivals);
    let outcomes = changes.map(|changes| begin(store, changes));
    wait_until("both are sent", || proxy.commits() == 2);
    let arrived = before + i64::try_from(arrivals.unwrap_or(0)).unwrap();
    wait_until("some arrived", || number_of(url, batches) >= arrived);
    assert!(
        outcomes.iter().all(|outcome| outcome.try_recv().is_err()),
        "the answers are held back"
    );
    proxy.answer(answers);
    outcomes.map(|outcome| outcome.recv_timeout(Duration::from_secs(20)).unwrap())
}

#[test]
fn of_two_batches_under_way_each_is_written_once_wherever_the_connection_breaks() {
    let database = Database::new();
    let (there, url) = (through_a_proxy(&database), database.url());
    let cases = [(2, Some(1)), (2, Some(0)), (1, Some(1)), (1, Some(0)), (0, Some(0)), (2, None)];
    let (proxy, store) = (&there.0, &there.1);
    commit(store, &(1..=12).map(issue).collect::<Vec<_>>());
    for (place, (arrivals, answers)) in (0u64..).zip(cases) {
        prepare(store, place);
        let (first, second) = (place * 2 + 1, place * 2 + 2);
        let changes = [first, second].map(|number| open_charged(number, &[limit(7, 40)]));
        let [one, other] = &changes;
        let changes = [std::slice::from_ref(one), std::slice::from_ref(other)];
        let written = both(&there, &url, changes, Some(arrivals), answers);
        for outcome in written {
            assert!(
                outcome.as_ref().unwrap()[0].is_written(),
                "{arrivals} {answers:?}: {outcome:?}"
            );
        }
        if arrivals < 2 {
            // What arrives later is not written.
            wait_until("something is late", || proxy.has_delayed());
            proxy.let_through();
        }
    }
    // After the issues, which were written together.
    let opened = logged(store).split_off(12);
    assert_eq!(opened, Vec::from_iter(1..=12), "each once, in the order of their commits");
    assert_eq!(count_one(store).unwrap(), 13, "each is charged once");
}

#[test]
fn what_depends_on_a_batch_under_way_is_written_only_with_it() {
    let database = Database::new();
    let there = through_a_proxy(&database);
    let (other, url) = (database.store(), database.url());
    commit(&there.1, &(1..=6).map(issue).collect::<Vec<_>>());
    commit(&there.1, &[open(6)]);
    prepare(&there.1, 0);
    // In the second batch each depends on one of the first. Another server was faster with the first code.
    commit(&other, &[Change(vec![Write::Code(code(1, 2, 0)), audited(1)])]);
    let [first, second] = both(
        &there,
        &url,
        [&[open(1), open(2)], &[confirmed(1), confirmed(2), open(3)]],
        Some(2),
        None,
    );
    assert_eq!(first.unwrap(), [Conflict, Written]);
    assert_eq!(second.unwrap(), [Conflict, Written, Written]);
    // A limit is reached, so the first batch is written one by one, and the second one after that.
    let reached = open_charged(4, &[limit(7, 0)]);
    let [first, second] = both(
        &there,
        &url,
        [&[reached, open(5)], &[confirmed(4), confirmed(5), confirmed(6)]],
        None,
        None,
    )
    .map(Outcome::unwrap);
    assert_eq!(first, [Conflict, Written]);
    assert_eq!(second, [Conflict, Written, Written]);
    let numbers = logged(&there.1);
    let mut last = numbers[numbers.len() - 3..].to_vec();
    // Within a batch the order is that of the hashes.
    last[1..].sort_unstable();
    assert_eq!(last, [5, 5, 6]);
}

#[test]
fn what_was_begun_before_a_refusal_was_known_is_refused_too() {
    let database = Database::new();
    let there = through_a_proxy(&database);
    commit(&there.1, &[issue(1), issue(2)]);
    prepare(&there.1, 0);
    lose(&database, 1);
    let refused = both(&there, &database.url(), [&[open(1)], &[open(2)]], None, None);
    for outcome in refused {
        assert!(matches!(outcome, Err(CommitError::Refused(_))), "{outcome:?}");
    }
    assert!(there.1.activation(at(2).id).unwrap().is_none());
    assert_eq!(commit(&there.1, &[issue(3)]), [Written]);
}

#[test]
fn a_server_continues_to_count_on_a_database_that_does_not_know_it() {
    let database = Database::new();
    let store = database.store();
    assert_eq!(count_one(&store).unwrap(), 1);
    execute(&database.url(), "TRUNCATE charge");
    assert_eq!(count_one(&store).unwrap(), 2);
}

/// Two registered servers.
fn two_servers(store: &PostgresStore) -> [Server; 2] {
    let both: Vec<Change> = (5..7).map(|n| Change(vec![Write::Server(server(n, 1))])).collect();
    commit(store, &both);
    let known = store.servers_of(&[server(5, 1).id, server(6, 1).id]).unwrap();
    [known[0].clone().unwrap(), known[1].clone().unwrap()]
}

/// Times at which two servers are seen, and the expected time of the first. A later time counts. A
/// time in the future is replaced, if the latest of the times that come together shows it.
const SEEN: [([u64; 2], u64); 7] = [
    ([900, 0], 900),
    ([880, 0], 900),
    ([901, 0], 901),
    ([100, 850], 901),
    ([100, 840], 100),
    ([5_000_000, 0], 5_000_000),
    ([200, 0], 200),
];

#[test]
fn a_check_in_replaces_an_earlier_one_or_one_from_the_future() {
    let database = Database::new();
    let store = database.store();
    let known = two_servers(&store);
    for beside_commits in [false, true] {
        execute(&database.url(), "UPDATE presence SET last_seen = to_timestamp(0)");
        for (times, kept) in SEEN {
            let times = times.map(Timestamp);
            let seen = |place: usize| CheckIn { server: known[place].number, at: times[place] };
            if beside_commits {
                let seen = |place: usize| CheckInOf { seen: seen(place), id: known[place].id };
                assert!(store.check_in(vec![seen(0), seen(1)]).unwrap().is_empty());
            } else {
                let both = Write::CheckIns(vec![seen(0), seen(1)]);
                assert_eq!(commit(&store, &[Change(vec![both])]), [Written]);
            }
            let found = store.server(known[0].number).unwrap().unwrap();
            assert_eq!((found.last_checkin, found.version), (Timestamp(kept), 1), "{times:?}");
        }
    }
}

#[test]
fn a_registration_counts_as_a_check_in_even_over_one_from_the_future() {
    let database = Database::new();
    let store = database.store();
    let [mut known, _] = two_servers(&store);
    for (at, kept) in [(900, 900), (880, 900), (5_000_000, 5_000_000), (200, 200)] {
        known = Server { last_checkin: Timestamp(at), version: known.version + 1, ..known };
        assert_eq!(commit(&store, &[Change(vec![Write::Server(known.clone())])]), [Written]);
        let found = store.server(known.number).unwrap().unwrap();
        assert_eq!((found.last_checkin, found.version), (Timestamp(kept), known.version));
    }
}

#[test]
fn times_from_a_wrong_future_clock_do_not_stay() {
    let database = Database::new();
    let (store, gone) = (database.store(), database.store());
    commit(&gone, &[issue(1)]);
    // The database's clock was a month ahead for a moment.
    let now = number_of(&database.url(), "SELECT extract(epoch FROM clock_timestamp())::bigint");
    let month = now.cast_unsigned() + 30 * 86_400;
    let of_hour = |end| Counted { window_end: Timestamp(end), ..limit(1, 9) };
    store.charge(vec![vec![of_hour(month)], vec![of_hour(now.cast_unsigned() + 3600)]]).unwrap();
    let ahead = format!(
        "UPDATE process SET seen_at = to_timestamp({month}) WHERE id = {};
         UPDATE charge SET at = to_timestamp({month});
         INSERT INTO sighting VALUES ({}, 1, to_timestamp({month}), '{{}}', '{{}}')",
        gone.process(),
        gone.process()
    );
    execute(&database.url(), &ahead);
    let late = Event { at: Timestamp(month), ..event(7) };
    commit(&store, &[Change(vec![Write::Audit(Arc::new(late))])]);
    assert_eq!(store.audit_head().unwrap().entries, 2);
    // What it counted is right for it; the others' counters stay.
    store.forget_counters(Timestamp(month), 1000).unwrap();
    store.forget_counters(Timestamp(1), 1000).unwrap();
    let mut kept = 0;
    store.each_counter(&mut |_, _| kept += 1).unwrap();
    assert_eq!(kept, 1, "a server whose clock is wrong deletes none that count");
    // Then it is right again.
    store.forget_counters(Timestamp(now.cast_unsigned()), 1000).unwrap();
    let mut ends = Vec::new();
    store.each_counter(&mut |_, counter| ends.push(counter.window_end)).unwrap();
    assert_eq!(ends, [Timestamp(now.cast_unsigned() + 3600)]);
    store.follow(Box::new(|_| {}));
    let url = database.url();
    let of_future = |sql: &str| number_of(&url, &sql.replace("NOW", "clock_timestamp()"));
    wait_until("all of it is gone", || {
        of_future("SELECT count(*) FROM process WHERE seen_at > NOW") == 0
            && of_future("SELECT count(*) FROM charge WHERE at > NOW") == 0
            && of_future("SELECT count(*) FROM sighting WHERE at > NOW") == 0
    });
    // Entries are found by their time again.
    for number in 1..=3 {
        let at = Timestamp(now.cast_unsigned() + 1000 * number);
        commit(&store, &[Change(vec![Write::Audit(Arc::new(Event { at, ..event(number) }))])]);
        assert_eq!(store.audit_head().unwrap().entries, 2 + number);
        assert_eq!(store.audit_number_at(at).unwrap(), 2 + number);
    }
    assert_eq!(store.audit_number_at(Timestamp(month)).unwrap(), 1);
}

#[test]
fn servers_send_each_check_in_to_each_other_once() {
    let database = Database::new();
    let (one, other) = (database.store(), database.store());
    commit(&one, &[Change(vec![Write::Server(server(5, 1))])]);
    let known = one.servers_of(&[server(5, 1).id]).unwrap()[0].clone().unwrap();
    let seen = |at| CheckInOf { seen: CheckIn { server: known.number, at }, id: known.id };
    for at in [Timestamp(900), Timestamp(901)] {
        assert!(one.check_in(vec![seen(at)]).unwrap().is_empty());
    }
    assert_eq!(other.server(known.number).unwrap().unwrap().last_checkin, Timestamp(901));
    let told = [(known.id, Timestamp(900)), (known.id, Timestamp(901))];
    assert_eq!(other.seen_elsewhere().unwrap(), told);
    assert!(other.seen_elsewhere().unwrap().is_empty());
    assert!(one.seen_elsewhere().unwrap().is_empty());
    // A server that starts later reads it with the servers.
    assert!(database.store().seen_elsewhere().unwrap().is_empty());
}

#[test]
fn a_row_locked_by_another_server_is_skipped_and_the_others_are_written() {
    let database = Database::new();
    let store = database.store();
    let both: Vec<Change> = (5..7).map(|n| Change(vec![Write::Server(server(n, 1))])).collect();
    commit(&store, &both);
    let known = store.servers_of(&[server(5, 1).id, server(6, 1).id]).unwrap();
    let seen = |place: usize| {
        let server = known[place].as_ref().unwrap();
        CheckInOf { seen: CheckIn { server: server.number, at: Timestamp(900) }, id: server.id }
    };
    let held = format!("SELECT FROM presence WHERE server = {} FOR UPDATE", seen(0).seen.server.0);
    while_locked(&database.url(), &held, || {
        assert_eq!(store.check_in(vec![seen(1), seen(0)]).unwrap(), [seen(0)]);
    });
    assert_eq!(store.server(seen(1).seen.server).unwrap().unwrap().last_checkin, Timestamp(900));
    assert!(store.check_in(vec![seen(0)]).unwrap().is_empty());
}

/// Calls `does` while a transaction that has run a statement is open.
fn while_locked(url: &str, sql: &str, does: impl FnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = runtime.block_on(async {
        let (client, connection) =
            tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute("BEGIN").await.unwrap();
        client.batch_execute(sql).await.unwrap();
        client
    });
    does();
    runtime.block_on(client.batch_execute("ROLLBACK")).unwrap();
}

#[test]
fn settings_are_stored_and_removed() {
    let database = Database::new();
    let store = database.store();
    let set = |value: Option<&str>| {
        let value = value.map(str::to_owned);
        let setting = Write::Setting(Setting { key: "a.key".into(), value });
        commit(&store, &[Change(vec![setting, audited(1)])]);
        store.settings().unwrap()
    };
    assert_eq!(set(Some("1")), [("a.key".into(), "1".into())]);
    assert_eq!(set(Some("2\0")), [("a.key".into(), "2\u{FFFD}".into())]);
    assert!(set(None).is_empty());
}

#[test]
fn a_newer_programs_schema_is_refused_and_stores_may_start_together() {
    let database = Database::new();
    std::thread::scope(|scope| {
        let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| database.store().process())).collect();
        let mut processes: Vec<u32> = starts.into_iter().map(|s| s.join().unwrap()).collect();
        processes.sort_unstable();
        processes.dedup();
        assert_eq!(processes.len(), 4);
    });
    execute(&database.url(), "INSERT INTO schema_step (step) VALUES (99)");
    let refused = PostgresStore::open(&database.url()).err();
    assert!(matches!(refused, Some(OpenError::NewerFormat { found: 99, .. })));
}

/// Returns the database to its state of some batches ago, as far as its servers can see.
fn lose(database: &Database, batches: u32) {
    execute(&database.url(), &format!("UPDATE process SET batch = batch - {batches}"));
}

fn expiry(store: &dyn Store, number: u64) -> Timestamp {
    store.code(code(number, 1, 0).hash).unwrap().unwrap().expires_at
}

#[test]
fn a_database_that_lacks_acknowledged_commits_voids_what_could_be_spent_twice() {
    let database = Database::new();
    let (one, other) = (database.store(), database.store());
    commit(&one, &[issue(100), issue(200), open(200)]);
    commit(&other, &[issue(300)]);
    let before = one.watermark().unwrap();
    assert!(one.contains(&before).unwrap() && other.contains(&before).unwrap());
    lose(&database, 1);
    assert!(!other.contains(&before).unwrap());
    let refused = one.commit(&[issue(400)]);
    assert!(matches!(refused, Err(CommitError::Refused(_))), "{refused:?}");
    for spendable in [100, 300] {
        assert_eq!(expiry(&one, spendable), Timestamp(spendable));
    }
    let held = one.activation(at(200).id).unwrap().unwrap();
    assert_eq!(held.expires_at, held.opened_at);
    // The store works again, in its next epoch; codes issued from now on are valid.
    assert_eq!(commit(&one, &[issue(400)]), [Written]);
    assert_eq!(expiry(&one, 400), Timestamp(700));
    assert_eq!(one.watermark().unwrap().epoch, before.epoch + 1);
    // The other server finds the same loss, and the epoch that has already begun.
    assert!(other.commit(&[issue(500)]).is_err());
    assert_eq!(commit(&other, &[issue(500)]), [Written]);
    assert_eq!(
        (expiry(&one, 400), other.watermark().unwrap().epoch),
        (Timestamp(700), before.epoch + 1)
    );
    let told = |entry: &Entry| entry.event.action == iptunnel_domain::audit::Action::StoreFenced;
    assert_eq!(log(&one).iter().filter(|entry| told(entry)).count(), 1);
}

#[test]
fn an_idle_server_notices_that_its_database_returned_to_an_earlier_state() {
    let database = Database::new();
    let store = database.store();
    commit(&store, &[issue(100)]);
    let heard = Arc::new(Mutex::new(Vec::<Event>::new()));
    let of_listener = Arc::clone(&heard);
    store.follow(Box::new(move |event| of_listener.lock().unwrap().push(event.clone())));
    lose(&database, 1);
    let fenced = |event: &Event| event.action == iptunnel_domain::audit::Action::StoreFenced;
    let begun = Instant::now();
    while !heard.lock().unwrap().iter().any(fenced) {
        assert!(begun.elapsed() < Duration::from_secs(10), "it has not noticed");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(expiry(&store, 100), Timestamp(100));
}

/// Removes the last commit of one server from the database.
fn lose_the_last_of(database: &Database, store: &PostgresStore) {
    let process = store.process();
    execute(&database.url(), &format!("UPDATE process SET batch = batch - 1 WHERE id = {process}"));
}

/// Has a store read the commits of the others, as it does every two seconds.
fn learn(store: &PostgresStore) {
    let inner = Arc::clone(&store.inner);
    let learned = super::wait(&store.handle, async move {
        let client = inner.pool.get().await.unwrap();
        inner.others.learn(&client, inner.process()).await
    });
    learned.unwrap().unwrap();
}

#[test]
fn the_watermark_of_other_servers_demands_the_commits_of_an_ended_one() {
    let database = Database::new();
    let (one, gone) = (database.store(), database.store());
    commit(&one, &[issue(100), issue(200)]);
    commit(&gone, &[open(200)]);
    let of_gone = gone.watermark().unwrap();
    learn(&one);
    let before = one.watermark().unwrap();
    assert_eq!(before.others, [(of_gone.process, of_gone.commits)]);
    assert!(one.contains(&before).unwrap());
    lose_the_last_of(&database, &gone);
    drop(gone);
    learn(&one);
    assert_eq!(one.watermark().unwrap(), before, "what is lost is not forgotten");
    // A start with that watermark finds it, and so does the running server.
    assert!(!database.store().contains(&before).unwrap());
    one.follow(Box::new(|_| {}));
    wait_until("an epoch", || one.watermark().unwrap().epoch == before.epoch + 1);
    assert_eq!(expiry(&one, 100), Timestamp(100));
    // It is noticed once.
    let after = one.watermark().unwrap();
    assert!(one.contains(&after).unwrap());
    assert_eq!(commit(&one, &[issue(300)]), [Written]);
    one.audit_head().unwrap();
    let epoch = number_of(&database.url(), "SELECT number FROM epoch");
    assert_eq!(epoch.cast_unsigned(), after.epoch);
}

#[test]
fn the_watermark_of_a_new_start_has_the_earlier_commits_of_the_others() {
    let database = Database::new();
    let one = database.store();
    commit(&one, &[issue(100)]);
    let of_one = one.watermark().unwrap();
    let late = database.store();
    assert_eq!(late.watermark().unwrap().others, [(of_one.process, of_one.commits)]);
}

#[test]
fn an_ended_server_leaves_the_watermark_once_a_later_commit_covers_its_own() {
    let database = Database::new();
    let (one, ended) = (database.store(), database.store());
    commit(&ended, &[issue(1)]);
    learn(&one);
    let known = one.watermark().unwrap().others;
    assert_eq!(known.len(), 1);
    let end = format!("UPDATE process SET ended = true WHERE id = {}", ended.process());
    execute(&database.url(), &end);
    learn(&one);
    assert_eq!(one.watermark().unwrap().others, known, "nothing else tells of its commits");
    commit(&one, &[issue(2)]);
    learn(&one);
    assert!(one.watermark().unwrap().others.is_empty());
}

#[test]
fn an_epoch_begins_once_for_all_servers_that_find_the_same_loss() {
    let database = Database::new();
    let (one, other) = (database.store(), database.store());
    commit(&one, &[issue(100)]);
    let mark = one.watermark().unwrap();
    let last = mark.epoch;
    assert_eq!(one.begin_epoch(&mark, "a test", Timestamp(7)).unwrap(), last + 1);
    commit(&one, &[issue(200)]);
    assert_eq!(other.begin_epoch(&mark, "a test", Timestamp(8)).unwrap(), last + 1);
    assert_eq!((expiry(&one, 100), expiry(&one, 200)), (Timestamp(100), Timestamp(500)));
    // A watermark of a later epoch than the database's: both were restored, the watermark less far
    // back.
    let later = crate::Watermark { epoch: last + 5, ..mark };
    assert_eq!(other.begin_epoch(&later, "a test", Timestamp(9)).unwrap(), last + 6);
    assert_eq!(expiry(&one, 200), Timestamp(200));
}

#[test]
fn servers_agree_on_the_value_of_the_first_one() {
    let database = Database::new();
    let (one, other) = (database.store(), database.store());
    let hash = iptunnel_domain::lookup::KeyedHash;
    assert!(one.agree("key", hash([1; 16])).unwrap());
    assert!(other.agree("key", hash([1; 16])).unwrap());
    assert!(!other.agree("key", hash([2; 16])).unwrap());
    assert_eq!(other.agreed("key").unwrap(), Some(hash([1; 16])));
    assert_eq!(other.agreed("another").unwrap(), None);
}

#[test]
fn a_server_hears_how_many_running_others_have_published_something_else() {
    let database = Database::new();
    let (one, other) = (database.store(), database.store());
    let hash = iptunnel_domain::lookup::KeyedHash;
    let tell = |store: &PostgresStore, byte| {
        store.shared().unwrap().publish("keys", hash([byte; 16])).unwrap()
    };
    assert_eq!((tell(&one, 1), tell(&other, 1)), (0, 0));
    assert_eq!((tell(&other, 2), tell(&one, 1), tell(&one, 2)), (1, 1, 0));
    let seen = crate::Inspection::of(&database.url(), 0).unwrap();
    assert!(seen.has_store().unwrap());
    let others = |byte| seen.others("keys", hash([byte; 16])).unwrap();
    assert_eq!(others(2), crate::Others { all: 2, differ: 0 });
    assert_eq!(others(1), crate::Others { all: 2, differ: 2 });
    // What a server that is gone had published counts no more, and is removed.
    execute(
        &database.url(),
        "UPDATE process SET ended = true WHERE id = (SELECT min(id) FROM process)",
    );
    assert_eq!(tell(&other, 3), 0);
    execute(
        &database.url(),
        "SELECT all_or_nothing(count(*), 1) FROM agreed WHERE what LIKE 'keys of process %'",
    );
}

#[test]
fn a_test_database_that_does_not_sync_is_reported_as_bad() {
    let database = Database::new();
    let findings = database.store().examine().unwrap();
    let of = |what: &str| findings.iter().find(|finding| finding.what.contains(what)).unwrap();
    assert_eq!(of("fsync = off").grade, crate::Grade::Breaks);
    assert!(of("fsync = off").mend.contains("ALTER SYSTEM SET fsync = on"));
    assert_eq!(of("full_page_writes = on").grade, crate::Grade::Good);
    assert_eq!(of("this is a primary").grade, crate::Grade::Good);
    assert_eq!(of("0 standbys").grade, crate::Grade::Good);
}

#[test]
fn a_store_is_the_same_after_a_copy_there_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let open = |name: &str| {
        let disk = |name: String| -> crate::OpenDisk {
            let path = folder.path().join(name);
            Box::new(move || Ok(Box::new(crate::FileDisk::open(&path)?)))
        };
        let journal = disk(format!("{name}.journal"));
        crate::EmbeddedStore::open(crate::Disks { rows: disk(name.into()), journal }).unwrap()
    };
    let (embedded, database) = (open("one"), Database::new());
    for number in 1..=700 {
        commit(&embedded, &[issue(number)]);
    }
    commit(&embedded, &[open_many(1..=300), open_many(301..=600)].concat());
    commit(&embedded, &[Change(vec![Write::Activation(activation(7, 2, 1)), audited(7)])]);
    commit(
        &embedded,
        &(0..9).map(|n| Change(vec![Write::Server(server(n, 1))])).collect::<Vec<_>>(),
    );
    commit(&embedded, &[Change((0..120).map(|_| Write::Attempt(event(3))).collect())]);
    let setting = Setting { key: "a.key".into(), value: Some("1".into()) };
    commit(&embedded, &[Change(vec![Write::Setting(setting)])]);
    let kinds = (20..40).map(|seed| Change(vec![Write::Server(server_of(seed, 1))]));
    commit(&embedded, &kinds.collect::<Vec<_>>());
    let tokens = [Write::AccessToken(access_token(1, 1)), Write::AccessToken(access_token(2, 1))];
    commit(&embedded, &tokens.map(|write| Change(vec![write])));
    let named = Event { by: "office".into(), ..event(8) };
    let used = Write::TokenUses(vec![(TokenNumber(2), Timestamp(90_000))]);
    commit(&embedded, &[Change(vec![used, Write::Audit(Arc::new(named))])]);
    let counter = crate::Counter {
        key: u64::MAX - 5,
        policy: Policy::IssuePerIpDay,
        used: 3,
        window_end: Timestamp(86_400),
    };
    let row = crate::CounterRow { slot: 0, counter: Some(counter) };
    commit(&embedded, &[Change(vec![Write::Counters(vec![row])])]);
    let key = iptunnel_domain::lookup::KeyedHash([9; 16]);
    assert!(embedded.agree(crate::LOOKUP_KEY, key).unwrap());
    let before = crate::sums(&embedded).unwrap();
    let counts: Vec<u64> = before.iter().map(|sum| sum.count).collect();
    assert_eq!(counts, [700, 120, 600, 29, 1, 1, 2, 1302]);
    let shared = database.store();
    crate::copy(&embedded, &shared).unwrap();
    assert_eq!(crate::sums(&shared).unwrap(), before);
    let back = open("two");
    crate::copy(&shared, &back).unwrap();
    assert_eq!(crate::sums(&back).unwrap(), before);
    // Its records can be found with this key only.
    assert_eq!(back.agreed(crate::LOOKUP_KEY).unwrap(), Some(key));
    let used = open("three");
    used.agree(crate::LOOKUP_KEY, iptunnel_domain::lookup::KeyedHash([8; 16])).unwrap();
    let other = crate::copy(&embedded, &used);
    assert!(matches!(other, Err(crate::CopyError::OtherKey)), "{other:?}");
    let full = crate::copy(&embedded, &back);
    assert!(matches!(full, Err(crate::CopyError::NotEmpty)), "{full:?}");
    assert_eq!(
        shared.code(code(7, 1, 0).hash).unwrap().map(|code| code.state),
        Some(consumed(7, 1).state)
    );
}

fn open_many(numbers: std::ops::RangeInclusive<u64>) -> Vec<Change> {
    numbers.map(open).collect()
}

#[test]
fn of_too_many_counters_the_least_counted_are_deleted_first_and_never_one_at_its_limit() {
    let database = Database::new();
    let store = database.store();
    let count = |key: u64, times: usize| {
        store.charge(vec![vec![limit(key, 3)]; times]).unwrap();
    };
    // Two at their limit, one nearly, two that have counted once.
    (1..=2).for_each(|key| count(key, 3));
    count(3, 2);
    (4..=5).for_each(|key| count(key, 1));
    let left = |most: u32| {
        store.forget_counters(Timestamp(0), most).unwrap();
        let mut keys = Vec::new();
        store.each_counter(&mut |_, counter| keys.push(counter.key)).unwrap();
        keys
    };
    assert_eq!(left(5), [1, 2, 3, 4, 5]);
    assert_eq!(left(3), [1, 2, 3]);
    assert_eq!(left(1), [1, 2]);
}

#[test]
fn one_server_at_a_time_keeps_the_states_of_webhooks_and_another_takes_over_when_it_is_dead() {
    let database = Database::new();
    let (one, other) = (database.store(), database.store());
    let state = |text: &str| vec![("office".to_owned(), text.as_bytes().to_vec())];
    assert!(!one.keep(&state("nobody's")).unwrap(), "it does not have the lease");
    assert!(one.hold(30).unwrap() && one.keep(&state("first")).unwrap());
    assert!(!other.hold(30).unwrap() && !other.keep(&state("other")).unwrap());
    assert!(one.hold(30).unwrap() && one.keep(&state("second")).unwrap());
    assert_eq!(other.states().unwrap(), state("second"));
    // The first one stands still for longer than its lease.
    execute(
        &database.url(),
        "UPDATE webhook_lease SET until = clock_timestamp() - interval '1 second'",
    );
    assert!(!one.keep(&state("late")).unwrap());
    assert!(
        other.hold(30).unwrap() && !one.hold(30).unwrap() && !one.keep(&state("late")).unwrap()
    );
    assert_eq!(one.states().unwrap(), state("second"));
    // One that stops in order leaves it at once.
    other.release().unwrap();
    assert!(one.hold(30).unwrap());
}
