//! An index from a hash or an id to the number of a row, without a random page per record.
//!
//! The new rows of a commit are sorted by key and written in the same commit as one *run*: pages
//! under rising keys. A look-up searches each run once, so runs are merged: [`MERGED`] runs of one
//! size become one of the next size. So the number of runs is the logarithm of the number of rows.
//! Each commit with new rows advances one merge by some pages, so no commit takes long. Entries
//! that a merge has copied leave its inputs in the same commit, so at any moment every row is in
//! some run.
//!
//! Deliberately absent: state in memory. A reader finds all rows of its snapshot of the file,
//! whatever is written meanwhile and however often the file was reopened. `docs/performance.md` has
//! the costs and the other layouts that were measured.

#[cfg(test)]
mod tests;

use super::unreadable;
use crate::ReadError;
use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, TableHandle, WriteTransaction};
use std::collections::BTreeMap;

/// How many runs of one size are merged into one. With four, a new row costs up to a microsecond
/// more; with sixteen, a look-up may search half as many runs again.
const MERGED: usize = 8;
/// Bytes of an entry: a key of 16, a number of 8.
const ENTRY: usize = 24;
/// Entries per page: as many as fill 4 KiB less redb's overhead.
const PAGE: usize = 160;
/// How many pages of deleted rows one commit drops. It deletes some hundred rows, which are some
/// pages.
const DROPPED: usize = 64;

/// The run, and the first key on the page.
type PageKey = (u32, u128);
type Pages = TableDefinition<'static, PageKey, &'static [u8]>;
/// The number of entries, the highest number among them, and the run into which they are merged.
type RunRow = (u64, u64, Option<u32>);
type Runs = TableDefinition<'static, u32, RunRow>;
/// A key and the number of its row.
type Entry = (u128, u64);

/// One index: over codes by hash, or over activations by id.
pub(super) struct Index {
    pub(super) runs: Runs,
    pub(super) pages: Pages,
}

pub(super) const CODES: Index = Index::new("code_index", "code_runs");
pub(super) const ACTIVATIONS: Index = Index::new("activation_index", "activation_runs");

#[derive(Clone, Copy, Debug, PartialEq)]
struct Run {
    entries: u64,
    last: u64,
    into: Option<u32>,
}

impl Run {
    /// The level of the run, from its size: how often runs were merged into it. Runs of one level
    /// are merged.
    fn level(&self) -> u32 {
        (self.entries / PAGE as u64).max(1).ilog(MERGED as u64)
    }
}

impl Index {
    const fn new(runs: &'static str, pages: &'static str) -> Self {
        Self { runs: Runs::new(runs), pages: Pages::new(pages) }
    }

    pub(super) fn create(&self, write: &WriteTransaction) -> Result<(), redb::Error> {
        write.open_table(self.runs)?;
        write.open_table(self.pages)?;
        Ok(())
    }

    /// Returns the number of the row with this key.
    pub(super) fn find(&self, read: &ReadTransaction, key: u128) -> Result<Option<u64>, ReadError> {
        let runs = read.open_table(self.runs).map_err(unreadable)?;
        let pages = read.open_table(self.pages).map_err(unreadable)?;
        find(&runs, &pages, key)
    }

    pub(super) fn open<'txn>(
        &self,
        write: &'txn WriteTransaction,
    ) -> Result<Writer<'txn>, ReadError> {
        Ok(Writer {
            runs: write.open_table(self.runs).map_err(unreadable)?,
            pages: write.open_table(self.pages).map_err(unreadable)?,
            added: Vec::new(),
            forgot: false,
        })
    }
}

fn find(
    runs: &impl ReadableTable<u32, RunRow>,
    pages: &impl ReadableTable<PageKey, &'static [u8]>,
    key: u128,
) -> Result<Option<u64>, ReadError> {
    // Most look-ups are for new rows.
    let mut newest_first: Vec<(u64, u32)> =
        read_runs(runs)?.into_iter().map(|(number, run)| (run.last, number)).collect();
    newest_first.sort_unstable_by(|a, b| b.cmp(a));
    for (_, run) in newest_first {
        let page = pages.range((run, 0)..=(run, key)).map_err(unreadable)?.next_back();
        if let Some(page) = page {
            let (_, page) = page.map_err(unreadable)?;
            if let Some(number) = find_in_page(page.value(), key) {
                return Ok(Some(number));
            }
        }
    }
    Ok(None)
}

