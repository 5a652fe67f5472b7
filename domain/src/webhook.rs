//! Webhooks: which events are told, in which order, when a delivery is tried again and when it is given up.
//!
//! The audit log is the outbox: an event is in it as soon as it has happened, under a number that stays. An
//! [`Outbox`] is what one receiver has had of it: how far the log was read, and what of that still waits.
//! Events of one [`subject`] are delivered in the order of the log, those of different subjects side
//! by side. An event that cannot be delivered in three days becomes a dead letter.

use crate::Timestamp;
use crate::address::is_global;
use crate::audit::{Action, Event};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

/// The most events that wait for one receiver. The log is not read further until one has gone.
pub const WINDOW: usize = 512;
/// The most deliveries to one receiver at the same time.
pub const PARALLEL: usize = 8;
/// The most dead letters that are listed. Of older ones only their number is kept.
pub const LISTED: usize = 1000;
/// The time in seconds from the first try of an event until it is given up: three days.
pub const GIVEN_UP_AFTER: u64 = 3 * 86_400;
/// The pause in seconds after the first failure.
const FIRST_PAUSE: u64 = 5;
/// The longest pause in seconds between two tries of an event: six hours. With it an event is tried 19 times.
pub const LONGEST_PAUSE: u64 = 6 * 3600;
/// So many failures in a row, and the receiver as a whole is failing: it is tried with one event at a time.
const FAILING: u32 = 3;
/// The longest pause in seconds between two tries of a receiver that is failing: ten minutes. One that comes
/// back hears of it within that time.
const LONGEST_REST: u64 = 600;
/// The longest text of a failure that is kept, in bytes.
const WHY: usize = 200;

/// The types of events, and the entries of the audit log that they are.
pub const TYPES: [(Action, &str); 27] = [
    (Action::CodeIssued, "code.issued"),
    (Action::SpentCodeTried, "code.spent_tried"),
    (Action::Activated, "install.activated"),
    (Action::Replaced, "install.replaced"),
    (Action::Confirmed, "install.confirmed"),
    (Action::Released, "install.released"),
    (Action::ServerRegistered, "server.registered"),
    (Action::ServerCheckedIn, "server.checked_in"),
    (Action::ServerRevoked, "server.revoked"),
    (Action::ServerRestored, "server.restored"),
    (Action::ServerNoted, "server.noted"),
    (Action::ServerDeleted, "server.deleted"),
    (Action::ServerImported, "server.imported"),
    (Action::CloneSeen, "server.cloned"),
    (Action::FleetSilent, "fleet.silent"),
    (Action::TokensRefused, "access.wrong_tokens"),
    (Action::LoggedIn, "access.logged_in"),
    (Action::TokenCreated, "access.token_created"),
    (Action::TokenChanged, "access.token_changed"),
    (Action::TokenRotated, "access.token_rotated"),
    (Action::TokenRevoked, "access.token_revoked"),
    (Action::SettingChanged, "operation.setting_changed"),
    (Action::KeysChanged, "operation.keys_changed"),
    (Action::BackupMade, "operation.backup_made"),
    (Action::BackupFailed, "operation.backup_failed"),
    (Action::StoreFenced, "operation.epoch_began"),
    (Action::StoreRestored, "operation.store_restored"),
];

/// Returns the type of an event. `None` if it is told to nobody.
pub fn type_of(action: Action) -> Option<&'static str> {
    TYPES.into_iter().find(|(known, _)| *known == action).map(|(_, name)| name)
}

/// Whether an event is what an operator asks of a webhook.
pub const fn is_order(action: Action) -> bool {
    matches!(action, Action::WebhookReplayed | Action::WebhookEnabled)
}

/// The types of events that a receiver wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection(Vec<&'static str>);

impl Selection {
    /// All types.
    pub fn all() -> Self {
        Self(TYPES.map(|(_, name)| name).to_vec())
    }

