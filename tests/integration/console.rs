//! The operator's console: access control, contents and forms.

use crate::access::with_role;
use crate::harness::{Answer, Machine, TestApp, send, wait_until, with};
use crate::process::Process;
use iptunnel_domain::access::Role;
use iptunnel_server::config::Config;
use reqwest::blocking::Client;
use reqwest::redirect::Policy;
use serde_json::{Value, json};

/// Requests a JSON route with the master token.
fn admin(app: &TestApp, path: &str) -> Value {
    let answer = send(app.client.get(format!("{}{path}", app.admin)).bearer_auth(app.master()));
    assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    answer.json()["data"].clone()
}

fn admin_post(app: &TestApp, path: &str, body: &Value) -> Answer {
    let request = app.client.post(format!("{}{path}", app.admin)).bearer_auth(app.master());
    send(request.body(body.to_string()))
}

/// Changes settings, based on the current version.
fn patch(app: &TestApp, body: &Value) -> Answer {
    let config = format!("{}/admin/config", app.admin);
    let now = send(app.client.get(&config).bearer_auth(app.master()));
    let request = app.client.patch(config).bearer_auth(app.master());
    let answer = send(request.header("if-match", now.header("etag")).body(body.to_string()));
    app.settle_settings();
    answer
}

/// A person who uses the console in a browser.
pub struct Person<'a> {
    app: &'a TestApp,
    client: Client,
    cookie: String,
    /// The beginning of the session's addresses, with its key.
    base: String,
}

impl<'a> Person<'a> {
    fn new(app: &'a TestApp) -> Self {
        let client = Client::builder().no_proxy().redirect(Policy::none()).build().unwrap();
        Self { app, client, cookie: String::new(), base: "/console".to_owned() }
    }
    pub fn logged_in(app: &'a TestApp) -> Self {
        Self::logged_in_with(app, &app.master())
    }
    fn logged_in_with(app: &'a TestApp, token: &str) -> Self {
        let mut person = Self::new(app);
        let answer = person.post("/console/login", &[("token", token)]);
        assert_eq!(answer.status, 303);
        person.base = answer.header("location").strip_suffix("/now").unwrap().to_owned();
        let set = answer.header("set-cookie").to_owned();
        for flag in ["HttpOnly", "SameSite=Strict", "Path=/console/"] {
            assert!(set.contains(flag), "{set}");
        }
        assert!(
            set.contains(&format!("Path={};", person.base)) || set.ends_with(&person.base),
            "{set}"
        );
        person.cookie = set.split(';').next().unwrap().to_owned();
        person
    }
    fn is_in(&self) -> bool {
        let answer = self.get("/console/codes");
        assert!(answer.status == 200 || answer.header("location") == "/console/login");
        answer.status == 200
    }
    /// The address of a page of this session: `/console` stands for its beginning.
    fn address(&self, path: &str) -> String {
        let path = if path.starts_with(&self.base) {
            path.to_owned()
        } else {
            path.replacen("/console", &self.base, 1)
        };
        format!("{}{path}", self.app.admin)
    }
    pub fn get(&self, path: &str) -> Answer {
        send(self.client.get(self.address(path)).header("cookie", &self.cookie))
    }
    pub fn post(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let mut form = form_urlencoded::Serializer::new(String::new());
        let body = form.extend_pairs(fields).finish();
        let request = self.client.post(self.address(path));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        send(request.header("cookie", &self.cookie).body(body))
    }
}

/// Registers server `number`; the other servers may not know it yet.
fn send_registration(app: &TestApp, number: u8) -> String {
    let body = json!({"token": app.master(), "ip": format!("9.9.9.{number}"),
        "hostname": format!("s{number}.example.com")});
    app.post("/register", &body).json()["server_id"].as_str().unwrap().to_owned()
}

fn register(app: &TestApp, number: u8) -> String {
    let id = send_registration(app, number);
    app.settle();
    id
}

#[test]
fn the_console_requires_a_token() {
    let app = TestApp::start();
    let person = Person::new(&app);
    for page in
        ["now", "now/live", "codes", "servers", "settings", "audit", "audit/export", "sessions"]
    {
        for path in [format!("/console/0123456789abcdef/{page}"), "/console".into(), "/".into()] {
            let answer = person.get(&path);
            assert_eq!(
                (answer.status, answer.header("location")),
                (303, "/console/login"),
                "{path}"
            );
        }
    }
    assert_eq!(person.get("/console/servers").header("location"), "/console/login");
    for path in ["now", "servers", "activations", "config", "audit", "audit/export", "audit/heads"]
    {
        let answer = app.get_admin(&format!("/admin/{path}"));
        assert_eq!(answer.told(), (401, "unauthorized".into()), "{path}");
    }
    let wrong = person.post("/console/login", &[("token", "wrong")]);
    assert_eq!(wrong.status, 403);
    assert!(wrong.text.contains("The token is not valid.") && !wrong.text.contains("wrong"));
    assert_eq!(Person::logged_in(&app).get("/console/codes").status, 200);
}

