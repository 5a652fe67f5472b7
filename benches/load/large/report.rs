//! Prints the results and the targets.

use super::Findings;
use super::listing::{Activates, Pair};
use super::servers::Registered;
use super::stage::Stage;
use crate::figures::{duration, grouped, megabytes, ranged, times};
use crate::options::Options;
use crate::report::{print_head, print_value};
use crate::statistics::Spread;
use crate::table;
use crate::targets::{self, Target};

/// The memory with a million servers that have all checked in.
const SERVERS_RSS: Target = Target::lower("RSS with the servers", 300.0, 150.0, megabytes);
const CLEAN_START: Target = Target::lower("start after SIGTERM", 1.5e6, 0.5e6, duration);
const KILLED_START: Target = Target::lower("start after SIGKILL", 2.0e6, 0.7e6, duration);
/// The median memory after a start and look-ups in the largest store, minus that in a store without past
/// activations. In both stores, reading the servers at the start fills the store's cache. With fewer servers, the
/// look-ups of past activations would fill it.
const PAST_RSS: Target = Target::lower("RSS added by past activations", 100.0, 10.0, megabytes);
const LISTING_RSS: Target = Target::lower("RSS added by a listing", 50.0, 10.0, megabytes);
const LISTING_SLOWDOWN: Target = Target::lower("p99 of activate during a listing", 3.0, 1.5, times);

/// Prints everything.
pub fn print(options: &Options, findings: &Findings) {
    print_head(options);
    print_servers(&findings.registered);
    println!();
    print_stages(&findings.stages);
    println!();
    print_pairs(&findings.pairs);
    println!();
    targets::print(&targets_of(findings));
}

fn print_servers(registered: &Registered) {
    let (idle, checked_in) = (registered.idle, registered.checked_in);
    print_value("servers", &grouped(registered.count as f64));
    print_value("registered", &format!("{} a second", grouped(registered.register.rate)));
    print_value("checked in", &format!("{} a second", grouped(registered.check_in.rate)));
    print_value("idle RSS", &megabytes(idle.resident_mb));
    print_value("RSS with them", &megabytes(checked_in.resident_mb));
    print_value("peak RSS", &megabytes(checked_in.peak_mb));
}

fn print_stages(stages: &[Stage]) {
    let head =
        ["past activations", "SIGTERM, start", "SIGKILL, start", "RSS", "after look-ups", "store"];
    let lines = stages.iter().map(|stage| {
        [
            grouped(stage.past as f64),
            ranged(stage.clean_start_micros, duration),
            ranged(stage.killed_start_micros, duration),
            ranged(stage.started_mb, megabytes),
            ranged(stage.looked_up_mb, megabytes),
            megabytes(stage.store_mb),
        ]
    });
    let lines = [head.map(String::from)].into_iter().chain(lines);
    table::print(&lines.collect::<Vec<_>>(), 0);
}

fn print_pairs(pairs: &[Pair]) {
    let head =
        ["activates", "per second", "p50", "p99", "RSS grown by", "listings read", "of", "in"];
    let lines = pairs.iter().flat_map(|pair| {
        let listings = f64::from(pair.read.listings);
        let read = [
            grouped(listings),
            megabytes(pair.read.bytes as f64 / 1e6 / listings),
            duration(pair.read.elapsed.as_secs_f64() * 1e6 / listings),
        ];
        [
            line_of("alone", &pair.alone, Default::default()),
            line_of("during a listing", &pair.with_listing, read),
        ]
    });
    let lines = [head.map(String::from)].into_iter().chain(lines);
    table::print(&lines.collect::<Vec<_>>(), 0);
}

fn line_of(name: &str, activates: &Activates, read: [String; 3]) -> [String; 8] {
    let [listings, size, time] = read;
    [
        name.to_owned(),
        grouped(activates.summary.rate),
        duration(activates.summary.p50_micros),
        duration(activates.summary.p99_micros),
        megabytes(activates.grown_mb),
        listings,
        size,
        time,
    ]
}

/// Starts are judged with as many past activations as servers.
fn targets_of(findings: &Findings) -> Vec<(Target, Option<Spread>)> {
    let Findings { registered, stages, pairs } = findings;
    let (none, some, most) = (stages.first(), stages.get(1), stages.last());
    let added =
        none.zip(most).map(|(none, most)| most.looked_up_mb.median - none.looked_up_mb.median);
    vec![
        (SERVERS_RSS, Spread::of([registered.checked_in.resident_mb])),
        (CLEAN_START, some.map(|stage| stage.clean_start_micros)),
        (KILLED_START, some.map(|stage| stage.killed_start_micros)),
        (PAST_RSS, Spread::of(added)),
        (LISTING_RSS, Spread::of(pairs.iter().map(Pair::added_mb))),
        (LISTING_SLOWDOWN, Spread::of(pairs.iter().map(Pair::slowdown))),
    ]
}
