//! `GET /status`: the list of servers, its order, pages and filters.

use crate::harness::{Answer, TestApp, alone, at_once, send, wait_until};
use serde_json::{Value, json};
use std::net::Ipv4Addr;

const HOUR: u64 = 3600;

fn address(number: u32) -> String {
    Ipv4Addr::from(0x0808_0000 + number).to_string()
}

/// Asks for the registration of server `number`.
fn try_register(app: &TestApp, number: u32) -> Answer {
    let hostname = format!("s{number}.example.com");
    let body = json!({"token": app.master(), "ip": address(number), "hostname": hostname});
    app.post("/register", &body)
}

/// Registers server `number`: its id.
fn register(app: &TestApp, number: u32) -> String {
    let answer = try_register(app, number);
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()["server_id"].as_str().unwrap().to_owned()
}

fn check_in(app: &TestApp, id: &str) {
    assert_eq!(app.post("/checkin", &json!({"server_id": id})).status, 200);
}

fn revoke(app: &TestApp, id: &str) {
    let path = format!("/api/v2/servers/{id}/revoke");
    assert_eq!(app.post_as(&app.master(), &path, &json!({})).status, 200);
    app.settle();
}

fn status(app: &TestApp, query: &str) -> Answer {
    app.settle();
    app.get_as(&app.master(), &format!("/status{query}"))
}

fn listed(app: &TestApp, query: &str) -> Value {
    let answer = status(app, query);
    assert_eq!(answer.status, 200, "{query}: {}", answer.text);
    answer.json()
}

/// The addresses that a listing shows, after a look at its count.
fn addresses(app: &TestApp, query: &str) -> Vec<String> {
    let listing = listed(app, query);
    let servers = listing["servers"].as_array().unwrap();
    if listing["next_cursor"].is_null() && !query.contains("cursor") {
        assert_eq!(listing["count"], json!(servers.len()), "{query}");
    }
    servers.iter().map(|server| server["ip"].as_str().unwrap().to_owned()).collect()
}

/// The addresses of these servers.
fn of(numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
    numbers.into_iter().map(address).collect()
}

