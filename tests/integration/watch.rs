//! The event stream that shows a code's progress on its page.

use crate::harness::{Answer, Browser, Machine, PATIENCE, TestApp, alone, send, wait_until};
use serde_json::json;
use std::io::{BufRead, BufReader};
use std::sync::mpsc::{Receiver, channel};

/// Returns a browser with a new code and its cookies.
fn issued<'a>(app: &'a TestApp) -> (Browser<'a>, String) {
    let mut browser = app.browser("slowdns");
    let answer = browser.issue();
    assert_eq!(answer.status, 201, "{}", answer.text);
    let codes = answer.header("set-cookie").split(';').next().unwrap().to_owned();
    browser.cookie = format!("{}; {codes}", browser.cookie);
    (browser, answer.data("install_code"))
}

fn stream_request(app: &TestApp, browser: &Browser<'_>) -> reqwest::blocking::RequestBuilder {
    let request = app.client.get(format!("{}/slowdns/events", app.url));
    request.header("user-agent", &browser.user_agent).header("cookie", &browser.cookie)
}

/// An open stream and its events.
struct Watch(Receiver<serde_json::Value>);

impl Watch {
    fn open(app: &TestApp, browser: &Browser<'_>) -> Self {
        let response = stream_request(app, browser).send().unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        let (send, receive) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(response).lines().map_while(Result::ok) {
                if let Some(data) = line.strip_prefix("data: ")
                    && send.send(serde_json::from_str(data).unwrap()).is_err()
                {
                    return;
                }
            }
        });
        Self(receive)
    }
    fn next(&self) -> serde_json::Value {
        self.0.recv_timeout(PATIENCE).expect("an event")
    }
    fn state(&self) -> String {
        self.next()["state"].as_str().unwrap().to_owned()
    }
    /// Waits for the end of the stream.
    fn ended(&self) -> bool {
        loop {
            match self.0.recv_timeout(PATIENCE) {
                Ok(_) => {}
                Err(error) => return error == std::sync::mpsc::RecvTimeoutError::Disconnected,
            }
        }
    }
}

#[test]
fn a_page_sees_every_state_of_its_code() {
    let app = TestApp::start();
    let (browser, code) = issued(&app);
    let watch = Watch::open(&app, &browser);
    let first = watch.next();
    assert_eq!(first["state"], "issued");
    assert_eq!(first["hint"], format!("{}...{}", &code[..11], &code[21..]));
    assert_eq!(
        (&first["ttl_seconds"], &first["hostname"]),
        (&300.into(), &serde_json::Value::Null)
    );
    assert!(!first.to_string().contains(&code));

    let machine = Machine::new(1);
    let token = machine.prechecked(&app, &code);
    assert_eq!(watch.state(), "prechecked");
    let activated = machine.activate(&app, &code, &token);
    let told = watch.next();
    assert_eq!(
        (&told["state"], &told["hostname"]),
        (&"activated".into(), &"ns1.example.com".into())
    );
    let activation = crate::harness::Activation {
        id: activated.data("activation_id"),
        token: activated.data("install_token"),
    };
    activation.release(&app);
    assert_eq!(watch.state(), "released");
    let again = machine.install(&app, &code);
    let mut states = vec![watch.state()];
    while states.last().unwrap() != "activated" {
        states.push(watch.state());
    }
    again.confirm(&app);
    assert_eq!(watch.state(), "confirmed");
    // A new stream sends the current state at once.
    assert_eq!(Watch::open(&app, &browser).state(), "confirmed");
}

