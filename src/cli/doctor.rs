//! `doctor`: checks whether the database keeps every acknowledged change.

use super::terminal::{Output, tell};
use crate::config::{Backend, Config};
use crate::store::cluster::{clock_ahead, clock_is_right, clock_words};
use crate::store::watermark;
use iptunnel_storage::{Finding, Grade, Inspection, Watermark};
use serde_json::json;
use std::path::Path;

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
    let findings = match config.storage.backend {
        Backend::Postgres => of_database(config)?,
        Backend::Redb => vec![of_file(&config.storage.path)],
    };
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

/// Returns the finding for an embedded store. The store is not opened: a running server has it open,
/// and opening it would upgrade its format.
fn of_file(path: &Path) -> Finding {
    let is_there = if path.exists() { "an embedded store" } else { "where the store will be" };
    Finding {
        grade: Grade::Good,
        what: format!("{} is {is_there}", path.display()),
        why: "the server itself syncs every commit to disk",
        mend: String::new(),
    }
}

fn of_database(config: &Config) -> Result<Vec<Finding>, String> {
    let newest = newest_seen(&config.storage.path);
    let database =
        Inspection::of(&config.storage.url, newest).map_err(|error| error.to_string())?;
    let mut findings = database.examine();
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

/// Returns the highest database timeline that the server in this folder has seen, or 0 if there is no
/// readable mark file.
fn newest_seen(path: &Path) -> u32 {
    let mark = std::fs::read_to_string(watermark::file_of(path)).ok();
    mark.and_then(|text| text.parse().ok()).map_or(0, |mark: Watermark| mark.timeline)
}

fn show(findings: &[Finding], output: Output) -> Result<(), String> {
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
