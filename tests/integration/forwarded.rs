//! `X-Forwarded-For`: the caller that trusted proxies name, observed through the limit per address.

use crate::harness::{Machine, TestApp, send};

/// Starts a server on which an address has one precheck a day.
fn one_each(trusted: &str) -> TestApp {
    TestApp::start_with(|c| {
        c.push(("limits.precheck_per_ip_day", "1".into()));
        if !trusted.is_empty() {
            c.push(("server.trusted_proxies", trusted.into()));
        }
    })
}

/// Whether a caller with these `X-Forwarded-For` lines still has its precheck of the day.
fn is_new(app: &TestApp, lines: &[&str]) -> bool {
    let body = Machine::new(1).precheck_body("IPT-SD-AAAAAA-BBBBBB-CCCCCC").to_string();
    let url = format!("{}/api/v2/slowdns/install/precheck", app.url);
    let request =
        lines.iter().fold(app.client.post(url), |r, line| r.header("x-forwarded-for", *line));
    match send(request.body(body)).status {
        404 => true,
        429 => false,
        other => panic!("{other}"),
    }
}

/// Checks that a caller with these lines is counted as `address` is.
fn assert_counted_as(trusted: &str, lines: &[&str], address: &[&str]) {
    let app = one_each(trusted);
    assert!(is_new(&app, &["99.99.99.99"]));
    assert!(is_new(&app, lines), "{lines:?}");
    assert!(!is_new(&app, address), "{lines:?} is not counted as {address:?}");
}

const LOOPBACK: &str = "127.0.0.1";
const INNER: &str = "127.0.0.1,10.0.0.0/8";
/// No header: the caller is the peer itself.
const PEER: &[&str] = &[];

#[test]
fn without_trusted_proxies_the_header_is_ignored() {
    let app = one_each("");
    assert!(is_new(&app, &["1.1.1.1"]));
    for lines in [&["2.2.2.2"][..], &[], &["junk"], &["127.0.0.1", "3.3.3.3"]] {
        assert!(!is_new(&app, lines), "{lines:?}");
    }
}

#[test]
fn the_header_of_a_peer_outside_the_trusted_networks_is_ignored() {
    let app = one_each("10.0.0.0/8");
    assert!(is_new(&app, &["1.1.1.1"]));
    assert!(!is_new(&app, &["2.2.2.2"]));
}

#[test]
fn the_right_most_entry_that_is_not_a_trusted_proxy_is_the_caller() {
    assert_counted_as(LOOPBACK, &["1.1.1.1"], &["1.1.1.1"]);
    assert_counted_as(LOOPBACK, &["1.1.1.1, 2.2.2.2"], &["2.2.2.2"]);
    assert_counted_as(LOOPBACK, &["1.1.1.1,2.2.2.2,127.0.0.1"], &["2.2.2.2"]);
    assert_counted_as(INNER, &["1.1.1.1, 2.2.2.2 ,10.1.2.3,  10.0.0.1"], &["2.2.2.2"]);
}

#[test]
fn without_the_header_the_proxy_itself_is_the_caller() {
    assert_counted_as(LOOPBACK, PEER, &[LOOPBACK]);
}

#[test]
fn several_lines_are_one_list_in_order() {
    assert_counted_as(LOOPBACK, &["1.1.1.1", "2.2.2.2"], &["2.2.2.2"]);
    assert_counted_as(INNER, &["3.3.3.3", "1.1.1.1, 2.2.2.2", "10.0.0.9"], &["2.2.2.2"]);
}

#[test]
fn an_entry_may_carry_a_port() {
    assert_counted_as(LOOPBACK, &["2.2.2.2:50123"], &["2.2.2.2"]);
    assert_counted_as(LOOPBACK, &["[2600:1:2:3::9]:50123"], &["2600:1:2:3::9"]);
    assert_counted_as(INNER, &["2.2.2.2:1, 10.0.0.1:443"], &["2.2.2.2"]);
}

#[test]
fn an_entry_that_is_not_an_address_ends_the_search() {
    for junk in ["unknown", "_hidden", "", "999.1.1.1", "2.2.2.2:x", "localhost", "\"1.1.1.1\""] {
        assert_counted_as(INNER, &[&format!("1.1.1.1, {junk}")], PEER);
        assert_counted_as(INNER, &[&format!("1.1.1.1, {junk}, 10.0.0.7")], &["10.0.0.7"]);
        assert_counted_as(INNER, &[&format!("1.1.1.1, {junk}, 2.2.2.2")], &["2.2.2.2"]);
    }
}

#[test]
fn an_ipv4_mapped_address_counts_as_its_ipv4_address() {
    assert_counted_as(LOOPBACK, &["::ffff:2.2.2.2"], &["2.2.2.2"]);
    assert_counted_as(LOOPBACK, &["2.2.2.2, ::ffff:127.0.0.1"], &["2.2.2.2"]);
    assert_counted_as("::ffff:127.0.0.1", &["2.2.2.2"], &["2.2.2.2"]);
}

#[test]
fn an_ipv6_caller_is_counted_by_its_64_bit_prefix() {
    assert_counted_as(LOOPBACK, &["2600:1:2:3::1"], &["2600:1:2:3:ffff:ffff:ffff:ffff"]);
    let app = one_each(LOOPBACK);
    assert!(is_new(&app, &["2600:1:2:3::1"]));
    assert!(is_new(&app, &["2600:1:2:4::1"]));
}

#[test]
fn entries_left_of_the_address_that_the_proxy_added_are_ignored() {
    let app = one_each(LOOPBACK);
    assert!(is_new(&app, &["5.5.5.5, 2.2.2.2"]));
    assert!(!is_new(&app, &["6.6.6.6, 2.2.2.2"]));
    assert!(!is_new(&app, &["junk, 127.0.0.1, 2.2.2.2"]));
}
