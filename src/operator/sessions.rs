//! Login sessions.

use iptunnel_domain::lookup::KeyedHash;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// An unused session ends after this time: one working day.
const SESSION: Duration = Duration::from_secs(12 * 3600);
/// The most sessions that are kept. Beyond that, the oldest is removed.
const REMEMBERED: usize = 10_000;

struct Session {
    csrf: String,
    /// The master token at login. A new master token ends the session.
    master: KeyedHash,
    used: Instant,
}

/// The login sessions.
#[derive(Default)]
pub struct Sessions(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// By the keyed hash of the cookie.
    open: HashMap<KeyedHash, Session>,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the CSRF token of the session with this cookie, if it is valid. With `by_person` the
    /// session's lifetime starts again.
    pub fn csrf(&self, cookie: KeyedHash, master: &KeyedHash, by_person: bool) -> Option<String> {
        let mut inner = self.lock();
        let session = inner.open.get_mut(&cookie)?;
        if session.used.elapsed() >= SESSION || !session.master.ct_eq(master) {
            inner.open.remove(&cookie);
            return None;
        }
        if by_person {
            session.used = Instant::now();
        }
        Some(session.csrf.clone())
    }

    /// Opens a session.
    pub fn open(&self, cookie: KeyedHash, csrf: String, master: KeyedHash) {
        let mut inner = self.lock();
        remove_oldest_if_full(&mut inner.open, |session| session.used);
        inner.open.insert(cookie, Session { csrf, master, used: Instant::now() });
    }

    /// Ends the session with this cookie.
    pub fn close(&self, cookie: KeyedHash) {
        self.lock().open.remove(&cookie);
    }
}

/// Removes the oldest entry if the map is full.
fn remove_oldest_if_full<K: Copy + Eq + Hash, V>(
    map: &mut HashMap<K, V>,
    since: impl Fn(&V) -> Instant,
) {
    if map.len() < REMEMBERED {
        return;
    }
    let oldest = map.iter().min_by_key(|(_, value)| since(value)).map(|(key, _)| *key);
    if let Some(oldest) = oldest {
        map.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u8) -> KeyedHash {
        KeyedHash([number; 16])
    }

    #[test]
    fn automatic_refreshes_do_not_extend_a_session() {
        let sessions = Sessions::default();
        sessions.open(hash(1), "token".into(), hash(0));
        let long_ago = Instant::now().checked_sub(SESSION / 2).unwrap();
        let used = || sessions.lock().open[&hash(1)].used;
        sessions.lock().open.get_mut(&hash(1)).unwrap().used = long_ago;
        assert!(sessions.csrf(hash(1), &hash(0), false).is_some());
        assert_eq!(used(), long_ago);
        assert!(sessions.csrf(hash(1), &hash(0), true).is_some());
        assert!(used() > long_ago);
    }
}
