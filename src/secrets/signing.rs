//! The file of the keys that sign tokens: one `kid:base64` on each line. The first signs, all verify.

use super::{Secret, SecretError, at, key_bytes, read};
use crate::os::random_bytes;
use crate::private_file::{self, Owner};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use iptunnel_domain::Timestamp;
use std::fmt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// One line of the file.
#[derive(Clone)]
pub struct SigningSecret {
    /// The name of the key.
    pub kid: String,
    /// The bytes of the key: a secret.
    pub bytes: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningSecret({})", self.kid)
    }
}

impl SigningSecret {
    /// Makes a key that was made at `at`, in seconds since 1970. Its name says so, and a random end
    /// tells it from the keys of other servers.
    fn made_at(at: u64) -> Result<Self, SecretError> {
        let end = u16::from_be_bytes(random_bytes::<2>()?);
        Ok(Self { kid: format!("k-{at}-{end:04x}"), bytes: Zeroizing::new(random_bytes::<32>()?) })
    }

    /// Returns when the key was made. `None` for one that was named by hand, or by a program that did not
    /// write the time into names.
    fn age_mark(&self) -> Option<u64> {
        self.kid.strip_prefix("k-")?.split_once('-')?.0.parse().ok()
    }
}

/// The content of the first file, with one key.
pub(super) fn first(now: Timestamp) -> Result<Zeroizing<String>, SecretError> {
    Ok(text_of(&[SigningSecret::made_at(now.0)?]))
}

fn text_of(keys: &[SigningSecret]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::new());
    for key in keys {
        text.push_str(&key.kid);
        text.push(':');
        text.push_str(&Zeroizing::new(STANDARD.encode(*key.bytes)));
        text.push('\n');
    }
    text
}

/// The keys in the file. The first one signs, all of them verify.
#[derive(Clone, Debug)]
pub struct SigningFile {
    path: PathBuf,
    keys: Vec<SigningSecret>,
}

/// The outcome of [`SigningFile::promote`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Promoted {
    /// The key with this name signs from now on.
    Now(String),
    /// The key with this name signed already, and nothing has changed.
    Already(String),
}