#[test]
fn neither_the_cookie_nor_the_key_of_a_session_can_do_anything_alone() {
    let app = TestApp::start();
    let server = register(&app, 1);
    let (person, other) = (Person::logged_in(&app), Person::logged_in(&app));
    let revoke = |base: &str, cookie: &str| {
        let request = person.client.post(format!("{}{base}/servers/revoke", app.admin));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        send(request.header("cookie", cookie).body(format!("server_id={server}&back=x")))
    };
    let read = |base: &str, cookie: &str| {
        let request = person.client.get(format!("{}{base}/servers", app.admin));
        send(request.header("cookie", cookie))
    };
    for (base, cookie) in [
        (person.base.as_str(), ""),
        (person.base.as_str(), other.cookie.as_str()),
        (other.base.as_str(), person.cookie.as_str()),
        ("/console/0123456789abcdef0123456789abcdef", person.cookie.as_str()),
        ("/console", person.cookie.as_str()),
    ] {
        for answer in [revoke(base, cookie), read(base, cookie)] {
            assert!([303, 404].contains(&answer.status), "{}", answer.text);
            assert!(!answer.text.contains("s1.example.com"));
        }
    }
    let pages = ["now", "codes", "servers", "settings", "audit", "sessions"];
    for page in pages.map(|page| person.get(&format!("/console/{page}"))) {
        let cookie = person.cookie.split('=').nth(1).unwrap();
        assert!(page.status == 200 && !page.text.contains(cookie), "{}", page.text);
    }
    assert_eq!(admin(&app, "/admin/servers")["servers"][0]["state"], "live");
    assert_eq!(revoke(&person.base, &person.cookie).status, 303);
    assert_eq!(admin(&app, "/admin/servers")["servers"][0]["state"], "revoked");
    assert_eq!(person.post("/console/logout", &[]).status, 303);
    assert_eq!(person.get("/console/codes").header("location"), "/console/login");
    assert_eq!(other.get("/console/codes").status, 200);
}

#[test]
fn a_session_survives_a_restart_and_ends_twelve_hours_after_its_login() {
    let mut app = TestApp::start();
    let (viewer, gone) = (with_role(&app, Role::View), with_role(&app, Role::Operate));
    let people = [app.master(), viewer.text.clone(), app.master(), gone.text.clone()];
    let people = people.map(|token| Person::logged_in_with(&app, &token));
    assert_eq!(people[2].post("/console/logout", &[]).status, 303);
    let revoke = format!("/admin/tokens/{}/revoke", gone.id);
    assert_eq!(admin_post(&app, &revoke, &json!({})).status, 200);
    let kept: Vec<_> = people.into_iter().map(|person| (person.base, person.cookie)).collect();
    for _ in 0..2 {
        app.clock.advance(5 * 3600);
        app = app.restart();
        let [first, second, third, fourth] = [0, 1, 2, 3].map(|at: usize| {
            let (base, cookie) = kept[at].clone();
            Person { base, cookie, ..Person::new(&app) }
        });
        assert!(first.is_in() && second.is_in() && !third.is_in() && !fourth.is_in());
        // The role is that of the token.
        let end = [("id", "00000000")];
        assert_eq!(first.post("/console/sessions/end", &end).status, 404);
        assert_eq!(second.post("/console/sessions/end", &end).status, 403);
    }
    app.clock.advance(2 * 3600);
    let (base, cookie) = kept[0].clone();
    assert!(!Person { base, cookie, ..Person::new(&app) }.is_in());
}

#[test]
fn whoever_is_logged_in_or_out_stays_so_after_a_kill() {
    let server = Process::start(&[]);
    let client = Client::builder().no_proxy().redirect(Policy::none()).build().unwrap();
    let login = || {
        let request = client.post(format!("{}/console/login", server.api.admin));
        let form = request.header("content-type", "application/x-www-form-urlencoded");
        let answer = send(form.body(format!("token={}", server.api.master)));
        let base = answer.header("location").strip_suffix("/now").unwrap().to_owned();
        (base, answer.header("set-cookie").split(';').next().unwrap().to_owned())
    };
    let (stays, leaves) = (login(), login());
    let logout = client.post(format!("{}{}/logout", server.api.admin, leaves.0));
    assert_eq!(send(logout.header("cookie", &leaves.1)).status, 303);
    let mut server = server;
    server.kill();
    let server = server.again();
    let shown = |(base, cookie): &(String, String)| {
        let request = client.get(format!("{}{base}/now", server.api.admin));
        send(request.header("cookie", cookie)).status
    };
    assert_eq!((shown(&stays), shown(&leaves)), (200, 303));
}