fn read_runs(runs: &impl ReadableTable<u32, RunRow>) -> Result<BTreeMap<u32, Run>, ReadError> {
    let rows = runs.iter().map_err(unreadable)?;
    rows.map(|row| {
        let (number, row) = row.map_err(unreadable)?;
        let (entries, last, into) = row.value();
        Ok((number.value(), Run { entries, last, into }))
    })
    .collect()
}

/// An index within a write transaction.
pub(super) struct Writer<'txn> {
    runs: Table<'txn, u32, RunRow>,
    pages: Table<'txn, PageKey, &'static [u8]>,
    /// The rows that this transaction adds.
    added: Vec<Entry>,
    /// Whether it removes rows.
    forgot: bool,
}

impl Writer<'_> {
    pub(super) fn add(&mut self, key: u128, number: u64) {
        self.added.push((key, number));
    }

    /// Records that rows are removed.
    pub(super) fn forget(&mut self) {
        self.forgot = true;
    }

    /// Returns the number of the row with this key; this transaction may have added it.
    pub(super) fn find(&self, key: u128) -> Result<Option<u64>, ReadError> {
        match self.added.iter().find(|(added, _)| *added == key) {
            Some((_, number)) => Ok(Some(*number)),
            None => find(&self.runs, &self.pages, key),
        }
    }

    /// Writes the added rows, advances a merge, and drops entries of deleted rows.
    pub(super) fn close(
        mut self,
        rows: &impl ReadableTable<u64, &'static [u8]>,
    ) -> Result<(), ReadError> {
        if self.added.is_empty() && !self.forgot {
            return Ok(());
        }
        let before = read_runs(&self.runs)?;
        let mut runs = before.clone();
        let first_row = rows.first().map_err(unreadable)?.map_or(u64::MAX, |(n, _)| n.value());
        self.write_added(&mut runs)?;
        begin_merges(&mut runs);
        self.carry_on_a_merge(&mut runs, first_row)?;
        self.drop_pages(&mut runs, first_row)?;
        self.keep(&before, &runs)
    }

    fn write_added(&mut self, runs: &mut BTreeMap<u32, Run>) -> Result<(), ReadError> {
        self.added.sort_unstable();
        let Some(last) = self.added.iter().map(|(_, number)| *number).max() else { return Ok(()) };
        let run = unused(runs);
        write_pages(&mut self.pages, run, &self.added)?;
        runs.insert(run, Run { entries: self.added.len() as u64, last, into: None });
        Ok(())
    }

    /// The smallest merge goes first: most merges are of its size, and it ends soon.
    fn carry_on_a_merge(
        &mut self,
        runs: &mut BTreeMap<u32, Run>,
        first_row: u64,
    ) -> Result<(), ReadError> {
        let merged = runs.values().filter(|run| run.into.is_some());
        let Some(output) = merged.min_by_key(|run| run.entries).and_then(|run| run.into) else {
            return Ok(());
        };
        let is_input = |run: &Run| run.into == Some(output);
        let inputs: Vec<u32> =
            runs.iter().filter(|(_, run)| is_input(run)).map(|(number, _)| *number).collect();
        // Each level copies every row once, and there are fewer levels than inputs.
        let pages_each = self.added.len().div_ceil(PAGE) + 1;
        let copied = self.copy_pages(&inputs, output, pages_each, first_row)?;
        if let Some(run) = runs.get_mut(&output) {
            run.entries += copied.entries;
        }
        if copied.all {
            runs.retain(|_, run| !is_input(run));
        }
        Ok(())
    }

    /// Copies entries from the first pages of `inputs` to the end of `output`, except those of
    /// deleted rows, and removes the pages that are copied completely.
    fn copy_pages(
        &mut self,
        inputs: &[u32],
        output: u32,
        pages_each: usize,
        first_row: u64,
    ) -> Result<Copied, ReadError> {
        let last = self.pages.range(all_of(output)).map_err(unreadable)?.next_back();
        let last = last.transpose().map_err(unreadable)?;
        let copied_before =
            last.and_then(|(_, page)| entries_of(page.value()).last().map(|(key, _)| key));
        let (mut entries, mut pages) = (Vec::new(), Vec::new());
        // Up to this key `entries` has all that the inputs have.
        let (mut up_to, mut all) = (u128::MAX, true);
        for input in inputs {
            let mut range = self.pages.range(all_of(*input)).map_err(unreadable)?;
            let mut last = 0;
            for page in range.by_ref().take(pages_each) {
                let (key, page) = page.map_err(unreadable)?;
                entries.extend(entries_of(page.value()));
                last = entries.last().map_or(0, |(key, _): &Entry| *key);
                pages.push((key.value(), last));
            }
            if range.next().is_some() {
                (up_to, all) = (up_to.min(last), false);
            }
        }
        entries.retain(|(key, number)| {
            copied_before.is_none_or(|before| *key > before)
                && *key <= up_to
                && *number >= first_row
        });
        // The stable sort is fast on sorted pieces in a row.
        entries.sort();
        if !all && entries.len() > PAGE {
            // Only whole pages, as long as others follow.
            entries.truncate(entries.len() / PAGE * PAGE);
            up_to = entries.last().map_or(up_to, |(key, _)| *key);
        }
        write_pages(&mut self.pages, output, &entries)?;
        for (page, _) in pages.into_iter().filter(|(_, last)| *last <= up_to) {
            self.pages.remove(page).map_err(unreadable)?;
        }
        Ok(Copied { entries: entries.len() as u64, all })
    }

    /// Drops pages of runs whose rows are all deleted. Merges handle their own pages.
    fn drop_pages(
        &mut self,
        runs: &mut BTreeMap<u32, Run>,
        first_row: u64,
    ) -> Result<(), ReadError> {
        let mut left = DROPPED;
        for number in unmerged(runs) {
            if left == 0 || runs.get(&number).is_none_or(|run| run.last >= first_row) {
                continue;
            }
            let pages = self.pages.range(all_of(number)).map_err(unreadable)?;
            let keys = pages.take(left).map(|page| Ok(page.map_err(unreadable)?.0.value()));
            let keys: Vec<PageKey> = keys.collect::<Result<_, ReadError>>()?;
            for key in &keys {
                self.pages.remove(*key).map_err(unreadable)?;
            }
            left -= keys.len();
            if left > 0 {
                runs.remove(&number);
            }
        }
        Ok(())
    }

    fn keep(
        &mut self,
        before: &BTreeMap<u32, Run>,
        runs: &BTreeMap<u32, Run>,
    ) -> Result<(), ReadError> {
        for number in before.keys().filter(|number| !runs.contains_key(number)) {
            self.runs.remove(number).map_err(unreadable)?;
        }
        for (number, run) in runs.iter().filter(|(number, run)| before.get(number) != Some(run)) {
            let row = (run.entries, run.last, run.into);
            self.runs.insert(number, row).map_err(unreadable)?;
        }
        Ok(())
    }
}

