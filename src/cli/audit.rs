//! `audit`: reads, exports and verifies the audit log.

use super::client::{Server, existing};
use super::terminal::{Output, copy, tell, write};
use crate::config::Config;
use crate::operator::audit::Row;
use crate::operator::signed_heads::{SignedHead, file_of, read_file};
use crate::secrets::lookup_key;
use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use iptunnel_domain::audit::{Action, Actor, Head};
use serde_json::json;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

/// The subcommands of `audit`.
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// List entries, newest first
    #[command(after_help = "\
Examples:
  iptunnel-server audit list
  iptunnel-server audit list --action server_revoked
  iptunnel-server audit list --text ns1.example.com --output json")]
    List {
        /// List only entries with this action
        #[arg(long, value_parser = actions(), hide_possible_values = true)]
        action: Option<String>,
        /// List only entries of this actor
        #[arg(long, value_parser = actors())]
        actor: Option<String>,
        /// List only entries that contain this text
        #[arg(long, default_value = "", hide_default_value = true)]
        text: String,
        /// Continue after the previous page: the cursor that it printed
        #[arg(long, default_value = "", hide_default_value = true)]
        cursor: String,
    },
    /// Write the whole log to standard output as JSON Lines
    #[command(after_help = "\
Examples:
  iptunnel-server audit export > audit.jsonl")]
    Export,
    /// Check that no entry was changed, removed or cut off
    #[command(after_help = "\
Examples:
  iptunnel-server audit verify
  iptunnel-server audit verify --file audit.jsonl --heads iptunnel.redb.heads")]
    Verify {
        /// Check this export instead of the running server's log
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// The file of signed heads, or a copy of it [default: the file beside the store]
        #[arg(long, value_name = "FILE")]
        heads: Option<PathBuf>,
    },
}

fn actions() -> PossibleValuesParser {
    Action::ALL.into_iter().filter(|action| !action.is_attempt()).map(Action::name).into()
}

fn actors() -> PossibleValuesParser {
    Actor::ALL.map(Actor::name).into()
}

/// Lists, exports or verifies the audit log.
///
/// # Errors
/// A message that says why the command failed, or where the log is damaged.
pub fn audit(config: &Config, output: Output, action: Audit) -> Result<(), String> {
    match action {
        Audit::List { action, actor, text, cursor } => {
            let query = [
                ("action", action.as_deref().unwrap_or_default()),
                ("actor", actor.as_deref().unwrap_or_default()),
                ("text", &text),
                ("cursor", &cursor),
            ];
            let found = Server::of(config)?.get("/audit", &query)?;
            let columns = [
                "number", "at", "action", "actor", "from", "server", "address", "subject", "detail",
            ];
            write(output, &found, "entries", &columns)
        }
        Audit::Export => copy(Server::of(config)?.export()?),
        Audit::Verify { file, heads } => {
            let export: Box<dyn BufRead> = match &file {
                Some(path) => {
                    let file = std::fs::File::open(path);
                    let file = file.map_err(|error| format!("{}: {error}", path.display()))?;
                    Box::new(BufReader::new(file))
                }
                None => Server::of(config)?.export()?,
            };
            let path = heads.unwrap_or_else(|| file_of(&config.storage.path));
            let heads = read_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            let key = existing(&config.auth.lookup_key_file)?;
            let key = lookup_key(key).map_err(|error| error.to_string())?;
            let genuine: Option<Vec<Head>> =
                heads.iter().map(|head: &SignedHead| head.verified(&key)).collect();
            let genuine = genuine.ok_or_else(|| {
                format!(
                    "{}: the signature of a head is invalid: the head was changed, or \
                     auth.lookup_key_file is not the key of the server that signed it",
                    path.display()
                )
            })?;
            let head = verify(export, &genuine)?;
            tell(&if output == Output::Json {
                json!({"entries": head.entries, "hash": head.hash.to_hex(), "heads": genuine.len()})
                    .to_string()
            } else {
                let (entries, heads) = (head.entries, genuine.len());
                format!("{entries} entries are complete and match {heads} signed heads.")
            })
        }
    }
}

/// Checks the hash chain of an export, and that it contains every signed head. Returns the last head.
fn verify(export: impl BufRead, heads: &[Head]) -> Result<Head, String> {
    let mut head = Head::default();
    let mut expected = heads.iter().peekable();
    let mut bytes = Vec::new();
    for line in export.lines() {
        let line = line.map_err(|error| format!("the log cannot be read to its end: {error}"))?;
        let next = head.entries + 1;
        let broken = |why: &str| format!("entry {next} {why}");
        let row: Row = serde_json::from_str(&line).map_err(|_| broken("is not a valid entry"))?;
        if row.number != next {
            return Err(broken(&format!(
                "is missing: the log continues with entry {}",
                row.number
            )));
        }
        bytes.clear();
        row.event().ok_or_else(|| broken("is not a valid entry"))?.encode(&mut bytes);
        head = head.after(&bytes);
        if row.hash != head.hash.to_hex() {
            return Err(broken("was changed, or an entry before it: its hash does not match"));
        }
        while let Some(signed) = expected.next_if(|signed| signed.entries <= head.entries) {
            if signed.entries == head.entries && *signed != head {
                return Err(broken("is not the entry that was signed: the log was rewritten"));
            }
        }
    }
    match expected.next() {
        Some(signed) => Err(format!(
            "the log ends at entry {}, but entry {} was signed: the end of the log is missing",
            head.entries, signed.entries
        )),
        None => Ok(head),
    }
}
