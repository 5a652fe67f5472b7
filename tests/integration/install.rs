//! The installer's four steps: their exact replies, and the order of their checks.

use crate::harness::{Activation, Answer, Machine, TestApp, with, without};
use serde_json::{Value, json};

const EXPIRED: u64 = 300;

fn told(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

/// Another code than any that was issued, of the same form.
const UNKNOWN_CODE: &str = "IPT-SD-AAAAAA-BBBBBB-CCCCCC";
const UNKNOWN_ID: &str = "act_0123456789abcdef";

/// A server, a code, a machine and the activate it would send.
fn ready_to_activate() -> (TestApp, String, Machine, Value) {
    let (app, machine) = (TestApp::start(), Machine::new(1));
    let code = app.issue();
    let token = machine.prechecked(&app, &code);
    let body = machine.activate_body(&code, &token);
    (app, code, machine, body)
}

fn finish_body(activation: &Activation) -> Value {
    json!({"activation_id": activation.id, "install_token": activation.token})
}

#[test]
fn precheck_replies_exactly_as_in_the_reference() {
    let app = TestApp::start();
    let code = app.issue();
    let answer = Machine::new(1).precheck(&app, &code);
    let expected = format!(
        "{{\"data\":{{\"install_code\":\"{code}\",\"install_code_hint\":\"{}...{}\",\
         \"precheck_token\":\"{}\",\"precheck_expires_at\":\"2030-03-17T18:01:40+00:00\",\
         \"machine_binding\":{{\"machine_id\":\"machine-1\",\"ssh_fingerprint\":\"SHA256:1\"}}}},\
         \"meta\":{{\"message\":\"Install code validated\"}}}}",
        &code[..11],
        &code[21..],
        answer.data("precheck_token"),
    );
    assert_eq!((answer.status, answer.text), (200, expected));
}

#[test]
fn activate_replies_exactly_as_in_the_reference() {
    let (app, code, machine, body) = ready_to_activate();
    let answer = app.step("activate", &body);
    let Machine { hostname, public_ip, .. } = machine;
    let expected = format!(
        "{{\"data\":{{\"activation_id\":\"{}\",\"install_token\":\"{}\",\
         \"install_token_expires_at\":\"2030-03-17T17:56:40+00:00\",\"install_code\":\"{code}\",\
         \"machine_binding\":{{\"hostname\":\"{hostname}\",\"public_ip\":\"{public_ip}\",\
         \"machine_id\":\"machine-1\",\"ssh_fingerprint\":\"SHA256:1\"}}}},\
         \"meta\":{{\"message\":\"Install token issued\"}}}}",
        answer.data("activation_id"),
        answer.data("install_token"),
    );
    assert_eq!((answer.status, answer.text.clone()), (200, expected));
    let id = answer.data("activation_id");
    let hex = id.strip_prefix("act_").unwrap();
    assert!(hex.len() == 16 && hex.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
}

#[test]
fn confirm_replies_exactly_as_in_the_reference() {
    let app = TestApp::start();
    let activation = Machine::new(1).install(&app, &app.issue());
    let answer = activation.confirm(&app);
    let expected = format!(
        "{{\"data\":{{\"activation_id\":\"{}\",\"status\":\"confirmed\"}},\
         \"meta\":{{\"message\":\"Install confirmed\"}}}}",
        activation.id
    );
    assert_eq!((answer.status, answer.text), (200, expected));
}

#[test]
fn release_replies_exactly_as_in_the_reference() {
    let app = TestApp::start();
    let activation = Machine::new(1).install(&app, &app.issue());
    let answer = activation.release(&app);
    let expected = format!(
        "{{\"data\":{{\"activation_id\":\"{}\",\"status\":\"released\",\
         \"install_code_restored\":true}},\"meta\":{{\"message\":\"Activation released\"}}}}",
        activation.id
    );
    assert_eq!((answer.status, answer.text), (200, expected));
}

#[test]
fn a_failure_has_exactly_the_keys_and_text_of_the_reference() {
    let app = TestApp::start();
    let code = app.issue();
    app.clock.advance(EXPIRED);
    let answer = Machine::new(1).precheck(&app, &code);
    let expected =
        r#"{"error":{"code":"install_code_expired","message":"Install code has expired."}}"#;
    assert_eq!((answer.status, answer.text.as_str()), (403, expected));
}

#[test]
fn no_reply_with_a_code_or_a_token_may_be_cached() {
    let (app, code, machine, body) = ready_to_activate();
    for answer in [machine.precheck(&app, &code), app.step("activate", &body)] {
        assert_eq!((answer.status, answer.header("cache-control")), (200, "no-store"));
    }
}

#[test]
fn every_step_distinguishes_an_empty_body_from_a_non_object() {
    let app = TestApp::start();
    for step in ["precheck", "activate", "confirm", "release"] {
        let path = format!("/api/v2/slowdns/install/{step}");
        for empty in ["", " ", "\r\n\t "] {
            let answer = app.post_text(&path, empty);
            assert_eq!(answer.told(), told(400, "invalid_body"), "{step} {empty:?}");
        }
        for wrong in ["[]", "{", "null", "7", "\"x\"", "[{}]", "{\"a\":1}}", "{'a':1}", "x=1"] {
            let answer = app.post_text(&path, wrong);
            assert_eq!(answer.told(), told(400, "invalid_json"), "{step} {wrong}");
        }
    }
}

#[test]
fn a_duplicate_field_is_refused_in_the_v2_envelope() {
    let (app, code) = (TestApp::start(), UNKNOWN_CODE);
    for step in ["precheck", "activate", "confirm", "release"] {
        let body = format!(
            "{{\"install_code\":\"{code}\",\"install_code\":1,\"activation_id\":\"a\",\"activation_id\":[]}}"
        );
        let answer = app.post_text(&format!("/api/v2/slowdns/install/{step}"), &body);
        assert!((400..500).contains(&answer.status), "{step}: {}", answer.text);
        assert!(!answer.code().is_empty(), "{step}: {}", answer.text);
    }
    assert_eq!(app.get("/api/v2/healthz").status, 200);
}

/// Checks that `body` is refused with `code` and a message that names `field`, for every kind of bad
/// value.
fn assert_required(app: &TestApp, step: &str, body: &Value, field: &str, code: &str) {
    let wrong =
        [json!(null), json!(""), json!("  "), json!(true), json!(1.5), json!([]), json!({})];
    let bodies = wrong.into_iter().map(|wrong| with(body.clone(), field, wrong));
    for body in bodies.chain([without(body.clone(), field)]) {
        let answer = app.step(step, &body);
        assert_eq!(answer.told(), told(422, code), "{step} {body}");
        assert!(answer.text.contains(field), "{step} {body}: {}", answer.text);
    }
}

#[test]
fn a_required_field_that_is_missing_or_of_a_wrong_type_is_named() {
    let (app, code, machine, activate) = ready_to_activate();
    let precheck = without(machine.precheck_body(&code), "license_key");
    let activate = without(activate, "license_key");
    for field in ["install_code", "machine_id", "ssh_fingerprint"] {
        assert_required(&app, "precheck", &precheck, field, "validation_error");
        assert_required(&app, "activate", &activate, field, "validation_error");
    }
    let finish = finish_body(&machine.install(&app, &code));
    for field in ["activation_id", "install_token"] {
        assert_required(&app, "confirm", &finish, field, "validation_error");
    }
    assert_required(&app, "release", &finish, "activation_id", "validation_error");
}

#[test]
fn a_binding_that_is_missing_or_of_a_wrong_type_is_never_a_validation_error() {
    let (app, _, _, activate) = ready_to_activate();
    for field in ["hostname", "public_ip"] {
        assert_required(&app, "activate", &activate, field, "invalid_binding");
        let long = with(activate.clone(), field, "a".repeat(5000));
        assert_eq!(app.step("activate", &long).told(), told(422, "invalid_binding"));
    }
}

#[test]
fn a_precheck_token_that_is_missing_is_an_invalid_one() {
    let (app, _, _, activate) = ready_to_activate();
    let field = "precheck_token";
    let wrong = [json!(null), json!(""), json!("x"), json!("a.b.c"), json!(7)];
    let bodies = wrong.map(|wrong| with(activate.clone(), field, wrong));
    for body in bodies.into_iter().chain([without(activate.clone(), field)]) {
        assert_eq!(
            app.step("activate", &body).told(),
            told(403, "precheck_token_invalid"),
            "{body}"
        );
    }
}

#[test]
fn a_precheck_token_of_a_wrong_type_or_too_long_is_a_wrong_field() {
    let (app, _, _, activate) = ready_to_activate();
    for wrong in [json!(true), json!([]), json!("x".repeat(4097))] {
        let answer = app.step("activate", &with(activate.clone(), "precheck_token", wrong));
        assert_eq!(answer.told(), told(422, "validation_error"), "{}", answer.text);
        assert!(answer.text.contains("precheck_token"), "{}", answer.text);
    }
}

#[test]
fn machine_id_and_fingerprint_have_a_longest_length() {
    let app = TestApp::start();
    let body = Machine::new(1).precheck_body(&app.issue());
    for (field, longest) in [("machine_id", 128), ("ssh_fingerprint", 255)] {
        let of = |length| app.step("precheck", &with(body.clone(), field, "m".repeat(length)));
        assert_eq!(of(longest).status, 200, "{field}");
        let refused = of(longest + 1);
        assert_eq!(refused.told(), told(422, "validation_error"), "{field}");
        assert!(refused.text.contains(field), "{}", refused.text);
    }
}

#[test]
fn an_optional_field_of_a_wrong_type_is_refused_and_null_is_absent() {
    let (app, _, _, activate) = ready_to_activate();
    for field in ["product", "installer_version", "requested_ref"] {
        for wrong in [json!(false), json!(0.5), json!([]), json!({})] {
            let answer = app.step("activate", &with(activate.clone(), field, wrong));
            assert_eq!(answer.told(), told(422, "validation_error"), "{field}");
        }
    }
    let absent = ["product", "installer_version", "requested_ref"]
        .into_iter()
        .fold(activate, |body, field| with(body, field, Value::Null));
    assert_eq!(app.step("activate", &absent).status, 200);
}

#[test]
fn strings_are_trimmed_and_integers_taken_for_their_digits() {
    let app = TestApp::start();
    let body = Machine::new(1).precheck_body(&app.issue());
    let echoed = |value: Value| {
        let answer = app.step("precheck", &with(body.clone(), "machine_id", value));
        answer.json()["data"]["machine_binding"]["machine_id"].clone()
    };
    assert_eq!(echoed(json!(" \tm 1\n")), json!("m 1"));
    assert_eq!(echoed(json!(42)), json!("42"));
    assert_eq!(echoed(json!(-7)), json!("-7"));
}

#[test]
fn a_code_is_read_in_any_case_with_blanks_around_and_echoed_as_issued() {
    let app = TestApp::start();
    let (code, machine) = (app.issue(), Machine::new(1));
    let typed = format!(" {} ", code.to_lowercase());
    let answer = machine.precheck(&app, &typed);
    assert_eq!((answer.status, answer.data("install_code")), (200, code.clone()));
    let token = answer.data("precheck_token");
    assert_eq!(machine.activate(&app, &typed, &token).data("install_code"), code);
}

#[test]
fn license_key_is_read_where_install_code_is_absent_and_there_only() {
    let app = TestApp::start();
    let (code, machine) = (app.issue(), Machine::new(1));
    let body = machine.precheck_body(&code);
    let absent = without(body.clone(), "install_code");
    assert_eq!(app.step("precheck", &absent).status, 200);
    assert_eq!(
        app.step("precheck", &with(absent.clone(), "install_code", Value::Null)).status,
        200
    );
    let contrary = with(body.clone(), "install_code", UNKNOWN_CODE);
    assert_eq!(app.step("precheck", &contrary).told(), told(404, "install_code_not_found"));
    let wrong = with(absent, "license_key", true);
    assert_eq!(app.step("precheck", &wrong).told(), told(422, "validation_error"));
}

#[test]
fn unknown_fields_are_ignored() {
    let (app, _, _, activate) = ready_to_activate();
    let body = with(activate, "more", json!({"a": [1.5, null, {"b": "\u{1F600}"}]}));
    assert_eq!(app.step("activate", &body).status, 200);
}

#[test]
fn a_malformed_code_is_a_validation_error_that_names_the_field() {
    let app = TestApp::start();
    for wrong in [
        "x",
        "IPT-SD-AAAAAA-BBBBBB-CCCCC",
        "IPT-SD-AAAAAA-BBBBBB-CCCCCCC",
        "IPT-SD-AAAAAA-BBBBBB-CCCCC0",
        "IPT-SD-AAAAAA-BBBBBB-CCCCC1",
        "IPT-SD-AAAAAA-BBBBBB-CCCCCI",
        "IPT-SD-AAAAAA-BBBBBB-CCCCCO",
        "IPT-SD-AAAAAABBBBBBCCCCCC",
        "SD-AAAAAA-BBBBBB-CCCCCC",
        "IPT-SD-AAAAAA-BBBBBB-CCCCC\u{c4}",
    ] {
        let answer = Machine::new(1).precheck(&app, wrong);
        assert_eq!(answer.told(), told(422, "validation_error"), "{wrong}");
        assert!(answer.text.contains("install_code"), "{}", answer.text);
    }
    assert_eq!(
        Machine::new(1).precheck(&app, UNKNOWN_CODE).told(),
        told(404, "install_code_not_found")
    );
}

#[test]
fn the_product_field_names_the_routes_product_in_any_case_or_is_a_mismatch() {
    let app = TestApp::start();
    let body = Machine::new(1).precheck_body(&app.issue());
    let named = |name: &str| app.step("precheck", &with(body.clone(), "product", name)).told();
    assert_eq!(named("SlowDNS"), told(200, ""));
    assert_eq!(named("vpn"), told(403, "product_mismatch"));
    assert_eq!(app.step("precheck", &without(body.clone(), "product")).status, 200);
}

/// The code that `change` of a good precheck is refused with.
fn precheck_told(app: &TestApp, code: &str, change: &[(&str, &str)]) -> Answer {
    let body = Machine::new(1).precheck_body(code);
    let body = change.iter().fold(body, |body, (field, value)| with(body, field, *value));
    app.step("precheck", &body)
}

#[test]
fn precheck_checks_fields_form_product_and_code_in_this_order() {
    let app = TestApp::start();
    let fields = precheck_told(&app, "wrong form", &[("machine_id", "")]);
    assert!(fields.text.contains("machine_id"), "{}", fields.text);
    let form = precheck_told(&app, "wrong form", &[("product", "vpn")]);
    assert_eq!(form.told(), told(422, "validation_error"));
    let product = precheck_told(&app, UNKNOWN_CODE, &[("product", "vpn")]);
    assert_eq!(product.told(), told(403, "product_mismatch"));
    let letters = precheck_told(&app, "IPT-ZZ-AAAAAA-BBBBBB-CCCCCC", &[]);
    assert_eq!(letters.told(), told(403, "product_mismatch"));
}

#[test]
fn precheck_reports_used_before_expired_before_max_activations() {
    let app = TestApp::start_with(|c| c.push(("codes.max_activations_per_code", "1".into())));
    let (used, worn) = (app.issue(), app.issue());
    assert_eq!(Machine::new(1).install(&app, &used).confirm(&app).status, 200);
    assert_eq!(Machine::new(1).install(&app, &worn).release(&app).status, 200);
    let told_now = |code: &str| Machine::new(1).precheck(&app, code).told();
    assert_eq!(told_now(&worn), told(403, "install_code_max_activations"));
    app.clock.advance(EXPIRED);
    assert_eq!(told_now(&used), told(403, "install_code_used"));
    assert_eq!(told_now(&worn), told(403, "install_code_expired"));
}

#[test]
fn activate_checks_fields_form_token_binding_and_product_in_this_order() {
    let (app, _, _, activate) = ready_to_activate();
    let told_of = |change: &[(&str, &str)]| {
        let body = change.iter().fold(activate.clone(), |body, (f, value)| with(body, f, *value));
        app.step("activate", &body)
    };
    let fields = told_of(&[("machine_id", ""), ("install_code", "wrong form")]);
    assert!(fields.text.contains("machine_id"), "{}", fields.text);
    let form = told_of(&[("install_code", "wrong form"), ("precheck_token", "x")]);
    assert_eq!(form.told(), told(422, "validation_error"));
    let token = told_of(&[("precheck_token", "x"), ("hostname", "x")]);
    assert_eq!(token.told(), told(403, "precheck_token_invalid"));
    let binding = told_of(&[("hostname", "x"), ("product", "vpn")]);
    assert_eq!(binding.told(), told(422, "invalid_binding"));
    let product = told_of(&[("product", "vpn")]);
    assert_eq!(product.told(), told(403, "product_mismatch"));
}

#[test]
fn activate_reports_a_wrong_binding_or_product_before_used() {
    let (app, code, _, activate) = ready_to_activate();
    assert_eq!(Machine::new(2).install(&app, &code).confirm(&app).status, 200);
    let binding = app.step("activate", &with(activate.clone(), "public_ip", "10.0.0.1"));
    assert_eq!(binding.told(), told(422, "invalid_binding"));
    let product = app.step("activate", &with(activate.clone(), "product", "vpn"));
    assert_eq!(product.told(), told(403, "product_mismatch"));
    assert_eq!(app.step("activate", &activate).told(), told(403, "install_code_used"));
}

#[test]
fn confirm_checks_fields_token_match_and_state_in_this_order() {
    let app = TestApp::start();
    let activation = Machine::new(1).install(&app, &app.issue());
    let good = finish_body(&activation);
    let told_of = |id: &str, token: &str| {
        let body = with(with(good.clone(), "activation_id", id), "install_token", token);
        app.step("confirm", &body).told()
    };
    assert_eq!(told_of("", "x"), told(422, "validation_error"));
    assert_eq!(told_of(UNKNOWN_ID, "x"), told(403, "token_invalid"));
    assert_eq!(told_of(UNKNOWN_ID, &activation.token), told(403, "token_mismatch"));
    assert_eq!(activation.confirm(&app).status, 200);
    assert_eq!(told_of(&activation.id, &activation.token), told(409, "token_used"));
    app.clock.advance(600);
    assert_eq!(told_of(&activation.id, &activation.token), told(403, "token_invalid"));
}

#[test]
fn release_checks_fields_token_if_sent_and_activation_in_this_order() {
    let app = TestApp::start();
    let activation = Machine::new(1).install(&app, &app.issue());
    let told_of = |body: Value| app.step("release", &body).told();
    let with_token = |id: &str, token: &str| json!({"activation_id": id, "install_token": token});
    assert_eq!(told_of(with_token("", "x")), told(422, "validation_error"));
    assert_eq!(told_of(with_token(UNKNOWN_ID, "x")), told(403, "token_invalid"));
    assert_eq!(told_of(with_token(UNKNOWN_ID, &activation.token)), told(403, "token_mismatch"));
    for id in [UNKNOWN_ID, "act_", "x", "act_0123456789ABCDEF", "act_0123456789abcdef0"] {
        let body = json!({ "activation_id": id });
        assert_eq!(told_of(body), told(404, "activation_not_found"), "{id}");
    }
    assert_eq!(told_of(json!({"activation_id": activation.id})), told(200, ""));
}
