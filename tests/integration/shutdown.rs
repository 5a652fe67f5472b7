//! Shutdown, request deadlines and full queues.

use crate::crash::{Load, check_all};
use crate::disk::{BadDisks, api, on};
use crate::harness::{Machine, TestApp, wait_until};
use crate::process::Process;
use iptunnel_storage::simulated::Fault;
use nix::sys::signal::Signal;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Reads until `wanted` has arrived.
fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    while !text.contains(wanted) {
        let count = stream.read(&mut buffer).unwrap_or(0);
        assert!(count > 0, "the connection ended before {wanted:?}: {text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    text
}

/// A request whose head the server has acknowledged and whose body is not sent yet.
fn accepted(server: &Process, path: &str, length: usize) -> TcpStream {
    let mut stream = server.connect();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    read_until(&mut stream, "HTTP/1.1 100 Continue\r\n\r\n");
    stream
}

#[test]
fn sigterm_under_load_exits_with_status_0_and_keeps_everything_acknowledged() {
    for round in 0..3 {
        let mut server = Process::start(&["log.level=debug"]);
        let load = Load::start(server.api.clone(), round, 7);
        std::thread::sleep(Duration::from_millis(150));
        server.signal(Signal::SIGTERM);
        let status = server.ends_within(Duration::from_secs(20)).expect("an end within seconds");
        assert!(status.success(), "{status}");
        let stories = load.end();
        check_all(&server.again().api, &stories, &format!("round {round}"));
    }
}

#[test]
fn requests_accepted_before_sigterm_get_replies_even_if_their_bodies_arrive_later() {
    let mut server = Process::start(&[]);
    let api = server.api.clone();
    let requests: Vec<_> = (0..6)
        .map(|n| {
            let body = Machine::new(n).precheck_body(&api.issue()).to_string();
            (accepted(&server, "/api/v2/slowdns/install/precheck", body.len()), body)
        })
        .collect();
    server.signal(Signal::SIGTERM);
    wait_until("it says that it is not ready", || api.ready() == Some(503));
    for (mut stream, body) in requests {
        let (first, second) = body.split_at(body.len() / 2);
        stream.write_all(first.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        stream.write_all(second.as_bytes()).unwrap();
        let answer = read_until(&mut stream, "Install code validated");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let status = server.ends_within(Duration::from_secs(20)).expect("an end within seconds");
    assert!(status.success(), "{status}");
}

#[test]
fn sigterm_turns_readiness_off_at_once_while_requests_are_still_finished() {
    let mut server = Process::start(&["server.shutdown_grace_seconds=20"]);
    let slow = accepted(&server, "/register", 10);
    assert_eq!(server.api.ready(), Some(200));
    let begun = Instant::now();
    server.signal(Signal::SIGTERM);
    wait_until("it says that it is not ready", || server.api.ready() == Some(503));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(server.ends_within(Duration::from_millis(300)).is_none(), "it waits for the request");
    drop(slow);
    assert!(server.ends_within(Duration::from_secs(20)).expect("an end").success());
}

#[test]
fn idle_connections_do_not_delay_the_shutdown() {
    let mut server = Process::start(&[]);
    let mut idle: Vec<TcpStream> = (0..5).map(|_| server.connect()).collect();
    for stream in &mut idle {
        stream.write_all(b"GET /api/v2/healthz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        read_until(stream, "\"message\":\"OK\"");
    }
    let never_used = server.connect();
    let begun = Instant::now();
    server.signal(Signal::SIGTERM);
    let status = server.ends_within(Duration::from_secs(40)).expect("an end");
    let took = begun.elapsed();
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(20), "nothing was under way, and it took {took:?}");
    drop(never_used);
}

#[test]
fn an_unfinished_request_delays_the_shutdown_by_at_most_the_grace_period() {
    let mut server = Process::start(&["server.shutdown_grace_seconds=1"]);
    let _stuck = accepted(&server, "/register", 10);
    server.signal(Signal::SIGTERM);
    let status = server.ends_within(Duration::from_secs(20)).expect("an end after the grace");
    assert!(status.success(), "{status}");
}

#[test]
fn sigint_shuts_down_cleanly_too() {
    let mut server = Process::start(&[]);
    server.signal(Signal::SIGINT);
    assert!(server.ends_within(Duration::from_secs(20)).expect("an end").success());
}

/// A server whose deadline is two seconds, and a code with a precheck token.
fn hurried(disk: &BadDisks) -> (TestApp, String, String) {
    let app = on(disk, &[("server.request_timeout_ms", "2000")]);
    let code = app.issue();
    let token = Machine::new(1).precheck(&app, &code).data("precheck_token");
    disk.settle();
    (app, code, token)
}

fn transitions(app: &TestApp, which: &str) -> u64 {
    let metrics = app.get_admin("/metrics").text;
    let name = format!("iptunnel_code_transitions_total{{transition=\"{which}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    line.expect(&metrics).parse().unwrap()
}

#[test]
fn an_activate_that_waits_for_the_store_at_its_deadline_is_outcome_unknown_and_its_repeat_succeeds()
{
    let disk = BadDisks::new();
    let (app, code, token) = hurried(&disk);
    let blocked = disk.block();
    let late = Machine::new(1).activate(&app, &code, &token);
    drop(blocked);
    assert_eq!(late.told(), (503, "outcome_unknown".into()));
    assert!(late.header("retry-after").parse::<u64>().unwrap() > 0);
    wait_until("the commit is done", || transitions(&app, "activated") == 1);
    // A machine that is busy for seconds may have found that the store hangs.
    wait_until("the store is there", || app.get("/readyz").status == 200);
    let activation = Machine::new(1).install(&app, &code);
    assert_eq!(transitions(&app, "activated"), 1, "the repeat opens no second one");
    assert_eq!(activation, Machine::new(1).install(&app, &code));
    assert_eq!(Machine::new(2).precheck(&app, &code).code(), "install_code_used");
    assert_eq!(activation.confirm(&app).status, 200);
    assert_eq!(app.get("/readyz").status, 200, "a deadline stops nothing");
}

#[test]
fn a_request_without_a_change_is_overloaded_at_its_deadline() {
    let disk = BadDisks::new();
    let (app, code, token) = hurried(&disk);
    let _blocked = disk.block();
    std::thread::scope(|scope| {
        let activate = || Machine::new(1).activate(&app, &code, &token);
        let activate = scope.spawn(activate);
        wait_until("the activate waits for the disk", || disk.is_held_up());
        let late = Machine::new(2).precheck(&app, &code);
        assert_eq!(late.told(), (503, "overloaded".into()));
        assert_eq!(activate.join().unwrap().code(), "outcome_unknown");
    });
}

#[test]
fn the_charge_of_a_request_that_missed_its_deadline_is_given_back() {
    let disk = BadDisks::new();
    let limit = [("limits.activate_per_machine_day", "1"), ("server.request_timeout_ms", "2000")];
    let app = on(&disk, &limit);
    let (code, machine) = (app.issue(), Machine::new(1));
    let token = machine.precheck(&app, &code).data("precheck_token");
    disk.settle();
    let blocked = disk.block();
    assert_eq!(machine.activate(&app, &code, &token).code(), "outcome_unknown");
    drop(blocked);
    wait_until("the commit is done", || transitions(&app, "activated") == 1);
    wait_until("the store is there", || app.get("/readyz").status == 200);
    let mut told = machine.activate(&app, &code, &token).told();
    // The charge is given back just after the commit.
    wait_until("the charge is given back", || {
        told = machine.activate(&app, &code, &token).told();
        told.0 != 429
    });
    assert_eq!(told, (200, String::new()));
}

#[test]
fn a_server_without_free_permits_refuses_at_once_and_recovers_with_the_disk() {
    const ROOM: usize = 16;
    let disk = BadDisks::new();
    let app = on(&disk, &[("actors.persistence.queue", "16")]);
    let (api, code) = (api(&app), app.issue());
    let cookie = api.cookie().unwrap();
    let ask = || api.issue_with(&cookie).unwrap();
    disk.settle();
    let blocked = disk.block();
    let early = Mutex::new(Vec::new());
    let all = std::thread::scope(|scope| {
        let ask_and_note = || {
            let answer = ask();
            early.lock().unwrap().push(answer.told());
            answer
        };
        let threads: Vec<_> = (0..ROOM + 10).map(|_| scope.spawn(ask_and_note)).collect();
        wait_until("ten are refused", || early.lock().unwrap().len() == 10);
        assert!(early.lock().unwrap().iter().all(|told| *told == (503, "overloaded".into())));
        let refused = Machine::new(1).precheck(&app, &code);
        assert_eq!(refused.told(), (503, "overloaded".into()));
        assert!(refused.header("retry-after").parse::<u64>().unwrap() > 0);
        drop(blocked);
        threads.into_iter().map(|thread| thread.join().unwrap().status).collect::<Vec<_>>()
    });
    assert_eq!(all.iter().filter(|status| **status == 201).count(), ROOM);
    // All permits are free again: the same number of concurrent requests succeeds.
    let again = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ROOM).map(|_| scope.spawn(|| ask().status)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(again, [201; ROOM]);
    assert_eq!(Machine::new(1).install(&app, &code).confirm(&app).status, 200);
}

#[test]
fn a_server_stopped_while_the_store_fails_exits_and_keeps_everything_acknowledged() {
    let disk = BadDisks::new();
    let mut app = on(&disk, &[]);
    let code = app.issue();
    disk.fault(Fault::Full);
    let cookie = api(&app).cookie().unwrap();
    assert_eq!(api(&app).issue_with(&cookie).unwrap().code(), "storage_unavailable");
    let begun = Instant::now();
    app.stop().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    disk.kill();
    let app = app.start_again().unwrap();
    assert_eq!(Machine::new(1).install(&app, &code).confirm(&app).status, 200);
}