#[test]
fn sessions_are_listed_and_can_be_ended_by_people_and_by_programs() {
    let app = TestApp::start();
    let (first, second, third) =
        (Person::logged_in(&app), Person::logged_in(&app), Person::logged_in(&app));
    let listed = || -> Vec<String> {
        let sessions = admin(&app, "/admin/sessions")["sessions"].clone();
        let id = |session: &Value| session["id"].as_str().unwrap().to_owned();
        sessions.as_array().unwrap().iter().map(id).collect()
    };
    let ids = listed();
    assert_eq!(ids.len(), 3);
    let one = &admin(&app, "/admin/sessions")["sessions"][0];
    assert_eq!(
        (&one["from"], &one["ends_at"]),
        (&json!("127.0.0.1"), &json!("2030-03-18T05:46:40+00:00"))
    );
    let shown = first.get("/console/sessions").text;
    assert!(ids.iter().all(|id| shown.contains(id)), "{shown}");
    let own =
        shown.split("this one").next().unwrap().rsplit("<code>").next().unwrap()[..8].to_owned();
    for id in ids.iter().filter(|id| **id != own).take(1) {
        assert_eq!(first.post("/console/sessions/end", &[("id", id)]).status, 303);
    }
    let ended = |person: &Person<'_>| person.get("/console/codes").status == 303;
    assert!(!ended(&first) && ended(&second) != ended(&third));
    let end = |id: &str| admin_post(&app, &format!("/admin/sessions/{id}/end"), &json!({}));
    for id in listed() {
        assert_eq!(end(&id).json()["data"]["status"], "ended");
        assert_eq!(end(&id).told(), (404, "not_found".into()));
    }
    assert!(ended(&first) && ended(&second) && ended(&third) && listed().is_empty());
    let log = admin(&app, "/admin/audit?action=session_ended");
    assert_eq!(log["entries"].as_array().unwrap().len(), 3, "{log}");
    assert_eq!(log["entries"][0]["subject"].as_str().unwrap().len(), 8);
}

#[test]
fn a_form_from_another_site_or_port_is_refused() {
    let app = TestApp::start();
    let person = Person::logged_in(&app);
    let send_from = |path: &str, header: (&str, &str), body: &'static str| {
        let request = person.client.post(person.address(path)).header(header.0, header.1);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        send(request.header("cookie", &person.cookie).body(body))
    };
    let other = Person::new(&app);
    for header in [("sec-fetch-site", "same-site"), ("origin", "http://127.0.0.1:1")] {
        let logout = send_from("/console/logout", header, "");
        assert_eq!(logout.status, 403, "{header:?}");
        assert_eq!(person.get("/console/codes").status, 200, "{header:?}");
        let login = other.client.post(format!("{}/console/login", app.admin));
        let login = login.header("content-type", "application/x-www-form-urlencoded");
        assert_eq!(send(login.header(header.0, header.1).body("token=wrong")).status, 403);
    }
    // Such tries do not count as wrong tokens of the visitor.
    assert_eq!(app.metric("iptunnel_wrong_tokens_total{listener=\"operators\"}"), 0.0);
    let here = ("origin", app.admin.as_str());
    assert_eq!(send_from("/console/logout", here, "").status, 303);
}

#[test]
fn a_new_master_token_ends_the_sessions_of_the_old_one() {
    let app = TestApp::start();
    let person = Person::logged_in(&app);
    let file = &app.config.auth.master_token_file;
    std::fs::write(file, "another-master-token-of-good-length-0123456789\n").unwrap();
    app.reload_now(|_| {});
    assert_eq!(person.get("/console/codes").status, 303);
}

