//! The change feed: reports every event that is on disk to a listener.

use crate::{Change, Verdict, Write};
use iptunnel_domain::audit::Event;
use std::sync::OnceLock;

/// A callback for events. Called on the thread that commits.
pub type Listener = Box<dyn Fn(&Event) + Send + Sync>;

/// Reports events to one listener.
#[derive(Default)]
pub(crate) struct Feed(OnceLock<Listener>);

impl Feed {
    /// Sets the listener. A second one is ignored: the caller shares events among several.
    pub(crate) fn follow(&self, listener: Listener) {
        let _ = self.0.set(listener);
    }

    /// Reports one event.
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
