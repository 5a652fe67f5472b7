//! What needs a person: clones, a silent fleet, spent codes tried by other machines, bursts of wrong tokens,
//! a new epoch, and present faults.
//!
//! Most of it are entries of the audit log. The newest ones are kept in memory, from the change feed, so
//! that the console's first page searches no log. Over a shared store they are those of all servers.

use super::wrong_tokens;
use crate::http::respond::rfc3339;
use iptunnel_actors::server_registry::Silent;
use iptunnel_domain::Timestamp;
use iptunnel_domain::audit::{Action, Event};
use iptunnel_domain::server::ServerId;
use iptunnel_storage::{AuditLog, ReadError};
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How long an event needs a person, in seconds: a day.
const DAY: u64 = 86_400;
/// The most events of one kind that are kept, about 300 bytes each.
const KEPT: usize = 1000;
/// The most entries of the log that a start reads, the newest: about ten seconds of one thread. An import
/// of the largest fleet has a million.
const READ: usize = 10_000_000;
/// The entries that are read at once: about 100 ms, after which a server that stops reads no more.
const STEP: usize = 100_000;
/// So many entries in a row that are older than a day are the end of it. Fewer may be of a server whose
/// clock was wrong.
const OLDER: usize = 100_000;
/// The most lines of one kind. One more sums up the others.
const LINES: usize = 10;

/// The kinds of events that are kept.
const ACTIONS: [Action; 4] =
    [Action::StoreFenced, Action::CloneSeen, Action::SpentCodeTried, Action::TokensRefused];

/// Something that needs a person.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The kind: `backup`, `webhook`, `disk`, `store`, `epoch`, `silent`, `clone`, `spent_code` or `wrong_tokens`.
    pub kind: &'static str,
    /// When it was last seen, by RFC 3339.
    pub at: String,
    /// What it is, in a sentence.
    pub text: String,
    /// Where more of it is seen: a path below `/admin/` and below the console's address.
    pub see: String,
}

/// A clone, as the list of servers shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cloned {
    /// The networks that the last event names: of the check-in before, and of the one that differed.
    pub networks: Vec<IpAddr>,
    /// When it was last seen, by RFC 3339.
    pub at: String,
    /// How often it was reported in the last day: at most once in an interval.
    pub times: usize,
    /// What the event says.
    pub detail: String,
}

/// The newest events that need a person.
#[derive(Default)]
pub struct Attention(Mutex<HashMap<Action, VecDeque<Event>>>);

/// Events about the same thing, the newest first.
struct Group<'a> {
    newest: &'a Event,
    times: usize,
    /// The sum of what each event counts.
    sum: u64,
}

impl Attention {
    fn lock(&self) -> MutexGuard<'_, HashMap<Action, VecDeque<Event>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an event that was written to the log. It must be quick.
    pub fn hear(&self, event: &Event) {
        if !needs_person(event) {
            return;
        }
        let mut kept = self.lock();
        let events = kept.entry(event.action).or_default();
        events.push_front(event.clone());
        events.truncate(KEPT);
    }

