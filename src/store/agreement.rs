//! The secrets that belong to a store: its lookup key, and for servers that share it the signing keys
//! and the master token as well. They are compared by keyed hashes, which reveal nothing of them.

use super::error::StoreError;
use crate::tokens::Tokens;
use iptunnel_domain::lookup::{KeyedHash, LookupKey, Purpose};
use iptunnel_storage::{LOOKUP_KEY, Store};
use std::path::Path;

/// The name of the signing keys where servers publish their hash.
pub const SIGNING_KEYS: &str = "signing keys";
/// The name of the master token where servers publish its hash.
pub const MASTER_TOKEN: &str = "master token";

/// Returns the hash by which a store knows its lookup key.
pub fn hash_of_lookup_key(lookup: &LookupKey) -> KeyedHash {
    lookup.hash(Purpose::Agreement, b"")
}

/// Checks that the lookup key is the one that the store was made with: with another one, no record could
/// be found. A store that knows none yet takes this one.
///
/// # Errors
/// It is another key, or the store cannot be read.
pub fn agree(store: &dyn Store, lookup: &LookupKey, file: &Path) -> Result<(), StoreError> {
    if store.agree(LOOKUP_KEY, hash_of_lookup_key(lookup))? {
        Ok(())
    } else {
        Err(StoreError::OtherKey { file: file.to_owned() })
    }
}

/// The names and hashes of the secrets that servers on one store must have in common beside the lookup
/// key. `master` is the keyed hash of the master token.
pub fn in_common(
    lookup: &LookupKey,
    tokens: &Tokens,
    master: &KeyedHash,
) -> [(&'static str, KeyedHash); 2] {
    let hash = |name: &str, content: &[u8]| {
        lookup.hash(Purpose::Agreement, &[name.as_bytes(), b"\0", content].concat())
    };
    [
        (SIGNING_KEYS, hash(SIGNING_KEYS, &tokens.digest())),
        (MASTER_TOKEN, hash(MASTER_TOKEN, &master.0)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::SigningFile;

    fn tokens(text: &str) -> Tokens {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, text).unwrap();
        Tokens::new(&SigningFile::read(&path).unwrap())
    }

    #[test]
    fn servers_differ_exactly_if_one_cannot_verify_what_another_signs() {
        let line = |kid: &str, byte: u8| {
            let key =
                base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [byte; 32]);
            format!("{kid}:{key}\n")
        };
        let lookup = LookupKey::new(&[1; 32]);
        let of = |text: &str, master: u8| {
            in_common(&lookup, &tokens(text), &KeyedHash([master; 16])).map(|(_, hash)| hash)
        };
        let (a, b) = (line("a", 1), line("b", 2));
        assert_eq!(
            of(&format!("{a}{b}"), 1),
            of(&format!("{b}{a}"), 1),
            "the order does not matter"
        );
        let [keys, master] = of(&a, 1);
        assert_ne!(keys, of(&format!("{a}{b}"), 1)[0]);
        assert_ne!(keys, of(&line("a", 3), 1)[0], "another key under the same name");
        assert_ne!(master, of(&a, 2)[1]);
    }
}
