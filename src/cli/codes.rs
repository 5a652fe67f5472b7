//! `codes`: what happened to codes.

use super::client::Server;
use super::terminal::{Output, field, tell, write};
use crate::config::Config;
use clap::Subcommand;
use serde_json::{Value, json};
use std::io::Read;

/// What is asked of the codes.
#[derive(Subcommand)]
pub enum Codes {
    /// Show a code's story, or the codes that something is known of
    Show {
        /// A code, hint, activation id, host name, address or machine id; - reads it from standard
        /// input, where no list of processes shows it
        find: String,
    },
}

impl std::fmt::Debug for Codes {
    /// What is looked for may be a code.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Codes")
    }
}

/// Asks about codes.
///
/// # Errors
/// What went wrong, in words.
pub fn codes(config: &Config, output: Output, action: Codes) -> Result<(), String> {
    let Codes::Show { mut find } = action;
    if find == "-" {
        find.clear();
        let read = std::io::stdin().lock().take(1024).read_to_string(&mut find);
        read.map_err(|error| format!("standard input: {error}"))?;
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
