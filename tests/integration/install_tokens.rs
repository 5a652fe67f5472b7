//! The tokens: their contents, and that no kind is accepted as another.

use crate::harness::{Activation, Machine, TestApp, with};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use iptunnel_server::secrets::SigningFile;
use serde_json::{Value, json};

/// The same server with a second product.
fn two_products() -> TestApp {
    TestApp::start_with(|c| c.push(("products.vpn", "VP".into())))
}

fn part(token: &str, number: usize) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(token.split('.').nth(number).unwrap()).unwrap()
}

fn claims(token: &str) -> Value {
    serde_json::from_slice(&part(token, 1)).unwrap()
}

/// A precheck token, an install token of the same machine and code, and a session token.
fn one_of_each(app: &TestApp, code: &str) -> (String, Activation, String) {
    let machine = Machine::new(1);
    let precheck = machine.prechecked(app, code);
    let cookie = app.browser("slowdns").cookie;
    let session = cookie.split_once('=').unwrap().1.to_owned();
    (precheck, machine.install(app, code), session)
}

fn activate_told(app: &TestApp, code: &str, token: &str) -> (u16, String) {
    Machine::new(1).activate(app, code, token).told()
}

fn confirm_told(app: &TestApp, id: &str, token: &str) -> (u16, String) {
    app.step("confirm", &json!({"activation_id": id, "install_token": token})).told()
}

fn precheck_token_invalid() -> (u16, String) {
    (403, "precheck_token_invalid".into())
}

fn token_invalid() -> (u16, String) {
    (403, "token_invalid".into())
}

