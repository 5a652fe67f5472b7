//! The secrets on disk: signing keys, lookup key and master token. The first start creates them in
//! files of mode 0600. They are never logged and never shown, except the master token, once.

use crate::os::{NoRandomness, random_bytes};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use iptunnel_domain::lookup::LookupKey;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The reasons why a secret cannot be read or created.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file system returned an error.
    #[error(
        "the secret file {path} cannot be read or written: {source}; check its owner and mode, and those of its folder"
    )]
    Io {
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The content of the file is invalid.
    #[error("{path}: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, without any of the content.
        problem: String,
    },
    /// No key could be created.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

impl SecretError {
    fn content(path: &Path, problem: impl Into<String>) -> Self {
        Self::Content { path: path.to_owned(), problem: problem.into() }
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> SecretError + '_ {
    move |source| SecretError::Io { path: path.to_owned(), source }
}

/// Creates the folder that holds `path`, with mode 0700.
///
/// # Errors
/// The errors of the file system.
pub fn make_folder_of(path: &Path) -> Result<(), SecretError> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.exists() => {
            let mut builder = fs::DirBuilder::new();
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.recursive(true).create(folder).map_err(at(folder))
        }
        _ => Ok(()),
    }
}

/// Reads a file of secrets, or returns `None` if it does not exist.
fn read(path: &Path) -> Result<Option<Zeroizing<String>>, SecretError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path)(error)),
    }
}

/// Replaces a file of secrets atomically: writes a new file beside it, syncs it and renames it.
fn write(path: &Path, text: &str) -> Result<(), SecretError> {
    make_folder_of(path)?;
    let draft = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .map_err(at(&draft))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(at(&draft))?;
    fs::rename(&draft, path).map_err(at(path))?;
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => {
            fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(path))
        }
        _ => Ok(()),
    }
}

/// Returns the lookup key, and creates it if its file does not exist.
///
/// # Errors
/// The file cannot be read or written, or does not hold 32 bytes in base64.
pub fn lookup_key(path: &Path) -> Result<LookupKey, SecretError> {
    let bytes = match read(path)? {
        Some(text) => key_bytes(text.trim()).ok_or_else(|| {
            SecretError::content(
                path,
                "the file must hold 32 bytes in base64; restore it from a backup",
            )
        })?,
        None => {
            let bytes = Zeroizing::new(random_bytes::<{ LookupKey::BYTES }>()?);
            write(path, &format!("{}\n", STANDARD.encode(*bytes)))?;
            bytes
        }
    };
    Ok(LookupKey::new(&bytes))
}

fn key_bytes(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let bytes = Zeroizing::new(STANDARD.decode(text).ok()?);
    <[u8; 32]>::try_from(bytes.as_slice()).ok().map(Zeroizing::new)
}

/// The operators' token.
pub struct MasterToken {
    /// The token: a secret.
    pub token: Zeroizing<String>,
    /// Whether the token was just created, so that it must be shown once.
    pub is_new: bool,
}

/// Returns the master token, and creates it if its file does not exist.
///
/// # Errors
/// The file cannot be read or written, or holds fewer than 16 characters.
pub fn master_token(path: &Path) -> Result<MasterToken, SecretError> {
    if let Some(text) = read(path)? {
        let token = Zeroizing::new(text.trim().to_owned());
        return if token.len() >= 16 {
            Ok(MasterToken { token, is_new: false })
        } else {
            Err(SecretError::content(
                path,
                "the file must hold a token of at least 16 characters; write a longer one, or remove the file: \
                 the server creates a new token",
            ))
        };
    }
    let token = Zeroizing::new(URL_SAFE_NO_PAD.encode(random_bytes::<32>()?));
    write(path, &format!("{}\n", *token))?;
    Ok(MasterToken { token, is_new: true })
}

/// One line of the file of signing keys.
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

/// The keys in the file of signing keys. The first one signs, all of them verify.
#[derive(Clone, Debug)]
pub struct SigningFile {
    path: PathBuf,
    keys: Vec<SigningSecret>,
}

