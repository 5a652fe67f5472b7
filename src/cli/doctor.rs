//! `doctor`: checks whether the database keeps every acknowledged change, and the server's own files.

use super::terminal::{Output, tell};
use crate::backup::kept;
use crate::config::{Backend, Config};
use crate::http::tls;
use crate::operator::words::span;
use crate::os::{Clock, SystemClock};
use crate::public::scripts;
use crate::secrets::lookup_key;
use crate::signed_head::{Verifier, is_of_other_key};
use crate::state::live::read_secrets;
use crate::store::agreement::{hash_of_lookup_key, in_common};
use crate::store::cluster::{clock_ahead, clock_is_right, clock_words};
use crate::store::examine::{embedded_store, own_files};
use crate::store::watermark;
use iptunnel_domain::Timestamp;
use iptunnel_domain::lookup::{KeyedHash, LookupKey};
use iptunnel_storage::{Finding, Grade, Inspection, LOOKUP_KEY, Others, ReadError};
use serde_json::json;

const fn word(grade: Grade) -> &'static str {
    match grade {
        Grade::Good => "good",
        Grade::Warns => "warning",
        Grade::Stops | Grade::Breaks => "bad",
    }
}

/// Inspects the configured store without changing it, and prints the findings.
///
/// # Errors
/// The database cannot be reached, or a finding is bad.
pub fn examine(config: &Config, output: Output) -> Result<(), String> {
    let mut findings = match config.storage.backend {
        Backend::Postgres => of_database(config)?,
        Backend::Redb => of_files(config),
    };
    findings.extend(scripts::examine(config));
    findings.extend(tls::examine::examine(config, SystemClock::default().now()));
    let has = |grade: Grade| findings.iter().any(|finding| finding.grade == grade);
    let (breaks, stops) = (has(Grade::Breaks), has(Grade::Stops));
    show(&findings, output)?;
    match (breaks, stops, config.storage.allow_async_failover) {
        (false, false, _) => Ok(()),
        (false, true, _) => {
            Err("servers are not ready, or refuse requests, until you correct the bad findings".into())
        }
        (true, _, false) => Err("a spent code could become valid again, so servers are not ready; correct the bad findings".into()),
        (true, _, true) => {
            Err("a spent code could become valid again; servers are ready because allow_async_failover is set".into())
        }
    }
}

/// Returns the findings for an embedded store.
fn of_files(config: &Config) -> Vec<Finding> {
    let (store, is_there) = embedded_store(&config.storage.path);
    let own = own_files(config, is_there);
    let key = (is_there == Some(true)).then(|| of_key_of_store(config)).flatten();
    let now = SystemClock::default().now();
    let backups = (is_there == Some(true)).then(|| of_backups(config, now)).flatten();
    std::iter::once(store).chain(own).chain(key).chain(backups).collect()
}

/// Says how old the newest backup in the folder of the settings is. A lookup key that cannot be read is a
/// finding on the server's own files.
fn of_backups(config: &Config, now: Timestamp) -> Option<Finding> {
    let (folder, every) = (&config.backup.folder, config.backup.every_hours);
    let verifier = Verifier::with_lookup_key(lookup_key(&config.auth.lookup_key_file).ok()?)?;
    let shown = folder.display();
    let why = "what no backup has is lost with the disk";
    let (grade, what, mend) = match kept::list(folder, &verifier) {
        Err(error) => {
            let mend = "run this command as the user of the server, or correct backup.folder";
            (Grade::Warns, error.to_string(), mend)
        }
        Ok(all) => match all.last().map(|newest| &newest.manifest) {
            None => {
                let mend = "set backup.every_hours, or run `iptunnel-server backup`; if your backups are \
                            elsewhere, nothing is to be done";
                (Grade::Warns, format!("there is no backup in {shown}"), mend)
            }
            Some(newest) if is_overdue(now.since(Timestamp(newest.made)), every) => {
                let age = span(now.since(Timestamp(newest.made)));
                let what = format!(
                    "the newest backup in {shown} is {age} old, and backup.every_hours is {every}"
                );
                (Grade::Warns, what, "start the server; if it runs, its log says why it made none")
            }
            Some(newest) => {
                let what = format!("the newest backup in {shown} was made at {}", newest.made_at);
                (Grade::Good, what, "")
            }
        },
    };
    Some(Finding { grade, what, why, mend: mend.into() })
}

/// Whether a backup that is so many seconds old should have had a successor: after twice the hours of the
/// schedule.
const fn is_overdue(age: u64, every_hours: u64) -> bool {
    every_hours > 0 && age > every_hours.saturating_mul(2 * 3600)
}

