//! A disk in memory for tests and simulations: it forgets what was not synced, and fails on
//! request.

use crate::{Disk, OpenDisk};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The sector size: a disk writes whole sectors, in any order.
const SECTOR: usize = 512;

/// The fault of a [`BadDisk`] from now on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// No fault.
    None,
    /// It has no space for new blocks; old ones can be overwritten.
    Full,
    /// Every write fails except one at the beginning.
    FailsData,
    /// Every write fails and changes nothing.
    FailsWrites,
    /// Every sync fails, and what was written since the last one stays unsynced.
    FailsSyncs,
}

/// How a process ends abruptly.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// By a signal: all writes remain, synced or not.
    Killed,
    /// By a loss of power: writes that were not synced are lost.
    PowerLost,
    /// By a loss of power while the disk was writing: every second sector of the unsynced writes
    /// remains.
    PowerLostWhileWriting,
}

#[derive(Clone, Debug)]
struct Platter {
    /// The content that the operating system shows, and the content that survives a loss of power.
    seen: Vec<u8>,
    synced: Vec<u8>,
    /// The writes since the last sync, in their order.
    unsynced: Vec<(usize, Vec<u8>)>,
    /// The smallest length since the last sync.
    shrunk_to: usize,
    fault: Fault,
    /// The process that owns the disk. For earlier processes it is gone.
    owner: u64,
}

/// What the disks of one process share.
#[derive(Debug, Default)]
struct Process {
    /// How many changes the process makes before it ends; `None` for no limit.
    lives_for: Option<u64>,
    /// Syncs wait while this is set.
    blocked: bool,
    /// The syncs that wait.
    waiting: usize,
    /// The syncs that succeeded.
    syncs: u64,
}

/// A disk in memory. Its clones are the same disk.
#[derive(Clone, Debug)]
pub struct BadDisk {
    platter: Arc<Mutex<Platter>>,
    process: Arc<(Mutex<Process>, Condvar)>,
}

impl BadDisk {
    /// Makes an empty disk of a new process.
    #[must_use]
    pub fn new() -> Self {
        let platter = Platter {
            seen: Vec::new(),
            synced: Vec::new(),
            unsynced: Vec::new(),
            shrunk_to: 0,
            fault: Fault::None,
            owner: 0,
        };
        Self { platter: Arc::new(Mutex::new(platter)), process: Arc::default() }
    }

    /// Makes a second disk of the same process.
    #[must_use]
    pub fn sibling(&self) -> Self {
        Self { process: Arc::clone(&self.process), ..Self::new() }
    }