    /// Reads a list: each entry is a type, a group of types (`server.*`), or `*` for all.
    ///
    /// # Errors
    /// The entry that names no type.
    pub fn parse<'a>(list: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut types = Vec::new();
        for entry in list {
            let matches = |name: &str| match entry.strip_suffix('*') {
                Some("") => true,
                Some(group) => group.ends_with('.') && name.starts_with(group),
                None => name == entry,
            };
            let found = TYPES.into_iter().map(|(_, name)| name).filter(|name| matches(name));
            let before = types.len();
            types.extend(found);
            if types.len() == before {
                return Err(entry.to_owned());
            }
        }
        types.sort_unstable();
        types.dedup();
        Ok(Self(types))
    }

    /// Returns the type of an event if it is wanted.
    pub fn wants(&self, action: Action) -> Option<&'static str> {
        type_of(action).filter(|name| self.0.contains(name))
    }

    /// Returns the types.
    pub fn types(&self) -> &[&'static str] {
        &self.0
    }
}

/// Returns what an event is about, as far as its order matters: the server, else the code, else the group of
/// its type. Events of one subject are delivered in the order of the log.
pub fn subject(event: &Event) -> String {
    match (event.server, event.code) {
        (Some(server), _) => format!("server:{server}"),
        (None, Some(code)) => format!("code:{}", code.0.to_hex()),
        (None, None) => {
            let group = type_of(event.action).and_then(|name| name.split_once('.'));
            group.map_or("", |(group, _)| group).to_owned()
        }
    }
}

/// Returns the seconds until a try after so many failures. `jitter` is any number: it moves the time by up
/// to an eighth to each side, so that what failed together is not tried together.
pub fn pause(failures: u32, longest: u64, jitter: u32) -> u64 {
    let tripled = FIRST_PAUSE.saturating_mul(3u64.saturating_pow(failures.saturating_sub(1)));
    let pause = tripled.min(longest);
    let width = pause / 4 + 1;
    pause - width / 2 + u64::from(jitter) % width
}

/// Whether a receiver may have this address without being allowed to be inside: it is globally reachable, and
/// so is the IPv4 address that a translator would make of it (64:ff9b::/96, RFC 6052).
pub fn is_outside(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V6(v6) if v6.segments().starts_with(&[0x64, 0xff9b, 0, 0, 0, 0]) => {
            let [.., a, b, c, d] = v6.octets();
            is_global(Ipv4Addr::new(a, b, c, d).into())
        }
        address => is_global(address),
    }
}

/// Returns what a message's signature is made of (Standard Webhooks 1.0, "Signature scheme"): its id, the
/// time of the try in seconds since the Unix epoch, and its bytes.
pub fn signed_content(id: &str, seconds: u64, body: &[u8]) -> Vec<u8> {
    let front = format!("{id}.{seconds}.");
    [front.as_bytes(), body].concat()
}

/// An event that waits to be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// What it is about.
    pub subject: String,
    /// When it happened.
    pub at: Timestamp,
    /// How often it was tried.
    pub tries: u32,
    /// When it was first tried.
    pub first_try: Option<Timestamp>,
    /// When it may be tried again.
    pub due: Timestamp,
    /// Whether it is being delivered now.
    pub under_way: bool,
}

/// An event that was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The number of its entry in the audit log.
    pub number: u64,
    /// What it is about.
    pub subject: String,
    /// When it happened.
    pub at: Timestamp,
    /// When it was given up.
    pub given_up: Timestamp,
    /// How often it was tried.
    pub tries: u32,
    /// Why the last try failed.
    pub why: String,
}

/// What one receiver has had of the audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outbox {
    /// The number of the last entry that was read.
    pub read: u64,
    /// What waits, by the numbers of the entries.
    pub waiting: BTreeMap<u64, Waiting>,
    /// What was given up, the newest last.
    pub dead: VecDeque<DeadLetter>,
    /// How many more were given up than are listed.
    pub not_listed: u64,
    /// How many tries have failed since the last delivery.
    pub failures: u32,
    /// When the first of them failed.
    pub failing_since: Option<Timestamp>,
    /// Until when nothing is tried.
    pub rests_until: Timestamp,
    /// Why the last try failed; empty after a delivery.
    pub last_error: String,
    /// When something was last delivered.
    pub last_delivered: Option<Timestamp>,
    /// Whether the receiver has said that it is gone.
    pub disabled: bool,
}

impl Outbox {
    /// Returns the outbox of a new receiver: it hears of what happens after entry `head`.
    pub fn from(head: u64) -> Self {
        Self { read: head, ..Self::default() }
    }

    /// Returns how many more events may wait.
    pub fn room(&self) -> usize {
        if self.disabled { 0 } else { WINDOW.saturating_sub(self.waiting.len()) }
    }

