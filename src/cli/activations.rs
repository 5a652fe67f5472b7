//! `activations`: lists activations.

use super::client::Server;
use super::terminal::{Output, write};
use crate::config::Config;
use clap::Subcommand;

/// The subcommands of `activations`.
#[derive(Debug, Subcommand)]
pub enum Activations {
    /// List the most recent activations
    #[command(after_help = "\
Examples:
  iptunnel-server activations list
  iptunnel-server activations list --open --limit 1000 --output json")]
    List {
        /// List only open activations
        #[arg(long)]
        open: bool,
        /// The most activations to list, up to 1000
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
    },
}

/// Lists activations.
///
/// # Errors
/// A message that says why the command failed.
pub fn activations(config: &Config, output: Output, action: Activations) -> Result<(), String> {
    let Activations::List { open, limit } = action;
    let query = [("open", if open { "1" } else { "0" }), ("limit", &limit.to_string())];
    let found = Server::of(config)?.get("/activations", &query)?;
    let columns =
        ["activation", "hostname", "public_ip", "state", "opened_at", "age_seconds", "code"];
    write(output, &found, "activations", &columns)
}
