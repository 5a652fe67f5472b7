//! What an operator should know of their database before their users find out.

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

/// Looks at the store that is configured, leaves it as it is, and says what was found.
///
/// # Errors
/// Where a database cannot be asked, or something is bad.
pub fn examine(config: &Config, output: Output) -> Result<(), String> {
    let findings = match config.storage.backend {
        Backend::Postgres => of_database(config)?,
        Backend::Redb => vec![of_file(&config.storage.path)],
    };
    let has = |grade: Grade| findings.iter().any(|finding| finding.grade == grade);
    let (breaks, stops) = (has(Grade::Breaks), has(Grade::Stops));
    show(&findings, output);
    match (breaks, stops, config.storage.allow_async_failover) {
        (false, false, _) => Ok(()),
        (false, true, _) => {
            Err("servers are not ready, or refuse requests, until what is bad is mended".into())
        }
        (true, _, false) => Err("a spent code could come back, and servers are not ready".into()),
        (true, _, true) => {
            Err("a spent code could come back; allow_async_failover says: known".into())
        }
    }
}

/// An embedded store is not opened: a server has it open, or would bring its format up to date.
fn of_file(path: &Path) -> Finding {
    let is_there = if path.exists() { "an embedded store" } else { "where the store will be" };
    Finding {
        grade: Grade::Good,
        what: format!("{} is {is_there}", path.display()),
        why: "the server syncs every commit itself",
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
            why: "servers go by the database's clock, and above a second are not ready",
            mend: if right { String::new() } else { "keep both by NTP".into() },
        });
    }
    Ok(findings)
}

/// The highest timeline of the database that the server of this folder has seen; 0 where it has left
/// no mark that can be read.
fn newest_seen(path: &Path) -> u32 {
    let mark = std::fs::read_to_string(watermark::file_of(path)).ok();
    mark.and_then(|text| text.parse().ok()).map_or(0, |mark: Watermark| mark.timeline)
}

fn show(findings: &[Finding], output: Output) {
    match output {
        Output::Json => {
            let all: Vec<_> = findings
                .iter()
                .map(|Finding { grade, what, why, mend }| {
                    json!({"grade": word(*grade), "what": what, "why": why, "mend": mend})
                })
                .collect();
            tell(&json!({"findings": all}).to_string());
        }
        Output::Text => {
            for Finding { grade, what, why, mend } in findings {
                tell(&format!("{:8} {what}", word(*grade)));
                if *grade != Grade::Good {
                    tell(&format!("         {why}"));
                    tell(&format!("         mend it with: {mend}"));
                }
            }
        }
    }
}
