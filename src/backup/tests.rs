//! Backups of small stores, and what is refused.

use super::error::BackupError;
use super::restore::{Order, Restored, restore};
use super::*;
use crate::age::{Opener, Recipient};
use crate::config::{Config, Sources};
use crate::http::respond::rfc3339;
use crate::private_file::{self, Beside};
use crate::secrets::lookup_key;
use crate::signed_head::{Verdict, Verifier, file_of, read_file};
use crate::store::agreement::agree;
use crate::store::files::{files, open};
use crate::store::first_start::make_secrets;
use crate::store::watermark;
use iptunnel_domain::Timestamp;
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_domain::code::{Code, CodeHash, CodeNumber, CodeState, ProductLetters};
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_storage::{Change, Store, Write};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

const NOW: Timestamp = Timestamp(1_900_000_000);

/// The place of a server.
struct Place {
    folder: TempDir,
    config: Config,
}

/// Made by `age-keygen`, for these tests alone.
const KEY: &str = "AGE-SECRET-KEY-1NCZ2PXYR7X5PEJ96JY3PZP99C34LS28990D2NFPZ9T5JLSG9ASAQHRYF0G";
const ADDRESS: &str = "age1c7fskew0h8hw5sl3dqmrwled3qp08dse6mzdj2j5m0tflvnfd45shpy5yf";

/// A file of webhooks. A backup does not look into it.
const OFFICE: &[u8] = b"[office]\n";

fn recipient() -> Recipient {
    Recipient::address(ADDRESS).unwrap()
}

fn code(number: u64) -> Code {
    Code {
        number: CodeNumber(number),
        hash: CodeHash(KeyedHash(u128::from(number).to_be_bytes())),
        product: ProductLetters::parse("SD").unwrap(),
        session: KeyedHash([1; 16]),
        issued_at: NOW,
        expires_at: NOW.plus(300),
        activations: 0,
        state: CodeState::Issued,
        version: 1,
    }
}

impl Place {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let names = [
            ("storage.path", "iptunnel.redb"),
            ("auth.signing_key_file", "signing.keys"),
            ("auth.lookup_key_file", "lookup.key"),
            ("auth.master_token_file", "master.token"),
            ("backup.folder", "backups"),
            ("webhooks.file", "webhooks.toml"),
        ];
        let flags = names
            .map(|(key, name)| (key.to_owned(), folder.path().join(name).display().to_string()));
        let config = Config::load(&Sources { flags: flags.to_vec(), ..Sources::default() });
        Self { folder, config: config.unwrap() }
    }

    /// The place of a server with an unspent code 1.
    fn with_store() -> Self {
        let place = Self::new();
        make_secrets(&place.config, NOW).unwrap();
        private_file::create(&place.config.webhooks.file, OFFICE).unwrap();
        let store = place.open();
        let lookup = lookup_key(&place.config.auth.lookup_key_file).unwrap();
        agree(store.as_ref(), &lookup, Path::new("")).unwrap();
        issue(store.as_ref(), 1);
        watermark::keep_now(store.as_ref(), &place.config.storage.path);
        store.close();
        place
    }

    fn open(&self) -> Arc<dyn Store> {
        open(&self.config, files(&self.config.storage.path)).unwrap()
    }

    fn back_up(&self, to: &Path, keys: Option<&Recipient>) -> Result<Manifest, BackupError> {
        let store = self.open();
        let lookup = lookup_key(&self.config.auth.lookup_key_file).unwrap();
        let order = make::Order {
            config: &self.config,
            lookup: &lookup,
            folder: to,
            keys,
            now: NOW,
            pace: pace::alone(),
        };
        let made = make::make(&order, store.as_ref());
        store.close();
        made
    }

    fn restore(&self, from: &Path) -> Result<Restored, BackupError> {
        let opener = Opener::identities(KEY);
        let opener = opener.as_ref();
        let (config, signer, now) = (&self.config, None, NOW.plus(60));
        restore(&Order { config, folder: from, opener, signer, now })
    }

    /// Returns why a backup is refused, and checks that nothing was restored.
    fn refused(&self, from: &Path) -> String {
        let error = self.restore(from).unwrap_err().to_string();
        assert!(!self.config.storage.path.exists(), "{error}");
        assert!(!Beside::Draft.of(&self.config.storage.path).exists(), "{error}");
        error
    }

    fn has_valid(&self, number: u64) -> bool {
        let store = self.open();
        let found = store.code(code(number).hash).unwrap();
        store.close();
        found.is_some_and(|code| code.expires_at > code.issued_at)
    }
}

