//! What an operator should know of their database before their users find out.

use crate::cli::tell;
use crate::config::{Backend, Config};
use crate::remote::Output;
use crate::sharing::{clock_ahead, clock_is_right};
use iptunnel_storage::{Finding, Grade, Inspection};
use serde_json::json;
use std::path::Path;

const fn word(grade: Grade) -> &'static str {
    match grade {
        Grade::Good => "good",
        Grade::Warns => "warning",
        Grade::Breaks => "bad",
    }
}

/// Looks at the store that is configured, leaves it as it is, and says what was found.
///
/// # Errors
/// Where a database cannot be asked, or something is bad.
pub fn examine(config: &Config, output: Output) -> Result<(), String> {
    let findings = match config.storage.backend {
        Backend::Postgres => of_database(&config.storage.url)?,
        Backend::Redb => vec![of_file(&config.storage.path)],
    };
    let bad = findings.iter().any(|finding| finding.grade == Grade::Breaks);
    show(&findings, output);
    match (bad, config.storage.allow_async_failover) {
        (false, _) => Ok(()),
        (true, false) => Err("a spent code could come back, and servers are not ready".into()),
        (true, true) => {
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

fn of_database(url: &str) -> Result<Vec<Finding>, String> {
    let database = Inspection::of(url).map_err(|error| error.to_string())?;
    let mut findings = database.examine().map_err(|error| error.to_string())?;
    if let Some(ahead) = clock_ahead(|| database.clock()) {
        let right = clock_is_right(ahead);
        findings.push(Finding {
            grade: if right { Grade::Good } else { Grade::Breaks },
            what: format!("the database's clock is ahead of this machine's by {ahead} ms"),
            why: "servers go by the database's clock, and above a second are not ready",
            mend: if right { String::new() } else { "keep both by NTP".into() },
        });
    }
    Ok(findings)
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
