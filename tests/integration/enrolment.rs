//! How a machine registers without an operator's token: with the install token of its activation, or with
//! an install ticket.

use crate::harness::{Activation, Answer, Machine, TestApp, send, wait_until, with};
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

/// Agent tokens of two machines.
const AGENT: &str = "ipa_0123456789abcdef0123456789abcdef0123456789abcdef";
const ANOTHER: &str = "ipa_fedcba9876543210fedcba9876543210fedcba9876543210";

/// Checks in with a token and returns the status. On all servers the answer must be the same.
fn check_in(app: &TestApp, server: &str, token: &str) -> u16 {
    let path = format!("/api/v2/servers/{server}/check-in");
    let ask = || app.post_as(token, &path, &json!({})).status;
    let status = ask();
    assert!((1..app.servers()).all(|_| ask() == status), "{path}");
    status
}

#[test]
fn a_machine_checks_in_with_its_own_agent_token_and_with_no_other() {
    let app = TestApp::start();
    let machine = Machine::new(1);
    let token = installed(&app, &machine).token;
    let body = with(registration(&token, &machine.public_ip), "agent_token", AGENT);
    let server = id(&app.post(V2, &body));
    for (token, status) in [(AGENT, 200), (&*token, 401), (ANOTHER, 401), (&*app.master(), 200)] {
        assert_eq!(check_in(&app, &server, token), status);
    }
    wait_until("the second machine is seen", || entries(&app, "clone_seen") > 0);
    let app = app.restart();
    assert_eq!((check_in(&app, &server, AGENT), check_in(&app, &server, ANOTHER)), (200, 401));
}

#[test]
fn a_lost_answer_is_given_again_for_the_same_token_and_agent_token_alone() {
    let app = TestApp::start();
    let machine = Machine::new(1);
    let token = installed(&app, &machine).token;
    let plain = registration(&token, &machine.public_ip);
    let body = with(plain.clone(), "agent_token", AGENT);
    let server = id(&app.post(V2, &body));
    for path in [V2, LEGACY, V2] {
        assert_eq!(id(&app.post(path, &body)), server, "{path}");
    }
    for other in [plain, with(body.clone(), "agent_token", ANOTHER)] {
        assert_eq!(app.post(V2, &other).told(), (403, "credential_used".into()));
        assert_eq!(app.post(LEGACY, &other).status, 403);
    }
    assert_eq!(entries(&app, "server_registered"), 1);
    let app = app.restart();
    assert_eq!(id(&app.post(LEGACY, &body)), server);
}

#[test]
fn a_second_install_keeps_or_replaces_the_agent_token() {
    let app = behind_a_proxy();
    let machine = Machine::new(1);
    let mut used = Vec::new();
    for agent in [AGENT, AGENT, ANOTHER] {
        app.clock.advance(60);
        let token = installed(&app, &machine).token;
        let body = with(registration(&token, &machine.public_ip), "agent_token", agent);
        let server = id(&post_from(&app, &machine.public_ip, &body));
        // Also on a server that has heard of the install before this one only.
        assert_eq!(check_in(&app, &server, agent), 200, "{agent}");
        for old in &used {
            assert_eq!(
                post_from(&app, &machine.public_ip, old).told(),
                (403, "credential_used".into())
            );
        }
        used.push(body);
    }
    let server = id(&post_from(&app, &machine.public_ip, &used[2]));
    assert_eq!((check_in(&app, &server, AGENT), check_in(&app, &server, ANOTHER)), (401, 200));
}

#[test]
fn tickets_access_tokens_and_the_master_token_bring_agent_tokens_too() {
    let app = behind_a_proxy();
    let (_, access) = enrolling(&app, json!({"addresses": ["8.8.8.8"]}));
    let ticket = ask_from(&app, "8.8.8.8").data("ticket");
    for (token, ip, again) in
        [(&ticket, "8.8.8.8", 403), (&access, "8.8.4.4", 200), (&app.master(), "1.1.1.1", 200)]
    {
        let body = with(registration(token, ip), "agent_token", AGENT);
        let server = id(&app.post(V2, &body));
        assert_eq!(id(&app.post(LEGACY, &body)), server);
        assert_eq!((check_in(&app, &server, AGENT), check_in(&app, &server, ANOTHER)), (200, 401));
        let other = app.post(V2, &with(body, "agent_token", ANOTHER));
        assert_eq!(other.status, again, "{}", other.text);
    }
}

