//! The change in SQL. It is the same as ours: it consumes an issued code that has not expired, and opens an
//! activation for a machine. Both are durable together, and no code is consumed twice.
//!
//! PostgreSQL has less work: no sessions, tokens, limits or bad input, and no indexes except those that keep the
//! promise.
//!
//! Each transaction finds an unused code at no cost for the server, because pgbench counts the codes of each client
//! separately. Codes are consumed roughly in the order of their issue, as in our server, so codes consumed at about
//! the same time are on the same page.

use super::postgres::Cluster;
use crate::failure::{Context, Failure, Result};

const SCHEMA: &str = include_str!("schema.sql");
const FILL: &str = include_str!("fill.sql");
/// The codes for each second of a step, several times the highest rate seen. If they still run out, the step fails
/// with a message.
const CODES_A_SECOND: u32 = 100_000;
/// The tables are filled this many times before the first step. This creates more files of the write-ahead log
/// than a step needs, and later steps reuse them.
const FIRST_FILL: u32 = 2;
/// The number of pgbench's threads, which share the clients.
const THREADS: &str = "2";

/// One way to write the change.
pub struct Form {
    /// Its name in the report.
    pub name: &'static str,
    script: &'static str,
}

/// All forms, with the usual one first.
pub static FORMS: [Form; 2] = [
    Form { name: "SELECT FOR UPDATE", script: include_str!("select_for_update.sql") },
    Form { name: "one statement", script: include_str!("one_statement.sql") },
];

/// The results of pgbench in one step.
#[derive(Clone, Copy)]
pub struct Figures {
    /// The transactions per second, without the time to connect.
    pub rate: f64,
    /// The mean time of a transaction in microseconds.
    pub mean_micros: f64,
}

/// Creates the tables, and the files of the log.
pub async fn prepare(cluster: &Cluster, seconds: u32) -> Result<()> {
    cluster.sql(SCHEMA).await?;
    fill(cluster, FIRST_FILL * seconds * CODES_A_SECOND).await
}

/// Lets clients make as many changes as they can for some seconds, on newly filled tables.
pub async fn measure(
    cluster: &Cluster,
    form: &Form,
    clients: usize,
    seconds: u32,
) -> Result<Figures> {
    fill(cluster, seconds * CODES_A_SECOND).await?;
    let (count, time) = (clients.to_string(), seconds.to_string());
    let variable = format!("clients={clients}");
    let arguments = [
        ["-M", "prepared"], // parsed once, planned once
        ["-c", &count],
        ["-j", THREADS],
        ["-T", &time],
        ["-D", "turn=0"],
        ["-D", &variable],
    ];
    let mut arguments = arguments.concat();
    arguments.push("-n"); // no vacuum of pgbench's own tables, which do not exist
    let output = cluster.pgbench(&arguments, form.script).await?;
    check(cluster, figure(&output, "number of transactions actually processed: ")?).await?;
    let mean_millis = figure(&output, "latency average = ")?;
    Ok(Figures { rate: figure(&output, "tps = ")?, mean_micros: mean_millis * 1000.0 })
}

async fn fill(cluster: &Cluster, codes: u32) -> Result<()> {
    cluster.sql_with(&format!("codes={codes}"), FILL).await.map(|_| ())
}

/// Checks that each counted transaction consumed its own code and opened an activation for it.
async fn check(cluster: &Cluster, transactions: f64) -> Result<()> {
    let query = "SELECT count(*) FROM activations JOIN codes ON codes.id = code_id WHERE state = 1";
    let found = cluster.sql(query).await?;
    if found.parse() == Ok(transactions) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{transactions} transactions made {found} activations; perhaps there were too few codes"
    )))
}

/// Reads the number after a label in pgbench's output.
fn figure(output: &str, label: &str) -> Result<f64> {
    let number = output.lines().find_map(|line| line.strip_prefix(label)?.split(' ').next());
    number
        .and_then(|number| number.parse().ok())
        .context(format!("pgbench does not say {label:?}:\n{output}"))
}
