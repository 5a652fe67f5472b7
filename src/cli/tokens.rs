//! `tokens`: creates, lists, changes, rotates and revokes access tokens.

use super::client::Server;
use super::terminal::{Output, field, foreign, remark, rows, tell, write};
use crate::config::Config;
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use iptunnel_domain::access::Role;
use serde_json::{Map, Value, json};

/// The subcommands of `tokens`.
#[derive(Debug, Subcommand)]
pub enum Tokens {
    /// Create a token, and print its secret, which is shown this once
    ///
    /// Standard output has the secret and nothing else, so a script can keep it.
    #[command(after_help = "\
Examples:
  iptunnel-server tokens create office --role operate
  iptunnel-server tokens create monitoring --role view --network 10.0.0.0/8
  iptunnel-server tokens create fleet --role enrol --max-servers 500 --expires 2030-01-31 > fleet.token")]
    Create {
        /// The name, which the audit log shows
        name: String,
        /// What its holder may do; each but enrol includes the ones before
        #[arg(long, value_parser = roles())]
        role: String,
        #[command(flatten)]
        terms: Terms,
    },
    /// List the tokens
    #[command(after_help = "\
Examples:
  iptunnel-server tokens list
  iptunnel-server tokens list --output json")]
    List,
    /// Change the name or the terms of a token
    ///
    /// What is not named stays as it is. Lists are replaced as a whole.
    #[command(after_help = "\
Examples:
  iptunnel-server tokens change office --name headquarters
  iptunnel-server tokens change fleet --max-servers 1000 --expires never
  iptunnel-server tokens change fleet --network any")]
    Change {
        /// The token: its name or id
        token: String,
        /// Another name
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        terms: Terms,
    },
    /// Give a token a new secret, and print it; the old one stays good for a while
    #[command(after_help = "\
Examples:
  iptunnel-server tokens rotate fleet
  iptunnel-server tokens rotate office --grace 0")]
    Rotate {
        /// The token: its name or id
        token: String,
        /// How long the old secret stays good: seconds, or a number with s, m, h or d
        #[arg(long, default_value = "24h", value_parser = seconds)]
        grace: u64,
    },
    /// Revoke a token: nobody can use it any more
    ///
    /// The servers that it has enrolled go on, unless --servers revokes them too.
    #[command(after_help = "\
Examples:
  iptunnel-server tokens revoke office
  iptunnel-server tokens revoke fleet --servers")]
    Revoke {
        /// The token: its name or id
        token: String,
        /// Revoke the servers that it has enrolled, too
        #[arg(long)]
        servers: bool,
    },
}

/// The terms of a token.
#[derive(Debug, Args)]
pub struct Terms {
    /// When it ends: a date (its first second, UTC), a time such as 2030-01-31T12:00:00Z, or never
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    /// A network that it may be used from, or any; can be repeated
    #[arg(long = "network", value_name = "NETWORK")]
    networks: Vec<String>,
    /// With the role enrol: an address that gets install tickets without a token, or none; can be repeated
    #[arg(long = "address", value_name = "ADDRESS")]
    addresses: Vec<String>,
    /// With the role enrol: the most servers that it may have enrolled; 0 for no bound
    #[arg(long, value_name = "NUMBER")]
    max_servers: Option<u32>,
}

impl Terms {
    fn into_body(self, name: Option<String>) -> Map<String, Value> {
        let mut body = Map::new();
        if let Some(name) = name {
            body.insert("name".into(), name.into());
        }
        if let Some(end) = self.expires {
            body.insert("expires_at".into(), if end == "never" { Value::Null } else { end.into() });
        }
        let mut list = |field: &str, entries: Vec<String>, nothing: &str| {
            if !entries.is_empty() {
                let entries = entries.into_iter().filter(|entry| entry != nothing);
                body.insert(field.into(), entries.collect());
            }
        };
        list("networks", self.networks, "any");
        list("addresses", self.addresses, "none");
        if let Some(most) = self.max_servers {
            body.insert("max_servers".into(), most.into());
        }
        body
    }
}

