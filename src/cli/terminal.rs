//! The output of commands: lines, tables for people, JSON for programs.

use clap::ValueEnum;
use serde_json::Value;
use std::io::Write;

/// The output format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Tables for people.
    #[default]
    Text,
    /// JSON for programs.
    Json,
}

/// Prints a line to standard output. Ignores errors: the server must run even if standard output is
/// closed.
pub fn tell(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Returns the field `name` of a row as text.
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

/// Prints an answer: the whole of it as JSON, or the rows in its field `list` as a table.
pub fn write(output: Output, data: &Value, list: &str, columns: &[&str]) {
    if output == Output::Json {
        return tell(&data.to_string());
    }
    let rows = data.get(list).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    tell(&table(rows, columns));
    if let Some(next) = data.get("next_cursor").filter(|next| !next.is_null()) {
        tell(&format!("There are more. Continue with --cursor {}", cell(next)));
    }
}
