//! The states of webhooks, and the lease of the one server that delivers.

use super::{PostgresStore, unreadable};
use crate::{ReadError, Shared, WebhookStates};

/// Takes or keeps the lease. By the database's clock, so that servers need not agree on the time.
const HOLD: &str = "INSERT INTO webhook_lease AS lease (holder, until)
     VALUES ($1, clock_timestamp() + $2 * interval '1 second')
     ON CONFLICT (one) DO UPDATE SET holder = excluded.holder, until = excluded.until
     WHERE lease.holder = $1 OR lease.until < clock_timestamp()";

const RELEASE: &str = "DELETE FROM webhook_lease WHERE holder = $1";

/// Writes rows while the lease is held. The lock on it keeps another server from taking it meanwhile.
const KEEP: &str = "WITH held AS (
         SELECT FROM webhook_lease WHERE holder = $1 AND until > clock_timestamp() FOR SHARE)
     INSERT INTO webhook (name, state)
     SELECT name, state FROM unnest($2::text[], $3::bytea[]) AS new (name, state)
     WHERE EXISTS (SELECT FROM held)
     ON CONFLICT (name) DO UPDATE SET state = excluded.state";

impl WebhookStates for PostgresStore {
    fn hold(&self, seconds: u32) -> Result<bool, ReadError> {
        let (holder, seconds) = (self.process().cast_signed(), f64::from(seconds));
        self.read(move |client| async move {
            let taken = client.execute(HOLD, &[&holder, &seconds]).await.map_err(unreadable)?;
            Ok(taken > 0)
        })
    }

    fn release(&self) -> Result<(), ReadError> {
        let holder = self.process().cast_signed();
        self.read(move |client| async move {
            client.execute(RELEASE, &[&holder]).await.map(drop).map_err(unreadable)
        })
    }

    fn states(&self) -> Result<Vec<(String, Vec<u8>)>, ReadError> {
        let sql = "SELECT name, state FROM webhook ORDER BY name";
        self.rows(sql, Vec::new(), |row| {
            Ok((row.try_get(0).map_err(unreadable)?, row.try_get(1).map_err(unreadable)?))
        })
    }

    fn keep(&self, states: &[(String, Vec<u8>)]) -> Result<bool, ReadError> {
        let holder = self.process().cast_signed();
        let (names, rows): (Vec<String>, Vec<Vec<u8>>) = states.iter().cloned().unzip();
        self.read(move |client| async move {
            let all = names.len() as u64;
            let kept = client.execute(KEEP, &[&holder, &names, &rows]).await.map_err(unreadable)?;
            Ok(kept == all)
        })
    }
}
