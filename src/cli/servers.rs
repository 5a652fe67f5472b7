//! `servers`: lists, revokes and restores servers.

use super::client::Server;
use super::terminal::{Output, field, foreign, tell, write};
use crate::config::Config;
use crate::operator::servers::{SHOWS, SORTS};
use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use iptunnel_domain::server::ServerId;
use serde_json::{Value, json};

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
    /// Revoke a server
    #[command(after_help = "\
Examples:
  iptunnel-server servers revoke 0123456789abcdef")]
    Revoke {
        /// The id of the server
        #[arg(value_parser = server_id)]
        server_id: String,
    },
    /// Restore a server
    #[command(after_help = "\
Examples:
  iptunnel-server servers restore 0123456789abcdef")]
    Restore {
        /// The id of the server
        #[arg(value_parser = server_id)]
        server_id: String,
    },
    /// Write a note on a server
    #[command(after_help = "\
Examples:
  iptunnel-server servers note 0123456789abcdef moved-to-berlin")]
    Note {
        /// The id of the server
        #[arg(value_parser = server_id)]
        server_id: String,
        /// The note; an empty one removes it
        note: String,
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

/// Lists servers, or changes one.
///
/// # Errors
/// A message that says why the command failed.
pub fn servers(config: &Config, output: Output, action: Servers) -> Result<(), String> {
    let server = Server::of(config)?;
    let act = |id: &str, verb: &str, body: &Value| {
        let done = server.post(&format!("/servers/{id}/{verb}"), body)?;
        if field(&done, "server_id") != id {
            return Err(foreign("server"));
        }
        tell(&if output == Output::Json {
            done.to_string()
        } else {
            format!("{} {}", field(&done, "server_id"), field(&done, "status"))
        })
    };
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
        Servers::Revoke { server_id } => act(&server_id, "revoke", &json!({})),
        Servers::Restore { server_id } => act(&server_id, "restore", &json!({})),
        Servers::Note { server_id, note } => act(&server_id, "note", &json!({"note": note})),
    }
}
