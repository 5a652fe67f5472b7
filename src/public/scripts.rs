//! The operator's files that this server hands out: the main stack's installer, and the payloads of
//! products.

use crate::config::Config;
use crate::private_file::{Stamp, open_folder_of, stamp};
use iptunnel_domain::hex::hex;
use iptunnel_storage::{Finding, Grade};
use nix::fcntl::OFlag;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// How scripts are sent.
pub const KIND: &str = "text/x-shellscript; charset=utf-8";
/// The largest script, in bytes. Each is kept in memory once.
const LARGEST: u64 = 4 << 20;

/// A script as it was read.
pub struct Script {
    stamp: Stamp,
    /// What is in the file.
    pub content: bytes::Bytes,
    /// The SHA-256 of the content.
    pub digest: [u8; 32],
}

impl Script {
    /// Returns the SHA-256 of the content in hexadecimal digits.
    pub fn hex_digest(&self) -> String {
        hex(&self.digest)
    }
}

/// Opens a regular file, perhaps through symbolic links. Does not wait for the other end of a pipe.
fn open(path: &Path) -> io::Result<(File, Stamp)> {
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if found.len() > LARGEST {
        return Err(io::Error::other(format!("it is larger than {LARGEST} bytes")));
    }
    Ok((file, stamp(&found)))
}

fn read(file: &File, before: Stamp) -> io::Result<Script> {
    let mut content = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut content)?;
    if content.len() as u64 != before.2 || stamp(&file.metadata()?) != before {
        return Err(io::Error::other("it is being written"));
    }
    let digest = Sha256::digest(&content).into();
    Ok(Script { stamp: before, content: content.into(), digest })
}

/// What is known of a file.
#[derive(Default)]
struct Known {
    script: Option<Arc<Script>>,
    /// The last problem, so that each is logged once. Empty: none.
    problem: String,
}

/// The scripts, each read again when its file has changed. The configuration names them, so they are few.
#[derive(Default)]
pub struct Scripts(Mutex<HashMap<PathBuf, Known>>);

impl Scripts {
    /// Returns the script in a file that `setting` names. Logs why it cannot be read. Blocks.
    pub fn get(&self, path: &Path, setting: &'static str) -> Option<Arc<Script>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.entry(path.to_owned()).or_default();
        let found = open(path).and_then(|(file, stamp)| match &known.script {
            Some(script) if script.stamp == stamp => Ok(Arc::clone(script)),
            _ => read(&file, stamp).map(Arc::new),
        });
        let problem = found.as_ref().err().map(ToString::to_string).unwrap_or_default();
        if known.problem != problem && !problem.is_empty() {
            let file = path.display();
            tracing::error!(%file, setting, problem, "a file of the operator cannot be sent");
        }
        *known = Known { script: found.ok(), problem };
        known.script.clone()
    }
}

/// Returns all files that the configuration names, with their settings.
fn named(config: &Config) -> Vec<(PathBuf, &'static str)> {
    let script = &config.installer.script;
    let script = (!script.as_os_str().is_empty()).then(|| (script.clone(), "installer.script"));
    let products = config.products.iter().filter_map(|one| config.installer.payload(&one.name));
    script.into_iter().chain(products.map(|file| (file, "installer.payloads"))).collect()
}

const WHY_READ: &str = "what cannot be read is not sent: without its payload a product's installer sets up check-ins alone";
const WHY_OPEN: &str = "installers run this file as root, and others could change it";

