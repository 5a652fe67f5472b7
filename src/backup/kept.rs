//! The backups in the folder of the settings: each in a folder of its own, named after its time.

use super::error::BackupError;
use super::{MANIFEST, Manifest};
use crate::http::respond::rfc3339;
use crate::signed_head::Verifier;
use iptunnel_domain::Timestamp;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The beginning of the names.
const PREFIX: &str = "iptunnel-";
/// How long a backup without a manifest may be one that is being made, in seconds: a day.
const UNFINISHED: u64 = 86_400;

/// Returns the name of a backup that is made now, such as `iptunnel-20260331T120500Z`.
pub fn name_at(now: Timestamp) -> String {
    let time: String =
        rfc3339(now).chars().take(19).filter(|char| !matches!(char, '-' | ':')).collect();
    format!("{PREFIX}{time}Z")
}

/// Whether the name is one that [`name_at`] makes.
fn is_ours(name: &str) -> bool {
    let Some(time) = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix('Z')) else {
        return false;
    };
    time.len() == 15
        && time.bytes().enumerate().all(|(at, byte)| match at {
            8 => byte == b'T',
            _ => byte.is_ascii_digit(),
        })
}

/// A backup in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub manifest: Manifest,
}

/// Returns the names in the folder that are those of backups, the oldest first. There may be no folder yet.
fn names(folder: &Path) -> Result<Vec<String>, BackupError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(BackupError::at(folder))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(BackupError::at(folder))?.file_name();
        names.extend(name.into_string().ok().filter(|name| is_ours(name)));
    }
    names.sort_unstable();
    Ok(names)
}

/// Returns the backups of this server in a folder, the oldest first. Their files are not looked at.
///
/// # Errors
/// The folder cannot be read.
pub fn list(folder: &Path, verifier: &Verifier) -> Result<Vec<Kept>, BackupError> {
    let kept = |name: String| {
        let manifest = Manifest::read(&folder.join(&name)).ok()?.verified(verifier)?;
        Some(Kept { name, manifest })
    };
    Ok(names(folder)?.into_iter().filter_map(kept).collect())
}

/// Removes all but the `keep` newest backups of this server, and those that were not finished a day ago.
/// Others stay. So do those that are dated after `now`, and they are not among the newest: the clock was wrong
/// when they were made, or is now. Returns what was removed.
///
/// # Errors
/// The folder cannot be read, or a backup cannot be removed.
pub fn prune(
    folder: &Path,
    verifier: &Verifier,
    keep: usize,
    now: Timestamp,
) -> Result<Vec<PathBuf>, BackupError> {
    let mut kept = list(folder, verifier)?;
    let latest = name_at(now);
    kept.retain(|one| one.name <= latest);
    let old = kept.len().saturating_sub(keep);
    let mut gone: Vec<PathBuf> =
        kept.into_iter().take(old).map(|one| folder.join(one.name)).collect();
    let before = name_at(Timestamp(now.0.saturating_sub(UNFINISHED)));
    let unfinished = names(folder)?.into_iter().filter(|name| *name < before);
    let unfinished = unfinished.map(|name| folder.join(name));
    gone.extend(unfinished.filter(|one| matches!(one.join(MANIFEST).try_exists(), Ok(false))));
    for one in &gone {
        // Without a manifest it is no backup any more, however far this comes.
        match fs::remove_file(one.join(MANIFEST)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            removed => removed.map_err(BackupError::at(one))?,
        }
        fs::remove_dir_all(one).map_err(BackupError::at(one))?;
    }
    Ok(gone)
}
