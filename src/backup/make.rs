//! Makes a backup of a store that may be in use.

use super::error::BackupError;
use super::{HEADS, MARK, Manifest, STORE, WEBHOOKS, name_of};
use crate::age::Recipient;
use crate::config::Config;
use crate::private_file;
use crate::secrets::{Secret, SecretError};
use crate::signed_head::{HeadKey, SignedHead, file_of, read_file};
use iptunnel_domain::Timestamp;
use iptunnel_domain::audit::Head;
use iptunnel_domain::lookup::LookupKey;
use iptunnel_storage::{Contents, FileDisk, Pace, Store, Watermark};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// The bytes that a backup leaves on the disk: room for what a busy store writes meanwhile.
const SPARE: u64 = 64 << 20;

/// The backup that is to be made.
pub struct Order<'a> {
    /// The configuration: it says where the audit heads and the secrets are.
    pub config: &'a Config,
    /// The lookup key, from which the key that signs is derived.
    pub lookup: &'a LookupKey,
    /// The folder of the backup. It is made; if it exists, it must be empty.
    pub folder: &'a Path,
    /// To whom the secrets are encrypted. `None`: they are no part of the backup.
    pub keys: Option<&'a Recipient>,
    /// The time.
    pub now: Timestamp,
    /// How fast.
    pub pace: Pace,
}

/// Makes a backup of an embedded store. On an error, the files that were written are removed.
///
/// # Errors
/// The folder is not empty, something cannot be read or written, or the pace says that it is to end.
pub fn make(order: &Order<'_>, store: &dyn Store) -> Result<Manifest, BackupError> {
    in_new_folder(order.folder, || {
        order.check_space()?;
        let path = order.folder.join(STORE);
        let disk = FileDisk::open(&path).map_err(BackupError::at(&path))?;
        let contents = store.back_up(Box::new(disk), &order.pace)?;
        // What the server demands of the store that it goes on with. A restore demands more.
        let mark = store.watermark().unwrap_or_default();
        let mark = Watermark { commits: contents.position, ..mark };
        order.fill(&contents, &mark, &[STORE])
    })
}

/// Makes a backup of what belongs to a database, without the database itself.
///
/// # Errors
/// As [`make`].
pub fn make_beside_database(
    order: &Order<'_>,
    head: Head,
    mark: &Watermark,
) -> Result<Manifest, BackupError> {
    let contents = Contents { data_format: 0, position: mark.commits, head };
    in_new_folder(order.folder, || order.fill(&contents, mark, &[]))
}

impl Order<'_> {
    /// Refuses to fill the disk: a store on the same one would take no commits any more.
    fn check_space(&self) -> Result<(), BackupError> {
        let store = &self.config.storage.path;
        // A store that tests keep in memory has no file.
        let size = fs::metadata(store).map_or(0, |store| store.len());
        let needed = size.saturating_add(SPARE);
        let free = private_file::free_space(self.folder).map_err(BackupError::at(self.folder))?;
        if free < needed {
            return Err(BackupError::NoSpace { path: self.folder.to_owned(), free, needed });
        }
        Ok(())
    }

    /// Writes what a backup has besides the files in `first`, which are written, and then the manifest.
    fn fill(
        &self,
        contents: &Contents,
        mark: &Watermark,
        first: &[&str],
    ) -> Result<Manifest, BackupError> {
        let key = HeadKey::of(self.lookup)
            .ok_or_else(|| BackupError::refused(self.folder, "there is no key to sign with"))?;
        let heads = self.heads(contents.head, &key)?;
        let mut files = vec![(HEADS, heads.into_bytes()), (MARK, mark.to_string().into_bytes())];
        files.extend(self.secrets()?);
        let engine = self.config.storage.backend;
        let mut manifest = Manifest::of(engine, contents, mark.epoch, self.now);
        for name in first {
            manifest.add(self.folder, name, &self.pace)?;
        }
        for (name, content) in files {
            let path = self.folder.join(name);
            private_file::create(&path, &content).map_err(BackupError::at(&path))?;
            manifest.add(self.folder, name, &self.pace)?;
        }
        manifest.write(self.folder, &key)?;
        let parent = private_file::sync_folder_of(self.folder);
        parent.map_err(BackupError::at(self.folder))?;
        Ok(manifest)
    }

    /// Returns the signed heads that are not later than the store, and a new one for its last entry.
    fn heads(&self, last: Head, key: &HeadKey) -> Result<String, BackupError> {
        let path = file_of(&self.config.storage.path);
        let mut heads = match read_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            heads => heads.map_err(BackupError::at(&path))?,
        };
        heads.retain(|head| head.entries <= last.entries);
        if last.entries > 0 && heads.last().is_none_or(|head| head.entries < last.entries) {
            heads.push(key.sign(last, self.now));
        }
        let line = |head: &SignedHead| Ok(format!("{}\n", serde_json::to_string(head)?));
        let lines: Result<String, serde_json::Error> = heads.iter().map(line).collect();
        lines.map_err(|error| BackupError::at(&path)(error.into()))
    }

    /// Returns the names and contents of the encrypted secrets.
    fn secrets(&self) -> Result<Vec<(&'static str, Vec<u8>)>, BackupError> {
        let Some(recipient) = self.keys else { return Ok(Vec::new()) };
        let encrypted = |secret: Secret| {
            let path = secret.file(&self.config.auth);
            let text = private_file::read(path).map_err(BackupError::at(path))?;
            let missing = || SecretError::Missing { secret, path: path.to_owned() };
            let text = text.ok_or_else(missing)?;
            let problem = |problem| BackupError::Age { path: path.to_owned(), problem };
            Ok((name_of(secret), recipient.encrypt(&text).map_err(problem)?))
        };
        let mut all: Vec<_> =
            Secret::ALL.into_iter().map(encrypted).collect::<Result<_, BackupError>>()?;
        let path = &self.config.webhooks.file;
        let has_webhooks = !path.as_os_str().is_empty();
        let text = has_webhooks.then(|| private_file::read(path)).transpose();
        if let Some(text) = text.map_err(BackupError::at(path))?.flatten() {
            let problem = |problem| BackupError::Age { path: path.to_owned(), problem };
            all.push((WEBHOOKS, recipient.encrypt(&text).map_err(problem)?));
        }
        Ok(all)
    }
}

/// Fills a new folder. If that fails, the folder is as it was.
fn in_new_folder<T>(
    folder: &Path,
    fill: impl FnOnce() -> Result<T, BackupError>,
) -> Result<T, BackupError> {
    let is_new = make_folder(folder).map_err(BackupError::at(folder))?;
    let mut entries = fs::read_dir(folder).map_err(BackupError::at(folder))?;
    if entries.next().is_some() {
        return Err(BackupError::NotEmpty(folder.to_owned()));
    }
    let filled = fill();
    if filled.is_err() {
        // It was empty, so all that is in it was written here. What stays is no backup: it has no manifest.
        for name in super::NAMES.iter().chain(&[super::MANIFEST, super::SIGNATURE]) {
            let _ = fs::remove_file(folder.join(name));
        }
        if is_new {
            let _ = fs::remove_dir(folder);
        }
    }
    filled
}

/// Makes a folder with mode 0700, and those above it. Returns whether it is new.
fn make_folder(folder: &Path) -> std::io::Result<bool> {
    private_file::make_folder_of(folder)?;
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        made => made.map(|()| true),
    }
}
