//! The fleet is watched: clones, silent servers, spent codes; and the first page says what needs a person.

use crate::harness::{Answer, Machine, START, TestApp, alone, send, wait_until};
use serde_json::{Value, json};

const HOUR: u64 = 3600;

/// Starts a server that believes `X-Forwarded-For` and on which servers check in once an hour.
fn start() -> TestApp {
    TestApp::start_with(|flags| {
        flags.push(("server.trusted_proxies", "127.0.0.1".into()));
        flags.push(("servers.next_checkin_seconds", HOUR.to_string()));
        flags.push(("servers.checkin_flush_seconds", "1".into()));
    })
}

fn admin(app: &TestApp, path: &str) -> Value {
    let answer = send(app.client.get(format!("{}{path}", app.admin)).bearer_auth(app.master()));
    assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    answer.json()["data"].clone()
}

fn registered(app: &TestApp, ip: &str) -> String {
    let body = json!({"token": app.master(), "ip": ip, "hostname": "one.example.com"});
    let answer = app.post("/register", &body);
    assert_eq!(answer.status, 200, "{}", answer.text);
    app.settle();
    answer.json()["server_id"].as_str().unwrap().to_owned()
}

fn check_in(app: &TestApp, id: &str, from: &str, token: Option<&str>) -> Answer {
    let request = app.client.post(format!("{}/api/v2/servers/{id}/check-in", app.url));
    let request = request.header("x-forwarded-for", from).body("{}");
    send(match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    })
}

fn logged(app: &TestApp, action: &str) -> Vec<Value> {
    let log = admin(app, &format!("/admin/audit?action={action}"));
    log["entries"].as_array().unwrap().clone()
}

/// Returns the texts of what needs a person of one kind.
fn needs(app: &TestApp, kind: &str) -> Vec<Value> {
    let lines = admin(app, "/admin/now")["attention"].as_array().unwrap().clone();
    lines.into_iter().filter(|line| line["kind"] == kind).collect()
}

/// Waits until the server has heard of its events, and there is one line of this kind.
fn needs_one(app: &TestApp, kind: &str) -> Vec<Value> {
    wait_until("one line says so", || needs(app, kind).len() == 1);
    needs(app, kind)
}

#[test]
fn nothing_needs_a_person_on_a_new_server() {
    let app = start();
    wait_until("the server is ready", || admin(&app, "/admin/now")["attention"] == json!([]));
}

#[test]
fn two_machines_that_check_in_as_one_server_are_reported_and_shown() {
    let app = start();
    let (id, other) = (registered(&app, "8.8.8.8"), registered(&app, "8.8.8.9"));
    // Servers that share a store each see a part of the check-ins.
    wait_until("the clone is in the log", || {
        for from in ["9.9.9.1", "9.9.9.2"] {
            assert_eq!(check_in(&app, &id, from, None).status, 200);
            assert_eq!(check_in(&app, &other, "9.9.9.3", None).status, 200);
        }
        !logged(&app, "clone_seen").is_empty()
    });
    for _ in 0..10 {
        check_in(&app, &id, "9.9.9.1", None);
        check_in(&app, &id, "9.9.9.2", None);
    }
    let events = logged(&app, "clone_seen");
    assert!(events.len() <= app.servers(), "one event an interval: {events:?}");
    assert_eq!(events[0]["server"], id.as_str());
    let mut networks = [events[0]["from"].clone(), events[0]["address"].clone()];
    networks.sort_by_key(Value::to_string);
    assert_eq!(networks, ["9.9.9.1", "9.9.9.2"]);
    assert!(app.metric("iptunnel_clone_check_ins_total") >= 1.0);
    let cloned = || admin(&app, "/admin/servers?show=cloned");
    wait_until("the server has heard of it", || cloned()["count"] == 1);
    let cloned = cloned();
    assert_eq!((&cloned["count"], &cloned["servers"][0]["server_id"]), (&json!(1), &json!(id)));
    assert_eq!(cloned["servers"][0]["clone"]["networks"].as_array().unwrap().len(), 2);
    let all = admin(&app, "/admin/servers?sort=oldest");
    assert!(all["servers"][0]["clone"].is_object() && all["servers"][1]["clone"].is_null());
    let lines = needs_one(&app, "clone");
    assert!(lines[0]["text"].as_str().unwrap().contains(&id), "{lines:?}");
    assert_eq!(lines[0]["see"], format!("servers?show=cloned&text={id}"));
    app.clock.advance(24 * HOUR);
    assert!(needs(&app, "clone").is_empty(), "a day later it needs nobody any more");
}

#[test]
fn a_clone_is_still_shown_after_a_restart() {
    let app = start();
    let id = registered(&app, "8.8.8.8");
    wait_until("the clone is in the log", || {
        // Five requests in turn, so that each of up to three servers gets both.
        for from in ["9.9.9.1", "9.9.9.2", "9.9.9.1", "9.9.9.2", "9.9.9.1"] {
            check_in(&app, &id, from, None);
        }
        !logged(&app, "clone_seen").is_empty()
    });
    let app = app.restart();
    needs_one(&app, "clone");
}

