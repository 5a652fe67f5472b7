//! Builds a [`Config`]: merges the layers, checks each value against the table of keys, and then checks
//! the values against each other.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::key::{self, PRODUCTS};
use super::model::{Backend, Config};
use super::raw::{Raw, defaults};
use super::show::{flatten, one_line, put, shown};
use super::unknown::{instead_of, is_section};
use crate::private_file::Beside;

/// The sources of values. Each source overrides those before it: defaults, file, environment, flags.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The configuration file, which must exist. `None` means the defaults.
    pub file: Option<PathBuf>,
    /// All variables of the process. `IPTUNNEL_SECTION__KEY` is a value. Any other variable that begins
    /// with `IPTUNNEL_` is an error.
    pub env: Vec<(String, String)>,
    /// Keys and values of the command line, such as `("server.bind", "0.0.0.0:80")`.
    pub flags: Vec<(String, String)>,
}

/// All problems of a configuration, one on each line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .problems.join("\n"))]
pub struct ConfigError {
    problems: Vec<String>,
}

impl ConfigError {
    /// Returns the problems, at least one.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    fn unless_empty(problems: Vec<String>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self { problems }) }
    }

    fn one(problem: &str) -> Self {
        Self { problems: vec![one_line(problem)] }
    }
}

/// The source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The file.
    File,
    /// An environment variable, with its name.
    Environment(String),
    /// The command line.
    Flag,
    /// An operator's change at run time.
    Override,
}

/// A value as it was given.
#[derive(Clone)]
struct Given {
    /// Section and key.
    name: String,
    value: Value,
    source: Source,
}

/// The values of file, environment and command line, each of them allowed by itself. Operators' changes
/// at run time are merged over them.
#[derive(Clone, Default)]
pub struct Layers {
    /// If a key has several values, the last one wins.
    given: Vec<Given>,
}

/// A configuration with the sources of its values.
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The source of each value that is not the default.
    pub sources: BTreeMap<String, Source>,
    /// The problems of kept changes that are no longer valid and have no effect.
    pub left_out: Vec<String>,
}

impl Layers {
    /// Reads the sources.
    ///
    /// # Errors
    /// All unknown keys and all values that are not allowed, from every source, or the problem of the
    /// file.
    pub fn read(sources: &Sources) -> Result<Self, ConfigError> {
        let mut given = match &sources.file {
            Some(path) => read_file(path)?,
            None => Vec::new(),
        };
        given.extend(sources.env.iter().filter_map(from_variable));
        given.extend(sources.flags.iter().map(from_flag));
        ConfigError::unless_empty(given.iter().filter_map(problem).collect())?;
        Ok(Self { given })
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn of_text(text: &str) -> Result<Self, ConfigError> {
        let given = read_text(text, "the text")?;
        ConfigError::unless_empty(given.iter().filter_map(problem).collect())?;
        Ok(Self { given })
    }

    /// Returns the configuration with `overrides`, which win over everything else.
    ///
    /// # Errors
    /// All overrides that are not allowed, or whose key cannot change at run time; or the contradictions
    /// between values.
    pub fn with(&self, overrides: &[(String, String)]) -> Result<Loaded, ConfigError> {
        let overrides: Vec<Given> = overrides.iter().map(from_override).collect();
        ConfigError::unless_empty(overrides.iter().filter_map(problem_at_run_time).collect())?;
        let mut base = defaults();
        // The products of a file replace the default; those of variables and flags are added.
        let names_product =
            |given: &Given| given.source == Source::File && given.name.starts_with(PRODUCTS);
        if self.given.iter().any(names_product) {
            base.insert("products".into(), Value::Table(Table::new()));
        }
        let given: Vec<Given> = self.given.iter().chain(&overrides).cloned().collect();
        let config = Config::from(overlaid(base, &given)?);
        ConfigError::unless_empty(contradictions(&config))?;
        let sources = given.into_iter().map(|given| (given.name, given.source)).collect();
        Ok(Loaded { config, sources, left_out: Vec::new() })
    }

    /// Returns the configuration with the `firm` overrides and those of the earlier `kept` overrides that
    /// are still allowed. An operator's old change thus never prevents a start or another change.
    ///
    /// # Errors
    /// The problems of the firm overrides alone.
    pub fn with_kept(
        &self,
        firm: Vec<(String, String)>,
        kept: Vec<(String, String)>,
    ) -> Result<Loaded, ConfigError> {
        let mut good = firm;
        let mut loaded = self.with(&good)?;
        let mut waiting = kept;
        // Changes that were made together may be allowed only together, and their order is unknown: a
        // refused change is tried again after the others.
        loop {
            let (before, mut problems) = (waiting.len(), Vec::new());
            waiting.retain(|change| {
                good.push(change.clone());
                match self.with(&good) {
                    Ok(better) => {
                        loaded = better;
                        false
                    }
                    Err(error) => {
                        good.pop();
                        problems.extend(error.problems);
                        true
                    }
                }
            });
            if waiting.len() == before || waiting.is_empty() {
                return Ok(Loaded { left_out: problems, ..loaded });
            }
        }
    }
}

impl Config {
    /// Reads and checks the sources.
    ///
    /// # Errors
    /// All unknown keys, all values that are not allowed and all contradictions, or the problem of the
    /// file.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        Ok(Layers::read(sources)?.with(&[])?.config)
    }
}

