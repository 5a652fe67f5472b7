//! Login sessions of the console.
//!
//! A session has two secrets: a cookie, and a key that is a part of every address of the console's
//! pages. A browser may send the cookie to every port of the host, but the key to this listener alone.
//! Neither is of use without the other. A session ends with the token of its login. It survives a restart:
//! the open sessions are in a file beside the store as well, with hashes in place of the secrets.

use super::kept_file::KeptFile;
use iptunnel_domain::Timestamp;
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::time::Lifespan;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The lifetime of a session in seconds, however much it is used: one working day.
const LIFETIME: u64 = 12 * 3600;
/// The most sessions of one token. Beyond that, its own oldest ends, so no token ends the sessions of others
/// by logging in again and again.
const MOST_OF_TOKEN: usize = 20;
/// The most sessions: those of fifty such tokens. Beyond that, the oldest ends.
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
    /// The keyed hash of the token of its login. When that is not good any more, the session ends.
    pub secret: KeyedHash,
    /// The name of that token.
    pub token: String,
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

/// What the file has.
#[derive(Default, Serialize, Deserialize)]
struct Content {
    /// The epoch of the store. In another one tokens may be good again that were revoked: an earlier state of
    /// the store has come back. So it begins without sessions.
    epoch: u64,
    sessions: Vec<Kept>,
}

/// A session as the file has it.
#[derive(Serialize, Deserialize)]
struct Kept {
    cookie: String,
    id: String,
    key: String,
    secret: String,
    token: String,
    from: IpAddr,
    browser: String,
    opened: u64,
    used: u64,
}

impl Kept {
    fn of((cookie, session): (&KeyedHash, &Session)) -> Self {
        Self {
            cookie: cookie.to_hex(),
            id: session.id.clone(),
            key: session.key.to_hex(),
            secret: session.secret.to_hex(),
            token: session.token.clone(),
            from: session.from,
            browser: session.browser.clone(),
            opened: session.opened.0,
            used: session.used.0,
        }
    }

    fn session(self) -> Option<(KeyedHash, Session)> {
        let hash = |text: &str| KeyedHash::from_hex(text);
        let session = Session {
            key: hash(&self.key)?,
            secret: hash(&self.secret)?,
            id: self.id,
            token: self.token,
            from: self.from,
            browser: self.browser,
            opened: Timestamp(self.opened),
            used: Timestamp(self.used),
        };
        Some((hash(&self.cookie)?, session))
    }
}

/// The open sessions, by the keyed hash of their cookie.
#[derive(Default)]
pub struct Sessions {
    open: Mutex<HashMap<KeyedHash, Session>>,
    /// Where they survive a restart, and the epoch of the store. Locked while it is written.
    file: Mutex<Option<(KeptFile, u64)>>,
    /// Whether the file lacks a change.
    changed: AtomicBool,
}

impl Sessions {
    /// Returns the sessions in a file, in which they are kept from now on, if they are of this epoch of the
    /// store. Those that have ended meanwhile are forgotten when one is asked for.
    pub fn kept_in(file: KeptFile, epoch: u64) -> Self {
        let content: Content = file.read().unwrap_or_default();
        let kept = content.sessions.into_iter().filter(|_| content.epoch == epoch);
        let open = kept.filter_map(Kept::session).collect();
        let file = (file, epoch);
        Self {
            open: Mutex::new(open),
            file: Mutex::new(Some(file)),
            changed: AtomicBool::default(),
        }
    }

