//! Copies of a store that is in use, and what is checked before a copy becomes a store.

use crate::embedded::engine::RedbStore;
use crate::{AuditLog, CommitError, OpenDisk, OpenError, ReadError};
use iptunnel_domain::audit::Head;
use std::sync::Arc;

/// What a copy calls after each small piece of work, some hundred microseconds long: the place to rest, so
/// that requests have the processor and the disk. If it returns `false`, the copy ends.
pub type Pace = Arc<dyn Fn() -> bool + Send + Sync>;

/// What a copy holds: the store at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The data format.
    pub data_format: u32,
    /// The number of the last record of the journal whose changes are in it.
    pub position: u64,
    /// The last entry of the audit log.
    pub head: Head,
}

/// Why a store could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store could not be read.
    #[error("the store cannot be read: {0}")]
    Read(#[from] ReadError),
    /// The copy could not be written.
    #[error("the copy cannot be written: {0}")]
    Write(String),
    /// Somebody asked for the end of it: the server stops, or its store was opened again after a failure.
    #[error("it was stopped: the server stops, or its store had a failure")]
    Stopped,
    /// Other servers use the store.
    #[error("the store is a database, which has backups of its own")]
    Shared,
}

/// Opens a copy that nobody uses, checks every page of it and the chain of its audit log, and brings it to
/// the data format of this program. Returns what it holds.
///
/// # Errors
/// It is damaged, is no store, or was written by a newer program.
pub fn examine_copy(open: OpenDisk) -> Result<Contents, OpenError> {
    let unreadable = |error: ReadError| OpenError::Engine(error.to_string());
    let engine = RedbStore::open(open)?;
    engine.check_integrity().map_err(OpenError::Engine)?;
    let contents = engine.contents().map_err(unreadable)?;
    let (mut head, mut is_whole) = (Head::default(), true);
    engine
        .audit_from(1, &mut |entry| {
            let mut bytes = Vec::new();
            entry.event.encode(&mut bytes);
            head = head.after(&bytes);
            is_whole = head == entry.head;
            is_whole
        })
        .map_err(unreadable)?;
    if !is_whole || head != contents.head {
        let entry = head.entries;
        return Err(OpenError::Engine(format!("the audit log is broken at entry {entry}")));
    }
    Ok(contents)
}

impl From<CommitError> for BackupError {
    fn from(error: CommitError) -> Self {
        Self::Read(ReadError(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::engine::samples::{self, code, everything, one};
    use crate::{
        Disk, Disks, EmbeddedStore, Epochs, FileDisk, LOOKUP_KEY, Records, Store, Write, sums,
    };
    use iptunnel_domain::lookup::KeyedHash;
    use std::io;
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    fn store_at(path: &Path) -> EmbeddedStore {
        EmbeddedStore::open(Disks::at(path.to_owned(), path.with_extension("journal"))).unwrap()
    }

    fn opener(path: &Path) -> OpenDisk {
        let path = path.to_owned();
        Box::new(move || Ok(Box::new(FileDisk::open(&path)?)))
    }

    fn steadily() -> Pace {
        Arc::new(|| true)
    }

    fn back_up(store: &dyn Store, path: &Path, pace: &Pace) -> Result<Contents, BackupError> {
        store.back_up(Box::new(FileDisk::open(path).unwrap()), pace)
    }

    #[test]
    fn a_copy_holds_every_record_of_every_kind_that_was_committed_before() {
        let folder = tempfile::tempdir().unwrap();
        let (path, copy) = (folder.path().join("s.redb"), folder.path().join("copy.redb"));
        let store = store_at(&path);
        store.commit(&everything()).unwrap();
        assert!(store.agree(LOOKUP_KEY, KeyedHash([7; 16])).unwrap());
        let contents = back_up(&store, &copy, &steadily()).unwrap();
        assert_eq!(contents.position, store.watermark().unwrap().commits);
        assert_eq!(contents.head, store.audit_head().unwrap());
        assert_eq!(examine_copy(opener(&copy)).unwrap(), contents);
        let copied = store_at(&copy);
        assert_eq!(samples::contents(&copied), samples::contents(&store));
        assert_eq!(sums(&copied).unwrap(), sums(&store).unwrap());
        assert_eq!(copied.agreed(LOOKUP_KEY).unwrap(), Some(KeyedHash([7; 16])));
    }

    #[test]
    fn a_copy_made_during_commits_holds_those_up_to_its_position_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let (path, copy) = (folder.path().join("s.redb"), folder.path().join("copy.redb"));
        let store = store_at(&path);
        let (committed, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (before, contents) = std::thread::scope(|scope| {
            scope.spawn(|| {
                // Each commit is one record of the journal, and their numbers begin with 1.
                for number in 1.. {
                    if is_over.load(Ordering::SeqCst) {
                        break;
                    }
                    store.commit(&[one(Write::Code(code(number, 1, 0)))]).unwrap();
                    committed.store(number as usize, Ordering::SeqCst);
                }
            });
            while committed.load(Ordering::SeqCst) < 300 {
                std::thread::yield_now();
            }
            let before = committed.load(Ordering::SeqCst) as u64;
            let contents = back_up(&store, &copy, &steadily());
            is_over.store(true, Ordering::SeqCst);
            (before, contents.unwrap())
        });
        assert!(contents.position >= before, "{before}: {contents:?}");
        let copied = store_at(&copy);
        let has = |number| copied.code(code(number, 1, 0).hash).unwrap().is_some();
        assert!((1..=contents.position).all(has));
        let after = committed.load(Ordering::SeqCst) as u64;
        assert!(!(contents.position + 1..=after + 1).any(has));
    }

    #[test]
    fn a_copy_ends_when_its_pace_says_so_and_the_store_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let store = store_at(&folder.path().join("s.redb"));
        store.commit(&everything()).unwrap();
        for pieces in [0, 1, 5, 20] {
            let left = AtomicUsize::new(pieces);
            let pace: Pace = Arc::new(move || {
                let some = |left: usize| left.checked_sub(1);
                left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, some).is_ok()
            });
            let path = folder.path().join(format!("{pieces}.redb"));
            let ended = back_up(&store, &path, &pace);
            assert!(matches!(ended, Err(BackupError::Stopped)), "{pieces}: {ended:?}");
            assert!(examine_copy(opener(&path)).ok().is_none_or(|found| found.position == 0));
        }
        store.commit(&[one(Write::Code(code(50, 1, 0)))]).unwrap();
        back_up(&store, &folder.path().join("whole.redb"), &steadily()).unwrap();
    }

    /// A file whose writes fail while the flag is set.
    #[derive(Debug)]
    struct Failing(FileDisk, Arc<AtomicBool>);

    impl Disk for Failing {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            if self.1.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0.write(offset, data)
        }
        fn sync(&self) -> io::Result<()> {
            self.0.sync()
        }
    }

