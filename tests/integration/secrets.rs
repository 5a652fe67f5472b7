//! The life of the secrets on disk: who makes them, who only looks, and what is refused.

use crate::cluster::Cluster;
use crate::faults::{Servers, url};
use crate::harness::wait_until;
use crate::process::{Process, program, run, said, spawn, usual_flags};
use nix::pty::openpty;
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const FILES: [(&str, &str); 3] = [
    ("lookup.key", "auth.lookup_key_file"),
    ("signing.keys", "auth.signing_key_file"),
    ("master.token", "auth.master_token_file"),
];

/// A server that has run, and was stopped.
fn stopped() -> Process {
    let mut server = Process::start(&[]);
    server.api.issue();
    server.signal(Signal::SIGTERM);
    assert!(server.ends_within(Duration::from_secs(20)).unwrap().success());
    server
}

/// Starts a server that must refuse to start, and returns what it says.
fn refuses_to_start(folder: &Path, more: &[&str]) -> String {
    let mut arguments = usual_flags();
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    let (mut child, files) = spawn(folder, &arguments);
    assert!(!child.wait().unwrap().success());
    let said: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_secret_that_is_missing_beside_a_store_is_named_and_never_made_again() {
    let server = stopped();
    let data = server.folder.path().join("data");
    for (name, setting) in FILES {
        let (file, away) = (data.join(name), server.folder.path().join(name));
        fs::rename(&file, &away).unwrap();
        let said = refuses_to_start(server.folder.path(), &[]);
        assert!(
            said.contains(setting) && said.contains(name) && said.contains("Restore"),
            "{said}"
        );
        assert!(!file.exists());
        let checked = run(server.folder.path(), &["check-config"]);
        assert!(!checked.status.success() && crate::process::said(&checked).contains(setting));
        let doctor = run(server.folder.path(), &["doctor"]);
        let found = crate::process::said(&doctor);
        assert!(
            !doctor.status.success() && found.contains(&format!("bad      data/{name}")),
            "{found}"
        );
        fs::rename(&away, &file).unwrap();
    }
    assert!(run(server.folder.path(), &["check-config"]).status.success());
    server.again();
}

#[test]
fn a_server_does_not_start_with_another_lookup_key_than_that_of_its_store() {
    let server = stopped();
    let file = server.folder.path().join("data/lookup.key");
    let (own, mark) = (fs::read(&file).unwrap(), server.file("data/iptunnel.redb.mark"));
    fs::copy(stopped().folder.path().join("data/lookup.key"), &file).unwrap();
    let said = refuses_to_start(server.folder.path(), &[]);
    assert!(said.contains("data/lookup.key is not the key"), "{said}");
    let checked = run(server.folder.path(), &["check-config"]);
    let said = crate::process::said(&checked);
    assert!(!checked.status.success() && said.contains("data/lookup.key is not the key"), "{said}");
    let doctor = run(server.folder.path(), &["doctor"]);
    let said = crate::process::said(&doctor);
    assert!(!doctor.status.success() && said.contains("the lookup key is not that of"), "{said}");
    assert_eq!(server.file("data/iptunnel.redb.mark"), mark);
    fs::write(&file, own).unwrap();
    server.again();
}

#[test]
fn check_config_notices_another_lookup_key_under_a_running_server() {
    let server = stopped().again();
    let file = server.folder.path().join("data/lookup.key");
    assert!(run(server.folder.path(), &["check-config"]).status.success());
    fs::copy(stopped().folder.path().join("data/lookup.key"), &file).unwrap();
    let checked = run(server.folder.path(), &["check-config"]);
    assert!(crate::process::said(&checked).contains("data/lookup.key is not the key"));
}

#[test]
fn a_folder_that_others_may_write_in_is_in_the_log_and_in_doctor() {
    let server = stopped();
    let data = server.folder.path().join("data");
    fs::set_permissions(&data, Permissions::from_mode(0o777)).unwrap();
    let doctor = crate::process::said(&run(server.folder.path(), &["doctor"]));
    assert!(doctor.contains("has the mode 0777") && doctor.contains("chmod go-w"), "{doctor}");
    let server = server.again();
    wait_until("it is logged", || server.output().contains("others may write in a folder"));
}

#[test]
fn keys_that_are_added_at_the_same_time_are_all_kept() {
    let server = stopped();
    let folder = server.folder.path();
    let before = server.file("data/signing.keys").lines().count();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert!(run(folder, &["keys", "add"]).status.success()));
        }
    });
    assert_eq!(server.file("data/signing.keys").lines().count(), before + 8);
}

