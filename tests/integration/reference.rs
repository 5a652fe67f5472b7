//! The API reference is correct: real responses are validated against its document.

use crate::harness::{Activation, Answer, Machine, TestApp, send, wait_until, with, without};
use iptunnel_server::public::ROUTES;
use iptunnel_server::public::reference::catalogue::ERRORS;
use iptunnel_server::public::reference::operations::OPERATIONS;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const UNKNOWN_CODE: &str = "IPT-SD-AAAAAA-BBBBBB-CCCCCC";

/// The document, and the server whose responses are validated against it.
struct Reference {
    app: TestApp,
    document: Value,
}

/// Makes schemas forbid unknown fields. The document allows future fields, but today's responses
/// must contain documented fields only.
fn close(schema: &mut Value, is_use: bool) {
    let Some(object) = schema.as_object_mut() else { return };
    if is_use && ["$ref", "allOf", "properties"].iter().any(|key| object.contains_key(*key)) {
        object.insert("unevaluatedProperties".into(), false.into());
    }
    for part in object.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        close(part.1, true);
    }
    if let Some(items) = object.get_mut("items") {
        close(items, true);
    }
    for way in object.get_mut("oneOf").and_then(Value::as_array_mut).into_iter().flatten() {
        close(way, true);
    }
}

impl Reference {
    fn start_with(change: impl FnOnce(&mut Vec<(&'static str, String)>)) -> Self {
        let app = TestApp::start_with(change);
        let document = app.get("/api/v2/openapi.json").json();
        Self { app, document }
    }

    fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// Returns the documented response of an operation for this status.
    fn documented(&self, id: &str, status: u16) -> &Value {
        let operations = self.document["paths"].as_object().unwrap().values();
        let operation = operations
            .flat_map(|item| item.as_object().unwrap().values())
            .find(|operation| operation["operationId"] == id)
            .unwrap_or_else(|| panic!("{id} is not in the document"));
        let response = &operation["responses"][status.to_string()];
        assert!(response.is_object(), "{id} does not document {status}");
        response
    }

    /// Validates a response against the document.
    fn holds(&self, id: &str, status: u16, answer: &Answer) {
        assert_eq!(answer.status, status, "{id}: {}", answer.text);
        let response = self.documented(id, status);
        let kind = answer.header("content-type").split(';').next().unwrap();
        let content = &response["content"][kind];
        assert!(content.is_object(), "{id} {status} does not document {kind}");
        if kind == "application/json" {
            self.validate(&content["schema"], &answer.json(), &format!("{id} {status}"));
            if let Some(example) = content.get("example") {
                self.validate(&content["schema"], example, &format!("{id}'s example"));
            }
        }
        let documented = response["headers"].as_object().unwrap();
        assert!(!answer.header("x-request-id").is_empty(), "{id} {status}");
        for name in ["Retry-After", "RateLimit", "RateLimit-Policy"] {
            let sent = !answer.header(&name.to_lowercase()).is_empty();
            assert!(!sent || documented.contains_key(name), "{id} {status} sends {name}");
        }
    }

    fn validate(&self, schema: &Value, value: &Value, what: &str) {
        let mut schema = schema.clone();
        let mut components = self.document["components"].clone();
        close(&mut schema, true);
        for component in components["schemas"].as_object_mut().unwrap().values_mut() {
            close(component, false);
        }
        schema["components"] = components;
        let validator = jsonschema::validator_for(&schema).unwrap();
        let problems: Vec<String> =
            validator.iter_errors(value).map(|problem| problem.to_string()).collect();
        assert!(problems.is_empty(), "{what}: {problems:?} in {value}");
    }

    fn step(&self, step: &str, body: &Value, status: u16) -> Answer {
        let answer = self.app.post(&format!("/api/v2/slowdns/install/{step}"), body);
        self.holds(step, status, &answer);
        answer
    }

    /// Runs a precheck and an activate, and validates both responses.
    fn install(&self, machine: &Machine, code: &str) -> Activation {
        let prechecked = self.step("precheck", &machine.precheck_body(code), 200);
        let token = prechecked.data("precheck_token");
        let activated = self.step("activate", &machine.activate_body(code, &token), 200);
        Activation { id: activated.data("activation_id"), token: activated.data("install_token") }
    }
}

#[test]
fn issues_are_as_documented() {
    let reference =
        Reference::start_with(|c| c.push(("limits.issue_per_session_hour", "1".into())));
    let app = &reference.app;
    let browser = app.browser("slowdns");
    reference.holds("issue", 201, &browser.issue());
    reference.holds("issue", 429, &browser.issue());
    reference.holds("issue", 403, &app.post_text("/api/v2/slowdns/code/issue", ""));
    let forged = browser.issue_request().header("sec-fetch-site", "cross-site");
    reference.holds("issue", 403, &send(forged));
    reference.holds("issue", 404, &app.post_text("/api/v2/nothing/code/issue", ""));
}

#[test]
fn prechecks_and_activates_are_as_documented() {
    let reference = Reference::start();
    let app = &reference.app;
    let (machine, other) = (Machine::new(1), Machine::new(2));
    let code = app.issue();
    let body = machine.precheck_body(&code);
    let token = reference.step("precheck", &body, 200).data("precheck_token");

    reference.step("precheck", &without(body.clone(), "machine_id"), 422);
    reference.step("precheck", &with(body.clone(), "product", "other"), 403);
    reference.step("precheck", &machine.precheck_body(UNKNOWN_CODE), 404);
    for step in ["precheck", "activate"] {
        let path = format!("/api/v2/slowdns/install/{step}");
        reference.holds(step, 400, &app.post_text(&path, ""));
        reference.holds(step, 400, &app.post_text(&path, "[]"));
        reference.holds(step, 413, &app.post_text(&path, &" ".repeat(70_000)));
    }

    let body = machine.activate_body(&code, &token);
    reference.step("activate", &with(body.clone(), "precheck_token", "x"), 403);
    let invalid = reference.step("activate", &with(body.clone(), "hostname", "x"), 422);
    assert_eq!(invalid.code(), "invalid_binding");
    reference.step("activate", &without(body.clone(), "machine_id"), 422);
    reference.step("activate", &body, 200);
    let used = reference.step("precheck", &other.precheck_body(&code), 403);
    assert_eq!(used.code(), "install_code_used");

    let expired = app.issue();
    app.clock.advance(301);
    let expired = reference.step("precheck", &other.precheck_body(&expired), 403);
    assert_eq!(expired.code(), "install_code_expired");
}

#[test]
fn limits_are_as_documented() {
    let reference = Reference::start_with(|c| {
        c.push(("limits.precheck_per_ip_day", "0".into()));
        c.push(("limits.activate_per_ip_day", "0".into()));
    });
    for step in ["precheck", "activate"] {
        reference.step(step, &json!({}), 429);
    }
}

#[test]
fn confirms_and_releases_are_as_documented() {
    let reference = Reference::start();
    let app = &reference.app;
    let first = reference.install(&Machine::new(1), &app.issue());
    let second = reference.install(&Machine::new(2), &app.issue());
    let body = json!({"activation_id": first.id, "install_token": first.token});
    let mixed = with(body.clone(), "install_token", second.token.clone());
    for step in ["confirm", "release"] {
        reference.step(step, &mixed, 403);
        reference.step(step, &with(body.clone(), "install_token", "x"), 403);
        reference.step(step, &json!({}), 422);
        let path = format!("/api/v2/slowdns/install/{step}");
        reference.holds(step, 400, &app.post_text(&path, "x"));
        reference.holds(step, 413, &app.post_text(&path, &" ".repeat(70_000)));
    }
    reference.step("confirm", &body, 200);
    reference.step("confirm", &body, 409);
    reference.step("release", &body, 200);
    let second_body = json!({"activation_id": second.id, "install_token": second.token});
    reference.step("release", &second_body, 200);
    reference.step("release", &second_body, 404);
    reference.step("confirm", &second_body, 404);
}

#[test]
fn registrations_and_their_errors_are_as_documented() {
    let reference = Reference::start();
    let app = &reference.app;
    let master = app.master();
    let body = json!({"token": master, "ip": "1.2.3.4", "hostname": "ns1.example.com"});
    let registered = app.post("/register", &body);
    reference.holds("register", 200, &registered);
    let id = registered.json()["server_id"].clone();
    let named = json!({"server_id": id});
    reference.holds("register", 400, &app.post("/register", &json!({})));
    reference.holds("register", 413, &app.post_text("/register", &" ".repeat(70_000)));
    reference.holds("register", 403, &app.post("/register", &with(body.clone(), "token", "x")));

    reference.holds("checkin", 200, &app.post("/checkin", &named));
    reference.holds("checkin", 400, &app.post("/checkin", &json!({})));
    reference.holds("checkin", 401, &app.post_as("wrong", "/checkin", &named));
    let unknown = json!({"server_id": "ffffffffffffffff"});
    reference.holds("checkin", 404, &app.post("/checkin", &unknown));

    reference.holds("revoke", 403, &app.post("/revoke", &named));
    reference.holds("revoke", 400, &app.post_as(&master, "/revoke", &json!({})));
    reference.holds("revoke", 404, &app.post_as(&master, "/revoke", &unknown));
    reference.holds("revoke", 200, &app.post_as(&master, "/revoke", &named));
    app.settle();
    reference.holds("checkin", 403, &app.post("/checkin", &named));
    reference.holds("register", 403, &app.post("/register", &body));

    for query in ["", "?limit=1", "?revoked=1&stale=0"] {
        reference.holds("status", 200, &app.get_as(&master, &format!("/status{query}")));
    }
    reference.holds("status", 400, &app.get_as(&master, "/status?limit=0"));
    reference.holds("status", 403, &app.get("/status"));
}

#[test]
fn the_v2_listing_and_registration_are_as_documented() {
    let reference = Reference::start();
    let (app, master) = (&reference.app, reference.app.master());
    let path = "/api/v2/servers/register";
    let body = json!({"token": master, "ip": "1.2.3.4", "hostname": "ns1.example.com"});
    let holds = |status, answer| reference.holds("server_register", status, &answer);
    let registered = app.post(path, &body);
    let id = registered.data("server_id");
    holds(200, registered);
    holds(400, app.post_text(path, ""));
    holds(401, app.post(path, &with(body.clone(), "token", "x")));
    holds(413, app.post_text(path, &" ".repeat(70_000)));
    holds(422, app.post(path, &with(body.clone(), "ip", "10.0.0.1")));
    app.settle();
    for query in ["", "?page=2&per_page=1&status=active&search=ns1"] {
        let answer = app.get_as(&master, &format!("/api/v2/servers{query}"));
        reference.holds("servers", 200, &answer);
    }
    reference.holds("servers", 401, &app.get("/api/v2/servers"));
    reference.holds("servers", 422, &app.get_as(&master, "/api/v2/servers?page=0"));
    reference.holds("servers", 405, &app.post_text("/api/v2/servers", ""));
    reference.holds("server", 200, &app.get_as(&master, &format!("/api/v2/servers/{id}")));
    reference.holds("server", 401, &app.get(&format!("/api/v2/servers/{id}")));
    reference.holds("server", 404, &app.get_as(&master, "/api/v2/servers/ffffffffffffffff"));
    app.post_as(&master, &format!("/api/v2/servers/{id}/revoke"), &json!({}));
    app.settle();
    holds(403, app.post(path, &body));
    let delete = |token: &str, id: &str| {
        let request = app.client.delete(format!("{}/api/v2/servers/{id}", app.url));
        send(request.bearer_auth(token))
    };
    reference.holds("server_delete", 401, &delete("wrong", &id));
    reference.holds("server_delete", 404, &delete(&master, "ffffffffffffffff"));
    reference.holds("server_delete", 200, &delete(&master, &id));
}

#[test]
fn install_tickets_are_as_documented() {
    let reference = Reference::start_with(|c| {
        c.push(("server.allow_private_ips", "true".into()));
        c.push(("limits.ticket_per_ip_hour", "7".into()));
    });
    let (app, path) = (&reference.app, "/api/v2/install-tickets/issue");
    let holds = |status, answer| reference.holds("ticket_issue", status, &answer);
    reference.holds("authorize", 404, &app.get("/authorize"));
    holds(401, app.post_text(path, ""));
    let token = json!({"name": "office", "role": "enrol", "addresses": ["127.0.0.1"]});
    let request = app.client.post(format!("{}/admin/tokens", app.admin)).bearer_auth(app.master());
    let created = send(request.body(token.to_string()));
    assert_eq!(created.status, 201, "{}", created.text);
    let text = created.data("token");
    wait_until("all servers know the token", || {
        (0..3 * app.servers()).all(|_| app.get_as(&text, "/status?limit=1").status == 200)
    });
    holds(201, app.post_text(path, ""));
    reference.holds("authorize", 200, &app.get("/authorize"));
    holds(400, app.post_text(path, "[]"));
    holds(413, app.post_text(path, &" ".repeat(70_000)));
    holds(422, app.post(path, &json!({"ttl_seconds": 1})));
    holds(422, app.post_as(&app.master(), path, &json!({})));
    holds(429, app.post_text(path, ""));
    reference.holds("authorize", 429, &app.get("/authorize"));
}

#[test]
fn the_pages_of_a_listing_are_as_documented() {
    let reference = Reference::start();
    let (app, master) = (&reference.app, reference.app.master());
    for ip in ["1.2.3.4", "1.2.3.5"] {
        app.post("/register", &json!({"token": master, "ip": ip}));
    }
    let page = app.get_as(&master, "/status?limit=1");
    reference.holds("status", 200, &page);
    assert!(page.json()["next_cursor"].is_string());
}

#[test]
fn servers_are_as_documented() {
    for (status, revoked) in [("403", 403), ("200", 200)] {
        let reference = Reference::start_with(|c| {
            c.push(("servers.revoked_checkin_status", status.into()));
        });
        let (app, master) = (&reference.app, reference.app.master());
        let body = json!({"token": master, "ip": "1.2.3.4"});
        let id = app.post("/register", &body).json()["server_id"].as_str().unwrap().to_owned();
        let path = |id: &str, verb: &str| format!("/api/v2/servers/{id}/{verb}");
        let check_in = path(&id, "check-in");
        let holds = |status, answer| reference.holds("server_check_in", status, &answer);
        holds(200, app.post_text(&check_in, ""));
        holds(400, app.post_text(&check_in, "x"));
        holds(401, app.post_as("wrong", &check_in, &json!({})));
        holds(404, app.post_text(&path("ffffffffffffffff", "check-in"), ""));
        holds(413, app.post_text(&check_in, &" ".repeat(70_000)));
        for (operation, verb) in [("server_revoke", "revoke"), ("server_restore", "restore")] {
            let holds = |status, answer| reference.holds(operation, status, &answer);
            holds(401, app.post(&path(&id, verb), &json!({})));
            holds(404, app.post_as(&master, &path("ffffffffffffffff", verb), &json!({})));
            holds(200, app.post_as(&master, &path(&id, verb), &json!({})));
        }
        app.post_as(&master, &path(&id, "revoke"), &json!({}));
        app.settle();
        holds(revoked, app.post_text(&check_in, ""));
        let legacy = app.post("/checkin", &json!({"server_id": id}));
        reference.holds("checkin", revoked, &legacy);
    }
}

/// Settings of a server that announces an installer.
fn announced(folder: &std::path::Path) -> [(&'static str, String); 3] {
    let script = folder.join("install.sh");
    std::fs::write(&script, "#!/bin/sh\n").unwrap();
    [
        ("installer.script", script.display().to_string()),
        ("installer.version", "2026.03.31".into()),
        ("installer.notes", "Faster check-ins.".into()),
    ]
}

#[test]
fn the_installer_and_its_version_are_as_documented() {
    let folder = tempfile::tempdir().unwrap();
    for (status, settings) in [(404, None), (200, Some(announced(folder.path())))] {
        let reference = Reference::start_with(|c| c.extend(settings.into_iter().flatten()));
        for (id, path) in [
            ("installer", "/iptunnel-install.sh"),
            ("installer_version", "/version.json"),
            ("v2_installer_version", "/api/v2/version"),
        ] {
            reference.holds(id, status, &reference.app.get(path));
        }
    }
}

#[test]
fn what_a_machine_loads_to_install_itself_is_as_documented() {
    let folder = tempfile::tempdir().unwrap();
    let reference = Reference::start_with(|c| {
        c.push(("installer.payloads", folder.path().display().to_string()));
        c.push(("products.slowdns", "SD".into()));
        c.push(("products.other", "OT".into()));
    });
    let app = &reference.app;
    reference.holds("install_script", 200, &app.get("/slowdns/install.sh"));
    reference.holds("address", 200, &app.get("/api/v2/address"));
    let token = reference.install(&Machine::new(1), &app.issue()).token;
    let load = |product: &str| app.get_as(&token, &format!("/api/v2/{product}/install/payload"));
    reference.holds("payload", 404, &load("slowdns"));
    std::fs::write(folder.path().join("slowdns.sh"), "exit 0\n").unwrap();
    reference.holds("payload", 200, &load("slowdns"));
    reference.holds("payload", 403, &load("other"));
}

#[test]
fn health_and_the_document_itself_are_as_documented() {
    let reference = Reference::start();
    let app = &reference.app;
    reference.holds("main_stack_healthz", 200, &app.get("/healthz"));
    reference.holds("healthz", 200, &app.get("/api/v2/healthz"));
    reference.holds("readyz", 200, &app.get("/readyz"));
    let document = app.get("/api/v2/openapi.json");
    reference.holds("document", 200, &document);
    assert!(document.json()["openapi"].as_str().unwrap().starts_with("3.1."));
    assert_eq!(document.header("cache-control"), "no-cache");
}

#[test]
fn the_document_has_exactly_the_api_routes() {
    let folder = tempfile::tempdir().unwrap();
    let reference = Reference::start_with(|c| c.extend(announced(folder.path())));
    let mut told = BTreeSet::new();
    for (path, item) in reference.document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            let known = OPERATIONS.iter().find(|known| known.id == id);
            told.insert(known.unwrap_or_else(|| panic!("{id} is in no table")).route);
            let path =
                path.replace("{product}", "slowdns").replace("{server_id}", "0123456789abcdef");
            // Their answers are no JSON.
            if ["/readyz", "/iptunnel-install.sh", "/slowdns/install.sh"].contains(&path.as_str()) {
                continue;
            }
            let answer = match method.as_str() {
                "get" => reference.app.get(&path),
                "delete" => {
                    send(reference.app.client.delete(format!("{}{path}", reference.app.url)))
                }
                _ => reference.app.post_text(&path, ""),
            };
            let nothing = ["not_found", "method_not_allowed"].map(str::to_owned);
            assert!(!nothing.contains(&answer.code()), "{method} {path}: {}", answer.text);
        }
    }
    let pages = ["asset", "docs", "events", "landing", "page"];
    let api: BTreeSet<&str> = ROUTES.into_iter().filter(|name| !pages.contains(name)).collect();
    assert_eq!(told, api);
}

#[test]
fn every_documented_code_is_explained_and_every_response_described() {
    let reference = Reference::start();
    let explained: Vec<&str> = ERRORS.iter().map(|error| error.code).collect();
    for item in reference.document["paths"].as_object().unwrap().values() {
        for operation in item.as_object().unwrap().values() {
            for (status, response) in operation["responses"].as_object().unwrap() {
                assert_ne!(response["description"], "", "{} {status}", operation["operationId"]);
                let schema = &response["content"]["application/json"]["schema"];
                let codes = &schema["allOf"][1]["properties"]["error"]["properties"]["code"];
                for code in codes["enum"].as_array().into_iter().flatten() {
                    assert!(explained.contains(&code.as_str().unwrap()), "{code}");
                }
            }
        }
    }
    for operation in &OPERATIONS {
        for code in operation.refusals {
            assert!(explained.contains(code), "{}: {code}", operation.id);
        }
    }
}

#[test]
fn the_messages_of_an_install_match_the_examples() {
    let reference = Reference::start();
    let documented = |id: &str, status| {
        reference.documented(id, status)["content"]["application/json"]["example"].clone()
    };
    let app = &reference.app;
    let issued = app.browser("slowdns").issue();
    let code = issued.data("install_code");
    let machine = Machine::new(1);
    let prechecked = machine.precheck(app, &code);
    let activated = machine.activate(app, &code, &prechecked.data("precheck_token"));
    let activation =
        Activation { id: activated.data("activation_id"), token: activated.data("install_token") };
    let confirmed = activation.confirm(app);
    let released = machine.install(app, &app.issue()).release(app);
    let steps = [
        ("issue", 201, issued),
        ("precheck", 200, prechecked),
        ("activate", 200, activated),
        ("confirm", 200, confirmed),
        ("release", 200, released),
    ];
    for (id, status, answer) in steps {
        let (example, answer) = (documented(id, status), answer.json());
        assert_eq!(example["meta"], answer["meta"], "{id}");
        let keys = |value: &Value| -> Vec<String> {
            value["data"].as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(keys(&example), keys(&answer), "{id}");
    }
}

#[test]
fn every_product_is_in_the_document() {
    let reference = Reference::start_with(|c| {
        c.push(("products.slowdns", "SD".into()));
        c.push(("products.other", "OT".into()));
    });
    let issue = &reference.document["paths"]["/api/v2/{product}/code/issue"]["post"];
    assert_eq!(issue["parameters"][0]["schema"]["enum"], json!(["other", "slowdns"]));
    assert_eq!(issue["security"], json!([{"other_browser": []}, {"slowdns_browser": []}]));
}

#[test]
fn the_page_has_an_anchor_for_every_code_and_every_operation() {
    let page = TestApp::start().get("/docs");
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    for error in &ERRORS {
        assert!(page.text.contains(&format!("id=\"{}\"", error.code)), "{}", error.code);
    }
    for operation in &OPERATIONS {
        assert!(page.text.contains(&format!("id=\"op-{}\"", operation.id)), "{}", operation.id);
    }
    for link in page.text.split("href=\"#").skip(1) {
        let anchor = link.split('"').next().unwrap();
        assert!(page.text.contains(&format!("id=\"{anchor}\"")), "#{anchor} leads nowhere");
    }
    let mut ids: Vec<&str> =
        page.text.split(" id=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all, "an id is used twice");
}

#[test]
fn the_example_requests_on_the_page_match_their_schemas() {
    let reference = Reference::start();
    let page = reference.app.get("/docs").text.replace("&#34;", "\"").replace("&#39;", "'");
    let mut examples = 0;
    for item in reference.document["paths"].as_object().unwrap().values() {
        for operation in item.as_object().unwrap().values() {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            if schema.is_null() {
                continue;
            }
            let id = operation["operationId"].as_str().unwrap();
            let (_, shown) = page.split_once(&format!("<h3 id=\"op-{id}\"")).unwrap();
            let (_, example) = shown.split_once("-d '").unwrap();
            let (example, _) = example.split_once("'<").unwrap();
            let example = serde_json::from_str(example).unwrap();
            reference.validate(schema, &example, &format!("{id}'s example request"));
            examples += 1;
        }
    }
    assert_eq!(examples, 9);
}

#[test]
fn the_page_loads_nothing_from_other_hosts_and_has_a_strict_policy() {
    let app = TestApp::start();
    let page = app.get("/docs");
    let own = app.config.server.public_url.origin();
    assert!(!page.text.replace(own, "").contains("://"), "an address of another host");
    let scripts = page.text.matches("<script").count();
    assert!(page.text.contains("<script src=\"/assets/docs.js\"") && scripts == 1);
    assert!(!page.text.contains("onclick") && !page.text.contains(" style="));
    assert!(!page.text.contains("<style"));
    let policy = page.header("content-security-policy");
    assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe-"), "{policy}");
    assert_eq!(page.header("referrer-policy"), "same-origin");
    for link in page.text.split("href=\"/").skip(1) {
        let path = format!("/{}", link.split('"').next().unwrap());
        assert_eq!(app.get(&path).status, 200, "{path}");
    }
}
