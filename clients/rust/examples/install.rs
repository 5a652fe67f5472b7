//! An installer. It reads the install code from standard input, so that no list of processes shows it:
//!
//! ```sh
//! cargo run -p iptunnel-client --example install -- \
//!     https://install.example.com slowdns ns1.example.com /var/lib/example < code
//! ```
//!
//! The last argument is a folder for its state and for what it installs. It exists already, and only its owner
//! may write to it. Run the same again after a crash or a loss of power: it goes on.

use iptunnel_client::{
    Binding, CheckIn, Client, Code, Error, FileStore, Installation, Machine, Payload, System,
};
use std::error;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What the installer is told.
pub struct Order {
    /// The client of the server and the product.
    pub client: Client,
    /// Where the server will be reached. Without an address the server is asked which one it sees.
    pub hostname: String,
    /// See [`Binding`].
    pub public_ip: Option<std::net::IpAddr>,
    /// For the state and for what is installed.
    pub folder: PathBuf,
}

/// Installs, or goes on with what was begun in the same folder. Returns what to tell the person. `code` is
/// called if a code is needed.
pub fn install(
    order: &Order,
    code: impl FnOnce() -> io::Result<Code>,
) -> Result<String, Box<dyn error::Error>> {
    let store = FileStore::open(order.folder.join("state"))?;
    let mut installation = match store.load()? {
        Some(state) => Installation::resume(&order.client, store, state)?,
        None => {
            let machine = Machine::random("none", &System::default())?;
            Installation::begin(&order.client, store, code()?, machine)?
        }
    };
    let public_ip = match order.public_ip {
        Some(public_ip) => public_ip,
        None => order.client.address()?,
    };
    let binding = Binding { hostname: order.hostname.clone(), public_ip };
    let ran = installation.run(&binding, |bound, payload| run(payload, bound, &order.folder));
    let server_id = match ran {
        Ok(server_id) => server_id,
        Err(error) => {
            // Without an answer there is nobody to give the code back to. The next call goes on.
            if let iptunnel_client::RunError::Installation(Error::NoAnswer { .. }) = error {
                installation.suspend();
            }
            return Err(error.into());
        }
    };
    Ok(match installation.check_in()? {
        CheckIn::Ok { next } => {
            format!("installed as server {server_id}; next check-in in {} s", next.as_secs())
        }
        CheckIn::Revoked => format!("server {server_id} is revoked"),
    })
}

/// Runs the payload, if the server has one, with what it is bound to in its environment.
fn run(payload: Option<&Payload>, bound: &Binding, folder: &Path) -> io::Result<()> {
    let Some(payload) = payload else { return Ok(()) };
    let script = folder.join("payload.sh");
    std::fs::write(&script, &payload.script)?;
    let mut command = Command::new("sh");
    command.arg(&script).arg("install").env("IPTUNNEL_ROOT", folder);
    command.env("IPTUNNEL_HOSTNAME", &bound.hostname);
    command.env("IPTUNNEL_IP", bound.public_ip.to_string());
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("it ended with {status}"))) }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, product, hostname, folder] = &arguments[..] else {
        eprintln!("usage: install SERVER PRODUCT HOSTNAME FOLDER < CODE");
        return ExitCode::from(2);
    };
    let read_code = || {
        let mut text = String::new();
        io::stdin().take(1000).read_to_string(&mut text)?;
        Ok(Code::new(text))
    };
    let (hostname, folder) = (hostname.clone(), PathBuf::from(folder));
    let told = Client::new(url, product).map_err(Into::into).and_then(|client| {
        install(&Order { client, hostname, public_ip: None, folder }, read_code)
    });
    match told {
        Ok(words) => println!("{words}"),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