#[test]
fn fence_asks_before_it_acts() {
    let server = stopped();
    let mark = server.file("data/iptunnel.redb.mark");
    let said = crate::process::said(&run(server.folder.path(), &["fence"]));
    assert!(said.contains("will be void") && said.contains("--yes"), "{said}");
    assert_eq!(server.file("data/iptunnel.redb.mark"), mark);
    for (typed, code) in [("no\n", 1), ("\n", 1), ("yes\n", 0)] {
        assert_eq!(server.file("data/iptunnel.redb.mark"), mark, "before {typed:?}");
        let terminal = openpty(None, None).unwrap();
        let mut command = program(server.folder.path());
        command.arg("fence").stdin(terminal.slave).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        fs::File::from(terminal.master.try_clone().unwrap()).write_all(typed.as_bytes()).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{typed:?}");
    }
    let done = run(server.folder.path(), &["fence", "--yes"]);
    assert!(done.status.success() && crate::process::said(&done).contains("epoch 3"));
}

#[test]
fn a_first_start_makes_only_what_is_missing() {
    let folder = Arc::new(TempDir::new().unwrap());
    fs::create_dir(folder.path().join("data")).unwrap();
    let token = "\u{feff}a-token-of-the-operators-own\r\n";
    fs::write(folder.path().join("data/master.token"), token).unwrap();
    let server = Process::start_in(folder, usual_flags());
    assert_eq!(server.file("data/master.token"), token);
    let body = json!({"token": "a-token-of-the-operators-own", "ip": "1.2.3.4"});
    assert_eq!(server.api.post("/register", &body).unwrap().status, 200);
}

#[test]
fn a_link_to_a_secret_that_is_gone_is_not_replaced_by_a_fresh_secret() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    let link = folder.path().join("data/master.token");
    symlink(folder.path().join("elsewhere"), &link).unwrap();
    let said = refuses_to_start(folder.path(), &[]);
    assert!(said.contains("link to a file that does not exist"), "{said}");
    assert!(
        fs::symlink_metadata(&link).unwrap().is_symlink()
            && !folder.path().join("elsewhere").exists()
    );
    assert_eq!(names(&folder.path().join("data")), ["master.token"]);
}

#[test]
fn a_reload_makes_nothing_and_keeps_what_it_cannot_read_again() {
    let server = Process::start(&[]);
    let token = server.folder.path().join("data/master.token");
    let stays = || server.output().matches("the configuration stays as it was").count();
    let works = || {
        let body = json!({"token": server.api.master, "ip": "1.2.3.4"});
        server.api.post("/register", &body).unwrap().status
    };
    let quoted = format!("\"{}\"\n", server.api.master);
    let lines = format!("{}\nanother line\n", server.api.master);
    for text in [None, Some(quoted), Some(lines), Some(String::new())] {
        match text {
            None => fs::remove_file(&token).unwrap(),
            Some(text) => fs::write(&token, text).unwrap(),
        }
        let (there, before) = (token.exists(), stays());
        server.signal(Signal::SIGHUP);
        wait_until("it says that all stays", || stays() > before);
        assert_eq!((token.exists(), works()), (there, 200));
    }
    assert!(server.output().contains("auth.master_token_file: data/master.token does not exist"));
    fs::write(&token, &server.api.master).unwrap();
    fs::remove_file(server.folder.path().join("data/lookup.key")).unwrap();
    server.signal(Signal::SIGHUP);
    wait_until("it warns", || server.output().contains("this server will not start again"));
    assert_eq!(works(), 200);
    assert!(!server.folder.path().join("data/lookup.key").exists());
}

#[test]
fn a_token_that_nobody_could_send_is_refused_with_a_word() {
    let server = stopped();
    let token = server.folder.path().join("data/master.token");
    for (text, word) in [
        ("\"a-token-in-quotes-0123456789\"\n", "quotes"),
        ("a-token-of-good-length-0123456789\nsecond\n", "more than one line"),
        ("a-t\u{f6}ken-of-good-length-0123456789\n", "ASCII"),
        ("short\n", "at least 16"),
        ("\n", "empty"),
    ] {
        fs::write(&token, text).unwrap();
        for said in [
            refuses_to_start(server.folder.path(), &[]),
            said(&run(server.folder.path(), &["check-config"])),
        ] {
            assert!(said.contains("data/master.token: ") && said.contains(word), "{said}");
            assert!(!said.contains("good-length") && !said.contains("in-quotes"), "{said}");
        }
    }
}

