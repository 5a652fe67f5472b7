//! The code page, its cookie, and the codes issued on it.

use crate::harness::{Answer, Browser, Machine, TestApp, send, with};
use reqwest::header::HeaderValue;

fn required() -> (u16, String) {
    (403, "browser_session_required".into())
}

fn invalid() -> (u16, String) {
    (403, "browser_session_invalid".into())
}

fn granted() -> (u16, String) {
    (201, String::new())
}

/// Starts a server on which a session may get two codes an hour.
fn two_a_session() -> TestApp {
    TestApp::start_with(|c| c.push(("limits.issue_per_session_hour", "2".into())))
}

/// The attributes of a cookie in lower case, without its name and value.
fn attributes(page: &Answer) -> Vec<String> {
    let mut attributes: Vec<_> = page
        .header("set-cookie")
        .split(';')
        .skip(1)
        .map(|attribute| attribute.trim().to_lowercase())
        .filter(|attribute| !attribute.starts_with("max-age") && !attribute.starts_with("expires"))
        .collect();
    attributes.sort_unstable();
    attributes
}

#[test]
fn issue_replies_exactly_as_in_the_reference() {
    let answer = TestApp::start().browser("slowdns").issue();
    let expected = format!(
        "{{\"data\":{{\"install_code\":\"{}\",\"expires_at\":\"2030-03-17T17:51:40+00:00\",\
         \"ttl_seconds\":300}},\"meta\":{{\"message\":\"SlowDNS install code issued\"}}}}",
        answer.data("install_code")
    );
    assert_eq!((answer.status, answer.text.as_str()), (201, expected.as_str()));
    assert_eq!(answer.header("cache-control"), "no-store");
}

#[test]
fn issue_without_a_cookie_fails_exactly_as_in_the_reference() {
    let app = TestApp::start();
    let answer = app.post_text("/api/v2/slowdns/code/issue", "");
    let expected = "{\"error\":{\"code\":\"browser_session_required\",\"message\":\"Open the \
                    SlowDNS page first before requesting an install code.\"}}";
    assert_eq!((answer.status, answer.text.as_str()), (403, expected));
}

#[test]
fn issue_ignores_its_body() {
    let app = TestApp::start();
    for body in ["", "{}", "[", "nonsense", "{\"product\":\"vpn\"}"] {
        let answer = send(app.browser("slowdns").issue_request().body(body));
        assert_eq!(answer.told(), granted(), "{body}");
    }
}

#[test]
fn the_page_sets_a_cookie_that_scripts_and_other_sites_cannot_use() {
    let app = TestApp::start();
    let page = app.get("/slowdns");
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").starts_with("text/html"));
    assert!(page.header("set-cookie").starts_with("slowdns_browser="));
    assert_eq!(attributes(&page), ["httponly", "path=/", "samesite=strict"]);
}

#[test]
fn the_cookie_is_secure_where_the_public_url_is_https() {
    let url = ("server.public_url", "https://codes.example.com".to_owned());
    let app = TestApp::start_with(|c| c.push(url));
    assert!(attributes(&app.get("/slowdns")).contains(&"secure".to_owned()));
}

#[test]
fn the_session_is_bound_to_the_user_agent() {
    let app = TestApp::start();
    let mut browser = app.browser("slowdns");
    browser.user_agent = "Another/1".into();
    assert_eq!(browser.issue().told(), invalid());
}

#[test]
fn a_browser_without_a_user_agent_gets_a_session_too() {
    let app = TestApp::start();
    let page = app.get("/slowdns");
    let cookie = page.header("set-cookie").split(';').next().unwrap();
    let request = app.client.post(format!("{}/api/v2/slowdns/code/issue", app.url));
    assert_eq!(send(request.header("cookie", cookie)).told(), granted());
}

#[test]
fn a_session_is_valid_for_1799_seconds_and_expired_in_the_1800th() {
    let app = TestApp::start();
    let browser = app.browser("slowdns");
    app.clock.advance(1799);
    assert_eq!(browser.issue().told(), granted());
    app.clock.advance(1);
    assert_eq!(browser.issue().told(), required());
}

