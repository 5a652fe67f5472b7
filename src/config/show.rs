//! The configuration as text, and the differences between two configurations.

use toml::{Table, Value};

use super::key::{self, Kind};
use super::model::Config;
use super::raw::Raw;

/// A key whose value differs between two configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Section and key.
    pub key: String,
    /// The value before. Empty if a product is new.
    pub old: String,
    /// The value after. Empty if a product was removed.
    pub new: String,
    /// Whether the new value takes effect without a restart.
    pub at_run_time: bool,
}

impl Config {
    /// Returns every key as TOML, in the order of `config.toml`. Secrets are hidden.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut last_section = String::new();
        for (name, value) in entries(self) {
            let (section, key) = key::split(&name);
            if section != last_section {
                let gap = if text.is_empty() { "" } else { "\n" };
                text += &format!("{gap}[{section}]\n");
                section.clone_into(&mut last_section);
            }
            text += &format!("{key} = {}\n", shown(&name, &value));
        }
        text
    }

    /// Returns the keys that differ in `new`, in the order of `config.toml`. Secrets are hidden.
    pub fn changes(&self, new: &Self) -> Vec<Changed> {
        let (old, new) = (entries(self), entries(new));
        let mut names: Vec<&String> = old.iter().chain(&new).map(|(name, _)| name).collect();
        names.sort_by_key(|name| (key::place(name), *name));
        names.dedup();
        let changed = |name: &String| {
            let (old, new) = (value_of(name, &old), value_of(name, &new));
            (old != new).then(|| Changed {
                key: name.clone(),
                old: old.map(|value| bare(name, value)).unwrap_or_default(),
                new: new.map(|value| bare(name, value)).unwrap_or_default(),
                at_run_time: key::at_run_time(name),
            })
        };
        names.into_iter().filter_map(changed).collect()
    }

    /// Returns this configuration with every value of `new` that can change at run time. No check
    /// relates such a value to one that cannot, so the result is valid if both configurations are.
    #[must_use]
    pub fn with_run_time_values(&self, new: &Self) -> Self {
        let mut table = Table::try_from(Raw::from(self)).unwrap_or_default();
        for (name, value) in entries(new) {
            if key::at_run_time(&name) {
                put(&mut table, &name, value);
            }
        }
        // Both were read from such a table.
        table.try_into::<Raw>().map_or_else(|_| self.clone(), Self::from)
    }
}

/// Returns every value with its full name, in the order of `config.toml`.
pub(super) fn entries(config: &Config) -> Vec<(String, Value)> {
    // All values were read from TOML or text, so TOML can represent them.
    let table = Table::try_from(Raw::from(config)).unwrap_or_default();
    let mut entries = Vec::new();
    flatten("", table, &mut entries);
    entries.sort_by_cached_key(|(name, _)| (key::place(name), name.clone()));
    entries
}

/// Puts a value under its section and key. A section that is given as a value of its own is empty.
pub(super) fn put(table: &mut Table, name: &str, value: Value) {
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

/// Adds every value of `table` with its full name to `entries`. An empty section is kept as a value.
pub(super) fn flatten(above: &str, table: Table, entries: &mut Vec<(String, Value)>) {
    for (key, value) in table {
        let name = if above.is_empty() { key } else { format!("{above}.{key}") };
        match value {
            Value::Table(below) if !below.is_empty() => flatten(&name, below, entries),
            value => entries.push((name, value)),
        }
    }
}

fn value_of<'a>(name: &str, entries: &'a [(String, Value)]) -> Option<&'a Value> {
    entries.iter().find(|(other, _)| other == name).map(|(_, value)| value)
}

/// The value as TOML writes it, on one line; what is secret is hidden.
pub(super) fn shown(name: &str, value: &Value) -> String {
    match value {
        value if is_secret(name) && value.as_str() != Some("") => quoted("(hidden)"),
        Value::String(text) => quoted(text),
        value => value.to_string(),
    }
}

/// The value as people say it: text without quotes.
pub(super) fn bare(name: &str, value: &Value) -> String {
    match value {
        Value::String(text) if !is_secret(name) => one_line(text),
        value => shown(name, value),
    }
}

fn is_secret(name: &str) -> bool {
    key::find(name).is_some_and(|key| matches!(key.kind, Kind::Secret))
}

/// Returns a basic string of TOML, always on one line.
fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", one_line(&escaped))
}

/// Returns `text` on one line: control characters are written as TOML's escapes.
pub(super) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            line += &format!("\\u{:04X}", u32::from(c));
        } else {
            line.push(c);
        }
    }
    line
}
