//! The form of every reply: envelopes, methods, sizes, headers. Some tests use raw sockets, to send
//! what a client library would not send.

use crate::harness::{Answer, TestApp, send};
use crate::wire::{connect, raw, rest};
use reqwest::Method;
use std::io::{Read, Write};

const HTML: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
const LARGEST: usize = 64 * 1024;
const PRECHECK: &str = "/api/v2/slowdns/install/precheck";

fn request(app: &TestApp, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let mut request = app.client.request(method, format!("{}{path}", app.url));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(request)
}

/// Checks the flat legacy envelope: only `error`, a string.
fn assert_legacy_failure(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{}", answer.text);
    let json = answer.json();
    assert!(json["error"].is_string() && json.as_object().unwrap().len() == 1, "{json}");
}

/// Checks the v2 envelope: only `error`, with only `code` and `message`.
fn assert_v2_failure(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.told(), (status, code.to_owned()), "{}", answer.text);
    let json = answer.json();
    let error = json["error"].as_object().unwrap();
    assert!(error["message"].is_string() && error.len() == 2, "{json}");
    assert_eq!(json.as_object().unwrap().len(), 1);
}

#[test]
fn an_unknown_path_under_api_v2_is_not_found_in_the_v2_envelope_for_every_caller() {
    let app = TestApp::start();
    for path in ["/api/v2", "/api/v2/", "/api/v2/nothing", "/api/v2/slowdns/install/x"] {
        for method in ["GET", "POST", "PUT", "DELETE"] {
            let answer = request(&app, method, path, &[("accept", HTML)]);
            assert_v2_failure(&answer, 404, "not_found");
        }
    }
}

#[test]
fn the_routes_of_an_unknown_product_are_unknown_for_every_method() {
    let app = TestApp::start();
    for route in ["code/issue", "install/precheck", "install/confirm"] {
        for method in ["POST", "GET", "PUT"] {
            let answer = request(&app, method, &format!("/api/v2/nothing/{route}"), &[]);
            assert_v2_failure(&answer, 404, "not_found");
        }
    }
}

#[test]
fn an_unknown_path_elsewhere_is_not_found_in_the_legacy_envelope_for_every_method() {
    let app = TestApp::start();
    for path in ["/nothing", "/nothing/deeper", "/slowdns/deeper/", "/api", "/api/v1/x"] {
        for method in ["GET", "POST", "DELETE"] {
            assert_legacy_failure(&request(&app, method, path, &[]), 404);
        }
    }
}

#[test]
fn a_path_that_only_begins_like_api_v2_uses_the_legacy_envelope() {
    let app = TestApp::start();
    assert_legacy_failure(&app.get("/api/v22/healthz"), 404);
}

#[test]
fn a_browser_gets_a_page_for_what_is_not_found_or_not_allowed() {
    let app = TestApp::start();
    for (method, path, status) in [("GET", "/nothing", 404), ("PUT", "/slowdns", 405)] {
        let answer = request(&app, method, path, &[("accept", HTML)]);
        assert_eq!(answer.status, status);
        assert!(answer.header("content-type").starts_with("text/html"), "{}", answer.text);
        assert!(answer.text.starts_with("<!doctype html>"), "{}", answer.text);
    }
}

#[test]
fn a_wrong_method_is_405_with_allow_in_the_envelope_of_its_routes() {
    let app = TestApp::start();
    let v2 = ["code/issue", "install/precheck", "install/activate", "install/confirm"];
    for route in v2.into_iter().chain(["install/release"]) {
        for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "FROB"] {
            let answer = request(&app, method, &format!("/api/v2/slowdns/{route}"), &[]);
            assert_eq!((answer.status, answer.header("allow")), (405, "POST"), "{method} {route}");
            if method != "HEAD" {
                assert_v2_failure(&answer, 405, "method_not_allowed");
            }
        }
    }
    for path in ["/register", "/checkin", "/revoke"] {
        let answer = request(&app, "GET", path, &[]);
        assert_eq!(answer.header("allow"), "POST", "{path}");
        assert_legacy_failure(&answer, 405);
    }
    for path in ["/status", "/readyz", "/", "/slowdns/events"] {
        let answer = request(&app, "POST", path, &[]);
        assert!(answer.header("allow").split(", ").any(|method| method == "GET"), "{path}");
        assert_legacy_failure(&answer, 405);
    }
    assert_v2_failure(&app.post_text("/api/v2/healthz", ""), 405, "method_not_allowed");
}