    #[test]
    fn a_store_that_must_be_opened_again_ends_the_copy_that_keeps_its_file_locked() {
        let folder = tempfile::tempdir().unwrap();
        let (path, fails) = (folder.path().join("s.redb"), Arc::new(AtomicBool::new(false)));
        let of_disk = Arc::clone(&fails);
        let rows: OpenDisk =
            Box::new(move || Ok(Box::new(Failing(FileDisk::open(&path)?, Arc::clone(&of_disk)))));
        let journal = opener(&folder.path().join("s.journal"));
        let store = EmbeddedStore::open(Disks { rows, journal }).unwrap();
        let codes = |from: u64| -> Vec<_> {
            (from..from + 10_000).map(|number| one(Write::Code(code(number, 1, 0)))).collect()
        };
        store.commit(&codes(1)).unwrap();
        std::thread::scope(|scope| {
            let copy = scope.spawn(|| {
                let fails = Arc::clone(&fails);
                let calls = AtomicUsize::new(0);
                let pace: Pace = Arc::new(move || {
                    // The fault comes while the copy is under way.
                    if calls.fetch_add(1, Ordering::SeqCst) == 3 {
                        fails.store(true, Ordering::SeqCst);
                    }
                    std::thread::sleep(Duration::from_millis(5));
                    true
                });
                back_up(&store, &folder.path().join("copy.redb"), &pace)
            });
            let started = Instant::now();
            while !fails.load(Ordering::SeqCst) {
                assert!(started.elapsed() < Duration::from_secs(20));
                std::thread::yield_now();
            }
            // The checkpoint of this commit fails, and the file is opened again.
            let _ = store.commit(&codes(20_001)[..100]);
            assert!(matches!(copy.join().unwrap(), Err(BackupError::Stopped)));
            fails.store(false, Ordering::SeqCst);
            while store.commit(&codes(30_001)[..1]).is_err() {
                assert!(started.elapsed() < Duration::from_secs(20), "the store works again");
                std::thread::yield_now();
            }
        });
        assert!(store.code(code(1, 1, 0).hash).unwrap().is_some());
    }

    #[test]
    fn a_copy_with_a_changed_page_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy.redb");
        let store = store_at(&folder.path().join("s.redb"));
        store.commit(&everything()).unwrap();
        back_up(&store, &copy, &steadily()).unwrap();
        let good = std::fs::read(&copy).unwrap();
        // The host name in a record, and a hash of the log.
        let head = store.audit_head().unwrap().hash.0;
        for known in [b"h2.example.com".as_slice(), &head] {
            let mut bad = good.clone();
            let at = bad.windows(known.len()).position(|bytes| bytes == known).unwrap();
            bad[at] ^= 1;
            std::fs::write(&copy, &bad).unwrap();
            assert!(matches!(examine_copy(opener(&copy)), Err(OpenError::Engine(_))));
        }
        std::fs::write(&copy, &good[..good.len() / 2]).unwrap();
        assert!(examine_copy(opener(&copy)).is_err());
    }
}
