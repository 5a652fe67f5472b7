//! A world: servers, their stores, callers, and faults, all driven by one seeded scheduler in virtual
//! time.

mod plots;

use crate::book::{Asked, Book, Heard};
use crate::chance::Chance;
use crate::client::{Call, Details, Known, Machine, activates_of, send};
use crate::coverage::{Coverage, State};
use crate::database::{Connection, Database, Standby};
use crate::layer::Layer;
use crate::planted::Planted;
use crate::server::{Common, Site, life};
use iptunnel_actors::Failure;
use iptunnel_actors::stepped::Step;
use iptunnel_checker::Rules;
use iptunnel_checker::check::Broken;
use iptunnel_domain::access::ONE_TIME_SECONDS;
use iptunnel_domain::activation::{ActivationId, ActivationState};
use iptunnel_domain::audit::Action;
use iptunnel_domain::limit::{Limits, Policy};
use iptunnel_domain::lookup::LookupKey;
use iptunnel_domain::time::Lifespan;
use iptunnel_domain::{Refusal, Timestamp};
use iptunnel_storage::simulated::{BadDisk, End, Fault as DiskFault};
use iptunnel_storage::{AuditLog, Disks, EmbeddedStore, Records, Store};
use std::sync::Arc;

/// The kind of world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Several servers over a database with a synchronous standby.
    Shared,
    /// Several servers over a database with an asynchronous standby.
    Asynchronous,
    /// One server over the journal and redb, on a disk that fails.
    Alone,
}

/// The result of a run.
pub struct Outcome {
    pub coverage: Coverage,
    pub violations: Vec<String>,
    pub trace: Vec<String>,
    pub steps: u64,
    pub requests: usize,
}

/// The start time: the middle of a day, so that no window ends during a run.
const START: u64 = 1_900_000_000;
/// The milliseconds until a caller stops waiting.
const DEADLINE: u64 = 10_000;
/// The number of codes in one run.
const CODES: usize = 3;
/// The number of agents in one run.
const AGENTS: usize = 3;

/// Runs one world from one seed.
pub fn run(seed: u64, kind: Kind, planted: &Planted, traced: bool) -> Outcome {
    let mut world = World::new(seed, kind, planted, traced);
    let steps = world.chance.between(1_000, 4_000);
    for _ in 0..steps {
        world.advance();
        if !world.book.violations.is_empty() {
            break;
        }
    }
    if world.book.violations.is_empty() {
        world.heal();
    }
    if world.book.violations.is_empty() {
        world.recover();
    }
    if world.book.violations.is_empty() {
        world.check_store();
    }
    if world.book.violations.is_empty() {
        world.find_one_order();
    }
    Outcome {
        coverage: world.coverage,
        violations: world.book.violations,
        trace: world.trace,
        steps: world.step,
        requests: world.book_operations,
    }
}

/// The store or stores of the servers.
enum Backend {
    Database(Database),
    Disk(Box<Disk>),
}

/// The disks of a server that shares no store.
struct Disk {
    rows: BadDisk,
    journal: BadDisk,
    /// An earlier copy of both.
    backup: Option<(BadDisk, BadDisk)>,
    store: Option<Arc<Layer<EmbeddedStore>>>,
    faulty: bool,
}

struct World {
    kind: Kind,
    chance: Chance,
    common: Common,
    backend: Backend,
    sites: Vec<Site>,
    calls: Vec<Call>,
    known: Vec<Known>,
    book: Book,
    book_operations: usize,
    coverage: Coverage,
    trace: Vec<String>,
    traced: bool,
    step: u64,
    /// Virtual milliseconds since the start.
    now: u64,
    moment: u64,
    /// The seconds by which the clocks of all machines are ahead.
    skew: u64,
    ready: Vec<Step>,
    sessions: usize,
    /// The agent of each ticket, and when it was made, in milliseconds.
    tickets: Vec<(usize, u64)>,
    issued: usize,
    epoch: u64,
    /// No more faults are injected.
    healed: bool,
    /// The server has noticed the restored backup, or none was restored.
    noticed: bool,
    /// The step at which the primary is lost. It has shown changes that no standby has.
    lost_at: Option<u64>,
    /// One in this many chances for a fault is used.
    calm: u64,
    /// Callers often do not wait, and connections to the store are often slow.
    hectic: bool,
}

impl World {
    fn new(seed: u64, kind: Kind, planted: &Planted, traced: bool) -> Self {
        let mut chance = Chance::new(seed);
        let (tight, calm) = (chance.one_in(6), chance.between(1, 12));
        let hectic = chance.one_in(3);
        let allowed = move |policy| match policy {
            Policy::ActivatePerMachineDay if tight => 2,
            Policy::PrecheckPerMachineDay if tight => 8,
            _ => 10_000,
        };
        let common = Common {
            limits: Limits::new(allowed, 10_000),
            key: LookupKey::new(&[7; LookupKey::BYTES]),
            planted: planted.clone(),
            permits: 24,
        };
        let servers = match kind {
            Kind::Alone => 1,
            _ => 2 + chance.below(2),
        };
        let backend = match kind {
            Kind::Alone => {
                let rows = BadDisk::new();
                let journal = rows.sibling();
                let disk = Disk { rows, journal, backup: None, store: None, faulty: false };
                Backend::Disk(Box::new(disk))
            }
            Kind::Shared => {
                let seed = Chance::new(seed ^ 0xDA7A);
                Backend::Database(Database::new(Standby::Synchronous, seed, planted.clone()))
            }
            Kind::Asynchronous => {
                let seed = Chance::new(seed ^ 0xDA7A);
                Backend::Database(Database::new(Standby::Asynchronous, seed, planted.clone()))
            }
        };
        let mut world = Self {
            kind,
            chance,
            common,
            backend,
            sites: (0..servers).map(|_| Site::default()).collect(),
            calls: Vec::new(),
            known: Vec::new(),
            book: Book::default(),
            book_operations: 0,
            coverage: Coverage::default(),
            trace: Vec::new(),
            traced,
            step: 0,
            now: 0,
            moment: 0,
            skew: 0,
            ready: Vec::new(),
            sessions: 0,
            tickets: Vec::new(),
            issued: 0,
            epoch: 1,
            healed: false,
            noticed: true,
            lost_at: None,
            calm,
            hectic,
        };
        (0..servers).for_each(|server| world.start(server));
        world
    }

