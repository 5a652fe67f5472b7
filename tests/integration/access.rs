//! Access tokens: who may do what, on both listeners, and how tokens are made and ended.

use crate::harness::{Answer, TestApp, send, wait_until};
use iptunnel_domain::access::Role;
use iptunnel_server::http::access::{OPERATORS, PUBLIC, Rule};
use reqwest::Method;
use reqwest::blocking::Client;
use reqwest::redirect::Policy;
use serde_json::{Value, json};

/// A token as a test knows it.
#[derive(Clone, Debug)]
pub struct Token {
    pub id: u64,
    pub text: String,
}

fn admin(app: &TestApp, token: &str, method: &str, path: &str, body: &Value) -> Answer {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let request = app.client.request(method, format!("{}{path}", app.admin));
    send(request.bearer_auth(token).body(body.to_string()))
}

pub fn by_master(app: &TestApp, method: &str, path: &str, body: &Value) -> Answer {
    admin(app, &app.master(), method, path, body)
}

/// Creates a token, and waits until every server knows it.
pub fn create(app: &TestApp, body: &Value) -> Token {
    let created = by_master(app, "POST", "/admin/tokens", body);
    assert_eq!(created.status, 201, "{}", created.text);
    let id = created.json()["data"]["id"].as_u64().unwrap();
    let token = Token { id, text: created.data("token") };
    wait_for(app, &token, true);
    token
}

pub fn with_role(app: &TestApp, role: Role) -> Token {
    create(app, &json!({"name": format!("the {}", role.name()), "role": role.name()}))
}

/// Waits until every server accepts a token, or none does. A token that is not good is refused as such,
/// before its role is looked at.
pub fn wait_for(app: &TestApp, token: &Token, good: bool) {
    wait_until("all servers know the token", || {
        (0..3 * app.servers()).all(|_| {
            let answer = app.get_as(&token.text, "/status?limit=1");
            (answer.status == 200 || answer.text.contains("This token has the role")) == good
        })
    });
    if !good {
        // What was refused here must not slow what follows.
        app.clock.advance(60);
    }
}

pub fn change(app: &TestApp, token: &Token, body: &Value) -> Answer {
    by_master(app, "PATCH", &format!("/admin/tokens/{}", token.id), body)
}

pub fn revoke(app: &TestApp, token: &Token) -> Answer {
    by_master(app, "POST", &format!("/admin/tokens/{}/revoke", token.id), &json!({}))
}

fn browser() -> Client {
    Client::builder().no_proxy().redirect(Policy::none()).build().unwrap()
}

fn login(app: &TestApp, token: &str) -> Answer {
    let request = browser().post(format!("{}/console/login", app.admin));
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    send(request.body(format!("token={token}")))
}

/// A session of the console: the beginning of its addresses, and its cookie.
fn session(app: &TestApp, token: &str) -> (String, String) {
    let opened = login(app, token);
    assert_eq!(opened.status, 303, "{}", opened.text);
    let base = opened.header("location").strip_suffix("/now").unwrap().to_owned();
    (base, opened.header("set-cookie").split(';').next().unwrap().to_owned())
}

fn page(app: &TestApp, (base, cookie): &(String, String), path: &str) -> Answer {
    send(browser().get(format!("{}{base}/{path}", app.admin)).header("cookie", cookie))
}

fn form(app: &TestApp, (base, cookie): &(String, String), path: &str, body: &str) -> Answer {
    let request = browser().post(format!("{}{base}/{path}", app.admin)).header("cookie", cookie);
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    send(request.body(body.to_owned()))
}

/// Who sends a request in the walk over all routes.
#[derive(Clone)]
enum Who {
    Nobody,
    Master,
    Role(Role, Token),
    Revoked(Token),
    Expired(Token),
}

impl Who {
    fn text(&self, app: &TestApp) -> String {
        match self {
            Self::Nobody => String::new(),
            Self::Master => app.master(),
            Self::Role(_, token) | Self::Revoked(token) | Self::Expired(token) => {
                token.text.clone()
            }
        }
    }

