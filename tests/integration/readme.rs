//! The documents are right: the README's tour is pasted into a shell as it stands, with the default
//! limits, and the guide for operators names every setting.

use crate::harness::{send, wait_until};
use crate::process::Process;
use iptunnel_server::config::Layers;
use std::process::Command;

const README: &str = include_str!("../../README.md");
const PAYLOADS: &str = include_str!("../../docs/payloads.md");

/// The next block of this kind below some words of a document.
pub fn block_under<'a>(document: &'a str, words: &str, kind: &str) -> &'a str {
    let (_, below) = document.split_once(words).expect("the words");
    let (_, block) = below.split_once(&format!("```{kind}\n")).expect("a block");
    block.split_once("```").expect("its end").0
}

/// A server with the default limits, but for these settings.
fn server(set: &[&str]) -> Process {
    let ports = ["server.bind=127.0.0.1:0", "admin.bind=127.0.0.1:0"];
    let pairs = ports.iter().chain(set);
    let arguments = pairs.flat_map(|pair| ["--set".into(), (*pair).to_owned()]).collect();
    Process::start_in(std::sync::Arc::new(tempfile::tempdir().unwrap()), arguments)
}

/// Pastes the tour into a shell. See [`paste`].
fn tour(server: &Process) -> (bool, String, String) {
    paste(server, block_under(README, "## One whole installation", "sh"))
}

/// Pastes commands into a shell in the folder of the server, and returns whether they succeeded, their
/// output and their errors.
fn paste(server: &Process, commands: &str) -> (bool, String, String) {
    let output = Command::new("bash")
        .args(["-c", commands])
        .current_dir(server.folder.path())
        .env("SERVER", &server.api.url)
        .env("MASTER_TOKEN_FILE", server.folder.path().join("data/master.token"))
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_tour_can_be_pasted_as_it_stands() {
    let process = server(&[]);
    let server_api = &process.api;
    let (ended_well, said, complaints) = tour(&process);
    assert!(ended_well, "{said}\n{complaints}");
    assert!(said.contains("code: IPT-SD-"), "{said}");
    assert!(said.contains(r#"{"count":1,"servers":["#), "{said}");
    let server = said.lines().last().and_then(|line| serde_json::from_str(line).ok());
    let server: serde_json::Value = server.unwrap_or_else(|| panic!("{said}"));
    let server = &server["servers"][0];
    assert_eq!(
        (&server["ip"], &server["hostname"]),
        (&"1.2.3.4".into(), &"ns1.example.com".into())
    );
    let id = server["server_id"].as_str().unwrap();
    let audit = format!("{}/admin/audit?action=server_checked_in", server_api.admin);
    let request = server_api.client.get(audit).bearer_auth(&server_api.master);
    wait_until("its first check-in is in the log", || {
        send(request.try_clone().unwrap()).json()["data"]["entries"][0]["server"] == id
    });
}

#[test]
fn the_tour_stops_with_the_words_of_the_error_at_a_limit() {
    // Not after a first code: the hour might end between the two.
    let (ended_well, said, complaints) = tour(&server(&["limits.issue_per_ip_hour=0"]));
    assert_eq!((ended_well, &*said), (false, ""), "{complaints}");
    let words = "Too many requests. Please wait before trying again.";
    assert!(complaints.starts_with("The server says: ") && complaints.contains(words));
    let (ended_well, said, complaints) = tour(&server(&["limits.activate_per_ip_day=0"]));
    assert!(!ended_well && said.starts_with("code: IPT-SD-"), "{said}\n{complaints}");
    assert!(complaints.contains("Come back in "), "{complaints}");
}

#[test]
fn the_example_of_a_payload_can_be_followed_word_for_word() {
    let server = server(&["installer.payloads=payloads"]);
    let paste = |commands: &str| {
        let (ended_well, said, complaints) = paste(&server, commands);
        assert!(ended_well, "{said}\n{complaints}");
    };
    paste(block_under(PAYLOADS, "First the payload:", "sh"));
    let cookie = server.api.cookie().unwrap();
    let code = server.api.issue_with(&cookie).unwrap().data("install_code");
    let shown = block_under(PAYLOADS, "Try it without root", "text").trim();
    let here = shown.replace("http://127.0.0.1:8080", &server.api.url).replace("CODE", &code);
    paste(&format!("{here} --yes --server {}", server.api.url));
    let machine = server.folder.path().join("look");
    let page = machine.join("var/www/slowdns/index.html");
    assert_eq!(std::fs::read_to_string(&page).unwrap(), "<h1>ns1.example.com</h1>\n");
    paste(block_under(PAYLOADS, "To undo it:", "sh"));
    assert!(!page.exists() && !machine.join("etc/nginx/conf.d/slowdns.conf").exists());
}

#[test]
fn the_guide_for_operators_names_every_key_of_the_configuration() {
    let guide = include_str!("../../docs/operating.md");
    let shown = Layers::default().with(&[]).unwrap().config.to_toml();
    let keys = shown.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key.trim());
    for key in keys.filter(|key| !["slowdns"].contains(key)) {
        assert!(guide.contains(&format!("`{key}`")), "{key} is missing");
    }
}

#[test]
fn the_guide_and_the_changelog_know_this_version_and_its_formats() {
    let version = env!("CARGO_PKG_VERSION");
    let changes = include_str!("../../CHANGELOG.md");
    assert!(changes.contains(&format!("\n## {version} (")), "{version}");
    let guide = include_str!("../../docs/operating.md");
    let format = iptunnel_storage::FORMAT_VERSION;
    let row = format!("| {version} | {format} | 1 to {format} | ");
    assert!(guide.contains(&row), "{row}");
}
