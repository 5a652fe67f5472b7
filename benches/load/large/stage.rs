//! Measures starts and memory at each number of past activations.

use std::fs;
use std::time::Duration;

use tokio::time::sleep;

use super::{Bench, CONNECTIONS, past};
use crate::closed_loop::{self, Step};
use crate::failure::{Context, Failure, Result};
use crate::scenario::{open_callers, prechecked};
use crate::server::Server;
use crate::statistics::Spread;
use crate::steps::{self, Issued, Machine};

/// The number of measured starts of each kind.
const STARTS: usize = 5;
/// The number of past codes to look up before memory is measured, spread evenly over all codes. It does not grow
/// with the store, because the cost of the store's size is measured and not the cost of its use.
const LOOK_UPS: u64 = 2_000;
/// The codes ready to be activated before a server is killed: more than it can activate in [`KILLED_AFTER`].
/// They are for the same machines each time, because each machine has counters that a start reads into memory.
pub const CODES_UNDER_WAY: usize = 20_000;
/// The time for which a server activates before it is killed.
const KILLED_AFTER: Duration = Duration::from_millis(250);
/// The time that a server gets to become idle before its memory is measured.
const REST: Duration = Duration::from_secs(1);

/// The figures at one number of past activations. The page cache is always warm, as after a restart of the
/// server and not of its machine.
pub struct Stage {
    /// The number of past activations in the store.
    pub past: u64,
    /// The time from the start of the process to its first 200 for `/readyz`, after SIGTERM, in microseconds.
    pub clean_start_micros: Spread,
    /// The same after SIGKILL during activates.
    pub killed_start_micros: Spread,
    /// Resident memory after clean starts, in megabytes.
    pub started_mb: Spread,
    /// The same after [`LOOK_UPS`] more prechecks of past codes.
    pub looked_up_mb: Spread,
    /// The size of the store's file in megabytes.
    pub store_mb: f64,
}

/// Measures the figures. Memory comes first, because the killed servers leave activations in the store.
pub async fn measure(bench: &Bench<'_>, past: u64) -> Result<Stage> {
    eprintln!("starting with {past} past activations");
    let mut clean = Vec::with_capacity(STARTS);
    while clean.len() < STARTS {
        clean.push(clean_start(bench, past).await?);
    }
    let killed = killed_starts(bench).await?;
    let store = bench.workspace.store();
    let length = fs::metadata(&store).context(format!("cannot read {}", store.display()))?.len();
    Ok(Stage {
        past,
        clean_start_micros: spread(clean.iter().map(|start| start.ready_micros))?,
        killed_start_micros: spread(killed)?,
        started_mb: spread(clean.iter().map(|start| start.started_mb))?,
        looked_up_mb: spread(clean.iter().map(|start| start.looked_up_mb))?,
        store_mb: length as f64 / 1e6,
    })
}

/// One start of a server that had stopped in order.
struct CleanStart {
    ready_micros: f64,
    started_mb: f64,
    looked_up_mb: f64,
}

async fn clean_start(bench: &Bench<'_>, past: u64) -> Result<CleanStart> {
    let server = bench.start().await?;
    let outcome = measure_start(&server, past).await;
    server.finish(outcome).await
}

async fn measure_start(server: &Server, past: u64) -> Result<CleanStart> {
    sleep(REST).await;
    let started_mb = server.memory()?.resident_mb;
    look_up(server, past).await?;
    sleep(REST).await;
    let looked_up_mb = server.memory()?.resident_mb;
    Ok(CleanStart { ready_micros: micros(server.ready_after), started_mb, looked_up_mb })
}

/// Prechecks past codes. If there are none, prechecks as many codes that were never issued.
async fn look_up(server: &Server, past: u64) -> Result<()> {
    let stride = (past / LOOK_UPS).max(1);
    let step: Step<Issued, ()> =
        if past == 0 { steps::PRECHECK_OF_UNKNOWN } else { steps::PRECHECK_OF_USED };
    let issued = (0..LOOK_UPS)
        .zip(Machine::all())
        .map(|(number, machine)| Ok(Issued::new(machine, past::code(number * stride)?.reveal())))
        .collect::<Result<Vec<_>>>()?;
    let mut callers = open_callers(server.public, CONNECTIONS).await?;
    closed_loop::run(step, &mut callers, issued).await?;
    Ok(())
}

/// The times of starts after a kill, in microseconds.
async fn killed_starts(bench: &Bench<'_>) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(STARTS);
    let mut server = bench.start().await?;
    while times.len() < STARTS {
        if let Err(failure) = kill_amid_activates(&mut server).await {
            return server.finish(Err(failure)).await;
        }
        server = bench.start().await?;
        times.push(micros(server.ready_after));
    }
    server.finish(Ok(times)).await
}

async fn kill_amid_activates(server: &mut Server) -> Result<()> {
    let mut callers = open_callers(server.public, CONNECTIONS).await?;
    let prechecked =
        prechecked(&mut callers, Machine::all().take(CODES_UNDER_WAY).collect()).await?;
    tokio::select! {
        ended = closed_loop::run(steps::ACTIVATE, &mut callers, prechecked) => Err(match ended {
            Ok(_) => Failure::new("all codes were activated before the server was to be killed"),
            Err(failure) => failure,
        }),
        () = sleep(KILLED_AFTER) => server.kill(),
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn spread(values: impl IntoIterator<Item = f64>) -> Result<Spread> {
    Spread::of(values).context("no start was measured")
}