/// The outcome of copying a piece.
struct Copied {
    entries: u64,
    /// Whether the inputs have no more.
    all: bool,
}

/// Starts merges of the levels with enough runs.
fn begin_merges(runs: &mut BTreeMap<u32, Run>) {
    let mut levels: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for number in unmerged(runs) {
        if let Some(run) = runs.get(&number) {
            levels.entry(run.level()).or_default().push(number);
        }
    }
    for inputs in levels.values().flat_map(|numbers| numbers.chunks_exact(MERGED)) {
        let (output, mut last) = (unused(runs), 0);
        for (_, run) in runs.iter_mut().filter(|(number, _)| inputs.contains(number)) {
            run.into = Some(output);
            last = run.last.max(last);
        }
        runs.insert(output, Run { entries: 0, last, into: None });
    }
}

/// Returns the runs that are in no merge, the oldest rows first.
fn unmerged(runs: &BTreeMap<u32, Run>) -> Vec<u32> {
    let is_output = |number: &u32| runs.values().any(|run| run.into == Some(*number));
    let mut unmerged: Vec<(u64, u32)> = runs
        .iter()
        .filter(|(number, run)| run.into.is_none() && !is_output(number))
        .map(|(number, run)| (run.last, *number))
        .collect();
    unmerged.sort_unstable();
    unmerged.into_iter().map(|(_, number)| number).collect()
}

