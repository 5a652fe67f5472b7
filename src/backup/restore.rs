//! Restores a backup into the place that the settings name.
//!
//! Everything is checked before anything is changed. Then the order is: the secrets; the signed heads; a mark
//! that demands more than the store has; the store; the epoch. So after an interruption at any moment either
//! there is no store yet, and the restore can be repeated, or the next start begins the epoch.

use super::error::BackupError;
use super::{HEADS, Manifest, STORE, WEBHOOKS, name_of};
use crate::age::Opener;
use crate::config::{Backend, Config};
use crate::private_file::{self, Beside, Owner};
use crate::secrets::{Secret, parse_lookup_key};
use crate::signed_head::{Verifier, file_of};
use crate::store::agreement::agree;
use crate::store::error::StoreError;
use crate::store::files::{files, open};
use crate::store::watermark;
use iptunnel_domain::Timestamp;
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_domain::lookup::LookupKey;
use iptunnel_storage::{
    Change, CommitError, Disk, FileDisk, OpenDisk, Store, Watermark, Write, examine_copy,
};
use std::fs::{self, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// The reason of the epoch that a restore begins.
const WHY: &str = "a backup was restored";

/// The backup that is to be restored.
pub struct Order<'a> {
    /// The configuration: it names the place.
    pub config: &'a Config,
    /// The folder of the backup.
    pub folder: &'a Path,
    /// What opens the secrets in it. `None`: those in the place are used.
    pub opener: Option<&'a Opener>,
    /// The key that must have signed the backup, besides that which its lookup key makes. `None`: whatever
    /// lookup key is in the place or in the backup counts.
    pub signer: Option<&'a Verifier>,
    /// The time.
    pub now: Timestamp,
}

/// What was restored.
#[derive(Debug)]
pub struct Restored {
    /// What the backup holds.
    pub manifest: Manifest,
    /// The epoch that has begun.
    pub epoch: u64,
    /// The files of secrets that were written.
    pub secrets: Vec<PathBuf>,
    /// The secrets that are neither in the backup nor in the place.
    pub missing: Vec<Secret>,
}

/// A file that is written, and what is in it.
type NewFile = (PathBuf, Zeroizing<Vec<u8>>);

/// The secrets of the place after the restore.
struct Secrets {
    lookup: LookupKey,
    /// Those that are written.
    new: Vec<NewFile>,
    missing: Vec<Secret>,
}

/// Restores a backup, and begins a new epoch: every code that was unspent and every activation that was
/// open is void. For a database, the database itself must have been restored before.
///
/// # Errors
/// The backup is not whole or not of this server, or the place is in use: then nothing was changed. Or
/// something could not be written: then the command can be repeated once the error says nothing more.
pub fn restore(order: &Order<'_>) -> Result<Restored, BackupError> {
    let Order { config, folder, .. } = order;
    let unverified = Manifest::read(folder)?;
    let engine = unverified.manifest.engine;
    if engine != config.storage.backend {
        let why = format!(
            "it is the backup of a store of the kind {:?}, and storage.backend is {:?}",
            engine.as_str(),
            config.storage.backend.as_str()
        );
        return Err(BackupError::refused(folder, why));
    }
    if engine == Backend::Redb {
        check_place(&config.storage.path, folder)?;
    }
    if order.signer.is_some_and(|signer| !unverified.is_by(signer)) {
        let why = "its manifest is not signed with the key of --public-key: the manifest was changed, or it is \
                   the backup of another installation";
        return Err(BackupError::refused(folder, why));
    }
    // Before the signature, which only the secrets can prove: so that what is damaged is called so.
    unverified.manifest.check_files(folder)?;
    let secrets = secrets(order, &unverified.manifest)?;
    let verifier = Verifier::with_lookup_key(secrets.lookup.clone());
    let manifest = verifier.and_then(|verifier| unverified.verified(&verifier)).ok_or_else(|| {
        let why = "its manifest is not signed with this lookup key: the manifest was changed, or it is the \
                   backup of another installation";
        BackupError::refused(folder, why)
    })?;
    let store = match engine {
        Backend::Redb => put_store(order, &manifest, &secrets)?,
        Backend::Postgres => open_database(order, &secrets)?,
    };
    let epoch = begin_epoch(order, store.as_ref(), &manifest);
    store.close();
    let written = secrets.new.into_iter().map(|(path, _)| path).collect();
    Ok(Restored { manifest, epoch: epoch?, secrets: written, missing: secrets.missing })
}

/// Refuses a place in which there is a store. The mark of an earlier one is welcome: it says what must not
/// come back. So are the heads of the backup, which an interrupted restore has left.
fn check_place(store: &Path, backup: &Path) -> Result<(), BackupError> {
    let in_way = |path: &Path, what: &str, then: &str| {
        Err(BackupError::InTheWay(format!("{what} {}; {then}", path.display())))
    };
    let leave = "move it, its journal and its heads to another folder, and leave its mark";
    for path in [store.to_owned(), Beside::Journal.of(store)] {
        if private_file::exists(&path).map_err(BackupError::at(&path))? {
            let then = format!("stop it, {leave}");
            return match is_locked(&path).map_err(BackupError::at(&path))? {
                true => in_way(&path, "another process has the store open:", &then),
                false => in_way(&path, "there is a store already:", leave),
            };
        }
    }
    let heads = file_of(store);
    if let Some(there) = private_file::read(&heads).map_err(BackupError::at(&heads))?
        && fs::read(backup.join(HEADS)).ok().is_none_or(|of_backup| *there != of_backup)
    {
        return in_way(&heads, "there are signed heads of a store already:", "move them away");
    }
    watermark::known(store)?;
    Ok(())
}

