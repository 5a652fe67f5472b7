//! The server's promises on disks that lose unsynced writes, are full, or fail.

use crate::crash::{Load, check_all, rounds, seed};
use crate::harness::{Activation, Machine, MakeDisk, TestApp, send, wait_until};
use crate::process::{Api, Chance};
use iptunnel_storage::simulated::{BadDisk, End, Fault};
use iptunnel_storage::{Disks, EmbeddedStore, Epochs, Store, Watermark};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// The two disks of a server, one for its rows and one for its journal. They fail together.
#[derive(Clone, Debug)]
pub struct BadDisks {
    rows: BadDisk,
    journal: BadDisk,
}

/// The time for which a disk blocks.
pub struct Blocked<'a>(&'a BadDisks);

impl Drop for Blocked<'_> {
    fn drop(&mut self) {
        self.0.rows.release();
    }
}

impl BadDisks {
    pub fn new() -> Self {
        let rows = BadDisk::new();
        Self { journal: rows.sibling(), rows }
    }
    pub fn fault(&self, fault: Fault) {
        self.rows.fault(fault);
        self.journal.fault(fault);
    }
    /// Makes the process that uses the disks die after `changes` more changes.
    pub fn dies_after(&self, changes: u64) {
        self.rows.dies_after(changes);
    }
    /// Removes the limit that [`Self::dies_after`] set.
    pub fn lives_on(&self) {
        self.rows.lives_on();
    }
    /// Cuts off the server that uses the disks, and clears all faults.
    pub fn kill(&self) {
        self.end(End::Killed);
    }
    /// Like [`Self::kill`], and loses unsynced writes.
    pub fn lose_power(&self) {
        self.end(End::PowerLost);
    }
    fn end(&self, end: End) {
        self.rows.revive(end);
        self.journal.revive(end);
    }
    /// Blocks every sync until the guard is dropped, also when the test fails: a server cannot end
    /// while it waits for its disk.
    #[must_use]
    pub fn block(&self) -> Blocked<'_> {
        self.rows.block();
        Blocked(self)
    }
    pub fn is_held_up(&self) -> bool {
        self.rows.is_held_up()
    }
    /// Waits until the server's own periodic writes (counters, twice a second) are done.
    pub fn settle(&self) {
        let mut last = u64::MAX;
        wait_until("the disk is idle", || {
            let before = std::mem::replace(&mut last, self.rows.syncs());
            std::thread::sleep(Duration::from_millis(700));
            before == last
        });
    }
    pub fn make(&self) -> MakeDisk {
        let disks = self.clone();
        Arc::new(move |_| Disks { rows: disks.rows.opener(), journal: disks.journal.opener() })
    }
}

