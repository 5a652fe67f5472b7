//! Tests of the promises of a store with a journal, whenever its process ends and however its disks
//! fail.

use super::*;
use crate::embedded::engine::samples::{
    self, consumed, consumption, contents, everything, everything_before_format_3, one,
};
use crate::embedded::simulated::{BadDisk, End, Fault};
use crate::{CheckIn, FORMAT_VERSION, FileDisk, Write};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Instant;

const ENDS: [End; 3] = [End::Killed, End::PowerLost, End::PowerLostWhileWriting];

/// The two disks of a process.
struct Pair {
    rows: BadDisk,
    journal: BadDisk,
}

impl Pair {
    fn new() -> Self {
        let rows = BadDisk::new();
        Self { journal: rows.sibling(), rows }
    }
    fn copy(&self) -> Self {
        let rows = self.rows.copy();
        Self { journal: self.journal.copy_beside(&rows), rows }
    }
    fn try_store(&self) -> Result<EmbeddedStore, OpenError> {
        EmbeddedStore::open(Disks { rows: self.rows.opener(), journal: self.journal.opener() })
    }
    fn store(&self) -> EmbeddedStore {
        self.try_store().unwrap()
    }
    /// Opens the store as [`Self::store`] does, without a thread.
    fn stepped(&self) -> EmbeddedStore {
        let disks = Disks { rows: self.rows.opener(), journal: self.journal.opener() };
        EmbeddedStore::open_stepped(disks).unwrap()
    }
    /// Ends the process after so many changes to either disk.
    fn dies_after(&self, changes: u64) {
        self.rows.dies_after(changes);
    }
    /// Returns whether the process had ended, and starts another one.
    fn revive(&self, end: End) -> bool {
        self.journal.end(end);
        self.rows.revive(end)
    }
    /// Ends the process at any moment, and starts another.
    fn restart(&self, store: EmbeddedStore, end: End) -> EmbeddedStore {
        self.revive(end);
        // Its disks are gone, so nothing that it does at its end has an effect.
        drop(store);
        self.store()
    }
}

fn issue(numbers: RangeInclusive<u64>) -> Vec<Change> {
    numbers.map(|n| one(Write::Code(samples::code(n, 1, 0)))).collect()
}

fn has_code(store: &EmbeddedStore, number: u64) -> bool {
    store.code(samples::code(number, 1, 0).hash).unwrap().is_some()
}

/// Repeats a check until it is true.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::yield_now();
    }
}

/// Commits that issue codes, consume them, change them again and delete them, and the expected
/// records after them.
#[derive(Default)]
struct History {
    commits: usize,
    issued: u64,
    steps: usize,
    fresh: VecDeque<u64>,
    consumed: VecDeque<u64>,
    changed: VecDeque<u64>,
    codes: BTreeMap<u64, Option<Code>>,
    activations: BTreeMap<u64, Option<Activation>>,
}

impl History {
    /// The next commit, of 1 to 50 changes.
    fn next(&mut self) -> Vec<Change> {
        self.commits += 1;
        (0..1 + self.commits * 13 % 50).map(|_| self.change()).collect()
    }

    fn change(&mut self) -> Change {
        self.steps += 1;
        let queue = match self.steps % 7 {
            2 | 4 => &mut self.fresh,
            5 => &mut self.consumed,
            6 => &mut self.changed,
            _ => return self.issue(),
        };
        let Some(number) = queue.pop_front() else { return self.issue() };
        match self.steps % 7 {
            2 | 4 => {
                self.consumed.push_back(number);
                self.write(number, samples::code(number, 2, 1), samples::activation(number, 1, 0))
            }
            5 => {
                self.changed.push_back(number);
                self.write(number, samples::code(number, 3, 2), samples::activation(number, 2, 1))
            }
            _ => {
                self.codes.insert(number, None);
                self.activations.insert(number, None);
                Change(vec![
                    Write::ForgetCode(samples::code(number, 3, 0).number, 3),
                    Write::ForgetActivation(samples::at(number).number, 2),
                ])
            }
        }
    }

    fn issue(&mut self) -> Change {
        self.issued += 1;
        let code = samples::code(self.issued, 1, 0);
        self.fresh.push_back(self.issued);
        self.codes.insert(self.issued, Some(code.clone()));
        one(Write::Code(code))
    }

    fn write(&mut self, number: u64, code: Code, activation: Activation) -> Change {
        self.codes.insert(number, Some(code.clone()));
        self.activations.insert(number, Some(activation.clone()));
        Change(vec![Write::Activation(activation), Write::Code(code)])
    }

    fn commit_to(&mut self, store: &EmbeddedStore) {
        let changes = self.next();
        let verdicts = store.commit(&changes).unwrap();
        assert_eq!(verdicts, vec![Verdict::Written; changes.len()]);
    }

