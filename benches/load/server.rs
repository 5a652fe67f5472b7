//! The server as a process with its own folder and ports. It is always stopped at the end.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::client::Connection;
use crate::failure::{Context, Failure, Result};
use crate::interrupt;
use crate::requests::RequestWriter;

const READY_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// The precision of a start's time. A refused connection costs almost nothing.
const READY_POLL_INTERVAL: Duration = Duration::from_millis(5);
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(20);
const ONE_EXCHANGE_LIMIT: Duration = Duration::from_secs(5);
/// The unit of processor times in `/proc`: USER_HZ, 100 on every Linux that Rust runs on.
const TICK: Duration = Duration::from_millis(10);
/// The length of the log's end that is shown after a failure.
const LOG_TAIL_BYTES: i64 = 8 * 1024;

/// The temporary folder with the store, the keys and the log. It is removed when it is dropped.
pub struct Workspace(TempDir);

impl Workspace {
    /// Makes the folder inside `parent`.
    pub fn create(parent: &Path) -> Result<Self> {
        let doing = format!("cannot make a temporary folder in {}", parent.display());
        fs::create_dir_all(parent).context(&doing)?;
        let folder = tempfile::Builder::new().prefix("load-").tempdir_in(parent).context(&doing)?;
        Ok(Self(folder))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The file of the server's store.
    pub fn store(&self) -> PathBuf {
        self.path().join("iptunnel.redb")
    }

    /// The file of the lookup key.
    pub fn lookup_key(&self) -> PathBuf {
        self.path().join("lookup.key")
    }

    /// Reads the master token that the server made at its first start.
    pub fn master_token(&self) -> Result<String> {
        let path = self.path().join("master.token");
        let token = fs::read_to_string(&path).context(format!("cannot read {}", path.display()))?;
        Ok(token.trim().to_owned())
    }
}

/// A running server. It is killed when it is dropped. [`Server::finish`] stops it in order.
pub struct Server {
    child: Child,
    log: PathBuf,
    /// The address of its public listener.
    pub public: SocketAddr,
    /// The address of its operators' listener.
    pub admin: SocketAddr,
    /// The time from just before its process started to its first 200 for `/readyz`, with a precision of 5 ms.
    pub ready_after: Duration,
}

/// Resident memory as the kernel counts it, in megabytes (10^6 bytes).
#[derive(Clone, Copy)]
pub struct Memory {
    /// The current memory.
    pub resident_mb: f64,
    /// The highest memory since the start.
    pub peak_mb: f64,
}

impl Server {
    /// Starts `program` with its files in `workspace` and the given settings, and waits until it is ready.
    pub async fn start(program: &Path, workspace: &Workspace, settings: &[String]) -> Result<Self> {
        let (public, admin) = free_addresses()?;
        let log = workspace.path().join("server.log");
        let doing = format!("cannot start {}", program.display());
        let output = File::create(&log).context(&doing)?;
        let mut command = Command::new(program);
        command
            .stdin(Stdio::null())
            // The server must not read the project's files, because another build may not know them.
            .current_dir(workspace.path())
            .stdout(output.try_clone().context(&doing)?)
            .stderr(output)
            .args(
                own_settings(workspace, public, admin)
                    .iter()
                    .flat_map(|setting| ["--set", setting]),
            )
            .args(settings.iter().flat_map(|setting| ["--set", setting]));
        let start = Instant::now();
        let child = interrupt::let_through(|| command.spawn())?.context(&doing)?;
        let mut server = Self { child, log, public, admin, ready_after: Duration::ZERO };
        match server.wait_until_ready(start).await {
            Ok(()) => {
                server.ready_after = start.elapsed();
                Ok(server)
            }
            Err(failure) => Err(server.with_log(failure)),
        }
    }

    /// Stops the server in order after a successful measurement. A failure gets the end of the server's log.
    pub async fn finish<T>(mut self, outcome: Result<T>) -> Result<T> {
        let stopped = match outcome {
            Ok(value) => self.stop().await.map(|()| value),
            Err(failure) => Err(failure),
        };
        stopped.map_err(|failure| self.with_log(failure))
    }

    /// Kills the server with SIGKILL, whatever it is doing.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("cannot kill the server")?;
        self.child.wait().context("cannot wait for the end of the killed server")?;
        Ok(())
    }