    fn may(&self, rule: &Rule) -> bool {
        match self {
            Self::Master => true,
            Self::Role(role, _) => rule.admits(*role),
            Self::Nobody | Self::Revoked(_) | Self::Expired(_) => rule.is_public(),
        }
    }
}

/// The path of a rule, with values that name nothing that exists.
fn path_of(rule: &Rule) -> String {
    rule.path
        .replace("{name}", "page.css")
        .replace("{product}", "slowdns")
        .replace("{server_id}", "ffffffffffffffff")
        .replace("{verb}", "revoke")
        .replace("{code}", "ffffffffffffffffffffffffffffffff")
        .replace("{page}", "now")
        .replace("{id}", "99")
}

/// Sends the request of a rule. Returns the answer, and whether the caller was denied.
fn try_rule(app: &TestApp, listener: &str, rule: &Rule, who: &Who) -> (Answer, bool) {
    let token = who.text(app);
    let body = if rule.in_body {
        json!({"token": if token.is_empty() { "x".to_owned() } else { token.clone() }, "ip": "9.9.9.9"})
    } else {
        json!({"server_id": "ffffffffffffffff"})
    };
    let method = Method::from_bytes(rule.method.as_bytes()).unwrap();
    let request = browser().request(method, format!("{listener}{}", path_of(rule)));
    let request = if !token.is_empty() { request.bearer_auth(&token) } else { request };
    let answer = send(request.body(body.to_string()));
    // A check-in looks at the credential itself; it is open to everybody without one.
    let denied = match answer.status {
        401 => true,
        403 => {
            let text = &answer.text;
            let words = ["This token", "The token", "A valid token"];
            text.contains("\"forbidden\"") || words.iter().any(|words| text.contains(words))
        }
        _ => false,
    };
    (answer, denied)
}

/// The routes that answer a request without an object like a path that does not exist.
const MAY_BE_MISSING: [&str; 5] = [
    "/admin/sessions/{id}/end",
    "/authorize",
    "/version.json",
    "/api/v2/version",
    "/iptunnel-install.sh",
];

fn everybody(app: &TestApp) -> Vec<Who> {
    let mut all = vec![Who::Nobody, Who::Master];
    all.extend(Role::ALL.map(|role| Who::Role(role, with_role(app, role))));
    let end = "2030-03-17T17:46:50Z";
    let expired = create(app, &json!({"name": "expired", "role": "admin", "expires_at": end}));
    app.clock.advance(10);
    wait_for(app, &expired, false);
    let revoked = create(app, &json!({"name": "revoked", "role": "admin"}));
    assert_eq!(revoke(app, &revoked).status, 200);
    wait_for(app, &revoked, false);
    all.extend([Who::Revoked(revoked), Who::Expired(expired)]);
    all
}

#[test]
fn every_route_admits_exactly_the_roles_of_the_table() {
    let app = TestApp::start();
    let everybody = everybody(&app);
    for (listener, rules) in [(app.url.clone(), PUBLIC), (app.admin.clone(), OPERATORS)] {
        for rule in rules.iter().filter(|rule| !rule.path.contains("{key}")) {
            for who in &everybody {
                // Wrong tokens are slowed after some in a minute.
                app.clock.advance(60);
                let (answer, denied) = try_rule(&app, &listener, rule, who);
                let nothing = "There is nothing at this address";
                let missing = answer.status == 404 && answer.text.contains(nothing);
                assert!(!missing || MAY_BE_MISSING.contains(&rule.path), "{rule} is not served");
                assert_eq!(denied, !who.may(rule), "{rule}: {} {}", answer.status, answer.text);
                if let (Who::Role(..), true) = (who, denied) {
                    assert_eq!(answer.status, 403, "{rule}: a valid token of another role");
                }
                if let (Who::Nobody, true) = (who, denied) {
                    let is_legacy = ["/register", "/revoke", "/status"].contains(&rule.path);
                    assert_eq!(answer.status, if is_legacy { 403 } else { 401 }, "{rule}");
                }
            }
        }
    }
}

