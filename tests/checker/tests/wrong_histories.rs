//! Wrong histories of each kind, and the violations that the checker reports.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use iptunnel_checker::check::Broken;
use iptunnel_checker::history::Grant;
use iptunnel_checker::{Answer, Call, Operation, Rules, Violation, check};

const RULES: Rules =
    Rules { max_activations: 5, lifetimes: None, revocation_reaches: 100, finished: false };

/// A history of code 1, which is issued at time 0. The first two numbers of an operation are the times of
/// its request and its answer.
struct History(Vec<Operation>);

impl History {
    fn new() -> Self {
        Self(vec![operation(0, 1, Call::Issue { code: 1 }, Answer::Issued)])
    }
    fn then(mut self, invoked: u64, returned: u64, call: Call, answer: Answer) -> Self {
        self.0.push(operation(invoked, returned, call, answer));
        self
    }
    fn found(&self) -> Vec<Violation> {
        check(&self.0, &RULES)
    }
    #[track_caller]
    fn passes(self) {
        let found = self.found();
        assert!(found.is_empty(), "{}", found[0]);
    }
    /// Expects exactly one violation of this kind and returns its text.
    #[track_caller]
    fn fails(self, broken: Broken) -> String {
        let found: Vec<Violation> =
            self.found().into_iter().filter(|violation| violation.broken == broken).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].to_string()
    }
}

fn operation(invoked: u64, returned: u64, call: Call, answer: Answer) -> Operation {
    Operation { client: 1, server: 0, invoked, returned, call, answer }
}
fn precheck(machine: u32) -> Call {
    Call::Precheck { code: 1, machine }
}
fn activate(machine: u32, binding: u32) -> Call {
    Call::Activate { code: 1, machine, binding, prechecked: (0, 0) }
}
fn confirm(activation: u32) -> Call {
    Call::Confirm { code: 1, activation }
}
fn release(activation: u32) -> Call {
    Call::Release { code: 1, activation }
}
fn granted(activation: u32) -> Answer {
    Answer::Granted(Grant { activation, token: activation })
}
const RESTORED: Answer = Answer::Released { restored: true };

#[test]
fn a_full_installation_is_right() {
    History::new()
        .then(2, 3, precheck(1), Answer::Ready)
        .then(4, 5, activate(1, 0), granted(1))
        .then(6, 7, activate(1, 0), granted(1))
        .then(6, 7, precheck(2), Answer::Used)
        .then(8, 9, activate(1, 1), granted(2))
        .then(10, 11, confirm(1), Answer::ActivationNotFound)
        .then(12, 13, release(2), RESTORED)
        .then(14, 15, release(2), Answer::ActivationNotFound)
        .then(16, 17, activate(2, 0), granted(3))
        .then(18, 20, confirm(3), Answer::Confirmed)
        .then(18, 20, release(3), Answer::StaysConfirmed)
        .then(21, 22, confirm(3), Answer::TokenUsed)
        .then(21, 22, activate(2, 0), Answer::Used)
        .passes();
}

#[test]
fn either_of_two_racing_machines_may_win() {
    for (one, two) in [(granted(1), Answer::Used), (Answer::Used, granted(1))] {
        History::new().then(2, 9, activate(1, 0), one).then(3, 8, activate(2, 0), two).passes();
    }
}

#[test]
fn an_unanswered_request_may_have_happened_or_not_or_may_happen_later() {
    let history = || History::new().then(2, 3, activate(1, 0), Answer::Perhaps);
    history().then(4, 5, activate(2, 0), granted(1)).passes();
    history().then(4, 5, activate(2, 0), Answer::Used).passes();
    history().then(4, 5, precheck(2), Answer::Ready).then(6, 7, precheck(2), Answer::Used).passes();
    history()
        .then(4, 5, activate(1, 0), granted(1))
        .then(6, 7, confirm(1), Answer::Confirmed)
        .passes();
    let text = history()
        .then(4, 5, precheck(2), Answer::Used)
        .then(6, 7, precheck(2), Answer::Ready)
        .fails(Broken::OneOrder);
    assert!(text.contains("the last answer could have been: code used"), "{text}");
}

#[test]
fn a_request_that_the_store_refused_did_not_happen() {
    History::new()
        .then(2, 3, activate(1, 0), Answer::Nothing)
        .then(4, 5, activate(2, 0), granted(1))
        .passes();
    History::new()
        .then(2, 3, activate(1, 0), Answer::Nothing)
        .then(4, 5, activate(2, 0), Answer::Used)
        .fails(Broken::OneOrder);
}

