//! The console in a browser.

use super::driver::Window;
use crate::harness::{Machine, PATIENCE, TestApp};
use serde_json::json;

const LEFT: &str = "\u{e012}";
const ENTER: &str = "\u{e007}";

fn logged_in(app: &TestApp) -> Window {
    let window = Window::open();
    window.go(&format!("{}/console", app.admin));
    window.check_looks("console-login");
    window.fill("#token", &app.master());
    window.press_for(ENTER, "h1", |text| text == "Now");
    window
}

/// Opens a page of the session that the window is logged in to.
fn go(window: &Window, app: &TestApp, page: &str) {
    let base = window.script("return location.pathname.split('/').slice(0, 3).join('/')");
    window.go(&format!("{}{}/{page}", app.admin, base.as_str().unwrap()));
}

#[test]
fn a_new_tab_goes_on_with_the_session_until_it_ends() {
    let app = TestApp::start();
    let window = logged_in(&app);
    for address in ["", "/console", "/console/servers"] {
        window.go(&format!("{}{address}", app.admin));
        window.wait_for("h1", |text| text == "Now");
    }
    go(&window, &app, "sessions");
    window.wait_for("h1", |text| text == "Sessions");
    window.click("tbody .danger");
    window.wait_for("h1", |text| text == "Console");
    window.go(&format!("{}/console", app.admin));
    window.wait_for("h1", |text| text == "Console");
}

#[test]
fn the_charts_follow_the_load_and_every_page_is_accessible() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("webhooks.toml");
    // Its receiver is inside, so it is failing.
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let office = format!("[office]\nurl = \"https://127.0.0.1\"\nsecrets = [\"{secret}\"]\n");
    std::fs::write(&file, office).unwrap();
    let app =
        TestApp::start_with(|flags| flags.push(("webhooks.file", file.display().to_string())));
    let window = logged_in(&app);
    for number in 1..=4 {
        let code = app.issue();
        let activation = Machine::new(number).install(&app, &code);
        if number % 2 == 0 {
            activation.confirm(&app);
            Machine::new(90).precheck(&app, &code);
        }
        let body = json!({"token": app.master(), "ip": format!("9.9.9.{number}"),
            "hostname": format!("s{number}.example.com")});
        app.post("/register", &body);
    }
    let chart = "main .card:first-child svg";
    let line = "return document.querySelector('main .card path.line').getAttribute('d')";
    window.script("document.querySelector('main .wide').focus({ preventScroll: true })");
    let before = window.script(line);
    let begun = std::time::Instant::now();
    while window.script(line) == before {
        app.get("/api/v2/healthz");
        assert!(begun.elapsed() < PATIENCE, "the chart stands still");
    }
    assert!(window.script(&format!("return !!document.querySelector('{chart}')")) == true);
    assert!(window.script("return document.activeElement.matches('main .wide')") == true);
    assert!(window.text(".health").contains("servers 4 live, 0 stale, 0 revoked"));
    // The figure before the last is read with the keyboard, and stays while the page is refreshed.
    window.script("document.querySelector('.plot').focus()");
    let reading = ".card:first-child .reading";
    window.press_for(LEFT, reading, |text| text.starts_with("2 s ago: "));
    window.check_looks("console-now");
    for (page, title) in [
        ("codes", "Codes and activations"),
        ("servers", "Servers"),
        ("settings", "Settings"),
        ("audit", "Audit"),
        ("access", "Access"),
        ("sessions", "Sessions"),
        ("webhooks", "Webhooks"),
        ("load", "Load"),
    ] {
        window.click(&format!(".bar a[href$='/{page}']"));
        window.wait_for("h1", |text| text == title);
        window.check_looks(&format!("console-{page}"));
    }
    go(&window, &app, "audit");
    assert!(window.text("tbody").contains("Logged in") && !window.text("tbody").contains("Code"));
    window.click(".tabs li:last-child a");
    window.wait_for("tbody", |text| text.contains("Code issued"));
    go(&window, &app, "codes");
    window.click("tbody a");
    window.wait_for(".message", |text| text.contains("Another machine tried"));
    window.check_looks("console-code");
}

