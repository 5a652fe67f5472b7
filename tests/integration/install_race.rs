//! Concurrent requests about one code: every race has one consistent outcome.

use crate::harness::{Activation, Machine, TestApp, at_once};

const USED: &str = "install_code_used";

#[test]
fn one_of_sixteen_machines_that_race_for_a_code_wins_and_the_others_get_code_used() {
    let app = TestApp::start();
    for _ in 0..4 {
        let code = app.issue();
        let machines: Vec<_> = (0..16).map(Machine::new).collect();
        let tokens: Vec<_> = machines.iter().map(|m| m.prechecked(&app, &code)).collect();
        let answers = at_once(16, |n| {
            let n = n as usize;
            machines[n].activate(&app, &code, &tokens[n])
        });
        let winners = answers.iter().filter(|answer| answer.status == 200).count();
        let losers = answers.iter().filter(|answer| answer.told() == (403, USED.into())).count();
        assert_eq!((winners, losers), (1, 15));
    }
}

#[test]
fn one_machine_that_asks_eight_times_at_once_gets_one_activation() {
    let app = TestApp::start();
    for number in 0..10 {
        let (code, machine) = (app.issue(), Machine::new(number));
        let token = machine.prechecked(&app, &code);
        let texts = at_once(8, |_| machine.activate(&app, &code, &token).text);
        assert!(texts[0].contains("act_"), "{}", texts[0]);
        assert!(texts.iter().all(|text| *text == texts[0]), "{texts:#?}");
    }
}

#[test]
fn two_bindings_of_one_machine_at_once_leave_one_activation_open() {
    let app = TestApp::start();
    for _ in 0..10 {
        let (code, machine) = (app.issue(), Machine::new(1));
        let token = machine.prechecked(&app, &code);
        let activations = at_once(2, |n| {
            let moved = Machine { hostname: format!("ns{n}.a.example"), ..machine.clone() };
            let answer = moved.activate(&app, &code, &token);
            assert_eq!(answer.status, 200, "{}", answer.text);
            Activation { id: answer.data("activation_id"), token: answer.data("install_token") }
        });
        let mut outcomes: Vec<_> = activations.iter().map(|a| a.confirm(&app).status).collect();
        outcomes.sort_unstable();
        assert_eq!(outcomes, [200, 404]);
    }
}

#[test]
fn one_of_eight_concurrent_confirms_succeeds() {
    let app = TestApp::start();
    let activation = Machine::new(1).install(&app, &app.issue());
    let mut statuses = at_once(8, |_| activation.confirm(&app).status);
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409, 409, 409, 409, 409, 409, 409]);
}

#[test]
fn one_of_eight_concurrent_releases_gives_the_code_back() {
    let app = TestApp::start();
    let activation = Machine::new(1).install(&app, &app.issue());
    let mut statuses = at_once(8, |_| activation.release(&app).status);
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 404, 404, 404, 404, 404, 404, 404]);
}

#[test]
fn a_confirm_that_races_a_release_ends_in_one_consistent_outcome() {
    let app = TestApp::start();
    for round in 0..30 {
        let code = app.issue();
        let activation = Machine::new(1).install(&app, &code);
        let answers =
            at_once(
                2,
                |n| if n == 0 { activation.confirm(&app) } else { activation.release(&app) },
            );
        let [confirm, release] = &answers[..] else { panic!() };
        let code_after = Machine::new(2).precheck(&app, &code);
        let outcome = (
            confirm.told(),
            release.data("status"),
            release.json()["data"]["install_code_restored"].as_bool().unwrap(),
            code_after.told(),
        );
        let confirmed =
            ((200, String::new()), "confirmed".to_owned(), false, (403, USED.to_owned()));
        let released = (
            (404, "activation_not_found".to_owned()),
            "released".to_owned(),
            true,
            (200, String::new()),
        );
        assert!(outcome == confirmed || outcome == released, "round {round}: {outcome:?}");
    }
}

#[test]
fn an_activate_that_races_the_holders_release_never_leaves_the_code_with_two_machines() {
    let app = TestApp::start();
    for round in 0..30 {
        let code = app.issue();
        let (one, two) = (Machine::new(1), Machine::new(2));
        let token = two.prechecked(&app, &code);
        let first = one.install(&app, &code);
        let answers = at_once(2, |n| {
            if n == 0 { first.release(&app) } else { two.activate(&app, &code, &token) }
        });
        assert_eq!(answers[0].status, 200, "{}", answers[0].text);
        assert_eq!(first.confirm(&app).code(), "activation_not_found", "round {round}");
        let taken = answers[1].status == 200;
        assert!(taken || answers[1].code() == USED, "{}", answers[1].text);
        let third = Machine::new(3).precheck(&app, &code).status;
        assert_eq!(third, if taken { 403 } else { 200 }, "round {round}");
    }
}

#[test]
fn codes_issued_concurrently_are_distinct_and_well_formed() {
    let app = TestApp::start();
    let mut codes: Vec<String> =
        at_once(8, |_| (0..10).map(|_| app.issue()).collect::<Vec<_>>()).concat();
    for code in &codes {
        let body = code.strip_prefix("IPT-SD-").unwrap();
        let groups: Vec<_> = body.split('-').collect();
        assert!(groups.len() == 3 && groups.iter().all(|group| group.len() == 6), "{code}");
        let readable = |c: u8| matches!(c, b'A'..=b'Z' | b'2'..=b'9') && c != b'I' && c != b'O';
        assert!(groups.concat().bytes().all(readable), "{code}");
    }
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), 80);
}
