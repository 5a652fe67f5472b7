//! HTTP as clients really speak it.

use crate::harness::{TestApp, send};

#[test]
fn of_several_cookies_with_one_name_any_valid_one_counts() {
    let app = TestApp::start();
    let browser = app.browser("slowdns");
    let good = browser.cookie.clone();
    let issue = |cookies: &[&[u8]]| {
        let url = format!("{}/api/v2/slowdns/code/issue", app.url);
        let request = app.client.post(url).header("user-agent", &browser.user_agent);
        let request = cookies.iter().fold(request, |request, cookie| {
            request.header("cookie", reqwest::header::HeaderValue::from_bytes(cookie).unwrap())
        });
        send(request).status
    };
    let stale = "slowdns_browser=eyJhbGciOiJIUzI1NiJ9.e30.x";
    assert_eq!(issue(&[format!("{stale}; {good}").as_bytes()]), 201);
    assert_eq!(issue(&[format!("{good}; {stale}").as_bytes()]), 201);
    assert_eq!(issue(&[stale.as_bytes(), good.as_bytes()]), 201);
    assert_eq!(issue(&[&[b"x=\xc3\xa4\xff; ", good.as_bytes()].concat()]), 201);
    assert_eq!(issue(&[stale.as_bytes()]), 403);
    assert_eq!(issue(&[]), 403);
}
