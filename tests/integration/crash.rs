//! The real process, killed at any time under load: everything that it acknowledged is still true after
//! a restart.

use crate::disk::{BadDisks, on};
use crate::harness::{Activation, Answer, Machine, TestApp, send, wait_until};
use crate::process::{Api, Chance, Process, spawn, usual_flags};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Returns a machine that was not used before.
pub fn new_machine() -> Machine {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    Machine::new(COUNT.fetch_add(1, Ordering::SeqCst))
}

/// The last reply about a code. A name in `…ing` is a request without a reply.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Told {
    Issued,
    Activating,
    Activated,
    Confirming,
    Confirmed,
    Releasing,
    Released,
}

/// A code and the replies that one client got about it.
#[derive(Debug)]
struct Story {
    code: String,
    machine: Machine,
    /// Another machine whose activate got no reply either.
    rival: Option<Machine>,
    activation: Option<Activation>,
    told: Told,
}

fn finish(api: &Api, step: &str, activation: &Activation) -> Option<Answer> {
    api.install(step, &json!({"activation_id": activation.id, "install_token": activation.token}))
}

fn read(answer: &Answer) -> Activation {
    Activation { id: answer.data("activation_id"), token: answer.data("install_token") }
}

/// Returns the reply, or `None` if there was none or it is a 503: refused, or of unknown outcome.
fn answered(answer: Option<Answer>) -> Option<Answer> {
    answer.filter(|answer| answer.status != 503)
}

impl Story {
    /// Sends a request. Without a reply the story stops at `pending`; if the server replied that
    /// nothing happened, the story stays as it was.
    fn ask(&mut self, pending: Told, ask: impl FnOnce(&Self) -> Option<Answer>) -> Option<Answer> {
        let before = std::mem::replace(&mut self.told, pending);
        let answer = ask(self)?;
        if answer.status == 503 {
            if answer.code() != "outcome_unknown" {
                self.told = before;
            }
            return None;
        }
        Some(answer)
    }

    fn precheck(&self, api: &Api, machine: &Machine) -> Option<String> {
        let answer = answered(api.install("precheck", &machine.precheck_body(&self.code)))?;
        assert_eq!(answer.status, 200, "precheck of a good code: {}: {self:?}", answer.text);
        Some(answer.data("precheck_token"))
    }

    fn activate(&mut self, api: &Api) -> Option<()> {
        let token = self.precheck(api, &self.machine)?;
        let body = self.machine.activate_body(&self.code, &token);
        let answer = self.ask(Told::Activating, |_| api.install("activate", &body))?;
        assert_eq!(answer.status, 200, "{}: {self:?}", answer.text);
        (self.told, self.activation) = (Told::Activated, Some(read(&answer)));
        Some(())
    }

    /// Two machines activate the code at the same time.
    fn race(&mut self, api: &Api) -> Option<()> {
        let machines = [self.machine.clone(), new_machine()];
        let tokens = [self.precheck(api, &machines[0])?, self.precheck(api, &machines[1])?];
        self.told = Told::Activating;
        let bodies = [0, 1].map(|n| machines[n].activate_body(&self.code, &tokens[n]));
        let [first, second] = std::thread::scope(|scope| {
            let threads = bodies.each_ref().map(|b| scope.spawn(|| api.install("activate", b)));
            threads.map(|thread| answered(thread.join().unwrap()))
        });
        let told = [&first, &second].map(|answer| answer.as_ref().map(|a| (a.status, a.code())));
        let used = Some((403, "install_code_used".to_owned()));
        let served = told.iter().position(|told| told.as_ref().is_some_and(|t| t.0 == 200));
        let refused = told.iter().position(|told| *told == used);
        match (served, refused) {
            (Some(winner), _) => {
                let other = &told[1 - winner];
                assert!(other.is_none() || *other == used, "two machines: {told:?} {self:?}");
                self.machine = machines[winner].clone();
                let answer = if winner == 0 { first } else { second };
                (self.told, self.activation) = (Told::Activated, answer.as_ref().map(read));
                Some(())
            }
            // The loser got `used`, so the winner's activation must be durable.
            (None, Some(loser)) => {
                assert!(told[1 - loser].is_none(), "nobody got the code: {told:?} {self:?}");
                self.machine = machines[1 - loser].clone();
                None
            }
            (None, None) => {
                assert_eq!(told, [None, None], "{self:?}");
                self.rival = Some(machines[1].clone());
                None
            }
        }
    }

