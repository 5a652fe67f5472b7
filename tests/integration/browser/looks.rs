//! What the pages look like and how they are used, whichever store the codes are in.

use super::code_page::{open, shown_code};
use super::driver::Window;
use crate::harness::TestApp;

const ENTER: &str = "\u{e007}";

#[test]
fn a_copy_that_the_browser_refuses_is_reported() {
    let app = TestApp::start();
    let window = open(&app);
    window.click("#issue");
    shown_code(&window);
    window.script(
        "navigator.clipboard.writeText = () => Promise.reject(new Error());
         document.execCommand = () => false;",
    );
    window.press_for("c", "#news", |text| text.starts_with("Your browser did not copy"));
    assert_eq!(window.script("return getSelection().toString()"), window.text("#code"));
}

#[test]
fn a_code_can_be_issued_and_copied_with_the_keyboard() {
    let app = TestApp::start();
    let window = open(&app);
    assert_eq!(window.tab_to("#issue"), 2, "behind the link that skips to the content");
    window.press_for(ENTER, "#code", |text| text.starts_with("IPT-SD-"));
    window.press_for("c", "#news", |text| text == "Copied.");
    let focused = window.script("return document.activeElement.id");
    assert_eq!(focused, "code", "a screen reader goes on at the code");
}

#[test]
fn a_narrow_screen_shows_everything_without_scrolling_sideways() {
    let app = TestApp::start();
    let window = open(&app);
    window.width(320);
    assert!(!window.scrolls_sideways());
    window.click("#issue");
    shown_code(&window);
    assert!(!window.scrolls_sideways());
    window.check_looks("code-narrow");
    window.go(&app.url);
    assert!(!window.scrolls_sideways());
    window.check_looks("landing-narrow");
}

#[test]
fn the_reference_is_readable_in_both_themes_and_on_a_narrow_screen() {
    let app = TestApp::start();
    let window = Window::open();
    window.go(&format!("{}/docs", app.url));
    window.check_looks("docs");
    window.go(&format!("{}/docs#install_code_used", app.url));
    assert!(window.text("#install_code_used").contains("install_code_used"));
    window.width(360);
    assert!(!window.scrolls_sideways());
    window.check_looks("docs-narrow");
}