    /// The current virtual time in microseconds. No two moments are equal.
    fn moment(&mut self) -> u64 {
        self.moment = (self.moment + 1).max(self.now * 1000);
        self.moment
    }

    fn clock(&self) -> Timestamp {
        Timestamp(START + self.now / 1000 + self.skew)
    }

    fn log(&mut self, words: impl FnOnce() -> String) {
        if self.traced {
            let line = format!("{:>5} {:>9.3}s {}", self.step, self.now as f64 / 1000.0, words());
            self.trace.push(line);
        }
    }

    /// Takes one step.
    fn advance(&mut self) {
        self.step += 1;
        self.now += match self.chance.below(500) {
            0..=489 => self.chance.between(0, 3),
            490..=497 => self.chance.between(10, 300),
            498 => self.chance.between(1_000, 12_000),
            // Sometimes long enough for long lifetimes to end.
            _ => self.chance.between(60_000, 400_000) * u64::from(self.chance.one_in(5)),
        };
        if self.lost_at.is_some_and(|at| at <= self.step)
            && let Backend::Database(database) = &self.backend
        {
            self.lost_at = None;
            let database = database.clone();
            self.fail_over(&database, None);
        }
        self.perhaps_plot();
        match self.chance.below(100) {
            0..=76 => self.step_a_server(),
            77..=90 => self.call(),
            91..=93 => self.upkeep(),
            94..=97 => self.follow(),
            _ => self.inject_fault(),
        }
        self.listen();
        self.note_epoch();
    }

    fn note_epoch(&mut self) {
        let Backend::Database(database) = &self.backend else { return };
        let epoch = database.epoch();
        self.coverage.add(&database.coverage());
        let lines = database.trace();
        for words in lines {
            self.log(|| words);
        }
        // After a failover it may be an earlier epoch.
        if epoch > self.epoch {
            if self.kind == Kind::Shared {
                self.book.found(self.step, None, "an epoch began though nothing was lost");
            }
            if self.calls.iter().any(|call| !call.lost) {
                self.coverage.reach(State::FencedAmidActivate);
            }
            self.book.epoch(self.step);
        }
        self.epoch = epoch;
    }

    fn running(&self) -> Vec<usize> {
        let up = |site: &Site| site.running.is_some() && site.paused_until <= self.now;
        self.sites.iter().enumerate().filter(|(_, site)| up(site)).map(|(at, _)| at).collect()
    }

    fn step_a_server(&mut self) {
        let running = self.running();
        let Some(server) = self.chance.pick(&running).copied() else { return };
        let slow = self.chance.one_in(if self.hectic { 80 } else { 400 });
        let Some(site) = self.sites.get_mut(server) else { return };
        if slow {
            // Its connection to the store is slow for a while, and everything else continues.
            site.slow_for = self.chance.between(20, 400);
        }
        site.slow_for = site.slow_for.saturating_sub(1);
        let commits = site.slow_for == 0;
        let Some(running) = &mut site.running else { return };
        let step = running.step(&mut self.chance, &mut self.ready, commits);
        let queued = running.stepped.queued();
        if let Some(step) = step {
            self.log(|| format!("server {server}: {step:?}"));
        }
        // Each request causes a few messages, and each server sends a few itself.
        if queued > 20 * self.common.permits {
            self.book.found(self.step, None, "the queues grow beyond what the permits allow");
        }
        self.restart_if_failed(server);
    }

    /// Ends a server that cannot continue. The service manager restarts it.
    fn restart_if_failed(&mut self, server: usize) {
        let failed = self.sites.get(server).and_then(|site| site.running.as_ref());
        if failed.is_some_and(|running| running.health.has_failed()) {
            self.log(|| format!("server {server} has failed"));
            self.kill(server, End::Killed);
            self.start(server);
        }
    }

    /// Does background work of a server: writes its watermark, checkpoints its store, or ticks its clock.
    fn upkeep(&mut self) {
        let now = self.clock();
        let running = self.running();
        let Some(server) = self.chance.pick(&running).copied() else { return };
        if self.chance.one_in(3) {
            let store = self.sites.get(server).and_then(|site| site.running.as_ref());
            let mark = store.and_then(|running| running.store.watermark());
            if let (Some(site), Some(mark)) = (self.sites.get_mut(server), mark) {
                site.mark = Some(mark);
            }
            return;
        }
        if let Backend::Disk(disk) = &self.backend
            && let Some(store) = &disk.store
            && self.chance.one_in(2)
        {
            store.inner().checkpoint();
            return;
        }
        if let Some(running) = self.sites.get(server).and_then(|site| site.running.as_ref()) {
            running.handles().tick(now);
        }
    }

