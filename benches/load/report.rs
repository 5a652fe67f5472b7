//! Prints the results of the normal run, and its targets.

use std::thread;

use crate::figures::{duration, grouped, megabytes, ranged, ratio, times};
use crate::options::Options;
use crate::scenario::{Round, Row};
use crate::statistics::Spread;
use crate::steps::{ACTIVATE, CHECK_IN, CONFIRM, ISSUE, PRECHECK, RELEASE};
use crate::table;
use crate::targets::{self, Target};

/// Targets relative to the bare server with the same number of connections: step, connections, target.
const OF_BARE: [(&str, usize, Target); 7] = [
    (ACTIVATE.name, 256, of_bare("activate (durable), 256 connections", 0.34, 0.45)),
    (ACTIVATE.name, 64, of_bare("activate (durable), 64 connections", 0.30, 0.40)),
    (ISSUE.name, 256, of_bare("issue, 256 connections", 0.36, 0.45)),
    (PRECHECK.name, 256, of_bare("precheck, 256 connections", 0.45, 0.45)),
    (CONFIRM.name, 256, of_bare("confirm, 256 connections", 0.38, 0.45)),
    (RELEASE.name, 256, of_bare("release, 256 connections", 0.34, 0.45)),
    (CHECK_IN.name, 64, of_bare("check-in, 64 connections", 0.78, 0.84)),
];
/// The 99th percentile of activate, divided by that of the bare server.
const ACTIVATE_P99: Target =
    Target::lower("p99 of activate, 64 connections, of bare actix", 2.0, 1.3, times);
/// The processor time of an activate.
const ACTIVATE_TIME: Target =
    Target::lower("server's time for an activate, 256 connections", 24.0, 16.0, duration);
/// The time of an activate that does not share its sync.
const LONE_ACTIVATE: Target =
    Target::lower("p50 of a lone activate, in fdatasyncs", 4.0, 2.0, times);
/// The commits for 100,000 check-ins.
const CHECK_IN_COMMITS: Target = Target::lower("commits during the check-ins", 49.0, 9.0, grouped);
/// The memory of an idle server.
const IDLE_RSS: Target = Target::lower("idle RSS", 30.0, 30.0, megabytes);

const fn of_bare(name: &'static str, at_least: f64, aim: f64) -> Target {
    Target::higher(name, at_least, aim, ratio)
}

/// Prints the results of all rounds: medians, with ranges if there is more than one round.
pub fn print(options: &Options, rounds: &[Round]) {
    let Some(first) = rounds.first() else { return };
    print_head(options);
    print_value("rounds", &rounds.len().to_string());
    print_figure("idle RSS", rounds, |round| round.idle.resident_mb, megabytes);
    print_figure("RSS at the end", rounds, |round| round.loaded.resident_mb, megabytes);
    print_figure("peak RSS", rounds, |round| round.loaded.peak_mb, megabytes);
    print_figure("fdatasync p50", rounds, |round| round.fdatasync.p50_micros, duration);
    print_figure("fdatasync p99", rounds, |round| round.fdatasync.p99_micros, duration);
    println!();
    table::print(&steps(rounds, first), 1);
    println!();
    targets::print(&targets_of(rounds));
}

/// Prints the conditions of the measurement.
pub fn print_head(options: &Options) {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    print_value("server", &options.server.display().to_string());
    print_value(
        "processors",
        &format!("{processors}, shared by the server and the load generator"),
    );
    if options.quick {
        print_value("quick", "fewer requests and records, so not for comparison");
    }
}

/// Prints one figure that has no target.
pub fn print_value(name: &str, value: &str) {
    println!("{name:<15} {value}");
}

fn print_figure(name: &str, rounds: &[Round], figure: fn(&Round) -> f64, show: fn(f64) -> String) {
    if let Some(spread) = Spread::of(rounds.iter().map(figure)) {
        print_value(name, &ranged(spread, show));
    }
}

fn steps(rounds: &[Round], first: &Round) -> Vec<[String; 9]> {
    let mut lines = vec![
        [
            "connections",
            "step",
            "requests",
            "per second",
            "p50",
            "p99",
            "of healthz",
            "of bare",
            "server's time",
        ]
        .map(String::from),
    ];
    for (position, row) in first.rows.iter().enumerate() {
        let figure = |figure: fn(&Row) -> f64, show: fn(f64) -> String| {
            let values = rounds.iter().filter_map(|round| round.rows.get(position)).map(figure);
            Spread::of(values).map_or_else(String::new, |spread| ranged(spread, show))
        };
        lines.push([
            row.connections.to_string(),
            row.step.to_owned(),
            figure(|row| row.summary.count as f64, grouped),
            figure(|row| row.summary.rate, grouped),
            figure(|row| row.summary.p50_micros, duration),
            figure(|row| row.summary.p99_micros, duration),
            figure(|row| row.of_healthz, ratio),
            figure(|row| row.of_bare, ratio),
            figure(|row| row.processor_micros, duration),
        ]);
    }
    lines
}

fn targets_of(rounds: &[Round]) -> Vec<(Target, Option<Spread>)> {
    let row = |step, connections, figure: fn(&Row) -> f64| {
        let rows = rounds.iter().filter_map(|round| round.row(step, connections));
        Spread::of(rows.map(figure))
    };
    let mut reached: Vec<_> = OF_BARE
        .map(|(step, connections, target)| (target, row(step, connections, |row| row.of_bare)))
        .into();
    let lone = rounds.iter().filter_map(|round| round.row(ACTIVATE.name, 1)?.of_fdatasync);
    reached.extend([
        (ACTIVATE_P99, row(ACTIVATE.name, 64, |row| row.p99_of_bare)),
        (ACTIVATE_TIME, row(ACTIVATE.name, 256, |row| row.processor_micros)),
        (LONE_ACTIVATE, Spread::of(lone)),
        (CHECK_IN_COMMITS, Spread::of(rounds.iter().filter_map(|round| round.check_in_commits))),
        (IDLE_RSS, Spread::of(rounds.iter().map(|round| round.idle.resident_mb))),
    ]);
    reached
}
