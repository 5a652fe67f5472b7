//! `codes`: shows the history of codes.

use super::client::Server;
use super::terminal::{Output, field, remark, tell, write};
use crate::config::Config;
use clap::Subcommand;
use serde_json::{Value, json};
use std::io::Read;

/// The subcommands of `codes`.
#[derive(Subcommand)]
pub enum Codes {
    /// Show the history of a code, or list the codes that match
    #[command(after_help = "\
Examples:
  iptunnel-server codes show ns1.example.com
  iptunnel-server codes show act_0a1b2c3d4e5f6a7b
  iptunnel-server codes show - < file-with-a-code")]
    Show {
        /// A code, hint, host name, address, machine id, or any id that a list shows; - reads it from
        /// standard input, which keeps it out of the list of processes
        find: String,
        /// Continue after the previous page: the cursor that it printed
        #[arg(long, default_value = "", hide_default_value = true)]
        cursor: String,
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
    let Codes::Show { mut find, cursor } = action;
    if find == "-" {
        find.clear();
        let read = std::io::stdin().lock().take(1024).read_to_string(&mut find);
        read.map_err(|error| format!("standard input cannot be read: {error}"))?;
    }
    let found =
        Server::of(config)?.post("/codes", &json!({"find": find.trim(), "cursor": cursor}))?;
    if found.get("events").is_none() {
        let columns = ["hint", "last", "at", "hostname", "address", "id"];
        return write(output, &found, "codes", &columns);
    }
    if output == Output::Json {
        return tell(&found.to_string());
    }
    tell(&format!(
        "{}  {}  activations: {}",
        field(&found, "hint"),
        field(&found, "state"),
        field(&found, "activations")
    ))?;
    if found.get("second_machine") == Some(&Value::Bool(true)) {
        tell("ANOTHER MACHINE HAS TRIED THIS CODE AND WAS REFUSED")?;
    }
    let columns =
        ["at", "action", "subject", "address", "server", "detail", "actor", "by", "who", "from"];
    write(output, &found, "events", &columns)?;
    if found.get("attempts_not_kept").and_then(Value::as_u64) > Some(0) {
        remark(&format!("{} more attempts were not kept", field(&found, "attempts_not_kept")));
    }
    if found.get("cut_short") == Some(&Value::Bool(true)) {
        remark("The log is too long to be searched to the end of this code's life.");
    }
    Ok(())
}