    /// Passes the events of other servers to a server, and checks that its epoch is the current one.
    fn follow(&mut self) {
        let running = self.running();
        let Some(server) = self.chance.pick(&running).copied() else { return };
        self.follow_on(server);
    }

    fn follow_on(&mut self, server: usize) {
        let Backend::Database(database) = &self.backend else { return };
        let database = database.clone();
        let Some(running) = self.sites.get_mut(server).and_then(|site| site.running.as_mut())
        else {
            return;
        };
        // If a tail was lost, the server follows the log from where it is still the same.
        running.events = running.events.min(database.shortest_since(running.timeline));
        running.timeline = database.timeline();
        let news = database.events_from(running.events);
        running.events += news.len();
        for (_, event) in &news {
            running.handles().heard(event);
        }
        let contained =
            running.store.watermark().and_then(|mark| running.store.contains(&mark).ok());
        if contained == Some(false) {
            // An idle server does this when it finds that the database lacks commits.
            let _ = running.store.commit(&[]);
        }
        if database.epoch() > running.epoch {
            running.health.fail("a new epoch has begun");
        }
        self.restart_if_failed(server);
    }

    fn start(&mut self, server: usize) {
        let now = self.clock();
        let store: Arc<dyn Store> = match &mut self.backend {
            Backend::Database(database) => match database.open() {
                Ok(connection) => {
                    Arc::new(Layer::<Connection>::new(connection, self.common.planted.clone()))
                }
                Err(_) => return,
            },
            Backend::Disk(disk) => {
                let disks = Disks { rows: disk.rows.opener(), journal: disk.journal.opener() };
                match EmbeddedStore::open_stepped(disks) {
                    Ok(store) => {
                        let store = Arc::new(Layer::new(store, self.common.planted.clone()));
                        disk.store = Some(Arc::clone(&store));
                        store
                    }
                    Err(error) => {
                        let faulty = disk.faulty;
                        self.log(|| format!("the store cannot be opened: {error}"));
                        if !faulty {
                            let what = format!("the store cannot be opened: {error}");
                            self.book.found(self.step, None, &what);
                        }
                        return;
                    }
                }
            }
        };
        let (events, timeline) = match &self.backend {
            Backend::Database(database) => (database.events(), database.timeline()),
            Backend::Disk(_) => (0, 0),
        };
        let Some(site) = self.sites.get_mut(server) else { return };
        let started = site.start(store, &self.common, now, (events, timeline), &mut self.chance);
        match started {
            Ok(fenced) => {
                self.log(|| format!("server {server} starts, new epoch: {fenced}"));
                if fenced && self.kind == Kind::Alone {
                    if std::mem::replace(&mut self.noticed, true) {
                        self.book.found(self.step, None, "an epoch began though nothing was lost");
                    }
                    self.coverage.reach(State::EpochBegan);
                    self.book.epoch(self.step);
                }
                if let Some(site) = self.sites.get_mut(server)
                    && let Some(running) = &site.running
                {
                    site.mark = running.store.watermark();
                    running.handles().tick(now);
                }
            }
            Err(error) => self.log(|| format!("server {server} does not start: {error}")),
        }
    }

    fn kill(&mut self, server: usize, end: End) {
        let Some(site) = self.sites.get_mut(server) else { return };
        let Some(running) = site.running.take() else { return };
        site.paused_until = 0;
        self.book.kill(server);
        if running.stepped.is_committing() {
            self.coverage.reach(State::KilledAmidCommit);
        }
        if let Backend::Disk(disk) = &mut self.backend {
            // From now on, no write of the process reaches a disk.
            disk.rows.end(end);
            disk.journal.end(end);
            disk.store = None;
            disk.faulty = false;
        }
        drop(running);
        let (lost, rest) = std::mem::take(&mut self.calls)
            .into_iter()
            .partition::<Vec<Call>, _>(|call| call.server == server);
        self.calls = rest;
        if !lost.is_empty() {
            self.coverage.reach(State::Killed);
        }
        for call in lost {
            self.hear(call.operation, Heard::Nothing);
        }
    }

