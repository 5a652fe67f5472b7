//! Measures the real server under load: its requests per second, their latencies, and their rate compared with
//! a bare actix-web server (which answers as `healthz` does, over as many connections in the same run). Absolute figures depend on the
//! machine. Compare the ratios.
//!
//! The load generator shares the processors with the server, so it is cheap: one thread, one buffer per
//! connection, one write per request, no HTTP library.
//!
//! - `options` reads the command line
//! - `server` starts the program in its own folder, watches its memory and stops it
//! - `client` is the HTTP/1.1 client, `requests` the bytes that it sends
//! - `closed_loop` sends the requests of one step over all connections and measures their times
//! - `bare` is a bare actix-web server, with which all steps are compared
//! - `scenario` defines the normal run, and `steps` its single requests
//! - `large` measures the cost of a million servers and ten million past activations
//! - `limits_memory` measures the memory that millions of callers cost the rate limiter
//! - `look_ups` measures look-ups of what only the store has, and starts beside it
//! - `memory` measures the memory that a wave of installs leaves behind
//! - `peers` compares with PostgreSQL, which makes the same durable change on the same disk
//! - `versus` compares two programs, for example before and after a change
//! - `backups` compares activates during a backup with those while none is made
//! - `check` compares a round with the ratios in `benches/expected.toml`
//! - `console` measures the console's pages beside activates
//! - `report` prints the normal run, and `targets` the targets and results of every measurement
//! - `disk` measures the disk; `statistics`, `figures` and `table` prepare the output
//! - `interrupt` stops the server when Ctrl-C ends the run

mod backups;
mod bare;
mod check;
mod client;
mod closed_loop;
mod console;
mod disk;
mod failure;
mod figures;
mod interrupt;
mod large;
mod limits_memory;
mod look_ups;
mod memory;
mod options;
mod peers;
mod report;
mod requests;
mod scenario;
mod server;
mod statistics;
mod steps;
mod table;
mod targets;
mod versus;

use std::path::Path;
use std::process::ExitCode;

use bare::Bare;
use failure::{Context, Result};
use options::{Options, Request};
use scenario::Round;
use server::{Server, Workspace};

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(bare::ARGUMENT) {
        return bare::run();
    }
    let outcome = match options::parse(std::env::args().skip(1)) {
        Ok(Request::Run(options)) => measure(&options),
        Ok(Request::Explain) => {
            println!("{}", options::USAGE);
            Ok(())
        }
        Err(failure) => Err(failure),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("load: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the chosen measurement on one thread until it is done or a signal interrupts it. In both cases, the
/// server and its folder are removed, because the future that ends here owns them.
fn measure(options: &Options) -> Result<()> {
    let interrupted = interrupt::watch()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the load generator's runtime")?;
    runtime.block_on(async {
        tokio::select! {
            outcome = run(options) => outcome,
            failure = interrupted.failure() => Err(failure),
        }
    })
}

async fn run(options: &Options) -> Result<()> {
    if let (true, Some(other)) = (options.postgres, &options.against) {
        return versus::run_on_postgres(options, other).await;
    }
    if options.postgres {
        return peers::shared::run(options).await;
    }
    if options.check {
        return check::run(options).await;
    }
    if options.large {
        return measure_large(options).await;
    }
    if options.limits_memory {
        return measure_limits_memory(options).await;
    }
    if options.memory {
        return measure_memory(options).await;
    }
    if options.look_ups {
        return look_ups::run(options, &workspace(options)?).await;
    }
    if options.peers {
        return peers::run(options).await;
    }
    if options.console {
        return console::run(options).await;
    }
    if options.during_backup {
        return versus::run_during_backup(options).await;
    }
    if let Some(other) = &options.against {
        return versus::run(options, other).await;
    }
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        eprintln!("round {number} of {}", options.rounds);
        rounds.push(measure_round(options).await?);
    }
    report::print(options, &rounds);
    Ok(())
}

/// Measures one round on a new server, so that no round starts with the data of an earlier one.
async fn measure_round(options: &Options) -> Result<Round> {
    let workspace = workspace(options)?;
    let settings = scenario::settings(&options.settings);
    let server = Server::start(&options.server, &workspace, &settings).await?;
    let outcome = async {
        let bare = Bare::start(&server).await?;
        scenario::run(&server, &bare, &workspace, options.quick).await
    };
    let outcome = outcome.await;
    server.finish(outcome).await
}

async fn measure_large(options: &Options) -> Result<()> {
    let findings = large::run(options, &workspace(options)?).await?;
    large::print(options, &findings);
    Ok(())
}

async fn measure_memory(options: &Options) -> Result<()> {
    let workspace = workspace(options)?;
    let settings = scenario::settings(&options.settings);
    let server = Server::start(&options.server, &workspace, &settings).await?;
    let outcome = memory::run(options, &server, options.count.unwrap_or(memory::INSTALLS)).await;
    server.finish(outcome).await
}

async fn measure_limits_memory(options: &Options) -> Result<()> {
    let workspace = workspace(options)?;
    let settings = limits_memory::settings(&options.settings);
    let server = Server::start(&options.server, &workspace, &settings).await?;
    let outcome =
        limits_memory::run(&server, options.count.unwrap_or(limits_memory::CALLERS)).await;
    server.finish(outcome).await
}

fn workspace(options: &Options) -> Result<Workspace> {
    Workspace::create(options.directory.as_deref().unwrap_or(default_directory()))
}

/// Cargo's folder for the temporary files of a target. It is on the disk of the build. `/tmp` is often in
/// memory, where a sync costs nothing.
fn default_directory() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}
