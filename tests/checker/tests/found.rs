//! Histories of real servers in which the checker found a violation, reduced to the code with the violation.
//! Every later version of the checker must find it again. `docs/evidence.md` describes them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use iptunnel_checker::check::Broken;
use iptunnel_checker::{Rules, check, history};

const RULES: Rules =
    Rules { max_activations: 255, lifetimes: None, revocation_reaches: 0, finished: true };

/// Returns the violations in a history, and their text.
fn found(file: &str) -> (Vec<Broken>, String) {
    let path = format!("{}/found/{file}.jsonl", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read(path).unwrap();
    let violations = check(&history::read(&text[..]).unwrap(), &RULES);
    let broken = violations.iter().map(|violation| violation.broken).collect();
    (broken, violations.iter().map(ToString::to_string).collect())
}

#[test]
fn a_release_that_races_another_machine_and_burns_the_code_is_found() {
    let (broken, text) = found("released-and-burnt");
    assert_eq!(broken, [Broken::OneOrder, Broken::NothingBurnt], "{text}");
    assert!(text.contains("release activation 759  ->  released, code not restored"), "{text}");
    assert!(text.contains("the last answer could have been: released, code restored"), "{text}");
}

#[test]
fn code_used_for_the_holder_during_its_own_release_is_found() {
    let (broken, text) = found("used-while-free");
    assert_eq!(broken, [Broken::OneOrder], "{text}");
    assert!(text.contains("precheck by machine 387  ->  code used"), "{text}");
    assert!(text.contains("the last answer could have been: ready"), "{text}");
}

#[test]
fn a_grant_for_another_host_after_the_confirm_is_found() {
    let (broken, text) = found("granted-after-confirmed");
    assert_eq!(broken, [Broken::OneOrder], "{text}");
    assert!(text.contains("confirm activation 3377  ->  confirmed"), "{text}");
    assert!(
        text.contains("activate by machine 2119 for host 1  ->  granted activation 3379"),
        "{text}"
    );
    assert!(text.contains("the last answer could have been: code used"), "{text}");
}

#[test]
fn a_code_with_two_confirmed_installations_is_found() {
    let (broken, text) = found("two-installations");
    assert_eq!(broken, [Broken::OneOrder, Broken::OneInstallation], "{text}");
    assert!(text.contains("confirm activation 4811  ->  confirmed"), "{text}");
    assert!(text.contains("confirm activation 4815  ->  confirmed"), "{text}");
}

#[test]
fn a_confirm_refused_for_a_release_that_another_server_does_not_show_yet_is_found() {
    let (broken, text) = found("not-found-before-the-release");
    assert_eq!(broken, [Broken::OneOrder], "{text}");
    assert!(text.contains("confirm activation 4459  ->  activation not found"), "{text}");
    assert!(text.contains("precheck by machine 2864  ->  code used"), "{text}");
}

#[test]
fn an_activation_missing_on_an_old_primary_is_found() {
    let (broken, text) = found("not-found-on-an-old-primary");
    assert_eq!(broken, [Broken::OneOrder], "{text}");
    assert!(text.contains("release activation 3395  ->  activation not found"), "{text}");
    assert!(text.contains("the last answer could have been: released, code restored"), "{text}");
}
