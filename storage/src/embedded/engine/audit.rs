//! The audit log, and the attempts on codes.
//!
//! A value holds all entries of a commit under the number of the first: one row per commit, not per
//! entry. Each value begins with the hash before its first entry and the hash after its last, so
//! that reading and writing may begin anywhere.
//!
//! Deliberately absent: an index. Entries are in the order of time, and a search either knows the
//! time or starts from the newest.

use super::unreadable;
use crate::{ATTEMPTS, Attempts, Entry, OUT_OF_ORDER, ReadError};
use iptunnel_domain::Timestamp;
use iptunnel_domain::audit::{ChainHash, Event, Head};
use iptunnel_domain::code::CodeHash;
use iptunnel_domain::lookup::KeyedHash;
use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};

type Pages = TableDefinition<'static, u64, &'static [u8]>;
type OfCodes = TableDefinition<'static, u128, &'static [u8]>;

/// Pages of the log, under the number of their first entry.
pub(super) const AUDIT: Pages = TableDefinition::new("audit");
/// The attempts on a code: the number of those that are not kept, and then those that are.
pub(super) const OF_CODES: OfCodes = TableDefinition::new("attempts");

/// Bytes of a hash.
const HASH: usize = 32;
/// Bytes at the front of a page: the hash before its entries, then the hash and the number of the
/// last.
const FRONT: usize = 2 * HASH + 8;
/// Bytes of the count at the front of a code's attempts.
const COUNT: usize = 8;

pub(super) fn create(write: &WriteTransaction) -> Result<(), redb::Error> {
    write.open_table(AUDIT)?;
    write.open_table(OF_CODES)?;
    Ok(())
}

/// The log within a write transaction.
pub(super) struct Log<'txn> {
    pages: Table<'txn, u64, &'static [u8]>,
    of_codes: Table<'txn, u128, &'static [u8]>,
    /// The entries that this transaction adds, and where each of them ends.
    added: Vec<u8>,
    ends: Vec<usize>,
}

impl<'txn> Log<'txn> {
    pub(super) fn open(write: &'txn WriteTransaction) -> Result<Self, ReadError> {
        Ok(Self {
            pages: write.open_table(AUDIT).map_err(unreadable)?,
            of_codes: write.open_table(OF_CODES).map_err(unreadable)?,
            added: Vec::new(),
            ends: Vec::new(),
        })
    }

    pub(super) fn add(&mut self, event: &Event) {
        event.encode(&mut self.added);
        self.ends.push(self.added.len());
    }

    /// Returns whether attempts on this code are kept.
    pub(super) fn has_attempts_on(&self, code: CodeHash) -> Result<bool, ReadError> {
        Ok(self.of_codes.get(code.0.as_u128()).map_err(unreadable)?.is_some())
    }

    /// Records an attempt on a code that exists.
    pub(super) fn note_attempt(&mut self, code: CodeHash, event: &Event) -> Result<(), ReadError> {
        let code = code.0.as_u128();
        let before = self.of_codes.get(code).map_err(unreadable)?;
        let before = before.map(|row| row.value().to_vec()).unwrap_or_else(|| vec![0; COUNT]);
        let attempts = decode_attempts(&before)?;
        let mut row = before;
        if attempts.kept.len() < ATTEMPTS {
            event.encode(&mut row);
        } else if let Some((count, _)) = row.split_first_chunk_mut::<COUNT>() {
            *count = attempts.more.saturating_add(1).to_le_bytes();
        }
        self.of_codes.insert(code, row.as_slice()).map_err(unreadable)?;
        Ok(())
    }

    /// Deletes the attempts on a code.
    pub(super) fn forget_attempts_on(&mut self, code: CodeHash) -> Result<(), ReadError> {
        self.of_codes.remove(code.0.as_u128()).map_err(unreadable)?;
        Ok(())
    }

    /// Returns at most `limit` codes on which attempts are kept, in the order of their hashes.
    pub(super) fn codes_with_attempts(
        &self,
        first: CodeHash,
        limit: usize,
    ) -> Result<Vec<CodeHash>, ReadError> {
        let rows = self.of_codes.range(first.0.as_u128()..).map_err(unreadable)?.take(limit);
        rows.map(|row| {
            let (code, _) = row.map_err(unreadable)?;
            Ok(CodeHash(KeyedHash(code.value().to_be_bytes())))
        })
        .collect()
    }

    /// Writes the added entries as one page.
    pub(super) fn close(mut self) -> Result<(), ReadError> {
        if self.added.is_empty() {
            return Ok(());
        }
        let before = head(&self.pages)?;
        let (mut after, mut begin) = (before, 0);
        for end in self.ends {
            after = after.after(self.added.get(begin..end).unwrap_or_default());
            begin = end;
        }
        let last = after.entries.to_le_bytes();
        let page = [&before.hash.0[..], &after.hash.0, &last, &self.added].concat();
        self.pages.insert(before.entries.saturating_add(1), page.as_slice()).map_err(unreadable)?;
        Ok(())
    }
}

