//! The commits of the other servers. They belong into the watermark of this server too, so that
//! their loss is noticed even if the server that made them is gone.

use super::rows::rows;
use super::{Inner, no_connection, unreadable};
use crate::ReadError;
use deadpool_postgres::Client;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// How often the other servers are looked at: as often as the watermark is written.
const EVERY: Duration = Duration::from_secs(2);

/// What this server knows of the others.
#[derive(Default)]
pub(super) struct PeerMarks(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// How often the database was replaced by another state. Counts read before are then void.
    replaced: u64,
    counts: Vec<Count>,
}

/// The commits of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Count {
    /// The name of its start.
    name: String,
    batch: i64,
    /// The commits of this server when it learned that.
    own: i64,
}

/// Counts that were read but may not be on any standby yet.
pub(super) struct Read(Vec<Count>);

impl PeerMarks {
    pub(super) fn of(read: Read) -> Self {
        Self(Mutex::new(Known { replaced: 0, counts: read.0 }))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the counts by the names of starts, in the order of the names.
    pub(super) fn counts(&self) -> Vec<(String, u64)> {
        let known = self.known();
        let count = |one: &Count| (one.name.clone(), one.batch.cast_unsigned());
        known.counts.iter().map(count).collect()
    }

    /// Replaces all counts, because the database is another one.
    pub(super) fn replace(&self, read: Read) {
        let mut known = self.known();
        known.replaced += 1;
        known.counts = read.0;
    }

    /// Reads what the others have committed since.
    pub(super) async fn learn(&self, client: &Client, process: i32) -> Result<(), ReadError> {
        let (replaced, before) = {
            let known = self.known();
            (known.replaced, known.counts.clone())
        };
        let read = read(client, process, &before).await?;
        if read.0 == before {
            return Ok(());
        }
        confirm(client).await?;
        let mut known = self.known();
        if known.replaced == replaced {
            known.counts = read.0;
        }
        Ok(())
    }
}

/// Returns the commits of all but `process`. Known counts stay, even if the database has less: then
/// it lacks acknowledged changes, and the check must find that. A server that has ended is left out
/// once this server has committed after it learned of its last commit: a database with the later
/// commit also has the earlier one.
async fn read(client: &Client, process: i32, before: &[Count]) -> Result<Read, ReadError> {
    let names: Vec<&str> = before.iter().map(|one| one.name.as_str()).collect();
    let sql = "SELECT name::text AS name, batch, ended,
             coalesce((SELECT batch FROM process WHERE id = $1), 0) AS own
         FROM process WHERE id <> $1 AND (NOT ended AND batch > 0 OR name::text = ANY ($2))";
    let mut counts: BTreeMap<&str, Count> =
        before.iter().map(|one| (one.name.as_str(), one.clone())).collect();
    let rows = rows(client, sql, &[&process, &names]).await?;
    for row in &rows {
        let name: &str = row.try_get("name").map_err(unreadable)?;
        let batch: i64 = row.try_get("batch").map_err(unreadable)?;
        let own: i64 = row.try_get("own").map_err(unreadable)?;
        let ended: bool = row.try_get("ended").map_err(unreadable)?;
        match counts.get(name) {
            Some(known) if ended && known.batch == batch && known.own < own => {
                counts.remove(name);
            }
            Some(known) if known.batch >= batch => {}
            _ => {
                counts.insert(name, Count { name: name.to_owned(), batch, own });
            }
        }
    }
    Ok(Read(counts.into_values().collect()))
}

/// Reads the counts for a server that is about to register: its registration is the commit that
/// confirms them.
pub(super) async fn read_first(client: &Client) -> Result<Read, ReadError> {
    read(client, 0, &[]).await
}

/// Makes a commit after the read. Changes that are visible on a primary may not be on a standby
/// yet; once this returns, all before it are. (If somebody cancelled the wait for the standby, the
/// watermark could demand too much. That costs an epoch, and no code can be spent twice.)
async fn confirm(client: &Client) -> Result<(), ReadError> {
    let commit = "SELECT pg_logical_emit_message(true, 'iptunnel-server', 'mark')";
    rows(client, commit, &[]).await.map(|_| ())
}

/// Reads the commits of the others as long as the store exists. It may wait for a standby, since no
/// caller waits for it.
pub(super) async fn follow(store: Weak<Inner>) {
    loop {
        let Some(inner) = store.upgrade() else { return };
        let learned = async {
            let client = inner.pool.get().await.map_err(|error| no_connection(&error))?;
            inner.others.learn(&client, inner.process()).await
        };
        if let Err(error) = learned.await {
            tracing::debug!(%error, "the commits of other servers cannot be read; retrying");
        }
        drop(inner);
        tokio::time::sleep(EVERY).await;
    }
}
