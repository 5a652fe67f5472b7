//! Access tokens: who a caller is, and what it may do.
//!
//! * [`caller`]: identifies a caller, and admits it to a route
//! * [`change`]: creates, changes, rotates and revokes tokens
//!
//! All tokens are in memory, because there are few, and every check-in asks for one. They are replaced as
//! a whole when one has changed.

pub mod caller;
pub mod change;

use crate::os::Clock;
use crate::state::live::Live;
use arc_swap::ArcSwap;
use caller::{Caller, Holder, Identity};
use iptunnel_actors::Handles;
use iptunnel_domain::Timestamp;
use iptunnel_domain::access::{AccessToken, IsGood, Role, TokenForm, TokenNumber};
use iptunnel_domain::lookup::{KeyedHash, Purpose};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An access token in memory.
#[derive(Debug)]
pub struct Entry {
    /// The record.
    pub token: AccessToken,
    /// When it was last used. The next entry of the same token shares it.
    used: Arc<LastUse>,
    /// Locked while its servers are looked for. Shared as well.
    listing: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct LastUse {
    at: AtomicU64,
    /// The last use that this server knows to be in the store.
    written: AtomicU64,
}

impl Entry {
    /// Notes a use. A second has thousands of them, on all threads: only the first writes, so that the threads
    /// do not take the memory from each other.
    pub fn note_use(&self, now: Timestamp) {
        if self.last_used() != now {
            self.used.at.store(now.0, Ordering::Relaxed);
        }
    }

    /// Returns when the token was last used.
    pub fn last_used(&self) -> Timestamp {
        Timestamp(self.used.at.load(Ordering::Relaxed))
    }

    fn is_unwritten(&self) -> bool {
        self.used.written.load(Ordering::Relaxed) != self.last_used().0
    }

    fn is_written(&self, at: Timestamp) {
        self.used.written.store(at.0, Ordering::Relaxed);
    }
}

/// All access tokens, at one moment.
#[derive(Debug, Default)]
struct Tokens {
    by_number: BTreeMap<TokenNumber, Arc<Entry>>,
    /// The tokens by the first half of their secrets' hashes. The hashes are keyed, so nobody can choose
    /// them, and the time that a search takes reveals nothing.
    by_secret: HashMap<u64, Vec<Arc<Entry>>>,
    /// The enrolling tokens by their pre-authorised addresses, the oldest first.
    by_address: HashMap<IpAddr, Vec<Arc<Entry>>>,
}

impl Tokens {
    /// Returns these tokens, with the last uses that are known of them.
    fn of(tokens: Vec<AccessToken>, now: Timestamp, before: &Self) -> Self {
        let mut all = Self::default();
        for token in tokens {
            let known = before.by_number.get(&token.number);
            let used = known.map_or_else(Arc::default, |known| Arc::clone(&known.used));
            let listing = known.map_or_else(Arc::default, |known| Arc::clone(&known.listing));
            // A request may note a use at the same time. It is not lost.
            let _ = used.at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |known| {
                Some(Timestamp(known).or_later(token.last_used, now).0)
            });
            used.written.store(token.last_used.0, Ordering::Relaxed);
            let entry = Arc::new(Entry { token, used, listing });
            let token = &entry.token;
            for secret in std::iter::once(token.secret).chain(token.previous.map(|(hash, _)| hash))
            {
                all.by_secret.entry(secret.as_u64()).or_default().push(Arc::clone(&entry));
            }
            let is_enrolling = token.role == Role::Enrol && token.revoked_at.is_none();
            for address in token.addresses.iter().filter(|_| is_enrolling) {
                all.by_address.entry(*address).or_default().push(Arc::clone(&entry));
            }
            all.by_number.insert(token.number, entry);
        }
        all
    }

    fn find(&self, secret: &KeyedHash, now: Timestamp) -> Option<&Arc<Entry>> {
        let candidates = self.by_secret.get(&secret.as_u64())?;
        candidates.iter().find(|entry| entry.token.has_secret(secret, now))
    }
}

/// The access tokens of the server.
pub struct AccessTokens {
    live: Arc<Live>,
    handles: Arc<Handles>,
    clock: Arc<dyn Clock>,
    tokens: ArcSwap<Tokens>,
    /// Locked for the whole of a change.
    changing: tokio::sync::Mutex<()>,
}

impl AccessTokens {
    /// Starts with the tokens of the store.
    pub fn new(
        tokens: Vec<AccessToken>,
        live: Arc<Live>,
        handles: Arc<Handles>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let tokens = Tokens::of(tokens, clock.now(), &Tokens::default());
        let tokens = ArcSwap::from_pointee(tokens);
        Self { live, handles, clock, tokens, changing: tokio::sync::Mutex::default() }
    }

    /// Returns who sends this token. `from` is the caller's address.
    pub fn identify(&self, token: &str, from: IpAddr, now: Timestamp) -> Identity {
        if token.is_empty() {
            return Identity::Nobody;
        }
        let secret = self.live.lookup.hash(Purpose::Token, token.as_bytes());
        match self.holder(&secret, Some(from), now) {
            Identity::Wrong(_) if TokenForm::of(token) == TokenForm::Mistyped => {
                Identity::Mistyped(secret)
            }
            identity => identity,
        }
    }