#[test]
fn a_page_sees_its_server_register_and_check_in_for_the_first_time() {
    let app = TestApp::start();
    let (browser, code) = issued(&app);
    let watch = Watch::open(&app, &browser);
    let machine = Machine::new(1);
    let token = {
        let activation = machine.install(&app, &code);
        activation.confirm(&app);
        activation.token
    };
    let until = |watch: &Watch, state: &str| {
        let mut seen = watch.next();
        while seen["state"] != state {
            seen = watch.next();
        }
        seen
    };
    until(&watch, "confirmed");
    let agent = format!("ipa_{}", "0123456789ab".repeat(4));
    let body = json!({"token": token, "ip": machine.public_ip, "agent_token": agent});
    let server = app.post("/api/v2/servers/register", &body).data("server_id");
    assert_eq!(until(&watch, "registered")["hostname"], "ns1.example.com");
    let check_in = |token: &str| {
        app.post_as(token, &format!("/api/v2/servers/{server}/check-in"), &json!({})).status
    };
    assert_eq!(check_in("another"), 401);
    let later = Watch::open(&app, &browser);
    assert_eq!(later.state(), "registered", "a wrong token is no check-in");
    // Within the same second as the registration.
    assert_eq!(check_in(&agent), 200);
    assert_eq!(until(&watch, "checked_in")["hostname"], "ns1.example.com");
    until(&later, "checked_in");
    // Another server may not have heard of it yet.
    until(&Watch::open(&app, &browser), "checked_in");
    let logged = || {
        let path = "/admin/audit?action=server_checked_in";
        let request = app.client.get(format!("{}{path}", app.admin)).bearer_auth(app.master());
        send(request).json()["data"]["entries"].as_array().unwrap().clone()
    };
    wait_until("it is in the log", || !logged().is_empty());
    assert_eq!(logged()[0]["server"], server);
}

#[test]
fn a_page_does_not_take_the_server_of_another_install_for_its_own() {
    let app = TestApp::start();
    let (browser, code) = issued(&app);
    let machine = Machine::new(1);
    let register = |token: &str| {
        let body = json!({"token": token, "ip": machine.public_ip});
        assert_eq!(app.post("/api/v2/servers/register", &body).status, 200);
    };
    machine.install(&app, &code).confirm(&app);
    app.clock.advance(1);
    let other = machine.install(&app, &app.issue());
    other.confirm(&app);
    register(&other.token);
    app.settle();
    assert_eq!(Watch::open(&app, &browser).state(), "confirmed");
}

#[test]
fn a_stream_reports_that_a_code_has_expired() {
    let app = TestApp::start();
    let (browser, _) = issued(&app);
    app.clock.advance(300);
    assert_eq!(Watch::open(&app, &browser).state(), "expired");
}

#[test]
fn a_stream_sends_an_end_event_and_closes_after_half_an_hour() {
    let app = TestApp::start();
    let (browser, code) = issued(&app);
    let watch = Watch::open(&app, &browser);
    assert_eq!(watch.state(), "issued");
    Machine::new(1).prechecked(&app, &code);
    assert_eq!(watch.state(), "prechecked");
    app.clock.advance(30 * 60 - 1);
    assert_eq!(watch.state(), "expired", "the stream runs until then");
    app.clock.advance(1);
    assert_eq!(watch.next(), serde_json::json!({}), "the end event has no state");
    assert!(watch.ended());
}

#[test]
fn a_stream_that_nobody_reads_gives_its_place_back() {
    if !alone() {
        return;
    }
    let app = TestApp::start_with(|c| c.push(("server.idle_timeout_seconds", "1".into())));
    let (browser, _) = issued(&app);
    let unread: Vec<_> = (0..4).map(|_| stream_request(&app, &browser).send().unwrap()).collect();
    assert!(unread.iter().all(|stream| stream.status() == 200));
    wait_until("a fifth stream is granted", || {
        stream_request(&app, &browser).send().unwrap().status() == 200
    });
}