    /// Deleted rows may be found until the deletion is checkpointed.
    fn check(&self, store: &EmbeddedStore, at: &str) {
        for (number, expected) in &self.codes {
            let found = store.code(samples::code(*number, 1, 0).hash).unwrap();
            assert!(expected.is_none() || found == *expected, "code {number}, {at}: {found:?}");
        }
        for (number, expected) in &self.activations {
            let found = store.activation(samples::at(*number).id).unwrap();
            assert!(expected.is_none() || found == *expected, "activation {number}, {at}");
        }
    }

    /// Checks as [`Self::check`] does, in a store that has just been opened.
    fn check_all(&self, store: &EmbeddedStore, at: &str) {
        self.check(store, at);
        assert_eq!(store.frontier().unwrap().code.0, self.issued, "{at}");
        let rows: Vec<Code> = store.oldest_codes(None, usize::MAX).unwrap();
        let expected: Vec<Code> = self.codes.values().flatten().cloned().collect();
        assert!(rows == expected, "not each code exactly once, {at}");
        let rows: Vec<Activation> = store.oldest_activations(None, usize::MAX).unwrap();
        let expected: Vec<Activation> = self.activations.values().flatten().cloned().collect();
        assert!(rows == expected, "not each activation exactly once, {at}");
    }
}

#[test]
fn committed_records_are_read_back_at_once_and_after_reopening() {
    let pair = Pair::new();
    let (code, activation) = (samples::code(1, 1, 0), samples::activation(1, 1, 0));
    let servers = [samples::server(0, 1), samples::server(1, 1)];
    let seen = CheckIn { server: servers[1].number, at: Timestamp(99) };
    let check = |store: &EmbeddedStore| {
        assert_eq!(store.code(code.hash).unwrap().unwrap(), code);
        assert_eq!(store.activation(activation.at.id).unwrap().unwrap(), activation);
        let newest = Server { last_checkin: Timestamp(99), ..servers[1].clone() };
        assert_eq!(store.server(servers[1].number).unwrap().unwrap(), newest);
        assert_eq!(store.servers_before(None, 9).unwrap(), [newest, servers[0].clone()]);
        let frontier = store.frontier().unwrap();
        assert_eq!((frontier.code.0, frontier.activation.0), (1, 1));
        assert_eq!(frontier.server, Some(servers[1].number));
    };
    {
        let store = pair.store();
        let changes = [
            one(Write::Code(code.clone())),
            one(Write::Activation(activation.clone())),
            Change(servers.iter().cloned().map(Write::Server).collect()),
            one(Write::CheckIns(vec![seen])),
        ];
        assert_eq!(store.commit(&changes).unwrap(), [const { Verdict::Written }; 4]);
        check(&store);
    }
    let store = pair.store();
    check(&store);
    drop(store);
    for end in ENDS {
        check(&pair.restart(pair.store(), end));
    }
}

#[test]
fn one_of_everything_is_read_the_same_before_and_after_the_process_ends() {
    for end in ENDS {
        let pair = Pair::new();
        let store = pair.store();
        store.commit(&everything()).unwrap();
        let at_once = pair.copy();
        let read = contents(&store);
        assert!(read.contains("s1.example.com") && read.contains("5000"));
        at_once.revive(end);
        assert_eq!(contents(&at_once.store()), read, "{end:?}");
        assert_eq!(contents(&pair.restart(store, end)), read, "{end:?}");
    }
}

#[test]
fn a_change_is_written_whole_if_all_its_guards_hold_over_pending_changes() {
    let pair = Pair::new();
    let store = pair.store();
    store.commit(&issue(1..=2)).unwrap();
    let changes = [
        Change(vec![
            Write::Activation(samples::activation(1, 1, 0)),
            Write::Code(samples::code(1, 1, 1)),
        ]),
        one(Write::Code(samples::code(1, 2, 1))),
        one(Write::Code(samples::code(1, 3, 2))),
        one(Write::Code(samples::code(1, 3, 0))),
        one(Write::Code(samples::code(9, 2, 0))),
        one(Write::ForgetCode(samples::code(2, 1, 0).number, 2)),
        one(Write::ForgetCode(samples::code(2, 1, 0).number, 1)),
        one(Write::ForgetCode(samples::code(2, 1, 0).number, 1)),
    ];
    use Verdict::{Conflict, Written};
    let expected = [Conflict, Written, Written, Conflict, Conflict, Conflict, Written, Conflict];
    assert_eq!(store.commit(&changes).unwrap(), expected);
    let check = |store: &EmbeddedStore| {
        assert_eq!(store.activation(samples::at(1).id).unwrap(), None);
        let code = store.code(samples::code(1, 1, 0).hash).unwrap().unwrap();
        assert_eq!((code.version, code.activations), (3, 2));
        let again = store.commit(&changes[6..]).unwrap();
        assert_eq!(again, [Conflict, Conflict]);
    };
    check(&store);
    let store = pair.restart(store, End::PowerLost);
    check(&store);
    assert!(!has_code(&store, 2));
}

