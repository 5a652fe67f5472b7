//! The one table of keys: the allowed values of each, and whether it can change while the server runs.

use std::fmt;
use std::net::SocketAddr;

use iptunnel_domain::code::ProductLetters;
use toml::Value;

use super::convert::MAX_WORKERS;
use super::raw::Network;
use super::url::PublicUrl;
use crate::age::Recipient;

/// One key of the file.
pub(super) struct Key {
    /// Section and key, joined by a dot.
    pub(super) name: &'static str,
    /// The allowed values.
    pub(super) kind: Kind,
    /// Whether a changed value takes effect without a restart.
    pub(super) at_run_time: bool,
}

/// The kinds of values.
pub(super) enum Kind {
    /// A whole number from `min` to `max`, both included. The unit is empty or begins with " of ".
    Whole { unit: &'static str, min: i64, max: i64 },
    /// One of a few numbers.
    Number(&'static [i64]),
    /// One of a few words.
    Word(&'static [&'static str]),
    /// True or false.
    Switch,
    /// An IP address and a port.
    Listener,
    /// The address of a site.
    Url,
    /// The address of a listener, or nothing.
    Origin,
    /// The path of a Unix socket, or nothing.
    Socket,
    /// Addresses and networks.
    Networks,
    /// The path of a file.
    File,
    /// The path of a file, or nothing.
    OptionalFile,
    /// The path of a folder.
    Folder,
    /// The path of a folder, or empty.
    OptionalFolder,
    /// An address of age, or empty.
    Recipient,
    /// Two letters.
    Letters,
    /// Any text.
    Text,
    /// Any text. It is never shown.
    Secret,
}

/// The most characters of a text. The longest default has about eighty. The limit exists because pages
/// show the texts and the store keeps them.
const LONGEST: usize = 2000;

/// The longest path of a Unix socket in bytes: `sun_path` has 108, of which one is a zero (unix(7)).
const SOCKET: usize = 107;

/// Two years: what the list of sites that browsers know beforehand recommends (hstspreload.org).
const MAX_HSTS: i64 = 63_072_000;

/// The row for all keys of `[products]`, whose names the operator chooses.
pub(super) const ANY_PRODUCT: &str = "products.*";
/// The prefix of the keys of `[products]`.
pub(super) const PRODUCTS: &str = "products.";

/// At most a year: no code or token should be valid for longer.
const LIFETIME: Kind = whole(" of seconds", 1, 31_536_000);
/// At most a million an hour, which is in effect no limit.
const LIMIT: Kind = whole("", 0, 1_000_000);
/// At least 16 messages; at most those that fill a gigabyte at 1 KiB each.
const QUEUE: Kind = whole("", 16, 1_048_576);
/// The number of items that one step can process without delaying others.
const BATCH: Kind = whole("", 1, 65_536);

/// Every key, in the order of `config.toml`.
pub(super) static KEYS: &[Key] = &[
    fixed("server.bind", Kind::Listener),
    fixed("server.public_url", Kind::Url),
    fixed("server.tls_cert", Kind::OptionalFile),
    fixed("server.tls_key", Kind::OptionalFile),
    fixed("server.hsts_seconds", whole(" of seconds", 0, MAX_HSTS)),
    fixed("server.trusted_proxies", Kind::Networks),
    fixed("server.allow_private_ips", Kind::Switch),
    fixed("server.workers", whole("", 0, MAX_WORKERS as i64)),
    fixed("server.max_connections", whole("", 1, 1_000_000)),
    fixed("server.max_connections_per_ip", whole("", 1, 1_000_000)),
    fixed("server.idle_timeout_seconds", whole(" of seconds", 1, 3600)),
    fixed("server.request_timeout_ms", whole(" of milliseconds", 100, 600_000)),
    fixed("server.shutdown_grace_seconds", whole(" of seconds", 1, 3600)),
    fixed("admin.bind", Kind::Listener),
    fixed("admin.tls_cert", Kind::OptionalFile),
    fixed("admin.tls_key", Kind::OptionalFile),
    fixed("admin.tls_client_ca", Kind::OptionalFile),
    fixed("admin.socket", Kind::Socket),
    fixed("admin.url", Kind::Origin),
    fixed("admin.url_ca", Kind::OptionalFile),
    fixed("admin.url_cert", Kind::OptionalFile),
    fixed("admin.url_key", Kind::OptionalFile),
    fixed("storage.backend", Kind::Word(&["redb", "postgres"])),
    fixed("storage.path", Kind::File),
    fixed("storage.url", Kind::Secret),
    fixed("storage.allow_async_failover", Kind::Switch),
    live("storage.retention_days", whole(" of days", 1, 36_500)),
    fixed("auth.signing_key_file", Kind::File),
    fixed("auth.lookup_key_file", Kind::File),
    fixed("auth.master_token_file", Kind::File),
    fixed("backup.folder", Kind::Folder),
    live("backup.every_hours", whole(" of hours", 0, 8760)),
    live("backup.keep", whole("", 1, 10_000)),
    fixed("backup.keys_recipient", Kind::Recipient),
    fixed(ANY_PRODUCT, Kind::Letters),
    live("pages.install_command", Kind::Text),
    live("pages.unattended_command", Kind::Text),
    fixed("installer.payloads", Kind::OptionalFolder),
    fixed("installer.script", Kind::OptionalFile),
    live("installer.version", Kind::Text),
    live("installer.notes", Kind::Text),
    fixed("webhooks.file", Kind::OptionalFile),
    live("session.ttl_seconds", LIFETIME),
    live("codes.ttl_seconds", LIFETIME),
    live("codes.precheck_token_ttl_seconds", LIFETIME),
    live("codes.install_token_ttl_seconds", LIFETIME),
    live("codes.restored_ttl_seconds", LIFETIME),
    live("codes.max_lifetime_seconds", LIFETIME),
    live("codes.max_activations_per_code", whole("", 1, 255)),
    live("limits.issue_per_ip_hour", LIMIT),
    live("limits.issue_per_ip_day", LIMIT),
    live("limits.issue_per_session_hour", LIMIT),
    live("limits.issue_per_fingerprint_day", LIMIT),
    live("limits.precheck_per_ip_day", LIMIT),
    live("limits.precheck_per_machine_day", LIMIT),
    live("limits.activate_per_ip_day", LIMIT),
    live("limits.activate_per_machine_day", LIMIT),
    live("limits.ticket_per_ip_hour", LIMIT),
    live("limits.max_tracked", whole("", 1000, 4_000_000)),
    live("servers.stale_after_hours", whole(" of hours", 1, 87_600)),
    live("servers.checkin_flush_seconds", whole(" of seconds", 1, 3600)),
    live("servers.revoked_checkin_status", Kind::Number(&[200, 403])),
    live("servers.next_checkin_seconds", whole(" of seconds", 1, 2_592_000)),
    live("servers.forget_after_days", whole(" of days", 0, 3650)),
    live("servers.silent_after_intervals", whole(" of intervals", 1, 1000)),
    live("servers.silent_share_percent", whole(" of percent", 0, 100)),
    fixed("actors.code_registry.queue", QUEUE),
    live("actors.code_registry.batch", BATCH),
    fixed("actors.activation.queue", QUEUE),
    live("actors.activation.batch", BATCH),
    fixed("actors.rate_limiter.queue", QUEUE),
    live("actors.rate_limiter.batch", BATCH),
    fixed("actors.server_registry.queue", QUEUE),
    live("actors.server_registry.batch", BATCH),
    fixed("actors.persistence.queue", QUEUE),
    live("actors.persistence.batch", BATCH),
    fixed("log.format", Kind::Word(&["auto", "text", "json"])),
    live("log.level", Kind::Word(&["error", "warn", "info", "debug", "trace"])),
];

const fn whole(unit: &'static str, min: i64, max: i64) -> Kind {
    Kind::Whole { unit, min, max }
}

const fn fixed(name: &'static str, kind: Kind) -> Key {
    Key { name, kind, at_run_time: false }
}

const fn live(name: &'static str, kind: Kind) -> Key {
    Key { name, kind, at_run_time: true }
}

/// Returns whether a changed value of `key` takes effect without a restart. False for an unknown key.
pub fn at_run_time(key: &str) -> bool {
    find(key).is_some_and(|key| key.at_run_time)
}

/// Returns the row of the table for `name`.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.speaks_of(name))
}

