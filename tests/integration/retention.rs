//! Retention: what is deleted and when. Also checks that leaving the cache changes no reply.

use crate::harness::{Activation, Machine, TestApp, alone, wait_until};

const DAY: u64 = 86_400;
const HOUR: u64 = 3600;

fn kept_for_days(days: &str) -> TestApp {
    TestApp::start_with(|flags| flags.push(("storage.retention_days", days.to_owned())))
}

fn in_memory(app: &TestApp) -> (u64, u64) {
    let metrics = app.get_admin("/metrics").text;
    let value = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.expect(name).trim().parse().unwrap()
    };
    (value("iptunnel_codes_in_memory "), value("iptunnel_activations_in_memory "))
}

fn empty_memory(app: &TestApp) {
    wait_until("memory holds nothing", || in_memory(app) == (0, 0));
}

/// One code and activation in each final state.
struct Past {
    expired: String,
    confirmed: (String, Activation),
    released: (String, Activation),
    lapsed: (String, Activation),
}

impl Past {
    fn make(app: &TestApp) -> Self {
        let installed = |number| {
            let code = app.issue();
            (code.clone(), Machine::new(number).install(app, &code))
        };
        let (confirmed, released, lapsed) = (installed(1), installed(2), installed(3));
        assert_eq!(confirmed.1.confirm(app).status, 200);
        assert_eq!(released.1.release(app).status, 200);
        Self { expired: app.issue(), confirmed, released, lapsed }
    }

    /// Returns the reply to another machine for each code, and the reply to a release of each activation.
    fn told(&self, app: &TestApp) -> [String; 7] {
        let code = |code: &str| Machine::new(9).precheck(app, code).code();
        let release = |activation: &Activation| {
            let answer = activation.release(app);
            if answer.status == 200 { answer.data("status") } else { answer.code() }
        };
        [
            code(&self.expired),
            code(&self.confirmed.0),
            code(&self.released.0),
            code(&self.lapsed.0),
            release(&self.confirmed.1),
            release(&self.released.1),
            release(&self.lapsed.1),
        ]
    }
}

const REMEMBERED: [&str; 7] = [
    "install_code_expired",
    "install_code_used",
    "install_code_expired",
    "install_code_used",
    "confirmed",
    "activation_not_found",
    "released",
];
const FORGOTTEN: [&str; 7] = [
    "install_code_not_found",
    "install_code_not_found",
    "install_code_not_found",
    "install_code_not_found",
    "activation_not_found",
    "activation_not_found",
    "activation_not_found",
];

#[test]
fn a_used_code_leaves_memory_when_its_install_is_over_and_stays_used() {
    if !alone() {
        return;
    }
    let app = TestApp::start();
    let (open, done) = (app.issue(), app.issue());
    let opened = Machine::new(1).install(&app, &open);
    let confirmed = Machine::new(2).install(&app, &done);
    assert_eq!(confirmed.confirm(&app).status, 200);
    wait_until("memory holds only the open install", || in_memory(&app) == (1, 1));
    assert_eq!(Machine::new(9).precheck(&app, &done).code(), "install_code_used");
    assert_eq!(confirmed.confirm(&app).code(), "token_used");
    assert_eq!(opened.release(&app).status, 200);
    assert_eq!(Machine::new(9).precheck(&app, &open).status, 200);
}

#[test]
fn leaving_the_cache_changes_no_reply() {
    let app = TestApp::start();
    let past = Past::make(&app);
    app.clock.advance(HOUR);
    assert_eq!(past.told(&app), REMEMBERED);
    empty_memory(&app);
    for _ in 0..2 {
        assert_eq!(past.told(&app), REMEMBERED);
    }
    let app = app.restart();
    assert_eq!(past.told(&app), REMEMBERED, "nor does a restart");
}

#[test]
fn a_code_is_kept_until_its_retention_ends() {
    let app = kept_for_days("2");
    let past = Past::make(&app);
    app.clock.advance(2 * DAY - 60);
    empty_memory(&app);
    // The server deletes old records by itself; a restart triggers it once more.
    let app = app.restart();
    assert_eq!(past.told(&app), REMEMBERED);
}

#[test]
fn closed_codes_and_activations_are_deleted_after_their_retention() {
    let app = kept_for_days("2");
    let past = Past::make(&app);
    app.clock.advance(2 * DAY + 2 * HOUR);
    // Something newer, so that none of the above is the newest of all.
    let new = app.issue();
    let activation = Machine::new(5).install(&app, &new);
    wait_until("they are forgotten", || past.told(&app) == FORGOTTEN);
    let app = app.restart();
    assert_eq!(past.told(&app), FORGOTTEN);
    assert_eq!(activation.confirm(&app).status, 200, "what is new stays");
}

#[test]
fn the_newest_code_is_deleted_after_its_retention_too() {
    let app = kept_for_days("2");
    let code = app.issue();
    app.clock.advance(2 * DAY + 2 * HOUR);
    wait_until("it is forgotten", || {
        Machine::new(1).precheck(&app, &code).code() == "install_code_not_found"
    });
}

#[test]
fn a_lapsed_activation_cannot_be_confirmed_at_any_later_time() {
    let app = TestApp::start();
    let code = app.issue();
    let activation = Machine::new(1).install(&app, &code);
    app.clock.advance(599);
    assert_eq!(activation.release(&app).status, 200, "in the last second it is open");
    let activation = Machine::new(1).install(&app, &code);
    app.clock.advance(600);
    assert_eq!(activation.confirm(&app).code(), "token_invalid");
    app.clock.advance(HOUR);
    empty_memory(&app);
    assert_eq!(activation.confirm(&app).code(), "token_invalid");
    assert_eq!(Machine::new(1).precheck(&app, &code).code(), "install_code_used");
}

#[test]
fn a_release_finds_an_activation_that_left_the_cache() {
    let app = TestApp::start_with(|flags| {
        flags.push(("codes.install_token_ttl_seconds", (10 * HOUR).to_string()));
    });
    let code = app.issue();
    let activation = Machine::new(1).install(&app, &code);
    let app = app.restart();
    app.clock.advance(5 * HOUR);
    let released = activation.release(&app);
    assert_eq!(released.data("status"), "released", "{}", released.text);
    assert_eq!(released.json()["data"]["install_code_restored"], false, "older than an hour");
    assert_eq!(Machine::new(1).precheck(&app, &code).code(), "install_code_expired");
}
