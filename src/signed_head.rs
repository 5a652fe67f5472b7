//! Signed heads of the audit log: the key that signs them, how they are verified, and the file that holds
//! them.
//!
//! Heads are signed with Ed25519 (RFC 8032). The private key is derived from the lookup key, which
//! never changes and is a part of every backup: so the public key of a store never changes either.
//! Whoever has the public key can verify heads, but cannot make them. The same key signs what a backup
//! holds.

use crate::private_file::{Beside, loose_mode};
use iptunnel_domain::Timestamp;
use iptunnel_domain::audit::{ChainHash, Head};
use iptunnel_domain::hex::{bytes_of, hex};
use iptunnel_domain::lookup::{KeyedHash, LookupKey, Purpose};
use ring::signature::{
    ED25519, ED25519_PUBLIC_KEY_LEN, Ed25519KeyPair, KeyPair, UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};
use std::fs::{File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The length of a signature in bytes (RFC 8032, section 5.1.6).
const SIGNATURE_LEN: usize = 64;

/// A head of the audit log with its time and signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedHead {
    /// The number of the last entry.
    pub entries: u64,
    /// The hash of the last entry.
    pub hash: String,
    /// The time of signing, in seconds since the Unix epoch.
    pub time: u64,
    /// The Ed25519 signature of the three other fields: 128 hexadecimal digits. Heads of earlier
    /// programs have a keyed hash under the lookup key: 32 digits.
    pub signature: String,
}

/// The key that signs heads.
pub struct HeadKey(Ed25519KeyPair);

impl HeadKey {
    /// Derives the key of a store from its lookup key. `None` does not occur: every seed of 32 bytes is
    /// a key.
    pub fn of(lookup: &LookupKey) -> Option<Self> {
        let seed = Zeroizing::new(lookup.derive(Purpose::AuditKey));
        Ed25519KeyPair::from_seed_unchecked(&*seed).ok().map(Self)
    }

    /// Returns the public key: 64 hexadecimal digits.
    pub fn public(&self) -> String {
        hex(self.0.public_key().as_ref())
    }

    /// Signs the manifest of a backup. Returns 128 hexadecimal digits.
    pub fn sign_manifest(&self, manifest: &[u8]) -> String {
        hex(self.0.sign(&labelled(MANIFEST, manifest)).as_ref())
    }

    /// Signs a head.
    pub fn sign(&self, head: Head, now: Timestamp) -> SignedHead {
        let signature = hex(self.0.sign(&signed_bytes(head, now)).as_ref());
        SignedHead { entries: head.entries, hash: head.hash.to_hex(), time: now.0, signature }
    }
}

/// Returns the bytes that a signature covers. The label keeps them apart from all that this key might
/// ever sign for another purpose.
fn signed_bytes(head: Head, now: Timestamp) -> Vec<u8> {
    labelled(HEAD, &keyed_bytes(head, now))
}

/// The label of what is signed as a head.
const HEAD: &[u8] = b"iptunnel audit head\0";
/// The label of what is signed as the manifest of a backup.
const MANIFEST: &[u8] = b"iptunnel backup manifest\0";

fn labelled(label: &[u8], bytes: &[u8]) -> Vec<u8> {
    [label, bytes].concat()
}

/// Returns the bytes that the keyed hash of earlier programs covers.
fn keyed_bytes(head: Head, now: Timestamp) -> Vec<u8> {
    let mut bytes = head.hash.0.to_vec();
    bytes.extend(head.entries.to_be_bytes());
    bytes.extend(now.0.to_be_bytes());
    bytes
}

/// What verifies heads.
pub struct Verifier {
    public: [u8; ED25519_PUBLIC_KEY_LEN],
    /// For heads of earlier programs.
    lookup: Option<LookupKey>,
}

/// A head that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The server signed it.
    Genuine(Head),
    /// The server did not sign it.
    Forged,
    /// An earlier program may have signed it, but only the lookup key can tell.
    NeedsLookupKey,
}

impl Verifier {
    /// Returns what verifies the heads of the server with this lookup key.
    pub fn with_lookup_key(lookup: LookupKey) -> Option<Self> {
        let public = HeadKey::of(&lookup)?.0.public_key().as_ref().try_into().ok()?;
        Some(Self { public, lookup: Some(lookup) })
    }

    /// Returns what verifies the heads of the server with this public key, for which
    /// [`HeadKey::public`] gives the text.
    pub fn with_public_key(text: &str) -> Option<Self> {
        Some(Self { public: bytes_of(text.trim())?, lookup: None })
    }

