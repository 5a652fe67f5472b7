//! Backups: how one is made while its store is in use, what it holds, and how it is restored.
//!
//! A backup is a folder. Its [`Manifest`] is written last, so a folder without one is no backup. It names
//! every file with size and SHA-256, and is signed with the key of the audit heads: whoever can write the
//! folder, but has no lookup key, cannot change what is restored where the lookup key is in place, or comes
//! from a file that a passphrase opens. A file for an address of age says nothing about who wrote it: then
//! the whole backup, keys and all, may be somebody else's.
//!
//! * [`make`]: makes one; [`manifest`]: what it holds, and whether that is whole
//! * [`kept`]: the backups in the folder of the settings
//! * [`restore`]: checks one and puts it into the server's place; a new epoch begins
//! * [`pace`]: how fast a server that answers requests makes one

pub mod error;
pub mod kept;
pub mod make;
pub mod manifest;
pub mod pace;
pub mod restore;
#[cfg(test)]
mod tests;

pub use manifest::Manifest;

use crate::secrets::Secret;

/// The store: a file that the engine can open as it is.
pub const STORE: &str = "iptunnel.redb";
/// The signed heads of the audit log, none of them later than the store.
pub const HEADS: &str = "iptunnel.redb.heads";
/// The mark that the server had for the store.
pub const MARK: &str = "mark";
/// The manifest, in JSON.
pub const MANIFEST: &str = "manifest.json";
/// The signature of the manifest's bytes: 128 hexadecimal digits.
pub const SIGNATURE: &str = "manifest.sig";

/// Returns the name of the file with an encrypted secret.
pub const fn name_of(secret: Secret) -> &'static str {
    match secret {
        Secret::LookupKey => "lookup.key.age",
        Secret::SigningKeys => "signing.keys.age",
        Secret::MasterToken => "master.token.age",
    }
}

/// The file of the webhooks, with their secrets, encrypted. Only there if the settings name one.
pub const WEBHOOKS: &str = "webhooks.toml.age";

/// The names that a manifest may have. Others might lead out of the folder.
const NAMES: [&str; 7] = [
    STORE,
    HEADS,
    MARK,
    name_of(Secret::LookupKey),
    name_of(Secret::SigningKeys),
    name_of(Secret::MasterToken),
    WEBHOOKS,
];
