//! Compares our server with PostgreSQL on the same disk. pgbench makes the change of an activation in PostgreSQL
//! without HTTP, and our server handles whole requests. Our server is measured before and after PostgreSQL, to
//! show changes in the machine's speed.
//!
//! - `postgres` sets up, starts, uses, stops and deletes a PostgreSQL server
//! - `workload` is the change in SQL, and its measurement
//! - `report` prints the comparison
//! - `shared` measures our servers on such a database, and `agents` a million servers that check in with them;
//!   `fleet` starts our servers, and `delay` stands for a network before the database

mod agents;
mod delay;
pub mod fleet;
pub mod postgres;
mod report;
pub mod shared;
mod workload;

use std::time::Duration;

use crate::closed_loop;
use crate::disk;
use crate::failure::Result;
use crate::options::Options;
use crate::scenario::{self, HEALTHZ_PATH, HEALTHZ_STEP};
use crate::server::Server;
use crate::statistics::Summary;
use crate::steps::{self, Machine};
use postgres::{Cluster, Programs, Site};
use workload::{FORMS, Form};

/// The numbers of connections to our server. The better one counts.
const CONNECTIONS: [usize; 2] = [64, 256];
/// The number of codes for each of them. Activating them takes some seconds, like a step of PostgreSQL.
const CODES: usize = 200_000;
/// The numbers of PostgreSQL's clients. Its best rate lies within this range.
const CLIENTS: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// Our server is measured before and after PostgreSQL, and never while PostgreSQL runs.
const WHENS: [&str; 2] = ["before", "after"];

/// The results of one round.
struct Round {
    /// PostgreSQL's version.
    version: String,
    /// PostgreSQL's method of waiting for the disk.
    sync_method: String,
    /// The times of `fdatasync` in its folder.
    fdatasync: Summary,
    /// Our server before and after, at each of [`CONNECTIONS`].
    ours: Vec<Ours>,
    /// PostgreSQL, each form at each of [`CLIENTS`].
    theirs: Vec<Theirs>,
}

/// Our server over a number of connections.
struct Ours {
    when: &'static str,
    connections: usize,
    healthz: Summary,
    activate: Summary,
}

/// PostgreSQL with a number of clients.
struct Theirs {
    form: &'static Form,
    clients: usize,
    figures: workload::Figures,
}

/// Measures and prints the comparison.
pub async fn run(options: &Options) -> Result<()> {
    let programs = Programs::of(options)?;
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        eprintln!("round {number} of {}", options.rounds);
        rounds.push(measure_round(options, &programs).await?);
    }
    report::print(options, &rounds);
    Ok(())
}

/// Measures one at a time, so that each server shares the machine only with its clients.
async fn measure_round(options: &Options, programs: &Programs) -> Result<Round> {
    let [before, after] = WHENS;
    let workspace = crate::workspace(options)?;
    let fdatasync = Summary::of_sequence(disk::measure(workspace.path())?);
    // The cluster is set up first, so that a failure shows before minutes are spent.
    let site = Site::set_up(programs, workspace).await?;
    let mut ours = measure_ours(options, before).await?;
    let cluster = Cluster::start(site, &[]).await?;
    let theirs = measure_theirs(&cluster, options.quick).await?;
    let version = cluster.sql("SHOW server_version").await?;
    let sync_method = cluster.sql("SHOW wal_sync_method").await?;
    drop(cluster);
    ours.extend(measure_ours(options, after).await?);
    Ok(Round { version, sync_method, fdatasync, ours, theirs })
}

async fn measure_theirs(cluster: &Cluster, quick: bool) -> Result<Vec<Theirs>> {
    let seconds = if quick { 1 } else { 4 };
    workload::prepare(cluster, seconds).await?;
    let mut theirs = Vec::new();
    for form in &FORMS {
        for clients in CLIENTS {
            let figures = workload::measure(cluster, form, clients, seconds).await?;
            eprintln!("  {clients:>3} clients      {:<17} {:>9.0}/s", form.name, figures.rate);
            theirs.push(Theirs { form, clients, figures });
        }
    }
    Ok(theirs)
}

async fn measure_ours(options: &Options, when: &'static str) -> Result<Vec<Ours>> {
    let workspace = crate::workspace(options)?;
    let settings = scenario::settings(&options.settings);
    let server = Server::start(&options.server, &workspace, &settings).await?;
    let outcome = activate_all(&server, when, options.quick).await;
    server.finish(outcome).await
}

async fn activate_all(server: &Server, when: &'static str, quick: bool) -> Result<Vec<Ours>> {
    let (codes, healthz_for) = if quick { (CODES / 10, 1) } else { (CODES, 2) };
    let healthz_for = Duration::from_secs(healthz_for);
    let mut machines = Machine::all();
    let mut ours = Vec::new();
    for connections in CONNECTIONS {
        let mut callers = scenario::open_callers(server.public, connections).await?;
        let machines = machines.by_ref().take(codes).collect();
        let prechecked = scenario::prechecked(&mut callers, machines).await?;
        let healthz =
            closed_loop::run_for(HEALTHZ_STEP, HEALTHZ_PATH, &mut callers, healthz_for).await?;
        let (_, activate) = closed_loop::run(steps::ACTIVATE, &mut callers, prechecked).await?;
        eprintln!("  {connections:>3} connections  activate          {:>9.0}/s", activate.rate);
        ours.push(Ours { when, connections, healthz, activate });
    }
    Ok(ours)
}
