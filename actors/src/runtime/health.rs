//! Whether the server should get requests, and whether it can go on at all.

use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;

/// Shared by whoever may find that something is wrong and whoever must act on it.
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
    /// Whether requests should be sent here.
    pub fn is_ready(&self) -> bool {
        self.store_works.load(Ordering::Relaxed)
            && self.commits_flow()
            && self.store_is_there.load(Ordering::Relaxed)
            && self.clock_is_right.load(Ordering::Relaxed)
            && self.store_is_safe.load(Ordering::Relaxed)
            && !self.is_draining()
            && !self.has_failed()
    }

    /// Whether the server is on its way out.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether the process has to end.
    pub fn has_failed(&self) -> bool {
        self.fatal.borrow().is_some()
    }

    /// Takes the server out of rotation; there is no way back.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether a shared store answers.
    pub fn store_is_there(&self, there: bool) {
        self.store_is_there.store(there, Ordering::Relaxed);
    }

    /// Whether the machine's clock is the one of those who share the store, nearly.
    pub fn clock_is_right(&self, right: bool) {
        self.clock_is_right.store(right, Ordering::Relaxed);
    }

    /// Whether the store keeps what it promises, as far as it can be asked.
    pub fn store_is_safe(&self, safe: bool) {
        self.store_is_safe.store(safe, Ordering::Relaxed);
    }

    /// Whether the store ends the commits that it has begun.
    pub fn commits_flow(&self) -> bool {
        self.commits_flow.load(Ordering::Relaxed)
    }

    /// Logged where it changes: an outage once at its begin and once at its end.
    pub(crate) fn note_commits_flow(&self, flow: bool) {
        match (self.commits_flow.swap(flow, Ordering::Relaxed), flow) {
            (true, false) => tracing::error!(
                "the store does not end a commit: not ready, and requests that need it are refused. \
                 `iptunnel-server doctor` says what it waits for"
            ),
            (false, true) => tracing::warn!("the store ends commits again"),
            _ => {}
        }
    }

    pub(crate) fn store_works(&self, works: bool) {
        self.store_works.store(works, Ordering::Relaxed);
    }

    /// Says that the process has to end and be started again. The first reason stands.
    pub fn fail(&self, reason: &str) {
        self.fatal.send_if_modified(|fatal| {
            let first = fatal.is_none();
            if first {
                tracing::error!(reason, "the server cannot go on");
                *fatal = Some(reason.to_owned());
            }
            first
        });
    }

    /// Waits until the process has to end and says why.
    pub async fn failed(&self) -> String {
        let mut fatal = self.fatal.subscribe();
        match fatal.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }
}