    /// Whether the server signed the manifest of a backup.
    pub fn is_manifest(&self, manifest: &[u8], signature: &str) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, &self.public);
        bytes_of::<SIGNATURE_LEN>(signature)
            .is_some_and(|signature| key.verify(&labelled(MANIFEST, manifest), &signature).is_ok())
    }

    /// Verifies a head.
    pub fn verify(&self, signed: &SignedHead) -> Verdict {
        self.genuine(signed).unwrap_or(Verdict::Forged)
    }

    fn genuine(&self, signed: &SignedHead) -> Option<Verdict> {
        let hash = ChainHash::from_hex(&signed.hash)?;
        let (head, time) = (Head { entries: signed.entries, hash }, Timestamp(signed.time));
        let genuine = Some(Verdict::Genuine(head));
        if let Some(keyed) = KeyedHash::from_hex(&signed.signature) {
            let Some(key) = &self.lookup else { return Some(Verdict::NeedsLookupKey) };
            let expected = key.hash(Purpose::AuditHead, &keyed_bytes(head, time));
            return genuine.filter(|_| keyed.ct_eq(&expected));
        }
        let signature: [u8; SIGNATURE_LEN] = bytes_of(&signed.signature)?;
        let key = UnparsedPublicKey::new(&ED25519, &self.public);
        genuine.filter(|_| key.verify(&signed_bytes(head, time), &signature).is_ok())
    }
}

/// Returns the path of the heads file for the store at `path`.
pub fn file_of(path: &Path) -> PathBuf {
    Beside::Heads.of(path)
}

/// Reads the heads in a file, oldest first. Skips an incomplete last line.
///
/// # Errors
/// If the file does not exist or cannot be read, or a complete line is not a head.
pub fn read_file(path: &Path) -> std::io::Result<Vec<SignedHead>> {
    let text = std::fs::read_to_string(path)?;
    let whole = text.rfind('\n').map_or("", |end| text.get(..end).unwrap_or_default());
    let head = |line: &str| serde_json::from_str(line).map_err(std::io::Error::other);
    whole.lines().map(head).collect()
}

/// The bytes at the end of a file in which its last head is looked for. A line has less than 300.
const END: u64 = 4096;

/// Returns the newest head in a file, or `None` if there is no file, or no whole line in it.
///
/// # Errors
/// The file cannot be read, or its last line is not a head.
fn newest(path: &Path) -> std::io::Result<Option<SignedHead>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let length = file.metadata()?.len();
    let mut end = vec![0; usize::try_from(length.min(END)).unwrap_or(0)];
    file.read_exact_at(&mut end, length.saturating_sub(END))?;
    let mut lines = end.rsplit(|byte| *byte == b'\n');
    // What stands behind the last end of a line is not a whole one.
    lines.next();
    let line = lines.next().filter(|line| !line.is_empty());
    line.map(serde_json::from_slice).transpose().map_err(std::io::Error::other)
}

/// Returns whether the newest head beside the store at `path` was signed with another lookup key. So a
/// lookup key of another store is noticed without opening the store, which a running server has open.
///
/// # Errors
/// As [`newest`].
pub fn is_of_other_key(path: &Path, lookup: LookupKey) -> std::io::Result<bool> {
    let (newest, verifier) = (newest(&file_of(path))?, Verifier::with_lookup_key(lookup));
    let verdict = newest.zip(verifier).map(|(head, verifier)| verifier.verify(&head));
    Ok(verdict == Some(Verdict::Forged))
}