    /// Injects a fault.
    fn inject_fault(&mut self) {
        if self.healed || !self.chance.one_in(self.calm) {
            return;
        }
        if self.chance.one_in(20) {
            return self.set_clocks();
        }
        let running = self.running();
        let server = self.chance.below(self.sites.len());
        match (self.chance.below(12), &self.backend) {
            (0 | 1, Backend::Database(_)) if running.contains(&server) => {
                self.log(|| format!("server {server} is killed"));
                self.kill(server, End::Killed);
            }
            (2 | 3, Backend::Database(_)) => {
                let pause = self.chance.between(1_000, 8_000);
                if let Some(site) = self.sites.get_mut(server) {
                    site.paused_until = self.now + pause;
                }
                self.coverage.reach(State::Paused);
                self.log(|| format!("server {server} is paused"));
            }
            (4, Backend::Database(database)) => {
                let database = database.clone();
                let away = self.chance.one_in(3);
                database.set_reachable(!away);
                self.log(|| format!("the database is reachable: {}", !away));
            }
            (5 | 6, Backend::Database(database)) => {
                database.cut_off();
                self.log(|| "the standby is cut off".into());
            }
            (7, Backend::Database(database)) => {
                database.restart();
                // Often the primary is lost soon after.
                if self.chance.one_in(2) {
                    self.lost_at = Some(self.step + self.chance.between(5, 150));
                }
                self.log(|| "the primary is restarted".into());
            }
            (8, Backend::Database(database)) => {
                database.rejoin();
                self.log(|| "the standby is back".into());
            }
            (9, Backend::Database(database)) => {
                let database = database.clone();
                self.fail_over(&database, None);
            }
            (10 | 11, Backend::Database(database)) => {
                database.catch_up();
                database.set_reachable(true);
            }
            (0 | 1, Backend::Disk(_)) => {
                self.log(|| "the server is killed".into());
                self.kill(0, End::Killed);
            }
            (2 | 3, Backend::Disk(_)) => {
                let end = match self.chance.below(2) {
                    0 => End::PowerLost,
                    _ => End::PowerLostWhileWriting,
                };
                self.coverage.reach(State::PowerLost);
                self.log(|| format!("{end:?}"));
                self.kill(0, end);
            }
            (4 | 5, Backend::Disk(_)) => self.fail_disk(DiskFault::FailsWrites, State::WriteFailed),
            (6, Backend::Disk(_)) => self.fail_disk(DiskFault::FailsSyncs, State::SyncFailed),
            (7, Backend::Disk(_)) => self.fail_disk(DiskFault::Full, State::WriteFailed),
            (8 | 11, Backend::Disk(_)) => self.fail_disk(DiskFault::None, State::Granted),
            (9, Backend::Disk(_)) => self.back_up(),
            (10, Backend::Disk(_)) => self.restore(),
            _ => {}
        }
        for server in 0..self.sites.len() {
            let down = |site: &Site| site.running.is_none() && site.away_until <= self.step;
            let down = self.sites.get(server).is_some_and(down);
            if down && self.chance.one_in(2) {
                self.start(server);
            }
        }
    }

    /// Sets all clocks ahead, or back to the right time. Records dated in the future are then void, as after
    /// the start of an epoch.
    fn set_clocks(&mut self) {
        if self.skew > 0 {
            self.skew = 0;
            self.coverage.reach(State::ClockSetBack);
        } else {
            self.skew = self.chance.between(20, 40 * 86_400);
        }
        self.book.epoch(self.step);
        let skew = self.skew;
        self.log(|| format!("the clocks are {skew} s ahead"));
    }

    /// Promotes the standby. If it lacks a tail, the servers notice it: each running server recently wrote the
    /// commits of the others into its watermark, and one of them checks it before another server starts.
    /// `chosen` names the server that is lost with the primary and the one that checks first.
    fn fail_over(&mut self, database: &Database, chosen: Option<(usize, usize)>) {
        if self.kind == Kind::Asynchronous {
            let running = self.running();
            let any = self.chance.pick(&running).copied();
            let Some(first) = chosen.map(|(_, first)| first).or(any) else { return };
            // A server commits every two seconds and then notices a promotion. So the server that stays has
            // seen the first promotion before a second one comes.
            let stays = self.sites.get(first).and_then(|site| site.running.as_ref());
            let mark = stays.and_then(|running| running.store.watermark());
            if mark.is_none_or(|mark| mark.timeline != database.timeline()) {
                return;
            }
            for site in &mut self.sites {
                if let Some(running) = &site.running {
                    site.mark = running.store.watermark();
                }
            }
            database.fail_over();
            self.book.epoch(self.step);
            self.log(|| "the standby is promoted and lacks a tail".into());
            // The server that wrote the tail may be lost with the primary.
            let any = self.chance.below(self.sites.len());
            let other = chosen.map_or(any, |(lost, _)| lost);
            if other != first && (chosen.is_some() || self.chance.one_in(2)) {
                self.kill(other, End::Killed);
                if let Some(site) = self.sites.get_mut(other) {
                    site.away_until = self.step + self.chance.between(0, 100);
                }
            }
            self.follow_on(first);
            return;
        }
        database.fail_over();
        self.log(|| "the standby is promoted".into());
    }

    fn fail_disk(&mut self, fault: DiskFault, state: State) {
        let both = self.chance.one_in(2);
        let first = self.chance.one_in(2);
        let Backend::Disk(disk) = &mut self.backend else { return };
        let all = both || fault == DiskFault::None;
        if first || all {
            disk.rows.fault(fault);
        }
        if !first || all {
            disk.journal.fault(fault);
        }
        disk.faulty = fault != DiskFault::None;
        if disk.faulty {
            self.coverage.reach(state);
        }
        self.log(|| format!("disk fault: {fault:?}"));
    }

    /// Makes a backup of the store while the server is stopped.
    fn back_up(&mut self) {
        self.kill(0, End::Killed);
        let Backend::Disk(disk) = &mut self.backend else { return };
        let rows = disk.rows.copy();
        let journal = disk.journal.copy_beside(&rows);
        rows.fault(DiskFault::None);
        journal.fault(DiskFault::None);
        disk.backup = Some((rows, journal));
        self.log(|| "a backup is made".into());
        self.start(0);
    }

