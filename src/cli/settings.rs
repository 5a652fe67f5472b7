//! `config`: shows and changes settings of the running server.

use super::client::Server;
use super::terminal::{Output, field, write};
use crate::config::Config;
use clap::Subcommand;
use serde_json::{Map, Value, json};

/// What is asked of the settings in force.
#[derive(Debug, Subcommand)]
pub enum Settings {
    /// Show all settings, or one
    Get {
        /// Section and key
        key: Option<String>,
    },
    /// Change settings at once; the changes survive a restart
    Set {
        /// Such as limits.issue_per_ip_hour=5
        #[arg(required = true)]
        settings: Vec<String>,
    },
    /// Undo changes
    Unset {
        /// Section and key
        #[arg(required = true)]
        keys: Vec<String>,
    },
}

/// Asks about settings, or changes them.
///
/// # Errors
/// What went wrong, in words.
pub fn settings(config: &Config, output: Output, action: Settings) -> Result<(), String> {
    let server = Server::of(config)?;
    let (data, named): (Value, Vec<String>) = match action {
        Settings::Get { key } => (server.get("/config", &[])?, key.into_iter().collect()),
        Settings::Set { settings } => {
            let mut body = Map::new();
            for setting in settings {
                let (key, value) =
                    setting.split_once('=').ok_or("must have the form section.key=value")?;
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
        return Err("no such key".into());
    }
    let columns = ["key", "value", "unit", "source", "default", "allowed"];
    write(output, &json!({"settings": rows}), "settings", &columns);
    Ok(())
}