#[test]
fn an_acknowledged_commit_survives_whenever_the_process_ends() {
    for end in ENDS {
        let pair = Pair::new();
        let mut store = pair.store();
        let mut history = History::default();
        for round in 0..18 {
            // From a single change to more than one checkpoint writes.
            for _ in 0..=round % 12 {
                history.commit_to(&store);
            }
            let at = format!("{end:?} in round {round}");
            history.check(&store, &at);
            store = pair.restart(store, end);
            history.check_all(&store, &at);
        }
        store.close();
        drop(store);
        history.check_all(&pair.store(), "closed");
    }
}

#[test]
fn gathered_changes_are_checkpointed_without_a_request() {
    let pair = Pair::new();
    let store = pair.store();
    store.commit(&issue(1..=1)).unwrap();
    until("a single change is checkpointed", || store.oldest_codes(None, 9).unwrap().len() == 1);
    until("it is no longer pending", || {
        store.shared.lock().pending.version(Row::Code(1)).is_none()
    });
    assert!(has_code(&store, 1));
}

#[test]
fn a_stepped_store_checkpoints_on_request_when_a_caller_waits_and_at_its_end() {
    let pair = Pair::new();
    let store = pair.stepped();
    let pending = |number| store.shared.lock().pending.version(Row::Code(number)).is_some();
    assert!(!store.checkpoint());
    store.commit(&issue(1..=300)).unwrap();
    assert!(pending(1) && has_code(&store, 1));
    assert!(store.checkpoint() && !pending(1) && !store.checkpoint());
    store.commit(&issue(301..=301)).unwrap();
    assert_eq!(store.frontier().unwrap().code.0, 301);
    assert!(!pending(301));
    store.commit(&issue(302..=302)).unwrap();
    store.close();
    assert_eq!(pair.rows_alone(), 302);
}

#[test]
fn a_stepped_store_whose_engine_refuses_reports_it_and_checkpoints_the_same_later() {
    let pair = Pair::new();
    let store = pair.stepped();
    store.commit(&issue(1..=1)).unwrap();
    pair.rows.fault(Fault::FailsWrites);
    assert!(!store.checkpoint() && store.frontier().is_err());
    assert!(matches!(store.commit(&issue(2..=2)), Err(CommitError::Refused(_))));
    pair.rows.fault(Fault::None);
    until("the store works again", || store.commit(&[]).is_ok());
    store.commit(&issue(2..=2)).unwrap();
    assert_eq!(store.oldest_codes(None, 9).unwrap().len(), 2);
}

fn ended_in_a_checkpoint_and_again_in_the_recovery(end: End) {
    const CODES: u64 = 60;
    let (mut tried, mut cut_short) = (0, 0);
    let issued = Pair::new();
    {
        let store = issued.store();
        store.commit(&issue(1..=CODES)).unwrap();
    }
    for in_close in 0.. {
        let pair = issued.copy();
        let store = pair.store();
        for change in consumption(CODES).chunks(7) {
            store.commit(change).unwrap();
        }
        pair.dies_after(in_close);
        store.close();
        let close_was_cut_short = pair.revive(end);
        drop(store);
        // Every change of the recovery is reached, starting at a different one each time.
        for in_recovery in (in_close % 5..).step_by(5) {
            let pair = pair.copy();
            pair.dies_after(in_recovery);
            let opened = pair.try_store();
            let finished = opened.is_ok();
            cut_short += u64::from(pair.revive(end));
            drop(opened);
            let at = format!("{end:?} after {in_close} changes, then after {in_recovery}");
            let store = pair.store();
            assert_eq!(consumed(&store, CODES, &at), CODES as usize / 2, "{at}");
            assert_eq!(store.oldest_codes(None, usize::MAX).unwrap().len(), CODES as usize, "{at}");
            let activations = store.oldest_activations(None, usize::MAX).unwrap();
            assert_eq!(activations.len(), CODES as usize / 2, "{at}");
            tried += 1;
            if finished {
                break;
            }
        }
        if !close_was_cut_short {
            break;
        }
    }
    assert!(tried > 20 && cut_short > 20, "{tried} {cut_short}");
}

#[test]
fn a_process_killed_in_a_checkpoint_and_again_in_the_recovery_loses_nothing() {
    ended_in_a_checkpoint_and_again_in_the_recovery(End::Killed);
}

#[test]
fn power_lost_in_a_checkpoint_and_again_in_the_recovery_loses_nothing() {
    ended_in_a_checkpoint_and_again_in_the_recovery(End::PowerLost);
}

#[test]
fn power_lost_while_the_disks_write_and_again_in_the_recovery_loses_nothing() {
    ended_in_a_checkpoint_and_again_in_the_recovery(End::PowerLostWhileWriting);
}

