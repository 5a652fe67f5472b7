//! What is wrong with a shared store at present, in words for people: the page *Now* shows it, in place of a log
//! that says when it began.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The kinds of trouble. Each is there once, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// The store does not answer.
    Silent,
    /// The store answers late.
    Slow,
    /// The store takes no commits.
    Refuses,
    /// The clocks differ.
    Clock,
    /// The store is set up so that it may lose something, or soon fails.
    Settings,
}

/// The present troubles, each with its words and since when it is there.
#[derive(Debug, Default)]
pub struct Troubles(Mutex<BTreeMap<Trouble, (Instant, String)>>);

impl Troubles {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Trouble, (Instant, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes whether a trouble is there: its words, or `None`. One that goes on keeps its begin.
    pub fn note(&self, trouble: Trouble, words: Option<String>) {
        let mut present = self.lock();
        match words {
            Some(words) => {
                present.entry(trouble).or_insert_with(|| (Instant::now(), String::new())).1 = words
            }
            None => drop(present.remove(&trouble)),
        }
    }

    /// Returns whether a trouble is there.
    pub fn has(&self, trouble: Trouble) -> bool {
        self.lock().contains_key(&trouble)
    }

    /// Returns how long each trouble has been there, and its words.
    pub fn present(&self) -> Vec<(Duration, String)> {
        self.lock().values().map(|(since, words)| (since.elapsed(), words.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_that_goes_on_keeps_its_begin_and_has_its_newest_words() {
        let troubles = Troubles::default();
        troubles.note(Trouble::Slow, Some("100 ms".into()));
        let begun = troubles.lock()[&Trouble::Slow].0;
        troubles.note(Trouble::Slow, Some("200 ms".into()));
        assert_eq!(troubles.lock()[&Trouble::Slow], (begun, "200 ms".into()));
        troubles.note(Trouble::Silent, Some("no answer".into()));
        let words: Vec<_> = troubles.present().into_iter().map(|(_, words)| words).collect();
        assert_eq!(words, ["no answer", "200 ms"]);
        troubles.note(Trouble::Silent, None);
        assert!(!troubles.has(Trouble::Silent) && troubles.has(Trouble::Slow));
    }
}
