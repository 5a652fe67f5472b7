//! A pending change of a record, which notifies the record's owner when it ends.

use crate::handles::Handles;
use crate::memory::record_cache::{CacheOwner, CachedRecord, Eviction};
use std::sync::Arc;

/// A pending change of a record. It travels with the change. However the change ends (a commit, a
/// conflict, a failure, or dropped in flight), the record's owner is notified, and the commands that
/// wait for the record go on.
pub(crate) struct PendingChange<K: CacheOwner>(pub(super) Option<Unsettled<K>>);

/// What the owner of the record is sent when the change has ended.
pub(super) struct Unsettled<K: CacheOwner> {
    pub(super) handles: Arc<Handles>,
    pub(super) key: <K::Record as CachedRecord>::Key,
    pub(super) generation: u32,
    pub(super) outcome: Option<K::Record>,
}

impl<K: CacheOwner> PendingChange<K> {
    /// Marks the change as written, with the new record.
    pub(crate) fn written(mut self, record: &K::Record) {
        if let Some(settling) = &mut self.0 {
            settling.outcome = Some(record.clone());
        }
    }
}

impl<K: CacheOwner> Drop for PendingChange<K> {
    fn drop(&mut self) {
        if let Some(Unsettled { handles, key, generation, outcome }) = self.0.take() {
            K::mailbox(&handles).send(Eviction::Settled(key, generation, outcome));
        }
    }
}
