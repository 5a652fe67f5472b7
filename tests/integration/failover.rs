//! A primary that freezes, is replaced by its standby, or commits changes that no standby has: the
//! servers' replies meanwhile, and the report of `doctor`.

use crate::cluster::Cluster;
use crate::faults::{Servers, url};
use crate::harness::{Answer, Machine, PATIENCE, wait_until};
use crate::process::{Api, Process, run, said};
use iptunnel_domain::activation::ActivationId;
use iptunnel_storage::{CommitError, Epochs, PostgresStore, Records, Store};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Runs `doctor` on the database at these addresses; returns whether it succeeds, and its report.
fn doctor(server: &Process, clusters: &[&Cluster]) -> (bool, String) {
    let addresses: Vec<_> = clusters.iter().map(|cluster| cluster.address()).collect();
    let url = format!("storage.url={}", url(&addresses));
    let set = ["doctor", "--set", "storage.backend=postgres", "--set", &url];
    let output = run(server.folder.path(), &set);
    (output.status.success(), said(&output))
}

/// Returns the time until a new code is issued and activated; attempts may fail.
fn until_activated(api: &Api, machine: &Machine, at_most: Duration) -> Duration {
    let begun = Instant::now();
    let install = || {
        let issued = api.issue_with(&api.cookie()?)?;
        let code = if issued.status == 201 { issued.data("install_code") } else { return None };
        let precheck = api.install("precheck", &machine.precheck_body(&code))?;
        let token =
            if precheck.status == 200 { precheck.data("precheck_token") } else { return None };
        let activated = api.install("activate", &machine.activate_body(&code, &token))?;
        (activated.status == 200).then_some(())
    };
    while install().is_none() {
        assert!(begun.elapsed() < at_most, "nothing was activated for {at_most:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    begun.elapsed()
}

/// Counts the servers' connections to a database. It does not count a commit that no server waits for
/// and no standby will ever confirm.
fn connections(cluster: &Cluster) -> String {
    cluster.psql(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'iptunnel-server'
         AND wait_event IS DISTINCT FROM 'SyncRep'",
    )
}

#[test]
fn servers_leave_a_frozen_primary_for_its_promoted_standby_and_never_use_it_again() {
    let primary = Cluster::new();
    let standby = primary.standby();
    let servers = Servers::start(1, &url(&[primary.address(), standby.address()]));
    let server = &servers.all[0];
    servers.api.activate(&Machine::new(1), &servers.api.issue());
    primary.signal(Signal::SIGSTOP);
    standby.run("pg_ctl", &["-s", "-w", "promote"]);
    until_activated(&servers.api, &Machine::new(2), PATIENCE);
    servers.wait_ready();
    let (good, told) = doctor(server, &[&primary, &standby]);
    let frozen = format!("{} accepts connections and does not answer", primary.address());
    assert!(told.contains(&frozen) && told.contains("primary of timeline 2"), "{good} {told}");
    // The old primary runs again. No server sends anything to it.
    primary.signal(Signal::SIGCONT);
    wait_until("the old primary is left", || connections(&primary) == "0");
    let codes = primary.psql("SELECT count(*) FROM code");
    for machine in 3..6 {
        servers.api.activate(&Machine::new(machine), &servers.api.issue());
    }
    assert_eq!(primary.psql("SELECT count(*) FROM code"), codes);
    let (good, told) = doctor(server, &[&primary, &standby]);
    assert!(!good && told.contains("2 hosts are primaries"), "{told}");
    let primaries = || {
        let metrics = server.api.get(&format!("{}/metrics", server.api.admin));
        metrics.is_some_and(|metrics| metrics.text.contains("iptunnel_store_primaries 2"))
    };
    let begun = Instant::now();
    while !primaries() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", server.output());
        std::thread::sleep(Duration::from_millis(100));
    }
    // Only the old primary is left: no server uses it, now or after a restart, and doctor says why.
    let mark = || server.file("data/iptunnel.redb.mark").lines().next().unwrap().ends_with(" 2");
    wait_until("the mark knows the timeline", mark);
    standby.kill();
    wait_until("the server is not ready", || server.api.ready() == Some(503));
    let refused = server.api.issue_with(&server.api.cookie().unwrap()).unwrap();
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(primary.psql("SELECT count(*) FROM code"), codes);
    let (good, told) = doctor(server, &[&primary, &standby]);
    assert!(!good && told.contains("timeline 2 has been seen"), "{told}");
    let output = server.output();
    let outages = output.matches("the database is away").count();
    assert!((1..=3).contains(&outages), "{outages} lines about outages: {output}");
    let mut arguments = crate::process::usual_flags();
    let address = format!("storage.url={}", url(&[primary.address()]));
    for set in ["storage.backend=postgres", &address] {
        arguments.extend(["--set".to_owned(), set.to_owned()]);
    }
    // Commits on the old primary succeed again. Only its timeline is a reason not to use it.
    let mut servers = servers;
    servers.all[0].kill();
    primary.set("synchronous_standby_names = ''");
    let (mut again, files) = crate::process::spawn(servers.all[0].folder.path(), &arguments);
    assert!(!again.wait().unwrap().success());
    let told = std::fs::read_to_string(&files[1]).unwrap();
    assert!(told.contains("timeline 2 has been seen") && told.contains("fence"), "{told}");
    // An operator can choose that database with `fence`, which voids unused codes.
    let fence = ["fence", "--yes", "--set", "storage.backend=postgres", "--set", &address];
    let fenced = run(servers.all[0].folder.path(), &fence);
    assert!(fenced.status.success(), "{}", said(&fenced));
    let again = Process::start_in(std::sync::Arc::clone(&servers.all[0].folder), arguments);
    again.api.activate(&Machine::new(6), &again.api.issue());
}

/// A request that waits for its reply on its own thread.
fn asked(
    api: &Api,
    request: impl FnOnce(&Api) -> Option<Answer> + Send + 'static,
) -> std::thread::JoinHandle<Option<Answer>> {
    let api = api.clone();
    std::thread::spawn(move || request(&api))
}

#[test]
fn a_commit_whose_wait_for_the_standby_was_cancelled_is_not_acknowledged() {
    let primary = Cluster::new();
    let standby = primary.standby();
    let servers = Servers::start(1, &url(&[primary.address()]));
    let api = &servers.api;
    let (code, machine) = (api.issue(), Machine::new(1));
    let prechecked = api.install("precheck", &machine.precheck_body(&code)).unwrap();
    let body = machine.activate_body(&code, &prechecked.data("precheck_token"));
    standby.signal(Signal::SIGSTOP);
    let activating = asked(api, move |api| api.install("activate", &body));
    // Cancels every wait for the standby.
    let mut cancelled = 0;
    while !activating.is_finished() {
        let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity
             WHERE wait_event = 'SyncRep' AND application_name = 'iptunnel-server'";
        cancelled += primary.psql(cancel).parse::<u32>().unwrap();
    }
    assert!(cancelled > 0);
    let answer = activating.join().unwrap().unwrap();
    assert_eq!(answer.told(), (503, "outcome_unknown".into()));
    wait_until("the server is not ready", || servers.all[0].api.ready() == Some(503));
    standby.signal(Signal::SIGCONT);
    servers.wait_ready();
    // The activation was committed and belongs to the machine.
    api.activate(&machine, &code);
}

#[test]
fn servers_without_their_standby_are_not_ready_and_requests_fail_quickly() {
    let primary = Cluster::new();
    let standby = primary.standby();
    let servers = Servers::start(1, &url(&[primary.address(), standby.address()]));
    let (server, api) = (&servers.all[0], &servers.api);
    let (good, told) = doctor(server, &[&primary, &standby]);
    assert!(good && told.contains("is a standby"), "{told}");
    standby.stop();
    // No client sends a request.
    let begun = Instant::now();
    while server.api.ready() != Some(503) {
        assert!(begun.elapsed() < PATIENCE, "it is ready, and nothing commits");
        std::thread::sleep(Duration::from_millis(50));
    }
    let (good, told) = doctor(server, &[&primary, &standby]);
    assert!(!good && told.contains("a commit waits for a standby"), "{told}");
    assert!(told.contains("first make sure that this is still the primary"), "{told}");
    let begun = Instant::now();
    let cookie = api.cookie().unwrap();
    for _ in 0..3 {
        let issued = api.issue_with(&cookie).unwrap();
        assert_eq!(issued.status, 503, "{issued:?}");
    }
    let storage = || api.issue_with(&cookie).unwrap().code() == "storage_unavailable";
    wait_until("requests are refused at once", storage);
    assert!(begun.elapsed() < Duration::from_secs(60));
    // Each server leaves at most one commit waiting there, however often it retries.
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    assert!(primary.psql(waiting).parse::<u32>().unwrap() < 6, "{}", primary.psql(waiting));
    standby.start();
    servers.wait_ready();
    api.activate(&Machine::new(1), &api.issue());
}

/// Returns the outcome of an empty commit, and checks that it ends: ten seconds until its connection is given
/// up, ten to read back its outcome, and as many for a busy machine.
fn barrier(store: &PostgresStore) -> Result<(), CommitError> {
    let begun = Instant::now();
    let outcome = store.commit(&[]).map(|_| ());
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?} {outcome:?}", begun.elapsed());
    outcome
}

