//! What every start on a store must have in common, as hashes. The table is missing in files of
//! older programs, and older programs leave it alone: it needs no data format of its own.

use super::{begin_write, unreadable};
use crate::ReadError;
use iptunnel_domain::lookup::KeyedHash;
use redb::{Database, ReadTransaction, TableDefinition, TableError};

pub(super) const AGREED: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("agreed");

/// Returns the hash that was set for `what`.
pub(super) fn find(read: &ReadTransaction, what: &str) -> Result<Option<KeyedHash>, ReadError> {
    let table = match read.open_table(AGREED) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        table => table.map_err(unreadable)?,
    };
    let Some(row) = table.get(what).map_err(unreadable)? else { return Ok(None) };
    let hash = row.value().try_into().map_err(|_| ReadError("a hash has a wrong length".into()))?;
    Ok(Some(KeyedHash(hash)))
}

/// Sets the hash for `what`.
pub(super) fn set(database: &Database, what: &str, hash: KeyedHash) -> Result<(), ReadError> {
    let write = begin_write(database).map_err(unreadable)?;
    let mut table = write.open_table(AGREED).map_err(unreadable)?;
    table.insert(what, hash.0.as_slice()).map_err(unreadable)?;
    drop(table);
    write.commit().map_err(unreadable)
}
