//! The ecosystem's own clients, unmodified: the main stack's installer, the agents that it installs, and
//! its updater. Requests are sent as these programs send them.

use crate::harness::{Answer, TestApp};
use crate::wire::raw;
use serde_json::json;

/// Sends a request with exactly this target, which a client library might tidy, and reads the answer.
fn exactly(app: &TestApp, method: &str, target: &str, body: &str) -> Answer {
    let head = format!("{method} {target} HTTP/1.1\r\nContent-Length: {}", body.len());
    let text = raw(app, &head, body.as_bytes());
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head[9..12].parse().unwrap();
    let header = |line: &str| {
        let (name, value) = line.split_once(": ")?;
        Some((name.to_ascii_lowercase(), value.to_owned()))
    };
    Answer { status, headers: head.lines().filter_map(header).collect(), text: body.to_owned() }
}

#[test]
fn doubled_slashes_and_one_slash_at_the_end_are_forgiven_on_every_path() {
    let app = TestApp::start();
    for target in ["//healthz", "/healthz/", "//healthz//", "/healthz/?a=//b/"] {
        let answer = exactly(&app, "GET", target, "");
        assert_eq!((answer.status, &*answer.text), (200, r#"{"status":"ok"}"#), "{target}");
    }
    for target in ["/api//v2/healthz", "/api/v2/healthz/", "//api/v2///healthz/"] {
        assert_eq!(exactly(&app, "GET", target, "").data("status"), "ok", "{target}");
    }
    let body = json!({"token": app.master(), "ip": "8.8.8.8"}).to_string();
    let registered = exactly(&app, "POST", "//register/", &body);
    assert_eq!(registered.status, 200, "{}", registered.text);
    let id = registered.json()["server_id"].as_str().unwrap().to_owned();
    app.settle();
    for target in [
        format!("/api/v2//servers/{id}/check-in"),
        format!("/api/v2/servers/{id}/check-in/"),
        format!("/api/v2/servers/{id}//check-in?x"),
    ] {
        assert_eq!(exactly(&app, "POST", &target, "{}").status, 200, "{target}");
    }
}

#[test]
fn a_forgiven_path_keeps_its_query_and_the_envelope_of_its_family() {
    let app = TestApp::start();
    let answer = exactly(&app, "GET", "//api/v2/nothing/", "");
    assert_eq!(answer.told(), (404, "not_found".into()));
    let answer = exactly(&app, "GET", "//status//?limit=0", "");
    assert_eq!((answer.status, answer.json()["error"].is_string()), (403, true));
    let absolute = exactly(&app, "GET", "http://x//healthz/", "");
    assert_eq!((absolute.status, &*absolute.text), (200, r#"{"status":"ok"}"#));
}

#[test]
fn healthz_is_a_bare_object_and_takes_only_get() {
    let app = TestApp::start();
    let answer = app.get("/healthz");
    assert_eq!((answer.status, &*answer.text), (200, r#"{"status":"ok"}"#));
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(app.post_text("/healthz", "").status, 405);
}
