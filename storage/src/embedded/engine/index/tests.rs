//! Tests of the promises of an index, through commits of all sizes.

use super::*;
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase, ReadableTableMetadata};
use std::ops::RangeInclusive;

const ROWS: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("rows");

struct Rows {
    database: Database,
    first: u64,
    last: u64,
}

fn key(number: u64) -> u128 {
    let half =
        |number: u64| (number ^ number >> 7).wrapping_mul(0x9E37_79B9_7F4A_7C15).swap_bytes();
    u128::from(half(number)) << 64 | u128::from(half(!number))
}

impl Rows {
    fn new() -> Self {
        let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(ROWS).unwrap();
        CODES.create(&write).unwrap();
        write.commit().unwrap();
        Self { database, first: 1, last: 0 }
    }

    /// Adds so many rows and deletes so many of the oldest, in one commit.
    fn commit(&mut self, added: u64, forgotten: u64) {
        let write = self.database.begin_write().unwrap();
        let mut rows = write.open_table(ROWS).unwrap();
        let mut index = CODES.open(&write).unwrap();
        for _ in 0..added {
            self.last += 1;
            rows.insert(self.last, [].as_slice()).unwrap();
            index.add(key(self.last), self.last);
        }
        for _ in 0..forgotten {
            rows.remove(self.first).unwrap();
            self.first += 1;
            index.forget();
        }
        for number in [self.first, self.last] {
            let expected = (number <= self.last).then_some(number);
            assert_eq!(index.find(key(number)).unwrap(), expected);
        }
        index.close(&rows).unwrap();
        drop(rows);
        write.commit().unwrap();
    }

    fn read(&self) -> Snapshot {
        Snapshot { read: self.database.begin_read().unwrap(), rows: self.first..=self.last }
    }
}

struct Snapshot {
    read: ReadTransaction,
    rows: RangeInclusive<u64>,
}

impl Snapshot {
    fn check(&self, step: usize) {
        for number in self.rows.clone().step_by(step).chain([*self.rows.end()]) {
            assert_eq!(CODES.find(&self.read, key(number)).unwrap(), Some(number));
        }
        for number in self.rows.end() + 1..self.rows.end() + 9 {
            assert_eq!(CODES.find(&self.read, key(number)).unwrap(), None);
        }
    }
    fn runs(&self) -> usize {
        read_runs(&self.read.open_table(CODES.runs).unwrap()).unwrap().len()
    }
    fn pages(&self) -> u64 {
        self.read.open_table(CODES.pages).unwrap().len().unwrap()
    }
}

#[test]
fn every_snapshot_finds_all_of_its_rows_and_no_others_through_commits_of_all_sizes() {
    let mut rows = Rows::new();
    let mut snapshots = Vec::new();
    for commit in 0..160 {
        let added = [1, 1, 200, 7, 160, 1500, 0, 33][commit % 8];
        let forgotten = if commit % 40 == 39 { (rows.last - rows.first) / 3 } else { 0 };
        rows.commit(added, forgotten);
        if commit % 7 == 0 {
            snapshots.push(rows.read());
        }
        snapshots.last().unwrap().check(4001);
    }
    assert!(rows.last > 35_000);
    snapshots.iter().for_each(|snapshot| snapshot.check(1009));
    rows.read().check(5);
}

#[test]
fn the_number_of_runs_follows_the_logarithm_of_the_rows_and_every_entry_stands_once() {
    for size in [1, 15, 200] {
        let mut rows = Rows::new();
        let mut most = 0;
        for _ in 0..200 {
            rows.commit(size, 0);
            let read = rows.read();
            most = most.max(read.runs());
            // Of each run the last page may not be full, and of each input the first may be copied.
            assert!(read.pages() <= rows.last / PAGE as u64 + 3 * read.runs() as u64);
        }
        rows.read().check(7);
        // One merge may wait while a smaller one advances.
        assert!(most <= 3 * MERGED, "{most} runs of commits of {size}");
    }
}

#[test]
fn pages_of_deleted_rows_are_dropped_some_at_a_time() {
    let mut rows = Rows::new();
    (0..40).for_each(|_| rows.commit(800, 0));
    rows.commit(1, 32_000);
    let mut before = rows.read().pages();
    assert!(before > 130, "{before}");
    while before > 9 {
        rows.commit(1, 1);
        let now = rows.read().pages();
        assert!(now < before && before - now <= 2 * DROPPED as u64, "{before} {now}");
        before = now;
    }
    rows.read().check(1);
}
