//! Login sessions of the console.
//!
//! A session has two secrets: a cookie, and a key that is a part of every address of the console's
//! pages. A browser may send the cookie to every port of the host, but the key to this listener alone.
//! Neither is of use without the other. Sessions are in memory only: a restart ends them all, as does
//! a new master token.

use iptunnel_domain::Timestamp;
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::time::Lifespan;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The lifetime of a session in seconds, however much it is used: one working day.
const LIFETIME: u64 = 12 * 3600;
/// The most sessions. Beyond that, the oldest ends.
const MOST: usize = 1000;
/// The longest name of a browser that is kept, in characters.
const BROWSER: usize = 200;

/// A session without its secrets.
#[derive(Clone, Debug)]
pub struct Session {
    /// The name in lists and in the audit log: no secret.
    pub id: String,
    /// The keyed hash of the key in the addresses of pages.
    pub key: KeyedHash,
    /// The keyed hash of the master token at login. A new master token ends the session.
    pub master: KeyedHash,
    /// The address from which the operator logged in.
    pub from: IpAddr,
    /// The `User-Agent` at login.
    pub browser: String,
    /// The time of the login.
    pub opened: Timestamp,
    /// When a person last used it.
    pub used: Timestamp,
}

impl Session {
    /// Returns its lifetime.
    pub fn life(&self) -> Lifespan {
        Lifespan { from: self.opened, until: self.opened.plus(LIFETIME) }
    }
}

/// The open sessions, by the keyed hash of their cookie.
#[derive(Default)]
pub struct Sessions(Mutex<HashMap<KeyedHash, Session>>);

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<KeyedHash, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the sessions that are not over, and forgets the others.
    fn open_ones(
        &self,
        master: &KeyedHash,
        now: Timestamp,
    ) -> MutexGuard<'_, HashMap<KeyedHash, Session>> {
        let mut sessions = self.lock();
        sessions.retain(|_, session| !session.life().is_over(now) && session.master.ct_eq(master));
        sessions
    }

    /// Opens a session.
    pub fn open(&self, cookie: KeyedHash, mut session: Session) {
        session.browser = session.browser.chars().take(BROWSER).collect();
        let mut sessions = self.open_ones(&session.master, session.opened);
        if sessions.len() >= MOST {
            let oldest = sessions.iter().min_by_key(|(_, session)| session.opened);
            if let Some(oldest) = oldest.map(|(cookie, _)| *cookie) {
                sessions.remove(&oldest);
            }
        }
        sessions.insert(cookie, session);
    }

    /// Returns the id of the session with this cookie and this key. `by_person` says that a person, not
    /// a timer, made the request.
    pub fn find(
        &self,
        cookie: KeyedHash,
        key: KeyedHash,
        master: &KeyedHash,
        now: Timestamp,
        by_person: bool,
    ) -> Option<String> {
        let mut sessions = self.open_ones(master, now);
        let session = sessions.get_mut(&cookie).filter(|session| session.key.ct_eq(&key))?;
        if by_person {
            session.used = now;
        }
        Some(session.id.clone())
    }

    /// Returns the open sessions, newest first.
    pub fn list(&self, master: &KeyedHash, now: Timestamp) -> Vec<Session> {
        let mut all: Vec<_> = self.open_ones(master, now).values().cloned().collect();
        all.sort_by(|a, b| (b.opened, &b.id).cmp(&(a.opened, &a.id)));
        all
    }

    /// Ends the session with this id. Returns whether there was one.
    pub fn end(&self, id: &str) -> bool {
        let mut sessions = self.lock();
        let before = sessions.len();
        sessions.retain(|_, session| session.id != id);
        sessions.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp(1_000_000);

    fn hash(number: u32) -> KeyedHash {
        KeyedHash(u128::from(number).to_be_bytes())
    }

    fn session(number: u32, opened: Timestamp) -> Session {
        let from = IpAddr::from([127, 0, 0, 1]);
        let (id, browser) = (number.to_string(), "b".repeat(1000));
        Session { id, key: hash(number), master: hash(0), from, browser, opened, used: opened }
    }

    #[test]
    fn a_session_ends_after_twelve_hours_however_much_it_is_used() {
        let sessions = Sessions::default();
        sessions.open(hash(1), session(1, START));
        let find = |seconds| {
            sessions.find(hash(1), hash(1), &hash(0), START.plus(seconds), true).is_some()
        };
        assert!((0..12).all(|hour| find(hour * 3600)));
        assert!(find(LIFETIME - 1));
        assert!(!find(LIFETIME));
        assert!(!find(0), "it is forgotten");
    }

    #[test]
    fn a_session_needs_its_cookie_its_key_and_the_master_token_of_its_login() {
        let sessions = Sessions::default();
        sessions.open(hash(1), session(1, START));
        sessions.open(hash(2), session(2, START));
        let find = |cookie, key, master| {
            sessions.find(hash(cookie), hash(key), &hash(master), START, true).is_some()
        };
        assert!(find(1, 1, 0) && find(2, 2, 0));
        assert!(!find(1, 2, 0), "the key of another session");
        assert!(!find(3, 1, 0), "another cookie");
        assert!(!find(1, 1, 9), "another master token");
        assert!(!find(1, 1, 0), "a new master token has ended it");
    }

    #[test]
    fn refreshes_by_a_timer_are_not_a_use() {
        let sessions = Sessions::default();
        sessions.open(hash(1), session(1, START));
        let used = || sessions.list(&hash(0), START)[0].used;
        sessions.find(hash(1), hash(1), &hash(0), START.plus(9), false);
        assert_eq!(used(), START);
        sessions.find(hash(1), hash(1), &hash(0), START.plus(9), true);
        assert_eq!(used(), START.plus(9));
    }

    #[test]
    fn when_there_are_too_many_sessions_the_oldest_ends() {
        let sessions = Sessions::default();
        for number in 0..MOST as u32 + 3 {
            sessions.open(hash(number), session(number, START.plus(u64::from(number))));
        }
        let all = sessions.list(&hash(0), START.plus(2000));
        assert_eq!((all.len(), all[0].id.as_str(), all[MOST - 1].id.as_str()), (MOST, "1002", "3"));
        assert_eq!(all[0].browser.len(), BROWSER);
        assert!(sessions.end("3") && !sessions.end("3"));
    }
}
