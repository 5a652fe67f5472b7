//! The code page in a browser.

use super::driver::Window;
use crate::harness::{Machine, TestApp};
use std::process::{Command, Stdio};

pub fn open(app: &TestApp) -> Window {
    let window = Window::open();
    window.go(&format!("{}/slowdns", app.url));
    window
}

pub fn shown_code(window: &Window) -> String {
    window.wait_for("#code", |text| text.starts_with("IPT-SD-"))
}

#[test]
fn a_whole_installation_shows_on_the_open_page() {
    // The page opens one stream after the other.
    let app = TestApp::start_with(|c| c.push(("server.idle_timeout_seconds", "1".into())));
    let window = open(&app);
    window.check_looks("code-page");
    window.click("#issue");
    let code = shown_code(&window);
    assert!(window.text("#left").starts_with("Valid for "), "{}", window.text("#left"));
    assert!(window.text("#command").contains(&format!("sudo sh -s -- {code}")));
    window.check_looks("code-issued");
    window.go(&format!("{}/slowdns", app.url));
    assert_eq!(shown_code(&window), code, "it survives a reload");
    window.wait_for("#left", |text| text.starts_with("Valid for "));
    let machine = Machine::new(1);
    let token = machine.prechecked(&app, &code);
    window.wait_for("#news", |text| text == "The installer has checked the code. It is valid.");
    let activated = machine.activate(&app, &code, &token);
    window.wait_for("#news", |text| text.contains("ns1.example.com is using the code"));
    assert_eq!(window.text("#left"), "In use.");
    let copies = "return document.querySelectorAll('[data-copy]:not([hidden])').length";
    assert_eq!(window.script(copies), 0, "it cannot be copied while it is in use");
    let activation = crate::harness::Activation {
        id: activated.data("activation_id"),
        token: activated.data("install_token"),
    };
    activation.release(&app);
    window.wait_for("#news", |text| text.contains("valid again"));
    window.wait_for("#left", |text| text.starts_with("Valid for "));
    machine.install(&app, &code).confirm(&app);
    window.wait_for("#news", |text| text == "ns1.example.com is installed.");
    assert_eq!(window.text("#left"), "Used.");
    window.check_looks("code-installed");
    assert_eq!(window.script(copies), 0);
    window.go(&format!("{}/slowdns", app.url));
    assert_eq!(window.script("return document.getElementById('result').hidden"), true);
}

#[test]
fn the_page_shows_an_installation_by_its_own_command_to_the_first_check_in() {
    let payloads = tempfile::tempdir().unwrap();
    let payload = "#!/bin/sh\necho \"$1 $IPTUNNEL_HOSTNAME\" > \"$IPTUNNEL_ROOT/payload-ran\"\n";
    std::fs::write(payloads.path().join("slowdns.sh"), payload).unwrap();
    let app = TestApp::start_with(|c| {
        c.push(("installer.payloads", payloads.path().display().to_string()));
    });
    let window = open(&app);
    window.click("#issue");
    shown_code(&window);
    let machine = tempfile::tempdir().unwrap();
    let root = machine.path().display();
    // The command of the page, at the port of this test, and without the rights of root.
    let shown = window.text("#command");
    let here = shown.replace(app.config.server.public_url.as_str(), &app.url);
    assert!(
        here.contains(&format!("curl -fsSL {}/slowdns/install.sh | sudo sh", app.url)),
        "{shown}"
    );
    let options =
        format!("--yes --root {root} --server {} --ip 1.2.3.4 --hostname ns1.example.com", app.url);
    let command = format!("{} {options}", here.replace("| sudo sh", "| sh"));
    let installed =
        Command::new("sh").args(["-c", &command]).stdin(Stdio::null()).output().unwrap();
    let told = String::from_utf8_lossy(&installed.stdout).into_owned()
        + &String::from_utf8_lossy(&installed.stderr);
    assert!(installed.status.success(), "{told}");
    let ran = std::fs::read_to_string(machine.path().join("payload-ran")).unwrap();
    assert_eq!(ran, "install ns1.example.com\n");
    window.wait_for("#news", |text| text == "ns1.example.com is installed and has checked in.");
    let done = "return document.querySelectorAll('#steps li.done').length";
    assert_eq!(window.script(done), 6, "all steps are done");
    assert_eq!(window.text("#left"), "Used.");
    window.check_looks("code-checked-in");
}

#[test]
fn a_code_counts_down_and_turns_into_a_new_one() {
    let app = TestApp::start_with(|c| c.push(("codes.ttl_seconds", "8".into())));
    let window = open(&app);
    window.click("#issue");
    let first = shown_code(&window);
    let left = |text: &str| text.strip_prefix("Valid for 0:0")?.parse::<u32>().ok();
    let before = left(&window.text("#left")).expect("less than ten seconds");
    window.wait_for("#left", |text| left(text).is_some_and(|now| now < before));
    window.wait_for("#news", |text| text == "This code has expired. Get a new one.");
    assert_eq!(window.text("#issue"), "Get a new code");
    window.check_looks("code-expired");
    window.click("#issue");
    window.wait_for("#code", |text| text.starts_with("IPT-SD-") && text != first);
    assert!(window.text("#left").starts_with("Valid for "));
}

#[test]
fn a_prechecked_installation_is_shown_after_the_codes_expiry() {
    let app = TestApp::start_with(|c| c.push(("codes.ttl_seconds", "120".into())));
    let window = open(&app);
    window.click("#issue");
    let code = shown_code(&window);
    let machine = Machine::new(1);
    let token = machine.prechecked(&app, &code);
    window.wait_for("#news", |text| text == "The installer has checked the code. It is valid.");
    // The server reports the expiry before the page's own countdown ends.
    app.clock.advance(150);
    window.wait_for("#left", |text| text.starts_with("Expired for other servers."));
    assert_eq!(window.text("#issue"), "Get another code");
    assert_eq!(machine.activate(&app, &code, &token).status, 200);
    window.wait_for("#news", |text| text.contains("ns1.example.com is using the code"));
    window.click("#issue");
    window.wait_for("#code", |text| text.starts_with("IPT-SD-") && text != code);
    assert_eq!(window.text("#hostname"), "the server", "the next code has no host name yet");
}

#[test]
fn a_refusal_says_when_to_try_again() {
    let app = TestApp::start_with(|c| c.push(("limits.issue_per_ip_hour", "0".into())));
    let window = open(&app);
    window.click("#issue");
    let words = window.wait_for("#message", |text| !text.is_empty());
    assert!(words.starts_with("Your network has had all its codes for this hour."), "{words}");
    assert!(words.contains("You can try again in 14 minutes, at "), "{words}");
    window.check_looks("code-refused");
}

#[test]
fn a_lost_session_is_renewed_silently() {
    let app = TestApp::start();
    let window = open(&app);
    app.clock.advance(3 * 86_400);
    window.click("#issue");
    shown_code(&window);
    assert_eq!(window.text("#message"), "");
}

#[test]
fn without_scripts_the_page_still_issues_a_code() {
    let app = TestApp::start();
    let window = Window::open();
    window.without_scripts();
    window.go(&format!("{}/slowdns", app.url));
    window.click("#issue");
    let code = shown_code(&window);
    assert!(window.text("#left").starts_with("Valid until "), "{}", window.text("#left"));
    window.go(&format!("{}/slowdns", app.url));
    assert_eq!(shown_code(&window), code);
    Machine::new(1).install(&app, &code);
    window.go(&format!("{}/slowdns", app.url));
    assert_eq!(window.text("#left"), "In use.");
}
