//! The routes for servers: registration, check-in, revocation.

use crate::harness::{Answer, TestApp, send, with, without};
use serde_json::{Value, json};

const UNKNOWN: &str = "0123456789abcdef";

fn registration(app: &TestApp) -> Value {
    json!({"token": app.master(), "ip": "8.8.8.8", "hostname": "one.example.com"})
}

/// Registers the server at `ip` and returns its id.
fn registered(app: &TestApp, ip: &str) -> String {
    let answer = app.post("/register", &with(registration(app), "ip", ip));
    assert_eq!(answer.status, 200, "{}", answer.text);
    app.settle();
    answer.json()["server_id"].as_str().unwrap().to_owned()
}

fn revoke(app: &TestApp, id: &str) -> Answer {
    let answer = app.post_as(&app.master(), "/revoke", &json!({"server_id": id}));
    app.settle();
    answer
}

fn action(app: &TestApp, id: &str, verb: &str) -> Answer {
    let path = format!("/api/v2/servers/{id}/{verb}");
    let answer = app.post_as(&app.master(), &path, &json!({}));
    app.settle();
    answer
}

/// Sends both check-ins of `id` with this `Authorization`, in the order in which agents try them.
fn check_ins(app: &TestApp, id: &str, authorization: Option<&str>) -> [Answer; 2] {
    let ask = |path: String, body: Value| {
        let request = app.client.post(format!("{}{path}", app.url)).body(body.to_string());
        send(match authorization {
            Some(value) => request.header("authorization", value),
            None => request,
        })
    };
    [
        ask(format!("/api/v2/servers/{id}/check-in"), json!({})),
        ask("/checkin".into(), json!({"server_id": id})),
    ]
}

fn statuses(answers: [Answer; 2]) -> [u16; 2] {
    answers.map(|answer| answer.status)
}

/// Checks a failure in the flat legacy envelope.
fn assert_failure(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{}", answer.text);
    let json = answer.json();
    assert!(json["error"].is_string() && json.as_object().unwrap().len() == 1, "{json}");
}

