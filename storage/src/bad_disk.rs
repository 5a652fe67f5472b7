//! A disk for tests that forgets what was not synced and fails as it is told, and what the tests of
//! both stores put on it and look for afterwards.

use crate::redb_store::samples;
use crate::{Change, CheckIn, Counter, CounterRow, Disk, OpenDisk, Setting, Store, Write};
use iptunnel_domain::Timestamp;
use iptunnel_domain::limit::Policy;
use iptunnel_domain::server::ServerNumber;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// A disk writes whole sectors, in what order it likes.
const SECTOR: usize = 512;

/// What a [`BadDisk`] does wrong, from now on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    None,
    Full,
    FailsWrites,
    FailsSyncs,
}

/// How a process ends that has no time to put things in order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Killed,
    PowerLost,
    PowerLostWhileWriting,
}

#[derive(Clone, Debug)]
struct Platter {
    /// What the operating system shows, and what would survive a loss of power.
    seen: Vec<u8>,
    synced: Vec<u8>,
    /// What was written since, in its order.
    unsynced: Vec<(usize, Vec<u8>)>,
    /// The least it held since.
    shrunk_to: usize,
    fault: Fault,
    /// Whose disk it is: to processes that had it before it is gone.
    owner: u64,
}

/// A disk in memory. Its clones are the same disk.
#[derive(Clone, Debug)]
pub(crate) struct BadDisk {
    platter: Arc<Mutex<Platter>>,
    /// How many changes the process makes before it ends; `None` where it goes on. Disks of one
    /// process share it.
    lives_for: Arc<Mutex<Option<u64>>>,
}

impl BadDisk {
    pub(crate) fn new() -> Self {
        let platter = Platter {
            seen: Vec::new(),
            synced: Vec::new(),
            unsynced: Vec::new(),
            shrunk_to: 0,
            fault: Fault::None,
            owner: 0,
        };
        Self { platter: Arc::new(Mutex::new(platter)), lives_for: Arc::default() }
    }

    /// A second disk of the same process.
    pub(crate) fn sibling(&self) -> Self {
        Self { lives_for: Arc::clone(&self.lives_for), ..Self::new() }
    }

    /// Another disk, of another process, with the same bytes on it.
    pub(crate) fn copy(&self) -> Self {
        Self { platter: Arc::new(Mutex::new(self.lock().clone())), lives_for: Arc::default() }
    }

    /// As [`Self::copy`], of the process that has `sibling`.
    pub(crate) fn copy_beside(&self, sibling: &Self) -> Self {
        Self { lives_for: Arc::clone(&sibling.lives_for), ..self.copy() }
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().unwrap()
    }

    /// Hands the disk to the process that lives now.
    pub(crate) fn opener(&self) -> OpenDisk {
        let opened = Opened { disk: self.clone(), owner: self.lock().owner };
        Box::new(move || Ok(Box::new(opened.clone())))
    }

    /// The disk in the hands of the process that lives now.
    pub(crate) fn opened(&self) -> Box<dyn Disk> {
        (self.opener())().unwrap()
    }

    /// Lets the process end after so many changes to its disks.
    pub(crate) fn dies_after(&self, changes: u64) {
        *self.lives_for.lock().unwrap() = Some(changes);
    }

    /// Whether the process had ended; another one lives.
    pub(crate) fn revive(&self, end: End) -> bool {
        self.end(end);
        self.lives_for.lock().unwrap().take() == Some(0)
    }

    /// What the process leaves behind: nothing that it does from now on matters.
    pub(crate) fn end(&self, end: End) {
        let mut platter = self.lock();
        platter.owner += 1;
        platter.fault = Fault::None;
        match end {
            End::Killed => {}
            End::PowerLost => platter.lose_power(),
            End::PowerLostWhileWriting => platter.lose_power_while_writing(),
        }
    }

    pub(crate) fn lose_power(&self) {
        self.end(End::PowerLost);
    }

    pub(crate) fn fault(&self, fault: Fault) {
        self.lock().fault = fault;
    }

