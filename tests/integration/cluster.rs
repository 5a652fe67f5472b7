//! A PostgreSQL server for one test: it can be killed, promoted, and set up with TLS.

use crate::harness::{free_address, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A PostgreSQL server with its own data folder. It syncs its commits.
pub struct Cluster {
    /// Its folder.
    pub folder: TempDir,
    bin: PathBuf,
    /// Its port.
    pub port: u16,
}

impl Cluster {
    /// Creates and starts one.
    pub fn new() -> Self {
        let cluster = Self::empty();
        cluster.run("initdb", &["-U", "postgres", "-A", "trust", "--no-instructions"]);
        cluster.start();
        cluster
    }

    /// Prepares a folder for one.
    pub fn empty() -> Self {
        let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
            .expect("scripts/test installs PostgreSQL")
            .map(|entry| entry.unwrap().path().join("bin"))
            .collect();
        versions.sort();
        let folder = TempDir::new().unwrap();
        if nix::unistd::geteuid().is_root() {
            assert!(
                Command::new("chown")
                    .arg("postgres")
                    .arg(folder.path())
                    .status()
                    .unwrap()
                    .success()
            );
        }
        let port = free_address().port();
        Self { folder, bin: versions.pop().unwrap(), port }
    }

    /// Starts a synchronous standby of this one, which must confirm every commit.
    pub fn standby(&self) -> Self {
        let standby = Self::empty();
        let from =
            format!("host=127.0.0.1 port={} user=postgres application_name=standby", self.port);
        standby.run("pg_basebackup", &["-R", "-C", "-S", "standby", "-d", &from]);
        standby.start();
        self.set("synchronous_standby_names = 'standby'");
        wait_until("the standby is synchronous", || {
            self.psql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == "1"
        });
        standby
    }

    /// Changes a setting.
    pub fn set(&self, setting: &str) {
        self.psql(&format!("ALTER SYSTEM SET {setting}"));
        self.psql("SELECT pg_reload_conf()");
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A command for one of PostgreSQL's programs, or for another program by its full path. It runs as
    /// `postgres` if the test runs as root, which PostgreSQL refuses.
    pub fn command(&self, program: &str) -> Command {
        let program = self.bin.join(program);
        let mut command = if nix::unistd::geteuid().is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir("/");
        command
    }

    /// Runs one of PostgreSQL's programs on its data folder.
    pub fn run(&self, program: &str, arguments: &[&str]) {
        let output = self.command(program).arg("-D").arg(self.data()).args(arguments).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts it and waits until it accepts connections.
    pub fn start(&self) {
        let options = format!("-h 127.0.0.1 -p {} -k {}", self.port, self.folder.path().display());
        let log = self.folder.path().join("log").display().to_string();
        self.run("pg_ctl", &["-w", "-s", "-l", &log, "-o", &options, "start"]);
    }

    /// Kills the postmaster and its child processes at once.
    pub fn kill(&self) {
        let pid = self.signal(Signal::SIGKILL);
        wait_until("the postmaster is gone", || !Path::new(&format!("/proc/{pid}")).exists());
    }

    /// Sends a signal to the postmaster and its child processes; returns the postmaster's process id.
    pub fn signal(&self, signal: Signal) -> i32 {
        let pid = std::fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        let pid: i32 = pid.lines().next().unwrap().parse().unwrap();
        let children = Command::new("pgrep").arg("-P").arg(pid.to_string()).output().unwrap();
        let children = String::from_utf8(children.stdout).unwrap();
        for pid in std::iter::once(pid).chain(children.lines().map(|pid| pid.parse().unwrap())) {
            // A child may have ended with its parent.
            let _ = kill(Pid::from_raw(pid), signal);
        }
        pid
    }

    /// Shuts it down cleanly.
    pub fn stop(&self) {
        self.run("pg_ctl", &["-w", "-s", "-m", "fast", "stop"]);
    }

    /// Runs a shell script in its folder, as the user that it runs as.
    pub fn shell(&self, script: &str) {
        let mut shell = self.command("/bin/sh");
        let output = shell.args(["-ec", script]).current_dir(self.folder.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// Runs a statement and returns its result.
    pub fn psql(&self, sql: &str) -> String {
        let mut command = self.command("psql");
        command.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &self.port.to_string()]);
        let output = command.args(["-qAtc", sql]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A paused server would not stop.
        if self.data().join("postmaster.pid").exists() {
            self.signal(Signal::SIGCONT);
        }
        let mut stop = self.command("pg_ctl");
        let _ = stop.arg("-D").arg(self.data()).args(["-s", "-m", "immediate", "stop"]).output();
    }
}
