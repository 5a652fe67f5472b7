//! What commands print, where to, and how they end: whatever the environment, the arguments and the
//! output are.

use crate::harness::wait_until;
use crate::process::{Process, program, run, said};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const NOT_UTF8: &[u8] = b"\xff\xfe";

/// Commands that need no server and change nothing.
const ALONE: [&[&str]; 10] = [
    &["--help"],
    &["--version"],
    &["help", "servers", "list"],
    &["check-config"],
    &["print-config"],
    &["doctor"],
    &["doctor", "--output", "json"],
    &["keys", "list"],
    &["completions", "bash"],
    &["man"],
];

/// A folder with a file of signing keys.
fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    let keys = folder.path().join("data/signing.keys");
    fs::write(&keys, format!("k1:{}=\n", "A".repeat(43))).unwrap();
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).unwrap();
    folder
}

/// The end of a pipe that nobody reads any more.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn full_disk() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

fn with_stdout(mut command: Command, stdout: Stdio) -> Output {
    command.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_variable_that_is_not_utf8_matters_only_if_it_is_a_setting() {
    let folder = folder();
    let with = |name: &[u8], value: &[u8]| {
        let mut command = program(folder.path());
        command.env(OsStr::from_bytes(name), OsStr::from_bytes(value));
        command.arg("check-config").output().unwrap()
    };
    assert!(with(b"EDITOR", NOT_UTF8).status.success());
    assert!(with(NOT_UTF8, b"x").status.success());
    for (name, value) in [(&b"IPTUNNEL_STORAGE__URL"[..], NOT_UTF8), (b"IPTUNNEL_\xff", b"1")] {
        let output = with(name, value);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let words = errors(&output);
        assert!(words.contains("IPTUNNEL_") && words.contains("is not UTF-8"), "{words}");
    }
}

#[test]
fn an_argument_that_is_not_utf8_is_a_wrong_command_line_and_a_file_may_have_any_name() {
    let folder = folder();
    let with = |arguments: &[&[u8]]| {
        program(folder.path())
            .args(arguments.iter().map(|a| OsStr::from_bytes(a)))
            .output()
            .unwrap()
    };
    for arguments in [
        &[NOT_UTF8][..],
        &[b"--set", NOT_UTF8, b"check-config"],
        &[b"codes", b"show", NOT_UTF8],
        &[b"copy", b"--from", NOT_UTF8, b"--to", b"redb"],
    ] {
        let output = with(arguments);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
    let name = OsStr::from_bytes(b"\xff.toml");
    fs::write(folder.path().join(name), "[server]\nworkers = 3\n").unwrap();
    let output = with(&[b"--config", b"\xff.toml", b"print-config"]);
    assert!(said(&output).contains("workers = 3"), "{output:?}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let folder = folder();
    for arguments in ALONE {
        let mut command = program(folder.path());
        command.args(arguments);
        let output = with_stdout(command, closed_pipe());
        assert_eq!((output.status.code(), &*errors(&output)), (Some(0), ""), "{arguments:?}");
    }
    let mut bad = program(folder.path());
    bad.args([
        "--set",
        "storage.backend=postgres",
        "--set",
        "storage.url=postgres://127.0.0.1:1/x",
    ]);
    bad.arg("doctor");
    assert_eq!(with_stdout(bad, closed_pipe()).status.code(), Some(1));
}

#[test]
fn output_that_cannot_be_written_is_a_failure_that_is_told() {
    let folder = folder();
    for arguments in ALONE {
        let mut command = program(folder.path());
        command.args(arguments);
        let output = with_stdout(command, full_disk());
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let words = errors(&output);
        assert!(words.contains("standard output cannot be written: No space"), "{words}");
    }
}

#[test]
fn errors_that_nobody_can_read_do_not_change_the_exit_status() {
    let folder = folder();
    let wrong: [(&[&str], i32); 4] = [
        (&["--config", "none.toml", "check-config"], 1),
        (&["no-such-command"], 2),
        (&["--set", "x", "serve"], 2),
        (&["healthcheck", "--set", "admin.bind=127.0.0.1:1"], 1),
    ];
    for (arguments, status) in wrong {
        for stderr in [closed_pipe(), full_disk()] {
            let mut command = program(folder.path());
            let ended =
                command.args(arguments).stdout(full_disk()).stderr(stderr).status().unwrap();
            assert_eq!(ended.code(), Some(status), "{arguments:?}");
        }
    }
}

#[test]
fn a_server_runs_even_if_nobody_can_read_what_it_says() {
    let folder = TempDir::new().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let admin = format!("admin.bind={free}");
    let mut command = program(folder.path());
    command.args(["--set", "server.bind=127.0.0.1:0", "--set", &admin]);
    let mut server = command.stdout(closed_pipe()).stderr(closed_pipe()).spawn().unwrap();
    wait_until("it is ready", || {
        run(folder.path(), &["healthcheck", "--set", &admin]).status.success()
    });
    kill(Pid::from_raw(server.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(server.wait().unwrap().success());
}

fn command_of(server: &Process, arguments: &[&str]) -> Command {
    let bind = format!("admin.bind={}", server.api.admin.trim_start_matches("http://"));
    let mut command = program(server.folder.path());
    command.args(["--set", &bind]).args(arguments);
    command
}

fn ask(server: &Process, arguments: &[&str]) -> String {
    let output = command_of(server, arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Registers a server with this host name and returns its id.
fn register(server: &Process, ip: &str, hostname: &str) -> String {
    let body = json!({"token": server.api.master, "ip": ip, "hostname": hostname});
    let answer = server.api.post("/register", &body).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()["server_id"].as_str().unwrap().to_owned()
}

const EVIL: &str = "a\u{1b}[2Jb\u{9b}31m\u{202e}moc.live";

#[test]
fn no_terminal_obeys_the_name_of_a_host() {
    let server = Process::start(&[]);
    let id = register(&server, "9.9.9.9", EVIL);
    let text = ask(&server, &["servers", "list"])
        + &ask(&server, &["audit", "list"])
        + &ask(&server, &["audit", "export"])
        + &ask(&server, &["servers", "list", "--output", "json"])
        + &server.output();
    assert!(!text.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{text}");
    assert!(text.contains("a\\u001b[2Jb\\u009b31m\\u202emoc.live"), "{text}");
    let json: Value =
        serde_json::from_str(&ask(&server, &["servers", "list", "--output", "json"])).unwrap();
    assert_eq!(json["servers"][0]["hostname"], EVIL);
    assert_eq!(json["servers"][0]["server_id"], *id);
}

#[test]
fn a_list_ends_quietly_at_a_closed_pipe_and_fails_on_a_full_disk() {
    let server = Process::start(&[]);
    register(&server, "9.9.9.9", "s9.example.com");
    for arguments in [&["servers", "list"][..], &["audit", "export"], &["config", "get"]] {
        let output = with_stdout(command_of(&server, arguments), closed_pipe());
        assert_eq!((output.status.code(), &*errors(&output)), (Some(0), ""), "{arguments:?}");
        let output = with_stdout(command_of(&server, arguments), full_disk());
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(errors(&output).contains("standard output cannot be written"), "{output:?}");
    }
}

#[test]
fn nothing_found_is_said_beside_the_output_and_is_no_failure() {
    let server = Process::start(&[]);
    let lists: [(&[&str], &str); 4] = [
        (&["servers", "list"], "no servers found\n"),
        (&["codes", "show", "nowhere.example.com"], "no codes found\n"),
        (&["activations", "list"], "no activations found\n"),
        (&["audit", "list", "--text", "nowhere"], "no entries found\n"),
    ];
    for (arguments, words) in lists {
        let output = command_of(&server, arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!((&*output.stdout, &*errors(&output)), (&b""[..], words), "{arguments:?}");
    }
    let json = ask(&server, &["servers", "list", "--output", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["servers"], json!([]));
}

/// A service that answers every request with status 200 and this body.
fn other_service(body: &'static str, kind: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let length = body.len();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
            // To close while the rest of a request arrives would reset the connection, answer and all.
            let _ = stream.shutdown(Shutdown::Write);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
    });
    address
}

const ASKED: [&[&str]; 8] = [
    &["servers", "revoke", "0123456789abcdef"],
    &["servers", "list"],
    &["servers", "list", "--output", "json"],
    &["codes", "show", "x"],
    &["activations", "list"],
    &["audit", "list"],
    &["audit", "export"],
    &["config", "get"],
];

#[test]
fn an_answer_of_the_public_listener_or_of_another_service_is_an_error() {
    let server = Process::start(&[]);
    let addresses = [
        server.api.url.trim_start_matches("http://").to_owned(),
        other_service("{}", "application/json"),
        other_service("[]", "application/json"),
        other_service("{\"data\":{\"count\":0}}", "application/json"),
        other_service("{\"data\":null}", "application/json"),
        other_service("<html>hello</html>", "text/html"),
    ];
    for address in addresses {
        for arguments in ASKED {
            let mut command = program(server.folder.path());
            command.args(["--url", &format!("http://{address}")]).args(arguments);
            let output = command.output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{address} {arguments:?}: {output:?}");
            let words = errors(&output);
            assert!(words.contains("check admin.url"), "{address} {arguments:?}: {words}");
        }
    }
}

#[test]
fn a_wrong_command_line_ends_with_2_and_names_what_is_allowed() {
    let folder = folder();
    let wrong: [(&[&str], &str); 8] = [
        (&["servers", "list", "--show", "dead"], "stale"),
        (&["servers", "list", "--sort", "size"], "unseen"),
        (&["servers", "revoke", "../x"], "16 hexadecimal digits"),
        (&["activations", "list", "--limit", "0"], "1..=1000"),
        (&["audit", "list", "--actor", "me"], "operator"),
        (&["config", "set", "log.level"], "section.key=value"),
        (&["copy", "--from", "mysql:x", "--to", "redb"], "redb:PATH"),
        (&["completions", "tcsh"], "fish"),
    ];
    for (arguments, words) in wrong {
        let output = run(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(errors(&output).contains(words), "{arguments:?}: {output:?}");
    }
}

#[test]
fn the_audit_log_shows_which_server_was_revoked_even_if_it_has_no_host_name() {
    let server = Process::start(&[]);
    let id = register(&server, "9.9.9.9", "");
    ask(&server, &["servers", "revoke", &id]);
    let list = ask(&server, &["audit", "list", "--action", "server_revoked"]);
    assert!(list.contains(&id), "{list}");
}

#[test]
fn completions_and_manual_pages_need_no_configuration_and_name_every_command() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("config.toml"), "broken").unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = run(folder.path(), &["completions", shell]);
        assert!(script.status.success(), "{script:?}");
        let text = said(&script);
        assert!(text.contains("activations") && text.contains("promote"), "{shell}: {text}");
    }
    assert_completes(folder.path());
    let page = said(&run(folder.path(), &["man"]));
    assert!(page.contains(".TH iptunnel-server 1") && page.contains("Exit status"), "{page}");
    assert!(run(folder.path(), &["man", "--folder", "."]).status.success());
    let prune = fs::read_to_string(folder.path().join("iptunnel-server-keys-prune.1")).unwrap();
    assert!(prune.contains("keys prune") && prune.contains("force"), "{prune}");
    let nowhere = run(folder.path(), &["man", "--folder", "none"]);
    assert!(nowhere.status.code() == Some(1) && said(&nowhere).contains("none:"), "{nowhere:?}");
}

/// Lets a real shell complete a word with the script.
fn assert_completes(folder: &Path) {
    let script = run(folder, &["completions", "bash"]).stdout;
    fs::write(folder.join("script"), script).unwrap();
    let question = "source ./script; COMP_WORDS=(iptunnel-server keys pro); COMP_CWORD=2; \
        _iptunnel__server iptunnel-server pro keys; echo \"${COMPREPLY[@]}\"";
    let answer = Command::new("bash").args(["-c", question]).current_dir(folder).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "promote", "{answer:?}");
}
