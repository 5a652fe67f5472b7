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

/// The most backups in one second. One takes longer.
const MOST_OF_SECOND: u32 = 99;

/// Returns the name of a backup that is made now, such as `iptunnel-20260331T120500Z`. `-2` and so on follows
/// where that name is taken: by a backup of the same second, or of an hour that the clock has passed twice.
pub fn free_name(folder: &Path, now: Timestamp) -> String {
    let name = name_at(now);
    let others = (2..=MOST_OF_SECOND).map(|number| format!("{name}-{number}"));
    let mut all = std::iter::once(name.clone()).chain(others);
    // Where nobody can tell, the backup itself says why it cannot be made.
    let is_free = |name: &String| !matches!(folder.join(name).try_exists(), Ok(true));
    all.find(is_free).unwrap_or(name)
}

/// Returns the beginning of the names of backups that are made now.
pub fn name_at(now: Timestamp) -> String {
    let time: String =
        rfc3339(now).chars().take(19).filter(|char| !matches!(char, '-' | ':')).collect();
    format!("{PREFIX}{time}Z")
}

/// Whether the name is one that [`free_name`] makes.
fn is_ours(name: &str) -> bool {
    let Some((time, number)) = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('Z'))
    else {
        return false;
    };
    let number = number.strip_prefix('-').map_or(number.is_empty(), |number| {
        let is_other = |number| (2..=MOST_OF_SECOND).contains(&number);
        !number.starts_with('0') && number.parse().is_ok_and(is_other)
    });
    let time = time.len() == 15
        && time.bytes().enumerate().all(|(at, byte)| match at {
            8 => byte == b'T',
            _ => byte.is_ascii_digit(),
        });
    time && number
}

/// Returns what puts names in the order in which their backups were made: the time, and the number in it.
fn order(name: &str) -> (&str, u32) {
    let (time, number) = name.rsplit_once("Z-").unwrap_or((name.trim_end_matches('Z'), ""));
    (time, number.parse().unwrap_or(1))
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
    names.sort_unstable_by(|a, b| order(a).cmp(&order(b)));
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
    kept.retain(|one| order(&one.name).0 <= order(&latest).0);
    let old = kept.len().saturating_sub(keep);
    let mut gone: Vec<PathBuf> =
        kept.into_iter().take(old).map(|one| folder.join(one.name)).collect();
    let before = name_at(Timestamp(now.0.saturating_sub(UNFINISHED)));
    let unfinished = names(folder)?.into_iter();
    let unfinished = unfinished.filter(|name| order(name).0 < order(&before).0);
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
