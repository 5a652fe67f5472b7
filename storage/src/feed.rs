//! The change feed: whoever follows a store hears of every event that is on disk.

use crate::{Change, Verdict, Write};
use iptunnel_domain::audit::Event;
use std::sync::OnceLock;

/// Hears of events. Called on the thread that commits.
pub type Listener = Box<dyn Fn(&Event) + Send + Sync>;

/// Tells one listener of what was written.
#[derive(Default)]
pub(crate) struct Feed(OnceLock<Listener>);

impl Feed {
    /// A second listener is ignored: whoever shares the news among many does so above.
    pub(crate) fn follow(&self, listener: Listener) {
        let _ = self.0.set(listener);
    }

    /// Tells of one event.
    pub(crate) fn tell(&self, event: &Event) {
        if let Some(listener) = self.0.get() {
            listener(event);
        }
    }

    pub(crate) fn publish(&self, changes: &[Change], verdicts: &[Verdict]) {
        let Some(listener) = self.0.get() else { return };
        let written = changes.iter().zip(verdicts).filter(|(_, v)| **v == Verdict::Written);
        for write in written.flat_map(|(Change(writes), _)| writes) {
            match write {
                Write::Audit(event) => listener(event),
                Write::Attempt(event) => listener(event),
                _ => {}
            }
        }
    }
}