#[test]
fn register_replies_with_exactly_the_documented_keys_in_order() {
    let app = TestApp::start();
    let answer = app.post("/register", &registration(&app));
    let id = answer.json()["server_id"].as_str().unwrap().to_owned();
    let expected = format!(
        "{{\"status\":\"authorized\",\"server_id\":\"{id}\",\"ip\":\"8.8.8.8\",\
         \"hostname\":\"one.example.com\",\"registered_at\":\"2030-03-17T17:46:40+00:00\",\
         \"last_checkin\":\"2030-03-17T17:46:40+00:00\",\"revoked\":0,\"note\":\"\"}}"
    );
    assert_eq!((answer.status, answer.text), (200, expected));
    assert!(id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
}

#[test]
fn register_checks_body_fields_token_and_address_in_this_order() {
    let app = TestApp::start();
    let good = registration(&app);
    for body in ["", "nonsense", "[]", "{"] {
        assert_failure(&app.post_text("/register", body), 400);
    }
    let wrong_token = with(good.clone(), "token", "wrong");
    for field in ["token", "ip"] {
        let wrong = [Value::Null, "".into(), " ".into(), true.into(), json!([])];
        for wrong in wrong {
            assert_failure(&app.post("/register", &with(wrong_token.clone(), field, wrong)), 400);
        }
        assert_failure(&app.post("/register", &without(wrong_token.clone(), field)), 400);
    }
    assert_failure(&app.post("/register", &with(wrong_token, "ip", "nonsense")), 403);
    for address in ["nonsense", "10.0.0.1", "::ffff:8.8.8.8", "8.8.8.8:80"] {
        assert_failure(&app.post("/register", &with(good.clone(), "ip", address)), 400);
    }
    assert_failure(&app.post("/register", &with(good.clone(), "hostname", json!({}))), 400);
    assert_eq!(app.post("/register", &without(good, "hostname")).status, 200);
}

#[test]
fn a_caller_with_a_wrong_token_does_not_learn_of_a_revocation() {
    let app = TestApp::start();
    assert_eq!(revoke(&app, &registered(&app, "8.8.8.8")).status, 200);
    let wrong_token = with(registration(&app), "token", "wrong");
    assert_failure(&app.post("/register", &wrong_token), 403);
}

#[test]
fn registering_an_address_again_in_any_spelling_keeps_its_id_and_updates_the_host_name() {
    let app = TestApp::start();
    let id = registered(&app, "2606:4700::1111");
    let body = with(registration(&app), "ip", " 2606:4700:0:0:0::1111 ");
    let again = app.post("/register", &with(body, "hostname", "two.example.com")).json();
    assert_eq!(again["server_id"], json!(id));
    assert_eq!(
        (&again["hostname"], &again["ip"]),
        (&json!("two.example.com"), &json!("2606:4700::1111"))
    );
    let app = app.restart();
    let listed = app.get_as(&app.master(), "/status").json();
    assert_eq!(
        (&listed["count"], &listed["servers"][0]["hostname"]),
        (&json!(1), &json!("two.example.com"))
    );
    assert_ne!(registered(&app, "2606:4700::1112"), id);
}

#[test]
fn private_addresses_can_register_if_the_setting_allows_it() {
    let app = TestApp::start_with(|c| c.push(("server.allow_private_ips", "true".into())));
    registered(&app, "10.0.0.1");
}

#[test]
fn a_revoked_server_cannot_register_again_and_the_refusal_names_its_id() {
    let app = TestApp::start();
    let id = registered(&app, "8.8.8.8");
    assert_eq!(revoke(&app, &id).status, 200);
    let told = format!("{{\"error\":\"server is revoked\",\"server_id\":\"{id}\"}}");
    for _ in 0..2 {
        let answer = app.post("/register", &registration(&app));
        assert_eq!((answer.status, &answer.text), (403, &told));
    }
    let app = app.restart();
    assert_eq!(app.post("/register", &registration(&app)).text, told);
}

#[test]
fn a_check_in_replies_with_exactly_the_documented_text() {
    let app = TestApp::start_with(|c| c.push(("servers.next_checkin_seconds", "1234".into())));
    let id = registered(&app, "8.8.8.8");
    let [v2, legacy] = check_ins(&app, &id, None);
    let flat =
        format!("{{\"status\":\"ok\",\"server_id\":\"{id}\",\"next_checkin_seconds\":1234}}");
    assert_eq!((legacy.status, &legacy.text), (200, &flat));
    assert_eq!(v2.status, 200);
    assert!(
        v2.text.starts_with(&format!("{{\"data\":{flat},\"meta\":{{\"message\":")),
        "{}",
        v2.text
    );
}

#[test]
fn a_v2_check_in_accepts_an_empty_object_or_no_body() {
    let app = TestApp::start();
    let path = format!("/api/v2/servers/{}/check-in", registered(&app, "8.8.8.8"));
    assert_eq!((app.post_text(&path, "{}").status, app.post_text(&path, "").status), (200, 200));
    assert_eq!(app.post_text(&path, "nonsense").told(), (400, "invalid_json".into()));
}

#[test]
fn a_check_in_without_an_id_is_400_before_anything_else() {
    let app = TestApp::start();
    for body in ["", "nonsense", "[]", "{}", "{\"server_id\":null}", "{\"server_id\":[]}"] {
        assert_failure(&app.post_text("/checkin", body), 400);
        let request = app.client.post(format!("{}/checkin", app.url)).bearer_auth("wrong");
        assert_failure(&send(request.body(body)), 400);
    }
}

#[test]
fn an_unknown_server_is_404_before_the_bearer_token_is_checked() {
    let app = TestApp::start();
    for id in [UNKNOWN, "short", "0123456789abcdeg", "0123456789abcdef0"] {
        for authorization in [None, Some("Bearer wrong")] {
            let [v2, legacy] = check_ins(&app, id, authorization);
            assert_eq!(v2.told(), (404, "server_not_found".into()), "{id}");
            assert_failure(&legacy, 404);
        }
    }
}

#[test]
fn a_check_in_needs_no_bearer_token_but_a_wrong_one_is_401() {
    let app = TestApp::start();
    let id = registered(&app, "8.8.8.8");
    let master = app.master();
    for good in ["", "  ", &master, &format!("Bearer {master}"), &format!("bearer  {master} ")] {
        assert_eq!(statuses(check_ins(&app, &id, Some(good))), [200, 200], "{good:?}");
    }
    assert_eq!(statuses(check_ins(&app, &id, None)), [200, 200]);
    let other = format!("Bearer {master}x");
    for wrong in ["wrong", "Bearer wrong", "Basic d3Jvbmc=", other.as_str(), "\u{e9}"] {
        let [v2, legacy] = check_ins(&app, &id, Some(wrong));
        assert_eq!(v2.told(), (401, "unauthorized".into()), "{wrong}");
        assert_failure(&legacy, 401);
    }
}

#[test]
fn after_a_change_of_the_master_token_the_new_and_the_registering_one_are_accepted() {
    let app = TestApp::start();
    let (old, id) = (app.master(), registered(&app, "8.8.8.8"));
    std::fs::write(&app.config.auth.master_token_file, "a-new-master-token-of-today\n").unwrap();
    app.reload_now(|_| {});
    let young = registered(&app, "8.8.4.4");
    let with_token = |id: &str, token: &str| statuses(check_ins(&app, id, Some(token)));
    assert_eq!((with_token(&id, &old), with_token(&id, &app.master())), ([200, 200], [200, 200]));
    assert_eq!(
        (with_token(&young, &old), with_token(&young, &app.master())),
        ([401, 401], [200, 200])
    );
    assert_failure(&app.post("/register", &with(registration(&app), "token", old.clone())), 403);
    assert_failure(&app.post_as(&old, "/revoke", &json!({"server_id": id})), 403);
}

#[test]
fn the_check_in_of_a_revoked_server_is_403() {
    let app = TestApp::start();
    let id = registered(&app, "8.8.8.8");
    assert_eq!(revoke(&app, &id).status, 200);
    let [v2, legacy] = check_ins(&app, &id, None);
    assert_eq!(v2.told(), (403, "revoked".into()));
    let told = format!("{{\"status\":\"revoked\",\"server_id\":\"{id}\"}}");
    assert_eq!((legacy.status, legacy.text), (403, told));
}

#[test]
fn a_wrong_bearer_token_is_reported_before_the_revocation() {
    let app = TestApp::start();
    let id = registered(&app, "8.8.8.8");
    assert_eq!(revoke(&app, &id).status, 200);
    assert_eq!(statuses(check_ins(&app, &id, Some("Bearer wrong"))), [401, 401]);
}

#[test]
fn a_setting_makes_the_check_in_of_a_revoked_server_200() {
    let app = TestApp::start_with(|c| c.push(("servers.revoked_checkin_status", "200".into())));
    let id = registered(&app, "8.8.8.8");
    assert_eq!(revoke(&app, &id).status, 200);
    let [v2, legacy] = check_ins(&app, &id, None);
    assert_eq!((v2.status, v2.data("status")), (200, "revoked".into()));
    let told = format!("{{\"status\":\"revoked\",\"server_id\":\"{id}\"}}");
    assert_eq!((legacy.status, legacy.text), (200, told));
    app.reload_now(|config| config.servers.revoked_checkin_status = 403);
    assert_eq!(statuses(check_ins(&app, &id, None)), [403, 403]);
}

#[test]
fn revoke_checks_master_token_body_and_server_in_this_order_and_is_idempotent() {
    let app = TestApp::start();
    let id = registered(&app, "8.8.8.8");
    let body = json!({"server_id": id});
    assert_failure(&app.post("/revoke", &body), 403);
    for token in ["wrong", "Bearer"] {
        assert_failure(&app.post_as(token, "/revoke", &body), 403);
    }
    assert_failure(&app.post_text("/revoke", ""), 403);
    let as_master = |body: &str| {
        let request = app.client.post(format!("{}/revoke", app.url));
        send(request.header("authorization", app.master()).body(body.to_owned()))
    };
    for body in ["", "nonsense", "[]", "{}", "{\"server_id\":true}"] {
        assert_failure(&as_master(body), 400);
    }
    assert_failure(&revoke(&app, UNKNOWN), 404);
    assert_eq!(statuses(check_ins(&app, &id, None)), [200, 200]);
    let told = format!("{{\"status\":\"revoked\",\"server_id\":\"{id}\"}}");
    for _ in 0..2 {
        let answer = as_master(&body.to_string());
        assert_eq!((answer.status, &answer.text), (200, &told));
    }
}

#[test]
fn v2_revoke_and_restore_require_the_master_token_and_a_known_server() {
    let app = TestApp::start();
    let id = registered(&app, "8.8.8.8");
    for verb in ["revoke", "restore"] {
        let path = format!("/api/v2/servers/{id}/{verb}");
        assert_eq!(app.post_text(&path, "").told(), (401, "unauthorized".into()));
        assert_eq!(app.post_as("wrong", &path, &json!({})).told(), (401, "unauthorized".into()));
        let strange = format!("/api/v2/servers/{UNKNOWN}/{verb}");
        assert_eq!(app.post_text(&strange, "").told(), (401, "unauthorized".into()));
        for unknown in [UNKNOWN, "short"] {
            let answer = action(&app, unknown, verb);
            assert_eq!(answer.told(), (404, "server_not_found".into()), "{unknown}");
        }
    }
    assert_eq!(statuses(check_ins(&app, &id, None)), [200, 200]);
}

#[test]
fn v2_revoke_and_restore_are_idempotent_and_undo_each_other() {
    let app = TestApp::start();
    let id = registered(&app, "8.8.8.8");
    for (verb, status, check_in) in [("revoke", "revoked", 403), ("restore", "active", 200)] {
        for _ in 0..2 {
            let answer = action(&app, &id, verb);
            let data = format!("{{\"data\":{{\"server_id\":\"{id}\",\"status\":\"{status}\"}},");
            assert!(answer.status == 200 && answer.text.starts_with(&data), "{}", answer.text);
        }
        assert_eq!(statuses(check_ins(&app, &id, None)), [check_in, check_in]);
    }
    assert_eq!(app.post("/register", &registration(&app)).status, 200);
}

#[test]
fn anything_else_under_servers_is_404_in_the_v2_envelope_and_never_405() {
    let app = TestApp::start();
    let id = registered(&app, "8.8.8.8");
    let mut paths: Vec<String> = ["check-in", "revoke", "restore", "x", "check-in/x", "a/b"]
        .map(|verb| format!("/api/v2/servers/{id}/{verb}"))
        .into();
    paths.extend(
        ["/api/v2/servers/code/issue", "/api/v2/servers/install/confirm"].map(String::from),
    );
    for path in &paths {
        let is_real = ["check-in", "revoke", "restore"].iter().any(|verb| path.ends_with(verb));
        for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "POST"] {
            if is_real && method == "POST" {
                continue;
            }
            let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
            let request = app.client.request(method.clone(), format!("{}{path}", app.url));
            let answer = send(request.bearer_auth(app.master()));
            assert_eq!(answer.told(), (404, "not_found".into()), "{method} {path}");
        }
    }
    let own = |method: &str, path: &str| {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        send(app.client.request(method, format!("{}{path}", app.url)).bearer_auth(app.master()))
    };
    for method in ["PUT", "PATCH", "OPTIONS", "POST"] {
        let path = format!("/api/v2/servers/{id}");
        assert_eq!(own(method, &path).told(), (404, "not_found".into()), "{method}");
    }
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let answer = own(method, "/api/v2/servers/register");
        assert_eq!(answer.told(), (404, "not_found".into()), "{method}");
    }
    assert_eq!(statuses(check_ins(&app, &id, None)), [200, 200]);
}
