//! Commands that ask a running server, over the operators' listener and with the master token.

use crate::cli::tell;
use crate::config::Config;
use crate::console::audit::Row;
use crate::console::heads::{SignedHead, file_of, read_file};
use crate::secrets::{lookup_key, master_token};
use clap::{Subcommand, ValueEnum};
use iptunnel_domain::audit::Head;
use serde_json::{Map, Value, json};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How answers are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Tables for people.
    #[default]
    Text,
    /// JSON for programs.
    Json,
}

/// What is asked of the servers.
#[derive(Debug, Subcommand)]
pub enum Servers {
    /// List servers, a page of 50
    List {
        /// Which: all, live, stale or revoked
        #[arg(long, default_value = "all")]
        show: String,
        /// In which order: newest, oldest, seen or unseen
        #[arg(long, default_value = "newest")]
        sort: String,
        /// Only those with this in host name, address, id or note
        #[arg(long, default_value = "")]
        text: String,
        /// Where the page before ended
        #[arg(long, default_value = "")]
        cursor: String,
    },
    /// Revoke a server
    Revoke {
        /// Its id
        server_id: String,
    },
    /// Restore a server
    Restore {
        /// Its id
        server_id: String,
    },
    /// Write a note on a server
    Note {
        /// Its id
        server_id: String,
        /// The note; empty for none
        note: String,
    },
}

/// What is asked of the codes.
#[derive(Subcommand)]
pub enum Codes {
    /// Show a code's story, or the codes that something is known of
    Show {
        /// A code, hint, activation id, host name, address or machine id; - reads it from standard
        /// input, where no list of processes shows it
        find: String,
    },
}

impl std::fmt::Debug for Codes {
    /// What is looked for may be a code.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Codes")
    }
}

/// What is asked of the activations.
#[derive(Debug, Subcommand)]
pub enum Activations {
    /// List the last activations
    List {
        /// Only open ones
        #[arg(long)]
        open: bool,
        /// Of how many
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
}

/// What is asked of the settings in force.
#[derive(Debug, Subcommand)]
pub enum Settings {
    /// Show all settings, or one
    Get {
        /// Section and key
        key: Option<String>,
    },
    /// Change settings at once; the changes survive a restart
    Set {
        /// Such as limits.issue_per_ip_hour=5
        #[arg(required = true)]
        settings: Vec<String>,
    },
    /// Undo changes
    Unset {
        /// Section and key
        #[arg(required = true)]
        keys: Vec<String>,
    },
}

/// What is asked of the audit log.
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// List entries, the newest first
    List {
        /// Only this action
        #[arg(long, default_value = "")]
        action: String,
        /// Only this actor
        #[arg(long, default_value = "")]
        actor: String,
        /// Only those with this text
        #[arg(long, default_value = "")]
        text: String,
        /// Where the page before ended
        #[arg(long, default_value = "")]
        cursor: String,
    },
    /// Write the whole log to standard output as JSON Lines
    Export,
    /// Check that no entry was changed, removed or cut off
    Verify {
        /// An export, instead of the running server's log
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// The file of signed heads, or a copy kept elsewhere [default: beside the store]
        #[arg(long, value_name = "FILE")]
        heads: Option<PathBuf>,
    },
}

/// A running server.
struct Server {
    agent: ureq::Agent,
    url: String,
    token: String,
}

type Answer = Result<Value, String>;

/// A file of the server's: a command that only asks must not make one.
fn existing(path: &Path) -> Result<&Path, String> {
    let missing = || format!("{}: is missing; is this where the server runs?", path.display());
    path.exists().then_some(path).ok_or_else(missing)
}

