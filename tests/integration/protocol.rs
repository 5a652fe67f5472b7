//! HTTP as clients really speak it: old versions, many cookies, other protocols, and requests that
//! cannot be read.

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
fn a_caller_with_http_1_0_gets_no_chunks() {
    let app = TestApp::start();
    for number in 1..4 {
        let body = json!({"token": app.master(), "ip": format!("8.8.8.{number}")});
        assert_eq!(app.post("/register", &body).status, 200);
    }
    app.settle();
    let master = app.master();
    let head = format!("GET /status HTTP/1.0\r\nAuthorization: Bearer {master}\r\n");
    for more in ["\r\n", "Connection: keep-alive\r\n\r\n"] {
        let text = said_to(&app, format!("{head}{more}").as_bytes());
        assert!(text.starts_with("HTTP/1.0 200 "), "{text}");
        assert!(!text.to_lowercase().contains("transfer-encoding"), "{text}");
        assert!(!text.to_lowercase().contains("connection: keep-alive"), "{text}");
        let list: Value = serde_json::from_str(body_of(&text)).unwrap();
        assert_eq!(list["count"], 3);
    }
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
fn doubled_slashes_and_one_at_the_end_are_forgiven() {
    let app = TestApp::start();
    for path in ["//api/v2/healthz", "/api//v2/healthz/", "/slowdns/", "//slowdns//", "/docs/?x=1"]
    {
        assert_eq!(app.get(path).status, 200, "{path}");
    }
    let answer = app.post_text("/api/v2/slowdns//install/precheck/", "{}");
    assert_eq!(answer.told(), (422, "validation_error".into()));
    assert_eq!(app.get("//nothing/").status, 404);
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
fn a_connection_is_kept_after_refusals() {
    let app = TestApp::start();
    let mut stream = connect(&app);
    for (head, body, expected) in [
        ("POST /nothing", "{\"a\":1}", 404),
        ("PUT /register", "{}", 405),
        (&*format!("POST {PRECHECK}"), "not json", 400),
        ("POST /api/v2/slowdns/code/issue", "{}", 403),
        ("POST /checkin", "{\"server_id\":\"x\"}", 404),
        ("GET /status", "", 403),
        ("POST /nothing", "", 404),
        ("GET /api/v2/healthz", "", 200),
    ] {
        let length = body.len();
        let request =
            format!("{head} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).unwrap();
        let (head_of, text) = answer(&mut stream);
        assert_eq!(status(&head_of), expected, "{head}: {text}");
        assert!(!head_of.contains("connection: close"), "{head}: {head_of}");
    }
}

#[test]
fn headers_that_ask_for_another_protocol_are_ignored() {
    let app = TestApp::start();
    for upgrade in [
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
    ] {
        for (request, expected) in [
            (format!("POST {PRECHECK} HTTP/1.1\r\nContent-Length: 2"), 422),
            (format!("POST {PRECHECK} HTTP/1.1\r\nTransfer-Encoding: chunked"), 422),
            ("GET /api/v2/healthz HTTP/1.1".to_owned(), 200),
        ] {
            let body = match &request {
                chunked if chunked.contains("chunked") => "2\r\n{}\r\n0\r\n\r\n",
                post if post.contains("POST") => "{}",
                _ => "",
            };
            let text = said_to(
                &app,
                format!("{request}\r\nHost: x\r\n{upgrade}\r\n\r\n{body}").as_bytes(),
            );
            assert_eq!(status(&text), expected, "{request} {upgrade}: {text}");
            assert!(!text.to_lowercase().contains("upgrade"), "{text}");
        }
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
    let rounds = 50;
    for _ in 0..rounds {
        for token in ["forged", &activation.token] {
            let body = json!({"activation_id": activation.id, "install_token": token});
            assert_eq!(app.step("confirm", &body).told(), (403, "token_invalid".into()));
        }
        let body = json!({"activation_id": activation.id, "install_token": "forged"});
        assert_eq!(app.step("release", &body).told(), (403, "token_invalid".into()));
    }
    // The actor's clock sends it messages too, far fewer than these requests.
    assert!(asked() - before < f64::from(3 * rounds), "{before} to {}", asked());
}