/// Returns the number and hash of the last entry.
pub(super) fn head(pages: &impl ReadableTable<u64, &'static [u8]>) -> Result<Head, ReadError> {
    let Some((first, page)) = pages.last().map_err(unreadable)? else {
        return Ok(Head::default());
    };
    let front = page.value().get(HASH..).and_then(|rest| {
        let (hash, rest) = rest.split_first_chunk::<HASH>()?;
        Some(Head { entries: u64::from_le_bytes(*rest.first_chunk()?), hash: ChainHash(*hash) })
    });
    front.ok_or_else(|| broken(first.value()))
}

fn broken(first: u64) -> ReadError {
    ReadError(format!("the audit log is broken at entry {first}"))
}

/// Returns the entries of the page whose first is number `first`.
fn decode_page(first: u64, page: &[u8]) -> Result<Vec<Entry>, ReadError> {
    let hash = page.first_chunk::<HASH>().ok_or_else(|| broken(first))?;
    let mut rest = page.get(FRONT..).ok_or_else(|| broken(first))?;
    let mut head = Head { entries: first.saturating_sub(1), hash: ChainHash(*hash) };
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let (event, behind) = Event::decode(rest).ok_or_else(|| broken(first))?;
        let bytes = rest.get(..rest.len() - behind.len()).unwrap_or_default();
        head = head.after(bytes);
        entries.push(Entry { event, head });
        rest = behind;
    }
    Ok(entries)
}

/// Calls `each` with entries, the oldest first.
pub(super) fn from(
    read: &ReadTransaction,
    first: u64,
    each: &mut dyn FnMut(Entry) -> bool,
) -> Result<(), ReadError> {
    let pages = read.open_table(AUDIT).map_err(unreadable)?;
    let begins = pages.range(..=first).map_err(unreadable)?.next_back();
    let begins = begins.transpose().map_err(unreadable)?.map_or(0, |(number, _)| number.value());
    for page in pages.range(begins..).map_err(unreadable)? {
        let (number, page) = page.map_err(unreadable)?;
        for entry in decode_page(number.value(), page.value())? {
            if entry.head.entries >= first && !each(entry) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Calls `each` with entries, the newest first.
pub(super) fn before(
    read: &ReadTransaction,
    before: u64,
    each: &mut dyn FnMut(Entry) -> bool,
) -> Result<(), ReadError> {
    let pages = read.open_table(AUDIT).map_err(unreadable)?;
    for page in pages.range(..before).map_err(unreadable)?.rev() {
        let (number, page) = page.map_err(unreadable)?;
        for entry in decode_page(number.value(), page.value())?.into_iter().rev() {
            if entry.head.entries < before && !each(entry) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Finds the first entry of the last page that begins before `at`, by binary search.
pub(super) fn number_at(read: &ReadTransaction, at: Timestamp) -> Result<u64, ReadError> {
    let pages = read.open_table(AUDIT).map_err(unreadable)?;
    let at = Timestamp(at.0.saturating_sub(OUT_OF_ORDER));
    let last = pages.last().map_err(unreadable)?.map_or(0, |(number, _)| number.value());
    let (mut low, mut high) = (1, last);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        let Some(page) = pages.range(..=middle).map_err(unreadable)?.next_back() else { break };
        let (number, page) = page.map_err(unreadable)?;
        let (number, page) = (number.value(), page.value().get(FRONT..).unwrap_or_default());
        let begins = Event::decode(page).map_or(Timestamp(0), |(event, _)| event.at);
        if begins < at {
            low = middle;
        } else if number <= low {
            break;
        } else {
            high = number - 1;
        }
    }
    let page = pages.range(..=low).map_err(unreadable)?.next_back();
    Ok(page.transpose().map_err(unreadable)?.map_or(1, |(number, _)| number.value()))
}

/// Returns the attempts on a code.
pub(super) fn attempts(read: &ReadTransaction, code: CodeHash) -> Result<Attempts, ReadError> {
    let table = read.open_table(OF_CODES).map_err(unreadable)?;
    let row = table.get(code.0.as_u128()).map_err(unreadable)?;
    row.map_or_else(|| Ok(Attempts::default()), |row| decode_attempts(row.value()))
}

fn decode_attempts(row: &[u8]) -> Result<Attempts, ReadError> {
    let broken = || ReadError("the attempts on a code cannot be read".into());
    let (more, mut rest) = row.split_first_chunk::<COUNT>().ok_or_else(broken)?;
    let mut attempts = Attempts { kept: Vec::new(), more: u64::from_le_bytes(*more) };
    while !rest.is_empty() {
        let (event, behind) = Event::decode(rest).ok_or_else(broken)?;
        attempts.kept.push(event);
        rest = behind;
    }
    Ok(attempts)
}

#[cfg(test)]
pub(super) fn count_codes_with_attempts(read: &ReadTransaction) -> u64 {
    redb::ReadableTableMetadata::len(&read.open_table(OF_CODES).unwrap()).unwrap()
}

/// Keeps an attempt the way older programs did, which did not check whether its code exists.
#[cfg(test)]
pub(super) fn keep_attempt_unasked(write: &WriteTransaction, event: &Event) {
    let mut row = vec![0; COUNT];
    event.encode(&mut row);
    let code = event.code.unwrap().0.as_u128();
    write.open_table(OF_CODES).unwrap().insert(code, row.as_slice()).unwrap();
}