#[test]
fn a_process_that_ends_between_or_within_commits_loses_no_acknowledged_one() {
    let made = Pair::new();
    drop(made.store());
    for end in ENDS {
        let mut whole = 0;
        for changes in 0..60 {
            let pair = made.copy();
            let store = pair.store();
            pair.dies_after(changes);
            let mut returned = 0;
            // Sizes of more than a block, with checkpoints in between.
            for commit in 0..20 {
                let numbers = commit * 30 + 1..=commit * 30 + 30;
                if store.commit(&issue(numbers)).is_err() {
                    break;
                }
                returned = (commit + 1) * 30;
            }
            whole += u64::from(returned == 600);
            let store = pair.restart(store, end);
            let found = store.oldest_codes(None, usize::MAX).unwrap();
            let numbers: Vec<u64> = found.iter().map(|code| code.number.0).collect();
            let expected = (1..=numbers.len() as u64).collect::<Vec<_>>();
            assert_eq!(numbers, expected, "{end:?} after {changes} changes");
            assert!(found.len() as u64 >= returned, "{end:?} after {changes}: {returned}");
            assert_eq!(found.len() % 30, 0, "half a commit, {end:?} after {changes}");
        }
        assert!(whole < 30, "{whole}");
    }
}

#[test]
fn the_segments_of_the_journal_are_used_again_and_nothing_is_lost() {
    let pair = Pair::new();
    let mut store = pair.store();
    let mut issued = 0;
    for (round, end) in ENDS.into_iter().enumerate() {
        // 2 MiB and a half of small commits, then as much of large ones.
        for (commits, size) in [(640, 1), (90, 150)] {
            for _ in 0..commits {
                store.commit(&issue(issued + 1..=issued + size)).unwrap();
                issued += size;
            }
            store = pair.restart(store, end);
            let found = store.oldest_codes(None, usize::MAX).unwrap();
            let numbers: Vec<u64> = found.iter().map(|code| code.number.0).collect();
            assert!(numbers == (1..=issued).collect::<Vec<_>>(), "round {round}, {end:?}");
        }
    }
    // All around the journal without a restart.
    for _ in 0..1300 {
        issued += 1;
        store.commit(&issue(issued..=issued)).unwrap();
    }
    let store = pair.restart(store, End::PowerLost);
    assert_eq!(store.oldest_codes(None, usize::MAX).unwrap().len() as u64, issued);
    assert!(issued > 40_000 && has_code(&store, 1) && has_code(&store, issued));
}

#[test]
fn a_commit_larger_than_a_segment_bypasses_the_journal_in_order() {
    for end in ENDS {
        let pair = Pair::new();
        let store = pair.store();
        let note = "n".repeat(3 << 20);
        let large = Server { note, ..samples::server(1, 2) };
        store.commit(&[one(Write::Server(samples::server(1, 1)))]).unwrap();
        store.commit(&issue(1..=1)).unwrap();
        // Over a pending version, and with a change that comes too late.
        let late = one(Write::Server(samples::server(1, 1)));
        let verdicts = store.commit(&[one(Write::Server(large.clone())), late]).unwrap();
        assert_eq!(verdicts, [Verdict::Written, Verdict::Conflict]);
        assert_eq!(store.server(large.number).unwrap().unwrap(), large);
        let store = pair.restart(store, end);
        assert_eq!(store.server(large.number).unwrap().unwrap(), large, "{end:?}");
        let third = samples::server(1, 3);
        store.commit(&[one(Write::Server(third.clone()))]).unwrap();
        store.commit(&issue(2..=2)).unwrap();
        let store = pair.restart(store, end);
        assert_eq!(store.server(third.number).unwrap().unwrap(), third, "{end:?}");
        assert!(has_code(&store, 1) && has_code(&store, 2));
    }
}

fn refusal(opened: Result<EmbeddedStore, OpenError>) -> String {
    opened.err().expect("the store is opened").to_string()
}

#[test]
fn a_journal_that_lacks_a_record_the_store_needs_is_refused() {
    let pair = Pair::new();
    pair.store().commit(&issue(1..=1)).unwrap();
    let restored = pair.rows.copy();
    // Each start resets the journal: only the last record is left.
    for number in 2..=4 {
        pair.store().commit(&issue(number..=number)).unwrap();
    }
    let mixed = Pair { journal: pair.journal.copy_beside(&restored), rows: restored };
    for _ in 0..2 {
        assert!(refusal(mixed.try_store()).contains("lacks record 2"));
    }
    assert_eq!(mixed.rows_alone(), 1);
    let store = pair.store();
    assert!((1..=4).all(|number| has_code(&store, number)));
}

/// Bytes of a small record on the journal's disk.
const BLOCK: u64 = 4096;