    fn change(&self) -> io::Result<()> {
        match &mut *self.lives_for.lock().unwrap() {
            None => Ok(()),
            Some(0) => Err(io::Error::other("the disk is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }
}

impl Platter {
    fn lose_power(&mut self) {
        self.seen = self.synced.clone();
        self.has_synced();
    }

    /// Of what was not synced every second sector has arrived.
    fn lose_power_while_writing(&mut self) {
        let mut survived = std::mem::take(&mut self.synced);
        survived.resize(self.seen.len().max(survived.len()), 0);
        let mut arrives = false;
        for (at, data) in &self.unsynced {
            let (mut at, mut data) = (*at, data.as_slice());
            while !data.is_empty() {
                let (sector, rest) = data.split_at(data.len().min(SECTOR - at % SECTOR));
                arrives = !arrives;
                if arrives {
                    survived[at..at + sector.len()].copy_from_slice(sector);
                }
                (at, data) = (at + sector.len(), rest);
            }
        }
        (self.seen, self.synced) = (survived.clone(), survived);
        self.has_synced();
    }

    fn sync(&mut self) {
        self.synced.truncate(self.shrunk_to);
        self.synced.resize(self.seen.len(), 0);
        for (at, data) in &self.unsynced {
            let end = (at + data.len()).min(self.seen.len());
            if *at < end {
                self.synced[*at..end].copy_from_slice(&self.seen[*at..end]);
            }
        }
        self.has_synced();
    }

    fn has_synced(&mut self) {
        self.unsynced.clear();
        self.shrunk_to = self.seen.len();
    }
}

/// A disk in the hands of one process.
#[derive(Clone, Debug)]
struct Opened {
    disk: BadDisk,
    owner: u64,
}

impl Opened {
    fn lock(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let platter = self.disk.lock();
        if platter.owner == self.owner {
            Ok(platter)
        } else {
            Err(io::Error::other("this process has ended"))
        }
    }

    fn change(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let platter = self.lock()?;
        self.disk.change()?;
        Ok(platter)
    }
}

impl Disk for Opened {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock()?.seen.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.lock()?;
        let from = offset as usize;
        out.copy_from_slice(&platter.seen[from..from + out.len()]);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.change()?;
        if platter.fault == Fault::Full && len > platter.seen.len() as u64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        platter.seen.resize(len as usize, 0);
        platter.shrunk_to = platter.shrunk_to.min(len as usize);
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.change()?;
        match platter.fault {
            Fault::FailsWrites => return Err(io::Error::other("the disk fails writes")),
            // Old blocks can be overwritten, the header among them; new ones cannot be had.
            Fault::Full if offset > 0 => return Err(io::ErrorKind::StorageFull.into()),
            _ => {}
        }
        let from = offset as usize;
        platter.seen[from..from + data.len()].copy_from_slice(data);
        platter.unsynced.push((from, data.to_vec()));
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        let mut platter = self.change()?;
        if platter.fault == Fault::FailsSyncs {
            return Err(io::Error::other("the disk fails syncs"));
        }
        platter.sync();
        Ok(())
    }
}

pub(crate) fn one(write: Write) -> Change {
    Change(vec![write])
}

/// A second version of every second code and an activation for it, as one commit.
pub(crate) fn consumption(codes: u64) -> Vec<Change> {
    let consume = |n| {
        Change(vec![
            Write::Activation(samples::activation(n, 1, 0)),
            Write::Code(samples::code(n, 2, 1)),
        ])
    };
    (1..=codes).step_by(2).map(consume).collect()
}

/// How many of the `codes` are consumed; each is there, and is with its activation or without.
pub(crate) fn consumed(store: &dyn Store, codes: u64, at: &str) -> usize {
    let is_consumed = |n: &u64| {
        let code = store.code(samples::code(*n, 1, 0).hash).unwrap();
        let code = code.unwrap_or_else(|| panic!("code {n} is lost, {at}"));
        let activation = store.activation(samples::at(*n).id).unwrap();
        assert_eq!(code.version == 2, activation.is_some(), "code {n} is half consumed, {at}");
        activation.is_some()
    };
    (1..=codes).filter(is_consumed).count()
}

/// One of everything, as format 1 keeps it.
pub(crate) fn everything() -> Vec<Change> {
    let mut changes = everything_before_format_3();
    let setting = Setting { key: "limits.issue_per_ip_hour".into(), value: Some("7".into()) };
    changes.push(one(Write::Audit(Arc::new(samples::event(1)))));
    changes.push(Change(vec![Write::Audit(Arc::new(samples::event(2))), Write::Setting(setting)]));
    changes.push(one(Write::Attempt(samples::event(1))));
    changes
}

/// Ditto, before there were an audit log, attempts and settings.
pub(crate) fn everything_before_format_3() -> Vec<Change> {
    let counter = Counter {
        key: 7,
        policy: Policy::ActivatePerMachineDay,
        used: 3,
        window_end: Timestamp(86_400),
    };
    let seen = CheckIn { server: ServerNumber(1), at: Timestamp(5000) };
    let mut changes: Vec<Change> = Vec::new();
    for (number, state) in [(1, 0), (2, 1), (3, 2)] {
        changes.push(one(Write::Code(samples::code(number, 1, state))));
        changes.push(one(Write::Activation(samples::activation(number, 1, state))));
    }
    changes.extend([0, 1].map(|number| one(Write::Server(samples::server(number, 1)))));
    changes.push(one(Write::CheckIns(vec![seen])));
    changes.push(one(Write::Counters(vec![CounterRow { slot: 9, counter: Some(counter) }])));
    changes
}

/// All that a store holds of [`everything`].
pub(crate) fn contents(store: &dyn Store) -> String {
    let mut counters = Vec::new();
    store.each_counter(&mut |slot, counter| counters.push((slot, counter))).unwrap();
    let codes: Vec<_> =
        (1..=3).map(|n| store.code(samples::code(n, 1, 0).hash).unwrap().unwrap()).collect();
    let activations: Vec<_> =
        (1..=3).map(|n| store.activation(samples::at(n).id).unwrap().unwrap()).collect();
    let servers = store.servers_before(None, 10).unwrap();
    let mut log = Vec::new();
    let each = &mut |entry| {
        log.push(entry);
        true
    };
    store.audit_from(1, each).unwrap();
    let attempts = store.attempts(samples::code(1, 1, 0).hash).unwrap();
    let settings = store.settings().unwrap();
    format!(
        "{codes:#?}{activations:#?}{servers:#?}{counters:#?}{:#?}{log:#?}{attempts:#?}{settings:#?}",
        store.frontier().unwrap()
    )
}
