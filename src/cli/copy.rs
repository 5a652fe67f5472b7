//! `copy`: copies a store into another one, for a move between redb and PostgreSQL.

use super::terminal::tell;
use crate::config::{Backend, Config};
use crate::store::files::{files, is_there_at, open};
use crate::store::watermark;
use iptunnel_storage::Sum;
use std::path::PathBuf;
use std::str::FromStr;

/// The name of a store: `redb`, `redb:PATH`, `postgres` or `postgres:URL`.
#[derive(Clone)]
pub enum StoreName {
    /// The file at this path, or else at `storage.path`.
    Redb(Option<PathBuf>),
    /// The database at this address, or else at `storage.url`.
    Postgres(Option<String>),
}

impl std::fmt::Debug for StoreName {
    /// Leaves the address out: it may contain a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Redb(_) => "Redb",
            Self::Postgres(_) => "Postgres",
        })
    }
}

impl FromStr for StoreName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let (engine, place) = name.split_once(':').unwrap_or((name, ""));
        let named = (!place.is_empty()).then_some(place);
        match engine {
            "redb" => Ok(Self::Redb(named.map(PathBuf::from))),
            // The address itself begins with the same word: postgres://...
            "postgres" | "postgresql" if place.starts_with("//") => {
                Ok(Self::Postgres(Some(name.to_owned())))
            }
            "postgres" | "postgresql" => Ok(Self::Postgres(named.map(str::to_owned))),
            _ => Err("unknown kind of store; use redb:PATH or postgres:URL".into()),
        }
    }
}

/// Returns the configuration with that store.
fn with_store(config: &Config, name: StoreName) -> Result<Config, String> {
    let mut config = config.clone();
    match name {
        StoreName::Redb(path) => {
            config.storage.backend = Backend::Redb;
            config.storage.path = path.unwrap_or(config.storage.path);
        }
        StoreName::Postgres(url) => {
            config.storage.backend = Backend::Postgres;
            config.storage.url = url.unwrap_or(config.storage.url);
            if config.storage.url.is_empty() {
                return Err(
                    "storage.url is empty; set it, or name the store as postgres:URL".into()
                );
            }
        }
    }
    Ok(config)
}

/// Checks that there is a folder for the copy. Made from a mistyped path, it would not be found again.
fn check_folder_of_copy(target: &Config) -> Result<(), String> {
    let path = &target.storage.path;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder {
        Some(folder) if target.storage.backend == Backend::Redb && !folder.is_dir() => {
            Err(format!(
                "{}: there is no folder {}, or it cannot be looked at; check the path after --to, or make the \
             folder: install -d -m 0700 {}",
                path.display(),
                folder.display(),
                folder.display()
            ))
        }
        _ => Ok(()),
    }
}

/// Copies a store into another, empty one, compares both, and prints the result.
///
/// # Errors
/// A store cannot be opened, read or written, the target is not empty, or the two differ.
pub fn copy(config: &Config, from: StoreName, to: StoreName) -> Result<(), String> {
    let (source, target) = (with_store(config, from)?, with_store(config, to)?);
    if source.storage.backend == Backend::Redb
        && !is_there_at(&source.storage.path).map_err(|error| error.to_string())?
    {
        return Err(format!(
            "{}: the store does not exist; check the path after --from",
            source.storage.path.display()
        ));
    }
    check_folder_of_copy(&target)?;
    let open_one = |config: &Config| {
        open(config, files(&config.storage.path)).map_err(|error| error.to_string())
    };
    let (source, path) = (open_one(&source)?, target.storage.path.clone());
    let target = open_one(&target)?;
    let (source, target) = (source.as_ref(), target.as_ref());
    let copied = iptunnel_storage::copy(source, target).map_err(|error| error.to_string());
    let compared = copied.and_then(|()| {
        let sums = |store| iptunnel_storage::sums(store).map_err(|error| error.to_string());
        Ok((sums(source)?, sums(target)?))
    });
    if compared.is_ok() && target.shared().is_none() {
        // The mark of an earlier store at this path no longer applies: the copy gets its own.
        watermark::keep_now(target, &path);
    }
    source.close();
    target.close();
    let (before, after) = compared?;
    let mut same = true;
    for (before, after) in before.iter().zip(&after) {
        let Sum { what, count, checksum } = after;
        let equal = before == after;
        same &= equal;
        let verdict = if equal { "the same" } else { "DIFFERENT" };
        tell(&format!("{what:14} {count:>10}  {checksum:.16}  {verdict}"))?;
    }
    if same {
        Ok(())
    } else {
        Err("the two stores differ; do not use the copy, and copy again into an empty store".into())
    }
}
