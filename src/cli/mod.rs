//! The command line: one file for each command.
//!
//! * [`serve`]: runs the server; [`healthcheck`]: checks whether it is ready
//! * [`check_config`]: refuses what a start would refuse
//! * [`keys`], [`fence`], [`copy`], [`doctor`]: work on its files and its store
//! * [`servers`], [`codes`], [`activations`], [`settings`], [`audit`]: send requests to a running
//!   server, with [`client`] and [`transport`]
//! * [`terminal`]: the output of commands; [`error`]: their errors

mod activations;
mod audit;
mod check_config;
mod client;
mod codes;
mod copy;
mod doctor;
mod error;
mod fence;
mod healthcheck;
mod keys;
mod serve;
mod servers;
mod settings;
mod terminal;
mod transport;

use crate::config::{Layers, Sources};
use clap::{Parser, Subcommand};
use error::CliError;
use std::path::PathBuf;
use std::process::ExitCode;

/// The configuration file that is read if it exists and the command line names none.
const DEFAULT_FILE: &str = "config.toml";

/// IPTunnel's activation server.
#[derive(Debug, Parser)]
#[command(version, about, args_conflicts_with_subcommands = false)]
pub struct Cli {
    /// The configuration file [default: config.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one value, such as server.bind=0.0.0.0:80; can be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// The output format of commands that ask a running server, and of doctor
    #[arg(long, global = true, value_enum, default_value_t)]
    output: terminal::Output,
    /// Send requests to this address with the master token, instead of through the server's socket
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server (the default)
    Serve,
    /// Check the configuration and the secrets, and exit
    ///
    /// Refuses what a start would refuse. Changes nothing, and does not ask the database.
    CheckConfig,
    /// Show the configuration in effect, with secrets hidden
    PrintConfig,
    /// Check whether the running server is ready
    Healthcheck,
    /// List, revoke and restore servers
    Servers {
        #[command(subcommand)]
        action: servers::Servers,
    },
    /// Show the history of a code, or find codes
    Codes {
        #[command(subcommand)]
        action: codes::Codes,
    },
    /// List activations
    Activations {
        #[command(subcommand)]
        action: activations::Activations,
    },
    /// Show and change settings of the running server
    Config {
        #[command(subcommand)]
        action: settings::Settings,
    },
    /// Read, export and verify the audit log
    Audit {
        #[command(subcommand)]
        action: audit::Audit,
    },
    /// Check whether the database keeps every acknowledged change, and the server's files
    ///
    /// Shows each finding with the reason and the command that corrects it. Fails if a finding is
    /// bad, for example if a spent code could become valid again.
    Doctor,
    /// Copy a store into another, empty store, and compare both
    ///
    /// Stop all servers first. Name each store as redb:PATH or postgres:URL. Without a path, redb
    /// means storage.path of the configuration. Without a URL, postgres means storage.url: this keeps
    /// the password off the command line.
    Copy {
        /// The store to copy from
        #[arg(long, value_name = "STORE")]
        from: String,
        /// The empty store to copy to
        #[arg(long, value_name = "STORE")]
        to: String,
    },
    /// Void every unspent code and every open activation
    ///
    /// Use this after you restored an earlier state of the store together with its mark file: a code
    /// that was spent since then may look unspent. With redb, stop the server first.
    Fence,
    /// Manage the keys that sign tokens
    Keys {
        #[command(subcommand)]
        action: keys::Keys,
    },
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
        None => Err("must have the form section.key=value".into()),
    }
}

impl Cli {
    /// Runs the command, prints an error if it fails, and returns the exit code.
    pub fn run(self) -> ExitCode {
        match self.execute() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("iptunnel-server: {error}");
                ExitCode::FAILURE
            }
        }
    }

    fn sources(&self) -> Sources {
        let default = PathBuf::from(DEFAULT_FILE);
        // One that nobody can look at is read, so that the error is shown.
        let is_there = default.try_exists().unwrap_or(true);
        let file = self.config.clone().or_else(|| is_there.then_some(default));
        let mut flags = self.set.clone();
        flags.extend(self.url.clone().map(|url| ("admin.url".to_owned(), url)));
        Sources { file, env: std::env::vars().collect(), flags }
    }

    fn execute(self) -> Result<(), CliError> {
        let sources = self.sources();
        let layers = Layers::read(&sources)?;
        let (config, output) = (layers.with(&[])?.config, self.output);
        match self.command {
            None | Some(Command::Serve) => serve::serve(&config, layers, sources),
            Some(Command::CheckConfig) => check_config::check_config(&config),
            Some(Command::PrintConfig) => {
                print!("{}", config.to_toml());
                Ok(())
            }
            Some(Command::Healthcheck) => healthcheck::healthcheck(&config),
            Some(Command::Doctor) => asked(doctor::examine(&config, output)),
            Some(Command::Fence) => fence::fence(&config),
            Some(Command::Copy { from, to }) => asked(copy::copy(&config, &from, &to)),
            Some(Command::Keys { action }) => keys::keys(&config, action),
            Some(Command::Servers { action }) => asked(servers::servers(&config, output, action)),
            Some(Command::Codes { action }) => asked(codes::codes(&config, output, action)),
            Some(Command::Activations { action }) => {
                asked(activations::activations(&config, output, action))
            }
            Some(Command::Config { action }) => asked(settings::settings(&config, output, action)),
            Some(Command::Audit { action }) => asked(audit::audit(&config, output, action)),
        }
    }
}

fn asked(outcome: Result<(), String>) -> Result<(), CliError> {
    outcome.map_err(CliError::Other)
}
