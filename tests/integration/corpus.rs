//! The files in `tests/corpus/`: inputs that have broken programs, or would like to. A name that begins
//! with `good-` is to be taken, one with `bad-` to be refused in words.

#[path = "../corpus/feed.rs"]
mod feed;

use crate::harness::{TestApp, try_send};
use crate::process::{Chance, program};
use feed::Verdict;
use reqwest::Method;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

type Parser = fn(&[u8]) -> Verdict;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// Names and contents of the files of one kind.
fn files(kind: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(corpus().join(kind)).unwrap();
    let files = entries.map(|entry| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap())
    });
    let files: Vec<_> = files.collect();
    assert!(files.len() > 3, "{kind}");
    files
}

const KINDS: [(&str, Parser); 15] = [
    ("body", feed::body),
    ("cookie", feed::cookie),
    ("token", feed::token),
    ("config", feed::config),
    ("form", feed::form),
    ("head", feed::head),
    ("signing_keys", feed::signing_keys),
    ("lookup", feed::lookup),
    ("master", feed::master),
    ("heads", feed::heads),
    ("export", feed::export),
    ("journal", feed::journal),
    ("rows", feed::rows),
    ("manifest", feed::manifest),
    ("age", feed::age),
];

#[test]
fn every_parser_takes_what_is_good_and_refuses_the_rest_in_words() {
    let mut wrong = Vec::new();
    for (kind, parse) in KINDS {
        for (name, bytes) in files(kind) {
            match parse(&bytes) {
                Ok(()) if name.starts_with("bad-") => {
                    wrong.push(format!("{kind}/{name} was taken"))
                }
                Err(words) if name.starts_with("good-") => {
                    wrong.push(format!("{kind}/{name}: {words}"))
                }
                Err(words) if words.is_empty() => wrong.push(format!("{kind}/{name}: no words")),
                _ => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_parser_panics_on_what_becomes_of_a_good_file() {
    let mut chance = Chance::seeded(1);
    let mut below = |bound: usize| chance.below(bound.max(1) as u64) as usize;
    for (kind, parse) in [("manifest", feed::manifest as Parser), ("age", feed::age)] {
        let files = files(kind);
        for (name, bytes) in files.iter().filter(|(name, _)| name.starts_with("good-")) {
            for round in 0..1000 {
                let mut changed = bytes.clone();
                for _ in 0..=below(3) {
                    let (at, end) = (below(changed.len()), below(changed.len() + 1));
                    match below(5) {
                        0 => changed.truncate(end),
                        1 => drop(changed.drain(at.min(end)..at.max(end))),
                        2 => changed
                            .splice(at..at, bytes[end.min(bytes.len())..].to_vec())
                            .for_each(drop),
                        _ if changed.is_empty() => changed.push(below(256) as u8),
                        3 => changed[at] = below(256) as u8,
                        _ => changed[at] ^= 1 << below(8),
                    }
                }
                let parsed = std::panic::catch_unwind(|| parse(&changed));
                let told = String::from_utf8_lossy(&changed);
                assert!(parsed.is_ok(), "{kind}/{name}, round {round}: {told:?}");
            }
        }
    }
}

/// The routes that read a body.
const ROUTES: [&str; 10] = [
    "/api/v2/slowdns/code/issue",
    "/api/v2/slowdns/install/precheck",
    "/api/v2/slowdns/install/activate",
    "/api/v2/slowdns/install/confirm",
    "/api/v2/slowdns/install/release",
    "/register",
    "/checkin",
    "/revoke",
    "/api/v2/servers/0123456789abcdef/check-in",
    "/status",
];

#[test]
fn no_body_breaks_a_route() {
    let app = TestApp::start();
    for (name, bytes) in files("body") {
        for route in ROUTES {
            let request = app.client.post(format!("{}{route}", app.url)).bearer_auth(app.master());
            let answer = try_send(request.body(bytes.clone())).expect("an answer");
            assert!(answer.status < 500, "{route} {name}: {} {}", answer.status, answer.text);
            assert!(answer.status < 400 || answer.json()["error"] != serde_json::Value::Null);
        }
        for route in ["/admin/codes", "/admin/servers/0123456789abcdef/note", "/admin/config"] {
            let method = if route.ends_with("config") { Method::PATCH } else { Method::POST };
            let request = app.client.request(method, format!("{}{route}", app.admin));
            let request = request.bearer_auth(app.master()).header("if-match", "*");
            let answer = try_send(request.body(bytes.clone())).expect("an answer");
            assert!(answer.status < 500, "{route} {name}: {} {}", answer.status, answer.text);
        }
    }
}

#[test]
fn no_cookie_and_no_token_breaks_a_route() {
    let app = TestApp::start();
    let issue = format!("{}/api/v2/slowdns/code/issue", app.url);
    let sent = AtomicU32::new(0);
    // All at once: wrong tokens are answered a second later.
    std::thread::scope(|scope| {
        for (name, bytes) in files("cookie").into_iter().chain(files("token")) {
            // An HTTP client does not send a line feed in a header.
            let Ok(value) = reqwest::header::HeaderValue::from_bytes(&bytes) else { continue };
            let requests = [
                app.client.post(&issue).header("cookie", value.clone()),
                app.client.get(format!("{}/slowdns", app.url)).header("cookie", value.clone()),
                app.client
                    .get(format!("{}/status", app.url))
                    .header("authorization", value.clone()),
                app.client
                    .get(format!("{}/console/now", app.admin))
                    .header("cookie", value.clone()),
                app.client.get(format!("{}/admin/now", app.admin)).header("authorization", value),
            ];
            let sent = &sent;
            scope.spawn(move || {
                for request in requests {
                    // The parser of HTTP itself ends the connection where a head is too long.
                    let Some(answer) = try_send(request) else { continue };
                    assert!(answer.status < 500, "{name}: {} {}", answer.status, answer.text);
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let sent = sent.into_inner();
    assert!(sent > 150, "{sent}");
}

#[test]
fn a_command_that_reads_a_bad_file_says_which_and_ends_with_1() {
    let files =
        |kind: &str| corpus().join(kind).read_dir().unwrap().map(|entry| entry.unwrap().path());
    let commands: [(&str, &[&str], &str); 4] = [
        ("config", &["check-config"], ""),
        ("signing_keys", &["keys", "list"], "auth.signing_key_file="),
        ("export", &["audit", "verify", "--file"], ""),
        ("heads", &["audit", "verify", "--file", "/dev/null", "--heads"], ""),
    ];
    for (kind, arguments, setting) in commands {
        for path in files(kind) {
            let folder = tempfile::tempdir().unwrap();
            let mut command = program(folder.path());
            match kind {
                "config" => drop(command.arg("--config").arg(&path).args(arguments)),
                "signing_keys" => {
                    // A copy, so that nothing can change the corpus.
                    fs::copy(&path, folder.path().join("copy")).unwrap();
                    command.args(["--set", &format!("{setting}copy")]).args(arguments);
                }
                _ => drop(command.args(arguments).arg(&path)),
            }
            let output = command.output().unwrap();
            let code = output.status.code();
            let bad = path.file_name().unwrap().to_string_lossy().starts_with("bad-");
            assert!(code == Some(1) || (code == Some(0) && !bad), "{path:?}: {output:?}");
            assert!(
                code == Some(0) || output.stderr.starts_with(b"iptunnel-server: "),
                "{output:?}"
            );
        }
    }
}