    /// Notes that the log was read up to an entry.
    pub fn pass(&mut self, number: u64) {
        self.read = self.read.max(number);
    }

    /// Takes an entry that was read. What is too old for a receiver that has failed for three days is given
    /// up at once, so that a dead receiver costs neither time nor room.
    pub fn take(&mut self, number: u64, subject: String, at: Timestamp, now: Timestamp) {
        self.pass(number);
        if self.waiting.contains_key(&number) {
            return;
        }
        let first_try = None;
        let waiting = Waiting { subject, at, tries: 0, first_try, due: at, under_way: false };
        if self.is_hopeless(at, now) {
            self.bury(number, waiting, now);
        } else {
            self.waiting.insert(number, waiting);
        }
    }

    /// Whether the receiver has failed for so long that an event of this time is given up untried.
    fn is_hopeless(&self, at: Timestamp, now: Timestamp) -> bool {
        let failing = self.failing_since.is_some_and(|since| now.since(since) >= GIVEN_UP_AFTER);
        failing && now.since(at) >= GIVEN_UP_AFTER
    }

    /// Whether the receiver as a whole is failing.
    pub const fn is_failing(&self) -> bool {
        self.failures >= FAILING
    }

    /// Begins the next delivery: the first event that is due, unless an earlier one of its subject waits.
    pub fn begin(&mut self, now: Timestamp) -> Option<u64> {
        let most = if self.is_failing() { 1 } else { PARALLEL };
        let under_way = self.waiting.values().filter(|one| one.under_way).count();
        if self.disabled || under_way >= most || !is_over(self.rests_until, now) {
            return None;
        }
        let mut before: HashSet<&str> = HashSet::new();
        let next = self.waiting.iter().find(|(_, one)| {
            let is_first = before.insert(&one.subject);
            is_first && !one.under_way && (one.tries == 0 || is_over(one.due, now))
        });
        let number = *next?.0;
        if let Some(one) = self.waiting.get_mut(&number) {
            one.under_way = true;
        }
        Some(number)
    }

    /// Notes a delivery.
    pub fn delivered(&mut self, number: u64, now: Timestamp) {
        self.waiting.remove(&number);
        if self.is_failing() {
            // It was the receiver that failed, not these events.
            self.waiting.values_mut().for_each(|one| one.due = now);
        }
        self.failures = 0;
        self.failing_since = None;
        self.rests_until = Timestamp::default();
        self.last_error.clear();
        self.last_delivered = Some(now);
    }

    /// Notes a failure. `retry_after` is what the receiver asked for, in seconds.
    pub fn failed(
        &mut self,
        number: u64,
        why: &str,
        retry_after: Option<u64>,
        jitter: u32,
        now: Timestamp,
    ) {
        why.get(..why.floor_char_boundary(WHY)).unwrap_or(why).clone_into(&mut self.last_error);
        self.failures = self.failures.saturating_add(1);
        self.failing_since.get_or_insert(now);
        let rest = if self.is_failing() {
            pause(self.failures.saturating_sub(FAILING - 1), LONGEST_REST, jitter)
        } else {
            0
        };
        let asked = retry_after.unwrap_or(0).min(LONGEST_PAUSE);
        self.rests_until = now.plus(rest.max(asked));
        let Some(mut one) = self.waiting.remove(&number) else { return };
        one.under_way = false;
        one.tries = one.tries.saturating_add(1);
        let first = *one.first_try.get_or_insert(now);
        if now.since(first) >= GIVEN_UP_AFTER || self.is_hopeless(one.at, now) {
            self.bury(number, one, now);
        } else {
            one.due = now.plus(pause(one.tries, LONGEST_PAUSE, jitter).max(asked));
            self.waiting.insert(number, one);
        }
        self.give_up_hopeless(now);
    }

    fn give_up_hopeless(&mut self, now: Timestamp) {
        let old = |(number, one): (&u64, &Waiting)| {
            (!one.under_way && self.is_hopeless(one.at, now)).then_some(*number)
        };
        let hopeless: Vec<u64> = self.waiting.iter().filter_map(old).collect();
        for number in hopeless {
            if let Some(one) = self.waiting.remove(&number) {
                self.bury(number, one, now);
            }
        }
    }

