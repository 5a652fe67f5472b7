//! A copy of the file while it is in use: all tables of one read transaction, written to another file in
//! one write transaction.
//!
//! The read transaction is the moment that the copy shows. As long as it lives redb keeps the pages that it
//! sees, so the file grows by what commits replace meanwhile, and it uses that room again afterwards.

use super::{
    ACCESS_TOKENS, ACTIVATIONS, CHECK_INS, CODES, COUNTERS, META, SERVERS, SETTINGS, TOKEN_USES,
    agreed, audit, checkpointed, format_in, index, unreadable, webhooks,
};
use crate::{BackupError, Contents, Disk, Pace, ReadError};
use redb::{
    Database, Durability, Key, ReadTransaction, ReadableTable, TableDefinition, TableError,
    TableHandle, Value, WriteTransaction,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, io};

/// The cache of the copy. Its rows come in the order of their keys, so few pages are in use at once.
const CACHE_BYTES: usize = 4 << 20;
/// The rows that are copied at once: less than a hundred microseconds.
const ROWS: usize = 16;
/// The bytes that are written between two syncs. Without these syncs the operating system would gather
/// them and write them all at once, and the journal would wait behind them. One takes some milliseconds.
const UNSYNCED: u64 = 4 << 20;

/// The copies under way: at most one. It holds a snapshot, and with it the lock on the file, so whoever
/// opens the file again has to end it first.
#[derive(Default)]
pub(super) struct Copies {
    /// How many wait for its end.
    waiting: Arc<AtomicUsize>,
    under_way: Mutex<()>,
}

/// A copy under way.
pub(super) struct Copying<'a> {
    pace: Pace,
    _only: MutexGuard<'a, ()>,
}

impl Copies {
    fn only(&self) -> MutexGuard<'_, ()> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a copy, after the one that is under way.
    pub(super) fn begin(&self, pace: &Pace) -> Copying<'_> {
        let only = self.only();
        let (pace, waiting) = (Arc::clone(pace), Arc::clone(&self.waiting));
        let pace: Pace = Arc::new(move || waiting.load(Ordering::SeqCst) == 0 && pace());
        Copying { pace, _only: only }
    }

    /// Ends the copy that is under way. None begins until the returned value is dropped.
    pub(super) fn end(&self) -> MutexGuard<'_, ()> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let none = self.only();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        none
    }
}

/// Returns what a read transaction sees.
pub(super) fn contents(read: &ReadTransaction) -> Result<Contents, ReadError> {
    let data_format = format_in(read)?.and_then(|format| u32::try_from(format).ok());
    Ok(Contents {
        data_format: data_format.unwrap_or_default(),
        position: checkpointed(read)?,
        head: audit::head(&read.open_table(audit::AUDIT).map_err(unreadable)?)?,
    })
}

/// Copies all tables to an empty disk.
pub(super) fn copy(
    read: ReadTransaction,
    to: Box<dyn Disk>,
    copying: Copying<'_>,
) -> Result<(), BackupError> {
    let pace = &copying.pace;
    // An error of the copy after the pace has asked for the end follows from that.
    let failed = |error: redb::Error| {
        if pace() { BackupError::Write(error.to_string()) } else { BackupError::Stopped }
    };
    let disk = Paced { disk: to, pace: Arc::clone(pace), unsynced: Mutex::default() };
    let database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(disk)
        .map_err(|error| failed(error.into()))?;
    let mut write = database.begin_write().map_err(|error| failed(error.into()))?;
    write.set_durability(Durability::Immediate).map_err(|error| failed(error.into()))?;
    let mut tables = Tables { read: &read, write: &write, pace, copied: Vec::new() };
    tables.copy_all().map_err(|error| match error {
        BackupError::Write(_) if !pace() => BackupError::Stopped,
        error => error,
    })?;
    write.commit().map_err(|error| failed(error.into()))?;
    // Closing the file writes which of its pages are free.
    drop(database);
    if pace() { Ok(()) } else { Err(BackupError::Stopped) }
}

struct Tables<'a> {
    read: &'a ReadTransaction,
    write: &'a WriteTransaction,
    pace: &'a Pace,
    copied: Vec<String>,
}

impl Tables<'_> {
    fn copy_all(&mut self) -> Result<(), BackupError> {
        self.copy(META)?;
        self.copy(CODES)?;
        self.copy(ACTIVATIONS)?;
        self.copy(SERVERS)?;
        self.copy(CHECK_INS)?;
        self.copy(COUNTERS)?;
        self.copy(ACCESS_TOKENS)?;
        self.copy(TOKEN_USES)?;
        self.copy(SETTINGS)?;
        self.copy(audit::AUDIT)?;
        self.copy(audit::OF_CODES)?;
        self.copy(agreed::AGREED)?;
        self.copy(webhooks::WEBHOOKS)?;
        for index in [index::CODES, index::ACTIVATIONS] {
            self.copy(index.runs)?;
            self.copy(index.pages)?;
        }
        // Whoever adds a table must add it here.
        let all = self.read.list_tables().map_err(unreadable)?;
        match all.into_iter().find(|table| !self.copied.iter().any(|name| name == table.name())) {
            Some(left) => {
                Err(ReadError(format!("nobody knows the table {:?}", left.name())).into())
            }
            None => Ok(()),
        }
    }

    fn copy<K: Key + 'static, V: Value + 'static>(
        &mut self,
        table: TableDefinition<'static, K, V>,
    ) -> Result<(), BackupError> {
        let from = match self.read.open_table(table) {
            // A later program made it, or nobody has needed it yet.
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            from => from.map_err(unreadable)?,
        };
        let unwritten = |error: redb::Error| BackupError::Write(error.to_string());
        let mut to = self.write.open_table(table).map_err(|error| unwritten(error.into()))?;
        for (count, row) in from.iter().map_err(unreadable)?.enumerate() {
            let (key, value) = row.map_err(unreadable)?;
            to.insert(key.value(), value.value()).map_err(|error| unwritten(error.into()))?;
            if count % ROWS == 0 && !(self.pace)() {
                return Err(BackupError::Stopped);
            }
        }
        self.copied.push(table.name().to_owned());
        Ok(())
    }
}

/// The disk of a copy. It rests after each piece, and syncs as it goes.
struct Paced {
    disk: Box<dyn Disk>,
    pace: Pace,
    unsynced: Mutex<u64>,
}

impl fmt::Debug for Paced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.disk.fmt(f)
    }
}

impl Paced {
    fn rest(&self) -> io::Result<()> {
        if (self.pace)() { Ok(()) } else { Err(io::Error::other("the copy was stopped")) }
    }
}

impl redb::StorageBackend for Paced {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.rest()?;
        self.disk.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.disk.sync()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.rest()?;
        self.disk.write(offset, data)?;
        let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        *unsynced += data.len() as u64;
        if *unsynced >= UNSYNCED {
            *unsynced = 0;
            self.disk.sync()?;
        }
        Ok(())
    }
}
