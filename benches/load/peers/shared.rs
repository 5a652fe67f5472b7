//! Compares one and two of our servers on a PostgreSQL database with pgbench on the same one. This shows how much
//! of the database's speed remains with HTTP, JSON, tokens, limits and the audit log.
//!
//! pgbench is measured before and after, to show changes in the machine's speed.

use std::time::Duration;

use super::fleet::Fleet;
use super::postgres::{Cluster, Programs, Site};
use super::workload::{self, FORMS};
use super::{CLIENTS, agents};
use crate::closed_loop;
use crate::failure::Result;
use crate::figures::{duration, grouped, ranged, ratio};
use crate::options::Options;
use crate::report::{print_head, print_value};
use crate::requests::Caller;
use crate::scenario;
use crate::server::Server;
use crate::statistics::{Spread, Summary};
use crate::steps::{self, Machine, Registration};
use crate::table;

/// The numbers of connections to each server, each with the number of codes to activate over all.
const CONNECTIONS: [(usize, usize); 2] = [(64, 40_000), (256, 60_000)];
/// The numbers of our servers on the database.
const SERVERS: [usize; 2] = [1, 2];

/// The number of servers that check in, with the check-ins of each and the number of connections.
const AGENTS: usize = 100_000;
const CHECK_IN_TURNS: usize = 10;
const CHECK_IN_CONNECTIONS: usize = 64;
/// The engines whose check-ins are compared.
const ENGINES: [&str; 2] = ["embedded", "PostgreSQL"];

struct Ours {
    servers: usize,
    /// What a round trip to the database takes longer.
    delay: Duration,
    connections: usize,
    activate: Summary,
}

struct Round {
    version: String,
    /// The best rates of pgbench before and after.
    theirs: [f64; 2],
    ours: Vec<Ours>,
    /// The check-ins with each of [`ENGINES`].
    check_ins: [Summary; 2],
}

/// Measures and prints.
pub async fn run(options: &Options) -> Result<()> {
    let programs = Programs::of(options)?;
    if options.large {
        return agents::run(options, &programs).await;
    }
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        eprintln!("round {number} of {}", options.rounds);
        rounds.push(measure_round(options, &programs).await?);
    }
    print(options, &rounds);
    Ok(())
}

async fn measure_round(options: &Options, programs: &Programs) -> Result<Round> {
    let site = Site::set_up(programs, crate::workspace(options)?).await?;
    let cluster = Cluster::start(site, &[]).await?;
    let seconds = if options.quick { 1 } else { 4 };
    workload::prepare(&cluster, seconds).await?;
    let before = measure_theirs(&cluster, seconds).await?;
    let mut ours = Vec::new();
    for servers in SERVERS {
        ours.extend(measure_ours(options, &cluster, servers, Duration::ZERO).await?);
        if !options.delay.is_zero() {
            ours.extend(measure_ours(options, &cluster, servers, options.delay).await?);
        }
    }
    let after = measure_theirs(&cluster, seconds).await?;
    let check_ins = measure_check_ins(options, &cluster).await?;
    let version = cluster.sql("SHOW server_version").await?;
    Ok(Round { version, theirs: [before, after], ours, check_ins })
}

/// The best rate of pgbench with the change as one conditional statement.
async fn measure_theirs(cluster: &Cluster, seconds: u32) -> Result<f64> {
    let [_, form] = &FORMS;
    let mut best = 0.0f64;
    for clients in CLIENTS.into_iter().filter(|clients| *clients >= 16) {
        let figures = workload::measure(cluster, form, clients, seconds).await?;
        eprintln!("  {clients:>3} clients      pgbench           {:>9.0}/s", figures.rate);
        best = best.max(figures.rate);
    }
    Ok(best)
}

async fn measure_ours(
    options: &Options,
    cluster: &Cluster,
    count: usize,
    delay: Duration,
) -> Result<Vec<Ours>> {
    let name = format!("iptunnel_{count}_{}", delay.as_millis());
    let options = Options { delay, ..options.clone() };
    let fleet = Fleet::start(&options, cluster, &name, count, &[]).await?;
    let outcome = activate_all(&fleet, &options).await;
    fleet.finish(outcome).await
}

async fn activate_all(fleet: &Fleet, options: &Options) -> Result<Vec<Ours>> {
    let servers = fleet.servers.len();
    let mut machines = Machine::all();
    let mut ours = Vec::new();
    let wanted = |each: &(usize, usize)| options.connections.is_none_or(|only| only == each.0);
    for (connections, codes) in CONNECTIONS.into_iter().filter(wanted) {
        let codes = if options.quick { codes / 10 } else { codes };
        let mut callers = fleet.callers(connections * servers).await?;
        let machines = machines.by_ref().take(codes).collect();
        let prechecked = scenario::prechecked(&mut callers, machines).await?;
        let (_, activate) = closed_loop::run(steps::ACTIVATE, &mut callers, prechecked).await?;
        eprintln!(
            "  {connections:>3} connections  activate, {servers} servers, {} ms {:>9.0}/s",
            options.delay.as_millis(),
            activate.rate
        );
        ours.push(Ours { servers, delay: options.delay, connections, activate });
    }
    Ok(ours)
}

