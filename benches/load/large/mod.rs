//! What a million servers and ten million past activations cost: resident memory, the time of a start, and what
//! a listing of all servers costs those who activate meanwhile. Everything on one folder, one server after the
//! other.
//!
//! - `servers` registers the servers and lets them check in
//! - `past` writes past activations into the store, because playing them would take an hour
//! - `stage` is what is measured at each number of past activations: starts, and memory
//! - `listing` is what streaming all servers costs
//! - `report` prints it

mod listing;
mod past;
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

/// Servers that are registered and check in.
const SERVERS: usize = 1_000_000;
/// Numbers of past activations in the store, each measured; none comes first, to compare with.
const PAST: [u64; 3] = [0, 1_000_000, 10_000_000];
/// One of the numbers of connections of the normal run.
const CONNECTIONS: usize = 64;

/// All that was found out.
pub struct Findings {
    registered: Registered,
    /// One for each of [`PAST`].
    stages: Vec<Stage>,
    /// Activates with and without a listing beside them.
    pairs: Vec<Pair>,
}

/// What all parts of the measurement share.
struct Bench<'a> {
    options: &'a Options,
    workspace: &'a Workspace,
    settings: Vec<String>,
    /// One in so many of all records and requests is enough.
    scale: usize,
}

impl Bench<'_> {
    /// The server on what is in the folder.
    async fn start(&self) -> Result<Server> {
        Server::start(&self.options.server, self.workspace, &self.settings).await
    }
}

/// Takes the measurements, the largest store last.
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
        past::write(workspace, written..past).await?;
        written = past;
        stages.push(stage::measure(&bench, past).await?);
    }
    let pairs = listing::measure(&bench, servers).await?;
    Ok(Findings { registered, stages, pairs })
}