    /// Replaces the store with the backup. The watermark outside the store stays.
    fn restore(&mut self) {
        let Backend::Disk(disk) = &self.backend else { return };
        let runs = self.sites.first().is_some_and(|site| site.running.is_some());
        if disk.backup.is_none() || !runs {
            return;
        }
        // The watermark is written every two seconds, and restoring a backup takes longer.
        let mark = self.sites.first().and_then(|site| site.running.as_ref()?.store.watermark());
        if let (Some(site), Some(mark)) = (self.sites.first_mut(), mark) {
            site.mark = Some(mark);
        }
        self.kill(0, End::Killed);
        let Backend::Disk(disk) = &mut self.backend else { return };
        if let Some((rows, journal)) = &disk.backup {
            let copy = rows.copy();
            disk.journal = journal.copy_beside(&copy);
            disk.rows = copy;
        }
        self.noticed = false;
        self.coverage.reach(State::Restored);
        self.log(|| "the backup is restored".into());
        self.start(0);
    }

    fn random_server(&mut self) -> Option<usize> {
        let up: Vec<usize> = (0..self.sites.len())
            .filter(|at| self.sites.get(*at).is_some_and(|s| s.running.is_some()))
            .collect();
        self.chance.pick(&up).copied()
    }

    /// A caller sends a request.
    fn call(&mut self) {
        match self.chance.below(12) {
            0 if self.issued < CODES => {
                self.issued += 1;
                self.send(Asked::Issue);
            }
            1 => self.call_of_an_agent(),
            _ if self.known.is_empty() => {
                if self.issued < CODES {
                    self.issued += 1;
                    self.send(Asked::Issue);
                }
            }
            _ => self.call_of_an_installer(),
        }
    }

    fn call_of_an_agent(&mut self) {
        let agent = self.chance.below(AGENTS);
        let asked = match self.chance.below(16) {
            0..=2 => Asked::Register { agent },
            3..=6 => Asked::CheckIn { agent },
            7 | 8 => Asked::SetRevoked { agent, revoked: true },
            9 => Asked::SetRevoked { agent, revoked: false },
            10 | 11 => Asked::Delete { agent },
            _ => match self.ticket_of(agent) {
                Some(asked) => asked,
                None => return,
            },
        };
        self.send(asked);
    }

    /// Registers with a new ticket, or with one that was made for the agent before.
    fn ticket_of(&mut self, agent: usize) -> Option<Asked> {
        let now = self.clock();
        if self.chance.one_in(2) {
            self.tickets.push((agent, now.0 * 1000 + self.now % 1000));
        }
        let ticket = (0..self.tickets.len()).filter(|one| self.tickets[*one].0 == agent);
        let ticket = *self.chance.pick(&ticket.collect::<Vec<_>>())?;
        let made_ms = self.tickets[ticket].1;
        let life = Lifespan {
            from: Timestamp(made_ms / 1000),
            until: Timestamp(made_ms / 1000).plus(ONE_TIME_SECONDS),
        };
        // The edge refuses one that has run out, or was made in the future.
        (!life.is_over(now)).then_some(Asked::Enrol { agent, ticket, made_ms })
    }

    fn call_of_an_installer(&mut self) {
        let (code, machine) = (self.chance.below(self.known.len()), self.chance.below(2));
        let Some(known) = self.known.get(code) else { return };
        let Some(of_machine) = known.machines.get(machine) else { return };
        // Some people do not wait and run the installer again while the first run hangs.
        let impatience = if self.hectic { 2 } else { 8 };
        if of_machine.done || of_machine.busy && !self.chance.one_in(impatience) {
            return;
        }
        let prechecked = of_machine.prechecked_at.filter(|at| self.is_good(*at));
        let asked = match (of_machine.granted, prechecked) {
            (Some((id, _)), _) => match self.chance.below(20) {
                0..=5 => Asked::Confirm { code, machine, id },
                6..=10 => Asked::Release { code, machine, id },
                11..=12 => Asked::Precheck { code, machine },
                13..=15 if prechecked.is_some() => Asked::Activate { code, machine, host: 0 },
                _ if prechecked.is_some() => Asked::Activate { code, machine, host: 1 },
                _ => Asked::Precheck { code, machine },
            },
            (None, Some(_)) if !self.chance.one_in(10) => {
                Asked::Activate { code, machine, host: usize::from(self.chance.one_in(6)) }
            }
            _ => Asked::Precheck { code, machine },
        };
        if let Asked::Activate { host, .. } = asked {
            let other = self.book.under_way(code);
            if other
                .iter()
                .any(|one| matches!(one, Asked::Activate { machine: m, .. } if *m != machine))
            {
                self.coverage.reach(State::Raced);
            }
            if host == 1 && other.iter().any(|one| matches!(one, Asked::Release { .. })) {
                self.coverage.reach(State::ReplaceRacedRelease);
            }
        }
        if let Asked::Release { .. } = asked
            && self.book.under_way(code).iter().any(|one| matches!(one, Asked::Activate { .. }))
        {
            self.coverage.reach(State::ReplaceRacedRelease);
        }
        self.send(asked);
    }

    /// Whether a precheck token of that time is valid. The edge refuses a token that has expired or is dated in
    /// the future.
    fn is_good(&self, prechecked_at: Timestamp) -> bool {
        let now = self.clock();
        now < prechecked_at.plus(life().precheck_token) && !prechecked_at.is_ahead_of(now)
    }

    fn send(&mut self, asked: Asked) {
        let Some(server) = self.random_server() else { return };
        self.send_to(server, asked);
    }

