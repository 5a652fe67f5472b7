//! The encryption of small secrets in the format of age (<https://age-encryption.org/v1>): to an address
//! (X25519) or with a passphrase (scrypt). What is written here the program `age` reads, and the other way
//! round. The format has a payload of many chunks; here it is one, which is enough for keys.
//!
//! The crate `age` would do this too, with 56 further crates instead of 10.

use crate::os::{NoRandomness, random_bytes};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32, Hrp};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use ring::hmac;
use std::fmt;
use x25519_dalek::{X25519_BASEPOINT_BYTES, x25519};
use zeroize::Zeroizing;

/// The first line of every file.
const VERSION: &str = "age-encryption.org/v1";
/// The label of a file key that is encrypted to an address.
const OF_ADDRESS: &str = "age-encryption.org/v1/X25519";
/// The label of a file key that is encrypted with a passphrase.
const OF_PASSPHRASE: &str = "age-encryption.org/v1/scrypt";
/// The human-readable part of an address.
const ADDRESS: &str = "age";
/// The human-readable part of the key of an address.
const IDENTITY: &str = "age-secret-key-";
/// The bytes of a file key.
const FILE_KEY: usize = 16;
/// The bytes of a chunk of the payload. The content must fit into one.
const CHUNK: usize = 64 << 10;
/// The nonce of the first chunk if it is the last one: a count of 11 bytes, and a mark.
const ONLY_CHUNK: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// The work of scrypt, as the logarithm of N: 64 MiB and about a fifth of a second. The program `age` takes
/// 18, which is 256 MiB, more than a server may have to spare.
const WORK: u8 = 16;
/// The most work that is done to read a file: 1 GiB.
const MOST_WORK: u8 = 20;
/// The fewest characters of a passphrase. Whoever has the backup may guess without end.
const SHORTEST: usize = 12;

/// Why something cannot be encrypted or decrypted.
#[derive(Debug, thiserror::Error)]
pub enum AgeError {
    /// The operating system gives no random bytes.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// The content is too large.
    #[error("the content is larger than 64 KiB")]
    TooLarge,
    /// The file is not of this format, or of a kind that is not supported.
    #[error(
        "it is not a file of age that this program reads (one chunk, to an address that begins with age1, \
         or with a passphrase)"
    )]
    Foreign,
    /// The file was changed, or cut short.
    #[error("the content was changed or cut short")]
    Damaged,
    /// The key or the passphrase does not open the file.
    #[error("neither this key nor this passphrase opens it")]
    WrongKey,
}

/// To whom a secret is encrypted.
#[derive(Clone)]
pub enum Recipient {
    /// To an address.
    Address([u8; 32]),
    /// To whoever has a passphrase.
    Passphrase(Zeroizing<String>),
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address(_) => "Address",
            Self::Passphrase(_) => "Passphrase",
        })
    }
}

impl Recipient {
    /// Returns the recipient with an address such as `age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p`.
    pub fn address(text: &str) -> Option<Self> {
        Some(Self::Address(bytes_of(ADDRESS, text.trim())?))
    }

    /// Returns the recipient with a passphrase.
    ///
    /// # Errors
    /// It is too short.
    pub fn passphrase(text: Zeroizing<String>) -> Result<Self, String> {
        if text.chars().count() < SHORTEST {
            return Err(format!("the passphrase must have at least {SHORTEST} characters"));
        }
        Ok(Self::Passphrase(text))
    }

    /// Encrypts a secret.
    ///
    /// # Errors
    /// It is larger than 64 KiB, or there are no random bytes.
    pub fn encrypt(&self, content: &[u8]) -> Result<Vec<u8>, AgeError> {
        if content.len() > CHUNK {
            return Err(AgeError::TooLarge);
        }
        let key = Zeroizing::new(random_bytes::<FILE_KEY>()?);
        let (stanza, body) = match self {
            Self::Address(address) => {
                let ephemeral = Zeroizing::new(random_bytes::<32>()?);
                let share = x25519(*ephemeral, X25519_BASEPOINT_BYTES);
                let wrap = wrap_of_address(&share, address, &x25519(*ephemeral, *address));
                (
                    format!("-> X25519 {}", STANDARD_NO_PAD.encode(share)),
                    seal(&wrap, &[0; 12], &*key)?,
                )
            }
            Self::Passphrase(passphrase) => {
                let salt = random_bytes::<16>()?;
                let wrap = wrap_of_passphrase(passphrase, &salt, WORK)?;
                let stanza = format!("-> scrypt {} {WORK}", STANDARD_NO_PAD.encode(salt));
                (stanza, seal(&wrap, &[0; 12], &*key)?)
            }
        };
        let head = format!("{VERSION}\n{stanza}\n{}\n---", STANDARD_NO_PAD.encode(body));
        let mac = hmac::sign(&mac_key(&*key), head.as_bytes());
        let nonce = random_bytes::<16>()?;
        let payload = seal(&derived(&nonce, &*key, b"payload"), &ONLY_CHUNK, content)?;
        let mut file = format!("{head} {}\n", STANDARD_NO_PAD.encode(mac)).into_bytes();
        file.extend(nonce);
        file.extend(payload);
        Ok(file)
    }
}

