//! The settings of the actors, which may change while the server runs.

use iptunnel_domain::fleet::Silence;
use iptunnel_domain::limit::Limits;
use iptunnel_domain::time::Lifetimes;

/// The settings in force. They are replaced as a whole, so a reader loads them once per decision.
#[derive(Clone, Debug, PartialEq)]
pub struct ActorSettings {
    /// The lifetimes of new codes, activations and tokens.
    pub lifetimes: Lifetimes,
    /// The limit of each policy.
    pub limits: Limits,
    /// The retention of closed codes and activations and of deleted servers, in seconds.
    pub retention_seconds: u64,
    /// Seconds between two writes of check-ins to the store.
    pub checkin_flush_seconds: u64,
    /// The seconds after which a server that was not seen is deleted; 0 for never.
    pub forget_after_seconds: u64,
    /// How often servers check in, and when many of them are silent.
    pub silence: Silence,
    /// How much each actor does in one step.
    pub batches: Batches,
}

/// How much each actor does in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batches {
    /// Codes examined for eviction or deletion in one step.
    pub code_registry: usize,
    /// Activations examined for eviction or deletion in one step.
    pub activation: usize,
    /// Counters written in one commit.
    pub rate_limiter: usize,
    /// Check-ins written in one commit.
    pub server_registry: usize,
    /// Changes in one commit.
    pub persistence: usize,
}