    /// Notes that the receiver is gone for good (status 410): what waits is given up, and nothing is read
    /// until an operator enables it.
    pub fn gone(&mut self, now: Timestamp) {
        self.disabled = true;
        "the receiver says that it is gone (410)".clone_into(&mut self.last_error);
        for (number, one) in std::mem::take(&mut self.waiting) {
            self.bury(number, one, now);
        }
    }

    /// Enables a receiver that was gone: it hears of what happens after entry `head`.
    pub fn enable(&mut self, head: u64) {
        if self.disabled {
            self.disabled = false;
            self.read = self.read.max(head);
        }
        self.failures = 0;
        self.failing_since = None;
        self.rests_until = Timestamp::default();
        self.last_error.clear();
    }

    fn bury(&mut self, number: u64, one: Waiting, now: Timestamp) {
        let Waiting { subject, at, tries, .. } = one;
        let why = self.last_error.clone();
        self.dead.retain(|letter| letter.number != number);
        self.dead.push_back(DeadLetter { number, subject, at, given_up: now, tries, why });
        if self.dead.len() > LISTED {
            self.dead.pop_front();
            self.not_listed = self.not_listed.saturating_add(1);
        }
    }

    /// Sends an event again by hand: a dead letter, or any entry that was read.
    pub fn replay(&mut self, number: u64, subject: String, at: Timestamp, now: Timestamp) {
        self.dead.retain(|letter| letter.number != number);
        let (tries, first_try) = (0, None);
        let one = Waiting { subject, at, tries, first_try, due: now, under_way: false };
        self.waiting.entry(number).or_insert(one);
        self.forgive();
    }

    /// Sends again whatever was read from an entry on.
    pub fn replay_from(&mut self, number: u64) {
        self.read = self.read.min(number.saturating_sub(1));
        self.dead.retain(|letter| letter.number < number);
        self.forgive();
    }

    /// Lets a failing receiver be tried at once, for as long as a new one.
    fn forgive(&mut self) {
        self.failures = 0;
        self.failing_since = None;
        self.rests_until = Timestamp::default();
    }

    /// Returns how far the log is done with, and what must be kept beside that: what has failed, and what waits
    /// behind it. Everything after the returned number is read again after a restart, so it need not be kept.
    pub fn durable(&self) -> (u64, Vec<(u64, &Waiting)>) {
        let (mut read, mut kept) = (self.read, Vec::new());
        let mut held: HashSet<&str> = HashSet::new();
        for (number, one) in &self.waiting {
            if one.tries > 0 || held.contains(one.subject.as_str()) {
                held.insert(&one.subject);
                kept.push((*number, one));
            } else {
                read = read.min(number.saturating_sub(1));
            }
        }
        (read, kept)
    }

    /// Returns when the oldest event that waits has happened.
    pub fn oldest(&self) -> Option<Timestamp> {
        self.waiting.values().map(|one| one.at).min()
    }
}

