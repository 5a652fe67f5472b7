//! The ecosystem's own clients, unmodified: the main stack's installer, the agents that it installs, and
//! its updater. Requests are sent as these programs send them.

use crate::harness::{Answer, TestApp, send, wait_until};
use crate::wire::raw;
use serde_json::json;
use sha2::{Digest, Sha256};

/// Sends a request with exactly this target, which a client library might tidy, and reads the answer.
fn exactly(app: &TestApp, method: &str, target: &str, body: &str) -> Answer {
    let head = format!("{method} {target} HTTP/1.1\r\nContent-Length: {}", body.len());
    let text = raw(app, &head, body.as_bytes());
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head[9..12].parse().unwrap();
    let header = |line: &str| {
        let (name, value) = line.split_once(": ")?;
        Some((name.to_ascii_lowercase(), value.to_owned()))
    };
    Answer { status, headers: head.lines().filter_map(header).collect(), text: body.to_owned() }
}

#[test]
fn doubled_slashes_and_one_slash_at_the_end_are_forgiven_on_every_path() {
    let app = TestApp::start();
    for target in ["//healthz", "/healthz/", "//healthz//", "/healthz/?a=//b/"] {
        let answer = exactly(&app, "GET", target, "");
        assert_eq!((answer.status, &*answer.text), (200, r#"{"status":"ok"}"#), "{target}");
    }
    for target in ["/api//v2/healthz", "/api/v2/healthz/", "//api/v2///healthz/"] {
        assert_eq!(exactly(&app, "GET", target, "").data("status"), "ok", "{target}");
    }
    let body = json!({"token": app.master(), "ip": "8.8.8.8"}).to_string();
    let registered = exactly(&app, "POST", "//register/", &body);
    assert_eq!(registered.status, 200, "{}", registered.text);
    let id = registered.json()["server_id"].as_str().unwrap().to_owned();
    app.settle();
    for target in [
        format!("/api/v2//servers/{id}/check-in"),
        format!("/api/v2/servers/{id}/check-in/"),
        format!("/api/v2/servers/{id}//check-in?x"),
    ] {
        assert_eq!(exactly(&app, "POST", &target, "{}").status, 200, "{target}");
    }
}

#[test]
fn a_forgiven_path_keeps_its_query_and_the_envelope_of_its_family() {
    let app = TestApp::start();
    let answer = exactly(&app, "GET", "//api/v2/nothing/", "");
    assert_eq!(answer.told(), (404, "not_found".into()));
    let answer = exactly(&app, "GET", "//status//?limit=0", "");
    assert_eq!((answer.status, answer.json()["error"].is_string()), (403, true));
    let absolute = exactly(&app, "GET", "http://x//healthz/", "");
    assert_eq!((absolute.status, &*absolute.text), (200, r#"{"status":"ok"}"#));
}

#[test]
fn healthz_is_a_bare_object_and_takes_only_get() {
    let app = TestApp::start();
    let answer = app.get("/healthz");
    assert_eq!((answer.status, &*answer.text), (200, r#"{"status":"ok"}"#));
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(app.post_text("/healthz", "").status, 405);
}

/// The SHA-256 of a text, as `sha256sum` prints it.
fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_updater_reads_a_bare_version_at_both_paths_and_loads_the_script_that_it_names() {
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), "#!/usr/bin/env bash\necho one\n").unwrap();
    let app = TestApp::start_with(|c| {
        c.push(("server.public_url", "https://get.example.com".into()));
        c.push(("installer.script", script.path().display().to_string()));
        c.push(("installer.version", "2026.03.31".into()));
        c.push(("installer.notes", "Faster.".into()));
    });
    let expected = |script: &str| {
        format!(
            "{{\"version\":\"2026.03.31\",\"notes\":\"Faster.\",\
             \"url\":\"https://get.example.com/iptunnel-install.sh\",\"sha256\":\"{}\"}}",
            sha256(script)
        )
    };
    for text in ["#!/usr/bin/env bash\necho one\n", "#!/usr/bin/env bash\necho a second one\n"] {
        // The operator replaces the file. No restart, no reload.
        std::fs::write(script.path(), text).unwrap();
        for path in ["/version.json", "/api/v2/version"] {
            let answer = app.get(path);
            assert_eq!((answer.status, answer.text), (200, expected(text)), "{path}");
            assert_eq!(answer.headers["content-type"], "application/json");
        }
        let loaded = app.get("/iptunnel-install.sh");
        assert_eq!((loaded.status, &*loaded.text), (200, text));
        assert!(loaded.header("content-type").starts_with("text/x-shellscript"));
        let url = format!("{}/iptunnel-install.sh", app.url);
        let again = app.client.get(url).header("if-none-match", loaded.header("etag"));
        assert_eq!(send(again).status, 304);
    }
}

#[test]
fn without_an_installer_its_paths_are_404_in_the_envelope_of_their_place() {
    let missing = TestApp::start_with(|c| {
        c.push(("installer.script", "/nonexistent/install.sh".into()));
        c.push(("installer.version", "1".into()));
    });
    for app in [TestApp::start(), missing] {
        assert_eq!(app.get("/api/v2/version").told(), (404, "not_found".into()));
        for path in ["/version.json", "/iptunnel-install.sh"] {
            let answer = app.get(path);
            assert_eq!((answer.status, answer.json()["error"].is_string()), (404, true), "{path}");
        }
    }
}

#[test]
fn the_installers_file_cannot_be_one_of_the_secrets() {
    use iptunnel_server::config::{Config, Sources};
    let flags =
        [("installer.script", "data/lookup.key"), ("auth.lookup_key_file", "data/lookup.key")];
    let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    let error = Config::load(&Sources { file: None, env: vec![], flags }).unwrap_err().to_string();
    assert!(
        error.contains("installer.script") && error.contains("auth.lookup_key_file"),
        "{error}"
    );
}

/// Runs curl as the main stack's installer does. Returns what it prints, and whether it succeeded.
fn curl(app: &TestApp, path: &str, body: Option<&str>) -> (bool, String) {
    let mut command = std::process::Command::new("curl");
    command.args(["-4", "-sf", "--max-time", "15", "--noproxy", "*"]);
    if let Some(body) = body {
        command.args(["-X", "POST", "-H", "Content-Type: application/json", "-d", body]);
    }
    let output = command.arg(format!("{}{path}", app.url)).output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

/// Takes the value of a field out of JSON as the installer does, which has no parser at hand.
fn value_of(json: &str, field: &str) -> String {
    let (_, rest) = json.split_once(&format!("\"{field}\":\"")).unwrap_or_else(|| panic!("{json}"));
    rest.split_once('"').unwrap().0.to_owned()
}

#[test]
fn the_main_stacks_installer_agent_and_updater_go_their_whole_way_with_curl() {
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), "#!/usr/bin/env bash\n").unwrap();
    let app = TestApp::start_with(|c| {
        c.push(("server.allow_private_ips", "true".into()));
        c.push(("installer.script", script.path().display().to_string()));
        c.push(("installer.version", "2026.03.31".into()));
    });
    assert_eq!(curl(&app, "/healthz", None), (true, r#"{"status":"ok"}"#.into()));
    let (issue, ip) = ("/api/v2/install-tickets/issue", "127.0.0.1");
    assert!(!curl(&app, issue, Some("{}")).0, "the address is not listed yet");
    assert!(!curl(&app, "/authorize", None).0);
    let token = json!({"name": "office", "role": "enrol", "addresses": [ip]});
    let request = app.client.post(format!("{}/admin/tokens", app.admin)).bearer_auth(app.master());
    let created = send(request.body(token.to_string()));
    assert_eq!(created.status, 201, "{}", created.text);
    wait_until("every server knows the address", || {
        (0..3 * app.servers()).all(|_| curl(&app, "/authorize", None).0)
    });

    let (granted, answer) = curl(&app, issue, Some("{}"));
    assert!(granted);
    let ticket = value_of(&answer, "ticket");
    assert_eq!(value_of(&answer, "name"), "office");
    let (granted, answer) = curl(&app, "/authorize", None);
    assert!(granted && value_of(&answer, "client") == "office", "{answer}");
    let body = json!({"token": ticket, "ip": ip, "hostname": "ns1.example.com"}).to_string();
    let (registered, answer) = curl(&app, "/api/v2/servers/register", Some(&body));
    assert!(registered, "{answer}");
    let id = value_of(&answer, "server_id");
    app.settle();
    let (registered, answer) = curl(&app, "/register", Some(&body));
    assert!(registered && value_of(&answer, "server_id") == id, "{answer}");

    let (alive, answer) = curl(&app, &format!("/api/v2/servers/{id}/check-in"), Some("{}"));
    assert!(alive && value_of(&answer, "status") == "ok", "{answer}");
    let named = json!({"server_id": id}).to_string();
    assert!(curl(&app, "/checkin", Some(&named)).0);

    let (told, answer) = curl(&app, "/version.json", None);
    assert!(told && value_of(&answer, "version") == "2026.03.31", "{answer}");
    assert_eq!(curl(&app, "/api/v2/version", None), (true, answer.clone()));
    let (loaded, text) = curl(&app, "/iptunnel-install.sh", None);
    assert!(loaded && sha256(&text) == value_of(&answer, "sha256"), "{answer}");

    app.post_as(&app.master(), "/revoke", &json!({"server_id": id}));
    app.settle();
    assert!(!curl(&app, "/register", Some(&body)).0, "a revocation is sticky");
}
