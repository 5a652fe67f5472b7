//! What may change while the server runs.

use iptunnel_domain::limit::Limits;
use iptunnel_domain::time::Lifetimes;

/// The values in force. Replaced as a whole; whoever needs one looks at the whole once.
#[derive(Clone, Debug, PartialEq)]
pub struct ActorSettings {
    /// How long things made from now on live.
    pub lifetimes: Lifetimes,
    /// How much each policy allows.
    pub limits: Limits,
    /// Seconds for which closed codes and activations are kept.
    pub retention_seconds: u64,
    /// Seconds for which a check-in may be ahead of the disk.
    pub checkin_flush_seconds: u64,
    /// How much each actor does in one step.
    pub batches: Batches,
}

/// How much each actor does in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batches {
    /// Codes examined for leaving memory or the store in one step.
    pub code_registry: usize,
    /// Activations examined, ditto.
    pub activation: usize,
    /// Counters written in one commit.
    pub rate_limiter: usize,
    /// Check-ins written in one commit.
    pub server_registry: usize,
    /// Changes in one commit.
    pub persistence: usize,
}
