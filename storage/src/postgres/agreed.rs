//! What all servers on a database must have in common, as keyed hashes, in the table `agreed`.
//!
//! For some of it the first server sets the value, and no other is accepted. For the rest each
//! server publishes its own value, in a row with the number of its start, and hears how many others
//! have another one.

use super::unreadable;
use crate::ReadError;
use iptunnel_domain::lookup::KeyedHash;
use tokio_postgres::Client;

/// Publishes a value, and removes those of servers that are gone. Nobody waits for a standby: a
/// lost row is written again.
const PUBLISH: &str = "WITH quick AS (SELECT set_config('synchronous_commit', 'off', true)),
     forgotten AS (
         DELETE FROM agreed WHERE what LIKE $1 || ' of process %'
         AND what <> $1 || ' of process ' || $2::integer
         AND NOT EXISTS (SELECT FROM process
             WHERE NOT ended AND what = $1 || ' of process ' || process.id))
     INSERT INTO agreed (what, hash) SELECT $1 || ' of process ' || $2::integer, $3 FROM quick
     WHERE NOT EXISTS (SELECT FROM agreed
         WHERE what = $1 || ' of process ' || $2::integer AND hash = $3)
     ON CONFLICT (what) DO UPDATE SET hash = excluded.hash WHERE agreed.hash <> excluded.hash";

/// Counts the other servers that published a value, and those whose value differs. A running server
/// says every ten seconds that it is there.
const COUNT: &str = "SELECT count(*), count(*) FILTER (WHERE hash <> $3)
     FROM agreed JOIN process ON what = $1 || ' of process ' || process.id
     WHERE NOT ended AND seen_at > clock_timestamp() - interval '30 seconds' AND process.id <> $2";

/// How many other servers have published a value, and how many of them have another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// All that have published one.
    pub all: u64,
    /// Those that have another one.
    pub differ: u64,
}

/// Returns the hash that was set for `what`.
pub(super) async fn find(client: &Client, what: &str) -> Result<Option<KeyedHash>, ReadError> {
    let found = "SELECT hash FROM agreed WHERE what = $1";
    let Some(row) = client.query_opt(found, &[&what]).await.map_err(unreadable)? else {
        return Ok(None);
    };
    let hash: &[u8] = row.try_get(0).map_err(unreadable)?;
    let hash = hash.try_into().map_err(|_| ReadError("a hash has a wrong length".into()))?;
    Ok(Some(KeyedHash(hash)))
}

/// Returns whether `hash` is the one for `what`; sets it if there is none.
pub(super) async fn agree(client: &Client, what: &str, hash: KeyedHash) -> Result<bool, ReadError> {
    let first = "INSERT INTO agreed (what, hash) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    client.execute(first, &[&what, &hash.0.as_slice()]).await.map_err(unreadable)?;
    Ok(find(client, what).await?.is_some_and(|found| found.ct_eq(&hash)))
}

/// Publishes what `process` has for `what`.
pub(super) async fn publish(
    client: &Client,
    what: &str,
    process: i32,
    hash: KeyedHash,
) -> Result<(), ReadError> {
    let published = client.execute(PUBLISH, &[&what, &process, &hash.0.as_slice()]).await;
    published.map(drop).map_err(unreadable)
}

/// Counts the servers beside `process` (0: all) by what they have published for `what`.
pub(super) async fn others(
    client: &Client,
    what: &str,
    process: i32,
    hash: KeyedHash,
) -> Result<Others, ReadError> {
    let row = client.query_one(COUNT, &[&what, &process, &hash.0.as_slice()]).await;
    let row = row.map_err(unreadable)?;
    let count = |column| -> Result<u64, ReadError> {
        Ok(row.try_get::<_, i64>(column).map_err(unreadable)?.cast_unsigned())
    };
    Ok(Others { all: count(0)?, differ: count(1)? })
}