    fn end(&mut self, api: &Api, chance: &mut Chance) -> Option<()> {
        let activation = self.activation.clone()?;
        let (step, pending, done) = match chance.below(3) {
            0 => return Some(()),
            1 => ("confirm", Told::Confirming, Told::Confirmed),
            _ => ("release", Told::Releasing, Told::Released),
        };
        let answer = self.ask(pending, |_| finish(api, step, &activation))?;
        assert_eq!(answer.status, 200, "{step}: {}: {self:?}", answer.text);
        self.told = done;
        if done == Told::Released && chance.below(2) == 0 {
            self.machine = new_machine();
            self.activate(api)?;
            return self.end(api, chance);
        }
        Some(())
    }

    fn go_on(&mut self, api: &Api, chance: &mut Chance) -> Option<()> {
        match chance.below(6) {
            0 => return Some(()),
            1 | 2 => self.race(api)?,
            _ => self.activate(api)?,
        }
        self.end(api, chance)
    }

    fn told_at_precheck(&self, api: &Api, machine: &Machine) -> (u16, String) {
        api.install("precheck", &machine.precheck_body(&self.code)).unwrap().told()
    }

    fn is_used(&self, api: &Api) -> bool {
        self.told_at_precheck(api, &new_machine()) == (403, "install_code_used".into())
    }

    /// Checks after a restart that every reply is still true. Completes what is still open.
    fn check(&self, api: &Api, note: &str) {
        let settled = |step: &str| {
            let answer = finish(api, step, self.activation.as_ref().unwrap()).unwrap();
            (answer.status, answer.json()["data"]["status"].as_str().unwrap_or("").to_owned())
        };
        match self.told {
            Told::Issued => {
                let told = self.told_at_precheck(api, &new_machine());
                assert_eq!(told.0, 200, "an issued code: {told:?} {self:?} {note}");
            }
            Told::Activating => {
                let may = |m: &&Machine| self.told_at_precheck(api, m).0 == 200;
                let machine = [Some(&self.machine), self.rival.as_ref()].into_iter().flatten();
                let machine = machine.clone().find(may);
                let machine = machine.unwrap_or_else(|| panic!("burnt: {self:?} {note}"));
                let activation = read(&api.activate(machine, &self.code));
                let confirmed = finish(api, "confirm", &activation).unwrap();
                assert_eq!(confirmed.status, 200, "{} {self:?} {note}", confirmed.text);
            }
            Told::Activated => {
                assert!(self.is_used(api), "served twice: {self:?} {note}");
                let again = read(&api.activate(&self.machine, &self.code));
                assert_eq!(Some(&again), self.activation.as_ref(), "{self:?} {note}");
                assert_eq!(settled("confirm").0, 200, "{self:?} {note}");
            }
            Told::Confirming => {
                let told = settled("confirm").0;
                assert!(told == 200 || told == 409, "{told} {self:?} {note}");
            }
            Told::Confirmed => assert_eq!(settled("confirm").0, 409, "{self:?} {note}"),
            Told::Releasing => {
                let told = settled("release");
                let possible = told == (200, "released".into()) || told.0 == 404;
                assert!(possible, "{told:?} {self:?} {note}");
            }
            Told::Released => assert_eq!(settled("release").0, 404, "{self:?} {note}"),
        }
        if matches!(self.told, Told::Releasing | Told::Released) {
            let activation = read(&api.activate(&new_machine(), &self.code));
            assert_eq!(finish(api, "confirm", &activation).unwrap().status, 200, "{self:?} {note}");
        } else if self.told != Told::Issued {
            assert!(self.is_used(api), "served twice: {self:?} {note}");
        }
        if matches!(self.told, Told::Confirming | Told::Confirmed) {
            assert_eq!(settled("release"), (200, "confirmed".into()), "{self:?} {note}");
        }
    }
}

