//! The states of webhooks. The table is missing in files of older programs, and older programs leave it
//! alone: it needs no data format of its own.

use super::{begin_write, unreadable};
use crate::ReadError;
use redb::{Database, ReadTransaction, ReadableTable, TableDefinition, TableError};

pub(super) const WEBHOOKS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("webhooks");

/// Returns all rows.
pub(super) fn all(read: &ReadTransaction) -> Result<Vec<(String, Vec<u8>)>, ReadError> {
    let table = match read.open_table(WEBHOOKS) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        table => table.map_err(unreadable)?,
    };
    let rows = table.iter().map_err(unreadable)?;
    rows.map(|row| {
        let (name, state) = row.map_err(unreadable)?;
        Ok((name.value().to_owned(), state.value().to_vec()))
    })
    .collect()
}

/// Writes rows.
pub(super) fn keep(database: &Database, states: &[(String, Vec<u8>)]) -> Result<(), ReadError> {
    let write = begin_write(database).map_err(unreadable)?;
    let mut table = write.open_table(WEBHOOKS).map_err(unreadable)?;
    for (name, state) in states {
        table.insert(name.as_str(), state.as_slice()).map_err(unreadable)?;
    }
    drop(table);
    write.commit().map_err(unreadable)
}