    /// Returns the name of a token; its number if it is not known. A revoked one has both: another token may
    /// have its name by now.
    pub fn name_of(&self, number: TokenNumber) -> String {
        let Some(entry) = self.by_number(number) else { return format!("token {number}") };
        let AccessToken { name, revoked_at, .. } = &entry.token;
        revoked_at.map_or_else(|| name.clone(), |_| format!("{name} (token {number})"))
    }

    /// Returns what says which tokens are good at `now`, wherever they are used from.
    pub fn good_ones(&self, now: Timestamp) -> Arc<IsGood> {
        let tokens = self.tokens.load_full();
        Arc::new(move |number| {
            let entry = tokens.by_number.get(&number);
            entry.is_some_and(|entry| entry.token.is_good(now, None).is_ok())
        })
    }

    /// Returns the token with this number.
    pub fn by_number(&self, number: TokenNumber) -> Option<Arc<Entry>> {
        self.tokens.load().by_number.get(&number).cloned()
    }

    /// Returns the token that enrols machines at this address without being shown: one that is good, and has
    /// the address in its list. If several have it, the oldest.
    pub fn of_address(&self, address: IpAddr, now: Timestamp) -> Option<Arc<Entry>> {
        let tokens = self.tokens.load();
        let entries = tokens.by_address.get(&address)?;
        entries.iter().find(|entry| entry.token.is_good(now, Some(address)).is_ok()).cloned()
    }

    /// Returns who holds the token with this keyed hash. `from` is the address that it is used from; `None`
    /// does not look at that.
    pub fn holder(&self, secret: &KeyedHash, from: Option<IpAddr>, now: Timestamp) -> Identity {
        if secret.ct_eq(&self.live.master.load()) {
            return Identity::Known(Caller { holder: Holder::Master, secret: *secret });
        }
        let tokens = self.tokens.load();
        let Some(entry) = tokens.find(secret, now) else { return Identity::Wrong(*secret) };
        let caller = Caller { holder: Holder::Token(Arc::clone(entry)), secret: *secret };
        match entry.token.is_good(now, from) {
            Ok(()) => Identity::Known(caller),
            Err(why) => Identity::NotGood(why, caller),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn token(number: u32, last_used: u64) -> AccessToken {
        AccessToken {
            number: TokenNumber(number),
            name: number.to_string(),
            role: Role::View,
            secret: KeyedHash([number as u8; 16]),
            previous: Some((KeyedHash([100 + number as u8; 16]), NOW.plus(60))),
            created_at: NOW,
            expires_at: None,
            networks: Vec::new(),
            addresses: Vec::new(),
            max_servers: 0,
            last_used: Timestamp(last_used),
            revoked_at: None,
            version: 1,
        }
    }

    #[test]
    fn a_token_is_found_by_its_secret_and_during_the_grace_by_the_one_before() {
        let tokens = Tokens::of(vec![token(1, 0), token(2, 0)], NOW, &Tokens::default());
        let found = |secret: u8, now| {
            tokens.find(&KeyedHash([secret; 16]), now).map(|entry| entry.token.number.0)
        };
        assert_eq!((found(1, NOW), found(2, NOW), found(3, NOW)), (Some(1), Some(2), None));
        assert_eq!((found(102, NOW), found(102, NOW.plus(60))), (Some(2), None));
    }

    #[test]
    fn what_is_known_of_a_last_use_outlives_a_change_of_the_token() {
        let before = Tokens::of(vec![token(1, 5)], NOW, &Tokens::default());
        let of = |tokens: &Tokens| tokens.by_number[&TokenNumber(1)].last_used().0;
        assert_eq!(of(&before), 5);
        before.by_number[&TokenNumber(1)].note_use(Timestamp(9));
        let after = Tokens::of(vec![token(1, 7)], NOW, &before);
        assert_eq!(of(&after), 9, "a later use has not been written yet");
        let after = Tokens::of(vec![token(1, 20)], NOW, &after);
        assert_eq!(of(&after), 20, "another server has seen a later use");
        let after = Tokens::of(vec![token(1, NOW.0 + 1000)], NOW, &after);
        assert_eq!(of(&after), 20, "no date in the future is believed");
    }

    #[test]
    fn a_change_of_a_token_gives_it_no_second_turn_to_list_servers() {
        let before = Tokens::of(vec![token(1, 0), token(2, 0)], NOW, &Tokens::default());
        let turn =
            |tokens: &Tokens, number| Arc::clone(&tokens.by_number[&TokenNumber(number)].listing);
        let listing = turn(&before, 1);
        let _listing = listing.try_lock().unwrap();
        let after = Tokens::of(vec![token(1, 5), token(2, 0)], NOW, &before);
        assert!(turn(&after, 1).try_lock().is_err());
        assert!(turn(&after, 2).try_lock().is_ok());
    }
}
