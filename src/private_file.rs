//! Files that only the server's user reads: how they are created, read and replaced.
//!
//! "There is no such file" and "nobody can tell" are different answers. A caller that makes what is
//! missing must never take the second for the first.

use nix::sys::statvfs::{FsFlags, statvfs};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Read and write for the owner.
const PRIVATE: u32 = 0o600;
/// What a replaced file may keep of its mode: whoever could read it still can, perhaps the server itself.
const KEPT: u32 = 0o644;
/// What is too much: a group may write, or everybody may do something.
const LOOSE: u32 = 0o027;
/// What is too much for a folder: whoever writes in it can put other files in the place of ours.
const OPEN: u32 = 0o022;

/// Returns `path` with `ending` added to the name of the file.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// The files of a server that stand beside its store, each with the ending of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// The journal of an embedded store.
    Journal,
    /// How much of the store was acknowledged.
    Mark,
    /// The signed heads of the audit log.
    Heads,
    /// The socket for the command line.
    Socket,
    /// The sessions of the console.
    Sessions,
    /// The figures of the console's charts.
    Charts,
    /// A store that is being restored.
    Draft,
}

impl Beside {
    /// Returns the path of this file for the store at `store`.
    pub fn of(self, store: &Path) -> PathBuf {
        beside(
            store,
            match self {
                Self::Journal => ".journal",
                Self::Mark => ".mark",
                Self::Heads => ".heads",
                Self::Socket => ".sock",
                Self::Sessions => ".sessions",
                Self::Charts => ".charts",
                Self::Draft => ".restoring",
            },
        )
    }
}

/// Returns the folder that holds `path`.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Checks that the disk on which `path` is, or will be, takes changes.
///
/// # Errors
/// The disk is read-only.
pub fn check_disk_of(path: &Path) -> io::Result<()> {
    let folders = path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty());
    let folder = folders.into_iter().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    match statvfs(folder) {
        Ok(disk) if disk.flags().contains(FsFlags::ST_RDONLY) => {
            Err(ErrorKind::ReadOnlyFilesystem.into())
        }
        // Where nobody can tell, the start does.
        _ => Ok(()),
    }
}

/// Returns the bytes that this user may still write on the disk of a folder.
///
/// # Errors
/// Those of the file system.
pub fn free_space(folder: &Path) -> io::Result<u64> {
    Ok(room_of(folder)?.0)
}

/// Returns the bytes that this user may still write on the disk of a folder, and the size of the disk.
///
/// # Errors
/// Those of the file system.
pub fn room_of(folder: &Path) -> io::Result<(u64, u64)> {
    let disk = statvfs(folder)?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.fragment_size());
    Ok((bytes(disk.blocks_available()), bytes(disk.blocks())))
}

/// Locks the folder that holds a file, so that of several processes that read, change and replace the
/// file one comes after the other. Waits for its turn. The lock ends with the returned value, and with
/// the process.
///
/// # Errors
/// Those of the file system.
pub fn lock_folder_of(path: &Path) -> io::Result<File> {
    // The file itself is replaced under its name, and may be a link to another folder.
    let path = fs::canonicalize(path)?;
    let folder = File::open(folder_of(&path))?;
    folder.lock()?;
    Ok(folder)
}

/// Creates the folder that holds `path`, with mode 0700, if it does not exist.
///
/// # Errors
/// Those of the file system.
pub fn make_folder_of(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).recursive(true).create(folder_of(path))
}

/// Syncs the folder of `path`, so that a new name in it survives a power cut.
///
/// # Errors
/// Those of the file system.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// Returns whether the file exists. Follows links.
///
/// # Errors
/// Nobody can tell, or `path` is no regular file, or a link to a file that does not exist.
pub fn exists(path: &Path) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(ErrorKind::IsADirectory.into()),
        // Reading a pipe would wait for ever.
        Ok(found) if !found.is_file() => Err(io::Error::other("it is not a regular file")),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => match fs::symlink_metadata(path) {
            Ok(_) => Err(io::Error::other("it is a link to a file that does not exist")),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    }
}

/// Returns the content of a file, or `None` if it does not exist.
///
/// # Errors
/// As [`exists`], and those of reading.
pub fn read(path: &Path) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    Ok(if exists(path)? { Some(Zeroizing::new(fs::read(path)?)) } else { None })
}