fn issue(store: &dyn Store, number: u64) {
    let event = Event::new(Action::CodeIssued, Actor::Browser, NOW, None);
    let change = Change(vec![Write::Code(code(number)), Write::Audit(Arc::new(event))]);
    store.commit(&[change]).unwrap();
}

/// A backup with the secrets, and the place that it is of.
fn backed_up() -> (Place, std::path::PathBuf) {
    let place = Place::with_store();
    let backup = place.folder.path().join("backup");
    place.back_up(&backup, Some(&recipient())).unwrap();
    (place, backup)
}

#[test]
fn a_backup_is_restored_in_an_empty_place_with_its_secrets_and_nothing_unspent_is_valid() {
    let (before, backup) = backed_up();
    assert!(before.has_valid(1));
    let place = Place::new();
    let restored = place.restore(&backup).unwrap();
    assert_eq!((restored.epoch, restored.secrets.len(), restored.missing.len()), (2, 4, 0));
    assert!(!place.has_valid(1));
    for secret in Secret::ALL {
        let of = |place: &Place| fs::read(secret.file(&place.config.auth)).unwrap();
        assert_eq!(of(&place), of(&before));
    }
    let store = place.open();
    let head = store.audit_head().unwrap();
    let (mut last, mut actions) = (None, Vec::new());
    let mut heads = std::collections::BTreeMap::new();
    store
        .audit_from(1, &mut |entry| {
            actions.push(entry.event.action);
            heads.insert(entry.head.entries, entry.head);
            last = Some(entry.head);
            true
        })
        .unwrap();
    assert_eq!(actions, [Action::CodeIssued, Action::StoreFenced, Action::StoreRestored]);
    assert_eq!(last, Some(head));
    // The log agrees with every signed head.
    let lookup = lookup_key(&place.config.auth.lookup_key_file).unwrap();
    let verifier = Verifier::with_lookup_key(lookup).unwrap();
    let signed = read_file(&file_of(&place.config.storage.path)).unwrap();
    assert_eq!(signed.len(), 1);
    for one in signed {
        assert_eq!(verifier.verify(&one), Verdict::Genuine(heads[&one.entries]));
    }
    // A start finds that the store holds what it must.
    watermark::check(store.as_ref(), &place.config.storage.path, NOW).unwrap();
    assert_eq!(store.audit_head().unwrap(), head);
    store.close();
}

#[test]
fn a_backup_restored_again_and_again_begins_an_epoch_each_time_that_no_copy_satisfies() {
    let (place, backup) = backed_up();
    let path = &place.config.storage.path;
    let store = place.open();
    issue(store.as_ref(), 2);
    let lost = watermark::keep_now(store.as_ref(), path).unwrap();
    store.close();
    let mut last = lost.commits;
    for epoch in 2..4 {
        for file in [path.clone(), Beside::Journal.of(path), file_of(path)] {
            fs::remove_file(&file).unwrap_or_default();
        }
        assert_eq!(place.restore(&backup).unwrap().epoch, epoch);
        let mark = watermark::known(path).unwrap().unwrap();
        assert!(mark.epoch == epoch && mark.commits > last, "{mark:?}");
        last = mark.commits;
    }
    assert!(!place.has_valid(1) && !place.has_valid(2));
}

#[test]
fn the_file_of_webhooks_comes_back_where_none_is_and_stays_where_one_is() {
    let (_before, backup) = backed_up();
    for there in [None, Some(b"[other]\n")] {
        let place = Place::new();
        let file = &place.config.webhooks.file;
        if let Some(text) = there {
            private_file::create(file, text).unwrap();
        }
        place.restore(&backup).unwrap();
        let expected = there.map_or(OFFICE, |text| text.as_slice());
        assert_eq!(fs::read(file).unwrap(), expected);
        assert_eq!(private_file::loose_mode(file).unwrap(), None);
    }
    assert!(!fs::read(backup.join(WEBHOOKS)).unwrap().windows(8).any(|some| some == b"[office]"));
}

