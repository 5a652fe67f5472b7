//! Counts each request once, even if the answer to a statement is lost.
//!
//! Each server has a row of its own. Every statement that counts raises the number in it and
//! records what it has counted. After a broken connection the row tells whether the statement was
//! committed. If it was not, raising the number ensures that it never will be, even if it is still
//! on its way.

use super::charge::{CHARGE, Charge, counted};
use super::quick::{Quick, query};
use super::rows::{rows, signed, time};
use super::statement::{Value, each, value};
use super::{Inner, unreadable};
use crate::{Charged, Counted, ReadError};
use deadpool_postgres::GenericClient;
use iptunnel_domain::Timestamp;
use tokio_postgres::error::Severity;
use tokio_postgres::types::Type;
use tokio_postgres::{Error, Row};

/// Takes back counts, in the order in which [`CHARGE`] counts and in the same way: newly inserted
/// rows are locked one after the other. `before` carries how many are to be taken back. The row of
/// this server is written last, since it joins the rows that were given back, so the turn is taken
/// before it ends.
const GIVE_BACK: &str = "WITH turn AS (
         SELECT FROM charge WHERE id = $1::text::uuid AND number = $2 FOR UPDATE),
     given AS (
         INSERT INTO counter AS c (key, window_end, policy, before, used, allowed)
         SELECT key, window_end, policy, times, 0, allowed FROM counter JOIN (
             SELECT key, window_end, count(*)::integer AS times
             FROM unnest($3::bigint[], $4::timestamptz[]) AS back (key, window_end)
             GROUP BY key, window_end) AS back USING (key, window_end)
         WHERE EXISTS (SELECT FROM turn) ORDER BY key, window_end
         ON CONFLICT (key, window_end) DO UPDATE SET used = greatest(c.used - excluded.before, 0)
         RETURNING key)
     UPDATE charge SET number = number + 1, at = clock_timestamp(),
         keys = NULL, ends = NULL, before = NULL, used = NULL
     FROM (SELECT count(*) FROM given) AS given
     WHERE id = $1::text::uuid AND number = $2
     RETURNING charge.keys, charge.ends, charge.before, charge.used";

/// Reads the row of this server. If the statement after number $2 was not committed, also makes
/// sure that it never will be. Waits for it if it is still running.
const FENCE: &str = "WITH found AS (
         SELECT id, number FROM charge WHERE id = $1::text::uuid FOR UPDATE)
     UPDATE charge SET at = clock_timestamp(),
         number = CASE WHEN found.number = $2 THEN $2 + 2 ELSE found.number END
     FROM found WHERE charge.id = found.id
     RETURNING found.number AS found, charge.number, keys, ends, before, used";

/// The connection that counts, and what it has counted.
#[derive(Default)]
pub(super) struct Counting {
    quick: Quick,
    /// `None` until it is first needed.
    row: Option<Place>,
    /// Charges that must be given back. There are no more than were charged: while the database is
    /// away none is.
    owed: Vec<(u64, Timestamp)>,
}

/// This server's row.
struct Place {
    id: String,
    /// The number of the last statement that counted.
    number: i64,
    /// Set if the outcome of the next statement is unknown: how many of the owed charges it gives
    /// back.
    in_doubt: Option<usize>,
}

impl Counting {
    /// Counts requests.
    pub(super) async fn charge(
        &mut self,
        inner: &Inner,
        requests: Vec<Vec<Counted>>,
    ) -> Result<Vec<Charged>, ReadError> {
        self.settle(inner).await?;
        let mut charge = Charge::of(requests);
        let row = self.once(inner, CHARGE, 0, charge.values().into()).await?;
        charge.counted(&row)?;
        let (charged, too_much) = charge.outcome();
        self.owed.extend(too_much);
        if let Err(error) = self.settle(inner).await {
            tracing::warn!(%error, "excess counts could not be given back yet; retrying later");
        }
        Ok(charged)
    }

    /// Takes back counts. After an error they are owed, and taken back before anything else is
    /// counted.
    pub(super) async fn give_back(
        &mut self,
        inner: &Inner,
        counters: Vec<(u64, Timestamp)>,
    ) -> Result<(), ReadError> {
        self.owed.extend(counters);
        self.settle(inner).await
    }

