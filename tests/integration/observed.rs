//! Liveness, readiness and metrics.

use crate::harness::{Machine, TestApp, alone, send, wait_until};
use serde_json::json;

/// Returns the value of a metric, or 0 if it has none yet.
fn metric(app: &TestApp, name: &str) -> f64 {
    app.metric(name)
}

fn requests(app: &TestApp, route: &str, status: u16) -> f64 {
    let labels = format!("{{route=\"{route}\",status=\"{status}\"}}");
    metric(app, &format!("iptunnel_http_requests_total{labels}"))
}

fn transition(app: &TestApp, which: &str) -> f64 {
    metric(app, &format!("iptunnel_code_transitions_total{{transition=\"{which}\"}}"))
}

#[test]
fn requests_are_counted_by_route_and_status() {
    let app = TestApp::start();
    let code = app.issue();
    for _ in 0..3 {
        assert_eq!(Machine::new(1).precheck(&app, &code).status, 200);
    }
    app.post_text("/api/v2/slowdns/install/precheck", "");
    app.get("/api/v2/slowdns/install/precheck");
    app.get("/no/such/path");
    assert_eq!(requests(&app, "precheck", 200), 3.0);
    assert_eq!(requests(&app, "precheck", 400), 1.0);
    assert_eq!(requests(&app, "precheck", 405), 1.0);
    assert_eq!(requests(&app, "issue", 201), 1.0);
    assert_eq!(requests(&app, "page", 200), 1.0);
    assert_eq!(requests(&app, "none", 404), 1.0);
    assert_eq!(metric(&app, "iptunnel_http_request_seconds_count{route=\"precheck\"}"), 5.0);
}

#[test]
fn requests_of_operators_have_ids_and_metrics_of_their_own() {
    let app = TestApp::start();
    let counted = |route: &str, status: u16| {
        let labels = format!("{{route=\"{route}\",status=\"{status}\"}}");
        metric(&app, &format!("iptunnel_operators_http_requests_total{labels}"))
    };
    let answers = [app.get_admin("/livez"), app.get_admin("/livez"), app.get_admin("/admin/now")];
    let ids: std::collections::BTreeSet<_> =
        answers.iter().map(|answer| answer.header("x-request-id")).collect();
    assert!(ids.len() == 3 && !ids.contains(""), "{ids:?}");
    assert_eq!(answers[0].header("x-content-type-options"), "nosniff");
    app.get_admin("/admin/config");
    app.get_admin("/no/such/path");
    assert_eq!(counted("livez", 200), 2.0);
    assert_eq!(counted("admin", 401), 2.0);
    assert_eq!(counted("none", 404), 1.0);
    let seconds = "iptunnel_operators_http_request_seconds_count{route=\"livez\"}";
    assert_eq!(metric(&app, seconds), 2.0);
    // They do not count as requests of browsers, installers and servers.
    assert_eq!(requests(&app, "none", 404), 0.0);
}

#[test]
fn unknown_paths_create_no_new_metric_series() {
    let app = TestApp::start();
    let routes = || {
        let text = app.get_admin("/metrics").text;
        let of = |line: &str| line.split("route=\"").nth(1)?.split('"').next().map(str::to_owned);
        text.lines().filter_map(of).collect::<std::collections::BTreeSet<_>>()
    };
    let make_up = |name: &str| {
        app.get(&format!("/{name}"));
        app.get(&format!("/made/up/{name}"));
        app.post(&format!("/api/v2/servers/{name}/{name}"), &json!({}));
        app.post(&format!("/api/v2/{name}/install/precheck"), &json!({}));
    };
    make_up("first");
    let known = routes();
    assert!(known.len() >= 4, "{known:?}");
    (0..20).for_each(|number| make_up(&format!("made-up-{number}")));
    assert_eq!(routes(), known);
}

#[test]
fn events_of_codes_are_counted() {
    let app = TestApp::start();
    let (code, machine) = (app.issue(), Machine::new(1));
    let first = machine.install(&app, &code);
    machine.install(&app, &code);
    let other = Machine { hostname: "other.example.com".into(), ..machine };
    let second = other.install(&app, &code);
    assert_ne!(first.id, second.id);
    assert_eq!(second.release(&app).status, 200);
    assert_eq!(other.install(&app, &code).confirm(&app).status, 200);
    let told = ["issued", "activated", "repeated", "replaced", "released", "confirmed"];
    assert_eq!(told.map(|which| transition(&app, which)), [1.0, 2.0, 1.0, 1.0, 1.0, 1.0]);
}

