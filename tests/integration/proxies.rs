//! The proxies of `deploy/`, HAProxy and nginx, with the shipped files before two servers.

use crate::harness::{PATIENCE, TestApp, free_address, wait_until};
use crate::wire::{address, connect_to, rest};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// A kind of proxy.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Haproxy,
    Nginx,
}

/// A running proxy.
struct Proxy {
    address: SocketAddr,
    process: Child,
    _folder: TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
    }
}

/// Replaces what is there exactly once or more often, and must be there.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "the shipped file has no {from:?}");
    text.replace(from, to)
}

impl Proxy {
    /// Starts a proxy with the shipped file before two addresses. Only addresses, paths, sizes and
    /// times are replaced, and a rule is added that refuses requests whose path ends in `/refused`.
    fn start(kind: Kind, servers: [SocketAddr; 2]) -> Self {
        let folder = TempDir::new().unwrap();
        let free = free_address();
        let shipped = match kind {
            Kind::Haproxy => include_str!("../../deploy/haproxy.cfg"),
            Kind::Nginx => include_str!("../../deploy/nginx.conf"),
        };
        let mut text = replaced(shipped, "10.0.0.11:8080", &servers[0].to_string());
        text = replaced(&text, "10.0.0.12:8080", &servers[1].to_string());
        let path = folder.path().display();
        let file = folder.path().join("proxy.conf");
        let mut command = match kind {
            Kind::Haproxy => {
                text = replaced(&text, "bind :80\n", &format!("bind {free}\n"));
                // A machine for tests may not allow as many open files.
                text = replaced(&text, "maxconn 20000", "maxconn 200");
                text = replaced(&text, "timeout server 60s", "timeout server 1s");
                let rule =
                    "    http-request deny deny_status 429 if { path_end /refused }\n    # If no";
                text = replaced(&text, "    # If no", rule);
                let mut command = Command::new("haproxy");
                command.arg("-db").arg("-f").arg(&file);
                command
            }
            Kind::Nginx => {
                text = replaced(&text, "listen 80;", &format!("listen {free};"));
                text = replaced(&text, "proxy_read_timeout 60s", "proxy_read_timeout 1s");
                let rule = "location ~ /refused$ { return 429; }\n        location / {";
                text = replaced(&text, "location / {", rule);
                let paths = format!(
                    "http {{\n    client_body_temp_path {path}/body;\n    proxy_temp_path {path}/proxy;\n    \
                     fastcgi_temp_path {path}/f;\n    uwsgi_temp_path {path}/u;\n    \
                     scgi_temp_path {path}/s;\n    access_log off;\n"
                );
                text = replaced(&text, "http {\n", &paths);
                let mut command = Command::new("nginx");
                let user = if nix::unistd::geteuid().is_root() { "user root; " } else { "" };
                let global = format!("{user}daemon off; pid {path}/pid; error_log {path}/log;");
                command.arg("-c").arg(&file).arg("-e").arg(format!("{path}/log"));
                command.arg("-g").arg(global);
                command
            }
        };
        std::fs::write(&file, text).unwrap();
        let log = std::fs::File::create(folder.path().join("output")).unwrap();
        let both = log.try_clone().unwrap();
        let process = command.stdin(Stdio::null()).stdout(log).stderr(both).spawn().unwrap();
        let proxy = Self { address: free, process, _folder: folder };
        wait_until("the proxy listens", || TcpStream::connect(proxy.address).is_ok());
        proxy
    }