/// A server's address and the replies about it.
#[derive(Debug)]
struct Registration {
    ip: String,
    id: String,
    /// `None`: requested without a reply.
    revoked: Option<bool>,
}

impl Registration {
    fn check_in(&self, api: &Api) -> Option<(u16, String)> {
        let answer = answered(api.post("/checkin", &json!({"server_id": self.id})))?;
        Some((answer.status, answer.json()["status"].as_str().unwrap_or("").to_owned()))
    }

    fn revoke(&self, api: &Api) -> Option<Answer> {
        answered(api.post_as_master("/revoke", &json!({"server_id": self.id})))
    }

    /// Registers, checks in and sometimes revokes; adds the registered server to `into`.
    fn live(api: &Api, chance: &mut Chance, into: &mut Vec<Self>) -> Option<()> {
        let ip = new_machine().public_ip;
        let body = json!({"token": api.master, "ip": ip, "hostname": "a.example.com"});
        let registered = answered(api.post("/register", &body))?;
        assert_eq!(registered.status, 200, "{}", registered.text);
        let id = registered.json()["server_id"].as_str().unwrap().to_owned();
        into.push(Self { ip, id, revoked: Some(false) });
        let it = into.last_mut()?;
        assert_eq!(it.check_in(api)?, (200, "ok".into()), "{it:?}");
        if chance.below(2) == 0 {
            it.revoked = None;
            assert_eq!(it.revoke(api)?.status, 200);
            it.revoked = Some(true);
            assert_eq!(it.check_in_revoked(api)?, (403, "revoked".into()), "{it:?}");
        }
        Some(())
    }

    /// Checks in after the revocation, which other servers enforce after a short delay.
    fn check_in_revoked(&self, api: &Api) -> Option<(u16, String)> {
        let begun = Instant::now();
        loop {
            let told = self.check_in(api)?;
            if told.0 == 403 || begun.elapsed() >= api.patience {
                return Some(told);
            }
        }
    }

    fn check(&self, api: &Api, note: &str) {
        if self.revoked.is_none() {
            assert_eq!(self.revoke(api).unwrap().status, 200, "{self:?} {note}");
        }
        let body = json!({"token": api.master, "ip": self.ip});
        let alive = if self.revoked == Some(false) {
            self.check_in(api).unwrap()
        } else {
            self.check_in_revoked(api).unwrap()
        };
        let again = api.post("/register", &body).unwrap();
        let told = (alive.0, alive.1.as_str(), again.status);
        let expected =
            if self.revoked == Some(false) { (200, "ok", 200) } else { (403, "revoked", 403) };
        assert_eq!(told, expected, "{self:?} {note}");
    }
}

/// The replies that all clients got.
#[derive(Debug, Default)]
pub struct Stories {
    codes: Vec<Story>,
    servers: Vec<Registration>,
}

/// Clients that send requests until the server is gone or they are stopped.
pub struct Load(Vec<JoinHandle<Stories>>, Arc<AtomicBool>);

impl Load {
    pub fn start(api: Api, round: u64, seed: u64) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let client = |number: u64| {
            let (api, stopped) = (api.clone(), Arc::clone(&stopped));
            let mut chance = Chance::seeded(seed ^ (round << 32) ^ (number << 48));
            std::thread::spawn(move || {
                let mut stories = Stories::default();
                while !stopped.load(Ordering::SeqCst)
                    && Self::step(number, &api, &mut chance, &mut stories).is_some()
                {
                }
                stories
            })
        };
        let clients = (0..10).map(client).collect();
        Self(clients, stopped)
    }

    fn step(number: u64, api: &Api, chance: &mut Chance, into: &mut Stories) -> Option<()> {
        if number < 2 {
            return Registration::live(api, chance, &mut into.servers);
        }
        let issued = answered(api.issue_with(&api.cookie()?))?;
        assert_eq!(issued.status, 201, "{}", issued.text);
        let (code, machine) = (issued.data("install_code"), new_machine());
        let (rival, activation, told) = (None, None, Told::Issued);
        into.codes.push(Story { code, machine, rival, activation, told });
        into.codes.last_mut()?.go_on(api, chance)
    }

    /// Lets the clients finish their current requests; returns the replies that they got.
    pub fn stop(self) -> Stories {
        self.1.store(true, Ordering::SeqCst);
        self.end()
    }

    /// Waits until the server is gone; returns the replies that the clients got.
    pub fn end(self) -> Stories {
        let mut all = Stories::default();
        for thread in self.0 {
            let stories = thread.join().unwrap();
            all.codes.extend(stories.codes);
            all.servers.extend(stories.servers);
        }
        all
    }
}

