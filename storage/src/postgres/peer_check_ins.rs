//! How servers on one database exchange check-ins.

use super::rows::{rows, timestamp};
use super::unreadable;
use crate::ReadError;
use deadpool_postgres::GenericClient;
use iptunnel_domain::Timestamp;
use iptunnel_domain::server::ServerId;
use std::collections::HashMap;
use std::time::SystemTime;

/// Rows of one process that are read at once.
const STEP: i64 = 100;

/// The last row that this server has read, for each process.
#[derive(Default)]
pub(super) struct PeerCheckIns(HashMap<i32, i64>);

impl PeerCheckIns {
    /// Begins at the present end: everything before is in `presence`.
    pub(super) async fn now(client: &impl GenericClient) -> Result<Self, ReadError> {
        let sql = "SELECT process, max(seq) FROM sighting GROUP BY process";
        let mut told = HashMap::new();
        for row in rows(client, sql, &[]).await? {
            told.insert(row.try_get(0).map_err(unreadable)?, row.try_get(1).map_err(unreadable)?);
        }
        Ok(Self(told))
    }

    /// Returns the new check-ins of all processes but `process`.
    pub(super) async fn news(
        &mut self,
        client: &impl GenericClient,
        process: i32,
    ) -> Result<Vec<(ServerId, Timestamp)>, ReadError> {
        let sql = "SELECT process, seq, servers, times FROM process
             LEFT JOIN unnest($1::integer[], $2::bigint[]) AS told (id, last) USING (id)
             CROSS JOIN LATERAL (SELECT * FROM sighting
                 WHERE sighting.process = process.id AND seq > coalesce(told.last, 0)
                 ORDER BY seq LIMIT $3) AS of_process
             WHERE NOT ended AND id <> $4 ORDER BY process, seq";
        let ids: Vec<i32> = self.0.keys().copied().collect();
        let last: Vec<i64> = self.0.values().copied().collect();
        let (mut news, mut told) = (Vec::new(), Vec::<(i32, i64)>::new());
        for row in rows(client, sql, &[&ids, &last, &STEP, &process]).await? {
            told.push((row.try_get(0).map_err(unreadable)?, row.try_get(1).map_err(unreadable)?));
            let servers: Vec<i64> = row.try_get(2).map_err(unreadable)?;
            let times: Vec<SystemTime> = row.try_get(3).map_err(unreadable)?;
            for (id, at) in servers.into_iter().zip(times) {
                news.push((ServerId(id.cast_unsigned()), timestamp(at, "times")?));
            }
        }
        self.0.extend(told);
        Ok(news)
    }
}

/// Deletes rows that all servers have read long ago.
pub(super) async fn forget(client: &impl GenericClient) -> Result<(), ReadError> {
    let old = "DELETE FROM sighting WHERE at NOT BETWEEN
         clock_timestamp() - interval '10 minutes' AND clock_timestamp() + interval '10 minutes'";
    rows(client, old, &[]).await.map(|_| ())
}
