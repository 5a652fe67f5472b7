//! Measures what is only in the store: how long a look-up of an old code or activation takes, found or not, and how
//! long a start takes beside them. One server at a time runs on one folder.
//!
//! Past installs are written through the journal in commits of the size that a server checkpoints, so the indexes
//! have the runs that they have in a server. The counters of a day are written as well, because a start reads them
//! all into memory.

use std::hint::black_box;
use std::time::{Duration, Instant};

use iptunnel_domain::Timestamp;
use iptunnel_domain::limit::Policy;
use iptunnel_server::os::{Clock, SystemClock};
use iptunnel_server::secrets;
use iptunnel_server::store::files::files;
use iptunnel_storage::{Change, Counter, CounterRow, EmbeddedStore, Records, Store, Write};

use crate::closed_loop::{self, Step};
use crate::failure::{Context, Failure, Result};
use crate::figures::{duration, grouped, megabytes, ranged};
use crate::large::past;
use crate::options::Options;
use crate::report::{print_head, print_value};
use crate::scenario::{self, HEALTHZ_PATH, HEALTHZ_STEP, open_callers};
use crate::server::{Server, Workspace};
use crate::statistics::{Spread, Summary, percentile};
use crate::steps::{self, Named};
use crate::table;
use crate::targets::{self, Target};

/// The default number of past installs: a day of them at eleven a second.
pub const INSTALLS: u64 = 1_000_000;
/// Installs in a commit. A server checkpoints some hundred changes at a time.
const BATCH: u64 = 200;
/// Counters that an install leaves for a day: address and machine, for precheck and activate.
const COUNTERS: [Policy; 4] = [
    Policy::PrecheckPerIpDay,
    Policy::PrecheckPerMachineDay,
    Policy::ActivatePerIpDay,
    Policy::ActivatePerMachineDay,
];
/// The most counters that a server tracks by default.
const MOST_COUNTERS: u64 = 4_000_000;
/// Counters in a commit.
const COUNTERS_AT_ONCE: u64 = 20_000;
/// Look-ups of each kind.
const LOOK_UPS: u64 = 20_000;
/// Starts of each kind.
const STARTS: usize = 5;
const CONNECTIONS: usize = 64;
/// How long the cheapest answer is measured for comparison.
const HEALTHZ_FOR: Duration = Duration::from_secs(2);

const MISS: Target =
    Target::lower("look-up that finds nothing, the slower kind", 50.0, 20.0, duration);
const START: Target = Target::lower("start beside past installs", 0.5e6, 0.1e6, duration);
const COUNTERS_START: Target =
    Target::lower("start with a day of counters too", 0.5e6, 0.1e6, duration);

/// The times of single look-ups.
struct LookUps {
    what: &'static str,
    mean_micros: f64,
    p50_micros: f64,
    p99_micros: f64,
}

/// Runs the measurements and prints them.
pub async fn run(options: &Options, workspace: &Workspace) -> Result<()> {
    let installs = options.count.unwrap_or(INSTALLS) / if options.quick { 10 } else { 1 };
    let settings = scenario::settings(&options.settings);
    let start = || Server::start(&options.server, workspace, &settings);
    // The first start makes the keys and the store.
    start().await?.finish(Ok(())).await?;
    past::write(workspace, 0..installs, BATCH).await?;
    let look_ups = look_up_all(workspace, installs)?;
    let mut requests = Vec::new();
    let server = start().await?;
    let outcome = ask(&server, installs, &mut requests).await;
    server.finish(outcome).await?;
    let plain = starts(start).await?;
    let counters = write_counters(workspace, installs)?;
    let counted = starts(start).await?;
    print(options, installs, &look_ups, &requests);
    print_value("counters", &grouped(counters as f64));
    print_value("RSS after a start", &ranged(plain.memory_mb, megabytes));
    print_value("with the counters", &ranged(counted.memory_mb, megabytes));
    println!();
    let misses = look_ups.iter().filter(|of| of.what.ends_with("not found"));
    let slowest = misses.map(|of| of.mean_micros).max_by(f64::total_cmp);
    targets::print(&[
        (MISS, Spread::of(slowest)),
        (START, Some(plain.micros)),
        (COUNTERS_START, Some(counted.micros)),
    ]);
    Ok(())
}

/// Looks records up with the storage crate, one after the other, while no server has the store open.
fn look_up_all(workspace: &Workspace, installs: u64) -> Result<[LookUps; 4]> {
    let doing = "cannot look up past installs";
    let store = EmbeddedStore::open(files(&workspace.store())).context(doing)?;
    let key = secrets::lookup_key(&workspace.lookup_key()).context(doing)?;
    let ids = |first| spread_over(first, installs).into_iter().map(past::id).collect();
    let hashes = |first| {
        let numbers = spread_over(first, installs).into_iter();
        numbers.map(|past| Ok(past::code(past)?.hash(&key))).collect::<Result<_>>()
    };
    let activation = |id| Ok(store.activation(id).context(doing)?.is_some());
    let code = |hash| Ok(store.code(hash).context(doing)?.is_some());
    let all = [
        look_up("activation", true, ids(0), activation)?,
        look_up("activation, not found", false, ids(installs), activation)?,
        look_up("code", true, hashes(0)?, code)?,
        look_up("code, not found", false, hashes(installs)?, code)?,
    ];
    store.close();
    Ok(all)
}

/// Numbers all over those from `first` on, in no order.
fn spread_over(first: u64, count: u64) -> Vec<u64> {
    (0..LOOK_UPS).map(|number| first + steps::scatter(number) % count.max(1)).collect()
}

