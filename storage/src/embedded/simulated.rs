//! A disk in memory for tests and simulations: it forgets what was not synced, and fails as it is
//! told.

use crate::{Disk, OpenDisk};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A disk writes whole sectors, in what order it likes.
const SECTOR: usize = 512;

/// What a [`BadDisk`] does wrong, from now on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It has no room for new blocks; old ones can be overwritten.
    Full,
    /// Every write fails and changes nothing.
    FailsWrites,
    /// Every sync fails, and what was written since the last one stays unsynced.
    FailsSyncs,
}

/// How a process ends that has no time to put things in order.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// By a signal: what was written is there, synced or not.
    Killed,
    /// With the power of the machine: what was not synced is gone.
    PowerLost,
    /// Ditto, while the disk was writing: of what was not synced every second sector is there.
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
pub struct BadDisk {
    platter: Arc<Mutex<Platter>>,
    /// How many changes the process makes before it ends; `None` where it goes on. Disks of one
    /// process share it.
    lives_for: Arc<Mutex<Option<u64>>>,
}

impl BadDisk {
    /// An empty disk of a process of its own.
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
        Self { platter: Arc::new(Mutex::new(platter)), lives_for: Arc::default() }
    }

    /// A second disk of the same process.
    #[must_use]
    pub fn sibling(&self) -> Self {
        Self { lives_for: Arc::clone(&self.lives_for), ..Self::new() }
    }

    /// Another disk, of another process, with the same bytes on it.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self { platter: Arc::new(Mutex::new(self.lock().clone())), lives_for: Arc::default() }
    }

    /// As [`Self::copy`], of the process that has `sibling`.
    #[must_use]
    pub fn copy_beside(&self, sibling: &Self) -> Self {
        Self { lives_for: Arc::clone(&sibling.lives_for), ..self.copy() }
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn life(&self) -> MutexGuard<'_, Option<u64>> {
        self.lives_for.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands the disk to the process that lives now.
    #[must_use]
    pub fn opener(&self) -> OpenDisk {
        let opened = Opened { disk: self.clone(), owner: self.lock().owner };
        Box::new(move || Ok(Box::new(opened.clone())))
    }

    /// The disk in the hands of the process that lives now.
    #[must_use]
    pub fn opened(&self) -> Box<dyn Disk> {
        Box::new(Opened { disk: self.clone(), owner: self.lock().owner })
    }

    /// Lets the process end after so many changes to its disks.
    pub fn dies_after(&self, changes: u64) {
        *self.life() = Some(changes);
    }

    /// Whether the process had ended; another one lives.
    pub fn revive(&self, end: End) -> bool {
        self.end(end);
        self.life().take() == Some(0)
    }

    /// What the process leaves behind: nothing that it does from now on matters.
    pub fn end(&self, end: End) {
        let mut platter = self.lock();
        platter.owner += 1;
        platter.fault = Fault::None;
        match end {
            End::Killed => {}
            End::PowerLost => platter.lose_power(),
            End::PowerLostWhileWriting => platter.lose_power_while_writing(),
        }
    }

    /// Ends the process with the power of the machine.
    pub fn lose_power(&self) {
        self.end(End::PowerLost);
    }

    /// Lets the disk do this wrong from now on.
    pub fn fault(&self, fault: Fault) {
        self.lock().fault = fault;
    }

    fn change(&self) -> io::Result<()> {
        match &mut *self.life() {
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
            // Old blocks can be overwritten, the header among them; new ones cannot be had.
            Fault::Full if offset > 0 => return Err(io::ErrorKind::StorageFull.into()),
            _ => {}
        }
        let from = offset as usize;
        let end = from + data.len();
        // As a file does, it grows where it is written behind its end.
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
        let mut platter = self.change()?;
        if platter.fault == Fault::FailsSyncs {
            return Err(io::Error::other("the disk fails syncs"));
        }
        platter.sync();
        Ok(())
    }
}
