//! The client crate and its example against the real server, on a network that loses things.

use crate::harness::{Machine, PATIENCE, TestApp};
use iptunnel_client::{
    AgentToken, Binding, CheckIn, Client, Code, Error, Installation, Network, Patience, Problem,
    Released, Request, Response, RunError, State, Store, Transport,
};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[path = "../../clients/rust/examples/install.rs"]
#[allow(dead_code, reason = "its main reads the command line")]
mod example;

/// What an installation asks for, in order.
pub const STEPS: [&str; 6] = ["precheck", "activate", "payload", "confirm", "register", "check-in"];

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    RequestLost,
    AnswerLost,
}

/// A machine with its network and its disk.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Life>>);

#[derive(Default)]
struct Life {
    state: Option<State>,
    /// The number of the request that meets its fate, the fate, and whether the machine dies of it.
    next: Option<(usize, Fate, bool)>,
    asked: Vec<String>,
    is_dead: bool,
}

impl Store for Kept {
    fn save(&mut self, state: &State) -> std::io::Result<()> {
        let mut life = self.0.lock().unwrap();
        if life.is_dead {
            return Err(std::io::Error::other("this machine is dead"));
        }
        life.state = Some(state.clone());
        Ok(())
    }
}

impl Kept {
    /// A machine that was started again, with the state that it kept.
    fn revive(&self) {
        let mut life = self.0.lock().unwrap();
        (life.is_dead, life.next) = (false, None);
    }

    /// A network to `url` that obeys the plan.
    fn network(&self, url: &str) -> impl Transport + use<> {
        let (this, network) = (self.clone(), Network::direct(url).unwrap());
        move |request: &Request, patience: Duration| -> Result<Response, Problem> {
            let lost = || Problem::Network("lost".to_owned());
            let fate = {
                let mut life = this.0.lock().unwrap();
                if life.is_dead {
                    return Err(lost());
                }
                let number = life.asked.len();
                life.asked.push(request.url.rsplit('/').next().unwrap().to_owned());
                let next = life.next.filter(|(of, ..)| *of == number);
                life.is_dead = next.is_some_and(|(.., dies)| dies);
                next.map(|(_, fate, _)| fate)
            };
            match fate {
                None => network.send(request, patience),
                Some(Fate::RequestLost) => Err(lost()),
                Some(Fate::AnswerLost) => network.send(request, patience).and(Err(lost())),
            }
        }
    }
}

/// Short pauses, and long waits for a busy machine.
pub fn patience() -> Patience {
    let pauses = [20, 500].map(Duration::from_millis);
    let (per_try, whole) = (PATIENCE, 4 * PATIENCE);
    Patience { per_try, whole, first_pause: pauses[0], longest_pause: pauses[1], tries: 10 }
}

fn client(app: &TestApp, machine: &Kept) -> Client {
    let client = Client::new(&app.url, "slowdns").unwrap().with_patience(patience());
    client.over(machine.network(&app.url))
}

/// Goes on with what was kept, or begins with `code`.
fn installation(client: &Client, machine: &Kept, code: &str, number: u32) -> Installation<Kept> {
    let kept = machine.0.lock().unwrap().state.clone();
    match kept {
        Some(state) => Installation::resume(client, machine.clone(), state).unwrap(),
        None => {
            let identity = Machine::new(number).identity();
            Installation::begin(client, machine.clone(), Code::new(code), identity).unwrap()
        }
    }
}

fn binding(number: u32) -> Binding {
    Machine::new(number).binding()
}

fn run(installation: &mut Installation<Kept>, number: u32) -> Result<String, RunError<String>> {
    installation.run(&binding(number), |_, _| Ok(()))
}

/// The number of servers that the operator sees.
fn registered(app: &TestApp) -> u64 {
    app.settle();
    app.get_as(&app.master(), "/status?limit=1").json()["count"].as_u64().unwrap()
}

/// Each request with each fate.
pub fn fates() -> impl Iterator<Item = (usize, Fate)> {
    (0..STEPS.len()).flat_map(|step| [(step, Fate::RequestLost), (step, Fate::AnswerLost)])
}

#[test]
fn an_installation_leads_from_the_code_to_check_ins_until_the_server_is_revoked() {
    let (app, machine) = (TestApp::start(), Kept::default());
    let client = client(&app, &machine);
    let code = app.issue();
    let mut installation = installation(&client, &machine, &code, 1);
    let id = run(&mut installation, 1).unwrap();
    assert_eq!(registered(&app), 1);
    assert!(matches!(installation.check_in().unwrap(), CheckIn::Ok { next } if !next.is_zero()));
    assert_eq!(machine.0.lock().unwrap().asked, STEPS);
    let wrong = client.check_in(&id, &AgentToken::new("wrong")).unwrap_err();
    assert_eq!(wrong.refusal().unwrap().status, 401);
    let spent = client.precheck(&Code::new(&code), &Machine::new(2).identity()).unwrap_err();
    assert!(spent.is_refusal("install_code_used"), "{spent}");
    assert_eq!(
        app.post_as(&app.master(), "/revoke", &serde_json::json!({"server_id": id})).status,
        200
    );
    app.settle();
    assert_eq!(installation.check_in().unwrap(), CheckIn::Revoked);
    assert_eq!(installation.release().unwrap(), Released::Confirmed);
}

