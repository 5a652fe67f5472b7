//! `import`: takes over servers from another server's list.

use super::client::{Answer, Server};
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
#[derive(Debug, Default)]
struct Sum {
    new: u64,
    changed: u64,
    unchanged: u64,
    changed_here: Vec<Value>,
    other_address: Vec<Value>,
    address_taken: Vec<Value>,
    not_revoked: Vec<Value>,
    still_revoked: Vec<Value>,
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
        self.other_address.extend(list("other_address"));
        self.address_taken.extend(list("address_taken"));
        self.not_revoked.extend(list("not_revoked"));
        self.still_revoked.extend(list("still_revoked"));
    }

    fn json(&self) -> Value {
        json!({
            "new": self.new, "changed": self.changed, "unchanged": self.unchanged,
            "changed_here": self.changed_here, "other_address": self.other_address,
            "address_taken": self.address_taken, "not_revoked": self.not_revoked,
            "still_revoked": self.still_revoked,
        })
    }

    fn words(&self, would: &str) -> String {
        format!(
            "{} {would}new, {} {would}changed, {} as before, {} changed here since and left alone",
            self.new,
            self.changed,
            self.unchanged,
            self.changed_here.len()
        )
    }

    /// Whether rows are left out.
    fn leaves_out(&self) -> bool {
        !self.other_address.is_empty() || !self.address_taken.is_empty()
    }

    /// Returns what is not taken over and needs a person, and what to do about it.
    fn problems(&self, rows: &[Value]) -> Vec<String> {
        let named = |ids: &[Value], problem: fn(String) -> String| {
            (!ids.is_empty()).then(|| problem(some(ids, rows)))
        };
        let problems = [
            named(&self.address_taken, |ids| {
                format!(
                    "other servers have the addresses of {ids} here: find them with `iptunnel-server servers \
                     list --text ADDRESS` and delete them, or take these rows out of the file"
                )
            }),
            named(&self.other_address, |ids| {
                format!("{ids}: known here at another address; take these rows out of the file")
            }),
            named(&self.not_revoked, |ids| {
                format!(
                    "{ids}: revoked in the file and not here; revoke them with `iptunnel-server servers revoke \
                     ID`, unless they were restored here"
                )
            }),
        ];
        problems.into_iter().flatten().collect()
    }
}

/// Returns the first of some ids, each with its address in the file, for a message.
fn some(ids: &[Value], rows: &[Value]) -> String {
    let text = |row: &Value, name: &str| row.get(name).and_then(Value::as_str).map(str::to_owned);
    let address = |id: &str| {
        let is_it = |row: &&Value| {
            text(row, "server_id").is_some_and(|other| other.eq_ignore_ascii_case(id))
        };
        rows.iter().find(is_it).and_then(|row| text(row, "ip")).unwrap_or_default()
    };
    let named: Vec<String> = ids
        .iter()
        .filter_map(Value::as_str)
        .take(NAMED)
        .map(|id| format!("{id} ({})", address(id)))
        .collect();
    let rest = ids.len() - named.len();
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    named.join(", ") + &more
}

/// An import that has stopped between two requests.
#[derive(Debug)]
struct Stopped {
    /// What was done before.
    sum: Sum,
    /// The rows of the requests before.
    rows: usize,
    /// Why it stopped.
    why: String,
}

impl Stopped {
    fn words(&self, all: usize) -> String {
        format!(
            "the import has stopped after {} of {all} rows: {}; done before: {}; of the next rows some may be done \
             as well; run the same command again: it does nothing twice",
            self.rows,
            self.why,
            self.sum.words("")
        )
    }
}

/// Sends requests with `post`, and returns what all of them have done.
fn send(
    post: impl Fn(&Value) -> Answer,
    requests: &[&[Value]],
    dry_run: bool,
) -> Result<Sum, Stopped> {
    let (mut sum, mut sent) = (Sum::default(), 0);
    for rows in requests {
        match post(&json!({"servers": rows, "dry_run": dry_run})) {
            Ok(done) => sum.add(&done),
            Err(why) => return Err(Stopped { sum, rows: sent, why }),
        }
        sent += rows.len();
    }
    Ok(sum)
}

