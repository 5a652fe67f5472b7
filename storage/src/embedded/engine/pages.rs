//! Small values that change often, many in one row: check-ins and counters.
//!
//! Both have dense numbers, so a page is an array: one write stores the check-ins of a thousand
//! servers.

use super::unreadable;
use crate::{CheckIn, Counter, CounterRow, ReadError};
use iptunnel_domain::Timestamp;
use iptunnel_domain::limit::Policy;
use iptunnel_domain::server::ServerNumber;
use redb::{ReadableTable, Table};

/// Servers per page: their seconds fill 4 KiB less redb's overhead.
const SERVERS_PER_PAGE: u32 = 960;
/// A page entry: seconds since the epoch, 0 if there was no check-in. Works until the year 2106.
const SECONDS: usize = 4;

/// Counters per page.
const COUNTERS_PER_PAGE: u32 = 192;
/// Bytes of a counter: key 8, window end 8, used 4, policy 1; all zero if the slot is free.
const COUNTER: usize = 21;

/// Replaces parts of the arrays in a table of pages. `items` come as (place, bytes).
fn patch<const N: usize>(
    table: &mut Table<'_, u32, &'static [u8]>,
    per_page: u32,
    items: impl Iterator<Item = (u32, [u8; N])>,
) -> Result<(), ReadError> {
    let mut items: Vec<(u32, [u8; N])> = items.collect();
    // Stable: of two items for one place the later one stays last and wins.
    items.sort_by_key(|(place, _)| *place);
    for items in items.chunk_by(|(a, _), (b, _)| a / per_page == b / per_page) {
        let Some((place, _)) = items.first() else { continue };
        let page = place / per_page;
        let stored = table.get(page).map_err(unreadable)?;
        let mut bytes = stored.map_or_else(Vec::new, |stored| stored.value().to_vec());
        for (place, item) in items {
            let at = (place % per_page) as usize * N;
            if bytes.len() < at + N {
                bytes.resize(at + N, 0);
            }
            if let Some(hole) = bytes.get_mut(at..at + N) {
                hole.copy_from_slice(item);
            }
        }
        table.insert(page, bytes.as_slice()).map_err(unreadable)?;
    }
    Ok(())
}

/// Writes when servers were last seen, in the order of their arrival: the last one counts, even if
/// an earlier one has a later time from a clock that was ahead.
pub(super) fn write_check_ins(
    table: &mut Table<'_, u32, &'static [u8]>,
    check_ins: &[CheckIn],
) -> Result<(), ReadError> {
    let seconds = |at: Timestamp| u32::try_from(at.0).unwrap_or(u32::MAX).to_be_bytes();
    let check_ins = check_ins.iter().map(|c| (c.server.0, seconds(c.at)));
    patch(table, SERVERS_PER_PAGE, check_ins)
}

/// Reads check-ins of servers in a row, each page once.
pub(super) struct CheckInReader<'t, T> {
    table: &'t T,
    page: Option<u32>,
    bytes: Vec<u8>,
}

impl<'t, T: ReadableTable<u32, &'static [u8]>> CheckInReader<'t, T> {
    pub(super) fn new(table: &'t T) -> Self {
        Self { table, page: None, bytes: Vec::new() }
    }

    /// Returns when the server was last seen; the epoch if it never checked in.
    pub(super) fn at(&mut self, server: ServerNumber) -> Result<Timestamp, ReadError> {
        let page = server.0 / SERVERS_PER_PAGE;
        if self.page != Some(page) {
            self.page = Some(page);
            self.bytes.clear();
            if let Some(row) = self.table.get(page).map_err(unreadable)? {
                self.bytes.extend_from_slice(row.value());
            }
        }
        let (seconds, _) = self.bytes.as_chunks::<SECONDS>();
        let place = (server.0 % SERVERS_PER_PAGE) as usize;
        Ok(Timestamp(seconds.get(place).map_or(0, |s| u64::from(u32::from_be_bytes(*s)))))
    }
}

pub(super) fn write_counters(
    table: &mut Table<'_, u32, &'static [u8]>,
    rows: &[CounterRow],
) -> Result<(), ReadError> {
    patch(table, COUNTERS_PER_PAGE, rows.iter().map(|row| (row.slot, encode_counter(row.counter))))
}

fn encode_counter(counter: Option<Counter>) -> [u8; COUNTER] {
    let mut bytes = [0; COUNTER];
    if let Some(counter) = counter {
        let fields = [
            &counter.key.to_be_bytes()[..],
            &counter.window_end.0.to_be_bytes()[..],
            &counter.used.to_be_bytes()[..],
            &[counter.policy as u8][..],
        ];
        for (hole, byte) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *hole = *byte;
        }
    }
    bytes
}

fn decode_counter(bytes: &[u8; COUNTER]) -> Option<Counter> {
    let (key, rest) = bytes.split_first_chunk::<8>()?;
    let (window_end, rest) = rest.split_first_chunk::<8>()?;
    let (used, rest) = rest.split_first_chunk::<4>()?;
    let used = u32::from_be_bytes(*used);
    let policy = Policy::from_number(*rest.first()?)?;
    (used > 0).then_some(Counter {
        key: u64::from_be_bytes(*key),
        policy,
        used,
        window_end: Timestamp(u64::from_be_bytes(*window_end)),
    })
}

pub(super) fn each_counter(
    page: u32,
    bytes: &[u8],
    each: &mut dyn FnMut(u32, Counter),
) -> Result<(), ReadError> {
    let (counters, rest) = bytes.as_chunks::<COUNTER>();
    if !rest.is_empty() {
        return Err(ReadError(format!("page {page} of the counters is cut short")));
    }
    for (slot, counter) in (page.saturating_mul(COUNTERS_PER_PAGE)..).zip(counters) {
        if let Some(counter) = decode_counter(counter) {
            each(slot, counter);
        }
    }
    Ok(())
}