/// The operators' listener as this machine reaches it.
pub fn admin_address(config: &Config) -> SocketAddr {
    let mut address = config.admin.bind;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

impl Server {
    fn of(config: &Config) -> Result<Self, String> {
        let path = existing(&config.auth.master_token_file)?;
        let token = master_token(path).map_err(|error| error.to_string())?.token;
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(3)))
            .proxy(None)
            .build();
        let url = format!("http://{}/admin", admin_address(config));
        Ok(Self { agent: agent.into(), url, token: token.to_string() })
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    fn unreachable(&self, error: &ureq::Error) -> String {
        format!("{}: {error}", self.url)
    }

    /// The `data` of an answer, or what the server says is wrong.
    fn data(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Answer {
        let mut answer = answer.map_err(|error| self.unreachable(&error))?;
        let text = answer.body_mut().read_to_string().map_err(|error| self.unreachable(&error))?;
        let mut body: Value = serde_json::from_str(&text)
            .map_err(|_| format!("{}: not an answer of this server", self.url))?;
        match body.pointer("/error/message").and_then(Value::as_str) {
            Some(message) => Err(message.to_owned()),
            None => Ok(body.get_mut("data").map_or(Value::Null, Value::take)),
        }
    }

    fn get(&self, path: &str, query: &[(&str, &str)]) -> Answer {
        let request = self.agent.get(format!("{}{path}", self.url));
        let request = request.query_pairs(query.iter().copied());
        self.data(request.header("authorization", self.bearer()).call())
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        let request = self.agent.post(format!("{}{path}", self.url));
        self.data(request.header("authorization", self.bearer()).send(body.to_string()))
    }

    fn patch(&self, path: &str, body: &Value) -> Answer {
        let request = self.agent.patch(format!("{}{path}", self.url)).header("if-match", "*");
        self.data(request.header("authorization", self.bearer()).send(body.to_string()))
    }

    fn export(&self) -> Result<Box<dyn BufRead>, String> {
        let request = self.agent.get(format!("{}/audit/export", self.url));
        let answer = request.header("authorization", self.bearer()).call();
        let answer = answer.map_err(|error| self.unreachable(&error))?;
        if answer.status().as_u16() != 200 {
            return Err(format!("{}: status {}", self.url, answer.status()));
        }
        Ok(Box::new(BufReader::new(answer.into_body().into_reader())))
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn field(row: &Value, name: &str) -> String {
    row.get(name).map(cell).unwrap_or_default()
}

/// Rows under the names of their fields, as wide as they need.
fn table(rows: &[Value], columns: &[&str]) -> String {
    let line =
        |row: &Value| -> Vec<String> { columns.iter().map(|column| field(row, column)).collect() };
    let mut lines: Vec<Vec<String>> = vec![columns.iter().map(|c| (*c).to_owned()).collect()];
    lines.extend(rows.iter().map(line));
    let width = |place: usize| {
        lines.iter().filter_map(|line| line.get(place)).map(|c| c.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns.len()).map(|place| width(place).unwrap_or(0)).collect();
    let shown = |line: &Vec<String>| {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  "));
        cells.collect::<String>().trim_end().to_owned()
    };
    lines.iter().map(shown).collect::<Vec<_>>().join("\n")
}

/// Writes an answer: all of it as JSON, or the rows in `list` as a table.
fn write(output: Output, data: &Value, list: &str, columns: &[&str]) {
    if output == Output::Json {
        return tell(&data.to_string());
    }
    let rows = data.get(list).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    tell(&table(rows, columns));
    if let Some(next) = data.get("next_cursor").filter(|next| !next.is_null()) {
        tell(&format!("more with --cursor {}", cell(next)));
    }
}

/// Asks about servers.
///
/// # Errors
/// What went wrong, in words.
pub fn servers(config: &Config, output: Output, action: Servers) -> Result<(), String> {
    let server = Server::of(config)?;
    let act = |id: &str, verb: &str, body: &Value| {
        // An id is 16 hexadecimal digits: anything else is nobody's, and no part of a path.
        if !id.bytes().all(|byte| byte.is_ascii_hexdigit()) || id.is_empty() {
            return Err("server_id must be 16 hexadecimal digits".to_owned());
        }
        let done = server.post(&format!("/servers/{id}/{verb}"), body)?;
        tell(&if output == Output::Json {
            done.to_string()
        } else {
            format!("{} {}", field(&done, "server_id"), field(&done, "status"))
        });
        Ok(())
    };
    match action {
        Servers::List { show, sort, text, cursor } => {
            let query =
                [("show", show.as_str()), ("sort", &sort), ("text", &text), ("cursor", &cursor)];
            let columns =
                ["server_id", "ip", "hostname", "registered_at", "last_checkin", "state", "note"];
            write(output, &server.get("/servers", &query)?, "servers", &columns);
            Ok(())
        }
        Servers::Revoke { server_id } => act(&server_id, "revoke", &json!({})),
        Servers::Restore { server_id } => act(&server_id, "restore", &json!({})),
        Servers::Note { server_id, note } => act(&server_id, "note", &json!({"note": note})),
    }
}

/// Asks about codes.
///
/// # Errors
/// What went wrong, in words.
pub fn codes(config: &Config, output: Output, action: Codes) -> Result<(), String> {
    let Codes::Show { mut find } = action;
    if find == "-" {
        find.clear();
        let read = std::io::stdin().lock().take(1024).read_to_string(&mut find);
        read.map_err(|error| format!("standard input: {error}"))?;
    }
    let found = Server::of(config)?.post("/codes", &json!({"find": find.trim()}))?;
    if found.get("events").is_none() || output == Output::Json {
        write(output, &found, "codes", &["hint", "last", "at", "hostname", "address", "id"]);
        return Ok(());
    }
    tell(&format!(
        "{}  {}  activations: {}",
        field(&found, "hint"),
        field(&found, "state"),
        field(&found, "activations")
    ));
    if found.get("second_machine") == Some(&Value::Bool(true)) {
        tell("ANOTHER MACHINE HAS TRIED THIS CODE AND WAS REFUSED");
    }
    let columns = ["at", "action", "subject", "address", "detail", "actor", "who", "from"];
    write(output, &found, "events", &columns);
    Ok(())
}

/// Asks about activations.
///
/// # Errors
/// What went wrong, in words.
pub fn activations(config: &Config, output: Output, action: Activations) -> Result<(), String> {
    let Activations::List { open, limit } = action;
    let query = [("open", if open { "1" } else { "0" }), ("limit", &limit.to_string())];
    let found = Server::of(config)?.get("/activations", &query)?;
    let columns = ["activation", "hostname", "public_ip", "state", "opened_at", "age_seconds"];
    write(output, &found, "activations", &columns);
    Ok(())
}

/// Asks about settings, or changes them.
///
/// # Errors
/// What went wrong, in words.
pub fn settings(config: &Config, output: Output, action: Settings) -> Result<(), String> {
    let server = Server::of(config)?;
    let (data, named): (Value, Vec<String>) = match action {
        Settings::Get { key } => (server.get("/config", &[])?, key.into_iter().collect()),
        Settings::Set { settings } => {
            let mut body = Map::new();
            for setting in settings {
                let (key, value) =
                    setting.split_once('=').ok_or("must have the form section.key=value")?;
                body.insert(key.trim().to_owned(), value.trim().into());
            }
            let keys = body.keys().cloned().collect();
            (server.patch("/config", &body.into())?, keys)
        }
        Settings::Unset { keys } => {
            let body: Map<String, Value> =
                keys.iter().map(|key| (key.clone(), Value::Null)).collect();
            (server.patch("/config", &body.into())?, keys)
        }
    };
    let mut rows = data.get("settings").and_then(Value::as_array).cloned().unwrap_or_default();
    if !named.is_empty() {
        rows.retain(|row| named.contains(&field(row, "key")));
    }
    if rows.is_empty() {
        return Err("no such key".into());
    }
    let columns = ["key", "value", "unit", "source", "default", "allowed"];
    write(output, &json!({"settings": rows}), "settings", &columns);
    Ok(())
}

/// Asks about the audit log, or checks it.
///
/// # Errors
/// What went wrong, in words.
pub fn audit(config: &Config, output: Output, action: Audit) -> Result<(), String> {
    match action {
        Audit::List { action, actor, text, cursor } => {
            let query = [
                ("action", action.as_str()),
                ("actor", &actor),
                ("text", &text),
                ("cursor", &cursor),
            ];
            let found = Server::of(config)?.get("/audit", &query)?;
            let columns = ["number", "at", "action", "actor", "from", "subject", "detail"];
            write(output, &found, "entries", &columns);
            Ok(())
        }
        Audit::Export => {
            let mut export = Server::of(config)?.export()?;
            let copied = std::io::copy(&mut export, &mut std::io::stdout());
            copied.map(drop).map_err(|error| error.to_string())
        }
        Audit::Verify { file, heads } => {
            let export: Box<dyn BufRead> = match &file {
                Some(path) => {
                    let file = std::fs::File::open(path);
                    let file = file.map_err(|error| format!("{}: {error}", path.display()))?;
                    Box::new(BufReader::new(file))
                }
                None => Server::of(config)?.export()?,
            };
            let path = heads.unwrap_or_else(|| file_of(&config.storage.path));
            let heads = read_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            let key = existing(&config.auth.lookup_key_file)?;
            let key = lookup_key(key).map_err(|error| error.to_string())?;
            let genuine: Option<Vec<Head>> =
                heads.iter().map(|head: &SignedHead| head.verified(&key)).collect();
            let genuine = genuine.ok_or_else(|| {
                format!("{}: a head has a signature that is not this server's", path.display())
            })?;
            let head = verify(export, &genuine)?;
            tell(&if output == Output::Json {
                json!({"entries": head.entries, "hash": head.hash.to_hex(), "heads": genuine.len()})
                    .to_string()
            } else {
                let (entries, heads) = (head.entries, genuine.len());
                format!("{entries} entries are whole and agree with {heads} signed heads.")
            });
            Ok(())
        }
    }
}

/// Checks the chain of an export, and that it passes through every signed head.
fn verify(export: impl BufRead, heads: &[Head]) -> Result<Head, String> {
    let mut head = Head::default();
    let mut expected = heads.iter().peekable();
    let mut bytes = Vec::new();
    for line in export.lines() {
        let line = line.map_err(|error| format!("the log cannot be read on: {error}"))?;
        let next = head.entries + 1;
        let broken = |why: &str| format!("entry {next} {why}");
        let row: Row = serde_json::from_str(&line).map_err(|_| broken("is no entry"))?;
        if row.number != next {
            return Err(broken(&format!("is missing: {} follows", row.number)));
        }
        bytes.clear();
        row.event().ok_or_else(|| broken("is no entry"))?.encode(&mut bytes);
        head = head.after(&bytes);
        if row.hash != head.hash.to_hex() {
            return Err(broken("was changed, or what was before it: its hash is another"));
        }
        while let Some(signed) = expected.next_if(|signed| signed.entries <= head.entries) {
            if signed.entries == head.entries && *signed != head {
                return Err(broken("is not the one that was signed: the log was written anew"));
            }
        }
    }
    match expected.next() {
        Some(signed) => Err(format!(
            "the log ends at entry {}, but entry {} was signed: it was cut off",
            head.entries, signed.entries
        )),
        None => Ok(head),
    }
}