/// Returns the mode of a file, as `ls` counts it, if more people may use the file than should.
///
/// # Errors
/// Those of the file system.
pub fn loose_mode(path: &Path) -> io::Result<Option<String>> {
    let mode = fs::metadata(path)?.mode();
    Ok((mode & LOOSE != 0).then(|| format!("{:04o}", mode & 0o7777)))
}

/// Returns the folder that holds `path` and its mode, if others may write in it. `None` also if there is no
/// such folder.
pub fn open_folder_of(path: &Path) -> Option<(PathBuf, String)> {
    let folder = fs::canonicalize(folder_of(path)).ok()?;
    let mode = fs::metadata(&folder).ok()?.mode();
    (mode & OPEN != 0).then(|| (folder, format!("{:04o}", mode & 0o7777)))
}

/// What changes when a file changes: device, file, size, and the times of both changes.
pub type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

/// Returns the stamp of a file.
pub fn stamp(file: &fs::Metadata) -> Stamp {
    let modified = (file.mtime(), file.mtime_nsec());
    (file.dev(), file.ino(), file.size(), modified, (file.ctime(), file.ctime_nsec()))
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(path)
}

/// Creates a file with mode 0600, for the owner of its folder. It is on disk when this returns.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] if there is anything at `path`; else those of the file system. Then
/// nothing is left.
pub fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = new_file(path)?;
    give_to_owner_of_folder(&file, path);
    let written = file.write_all(content).and_then(|()| file.sync_all());
    let written = written.and_then(|()| sync_folder_of(path));
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}

/// Who owns a replaced file, and who may read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Its owner of before, and whoever could read it before.
    Stays,
    /// Its owner of before if this process may give files away, else the user of this process. Nobody
    /// else may read it.
    MayChange,
}

/// Replaces the content of a file, or creates the file with mode 0600. A link stays a link, and the
/// file behind it is replaced. A new file belongs to the owner of its folder, so that what root makes for
/// the server is the server's.
///
/// After a power cut there is either the old content or the new one. Where the folder does not let
/// files be exchanged, such as for a file that is mounted by itself, the file is written in place:
/// then a power cut may leave a part of both.
///
/// # Errors
/// Those of the file system. No draft is left behind.
pub fn replace(path: &Path, content: &[u8], owner: Owner) -> io::Result<()> {
    let is_there = exists(path)?;
    let path = if is_there { fs::canonicalize(path)? } else { path.to_owned() };
    match exchange(&path, content, owner) {
        Err(error) if is_there && is_refused_by_folder(&error) => overwrite(&path, content),
        exchanged => exchanged,
    }
}

/// Removes a file for good. There may be none.
///
/// # Errors
/// Those of the file system.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| sync_folder_of(path)),
    }
}

fn is_refused_by_folder(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ResourceBusy
            | ErrorKind::CrossesDevices
            | ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
    )
}

/// Writes a draft beside the file, and renames it to the file.
fn exchange(path: &Path, content: &[u8], owner: Owner) -> io::Result<()> {
    let draft = beside(path, ".new");
    // One that an interrupted replacement has left may have any mode.
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let exchanged =
        write_draft(&draft, path, content, owner).and_then(|()| fs::rename(&draft, path));
    if exchanged.is_err() {
        let _ = fs::remove_file(&draft);
    }
    exchanged
}

