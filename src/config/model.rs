//! The checked configuration.

use super::url::PublicUrl;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use iptunnel_domain::code::ProductLetters;
use iptunnel_domain::limit::Limits;
use iptunnel_domain::time::Lifetimes;
use serde::{Deserialize, Serialize};

/// The checked configuration. Code that receives one need not check it again.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The public listener.
    pub server: Server,
    /// The listener for operators.
    pub admin: Admin,
    /// Where records are kept.
    pub storage: Storage,
    /// Where secrets are kept.
    pub auth: Auth,
    /// The backups that the server makes.
    pub backup: Backup,
    /// The products, by name: at least one, each with different letters.
    pub products: Vec<Product>,
    /// The texts of pages.
    pub pages: Pages,
    /// What is handed out to installers.
    pub installer: Installer,
    /// The webhooks.
    pub webhooks: Webhooks,
    /// Seconds from a page's visit until its cookie expires.
    pub session_ttl_seconds: u64,
    /// How long codes and tokens live.
    pub lifetimes: Lifetimes,
    /// The rate limits.
    pub limits: Limits,
    /// Servers that check in.
    pub servers: Servers,
    /// The sizes of the actors.
    pub actors: Actors,
    /// The level and format of the log.
    pub log: Log,
}

/// The public listener.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// The address it listens on.
    pub bind: SocketAddr,
    /// The address under which browsers reach it.
    pub public_url: PublicUrl,
    /// The file of the certificate. Empty: plain HTTP.
    pub tls_cert: PathBuf,
    /// The file of the certificate's private key.
    pub tls_key: PathBuf,
    /// How long browsers use nothing but HTTPS after an answer over it.
    pub hsts: Duration,
    /// The proxies whose `X-Forwarded-For` is trusted. An IPv4-mapped network is kept as its IPv4 network.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether a server may be bound to an address that is not globally reachable.
    pub allow_private_ips: bool,
    /// Threads that serve requests. 0 in the file means the number of processors; this field holds that
    /// number.
    pub workers: NonZeroUsize,
    /// The most open connections.
    pub max_connections: NonZeroUsize,
    /// The most open connections of one network. Trusted proxies are not counted.
    pub max_connections_per_ip: NonZeroUsize,
    /// The time after which a connection without a request is closed.
    pub idle_timeout: Duration,
    /// The deadline of a request. Installers wait 15 s, so the default is well below that.
    pub request_timeout: Duration,
    /// The time that accepted requests have to finish at a shutdown.
    pub shutdown_grace: Duration,
}

/// The listener for operators.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// The address it listens on.
    pub bind: SocketAddr,
    /// The file of the certificate. Empty: plain HTTP.
    pub tls_cert: PathBuf,
    /// The file of the certificate's private key.
    pub tls_key: PathBuf,
    /// The file of the certificates of those who sign callers' certificates. Empty: callers need none.
    pub tls_client_ca: PathBuf,
    /// The Unix socket on which it listens for the command line. Empty: beside the store.
    pub socket: PathBuf,
    /// The address at which the command line reaches it, with the master token. Empty: the socket.
    pub url: String,
    /// The file of the certificates that commands trust at that address. Empty: those that the machine trusts.
    pub url_ca: PathBuf,
    /// The file of the certificate that commands show there. Empty: they show none.
    pub url_cert: PathBuf,
    /// The file of the private key of that certificate.
    pub url_key: PathBuf,
}

/// Where records are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storage {
    /// The engine.
    pub backend: Backend,
    /// The file of an embedded engine.
    pub path: PathBuf,
    /// The address of a shared engine, with its password: never shown. Empty with redb.
    pub url: String,
    /// Whether the operator accepts that a failover or a power cut may make spent codes valid again. The
    /// server is then ready nevertheless.
    pub allow_async_failover: bool,
    /// Days after which closed codes and activations are deleted.
    pub retention_days: u64,
}

/// A storage engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Embedded, for one server.
    Redb,
    /// A PostgreSQL database, which several servers share.
    Postgres,
}

