//! The command line.

use crate::ambient::{Clock, SystemClock};
use crate::app::{self, RunError, Signal, Surroundings, files, open_store};
use crate::config::{Config, ConfigError, Layers, Sources};
use crate::doctor;
use crate::logging::Logging;
use crate::mark;
use crate::moving;
use crate::remote::{self, admin_address};
use crate::secrets::{SecretError, SigningFile, make_folder_of, master_token};
use clap::{Parser, Subcommand};
use std::io::{IsTerminal, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

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
    output: remote::Output,
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
        action: remote::Servers,
    },
    /// Show what happened to codes
    Codes {
        #[command(subcommand)]
        action: remote::Codes,
    },
    /// List activations
    Activations {
        #[command(subcommand)]
        action: remote::Activations,
    },
    /// Show and change settings of the running server
    Config {
        #[command(subcommand)]
        action: remote::Settings,
    },
    /// Read, export and verify the audit log
    Audit {
        #[command(subcommand)]
        action: remote::Audit,
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
        action: Keys,
    },
}

#[derive(Debug, Subcommand)]
enum Keys {
    /// Show the names of the keys, the signing one first
    List,
    /// Add a key that verifies, but does not sign yet
    Add,
    /// Make a key sign: the one named, else the one added last
    Promote {
        /// Its name
        kid: Option<String>,
    },
    /// Drop the key named, or all but the signing one
    ///
    /// Tokens and cookies that a dropped key has signed are void. Wait for the longest of their
    /// lifetimes after a promotion, or say --force.
    Prune {
        /// Its name
        kid: Option<String>,
        /// Do not look at how long ago the file was changed
        #[arg(long)]
        force: bool,
    },
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
        None => Err("must have the form section.key=value".into()),
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("{0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    #[error("{0}")]
    Other(String),
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
            None | Some(Command::Serve) => serve(&config, layers, sources),
            Some(Command::CheckConfig) => {
                println!("The configuration is good.");
                Ok(())
            }
            Some(Command::PrintConfig) => {
                print!("{}", config.to_toml());
                Ok(())
            }
            Some(Command::Healthcheck) => healthcheck(&config),
            Some(Command::Doctor) => asked(doctor::examine(&config, output)),
            Some(Command::Fence) => fence(&config),
            Some(Command::Copy { from, to }) => asked(moving::copy(&config, &from, &to)),
            Some(Command::Keys { action }) => keys(&config, action),
            Some(Command::Servers { action }) => asked(remote::servers(&config, output, action)),
            Some(Command::Codes { action }) => asked(remote::codes(&config, output, action)),
            Some(Command::Activations { action }) => {
                asked(remote::activations(&config, output, action))
            }
            Some(Command::Config { action }) => asked(remote::settings(&config, output, action)),
            Some(Command::Audit { action }) => asked(remote::audit(&config, output, action)),
        }
    }
}

fn asked(outcome: Result<(), String>) -> Result<(), CliError> {
    outcome.map_err(CliError::Other)
}

fn listen(address: SocketAddr) -> Result<TcpListener, CliError> {
    TcpListener::bind(address).map_err(|error| CliError::Listen(address, error))
}

fn serve(config: &Config, layers: Layers, sources: Sources) -> Result<(), CliError> {
    let logging = Arc::new(Logging::start(config.log.format, config.log.level));
    make_folder_of(&config.storage.path)?;
    let (public, admin) = (listen(config.server.bind)?, listen(config.admin.bind)?);
    announce_master_token(config)?;
    let welcome = welcome(config, &public, &admin)?;
    let surroundings = Surroundings {
        clock: Arc::new(SystemClock::default()),
        disks: files(&config.storage.path),
        public,
        admin,
    };
    let system = actix_web::rt::System::new();
    let outcome = system.block_on(async {
        let signals = operating_system_signals(sources).map_err(RunError::Listen)?;
        let log = Arc::clone(&logging);
        let on_change = Box::new(move |config: &Config| log.set_level(config.log.level));
        app::run(layers, surroundings, signals, on_change, || tell(&welcome)).await
    });
    Ok(outcome?)
}