    /// Writes the sessions to the file, if they have changed. Where that fails the file is removed: then a
    /// restart ends all sessions, rather than to let in somebody who has logged out. It may block.
    ///
    /// # Errors
    /// The file can be neither written nor removed.
    pub fn keep(&self, is_good: impl Fn(&KeyedHash) -> bool, now: Timestamp) -> io::Result<()> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((file, epoch)) = &*file else { return Ok(()) };
        // So that sessions that are over are forgotten in the file too.
        drop(self.open_ones(is_good, now));
        if !self.changed.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        let sessions = self.lock().iter().map(Kept::of).collect();
        file.write(&Content { epoch: *epoch, sessions }).or_else(|error| {
            self.changed.store(true, Ordering::SeqCst);
            tracing::warn!(%error, "the console's sessions cannot be written: a restart ends them");
            file.remove()
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<KeyedHash, Session>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the file lacks something: after the change, so that whoever writes the file has it.
    fn note_change(&self) {
        self.changed.store(true, Ordering::SeqCst);
    }

    /// Returns the sessions that are not over and whose tokens are good, and forgets the others.
    fn open_ones(
        &self,
        is_good: impl Fn(&KeyedHash) -> bool,
        now: Timestamp,
    ) -> MutexGuard<'_, HashMap<KeyedHash, Session>> {
        let mut sessions = self.lock();
        let before = sessions.len();
        sessions.retain(|_, session| !session.life().is_over(now) && is_good(&session.secret));
        if sessions.len() < before {
            self.note_change();
        }
        sessions
    }

    /// Opens a session. `is_good` tells whether the token with a keyed hash is good.
    pub fn open(
        &self,
        cookie: KeyedHash,
        mut session: Session,
        is_good: impl Fn(&KeyedHash) -> bool,
    ) {
        session.browser = session.browser.chars().take(BROWSER).collect();
        let mut sessions = self.open_ones(is_good, session.opened);
        // By its name: its old secret may be good for a while beside the new one.
        make_room(&mut sessions, MOST_OF_TOKEN, |other| other.token == session.token);
        make_room(&mut sessions, MOST, |_| true);
        sessions.insert(cookie, session);
        self.note_change();
    }

    /// Returns the session with this cookie and this key. `by_person` says that a person, not a timer,
    /// made the request.
    pub fn find(
        &self,
        cookie: KeyedHash,
        key: KeyedHash,
        is_good: impl Fn(&KeyedHash) -> bool,
        now: Timestamp,
        by_person: bool,
    ) -> Option<Session> {
        let mut sessions = self.open_ones(is_good, now);
        let session = sessions.get_mut(&cookie).filter(|session| session.key.ct_eq(&key))?;
        if by_person {
            session.used = now;
            self.note_change();
        }
        Some(session.clone())
    }

    /// Returns the open sessions, newest first.
    pub fn list(&self, is_good: impl Fn(&KeyedHash) -> bool, now: Timestamp) -> Vec<Session> {
        let mut all: Vec<_> = self.open_ones(is_good, now).values().cloned().collect();
        all.sort_by(|a, b| (b.opened, &b.id).cmp(&(a.opened, &a.id)));
        all
    }

    /// Ends the session with this id. Returns whether there was one.
    pub fn end(&self, id: &str) -> bool {
        let mut sessions = self.lock();
        let before = sessions.len();
        sessions.retain(|_, session| session.id != id);
        let is_ended = sessions.len() < before;
        if is_ended {
            self.note_change();
        }
        is_ended
    }
}

/// Ends the oldest of the sessions that `counts` picks, if there are `most`.
fn make_room(
    sessions: &mut HashMap<KeyedHash, Session>,
    most: usize,
    counts: impl Fn(&Session) -> bool,
) {
    let picked = || sessions.iter().filter(|(_, session)| counts(session));
    if picked().count() < most {
        return;
    }
    let oldest = picked().min_by_key(|(_, session)| session.opened).map(|(cookie, _)| *cookie);
    if let Some(oldest) = oldest {
        sessions.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::private_file::Beside;
    use iptunnel_domain::lookup::LookupKey;

    const START: Timestamp = Timestamp(1_000_000);

    fn hash(number: u32) -> KeyedHash {
        KeyedHash(u128::from(number).to_be_bytes())
    }

    fn session(number: u32, opened: Timestamp) -> Session {
        let from = IpAddr::from([127, 0, 0, 1]);
        let (id, browser) = (number.to_string(), "b".repeat(1000));
        let (key, secret, token) = (hash(number), hash(0), "office".to_owned());
        Session { id, key, secret, token, from, browser, opened, used: opened }
    }

    const fn good(_: &KeyedHash) -> bool {
        true
    }

    #[test]
    fn a_session_ends_after_twelve_hours_however_much_it_is_used() {
        let sessions = Sessions::default();
        sessions.open(hash(1), session(1, START), good);
        let find =
            |seconds| sessions.find(hash(1), hash(1), good, START.plus(seconds), true).is_some();
        assert!((0..12).all(|hour| find(hour * 3600)));
        assert!(find(LIFETIME - 1));
        assert!(!find(LIFETIME));
        assert!(!find(0), "it is forgotten");
    }

    #[test]
    fn a_session_needs_its_cookie_and_its_key_and_ends_with_its_token() {
        let sessions = Sessions::default();
        sessions.open(hash(1), session(1, START), good);
        sessions.open(hash(2), session(2, START), good);
        let find = |cookie, key, is_good: bool| {
            let found = sessions.find(hash(cookie), hash(key), |_| is_good, START, true);
            found.is_some()
        };
        assert!(find(1, 1, true) && find(2, 2, true));
        assert!(!find(1, 2, true), "the key of another session");
        assert!(!find(3, 1, true), "another cookie");
        assert!(!find(1, 1, false), "its token is not good any more");
        assert!(!find(1, 1, true), "it is forgotten");
    }

    #[test]
    fn a_restart_finds_the_open_sessions_and_none_that_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let file = || {
            let key = LookupKey::new(&[1; 32]);
            KeptFile::of(&folder.path().join("s"), Beside::Sessions, key)
        };
        let sessions = Sessions::kept_in(file(), 1);
        for number in 1..=4 {
            let secret = hash(number);
            let opened = START.plus(u64::from(number));
            sessions.open(hash(number), Session { secret, ..session(number, opened) }, good);
        }
        assert!(sessions.end("1"));
        sessions.find(hash(3), hash(3), good, START.plus(60), true);
        sessions.keep(good, START.plus(60)).unwrap();
        let later = Sessions::kept_in(file(), 2).list(good, START.plus(60));
        assert!(later.is_empty(), "a new epoch has begun");
        let again = Sessions::kept_in(file(), 1);
        // The token of the second was revoked while no server ran.
        let is_good = |secret: &KeyedHash| *secret != hash(2);
        let found = |cookie, key| again.find(cookie, key, is_good, START.plus(70), false);
        assert!(found(hash(1), hash(1)).is_none() && found(hash(2), hash(2)).is_none());
        assert!(found(hash(3), hash(4)).is_none());
        let third = found(hash(3), hash(3)).unwrap();
        assert_eq!((third.opened, third.used), (START.plus(3), START.plus(60)));
        // What ended by itself leaves the file too: the token may be good again later.
        again.keep(good, START.plus(LIFETIME + 3)).unwrap();
        let all = Sessions::kept_in(file(), 1).list(good, START.plus(5));
        assert_eq!(all.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["4"]);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_removed_so_that_no_ended_session_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("s");
        let file = || KeptFile::of(&store, Beside::Sessions, LookupKey::new(&[1; 32]));
        let sessions = Sessions::kept_in(file(), 1);
        sessions.open(hash(1), session(1, START), good);
        sessions.keep(good, START).unwrap();
        // A folder in the place of the draft: the file cannot be replaced.
        let path = Beside::Sessions.of(&store);
        std::fs::create_dir_all(path.with_extension("sessions.new").join("x")).unwrap();
        assert!(sessions.end("1"));
        sessions.keep(good, START).unwrap();
        assert!(!path.exists());
        // It is tried again.
        std::fs::remove_dir_all(path.with_extension("sessions.new")).unwrap();
        sessions.keep(good, START).unwrap();
        assert!(path.exists() && Sessions::kept_in(file(), 1).list(good, START).is_empty());
    }

    #[test]
    fn refreshes_by_a_timer_are_not_a_use() {
        let sessions = Sessions::default();
        sessions.open(hash(1), session(1, START), good);
        let used = || sessions.list(good, START)[0].used;
        sessions.find(hash(1), hash(1), good, START.plus(9), false);
        assert_eq!(used(), START);
        sessions.find(hash(1), hash(1), good, START.plus(9), true);
        assert_eq!(used(), START.plus(9));
    }

    #[test]
    fn when_there_are_too_many_sessions_the_oldest_ends() {
        let sessions = Sessions::default();
        for number in 0..MOST as u32 + 3 {
            let session = session(number, START.plus(u64::from(number)));
            // Each token has ten.
            let token = (number / 10).to_string();
            sessions.open(hash(number), Session { token, ..session }, good);
        }
        let all = sessions.list(good, START.plus(2000));
        assert_eq!((all.len(), all[0].id.as_str(), all[MOST - 1].id.as_str()), (MOST, "1002", "3"));
        assert_eq!(all[0].browser.len(), BROWSER);
        assert!(sessions.end("3") && !sessions.end("3"));
    }

    #[test]
    fn a_token_with_too_many_sessions_ends_its_own_oldest() {
        let sessions = Sessions::default();
        let other = Session { token: "home".into(), ..session(5000, START) };
        sessions.open(hash(5000), other, good);
        for number in 1..=MOST_OF_TOKEN as u32 + 1 {
            // The token has been rotated in between.
            let secret = hash(number % 2);
            let session = session(number, START.plus(u64::from(number)));
            sessions.open(hash(number), Session { secret, ..session }, good);
        }
        let all = sessions.list(good, START.plus(100));
        assert_eq!(all.len(), MOST_OF_TOKEN + 1);
        let is_open = |id: &str| all.iter().any(|session| session.id == id);
        assert!(is_open("5000") && !is_open("1") && is_open("2"));
    }
}