/// Whether a pause is over. One that is longer than any was set by a clock that was wrong.
const fn is_over(until: Timestamp, now: Timestamp) -> bool {
    until.0 <= now.0 || until.0 - now.0 > LONGEST_PAUSE * 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Actor;
    use crate::server::ServerId;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp(1_800_000_000);

    fn later(seconds: u64) -> Timestamp {
        NOW.plus(seconds)
    }

    fn outbox(subjects: &[&str]) -> Outbox {
        let mut outbox = Outbox::from(0);
        for (number, subject) in (1..).zip(subjects) {
            outbox.take(number, (*subject).to_owned(), NOW, NOW);
        }
        outbox
    }

    #[test]
    fn every_type_has_one_entry_and_a_group() {
        let mut names = TYPES.map(|(_, name)| name).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TYPES.len());
        assert!(names.iter().all(|name| name.matches('.').count() == 1));
        assert!(TYPES.iter().all(|(action, name)| type_of(*action) == Some(name)));
        assert_eq!(type_of(Action::PrecheckRefused), None);
    }

    #[test]
    fn a_selection_names_types_groups_or_all_and_nothing_else() {
        let some = Selection::parse(["server.revoked", "fleet.*"]).unwrap();
        assert_eq!(some.types(), ["fleet.silent", "server.revoked"]);
        assert_eq!(some.wants(Action::FleetSilent), Some("fleet.silent"));
        assert_eq!(some.wants(Action::Activated), None);
        assert_eq!(Selection::parse(["*"]).unwrap().types().len(), TYPES.len());
        for wrong in ["server", "server.", "servers.*", "server*", "", ".*"] {
            assert_eq!(Selection::parse([wrong]), Err(wrong.to_owned()));
        }
    }

    #[test]
    fn a_receiver_inside_is_known_in_every_notation() {
        for inside in [
            "127.0.0.1",
            "10.1.2.3",
            "169.254.169.254",
            "192.168.0.1",
            "100.64.0.1",
            "0.0.0.0",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "224.0.0.1",
            "ff02::1",
        ] {
            assert!(!is_outside(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["8.8.8.8", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808"] {
            assert!(is_outside(outside.parse().unwrap()), "{outside}");
        }
    }

    #[test]
    fn an_event_is_about_its_server_before_all_else() {
        let mut event = Event::new(Action::FleetSilent, Actor::Agent, NOW, None);
        assert_eq!(subject(&event), "fleet");
        event.code = Some(crate::code::CodeHash(crate::lookup::KeyedHash([1; 16])));
        assert!(subject(&event).starts_with("code:0101"));
        event.server = Some(ServerId(1));
        assert_eq!(subject(&event), "server:0000000000000001");
    }

    #[test]
    fn an_event_is_tried_nineteen_times_in_three_days() {
        let (mut now, mut tries) = (0, 1);
        while now < GIVEN_UP_AFTER {
            now += pause(tries, LONGEST_PAUSE, 0);
            tries += 1;
        }
        assert!((18..=22).contains(&tries), "{tries}");
        assert!(pause(1, LONGEST_PAUSE, 0) >= 4 && pause(1, LONGEST_PAUSE, 1) <= 6);
    }

    #[test]
    fn a_later_event_of_a_subject_waits_and_those_of_others_go_on() {
        let mut outbox = outbox(&["a", "a", "b"]);
        assert_eq!((outbox.begin(NOW), outbox.begin(NOW)), (Some(1), Some(3)));
        assert_eq!(outbox.begin(NOW), None, "2 waits for 1");
        outbox.failed(1, "500", None, 0, NOW);
        outbox.delivered(3, NOW);
        assert_eq!(outbox.begin(later(1)), None, "1 pauses");
        assert_eq!(outbox.begin(later(10)), Some(1));
        outbox.delivered(1, later(10));
        assert_eq!(outbox.begin(later(10)), Some(2));
    }

    #[test]
    fn what_has_failed_is_kept_with_what_waits_behind_it_and_the_rest_is_read_again() {
        let mut outbox = outbox(&["a", "a", "b", "c"]);
        assert_eq!(outbox.durable(), (0, vec![]));
        assert_eq!(outbox.begin(NOW), Some(1));
        outbox.failed(1, "500", None, 0, NOW);
        let (read, kept) = outbox.durable();
        assert_eq!((read, kept.iter().map(|kept| kept.0).collect::<Vec<_>>()), (2, vec![1, 2]));
        for number in [3, 4] {
            assert_eq!(outbox.begin(NOW), Some(number));
            outbox.delivered(number, NOW);
        }
        assert_eq!(outbox.durable().0, 4);
    }

    #[test]
    fn a_failing_receiver_is_tried_with_one_event_at_a_time_and_hears_all_once_it_is_back() {
        let mut outbox = outbox(&["a", "b", "c", "d", "e"]);
        for number in 1..=3 {
            assert_eq!(outbox.begin(NOW), Some(number));
        }
        (1..=3).for_each(|number| outbox.failed(number, "refused", None, 0, NOW));
        assert!(outbox.is_failing() && outbox.begin(NOW).is_none());
        assert_eq!(outbox.begin(later(60)), Some(1));
        assert_eq!(outbox.begin(later(60)), None, "one at a time");
        outbox.delivered(1, later(60));
        let next: Vec<u64> = std::iter::from_fn(|| outbox.begin(later(60))).collect();
        assert_eq!(next, [2, 3, 4, 5]);
    }

    #[test]
    fn what_a_receiver_asks_for_is_honoured() {
        let mut outbox = outbox(&["a", "b"]);
        outbox.begin(NOW);
        outbox.failed(1, "429", Some(120), 0, NOW);
        assert_eq!(outbox.begin(later(119)), None);
        assert!(outbox.begin(later(120)).is_some());
    }

    #[test]
    fn an_event_is_given_up_after_three_days_and_can_be_sent_again() {
        let mut outbox = outbox(&["a", "a"]);
        outbox.begin(NOW);
        outbox.failed(1, "500", None, 0, NOW);
        outbox.begin(later(GIVEN_UP_AFTER));
        outbox.failed(1, "500", None, 0, later(GIVEN_UP_AFTER));
        assert_eq!(outbox.dead.len(), 2, "2 is as old, and its receiver has failed as long");
        assert_eq!((outbox.dead[0].number, outbox.dead[0].tries), (1, 2));
        // A dead receiver costs no tries: what is older than three days is given up as it is read.
        outbox.take(3, "b".into(), NOW, later(GIVEN_UP_AFTER));
        assert!(outbox.waiting.is_empty());
        outbox.take(4, "b".into(), later(GIVEN_UP_AFTER), later(GIVEN_UP_AFTER));
        assert_eq!(outbox.waiting.len(), 1);
        outbox.replay(1, "a".into(), NOW, later(GIVEN_UP_AFTER));
        assert_eq!(outbox.begin(later(GIVEN_UP_AFTER)), Some(1));
        assert!(outbox.dead.iter().all(|letter| letter.number != 1));
    }

    #[test]
    fn a_receiver_that_is_gone_hears_nothing_until_it_is_enabled() {
        let mut outbox = outbox(&["a", "b"]);
        outbox.begin(NOW);
        outbox.gone(NOW);
        assert_eq!((outbox.room(), outbox.dead.len(), outbox.begin(NOW)), (0, 2, None));
        outbox.enable(9);
        assert_eq!((outbox.read, outbox.room()), (9, WINDOW));
    }

    #[test]
    fn dead_letters_are_bounded_and_the_others_counted() {
        let mut outbox = Outbox::from(0);
        outbox.failing_since = Some(NOW);
        let now = later(GIVEN_UP_AFTER);
        (1..=LISTED as u64 + 5).for_each(|number| outbox.take(number, "a".into(), NOW, now));
        assert_eq!((outbox.dead.len(), outbox.not_listed), (LISTED, 5));
    }

    proptest! {
        /// Whatever fails and in whatever order answers come: each event is delivered, each subject in order,
        /// and a restart at any moment loses nothing.
        #[test]
        fn nothing_is_lost_and_each_subject_is_in_order(
            subjects in proptest::collection::vec(0u8..4, 1..40),
            outcomes in proptest::collection::vec((0usize..8, 0u8..4, any::<u32>()), 0..400),
        ) {
            let subject = |number: u64| format!("{}", subjects[number as usize - 1]);
            let last = subjects.len() as u64;
            let (mut outbox, mut now) = (Outbox::from(0), NOW);
            let (mut got, mut steps) = (Vec::new(), outcomes.into_iter());
            while got.len() < subjects.len() * 40 {
                while outbox.read < last && outbox.room() > 0 {
                    outbox.take(outbox.read + 1, subject(outbox.read + 1), now, now);
                }
                while outbox.begin(now).is_some() {}
                let open: Vec<u64> =
                    outbox.waiting.iter().filter(|(_, one)| one.under_way).map(|one| *one.0).collect();
                if open.is_empty() {
                    if outbox.waiting.is_empty() { break; }
                    now = now.plus(60);
                    continue;
                }
                let (which, outcome, jitter) = steps.next().unwrap_or((0, 1, 0));
                let number = open[which % open.len()];
                match outcome {
                    0 => outbox.failed(number, "500", None, jitter, now),
                    // A restart: only what is durable is left.
                    3 => {
                        let (read, kept) = outbox.durable();
                        let waiting = kept.into_iter().map(|(number, one)| {
                            (number, Waiting { under_way: false, ..one.clone() })
                        }).collect();
                        outbox = Outbox { read, waiting, ..Outbox::default() };
                    }
                    _ => { got.push(number); outbox.delivered(number, now); }
                }
            }
            for number in 1..=last {
                prop_assert!(got.contains(&number), "{number} of {last} was lost");
            }
            // First deliveries of a subject are in order; repeats after a restart may come late.
            for one in 0u8..4 {
                let mut seen: Vec<u64> = Vec::new();
                for number in got.iter().filter(|number| subjects[**number as usize - 1] == one) {
                    if !seen.contains(number) { seen.push(*number); }
                }
                prop_assert!(seen.is_sorted(), "{seen:?}");
            }
        }
    }
}
