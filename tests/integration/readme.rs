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

#[test]
fn the_tour_can_be_pasted_as_it_stands() {
    let ports = ["server.bind=127.0.0.1:0", "admin.bind=127.0.0.1:0"];
    let arguments = ports.iter().flat_map(|pair| ["--set".into(), (*pair).to_owned()]).collect();
    let server = Process::start_in(std::sync::Arc::new(tempfile::tempdir().unwrap()), arguments);
    let output = Command::new("bash")
        .args(["-eu", "-o", "pipefail", "-c", &block_under("## One whole installation with curl")])
        .env("SERVER", &server.api.url)
        .env("MASTER_TOKEN_FILE", server.folder.path().join("data/master.token"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complaints}");
    assert!(said.contains("code: IPT-SD-"), "{said}");
    assert!(
        said.contains(r#""status":"confirmed"},"meta":{"message":"Install confirmed"}"#),
        "{said}"
    );
    assert!(said.contains(r#""message":"Check-in accepted""#), "{said}");
    assert!(said.contains(r#"{"count":1,"servers":["#), "{said}");
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