/// The files of the secrets. The first start creates them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// The keys that sign tokens and cookies, one `kid:base64` on each line.
    pub signing_key_file: PathBuf,
    /// The key for hashing secrets before a lookup. Never rotated.
    pub lookup_key_file: PathBuf,
    /// The operators' token.
    pub master_token_file: PathBuf,
}

/// The backups that the server makes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// The folder in which each gets a folder of its own.
    pub folder: PathBuf,
    /// Hours from one to the next; 0 for never.
    pub every_hours: u64,
    /// How many are kept.
    pub keep: usize,
    /// The address of age to which the secrets are encrypted. Empty: they are not in the backups.
    pub keys_recipient: String,
}

/// Something that can be installed.
#[derive(Clone, Debug, PartialEq)]
pub struct Product {
    /// The name in paths and cookies: `[a-z][a-z0-9-]{0,31}`, and not a path of the server itself.
    pub name: String,
    /// The letters in its codes.
    pub letters: ProductLetters,
}

/// The texts of pages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pages {
    /// The command shown beside a code. `{public_url}`, `{product}` and `{code}` stand for their
    /// values.
    pub install_command: String,
    /// The command for an unattended install. `{variable}` stands for the name of the environment
    /// variable from which the installer reads its code.
    pub unattended_command: String,
}

/// What this server hands out to installers: the payloads of products, and the main stack's installer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Installer {
    /// The folder with the payloads of products, one `{product}.sh` each. Empty: there is none.
    pub payloads: PathBuf,
    /// The file of the main stack's installer. Empty: there is none.
    pub script: PathBuf,
    /// The version that is announced. Empty: none.
    pub version: String,
    /// What is new in this version.
    pub notes: String,
}

impl Installer {
    /// Returns the file of a product's payload. `None`: there is no folder of payloads. A product's name is
    /// a file's name too.
    pub fn payload(&self, product: &str) -> Option<PathBuf> {
        let has_folder = !self.payloads.as_os_str().is_empty();
        has_folder.then(|| self.payloads.join(format!("{product}.sh")))
    }
}

/// The webhooks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhooks {
    /// The file that names them, with their secrets. Empty: there are none.
    pub file: PathBuf,
}

/// Servers that check in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Servers {
    /// Hours without a check-in after which a server counts as stale.
    pub stale_after_hours: u64,
    /// The most seconds until `last_checkin` is written to disk.
    pub checkin_flush_seconds: u64,
    /// The status for the check-in of a revoked server: 200, on which its agent acts at once, or 403,
    /// which its agent counts as a failure.
    pub revoked_checkin_status: u16,
    /// Seconds until the next check-in, which agents receive.
    pub next_checkin_seconds: u64,
    /// Days without a check-in after which a server is deleted by itself; 0 for never.
    pub forget_after_days: u64,
    /// Check-in intervals without a check-in after which a server is silent.
    pub silent_after_intervals: u64,
    /// The share of silent servers that is an event, in percent; 0 for never.
    pub silent_share_percent: u64,
}

/// The size of one actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActorSize {
    /// The most messages that wait.
    pub queue: usize,
    /// Messages, or due records, processed in one step.
    pub batch: usize,
}

/// The sizes of the actors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Actors {
    /// The owner of all codes.
    pub code_registry: ActorSize,
    /// The owner of all activations.
    pub activation: ActorSize,
    /// The owner of all counters.
    pub rate_limiter: ActorSize,
    /// The owner of all servers.
    pub server_registry: ActorSize,
    /// The one that writes to disk.
    pub persistence: ActorSize,
}

/// The format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// The lowest level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// A problem that needs a person.
    Error,
    /// A problem that may need a person later.
    Warn,
    /// An event.
    Info,
    /// A decision within a request.
    Debug,
    /// Everything.
    Trace,
}

/// The level and format of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// The format of a line.
    pub format: LogFormat,
    /// The lowest level that is logged.
    pub level: LogLevel,
}

impl Backend {
    /// Returns the name in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Redb => "redb",
            Self::Postgres => "postgres",
        }
    }
}

impl LogFormat {
    /// Returns the name in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl LogLevel {
    /// Returns the name in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}
