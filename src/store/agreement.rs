//! The secret that belongs to a store: its lookup key. It is compared by a keyed hash, which reveals
//! nothing of it.

use super::error::StoreError;
use iptunnel_domain::lookup::{KeyedHash, LookupKey, Purpose};
use iptunnel_storage::{LOOKUP_KEY, Store};
use std::path::Path;

/// Returns the hash by which a store knows its lookup key.
pub fn hash_of_lookup_key(lookup: &LookupKey) -> KeyedHash {
    lookup.hash(Purpose::Agreement, b"")
}

/// Checks that the lookup key is the one that the store was made with: with another one, no record could
/// be found. A store that knows none yet takes this one.
///
/// # Errors
/// It is another key, or the store cannot be read.
pub fn agree(store: &dyn Store, lookup: &LookupKey, file: &Path) -> Result<(), StoreError> {
    if store.agree(LOOKUP_KEY, hash_of_lookup_key(lookup))? {
        Ok(())
    } else {
        Err(StoreError::OtherKey { file: file.to_owned() })
    }
}
