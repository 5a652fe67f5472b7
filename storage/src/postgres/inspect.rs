//! Inspects a database without changing it.

use super::connect::{Connector, Found, Use, primaries_of};
use super::examine::{
    examine, examine_backup, of_hosts, of_primaries, of_store, of_trials, store_clock,
};
use super::{Others, agreed, migrate, unreadable};
use crate::{Finding, Grade, OpenError, ReadError};
use iptunnel_domain::lookup::KeyedHash;
use std::sync::Arc;
use tokio::runtime::{Builder, Runtime};

/// The number of no start of a server: they begin with 1.
const NO_PROCESS: i32 = 0;

/// A database under inspection: no store is opened in it, and its schema is not changed.
pub struct Inspection {
    // Dropped before the runtime that serves it.
    found: Option<Found>,
    way: Arc<Connector>,
    of_hosts: Vec<Finding>,
    runtime: Runtime,
}

impl Inspection {
    /// Connects to the database at `url`. Timeline `newest` has been seen before; 0 if none was.
    ///
    /// # Errors
    /// If the URL is wrong. An unreachable host is no error but a finding.
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

    /// Returns findings on each host, and on whether the database keeps the promises of a store.
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
                why: "the examination could not continue",
                mend: "resolve this error, and examine again".into(),
            });
        }
        findings
    }

    /// Returns the host of the primary, or what stands for it, and findings on whether a base backup of it can be taken.
    pub fn examine_backup(&self) -> (String, Vec<Finding>) {
        let mut findings = self.of_hosts.clone();
        let Some(found) = &self.found else { return ("HOST".into(), findings) };
        match self.runtime.block_on(examine_backup(&found.client)) {
            Ok(of_backup) => findings.extend(of_backup),
            Err(ReadError(why)) => findings.push(Finding {
                grade: Grade::Stops,
                what: format!("{}: {why}", found.line.host),
                why: "nobody can tell whether a base backup can be taken",
                mend: "resolve this error, and repeat the command".into(),
            }),
        }
        (found.line.host.clone(), findings)
    }

    fn found(&self) -> Result<&Found, ReadError> {
        self.found.as_ref().ok_or_else(|| ReadError("no host is a primary".into()))
    }

    /// Returns whether a store was made in the database.
    ///
    /// # Errors
    /// If the primary cannot be asked.
    pub fn has_store(&self) -> Result<bool, ReadError> {
        let step = self.runtime.block_on(migrate::step_of(&self.found()?.client));
        Ok(step.map_err(unreadable)?.is_some())
    }

    /// Returns the hash that every server must have for `what`; `None` if none has set one.
    ///
    /// # Errors
    /// If the primary cannot be asked, or has no store.
    pub fn agreed(&self, what: &str) -> Result<Option<KeyedHash>, ReadError> {
        let client = &self.found()?.client;
        self.runtime.block_on(agreed::find(client, what))
    }

    /// Counts the running servers that have published something for `what`, and those of them that
    /// have something else than `hash`.
    ///
    /// # Errors
    /// If the primary cannot be asked, or has no store.
    pub fn others(&self, what: &str, hash: KeyedHash) -> Result<Others, ReadError> {
        let client = &self.found()?.client;
        self.runtime.block_on(agreed::others(client, what, NO_PROCESS, hash))
    }

    /// Returns the time of the primary's clock, in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// If the primary cannot be asked.
    pub fn clock(&self) -> Result<u64, ReadError> {
        self.runtime.block_on(store_clock(&self.found()?.client))
    }
}
