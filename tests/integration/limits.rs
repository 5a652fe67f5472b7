//! Rate limits: who is counted, in which window, in which order, and the reply.

use crate::harness::{Activation, Answer, Browser, Machine, TestApp, at_once, send, with, without};
use iptunnel_domain::limit::{Limits, Policy};
use serde_json::Value;

/// From `START` to the end of its UTC hour and of its UTC day.
const HOUR_ENDS: u64 = 800;
const DAY_ENDS: u64 = 22_400;

const UNKNOWN_CODE: &str = "IPT-SD-AAAAAA-BBBBBB-CCCCCC";

/// A server with the default limits, over which `change` lays others, that believes its peer
/// about who calls.
fn limited(change: &[(&'static str, u32)]) -> TestApp {
    TestApp::start_with(|c| {
        c.retain(|(key, _)| !key.starts_with("limits."));
        c.push(("server.trusted_proxies", "127.0.0.1".into()));
        c.extend(change.iter().map(|(key, value)| (*key, value.to_string())));
    })
}

fn issue_from(browser: &Browser<'_>, ip: &str) -> Answer {
    send(browser.issue_request().header("x-forwarded-for", ip))
}

/// A code asked for by a browser of its own.
fn fresh_issue(app: &TestApp, ip: &str) -> Answer {
    issue_from(&app.browser("slowdns"), ip)
}

fn step_text(app: &TestApp, step: &str, ip: &str, body: &str) -> Answer {
    let request = app.client.post(format!("{}/api/v2/slowdns/install/{step}", app.url));
    send(request.header("x-forwarded-for", ip).body(body.to_owned()))
}

fn step_from(app: &TestApp, step: &str, ip: &str, body: &Value) -> Answer {
    step_text(app, step, ip, &body.to_string())
}

/// A precheck or an activate of `machine` that fails, which counts all the same.
fn attempt(app: &TestApp, step: &str, ip: &str, machine: u32) -> Answer {
    step_from(app, step, ip, &Machine::new(machine).activate_body(UNKNOWN_CODE, "x"))
}

fn ip(number: u32) -> String {
    std::net::Ipv4Addr::from(0x0808_0000 + number).to_string()
}

fn is_refused(answer: &Answer) -> bool {
    answer.told() == (429, "rate_limit_exceeded".into())
}

/// Seconds to wait, as a refusal tells them.
fn wait(answer: &Answer) -> u64 {
    assert!(is_refused(answer), "{} {}", answer.status, answer.text);
    answer.header("retry-after").parse().unwrap()
}

#[test]
fn a_refusal_has_the_text_of_the_reference() {
    let app = limited(&[("limits.issue_per_ip_hour", 0)]);
    let expected = "{\"error\":{\"code\":\"rate_limit_exceeded\",\"message\":\"Too many requests. \
                    Please wait before trying again.\"}}";
    assert_eq!(fresh_issue(&app, "8.8.8.8").text, expected);
}

#[test]
fn an_address_gets_three_codes_an_hour() {
    let app = limited(&[]);
    for _ in 0..3 {
        assert_eq!(fresh_issue(&app, "8.8.8.8").status, 201);
    }
    assert_eq!(wait(&fresh_issue(&app, "8.8.8.8")), HOUR_ENDS);
    assert_eq!(fresh_issue(&app, "8.8.4.4").status, 201);
}

#[test]
fn an_address_gets_ten_codes_a_day() {
    let app = limited(&[]);
    for in_this_hour in [3, 3, 3, 1] {
        for _ in 0..in_this_hour {
            assert_eq!(fresh_issue(&app, "8.8.8.8").status, 201);
        }
        app.clock.advance(3600);
    }
    assert_eq!(wait(&fresh_issue(&app, "8.8.8.8")), DAY_ENDS - 4 * 3600);
}

#[test]
fn a_session_gets_two_codes_an_hour_from_any_address() {
    let app = limited(&[]);
    let browser = app.browser("slowdns");
    assert_eq!(issue_from(&browser, &ip(1)).status, 201);
    assert_eq!(issue_from(&browser, &ip(2)).status, 201);
    assert_eq!(wait(&issue_from(&browser, &ip(3))), HOUR_ENDS);
}

#[test]
fn a_browser_gets_six_codes_a_day_over_all_its_sessions() {
    let app = limited(&[]);
    let mut browser = app.browser("slowdns");
    for _ in 0..2 {
        for _ in 0..3 {
            browser.cookie.clear();
            browser.open();
            assert_eq!(issue_from(&browser, &ip(1)).status, 201);
        }
        app.clock.advance(3600);
    }
    browser.cookie.clear();
    browser.open();
    assert_eq!(wait(&issue_from(&browser, &ip(1))), DAY_ENDS - 2 * 3600);
    assert_eq!(issue_from(&browser, &ip(2)).status, 201);
    assert_eq!(fresh_issue(&app, &ip(1)).status, 201);
}

/// `allowed` attempts pass, each of another machine or from another address, and one more does not.
fn assert_allowed(step: &str, allowed: u32, of_one_machine: bool) {
    let app = limited(&[]);
    let nth = |n: u32| {
        let (ip, machine) = if of_one_machine { (ip(n), 1) } else { (ip(1), n) };
        attempt(&app, step, &ip, machine)
    };
    for n in 1..=allowed {
        assert!(!is_refused(&nth(n)), "{step} {n}");
    }
    assert_eq!(wait(&nth(allowed + 1)), DAY_ENDS);
    assert!(!is_refused(&attempt(&app, step, &ip(99), 99)));
}

#[test]
fn an_address_has_ten_prechecks_a_day_and_failed_ones_count() {
    assert_allowed("precheck", 10, false);
}

#[test]
fn a_machine_has_ten_prechecks_a_day_from_any_address() {
    assert_allowed("precheck", 10, true);
}

#[test]
fn an_address_has_five_activations_a_day_and_failed_ones_count() {
    assert_allowed("activate", 5, false);
}

#[test]
fn a_machine_has_five_activations_a_day_from_any_address() {
    assert_allowed("activate", 5, true);
}

#[test]
fn a_caller_is_refused_until_the_last_second_of_the_window_and_admitted_in_the_next() {
    let app = limited(&[("limits.precheck_per_ip_day", 1), ("limits.issue_per_ip_hour", 1)]);
    assert_eq!(fresh_issue(&app, &ip(1)).status, 201);
    assert!(!is_refused(&attempt(&app, "precheck", &ip(1), 1)));
    app.clock.advance(HOUR_ENDS - 1);
    assert_eq!(wait(&fresh_issue(&app, &ip(1))), 1);
    app.clock.advance(1);
    assert_eq!(fresh_issue(&app, &ip(1)).status, 201);
    assert_eq!(wait(&fresh_issue(&app, &ip(1))), 3600);
    app.clock.advance(DAY_ENDS - HOUR_ENDS - 1);
    assert_eq!(wait(&attempt(&app, "precheck", &ip(1), 2)), 1);
    app.clock.advance(1);
    assert!(!is_refused(&attempt(&app, "precheck", &ip(1), 2)));
    assert_eq!(wait(&attempt(&app, "precheck", &ip(1), 2)), 86_400);
}

#[test]
fn retry_after_is_the_latest_end_of_the_windows_that_refuse() {
    let app = limited(&[("limits.issue_per_ip_hour", 1), ("limits.issue_per_fingerprint_day", 1)]);
    let browser = app.browser("slowdns");
    assert_eq!(issue_from(&browser, &ip(1)).status, 201);
    assert_eq!(wait(&issue_from(&browser, &ip(1))), DAY_ENDS);
    assert_eq!(wait(&fresh_issue(&app, &ip(1))), HOUR_ENDS);
}

#[test]
fn an_address_at_its_limit_is_refused_before_its_body_is_checked() {
    let app = limited(&[("limits.precheck_per_ip_day", 0), ("limits.activate_per_ip_day", 0)]);
    for step in ["precheck", "activate"] {
        for body in ["", "nonsense", "[]", "{}", &"x".repeat(70_000)] {
            assert!(is_refused(&step_text(&app, step, &ip(1), body)), "{step}");
        }
    }
}

#[test]
fn a_machine_at_its_limit_is_refused_before_its_other_fields_are_checked() {
    let app = limited(&[("limits.precheck_per_machine_day", 0)]);
    let body = without(Machine::new(1).precheck_body("wrong form"), "ssh_fingerprint");
    assert!(is_refused(&step_from(&app, "precheck", &ip(1), &body)));
}

#[test]
fn requests_with_unreadable_bodies_count_for_the_address() {
    for body in ["", "nonsense", "[]", "{}", &"x".repeat(70_000)] {
        let app = limited(&[("limits.precheck_per_ip_day", 1)]);
        assert!(!is_refused(&step_text(&app, "precheck", &ip(1), body)));
        assert!(is_refused(&attempt(&app, "precheck", &ip(1), 1)), "{} bytes", body.len());
    }
}

#[test]
fn a_request_without_a_valid_machine_id_counts_only_for_the_address() {
    let app = limited(&[("limits.precheck_per_machine_day", 1), ("limits.precheck_per_ip_day", 8)]);
    let body = Machine::new(1).precheck_body(UNKNOWN_CODE);
    let ids = [Value::Null, "".into(), " ".into(), true.into(), "m".repeat(129).into()];
    let unusable = ids.map(|id| with(body.clone(), "machine_id", id));
    for body in unusable.iter().chain([&unusable[0], &unusable[1], &unusable[4]]) {
        assert_eq!(step_from(&app, "precheck", &ip(1), body).code(), "validation_error");
    }
    assert!(is_refused(&attempt(&app, "precheck", &ip(1), 1)));
}

#[test]
fn spellings_of_a_machine_id_count_as_one_machine() {
    let app = limited(&[("limits.precheck_per_machine_day", 1)]);
    let body = Machine::new(1).precheck_body(UNKNOWN_CODE);
    let with_id =
        |n, id: Value| step_from(&app, "precheck", &ip(n), &with(body.clone(), "machine_id", id));
    assert!(!is_refused(&with_id(1, "77".into())));
    assert!(is_refused(&with_id(2, 77.into())));
    assert!(is_refused(&with_id(3, " 77 ".into())));
}

#[test]
fn a_refusal_charges_nothing() {
    let app = limited(&[("limits.precheck_per_machine_day", 1), ("limits.precheck_per_ip_day", 3)]);
    assert!(!is_refused(&attempt(&app, "precheck", &ip(1), 1)));
    for _ in 0..5 {
        assert!(is_refused(&attempt(&app, "precheck", &ip(2), 1)));
    }
    for machine in 2..5 {
        assert!(!is_refused(&attempt(&app, "precheck", &ip(2), machine)), "{machine}");
    }
    // Nor does the refused address charge the machine.
    assert!(is_refused(&attempt(&app, "precheck", &ip(2), 9)));
    assert!(!is_refused(&attempt(&app, "precheck", &ip(3), 9)));
}

#[test]
fn a_request_without_a_session_is_refused_and_counts_for_no_limit() {
    let app = limited(&[("limits.issue_per_ip_hour", 1)]);
    let mut stranger = app.browser("slowdns");
    stranger.cookie.clear();
    for _ in 0..3 {
        assert_eq!(issue_from(&stranger, &ip(1)).code(), "browser_session_required");
    }
    assert_eq!(fresh_issue(&app, &ip(1)).status, 201);
    assert_eq!(issue_from(&stranger, &ip(1)).code(), "browser_session_required");
}

/// The items of a structured list such as `"a";q=1;w=2, "b";q=3;w=4`: names, and two parameters.
fn items(text: &str, first: &str, second: &str) -> Vec<(String, u64, u64)> {
    let item = |item: &str| {
        let mut parts = item.trim().split(';').map(str::trim);
        let name = parts.next().unwrap();
        assert!(name.len() > 2 && name.starts_with('"') && name.ends_with('"'), "{text}");
        let mut number = |key: &str| {
            let value = parts.next().unwrap().strip_prefix(&format!("{key}=")).unwrap();
            value.parse().unwrap()
        };
        (name.to_owned(), number(first), number(second))
    };
    text.split(',').map(item).collect()
}

fn policies(answer: &Answer) -> Vec<(String, u64, u64)> {
    items(answer.header("ratelimit-policy"), "q", "w")
}

/// The quota of the policy that `RateLimit` speaks of, what is left of it, and for how long.
fn tightest(answer: &Answer) -> (u64, u64, u64) {
    let told = items(answer.header("ratelimit"), "r", "t");
    let [(name, remaining, time)] = &told[..] else { panic!("{told:?}") };
    let quota = policies(answer).into_iter().find(|policy| policy.0 == *name).unwrap().1;
    (quota, *remaining, *time)
}

fn quotas(answer: &Answer) -> Vec<(u64, u64)> {
    let mut quotas: Vec<_> = policies(answer).into_iter().map(|(_, q, w)| (q, w)).collect();
    quotas.sort_unstable();
    quotas
}

#[test]
fn issue_names_its_four_policies_and_the_tightest_granted_or_refused() {
    let app = limited(&[]);
    let all = [(2, 3600), (3, 3600), (6, 86_400), (10, 86_400)];
    let browser = app.browser("slowdns");
    for left in [1, 0] {
        let answer = issue_from(&browser, &ip(1));
        assert_eq!((answer.status, &quotas(&answer)[..]), (201, &all[..]));
        assert_eq!(tightest(&answer), (2, left, HOUR_ENDS));
    }
    let refused = issue_from(&browser, &ip(1));
    assert!(is_refused(&refused));
    assert_eq!((&quotas(&refused)[..], tightest(&refused)), (&all[..], (2, 0, HOUR_ENDS)));
}

#[test]
fn precheck_and_activate_name_both_policies_whatever_they_answer() {
    let app = limited(&[("limits.precheck_per_machine_day", 9), ("limits.activate_per_ip_day", 6)]);
    let precheck = attempt(&app, "precheck", &ip(1), 1);
    assert_eq!(quotas(&precheck), [(9, 86_400), (10, 86_400)]);
    assert_eq!(tightest(&precheck), (9, 8, DAY_ENDS));
    let activate = attempt(&app, "activate", &ip(1), 1);
    assert_eq!(quotas(&activate), [(5, 86_400), (6, 86_400)]);
    assert_eq!(tightest(&activate), (5, 4, DAY_ENDS));
    let unread = step_text(&app, "precheck", &ip(1), "");
    assert_eq!((unread.status, tightest(&unread).1), (400, 8));
}

/// A machine's activation of a fresh code from `ip(1)`, and the body that asks for it.
fn activated(app: &TestApp, machine: &Machine) -> (Answer, Value) {
    let code = fresh_issue(app, &ip(1)).data("install_code");
    let token = step_from(app, "precheck", &ip(1), &machine.precheck_body(&code));
    let body = machine.activate_body(&code, &token.data("precheck_token"));
    (step_from(app, "activate", &ip(1), &body), body)
}

#[test]
fn the_charge_of_a_repeated_activate_is_given_back() {
    let app = limited(&[]);
    let (first, body) = activated(&app, &Machine::new(1));
    assert_eq!((first.status, tightest(&first).1), (200, 4));
    for _ in 0..12 {
        let again = step_from(&app, "activate", &ip(1), &body);
        assert_eq!((again.status, &again.text), (200, &first.text));
    }
    app.wait_for_activates(1);
    let moved = with(body, "hostname", "other.example.com");
    let moved = step_from(&app, "activate", &ip(1), &moved);
    assert_eq!((moved.status, tightest(&moved).1), (200, 3));
}

#[test]
fn counters_survive_a_restart() {
    let app = limited(&[]);
    for n in 0..5 {
        assert!(!is_refused(&attempt(&app, "activate", &ip(n), 1)));
    }
    let app = app.restart();
    assert_eq!(wait(&attempt(&app, "activate", &ip(9), 1)), DAY_ENDS);
    assert!(!is_refused(&attempt(&app, "activate", &ip(9), 2)));
}

#[test]
fn a_limit_of_zero_closes_its_route_forever() {
    let closed = |key, step: &str| {
        let app = limited(&[(key, 0)]);
        for _ in 0..2 {
            let answer = match step {
                "issue" => fresh_issue(&app, &ip(1)),
                step => attempt(&app, step, &ip(1), 1),
            };
            assert!(is_refused(&answer), "{key}");
            app.clock.advance(DAY_ENDS);
        }
    };
    closed("limits.issue_per_ip_hour", "issue");
    closed("limits.issue_per_ip_day", "issue");
    closed("limits.issue_per_session_hour", "issue");
    closed("limits.issue_per_fingerprint_day", "issue");
    closed("limits.precheck_per_ip_day", "precheck");
    closed("limits.precheck_per_machine_day", "precheck");
    closed("limits.activate_per_ip_day", "activate");
    closed("limits.activate_per_machine_day", "activate");
}

#[test]
fn confirm_release_and_check_in_have_no_limit() {
    let app = limited(&[]);
    let (answer, _) = activated(&app, &Machine::new(1));
    app.reload_now(|config| config.limits = Limits::new(|_| 0, 4_000_000));
    let id = answer.data("activation_id");
    let activation = Activation { id, token: answer.data("install_token") };
    assert_eq!(activation.confirm(&app).status, 200);
    assert_eq!(activation.release(&app).status, 200);
    let unknown =
        app.post("/api/v2/servers/0123456789abcdef/check-in", &Value::Object(Default::default()));
    assert_eq!(unknown.code(), "server_not_found");
}

#[test]
fn a_changed_limit_counts_at_once_in_both_directions() {
    let app = limited(&[]);
    let set = |value: u32| {
        app.reload_now(|config| {
            let old = config.limits;
            let of =
                |policy| if policy == Policy::IssuePerIpHour { value } else { old.allowed(policy) };
            config.limits = Limits::new(of, old.max_tracked);
        });
    };
    for _ in 0..3 {
        assert_eq!(fresh_issue(&app, &ip(1)).status, 201);
    }
    set(4);
    assert_eq!(fresh_issue(&app, &ip(1)).status, 201);
    set(2);
    let refused = fresh_issue(&app, &ip(1));
    assert_eq!((wait(&refused), tightest(&refused)), (HOUR_ENDS, (2, 0, HOUR_ENDS)));
    set(5);
    assert_eq!(fresh_issue(&app, &ip(1)).status, 201);
}

#[test]
fn exactly_the_allowed_number_of_twenty_concurrent_requests_passes() {
    let app = limited(&[]);
    let answers = at_once(20, |n| is_refused(&attempt(&app, "activate", &ip(1), n)));
    assert_eq!(answers.iter().filter(|refused| !**refused).count(), 5);
}

#[test]
fn a_machine_at_its_limit_keeps_its_activation() {
    let mut app = TestApp::start_with(|c| {
        c.push(("limits.activate_per_machine_day", "1".into()));
        c.push(("limits.precheck_per_machine_day", "1".into()));
    });
    let (code, other) = (app.issue(), app.issue());
    let machine = Machine::new(1);
    let token = machine.prechecked(&app, &code);
    let first = machine.activate(&app, &code, &token);
    assert_eq!(first.status, 200, "{}", first.text);
    let held = Activation { id: first.data("activation_id"), token: first.data("install_token") };
    // The answer to the last one that the day allows may be lost as well as any other.
    for _ in 0..2 {
        let again = machine.activate(&app, &code, &token);
        assert_eq!((again.status, again.data("install_token")), (200, held.token.clone()));
        assert!(again.header("ratelimit").contains("r=0"), "it is charged nothing");
        assert_eq!(machine.precheck(&app, &code).status, 200);
        app = app.restart();
    }
    // New activations are refused.
    let elsewhere = with(machine.activate_body(&code, &token), "hostname", "ns9.example.com");
    assert!(is_refused(&app.post("/api/v2/slowdns/install/activate", &elsewhere)));
    assert!(is_refused(&machine.activate(&app, &other, &token)));
    assert!(is_refused(&machine.precheck(&app, &other)));
    assert_eq!(held.confirm(&app).status, 200);
    assert!(is_refused(&machine.precheck(&app, &code)), "a finished installation is not held");
}
