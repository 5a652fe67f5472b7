//! Commands that send requests to a running server.

use crate::harness::Machine;
use crate::process::{Process, program, said, usual_flags};
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::time::{Duration, Instant};

/// A server with one finished installation, one registered server, and signed heads of its audit log.
fn used() -> (Process, String) {
    let server = Process::start(&[]);
    let code = server.api.issue();
    let activated = server.api.activate(&Machine::new(1), &code);
    let body = json!({"activation_id": activated.data("activation_id"),
        "install_token": activated.data("install_token")});
    assert_eq!(server.api.install("confirm", &body).unwrap().status, 200);
    let body = json!({"token": server.api.master, "ip": "9.9.9.9", "hostname": "s9.example.com"});
    assert_eq!(server.api.post("/register", &body).unwrap().status, 200);
    (server, code)
}

fn ask(server: &Process, arguments: &[&str]) -> Output {
    program(server.folder.path()).args(arguments).output().unwrap()
}

fn asked(server: &Process, arguments: &[&str]) -> String {
    let output = ask(server, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    said(&output)
}

fn asked_json(server: &Process, arguments: &[&str]) -> Value {
    let text = asked(server, &[arguments, &["--output", "json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}"))
}

#[test]
fn servers_codes_and_activations_are_shown_as_tables_and_as_json() {
    let (server, code) = used();
    let list = asked_json(&server, &["servers", "list"]);
    let id = list["servers"][0]["server_id"].as_str().unwrap().to_owned();
    assert!(asked(&server, &["servers", "list", "--text", "s9"]).contains("s9.example.com"));
    assert_eq!(asked(&server, &["servers", "revoke", &id]), format!("{id} revoked\n"));
    let revoked = asked_json(&server, &["servers", "list", "--show", "revoked"]);
    assert_eq!(revoked["count"], 1);
    assert_eq!(asked_json(&server, &["servers", "restore", &id])["status"], "active");
    let story = asked(&server, &["codes", "show", &code]);
    assert!(story.contains("confirmed") && story.contains("ns1.example.com"), "{story}");
    assert!(!story.contains(&code));
    assert_eq!(asked_json(&server, &["codes", "show", &code])["activations"], 1);
    assert!(asked(&server, &["codes", "show", "ns1.example.com"]).contains("IPT-SD-"));
    assert!(asked(&server, &["activations", "list"]).contains("ns1.example.com"));
    let none = ask(&server, &["servers", "revoke", "0123456789abcdef"]);
    assert!(!none.status.success());
    assert!(String::from_utf8_lossy(&none.stderr).contains("Server was not found."), "{none:?}");
}

#[test]
fn keys_are_kept_for_as_long_as_a_lifetime_that_the_console_has_set() {
    let server = Process::start(&[]);
    asked(&server, &["config", "set", "session.ttl_seconds=90000"]);
    asked(&server, &["keys", "add"]);
    asked(&server, &["keys", "promote"]);
    let keys = fs::File::options().write(true).open(server.folder.path().join("data/signing.keys"));
    let keys = keys.unwrap();
    let hours_ago = keys.metadata().unwrap().modified().unwrap() - Duration::from_secs(5 * 3600);
    keys.set_modified(hours_ago).unwrap();
    let refused = ask(&server, &["keys", "prune"]);
    assert!(!refused.status.success());
    assert!(said(&refused).contains("up to 90000 s"), "{}", said(&refused));
    asked(&server, &["config", "unset", "session.ttl_seconds"]);
    assert!(asked(&server, &["keys", "prune"]).contains("removed: "));
}

#[test]
fn whoever_fills_the_operators_listener_keeps_no_command_out() {
    let server = Process::start(&[]);
    let address = server.api.admin.trim_start_matches("http://").parse().unwrap();
    let from = |host: u8| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::from(([127, 0, 0, host], 0)).into())?;
        socket.connect_timeout(&SocketAddr::into(address), Duration::from_secs(2))?;
        Ok::<_, std::io::Error>(socket)
    };
    let held: Vec<_> = (0..1200).filter_map(|number| from(2 + number as u8 / 240).ok()).collect();
    assert!(held.len() > 500, "{} are open", held.len());
    let begun = Instant::now();
    asked(&server, &["servers", "list"]);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn the_health_check_asks_the_address_that_it_is_given() {
    let server = Process::start(&[]);
    assert_eq!(asked(&server, &["healthcheck", "--url", &server.api.admin]), "ready\n");
    let refused = ask(&server, &["healthcheck", "--url", "http://127.0.0.1:1"]);
    assert!(said(&refused).contains("http://127.0.0.1:1"), "{}", said(&refused));
    assert_eq!(refused.status.code(), Some(1));
}

/// The fields of that name in the rows of a list.
fn printed(list: &Value, rows: &str, name: &str) -> Vec<String> {
    let rows = list[rows].as_array().unwrap();
    rows.iter().filter_map(|row| row[name].as_str()).map(str::to_owned).collect()
}

#[test]
fn every_id_that_is_printed_finds_its_code() {
    let (server, code) = used();
    let story = asked_json(&server, &["codes", "show", &code]);
    let hint = story["hint"].as_str().unwrap();
    let listed = asked_json(&server, &["codes", "show", "ns1.example.com"]);
    let activations = asked_json(&server, &["activations", "list"]);
    let ids = [
        printed(&listed, "codes", "id"),
        printed(&activations, "activations", "code"),
        printed(&activations, "activations", "activation"),
        printed(&story, "events", "activation"),
        printed(&story, "events", "who"),
    ];
    for id in ids.concat() {
        assert!(asked(&server, &["codes", "show", &id]).contains(hint), "{id}");
    }
    assert!(ids.iter().all(|ids| !ids.is_empty()), "{ids:?}");
    // The id of a machine may look like that of a code.
    let machine = "0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c";
    let none = ask(&server, &["codes", "show", machine]);
    assert!(none.status.success() && said(&none) == "no codes found\n", "{none:?}");
}

#[test]
fn a_setting_can_be_read_changed_and_reset_from_the_command_line() {
    let (server, _) = used();
    let value =
        || asked_json(&server, &["config", "get", "codes.ttl_seconds"])["settings"][0].clone();
    assert_eq!((&value()["value"], &value()["source"]), (&json!("300"), &json!("default")));
    asked(&server, &["config", "set", "codes.ttl_seconds=60", "codes.restored_ttl_seconds=61"]);
    assert_eq!((&value()["value"], &value()["source"]), (&json!("60"), &json!("override")));
    let refused = ask(&server, &["config", "set", "codes.ttl_seconds=never"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("must be a whole number of seconds"));
    asked(&server, &["config", "unset", "codes.ttl_seconds"]);
    assert_eq!(value()["value"], "300");
}

#[test]
fn an_edited_shortened_or_truncated_audit_log_is_detected() {
    let (server, _) = used();
    let heads = server.folder.path().join("data/iptunnel.redb.heads");
    // The first head is signed at once, the next after a minute, and the last one at the end.
    let server = {
        let mut old = server;
        old.signal(nix::sys::signal::Signal::SIGTERM);
        assert!(old.ends_within(std::time::Duration::from_secs(20)).unwrap().success());
        assert!(fs::read_to_string(&heads).unwrap().contains("\"entries\":4"));
        old.again()
    };
    assert!(asked(&server, &["audit", "verify"]).contains("4 entries are complete"));
    assert_eq!(asked_json(&server, &["audit", "verify"])["entries"], 4);
    let export = asked(&server, &["audit", "export"]);
    assert_eq!(export.lines().count(), 4);
    let file = server.folder.path().join("export.jsonl");
    let verified = |text: &str| {
        fs::write(&file, text).unwrap();
        let output = ask(&server, &["audit", "verify", "--file", "export.jsonl"]);
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(verified(&export).0);
    let key = asked(&server, &["audit", "public-key"]);
    let with_key = |key: &str, heads: &str| {
        let arguments = ["audit", "verify", "--file", "export.jsonl", "--public-key", key];
        let output = ask(&server, &[&arguments[..], &["--heads", heads]].concat());
        (output.status.success(), said(&output))
    };
    let beside = "data/iptunnel.redb.heads";
    assert!(with_key(key.trim(), beside).0);
    let (sound, words) = with_key(&key.trim().replace(['0', '1', '2'], "3"), beside);
    assert!(!sound && words.contains("the signature of a head is invalid"), "{words}");
    let (sound, words) = with_key("33", beside);
    assert!(!sound && words.contains("64 hexadecimal digits"), "{words}");
    let (sound, words) = with_key(key.trim(), "nowhere.heads");
    assert!(!sound && words.contains("there is no file of signed heads"), "{words}");
    fs::write(server.folder.path().join("empty.heads"), "").unwrap();
    let (sound, words) = with_key(key.trim(), "empty.heads");
    assert!(!sound && words.contains("no signed head that can be verified"), "{words}");
    let lines: Vec<&str> = export.lines().collect();
    let (sound, words) = verified(&export.replace("ns1.example.com", "ns2.example.com"));
    assert!(!sound && words.contains("entry 2 was changed"), "{words}");
    let (sound, words) = verified(&[lines[0], lines[2], lines[3]].join("\n"));
    assert!(!sound && words.contains("entry 2 is missing"), "{words}");
    let (sound, words) = verified(&lines[..3].join("\n"));
    assert!(
        !sound && words.contains("entry 4 was signed: the end of the log is missing"),
        "{words}"
    );
    let signed = fs::read_to_string(&heads).unwrap();
    fs::write(&heads, signed.replace("\"entries\":4", "\"entries\":3")).unwrap();
    let (sound, words) = verified(&export);
    assert!(!sound && words.contains("the signature of a head is invalid"), "{words}");
}

#[test]
fn commands_use_the_socket_without_a_token_and_an_address_with_it() {
    let (mut server, _) = used();
    let socket = server.folder.path().join("data/iptunnel.redb.sock");
    let mode = fs::symlink_metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let file = server.folder.path().join("data/master.token");
    fs::remove_file(&file).unwrap();
    assert_eq!(asked_json(&server, &["servers", "list"])["count"], 1);
    let export = asked(&server, &["audit", "export"]);
    assert_eq!(export.lines().count(), 4);
    let with_url = ["--url", &server.api.admin, "servers", "list"];
    assert!(!ask(&server, &with_url).status.success(), "there is no token to send");
    fs::write(&file, &server.api.master).unwrap();
    assert_eq!(asked_json(&server, &with_url)["count"], 1);
    let tls = ask(&server, &["--url", "https://127.0.0.1", "servers", "list"]);
    assert!(String::from_utf8_lossy(&tls.stderr).contains("no answer"), "{tls:?}");
    // A caller on the TCP port still needs the token.
    let answer = server.api.get(&format!("{}/admin/now", server.api.admin)).unwrap();
    assert_eq!(answer.status, 401);
    server.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(server.ends_within(std::time::Duration::from_secs(20)).unwrap().success());
    assert!(!socket.exists(), "it goes with the server");
}

#[test]
fn the_token_never_goes_to_whoever_listens_on_the_operators_port() {
    let (server, _) = used();
    let thief = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    thief.set_nonblocking(true).unwrap();
    let bind = format!("admin.bind={}", thief.local_addr().unwrap());
    asked(&server, &["--set", &bind, "servers", "list"]);
    let stopped = tempfile::tempdir().unwrap();
    program(stopped.path()).args(["--set", &bind, "servers", "list"]).output().unwrap();
    assert!(thief.accept().is_err(), "nobody has connected");
}

#[test]
fn a_socket_that_was_left_behind_is_replaced_and_one_in_use_is_not() {
    let (mut server, _) = used();
    let socket = server.folder.path().join("data/iptunnel.redb.sock");
    let flag = format!("admin.socket={}", socket.display());
    let folder = tempfile::tempdir().unwrap();
    let flags = [&usual_flags()[..], &["--set".to_owned(), flag]].concat();
    let other = program(folder.path()).args(flags).output().unwrap();
    assert!(!other.status.success());
    assert!(said(&other).contains("another process listens on the socket"), "{}", said(&other));
    assert_eq!(asked_json(&server, &["servers", "list"])["count"], 1);
    server.kill();
    assert!(socket.exists());
    let stopped = ask(&server, &["servers", "list"]);
    assert!(String::from_utf8_lossy(&stopped.stderr).contains("check that it runs"), "{stopped:?}");
    let server = server.again();
    assert_eq!(asked_json(&server, &["servers", "list"])["count"], 1);
}

#[test]
fn a_command_reports_that_no_server_is_running() {
    let (mut server, _) = used();
    server.kill();
    let output = ask(&server, &["servers", "list"]);
    assert!(!output.status.success());
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = program(folder.path()).args(["servers", "list"]).output().unwrap();
    let words = String::from_utf8_lossy(&elsewhere.stderr).into_owned();
    assert!(words.contains("run this command in the server's folder"), "{words}");
    assert!(!folder.path().join("data").exists());
}

#[test]
fn tokens_are_made_listed_changed_rotated_and_revoked_from_the_command_line() {
    let server = Process::start(&[]);
    let made = ask(&server, &["tokens", "create", "Ada Lovelace", "--role", "view"]);
    assert!(made.status.success(), "{}", said(&made));
    let secret = String::from_utf8(made.stdout).unwrap();
    assert!(secret.starts_with("ipt_") && secret.len() == 43, "only the secret: {secret}");
    assert!(String::from_utf8_lossy(&made.stderr).contains("shown this once"));
    let list = asked(&server, &["tokens", "list"]);
    assert!(list.contains("Ada Lovelace") && !list.contains("ipt_"), "{list}");
    let words = ["never", "any network"];
    assert!(words.iter().all(|word| list.contains(word)) && !list.contains("no bound"), "{list}");
    let enrol = ["tokens", "create", "fleet", "--role", "enrol", "--network", "10.0.0.0/8"];
    asked(&server, &[&enrol[..], &["--network", "2001:db8::/32"]].concat());
    let list = asked(&server, &["tokens", "list"]);
    assert!(list.contains("10.0.0.0/8, 2001:db8::/32") && list.contains("no bound"), "{list}");
    let log = asked_json(&server, &["audit", "list"])["entries"][0].clone();
    assert_eq!((&log["action"], &log["by"]), (&json!("token_created"), &json!("command line")));
    let changed = ["tokens", "change", "Ada Lovelace", "--name", "Ada", "--network", "127.0.0.0/8"];
    assert_eq!(
        asked(&server, &[&changed[..], &["--expires", "2090-01-01"]].concat()),
        "Ada good\n"
    );
    let row = asked_json(&server, &["tokens", "list"])["tokens"][0].clone();
    assert_eq!(
        (&row["networks"], &row["max_servers"]),
        (&json!(["127.0.0.0/8"]), &json!(0)),
        "{row}"
    );
    assert_eq!(row["expires_at"], "2090-01-01T00:00:00+00:00", "{row}");
    asked(&server, &["tokens", "change", "1", "--network", "any", "--expires", "never"]);
    let row = asked_json(&server, &["tokens", "list"])["tokens"][0].clone();
    assert_eq!((&row["networks"], &row["expires_at"]), (&json!([]), &Value::Null), "{row}");

    // Commands from elsewhere take the token in a file.
    let file = server.folder.path().join("ada.token");
    fs::write(&file, &secret).unwrap();
    let (url, file) = (server.api.admin.clone(), file.display().to_string());
    let far = |arguments: &[&str]| {
        ask(&server, &[&["--url", &url, "--token-file", &file], arguments].concat())
    };
    let list = far(&["servers", "list"]);
    assert!(list.status.success(), "{}", said(&list));
    let refused = far(&["config", "set", "codes.ttl_seconds=77"]);
    assert!(!refused.status.success(), "{}", said(&refused));
    assert!(
        said(&refused).contains("has the role view. This request needs the role admin."),
        "{}",
        said(&refused)
    );

    let rotated = ask(&server, &["tokens", "rotate", "Ada", "--grace", "0"]);
    assert!(rotated.status.success() && rotated.stdout != secret.as_bytes(), "{}", said(&rotated));
    assert!(said(&far(&["servers", "list"])).contains("The token is not valid."));
    assert_eq!(asked(&server, &["tokens", "revoke", "Ada"]), "Ada revoked\n");
    assert_eq!(asked(&server, &["tokens", "revoke", "Ada"]), "Ada revoked\n", "repeats are safe");
    let unknown = ask(&server, &["tokens", "revoke", "Bob"]);
    assert!(said(&unknown).contains("there is no such token"), "{}", said(&unknown));
    let wrong = ask(&server, &["tokens", "create", "x", "--role", "root"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", said(&wrong));
    let alone = ask(&server, &["--token-file", "x", "servers", "list"]);
    assert_eq!(alone.status.code(), Some(2), "{}", said(&alone));
}

#[test]
fn whoever_revokes_an_enrolling_token_is_told_of_its_servers() {
    let server = Process::start(&[]);
    let made =
        ask(&server, &["tokens", "create", "fleet", "--role", "enrol", "--max-servers", "2"]);
    let token = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    for number in 1..=2 {
        let body = json!({"token": token, "ip": format!("9.9.9.{number}")});
        assert_eq!(server.api.post("/register", &body).unwrap().status, 200);
    }
    assert!(asked(&server, &["servers", "list"]).contains("fleet"));
    let revoked = ask(&server, &["tokens", "revoke", "fleet"]);
    assert!(said(&revoked).contains("2 servers"), "{}", said(&revoked));
    let again = ask(&server, &["tokens", "revoke", "fleet", "--servers"]);
    assert!(said(&again).contains("servers revoked with it: 2"), "{}", said(&again));
    assert_eq!(asked_json(&server, &["servers", "list", "--show", "revoked"])["count"], 2);
}

#[test]
fn the_command_line_imports_a_listing_and_deletes_servers() {
    let server = Process::start(&[]);
    let list = server.folder.path().join("status.json");
    let row = |number: u32| {
        json!({
            "server_id": format!("{number:016x}"), "ip": format!("8.8.8.{number}"), "hostname": "old",
            "registered_at": "2020-01-02T03:04:05+00:00", "last_checkin": "2020-01-02T03:04:05+00:00",
            "revoked": 0, "note": "",
        })
    };
    let write = |rows: Vec<Value>| {
        let all = json!({"count": rows.len(), "servers": rows});
        std::fs::write(&list, all.to_string()).unwrap();
    };
    let import = |more: &[&str]| {
        let file = list.display().to_string();
        said(&ask(&server, &[&["import", &file], more].concat()))
    };
    let mut bad = row(2);
    bad["ip"] = "nowhere".into();
    write(vec![row(1), bad]);
    assert!(import(&[]).contains("servers[1]: ip must be"), "{}", import(&[]));
    write(vec![row(1), row(2), row(3)]);
    let dry = import(&["--dry-run"]);
    assert!(dry.starts_with("3 servers: 3 would be new, 0 would be changed"), "{dry}");
    assert_eq!(asked_json(&server, &["servers", "list"])["count"], 0);
    assert!(import(&[]).starts_with("3 servers: 3 new, 0 changed, 0 as before"));
    assert!(import(&[]).starts_with("3 servers: 0 new, 0 changed, 3 as before"));
    let mut twin = row(1);
    twin["server_id"] = "00000000000000aa".into();
    twin["revoked"] = 1.into();
    write(vec![twin, row(4)]);
    for more in [&[][..], &["--dry-run"]] {
        let file = list.display().to_string();
        let output = ask(&server, &[&["import", &file], more].concat());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let error = String::from_utf8_lossy(&output.stderr);
        let named = "00000000000000aa (8.8.8.1)";
        assert!(error.contains(&format!("the addresses of {named} here")), "{error}");
        assert!(error.contains(&format!("{named}: revoked in the file and not here")), "{error}");
    }
    assert_eq!(asked_json(&server, &["servers", "list"])["count"], 3, "nothing was imported");
    let ids = [1, 2].map(|number| format!("{number:016x}"));
    let deleted = asked(&server, &["servers", "delete", &ids[0], &ids[1]]);
    assert_eq!(deleted, format!("{} deleted\n{} deleted\n", ids[0], ids[1]));
    let unseen = asked_json(&server, &["servers", "delete", "--unseen-days", "30", "--dry-run"]);
    assert_eq!(unseen["count"], 1);
    let gone = asked(&server, &["servers", "delete", "--unseen-days", "30"]);
    assert_eq!(gone, "1 server deleted\n");
    assert_eq!(asked_json(&server, &["servers", "list"])["count"], 0);
    for wrong in [
        vec!["servers", "delete"],
        vec!["servers", "delete", "--unseen-days", "0"],
        vec!["servers", "delete", &ids[0], "--dry-run"],
        vec!["servers", "revoke"],
    ] {
        assert_eq!(ask(&server, &wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn a_revoked_token_is_meant_by_its_name_only_while_no_other_has_that() {
    let server = Process::start(&[]);
    let create = || asked(&server, &["tokens", "create", "fleet", "--role", "enrol"]);
    for _ in 0..2 {
        create();
        asked(&server, &["tokens", "revoke", "fleet"]);
    }
    create();
    let revoked_now = || {
        let revoked = ["--output", "json", "tokens", "revoke", "fleet"];
        serde_json::from_str::<Value>(&asked(&server, &revoked)).unwrap()["id"].clone()
    };
    assert_eq!(revoked_now(), 3, "the one in use");
    assert_eq!(revoked_now(), 3, "the one revoked last");
}
