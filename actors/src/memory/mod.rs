//! What actors keep in memory: cached records, counters, and unwritten check-ins, attempts and alarms.

pub(crate) mod alarms;
pub(crate) mod attempts;
pub(crate) mod check_ins;
pub(crate) mod counters;
pub(crate) mod limit_counter;
pub(crate) mod numbers;
pub(crate) mod pending_change;
pub(crate) mod record_cache;