#[test]
fn a_file_that_is_missing_cut_short_or_changed_refuses_the_backup() {
    let (_before, backup) = backed_up();
    let place = Place::new();
    let mut names: Vec<&str> = NAMES.to_vec();
    names.extend([MANIFEST, SIGNATURE]);
    for name in names {
        let path = backup.join(name);
        let good = fs::read(&path).unwrap();
        for at in [0, good.len() / 2, good.len() - 2] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            let words = place.refused(&backup);
            assert!(words.contains("changed") || words.contains("not what was written"), "{words}");
        }
        fs::write(&path, &good[..good.len() / 2]).unwrap();
        let words = place.refused(&backup);
        let is_told = ["cut short", "were written", "not signed"];
        assert!(is_told.iter().any(|told| words.contains(told)), "{name}: {words}");
        fs::remove_file(&path).unwrap();
        let words = place.refused(&backup);
        let is_told = ["missing", "it has no manifest"];
        assert!(is_told.iter().any(|told| words.contains(told)), "{name}: {words}");
        fs::write(&path, &good).unwrap();
    }
    place.restore(&backup).unwrap();
}

#[test]
fn a_manifest_that_names_other_files_or_was_signed_with_another_key_is_refused() {
    let (_before, backup) = backed_up();
    let place = Place::new();
    let text = fs::read_to_string(backup.join(MANIFEST)).unwrap();
    for (from, to, words) in [
        (MARK, "../../etc/passwd", "names a file that no backup has"),
        ("\"backup_format\": 1", "\"backup_format\": 2", "a newer program"),
        ("\"redb\"", "\"postgres\"", "storage.backend is \"redb\""),
        ("\"epoch\": 1", "\"epoch\": 0", "not signed with this lookup key"),
    ] {
        assert!(text.contains(from), "{from}");
        fs::write(backup.join(MANIFEST), text.replace(from, to)).unwrap();
        let told = place.refused(&backup);
        assert!(told.contains(words), "{told}");
    }
    // A backup of another installation, without secrets.
    let other = Place::with_store();
    let backup = other.folder.path().join("backup");
    other.back_up(&backup, None).unwrap();
    make_secrets(&place.config, NOW).unwrap();
    assert!(place.refused(&backup).contains("the backup of another installation"));
}

#[test]
fn a_place_that_has_a_store_or_other_secrets_is_left_as_it_is() {
    let (before, backup) = backed_up();
    let told = before.restore(&backup).unwrap_err().to_string();
    assert!(told.contains("there is a store already"), "{told}");
    let store = before.open();
    let told = before.restore(&backup).unwrap_err().to_string();
    assert!(told.contains("another process has the store open"), "{told}");
    store.close();
    assert!(before.has_valid(1));
    let place = Place::new();
    fs::write(&place.config.auth.master_token_file, "another one, of 16\n").unwrap();
    assert!(place.refused(&backup).contains("master.token is another one than"));
    let place = Place::new();
    fs::write(Beside::Mark.of(&place.config.storage.path), "nonsense").unwrap();
    assert!(place.refused(&backup).contains("the mark of the store"));
}

#[test]
fn the_secrets_come_from_the_place_or_from_the_backup_and_else_the_error_says_how() {
    let (before, backup) = backed_up();
    let place = Place::new();
    let (config, signer) = (&place.config, None);
    let order = Order { config, folder: &backup, opener: None, signer, now: NOW };
    let told = restore(&order).unwrap_err().to_string();
    assert!(told.contains("lookup.key does not exist") && told.contains("--identity"), "{told}");
    for secret in Secret::ALL {
        fs::copy(secret.file(&before.config.auth), secret.file(&place.config.auth)).unwrap();
    }
    assert!(restore(&order).unwrap().secrets.is_empty());
    let bare = before.folder.path().join("bare");
    before.back_up(&bare, None).unwrap();
    assert!(!bare.join("lookup.key.age").exists());
    let place = Place::new();
    assert!(place.refused(&bare).contains("the backup has no secrets"));
    let key = &place.config.auth.lookup_key_file;
    fs::copy(&before.config.auth.lookup_key_file, key).unwrap();
    let missing = place.restore(&bare).unwrap().missing;
    assert_eq!(missing, [Secret::SigningKeys, Secret::MasterToken]);
}