    /// Finds out the outcome of a statement in doubt, and gives back what is owed, including counts
    /// that no caller learned of.
    pub(super) async fn settle(&mut self, inner: &Inner) -> Result<(), ReadError> {
        if let Some(row) = self.look(inner).await? {
            for one in counted(&row)? {
                self.owed.extend(one.charges());
            }
        }
        let owed = self.owed.len();
        if owed > 0 {
            let values = vec![
                each(Type::INT8_ARRAY, &self.owed, |(key, _)| signed(*key)),
                each(Type::TIMESTAMPTZ_ARRAY, &self.owed, |(_, end)| time(*end)),
            ];
            self.once(inner, GIVE_BACK, owed, values).await?;
        }
        Ok(())
    }

    /// Runs a statement that counts, and gives back `given` of those owed. If the connection breaks
    /// before it is committed, runs it over another. Returns the row of this server after it.
    async fn once(
        &mut self,
        inner: &Inner,
        sql: &str,
        given: usize,
        values: Vec<Value<'static>>,
    ) -> Result<Row, ReadError> {
        let mut all = vec![value(Type::TEXT, String::new()), value(Type::INT8, 0i64)];
        all.extend(values);
        let mut last_try = false;
        loop {
            let client = self.quick.client(inner).await?;
            let place = match &mut self.row {
                Some(place) => place,
                none => none.insert(Place::new(client).await?),
            };
            if let [id, number, ..] = all.as_mut_slice() {
                *id = value(Type::TEXT, place.id.clone());
                *number = value(Type::INT8, place.number);
            }
            let error = match query(client, sql, &all).await.map(|mut rows| rows.pop()) {
                Ok(Some(row)) => {
                    place.number += 1;
                    self.is_given_back(given);
                    return Ok(row);
                }
                Ok(None) => {
                    self.row = None;
                    ReadError("the database has no counting row for this server".into())
                }
                Err(error) if is_rolled_back(&error) => return Err(unreadable(error)),
                Err(error) => {
                    place.in_doubt = Some(given);
                    let error = unreadable(error);
                    tracing::debug!(%error, "the outcome of a count is unknown; reading it back");
                    if let Some(row) = self.look(inner).await? {
                        return Ok(row);
                    }
                    error
                }
            };
            if last_try {
                return Err(error);
            }
            last_try = true;
        }
    }

    /// Finds out the outcome of the statement in doubt, and fixes it. Returns the row of this
    /// server after it; `None` if there is no doubt or the statement was never committed.
    async fn look(&mut self, inner: &Inner) -> Result<Option<Row>, ReadError> {
        let Some(place) = &mut self.row else { return Ok(None) };
        let Some(given) = place.in_doubt else { return Ok(None) };
        let client = self.quick.client(inner).await?;
        let asked = [value(Type::TEXT, place.id.clone()), value(Type::INT8, place.number)];
        let found = query(client, FENCE, &asked).await.map_err(unreadable)?.pop();
        let Some(row) = found else {
            // This is another database, or an earlier state of it, which does not have the
            // statement.
            self.row = None;
            return Ok(None);
        };
        let found: i64 = row.try_get("found").map_err(unreadable)?;
        let happened = found == place.number + 1;
        place.number = row.try_get("number").map_err(unreadable)?;
        place.in_doubt = None;
        if happened {
            self.is_given_back(given);
        }
        Ok(happened.then_some(row))
    }

    fn is_given_back(&mut self, count: usize) {
        self.owed.drain(..count.min(self.owed.len()));
    }
}

impl Place {
    async fn new(client: &tokio_postgres::Client) -> Result<Self, ReadError> {
        let new = "INSERT INTO charge DEFAULT VALUES RETURNING id::text, number";
        let row = client.query_one(new, &[]).await.map_err(unreadable)?;
        Ok(Self {
            id: row.try_get("id").map_err(unreadable)?,
            number: row.try_get("number").map_err(unreadable)?,
            in_doubt: None,
        })
    }
}

/// Returns whether the database reports that a statement had no effect. A message that ends a
/// connection may arrive after the end of the statement.
fn is_rolled_back(error: &Error) -> bool {
    error.as_db_error().is_some_and(|said| said.parsed_severity() == Some(Severity::Error))
}

/// Deletes the rows of servers that have counted nothing for a day. A server that comes back gets a
/// new one.
pub(super) async fn forget(client: &impl GenericClient) -> Result<(), ReadError> {
    let old = "DELETE FROM charge WHERE at NOT BETWEEN
         clock_timestamp() - interval '1 day' AND clock_timestamp() + interval '1 day'";
    rows(client, old, &[]).await.map(|_| ())
}
