//! A change of a record that is under way, and how the record's owner learns of its end.

use crate::handles::Handles;
use crate::memory::record_cache::{CacheOwner, CachedRecord, Eviction};
use std::sync::Arc;

/// A change of a record that is under way. It travels with the change; however that ends, by a
/// commit, a conflict, a failure, or by being dropped on its way, the record's owner hears of it, and
/// whoever waits goes on.
pub(crate) struct PendingChange<K: CacheOwner>(pub(super) Option<Unsettled<K>>);

/// What the owner of the record is sent when the change has ended.
pub(super) struct Unsettled<K: CacheOwner> {
    pub(super) handles: Arc<Handles>,
    pub(super) key: <K::Record as CachedRecord>::Key,
    pub(super) generation: u32,
    pub(super) outcome: Option<K::Record>,
}

impl<K: CacheOwner> PendingChange<K> {
    /// The change was written, and this is the record now.
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
