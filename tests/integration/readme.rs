//! The documents are right: the README's tour is pasted into a shell as it stands, with the default
//! limits, and the guide for operators names every setting.

use crate::process::Process;
use iptunnel_server::config::Layers;
use std::process::Command;

/// The block of shell commands below a heading of the README.
fn block_under(heading: &str) -> String {
    let readme = include_str!("../../README.md");
    let (_, below) = readme.split_once(heading).expect("the heading");
    let (_, block) = below.split_once("```sh\n").expect("a block");
    block.split_once("```").expect("its end").0.to_owned()
}

/// A server with the default limits, but for these settings.
fn server(set: &[&str]) -> Process {
    let ports = ["server.bind=127.0.0.1:0", "admin.bind=127.0.0.1:0"];
    let pairs = ports.iter().chain(set);
    let arguments = pairs.flat_map(|pair| ["--set".into(), (*pair).to_owned()]).collect();
    Process::start_in(std::sync::Arc::new(tempfile::tempdir().unwrap()), arguments)
}

/// Pastes the tour into a shell, and returns whether it succeeded, its output and its errors.
fn tour(server: &Process) -> (bool, String, String) {
    let output = Command::new("bash")
        .args(["-c", &block_under("## One whole installation with curl")])
        .env("SERVER", &server.api.url)
        .env("MASTER_TOKEN_FILE", server.folder.path().join("data/master.token"))
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_tour_can_be_pasted_as_it_stands() {
    let (ended_well, said, complaints) = tour(&server(&[]));
    assert!(ended_well, "{said}\n{complaints}");
    assert!(said.contains("code: IPT-SD-"), "{said}");
    assert!(said.contains("installation: confirmed"), "{said}");
    assert!(said.contains(r#""message":"Check-in accepted""#), "{said}");
    assert!(said.contains(r#"{"count":1,"servers":["#), "{said}");
}

#[test]
fn the_tour_stops_with_the_words_of_the_error_at_a_limit() {
    let issue = server(&["limits.issue_per_ip_hour=1"]);
    assert!(tour(&issue).0);
    let (ended_well, said, complaints) = tour(&issue);
    assert_eq!((ended_well, &*said), (false, ""), "{complaints}");
    let line =
        complaints.strip_prefix("The server says: ").unwrap_or_else(|| panic!("{complaints}"));
    assert!(!line.contains('{') && line.trim_end().ends_with('.'), "{line}");
    let (ended_well, said, complaints) = tour(&server(&["limits.activate_per_ip_day=0"]));
    assert!(!ended_well && said.starts_with("code: IPT-SD-"), "{said}\n{complaints}");
    assert!(complaints.starts_with("The server says: "), "{complaints}");
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
