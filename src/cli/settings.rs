//! `config`: shows and changes settings of the running server.

use super::client::Server;
use super::key_value;
use super::terminal::{Output, field, rows, write};
use crate::config::Config;
use clap::Subcommand;
use serde_json::{Map, Value, json};

/// The subcommands of `config`.
#[derive(Debug, Subcommand)]
pub enum Settings {
    /// Show all settings, or one setting
    #[command(after_help = "\
Examples:
  iptunnel-server config get
  iptunnel-server config get codes.ttl_seconds")]
    Get {
        /// The name of the setting: section.key
        key: Option<String>,
    },
    /// Change settings immediately; the changes survive a restart
    #[command(after_help = "\
Examples:
  iptunnel-server config set limits.issue_per_ip_hour=5 log.level=debug")]
    Set {
        /// Settings with their values, such as limits.issue_per_ip_hour=5
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = key_value)]
        settings: Vec<(String, String)>,
    },
    /// Undo changes made with set or in the console
    #[command(after_help = "\
Examples:
  iptunnel-server config unset limits.issue_per_ip_hour")]
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
            let body: Map<String, Value> =
                settings.into_iter().map(|(key, value)| (key, value.into())).collect();
            let keys = body.keys().cloned().collect();
            (server.patch("/config", &body.into())?, keys)
        }
        Settings::Unset { keys } => {
            let body: Map<String, Value> =
                keys.iter().map(|key| (key.clone(), Value::Null)).collect();
            (server.patch("/config", &body.into())?, keys)
        }
    };
    let mut shown = rows(&data, "settings")?.to_vec();
    if !named.is_empty() {
        shown.retain(|row| named.contains(&field(row, "key")));
    }
    if shown.is_empty() {
        return Err("no setting has that name; `config get` lists all of them".into());
    }
    let columns = ["key", "value", "unit", "source", "default", "allowed"];
    write(output, &json!({"settings": shown}), "settings", &columns)
}