/// Checks that every reply is still true. `note` says how to repeat a failure.
pub fn check_all(api: &Api, stories: &Stories, note: &str) {
    let share = |count: usize| count.div_ceil(8).max(1);
    std::thread::scope(|scope| {
        for some in stories.codes.chunks(share(stories.codes.len())) {
            scope.spawn(move || some.iter().for_each(|story| story.check(api, note)));
        }
        for some in stories.servers.chunks(share(stories.servers.len())) {
            scope.spawn(move || some.iter().for_each(|server| server.check(api, note)));
        }
    });
}

/// The number of rounds of crash tests; CRASH_ROUNDS overrides it.
pub fn rounds() -> u64 {
    std::env::var("CRASH_ROUNDS").map_or(12, |rounds| rounds.parse().unwrap())
}

/// The random seed; set CRASH_SEED to repeat a failure.
pub fn seed() -> u64 {
    let given = std::env::var("CRASH_SEED").ok().map(|seed| seed.parse().unwrap());
    given.unwrap_or_else(|| u64::from(std::process::id()))
}

#[test]
fn a_server_killed_at_any_time_keeps_everything_acknowledged_and_nothing_half_done() {
    let seed = seed();
    let mut chance = Chance::seeded(seed);
    let mut server = Process::start(&["codes.max_activations_per_code=255"]);
    let (mut codes, mut confirmed) = (0, Vec::new());
    // On a busy machine a round may end before anything is confirmed.
    let had_load = |codes, confirmed: &Vec<_>| codes > 20 && !confirmed.is_empty();
    for round in 0..20 * rounds() {
        if round >= rounds() && had_load(codes, &confirmed) {
            break;
        }
        let load = Load::start(server.api.clone(), round, seed);
        std::thread::sleep(Duration::from_millis(10 + chance.below(200)));
        server.kill();
        let stories = load.end();
        server = server.again();
        let note = format!("(seed {seed}, round {round})");
        check_all(&server.api, &stories, &note);
        codes += stories.codes.len();
        let done = stories.codes.iter().filter(|story| story.told == Told::Confirmed);
        confirmed.extend(done.filter_map(|story| story.activation.clone()));
    }
    for activation in &confirmed {
        let released = finish(&server.api, "release", activation).unwrap();
        assert_eq!(released.data("status"), "confirmed", "(seed {seed})");
    }
    assert!(had_load(codes, &confirmed), "there was a load: {codes} codes");
}

#[test]
fn a_restored_backup_makes_no_used_code_valid_again() {
    let mut server = Process::start(&[]);
    let code = server.api.issue();
    let unspent = server.api.issue();
    let data = server.folder.path().join("data");
    let stop = |server: &mut Process| {
        server.signal(nix::sys::signal::Signal::SIGTERM);
        assert!(server.ends_within(Duration::from_secs(20)).unwrap().success());
    };
    stop(&mut server);
    let files = ["iptunnel.redb", "iptunnel.redb.journal"];
    let backup = TempDir::new().unwrap();
    for file in files {
        std::fs::copy(data.join(file), backup.path().join(file)).unwrap();
    }
    // A clean restart voids nothing.
    let mut server = server.again();
    let activation = server.api.activate(&new_machine(), &code);
    assert_eq!(finish(&server.api, "confirm", &read(&activation)).unwrap().status, 200);
    stop(&mut server);
    for file in files {
        std::fs::copy(backup.path().join(file), data.join(file)).unwrap();
    }
    let server = server.again();
    for old in [code, unspent] {
        let body = new_machine().precheck_body(&old);
        let told = server.api.install("precheck", &body).unwrap().told();
        assert_eq!(told, (403, "install_code_expired".into()));
    }
    assert!(server.output().contains("the store lacked what had been acknowledged"));
    server.api.activate(&new_machine(), &server.api.issue());
    let metrics = server.api.get(&format!("{}/metrics", server.api.admin)).unwrap().text;
    assert!(metrics.contains("iptunnel_store_epoch 2"), "{metrics}");
    wait_until("the console says so", || {
        let now = server.api.client.get(format!("{}/admin/now", server.api.admin));
        send(now.bearer_auth(&server.api.master)).json()["data"]["store_epoch"] == 2.0
    });
}

