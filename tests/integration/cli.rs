//! The command line and the signals of the real program.

use crate::harness::{Machine, wait_until};
use crate::process::{Process, program, run, said, usual_flags};
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

fn folder() -> TempDir {
    TempDir::new().unwrap()
}

/// What `print-config` says of a key of `[server]`, with this file, variable and flag.
fn printed(key: &str, file: Option<&str>, env: Option<&str>, flag: Option<&str>) -> String {
    let folder = folder();
    let mut command = program(folder.path());
    if let Some(value) = file {
        fs::write(folder.path().join("my.toml"), format!("[server]\n{key} = {value}\n")).unwrap();
        command.args(["--config", "my.toml"]);
    }
    if let Some(value) = env {
        command.env(format!("IPTUNNEL_SERVER__{}", key.to_uppercase()), value);
    }
    if let Some(value) = flag {
        command.args(["--set", &format!("server.{key}={value}")]);
    }
    let output = command.arg("print-config").output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let text = said(&output);
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key} = ")));
    line.expect(&text).to_owned()
}

#[test]
fn flags_win_over_the_environment_over_the_file_over_the_default() {
    let key = "shutdown_grace_seconds";
    let (file, env, flag) = (Some("11"), Some("12"), Some("13"));
    assert_eq!(printed(key, None, None, None), "30");
    assert_eq!(printed(key, file, None, None), "11");
    assert_eq!(printed(key, file, env, None), "12");
    assert_eq!(printed(key, file, env, flag), "13");
    assert_eq!(printed(key, file, None, flag), "13");
    assert_eq!(printed(key, None, env, None), "12");
}

#[test]
fn a_file_named_config_toml_is_read_without_being_named() {
    let folder = folder();
    fs::write(folder.path().join("config.toml"), "[server]\nworkers = 3\n").unwrap();
    assert!(said(&run(folder.path(), &["print-config"])).contains("workers = 3\n"));
}

/// Runs check-config on a file, which must fail, and returns what it says.
fn complaint(file: &str) -> String {
    let folder = folder();
    fs::write(folder.path().join("my.toml"), file).unwrap();
    let output = run(folder.path(), &["check-config", "--config", "my.toml"]);
    assert!(!output.status.success(), "{file:?} was taken: {}", said(&output));
    said(&output)
}

#[test]
fn a_bad_value_is_an_error_that_names_key_value_and_what_is_allowed() {
    let cases = [
        ("[limits]\nissue_per_ip_hour = -1\n", ["limits.issue_per_ip_hour", "-1", "0 to 1000000"]),
        ("[log]\nlevel = \"loud\"\n", ["log.level", "loud", "trace"]),
        ("[server]\nbind = \"here\"\n", ["server.bind", "here", "an IP address and a port"]),
        ("[codes]\nttl_seconds = \"5m\"\n", ["codes.ttl_seconds", "5m", "seconds from 1 to"]),
        ("[servers]\nrevoked_checkin_status = 404\n", ["revoked_checkin_status", "404", "200 or"]),
        ("[server]\ntrusted_proxies = [\"x\"]\n", ["server.trusted_proxies", "x", "networks"]),
        ("[server]\ntrusted_proxies = [\"::/0\"]\n", ["server.trusted_proxies", "::/0", "every"]),
        ("[products]\nslowdns = \"S1\"\n", ["products.slowdns", "S1", "two letters"]),
    ];
    for (file, wanted) in cases {
        let text = complaint(file);
        assert!(wanted.iter().all(|part| text.contains(part)), "{wanted:?}: {text}");
    }
}

#[test]
fn an_unknown_key_is_an_error_that_names_it() {
    assert!(complaint("[server]\nbnid = \"127.0.0.1:1\"\n").contains("bnid"));
    assert!(complaint("[sevrer]\nbind = \"127.0.0.1:1\"\n").contains("sevrer"));
    let folder = folder();
    let flag = run(folder.path(), &["check-config", "--set", "server.bnid=1"]);
    assert!(!flag.status.success() && said(&flag).contains("server.bnid"), "{}", said(&flag));
    let mut command = program(folder.path());
    let variable = command.env("IPTUNNEL_SERVER__BNID", "1").arg("check-config").output().unwrap();
    let text = said(&variable);
    assert!(!variable.status.success() && text.to_lowercase().contains("bnid"), "{text}");
}

#[test]
fn a_named_file_that_is_missing_is_an_error_and_a_default_one_is_not() {
    let folder = folder();
    let output = run(folder.path(), &["check-config", "--config", "none.toml"]);
    assert!(!output.status.success() && said(&output).contains("none.toml"), "{}", said(&output));
    assert!(run(folder.path(), &["check-config"]).status.success());
}