    /// Makes another disk, of another process, with the same content.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self { platter: Arc::new(Mutex::new(self.lock().clone())), process: Arc::default() }
    }

    /// Makes a copy as [`Self::copy`] does, of the process that has `sibling`.
    #[must_use]
    pub fn copy_beside(&self, sibling: &Self) -> Self {
        Self { process: Arc::clone(&sibling.process), ..self.copy() }
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns an opener that gives the disk to the process that lives now.
    #[must_use]
    pub fn opener(&self) -> OpenDisk {
        let opened = Opened { disk: self.clone(), owner: self.lock().owner };
        Box::new(move || Ok(Box::new(opened.clone())))
    }

    /// Returns the disk as the process that lives now sees it.
    #[must_use]
    pub fn opened(&self) -> Box<dyn Disk> {
        Box::new(Opened { disk: self.clone(), owner: self.lock().owner })
    }

    /// Ends the process after so many changes to its disks.
    pub fn dies_after(&self, changes: u64) {
        self.process().lives_for = Some(changes);
    }

    /// Takes back [`Self::dies_after`].
    pub fn lives_on(&self) {
        self.process().lives_for = None;
    }

    /// Lets the syncs of the process wait until [`Self::release`].
    pub fn block(&self) {
        self.process().blocked = true;
    }

    /// Lets the syncs go on.
    pub fn release(&self) {
        self.process().blocked = false;
        self.process.1.notify_all();
    }

    /// Returns whether a sync waits for [`Self::release`].
    #[must_use]
    pub fn is_held_up(&self) -> bool {
        self.process().waiting > 0
    }

    /// Returns how many syncs of the process have succeeded.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.process().syncs
    }

    /// Returns whether the process had ended, and starts another one.
    pub fn revive(&self, end: End) -> bool {
        self.end(end);
        self.process().lives_for.take() == Some(0)
    }

    /// Ends the process: nothing that it does from now on has an effect.
    pub fn end(&self, end: End) {
        let mut platter = self.lock();
        platter.owner += 1;
        platter.fault = Fault::None;
        match end {
            End::Killed => {}
            End::PowerLost => platter.lose_power(),
            End::PowerLostWhileWriting => platter.lose_power_while_writing(),
        }
        drop(platter);
        self.process.1.notify_all();
    }

    /// Ends the process by a loss of power.
    pub fn lose_power(&self) {
        self.end(End::PowerLost);
    }

    /// Sets the fault from now on.
    pub fn fault(&self, fault: Fault) {
        self.lock().fault = fault;
    }

    fn change(&self) -> io::Result<()> {
        match &mut self.process().lives_for {
            None => Ok(()),
            Some(0) => Err(io::Error::other("the disk is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }
}

impl Default for BadDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl Platter {
    fn lose_power(&mut self) {
        self.seen = self.synced.clone();
        self.has_synced();
    }

    /// Keeps every second sector of the unsynced writes.
    fn lose_power_while_writing(&mut self) {
        let mut survived = std::mem::take(&mut self.synced);
        survived.resize(self.seen.len().max(survived.len()), 0);
        let mut arrives = false;
        for (at, data) in &self.unsynced {
            let (mut at, mut data) = (*at, data.as_slice());
            while !data.is_empty() {
                let (sector, rest) = data.split_at(data.len().min(SECTOR - at % SECTOR));
                arrives = !arrives;
                if arrives && let Some(place) = survived.get_mut(at..at + sector.len()) {
                    place.copy_from_slice(sector);
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
            let written = *at..(at + data.len()).min(self.seen.len());
            if let (Some(place), Some(seen)) =
                (self.synced.get_mut(written.clone()), self.seen.get(written))
            {
                place.copy_from_slice(seen);
            }
        }
        self.has_synced();
    }

    fn has_synced(&mut self) {
        self.unsynced.clear();
        self.shrunk_to = self.seen.len();
    }
}

/// A disk as one process sees it.
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
        drop(self.lock()?);
        self.disk.change()?;
        self.lock()
    }

    /// Waits while syncs are blocked and the process lives.
    fn wait(&self) {
        let mut process = self.disk.process();
        process.waiting += 1;
        let blocked = |process: &mut Process| process.blocked && self.lock().is_ok();
        let waited = self.disk.process.1.wait_while(process, blocked);
        waited.unwrap_or_else(PoisonError::into_inner).waiting -= 1;
    }
}

impl Disk for Opened {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock()?.seen.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.lock()?;
        let from = offset as usize;
        let bytes = platter.seen.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
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
            // Old blocks, the header among them, can be overwritten; new ones cannot be allocated.
            Fault::Full if offset > 0 => return Err(io::ErrorKind::StorageFull.into()),
            Fault::FailsData if offset > 0 => {
                return Err(io::Error::other("the disk fails writes of data"));
            }
            _ => {}
        }
        let from = offset as usize;
        let end = from + data.len();
        // Like a file, it grows when written beyond its end.
        if platter.seen.len() < end {
            platter.seen.resize(end, 0);
        }
        if let Some(place) = platter.seen.get_mut(from..end) {
            place.copy_from_slice(data);
        }
        platter.unsynced.push((from, data.to_vec()));
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        drop(self.change()?);
        self.wait();
        let mut platter = self.lock()?;
        if platter.fault == Fault::FailsSyncs {
            return Err(io::Error::other("the disk fails syncs"));
        }
        platter.sync();
        drop(platter);
        self.disk.process().syncs += 1;
        Ok(())
    }
}
