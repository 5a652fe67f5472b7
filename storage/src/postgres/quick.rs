//! A connection for data that may be lost with the database's last second: limits and check-ins.

use super::connect::Planned;
use super::rows::{signed, time};
use super::statement::{Value, each, reference, types, value};
use super::{Inner, no_connection, unreadable};
use crate::{CheckInOf, ReadError};
use deadpool_postgres::{ClientWrapper, Object};
use std::collections::HashSet;
use tokio_postgres::types::Type;
use tokio_postgres::{Error, Row};

/// Writes when servers were last seen, except for rows that another server is writing: it returns
/// those. The other servers receive all of them. Joins go through an index, because the planner
/// assumes that arrays are short and would join two of them with nested loops.
const FLUSH: &str = "WITH seen AS (
         SELECT server, max(at) AS at
         FROM unnest($1::integer[], $2::timestamptz[]) AS seen (server, at) GROUP BY server),
     free AS (
         SELECT server, at FROM presence JOIN seen USING (server)
         ORDER BY server FOR UPDATE OF presence SKIP LOCKED),
     told AS (
         INSERT INTO sighting (process, seq, servers, times) VALUES ($3, $4, $5, $2)),
     written AS (
         UPDATE presence SET last_seen = free.at FROM free
         WHERE presence.server = free.server
             AND is_news(presence.last_seen, free.at, (SELECT max(at) FROM seen)))
     SELECT server FROM presence JOIN (
         SELECT server FROM seen WHERE server NOT IN (SELECT server FROM free)) AS held
         USING (server)";

/// The connection. It never returns to the pool: its weaker durability must not apply to other
/// work.
#[derive(Default)]
pub(super) struct Quick {
    client: Option<ClientWrapper>,
    planned: Planned,
    /// How often check-ins were sent to the other servers.
    told: i64,
}

impl Quick {
    pub(super) async fn client(&mut self, inner: &Inner) -> Result<&ClientWrapper, ReadError> {
        let client = match self.client.take() {
            Some(client) if !client.is_closed() => client,
            _ => {
                let client = inner.pool.get().await.map_err(|error| no_connection(&error))?;
                let client = Object::take(client);
                let quick = "SET synchronous_commit = off";
                client.batch_execute(quick).await.map_err(unreadable)?;
                client
            }
        };
        self.planned.anew(&client).await.map_err(unreadable)?;
        Ok(self.client.insert(client))
    }

    /// Writes when servers were last seen. Returns the rest, which another server is writing.
    pub(super) async fn flush(
        &mut self,
        inner: &Inner,
        mut seen: Vec<CheckInOf>,
    ) -> Result<Vec<CheckInOf>, ReadError> {
        seen.sort_unstable();
        self.told += 1;
        let values = [
            each(Type::INT4_ARRAY, &seen, |one| one.seen.server.0.cast_signed()),
            each(Type::TIMESTAMPTZ_ARRAY, &seen, |one| time(one.seen.at)),
            value(Type::INT4, inner.process()),
            value(Type::INT8, self.told),
            each(Type::INT8_ARRAY, &seen, |one| signed(one.id.0)),
        ];
        let client = self.client(inner).await?;
        let rows = query(client, FLUSH, &values).await.map_err(unreadable)?;
        let held = rows.iter().map(|row| row.try_get::<_, i32>(0)).collect::<Result<_, _>>();
        let held: HashSet<i32> = held.map_err(unreadable)?;
        seen.retain(|one| held.contains(&one.seen.server.0.cast_signed()));
        Ok(seen)
    }
}

pub(super) async fn query(
    client: &ClientWrapper,
    sql: &str,
    values: &[Value<'_>],
) -> Result<Vec<Row>, Error> {
    let statement = client.prepare_typed_cached(sql, &types(values)).await?;
    let values: Vec<_> = values.iter().map(reference).collect();
    client.query(&statement, &values).await
}
