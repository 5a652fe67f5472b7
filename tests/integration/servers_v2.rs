//! The v2 routes that list, show and register servers.

use crate::harness::{Answer, TestApp, with, without};
use serde_json::{Value, json};

const UNKNOWN: &str = "0123456789abcdef";
const HOUR: u64 = 3600;

/// Registers server `number` and returns its id.
fn register(app: &TestApp, number: u32) -> String {
    let ip = std::net::Ipv4Addr::from(0x0808_0000 + number).to_string();
    let hostname = format!("S{number}.example.com");
    let body = json!({"token": app.master(), "ip": ip, "hostname": hostname});
    let answer = app.post("/api/v2/servers/register", &body);
    assert_eq!(answer.status, 200, "{}", answer.text);
    app.settle();
    answer.data("server_id")
}

fn list(app: &TestApp, query: &str) -> Answer {
    app.get_as(&app.master(), &format!("/api/v2/servers{query}"))
}

/// The ids on a page, in their order.
fn ids(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{}", answer.text);
    let servers = answer.json()["data"]["servers"].as_array().unwrap().clone();
    servers.iter().map(|server| server["server_id"].as_str().unwrap().to_owned()).collect()
}

fn pagination(answer: &Answer) -> Value {
    answer.json()["meta"]["pagination"].clone()
}

#[test]
fn registering_replies_with_the_server_in_the_v2_envelope() {
    let app = TestApp::start();
    let body = json!({"token": app.master(), "ip": "8.8.8.8", "hostname": "one.example.com"});
    let answer = app.post("/api/v2/servers/register", &body);
    let id = answer.data("server_id");
    let expected = format!(
        "{{\"data\":{{\"server_id\":\"{id}\",\"ip\":\"8.8.8.8\",\"hostname\":\"one.example.com\",\
         \"registered_at\":\"2030-03-17T17:46:40+00:00\",\
         \"last_checkin\":\"2030-03-17T17:46:40+00:00\",\"revoked\":0,\"note\":\"\",\
         \"status\":\"active\"}},\"meta\":{{\"message\":\"Server registered\"}}}}"
    );
    assert_eq!((answer.status, answer.text), (200, expected));
    app.settle();
    let legacy = app.post("/register", &body);
    assert_eq!(legacy.json()["server_id"], json!(id), "both routes register the same server");
}

#[test]
fn a_registration_names_the_field_that_is_wrong_and_does_not_register() {
    let app = TestApp::start();
    let good = json!({"token": app.master(), "ip": "8.8.8.8", "hostname": "one.example.com"});
    let send = |body: &Value| app.post("/api/v2/servers/register", body);
    for field in ["token", "ip"] {
        for body in [without(good.clone(), field), with(good.clone(), field, json!([]))] {
            let answer = send(&body);
            assert_eq!(answer.told(), (422, "validation_error".into()));
            let message = answer.json()["error"]["message"].clone();
            assert!(message.as_str().unwrap().starts_with(field), "{message}");
        }
    }
    for ip in ["nonsense", "10.0.0.1", "8.8.8.8:80"] {
        let answer = send(&with(good.clone(), "ip", ip));
        assert_eq!(answer.told(), (422, "validation_error".into()), "{ip}");
    }
    assert_eq!(send(&with(good, "token", "wrong")).told(), (401, "unauthorized".into()));
    let path = "/api/v2/servers/register";
    assert_eq!(app.post_text(path, "").told(), (400, "invalid_body".into()));
    assert_eq!(app.post_text(path, "[]").told(), (400, "invalid_json".into()));
    assert_eq!(app.post_text(path, &" ".repeat(70_000)).told(), (413, "request_too_large".into()));
    assert_eq!(pagination(&list(&app, ""))["total"], json!(0));
}

#[test]
fn a_revoked_server_is_refused_at_both_routes() {
    let app = TestApp::start();
    let id = register(&app, 1);
    app.post_as(&app.master(), &format!("/api/v2/servers/{id}/revoke"), &json!({}));
    app.settle();
    let body = json!({"token": app.master(), "ip": "8.8.0.1"});
    assert_eq!(app.post("/api/v2/servers/register", &body).told(), (403, "revoked".into()));
    assert_eq!(app.post("/register", &body).status, 403);
}

