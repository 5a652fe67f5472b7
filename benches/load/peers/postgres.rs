//! A PostgreSQL server as a process with its own folder. It listens only on a socket in that folder, and is
//! always stopped at the end.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::time::sleep;

use super::delay;
use crate::failure::{Context, Failure, Result};
use crate::interrupt;
use crate::options::Options;
use crate::server::Workspace;

/// PostgreSQL's defaults that let an answered commit survive a power loss. They are set here because a package may
/// change them.
pub const DURABLE: [(&str, &str); 3] =
    [("fsync", "on"), ("synchronous_commit", "on"), ("full_page_writes", "on")];

/// The tuned settings, all in PostgreSQL's favour.
pub const FAVOURS: [(&str, &str); 14] = [
    // Several times the size of all tables and indexes of a step. Only a checkpoint writes them.
    ("shared_buffers", "1GB"),
    ("bgwriter_lru_maxpages", "0"),
    // More of the write-ahead log than any commit writes.
    ("wal_buffers", "64MB"),
    // The only checkpoint is the one before each step. A step writes a few hundred megabytes of the log.
    ("max_wal_size", "16GB"),
    ("checkpoint_timeout", "1d"),
    // Files of the log are kept and reused, because the first write of a file must also sync its growth.
    ("min_wal_size", "4GB"),
    // The log is as small as possible, because there is no replication.
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    // There is no background work.
    ("autovacuum", "off"),
    ("track_activities", "off"),
    ("update_process_title", "off"),
    // A statement is planned once per connection.
    ("plan_cache_mode", "force_generic_plan"),
    ("jit", "off"),
    // 128 clients and a few maintenance connections.
    ("max_connections", "140"),
];

/// The cluster's path in the folder, in which all programs run.
const DATA: &str = "data";
/// The name of its socket there, which ends with the default port.
const SOCKET: &str = ".s.PGSQL.5432";
/// The only user of the cluster. It has no password, because only the owner can access the folder.
const SUPERUSER: &str = "postgres";
/// If root runs this, the programs run as the first of these users that exists, because they refuse root.
const UNPRIVILEGED: [&str; 2] = ["postgres", "nobody"];

const READY_LIMIT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// The longest time for a program. Everything here takes seconds.
const PROGRAM_LIMIT: Duration = Duration::from_secs(120);
/// The longest time for an immediate shutdown. It takes some milliseconds, and after five seconds PostgreSQL kills
/// its own processes.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The folder of PostgreSQL's programs.
pub struct Programs(PathBuf);

impl Programs {
    /// The programs that the options name.
    pub fn of(options: &Options) -> Result<Self> {
        let directory = options.postgres_programs.clone();
        directory.map(Self).context("this needs --postgres-programs: see scripts/bench")
    }
}

/// The running server and its folder. When it is dropped, the server is stopped and the folder is deleted.
pub struct Cluster {
    /// This field comes before the folder, which must outlive it.
    postmaster: Postmaster,
    site: Site,
}

impl Cluster {
    /// Starts the server on `site` and waits until it answers. `settings` override those in its favour.
    pub async fn start(site: Site, settings: &[(&str, &str)]) -> Result<Self> {
        let postmaster = site.start_postmaster(settings)?;
        let mut cluster = Self { postmaster, site };
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    /// Runs an SQL script, one statement at a time. Returns its output without the last newline.
    pub async fn sql(&self, script: &str) -> Result<String> {
        let output = self.site.run(self.site.psql(&[]), script).await?;
        Ok(output.trim_end().to_owned())
    }

    /// Runs an SQL script in the named database.
    pub async fn sql_in(&self, database: &str, script: &str) -> Result<String> {
        let output = self.site.run(self.site.psql(&["-d", database]), script).await?;
        Ok(output.trim_end().to_owned())
    }

    /// Runs an SQL script with `name=value` for one of its variables.
    pub async fn sql_with(&self, variable: &str, script: &str) -> Result<String> {
        self.site.run(self.site.psql(&["-v", variable]), script).await
    }

    /// The URL of one of its databases, over a socket; with a delay, over a proxy.
    pub fn url(&self, database: &str, delay: Duration) -> Result<String> {
        let folder = self.site.workspace.path();
        if delay.is_zero() {
            let folder = folder.display().to_string();
            return Ok(format!("postgres://{SUPERUSER}@{}/{database}", folder.replace('/', "%2F")));
        }
        let proxy = delay::before(&folder.join(SOCKET), delay)?;
        Ok(format!("postgres://{SUPERUSER}@{proxy}/{database}?sslmode=disable"))
    }

    /// Runs pgbench with a script. Returns its output.
    pub async fn pgbench(&self, arguments: &[&str], script: &str) -> Result<String> {
        let mut command = self.site.client("pgbench");
        command.args(arguments).args(["-f", "-", SUPERUSER]);
        self.site.run(command, script).await
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            let Err(last) = self.sql("SELECT 1").await else { return Ok(()) };
            let ended = exited(&mut self.postmaster.0)?;
            if ended.is_some() || start.elapsed() > READY_LIMIT {
                let log = fs::read_to_string(self.site.file("log")).unwrap_or_default();
                return Err(Failure::new(format!("PostgreSQL does not start: {last}\n{log}")));
            }
            sleep(POLL_INTERVAL).await;
        }
    }
}

/// The server's main process, which manages the others.
struct Postmaster(Child);

