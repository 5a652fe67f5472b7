//! Everything that an operator may choose, checked.

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

/// Everything an operator may choose, checked: whoever holds one need not check again.
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
    /// What can be installed, by name: at least one, each with letters of its own.
    pub products: Vec<Product>,
    /// What pages say.
    pub pages: Pages,
    /// Seconds from a page's visit until its cookie expires.
    pub session_ttl_seconds: u64,
    /// How long codes and tokens live.
    pub lifetimes: Lifetimes,
    /// How often a route may be used.
    pub limits: Limits,
    /// Servers that check in.
    pub servers: Servers,
    /// How much each actor takes on.
    pub actors: Actors,
    /// What the log says, and how.
    pub log: Log,
}

/// The public listener.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// The address it listens on.
    pub bind: SocketAddr,
    /// The address under which browsers reach it.
    pub public_url: PublicUrl,
    /// Whose `X-Forwarded-For` is believed. An IPv4-mapped network is kept as its IPv4 network.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether a server may be bound to an address that is not globally reachable.
    pub allow_private_ips: bool,
    /// Threads that serve requests. 0 in the file stands for the number of processors, here it is
    /// that number.
    pub workers: NonZeroUsize,
    /// Connections open at once.
    pub max_connections: NonZeroUsize,
    /// When a request is given up. Its callers wait 15 s, so the default answers well before.
    pub request_timeout: Duration,
    /// How long accepted requests may take to finish once the process is told to stop.
    pub shutdown_grace: Duration,
}

/// The listener for operators.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// The address it listens on.
    pub bind: SocketAddr,
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
    /// Whether it is known that a failover or a power cut may bring spent codes back: then the server
    /// is ready all the same.
    pub allow_async_failover: bool,
    /// Days after which closed codes and activations are forgotten.
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

/// Where secrets are kept. Each file is made on first start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// The keys that sign tokens and cookies, one `kid:base64` a line.
    pub signing_key_file: PathBuf,
    /// The key under which secrets are looked up. Never rotated.
    pub lookup_key_file: PathBuf,
    /// The operators' token.
    pub master_token_file: PathBuf,
}

/// Something that can be installed.
#[derive(Clone, Debug, PartialEq)]
pub struct Product {
    /// Its name in paths and cookies: `[a-z][a-z0-9-]{0,31}`, and no path of the server's own.
    pub name: String,
    /// The letters in its codes.
    pub letters: ProductLetters,
}

/// What pages say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pages {
    /// The command shown beside a code. `{public_url}`, `{product}` and `{code}` stand for their
    /// values.
    pub install_command: String,
    /// The same for a machine that cannot be asked. `{variable}` stands for the name of the
    /// environment variable in which the installer looks for its code.
    pub unattended_command: String,
}

/// Servers that check in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Servers {
    /// Hours without a check-in after which a server counts as stale.
    pub stale_after_hours: u64,
    /// Seconds by which `last_checkin` may lag on disk.
    pub checkin_flush_seconds: u64,
    /// The status that tells an agent it is revoked: 200, on which agents act at once, or 403,
    /// which they count as a failure.
    pub revoked_checkin_status: u16,
    /// Seconds until the next check-in, as agents are told.
    pub next_checkin_seconds: u64,
}

/// How much one actor takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActorSize {
    /// Messages that may wait.
    pub queue: usize,
    /// Messages, or due records, handled in one go.
    pub batch: usize,
}

/// How much each actor takes on.
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

/// How a line of the log is written.
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

/// The least important line that is still written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What needs a person.
    Error,
    /// What may come to need one.
    Warn,
    /// What happened.
    Info,
    /// What was decided on the way.
    Debug,
    /// Everything.
    Trace,
}

/// What the log says, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// How a line is written.
    pub format: LogFormat,
    /// The least important line that is still written.
    pub level: LogLevel,
}

impl Backend {
    /// The name in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Redb => "redb",
            Self::Postgres => "postgres",
        }
    }
}

impl LogFormat {
    /// The name in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl LogLevel {
    /// The name in the file.
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
