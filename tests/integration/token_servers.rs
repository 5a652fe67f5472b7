//! Enrolling access tokens: which servers are theirs, and what becomes of those.

use crate::access::{Token, by_master, change, create, revoke, wait_for, with_role};
use crate::harness::{Answer, TestApp, at_once, send, wait_until};
use iptunnel_domain::access::Role;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const LEGACY: &str = "/register";
const V2: &str = "/api/v2/servers/register";

/// The end of tokens that expire in a test.
const END: &str = "2030-03-18";

fn enrolling(app: &TestApp, name: &str, terms: Value) -> Token {
    let mut wanted = terms;
    wanted["name"] = json!(name);
    wanted["role"] = json!("enrol");
    create(app, &wanted)
}

fn register(app: &TestApp, token: &str, ip: &str) -> Answer {
    app.post(LEGACY, &json!({"token": token, "ip": ip, "hostname": "ns1"}))
}

/// Registers a server, and returns its id.
fn registered(app: &TestApp, token: &str, ip: &str) -> String {
    let answer = register(app, token, ip);
    assert_eq!(answer.status, 200, "{}", answer.text);
    app.settle();
    answer.json()["server_id"].as_str().unwrap().to_owned()
}

fn rotate(app: &TestApp, token: &Token, grace: u64) -> Token {
    let path = format!("/admin/tokens/{}/rotate", token.id);
    let rotated = by_master(app, "POST", &path, &json!({"grace_seconds": grace}));
    assert_eq!(rotated.status, 200, "{}", rotated.text);
    let new = Token { id: token.id, text: rotated.data("token") };
    wait_for(app, &new, true);
    new
}

fn check_in(app: &TestApp, token: &str, id: &str) -> Answer {
    app.post_as(token, "/checkin", &json!({"server_id": id}))
}

fn note(app: &TestApp, id: &str, note: &str) {
    let noted =
        by_master(app, "POST", &format!("/admin/servers/{id}/note"), &json!({"note": note}));
    assert_eq!(noted.status, 200, "{}", noted.text);
}

#[test]
fn a_server_checks_in_with_the_rotated_token_also_when_that_is_not_good_any_more() {
    let app = TestApp::start();
    let revoked: fn(&TestApp, &Token) = |app, token| {
        assert_eq!(revoke(app, token).status, 200);
    };
    let narrowed: fn(&TestApp, &Token) = |app, token| {
        assert_eq!(change(app, token, &json!({"networks": ["10.0.0.0/8"]})).status, 200);
    };
    let expired: fn(&TestApp, &Token) = |app, _| app.clock.advance(2 * 86_400);
    for (name, ends, terms, ip) in [
        ("revoked", revoked, json!({}), "9.9.9.1"),
        ("narrowed", narrowed, json!({}), "9.9.9.2"),
        ("expired", expired, json!({"expires_at": END}), "9.9.9.3"),
    ] {
        let first = enrolling(&app, name, terms);
        let id = registered(&app, &first.text, ip);
        let second = rotate(&app, &first, 0);
        assert_eq!(check_in(&app, &second.text, &id).status, 200, "{name}");
        ends(&app, &second);
        wait_for(&app, &second, false);
        let answer = check_in(&app, &second.text, &id);
        assert_eq!(answer.status, 200, "{name}: {}", answer.text);
        assert_eq!(register(&app, &second.text, ip).status, 403, "{name}");
    }
}

#[test]
fn a_token_that_is_not_good_checks_in_no_server_of_another_one() {
    let app = TestApp::start();
    let (one, two) = (enrolling(&app, "one", json!({})), enrolling(&app, "two", json!({})));
    let id = registered(&app, &one.text, "9.9.9.1");
    revoke(&app, &two);
    wait_for(&app, &two, false);
    assert_eq!(check_in(&app, &two.text, &id).status, 401);
}