/// Copies the files of a folder into another.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[test]
fn what_a_kill_at_any_moment_leaves_of_a_backup_is_no_backup() {
    let before = Place::with_store();
    let folder = before.folder.path();
    let (backup, moments) =
        (folder.join("backups/iptunnel-20300317T174640Z"), folder.join("moments"));
    let lookup = lookup_key(&before.config.auth.lookup_key_file).unwrap();
    let (count, from, to) = (Arc::new(AtomicU32::new(0)), backup.clone(), moments.clone());
    let calls = Arc::clone(&count);
    // The pace is asked after each piece of work, so a kill leaves what is there then.
    let pace: iptunnel_storage::Pace = Arc::new(move || {
        copy(&from, &to.join(calls.fetch_add(1, Ordering::SeqCst).to_string()));
        true
    });
    let store = before.open();
    let recipient = recipient();
    let (config, keys) = (&before.config, Some(&recipient));
    let order = make::Order { config, lookup: &lookup, folder: &backup, keys, now: NOW, pace };
    make::make(&order, store.as_ref()).unwrap();
    store.close();
    let count = count.load(Ordering::SeqCst);
    // The moments of the manifest itself.
    for (name, gone) in [("signed", MANIFEST), ("unsigned", SIGNATURE)] {
        copy(&backup, &moments.join(name));
        fs::remove_file(moments.join(name).join(gone)).unwrap();
    }
    fs::write(moments.join("signed/manifest.json.new"), "{").unwrap();
    let place = Place::new();
    let verifier = Verifier::with_lookup_key(lookup).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for moment in fs::read_dir(&moments).unwrap().map(Result::unwrap) {
        let told = place.refused(&moment.path());
        let is_told = ["one that was not finished", "it has no manifest.sig"];
        assert!(is_told.iter().any(|words| told.contains(words)), "{told}");
        seen.insert(fs::read_dir(moment.path()).unwrap().count());
        fs::rename(moment.path(), folder.join("backups/iptunnel-20300317T174641Z")).unwrap();
        let kept = kept::list(&folder.join("backups"), &verifier).unwrap();
        assert_eq!(kept.len(), 1, "{moment:?}");
        fs::remove_dir_all(folder.join("backups/iptunnel-20300317T174641Z")).unwrap();
    }
    // With none of the files, with one more each time, and with all but one of the two last.
    assert!(count > 6 && (1..=7).all(|files| seen.contains(&files)), "{seen:?}");
    place.restore(&backup).unwrap();
}

#[test]
fn a_restore_that_was_killed_at_any_moment_can_be_repeated_or_has_begun_its_epoch() {
    let (_before, backup) = backed_up();
    let whole = Place::new();
    whole.restore(&backup).unwrap();
    let of = |place: &Place| {
        let path = &place.config.storage.path;
        let heads = (backup.join(HEADS), file_of(path));
        let mut written: Vec<_> = Secret::ALL
            .map(|secret| {
                (
                    secret.file(&whole.config.auth).to_owned(),
                    secret.file(&place.config.auth).to_owned(),
                )
            })
            .into();
        // The heads, then a mark that demands more than any store holds, and a draft at any time.
        written
            .extend([heads, (Beside::Mark.of(&whole.config.storage.path), Beside::Mark.of(path))]);
        written
    };
    for steps in 0..=of(&whole).len() {
        let place = Place::new();
        for (from, to) in of(&place).into_iter().take(steps) {
            fs::copy(from, to).unwrap();
        }
        fs::write(Beside::Draft.of(&place.config.storage.path), "half a store").unwrap();
        let epoch = place.restore(&backup).unwrap_or_else(|error| panic!("{steps}: {error}")).epoch;
        assert_eq!(epoch, if steps < 5 { 2 } else { 3 });
        assert!(!place.has_valid(1));
    }
    // With the store in its place too, the next start begins the epoch: a test of `restore.rs`. Heads of
    // another store stay in the way.
    let place = Place::new();
    fs::write(file_of(&place.config.storage.path), "{}\n").unwrap();
    assert!(place.refused(&backup).contains("there are signed heads of a store already"));
}

