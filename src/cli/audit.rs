//! `audit`: reads, exports and verifies the audit log.

use super::client::{Server, of_command};
use super::terminal::{Output, copy, field, tell, write};
use crate::config::Config;
use crate::operator::audit::Row;
use crate::secrets::lookup_key;
use crate::signed_head::{SignedHead, Verdict, Verifier, file_of, read_file};
use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use iptunnel_domain::audit::{Action, Actor, Head};
use serde_json::json;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

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
  iptunnel-server audit verify --file audit.jsonl --heads iptunnel.redb.heads --public-key KEY")]
    Verify {
        /// Check this export instead of the running server's log
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// The file of signed heads, or a copy of it [default: the file beside the store]
        #[arg(long, value_name = "FILE")]
        heads: Option<PathBuf>,
        /// Verify the heads with this key, which `audit public-key` shows, instead of the server's own
        /// key file
        #[arg(long, value_name = "KEY")]
        public_key: Option<String>,
    },
    /// Show the public key that verifies signed heads
    #[command(after_help = "\
Examples:
  iptunnel-server audit public-key")]
    PublicKey,
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
                "number", "at", "action", "actor", "by", "from", "server", "address", "subject",
                "detail",
            ];
            write(output, &found, "entries", &columns)
        }
        Audit::Export => copy(Server::of(config)?.export()?),
        Audit::Verify { file, heads, public_key } => {
            let path = heads.unwrap_or_else(|| file_of(&config.storage.path));
            let (heads, skipped) = genuine_heads(&path, &verifier(config, public_key.as_deref())?)?;
            let head = verify(export(config, file.as_deref())?, &heads)?;
            let (entries, heads) = (head.entries, heads.len());
            if output == Output::Json {
                let hash = head.hash.to_hex();
                let said = json!({"entries": entries, "hash": hash, "heads": heads, "heads_left_out": skipped});
                return tell(&said.to_string());
            }
            tell(&format!("{entries} entries are complete and match {heads} signed heads."))?;
            if skipped > 0 {
                tell(&format!(
                    "{skipped} heads of an earlier version were left out: only the server can verify \
                     them, without --public-key."
                ))?;
            }
            Ok(())
        }
        Audit::PublicKey => {
            let key = Server::of(config)?.get("/audit/public-key", &[])?;
            tell(&if output == Output::Json { key.to_string() } else { field(&key, "public_key") })
        }
    }
}

/// Opens a file with an export, or exports the running server's log.
fn export(config: &Config, file: Option<&Path>) -> Result<Box<dyn BufRead>, String> {
    let Some(path) = file else { return Server::of(config)?.export() };
    let file = std::fs::File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(Box::new(BufReader::new(file)))
}

/// Returns what verifies heads: the public key, or else the server's own key file.
fn verifier(config: &Config, public_key: Option<&str>) -> Result<Verifier, String> {
    let verifier = match public_key {
        Some(key) => Verifier::with_public_key(key),
        None => {
            let key = lookup_key(&config.auth.lookup_key_file).map_err(of_command)?;
            Verifier::with_lookup_key(key)
        }
    };
    let words = "--public-key must be the 64 hexadecimal digits that `audit public-key` shows";
    verifier.ok_or_else(|| words.to_owned())
}

/// Returns the genuine heads in a file, and the number of those that need the lookup key.
fn genuine_heads(path: &Path, verifier: &Verifier) -> Result<(Vec<Head>, usize), String> {
    let name = path.display();
    let signed: Vec<SignedHead> = read_file(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!(
            "{name}: there is no file of signed heads, so nobody can tell whether the log was \
             replaced; name a copy with --heads, or run this command in the server's folder"
        ),
        _ => format!("{name}: the signed heads cannot be read: {error}"),
    })?;
    let mut genuine = Vec::new();
    for head in &signed {
        match verifier.verify(head) {
            Verdict::Genuine(head) => genuine.push(head),
            Verdict::NeedsLookupKey => {}
            Verdict::Forged => {
                return Err(format!(
                    "{name}: the signature of a head is invalid: the head was changed, or the key is \
                     not that of the server that signed it"
                ));
            }
        }
    }
    if genuine.is_empty() {
        return Err(format!(
            "{name}: it holds no signed head that can be verified, so nobody can tell whether the \
             log was replaced; use another copy of the file, or for heads of an earlier version leave out \
             --public-key"
        ));
    }
    let skipped = signed.len() - genuine.len();
    // Files of several servers may have been put together.
    genuine.sort_by_key(|head| head.entries);
    Ok((genuine, skipped))
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