#[test]
fn a_check_in_with_a_good_token_of_something_else_says_so_and_is_no_wrong_token() {
    let app = TestApp::start();
    let (one, two) = (enrolling(&app, "one", json!({})), enrolling(&app, "two", json!({})));
    let operate = with_role(&app, Role::Operate);
    let id = registered(&app, &one.text, "9.9.9.1");
    let count = || app.metric("iptunnel_wrong_tokens_total{listener=\"public\"}");
    let before = count();
    // A wrong token is counted, and slowed after ten.
    for _ in 0..12 {
        let refused = check_in(&app, &operate.text, &id);
        assert_eq!(refused.status, 401);
        assert!(refused.text.contains("This token has the role operate"), "{}", refused.text);
    }
    let refused = check_in(&app, &two.text, &id);
    assert_eq!(refused.status, 401);
    assert!(refused.text.contains("This token belongs to other servers"), "{}", refused.text);
    let path = format!("/api/v2/servers/{id}/check-in");
    let refused = app.post_as(&two.text, &path, &json!({}));
    assert_eq!(refused.told(), (401, "unauthorized".into()));
    assert!(refused.text.contains("This token belongs to other servers"), "{}", refused.text);
    assert_eq!(count(), before);
    revoke(&app, &two);
    wait_for(&app, &two, false);
    let before = count();
    for wrong in [two.text.as_str(), "wrong"] {
        assert_eq!(check_in(&app, wrong, &id).status, 401);
    }
    assert_eq!(count(), before + 2.0);
}

#[test]
fn after_two_rotations_whose_answers_were_lost_the_secret_in_use_is_still_good() {
    let app = TestApp::start();
    let used = enrolling(&app, "one", json!({}));
    rotate(&app, &used, 600);
    let last = rotate(&app, &used, 60);
    wait_for(&app, &used, true);
    app.clock.advance(60);
    wait_for(&app, &used, true);
    app.clock.advance(540);
    wait_for(&app, &used, false);
    wait_for(&app, &last, true);
}

#[test]
fn a_deleted_server_is_not_shown() {
    let app = TestApp::start();
    for is_revoked in [false, true] {
        let id = registered(&app, &app.master(), "9.9.9.1");
        let path = format!("/api/v2/servers/{id}");
        assert_eq!(app.get_as(&app.master(), &path).status, 200);
        if is_revoked {
            // A revoked one stays on record when it is deleted.
            let body = json!({"server_id": id});
            assert_eq!(app.post_as(&app.master(), "/revoke", &body).status, 200);
        }
        app.settle();
        let delete = app.client.delete(format!("{}{path}", app.url)).bearer_auth(app.master());
        assert_eq!(send(delete).status, 200);
        wait_until("every server knows", || {
            (0..app.servers()).all(|_| app.get_as(&app.master(), "/status").json()["count"] == 0)
        });
        let shown = app.get_as(&app.master(), &path);
        assert_eq!(shown.told(), (404, "server_not_found".into()), "{}", shown.text);
    }
}

#[test]
fn an_enrolling_token_pages_through_its_own_servers_among_many() {
    let app = TestApp::start();
    let (one, two) = (enrolling(&app, "one", json!({})), enrolling(&app, "two", json!({})));
    for number in 1..=9 {
        let token = if number % 3 == 0 { &one } else { &two };
        registered(&app, &token.text, &format!("9.9.9.{number}"));
    }
    let ips = |list: &Value| -> Vec<String> {
        let servers = list["servers"].as_array().unwrap().iter();
        servers.map(|server| server["ip"].as_str().unwrap().to_owned()).collect()
    };
    let whole = app.get_as(&one.text, "/status").json();
    assert_eq!(whole["count"], 3);
    assert_eq!(ips(&whole), ["9.9.9.9", "9.9.9.6", "9.9.9.3"]);
    let first = app.get_as(&one.text, "/status?limit=2").json();
    assert_eq!(ips(&first), ["9.9.9.9", "9.9.9.6"]);
    let cursor = first["next_cursor"].as_str().unwrap();
    let last = app.get_as(&one.text, &format!("/status?limit=2&cursor={cursor}")).json();
    assert_eq!((ips(&last), &last["next_cursor"]), (vec!["9.9.9.3".to_owned()], &Value::Null));
    let rest = app.get_as(&one.text, &format!("/status?cursor={cursor}")).json();
    assert_eq!((ips(&rest), &rest["count"]), (vec!["9.9.9.3".to_owned()], &json!(3)));
    let stale = app.get_as(&one.text, "/status?limit=1&stale=1").json();
    assert_eq!(stale, json!({"count": 0, "servers": []}));
    // Requests of one token take turns, and all are answered.
    let answers = at_once(12, |_| app.get_as(&one.text, "/status").json());
    assert!(answers.iter().all(|answer| answer == &whole), "{answers:?}");
}