impl SigningFile {
    /// Reads the keys.
    ///
    /// # Errors
    /// The file is missing or cannot be read, or a line is not `kid:base64`.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        let text = read(path)?.ok_or_else(|| {
            SecretError::content(path, "the file does not exist; restore it from a backup")
        })?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let keys = lines
            .enumerate()
            .map(|(number, line)| {
                parse_line(line).ok_or_else(|| {
                    let problem = format!("line {} must be kid:base64 with 32 bytes; correct it, or restore the file from a backup", number + 1);
                    SecretError::content(path, problem)
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            return Err(SecretError::content(
                path,
                "the file holds no key; restore it from a backup, or remove it: the server creates a new key",
            ));
        }
        Ok(Self { path: path.to_owned(), keys })
    }

    /// Reads the keys, and first creates the file with one key if it does not exist.
    ///
    /// # Errors
    /// As [`Self::read`], or the file cannot be written.
    pub fn read_or_make(path: &Path) -> Result<Self, SecretError> {
        if !path.exists() {
            let mut file = Self { path: path.to_owned(), keys: Vec::new() };
            file.add()?;
        }
        Self::read(path)
    }

    /// Returns the keys, the signing key first.
    pub fn keys(&self) -> &[SigningSecret] {
        &self.keys
    }

    /// Adds a new key that verifies but does not sign yet, and returns its name.
    ///
    /// # Errors
    /// The operating system gives no random bytes, or the file cannot be written.
    pub fn add(&mut self) -> Result<String, SecretError> {
        let name = random_bytes::<4>()?;
        let kid = format!("k{:08x}", u32::from_be_bytes(name));
        let bytes = Zeroizing::new(random_bytes::<32>()?);
        self.keys.push(SigningSecret { kid: kid.clone(), bytes });
        self.save()?;
        Ok(kid)
    }

    /// Makes the named key, or else the key added last, the signing key. Returns its name.
    ///
    /// # Errors
    /// No key has that name, or the file cannot be written.
    pub fn promote(&mut self, kid: Option<&str>) -> Result<String, SecretError> {
        let place = match kid {
            None => self.keys.len().checked_sub(1),
            Some(kid) => self.keys.iter().position(|key| key.kid == kid),
        };
        let Some(place) = place else {
            return Err(SecretError::content(
                &self.path,
                "no key has that name; `keys list` shows the names",
            ));
        };
        let key = self.keys.remove(place);
        let kid = key.kid.clone();
        self.keys.insert(0, key);
        self.save()?;
        Ok(kid)
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
        let dropped = self.keys.iter().filter(|key| goes(key)).map(|key| key.kid.clone()).collect();
        self.keys.retain(|key| !goes(key));
        self.save()?;
        Ok(dropped)
    }

    fn save(&self) -> Result<(), SecretError> {
        let mut text = Zeroizing::new(String::new());
        for key in &self.keys {
            text.push_str(&key.kid);
            text.push(':');
            text.push_str(&Zeroizing::new(STANDARD.encode(*key.bytes)));
            text.push('\n');
        }
        write(&self.path, &text)
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
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn secrets_are_made_once_readable_for_their_owner_alone_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/master.token");
        let made = master_token(&path).unwrap();
        assert!(made.is_new && made.token.len() >= 32);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = master_token(&path).unwrap();
        assert!(!again.is_new);
        assert_eq!(*again.token, *made.token);
    }

    #[test]
    fn keys_are_added_promoted_and_pruned_without_ever_leaving_none_to_sign() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signing.keys");
        let mut file = SigningFile::read_or_make(&path).unwrap();
        let first = file.keys()[0].kid.clone();
        let second = file.add().unwrap();
        assert_eq!(SigningFile::read(&path).unwrap().keys()[0].kid, first);
        assert_eq!(file.promote(None).unwrap(), second);
        assert_eq!(SigningFile::read(&path).unwrap().keys()[0].kid, second);
        assert!(file.prune(Some(&second)).is_err());
        assert!(file.promote(Some("nobody")).is_err());
        assert_eq!(file.prune(None).unwrap(), [first]);
        assert_eq!(SigningFile::read(&path).unwrap().keys().len(), 1);
    }

    #[test]
    fn a_broken_file_is_named_without_showing_what_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signing.keys");
        fs::write(&path, "k1:c2VjcmV0\n").unwrap();
        let error = SigningFile::read(&path).unwrap_err().to_string();
        assert!(error.contains("line 1") && !error.contains("c2VjcmV0"), "{error}");
        fs::write(&path, "short\n").unwrap();
        assert!(master_token(&path).is_err());
        assert!(lookup_key(&path).is_err());
    }
}