#[test]
fn every_page_admits_exactly_the_roles_of_the_table() {
    let app = TestApp::start();
    let operators = [Role::View, Role::Operate, Role::Admin];
    let mut sessions: Vec<_> =
        operators.map(|role| (Some(role), session(&app, &with_role(&app, role).text))).into();
    sessions.push((None, session(&app, &app.master())));
    let rules = OPERATORS.iter().filter(|rule| rule.path.contains("{key}"));
    for rule in rules.filter(|rule| !rule.path.ends_with("/logout")) {
        for (role, session) in &sessions {
            let path = path_of(rule).replace("/console/{key}/", "");
            let answer = match rule.method {
                "GET" => page(&app, session, &path),
                _ => form(
                    &app,
                    session,
                    &path,
                    "id=99&server_id=ffffffffffffffff&back=x&tag=x&key=x",
                ),
            };
            let denied = answer.status == 403 && answer.text.contains("This token has the role");
            let may = role.is_none_or(|role| rule.admits(role));
            assert_eq!(denied, !may, "{rule} {role:?}: {} {}", answer.status, answer.text);
            assert_ne!(answer.header("location"), "/console/login", "{rule}");
        }
    }
    let enrol = login(&app, &with_role(&app, Role::Enrol).text);
    assert!(enrol.status == 403 && enrol.text.contains("role enrol"), "{}", enrol.text);
}

#[test]
fn the_table_in_the_documentation_is_the_one_in_the_program() {
    let guide = include_str!("../../docs/access.md");
    for (name, rules) in [("The public listener", PUBLIC), ("The operators' listener", OPERATORS)] {
        let mut table = format!("### {name}\n\n| route | least role |\n|---|---|\n");
        for rule in rules {
            table += &format!("| `{rule}` | {} |\n", rule.words());
        }
        assert!(guide.contains(&table), "docs/access.md must have this table:\n{table}");
    }
}

#[test]
fn the_reference_names_the_roles_of_each_operation() {
    let document = TestApp::start().get("/api/v2/openapi.json").json();
    let mut compared = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let rule = Rule::of(PUBLIC, &method.to_uppercase(), path).unwrap();
            let roles = if rule.in_body { &[] } else { rule.least };
            let named: Vec<_> =
                roles.iter().map(|role| json!({"access_token": [role.name()]})).collect();
            let security = operation["security"].as_array().unwrap();
            let with_token = |way: &&Value| way.get("access_token").is_some();
            let found: Vec<_> = security.iter().filter(with_token).cloned().collect();
            assert_eq!(found, named, "{rule}");
            compared += named.len();
        }
    }
    assert!(compared >= 5, "{compared}");
}

#[test]
fn a_token_is_shown_once_and_described_ever_after() {
    let app = TestApp::start();
    let body = json!({"name": "fleet", "role": "enrol", "networks": ["127.0.0.0/8", "203.0.113.0/24"],
        "addresses": ["203.0.113.7"], "max_servers": 5, "expires_at": "2031-01-01"});
    let token = create(&app, &body);
    assert!(token.text.starts_with("ipt_") && token.text.len() == 42);
    let list = by_master(&app, "GET", "/admin/tokens", &json!({}));
    assert!(!list.text.contains(&token.text));
    let row = list.json()["data"]["tokens"][0].clone();
    for (field, value) in [
        ("name", json!("fleet")),
        ("role", json!("enrol")),
        ("state", json!("good")),
        ("expires_at", json!("2031-01-01T00:00:00+00:00")),
        ("networks", json!(["127.0.0.0/8", "203.0.113.0/24"])),
        ("addresses", json!(["203.0.113.7"])),
        ("max_servers", json!(5)),
        ("servers", json!(0)),
    ] {
        assert_eq!(row[field], value, "{field} in {row}");
    }
    let changed = change(&app, &token, &json!({"name": "west", "expires_at": null}));
    assert_eq!((changed.status, changed.data("name")), (200, "west".into()));
    assert_eq!(changed.json()["data"]["expires_at"], Value::Null);
    let log = by_master(&app, "GET", "/admin/audit?text=west", &json!({})).json();
    let entry = &log["data"]["entries"][0];
    assert_eq!(entry["action"], "token_changed");
    let detail = entry["detail"].as_str().unwrap();
    assert!(detail.contains("name: fleet -> west") && detail.contains("-> never"), "{detail}");
}

