//! The real binary, in a folder of its own: started, killed, stopped and restarted.

use crate::harness::{Answer, Machine, try_send, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::blocking::Client;
use serde_json::Value;
use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A command for the program, without environment variables that it would read as settings.
pub fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iptunnel-server"));
    command.env_clear().current_dir(folder).stdin(Stdio::null());
    command
}

/// Runs the program and waits until it exits.
pub fn run(folder: &Path, arguments: &[&str]) -> Output {
    program(folder).args(arguments).output().unwrap()
}

/// Returns what a finished program wrote to standard output and standard error.
pub fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Flags that keep all files in the working folder, listen on any free port, and set limits that no
/// test reaches.
pub fn usual_flags() -> Vec<String> {
    let mut set = vec![
        "server.bind=127.0.0.1:0".to_owned(),
        "admin.bind=127.0.0.1:0".into(),
        "server.workers=2".into(),
    ];
    let policies = iptunnel_domain::limit::Policy::ALL;
    set.extend(policies.map(|policy| format!("limits.{}=1000000", policy.name())));
    set.into_iter().flat_map(|pair| ["--set".into(), pair]).collect()
}

/// An HTTP client of a running server. Any reply may be missing.
#[derive(Clone)]
pub struct Api {
    pub url: String,
    pub admin: String,
    pub master: String,
    pub client: Client,
    /// How long another server may take to learn what one server has acknowledged.
    pub patience: Duration,
}

impl Api {
    pub fn get(&self, url: &str) -> Option<Answer> {
        try_send(self.client.get(url))
    }
    pub fn post(&self, path: &str, body: &Value) -> Option<Answer> {
        try_send(self.client.post(format!("{}{path}", self.url)).body(body.to_string()))
    }
    pub fn post_as_master(&self, path: &str, body: &Value) -> Option<Answer> {
        let request = self.client.post(format!("{}{path}", self.url)).bearer_auth(&self.master);
        try_send(request.body(body.to_string()))
    }
    /// Sends one of the installer's four requests.
    pub fn install(&self, step: &str, body: &Value) -> Option<Answer> {
        self.post(&format!("/api/v2/slowdns/install/{step}"), body)
    }
    /// Opens the page as a browser and returns its cookie.
    pub fn cookie(&self) -> Option<String> {
        let answer = try_send(self.client.get(format!("{}/slowdns", self.url)))?;
        answer.header("set-cookie").split(';').next().map(str::to_owned)
    }
    pub fn issue_with(&self, cookie: &str) -> Option<Answer> {
        let request = self.client.post(format!("{}/api/v2/slowdns/code/issue", self.url));
        try_send(request.header("cookie", cookie))
    }
    /// Issues a new code.
    pub fn issue(&self) -> String {
        let answer = self.issue_with(&self.cookie().unwrap()).unwrap();
        assert_eq!(answer.status, 201, "{}", answer.text);
        answer.data("install_code")
    }
    /// Prechecks and activates for a machine; both must succeed.
    pub fn activate(&self, machine: &Machine, code: &str) -> Answer {
        let prechecked = self.install("precheck", &machine.precheck_body(code)).unwrap();
        assert_eq!(prechecked.status, 200, "{}", prechecked.text);
        let body = machine.activate_body(code, &prechecked.data("precheck_token"));
        let activated = self.install("activate", &body).unwrap();
        assert_eq!(activated.status, 200, "{}", activated.text);
        activated
    }
    pub fn ready(&self) -> Option<u16> {
        self.get(&format!("{}/readyz", self.admin)).map(|answer| answer.status)
    }
}

/// The running program, with its output in files.
pub struct Process {
    pub api: Api,
    pub folder: Arc<TempDir>,
    child: Child,
    arguments: Vec<String>,
    files: [PathBuf; 2],
}

impl Process {
    /// Starts a server in a new folder.
    pub fn start(set: &[&str]) -> Self {
        let mut arguments = usual_flags();
        arguments.extend(set.iter().flat_map(|pair| ["--set".to_owned(), (*pair).to_owned()]));
        Self::start_in(Arc::new(TempDir::new().unwrap()), arguments)
    }

    /// Starts a server in this folder and waits until it is ready.
    pub fn start_in(folder: Arc<TempDir>, arguments: Vec<String>) -> Self {
        let (mut child, files) = spawn(folder.path(), &arguments);
        let api = listening(&mut child, &files, &folder.path().join("data/master.token"));
        Self { api, folder, child, arguments, files }
    }

    /// Starts the same server again, in the same folder.
    pub fn again(&self) -> Self {
        Self::start_in(self.folder.clone(), self.arguments.clone())
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Returns the number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGKILL.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().unwrap();
    }

    /// Waits at most `patience` for the process to exit.
    pub fn ends_within(&mut self, patience: Duration) -> Option<ExitStatus> {
        let begun = Instant::now();
        while begun.elapsed() < patience {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    /// Returns everything that the server has written so far.
    pub fn output(&self) -> String {
        self.files.iter().map(|file| fs::read_to_string(file).unwrap()).collect()
    }

    pub fn file(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap()
    }

    /// Opens a connection on which the test itself writes bytes.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.api.url.trim_start_matches("http://")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the program without waiting for it to be ready.
pub fn spawn(folder: &Path, arguments: &[String]) -> (Child, [PathBuf; 2]) {
    let files = ["stdout", "stderr"].map(|name| folder.join(name));
    let [stdout, stderr] = files.each_ref().map(|path| File::create(path).unwrap());
    let child = program(folder).args(arguments).stdout(stdout).stderr(stderr).spawn().unwrap();
    (child, files)
}

/// Waits until a server listens that writes into these files, and returns how it is reached.
pub fn listening(child: &mut Child, files: &[PathBuf; 2], master: &Path) -> Api {
    let welcome = || fs::read_to_string(&files[0]).unwrap();
    wait_until("the server listens", || {
        if let Some(status) = child.try_wait().unwrap() {
            let log = fs::read_to_string(&files[1]).unwrap();
            panic!("the server ended with {status}: {}{log}", welcome());
        }
        welcome().contains("/console\n")
    });
    let address = |before: &str, after: &str| {
        let text = welcome();
        let from = text.find(before).unwrap() + before.len();
        let length = text[from..].find(after).unwrap();
        text[from..from + length].to_owned()
    };
    let client = Client::builder().no_proxy().timeout(Duration::from_secs(15));
    Api {
        url: address("Codes are issued at ", "/slowdns"),
        admin: address("Operators look at ", "/console"),
        master: fs::read_to_string(master).unwrap().trim().to_owned(),
        client: client.build().unwrap(),
        patience: Duration::ZERO,
    }
}

/// A small random generator (xorshift64*): a failed run can be repeated from its seed.
pub struct Chance(u64);

impl Chance {
    pub fn seeded(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    /// Returns a number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }
}
