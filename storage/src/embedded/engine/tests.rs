//! Tests of the promises of a store, on a disk that works and on disks that fail.

use super::samples::{
    self, consumed, consumption, contents, everything, everything_before_format_3,
    everything_before_format_5, one,
};
use super::*;
use crate::embedded::simulated::{BadDisk, End, Fault};
use crate::{ATTEMPTS, CheckIn, CounterRow, FileDisk, Setting, Write};
use iptunnel_domain::audit::Event;
use iptunnel_domain::limit::Policy;
use std::path::Path;
use std::sync::atomic::AtomicUsize;

fn on_file(path: &Path) -> RedbStore {
    let path = path.to_owned();
    RedbStore::open(Box::new(move || Ok(Box::new(FileDisk::open(&path)?)))).unwrap()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn committed_records_are_there_after_reopening() {
    let folder = folder();
    let path = folder.path().join("s.redb");
    let (code, activation) = (samples::code(1, 1, 0), samples::activation(1, 1, 0));
    let server = samples::server(0, 1);
    let seen = CheckIn { server: server.number, at: Timestamp(99) };
    {
        let store = on_file(&path);
        let changes = [
            one(Write::Code(code.clone())),
            one(Write::Activation(activation.clone())),
            Change(vec![Write::Server(server.clone()), Write::CheckIns(vec![seen])]),
        ];
        assert_eq!(store.commit(&changes).unwrap(), [const { Verdict::Written }; 3]);
    }
    let store = on_file(&path);
    assert_eq!(store.code(code.hash).unwrap().unwrap(), code);
    assert_eq!(store.activation(activation.at.id).unwrap().unwrap(), activation);
    let found = store.server(server.number).unwrap().unwrap();
    assert_eq!(found, Server { last_checkin: Timestamp(99), ..server });
    let frontier = store.frontier().unwrap();
    assert_eq!((frontier.code.0, frontier.activation.0), (1, 1));
    assert_eq!(frontier.server, Some(ServerNumber(0)));
}

#[test]
fn a_change_is_written_whole_if_all_its_guards_hold_and_else_not_at_all() {
    let folder = folder();
    let store = on_file(&folder.path().join("s.redb"));
    store.commit(&[one(Write::Code(samples::code(1, 1, 0)))]).unwrap();
    let verdicts = store
        .commit(&[
            // The code holds version 1, so a second version 1 is late, and its activation with it.
            Change(vec![
                Write::Activation(samples::activation(1, 1, 0)),
                Write::Code(samples::code(1, 1, 1)),
            ]),
            one(Write::Code(samples::code(1, 2, 1))),
            // Decided on the version that the change before it wrote.
            one(Write::Code(samples::code(1, 3, 2))),
            one(Write::Code(samples::code(1, 3, 0))),
            one(Write::Code(samples::code(9, 2, 0))),
        ])
        .unwrap();
    use Verdict::{Conflict, Written};
    assert_eq!(verdicts, [Conflict, Written, Written, Conflict, Conflict]);
    assert_eq!(store.activation(samples::at(1).id).unwrap(), None);
    let code = store.code(samples::code(1, 1, 0).hash).unwrap().unwrap();
    assert_eq!((code.version, code.activations), (3, 2));
}

#[test]
fn old_rows_are_found_through_runs_and_deleted_ones_are_not() {
    let folder = folder();
    let path = folder.path().join("s.redb");
    let count = 70_000;
    {
        let store = on_file(&path);
        let numbers: Vec<u64> = (1..=count).collect();
        for numbers in numbers.chunks(5000) {
            let changes: Vec<Change> =
                numbers.iter().map(|n| one(Write::Code(samples::code(*n, 1, 0)))).collect();
            store.commit(&changes).unwrap();
        }
    }
    let store = on_file(&path);
    let found = |n: u64| store.code(samples::code(n, 1, 0).hash).unwrap().map(|c| c.number.0);
    for number in (1..=count).step_by(997).chain([count]) {
        assert_eq!(found(number), Some(number));
    }
    assert_eq!(found(count + 1), None);

    let old: Vec<Change> = store
        .oldest_codes(None, 40_000)
        .unwrap()
        .iter()
        .map(|code| one(Write::ForgetCode(code.number, code.version)))
        .collect();
    assert!(store.commit(&old).unwrap().iter().all(|v| *v == Verdict::Written));
    assert_eq!((found(1), found(40_000), found(40_001)), (None, None, Some(40_001)));
    let again = store.commit(&[one(Write::ForgetCode(CodeNumber(1), 1))]).unwrap();
    assert_eq!(again, [Verdict::Conflict]);
}

/// New codes, each a change of its own.
fn issue(numbers: std::ops::RangeInclusive<u64>) -> Vec<Change> {
    numbers.map(|n| one(Write::Code(samples::code(n, 1, 0)))).collect()
}

#[test]
fn a_reader_finds_the_rows_of_its_snapshot_whatever_is_written_meanwhile() {
    let store = BadDisk::new().store();
    let codes = 32_768;
    store.commit(&issue(1..=codes)).unwrap();
    let read = store.begin_read().unwrap();
    // As many commits as it takes until the index changes its layout.
    for number in codes + 1..codes + 9 {
        store.commit(&issue(number..=number)).unwrap();
        for number in [1, codes / 2, codes] {
            let key = samples::code(number, 1, 0).hash.0.as_u128();
            assert_eq!(index::CODES.find(&read, key).unwrap(), Some(number));
        }
    }
}

#[test]
fn records_are_found_by_their_hash_however_often_the_file_was_reopened() {
    for changes in 0..40 {
        let disk = BadDisk::new();
        let mut store = disk.store();
        store.commit(&issue(1..=3)).unwrap();
        // The disk fails from some change on, so that the store cannot be reopened either.
        disk.dies_after(changes);
        let returned = store.commit(&issue(4..=6)).is_ok();
        disk.dies_after(u64::MAX);
        if store.has_failed_a_sync() {
            drop(store);
            store = disk.store();
        }
        assert!((0..5).any(|_| store.commit(&[]).is_ok()), "it does not come back");
        let listed = store.oldest_codes(None, 9).unwrap();
        assert!(listed.len() == 6 || !returned && listed.len() == 3);
        for code in listed {
            let found = store.code(code.hash).unwrap();
            assert_eq!(found, Some(code), "after {changes} changes");
        }
    }
}

#[test]
fn numbers_are_not_assigned_twice_although_every_row_is_deleted() {
    let folder = folder();
    let path = folder.path().join("s.redb");
    {
        let store = on_file(&path);
        let changes: Vec<Change> =
            (1..=33_000).map(|n| one(Write::Code(samples::code(n, 1, 0)))).collect();
        store.commit(&changes).unwrap();
        store.commit(&[one(Write::Code(samples::code(33_001, 1, 0)))]).unwrap();
        let oldest = store.oldest_codes(None, usize::MAX).unwrap();
        assert_eq!(oldest.len(), 33_001);
        let forget = |code: &Code| one(Write::ForgetCode(code.number, code.version));
        store.commit(&oldest.iter().map(forget).collect::<Vec<_>>()).unwrap();
    }
    let store = on_file(&path);
    assert_eq!(store.frontier().unwrap().code.0, 33_001);
    assert!(store.code(samples::code(33_001, 1, 0).hash).unwrap().is_none());
}

#[test]
fn the_number_of_a_forgotten_server_is_not_assigned_again() {
    let folder = folder();
    let path = folder.path().join("s.redb");
    {
        let store = on_file(&path);
        store.commit(&[one(Write::Server(samples::server(0, 1)))]).unwrap();
        let forget = |version| one(Write::ForgetServer(ServerNumber(0), version));
        let verdicts = store.commit(&[forget(2), forget(1), forget(1)]).unwrap();
        assert_eq!(verdicts, [Verdict::Conflict, Verdict::Written, Verdict::Conflict]);
        assert_eq!(store.frontier().unwrap().server, Some(ServerNumber(0)));
        // Also if it comes and goes in one commit.
        store
            .commit(&[
                one(Write::Server(samples::server(5, 1))),
                one(Write::ForgetServer(ServerNumber(5), 1)),
            ])
            .unwrap();
    }
    let store = on_file(&path);
    assert_eq!(store.frontier().unwrap().server, Some(ServerNumber(5)));
    assert_eq!(store.servers_before(None, 9).unwrap(), []);
}

#[test]
fn an_access_token_is_changed_on_its_last_version_alone_and_keeps_its_last_use() {
    let folder = folder();
    let path = folder.path().join("s.redb");
    let (token, used) = (samples::access_token(2, 1), Timestamp(900));
    let renamed = token.rename("other".into()).unwrap();
    {
        let store = on_file(&path);
        let uses = |at| one(Write::TokenUses(vec![(token.number, at)]));
        let verdicts = store
            .commit(&[
                one(Write::AccessToken(token.clone())),
                one(Write::AccessToken(token.clone())),
                uses(used),
                one(Write::AccessToken(renamed.clone())),
                one(Write::AccessToken(renamed.clone())),
            ])
            .unwrap();
        use Verdict::{Conflict, Written};
        assert_eq!(verdicts, [Written, Conflict, Written, Written, Conflict]);
    }
    let found = on_file(&path).access_tokens().unwrap();
    assert_eq!(found, [AccessToken { last_used: used, ..renamed }]);
}

#[test]
fn servers_are_listed_newest_first_page_by_page() {
    let folder = folder();
    let store = on_file(&folder.path().join("s.redb"));
    let changes: Vec<Change> =
        (0..2500).map(|n| one(Write::Server(samples::server(n, 1)))).collect();
    store.commit(&changes).unwrap();
    // The one that is written last counts: the earlier one may have a time from a wrong future
    // clock.
    for at in [8_000, 9_000_000, 9_000].map(Timestamp) {
        let seen = CheckIn { server: ServerNumber(1500), at };
        store.commit(&[one(Write::CheckIns(vec![seen]))]).unwrap();
    }
    let mut before = None;
    let mut numbers = Vec::new();
    loop {
        let page = store.servers_before(before, 999).unwrap();
        let Some(last) = page.last() else { break };
        before = Some(last.number);
        numbers.extend(page.iter().map(|s| s.number.0));
        for server in page {
            let expected = if server.number.0 == 1500 { 9_000 } else { u64::from(server.number.0) };
            assert_eq!(server.last_checkin.0, expected);
        }
    }
    assert_eq!(numbers, (0..2500).rev().collect::<Vec<_>>());
    let wanted = [7, 2500, 1500, 0, u32::MAX].map(ServerNumber);
    let found = store.servers_numbered(&wanted).unwrap().into_iter();
    let found: Vec<_> =
        found.map(|server| server.map(|server| (server.number.0, server.last_checkin.0))).collect();
    assert_eq!(found, [Some((7, 7)), None, Some((1500, 9_000)), Some((0, 0)), None]);
    assert_eq!(store.server(ServerNumber(1500)).unwrap().unwrap().last_checkin.0, 9_000);
}

#[test]
fn counters_keep_their_places_and_free_ones_stay_free() {
    let folder = folder();
    let store = on_file(&folder.path().join("s.redb"));
    let counter = |slot: u32| Counter {
        key: u64::from(slot) * 7,
        policy: Policy::PrecheckPerIpDay,
        used: slot + 1,
        window_end: Timestamp(86_400),
    };
    let rows = (0..500).map(|slot| CounterRow { slot, counter: Some(counter(slot)) }).collect();
    store.commit(&[one(Write::Counters(rows))]).unwrap();
    let free = CounterRow { slot: 250, counter: None };
    store.commit(&[one(Write::Counters(vec![free]))]).unwrap();
    let mut found = Vec::new();
    store.each_counter(&mut |slot, counter| found.push((slot, counter))).unwrap();
    let expected: Vec<_> = (0..500).filter(|s| *s != 250).map(|s| (s, counter(s))).collect();
    assert_eq!(found, expected);
}

#[test]
fn after_no_write_must_a_start_read_the_whole_file() {
    type Written = (&'static str, fn(&RedbStore));
    fn code(number: u64) -> Change {
        one(Write::Code(samples::code(number, 1, 0)))
    }
    let writes: [Written; 3] = [
        ("a commit", |store| {
            store.commit(&[code(2)]).unwrap();
        }),
        ("a hash", |store| assert!(store.agree("secrets", KeyedHash([1; 16])).unwrap())),
        ("a webhook's state", |store| {
            let state = ("office".to_owned(), b"state".to_vec());
            assert!(store.webhooks().unwrap().keep(&[state]).unwrap());
        }),
    ];
    for (what, write) in writes {
        let disk = BadDisk::new();
        let store = RedbStore::open(disk.opener()).unwrap();
        store.commit(&[code(1)]).unwrap();
        write(&store);
        disk.end(End::Killed);
        drop(store);
        let is_read = Arc::new(AtomicBool::new(false));
        let noted = Arc::clone(&is_read);
        Database::builder()
            .set_repair_callback(move |_| noted.store(true, Ordering::SeqCst))
            .create_with_backend(Watched::new(disk.opened(), Arc::default()))
            .unwrap();
        assert!(!is_read.load(Ordering::SeqCst), "after {what}");
    }
}

#[test]
fn a_store_of_a_newer_format_is_refused_with_its_format() {
    let folder = folder();
    let path = folder.path().join("s.redb");
    drop(on_file(&path));
    {
        let database = Database::create(&path).unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(META).unwrap().insert(FORMAT_KEY, u64::from(FORMAT_VERSION) + 1).unwrap();
        write.commit().unwrap();
    }
    let opened = RedbStore::open(Box::new(move || Ok(Box::new(FileDisk::open(&path)?))));
    let error = opened.err().unwrap();
    assert!(matches!(error, OpenError::NewerFormat { found: 6, known: 5 }));
    assert!(error.to_string().contains("format 6"));
}

#[test]
fn one_process_at_a_time_holds_a_store() {
    let folder = folder();
    let path = folder.path().join("s.redb");
    let _held = on_file(&path);
    let second = RedbStore::open(Box::new(move || Ok(Box::new(FileDisk::open(&path)?))));
    assert!(second.err().unwrap().to_string().contains("another process"));
}

#[test]
fn a_store_whose_header_was_lost_is_not_changed() {
    let folder = folder();
    let path = folder.path().join("s.redb");
    on_file(&path).commit(&everything()).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..4096].fill(0);
    std::fs::write(&path, &bytes).unwrap();
    let of_store = path.clone();
    let opened = RedbStore::open(Box::new(move || Ok(Box::new(FileDisk::open(&of_store)?))));
    assert!(matches!(opened.err().unwrap(), OpenError::Engine(_)));
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

impl BadDisk {
    fn store(&self) -> RedbStore {
        self.try_store().unwrap()
    }
    fn try_store(&self) -> Result<RedbStore, OpenError> {
        RedbStore::open(self.opener())
    }
}

#[test]
fn a_loss_of_power_keeps_every_acknowledged_commit() {
    let disk = BadDisk::new();
    let mut acknowledged = 0;
    for round in 1..=5 {
        let store = disk.store();
        for _ in 0..20 {
            acknowledged += 1;
            store.commit(&[one(Write::Code(samples::code(acknowledged, 1, 0)))]).unwrap();
        }
        // The process has lost its disk, so nothing that it does at its end has an effect.
        disk.lose_power();
        std::mem::forget(store);
        let reopened = disk.store();
        for number in 1..=acknowledged {
            let hash = samples::code(number, 1, 0).hash;
            assert!(reopened.code(hash).unwrap().is_some(), "round {round}, code {number}");
        }
    }
}

/// Ends the process after each change to the disk that a commit makes and then, for each, after
/// each change that the recovery makes.
fn ended_in_a_commit_and_again_in_the_recovery(end: End) {
    const CODES: u64 = 200;
    let (mut tried, mut cut_short) = (0, 0);
    let issued = BadDisk::new();
    let codes: Vec<Change> =
        (1..=CODES).map(|n| one(Write::Code(samples::code(n, 1, 0)))).collect();
    std::mem::forget({
        let store = issued.store();
        store.commit(&codes).unwrap();
        store
    });
    for in_commit in 0.. {
        let disk = issued.copy();
        let store = disk.store();
        disk.dies_after(in_commit);
        let outcome = store.commit(&consumption(CODES));
        std::mem::forget(store);
        let commit_was_cut_short = disk.revive(end);
        for in_recovery in 0.. {
            let disk = disk.copy();
            disk.dies_after(in_recovery);
            let opened = disk.try_store();
            let finished = opened.is_ok();
            std::mem::forget(opened);
            cut_short += u64::from(disk.revive(end));
            let at = format!("{end:?} after {in_commit} changes, then after {in_recovery}");
            let there = consumed(&disk.store(), CODES, &at);
            assert!(there == 0 || there == CODES as usize / 2, "{there} are there, {at}");
            assert!(outcome.is_err() || there > 0, "the commit had returned, {at}");
            tried += 1;
            if finished {
                break;
            }
        }
        if !commit_was_cut_short {
            break;
        }
    }
    assert!(tried > 20 && cut_short > 20, "{tried} {cut_short}");
}

#[test]
fn a_process_killed_in_a_commit_and_again_in_the_recovery_loses_nothing_and_halves_nothing() {
    ended_in_a_commit_and_again_in_the_recovery(End::Killed);
}

#[test]
fn a_loss_of_power_in_a_commit_and_again_in_the_recovery_loses_nothing_and_halves_nothing() {
    ended_in_a_commit_and_again_in_the_recovery(End::PowerLost);
    ended_in_a_commit_and_again_in_the_recovery(End::PowerLostWhileWriting);
}

#[test]
fn a_disk_that_fails_a_write_refuses_the_commit_and_works_again_afterwards() {
    for fault in [Fault::FailsWrites, Fault::Full] {
        let disk = BadDisk::new();
        let store = disk.store();
        store.commit(&[one(Write::Code(samples::code(1, 1, 0)))]).unwrap();
        disk.fault(fault);
        let refused = store.commit(&[one(Write::Code(samples::code(2, 1, 0)))]);
        // If even the file's header cannot be written, the store cannot be reopened either.
        match fault {
            Fault::Full => assert!(matches!(refused, Err(CommitError::Refused(_))), "{refused:?}"),
            _ => assert!(refused.is_err()),
        }
        disk.fault(Fault::None);
        let mut tries = AtomicUsize::new(0);
        while store.commit(&[]).is_err() {
            *tries.get_mut() += 1;
            assert!(*tries.get_mut() < 5, "{fault:?}: the store does not come back");
        }
        assert!(store.code(samples::code(1, 1, 0).hash).unwrap().is_some());
        assert!(store.code(samples::code(2, 1, 0).hash).unwrap().is_none());
        store.commit(&[one(Write::Code(samples::code(2, 1, 0)))]).unwrap();
        assert!(store.code(samples::code(2, 1, 0).hash).unwrap().is_some());
    }
}

#[test]
fn after_a_failed_sync_the_outcome_of_the_commit_is_unknown() {
    let disk = BadDisk::new();
    let store = disk.store();
    disk.fault(Fault::FailsSyncs);
    let outcome = store.commit(&[one(Write::Code(samples::code(1, 1, 0)))]);
    assert!(matches!(outcome, Err(CommitError::Unknown(_))), "{outcome:?}");
    // The content that can be read now may differ from what the disk holds.
    disk.fault(Fault::None);
    for _ in 0..3 {
        let outcome = store.commit(&[]);
        assert!(matches!(outcome, Err(CommitError::Unknown(_))), "{outcome:?}");
        assert!(store.frontier().is_err());
    }
}

#[test]
fn a_file_of_each_format_is_read_whole() {
    for format in 1..=FORMAT_VERSION {
        let fixture = fixture(&format!("format-{format}.redb"));
        if format == FORMAT_VERSION && std::env::var_os("WRITE_FIXTURE").is_some() {
            on_file(&fixture).commit(&everything()).unwrap();
        }
        let folder = folder();
        // Opening a store writes to it: the fixture stays as it was shipped.
        let (old, new) = (folder.path().join("old.redb"), folder.path().join("new.redb"));
        std::fs::copy(&fixture, &old).unwrap();
        let fresh = on_file(&new);
        let since = match format {
            ..3 => everything_before_format_3(),
            3..5 => everything_before_format_5(),
            _ => everything(),
        };
        fresh.commit(&since).unwrap();
        let read = contents(&on_file(&old));
        assert_eq!(read, contents(&fresh), "format {format}");
        assert!(read.contains("s1.example.com") && read.contains("5000"));
    }
}

#[test]
fn every_start_on_a_store_must_have_what_the_first_had_and_a_store_of_before_takes_it_over() {
    let folder = folder();
    let old = folder.path().join("old.redb");
    std::fs::copy(fixture("format-3.redb"), &old).unwrap();
    for path in [old, folder.path().join("new.redb")] {
        {
            let store = on_file(&path);
            assert_eq!(store.agreed("key").unwrap(), None);
            assert!(store.agree("key", KeyedHash([1; 16])).unwrap());
        }
        let store = on_file(&path);
        assert!(store.agree("key", KeyedHash([1; 16])).unwrap());
        assert!(!store.agree("key", KeyedHash([2; 16])).unwrap());
        assert_eq!(store.agreed("key").unwrap(), Some(KeyedHash([1; 16])));
        // It is in the way of no commit.
        store.commit(&[]).unwrap();
    }
}

#[test]
fn a_record_of_the_journal_is_read_as_it_was_shipped() {
    if std::env::var_os("WRITE_FIXTURE").is_some() {
        let bytes = record::encode_changes(&everything()).unwrap();
        std::fs::write(fixture("journal-record-3.bin"), bytes).unwrap();
    }
    let shipped = [everything_before_format_3(), everything_before_format_5(), everything()];
    for (number, changes) in (1..).zip(&shipped) {
        let bytes = std::fs::read(fixture(&format!("journal-record-{number}.bin"))).unwrap();
        assert_eq!(&record::decode_changes(&bytes).unwrap(), changes);
        let is_newest = number == shipped.len();
        assert_eq!(record::encode_changes(changes).unwrap() == bytes, is_newest);
    }
}

/// Gives a store the indexes of data format 3: whole runs, and nothing of the rows after them.
fn make_format_3(path: &Path, rows: u64) {
    let database = Database::create(path).unwrap();
    let write = database.begin_write().unwrap();
    for (name, runs) in [("code_index", "code_runs"), ("activation_index", "activation_runs")] {
        write.delete_table(TableDefinition::<u32, (u64, u64, Option<u32>)>::new(name)).unwrap();
        write.delete_table(TableDefinition::<(u32, u128), &[u8]>::new(runs)).unwrap();
    }
    let mut spans =
        write.open_table(TableDefinition::<(&str, u32), (u64, u64)>::new("run_spans")).unwrap();
    let mut pages =
        write.open_table(TableDefinition::<(u32, u128), &[u8]>::new("code_runs")).unwrap();
    let numbers: Vec<u64> = (1..=rows).collect();
    for (run, numbers) in (0u32..).zip(numbers.chunks_exact(32_768)) {
        let key = |number: u64| samples::code(number, 1, 0).hash.0.as_u128();
        let mut entries: Vec<_> = numbers.iter().map(|number| (key(*number), *number)).collect();
        entries.sort_unstable();
        for page in entries.chunks(160) {
            let bytes = page
                .iter()
                .flat_map(|(key, number)| [&key.to_be_bytes()[..], &number.to_be_bytes()].concat());
            let bytes: Vec<u8> = bytes.collect();
            pages.insert((run, page[0].0), bytes.as_slice()).unwrap();
        }
        let span = (numbers[0], numbers[numbers.len() - 1]);
        spans.insert(("code_runs", run), span).unwrap();
    }
    drop((spans, pages));
    write.open_table(TableDefinition::<(u32, u128), &[u8]>::new("activation_runs")).unwrap();
    write.open_table(META).unwrap().insert(FORMAT_KEY, 3).unwrap();
    write.commit().unwrap();
}

#[test]
fn all_rows_of_a_store_of_format_3_are_found_inside_and_outside_of_runs() {
    let folder = folder();
    let path = folder.path().join("s.redb");
    let rows = 2 * 32_768 + 5000;
    {
        let store = on_file(&path);
        store.commit(&issue(1..=rows)).unwrap();
        store.commit(&[one(Write::Activation(samples::activation(1, 1, 0)))]).unwrap();
    }
    make_format_3(&path, rows);
    let mut last = rows;
    for _ in 0..3 {
        let store = on_file(&path);
        for number in (1..=last).step_by(331).chain([last]) {
            let code = samples::code(number, 1, 0);
            assert_eq!(store.code(code.hash).unwrap().as_ref(), Some(&code));
        }
        assert!(store.activation(samples::at(1).id).unwrap().is_some());
        store.commit(&issue(last + 1..=last + 5000)).unwrap();
        last += 5000;
    }
}

/// Returns the entries of the log from one on, and before one.
fn log_of(store: &dyn Store, first: u64, before: u64) -> (Vec<u64>, Vec<u64>) {
    let (mut forth, mut back) = (Vec::new(), Vec::new());
    let each = &mut |entry: Entry| {
        assert_eq!(entry.event, samples::event(entry.head.entries));
        forth.push(entry.head.entries);
        true
    };
    store.audit_from(first, each).unwrap();
    let each = &mut |entry: Entry| {
        back.push(entry.head.entries);
        true
    };
    store.audit_before(before, each).unwrap();
    (forth, back)
}

#[test]
fn the_log_is_read_from_anywhere_in_both_directions_and_its_chain_is_whole() {
    let folder = folder();
    let store = on_file(&folder.path().join("s.redb"));
    assert_eq!(store.audit_head().unwrap(), Head::default());
    // Commits of different sizes: pages of different sizes.
    let mut next = 1;
    for size in [1, 3, 1, 7, 2, 40] {
        let numbers = next..next + size;
        let changes: Vec<Change> =
            numbers.map(|n| one(Write::Audit(Arc::new(samples::event(n))))).collect();
        store.commit(&changes).unwrap();
        next += size;
    }
    for first in 1..next {
        let (forth, back) = log_of(&store, first, first);
        assert_eq!(forth, (first..next).collect::<Vec<_>>());
        assert_eq!(back, (1..first).rev().collect::<Vec<_>>());
    }
    let mut chain = Head::default();
    let each = &mut |entry: Entry| {
        let mut bytes = Vec::new();
        entry.event.encode(&mut bytes);
        chain = chain.after(&bytes);
        assert_eq!(chain, entry.head);
        true
    };
    store.audit_from(1, each).unwrap();
    assert_eq!(store.audit_head().unwrap(), chain);
    assert_eq!(chain.entries, next - 1);
}

#[test]
fn a_search_by_time_misses_no_entry_of_the_log() {
    let folder = folder();
    let store = on_file(&folder.path().join("s.redb"));
    assert_eq!(store.audit_number_at(Timestamp(5)).unwrap(), 1);
    let at = |number: u64| Timestamp(number * 100);
    for page in 0..60 {
        let numbers = page * 5 + 1..page * 5 + 6;
        let change = |n| one(Write::Audit(Arc::new(Event { at: at(n), ..samples::event(n) })));
        store.commit(&numbers.map(change).collect::<Vec<_>>()).unwrap();
    }
    for number in 1..=300 {
        let entered = store.audit_number_at(at(number)).unwrap();
        assert!(entered <= number && number < entered + 11, "{entered} for {number}");
    }
    assert!(store.audit_number_at(Timestamp(u64::MAX)).unwrap() > 290);
}

#[test]
fn an_event_of_a_change_that_conflicts_is_not_in_the_log() {
    let folder = folder();
    let store = on_file(&folder.path().join("s.redb"));
    let change = |n| {
        Change(vec![Write::Code(samples::code(1, 1, 0)), Write::Audit(Arc::new(samples::event(n)))])
    };
    use Verdict::{Conflict, Written};
    assert_eq!(store.commit(&[change(1), change(9)]).unwrap(), [Written, Conflict]);
    assert_eq!(log_of(&store, 1, 1), (vec![1], vec![]));
}

#[test]
fn attempts_on_a_code_are_kept_then_counted_and_go_with_the_code() {
    let folder = folder();
    let store = on_file(&folder.path().join("s.redb"));
    let code = samples::code(1, 1, 0);
    store.commit(&[one(Write::Code(code.clone()))]).unwrap();
    let attempt = || one(Write::Attempt(samples::event(1)));
    for _ in 0..7 {
        store.commit(&(0..30).map(|_| attempt()).collect::<Vec<_>>()).unwrap();
    }
    let attempts = store.attempts(code.hash).unwrap();
    assert_eq!((attempts.kept.len(), attempts.more), (ATTEMPTS, 110));
    assert!(attempts.kept.iter().all(|event| *event == samples::event(1)));
    store.commit(&[one(Write::ForgetCode(code.number, 1))]).unwrap();
    assert_eq!(store.attempts(code.hash).unwrap(), Attempts::default());
}

#[test]
fn attempts_on_unknown_codes_are_not_kept() {
    let store = BadDisk::new().store();
    let attempt = |n| one(Write::Attempt(samples::event(n)));
    let code = |n| one(Write::Code(samples::code(n, 1, 0)));
    let kept = |n: u64| store.attempts(samples::code(n, 1, 0).hash).unwrap().kept.len();
    let forget = one(Write::ForgetCode(CodeNumber(1), 1));
    // In the commit that adds the code or later; not before, and not after its deletion.
    store.commit(&[attempt(1), code(1), attempt(1), attempt(2)]).unwrap();
    store.commit(&[attempt(1), attempt(2), code(2)]).unwrap();
    assert_eq!((kept(1), kept(2), kept(3)), (2, 0, 0));
    store.commit(&[attempt(2), attempt(3), forget, attempt(1)]).unwrap();
    assert_eq!((kept(1), kept(2), kept(3)), (0, 1, 0));
    assert_eq!(store.attempts_kept(), 1);
}

impl RedbStore {
    /// Returns on how many codes attempts are kept.
    fn attempts_kept(&self) -> u64 {
        audit::count_codes_with_attempts(&self.begin_read().unwrap())
    }
}

#[test]
fn old_attempts_on_unknown_codes_are_deleted_some_with_each_commit() {
    let folder = folder();
    let path = folder.path().join("s.redb");
    on_file(&path).commit(&issue(1..=20)).unwrap();
    {
        let database = Database::create(&path).unwrap();
        let write = database.begin_write().unwrap();
        for number in 1..=300 {
            audit::keep_attempt_unasked(&write, &samples::event(number));
        }
        write.open_table(META).unwrap().insert(FORMAT_KEY, 3).unwrap();
        write.commit().unwrap();
    }
    let mut before = 300;
    let mut commits = 0;
    while before > 20 {
        // The progress of the search is kept over a restart.
        let store = on_file(&path);
        store.commit(&[]).unwrap();
        let now = store.attempts_kept();
        assert!(now <= before && before - now < 40, "{before} {now}");
        (before, commits) = (now, commits + 1);
        assert!(commits < 50, "{now} are left");
    }
    let store = on_file(&path);
    (0..9).for_each(|_| assert!(store.commit(&[]).is_ok()));
    assert!((1..=20).all(|n| store.attempts(samples::code(n, 1, 0).hash).unwrap().kept.len() == 1));
}

#[test]
fn settings_are_stored_replaced_and_removed() {
    let folder = folder();
    let path = folder.path().join("s.redb");
    let set = |key: &str, value: Option<&str>| {
        one(Write::Setting(Setting { key: key.into(), value: value.map(Into::into) }))
    };
    {
        let store = on_file(&path);
        store.commit(&[set("a.b", Some("1")), set("c.d", Some("2"))]).unwrap();
        store.commit(&[set("a.b", Some("3")), set("c.d", None), set("e.f", None)]).unwrap();
    }
    assert_eq!(on_file(&path).settings().unwrap(), [("a.b".to_owned(), "3".to_owned())]);
}

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}