#[test]
fn no_enrolling_token_takes_over_a_server_of_another_one_that_is_good() {
    let app = TestApp::start();
    let (one, two) = (enrolling(&app, "one", json!({})), enrolling(&app, "two", json!({})));
    let id = registered(&app, &one.text, "9.9.9.1");
    note(&app, &id, "Ada's");
    for (path, refused) in [(LEGACY, register(&app, &two.text, "9.9.9.1")), {
        let body = json!({"token": two.text, "ip": "9.9.9.1"});
        (V2, app.post(V2, &body))
    }] {
        assert_eq!(refused.status, 403, "{path}: {}", refused.text);
        assert!(
            refused.text.contains("belongs to another access token"),
            "{path}: {}",
            refused.text
        );
        assert!(!refused.text.contains("Ada"), "{path}: {}", refused.text);
    }
    assert_eq!(check_in(&app, &one.text, &id).status, 200, "it still is the server of the first");
    assert_eq!(registered(&app, &one.text, "9.9.9.1"), id);
    // The master token may take it over, and a token may take it from the master token.
    assert_eq!(registered(&app, &app.master(), "9.9.9.1"), id);
    assert_eq!(registered(&app, &two.text, "9.9.9.1"), id);
    assert_eq!(register(&app, &one.text, "9.9.9.1").status, 403);
}

#[test]
fn revoking_a_token_with_its_servers_leaves_none_that_registers_meanwhile() {
    let app = TestApp::start();
    let token = enrolling(&app, "office", json!({}));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for lane in 1..=3 {
            let (app, token, stop) = (&app, &token, &stop);
            scope.spawn(move || {
                let mut numbers = 1..250;
                while !stop.load(Ordering::Relaxed)
                    && let Some(number) = numbers.next()
                {
                    if register(app, &token.text, &format!("9.9.{lane}.{number}")).status != 200 {
                        break;
                    }
                }
            });
        }
        wait_until("some are registered", || {
            app.get_as(&app.master(), "/status?limit=1").json()["count"].as_u64() > Some(5)
        });
        let path = format!("/admin/tokens/{}/revoke", token.id);
        wait_until("none is left", || {
            let answer = by_master(&app, "POST", &path, &json!({"servers": true})).json();
            answer["data"]["servers"] == 0
        });
        stop.store(true, Ordering::Relaxed);
    });
    wait_until("all servers know it", || {
        (0..3 * app.servers())
            .all(|_| app.get_as(&app.master(), "/status?revoked=0&limit=1").json()["count"] == 0)
    });
}

#[test]
fn a_server_of_a_token_that_is_not_good_registers_with_another_one() {
    let app = TestApp::start();
    let old = enrolling(&app, "old", json!({}));
    let short = enrolling(&app, "short", json!({"expires_at": END}));
    let new = enrolling(&app, "new", json!({}));
    let ids = [registered(&app, &old.text, "9.9.9.1"), registered(&app, &short.text, "9.9.9.2")];
    revoke(&app, &old);
    wait_for(&app, &old, false);
    app.clock.advance(2 * 86_400);
    wait_for(&app, &short, false);
    assert_eq!(registered(&app, &new.text, "9.9.9.1"), ids[0]);
    assert_eq!(registered(&app, &new.text, "9.9.9.2"), ids[1]);
}

#[test]
fn an_enrolling_token_is_never_shown_the_note_of_a_server() {
    let app = TestApp::start();
    let token = enrolling(&app, "one", json!({}));
    let id = registered(&app, &token.text, "9.9.9.1");
    note(&app, &id, "Ada's");
    app.settle();
    let body = json!({"token": token.text, "ip": "9.9.9.1"});
    let listed = app.get_as(&token.text, "/status").json()["servers"][0].clone();
    for (path, server) in [
        (LEGACY, app.post(LEGACY, &body).json()),
        (V2, app.post(V2, &body).json()["data"].clone()),
        ("/status", listed),
        (
            "/status?limit=1",
            app.get_as(&token.text, "/status?limit=1").json()["servers"][0].clone(),
        ),
    ] {
        assert_eq!((&server["server_id"], &server["note"]), (&json!(id), &json!("")), "{path}");
    }
    let seen = app.get_as(&app.master(), "/status").json()["servers"][0]["note"].clone();
    assert_eq!(seen, "Ada's", "the note is still there");
}
