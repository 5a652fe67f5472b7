//! From what was given to a [`Config`]: layers, each value held against the table of keys, then
//! what values say about each other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::key::{self, PRODUCTS};
use super::model::{Backend, Config};
use super::raw::Raw;
use super::show::{flatten, one_line, shown};
use super::unknown::{instead_of, is_section};

/// Where values come from. Of several that are given the last named here wins: defaults, file,
/// environment, flags.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A file that is named must exist. Without one the defaults stand.
    pub file: Option<PathBuf>,
    /// All variables of the process. `IPTUNNEL_SECTION__KEY` is a value, and every other one that
    /// begins with `IPTUNNEL_` is a mistake.
    pub env: Vec<(String, String)>,
    /// Keys and values of the command line, such as `("server.bind", "0.0.0.0:80")`.
    pub flags: Vec<(String, String)>,
}

/// Everything that is wrong with a configuration, one problem a line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .problems.join("\n"))]
pub struct ConfigError {
    problems: Vec<String>,
}

impl ConfigError {
    /// The problems, at least one.
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

/// Where a value in force comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The file.
    File,
    /// This variable.
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

/// What file, environment and command line give, each value allowed by itself: what an operator
/// changes at run time is laid over it, again and again.
#[derive(Clone)]
pub struct Layers {
    /// Of several values of one key the last counts.
    given: Vec<Given>,
}

/// A configuration and where its values come from.
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The source of each value that is not the default.
    pub sources: BTreeMap<String, Source>,
    /// What is wrong with changes that were kept and do not count any more.
    pub left_out: Vec<String>,
}

impl Layers {
    /// Reads what `sources` give.
    ///
    /// # Errors
    /// Every unknown key and every value that is not allowed, wherever it was given, or what is
    /// wrong with the file.
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

    /// The same from the text of a file.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn of_text(text: &str) -> Result<Self, ConfigError> {
        let given = read_text(text, "the text")?;
        ConfigError::unless_empty(given.iter().filter_map(problem).collect())?;
        Ok(Self { given })
    }

    /// The configuration with `overrides` laid over everything else.
    ///
    /// # Errors
    /// Every override that is not allowed or is of no key that may change at run time, and what
    /// values say against each other.
    pub fn with(&self, overrides: &[(String, String)]) -> Result<Loaded, ConfigError> {
        let overrides: Vec<Given> = overrides.iter().map(from_override).collect();
        ConfigError::unless_empty(overrides.iter().filter_map(problem_at_run_time).collect())?;
        let mut base = Raw::default();
        // A file that names products means these and no others; variables and flags add to them.
        let names_product =
            |given: &Given| given.source == Source::File && given.name.starts_with(PRODUCTS);
        if self.given.iter().any(names_product) {
            base.products.clear();
        }
        let given: Vec<Given> = self.given.iter().chain(&overrides).cloned().collect();
        let config = Config::from(overlaid(&base, &given)?);
        ConfigError::unless_empty(contradictions(&config))?;
        let sources = given.into_iter().map(|given| (given.name, given.source)).collect();
        Ok(Loaded { config, sources, left_out: Vec::new() })
    }

    /// The configuration with the `firm` overrides and those of the others, `kept` from earlier,
    /// that are still allowed: an operator's old change never keeps the server from starting, nor
    /// another change from counting.
    ///
    /// # Errors
    /// What values say against each other with the firm overrides alone.
    pub fn with_kept(
        &self,
        firm: Vec<(String, String)>,
        kept: Vec<(String, String)>,
    ) -> Result<Loaded, ConfigError> {
        let mut good = firm;
        let mut loaded = self.with(&good)?;
        let mut waiting = kept;
        // What was changed together may be allowed only together, in whatever order it was kept:
        // one that is refused is tried again after the others.
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
    /// Reads and checks what `sources` give.
    ///
    /// # Errors
    /// Every unknown key and every value that is not allowed, wherever it was given, or what is
    /// wrong with the file.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        Ok(Layers::read(sources)?.with(&[])?.config)
    }
}

fn overlaid(base: &Raw, given: &[Given]) -> Result<Raw, ConfigError> {
    // Whatever the table of keys admits, the raw mirror takes; should they ever differ, this says so.
    let differs = |error: &dyn std::fmt::Display| ConfigError::one(&error.to_string());
    let mut layers = Table::try_from(base).map_err(|error| differs(&error))?;
    for Given { name, value, .. } in given {
        put(&mut layers, name, value.clone());
    }
    layers.try_into().map_err(|error| differs(&error))
}

/// Puts a value under its section and key. A section that is given as a value of its own is empty.
fn put(table: &mut Table, name: &str, value: Value) {
    match name.split_once('.') {
        Some((section, rest)) => {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                put(inner, rest, value);
            }
        }
        None if value.is_table() => {}
        None => {
            table.insert(name.to_owned(), value);
        }
    }
}

fn read_file(path: &Path) -> Result<Vec<Given>, ConfigError> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::one(&format!("{shown}: cannot be read: {error}")))?;
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
    // Variables cannot have the hyphen that a product's name may have.
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

/// What is wrong with an override by itself.
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

/// What is wrong with one value by itself.
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
    // The place, for whoever looks for it in the file in vain.
    let by = match source {
        Source::File | Source::Override => String::new(),
        Source::Environment(variable) => format!(" ({variable})"),
        Source::Flag => " (command line)".into(),
    };
    Some(one_line(&format!("{problem}{by}")))
}

/// First parts of paths that are the server's own, and words that look like its commands.
const RESERVED: [&str; 12] = [
    "admin", "api", "assets", "checkin", "console", "docs", "livez", "metrics", "readyz",
    "register", "revoke", "status",
];

fn wrong_product_name(name: &str) -> Option<&'static str> {
    let product = name.strip_prefix(PRODUCTS)?;
    let well_formed = (1..=32).contains(&product.len())
        && product.starts_with(|c: char| c.is_ascii_lowercase())
        && product.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !well_formed {
        Some("a product's name must be 1 to 32 of a-z, 0-9 and hyphens, the first a letter")
    } else if RESERVED.contains(&product) {
        Some("this name is a path of the server's own; a product needs another")
    } else {
        None
    }
}

/// What values say against each other, each of them allowed by itself.
fn contradictions(config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    let life = &config.lifetimes;
    if life.code > life.max_lifetime {
        problems.push(format!(
            "codes.ttl_seconds = {}: must be at most codes.max_lifetime_seconds, which is {}",
            life.code, life.max_lifetime
        ));
    }
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
