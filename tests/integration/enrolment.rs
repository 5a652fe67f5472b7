//! How a machine registers without an operator's token: with the install token of its activation, or with
//! an install ticket.

use crate::harness::{Activation, Answer, Machine, TestApp, send, with};
use serde_json::{Value, json};

const V2: &str = "/api/v2/servers/register";
const LEGACY: &str = "/register";
const HOUR: u64 = 3600;

fn registration(token: &str, ip: &str) -> Value {
    json!({"token": token, "ip": ip, "hostname": "ns1.example.com"})
}

/// The id in an answer of either route, which must be a success.
fn id(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text);
    let json = answer.json();
    let id = json["data"]["server_id"].as_str().or(json["server_id"].as_str());
    id.unwrap_or_else(|| panic!("no id: {json}")).to_owned()
}

/// A confirmed installation of the machine.
fn installed(app: &TestApp, machine: &Machine) -> Activation {
    let activation = machine.install(app, &app.issue());
    assert_eq!(activation.confirm(app).status, 200);
    activation
}

/// The number of entries of an action in the audit log.
fn entries(app: &TestApp, action: &str) -> usize {
    let request = app.client.get(format!("{}/admin/audit?action={action}", app.admin));
    let listed = send(request.bearer_auth(app.master())).json();
    listed["data"]["entries"].as_array().unwrap_or_else(|| panic!("{listed}")).len()
}

#[test]
fn a_confirmed_install_registers_its_server_once_and_a_lost_answer_is_given_again() {
    let app = TestApp::start();
    let machine = Machine::new(1);
    let token = installed(&app, &machine).token;
    let body = registration(&token, &machine.public_ip);
    let first = id(&app.post(V2, &body));
    app.settle();
    for path in [LEGACY, V2] {
        assert_eq!(id(&app.post(path, &body)), first, "{path}");
    }
    assert_eq!(entries(&app, "server_registered"), 1, "a repeat is no registration");
    let path = format!("/api/v2/servers/{first}/check-in");
    assert_eq!(app.post_as(&token, &path, &json!({})).status, 200);
    assert_eq!(app.post_as("another", &path, &json!({})).status, 401);
    let app = app.restart();
    assert_eq!(id(&app.post(LEGACY, &body)), first);
}

#[test]
fn an_install_token_registers_nothing_before_its_confirm_and_an_hour_after_it() {
    let app = TestApp::start();
    let machine = Machine::new(1);
    let activation = machine.install(&app, &app.issue());
    let body = registration(&activation.token, &machine.public_ip);
    assert_eq!(app.post(V2, &body).told(), (403, "token_invalid".into()));
    assert_eq!(app.post(LEGACY, &body).status, 403);
    assert_eq!(activation.confirm(&app).status, 200);
    app.clock.advance(HOUR - 1);
    let first = id(&app.post(V2, &body));
    app.clock.advance(1);
    assert_eq!(app.post(V2, &body).told(), (403, "token_invalid".into()));
    let path = format!("/api/v2/servers/{first}/check-in");
    app.settle();
    assert_eq!(
        app.post_as(&activation.token, &path, &json!({})).status,
        200,
        "it checks in for good"
    );
}

#[test]
fn an_install_token_registers_the_address_that_was_bound_and_no_other() {
    let app = TestApp::start();
    let machine = Machine::new(1);
    let token = installed(&app, &machine).token;
    let elsewhere = app.post(V2, &registration(&token, "8.8.8.8"));
    assert_eq!(elsewhere.told(), (422, "validation_error".into()));
    assert!(elsewhere.json()["error"]["message"].as_str().unwrap().starts_with("ip must"));
    assert_eq!(app.post(LEGACY, &registration(&token, "8.8.8.8")).status, 400);
    let private = app.post(V2, &registration(&token, "10.0.0.1"));
    assert_eq!(private.told(), (422, "validation_error".into()));
    id(&app.post(V2, &registration(&token, &machine.public_ip)));
}

#[test]
fn the_token_of_a_released_install_registers_nothing() {
    let app = TestApp::start();
    let machine = Machine::new(1);
    let activation = machine.install(&app, &app.issue());
    assert_eq!(activation.release(&app).status, 200);
    let body = registration(&activation.token, &machine.public_ip);
    assert_eq!(app.post(V2, &body).told(), (404, "activation_not_found".into()));
    let forged = with(body, "token", activation.token + "x");
    assert_eq!(app.post(V2, &forged).told(), (401, "unauthorized".into()));
}

#[test]
fn a_revoked_server_does_not_come_back_with_another_install() {
    let app = TestApp::start();
    let machine = Machine::new(1);
    let first = installed(&app, &machine);
    let server = id(&app.post(V2, &registration(&first.token, &machine.public_ip)));
    app.post_as(&app.master(), "/revoke", &json!({"server_id": server}));
    app.settle();
    app.clock.advance(60);
    let second = installed(&app, &machine);
    for token in [&first.token, &second.token] {
        let body = registration(token, &machine.public_ip);
        assert_eq!(app.post(V2, &body).told(), (403, "revoked".into()));
    }
}

#[test]
fn a_second_install_on_a_machine_registers_it_again_and_the_first_token_is_used_up() {
    let app = TestApp::start();
    let machine = Machine::new(1);
    let first = installed(&app, &machine);
    let server = id(&app.post(V2, &registration(&first.token, &machine.public_ip)));
    app.settle();
    app.clock.advance(60);
    let second = installed(&app, &machine);
    let again = app.post(V2, &registration(&second.token, &machine.public_ip));
    assert_eq!(id(&again), server);
    app.settle();
    let old = app.post(V2, &registration(&first.token, &machine.public_ip));
    assert_eq!(old.told(), (403, "credential_used".into()));
    assert_eq!(app.post(LEGACY, &registration(&first.token, &machine.public_ip)).status, 403);
}

#[test]
fn the_story_of_a_code_names_the_server_that_it_enrolled() {
    let app = TestApp::start();
    let machine = Machine::new(1);
    let code = app.issue();
    let activation = machine.install(&app, &code);
    activation.confirm(&app);
    let server = id(&app.post(V2, &registration(&activation.token, &machine.public_ip)));
    let request = app.client.post(format!("{}/admin/codes", app.admin)).bearer_auth(app.master());
    let story = send(request.body(json!({"find": code}).to_string())).json();
    let events = story["data"]["events"].as_array().unwrap_or_else(|| panic!("{story}")).clone();
    let registered = events.iter().find(|event| event["action"] == "server_registered");
    let registered = registered.unwrap_or_else(|| panic!("{story}"));
    assert_eq!(registered["server"], json!(server));
    assert_eq!(registered["activation"], json!(activation.id[..8]));
}
