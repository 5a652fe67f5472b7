//! HTTP as clients really speak it.

use crate::harness::{Machine, TestApp, send, with};
use crate::wire::{answer, connect, rest, said_to, status};
use serde_json::{Value, json};
use std::io::Write;

const PRECHECK: &str = "/api/v2/slowdns/install/precheck";

fn body_of(text: &str) -> &str {
    text.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

/// Checks that a refusal has the envelope of its API, its own id, and ends the connection.
fn assert_refused(text: &str, expected: u16, code: &str) {
    assert_eq!(status(text), expected, "{text}");
    let error = serde_json::from_str::<Value>(body_of(text)).unwrap()["error"].take();
    if code.is_empty() {
        assert!(error.is_string(), "{text}");
    } else {
        assert_eq!(error["code"], code, "{text}");
    }
    for header in ["connection: close", "content-type: application/json", "x-request-id: "] {
        assert!(text.contains(&format!("\r\n{header}")), "{header}: {text}");
    }
}

#[test]
fn requests_that_cannot_be_read_are_refused_in_the_envelope_of_their_api() {
    let app = TestApp::start();
    for (path, code) in [(PRECHECK, "invalid_request"), ("/register", "")] {
        for rest in
            ["HTTP/9.9\r\n\r\n", "HTTP/1.1\r\n\r\n", "HTTP/1.1\r\nHost: x\r\nA\0: b\r\n\r\n"]
        {
            let text = said_to(&app, format!("POST {path} {rest}").as_bytes());
            assert_refused(&text, 400, code);
        }
        let lengths = "HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n";
        assert_refused(&said_to(&app, format!("POST {path} {lengths}").as_bytes()), 400, code);
    }
    for (path, code) in [(PRECHECK, "request_head_too_large"), ("/register", "")] {
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "x".repeat(300_000));
        assert_refused(&said_to(&app, head.as_bytes()), 431, code);
    }
    assert!(app.metric("iptunnel_http_requests_total{route=\"none\",status=\"431\"}") >= 2.0);
}

#[test]
fn a_request_that_cannot_be_read_behind_others_leaves_their_answers_whole() {
    let app = TestApp::start();
    let get = "GET /api/v2/healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut stream = connect(&app);
    stream.write_all(format!("{get}{get}GET /api/v2/x HTTP/9\r\n\r\n").as_bytes()).unwrap();
    for _ in 0..2 {
        assert_eq!(status(&answer(&mut stream).0), 200);
    }
    assert_refused(&rest(stream), 400, "invalid_request");
}

#[test]
fn of_several_cookies_with_one_name_any_valid_one_counts() {
    let app = TestApp::start();
    let browser = app.browser("slowdns");
    let good = browser.cookie.clone();
    let issue = |cookies: &[&[u8]]| {
        let url = format!("{}/api/v2/slowdns/code/issue", app.url);
        let request = app.client.post(url).header("user-agent", &browser.user_agent);
        let request = cookies.iter().fold(request, |request, cookie| {
            request.header("cookie", reqwest::header::HeaderValue::from_bytes(cookie).unwrap())
        });
        send(request).status
    };
    let stale = "slowdns_browser=eyJhbGciOiJIUzI1NiJ9.e30.x";
    assert_eq!(issue(&[format!("{stale}; {good}").as_bytes()]), 201);
    assert_eq!(issue(&[format!("{good}; {stale}").as_bytes()]), 201);
    assert_eq!(issue(&[stale.as_bytes(), good.as_bytes()]), 201);
    assert_eq!(issue(&[&[b"x=\xc3\xa4\xff; ", good.as_bytes()].concat()]), 201);
    assert_eq!(issue(&[stale.as_bytes()]), 403);
    assert_eq!(issue(&[]), 403);
}

#[test]
fn head_is_answered_like_get_without_the_body() {
    let app = TestApp::start();
    let mut stream = connect(&app);
    for path in ["/slowdns", "/api/v2/healthz", "/readyz", "/docs", "/assets/page.css", "/nothing"]
    {
        let get = send(app.client.get(format!("{}{path}", app.url)));
        stream.write_all(format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            std::io::Read::read_exact(&mut stream, &mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        assert_eq!(status(&head), get.status, "{path}");
        assert!(
            head.contains(&format!("content-length: {}\r\n", get.text.len())),
            "{path}: {head}"
        );
    }
}

#[test]
fn an_activation_id_of_any_length_is_not_found() {
    let app = TestApp::start();
    let activation = Machine::new(1).install(&app, &app.issue());
    for length in [256, 5000] {
        let body = json!({"activation_id": "a".repeat(length)});
        let not_found = (404, "activation_not_found".to_owned());
        assert_eq!(app.step("release", &body).told(), not_found);
        let body = with(body, "install_token", activation.token.clone());
        assert_eq!(app.step("confirm", &body).told(), (403, "token_mismatch".into()));
    }
}

#[test]
fn a_repeated_key_is_named() {
    let app = TestApp::start();
    let answer = app.post_text(PRECHECK, r#"{"machine_id":"a","x":1,"machine_id":"b"}"#);
    assert_eq!(answer.told(), (400, "invalid_json".into()));
    assert!(answer.text.contains("the key machine_id more than once"), "{}", answer.text);
    let answer = app.post_text("/checkin", r#"{"server_id":"a","server_id":"b"}"#);
    assert_eq!(answer.status, 400);
    assert!(answer.text.contains("the key server_id more than once"), "{}", answer.text);
}

#[test]
fn forged_and_stale_tokens_are_refused_before_anything_is_looked_up() {
    let app = TestApp::start();
    let activation = Machine::new(1).install(&app, &app.issue());
    app.clock.advance(601);
    let asked = || app.metric("iptunnel_actor_messages_total{actor=\"activation\"}");
    let before = asked();
    for token in ["forged", &activation.token] {
        let body = json!({"activation_id": activation.id, "install_token": token});
        assert_eq!(app.step("confirm", &body).told(), (403, "token_invalid".into()));
    }
    let body = json!({"activation_id": activation.id, "install_token": "forged"});
    assert_eq!(app.step("release", &body).told(), (403, "token_invalid".into()));
    assert_eq!(asked(), before);
}
