//! What the store must hold, kept beside it: a store that holds less has become an earlier one, from
//! a backup or by a failover, and a code that was spent may look unspent in it.
//!
//! The mark is some seconds behind, so what is lost of the last ones is not noticed; a backup is
//! older than that. Where the mark was restored with the store, only `iptunnel-server fence` helps.

use super::error::{StoreError, WatermarkError};
use super::files::beside;
use iptunnel_domain::Timestamp;
use iptunnel_storage::{CommitError, Store, Watermark};
use prometheus_client::metrics::gauge::Gauge;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often the mark is written, where it has moved.
const EVERY: Duration = Duration::from_secs(2);

/// The file of the mark of the store at `path`.
pub fn file_of(path: &Path) -> PathBuf {
    beside(path, ".mark")
}

/// The mark in a file; `None` where there is none yet.
fn read(path: &Path) -> Result<Option<Watermark>, WatermarkError> {
    let unreadable = |problem: String| WatermarkError { file: path.to_owned(), problem };
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(error.to_string())),
        Ok(text) => match text.parse() {
            Ok(mark) => Ok(Some(mark)),
            Err(()) if text.trim().is_empty() => Err(unreadable("the file is empty".into())),
            Err(()) => Err(unreadable("the file holds something else".into())),
        },
    }
}

/// Puts a mark in the place of the one before. It may get lost with the power, but not be torn: a
/// server does not start on a mark that it cannot read. Within an epoch its timeline only grows: a
/// database of an earlier one stays refused, whatever this server has seen since it started. A new
/// epoch may begin on a database that was restored to an earlier timeline.
fn write(path: &Path, mark: &Watermark) -> std::io::Result<()> {
    let before = read(path).ok().flatten().filter(|before| before.epoch >= mark.epoch);
    let before = before.map_or(0, |before| before.timeline);
    let mark = Watermark { timeline: mark.timeline.max(before), ..mark.clone() };
    let new = beside(path, ".new");
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = File::create(&new)?;
    file.write_all(mark.to_string().as_bytes())?;
    file.sync_data()?;
    std::fs::rename(&new, path)
}

/// Makes sure that what was renamed in the folder of `path` stays so.
fn sync_folder_of(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Holds a store against its mark: where it lacks what was acknowledged, a new epoch begins.
///
/// # Errors
/// Where the mark or the store cannot be read, or the store does not take a commit.
pub fn check(store: &dyn Store, path: &Path, now: Timestamp) -> Result<(), StoreError> {
    let Some(mark) = read(&file_of(path))? else { return Ok(()) };
    if !store.contains(&mark)? {
        begin_epoch(store, path, mark, "the store lacked what had been acknowledged", now)
            .map_err(StoreError::Epoch)?;
    }
    Ok(())
}

/// Lets a new epoch begin, whatever the store holds.
///
/// # Errors
/// Where the store does not take a commit.
pub fn fence(store: &dyn Store, path: &Path, now: Timestamp) -> Result<u64, CommitError> {
    let known = read(&file_of(path)).ok().flatten();
    let present = store.watermark().unwrap_or_default();
    let known = known.unwrap_or_default();
    let epoch = known.epoch.max(present.epoch);
    let acknowledged = if known.process == present.process { known.acknowledged() } else { 0 };
    let last = Watermark { epoch, commits: acknowledged.max(present.commits), ..present };
    begin_epoch(store, path, last, "an operator has raised the epoch", now)
}

/// Lets the epoch after `last` begin. An embedded store voids what is unspent in many commits: until
/// the last of them its mark asks for more than it can hold, so that a start after an interruption
/// begins anew, and does not take for done what was begun.
fn begin_epoch(
    store: &dyn Store,
    path: &Path,
    last: Watermark,
    why: &str,
    now: Timestamp,
) -> Result<u64, CommitError> {
    if store.shared().is_none() {
        let unfinished = last.unfinished();
        // It must be there before the first of them is, also after a loss of power.
        write(&file_of(path), &unfinished)
            .and_then(|()| sync_folder_of(path))
            .map_err(|error| CommitError::Refused(error.to_string()))?;
    }
    let epoch = store.begin_epoch(&last, why, now)?;
    keep_now(store, path);
    Ok(epoch)
}

/// Writes the mark; `None` where the store is closed, which then has none to tell.
pub fn keep_now(store: &dyn Store, path: &Path) -> Option<Watermark> {
    keep_moved(store, path, None)
}

/// The same where it is another one than the `last`.
fn keep_moved(store: &dyn Store, path: &Path, last: Option<&Watermark>) -> Option<Watermark> {
    let (file, mark) = (file_of(path), store.watermark()?);
    if last != Some(&mark)
        && let Err(error) = write(&file, &mark)
    {
        tracing::error!(file = %file.display(), %error, "the mark of the store cannot be written");
    }
    Some(mark)
}

/// Writes the mark for as long as the server runs, and shows the epoch.
pub async fn keep(store: Arc<dyn Store>, path: PathBuf, epoch: Gauge) {
    let mut last = None;
    loop {
        let (store, path, before) = (Arc::clone(&store), path.clone(), last.clone());
        let kept = move || keep_moved(&*store, &path, before.as_ref());
        if let Ok(Some(mark)) = actix_web::web::block(kept).await {
            epoch.set(mark.epoch.cast_signed());
            last = Some(mark);
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeline_of_a_mark_never_goes_down_within_an_epoch() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.mark");
        let mark = |commits, timeline| Watermark {
            commits,
            timeline,
            process: "p".into(),
            ..Watermark::default()
        };
        for (written, found) in [(mark(1, 3), 3), (mark(2, 0), 3), (mark(3, 4), 4)] {
            write(&file, &written).unwrap();
            assert_eq!(read(&file).unwrap(), Some(Watermark { timeline: found, ..written }));
        }
        // On a database that was restored.
        let later = Watermark { epoch: 1, ..mark(4, 2) };
        write(&file, &later).unwrap();
        assert_eq!(read(&file).unwrap(), Some(later));
    }

    #[test]
    fn a_mark_that_cannot_be_read_is_named_and_what_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.mark");
        assert_eq!(read(&file).unwrap(), None);
        for (text, problem) in [("", "empty"), (" \n", "empty"), ("nonsense", "something else")] {
            std::fs::write(&file, text).unwrap();
            let error = read(&file).unwrap_err().to_string();
            for words in ["x.mark", problem, "iptunnel-server fence"] {
                assert!(error.contains(words), "{error}");
            }
        }
        // What cannot be looked at is not said to be missing.
        assert!(read(folder.path()).is_err());
    }
}