/// Measures check-ins through one server on the embedded engine, and through one on the database.
async fn measure_check_ins(options: &Options, cluster: &Cluster) -> Result<[Summary; 2]> {
    let workspace = crate::workspace(options)?;
    let settings = scenario::settings(&options.settings);
    let server = Server::start(&options.server, &workspace, &settings).await?;
    let outcome = async {
        let callers = scenario::open_callers(server.public, CHECK_IN_CONNECTIONS).await?;
        check_in(callers, workspace.master_token()?, options.quick).await
    };
    let outcome = outcome.await;
    let embedded = server.finish(outcome).await?;
    let undelayed = Options { delay: Duration::ZERO, ..options.clone() };
    let fleet = Fleet::start(&undelayed, cluster, "check_ins", 1, &[]).await?;
    let outcome = async {
        let callers = fleet.callers(CHECK_IN_CONNECTIONS).await?;
        check_in(callers, fleet.workspace.master_token()?, options.quick).await
    };
    let outcome = outcome.await;
    let shared = fleet.finish(outcome).await?;
    for (engine, summary) in ENGINES.iter().zip([&embedded, &shared]) {
        eprintln!(
            "  {CHECK_IN_CONNECTIONS:>3} connections  check-in, {engine} {:>9.0}/s",
            summary.rate
        );
    }
    Ok([embedded, shared])
}

async fn check_in(mut callers: Vec<Caller>, token: String, quick: bool) -> Result<Summary> {
    let agents = if quick { AGENTS / 10 } else { AGENTS };
    let registrations = Registration::all(&token, agents);
    let (paths, _) = closed_loop::run(steps::REGISTER, &mut callers, registrations).await?;
    // The step is long enough that check-ins are also written during it.
    let paths = (0..CHECK_IN_TURNS).flat_map(|_| paths.iter().cloned()).collect();
    let (_, summary) = closed_loop::run(steps::CHECK_IN, &mut callers, paths).await?;
    Ok(summary)
}

fn print(options: &Options, rounds: &[Round]) {
    let Some(first) = rounds.first() else { return };
    print_head(options);
    print_value("rounds", &rounds.len().to_string());
    print_value("PostgreSQL", &format!("{}, over a unix socket", first.version));
    for (name, place) in [("pgbench before", 0), ("pgbench after", 1)] {
        let rates = rounds.iter().filter_map(|round| round.theirs.get(place).copied());
        if let Some(spread) = Spread::of(rates) {
            print_value(name, &format!("{} a second at its best", ranged(spread, grouped)));
        }
    }
    println!();
    let mut lines = vec![
        [
            "servers",
            "delay",
            "connections each",
            "activate",
            "p50",
            "p99",
            "of pgbench",
            "of undelayed",
        ]
        .map(String::from),
    ];
    for (place, Ours { servers, delay, connections, .. }) in first.ours.iter().enumerate() {
        let figure = |of: &dyn Fn(&Round, &Ours) -> f64, show: fn(f64) -> String| {
            let values = rounds.iter().filter_map(|round| Some(of(round, round.ours.get(place)?)));
            Spread::of(values).map_or_else(String::new, |spread| ranged(spread, show))
        };
        let undelayed = |round: &Round, ours: &Ours| {
            let like = |other: &&Ours| {
                other.delay.is_zero()
                    && (other.servers, other.connections) == (ours.servers, ours.connections)
            };
            round.ours.iter().find(like).map_or(f64::NAN, |other| other.activate.rate)
        };
        let pgbench = |round: &Round| round.theirs.iter().sum::<f64>() / 2.0;
        lines.push([
            servers.to_string(),
            format!("{} ms", delay.as_millis()),
            connections.to_string(),
            figure(&|_, ours| ours.activate.rate, grouped),
            figure(&|_, ours| ours.activate.p50_micros, duration),
            figure(&|_, ours| ours.activate.p99_micros, duration),
            figure(&|round, ours| ours.activate.rate / pgbench(round), ratio),
            figure(&|round, ours| ours.activate.rate / undelayed(round, ours), ratio),
        ]);
    }
    table::print(&lines, 3);
    println!();
    for (place, engine) in ENGINES.into_iter().enumerate() {
        let rates = rounds.iter().filter_map(|round| Some(round.check_ins.get(place)?.rate));
        if let Some(spread) = Spread::of(rates) {
            let name = format!("check-in, {engine}");
            println!("{name:<22} {} a second", ranged(spread, grouped));
        }
    }
    let of_embedded = rounds
        .iter()
        .map(|Round { check_ins: [embedded, shared], .. }| shared.rate / embedded.rate);
    if let Some(spread) = Spread::of(of_embedded) {
        println!("{:<22} {}", "of embedded", ranged(spread, ratio));
    }
}
