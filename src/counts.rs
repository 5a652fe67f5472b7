//! Counts by key, such as the open connections of each network.

use dashmap::DashMap;
use std::hash::Hash;

/// Counts by key. A key with a count of zero takes no memory.
#[derive(Debug)]
pub struct Counts<K: Eq + Hash>(DashMap<K, usize>);

impl<K: Eq + Hash> Default for Counts<K> {
    fn default() -> Self {
        Self(DashMap::new())
    }
}

impl<K: Eq + Hash> Counts<K> {
    /// Adds one and returns the new count.
    pub fn up(&self, key: K) -> usize {
        let mut count = self.0.entry(key).or_default();
        *count += 1;
        *count
    }

    /// Takes one away.
    pub fn down(&self, key: &K) {
        if let Some(mut count) = self.0.get_mut(key) {
            *count = count.saturating_sub(1);
        }
        self.0.remove_if(key, |_, count| *count == 0);
    }

    /// Returns whether all counts are zero.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