impl SigningFile {
    /// Reads the keys.
    ///
    /// # Errors
    /// The file is missing or cannot be read, or a line is not `kid:base64`, or two keys have the same name.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        let text = read(Secret::SigningKeys, path)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let keys = lines
            .enumerate()
            .map(|(number, line)| {
                parse_line(line).ok_or_else(|| {
                    let problem = format!(
                        "line {} must be kid:base64 with 32 bytes, without quotes; correct it, or \
                         restore the file from a backup",
                        number + 1
                    );
                    SecretError::content(path, problem)
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut names: Vec<&str> = keys.iter().map(|key| key.kid.as_str()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| matches!(pair, [one, other] if one == other)) {
            let problem = "two keys have the same name; rename or remove one of them";
            return Err(SecretError::content(path, problem));
        }
        Ok(Self { path: path.to_owned(), keys })
    }

    /// Returns the keys, the signing key first.
    pub fn keys(&self) -> &[SigningSecret] {
        &self.keys
    }

    /// Adds a new key that verifies but does not sign yet, and returns its name.
    ///
    /// # Errors
    /// The operating system gives no random bytes, or the file cannot be written.
    pub fn add(&mut self, now: Timestamp) -> Result<String, SecretError> {
        // The newest key must be told from the others, also if the clock was ahead once.
        let newest = self.newest().and_then(SigningSecret::age_mark);
        let at = newest.map_or(now.0, |newest| now.0.max(newest.saturating_add(1)));
        let key = SigningSecret::made_at(at)?;
        let kid = key.kid.clone();
        self.keys.push(key);
        self.save()?;
        Ok(kid)
    }

    fn newest(&self) -> Option<&SigningSecret> {
        self.keys.iter().filter(|key| key.age_mark().is_some()).max_by_key(|key| key.age_mark())
    }

    /// Makes the named key, or else the newest one, the signing key. Repeated, it changes nothing.
    ///
    /// # Errors
    /// No key has that name, the names do not say which key is the newest, or the file cannot be written.
    pub fn promote(&mut self, kid: Option<&str>) -> Result<Promoted, SecretError> {
        let no = |problem: &str| SecretError::content(&self.path, problem);
        let kid = match (kid, self.newest(), self.keys.as_slice()) {
            (Some(kid), ..) => kid.to_owned(),
            (None, Some(newest), _) => newest.kid.clone(),
            (None, None, [only]) => only.kid.clone(),
            (None, None, _) => {
                return Err(no(
                    "the names of the keys do not say which is the newest; name the key that \
                               is to sign, `keys list` shows them",
                ));
            }
        };
        let Some(place) = self.keys.iter().position(|key| key.kid == kid) else {
            return Err(no("no key has that name; `keys list` shows the names"));
        };
        if place == 0 {
            return Ok(Promoted::Already(kid));
        }
        let key = self.keys.remove(place);
        self.keys.insert(0, key);
        self.save()?;
        Ok(Promoted::Now(kid))
    }

    /// Removes the named key, or all keys except the signing key. Returns the names of the removed keys.
    ///
    /// # Errors
    /// The named key is the signing key or does not exist, or the file cannot be written.
    pub fn prune(&mut self, kid: Option<&str>) -> Result<Vec<String>, SecretError> {
        let signing = self.keys.first().map(|key| key.kid.clone()).unwrap_or_default();
        if let Some(kid) = kid {
            if kid == signing {
                return Err(SecretError::content(
                    &self.path,
                    "that key is the signing key; promote another one first",
                ));
            }
            if !self.keys.iter().any(|key| key.kid == kid) {
                return Err(SecretError::content(
                    &self.path,
                    "no key has that name; `keys list` shows the names",
                ));
            }
        }
        let goes = |key: &SigningSecret| match kid {
            Some(kid) => key.kid == kid,
            None => key.kid != signing,
        };
        let dropped: Vec<String> =
            self.keys.iter().filter(|key| goes(key)).map(|key| key.kid.clone()).collect();
        if !dropped.is_empty() {
            self.keys.retain(|key| !goes(key));
            self.save()?;
        }
        Ok(dropped)
    }

    fn save(&self) -> Result<(), SecretError> {
        private_file::replace(&self.path, text_of(&self.keys).as_bytes(), Owner::Stays)
            .and_then(|()| private_file::sync_folder_of(&self.path))
            .map_err(at(&self.path))
    }
}

fn parse_line(line: &str) -> Option<SigningSecret> {
    let (kid, key) = line.split_once(':')?;
    let well_named = (1..=32).contains(&kid.len())
        && kid.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    let bytes = key_bytes(key.trim())?;
    well_named.then(|| SigningSecret { kid: kid.to_owned(), bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const NOW: Timestamp = Timestamp(1_800_000_000);

    fn file() -> (tempfile::TempDir, PathBuf, SigningFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signing.keys");
        fs::write(&path, first(NOW).unwrap().as_bytes()).unwrap();
        let file = SigningFile::read(&path).unwrap();
        (folder, path, file)
    }

    #[test]
    fn keys_are_added_promoted_and_pruned_without_ever_leaving_none_to_sign() {
        let (_folder, path, mut file) = file();
        let first = file.keys()[0].kid.clone();
        let second = file.add(NOW).unwrap();
        assert_eq!(SigningFile::read(&path).unwrap().keys()[0].kid, first);
        assert_eq!(file.promote(None).unwrap(), Promoted::Now(second.clone()));
        assert_eq!(SigningFile::read(&path).unwrap().keys()[0].kid, second);
        assert!(file.prune(Some(&second)).is_err());
        assert!(file.promote(Some("nobody")).is_err());
        assert_eq!(file.prune(None).unwrap(), [first]);
        assert_eq!(SigningFile::read(&path).unwrap().keys().len(), 1);
    }

    #[test]
    fn two_keys_of_one_name_are_refused() {
        let (_folder, path, file) = file();
        let line = format!("k1:{}\n", STANDARD.encode(*file.keys()[0].bytes));
        std::fs::write(&path, line.repeat(2)).unwrap();
        let error = SigningFile::read(&path).unwrap_err().to_string();
        assert!(error.contains("two keys have the same name"), "{error}");
    }

    #[test]
    fn a_promotion_that_is_repeated_does_not_go_back_to_the_old_key() {
        let (_folder, path, mut file) = file();
        // The clock may have been ahead when the first key was made.
        let newest = file.add(Timestamp(5)).unwrap();
        assert_eq!(file.promote(None).unwrap(), Promoted::Now(newest.clone()));
        let mut again = SigningFile::read(&path).unwrap();
        assert_eq!(again.promote(None).unwrap(), Promoted::Already(newest.clone()));
        assert_eq!(SigningFile::read(&path).unwrap().keys()[0].kid, newest);
    }

    #[test]
    fn the_newest_key_is_never_guessed_among_keys_whose_names_do_not_say() {
        let (_folder, path, mut file) = file();
        let old = |name: &str| format!("{name}:{}\n", STANDARD.encode(*file.keys()[0].bytes));
        let (a, b) = (old("k00000001"), old("k00000002"));
        fs::write(&path, format!("{a}{b}")).unwrap();
        let mut undated = SigningFile::read(&path).unwrap();
        assert!(undated.promote(None).unwrap_err().to_string().contains("name the key"));
        let added = undated.add(NOW).unwrap();
        assert_eq!(undated.promote(None).unwrap(), Promoted::Now(added));
        fs::write(&path, a).unwrap();
        file = SigningFile::read(&path).unwrap();
        assert_eq!(file.promote(None).unwrap(), Promoted::Already("k00000001".into()));
    }

    #[test]
    fn a_broken_line_is_named_without_showing_what_it_holds() {
        let (_folder, path, _) = file();
        fs::write(&path, "k1:c2VjcmV0\n").unwrap();
        let error = SigningFile::read(&path).unwrap_err().to_string();
        assert!(error.contains("line 1") && !error.contains("c2VjcmV0"), "{error}");
        fs::write(&path, " \n").unwrap();
        assert!(SigningFile::read(&path).unwrap_err().to_string().contains("empty"));
    }

    #[test]
    fn a_file_saved_by_another_system_is_read() {
        let (_folder, path, file) = file();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("\u{feff}{}\r\n\r\n", text.trim())).unwrap();
        assert_eq!(SigningFile::read(&path).unwrap().keys()[0].kid, file.keys()[0].kid);
    }
}
