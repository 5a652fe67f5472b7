//! Tests whether a commit would succeed now, with one that changes nothing, so that no request has
//! to fail to find out.

use super::connect::{Connector, Found, Use};
use super::told;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

/// How long a commit that changes nothing may take. A sync on two machines and the network between
/// them take some milliseconds.
const AT_MOST: Duration = Duration::from_secs(3);
/// Writes only to the database's log, in a transaction that must reach every disk that a commit
/// must reach.
const WRITE: &str = "SELECT pg_logical_emit_message(true, 'iptunnel-server', 'trial')";
/// Takes the table locks that every commit takes, and releases them.
const LOCK: &str = "BEGIN; SET LOCAL lock_timeout = 2000;
     LOCK TABLE code, activation, server, presence, access_token, event, process, counter IN ROW EXCLUSIVE MODE";
/// Has the database store two MiB and discard them: more than it may keep in memory, and
/// incompressible. On a full disk small commits still succeed for a while, in log files and pages
/// that already exist.
const FILL: &str = "BEGIN; SET LOCAL work_mem = 64; SET LOCAL temp_tablespaces = '';
     WITH filler AS MATERIALIZED (
         SELECT repeat(md5(n::text), 60) AS filler FROM generate_series(1, 1024) AS n)
     SELECT sum(length(filler)) FROM filler";
const BACK: &str = "ROLLBACK";

/// Connects anew, so that a trial that hangs delays nothing else.
#[derive(Default)]
pub(super) struct Trial(Option<Found>);

impl Trial {
    /// Tries a commit that changes nothing.
    ///
    /// # Errors
    /// The reason if it did not succeed within three seconds.
    pub(super) async fn commits(&mut self, way: &Arc<Connector>) -> Result<(), String> {
        let found = match self.0.take() {
            Some(found) if !found.client.is_closed() => found,
            _ => way.connect(Use::Read).await?,
        };
        let tried = commits(way, &found).await;
        if tried.is_ok() {
            self.0 = Some(found);
        }
        tried
    }

    /// Tries a commit that changes nothing. Also tests whether the tables are free of locks and
    /// whether disk space is left.
    ///
    /// # Errors
    /// The reason if a test failed.
    pub(super) async fn writes(&mut self, way: &Arc<Connector>) -> Result<(), String> {
        self.commits(way).await?;
        let Some(Found { client, line, .. }) = &self.0 else { return Ok(()) };
        let tried = async {
            tables_are_free(client).await?;
            room(client).await
        };
        tried.await.map_err(|error| format!("{}: {}", line.host, told(&error)))
    }
}

/// Tries a commit that changes nothing.
pub(super) async fn commits(way: &Connector, found: &Found) -> Result<(), String> {
    let host = &found.line.host;
    found.line.take_cancelled();
    match timeout(AT_MOST, found.client.batch_execute(WRITE)).await {
        Ok(Ok(())) if found.line.take_cancelled() => {
            Err(format!("{host}: the wait for a standby was cancelled"))
        }
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("{host}: {}", told(&error))),
        Err(_) => {
            // Otherwise it would wait as long as the standby is away, and so would the next trial.
            way.cancel(found).await;
            let seconds = AT_MOST.as_secs();
            Err(format!(
                "{host}: a commit waits for a standby, and after {seconds} s none has confirmed it"
            ))
        }
    }
}

/// Tests that no session holds a table lock that a commit would have to wait for.
pub(super) async fn tables_are_free(client: &Client) -> Result<(), Error> {
    let locked = client.batch_execute(LOCK).await;
    client.batch_execute(BACK).await?;
    locked
}

/// Tests whether disk space is left for two MiB more. Cannot tell if the role must not store that
/// much.
pub(super) async fn room(client: &Client) -> Result<(), Error> {
    let filled = client.batch_execute(FILL).await;
    client.batch_execute(BACK).await?;
    match filled {
        Err(error) if error.code() == Some(&SqlState::CONFIGURATION_LIMIT_EXCEEDED) => Ok(()),
        filled => filled,
    }
}
