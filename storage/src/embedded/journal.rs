//! The journal: a small file in which every commit is one record. Records are appended and synced
//! one after the other.
//!
//! The file has its full size from the start, so a sync only writes data and allocates no blocks.
//! With that, and one page for a batch, an append is several times faster than a commit of the
//! engine. The file has two segments. One is written while the engine checkpoints the other. A
//! segment is written again only when the engine has all of it, so its old records are never
//! needed.

use crate::Disk;
use sha2::{Digest, Sha256};
use std::io;

/// Bytes of a segment: some hundred commits, ten times as many as gather before a checkpoint.
const SEGMENT: u64 = 2 << 20;
/// Records begin on whole blocks. Synced blocks are never written again, so a loss of power during
/// a write cannot damage the record before.
const BLOCK: u64 = 4096;
/// Bytes before the payload: its length 4, the record's number 8, a checksum 16.
const HEAD: usize = 28;
static EMPTY: [u8; 64 << 10] = [0; 64 << 10];

/// Why an append failed.
pub(crate) enum AppendError {
    /// It could not be written, and is not in the journal.
    Refused(String),
    /// It could not be synced, and may or may not be in the journal.
    Unknown(String),
}

/// A record that was read: its number and its payload.
pub(crate) type Record = (u64, Vec<u8>);

pub(crate) struct Journal {
    disk: Box<dyn Disk>,
    /// The offset of the segment that is written.
    segment: u64,
    offset: u64,
    /// The last record in the other segment.
    last_in_other: u64,
    next: u64,
}

impl Journal {
    /// Opens a journal and returns its records after record `checkpointed`, in the order of their
    /// numbers. The caller must check that none is missing.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn open(disk: Box<dyn Disk>, checkpointed: u64) -> io::Result<(Self, Vec<Record>)> {
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
        let mut records = Vec::new();
        for start in [0, SEGMENT] {
            read_segment(disk.as_ref(), start, checkpointed, &mut records)?;
        }
        records.sort_unstable_by_key(|(number, _)| *number);
        Ok((Self { disk, segment: 0, offset: 0, last_in_other: 0, next: 1 }, records))
    }

    /// Starts again after record `last`: the engine has all records.
    pub(crate) fn begin_after(&mut self, last: u64) {
        (self.segment, self.offset, self.last_in_other, self.next) = (0, 0, 0, last + 1);
    }

    /// Returns the number of the last record.
    pub(crate) const fn last(&self) -> u64 {
        self.next - 1
    }

    /// Returns whether a record of `len` bytes fits into a segment.
    pub(crate) fn can_hold(len: usize) -> bool {
        blocks(len) <= SEGMENT
    }

    /// Returns the record that must be checkpointed before one of `len` bytes can be appended.
    pub(crate) fn waits_for(&self, len: usize) -> u64 {
        if self.offset + blocks(len) <= SEGMENT { 0 } else { self.last_in_other }
    }

    /// Appends a record and returns its number once it is synced. The record that
    /// [`Self::waits_for`] returns must be checkpointed.
    pub(crate) fn append(&mut self, payload: &[u8]) -> Result<u64, AppendError> {
        if self.offset + blocks(payload.len()) > SEGMENT {
            (self.segment, self.offset) = (SEGMENT - self.segment, 0);
            self.last_in_other = self.next - 1;
        }
        let number = self.next;
        let mut record = Vec::with_capacity(HEAD + payload.len());
        record.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        record.extend_from_slice(&number.to_le_bytes());
        record.extend_from_slice(&checksum(number, payload));
        record.extend_from_slice(payload);
        let at = self.segment + self.offset;
        self.disk.write(at, &record).map_err(|e| AppendError::Refused(e.to_string()))?;
        self.disk.sync().map_err(|e| AppendError::Unknown(e.to_string()))?;
        self.offset += blocks(payload.len());
        self.next += 1;
        Ok(number)
    }
}

/// Returns the bytes that a record with `len` bytes of payload takes.
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

