//! The life of a code and its activations, to the second.

use crate::harness::{Activation, Answer, Machine, TestApp, wait_until, with};
use iptunnel_server::secrets::SigningFile;

const DAY: u64 = 86_400;

fn told(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

fn used() -> (u16, String) {
    told(403, "install_code_used")
}

fn activation_of(answer: &Answer) -> Activation {
    assert_eq!(answer.status, 200, "{}", answer.text);
    Activation { id: answer.data("activation_id"), token: answer.data("install_token") }
}

fn restored(answer: &Answer) -> (u16, bool) {
    let restored = &answer.json()["data"]["install_code_restored"];
    (answer.status, restored.as_bool().unwrap_or_else(|| panic!("{}", answer.text)))
}

/// Whether a machine that has nothing to do with it could begin with the code: 200 or the refusal.
fn free(app: &TestApp, code: &str) -> (u16, String) {
    Machine::new(99).precheck(app, code).told()
}

#[test]
fn a_code_is_valid_for_299_seconds_and_expired_in_the_300th() {
    let app = TestApp::start();
    let code = app.issue();
    app.clock.advance(299);
    assert_eq!(free(&app, &code), told(200, ""));
    app.clock.advance(1);
    assert_eq!(free(&app, &code), told(403, "install_code_expired"));
    app.clock.advance(7 * DAY);
    assert_eq!(free(&app, &code), told(403, "install_code_expired"));
}

#[test]
fn a_precheck_before_the_expiry_allows_an_activate_for_900_seconds() {
    let app = TestApp::start();
    let (code, machine) = (app.issue(), Machine::new(1));
    app.clock.advance(299);
    let token = machine.prechecked(&app, &code);
    app.clock.advance(899);
    assert_eq!(machine.activate(&app, &code, &token).status, 200);
}

#[test]
fn a_precheck_token_is_expired_in_its_900th_second() {
    let app = TestApp::start();
    let (code, machine) = (app.issue(), Machine::new(1));
    let token = machine.prechecked(&app, &code);
    app.clock.advance(900);
    assert_eq!(machine.activate(&app, &code, &token).told(), told(403, "precheck_token_invalid"));
}

#[test]
fn prechecks_change_nothing_and_the_first_machine_to_activate_wins() {
    let app = TestApp::start();
    let (code, one, two) = (app.issue(), Machine::new(1), Machine::new(2));
    let (first, second) = (one.prechecked(&app, &code), two.prechecked(&app, &code));
    assert_eq!(two.activate(&app, &code, &second).status, 200);
    assert_eq!(one.activate(&app, &code, &first).told(), used());
}

#[test]
fn an_activation_is_open_for_599_seconds_and_lapsed_in_the_600th() {
    let app = TestApp::start();
    let (code, machine) = (app.issue(), Machine::new(1));
    let token = machine.prechecked(&app, &code);
    let first = machine.activate(&app, &code, &token);
    app.clock.advance(599);
    assert_eq!(machine.activate(&app, &code, &token).text, first.text);
    app.clock.advance(1);
    assert_eq!(machine.activate(&app, &code, &token).told(), used());
    assert_eq!(machine.precheck(&app, &code).told(), used());
}

#[test]
fn an_install_token_confirms_for_599_seconds_and_not_in_the_600th() {
    let app = TestApp::start();
    let (in_time, late) = (app.issue(), app.issue());
    let in_time = Machine::new(1).install(&app, &in_time);
    let late = Machine::new(2).install(&app, &late);
    app.clock.advance(599);
    assert_eq!(in_time.confirm(&app).status, 200);
    app.clock.advance(1);
    assert_eq!(late.confirm(&app).told(), told(403, "token_invalid"));
}

#[test]
fn a_lapsed_activation_releases_nothing_and_its_code_stays_used() {
    let app = TestApp::start();
    let code = app.issue();
    let activation = Machine::new(1).install(&app, &code);
    app.clock.advance(600);
    for _ in 0..2 {
        let answer = activation.release(&app);
        assert_eq!(restored(&answer), (200, false));
        assert_eq!(answer.data("status"), "released");
    }
    assert_eq!(free(&app, &code), used());
}

#[test]
fn the_machine_that_holds_it_gets_the_same_answer_byte_for_byte_also_after_a_restart() {
    let app = TestApp::start();
    let (code, machine) = (app.issue(), Machine::new(1));
    let first = machine.activate(&app, &code, &machine.prechecked(&app, &code));
    app.clock.advance(60);
    let app = app.restart();
    let again = machine.activate(&app, &code, &machine.prechecked(&app, &code));
    assert_eq!((again.status, again.text), (200, first.text));
}

#[test]
fn the_same_bytes_come_again_after_a_key_rotation_and_still_confirm() {
    let app = TestApp::start();
    let (code, machine) = (app.issue(), Machine::new(1));
    let token = machine.prechecked(&app, &code);
    let first = machine.activate(&app, &code, &token);
    let mut keys = SigningFile::read(&app.config.auth.signing_key_file).unwrap();
    keys.add(iptunnel_domain::Timestamp(crate::harness::START)).unwrap();
    keys.promote(None).unwrap();
    app.reload_now(|_| {});
    assert_eq!(machine.activate(&app, &code, &token).text, first.text);
    let app = app.restart();
    assert_eq!(machine.activate(&app, &code, &token).text, first.text);
    assert_eq!(activation_of(&first).confirm(&app).status, 200);
}

#[test]
fn a_repeat_with_other_fields_but_the_same_binding_keeps_the_open_activation() {
    let app = TestApp::start();
    let (code, machine) = (app.issue(), Machine::new(1));
    let body = machine.activate_body(&code, &machine.prechecked(&app, &code));
    let first = app.step("activate", &body);
    let other = with(with(body, "requested_ref", "v2"), "installer_version", "2031");
    assert_eq!(app.step("activate", &other).text, first.text);
}

#[test]
fn the_same_machine_id_with_another_fingerprint_is_another_machine() {
    let app = TestApp::start();
    let (code, machine) = (app.issue(), Machine::new(1));
    machine.install(&app, &code);
    let fingerprint = Machine { fingerprint: "SHA256:other".into(), ..machine.clone() };
    assert_eq!(fingerprint.precheck(&app, &code).told(), used());
    let id = Machine { machine_id: "other".into(), ..machine };
    assert_eq!(id.precheck(&app, &code).told(), used());
}

#[test]
fn another_binding_opens_a_new_activation_and_the_old_one_is_gone() {
    let app = TestApp::start();
    let (code, machine) = (app.issue(), Machine::new(1));
    let old = machine.install(&app, &code);
    let moved = Machine { hostname: "other.example.com".into(), ..machine.clone() };
    let new = moved.install(&app, &code);
    assert_ne!(old.id, new.id);
    assert_eq!(old.confirm(&app).told(), told(404, "activation_not_found"));
    assert_eq!(old.release(&app).told(), told(404, "activation_not_found"));
    assert_eq!(Machine::new(2).precheck(&app, &code).told(), used());
    assert_eq!(new.confirm(&app).status, 200);
}

#[test]
fn a_changed_address_alone_is_another_binding() {
    let app = TestApp::start();
    let (code, machine) = (app.issue(), Machine::new(1));
    let old = machine.install(&app, &code);
    let moved = Machine { public_ip: "8.8.8.8".into(), ..machine };
    assert_ne!(moved.install(&app, &code).id, old.id);
}

#[test]
fn changed_bindings_count_and_one_too_many_leaves_the_open_activation_open() {
    let app = TestApp::start();
    let (code, machine) = (app.issue(), Machine::new(1));
    let binding = |n: u32| Machine { hostname: format!("ns{n}.a.example"), ..machine.clone() };
    let first = binding(1).install(&app, &code);
    let last = (2..=5).fold(first, |_, n| binding(n).install(&app, &code));
    let sixth = binding(6);
    let token = machine.prechecked(&app, &code);
    let refused = sixth.activate(&app, &code, &token);
    assert_eq!(refused.told(), told(403, "install_code_max_activations"));
    assert_eq!(activation_of(&binding(5).activate(&app, &code, &token)), last);
    assert_eq!(last.confirm(&app).status, 200);
}

#[test]
fn a_code_is_activated_five_times_and_restored_each_time_but_not_a_sixth() {
    let app = TestApp::start();
    let code = app.issue();
    let early = Machine::new(7).prechecked(&app, &code);
    for number in 1..=5 {
        let activation = Machine::new(number).install(&app, &code);
        assert_eq!(restored(&activation.release(&app)), (200, true), "{number}");
    }
    let app = app.restart();
    assert_eq!(free(&app, &code), told(403, "install_code_max_activations"));
    let sixth = Machine::new(7).activate(&app, &code, &early);
    assert_eq!(sixth.told(), told(403, "install_code_max_activations"));
}

#[test]
fn after_confirm_the_code_is_used_for_every_machine_and_release_changes_nothing() {
    let app = TestApp::start();
    let (code, machine) = (app.issue(), Machine::new(1));
    let token = machine.prechecked(&app, &code);
    let activation = machine.install(&app, &code);
    assert_eq!(activation.confirm(&app).status, 200);
    for _ in 0..2 {
        let answer = activation.release(&app);
        assert_eq!((answer.data("status"), restored(&answer)), ("confirmed".into(), (200, false)));
        app.clock.advance(700);
    }
    assert_eq!(machine.precheck(&app, &code).told(), used());
    assert_eq!(free(&app, &code), used());
    let app = app.restart();
    assert_eq!(activation.release(&app).data("status"), "confirmed");
    assert_eq!(machine.activate(&app, &code, &token).code(), "precheck_token_invalid");
}

#[test]
fn a_released_activation_is_neither_confirmed_nor_released_again() {
    let app = TestApp::start();
    let activation = Machine::new(1).install(&app, &app.issue());
    assert_eq!(activation.release(&app).status, 200);
    let app = app.restart();
    assert_eq!(activation.release(&app).told(), told(404, "activation_not_found"));
    assert_eq!(activation.confirm(&app).told(), told(404, "activation_not_found"));
}

#[test]
fn a_release_gives_the_code_back_for_300_seconds_from_now() {
    let app = TestApp::start();
    let code = app.issue();
    let activation = Machine::new(1).install(&app, &code);
    app.clock.advance(100);
    assert_eq!(restored(&activation.release(&app)), (200, true));
    app.clock.advance(299);
    assert_eq!(free(&app, &code), told(200, ""));
    app.clock.advance(1);
    assert_eq!(free(&app, &code), told(403, "install_code_expired"));
}

#[test]
fn a_release_never_shortens_the_life_of_a_code() {
    let app = TestApp::start_with(|c| c.push(("codes.restored_ttl_seconds", "10".into())));
    let code = app.issue();
    let activation = Machine::new(1).install(&app, &code);
    app.clock.advance(100);
    assert_eq!(restored(&activation.release(&app)), (200, true));
    app.clock.advance(199);
    assert_eq!(free(&app, &code), told(200, ""));
    app.clock.advance(1);
    assert_eq!(free(&app, &code), told(403, "install_code_expired"));
}

#[test]
fn no_release_prolongs_a_code_beyond_an_hour_from_its_first_issue() {
    let app = TestApp::start_with(|c| c.push(("codes.install_token_ttl_seconds", "7200".into())));
    let code = app.issue();
    let activation = Machine::new(1).install(&app, &code);
    app.clock.advance(3500);
    assert_eq!(restored(&activation.release(&app)), (200, true));
    app.clock.advance(99);
    assert_eq!(free(&app, &code), told(200, ""));
    app.clock.advance(1);
    assert_eq!(free(&app, &code), told(403, "install_code_expired"));
}

#[test]
fn past_its_max_lifetime_a_released_code_is_expired_but_an_earlier_precheck_still_counts() {
    let app = TestApp::start_with(|c| c.push(("codes.max_lifetime_seconds", "400".into())));
    let (code, other) = (app.issue(), Machine::new(2));
    let activation = Machine::new(1).install(&app, &code);
    let early = restored(&activation.release(&app));
    assert_eq!(early, (200, true));
    app.clock.advance(200);
    let token = other.prechecked(&app, &code);
    let activation = Machine::new(1).install(&app, &code);
    app.clock.advance(200);
    assert_eq!(restored(&activation.release(&app)), (200, false));
    assert_eq!(free(&app, &code), told(403, "install_code_expired"));
    assert_eq!(other.activate(&app, &code, &token).status, 200);
}

#[test]
fn a_precheck_after_the_expiry_allows_no_activate() {
    let app = TestApp::start_with(|c| c.push(("codes.max_lifetime_seconds", "300".into())));
    let (code, machine) = (app.issue(), Machine::new(1));
    let activation = machine.install(&app, &code);
    app.clock.advance(300);
    // The holder of the open activation is let through again; that prolongs nothing.
    let late = machine.prechecked(&app, &code);
    assert_eq!(restored(&activation.release(&app)), (200, false));
    assert_eq!(machine.activate(&app, &code, &late).told(), told(403, "install_code_expired"));
}

#[test]
fn expired_and_used_codes_are_distinguished_after_a_restart() {
    let app = TestApp::start();
    let (expired, spent, open) = (app.issue(), app.issue(), app.issue());
    assert_eq!(Machine::new(1).install(&app, &spent).confirm(&app).status, 200);
    let activation = Machine::new(2).install(&app, &open);
    app.clock.advance(300);
    let app = app.restart();
    assert_eq!(free(&app, &expired), told(403, "install_code_expired"));
    assert_eq!(free(&app, &spent), used());
    assert_eq!(free(&app, &open), used());
    assert_eq!(activation.confirm(&app).status, 200);
}

#[test]
fn a_changed_lifetime_applies_to_codes_issued_afterwards() {
    let app = TestApp::start();
    let before = app.issue();
    app.reload_now(|config| config.lifetimes.code = 10);
    let after = app.issue();
    app.clock.advance(10);
    assert_eq!(free(&app, &after), told(403, "install_code_expired"));
    assert_eq!(free(&app, &before), told(200, ""));
}

#[test]
fn closed_codes_and_activations_are_kept_for_the_retention_and_then_deleted() {
    let app = TestApp::start_with(|c| c.push(("storage.retention_days", "2".into())));
    let (expired, spent) = (app.issue(), app.issue());
    let activation = Machine::new(1).install(&app, &spent);
    assert_eq!(activation.confirm(&app).status, 200);
    // The newest row stays where it is for the sake of the numbers; these are newer.
    Machine::new(2).install(&app, &app.issue());
    app.clock.advance(2 * DAY - 60);
    assert_eq!(free(&app, &expired), told(403, "install_code_expired"));
    assert_eq!(free(&app, &spent), used());
    assert_eq!(activation.release(&app).data("status"), "confirmed");
    app.clock.advance(DAY);
    let not_found = |code: &str| told(404, &format!("{code}_not_found"));
    wait_until("the expired code is forgotten", || {
        free(&app, &expired) == not_found("install_code")
    });
    // They are looked for once a minute.
    wait_until("the used code is forgotten", || {
        app.clock.advance(60);
        free(&app, &spent) == not_found("install_code")
    });
    wait_until("the activation is forgotten", || {
        app.clock.advance(60);
        activation.release(&app).told() == not_found("activation")
    });
}
