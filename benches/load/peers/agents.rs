//! Measures the cost for the database of a million servers that check in once a minute through two of our
//! servers. The minutes are shortened, and so are the intervals of the database's background work.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::fleet::Fleet;
use super::postgres::{Cluster, Programs, Site};
use crate::closed_loop;
use crate::failure::{Failure, Result};
use crate::figures::{duration, grouped, megabytes, ranged};
use crate::options::Options;
use crate::report::{print_head, print_value};
use crate::statistics::{Spread, Summary};
use crate::steps::{self, Registration};

/// The number of servers that check in.
const AGENTS: usize = 1_000_000;
const MINUTES: usize = 10;
/// The number of our servers.
const SERVERS: usize = 2;
const DATABASE: &str = "agents";
/// The number of connections to all of our servers together.
const CONNECTIONS: usize = 64;

/// The length of a shortened minute. The machine takes a million check-ins in about 20 seconds, and the database
/// writes them in somewhat more.
const MINUTE: Duration = Duration::from_secs(30);
/// The intervals of background work are half of the defaults: a checkpoint every five minutes, and a look for
/// tables to vacuum every minute.
const PACE: [(&str, &str); 6] = [
    ("checkpoint_timeout", "150s"),
    ("autovacuum", "on"),
    ("autovacuum_naptime", "30s"),
    // The settings of a database that must lose nothing.
    ("wal_level", "replica"),
    ("max_wal_senders", "4"),
    ("bgwriter_lru_maxpages", "100"),
];
/// Half of our servers' default of 5 seconds, in whole seconds.
const FLUSH: &str = "servers.checkin_flush_seconds=2";

/// The longest wait until all of our servers know all servers, or until the last check-ins are written.
const PATIENCE: Duration = Duration::from_secs(120);

/// The database's own figures.
#[derive(Clone, Copy)]
struct State {
    wal_bytes: f64,
    updates: f64,
    hot_updates: f64,
    table_bytes: f64,
    vacuums: f64,
}

struct Findings {
    version: String,
    agents: usize,
    minutes: Vec<Summary>,
    before: State,
    after: State,
}

/// Measures and prints.
pub async fn run(options: &Options, programs: &Programs) -> Result<()> {
    let site = Site::set_up(programs, crate::workspace(options)?).await?;
    let cluster = Cluster::start(site, &PACE).await?;
    let fleet = Fleet::start(options, &cluster, DATABASE, SERVERS, &[FLUSH]).await?;
    let outcome = measure(&fleet, &cluster, options.quick).await;
    print(options, &fleet.finish(outcome).await?);
    Ok(())
}

async fn measure(fleet: &Fleet, cluster: &Cluster, quick: bool) -> Result<Findings> {
    let agents = if quick { AGENTS / 10 } else { AGENTS };
    eprintln!("registering {agents} servers");
    let mut callers = fleet.callers(CONNECTIONS).await?;
    let mut registrations = Registration::all(&fleet.workspace.master_token()?, agents);
    let mut paths = Vec::with_capacity(agents);
    while !registrations.is_empty() {
        let some = registrations.split_off(registrations.len().saturating_sub(AGENTS / 10));
        let (registered, _) = closed_loop::run(steps::REGISTER, &mut callers, some).await?;
        paths.extend(registered);
    }
    wait_until_known(fleet, agents).await?;
    cluster.sql_in(DATABASE, "VACUUM ANALYZE presence; CHECKPOINT").await?;
    let before = State::read(cluster).await?;
    let (mut minutes, mut began) = (Vec::new(), String::new());
    for minute in 1..=MINUTES {
        // Each check-in goes through any of our servers, in any order.
        steps::scatter_order(&mut paths);
        began = cluster.sql("SELECT date_trunc('second', clock_timestamp())").await?;
        let start = Instant::now();
        let (again, summary) = closed_loop::run(steps::CHECK_IN, &mut callers, paths).await?;
        paths = again;
        if !quick {
            sleep(MINUTE.saturating_sub(start.elapsed())).await;
        }
        eprintln!("  minute {minute:>2}  check-in {:>9.0}/s", summary.rate);
        minutes.push(summary);
    }
    let behind = format!("SELECT count(*) FROM presence WHERE last_seen < '{began}'");
    wait_until("the last check-ins are written", async || {
        Ok(cluster.sql_in(DATABASE, &behind).await? == "0")
    })
    .await?;
    // The database counts the work of its sessions when they are idle.
    sleep(Duration::from_secs(2)).await;
    let after = State::read(cluster).await?;
    let version = cluster.sql("SHOW server_version").await?;
    Ok(Findings { version, agents, minutes, before, after })
}