#[test]
fn a_code_granted_to_two_machines_is_reported_with_only_these_two_answers() {
    let text = History::new()
        .then(2, 3, precheck(1), Answer::Ready)
        .then(2, 3, precheck(2), Answer::Ready)
        .then(4, 5, activate(1, 0), granted(1))
        .then(4, 6, activate(2, 0), granted(2))
        .then(7, 8, confirm(1), Answer::Confirmed)
        .then(9, 9, confirm(2), Answer::ActivationNotFound)
        .fails(Broken::OneOrder);
    let shown = "code 1: no order explains the answers
no order explains these answers together:
        0.000004 -       0.000005  client   1, server 0  activate by machine 1 for host 0  ->  granted activation 1 with token 1
        0.000004 -       0.000006  client   1, server 0  activate by machine 2 for host 0  ->  granted activation 2 with token 2
  the last answer could have been: code used
  2 other operations on this code before it do not explain it, whatever their effect
";
    assert_eq!(text, shown);
}

#[test]
fn a_code_confirmed_by_two_machines_is_reported_without_a_search() {
    let wrong = || {
        History::new()
            .then(4, 5, activate(1, 0), granted(1))
            .then(4, 6, activate(2, 0), granted(2))
            .then(7, 8, confirm(1), Answer::Confirmed)
            .then(7, 8, confirm(2), Answer::Confirmed)
    };
    wrong().fails(Broken::OneOrder);
    let text = wrong().fails(Broken::OneInstallation);
    assert!(
        text.contains("confirm activation 1") && text.contains("confirm activation 2"),
        "{text}"
    );
}

#[test]
fn an_answered_confirm_that_is_lost_is_reported() {
    let text = History::new()
        .then(2, 3, activate(1, 0), granted(1))
        .then(4, 5, confirm(1), Answer::Confirmed)
        .then(8, 9, precheck(2), Answer::Ready)
        .fails(Broken::OneOrder);
    assert!(text.contains("confirm activation 1  ->  confirmed"), "{text}");
    assert!(!text.contains("activate by"), "the contradiction does not need the grant: {text}");
    assert!(text.contains("precheck by machine 2  ->  ready"), "{text}");
    assert!(text.contains("could have been: code used"), "{text}");
    History::new()
        .then(2, 3, activate(1, 0), granted(1))
        .then(4, 5, confirm(1), Answer::Confirmed)
        .then(6, 7, confirm(1), Answer::Confirmed)
        .fails(Broken::OneOrder);
    History::new()
        .then(2, 3, activate(1, 0), granted(1))
        .then(4, 5, confirm(1), Answer::Confirmed)
        .then(6, 7, release(1), RESTORED)
        .fails(Broken::OneOrder);
}

#[test]
fn an_answered_activation_that_is_lost_is_reported() {
    History::new()
        .then(2, 3, activate(1, 0), granted(1))
        .then(4, 5, activate(1, 0), granted(2))
        .fails(Broken::OneOrder);
    History::new()
        .then(2, 3, activate(1, 0), granted(1))
        .then(4, 5, confirm(1), Answer::ActivationNotFound)
        .fails(Broken::OneOrder);
}

#[test]
fn a_release_that_restores_the_code_twice_is_reported() {
    let text = History::new()
        .then(2, 3, activate(1, 0), granted(1))
        .then(4, 6, release(1), RESTORED)
        .then(5, 7, release(1), RESTORED)
        .fails(Broken::OneOrder);
    assert!(text.contains("could have been: activation not found"), "{text}");
}

#[test]
fn an_answered_release_that_is_lost_is_reported() {
    History::new()
        .then(2, 3, activate(1, 0), granted(1))
        .then(4, 5, release(1), RESTORED)
        .then(6, 7, precheck(2), Answer::Used)
        .fails(Broken::OneOrder);
    History::new()
        .then(2, 3, activate(1, 0), granted(1))
        .then(4, 5, release(1), Answer::Released { restored: false })
        .fails(Broken::OneOrder);
}

#[test]
fn a_grant_after_the_confirm_is_reported() {
    let text = History::new()
        .then(2, 3, activate(1, 0), granted(1))
        .then(4, 5, confirm(1), Answer::Confirmed)
        .then(6, 7, activate(2, 0), granted(2))
        .fails(Broken::OneOrder);
    assert!(text.contains("activate by machine 2 for host 0  ->  granted activation 2"), "{text}");
}

