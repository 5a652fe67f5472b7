//! The health of the server: whether it is ready for requests, and whether it has to end.

use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;

/// The health of the server. Shared by the parts that detect faults and the parts that act on them.
#[derive(Debug)]
pub struct Health {
    store_works: AtomicBool,
    commits_flow: AtomicBool,
    store_is_there: AtomicBool,
    clock_is_right: AtomicBool,
    store_is_safe: AtomicBool,
    draining: AtomicBool,
    fatal: watch::Sender<Option<String>>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            store_works: AtomicBool::new(true),
            commits_flow: AtomicBool::new(true),
            store_is_there: AtomicBool::new(true),
            clock_is_right: AtomicBool::new(true),
            store_is_safe: AtomicBool::new(true),
            draining: AtomicBool::new(false),
            fatal: watch::Sender::new(None),
        }
    }
}

impl Health {
    /// Whether the server is ready for requests.
    pub fn is_ready(&self) -> bool {
        self.store_works.load(Ordering::Relaxed)
            && self.commits_flow()
            && self.store_is_there.load(Ordering::Relaxed)
            && self.clock_is_right.load(Ordering::Relaxed)
            && self.store_is_safe.load(Ordering::Relaxed)
            && !self.is_draining()
            && !self.has_failed()
    }

    /// Whether the server is shutting down.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether the process has to end.
    pub fn has_failed(&self) -> bool {
        self.fatal.borrow().is_some()
    }

    /// Marks the server as shutting down, so that it is not ready. This cannot be undone.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Sets whether a shared store answers.
    pub fn store_is_there(&self, there: bool) {
        self.store_is_there.store(there, Ordering::Relaxed);
    }

    /// Sets whether the machine's clock agrees with the clock of the shared store.
    pub fn clock_is_right(&self, right: bool) {
        self.clock_is_right.store(right, Ordering::Relaxed);
    }

    /// Sets whether the store is configured so that its commits are durable.
    pub fn store_is_safe(&self, safe: bool) {
        self.store_is_safe.store(safe, Ordering::Relaxed);
    }

    /// Whether the store completes its commits in time.
    pub fn commits_flow(&self) -> bool {
        self.commits_flow.load(Ordering::Relaxed)
    }

    /// Sets whether commits complete in time. Logs the begin and the end of an outage, once each.
    pub(crate) fn note_commits_flow(&self, flow: bool) {
        match (self.commits_flow.swap(flow, Ordering::Relaxed), flow) {
            (true, false) => tracing::error!(
                "a commit to the store is stuck; the server is not ready and refuses requests that need \
                 the store. Run `iptunnel-server doctor` to see what the store waits for"
            ),
            (false, true) => tracing::warn!("the store completes commits again"),
            _ => {}
        }
    }

    /// Whether this server's store can be written, as far as the last commit tells.
    pub fn store_works(&self) -> bool {
        self.store_works.load(Ordering::Relaxed)
    }

    pub(crate) fn note_store_works(&self, works: bool) {
        self.store_works.store(works, Ordering::Relaxed);
    }

    /// Records that the process has to end and be restarted. Only the first reason is kept and logged.
    pub fn fail(&self, reason: &str) {
        self.fatal.send_if_modified(|fatal| {
            let first = fatal.is_none();
            if first {
                tracing::error!(reason, "the server cannot continue and shuts down");
                *fatal = Some(reason.to_owned());
            }
            first
        });
    }

    /// Waits until the process has to end, and returns the reason.
    pub async fn failed(&self) -> String {
        let mut fatal = self.fatal.subscribe();
        match fatal.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }
}