#[test]
fn a_bad_field_of_a_token_is_named_and_nothing_is_made() {
    let app = TestApp::start();
    let with = |field: &str, value: Value| {
        let mut body = json!({"name": "a", "role": "view"});
        body[field] = value;
        body
    };
    for (body, field) in [
        (json!({"role": "view"}), "name is required"),
        (json!({"name": "a"}), "role is required"),
        (with("name", json!("a\nb")), "name must"),
        (with("name", json!("x".repeat(65))), "name must"),
        (with("name", json!("12")), "name must"),
        (with("role", json!("root")), "role must"),
        (with("expires_at", json!("2020-01-01")), "expires_at must"),
        (with("expires_at", json!("soon")), "expires_at must"),
        (with("networks", json!(["10.0.0.1/8"])), "networks must"),
        (with("networks", json!(vec!["10.0.0.0/8"; 65])), "networks may have at most 64 entries."),
        (with("addresses", json!(["1.2.3.4"])), "addresses are"),
        (with("max_servers", json!(1)), "max_servers is"),
        (with("max_severs", json!(1)), "max_severs is not known"),
    ] {
        let answer = by_master(&app, "POST", "/admin/tokens", &body);
        let message = answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert!(answer.status == 422 && message.starts_with(field), "{body}: {}", answer.text);
    }
    let broken = send(
        app.client.post(format!("{}/admin/tokens", app.admin)).bearer_auth(app.master()).body("[]"),
    );
    assert_eq!(broken.told(), (400, "invalid_json".into()));
    assert_eq!(
        by_master(&app, "PATCH", "/admin/tokens/7", &json!({})).told(),
        (404, "token_not_found".into())
    );
    let list = by_master(&app, "GET", "/admin/tokens", &json!({})).json();
    assert_eq!(list["data"]["tokens"], json!([]));
}

#[test]
fn a_mistyped_token_and_one_that_is_not_good_are_told_why() {
    let app = TestApp::start();
    let token = create(&app, &json!({"name": "a", "role": "view", "expires_at": "2030-03-18"}));
    let message = |text: &str| {
        app.clock.advance(60);
        let answer = admin(&app, text, "GET", "/admin/now", &json!({}));
        assert_eq!(answer.status, 401, "{}", answer.text);
        answer.json()["error"]["message"].as_str().unwrap().to_owned()
    };
    let last = token.text.chars().last().unwrap();
    let other = if last == 'a' { 'b' } else { 'a' };
    let mistyped = format!("{}{other}", &token.text[..41]);
    assert!(message(&mistyped).contains("mistyped"));
    assert!(message(&token.text[..40]).contains("mistyped"));
    assert_eq!(message("no-such-token"), "The token is not valid.");
    assert_eq!(change(&app, &token, &json!({"networks": ["10.0.0.0/8"]})).status, 200);
    wait_for(&app, &token, false);
    assert_eq!(message(&token.text), "This token may not be used from this address.");
    assert_eq!(change(&app, &token, &json!({"networks": ["127.0.0.1"]})).status, 200);
    wait_for(&app, &token, true);
    app.clock.advance(86_400);
    assert_eq!(message(&token.text), "This token has expired.");
    revoke(&app, &token);
    wait_for(&app, &token, false);
    assert_eq!(message(&token.text), "This token was revoked.");
}