/// Returns the position of `name` in the file. Unknown names come last.
pub(super) fn place(name: &str) -> usize {
    KEYS.iter().position(|key| key.speaks_of(name)).unwrap_or(KEYS.len())
}

/// Returns the sections in the order of the file, without `actors` itself.
pub(super) fn sections() -> Vec<&'static str> {
    let mut sections: Vec<_> = KEYS.iter().map(|key| split(key.name).0).collect();
    sections.dedup();
    sections
}

/// Splits a name into its section and its last part.
pub(super) fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or(("", name))
}

impl Key {
    fn speaks_of(&self, name: &str) -> bool {
        self.name == name || (self.name == ANY_PRODUCT && name.starts_with(PRODUCTS))
    }
}

impl Kind {
    /// Returns whether a value from the file or from [`Kind::read`] is allowed.
    pub(super) fn admits(&self, value: &Value) -> bool {
        let number = value.as_integer();
        let text = value.as_str();
        match self {
            Self::Whole { min, max, .. } => number.is_some_and(|n| (*min..=*max).contains(&n)),
            Self::Number(some) => number.is_some_and(|n| some.contains(&n)),
            Self::Word(words) => text.is_some_and(|word| words.contains(&word)),
            Self::Switch => value.is_bool(),
            Self::Listener => text.is_some_and(|text| text.parse::<SocketAddr>().is_ok()),
            Self::Url => text.and_then(PublicUrl::parse).is_some(),
            Self::Origin => {
                text.is_some_and(|text| text.is_empty() || PublicUrl::parse(text).is_some())
            }
            Self::Socket => text.is_some_and(|path| path.len() <= SOCKET && !path.contains('\0')),
            Self::Networks => value.as_array().is_some_and(|all| all.iter().all(is_network)),
            Self::File | Self::Folder => {
                text.is_some_and(|path| !path.is_empty() && !path.contains('\0'))
            }
            Self::Recipient => {
                text.is_some_and(|text| text.is_empty() || Recipient::address(text).is_some())
            }
            Self::OptionalFile | Self::OptionalFolder => {
                text.is_some_and(|path| !path.contains('\0'))
            }
            Self::Letters => text.and_then(ProductLetters::parse).is_some(),
            Self::Text | Self::Secret => text.is_some_and(|text| text.chars().count() <= LONGEST),
        }
    }

