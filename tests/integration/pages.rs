//! The public pages: contents with and without scripts, and security headers.

use crate::harness::{Answer, Browser, TestApp, send};

/// Returns the code on a page.
fn code_on(page: &Answer) -> &str {
    let start = page.text.find("IPT-SD-").unwrap_or_else(|| panic!("no code in {}", page.text));
    &page.text[start..start + 27]
}

/// Sends the page's form as a browser without scripts does.
fn submit(app: &TestApp, browser: &Browser<'_>) -> Answer {
    let request = app.client.post(format!("{}/slowdns", app.url));
    let request = request.header("user-agent", &browser.user_agent);
    send(request.header("cookie", &browser.cookie).header("origin", &app.url))
}

#[test]
fn the_start_page_links_to_every_product() {
    let app = TestApp::start_with(|c| c.push(("products.vpn", "VP".into())));
    let page = app.get("/");
    assert_eq!(page.status, 200);
    for link in ["href=\"/slowdns\"", "href=\"/vpn\"", "href=\"/docs\""] {
        assert!(page.text.contains(link), "{link}");
    }
    assert!(page.text.contains("SlowDNS") && page.text.contains(">vpn<"));
}

#[test]
fn every_page_has_a_strict_policy_and_is_not_cached() {
    let app = TestApp::start();
    let browser = app.browser("slowdns");
    let missing =
        send(app.client.get(format!("{}/nothing", app.url)).header("accept", "text/html"));
    for page in [app.get("/"), app.get("/slowdns"), submit(&app, &browser), missing] {
        let policy = page.header("content-security-policy");
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'"));
        assert_eq!(page.header("cache-control"), "no-store");
        assert_eq!(page.header("referrer-policy"), "same-origin");
        assert_eq!(page.header("x-content-type-options"), "nosniff");
        for forbidden in ["style=", "<style", "onclick", "http-equiv"] {
            assert!(!page.text.contains(forbidden), "{forbidden}");
        }
        let own = page.text.replace(app.config.server.public_url.origin(), "");
        assert!(!own.contains("src=\"http") && !own.contains("href=\"http"), "{own}");
    }
}

#[test]
fn the_page_with_its_assets_is_under_30_000_bytes() {
    let app = TestApp::start();
    let page = app.get("/slowdns");
    let mut total = page.text.len();
    for loaded in page.text.split("\"/assets/").skip(1) {
        let name = loaded.split('"').next().unwrap();
        let asset = app.get(&format!("/assets/{name}"));
        assert_eq!(asset.status, 200, "{name}");
        total += asset.text.len();
    }
    assert!(total > 5_000 && total < 30_000, "{total}");
}

#[test]
fn an_asset_in_the_browsers_cache_is_not_sent_again() {
    let app = TestApp::start();
    let first = app.get("/assets/page.css");
    assert!(first.header("content-type").starts_with("text/css"));
    let tag = first.header("etag").to_owned();
    let again = |tag: &str| {
        send(app.client.get(format!("{}/assets/page.css", app.url)).header("if-none-match", tag))
    };
    assert_eq!((again(&tag).status, again(&tag).text.as_str()), (304, ""));
    assert_eq!(again(&format!("\"other\", W/{tag}")).status, 304, "a proxy may weaken it");
    assert_eq!(again("\"other\"").status, 200);
    assert_eq!(app.get("/assets/nothing.css").status, 404);
}

#[test]
fn without_scripts_the_form_issues_a_usable_code() {
    let app = TestApp::start();
    let browser = app.browser("slowdns");
    let page = submit(&app, &browser);
    assert_eq!(page.status, 201, "{}", page.text);
    let code = code_on(&page).to_owned();
    assert!(page.text.contains("Valid until 17:51:40 (UTC)"), "{}", page.text);
    assert!(page.text.contains(&format!("/slowdns/install.sh | sudo sh -s -- {code}")));
    assert!(page.text.contains(&format!("SLOWDNS_INSTALL_CODE={code} sh -s -- --yes")));
    // The cookie that brings it back holds no code that can be read, and is of no use to another session.
    let mut cookies = page.header("set-cookie").lines();
    let kept = cookies.find(|set| set.starts_with("slowdns_code=")).unwrap();
    assert!(
        kept.contains("HttpOnly") && kept.contains("Path=/slowdns") && !kept.contains(&code[7..])
    );
    let kept = kept.split(';').next().unwrap();
    let reload = |browser: &Browser<'_>| {
        let request = app.client.get(format!("{}/slowdns", app.url));
        let request = request.header("user-agent", &browser.user_agent);
        send(request.header("cookie", format!("{}; {kept}", browser.cookie)))
    };
    assert!(reload(&browser).text.contains(&code));
    assert!(!reload(&app.browser("slowdns")).text.contains("IPT-SD-"));
    crate::harness::Machine::new(1).install(&app, &code).confirm(&app);
    let used = reload(&browser);
    assert!(!used.text.contains("IPT-SD-"), "{}", used.text);
}

#[test]
fn the_form_and_the_api_share_session_limits_and_messages() {
    let app = TestApp::start_with(|c| c.push(("limits.issue_per_session_hour", "2".into())));
    let browser = app.browser("slowdns");
    assert_eq!(submit(&app, &browser).status, 201);
    assert_eq!(browser.issue().status, 201);
    let (page, api) = (submit(&app, &browser), browser.issue());
    assert_eq!((page.status, api.status), (429, 429));
    assert_eq!(page.header("retry-after"), "800");
    assert_eq!(page.header("ratelimit"), api.header("ratelimit"));
    let words =
        "This browser has had all its codes for this hour. You can try again in 14 minutes.";
    assert!(page.text.contains(words), "{}", page.text);
    assert!(page.text.contains("<button id=\"issue\""), "the button is there again");
}

#[test]
fn a_lost_session_is_reported_on_the_page_and_renewed() {
    let app = TestApp::start();
    let mut browser = app.browser("slowdns");
    browser.cookie.clear();
    let page = submit(&app, &browser);
    assert_eq!(page.status, 403);
    assert!(page.text.contains("Open the SlowDNS page first"), "{}", page.text);
    browser.cookie = page.header("set-cookie").split(';').next().unwrap().to_owned();
    assert_eq!(submit(&app, &browser).status, 201);
}

#[test]
fn another_sites_form_gets_no_code() {
    let app = TestApp::start();
    let browser = app.browser("slowdns");
    let request = app.client.post(format!("{}/slowdns", app.url));
    let request = request.header("user-agent", &browser.user_agent);
    let request = request.header("cookie", &browser.cookie);
    let page = send(request.header("origin", "https://evil.example.com"));
    assert_eq!(page.status, 403);
    assert!(!page.text.contains("IPT-SD-"));
}

#[test]
fn the_configured_command_is_escaped_on_the_page() {
    let app = TestApp::start_with(|c| {
        c.push((
            "pages.install_command",
            "get {code} --for={product} \"<b>&\" '{public_url}'".into(),
        ));
    });
    let page = submit(&app, &app.browser("slowdns"));
    assert!(!page.text.contains("<b>&"), "{}", page.text);
    let code = code_on(&page).to_owned();
    assert!(page.text.contains(&format!("get {code} --for=slowdns ")), "{}", page.text);
}
