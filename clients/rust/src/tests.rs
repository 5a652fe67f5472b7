//! The client and its installations against the model of a server.

use crate::fake::{Fate, SCRIPT, Standing, World, binding};
use crate::*;
use serde_json::json;
use std::time::Duration;

const CODE: &str = "IPT-SD-ABCDEF-GHJKLM-NPQRST";

fn client(world: &World) -> Client {
    let client = Client::new("http://install.example.com/", "slowdns").unwrap();
    client.over(world.clone()).within(world.clone())
}

fn machine() -> Machine {
    Machine { id: "m".into(), ssh_fingerprint: "f".into() }
}

/// The installation that the next program goes on with, or a new one.
fn installation(world: &World) -> Result<Installation<World>, Error> {
    let client = client(world);
    match world.kept() {
        Some(state) => Installation::resume(&client, world.clone(), state),
        None => Installation::begin(&client, world.clone(), Code::new(CODE), machine()),
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::Refused { refusal, .. }) => refusal.code,
        other => panic!("{other:?}"),
    }
}

/// A machine whose payload may be in place.
#[derive(Default)]
struct Installed(Option<Binding>);

impl Installed {
    fn run(&mut self, installation: &mut Installation<World>) -> Result<String, RunError<String>> {
        self.run_for("ns1.example.com", installation)
    }

    fn run_for(
        &mut self,
        hostname: &str,
        installation: &mut Installation<World>,
    ) -> Result<String, RunError<String>> {
        installation.run(&binding(hostname), |bound, payload| {
            assert_eq!(payload.map(|payload| &payload.script[..]), Some(SCRIPT));
            self.0 = Some(bound.clone());
            Ok(())
        })
    }
}

/// Checks that one server is installed by one activation, and that the payload knows its binding.
fn check_installed(world: &World, installed: &Installed, note: &str) {
    let inside = world.look();
    let server = &inside.server;
    assert_eq!((server.open(), server.confirmed()), (None, 1), "{note}: {server:?}");
    let bound = installed.0.as_ref().map(|bound| json!([bound.hostname, bound.public_ip]));
    let registered: Vec<_> = server.servers.values().cloned().collect();
    assert_eq!(registered, bound.into_iter().collect::<Vec<_>>(), "{note}: {server:?}");
}

#[test]
fn a_client_can_be_shared_between_threads() {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Client>();
    is_shared::<Error>();
    is_shared::<Installation<FileStore>>();
}

#[test]
fn an_installation_goes_from_the_code_to_the_check_in_and_asks_each_thing_once() {
    let (world, mut installed) = (World::new(1), Installed::default());
    let mut installation = installation(&world).unwrap();
    let id = installed.run(&mut installation).unwrap();
    assert_eq!(installation.state().server_id(), Some(id.as_str()));
    let hour = Duration::from_secs(3600);
    assert_eq!(installation.check_in().unwrap(), CheckIn::Ok { next: hour });
    check_installed(&world, &installed, "");
    let asked = ["precheck", "activate", "payload", "confirm", "register", "check-in"];
    assert_eq!(world.look().server.asked, asked);
    // Once more: everything is done.
    assert_eq!(installed.run(&mut installation).unwrap(), id);
    drop(installation);
    assert_eq!(
        world.look().server.asked,
        asked,
        "a finished installation has nothing to give back"
    );
}

#[test]
fn a_revoked_server_hears_it_whatever_the_status() {
    let world = World::new(1);
    let mut installation = installation(&world).unwrap();
    Installed::default().run(&mut installation).unwrap();
    world.look().server.revoked = true;
    assert_eq!(installation.check_in().unwrap(), CheckIn::Revoked);
    let body = br#"{"data":{"status":"revoked","server_id":"1"},"meta":{"message":"OK"}}"#;
    let answer = Response { status: 200, headers: vec![], body: body.to_vec() };
    let client = client(&world).over(move |_: &Request, _| Ok(answer.clone()));
    assert_eq!(client.check_in("1", &AgentToken::new("ipa_0")).unwrap(), CheckIn::Revoked);
}

