//! The table, and the targets beside what was reached.

use std::thread;

use crate::options::Options;
use crate::scenario::{Round, Row};
use crate::statistics::Spread;

/// A code is activated durably at least this part of `healthz` at 256 connections.
const ACTIVATIONS_OF_HEALTHZ: f64 = 0.15;
/// Servers check in at least this part of `healthz` at 64 connections.
const CHECK_INS_OF_HEALTHZ: f64 = 0.60;
/// The server that nobody uses stays under this.
const IDLE_RSS_MB: f64 = 30.0;

/// Prints all that the rounds found out: medians, and the range where there is more than one round.
pub fn print(options: &Options, rounds: &[Round]) {
    let Some(first) = rounds.first() else { return };
    let processors = thread::available_parallelism().map_or(1, usize::from);
    println!("server          {}", options.server.display());
    println!("processors      {processors}, shared by the server and the load generator");
    println!(
        "rounds          {}{}",
        rounds.len(),
        if options.quick { ", quick: not for comparison" } else { "" }
    );
    print_figure("idle RSS", rounds, |round| round.idle.resident_mb, megabytes);
    print_figure("RSS at the end", rounds, |round| round.loaded.resident_mb, megabytes);
    print_figure("peak RSS", rounds, |round| round.loaded.peak_mb, megabytes);
    print_figure("fdatasync p50", rounds, |round| round.fdatasync.p50_micros, duration);
    print_figure("fdatasync p99", rounds, |round| round.fdatasync.p99_micros, duration);
    println!();
    print_table(&table(rounds, first));
    println!();
    print_check_in_commits(rounds, first);
    print_targets(rounds);
}

fn print_figure(name: &str, rounds: &[Round], figure: fn(&Round) -> f64, show: fn(f64) -> String) {
    if let Some(spread) = Spread::of(rounds.iter().map(figure)) {
        println!("{name:<15} {}", ranged(spread, rounds.len(), show));
    }
}

fn table(rounds: &[Round], first: &Round) -> Vec<[String; 7]> {
    let mut lines = vec![
        ["connections", "step", "requests", "per second", "p50", "p99", "of healthz"]
            .map(String::from),
    ];
    for (position, row) in first.rows.iter().enumerate() {
        let figure = |figure: fn(&Row) -> f64, show: fn(f64) -> String| {
            let values = rounds.iter().filter_map(|round| round.rows.get(position)).map(figure);
            Spread::of(values).map_or_else(String::new, |spread| ranged(spread, rounds.len(), show))
        };
        lines.push([
            row.connections.to_string(),
            row.step.to_owned(),
            figure(|row| row.summary.count as f64, grouped),
            figure(|row| row.summary.rate, grouped),
            figure(|row| row.summary.p50_micros, duration),
            figure(|row| row.summary.p99_micros, duration),
            figure(|row| row.of_healthz, ratio),
        ]);
    }
    lines
}

fn print_table(lines: &[[String; 7]]) {
    let mut widths = [0; 7];
    for line in lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    for line in lines {
        let cells: Vec<String> =
            line.iter()
                .zip(widths)
                .enumerate()
                // Names to the left, figures to the right.
                .map(|(column, (cell, width))| {
                    if column == 1 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                })
                .collect();
        println!("{}", cells.join("  "));
    }
}

/// The commits of other work under way at the time, such as saved counters, are among them.
fn print_check_in_commits(rounds: &[Round], first: &Round) {
    let check_ins = first.rows.last().map_or(0.0, |row| row.summary.count as f64);
    match Spread::of(rounds.iter().filter_map(|round| round.check_in_commits)) {
        Some(spread) => {
            let commits = ranged(spread, rounds.len(), grouped);
            println!("commits during {} check-ins and one flush: {commits}", grouped(check_ins));
        }
        None => println!("commits during check-ins: unknown, the metrics have no counter of them"),
    }
    println!();
}

fn print_targets(rounds: &[Round]) {
    let reached = |step: &str, connections: usize| {
        Spread::of(rounds.iter().filter_map(|round| {
            round
                .rows
                .iter()
                .find(|row| row.step == step && row.connections == connections)
                .map(|row| row.of_healthz)
        }))
    };
    let idle = Spread::of(rounds.iter().map(|round| round.idle.resident_mb));
    let targets = [
        (
            "durable activations at 256 connections",
            ACTIVATIONS_OF_HEALTHZ,
            reached("activate", 256),
        ),
        ("check-ins at 64 connections", CHECK_INS_OF_HEALTHZ, reached("check-in", 64)),
    ];
    for (name, target, reached) in targets {
        let met = reached.is_some_and(|reached| reached.median >= target);
        print_target(name, &format!("at least {} of healthz", ratio(target)), reached, ratio, met);
    }
    let met = idle.is_some_and(|idle| idle.median < IDLE_RSS_MB);
    print_target("idle RSS", &format!("under {}", megabytes(IDLE_RSS_MB)), idle, megabytes, met);
}

fn print_target(
    name: &str,
    target: &str,
    reached: Option<Spread>,
    show: fn(f64) -> String,
    met: bool,
) {
    let reached = reached.map_or_else(|| "nothing".to_owned(), |spread| show(spread.median));
    println!("{name:<39} {target:<24} {reached:>9}  {}", verdict(met));
}

/// The word for a target that was met or not.
pub fn verdict(met: bool) -> &'static str {
    if met { "ok" } else { "MISSED" }
}

fn ranged(spread: Spread, rounds: usize, show: fn(f64) -> String) -> String {
    if rounds == 1 || spread.min == spread.max {
        return show(spread.median);
    }
    format!("{} ({}\u{2013}{})", show(spread.median), show(spread.min), show(spread.max))
}

/// Megabytes with one decimal.
pub fn megabytes(value: f64) -> String {
    format!("{value:.1} MB")
}

fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

fn duration(micros: f64) -> String {
    if micros < 1000.0 {
        format!("{micros:.0} \u{b5}s")
    } else {
        format!("{:.2} ms", micros / 1000.0)
    }
}

/// A whole number with commas between the thousands.
pub fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
