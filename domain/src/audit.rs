//! The audit log: a hash chain of events. Each says what happened, who did it and from where.
//!
//! An [`Event`] is written in the same commit as the change that it describes. Entries are numbered
//! from 1. Each entry's hash covers the hash before it, so changing, removing or inserting an entry
//! breaks every later hash. The chain alone cannot show that its end was cut off: for that, compare
//! it with a [`Head`] that was saved elsewhere.

use crate::Timestamp;
use crate::activation::{ActivationName, ActivationNumber};
use crate::code::CodeHash;
use crate::hex::{bytes_of, hex};
use crate::lookup::KeyedHash;
use crate::server::ServerId;
use sha2::{Digest, Sha256};
use std::net::IpAddr;

/// The kind of event. The numbers are part of the format on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Action {
    /// An action that a newer program wrote and this one does not know. It is only read, never
    /// written.
    Unknown = 0,
    /// A browser was given a code.
    CodeIssued = 1,
    /// An installer consumed a code.
    Activated = 2,
    /// The machine that holds a code activated it again, with another host name or address.
    Replaced = 3,
    /// An installer confirmed its activation.
    Confirmed = 4,
    /// An installer gave its code back.
    Released = 5,
    /// A server registered, for the first time or again.
    ServerRegistered = 6,
    /// An operator revoked a server.
    ServerRevoked = 7,
    /// An operator restored a server.
    ServerRestored = 8,
    /// An operator changed the note on a server.
    ServerNoted = 9,
    /// An operator changed a setting, or undid a change.
    SettingChanged = 10,
    /// A new epoch began, because the store lacks acknowledged changes or an operator asked for it:
    /// codes and open activations from before are void.
    StoreFenced = 11,
    /// The server reloaded its files and found other signing keys or another master token.
    KeysChanged = 12,
    /// An operator opened the console.
    LoggedIn = 13,
    /// Callers from a network sent wrong tokens: one entry for each network and minute.
    TokensRefused = 14,
    /// A session of the console was ended, by its operator or by another one.
    SessionEnded = 15,
    /// An operator deleted a server, or it was not seen for so long that it was forgotten.
    ServerDeleted = 16,
    /// A server was taken over from another program's list, or changed by it.
    ServerImported = 17,
    /// Two machines check in as the same server.
    CloneSeen = 18,
    /// Many servers have stopped checking in.
    FleetSilent = 19,
    /// A precheck passed. Kept with the code, not in the log.
    PrecheckPassed = 20,
    /// A precheck was refused. Kept with the code, not in the log.
    PrecheckRefused = 21,
    /// An activate was refused. Kept with the code, not in the log.
    ActivateRefused = 22,
    /// A confirm was refused. Kept with the code, not in the log.
    ConfirmRefused = 23,
    /// A release was refused. Kept with the code, not in the log.
    ReleaseRefused = 24,
    /// An operator created an access token.
    TokenCreated = 30,
    /// An operator changed an access token: its name, its networks, its end or its bounds.
    TokenChanged = 31,
    /// An operator gave an access token a new secret.
    TokenRotated = 32,
    /// An operator revoked an access token.
    TokenRevoked = 33,
    /// Another machine tried a code that had been used.
    SpentCodeTried = 34,
    /// A server that an installation has registered checked in for the first time since.
    ServerCheckedIn = 35,
    /// A backup of the store was made.
    BackupMade = 36,
    /// A backup could not be made.
    BackupFailed = 37,
    /// The store was restored from a backup.
    StoreRestored = 38,
    /// An operator had events sent to a webhook again.
    WebhookReplayed = 39,
    /// An operator enabled a webhook whose receiver had said that it was gone.
    WebhookEnabled = 40,
}

impl Action {
    /// All actions that this program writes.
    pub const ALL: [Self; 35] = [
        Self::CodeIssued,
        Self::Activated,
        Self::Replaced,
        Self::Confirmed,
        Self::Released,
        Self::ServerRegistered,
        Self::ServerRevoked,
        Self::ServerRestored,
        Self::ServerNoted,
        Self::SettingChanged,
        Self::StoreFenced,
        Self::KeysChanged,
        Self::LoggedIn,
        Self::TokensRefused,
        Self::SessionEnded,
        Self::ServerDeleted,
        Self::ServerImported,
        Self::CloneSeen,
        Self::FleetSilent,
        Self::TokenCreated,
        Self::TokenChanged,
        Self::TokenRotated,
        Self::TokenRevoked,
        Self::SpentCodeTried,
        Self::ServerCheckedIn,
        Self::BackupMade,
        Self::BackupFailed,
        Self::StoreRestored,
        Self::WebhookReplayed,
        Self::WebhookEnabled,
        Self::PrecheckPassed,
        Self::PrecheckRefused,
        Self::ActivateRefused,
        Self::ConfirmRefused,
        Self::ReleaseRefused,
    ];