#[test]
fn a_listing_has_pages_and_says_where_one_is() {
    let app = TestApp::start();
    let mut all: Vec<String> = (0..5).map(|number| register(&app, number)).collect();
    all.reverse();
    let first = list(&app, "?per_page=2");
    assert_eq!(ids(&first), all[..2]);
    let told = json!({"page": 1, "per_page": 2, "total": 5, "pages": 3});
    assert_eq!(pagination(&first).to_string(), told.to_string(), "the keys in this order");
    assert_eq!(ids(&list(&app, "?page=3&per_page=2")), all[4..]);
    let beyond = list(&app, "?page=4000000000&per_page=2");
    assert!(ids(&beyond).is_empty());
    assert_eq!(pagination(&beyond)["total"], json!(5));
    assert_eq!(pagination(&list(&app, ""))["per_page"], json!(50));
    assert_eq!(ids(&list(&app, "?per_page=100")), all);
}

#[test]
fn a_listing_is_filtered_by_status_and_searched() {
    let app = TestApp::start();
    let [old, revoked] = [1, 2].map(|number| register(&app, number));
    app.post_as(&app.master(), &format!("/api/v2/servers/{revoked}/revoke"), &json!({}));
    app.clock.advance(49 * HOUR);
    let young = register(&app, 3);
    for (query, expected) in [
        ("?status=active", vec![&young, &old]),
        ("?status=all", vec![&young, &revoked, &old]),
        ("?status=revoked", vec![&revoked]),
        ("?status=stale", vec![&old]),
        ("?search=S1.EXAMPLE", vec![&old]),
        ("?search=8.8.0.3", vec![&young]),
        ("?search=example.com&status=revoked", vec![&revoked]),
        ("?search=example.com&per_page=1&page=2", vec![&revoked]),
        (&format!("?search={}", old.to_uppercase()), vec![&old]),
        ("?search=nothing", vec![]),
    ] {
        assert_eq!(ids(&list(&app, query)).iter().collect::<Vec<_>>(), expected, "{query}");
    }
    let found = list(&app, "?search=example.com&per_page=1");
    assert_eq!(pagination(&found), json!({"page": 1, "per_page": 1, "total": 3, "pages": 3}));
}

#[test]
fn a_listing_names_the_parameter_that_is_wrong() {
    let app = TestApp::start();
    for query in ["page=0", "per_page=101", "per_page=x", "status=x", "page=1&page=2"] {
        let answer = list(&app, &format!("?{query}"));
        assert_eq!(answer.told(), (422, "validation_error".into()), "{query}");
        let (field, _) = query.split_once('=').unwrap();
        assert!(answer.json()["error"]["message"].as_str().unwrap().starts_with(field));
    }
}

#[test]
fn a_server_is_shown_with_its_last_check_in() {
    let app = TestApp::start();
    let id = register(&app, 1);
    app.clock.advance(60);
    app.post(&format!("/api/v2/servers/{id}/check-in"), &json!({}));
    let path = format!("/api/v2/servers/{id}");
    let shown = app.get_as(&app.master(), &path);
    assert_eq!((shown.status, shown.data("status")), (200, "active".into()));
    assert_eq!(shown.data("hostname"), "S1.example.com");
    crate::harness::wait_until("the check-in is shown", || {
        let shown = app.get_as(&app.master(), &path);
        app.clock.advance(1);
        shown.data("last_checkin") == "2030-03-17T17:47:40+00:00"
    });
    for unknown in [UNKNOWN, "short"] {
        let answer = app.get_as(&app.master(), &format!("/api/v2/servers/{unknown}"));
        assert_eq!(answer.told(), (404, "server_not_found".into()));
    }
}

#[test]
fn listing_and_showing_need_the_master_token() {
    let app = TestApp::start();
    let id = register(&app, 1);
    for path in ["/api/v2/servers".to_owned(), format!("/api/v2/servers/{id}")] {
        assert_eq!(app.get(&path).told(), (401, "unauthorized".into()));
        assert_eq!(app.get_as("wrong", &path).told(), (401, "unauthorized".into()));
    }
}
