//! Changes of access tokens. Only one runs at a time. Each is written together with its entry in the audit
//! log, and then takes effect. Other servers on the database hear of the entry and read the tokens again.

use super::caller::{COMMAND_LINE, Caller, MASTER_TOKEN};
use super::{AccessTokens, Entry, Tokens};
use crate::http::respond::rfc3339;
use crate::os::random_bytes;
use iptunnel_actors::Failure;
use iptunnel_domain::access::{AccessToken, Role, TokenNumber, token_text};
use iptunnel_domain::address::Network;
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_domain::lookup::{KeyedHash, Purpose};
use iptunnel_domain::time::Timer;
use iptunnel_domain::{Refusal, Timestamp, Version};
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use zeroize::Zeroizing;

/// The most tokens that are not revoked: about 5 MB of memory, without their lists.
const MOST: usize = 10_000;
/// The most tokens that are kept, with those that are revoked, which name servers and have no lists: about
/// 25 MB of memory. A new token every day takes more than a century to get there.
const MOST_KEPT: usize = 50_000;
/// The most networks and addresses of all tokens together: about 20 MB of memory.
const MOST_LISTED: usize = 100_000;
/// The names that stand for callers without an access token, see [`Caller::shown`], or might be taken for
/// one.
const RESERVED: [&str; 3] = [COMMAND_LINE, MASTER_TOKEN, "administrator"];
/// How often a change is tried when other servers change the same token.
const TRIES: u32 = 3;
/// The longest time to read the tokens again.
const PATIENCE: Duration = Duration::from_secs(10);
/// The time until the next try.
const AGAIN: Duration = Duration::from_secs(2);
/// How often it is looked whether last uses are to be written.
const EVERY: Duration = Duration::from_secs(1);

/// A token that is wanted.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// The name, as it was typed.
    pub name: String,
    /// The role.
    pub role: Role,
    /// What may be changed later.
    pub terms: Terms,
}

/// The terms of a token. `None` leaves one as it is.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// The version of the token that a change is based on. `None`: any.
    pub version: Option<Version>,
    /// Another name, as it was typed.
    pub name: Option<String>,
    /// The first second in which the token is not good any more; `Some(None)`: it has no end.
    pub expires_at: Option<Option<Timestamp>>,
    /// The networks that it may be used from.
    pub networks: Option<Vec<Network>>,
    /// The addresses that are given tickets of it.
    pub addresses: Option<Vec<IpAddr>>,
    /// The number of servers that it may enrol; 0 for no bound.
    pub max_servers: Option<u32>,
}

/// The text of a token, which is shown once. It has no `Debug`, so no log shows it.
pub struct TokenText(Zeroizing<String>);

impl TokenText {
    /// Makes a new text.
    fn random() -> Result<Self, AccessError> {
        let random = random_bytes::<32>().map_err(|_| AccessError::BrokenOff)?;
        Ok(Self(Zeroizing::new(token_text(random))))
    }

    /// Returns the text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// The reasons why a token was not changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessError {
    /// No token has this number.
    NotFound,
    /// The token has changed since the caller read it.
    HasChanged,
    /// The change is not allowed.
    Refused(Refusal),
    /// The store refused the change, or its outcome is unknown.
    Failed(Failure),
    /// The task of the change ended early, or there is no randomness, which should not happen.
    BrokenOff,
}

impl From<Refusal> for AccessError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Failure> for AccessError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

fn refused(words: impl Into<String>) -> AccessError {
    Refusal::InvalidField(words.into()).into()
}

/// A change to write: the record, the action, and the detail for the audit log. `None`: there is nothing
/// to change.
type Change = Option<(AccessToken, Action, String)>;

impl Tokens {
    fn get(&self, number: TokenNumber) -> Result<&AccessToken, AccessError> {
        self.by_number.get(&number).map(|entry| &entry.token).ok_or(AccessError::NotFound)
    }

    /// Returns a token that may still be changed.
    fn open(&self, number: TokenNumber) -> Result<&AccessToken, AccessError> {
        let token = self.get(number)?;
        if token.revoked_at.is_some() {
            return Err(refused("The token is revoked. Create another one."));
        }
        Ok(token)
    }

