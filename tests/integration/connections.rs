//! Nobody holds what others need: connections that are slow, silent, endless, unread or many.

use crate::harness::{PATIENCE, TestApp, alone, wait_until};
use crate::process::Process;
use crate::wire::{address, answer, connect, connect_from, connect_to, rest, said_to, status};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const GET: &[u8] = b"GET /api/v2/healthz HTTP/1.1\r\nHost: x\r\n\r\n";

/// Starts a server with short deadlines.
fn impatient() -> TestApp {
    TestApp::start_with(|c| {
        c.push(("server.request_timeout_ms", "300".into()));
        c.push(("server.idle_timeout_seconds", "1".into()));
    })
}

fn ended(app: &TestApp, why: &str) -> f64 {
    app.metric(&format!("iptunnel_connections_ended_total{{why=\"{why}\"}}"))
}

/// Checks that the connection ends with a 408 in the envelope of `/api/v2`.
fn assert_times_out(stream: TcpStream) {
    let text = rest(stream);
    assert!(text.starts_with("HTTP/1.1 408 "), "{text:?}");
    assert!(text.contains(r#"{"error":{"code":"request_timeout","#), "{text}");
}

#[test]
fn half_a_head_ends_its_connection_with_an_answer() {
    let app = impatient();
    let mut first = connect(&app);
    first.write_all(b"POST /api/v2/slowdns/install/precheck HTT").unwrap();
    assert_times_out(first);
    let mut legacy = connect(&app);
    legacy.write_all(b"POST /register HTTP/1.1\r\nHost: x\r\n").unwrap();
    let text = rest(legacy);
    assert!(text.starts_with("HTTP/1.1 408 ") && text.contains(r#"{"error":"The head"#), "{text}");
    assert_eq!(ended(&app, "slow_head"), 2.0);
}

#[test]
fn the_head_of_every_later_request_has_the_same_deadline() {
    let app = impatient();
    let mut stream = connect(&app);
    for _ in 0..3 {
        stream.write_all(GET).unwrap();
        assert_eq!(status(&answer(&mut stream).0), 200);
    }
    stream.write_all(b"G").unwrap();
    let text = rest(stream);
    assert!(text.starts_with("HTTP/1.1 408 "), "{text:?}");
}

#[test]
fn a_head_that_arrives_byte_by_byte_ends_at_the_deadline_too() {
    let app = impatient();
    let mut stream = connect(&app);
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let (begun, mut text) = (Instant::now(), String::new());
    let head = b"GET /api/v2/healthz HTTP/1.1\r\nX: ".iter().chain(std::iter::repeat(&b'x'));
    for byte in head {
        let mut piece = [0; 1024];
        match stream.write_all(&[*byte]).and_then(|()| stream.read(&mut piece)) {
            Ok(0) => break,
            Ok(length) => text += &String::from_utf8_lossy(&piece[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
        assert!(begun.elapsed() < PATIENCE, "the connection is still open");
    }
    assert!(text.starts_with("HTTP/1.1 408 "), "{text:?}");
}

#[test]
fn half_a_head_behind_a_whole_request_has_the_deadline_of_a_head_and_its_own_envelope() {
    // Idle connections last longer than this test.
    let app = TestApp::start_with(|c| c.push(("server.request_timeout_ms", "300".into())));
    let v2 = "/api/v2/slowdns/install/precheck";
    let whole = [
        "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".to_owned(),
        "HEAD /docs HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "POST /register HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}".to_owned(),
        "POST /register HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
            .to_owned(),
        "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".repeat(3),
    ];
    for whole in &whole {
        let mut stream = connect(&app);
        stream.write_all(format!("{whole}POST {v2} HTTP/1.1\r\nHo").as_bytes()).unwrap();
        let begun = Instant::now();
        let text = rest(stream);
        assert!(text.contains("HTTP/1.1 408 "), "{whole:?}: {text:?}");
        assert!(text.contains(r#"{"error":{"code":"request_timeout","#), "{whole:?}: {text}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{whole:?}: {:?}", begun.elapsed());
    }
    let mut legacy = connect(&app);
    legacy.write_all(&[GET, b"POST /register HTTP/1.1\r\n"].concat()).unwrap();
    let text = rest(legacy);
    assert!(text.contains("HTTP/1.1 408 ") && text.contains(r#"{"error":"The head"#), "{text}");
}

#[test]
fn an_unreadable_request_behind_a_whole_one_is_refused_in_its_own_envelope() {
    let app = TestApp::start();
    for unreadable in ["Content-Length: -1", "Content-Length: 2\r\nTransfer-Encoding: chunked"] {
        let text = said_to(
            &app,
            format!("POST /api/v2/x HTTP/1.1\r\n{unreadable}\r\n\r\n{{}}").as_bytes(),
        );
        assert!(text.contains(r#"{"error":{"code":"invalid_request","#), "{unreadable}: {text}");
    }
    for (path, envelope) in [
        ("/api/v2/slowdns/install/precheck", r#"{"error":{"code":"invalid_request","#),
        ("/api/v2/slowdns/install/confirm", r#"{"error":{"code":"invalid_request","#),
        ("/register", r#"{"error":"The request is not valid HTTP."}"#),
    ] {
        for chunks in ["zz\r\n", "2\r\n{}\r\n-1\r\n"] {
            let head =
                format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
            let text = said_to(&app, [&head, chunks].concat().as_bytes());
            assert!(
                text.starts_with("HTTP/1.1 400 ") && text.ends_with("}"),
                "{path} {chunks:?}: {text}"
            );
            assert!(text.contains(envelope), "{path} {chunks:?}: {text}");
        }
    }
    let unreadable = b"GET /register HTTP/9\r\n\r\n";
    let text = said_to(&app, &[GET, unreadable].concat());
    assert!(
        text.contains("HTTP/1.1 400 ") && text.contains(r#"{"error":"The request is"#),
        "{text}"
    );
}

#[test]
fn a_connection_without_a_request_is_closed_without_a_word() {
    let app = impatient();
    assert_eq!(said_to(&app, b""), "");
    let mut used = connect(&app);
    used.write_all(GET).unwrap();
    assert_eq!(status(&answer(&mut used).0), 200);
    let begun = Instant::now();
    assert_eq!(rest(used), "");
    assert!(begun.elapsed() >= Duration::from_millis(900), "idle for {:?}", begun.elapsed());
}

#[test]
fn a_request_behind_the_head_of_a_stream_is_answered() {
    let app = TestApp::start();
    let head = format!(
        "HEAD /status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n",
        app.master()
    );
    let mut stream = connect(&app);
    stream.write_all(&[head.as_bytes(), GET].concat()).unwrap();
    let mut text = String::new();
    while !text.contains("\"status\"") {
        let mut piece = [0; 4096];
        let length = stream.read(&mut piece).unwrap();
        assert!(length > 0, "{text}");
        text += &String::from_utf8_lossy(&piece[..length]);
    }
    assert_eq!(text.matches("HTTP/1.1 200").count(), 2, "{text}");
    assert!(!text.contains("servers"), "{text}");
}

#[test]
fn a_chunked_body_without_an_end_is_not_read_for_ever() {
    let app = impatient();
    // Handlers that read the body, and such that do not.
    for path in ["/api/v2/slowdns/install/precheck", "/nothing", "/api/v2/slowdns/code/issue"] {
        let mut stream = connect(&app);
        stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let begun = Instant::now();
        while stream.write_all(b"1\r\nx\r\n").is_ok() {
            assert!(begun.elapsed() < PATIENCE, "{path}: the connection is still open");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_body_that_is_late_is_a_timeout_in_the_envelope_of_its_api() {
    let app = impatient();
    let v2 = r#"{"error":{"code":"request_timeout","message":"The body"#;
    for (path, envelope) in [
        ("/api/v2/slowdns/install/precheck", v2),
        ("/api/v2/slowdns/install/confirm", v2),
        ("/api/v2/servers/0123456789abcdef/check-in", v2),
        ("/register", r#"{"error":"The body"#),
        ("/checkin", r#"{"error":"The body"#),
    ] {
        let mut stream = connect(&app);
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{{");
        stream.write_all(head.as_bytes()).unwrap();
        let text = rest(stream);
        assert!(text.starts_with("HTTP/1.1 408 ") && text.contains(envelope), "{path}: {text:?}");
    }
}

#[test]
fn a_body_on_the_operators_listener_has_a_deadline_too() {
    let app = impatient();
    let mut stream = TcpStream::connect(app.admin.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = "POST /console/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n\
                Content-Type: application/x-www-form-urlencoded\r\n\r\ntoken=";
    stream.write_all(head.as_bytes()).unwrap();
    let begun = Instant::now();
    let text = rest(stream);
    assert!(text.starts_with("HTTP/1.1 408 "), "{text:?}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

/// Asks for more than the buffers of a connection hold.
fn ask_for_much(stream: &mut TcpStream, times: usize) {
    let requests = b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n".repeat(times);
    let mut stream = stream.try_clone().unwrap();
    // The server stops reading while its answers are not read.
    std::thread::spawn(move || stream.write_all(&requests));
}

#[test]
fn a_caller_that_does_not_read_its_answers_is_cut_off() {
    let app = impatient();
    let mut stream = connect(&app);
    ask_for_much(&mut stream, 1000);
    wait_until("it is cut off", || ended(&app, "unread_answer") == 1.0);
}

#[test]
fn a_caller_that_reads_byte_by_byte_is_cut_off_and_a_steady_one_gets_everything() {
    let app = impatient();
    let mut slow = connect(&app);
    ask_for_much(&mut slow, 1000);
    wait_until("it is cut off", || {
        let _ = slow.read(&mut [0]);
        ended(&app, "unread_answer") == 1.0
    });
    let mut steady = connect(&app);
    let times = 60;
    ask_for_much(&mut steady, times);
    let mut length = 0;
    let begun = Instant::now();
    for _ in 0..times {
        length += answer(&mut steady).1.len();
    }
    assert!(length > 1_000_000, "{length} bytes are no test of this");
    println!("{length} bytes in {:?}", begun.elapsed());
    assert_eq!(ended(&app, "unread_answer"), 1.0);
}

/// Whether a connection is served.
fn is_served(mut stream: TcpStream) -> bool {
    stream.write_all(GET).is_ok() && stream.read(&mut [0]).is_ok_and(|length| length > 0)
}

#[test]
fn one_address_holds_only_its_share_of_the_connections() {
    if !alone() {
        return;
    }
    let app = TestApp::start_with(|c| c.push(("server.max_connections_per_ip", "3".into())));
    let held: Vec<_> = (0..3)
        .map(|_| {
            let mut stream = connect_from("127.0.0.2", &app);
            stream.write_all(GET).unwrap();
            assert_eq!(status(&answer(&mut stream).0), 200);
            stream
        })
        .collect();
    assert!(!is_served(connect_from("127.0.0.2", &app)), "the fourth is closed");
    assert_eq!(ended(&app, "no_place"), 1.0);
    assert!(is_served(connect_from("127.0.0.3", &app)), "others are served");
    assert!(held.into_iter().all(is_served), "those that are held are served");
    wait_until("places come back", || is_served(connect_from("127.0.0.2", &app)));
}

#[test]
fn a_trusted_proxy_holds_as_many_connections_as_it_needs() {
    let app = TestApp::start_with(|c| {
        c.push(("server.max_connections_per_ip", "3".into()));
        c.push(("server.trusted_proxies", "127.0.0.1".into()));
    });
    let held: Vec<_> = (0..20).map(|_| connect(&app)).collect();
    assert!(held.into_iter().all(is_served));
}

#[test]
fn operators_are_served_while_the_public_listener_is_full_and_callers_wait_in_the_backlog() {
    if !alone() {
        return;
    }
    let app = TestApp::start_with(|c| c.push(("server.max_connections", "2".into())));
    let held = ["127.0.0.2", "127.0.0.3"].map(|source| connect_from(source, &app));
    // More than the backlog that the standard library asks for.
    let waiting: Vec<_> = (0..400)
        .map(|number| {
            TcpStream::connect_timeout(&address(&app), Duration::from_millis(900))
                .unwrap_or_else(|error| panic!("connection {number}: {error}"))
        })
        .collect();
    assert_eq!(app.get_admin("/livez").status, 200);
    assert_eq!(app.get_admin("/metrics").status, 200);
    drop(held);
    drop(waiting);
    wait_until("the listener has room again", || is_served(connect(&app)));
}

#[test]
fn a_good_caller_is_served_at_once_beside_a_thousand_idle_connections() {
    if !alone() {
        return;
    }
    let app = TestApp::start();
    let held: Vec<_> = (0..1000).map(|_| connect_from("127.0.0.2", &app)).collect();
    let begun = Instant::now();
    let mut good = connect(&app);
    good.write_all(GET).unwrap();
    assert_eq!(status(&answer(&mut good).0), 200);
    println!("answered after {:?} beside {} connections", begun.elapsed(), held.len());
}

/// The resident memory of a process, in KiB.
fn memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Raises the limit of open files of this process and of those that it starts, and returns it. Only root
/// may raise the hard limit.
fn open_files(wanted: u64) -> u64 {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let all = hard.max(wanted);
    match setrlimit(Resource::RLIMIT_NOFILE, all, all) {
        Ok(()) => all,
        Err(_) => {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
            hard
        }
    }
}

#[test]
fn a_good_caller_is_served_at_once_beside_as_many_idle_connections_as_there_may_be() {
    const MOST: u64 = 25_000;
    // The server and this process have one descriptor for each connection, and some more.
    let held = MOST.min(open_files(MOST + 1_000) - 1_000);
    let server = Process::start(&[
        &format!("server.max_connections={}", held + 100),
        "server.max_connections_per_ip=5000",
        "server.idle_timeout_seconds=600",
    ]);
    let to = server.api.url.strip_prefix("http://").unwrap().parse().unwrap();
    let served = |source: &str| {
        let mut stream = connect_to(to, source);
        stream.write_all(GET).unwrap();
        assert_eq!(status(&answer(&mut stream).0), 200);
        stream
    };
    drop(served("127.0.0.1"));
    let before = memory(server.id());
    let begun = Instant::now();
    let idle: Vec<_> =
        (0..held).map(|number| served(&format!("127.0.0.{}", 2 + number / 5000))).collect();
    let took = begun.elapsed();
    let cost = memory(server.id()).saturating_sub(before) as f64 / idle.len() as f64;
    let begun = Instant::now();
    drop(served("127.0.0.1"));
    let good = begun.elapsed();
    println!(
        "{} connections in {took:?}, {cost:.1} KiB each; a good caller is answered after {good:?}",
        idle.len()
    );
    assert!(cost < 40.0, "a connection takes {cost:.1} KiB");
    assert!(good < Duration::from_secs(10), "{good:?}");
    assert!(!is_served(connect_to(to, "127.0.0.2")), "each address has its share and no more");
}

/// Starts the program with limits of open files, soft and hard, and returns its log.
fn log_with_limits(soft: u32, hard: u32) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let limits = format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\"");
    let arguments = ["--set", "server.bind=127.0.0.1:0", "--set", "admin.bind=127.0.0.1:0"];
    let mut child = std::process::Command::new("sh")
        .args(["-c", &limits, env!("CARGO_BIN_EXE_iptunnel-server")])
        .args(arguments)
        .current_dir(folder.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::fs::File::create(folder.path().join("log")).unwrap())
        .spawn()
        .unwrap();
    let log = || std::fs::read_to_string(folder.path().join("log")).unwrap();
    wait_until("the server runs", || log().contains("the server is running"));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    let limits = limits.lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned();
    child.kill().unwrap();
    child.wait().unwrap();
    (limits.split_whitespace().nth(3).unwrap().to_owned(), log())
}

#[test]
fn the_limit_of_open_files_is_raised_or_its_lack_is_logged() {
    let (soft, log) = log_with_limits(256, 2000);
    assert_eq!(soft, "2000");
    assert!(log.contains("raise the hard limit of open files"), "{log}");
}

#[test]
fn a_proxy_that_is_not_trusted_is_named_once_and_counted() {
    let server = Process::start(&[]);
    for _ in 0..3 {
        let request = server.api.client.get(format!("{}/readyz", server.api.url));
        request.header("x-forwarded-for", "1.1.1.1").send().unwrap();
    }
    let words = "name it in server.trusted_proxies";
    wait_until("it is logged", || server.output().contains(words));
    let metrics = server.api.get(&format!("{}/metrics", server.api.admin)).unwrap().text;
    assert!(metrics.contains("iptunnel_forwarded_ignored_total 3\n"), "{metrics}");
    assert_eq!(server.output().matches(words).count(), 1);
    assert!(server.output().contains("127.0.0.1"));
}
