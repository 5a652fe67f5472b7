//! Hundreds of installations with the client crate, or thousands (`LOSING_SEEDS`), each through a proxy that
//! spoils some requests and answers by chance. None burns its code, and all can be brought to their end.

use crate::losing_proxy::{Fault, Plan, Step};
use crate::lost_answers::{PAYLOAD, Stage, assert_installed, assert_not_burnt, by_workers, seeds};
use crate::process::Chance;
use iptunnel_client::{
    Binding, CheckIn, Client, Code, Environment, Installation, Machine, Network, Patience, Phase,
    RunError, State, System,
};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The machine as it is, but pauses take no time.
#[derive(Default)]
struct Hurried(System);

impl Environment for Hurried {
    fn now(&self) -> Duration {
        self.0.now()
    }
    fn sleep(&self, _: Duration) {}
    fn random(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        self.0.random(bytes)
    }
}

/// What can go wrong without waiting. A server is killed once in a while, since its start takes a while.
fn fault(chance: &mut Chance) -> Fault {
    let quick = Fault::ALL.iter().filter(|fault| !fault.kills() && **fault != Fault::AnswerLate);
    let kills = Fault::ALL.iter().filter(|fault| fault.kills());
    let some: Vec<&Fault> = if chance.below(1000) == 0 { kills.collect() } else { quick.collect() };
    *some[chance.below(some.len() as u64) as usize]
}

fn plan(chance: &mut Chance) -> Plan {
    let step = Step::ALL[1 + chance.below(Step::ALL.len() as u64 - 1) as usize];
    let (first, tries) = (chance.below(4) as u32, 1 + chance.below(3) as u32);
    Plan { step, fault: fault(chance), first, tries }
}

/// One machine, what its programs keep, and what goes wrong.
struct World {
    client: Client,
    code: String,
    binding: Binding,
    kept: Arc<Mutex<Option<State>>>,
}

impl World {
    /// Begins the installation, or goes on with it.
    fn open(&self) -> Installation<impl FnMut(&State) -> std::io::Result<()>> {
        let (before, kept) = (self.kept.lock().unwrap().clone(), Arc::clone(&self.kept));
        let store = move |state: &State| {
            *kept.lock().unwrap() = Some(state.clone());
            Ok(())
        };
        let opened = match before {
            Some(state) => Installation::resume(&self.client, store, state),
            None => {
                let machine = Machine::random("none", &System::default()).unwrap();
                Installation::begin(&self.client, store, Code::new(&*self.code), machine)
            }
        };
        opened.unwrap()
    }

    /// Runs the installer once, with a payload that may fail. A program that failed gives the code back, or
    /// is ended before it can.
    fn run(&self, payload_fails: bool, gives_back: bool) -> Result<String, String> {
        let mut installation = self.open();
        let ran = installation.run(&self.binding, |_, payload| {
            assert_eq!(payload.unwrap().script, PAYLOAD.as_bytes());
            if payload_fails { Err("it fails") } else { Ok(()) }
        });
        let failed = match ran {
            Ok(server_id) => return Ok(server_id),
            Err(RunError::Payload { error, .. }) => error.to_owned(),
            Err(error) => error.to_string(),
        };
        if gives_back {
            drop(installation);
        } else {
            installation.suspend();
        }
        Err(failed)
    }

    /// Whether a confirm may have been sent.
    fn may_be_confirmed(&self) -> bool {
        let kept = self.kept.lock().unwrap();
        let phase = kept.as_ref().map(|state| &state.phase);
        !matches!(phase, None | Some(Phase::Ready | Phase::Activating | Phase::Open(_)))
    }
}

/// Installs while things go wrong, then without trouble.
fn play(stage: &Stage, seed: u64) {
    let mut chance = Chance::seeded(seed);
    let ip: IpAddr = Ipv4Addr::from(0x0301_0000 + u32::try_from(seed % 0x10_0000).unwrap()).into();
    let plans: Vec<Plan> = (0..5).map(|_| plan(&mut chance)).collect();
    let proxy = stage.proxy(ip, &plans);
    let patience = Patience { tries: 2, ..Patience::default() };
    let client = Client::new(&proxy.url(), "slowdns").unwrap();
    let client = client.over(Network::direct(&proxy.url()).unwrap()).within(Hurried::default());
    let binding = Binding { hostname: "ns1.example.com".into(), public_ip: ip };
    let code = stage.api().issue();
    let client = client.with_patience(patience);
    let world = World { client, code, binding, kept: Arc::default() };
    let mut note = format!("seed {seed} {plans:?}");
    let mut is_installed = false;
    for _ in 0..4 {
        if is_installed {
            break;
        }
        let (fails, gives_back) = (chance.below(4) == 0, chance.below(2) == 0);
        let ran = world.run(fails, gives_back);
        proxy.settle();
        note += &format!("\nfails: {fails}, gives back: {gives_back}: {ran:?}");
        is_installed = ran.is_ok();
        if !is_installed {
            assert_not_burnt(stage, &world.code, ip, world.may_be_confirmed(), &note);
        }
    }
    proxy.heal();
    // What was late arrives first.
    assert_eq!(world.client.address().unwrap(), ip, "{note}");
    let server_id = world.run(false, true).unwrap_or_else(|error| panic!("{error} after {note}"));
    assert_installed(stage, &world.code, ip, &note);
    assert_eq!(stage.servers_at(ip)[0]["server_id"], server_id, "{note}");
    let checked_in = world.open().check_in().unwrap();
    assert!(matches!(checked_in, CheckIn::Ok { .. }), "{checked_in:?} {note}");
    proxy.end();
}

#[test]
fn no_order_of_lost_requests_and_answers_burns_a_code_or_makes_two_servers() {
    by_workers(&seeds(500).collect::<Vec<_>>(), play_seed);
}

fn play_seed(stage: &Stage, seed: &u64) {
    play(stage, *seed);
}