    /// Notes what the log has of the last day, after a start, until `goes_on` says no.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn read(
        &self,
        log: &dyn AuditLog,
        now: Timestamp,
        goes_on: impl Fn() -> bool,
    ) -> Result<(), ReadError> {
        let (mut before, mut older, mut read) = (u64::MAX, 0, 0);
        while read < READ && older < OLDER && goes_on() {
            let (mut found, mut looked) = (Vec::new(), 0);
            log.audit_before(before, &mut |entry| {
                looked += 1;
                before = entry.head.entries;
                let is_recent = is_recent(&entry.event, now);
                older = if is_recent { 0 } else { older + 1 };
                if is_recent && needs_person(&entry.event) {
                    found.push(entry.event);
                }
                looked < STEP
            })?;
            self.note_earlier(found);
            if looked < STEP {
                break;
            }
            read += looked;
        }
        Ok(())
    }

    /// Notes events, the newest first, that are earlier than those that are kept.
    fn note_earlier(&self, found: Vec<Event>) {
        let mut kept = self.lock();
        for event in found {
            let events = kept.entry(event.action).or_default();
            // The change feed may have brought it meanwhile.
            if events.len() < KEPT && !events.contains(&event) {
                events.push_back(event);
            }
        }
    }

    /// Returns the clones of the last day, by server.
    pub fn clones(&self, now: Timestamp) -> HashMap<ServerId, Cloned> {
        let kept = self.lock();
        let mut clones: HashMap<ServerId, Cloned> = HashMap::new();
        for event in recent(&kept, Action::CloneSeen, now) {
            let Some(id) = event.server else { continue };
            let seen = clones.entry(id).or_insert_with(|| Cloned {
                networks: event.address.into_iter().chain(event.from).collect(),
                at: rfc3339(event.at),
                times: 0,
                detail: event.detail.clone(),
            });
            seen.times += 1;
        }
        clones
    }

    /// Returns what needs a person now: first what concerns all, then the newest of each kind. `faults` are
    /// those of the present, `silent` is what was counted last.
    pub fn lines(&self, faults: Vec<Line>, silent: &Silent, now: Timestamp) -> Vec<Line> {
        let at = rfc3339(now);
        let mut lines = faults;
        let kept = self.lock();
        let of = |action| recent(&kept, action, now);
        let log = |action: Action| format!("audit?action={}", action.name());

        let epochs = grouped(of(Action::StoreFenced), |event| Some(event.at));
        lines.extend(listed("epoch", epochs, log(Action::StoreFenced), |_| {
            let text = "A new epoch began: codes that were unused and activations that were open are void.";
            (text.to_owned(), log(Action::StoreFenced))
        }));
        if silent.is_fleet {
            lines.push(Line {
                kind: "silent",
                at,
                text: format!(
                    "{} of {} servers have not checked in for more than {}.",
                    silent.servers,
                    silent.of,
                    span(silent.after_seconds)
                ),
                see: "servers?show=silent&sort=seen".into(),
            });
        }
        let clones = grouped(of(Action::CloneSeen), |event| event.server);
        lines.extend(listed("clone", clones, "servers?show=cloned".into(), |group| {
            let id = group.newest.server.map(|id| id.to_string()).unwrap_or_default();
            let from = network(group.newest.from);
            let text = format!(
                "Two machines may be checking in as server {id}: one from {from} came {}{}.",
                group.newest.detail,
                again(group.times)
            );
            (text, format!("servers?show=cloned&text={id}"))
        }));
        let codes = grouped(of(Action::SpentCodeTried), |event| event.code);
        lines.extend(listed("spent_code", codes, log(Action::SpentCodeTried), |group| {
            let text = format!(
                "Another machine tried a code that was {}; it asked from {}{}.",
                group.newest.detail,
                network(group.newest.from),
                again(group.times)
            );
            let code = group.newest.code.map(|code| code.0.to_hex()).unwrap_or_default();
            (text, format!("codes/{code}"))
        }));
        let tokens = grouped(of(Action::TokensRefused), |event| Some(event.from));
        lines.extend(listed("wrong_tokens", tokens, log(Action::TokensRefused), |group| {
            let from = match group.newest.from {
                Some(network) => network.to_string(),
                None => "many networks".to_owned(),
            };
            let text = format!("{} wrong tokens came from {from}.", group.sum);
            (text, log(Action::TokensRefused))
        }));
        lines
    }
}

/// Whether an event needs a person. A few wrong tokens do not.
fn needs_person(event: &Event) -> bool {
    let is_burst = event.action != Action::TokensRefused || wrong_tokens::is_burst(event);
    ACTIONS.contains(&event.action) && is_burst
}

/// Whether an event is of the last day. A wrong clock may have dated it in the future.
const fn is_recent(event: &Event, now: Timestamp) -> bool {
    now.since(event.at) < DAY
}

fn recent(
    kept: &HashMap<Action, VecDeque<Event>>,
    action: Action,
    now: Timestamp,
) -> impl Iterator<Item = &Event> {
    kept.get(&action).into_iter().flatten().filter(move |event| is_recent(event, now))
}