#[test]
fn a_public_key_tells_a_backup_from_those_that_others_encrypt_to_the_same_address() {
    let (before, backup) = backed_up();
    let lookup = lookup_key(&before.config.auth.lookup_key_file).unwrap();
    let known = crate::signed_head::HeadKey::of(&lookup).unwrap().public();
    let signer = Verifier::with_public_key(&known);
    let opener = Opener::identities(KEY);
    let (_other, forged) = backed_up();
    let place = Place::new();
    let of = |folder| Order {
        config: &place.config,
        folder,
        opener: opener.as_ref(),
        signer: signer.as_ref(),
        now: NOW,
    };
    let told = restore(&of(&forged)).unwrap_err().to_string();
    assert!(told.contains("not signed with the key of --public-key"), "{told}");
    assert!(!place.config.auth.lookup_key_file.exists() && !place.config.storage.path.exists());
    restore(&of(&backup)).unwrap();
}

#[test]
fn backups_of_one_second_have_names_of_their_own_and_their_order() {
    let place = Place::with_store();
    let all = &place.config.backup.folder;
    let name = kept::name_at(NOW);
    let mut made = Vec::new();
    for _ in 0..11 {
        made.push(kept::free_name(all, NOW));
        place.back_up(&all.join(made.last().unwrap()), None).unwrap();
    }
    assert_eq!(
        (&made[0], &made[1], &made[10]),
        (&name, &format!("{name}-2"), &format!("{name}-11"))
    );
    let verifier =
        Verifier::with_lookup_key(lookup_key(&place.config.auth.lookup_key_file).unwrap()).unwrap();
    let listed = || -> Vec<String> {
        kept::list(all, &verifier).unwrap().into_iter().map(|one| one.name).collect()
    };
    assert_eq!(listed(), made);
    assert_eq!(kept::prune(all, &verifier, 2, NOW).unwrap().len(), 9);
    assert_eq!(listed(), made[9..]);
}

#[test]
fn a_backup_goes_into_an_empty_folder_only_and_leaves_nothing_when_it_fails() {
    let (place, backup) = backed_up();
    assert!(matches!(place.back_up(&backup, None), Err(BackupError::NotEmpty(_))));
    fs::remove_file(&place.config.auth.master_token_file).unwrap();
    let other = place.folder.path().join("deep/er/backup");
    let told = place.back_up(&other, Some(&recipient())).unwrap_err().to_string();
    assert!(told.contains("master.token does not exist"), "{told}");
    assert!(!other.exists());
    fs::create_dir(&other).unwrap();
    place.back_up(&other, None).unwrap();
    use std::os::unix::fs::PermissionsExt;
    for file in fs::read_dir(&other).unwrap() {
        let mode = file.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn the_newest_backups_of_this_server_are_kept_and_no_folder_of_others_is_removed() {
    let place = Place::with_store();
    let lookup = lookup_key(&place.config.auth.lookup_key_file).unwrap();
    let verifier = Verifier::with_lookup_key(lookup).unwrap();
    let all = &place.config.backup.folder;
    assert_eq!(kept::list(all, &verifier).unwrap(), []);
    for hour in 0..4 {
        place.back_up(&all.join(kept::name_at(NOW.plus(hour * 3600))), None).unwrap();
    }
    let other = Place::with_store();
    let of_other = all.join(kept::name_at(Timestamp(NOW.0 - 9000)));
    other.back_up(&of_other, None).unwrap();
    let unfinished = [NOW.0 - 200_000, NOW.0].map(|at| all.join(kept::name_at(Timestamp(at + 1))));
    for folder in unfinished.iter().chain(&[all.join("iptunnel-notes")]) {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join(STORE), "half").unwrap();
    }
    // At the hour of the third, the fourth is dated in the future.
    let gone = kept::prune(all, &verifier, 2, NOW.plus(2 * 3600)).unwrap();
    assert_eq!(gone.len(), 2);
    assert!(all.join(kept::name_at(NOW.plus(2 * 3600))).exists());
    let gone = kept::prune(all, &verifier, 2, NOW.plus(3 * 3600)).unwrap();
    assert_eq!(gone.len(), 1);
    let left: Vec<String> =
        kept::list(all, &verifier).unwrap().into_iter().map(|one| one.name).collect();
    assert_eq!(left, ["iptunnel-20300317T194640Z", "iptunnel-20300317T204640Z"]);
    assert!(of_other.join(MANIFEST).exists() && all.join("iptunnel-notes").exists());
    assert!(!unfinished[0].exists() && unfinished[1].exists());
    assert_eq!(rfc3339(NOW.plus(7200)), "2030-03-17T19:46:40+00:00");
}