impl Drop for Postmaster {
    /// Shuts down at once, because its data will be deleted.
    fn drop(&mut self) {
        let start = Instant::now();
        if let Some(pid) = pid(&self.0) {
            // This fails only if the process has already ended.
            let _ = kill(pid, Signal::SIGQUIT);
        }
        while start.elapsed() < STOP_LIMIT && matches!(self.0.try_wait(), Ok(None)) {
            thread::sleep(POLL_INTERVAL);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running program. It is killed with its children when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let (Ok(None), Some(group)) = (self.0.try_wait(), pid(&self.0)) {
            let _ = killpg(group, Signal::SIGKILL);
        }
        let _ = self.0.wait();
    }
}

/// A folder with a server, and the user of the programs in it.
pub struct Site {
    programs: PathBuf,
    user: Option<User>,
    workspace: Workspace,
}

struct User {
    name: &'static str,
    uid: u32,
    gid: u32,
}

impl Site {
    /// Sets up a server in `workspace` without starting it.
    pub async fn set_up(programs: &Programs, workspace: Workspace) -> Result<Self> {
        let user = owner(workspace.path())?;
        let site = Self { programs: programs.0.clone(), user, workspace };
        let arguments = ["-D", DATA, "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--no-locale"];
        site.run(site.command("initdb", &arguments), "").await?;
        Ok(site)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.workspace.path().join(name)
    }

    /// A program without our environment, because variables such as `PGHOST` or a language would change its
    /// behaviour or output.
    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.args(arguments).env_clear().env("LC_ALL", "C").current_dir(self.workspace.path());
        // It gets its own process group, so that only we handle a Ctrl-C, and its children can be killed with it.
        command.process_group(0);
        if let Some(user) = &self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    fn client(&self, program: &str) -> Command {
        let mut command = self.command(program, &["-U", SUPERUSER, "-h"]);
        command.arg(self.workspace.path());
        command
    }

    /// psql without a `.psqlrc`. It prints values only and stops at the first error.
    fn psql(&self, arguments: &[&str]) -> Command {
        let mut command = self.client("psql");
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1"]).args(arguments);
        command
    }

    fn start_postmaster(&self, settings: &[(&str, &str)]) -> Result<Postmaster> {
        let log = File::create(self.file("log")).context("cannot make PostgreSQL's log")?;
        let sockets = self.workspace.path().display().to_string();
        let place = [("listen_addresses", ""), ("unix_socket_directories", &sockets)];
        let mut command = self.command("postgres", &["-D", DATA]);
        for (name, value) in place.iter().chain(&DURABLE).chain(&FAVOURS).chain(settings) {
            command.args(["-c", &format!("{name}={value}")]);
        }
        self.spawn(command.stdin(Stdio::null()), log).map(Postmaster)
    }

    /// Runs a program to its end and returns its output. A failed program is an error.
    async fn run(&self, mut command: Command, input: &str) -> Result<String> {
        let program = command.get_program().display().to_string();
        let path = self.file("output");
        let output = File::create(&path)
            .context(format!("cannot create a file for the output of {program}"))?;
        let mut running = Running(self.spawn(command.stdin(Stdio::piped()), output)?);
        if let Some(mut stdin) = running.0.stdin.take() {
            // A script is much shorter than a pipe's buffer, so this never waits. If it fails, the program
            // has ended, and its status says more.
            let _ = stdin.write_all(input.as_bytes());
        }
        let status = ended(&mut running.0, &program).await?;
        let output =
            fs::read_to_string(&path).context(format!("cannot read the output of {program}"))?;
        if status.success() {
            return Ok(output);
        }
        Err(Failure::new(format!("{program}: {status}\n{}", output.trim_end())))
    }

    fn spawn(&self, command: &mut Command, output: File) -> Result<Child> {
        let program = command.get_program().display().to_string();
        let doing = match &self.user {
            None => format!("cannot start {program}"),
            Some(User { name, .. }) => format!(
                "cannot start {program} as {name}: this user must be able to access {} (see --dir)",
                self.workspace.path().display()
            ),
        };
        command.stdout(output.try_clone().context(&doing)?).stderr(output);
        interrupt::let_through(|| command.spawn())?.context(&doing)
    }
}

async fn ended(child: &mut Child, program: &str) -> Result<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = exited(child)? {
            return Ok(status);
        }
        if start.elapsed() > PROGRAM_LIMIT {
            let limit = PROGRAM_LIMIT.as_secs();
            return Err(Failure::new(format!("{program} did not end within {limit} s")));
        }
        sleep(POLL_INTERVAL).await;
    }
}

fn exited(child: &mut Child) -> Result<Option<ExitStatus>> {
    child.try_wait().context("cannot check whether a program of PostgreSQL still runs")
}

fn pid(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().map(Pid::from_raw)
}

/// Returns the user of the programs if it is another user than ours. Then that user owns the folder.
fn owner(folder: &Path) -> Result<Option<User>> {
    let doing = format!("cannot prepare {}", folder.display());
    // We have just made the folder, so its owner is our user.
    if fs::metadata(folder).context(&doing)?.uid() != 0 {
        return Ok(None);
    }
    let user = unprivileged()?;
    chown(folder, Some(user.uid), Some(user.gid)).context(&doing)?;
    Ok(Some(user))
}

fn unprivileged() -> Result<User> {
    let user = |name| Some(User { name, uid: id_of("-u", name)?, gid: id_of("-g", name)? });
    UNPRIVILEGED
        .into_iter()
        .find_map(user)
        .context("PostgreSQL refuses to run as root, and there is no suitable other user")
}

/// Asks `id` for an id of a user, because it knows all sources of users.
fn id_of(which: &str, user: &str) -> Option<u32> {
    let output = Command::new("id").args([which, user]).stderr(Stdio::null()).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}