/// Says whether the lookup key is that of the embedded store, by the newest signed head beside it. A
/// key that cannot be read is a finding on the server's own files.
fn of_key_of_store(config: &Config) -> Option<Finding> {
    let lookup = lookup_key(&config.auth.lookup_key_file).ok()?;
    let why = "nothing in the store can be found with another lookup key";
    let (grade, what, mend) = match is_of_other_key(&config.storage.path, lookup) {
        Ok(false) => (Grade::Good, "no signed head speaks against the lookup key".to_owned(), ""),
        Ok(true) => {
            let mend = "restore the file of auth.lookup_key_file from the backup of this store";
            (Grade::Stops, "the lookup key is not that of the store".to_owned(), mend)
        }
        Err(error) => {
            let what = format!("the signed heads cannot be read: {error}");
            (Grade::Warns, what, "run this command as the user of the server, or restore the file")
        }
    };
    Some(Finding { grade, what, why, mend: mend.into() })
}

fn of_database(config: &Config) -> Result<Vec<Finding>, String> {
    // A mark that cannot be read is a finding on the server's own files.
    let mark = watermark::known(&config.storage.path).ok().flatten().unwrap_or_default();
    let database =
        Inspection::of(&config.storage.url, mark.timeline).map_err(|error| error.to_string())?;
    let mut findings = database.examine();
    let has_store = database.has_store().ok();
    findings.extend(own_files(config, has_store));
    if has_store == Some(true) {
        findings.extend(of_secrets(config, &database));
    }
    if let Some(ahead) = clock_ahead(|| database.clock()) {
        let right = clock_is_right(ahead);
        findings.push(Finding {
            grade: if right { Grade::Good } else { Grade::Stops },
            what: clock_words(ahead),
            why: "servers use the database's clock; above one second of difference they are not ready",
            mend: if right { String::new() } else { "synchronise both machines with NTP".into() },
        });
    }
    Ok(findings)
}

/// Compares this server's secrets with those that the database was made with, and with those of the
/// servers that run. Secrets that cannot be read are findings on the server's own files.
fn of_secrets(config: &Config, database: &Inspection) -> Vec<Finding> {
    let Ok(lookup) = lookup_key(&config.auth.lookup_key_file) else { return Vec::new() };
    let mut findings = vec![of_lookup_key(database.agreed(LOOKUP_KEY), &lookup)];
    if let Ok((tokens, master)) = read_secrets(&config.auth, &lookup) {
        for (name, hash) in in_common(&lookup, &tokens, &master) {
            findings.push(of_common_secret(name, database.others(name, hash)));
        }
    }
    findings
}

const COPY: &str = "copy the files of [auth] from one server to all others, and send them SIGHUP";

fn of_lookup_key(agreed: Result<Option<KeyedHash>, ReadError>, lookup: &LookupKey) -> Finding {
    let why = "nothing in the database can be found with another lookup key";
    let (grade, what, mend) = match agreed {
        Ok(Some(agreed)) if !agreed.ct_eq(&hash_of_lookup_key(lookup)) => {
            (Grade::Stops, "the lookup key is not that of the database".to_owned(), COPY)
        }
        Ok(_) => (Grade::Good, "the lookup key is that of the database".to_owned(), ""),
        Err(error) => (Grade::Stops, error.to_string(), "resolve this error, and examine again"),
    };
    Finding { grade, what, why, mend: mend.into() }
}

fn of_common_secret(name: &str, others: Result<Others, ReadError>) -> Finding {
    let why = "what one server signs or accepts, another one refuses";
    let (grade, what, mend) = match others {
        Ok(Others { all, differ: 0 }) => {
            (Grade::Good, format!("{all} running servers have the {name} of this one"), "")
        }
        Ok(Others { all, differ }) => {
            let what =
                format!("{differ} of {all} running servers do not have the {name} of this one");
            (Grade::Stops, what, COPY)
        }
        Err(error) => (Grade::Stops, error.to_string(), "resolve this error, and examine again"),
    };
    Finding { grade, what, why, mend: mend.into() }
}

/// Prints findings.
///
/// # Errors
/// Standard output cannot be written.
pub fn show(findings: &[Finding], output: Output) -> Result<(), String> {
    match output {
        Output::Json => {
            let all: Vec<_> = findings
                .iter()
                .map(|Finding { grade, what, why, mend }| {
                    json!({"grade": word(*grade), "what": what, "why": why, "mend": mend})
                })
                .collect();
            tell(&json!({"findings": all}).to_string())
        }
        Output::Text => {
            for Finding { grade, what, why, mend } in findings {
                tell(&format!("{:8} {what}", word(*grade)))?;
                if *grade != Grade::Good {
                    tell(&format!("         {why}"))?;
                    tell(&format!("         mend it with: {mend}"))?;
                }
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_overdue_after_twice_the_hours_of_the_schedule_and_never_without_one() {
        assert!(!is_overdue(7200, 1) && is_overdue(7201, 1));
        assert!(!is_overdue(u64::MAX, 0) && !is_overdue(u64::MAX, u64::MAX));
    }
}