fn overlaid(mut layers: Table, given: &[Given]) -> Result<Raw, ConfigError> {
    // The raw types accept every value that the table allows. An error here means that they differ.
    for Given { name, value, .. } in given {
        put(&mut layers, name, value.clone());
    }
    layers.try_into().map_err(|error| ConfigError::one(&error.to_string()))
}

fn read_file(path: &Path) -> Result<Vec<Given>, ConfigError> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::one(&format!("{shown}: cannot be read: {error}; check the path after --config and the mode of the file")))?;
    read_text(&text, &shown)
}

fn read_text(text: &str, shown: &str) -> Result<Vec<Given>, ConfigError> {
    let table: Table = toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = text.get(..start).unwrap_or_default().matches('\n').count() + 1;
        ConfigError::one(&format!("{shown}: line {line}: {}", error.message()))
    })?;
    let mut entries = Vec::new();
    flatten("", table, &mut entries);
    Ok(entries
        .into_iter()
        .map(|(name, value)| Given { name, value, source: Source::File })
        .collect())
}

fn from_variable((variable, text): &(String, String)) -> Option<Given> {
    let name = variable.strip_prefix("IPTUNNEL_")?.to_ascii_lowercase().replace("__", ".");
    // The name of a variable cannot contain the hyphen that a product's name may contain.
    let name = match name.strip_prefix(PRODUCTS) {
        Some(product) => format!("{PRODUCTS}{}", product.replace('_', "-")),
        None => name,
    };
    Some(from_text(name, text, Source::Environment(variable.clone())))
}

fn from_flag((name, text): &(String, String)) -> Given {
    from_text(name.clone(), text, Source::Flag)
}

fn from_override((name, text): &(String, String)) -> Given {
    from_text(name.clone(), text, Source::Override)
}

fn from_text(name: String, text: &str, source: Source) -> Given {
    let value = key::find(&name).map_or_else(|| text.into(), |key| key.kind.read(text));
    Given { name, value, source }
}

/// Returns the problem of a single override.
fn problem_at_run_time(given: &Given) -> Option<String> {
    let fixed = || {
        let known = key::find(&given.name)?;
        (!known.at_run_time).then(|| {
            format!(
                "{}: changes with a restart only, in the file, a variable or a flag",
                given.name
            )
        })
    };
    problem(given).or_else(fixed)
}

/// Returns the problem of a single value.
fn problem(given: &Given) -> Option<String> {
    let Given { name, value, source } = given;
    let problem = match key::find(name) {
        Some(key) if !key.kind.admits(value) => {
            format!("{name} = {}: must be {}", shown(name, value), key.kind)
        }
        Some(_) => format!("{name}: {}", wrong_product_name(name)?),
        None if is_section(name) && *value == Value::Table(Table::new()) => return None,
        None if is_section(name) => format!("{name} = {value}: must be a section, [{name}]"),
        None => format!("{name}: unknown key; {}", instead_of(name)),
    };
    // Names the source if it is not the file, so that nobody searches the file for it.
    let by = match source {
        Source::File | Source::Override => String::new(),
        Source::Environment(variable) => format!(" ({variable})"),
        Source::Flag => " (command line)".into(),
    };
    Some(one_line(&format!("{problem}{by}")))
}

/// The first parts of the server's own paths, and words that look like its commands.
const RESERVED: [&str; 14] = [
    "admin",
    "api",
    "assets",
    "authorize",
    "checkin",
    "console",
    "docs",
    "healthz",
    "livez",
    "metrics",
    "readyz",
    "register",
    "revoke",
    "status",
];

fn wrong_product_name(name: &str) -> Option<&'static str> {
    let product = name.strip_prefix(PRODUCTS)?;
    let well_formed = (1..=32).contains(&product.len())
        && product.starts_with(|c: char| c.is_ascii_lowercase())
        && product.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !well_formed {
        Some("a product's name must be 1 to 32 of a-z, 0-9 and hyphens, the first a letter")
    } else if RESERVED.contains(&product) {
        Some("this name is a path of the server itself; choose another")
    } else {
        None
    }
}