/// Removes a last line that a full disk or a loss of power has cut off: what follows must begin a line.
fn remove_torn_line(file: &mut File) -> std::io::Result<()> {
    let Some(last) = file.metadata()?.len().checked_sub(1) else { return Ok(()) };
    let mut byte = [0];
    file.read_exact_at(&mut byte, last)?;
    if byte == *b"\n" {
        return Ok(());
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    let whole = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    file.set_len(whole as u64)
}

/// Appends a head to a file, which is made if it does not exist. It is on disk when this returns.
///
/// # Errors
/// The file cannot be written.
pub fn append(path: &Path, head: &SignedHead) -> std::io::Result<()> {
    let mut line = serde_json::to_string(head)?;
    line.push('\n');
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.read(true).create(true).append(true).mode(0o600).open(path)?;
    remove_torn_line(&mut file)?;
    if loose_mode(path)?.is_some() {
        // An earlier version made it for everybody.
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    file.write_all(line.as_bytes())?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(number: u8) -> LookupKey {
        LookupKey::new(&[number; LookupKey::BYTES])
    }

    fn head() -> Head {
        Head { entries: 7, hash: ChainHash([9; 32]) }
    }

    #[test]
    fn a_line_that_was_cut_off_is_removed_before_the_next_head_is_appended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("heads");
        let signed = HeadKey::of(&lookup(1)).unwrap().sign(head(), Timestamp(5));
        append(&path, &signed).unwrap();
        append(&path, &signed).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 30]).unwrap();
        assert_eq!(read_file(&path).unwrap().len(), 1);
        append(&path, &signed).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
    }

    #[test]
    fn the_newest_head_tells_the_lookup_key_of_its_store_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let is_of_other = |number| is_of_other_key(&path, lookup(number)).unwrap();
        assert!(!is_of_other(1), "no head was signed yet");
        // The file of a store that was here before, longer than what is looked at.
        for time in 0..40 {
            let before = HeadKey::of(&lookup(2)).unwrap().sign(head(), Timestamp(time));
            append(&file_of(&path), &before).unwrap();
        }
        append(&file_of(&path), &HeadKey::of(&lookup(1)).unwrap().sign(head(), Timestamp(5)))
            .unwrap();
        assert!(!is_of_other(1) && is_of_other(2) && is_of_other(3));
        std::fs::OpenOptions::new()
            .append(true)
            .open(file_of(&path))
            .unwrap()
            .write_all(b"{\"en")
            .unwrap();
        assert!(!is_of_other(1) && is_of_other(2), "a line that was cut off is left out");
        std::fs::write(file_of(&path), "nonsense\n").unwrap();
        assert!(is_of_other_key(&path, lookup(1)).is_err());
    }

    #[test]
    fn the_public_key_verifies_heads_and_the_key_of_another_store_does_not() {
        let key = HeadKey::of(&lookup(1)).unwrap();
        let signed = key.sign(head(), Timestamp(5));
        let verifier = Verifier::with_public_key(&key.public()).unwrap();
        assert_eq!(verifier.verify(&signed), Verdict::Genuine(head()));
        let other = Verifier::with_lookup_key(lookup(2)).unwrap();
        assert_eq!(other.verify(&signed), Verdict::Forged);
        for changed in [
            SignedHead { entries: 8, ..signed.clone() },
            SignedHead { time: 6, ..signed.clone() },
            SignedHead { hash: signed.hash.replace('9', "8"), ..signed.clone() },
            SignedHead { signature: signed.signature.replace('a', "b"), ..signed.clone() },
            SignedHead { signature: String::new(), ..signed.clone() },
        ] {
            assert_eq!(verifier.verify(&changed), Verdict::Forged, "{changed:?}");
        }
    }

    #[test]
    fn the_key_of_a_store_never_changes() {
        let key = HeadKey::of(&lookup(1)).unwrap().public();
        assert_eq!(key, "b32e5cde536a637686b283c80a5477b8216a786aa6e601a19a70eacaccffd5fe");
    }

    #[test]
    fn a_head_of_an_earlier_program_needs_the_lookup_key() {
        let keyed = lookup(1).hash(Purpose::AuditHead, &keyed_bytes(head(), Timestamp(5)));
        let signed = SignedHead {
            entries: 7,
            hash: head().hash.to_hex(),
            time: 5,
            signature: keyed.to_hex(),
        };
        let verifier = Verifier::with_lookup_key(lookup(1)).unwrap();
        assert_eq!(verifier.verify(&signed), Verdict::Genuine(head()));
        assert_eq!(verifier.verify(&SignedHead { time: 6, ..signed.clone() }), Verdict::Forged);
        let public = HeadKey::of(&lookup(1)).unwrap().public();
        let public = Verifier::with_public_key(&public).unwrap();
        assert_eq!(public.verify(&signed), Verdict::NeedsLookupKey);
    }

    #[test]
    fn only_64_hexadecimal_digits_are_a_public_key() {
        let key = HeadKey::of(&lookup(1)).unwrap().public();
        assert!(Verifier::with_public_key(&format!(" {key}\n")).is_some());
        for wrong in ["", "zz", &key[2..], &format!("{key}00")] {
            assert!(Verifier::with_public_key(wrong).is_none(), "{wrong}");
        }
    }
}
