//! From a hash or an id to a row's number, without a random page per record.
//!
//! New rows are remembered in memory. Once [`RUN`] of them have gathered they are sorted and
//! written as one *run*, page after page under rising keys, and forgotten. A run covers all rows
//! between two numbers; what lies above the last run is read back into memory when the store is
//! opened. Looking up a past row asks each run once; only rows that are no longer at work are
//! looked up here at all.
//!
//! Deliberately absent: runs are never merged. At 32,768 rows to a run, ten million past rows are
//! 305 runs, and each costs about two microseconds of a look-up that is not on the hot path.

use super::unreadable;
use crate::ReadError;
use redb::{ReadTransaction, ReadableTable, TableDefinition, TableHandle, WriteTransaction};
use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

/// Rows in a run: about 800 KB, written in some milliseconds.
const RUN: usize = 32_768;
/// Bytes of an entry: a key of 16, a number of 8.
const ENTRY: usize = 24;
/// Entries to a page: as many as fill 4 KiB less what redb adds.
const PAGE: usize = 160;

/// Which run, and the first key on the page.
type PageKey = (u32, u128);
/// The first and the last row's number of a run.
type Span = (u64, u64);

/// The pages of a run, under its number and their first key.
type Runs = TableDefinition<'static, PageKey, &'static [u8]>;
type Rows = TableDefinition<'static, u64, &'static [u8]>;

/// The runs of both indexes: which rows each covers.
const SPANS: TableDefinition<'static, (&str, u32), Span> = TableDefinition::new("run_spans");

pub(super) fn create(write: &WriteTransaction) -> Result<(), redb::Error> {
    write.open_table(SPANS)?;
    for name in ["code_runs", "activation_runs"] {
        write.open_table(Runs::new(name))?;
    }
    Ok(())
}

/// One index: over codes by hash, or over activations by id.
pub(super) struct Index {
    runs: Runs,
    rows: Rows,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    recent: HashMap<u128, u64>,
    spans: Vec<(u32, Span)>,
}

impl State {
    fn last_indexed(&self) -> u64 {
        self.spans.last().map_or(0, |(_, (_, last))| *last)
    }
}

/// What a commit has to tell an index once it is on disk.
#[derive(Default)]
pub(super) struct Indexed {
    /// New rows: key and number.
    pub(super) added: Vec<(u128, u64)>,
    /// Whether rows were removed.
    pub(super) forgot: bool,
    run: Option<(u32, Span)>,
    dropped: Vec<u32>,
}

impl Index {
    pub(super) fn new(runs: &'static str, rows: Rows) -> Self {
        Self { runs: Runs::new(runs), rows, state: RwLock::default() }
    }

    /// Reads which runs there are, and the rows that none of them covers.
    pub(super) fn load(
        &self,
        read: &ReadTransaction,
        key_of: impl Fn(u64, &[u8]) -> Result<u128, ReadError>,
    ) -> Result<(), ReadError> {
        let mut state = State::default();
        let spans = read.open_table(SPANS).map_err(unreadable)?;
        let name = self.runs.name();
        for row in spans.range((name, 0)..=(name, u32::MAX)).map_err(unreadable)? {
            let (key, span) = row.map_err(unreadable)?;
            state.spans.push((key.value().1, span.value()));
        }
        let rows = read.open_table(self.rows).map_err(unreadable)?;
        for row in rows.range(state.last_indexed() + 1..).map_err(unreadable)? {
            let (number, row) = row.map_err(unreadable)?;
            state.recent.insert(key_of(number.value(), row.value())?, number.value());
        }
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        Ok(())
    }

    /// The number of the row with this key.
    pub(super) fn find(&self, read: &ReadTransaction, key: u128) -> Result<Option<u64>, ReadError> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = state.recent.get(&key) {
            return Ok(Some(*number));
        }
        let runs: Vec<u32> = state.spans.iter().rev().map(|(run, _)| *run).collect();
        drop(state);
        let table = read.open_table(self.runs).map_err(unreadable)?;
        for run in runs {
            let page = table.range((run, 0)..=(run, key)).map_err(unreadable)?.next_back();
            if let Some(page) = page {
                let (_, page) = page.map_err(unreadable)?;
                if let Some(number) = find_in_page(page.value(), key) {
                    return Ok(Some(number));
                }
            }
        }
        Ok(None)
    }

    /// Writes what is in memory as a run, where enough has gathered.
    pub(super) fn write_run(
        &self,
        write: &WriteTransaction,
        indexed: &mut Indexed,
    ) -> Result<(), ReadError> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        if state.recent.len() < RUN {
            return Ok(());
        }
        let mut entries: Vec<(u128, u64)> = state.recent.iter().map(|(k, n)| (*k, *n)).collect();
        entries.sort_unstable();
        let last = entries.iter().map(|(_, number)| *number).max().unwrap_or(0);
        let span = (state.last_indexed() + 1, last);
        let run = state.spans.last().map_or(0, |(run, _)| run + 1);
        let mut table = write.open_table(self.runs).map_err(unreadable)?;
        for page in entries.chunks(PAGE) {
            let first = page.first().map_or(0, |(key, _)| *key);
            table.insert((run, first), encode_page(page).as_slice()).map_err(unreadable)?;
        }
        let mut spans = write.open_table(SPANS).map_err(unreadable)?;
        spans.insert((self.runs.name(), run), span).map_err(unreadable)?;
        indexed.run = Some((run, span));
        Ok(())
    }

    /// Drops the runs whose rows have all been forgotten.
    pub(super) fn forget_runs(
        &self,
        write: &WriteTransaction,
        indexed: &mut Indexed,
    ) -> Result<(), ReadError> {
        if !indexed.forgot {
            return Ok(());
        }
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let rows = write.open_table(self.rows).map_err(unreadable)?;
        let first = rows.first().map_err(unreadable)?.map_or(u64::MAX, |(n, _)| n.value());
        for (run, _) in state.spans.iter().filter(|(_, (_, last))| *last < first) {
            let mut table = write.open_table(self.runs).map_err(unreadable)?;
            table.retain_in((*run, 0)..=(*run, u128::MAX), |_, _| false).map_err(unreadable)?;
            let mut spans = write.open_table(SPANS).map_err(unreadable)?;
            spans.remove((self.runs.name(), *run)).map_err(unreadable)?;
            indexed.dropped.push(*run);
        }
        Ok(())
    }

    /// Learns what a commit wrote, now that it is on disk.
    pub(super) fn publish(&self, indexed: Indexed) {
        if indexed.added.is_empty() && indexed.run.is_none() && indexed.dropped.is_empty() {
            return;
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = indexed.run {
            state.recent = HashMap::new();
            state.spans.push(run);
        }
        state.recent.extend(indexed.added);
        state.spans.retain(|(run, _)| !indexed.dropped.contains(run));
    }
}

fn encode_page(entries: &[(u128, u64)]) -> Vec<u8> {
    let mut page = Vec::with_capacity(entries.len() * ENTRY);
    for (key, number) in entries {
        page.extend_from_slice(&key.to_be_bytes());
        page.extend_from_slice(&number.to_be_bytes());
    }
    page
}

fn find_in_page(page: &[u8], key: u128) -> Option<u64> {
    let (entries, _) = page.as_chunks::<ENTRY>();
    let key_of =
        |entry: &[u8; ENTRY]| entry.first_chunk().map_or(0, |key| u128::from_be_bytes(*key));
    let place = entries.binary_search_by_key(&key, key_of).ok()?;
    entries.get(place)?.last_chunk().map(|number| u64::from_be_bytes(*number))
}
