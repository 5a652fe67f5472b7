//! A database that stands still, is left behind by its standby, or commits what no standby has: what
//! servers answer meanwhile, and what `doctor` says.

use crate::cluster::Cluster;
use crate::faults::{Servers, url};
use crate::harness::{Answer, Machine, wait_until};
use crate::process::{Api, Process, run, said};
use iptunnel_domain::activation::ActivationId;
use iptunnel_storage::{CommitError, PostgresStore, Store};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// What `doctor` says of the database at these addresses, and whether all is well.
fn doctor(server: &Process, clusters: &[&Cluster]) -> (bool, String) {
    let addresses: Vec<_> = clusters.iter().map(|cluster| cluster.address()).collect();
    let url = format!("storage.url={}", url(&addresses));
    let set = ["doctor", "--set", "storage.backend=postgres", "--set", &url];
    let output = run(server.folder.path(), &set);
    (output.status.success(), said(&output))
}

/// How long it takes until a new code is issued and activated; each attempt may fail.
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

/// Connections that servers hold to a database. A commit that nobody waits for any more, and which no
/// standby will ever confirm, is none.
fn connections(cluster: &Cluster) -> String {
    cluster.psql(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'iptunnel-server'
         AND wait_event IS DISTINCT FROM 'SyncRep'",
    )
}

#[test]
fn a_primary_that_stands_still_is_left_for_its_promoted_standby_and_never_used_again() {
    let primary = Cluster::new();
    let standby = primary.standby();
    let servers = Servers::start(1, &url(&[primary.address(), standby.address()]));
    let server = &servers.all[0];
    servers.api.activate(&Machine::new(1), &servers.api.issue());
    primary.signal(Signal::SIGSTOP);
    standby.run("pg_ctl", &["-s", "-w", "promote"]);
    until_activated(&servers.api, &Machine::new(2), Duration::from_secs(12));
    servers.wait_ready();
    let (good, told) = doctor(server, &[&primary, &standby]);
    let frozen = format!("{} takes connections and says nothing", primary.address());
    assert!(told.contains(&frozen) && told.contains("primary of timeline 2"), "{good} {told}");
    // The old primary goes on. Nothing is asked of it any more.
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
    // It alone is left: no server takes it, now or after a start, and doctor says why.
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
    let (mut again, files) = crate::process::spawn(server.folder.path(), &arguments);
    assert!(!again.wait().unwrap().success());
    let told = std::fs::read_to_string(&files[1]).unwrap();
    assert!(told.contains("timeline 2 has been seen") && told.contains("fence"), "{told}");
    // Whoever wants that database all the same says so, and loses what was not spent.
    let mut servers = servers;
    servers.all[0].kill();
    primary.set("synchronous_standby_names = ''");
    let fence = ["fence", "--set", "storage.backend=postgres", "--set", &address];
    let fenced = run(servers.all[0].folder.path(), &fence);
    assert!(fenced.status.success(), "{}", said(&fenced));
    let again = Process::start_in(std::sync::Arc::clone(&servers.all[0].folder), arguments);
    again.api.activate(&Machine::new(6), &again.api.issue());
}

/// A request that waits for its answer on a thread of its own.
fn asked(
    api: &Api,
    request: impl FnOnce(&Api) -> Option<Answer> + Send + 'static,
) -> std::thread::JoinHandle<Option<Answer>> {
    let api = api.clone();
    std::thread::spawn(move || request(&api))
}

#[test]
fn a_commit_whose_wait_for_the_standby_was_cancelled_is_not_answered_as_written() {
    let primary = Cluster::new();
    let standby = primary.standby();
    let servers = Servers::start(1, &url(&[primary.address()]));
    let api = &servers.api;
    let (code, machine) = (api.issue(), Machine::new(1));
    let prechecked = api.install("precheck", &machine.precheck_body(&code)).unwrap();
    let body = machine.activate_body(&code, &prechecked.data("precheck_token"));
    standby.signal(Signal::SIGSTOP);
    let activating = asked(api, move |api| api.install("activate", &body));
    // Whatever waits for the standby is told to go on without it.
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
    // It came to be, and is the machine's.
    api.activate(&machine, &code);
}

