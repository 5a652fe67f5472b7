//! Installations through a proxy that spoils requests and answers, with the real installer. However one of
//! them goes wrong, the machine ends installed, or the installer says truly that it is not, and the same
//! command installs it later. No code is burnt, and no machine becomes two servers.

use crate::losing_proxy::{Fault, LosingProxy, Plan, Restart, Step};
use crate::process::{Api, Chance, Process, usual_flags};
use serde_json::{Value, json};
use std::fmt::Debug;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What is installed: it notes that it ran, and fails where a file asks for it.
pub const PAYLOAD: &str = r#"#!/bin/sh
mkdir -p "$IPTUNNEL_ROOT/srv"
echo "$1 $IPTUNNEL_ACTIVATION $IPTUNNEL_IP" >> "$IPTUNNEL_ROOT/srv/runs"
[ ! -e "$IPTUNNEL_ROOT/fail" ]
"#;

/// The seconds that an installer waits for an answer. Late answers come after them.
const TIMEOUT: u32 = 2;
/// How often an installer sends a request where the fault goes away. The pauses are 1, 2, 4, 8, 16 seconds
/// and so on: more than a busy machine needs to start a server.
const PATIENT: u32 = 8;
/// How often an installer sends a request where the fault lasts.
const HASTY: u32 = 2;
/// The longest that an installer may run.
const LONGEST: Duration = Duration::from_secs(150);
/// The number of installations at the same time. They mostly wait.
const AT_ONCE: usize = 4;

/// A server that is killed and started again where a fault says so.
pub struct Stage(Arc<Mutex<Process>>);

fn address(server: &Process) -> SocketAddr {
    server.api.url.strip_prefix("http://").unwrap().parse().unwrap()
}

impl Stage {
    pub fn start() -> Self {
        let folder = Arc::new(TempDir::new().unwrap());
        let payloads = folder.path().join("payloads");
        fs::create_dir(&payloads).unwrap();
        fs::write(payloads.join("slowdns.sh"), PAYLOAD).unwrap();
        let mut arguments = usual_flags();
        let payloads = format!("installer.payloads={}", payloads.display());
        // Each client has the address that the proxy says.
        for set in [
            "server.trusted_proxies=127.0.0.1",
            "codes.ttl_seconds=3600",
            "codes.max_activations_per_code=255",
            &payloads,
        ] {
            arguments.extend(["--set".to_owned(), set.to_owned()]);
        }
        Self(Arc::new(Mutex::new(Process::start_in(folder, arguments))))
    }

    pub fn proxy(&self, client: IpAddr, plans: &[Plan]) -> LosingProxy {
        let server = Arc::clone(&self.0);
        let restart: Restart = Arc::new(move || {
            let mut server = server.lock().unwrap();
            server.kill();
            *server = server.again();
            address(&server)
        });
        LosingProxy::start(address(&self.0.lock().unwrap()), client, plans, restart)
    }

    pub fn api(&self) -> Api {
        self.0.lock().unwrap().api.clone()
    }

    /// What the server knows of a code.
    fn story(&self, code: &str) -> Value {
        let api = self.api();
        let request =
            api.client.post(format!("{}/admin/codes", api.admin)).bearer_auth(&api.master);
        let answer = crate::harness::send(request.body(json!({"find": code}).to_string()));
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["data"].clone()
    }

    /// The servers with an address, of those that were registered last. Each worker has a server of its own.
    pub fn servers_at(&self, ip: IpAddr) -> Vec<Value> {
        let api = self.api();
        let url = format!("{}/status?limit=10", api.url);
        let request = api.client.get(url).bearer_auth(&api.master);
        let listed = crate::harness::send(request).json();
        let all = listed["servers"].as_array().unwrap();
        all.iter().filter(|server| server["ip"] == ip.to_string()).cloned().collect()
    }
}

/// What downloads: the script, and then everything that the script asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Curl,
    Wget,
}

/// Folders with links to all programs of this machine but for the other tool. In two of them pauses take no
/// time.
struct Tools([TempDir; 4]);

impl Tools {
    fn make() -> Self {
        let folders = [("wget", false), ("wget", true), ("curl", false), ("curl", true)];
        Self(folders.map(|(left_out, hurries)| {
            let folder = TempDir::new().unwrap();
            if hurries {
                let sleep = folder.path().join("sleep");
                fs::write(&sleep, "#!/bin/sh\nexec /bin/sleep 0.01\n").unwrap();
                fs::set_permissions(&sleep, fs::Permissions::from_mode(0o755)).unwrap();
            }
            for from in ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"] {
                for program in fs::read_dir(from).into_iter().flatten() {
                    let program = program.unwrap();
                    if program.file_name() != left_out {
                        // The first of two with the same name counts, as in a search path.
                        let _ = symlink(program.path(), folder.path().join(program.file_name()));
                    }
                }
            }
            folder
        }))
    }

    fn path(&self, tool: Tool, hurries: bool) -> &Path {
        self.0[2 * usize::from(tool == Tool::Wget) + usize::from(hurries)].path()
    }
}