#[test]
fn logins_and_key_changes_are_in_the_audit_log() {
    let app = TestApp::start();
    Person::logged_in(&app);
    let log =
        |action: &str| admin(&app, &format!("/admin/audit?action={action}"))["entries"].clone();
    let logins = log("logged_in");
    assert_eq!(
        (&logins[0]["actor"], &logins[0]["from"]),
        (&json!("operator"), &json!("127.0.0.1"))
    );
    let keys = &app.config.auth.signing_key_file;
    let first = std::fs::read_to_string(keys).unwrap();
    let second = format!("later:{}", first.trim().split(':').nth(1).unwrap());
    std::fs::write(keys, format!("{second}\n{first}")).unwrap();
    let token = "another-master-token-of-good-length-0123456789";
    std::fs::write(&app.config.auth.master_token_file, token).unwrap();
    app.reload_now(|_| {});
    app.reload_now(|_| {});
    let changes = log("keys_changed").to_string();
    let name = first.split(':').next().unwrap();
    assert!(changes.contains(&format!("{name} -> later, {name}")), "{changes}");
    let secret = first.trim().split(':').nth(1).unwrap();
    assert!(!changes.contains(secret) && !changes.contains(token), "{changes}");
    // Each server records its own key change once.
    let told = log("keys_changed");
    assert_eq!(told.as_array().unwrap().len(), 2 * app.servers(), "{told}");
}

#[test]
fn a_codes_history_shows_actor_and_address_from_issue_to_confirm() {
    let app = TestApp::start();
    let code = app.issue();
    let machine = Machine::new(1);
    machine.install(&app, &code).release(&app);
    machine.install(&app, &code).confirm(&app);
    let other = Machine::new(2).precheck(&app, &code);
    assert_eq!(other.told(), (403, "install_code_used".into()));
    let mut story = Value::Null;
    wait_until("the attempt is kept", || {
        story = admin_post(&app, "/admin/codes", &json!({"find": code})).json()["data"].clone();
        let events = story["events"].as_array().map_or(0, Vec::len);
        story["second_machine"] == true && events == 8
    });
    assert_eq!(story["hint"], format!("{}...{}", &code[..11], &code[21..]));
    assert_eq!((&story["state"], &story["activations"]), (&json!("confirmed"), &json!(2)));
    let events = story["events"].as_array().unwrap();
    let mut told: Vec<&str> = events.iter().map(|e| e["action"].as_str().unwrap()).collect();
    told.sort_unstable();
    let mut expected = vec!["code_issued", "activated", "released", "activated", "confirmed"];
    expected.extend(["precheck_passed", "precheck_passed", "precheck_refused"]);
    expected.sort_unstable();
    assert_eq!(told, expected);
    assert!(events.iter().all(|event| event["from"] == "127.0.0.1"), "{events:?}");
    let alarm: Vec<_> = events.iter().filter(|event| event["stands_out"] == true).collect();
    assert_eq!((alarm.len(), &alarm[0]["detail"]), (1, &json!("code used")));
    assert!(!story.to_string().contains(&code));
}

#[test]
fn early_refusals_are_in_a_codes_history_and_rate_limited_requests_are_not() {
    let app = TestApp::start_with(|c| c.push(("limits.activate_per_machine_day", "3".into())));
    let code = app.issue();
    let (machine, thief) = (Machine::new(1), Machine::new(2));
    let token = machine.prechecked(&app, &code);
    // A token of another machine, an invalid host name, another product, and one request over the
    // limit.
    let step = |step: &str, body: &Value| {
        app.post(&format!("/api/v2/slowdns/install/{step}"), body).code()
    };
    let activate = |body: Value| step("activate", &body);
    let of_thief = thief.activate_body(&code, &token);
    assert_eq!(activate(of_thief.clone()), "precheck_token_invalid");
    assert_eq!(activate(with(of_thief.clone(), "hostname", "x")), "precheck_token_invalid");
    let body = machine.activate_body(&code, &token);
    assert_eq!(activate(with(body.clone(), "hostname", "nowhere")), "invalid_binding");
    assert_eq!(activate(with(body.clone(), "product", "other")), "product_mismatch");
    let activation = machine.install(&app, &code);
    assert_eq!(activate(with(body, "hostname", "ns9.example.com")), "rate_limit_exceeded");
    // A genuine token of another activation is recorded. A forged one is refused before anything is
    // looked up.
    let other = Machine::new(3).install(&app, &app.issue());
    let finish = |token: &str| json!({"activation_id": activation.id, "install_token": token});
    for (token, told) in [(other.token.as_str(), "token_mismatch"), ("forged", "token_invalid")] {
        assert_eq!(step("confirm", &finish(token)), told);
        assert_eq!(step("release", &finish(token)), told);
    }
    let mut story = Value::Null;
    wait_until("the attempts are kept", || {
        story = admin_post(&app, "/admin/codes", &json!({"find": code})).json()["data"].clone();
        story["events"].as_array().is_some_and(|events| events.len() == 10)
    });
    let events = story["events"].as_array().unwrap();
    let mut refused: Vec<(&str, &str)> = events
        .iter()
        .map(|event| (event["action"].as_str().unwrap(), event["detail"].as_str().unwrap()))
        .filter(|(action, _)| action.ends_with("refused"))
        .collect();
    refused.sort_unstable();
    let token = ("activate_refused", "precheck token wrong or run out");
    assert_eq!(
        refused,
        [
            ("activate_refused", "another product"),
            ("activate_refused", "host name or address not valid"),
            token,
            token,
            ("confirm_refused", "token of another activation"),
            ("release_refused", "token of another activation"),
        ]
    );
    assert_eq!(story["second_machine"], true);
}

