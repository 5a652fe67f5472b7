//! `config`: shows and changes settings of the running server.

use super::client::Server;
use super::terminal::{Output, field, write};
use crate::config::Config;
use clap::Subcommand;
use serde_json::{Map, Value, json};

/// The subcommands of `config`.
#[derive(Debug, Subcommand)]
pub enum Settings {
    /// Show all settings, or one setting
    Get {
        /// The name of the setting: section.key
        key: Option<String>,
    },
    /// Change settings immediately; the changes survive a restart
    Set {
        /// Settings with their values, such as limits.issue_per_ip_hour=5
        #[arg(required = true)]
        settings: Vec<String>,
    },
    /// Undo changes made with set or in the console
    Unset {
        /// The name of the setting: section.key
        #[arg(required = true)]
        keys: Vec<String>,
    },
}

/// Shows settings, or changes them.
///
/// # Errors
/// A message that says why the command failed.
pub fn settings(config: &Config, output: Output, action: Settings) -> Result<(), String> {
    let server = Server::of(config)?;
    let (data, named): (Value, Vec<String>) = match action {
        Settings::Get { key } => (server.get("/config", &[])?, key.into_iter().collect()),
        Settings::Set { settings } => {
            let mut body = Map::new();
            for setting in settings {
                let (key, value) = setting
                    .split_once('=')
                    .ok_or("each setting must have the form section.key=value")?;
                body.insert(key.trim().to_owned(), value.trim().into());
            }
            let keys = body.keys().cloned().collect();
            (server.patch("/config", &body.into())?, keys)
        }
        Settings::Unset { keys } => {
            let body: Map<String, Value> =
                keys.iter().map(|key| (key.clone(), Value::Null)).collect();
            (server.patch("/config", &body.into())?, keys)
        }
    };
    let mut rows = data.get("settings").and_then(Value::as_array).cloned().unwrap_or_default();
    if !named.is_empty() {
        rows.retain(|row| named.contains(&field(row, "key")));
    }
    if rows.is_empty() {
        return Err("no setting has that name; `config get` lists all of them".into());
    }
    let columns = ["key", "value", "unit", "source", "default", "allowed"];
    write(output, &json!({"settings": rows}), "settings", &columns);
    Ok(())
}
