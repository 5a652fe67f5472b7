//! The command line: one file for each command.
//!
//! * [`serve`]: runs the server; [`healthcheck`]: checks whether it is ready
//! * [`check_config`]: refuses what a start would refuse
//! * [`keys`], [`fence`], [`copy`], [`doctor`], [`restore`]: work on its files and its store
//! * [`backup`]: makes a backup, through the running server or by itself
//! * [`servers`], [`import`], [`codes`], [`activations`], [`settings`], [`tokens`], [`webhooks`], [`audit`]: send requests to a
//!   running server, with [`client`] and [`transport`]
//! * [`completions`], [`man`]: describe the command line itself
//! * [`environment`]: the variables that are settings
//! * [`terminal`]: the output of commands; [`error`]: their errors

mod activations;
mod audit;
mod backup;
mod check_config;
mod client;
mod codes;
mod completions;
mod copy;
mod doctor;
mod environment;
mod error;
mod fence;
mod healthcheck;
mod import;
mod keys;
mod man;
mod restore;
mod serve;
mod servers;
mod settings;
mod terminal;
mod tokens;
mod transport;
mod webhooks;

use crate::config::{Layers, Sources};
use clap::{Parser, Subcommand};
use error::CliError;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// The configuration file that is read if it exists and the command line names none.
const DEFAULT_FILE: &str = "config.toml";

/// IPTunnel's activation server.
#[derive(Debug, Parser)]
#[command(version, about, args_conflicts_with_subcommands = false)]
#[command(after_help = "\
Examples:
  iptunnel-server
  iptunnel-server --config /etc/iptunnel/config.toml check-config
  iptunnel-server --set server.bind=0.0.0.0:8080 serve
  iptunnel-server servers list --output json

Exit status:
  0  the command did what was asked; a list may be empty
  1  it failed, or what it checked is bad; standard error says what and why
  2  the command line is wrong

A pipe that its reader closes is no failure: the output ends there, and the status is the usual one.")]
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
    /// Send requests to this address with a token, instead of through the server's socket
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
    /// The file of the token that is sent with --url [default: auth.master_token_file]
    #[arg(long, global = true, value_name = "FILE", requires = "url")]
    token_file: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server (the default)
    ///
    /// SIGHUP reads the file, the signing keys, the master token and the certificates again. SIGTERM ends the server
    /// after it has answered what it has accepted.
    #[command(after_help = "\
Examples:
  iptunnel-server serve
  IPTUNNEL_SERVER__BIND=0.0.0.0:8080 iptunnel-server serve")]
    Serve,
    /// Check the configuration, the secrets and the certificates, and exit
    ///
    /// Refuses what a start would refuse. Changes nothing, and does not ask the database.
    #[command(after_help = "\
Examples:
  iptunnel-server check-config
  iptunnel-server --config new.toml check-config && mv new.toml config.toml")]
    CheckConfig,
    /// Show the configuration in effect, with secrets hidden
    #[command(after_help = "\
Examples:
  iptunnel-server print-config
  iptunnel-server --set log.level=debug print-config")]
    PrintConfig,
    /// Check whether the running server is ready
    #[command(after_help = "\
Examples:
  iptunnel-server healthcheck || systemctl status iptunnel-server")]
    Healthcheck,
    /// List, revoke, restore, note and delete servers
    #[command(after_help = "\
Examples:
  iptunnel-server servers list --show stale
  iptunnel-server servers revoke 0123456789abcdef
  iptunnel-server servers delete --unseen-days 90 --dry-run")]
    Servers {
        #[command(subcommand)]
        action: servers::Servers,
    },
    /// Take over the servers of another server
    ///
    /// FILE holds what the old server's GET /status has answered, without limit. Ids, addresses, host names,
    /// notes, revocations and times are kept, so agents go on under their ids. All rows are checked first: one
    /// bad row refuses all, and so does a row whose address another server has here. The command can be
    /// repeated: servers that were changed here since stay as they are. It needs the role admin.
    ///
    /// The exit status is 1 if a row was left out, or if a server is revoked in FILE and not here; standard
    /// error names it. With --dry-run too.
    #[command(after_help = "\