#[test]
fn a_code_is_found_by_code_hint_host_name_address_machine_or_activation() {
    let app = TestApp::start();
    let (code, noise) = (app.issue(), app.issue());
    let machine = Machine::new(7);
    let activation = machine.install(&app, &code);
    Machine::new(8).install(&app, &noise);
    let hint = format!("{}...{}", &code[..11], &code[21..]);
    for find in [code.as_str(), &code.to_lowercase(), &activation.id] {
        let story = admin_post(&app, "/admin/codes", &json!({"find": find})).json();
        assert_eq!(story["data"]["hint"], hint, "{find}: {story}");
    }
    for find in [&hint, &hint.to_lowercase(), "ns7.example.com", "ns7", "1.2.0.7", "machine-7"] {
        let found = admin_post(&app, "/admin/codes", &json!({"find": find})).json();
        let codes = found["data"]["codes"].as_array().unwrap();
        assert_eq!((codes.len(), &codes[0]["hint"]), (1, &json!(hint)), "{find}: {found}");
    }
    let all = admin_post(&app, "/admin/codes", &json!({})).json();
    assert_eq!(all["data"]["codes"].as_array().unwrap().len(), 2);
    let missing = admin_post(&app, "/admin/codes", &json!({"find": "act_0123456789abcdef"}));
    assert_eq!(missing.told(), (404, "activation_not_found".into()));
    let page = Person::logged_in(&app);
    let found = page.post("/console/codes", &[("find", "ns7.example.com")]);
    assert!(found.text.contains(&hint) && !found.text.contains(&code), "{}", found.text);
    let led = page.post("/console/codes", &[("find", &code)]);
    assert_eq!(led.status, 303);
    let story = page.get(led.header("location"));
    assert!(story.text.contains("ns7.example.com") && !story.text.contains(&code));
    let open = admin(&app, "/admin/activations?open=1");
    assert_eq!(open["activations"].as_array().unwrap().len(), 2);
    assert!(!open.to_string().contains(&activation.id), "an open id is a capability");
}

#[test]
fn servers_are_filtered_sorted_and_paged() {
    let app = TestApp::start();
    let ids: Vec<String> = (1..=120).map(|number| send_registration(&app, number)).collect();
    app.settle();
    app.clock.advance(1000);
    app.post("/checkin", &json!({"server_id": ids[4]}));
    app.post_as(&app.master(), "/revoke", &json!({"server_id": ids[9]}));
    app.settle();
    let list = |query: &str| admin(&app, &format!("/admin/servers?{query}"));
    let hosts = |page: &Value| -> Vec<String> {
        let servers = page["servers"].as_array().unwrap();
        servers.iter().map(|s| s["hostname"].as_str().unwrap().to_owned()).collect()
    };
    for (sort, first) in [("newest", "s120"), ("oldest", "s1"), ("seen", "s5"), ("unseen", "s1")] {
        let (mut all, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = list(&format!("sort={sort}&cursor={cursor}"));
            assert_eq!(page["count"], 120);
            all.extend(hosts(&page));
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = next.to_owned();
        }
        assert_eq!(all[0], format!("{first}.example.com"), "{sort}");
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 120, "{sort}");
    }
    assert_eq!(hosts(&list("show=revoked")), ["s10.example.com"]);
    assert_eq!(list("show=live")["count"], 119);
    assert_eq!(hosts(&list("text=S117")), ["s117.example.com"]);
    assert_eq!(hosts(&list("text=9.9.9.33")), ["s33.example.com"]);
    app.clock.advance(48 * 3600 - 1000 + 1);
    assert_eq!(
        (list("show=live")["count"].clone(), list("show=stale")["count"].clone()),
        (1.into(), 118.into())
    );
    for wrong in ["show=some", "sort=name", "cursor=x"] {
        let path = format!("{}/admin/servers?{wrong}", app.admin);
        let answer = send(app.client.get(path).bearer_auth(app.master()));
        assert_eq!(answer.told(), (422, "validation_error".into()), "{wrong}");
    }
}