#[test]
fn commands_that_only_look_make_nothing_in_an_empty_folder() {
    let folder = TempDir::new().unwrap();
    let export = folder.path().join("export");
    fs::write(&export, "").unwrap();
    for refused in [
        &["keys", "list"][..],
        &["keys", "add"],
        &["keys", "promote"],
        &["keys", "prune", "--force"],
        &["fence"],
        &["audit", "verify", "--file", "export"],
        &["audit", "verify"],
        &["servers", "list"],
        &["codes", "show", "x"],
        &["copy", "--from", "redb", "--to", "redb:other.redb"],
    ] {
        let output = run(folder.path(), refused);
        assert!(!output.status.success(), "{refused:?}: {}", said(&output));
        assert_eq!(names(folder.path()), ["export"], "{refused:?}");
    }
    for allowed in [&["doctor"][..], &["check-config"], &["print-config"]] {
        let output = run(folder.path(), allowed);
        assert!(output.status.success(), "{allowed:?}: {}", said(&output));
        assert_eq!(names(folder.path()), ["export"], "{allowed:?}");
    }
    let said = said(&run(folder.path(), &["fence"]));
    assert!(said.contains("there is no store at data/iptunnel.redb"), "{said}");
}

#[test]
fn a_user_who_may_not_look_is_told_so_and_not_that_there_is_nothing() {
    // Only root can become another user, and root may look everywhere.
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let server = stopped();
    let data = server.folder.path().join("data");
    // The program and this folder are open to all, the data is not.
    fs::set_permissions(server.folder.path(), Permissions::from_mode(0o755)).unwrap();
    let (copy, before) = (server.folder.path().join("iptunnel-server"), names(&data));
    // Not by this process: a child that another test starts meanwhile would hold the file open for writing,
    // and such a file is not executed.
    let copied = std::process::Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_iptunnel-server"))
        .arg(&copy)
        .status();
    assert!(copied.unwrap().success());
    for (arguments, words) in [
        (&["doctor"][..], "nobody can tell whether there is a store"),
        (&["check-config"], "Permission denied"),
        (&["keys", "list"], "Permission denied"),
        (&["fence"], "nobody can tell whether there is a store"),
        (&["servers", "list"], "Permission denied"),
        (&["audit", "verify"], "Permission denied"),
        (&["serve"], "Permission denied"),
    ] {
        let mut command = std::process::Command::new(&copy);
        command.env_clear().current_dir(server.folder.path()).uid(65_534).gid(65_534);
        command.args(["--set", "server.bind=127.0.0.1:0", "--set", "admin.bind=127.0.0.1:0"]);
        let output = command.args(arguments).output().unwrap();
        let told = said(&output);
        assert!(!output.status.success() && told.contains(words), "{arguments:?}: {told}");
        assert!(
            !told.contains("will be") && !told.contains("does not exist"),
            "{arguments:?}: {told}"
        );
    }
    assert_eq!(names(&data), before);
}

#[test]
fn a_promotion_that_is_repeated_keeps_the_new_key() {
    let server = Process::start(&[]);
    let keys = |arguments: &[&str]| {
        let output = run(server.folder.path(), &[&["keys"], arguments].concat());
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    };
    let added = keys(&["add"]).split_whitespace().next().unwrap().to_owned();
    assert!(keys(&["promote"]).contains("is now the signing key"));
    assert!(keys(&["promote"]).contains("nothing has changed"));
    assert_eq!(keys(&["list"]).lines().next(), Some(format!("{added}  signs").as_str()));
    keys(&["prune", "--force"]);
    assert_eq!(keys(&["list"]).trim(), format!("{added}  signs"));
}

