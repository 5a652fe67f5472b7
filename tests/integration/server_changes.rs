//! Deleting servers, changing several at once, and taking servers over from another server.

use crate::harness::{Answer, TestApp, send, wait_until};
use reqwest::Method;
use serde_json::{Value, json};

const DAY: u64 = 86_400;

fn ip(number: u32) -> String {
    std::net::Ipv4Addr::from(0x0808_0000 + number).to_string()
}

fn try_register(app: &TestApp, number: u32) -> Answer {
    let hostname = format!("s{number}.example.com");
    let body = json!({"token": app.master(), "ip": ip(number), "hostname": hostname});
    app.post("/api/v2/servers/register", &body)
}

fn register(app: &TestApp, number: u32) -> String {
    let answer = try_register(app, number);
    assert_eq!(answer.status, 200, "{}", answer.text);
    app.settle();
    answer.data("server_id")
}

fn admin(app: &TestApp, method: Method, path: &str, body: &Value) -> Answer {
    let request = app.client.request(method, format!("{}/admin/{path}", app.admin));
    send(request.bearer_auth(app.master()).body(body.to_string()))
}

fn post(app: &TestApp, path: &str, body: &Value) -> Answer {
    admin(app, Method::POST, path, body)
}

/// The ids that a listing of the operators shows.
fn shown(app: &TestApp, show: &str) -> Vec<String> {
    let listed = admin(app, Method::GET, &format!("servers?show={show}"), &json!({})).json();
    let servers =
        listed["data"]["servers"].as_array().unwrap_or_else(|| panic!("{listed}")).clone();
    servers.iter().map(|server| server["server_id"].as_str().unwrap().to_owned()).collect()
}

fn delete(app: &TestApp, id: &str) -> Answer {
    let request = app.client.delete(format!("{}/api/v2/servers/{id}", app.url));
    let answer = send(request.bearer_auth(app.master()));
    app.settle();
    answer
}

#[test]
fn a_deleted_server_is_gone_and_can_register_again() {
    let app = TestApp::start();
    let id = register(&app, 1);
    app.clock.advance(2 * 3600);
    let answer = delete(&app, &id);
    let expected = format!(
        "{{\"data\":{{\"server_id\":\"{id}\",\"status\":\"deleted\"}},\
         \"meta\":{{\"message\":\"Server deleted\"}}}}"
    );
    assert_eq!((answer.status, answer.text), (200, expected));
    assert_eq!(delete(&app, &id).told(), (404, "server_not_found".into()));
    let path = format!("/api/v2/servers/{id}");
    assert_eq!(app.get_as(&app.master(), &path).told(), (404, "server_not_found".into()));
    let check_in = app.post(&format!("{path}/check-in"), &json!({}));
    assert_eq!(check_in.told(), (404, "server_not_found".into()));
    assert!(shown(&app, "all").is_empty());
    assert_eq!(register(&app, 1), id);
    let unknown = send(app.client.delete(format!("{}{path}", app.url)));
    assert_eq!(unknown.told(), (401, "unauthorized".into()));
}

#[test]
fn a_deleted_revoked_server_stays_revoked_until_it_is_restored_by_its_id() {
    let app = TestApp::start();
    let id = register(&app, 1);
    app.post_as(&app.master(), "/revoke", &json!({"server_id": id}));
    app.settle();
    assert_eq!(delete(&app, &id).status, 200);
    assert!(shown(&app, "all").is_empty());
    assert_eq!(shown(&app, "deleted"), [id.as_str()]);
    assert_eq!(try_register(&app, 1).told(), (403, "revoked".into()));
    let app = app.restart();
    assert_eq!(try_register(&app, 1).told(), (403, "revoked".into()));
    assert_eq!(post(&app, &format!("servers/{id}/restore"), &json!({})).status, 200);
    wait_until("the server is back", || shown(&app, "all") == [id.as_str()]);
    assert_eq!(try_register(&app, 1).status, 200);
}