#[test]
fn no_commit_waits_forever_and_the_first_after_a_promotion_is_refused() {
    let primary = Cluster::new();
    let standby = primary.standby();
    let store = PostgresStore::open(&url(&[primary.address(), standby.address()])).unwrap();
    assert_eq!(barrier(&store).ok(), Some(()));
    assert_eq!(store.watermark().unwrap().timeline, 1);
    // The standby is gone: the outcome is unknown.
    standby.signal(Signal::SIGSTOP);
    let unknown = barrier(&store);
    assert!(matches!(unknown, Err(CommitError::Unknown(_))), "{unknown:?}");
    assert!(store.shared().unwrap().takes_commits().is_err());
    standby.signal(Signal::SIGCONT);
    wait_until("it takes commits again", || barrier(&store).is_ok());
    let commits = store.watermark().unwrap().commits;
    // The database is frozen.
    primary.signal(Signal::SIGSTOP);
    assert!(store.activation(ActivationId(7)).is_err(), "it is read from whom?");
    standby.run("pg_ctl", &["-s", "-w", "promote"]);
    // Records read before may be missing now: the first commit based on them must be refused.
    let refused = loop {
        match barrier(&store) {
            Err(error) if error.to_string().contains("timeline 2") => break error,
            outcome => assert!(outcome.is_err(), "nobody has heard of the promotion"),
        }
    };
    assert!(matches!(refused, CommitError::Refused(_)), "{refused}");
    assert_eq!(barrier(&store).ok(), Some(()));
    let mark = store.watermark().unwrap();
    assert!(mark.timeline == 2 && mark.commits > commits && mark.epoch == 1, "{mark:?}");
    assert!(store.activation(ActivationId(7)).unwrap().is_none());
    assert!(store.probe().is_ok());
}

