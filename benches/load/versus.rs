//! Compares two programs in turns in one run. The machine's speed changes by the minute, so separate runs do not
//! show whether a change made activate faster. Each pair of turns takes a second or two and gives one ratio. The
//! report has the median and the range of many pairs.

use std::path::Path;

use crate::closed_loop;
use crate::failure::Result;
use crate::figures::{duration, grouped, ranged, ratio};
use crate::options::Options;
use crate::peers::fleet::{self, Fleet};
use crate::peers::postgres::{Cluster, Programs, Site};
use crate::report::{print_head, print_value};
use crate::requests::Caller;
use crate::scenario;
use crate::server::Server;
use crate::statistics::Spread;
use crate::steps::{self, Machine};
use crate::table;

/// The numbers of connections, each with the codes to activate in one turn. A turn takes some tenths of a second.
const TURNS: [(usize, usize); 3] = [(1, 1_500), (64, 8_000), (256, 10_000)];
/// The number of pairs of turns.
const PAIRS: u32 = 12;
/// The number of pairs with `--quick`.
const QUICK_PAIRS: u32 = 3;

/// The figures of one turn.
#[derive(Clone, Copy)]
struct Turn {
    rate: f64,
    p50_micros: f64,
    p99_micros: f64,
    processor_micros: f64,
}

/// A compared figure: its name, how to read it from a turn, and how to show it.
type Figure = (&'static str, fn(&Turn) -> f64, fn(f64) -> String);

const FIGURES: [Figure; 4] = [
    ("per second", |turn| turn.rate, grouped),
    ("p50", |turn| turn.p50_micros, duration),
    ("p99", |turn| turn.p99_micros, duration),
    ("server's time", |turn| turn.processor_micros, duration),
];

/// Compares the measured program with `other` on one PostgreSQL, each on its own database.
pub async fn run_on_postgres(options: &Options, other: &Path) -> Result<()> {
    let site = Site::set_up(&Programs::of(options)?, crate::workspace(options)?).await?;
    let cluster = Cluster::start(site, &[]).await?;
    let of_other = Options { server: other.to_owned(), ..options.clone() };
    let this = Fleet::start(options, &cluster, "this", 1, &[]).await?;
    let that = Fleet::start(&of_other, &cluster, "that", 1, &[]).await?;
    let outcome = match (this.servers.as_slice(), that.servers.as_slice()) {
        ([this], [that]) => compare(this, that, options).await,
        _ => Ok(Vec::new()),
    };
    let (stopped, outcome) = (that.finish(Ok(())).await, this.finish(outcome).await);
    stopped?;
    print(options, other, &outcome?);
    Ok(())
}

/// Compares the measured program with `other` on the embedded engine.
pub async fn run(options: &Options, other: &Path) -> Result<()> {
    let (ours, theirs) = (crate::workspace(options)?, crate::workspace(options)?);
    let settings = scenario::settings(&options.settings);
    let this = Server::start(&options.server, &ours, &settings).await?;
    let that = Server::start(other, &theirs, &settings).await?;
    let outcome = compare(&this, &that, options).await;
    let (stopped, outcome) = (that.finish(Ok(())).await, this.finish(outcome).await);
    stopped?;
    print(options, other, &outcome?);
    Ok(())
}

fn print(options: &Options, other: &Path, lines: &[[String; 5]]) {
    print_head(options);
    print_value("against", &other.display().to_string());
    println!();
    table::print(lines, 1);
}

/// One of the two servers, with connections to it.
struct Side<'a> {
    server: &'a Server,
    callers: Vec<Caller>,
}

impl<'a> Side<'a> {
    async fn open(server: &'a Server, connections: usize) -> Result<Self> {
        let callers = scenario::open_callers(server.public, connections).await?;
        Ok(Self { server, callers })
    }

    async fn turn(&mut self, machines: Vec<Machine>) -> Result<Turn> {
        let prechecked = scenario::prechecked(&mut self.callers, machines).await?;
        let before = self.server.processor_time()?;
        let (_, summary) = closed_loop::run(steps::ACTIVATE, &mut self.callers, prechecked).await?;
        let used = self.server.processor_time()?.saturating_sub(before);
        Ok(Turn {
            rate: summary.rate,
            p50_micros: summary.p50_micros,
            p99_micros: summary.p99_micros,
            processor_micros: used.as_secs_f64() * 1e6 / summary.count as f64,
        })
    }
}

async fn compare(this: &Server, that: &Server, options: &Options) -> Result<Vec<[String; 5]>> {
    let mut machines = Machine::all();
    let mut lines =
        vec![["connections", "activate", "this", "that", "this / that"].map(String::from)];
    let wanted = |turn: &(usize, usize)| options.connections.is_none_or(|only| only == turn.0);
    for (connections, codes) in TURNS.into_iter().filter(wanted) {
        let mut this = Side::open(this, connections).await?;
        let mut that = Side::open(that, connections).await?;
        if options.postgres {
            // Each caller has its own counter, as installers do. They would wait for each other on one row.
            fleet::give_addresses(&mut this.callers);
            fleet::give_addresses(&mut that.callers);
        }
        let mut pairs = Vec::new();
        for number in 0..if options.quick { QUICK_PAIRS } else { PAIRS } {
            let mut some = || machines.by_ref().take(codes).collect();
            // The first program changes from pair to pair.
            if number % 2 == 0 {
                let first = this.turn(some()).await?;
                pairs.push((first, that.turn(some()).await?));
            } else {
                let first = that.turn(some()).await?;
                pairs.push((this.turn(some()).await?, first));
            }
        }
        eprintln!("  {connections:>3} connections  {} pairs", pairs.len());
        lines.extend(FIGURES.map(|figure| line(connections, figure, &pairs)));
    }
    Ok(lines)
}

fn line(connections: usize, (name, of, show): Figure, pairs: &[(Turn, Turn)]) -> [String; 5] {
    let spread = |values: &mut dyn Iterator<Item = f64>, show: fn(f64) -> String| {
        Spread::of(values).map_or_else(String::new, |spread| ranged(spread, show))
    };
    [
        connections.to_string(),
        name.to_owned(),
        spread(&mut pairs.iter().map(|(this, _)| of(this)), show),
        spread(&mut pairs.iter().map(|(_, that)| of(that)), show),
        spread(&mut pairs.iter().map(|(this, that)| of(this) / of(that)), ratio),
    ]
}