    /// Returns its name in exports and filters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::CodeIssued => "code_issued",
            Self::Activated => "activated",
            Self::Replaced => "replaced",
            Self::Confirmed => "confirmed",
            Self::Released => "released",
            Self::ServerRegistered => "server_registered",
            Self::ServerRevoked => "server_revoked",
            Self::ServerRestored => "server_restored",
            Self::ServerNoted => "server_noted",
            Self::SettingChanged => "setting_changed",
            Self::StoreFenced => "store_fenced",
            Self::KeysChanged => "keys_changed",
            Self::LoggedIn => "logged_in",
            Self::TokensRefused => "tokens_refused",
            Self::SessionEnded => "session_ended",
            Self::ServerDeleted => "server_deleted",
            Self::ServerImported => "server_imported",
            Self::CloneSeen => "clone_seen",
            Self::FleetSilent => "fleet_silent",
            Self::TokenCreated => "token_created",
            Self::TokenChanged => "token_changed",
            Self::TokenRotated => "token_rotated",
            Self::TokenRevoked => "token_revoked",
            Self::SpentCodeTried => "spent_code_tried",
            Self::ServerCheckedIn => "server_checked_in",
            Self::BackupMade => "backup_made",
            Self::BackupFailed => "backup_failed",
            Self::StoreRestored => "store_restored",
            Self::WebhookReplayed => "webhook_replayed",
            Self::WebhookEnabled => "webhook_enabled",
            Self::PrecheckPassed => "precheck_passed",
            Self::PrecheckRefused => "precheck_refused",
            Self::ActivateRefused => "activate_refused",
            Self::ConfirmRefused => "confirm_refused",
            Self::ReleaseRefused => "release_refused",
        }
    }

    /// Returns the action with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }

    /// Whether this is an attempt that changed nothing. Attempts are kept with their code: the first
    /// ones in full, the others as a count.
    pub const fn is_attempt(self) -> bool {
        matches!(self as u8, 20..=29)
    }
}

/// The kind of actor that caused an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Actor {
    /// A browser on a code page.
    Browser = 1,
    /// An installer.
    Installer = 2,
    /// An installed server.
    Agent = 3,
    /// A person with the master token or an access token.
    Operator = 4,
    /// A person who may change the server's files and signal its process.
    Administrator = 5,
    /// A caller who proved nothing about itself.
    Unidentified = 6,
}

impl Actor {
    /// All actors.
    pub const ALL: [Self; 6] = [
        Self::Browser,
        Self::Installer,
        Self::Agent,
        Self::Operator,
        Self::Administrator,
        Self::Unidentified,
    ];

    /// Returns its name in exports and filters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Browser => "browser",
            Self::Installer => "installer",
            Self::Agent => "agent",
            Self::Operator => "operator",
            Self::Administrator => "administrator",
            Self::Unidentified => "unidentified",
        }
    }

    /// Returns the actor with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|actor| actor.name() == name)
    }
}

/// An event. It contains no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    pub action: Action,
    /// Who caused it.
    pub actor: Actor,
    /// The name of the access token that was shown; `master token` or `command line` for a caller without
    /// one; empty if nobody has shown anything, and in old entries of these two.
    pub by: String,
    /// The network that it came from, if known.
    pub from: Option<IpAddr>,
    /// The keyed hash of the caller's identity: a browser's session or an installer's machine.
    pub identity: Option<KeyedHash>,
    /// The code that it is about.
    pub code: Option<CodeHash>,
    /// The activation that it is about.
    pub activation: Option<ActivationName>,
    /// The server that it is about.
    pub server: Option<ServerId>,
    /// The public address that was bound or registered; for a clone the network of the machine that
    /// checked in before.
    pub address: Option<IpAddr>,
    /// The readable name of what it is about: a code's hint, a host name, a setting.
    pub subject: String,
    /// Further detail: the reason for a refusal, a value before and after, a note.
    pub detail: String,
}

impl Event {
    /// The longest subject or detail that is kept, in bytes.
    pub const TEXT: usize = 1024;

    /// Cuts a text to at most [`Self::TEXT`] bytes, between characters.
    pub fn kept(text: &str) -> &str {
        text.get(..text.floor_char_boundary(Self::TEXT)).unwrap_or(text)
    }

    /// Returns an event with no code, activation, server or text yet.
    pub const fn new(action: Action, actor: Actor, at: Timestamp, from: Option<IpAddr>) -> Self {
        Self {
            at,
            action,
            actor,
            by: String::new(),
            from,
            identity: None,
            code: None,
            activation: None,
            server: None,
            address: None,
            subject: String::new(),
            detail: String::new(),
        }
    }

