//! Backups of a running server, and what a restored one knows.

use crate::access::{by_master, with_role};
use crate::harness::{Machine, TestApp, alone, send, wait_until};
use crate::process::{Api, Process, program, run, said, usual_flags};
use iptunnel_domain::access::Role;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

/// Made by `age-keygen`, for this test alone.
const KEY: &str = "AGE-SECRET-KEY-1NCZ2PXYR7X5PEJ96JY3PZP99C34LS28990D2NFPZ9T5JLSG9ASAQHRYF0G";
const ADDRESS: &str = "age1c7fskew0h8hw5sl3dqmrwled3qp08dse6mzdj2j5m0tflvnfd45shpy5yf";

/// A code, and what was done with it.
#[derive(Clone, Debug)]
struct Done {
    code: String,
    machine: Machine,
    /// The tokens that its machine has.
    precheck_token: String,
    /// The body of confirm and release, if it was activated.
    activation: Option<Value>,
    confirmed: bool,
    /// Whether all this was done before the backup was asked for.
    before: bool,
}

/// Issues a code, and goes on with it: every third is only prechecked, every third is activated as well, and
/// the others are confirmed too.
fn one(api: &Api, number: u32, before: bool) -> Done {
    let (code, machine) = (api.issue(), Machine::new(number));
    let prechecked = api.install("precheck", &machine.precheck_body(&code)).unwrap();
    let precheck_token = prechecked.data("precheck_token");
    let mut done =
        Done { code, machine, precheck_token, activation: None, confirmed: false, before };
    if number.is_multiple_of(3) {
        return done;
    }
    let body = done.machine.activate_body(&done.code, &done.precheck_token);
    let activated = api.install("activate", &body).unwrap();
    assert_eq!(activated.status, 200, "{}", activated.text);
    let activation = json!({"activation_id": activated.data("activation_id"),
        "install_token": activated.data("install_token")});
    if number % 3 == 1 {
        assert_eq!(api.install("confirm", &activation).unwrap().status, 200);
        done.confirmed = true;
    }
    done.activation = Some(activation);
    done
}

fn command(server: &Process, arguments: &[&str]) -> Output {
    program(server.folder.path()).args(arguments).output().unwrap()
}

/// What a restored server answers about a code of before: nothing that it would grant.
fn check_void(api: &Api, done: &Done) {
    let stranger = Machine::new(900_000);
    for machine in [&stranger, &done.machine] {
        let told = api.install("precheck", &machine.precheck_body(&done.code)).unwrap();
        assert_ne!(told.status, 200, "{done:?}: {}", told.text);
        let body = machine.activate_body(&done.code, &done.precheck_token);
        let told = api.install("activate", &body).unwrap();
        assert_ne!(told.status, 200, "{done:?}: {}", told.text);
    }
    let Some(activation) = &done.activation else { return };
    let confirmed = api.install("confirm", activation).unwrap().told();
    if done.before && done.confirmed {
        // What was spent and confirmed stays so.
        assert_eq!(confirmed, (409, "token_used".into()), "{done:?}");
        let told = api.install("precheck", &stranger.precheck_body(&done.code)).unwrap();
        assert_eq!(told.code(), "install_code_used", "{done:?}");
        let released = api.install("release", activation).unwrap();
        assert_eq!(released.data("status"), "confirmed");
    } else {
        assert_ne!(confirmed.0, 200, "{done:?}");
        let released = api.install("release", activation).unwrap();
        assert_ne!(released.json()["data"]["install_code_restored"], true, "{done:?}");
    }
}