#[test]
fn every_token_has_exactly_the_header_and_claims_of_the_reference() {
    let app = TestApp::start();
    let (precheck, install, session) = one_of_each(&app, &app.issue());
    for token in [&precheck, &install.token, &session] {
        assert_eq!(part(token, 0), br#"{"alg":"HS256"}"#);
        for claim in ["iss", "aud", "sub", "iat", "exp", "jti"] {
            assert!(!claims(token)[claim].is_null(), "{claim}");
        }
    }
    let audiences = [&precheck, &install.token, &session].map(|t| claims(t)["aud"].to_string());
    assert!(audiences[0] != audiences[1] && audiences[1] != audiences[2]);
    assert_ne!(audiences[0], audiences[2]);
}

#[test]
fn tokens_contain_their_issue_and_expiry_times() {
    let app = TestApp::start();
    let (precheck, install, session) = one_of_each(&app, &app.issue());
    let start = crate::harness::START;
    for (token, lifetime) in [(&precheck, 900), (&install.token, 600), (&session, 1800)] {
        let claims = claims(token);
        assert_eq!((&claims["iat"], &claims["exp"]), (&json!(start), &json!(start + lifetime)));
    }
}

#[test]
fn tokens_contain_neither_code_nor_machine_id_in_clear_text() {
    let app = TestApp::start();
    let code = app.issue();
    let (precheck, install, _) = one_of_each(&app, &code);
    for token in [&precheck, &install.token] {
        let text = claims(token).to_string();
        for secret in [code.as_str(), "machine-1", "SHA256:1"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}

fn has_value(claims: &Value, value: &str) -> bool {
    claims.as_object().unwrap().values().any(|claim| claim == value)
}

#[test]
fn an_install_token_contains_address_host_name_ref_and_version() {
    let app = TestApp::start();
    let (code, machine) = (app.issue(), Machine::new(1));
    let body = machine.activate_body(&code, &machine.prechecked(&app, &code));
    let body = with(body, "installer_version", "v".repeat(65));
    let token = app.step("activate", &with(body, "requested_ref", "r".repeat(256)));
    let claims = claims(&token.data("install_token"));
    for value in [&machine.public_ip, &machine.hostname, &"v".repeat(64), &"r".repeat(255)] {
        assert!(has_value(&claims, value), "{value} in {claims}");
    }
}

#[test]
fn the_ref_is_main_if_none_is_requested() {
    let app = TestApp::start();
    let (code, machine) = (app.issue(), Machine::new(1));
    let body = machine.activate_body(&code, &machine.prechecked(&app, &code));
    let token = app.step("activate", &with(body, "requested_ref", Value::Null));
    assert!(has_value(&claims(&token.data("install_token")), "main"));
}

#[test]
fn no_kind_of_token_is_accepted_as_another_kind() {
    let app = TestApp::start();
    let code = app.issue();
    let (precheck, install, session) = one_of_each(&app, &code);
    for wrong in [&install.token, &session] {
        assert_eq!(activate_told(&app, &code, wrong), precheck_token_invalid());
    }
    for wrong in [&precheck, &session] {
        assert_eq!(confirm_told(&app, &install.id, wrong), token_invalid());
        let release = json!({"activation_id": install.id, "install_token": wrong});
        assert_eq!(app.step("release", &release).told(), token_invalid());
    }
    for wrong in [&precheck, &install.token] {
        let mut browser = app.browser("slowdns");
        browser.cookie = format!("slowdns_browser={wrong}");
        assert_eq!(browser.issue().told(), (403, "browser_session_invalid".into()));
    }
    assert_eq!(install.confirm(&app).status, 200);
}

/// Ways to change `token` without knowing the key.
fn forgeries(token: &str) -> Vec<String> {
    let parts: Vec<_> = token.split('.').collect();
    let [head, body, signature] = parts[..] else { panic!("{token}") };
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let later = with(claims(token), "exp", 4_000_000_000u64).to_string();
    let none = encode(r#"{"alg":"none"}"#);
    let mut flipped = part(token, 2);
    flipped[0] ^= 1;
    vec![
        format!("{head}.{}.{signature}", encode(&later)),
        format!("{none}.{body}."),
        format!("{none}.{body}.{signature}"),
        format!("{}.{body}.{signature}", encode(r#"{"alg":"HS512"}"#)),
        format!("{head}.{body}.{}", URL_SAFE_NO_PAD.encode(flipped)),
        format!("{head}.{body}."),
        format!("{head}.{body}"),
        format!("{head}.{body}.{signature}.{signature}"),
        format!("{token}="),
        "..".into(),
    ]
}

#[test]
fn a_token_that_was_changed_is_refused() {
    let app = TestApp::start();
    let code = app.issue();
    let (precheck, install, _) = one_of_each(&app, &code);
    for forged in forgeries(&precheck) {
        assert_eq!(activate_told(&app, &code, &forged), precheck_token_invalid(), "{forged}");
    }
    for forged in forgeries(&install.token) {
        assert_eq!(confirm_told(&app, &install.id, &forged), token_invalid(), "{forged}");
    }
    assert_eq!(activate_told(&app, &code, &precheck), (200, String::new()));
}

#[test]
fn tokens_signed_by_another_server_are_refused() {
    let (app, other) = (TestApp::start(), TestApp::start());
    let code = app.issue();
    let install = Machine::new(1).install(&app, &code);
    let (precheck, foreign, _) = one_of_each(&other, &other.issue());
    assert_eq!(activate_told(&app, &code, &precheck), precheck_token_invalid());
    assert_eq!(confirm_told(&app, &install.id, &foreign.token), token_invalid());
}

#[test]
fn a_precheck_token_is_valid_only_for_its_code_machine_and_fingerprint() {
    let app = TestApp::start();
    let (code, other_code, machine) = (app.issue(), app.issue(), Machine::new(1));
    let token = machine.prechecked(&app, &code);
    let machine_2 = Machine { machine_id: "machine-2".into(), ..machine.clone() };
    let fingerprint_2 = Machine { fingerprint: "SHA256:2".into(), ..machine.clone() };
    assert_eq!(machine.activate(&app, &other_code, &token).told(), precheck_token_invalid());
    assert_eq!(machine_2.activate(&app, &code, &token).told(), precheck_token_invalid());
    assert_eq!(fingerprint_2.activate(&app, &code, &token).told(), precheck_token_invalid());
    assert_eq!(machine.activate(&app, &code, &token).status, 200);
}

#[test]
fn a_precheck_token_of_another_product_is_invalid_before_the_products_are_compared() {
    let app = two_products();
    let code = app.browser("vpn").issue().data("install_code");
    let machine = Machine::new(1);
    let body = with(machine.precheck_body(&code), "product", "vpn");
    let token = app.post("/api/v2/vpn/install/precheck", &body).data("precheck_token");
    assert_eq!(machine.activate(&app, &code, &token).told(), precheck_token_invalid());
    let body = with(machine.activate_body(&code, &token), "product", "vpn");
    assert_eq!(app.post("/api/v2/vpn/install/activate", &body).status, 200);
}

#[test]
fn an_install_token_is_valid_only_for_its_activation() {
    let app = TestApp::start();
    let one = Machine::new(1).install(&app, &app.issue());
    let two = Machine::new(2).install(&app, &app.issue());
    let mismatch = (403, "token_mismatch".to_owned());
    assert_eq!(confirm_told(&app, &one.id, &two.token), mismatch);
    let release = json!({"activation_id": one.id, "install_token": two.token});
    assert_eq!(app.step("release", &release).told(), mismatch);
    assert_eq!(one.confirm(&app).status, 200);
}

#[test]
fn release_accepts_an_expired_genuine_token_and_no_token() {
    let app = TestApp::start();
    let (lapsed, open) = (app.issue(), app.issue());
    let lapsed = Machine::new(1).install(&app, &lapsed);
    let open = Machine::new(2).install(&app, &open);
    assert_eq!(app.step("release", &json!({"activation_id": open.id})).data("status"), "released");
    app.clock.advance(600);
    assert_eq!(lapsed.release(&app).data("status"), "released");
}

#[test]
fn tokens_of_a_pruned_key_are_refused() {
    let app = TestApp::start();
    let code = app.issue();
    let (precheck, install, _) = one_of_each(&app, &code);
    let old = app.browser("slowdns");
    let mut keys = SigningFile::read(&app.config.auth.signing_key_file).unwrap();
    keys.add(iptunnel_domain::Timestamp(crate::harness::START)).unwrap();
    keys.promote(None).unwrap();
    app.reload_now(|_| {});
    assert_eq!(old.issue().status, 201);
    keys.prune(None).unwrap();
    app.reload_now(|_| {});
    assert_eq!(activate_told(&app, &code, &precheck), precheck_token_invalid());
    assert_eq!(install.confirm(&app).told(), token_invalid());
    assert_eq!(old.issue().told(), (403, "browser_session_invalid".into()));
}