    fn send_to(&mut self, server: usize, asked: Asked) {
        let now = self.clock();
        let machine = match &asked {
            Asked::Precheck { code, machine }
            | Asked::Activate { code, machine, .. }
            | Asked::Confirm { code, machine, .. }
            | Asked::Release { code, machine, .. } => Some((*code, *machine)),
            _ => None,
        };
        let known = machine.and_then(|(code, machine)| {
            let known = self.known.get_mut(code)?;
            let hash = known.hash;
            let of_machine = known.machines.get_mut(machine)?;
            of_machine.busy = true;
            Some((hash, of_machine.clone()))
        });
        let granted = known.as_ref().and_then(|(_, machine)| machine.granted);
        let token = match (&asked, granted) {
            // The edge checks the token first.
            (Asked::Confirm { .. }, Some((_, expires_at))) if now >= expires_at => {
                Err(Refusal::TokenInvalid)
            }
            _ => Ok(()),
        };
        let prechecked = known.as_ref().and_then(|(_, machine)| machine.prechecked_at);
        self.sessions += 1;
        let details = Details {
            now,
            code: known.as_ref().map(|(hash, _)| *hash),
            prechecked_at: prechecked.unwrap_or(now),
            token,
            session: self.sessions,
        };
        let moment = self.moment();
        let operation = self.book.invoke((self.step, moment), server, asked.clone(), now);
        self.book_operations = self.book.operations();
        self.log(|| format!("server {server} gets request {operation}: {asked:?}"));
        let Some(running) = self.sites.get(server).and_then(|site| site.running.as_ref()) else {
            return;
        };
        match send(running.handles(), &asked, &details, &self.common) {
            Ok(sent) => {
                let lost = !self.healed && self.chance.one_in(10);
                let deadline = self.now + DEADLINE;
                self.calls.push(sent.into_call(operation, server, deadline, lost));
            }
            Err(failure) => {
                self.coverage.reach(State::NoPermit);
                self.hear_for(operation, &asked, Heard::Failed(failure));
            }
        }
    }

    /// Lets callers check for their answers.
    fn listen(&mut self) {
        let mut at = 0;
        while at < self.calls.len() {
            let now = self.now;
            let Some(call) = self.calls.get_mut(at) else { return };
            let heard = match call.answered() {
                Some((heard, _)) => Some(heard),
                None if now >= call.deadline => call.abandon().map(|failure| {
                    if failure == Failure::OutcomeUnknown {
                        self.coverage.reach(State::AbandonedClaimed);
                    }
                    Heard::Failed(failure)
                }),
                None => None,
            };
            let Some(heard) = heard else {
                at += 1;
                continue;
            };
            let call = self.calls.swap_remove(at);
            self.reach(&heard);
            // The server has given a lost answer too.
            let heard = if call.lost { Heard::Nothing } else { heard };
            self.hear(call.operation, heard);
        }
    }

    fn reach(&mut self, heard: &Heard) {
        let state = match heard {
            Heard::Granted { .. } => State::Granted,
            Heard::Confirmed => State::Confirmed,
            Heard::Revoked => State::RevokedCheckIn,
            Heard::Enrolled { .. } => State::Enrolled,
            Heard::Deleted => State::Deleted,
            Heard::Refused(Refusal::CredentialUsed) => State::TicketUsed,
            Heard::Refused(Refusal::ServerRevoked(_)) => State::RevokedRegister,
            Heard::Refused(Refusal::RateLimited { .. }) => State::LimitRefused,
            Heard::Refused(Refusal::CodeMaxActivations) => State::WornOut,
            Heard::Refused(Refusal::CodeExpired) => State::Expired,
            Heard::Refused(Refusal::TokenInvalid) => State::Lapsed,
            Heard::Failed(Failure::StorageUnavailable) => State::Refused,
            _ => return,
        };
        self.coverage.reach(state);
    }

    fn hear(&mut self, operation: usize, heard: Heard) {
        let Some(asked) = self.book.asked(operation) else { return };
        self.hear_for(operation, &asked, heard);
    }

    fn hear_for(&mut self, operation: usize, asked: &Asked, heard: Heard) {
        let now = self.clock();
        self.check_lifetime(operation, asked, &heard);
        self.log(|| format!("request {operation} is answered with {heard:?}"));
        match asked {
            Asked::Issue => {
                if let Heard::Issued { code, expires_at } = heard {
                    let machines = [Machine::default(), Machine::default()];
                    self.known.push(Known { hash: code, expires_at, machines });
                }
            }
            Asked::Precheck { code, machine }
            | Asked::Activate { code, machine, .. }
            | Asked::Confirm { code, machine, .. }
            | Asked::Release { code, machine, .. } => {
                self.learn(*code, *machine, asked, &heard, now)
            }
            _ => {}
        }
        let moment = self.moment();
        self.book.hear((self.step, moment), operation, heard, now);
    }

    /// Checks that a code dated in the future cannot be used.
    fn check_lifetime(&mut self, operation: usize, asked: &Asked, heard: &Heard) {
        let code = match (asked, heard) {
            (Asked::Precheck { code, .. }, Heard::Ready)
            | (Asked::Activate { code, .. }, Heard::Granted { .. }) => *code,
            _ => return,
        };
        let at = self.book.at(operation);
        let longest = at.plus(life().code + iptunnel_domain::time::SLACK);
        if self.known.get(code).is_some_and(|known| known.expires_at > longest) {
            self.book.found(self.step, Some(operation), "a code has more than its lifetime left");
        }
    }