#[test]
fn a_record_torn_over_checkpointed_ones_loses_no_acknowledged_commit() {
    let pair = Pair::new();
    let store = pair.stepped();
    (1..=5).for_each(|number| drop(store.commit(&issue(number..=number)).unwrap()));
    assert!(store.checkpoint());
    pair.revive(End::Killed);
    drop(store);
    // The journal starts again, over the first of those records.
    let store = pair.stepped();
    pair.journal.fault(Fault::FailsSyncs);
    let torn = store.commit(&issue(6..=30));
    assert!(matches!(torn, Err(CommitError::Unknown(_))), "{torn:?}");
    let store = pair.restart(store, End::PowerLostWhileWriting);
    assert!((1..=5).all(|number| has_code(&store, number)));
    assert!(!has_code(&store, 6));
}

#[test]
fn damage_to_a_checkpointed_record_loses_none_after_it() {
    let pair = Pair::new();
    let store = pair.stepped();
    (1..=3).for_each(|number| drop(store.commit(&issue(number..=number)).unwrap()));
    assert!(store.checkpoint());
    (4..=5).for_each(|number| drop(store.commit(&issue(number..=number)).unwrap()));
    pair.revive(End::Killed);
    drop(store);
    pair.journal.opened().write(BLOCK, &[0xAA; 64]).unwrap();
    let store = pair.store();
    assert!((1..=5).all(|number| has_code(&store, number)));
}

#[test]
fn damage_to_a_record_that_the_engine_lacks_is_refused_if_others_follow_it() {
    for lost in [3, 4] {
        let pair = Pair::new();
        let store = pair.stepped();
        (1..=2).for_each(|number| drop(store.commit(&issue(number..=number)).unwrap()));
        assert!(store.checkpoint());
        (3..=5).for_each(|number| drop(store.commit(&issue(number..=number)).unwrap()));
        pair.revive(End::Killed);
        drop(store);
        pair.journal.opened().write((lost - 1) * BLOCK, &[0xAA; 64]).unwrap();
        let error = refusal(pair.try_store());
        assert!(error.contains(&format!("lacks record {lost}")), "{error}");
    }
}

#[test]
fn a_journal_that_does_not_follow_on_the_store_never_changes_it() {
    let pair = Pair::new();
    let store = pair.store();
    store.commit(&issue(1..=2)).unwrap();
    pair.revive(End::Killed);
    drop(store);
    // Rows of another store, which has codes of these numbers but no journal.
    let other = BadDisk::new();
    RedbStore::open(other.opener()).unwrap().commit(&issue(1..=1)).unwrap();
    let mixed = Pair { journal: pair.journal.copy_beside(&other), rows: other };
    for attempt in 0..3 {
        assert!(mixed.try_store().is_err(), "opened at attempt {attempt}");
        assert_eq!(mixed.rows_alone(), 1, "attempt {attempt}");
    }
}

impl Pair {
    /// Returns how many codes the engine has without the journal.
    fn rows_alone(&self) -> usize {
        RedbStore::open(self.rows.opener()).unwrap().oldest_codes(None, usize::MAX).unwrap().len()
    }
}

fn the_engine_refuses_and_works_again(fault: Fault) {
    let pair = Pair::new();
    let store = pair.store();
    store.commit(&issue(1..=1)).unwrap();
    until("the engine has the first code", || pair_has(&store, 1));
    pair.rows.fault(fault);
    let mut returned = 1;
    until("commits are refused", || match store.commit(&issue(returned + 1..=returned + 1)) {
        Ok(_) => {
            returned += 1;
            false
        }
        Err(CommitError::Refused(_)) => true,
        Err(error) => panic!("{fault:?}: {error}"),
    });
    assert!(returned > 1, "the journal answers until the engine is known to refuse");
    // Pending changes can be read meanwhile.
    assert!((2..=returned).all(|number| has_code(&store, number)));
    assert!(!has_code_pending(&store, returned + 1));
    pair.rows.fault(Fault::None);
    // A checkpoint may be running just now, and meet the fault once more.
    until("the store works again", || store.commit(&[]).is_ok());
    assert!((1..=returned).all(|number| has_code(&store, number)));
    assert!(!has_code(&store, returned + 1));
    store.commit(&issue(returned + 1..=returned + 1)).unwrap();
    let store = pair.restart(store, End::PowerLost);
    assert!((1..=returned + 1).all(|number| has_code(&store, number)));
    assert_eq!(store.oldest_codes(None, usize::MAX).unwrap().len() as u64, returned + 1);
}

fn pair_has(store: &EmbeddedStore, count: usize) -> bool {
    store.oldest_codes(None, usize::MAX).is_ok_and(|codes| codes.len() == count)
}

fn has_code_pending(store: &EmbeddedStore, number: u64) -> bool {
    store.shared.lock().pending.code(samples::code(number, 1, 0).hash).is_some()
}

#[test]
fn a_full_engine_refuses_commits_loses_none_and_works_again() {
    the_engine_refuses_and_works_again(Fault::Full);
}

#[test]
fn an_engine_that_fails_writes_refuses_commits_loses_none_and_works_again() {
    the_engine_refuses_and_works_again(Fault::FailsWrites);
}

