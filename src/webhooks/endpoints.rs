//! The file of the webhooks: who is told of what, and the secrets that sign it.

use crate::private_file;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use iptunnel_domain::hex::hex;
use iptunnel_domain::webhook::Selection;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use toml::{Table, Value};
use ureq::http::Uri;
use zeroize::Zeroizing;

/// The most webhooks in a file. Each has up to eight deliveries under way.
const MOST: usize = 32;
/// The most secrets of a webhook: the one in use, and others while one is replaced.
const SECRETS: usize = 4;
/// The fewest and the most bytes of a secret (Standard Webhooks 1.0, "Signature scheme").
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// What a secret begins with.
const PREFIX: &str = "whsec_";
/// The keys of a webhook.
const KEYS: [&str; 5] = ["url", "events", "secrets", "allow_http", "allow_private"];

/// A secret that signs messages. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl Secret {
    /// Reads `whsec_` and 24 to 64 bytes in base64.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(STANDARD.decode(text.strip_prefix(PREFIX)?).ok()?);
        SECRET_BYTES.contains(&bytes.len()).then_some(Self(bytes))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A webhook: a receiver and what it hears of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub url: Uri,
    /// The types of events that it hears of.
    pub events: Selection,
    /// The secrets that sign its messages, at least one.
    pub secrets: Vec<Secret>,
    /// Whether its address may be one that is not globally reachable.
    pub allow_private: bool,
}

impl Endpoint {
    /// Returns its address for people: without what may be secret in its path or query.
    pub fn shown(&self) -> String {
        let scheme = self.url.scheme_str().unwrap_or_default();
        let host = self.url.authority().map_or("", |authority| authority.as_str());
        format!("{scheme}://{host}")
    }

    /// Returns what tells its whole address from another one, and shows nothing of it.
    pub(super) fn fingerprint(&self) -> String {
        let hash = hex(&Sha256::digest(self.url.to_string()));
        hash.get(..16).unwrap_or_default().to_owned()
    }
}

/// All webhooks, by their names.
pub type Endpoints = BTreeMap<String, Endpoint>;

/// Reads the file.
///
/// # Errors
/// What is wrong, without any of its secrets.
pub fn read(path: &Path) -> Result<Endpoints, String> {
    let shown = path.display();
    let bytes = private_file::read(path)
        .map_err(|error| format!("webhooks.file: {shown} cannot be read: {error}"))?
        .ok_or_else(|| format!("webhooks.file: {shown} does not exist; check the path"))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| {
        format!("webhooks.file: {shown} is not text in UTF-8; save it as plain text")
    })?;
    parse(text).map_err(|problem| format!("webhooks.file: {shown}: {problem}"))
}

/// Reads the text of the file.
///
/// # Errors
/// As [`read`].
pub fn parse(text: &str) -> Result<Endpoints, String> {
    // The parser's own message may repeat a part of the text.
    let table: Table = toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = text.get(..start).unwrap_or_default().matches('\n').count() + 1;
        format!("line {line} is not TOML")
    })?;
    if table.len() > MOST {
        return Err(format!("it has {} webhooks; at most {MOST} are possible", table.len()));
    }
    let one = |(name, value): (String, Value)| {
        let endpoint = endpoint(&name, &value).map_err(|problem| format!("[{name}]: {problem}"))?;
        Ok((name, endpoint))
    };
    table.into_iter().map(one).collect()
}

