//! Measures the cost of a million servers and ten million past activations: resident memory, the time of a start,
//! and the slowdown of activates during a listing of all servers. One server at a time runs on one folder.
//!
//! - `servers` registers the servers and lets them check in
//! - `past` writes past activations into the store, because playing them would take an hour
//! - `stage` measures starts and memory at each number of past activations
//! - `listing` measures the cost of streaming all servers
//! - `report` prints the results

mod listing;
pub mod past;
mod report;
mod servers;
mod stage;

pub use report::print;

use crate::failure::Result;
use crate::options::Options;
use crate::scenario;
use crate::server::{Server, Workspace};

use listing::Pair;
use servers::Registered;
use stage::Stage;

/// The number of servers that register and check in.
const SERVERS: usize = 1_000_000;
/// The measured numbers of past activations. The first is 0, for comparison.
const PAST: [u64; 3] = [0, 1_000_000, 10_000_000];
/// The past installations in one commit: enough to write millions of them quickly.
const BATCH: u64 = 32_768;
/// The number of connections, as in a part of the normal run.
const CONNECTIONS: usize = 64;

/// The results.
pub struct Findings {
    registered: Registered,
    /// One for each of [`PAST`].
    stages: Vec<Stage>,
    /// The activates with and without a listing.
    pairs: Vec<Pair>,
}

/// The options of all parts of the measurement.
struct Bench<'a> {
    options: &'a Options,
    workspace: &'a Workspace,
    settings: Vec<String>,
    /// The divisor for all numbers of records and requests.
    scale: usize,
}

impl Bench<'_> {
    /// Starts a server with the folder's content.
    async fn start(&self) -> Result<Server> {
        Server::start(&self.options.server, self.workspace, &self.settings).await
    }
}

/// Runs the measurements, with the largest store last.
pub async fn run(options: &Options, workspace: &Workspace) -> Result<Findings> {
    let bench = Bench {
        options,
        workspace,
        settings: scenario::settings(&options.settings),
        scale: if options.quick { 10 } else { 1 },
    };
    let servers = SERVERS / bench.scale;
    let registered = servers::register(&bench, servers).await?;
    let mut stages = Vec::with_capacity(PAST.len());
    let mut written = 0;
    for past in PAST.map(|past| past / bench.scale as u64) {
        past::write(workspace, written..past, BATCH).await?;
        written = past;
        stages.push(stage::measure(&bench, past).await?);
    }
    let pairs = listing::measure(&bench, servers).await?;
    Ok(Findings { registered, stages, pairs })
}