#[test]
fn changes_that_the_engine_refused_until_the_end_are_there_after_a_restart() {
    for fault in [Fault::Full, Fault::FailsWrites, Fault::FailsSyncs] {
        let pair = Pair::new();
        let store = pair.store();
        pair.rows.fault(fault);
        let mut returned = 0;
        until("the outcome of a commit is unknown", || {
            let is_written = store.commit(&issue(returned + 1..=returned + 1)).is_ok();
            returned += u64::from(is_written);
            !is_written
        });
        store.close();
        let store = pair.restart(store, End::PowerLost);
        let found = store.oldest_codes(None, usize::MAX).unwrap();
        assert_eq!(found.len() as u64, returned, "{fault:?}");
    }
}

#[test]
fn after_a_failed_sync_of_the_journal_the_outcome_of_the_commit_is_unknown() {
    for end in ENDS {
        let pair = Pair::new();
        let store = pair.store();
        store.commit(&issue(1..=1)).unwrap();
        pair.journal.fault(Fault::FailsSyncs);
        let outcome = store.commit(&issue(2..=2));
        assert!(matches!(outcome, Err(CommitError::Unknown(_))), "{outcome:?}");
        let store = pair.restart(store, end);
        assert!(has_code(&store, 1));
        let is_there = has_code(&store, 2);
        let verdicts = store.commit(&issue(2..=2)).unwrap();
        assert_eq!(verdicts == [Verdict::Conflict], is_there, "{end:?}");
    }
}

#[test]
fn a_journal_that_fails_a_write_refuses_the_commit_and_works_again_afterwards() {
    for fault in [Fault::FailsWrites, Fault::Full] {
        let pair = Pair::new();
        let store = pair.store();
        store.commit(&issue(1..=1)).unwrap();
        pair.journal.fault(fault);
        let refused = store.commit(&issue(2..=3));
        assert!(matches!(refused, Err(CommitError::Refused(_))), "{refused:?}");
        assert!(!has_code(&store, 2) && has_code(&store, 1));
        pair.journal.fault(Fault::None);
        assert_eq!(store.commit(&[]).unwrap(), []);
        assert_eq!(store.commit(&issue(2..=2)).unwrap(), [Verdict::Written]);
        let store = pair.restart(store, End::PowerLost);
        assert!(has_code(&store, 1) && has_code(&store, 2) && !has_code(&store, 3));
    }
}

/// Changes to a few rows, most of them with guards that do not hold.
fn changes() -> impl Strategy<Value = Vec<Change>> {
    let write = (0..4u8, 1..4u64, 1..4u32).prop_map(|(kind, number, version)| match kind {
        0 | 1 => Write::Code(samples::code(number, version, kind)),
        2 => Write::Server(samples::server(number as u32, version)),
        _ => Write::ForgetCode(samples::code(number, 1, 0).number, version),
    });
    proptest::collection::vec(proptest::collection::vec(write, 1..3).prop_map(Change), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_journal_changes_no_verdict(commits in proptest::collection::vec(changes(), 1..8)) {
        let (pair, alone) = (Pair::new(), BadDisk::new());
        let (store, alone) = (pair.store(), RedbStore::open(alone.opener()).unwrap());
        for (n, commit) in commits.iter().enumerate() {
            prop_assert_eq!(store.commit(commit).unwrap(), alone.commit(commit).unwrap());
            if n % 3 == 2 {
                store.frontier().unwrap();
            }
        }
        let store = pair.restart(store, End::Killed);
        prop_assert_eq!(store.oldest_codes(None, 9).unwrap(), alone.oldest_codes(None, 9).unwrap());
        let servers = alone.servers_before(None, 9).unwrap();
        prop_assert_eq!(store.servers_before(None, 9).unwrap(), servers);
    }
}

#[test]
fn a_write_of_an_impossible_version_is_a_conflict() {
    let pair = Pair::new();
    let verdicts = pair.store().commit(&[one(Write::Code(samples::code(1, 0, 0)))]).unwrap();
    assert_eq!(verdicts, [Verdict::Conflict]);
}

#[test]
fn a_deleted_pending_row_is_not_found_after_the_checkpoint() {
    let pair = Pair::new();
    let store = pair.store();
    store.commit(&issue(1..=1)).unwrap();
    store.commit(&[one(Write::ForgetCode(samples::code(1, 1, 0).number, 1))]).unwrap();
    until("the code is deleted", || !has_code(&store, 1));
    assert!(!has_code(&pair.restart(store, End::Killed), 1));
}

#[test]
fn a_number_assigned_and_deleted_before_a_checkpoint_is_not_assigned_again() {
    let pair = Pair::new();
    let store = pair.store();
    store.commit(&issue(1..=1)).unwrap();
    store.commit(&[one(Write::ForgetCode(samples::code(1, 1, 0).number, 1))]).unwrap();
    assert_eq!(store.frontier().unwrap().code.0, 1);
}

#[test]
fn a_fatal_fault_is_reported_with_its_reason() {
    let pair = Pair::new();
    let store = pair.store();
    store.commit(&issue(1..=1)).unwrap();
    until("the engine has the first code", || pair_has(&store, 1));
    pair.rows.fault(Fault::FailsSyncs);
    let mut next = 2;
    let mut error = None;
    until("the outcome of a commit is unknown", || {
        error = store.commit(&issue(next..=next)).err();
        next += 1;
        // Commits are refused while the engine is examined: nothing was written then.
        matches!(error, Some(CommitError::Unknown(_)))
    });
    until("the thread has ended", || {
        store.thread.lock().unwrap().as_ref().is_some_and(|thread| thread.is_finished())
    });
    let error = store.commit(&issue(next..=next)).unwrap_err().to_string();
    assert!(error.contains("the disk fails syncs"), "{error}");
}

fn on_files(folder: &Path) -> EmbeddedStore {
    let open = |name: &str| -> OpenDisk {
        let path = folder.join(name);
        Box::new(move || Ok(Box::new(FileDisk::open(&path)?)))
    };
    EmbeddedStore::open(Disks { rows: open("s.redb"), journal: open("s.journal") }).unwrap()
}

fn format_of(rows: &Path) -> u64 {
    let database = redb::Database::create(rows).unwrap();
    let read = redb::ReadableDatabase::begin_read(&database).unwrap();
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    read.open_table(meta).unwrap().get("format").unwrap().unwrap().value()
}

#[test]
fn a_file_of_format_1_is_read_whole_and_is_then_of_the_present_format() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/format-1.redb");
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let rows = old.path().join("s.redb");
    std::fs::copy(&fixture, &rows).unwrap();
    assert_eq!(format_of(&rows), 1);
    let fresh = on_files(new.path());
    fresh.commit(&everything_before_format_3()).unwrap();
    assert_eq!(contents(&on_files(old.path())), contents(&fresh));
    assert_eq!(format_of(&rows), u64::from(FORMAT_VERSION));
    let store = on_files(old.path());
    assert_eq!(store.commit(&issue(4..=4)).unwrap(), [Verdict::Written]);
    assert!(has_code(&store, 4));
}