/// A PostgreSQL program that runs in the background and is stopped with the test.
struct Meanwhile(Child);

impl Meanwhile {
    fn runs(cluster: &Cluster, program: &str, arguments: &[&str]) -> Self {
        let mut command = cluster.command(program);
        command.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &cluster.port.to_string()]);
        Self(command.args(arguments).stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Meanwhile {
    fn drop(&mut self) {
        // `runuser`, under which it may run, forwards this signal.
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

#[test]
fn doctor_distinguishes_a_backup_from_a_standby_and_names_a_locked_table() {
    let cluster = Cluster::new();
    let servers = Servers::start(1, &url(&[cluster.address()]));
    let server = &servers.all[0];
    let folder = cluster.folder.path().display().to_string();
    let backup = Meanwhile::runs(&cluster, "pg_receivewal", &["-D", &folder]);
    let streams = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    wait_until("the backup runs", || cluster.psql(streams) == "1");
    let (good, told) = doctor(server, &[&cluster]);
    assert!(good && told.contains("0 standbys"), "{told}");
    drop(backup);
    // One server under two addresses is one primary.
    let (good, told) = doctor(server, &[&cluster, &cluster]);
    assert!(good && !told.contains("hosts are primaries"), "{told}");
    let lock = "BEGIN; LOCK TABLE code; SELECT pg_sleep(60)";
    let _locked = Meanwhile::runs(&cluster, "psql", &["-qc", lock]);
    let locks = "SELECT count(*) FROM pg_locks WHERE relation = 'code'::regclass
         AND mode = 'AccessExclusiveLock' AND granted";
    wait_until("the table is locked", || cluster.psql(locks) == "1");
    let (good, told) = doctor(server, &[&cluster]);
    assert!(!good && told.contains("code is locked by psql"), "{told}");
    let begun = Instant::now();
    while server.api.ready() != Some(503) {
        assert!(begun.elapsed() < PATIENCE, "it is ready, and nothing commits");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn doctor_names_every_host_and_advises_promote_if_only_standbys_are_left() {
    let primary = Cluster::new();
    let standby = primary.standby();
    let servers = Servers::start(1, &url(&[primary.address()]));
    let server = &servers.all[0];
    primary.signal(Signal::SIGSTOP);
    let (good, told) = doctor(server, &[&primary, &standby]);
    let frozen = format!("{} accepts connections and does not answer", primary.address());
    assert!(!good && told.contains(&frozen) && told.contains("promote"), "{told}");
    primary.signal(Signal::SIGCONT);
    primary.kill();
    let (good, told) = doctor(server, &[&primary]);
    let refused = format!("{} refuses connections", primary.address());
    assert!(!good && told.contains(&refused), "{told}");
}
