//! The host names and public addresses that a binding accepts.

use crate::harness::{Machine, TestApp, with};
use serde_json::{Value, json};

/// A server and the activate body that a machine sends to it.
fn ready(allow_private: bool) -> (TestApp, Value) {
    let app = TestApp::start_with(|c| {
        c.push(("server.allow_private_ips", allow_private.to_string()));
        c.push(("codes.max_activations_per_code", "255".into()));
    });
    let machine = Machine::new(1);
    let code = app.issue();
    let token = machine.prechecked(&app, &code);
    let body = machine.activate_body(&code, &token);
    (app, body)
}

/// Returns `field` as the reply echoes it, or the code of the refusal.
fn bound(app: &TestApp, body: &Value, field: &str, value: &str) -> String {
    let answer = app.step("activate", &with(body.clone(), field, value));
    let echoed = answer.json()["data"]["machine_binding"][field].as_str().map(str::to_owned);
    echoed.unwrap_or_else(|| format!("{} {}", answer.status, answer.code()))
}

const REFUSED: &str = "422 invalid_binding";

#[test]
fn a_host_name_is_echoed_in_lower_case_without_white_space_and_trailing_dot() {
    let (app, body) = ready(false);
    assert_eq!(bound(&app, &body, "hostname", " NS1.Example.COM. "), "ns1.example.com");
    assert_eq!(bound(&app, &body, "hostname", "xn--bcher-kva.1a"), "xn--bcher-kva.1a");
    assert_eq!(bound(&app, &body, "hostname", "1.2.3.4a"), "1.2.3.4a");
}

#[test]
fn a_host_name_may_have_253_characters_and_63_in_a_label() {
    let (app, body) = ready(false);
    let label = "a".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
    assert_eq!(longest.len(), 253);
    assert_eq!(bound(&app, &body, "hostname", &longest), longest);
    assert_eq!(bound(&app, &body, "hostname", &format!("{longest}.")), longest);
    assert_eq!(bound(&app, &body, "hostname", &format!("{longest}a")), REFUSED);
    assert_eq!(bound(&app, &body, "hostname", &format!("{label}a.com")), REFUSED);
}

#[test]
fn a_malformed_or_partial_host_name_is_an_invalid_binding() {
    let (app, body) = ready(false);
    for wrong in [
        "localhost",
        "a..b",
        ".a.b",
        "a.b..",
        "-a.com",
        "a-.com",
        "a_b.com",
        "a b.com",
        "1.2.3.4",
        "a.123",
        "b\u{fc}cher.de",
        "a.b/c",
        "a.b:53",
        "https://a.b",
        "*.a.b",
        "a.com\u{0}",
    ] {
        assert_eq!(bound(&app, &body, "hostname", wrong), REFUSED, "{wrong}");
    }
}

#[test]
fn an_address_is_echoed_in_its_canonical_spelling() {
    let (app, body) = ready(false);
    assert_eq!(bound(&app, &body, "public_ip", " 8.8.8.8 "), "8.8.8.8");
    let long = "2606:4700:0000:0000:0000:0000:0000:1111";
    assert_eq!(bound(&app, &body, "public_ip", long), "2606:4700::1111");
    assert_eq!(bound(&app, &body, "public_ip", "2A00:1450:0:0:8::A"), "2a00:1450::8:0:0:a");
}

#[test]
fn a_malformed_address_is_an_invalid_binding() {
    let (app, body) = ready(true);
    for wrong in [
        "1.2.3",
        "1.2.3.4.5",
        "256.1.1.1",
        "01.2.3.4",
        "1.2.3.4:80",
        "1.2.3.4/32",
        "0x1020304",
        "[2606:4700::1]",
        "2606:4700::1%eth0",
        "2606:4700:::1",
        "ns1.example.com",
        "16909060",
    ] {
        assert_eq!(bound(&app, &body, "public_ip", wrong), REFUSED, "{wrong}");
    }
    let number = app.step("activate", &with(body, "public_ip", json!(16_909_060)));
    assert_eq!(number.told(), (422, "invalid_binding".into()));
}

#[test]
fn addresses_that_are_not_globally_reachable_are_refused() {
    let (app, body) = ready(false);
    for wrong in [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.127.255.255",
        "127.0.0.1",
        "169.254.1.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.0.0.8",
        "192.0.0.170",
        "192.0.2.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:8.8.8.8",
        "64:ff9b:1::1",
        "100::1",
        "2001:2::1",
        "2001:10::1",
        "2001:db8::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd12::1",
        "fe80::1",
    ] {
        assert_eq!(bound(&app, &body, "public_ip", wrong), REFUSED, "{wrong}");
    }
}

#[test]
fn addresses_next_to_refused_blocks_and_the_registry_exceptions_are_accepted() {
    let (app, body) = ready(false);
    for good in [
        "1.0.0.0",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.0.9",
        "192.0.0.10",
        "192.0.1.0",
        "192.31.196.1",
        "192.52.193.1",
        "192.175.48.1",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "64:ff9b::808:808",
        "2001:1::1",
        "2001:3::1",
        "2001:4:112::1",
        "2001:20::1",
        "2001:200::1",
        "2620:4f:8000::1",
        "2a00::1",
    ] {
        assert_eq!(bound(&app, &body, "public_ip", good), good);
    }
}

#[test]
fn allow_private_ips_accepts_addresses_that_are_not_globally_reachable() {
    let (app, body) = ready(true);
    for private in ["192.168.1.1", "10.0.0.1", "100.64.0.1", "fd12::1", "2001:db8::1"] {
        assert_eq!(bound(&app, &body, "public_ip", private), private);
    }
}

#[test]
fn another_spelling_of_the_same_binding_is_the_same_binding() {
    let (app, body) = ready(false);
    let body = with(body, "public_ip", "2606:4700::1111");
    let first = app.step("activate", &body);
    let spelled = with(body.clone(), "hostname", "NS1.EXAMPLE.com.");
    let again = app.step("activate", &with(spelled, "public_ip", "2606:4700:0:0::1111"));
    assert_eq!((again.status, again.text), (200, first.text));
}