fn write_draft(draft: &Path, path: &Path, content: &[u8], owner: Owner) -> io::Result<()> {
    let mut file = new_file(draft)?;
    match fs::metadata(path) {
        Ok(before) => {
            let given = give_to(&file, &before);
            if owner == Owner::Stays {
                given?;
                file.set_permissions(Permissions::from_mode(before.mode() & KEPT | PRIVATE))?;
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            give_to_owner_of_folder(&file, path);
        }
        Err(error) => return Err(error),
    }
    file.write_all(content)?;
    file.sync_all()
}

/// Gives `file` the owner and the group of `like`.
fn give_to(file: &File, like: &fs::Metadata) -> io::Result<()> {
    let own = file.metadata()?;
    if (own.uid(), own.gid()) == (like.uid(), like.gid()) {
        return Ok(());
    }
    fchown(file, Some(like.uid()), Some(like.gid()))
}

/// Gives a new file at `path` to the owner of its folder: what root makes for the server is the server's.
/// Only root may give files away, and only root has to.
pub fn give_to_owner_of_folder(file: &File, path: &Path) {
    let _ = fs::metadata(folder_of(path)).and_then(|folder| give_to(file, &folder));
}

fn overwrite(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(content)?;
    file.set_len(content.len() as u64)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_that_others_may_write_in_is_named_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        for (mode, found) in
            [(0o700, None), (0o755, None), (0o777, Some("0777")), (0o770, Some("0770"))]
        {
            fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
            assert_eq!(open_folder_of(&path).map(|(_, mode)| mode).as_deref(), found, "{mode:o}");
        }
        assert_eq!(open_folder_of(&folder.path().join("none/secret")), None);
    }

    #[test]
    fn a_pipe_is_refused_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let error = read(&path).unwrap_err();
        assert_eq!(error.to_string(), "it is not a regular file");
    }

    #[test]
    fn what_root_creates_belongs_to_the_owner_of_the_folder() {
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(folder.path(), Some(65_534), Some(65_534)).unwrap();
        let path = folder.path().join("secret");
        create(&path, b"one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().uid(), 65_534);
    }

    #[test]
    fn a_file_is_created_once_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/secret");
        make_folder_of(&path).unwrap();
        create(&path, b"one").unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(create(&path, b"two").unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
    }

    #[test]
    fn a_link_to_nothing_is_neither_a_file_nor_no_file_and_is_never_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        symlink(folder.path().join("gone"), &path).unwrap();
        assert!(exists(&path).unwrap_err().to_string().contains("link"));
        assert!(read(&path).is_err() && create(&path, b"new").is_err());
        assert!(replace(&path, b"new", Owner::MayChange).is_err());
        assert_eq!(names(folder.path()), ["secret"]);
    }

    #[test]
    fn a_path_through_a_file_is_an_error_and_not_a_missing_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(exists(&file.join("secret")).is_err());
        assert!(!exists(&folder.path().join("secret")).unwrap());
        assert!(exists(folder.path()).is_err());
    }

    #[test]
    fn a_replaced_file_stays_a_link_and_no_draft_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let (target, path) = (folder.path().join("target"), folder.path().join("secret"));
        fs::write(&target, "old and longer").unwrap();
        symlink("target", &path).unwrap();
        replace(&path, b"new", Owner::Stays).unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["secret", "target"]);
    }

    #[test]
    fn a_draft_that_was_left_behind_does_not_lend_its_mode_and_whoever_could_read_still_can() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        for (before, after) in [(0o600, 0o600), (0o640, 0o640), (0o666, 0o644), (0o400, 0o600)] {
            fs::write(&path, "old").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(before)).unwrap();
            let draft = beside(&path, ".new");
            fs::write(&draft, "left behind").unwrap();
            fs::set_permissions(&draft, Permissions::from_mode(0o666)).unwrap();
            replace(&path, b"new", Owner::Stays).unwrap();
            assert_eq!((mode(&path), names(folder.path()).len()), (after, 1), "{before:o}");
        }
        assert_eq!(loose_mode(&path).unwrap(), None);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        replace(&path, b"new", Owner::MayChange).unwrap();
        assert_eq!(mode(&path), 0o600);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(loose_mode(&path).unwrap().as_deref(), Some("0644"));
    }

    #[test]
    fn a_file_keeps_its_owner_and_a_new_one_gets_that_of_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "old").unwrap();
        // Only root can prepare this test.
        if std::os::unix::fs::chown(&path, Some(12_345), Some(54_321)).is_err() {
            return;
        }
        replace(&path, b"new", Owner::Stays).unwrap();
        let of = |path: &Path| fs::metadata(path).map(|file| (file.uid(), file.gid())).unwrap();
        assert_eq!(of(&path), (12_345, 54_321));
        std::os::unix::fs::chown(folder.path(), Some(12_345), Some(54_321)).unwrap();
        let other = folder.path().join("other");
        replace(&other, b"new", Owner::Stays).unwrap();
        assert_eq!((of(&other), mode(&other)), ((12_345, 54_321), 0o600));
    }

    #[test]
    fn a_file_is_overwritten_whole_where_it_cannot_be_exchanged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "old and longer").unwrap();
        overwrite(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(is_refused_by_folder(&ErrorKind::ResourceBusy.into()));
        assert!(!is_refused_by_folder(&ErrorKind::StorageFull.into()));
    }
}