#[test]
fn head_is_answered_like_get_without_a_body() {
    let app = TestApp::start();
    for path in ["/api/v2/healthz", "/slowdns", "/readyz"] {
        let (head, get) = (request(&app, "HEAD", path, &[]), app.get(path));
        assert_eq!((head.status, head.text.as_str()), (200, ""), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
    }
    let text = raw(&app, "HEAD /api/v2/healthz HTTP/1.1", b"");
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("\r\n\r\n"), "{text}");
}

/// Requests to every route that reads a body, with the master token if the route requires it.
const READERS: [&str; 8] = [
    PRECHECK,
    "/api/v2/slowdns/install/activate",
    "/api/v2/slowdns/install/confirm",
    "/api/v2/slowdns/install/release",
    "/api/v2/servers/0123456789abcdef/check-in",
    "/register",
    "/checkin",
    "/revoke",
];

fn assert_too_large(answer: &Answer, path: &str) {
    if path.starts_with("/api/v2") {
        assert_v2_failure(answer, 413, "request_too_large");
    } else {
        assert_legacy_failure(answer, 413);
    }
}

/// A JSON object of this many bytes that no route accepts.
fn object_of(length: usize) -> String {
    format!("{{}}{}", " ".repeat(length - 2))
}

#[test]
fn a_body_over_64_kib_is_too_large_with_a_length_or_in_chunks() {
    let app = TestApp::start();
    for path in READERS {
        let post = || app.client.post(format!("{}{path}", app.url)).bearer_auth(app.master());
        let body = object_of(LARGEST + 1);
        assert_too_large(&send(post().body(body.clone())), path);
        let chunked = reqwest::blocking::Body::new(std::io::Cursor::new(body));
        assert_too_large(&send(post().body(chunked)), path);
    }
}

#[test]
fn a_body_of_exactly_64_kib_is_read_with_a_length_or_in_chunks() {
    let app = TestApp::start();
    let post = || app.client.post(format!("{}{PRECHECK}", app.url));
    let body = object_of(LARGEST);
    assert_v2_failure(&send(post().body(body.clone())), 422, "validation_error");
    let chunked = reqwest::blocking::Body::new(std::io::Cursor::new(body));
    assert_v2_failure(&send(post().body(chunked)), 422, "validation_error");
}

