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
    assert_eq!(window.script("return getSelection().toString()"), window.text("#command"));
}

#[test]
fn a_code_can_be_issued_and_copied_with_the_keyboard() {
    let app = TestApp::start();
    let window = open(&app);
    assert_eq!(window.tab_to("#issue"), 2, "behind the link that skips to the content");
    window.press_for(ENTER, "#code", |text| text.starts_with("IPT-SD-"));
    window.press_for("c", "#news", |text| text == "Copied.");
    let focused = window.script("return document.activeElement.id");
    assert_eq!(focused, "copy", "the first thing to press");
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
    window.go(&app.url);
    assert!(!window.scrolls_sideways());
    window.check_looks("landing");
}

#[test]
fn the_reference_is_readable_in_both_themes_and_on_a_narrow_screen() {
    let app = TestApp::start();
    let window = Window::open();
    window.go(&format!("{}/docs", app.url));
    window.check_looks("docs");
    window.go(&format!("{}/docs#install_code_used", app.url));
    assert!(window.text("#install_code_used").contains("install_code_used"));
    window.fill("#search", "release token");
    window.wait_for("#found", |text| text.contains(" of ") && !text.starts_with("0 "));
    let shown = window.script("return document.querySelectorAll('article:not([hidden])').length");
    let all = window.script("return document.querySelectorAll('article').length");
    assert!(shown.as_u64() < all.as_u64(), "{shown} of {all}");
    window.width(360);
    assert!(!window.scrolls_sideways());
}
