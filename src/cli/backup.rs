//! `backup`: makes a backup, through the running server or, where none runs, by itself.

use super::client::Server;
use super::error::CliError;
use super::terminal::{Output, field, remark, tell};
use crate::age::Recipient;
use crate::app::RunError;
use crate::backup::{kept, make, pace};
use crate::config::{Backend, Config};
use crate::operator::socket::path_of;
use crate::os::{Clock, SystemClock};
use crate::secrets::lookup_key;
use crate::signed_head::{file_of, read_file};
use crate::store::agreement::agree;
use crate::store::error::StoreError;
use crate::store::files::{files, is_there, open};
use crate::store::watermark;
use clap::Args;
use iptunnel_domain::audit::{Action, Actor, ChainHash, Event, Head};
use iptunnel_storage::{Change, Grade, Inspection, Write};
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;
use zeroize::Zeroizing;

/// How often a running server is asked whether the backup is made.
const ASK: Duration = Duration::from_millis(500);

/// What the secrets in a backup are encrypted to.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct Keys {
    /// Include the keys and the master token, encrypted to this address of age [default: backup.keys_recipient]
    #[arg(long, value_name = "ADDRESS")]
    recipient: Option<String>,
    /// Include the keys and the master token, encrypted with the passphrase in this file's first line
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// Reads the passphrase in the first line of a file.
///
/// # Errors
/// The file cannot be read, or its first line is empty.
pub fn passphrase(path: &Path) -> Result<Zeroizing<String>, String> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
    match text.lines().next().map(str::trim).filter(|line| !line.is_empty()) {
        Some(line) => Ok(Zeroizing::new(line.to_owned())),
        None => Err(format!("{}: the first line must be the passphrase", path.display())),
    }
}

impl Keys {
    fn read(&self) -> Result<Option<Recipient>, String> {
        match (&self.recipient, &self.passphrase_file) {
            (Some(address), _) => Recipient::address(address).map(Some).ok_or_else(|| {
                "--recipient: must be an address of age, which begins with age1".to_owned()
            }),
            (None, Some(path)) => {
                let recipient = Recipient::passphrase(passphrase(path)?);
                recipient.map(Some).map_err(|error| format!("{}: {error}", path.display()))
            }
            (None, None) => Ok(None),
        }
    }

    /// Returns what a server is sent.
    fn body(&self, folder: Option<&Path>) -> Result<Value, String> {
        self.read()?;
        let passphrase = self.passphrase_file.as_deref().map(passphrase).transpose()?;
        let fields = [
            ("folder", folder.map(|folder| folder.display().to_string())),
            ("recipient", self.recipient.clone()),
            ("passphrase", passphrase.map(|words| words.as_str().to_owned())),
        ];
        let named = fields.into_iter().filter_map(|(name, value)| Some((name, value?)));
        Ok(named.map(|(name, value)| (name.to_owned(), Value::from(value))).collect())
    }
}

/// Makes a backup in `folder`, or in a new folder in that of the settings.
///
/// # Errors
/// The backup could not be made, or there is no store.
pub fn backup(
    config: &Config,
    output: Output,
    folder: Option<PathBuf>,
    keys: &Keys,
) -> Result<(), CliError> {
    let folder = folder.map(std::path::absolute).transpose().map_err(|e| e.to_string())?;
    if config.storage.backend == Backend::Postgres {
        return beside_database(config, output, folder, keys);
    }
    if !config.admin.url.is_empty() || UnixStream::connect(path_of(config)).is_ok() {
        return Ok(ask_server(config, output, folder, keys)?);
    }
    let clock = SystemClock::default();
    let folder = folder.unwrap_or_else(|| {
        let all = &config.backup.folder;
        all.join(kept::free_name(all, clock.now()))
    });
    let made = alone(config, &folder, keys)?;
    Ok(show(output, &folder, &made)?)
}

fn ask_server(
    config: &Config,
    output: Output,
    folder: Option<PathBuf>,
    keys: &Keys,
) -> Result<(), String> {
    let body = keys.body(folder.as_deref())?;
    let server = Server::of(config)?;
    let mut made = server.post("/backup", &body)?;
    while field(&made, "state") == "running" {
        sleep(ASK);
        let progress = server.get("/backup", &[])?;
        let name = field(&made, "name");
        if field(&progress, "running") == name {
            // An earlier backup may have had the same name.
            continue;
        }
        let of = |what: &str| progress.get(what).filter(|one| field(one, "name") == name).cloned();
        if let Some(last) = of("last") {
            made = last;
        } else if let Some(failure) = of("failure") {
            return Err(field(&failure, "why"));
        } else {
            return Err("the server has forgotten the backup: it was started again".into());
        }
    }
    let folder = PathBuf::from(field(&made, "folder"));
    show(output, &folder, &made)
}