#[test]
fn a_change_between_the_two_kinds_of_addresses_or_within_a_network_is_no_clone() {
    let app = start();
    let id = registered(&app, "8.8.8.8");
    for from in ["9.9.9.1", "2001:db8::1", "2001:db8::2", "9.9.9.1"] {
        assert_eq!(check_in(&app, &id, from, None).status, 200);
    }
    assert_eq!(app.metric("iptunnel_clone_check_ins_total"), 0.0);
}

#[test]
fn a_wrong_token_under_a_servers_id_is_reported_and_no_secret_is_logged() {
    let app = start();
    let id = registered(&app, "8.8.8.8");
    assert_eq!(check_in(&app, &id, "9.9.9.1", Some("a-stale-token")).status, 401);
    wait_until("it is in the log", || !logged(&app, "clone_seen").is_empty());
    let event = logged(&app, "clone_seen")[0].clone();
    assert!(event["detail"].as_str().unwrap().contains("not this server's"), "{event}");
    assert!(!event.to_string().contains("a-stale-token"));
}

/// A tenth of the time after which a server is silent.
const STEP: usize = 360;

/// Lets the time pass in steps in which every server hears of it: after a longer one, servers are given
/// time to check in again.
fn pass(app: &TestApp, seconds: u64) {
    let messages = "iptunnel_actor_messages_total{actor=\"server_registry\"}";
    let queued = "iptunnel_actor_queue_depth{actor=\"server_registry\"}";
    for step in (0..seconds).step_by(STEP).map(|begun| (seconds - begun).min(STEP as u64)) {
        app.clock.advance(step);
        // What waits now may be of the time before. Of so many messages after that one is of the new time.
        let mut seen = app.metrics(queued);
        seen.iter_mut()
            .zip(app.metrics(messages))
            .for_each(|(queued, taken)| *queued += taken + 5.0);
        wait_until("all servers know the time", || {
            app.metrics(messages).iter().zip(&seen).all(|(now, seen)| now > seen)
        });
    }
}

#[test]
fn many_silent_servers_are_an_event_a_metric_and_a_line() {
    let app = start();
    app.reload(|config| config.servers.next_checkin_seconds = HOUR / 3);
    let ids: Vec<String> =
        (1..=4).map(|number| registered(&app, &format!("8.8.8.{number}"))).collect();
    wait_until("it is in the log", || {
        pass(&app, STEP as u64);
        !logged(&app, "fleet_silent").is_empty()
    });
    let silent = |count: usize| {
        let all = (count * app.servers()) as f64;
        wait_until("all servers have counted", || app.metric("iptunnel_servers_silent") == all);
    };
    silent(4);
    assert!(logged(&app, "fleet_silent").len() <= app.servers());
    assert_eq!(logged(&app, "fleet_silent")[0]["subject"], "silent");
    wait_until("the page says it", || needs(&app, "silent").len() == 1);
    let words = "4 of 4 servers have not checked in for more than 1 hour.";
    assert_eq!(needs(&app, "silent")[0]["text"], words);
    assert_eq!(admin(&app, "/admin/servers?show=silent")["count"], 4);
    for id in &ids {
        assert_eq!(check_in(&app, id, "9.9.9.9", None).status, 200);
    }
    wait_until("all servers have heard of the check-ins", || {
        pass(&app, 6);
        app.metric("iptunnel_servers_silent") == 0.0
    });
    wait_until("its end is in the log", || {
        logged(&app, "fleet_silent").iter().any(|event| event["subject"] == "over")
    });
    wait_until("the page says nothing", || needs(&app, "silent").is_empty());
}

#[test]
fn a_spent_code_that_another_machine_tries_is_reported_once_for_each_machine() {
    let app = start();
    let code = app.issue();
    let (owner, thief) = (Machine::new(1), Machine::new(2));
    owner.install(&app, &code).confirm(&app);
    assert_eq!(owner.precheck(&app, &code).status, 403, "its own machine is no thief");
    for _ in 0..3 {
        assert_eq!(thief.precheck(&app, &code).status, 403);
    }
    wait_until("it is in the log", || !logged(&app, "spent_code_tried").is_empty());
    assert_eq!(Machine::new(3).precheck(&app, &code).status, 403);
    wait_until("the next one too", || logged(&app, "spent_code_tried").len() >= 2);
    assert!(logged(&app, "spent_code_tried").len() <= 1 + app.servers());
    assert_eq!(app.metric("iptunnel_spent_codes_tried_total"), 4.0);
    // One line for each code.
    let lines = needs_one(&app, "spent_code");
    let see = lines[0]["see"].as_str().unwrap();
    assert_eq!(admin(&app, &format!("/admin/{see}"))["state"], "confirmed");
}

#[test]
fn a_burst_of_wrong_tokens_needs_a_person_and_a_few_do_not() {
    let app = start();
    if !alone() {
        return;
    }
    app.get_as("wrong", "/status");
    app.clock.advance(60);
    wait_until("the minute is in the log", || logged(&app, "tokens_refused").len() == 1);
    assert!(needs(&app, "wrong_tokens").is_empty());
    (0..11).for_each(|_| drop(app.get_as("wrong", "/status")));
    app.clock.set(START + 120);
    wait_until("the burst needs a person", || needs(&app, "wrong_tokens").len() == 1);
    assert_eq!(needs(&app, "wrong_tokens")[0]["text"], "11 wrong tokens came from 127.0.0.1.");
}