#[test]
fn whatever_gets_no_answer_is_asked_again_and_a_refusal_is_not() {
    for fate in Fate::ALL {
        let world = World::new(1);
        world.look().next = vec![fate, fate, Fate::Passes];
        let answer = client(&world).address();
        let pauses = world.look().pauses.len();
        match fate {
            Fate::Limited => {
                let Err(Error::Refused { refusal, tries: 1, .. }) = answer else { panic!() };
                assert_eq!(refusal.retry_after, Some(Duration::from_secs(2)));
                assert_eq!(pauses, 0);
            }
            Fate::Passes | Fate::Doubled => assert!(answer.is_ok() && pauses == 0, "{fate:?}"),
            _ => assert!(answer.is_ok() && pauses == 2, "{fate:?} {answer:?}"),
        }
    }
}

#[test]
fn patience_ends_after_its_tries_or_its_time_and_says_what_happened_last() {
    let world = World::new(1);
    world.look().next = vec![Fate::Redirected; 100];
    let patience = Patience { tries: 3, ..Patience::default() };
    let error = client(&world).with_patience(patience).address().unwrap_err();
    let last = Problem::NotThisApi { status: 302 };
    let Error::NoAnswer { step: Step::Address, tries: 3, last: told } = error else { panic!() };
    assert_eq!((told, world.look().pauses.len()), (last, 2));
    let patience = Patience { tries: 100, ..Patience::default() };
    client(&world).with_patience(patience).address().unwrap_err();
    assert!(world.look().now <= patience.whole * 2, "{:?}", world.look().now);
    assert!(world.look().pauses.len() < 20, "{:?}", world.look().pauses);
}

#[test]
fn the_server_says_how_long_to_wait_at_least() {
    let world = World::new(1);
    world.look().next = vec![Fate::Overloaded; 3];
    client(&world).address().unwrap();
    assert!(world.look().pauses.iter().all(|pause| *pause > Duration::from_secs(2)));
}

