//! Prints the figures of PostgreSQL and of our server, and their ratio.

use std::slice;

use super::postgres::{DURABLE, FAVOURS};
use super::workload::{FORMS, Figures, Form};
use super::{CLIENTS, CONNECTIONS, Ours, Round, WHENS};
use crate::figures::{duration, grouped, ranged, ratio, times};
use crate::options::Options;
use crate::report::{print_head, print_value};
use crate::statistics::Spread;
use crate::table;
use crate::targets::{self, Target};

/// The target compared with the form that most programs would use.
const TIMES_POSTGRES: Target =
    Target::higher("activate / PostgreSQL's SELECT FOR UPDATE", 4.0, 10.0, times);
/// The number of settings per line.
const SETTINGS_A_LINE: usize = 4;

/// Prints the results of all rounds.
pub fn print(options: &Options, rounds: &[Round]) {
    let Some(first) = rounds.first() else { return };
    print_head(options);
    print_value("rounds", &rounds.len().to_string());
    print_micros("fdatasync p50", rounds, |round| round.fdatasync.p50_micros);
    print_micros("fdatasync p99", rounds, |round| round.fdatasync.p99_micros);
    print_value(
        "PostgreSQL",
        &format!("{}, over a unix socket, pgbench -M prepared", first.version),
    );
    print_settings(
        "defaults",
        &[&DURABLE[..], &[("wal_sync_method", &first.sync_method)]].concat(),
    );
    print_settings("in its favour", &FAVOURS);
    println!();
    table::print(&theirs(rounds), 0);
    println!();
    table::print(&ours(rounds), 0);
    println!();
    table::print(&bests(rounds), 0);
    println!();
    let [usual, _] = &FORMS;
    targets::print(&[(TIMES_POSTGRES, times_theirs(rounds, usual))]);
}

fn print_micros(name: &str, rounds: &[Round], figure: fn(&Round) -> f64) {
    if let Some(spread) = Spread::of(rounds.iter().map(figure)) {
        print_value(name, &ranged(spread, duration));
    }
}

fn print_settings(name: &str, settings: &[(&str, &str)]) {
    for (position, line) in settings.chunks(SETTINGS_A_LINE).enumerate() {
        let line: Vec<_> = line.iter().map(|(name, value)| format!("{name}={value}")).collect();
        print_value(if position == 0 { name } else { "" }, &line.join(" "));
    }
}

/// One line for each number of clients, with the rate and the mean time of both forms.
fn theirs(rounds: &[Round]) -> Vec<[String; 5]> {
    let [usual, short] = FORMS.each_ref().map(|form| form.name);
    let head = ["PostgreSQL, clients", usual, "mean", short, "mean"].map(String::from);
    let line = |clients: usize| {
        let [usual, short] = FORMS.each_ref().map(|form| {
            let cell = |figure: fn(&Figures) -> f64, show: fn(f64) -> String| {
                shown(their_spread(rounds, form, clients, figure), show)
            };
            [cell(|figures| figures.rate, grouped), cell(|figures| figures.mean_micros, duration)]
        });
        let ([usual_rate, usual_mean], [short_rate, short_mean]) = (usual, short);
        [clients.to_string(), usual_rate, usual_mean, short_rate, short_mean]
    };
    [head].into_iter().chain(CLIENTS.map(line)).collect()
}

/// One line for each number of connections, before and after.
fn ours(rounds: &[Round]) -> Vec<[String; 6]> {
    let head = ["ours, connections", "healthz", "activate", "p50", "p99", "of healthz"];
    let mut lines = vec![head.map(String::from)];
    for when in WHENS {
        for connections in CONNECTIONS {
            let cell = |figure: fn(&Ours) -> f64, show: fn(f64) -> String| {
                let steps = our_steps(rounds, when).filter(|ours| ours.connections == connections);
                shown(Spread::of(steps.map(figure)), show)
            };
            lines.push([
                format!("{connections} {when}"),
                cell(|ours| ours.healthz.rate, grouped),
                cell(|ours| ours.activate.rate, grouped),
                cell(|ours| ours.activate.p50_micros, duration),
                cell(|ours| ours.activate.p99_micros, duration),
                cell(|ours| ours.activate.rate / ours.healthz.rate, ratio),
            ]);
        }
    }
    lines
}

/// The best rates of our server and of each form, and their ratio.
fn bests(rounds: &[Round]) -> Vec<[String; 4]> {
    let head = ["best", "per second", "at", "ours / theirs"].map(String::from);
    let mut lines = vec![head, best_line("ours", "connections", best(our_spreads(rounds)), None)];
    for form in &FORMS {
        let name = format!("PostgreSQL, {}", form.name);
        let best = best(their_spreads(rounds, form));
        lines.push(best_line(&name, "clients", best, times_theirs(rounds, form)));
    }
    lines
}

fn best_line(
    name: &str,
    unit: &str,
    best: Option<(usize, Spread)>,
    times_theirs: Option<Spread>,
) -> [String; 4] {
    let at = best.map_or_else(String::new, |(count, _)| format!("{count} {unit}"));
    let rate = shown(best.map(|(_, rate)| rate), grouped);
    [name.to_owned(), rate, at, shown(times_theirs, times)]
}

/// Our best rate divided by their best rate. Each round gives two values, with our server before and after, so
/// that the range shows changes in the machine's speed. Their best is of eight steps, and ours is of two.
fn times_theirs(rounds: &[Round], form: &Form) -> Option<Spread> {
    Spread::of(rounds.iter().flat_map(|round| {
        let round = slice::from_ref(round);
        let theirs = best(their_spreads(round, form)).map(|(_, rate)| rate.median);
        WHENS.into_iter().filter_map(move |when| {
            let rates = our_steps(round, when).map(|ours| ours.activate.rate);
            Some(rates.max_by(f64::total_cmp)? / theirs?)
        })
    }))
}

fn our_steps<'a>(rounds: &'a [Round], when: &'static str) -> impl Iterator<Item = &'a Ours> {
    rounds.iter().flat_map(|round| &round.ours).filter(move |ours| ours.when == when)
}

/// The rates at each number of connections, before and after together.
fn our_spreads(rounds: &[Round]) -> impl Iterator<Item = (usize, Spread)> {
    CONNECTIONS.into_iter().filter_map(|connections| {
        let steps = rounds.iter().flat_map(|round| &round.ours);
        let steps = steps.filter(|ours| ours.connections == connections);
        Some((connections, Spread::of(steps.map(|ours| ours.activate.rate))?))
    })
}

/// The rates at each number of clients.
fn their_spreads(rounds: &[Round], form: &Form) -> impl Iterator<Item = (usize, Spread)> {
    CLIENTS.into_iter().filter_map(|clients| {
        Some((clients, their_spread(rounds, form, clients, |figures| figures.rate)?))
    })
}

fn their_spread(
    rounds: &[Round],
    form: &Form,
    clients: usize,
    figure: fn(&Figures) -> f64,
) -> Option<Spread> {
    let steps = rounds.iter().flat_map(|round| &round.theirs);
    let steps = steps.filter(|step| step.form.name == form.name && step.clients == clients);
    Spread::of(steps.map(|step| figure(&step.figures)))
}

/// The spread with the highest median.
fn best(spreads: impl Iterator<Item = (usize, Spread)>) -> Option<(usize, Spread)> {
    spreads.max_by(|(_, left), (_, right)| left.median.total_cmp(&right.median))
}

fn shown(spread: Option<Spread>, show: fn(f64) -> String) -> String {
    spread.map_or_else(String::new, |spread| ranged(spread, show))
}