#[test]
fn a_page_that_opens_one_stream_after_the_other_is_told_the_end_after_half_an_hour() {
    let app = TestApp::start_with(|c| c.push(("server.idle_timeout_seconds", "1".into())));
    let (browser, _) = issued(&app);
    let first = send(stream_request(&app, &browser));
    assert!(first.text.contains("event: state") && !first.text.contains("event: end"), "{first:?}");
    let id = first.text.lines().find_map(|line| line.strip_prefix("id: ")).unwrap();
    app.clock.advance(30 * 60);
    let next = send(stream_request(&app, &browser).header("last-event-id", id));
    assert!(next.text.ends_with("event: end\ndata: {}\n\n"), "{next:?}");
    let anew = send(stream_request(&app, &browser).header("last-event-id", "99999999999"));
    assert!(anew.text.contains("event: state") && !anew.text.contains("event: end"), "{anew:?}");
}

#[test]
fn of_two_codes_only_the_prechecked_one_is_reported_as_prechecked() {
    let app = TestApp::start();
    let (mut browser, older) = issued(&app);
    let answer = browser.issue();
    let set = answer.header("set-cookie").lines().next().unwrap();
    // The cookie's path must cover the API that issues codes.
    assert!(set.split("; ").any(|attribute| attribute == "Path=/"), "{set}");
    let session = browser.cookie.split("; ").next().unwrap().to_owned();
    browser.cookie = format!("{session}; {}", set.split(';').next().unwrap());
    let watch = Watch::open(&app, &browser);
    let (newer, also) = (watch.next(), watch.next());
    assert_eq!((&newer["state"], &also["state"]), (&"issued".into(), &"issued".into()));
    assert!(also["hint"].as_str().unwrap().ends_with(&older[21..]), "{also}");
    Machine::new(1).prechecked(&app, &older);
    let told = watch.next();
    assert_eq!((&told["hint"], told["state"].as_str()), (&also["hint"], Some("prechecked")));
    // A page that connects later gets the same states.
    let later = Watch::open(&app, &browser);
    assert_eq!((later.state(), later.state()), ("issued".into(), "prechecked".into()));
    // The next event is about the older code: there was none about the newer one.
    Machine::new(1).install(&app, &older);
    let told = watch.next();
    assert_eq!((&told["hint"], told["state"].as_str()), (&also["hint"], Some("activated")));
}

#[test]
fn only_the_session_that_got_a_code_can_watch_it() {
    let app = TestApp::start();
    let (owner, _) = issued(&app);
    let codes = owner.cookie.split("; ").nth(1).unwrap().to_owned();
    let mut thief = app.browser("slowdns");
    thief.cookie = format!("{}; {codes}", thief.cookie);
    let told = |browser: &Browser<'_>| -> Answer { send(stream_request(&app, browser)) };
    assert_eq!(told(&thief).told(), (404, "not_found".into()));
    let stolen = Browser { app: &app, user_agent: "Other/1".into(), ..owner };
    assert_eq!(told(&stolen).told(), (403, "browser_session_invalid".into()));
    let nobody = Browser { cookie: codes, ..stolen };
    assert_eq!(told(&nobody).told(), (403, "browser_session_required".into()));
}

#[test]
fn a_fifth_stream_of_one_session_is_refused() {
    if !alone() {
        return;
    }
    let app = TestApp::start();
    let (browser, _) = issued(&app);
    let mut open: Vec<Watch> = (0..4).map(|_| Watch::open(&app, &browser)).collect();
    open.iter().for_each(|watch| assert_eq!(watch.state(), "issued"));
    let fifth = send(stream_request(&app, &browser));
    assert_eq!(fifth.told(), (429, "rate_limit_exceeded".into()));
    assert_eq!(fifth.header("retry-after"), "60");
    assert_eq!(open.len(), 4);
    open.clear();
}

#[test]
fn a_shutdown_ends_the_streams() {
    let mut app = TestApp::start();
    let watch = {
        let (browser, _) = issued(&app);
        Watch::open(&app, &browser)
    };
    assert_eq!(watch.state(), "issued");
    app.stop().unwrap();
    assert!(watch.ended());
}