/// All pages of at most `limit` servers: the addresses of each.
fn pages(app: &TestApp, limit: usize, filter: &str) -> Vec<Vec<String>> {
    let (mut pages, mut cursor) = (Vec::new(), String::new());
    loop {
        let query = format!("?limit={limit}{filter}{cursor}");
        pages.push(addresses(app, &query));
        match &listed(app, &query)["next_cursor"] {
            Value::Null => return pages,
            Value::String(next) => cursor = format!("&cursor={next}"),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn status_lists_exactly_the_documented_keys_newest_server_first() {
    let app = TestApp::start();
    assert_eq!(status(&app, "").text, r#"{"count":0,"servers":[]}"#);
    let one = register(&app, 1);
    app.clock.advance(60);
    let two = register(&app, 2);
    revoke(&app, &one);
    let row = |id: &str, number: u32, time: &str, revoked: u8| {
        format!(
            "{{\"server_id\":\"{id}\",\"ip\":\"8.8.0.{number}\",\
             \"hostname\":\"s{number}.example.com\",\"registered_at\":\"{time}\",\
             \"last_checkin\":\"{time}\",\"revoked\":{revoked},\"note\":\"\"}}"
        )
    };
    let rows = [
        row(&two, 2, "2030-03-17T17:47:40+00:00", 0),
        row(&one, 1, "2030-03-17T17:46:40+00:00", 1),
    ];
    let expected = format!("{{\"count\":2,\"servers\":[{}]}}", rows.join(","));
    assert_eq!(status(&app, "").text, expected);
    assert_eq!(status(&app, "?limit=2").text, expected);
}

#[test]
fn status_checks_the_master_token_with_or_without_bearer_before_the_query() {
    let app = TestApp::start();
    for path in ["/status", "/status?limit=0", "/status?limit=1&limit=2"] {
        assert_eq!((app.get(path).status, app.get_as("wrong", path).status), (403, 403), "{path}");
    }
    let bare = app.client.get(format!("{}/status", app.url)).header("authorization", app.master());
    assert_eq!(send(bare).status, 200);
}

#[test]
fn an_invalid_query_is_400() {
    let app = TestApp::start();
    for query in [
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=x",
        "limit=",
        "limit=1.5",
        "revoked=2",
        "revoked=yes",
        "revoked=",
        "stale=2",
        "stale=x",
        "limit=1&cursor=nonsense",
        "limit=1&limit=2",
    ] {
        let answer = status(&app, &format!("?{query}"));
        assert_eq!(answer.status, 400, "{query}: {}", answer.text);
        assert!(answer.json()["error"].is_string(), "{query}: {}", answer.text);
    }
    assert_eq!((status(&app, "?limit=1").status, status(&app, "?limit=1000").status), (200, 200));
}

#[test]
fn pages_cover_all_servers_without_gaps_or_repetitions() {
    let app = TestApp::start();
    (1..=7).for_each(|number| drop(register(&app, number)));
    assert_eq!(pages(&app, 3, ""), [of([7, 6, 5]), of([4, 3, 2]), of([1])]);
    assert_eq!(pages(&app, 7, ""), [of((1..=7).rev())]);
    assert_eq!(pages(&app, 1000, ""), [of((1..=7).rev())]);
}

#[test]
fn a_page_says_how_many_match_in_all() {
    let app = TestApp::start();
    (1..=5).for_each(|number| drop(register(&app, number)));
    let first = listed(&app, "?limit=2");
    assert_eq!((&first["count"], first["servers"].as_array().unwrap().len()), (&json!(5), 2));
    let cursor = first["next_cursor"].as_str().unwrap();
    assert_eq!(listed(&app, &format!("?limit=2&cursor={cursor}"))["count"], json!(5));
}

#[test]
fn servers_that_register_meanwhile_do_not_shift_later_pages() {
    let app = TestApp::start();
    (1..=4).for_each(|number| drop(register(&app, number)));
    let first = listed(&app, "?limit=2");
    register(&app, 5);
    let cursor = first["next_cursor"].as_str().unwrap();
    assert_eq!(addresses(&app, &format!("?limit=2&cursor={cursor}")), of([2, 1]));
}

#[test]
fn the_revoked_filter_applies_to_list_count_and_pages() {
    let app = TestApp::start();
    for number in 1..=6 {
        let id = register(&app, number);
        if number % 2 == 0 {
            revoke(&app, &id);
        }
    }
    assert_eq!(addresses(&app, "?revoked=1"), of([6, 4, 2]));
    assert_eq!(addresses(&app, "?revoked=0"), of([5, 3, 1]));
    assert_eq!(pages(&app, 2, "&revoked=1"), [of([6, 4]), of([2])]);
    assert_eq!(listed(&app, "?limit=1&revoked=0")["count"], json!(3));
    let path = format!("/api/v2/servers/{}/restore", register_id(&app, 6));
    assert_eq!(app.post_as(&app.master(), &path, &json!({})).status, 200);
    assert_eq!(addresses(&app, "?revoked=1"), of([4, 2]));
}

/// The id under which server `number` is listed.
fn register_id(app: &TestApp, number: u32) -> String {
    let listing = listed(app, "");
    let mut servers = listing["servers"].as_array().unwrap().iter();
    let server = servers.find(|server| server["ip"] == json!(address(number))).unwrap();
    server["server_id"].as_str().unwrap().to_owned()
}

#[test]
fn stale_lists_servers_not_seen_for_the_configured_hours() {
    if !alone() {
        return;
    }
    let app = TestApp::start_with(|c| c.push(("servers.stale_after_hours", "2".into())));
    let (one, _two) = (register(&app, 1), register(&app, 2));
    app.clock.advance(2 * HOUR - 1);
    assert_eq!(addresses(&app, "?stale=1"), of([]));
    check_in(&app, &one);
    app.clock.advance(2);
    assert_eq!(addresses(&app, "?stale=1"), of([2]));
    app.clock.advance(2 * HOUR);
    assert_eq!(addresses(&app, "?stale=1"), of([2, 1]));
    check_in(&app, &one);
    assert_eq!(addresses(&app, "?stale=1"), of([2]));
    assert_eq!(listed(&app, "?stale=1&limit=1")["count"], json!(1));
}

#[test]
fn filters_go_together() {
    if !alone() {
        return;
    }
    let app = TestApp::start_with(|c| c.push(("servers.stale_after_hours", "1".into())));
    let (old, old_revoked) = (register(&app, 1), register(&app, 2));
    app.clock.advance(HOUR + 1);
    let (_new, new_revoked) = (register(&app, 3), register(&app, 4));
    revoke(&app, &old_revoked);
    revoke(&app, &new_revoked);
    assert_eq!(addresses(&app, "?stale=1&revoked=1"), of([2]));
    assert_eq!(addresses(&app, "?stale=1&revoked=0&limit=9"), of([1]));
    check_in(&app, &old);
    assert_eq!(addresses(&app, "?stale=1&revoked=0"), of([]));
}

/// When the newest server was last seen, as listed.
fn last_checkin(app: &TestApp) -> String {
    listed(app, "")["servers"][0]["last_checkin"].as_str().unwrap().to_owned()
}

#[test]
fn a_check_in_is_visible_at_once_and_survives_a_clean_restart() {
    if !alone() {
        return;
    }
    let app = TestApp::start();
    let id = register(&app, 1);
    app.clock.advance(61);
    check_in(&app, &id);
    assert_eq!(last_checkin(&app), "2030-03-17T17:47:41+00:00");
    let app = app.restart();
    assert_eq!(last_checkin(&app), "2030-03-17T17:47:41+00:00");
    app.clock.advance(1);
    let path = format!("/api/v2/servers/{id}/check-in");
    assert_eq!(app.post_text(&path, "").status, 200);
    assert_eq!(last_checkin(&app), "2030-03-17T17:47:42+00:00");
}

#[test]
fn the_last_check_in_between_two_writes_is_kept() {
    let app = TestApp::start();
    let id = register(&app, 1);
    // Each through whichever server, all of them before the next is written.
    for _ in 0..12 {
        app.clock.advance(1);
        check_in(&app, &id);
    }
    let app = app.restart();
    assert_eq!(last_checkin(&app), "2030-03-17T17:46:52+00:00");
}

#[test]
fn registering_again_counts_as_a_check_in_also_after_a_restart() {
    let app = TestApp::start();
    let id = register(&app, 1);
    app.clock.advance(10);
    check_in(&app, &id);
    app.clock.advance(10);
    assert_eq!(register(&app, 1), id);
    // Servers on one database exchange check-ins every few seconds.
    if alone() {
        assert_eq!(last_checkin(&app), "2030-03-17T17:47:00+00:00");
    }
    let app = app.restart();
    assert_eq!(last_checkin(&app), "2030-03-17T17:47:00+00:00");
}

#[test]
fn a_check_in_of_a_revoked_server_leaves_it_revoked() {
    let app = TestApp::start();
    let id = register(&app, 1);
    revoke(&app, &id);
    assert_eq!(app.post("/checkin", &json!({"server_id": id})).status, 403);
    let app = app.restart();
    assert_eq!(addresses(&app, "?revoked=1"), of([1]));
}

#[test]
fn a_listing_of_many_servers_is_complete_and_equal_to_its_pages() {
    let app = TestApp::start();
    at_once(8, |thread| (0..150).for_each(|n| drop(register(&app, thread * 150 + n))));
    let all = addresses(&app, "");
    assert_eq!(all.len(), 1200);
    let mut sorted = all.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), 1200);
    assert_eq!(pages(&app, 500, "").concat(), all);
    let app = app.restart();
    assert_eq!(addresses(&app, ""), all);
}

#[test]
fn eight_concurrent_registrations_of_an_address_make_one_server() {
    let app = TestApp::start();
    // A server whose record others are changing all the time says so, and is asked again.
    let ids = at_once(8, |_| {
        let mut answer = try_register(&app, 1);
        wait_until("it is registered", || {
            if answer.status == 503 {
                answer = try_register(&app, 1);
            }
            answer.status == 200
        });
        answer.json()["server_id"].as_str().unwrap().to_owned()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(addresses(&app, ""), of([1]));
}
