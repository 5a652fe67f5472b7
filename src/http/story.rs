//! The stage of a code, and the hint that people know it by.

use iptunnel_domain::Timestamp;
use iptunnel_domain::activation::{Activation, Stage};
use iptunnel_domain::audit::Action;
use iptunnel_domain::code::{Code, CodeHash, CodeState};
use iptunnel_storage::{AuditLog, OUT_OF_ORDER, ReadError};
use std::collections::{HashMap, HashSet};

/// The stage of a code at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeStage {
    /// Valid and never used.
    Issued,
    /// Valid again: its activation was released.
    Restored,
    /// Expired before it was used.
    Expired,
    /// Used by an activation at this stage. `None`: the activation is deleted or was not read.
    Used(Option<Stage>),
}

impl CodeStage {
    /// Returns the stage of `code`. `by` is the activation that uses it, if any.
    pub fn of(code: &Code, by: Option<&Activation>, now: Timestamp) -> Self {
        match code.state {
            CodeState::Consumed(_) => Self::Used(by.map(|by| by.stage(now))),
            CodeState::Issued if code.is_expired(now) => Self::Expired,
            CodeState::Issued if code.activations > 0 => Self::Restored,
            CodeState::Issued => Self::Issued,
        }
    }

    /// Returns the name that operators see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Issued | Self::Restored => "issued",
            Self::Expired => "expired",
            Self::Used(None) => "used",
            Self::Used(Some(stage)) => stage.name(),
        }
    }
}

/// The most log entries that a search for hints reads: about 100 ms.
const HINT_AMONG: usize = 100_000;

/// How far an entry usually is from its time, in seconds.
const USUAL: u64 = 2;
/// How much later than the issue its entry may be written, in seconds.
const FARTHEST: u64 = 600;

/// Returns the hint of a code from the audit entry of its issue. Empty where the search finds
/// nothing within a limited number of entries.
///
/// # Errors
/// If the log cannot be read.
pub fn hint_of(store: &dyn AuditLog, code: &Code) -> Result<String, ReadError> {
    Ok(hints_of(store, std::slice::from_ref(code))?.remove(&code.hash).unwrap_or_default())
}

/// Returns the hints of codes, as [`hint_of`] does. It reads no entry of the log twice: codes that are shown
/// together were often issued in the same second, among thousands of others.
///
/// # Errors
/// If the log cannot be read.
pub fn hints_of(
    store: &dyn AuditLog,
    codes: &[Code],
) -> Result<HashMap<CodeHash, String>, ReadError> {
    let wanted: HashSet<CodeHash> = codes.iter().map(|code| code.hash).collect();
    let mut in_order: Vec<&Code> = codes.iter().collect();
    in_order.sort_by_key(|code| code.issued_at);
    let (mut hints, mut left) = (HashMap::new(), HINT_AMONG);
    // Nearly every entry stands where its time belongs. What is not there is sought wherever it may be.
    for (before, behind) in [(USUAL, USUAL), (OUT_OF_ORDER, FARTHEST)] {
        let mut next = 0;
        for code in &in_order {
            if left == 0 || hints.contains_key(&code.hash) {
                continue;
            }
            let over = code.issued_at.plus(behind);
            let from = code.issued_at.plus(OUT_OF_ORDER - before);
            store.audit_from(store.audit_number_at(from)?.max(next), &mut |entry| {
                next = entry.head.entries + 1;
                left -= 1;
                let event = entry.event;
                let is_over = event.at > over;
                let issued = event.code.filter(|_| event.action == Action::CodeIssued);
                if let Some(hash) = issued.filter(|hash| wanted.contains(hash)) {
                    hints.insert(hash, event.subject);
                }
                !is_over && left > 0 && !hints.contains_key(&code.hash)
            })?;
        }
    }
    Ok(hints)
}

#[cfg(test)]
mod tests {
    use super::*;
    use iptunnel_domain::audit::{Actor, Event, Head};
    use iptunnel_domain::code::{CodeNumber, ProductLetters};
    use iptunnel_domain::lookup::KeyedHash;
    use iptunnel_storage::{Attempts, Entry};
    use std::sync::atomic::{AtomicUsize, Ordering};

    const START: u64 = 1_900_000_000;

    fn code(number: u64) -> Code {
        // One has a time that is half a minute later than those beside it.
        let late = if number == 40_000 { 30 } else { 0 };
        let issued_at = Timestamp(START + number / 1000 + late);
        Code {
            number: CodeNumber(number),
            hash: CodeHash(KeyedHash(u128::from(number).to_be_bytes())),
            product: ProductLetters::parse("SD").unwrap(),
            session: KeyedHash([1; 16]),
            issued_at,
            expires_at: issued_at.plus(300),
            activations: 0,
            state: CodeState::Issued,
            version: 1,
        }
    }

    /// A log of issues, a thousand in a second, that counts what is read. Entry `n` issues code `n`.
    struct Log(AtomicUsize);

    impl AuditLog for Log {
        fn audit_head(&self) -> Result<Head, ReadError> {
            Ok(Head::default())
        }
        fn audit_from(
            &self,
            from: u64,
            each: &mut dyn FnMut(Entry) -> bool,
        ) -> Result<(), ReadError> {
            for number in from.max(1)..100_000 {
                self.0.fetch_add(1, Ordering::Relaxed);
                let (code, subject) = (code(number), format!("code {number}"));
                let issued = Event::new(Action::CodeIssued, Actor::Browser, code.issued_at, None);
                let event = Event { code: Some(code.hash), subject, ..issued };
                let head = Head { entries: number, ..Head::default() };
                if !each(Entry { head, event }) {
                    break;
                }
            }
            Ok(())
        }
        fn audit_before(&self, _: u64, _: &mut dyn FnMut(Entry) -> bool) -> Result<(), ReadError> {
            Ok(())
        }
        fn audit_number_at(&self, at: Timestamp) -> Result<u64, ReadError> {
            Ok(at.0.saturating_sub(START + OUT_OF_ORDER) * 1000)
        }
        fn attempts(&self, _: CodeHash) -> Result<Attempts, ReadError> {
            Ok(Attempts::default())
        }
    }

    #[test]
    fn the_hints_of_a_page_read_no_entry_of_the_log_twice() {
        let log = Log(AtomicUsize::new(0));
        // The newest first, as pages have them.
        let codes: Vec<Code> = (95_900..95_950).rev().chain([90_500]).map(code).collect();
        let hints = hints_of(&log, &codes).unwrap();
        assert!(codes.iter().all(|code| hints[&code.hash] == format!("code {}", code.number.0)));
        let read = log.0.load(Ordering::Relaxed);
        // From two seconds before each second, to the code.
        assert!(read <= 2_501 + 2_950, "{read}");
        assert_eq!(hint_of(&log, &code(40_000)).unwrap(), "code 40000");
        assert_eq!(hint_of(&log, &code(4_321)).unwrap(), "code 4321");
        assert_eq!(hint_of(&log, &code(200_000)).unwrap(), "");
    }
}