#[test]
fn decisions_of_limits_are_counted() {
    let app = TestApp::start_with(|flags| {
        flags.push(("limits.precheck_per_machine_day", "2".into()));
    });
    let code = app.issue();
    let told = [0; 5].map(|_| Machine::new(1).precheck(&app, &code).status);
    assert_eq!(told, [200, 200, 429, 429, 429]);
    let decided = |decision: &str| {
        let policy = "precheck_per_machine_day";
        let labels = format!("{{policy=\"{policy}\",decision=\"{decision}\"}}");
        metric(&app, &format!("iptunnel_limit_decisions_total{labels}"))
    };
    assert_eq!([decided("granted"), decided("refused")], [2.0, 3.0]);
}

#[test]
fn commits_and_their_durations_are_counted_and_queues_become_empty() {
    let app = TestApp::start();
    let seconds = "iptunnel_persistence_commit_seconds";
    let before = metric(&app, &format!("{seconds}_count"));
    for _ in 0..5 {
        app.issue();
    }
    let (count, sum) =
        (metric(&app, &format!("{seconds}_count")), metric(&app, &format!("{seconds}_sum")));
    assert!(count >= before + 5.0 && sum > 0.0, "{count} {sum}");
    let all = metric(&app, &format!("{seconds}_bucket{{le=\"+Inf\"}}"));
    assert!(all >= count);
    for actor in ["rate_limiter", "code_registry", "activation", "server_registry", "persistence"] {
        let label = format!("{{actor=\"{actor}\"}}");
        assert!(metric(&app, &format!("iptunnel_actor_messages_total{label}")) > 0.0, "{actor}");
        wait_until("the queue is empty", || {
            metric(&app, &format!("iptunnel_actor_queue_depth{label}")) == 0.0
        });
    }
}

#[test]
fn cached_records_and_servers_are_shown() {
    if !alone() {
        return;
    }
    let app = TestApp::start();
    Machine::new(1).install(&app, &app.issue());
    let body = json!({"token": app.master(), "ip": "1.2.3.4"});
    assert_eq!(app.post("/register", &body).status, 200);
    for (gauge, value) in
        [("codes_in_memory", 1.0), ("activations_in_memory", 1.0), ("servers", 1.0)]
    {
        wait_until(gauge, || metric(&app, &format!("iptunnel_{gauge}")) == value);
    }
}

#[test]
fn a_running_server_is_alive_and_ready_and_metrics_are_openmetrics_text() {
    let app = TestApp::start();
    assert_eq!(app.get_admin("/livez").status, 200);
    assert_eq!(app.get_admin("/readyz").status, 200);
    assert_eq!(app.get("/readyz").status, 200);
    let metrics = app.get_admin("/metrics");
    assert!(metrics.header("content-type").starts_with("application/openmetrics-text"));
    assert!(metrics.text.ends_with("# EOF\n"));
}

#[test]
fn metrics_are_not_shown_to_the_public() {
    let app = TestApp::start();
    for path in ["/metrics", "/livez"] {
        assert_eq!(app.get(path).status, 404, "{path}");
    }
}

#[test]
fn the_admin_listener_refuses_an_unknown_host() {
    let app = TestApp::start();
    for path in ["/livez", "/readyz", "/metrics", "/nothing"] {
        let request = app.client.get(format!("{}{path}", app.admin));
        let answer = send(request.header("host", "evil.example.com"));
        assert_eq!(answer.status, 421, "{path}");
        assert!(!answer.text.contains("iptunnel_"), "{path}");
    }
}

#[test]
fn every_answer_of_the_admin_listener_forbids_sniffing() {
    let app = TestApp::start();
    for path in ["/livez", "/readyz", "/metrics", "/nothing"] {
        assert_eq!(app.get_admin(path).header("x-content-type-options"), "nosniff", "{path}");
    }
}
