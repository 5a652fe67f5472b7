//! The secrets on disk: signing keys, lookup key and master token. They are made on the first start, in
//! files of mode 0600, and at no other time: a secret that is missing beside a store must be brought
//! back, since another one would open nothing. They are never logged and never shown, except the master
//! token, once.
//!
//! * [`signing`]: the file of the keys that sign tokens
//! * [`text`]: what is forgiven and what is refused in a file of secrets

pub mod signing;
mod text;

pub use signing::SigningFile;

use crate::config::Auth;
use crate::os::{NoRandomness, random_bytes};
use crate::private_file;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use iptunnel_domain::Timestamp;
use iptunnel_domain::lookup::LookupKey;
use std::io;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The fewest characters of a master token.
const SHORTEST: usize = 16;

/// The reasons why a secret cannot be read or created.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file system returned an error.
    #[error(
        "the secret file {} cannot be read or written: {source}; check its owner and mode, and those of its \
         folder",
        path.display()
    )]
    Io {
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The file does not exist.
    #[error("{}: {} does not exist. {}", secret.setting(), path.display(), secret.way_back())]
    Missing {
        /// The secret.
        secret: Secret,
        /// The file.
        path: PathBuf,
    },
    /// The content of the file is invalid.
    #[error("{}: {problem}", path.display())]
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

/// The secrets, each in a file of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secret {
    /// The key for hashing secrets before a lookup.
    LookupKey,
    /// The keys that sign tokens and cookies.
    SigningKeys,
    /// The operators' token.
    MasterToken,
}

impl Secret {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::LookupKey, Self::SigningKeys, Self::MasterToken];

    /// Returns the setting that names the file.
    pub const fn setting(self) -> &'static str {
        match self {
            Self::LookupKey => "auth.lookup_key_file",
            Self::SigningKeys => "auth.signing_key_file",
            Self::MasterToken => "auth.master_token_file",
        }
    }

    /// Returns the file.
    pub fn file(self, auth: &Auth) -> &Path {
        match self {
            Self::LookupKey => &auth.lookup_key_file,
            Self::SigningKeys => &auth.signing_key_file,
            Self::MasterToken => &auth.master_token_file,
        }
    }

    /// Returns how to bring the file back.
    const fn way_back(self) -> &'static str {
        match self {
            Self::LookupKey => {
                "Restore it from the backup of this store, or copy it from another server on the same \
                 database. Without it nothing in the store can be found, and no other key replaces it"
            }
            Self::SigningKeys => {
                "Restore it from a backup, or copy it from another server on the same database. If it is \
                 lost, write a new one: (umask 077; echo \"new:$(head -c 32 /dev/urandom | base64)\" > FILE). \
                 Tokens and cookies that the lost keys signed are void then"
            }
            Self::MasterToken => {
                "Restore it from a backup, or copy it from another server on the same database. If it is \
                 lost, write a new one: (umask 077; head -c 32 /dev/urandom | base64 > FILE)"
            }
        }
    }

    fn is_missing(self, auth: &Auth) -> Result<bool, SecretError> {
        let path = self.file(auth);
        private_file::exists(path).map(|exists| !exists).map_err(at(path))
    }

    /// Makes the secret, and its file. If another process has made the file meanwhile, that one stays.
    ///
    /// # Errors
    /// The file cannot be written, or the operating system gives no random bytes.
    pub fn make(self, auth: &Auth, now: Timestamp) -> Result<(), SecretError> {
        let path = self.file(auth);
        let text = match self {
            Self::LookupKey => {
                let bytes = Zeroizing::new(random_bytes::<{ LookupKey::BYTES }>()?);
                Zeroizing::new(format!("{}\n", STANDARD.encode(*bytes)))
            }
            Self::SigningKeys => signing::first(now)?,
            Self::MasterToken => {
                let bytes = Zeroizing::new(random_bytes::<32>()?);
                Zeroizing::new(format!("{}\n", URL_SAFE_NO_PAD.encode(*bytes)))
            }
        };
        private_file::make_folder_of(path).map_err(at(path))?;
        match private_file::create(path, text.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made.map_err(at(path)),
        }
    }
}

/// Returns the secrets whose files do not exist.
///
/// # Errors
/// Nobody can tell whether a file exists.
pub fn missing(auth: &Auth) -> Result<Vec<Secret>, SecretError> {
    let mut missing = Vec::new();
    for secret in Secret::ALL {
        if secret.is_missing(auth)? {
            missing.push(secret);
        }
    }
    Ok(missing)
}

/// Reads and checks all secrets whose files exist.
///
/// # Errors
/// One of them cannot be read, or is invalid.
pub fn check(auth: &Auth) -> Result<(), SecretError> {
    for secret in Secret::ALL {
        match check_one(secret, secret.file(auth)) {
            Err(SecretError::Missing { .. }) => {}
            checked => checked?,
        }
    }
    Ok(())
}

/// Reads and checks one secret.
///
/// # Errors
/// The file is missing, cannot be read, or is invalid.
pub fn check_one(secret: Secret, path: &Path) -> Result<(), SecretError> {
    match secret {
        Secret::LookupKey => lookup_key(path).map(drop),
        Secret::SigningKeys => SigningFile::read(path).map(drop),
        Secret::MasterToken => master_token(path).map(drop),
    }
}

