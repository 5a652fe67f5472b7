//! Pending changes: those in the journal that the engine does not have yet.

use crate::embedded::engine::Row;
use crate::{Change, Write};
use iptunnel_domain::activation::{Activation, ActivationId};
use iptunnel_domain::code::{Code, CodeHash};
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// The guard of a write: the version of the row it expects, and the version it leaves.
pub(super) struct Guard {
    pub(super) row: Row,
    /// The version that must be stored; `None`: no such row.
    pub(super) expects: Option<u32>,
    /// The version afterwards.
    pub(super) becomes: Option<u32>,
}

/// Returns the guard of a write, if it has one.
pub(super) fn guards(write: &Write) -> Option<Guard> {
    // Nothing is ever stored as version 0, so version 0 follows on nothing.
    let change = |row, version: u32| Guard {
        row,
        expects: (version != 1).then(|| version.saturating_sub(1)),
        becomes: Some(version),
    };
    let forget = |row, version| Guard { row, expects: Some(version), becomes: None };
    Some(match write {
        Write::Code(code) => change(Row::Code(code.number.0), code.version),
        Write::Activation(activation) => {
            change(Row::Activation(activation.at.number.0), activation.version)
        }
        Write::Server(server) => change(Row::Server(server.number.0), server.version),
        Write::ForgetCode(number, version) => forget(Row::Code(number.0), *version),
        Write::ForgetActivation(number, version) => forget(Row::Activation(number.0), *version),
        Write::ForgetServer(number, version) => forget(Row::Server(number.0), *version),
        Write::AccessToken(token) => change(Row::AccessToken(token.number.0), token.version),
        Write::CheckIns(_)
        | Write::TokenUses(_)
        | Write::Counters(_)
        | Write::Audit(_)
        | Write::Attempt(_)
        | Write::Setting(_)
        | Write::Charge(_) => return None,
    })
}

/// Each with the journal record that it comes from.
#[derive(Default)]
pub(super) struct Pending {
    /// The changes that are not yet being written to the engine.
    waiting: Vec<Change>,
    /// Since when.
    since: Option<Instant>,
    versions: HashMap<Row, (u64, Option<u32>)>,
    codes: HashMap<CodeHash, (u64, Code)>,
    activations: HashMap<ActivationId, (u64, Activation)>,
    last: u64,
    last_of_servers: u64,
}

impl Pending {
    pub(super) fn add(&mut self, record: u64, changes: Vec<Change>) {
        self.last = record;
        for write in changes.iter().flat_map(|Change(writes)| writes) {
            if let Some(guard) = guards(write) {
                self.versions.insert(guard.row, (record, guard.becomes));
            }
            match write {
                Write::Code(code) => {
                    self.codes.insert(code.hash, (record, code.clone()));
                }
                Write::Activation(activation) => {
                    self.activations.insert(activation.at.id, (record, activation.clone()));
                }
                Write::Server(_) | Write::CheckIns(_) | Write::ForgetServer(..) => {
                    self.last_of_servers = record;
                }
                Write::ForgetCode(..)
                | Write::ForgetActivation(..)
                | Write::AccessToken(_)
                | Write::TokenUses(_)
                | Write::Counters(_)
                | Write::Audit(_)
                | Write::Attempt(_)
                | Write::Setting(_)
                | Write::Charge(_) => {}
            }
        }
        self.since.get_or_insert_with(Instant::now);
        self.waiting.extend(changes);
    }

    /// Returns the changes that are not yet being written to the engine, and the last record they
    /// come from; `None` if there are none.
    pub(super) fn take(&mut self) -> Option<(Vec<Change>, u64)> {
        self.since.take().map(|_| (std::mem::take(&mut self.waiting), self.last))
    }

    /// Removes what comes from records up to `last`: the engine has it.
    pub(super) fn forget(&mut self, last: u64) {
        fn keep<K: Eq + Hash, V>(map: &mut HashMap<K, (u64, V)>, last: u64) {
            map.retain(|_, (record, _)| *record > last);
        }
        keep(&mut self.versions, last);
        keep(&mut self.codes, last);
        keep(&mut self.activations, last);
    }

    /// Returns how many changes are not yet being written to the engine.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Returns how long the first of them has waited; `None` if there are none.
    pub(super) fn waited(&self) -> Option<Duration> {
        self.since.map(|since| since.elapsed())
    }

    /// The last record there has been.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// The last record with anything about servers.
    pub(super) fn last_of_servers(&self) -> u64 {
        self.last_of_servers
    }

    /// Returns the pending version of a row. The inner `None` means that the row is to be deleted,
    /// the outer that it is not pending.
    pub(super) fn version(&self, row: Row) -> Option<Option<u32>> {
        self.versions.get(&row).map(|(_, version)| *version)
    }

    pub(super) fn code(&self, hash: CodeHash) -> Option<Code> {
        self.codes.get(&hash).map(|(_, code)| code.clone())
    }

    pub(super) fn activation(&self, id: ActivationId) -> Option<Activation> {
        self.activations.get(&id).map(|(_, activation)| activation.clone())
    }
}
