//! One whole installation, with exactly the replies of the reference.

use crate::harness::{Machine, TestApp};

#[test]
fn a_code_is_activated_and_confirmed_and_the_server_shuts_down_cleanly() {
    let mut app = TestApp::start();
    let code = app.issue();
    let activation = Machine::new(1).install(&app, &code);
    assert_eq!(activation.confirm(&app).status, 200);
    assert_eq!(activation.confirm(&app).told(), (409, "token_used".into()));
    app.stop().unwrap();
}

#[test]
fn healthz_replies_exactly_as_in_the_reference() {
    let answer = TestApp::start().get("/api/v2/healthz");
    assert_eq!(answer.text, r#"{"data":{"status":"ok"},"meta":{"message":"OK"}}"#);
}
