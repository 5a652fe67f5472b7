//! `check-config`: refuses what a start would refuse, and remarks on what installers would miss.

use super::error::CliError;
use super::terminal::{remark, tell};
use crate::app::RunError;
use crate::config::{Backend, Config};
use crate::http::tls::{self, files::Files};
use crate::os::{Clock, SystemClock};
use crate::public::scripts;
use crate::secrets::{self, lookup_key};
use crate::signed_head::is_of_other_key;
use crate::store::error::StoreError;
use crate::store::examine::embedded_store;
use crate::store::{first_start, watermark};
use crate::webhooks::endpoints;
use iptunnel_storage::{Finding, Grade, PostgresStore};

/// Checks what a start needs beside the configuration: the secrets, the certificates, the mark, the embedded store, and
/// the address of the database. Nothing is changed, and the database is not asked. What does not keep a
/// server from starting, such as a payload that cannot be read, is a remark.
///
/// # Errors
/// The reason why a start would fail.
pub fn check_config(config: &Config) -> Result<(), CliError> {
    secrets::check(&config.auth)?;
    Files::of_all(config)
        .try_for_each(|files| files.read().map(drop))
        .map_err(RunError::Certificate)?;
    let webhooks = &config.webhooks.file;
    if !webhooks.as_os_str().is_empty() {
        endpoints::read(webhooks).map_err(RunError::Webhooks)?;
    }
    check_store(config).map_err(RunError::Store)?;
    if config.storage.backend == Backend::Redb {
        let (Finding { grade, what, mend, .. }, has_store) = embedded_store(&config.storage.path);
        if grade != Grade::Good {
            return Err(CliError::Other(format!("{what}; {mend}")));
        }
        if has_store == Some(true) {
            check_lookup_key(config).map_err(RunError::Store)?;
        }
    }
    let of_tls = tls::examine::examine(config, SystemClock::default().now());
    let findings = scripts::examine(config).into_iter().chain(of_tls);
    for Finding { what, why, mend, .. } in findings.filter(|one| one.grade != Grade::Good) {
        remark(&format!("warning: {what}; {why}; {mend}"));
    }
    Ok(tell("The configuration is valid.")?)
}

/// Refuses the lookup key of another store. A head that cannot be read says nothing, and is no reason not
/// to start.
fn check_lookup_key(config: &Config) -> Result<(), StoreError> {
    let file = &config.auth.lookup_key_file;
    let is_of_other = is_of_other_key(&config.storage.path, lookup_key(file)?).unwrap_or(false);
    if is_of_other { Err(StoreError::OtherKey { file: file.clone() }) } else { Ok(()) }
}

fn check_store(config: &Config) -> Result<(), StoreError> {
    watermark::known(&config.storage.path)?;
    match config.storage.backend {
        Backend::Redb => first_start::wanted(config).map(drop),
        Backend::Postgres => Ok(PostgresStore::check_url(&config.storage.url)?),
    }
}
