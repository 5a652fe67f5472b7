//! A machine's clock that is briefly wrong and then corrected has no lasting effect.

use crate::harness::{Answer, Machine, START, TestApp, alone, wait_until};
use serde_json::{Value, json};

const DAY: u64 = 86_400;
const MONTH: u64 = 30 * DAY;
const TEN_YEARS: u64 = 3650 * DAY;

fn with_settings(settings: &[(&'static str, &str)]) -> TestApp {
    let settings = settings.iter().map(|(key, value)| (*key, (*value).to_owned()));
    TestApp::start_with(|flags| flags.extend(settings))
}

/// Runs `does` while the clock is `ahead` by so many seconds.
fn while_ahead<T>(app: &TestApp, ahead: u64, does: impl FnOnce() -> T) -> T {
    app.clock.set(START + ahead);
    let done = does();
    app.clock.set(START + 1);
    done
}

fn refused(answer: &Answer) -> bool {
    answer.told() == (429, "rate_limit_exceeded".into())
}

#[test]
fn limits_start_a_new_window_once_the_clock_is_corrected() {
    let app = with_settings(&[("limits.issue_per_session_hour", "2")]);
    let mut browser = app.browser("slowdns");
    while_ahead(&app, MONTH, || {
        browser.open();
        assert_eq!([1, 2].map(|_| browser.issue().status), [201, 201]);
        assert!(refused(&browser.issue()));
    });
    // The session from that time has expired; opening the page again begins a new one.
    browser.open();
    assert_eq!([1, 2].map(|_| browser.issue().status), [201, 201]);
    let wait = || {
        let answer = browser.issue();
        assert!(refused(&answer));
        answer.header("retry-after").parse::<u64>().unwrap()
    };
    let first = wait();
    app.clock.advance(60);
    assert_eq!(first - wait(), 60, "time goes on");
    let app = app.restart();
    let mut browser = app.browser("slowdns");
    browser.open();
    assert_eq!(browser.issue().status, 201);
}

#[test]
fn a_limit_reached_while_the_clock_was_ahead_is_not_reached_after_the_correction() {
    let app = with_settings(&[("limits.precheck_per_machine_day", "1")]);
    let machine = Machine::new(1);
    let code = app.issue();
    while_ahead(&app, MONTH, || {
        machine.precheck(&app, &code);
        assert!(refused(&machine.precheck(&app, &code)));
    });
    assert_eq!(machine.precheck(&app, &code).status, 200);
    assert!(refused(&machine.precheck(&app, &code)));
    let app = app.restart();
    assert!(refused(&machine.precheck(&app, &code)), "what is charged now counts");
}

#[test]
fn a_step_back_of_the_clock_is_counted() {
    let app = TestApp::start();
    assert_eq!(app.metric("iptunnel_clock_set_backs_total"), 0.0);
    while_ahead(&app, MONTH, || app.issue());
    if alone() {
        wait_until("the step is noticed", || app.metric("iptunnel_clock_set_backs_total") == 1.0);
        let seconds = app.metric("iptunnel_clock_set_back_seconds_total");
        assert!((seconds - MONTH as f64).abs() < 2.0, "{seconds}");
    }
}

#[test]
fn a_code_dated_in_the_future_is_expired_also_after_a_restart() {
    let app = with_settings(&[("codes.ttl_seconds", "3")]);
    let code = while_ahead(&app, TEN_YEARS, || app.issue());
    let told = |app: &TestApp| Machine::new(1).precheck(app, &code).code();
    assert_eq!(told(&app), "install_code_expired");
    app.clock.advance(20);
    assert_eq!(told(&app), "install_code_expired");
    let app = app.restart();
    assert_eq!(told(&app), "install_code_expired");
}

#[test]
fn tokens_and_activations_dated_in_the_future_are_expired() {
    let app = TestApp::start();
    let (machine, mut browser) = (Machine::new(1), app.browser("slowdns"));
    let code = app.issue();
    let (token, activation) = while_ahead(&app, 200, || {
        browser.open();
        let token = machine.prechecked(&app, &code);
        let other = app.issue();
        (token, Machine::new(2).install(&app, &other))
    });
    assert_eq!(browser.issue().code(), "browser_session_required");
    assert_eq!(machine.activate(&app, &code, &token).code(), "precheck_token_invalid");
    assert_eq!(activation.confirm(&app).code(), "token_invalid");
    let released = activation.release(&app);
    assert_eq!(released.json()["data"]["install_code_restored"], false, "{}", released.text);
    // Activations from before the clock error continue.
    let activation = machine.install(&app, &code);
    assert_eq!(activation.confirm(&app).status, 200);
}

fn last_checkin(app: &TestApp) -> Value {
    app.get_as(&app.master(), "/status").json()["servers"][0]["last_checkin"].clone()
}

/// Registers a server and returns its id.
fn registered(app: &TestApp) -> String {
    let body = json!({"token": app.master(), "ip": "8.8.8.8", "hostname": "one.example.com"});
    app.post("/register", &body).json()["server_id"].as_str().unwrap().to_owned()
}

#[test]
fn a_new_check_in_replaces_one_dated_in_the_future() {
    let app = TestApp::start();
    let id = registered(&app);
    let check_in = || {
        app.settle();
        assert_eq!(app.post("/checkin", &json!({"server_id": id})).status, 200);
    };
    let is_seen_now = || {
        wait_until("all servers know that it is there", || {
            // Agents keep checking in, and servers exchange check-ins every few seconds.
            app.clock.advance(60);
            check_in();
            (0..app.servers()).all(|_| last_checkin(&app).as_str().unwrap().starts_with("2030-"))
        });
    };
    while_ahead(&app, TEN_YEARS, check_in);
    is_seen_now();
    // The same for a server that was registered in the future.
    while_ahead(&app, TEN_YEARS, || registered(&app));
    is_seen_now();
}

#[test]
fn a_new_check_in_replaces_one_dated_in_the_future_also_after_a_restart() {
    // A shared store keeps the later time.
    if std::env::var_os("TEST_SERVERS").is_some() {
        return;
    }
    let app = TestApp::start();
    let id = registered(&app);
    let check_in = || assert_eq!(app.post("/checkin", &json!({"server_id": id})).status, 200);
    while_ahead(&app, TEN_YEARS, check_in);
    app.clock.advance(59);
    check_in();
    assert_eq!(last_checkin(&app.restart()), json!("2030-03-17T17:47:40+00:00"));
}

fn codes_in_memory(app: &TestApp) -> f64 {
    app.metric("iptunnel_codes_in_memory")
}

#[test]
fn a_clock_that_is_briefly_ahead_deletes_no_record() {
    let app = with_settings(&[("storage.retention_days", "2")]);
    let code = app.issue();
    let activation = Machine::new(1).install(&app, &code);
    assert_eq!(activation.confirm(&app).status, 200);
    wait_until("the actors know the time", || codes_in_memory(&app) > 0.0);
    while_ahead(&app, TEN_YEARS, || {
        wait_until("the actors have received that time", || codes_in_memory(&app) == 0.0);
    });
    assert_eq!(Machine::new(2).precheck(&app, &code).code(), "install_code_used");
    assert_eq!(activation.confirm(&app).code(), "token_used");
}

#[test]
fn a_record_dated_in_the_future_does_not_block_the_deletion_of_others() {
    let app = with_settings(&[("storage.retention_days", "2")]);
    while_ahead(&app, TEN_YEARS, || app.issue());
    let code = app.issue();
    app.clock.advance(2 * DAY + 7200);
    wait_until("it is forgotten", || {
        Machine::new(1).precheck(&app, &code).code() == "install_code_not_found"
    });
}
