//! The change in SQL. It is the same as ours: a code that was issued and has not expired is consumed, and an
//! activation is opened for a machine; one is durable with the other, and no code is consumed twice.
//!
//! What PostgreSQL is spared: sessions, tokens, limits, bad input, and every index but those without which the
//! promise cannot be kept.
//!
//! That every transaction finds a fresh code costs the server nothing: pgbench counts, for each client by
//! itself, and no two clients meet. Codes are consumed about in the order in which they were issued, as ours
//! are, so neighbours in time are neighbours on a page.

use super::postgres::Cluster;
use crate::failure::{Context, Failure, Result};

const SCHEMA: &str = include_str!("schema.sql");
const FILL: &str = include_str!("fill.sql");
/// Codes for every second of a step: several times what this kind of program was seen to reach. Where they
/// run out all the same, the step fails and says so.
const CODES_A_SECOND: u32 = 100_000;
/// How many times the codes of a step are filled in before the first one: that makes more files of the log than
/// a step needs, which are written again from then on.
const FIRST_FILL: u32 = 2;
/// Threads of pgbench that share the clients.
const THREADS: &str = "2";

/// One way to write the change.
pub struct Form {
    /// Its name in the report.
    pub name: &'static str,
    script: &'static str,
}

/// The ways, the usual one first.
pub static FORMS: [Form; 2] = [
    Form { name: "SELECT FOR UPDATE", script: include_str!("select_for_update.sql") },
    Form { name: "one statement", script: include_str!("one_statement.sql") },
];

/// What pgbench found out in one step.
#[derive(Clone, Copy)]
pub struct Figures {
    /// Transactions in a second, without the time to connect.
    pub rate: f64,
    /// The mean of what one took, in microseconds.
    pub mean_micros: f64,
}

/// Makes the tables, and the files of the log.
pub async fn prepare(cluster: &Cluster, seconds: u32) -> Result<()> {
    cluster.sql(SCHEMA).await?;
    fill(cluster, FIRST_FILL * seconds * CODES_A_SECOND).await
}

/// Lets clients change as much as they can for some seconds, on tables made anew.
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

/// Every transaction that was counted must have consumed a code of its own and opened an activation for it.
async fn check(cluster: &Cluster, transactions: f64) -> Result<()> {
    let query = "SELECT count(*) FROM activations JOIN codes ON codes.id = code_id WHERE state = 1";
    let found = cluster.sql(query).await?;
    if found.parse() == Ok(transactions) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{transactions} transactions made {found} activations: were there too few codes?"
    )))
}

/// The number after a label in what pgbench printed.
fn figure(output: &str, label: &str) -> Result<f64> {
    let number = output.lines().find_map(|line| line.strip_prefix(label)?.split(' ').next());
    number
        .and_then(|number| number.parse().ok())
        .context(format!("pgbench does not say {label:?}:\n{output}"))
}
