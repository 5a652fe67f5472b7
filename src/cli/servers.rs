//! `servers`: lists, revokes, restores, notes and deletes servers.

use super::client::Server;
use super::terminal::{Output, field, foreign, remark, rows, tell, write};
use crate::config::Config;
use crate::operator::servers::{SHOWS, SORTS};
use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use iptunnel_domain::server::ServerId;
use serde_json::{Value, json};

/// Servers that one request changes.
const AT_ONCE: usize = 1000;

/// The subcommands of `servers`.
#[derive(Debug, Subcommand)]
pub enum Servers {
    /// List servers, 50 on each page
    #[command(after_help = "\
Examples:
  iptunnel-server servers list
  iptunnel-server servers list --show stale --sort unseen
  iptunnel-server servers list --text ns1 --output json")]
    List {
        /// The servers to list
        #[arg(long, default_value = "all", value_parser = names(&SHOWS))]
        show: String,
        /// The order: by registration, or by last check-in
        #[arg(long, default_value = "newest", value_parser = names(&SORTS))]
        sort: String,
        /// List only servers with this text in host name, address, id or note
        #[arg(long, default_value = "", hide_default_value = true)]
        text: String,
        /// Continue after the previous page: the cursor that it printed
        #[arg(long, default_value = "", hide_default_value = true)]
        cursor: String,
    },
    /// Revoke servers
    #[command(after_help = "\
Examples:
  iptunnel-server servers revoke 0123456789abcdef
  iptunnel-server servers revoke 0123456789abcdef fedcba9876543210")]
    Revoke {
        /// The ids of the servers
        #[arg(value_parser = server_id, required = true)]
        server_id: Vec<String>,
    },
    /// Restore servers, deleted ones too
    #[command(after_help = "\
Examples:
  iptunnel-server servers list --show deleted
  iptunnel-server servers restore 0123456789abcdef")]
    Restore {
        /// The ids of the servers
        #[arg(value_parser = server_id, required = true)]
        server_id: Vec<String>,
    },
    /// Write a note on servers
    #[command(after_help = "\
Examples:
  iptunnel-server servers note 0123456789abcdef moved-to-berlin
  iptunnel-server servers note 0123456789abcdef fedcba9876543210 moved-to-berlin")]
    Note {
        /// The ids of the servers
        #[arg(value_parser = server_id, required = true)]
        server_id: Vec<String>,
        /// The note; an empty one removes it
        note: String,
    },
    /// Delete servers
    ///
    /// A deleted server can register again. A revoked one stays revoked until it is restored by its id.
    #[command(after_help = "\
Examples:
  iptunnel-server servers delete 0123456789abcdef
  iptunnel-server servers delete --unseen-days 90 --dry-run
  iptunnel-server servers delete --unseen-days 90")]
    Delete {
        /// The ids of the servers
        #[arg(value_parser = server_id, required_unless_present = "unseen_days")]
        server_id: Vec<String>,
        /// Delete all servers that were not seen for so many days instead: 1 to 36500
        #[arg(long, value_name = "DAYS", conflicts_with = "server_id",
            value_parser = clap::value_parser!(u64).range(1..=36_500))]
        unseen_days: Option<u64>,
        /// Delete nothing, and show how many they are and the first ten
        #[arg(long, requires = "unseen_days", conflicts_with = "server_id")]
        dry_run: bool,
    },
}

fn names(known: &[(&'static str, &str)]) -> PossibleValuesParser {
    known.iter().map(|(name, _)| *name).into()
}

/// Checks an id, which becomes a part of the path.
fn server_id(text: &str) -> Result<String, String> {
    match ServerId::parse(text) {
        Some(id) => Ok(id.to_string()),
        None => Err("must be 16 hexadecimal digits; `servers list` shows them".into()),
    }
}

/// Changes servers. If some of several cannot be changed, the others are.
fn change(
    server: &Server,
    output: Output,
    action: &str,
    ids: &[String],
    note: Option<String>,
) -> Result<(), String> {
    let mut failed = 0;
    for ids in ids.chunks(AT_ONCE) {
        let body = json!({"action": action, "server_ids": ids, "note": note});
        let done = server.post("/servers/several", &body)?;
        let status = field(&done, "status");
        let failures = rows(&done, "failed")?;
        if output == Output::Json {
            tell(&done.to_string())?;
        } else {
            let is_failed =
                |id: &&String| failures.iter().any(|one| field(one, "server_id") == **id);
            for id in ids.iter().filter(|id| !is_failed(id)) {
                tell(&format!("{id} {status}"))?;
            }
        }
        for one in failures {
            remark(&format!("{}: {}", field(one, "server_id"), field(one, "error")));
        }
        failed += failures.len();
    }
    match failed {
        0 => Ok(()),
        _ => Err(format!("{failed} of {} servers were not changed", ids.len())),
    }
}

/// Deletes all servers that were not seen for some days, or shows them.
fn delete_unseen(server: &Server, output: Output, days: u64, dry_run: bool) -> Result<(), String> {
    let columns = ["server_id", "ip", "hostname", "last_checkin", "state", "note"];
    if dry_run {
        let unseen = server.get("/servers/unseen", &[("days", &days.to_string())])?;
        if output == Output::Text {
            remark(&format!("{} servers would be deleted", field(&unseen, "count")));
        }
        return write(output, &unseen, "first", &columns);
    }
    let mut deleted = 0;
    loop {
        let done = server.post("/servers/unseen", &json!({"days": days}))?;
        let count =
            |name: &str| done.get(name).and_then(Value::as_u64).ok_or_else(|| foreign(name));
        let (now, left) = (count("deleted")?, count("left")?);
        deleted += now;
        if left == 0 || now == 0 {
            let told = json!({"deleted": deleted, "left": left});
            return tell(&match output {
                Output::Json => told.to_string(),
                Output::Text if deleted == 1 => "1 server deleted".into(),
                Output::Text => format!("{deleted} servers deleted"),
            });
        }
    }
}

/// Lists servers, or changes some.
///
/// # Errors
/// A message that says why the command failed.
pub fn servers(config: &Config, output: Output, action: Servers) -> Result<(), String> {
    let server = Server::of(config)?;
    let change = |action: &str, ids: &[String], note| change(&server, output, action, ids, note);
    match action {
        Servers::List { show, sort, text, cursor } => {
            let query =
                [("show", show.as_str()), ("sort", &sort), ("text", &text), ("cursor", &cursor)];
            let columns = [
                "server_id",
                "ip",
                "hostname",
                "registered_at",
                "last_checkin",
                "state",
                "enrolled_by",
                "note",
            ];
            write(output, &server.get("/servers", &query)?, "servers", &columns)
        }
        Servers::Revoke { server_id } => change("revoke", &server_id, None),
        Servers::Restore { server_id } => change("restore", &server_id, None),
        Servers::Note { server_id, note } => change("note", &server_id, Some(note)),
        Servers::Delete { unseen_days: Some(days), dry_run, .. } => {
            delete_unseen(&server, output, days, dry_run)
        }
        Servers::Delete { server_id, .. } => change("delete", &server_id, None),
    }
}