    /// Opens a connection from another address than the proxy's own, which the servers trust.
    fn connect(&self) -> TcpStream {
        let stream = connect_to(self.address, "127.0.0.2");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Whether a server behind it answers.
    fn is_ready(&self) -> bool {
        let mut stream = self.connect();
        let request = b"GET /api/v2/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let mut answer = Vec::new();
        stream.write_all(request).is_ok()
            && stream.read_to_end(&mut answer).is_ok()
            && answer.starts_with(b"HTTP/1.1 200")
    }

    /// Sends a request with these headers and this body, and reads the answer to its end.
    fn ask(&self, request: &str, headers: &str, body: &[u8]) -> Said {
        let mut stream = self.connect();
        let length = body.len();
        let head = format!(
            "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\
             {headers}\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        // The proxy may refuse before it has read everything.
        let _ = stream.write_all(body);
        Said::of(&rest(stream))
    }
}

/// An answer.
#[derive(Debug)]
struct Said {
    status: u16,
    head: String,
    body: String,
}

impl Said {
    fn of(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.get(9..12).unwrap_or_else(|| panic!("no answer: {text:?}"));
        Self { status: status.parse().unwrap(), head: head.to_lowercase(), body: body.into() }
    }

    fn header(&self, name: &str) -> &str {
        let line = self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or("")
    }

    /// Checks a failure in the envelope of `/api/v2`, or in the legacy one where `code` is empty.
    fn assert_failure(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/json", "{self:?}");
        let body: Value = serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"));
        assert_eq!(body.as_object().unwrap().len(), 1);
        if code.is_empty() {
            assert!(body["error"].is_string(), "{self:?}");
        } else {
            assert_eq!(body["error"]["code"], code, "{self:?}");
            assert!(body["error"]["message"].is_string());
        }
        assert!(!self.header("x-request-id").is_empty(), "{self:?}");
    }
}

const KINDS: [Kind; 2] = [Kind::Haproxy, Kind::Nginx];
const V2: &str = "/api/v2/slowdns/install/precheck";

/// Starts two servers that trust the proxy, and each kind of proxy before them.
fn before_two_servers(check: impl Fn(Kind, &Proxy)) {
    let server = || {
        TestApp::start_with(|c| {
            c.push(("server.trusted_proxies", "127.0.0.1".into()));
            c.push(("limits.precheck_per_ip_day", "10".into()));
        })
    };
    let servers = [server(), server()];
    for kind in KINDS {
        let proxy = Proxy::start(kind, servers.each_ref().map(address));
        // HAProxy asks for readiness first.
        wait_until("the servers are reached", || proxy.is_ready());
        check(kind, &proxy);
    }
}

#[test]
fn requests_pass_and_the_caller_chooses_neither_its_id_nor_its_address() {
    before_two_servers(|kind, proxy| {
        let ids: Vec<String> = (0..4)
            .map(|_| {
                let answer = proxy.ask("GET /api/v2/healthz", "X-Request-Id: mine\r\n", b"");
                assert_eq!(answer.status, 200, "{kind:?}");
                answer.header("x-request-id").to_owned()
            })
            .collect();
        assert!(ids.iter().all(|id| id.len() >= 32 && id != "mine"), "{kind:?}: {ids:?}");
        // Two servers with ten prechecks each: the 21st of one address is refused at the latest.
        let told: Vec<u16> = (0..21)
            .map(|number| {
                let header = format!("X-Forwarded-For: 9.9.9.{number}\r\n");
                proxy.ask(&format!("POST {V2}"), &header, b"{}").status
            })
            .collect();
        assert!(told.contains(&429), "{kind:?}: {told:?}");
    });
}

#[test]
fn requests_reach_the_servers_as_they_were_meant() {
    before_two_servers(|kind, proxy| {
        for path in ["//api//v2/healthz", "/api/v2/healthz/", "/docs/"] {
            assert_eq!(proxy.ask(&format!("GET {path}"), "", b"").status, 200, "{kind:?} {path}");
        }
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
        let confirm = "POST /api/v2/slowdns/install/confirm";
        proxy.ask(confirm, upgrade, b"{}").assert_failure(422, "validation_error");
        proxy.ask(confirm, "Expect: 100-continue\r\n", b"");
        let mut old = proxy.connect();
        old.write_all(b"GET /docs HTTP/1.0\r\n\r\n").unwrap();
        let text = rest(old);
        assert!(!text.to_lowercase().contains("transfer-encoding"), "{kind:?}");
        assert!(text.trim_end().ends_with("</html>"), "{kind:?}");
        let head = proxy.ask("HEAD /docs", "", b"");
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{kind:?}");
    });
}

#[test]
fn refusals_of_servers_and_proxies_have_the_envelope_of_their_api() {
    before_two_servers(|_, proxy| {
        for (path, code) in [(V2, "request_too_large"), ("/register", "")] {
            // The first is refused by the server, the second by nginx.
            for length in [100_000, 3_000_000] {
                let answer = proxy.ask(&format!("POST {path}"), "", &vec![b' '; length]);
                answer.assert_failure(413, code);
            }
        }
        proxy.ask("GET /api/v2/refused", "", b"").assert_failure(429, "rate_limit_exceeded");
        proxy.ask("GET /refused", "", b"").assert_failure(429, "");
        proxy.ask("GET /api/v2/nothing", "", b"").assert_failure(404, "not_found");
    });
}

#[test]
fn servers_that_are_away_silent_or_broken_are_answered_for_in_the_envelope_of_the_api() {
    let away = free_address();
    // Accepts, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    // Closes instead of answering.
    let broken = TcpListener::bind("127.0.0.1:0").unwrap();
    let of_broken = broken.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in broken.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            let _ = stream.read(&mut [0; 4096]);
        }
    });
    for (server, haproxy, nginx) in [
        (away, (503, "overloaded"), (502, "outcome_unknown")),
        (silent.local_addr().unwrap(), (504, "outcome_unknown"), (504, "outcome_unknown")),
        (of_broken, (502, "outcome_unknown"), (502, "outcome_unknown")),
    ] {
        for (kind, (status, code)) in [(Kind::Haproxy, haproxy), (Kind::Nginx, nginx)] {
            let proxy = Proxy::start(kind, [server; 2]);
            for (path, code) in [(V2, code), ("/register", "")] {
                let answer = proxy.ask(&format!("POST {path}"), "", b"{}");
                answer.assert_failure(status, code);
                assert_eq!(answer.header("retry-after"), "2", "{kind:?}: {answer:?}");
            }
        }
    }
}

#[test]
fn what_nginx_cannot_read_is_refused_as_json() {
    let server = TestApp::start();
    let proxy = Proxy::start(Kind::Nginx, [address(&server); 2]);
    let long = "x".repeat(60_000);
    for (head, status, code) in [
        (format!("GET /api/v2/x HTTP/1.1\r\nHost: x\r\nA: {long}"), 431, "request_head_too_large"),
        (format!("GET /x HTTP/1.1\r\nHost: x\r\nA: {long}"), 431, ""),
        ("GET /api/v2/x HTTP/1.1\r\nHost: x\r\nHost: y".into(), 400, "invalid_request"),
        ("GET /x HTTP/1.1".into(), 400, ""),
    ] {
        let mut stream = proxy.connect();
        let _ = stream.write_all(format!("{head}\r\n\r\n").as_bytes());
        Said::of(&rest(stream)).assert_failure(status, code);
    }
}
