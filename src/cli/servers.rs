//! `servers`: lists, revokes and restores servers.

use super::client::Server;
use super::terminal::{Output, field, tell, write};
use crate::config::Config;
use clap::Subcommand;
use serde_json::{Value, json};

/// What is asked of the servers.
#[derive(Debug, Subcommand)]
pub enum Servers {
    /// List servers, a page of 50
    List {
        /// Which: all, live, stale or revoked
        #[arg(long, default_value = "all")]
        show: String,
        /// In which order: newest, oldest, seen or unseen
        #[arg(long, default_value = "newest")]
        sort: String,
        /// Only those with this in host name, address, id or note
        #[arg(long, default_value = "")]
        text: String,
        /// Where the page before ended
        #[arg(long, default_value = "")]
        cursor: String,
    },
    /// Revoke a server
    Revoke {
        /// Its id
        server_id: String,
    },
    /// Restore a server
    Restore {
        /// Its id
        server_id: String,
    },
    /// Write a note on a server
    Note {
        /// Its id
        server_id: String,
        /// The note; empty for none
        note: String,
    },
}

/// Asks about servers.
///
/// # Errors
/// What went wrong, in words.
pub fn servers(config: &Config, output: Output, action: Servers) -> Result<(), String> {
    let server = Server::of(config)?;
    let act = |id: &str, verb: &str, body: &Value| {
        // An id is 16 hexadecimal digits: anything else is nobody's, and no part of a path.
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