/// Returns the files that more people may use than should, with their modes. Leaves out those that
/// cannot be looked at.
pub fn loose(auth: &Auth) -> Vec<(PathBuf, String)> {
    let files = Secret::ALL.map(|secret| secret.file(auth));
    let loose = |path: &Path| private_file::loose_mode(path).ok().flatten();
    files.into_iter().filter_map(|path| Some((path.to_owned(), loose(path)?))).collect()
}

/// Logs the files that more people may use than should.
pub fn warn_of_loose(auth: &Auth) {
    for (file, mode) in loose(auth) {
        let file = file.display();
        tracing::warn!(%file, mode, "others may read or change a file of secrets; run chmod 0600 on it");
    }
}

/// Reads a file of secrets as text.
fn read(secret: Secret, path: &Path) -> Result<Zeroizing<String>, SecretError> {
    let bytes = private_file::read(path).map_err(at(path))?;
    let bytes = bytes.ok_or_else(|| SecretError::Missing { secret, path: path.to_owned() })?;
    text::bare(&bytes).map_err(|problem| SecretError::content(path, problem))
}

/// Reads a file that holds one secret and nothing else.
fn read_one(secret: Secret, path: &Path) -> Result<Zeroizing<String>, SecretError> {
    let read = read(secret, path)?;
    text::check_one(&read).map_err(|problem| SecretError::content(path, problem))?;
    Ok(read)
}

/// Returns the lookup key.
///
/// # Errors
/// The file cannot be read, or does not hold 32 bytes in base64.
pub fn lookup_key(path: &Path) -> Result<LookupKey, SecretError> {
    key_of(&read_one(Secret::LookupKey, path)?, path)
}

/// Returns the lookup key in the bytes of a file, which belong to `path`.
///
/// # Errors
/// They are not 32 bytes in base64.
pub fn parse_lookup_key(bytes: &[u8], path: &Path) -> Result<LookupKey, SecretError> {
    let text = text::bare(bytes).map_err(|problem| SecretError::content(path, problem))?;
    text::check_one(&text).map_err(|problem| SecretError::content(path, problem))?;
    key_of(&text, path)
}

fn key_of(text: &str, path: &Path) -> Result<LookupKey, SecretError> {
    let bytes = key_bytes(text).ok_or_else(|| {
        SecretError::content(
            path,
            "the file must hold 32 bytes in base64; restore it from a backup",
        )
    })?;
    Ok(LookupKey::new(&bytes))
}

fn key_bytes(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let bytes = Zeroizing::new(STANDARD.decode(text).ok()?);
    <[u8; 32]>::try_from(bytes.as_slice()).ok().map(Zeroizing::new)
}

/// Returns the master token.
///
/// # Errors
/// The file cannot be read, or does not hold a token of at least 16 characters.
pub fn master_token(path: &Path) -> Result<Zeroizing<String>, SecretError> {
    let token = read_one(Secret::MasterToken, path)?;
    if token.len() < SHORTEST {
        let problem =
            format!("the token must have at least {SHORTEST} characters; write a longer one");
        return Err(SecretError::content(path, problem));
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const NOW: Timestamp = Timestamp(1_800_000_000);

    fn auth(folder: &Path) -> Auth {
        Auth {
            signing_key_file: folder.join("deep/er/signing.keys"),
            lookup_key_file: folder.join("lookup.key"),
            master_token_file: folder.join("master.token"),
        }
    }

    #[test]
    fn what_is_made_can_be_read_and_is_never_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let auth = auth(folder.path());
        assert_eq!(missing(&auth).unwrap(), Secret::ALL);
        assert!(matches!(
            master_token(&auth.master_token_file),
            Err(SecretError::Missing { secret: Secret::MasterToken, .. })
        ));
        Secret::ALL.into_iter().for_each(|secret| secret.make(&auth, NOW).unwrap());
        assert!(missing(&auth).unwrap().is_empty() && check(&auth).is_ok());
        let token = master_token(&auth.master_token_file).unwrap();
        assert!(token.len() >= 32);
        Secret::MasterToken.make(&auth, NOW).unwrap();
        assert_eq!(*master_token(&auth.master_token_file).unwrap(), *token);
        assert!(loose(&auth).is_empty());
    }

    #[test]
    fn an_invalid_file_is_named_without_showing_what_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let auth = auth(folder.path());
        for text in ["short", "\"quoted-and-long-enough\"", "two lines of\nsome length", ""] {
            fs::write(&auth.master_token_file, text).unwrap();
            fs::write(&auth.lookup_key_file, text).unwrap();
            for error in [
                master_token(&auth.master_token_file).map(drop).unwrap_err(),
                lookup_key(&auth.lookup_key_file).map(drop).unwrap_err(),
            ] {
                let error = error.to_string();
                assert!(
                    error.contains("folder") || error.contains(".token") || error.contains(".key")
                );
                assert!(text.is_empty() || !error.contains(text), "{error}");
            }
            assert!(check(&auth).is_err());
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_named_with_its_mode() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let auth = auth(folder.path());
        Secret::LookupKey.make(&auth, NOW).unwrap();
        fs::set_permissions(&auth.lookup_key_file, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(loose(&auth), [(auth.lookup_key_file.clone(), "0644".to_owned())]);
    }
}