/// What opens a file.
pub enum Opener {
    /// The keys of addresses.
    Identities(Vec<Zeroizing<[u8; 32]>>),
    /// A passphrase.
    Passphrase(Zeroizing<String>),
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Identities(_) => "Identities",
            Self::Passphrase(_) => "Passphrase",
        })
    }
}

impl Opener {
    /// Returns the keys in the text of a file that `age-keygen` has written. `None`: there is none.
    pub fn identities(text: &str) -> Option<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let keys: Vec<_> =
            lines.filter_map(|line| bytes_of(IDENTITY, line).map(Zeroizing::new)).collect();
        (!keys.is_empty()).then_some(Self::Identities(keys))
    }

    /// Decrypts a file.
    ///
    /// # Errors
    /// The file is of another kind or damaged, or this does not open it.
    pub fn decrypt(&self, file: &[u8]) -> Result<Zeroizing<Vec<u8>>, AgeError> {
        let Parts { head, stanzas, mac, payload } = Parts::of(file).ok_or(AgeError::Foreign)?;
        let key = stanzas.iter().find_map(|stanza| self.file_key(stanza).transpose());
        let key = key.transpose()?.ok_or(AgeError::WrongKey)?;
        hmac::verify(&mac_key(&key), head, &mac).map_err(|_| AgeError::Damaged)?;
        let (nonce, chunk) = payload.split_first_chunk::<16>().ok_or(AgeError::Damaged)?;
        if chunk.len() > CHUNK + CHACHA20_POLY1305.tag_len() {
            return Err(AgeError::Foreign);
        }
        open(&derived(nonce, &key, b"payload"), &ONLY_CHUNK, chunk).ok_or(AgeError::Damaged)
    }

    /// Returns the file key, if the stanza is for this.
    fn file_key(&self, stanza: &Stanza<'_>) -> Result<Option<Zeroizing<Vec<u8>>>, AgeError> {
        match (self, stanza.arguments.as_slice()) {
            (Self::Identities(keys), ["X25519", share]) => {
                let share = STANDARD_NO_PAD.decode(share).ok();
                let share: [u8; 32] =
                    share.and_then(|share| share.try_into().ok()).ok_or(AgeError::Foreign)?;
                let opened = keys.iter().find_map(|key| {
                    let address = x25519(**key, X25519_BASEPOINT_BYTES);
                    let shared = Zeroizing::new(x25519(**key, share));
                    // A share of low order makes a secret that everybody knows.
                    let wrap =
                        (*shared != [0; 32]).then(|| wrap_of_address(&share, &address, &shared))?;
                    open(&wrap, &[0; 12], &stanza.body)
                });
                Ok(opened)
            }
            (Self::Passphrase(passphrase), ["scrypt", salt, work]) => {
                let salt = STANDARD_NO_PAD.decode(salt).map_err(|_| AgeError::Foreign)?;
                let work = work.parse().ok().filter(|work| (1..=MOST_WORK).contains(work));
                let wrap = wrap_of_passphrase(passphrase, &salt, work.ok_or(AgeError::Foreign)?)?;
                Ok(open(&wrap, &[0; 12], &stanza.body))
            }
            _ => Ok(None),
        }
    }
}

fn bytes_of(prefix: &str, text: &str) -> Option<[u8; 32]> {
    let parsed = CheckedHrpstring::new::<Bech32>(text).ok()?;
    let is_ours = Hrp::parse(prefix).is_ok_and(|prefix| parsed.hrp() == prefix);
    let bytes: Zeroizing<Vec<u8>> = Zeroizing::new(parsed.byte_iter().collect());
    bytes.as_slice().try_into().ok().filter(|_| is_ours)
}

