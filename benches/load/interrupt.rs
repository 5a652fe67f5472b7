//! Ctrl-C and SIGTERM end the measurement in order, so that no server and no folder remains.
//!
//! The signals are blocked in every thread, and one thread waits for them. This needs no handler and so no unsafe
//! code. A child inherits the signal mask, so [`let_through`] starts the server.

use std::thread;

use nix::sys::signal::{SigSet, Signal};
use tokio::sync::oneshot;

use crate::failure::{Context, Failure, Result};

fn signals() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}

/// Resolves when one of the signals arrives.
pub struct Interrupted(oneshot::Receiver<Signal>);

/// Blocks the signals and waits for them. Must be called before any other thread exists.
pub fn watch() -> Result<Interrupted> {
    signals().thread_block().context("cannot block signals")?;
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if let Ok(signal) = signals().wait() {
                // The receiver is gone if the measurement has just ended.
                let _ = sender.send(signal);
            }
        })
        .context("cannot start the thread that waits for signals")?;
    Ok(Interrupted(receiver))
}

impl Interrupted {
    /// Returns the failure for an interruption. Never resolves without one.
    pub async fn failure(self) -> Failure {
        match self.0.await {
            Ok(signal) => Failure::new(format!("interrupted by {signal}")),
            Err(_) => std::future::pending().await,
        }
    }
}

/// Runs `start_child` with the signals unblocked, so that they can stop the child.
pub fn let_through<T>(start_child: impl FnOnce() -> T) -> Result<T> {
    signals().thread_unblock().context("cannot unblock signals")?;
    let child = start_child();
    signals().thread_block().context("cannot block signals")?;
    Ok(child)
}
