//! TLS of the listeners: certificates and when they are read again, HTTP/1.1 and 2, deadlines and places.

use crate::certificates::{Certificates, certificate};
use crate::harness::{TestApp, alone, wait_until};
use crate::process::{Process, run, said};
use crate::wire::{address, connect, connect_from, rest};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use http::{Method, Request, Response};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_rustls::TlsConnector;

const GET: &[u8] = b"GET /api/v2/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
const PUBLIC_URL: (&str, &str) = ("server.public_url", "https://localhost:8443");

/// Starts a server whose public listener has the certificate `server`.
fn start(certificates: &Certificates, more: &[(&'static str, &str)]) -> TestApp {
    TestApp::start_with(|c| {
        c.push(("server.tls_cert", certificates.file("server.crt")));
        c.push(("server.tls_key", certificates.file("server.key")));
        c.extend([PUBLIC_URL].iter().chain(more).map(|(key, value)| (*key, (*value).to_owned())));
    })
}

const IMPATIENT: [(&str, &str); 2] =
    [("server.request_timeout_ms", "300"), ("server.idle_timeout_seconds", "1")];

fn ended(app: &TestApp, why: &str) -> f64 {
    app.metric(&format!("iptunnel_connections_ended_total{{why=\"{why}\"}}"))
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// Shakes hands on a connection.
fn shaken(tcp: TcpStream, config: Arc<ClientConfig>) -> io::Result<Tls> {
    tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = StreamOwned::new(ClientConnection::new(config, name).unwrap(), tcp);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// Sends a request over HTTP/1.1 and returns the answer, and the certificate of the server.
fn asked(
    to: SocketAddr,
    config: Arc<ClientConfig>,
    request: &[u8],
) -> io::Result<(String, CertificateDer<'static>)> {
    let mut stream = shaken(TcpStream::connect(to)?, config)?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    if answer.is_empty() {
        read?;
    }
    let shown = stream.conn.peer_certificates().unwrap()[0].clone().into_owned();
    Ok((String::from_utf8(answer).unwrap(), shown))
}

/// Runs a test of HTTP/2.
fn in_time<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let test = async { tokio::time::timeout(Duration::from_secs(30), test).await };
    runtime.block_on(test).expect("in time")
}

/// How a connection ended: with what error, if with any.
type End = tokio::task::JoinHandle<Result<(), h2::Error>>;

/// Opens a connection of HTTP/2.
async fn http_2(
    to: SocketAddr,
    config: Arc<ClientConfig>,
    builder: &h2::client::Builder,
) -> (SendRequest<Bytes>, h2::PingPong, End) {
    let tcp = tokio::net::TcpStream::connect(to).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let tls = TlsConnector::from(config).connect(name, tcp).await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (send, mut connection) = builder.handshake(tls).await.unwrap();
    let pings = connection.ping_pong().unwrap();
    (send.ready().await.unwrap(), pings, tokio::spawn(connection))
}

/// Whether the server has ended a connection without a reproach. It may be gone before the client's last words.
fn is_calm(end: Result<(), h2::Error>) -> bool {
    end.map_or_else(|error| error.is_io(), |()| true)
}

fn request(method: Method, path: &str) -> Request<()> {
    let uri = format!("https://localhost{path}");
    Request::builder().method(method).uri(uri).body(()).unwrap()
}

async fn text_of(answer: Response<RecvStream>) -> String {
    let mut body = answer.into_body();
    let mut text = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece.unwrap();
        body.flow_control().release_capacity(piece.len()).unwrap();
        text.extend_from_slice(&piece);
    }
    String::from_utf8(text).unwrap()
}

#[test]
fn https_serves_http_1_1_and_2_and_tells_browsers_to_stay() {
    let certificates = Certificates::new("");
    let app = start(&certificates, &[]);
    let (text, _) = asked(address(&app), certificates.client("http/1.1", None), GET).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    assert!(text.contains("\r\nstrict-transport-security: max-age=15552000\r\n"), "{text}");
    in_time(async {
        let config = certificates.client("h2", None);
        let mut builder = h2::client::Builder::new();
        // For all answers at once: they are read one after the other.
        builder.initial_connection_window_size(1 << 24);
        let (send, _, _end) = http_2(address(&app), config, &builder).await;
        let mut answers = Vec::new();
        for _ in 0..20 {
            let mut send = send.clone().ready().await.unwrap();
            answers.push(send.send_request(request(Method::GET, "//docs/"), true).unwrap().0);
        }
        for answer in answers {
            let answer = answer.await.unwrap();
            assert_eq!(answer.status(), 200);
            let headers = answer.headers().clone();
            let text = text_of(answer).await;
            assert!(text.len() > 16_000 && text.trim_end().ends_with("</html>"), "{}", text.len());
            assert_eq!(headers["strict-transport-security"], "max-age=15552000");
            assert_eq!(headers["content-length"], text.len().to_string().as_str());
            assert!(headers["date"].to_str().unwrap().ends_with(" GMT"), "{headers:?}");
        }
        let mut send = send.ready().await.unwrap();
        let head = send.send_request(request(Method::HEAD, "/docs"), true).unwrap().0.await;
        let head = head.unwrap();
        assert!(head.headers()["content-length"].len() > 4 && head.body().is_end_stream());
        let post = request(Method::POST, "/api/v2/slowdns/install/precheck");
        let (answer, mut body) = send.send_request(post, false).unwrap();
        body.send_data(Bytes::from_static(b"{\"install_code\": \"IPT"), false).unwrap();
        body.send_data(Bytes::from_static(b"-SD-x\"}"), true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 422);
        let text = text_of(answer).await;
        assert!(text.contains("machine_id is required"), "{text}");
    });
}

#[test]
fn an_answer_of_http_2_that_comes_before_the_body_is_not_lost() {
    let certificates = Certificates::new("");
    let app = start(&certificates, &[]);
    in_time(async {
        let config = certificates.client("h2", None);
        let (mut send, mut pings, _end) =
            http_2(address(&app), config, &h2::client::Builder::new()).await;
        let post = request(Method::POST, "/nowhere");
        let (answer, mut body) = send.send_request(post, false).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 404);
        assert!(text_of(answer).await.contains("error"));
        // Whatever the server sends at once after the answer is here before the pong.
        pings.ping(h2::Ping::opaque()).await.unwrap();
        let reset = std::future::poll_fn(|cx| std::task::Poll::Ready(body.poll_reset(cx))).await;
        assert!(reset.is_pending(), "{reset:?}");
        body.send_data(Bytes::from(vec![b' '; 40_000]), false).unwrap();
        body.send_data(Bytes::new(), true).unwrap();
        let again = send.ready().await.unwrap().send_request(request(Method::GET, "/docs"), true);
        assert_eq!(again.unwrap().0.await.unwrap().status(), 200);
    });
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Reads frames until one is of this kind and stream.
fn read_until(tls: &mut Tls, kind: u8, stream: u32) {
    loop {
        let mut head = [0; 9];
        tls.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        tls.read_exact(&mut vec![0; length as usize]).unwrap();
        assert_ne!(head[3], GOAWAY, "the server ends the connection");
        let of = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if (head[3], of) == (kind, stream) {
            return;
        }
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

#[test]
fn requests_cancelled_in_one_flight_leave_those_beside_them_and_expect_100_is_honoured() {
    let certificates = Certificates::new("");
    let app = start(&certificates, &[]);
    let tcp = TcpStream::connect(address(&app)).unwrap();
    tcp.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut tls = shaken(tcp, certificates.client("h2", None)).unwrap();
    // POST https / of localhost, by RFC 7541, appendix A; and a header that is not in its table.
    let mut head = b"\x83\x87\x84\x41\x09localhost\x00\x06expect\x0c100-continue".to_vec();
    let mut flight = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    flight.extend(frame(SETTINGS, 0, 0, &[]));
    flight.extend(frame(HEADERS, 4, 1, &head));
    head.truncate(head.len() - 21);
    for stream in (3..163).step_by(2) {
        flight.extend(frame(HEADERS, 4, stream, &head));
        flight.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
    }
    tls.write_all(&flight).unwrap();
    // The first head says that the body may come, the second is the answer.
    read_until(&mut tls, HEADERS, 1);
    tls.write_all(&frame(DATA, 1, 1, b"{}")).unwrap();
    read_until(&mut tls, HEADERS, 1);
}

#[test]
fn a_server_with_open_connections_of_http_2_stops_at_once() {
    let certificates = Certificates::new("");
    let mut app = start(&certificates, &[]);
    let (to, config) = (address(&app), certificates.client("h2", None));
    in_time(async {
        let (mut send, _, end) = http_2(to, config, &h2::client::Builder::new()).await;
        let answer = send.send_request(request(Method::GET, "/api/v2/healthz"), true).unwrap().0;
        assert_eq!(answer.await.unwrap().status(), 200);
        let begun = Instant::now();
        tokio::task::spawn_blocking(move || app.stop()).await.unwrap().unwrap();
        // Requests would have 30 seconds to end.
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        assert!(is_calm(end.await.unwrap()));
    });
}

#[test]
fn a_caller_without_tls_hears_so_in_the_envelope_of_its_api() {
    let certificates = Certificates::new("");
    let app = start(&certificates, &[]);
    for (path, envelope) in [
        (
            "/api/v2/healthz",
            r#"{"error":{"code":"invalid_request","message":"This port speaks HTTPS"#,
        ),
        ("/status", r#"{"error":"This port speaks HTTPS"#),
    ] {
        let mut stream = connect(&app);
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
        let text = rest(stream);
        assert!(text.starts_with("HTTP/1.1 400 ") && text.contains(envelope), "{text}");
        assert!(!text.contains("strict-transport"), "{text}");
    }
    assert_eq!(ended(&app, "handshake"), 2.0);
}

#[test]
fn a_slow_handshake_ends_at_the_deadline_and_gives_its_place_back() {
    if !alone() {
        return;
    }
    let certificates = Certificates::new("");
    let more = [("server.request_timeout_ms", "1000"), ("server.max_connections_per_ip", "2")];
    let app = start(&certificates, &more);
    let silent = connect_from("127.0.0.2", &app);
    let mut slow = connect_from("127.0.0.2", &app);
    // The head of a record, and nothing in it.
    slow.write_all(&[22, 3, 1, 2, 0]).unwrap();
    assert_eq!(rest(connect_from("127.0.0.2", &app)), "");
    assert_eq!(ended(&app, "no_place"), 1.0);
    let begun = Instant::now();
    assert_eq!((rest(silent), rest(slow)), (String::new(), String::new()));
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    wait_until("both are counted", || ended(&app, "slow_head") == 2.0);
    wait_until("the places are free", || {
        let tcp = connect_from("127.0.0.2", &app);
        let mut stream = match shaken(tcp, certificates.client("http/1.1", None)) {
            Ok(stream) => stream,
            Err(_) => return false,
        };
        stream.write_all(GET).unwrap();
        stream.read(&mut [0; 100]).is_ok_and(|length| length > 0)
    });
}

#[test]
fn over_tls_too_a_caller_that_does_not_read_is_cut_off() {
    let certificates = Certificates::new("");
    let app = start(&certificates, &IMPATIENT);
    let mut stream =
        shaken(connect_from("127.0.0.2", &app), certificates.client("http/1.1", None)).unwrap();
    let requests = b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    let held = stream.sock.try_clone().unwrap();
    // The server stops reading while its answers are not read.
    std::thread::spawn(move || stream.write_all(&requests));
    wait_until("it is cut off", || ended(&app, "unread_answer") == 1.0);
    drop(held);
}

#[test]
fn a_connection_of_http_2_has_the_deadlines_of_one_of_http_1_1() {
    let certificates = Certificates::new("");
    let times = [("server.request_timeout_ms", "1000"), ("server.idle_timeout_seconds", "1")];
    let app = start(&certificates, &times);
    let (to, config) = (address(&app), certificates.client("h2", None));
    let usual = h2::client::Builder::new();
    let asks_nothing = async {
        let (_send, _, end) = http_2(to, config.clone(), &usual).await;
        assert!(is_calm(end.await.unwrap()));
    };
    let asks_once = async {
        let (mut send, _, end) = http_2(to, config.clone(), &usual).await;
        let begun = Instant::now();
        let answer = send.send_request(request(Method::GET, "/api/v2/healthz"), true).unwrap().0;
        assert_eq!(answer.await.unwrap().status(), 200);
        assert!(is_calm(end.await.unwrap()));
        assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    };
    let post = request(Method::POST, "/api/v2/slowdns/install/precheck");
    let ends_no_body = async {
        let (mut send, _, _end) = http_2(to, config.clone(), &usual).await;
        let (answer, _body) = send.send_request(post, false).unwrap();
        assert_eq!(answer.await.unwrap().status(), 408);
    };
    let mut narrow = h2::client::Builder::new();
    narrow.initial_window_size(1);
    let reads_nothing = async {
        let (mut send, _, _end) = http_2(to, config.clone(), &narrow).await;
        let answer = send.send_request(request(Method::GET, "/docs"), true).unwrap().0;
        let mut body = answer.await.unwrap().into_body();
        let error = loop {
            match body.data().await.expect("an end with an error") {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.reason(), Some(Reason::CANCEL));
    };
    in_time(async { tokio::join!(asks_nothing, asks_once, ends_no_body, reads_nothing) });
    wait_until("it is counted", || ended(&app, "unread_answer") == 1.0);
}

#[test]
fn streams_take_the_places_of_connections_and_many_that_are_cancelled_end_theirs() {
    if !alone() {
        return;
    }
    let certificates = Certificates::new("");
    let app = start(&certificates, &[("server.max_connections_per_ip", "3")]);
    let config = certificates.client("h2", None);
    in_time(async {
        let (mut send, _, _end) =
            http_2(address(&app), config.clone(), &h2::client::Builder::new()).await;
        let mut held = Vec::new();
        let post = || request(Method::POST, "/api/v2/slowdns/install/precheck");
        for _ in 0..3 {
            send = send.ready().await.unwrap();
            held.push(send.send_request(post(), false).unwrap());
        }
        send = send.ready().await.unwrap();
        let fourth = send.send_request(post(), false).unwrap().0.await.unwrap_err();
        assert_eq!(fourth.reason(), Some(Reason::REFUSED_STREAM));
        for (answer, mut body) in held {
            body.send_data(Bytes::from_static(b"{}"), true).unwrap();
            assert_eq!(answer.await.unwrap().status(), 422);
        }

        let (mut send, mut pings, end) =
            http_2(address(&app), config, &h2::client::Builder::new()).await;
        let mut cancelled = 0;
        while let Ok(ready) = send.clone().ready().await {
            send = ready;
            let Ok((_, mut body)) = send.send_request(post(), false) else { break };
            // So that the server has begun to work on it.
            if pings.ping(h2::Ping::opaque()).await.is_err() {
                break;
            }
            body.send_reset(Reason::CANCEL);
            cancelled += 1;
            assert!(cancelled < 1000);
        }
        let error = end.await.unwrap().unwrap_err();
        // What is on its way to the server when it closes resets the connection, and the reason can be lost.
        assert!(error.is_io() || error.reason() == Some(Reason::ENHANCE_YOUR_CALM), "{error}");
        assert!(cancelled > 100, "{cancelled}");
    });
    wait_until("it is counted", || ended(&app, "cancelled") == 1.0);
}

#[test]
fn new_files_are_served_by_themselves_and_on_sighup_and_bad_ones_change_nothing() {
    let certificates = Certificates::new(
        "certificate second ca DNS:localhost 3650
         certificate third ca DNS:localhost 30",
    );
    let app = start(&certificates, &[]);
    let config = certificates.client("http/1.1", None);
    let served = || asked(address(&app), config.clone(), GET).unwrap().1;
    let refused = || app.metrics("iptunnel_tls_files_refused{listener=\"public\"}");
    let left = || app.metrics("iptunnel_tls_certificate_left_seconds{listener=\"public\"}");
    let is = |name: &str| certificate(&certificates.path(name));
    assert!(left().iter().all(|left| *left > 0.0), "{:?}", left());
    let first = is("server.crt");
    assert!(served() == first);
    // Not the key of this certificate.
    certificates.shell("cp second.crt server.crt");
    app.reload(|_| {});
    wait_until("it is refused", || refused().iter().all(|refused| *refused == 1.0));
    assert!(served() == first);
    certificates.shell("cp second.key server.key; cp second.crt whole.crt");
    // A chain of which callers cannot read all.
    certificates.shell("echo '-----BEGIN CERTIFICATE-----' >> server.crt; echo AAAA >> server.crt");
    certificates.shell("echo '-----END CERTIFICATE-----' >> server.crt");
    app.reload(|_| {});
    wait_until("it is refused", || refused().iter().all(|refused| *refused == 1.0));
    assert!(served() == first);
    certificates.shell("cp whole.crt server.crt");
    app.reload(|_| {});
    wait_until("it is served", || refused().iter().all(|refused| *refused == 0.0));
    assert!(served() == is("second.crt"));
    certificates.shell(
        "cp third.key new.key; mv new.key server.key; cp third.crt new.crt; mv new.crt server.crt",
    );
    wait_until("it is served without a signal", || served() == is("third.crt"));
    // The clock of the test is in 2030.
    wait_until("it has ended", || left().iter().all(|left| *left < 0.0));
}

#[test]
fn the_operators_listener_asks_for_a_certificate_and_commands_can_show_one() {
    let certificates = Certificates::new(
        "certificate operator ca DNS:operator 3650
         certificate stranger other DNS:stranger 3650",
    );
    let file = |name: &str| certificates.file(name);
    let server = Process::start(&[
        &format!("admin.tls_cert={}", file("server.crt")),
        &format!("admin.tls_key={}", file("server.key")),
        &format!("admin.tls_client_ca={}", file("ca.crt")),
    ]);
    let to: SocketAddr = server.api.admin.strip_prefix("https://").unwrap().parse().unwrap();
    // Over TLS any name is good: nobody else has a certificate for it.
    let livez = b"GET /livez HTTP/1.1\r\nHost: admin.example.com\r\nConnection: close\r\n\r\n";
    let ask = |shown| asked(to, certificates.client("http/1.1", shown), livez);
    let text = ask(Some("operator")).unwrap().0;
    assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("ok\n"), "{text}");
    for shown in [None, Some("stranger")] {
        assert!(ask(shown).is_err(), "{shown:?}");
    }
    let folder = server.folder.path();
    let on_the_machine = run(
        folder,
        &[
            "--set",
            &format!("admin.tls_cert={}", file("server.crt")),
            "--set",
            &format!("admin.tls_key={}", file("server.key")),
            "healthcheck",
        ],
    );
    assert!(on_the_machine.status.success(), "{}", said(&on_the_machine));
    assert!(run(folder, &["servers", "list"]).status.success());
    let (ca, cert, key) = (file("ca.crt"), file("operator.crt"), file("operator.key"));
    let elsewhere = |more: &[&str], command: &[&str]| {
        let ca = format!("admin.url_ca={ca}");
        let usual = ["--url", &server.api.admin, "--set", &ca];
        let output = run(folder, &[&usual[..], more, command].concat());
        (output.status.success(), said(&output))
    };
    let (cert, key) = (format!("admin.url_cert={cert}"), format!("admin.url_key={key}"));
    let shown = ["--set", cert.as_str(), "--set", key.as_str()];
    for command in [&["servers", "list"][..], &["healthcheck"]] {
        let (is_good, said) = elsewhere(&shown, command);
        assert!(is_good, "{said}");
        let (is_good, said) = elsewhere(&[], command);
        assert!(!is_good && said.contains("no answer from the server"), "{said}");
    }
    let untrusting = run(folder, &["--url", &server.api.admin, "servers", "list"]);
    assert!(said(&untrusting).contains("UnknownIssuer"), "{}", said(&untrusting));
}

#[test]
fn files_that_cannot_be_used_are_refused_with_what_to_do_and_doubtful_ones_are_named() {
    let certificates = Certificates::new(
        "certificate short ca DNS:other.example.com 2; chmod 644 short.key
         certificate ends ca DNS:localhost 2
         echo nonsense > nonsense
         openssl pkey -in server.key -aes128 -passout pass:x -out locked.key
         openssl req -new -x509 -key server.key -subj /CN=a -not_before 20200101000000Z \\
             -not_after 20200201000000Z -out ended.crt || cp ends.crt ended.crt
         chmod 600 *.key; chmod 644 short.key",
    );
    let folder = TempDir::new().unwrap();
    let check = |command: &[&str], cert: &str, key: &str| {
        let of = |key: &str, file: &str| format!("server.{key}={}", certificates.file(file));
        let (cert, key) = (of("tls_cert", cert), of("tls_key", key));
        let usual = ["--set", &cert, "--set", &key, "--set", "server.public_url=https://localhost"];
        let output = run(folder.path(), &[&usual[..], command].concat());
        (output.status.success(), said(&output))
    };
    for (cert, key, words) in [
        ("none.crt", "server.key", "server.tls_cert: {}/none.crt does not exist; check the path"),
        ("nonsense", "server.key", "server.tls_cert: {}/nonsense holds no certificate; it must"),
        ("server.key", "server.key", "server.key holds no certificate"),
        ("server.crt", "none.key", "server.tls_key: {}/none.key does not exist"),
        ("server.crt", "server.crt", "server.crt holds no private key that can be used"),
        ("server.crt", "locked.key", "that is not encrypted"),
        ("server.crt", "ca.key", "ca.key is not the key of the certificate in {}/server.crt; name"),
    ] {
        let words = words.replace("{}", certificates.file("").trim_end_matches('/'));
        for command in ["check-config", "serve"] {
            let (is_good, said) = check(&[command], cert, key);
            assert!(!is_good && said.contains(&words), "{command}: {said}");
        }
        let (is_good, said) = check(&["doctor"], cert, key);
        assert!(!is_good && said.contains(&words) && said.contains("bad"), "{said}");
    }
    let (is_good, said) = check(&["check-config"], "short.crt", "short.key");
    assert!(is_good, "{said}");
    assert!(said.contains("short.crt is not one of localhost"), "{said}");
    assert!(said.contains("short.key, a private key, has the mode 0644"), "{said}");
    let (is_good, said) = check(&["doctor", "--output", "json"], "server.crt", "server.key");
    let findings: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    let findings = findings["findings"].as_array().unwrap();
    let of_certificate =
        |one: &&Value| one["what"].as_str().unwrap().contains("server.crt ends at");
    assert!(is_good && findings.iter().filter(of_certificate).count() == 1, "{said}");
}

#[test]
fn a_public_url_that_others_cannot_use_is_named_at_the_start_and_by_doctor() {
    let certificates = Certificates::new("");
    let file = |name: &str| certificates.file(name);
    let server = Process::start(&[
        "server.bind=0.0.0.0:0",
        &format!("server.tls_cert={}", file("server.crt")),
        &format!("server.tls_key={}", file("server.key")),
    ]);
    let words = ["is this machine alone", "the listener speaks HTTPS"];
    for words in words {
        assert!(server.output().contains(words), "{}", server.output());
    }
    let folder = server.folder.path();
    let doctor = said(&run(folder, &["doctor", "--set", "server.bind=0.0.0.0:8080"]));
    assert!(doctor.contains(words[0]) && !doctor.contains(words[1]), "{doctor}");
    assert!(!said(&run(folder, &["doctor"])).contains(words[0]));
}
