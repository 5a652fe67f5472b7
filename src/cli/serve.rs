//! `serve`: runs the server until a signal ends it.

use super::error::CliError;
use super::terminal::tell;
use crate::app::{self, Environment, RunError, Signal};
use crate::config::{Config, Layers, Product, Sources};
use crate::logging::Logging;
use crate::os::{Clock, SystemClock};
use crate::private_file::make_folder_of;
use crate::secrets::{Secret, master_token};
use crate::store::files::files;
use crate::store::first_start::make_secrets;
use iptunnel_domain::Timestamp;
use std::io::{IsTerminal, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

fn listen(address: SocketAddr) -> Result<TcpListener, CliError> {
    TcpListener::bind(address).map_err(|error| CliError::Listen(address, error))
}

/// Runs the server.
///
/// # Errors
/// The server cannot start, or must be restarted.
pub fn serve(config: &Config, layers: Layers, sources: Sources) -> Result<(), CliError> {
    let logging = Arc::new(Logging::start(config.log.format, config.log.level));
    let clock = SystemClock::default();
    make_folder_of(&config.storage.path)
        .map_err(|problem| CliError::Folder { path: config.storage.path.clone(), problem })?;
    let (public, admin) = (listen(config.server.bind)?, listen(config.admin.bind)?);
    make_and_announce_secrets(config, clock.now())?;
    let welcome = welcome(config, &public, &admin)?;
    let environment =
        Environment { clock: Arc::new(clock), disks: files(&config.storage.path), public, admin };
    let system = actix_web::rt::System::new();
    let outcome = system.block_on(async {
        let signals = operating_system_signals(sources).map_err(RunError::Listen)?;
        let log = Arc::clone(&logging);
        let on_change = Box::new(move |config: &Config| log.set_level(config.log.level));
        app::run(layers, environment, signals, on_change, || announce(&welcome)).await
    });
    Ok(outcome?)
}

/// Prints a line. A server runs even where nobody can read what it prints.
fn announce(text: &str) {
    let _ = tell(text);
}

/// Makes the secrets on the first start. Shows a new master token, once, and only on a terminal.
fn make_and_announce_secrets(config: &Config, now: Timestamp) -> Result<(), CliError> {
    if !make_secrets(config, now).map_err(RunError::Store)?.contains(&Secret::MasterToken) {
        return Ok(());
    }
    let path = &config.auth.master_token_file;
    let token = master_token(path)?;
    let mut terminal = std::io::stdout();
    if terminal.is_terminal() {
        // A closed terminal is no reason to stop: the token is in the file.
        let _ = writeln!(terminal, "Master token (shown this once): {}", *token);
    }
    announce(&format!("The master token is in {}", path.display()));
    Ok(())
}

fn welcome(config: &Config, public: &TcpListener, admin: &TcpListener) -> Result<String, CliError> {
    let address = |listener: &TcpListener| {
        listener.local_addr().map_err(|error| CliError::Other(error.to_string()))
    };
    let (public, admin) = (address(public)?, address(admin)?);
    let scheme = |cert: &Path| if cert.as_os_str().is_empty() { "http" } else { "https" };
    let (of_public, of_admin) = (scheme(&config.server.tls_cert), scheme(&config.admin.tls_cert));
    let page = |product: &Product| format!("{of_public}://{public}/{}", product.name);
    let pages: Vec<String> = config.products.iter().map(page).collect();
    Ok(format!(
        "Codes are issued at {}\nOperators look at {of_admin}://{admin}/console",
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