    /// Checks the name of a token against those of the others.
    fn name(&self, text: &str, of: Option<TokenNumber>) -> Result<String, AccessError> {
        let name = AccessToken::parse_name(text)?;
        if RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
            return Err(refused(format!("name must not be {}.", name.to_lowercase())));
        }
        if name.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(refused("name must not be a number: commands take that for an id."));
        }
        let is_taken = self.by_number.values().any(|entry| {
            let token = &entry.token;
            token.name == name && token.revoked_at.is_none() && Some(token.number) != of
        });
        if is_taken {
            return Err(refused(
                "name is taken by another token that is not revoked. If its secret was lost, rotate it.",
            ));
        }
        Ok(name)
    }

    fn create(
        &self,
        wanted: &NewToken,
        secret: KeyedHash,
        now: Timestamp,
    ) -> Result<Change, AccessError> {
        let in_use = self.by_number.values().filter(|entry| entry.token.revoked_at.is_none());
        if in_use.count() >= MOST {
            return Err(refused(format!("{MOST} tokens are in use, which is the most.")));
        }
        if self.by_number.len() >= MOST_KEPT {
            let words = "tokens have been made, revoked ones included, which is the most";
            return Err(refused(format!("{MOST_KEPT} {words}.")));
        }
        let last = self.by_number.last_key_value().map_or(0, |(last, _)| last.0);
        let token = AccessToken {
            number: TokenNumber(last.saturating_add(1)),
            name: self.name(&wanted.name, None)?,
            role: wanted.role,
            secret,
            previous: None,
            created_at: now,
            expires_at: None,
            networks: Vec::new(),
            addresses: Vec::new(),
            max_servers: 0,
            last_used: Timestamp(0),
            revoked_at: None,
            version: 1,
        };
        let token = with_terms(token, &wanted.terms, now)?;
        self.check_lists(&token)?;
        let terms = differences(&AccessToken { role: token.role, ..plain(&token) }, &token);
        let detail = std::iter::once(format!("role {}", token.role.name())).chain(terms);
        let detail = detail.collect::<Vec<_>>().join("; ");
        Ok(Some((token, Action::TokenCreated, detail)))
    }

    fn change(
        &self,
        number: TokenNumber,
        terms: &Terms,
        now: Timestamp,
    ) -> Result<Change, AccessError> {
        let before = self.current(number, terms.version)?;
        let mut token = before.changed();
        if let Some(name) = &terms.name {
            token.name = self.name(name, Some(number))?;
        }
        let token = with_terms(token, terms, now)?;
        self.check_lists(&token)?;
        let differences = differences(before, &token);
        if differences.is_empty() {
            return Ok(None);
        }
        Ok(Some((token, Action::TokenChanged, differences.join("; "))))
    }

    /// Returns a token that can be changed, if it is the one on which the change is based.
    fn current(
        &self,
        number: TokenNumber,
        version: Option<Version>,
    ) -> Result<&AccessToken, AccessError> {
        let before = self.open(number)?;
        if version.is_some_and(|version| version != before.version) {
            return Err(AccessError::HasChanged);
        }
        Ok(before)
    }

    /// Checks that the lists of all tokens, with those of `token`, are not too long.
    fn check_lists(&self, token: &AccessToken) -> Result<(), AccessError> {
        let length = |token: &AccessToken| token.networks.len() + token.addresses.len();
        let others = self.by_number.values().map(|entry| &entry.token);
        let others = others.filter(|other| other.number != token.number);
        if others.map(length).sum::<usize>() + length(token) > MOST_LISTED {
            let words = "networks and addresses of all tokens together may have at most";
            return Err(refused(format!("{words} {MOST_LISTED} entries.")));
        }
        Ok(())
    }

    fn rotate(
        &self,
        number: TokenNumber,
        secret: KeyedHash,
        grace: u64,
        version: Option<Version>,
        now: Timestamp,
    ) -> Result<Change, AccessError> {
        if grace > AccessToken::MAX_GRACE {
            let most = AccessToken::MAX_GRACE;
            return Err(refused(format!("grace_seconds must be a number from 0 to {most}.")));
        }
        let before = self.current(number, version)?;
        let token = before.rotate(secret, grace, now);
        let detail = match token.previous {
            None => "the old secret is void".to_owned(),
            Some((kept, until)) => {
                let which = if kept == before.secret { "old" } else { "oldest" };
                format!("the {which} secret is good until {}", rfc3339(until))
            }
        };
        Ok(Some((token, Action::TokenRotated, detail)))
    }

    fn revoke(&self, number: TokenNumber, now: Timestamp) -> Result<Change, AccessError> {
        let revoked = self.get(number)?.revoke(now);
        Ok(revoked.map(|token| (token, Action::TokenRevoked, String::new())))
    }
}

