//! `servers`: lists, revokes and restores servers.

use super::client::Server;
use super::terminal::{Output, field, tell, write};
use crate::config::Config;
use clap::Subcommand;
use serde_json::{Value, json};

/// The subcommands of `servers`.
#[derive(Debug, Subcommand)]
pub enum Servers {
    /// List servers, 50 on each page
    List {
        /// The servers to list: all, live, stale or revoked
        #[arg(long, default_value = "all")]
        show: String,
        /// The order: newest, oldest, seen or unseen
        #[arg(long, default_value = "newest")]
        sort: String,
        /// List only servers with this text in host name, address, id or note
        #[arg(long, default_value = "")]
        text: String,
        /// Continue after the previous page: the cursor that it printed
        #[arg(long, default_value = "")]
        cursor: String,
    },
    /// Revoke a server
    Revoke {
        /// The id of the server
        server_id: String,
    },
    /// Restore a server
    Restore {
        /// The id of the server
        server_id: String,
    },
    /// Write a note on a server
    Note {
        /// The id of the server
        server_id: String,
        /// The note; an empty one removes it
        note: String,
    },
}

/// Lists servers, or changes one.
///
/// # Errors
/// A message that says why the command failed.
pub fn servers(config: &Config, output: Output, action: Servers) -> Result<(), String> {
    let server = Server::of(config)?;
    let act = |id: &str, verb: &str, body: &Value| {
        // The id becomes a part of the path: nothing but hexadecimal digits may get there.
        if !id.bytes().all(|byte| byte.is_ascii_hexdigit()) || id.is_empty() {
            return Err("server_id must be 16 hexadecimal digits".to_owned());
        }
        let done = server.post(&format!("/servers/{id}/{verb}"), body)?;
        tell(&if output == Output::Json {
            done.to_string()
        } else {
            format!("{} {}", field(&done, "server_id"), field(&done, "status"))
        });
        Ok(())
    };
    match action {
        Servers::List { show, sort, text, cursor } => {
            let query =
                [("show", show.as_str()), ("sort", &sort), ("text", &text), ("cursor", &cursor)];
            let columns =
                ["server_id", "ip", "hostname", "registered_at", "last_checkin", "state", "note"];
            write(output, &server.get("/servers", &query)?, "servers", &columns);
            Ok(())
        }
        Servers::Revoke { server_id } => act(&server_id, "revoke", &json!({})),
        Servers::Restore { server_id } => act(&server_id, "restore", &json!({})),
        Servers::Note { server_id, note } => act(&server_id, "note", &json!({"note": note})),
    }
}