/// Starts a server on `disk`.
pub fn on(disk: &BadDisks, settings: &[(&'static str, &str)]) -> TestApp {
    let change = |flags: &mut Vec<(&'static str, String)>| {
        flags.extend(settings.iter().map(|(key, value)| (*key, (*value).to_owned())));
    };
    TestApp::start_on(change, disk.make())
}

pub fn api(app: &TestApp) -> Api {
    Api {
        patience: std::time::Duration::ZERO,
        url: app.url.clone(),
        admin: app.admin.clone(),
        master: app.master(),
        client: app.client.clone(),
    }
}

fn readiness(app: &TestApp) -> [u16; 2] {
    [app.get("/readyz").status, app.get_admin("/readyz").status]
}

fn register(app: &TestApp, ip: &str) -> crate::harness::Answer {
    app.post("/register", &json!({"token": app.master(), "ip": ip, "hostname": "a.example.com"}))
}

/// One installation at every stage, made before the disk fails.
struct Stages {
    browser_cookie: String,
    issued: String,
    prechecked: (String, String),
    to_confirm: Activation,
    to_release: (String, Activation),
    confirmed: Activation,
    server: String,
}

impl Stages {
    fn reach(app: &TestApp) -> Self {
        let machine = Machine::new;
        let prechecked = app.issue();
        let token = machine(2).precheck(app, &prechecked).data("precheck_token");
        let to_release = app.issue();
        let confirmed = machine(5).install(app, &app.issue());
        assert_eq!(confirmed.confirm(app).status, 200);
        let server = register(app, "1.2.3.4").json()["server_id"].as_str().unwrap().to_owned();
        Self {
            browser_cookie: api(app).cookie().unwrap(),
            issued: app.issue(),
            prechecked: (prechecked, token),
            to_confirm: machine(3).install(app, &app.issue()),
            to_release: (to_release.clone(), machine(4).install(app, &to_release)),
            confirmed,
            server,
        }
    }

    /// Sends every request that needs the store; returns each one's name and reply.
    fn attempt(&self, app: &TestApp) -> Vec<(&'static str, crate::harness::Answer)> {
        let api = api(app);
        let revoke = format!("/api/v2/servers/{}/revoke", self.server);
        let (code, token) = &self.prechecked;
        vec![
            ("issue", api.issue_with(&self.browser_cookie).unwrap()),
            ("precheck", Machine::new(1).precheck(app, &self.issued)),
            ("activate", Machine::new(2).activate(app, code, token)),
            ("confirm", self.to_confirm.confirm(app)),
            ("release", self.to_release.1.release(app)),
            ("v2 revoke", app.post_as(&app.master(), &revoke, &json!({}))),
        ]
    }

    /// Checks that every request works now and that no refused request had an effect.
    fn check_untouched(&self, app: &TestApp) {
        for (what, answer) in self.attempt(app) {
            assert!([200, 201].contains(&answer.status), "{what}: {}", answer.text);
        }
        let holder = Machine::new(9);
        assert_eq!(holder.precheck(app, &self.to_release.0).status, 200, "the code released");
        assert_eq!(self.confirmed.release(app).data("status"), "confirmed");
    }
}

fn a_refusing_disk_changes_nothing(fault: Fault) {
    let disk = BadDisks::new();
    let app = on(&disk, &[]);
    let stages = Stages::reach(&app);
    disk.fault(fault);
    for (what, answer) in stages.attempt(&app) {
        assert_eq!(answer.told(), (503, "storage_unavailable".into()), "{what}");
        let seconds: u64 = answer.header("retry-after").parse().expect(what);
        assert!(seconds > 0);
    }
    let refused = register(&app, "1.2.3.5");
    assert!(refused.status == 503 && refused.json()["error"].is_string(), "{refused:?}");
    assert_eq!(readiness(&app), [503, 503]);
    let alive = app.post("/checkin", &json!({"server_id": stages.server}));
    assert_eq!(alive.status, 200, "check-ins need no disk: {}", alive.text);
    disk.fault(Fault::None);
    wait_until("the store works again", || readiness(&app) == [200, 200]);
    stages.check_untouched(&app);
    assert_eq!(register(&app, "1.2.3.5").status, 200);
    stages_survive(app, &stages);
}

/// Checks that changes acknowledged after the fault survive a restart.
fn stages_survive(app: TestApp, stages: &Stages) {
    let app = app.restart();
    assert_eq!(stages.to_confirm.release(&app).data("status"), "confirmed");
    let revoked = app.post("/checkin", &json!({"server_id": stages.server}));
    assert_eq!(revoked.json()["status"], "revoked");
}

#[test]
fn a_full_disk_makes_requests_fail_with_503_until_it_has_space_again() {
    a_refusing_disk_changes_nothing(Fault::Full);
}

#[test]
fn a_disk_that_fails_data_writes_makes_requests_fail_with_503_until_it_recovers() {
    a_refusing_disk_changes_nothing(Fault::FailsData);
}

#[test]
fn a_full_disk_is_retried_until_it_works() {
    let disk = BadDisks::new();
    let app = on(&disk, &[]);
    let code = app.issue();
    disk.fault(Fault::Full);
    let refused = api(&app).issue_with(&api(&app).cookie().unwrap()).unwrap();
    assert_eq!(refused.code(), "storage_unavailable");
    // Longer than two probes of the server.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(readiness(&app), [503, 503]);
    let now = app.client.get(format!("{}/admin/now", app.admin)).bearer_auth(app.master());
    assert!(send(now).text.contains("The store cannot be written"));
    disk.fault(Fault::None);
    wait_until("the store works again", || readiness(&app) == [200, 200]);
    assert_eq!(Machine::new(1).install(&app, &code).confirm(&app).status, 200);
}

#[test]
fn requests_that_the_store_refuses_do_not_count_against_limits() {
    let disk = BadDisks::new();
    let app = on(&disk, &[("limits.activate_per_machine_day", "1")]);
    let machine = Machine::new(1);
    let code = app.issue();
    let token = machine.precheck(&app, &code).data("precheck_token");
    disk.fault(Fault::Full);
    for _ in 0..3 {
        let told = machine.activate(&app, &code, &token).told();
        assert_eq!(told, (503, "storage_unavailable".into()));
    }
    disk.fault(Fault::None);
    wait_until("the store works again", || readiness(&app) == [200, 200]);
    assert_eq!(machine.activate(&app, &code, &token).status, 200);
    let other = app.issue();
    let token = machine.precheck(&app, &other).data("precheck_token");
    assert_eq!(machine.activate(&app, &other, &token).code(), "rate_limit_exceeded");
}

#[test]
fn a_disk_that_fails_every_write_loses_nothing_that_was_acknowledged() {
    let disk = BadDisks::new();
    let mut app = on(&disk, &[]);
    let activation = Machine::new(1).install(&app, &app.issue());
    disk.settle();
    disk.fault(Fault::FailsWrites);
    let body = json!({"activation_id": activation.id, "install_token": activation.token});
    let told = api(&app).install("confirm", &body).map(|answer| answer.told());
    disk.fault(Fault::None);
    match told {
        Some((503, code)) if code == "storage_unavailable" => {
            wait_until("the store works again", || readiness(&app) == [200, 200]);
        }
        // Another test checks that a reply always comes.
        told => {
            assert!(told.is_none_or(|told| told == (503, "outcome_unknown".into())));
            app.ended().expect_err("a server with a commit of unknown outcome must exit");
            app = app.start_again().unwrap();
        }
    }
    assert_eq!(activation.confirm(&app).status, 200);
}

#[test]
fn after_a_failed_sync_every_waiting_request_gets_a_reply_and_the_server_exits_with_an_error() {
    let disk = BadDisks::new();
    let mut app = on(&disk, &[]);
    let activations: Vec<Activation> =
        (0..8).map(|n| Machine::new(n).install(&app, &app.issue())).collect();
    disk.settle();
    let blocked = disk.block();
    let depth = "iptunnel_actor_queue_depth{actor=\"persistence\"} ";
    let api = api(&app);
    let confirm = |a: &Activation| {
        api.install("confirm", &json!({"activation_id": a.id, "install_token": a.token}))
    };
    let told = std::thread::scope(|scope| {
        let mut threads = vec![scope.spawn(|| confirm(&activations[0]))];
        wait_until("a commit waits for the disk", || disk.is_held_up());
        let confirm = &confirm;
        threads.extend(activations[1..].iter().map(|a| scope.spawn(move || confirm(a))));
        wait_until("the others wait behind it", || {
            let metrics = app.get_admin("/metrics").text;
            let line = metrics.lines().find_map(|line| line.strip_prefix(depth));
            line.unwrap().parse::<u32>().unwrap() >= 7
        });
        disk.fault(Fault::FailsSyncs);
        drop(blocked);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    app.ended().expect_err("the outcome of a commit is unknown until a restart");
    let told: Vec<_> = told.into_iter().map(|answer| answer.map(|answer| answer.told())).collect();
    let unknown = Some((503, "outcome_unknown".to_owned()));
    assert_eq!(told[0], unknown, "the request whose commit failed; all replies: {told:?}");
    let refused = Some((503, "storage_unavailable".to_owned()));
    let answered = told[1..].iter().all(|t| *t == unknown || *t == refused);
    assert!(answered, "the requests queued behind it: {told:?}");
    disk.lose_power();
    let app = app.start_again().unwrap();
    for activation in &activations {
        let told = activation.confirm(&app).told();
        assert!([(200, String::new()), (409, "token_used".into())].contains(&told), "{told:?}");
    }
}

#[test]
fn a_power_loss_at_any_time_keeps_everything_that_was_acknowledged() {
    let seed = seed();
    let mut chance = Chance::seeded(seed);
    let disk = BadDisks::new();
    let mut app = on(&disk, &[("codes.max_activations_per_code", "255")]);
    for round in 0..rounds() {
        let load = Load::start(api(&app), round, seed);
        std::thread::sleep(Duration::from_millis(20 + chance.below(150)));
        disk.lose_power();
        let stories = load.end();
        // The old server cannot use the disk any more; its further replies do not matter.
        app = app.start_again().unwrap();
        check_all(&api(&app), &stories, &format!("seed {seed}, round {round}"));
    }
}

#[test]
fn a_disk_that_fails_under_load_undoes_nothing_acknowledged_and_applies_nothing_refused() {
    let seed = seed();
    let mut chance = Chance::seeded(seed);
    let disk = BadDisks::new();
    let app = on(&disk, &[]);
    for round in 0..rounds().div_ceil(2) {
        let load = Load::start(api(&app), round, seed);
        std::thread::sleep(Duration::from_millis(20 + chance.below(100)));
        disk.fault(if round % 2 == 0 { Fault::Full } else { Fault::FailsData });
        let stories = load.end();
        disk.fault(Fault::None);
        wait_until("the store works again", || readiness(&app) == [200, 200]);
        check_all(&api(&app), &stories, &format!("(seed {seed}, round {round})"));
    }
}

#[test]
fn a_request_whose_commit_outcome_is_unknown_gets_outcome_unknown_before_the_server_exits() {
    let disk = BadDisks::new();
    let mut app = on(&disk, &[]);
    let activations: Vec<Activation> =
        (0..12).map(|n| Machine::new(n).install(&app, &app.issue())).collect();
    let mut unanswered = 0;
    for activation in &activations {
        // A server that has just started has no periodic writes.
        app.stop().unwrap();
        app = app.start_again().unwrap();
        let api = api(&app);
        disk.fault(Fault::FailsSyncs);
        let body = json!({"activation_id": activation.id, "install_token": activation.token});
        match api.install("confirm", &body) {
            Some(answer) => assert_eq!(answer.told(), (503, "outcome_unknown".into())),
            None => unanswered += 1,
        }
        app.ended().expect_err("the outcome is unknown until a restart");
        disk.kill();
        app = app.start_again().unwrap();
    }
    assert_eq!(unanswered, 0, "of {} requests", activations.len());
}

#[test]
fn an_interrupted_new_epoch_is_begun_again_and_never_taken_as_complete() {
    let disk = BadDisks::new();
    let mut app = on(&disk, &[]);
    // More codes than one commit voids; the last ones are voided last.
    let codes: Vec<String> = (0..520).map(|_| app.issue()).collect();
    app.stop().unwrap();
    // The store lacks one commit that its watermark requires.
    let store = EmbeddedStore::open((disk.make())(&app.folder)).unwrap();
    let held = store.watermark().unwrap();
    store.close();
    let mark = Watermark { commits: held.commits + 1, ..held };
    let file = app.config.storage.path.with_extension("redb.mark");
    std::fs::write(file, mark.to_string()).unwrap();
    let mut deaths = 0;
    let again = loop {
        disk.dies_after(deaths);
        match app.start_again() {
            Ok(again) => {
                disk.lives_on();
                break again;
            }
            Err(_) => disk.lose_power(),
        }
        deaths += 1;
    };
    assert!(deaths > 1, "it was interrupted: {deaths}");
    for code in [&codes[0], &codes[519]] {
        let told = Machine::new(1).precheck(&again, code).told();
        assert_eq!(told, (403, "install_code_expired".into()), "after {deaths} interruptions");
    }
    wait_until("the epoch is shown", || again.metric("iptunnel_store_epoch") == 2.0);
}