/// One wrapped file key.
struct Stanza<'a> {
    arguments: Vec<&'a str>,
    body: Vec<u8>,
}

/// The parts of a file.
struct Parts<'a> {
    /// What the code of the head covers.
    head: &'a [u8],
    stanzas: Vec<Stanza<'a>>,
    mac: Vec<u8>,
    payload: &'a [u8],
}

/// Takes a line off the front.
fn line<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    let (line, behind) = rest.split_at_checked(end)?;
    *rest = behind.get(1..)?;
    std::str::from_utf8(line).ok()
}

impl<'a> Parts<'a> {
    fn of(file: &'a [u8]) -> Option<Self> {
        let mut rest = file;
        if line(&mut rest)? != VERSION {
            return None;
        }
        let mut stanzas = Vec::new();
        loop {
            let first = line(&mut rest)?;
            if let Some(mac) = first.strip_prefix("--- ") {
                // Without the blank, the code and the line feed.
                let end = (file.len() - rest.len()).checked_sub(mac.len() + 2)?;
                let mac = STANDARD_NO_PAD.decode(mac).ok()?;
                return Some(Self { head: file.get(..end)?, stanzas, mac, payload: rest });
            }
            let arguments = first.strip_prefix("-> ")?.split(' ').collect();
            let mut body = String::new();
            // The last line of a body is shorter than the others, which have 64 characters.
            loop {
                let part = line(&mut rest)?;
                body.push_str(part);
                if part.len() < 64 {
                    break;
                }
            }
            stanzas.push(Stanza { arguments, body: STANDARD_NO_PAD.decode(body).ok()? });
        }
    }
}

/// The length of a derived key, for ring.
struct Bytes32;

impl KeyType for Bytes32 {
    fn len(&self) -> usize {
        32
    }
}

/// HKDF-SHA-256 (RFC 5869).
fn derived(salt: &[u8], secret: &[u8], info: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    let pseudorandom = Salt::new(HKDF_SHA256, salt).extract(secret);
    // 32 bytes are one block: never too many.
    let _ = pseudorandom.expand(&[info], Bytes32).and_then(|okm| okm.fill(&mut *key));
    key
}

fn mac_key(file_key: &[u8]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &*derived(&[], file_key, b"header"))
}

fn wrap_of_address(share: &[u8; 32], address: &[u8; 32], shared: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    derived(&[share.as_slice(), address].concat(), shared, OF_ADDRESS.as_bytes())
}

fn wrap_of_passphrase(
    passphrase: &str,
    salt: &[u8],
    work: u8,
) -> Result<Zeroizing<[u8; 32]>, AgeError> {
    let mut key = Zeroizing::new([0; 32]);
    let salt = [OF_PASSPHRASE.as_bytes(), salt].concat();
    let params = scrypt::Params::new(work, 8, 1).map_err(|_| AgeError::Foreign)?;
    scrypt::scrypt(passphrase.as_bytes(), &salt, &params, &mut *key)
        .map_err(|_| AgeError::Foreign)?;
    Ok(key)
}

fn cipher(key: &[u8; 32]) -> Option<LessSafeKey> {
    UnboundKey::new(&CHACHA20_POLY1305, key).ok().map(LessSafeKey::new)
}

/// Encrypts. Each key is used once.
fn seal(key: &[u8; 32], nonce: &[u8; 12], content: &[u8]) -> Result<Vec<u8>, AgeError> {
    let mut bytes = content.to_vec();
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let cipher = cipher(key).ok_or(AgeError::Foreign)?;
    // On success the content is encrypted in place.
    cipher
        .seal_in_place_append_tag(nonce, Aad::empty(), &mut bytes)
        .map_err(|_| AgeError::TooLarge)?;
    Ok(bytes)
}

