//! `import`: takes over servers from another server's list.

use super::client::Server;
use super::terminal::{Output, remark, tell};
use crate::config::Config;
use crate::operator::import::{STEP, read};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The most bytes of servers in one request. The server takes 256 KiB.
const BYTES: usize = 200_000;
/// The largest file, in bytes: enough for some million servers.
const LARGEST: u64 = 1 << 30;
/// Ids that a message names.
const NAMED: usize = 10;

/// Reads a file, or standard input where it is `-`.
fn text_of(file: &Path) -> Result<String, String> {
    let shown = file.display();
    let source: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        let opened = File::open(file);
        Box::new(opened.map_err(|error| format!("{shown}: {error}; check the path"))?)
    };
    let mut text = String::new();
    let read = source.take(LARGEST + 1).read_to_string(&mut text);
    read.map_err(|error| format!("{shown}: cannot be read: {error}"))?;
    if text.len() as u64 > LARGEST {
        return Err(format!("{shown}: it is larger than {LARGEST} bytes"));
    }
    Ok(text)
}

/// Returns the rows of a listing.
fn rows_of(text: &str) -> Result<Vec<Value>, String> {
    let what = "the answer of the old server's GET /status";
    let mut list: Value = serde_json::from_str(text)
        .map_err(|error| format!("the file must hold {what}, but it is not JSON: {error}"))?;
    let (count, cursor) = (list.get("count").and_then(Value::as_u64), list.get("next_cursor"));
    if cursor.is_some_and(|cursor| !cursor.is_null()) {
        return Err("the file holds one page of a list; ask GET /status without limit".into());
    }
    let rows = match list.get_mut("servers").map(Value::take) {
        Some(Value::Array(rows)) => rows,
        _ => return Err(format!("the file must hold {what}, with a list of servers")),
    };
    match count {
        Some(count) if count != rows.len() as u64 => Err(format!(
            "the file says that it has {count} servers and has {}; ask for it again",
            rows.len()
        )),
        _ => Ok(rows),
    }
}

/// Splits rows into requests.
fn requests(rows: &[Value]) -> Vec<&[Value]> {
    let (mut all, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (place, row) in rows.iter().enumerate() {
        let length = row.to_string().len() + 1;
        if place - begin == STEP || bytes + length > BYTES {
            all.extend(rows.get(begin..place));
            (begin, bytes) = (place, 0);
        }
        bytes += length;
    }
    all.extend(rows.get(begin..).filter(|rest| !rest.is_empty()));
    all
}

/// What all requests have done.
#[derive(Default)]
struct Sum {
    new: u64,
    changed: u64,
    unchanged: u64,
    changed_here: Vec<Value>,
    address_taken: Vec<Value>,
}

impl Sum {
    fn add(&mut self, done: &Value) {
        let count = |name: &str| done.get(name).and_then(Value::as_u64).unwrap_or_default();
        let list =
            |name: &str| done.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
        self.new += count("new");
        self.changed += count("changed");
        self.unchanged += count("unchanged");
        self.changed_here.extend(list("changed_here"));
        self.address_taken.extend(list("address_taken"));
    }

    fn json(&self) -> Value {
        json!({
            "new": self.new, "changed": self.changed, "unchanged": self.unchanged,
            "changed_here": self.changed_here, "address_taken": self.address_taken,
        })
    }
}

/// Returns the first of some ids, for a message.
fn some(ids: &[Value]) -> String {
    let named: Vec<&str> = ids.iter().filter_map(Value::as_str).take(NAMED).collect();
    let rest = ids.len() - named.len();
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    named.join(", ") + &more
}

fn send(server: &Server, requests: &[&[Value]], dry_run: bool) -> Result<Sum, String> {
    let mut sum = Sum::default();
    for rows in requests {
        sum.add(&server.post("/import", &json!({"servers": rows, "dry_run": dry_run}))?);
    }
    Ok(sum)
}

/// Imports the servers of a file. All rows are checked before the first one is written.
///
/// # Errors
/// A message that names the row that cannot be taken over, or says why the command failed.
pub fn import(config: &Config, output: Output, file: &Path, dry_run: bool) -> Result<(), String> {
    let rows = rows_of(&text_of(file)?)?;
    read(&rows, config.server.allow_private_ips)?;
    let (server, requests) = (Server::of(config)?, requests(&rows));
    let planned = send(&server, &requests, true)?;
    if !planned.address_taken.is_empty() && !dry_run {
        return Err(format!(
            "nothing was imported: other servers have the addresses of {} here; delete them here, or take \
             these rows out of the file",
            some(&planned.address_taken)
        ));
    }
    let sum = if dry_run { planned } else { send(&server, &requests, false)? };
    if output == Output::Json {
        return tell(&sum.json().to_string());
    }
    let would = if dry_run { "would be " } else { "" };
    tell(&format!(
        "{} servers: {} {would}new, {} {would}changed, {} as before, {} changed here since and left alone",
        rows.len(),
        sum.new,
        sum.changed,
        sum.unchanged,
        sum.changed_here.len()
    ))?;
    if !sum.changed_here.is_empty() {
        remark(&format!("changed here since: {}", some(&sum.changed_here)));
    }
    if !sum.address_taken.is_empty() {
        remark(&format!(
            "not to be imported, because other servers have their addresses here: {}",
            some(&sum.address_taken)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_sent_in_requests_that_the_server_takes_and_none_is_left_out() {
        let rows: Vec<Value> =
            (0..2500).map(|n| json!({"n": n, "note": "x".repeat(n % 400)})).collect();
        let split = requests(&rows);
        assert_eq!(split.concat(), rows);
        for request in &split {
            assert!(request.len() <= STEP && !request.is_empty());
            assert!(json!(request).to_string().len() <= BYTES + 2);
        }
        assert!(requests(&[]).is_empty());
    }

    #[test]
    fn only_a_whole_listing_is_taken() {
        let rows = |text: &str| rows_of(text).map(|rows| rows.len());
        assert_eq!(rows(r#"{"count":1,"servers":[{}]}"#), Ok(1));
        assert_eq!(rows(r#"{"servers":[]}"#), Ok(0));
        for wrong in [
            "",
            "[]",
            r#"{"servers":{}}"#,
            r#"{"count":2,"servers":[{}]}"#,
            r#"{"count":1,"servers":[{}],"next_cursor":"5"}"#,
            r#"{"count":1,"servers":[{}"#,
        ] {
            assert!(rows(wrong).is_err(), "{wrong}");
        }
    }
}