#[test]
fn several_servers_are_changed_by_one_request_and_what_fails_is_named() {
    let app = TestApp::start();
    let ids: Vec<String> = (1..4).map(|number| register(&app, number)).collect();
    let unknown = "0123456789abcdef";
    let body = json!({"action": "revoke", "server_ids": [ids[0], unknown, ids[1]]});
    let done = post(&app, "servers/several", &body).json();
    assert_eq!(done["data"]["changed"], json!(2), "{done}");
    assert_eq!(done["data"]["failed"][0]["server_id"], json!(unknown));
    app.settle();
    assert_eq!(shown(&app, "revoked").len(), 2);
    let body = json!({"action": "note", "server_ids": ids, "note": "moved"});
    assert_eq!(post(&app, "servers/several", &body).json()["data"]["changed"], json!(3));
    let body = json!({"action": "restore", "server_ids": ids});
    assert_eq!(post(&app, "servers/several", &body).json()["data"]["changed"], json!(3));
    app.settle();
    let body = json!({"action": "delete", "server_ids": ids});
    assert_eq!(post(&app, "servers/several", &body).json()["data"]["changed"], json!(3));
    wait_until("all are gone", || shown(&app, "all").is_empty());
    for wrong in [
        json!({"action": "paint", "server_ids": ids}),
        json!({"action": "note", "server_ids": ids}),
        json!({"action": "revoke", "server_ids": []}),
        json!({"action": "revoke", "server_ids": vec![unknown; 1001]}),
        json!({"action": "revoke", "server_ids": unknown}),
    ] {
        let answer = post(&app, "servers/several", &wrong);
        assert_eq!(answer.told(), (422, "validation_error".into()));
    }
}

#[test]
fn servers_that_are_gone_are_shown_first_and_deleted_then() {
    let app = TestApp::start();
    for number in 0..12 {
        register(&app, number);
    }
    app.clock.advance(40 * DAY);
    let young = register(&app, 100);
    let preview = admin(&app, Method::GET, "servers/unseen?days=30", &json!({})).json();
    assert_eq!(preview["data"]["count"], json!(12), "{preview}");
    assert_eq!(preview["data"]["first"].as_array().unwrap().len(), 10);
    assert_eq!(shown(&app, "all").len(), 13, "a preview deletes nothing");
    let deleted = post(&app, "servers/unseen", &json!({"days": 30})).json();
    assert_eq!(deleted["data"], json!({"deleted": 12, "left": 0}), "{deleted}");
    wait_until("they are gone", || shown(&app, "all") == [young.as_str()]);
    for days in [json!(0), json!(36_501), json!("x"), json!(1.5), json!(null)] {
        let answer = post(&app, "servers/unseen", &json!({"days": days}));
        assert_eq!(answer.told(), (422, "validation_error".into()), "{days}");
    }
    let answer = admin(&app, Method::GET, "servers/unseen", &json!({}));
    assert_eq!(answer.told(), (422, "validation_error".into()));
}

/// A session of the console: the beginning of its addresses, and its cookie.
fn log_in(app: &TestApp) -> (String, String) {
    let browser = browser();
    let login = browser.post(format!("{}/console/login", app.admin));
    let form = "application/x-www-form-urlencoded";
    let opened = send(login.header("content-type", form).body(format!("token={}", app.master())));
    assert_eq!(opened.status, 303, "{}", opened.text);
    let base = opened.header("location").strip_suffix("/now").unwrap().to_owned();
    (base, opened.header("set-cookie").split(';').next().unwrap().to_owned())
}

fn browser() -> reqwest::blocking::Client {
    let never = reqwest::redirect::Policy::none();
    reqwest::blocking::Client::builder().no_proxy().redirect(never).build().unwrap()
}

fn form(app: &TestApp, (base, cookie): &(String, String), path: &str, body: &str) -> Answer {
    let request = browser().post(format!("{}{base}/{path}", app.admin)).header("cookie", cookie);
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    send(request.body(body.to_owned()))
}