Examples:
  curl -H \"Authorization: Bearer $TOKEN\" https://old.example.com/status > status.json
  iptunnel-server import status.json --dry-run
  iptunnel-server import status.json")]
    Import {
        /// The file; - reads standard input
        file: PathBuf,
        /// Write nothing, and say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Show the history of a code, or find codes
    #[command(after_help = "\
Examples:
  iptunnel-server codes show ns1.example.com")]
    Codes {
        #[command(subcommand)]
        action: codes::Codes,
    },
    /// List activations
    #[command(after_help = "\
Examples:
  iptunnel-server activations list --open")]
    Activations {
        #[command(subcommand)]
        action: activations::Activations,
    },
    /// Show and change settings of the running server
    #[command(after_help = "\
Examples:
  iptunnel-server config get limits.issue_per_ip_hour
  iptunnel-server config set limits.issue_per_ip_hour=10
  iptunnel-server config unset limits.issue_per_ip_hour")]
    Config {
        #[command(subcommand)]
        action: settings::Settings,
    },
    /// Create, list, change, rotate and revoke access tokens
    ///
    /// An access token has a name and a role. Give one to each person, monitor and group of servers, and
    /// keep the master token for emergencies.
    #[command(after_help = "\
Examples:
  iptunnel-server tokens create office --role operate
  iptunnel-server tokens list
  iptunnel-server tokens rotate office --grace 2h
  iptunnel-server tokens revoke office")]
    Tokens {
        #[command(subcommand)]
        action: tokens::Tokens,
    },
    /// List and test webhooks, and send events again
    ///
    /// The setting webhooks.file names the file with the receivers.
    #[command(after_help = "\
Examples:
  iptunnel-server webhooks list
  iptunnel-server webhooks test office
  iptunnel-server webhooks replay office --dead")]
    Webhooks {
        #[command(subcommand)]
        action: webhooks::Webhooks,
    },
    /// Read, export and verify the audit log
    #[command(after_help = "\
Examples:
  iptunnel-server audit list --action server_revoked
  iptunnel-server audit export > audit.jsonl
  iptunnel-server audit verify")]
    Audit {
        #[command(subcommand)]
        action: audit::Audit,
    },
    /// Check whether the database keeps every acknowledged change, and the server's files
    ///
    /// Shows each finding with the reason and the command that corrects it. Fails if a finding is
    /// bad, for example if a spent code could become valid again.
    #[command(after_help = "\
Examples:
  iptunnel-server doctor
  iptunnel-server doctor --output json")]
    Doctor,
    /// Copy a store into another, empty store, and compare both
    ///
    /// Stop all servers first. Name each store as redb:PATH or postgres:URL. Without a path, redb
    /// means storage.path of the configuration. Without a URL, postgres means storage.url: this keeps
    /// the password off the command line.
    #[command(after_help = "\
Examples:
  iptunnel-server --config config.toml copy --from redb --to postgres
  iptunnel-server copy --from redb:data/iptunnel.redb --to redb:copy.redb")]
    Copy {
        /// The store to copy from
        #[arg(long, value_name = "STORE")]
        from: copy::StoreName,
        /// The empty store to copy to
        #[arg(long, value_name = "STORE")]
        to: copy::StoreName,
    },
    /// Make a backup while the server runs, or while it does not
    ///
    /// FOLDER holds the store at one moment, the signed heads of the audit log and the mark; with --recipient or
    /// --passphrase-file also the keys and the master token, encrypted. FOLDER is made; if it exists, it must be
    /// empty. Without it, the backup gets a new folder in backup.folder of the settings. A running server makes the
    /// backup itself, slowly, beside its requests. It needs the role admin.
    ///
    /// With PostgreSQL the command checks what a backup needs, writes what belongs to the database, and says
    /// how to make the backup of the database itself.
    #[command(after_help = "\
Examples:
  iptunnel-server backup /mnt/backup/monday
  iptunnel-server backup /mnt/backup/monday --recipient age1c7fskew0h8hw5sl3dqmrwled3qp08dse6mzdj2j5m0tflvnfd45shpy5yf
  iptunnel-server backup")]
    Backup {
        /// The folder of the backup [default: a new one in backup.folder]
        folder: Option<PathBuf>,
        #[command(flatten)]
        keys: backup::Keys,
    },
    /// Check a backup, put it in the server's place, and begin a new epoch
    ///
    /// Everything is checked first: one wrong byte refuses all. There must be no store in the place; a mark that
    /// an earlier store has left there stays, and is minded. Then every code that was unspent and every
    /// activation that was open when the backup was made is void, for some of them were spent or confirmed since.
    ///
    /// With PostgreSQL restore the database first, while no server runs.
    #[command(after_help = "\
Examples:
  iptunnel-server restore /mnt/backup/monday
  iptunnel-server restore /mnt/backup/monday --identity key.txt --public-key KEY")]
    Restore {
        /// The folder of the backup
        folder: PathBuf,
        #[command(flatten)]
        keys: restore::Keys,
        #[command(flatten)]
        signer: restore::Signer,
    },
    /// Void every unspent code and every open activation
    ///
    /// Use this after you restored an earlier state of the store together with its mark file: a code
    /// that was spent since then may look unspent. With redb, stop the server first.
    #[command(after_help = "\
Examples:
  systemctl stop iptunnel-server && iptunnel-server fence
  iptunnel-server fence --yes")]
    Fence {
        /// Do it without asking; needed where the command does not run on a terminal
        #[arg(long)]
        yes: bool,
    },
    /// Manage the keys that sign tokens
    #[command(after_help = "\
Examples:
  iptunnel-server keys list
  iptunnel-server keys add && systemctl reload iptunnel-server")]
    Keys {
        #[command(subcommand)]
        action: keys::Keys,
    },
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  iptunnel-server completions bash > /etc/bash_completion.d/iptunnel-server
  iptunnel-server completions zsh > /usr/local/share/zsh/site-functions/_iptunnel-server
  iptunnel-server completions fish > ~/.config/fish/completions/iptunnel-server.fish")]
    Completions {
        /// The shell
        shell: completions::Shell,
    },
    /// Print the manual page, or write the pages of all commands into a folder
    #[command(after_help = "\
Examples:
  iptunnel-server man > iptunnel-server.1 && man -l iptunnel-server.1
  iptunnel-server man --folder /usr/local/share/man/man1")]
    Man {
        /// Write one page for each command into this folder
        #[arg(long, value_name = "FOLDER")]
        folder: Option<PathBuf>,
    },
}

