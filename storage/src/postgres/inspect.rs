//! A look at a database that leaves it as it is.

use super::examine::{examine, of_store, store_clock};
use super::{connect, no_connection, unreadable};
use crate::{Finding, OpenError, ReadError};
use deadpool_postgres::Client;
use tokio::runtime::{Builder, Runtime};

/// A database that is looked at: no store is opened in it, and its schema is left alone.
pub struct Inspection {
    // Gone before the runtime that serves it.
    client: Client,
    runtime: Runtime,
}

impl Inspection {
    /// Of the database at `url`.
    ///
    /// # Errors
    /// Where the URL is wrong, or the database cannot be reached or refuses.
    pub fn of(url: &str) -> Result<Self, OpenError> {
        let pool = connect::pool(url)?;
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| OpenError::Engine(error.to_string()))?;
        let client = runtime.block_on(pool.get());
        let client = client.map_err(|error| OpenError::Engine(no_connection(&error).0))?;
        Ok(Self { client, runtime })
    }

    /// Whether the database keeps what a store promises.
    ///
    /// # Errors
    /// Where it cannot be asked.
    pub fn examine(&self) -> Result<Vec<Finding>, ReadError> {
        self.runtime.block_on(async {
            let mut findings = examine(&self.client).await?;
            findings.extend(of_store(&self.client).await.map_err(unreadable)?);
            Ok(findings)
        })
    }

    /// What its clock says, in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// Where it cannot be asked.
    pub fn clock(&self) -> Result<u64, ReadError> {
        self.runtime.block_on(store_clock(&self.client))
    }
}