#[test]
fn the_console_changes_what_is_ticked_and_deletes_what_is_gone_after_a_look_at_it() {
    let app = TestApp::start();
    let mut session = log_in(&app);
    let look = |(base, cookie): &(String, String), path: &str| {
        send(browser().get(format!("{}{base}/{path}", app.admin)).header("cookie", cookie))
    };
    let ids: Vec<String> = (1..4).map(|number| register(&app, number)).collect();
    assert!(
        look(&session, "servers")
            .text
            .contains(&format!("form=\"several\" name=\"server_id\" value=\"{}\"", ids[0]))
    );
    let ticked = format!("server_id={}&server_id={}", ids[0], ids[1]);
    for (action, meaning) in
        [("revoke", "stop at"), ("restore", "check in again"), ("delete", "stay revoked")]
    {
        let body = format!("action={action}&back=https://elsewhere.example&{ticked}");
        let asked = form(&app, &session, "servers/several", &body);
        assert_eq!(asked.status, 200, "{}", asked.text);
        for words in [meaning, &format!("Yes, {action} all 2"), "s1.example.com", &ids[1]] {
            assert!(asked.text.contains(words), "{words}: {}", asked.text);
        }
        assert!(!asked.text.contains("elsewhere"), "{}", asked.text);
    }
    assert_eq!(shown(&app, "live").len(), 3, "a question changes nothing");
    let body = format!("action=revoke&confirmed=yes&{ticked}");
    let changed = form(&app, &session, "servers/several", &body);
    assert_eq!(changed.status, 303, "{}", changed.text);
    app.settle();
    assert_eq!(shown(&app, "revoked").len(), 2);
    let nothing = form(&app, &session, "servers/several", "action=revoke");
    assert_eq!(nothing.status, 422);
    assert!(nothing.text.contains("Please tick the servers first."), "{}", nothing.text);
    let body = format!("action=note&note=moved&{ticked}&server_id=0123456789abcdef");
    let some = form(&app, &session, "servers/several", &body);
    assert!(some.text.contains("2 of 3 servers were changed"), "{}", some.text);
    let one = form(&app, &session, "servers/delete", &format!("back=x&server_id={}", ids[2]));
    assert_eq!(one.status, 303, "{}", one.text);
    app.settle();
    app.clock.advance(3 * DAY);
    // The session has ended.
    session = log_in(&app);
    let preview = look(&session, "servers/unseen?days=2");
    assert!(preview.text.contains("Yes, delete all 2"), "{}", preview.text);
    let gone = form(&app, &session, "servers/unseen", "days=2");
    assert_eq!(gone.status, 303, "{}", gone.text);
    wait_until("they are gone", || shown(&app, "all").is_empty());
    assert_eq!(shown(&app, "deleted").len(), 2, "the revoked ones");
    assert_eq!(look(&session, "servers/unseen?days=x").status, 422);
}

/// A row of an old server's listing.
fn old(number: u32) -> Value {
    json!({
        "server_id": format!("{:016x}", 0xabcd_0000_0000_0000_u64 + u64::from(number)),
        "ip": ip(number), "hostname": format!("old{number}.example.com"),
        "registered_at": "2020-01-02T03:04:05+00:00", "last_checkin": "2030-03-17T17:00:00+00:00",
        "revoked": u32::from(number == 2), "note": format!("rack {number}"),
    })
}

#[test]
fn imported_servers_keep_everything_and_go_on_under_their_ids() {
    let app = TestApp::start();
    let rows: Vec<Value> = (1..4).map(old).collect();
    let all = json!({"servers": rows});
    let dry = post(&app, "import", &json!({"servers": rows, "dry_run": true})).json();
    assert_eq!(dry["data"]["new"], json!(3), "{dry}");
    assert!(shown(&app, "all").is_empty());
    let done = post(&app, "import", &all).json();
    assert_eq!(done["data"]["new"], json!(3), "{done}");
    app.settle();
    let again = post(&app, "import", &all).json();
    assert_eq!((&again["data"]["new"], &again["data"]["unchanged"]), (&json!(0), &json!(3)));
    let listed = app.get_as(&app.master(), "/status").json();
    let kept: Vec<&Value> = rows.iter().rev().collect();
    assert_eq!(listed["servers"].as_array().unwrap().iter().collect::<Vec<_>>(), kept);
    let id = rows[0]["server_id"].as_str().unwrap();
    assert_eq!(app.post("/checkin", &json!({"server_id": id})).status, 200);
    let registered = try_register(&app, 1);
    assert_eq!(registered.data("server_id"), id, "it registers again under its id");
    assert_eq!(try_register(&app, 2).told(), (403, "revoked".into()), "no way around");
    app.settle();
    let last = post(&app, "import", &all).json();
    assert_eq!(last["data"]["changed_here"], json!([id]), "{last}");
}

#[test]
fn one_bad_row_refuses_the_import_and_is_named() {
    let app = TestApp::start();
    let mut bad = old(2);
    bad["registered_at"] = "yesterday".into();
    let answer = post(&app, "import", &json!({"servers": [old(1), bad]}));
    assert_eq!(answer.told(), (422, "validation_error".into()));
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("servers[1]: registered_at "), "{message}");
    assert!(shown(&app, "all").is_empty());
    let taken = register(&app, 7);
    let answer = post(&app, "import", &json!({"servers": [old(7)]})).json();
    assert_eq!(answer["data"]["address_taken"], json!([old(7)["server_id"]]), "{answer}");
    assert_eq!(shown(&app, "all"), [taken]);
    for wrong in [json!({}), json!({"servers": {}}), json!([])] {
        assert_eq!(post(&app, "import", &wrong).told(), (422, "validation_error".into()));
    }
}

