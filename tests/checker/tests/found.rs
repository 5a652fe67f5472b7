//! Histories of real servers in which something was found, cut down to the code that shows it: they stay
//! wrong, whatever becomes of the checker. What they tell of is in `docs/evidence.md`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use iptunnel_checker::check::Broken;
use iptunnel_checker::{Rules, check, history};

const RULES: Rules =
    Rules { max_activations: 255, lifetimes: None, revocation_reaches: 0, finished: true };

/// What is broken in a history, and what is said of it.
fn found(file: &str) -> (Vec<Broken>, String) {
    let path = format!("{}/found/{file}.jsonl", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read(path).unwrap();
    let violations = check(&history::read(&text[..]).unwrap(), &RULES);
    let broken = violations.iter().map(|violation| violation.broken).collect();
    (broken, violations.iter().map(ToString::to_string).collect())
}

#[test]
fn a_release_beside_a_racing_machine_that_leaves_the_code_to_nobody() {
    let (broken, said) = found("released-and-burnt");
    assert_eq!(broken, [Broken::OneOrder, Broken::NothingBurnt], "{said}");
    assert!(said.contains("release activation 759  ->  released, code not restored"), "{said}");
    assert!(said.contains("the last of them could have been: released, code restored"), "{said}");
}

#[test]
fn a_machine_that_hears_used_while_its_own_release_is_under_way() {
    let (broken, said) = found("used-while-free");
    assert_eq!(broken, [Broken::OneOrder], "{said}");
    assert!(said.contains("precheck by machine 387  ->  code used"), "{said}");
    assert!(said.contains("the last of them could have been: ready"), "{said}");
}

#[test]
fn a_machine_that_is_granted_another_host_name_after_its_install_is_confirmed() {
    let (broken, said) = found("granted-after-confirmed");
    assert_eq!(broken, [Broken::OneOrder], "{said}");
    assert!(said.contains("confirm activation 3377  ->  confirmed"), "{said}");
    assert!(
        said.contains("activate by machine 2119 for host 1  ->  granted activation 3379"),
        "{said}"
    );
    assert!(said.contains("the last of them could have been: code used"), "{said}");
}

#[test]
fn a_code_that_is_confirmed_for_two_installations() {
    let (broken, said) = found("two-installations");
    assert_eq!(broken, [Broken::OneOrder, Broken::OneInstallation], "{said}");
    assert!(said.contains("confirm activation 4811  ->  confirmed"), "{said}");
    assert!(said.contains("confirm activation 4815  ->  confirmed"), "{said}");
}

#[test]
fn a_confirm_that_is_refused_for_a_release_that_another_server_does_not_show_yet() {
    let (broken, said) = found("not-found-before-the-release");
    assert_eq!(broken, [Broken::OneOrder], "{said}");
    assert!(said.contains("confirm activation 4459  ->  activation not found"), "{said}");
    assert!(said.contains("precheck by machine 2864  ->  code used"), "{said}");
}

#[test]
fn an_activation_that_is_not_found_on_a_primary_that_was_left_behind() {
    let (broken, said) = found("not-found-on-an-old-primary");
    assert_eq!(broken, [Broken::OneOrder], "{said}");
    assert!(said.contains("release activation 3395  ->  activation not found"), "{said}");
    assert!(said.contains("the last of them could have been: released, code restored"), "{said}");
}