#[test]
fn a_cookie_that_is_not_ours_is_invalid() {
    let app = TestApp::start();
    let mut browser = app.browser("slowdns");
    let genuine = browser.cookie.clone();
    for forged in
        ["slowdns_browser=x".into(), "slowdns_browser=a.b.c".into(), format!("{genuine}x")]
    {
        browser.cookie = forged;
        assert_eq!(browser.issue().told(), invalid(), "{}", browser.cookie);
    }
    browser.cookie = TestApp::start().browser("slowdns").cookie;
    assert_eq!(browser.issue().told(), invalid());
}

#[test]
fn other_cookies_are_ignored_even_if_malformed() {
    let app = TestApp::start();
    let mut browser = app.browser("slowdns");
    let ours = browser.cookie.clone();
    for beside in ["a=b; {}; c=d", "{}; flag", "flag; {}", "=nameless; {}", "a=%ff; {}", "; ;{};"] {
        browser.cookie = beside.replace("{}", &ours);
        assert_eq!(browser.issue().told(), granted(), "{beside}");
    }
}

fn open_again(browser: &mut Browser<'_>) {
    assert_eq!(browser.open().status, 200);
}

#[test]
fn opening_the_page_again_keeps_the_session_and_its_limit() {
    let app = two_a_session();
    let mut browser = app.browser("slowdns");
    assert_eq!([browser.issue().status, browser.issue().status], [201, 201]);
    open_again(&mut browser);
    assert_eq!(browser.issue().status, 429);
}

#[test]
fn a_renewed_cookie_lives_for_another_1800_seconds() {
    let app = TestApp::start();
    let mut browser = app.browser("slowdns");
    app.clock.advance(1700);
    open_again(&mut browser);
    app.clock.advance(1799);
    assert_eq!(browser.issue().told(), granted());
}

/// Whether a cookie that expired `ago` seconds ago keeps its session when the page is opened. The
/// limit is lowered to what two copies of the session can tell: a kept session is counted with
/// the copy of its first cookie, a new one on its own.
fn kept_after(ago: u64) -> bool {
    let app = TestApp::start_with(|c| {
        c.push(("limits.issue_per_session_hour", "1".into()));
        c.push(("session.ttl_seconds", "60".into()));
    });
    let mut first = app.browser("slowdns");
    app.clock.advance(60 + ago);
    let old = first.cookie.clone();
    open_again(&mut first);
    assert_eq!(first.issue().told(), granted());
    first.cookie = old;
    open_again(&mut first);
    first.issue().status == 429
}

#[test]
fn a_genuine_cookie_expired_by_up_to_a_day_keeps_its_session() {
    assert!(kept_after(0));
    assert!(kept_after(86_399));
}

#[test]
fn a_cookie_expired_by_more_than_a_day_begins_a_new_session() {
    assert!(!kept_after(86_401));
}

#[test]
fn a_forged_cookie_or_another_browsers_begins_a_new_session() {
    let app = two_a_session();
    let thief = |change: fn(&mut Browser<'_>)| {
        let mut browser = app.browser("slowdns");
        assert_eq!([browser.issue().status, browser.issue().status], [201, 201]);
        change(&mut browser);
        open_again(&mut browser);
        browser.issue().status
    };
    assert_eq!(thief(|browser| browser.cookie.push('x')), 201);
    assert_eq!(thief(|browser| browser.user_agent.push('x')), 201);
    assert_eq!(thief(|_| {}), 429);
}

