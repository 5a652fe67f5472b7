//! Which records may leave memory, looked at a few at a time.

use std::collections::VecDeque;

/// Keys in the order in which they came into memory.
pub(crate) struct Eviction<K>(VecDeque<K>);

impl<K: Copy> Eviction<K> {
    pub(crate) fn new() -> Self {
        Self(VecDeque::new())
    }

    pub(crate) fn watch(&mut self, key: K) {
        self.0.push_back(key);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Looks at the oldest keys, `step` of them or one in a hundred where that is more, and returns
    /// what `examine` makes of those that are done; the others are looked at again later. A key
    /// for which `examine` has nothing to say is forgotten.
    pub(crate) fn done<T>(&mut self, step: usize, examine: impl Fn(K) -> Examined<T>) -> Vec<T> {
        let step = step.max(self.0.len() / 100).min(self.0.len());
        let mut done = Vec::new();
        for _ in 0..step {
            let Some(key) = self.0.pop_front() else { break };
            match examine(key) {
                Examined::Gone => {}
                Examined::AtWork => self.0.push_back(key),
                Examined::Done(what) => done.push(what),
            }
        }
        done
    }
}

/// What a look at a key shows.
pub(crate) enum Examined<T> {
    /// It has left memory already.
    Gone,
    /// It is needed.
    AtWork,
    /// It may leave.
    Done(T),
}
