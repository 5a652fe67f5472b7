//! A look at a database that leaves it as it is.

use super::connect::{Connector, Found, Use, primaries_of};
use super::examine::{examine, of_hosts, of_primaries, of_store, of_trials, store_clock};
use super::unreadable;
use crate::{Finding, Grade, OpenError, ReadError};
use std::sync::Arc;
use tokio::runtime::{Builder, Runtime};

/// A database that is looked at: no store is opened in it, and its schema is left alone.
pub struct Inspection {
    // Gone before the runtime that serves it.
    found: Option<Found>,
    way: Arc<Connector>,
    of_hosts: Vec<Finding>,
    runtime: Runtime,
}

impl Inspection {
    /// Of the database at `url`, of which timeline `newest` has been seen before; 0 where none was.
    ///
    /// # Errors
    /// Where the URL is wrong. What cannot be reached is a finding.
    pub fn of(url: &str, newest: u32) -> Result<Self, OpenError> {
        let way = Connector::to(url)?;
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| OpenError::Engine(error.to_string()))?;
        let seen = runtime.block_on(way.survey(Use::Read, None));
        let mut of_hosts = of_hosts(&seen, newest);
        let primaries = primaries_of(seen);
        of_hosts.extend(of_primaries(&primaries));
        let found = primaries.into_iter().next().filter(|found| found.line.timeline() >= newest);
        Ok(Self { found, way, of_hosts, runtime })
    }

    /// What each host is, and whether the database keeps what a store promises.
    pub fn examine(&self) -> Vec<Finding> {
        let mut findings = self.of_hosts.clone();
        let Some(found) = &self.found else { return findings };
        let asked = self.runtime.block_on(async {
            findings.extend(examine(&found.client).await?);
            findings.extend(of_store(&found.client).await.map_err(unreadable)?);
            findings.extend(of_trials(&self.way, found).await.map_err(unreadable)?);
            Ok(())
        });
        if let Err(ReadError(why)) = asked {
            findings.push(Finding {
                grade: Grade::Stops,
                what: format!("{}: {why}", found.line.host),
                why: "it could not be asked for more",
                mend: "see to what it says".into(),
            });
        }
        findings
    }

    /// What the clock of the primary says, in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// Where it cannot be asked.
    pub fn clock(&self) -> Result<u64, ReadError> {
        let Some(found) = &self.found else { return Err(ReadError("there is no primary".into())) };
        self.runtime.block_on(store_clock(&found.client))
    }
}
