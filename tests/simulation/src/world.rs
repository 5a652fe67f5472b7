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
use iptunnel_domain::activation::{ActivationId, ActivationState};
use iptunnel_domain::audit::Action;
use iptunnel_domain::limit::{Limits, Policy};
use iptunnel_domain::lookup::LookupKey;
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

/// The middle of a day, so that no window ends within a run.
const START: u64 = 1_900_000_000;
/// Milliseconds that a request may take.
const DEADLINE: u64 = 10_000;
/// Codes of one run.
const CODES: usize = 3;
/// Agents of one run.
const AGENTS: usize = 3;

/// Runs one world from one seed.
pub fn run(seed: u64, kind: Kind, planted: &Planted, traced: bool) -> Outcome {
    let mut world = World::new(seed, kind, planted, traced);
    let steps = world.chance.between(1_000, 4_000);
    for _ in 0..steps {
        world.go_on();
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
        world.look_inside();
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
enum Beneath {
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
    trouble: bool,
}

struct World {
    kind: Kind,
    chance: Chance,
    common: Common,
    beneath: Beneath,
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
    /// How far the clocks of all machines are ahead, in seconds.
    skew: u64,
    ready: Vec<Step>,
    sessions: usize,
    issued: usize,
    epoch: u64,
    /// No more faults are injected.
    healed: bool,
    /// The backup in whose place the server goes on has been noticed, or there was none.
    noticed: bool,
    /// The step at which the primary is lost that has just shown changes which no standby has.
    lost_at: Option<u64>,
    /// How rare faults are.
    calm: u64,
    /// Callers do not wait, change their minds, and ways to the store are often slow.
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
        let beneath = match kind {
            Kind::Alone => {
                let rows = BadDisk::new();
                let journal = rows.sibling();
                let disk = Disk { rows, journal, backup: None, store: None, trouble: false };
                Beneath::Disk(Box::new(disk))
            }
            Kind::Shared => {
                let seed = Chance::new(seed ^ 0xDA7A);
                Beneath::Database(Database::new(Standby::Synchronous, seed, planted.clone()))
            }
            Kind::Asynchronous => {
                let seed = Chance::new(seed ^ 0xDA7A);
                Beneath::Database(Database::new(Standby::Asynchronous, seed, planted.clone()))
            }
        };
        let mut world = Self {
            kind,
            chance,
            common,
            beneath,
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

    fn tell(&mut self, words: impl FnOnce() -> String) {
        if self.traced {
            let line = format!("{:>5} {:>9.3}s {}", self.step, self.now as f64 / 1000.0, words());
            self.trace.push(line);
        }
    }

    /// Takes one step.
    fn go_on(&mut self) {
        self.step += 1;
        self.now += match self.chance.below(500) {
            0..=489 => self.chance.between(0, 3),
            490..=497 => self.chance.between(10, 300),
            498 => self.chance.between(1_000, 12_000),
            // Now and then long enough for long lifetimes to end.
            _ => self.chance.between(60_000, 400_000) * u64::from(self.chance.one_in(5)),
        };
        if self.lost_at.is_some_and(|at| at <= self.step)
            && let Beneath::Database(database) = &self.beneath
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
            _ => self.trouble(),
        }
        self.listen();
        self.note_epoch();
    }

    fn note_epoch(&mut self) {
        let Beneath::Database(database) = &self.beneath else { return };
        let epoch = database.epoch();
        self.coverage.add(&database.coverage());
        let told = database.trace();
        for words in told {
            self.tell(|| words);
        }
        // Behind a failover it may be an earlier one.
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
            // Its way to the store is slow for a while, and all else goes on.
            site.slow_for = self.chance.between(20, 400);
        }
        site.slow_for = site.slow_for.saturating_sub(1);
        let commits = site.slow_for == 0;
        let Some(running) = &mut site.running else { return };
        let step = running.step(&mut self.chance, &mut self.ready, commits);
        let queued = running.stepped.queued();
        if let Some(step) = step {
            self.tell(|| format!("server {server}: {step:?}"));
        }
        // Each request causes a few messages, each server a few of its own.
        if queued > 20 * self.common.permits {
            self.book.found(self.step, None, "queues grow beyond what permits allow");
        }
        self.end_where_it_cannot_go_on(server);
    }

    /// Ends a server that cannot continue. The service manager restarts it.
    fn end_where_it_cannot_go_on(&mut self, server: usize) {
        let failed = self.sites.get(server).and_then(|site| site.running.as_ref());
        if failed.is_some_and(|running| running.health.has_failed()) {
            self.tell(|| format!("server {server} cannot go on"));
            self.kill(server, End::Killed);
            self.start(server);
        }
    }

    /// The clock ticks on a server, its mark is written, check-ins and rows go on their way.
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
        if let Beneath::Disk(disk) = &self.beneath
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
        let Beneath::Database(database) = &self.beneath else { return };
        let database = database.clone();
        let Some(running) = self.sites.get_mut(server).and_then(|site| site.running.as_mut())
        else {
            return;
        };
        // A tail may be gone: the log is followed from where it is still the same.
        running.told = running.told.min(database.shortest_since(running.timeline));
        running.timeline = database.timeline();
        let news = database.events_from(running.told);
        running.told += news.len();
        for (_, event) in &news {
            running.handles().heard(event);
        }
        let held = running.store.watermark().and_then(|mark| running.store.contains(&mark).ok());
        if held == Some(false) {
            // What an idle server does that finds the database to be an earlier one.
            let _ = running.store.commit(&[]);
        }
        if database.epoch() > running.epoch {
            running.health.fail("a new epoch has begun");
        }
        self.end_where_it_cannot_go_on(server);
    }

    fn start(&mut self, server: usize) {
        let now = self.clock();
        let store: Arc<dyn Store> = match &mut self.beneath {
            Beneath::Database(database) => match database.open() {
                Ok(connection) => {
                    Arc::new(Layer::<Connection>::new(connection, self.common.planted.clone()))
                }
                Err(_) => return,
            },
            Beneath::Disk(disk) => {
                let disks = Disks { rows: disk.rows.opener(), journal: disk.journal.opener() };
                match EmbeddedStore::open_stepped(disks) {
                    Ok(store) => {
                        let store = Arc::new(Layer::new(store, self.common.planted.clone()));
                        disk.store = Some(Arc::clone(&store));
                        store
                    }
                    Err(error) => {
                        let trouble = disk.trouble;
                        self.tell(|| format!("the store cannot be opened: {error}"));
                        if !trouble {
                            let what = format!("the store cannot be opened: {error}");
                            self.book.found(self.step, None, &what);
                        }
                        return;
                    }
                }
            }
        };
        let (told, timeline) = match &self.beneath {
            Beneath::Database(database) => (database.events(), database.timeline()),
            Beneath::Disk(_) => (0, 0),
        };
        let Some(site) = self.sites.get_mut(server) else { return };
        let started = site.start(store, &self.common, now, (told, timeline), &mut self.chance);
        match started {
            Ok(fenced) => {
                self.tell(|| format!("server {server} starts, fenced: {fenced}"));
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
            Err(error) => self.tell(|| format!("server {server} does not start: {error}")),
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
        if let Beneath::Disk(disk) = &mut self.beneath {
            // From now on nothing that the process writes reaches a disk.
            disk.rows.end(end);
            disk.journal.end(end);
            disk.store = None;
            disk.trouble = false;
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
    fn trouble(&mut self) {
        if self.healed || !self.chance.one_in(self.calm) {
            return;
        }
        if self.chance.one_in(20) {
            return self.set_clocks();
        }
        let running = self.running();
        let server = self.chance.below(self.sites.len());
        match (self.chance.below(12), &self.beneath) {
            (0 | 1, Beneath::Database(_)) if running.contains(&server) => {
                self.tell(|| format!("server {server} is killed"));
                self.kill(server, End::Killed);
            }
            (2 | 3, Beneath::Database(_)) => {
                let pause = self.chance.between(1_000, 8_000);
                if let Some(site) = self.sites.get_mut(server) {
                    site.paused_until = self.now + pause;
                }
                self.coverage.reach(State::Paused);
                self.tell(|| format!("server {server} stands still"));
            }
            (4, Beneath::Database(database)) => {
                let database = database.clone();
                let away = self.chance.one_in(3);
                database.set_reachable(!away);
                self.tell(|| format!("the database is reachable: {}", !away));
            }
            (5 | 6, Beneath::Database(database)) => {
                database.cut_off();
                self.tell(|| "the standby is cut off".into());
            }
            (7, Beneath::Database(database)) => {
                database.restart();
                // Often it does not live for long.
                if self.chance.one_in(2) {
                    self.lost_at = Some(self.step + self.chance.between(5, 150));
                }
                self.tell(|| "the primary is started again".into());
            }
            (8, Beneath::Database(database)) => {
                database.rejoin();
                self.tell(|| "the standby is back".into());
            }
            (9, Beneath::Database(database)) => {
                let database = database.clone();
                self.fail_over(&database, None);
            }
            (10 | 11, Beneath::Database(database)) => {
                database.catch_up();
                database.set_reachable(true);
            }
            (0 | 1, Beneath::Disk(_)) => {
                self.tell(|| "the server is killed".into());
                self.kill(0, End::Killed);
            }
            (2 | 3, Beneath::Disk(_)) => {
                let end = match self.chance.below(2) {
                    0 => End::PowerLost,
                    _ => End::PowerLostWhileWriting,
                };
                self.coverage.reach(State::PowerLost);
                self.tell(|| format!("{end:?}"));
                self.kill(0, end);
            }
            (4 | 5, Beneath::Disk(_)) => self.fail_disk(DiskFault::FailsWrites, State::WriteFailed),
            (6, Beneath::Disk(_)) => self.fail_disk(DiskFault::FailsSyncs, State::SyncFailed),
            (7, Beneath::Disk(_)) => self.fail_disk(DiskFault::Full, State::WriteFailed),
            (8 | 11, Beneath::Disk(_)) => self.fail_disk(DiskFault::None, State::Granted),
            (9, Beneath::Disk(_)) => self.back_up(),
            (10, Beneath::Disk(_)) => self.restore(),
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

    /// Sets all clocks ahead, or back to the right time. Records dated in the future are void then, like
    /// those that an epoch voids.
    fn set_clocks(&mut self) {
        if self.skew > 0 {
            self.skew = 0;
            self.coverage.reach(State::ClockSetBack);
        } else {
            self.skew = self.chance.between(20, 40 * 86_400);
        }
        self.book.epoch(self.step);
        let skew = self.skew;
        self.tell(|| format!("the clocks are {skew} s ahead"));
    }

    /// The standby is promoted. Where it lacks a tail, servers notice: those that run have written down
    /// lately what others had committed, and one of them looks before any other starts. Where a server
    /// is to be lost with the primary, and another to look first, these are `chosen`.
    fn fail_over(&mut self, database: &Database, chosen: Option<(usize, usize)>) {
        if self.kind == Kind::Asynchronous {
            let running = self.running();
            let any = self.chance.pick(&running).copied();
            let Some(first) = chosen.map(|(_, first)| first).or(any) else { return };
            // A server commits every two seconds and looks at its primary then: no second promotion comes
            // before whoever stays has seen the first.
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
            self.tell(|| "the standby is promoted, and lacks a tail".into());
            // Who wrote the tail may be lost with the primary.
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
        self.tell(|| "the standby is promoted".into());
    }

    fn fail_disk(&mut self, fault: DiskFault, state: State) {
        let both = self.chance.one_in(2);
        let first = self.chance.one_in(2);
        let Beneath::Disk(disk) = &mut self.beneath else { return };
        let all = both || fault == DiskFault::None;
        if first || all {
            disk.rows.fault(fault);
        }
        if !first || all {
            disk.journal.fault(fault);
        }
        disk.trouble = fault != DiskFault::None;
        if disk.trouble {
            self.coverage.reach(state);
        }
        self.tell(|| format!("the disk: {fault:?}"));
    }

    /// Keeps a copy of the store, as a backup of a stopped server.
    fn back_up(&mut self) {
        self.kill(0, End::Killed);
        let Beneath::Disk(disk) = &mut self.beneath else { return };
        let rows = disk.rows.copy();
        let journal = disk.journal.copy_beside(&rows);
        rows.fault(DiskFault::None);
        journal.fault(DiskFault::None);
        disk.backup = Some((rows, journal));
        self.tell(|| "a backup is made".into());
        self.start(0);
    }

    /// Puts the backup in the place of the store. The mark beside it stays.
    fn restore(&mut self) {
        let Beneath::Disk(disk) = &self.beneath else { return };
        let runs = self.sites.first().is_some_and(|site| site.running.is_some());
        if disk.backup.is_none() || !runs {
            return;
        }
        // The mark is written every other second, and nobody restores a backup within that.
        let mark = self.sites.first().and_then(|site| site.running.as_ref()?.store.watermark());
        if let (Some(site), Some(mark)) = (self.sites.first_mut(), mark) {
            site.mark = Some(mark);
        }
        self.kill(0, End::Killed);
        let Beneath::Disk(disk) = &mut self.beneath else { return };
        if let Some((rows, journal)) = &disk.backup {
            let copy = rows.copy();
            disk.journal = journal.copy_beside(&copy);
            disk.rows = copy;
        }
        self.noticed = false;
        self.coverage.reach(State::Restored);
        self.tell(|| "the backup is restored".into());
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
        let asked = match self.chance.below(10) {
            0..=2 => Asked::Register { agent },
            3..=6 => Asked::CheckIn { agent },
            7 | 8 => Asked::SetRevoked { agent, revoked: true },
            _ => Asked::SetRevoked { agent, revoked: false },
        };
        self.send(asked);
    }

    fn call_of_an_installer(&mut self) {
        let (code, machine) = (self.chance.below(self.known.len()), self.chance.below(2));
        let Some(known) = self.known.get(code) else { return };
        let Some(of_machine) = known.machines.get(machine) else { return };
        // Some people do not wait, and run the installer once more beside the one that hangs.
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

    /// Whether a precheck of that time is still good for an activate: the edge refuses a token that has
    /// run out or is dated in the future.
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
            // The edge looks at the token first.
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
        self.tell(|| format!("server {server} is asked {operation}: {asked:?}"));
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

    /// Callers look for their answers.
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
            // An answer that is lost has been given all the same.
            let heard = if call.lost { Heard::Nothing } else { heard };
            self.hear(call.operation, heard);
        }
    }

    fn reach(&mut self, heard: &Heard) {
        let state = match heard {
            Heard::Granted { .. } => State::Granted,
            Heard::Confirmed => State::Confirmed,
            Heard::Revoked => State::RevokedCheckIn,
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
        self.must_not_outlive(operation, asked, &heard);
        self.tell(|| format!("{operation} hears {heard:?}"));
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

    /// A code that is dated in the future cannot be used.
    fn must_not_outlive(&mut self, operation: usize, asked: &Asked, heard: &Heard) {
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

    /// Handles an answer as an installer does.
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
            // It exits and knows no more; who did not wait may have been told by the other run.
            (_, Heard::Nothing) if impatient => {}
            (_, Heard::Nothing) => {
                of_machine.granted = None;
                of_machine.prechecked_at = None;
            }
            _ => {}
        }
    }

    /// Ends all faults, and lets all requests in flight end.
    fn heal(&mut self) {
        self.healed = true;
        if self.skew > 0 {
            self.set_clocks();
        }
        if let Beneath::Database(database) = &self.beneath {
            database.set_reachable(true);
            database.rejoin();
            database.spare();
        }
        if let Beneath::Disk(disk) = &mut self.beneath {
            disk.rows.fault(DiskFault::None);
            disk.journal.fault(DiskFault::None);
            disk.trouble = false;
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

    /// Lets everything that waits end.
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
                if let Beneath::Disk(disk) = &self.beneath
                    && let Some(store) = &disk.store
                {
                    store.inner().checkpoint();
                }
                self.end_where_it_cannot_go_on(server);
            }
            self.step += 1;
            self.listen();
            self.note_epoch();
        }
    }

    /// Asks, and waits for the answer.
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
                self.with_token(code, machine);
                let heard = self.ask(server, Asked::Activate { code, machine, host });
                let good = match &heard {
                    Some(Heard::Granted { id: again, .. }) => *again == id,
                    // The contract lets a limit be reached.
                    Some(Heard::Refused(Refusal::RateLimited { .. })) => !REPEATS_ARE_FREE,
                    _ => false,
                };
                if !good && self.book.violations.is_empty() {
                    let what = format!("machine {machine} does not get {id:?} again: {heard:?}");
                    let last = self.book.operations() - 1;
                    self.book.found(self.step, Some(last), &what);
                }
                continue;
            }
            let Some(known) = self.known.get(code) else { continue };
            let untouched = self.book.perhaps_taken(code).is_empty();
            if untouched && now.plus(60) < known.expires_at && !self.book.fenced() {
                self.with_token(code, 9);
                let heard = self.ask(server, Asked::Activate { code, machine: 0, host: 0 });
                let limited = matches!(heard, Some(Heard::Refused(Refusal::RateLimited { .. })));
                if !limited && !matches!(heard, Some(Heard::Granted { .. })) {
                    let last = self.book.operations() - 1;
                    let what = format!("a code that nobody has taken is not to be had: {heard:?}");
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
                        let what = format!("a revoked server hears {heard:?}");
                        self.book.found(self.step, Some(last), &what);
                    }
                }
            }
        }
    }

    /// Its precheck came in time.
    fn with_token(&mut self, code: usize, machine: usize) {
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
    fn look_inside(&mut self) {
        if self.kind == Kind::Alone {
            // As it is on the disk, and not in a process that may have trouble with it.
            self.kill(0, End::Killed);
            self.start(0);
        }
        let mut found = Vec::new();
        let (codes, activations, events) = match &self.beneath {
            Beneath::Database(database) => {
                let tables = database.tables();
                let events: Vec<Action> =
                    database.events_from(0).into_iter().map(|(_, event)| event.action).collect();
                let codes: Vec<_> = tables.codes.into_values().collect();
                (codes, tables.activations.into_values().collect::<Vec<_>>(), events)
            }
            Beneath::Disk(disk) => {
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
                    found.push("the audit log is not whole".to_owned());
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
                found.push(format!("{code:?} and its activations do not agree: {all:?}"));
            }
        }
        let opened = events
            .iter()
            .filter(|action| matches!(action, Action::Activated | Action::Replaced))
            .count();
        if opened < activations.len() {
            found.push("an activation is not in the audit log".to_owned());
        }
        // The last charges, given or given back, may be lost with a primary.
        if let Beneath::Database(database) = &self.beneath
            && database.timeline() == 1
            && !self.book.fenced()
        {
            for machine in 0..2 {
                let used = database.used(&activates_of(machine), self.clock());
                let most = self.book.most_activates_charged(machine);
                if used > most {
                    let what = format!("machine {machine} was charged {used} times, not {most}");
                    found.push(what);
                }
            }
        }
        let granted: Vec<ActivationId> = self.book.granted_for_sure();
        for id in granted {
            if !activations.iter().any(|one| one.at.id == id) {
                found.push(format!("{id:?} was granted and is gone"));
            }
        }
        for what in found {
            self.book.found(self.step, None, &what);
        }
    }
}

/// Whether a reached limit costs a machine its open activation.
const REPEATS_ARE_FREE: bool = true;
