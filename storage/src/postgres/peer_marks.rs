//! What the other servers have committed: it belongs into this server's mark, too, so that the loss of
//! it is noticed where the server that wrote it is gone.

use super::log::rows;
use super::{Inner, no_connection, unreadable};
use crate::ReadError;
use deadpool_postgres::Client;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// How often the others are looked at: as often as the mark is written.
const EVERY: Duration = Duration::from_secs(2);

/// What this server knows of the others.
#[derive(Default)]
pub(super) struct PeerMarks(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// How often the database was found to be another one. What was read before is then void.
    replaced: u64,
    counts: Vec<Count>,
}

/// How much a server has committed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Count {
    /// The name of its start.
    name: String,
    batch: i64,
    /// How much this server had committed when it learned that.
    own: i64,
}

/// Counts that were read, and may not be on any standby.
pub(super) struct Read(Vec<Count>);

impl PeerMarks {
    pub(super) fn of(read: Read) -> Self {
        Self(Mutex::new(Known { replaced: 0, counts: read.0 }))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counts by the names of starts, in the order of the names.
    pub(super) fn counts(&self) -> Vec<(String, u64)> {
        let known = self.known();
        let count = |one: &Count| (one.name.clone(), one.batch.cast_unsigned());
        known.counts.iter().map(count).collect()
    }

    /// The database is another one: what the others have committed in it.
    pub(super) fn replace(&self, read: Read) {
        let mut known = self.known();
        known.replaced += 1;
        known.counts = read.0;
    }

    /// Learns what the others have committed since.
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

/// What all but `process` have committed. What was known stays, also where the database has less: it
/// lacks what was acknowledged, and whoever looks for that must find it. A server that has ended is left
/// out once this one has committed since it learned of its last commit: a database that holds the later
/// one holds the earlier, too.
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

/// The same for a server that is about to register: its registration is the commit that confirms them.
pub(super) async fn read_first(client: &Client) -> Result<Read, ReadError> {
    read(client, 0, &[]).await
}

/// A commit behind what was read. What is merely visible on a primary may be on no standby yet; once
/// this has returned, all before it is. (Were somebody to end the wait for the standby, the mark could
/// ask for too much: that costs an epoch, and lets no code be spent twice.)
async fn confirm(client: &Client) -> Result<(), ReadError> {
    let commit = "SELECT pg_logical_emit_message(true, 'iptunnel-server', 'mark')";
    rows(client, commit, &[]).await.map(|_| ())
}

/// Learns of the others for as long as the store exists. It may wait for a standby: nobody waits for
/// this.
pub(super) async fn follow(store: Weak<Inner>) {
    loop {
        let Some(inner) = store.upgrade() else { return };
        let learned = async {
            let client = inner.pool.get().await.map_err(|error| no_connection(&error))?;
            inner.others.learn(&client, inner.process()).await
        };
        if let Err(error) = learned.await {
            tracing::debug!(%error, "what other servers have committed is not known");
        }
        drop(inner);
        tokio::time::sleep(EVERY).await;
    }
}