#[test]
fn a_backup_made_under_load_and_restored_elsewhere_revives_nothing_and_keeps_the_rest() {
    let mut server = Process::start(&[]);
    let agent_token = format!("ipa_{}", "5".repeat(48));
    let body = json!({"token": server.api.master, "ip": "9.9.9.9", "hostname": "s9.example.com",
        "agent_token": agent_token});
    let registered = server.api.post("/api/v2/servers/register", &body).unwrap();
    let server_id = registered.data("server_id");
    let (all, next) = (Mutex::new(Vec::new()), AtomicU32::new(1));
    let (asked_for, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    let backup = TempDir::new().unwrap();
    let folder = backup.path().join("monday");
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    let done = one(&server.api, number, false);
                    let before = !asked_for.load(Ordering::SeqCst);
                    all.lock().unwrap().push(Done { before, ..done });
                }
            });
        }
        let count = || all.lock().unwrap().len();
        wait_until("there are codes of each kind", || count() >= 12);
        asked_for.store(true, Ordering::SeqCst);
        let arguments = ["backup", folder.to_str().unwrap(), "--recipient", ADDRESS];
        let made = command(&server, &arguments);
        assert!(made.status.success(), "{}", said(&made));
        let then = count();
        wait_until("there are codes of after the backup", || count() >= then + 6);
        is_over.store(true, Ordering::SeqCst);
    });
    let all = all.into_inner().unwrap();
    assert!(all.iter().filter(|done| done.before).count() >= 12);

    // Nothing is restored beside a server, nor over a store.
    let restore = ["restore", folder.to_str().unwrap()];
    let refused = command(&server, &restore);
    assert!(!refused.status.success() && said(&refused).contains("a server runs here"));
    server.signal(Signal::SIGTERM);
    assert!(server.ends_within(Duration::from_secs(20)).unwrap().success());
    let refused = command(&server, &restore);
    assert!(!refused.status.success() && said(&refused).contains("there is a store already"));

    let place = Arc::new(TempDir::new().unwrap());
    fs::write(place.path().join("key.txt"), KEY).unwrap();
    let refused = run(place.path(), &restore);
    assert!(!refused.status.success() && said(&refused).contains("--identity"));
    let restored = run(place.path(), &[&restore[..], &["--identity", "key.txt"]].concat());
    assert!(restored.status.success(), "{}", said(&restored));
    assert!(said(&restored).contains("epoch 2 has begun"), "{}", said(&restored));
    let again = Process::start_in(place, usual_flags());
    for done in &all {
        check_void(&again.api, done);
    }
    let check_in = again.api.client.post(format!("{}/checkin", again.api.url));
    let check_in = check_in.bearer_auth(&agent_token);
    let checked_in = send(check_in.body(json!({"server_id": server_id}).to_string()));
    assert_eq!((checked_in.status, checked_in.json()["status"].as_str()), (200, Some("ok")));
    again.api.activate(&Machine::new(800_000), &again.api.issue());
    let log = said(&command(&again, &["audit", "list", "--output", "json"]));
    assert!(log.contains("store_restored") && log.contains("store_fenced"), "{log}");
    let verified = command(&again, &["audit", "verify"]);
    assert!(verified.status.success(), "{}", said(&verified));
}

#[test]
fn a_backup_is_made_while_no_server_runs_and_is_found_by_the_next_one() {
    let mut server = Process::start(&[]);
    let code = server.api.issue();
    let made = command(&server, &["backup", "--output", "json"]);
    assert!(made.status.success(), "{}", said(&made));
    server.signal(Signal::SIGTERM);
    assert!(server.ends_within(Duration::from_secs(20)).unwrap().success());
    let other = server.folder.path().join("other");
    let made = command(&server, &["backup", "other"]);
    assert!(made.status.success() && said(&made).contains("--recipient"), "{}", said(&made));
    let refused = command(&server, &["backup", "other"]);
    assert!(said(&refused).contains("is not empty"), "{}", said(&refused));
    assert!(other.join("manifest.json").exists());
    let nowhere = run(other.as_path(), &["backup", "here"]);
    assert!(!nowhere.status.success() && said(&nowhere).contains("there is no store at"));
    // A backup voids nothing.
    let server = server.again();
    server.api.activate(&Machine::new(1), &code);
    wait_until("the newest backup in the folder is known", || {
        let metrics = server.api.get(&format!("{}/metrics", server.api.admin)).unwrap().text;
        metrics.contains("\niptunnel_backup_age_seconds ")
    });
}