#[test]
fn after_a_rotation_the_old_secret_is_good_for_its_grace() {
    let app = TestApp::start();
    let token = with_role(&app, Role::View);
    let old = session(&app, &token.text);
    let rotate = |grace: u64| {
        let path = format!("/admin/tokens/{}/rotate", token.id);
        let rotated = by_master(&app, "POST", &path, &json!({"grace_seconds": grace}));
        assert_eq!(rotated.status, 200, "{}", rotated.text);
        Token { id: token.id, text: rotated.data("token") }
    };
    let new = rotate(60);
    wait_for(&app, &new, true);
    wait_for(&app, &token, true);
    assert_eq!(page(&app, &old, "codes").status, 200);
    app.clock.advance(60);
    wait_for(&app, &token, false);
    assert_eq!(page(&app, &old, "codes").header("location"), "/console/login");
    let newest = rotate(0);
    wait_for(&app, &newest, true);
    wait_for(&app, &new, false);
    let path = format!("/admin/tokens/{}/rotate", token.id);
    let long = by_master(&app, "POST", &path, &json!({"grace_seconds": 2_592_001}));
    assert_eq!(long.told(), (422, "validation_error".into()));
}

#[test]
fn a_revoked_token_binds_everywhere_within_a_second_and_ends_its_sessions() {
    let app = TestApp::start();
    let token = with_role(&app, Role::Operate);
    let session = session(&app, &token.text);
    assert_eq!(page(&app, &session, "servers").status, 200);
    assert_eq!(revoke(&app, &token).data("state"), "revoked");
    let begun = std::time::Instant::now();
    let mut last_good = begun.elapsed();
    wait_until("no server accepts it", || {
        (0..3 * app.servers()).all(|_| {
            let is_good = app.get_as(&token.text, "/status?limit=1").status == 200;
            if is_good {
                last_good = begun.elapsed();
            }
            !is_good
        })
    });
    // Within a second, and nine more for a busy machine.
    assert!(last_good.as_secs() < 10, "{last_good:?}");
    app.clock.advance(60);
    assert_eq!(page(&app, &session, "servers").header("location"), "/console/login");
    assert_eq!(revoke(&app, &token).status, 200, "a repeat changes nothing");
    let answer = change(&app, &token, &json!({"name": "again"}));
    assert!(answer.status == 422 && answer.text.contains("revoked"), "{}", answer.text);
    // Its name is free again.
    with_role(&app, Role::Operate);
}

#[test]
fn tokens_and_their_last_uses_survive_a_restart() {
    let app = TestApp::start();
    let (view, enrol) = (with_role(&app, Role::View), with_role(&app, Role::Enrol));
    app.clock.advance(3600);
    assert_eq!(app.get_as(&view.text, "/status").status, 200);
    let app = app.restart();
    let list = by_master(&app, "GET", "/admin/tokens", &json!({})).json();
    let used: Vec<_> =
        list["data"]["tokens"].as_array().unwrap().iter().map(|row| &row["last_used_at"]).collect();
    assert_eq!(used[0], "2030-03-17T18:46:40+00:00", "{list}");
    wait_for(&app, &enrol, true);
    wait_for(&app, &view, true);
}