#[test]
fn an_agent_token_of_a_wrong_form_is_refused_before_anything_is_used_up() {
    let app = TestApp::start();
    let machine = Machine::new(1);
    let token = installed(&app, &machine).token;
    let body = registration(&token, &machine.public_ip);
    let forms =
        [json!(""), json!("ipa_"), json!(AGENT[4..]), json!(AGENT.to_uppercase()), json!([])];
    let (long, other) = (json!(format!("{AGENT}0")), json!(AGENT.replace("ipa_", "ipt_")));
    for form in forms.into_iter().chain([long, other]) {
        let body = with(body.clone(), "agent_token", form.clone());
        let refused = app.post(V2, &body);
        assert_eq!(refused.told(), (422, "validation_error".into()), "{form}");
        assert!(refused.json()["error"]["message"].as_str().unwrap().starts_with("agent_token"));
        let refused = app.post(LEGACY, &body);
        assert!(refused.status == 400 && refused.text.contains("agent_token"), "{}", refused.text);
    }
    id(&app.post(V2, &with(body, "agent_token", AGENT)));
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
    let app = behind_a_proxy();
    let machine = Machine::new(1);
    let first = installed(&app, &machine);
    let server =
        id(&post_from(&app, &machine.public_ip, &registration(&first.token, &machine.public_ip)));
    app.settle();
    app.clock.advance(60);
    let second = installed(&app, &machine);
    let again =
        post_from(&app, &machine.public_ip, &registration(&second.token, &machine.public_ip));
    assert_eq!(id(&again), server);
    app.settle();
    let old = post_from(&app, &machine.public_ip, &registration(&first.token, &machine.public_ip));
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

/// An access token to enrol, with this address in its list: its number and its text.
fn enrolling(app: &TestApp, more: Value) -> (u64, String) {
    let mut body = json!({"name": "office", "role": "enrol"});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    let request = app.client.post(format!("{}/admin/tokens", app.admin)).bearer_auth(app.master());
    let created = send(request.body(body.to_string()));
    assert_eq!(created.status, 201, "{}", created.text);
    let text = created.data("token");
    wait_until("all servers know the token", || {
        (0..3 * app.servers()).all(|_| app.get_as(&text, "/status?limit=1").status == 200)
    });
    if app.servers() > 1 {
        // One that did not know it yet has counted it as wrong. This must not slow what follows.
        app.clock.advance(60);
    }
    (created.json()["data"]["id"].as_u64().unwrap(), text)
}

/// A server behind a proxy, so that a request can come from any address.
fn behind_a_proxy() -> TestApp {
    TestApp::start_with(|c| c.push(("server.trusted_proxies", "127.0.0.1".into())))
}

/// Registers as a machine does: from its own address.
fn post_from(app: &TestApp, address: &str, body: &Value) -> Answer {
    let request = app.client.post(format!("{}{V2}", app.url));
    send(request.header("x-forwarded-for", address).body(body.to_string()))
}

#[test]
fn a_strangers_install_takes_no_server_over() {
    let app = behind_a_proxy();
    let (victim, stranger) =
        (Machine::new(1), Machine { public_ip: Machine::new(1).public_ip, ..Machine::new(2) });
    let (_, office) = enrolling(&app, json!({}));
    let first = installed(&app, &victim).token;
    let body = with(registration(&first, &victim.public_ip), "agent_token", AGENT);
    let server = id(&post_from(&app, &victim.public_ip, &body));
    let of_token = id(&app.post(V2, &registration(&office, "9.9.9.9")));
    app.settle();
    app.clock.advance(60);
    // Everybody gets a code, and may name any address.
    let other = registration(&installed(&app, &stranger).token, &victim.public_ip);
    let vouched = registration(&office, &victim.public_ip);
    for (from, body) in [("1.0.0.1", &other), ("1.0.0.1", &vouched)] {
        let refused = post_from(&app, from, body);
        assert_eq!(refused.told(), (403, "server_of_another_token".into()));
    }
    assert_eq!(check_in(&app, &server, AGENT), 200, "it checks in as before");
    // A machine cannot move its server away from the token that has enrolled it.
    let own = Machine { public_ip: "9.9.9.9".into(), ..Machine::new(3) };
    let body = registration(&installed(&app, &own).token, "9.9.9.9");
    let refused = post_from(&app, "9.9.9.9", &body);
    assert_eq!(refused.told(), (403, "server_of_another_token".into()));
    assert_eq!(check_in(&app, &of_token, &office), 200);
    // The address shows that it is the machine.
    assert_eq!(id(&post_from(&app, &victim.public_ip, &other)), server);
}

#[test]
fn repeated_registrations_with_a_token_are_no_entries_and_count_as_check_ins() {
    let app = TestApp::start();
    let body = registration(&app.master(), "9.9.9.9");
    let server = id(&app.post(LEGACY, &body));
    app.clock.advance(60);
    for path in [LEGACY, V2, LEGACY] {
        assert_eq!(id(&app.post(path, &body)), server);
    }
    assert_eq!(entries(&app, "server_registered"), 1);
    wait_until("the check-in is known", || {
        let listed = app.get_as(&app.master(), "/status").json();
        listed["servers"][0]["last_checkin"] != listed["servers"][0]["registered_at"]
    });
}

const ISSUE: &str = "/api/v2/install-tickets/issue";

/// Asks for a ticket as the main stack's installer does: from its own address, with `{}`.
fn ask_from(app: &TestApp, address: &str) -> Answer {
    let request = app.client.post(format!("{}{ISSUE}", app.url));
    send(request.header("x-forwarded-for", address).body("{}"))
}

fn authorize_from(app: &TestApp, address: &str) -> Answer {
    let request = app.client.get(format!("{}/authorize", app.url));
    send(request.header("x-forwarded-for", address))
}

#[test]
fn a_pre_authorised_address_gets_a_ticket_that_registers_it_at_both_routes() {
    let app = behind_a_proxy();
    let (client, _) = enrolling(&app, json!({"addresses": ["8.8.8.8"]}));
    let asked = ask_from(&app, "8.8.8.8");
    assert_eq!(asked.status, 201, "{}", asked.text);
    let ticket = asked.data("ticket");
    let expected = format!(
        "{{\"data\":{{\"ticket\":\"{ticket}\",\"client\":{{\"id\":{client},\"name\":\"office\"}},\
         \"ip\":\"8.8.8.8\",\"ttl_seconds\":600}},\"meta\":{{\"message\":\"Install ticket issued\"}}}}"
    );
    assert_eq!(asked.text, expected);
    assert!(ticket.len() == 52 && ticket.starts_with("itk_"), "{ticket}");
    assert_eq!(asked.header("cache-control"), "no-store");
    let body = registration(&ticket, "8.8.8.8");
    let first = id(&app.post(V2, &body));
    app.settle();
    assert_eq!(id(&app.post(LEGACY, &body)), first, "the same ticket after a lost answer");
    assert_eq!(entries(&app, "server_registered"), 1);
    // What the agent keeps as its credential.
    for token in [ticket.as_str(), ""] {
        let path = format!("/api/v2/servers/{first}/check-in");
        assert_eq!(app.post_as(token, &path, &json!({})).status, 200);
    }
    let app = app.restart();
    assert_eq!(id(&app.post(V2, &body)), first);
}

#[test]
fn authorize_gives_a_ticket_to_a_listed_address_and_404_to_any_other() {
    let app = behind_a_proxy();
    let (client, _) = enrolling(&app, json!({"addresses": ["8.8.8.8", "2606:4700::1111"]}));
    for address in ["8.8.8.8", "2606:4700::1111"] {
        let answer = authorize_from(&app, address);
        let json = answer.json();
        let ticket = json["token"].as_str().unwrap().to_owned();
        let expected = format!(
            "{{\"authorized\":true,\"token\":\"{ticket}\",\"client\":\"office\",\
             \"client_id\":{client},\"ip\":\"{address}\"}}"
        );
        assert_eq!((answer.status, &answer.text), (200, &expected));
        id(&app.post(LEGACY, &registration(&ticket, address)));
    }
    let other = authorize_from(&app, "8.8.4.4");
    let json = other.json();
    assert_eq!((other.status, &json["error"]), (404, &json!("IP not pre-authorized")));
    assert_eq!(json["ip"], json!("8.8.4.4"));
    assert!(json["message"].is_string());
    assert_eq!(ask_from(&app, "8.8.4.4").told(), (401, "unauthorized".into()));
}

#[test]
fn no_ticket_is_made_for_an_address_at_which_no_server_can_register() {
    let app = behind_a_proxy();
    let (_, text) = enrolling(&app, json!({"addresses": ["10.0.0.1", "fd12::1"]}));
    let words = app.post(LEGACY, &registration(&text, "10.0.0.1")).json()["error"].clone();
    for address in ["10.0.0.1", "fd12::1"] {
        let refused = authorize_from(&app, address);
        assert_eq!((refused.status, &refused.json()["message"]), (404, &words), "{address}");
        assert_eq!(refused.json()["error"], "IP not pre-authorized");
        let refused = ask_from(&app, address);
        assert_eq!(refused.told(), (422, "validation_error".into()), "{address}");
        assert_eq!(refused.json()["error"]["message"], words, "{address}");
        let refused = app.post_as(&text, ISSUE, &json!({"ip": address}));
        assert_eq!(refused.json()["error"]["message"], words, "{address}");
    }
    let unlisted = authorize_from(&app, "10.0.0.2");
    assert_eq!((unlisted.status, &unlisted.json()["message"]), (404, &words));
}

#[test]
fn a_ticket_is_good_once_for_its_address_and_its_time() {
    let app = behind_a_proxy();
    enrolling(&app, json!({"addresses": ["8.8.8.8"]}));
    let [first, second] = [(); 2].map(|()| ask_from(&app, "8.8.8.8").data("ticket"));
    assert_ne!(first, second, "a new ticket a call");
    let elsewhere = registration(&first, "8.8.4.4");
    assert_eq!(app.post(V2, &elsewhere).told(), (401, "unauthorized".into()));
    assert_eq!(app.post(LEGACY, &elsewhere).status, 403);
    let changed = registration(&first.replace("itk_0", "itk_1"), "8.8.8.8");
    assert_eq!(app.post(V2, &changed).told(), (401, "unauthorized".into()));
    let server = id(&app.post(V2, &registration(&second, "8.8.8.8")));
    app.settle();
    let used = app.post(V2, &registration(&first, "8.8.8.8"));
    assert_eq!(used.told(), (403, "credential_used".into()), "an earlier one is used up");
    app.clock.advance(600);
    let over = app.post(V2, &registration(&second, "8.8.8.8"));
    assert_eq!(over.told(), (401, "unauthorized".into()));
    assert!(over.text.contains("This ticket has expired."), "{}", over.text);
    let third = ask_from(&app, "8.8.8.8").data("ticket");
    assert_eq!(id(&app.post(V2, &registration(&third, "8.8.8.8"))), server);
}

#[test]
fn tickets_end_with_their_access_token_and_count_for_its_bound() {
    let app = behind_a_proxy();
    let bound = json!({"addresses": ["8.8.8.8", "8.8.4.4"], "max_servers": 1});
    let (client, _) = enrolling(&app, bound);
    let [one, two] = ["8.8.8.8", "8.8.4.4"].map(|ip| (ip, ask_from(&app, ip).data("ticket")));
    id(&app.post(V2, &registration(&one.1, one.0)));
    app.settle();
    let revoke = format!("{}/admin/tokens/{client}/revoke", app.admin);
    assert_eq!(send(app.client.post(revoke).bearer_auth(app.master()).body("{}")).status, 200);
    wait_until("no server makes tickets of it", || {
        (0..3 * app.servers()).all(|_| ask_from(&app, "8.8.8.8").status == 401)
    });
    assert_eq!(app.post(V2, &registration(&two.1, two.0)).told(), (401, "unauthorized".into()));
    assert_eq!(authorize_from(&app, "8.8.4.4").status, 404);
}

#[test]
fn whoever_shows_a_token_gets_tickets_for_other_addresses() {
    let app = behind_a_proxy();
    let (client, token) = enrolling(&app, json!({}));
    let ask = |token: &str, body: Value| app.post_as(token, ISSUE, &body);
    let own = ask(&token, json!({"ip": "8.8.8.8", "ttl_seconds": 60}));
    assert_eq!(own.status, 201, "{}", own.text);
    assert_eq!(own.json()["data"]["ttl_seconds"], json!(60));
    id(&app.post(V2, &registration(&own.data("ticket"), "8.8.8.8")));
    let by_operator = ask(&app.master(), json!({"ip": "8.8.4.4", "client_id": client}));
    assert_eq!(by_operator.status, 201, "{}", by_operator.text);
    id(&app.post(LEGACY, &registration(&by_operator.data("ticket"), "8.8.4.4")));
    for (token, body, field) in [
        (&token, json!({"ip": "10.0.0.1"}), "ip"),
        (&token, json!({"ip": []}), "ip"),
        (&token, json!({"ip": "8.8.8.8", "ttl_seconds": 59}), "ttl_seconds"),
        (&token, json!({"ip": "8.8.8.8", "ttl_seconds": "3601"}), "ttl_seconds"),
        (&token, json!({"ip": "8.8.8.8", "client_id": 99}), "client_id"),
        (&app.master(), json!({"ip": "8.8.8.8"}), "client_id"),
        (&app.master(), json!({"ip": "8.8.8.8", "client_id": "x"}), "client_id"),
    ] {
        let answer = ask(token, body.clone());
        assert_eq!(answer.told(), (422, "validation_error".into()), "{body}");
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with(field), "{message}");
    }
    assert_eq!(ask("wrong", json!({})).told(), (401, "unauthorized".into()));
}

