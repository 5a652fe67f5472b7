//! What is in the journal and not yet in the engine.

use crate::embedded::engine::Row;
use crate::{Change, Write};
use iptunnel_domain::activation::{Activation, ActivationId};
use iptunnel_domain::code::{Code, CodeHash};
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// What a write asks of the row it changes, and makes of it.
pub(super) struct Guard {
    pub(super) row: Row,
    /// The version that must be there; `None`: no such row.
    pub(super) expects: Option<u32>,
    /// The version afterwards.
    pub(super) becomes: Option<u32>,
}

/// The guard of a write that has one.
pub(super) fn guards(write: &Write) -> Option<Guard> {
    // Nothing is ever stored as version 0, so a version 0 follows on nothing.
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
        Write::CheckIns(_)
        | Write::Counters(_)
        | Write::Audit(_)
        | Write::Attempt(_)
        | Write::Setting(_) => return None,
    })
}

/// Each with the record of the journal that it comes from.
#[derive(Default)]
pub(super) struct Pending {
    /// What the engine has not been handed yet.
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
                Write::Server(_) | Write::CheckIns(_) => self.last_of_servers = record,
                Write::ForgetCode(..)
                | Write::ForgetActivation(..)
                | Write::Counters(_)
                | Write::Audit(_)
                | Write::Attempt(_)
                | Write::Setting(_) => {}
            }
        }
        self.since.get_or_insert_with(Instant::now);
        self.waiting.extend(changes);
    }

    /// Hands out what the engine has not been handed yet, and the last record it comes from; `None`
    /// where there is nothing.
    pub(super) fn take(&mut self) -> Option<(Vec<Change>, u64)> {
        self.since.take().map(|_| (std::mem::take(&mut self.waiting), self.last))
    }

    /// Forgets what comes from records up to `last`: the engine has it.
    pub(super) fn forget(&mut self, last: u64) {
        fn keep<K: Eq + Hash, V>(map: &mut HashMap<K, (u64, V)>, last: u64) {
            map.retain(|_, (record, _)| *record > last);
        }
        keep(&mut self.versions, last);
        keep(&mut self.codes, last);
        keep(&mut self.activations, last);
    }

    /// How many changes the engine has not been handed yet.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How long the first of them has waited; `None` where there is nothing to hand over.
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

    /// The pending version of a row; the inner `None` where it is to be forgotten, the outer where
    /// it is not pending.
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