/// Returns a token without terms.
fn plain(token: &AccessToken) -> AccessToken {
    AccessToken {
        expires_at: None,
        networks: Vec::new(),
        addresses: Vec::new(),
        max_servers: 0,
        ..token.clone()
    }
}

fn with_terms(
    mut token: AccessToken,
    terms: &Terms,
    now: Timestamp,
) -> Result<AccessToken, AccessError> {
    let enrols = token.role == Role::Enrol;
    if let Some(end) = terms.expires_at {
        if end.is_some_and(|end| end <= now) {
            return Err(refused("expires_at must be in the future."));
        }
        token.expires_at = end;
    }
    if let Some(networks) = &terms.networks {
        if networks.len() > AccessToken::NETWORKS {
            return Err(refused(format!(
                "networks may have at most {} entries.",
                AccessToken::NETWORKS
            )));
        }
        token.networks.clone_from(networks);
    }
    if let Some(addresses) = &terms.addresses {
        if addresses.len() > AccessToken::ADDRESSES {
            return Err(refused(format!(
                "addresses may have at most {} entries.",
                AccessToken::ADDRESSES
            )));
        }
        if !enrols && !addresses.is_empty() {
            return Err(refused("addresses are for tokens with the role enrol only."));
        }
        token.addresses.clone_from(addresses);
    }
    if let Some(most) = terms.max_servers {
        if !enrols && most > 0 {
            return Err(refused("max_servers is for tokens with the role enrol only."));
        }
        token.max_servers = most;
    }
    let is_inside =
        |address: &IpAddr| token.networks.iter().any(|network| network.contains(*address));
    if let Some(outside) = token.addresses.iter().find(|address| !is_inside(address))
        && !token.networks.is_empty()
        && (terms.networks.is_some() || terms.addresses.is_some())
    {
        return Err(refused(format!(
            "addresses has {outside}, which is in none of the token's networks: it would get no tickets."
        )));
    }
    Ok(token)
}

