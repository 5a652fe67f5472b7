//! HTTP as clients really speak it.

use crate::harness::{Machine, TestApp, send, with};
use serde_json::json;

const PRECHECK: &str = "/api/v2/slowdns/install/precheck";

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