#[test]
fn whatever_request_or_answer_is_lost_the_installation_ends_at_the_first_call() {
    let app = TestApp::start();
    for (number, (step, fate)) in (1..).zip(fates()) {
        let machine = Kept::default();
        machine.0.lock().unwrap().next = Some((step, fate, false));
        let client = client(&app, &machine);
        let mut installation = installation(&client, &machine, &app.issue(), number);
        let note = format!("{} {fate:?}", STEPS[step]);
        run(&mut installation, number).unwrap_or_else(|error| panic!("{note}: {error}"));
        app.settle();
        installation.check_in().unwrap_or_else(|error| panic!("{note}: {error}"));
        assert_eq!(machine.0.lock().unwrap().asked.len(), STEPS.len() + 1, "{note}");
    }
    assert_eq!(registered(&app), 12, "one server for each installation");
}

#[test]
fn a_machine_that_dies_at_any_request_goes_on_from_the_state_it_kept() {
    let app = TestApp::start();
    for (number, (step, fate)) in (1..).zip(fates()) {
        let (code, machine) = (app.issue(), Kept::default());
        machine.0.lock().unwrap().next = Some((step, fate, true));
        let client = client(&app, &machine);
        // The dead ask in vain, so they need not ask often.
        let dying = client.clone().with_patience(Patience { tries: 2, ..patience() });
        let mut first = installation(&dying, &machine, &code, number);
        let note = format!("{} {fate:?}", STEPS[step]);
        let ran = run(&mut first, number).is_ok();
        app.settle();
        assert!(!(ran && first.check_in().is_ok()), "{note}");
        drop(first);
        machine.revive();
        let mut second = installation(&client, &machine, &code, number);
        run(&mut second, number).unwrap_or_else(|error| panic!("{note}: {error}"));
        app.settle();
        second.check_in().unwrap_or_else(|error| panic!("{note}: {error}"));
    }
    assert_eq!(registered(&app), 12, "one server for each installation");
}

#[test]
fn an_installation_that_fails_or_is_dropped_leaves_a_code_for_another_machine() {
    let app = TestApp::start();
    let code = app.issue();
    let machine = Kept::default();
    let client = client(&app, &machine);
    let mut first = installation(&client, &machine, &code, 1);
    let failed = first.run(&binding(1), |_, _| Err("no space".to_owned()));
    let Err(RunError::Payload { released, .. }) = failed else { panic!("{failed:?}") };
    assert_eq!(released.unwrap(), Released::CodeIsGood);
    // The answer to activate is lost for good, so the machine does not know what it holds.
    let asked = machine.0.lock().unwrap().asked.len();
    machine.0.lock().unwrap().next = Some((asked + 1, Fate::AnswerLost, false));
    let once = client.clone().with_patience(Patience { tries: 1, ..patience() });
    let mut second = installation(&once, &machine, &code, 1);
    assert!(matches!(second.activate(&binding(1)), Err(Error::NoAnswer { .. })));
    drop(second);
    let other = Kept::default();
    let mut third = installation(&client, &other, &code, 2);
    run(&mut third, 2).unwrap();
    assert_eq!(registered(&app), 1);
}

#[test]
fn the_payload_of_the_server_is_fetched_and_run_by_the_example() {
    let folder = tempfile::TempDir::new().unwrap();
    let script = "echo \"$1 $IPTUNNEL_HOSTNAME $IPTUNNEL_IP\" > \"$IPTUNNEL_ROOT/ran\"\n";
    std::fs::write(folder.path().join("slowdns.sh"), script).unwrap();
    let payloads = folder.path().display().to_string();
    let app = TestApp::start_with(|c| c.push(("installer.payloads", payloads)));
    let client = client(&app, &Kept::default());
    assert_eq!(client.address().unwrap().to_string(), "127.0.0.1");
    let root = tempfile::TempDir::new().unwrap();
    let Binding { hostname, public_ip } = binding(1);
    let expected = format!("install {hostname} {public_ip}\n");
    let (public_ip, path) = (Some(public_ip), root.path().to_owned());
    let order = example::Order { client, hostname, public_ip, folder: path };
    let code = app.issue();
    let installed = example::install(&order, || Ok(Code::new(&code)));
    // Over several servers the check-in may come to one that has not heard of the registration yet.
    assert!(installed.is_ok() || app.servers() > 1, "{installed:?}");
    assert_eq!(std::fs::read_to_string(root.path().join("ran")).unwrap(), expected);
    assert_eq!(registered(&app), 1);
}

#[test]
fn the_example_installs_and_says_so_and_run_again_it_needs_no_code() {
    let app = TestApp::start();
    let folder = tempfile::TempDir::new().unwrap();
    let order = example::Order {
        client: client(&app, &Kept::default()),
        hostname: binding(1).hostname,
        public_ip: Some(binding(1).public_ip),
        folder: folder.path().to_owned(),
    };
    let refused = example::install(&order, || Ok(Code::new("IPT-SD-ABCDEF-GHJKLM-NPQRST")));
    let words = refused.unwrap_err().to_string();
    assert!(
        words.contains("refuses to check the install code: Install code was not found."),
        "{words}"
    );
    std::fs::remove_file(folder.path().join("state")).unwrap();
    let code = app.issue();
    let first = example::install(&order, || Ok(Code::new(&code)));
    // Over several servers the check-in may come to one that has not heard of the registration yet.
    app.settle();
    let second = example::install(&order, || panic!("it has a code")).unwrap();
    assert!(
        second.starts_with("installed as server ") && second.contains("next check-in in"),
        "{second}"
    );
    if app.servers() == 1 {
        assert_eq!(first.unwrap(), second);
    }
    assert_eq!(registered(&app), 1);
}