#[test]
fn a_payload_is_taken_only_with_its_checksum_and_its_absence_is_no_error() {
    let world = World::new(1);
    let answer = |status, header: Option<&str>, body: &str| {
        let headers = header.map(|value| ("repr-digest".to_owned(), value.to_owned()));
        let response =
            Response { status, headers: headers.into_iter().collect(), body: body.into() };
        let client = client(&world).with_patience(Patience::once());
        let client = client.over(move |_: &Request, _| Ok(response.clone()));
        client.payload(&InstallToken::new("i"))
    };
    let hello = "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:";
    assert_eq!(answer(200, Some(hello), "hello").unwrap().unwrap().script, b"hello");
    for (header, body) in [(Some(hello), "hell"), (None, "hello"), (Some(""), "")] {
        let refused = answer(200, header, body);
        assert!(matches!(refused, Err(Error::NoAnswer { .. })), "{header:?} {body}");
    }
    let failure = |code: &str| format!(r#"{{"error":{{"code":"{code}","message":"No."}}}}"#);
    for code in ["payload_not_found", "not_found"] {
        assert!(answer(404, None, &failure(code)).unwrap().is_none());
    }
    assert_eq!(refused(answer(401, None, &failure("token_invalid")).map(|_| ())), "token_invalid");
}

#[test]
fn addresses_and_names_that_cannot_be_right_are_refused_before_anything_is_sent() {
    for url in ["", "install.example.com", "ftp://a", "https://", "http://u:p@a", "http://a?b"] {
        let error = Client::new(url, "slowdns").err().unwrap().to_string();
        assert!(error.contains("such as https://") && !error.contains("u:p"), "{error}");
    }
    for product in ["", "../x", "a b", "ä"] {
        assert!(Client::new("http://a", product).is_err(), "{product}");
    }
    let world = World::new(1);
    assert!(client(&world).check_in("../x", &AgentToken::new("ipa_0")).is_err());
    assert!(world.look().server.asked.is_empty());
}

#[test]
fn an_error_says_what_to_do_and_has_no_secret() {
    let world = World::new(1);
    world.look().next = vec![Fate::RequestLost; 100];
    let patience = Patience::once();
    let client = client(&world).with_patience(patience);
    let error = client.precheck(&Code::new(CODE), &machine()).unwrap_err();
    let words = "the server was asked to check the install code, in vain (1 tries): lost; \
                 please try again later";
    assert_eq!(error.to_string(), words);
    assert!(!format!("{error:?}").contains("ABCDEF"));
}

#[test]
fn a_payload_that_fails_gives_the_code_back() {
    let world = World::new(1);
    let mut installation = installation(&world).unwrap();
    let failed = installation.run(&binding("ns1.example.com"), |_, _| Err("no space".to_owned()));
    let Err(error @ RunError::Payload { released: Ok(Released::CodeIsGood), .. }) = &failed else {
        panic!("{failed:?}")
    };
    let words = "the payload failed: no space; the install code can be used again";
    assert_eq!(error.to_string(), words);
    assert_eq!(world.look().server.activations[0].standing, Standing::Released);
    let mut installed = Installed::default();
    installed.run(&mut installation).unwrap();
    check_installed(&world, &installed, "the second time");
}

#[test]
fn a_dropped_installation_gives_the_code_back_and_a_suspended_one_keeps_it() {
    for suspends in [false, true] {
        let world = World::new(1);
        let mut installation = installation(&world).unwrap();
        installation.activate(&binding("ns1.example.com")).unwrap();
        if suspends {
            installation.suspend()
        } else {
            drop(installation)
        }
        assert_eq!(world.look().server.open().is_some(), suspends);
    }
}

#[test]
fn a_release_finds_the_activation_whose_answer_was_lost() {
    let world = World::new(1);
    let mut first = installation(&world).unwrap();
    first.precheck().unwrap();
    world.look().next = vec![Fate::AnswerLost; 8];
    let activated = first.activate(&binding("ns1.example.com"));
    assert!(matches!(activated, Err(Error::NoAnswer { tries: 8, .. })));
    first.suspend();
    assert!(world.look().server.open().is_some());
    assert_eq!(installation(&world).unwrap().release().unwrap(), Released::CodeIsGood);
    assert_eq!(world.look().server.open(), None);
    let again = installation(&world).unwrap().release().unwrap();
    assert_eq!(again, Released::NothingHeld);
}

#[test]
fn the_limit_of_a_proxy_does_not_make_it_forget_what_it_holds() {
    for lost in 0..2 {
        let world = World::new(1);
        let mut installation = installation(&world).unwrap();
        installation.precheck().unwrap();
        world.look().next = [Fate::AnswerLost; 1][..lost].to_vec();
        world.look().next.push(Fate::Limited);
        let activated = installation.activate(&binding("ns1.example.com"));
        assert_eq!(refused(activated), "rate_limit_exceeded");
        // A first try that was refused has changed nothing. An earlier one may have.
        let phase = [Phase::Ready, Phase::Activating][lost].clone();
        assert_eq!(installation.state().phase, phase);
        drop(installation);
        assert_eq!(world.look().server.open(), None);
    }
}

#[test]
fn another_binding_releases_the_first_and_runs_the_payload_for_the_second() {
    let (world, mut installed) = (World::new(1), Installed::default());
    let mut installation = installation(&world).unwrap();
    installation.activate(&binding("old.example.com")).unwrap();
    installed.run_for("new.example.com", &mut installation).unwrap();
    check_installed(&world, &installed, "");
    assert_eq!(world.look().server.activations[0].standing, Standing::Released);
}

#[test]
fn a_code_that_another_machine_uses_is_refused_and_nothing_is_held() {
    let world = World::new(1);
    let other = Machine { id: "other".into(), ..machine() };
    let client = client(&world);
    let mut first =
        Installation::begin(&client, |_: &State| Ok(()), Code::new(CODE), other).unwrap();
    first.activate(&binding("other.example.com")).unwrap();
    let mut second = installation(&world).unwrap();
    assert_eq!(refused(second.activate(&binding("ns1.example.com"))), "install_code_used");
    assert_eq!(second.state().phase, Phase::Ready);
    assert_eq!(second.release().unwrap(), Released::NothingHeld);
    assert!(world.look().server.open().is_some(), "the other machine's");
}

#[test]
fn a_precheck_token_from_before_a_long_pause_is_replaced() {
    let world = World::new(1);
    let mut installation = installation(&world).unwrap();
    installation.precheck().unwrap();
    world.look().now += Duration::from_secs(900);
    installation.activate(&binding("ns1.example.com")).unwrap();
    assert_eq!(world.look().server.asked, ["precheck", "activate", "precheck", "activate"]);
}

#[test]
fn a_confirm_that_comes_too_late_is_an_error_unless_an_earlier_one_was_in_time() {
    for is_lost in [false, true] {
        let (world, late) = (World::new(1), Duration::from_secs(600));
        let mut installation = installation(&world).unwrap();
        installation.activate(&binding("ns1.example.com")).unwrap();
        if is_lost {
            world.look().next = vec![Fate::AnswerLost; 8];
            assert!(matches!(installation.confirm(), Err(Error::NoAnswer { .. })));
        }
        world.look().now += late;
        if is_lost {
            installation.confirm().unwrap();
            installation.register().unwrap();
        } else {
            assert_eq!(refused(installation.confirm()), "token_invalid");
            assert_eq!(installation.state().phase, Phase::Ready);
        }
    }
}

#[test]
fn steps_out_of_order_are_errors_and_ask_nothing() {
    let world = World::new(1);
    let mut installation = installation(&world).unwrap();
    let out_of_order = |result| matches!(result, Err(Error::OutOfOrder(..)));
    assert!(out_of_order(installation.payload().map(|_| ())));
    assert!(out_of_order(installation.confirm()));
    assert!(out_of_order(installation.register().map(|_| ())));
    assert!(out_of_order(installation.check_in().map(|_| ())));
    assert!(world.look().server.asked.is_empty());
}

#[test]
fn nothing_is_asked_that_rests_on_a_state_that_could_not_be_kept() {
    let world = World::new(1);
    let full = |_: &State| Err(std::io::Error::other("no space"));
    let client = client(&world);
    let begun = Installation::begin(&client, full, Code::new(CODE), machine());
    let error = begun.err().unwrap().to_string();
    assert!(error.contains("cannot be saved: no space"), "{error}");
    assert!(world.look().server.asked.is_empty());
}

#[test]
fn a_disk_that_fills_up_does_not_keep_the_code_from_being_given_back() {
    let world = World::new(1);
    let client = client(&world);
    for saves in 2..6 {
        let mut left = saves;
        let full = move |_: &State| {
            left -= 1;
            if left > 0 { Ok(()) } else { Err(std::io::Error::other("no space")) }
        };
        let mut installation =
            Installation::begin(&client, full, Code::new(CODE), machine()).unwrap();
        let ran = installation.run(&binding("ns1.example.com"), |_, _| Ok::<(), String>(()));
        assert!(matches!(ran, Err(RunError::Installation(Error::Store(_)))), "{saves} {ran:?}");
        drop(installation);
        assert_eq!(world.look().server.open(), None, "{saves}");
    }
}

#[test]
fn a_state_of_another_product_is_not_resumed() {
    let world = World::new(1);
    installation(&world).unwrap();
    let other = Client::new("http://install.example.com", "vpn").unwrap();
    let error = Installation::resume(&other, world.clone(), world.kept().unwrap()).err().unwrap();
    let words = "the state is of an installation of \"slowdns\", not of \"vpn\"";
    assert_eq!(error.to_string(), words);
}

/// Runs an installation that dies after so many events. False if it came to its end before.
fn dies(world: &World, installed: &mut Installed, events: u32) -> bool {
    world.look().dies_after = Some(events);
    let ran = installation(world).map(|mut installation| installed.run(&mut installation).is_ok());
    let is_dead = world.is_dead();
    world.look().dies_after = None;
    assert!(is_dead || ran.is_ok_and(|ran| ran));
    is_dead
}

#[test]
fn a_machine_that_dies_at_any_two_points_goes_on_and_is_installed_once() {
    let mut points = 0;
    for first in 1.. {
        for second in 1.. {
            let (world, mut installed) = (World::new(1), Installed::default());
            let died = dies(&world, &mut installed, first);
            let died_again = died && dies(&world, &mut installed, second);
            installed.run(&mut installation(&world).unwrap()).unwrap();
            let note = format!("{first} {second}");
            check_installed(&world, &installed, &note);
            let count = world.look().server.activations.len();
            assert_eq!(count, 1, "a machine that resumes needs no second activation: {note}");
            points += 1;
            if !died_again {
                break;
            }
        }
        let world = World::new(1);
        if !dies(&world, &mut Installed::default(), first) {
            break;
        }
    }
    assert!(points > 200, "{points}");
}

/// One life of a machine with a lossy network: some programs that may die, lose patience or give up, then one
/// that meets no more faults.
fn life(seed: u64) {
    let (world, mut installed, note) =
        (World::new(seed), Installed::default(), format!("seed {seed}"));
    let hostnames = ["ns1.example.com", "ns2.example.com"];
    for _ in 0..world.below(5) {
        let (faults, events, end) = (world.below(90), world.below(60), world.below(5));
        world.look().faults = faults;
        world.look().dies_after = (events < 40).then_some(events + 1);
        let hostname = hostnames[world.below(2) as usize];
        if let Ok(mut installation) = installation(&world) {
            let ran = match end {
                0 => installation.run(&binding(hostname), |_, _| Err(String::new())),
                _ => installed.run_for(hostname, &mut installation),
            };
            // A machine that gave up has removed what was installed, unless it died before.
            let gave_up = match (end, ran) {
                (_, Err(RunError::Payload { .. })) => true,
                (1, Err(_)) => {
                    let _ = installation.release();
                    true
                }
                (2, _) => {
                    installation.suspend();
                    false
                }
                _ => false,
            };
            if gave_up && !world.is_dead() {
                installed = Installed::default();
            }
        }
        (world.look().faults, world.look().dies_after) = (0, None);
    }
    // The pauses of a life are shorter than the tokens last.
    world.look().now = Duration::ZERO;
    if world.below(3) == 0 {
        let released = installation(&world).unwrap().release().unwrap();
        let inside = world.look();
        assert_eq!(inside.server.open(), None, "{note}");
        let is_spent = inside.server.confirmed() == 1;
        assert_eq!(released == Released::Confirmed, is_spent, "{note} {released:?}");
    } else {
        let mut last = installation(&world).unwrap();
        let ran = installed.run_for(hostnames[0], &mut last);
        assert!(ran.is_ok(), "{note}: {ran:?}");
        check_installed(&world, &installed, &note);
    }
}

/// `CLIENT_SEEDS=100000` looks at more lives. Each failure names its seed.
#[test]
fn whatever_is_lost_the_machine_ends_installed_or_the_code_is_good_again() {
    let seeds = std::env::var("CLIENT_SEEDS").map_or(2000, |count| count.parse().unwrap());
    (0..seeds).for_each(life);
}