/// Parses `section.key=value`.
fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
        None => Err("must have the form section.key=value".into()),
    }
}

/// Runs the command line of this process, and returns the exit status.
pub fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => ended(cli.execute()),
        // Help and the version are answers, not mistakes.
        Err(answer) if !answer.use_stderr() => {
            let printed = answer.print().and_then(|()| std::io::stdout().flush());
            ended(terminal::written(printed).map_err(CliError::Other))
        }
        Err(mistake) => {
            let _ = mistake.print();
            ExitCode::from(2)
        }
    }
}

fn ended(outcome: Result<(), CliError>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::remark(&format!("iptunnel-server: {error}"));
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    fn sources(&self) -> Result<Sources, CliError> {
        let default = PathBuf::from(DEFAULT_FILE);
        // One that nobody can look at, or a link to nothing, is read, so that the error is shown.
        let is_missing = std::fs::symlink_metadata(&default)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
        let file = self.config.clone().or_else(|| (!is_missing).then_some(default));
        let mut flags = self.set.clone();
        flags.extend(self.url.clone().map(|url| ("admin.url".to_owned(), url)));
        if let Some(file) = &self.token_file {
            let file =
                file.to_str().ok_or_else(|| "--token-file: the path is not UTF-8".to_owned())?;
            flags.push(("auth.master_token_file".to_owned(), file.to_owned()));
        }
        Ok(Sources { file, env: environment::variables()?, flags })
    }

    fn execute(self) -> Result<(), CliError> {
        match self.command {
            // These describe the program, and need no configuration.
            Some(Command::Completions { shell }) => Ok(completions::completions(shell)?),
            Some(Command::Man { folder }) => Ok(man::man(folder.as_deref())?),
            _ => self.configured(),
        }
    }

    fn configured(self) -> Result<(), CliError> {
        let sources = self.sources()?;
        let layers = Layers::read(&sources)?;
        let (config, output) = (layers.with(&[])?.config, self.output);
        match self.command.unwrap_or(Command::Serve) {
            Command::Serve => serve::serve(&config, layers, sources)?,
            Command::CheckConfig => check_config::check_config(&config)?,
            Command::PrintConfig => terminal::print(&config.to_toml())?,
            Command::Healthcheck => healthcheck::healthcheck(&config)?,
            Command::Doctor => doctor::examine(&config, output)?,
            Command::Backup { folder, keys } => backup::backup(&config, output, folder, &keys)?,
            Command::Restore { folder, keys, signer } => {
                restore::restore(&config, &folder, &keys, &signer)?;
            }
            Command::Fence { yes } => fence::fence(&config, yes)?,
            Command::Copy { from, to } => copy::copy(&config, from, to)?,
            Command::Keys { action } => keys::keys(&config, action)?,
            Command::Servers { action } => servers::servers(&config, output, action)?,
            Command::Import { file, dry_run } => import::import(&config, output, &file, dry_run)?,
            Command::Codes { action } => codes::codes(&config, output, action)?,
            Command::Activations { action } => activations::activations(&config, output, action)?,
            Command::Config { action } => settings::settings(&config, output, action)?,
            Command::Tokens { action } => tokens::tokens(&config, output, action)?,
            Command::Webhooks { action } => webhooks::webhooks(&config, output, action)?,
            Command::Audit { action } => audit::audit(&config, output, action)?,
            Command::Completions { .. } | Command::Man { .. } => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn check(command: &clap::Command, above: &str) {
        let name = format!("{above} {}", command.get_name());
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.starts_with("Examples:\n  "), "{name} has no examples");
        assert!(command.get_about().is_some(), "{name} says not what it does");
        for one in command.get_subcommands().filter(|one| one.get_name() != "help") {
            check(one, &name);
        }
    }

    #[test]
    fn every_command_says_what_it_does_and_shows_examples() {
        let mut command = Cli::command();
        command.build();
        check(&command, "");
        command.debug_assert();
    }

    #[test]
    fn every_example_is_a_valid_command_line() {
        let mut lines = Vec::new();
        let mut waiting = vec![Cli::command()];
        while let Some(command) = waiting.pop() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples = help
                .lines()
                .filter(|line| line.starts_with("  ") && line.contains("iptunnel-server"));
            lines.extend(examples.map(str::to_owned));
            waiting.extend(command.get_subcommands().cloned());
        }
        assert!(lines.len() > 30, "{lines:?}");
        for line in lines {
            let words = line.split_whitespace().skip_while(|word| *word != "iptunnel-server");
            let words = words.take_while(|word| !["|", "||", "&&", ">", "<"].contains(word));
            let words: Vec<&str> = words.collect();
            assert!(Cli::try_parse_from(&words).is_ok(), "{line}");
        }
    }
}