#[test]
fn a_backup_of_an_earlier_store_does_not_make_its_spent_codes_good() {
    let stop = |server: &mut Process| {
        server.signal(Signal::SIGTERM);
        assert!(server.ends_within(Duration::from_secs(20)).unwrap().success());
    };
    let mut server = Process::start(&[]);
    let code = server.api.issue();
    stop(&mut server);
    let (data, earlier) = (server.folder.path().join("data"), TempDir::new().unwrap());
    let files = ["iptunnel.redb", "iptunnel.redb.journal"];
    for file in files {
        fs::copy(data.join(file), earlier.path().join(file)).unwrap();
    }
    let mut server = server.again();
    server.api.activate(&Machine::new(1), &code);
    stop(&mut server);
    for file in files {
        fs::copy(earlier.path().join(file), data.join(file)).unwrap();
    }
    let made = command(&server, &["backup", "other"]);
    assert!(made.status.success(), "{}", said(&made));
    let server = server.again();
    let told = server.api.install("precheck", &Machine::new(2).precheck_body(&code)).unwrap();
    assert_eq!(told.told(), (403, "install_code_expired".into()));
}

fn shown(app: &TestApp) -> Value {
    by_master(app, "GET", "/admin/backup", &json!({})).json()["data"].take()
}

#[test]
fn backups_are_made_by_the_schedule_and_by_operators_and_the_oldest_are_removed() {
    if !alone() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("all").display().to_string();
    // A file where the folder is to be.
    fs::write(&path, "").unwrap();
    let app = TestApp::start_with(|c| {
        c.push(("backup.folder", path.clone()));
        c.push(("backup.keep", "2".into()));
        c.push(("backup.keys_recipient", ADDRESS.into()));
    });
    let told = by_master(&app, "POST", "/admin/backup", &json!({}));
    if told.code() == "backup_of_database" {
        return;
    }
    assert_eq!(told.told(), (500, "backup_failed".into()));
    assert_eq!(app.metric("iptunnel_backup_failures_total"), 1.0);
    let now = || by_master(&app, "GET", "/admin/now", &json!({})).json()["data"].take();
    let failure = now()["attention"][0].take();
    assert_eq!(failure["kind"], "backup");
    assert!(failure["text"].as_str().unwrap().contains(&path), "{failure}");
    assert_eq!(now()["health"]["last_backup_at"], Value::Null);
    fs::remove_file(&path).unwrap();
    let made = by_master(&app, "POST", "/admin/backup", &json!({}));
    assert_eq!(made.status, 200, "{}", made.text);
    assert_eq!(now()["health"]["last_backup_at"], "2030-03-17T17:46:40+00:00");
    assert_eq!(now()["attention"], json!([]));
    let first = shown(&app)["last"].take();
    assert_eq!(first["name"], "iptunnel-20300317T174640Z");
    assert!(first["size"].as_u64() > Some(0) && first["has_keys"] == true, "{first}");
    let view = with_role(&app, Role::View).text;
    let told = send(app.client.post(format!("{}/admin/backup", app.admin)).bearer_auth(view));
    assert_eq!(told.told(), (403, "forbidden".into()));
    let elsewhere = json!({"folder": "/tmp/elsewhere"});
    let told = by_master(&app, "POST", "/admin/backup", &elsewhere);
    assert_eq!(told.told(), (422, "validation_error".into()));
    // A second one in the same second.
    assert_eq!(by_master(&app, "POST", "/admin/backup", &json!({})).status, 200);
    let second = shown(&app)["last"].take();
    assert_eq!(second["name"], "iptunnel-20300317T174640Z-2");

    app.clock.advance(3599);
    assert_eq!(app.metric("iptunnel_backup_age_seconds"), 3599.0);
    assert_eq!(app.metric("iptunnel_backup_size_bytes"), second["size"].as_f64().unwrap());
    app.reload_now(|config| config.backup.every_hours = 1);
    app.clock.advance(1);
    let newest = |at: &str| shown(&app)["last"]["made_at"] == at;
    wait_until("an hour has passed", || newest("2030-03-17T18:46:40+00:00"));
    app.clock.advance(3600);
    wait_until("another hour has passed", || newest("2030-03-17T19:46:40+00:00"));
    let now = shown(&app);
    let kept: Vec<_> = now["kept"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(kept, ["iptunnel-20300317T194640Z", "iptunnel-20300317T184640Z"]);
    assert_eq!(now["failure"], Value::Null);
    let log = by_master(&app, "GET", "/admin/audit?action=backup_made", &json!({})).text;
    assert!(log.contains("\"schedule\"") && log.contains("master token"), "{log}");
}