#[test]
fn tickets_without_a_token_are_limited_by_address_whatever_is_answered() {
    let app = TestApp::start_with(|c| {
        c.push(("server.trusted_proxies", "127.0.0.1".into()));
        c.push(("limits.ticket_per_ip_hour", "2".into()));
    });
    let (_, office) = enrolling(&app, json!({"addresses": ["8.8.8.8"]}));
    let granted = ask_from(&app, "8.8.8.8");
    assert_eq!(granted.status, 201);
    assert_eq!(granted.header("ratelimit-policy"), "\"ticket_per_ip_hour\";q=2;w=3600");
    assert_eq!(authorize_from(&app, "8.8.8.8").status, 200);
    let refused = ask_from(&app, "8.8.8.8");
    assert_eq!(refused.told(), (429, "rate_limit_exceeded".into()));
    assert!(!refused.header("retry-after").is_empty());
    let refused = authorize_from(&app, "8.8.8.8");
    assert_eq!((refused.status, refused.json()["error"].is_string()), (429, true));
    for status in [404, 404, 429] {
        assert_eq!(authorize_from(&app, "8.8.4.4").status, status);
    }
    // A token's holder does not pay for requests without one.
    let request = app.client.post(format!("{}{ISSUE}", app.url)).bearer_auth(&office);
    let asked = send(request.header("x-forwarded-for", "8.8.4.4").body("{}"));
    assert_eq!(asked.status, 201, "{}", asked.text);
}
