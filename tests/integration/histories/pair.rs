//! A primary and its synchronous standby, and what happens to them.

use crate::cluster::Cluster;
use crate::harness::wait_until;
use nix::sys::signal::Signal;
use std::time::Duration;

/// The two, which change places.
pub struct Pair {
    both: [Cluster; 2],
    /// Which of them is the primary.
    primary: usize,
    /// How often a standby was made; each has a slot of its own name.
    made: u32,
}

impl Pair {
    pub fn new() -> Self {
        let mut pair = Self { both: [Cluster::new(), Cluster::empty()], primary: 0, made: 0 };
        pair.make_standby();
        pair
    }

    pub fn primary(&self) -> &Cluster {
        &self.both[self.primary]
    }

    pub fn standby(&self) -> &Cluster {
        &self.both[1 - self.primary]
    }

    /// Where servers find whichever is the primary.
    pub fn url(&self) -> String {
        let [a, b] = self.both.each_ref().map(Cluster::address);
        format!("postgres://postgres@{a},{b}/postgres?target_session_attrs=read-write")
    }

    /// Makes a fresh standby of whatever lies there, and lets the primary wait for it from then on.
    fn make_standby(&mut self) {
        self.made += 1;
        let (primary, standby) = (self.primary(), self.standby());
        standby.shell("rm -rf data");
        let slot = format!("standby_{}", self.made);
        let from =
            format!("host=127.0.0.1 port={} user=postgres application_name=standby", primary.port);
        standby.run("pg_basebackup", &["-R", "-C", "-S", &slot, "-c", "fast", "-d", &from]);
        standby.start();
        primary.psql("ALTER SYSTEM SET synchronous_standby_names = 'standby'");
        primary.psql("SELECT pg_reload_conf()");
        self.wait_synchronous();
    }

    /// Waits until every commit waits for the standby and gets its word.
    pub fn wait_synchronous(&self) {
        let sql = "SELECT count(*) FROM pg_stat_replication
                   WHERE sync_state = 'sync' AND state = 'streaming'";
        wait_until("the standby is synchronous", || self.primary().psql(sql) == "1");
    }

    /// The primary is lost and the standby takes its place.
    pub fn promote(&mut self) {
        self.primary().kill();
        self.standby().run("pg_ctl", &["-s", "-w", "promote"]);
        self.primary = 1 - self.primary;
    }

    /// The primary stands still and the standby takes its place; later the old one goes on, until
    /// whoever promoted sees to it.
    pub fn promote_beside(&mut self, frozen: Duration, awake: Duration) {
        self.primary().signal(Signal::SIGSTOP);
        self.standby().run("pg_ctl", &["-s", "-w", "promote"]);
        self.primary = 1 - self.primary;
        std::thread::sleep(frozen);
        self.standby().signal(Signal::SIGCONT);
        std::thread::sleep(awake);
        self.standby().kill();
    }

    /// Makes the old primary the new one's standby.
    pub fn rebuild(&mut self) {
        self.make_standby();
    }

    /// The standby is away, so that no commit is confirmed, and after `cut` the primary shows what it
    /// has nevertheless: it is started again, or the sessions that wait are seen to by the function
    /// `end`. After `shown` the primary is lost, and the standby comes back and takes its place. (A
    /// standby that only stood still would find all of that in its socket.)
    pub fn promote_behind(&mut self, cut: Duration, shown: Duration, end: Option<&str>) {
        self.standby().kill();
        std::thread::sleep(cut);
        match end {
            None => {
                self.primary().kill();
                self.primary().start();
            }
            Some(end) => {
                let waiting = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
                self.primary().psql(&format!("SELECT {end}(pid) {waiting}"));
            }
        }
        std::thread::sleep(shown);
        self.primary().kill();
        self.standby().start();
        self.standby().run("pg_ctl", &["-s", "-w", "promote"]);
        self.primary = 1 - self.primary;
    }
}