    /// Updates what the machine knows, as an installer does.
    fn learn(&mut self, code: usize, machine: usize, asked: &Asked, heard: &Heard, now: Timestamp) {
        let granted_before = self.book.was_granted(code);
        let impatient = self.chance.one_in(2);
        let Some(known) = self.known.get_mut(code) else { return };
        let Some(of_machine) = known.machines.get_mut(machine) else { return };
        of_machine.busy = false;
        match (asked, heard) {
            (Asked::Precheck { .. }, Heard::Ready) => of_machine.prechecked_at = Some(now),
            (Asked::Activate { host, .. }, Heard::Granted { id, expires_at, .. }) => {
                if of_machine.granted.is_some_and(|(before, _)| before == *id) {
                    self.coverage.reach(State::Repeated);
                } else if *host == 1 && of_machine.granted.is_some() {
                    self.coverage.reach(State::Replaced);
                }
                if granted_before.is_some_and(|before| before != machine) {
                    self.coverage.reach(State::GivenToAnother);
                }
                of_machine.granted = Some((*id, *expires_at));
            }
            (Asked::Confirm { .. }, Heard::Confirmed) => of_machine.done = true,
            (Asked::Confirm { .. }, Heard::Refused(_))
            | (Asked::Release { .. }, Heard::Refused(_)) => {
                of_machine.granted = None;
            }
            (Asked::Release { .. }, Heard::Released { .. }) => of_machine.granted = None,
            // The installer exits and forgets. After an impatient restart, the other run may know more.
            (_, Heard::Nothing) if impatient => {}
            (_, Heard::Nothing) => {
                of_machine.granted = None;
                of_machine.prechecked_at = None;
            }
            _ => {}
        }
    }

    /// Ends all faults, and waits until all requests have ended.
    fn heal(&mut self) {
        self.healed = true;
        if self.skew > 0 {
            self.set_clocks();
        }
        if let Backend::Database(database) = &self.backend {
            database.set_reachable(true);
            database.rejoin();
            database.keep_connections();
        }
        if let Backend::Disk(disk) = &mut self.backend {
            disk.rows.fault(DiskFault::None);
            disk.journal.fault(DiskFault::None);
            disk.faulty = false;
        }
        for site in &mut self.sites {
            (site.paused_until, site.slow_for) = (0, 0);
        }
        self.drain();
        let left = self.book.unanswered();
        if let Some(operation) = left.first() {
            self.book.found(self.step, Some(*operation), "a request was never answered");
        }
    }

    /// Runs all servers until nothing waits any more.
    fn drain(&mut self) {
        for _ in 0..6 {
            for server in 0..self.sites.len() {
                if self.sites.get(server).is_some_and(|site| site.running.is_none()) {
                    self.start(server);
                }
                self.follow_on(server);
                self.now += 1_100;
                let now = self.clock();
                if let Some(running) = self.sites.get_mut(server).and_then(|s| s.running.as_mut()) {
                    running.settle(&mut self.ready, true);
                    if running.stepped.is_refusing() {
                        running.stepped.step(Step::Probe);
                    }
                    running.handles().tick(now);
                    running.settle(&mut self.ready, true);
                }
                if let Backend::Disk(disk) = &self.backend
                    && let Some(store) = &disk.store
                {
                    store.inner().checkpoint();
                }
                self.restart_if_failed(server);
            }
            self.step += 1;
            self.listen();
            self.note_epoch();
        }
    }

    /// Sends a request and waits for its answer.
    fn ask(&mut self, server: usize, asked: Asked) -> Option<Heard> {
        let mut heard = None;
        // The first commit on a promoted standby is refused, so the caller asks again.
        for _ in 0..2 {
            let operation = self.book.operations();
            self.send_to(server, asked.clone());
            self.drain();
            heard = self.book.heard(operation);
            if heard != Some(Heard::Failed(Failure::StorageUnavailable)) {
                break;
            }
        }
        heard
    }

    /// Checks after all faults that no code is lost: the holder of a code gets its activation again, and
    /// a code without a holder can be activated.
    fn recover(&mut self) {
        for code in 0..self.known.len() {
            let server = self.chance.below(self.sites.len());
            let now = self.clock();
            if let Some((machine, id, host)) = self.book.holder(code, now) {
                self.give_token(code, machine);
                let heard = self.ask(server, Asked::Activate { code, machine, host });
                let good = match &heard {
                    Some(Heard::Granted { id: again, .. }) => *again == id,
                    // A limit may refuse this only if repeats are charged.
                    Some(Heard::Refused(Refusal::RateLimited { .. })) => !REPEATS_ARE_FREE,
                    _ => false,
                };
                if !good && self.book.violations.is_empty() {
                    let what =
                        format!("machine {machine} does not get {id:?} again, but {heard:?}");
                    let last = self.book.operations() - 1;
                    self.book.found(self.step, Some(last), &what);
                }
                continue;
            }
            let Some(known) = self.known.get(code) else { continue };
            let untouched = self.book.perhaps_taken(code).is_empty();
            if untouched && now.plus(60) < known.expires_at && !self.book.fenced() {
                self.give_token(code, 9);
                let heard = self.ask(server, Asked::Activate { code, machine: 0, host: 0 });
                let limited = matches!(heard, Some(Heard::Refused(Refusal::RateLimited { .. })));
                if !limited && !matches!(heard, Some(Heard::Granted { .. })) {
                    let last = self.book.operations() - 1;
                    let what = format!("an unused code cannot be activated: {heard:?}");
                    self.book.found(self.step, Some(last), &what);
                }
            }
        }
        for agent in 0..AGENTS {
            for server in 0..self.sites.len() {
                if self.book.is_revoked(agent) {
                    let heard = self.ask(server, Asked::CheckIn { agent });
                    if heard != Some(Heard::Revoked) {
                        let last = self.book.operations() - 1;
                        let what = format!("a revoked server is answered with {heard:?}");
                        self.book.found(self.step, Some(last), &what);
                    }
                }
            }
        }
    }