#[test]
fn notes_revocations_and_restorations_survive_a_restart_and_are_logged() {
    let app = TestApp::start();
    let id = register(&app, 1);
    let path = |verb: &str| format!("/admin/servers/{id}/{verb}");
    assert_eq!(admin_post(&app, &path("note"), &json!({"note": "Bob's <b>"})).status, 200);
    assert_eq!(admin_post(&app, &path("revoke"), &json!({})).status, 200);
    assert_eq!(admin_post(&app, &path("restore"), &json!({})).status, 200);
    assert_eq!(admin_post(&app, &path("restore"), &json!({})).status, 200);
    let long = json!({"note": "n".repeat(501)});
    assert_eq!(admin_post(&app, &path("note"), &long).told(), (422, "validation_error".into()));
    let app = app.restart();
    let server = &admin(&app, "/admin/servers")["servers"][0];
    assert_eq!((&server["note"], &server["state"]), (&json!("Bob's <b>"), &json!("live")));
    let log = admin(&app, "/admin/audit");
    let told: Vec<_> =
        log["entries"].as_array().unwrap().iter().map(|e| e["action"].clone()).collect();
    assert_eq!(told, ["server_restored", "server_revoked", "server_noted", "server_registered"]);
    let page = Person::logged_in(&app).get("/console/servers");
    assert!(page.text.contains("Bob&#39;s &#60;b&#62;"), "{}", page.text);
}

