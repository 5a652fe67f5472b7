//! Whether a commit would come to be now. It is tried with one that changes nothing, so that nobody
//! has to lose a request to find out.

use super::connect::{Connector, Found, Use};
use super::told;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

/// How long a commit that changes nothing may take: a sync of two machines and the way between them
/// take some milliseconds.
const AT_MOST: Duration = Duration::from_secs(3);
/// Writes to the database's log and nowhere else, in a transaction that has to be on every disk that
/// a commit has to be on.
const WRITE: &str = "SELECT pg_logical_emit_message(true, 'iptunnel-server', 'trial')";
/// Asks for what every commit asks of the tables, and gives it back.
const LOCK: &str = "BEGIN; SET LOCAL lock_timeout = 2000;
     LOCK TABLE code, activation, server, presence, event, process, counter IN ROW EXCLUSIVE MODE";
/// Has the database put two MiB aside where it keeps tables, and forget them: more than it may keep in
/// memory, and nothing of it is compressed. Small commits go on for a while on a full disk, in log
/// files and pages that are there already.
const FILL: &str = "BEGIN; SET LOCAL work_mem = 64; SET LOCAL temp_tablespaces = '';
     WITH filler AS MATERIALIZED (
         SELECT repeat(md5(n::text), 60) AS filler FROM generate_series(1, 1024) AS n)
     SELECT sum(length(filler)) FROM filler";
const BACK: &str = "ROLLBACK";

/// A connection of its own: a trial that hangs holds up nothing.
#[derive(Default)]
pub(super) struct Trial(Option<Found>);

impl Trial {
    /// Tries a commit that changes nothing.
    ///
    /// # Errors
    /// Why it did not come to be within three seconds.
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

    /// The same, and whether what commits write to is free and there is room for more.
    ///
    /// # Errors
    /// Why not.
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
            // Else it would wait for as long as the standby is away, and the next one beside it.
            way.cancel(found).await;
            let seconds = AT_MOST.as_secs();
            Err(format!(
                "{host}: a commit waits for a standby, and after {seconds} s none has confirmed it"
            ))
        }
    }
}

/// Whether nobody holds a table in a way that a commit would have to wait for.
pub(super) async fn tables_are_free(client: &Client) -> Result<(), Error> {
    let locked = client.batch_execute(LOCK).await;
    client.batch_execute(BACK).await?;
    locked
}

/// Whether there is room for two MiB more. Where the database may not put as much aside it cannot tell.
pub(super) async fn room(client: &Client) -> Result<(), Error> {
    let filled = client.batch_execute(FILL).await;
    client.batch_execute(BACK).await?;
    match filled {
        Err(error) if error.code() == Some(&SqlState::CONFIGURATION_LIMIT_EXCEEDED) => Ok(()),
        filled => filled,
    }
}
