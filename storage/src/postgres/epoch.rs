//! Epochs of the database. A new one begins after the database returned to an earlier state: a
//! backup was restored, or a standby was promoted that lacked some commits. A spent code may look
//! unspent in it. So all that could be spent is made void, once, and people get new codes.

use super::rows::{EVENT, time};
use super::told;
use crate::Watermark;
use deadpool_postgres::Client;
use iptunnel_domain::Timestamp;
use iptunnel_domain::audit::{Action, Actor};
use std::time::SystemTime;

/// Checks whether the database holds what `mark` demands.
pub(super) async fn contains(
    client: &Client,
    mark: &Watermark,
) -> Result<bool, tokio_postgres::Error> {
    let found = "SELECT (SELECT number FROM epoch) >= $1 AND NOT EXISTS (
             SELECT FROM unnest($2::text[], $3::bigint[]) AS held (name, batch)
             WHERE NOT EXISTS (SELECT FROM process
                 WHERE process.name::text = held.name AND process.batch >= held.batch))";
    let own = (mark.process.as_str(), mark.commits);
    let all = std::iter::once(own)
        .chain(mark.others.iter().map(|(process, commits)| (process.as_str(), *commits)));
    let (names, commits): (Vec<&str>, Vec<i64>) =
        all.map(|(process, commits)| (process, commits.cast_signed())).unzip();
    let found = client.prepare_cached(found).await?;
    client.query_one(&found, &[&mark.epoch.cast_signed(), &names, &commits]).await?.try_get(0)
}

/// Returns the epoch of the database.
pub(super) async fn present(client: &Client) -> Result<i64, tokio_postgres::Error> {
    let present = client.prepare_cached("SELECT number FROM epoch").await?;
    client.query_one(&present, &[]).await?.try_get(0)
}

/// Begins the epoch after `last`, unless a later one has already begun. Returns the current one.
pub(super) async fn begin(
    client: &mut Client,
    last: i64,
    why: &str,
    now: Option<Timestamp>,
) -> Result<i64, String> {
    let begun = async {
        let step = client.transaction().await?;
        step.batch_execute("SET LOCAL statement_timeout = 0").await?;
        let next = "UPDATE epoch SET number = $1 + 1, since = clock_timestamp() WHERE number <= $1
             RETURNING number";
        let Some(row) = step.query_opt(next, &[&last]).await? else {
            step.rollback().await?;
            return present(client).await;
        };
        let epoch: i64 = row.try_get(0)?;
        // The end lies before the beginning, so no precheck can have come in time.
        let codes = step
            .execute(
                "UPDATE code SET expires_at = issued_at, version = version + 1
                 WHERE consumed_by IS NULL AND expires_at > issued_at",
                &[],
            )
            .await?;
        let activations = step
            .execute(
                "UPDATE activation SET expires_at = opened_at, version = version + 1
                 WHERE state = 'open' AND expires_at > opened_at",
                &[],
            )
            .await?;
        let process: i32 = step
            .query_one("INSERT INTO process (batch) VALUES (1) RETURNING id", &[])
            .await?
            .try_get(0)?;
        let event = format!(
            "INSERT INTO event ({EVENT}) VALUES
             ($1, 1, $2, $3, $4, NULL, NULL, NULL, NULL, NULL, NULL, NULL, $5, $6)"
        );
        let at = "SELECT coalesce($1, date_trunc('second', clock_timestamp()))";
        let at: SystemTime = step.query_one(at, &[&now.map(time)]).await?.try_get(0)?;
        let subject = format!("epoch {epoch}");
        let (action, actor) = (Action::StoreFenced.name(), Actor::Administrator.name());
        step.execute(&event, &[&process, &at, &action, &actor, &subject, &why]).await?;
        step.commit().await?;
        tracing::error!(epoch, why, codes, activations, "codes and open activations are void");
        Ok(epoch)
    };
    begun.await.map_err(|error: tokio_postgres::Error| told(&error))
}