#[test]
fn a_new_epoch_voids_codes_and_open_activations() {
    let mut server = Process::start(&[]);
    let code = server.api.issue();
    server.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(server.ends_within(Duration::from_secs(20)).unwrap().success());
    let fenced = crate::process::run(server.folder.path(), &["fence", "--yes"]);
    assert!(crate::process::said(&fenced).contains("epoch 2"), "{fenced:?}");
    let server = server.again();
    let told = server.api.install("precheck", &new_machine().precheck_body(&code)).unwrap().told();
    assert_eq!(told, (403, "install_code_expired".into()));
    server.api.activate(&new_machine(), &server.api.issue());
}

#[test]
fn a_server_killed_while_it_starts_loses_nothing() {
    let seed = seed();
    let mut chance = Chance::seeded(seed);
    let mut server = Process::start(&[]);
    let load = Load::start(server.api.clone(), 0, seed);
    std::thread::sleep(Duration::from_millis(200));
    server.kill();
    let stories = load.end();
    for _ in 0..rounds() {
        let (mut child, _) = spawn(server.folder.path(), &usual_flags());
        std::thread::sleep(Duration::from_millis(chance.below(30)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    check_all(&server.again().api, &stories, &format!("(seed {seed})"));
}

#[test]
fn a_server_killed_during_its_first_start_starts_the_next_time() {
    let seed = seed();
    let mut chance = Chance::seeded(seed);
    for _ in 0..12 {
        let folder = Arc::new(TempDir::new().unwrap());
        let (mut child, _) = spawn(folder.path(), &usual_flags());
        std::thread::sleep(Duration::from_millis(chance.below(30)));
        child.kill().unwrap();
        child.wait().unwrap();
        Process::start_in(folder, usual_flags()).api.issue();
    }
}

/// Interrupts a first start after `changes` changes to the disk, and starts again.
fn starts_after_dying_at(changes: u64, dies: fn(&BadDisks), model: &TestApp) -> Result<(), String> {
    let disk = BadDisks::new();
    disk.dies_after(changes);
    let run = || {
        let (config, folder) = (model.config.clone(), model.folder.clone());
        TestApp::run(config, folder, model.clock.clone(), disk.make())
    };
    let first = run();
    dies(&disk);
    drop(first);
    let app = run().map_err(|error| format!("dead after {changes} changes: {error}"))?;
    app.issue();
    Ok(())
}

fn a_first_start_that_dies(dies: fn(&BadDisks)) {
    let model = on(&BadDisks::new(), &[]);
    let failures: Vec<String> =
        (0..40).filter_map(|n| starts_after_dying_at(n, dies, &model).err()).collect();
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn a_server_starts_after_a_first_start_killed_at_any_disk_change() {
    a_first_start_that_dies(BadDisks::kill);
}

#[test]
fn a_server_starts_after_a_first_start_that_lost_power_at_any_disk_change() {
    a_first_start_that_dies(BadDisks::lose_power);
}

#[test]
fn a_crash_loses_at_most_the_last_second_of_limit_counts() {
    let mut server = Process::start(&["limits.precheck_per_machine_day=3"]);
    let (code, machine) = (server.api.issue(), new_machine());
    let precheck = |server: &Process| {
        server.api.install("precheck", &machine.precheck_body(&code)).unwrap().status
    };
    assert_eq!([0; 3].map(|_| precheck(&server)), [200; 3]);
    // The second whose counts a crash may lose.
    std::thread::sleep(Duration::from_secs(1));
    server.kill();
    assert_eq!(precheck(&server.again()), 429);
}