#[test]
fn keys_behind_a_link_stay_behind_it_and_with_their_owner() {
    let server = Process::start(&[]);
    let (link, file) =
        (server.folder.path().join("data/signing.keys"), server.folder.path().join("keys"));
    fs::rename(&link, &file).unwrap();
    symlink("../keys", &link).unwrap();
    let is_root = nix::unistd::geteuid().is_root();
    if is_root {
        std::os::unix::fs::chown(&file, Some(65_534), Some(65_534)).unwrap();
    }
    assert!(run(server.folder.path(), &["keys", "add"]).status.success());
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 2);
    assert!(
        !is_root || std::os::unix::fs::MetadataExt::uid(&fs::metadata(&file).unwrap()) == 65_534
    );
    assert!(!names(server.folder.path()).iter().any(|name| name.contains(".new")));
}

#[test]
fn a_file_of_secrets_that_all_may_read_is_reported_in_the_log_and_by_doctor() {
    let server = stopped();
    let file = server.folder.path().join("data/signing.keys");
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let server = server.again();
    wait_until("the log says so", || server.output().contains("\"mode\":\"0644\""));
    let doctor = said(&run(server.folder.path(), &["doctor"]));
    assert!(doctor.contains("warning  data/signing.keys has the mode 0644"), "{doctor}");
    assert!(doctor.contains("chmod 0600 data/signing.keys"), "{doctor}");
}

#[test]
fn a_server_without_the_keys_of_its_database_does_not_start_and_makes_none() {
    let cluster = Cluster::new();
    let servers = Servers::start(1, &url(&[cluster.address()]));
    let address = format!("storage.url={}", url(&[cluster.address()]));
    let more = ["--set", "storage.backend=postgres", "--set", &address];
    let folder = TempDir::new().unwrap();
    let said = refuses_to_start(folder.path(), &more);
    assert!(
        said.contains("auth.lookup_key_file") && said.contains("copy it from another"),
        "{said}"
    );
    assert!(names(&folder.path().join("data")).is_empty());
    // Keys that were made elsewhere are not those of the database.
    let other = stopped();
    let said = refuses_to_start(other.folder.path(), &more);
    assert!(said.contains("data/lookup.key is not the key"), "{said}");
    let doctor = run(other.folder.path(), &[&["doctor"], &more[..]].concat());
    let found = crate::process::said(&doctor);
    assert!(
        !doctor.status.success() && found.contains("bad      the lookup key is not"),
        "{found}"
    );
    drop(servers);
}

#[test]
fn servers_with_other_signing_keys_or_another_master_token_are_reported() {
    let cluster = Cluster::new();
    let servers = Servers::start(2, &url(&[cluster.address()]));
    let differ = |server: &Process| {
        let metrics = server.api.get(&format!("{}/metrics", server.api.admin)).unwrap().text;
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix("iptunnel_servers_with_other_secrets "))
            .map(str::to_owned);
        value.expect(&metrics)
    };
    let [one, other] = &servers.all[..] else { panic!() };
    let address = format!("storage.url={}", url(&[cluster.address()]));
    let set = ["doctor", "--set", "storage.backend=postgres", "--set", &address];
    let doctor = || {
        let output = run(one.folder.path(), &set);
        (output.status.success(), said(&output))
    };
    wait_until("both have said what they have", || {
        doctor().1.contains("good     2 running servers have the signing keys of this one")
    });
    let (good, told) = doctor();
    assert!(good && told.contains("good     2 running servers have the master token"), "{told}");
    assert_eq!((differ(one), differ(other)), ("0".into(), "0".into()));
    let token = other.folder.path().join("data/master.token");
    fs::write(&token, "another-master-token-of-one-server\n").unwrap();
    assert!(run(other.folder.path(), &["keys", "add"]).status.success());
    other.signal(Signal::SIGHUP);
    for server in [one, other] {
        wait_until("it is reported", || differ(server) == "1");
        let log = server.output();
        let line = log.lines().find(|line| line.contains("other servers on the store have other"));
        let line = line.expect(&log);
        assert!(line.contains("signing keys") && line.contains("master token"), "{line}");
        assert!(!log.contains("another-master-token"));
    }
    let (good, told) = doctor();
    assert!(
        !good && told.contains("1 of 2 running servers do not have the signing keys"),
        "{told}"
    );
    assert!(told.contains("1 of 2 running servers do not have the master token"), "{told}");
    for name in ["signing.keys", "master.token"] {
        let file = Path::new("data").join(name);
        fs::copy(one.folder.path().join(&file), other.folder.path().join(&file)).unwrap();
    }
    other.signal(Signal::SIGHUP);
    for server in [one, other] {
        wait_until("all is well again", || differ(server) == "0");
    }
}
