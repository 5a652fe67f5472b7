//! The real `clients/install.sh` against the real server: below a folder of its own, with each shell and
//! with both HTTP clients.

use crate::harness::{Machine, PATIENCE, TestApp, free_address, send, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use tempfile::TempDir;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/install.sh");

/// The shells that the script is written for, as one calls them.
const SHELLS: [&[&str]; 3] = [&["dash"], &["bash", "--posix"], &["busybox", "ash"]];

/// The tools that the script may find on a machine, but for the HTTP clients.
const TOOLS: [&str; 40] = [
    "awk",
    "base64",
    "basename",
    "bash",
    "busybox",
    "cat",
    "chmod",
    "cp",
    "dash",
    "date",
    "dd",
    "df",
    "dirname",
    "env",
    "grep",
    "head",
    "hostname",
    "id",
    "ln",
    "mkdir",
    "mktemp",
    "mv",
    "nohup",
    "od",
    "pidof",
    "rm",
    "rmdir",
    "sed",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "sync",
    "tail",
    "touch",
    "tr",
    "uname",
    "wc",
    "xargs",
    "setsid",
];

/// Where a tool is on this machine.
fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).map(|folder| folder.join(tool)).find(|file| file.is_file())
}

/// A machine: a folder below which is installed, and the tools that it has.
struct Host {
    folder: TempDir,
    ip: String,
    shell: &'static [&'static str],
}

/// What came of a run.
struct Ended {
    status: i32,
    /// Both outputs.
    said: String,
}

impl Ended {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = text(&output.stdout) + &text(&output.stderr);
        Self { status: output.status.code().unwrap_or(-1), said }
    }
    /// Requires this status and these words.
    #[track_caller]
    fn with(&self, status: i32, words: &[&str]) -> &Self {
        assert_eq!(self.status, status, "{}", self.said);
        for word in words {
            assert!(self.said.contains(word), "\"{word}\" is missing: {}", self.said);
        }
        self
    }
}

impl Host {
    fn new() -> Self {
        Self::with_client(SHELLS[0], "curl")
    }

    /// A machine with only this HTTP client.
    fn with_client(shell: &'static [&'static str], client: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let folder = TempDir::new().unwrap();
        let tools = folder.path().join("tools");
        fs::create_dir(&tools).unwrap();
        for tool in TOOLS.iter().copied().chain([client]) {
            if let Some(file) = find(tool) {
                symlink(file, tools.join(tool)).unwrap();
            }
        }
        let ip = format!("127.0.1.{}", COUNT.fetch_add(1, Ordering::SeqCst) % 250 + 1);
        Self { folder, ip, shell }
    }

    /// Puts a script in the place of one of its tools.
    fn replace(&self, tool: &str, script: &str) {
        let file = self.folder.path().join("tools").join(tool);
        let _ = fs::remove_file(&file);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }
    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.root().join(name)).unwrap_or_default()
    }
    fn has(&self, name: &str) -> bool {
        self.root().join(name).exists()
    }
    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.root().join(name)).unwrap().permissions().mode() & 0o7777
    }

    /// Runs a file with this machine's shell and tools. It has no terminal, whoever runs the tests.
    fn run_file(&self, file: &Path) -> Command {
        // Whoever runs the tests may ignore signals.
        let mut command = Command::new("env");
        command
            .args(["--default-signal=INT,TERM,HUP", "setsid"])
            .args(self.shell)
            .arg(file)
            .stdin(Stdio::null());
        command.env_clear().env("PATH", self.folder.path().join("tools"));
        command.current_dir(self.folder.path());
        command
    }

    /// The installer, unattended, with short patience.
    fn installer(&self, url: &str) -> Command {
        let mut command = self.run_file(Path::new(SCRIPT));
        command.args(["--server", url, "--product", "slowdns", "--root"]).arg(self.root());
        command.args(["--yes", "--hostname", "ns1.example.com", "--ip", &self.ip]);
        command.args(["--timeout", "20", "--tries", "2"]);
        command
    }

    /// Installs with a code, which is given in a file.
    fn install(&self, url: &str, code: &str) -> Ended {
        Ended::of(&self.with_code(url, code).output().unwrap())
    }
    fn with_code(&self, url: &str, code: &str) -> Command {
        let file = self.folder.path().join("code");
        fs::write(&file, format!("{code}\n")).unwrap();
        let mut command = self.installer(url);
        command.arg("--code-file").arg(file);
        command
    }

    /// Runs the agent's command.
    fn agent(&self, arguments: &[&str]) -> Ended {
        let mut command = self.run_file(&self.root().join("usr/local/sbin/iptunnel-agent"));
        command.arg("--root").arg(self.root()).args(arguments);
        Ended::of(&command.output().unwrap())
    }
    /// A value that a file of the installer or the agent has.
    fn value(&self, file: &str, key: &str) -> String {
        let text = self.file(file);
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().to_owned()
    }
    fn server_id(&self) -> String {
        self.value("etc/iptunnel/agent.conf", "SERVER_ID")
    }
    fn agent_state(&self) -> String {
        self.value("var/lib/iptunnel-agent/status", "STATE")
    }
}

/// A server for machines with loopback addresses.
fn server() -> TestApp {
    server_with(|_| {})
}

