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
static EMPTY: [u8; 64 << 10] = [0; 64 << 10];

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
    /// Where the segment begins that is written.
    segment: u64,
    offset: u64,
    /// The last record in the other segment.
    last_in_other: u64,
    next: u64,
}

impl Journal {
    /// Opens a journal and hands out what it holds beyond record `checkpointed`, in the order of the
    /// numbers. Whoever lets the engine take it over sees whether one is missing.
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

    /// Begins anew behind record `last`: all there is has been taken over.
    pub(crate) fn begin_after(&mut self, last: u64) {
        (self.segment, self.offset, self.last_in_other, self.next) = (0, 0, 0, last + 1);
    }

    /// The number of the last record.
    pub(crate) const fn last(&self) -> u64 {
        self.next - 1
    }

    /// Whether a record of `len` bytes fits into a segment at all.
    pub(crate) fn can_hold(len: usize) -> bool {
        blocks(len) <= SEGMENT
    }

    /// The record that must have been taken over before one of `len` bytes can be appended.
    pub(crate) fn waits_for(&self, len: usize) -> u64 {
        if self.offset + blocks(len) <= SEGMENT { 0 } else { self.last_in_other }
    }

    /// Appends a record and returns its number once it is synced. What [`Self::waits_for`] says
    /// must have been taken over.
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

/// Adds the records of the segment at `start` that come after record `checkpointed`. What was not
/// finished or is damaged is passed over, and so is what was taken over, of this round or of an
/// earlier one: whatever became of it, the engine has it.
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
    /// Where the last of them stands.
    const THIRD: u64 = 3 * BLOCK;

    #[test]
    fn what_was_appended_survives_a_loss_of_power_and_is_read_in_its_order() {
        let disk = three();
        disk.end(End::PowerLost);
        assert_eq!(
            read(&disk, 0),
            [(1, payload(1, 0)), (2, payload(2, 5000)), (3, payload(3, 10_000))]
        );
    }

    #[test]
    fn a_record_cut_short_is_as_if_it_had_never_been() {
        let whole = HEAD + 10_000;
        for cut in (1..whole).step_by(512).chain([HEAD - 1, HEAD, HEAD + 1, whole - 1]) {
            let disk = three();
            // What stood there before it was begun: nothing, or an earlier round.
            disk.opened().write(THIRD + cut as u64, &vec![0xAA; whole - cut]).unwrap();
            assert_eq!(numbers(&disk, 0), [1, 2], "cut at {cut}");
        }
    }

    #[test]
    fn a_record_with_one_bit_changed_is_as_if_it_had_never_been() {
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
    fn a_record_half_written_when_power_is_lost_does_not_take_the_one_before_it_along() {
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
    fn records_of_an_earlier_round_behind_newer_ones_are_not_read() {
        let disk = BadDisk::new();
        let (mut journal, _) = Journal::open(disk.opened(), 0).unwrap();
        (1..=8).for_each(|number| append(&mut journal, number, 100));
        let (mut journal, found) = Journal::open(disk.opened(), 0).unwrap();
        assert_eq!(found.len(), 8);
        journal.begin_after(8);
        append(&mut journal, 9, 100);
        assert_eq!(numbers(&disk, 8), [9]);
        // Over the places of two, and of the beginning of a third.
        append(&mut journal, 10, 5000);
        assert_eq!(numbers(&disk, 8), [9, 10]);
    }

    #[test]
    fn a_segment_is_begun_again_while_the_other_is_still_read_whole() {
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
    fn a_record_that_could_not_be_written_leaves_its_place_and_its_number_to_the_next() {
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
    fn a_record_may_fill_a_segment_and_no_more() {
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
    fn a_journal_whose_making_was_cut_short_is_an_empty_one() {
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
