//! `activations`: lists activations.

use super::client::Server;
use super::terminal::{Output, write};
use crate::config::Config;
use clap::Subcommand;

/// What is asked of the activations.
#[derive(Debug, Subcommand)]
pub enum Activations {
    /// List the last activations
    List {
        /// Only open ones
        #[arg(long)]
        open: bool,
        /// Of how many
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
}

/// Asks about activations.
///
/// # Errors
/// What went wrong, in words.
pub fn activations(config: &Config, output: Output, action: Activations) -> Result<(), String> {
    let Activations::List { open, limit } = action;
    let query = [("open", if open { "1" } else { "0" }), ("limit", &limit.to_string())];
    let found = Server::of(config)?.get("/activations", &query)?;
    let columns = ["activation", "hostname", "public_ip", "state", "opened_at", "age_seconds"];
    write(output, &found, "activations", &columns);
    Ok(())
}