#[test]
fn servers_whose_only_standby_is_gone_are_not_ready_and_hold_no_request_for_long() {
    let primary = Cluster::new();
    let standby = primary.standby();
    let servers = Servers::start(1, &url(&[primary.address(), standby.address()]));
    let (server, api) = (&servers.all[0], &servers.api);
    let (good, told) = doctor(server, &[&primary, &standby]);
    assert!(good && told.contains("is a standby"), "{told}");
    standby.stop();
    // Nobody asks anything of it.
    let begun = Instant::now();
    while server.api.ready() != Some(503) {
        assert!(begun.elapsed() < Duration::from_secs(12), "it is ready, and nothing commits");
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
    // Each server leaves one commit there to wait, however often it tries.
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    assert!(primary.psql(waiting).parse::<u32>().unwrap() < 6, "{}", primary.psql(waiting));
    standby.start();
    servers.wait_ready();
    api.activate(&Machine::new(1), &api.issue());
}

/// How a commit of nothing ends, and that it does within some seconds: ten until its connection is
/// given up, ten in which its outcome is looked for.
fn barrier(store: &PostgresStore) -> Result<(), CommitError> {
    let begun = Instant::now();
    let outcome = store.commit(&[]).map(|_| ());
    assert!(begun.elapsed() < Duration::from_secs(24), "{:?} {outcome:?}", begun.elapsed());
    outcome
}

#[test]
fn no_commit_waits_for_ever_and_the_first_one_after_a_promotion_is_refused() {
    let primary = Cluster::new();
    let standby = primary.standby();
    let store = PostgresStore::open(&url(&[primary.address(), standby.address()])).unwrap();
    assert_eq!(barrier(&store).ok(), Some(()));
    assert_eq!(store.watermark().unwrap().timeline, 1);
    // The standby is gone: nobody can say what has become of it.
    standby.signal(Signal::SIGSTOP);
    let unknown = barrier(&store);
    assert!(matches!(unknown, Err(CommitError::Unknown(_))), "{unknown:?}");
    assert!(store.shared().unwrap().takes_commits().is_err());
    standby.signal(Signal::SIGCONT);
    wait_until("it takes commits again", || barrier(&store).is_ok());
    let commits = store.watermark().unwrap().commits;
    // The database stands still.
    primary.signal(Signal::SIGSTOP);
    assert!(store.activation(ActivationId(7)).is_err(), "it is read from whom?");
    standby.run("pg_ctl", &["-s", "-w", "promote"]);
    // What was read before may not be there: whoever decides on it has to hear so, once.
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

/// Something that PostgreSQL's programs do meanwhile, ended with the test.
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
        // `runuser`, which it may run under, hands this signal on.
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

#[test]
fn doctor_knows_a_backup_from_a_standby_and_names_a_table_that_is_locked() {
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
        assert!(begun.elapsed() < Duration::from_secs(15), "it is ready, and nothing commits");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn doctor_names_every_host_and_says_promote_where_only_standbys_are_left() {
    let primary = Cluster::new();
    let standby = primary.standby();
    let servers = Servers::start(1, &url(&[primary.address()]));
    let server = &servers.all[0];
    primary.signal(Signal::SIGSTOP);
    let (good, told) = doctor(server, &[&primary, &standby]);
    let frozen = format!("{} takes connections and says nothing", primary.address());
    assert!(!good && told.contains(&frozen) && told.contains("promote"), "{told}");
    primary.signal(Signal::SIGCONT);
    primary.kill();
    let (good, told) = doctor(server, &[&primary]);
    let refused = format!("{} refuses connections", primary.address());
    assert!(!good && told.contains(&refused), "{told}");
}