const SHELLS: [&str; 3] = ["dash", "bash --posix", "busybox sh"];

/// A machine on which somebody installs: a folder that stands for its root.
struct Machine<'a> {
    root: TempDir,
    ip: IpAddr,
    hostname: String,
    shell: &'static str,
    tool: Tool,
    /// The folder of its programs.
    programs: &'a Path,
}

/// How an installer ended.
#[derive(Debug)]
struct Ending {
    status: i32,
    said: String,
}

impl<'a> Machine<'a> {
    /// A machine with an address of its own, and one of the shells and tools by turns.
    fn new(tools: &'a Tools, hurries: bool) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        let tool = [Tool::Curl, Tool::Wget][(number / 3 % 2) as usize];
        Self {
            root: TempDir::new().unwrap(),
            ip: Ipv4Addr::from(0x0201_0000 + number).into(),
            hostname: format!("ns{number}.example.com"),
            shell: SHELLS[(number % 3) as usize],
            tool,
            programs: tools.path(tool, hurries),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Lets the payload fail, or not any more.
    fn payload_fails(&self, fails: bool) {
        let file = self.file("fail");
        if fails {
            fs::write(file, "").unwrap();
        } else {
            let _ = fs::remove_file(file);
        }
    }

    /// Checks, on the machine, that the payload was installed last by the activation that was confirmed,
    /// and that the agent checks in.
    fn assert_complete(&self, story: &Value, note: &str) {
        let events = story["events"].as_array().unwrap();
        let confirmed = events.iter().find(|event| event["action"] == "confirmed").unwrap();
        let activation = confirmed["activation"].as_str().unwrap();
        let runs = fs::read_to_string(self.file("srv/runs")).unwrap();
        let last = runs.lines().last().unwrap();
        assert!(last.starts_with(&format!("install {activation}")), "{runs} {confirmed} {note}");
        assert!(last.ends_with(&format!(" {}", self.ip)), "{runs} {note}");
        let mut agent = Command::new(self.file("usr/local/sbin/iptunnel-agent"));
        agent.arg("--root").arg(self.root.path()).args(["run", "--now"]);
        self.with_tool(&mut agent);
        let ran = ended(agent);
        let status = fs::read_to_string(self.file("var/lib/iptunnel-agent/status")).unwrap();
        assert!(ran.status == 0 && status.contains("STATE=ok\n"), "{ran:?} {status} {note}");
    }

    /// Lets a command use this machine's tool and nothing else of the environment.
    fn with_tool(&self, command: &mut Command) {
        command.env_clear().env("PATH", self.programs);
    }

    /// Runs the command that the page shows.
    fn install(&self, proxy: &LosingProxy, code: &str, tries: u32) -> Ending {
        let fetch = match self.tool {
            Tool::Curl => format!("curl -fsSL --max-time {TIMEOUT}"),
            Tool::Wget => format!("wget -q -O - --timeout={TIMEOUT} --tries=1"),
        };
        let url = proxy.url();
        let line = format!(
            "set -o pipefail; {fetch} {url}/slowdns/install.sh | {} -s -- \"$@\"",
            self.shell
        );
        let mut command = Command::new("bash");
        command.args(["-c", &line, "-", "--yes", "--server", &url, "--hostname", &self.hostname]);
        command.arg("--root").arg(self.root.path());
        command.args(["--timeout", &TIMEOUT.to_string(), "--tries", &tries.to_string()]);
        command.arg(code);
        self.with_tool(&mut command);
        ended(command)
    }
}

/// Runs a command to its end, with its output in a file: what it leaves running may keep that open.
fn ended(mut command: Command) -> Ending {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("output");
    let output = File::create(&path).unwrap();
    command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
    let mut child = command.spawn().unwrap();
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > LONGEST {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it does not end: {}", fs::read_to_string(path).unwrap());
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let said = String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    Ending { status: status.code().unwrap_or(-1), said }
}

/// The actions in the story of a code.
fn actions(story: &Value) -> Vec<&str> {
    let events = story["events"].as_array().unwrap_or_else(|| panic!("no story: {story}"));
    events.iter().map(|event| event["action"].as_str().unwrap()).collect()
}

fn count(story: &Value, action: &str) -> usize {
    actions(story).iter().filter(|name| **name == action).count()
}

/// Checks, from the server's side, that the code was used for one installation by the machine, and that
/// the machine is one server.
pub fn assert_installed(stage: &Stage, code: &str, ip: IpAddr, note: &str) {
    let story = stage.story(code);
    let note = format!("{note}\n{story:#}");
    assert_eq!(story["state"], "confirmed", "{note}");
    assert_eq!(story["second_machine"], false, "{note}");
    assert_eq!(count(&story, "confirmed"), 1, "{note}");
    assert_eq!(count(&story, "activated"), count(&story, "released") + 1, "{note}");
    let servers = stage.servers_at(ip);
    assert_eq!(servers.len(), 1, "{servers:?} {note}");
    assert_eq!(servers[0]["revoked"], 0, "{servers:?} {note}");
    assert_eq!(count(&story, "server_registered"), 1, "{note}");
    let api = stage.api();
    let other = crate::harness::Machine::new(1).precheck_body(code);
    let told = api.install("precheck", &other).unwrap().told();
    assert_eq!(told, (403, "install_code_used".into()), "{note}");
}

/// Checks, from the server's side, that the code can still be installed with: nobody holds it, or the
/// machine itself does. `confirmed`: the installation may have been confirmed without an answer.
pub fn assert_not_burnt(stage: &Stage, code: &str, ip: IpAddr, confirmed: bool, note: &str) {
    let story = stage.story(code);
    let note = format!("{note}\n{story:#}");
    let state = story["state"].as_str().unwrap();
    assert!(["issued", "open"].contains(&state) || confirmed && state == "confirmed", "{note}");
    assert!(stage.servers_at(ip).len() <= usize::from(confirmed), "{note}");
}

/// Checks what the installer said about the code against what the server holds.
fn assert_words_are_true(ending: &Ending, story: &Value, note: &str) {
    let note = format!("{note}\n{story:#}");
    let (said, state) = (&ending.said, &story["state"]);
    let good = ["good again", "No code was used", "was given back"];
    if good.iter().any(|words| said.contains(words)) || ending.status == 6 {
        assert_eq!(state, "issued", "{note}");
    }
    if ending.status == 9 || said.contains("is spent") {
        assert_eq!(state, "confirmed", "{note}");
    }
    assert_eq!(said.contains("Done: slowdns is installed"), ending.status == 0, "{note}");
}

/// An installation that goes wrong in the ways of `plans`.
#[derive(Debug)]
struct Case {
    plans: Vec<Plan>,
    /// Whether the payload fails the first time, so that the code is released.
    payload_fails: bool,
    /// How often the installer sends a request that gets no answer.
    tries: u32,
    /// The statuses with which it may end.
    statuses: Vec<i32>,
}

impl Case {
    fn new(plan: Plan, tries: u32, statuses: Vec<i32>) -> Self {
        let payload_fails = plan.step == Step::Release;
        let statuses = match plan.step {
            // Nobody repeats the first download: what ends then is the shell, or the tool.
            Step::Script if plan.fault != Fault::Double => (1..128).collect(),
            // A release is tried twice. Without an answer the code stays this machine's own.
            Step::Release => vec![6, 4],
            _ => statuses,
        };
        Self { plans: vec![plan], payload_fails, tries, statuses }
    }

    /// The first try of a step goes wrong.
    fn once(step: Step, fault: Fault) -> Self {
        Self::new(Plan { step, fault, first: 0, tries: 1 }, PATIENT, vec![0])
    }

    /// Every try of a step goes wrong. On a busy machine another step may be given up before.
    fn always(step: Step, fault: Fault) -> Self {
        let statuses = match step {
            // The agent goes on trying by itself.
            Step::CheckIn => vec![0, 4, 9],
            // Where a confirm got no answer, a release may tell that it came through.
            Step::Confirm | Step::Register => vec![4, 9],
            // What arrives does not have its checksum.
            Step::Payload => vec![4, 6],
            _ => vec![4],
        };
        Self::new(Plan { step, fault, first: 0, tries: u32::MAX }, HASTY, statuses)
    }

    /// Several tries go wrong, by chance.
    fn of_seed(seed: u64) -> Self {
        let mut chance = Chance::seeded(seed);
        let mut below = |bound: usize| chance.below(bound as u64) as usize;
        let mut plan = || {
            let step = Step::ALL[below(Step::ALL.len())];
            // The script fetches itself once more, to become the agent.
            let first = u32::from(step == Step::Script) + below(3) as u32;
            let fault = Fault::ALL[below(Fault::ALL.len())];
            Plan { step, fault, first, tries: 1 + below(2) as u32 }
        };
        let plans: Vec<Plan> = (0..4).map(|_| plan()).collect();
        let payload_fails = below(3) == 0;
        Self { plans, payload_fails, tries: HASTY, statuses: vec![0, 4, 6, 9] }
    }
}

/// Installs on a new machine while things go wrong, and again afterwards where that failed.
fn play(stage: &Stage, tools: &Tools, case: &Case) {
    // A server that is killed takes a while to come back.
    let machine = Machine::new(tools, !case.plans.iter().any(|plan| plan.fault.kills()));
    let code = stage.api().issue();
    let proxy = stage.proxy(machine.ip, &case.plans);
    machine.payload_fails(case.payload_fails);
    let mut ending = machine.install(&proxy, &code, case.tries);
    proxy.settle();
    let note = format!("{case:?} {} {:?}\n{}", machine.shell, machine.tool, ending.said);
    let note = format!("status {}: {note}", ending.status);
    assert!(proxy.spoilt() > 0 || case.plans.len() > 1, "nothing went wrong: {note}");
    assert!(case.statuses.contains(&ending.status), "{note}");
    assert_words_are_true(&ending, &stage.story(&code), &note);
    proxy.heal();
    machine.payload_fails(false);
    if ending.status != 0 {
        let confirmed = proxy.has_seen(Step::Confirm);
        assert_not_burnt(stage, &code, machine.ip, confirmed, &note);
        ending = machine.install(&proxy, &code, PATIENT);
        assert_eq!(ending.status, 0, "again: {}\nafter {note}", ending.said);
    }
    let note = format!("{note}\nagain: {}", ending.said);
    assert!(!note.contains(&code), "the code is shown: {note}");
    assert_installed(stage, &code, machine.ip, &note);
    machine.assert_complete(&stage.story(&code), &note);
    proxy.end();
}

/// Plays all cases, some at a time, each worker with a server of its own. Reports all that failed.
pub fn by_workers<C: Debug + Sync>(cases: &[C], play: impl Fn(&Stage, &C) + Sync) {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        let stage = Stage::start();
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
            let played = AssertUnwindSafe(|| play(&stage, case));
            if std::panic::catch_unwind(played).is_err() {
                failed.lock().unwrap().push(format!("{case:?}"));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {} failed: {failed:#?}", failed.len(), cases.len());
}

fn play_all(cases: &[Case]) {
    let tools = Tools::make();
    by_workers(cases, |stage, case| play(stage, &tools, case));
}

#[test]
fn whatever_goes_wrong_once_at_any_step_the_machine_ends_installed() {
    let cases = Step::ALL.map(|step| Fault::ALL.map(|fault| Case::once(step, fault)));
    play_all(cases.as_flattened());
}

#[test]
fn whatever_goes_on_failing_the_same_command_installs_later() {
    let lasting = [
        Fault::LoseRequest,
        Fault::LoseAnswer,
        Fault::BadGatewayAfter,
        Fault::Shorten,
        Fault::Redirect,
    ];
    let cases = Step::ALL.map(|step| lasting.map(|fault| Case::always(step, fault)));
    play_all(cases.as_flattened());
}

/// The seeds of installations that go wrong by chance: some from LOSING_SEED on, or LOSING_SEEDS of them.
pub fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name: &str, usual: u64| {
        std::env::var(name).map_or(usual, |number| number.parse().unwrap())
    };
    let first = number("LOSING_SEED", 1);
    let seeds = first..first + number("LOSING_SEEDS", usual);
    println!("seeds {seeds:?}");
    seeds
}

#[test]
fn whatever_goes_wrong_several_times_the_same_command_installs_later() {
    play_all(&seeds(16).map(Case::of_seed).collect::<Vec<_>>());
}

#[test]
fn a_download_of_the_script_that_was_cut_runs_nothing() {
    let script = include_str!("../../clients/install.sh");
    let last_line = script.trim_end().rfind('\n').unwrap();
    let everywhere = (0..last_line).step_by(script.len() / 40);
    for cut in everywhere.chain(last_line..script.trim_end().len()) {
        let folder = TempDir::new().unwrap();
        let (file, root) = (folder.path().join("cut.sh"), folder.path().join("root"));
        fs::write(&file, &script[..cut]).unwrap();
        let mut command = Command::new("sh");
        command.arg(&file).args([
            "--server",
            "http://127.0.0.1:9",
            "--product",
            "slowdns",
            "--yes",
        ]);
        command.args(["--tries", "1"]).arg("--root").arg(&root).arg("IPT-SD-ABCDEF-GHJKLM-NPQRST");
        let ending = ended(command);
        assert!(!root.exists() && !ending.said.contains("slowdns"), "cut at {cut}: {ending:?}");
    }
}