fn look_up<K>(
    what: &'static str,
    expected: bool,
    keys: Vec<K>,
    find: impl Fn(K) -> Result<bool>,
) -> Result<LookUps> {
    let mut nanos = Vec::with_capacity(keys.len());
    for key in keys {
        let begin = Instant::now();
        let found = black_box(find(black_box(key))?);
        nanos.push(u32::try_from(begin.elapsed().as_nanos()).unwrap_or(u32::MAX));
        if found != expected {
            return Err(Failure::new(format!("{what}: a record is found: {found}")));
        }
    }
    nanos.sort_unstable();
    let sum: u64 = nanos.iter().map(|nanos| u64::from(*nanos)).sum();
    let micros = |percent| f64::from(percentile(&nanos, percent)) / 1e3;
    let mean_micros = sum as f64 / nanos.len().max(1) as f64 / 1e3;
    Ok(LookUps { what, mean_micros, p50_micros: micros(50), p99_micros: micros(99) })
}

/// A kind of request: connections, name, figures, and the server's processor time for one in microseconds.
type Measured = (usize, &'static str, Summary, f64);

/// Asks a server for what it has to look up, alone and over many connections.
async fn ask(server: &Server, installs: u64, requests: &mut Vec<Measured>) -> Result<()> {
    for connections in [1, CONNECTIONS] {
        let mut callers = open_callers(server.public, connections).await?;
        let before = server.processor_time()?;
        let of = closed_loop::run_for(HEALTHZ_STEP, HEALTHZ_PATH, &mut callers, HEALTHZ_FOR);
        let healthz = of.await?;
        requests.push(measured(server, connections, HEALTHZ_STEP, healthz, before)?);
        for (step, first) in
            [(steps::RELEASE_OF_CONFIRMED, 0), (steps::RELEASE_OF_UNKNOWN, installs)]
        {
            let named = spread_over(first, installs).into_iter().map(past::id).map(Named::new);
            let before = server.processor_time()?;
            let step: Step<Named, ()> = step;
            let (_, figures) = closed_loop::run(step, &mut callers, named.collect()).await?;
            requests.push(measured(server, connections, step.name, figures, before)?);
        }
    }
    Ok(())
}

fn measured(
    server: &Server,
    connections: usize,
    name: &'static str,
    figures: Summary,
    before: Duration,
) -> Result<Measured> {
    let used = server.processor_time()?.saturating_sub(before);
    let micros = used.as_secs_f64() * 1e6 / figures.count.max(1) as f64;
    Ok((connections, name, figures, micros))
}

/// Several starts.
struct Starts {
    /// From the start of the process to its first 200 for `/readyz`.
    micros: Spread,
    /// Resident memory right after.
    memory_mb: Spread,
}

async fn starts<F: Future<Output = Result<Server>>>(start: impl Fn() -> F) -> Result<Starts> {
    let (mut micros, mut memory) = (Vec::with_capacity(STARTS), Vec::with_capacity(STARTS));
    while micros.len() < STARTS {
        let server = start().await?;
        micros.push(server.ready_after.as_secs_f64() * 1e6);
        memory.push(server.memory()?.resident_mb);
        server.finish(Ok(())).await?;
    }
    let spread = |values: Vec<f64>| Spread::of(values).context("no start was measured");
    Ok(Starts { micros: spread(micros)?, memory_mb: spread(memory)? })
}

/// Writes the counters that so many installs of today leave, and returns their number.
fn write_counters(workspace: &Workspace, installs: u64) -> Result<u64> {
    let doing = "cannot write counters";
    let count = (installs * COUNTERS.len() as u64).min(MOST_COUNTERS);
    let store = EmbeddedStore::open(files(&workspace.store())).context(doing)?;
    let now = SystemClock::default().now();
    let mut first = 0;
    while first < count {
        let end = count.min(first + COUNTERS_AT_ONCE);
        let rows = (first..end).map(|slot| counter(slot, now)).collect::<Result<Vec<_>>>()?;
        store.commit(&[Change(vec![Write::Counters(rows)])]).context(doing)?;
        first = end;
    }
    store.close();
    Ok(count)
}

fn counter(slot: u64, now: Timestamp) -> Result<CounterRow> {
    let policy = *COUNTERS.get(slot as usize % COUNTERS.len()).context("a policy")?;
    let (key, window_end) = (steps::scatter(slot + 1), policy.window_end(now));
    let slot = u32::try_from(slot).context("the number of a counter")?;
    Ok(CounterRow { slot, counter: Some(Counter { key, policy, used: 1, window_end }) })
}

fn print(options: &Options, installs: u64, look_ups: &[LookUps], requests: &[Measured]) {
    print_head(options);
    print_value("past installs", &grouped(installs as f64));
    println!();
    let head = ["look-up in the store", "mean", "p50", "p99"].map(String::from);
    let micros = |micros: f64| format!("{micros:.1} \u{b5}s");
    let lines = look_ups.iter().map(|of| {
        [of.what.to_owned(), micros(of.mean_micros), micros(of.p50_micros), micros(of.p99_micros)]
    });
    table::print(&[head].into_iter().chain(lines).collect::<Vec<_>>(), 0);
    println!();
    let head = ["connections", "request", "per second", "p50", "p99", "server's time"];
    let lines = requests.iter().map(|(connections, name, figures, processor)| {
        [
            connections.to_string(),
            (*name).to_owned(),
            grouped(figures.rate),
            duration(figures.p50_micros),
            duration(figures.p99_micros),
            duration(*processor),
        ]
    });
    table::print(&[head.map(String::from)].into_iter().chain(lines).collect::<Vec<_>>(), 1);
    println!();
}