/// Examines the operator's files, for `doctor` and `check-config`. A server starts whatever they are.
pub fn examine(config: &Config) -> Vec<Finding> {
    let finding =
        |grade, what, why, mend: &str| Finding { grade, what, why, mend: mend.to_owned() };
    let mut findings = Vec::new();
    for (path, setting) in named(config) {
        let shown = path.display();
        let (grade, what, mend) = match open(&path) {
            Ok(_) => (Grade::Good, format!("{shown} can be sent"), ""),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let mend = "put the file there, for every product that has a payload";
                (Grade::Warns, format!("{shown}, which {setting} needs, does not exist"), mend)
            }
            Err(error) => {
                let mend =
                    "give the server's user the right to read the file and to look into its folder";
                (
                    Grade::Warns,
                    format!("{shown}, which {setting} needs, cannot be read: {error}"),
                    mend,
                )
            }
        };
        findings.push(finding(grade, what, WHY_READ, mend));
        let is_open = |found: Metadata| found.mode() & 0o022 != 0;
        if path.metadata().is_ok_and(is_open) {
            let what = format!("others may write the file {shown}");
            findings.push(finding(Grade::Warns, what, WHY_OPEN, &format!("chmod go-w {shown}")));
        } else if let Some((folder, mode)) = open_folder_of(&path).filter(|_| path.exists()) {
            let folder = folder.display();
            let what = format!("the folder {folder} of {shown} has the mode {mode}");
            findings.push(finding(Grade::Warns, what, WHY_OPEN, &format!("chmod go-w {folder}")));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn get(scripts: &Scripts, path: &Path) -> Option<Arc<Script>> {
        scripts.get(path, "installer.script")
    }

    #[test]
    fn a_changed_script_is_read_again_and_an_unchanged_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("install.sh");
        let scripts = Scripts::default();
        fs::write(&path, "one").unwrap();
        let first = get(&scripts, &path).unwrap();
        assert!(Arc::ptr_eq(&first, &get(&scripts, &path).unwrap()));
        fs::write(&path, "another").unwrap();
        let second = get(&scripts, &path).unwrap();
        assert_eq!((&first.content[..], &second.content[..]), (&b"one"[..], &b"another"[..]));
        assert_ne!(first.hex_digest(), second.hex_digest());
        fs::remove_file(&path).unwrap();
        assert!(get(&scripts, &path).is_none(), "what is gone is not sent from memory");
    }

    #[test]
    fn what_is_no_file_or_too_large_is_not_sent() {
        let folder = tempfile::tempdir().unwrap();
        let scripts = Scripts::default();
        let at = |name: &str| folder.path().join(name);
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        symlink(at("pipe"), at("link to a pipe")).unwrap();
        symlink(at("nowhere"), at("broken")).unwrap();
        for name in ["missing", "", "pipe", "link to a pipe", "broken"] {
            assert!(get(&scripts, &at(name)).is_none(), "{name}");
        }
        assert!(get(&scripts, Path::new("/dev/zero")).is_none());
        let path = at("large");
        File::create(&path).unwrap().set_len(LARGEST).unwrap();
        assert_eq!(get(&scripts, &path).unwrap().content.len() as u64, LARGEST);
        File::create(&path).unwrap().set_len(LARGEST + 1).unwrap();
        assert!(get(&scripts, &path).is_none());
        assert!(scripts.0.lock().unwrap()[&path].problem.contains("larger than"));
    }

    #[test]
    fn a_link_is_followed_and_its_new_end_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two, link] = ["1.sh", "2.sh", "slowdns.sh"].map(|name| folder.path().join(name));
        fs::write(&one, "one").unwrap();
        fs::write(&two, "two").unwrap();
        symlink(&one, &link).unwrap();
        let scripts = Scripts::default();
        assert_eq!(&get(&scripts, &link).unwrap().content[..], b"one");
        fs::remove_file(&link).unwrap();
        symlink(&two, &link).unwrap();
        assert_eq!(&get(&scripts, &link).unwrap().content[..], b"two");
    }

    #[test]
    fn doctor_says_what_cannot_be_sent_and_what_others_could_change() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("slowdns.sh");
        let flags = [("installer.payloads".to_owned(), folder.path().display().to_string())];
        let sources = Sources { file: None, env: Vec::new(), flags: flags.into() };
        let config = Config::load(&sources).unwrap();
        let told = || -> Vec<(Grade, String)> {
            examine(&config).into_iter().map(|finding| (finding.grade, finding.what)).collect()
        };
        assert!(matches!(&told()[..], [(Grade::Warns, what)] if what.contains("does not exist")));
        fs::create_dir(&file).unwrap();
        assert!(matches!(&told()[..], [(Grade::Warns, what)] if what.contains("not a regular")));
        fs::remove_dir(&file).unwrap();
        fs::write(&file, "exit 0\n").unwrap();
        assert!(matches!(&told()[..], [(Grade::Good, _)]), "{:?}", told());
        fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
        let open = told();
        assert!(
            matches!(&open[..], [_, (Grade::Warns, what)] if what.contains("others may write"))
        );
    }
}