#[test]
fn a_segment_is_not_reused_before_it_is_checkpointed() {
    let pair = Pair::new();
    let store = pair.stepped();
    let large = |number| {
        let note = "n".repeat(1_200_000);
        [one(Write::Server(Server { note, ..samples::server(number, 1) }))]
    };
    (0..2).for_each(|number| assert!(store.commit(&large(number)).is_ok()));
    pair.rows.fault(Fault::Full);
    assert!(store.commit(&large(2)).is_err(), "it has overwritten the first");
    let store = pair.restart(store, End::Killed);
    assert_eq!(store.servers_before(None, 9).unwrap().len(), 2);
    store.commit(&large(2)).unwrap();
}

#[test]
fn a_closed_store_can_be_reopened_while_its_old_value_exists() {
    let folder = tempfile::tempdir().unwrap();
    let held = on_files(folder.path());
    held.commit(&issue(1..=1)).unwrap();
    held.close();
    let store = on_files(folder.path());
    assert!(has_code(&store, 1));
    assert!(matches!(held.commit(&issue(2..=2)), Err(CommitError::Refused(_))));
    assert!(held.audit_head().is_err());
    assert_eq!(store.commit(&issue(2..=2)).unwrap(), [Verdict::Written]);
}

#[test]
fn a_new_epoch_voids_exactly_what_could_be_spent_twice_however_much_it_is() {
    let pair = Pair::new();
    let store = pair.store();
    let spent = |n: u64| n.is_multiple_of(3);
    let change = |n: u64| {
        let code = Write::Code(samples::code(n, 1, u8::from(spent(n))));
        let held = Write::Activation(samples::activation(n, 1, u8::from(n.is_multiple_of(2))));
        if spent(n) { Change(vec![code, held]) } else { one(code) }
    };
    let all = 1..=1700;
    store.commit(&all.clone().map(change).collect::<Vec<_>>()).unwrap();
    let last = Watermark { epoch: 4, ..store.watermark().unwrap() };
    assert_eq!(store.begin_epoch(&last, "a test", Timestamp(1)).unwrap(), 5);
    assert_eq!(store.watermark().unwrap().epoch, 5);
    let store = pair.restart(store, End::PowerLost);
    for number in all {
        let code = store.code(samples::code(number, 1, 0).hash).unwrap().unwrap();
        assert_eq!(code.expires_at == code.issued_at, !spent(number), "{code:?}");
        if spent(number) {
            let held = store.activation(samples::at(number).id).unwrap().unwrap();
            let was_open = !number.is_multiple_of(2);
            assert_eq!(held.expires_at == held.opened_at, was_open, "{held:?}");
        }
    }
    let mut said = String::new();
    store
        .audit_before(u64::MAX, &mut |entry| {
            said = entry.event.subject;
            false
        })
        .unwrap();
    // 1134 of 1700 are no multiples of 3; of 566 that are, 283 are odd.
    assert_eq!(said, "1134 codes, 283 activations");
}