/// Groups events, the newest first, by what they are about.
fn grouped<'a, K: Hash + Eq>(
    events: impl Iterator<Item = &'a Event>,
    about: impl Fn(&Event) -> Option<K>,
) -> Vec<Group<'a>> {
    let (mut groups, mut places): (Vec<Group<'a>>, HashMap<K, usize>) = Default::default();
    for event in events {
        let Some(about) = about(event) else { continue };
        let place = *places.entry(about).or_insert(groups.len());
        if place == groups.len() {
            groups.push(Group { newest: event, times: 0, sum: 0 });
        }
        if let Some(group) = groups.get_mut(place) {
            group.times += 1;
            group.sum = group.sum.saturating_add(wrong_tokens::count_of(event));
        }
    }
    groups
}

/// Returns a line for each of the first groups, and one that sums up the others.
fn listed<'a>(
    kind: &'static str,
    groups: Vec<Group<'a>>,
    see_all: String,
    line: impl Fn(&Group<'a>) -> (String, String),
) -> Vec<Line> {
    let shown = groups.iter().take(LINES).map(|group| {
        let (text, see) = line(group);
        Line { kind, at: rfc3339(group.newest.at), text, see }
    });
    let mut lines: Vec<Line> = shown.collect();
    if let Some(next) = groups.get(LINES) {
        let (left, at) = (groups.len() - LINES, rfc3339(next.newest.at));
        lines.push(Line { kind, at, text: format!("And {left} more like this."), see: see_all });
    }
    lines
}

fn network(from: Option<IpAddr>) -> String {
    from.map_or_else(|| "an unknown network".to_owned(), |from| from.to_string())
}

fn again(times: usize) -> String {
    if times > 1 { format!(" ({times} times in the last day)") } else { String::new() }
}

