//! The journal: a small file of its own in which every commit is one record, written and synced at
//! one place after the other.
//!
//! The file has its size from the start, so a sync has only data to write and no new blocks to
//! enter: that and one page for a batch make it several times faster than a commit of the engine.
//! It has two segments. One is written while the engine takes over what the other holds; a segment
//! is begun again only when all of it has been taken over, so its old records are never missed.

use crate::Disk;
use sha2::{Digest, Sha256};
use std::io;

/// Bytes of a segment: some hundred commits, ten times what gathers before the engine takes over.
const SEGMENT: u64 = 2 << 20;
/// Records begin on whole blocks: what has been synced is never written again, so a loss of power
/// while a record is written cannot take the one before it along.
const BLOCK: u64 = 4096;
/// Bytes before the payload: its length 4, the record's number 8, a checksum 16.
const HEAD: usize = 28;
const EMPTY: [u8; 64 << 10] = [0; 64 << 10];

/// Why a record is not in the journal.
pub(crate) enum AppendError {
    /// It could not be written, and is not there.
    Refused(String),
    /// It could not be synced, and may or may not be there.
    Unknown(String),
}

/// A record as found: its number and what it holds.
pub(crate) type Record = (u64, Vec<u8>);

pub(crate) struct Journal {
    disk: Box<dyn Disk>,
    segment: u64,
    offset: u64,
    /// The last record in each segment.
    last: [u64; 2],
    next: u64,
}

impl Journal {
    /// Opens a journal and hands out what it holds, in the order of the numbers.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn open(disk: Box<dyn Disk>) -> io::Result<(Self, Vec<Record>)> {
        let size = 2 * SEGMENT;
        let mut end = disk.len()?;
        if end < size {
            disk.set_len(size)?;
            while end < size {
                let step = (size - end).min(EMPTY.len() as u64);
                disk.write(end, EMPTY.split_at(step as usize).0)?;
                end += step;
            }
            disk.sync()?;
        }
        let mut records = read_segment(disk.as_ref(), 0)?;
        records.extend(read_segment(disk.as_ref(), SEGMENT)?);
        records.sort_unstable_by_key(|(number, _)| *number);
        Ok((Self { disk, segment: 0, offset: 0, last: [0; 2], next: 1 }, records))
    }

    /// Begins anew behind record `last`: all there is has been taken over.
    pub(crate) fn begin_after(&mut self, last: u64) {
        (self.segment, self.offset, self.last, self.next) = (0, 0, [0; 2], last + 1);
    }

    /// Whether a record of `len` bytes fits into a segment at all.
    pub(crate) fn can_hold(len: usize) -> bool {
        blocks(len) <= SEGMENT
    }

    /// The record that must have been taken over before one of `len` bytes can be appended.
    pub(crate) fn waits_for(&self, len: usize) -> u64 {
        if self.offset + blocks(len) <= SEGMENT { 0 } else { self.last_in(1 - self.segment) }
    }

    fn last_in(&self, segment: u64) -> u64 {
        let [first, second] = self.last;
        if segment == 0 { first } else { second }
    }

    /// Appends a record and returns its number once it is synced. What [`Self::waits_for`] says
    /// must have been taken over.
    pub(crate) fn append(&mut self, payload: &[u8]) -> Result<u64, AppendError> {
        if self.offset + blocks(payload.len()) > SEGMENT {
            (self.segment, self.offset) = (1 - self.segment, 0);
        }
        let number = self.next;
        let mut record = Vec::with_capacity(HEAD + payload.len());
        record.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        record.extend_from_slice(&number.to_le_bytes());
        record.extend_from_slice(&checksum(number, payload));
        record.extend_from_slice(payload);
        let at = self.segment * SEGMENT + self.offset;
        self.disk.write(at, &record).map_err(|e| AppendError::Refused(e.to_string()))?;
        self.disk.sync().map_err(|e| AppendError::Unknown(e.to_string()))?;
        self.offset += blocks(payload.len());
        self.next += 1;
        let [first, second] = &mut self.last;
        *(if self.segment == 0 { first } else { second }) = number;
        Ok(number)
    }
}

/// Bytes that a record of `len` bytes of payload takes.
fn blocks(len: usize) -> u64 {
    ((HEAD + len) as u64).next_multiple_of(BLOCK)
}

fn checksum(number: u64, payload: &[u8]) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update(number.to_le_bytes());
    hash.update(payload);
    let full: [u8; 32] = hash.finalize().into();
    let mut half = [0; 16];
    half.copy_from_slice(full.split_at(16).0);
    half
}

/// The records of the segment at `start`, up to where they end: at one that was not finished, or
/// at one of an earlier round.
fn read_segment(disk: &dyn Disk, start: u64) -> io::Result<Vec<Record>> {
    let mut bytes = vec![0; SEGMENT as usize];
    disk.read(start, &mut bytes)?;
    let mut records: Vec<Record> = Vec::new();
    let mut rest = bytes.as_slice();
    while let Some((number, payload)) = read_record(rest) {
        if records.last().is_some_and(|(before, _)| before + 1 != number) {
            break;
        }
        records.push((number, payload.to_vec()));
        rest = rest.get(blocks(payload.len()) as usize..).unwrap_or_default();
    }
    Ok(records)
}

fn read_record(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (number, rest) = rest.split_first_chunk::<8>()?;
    let (sum, rest) = rest.split_first_chunk::<16>()?;
    let payload = rest.get(..u32::from_le_bytes(*len) as usize)?;
    let number = u64::from_le_bytes(*number);
    (number > 0 && checksum(number, payload) == *sum).then_some((number, payload))
}
