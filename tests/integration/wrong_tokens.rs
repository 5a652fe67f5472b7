//! Wrong tokens are slowed by network on both listeners, and leave traces.

use crate::harness::{Answer, TestApp, send, wait_until};
use serde_json::{Value, json};

fn admin(app: &TestApp, token: &str, path: &str) -> Answer {
    send(app.client.get(format!("{}{path}", app.admin)).bearer_auth(token))
}

fn login(app: &TestApp, token: &str) -> Answer {
    let client = reqwest::blocking::Client::builder().no_proxy();
    let client = client.redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let request = client.post(format!("{}/console/login", app.admin));
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    send(request.body(format!("token={token}")))
}

/// Sends wrong tokens to every server until all of them slow this network.
fn use_up(app: &TestApp) {
    for _ in 0..10 * app.servers() {
        let answer = app.get_as("wrong", "/status");
        assert!([403, 429].contains(&answer.status), "{}", answer.text);
    }
    wait_until("the operators' listener slows it too", || {
        admin(app, "wrong", "/admin/now").status == 429
    });
}

#[test]
fn after_ten_wrong_tokens_in_a_minute_further_ones_are_slowed_on_both_listeners() {
    let app = TestApp::start();
    use_up(&app);
    let (master, server) = (app.master(), json!({"server_id": "0123456789abcdef"}));
    let body = |token: &str| json!({"token": token, "ip": "9.9.9.9"});
    let legacy = [
        app.get_as("wrong", "/status"),
        app.post_as("wrong", "/revoke", &server),
        app.post("/register", &body("wrong")),
    ];
    for answer in legacy {
        assert_eq!(answer.status, 429, "{}", answer.text);
        let words = json!({"error": "Too many requests. Please wait before trying again."});
        assert_eq!(answer.json(), words);
        assert!((1..=60).contains(&answer.header("retry-after").parse::<u64>().unwrap()));
    }
    let path = "/api/v2/servers/0123456789abcdef/revoke";
    let limited = (429, "rate_limit_exceeded".to_owned());
    assert_eq!(app.post_as("wrong", path, &json!({})).told(), limited);
    assert_eq!(admin(&app, "wrong", "/admin/now").told(), limited);
    let refused = login(&app, "wrong");
    assert!(refused.status == 429 && refused.text.contains("Please wait"), "{}", refused.text);
    // The right token is good all the while, from the same network.
    assert_eq!(app.get_as(&master, "/status").status, 200);
    assert_eq!(app.post("/register", &body(&master)).status, 200);
    assert_eq!(admin(&app, &master, "/admin/now").status, 200);
    assert_eq!(login(&app, &master).status, 303);
    assert_eq!(app.get("/status").status, 403, "no token is not a wrong token");
    app.clock.advance(60);
    assert_eq!(app.get_as("wrong", "/status").status, 403);
}

#[test]
fn a_check_in_with_a_wrong_token_is_slowed_too_but_stays_401() {
    let app = TestApp::start();
    let body = json!({"token": app.master(), "ip": "9.9.9.9"});
    let id = app.post("/register", &body).json()["server_id"].clone();
    app.settle();
    use_up(&app);
    let begun = std::time::Instant::now();
    let answer = app.post_as("wrong", "/checkin", &json!({"server_id": id}));
    assert_eq!(answer.status, 401, "{}", answer.text);
    assert!(begun.elapsed().as_millis() >= 1000);
    assert_eq!(app.post("/checkin", &json!({"server_id": id})).status, 200);
}

#[test]
fn wrong_tokens_are_counted_and_entered_into_the_audit_log_once_a_minute() {
    let app = TestApp::start();
    for _ in 0..3 {
        app.get_as("a-wrong-token", "/status");
        admin(&app, "a-wrong-token", "/admin/now");
    }
    let counted = |listener: &str| {
        app.metric(&format!("iptunnel_wrong_tokens_total{{listener=\"{listener}\"}}"))
    };
    assert_eq!([counted("public"), counted("operators")], [3.0, 3.0]);
    let entries = || -> Vec<Value> {
        let log = admin(&app, &app.master(), "/admin/audit?action=tokens_refused");
        assert!(!log.text.contains("a-wrong-token"));
        log.json()["data"]["entries"].as_array().unwrap().clone()
    };
    assert!(entries().is_empty());
    app.clock.advance(60);
    let sum = || -> u32 {
        let count = |entry: &Value| {
            assert_eq!(
                (&entry["actor"], &entry["from"]),
                (&json!("unidentified"), &json!("127.0.0.1"))
            );
            let detail = entry["detail"].as_str().unwrap().to_owned();
            detail.strip_suffix(" in a minute").unwrap().parse::<u32>().unwrap()
        };
        entries().iter().map(count).sum()
    };
    wait_until("the minute is in the audit log", || sum() == 6);
    assert!(entries().len() <= app.servers(), "one entry for each server");
}

#[test]
fn the_wrong_tokens_of_the_last_minute_are_in_the_audit_log_after_a_stop() {
    let app = TestApp::start();
    app.get_as("a-wrong-token", "/status");
    let app = app.restart();
    let log = admin(&app, &app.master(), "/admin/audit?action=tokens_refused").json();
    assert_eq!(log["data"]["entries"][0]["detail"], "1 in a minute", "{log}");
}
