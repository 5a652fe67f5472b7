//! Who is logged in, and who failed to.

use iptunnel_domain::address::caller_network;
use iptunnel_domain::lookup::KeyedHash;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A session that nobody uses ends after this long: a working day.
const SESSION: Duration = Duration::from_secs(12 * 3600);
/// Wrong tokens from one address in a window.
const FAILURES: u32 = 10;
/// The window in which they are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses and sessions that are remembered: beyond that the oldest go.
const REMEMBERED: usize = 10_000;

struct Session {
    csrf: String,
    /// The master token it was opened with: another one ends it.
    master: KeyedHash,
    used: Instant,
}

/// Who is logged in, and who failed to.
#[derive(Default)]
pub struct Sessions(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// By the keyed hash of the cookie.
    open: HashMap<KeyedHash, Session>,
    failures: HashMap<IpAddr, (Instant, u32)>,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds to wait where an address has failed too often.
    pub fn must_wait(&self, address: IpAddr) -> Option<u64> {
        let address = caller_network(address);
        let inner = self.lock();
        let (since, count) = inner.failures.get(&address)?;
        let left = WINDOW.checked_sub(since.elapsed())?;
        (*count >= FAILURES).then_some(left.as_secs() + 1)
    }

    /// Counts a wrong token.
    pub fn failed(&self, address: IpAddr) {
        let address = caller_network(address);
        let mut inner = self.lock();
        if !inner.failures.contains_key(&address) {
            make_room(&mut inner.failures, |(since, _)| *since);
        }
        let now = Instant::now();
        let (since, count) = inner.failures.entry(address).or_insert((now, 0));
        if since.elapsed() >= WINDOW {
            (*since, *count) = (now, 0);
        }
        *count += 1;
    }

    /// The CSRF token of the session with this cookie, where it is good. `by_person`: the session
    /// is in use, and lasts from now on.
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
        make_room(&mut inner.open, |session| session.used);
        inner.open.insert(cookie, Session { csrf, master, used: Instant::now() });
    }

    /// Ends the session with this cookie.
    pub fn close(&self, cookie: KeyedHash) {
        self.lock().open.remove(&cookie);
    }
}

/// Lets the oldest go where no more is remembered.
fn make_room<K: Copy + Eq + Hash, V>(map: &mut HashMap<K, V>, since: impl Fn(&V) -> Instant) {
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
    fn what_a_page_fetches_by_itself_does_not_keep_a_session_open() {
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

    #[test]
    fn as_many_addresses_are_remembered_as_there_is_room_for_and_the_oldest_go() {
        let sessions = Sessions::default();
        let address = |number: usize| IpAddr::from(((number as u128) << 64).to_be_bytes());
        for number in 0..REMEMBERED + 5 {
            sessions.failed(address(number));
        }
        let inner = sessions.lock();
        assert_eq!(inner.failures.len(), REMEMBERED);
        assert!(inner.failures.contains_key(&address(REMEMBERED + 4)));
        assert!(!inner.failures.contains_key(&address(0)));
    }
}
