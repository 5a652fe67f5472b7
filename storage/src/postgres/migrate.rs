//! The schema and its versions.

use super::failed;
use crate::OpenError;
use tokio_postgres::Client;

/// Every step from an empty database on. A shipped step is never changed: a new need is a new step.
pub(super) const STEPS: [&str; 4] = [
    include_str!("schema/0001.sql"),
    include_str!("schema/0002.sql"),
    include_str!("schema/0003.sql"),
    include_str!("schema/0004.sql"),
];

/// A lock number that no other program on the database is likely to use: `IPTunnel` in ASCII.
const LOCK: i64 = 0x4950_5475_6E6E_656C;

/// Returns the step of the schema; `None` if there is no schema yet.
pub(super) async fn step_of(client: &Client) -> Result<Option<u32>, tokio_postgres::Error> {
    let made = "SELECT to_regclass('schema_step') IS NOT NULL";
    if !client.query_one(made, &[]).await?.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    let last: i32 = client.query_one(LAST, &[]).await?.try_get(0)?;
    Ok(Some(last.cast_unsigned()))
}

/// The last step that this program knows.
pub(super) const fn known() -> u32 {
    STEPS.len() as u32
}

const LAST: &str = "SELECT coalesce(max(step), 0) FROM schema_step";

/// Brings the schema to the version that this program knows. Servers that start at once take turns.
///
/// # Errors
/// If a newer program has raised the schema, or the database refuses.
pub(super) async fn migrate(client: &mut Client) -> Result<(), OpenError> {
    // The lock belongs to the transaction, so it is always released.
    let step = client.transaction().await.map_err(failed)?;
    step.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await.map_err(failed)?;
    step.batch_execute(
        "CREATE TABLE IF NOT EXISTS schema_step (
             step    integer PRIMARY KEY,
             done_at timestamptz NOT NULL DEFAULT clock_timestamp());
         COMMENT ON TABLE schema_step IS 'The steps that have made this schema.'",
    )
    .await
    .map_err(failed)?;
    let last: i32 = step.query_one(LAST, &[]).await.map_err(failed)?.get(0);
    let (found, known) = (last.cast_unsigned(), known());
    if found > known {
        return Err(OpenError::NewerFormat { found, known });
    }
    for (number, sql) in (1i32..).zip(STEPS).skip(found as usize) {
        step.batch_execute(sql).await.map_err(failed)?;
        let note = "INSERT INTO schema_step (step) VALUES ($1)";
        step.execute(note, &[&number]).await.map_err(failed)?;
        tracing::info!(number, "the database's schema has been brought up to date");
    }
    step.commit().await.map_err(failed)
}
