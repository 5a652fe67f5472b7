//! The output of commands, all of it in one place: lines, tables for people, JSON for programs.
//!
//! A reader that closes the pipe has seen enough: that is no error, and the command ends as it would
//! have ended. Anything else that cannot be written, such as into a full disk, fails the command.
//! Characters that a terminal would obey are escaped.

use crate::escape::{escaped, escaped_lines};
use clap::ValueEnum;
use serde_json::Value;
use std::io::{self, BufRead, BufWriter, ErrorKind, Write};

/// The output format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Tables for people.
    #[default]
    Text,
    /// JSON for programs.
    Json,
}

/// Returns the outcome of writing to standard output: a closed pipe is no error.
///
/// # Errors
/// A message, for any other error.
pub fn written(outcome: io::Result<()>) -> Result<(), String> {
    match outcome {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(format!(
            "standard output cannot be written: {error}; check where it leads to, and the space there"
        )),
        _ => Ok(()),
    }
}

/// Prints text that has its line feeds to standard output.
///
/// # Errors
/// As [`written`].
pub fn print(text: &str) -> Result<(), String> {
    let mut stdout = io::stdout().lock();
    written(stdout.write_all(escaped_lines(text).as_bytes()).and_then(|()| stdout.flush()))
}

/// Prints a line to standard output.
///
/// # Errors
/// As [`written`].
pub fn tell(text: &str) -> Result<(), String> {
    print(&format!("{text}\n"))
}

/// Prints a line for people to standard error, apart from what programs read. If standard error is
/// closed or full, there is no place to say so.
pub fn remark(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", escaped_lines(text));
}

/// Copies lines to standard output as long as anybody reads them.
///
/// # Errors
/// The lines cannot be read to their end, or as [`written`].
pub fn copy(lines: impl BufRead) -> Result<(), String> {
    let mut stdout = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    for line in lines.lines() {
        let line =
            line.map_err(|error| format!("the answer cannot be read to its end: {error}"))?;
        if let Err(error) = writeln!(stdout, "{}", escaped_lines(&line)) {
            return written(Err(error));
        }
    }
    written(stdout.flush())
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => escaped(text).into_owned(),
        other => escaped(&other.to_string()).into_owned(),
    }
}

/// Returns the field `name` of a row as text, with control characters escaped.
pub fn field(row: &Value, name: &str) -> String {
    row.get(name).map(cell).unwrap_or_default()
}

/// Returns a table of rows, with the names of their fields as its first line.
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

/// Says that an answer lacks what every answer of this server has.
pub fn foreign(lacks: &str) -> String {
    format!("the answer has no {lacks}: another service has sent it; check admin.url")
}

/// Returns the rows of an answer, which are in its field `list`.
///
/// # Errors
/// The answer has no such list.
pub fn rows<'a>(data: &'a Value, list: &str) -> Result<&'a [Value], String> {
    let rows = data.get(list).and_then(Value::as_array);
    rows.map(Vec::as_slice).ok_or_else(|| foreign(&format!("list of {list}")))
}

/// Prints an answer: the whole of it as JSON, or the rows in its field `list` as a table. If there are
/// no rows, says so on standard error.
///
/// # Errors
/// The answer has no such list, or as [`written`].
pub fn write(output: Output, data: &Value, list: &str, columns: &[&str]) -> Result<(), String> {
    let rows = rows(data, list)?;
    if output == Output::Json {
        return tell(&data.to_string());
    }
    if rows.is_empty() {
        remark(&format!("no {list} found"));
    } else {
        tell(&table(rows, columns))?;
    }
    if let Some(next) = data.get("next_cursor").filter(|next| !next.is_null()) {
        remark(&format!("There are more. Continue with --cursor {}", cell(next)));
    }
    Ok(())
}
