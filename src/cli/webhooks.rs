//! `webhooks`: lists webhooks, tests one, and sends events again.

use super::client::Server;
use super::terminal::{Output, field, tell, write};
use crate::config::Config;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

/// The subcommands of `webhooks`.
#[derive(Debug, Subcommand)]
pub enum Webhooks {
    /// List the webhooks, and how each receiver is
    #[command(after_help = "\
Examples:
  iptunnel-server webhooks list
  iptunnel-server webhooks list --output json")]
    List,
    /// Send a test message at once
    ///
    /// Fails if the receiver does not answer with 2xx, and says why.
    #[command(after_help = "\
Examples:
  iptunnel-server webhooks test office")]
    Test {
        /// The webhook
        name: String,
    },
    /// List the events that were given up
    #[command(after_help = "\
Examples:
  iptunnel-server webhooks dead
  iptunnel-server webhooks dead office")]
    Dead {
        /// The webhook [default: all]
        name: Option<String>,
    },
    /// Send events again
    #[command(after_help = "\
Examples:
  iptunnel-server webhooks replay office --message 4711
  iptunnel-server webhooks replay office --dead
  iptunnel-server webhooks replay office --since 2030-01-31T12:00:00Z")]
    Replay {
        /// The webhook
        name: String,
        #[command(flatten)]
        what: What,
    },
    /// Enable a webhook whose receiver has said that it is gone (410)
    ///
    /// It hears of what happens from now on.
    #[command(after_help = "\
Examples:
  iptunnel-server webhooks enable office")]
    Enable {
        /// The webhook
        name: String,
    },
}

/// What is sent again.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct What {
    /// One message: its id, or the number of its entry in the audit log
    #[arg(long, value_name = "ID")]
    message: Option<String>,
    /// All dead letters
    #[arg(long)]
    dead: bool,
    /// Everything since this time: a date (its first second, UTC), or a time such as 2030-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
}

fn done(output: Output, data: &Value) -> Result<(), String> {
    match output {
        Output::Json => tell(&data.to_string()),
        _ => tell(&format!("{} {}", field(data, "webhook"), field(data, "status"))),
    }
}

/// Lists webhooks, or changes one.
///
/// # Errors
/// A message that says why the command failed.
pub fn webhooks(config: &Config, output: Output, action: Webhooks) -> Result<(), String> {
    let server = Server::of(config)?;
    let post = |name: &str, verb: &str, body: Value| {
        done(output, &server.post(&format!("/webhooks/{name}/{verb}"), &body)?)
    };
    match action {
        Webhooks::List => {
            let columns = [
                "name",
                "url",
                "state",
                "last_delivered",
                "waiting",
                "failing_since",
                "dead_letters",
                "last_error",
            ];
            write(output, &server.get("/webhooks", &[])?, "webhooks", &columns)
        }
        Webhooks::Dead { name } => {
            let name = name.unwrap_or_default();
            let columns =
                ["webhook", "number", "type", "about", "at", "given_up_at", "tries", "why"];
            write(
                output,
                &server.get("/webhooks/dead", &[("name", &name)])?,
                "dead_letters",
                &columns,
            )
        }
        Webhooks::Test { name } => post(&name, "test", json!({})),
        Webhooks::Enable { name } => post(&name, "enable", json!({})),
        Webhooks::Replay { name, what: What { message, dead, since } } => {
            post(&name, "replay", json!({"message": message, "dead": dead, "since": since}))
        }
    }
}