/// Returns a number that no run has.
fn unused(runs: &BTreeMap<u32, Run>) -> u32 {
    (0..).find(|number| !runs.contains_key(number)).unwrap_or(u32::MAX)
}

/// The pages of a run.
fn all_of(run: u32) -> std::ops::RangeInclusive<PageKey> {
    (run, 0)..=(run, u128::MAX)
}

/// Appends sorted entries to a run.
fn write_pages(
    pages: &mut Table<'_, PageKey, &'static [u8]>,
    run: u32,
    entries: &[Entry],
) -> Result<(), ReadError> {
    for entries in entries.chunks(PAGE) {
        let first = entries.first().map_or(0, |(key, _)| *key);
        pages.insert((run, first), encode_page(entries).as_slice()).map_err(unreadable)?;
    }
    Ok(())
}

fn encode_page(entries: &[Entry]) -> Vec<u8> {
    let mut page = Vec::with_capacity(entries.len() * ENTRY);
    for (key, number) in entries {
        page.extend_from_slice(&key.to_be_bytes());
        page.extend_from_slice(&number.to_be_bytes());
    }
    page
}

fn key_of(entry: &[u8; ENTRY]) -> u128 {
    entry.first_chunk().map_or(0, |key| u128::from_be_bytes(*key))
}

fn number_of(entry: &[u8; ENTRY]) -> u64 {
    entry.last_chunk().map_or(0, |number| u64::from_be_bytes(*number))
}

fn entries_of(page: &[u8]) -> impl Iterator<Item = Entry> {
    page.as_chunks::<ENTRY>().0.iter().map(|entry| (key_of(entry), number_of(entry)))
}

fn find_in_page(page: &[u8], key: u128) -> Option<u64> {
    let (entries, _) = page.as_chunks::<ENTRY>();
    let place = entries.binary_search_by_key(&key, key_of).ok()?;
    entries.get(place).map(number_of)
}

/// The rows that the runs of data format 3 covered, of both indexes.
const SPANS: TableDefinition<'static, (&str, u32), (u64, u64)> = TableDefinition::new("run_spans");
/// Entries in a run of that format; newer ones were in memory.
const RUN_OF_FORMAT_3: u64 = 32_768;

/// Converts an index of data format 3 to the present format: its runs stay, and the rows that they
/// do not cover become another run.
pub(super) fn upgrade(
    index: &Index,
    write: &WriteTransaction,
    rows: TableDefinition<'static, u64, &'static [u8]>,
    key_of: impl Fn(u64, &[u8]) -> Result<u128, ReadError>,
) -> Result<(), ReadError> {
    let mut writer = index.open(write)?;
    let mut covered = 0;
    let (spans, name) = (write.open_table(SPANS).map_err(unreadable)?, index.pages.name());
    for span in spans.range((name, 0)..=(name, u32::MAX)).map_err(unreadable)? {
        let (key, span) = span.map_err(unreadable)?;
        let (_, last) = span.value();
        let row = (RUN_OF_FORMAT_3, last, None);
        writer.runs.insert(key.value().1, row).map_err(unreadable)?;
        covered = last.max(covered);
    }
    let rows = write.open_table(rows).map_err(unreadable)?;
    for row in rows.range(covered + 1..).map_err(unreadable)? {
        let (number, row) = row.map_err(unreadable)?;
        writer.add(key_of(number.value(), row.value())?, number.value());
    }
    writer.close(&rows)
}

/// Deletes what only data format 3 has.
pub(super) fn end_upgrade(write: &WriteTransaction) -> Result<(), ReadError> {
    write.delete_table(SPANS).map(|_| ()).map_err(unreadable)
}
