//! The files in deploy/.

use std::fs;
use std::process::Command;

/// The unit, with the program and the user of this machine in place of those of an installation.
fn unit() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("iptunnel-server.service");
    let text = include_str!("../../deploy/iptunnel-server.service").replace(
        "ExecStart=/usr/local/bin/iptunnel-server",
        concat!("ExecStart=", env!("CARGO_BIN_EXE_iptunnel-server")),
    );
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

/// Runs `systemd-analyze`, or returns `None` where there is none.
fn analyze(arguments: &[&str]) -> Option<(bool, String)> {
    let mut command = Command::new("systemd-analyze");
    match command.args(arguments).output() {
        Ok(output) => {
            let text =
                String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            Some((output.status.success(), text))
        }
        Err(_) => {
            eprintln!("left out: systemd-analyze is not installed");
            None
        }
    }
}

#[test]
fn the_unit_is_valid() {
    let (_folder, path) = unit();
    if let Some((valid, words)) = analyze(&["verify", "--man=no", &path]) {
        assert!(valid && !words.contains("iptunnel-server.service:"), "{words}");
    }
}

#[test]
fn systemd_rates_the_exposure_of_the_unit_below_two() {
    let (_folder, path) = unit();
    let Some((low, words)) =
        analyze(&["security", "--no-pager", "--offline=true", "--threshold=19", &path])
    else {
        return;
    };
    assert!(low, "{words}");
}

#[test]
fn the_unit_bounds_memory_and_keeps_it_out_of_swap() {
    let text = include_str!("../../deploy/iptunnel-server.service");
    for line in ["MemoryMax=", "MemoryHigh=", "MemorySwapMax=0", "TasksMax=", "LimitCORE=0"] {
        assert!(text.lines().any(|one| one.starts_with(line)), "{line}");
    }
}