#[test]
fn secrets_are_not_in_print_config() {
    let folder = folder();
    let flag = ["print-config", "--set", "storage.url=postgres://me:hunter22@db/x"];
    let output = run(folder.path(), &flag);
    assert!(!said(&output).contains("hunter22"), "{}", said(&output));
}

#[test]
fn print_config_gives_a_file_that_check_config_takes() {
    let folder = folder();
    let printed = run(folder.path(), &["print-config"]).stdout;
    fs::write(folder.path().join("printed.toml"), printed).unwrap();
    let output = run(folder.path(), &["check-config", "--config", "printed.toml"]);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn doctor_does_not_touch_an_embedded_store() {
    let server = Process::start(&[]);
    let output = run(server.folder.path(), &["doctor"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("good     data/iptunnel.redb is an embedded store"));
    assert!(said(&output).contains("warning  there is no backup in"), "{}", said(&output));
    assert!(run(server.folder.path(), &["backup"]).status.success());
    let output = run(server.folder.path(), &["doctor"]);
    assert!(said(&output).contains("good     the newest backup in"), "{}", said(&output));
    let empty = folder();
    let output = run(empty.path(), &["doctor"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("where the store will be"), "{}", said(&output));
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
}

#[test]
fn doctor_and_check_config_say_which_payload_is_missing_and_do_not_fail() {
    let folder = folder();
    fs::create_dir(folder.path().join("payloads")).unwrap();
    let ask = |command| {
        let output = run(folder.path(), &[command, "--set", "installer.payloads=payloads"]);
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    };
    let missing = "payloads/slowdns.sh, which installer.payloads needs, does not exist";
    for command in ["check-config", "doctor"] {
        assert!(ask(command).contains(missing), "{command}");
    }
    fs::write(folder.path().join("payloads/slowdns.sh"), "exit 0\n").unwrap();
    assert!(!ask("check-config").contains("payloads"));
    assert!(ask("doctor").contains("payloads/slowdns.sh can be sent"));
}

#[test]
fn healthcheck_succeeds_exactly_while_the_server_is_ready() {
    let mut server = Process::start(&[]);
    let address = format!("admin.bind={}", server.api.admin.trim_start_matches("http://"));
    let arguments = ["healthcheck", "--set", &address];
    let check = |folder: &Path| run(folder, &arguments).status.success();
    assert!(check(server.folder.path()));
    server.kill();
    assert!(!check(server.folder.path()));
}

#[test]
fn a_copy_into_a_folder_that_is_missing_says_what_to_do() {
    let mut server = Process::start(&[]);
    server.signal(Signal::SIGTERM);
    server.ends_within(Duration::from_secs(20)).unwrap();
    let arguments = ["copy", "--from", "redb", "--to", "redb:missing/copy.redb"];
    let said = said(&run(server.folder.path(), &arguments));
    assert!(said.contains("no folder missing") && said.contains("--to"), "{said}");
    assert!(!server.folder.path().join("missing").exists());
}

#[test]
fn healthcheck_does_not_take_another_service_for_a_ready_server() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("admin.bind={}", other.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in other.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n");
        }
    });
    let folder = folder();
    let output = run(folder.path(), &["healthcheck", "--set", &address]);
    assert!(!output.status.success() && said(&output).contains("another service"), "{output:?}");
}

#[test]
fn healthcheck_fails_when_the_server_accepts_the_connection_and_never_answers() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = folder();
    let address = format!("admin.bind={}", silent.local_addr().unwrap());
    let mut check = program(folder.path());
    let mut check =
        check.args(["healthcheck", "--set", &address]).stderr(Stdio::null()).spawn().unwrap();
    // Kept open: a closed connection would be an answer.
    let _connection = silent.accept().unwrap();
    let mut ended = None;
    wait_until("the health check ends", || {
        ended = check.try_wait().unwrap();
        ended.is_some()
    });
    assert!(!ended.unwrap().success());
}

