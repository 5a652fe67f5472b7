//! The mark file beside the store: it records the minimum that the store must hold. A store that holds
//! less was set back to an earlier state, by a backup or a failover, and a spent code may look unspent.
//!
//! The mark is a few seconds old, so a loss of the last seconds is not detected; a backup is older than
//! that. If the mark was restored together with the store, only `iptunnel-server fence` helps.

use super::error::{StoreError, WatermarkError};
use crate::private_file::{self, Beside, Owner, make_folder_of, sync_folder_of};
use iptunnel_domain::Timestamp;
use iptunnel_storage::{CommitError, Epochs, Store, Watermark};
use prometheus_client::metrics::gauge::Gauge;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The interval at which a changed mark is written.
const EVERY: Duration = Duration::from_secs(2);

/// Returns the path of the mark file of the store at `path`.
pub fn file_of(path: &Path) -> PathBuf {
    Beside::Mark.of(path)
}

/// Returns the mark of the store at `path`, or `None` if it has none.
///
/// # Errors
/// The file cannot be read, or does not hold a mark.
pub fn known(path: &Path) -> Result<Option<Watermark>, WatermarkError> {
    read(&file_of(path))
}

/// Reads the mark from a file. Returns `None` if the file does not exist.
fn read(path: &Path) -> Result<Option<Watermark>, WatermarkError> {
    let unreadable = |problem: String| WatermarkError { file: path.to_owned(), problem };
    let bytes = private_file::read(path).map_err(|error| unreadable(error.to_string()))?;
    let Some(bytes) = bytes else { return Ok(None) };
    let text = std::str::from_utf8(&bytes).unwrap_or("not text");
    match text.parse() {
        Ok(mark) => Ok(Some(mark)),
        Err(()) if text.trim().is_empty() => Err(unreadable("the file is empty".into())),
        Err(()) => {
            Err(unreadable("the content is not a mark: the file holds something else".into()))
        }
    }
}

/// Replaces the mark atomically. A power cut may lose the new mark, but never leaves a partial one: a
/// server does not start with an unreadable mark. Within an epoch the timeline only grows, so that a
/// database with an earlier timeline stays refused. A new epoch may begin on a database that was
/// restored to an earlier timeline.
fn write(path: &Path, mark: &Watermark) -> std::io::Result<()> {
    let before = read(path).ok().flatten().filter(|before| before.epoch >= mark.epoch);
    let before = before.map_or(0, |before| before.timeline);
    let mark = Watermark { timeline: mark.timeline.max(before), ..mark.clone() };
    make_folder_of(path)?;
    private_file::replace(path, mark.to_string().as_bytes(), Owner::MayChange)
}

/// Checks a store against its mark. If the store lacks acknowledged changes, a new epoch begins.
///
/// # Errors
/// The mark or the store cannot be read, or the store refuses a commit.
pub fn check(store: &dyn Store, path: &Path, now: Timestamp) -> Result<(), StoreError> {
    let Some(mark) = known(path)? else { return Ok(()) };
    if !store.contains(&mark)? {
        begin_epoch(store, path, mark, "the store lacked what had been acknowledged", now)
            .map_err(StoreError::Epoch)?;
    }
    Ok(())
}

/// Begins a new epoch unconditionally, and returns its number.
///
/// # Errors
/// The store refuses a commit.
pub fn fence(store: &dyn Store, path: &Path, now: Timestamp) -> Result<u64, CommitError> {
    begin_epoch(store, path, last_of(store, path), "an operator has raised the epoch", now)
}

/// Returns the last mark of a store, by the file and by the store itself.
pub fn last_of(store: &dyn Epochs, path: &Path) -> Watermark {
    // What cannot be read is replaced: this is how an operator mends it.
    let known = known(path).ok().flatten().unwrap_or_default();
    let present = store.watermark().unwrap_or_default();
    let epoch = known.epoch.max(present.epoch);
    let acknowledged = if known.process == present.process { known.acknowledged() } else { 0 };
    Watermark { epoch, commits: acknowledged.max(present.commits), ..present }
}

/// Writes a mark that demands more than an embedded store can hold, so that the next start begins the epoch
/// after `last`. It is on disk when this returns.
///
/// # Errors
/// It cannot be written.
pub fn demand_epoch(path: &Path, last: &Watermark) -> std::io::Result<()> {
    write(&file_of(path), &last.unfinished())?;
    sync_folder_of(path)
}

/// Begins the epoch after `last`. An embedded store needs many commits to void all unspent codes. Until
/// the last of them its mark requires more than the store can hold, so that a start after an
/// interruption begins the epoch again instead of treating it as complete.
///
/// # Errors
/// The store refuses a commit, or the mark cannot be written.
pub fn begin_epoch(
    store: &dyn Store,
    path: &Path,
    last: Watermark,
    why: &str,
    now: Timestamp,
) -> Result<u64, CommitError> {
    if store.shared().is_none() {
        // This mark must be on disk before the first of these commits, also after a power cut.
        demand_epoch(path, &last).map_err(|error| CommitError::Refused(error.to_string()))?;
    }
    let epoch = store.begin_epoch(&last, why, now)?;
    keep_now(store, path);
    Ok(epoch)
}

/// Writes the mark and returns it. Returns `None` if the store is closed.
pub fn keep_now(store: &dyn Epochs, path: &Path) -> Option<Watermark> {
    keep_moved(store, path, None)
}

/// Writes the mark if it differs from `last`.
fn keep_moved(store: &dyn Epochs, path: &Path, last: Option<&Watermark>) -> Option<Watermark> {
    let (file, mark) = (file_of(path), store.watermark()?);
    if last != Some(&mark)
        && let Err(error) = write(&file, &mark)
    {
        tracing::error!(file = %file.display(), %error, "the mark of the store cannot be written; the server tries again");
    }
    Some(mark)
}

/// Writes the mark for as long as the server runs, and sets the metric of the epoch.
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
        use std::os::unix::fs::MetadataExt;
        for (written, found) in [(mark(1, 3), 3), (mark(2, 0), 3), (mark(3, 4), 4)] {
            write(&file, &written).unwrap();
            assert_eq!(read(&file).unwrap(), Some(Watermark { timeline: found, ..written }));
        }
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        // The database was restored, and a new epoch began.
        let later = Watermark { epoch: 1, ..mark(4, 2) };
        write(&file, &later).unwrap();
        assert_eq!(read(&file).unwrap(), Some(later));
    }

    #[test]
    fn the_error_of_an_unreadable_mark_names_the_file_and_the_remedy() {
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
        // A path that cannot be read is an error, and not a missing mark.
        assert!(read(folder.path()).is_err());
    }
}