async fn wait_until(what: &str, mut done: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done().await? {
        if start.elapsed() > PATIENCE {
            return Err(Failure::new(format!(
                "{what}: not reached within {} s",
                PATIENCE.as_secs()
            )));
        }
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Waits until each of our servers knows all servers, also those registered through the other one.
async fn wait_until_known(fleet: &Fleet, agents: usize) -> Result<()> {
    let line = format!("iptunnel_servers {agents}");
    for server in &fleet.servers {
        wait_until("all servers are known", async || {
            let metrics = server.get(server.admin, "/metrics").await?;
            Ok(metrics.lines().any(|one| one == line))
        })
        .await?;
    }
    Ok(())
}

impl State {
    async fn read(cluster: &Cluster) -> Result<Self> {
        let sql = "SELECT pg_current_wal_lsn() - '0/0', n_tup_upd, n_tup_hot_upd,
                 pg_table_size('presence'), autovacuum_count
             FROM pg_stat_user_tables WHERE relname = 'presence'";
        let row = cluster.sql_in(DATABASE, sql).await?;
        let figures: Vec<f64> = row.split('|').filter_map(|figure| figure.parse().ok()).collect();
        match figures[..] {
            [wal_bytes, updates, hot_updates, table_bytes, vacuums] => {
                Ok(Self { wal_bytes, updates, hot_updates, table_bytes, vacuums })
            }
            _ => Err(Failure::new(format!("the database returned unexpected figures: {row}"))),
        }
    }
}

fn print(options: &Options, findings: &Findings) {
    let Findings { version, agents, minutes, before, after } = findings;
    print_head(options);
    print_value("PostgreSQL", &format!("{version}, over a unix socket"));
    print_value("agents", &format!("{}, through {SERVERS} servers", grouped(*agents as f64)));
    let figure = |name: &str, of: fn(&Summary) -> f64, show: fn(f64) -> String| {
        if let Some(spread) = Spread::of(minutes.iter().map(of)) {
            print_value(name, &ranged(spread, show));
        }
    };
    print_value("minutes", &minutes.len().to_string());
    figure("check-ins/s", |minute| minute.rate, grouped);
    figure("p50", |minute| minute.p50_micros, duration);
    figure("p99", |minute| minute.p99_micros, duration);
    let updates = after.updates - before.updates;
    let hot = (after.hot_updates - before.hot_updates) / updates;
    let wal = after.wal_bytes - before.wal_bytes;
    // There are as many rows as in real time, where each check-in is written before the next one.
    let an_hour = wal / updates * *agents as f64 * 60.0;
    let check_ins: usize = minutes.iter().map(|minute| minute.count).sum();
    print_value("check-ins", &grouped(check_ins as f64));
    print_value("rows written", &grouped(updates));
    print_value("of them HOT", &format!("{:.2} %", hot * 100.0));
    print_value("log", &format!("{}, {:.0} bytes a row", megabytes(wal / 1e6), wal / updates));
    print_value("log an hour", &format!("{}, each check-in a row", megabytes(an_hour / 1e6)));
    let [small, large] = [before, after].map(|state| megabytes(state.table_bytes / 1e6));
    print_value("presence", &format!("{small} before, {large} after"));
    print_value("vacuums", &grouped(after.vacuums - before.vacuums));
}
