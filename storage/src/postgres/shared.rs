//! Operations that only servers with a shared store need: common limits, records by their public
//! names, and one clock.

use super::rows::time;
use super::{PostgresStore, agreed, examine, gone, policy, unreadable, wait};
use crate::{Charged, CheckInOf, Counted, Counter, Finding, ReadError, Shared};
use iptunnel_domain::Timestamp;
use iptunnel_domain::access::TokenNumber;
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::server::{Server, ServerId};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio_postgres::Row;

/// How many counters of ended windows are deleted at once.
const FORGET: u64 = 10_000;

pub(super) fn counter(row: &Row) -> Result<Counter, ReadError> {
    let name: &str = row.try_get("policy").map_err(unreadable)?;
    let ends: SystemTime = row.try_get("window_end").map_err(unreadable)?;
    let used: i32 = row.try_get("used").map_err(unreadable)?;
    Ok(Counter {
        key: row.try_get::<_, i64>("key").map_err(unreadable)?.cast_unsigned(),
        policy: policy(name).ok_or_else(|| ReadError(format!("unknown limit {name}")))?,
        used: used.cast_unsigned(),
        window_end: Timestamp(ends.duration_since(UNIX_EPOCH).map_or(0, |at| at.as_secs())),
    })
}

impl PostgresStore {
    /// Returns the servers with these keys, in the order of `keys`.
    fn servers_by(
        &self,
        condition: &str,
        keys: &[ServerId],
        key_of: fn(&Server) -> ServerId,
    ) -> Result<Vec<Option<Server>>, ReadError> {
        let bytes: Vec<Vec<u8>> = keys.iter().map(|id| id.0.to_be_bytes().to_vec()).collect();
        let found = self.servers(condition, vec![Box::new(bytes)])?;
        let found: HashMap<ServerId, Server> =
            found.into_iter().map(|server| (key_of(&server), server)).collect();
        Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
    }
}

impl Shared for PostgresStore {
    fn process(&self) -> u32 {
        self.inner.process().cast_unsigned()
    }

    fn servers_of(&self, ids: &[ServerId]) -> Result<Vec<Option<Server>>, ReadError> {
        self.servers_by("id = ANY ($1)", ids, |server| server.id)
    }

    fn servers_at(&self, addresses: &[ServerId]) -> Result<Vec<Option<Server>>, ReadError> {
        // The expression of the index.
        let are_at = "coalesce(address_id, id) = ANY ($1)";
        self.servers_by(are_at, addresses, |server| server.address_id)
    }

    fn enrolled(&self, by: TokenNumber) -> Result<u64, ReadError> {
        let sql = "SELECT count(*) FROM server
             WHERE access_token = $1 AND access_token IS NOT NULL AND NOT revoked AND NOT deleted";
        let count = |row: &Row| row.try_get::<_, i64>(0).map_err(unreadable);
        let counts = self.rows(sql, vec![Box::new(by.0.cast_signed())], count)?;
        Ok(counts.first().map_or(0, |count| count.cast_unsigned()))
    }

    fn check_in(&self, seen: Vec<CheckInOf>) -> Result<Vec<CheckInOf>, ReadError> {
        let inner = Arc::clone(&self.inner);
        let written =
            wait(
                &self.handle,
                async move { inner.flushing.lock().await.flush(&inner, seen).await },
            );
        written.unwrap_or_else(|| Err(gone()))
    }

    fn seen_elsewhere(&self) -> Result<Vec<(ServerId, Timestamp)>, ReadError> {
        let inner = Arc::clone(&self.inner);
        self.read(|client| async move {
            let process = inner.process();
            inner.sightings.lock().await.news(&client, process).await
        })
    }

    fn charge(&self, charges: Vec<Vec<Counted>>) -> Result<Vec<Charged>, ReadError> {
        let inner = Arc::clone(&self.inner);
        let charged =
            wait(
                &self.handle,
                async move { inner.counting.lock().await.charge(&inner, charges).await },
            );
        charged.unwrap_or_else(|| Err(gone()))
    }

    fn give_back(&self, counters: Vec<(u64, Timestamp)>) -> Result<(), ReadError> {
        let inner = Arc::clone(&self.inner);
        let given = wait(&self.handle, async move {
            inner.counting.lock().await.give_back(&inner, counters).await
        });
        given.unwrap_or_else(|| Err(gone()))
    }

    fn clock(&self) -> Result<u64, ReadError> {
        self.read(|client| async move { examine::store_clock(&client).await })
    }

    fn examine(&self) -> Result<Vec<Finding>, ReadError> {
        let way = Arc::clone(&self.inner.way);
        self.read(|client| async move {
            // Another host may have become a primary even if no connection has broken.
            way.look_around().await;
            examine::examine(&client).await
        })
    }

    fn takes_commits(&self) -> Result<(), ReadError> {
        let inner = Arc::clone(&self.inner);
        let tried =
            wait(&self.handle, async move { inner.trial.lock().await.writes(&inner.way).await });
        tried.unwrap_or_else(|| Err(gone().0)).map_err(ReadError)
    }

    fn primaries(&self) -> u32 {
        self.inner.way.primaries()
    }

    fn publish(&self, what: &str, hash: KeyedHash) -> Result<u64, ReadError> {
        let (what, process) = (what.to_owned(), self.inner.process());
        self.read(move |client| async move {
            agreed::publish(&client, &what, process, hash).await?;
            Ok(agreed::others(&client, &what, process, hash).await?.differ)
        })
    }

    fn forget_counters(&self, now: Timestamp, most: u32) -> Result<(), ReadError> {
        self.read(move |client| async move {
            // The database's clock must agree: a server whose clock is wrong, or whose request was long
            // on its way, would delete what the others count by now.
            let sql = format!(
                "DELETE FROM counter WHERE (key, window_end) IN (
                     SELECT key, window_end FROM counter
                     WHERE window_end <= LEAST($1, clock_timestamp())
                         OR window_end > GREATEST($1, clock_timestamp()) + interval '25 hours'
                     LIMIT {FORGET}
                     FOR UPDATE SKIP LOCKED)"
            );
            let some = client.prepare_cached(&sql).await.map_err(unreadable)?;
            while client.execute(&some, &[&time(now)]).await.map_err(unreadable)? == FORGET {}
            let count = client.query_one("SELECT count(*) FROM counter", &[]).await;
            let count: i64 = count.map_err(unreadable)?.try_get(0).map_err(unreadable)?;
            let too_many = count - i64::from(most);
            if too_many > 0 {
                let least = "DELETE FROM counter WHERE (key, window_end) IN (
                     SELECT key, window_end FROM counter WHERE used < allowed
                     ORDER BY used LIMIT $1 FOR UPDATE SKIP LOCKED)";
                client.execute(least, &[&too_many]).await.map_err(unreadable)?;
            }
            Ok(())
        })
    }
}
