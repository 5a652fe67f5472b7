//! Findings on a server's own files: the store, its mark and the secrets. Nothing is changed, and
//! "nobody can tell" is never taken for "it is not there".

use super::{files, watermark};
use crate::config::Config;
use crate::private_file;
use crate::secrets::{Secret, SecretError, check_one};
use iptunnel_storage::{Finding, Grade};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

const AS_THE_SERVER: &str =
    "run this command as the user of the server; if it is that user, correct the rights";

const CHECK_RIGHTS: &str = "check storage.path, its rights, and whether the disk is read-only; run this \
     command as the user of the server";

fn finding(grade: Grade, what: String, why: &'static str, mend: impl Into<String>) -> Finding {
    Finding { grade, what, why, mend: mend.into() }
}

/// Examines the files of a server. `has_store` says whether there is a store, or `None` if nobody can
/// tell.
pub fn own_files(config: &Config, has_store: Option<bool>) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        Secret::ALL.into_iter().map(|secret| of_secret(config, secret, has_store)).collect();
    if let Err(error) = watermark::known(&config.storage.path) {
        let why = "a server does not start with an unreadable mark";
        findings.push(finding(Grade::Stops, error.to_string(), why, AS_THE_SERVER));
    }
    findings.extend(little_room(config).map(|room| {
        let why = "a store on a full disk takes no commits, and its server is not ready";
        finding(Grade::Warns, room, why, "remove something, or use a larger disk")
    }));
    findings.extend(open_folders(config).into_iter().map(|(folder, mode)| {
        let folder = folder.display();
        let why =
            "whoever may write in the folder can put other files in the place of the server's";
        let what = format!("the folder {folder} has the mode {mode}");
        finding(Grade::Warns, what, why, format!("chmod go-w {folder}"))
    }));
    findings
}

/// Returns the folders of the store and of the secrets in which others may write, with their modes.
fn open_folders(config: &Config) -> BTreeMap<PathBuf, String> {
    let secrets = Secret::ALL.into_iter().map(|secret| secret.file(&config.auth));
    let files = secrets.chain([config.storage.path.as_path()]);
    files.filter_map(private_file::open_folder_of).collect()
}

/// Less than this part of a disk is little room: five percent.
const PART: u64 = 20;
/// But so many bytes are enough on any disk: a gibibyte. The store of a million servers takes less than half of
/// it.
const ENOUGH: u64 = 1 << 30;

const fn is_little((free, size): (u64, u64)) -> bool {
    free < ENOUGH && free < size / PART
}

/// Says how little room is left on the disk of the store's folder. `None` if there is enough, or if nobody can
/// tell.
pub fn little_room(config: &Config) -> Option<String> {
    let folder = private_file::folder_of(&config.storage.path);
    let (free, size) = private_file::room_of(folder).ok().filter(|room| is_little(*room))?;
    let mib = |bytes: u64| bytes >> 20;
    Some(format!(
        "the disk of {} has {} MiB left of {}",
        fs::canonicalize(folder).ok()?.display(),
        mib(free),
        mib(size)
    ))
}

/// Logs the folders in which others may write.
pub fn warn_of_open_folders(config: &Config) {
    for (folder, mode) in open_folders(config) {
        let folder = folder.display();
        tracing::warn!(%folder, mode, "others may write in a folder of the server; run chmod go-w on it");
    }
}

/// Examines an embedded store, and says whether there is one; `None` if nobody can tell. The store is
/// not opened: a running server has it open, and opening it would upgrade its format.
pub fn embedded_store(path: &Path) -> (Finding, Option<bool>) {
    let shown = path.display();
    let unusable = |what: String| {
        finding(Grade::Stops, what, "a server that starts here cannot use it", CHECK_RIGHTS)
    };
    let good = |words: &str| {
        let why = "the server itself syncs every commit to disk";
        finding(Grade::Good, format!("{shown} is {words}"), why, "")
    };
    match files::is_there_at(path) {
        Err(error) => (unusable(error.to_string()), None),
        Ok(false) => match private_file::check_disk_of(path) {
            Ok(()) => (good("where the store will be"), Some(false)),
            Err(error) => (unusable(format!("{shown} cannot be made: {error}")), Some(false)),
        },
        Ok(true) => match OpenOptions::new().read(true).write(true).open(path) {
            Ok(_) => (good("an embedded store"), Some(true)),
            Err(error) => (unusable(format!("{shown} cannot be written: {error}")), Some(true)),
        },
    }
}

fn of_secret(config: &Config, secret: Secret, has_store: Option<bool>) -> Finding {
    let path = secret.file(&config.auth);
    let shown = path.display();
    match check_one(secret, path) {
        Err(SecretError::Missing { .. }) if has_store == Some(false) => {
            let why = "the first start makes the secrets";
            finding(Grade::Good, format!("{shown} will be made"), why, "")
        }
        Err(error @ SecretError::Missing { .. }) => {
            let why = "a server starts without its secrets only if there is no store";
            let what = format!("{shown} does not exist");
            finding(Grade::Stops, what, why, error.to_string())
        }
        Err(error) => {
            let why = "a server does not start without this secret";
            let content = matches!(error, SecretError::Content { .. });
            let mend = if content { "correct the file" } else { AS_THE_SERVER };
            finding(Grade::Stops, error.to_string(), why, mend)
        }
        Ok(()) => of_mode(path),
    }
}

fn of_mode(path: &Path) -> Finding {
    let shown = path.display();
    let why = "whoever reads the secrets can act for the server";
    match private_file::loose_mode(path) {
        Ok(None) => finding(Grade::Good, format!("{shown} is for the server alone"), why, ""),
        Ok(Some(mode)) => {
            let what = format!("{shown} has the mode {mode}");
            finding(Grade::Warns, what, why, format!("chmod 0600 {shown}"))
        }
        Err(error) => finding(Grade::Warns, format!("{shown}: {error}"), why, AS_THE_SERVER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_room_is_less_than_a_twentieth_of_the_disk_and_less_than_a_gibibyte() {
        const MIB: u64 = 1 << 20;
        for (free, size, little) in [
            (1023, 100_000, true),
            (1024, 100_000, false),
            (101, 2000, false),
            (99, 2000, true),
            (0, 0, false),
        ] {
            assert_eq!(is_little((free * MIB, size * MIB)), little, "{free} of {size}");
        }
    }
}
