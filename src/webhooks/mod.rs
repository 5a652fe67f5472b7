//! Webhooks: tells receivers of the operator's choice what happens, by the Standard Webhooks specification.
//!
//! The audit log is the outbox: a thread of its own follows it, and what each receiver has had of it is a row of
//! the store. The way of a request knows nothing of it. The rules are in [`iptunnel_domain::webhook`].
//!
//! * [`endpoints`]: the file of the webhooks; [`message`]: what is sent; [`send`]: one try
//! * `dispatcher`: the thread; `kept`: what the store keeps
//! * [`order`]: what operators ask for; [`report`]: what they see
//!
//! Over a shared store one server delivers at a time, the one that holds the lease.

mod dispatcher;
pub mod endpoints;
mod kept;
pub mod message;
pub mod order;
pub mod report;
pub mod send;

pub use dispatcher::start;

use crate::private_file::{self, Stamp};
use endpoints::Endpoints;
use iptunnel_domain::audit::Event;
use iptunnel_domain::webhook::{is_order, type_of};
use iptunnel_storage::{AuditLog, Entry, ReadError};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use send::{Outcome, Sender, roots_of_machine};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use ureq::tls::Certificate;

/// The longest wait for the last states of webhooks at a shutdown.
const LAST: Duration = Duration::from_secs(2);

/// What the dispatcher hears of.
enum Heard {
    /// Something happened.
    Event,
    /// A try ended.
    Tried(Tried),
    /// The server stops. The answer says that everything is kept.
    Stop(mpsc::Sender<()>),
}

/// A try that has ended.
struct Tried {
    generation: u64,
    endpoint: String,
    number: u64,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    endpoint: String,
}

/// The metrics of webhooks. Over a shared store the server that delivers has them.
#[derive(Clone, Default)]
struct Figures {
    delivered: Family<Label, Counter>,
    failures: Family<Label, Counter>,
    given_up: Family<Label, Counter>,
    waiting: Family<Label, Gauge>,
    oldest: Family<Label, Gauge>,
    failing: Family<Label, Gauge>,
    dead: Family<Label, Gauge>,
    disabled: Family<Label, Gauge>,
}

impl Figures {
    fn new(registry: &mut Registry) -> Self {
        let figures = Self::default();
        let registry = registry.sub_registry_with_prefix("webhook");
        registry.register("deliveries", "Events that were delivered", figures.delivered.clone());
        registry.register("failures", "Tries that failed", figures.failures.clone());
        registry.register("given_up", "Events that became dead letters", figures.given_up.clone());
        registry.register("waiting", "Events that wait to be delivered", figures.waiting.clone());
        let help = "Age of the oldest event that waits";
        registry.register_with_unit("oldest_waiting", help, Unit::Seconds, figures.oldest.clone());
        let help = "Time since which every try has failed; 0 after a delivery";
        registry.register_with_unit("failing", help, Unit::Seconds, figures.failing.clone());
        registry.register("dead_letters", "Dead letters that are listed", figures.dead.clone());
        let help = "Whether the receiver has said that it is gone: 1 or 0";
        registry.register("disabled", help, figures.disabled.clone());
        figures
    }

    /// Forgets the present state, which another server has from now on.
    fn clear(&self) {
        for family in [&self.waiting, &self.oldest, &self.failing, &self.dead, &self.disabled] {
            family.clear();
        }
    }
}

/// The webhooks of this server, as its file names them.
pub struct Webhooks {
    /// The file. Empty: there are none.
    path: PathBuf,
    current: Mutex<Current>,
    roots: Arc<Vec<Certificate<'static>>>,
    queue: mpsc::Sender<Heard>,
    /// Whether there are any.
    active: AtomicBool,
    /// Whether the dispatcher has yet to look at the log.
    woken: AtomicBool,
    /// Whether operators have asked for something since it last looked.
    ordered: AtomicBool,
    figures: Figures,
}

#[derive(Default)]
struct Current {
    stamp: Option<Stamp>,
    senders: BTreeMap<String, Sender>,
    /// What is wrong with the file now. The webhooks are those of before.
    problem: Option<String>,
}

