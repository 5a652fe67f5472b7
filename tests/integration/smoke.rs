//! One whole installation, with the very bytes of the reference.

use crate::harness::{Machine, TestApp};

#[test]
fn an_installation_goes_from_code_to_confirmation_and_the_server_ends_in_order() {
    let mut app = TestApp::start();
    let code = app.issue();
    let activation = Machine::new(1).install(&app, &code);
    assert_eq!(activation.confirm(&app).status, 200);
    assert_eq!(activation.confirm(&app).told(), (409, "token_used".into()));
    app.stop().unwrap();
}

#[test]
fn healthz_answers_as_the_reference_shows() {
    let answer = TestApp::start().get("/api/v2/healthz");
    assert_eq!(answer.text, r#"{"data":{"status":"ok"},"meta":{"message":"OK"}}"#);
}