    /// Gives a machine a fresh precheck token. Machine 9 stands for all machines.
    fn give_token(&mut self, code: usize, machine: usize) {
        let now = self.clock();
        if let Some(known) = self.known.get_mut(code) {
            for (number, of_machine) in known.machines.iter_mut().enumerate() {
                if number == machine || machine == 9 {
                    of_machine.prechecked_at = Some(now);
                }
            }
        }
    }

    /// Checks that one order of the requests explains all answers about a code. Codes that an epoch made
    /// void are left out, because the contract does not cover them.
    fn find_one_order(&mut self) {
        if self.book.fenced() {
            return;
        }
        let life = life();
        let seconds = |seconds: u64| seconds * 1_000_000;
        let lifetimes = iptunnel_checker::Lifetimes {
            code: seconds(life.code),
            precheck_token: seconds(life.precheck_token),
            install_token: seconds(life.install_token),
            restored: seconds(life.restored),
            max_lifetime: seconds(life.max_lifetime),
            tolerance: seconds(2),
        };
        let rules = Rules {
            max_activations: life.max_activations,
            lifetimes: Some(lifetimes),
            revocation_reaches: 0,
            finished: false,
        };
        for violation in iptunnel_checker::check(&self.book.history(), &rules) {
            if violation.broken == Broken::Undecided {
                self.coverage.reach(State::OrderUndecided);
            } else {
                self.book.found(self.step, None, &violation.to_string());
            }
        }
        self.coverage.reach(State::OrderFound);
    }

    /// Checks that the store is consistent and holds everything that was answered.
    fn check_store(&mut self) {
        if self.kind == Kind::Alone {
            // Reads the store from the disk, not from a process that may have had disk faults.
            self.kill(0, End::Killed);
            self.start(0);
        }
        let mut found = Vec::new();
        let (codes, activations, events) = match &self.backend {
            Backend::Database(database) => {
                let tables = database.tables();
                let events: Vec<Action> =
                    database.events_from(0).into_iter().map(|(_, event)| event.action).collect();
                let codes: Vec<_> = tables.codes.into_values().collect();
                (codes, tables.activations.into_values().collect::<Vec<_>>(), events)
            }
            Backend::Disk(disk) => {
                let Some(store) = &disk.store else { return };
                let mut events = Vec::new();
                let mut head = iptunnel_domain::audit::Head::default();
                let mut whole = true;
                let read = store.audit_from(1, &mut |entry| {
                    whole &= entry.head.entries == head.entries + 1;
                    head = entry.head;
                    events.push(entry.event.action);
                    true
                });
                if read.is_err() || !whole || store.audit_head().ok() != Some(head) {
                    found.push("the audit log is incomplete".to_owned());
                }
                let codes = store.oldest_codes(None, 1000).unwrap_or_default();
                let activations = store.oldest_activations(None, 1000).unwrap_or_default();
                (codes, activations, events)
            }
        };
        for code in &codes {
            let of_code = || activations.iter().filter(|one| one.code == code.hash);
            let open = of_code().filter(|one| one.state == ActivationState::Open).count();
            let confirmed =
                of_code().filter(|one| matches!(one.state, ActivationState::Confirmed(_))).count();
            if open + confirmed > 1 {
                found.push(format!("{} activations hold code {:?}", open + confirmed, code.number));
            }
            let holder = of_code().find(|one| !matches!(one.state, ActivationState::Released(_)));
            let consumed_by = match code.state {
                iptunnel_domain::code::CodeState::Issued => None,
                iptunnel_domain::code::CodeState::Consumed(by) => Some(by),
            };
            if holder.map(|one| one.at) != consumed_by {
                let all: Vec<_> = of_code().collect();
                found.push(format!("{code:?} and its activations disagree: {all:?}"));
            }
        }
        let opened = events
            .iter()
            .filter(|action| matches!(action, Action::Activated | Action::Replaced))
            .count();
        if opened < activations.len() {
            found.push("an activation is not in the audit log".to_owned());
        }
        // The last charges and returned charges may be lost with a primary.
        if let Backend::Database(database) = &self.backend
            && database.timeline() == 1
            && !self.book.fenced()
        {
            for machine in 0..2 {
                let used = database.used(&activates_of(machine), self.clock());
                let most = self.book.most_activates_charged(machine);
                if used > most {
                    let what = format!(
                        "machine {machine} was charged {used} times, but at most {most} are right"
                    );
                    found.push(what);
                }
            }
        }
        let granted: Vec<ActivationId> = self.book.granted_for_sure();
        for id in granted {
            if !activations.iter().any(|one| one.at.id == id) {
                found.push(format!("{id:?} was granted, but it is not in the store"));
            }
        }
        for what in found {
            self.book.found(self.step, None, &what);
        }
    }
}

/// Whether a machine gets its open activation again though a limit is reached.
const REPEATS_ARE_FREE: bool = true;
