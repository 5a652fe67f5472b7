//! `codes`: shows the history of codes.

use super::client::Server;
use super::terminal::{Output, field, tell, write};
use crate::config::Config;
use clap::Subcommand;
use serde_json::{Value, json};
use std::io::Read;

/// The subcommands of `codes`.
#[derive(Subcommand)]
pub enum Codes {
    /// Show the history of a code, or list the codes that match
    Show {
        /// A code, hint, activation id, host name, address or machine id; - reads it from standard
        /// input, which keeps it out of the list of processes
        find: String,
    },
}

impl std::fmt::Debug for Codes {
    /// Leaves the search text out: it may be a code, which is a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Codes")
    }
}

/// Shows the history of a code, or lists the codes that match.
///
/// # Errors
/// A message that says why the command failed.
pub fn codes(config: &Config, output: Output, action: Codes) -> Result<(), String> {
    let Codes::Show { mut find } = action;
    if find == "-" {
        find.clear();
        let read = std::io::stdin().lock().take(1024).read_to_string(&mut find);
        read.map_err(|error| format!("standard input cannot be read: {error}"))?;
    }
    let found = Server::of(config)?.post("/codes", &json!({"find": find.trim()}))?;
    if found.get("events").is_none() || output == Output::Json {
        write(output, &found, "codes", &["hint", "last", "at", "hostname", "address", "id"]);
        return Ok(());
    }
    tell(&format!(
        "{}  {}  activations: {}",
        field(&found, "hint"),
        field(&found, "state"),
        field(&found, "activations")
    ));
    if found.get("second_machine") == Some(&Value::Bool(true)) {
        tell("ANOTHER MACHINE HAS TRIED THIS CODE AND WAS REFUSED");
    }
    let columns = ["at", "action", "subject", "address", "detail", "actor", "who", "from"];
    write(output, &found, "events", &columns);
    Ok(())
}