/// Writes a span of seconds in the largest unit that is exact.
fn span(seconds: u64) -> String {
    let (count, unit) = match seconds {
        _ if seconds.is_multiple_of(DAY) => (seconds / DAY, "day"),
        _ if seconds.is_multiple_of(3600) => (seconds / 3600, "hour"),
        _ if seconds.is_multiple_of(60) => (seconds / 60, "minute"),
        _ => (seconds, "second"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use iptunnel_domain::audit::{Actor, ChainHash, Head};
    use iptunnel_domain::code::CodeHash;
    use iptunnel_domain::lookup::KeyedHash;
    use iptunnel_storage::{Attempts, Entry};
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const NOW: Timestamp = Timestamp(1_900_000_000);

    fn event(action: Action, ago: u64) -> Event {
        let from = Some(IpAddr::from([8, 8, 8, 8]));
        Event::new(action, Actor::Unidentified, Timestamp(NOW.0 - ago), from)
    }

    fn texts(attention: &Attention) -> Vec<String> {
        let lines = attention.lines(Vec::new(), &Silent::default(), NOW);
        lines.into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn nothing_needs_a_person_at_first_nor_after_a_day() {
        let attention = Attention::default();
        assert!(texts(&attention).is_empty());
        attention.hear(&event(Action::StoreFenced, DAY));
        attention.hear(&event(Action::LoggedIn, 1));
        assert!(texts(&attention).is_empty());
        attention.hear(&event(Action::StoreFenced, DAY - 1));
        assert_eq!(texts(&attention).len(), 1);
    }

    #[test]
    fn ten_lines_of_a_kind_are_shown_and_the_others_summed_up() {
        let attention = Attention::default();
        for number in 0..25u8 {
            let code = Some(CodeHash(KeyedHash([number % 15; 16])));
            let detail = "used by ns1".to_owned();
            attention.hear(&Event { code, detail, ..event(Action::SpentCodeTried, 60) });
        }
        let texts = texts(&attention);
        assert_eq!(texts.len(), 11);
        assert!(texts[0].ends_with("asked from 8.8.8.8 (2 times in the last day)."), "{texts:?}");
        assert_eq!(texts[10], "And 5 more like this.");
    }

    #[test]
    fn only_bursts_of_wrong_tokens_are_told_with_their_sum() {
        let attention = Attention::default();
        for count in [1, 10, 11, 500] {
            let detail = format!("{count} in a minute");
            attention.hear(&Event { detail, ..event(Action::TokensRefused, 60) });
        }
        assert_eq!(texts(&attention), ["511 wrong tokens came from 8.8.8.8."]);
    }

    #[test]
    fn a_silent_fleet_and_the_faults_of_the_store_come_first() {
        let attention = Attention::default();
        attention.hear(&Event { server: Some(ServerId(1)), ..event(Action::CloneSeen, 1) });
        let silent = Silent { servers: 3, of: 4, after_seconds: 10_800, is_fleet: true };
        let (text, see) = ("Two primaries.".to_owned(), "audit".to_owned());
        let fault = Line { kind: "store", at: rfc3339(NOW), text, see };
        let lines = attention.lines(vec![fault], &silent, NOW);
        let kinds: Vec<_> = lines.iter().map(|line| line.kind).collect();
        assert_eq!(kinds, ["store", "silent", "clone"]);
        assert_eq!(lines[1].text, "3 of 4 servers have not checked in for more than 3 hours.");
    }

    /// A log of so many entries that counts what is read. Each entry is made from its number.
    struct Log(usize, fn(usize) -> Event, AtomicUsize);

    impl AuditLog for Log {
        fn audit_head(&self) -> Result<Head, ReadError> {
            Ok(Head { entries: self.0 as u64, hash: ChainHash([0; 32]) })
        }
        fn audit_from(&self, _: u64, _: &mut dyn FnMut(Entry) -> bool) -> Result<(), ReadError> {
            Ok(())
        }
        fn audit_before(
            &self,
            before: u64,
            each: &mut dyn FnMut(Entry) -> bool,
        ) -> Result<(), ReadError> {
            for number in (1..before.min(self.0 as u64 + 1)).rev() {
                self.2.fetch_add(1, Ordering::Relaxed);
                let head = Head { entries: number, hash: ChainHash([0; 32]) };
                if !each(Entry { event: (self.1)(number as usize), head }) {
                    break;
                }
            }
            Ok(())
        }
        fn audit_number_at(&self, _: Timestamp) -> Result<u64, ReadError> {
            Ok(1)
        }
        fn attempts(&self, _: CodeHash) -> Result<Attempts, ReadError> {
            Ok(Attempts::default())
        }
    }

    /// Returns what is shown after a start on this log, and how many entries were read.
    fn started(length: usize, entry: fn(usize) -> Event) -> (Vec<String>, usize) {
        let (attention, log) = (Attention::default(), Log(length, entry, AtomicUsize::new(0)));
        attention.read(&log, NOW, || true).unwrap();
        (texts(&attention), log.2.into_inner())
    }

    #[test]
    fn a_start_finds_what_needs_a_person_behind_an_import_and_behind_wrong_dates() {
        let length = 400_000;
        let (texts, read) = started(length, |number| match number {
            1 => event(Action::StoreFenced, DAY - 1),
            2..300_000 => event(Action::ServerImported, 60),
            300_000..399_999 => event(Action::CodeIssued, 30 * DAY),
            399_999 => event(Action::CodeIssued, 10),
            _ => event(Action::CodeIssued, NOW.0),
        });
        assert_eq!((texts.len(), read), (1, length));
    }

    #[test]
    fn a_start_reads_no_more_of_the_log_than_the_last_day_nor_after_the_server_has_stopped() {
        let length = OLDER + 5 * STEP;
        let (texts, read) = started(length, |number| match number {
            number if number > OLDER + 5 * STEP - 3 => event(Action::StoreFenced, 60),
            _ => event(Action::StoreFenced, 2 * DAY),
        });
        assert_eq!(texts.len(), 1);
        assert!(read <= OLDER + 2 * STEP, "{read}");
        let log = Log(length, |_| event(Action::CodeIssued, 1), AtomicUsize::new(0));
        let times = Cell::new(0);
        let goes_on = || times.replace(times.get() + 1) < 2;
        Attention::default().read(&log, NOW, goes_on).unwrap();
        assert_eq!(log.2.into_inner(), 2 * STEP);
    }

    #[test]
    fn a_flood_of_events_fills_no_memory() {
        let attention = Attention::default();
        for _ in 0..3 * KEPT {
            attention.hear(&event(Action::CloneSeen, 1));
        }
        assert_eq!(attention.lock()[&Action::CloneSeen].len(), KEPT);
    }
}