#[test]
fn an_enrolling_token_registers_sees_and_checks_in_its_own_servers_alone() {
    let app = TestApp::start();
    let (one, two) = (
        with_role(&app, Role::Enrol),
        create(&app, &json!({"name": "the other", "role": "enrol"})),
    );
    let register =
        |token: &str, ip: &str| app.post("/register", &json!({"token": token, "ip": ip}));
    let id = |answer: &Answer| answer.json()["server_id"].as_str().unwrap().to_owned();
    let (first, second) = (register(&one.text, "9.9.9.1"), register(&two.text, "9.9.9.2"));
    assert_eq!((first.status, second.status), (200, 200), "{} {}", first.text, second.text);
    register(&app.master(), "9.9.9.3");
    app.settle();
    let seen = |token: &str| -> Vec<String> {
        let list = app.get_as(token, "/status").json();
        let servers = list["servers"].as_array().unwrap();
        assert_eq!(list["count"], servers.len(), "{list}");
        servers.iter().map(|server| server["ip"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(seen(&one.text), ["9.9.9.1"]);
    assert_eq!(seen(&two.text), ["9.9.9.2"]);
    assert_eq!(seen(&app.master()).len(), 3);
    let check_in =
        |token: &str, id: &str| app.post_as(token, "/checkin", &json!({"server_id": id})).status;
    assert_eq!(check_in(&one.text, &id(&first)), 200);
    assert_eq!(check_in(&one.text, &id(&second)), 401);
    assert_eq!(check_in(&app.master(), &id(&second)), 200);
    // A server goes on with the token that it registered with, whatever becomes of that.
    revoke(&app, &one);
    wait_for(&app, &one, false);
    assert_eq!(check_in(&one.text, &id(&first)), 200);
    assert_eq!(register(&one.text, "9.9.9.4").status, 403);
    let row =
        by_master(&app, "GET", "/admin/tokens", &json!({})).json()["data"]["tokens"][0].clone();
    assert_eq!(row["servers"], 1, "{row}");
    let path = format!("/admin/tokens/{}/revoke", one.id);
    let with_servers = by_master(&app, "POST", &path, &json!({"servers": true})).json();
    assert_eq!(with_servers["data"]["servers_revoked"], 1, "{with_servers}");
    app.settle();
    assert_eq!(check_in("", &id(&first)), 403);
    assert_eq!(check_in(&two.text, &id(&second)), 200);
}

#[test]
fn an_enrolling_token_has_no_more_servers_than_it_may() {
    let app = TestApp::start();
    let body = json!({"name": "fleet", "role": "enrol", "max_servers": 1});
    let token = create(&app, &body);
    let register =
        |ip: &str| app.post("/register", &json!({"token": token.text, "ip": ip, "hostname": "a"}));
    let first = register("9.9.9.1");
    assert_eq!(first.status, 200, "{}", first.text);
    app.settle();
    let second = register("9.9.9.2");
    assert!(second.status == 403 && second.text.contains("as many servers"), "{}", second.text);
    let body = json!({"token": token.text, "ip": "9.9.9.2"});
    let second = app.post("/api/v2/servers/register", &body);
    assert_eq!(second.told(), (403, "too_many_servers".into()), "{}", second.text);
    assert_eq!(register("9.9.9.1").status, 200, "the same server again");
    let body = json!({"server_id": first.json()["server_id"]});
    assert_eq!(app.post_as(&app.master(), "/revoke", &body).status, 200);
    app.settle();
    assert_eq!(register("9.9.9.2").status, 200, "a revoked one does not count");
}

#[test]
fn the_audit_log_names_the_token_that_did_it() {
    let app = TestApp::start();
    let (operator, enrol) = (with_role(&app, Role::Operate), with_role(&app, Role::Enrol));
    let registered = app.post("/register", &json!({"token": enrol.text, "ip": "9.9.9.1"})).json();
    let id = registered["server_id"].as_str().unwrap().to_owned();
    app.settle();
    let path = format!("/api/v2/servers/{id}/revoke");
    assert_eq!(app.post_as(&operator.text, &path, &json!({})).status, 200);
    let path = format!("/admin/servers/{id}/note");
    admin(&app, &operator.text, "POST", &path, &json!({"note": "gone"}));
    session(&app, &operator.text);
    let chief = with_role(&app, Role::Admin);
    let patch = app.client.patch(format!("{}/admin/config", app.admin)).header("if-match", "*");
    let body = json!({"codes.ttl_seconds": "77"}).to_string();
    assert_eq!(send(patch.bearer_auth(&chief.text).body(body)).status, 200);
    let by = |action: &str| {
        let path = format!("/admin/audit?action={action}");
        let log = by_master(&app, "GET", &path, &json!({})).json();
        log["data"]["entries"][0]["by"].as_str().unwrap_or_default().to_owned()
    };
    for action in ["server_revoked", "server_noted", "logged_in"] {
        assert_eq!(by(action), "the operate", "{action}");
    }
    assert_eq!(by("server_registered"), "the enrol");
    let found = by_master(&app, "GET", "/admin/audit?text=THE+OPERATE", &json!({})).json();
    assert!(found["data"]["entries"].as_array().unwrap().len() >= 3, "{found}");
    let servers = by_master(&app, "GET", "/admin/servers", &json!({})).json();
    assert_eq!(servers["data"]["servers"][0]["enrolled_by"], "the enrol", "{servers}");
    assert_eq!(by("setting_changed"), "the admin");
    assert_eq!(by("token_created"), "master token");
}

#[test]
fn the_console_shows_what_the_role_allows_and_who_is_logged_in() {
    let app = TestApp::start();
    app.post("/register", &json!({"token": app.master(), "ip": "9.9.9.1", "hostname": "ns1"}));
    app.settle();
    let all = [Role::View, Role::Operate, Role::Admin]
        .map(|role| (role, session(&app, &with_role(&app, role).text)));
    for (role, session) in &all {
        let of = |path: &str| page(&app, session, path).text;
        assert!(of("now").contains(&format!("the {}", role.name())), "{role:?}");
        assert_eq!(of("servers").contains("/servers/revoke"), *role != Role::View);
        for (path, form) in [
            ("settings", "name=\"tag\""),
            ("sessions", "/sessions/end"),
            ("access", "/access/create"),
        ] {
            assert_eq!(of(path).contains(form), *role == Role::Admin, "{role:?} {path}");
        }
        let list = of("sessions");
        assert!(all.iter().all(|(role, _)| list.contains(&format!("the {}", role.name()))));
    }
}

#[test]
fn tokens_are_made_changed_and_ended_on_the_page() {
    let app = TestApp::start();
    let person = session(&app, &app.master());
    let made = form(
        &app,
        &person,
        "access/create",
        "name=office&role=view&expires_at=&networks=&max_servers=",
    );
    assert_eq!(made.status, 200, "{}", made.text);
    let secret = |text: &str| {
        let (_, rest) = text.split_once("ipt_").expect("a secret");
        Token { id: 1, text: format!("ipt_{}", &rest[..38]) }
    };
    let token = secret(&made.text);
    wait_for(&app, &token, true);
    assert!(!page(&app, &person, "access").text.contains("ipt_"));
    let again = form(&app, &person, "access/create", "name=office&role=view");
    assert!(again.status == 422 && again.text.contains("name is taken"), "{}", again.text);
    let changed = form(&app, &person, "access/change", "id=1&name=home&networks=127.0.0.0%2F8");
    assert_eq!(changed.status, 303, "{}", changed.text);
    assert_eq!(change(&app, &token, &json!({"expires_at": "2031-05-05T12:30:00Z"})).status, 200);
    let renamed = "id=1&name=home&networks=127.0.0.0%2F8&expires_at=2031-05-05";
    assert_eq!(form(&app, &person, "access/change", renamed).status, 303);
    let shown = page(&app, &person, "access").text;
    assert!(shown.contains("2031-05-05 12:30:00"), "the time of its end stays: {shown}");
    assert!(shown.contains("home") && shown.contains("127.0.0.0/8"), "{shown}");
    let rotated = form(&app, &person, "access/rotate", "id=1&grace_hours=0");
    let new = secret(&rotated.text);
    wait_for(&app, &new, true);
    wait_for(&app, &token, false);
    // The page is loaded again: the form is sent once more.
    let version =
        shown.rsplit("name=\"version\" value=\"").next().unwrap().split('"').next().unwrap();
    let again = format!("id=1&grace_hours=0&version={version}");
    assert_eq!(form(&app, &person, "access/rotate", &again).status, 412);
    wait_for(&app, &new, true);
    assert_eq!(form(&app, &person, "access/revoke", "id=1").status, 303);
    wait_for(&app, &new, false);
}

#[test]
fn a_token_that_logs_in_again_and_again_ends_no_session_of_others() {
    let app = TestApp::start();
    let chief = session(&app, &with_role(&app, Role::Admin).text);
    let view = with_role(&app, Role::View);
    let first = session(&app, &view.text);
    app.clock.advance(1);
    for _ in 0..20 {
        session(&app, &view.text);
    }
    assert_eq!(page(&app, &chief, "now").status, 200);
    assert_eq!(page(&app, &first, "now").header("location"), "/console/login");
    let list = admin(&app, &view.text, "GET", "/admin/sessions", &json!({})).json();
    assert_eq!(list["data"]["sessions"].as_array().unwrap().len(), 21, "{list}");
}

/// The version of a token that the page has in its form.
fn version_on(page: &str, id: u64) -> String {
    let id = format!("name=\"id\" value=\"{id}\"><input type=\"hidden\" name=\"version\" value=\"");
    let (_, rest) = page.split_once(&id).expect("a form with the version of the token");
    rest.split_once('"').unwrap().0.to_owned()
}

#[test]
fn a_form_that_was_opened_before_another_change_changes_nothing() {
    let app = TestApp::start();
    let person = session(&app, &app.master());
    let token = create(&app, &json!({"name": "fleet", "role": "enrol", "max_servers": 5}));
    let version = version_on(&page(&app, &person, "access").text, token.id);
    assert_eq!(change(&app, &token, &json!({"networks": ["127.0.0.1"]})).status, 200);
    let stale = format!("id={}&version={version}&name=fleet&networks=&max_servers=5", token.id);
    let refused = form(&app, &person, "access/change", &stale);
    assert_eq!(refused.status, 412, "{}", refused.text);
    assert!(refused.text.contains("has changed since"), "{}", refused.text);
    let row = |app: &TestApp| {
        let list = by_master(app, "GET", "/admin/tokens", &json!({})).json();
        list["data"]["tokens"][0].clone()
    };
    assert_eq!(row(&app)["networks"], json!(["127.0.0.1/32"]));
    // The form of an operator who has seen that.
    let version = version_on(&refused.text, token.id);
    let fresh = format!("id={}&version={version}&name=west&networks=127.0.0.1", token.id);
    assert_eq!(form(&app, &person, "access/change", &fresh).status, 303);
    let row = row(&app);
    assert_eq!((&row["name"], &row["max_servers"]), (&json!("west"), &json!(5)), "{row}");
}

#[test]
fn a_page_takes_no_token_instead_of_a_session_however_its_path_is_written() {
    let app = TestApp::start();
    let answer = admin(&app, &app.master(), "GET", "/%63onsole/x/access", &json!({}));
    assert!(!answer.text.contains("Access tokens"), "{}", answer.text);
    let request = browser().get(format!("{}/%63onsole/x/access", app.admin));
    let answer = send(request.bearer_auth(app.master()));
    assert_eq!((answer.status, answer.header("location")), (303, "/console/login"));
}

#[test]
fn a_token_takes_the_longest_lists_on_the_page_and_as_json_and_not_much_more() {
    let app = TestApp::start();
    let person = session(&app, &app.master());
    let addresses: Vec<String> =
        (0..1024).map(|n| format!("2001:db8:ffff:ffff:ffff:ffff:ffff:{:x}", 0xf000 + n)).collect();
    create(&app, &json!({"name": "as JSON", "role": "enrol", "addresses": addresses}));
    let list = addresses.join(", ");
    let body = form_urlencoded::Serializer::new(String::new())
        .extend_pairs([("name", "page"), ("role", "enrol"), ("addresses", &list)])
        .finish();
    let made = form(&app, &person, "access/create", &body);
    assert_eq!(made.status, 200, "{} bytes", body.len());
    let long = "x".repeat(70_000);
    let refused = form(&app, &person, "access/create", &format!("name={long}&role=view"));
    assert_eq!(refused.status, 413, "{}", refused.text);
    assert!(refused.text.contains("larger than 64 KiB."), "{}", refused.text);
    let body = json!({"name": "x".repeat(300_000), "role": "view"});
    let refused = by_master(&app, "POST", "/admin/tokens", &body);
    assert_eq!(refused.told(), (413, "request_too_large".into()), "{}", refused.text);
}

#[test]
fn the_page_speaks_of_the_hours_that_were_typed() {
    let app = TestApp::start();
    let person = session(&app, &app.master());
    let token = with_role(&app, Role::View);
    for hours in ["2000", "99999999999999999999", "-1", "x"] {
        let body = format!("id={}&grace_hours={hours}", token.id);
        let refused = form(&app, &person, "access/rotate", &body);
        assert_eq!(refused.status, 422, "{hours}");
        let words = "The hours must be a whole number from 0 to 720.";
        assert!(refused.text.contains(words), "{hours}: {}", refused.text);
    }
}