#[test]
fn a_client_that_sends_megabytes_without_reading_still_gets_the_413() {
    let app = TestApp::start();
    let body = vec![b' '; 4 << 20];
    for _ in 0..5 {
        let head = format!("POST {PRECHECK} HTTP/1.1\r\nContent-Length: {}", body.len());
        let text = raw(&app, &head, &body);
        assert!(text.starts_with("HTTP/1.1 413"), "{text:?}");
        assert!(text.contains(r#"{"error":{"code":"request_too_large""#), "{text}");
    }
}

#[test]
fn a_body_announced_as_too_large_is_refused_before_it_arrives() {
    let app = TestApp::start();
    let head = format!("POST {PRECHECK} HTTP/1.1\r\nContent-Length: 999999999");
    let text = raw(&app, &head, &vec![b' '; LARGEST + 1]);
    assert!(text.starts_with("HTTP/1.1 413"), "{text:?}");
}

#[test]
fn chunks_of_any_size_make_one_body() {
    let app = TestApp::start();
    let body: String = "{ \"machine_id\": 1 }".chars().map(|c| format!("1\r\n{c}\r\n")).collect();
    let head = format!("POST {PRECHECK} HTTP/1.1\r\nTransfer-Encoding: chunked");
    let text = raw(&app, &head, format!("{body}0\r\n\r\n").as_bytes());
    assert!(text.starts_with("HTTP/1.1 422") && text.contains("install_code"), "{text}");
}

#[test]
fn expect_100_continue_is_honoured_before_the_body_is_sent() {
    let app = TestApp::start();
    let mut stream = connect(&app);
    let head = format!(
        "POST {PRECHECK} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\
         Expect: 100-continue\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let expected = b"HTTP/1.1 100 Continue\r\n\r\n";
    let mut interim = vec![0; expected.len()];
    stream.read_exact(&mut interim).unwrap();
    assert_eq!(interim, expected);
    stream.write_all(b"{}").unwrap();
    let text = rest(stream);
    assert!(text.starts_with("HTTP/1.1 422"), "{text}");
}

#[test]
fn a_body_is_read_as_json_regardless_of_its_content_type() {
    let app = TestApp::start();
    let kinds = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "junk"];
    for kind in kinds {
        let request =
            app.client.post(format!("{}{PRECHECK}", app.url)).header("content-type", kind);
        assert_v2_failure(&send(request.body("{}")), 422, "validation_error");
    }
}

#[test]
fn a_body_that_is_not_utf_8_is_invalid_json() {
    let app = TestApp::start();
    let head = format!("POST {PRECHECK} HTTP/1.1\r\nContent-Length: 20");
    let text = raw(&app, &head, b"{\"machine_id\":\"\xff\xfe!\"}");
    assert!(text.starts_with("HTTP/1.1 400") && text.contains("invalid_json"), "{text}");
}

#[test]
fn every_reply_is_json_with_nosniff_and_its_own_request_id() {
    let app = TestApp::start();
    let answers = [
        app.get("/api/v2/healthz"),
        app.get("/api/v2/nothing"),
        app.get("/nothing"),
        app.get("/register"),
        app.get("/status"),
        app.post_text(PRECHECK, ""),
        app.post_text(PRECHECK, &object_of(LARGEST + 1)),
        app.post_text("/checkin", ""),
        app.get_as(&app.master(), "/status"),
        app.get_as(&app.master(), "/status?limit=x"),
    ];
    let mut ids = Vec::new();
    for answer in &answers {
        assert_eq!(answer.header("content-type"), "application/json", "{}", answer.text);
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{}", answer.text);
        ids.push(answer.header("x-request-id"));
    }
    ids.sort_unstable();
    ids.dedup();
    assert!(ids.len() == answers.len() && !ids.contains(&""), "{ids:?}");
}

#[test]
fn the_admin_listener_sends_nosniff_too() {
    let app = TestApp::start();
    for path in ["/livez", "/readyz", "/metrics", "/nothing"] {
        let answer = app.get_admin(path);
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
    }
}

#[test]
fn a_request_id_is_accepted_only_from_a_trusted_proxy() {
    let id = |app: &TestApp| {
        let answer = request(app, "GET", "/api/v2/healthz", &[("x-request-id", "trace-7f.3")]);
        answer.header("x-request-id").to_owned()
    };
    let behind = TestApp::start_with(|c| c.push(("server.trusted_proxies", "127.0.0.1".into())));
    assert_eq!(id(&behind), "trace-7f.3");
    assert_ne!(id(&TestApp::start()), "trace-7f.3");
}

#[test]
fn every_page_has_a_strict_content_policy_and_sends_no_referrer() {
    let app = TestApp::start();
    for (method, path) in [("GET", "/slowdns"), ("GET", "/nothing"), ("PUT", "/slowdns")] {
        let page = request(&app, method, path, &[("accept", HTML)]);
        let policy = page.header("content-security-policy");
        assert!(policy.contains("frame-ancestors 'none'"), "{method} {path}: {policy}");
        assert!(!policy.contains("unsafe-"), "{policy}");
        assert_eq!(page.header("referrer-policy"), "same-origin", "{method} {path}");
        assert_eq!(page.header("x-content-type-options"), "nosniff", "{method} {path}");
        assert!(!page.text.contains("<style") && !page.text.contains(" style="));
        assert!(!page.text.contains("<script>") && !page.text.contains(" onclick="));
    }
}

#[test]
fn the_page_with_its_cookie_is_not_stored() {
    let page = TestApp::start().get("/slowdns");
    assert_eq!(page.header("cache-control"), "no-store");
}

#[test]
fn no_answer_is_a_redirect() {
    let app = TestApp::start();
    for path in ["//slowdns", "/slowdns/", "/api/v2/slowdns/install/precheck/", "/SLOWDNS", "/."] {
        let text = raw(&app, &format!("POST {path} HTTP/1.1\r\nContent-Length: 0"), b"");
        let status: u16 = text[9..12].parse().unwrap();
        assert!((400..500).contains(&status), "{path}: {text}");
    }
}