/// Imports the servers of a file. All rows are checked before the first one is written.
///
/// # Errors
/// A message that names the row that cannot be taken over; or that says why the command failed, what was
/// done before, and what to do; or that names what was not taken over.
pub fn import(config: &Config, output: Output, file: &Path, dry_run: bool) -> Result<(), String> {
    let rows = rows_of(&text_of(file)?)?;
    read(&rows, config.server.allow_private_ips)?;
    let (server, requests) = (Server::of(config)?, requests(&rows));
    let post = |body: &Value| server.post("/import", body);
    let planned = send(post, &requests, true)
        .map_err(|stopped| format!("nothing was imported: {}", stopped.why))?;
    if planned.leaves_out() && !dry_run {
        return Err(format!("nothing was imported: {}", planned.problems(&rows).join("; ")));
    }
    let done = if dry_run { Ok(planned) } else { send(post, &requests, false) };
    let sum = match done {
        Ok(sum) => sum,
        Err(stopped) => {
            if output == Output::Json {
                tell(&stopped.sum.json().to_string())?;
            }
            return Err(stopped.words(rows.len()));
        }
    };
    report(output, &sum, &rows, dry_run)?;
    match sum.problems(&rows) {
        problems if problems.is_empty() => Ok(()),
        problems => Err(problems.join("; ")),
    }
}

/// Prints what was done, or would be.
fn report(output: Output, sum: &Sum, rows: &[Value], dry_run: bool) -> Result<(), String> {
    if output == Output::Json {
        return tell(&sum.json().to_string());
    }
    let would = if dry_run { "would be " } else { "" };
    tell(&format!("{} servers: {}", rows.len(), sum.words(would)))?;
    if !sum.changed_here.is_empty() {
        remark(&format!("changed here since: {}", some(&sum.changed_here, rows)));
    }
    if !sum.still_revoked.is_empty() {
        remark(&format!(
            "revoked, because a revoked server was deleted here at the same address: {}; restore them with \
             `iptunnel-server servers restore ID` if they are to register",
            some(&sum.still_revoked, rows)
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

    fn done(new: u64, more: Value) -> Value {
        let mut done = json!({"new": new, "changed": 0, "unchanged": 0});
        done.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        done
    }

    #[test]
    fn an_import_that_stops_says_what_was_done_before_and_what_to_do() {
        let rows: Vec<Value> = (0..2500).map(|n| json!({"n": n})).collect();
        let requests = requests(&rows);
        let post = |body: &Value| match body["servers"][0]["n"].as_u64() {
            Some(2000) => Err("The server is overloaded.".to_owned()),
            _ => Ok(done(999, json!({"changed_here": ["0123456789abcdef"]}))),
        };
        let stopped = send(post, &requests, false).unwrap_err();
        assert_eq!((stopped.sum.new, stopped.sum.changed_here.len()), (1998, 2));
        let words = stopped.words(rows.len());
        for part in [
            "stopped after 2000 of 2500 rows: The server is overloaded.",
            "done before: 1998 new, 0 changed, 0 as before, 2 changed here",
            "run the same command again",
        ] {
            assert!(words.contains(part), "{words}");
        }
    }

    #[test]
    fn what_is_left_out_is_named_with_its_address_and_with_what_to_do() {
        let id = |n: u64| format!("{n:016x}");
        let rows: Vec<Value> = (0..20)
            .map(|n| json!({"server_id": id(0xA0 + n).to_uppercase(), "ip": format!("8.8.8.{n}")}))
            .collect();
        let of = |name: &str, count: u64| {
            let ids: Vec<String> = (0..count).map(|n| id(0xA0 + n)).collect();
            let post = |_: &Value| Ok(done(0, json!({name: ids})));
            send(post, &[&rows], true).unwrap()
        };
        assert!(of("changed_here", 1).problems(&rows).is_empty());
        for (name, leaves_out, advice) in [
            ("address_taken", true, "servers list --text ADDRESS` and delete them"),
            ("other_address", true, "take these rows out of the file"),
            ("not_revoked", false, "servers revoke ID`"),
        ] {
            let sum = of(name, 12);
            assert_eq!(sum.leaves_out(), leaves_out, "{name}");
            let problems = sum.problems(&rows);
            assert_eq!(problems.len(), 1);
            let first = format!("{} (8.8.8.0), {} (8.8.8.1)", id(0xA0), id(0xA1));
            for part in [&first, "(8.8.8.9) and 2 more", advice] {
                assert!(problems[0].contains(part), "{}", problems[0]);
            }
        }
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