#[test]
fn a_server_is_revoked_and_restored_after_a_confirmation() {
    let app = TestApp::start();
    let body = json!({"token": app.master(), "ip": "9.9.9.9", "hostname": "s9.example.com"});
    app.post("/register", &body);
    let window = logged_in(&app);
    go(&window, &app, "servers");
    let state = "tbody .state";
    assert_eq!(window.text(state), "live");
    window.click("tbody .change summary");
    window.click("tbody .danger");
    window.wait_for(state, |text| text == "revoked");
    assert_eq!(app.post("/register", &body).status, 403);
    // By the keyboard alone.
    window.tab_to("tbody .change summary");
    window.press_for(ENTER, "tbody .danger", |text| !text.is_empty());
    window.tab_to("tbody .danger");
    window.press_for(ENTER, state, |text| text == "live");
    assert_eq!(app.post("/register", &body).status, 200);
    // A note is written where it stands.
    assert_eq!(window.text("tbody .edit summary"), "Add a note");
    window.click("tbody .edit summary");
    window.fill("tbody [name=note]", "in Oslo");
    window.click("tbody .edit button");
    window.wait_for("tbody .edit summary", |text| text == "in Oslo");
    // The same for those that are ticked.
    window.click("[data-all]");
    assert_eq!(window.text("[data-count]"), "1 of 1 ticked");
    window.click("#several button");
    window.wait_for("h1", |text| text == "Revoke 1 server?");
    window.check_looks("console-several");
    window.click("main .danger");
    window.wait_for(state, |text| text == "revoked");
}

#[test]
fn a_changed_setting_is_in_force_at_once_and_after_a_restart_until_undone() {
    let app = TestApp::start();
    let ttl = |app: &TestApp| app.browser("slowdns").issue().json()["data"]["ttl_seconds"].clone();
    let field = "[aria-label='codes.ttl_seconds']";
    let window = logged_in(&app);
    go(&window, &app, "settings");
    window.fill(field, "0");
    window.click(&format!("form:has({field}) button"));
    window.wait_for(".message", |text| text.contains("codes.ttl_seconds = 0: must be"));
    assert_eq!(
        window.script("return document.activeElement.value"),
        "0",
        "what was refused is kept"
    );
    window.check_looks("console-settings-refused");
    window.fill(field, "77");
    window.click(&format!("form:has({field}) button"));
    window.wait_for(&format!("tr:has({field}) td:nth-child(3)"), |text| text.contains("override"));
    assert_eq!(window.text(&format!("tr:has({field}) .saved")), "Saved.");
    assert_eq!(window.text("h2"), "Changed");
    app.settle_settings();
    assert_eq!(ttl(&app), 77);
    let app = app.restart();
    assert_eq!(ttl(&app), 77);
    drop(window);
    let window = logged_in(&app);
    go(&window, &app, "settings");
    window.click(&format!("tr:has({field}) td:nth-child(3) button"));
    window.wait_for(&format!("tr:has({field}) td:nth-child(3)"), |text| text == "file");
    app.settle_settings();
    assert_eq!(ttl(&app), 300);
}

#[test]
fn a_token_is_created_copied_and_revoked_and_opens_a_console_without_what_its_role_forbids() {
    let app = TestApp::start();
    let window = logged_in(&app);
    go(&window, &app, "access");
    window.fill("form[action$='/create'] [name=name]", "Ada Lovelace");
    window.click("form[action$='/create'] option[value=view]");
    window.fill("form[action$='/create'] [name=networks]", "127.0.0.0/8, ::1");
    window.click("form[action$='/create'] .button");
    let secret = window.wait_for("#secret", |text| text.starts_with("ipt_"));
    window.click("[data-copy]");
    window.wait_for("#copied", |text| text == "Copied." || text.contains("selected"));
    window.check_looks("console-access-created");
    window.click(".bar .who button");
    window.wait_for("h1", |text| text == "Console");
    window.fill("#token", &secret);
    window.click("main button");
    window.wait_for(".bar .who", |text| text.contains("Ada Lovelace") && text.contains("view"));
    go(&window, &app, "access");
    window.wait_for("tbody td:nth-child(3)", |text| text == "good");
    assert_eq!(window.script("return document.querySelectorAll('main form').length"), 0);
    window.check_looks("console-access-view");
    let tokens = format!("{}/admin/tokens/1/revoke", app.admin);
    let revoked = crate::harness::send(app.client.post(tokens).bearer_auth(app.master()));
    assert_eq!(revoked.status, 200);
    window.go(&format!("{}/console", app.admin));
    window.wait_for("h1", |text| text == "Console");
}