/// Returns the entry of the audit log with this number, if there is one.
///
/// # Errors
/// The log cannot be read.
pub fn entry(log: &(impl AuditLog + ?Sized), number: u64) -> Result<Option<Entry>, ReadError> {
    let mut found = None;
    log.audit_from(number, &mut |entry| {
        found = Some(entry);
        false
    })?;
    Ok(found.filter(|entry| entry.head.entries == number))
}

/// What the dispatcher receives.
pub struct Queue(mpsc::Receiver<Heard>);

impl Webhooks {
    /// Reads the file and registers the metrics.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn open(path: &Path, registry: &mut Registry) -> Result<(Arc<Self>, Queue), String> {
        let (queue, heard) = mpsc::channel();
        let has_file = !path.as_os_str().is_empty();
        let webhooks = Self {
            path: path.to_owned(),
            current: Mutex::default(),
            roots: if has_file { roots_of_machine() } else { Arc::default() },
            queue,
            active: AtomicBool::new(false),
            woken: AtomicBool::new(true),
            ordered: AtomicBool::new(true),
            figures: Figures::new(registry),
        };
        if has_file {
            webhooks.warn_of_loose();
            let stamp = webhooks.stamp();
            webhooks.replace(endpoints::read(path)?, stamp);
        }
        Ok((Arc::new(webhooks), Queue(heard)))
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stamp(&self) -> Option<Stamp> {
        std::fs::metadata(&self.path).ok().map(|file| private_file::stamp(&file))
    }

    fn warn_of_loose(&self) {
        if let Ok(Some(mode)) = private_file::loose_mode(&self.path) {
            let file = self.path.display();
            tracing::warn!(%file, mode, "others may read or change a file of secrets; run chmod 0600 on it");
        }
    }

    fn replace(&self, endpoints: Endpoints, stamp: Option<Stamp>) {
        let sender = |(name, endpoint)| (name, Sender::to(endpoint, &self.roots));
        let senders: BTreeMap<String, Sender> = endpoints.into_iter().map(sender).collect();
        self.active.store(!senders.is_empty(), Ordering::Relaxed);
        *self.current() = Current { stamp, senders, problem: None };
    }

    /// Reads the file again if it has changed. If it is invalid, everything stays as it was.
    fn reload(&self) {
        let stamp = self.stamp();
        if self.path.as_os_str().is_empty() || stamp == self.current().stamp {
            return;
        }
        match endpoints::read(&self.path) {
            Ok(endpoints) => {
                let webhooks = endpoints.len();
                self.warn_of_loose();
                self.replace(endpoints, stamp);
                tracing::info!(webhooks, "the file of webhooks was read again");
            }
            Err(problem) => {
                tracing::error!(problem, "the changed file of webhooks is not used");
                let mut current = self.current();
                current.stamp = stamp;
                current.problem = Some(problem);
            }
        }
    }

    /// Returns what is wrong with the file since it was changed.
    pub fn problem(&self) -> Option<String> {
        self.current().problem.clone()
    }

    /// Returns the senders of all webhooks.
    pub fn senders(&self) -> BTreeMap<String, Sender> {
        self.current().senders.clone()
    }

    /// Returns the sender of one webhook.
    pub fn sender(&self, name: &str) -> Option<Sender> {
        self.current().senders.get(name).cloned()
    }

    /// Hears of an event that was written to the log. Quick: it wakes the dispatcher if that sleeps.
    pub fn hear(&self, event: &Event) {
        if !self.active.load(Ordering::Relaxed) {
            return;
        }
        let is_order = is_order(event.action);
        if is_order {
            self.ordered.store(true, Ordering::Relaxed);
        }
        let is_told = is_order || type_of(event.action).is_some();
        if is_told && !self.woken.swap(true, Ordering::Relaxed) {
            // The dispatcher has ended with the server.
            let _ = self.queue.send(Heard::Event);
        }
    }

    /// Ends the dispatcher: what has been delivered is kept, and another server may deliver.
    pub fn stop(&self) {
        let (done, ended) = mpsc::channel();
        if self.queue.send(Heard::Stop(done)).is_ok() {
            let _ = ended.recv_timeout(LAST);
        }
    }
}
