//! Faults of servers that share a database, and of the database: real processes, a real database that
//! is killed, and connections that break during a commit.

use crate::cluster::Cluster;
use crate::crash::{Load, Stories, check_all, new_machine, rounds, seed};
use crate::harness::{Machine, PATIENCE, spread, try_send, wait_until};
use crate::process::{Api, Chance, Process, usual_flags};
use nix::sys::signal::Signal;
use reqwest::blocking::Client;
use serde_json::json;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// Servers on one database, and a way to all of them.
pub struct Servers {
    pub all: Vec<Process>,
    pub api: Api,
}

impl Servers {
    pub fn start(count: usize, url: &str) -> Self {
        Self::start_with(count, url, &[])
    }

    /// With these settings besides.
    pub fn start_with(count: usize, url: &str, more: &[&str]) -> Self {
        let (mut all, mut folders): (Vec<Process>, Vec<Arc<TempDir>>) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let folder = Arc::new(TempDir::new().unwrap());
            if let Some(first) = folders.first() {
                std::fs::create_dir(folder.path().join("data")).unwrap();
                for file in ["signing.keys", "lookup.key", "master.token"] {
                    let file = Path::new("data").join(file);
                    std::fs::copy(first.path().join(&file), folder.path().join(&file)).unwrap();
                }
            }
            let mut arguments = usual_flags();
            let url = format!("storage.url={url}");
            let own = ["storage.backend=postgres", &url, "codes.max_activations_per_code=255"];
            for set in own.iter().chain(more) {
                arguments.extend(["--set".to_owned(), (*set).to_owned()]);
            }
            all.push(Process::start_in(Arc::clone(&folder), arguments));
            folders.push(folder);
        }
        let api = Self::over(&all);
        Self { all, api }
    }

    /// A way to all of them, one after the other.
    fn over(all: &[Process]) -> Api {
        let address = |server: &Process| server.api.url["http://".len()..].parse().unwrap();
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(15));
        let client = client.pool_max_idle_per_host(0).build().unwrap();
        let url = format!("http://{}", spread(all.iter().map(address).collect()));
        Api { url, client, patience: Duration::from_secs(1), ..all[0].api.clone() }
    }

    /// Waits until each is ready, and has read from the database and committed to it: one that nobody has asked
    /// for anything may notice a fault up to two seconds later.
    pub fn wait_ready(&self) {
        let works = |api: &Api| {
            let body = new_machine().precheck_body("IPT-SD-AAAAAA-BBBBBB-CCCCCC");
            api.install("precheck", &body).is_some_and(|answer| answer.status == 404)
        };
        for server in &self.all {
            let begun = std::time::Instant::now();
            while server.api.ready() != Some(200) || !works(&server.api) {
                let waited = begun.elapsed();
                assert!(waited < PATIENCE, "not ready: {}", server.output());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Where servers find a database with these addresses.
pub fn url(addresses: &[SocketAddr]) -> String {
    let hosts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    format!("postgres://postgres@{}/postgres?target_session_attrs=read-write", hosts.join(","))
}

/// Puts load on the servers while `fault` happens; returns the replies that clients got.
fn under_load(servers: &Servers, round: u64, fault: impl FnOnce()) -> Stories {
    let mut chance = Chance::seeded(seed() ^ round);
    let load = Load::start(servers.api.clone(), round, seed());
    std::thread::sleep(Duration::from_millis(100 + chance.below(300)));
    fault();
    // Every client that was not refused has continued normally.
    std::thread::sleep(Duration::from_millis(300));
    load.stop()
}

fn note(round: u64) -> String {
    format!("(seed {}, round {round})", seed())
}

/// Rounds of faults, each of which takes some seconds.
fn some_rounds() -> u64 {
    rounds().div_ceil(4)
}

#[test]
fn everything_that_a_killed_server_acknowledged_holds_on_the_others() {
    let cluster = Cluster::new();
    let mut servers = Servers::start(2, &url(&[cluster.address()]));
    for round in 0..some_rounds() {
        let (left, victim) = ((round % 2) as usize, 1 - (round % 2) as usize);
        let stories = {
            let mut chance = Chance::seeded(seed() ^ round);
            let load = Load::start(servers.api.clone(), round, seed());
            std::thread::sleep(Duration::from_millis(100 + chance.below(300)));
            servers.all[victim].kill();
            load.end()
        };
        let api = Api { patience: servers.api.patience, ..servers.all[left].api.clone() };
        check_all(&api, &stories, &note(round));
        servers.all[victim] = servers.all[victim].again();
        servers.api = Servers::over(&servers.all);
    }
}

#[test]
fn a_database_killed_and_restarted_keeps_everything_acknowledged() {
    let cluster = Cluster::new();
    let servers = Servers::start(2, &url(&[cluster.address()]));
    for round in 0..some_rounds() {
        let stories = under_load(&servers, round, || cluster.kill());
        cluster.start();
        servers.wait_ready();
        check_all(&servers.api, &stories, &note(round));
    }
}

#[test]
fn while_the_database_is_down_requests_are_refused_and_known_servers_check_in() {
    let cluster = Cluster::new();
    let servers = Servers::start(2, &url(&[cluster.address()]));
    let api = &servers.api;
    let body = json!({"token": api.master, "ip": "9.9.9.9", "hostname": "a.example.com"});
    let registered = api.post("/register", &body).unwrap().json();
    let (id, cookie, code) =
        (json!({"server_id": registered["server_id"]}), api.cookie().unwrap(), api.issue());
    for server in &servers.all {
        assert_eq!(server.api.post("/checkin", &id).unwrap().status, 200);
    }
    let stories =
        under_load(&servers, 0, || cluster.run("pg_ctl", &["-s", "-m", "immediate", "stop"]));
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(10) {
        for server in &servers.all {
            let api = Api { client: api.client.clone(), ..server.api.clone() };
            let issued = api.issue_with(&cookie).unwrap();
            let known = ["storage_unavailable", "overloaded", "outcome_unknown"];
            assert!(issued.status == 503 && known.contains(&issued.code().as_str()), "{issued:?}");
            assert!(!issued.header("retry-after").is_empty());
            let prechecked =
                api.install("precheck", &Machine::new(1).precheck_body(&code)).unwrap();
            assert_eq!(prechecked.status, 503, "{prechecked:?}");
            assert_eq!(api.post("/checkin", &id).unwrap().status, 200);
        }
    }
    for server in &servers.all {
        wait_until("the server is not ready", || server.api.ready() == Some(503));
        // The page that says what needs a person is there all the same.
        wait_until("Now names the database", || {
            let now = server.api.client.get(format!("{}/admin/now", server.api.admin));
            let now = try_send(now.bearer_auth(&server.api.master)).unwrap();
            now.status == 200 && now.text.contains("The database does not answer (for ")
        });
    }
    cluster.start();
    servers.wait_ready();
    check_all(api, &stories, &note(0));
    api.activate(&Machine::new(1), &code);
}

#[test]
fn a_frozen_database_blocks_neither_replies_nor_the_shutdown_of_its_server() {
    let cluster = Cluster::new();
    let url = url(&[cluster.address()]);
    let still = ["server.request_timeout_ms=3000", "server.shutdown_grace_seconds=2"];
    let servers = Servers::start_with(1, &url, &still);
    let mut server = servers.all.into_iter().next().unwrap();
    let api = server.api.clone();
    let body = json!({"token": api.master, "ip": "9.9.9.9", "hostname": "a.example.com"});
    let id = json!({"server_id": api.post("/register", &body).unwrap().json()["server_id"]});
    let (cookie, code) = (api.cookie().unwrap(), api.issue());
    cluster.signal(Signal::SIGSTOP);
    for _ in 0..3 {
        let issued = api.issue_with(&cookie).unwrap();
        assert_eq!(issued.status, 503, "{issued:?}");
        assert_eq!(api.post("/checkin", &id).unwrap().status, 200);
    }
    wait_until("the server is not ready", || api.ready() == Some(503));
    cluster.signal(Signal::SIGCONT);
    wait_until("the server is ready again", || api.ready() == Some(200));
    api.activate(&Machine::new(1), &code);
    let code = api.issue();
    cluster.signal(Signal::SIGSTOP);
    // By then everything that the server does by itself is held up as well.
    wait_until("the server is not ready", || api.ready() == Some(503));
    server.signal(Signal::SIGTERM);
    // It is not waited for in vain, and called one in order only where nothing was left to be written.
    let ended = server.ends_within(Duration::from_secs(20));
    cluster.signal(Signal::SIGCONT);
    let in_order = ended.expect("the server ends").success();
    let output = server.output();
    assert_ne!(in_order, output.contains("did not sync in time"), "{output}");
    server.again().api.activate(&Machine::new(2), &code);
}

#[test]
fn a_promotion_of_the_standby_loses_nothing_and_needs_no_restart() {
    let primary = Cluster::new();
    let standby = primary.standby();
    let servers = Servers::start(2, &url(&[primary.address(), standby.address()]));
    let stories = under_load(&servers, 0, || {
        primary.kill();
        standby.run("pg_ctl", &["-s", "-w", "promote"]);
    });
    servers.wait_ready();
    check_all(&servers.api, &stories, &note(0));
}

/// A proxy to the database that breaks its connection when a test asks for it.
struct Line {
    address: SocketAddr,
    /// The number of ends of transactions that still pass. At 0 nothing is cut.
    cut: Arc<AtomicU64>,
    /// Whether the end at which the proxy cuts still reaches the database.
    arrives: Arc<AtomicU32>,
}

impl Line {
    fn to(database: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let line = Self {
            address: listener.local_addr().unwrap(),
            cut: Arc::default(),
            arrives: Arc::default(),
        };
        let (cut, arrives) = (Arc::clone(&line.cut), Arc::clone(&line.arrives));
        std::thread::spawn(move || {
            for server in listener.incoming() {
                let Ok(server) = server else { return };
                let Ok(database) = TcpStream::connect(database) else { continue };
                let (cut, arrives) = (Arc::clone(&cut), Arc::clone(&arrives));
                let (mut back, mut there) =
                    (database.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut back, &mut there);
                    let _ = there.shutdown(Shutdown::Both);
                });
                std::thread::spawn(move || carry(server, database, &cut, &arrives));
            }
        });
        line
    }

    /// Cuts the connection at the end of the `nth` transaction from now.
    fn cut_at(&self, nth: u64, arrives: bool) {
        self.arrives.store(u32::from(arrives), Ordering::SeqCst);
        self.cut.store(nth, Ordering::SeqCst);
    }
}

/// Forwards from a server to the database until it cuts the connection at the end of a transaction.
fn carry(mut server: TcpStream, mut database: TcpStream, cut: &AtomicU64, arrives: &AtomicU32) {
    let mut bytes = [0; 65536];
    loop {
        let count = match server.read(&mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        let end = bytes[..count].windows(7).position(|seven| seven == b"COMMIT\0");
        let last = end.is_some()
            && cut.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)) == Ok(1);
        if last {
            let kept = if arrives.load(Ordering::SeqCst) == 1 { count } else { end.unwrap() };
            // First nothing comes back any more, and then the end goes out, or does not.
            let _ = server.shutdown(Shutdown::Both);
            let _ = database.write_all(&bytes[..kept]);
            std::thread::sleep(Duration::from_millis(50));
            break;
        }
        if database.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = database.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

#[test]
fn a_connection_that_breaks_during_a_commit_neither_loses_nor_invents_it() {
    let cluster = Cluster::new();
    let line = Line::to(cluster.address());
    let servers = Servers::start(2, &url(&[line.address]));
    for round in 0..rounds() {
        let load = Load::start(servers.api.clone(), round, seed());
        let mut chance = Chance::seeded(seed() ^ round);
        line.cut_at(20 + chance.below(100), round % 2 == 0);
        wait_until("the line was cut", || line.cut.load(Ordering::SeqCst) == 0);
        // A server that goes on as if nothing had happened is stopped by nothing but this.
        std::thread::sleep(Duration::from_millis(300));
        let stories = load.stop();
        check_all(&servers.api, &stories, &note(round));
    }
    let output: String = servers.all.iter().map(Process::output).collect();
    assert!(output.contains("the outcome of a commit is unknown"), "{output}");
}

#[test]
fn a_server_uses_the_databases_clock_and_is_not_ready_if_its_own_differs() {
    let cluster = Cluster::new();
    // The time that connections are told is ahead of what it is.
    let ahead_by = |interval: &str| {
        cluster.psql(&format!(
            "CREATE OR REPLACE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS
             $$SELECT pg_catalog.clock_timestamp() + interval '{interval}'$$"
        ));
    };
    ahead_by("5 seconds");
    cluster.psql("ALTER ROLE postgres SET search_path = public, pg_catalog");
    let servers = Servers::start(1, &url(&[cluster.address()]));
    let server = &servers.all[0];
    let api = &server.api;
    wait_until("the server is not ready", || api.ready() == Some(503));
    let metrics = api.get(&format!("{}/metrics", api.admin)).unwrap().text;
    let ahead =
        metrics.lines().find_map(|line| line.strip_prefix("iptunnel_clock_offset_seconds "));
    let ahead: f64 = ahead.unwrap().parse().unwrap();
    assert!((4.9..5.1).contains(&ahead), "{ahead}");
    assert!(server.output().contains("the machine's clock differs from the store's"));
    // What it hands out lives by that clock, in whole seconds.
    let issued = api.issue_with(&api.cookie().unwrap()).unwrap();
    let left: f64 = cluster
        .psql(&format!(
            "SELECT extract(epoch FROM '{}'::timestamptz - pg_catalog.clock_timestamp())",
            issued.data("expires_at")
        ))
        .parse()
        .unwrap();
    assert!((302.0..305.1).contains(&left), "{left}");
    let url = format!("storage.url={}", url(&[cluster.address()]));
    let set = ["doctor", "--set", "storage.backend=postgres", "--set", &url];
    let doctor = crate::process::run(server.folder.path(), &set);
    let said = crate::process::said(&doctor);
    assert!(!doctor.status.success() && said.contains("bad      the database's clock"), "{said}");
    ahead_by("0 seconds");
    wait_until("the server is ready", || api.ready() == Some(200));
}

#[test]
fn doctor_reports_unsafe_database_settings_and_readiness_fails_unless_they_are_allowed() {
    let cluster = Cluster::new();
    let servers = Servers::start(1, &url(&[cluster.address()]));
    let server = &servers.all[0];
    let url = format!("storage.url={}", url(&[cluster.address()]));
    let doctor = || {
        let set = ["doctor", "--set", "storage.backend=postgres", "--set", &url];
        let output = crate::process::run(server.folder.path(), &set);
        (output.status.success(), crate::process::said(&output))
    };
    let (good, said) = doctor();
    assert!(good && said.contains("fsync = on") && !said.contains("bad "), "{said}");
    cluster.psql("ALTER SYSTEM SET synchronous_commit = off");
    cluster.psql("SELECT pg_reload_conf()");
    wait_until("the setting counts", || cluster.psql("SHOW synchronous_commit") == "off");
    let (good, said) = doctor();
    assert!(!good && said.contains("bad      synchronous_commit = off"), "{said}");
    assert!(said.contains("mend it with: ALTER SYSTEM SET synchronous_commit = on"), "{said}");
    // A start finds it at once; a running server within half a minute.
    let mut again = servers.all.into_iter().next().unwrap();
    again.kill();
    let again = again.again();
    wait_until("the server is not ready", || again.api.ready() == Some(503));
    cluster.psql("ALTER SYSTEM RESET synchronous_commit");
    cluster.psql("SELECT pg_reload_conf()");
}

#[test]
fn a_restored_database_makes_no_used_code_valid_and_keeps_its_servers() {
    let cluster = Cluster::new();
    let mut servers = Servers::start(2, &url(&[cluster.address()]));
    let stop = |servers: &mut Servers| {
        for server in &mut servers.all {
            server.signal(Signal::SIGTERM);
            assert!(server.ends_within(Duration::from_secs(20)).unwrap().success());
        }
    };
    let again = |servers: &Servers| {
        let all: Vec<Process> = servers.all.iter().map(Process::again).collect();
        Servers { api: Servers::over(&all), all }
    };
    let (spent, unspent) = (servers.api.issue(), servers.api.issue());
    stop(&mut servers);
    cluster.stop();
    cluster.shell("cp -a data backup");
    cluster.start();
    let mut servers = again(&servers);
    let activated = servers.api.activate(&Machine::new(1), &spent);
    let (id, token) = (activated.data("activation_id"), activated.data("install_token"));
    let body = json!({"activation_id": id, "install_token": token});
    assert_eq!(servers.api.install("confirm", &body).unwrap().status, 200);
    stop(&mut servers);
    cluster.stop();
    cluster.shell("rm -r data; mv backup data");
    cluster.start();
    let mut servers = again(&servers);
    servers.wait_ready();
    for (number, old) in [(2, &spent), (3, &unspent)] {
        let precheck = Machine::new(number).precheck_body(old);
        let told = servers.api.install("precheck", &precheck).unwrap().told();
        assert_eq!(told, (403, "install_code_expired".into()));
    }
    // Each has heard what the other did since, and so would have heard of the epoch.
    for number in 0..2 {
        let at = format!("9.9.9.{number}");
        let server = json!({"token": servers.all[number].api.master, "ip": at, "hostname": ""});
        assert_eq!(servers.all[number].api.post("/register", &server).unwrap().status, 200);
    }
    for server in &mut servers.all {
        let url = format!("{}/metrics", server.api.admin);
        wait_until("both servers are known", || {
            server.api.get(&url).is_some_and(|metrics| metrics.text.contains("iptunnel_servers 2"))
        });
        let metrics = server.api.get(&url).unwrap().text;
        assert!(metrics.contains("iptunnel_store_epoch 2"), "{metrics}");
        assert_eq!(server.ends_within(Duration::ZERO), None);
    }
    servers.api.activate(&Machine::new(4), &servers.api.issue());
}

#[test]
fn a_server_moves_all_its_data_to_a_database_and_back() {
    let cluster = Cluster::new();
    let mut server = Process::start(&[]);
    let (spent, unspent) = (server.api.issue(), server.api.issue());
    let activated = server.api.activate(&Machine::new(1), &spent);
    let stop = |server: &mut Process| {
        server.signal(Signal::SIGTERM);
        assert!(server.ends_within(Duration::from_secs(20)).unwrap().success());
    };
    let folder = Arc::clone(&server.folder);
    let url = format!("storage.url={}", url(&[cluster.address()]));
    let copy = |from: &str, to: &str| {
        let command = ["copy", "--from", from, "--to", to, "--set", &url];
        let command = [&command[..], &["--set", "storage.backend=postgres"]].concat();
        let output = crate::process::run(folder.path(), &command);
        (output.status.success(), crate::process::said(&output))
    };
    stop(&mut server);
    let (copied, said) = copy("redb", "postgres");
    assert!(copied && !said.contains("DIFFERENT") && said.contains("codes"), "{said}");
    let (again, said) = copy("redb", "postgres");
    assert!(!again && said.contains("not empty"), "{said}");
    // The same server on the database: nothing is void, and what was begun goes on.
    let mut arguments = usual_flags();
    arguments.extend(["--set", "storage.backend=postgres", "--set", &url].map(str::to_owned));
    let mut moved = Process::start_in(Arc::clone(&folder), arguments);
    let (id, token) = (activated.data("activation_id"), activated.data("install_token"));
    let body = json!({"activation_id": id, "install_token": token});
    assert_eq!(moved.api.install("confirm", &body).unwrap().status, 200);
    moved.api.activate(&Machine::new(2), &unspent);
    let fresh = moved.api.issue();
    stop(&mut moved);
    let (copied, said) = copy("postgres", "redb:data/back.redb");
    assert!(copied && !said.contains("DIFFERENT"), "{said}");
    let mut arguments = usual_flags();
    arguments.extend(["--set", "storage.path=data/back.redb"].map(str::to_owned));
    let back = Process::start_in(folder, arguments);
    assert_eq!(back.api.install("confirm", &body).unwrap().status, 409);
    back.api.activate(&Machine::new(3), &fresh);
}