fn roles() -> PossibleValuesParser {
    Role::ALL.map(Role::name).into()
}

/// Parses a number of seconds, or a number with a unit.
fn seconds(text: &str) -> Result<u64, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.strip_prefix(number) {
        Some("" | "s") => 1,
        Some("m") => 60,
        Some("h") => 3600,
        Some("d") => 86_400,
        _ => 0,
    };
    let seconds = number.parse().ok().and_then(|number: u64| number.checked_mul(unit));
    seconds
        .filter(|_| unit > 0)
        .ok_or_else(|| "must be a number, alone or with s, m, h or d".into())
}

/// Returns the id of the token with this id or name. Of several with this name, that is the one in use; if
/// none is, the newest. No name is a number.
fn id_of(server: &Server, token: &str) -> Result<String, String> {
    let list = server.get("/tokens", &[])?;
    let all = rows(&list, "tokens")?;
    let meant =
        all.iter().filter(|row| [field(row, "id"), field(row, "name")].contains(&token.into()));
    let found = meant.max_by_key(|row| {
        (field(row, "state") != "revoked", row.get("id").and_then(Value::as_u64))
    });
    let found = found.map(|row| field(row, "id"));
    found.ok_or_else(|| format!("{token}: there is no such token; `tokens list` shows all"))
}

/// Revokes a token; `with_servers`: and its servers, until none is left. Returns the last answer, with how
/// many servers were revoked in all.
fn revoke(server: &Server, id: &str, with_servers: bool) -> Result<Value, String> {
    let (path, body) = (format!("/tokens/{id}/revoke"), json!({"servers": with_servers}));
    let mut revoked = 0;
    loop {
        let mut answer = server.post(&path, &body)?;
        let count = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or_default();
        let (left, gone) = (count("servers"), count("servers_revoked"));
        revoked += gone;
        if with_servers && left > 0 {
            let words = format!("{revoked} servers revoked; {left} are left");
            if gone == 0 {
                return Err(format!("{words}; please repeat it"));
            }
            remark(&words);
            continue;
        }
        if let Some(all) = answer.get_mut("servers_revoked") {
            *all = revoked.into();
        }
        return Ok(answer);
    }
}

/// Prints the secret of a token, alone on standard output.
fn show_secret(output: Output, data: &Value) -> Result<(), String> {
    if output == Output::Json {
        return tell(&data.to_string());
    }
    let secret = field(data, "token");
    if secret.is_empty() {
        return Err(foreign("token"));
    }
    remark(&format!(
        "token {} (id {}, role {}); its secret is shown this once:",
        field(data, "name"),
        field(data, "id"),
        field(data, "role")
    ));
    tell(&secret)
}

fn show_state(output: Output, data: &Value) -> Result<(), String> {
    if output == Output::Json {
        return tell(&data.to_string());
    }
    if field(data, "id").is_empty() {
        return Err(foreign("token"));
    }
    tell(&format!("{} {}", field(data, "name"), field(data, "state")))
}

/// Writes in words what a row of a table would show as `[]`, as 0 or not at all.
fn in_words(row: &mut Value) {
    let list = |name: &str, nothing: &str| {
        let texts = row.get(name).and_then(Value::as_array).into_iter().flatten();
        let texts: Vec<_> = texts.filter_map(Value::as_str).collect();
        if texts.is_empty() { nothing.to_owned() } else { texts.join(", ") }
    };
    let enrols = field(row, "role") == Role::Enrol.name();
    let (networks, addresses) =
        (list("networks", "any network"), list("addresses", if enrols { "none" } else { "" }));
    let most = match field(row, "max_servers") {
        _ if !enrols => String::new(),
        most if most == "0" => "no bound".to_owned(),
        most => most,
    };
    let servers = if enrols { field(row, "servers") } else { String::new() };
    let never = |name: &str| Some(field(row, name)).filter(|time| !time.is_empty());
    let (used, end) = (never("last_used_at"), never("expires_at"));
    let words = [
        ("networks", networks),
        ("addresses", addresses),
        ("max_servers", most),
        ("servers", servers),
        ("last_used_at", used.unwrap_or_else(|| "never".into())),
        ("expires_at", end.unwrap_or_else(|| "never".into())),
    ];
    if let Some(row) = row.as_object_mut() {
        row.extend(words.map(|(name, text)| (name.to_owned(), Value::String(text))));
    }
}

