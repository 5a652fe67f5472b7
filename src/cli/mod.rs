//! The command line: one file a command.
//!
//! * [`serve`]: the server; [`healthcheck`]: whether it is ready
//! * [`keys`], [`fence`], [`copy`], [`doctor`]: what is done to its files and its store
//! * [`servers`], [`codes`], [`activations`], [`settings`], [`audit`]: ask a running server, by
//!   [`client`]
//! * [`terminal`]: what commands write; [`error`]: why they fail

mod activations;
mod audit;
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

use crate::config::{Layers, Sources};
use clap::{Parser, Subcommand};
use error::CliError;
use std::path::PathBuf;
use std::process::ExitCode;

/// The file that is read where none is named and it is there.
const DEFAULT_FILE: &str = "config.toml";

/// IPTunnel's activation server.
#[derive(Debug, Parser)]
#[command(version, about, args_conflicts_with_subcommands = false)]
pub struct Cli {
    /// The configuration file [default: config.toml, where there is one]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one value, such as server.bind=0.0.0.0:80; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// How commands that ask a running server write what they hear
    #[arg(long, global = true, value_enum, default_value_t)]
    output: terminal::Output,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server (the default)
    Serve,
    /// Check the configuration and end
    CheckConfig,
    /// Show the configuration in force, secrets hidden
    PrintConfig,
    /// Ask the running server whether it is ready
    Healthcheck,
    /// List, revoke and restore servers
    Servers {
        #[command(subcommand)]
        action: servers::Servers,
    },
    /// Show what happened to codes
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
    /// Say whether the database keeps what the server promises
    ///
    /// Each finding with why it matters and the command that mends it. Fails where a spent code
    /// could come back.
    Doctor,
    /// Copy a store into another, empty one, and compare them
    ///
    /// Both are named as redb:PATH or postgres:URL; redb alone is storage.path of the configuration,
    /// postgres alone its storage.url, which keeps the password off the command line. Stop all
    /// servers first.
    Copy {
        /// Where everything is
        #[arg(long, value_name = "STORE")]
        from: String,
        /// Where it is to be
        #[arg(long, value_name = "STORE")]
        to: String,
    },
    /// Make every unspent code and open activation void
    ///
    /// After an earlier state of the store has been restored together with its mark: a code that
    /// was spent since may look unspent. With redb, stop the server first.
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
    /// Does what the command line says.
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
        let file = self.config.clone().or_else(|| default.exists().then_some(default));
        Sources { file, env: std::env::vars().collect(), flags: self.set.clone() }
    }

    fn execute(self) -> Result<(), CliError> {
        let sources = self.sources();
        let layers = Layers::read(&sources)?;
        let (config, output) = (layers.with(&[])?.config, self.output);
        match self.command {
            None | Some(Command::Serve) => serve::serve(&config, layers, sources),
            Some(Command::CheckConfig) => {
                println!("The configuration is good.");
                Ok(())
            }
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