/// Returns a list as text.
pub fn listed(entries: &[impl Display]) -> String {
    entries.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Returns what has changed, for the audit log.
fn differences(before: &AccessToken, after: &AccessToken) -> Vec<String> {
    let shown = |token: &AccessToken| {
        let end = token.expires_at.map_or("never".to_owned(), rfc3339);
        let some = |text: String, none: &str| if text.is_empty() { none.to_owned() } else { text };
        [
            ("name", token.name.clone()),
            ("expires", end),
            ("networks", some(listed(&token.networks), "any")),
            ("addresses", some(listed(&token.addresses), "none")),
            ("max_servers", token.max_servers.to_string()),
        ]
    };
    let pairs = shown(before).into_iter().zip(shown(after));
    pairs
        .filter(|(then, now)| then != now)
        .map(|((what, then), (_, now))| format!("{what}: {then} -> {now}"))
        .collect()
}

impl AccessTokens {
    /// Creates a token. Its text is returned this once.
    ///
    /// # Errors
    /// A term is not allowed, or the store refuses the change.
    pub async fn create(
        self: &Arc<Self>,
        wanted: NewToken,
        by: &Caller,
        from: IpAddr,
    ) -> Result<(Arc<Entry>, TokenText), AccessError> {
        let (text, secret) = self.new_text()?;
        let change = move |tokens: &Tokens, now| tokens.create(&wanted, secret, now);
        Ok((self.apply(None, change, by, from).await?, text))
    }

    /// Changes the terms of a token.
    ///
    /// # Errors
    /// As [`Self::create`], or there is no such token, or it is revoked.
    pub async fn change(
        self: &Arc<Self>,
        number: TokenNumber,
        terms: Terms,
        by: &Caller,
        from: IpAddr,
    ) -> Result<Arc<Entry>, AccessError> {
        let change = move |tokens: &Tokens, now| tokens.change(number, &terms, now);
        self.apply(Some(number), change, by, from).await
    }

    /// Gives a token another text, which is returned this once. An earlier text stays good for `grace`
    /// seconds: see [`AccessToken::rotate`]. `version` is that of the token on which the request is based,
    /// if it says so: a form that is sent again must not void the secret that it has just shown.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub async fn rotate(
        self: &Arc<Self>,
        number: TokenNumber,
        grace: u64,
        version: Option<Version>,
        by: &Caller,
        from: IpAddr,
    ) -> Result<(Arc<Entry>, TokenText), AccessError> {
        let (text, secret) = self.new_text()?;
        let change = move |tokens: &Tokens, now| tokens.rotate(number, secret, grace, version, now);
        Ok((self.apply(Some(number), change, by, from).await?, text))
    }

    /// Revokes a token. Repeats change nothing.
    ///
    /// # Errors
    /// There is no such token, or the store refuses the change.
    pub async fn revoke(
        self: &Arc<Self>,
        number: TokenNumber,
        by: &Caller,
        from: IpAddr,
    ) -> Result<Arc<Entry>, AccessError> {
        let change = move |tokens: &Tokens, now| tokens.revoke(number, now);
        self.apply(Some(number), change, by, from).await
    }

    fn new_text(&self) -> Result<(TokenText, KeyedHash), AccessError> {
        let text = TokenText::random()?;
        let secret = self.live.lookup.hash(Purpose::Token, text.reveal().as_bytes());
        Ok((text, secret))
    }

    /// Applies a change. One that has begun runs to its end, even if the caller no longer waits. `number`
    /// is that of the token, unless it is a new one.
    async fn apply(
        self: &Arc<Self>,
        number: Option<TokenNumber>,
        change: impl Fn(&Tokens, Timestamp) -> Result<Change, AccessError> + 'static,
        by: &Caller,
        from: IpAddr,
    ) -> Result<Arc<Entry>, AccessError> {
        let (tokens, by) = (Arc::clone(self), by.shown().to_owned());
        let applied = actix_web::rt::spawn(async move {
            tokens.keep_and_publish(number, change, &by, from).await
        });
        match tokio::time::timeout(self.live.patience(), applied).await {
            Ok(ended) => ended.unwrap_or(Err(AccessError::BrokenOff)),
            Err(_) => Err(Failure::OutcomeUnknown.into()),
        }
    }

    async fn keep_and_publish(
        &self,
        number: Option<TokenNumber>,
        change: impl Fn(&Tokens, Timestamp) -> Result<Change, AccessError>,
        by: &str,
        from: IpAddr,
    ) -> Result<Arc<Entry>, AccessError> {
        let _one = self.changing.lock().await;
        for _ in 0..TRIES {
            self.read_again().await?;
            let now = self.clock.now();
            let changed = change(&self.tokens.load(), now)?;
            let Some((token, action, detail)) = changed else {
                let number = number.ok_or(AccessError::BrokenOff)?;
                return self.by_number(number).ok_or(AccessError::NotFound);
            };
            let event = Event {
                subject: token.name.clone(),
                by: by.to_owned(),
                detail,
                ..Event::new(action, Actor::Operator, now, Some(from))
            };
            let written = self.handles.keep_token(token.clone(), event)?;
            if written.within(Duration::MAX).await.outcome?? {
                let number = token.number;
                self.publish(token, now);
                return self.by_number(number).ok_or(AccessError::BrokenOff);
            }
        }
        Err(Failure::Overloaded.into())
    }

    /// Puts a token in force that has been written.
    fn publish(&self, token: AccessToken, now: Timestamp) {
        let before = self.tokens.load();
        let others = before.by_number.values().map(|entry| &entry.token);
        let others = others.filter(|other| other.number != token.number).cloned();
        let all = others.chain([token.clone()]).collect();
        self.tokens.store(Arc::new(Tokens::of(all, now, &before)));
    }

    /// Reads the tokens of a store that other servers change. The caller holds the lock of changes.
    async fn read_again(&self) -> Result<(), AccessError> {
        if self.handles.store().shared().is_none() {
            return Ok(());
        }
        let store = Arc::clone(self.handles.store());
        match actix_web::web::block(move || store.access_tokens()).await {
            Ok(Ok(tokens)) => {
                let tokens = Tokens::of(tokens, self.clock.now(), &self.tokens.load());
                self.tokens.store(Arc::new(tokens));
                Ok(())
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "the access tokens in the store cannot be read");
                Err(Failure::StorageUnavailable.into())
            }
            Err(_) => Err(AccessError::BrokenOff),
        }
    }

    /// Returns all tokens, in the order of creation, with the last uses that any server has written.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn list(&self) -> Result<Vec<Arc<Entry>>, AccessError> {
        let read = async {
            let _one = self.changing.lock().await;
            self.read_again().await
        };
        let read = tokio::time::timeout(self.live.patience(), read).await;
        read.unwrap_or(Err(Failure::StorageUnavailable.into()))?;
        Ok(self.tokens.load().by_number.values().cloned().collect())
    }

    /// Reads the tokens again at each notification of `changed`, for as long as the server runs.
    pub async fn keep_following(self: Arc<Self>, changed: Arc<Notify>) {
        loop {
            changed.notified().await;
            let read = async {
                let _one = self.changing.lock().await;
                self.read_again().await.is_ok()
            };
            if !tokio::time::timeout(PATIENCE, read).await.unwrap_or(false) {
                tokio::time::sleep(AGAIN).await;
                changed.notify_one();
            }
        }
    }

    /// Writes the last uses at the interval of check-ins, for as long as the server runs.
    pub async fn keep_uses(&self) {
        let mut flush = Timer::default();
        loop {
            tokio::time::sleep(EVERY).await;
            let pause = self.live.config.load().servers.checkin_flush_seconds;
            if flush.is_due(self.clock.now(), pause) {
                self.write_uses().await;
            }
        }
    }

    /// Writes the uses that have not been written yet. What the store refuses is written the next time.
    pub async fn write_uses(&self) {
        if !self.tokens.load().by_number.values().any(|entry| entry.is_unwritten()) {
            return;
        }
        let _one = self.changing.lock().await;
        // Another server may have written a later use. That one stays.
        if self.read_again().await.is_err() {
            return;
        }
        let tokens = self.tokens.load_full();
        let used = tokens.by_number.values().filter(|entry| entry.is_unwritten());
        let used: Vec<_> = used.map(|entry| (Arc::clone(entry), entry.last_used())).collect();
        if used.is_empty() {
            return;
        }
        let uses = used.iter().map(|(entry, at)| (entry.token.number, *at)).collect();
        let Ok(pending) = self.handles.keep_token_uses(uses) else { return };
        if pending.within(self.live.patience()).await.outcome == Ok(Ok(())) {
            used.iter().for_each(|(entry, at)| entry.is_written(*at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn wanted(name: &str, role: Role) -> NewToken {
        NewToken { name: name.into(), role, terms: Terms::default() }
    }

    fn with(mut all: Vec<AccessToken>, change: Change) -> Tokens {
        let token = change.unwrap().0;
        all.retain(|other| other.number != token.number);
        all.push(token);
        Tokens::of(all, NOW, &Tokens::default())
    }

    fn words(error: AccessError) -> String {
        match error {
            AccessError::Refused(Refusal::InvalidField(words)) => words,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn two_tokens_in_use_never_have_the_same_name() {
        let none = Tokens::default();
        let secret = KeyedHash([1; 16]);
        let one = with(vec![], none.create(&wanted("office", Role::View), secret, NOW).unwrap());
        let again = one.create(&wanted(" office ", Role::Admin), secret, NOW).unwrap_err();
        assert!(words(again).contains("taken"));
        let reserved = none.create(&wanted("Master token", Role::Admin), secret, NOW).unwrap_err();
        assert_eq!(words(reserved), "name must not be master token.");
        let number = TokenNumber(1);
        let revoked = with(vec![], one.revoke(number, NOW).unwrap());
        let second = revoked.create(&wanted("office", Role::Admin), secret, NOW).unwrap().unwrap();
        assert_eq!(second.0.number, TokenNumber(2), "a number is never used twice");
        assert!(
            words(revoked.change(number, &Terms::default(), NOW).unwrap_err()).contains("revoked")
        );
        assert_eq!(revoked.revoke(number, NOW), Ok(None), "a repeat changes nothing");
    }

    #[test]
    fn the_lists_of_all_tokens_together_are_bounded() {
        let address = |number: u32| IpAddr::from(number.to_be_bytes());
        let addresses: Vec<_> = (0..AccessToken::ADDRESSES as u32).map(address).collect();
        let full = |number: u32| {
            let token = Tokens::default().create(
                &wanted(&format!("fleet {number}"), Role::Enrol),
                KeyedHash([1; 16]),
                NOW,
            );
            let addresses = addresses.clone();
            AccessToken { number: TokenNumber(number), addresses, ..token.unwrap().unwrap().0 }
        };
        let tokens = Tokens::of((1..=97).map(full).collect(), NOW, &Tokens::default());
        let change = |length: usize| {
            let addresses = Some(addresses[..length].to_vec());
            tokens.change(TokenNumber(1), &Terms { addresses, ..Terms::default() }, NOW)
        };
        assert!(change(5).is_ok());
        let new = NewToken {
            terms: Terms { addresses: Some(addresses.clone()), ..Terms::default() },
            ..wanted("one more", Role::Enrol)
        };
        let refused = tokens.create(&new, KeyedHash([2; 16]), NOW).unwrap_err();
        assert!(words(refused).contains("100000 entries"));
    }

    #[test]
    fn revoked_tokens_make_room_for_others_and_keep_no_lists() {
        let tokens = |count: u32, revoked_at| {
            let one =
                Tokens::default().create(&wanted("fleet", Role::Enrol), KeyedHash([1; 16]), NOW);
            let one = AccessToken { revoked_at, ..one.unwrap().unwrap().0 };
            let all = (1..=count).map(|number| AccessToken {
                number: TokenNumber(number),
                name: format!("fleet {number}"),
                networks: vec![Network::parse("10.0.0.0/8").unwrap()],
                addresses: vec![IpAddr::from([1, 2, 3, 4])],
                ..one.clone()
            });
            Tokens::of(all.collect(), NOW, &Tokens::default())
        };
        let create = |tokens: &Tokens| {
            tokens.create(&wanted("one more", Role::View), KeyedHash([2; 16]), NOW).map(drop)
        };
        let full = tokens(MOST as u32, None);
        assert!(words(create(&full).unwrap_err()).contains("10000 tokens are in use"));
        assert_eq!(create(&tokens(MOST as u32, Some(NOW))), Ok(()));
        let kept = tokens(MOST_KEPT as u32, Some(NOW));
        assert!(words(create(&kept).unwrap_err()).contains("50000 tokens have been made"));
        let revoked = full.revoke(TokenNumber(1), NOW).unwrap().unwrap().0;
        assert!(revoked.networks.is_empty() && revoked.addresses.is_empty());
    }

    #[test]
    fn the_audit_log_says_what_has_changed_and_nothing_of_the_secret() {
        let terms = Terms {
            networks: Some(vec![Network::parse("10.0.0.0/8").unwrap()]),
            max_servers: Some(5),
            ..Terms::default()
        };
        let wanted = NewToken { terms, ..wanted("fleet", Role::Enrol) };
        let created = Tokens::default().create(&wanted, KeyedHash([1; 16]), NOW).unwrap();
        let detail = created.as_ref().unwrap().2.clone();
        assert_eq!(detail, "role enrol; networks: any -> 10.0.0.0/8; max_servers: 0 -> 5");
        let tokens = with(vec![], created);
        let change = |terms: &Terms| tokens.change(TokenNumber(1), terms, NOW);
        let renamed = change(&Terms { name: Some("west".into()), ..Terms::default() });
        assert_eq!(renamed.unwrap().unwrap().2, "name: fleet -> west");
        assert_eq!(change(&Terms { name: Some("fleet".into()), ..Terms::default() }), Ok(None));
        let rotated =
            tokens.rotate(TokenNumber(1), KeyedHash([2; 16]), 0, None, NOW).unwrap().unwrap();
        assert_eq!((rotated.2.as_str(), rotated.0.version), ("the old secret is void", 2));
    }

    #[test]
    fn a_term_that_is_not_allowed_is_named() {
        let create = |role, terms| {
            let wanted = NewToken { name: "a".into(), role, terms };
            words(Tokens::default().create(&wanted, KeyedHash([1; 16]), NOW).unwrap_err())
        };
        let terms = Terms::default;
        let past = Terms { expires_at: Some(Some(NOW)), ..terms() };
        let address = Terms { addresses: Some(vec![IpAddr::from([1, 2, 3, 4])]), ..terms() };
        let most = Terms { max_servers: Some(1), ..terms() };
        let network = Network::parse("10.0.0.0/8").unwrap();
        let networks = Terms { networks: Some(vec![network; 65]), ..terms() };
        let outside = Terms { networks: Some(vec![network]), ..address.clone() };
        for (role, terms, word) in [
            (Role::View, past, "expires_at"),
            (Role::View, address, "addresses"),
            (Role::Admin, most, "max_servers"),
            (Role::Enrol, networks, "networks"),
            (Role::Enrol, outside, "addresses has 1.2.3.4"),
        ] {
            let words = create(role, terms);
            assert!(words.starts_with(word), "{words}");
        }
        let tokens = with(
            vec![],
            Tokens::default().create(&wanted("a", Role::View), KeyedHash([1; 16]), NOW).unwrap(),
        );
        let long =
            tokens.rotate(TokenNumber(1), KeyedHash([2; 16]), u64::MAX, None, NOW).unwrap_err();
        assert!(words(long).starts_with("grace_seconds"));
        assert_eq!(tokens.revoke(TokenNumber(9), NOW), Err(AccessError::NotFound));
    }
}