#[test]
fn every_older_copy_of_a_store_is_noticed_after_any_number_of_restores() {
    for end in ENDS {
        let pair = Pair::new();
        let mut store = pair.store();
        let mut copies = Vec::new();
        for number in 1..=30 {
            store.commit(&issue(number..=number)).unwrap();
            if number % 10 == 0 {
                store = pair.restart(store, end);
                copies.push(pair.copy());
            }
        }
        let mut mark = store.watermark().unwrap();
        // Each is newer than the one before it, and older than the first watermark.
        for copy in &copies[..2] {
            let store = copy.store();
            assert!(!store.contains(&mark).unwrap(), "{mark:?} {end:?}");
            store.begin_epoch(&mark, "a test", Timestamp(1)).unwrap();
            let next = store.watermark().unwrap();
            assert!(next.commits > mark.commits && next.epoch > mark.epoch);
            mark = next;
            let store = copy.restart(store, end);
            assert!(store.contains(&mark).unwrap());
            store.commit(&issue(31..=31)).unwrap();
            assert!(copy.restart(store, end).contains(&mark).unwrap());
        }
    }
}

#[test]
fn the_watermark_demands_a_commit_that_bypassed_the_journal() {
    let pair = Pair::new();
    let store = pair.store();
    store.commit(&issue(1..=1)).unwrap();
    let store = pair.restart(store, End::Killed);
    let earlier = pair.copy();
    let before = store.watermark().unwrap();
    let note = "n".repeat(3 << 20);
    store.commit(&[one(Write::Server(Server { note, ..samples::server(1, 1) }))]).unwrap();
    let mark = store.watermark().unwrap();
    assert_eq!(mark.commits, before.commits + 1);
    store.commit(&issue(2..=2)).unwrap();
    let store = pair.restart(store, End::PowerLost);
    assert!(store.contains(&mark).unwrap() && has_code(&store, 2));
    assert!(!earlier.store().contains(&mark).unwrap());
}

#[test]
fn a_caller_that_waits_for_the_engine_gets_an_error_when_the_store_closes() {
    let pair = Pair::new();
    let store = Arc::new(pair.store());
    // The thread has ended, and a commit that was under way is in the journal.
    store.shared.lock().stopping = true;
    store.shared.changed.notify_all();
    store.thread.lock().unwrap().take().unwrap().join().unwrap();
    let committed = store.commit(&issue(1..=1)).is_ok();
    let reader = Arc::clone(&store);
    let reader = std::thread::spawn(move || reader.frontier().is_err());
    until("the reader gets an error", || reader.is_finished());
    assert!(reader.join().unwrap());
    store.close();
    let reopened = pair.store();
    assert_eq!(has_code(&reopened, 1), committed);
}

#[test]
fn a_probe_that_cannot_open_the_engine_fails_and_can_be_repeated() {
    let pair = Pair::new();
    let store = pair.stepped();
    store.commit(&issue(1..=1)).unwrap();
    pair.rows.fault(Fault::Full);
    assert!(!store.checkpoint());
    // Now they cannot be opened either. An empty commit has no outcome that could be unknown.
    pair.rows.fault(Fault::FailsWrites);
    for _ in 0..3 {
        let probed = store.commit(&[]);
        assert!(matches!(probed, Err(CommitError::Refused(_))), "{probed:?}");
    }
    pair.rows.fault(Fault::None);
    until("the store works again", || store.commit(&[]).is_ok());
    assert_eq!(store.frontier().unwrap().code.0, 1);
}

#[test]
fn the_states_of_webhooks_survive_the_end_of_the_process_and_are_in_each_copy() {
    let pair = Pair::new();
    let mut store = pair.store();
    let state = |text: &str| vec![("office".to_owned(), text.as_bytes().to_vec())];
    assert_eq!(store.webhooks().unwrap().states().unwrap(), [], "older files have none");
    for (end, text) in ENDS.into_iter().zip(["first", "second", "third"]) {
        assert!(store.webhooks().unwrap().keep(&state(text)).unwrap());
        store = pair.restart(store, end);
        assert_eq!(store.webhooks().unwrap().states().unwrap(), state(text), "{end:?}");
    }
    let copies = [Pair::new(), Pair::new()];
    let pace: Pace = Arc::new(|| true);
    store.back_up((copies[0].rows.opener())().unwrap(), &pace).unwrap();
    crate::copy(&store, &copies[1].store()).unwrap();
    for copy in copies {
        let states = copy.store().webhooks().unwrap().states().unwrap();
        assert_eq!(states, state("third"));
    }
}
