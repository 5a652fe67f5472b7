//! Servers that are started again whenever they end.

use super::SETTINGS;
use super::wire::Weather;
use crate::process::{spawn, usual_flags};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a start may take before it counts as failed and is tried again. A database that stands
/// still holds one up.
const START: Duration = Duration::from_secs(40);
/// How often it is looked whether a server is still there.
const LOOK: Duration = Duration::from_millis(20);

/// Servers, and how bad the ways to them are.
pub struct Fleet {
    pub weather: Arc<Weather>,
    slots: Vec<Arc<Slot>>,
    stopped: Arc<AtomicBool>,
    supervisors: Vec<JoinHandle<()>>,
}

/// The place of a server.
struct Slot {
    folder: TempDir,
    arguments: Vec<String>,
    /// Where clients find it; nowhere while it is away.
    public: Mutex<Option<SocketAddr>>,
    /// The process while there is one, and where operators look at it.
    life: Mutex<Option<Life>>,
    /// How often it has ended by itself.
    ended: AtomicU32,
}

struct Life {
    child: Child,
    admin: String,
}

impl Fleet {
    /// Servers with these settings; the first makes the keys for all.
    pub fn start(count: usize, set: &[&str]) -> Self {
        let weather: Arc<Weather> = Arc::default();
        let stopped: Arc<AtomicBool> = Arc::default();
        let mut slots: Vec<Arc<Slot>> = Vec::new();
        for _ in 0..count {
            let folder = TempDir::new().unwrap();
            if let Some(first) = slots.first() {
                fs::create_dir(folder.path().join("data")).unwrap();
                for file in ["signing.keys", "lookup.key", "master.token"] {
                    let file = Path::new("data").join(file);
                    fs::copy(first.folder.path().join(&file), folder.path().join(&file)).unwrap();
                }
            }
            let mut arguments = usual_flags();
            for pair in SETTINGS.iter().chain(set) {
                arguments.extend(["--set".to_owned(), (*pair).to_owned()]);
            }
            let (public, life, ended) = (Mutex::default(), Mutex::default(), AtomicU32::new(0));
            let slot = Slot { folder, arguments, public, life, ended };
            assert!(slot.live(), "{}", slot.log());
            slots.push(Arc::new(slot));
        }
        let supervise = |slot: &Arc<Slot>| {
            let (slot, stopped) = (Arc::clone(slot), Arc::clone(&stopped));
            std::thread::spawn(move || slot.supervise(&stopped))
        };
        let supervisors = slots.iter().map(supervise).collect();
        Self { weather, slots, stopped, supervisors }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.slots.len() as u64
    }

    /// Where clients find a server; nowhere while it is away.
    pub fn address(&self, server: u32) -> Option<SocketAddr> {
        *self.slots[server as usize].public.lock().unwrap()
    }

    /// The master token, which all have.
    pub fn master(&self) -> String {
        let file = self.slots[0].folder.path().join("data/master.token");
        fs::read_to_string(file).unwrap().trim().to_owned()
    }

    /// SIGKILL; the supervisor starts it again.
    pub fn kill(&self, server: u64) {
        self.signal(server, Signal::SIGKILL);
    }

    /// Stops a server for a while.
    pub fn pause(&self, server: u64, pause: Duration) {
        self.signal(server, Signal::SIGSTOP);
        std::thread::sleep(pause);
        self.signal(server, Signal::SIGCONT);
    }

    fn signal(&self, server: u64, signal: Signal) {
        if let Some(life) = &*self.slots[server as usize].life.lock().unwrap() {
            let _ = kill(Pid::from_raw(life.child.id().try_into().unwrap()), signal);
        }
    }