/// Returns the contradictions between values that are allowed by themselves.
fn contradictions(config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    let life = &config.lifetimes;
    if life.code > life.max_lifetime {
        problems.push(format!(
            "codes.ttl_seconds = {}: must be at most codes.max_lifetime_seconds, which is {}",
            life.code, life.max_lifetime
        ));
    }
    if let Some(all) = config.server.trusted_proxies.iter().find(|all| all.prefix_len() == 0) {
        problems.push(format!(
            "server.trusted_proxies = {all}: must not be every address, or all callers can name \
             themselves as they like; name the addresses of the proxies"
        ));
    }
    if overlap(config.server.bind, config.admin.bind) {
        problems.push(format!(
            "admin.bind = {}: must be another address or port than server.bind, which is {}",
            config.admin.bind, config.server.bind
        ));
    }
    problems.extend(tls_halves(config));
    problems.extend(shared_file(config));
    let storage = &config.storage;
    if storage.url.is_empty() != (storage.backend == Backend::Redb) {
        let must = match storage.backend {
            Backend::Redb => "empty",
            Backend::Postgres => "the database's address, postgres://...,",
        };
        problems.push(format!(
            "storage.url = {}: must be {must} where storage.backend is {:?}",
            shown("storage.url", &storage.url.as_str().into()),
            storage.backend.as_str()
        ));
    }
    if config.backup.every_hours > 0 && storage.backend == Backend::Postgres {
        problems.push(format!(
            "backup.every_hours = {}: must be 0 where storage.backend is \"postgres\": the database has backups \
             of its own, and iptunnel-server backup says how",
            config.backup.every_hours
        ));
    }
    for (place, product) in config.products.iter().enumerate() {
        let mut others = config.products.iter().take(place);
        if let Some(other) = others.find(|other| other.letters == product.letters) {
            problems.push(format!(
                "products.{} = \"{}\": must be other letters than those of products.{}",
                product.name, product.letters, other.name
            ));
        }
    }
    problems
}

/// Returns the problems of settings of TLS that need each other.
fn tls_halves(config: &Config) -> impl Iterator<Item = String> {
    let (server, admin) = (&config.server, &config.admin);
    [
        ("server.tls_cert", &server.tls_cert, "server.tls_key", &server.tls_key),
        ("server.tls_key", &server.tls_key, "server.tls_cert", &server.tls_cert),
        ("admin.tls_cert", &admin.tls_cert, "admin.tls_key", &admin.tls_key),
        ("admin.tls_key", &admin.tls_key, "admin.tls_cert", &admin.tls_cert),
        ("admin.tls_client_ca", &admin.tls_client_ca, "admin.tls_cert", &admin.tls_cert),
        ("admin.url_cert", &admin.url_cert, "admin.url_key", &admin.url_key),
        ("admin.url_key", &admin.url_key, "admin.url_cert", &admin.url_cert),
    ]
    .into_iter()
    .filter(|(_, one, _, other)| !one.as_os_str().is_empty() && other.as_os_str().is_empty())
    .map(|(name, one, other, _)| {
        let shown = shown(name, &one.display().to_string().into());
        format!("{name} = {shown}: needs {other} beside it")
    })
}

/// Returns whether two listeners cannot exist side by side. Port 0 is a free port of its own.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    // A listener on `::` also receives what is sent to IPv4 addresses.
    let covers = |all: SocketAddr, some: SocketAddr| {
        all.ip().is_unspecified() && (all.is_ipv6() || some.is_ipv4())
    };
    let together = one.ip() == other.ip() || covers(one, other) || covers(other, one);
    one.port() != 0 && one.port() == other.port() && together
}

/// Returns whether two paths name one file: by their spelling, or because the file is there.
fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    one == other || identity(one).is_some_and(|found| identity(other) == Some(found))
}

/// Returns the problem of two settings that name the same file.
fn shared_file(config: &Config) -> Option<String> {
    let (store, auth) = (&config.storage.path, &config.auth);
    let files = [
        ("storage.path", store.clone()),
        ("the journal of storage.path", Beside::Journal.of(store)),
        ("the mark of storage.path", Beside::Mark.of(store)),
        ("the heads of storage.path", Beside::Heads.of(store)),
        ("the console's sessions beside storage.path", Beside::Sessions.of(store)),
        ("the console's charts beside storage.path", Beside::Charts.of(store)),
        ("auth.signing_key_file", auth.signing_key_file.clone()),
        ("auth.lookup_key_file", auth.lookup_key_file.clone()),
        ("auth.master_token_file", auth.master_token_file.clone()),
        ("admin.socket", config.admin.socket.clone()),
        ("webhooks.file", config.webhooks.file.clone()),
    ];
    // Several listeners may have one key.
    let keys = [
        ("server.tls_key", config.server.tls_key.clone()),
        ("admin.tls_key", config.admin.tls_key.clone()),
        ("admin.url_key", config.admin.url_key.clone()),
    ];
    // Everybody can load the script, and whoever has a code the payloads. So they must not be one of the
    // secrets. They may be one file.
    let script = ("installer.script", config.installer.script.clone());
    let payloads = config.products.iter().filter_map(|one| config.installer.payload(&one.name));
    let payloads = payloads.map(|file| ("installer.payloads", file));
    let own = files.iter().enumerate().map(|(place, file)| (file.clone(), place));
    let others = [&files[..], &keys].concat();
    let of_keys = keys.iter().map(|key| (key.clone(), files.len()));
    let handed_out = std::iter::once(script).chain(payloads).map(|file| (file, others.len()));
    let all = own.chain(of_keys).chain(handed_out);
    let mut all = all.filter(|((_, file), _)| !file.as_os_str().is_empty());
    all.find_map(|((name, file), before)| {
        let (other, _) = others.iter().take(before).find(|(_, other)| is_same(other, &file))?;
        let shown = shown(name, &file.display().to_string().into());
        Some(format!("{name} = {shown}: must be another file than {other}"))
    })
}