#[test]
fn a_changed_setting_takes_effect_at_once_survives_a_restart_and_can_be_undone() {
    let app = TestApp::start();
    let key = "codes.ttl_seconds";
    let setting = |app: &TestApp| {
        let all = admin(app, "/admin/config");
        let all = all["settings"].as_array().unwrap();
        all.iter().find(|setting| setting["key"] == key).unwrap().clone()
    };
    assert_eq!(
        (&setting(&app)["value"], &setting(&app)["source"]),
        (&json!("300"), &json!("file"))
    );
    let changed = patch(&app, &json!({key: 120}));
    assert_eq!(changed.status, 200, "{}", changed.text);
    assert_eq!(app.browser("slowdns").issue().json()["data"]["ttl_seconds"], 120);
    app.reload_now(|_| {});
    assert_eq!(setting(&app)["source"], "override");
    let app = app.restart();
    assert_eq!(app.browser("slowdns").issue().json()["data"]["ttl_seconds"], 120);
    assert_eq!(setting(&app)["value"], "120");
    assert_eq!(patch(&app, &json!({key: null})).status, 200);
    assert_eq!(app.browser("slowdns").issue().json()["data"]["ttl_seconds"], 300);
    let log = admin(&app, "/admin/audit?action=setting_changed&actor=operator");
    let entries = log["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 2, "{log}");
    assert_eq!(entries[1]["detail"], "300 (file) -> 120 (override)");
}

#[test]
fn a_change_that_changes_nothing_is_not_in_the_audit_log() {
    let app = TestApp::start();
    let key = "codes.ttl_seconds";
    let entries = || {
        let log = admin(&app, "/admin/audit?action=setting_changed");
        log["entries"].as_array().unwrap().len()
    };
    // There is no change of this setting that could be undone.
    assert_eq!(patch(&app, &json!({key: null})).status, 200);
    assert_eq!(entries(), 0);
    for _ in 0..2 {
        assert_eq!(patch(&app, &json!({key: 60})).status, 200);
        assert_eq!(entries(), 1);
    }
    // The same value, now as an operator's change, is a change: the file no longer decides.
    let other = "servers.next_checkin_seconds";
    assert_eq!(patch(&app, &json!({key: 60, other: 86400})).status, 200);
    assert_eq!(entries(), 2);
    let log = admin(&app, "/admin/audit?action=setting_changed");
    assert_eq!(log["entries"][0]["detail"], "86400 (file) -> 86400 (override)");
}

#[test]
fn an_invalid_change_changes_nothing_and_names_the_reason() {
    let app = TestApp::start();
    let refused = |body: Value, words: &str| {
        let answer = patch(&app, &body);
        assert_eq!(answer.told(), (422, "validation_error".into()), "{body}");
        assert!(answer.text.contains(words), "{}", answer.text);
    };
    refused(json!({"limits.issue_per_ip_hour": -1}), "whole number from 0 to 1000000");
    refused(json!({"limits.issue_per_ip_day": 5, "codes.ttl_seconds": 0}), "codes.ttl_seconds");
    refused(json!({"server.bind": "0.0.0.0:1"}), "restart");
    refused(json!({"server.bind": null}), "restart");
    refused(json!({"no.key": 1}), "no.key");
    refused(json!({"codes.ttl_seconds": 7200}), "codes.max_lifetime_seconds");
    let all = admin(&app, "/admin/config").to_string();
    assert!(!all.contains("override"), "{all}");
    let config = format!("{}/admin/config", app.admin);
    let body = json!({"codes.ttl_seconds": 60}).to_string();
    let without = app.client.patch(&config).bearer_auth(app.master()).body(body.clone());
    assert_eq!(send(without).told(), (428, "precondition_required".into()));
    let stale = app.client.patch(&config).bearer_auth(app.master()).body(body);
    assert_eq!(send(stale.header("if-match", "\"0\"")).told(), (412, "precondition_failed".into()));
}

/// Returns the value of a key and its source.
fn in_force(app: &TestApp, key: &str) -> (String, String) {
    let all = admin(app, "/admin/config");
    let mut all = all["settings"].as_array().unwrap().iter();
    let one = all.find(|setting| setting["key"] == key).unwrap();
    let text = |name: &str| one[name].as_str().unwrap().to_owned();
    (text("value"), text("source"))
}

/// Reloads the file, and waits until the new settings are shown.
fn read_again(app: &TestApp, change: impl FnOnce(&mut Config)) {
    let config = format!("{}/admin/config", app.admin);
    let tag = || send(app.client.get(&config).bearer_auth(app.master())).header("etag").to_owned();
    let before = tag();
    app.reload_now(change);
    wait_until("the settings are shown", || tag() != before);
}

#[test]
fn settings_that_depend_on_each_other_survive_a_restart_and_a_reload() {
    let app = TestApp::start();
    let (most, life) = ("codes.max_lifetime_seconds", "codes.ttl_seconds");
    assert_eq!(patch(&app, &json!({most: 120, life: 60})).status, 200);
    let told = |app: &TestApp| [in_force(app, most).0, in_force(app, life).0];
    assert_eq!(told(&app), ["120", "60"]);
    read_again(&app, |_| {});
    assert_eq!(told(&app), ["120", "60"], "after reading the file again");
    let app = app.restart();
    assert_eq!(told(&app), ["120", "60"], "after a restart");
}

#[test]
fn an_inactive_change_does_not_block_other_changes() {
    let app = TestApp::start();
    let (most, life) = ("codes.max_lifetime_seconds", "codes.ttl_seconds");
    assert_eq!(patch(&app, &json!({life: 1800})).status, 200);
    read_again(&app, |config| config.lifetimes.max_lifetime = 900);
    assert_eq!(in_force(&app, most).0, "900");
    assert_eq!(in_force(&app, life), ("300".into(), "file".into()));
    let other = patch(&app, &json!({"servers.next_checkin_seconds": 60}));
    assert_eq!(other.status, 200, "{}", other.text);
    assert_eq!(in_force(&app, life), ("300".into(), "file".into()));
    // The change is kept. It becomes active again when it is valid again, unless it is undone.
    read_again(&app, |config| config.lifetimes.max_lifetime = 3600);
    assert_eq!(in_force(&app, life), ("1800".into(), "override".into()));
    read_again(&app, |config| config.lifetimes.max_lifetime = 900);
    assert_eq!(patch(&app, &json!({life: null})).status, 200);
    read_again(&app, |config| config.lifetimes.max_lifetime = 3600);
    assert_eq!(in_force(&app, life), ("300".into(), "file".into()));
}

#[test]
fn an_inactive_change_becomes_active_when_it_is_valid_again_and_that_is_logged() {
    let app = TestApp::start();
    let (most, life) = ("codes.max_lifetime_seconds", "codes.ttl_seconds");
    assert_eq!(patch(&app, &json!({life: 2000})).status, 200);
    read_again(&app, |config| config.lifetimes.max_lifetime = 1000);
    assert_eq!(in_force(&app, life), ("300".into(), "file".into()));
    // It is shown as inactive, so that an operator can undo it.
    let settings = admin(&app, "/admin/config")["settings"].clone();
    let shown = settings.as_array().unwrap().iter().find(|one| one["key"] == life).unwrap();
    assert_eq!(shown["overtaken"], "2000");
    let page = Person::logged_in(&app).get("/console/settings").text;
    assert!(page.contains("An earlier change to 2000 is inactive"), "{page}");
    // It becomes active at once, not at the next start.
    assert_eq!(patch(&app, &json!({most: 5000})).status, 200);
    assert_eq!(in_force(&app, life), ("2000".into(), "override".into()));
    let log = admin(&app, "/admin/audit?action=setting_changed").to_string();
    assert!(log.contains("300 (file) -> 2000 (override)"), "{log}");
    let app = app.restart();
    assert_eq!(in_force(&app, life), ("2000".into(), "override".into()));
    // A change that conflicts with an active one is refused, and the active one stays.
    let refused = patch(&app, &json!({most: 1500}));
    assert_eq!(refused.status, 422, "{}", refused.text);
    assert_eq!(in_force(&app, life), ("2000".into(), "override".into()));
}

#[test]
fn a_text_setting_has_a_maximum_length() {
    let app = TestApp::start();
    let refused = patch(&app, &json!({"pages.install_command": "x".repeat(2001)}));
    assert_eq!(refused.status, 422);
    assert!(refused.text.contains("at most 2000 characters"), "{}", refused.text);
}

#[test]
fn settings_can_be_changed_while_the_master_token_file_is_unreadable() {
    let app = TestApp::start();
    let (token, file) = (app.master(), &app.config.auth.master_token_file);
    std::fs::remove_file(file).unwrap();
    std::fs::create_dir(file).unwrap();
    let request = app.client.patch(format!("{}/admin/config", app.admin)).bearer_auth(token);
    let body = json!({"codes.ttl_seconds": 60}).to_string();
    let answer = send(request.header("if-match", "*").body(body));
    assert_eq!(answer.status, 200, "{}", answer.text);
    let lives = || app.browser("slowdns").issue().json()["data"]["ttl_seconds"].clone();
    wait_until("every server has heard of it", || [lives(), lives(), lives()] == [60, 60, 60]);
}

#[test]
fn an_export_of_the_log_is_complete_and_ends_at_its_head() {
    let app = TestApp::start();
    let code = app.issue();
    Machine::new(1).install(&app, &code).confirm(&app);
    register(&app, 1);
    let export =
        send(app.client.get(format!("{}/admin/audit/export", app.admin)).bearer_auth(app.master()));
    assert_eq!(export.header("content-type"), "application/jsonl");
    let numbers: Vec<u64> = export
        .text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["number"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, (1..=4).collect::<Vec<u64>>());
    let head = admin(&app, "/admin/audit");
    assert!(export.text.lines().last().unwrap().contains(head["head_hash"].as_str().unwrap()));
    let some = "/admin/audit/export?action=activated&text=ns1";
    let some = send(app.client.get(format!("{}{some}", app.admin)).bearer_auth(app.master()));
    assert_eq!(some.text.lines().count(), 1);
}

#[test]
fn the_figures_of_now_follow_the_load() {
    let app = TestApp::start();
    register(&app, 1);
    let code = app.issue();
    Machine::new(1).install(&app, &code);
    wait_until("the metrics have been read twice", || {
        app.get("/api/v2/healthz");
        let now = admin(&app, "/admin/now");
        now["requests_per_second"].as_f64().unwrap() > 0.0 && now["servers"] == 1.0
    });
    let now = admin(&app, "/admin/now");
    assert_eq!(now["installs"]["activations"]["open"], 1);
    assert_eq!(now["installs"]["open_count"], 1);
    assert_eq!(now["installs"]["open"][0]["hostname"], "ns1.example.com");
    assert_eq!(now["actors"].as_array().unwrap().len(), 5);
    let person = Person::logged_in(&app);
    let installs = |person: &Person<'_>| {
        let page = person.get("/console/load/live").text;
        assert!(page.contains("<svg class=\"chart\""), "{page}");
        page.contains("1 in 15 min")
    };
    wait_until("the charts show the code and the activation", || installs(&person));
    // The charts go on after a restart. Metrics begin anew.
    let (base, cookie) = (person.base, person.cookie);
    let app = app.restart();
    assert!(installs(&Person { base, cookie, ..Person::new(&app) }));
}

#[test]
fn a_malformed_form_or_query_gets_a_readable_error() {
    let app = TestApp::start();
    let person = Person::logged_in(&app);
    let answer = person.post("/console/settings", &[("key", "x")]);
    assert_eq!(answer.status, 422, "{}", answer.text);
    assert!(answer.text.starts_with("<!doctype html>") && answer.text.contains("tag"));
    let path = format!("{}/admin/activations?limit=many", app.admin);
    let answer = send(app.client.get(path).bearer_auth(app.master()));
    assert_eq!(answer.told(), (422, "validation_error".into()));
}
