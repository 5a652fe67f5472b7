//! What commands write: lines, tables for people, JSON for programs.

use clap::ValueEnum;
use serde_json::Value;
use std::io::Write;

/// How answers are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Tables for people.
    #[default]
    Text,
    /// JSON for programs.
    Json,
}

/// Says something on standard output. Where nobody reads that the server runs all the same.
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

/// The field `name` of a row as a cell.
pub fn field(row: &Value, name: &str) -> String {
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
pub fn write(output: Output, data: &Value, list: &str, columns: &[&str]) {
    if output == Output::Json {
        return tell(&data.to_string());
    }
    let rows = data.get(list).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    tell(&table(rows, columns));
    if let Some(next) = data.get("next_cursor").filter(|next| !next.is_null()) {
        tell(&format!("more with --cursor {}", cell(next)));
    }
}