    /// Appends the event's canonical bytes, which are hashed and stored. An event has the first format
    /// that can hold it, so that the hashes of old events stay what they were.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        let format = if self.by.is_empty() { WITHOUT_NAME } else { WITH_NAME };
        bytes.extend([format, self.action as u8, self.actor as u8]);
        bytes.extend(self.at.0.to_le_bytes());
        put_address(bytes, self.from);
        put(bytes, self.identity.map(|hash| hash.0));
        put(bytes, self.code.map(|hash| hash.0.0));
        put(bytes, self.activation.map(|at| at.number.0.to_le_bytes()));
        put(bytes, self.activation.map(|at| at.digits.to_le_bytes()));
        put(bytes, self.server.map(|id| id.0.to_le_bytes()));
        put_address(bytes, self.address);
        put_text(bytes, &self.subject);
        put_text(bytes, &self.detail);
        if !self.by.is_empty() {
            put_text(bytes, &self.by);
        }
    }

    /// Decodes the event at the start of `bytes`, and returns it with the bytes that follow. `None` if
    /// the bytes are not an event that [`Self::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let mut bytes = bytes;
        let [format, action, actor] = take(&mut bytes)?;
        if !matches!(format, WITHOUT_NAME | WITH_NAME) {
            return None;
        }
        let mut event = Self {
            action: Action::ALL.into_iter().find(|known| *known as u8 == action)?,
            actor: Actor::ALL.into_iter().find(|known| *known as u8 == actor)?,
            by: String::new(),
            at: Timestamp(u64::from_le_bytes(take(&mut bytes)?)),
            from: take_address(&mut bytes)?,
            identity: take_option(&mut bytes)?.map(KeyedHash),
            code: take_option(&mut bytes)?.map(|hash| CodeHash(KeyedHash(hash))),
            activation: {
                let number = take_option(&mut bytes)?.map(u64::from_le_bytes);
                let digits = take_option(&mut bytes)?.map(u16::from_le_bytes);
                match (number, digits) {
                    (Some(number), Some(digits)) => {
                        Some(ActivationName { number: ActivationNumber(number), digits })
                    }
                    (None, None) => None,
                    // Half a name would be left out when the event is encoded again.
                    _ => return None,
                }
            },
            server: take_option(&mut bytes)?.map(|id| ServerId(u64::from_le_bytes(id))),
            address: take_address(&mut bytes)?,
            subject: take_text(&mut bytes)?,
            detail: take_text(&mut bytes)?,
        };
        if format == WITH_NAME {
            // An empty name would be left out when the event is encoded again.
            event.by = take_text(&mut bytes).filter(|name| !name.is_empty())?;
        }
        Some((event, bytes))
    }
}

/// The formats, the first byte of an event. A new format gets a new number.
const WITHOUT_NAME: u8 = 1;
/// The name of an access token follows.
const WITH_NAME: u8 = 2;

fn put<const N: usize>(bytes: &mut Vec<u8>, value: Option<[u8; N]>) {
    bytes.push(u8::from(value.is_some()));
    bytes.extend(value.into_iter().flatten());
}