/// Adds the records of the segment at `start` that come after record `checkpointed`. Skips
/// unfinished and damaged records, and those already checkpointed, of this round or an earlier one:
/// the engine has them.
fn read_segment(
    disk: &dyn Disk,
    start: u64,
    checkpointed: u64,
    records: &mut Vec<Record>,
) -> io::Result<()> {
    let mut bytes = vec![0; SEGMENT as usize];
    disk.read(start, &mut bytes)?;
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let found = read_record(rest);
        let taken = found.map_or(BLOCK, |(_, payload)| blocks(payload.len()));
        if let Some((number, payload)) = found.filter(|(number, _)| *number > checkpointed) {
            records.push((number, payload.to_vec()));
        }
        rest = rest.get(taken as usize..).unwrap_or_default();
    }
    Ok(())
}

fn read_record(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (number, rest) = rest.split_first_chunk::<8>()?;
    let (sum, rest) = rest.split_first_chunk::<16>()?;
    let payload = rest.get(..u32::from_le_bytes(*len) as usize)?;
    let number = u64::from_le_bytes(*number);
    // A block that was never written is all zero.
    (number > 0 && checksum(number, payload) == *sum).then_some((number, payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::simulated::{BadDisk, End, Fault};

    fn payload(number: u64, len: usize) -> Vec<u8> {
        (0..len as u64).map(|at| (at.wrapping_mul(31) ^ number) as u8).collect()
    }

    fn append(journal: &mut Journal, number: u64, len: usize) {
        let appended = journal.append(&payload(number, len));
        assert!(matches!(appended, Ok(given) if given == number));
    }

    fn read(disk: &BadDisk, checkpointed: u64) -> Vec<Record> {
        Journal::open(disk.opened(), checkpointed).unwrap().1
    }

    fn numbers(disk: &BadDisk, checkpointed: u64) -> Vec<u64> {
        read(disk, checkpointed).into_iter().map(|(number, _)| number).collect()
    }

    /// A journal with three records, the last over three blocks.
    fn three() -> BadDisk {
        let disk = BadDisk::new();
        let (mut journal, found) = Journal::open(disk.opened(), 0).unwrap();
        assert!(found.is_empty());
        for (number, len) in [(1, 0), (2, 5000), (3, 10_000)] {
            append(&mut journal, number, len);
        }
        disk
    }
    /// The offset of the last of them.
    const THIRD: u64 = 3 * BLOCK;

    #[test]
    fn appended_records_survive_a_loss_of_power_and_are_read_in_order() {
        let disk = three();
        disk.end(End::PowerLost);
        assert_eq!(
            read(&disk, 0),
            [(1, payload(1, 0)), (2, payload(2, 5000)), (3, payload(3, 10_000))]
        );
    }

    #[test]
    fn a_record_cut_short_is_ignored() {
        let whole = HEAD + 10_000;
        for cut in (1..whole).step_by(512).chain([HEAD - 1, HEAD, HEAD + 1, whole - 1]) {
            let disk = three();
            // The content from before: nothing, or an earlier round.
            disk.opened().write(THIRD + cut as u64, &vec![0xAA; whole - cut]).unwrap();
            assert_eq!(numbers(&disk, 0), [1, 2], "cut at {cut}");
        }
    }

    #[test]
    fn a_record_with_one_changed_bit_is_ignored() {
        let disk = three();
        for at in (0..HEAD).chain((HEAD..HEAD + 10_000).step_by(997)).chain([HEAD + 9999]) {
            let at = THIRD + at as u64;
            let mut byte = [0];
            disk.opened().read(at, &mut byte).unwrap();
            disk.opened().write(at, &[byte[0] ^ 1]).unwrap();
            assert_eq!(numbers(&disk, 0), [1, 2], "byte {at}");
            disk.opened().write(at, &byte).unwrap();
        }
        assert_eq!(numbers(&disk, 0), [1, 2, 3]);
    }

    #[test]
    fn a_damaged_record_is_missing_among_those_behind_it() {
        for (at, left) in [(0, [2, 3]), (BLOCK + 2000, [1, 3])] {
            let disk = three();
            disk.opened().write(at, &[0xAA; 64]).unwrap();
            assert_eq!(numbers(&disk, 0), left);
        }
    }

    #[test]
    fn a_record_half_written_at_a_loss_of_power_does_not_damage_the_one_before() {
        let disk = three();
        let (mut journal, _) = Journal::open(disk.opened(), 0).unwrap();
        journal.begin_after(3);
        append(&mut journal, 4, 100);
        disk.fault(Fault::FailsSyncs);
        assert!(matches!(journal.append(&payload(5, 9000)), Err(AppendError::Unknown(_))));
        disk.end(End::PowerLostWhileWriting);
        assert_eq!(read(&disk, 3), [(4, payload(4, 100))]);
    }

    #[test]
    fn records_of_an_earlier_round_after_newer_ones_are_not_read() {
        let disk = BadDisk::new();
        let (mut journal, _) = Journal::open(disk.opened(), 0).unwrap();
        (1..=8).for_each(|number| append(&mut journal, number, 100));
        let (mut journal, found) = Journal::open(disk.opened(), 0).unwrap();
        assert_eq!(found.len(), 8);
        journal.begin_after(8);
        append(&mut journal, 9, 100);
        assert_eq!(numbers(&disk, 8), [9]);
        // It overwrites two old records and the beginning of a third.
        append(&mut journal, 10, 5000);
        assert_eq!(numbers(&disk, 8), [9, 10]);
    }

    #[test]
    fn a_segment_is_reused_while_the_other_is_still_read_whole() {
        const LEN: usize = 500_000;
        let disk = BadDisk::new();
        let (mut journal, _) = Journal::open(disk.opened(), 0).unwrap();
        for number in 1..=8 {
            // Four to a segment.
            assert_eq!(journal.waits_for(LEN), 0, "{number}");
            append(&mut journal, number, LEN);
        }
        assert_eq!(journal.waits_for(LEN), 4);
        assert_eq!(numbers(&disk, 0), (1..=8).collect::<Vec<_>>());
        append(&mut journal, 9, LEN);
        assert_eq!(numbers(&disk, 4), (5..=9).collect::<Vec<_>>());
        assert_eq!(journal.waits_for(LEN), 0);
        (10..=12).for_each(|number| append(&mut journal, number, LEN));
        assert_eq!(journal.waits_for(LEN), 8);
    }

    #[test]
    fn the_next_record_takes_the_place_and_number_of_one_that_was_not_written() {
        let disk = three();
        let (mut journal, _) = Journal::open(disk.opened(), 0).unwrap();
        journal.begin_after(3);
        append(&mut journal, 4, 100);
        disk.fault(Fault::FailsWrites);
        assert!(matches!(journal.append(&payload(5, 100)), Err(AppendError::Refused(_))));
        disk.fault(Fault::None);
        append(&mut journal, 5, 200);
        disk.end(End::PowerLost);
        assert_eq!(read(&disk, 3), [(4, payload(4, 100)), (5, payload(5, 200))]);
    }

    #[test]
    fn a_record_may_fill_a_segment_but_not_exceed_it() {
        let largest = SEGMENT as usize - HEAD;
        assert!(Journal::can_hold(largest) && !Journal::can_hold(largest + 1));
        let disk = BadDisk::new();
        let (mut journal, _) = Journal::open(disk.opened(), 0).unwrap();
        append(&mut journal, 1, largest);
        append(&mut journal, 2, largest);
        assert_eq!(numbers(&disk, 0), [1, 2]);
        assert_eq!(journal.waits_for(0), 1);
    }

    #[test]
    fn a_journal_whose_creation_was_cut_short_is_empty() {
        for end in [End::Killed, End::PowerLost, End::PowerLostWhileWriting] {
            for changes in (0..64).step_by(9).chain([64, 65, 66]) {
                let disk = BadDisk::new();
                disk.dies_after(changes);
                drop(Journal::open(disk.opened(), 0));
                disk.revive(end);
                let (mut journal, found) = Journal::open(disk.opened(), 0).unwrap();
                assert!(found.is_empty());
                append(&mut journal, 1, 100);
                disk.end(End::PowerLost);
                assert_eq!(numbers(&disk, 0), [1], "{end:?} after {changes} changes");
            }
        }
    }
}