/// Returns the outcome of issue for a request with these headers.
fn asked_with(app: &TestApp, headers: &[(&'static str, &str)]) -> (u16, String) {
    let mut request = app.browser("slowdns").issue_request();
    for (name, value) in headers {
        request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    send(request).told()
}

#[test]
fn sec_fetch_site_admits_only_our_own_page_and_direct_requests() {
    let app = TestApp::start();
    for good in ["same-origin", "none"] {
        assert_eq!(asked_with(&app, &[("sec-fetch-site", good)]), granted(), "{good}");
    }
    for bad in ["same-site", "cross-site", "anything", "", "\u{e9}"] {
        assert_eq!(asked_with(&app, &[("sec-fetch-site", bad)]), invalid(), "{bad:?}");
    }
}

#[test]
fn sec_fetch_site_takes_precedence_over_origin() {
    let url = ("server.public_url", "https://codes.example.com".to_owned());
    let app = TestApp::start_with(|c| c.push(url));
    let both = |site, origin| asked_with(&app, &[("sec-fetch-site", site), ("origin", origin)]);
    assert_eq!(both("cross-site", "https://codes.example.com"), invalid());
    assert_eq!(both("same-origin", "https://evil.example.com"), granted());
}

#[test]
fn an_origin_must_be_the_public_urls_or_name_the_host() {
    let url = ("server.public_url", "https://codes.example.com".to_owned());
    let app = TestApp::start_with(|c| c.push(url));
    assert_eq!(asked_with(&app, &[("origin", "https://codes.example.com")]), granted());
    assert_eq!(asked_with(&app, &[("origin", &app.url)]), granted());
    for bad in ["https://evil.example.com", "https://codes.example.com.evil.com", "null", ""] {
        assert_eq!(asked_with(&app, &[("origin", bad)]), invalid(), "{bad}");
    }
}

#[test]
fn a_changed_network_is_not_refused() {
    let app = TestApp::start_with(|c| c.push(("server.trusted_proxies", "127.0.0.1".into())));
    let browser = app.browser("slowdns");
    let from = |ip: &str| send(browser.issue_request().header("x-forwarded-for", ip)).told();
    assert_eq!((from("1.1.1.1"), from("2.2.2.2")), (granted(), granted()));
}

#[test]
fn a_second_product_has_its_own_page_cookie_and_letters() {
    let app = TestApp::start_with(|c| c.push(("products.vpn", "VP".into())));
    let browser = app.browser("vpn");
    assert!(browser.cookie.starts_with("vpn_browser="), "{}", browser.cookie);
    let code = browser.issue().data("install_code");
    assert!(code.starts_with("IPT-VP-"), "{code}");
    assert!(app.issue().starts_with("IPT-SD-"));
}

#[test]
fn the_cookie_of_one_product_is_not_valid_for_another() {
    let app = TestApp::start_with(|c| c.push(("products.vpn", "VP".into())));
    let mut browser = app.browser("slowdns");
    browser.product = "vpn".into();
    assert_eq!(browser.issue().told(), required());
}

#[test]
fn a_code_on_another_products_route_is_a_mismatch() {
    let app = TestApp::start_with(|c| c.push(("products.vpn", "VP".into())));
    let code = app.browser("vpn").issue().data("install_code");
    let body = with(Machine::new(1).precheck_body(&code), "product", "vpn");
    let mismatch = (403, "product_mismatch".to_owned());
    assert_eq!(app.post("/api/v2/vpn/install/precheck", &body).status, 200);
    assert_eq!(app.step("precheck", &with(body.clone(), "product", "slowdns")).told(), mismatch);
    assert_eq!(app.step("precheck", &body).told(), mismatch);
    let slowdns = Machine::new(1).precheck_body(&app.issue());
    assert_eq!(app.post("/api/v2/vpn/install/precheck", &slowdns).told(), mismatch);
}

#[test]
fn a_product_that_is_not_configured_has_no_page_and_no_routes() {
    let app = TestApp::start();
    assert_eq!(app.get("/vpn").status, 404);
    for route in ["code/issue", "install/precheck", "install/activate", "install/release"] {
        let answer = app.post_text(&format!("/api/v2/vpn/{route}"), "{}");
        assert_eq!(answer.told(), (404, "not_found".into()), "{route}");
    }
}

#[test]
fn a_session_survives_a_restart_and_a_key_rotation() {
    let app = TestApp::start();
    let mut browser = app.browser("slowdns");
    let (cookie, user_agent) = (browser.cookie.clone(), browser.user_agent.clone());
    assert_eq!(browser.issue().told(), granted());
    browser.cookie.clear();
    let path = &app.config.auth.signing_key_file;
    let mut keys = iptunnel_server::secrets::SigningFile::read(path).unwrap();
    keys.add(iptunnel_domain::Timestamp(crate::harness::START)).unwrap();
    keys.promote(None).unwrap();
    let app = app.restart();
    let mut again = app.browser("slowdns");
    (again.cookie, again.user_agent) = (cookie, user_agent);
    assert_eq!(again.issue().told(), granted());
}