fn server_with(change: impl FnOnce(&mut Vec<(&'static str, String)>)) -> TestApp {
    TestApp::start_with(|c| {
        c.push(("server.allow_private_ips", "true".into()));
        change(c);
    })
}

/// A server that hands out this setup script.
fn server_with_payload(folder: &TempDir, script: &str) -> TestApp {
    set_payload(folder, script);
    let folder = folder.path().display().to_string();
    server_with(|c| c.push(("installer.payloads", folder)))
}

fn set_payload(folder: &TempDir, script: &str) {
    fs::write(folder.path().join("slowdns.sh"), format!("#!/bin/sh\n{script}\n")).unwrap();
}

/// The list of registered servers.
fn listed(app: &TestApp) -> Vec<Value> {
    app.get_as(&app.master(), "/status").json()["servers"].as_array().unwrap().clone()
}

/// Whether a machine that has never been here can use the code.
fn is_good(app: &TestApp, code: &str) -> bool {
    Machine::new(99).precheck(app, code).status == 200
}

#[test]
fn it_installs_registers_and_checks_in_with_every_shell_and_both_clients() {
    let app = server();
    let pairs: Vec<_> =
        SHELLS.iter().flat_map(|shell| ["curl", "wget"].map(|client| (*shell, client))).collect();
    std::thread::scope(|scope| {
        for (shell, client) in pairs {
            let app = &app;
            scope.spawn(move || {
                let host = Host::with_client(shell, client);
                let code = app.issue();
                let ended = host.install(&app.url, &code);
                ended.with(0, &["Check-in: ok", "Done: slowdns is installed", "no setup script"]);
                assert!(!is_good(app, &code));
                assert_eq!(host.server_id().len(), 16, "{shell:?} {client}");
                assert_eq!(host.agent_state(), "ok", "{shell:?} {client}");
                for (name, mode) in [
                    ("etc/iptunnel", 0o755),
                    ("etc/iptunnel/agent.conf", 0o644),
                    ("etc/iptunnel/agent.token", 0o600),
                    ("usr/local/sbin/iptunnel-agent", 0o755),
                    ("var/lib/iptunnel", 0o700),
                    ("var/lib/iptunnel/machine-id", 0o600),
                    ("var/lib/iptunnel/slowdns.state", 0o600),
                    ("etc/systemd/system/iptunnel-agent.timer", 0o644),
                ] {
                    assert_eq!(host.mode(name), mode, "{name}");
                }
                let kept = host.file("var/lib/iptunnel/slowdns.state");
                assert!(
                    !kept.contains(&code) && !kept.contains("eyJ"),
                    "a spent secret stays: {kept}"
                );
                assert!(!host.has("var/lib/iptunnel/work") && !host.has("var/lib/iptunnel/lock"));
            });
        }
    });
    assert_eq!(listed(&app).len(), 6);
}

#[test]
fn each_refusal_has_its_status_and_its_words_and_leaves_nothing_behind() {
    let app = server_with(|c| {
        c.push(("products.slowdns", "SD".into()));
        c.push(("products.other", "OT".into()));
    });
    let used = app.issue();
    let activation = Machine::new(1).install(&app, &used);
    let worn = app.issue();
    for _ in 0..5 {
        Machine::new(2).install(&app, &worn).release(&app);
    }
    let other = app.browser("other").issue().data("install_code");
    let expired = app.issue();
    app.clock.advance(200);
    let fresh = app.issue();
    let cases = [
        ("IPT-SD-AAAAAA-BBBBBB-CCCCCC", 3, "code was not found"),
        (&*used, 3, "already been used"),
        (&*worn, 3, "too many times"),
        (&*other, 3, "another product"),
        ("IPT-SD-1", 3, "the form IPT-SD-"),
        ("a \"code\"", 3, "the form IPT-SD-"),
    ];
    for (code, status, words) in cases {
        let host = Host::new();
        host.install(&app.url, code).with(status, &[words]);
        assert!(!host.has("var/lib/iptunnel/slowdns.state"), "{words}");
        assert!(!host.has("etc/iptunnel") && !host.has("usr/local/sbin/iptunnel-agent"), "{words}");
    }
    activation.confirm(&app);
    app.clock.advance(100);
    Host::new().install(&app.url, &expired).with(3, &["expired", "get a new one at"]);
    let host = Host::new();
    let wrong =
        Ended::of(&host.with_code(&app.url, &fresh).args(["--ip", "1.2.3.4.5"]).output().unwrap());
    wrong.with(2, &["1.2.3.4.5", "--ip"]);
    assert!(is_good(&app, &fresh));
}

#[test]
fn a_limit_says_when_to_come_back() {
    let app = server_with(|c| c.push(("limits.activate_per_ip_day", "0".into())));
    let code = app.issue();
    let host = Host::new();
    host.install(&app.url, &code).with(5, &["limit", "Come back in", "minutes, at 20"]);
    assert!(is_good(&app, &code), "nothing was consumed");
    assert!(!host.has("var/lib/iptunnel/slowdns.state"));
}

#[test]
fn a_dry_run_changes_nothing_and_says_what_would_be_done() {
    let app = server();
    let code = app.issue();
    let host = Host::new();
    let dry =
        |code: &str| Ended::of(&host.with_code(&app.url, code).arg("--dry-run").output().unwrap());
    dry(&code).with(0, &["The code is good", "nothing was changed", "ns1.example.com"]);
    dry("IPT-SD-AAAAAA-BBBBBB-CCCCCC").with(3, &["was not found"]);
    assert!(!host.root().exists());
    assert!(is_good(&app, &code));
    host.install(&app.url, &code).with(0, &[]);
    let before = host.file("var/lib/iptunnel/slowdns.state");
    dry(&app.issue()).with(0, &["The code is good"]);
    assert_eq!(host.file("var/lib/iptunnel/slowdns.state"), before);
}

#[test]
fn without_a_terminal_it_says_what_is_missing() {
    let app = server();
    let code = app.issue();
    let host = Host::new();
    let bare = |arguments: &[&str]| {
        let mut command = host.run_file(Path::new(SCRIPT));
        command
            .args(["--root"])
            .arg(host.root())
            .args(arguments)
            .env("SLOWDNS_INSTALL_CODE", &code);
        Ended::of(&command.output().unwrap())
    };
    bare(&["--product", "slowdns"]).with(2, &["--server"]);
    bare(&["--server", &app.url]).with(2, &["--product"]);
    bare(&["--frobnicate"]).with(2, &["no option --frobnicate"]);
    bare(&["--ip"]).with(2, &["--ip needs a value"]);
    bare(&["--help"]).with(0, &["Exit status", "--dry-run"]);
    let here = ["--server", &app.url, "--product", "slowdns", "--ip", "127.0.0.1", "--hostname"];
    bare(&[&here[..], &["ns1"]].concat()).with(2, &["full host name"]);
    bare(&[&here[..], &["ns1.example.com"]].concat()).with(2, &["--yes"]);
    assert!(is_good(&app, &code));
    bare(&[&here[..], &["ns1.example.com", "--yes"]].concat()).with(0, &[]);
}

#[test]
fn a_server_that_cannot_be_reached_costs_nothing_and_is_explained() {
    let url = format!("http://{}", free_address());
    for client in ["curl", "wget"] {
        let host = Host::with_client(SHELLS[0], client);
        let ended = host.install(&url, "IPT-SD-AAAAAA-BBBBBB-CCCCCC");
        ended.with(4, &["no connection", "Try 2 of 2", "No code was used"]);
        let ended = host
            .install(&format!("http://{}.example", "a".repeat(70)), "IPT-SD-AAAAAA-BBBBBB-CCCCCC");
        ended.with(4, &["aaa.example cannot be resolved"]);
    }
    let none = Host::with_client(SHELLS[0], "true");
    none.install(&url, "IPT-SD-AAAAAA-BBBBBB-CCCCCC").with(8, &["curl or GNU wget", "apt-get"]);
    let busybox = Host::with_client(SHELLS[2], "true");
    symlink(find("busybox").unwrap(), busybox.folder.path().join("tools/wget")).unwrap();
    busybox.install(&url, "IPT-SD-AAAAAA-BBBBBB-CCCCCC").with(8, &["wget of busybox", "apk add"]);
}

#[test]
fn a_certificate_that_is_not_trusted_is_explained_and_not_tried_again() {
    let folder = TempDir::new().unwrap();
    let openssl = |arguments: &[&str]| {
        let mut command = Command::new("openssl");
        command.args(arguments).current_dir(folder.path()).stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    let named = ["-nodes", "-keyout", "key", "-out", "certificate", "-subj", "/CN=localhost"];
    let mut command = openssl(&["req", "-x509"]);
    assert!(command.args(curve).args(named).output().unwrap().status.success());
    let mut server =
        openssl(&["s_server", "-accept", "127.0.0.1:0", "-key", "key", "-cert", "certificate"])
            .spawn()
            .unwrap();
    // It says `ACCEPT 127.0.0.1:PORT`.
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines().map(Result::unwrap);
    let port = lines.find_map(|line| Some(line.strip_prefix("ACCEPT 127.0.0.1:")?.to_owned()));
    let url = format!("https://localhost:{}", port.unwrap());
    for (shell, client) in [(SHELLS[0], "curl"), (SHELLS[2], "wget")] {
        let host = Host::with_client(shell, client);
        let ended = host.install(&url, "IPT-SD-AAAAAA-BBBBBB-CCCCCC");
        ended.with(4, &["certificate is not trusted", "clock says 20", "ca-certificates"]);
        assert!(!ended.said.contains("Try 2"), "{}", ended.said);
    }
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn a_wrong_clock_is_noticed() {
    let app = server();
    for (shell, date) in [(SHELLS[0], "/bin/date"), (SHELLS[2], "busybox date")] {
        let host = Host::with_client(shell, "curl");
        let behind =
            format!("[ \"$*\" = +%s ] || exec {date} \"$@\"\necho $(($({date} +%s) - 7000))");
        host.replace("date", &behind);
        let ended = host.install(&app.url, &app.issue());
        ended.with(0, &["seconds off", "Done"]);
        // The two clocks are not read at the same moment.
        let off = ended.said.split("clock is ").nth(1).and_then(|rest| rest.split(' ').next());
        let off: u64 = off.unwrap().parse().unwrap();
        assert!((6_900..=7_100).contains(&off), "{}", ended.said);
    }
}

#[test]
fn a_full_disk_is_explained_and_costs_no_code() {
    let payloads = TempDir::new().unwrap();
    // What is written there meets a disk without room.
    let full = |file: &str| format!("ln -s /dev/full \"$IPTUNNEL_ROOT/{file}.new\"");
    let app = server_with_payload(&payloads, &full("var/lib/iptunnel/slowdns.state"));
    let host = Host::new();
    let code = app.issue();
    let ended = host.install(&app.url, &code);
    ended.with(8, &["slowdns.state cannot be written", "disk full", "given back"]);
    assert!(is_good(&app, &code));
    // After the code is spent, the installation is to be finished.
    let agent = "usr/local/sbin/iptunnel-agent";
    let script = format!(
        "mkdir -p \"$IPTUNNEL_ROOT/usr/local/sbin\"\n{}",
        full("usr/local/sbin/iptunnel-agent")
    );
    set_payload(&payloads, &script);
    let ended = host.install(&app.url, &code);
    ended.with(9, &["iptunnel-agent cannot be written", "disk full", "code is spent"]);
    assert!(!host.has(agent));
    host.install(&app.url, &code).with(0, &["Done"]);
    // Too little room is noticed before anything is asked.
    let host = Host::new();
    host.replace("df", "printf 'Filesystem\\n/dev/sda1 100 90 10 90%% /\\n'");
    let ended = host.install(&app.url, &code);
    ended.with(8, &["has 10 KiB left", "make room"]);
    assert!(!host.has("var"), "{}", ended.said);
}

#[test]
fn installing_again_replaces_the_agent_and_keeps_the_identity_without_a_code() {
    let app = server();
    let host = Host::new();
    let code = app.issue();
    host.install(&app.url, &code).with(0, &[]);
    let kept = |host: &Host| (host.server_id(), host.file("etc/iptunnel/agent.token"));
    let before = kept(&host);
    fs::write(host.root().join("usr/local/sbin/iptunnel-agent"), "an older one").unwrap();
    let again = Ended::of(&host.installer(&app.url).output().unwrap());
    again.with(0, &["is installed on this machine", "Done"]);
    assert_eq!(kept(&host), before);
    assert_eq!(host.file("usr/local/sbin/iptunnel-agent"), fs::read_to_string(SCRIPT).unwrap());
    host.install(&app.url, &code).with(0, &["is installed on this machine"]);
    // A new code installs anew, as the same server. A bad one changes nothing.
    host.install(&app.url, "IPT-SD-AAAAAA-BBBBBB-CCCCCC").with(3, &[]);
    assert_eq!(host.agent(&["run", "--now"]).status, 0);
    assert_eq!(host.agent_state(), "ok");
    app.clock.advance(1);
    host.install(&app.url, &app.issue()).with(0, &["no setup script"]);
    assert_eq!(kept(&host), before);
    assert_eq!(listed(&app).len(), 1);
}

#[test]
fn the_agent_checks_in_when_it_is_time_and_backs_off_when_nobody_answers() {
    let app = server_with(|c| c.push(("servers.next_checkin_seconds", "3600".into())));
    let host = Host::new();
    host.install(&app.url, &app.issue()).with(0, &[]);
    let number = |key: &str| -> i64 {
        host.value("var/lib/iptunnel-agent/status", key).parse().unwrap_or_else(|_| panic!("{key}"))
    };
    let pause = number("NEXT") - number("LAST_TRY");
    assert!((3240..=3600).contains(&pause), "{pause} s, which is not 3600 less up to a tenth");
    let first = host.file("var/lib/iptunnel-agent/status");
    assert_eq!(host.agent(&["run"]).said, "", "it is not yet time");
    assert_eq!(host.file("var/lib/iptunnel-agent/status"), first);
    host.agent(&["status"]).with(0, &["Agent: ok", "Last check-in: 20", "Next try: 20"]);

    // Nothing listens there. The port of a server that has ended may be another test's by now.
    let config = host.file("etc/iptunnel/agent.conf").replace(&app.url, "http://127.0.0.1:1");
    fs::write(host.root().join("etc/iptunnel/agent.conf"), config).unwrap();
    for (failures, longest) in [(1, 60), (2, 120), (3, 240)] {
        assert_eq!(host.agent(&["run", "--now"]).status, 0);
        assert_eq!((host.agent_state(), number("FAILURES")), ("failing".into(), failures));
        let pause = number("NEXT") - number("LAST_TRY");
        assert!(
            (longest * 9 / 10..=longest).contains(&pause),
            "{pause} s after {failures} failures"
        );
    }
    host.agent(&["status"]).with(0, &["Agent: failing", "no connection", "Failures since: 3"]);
    // A clock that is set back does not silence it.
    let later = host.file("var/lib/iptunnel-agent/status").replace("LAST_TRY=1", "LAST_TRY=9");
    fs::write(host.root().join("var/lib/iptunnel-agent/status"), later).unwrap();
    host.agent(&["run"]);
    assert_eq!(number("FAILURES"), 4);
}

#[test]
fn a_revoked_machine_stops_at_its_next_check_in_and_runs_its_hook_once() {
    let app = server();
    for status in [403, 200] {
        app.reload_now(|config| config.servers.revoked_checkin_status = status);
        let host = Host::new();
        host.install(&app.url, &app.issue()).with(0, &[]);
        let hook = host.root().join("etc/iptunnel/on-revoked");
        fs::write(&hook, "#!/bin/sh\necho stopped >> \"$IPTUNNEL_ROOT/hook\"\n").unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        app.post_as(&app.master(), "/revoke", &json!({"server_id": host.server_id()}));
        app.settle();
        let told = host.agent(&["run", "--now"]);
        told.with(0, &["has revoked this machine", "The agent stops"]);
        for _ in 0..2 {
            assert_eq!(host.agent(&["run", "--now"]).said, "");
        }
        assert_eq!(host.agent(&["loop"]).status, 0, "the loop ends");
        assert_eq!(host.file("hook"), "stopped\n");
        host.agent(&["status"]).with(0, &["Agent: revoked", "restore"]);
        // Restored, and installed again: it checks in under its old id.
        let path = format!("/api/v2/servers/{}/restore", host.server_id());
        assert_eq!(app.post_as(&app.master(), &path, &json!({})).status, 200);
        app.settle();
        Ended::of(&host.installer(&app.url).output().unwrap()).with(0, &["Check-in: ok"]);
    }
}

#[test]
fn a_machine_that_the_server_does_not_know_tries_once_a_day() {
    let app = server();
    let host = Host::new();
    host.install(&app.url, &app.issue()).with(0, &[]);
    fs::write(host.root().join("etc/iptunnel/agent.token"), format!("ipa_{}\n", "0".repeat(48)))
        .unwrap();
    host.agent(&["run", "--now"]).with(0, &["Check-in: refused"]);
    let number =
        |key: &str| host.value("var/lib/iptunnel-agent/status", key).parse::<i64>().unwrap();
    assert!(number("NEXT") - number("LAST_TRY") >= 86400 * 9 / 10);
}

#[test]
fn uninstalling_removes_everything_and_says_what_it_leaves() {
    let app = server();
    let host = Host::new();
    host.install(&app.url, &app.issue()).with(0, &[]);
    let id = host.server_id();
    let mut command = host.installer(&app.url);
    let ended = Ended::of(&command.arg("--uninstall").output().unwrap());
    ended.with(0, &["Uninstalled", "still lists", &id]);
    for name in [
        "etc/iptunnel/agent.conf",
        "var/lib/iptunnel",
        "var/lib/iptunnel-agent",
        "usr/local/sbin/iptunnel-agent",
    ] {
        assert!(!host.has(name), "{name} stays");
    }
    assert!(!host.has("etc/systemd/system/iptunnel-agent.service"));
    let again = Ended::of(&host.installer(&app.url).arg("--uninstall").output().unwrap());
    again.with(0, &["Nothing is installed"]);
    // It comes again, not from its own address as the server sees it. Its token stayed, so it is the same.
    app.clock.advance(1);
    host.install(&app.url, &app.issue()).with(0, &[&id]);
    // The agent does the same, without the installer at hand.
    host.agent(&["uninstall"]).with(0, &["Uninstalled", "agent.token stays"]);
    assert!(!host.has("var/lib/iptunnel") && !host.has("etc/iptunnel/agent.conf"));
    // Without its token it is another machine at the address of a server.
    fs::remove_file(host.root().join("etc/iptunnel/agent.token")).unwrap();
    app.clock.advance(1);
    let code = app.issue();
    let ended = host.install(&app.url, &code);
    ended.with(9, &["belongs to another", "Ask the operator to delete", "code is spent"]);
    let delete = app.client.delete(format!("{}/api/v2/servers/{id}", app.url));
    assert_eq!(send(delete.bearer_auth(app.master())).status, 200);
    app.settle();
    host.install(&app.url, &code).with(0, &["Done"]);
}

#[test]
fn the_environment_neither_learns_a_secret_nor_says_what_is_removed() {
    let folder = TempDir::new().unwrap();
    let app = server_with_payload(&folder, "env > \"$IPTUNNEL_ROOT/env\"");
    let host = Host::new();
    let code = app.issue();
    let mut command = host.with_code(&app.url, &code);
    // Names that the script uses itself: a shell hands on whatever was in its environment.
    for name in ["CODE", "TOKEN", "PRECHECK_TOKEN", "OLD_CODE", "json", "token", "MESSAGE"] {
        command.env(name, "x");
    }
    Ended::of(&command.output().unwrap()).with(0, &["Done"]);
    let environment = host.file("env");
    assert!(environment.contains("IPTUNNEL_PRODUCT=slowdns"));
    assert!(!environment.contains(&code) && !environment.contains("eyJ"), "{environment}");
    // systemd gives every service with a state folder this variable.
    let others = host.folder.path().join("others");
    fs::create_dir(&others).unwrap();
    let mut agent = host.run_file(&host.root().join("usr/local/sbin/iptunnel-agent"));
    agent.env("STATE_DIRECTORY", &others).arg("--root").arg(host.root()).arg("uninstall");
    Ended::of(&agent.output().unwrap()).with(0, &["Uninstalled."]);
    assert!(others.exists() && !host.has("var/lib/iptunnel-agent"));
}

#[test]
fn values_that_cannot_be_sent_are_refused_at_once() {
    let app = server();
    for (option, value) in
        [("--ip", "1.2.3.4\"}"), ("--ip", "1.2.3.4\\"), ("--tries", "0"), ("--timeout", "5s")]
    {
        let host = Host::new();
        let code = app.issue();
        let ended =
            Ended::of(&host.with_code(&app.url, &code).args([option, value]).output().unwrap());
        ended.with(2, &[]);
        assert!(is_good(&app, &code), "{option} {value}");
    }
}

#[test]
fn shellcheck_finds_nothing() {
    let mut scripts = vec![PathBuf::from(SCRIPT)];
    let examples = Path::new(SCRIPT).with_file_name("examples");
    scripts.extend(fs::read_dir(examples).unwrap().map(|entry| entry.unwrap().path()));
    let output = Command::new("shellcheck").args(&scripts).output().unwrap();
    assert!(output.status.success(), "{}", Ended::of(&output).said);
}

#[test]
fn the_script_can_be_read_before_it_is_run() {
    let script = fs::read_to_string(SCRIPT).unwrap();
    assert!(script.lines().count() < 900);
    let long: Vec<_> = script.lines().filter(|line| line.len() > 110).collect();
    assert!(long.is_empty(), "{long:#?}");
}

/// Runs a function of the script on this input.
fn call(function: &str, input: &str) -> Option<String> {
    let script = fs::read_to_string(SCRIPT).unwrap();
    let functions = script.strip_suffix("{ main \"$@\"; exit; }\n").unwrap();
    let folder = TempDir::new().unwrap();
    let (script, file) = (folder.path().join("script"), folder.path().join("input"));
    fs::write(&script, format!("{functions}{function}\n")).unwrap();
    fs::write(&file, input).unwrap();
    let mut command = Command::new("dash");
    let output = command.arg(script).stdin(fs::File::open(file).unwrap()).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

/// What the script understands of an answer with this body, by this awk. `None`: it is not the server's.
fn understood(awk: &str, body: &str) -> Option<String> {
    call(
        &format!(
            "awk() {{ {awk} \"$@\"; }}
             WORK=$(mktemp -d)
             printf 'HTTP/1.1 503 Wait\\r\\n\\r\\nHTTP/1.1 200 OK\\r\\nRetry-After: 9\\r\\n' > \"$WORK/head\"
             cat > \"$WORK/body\"
             WHY=''
             understand_answer json
             verdict=$?
             grep -v '^header\\|^kind' \"$WORK/fields\"
             [ \"$HTTP $RETRY_AFTER\" = '200 9' ] || verdict=3
             rm -r \"$WORK\"
             exit $verdict"
        ),
        body,
    )
}

/// The kinds of awk that this machine has.
fn awks() -> Vec<&'static str> {
    let all = [
        ("mawk", "mawk"),
        ("gawk", "gawk"),
        ("original-awk", "original-awk"),
        ("busybox", "busybox awk"),
    ];
    let found = all.iter().filter(|(tool, _)| find(tool).is_some());
    let found: Vec<_> = found.map(|(_, call)| *call).collect();
    assert!(found.contains(&"busybox awk"));
    found
}

#[test]
fn it_reads_json_without_a_parser_at_hand() {
    let cases = [
        (r#"{"data":{"a":"b"},"meta":{"message":"OK"}}"#, "a=b\nmessage=OK\n"),
        (
            r#"{"data":{"n":15,"t":true,"z":null,"o":{"i":"x=1"},"l":["x"]},"meta":{"message":""}}"#,
            "n=15\nt=true\nz=null\ni=x=1\nmessage=\n",
        ),
        (
            r#"{"data":{},"meta":{"message":"\"a\": \/\\, \"b\":\"c\""}}"#,
            "message=\"a\": / , \"b\":\"c\"\n",
        ),
        (r#"{"data":{},"meta":{"message":"1\n\t\u0000\u001b2\r"}}"#, "message=1    2 \n"),
        (
            "{\"data\":{},\"meta\":{\"message\":\"\u{e9}\u{1f600} }{\"}}",
            "message=\u{e9}\u{1f600} }{\n",
        ),
    ];
    let broken = [
        "",
        "[]",
        "{}",
        "<html></html>",
        r#"{"data":{}}"#,
        r#"{"data":{},"meta":{"message":"OK"}} x"#,
        r#"{"error":{"code":"x","message":"y"}}"#,
        "{\"data\":{},\"meta\":{\"message\":\"\u{1b}\"}}",
    ];
    let answer =
        r#"{"data":{"id":"act_1","o":{"x":{"y":null}}},"meta":{"message":"It is \"}}\"."}}"#;
    for awk in awks() {
        for (json, lines) in &cases {
            assert_eq!(understood(awk, json).as_deref(), Some(*lines), "{awk}: {json}");
        }
        for json in broken {
            assert_eq!(understood(awk, json), None, "{awk}: {json}");
        }
        for cut in 1..answer.len() {
            assert_eq!(understood(awk, &answer[..cut]), None, "{awk}: cut at {cut}");
        }
        assert!(understood(awk, answer).unwrap().contains("id=act_1\n"), "{awk}");
    }
}

/// What a [`front`] does with the first request for its path.
#[derive(Clone)]
enum Fault {
    /// It reads the answer and never passes it on.
    HoldAnswer,
    /// It replaces this text in the answer.
    Replace(&'static str, &'static str),
}

/// Stands in front of the server, and fails at requests for `path`: at the first one that it holds, at each
/// one that it changes. Returns its address, and what hears of it.
fn front(app: &TestApp, path: &str, fault: Fault) -> (String, Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (server, path) = (app.url.trim_start_matches("http://").to_owned(), path.to_owned());
    let (struck, hear) = channel();
    let struck = Arc::new(std::sync::Mutex::new(Some(struck)));
    std::thread::spawn(move || {
        for caller in listener.incoming() {
            let (Ok(caller), server, path) = (caller, server.clone(), path.clone()) else { return };
            let (fault, struck) = (fault.clone(), struck.clone());
            std::thread::spawn(move || pass(caller, &server, &path, &fault, &struck));
        }
    });
    (url, hear)
}

/// Passes one connection on, or fails at it.
fn pass(
    mut caller: TcpStream,
    server: &str,
    path: &str,
    fault: &Fault,
    struck: &std::sync::Mutex<Option<Sender<()>>>,
) -> Option<()> {
    let mut chunk = [0; 65536];
    let length = caller.read(&mut chunk).ok()?;
    let head = String::from_utf8_lossy(&chunk[..length]).into_owned();
    let is_meant = head.lines().next()?.contains(path);
    let mut server = TcpStream::connect(server).ok()?;
    server.write_all(&chunk[..length]).ok()?;
    let (mut from, mut to) = (caller.try_clone().ok()?, server.try_clone().ok()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let mut holds = false;
    loop {
        let length = server.read(&mut chunk).ok().filter(|length| *length > 0)?;
        match fault {
            Fault::Replace(old, new) if is_meant => {
                let text = String::from_utf8_lossy(&chunk[..length]).replace(old, new);
                caller.write_all(text.as_bytes()).ok()?;
            }
            Fault::HoldAnswer if is_meant && !holds => {
                if let Some(struck) = struck.lock().unwrap().take() {
                    holds = true;
                    struck.send(()).ok()?;
                } else {
                    caller.write_all(&chunk[..length]).ok()?;
                }
            }
            _ if holds => {}
            _ => caller.write_all(&chunk[..length]).ok()?,
        }
    }
}

/// A setup script that says that it has begun, and ends when it may.
const WAITING: &str = "[ \"$1\" = install ] || exit 0
: > \"$IPTUNNEL_ROOT/begun\"
while [ ! -e \"$IPTUNNEL_ROOT/may-end\" ]; do sleep 0.1; done
echo \"$IPTUNNEL_ROOT\" > \"$IPTUNNEL_ROOT/product\"";

fn begin(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// How a run ended, with all that it started: each process holds the outputs open.
fn end_of(child: Child) -> Ended {
    let (sender, receiver) = channel();
    std::thread::spawn(move || sender.send(child.wait_with_output().unwrap()));
    let output = receiver.recv_timeout(PATIENCE).expect("the run, or what it started, goes on");
    Ended::of(&output)
}

fn send_signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

#[test]
fn an_installer_that_is_killed_at_any_step_goes_on_when_it_is_run_again() {
    let payloads = TempDir::new().unwrap();
    let app = server_with_payload(&payloads, "echo 1 >> \"$IPTUNNEL_ROOT/product\"");
    let steps = [
        "install/precheck",
        "install/activate",
        "install/payload",
        "install/confirm",
        "servers/register",
        "/check-in",
    ];
    std::thread::scope(|scope| {
        for step in steps {
            let app = &app;
            scope.spawn(move || {
                let host = Host::new();
                let code = app.issue();
                let (url, held) = front(app, step, Fault::HoldAnswer);
                let mut child = begin(host.with_code(&url, &code));
                held.recv_timeout(PATIENCE).unwrap();
                // As a power cut does: with all that it has started.
                let group = -i32::try_from(child.id()).unwrap();
                kill(Pid::from_raw(group), Signal::SIGKILL).unwrap();
                child.wait().unwrap();
                let again = Ended::of(&host.with_code(&url, &code).output().unwrap());
                again.with(0, &["Done: slowdns is installed"]);
                assert_eq!(host.agent_state(), "ok", "{step}");
                assert!(host.has("product"), "{step}");
                assert!(!is_good(app, &code), "{step}");
                assert!(!host.has("var/lib/iptunnel/work"), "{step}");
            });
        }
    });
    assert_eq!(listed(&app).len(), steps.len(), "one server for each machine");
}

#[test]
fn a_signal_gives_the_code_back() {
    let payloads = TempDir::new().unwrap();
    let app = server_with_payload(&payloads, WAITING);
    std::thread::scope(|scope| {
        for (signal, shell) in
            [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().zip(SHELLS)
        {
            let app = &app;
            scope.spawn(move || {
                let host = Host::with_client(shell, "curl");
                let code = app.issue();
                let child = begin(host.with_code(&app.url, &code));
                wait_until("the setup script has begun", || host.has("begun"));
                send_signal(&child, signal);
                let ended = end_of(child);
                ended.with(7, &["interrupted", "given back"]);
                assert!(is_good(app, &code), "{signal}");
                assert!(!host.has("product"), "the setup script was stopped");
                fs::write(host.root().join("may-end"), "").unwrap();
                host.install(&app.url, &code).with(0, &[]);
            });
        }
    });
}

/// Bash runs this before each command of the script.
const SIGNAL_BEFORE_COMMAND: &str = "set -T
before_command() {
  [ \"$BASHPID:${FUNCNAME[1]}:$BASH_COMMAND\" != \"$$:run_payload:$SIGNAL_BEFORE\" ] || kill -s TERM $$
}
trap before_command DEBUG
";

#[test]
fn a_signal_just_before_or_after_the_setup_script_is_started_gives_the_code_back() {
    let payloads = TempDir::new().unwrap();
    let app = server_with_payload(&payloads, WAITING);
    std::thread::scope(|scope| {
        for command in ["SETTING_UP=yes", "wait \"$!\""] {
            let app = &app;
            scope.spawn(move || {
                let host = Host::with_client(&["bash"], "curl");
                let file = host.folder.path().join("before-command");
                fs::write(&file, SIGNAL_BEFORE_COMMAND).unwrap();
                let code = app.issue();
                let mut installer = host.with_code(&app.url, &code);
                installer.env("BASH_ENV", file).env("SIGNAL_BEFORE", command);
                end_of(begin(installer)).with(7, &["interrupted", "given back"]);
                assert!(is_good(app, &code), "{command}");
                assert!(!host.has("product"), "{command}");
            });
        }
    });
}

#[test]
fn a_signal_while_the_answer_to_activate_is_awaited_gives_the_code_back() {
    let app = server();
    let host = Host::new();
    let code = app.issue();
    let (url, held) = front(&app, "install/activate", Fault::HoldAnswer);
    let mut command = host.with_code(&url, &code);
    command.args(["--timeout", "6"]);
    let child = begin(command);
    held.recv_timeout(PATIENCE).unwrap();
    send_signal(&child, Signal::SIGTERM);
    let ended = end_of(child);
    ended.with(7, &["interrupted", "given back"]);
    assert!(is_good(&app, &code));
}

#[test]
fn a_setup_script_that_fails_gives_the_code_back_and_may_be_mended() {
    let payloads = TempDir::new().unwrap();
    let app = server_with_payload(&payloads, "echo 'no room' >&2; exit 3");
    let host = Host::new();
    let code = app.issue();
    let ended = host.install(&app.url, &code);
    ended.with(6, &["no room", "failed with status 3", "given back"]);
    assert!(is_good(&app, &code));
    assert!(!host.has("var/lib/iptunnel/slowdns.state") && !host.has("etc/iptunnel"));
    let script = "case $1 in install) env > \"$IPTUNNEL_ROOT/product\" ;; *) rm \"$IPTUNNEL_ROOT/product\" ;; esac";
    set_payload(&payloads, script);
    host.install(&app.url, &code).with(0, &[]);
    let env = host.file("product");
    for (name, value) in [("PRODUCT", "slowdns"), ("IP", &host.ip), ("HOSTNAME", "ns1.example.com")]
    {
        assert!(env.contains(&format!("IPTUNNEL_{name}={value}\n")), "{env}");
    }
    assert!(
        env.contains("IPTUNNEL_ACTIVATION=act_") && env.contains("IPTUNNEL_MACHINE_ID=ipm-"),
        "{env}"
    );
    assert!(!env.contains(&code) && !env.contains("eyJ"), "{env}");
    let ended = Ended::of(&host.installer(&app.url).arg("--uninstall").output().unwrap());
    ended.with(0, &["Uninstalling slowdns", "Uninstalled"]);
    assert!(!host.has("product"));
}

#[test]
fn a_setup_script_with_another_checksum_is_not_run() {
    let payloads = TempDir::new().unwrap();
    let app = server_with_payload(&payloads, ": > \"$IPTUNNEL_ROOT/good\"");
    for client in ["curl", "wget"] {
        let host = Host::with_client(SHELLS[0], client);
        let code = app.issue();
        let (url, _heard) = front(&app, "install/payload", Fault::Replace("/good", "/evil"));
        let ended = host.install(&url, &code);
        ended.with(6, &["checksum", "Try 2 of 2", "given back"]);
        assert!(!host.has("good") && !host.has("evil"));
        assert!(is_good(&app, &code));
        host.install(&app.url, &code).with(0, &[]);
        assert!(host.has("good"));
    }
}

#[test]
fn an_installation_that_took_too_long_needs_a_new_code() {
    let payloads = TempDir::new().unwrap();
    let app = server_with_payload(&payloads, WAITING);
    let host = Host::new();
    let code = app.issue();
    let child = begin(host.with_code(&app.url, &code));
    wait_until("the setup script has begun", || host.has("begun"));
    app.clock.advance(601);
    fs::write(host.root().join("may-end"), "").unwrap();
    let ended = end_of(child);
    ended.with(3, &["took longer", "new code"]);
    assert!(!host.has("var/lib/iptunnel/slowdns.state"));
    host.install(&app.url, &app.issue()).with(0, &[]);
}

#[test]
fn secrets_are_on_no_command_line_and_in_no_output() {
    let payloads = TempDir::new().unwrap();
    let app = server_with_payload(&payloads, "echo set up");
    for client in ["curl", "wget"] {
        let host = Host::with_client(SHELLS[0], client);
        let tools = host.folder.path().join("tools");
        let log = host.folder.path().join("log");
        for entry in fs::read_dir(&tools).unwrap() {
            let tool = entry.unwrap().path();
            let real = fs::read_link(&tool).unwrap();
            fs::remove_file(&tool).unwrap();
            let (log, real) = (log.display(), real.display());
            let shim = format!("#!/bin/sh\necho \"$0 $*\" >> {log}\nexec {real} \"$@\"\n");
            fs::write(&tool, shim).unwrap();
            fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let code = app.issue();
        let ended = host.install(&app.url, &code);
        ended.with(0, &["set up"]);
        let token = host.file("etc/iptunnel/agent.token");
        let agent = host.agent(&["run", "--now"]);
        let calls = fs::read_to_string(&log).unwrap();
        assert!(calls.lines().filter(|line| line.contains(client)).count() > 5, "{calls}");
        for secret in [&*code, "eyJ", token.trim(), "Bearer", "ipa_"] {
            for text in [&calls, &ended.said, &agent.said] {
                assert!(!text.contains(secret), "{secret}: {text}");
            }
        }
    }
}

#[test]
fn on_a_terminal_it_asks_for_the_code_and_whether_to_go_on() {
    let app = server();
    let host = Host::new();
    let play = |typed: &str| {
        let root = host.root();
        let run = format!(
            "dash {SCRIPT} --server {} --product slowdns --ip {} --hostname ns1.example.com --root {}",
            app.url,
            host.ip,
            root.display()
        );
        let mut command = Command::new("script");
        command.args(["-qec", &run, "/dev/null"]).stdin(Stdio::piped());
        let mut child = begin(command);
        child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
        end_of(child)
    };
    let code = app.issue();
    play(&format!("{code}\nn\n")).with(7, &["Install code (from", "Go on?", "Nothing was changed"]);
    assert!(is_good(&app, &code));
    let typed = format!("IPT-SD-AAAAAA-BBBBBB-CCCCCC\ny\n{}\n", code.to_lowercase());
    play(&typed).with(0, &["refuses this code", "Done"]);
    assert!(!is_good(&app, &code));
}