#[test]
fn secret_files_are_for_their_owner_alone_and_so_is_the_store() {
    let mut server = Process::start(&[]);
    server.api.issue();
    server.signal(Signal::SIGTERM);
    server.ends_within(Duration::from_secs(20)).expect("an end");
    let store = ["", ".journal", ".mark", ".heads"].map(|end| format!("iptunnel.redb{end}"));
    let secrets = ["signing.keys", "lookup.key", "master.token"].map(str::to_owned);
    for name in secrets.into_iter().chain(store) {
        let path = server.folder.path().join("data").join(&name);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn the_master_token_is_shown_only_on_a_terminal() {
    let server = Process::start(&["log.level=trace"]);
    assert!(server.api.master.len() >= 32);
    assert!(!server.output().contains(&server.api.master));
}

#[test]
fn a_second_server_on_the_same_store_does_not_start_and_changes_nothing() {
    let server = Process::start(&[]);
    let code = server.api.issue();
    let flags = usual_flags();
    let second = run(server.folder.path(), &flags.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(!second.status.success());
    assert!(said(&second).contains("another process"), "{}", said(&second));
    server.api.activate(&Machine::new(1), &code);
}

/// Runs `keys …` in a server's folder.
fn keys(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, &[&["keys"], arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn key_names(folder: &Path) -> Vec<String> {
    let listed = keys(folder, &["list"]);
    let names = listed.lines().filter(|line| line.starts_with('k'));
    names.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

#[test]
fn keys_are_added_promoted_pruned_and_listed_the_signing_one_first() {
    let server = Process::start(&[]);
    let folder = &server.folder;
    let first = key_names(folder.path());
    assert_eq!(first.len(), 1);
    keys(folder.path(), &["add"]);
    let two = key_names(folder.path());
    assert_eq!((two.len(), &two[0]), (2, &first[0]), "a new key does not sign yet");
    keys(folder.path(), &["promote"]);
    assert_eq!(key_names(folder.path()), [two[1].clone(), two[0].clone()]);
    keys(folder.path(), &["promote", &two[0]]);
    assert_eq!(key_names(folder.path()), two);
    let early = run(folder.path(), &["keys", "prune"]);
    assert!(!early.status.success() && said(&early).contains("--force"), "{}", said(&early));
    assert!(!run(folder.path(), &["keys", "prune", "--force", &two[0]]).status.success());
    keys(folder.path(), &["prune", "--force"]);
    assert_eq!(key_names(folder.path()), first);
}

#[test]
fn no_key_is_ever_shown_by_the_commands_that_manage_them() {
    let server = Process::start(&[]);
    let folder = &server.folder;
    let mut shown = keys(folder.path(), &["list"]);
    for command in [&["add"][..], &["promote"], &["list"], &["prune", "--force"]] {
        let file = fs::read_to_string(folder.path().join("data/signing.keys")).unwrap();
        shown += &keys(folder.path(), command);
        for line in file.lines() {
            let key = line.split_once(':').unwrap().1;
            assert!(!shown.contains(key.trim()), "{shown}");
        }
    }
}

/// A server with a file of settings, to be changed.
fn with_file(settings: &str) -> Process {
    let folder = Arc::new(folder());
    fs::write(folder.path().join("my.toml"), settings).unwrap();
    let arguments = ["--config", "my.toml", "--set", "server.bind=127.0.0.1:0"];
    let arguments = [&arguments[..], &["--set", "admin.bind=127.0.0.1:0"]].concat();
    Process::start_in(folder, arguments.into_iter().map(str::to_owned).collect())
}

/// Lets the server read its file again, and waits until it has said `outcome` once more.
fn hang_up(server: &Process, settings: Option<&str>, outcome: &str) {
    if let Some(settings) = settings {
        fs::write(server.folder.path().join("my.toml"), settings).unwrap();
    }
    let times = || server.output().matches(outcome).count();
    let before = times();
    server.signal(Signal::SIGHUP);
    wait_until(outcome, || times() > before);
}

const READ_AGAIN: &str = "configuration and keys have been read again";
const STAYS: &str = "the configuration stays as it was";

fn statuses(server: &Process, code: &str, count: usize) -> Vec<u16> {
    let body = Machine::new(1).precheck_body(code);
    (0..count).map(|_| server.api.install("precheck", &body).unwrap().status).collect()
}

#[test]
fn sighup_changes_limits_at_once_and_logs_the_changes() {
    let server = with_file("[limits]\nprecheck_per_ip_day = 2\n");
    let code = server.api.issue();
    assert_eq!(statuses(&server, &code, 3), [200, 200, 429]);
    hang_up(&server, Some("[limits]\nprecheck_per_ip_day = 4\n"), READ_AGAIN);
    assert_eq!(statuses(&server, &code, 3), [200, 200, 429]);
    let log = server.output();
    let line = log.lines().find(|line| line.contains("precheck_per_ip_day")).expect(&log);
    assert!(line.contains("\"old\":\"2\"") && line.contains("\"new\":\"4\""), "{line}");
}

#[test]
fn sighup_changes_the_lifetimes_of_new_codes_and_tokens() {
    let server = with_file("");
    let cookie = server.api.cookie().unwrap();
    let ttl = || server.api.issue_with(&cookie).unwrap().json()["data"]["ttl_seconds"].clone();
    assert_eq!(ttl(), json!(300));
    hang_up(&server, Some("[codes]\nttl_seconds = 77\n"), READ_AGAIN);
    assert_eq!(ttl(), json!(77));
}

#[test]
fn sighup_changes_the_log_level() {
    let server = with_file("[log]\nlevel = \"info\"\n");
    server.api.issue();
    assert!(!server.output().contains("request answered"));
    hang_up(&server, Some("[log]\nlevel = \"debug\"\n"), READ_AGAIN);
    server.api.cookie().unwrap();
    wait_until("it logs more", || server.output().contains("request answered"));
}

#[test]
fn requests_of_operators_are_logged_like_all_others() {
    let server = Process::start(&["log.level=debug"]);
    let url = format!("{}/admin/now", server.api.admin);
    let answer = server.api.get(&url).unwrap();
    let id = answer.header("x-request-id").to_owned();
    wait_until("the request is logged", || server.output().contains(&id));
    let log = server.output();
    let line = log.lines().find(|line| line.contains(&id)).unwrap();
    for part in ["\"listener\":\"operators\"", "\"route\":\"admin\"", "\"status\":401"] {
        assert!(line.contains(part), "{line}");
    }
}

#[test]
fn an_invalid_file_on_sighup_changes_nothing_and_is_logged_as_an_error() {
    let server = with_file("[limits]\nprecheck_per_ip_day = 2\n");
    let broken = "[limits]\nprecheck_per_ip_day = 9\nissue_per_ip_hour = \"many\"\n";
    hang_up(&server, Some(broken), STAYS);
    let log = server.output();
    let line = log.lines().find(|line| line.contains(STAYS)).unwrap();
    assert!(line.contains("ERROR") && line.contains("issue_per_ip_hour"), "{line}");
    assert_eq!(statuses(&server, &server.api.issue(), 3), [200, 200, 429]);
    // Nor do good settings count where the keys beside them are broken.
    fs::write(server.folder.path().join("data/signing.keys"), "broken\n").unwrap();
    hang_up(&server, Some("[limits]\nprecheck_per_ip_day = 9\n"), STAYS);
    assert_eq!(statuses(&server, &server.api.issue(), 1), [429]);
}

#[test]
fn sighup_names_settings_that_need_a_restart_and_leaves_them_unchanged() {
    let server = with_file("[server]\nmax_connections = 100\n");
    hang_up(&server, Some("[server]\nmax_connections = 200\n"), "only after a restart");
    assert!(server.output().contains("server.max_connections"));
}

#[test]
fn sighup_reloads_keys_and_tokens_of_an_older_key_stay_valid_until_it_is_pruned() {
    let mut server = Process::start(&[]);
    let (api, folder) = (server.api.clone(), server.folder.clone());
    let (machine, code) = (Machine::new(1), api.issue());
    let old = api.activate(&machine, &code);
    let late = api.issue();
    let prechecked = api.install("precheck", &machine.precheck_body(&late)).unwrap();
    let body = machine.activate_body(&late, &prechecked.data("precheck_token"));
    keys(folder.path(), &["add"]);
    keys(folder.path(), &["promote"]);
    hang_up(&server, None, READ_AGAIN);
    let again = api.activate(&machine, &code);
    assert_eq!(again.data("install_token"), old.data("install_token"), "byte for byte");
    assert_eq!(api.install("activate", &body).unwrap().status, 200);
    let confirm = |answer: &crate::harness::Answer| {
        let (id, token) = (answer.data("activation_id"), answer.data("install_token"));
        api.install("confirm", &json!({"activation_id": id, "install_token": token})).unwrap()
    };
    keys(folder.path(), &["prune", "--force"]);
    hang_up(&server, None, READ_AGAIN);
    assert_eq!(confirm(&old).told(), (403, "token_invalid".into()));
    let new = api.activate(&machine, &api.issue());
    assert_eq!(confirm(&new).status, 200);
    server.signal(Signal::SIGTERM);
    assert!(server.ends_within(Duration::from_secs(20)).expect("an end").success());
}

#[test]
fn a_changed_master_token_takes_effect_on_sighup() {
    let server = Process::start(&[]);
    let new = "an-entirely-new-master-token";
    fs::write(server.folder.path().join("data/master.token"), new).unwrap();
    hang_up(&server, None, READ_AGAIN);
    let register = |token: &str| {
        server.api.post("/register", &json!({"token": token, "ip": "1.2.3.4"})).unwrap().status
    };
    assert_eq!([register(&server.api.master), register(new)], [403, 200]);
}
