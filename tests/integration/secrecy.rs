//! No secret appears in the log, on standard output or in the metrics, at any log level.

use crate::harness::{Machine, try_send};
use crate::process::Process;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use nix::sys::signal::Signal;
use reqwest::blocking::Client;
use reqwest::redirect::Policy;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// The secrets that must never appear, collected by the test.
#[derive(Default)]
struct Secrets(BTreeSet<String>);

impl Secrets {
    fn keep(&mut self, secret: impl Into<String>) -> String {
        let secret = secret.into();
        assert!(secret.len() >= 12, "too short to be looked for: {secret}");
        self.0.insert(secret.clone());
        secret
    }

    /// Adds a token, and its signature and claims separately.
    fn keep_token(&mut self, token: String) -> String {
        token.split('.').skip(1).for_each(|part| drop(self.keep(part)));
        self.keep(token)
    }

    /// Adds a key in every encoding that a log might use.
    fn keep_key(&mut self, base64: &str) {
        let bytes = STANDARD.decode(self.keep(base64.trim())).unwrap();
        self.keep(URL_SAFE_NO_PAD.encode(&bytes));
        self.keep(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        self.keep(format!("{bytes:?}").trim_matches(['[', ']']));
    }

    fn check(&self, place: &str, text: &str) {
        for secret in &self.0 {
            let found = text.find(secret.as_str());
            let line = found.and_then(|at| text[..at].rsplit('\n').next());
            assert!(found.is_none(), "{place} shows {secret:?} after {line:?}");
        }
    }
}

/// Adds the keys in the files, a cookie's value and its session id.
fn keep_files_and_cookie(server: &Process, secrets: &mut Secrets) -> String {
    secrets.keep(&server.api.master);
    secrets.keep_key(&server.file("data/lookup.key"));
    for line in server.file("data/signing.keys").lines() {
        secrets.keep_key(line.split_once(':').unwrap().1);
    }
    let cookie = server.api.cookie().unwrap();
    let value = secrets.keep_token(cookie.split_once('=').unwrap().1.to_owned());
    for part in value.split('.') {
        let claims = URL_SAFE_NO_PAD.decode(part).ok();
        let claims: Option<Value> = claims.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let texts = claims.as_ref().and_then(Value::as_object).into_iter().flatten();
        let ids = texts.filter(|(name, _)| ["sub", "jti", "sid"].contains(&name.as_str()));
        ids.filter_map(|(_, id)| id.as_str()).filter(|id| id.len() >= 16).for_each(|id| {
            secrets.keep(id);
        });
    }
    cookie
}

/// Requests every route with correct and with wrong input.
fn use_everything(server: &Process, secrets: &mut Secrets) {
    let api = &server.api;
    let cookie = keep_files_and_cookie(server, secrets);
    let machine = Machine {
        machine_id: secrets.keep("8f14e45fceea167a5a36dedd4bea2543"),
        fingerprint: secrets.keep("SHA256:uNiVztksCsDhcc0u9e8BgrJXVGDs"),
        ..Machine::new(1)
    };
    let issue =
        |secrets: &mut Secrets| secrets.keep(api.issue_with(&cookie).unwrap().data("install_code"));
    for last in ["confirm", "release"] {
        let code = issue(secrets);
        secrets.keep(code.to_lowercase());
        let prechecked = api.install("precheck", &machine.precheck_body(&code)).unwrap();
        let token = secrets.keep_token(prechecked.data("precheck_token"));
        let activate = machine.activate_body(&code, &token);
        let activated = api.install("activate", &activate).unwrap();
        let id = secrets.keep(activated.data("activation_id"));
        let token = secrets.keep_token(activated.data("install_token"));
        let finish = json!({"activation_id": id, "install_token": token});
        for _ in 0..2 {
            api.install("activate", &activate).unwrap();
            api.install(last, &finish).unwrap();
        }
        // Wrong requests that contain real secrets.
        for step in ["precheck", "activate", "confirm", "release"] {
            for body in [&activate, &finish] {
                api.install(step, body).unwrap();
                api.install(step, &json!([body])).unwrap();
                let mut cut = body.to_string();
                cut.pop();
                let url = format!("{}/api/v2/slowdns/install/{step}", api.url);
                try_send(api.client.post(url).body(cut)).unwrap();
            }
            let swapped = json!({"install_code": token, "machine_id": code, "ssh_fingerprint": id,
                "activation_id": token, "install_token": code, "precheck_token": code});
            api.install(step, &swapped).unwrap();
        }
        // Secrets in places where they do not belong.
        let forged = format!("{cookie}x");
        api.issue_with(&forged).unwrap();
        for path in [&code, &id, &token, &api.master] {
            for url in [
                format!("/{path}"),
                format!("/api/v2/{path}/code/issue"),
                format!("/api/v2/servers/{path}/check-in"),
                format!("/status?cursor={path}&limit={path}"),
                format!("/slowdns?code={path}"),
                "/api/v2/slowdns/install/payload".to_owned(),
            ] {
                let request = api.client.get(format!("{}{url}", api.url));
                let request = request.header("x-request-id", path).header("cookie", path);
                try_send(request.bearer_auth(path)).unwrap();
                api.post(&url, &json!({})).unwrap();
            }
            api.get(&format!("{}/{path}?x={path}", api.admin)).unwrap();
        }
    }
    use_servers(server, secrets);
    use_the_console(server, secrets);
    use_access_tokens(server, secrets);
}

/// Makes access tokens in every way, and sends them wherever a token or another text may be.
fn use_access_tokens(server: &Process, secrets: &mut Secrets) {
    let api = &server.api;
    let post = |path: &str, token: &str, body: &Value| {
        let request = api.client.post(format!("{}{path}", api.admin)).bearer_auth(token);
        try_send(request.body(body.to_string())).unwrap()
    };
    let body = json!({"name": "fleet", "role": "enrol"});
    let first = secrets.keep(post("/admin/tokens", &api.master, &body).data("token"));
    let rotated = post("/admin/tokens/1/rotate", &api.master, &json!({}));
    let second = secrets.keep(rotated.data("token"));
    let body = json!({"name": "admin", "role": "admin"});
    let admin = secrets.keep(post("/admin/tokens", &api.master, &body).data("token"));
    for token in [&first, &second, &admin] {
        secrets.keep(&token[4..]);
        let register = json!({"token": token, "ip": "1.2.3.5", "hostname": "b.example.com"});
        api.post("/register", &register).unwrap();
        for path in ["/status", "/api/v2/servers/0123456789abcdef/revoke"] {
            let request = api.client.get(format!("{}{path}", api.url));
            try_send(request.bearer_auth(token)).unwrap();
        }
        let cut = secrets.keep(&token[..token.len() - 1]);
        for text in [token, &cut] {
            post("/admin/tokens", text, &json!({"name": "x", "role": text}));
            post(&format!("/admin/tokens/{text}/rotate"), text, &json!({"x": text}));
            post("/admin/codes", text, &json!({"find": text}));
        }
        let client = Client::builder().no_proxy().redirect(Policy::none()).build().unwrap();
        let login = client.post(format!("{}/console/login", api.admin));
        let login = login.header("content-type", "application/x-www-form-urlencoded");
        try_send(login.body(format!("token={token}"))).unwrap();
    }
    post("/admin/tokens/1/revoke", &admin, &json!({"servers": true}));
    let audit = api.client.get(format!("{}/admin/audit/export", api.admin));
    let audit = try_send(audit.bearer_auth(&api.master)).unwrap();
    assert!(audit.text.contains("token_rotated"), "{}", audit.text);
    secrets.check("the audit log", &audit.text);
}

fn use_the_console(server: &Process, secrets: &mut Secrets) {
    let (admin, master) = (&server.api.admin, &server.api.master);
    let client = Client::builder().no_proxy().redirect(Policy::none()).build().unwrap();
    let form = |path: &str, cookie: &str, body: String| {
        let request = client.post(format!("{admin}{path}")).header("cookie", cookie);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        try_send(request.body(body)).unwrap()
    };
    let opened = form("/console/login", "", format!("token={master}"));
    let base = opened.header("location").strip_suffix("/now").unwrap().to_owned();
    let key = secrets.keep(base.rsplit('/').next().unwrap());
    let cookie = opened.header("set-cookie").split(';').next().unwrap().to_owned();
    secrets.keep(cookie.split('=').nth(1).unwrap());
    for cookie in [cookie.as_str(), key.as_str(), ""] {
        for page in ["now", "audit", "sessions", "nothing"] {
            let request = client.get(format!("{admin}{base}/{page}?key={key}"));
            try_send(request.header("cookie", cookie)).unwrap();
        }
        form(&format!("{base}/settings"), cookie, format!("key={key}&tag={key}&value={key}"));
        form(&format!("{base}/sessions/end"), cookie, format!("id={key}"));
    }
}

fn use_servers(server: &Process, secrets: &mut Secrets) {
    let api = &server.api;
    let wrong = secrets.keep("wrong-master-token-of-somebody");
    let agent = secrets.keep(format!("ipa_{}", "0123456789ab".repeat(4)));
    secrets.keep(&agent[4..]);
    for token in [&api.master, &wrong, &agent] {
        let body = json!({"token": token, "ip": "1.2.3.4", "hostname": "a.example.com", "agent_token": agent});
        let registered = api.post("/register", &body).unwrap();
        let id = registered.json()["server_id"].as_str().unwrap_or("0123456789abcdef").to_owned();
        for agent_token in [agent.to_uppercase(), format!("{agent}0"), agent[1..].to_owned()] {
            let wrong_form = json!({"token": token, "ip": "1.2.3.4", "agent_token": agent_token});
            api.post("/register", &wrong_form).unwrap();
            api.post("/api/v2/servers/register", &wrong_form).unwrap();
        }
        for path in [
            "/checkin".to_owned(),
            format!("/api/v2/servers/{id}/check-in"),
            "/revoke".to_owned(),
            format!("/api/v2/servers/{id}/revoke"),
            format!("/api/v2/servers/{id}/restore"),
        ] {
            let request = api.client.post(format!("{}{path}", api.url)).bearer_auth(token);
            try_send(request.body(json!({"server_id": id}).to_string())).unwrap();
        }
        try_send(api.client.get(format!("{}/status", api.url)).header("authorization", token));
    }
}

#[test]
fn no_secret_appears_in_logs_output_or_metrics_at_any_log_level() {
    let mut server = Process::start(&["log.level=trace"]);
    let mut secrets = Secrets::default();
    use_everything(&server, &mut secrets);
    assert!(secrets.0.len() > 20);
    let metrics = server.api.get(&format!("{}/metrics", server.api.admin)).unwrap().text;
    assert!(metrics.contains("iptunnel_http_requests_total"));
    secrets.check("/metrics", &metrics);
    server.signal(Signal::SIGHUP);
    server.signal(Signal::SIGTERM);
    server.ends_within(Duration::from_secs(20)).expect("an end");
    let output = server.output();
    assert!(output.matches("request answered").count() > 50, "the log is that of this run");
    secrets.check("the output", &output);
}

#[test]
fn the_store_contains_no_secret_in_clear_text() {
    let mut server = Process::start(&[]);
    let mut secrets = Secrets::default();
    use_everything(&server, &mut secrets);
    server.signal(Signal::SIGTERM);
    server.ends_within(Duration::from_secs(20)).expect("an end");
    for file in ["iptunnel.redb", "iptunnel.redb.journal"] {
        let store = std::fs::read(server.folder.path().join("data").join(file)).unwrap();
        let hostname = b"ns1.example.com";
        assert!(store.windows(hostname.len()).any(|w| w == hostname), "what is no secret is found");
        for secret in secrets.0.iter().filter(|secret| !secret.starts_with("act_")) {
            let found = store.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{file} shows {secret:?}");
        }
    }
}
