//! The files in deploy/.

use crate::harness::TestApp;
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

/// The rules for Prometheus.
const ALERTS: &str = include_str!("../../deploy/prometheus/alerts.yml");

/// Runs Prometheus' own tool in the folder of the rules.
fn promtool(arguments: &[&str]) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus");
    let output = Command::new("promtool").args(arguments).current_dir(folder).output().unwrap();
    let words = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{words}");
}

/// Returns the names of all alerts.
fn alerts() -> Vec<&'static str> {
    ALERTS.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect()
}

#[test]
fn each_alert_fires_in_prometheus_for_its_cause_and_none_while_all_is_well() {
    promtool(&["check", "rules", "alerts.yml"]);
    promtool(&["test", "rules", "alerts_test.yml"]);
    let tried = include_str!("../../deploy/prometheus/alerts_test.yml");
    for alert in alerts() {
        assert!(tried.contains(&format!("alertname=\"{alert}\"")), "{alert} is not tried");
    }
}

#[test]
fn alerts_and_the_dashboard_name_only_metrics_that_the_server_has() {
    let app = TestApp::start();
    // There are figures of requests once there was one.
    app.get("/readyz");
    // Nor are there any of certificates and webhooks without one, or of the last backup before the first.
    let comes_later = |name: &str| {
        let of_none = ["iptunnel_tls_", "iptunnel_webhook_"];
        of_none.iter().any(|front| name.starts_with(front)) || name == "iptunnel_backup_age_seconds"
    };
    let metrics = app.get_admin("/metrics").text;
    let known: Vec<_> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    for text in [ALERTS, include_str!("../../deploy/grafana/dashboard.json")] {
        for name in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            let family = name.trim_end_matches("_total").trim_end_matches("_bucket");
            let is_metric = name.starts_with("iptunnel_") && !comes_later(name);
            assert!(!is_metric || known.contains(&family), "{name}");
        }
    }
}

#[test]
fn each_alert_has_an_entry_in_the_runbook() {
    let runbook = include_str!("../../docs/operating.md");
    assert!(alerts().len() > 15);
    for alert in alerts() {
        assert!(runbook.contains(&format!("#### {alert}\n")), "{alert}");
        let link = format!("runbook: docs/operating.md#{}\n", alert.to_lowercase());
        assert!(ALERTS.contains(&link), "{alert}");
    }
}