/// Makes a backup while no server runs.
fn alone(config: &Config, folder: &Path, keys: &Keys) -> Result<Value, CliError> {
    let keys = keys.read()?.or_else(|| Recipient::address(&config.backup.keys_recipient));
    if !is_there(config).map_err(RunError::Store)? {
        return Err(CliError::Other(format!(
            "there is no store at {}; run this command in the server's folder, with its configuration",
            config.storage.path.display()
        )));
    }
    let lookup = lookup_key(&config.auth.lookup_key_file)?;
    let store =
        open(config, files(&config.storage.path)).map_err(|error| RunError::Store(error.into()))?;
    let now = SystemClock::default().now();
    agree(store.as_ref(), &lookup, &config.auth.lookup_key_file).map_err(RunError::Store)?;
    // As a start does: else the mark that is written below would hide that the store is an earlier one.
    watermark::check(store.as_ref(), &config.storage.path, now).map_err(RunError::Store)?;
    let (keys, pace) = (keys.as_ref(), pace::alone());
    let order = make::Order { config, lookup: &lookup, folder, keys, now, pace };
    let made = make::make(&order, store.as_ref());
    let entered = made.as_ref().map(|manifest| {
        let event = Event {
            subject: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            detail: format!("{} bytes, position {}", manifest.size(), manifest.position),
            by: "command line".into(),
            ..Event::new(Action::BackupMade, Actor::Administrator, now, None)
        };
        let entered = store.commit(&[Change(vec![Write::Audit(Arc::new(event))])]);
        watermark::keep_now(store.as_ref(), &config.storage.path);
        entered
    });
    store.close();
    if let Ok(Err(error)) = entered {
        remark(&format!("the backup could not be entered into the audit log: {error}"));
    }
    let manifest = made.map_err(|error| CliError::Other(error.to_string()))?;
    Ok(shown(&manifest, keys.is_some()))
}

fn shown(manifest: &crate::backup::Manifest, has_keys: bool) -> Value {
    json!({
        "made_at": manifest.made_at, "size": manifest.size(), "position": manifest.position,
        "has_keys": has_keys,
    })
}

fn show(output: Output, folder: &Path, made: &Value) -> Result<(), String> {
    let folder = folder.display().to_string();
    if output == Output::Json {
        let fields = ["made_at", "size", "position", "has_keys"];
        let fields =
            fields.map(|name| (name.to_owned(), made.get(name).cloned().unwrap_or_default()));
        let mut all: serde_json::Map<String, Value> = fields.into_iter().collect();
        all.insert("folder".into(), folder.into());
        return tell(&Value::Object(all).to_string());
    }
    tell(&format!(
        "{folder}: {} bytes, position {}, made {}",
        field(made, "size"),
        field(made, "position"),
        field(made, "made_at")
    ))?;
    if made.get("has_keys") != Some(&Value::Bool(true)) {
        remark(
            "The files of [auth] are not in it: keep a copy of them, or use --recipient or --passphrase-file.",
        );
    }
    Ok(())
}

/// Says how a database is backed up, checks what can be checked, and writes what belongs to it.
fn beside_database(
    config: &Config,
    output: Output,
    folder: Option<PathBuf>,
    keys: &Keys,
) -> Result<(), CliError> {
    let keys = keys.read()?.or_else(|| Recipient::address(&config.backup.keys_recipient));
    let mark = watermark::known(&config.storage.path).map_err(StoreError::from);
    let mark = mark.map_err(RunError::Store)?.unwrap_or_default();
    let database = Inspection::of(&config.storage.url, mark.timeline)
        .map_err(|error| RunError::Store(error.into()))?;
    let (host, findings) = database.examine_backup();
    if output == Output::Text {
        super::doctor::show(&findings, output)?;
    }
    let lookup = lookup_key(&config.auth.lookup_key_file)?;
    if findings.iter().any(|finding| matches!(finding.grade, Grade::Stops | Grade::Breaks)) {
        if output == Output::Json {
            super::doctor::show(&findings, output)?;
        }
        return Err(CliError::Other("correct the bad findings, and repeat the command".into()));
    }
    let now = SystemClock::default().now();
    let folder = folder.unwrap_or_else(|| {
        let all = &config.backup.folder;
        all.join(kept::free_name(all, now))
    });
    let heads = file_of(&config.storage.path);
    let newest = match read_file(&heads) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        heads_read => {
            heads_read.map_err(|error| format!("{}: {error}", heads.display()))?.pop().and_then(
                |head| Some(Head { entries: head.entries, hash: ChainHash::from_hex(&head.hash)? }),
            )
        }
    };
    let (of_order, pace) = (keys.as_ref(), pace::alone());
    let order = make::Order { config, lookup: &lookup, folder: &folder, keys: of_order, now, pace };
    let made = make::make_beside_database(&order, newest.unwrap_or_default(), &mark)
        .map_err(|error| CliError::Other(error.to_string()))?;
    show(output, &folder, &shown(&made, keys.is_some()))?;
    let target = folder.with_extension("database");
    let (host, port) = host.rsplit_once(':').unwrap_or((&host, "5432"));
    remark(&format!(
        "The database itself is not in it. Make its backup now, as a role with REPLICATION:\n  \
         pg_basebackup --host={host} --port={port} --pgdata={target} --wal-method=stream --checkpoint=fast\n  \
         pg_verifybackup {target}\n\
         To restore, start PostgreSQL on it, and then run: iptunnel-server restore {folder}",
        target = target.display(),
        folder = folder.display(),
    ));
    Ok(())
}