#[test]
fn a_repeat_from_an_earlier_state_is_reported() {
    // The machine changed to another host name, but the answer is its earlier activation.
    let text = History::new()
        .then(2, 3, activate(1, 0), granted(1))
        .then(4, 5, activate(1, 1), granted(2))
        .then(6, 7, activate(1, 0), granted(1))
        .fails(Broken::OneOrder);
    assert!(text.contains("could have been: granted a new activation"), "{text}");
    // The same activation with another token.
    let other = Answer::Granted(Grant { activation: 1, token: 9 });
    History::new()
        .then(2, 3, activate(1, 0), granted(1))
        .then(4, 5, activate(1, 0), other)
        .fails(Broken::OneOrder);
    // A repeat after the release.
    History::new()
        .then(2, 3, activate(1, 0), granted(1))
        .then(4, 5, release(1), RESTORED)
        .then(6, 7, activate(1, 0), granted(1))
        .fails(Broken::OneOrder);
}

#[test]
fn an_unknown_answer_is_reported() {
    let error = Answer::Other("500 internal_error".into());
    let text = History::new().then(2, 3, precheck(1), error).fails(Broken::OneOrder);
    assert!(
        text.contains("500 internal_error") && text.contains("could have been: ready"),
        "{text}"
    );
    History::new().then(2, 3, precheck(1), Answer::Expired).fails(Broken::OneOrder);
}

#[test]
fn a_code_refused_for_too_many_activations_too_early_or_too_late_is_reported() {
    let times = |count: u32| {
        (1..=count).fold(History::new(), |history, n| {
            let at = u64::from(n) * 10;
            history.then(at, at + 1, activate(n, 0), granted(n)).then(
                at + 2,
                at + 3,
                release(n),
                RESTORED,
            )
        })
    };
    times(5).then(90, 91, activate(9, 0), Answer::MaxActivations).passes();
    times(4).then(90, 91, activate(9, 0), Answer::MaxActivations).fails(Broken::OneOrder);
    times(6).fails(Broken::OneOrder);
}

#[test]
fn a_code_that_no_machine_could_finish_is_burnt() {
    let finished = Rules { finished: true, ..RULES };
    let burnt = History::new().then(2, 3, activate(2, 0), Answer::Perhaps).then(
        4,
        5,
        precheck(1),
        Answer::Used,
    );
    let found = check(&burnt.0, &finished);
    assert_eq!(found.iter().map(|found| found.broken).collect::<Vec<_>>(), [Broken::NothingBurnt]);
    assert!(found[0].to_string().contains("precheck by machine 1  ->  code used"), "{}", found[0]);
    let done = History::new().then(2, 3, activate(1, 0), granted(1)).then(
        4,
        5,
        confirm(1),
        Answer::TokenUsed,
    );
    // The answer says that the installation was confirmed before.
    assert!(check(&done.0, &finished).iter().all(|found| found.broken != Broken::NothingBurnt));
}

#[test]
fn an_activation_of_two_codes_is_reported() {
    let mut history = History::new().then(2, 3, activate(1, 0), granted(1));
    history.0.push(operation(4, 5, Call::Issue { code: 2 }, Answer::Issued));
    let call = Call::Activate { code: 2, machine: 2, binding: 0, prechecked: (0, 0) };
    history.0.push(operation(6, 7, call, granted(1)));
    let text = history.fails(Broken::OwnNames);
    assert!(text.starts_with("code 2: "), "{text}");
}

#[test]
fn a_revoked_server_that_is_accepted_is_reported() {
    let (register, revoke, check_in) =
        (Call::Register { node: 7 }, Call::Revoke { node: 7 }, Call::CheckIn { node: 7 });
    let history = || {
        History::new()
            .then(2, 3, register, Answer::Registered)
            .then(4, 5, check_in, Answer::Alive)
            .then(6, 7, revoke, Answer::Revoked)
    };
    history().then(8, 9, check_in, Answer::Revoked).then(8, 9, register, Answer::Revoked).passes();
    history().then(8, 9, check_in, Answer::Alive).fails(Broken::Revocation);
    history().then(8, 9, register, Answer::Registered).fails(Broken::Revocation);
    history().then(8, 9, check_in, Answer::NotRegistered).fails(Broken::Revocation);
    // Another server learns of the revocation a little later.
    let elsewhere = |at| {
        let mut history = history();
        let operation = operation(at, at + 1, check_in, Answer::Alive);
        history.0.push(Operation { server: 1, ..operation });
        history
    };
    elsewhere(9).passes();
    elsewhere(200).fails(Broken::Revocation);
    // No operator revoked the server.
    History::new()
        .then(2, 3, register, Answer::Registered)
        .then(4, 5, check_in, Answer::Revoked)
        .fails(Broken::Revocation);
    History::new().then(2, 3, check_in, Answer::NotRegistered).passes();
}