/// Says something on standard output. Where nobody reads that the server runs all the same.
pub fn tell(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Shows a master token that has just been made, once, and only to a person at a terminal.
fn announce_master_token(config: &Config) -> Result<(), CliError> {
    let path = &config.auth.master_token_file;
    let master = master_token(path)?;
    if !master.is_new {
        return Ok(());
    }
    let mut terminal = std::io::stdout();
    if terminal.is_terminal() {
        // A terminal that is gone cannot be told anything; the file has the token.
        let _ = writeln!(terminal, "Master token (shown this once): {}", *master.token);
    }
    tell(&format!("The master token is in {}", path.display()));
    Ok(())
}

fn welcome(config: &Config, public: &TcpListener, admin: &TcpListener) -> Result<String, CliError> {
    let address = |listener: &TcpListener| {
        listener.local_addr().map_err(|error| CliError::Other(error.to_string()))
    };
    let (public, admin) = (address(public)?, address(admin)?);
    let pages: Vec<String> =
        config.products.iter().map(|product| format!("http://{public}/{}", product.name)).collect();
    Ok(format!(
        "Codes are issued at {}\nOperators look at http://{admin}/console",
        pages.join(" and ")
    ))
}

fn operating_system_signals(sources: Sources) -> std::io::Result<mpsc::Receiver<Signal>> {
    let (send, receive) = mpsc::channel(1);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    actix_web::rt::spawn(async move {
        loop {
            let what = tokio::select! {
                _ = terminate.recv() => Signal::Stop,
                _ = interrupt.recv() => Signal::Stop,
                _ = hang_up.recv() => {
                    let sources = sources.clone();
                    Signal::Reload(Box::new(move || Layers::read(&sources)))
                }
            };
            if send.send(what).await.is_err() {
                return;
            }
        }
    });
    Ok(receive)
}

/// Asks `/readyz` on the operators' listener.
fn healthcheck(config: &Config) -> Result<(), CliError> {
    const PATIENCE: Duration = Duration::from_secs(3);
    let address = admin_address(config);
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| CliError::Listen(address, error))?;
    if answer.starts_with("HTTP/1.1 200") {
        println!("ready");
        return Ok(());
    }
    Err(CliError::Other(format!("{address}: not ready")))
}

fn fence(config: &Config) -> Result<(), CliError> {
    let store = open_store(config, files(&config.storage.path)).map_err(RunError::Store)?;
    let epoch = mark::fence(store.as_ref(), &config.storage.path, SystemClock::default().now());
    store.close();
    let epoch = epoch.map_err(|error| CliError::Other(error.to_string()))?;
    tell(&format!("epoch {epoch}: what was issued and not spent before is void"));
    Ok(())
}

fn keys(config: &Config, action: Keys) -> Result<(), CliError> {
    let path = &config.auth.signing_key_file;
    let mut file = SigningFile::read_or_make(path)?;
    match action {
        Keys::List => {
            for (place, key) in file.keys().iter().enumerate() {
                println!("{}{}", key.kid, if place == 0 { "  signs" } else { "" });
            }
        }
        Keys::Add => println!("{} added: it verifies; `keys promote` makes it sign", file.add()?),
        Keys::Promote { kid } => println!("{} signs now", file.promote(kid.as_deref())?),
        Keys::Prune { kid, force } => {
            if !force {
                refuse_early_prune(config, path)?;
            }
            println!("dropped: {}", file.prune(kid.as_deref())?.join(" "));
        }
    }
    println!("A running server reads the file again on SIGHUP.");
    Ok(())
}

/// What a key signed may be in use for the longest lifetime after it stopped signing.
fn refuse_early_prune(config: &Config, path: &std::path::Path) -> Result<(), CliError> {
    let life = &config.lifetimes;
    let longest = life.precheck_token.max(life.install_token).max(config.session_ttl_seconds);
    let age = std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let age = age.and_then(|modified| modified.elapsed().ok()).unwrap_or_default();
    if age < Duration::from_secs(longest) {
        return Err(CliError::Other(format!(
            "{}: changed {} s ago, and what its keys have signed lives for up to {longest} s: \
             wait, or say --force",
            path.display(),
            age.as_secs()
        )));
    }
    Ok(())
}
