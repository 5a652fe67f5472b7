//! Load on the real server: how many requests a second it answers, how long they take, and what part of the
//! cheapest possible answer (`healthz`, same connections, same run) each of them reaches. Absolute figures
//! belong to the machine they were taken on; the ratios are what may be compared.
//!
//! The generator shares the processors with the server, so all of it is built to cost little: one thread, one
//! buffer a connection, one write a request, no HTTP library.
//!
//! - `options` reads the command line
//! - `server` starts the program on a folder of its own, watches its memory and stops it
//! - `client` is the HTTP/1.1 client, `requests` the bytes that it sends
//! - `closed_loop` drives a number of connections through one step and takes the times
//! - `scenario` is what is measured, in which order; `steps` the single requests of which it is made
//! - `large` is another measurement: what a million servers and ten million past activations cost
//! - `limits_memory` is yet another: what millions of callers cost the rate limiter in memory
//! - `peers` compares with PostgreSQL, which makes the same durable change on the same disk
//! - `versus` compares two programs, such as one before a change and one after
//! - `report` says what the normal run found out, `targets` what each measurement is to reach and reached
//! - `disk`, `statistics`, `figures` and `table` are what their names say; `interrupt` keeps Ctrl-C from leaving a
//!   server behind

mod client;
mod closed_loop;
mod disk;
mod failure;
mod figures;
mod interrupt;
mod large;
mod limits_memory;
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

use failure::{Context, Result};
use options::{Options, Request};
use scenario::Round;
use server::{Server, Workspace};

fn main() -> ExitCode {
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

/// Runs what was asked for on one thread, until it is done or a signal asks to stop. Either way the server
/// and its folder are gone afterwards, because both are owned by the future that ends here.
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
    if options.large {
        return measure_large(options).await;
    }
    if options.limits_memory {
        return measure_limits_memory(options).await;
    }
    if options.peers {
        return peers::run(options).await;
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

/// One round on a server of its own, so that no round starts on the data of the one before.
async fn measure_round(options: &Options) -> Result<Round> {
    let workspace = workspace(options)?;
    let settings = scenario::settings(&options.settings);
    let server = Server::start(&options.server, &workspace, &settings).await?;
    let outcome = scenario::run(&server, &workspace, options.quick).await;
    server.finish(outcome).await
}

async fn measure_large(options: &Options) -> Result<()> {
    let findings = large::run(options, &workspace(options)?).await?;
    large::print(options, &findings);
    Ok(())
}

async fn measure_limits_memory(options: &Options) -> Result<()> {
    let workspace = workspace(options)?;
    let settings = limits_memory::settings(&options.settings);
    let server = Server::start(&options.server, &workspace, &settings).await?;
    let outcome = limits_memory::run(&server, options.count).await;
    server.finish(outcome).await
}

fn workspace(options: &Options) -> Result<Workspace> {
    Workspace::create(options.directory.as_deref().unwrap_or(default_directory()))
}

/// Cargo's folder for a target's temporary files: it lies on the disk that holds the build, where `/tmp` is
/// often memory and a sync would cost nothing.
fn default_directory() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}