    /// Sends a GET over a new connection. Returns the body if the answer is 200.
    pub async fn get(&self, address: SocketAddr, path: &str) -> Result<String> {
        let mut writer = RequestWriter::new(address.to_string());
        writer.get(path);
        let exchange = async {
            let mut connection = Connection::open(address).await?;
            let answer = connection.exchange(writer.bytes()).await?;
            match answer.status {
                200 => Ok(String::from_utf8_lossy(answer.body).into_owned()),
                _ => Err(answer.unexpected(path, 200)),
            }
        };
        timeout(ONE_EXCHANGE_LIMIT, exchange).await.context(format!("GET {path}"))?
    }

    /// Reads its memory from `/proc`.
    pub fn memory(&self) -> Result<Memory> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path).context(format!("cannot read {path}"))?;
        let field = |name: &str| {
            megabytes_in(&status, name)
                .context(format!("{path} has no {name}: is the server gone?"))
        };
        Ok(Memory { resident_mb: field("VmRSS:")?, peak_mb: field("VmHWM:")? })
    }

    /// The processor time of all its threads so far, in user space and in the kernel.
    pub fn processor_time(&self) -> Result<Duration> {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = fs::read_to_string(&path).context(format!("cannot read {path}"))?;
        let ticks = ticks_in(&stat).context(format!("{path} has no times: is the server gone?"))?;
        Ok(TICK * ticks)
    }

    async fn wait_until_ready(&mut self, start: Instant) -> Result<()> {
        loop {
            let Err(last) = self.get(self.public, "/readyz").await else { return Ok(()) };
            if let Some(status) = self.exited()? {
                return Err(Failure::new(format!(
                    "the server ended before it was ready: {status}"
                )));
            }
            if start.elapsed() > READY_LIMIT {
                let limit = READY_LIMIT.as_secs();
                return Err(Failure::new(format!(
                    "the server was not ready within {limit} s; last error: {last}"
                )));
            }
            sleep(READY_POLL_INTERVAL).await;
        }
    }

    async fn stop(&mut self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("the server's process id")?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).context("cannot send SIGTERM to the server")?;
        let start = Instant::now();
        loop {
            match self.exited()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    return Err(Failure::new(format!(
                        "after SIGTERM the server ended with {status}"
                    )));
                }
                None if start.elapsed() > STOP_LIMIT => {
                    let limit = STOP_LIMIT.as_secs();
                    return Err(Failure::new(format!(
                        "the server still ran {limit} s after SIGTERM"
                    )));
                }
                None => sleep(STOP_POLL_INTERVAL).await,
            }
        }
    }

    fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("cannot ask whether the server still runs")
    }

    fn with_log(&self, failure: Failure) -> Failure {
        let tail = log_tail(&self.log)
            .unwrap_or_else(|error| format!("(the log cannot be read: {error})"));
        Failure::new(format!("{failure}\n--- end of the server's log ---\n{}", tail.trim_end()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The settings of every measurement: addresses, and all files inside the folder.
fn own_settings(workspace: &Workspace, public: SocketAddr, admin: SocketAddr) -> [String; 6] {
    let file = |name: &str| workspace.path().join(name).display().to_string();
    [
        format!("server.bind={public}"),
        format!("admin.bind={admin}"),
        format!("storage.path={}", workspace.store().display()),
        format!("auth.signing_key_file={}", file("signing.keys")),
        format!("auth.lookup_key_file={}", workspace.lookup_key().display()),
        format!("auth.master_token_file={}", file("master.token")),
    ]
}

/// Finds two free ports. Both stay bound until both are known, so that they differ.
fn free_addresses() -> Result<(SocketAddr, SocketAddr)> {
    let doing = "cannot find a free port";
    let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context(doing)?;
    let second = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context(doing)?;
    Ok((first.local_addr().context(doing)?, second.local_addr().context(doing)?))
}

/// Adds the 14th and 15th field of proc(5)'s `stat`. The 2nd, a name in parentheses, may contain any text.
fn ticks_in(stat: &str) -> Option<u32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u32>().ok()? + fields.next()?.parse::<u32>().ok()?)
}

fn megabytes_in(status: &str, field: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0 / 1e6)
}

fn log_tail(log: &Path) -> std::io::Result<String> {
    let mut file = File::open(log)?;
    // This fails if the file is shorter than the tail. Then it is read from its beginning.
    let _ = file.seek(SeekFrom::End(-LOG_TAIL_BYTES));
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