fn endpoint(name: &str, value: &Value) -> Result<Endpoint, String> {
    let is_name = (1..=32).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !is_name {
        return Err("a name must be 1 to 32 of a-z, 0-9 and hyphens".into());
    }
    let table = value.as_table().ok_or("it must be a section")?;
    if let Some(other) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(format!("{other} is no key of a webhook; it has {}", KEYS.join(", ")));
    }
    let switch = |key: &str| match table.get(key) {
        None => Ok(false),
        Some(value) => value.as_bool().ok_or_else(|| format!("{key} must be true or false")),
    };
    let (allow_http, allow_private) = (switch("allow_http")?, switch("allow_private")?);
    let url = table.get("url").and_then(Value::as_str).and_then(|url| url.parse::<Uri>().ok());
    let url = url.filter(has_host).ok_or(
        "url must be an address such as https://hooks.example.com/iptunnel, without user and password",
    )?;
    match url.scheme_str() {
        Some("https") => {}
        Some("http") if allow_http => {}
        Some("http") => return Err("url must begin with https:// unless allow_http is true".into()),
        _ => return Err("url must begin with https://".into()),
    }
    let events = match table.get("events") {
        None => Selection::all(),
        Some(events) => selection(events)?,
    };
    Ok(Endpoint { url, events, secrets: secrets(table.get("secrets"))?, allow_private })
}

fn has_host(url: &Uri) -> bool {
    url.authority().is_some_and(|all| !all.host().is_empty() && !all.as_str().contains('@'))
}

fn selection(events: &Value) -> Result<Selection, String> {
    let words = "events must be a list of types, like [\"server.*\", \"install.confirmed\"]";
    let list = events.as_array().filter(|list| !list.is_empty()).ok_or(words)?;
    let list: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
    Selection::parse(list.ok_or(words)?).map_err(|entry| {
        let types = Selection::all().types().join(", ");
        format!("events: {entry:?} is no type; the types are {types}, and a group of them such as server.*")
    })
}

fn secrets(value: Option<&Value>) -> Result<Vec<Secret>, String> {
    let words = "secrets must be a list of 1 to 4 secrets: whsec_ and 24 to 64 bytes in base64; make one with: \
                 echo whsec_$(head -c 32 /dev/urandom | base64)";
    let list = value.and_then(Value::as_array);
    let list = list.filter(|list| (1..=SECRETS).contains(&list.len())).ok_or(words)?;
    let secrets = list.iter().map(|one| one.as_str().and_then(Secret::parse));
    Ok(secrets.collect::<Option<Vec<_>>>().ok_or(words)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn a_file_is_read_and_shows_no_secret() {
        let text = format!(
            "[office]\nurl = \"https://hooks.example.com/x?key=hidden\"\nsecrets = [\"{GOOD}\"]\n"
        );
        let all = parse(&text).unwrap();
        assert_eq!(all["office"].shown(), "https://hooks.example.com");
        assert_eq!(all["office"].events, Selection::all());
        assert!(!format!("{all:?}").contains("MfKQ"));
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_named_and_no_secret_is_repeated() {
        let with = |line: &str| {
            format!("[office]\nurl = \"https://a.example\"\nsecrets = [\"{GOOD}\"]\n{line}\n")
        };
        for (text, words) in [
            (with("color = 1"), "no key of a webhook"),
            (with("events = [\"servers.*\"]"), "no type"),
            (with("events = []"), "must be a list"),
            (with("allow_http = 1"), "true or false"),
            (with("").replace("https:", "http:"), "allow_http"),
            (with("").replace("https:", "ftp:"), "https://"),
            (with("").replace("//a", "//user:word@a"), "without user"),
            (with("").replace("[office]", "[Office]"), "a-z"),
            (with("").replace("[\"whsec_", "[\"whsek_"), "whsec_ and 24"),
            (with("").replace("[\"", "\"").replace("\"]", "\""), "whsec_ and 24"),
            (with("").replace("\"]", ""), "line 3 is not TOML"),
            ("office = 1".to_owned(), "a section"),
        ] {
            let problem = parse(&text).unwrap_err();
            assert!(problem.contains(words), "{text}: {problem}");
            assert!(!problem.contains("MfKQ9r8"), "{problem}");
        }
        let bytes = |count: usize| format!("whsec_{}", STANDARD.encode(vec![7; count]));
        let is_good = |count| Secret::parse(&bytes(count)).is_some();
        assert_eq!([23, 24, 64, 65].map(is_good), [false, true, true, false]);
    }
}