    /// Returns the value of a variable or flag. Text that is not a value of this kind stays text, which
    /// [`Kind::admits`] then refuses.
    pub(super) fn read(&self, text: &str) -> Value {
        let trimmed = text.trim();
        let value = match self {
            Self::Whole { .. } | Self::Number(_) => trimmed.parse().ok().map(Value::Integer),
            Self::Switch => trimmed.to_ascii_lowercase().parse().ok().map(Value::Boolean),
            Self::Networks => read_list(trimmed),
            Self::File
            | Self::Folder
            | Self::OptionalFile
            | Self::OptionalFolder
            | Self::Socket
            | Self::Text
            | Self::Secret => None,
            Self::Word(_)
            | Self::Listener
            | Self::Url
            | Self::Origin
            | Self::Letters
            | Self::Recipient => Some(trimmed.into()),
        };
        value.unwrap_or_else(|| text.into())
    }
}

impl fmt::Display for Kind {
    /// Writes the allowed values so that they can follow "must be".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole { unit, min, max } => {
                write!(f, "a whole number{unit} from {min} to {max}")
            }
            Self::Number(some) => f.write_str(&one_of(some)),
            Self::Word(words) => f.write_str(&one_of(words)),
            Self::Switch => f.write_str("true or false"),
            Self::Listener => f.write_str("an IP address and a port, like 127.0.0.1:8080"),
            Self::Url => f.write_str(
                "http:// or https://, a host and perhaps a port, without a path, like https://get.example.com",
            ),
            Self::Origin => f.write_str(
                "empty, or http:// or https://, a host and perhaps a port, like https://admin.example.com:9090",
            ),
            Self::Socket => write!(f, "empty, or the path of a socket of at most {SOCKET} bytes"),
            Self::Networks => f.write_str(
                "a list of IP addresses and networks, like [\"127.0.0.1\", \"10.0.0.0/8\"]",
            ),
            Self::File => f.write_str("the path of a file"),
            Self::Folder => f.write_str("the path of a folder"),
            Self::Recipient => {
                f.write_str("empty, or an address of age, which begins with age1 (see age-keygen)")
            }
            Self::OptionalFile => f.write_str("empty, or the path of a file"),
            Self::OptionalFolder => f.write_str("empty, or the path of a folder"),
            Self::Letters => f.write_str("two letters from A to Z"),
            Self::Text | Self::Secret => write!(f, "a string of at most {LONGEST} characters"),
        }
    }
}

fn is_network(value: &Value) -> bool {
    value.as_str().and_then(Network::parse).is_some()
}

/// Reads a list in the syntax of TOML, or entries separated by commas.
fn read_list(text: &str) -> Option<Value> {
    if text.starts_with('[') {
        return text.parse().ok().filter(Value::is_array);
    }
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    Some(Value::Array(entries.map(Value::from).collect()))
}

fn one_of<T: fmt::Debug>(some: &[T]) -> String {
    let words: Vec<_> = some.iter().map(|word| format!("{word:?}")).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    }
}
