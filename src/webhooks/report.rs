//! What operators see of the webhooks: how each receiver is, and what was given up.

use super::kept::Kept;
use super::send::Sender;
use super::{Webhooks, entry};
use crate::http::respond::rfc3339;
use iptunnel_domain::Timestamp;
use iptunnel_domain::webhook::{Outbox, type_of};
use iptunnel_storage::{ReadError, Store};
use serde::Serialize;
use std::collections::BTreeMap;

/// So many seconds without a delivery, and a receiver that fails needs a person: an hour.
pub const NEEDS_PERSON: u64 = 3600;

/// How a receiver is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Its name.
    pub name: String,
    /// Where it is: scheme, host and port. The rest of its address may be secret.
    pub url: String,
    /// The types of events that it hears of.
    pub events: Vec<&'static str>,
    /// Whether it has its place in the log: it hears of whatever happens from then on.
    pub known: bool,
    /// `new`, `delivering`, `failing` or `disabled`.
    pub state: &'static str,
    /// When something was last delivered, by RFC 3339.
    pub last_delivered: Option<String>,
    /// How many events wait. More may wait in the audit log.
    pub waiting: usize,
    /// When the oldest of them happened, by RFC 3339.
    pub oldest_waiting: Option<String>,
    /// Since when every try has failed, by RFC 3339.
    pub failing_since: Option<String>,
    /// Why the last try failed; empty after a delivery.
    pub last_error: String,
    /// How many dead letters are listed.
    pub dead_letters: usize,
    /// How many more were given up.
    pub not_listed: u64,
    /// Whether it has failed for so long that a person should look.
    pub needs_person: bool,
}

/// An event that was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeadLetter {
    /// The webhook.
    pub webhook: String,
    /// The number of the entry in the audit log.
    pub number: u64,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What it is about.
    pub about: String,
    /// When it happened, by RFC 3339.
    pub at: String,
    /// When it was given up, by RFC 3339.
    pub given_up_at: String,
    /// How often it was tried.
    pub tries: u32,
    /// Why the last try failed.
    pub why: String,
}

fn kept(store: &dyn Store) -> Result<BTreeMap<String, Kept>, ReadError> {
    let Some(rows) = store.webhooks() else { return Ok(BTreeMap::new()) };
    let states = rows.states()?;
    // A row that a newer program wrote is shown as that of a new webhook.
    let read = |(name, bytes): (String, Vec<u8>)| Some((name, Kept::decode(&bytes).ok()?));
    Ok(states.into_iter().filter_map(read).collect())
}

fn endpoint(name: String, sender: &Sender, outbox: &Outbox, now: Timestamp) -> Endpoint {
    let at = |time: Option<Timestamp>| time.map(rfc3339);
    let failing = outbox.failing_since.filter(|_| outbox.failures > 0);
    let state = match (outbox.disabled, failing, outbox.last_delivered) {
        (true, _, _) => "disabled",
        (false, Some(_), _) => "failing",
        (false, None, Some(_)) => "delivering",
        (false, None, None) => "new",
    };
    let has_failed_long = failing.is_some_and(|since| now.since(since) >= NEEDS_PERSON);
    Endpoint {
        name,
        url: sender.endpoint().shown(),
        events: sender.endpoint().events.types().to_vec(),
        known: false,
        state,
        last_delivered: at(outbox.last_delivered),
        waiting: outbox.waiting.len(),
        oldest_waiting: at(outbox.oldest()),
        failing_since: at(failing),
        last_error: outbox.last_error.clone(),
        dead_letters: outbox.dead.len(),
        not_listed: outbox.not_listed,
        needs_person: outbox.disabled || has_failed_long,
    }
}

/// Returns how each receiver is, in the order of their names. The store's rows lag by a second.
///
/// # Errors
/// The store cannot be read.
pub fn endpoints(
    webhooks: &Webhooks,
    store: &dyn Store,
    now: Timestamp,
) -> Result<Vec<Endpoint>, ReadError> {
    let senders = webhooks.senders();
    if senders.is_empty() {
        return Ok(Vec::new());
    }
    let kept = kept(store)?;
    let of = |name: &str| kept.get(name).map(|kept| kept.outbox.clone()).unwrap_or_default();
    Ok(senders
        .into_iter()
        .map(|(name, sender)| {
            let (outbox, known) = (of(&name), kept.contains_key(&name));
            Endpoint { known, ..endpoint(name, &sender, &outbox, now) }
        })
        .collect())
}

/// Returns the dead letters of one webhook, or of all, the newest first.
///
/// # Errors
/// The store cannot be read.
pub fn dead_letters(store: &dyn Store, only: Option<&str>) -> Result<Vec<DeadLetter>, ReadError> {
    let mut letters = Vec::new();
    for (webhook, kept) in kept(store)? {
        if only.is_some_and(|only| only != webhook) {
            continue;
        }
        for letter in kept.outbox.dead.into_iter().rev() {
            let kind = entry(store, letter.number)?.and_then(|entry| type_of(entry.event.action));
            letters.push(DeadLetter {
                webhook: webhook.clone(),
                number: letter.number,
                kind: kind.unwrap_or_default(),
                about: letter.subject,
                at: rfc3339(letter.at),
                given_up_at: rfc3339(letter.given_up),
                tries: letter.tries,
                why: letter.why,
            });
        }
    }
    Ok(letters)
}