fn open(key: &[u8; 32], nonce: &[u8; 12], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(sealed.to_vec());
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let length = cipher(key)?.open_in_place(nonce, Aad::empty(), &mut bytes).ok()?.len();
    bytes.truncate(length);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::path::Path;
    use std::process::{Command, Stdio};

    /// Made by `age-keygen`, for these tests alone.
    const KEY: &str =
        "# a test\nAGE-SECRET-KEY-1NCZ2PXYR7X5PEJ96JY3PZP99C34LS28990D2NFPZ9T5JLSG9ASAQHRYF0G\n";
    const ADDRESS_OF_KEY: &str = "age1c7fskew0h8hw5sl3dqmrwled3qp08dse6mzdj2j5m0tflvnfd45shpy5yf";

    fn address() -> Recipient {
        Recipient::address(ADDRESS_OF_KEY).unwrap()
    }

    fn identity() -> Opener {
        Opener::identities(KEY).unwrap()
    }

    #[test]
    fn a_secret_comes_back_by_its_key_or_passphrase_and_by_no_other() {
        let words = || Zeroizing::new("correct horse battery".to_owned());
        let with_words = Recipient::passphrase(words()).unwrap().encrypt(b"a key").unwrap();
        let to_address = address().encrypt(b"a key").unwrap();
        assert_eq!(*Opener::Passphrase(words()).decrypt(&with_words).unwrap(), b"a key");
        assert_eq!(*identity().decrypt(&to_address).unwrap(), b"a key");
        let wrong = Opener::Passphrase(Zeroizing::new("wrong horse battery".to_owned()));
        for (opener, file) in [
            (wrong, &with_words),
            (identity(), &with_words),
            (Opener::Passphrase(words()), &to_address),
        ] {
            assert!(matches!(opener.decrypt(file), Err(AgeError::WrongKey)));
        }
        assert!(Recipient::passphrase(Zeroizing::new("short".to_owned())).is_err());
    }

    #[test]
    fn a_file_with_one_changed_or_missing_byte_is_refused() {
        let file = address().encrypt(b"a key").unwrap();
        for at in 0..file.len() {
            let mut changed = file.clone();
            changed[at] ^= 1;
            assert!(identity().decrypt(&changed).is_err(), "byte {at}");
            assert!(identity().decrypt(&file[..at]).is_err(), "cut at {at}");
        }
        assert!(matches!(address().encrypt(&[0; CHUNK + 1]), Err(AgeError::TooLarge)));
    }

    #[test]
    fn only_an_address_of_age_is_a_recipient() {
        for wrong in ["", "age1", &ADDRESS_OF_KEY.replace('z', "y"), KEY.lines().last().unwrap()] {
            assert!(Recipient::address(wrong).is_none(), "{wrong}");
        }
        assert!(Opener::identities("# nothing\n").is_none());
        assert!(Opener::identities(ADDRESS_OF_KEY).is_none());
    }

    fn age(arguments: &[&str], folder: &Path, input: &[u8]) -> Vec<u8> {
        let mut age = Command::new("age")
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program age, which scripts/test installs");
        age.stdin.take().unwrap().write_all(input).unwrap();
        let output = age.wait_with_output().unwrap();
        assert!(output.status.success());
        output.stdout
    }

    /// Runs age on a terminal, from which alone it reads passphrases: one that `script` makes.
    fn age_on_terminal(arguments: &str, folder: &Path, typed: &str) {
        let mut script = Command::new("script")
            .args(["--quiet", "--return", "--command", &format!("age {arguments}"), "/dev/null"])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program script, which is on every Debian");
        script.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
        let output = script.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    #[test]
    fn the_program_age_and_this_one_open_what_the_other_has_closed_with_a_passphrase() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let words = || Zeroizing::new("correct horse battery".to_owned());
        std::fs::write(
            at("ours"),
            Recipient::passphrase(words()).unwrap().encrypt(b"a key").unwrap(),
        )
        .unwrap();
        age_on_terminal("-d -o opened ours", folder.path(), "correct horse battery\n");
        assert_eq!(std::fs::read(at("opened")).unwrap(), b"a key");
        std::fs::write(at("text"), "another").unwrap();
        age_on_terminal("-p -o theirs text", folder.path(), &"correct horse battery\n".repeat(2));
        let theirs = std::fs::read(at("theirs")).unwrap();
        assert_eq!(*Opener::Passphrase(words()).decrypt(&theirs).unwrap(), b"another");
    }

    #[test]
    fn the_program_age_reads_what_is_written_here_and_the_other_way_round() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), KEY).unwrap();
        let ours = address().encrypt(b"a key").unwrap();
        assert_eq!(age(&["--decrypt", "-i", "key"], folder.path(), &ours), b"a key");
        let theirs = age(&["-r", ADDRESS_OF_KEY], folder.path(), b"another");
        assert_eq!(*identity().decrypt(&theirs).unwrap(), b"another");
    }
}
