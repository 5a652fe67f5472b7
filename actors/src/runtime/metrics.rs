//! The metrics of the actors.

use iptunnel_domain::limit::Policy;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Gauges and counters of one actor.
#[derive(Clone, Debug)]
pub(crate) struct ActorMetrics {
    pub(crate) name: &'static str,
    pub(crate) depth: Gauge,
    pub(crate) messages: Counter,
    pub(crate) batch: Histogram,
}

impl ActorMetrics {
    /// Counts a message that was taken from the queue.
    pub(crate) fn taken(&self) {
        self.depth.dec();
        self.messages.inc();
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActorLabel {
    actor: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransitionLabel {
    transition: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabel {
    policy: &'static str,
    decision: &'static str,
}

/// All metrics of the actors.
#[derive(Clone, Debug)]
pub struct Metrics {
    depth: Family<ActorLabel, Gauge>,
    messages: Family<ActorLabel, Counter>,
    batch: Family<ActorLabel, Histogram>,
    transitions: Family<TransitionLabel, Counter>,
    limits: Family<LimitLabel, Counter>,
    pub(crate) attempts_not_kept: Counter,
    pub(crate) alarms_not_kept: Counter,
    pub(crate) clone_check_ins: Counter,
    pub(crate) spent_codes_tried: Counter,
    pub(crate) commits: Counter,
    pub(crate) commit_seconds: Histogram,
    pub(crate) codes_in_memory: Gauge,
    pub(crate) activations_in_memory: Gauge,
    pub(crate) counters_in_memory: Gauge,
    pub(crate) servers: Gauge,
    pub(crate) servers_silent: Gauge,
}

/// The counters of what happens to codes.
#[derive(Clone, Debug)]
pub(crate) struct Transitions {
    pub(crate) issued: Counter,
    pub(crate) activated: Counter,
    pub(crate) replaced: Counter,
    pub(crate) repeated: Counter,
    pub(crate) confirmed: Counter,
    pub(crate) released: Counter,
}

/// The counters of one policy's decisions.
#[derive(Clone, Debug)]
pub(crate) struct LimitMetrics {
    pub(crate) granted: Counter,
    pub(crate) refused: Counter,
}

/// 0.1 ms to 3.3 s, doubling: a sync takes 0.1 to 0.2 ms on a good disk.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 16))
}

/// 1 to 65,536, doubling.
fn sizes() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 17))
}

impl Metrics {
    /// Creates the metrics and registers them in `registry`.
    pub fn new(registry: &mut Registry) -> Self {
        let it = Self {
            depth: Family::default(),
            messages: Family::default(),
            batch: Family::new_with_constructor(sizes),
            transitions: Family::default(),
            limits: Family::default(),
            attempts_not_kept: Counter::default(),
            alarms_not_kept: Counter::default(),
            clone_check_ins: Counter::default(),
            spent_codes_tried: Counter::default(),
            commits: Counter::default(),
            commit_seconds: seconds(),
            codes_in_memory: Gauge::default(),
            activations_in_memory: Gauge::default(),
            counters_in_memory: Gauge::default(),
            servers: Gauge::default(),
            servers_silent: Gauge::default(),
        };
        registry.register("actor_queue_depth", "Messages waiting for an actor", it.depth.clone());
        registry.register("actor_messages", "Messages an actor has taken", it.messages.clone());
        registry.register(
            "actor_batch_size",
            "Items an actor handled in one step",
            it.batch.clone(),
        );
        registry.register("code_transitions", "What happened to codes", it.transitions.clone());
        registry.register("limit_decisions", "What the limits decided", it.limits.clone());
        registry.register(
            "attempts_not_kept",
            "Attempts on codes that came too fast to be written down",
            it.attempts_not_kept.clone(),
        );
        registry.register(
            "alarms_not_kept",
            "Clones and spent codes that came too fast to be entered into the audit log",
            it.alarms_not_kept.clone(),
        );
        registry.register(
            "clone_check_ins",
            "Check-ins that a second machine must have sent under the id of a server",
            it.clone_check_ins.clone(),
        );
        registry.register(
            "spent_codes_tried",
            "Attempts on a code by another machine than the one that has used it",
            it.spent_codes_tried.clone(),
        );
        registry.register("persistence_commits", "Synced commits", it.commits.clone());
        registry.register_with_unit(
            "persistence_commit",
            "Time from the start of a commit until it is on disk",
            Unit::Seconds,
            it.commit_seconds.clone(),
        );
        registry.register("codes_in_memory", "Codes held in memory", it.codes_in_memory.clone());
        let activations = it.activations_in_memory.clone();
        registry.register("activations_in_memory", "Activations held in memory", activations);
        registry.register("limit_counters", "Counters tracked", it.counters_in_memory.clone());
        registry.register("servers", "Registered servers", it.servers.clone());
        registry.register(
            "servers_silent",
            "Servers, not revoked, that have not checked in for servers.silent_after_intervals",
            it.servers_silent.clone(),
        );
        it
    }

    pub(crate) fn actor(&self, name: &'static str) -> ActorMetrics {
        let label = ActorLabel { actor: name };
        ActorMetrics {
            name,
            depth: self.depth.get_or_create_owned(&label),
            messages: self.messages.get_or_create_owned(&label),
            batch: self.batch.get_or_create_owned(&label),
        }
    }

    pub(crate) fn transitions(&self) -> Transitions {
        let of = |transition| self.transitions.get_or_create_owned(&TransitionLabel { transition });
        Transitions {
            issued: of("issued"),
            activated: of("activated"),
            replaced: of("replaced"),
            repeated: of("repeated"),
            confirmed: of("confirmed"),
            released: of("released"),
        }
    }

    pub(crate) fn limits(&self) -> [LimitMetrics; Policy::ALL.len()] {
        Policy::ALL.map(|policy| {
            let of = |decision| {
                self.limits.get_or_create_owned(&LimitLabel { policy: policy.name(), decision })
            };
            LimitMetrics { granted: of("granted"), refused: of("refused") }
        })
    }
}