/// Returns whether another process has locked a file.
fn is_locked(path: &Path) -> io::Result<bool> {
    let file = OpenOptions::new().read(true).open(path)?;
    match file.try_lock() {
        // At once, whoever still has this file.
        Ok(()) => file.unlock().map(|()| false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Returns the secrets of the place. One that is there stays, and must be that of the backup.
fn secrets(order: &Order<'_>, manifest: &Manifest) -> Result<Secrets, BackupError> {
    let (mut lookup, mut new, mut missing) = (None, Vec::new(), Vec::new());
    for secret in Secret::ALL {
        let (path, name) = (secret.file(&order.config.auth), name_of(secret));
        let in_place = private_file::read(path).map_err(BackupError::at(path))?;
        let file = order.folder.join(name);
        let in_backup = match order.opener.filter(|_| manifest.has(name)) {
            Some(opener) => {
                let sealed = fs::read(&file).map_err(BackupError::at(&file))?;
                let problem = |problem| BackupError::Age { path: file.clone(), problem };
                Some(opener.decrypt(&sealed).map_err(problem)?)
            }
            None => None,
        };
        let text = match (in_place, in_backup) {
            (Some(here), Some(there)) if *here != *there => {
                return Err(BackupError::InTheWay(format!(
                    "{} is another one than the {name} of the backup; move it away, or leave out what opens \
                     the secrets of the backup",
                    path.display()
                )));
            }
            (Some(here), _) => here,
            (None, Some(there)) => {
                new.push((path.to_owned(), there.clone()));
                there
            }
            (None, None) if manifest.has(name) => {
                return Err(BackupError::InTheWay(format!(
                    "{} does not exist; the backup has it encrypted: open it with --identity FILE or \
                     --passphrase-file FILE, or put the file in its place",
                    path.display()
                )));
            }
            (None, None) if secret == Secret::LookupKey => {
                return Err(BackupError::InTheWay(format!(
                    "{} does not exist, and the backup has no secrets; put the lookup key of this store in \
                     its place: without it nothing in the store can be found",
                    path.display()
                )));
            }
            (None, None) => {
                missing.push(secret);
                continue;
            }
        };
        if secret == Secret::LookupKey {
            lookup = Some(parse_lookup_key(&text, path)?);
        }
    }
    new.extend(webhooks(order, manifest)?);
    let lookup =
        lookup.ok_or_else(|| BackupError::refused(order.folder, "it has no lookup key"))?;
    Ok(Secrets { lookup, new, missing })
}

/// Returns the path and the text of the file of webhooks, if the backup has one that can be opened. One that is
/// in its place stays: it belongs to the settings, and not to the store.
fn webhooks(order: &Order<'_>, manifest: &Manifest) -> Result<Option<NewFile>, BackupError> {
    let path = &order.config.webhooks.file;
    let is_wanted = !path.as_os_str().is_empty() && manifest.has(WEBHOOKS);
    let Some(opener) = order.opener.filter(|_| is_wanted) else { return Ok(None) };
    if private_file::exists(path).map_err(BackupError::at(path))? {
        return Ok(None);
    }
    let file = order.folder.join(WEBHOOKS);
    let sealed = fs::read(&file).map_err(BackupError::at(&file))?;
    let text =
        opener.decrypt(&sealed).map_err(|problem| BackupError::Age { path: file, problem })?;
    Ok(Some((path.to_owned(), text)))
}

impl Secrets {
    fn write(&self) -> Result<(), BackupError> {
        for (path, text) in &self.new {
            private_file::make_folder_of(path).map_err(BackupError::at(path))?;
            private_file::create(path, text).map_err(BackupError::at(path))?;
        }
        Ok(())
    }
}

/// A file that is removed unless it is renamed.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Copies the store, checks the copy, and puts it into its place.
fn put_store(
    order: &Order<'_>,
    manifest: &Manifest,
    secrets: &Secrets,
) -> Result<Arc<dyn Store>, BackupError> {
    let path = &order.config.storage.path;
    let (source, draft) = (order.folder.join(STORE), Draft(Beside::Draft.of(path)));
    private_file::make_folder_of(path).map_err(BackupError::at(path))?;
    copy_file(&source, &draft.0).map_err(BackupError::at(&draft.0))?;
    // The folder may have changed since its files were checked.
    manifest.check_copy(STORE, &draft.0)?;
    let at = draft.0.clone();
    let opened: OpenDisk = Box::new(move || Ok(Box::new(FileDisk::open(&at)?) as Box<dyn Disk>));
    let found = examine_copy(opened)
        .map_err(|error| BackupError::refused(&source, format!("the store is damaged: {error}")))?;
    let is_that = found.position == manifest.position
        && found.head.entries == manifest.audit_entries
        && found.head.hash.to_hex() == manifest.audit_head;
    if !is_that {
        return Err(BackupError::refused(&source, "it is another store than the manifest names"));
    }
    secrets.write()?;
    let heads = fs::read(order.folder.join(HEADS)).map_err(BackupError::at(order.folder))?;
    // To copy takes minutes, in which a server may have been started here.
    check_place(path, order.folder)?;
    put_heads(path, &heads)?;
    watermark::demand_epoch(path, &last_mark(path, manifest)?).map_err(BackupError::at(path))?;
    fs::rename(&draft.0, path).map_err(BackupError::at(path))?;
    private_file::sync_folder_of(path).map_err(BackupError::at(path))?;
    Ok(open(order.config, files(path)).map_err(StoreError::from)?)
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    // One that an interrupted restore has left.
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    io::copy(&mut fs::File::open(from)?, &mut copy)?;
    private_file::give_to_owner_of_folder(&copy, to);
    copy.sync_all()
}

/// Returns the mark after which the new epoch begins: that in the place, or what the backup had, whichever
/// is later.
fn last_mark(store: &Path, manifest: &Manifest) -> Result<Watermark, BackupError> {
    let of_backup = Watermark {
        epoch: manifest.epoch,
        process: Watermark::ALONE.into(),
        commits: manifest.position,
        ..Watermark::default()
    };
    let Some(known) = watermark::known(store)? else { return Ok(of_backup) };
    let acknowledged = if known.process == Watermark::ALONE { known.acknowledged() } else { 0 };
    Ok(Watermark {
        epoch: known.epoch.max(of_backup.epoch),
        commits: acknowledged.max(of_backup.commits),
        ..of_backup
    })
}

/// Opens the database, which was restored before.
fn open_database(order: &Order<'_>, secrets: &Secrets) -> Result<Arc<dyn Store>, BackupError> {
    let config = order.config;
    let store = open(config, files(&config.storage.path)).map_err(StoreError::from)?;
    agree(store.as_ref(), &secrets.lookup, &config.auth.lookup_key_file)?;
    secrets.write()?;
    let of_heads = file_of(&config.storage.path);
    if !private_file::exists(&of_heads).map_err(BackupError::at(&of_heads))? {
        let heads = fs::read(order.folder.join(HEADS)).map_err(BackupError::at(order.folder))?;
        private_file::make_folder_of(&of_heads).map_err(BackupError::at(&of_heads))?;
        put_heads(&config.storage.path, &heads)?;
    }
    Ok(store)
}

/// Writes the signed heads beside the store, if there are any.
fn put_heads(store: &Path, heads: &[u8]) -> Result<(), BackupError> {
    let path = file_of(store);
    // Those that are there already were looked at before.
    if heads.is_empty() || private_file::exists(&path).map_err(BackupError::at(&path))? {
        return Ok(());
    }
    private_file::replace(&path, heads, Owner::MayChange)
        .and_then(|()| private_file::sync_folder_of(&path))
        .map_err(BackupError::at(&path))
}

/// Begins the epoch, and enters the restore into the audit log.
fn begin_epoch(
    order: &Order<'_>,
    store: &dyn Store,
    manifest: &Manifest,
) -> Result<u64, BackupError> {
    let (path, now) = (&order.config.storage.path, order.now);
    let last = match manifest.engine {
        Backend::Redb => last_mark(path, manifest)?,
        Backend::Postgres => watermark::last_of(store, path),
    };
    let failed = |error: CommitError| BackupError::Store(StoreError::Epoch(error));
    let epoch = watermark::begin_epoch(store, path, last, WHY, now).map_err(failed)?;
    let event = Event {
        subject: order.folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        detail: format!("made {}, position {}", manifest.made_at, manifest.position),
        by: "command line".into(),
        ..Event::new(Action::StoreRestored, Actor::Administrator, now, None)
    };
    let change = Change(vec![Write::Audit(Arc::new(event))]);
    store.commit(&[change]).map_err(failed)?;
    watermark::keep_now(store, path);
    Ok(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    #[test]
    fn a_restore_that_ends_before_its_epoch_leaves_a_mark_that_begins_it_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let flags =
            vec![("storage.path".to_owned(), folder.path().join("s").display().to_string())];
        let config = Config::load(&Sources { flags, ..Sources::default() }).unwrap();
        let path = &config.storage.path;
        let store = open(&config, files(path)).unwrap();
        let at = store.watermark().unwrap();
        // As `put_store` leaves it.
        watermark::demand_epoch(path, &at).unwrap();
        watermark::check(store.as_ref(), path, Timestamp(1)).unwrap();
        let mark = watermark::known(path).unwrap().unwrap();
        assert!(mark.epoch == at.epoch + 1 && store.contains(&mark).unwrap(), "{mark:?}");
        store.close();
    }
}
