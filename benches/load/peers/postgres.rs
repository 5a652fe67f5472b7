//! A PostgreSQL server as a process: on a folder of its own, reached through a socket in that folder and by no
//! other way, and never left behind.

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

use crate::failure::{Context, Failure, Result};
use crate::interrupt;
use crate::options::Options;
use crate::server::Workspace;

/// What makes an answered commit survive a loss of power, as PostgreSQL comes; said so that no package's
/// different mind changes it.
pub const DURABLE: [(&str, &str); 3] =
    [("fsync", "on"), ("synchronous_commit", "on"), ("full_page_writes", "on")];

/// What is tuned, all of it in PostgreSQL's favour.
pub const FAVOURS: [(&str, &str); 14] = [
    // All tables and indexes of a step several times over; a checkpoint is all that writes them.
    ("shared_buffers", "1GB"),
    ("bgwriter_lru_maxpages", "0"),
    // More of the log than any commit has to write.
    ("wal_buffers", "64MB"),
    // No checkpoint but the one before each step: a step writes some hundred megabytes of log.
    ("max_wal_size", "16GB"),
    ("checkpoint_timeout", "1d"),
    // Files of the log are kept and written again: the first writing of one has to sync its growth, too.
    ("min_wal_size", "4GB"),
    // As little in the log as there can be: nobody replicates.
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    // Nothing goes on beside the transactions.
    ("autovacuum", "off"),
    ("track_activities", "off"),
    ("update_process_title", "off"),
    // A statement is planned once a connection.
    ("plan_cache_mode", "force_generic_plan"),
    ("jit", "off"),
    // 128 clients, and those who look after it.
    ("max_connections", "140"),
];

/// The cluster's place in the folder, which is where all programs run.
const DATA: &str = "data";
/// The one name in the cluster. No password: the folder is open to its owner alone.
const SUPERUSER: &str = "postgres";
/// Whom the programs run as where root runs this, the first of them that there is: they refuse root.
const UNPRIVILEGED: [&str; 2] = ["postgres", "nobody"];

const READY_LIMIT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Whatever a program is asked to do here takes seconds.
const PROGRAM_LIMIT: Duration = Duration::from_secs(120);
/// An immediate shutdown takes some milliseconds; after five seconds PostgreSQL kills what is left itself.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The folder of PostgreSQL's programs.
pub struct Programs(PathBuf);

impl Programs {
    /// Those that the options name.
    pub fn of(options: &Options) -> Result<Self> {
        let directory = options.postgres_programs.clone();
        directory.map(Self).context("this needs --postgres-programs: see scripts/bench")
    }
}

/// The running server and its folder. Dropped, it is stopped and then deleted.
pub struct Cluster {
    /// Before the folder, which must outlive it.
    postmaster: Postmaster,
    site: Site,
}

impl Cluster {
    /// Starts the server that was set up on `site`, with these settings over those that favour it, and
    /// waits until it answers.
    pub async fn start(site: Site, settings: &[(&str, &str)]) -> Result<Self> {
        let postmaster = site.start_postmaster(settings)?;
        let mut cluster = Self { postmaster, site };
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    /// Runs a script of SQL, statement by statement; what it printed, without the last line's end.
    pub async fn sql(&self, script: &str) -> Result<String> {
        let output = self.site.run(self.site.psql(&[]), script).await?;
        Ok(output.trim_end().to_owned())
    }

    /// The same in a database of its own.
    pub async fn sql_in(&self, database: &str, script: &str) -> Result<String> {
        let output = self.site.run(self.site.psql(&["-d", database]), script).await?;
        Ok(output.trim_end().to_owned())
    }

    /// The same with `name=value` for a variable of the script.
    pub async fn sql_with(&self, variable: &str, script: &str) -> Result<String> {
        self.site.run(self.site.psql(&["-v", variable]), script).await
    }

    /// Where one of its databases is.
    pub fn url(&self, database: &str) -> String {
        let folder = self.site.workspace.path().display().to_string();
        format!("postgres://{SUPERUSER}@{}/{database}", folder.replace('/', "%2F"))
    }

    /// Runs pgbench on a script; what it printed.
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

/// The server's first process, which looks after all others.
struct Postmaster(Child);

impl Drop for Postmaster {
    /// An immediate shutdown: what it holds is about to be deleted.
    fn drop(&mut self) {
        let start = Instant::now();
        if let Some(pid) = pid(&self.0) {
            // Fails only where it has ended already.
            let _ = kill(pid, Signal::SIGQUIT);
        }
        while start.elapsed() < STOP_LIMIT && matches!(self.0.try_wait(), Ok(None)) {
            thread::sleep(POLL_INTERVAL);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that somebody waits for; killed with its children where nobody does any more.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let (Ok(None), Some(group)) = (self.0.try_wait(), pid(&self.0)) {
            let _ = killpg(group, Signal::SIGKILL);
        }
        let _ = self.0.wait();
    }
}

/// A folder on which a server is set up, and as whom programs run in it.
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
    /// Sets a server up in `workspace`, without starting it.
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

    /// A program with nothing of our environment: neither a `PGHOST` nor a language that changes its output.
    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.args(arguments).env_clear().env("LC_ALL", "C").current_dir(self.workspace.path());
        // A group of its own: a Ctrl-C is ours to handle, and what it starts can be killed with it.
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

    /// Without anybody's `.psqlrc`, values alone, ended by the first error.
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

    /// Runs a program to its end and hands back what it printed; a failure where it was none.
    async fn run(&self, mut command: Command, input: &str) -> Result<String> {
        let program = command.get_program().display().to_string();
        let path = self.file("output");
        let output = File::create(&path).context(format!("cannot keep what {program} says"))?;
        let mut running = Running(self.spawn(command.stdin(Stdio::piped()), output)?);
        if let Some(mut stdin) = running.0.stdin.take() {
            // A script is far shorter than what a pipe holds: this never waits. Where it fails the program
            // has ended, and its status says more.
            let _ = stdin.write_all(input.as_bytes());
        }
        let status = ended(&mut running.0, &program).await?;
        let output =
            fs::read_to_string(&path).context(format!("cannot read what {program} said"))?;
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
                "cannot start {program} as {name}, who must be able to reach {} (see --dir)",
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
            return Err(Failure::new(format!("{program} was not done within {limit} s")));
        }
        sleep(POLL_INTERVAL).await;
    }
}

fn exited(child: &mut Child) -> Result<Option<ExitStatus>> {
    child.try_wait().context("cannot ask whether a program of PostgreSQL's still runs")
}

fn pid(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().map(Pid::from_raw)
}

/// Whom programs run as, where it is not us: the folder is then theirs.
fn owner(folder: &Path) -> Result<Option<User>> {
    let doing = format!("cannot prepare {}", folder.display());
    // We have just made it, so its owner is who we are.
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
        .context("PostgreSQL refuses root, and there is no user but root")
}

/// What `id` says of a user; it knows all the places where users are listed.
fn id_of(which: &str, user: &str) -> Option<u32> {
    let output = Command::new("id").args([which, user]).stderr(Stdio::null()).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}