/// The ids of rows.
fn ids_of(rows: &[Value]) -> Value {
    rows.iter().map(|row| row["server_id"].clone()).collect()
}

#[test]
fn whoever_deletes_the_server_at_an_address_can_import_that_at_once() {
    let app = TestApp::start();
    let (here, revoked) = (register(&app, 1), register(&app, 3));
    let rows = [old(1), old(3)];
    let import = || post(&app, "import", &json!({"servers": rows})).json()["data"].clone();
    assert_eq!(import()["address_taken"], ids_of(&rows));
    app.post_as(&app.master(), "/revoke", &json!({"server_id": revoked}));
    app.settle();
    for id in [&here, &revoked] {
        assert_eq!(delete(&app, id).status, 200);
    }
    let done = import();
    assert_eq!((&done["new"], &done["address_taken"]), (&json!(2), &json!([])), "{done}");
    assert_eq!(done["still_revoked"], ids_of(&rows[1..]));
    app.settle();
    let listed = app.get_as(&app.master(), "/status").json();
    let mut kept = [old(3), old(1)];
    kept[0]["revoked"] = 1.into();
    let mut listed = listed["servers"].as_array().unwrap().clone();
    listed.sort_by_key(|row| row["ip"] != kept[0]["ip"]);
    assert_eq!(listed, kept);
    let check_in = |id: &Value| app.post("/checkin", &json!({"server_id": id})).status;
    assert_eq!(check_in(&rows[0]["server_id"]), 200);
    assert_eq!(check_in(&rows[1]["server_id"]), 403);
    wait_until("the deleted ones are gone", || check_in(&json!(here)) == 404);
    assert!(shown(&app, "deleted").is_empty());
    assert_eq!(try_register(&app, 1).data("server_id"), rows[0]["server_id"]);
    assert_eq!(try_register(&app, 3).told(), (403, "revoked".into()));
}

#[test]
fn an_import_neither_brings_a_deleted_server_back_nor_loses_a_revocation_without_a_word() {
    let app = TestApp::start();
    let rows: Vec<Value> = [1, 3, 4].map(old).into();
    let import = |rows: &[Value]| {
        let done = post(&app, "import", &json!({"servers": rows})).json()["data"].clone();
        app.settle();
        done
    };
    assert_eq!(import(&rows)["new"], json!(3));
    app.clock.advance(2 * 3600);
    let deleted = rows[0]["server_id"].as_str().unwrap();
    assert_eq!(delete(&app, deleted).status, 200);
    assert_eq!(delete(&app, deleted).told(), (404, "server_not_found".into()));
    assert_eq!(import(&rows)["changed_here"], ids_of(&rows[..1]));
    assert_eq!(shown(&app, "all").len(), 2);
    let moved = &rows[1]["server_id"];
    let mut later = rows.clone();
    for row in &mut later {
        row["revoked"] = 1.into();
    }
    later[1]["ip"] = ip(9).into();
    let done = import(&later);
    assert_eq!(done["changed"], json!(2), "{done}");
    assert_eq!(done["other_address"], json!([moved]));
    assert_eq!(done["not_revoked"], json!([moved]));
    assert_eq!(shown(&app, "revoked"), [rows[2]["server_id"].as_str().unwrap()]);
    wait_until("the deleted one is revoked", || shown(&app, "deleted") == [deleted]);
}

#[test]
fn the_list_of_this_server_is_one_that_it_takes() {
    let app = TestApp::start();
    let long = "ä".repeat(300);
    let legacy = json!({"token": app.master(), "ip": ip(1), "hostname": long});
    assert_eq!(app.post("/register", &legacy).status, 200);
    let other = json!({"token": app.master(), "ip": ip(2), "hostname": format!("x{long}")});
    assert_eq!(app.post("/api/v2/servers/register", &other).status, 200);
    app.settle();
    let listed = app.get_as(&app.master(), "/status").json()["servers"].clone();
    let names = listed.as_array().unwrap().iter().map(|row| row["hostname"].as_str().unwrap());
    assert_eq!(names.map(|name| name.chars().count()).collect::<Vec<_>>(), [253, 253]);
    // Their records are not kept so long after they have registered.
    app.clock.advance(2 * 3600);
    for row in listed.as_array().unwrap() {
        assert_eq!(delete(&app, row["server_id"].as_str().unwrap()).status, 200);
    }
    let done = post(&app, "import", &json!({"servers": listed})).json();
    assert_eq!(done["data"]["new"], json!(2), "{done}");
}