    /// Waits until every server is ready, and says whether that came to be.
    pub fn wait_ready(&self, patience: Duration) -> bool {
        let client = reqwest::blocking::Client::builder().no_proxy().build().unwrap();
        let begun = Instant::now();
        let is_ready = |slot: &Slot| {
            let admin = slot.life.lock().unwrap().as_ref().map(|life| life.admin.clone());
            let asked = admin.and_then(|admin| client.get(format!("{admin}/readyz")).send().ok());
            asked.is_some_and(|answer| answer.status() == 200)
        };
        while !self.slots.iter().all(|slot| is_ready(slot)) {
            if begun.elapsed() > patience {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }

    /// How often servers have ended by themselves.
    pub fn ended(&self) -> u32 {
        self.slots.iter().map(|slot| slot.ended.load(Ordering::SeqCst)).sum()
    }

    /// How often the servers have begun a new epoch, since the store lacked what had been acknowledged.
    pub fn epochs(&self) -> usize {
        let begun =
            |slot: &Arc<Slot>| slot.log().matches("codes and open activations are void").count();
        self.slots.iter().map(begun).sum()
    }

    /// The last of what the servers have logged.
    pub fn logs(&self) -> String {
        let last = |slot: &Arc<Slot>| {
            let log = slot.log();
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(30)..].join("\n")
        };
        self.slots.iter().map(last).collect::<Vec<_>>().join("\n--\n")
    }

    /// Copies everything that the servers have logged to beside a history.
    pub fn keep_logs(&self, history: &Path) {
        for (number, slot) in self.slots.iter().enumerate() {
            fs::write(history.with_extension(format!("server-{number}.log")), slot.log()).unwrap();
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        for supervisor in self.supervisors.drain(..) {
            let _ = supervisor.join();
        }
        for slot in &self.slots {
            if let Some(mut life) = slot.life.lock().unwrap().take() {
                let _ = (life.child.kill(), life.child.wait());
            }
        }
    }
}

impl Slot {
    /// Starts the server again whenever it ends, until all is over.
    fn supervise(&self, stopped: &AtomicBool) {
        while !stopped.load(Ordering::SeqCst) {
            std::thread::sleep(LOOK);
            let ended = {
                let mut life = self.life.lock().unwrap();
                let status = life.as_mut().and_then(|life| life.child.try_wait().unwrap());
                if status.is_some() {
                    *life = None;
                }
                let by_itself = status.is_some_and(|status| status.code().is_some());
                self.ended.fetch_add(u32::from(by_itself), Ordering::SeqCst);
                life.is_none()
            };
            if ended {
                *self.public.lock().unwrap() = None;
                self.live();
            }
        }
    }

    /// Starts the server and waits until it listens; whether it does.
    fn live(&self) -> bool {
        self.keep_log();
        let (mut child, files) = spawn(self.folder.path(), &self.arguments);
        let begun = Instant::now();
        loop {
            let welcome = fs::read_to_string(&files[0]).unwrap();
            if welcome.contains("/console\n") {
                let public = address(&welcome, "Codes are issued at ", "/slowdns");
                let admin = address(&welcome, "Operators look at ", "/console");
                let public: SocketAddr = public["http://".len()..].parse().unwrap();
                *self.life.lock().unwrap() = Some(Life { child, admin });
                *self.public.lock().unwrap() = Some(public);
                return true;
            }
            if child.try_wait().unwrap().is_some() || begun.elapsed() > START {
                let _ = (child.kill(), child.wait());
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn all_lives(&self) -> PathBuf {
        self.folder.path().join("all-lives.log")
    }

    /// Puts what the last life has logged to what those before it have.
    fn keep_log(&self) {
        let last = fs::read(self.folder.path().join("stderr")).unwrap_or_default();
        let mut all =
            fs::OpenOptions::new().create(true).append(true).open(self.all_lives()).unwrap();
        std::io::Write::write_all(&mut all, &last).unwrap();
    }

    fn log(&self) -> String {
        let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
        read(self.all_lives()) + &read(self.folder.path().join("stderr"))
    }
}

/// What stands between two words of the welcome.
fn address(welcome: &str, before: &str, after: &str) -> String {
    let from = welcome.find(before).unwrap() + before.len();
    let length = welcome[from..].find(after).unwrap();
    welcome[from..from + length].to_owned()
}
