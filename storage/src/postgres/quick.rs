//! A connection for what may be lost with the database's last second: limits and check-ins.

use super::charge::{CHARGE, Charge};
use super::connect::Planned;
use super::rows::{signed, time};
use super::statement::{Value, each, reference, types, value};
use super::{Inner, no_connection, unreadable};
use crate::{Charged, Counted, ReadError, Sighting};
use deadpool_postgres::{ClientWrapper, Object};
use iptunnel_domain::Timestamp;
use std::collections::HashSet;
use tokio_postgres::types::Type;
use tokio_postgres::{Error, Row};

/// Takes back what was counted, in the order in which [`CHARGE`] counts, and in its way: rows that are
/// inserted anew are taken one after the other. How many are to be taken back travels in `before`.
const GIVE_BACK: &str = "INSERT INTO counter AS c (key, window_end, policy, before, used, allowed)
     SELECT key, window_end, policy, times, 0, allowed FROM counter JOIN (
         SELECT key, window_end, count(*)::integer AS times
         FROM unnest($1::bigint[], $2::timestamptz[]) AS back (key, window_end)
         GROUP BY key, window_end) AS back USING (key, window_end)
     ORDER BY key, window_end
     ON CONFLICT (key, window_end) DO UPDATE SET used = greatest(c.used - excluded.before, 0)";

/// Says when servers were last seen, except of rows that another server has in hand: those it
/// answers with. The other servers hear of all of them. What is joined is joined by an index: the
/// database takes arrays for short, and two of them for a loop in a loop.
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
         WHERE presence.server = free.server AND presence.last_seen < free.at)
     SELECT server FROM presence JOIN (
         SELECT server FROM seen WHERE server NOT IN (SELECT server FROM free)) AS held
         USING (server)";

/// The connection. It never goes back among the others: what it is told about durability must not
/// be true of theirs.
#[derive(Default)]
pub(super) struct Quick {
    client: Option<ClientWrapper>,
    planned: Planned,
    /// How often the other servers were told of check-ins.
    told: i64,
}

impl Quick {
    async fn client(&mut self, inner: &Inner) -> Result<&ClientWrapper, ReadError> {
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

    /// Counts requests.
    pub(super) async fn charge(
        &mut self,
        inner: &Inner,
        requests: Vec<Vec<Counted>>,
    ) -> Result<Vec<Charged>, ReadError> {
        let client = self.client(inner).await?;
        let mut charge = Charge::of(requests);
        for row in query(client, CHARGE, &charge.values()).await.map_err(unreadable)? {
            charge.counted(&row).map_err(unreadable)?;
        }
        let (charged, too_much) = charge.outcome();
        if !too_much.is_empty()
            && let Err(error) = self.give_back(inner, too_much).await
        {
            tracing::warn!(%error, "what was counted too much stays so until its window ends");
        }
        Ok(charged)
    }

    pub(super) async fn give_back(
        &mut self,
        inner: &Inner,
        counters: Vec<(u64, Timestamp)>,
    ) -> Result<(), ReadError> {
        let values = [
            each(Type::INT8_ARRAY, &counters, |(key, _)| signed(*key)),
            each(Type::TIMESTAMPTZ_ARRAY, &counters, |(_, end)| time(*end)),
        ];
        let client = self.client(inner).await?;
        query(client, GIVE_BACK, &values).await.map_err(unreadable).map(|_| ())
    }

    /// Writes when servers were last seen: what is left, since another server has it in hand.
    pub(super) async fn flush(
        &mut self,
        inner: &Inner,
        mut seen: Vec<Sighting>,
    ) -> Result<Vec<Sighting>, ReadError> {
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

async fn query(client: &ClientWrapper, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, Error> {
    let statement = client.prepare_typed_cached(sql, &types(values)).await?;
    let values: Vec<_> = values.iter().map(reference).collect();
    client.query(&statement, &values).await
}