fn put_address(bytes: &mut Vec<u8>, address: Option<IpAddr>) {
    match address {
        None => bytes.push(0),
        Some(IpAddr::V4(v4)) => {
            bytes.push(4);
            bytes.extend(v4.octets());
        }
        Some(IpAddr::V6(v6)) => {
            bytes.push(6);
            bytes.extend(v6.octets());
        }
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    let text = Event::kept(text);
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

/// Takes an optional value. The outer `None` means that the bytes are malformed.
fn take_option<const N: usize>(bytes: &mut &[u8]) -> Option<Option<[u8; N]>> {
    match take(bytes)? {
        [0] => Some(None),
        [1] => Some(Some(take(bytes)?)),
        _ => None,
    }
}

fn take_address(bytes: &mut &[u8]) -> Option<Option<IpAddr>> {
    match take(bytes)? {
        [0] => Some(None),
        [4] => Some(Some(IpAddr::from(take::<4>(bytes)?))),
        [6] => Some(Some(IpAddr::from(take::<16>(bytes)?))),
        _ => None,
    }
}

fn take_text(bytes: &mut &[u8]) -> Option<String> {
    let length = usize::from(u16::from_le_bytes(take(bytes)?));
    let (text, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    String::from_utf8(text.to_vec()).ok().filter(|text| text.len() <= Event::TEXT)
}

/// The head of the log: the number and the hash of its last entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The number of the last entry; 0 if the log is empty.
    pub entries: u64,
    /// The hash of the last entry; zeros if the log is empty.
    pub hash: ChainHash,
}

/// The SHA-256 hash of an entry and of all entries before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainHash(pub [u8; 32]);

impl ChainHash {
    /// Returns 64 lower-case hexadecimal digits.
    pub fn to_hex(self) -> String {
        hex(&self.0)
    }

    /// Parses a hash that [`Self::to_hex`] wrote.
    pub fn from_hex(text: &str) -> Option<Self> {
        bytes_of(text).map(Self)
    }
}

impl Head {
    /// Returns the head after one more entry, given the entry's canonical bytes.
    #[must_use]
    pub fn after(&self, event: &[u8]) -> Self {
        let entries = self.entries.saturating_add(1);
        let mut hash = Sha256::new();
        hash.update(self.hash.0);
        hash.update(entries.to_le_bytes());
        hash.update(event);
        Self { entries, hash: ChainHash(hash.finalize().into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(seed: u64, text: String, some: bool) -> Event {
        let action = Action::ALL[(seed % Action::ALL.len() as u64) as usize];
        let v6 = IpAddr::from(u128::from(seed).to_be_bytes());
        let mut event = Event::new(
            action,
            Actor::ALL[(seed % Actor::ALL.len() as u64) as usize],
            Timestamp(seed),
            None,
        );
        event.subject = text;
        if some {
            event.by = "office".into();
            event.from = Some(IpAddr::from((seed as u32).to_be_bytes()));
            event.address = Some(v6);
            event.identity = Some(KeyedHash([seed as u8; 16]));
            event.code = Some(CodeHash(KeyedHash([7; 16])));
            event.server = Some(ServerId(seed));
            event.activation =
                Some(ActivationName { number: ActivationNumber(seed), digits: seed as u16 });
        }
        event
    }

    proptest! {
        #[test]
        fn every_event_decodes_to_what_was_encoded(seed: u64, text in ".{0,200}", some: bool) {
            let event = event(seed, text, some);
            let mut bytes = Vec::new();
            event.encode(&mut bytes);
            bytes.extend(b"rest");
            prop_assert_eq!(Event::decode(&bytes), Some((event, &b"rest"[..])));
        }

        #[test]
        fn decoding_any_bytes_never_panics(bytes: Vec<u8>) {
            let _ = Event::decode(&bytes);
        }

        #[test]
        fn a_change_of_any_bit_changes_the_hash(seed: u64, place: usize, bit in 0u8..8) {
            let mut bytes = Vec::new();
            event(seed, "ns1.example.com".into(), true).encode(&mut bytes);
            let before = Head::default().after(&bytes);
            let place = place % bytes.len();
            bytes[place] ^= 1 << bit;
            prop_assert_ne!(Head::default().after(&bytes), before);
        }
    }

    #[test]
    fn removing_or_moving_an_entry_changes_the_last_hash() {
        let bytes = |seed| {
            let mut bytes = Vec::new();
            event(seed, String::new(), false).encode(&mut bytes);
            bytes
        };
        let chain = |seeds: &[u64]| {
            seeds.iter().fold(Head::default(), |head, seed| head.after(&bytes(*seed)))
        };
        let whole = chain(&[1, 2, 3, 4]);
        for other in [&[1, 3, 4][..], &[2, 1, 3, 4], &[1, 2, 4, 3], &[1, 2, 3], &[1, 1, 2, 3, 4]] {
            assert_ne!(chain(other), whole);
        }
        assert_eq!(whole.entries, 4);
        assert_eq!(ChainHash::from_hex(&whole.hash.to_hex()), Some(whole.hash));
        assert_eq!(ChainHash::from_hex("zz"), None);
    }

    #[test]
    fn an_event_without_a_name_has_the_bytes_that_earlier_programs_hashed() {
        let mut bytes = Vec::new();
        event(1, "ns1".into(), false).encode(&mut bytes);
        let expected = b"\x01\x02\x02\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x03\0ns1\0\0";
        assert_eq!(bytes, expected);
        bytes[0] = 2;
        assert_eq!(Event::decode(&bytes), None, "the name is missing");
        bytes.extend([0, 0]);
        assert_eq!(Event::decode(&bytes), None, "the name is empty");
    }

    #[test]
    fn a_text_that_is_too_long_is_cut_between_characters() {
        let mut bytes = Vec::new();
        event(1, "ä".repeat(Event::TEXT), false).encode(&mut bytes);
        let (read, _) = Event::decode(&bytes).unwrap();
        assert_eq!(read.subject, "ä".repeat(Event::TEXT / 2));
    }

    #[test]
    fn names_are_unique_and_parse_back() {
        for action in Action::ALL {
            assert_eq!(Action::from_name(action.name()), Some(action));
        }
        for actor in Actor::ALL {
            assert_eq!(Actor::from_name(actor.name()), Some(actor));
        }
    }
}