/// Lists tokens, or changes one.
///
/// # Errors
/// A message that says why the command failed.
pub fn tokens(config: &Config, output: Output, action: Tokens) -> Result<(), String> {
    let server = Server::of(config)?;
    match action {
        Tokens::Create { name, role, terms } => {
            let mut body = terms.into_body(Some(name));
            body.insert("role".into(), role.into());
            show_secret(output, &server.post("/tokens", &body.into())?)
        }
        Tokens::List => {
            let columns = [
                "id",
                "name",
                "role",
                "state",
                "last_used_at",
                "expires_at",
                "servers",
                "max_servers",
                "networks",
                "addresses",
                "old_secret_until",
            ];
            let mut list = server.get("/tokens", &[])?;
            if output != Output::Json {
                let rows = list.get_mut("tokens").and_then(Value::as_array_mut);
                rows.into_iter().flatten().for_each(in_words);
            }
            write(output, &list, "tokens", &columns)
        }
        Tokens::Change { token, name, terms } => {
            let id = id_of(&server, &token)?;
            let body = terms.into_body(name);
            show_state(output, &server.patch(&format!("/tokens/{id}"), &body.into())?)
        }
        Tokens::Rotate { token, grace } => {
            let id = id_of(&server, &token)?;
            let body = json!({"grace_seconds": grace});
            show_secret(output, &server.post(&format!("/tokens/{id}/rotate"), &body)?)
        }
        Tokens::Revoke { token, servers } => {
            let id = id_of(&server, &token)?;
            let revoked = revoke(&server, &id, servers)?;
            show_state(output, &revoked)?;
            let (left, gone) = (field(&revoked, "servers"), field(&revoked, "servers_revoked"));
            if servers {
                remark(&format!("servers revoked with it: {gone}"));
            } else if left != "0" && !left.is_empty() {
                remark(&format!(
                    "{left} servers that it has enrolled go on; to revoke them: tokens revoke {id} --servers"
                ));
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_says_in_words_what_has_no_bound() {
        let shown = |mut row: Value| {
            in_words(&mut row);
            ["networks", "addresses", "max_servers", "servers", "expires_at"]
                .map(|name| field(&row, name))
        };
        let row = |role: &str, most: u32, networks: &[&str], addresses: &[&str]| {
            json!({"role": role, "max_servers": most, "servers": 3, "networks": networks,
                "addresses": addresses, "last_used_at": null, "expires_at": null})
        };
        let unbound = shown(row("enrol", 0, &[], &[]));
        assert_eq!(unbound, ["any network", "none", "no bound", "3", "never"]);
        let bound = shown(row("enrol", 5, &["10.0.0.0/8", "fd00::/8"], &["10.0.0.1", "fd00::1"]));
        assert_eq!(bound, ["10.0.0.0/8, fd00::/8", "10.0.0.1, fd00::1", "5", "3", "never"]);
        assert_eq!(shown(row("view", 0, &[], &[])), ["any network", "", "", "", "never"]);
    }

    #[test]
    fn a_grace_is_a_number_with_or_without_a_unit() {
        let all = ["0", "90", "90s", "2m", "24h", "7d"].map(|text| seconds(text).unwrap());
        assert_eq!(all, [0, 90, 90, 120, 86_400, 604_800]);
        for wrong in ["", "h", "1w", "-1", "1.5h", "99999999999999999999", "9999999999999999999d"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
