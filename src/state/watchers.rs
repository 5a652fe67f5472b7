//! The pages that watch codes: their number is limited, and they are notified of events.

use crate::counts::Counts;
use dashmap::{DashMap, DashSet};
use iptunnel_domain::audit::{Action, Event};
use iptunnel_domain::code::CodeHash;
use iptunnel_domain::lookup::KeyedHash;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::Notify;

/// The most open streams of one browser session, which is the number of tabs.
const PER_SESSION: usize = 4;
/// The most open streams of one network.
const PER_ADDRESS: usize = 16;

/// One stream that the change feed notifies.
#[derive(Default)]
pub struct Watcher {
    /// Notified when the stream should read its codes.
    pub nudge: Notify,
    /// Its codes whose latest event is a passed precheck.
    pub prechecked: DashSet<CodeHash>,
}

/// All streams.
#[derive(Default)]
pub struct Watchers {
    by_code: DashMap<CodeHash, Vec<Arc<Watcher>>>,
    of_session: Counts<KeyedHash>,
    of_address: Counts<IpAddr>,
    open: AtomicUsize,
    closed: AtomicBool,
}

impl Watchers {
    /// Notifies the streams that watch the event's code.
    pub fn tell(&self, event: &Event) {
        if self.open.load(Ordering::Relaxed) == 0 {
            return;
        }
        let Some(code) = event.code else { return };
        let Some(watchers) = self.by_code.get(&code) else { return };
        for watcher in watchers.iter() {
            if event.action == Action::PrecheckPassed {
                watcher.prechecked.insert(code);
            } else if !event.action.is_attempt() {
                watcher.prechecked.remove(&code);
            }
            watcher.nudge.notify_one();
        }
    }

    /// Ends all streams, because the server shuts down.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for watchers in &self.by_code {
            watchers.iter().for_each(|watcher| watcher.nudge.notify_one());
        }
    }

    /// Registers one more stream. Returns `None` if there are too many.
    pub fn place(
        self: &Arc<Self>,
        session: KeyedHash,
        address: IpAddr,
        in_all: usize,
        codes: Vec<CodeHash>,
    ) -> Option<Place> {
        // The count is raised before the comparison, so that two calls cannot both take the last place.
        let place =
            Place { watchers: Arc::clone(self), session, address, codes, watcher: Arc::default() };
        let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
        let of_session = self.of_session.up(session);
        let of_address = self.of_address.up(address);
        for code in &place.codes {
            self.by_code.entry(*code).or_default().push(Arc::clone(&place.watcher));
        }
        let fits = of_session <= PER_SESSION && of_address <= PER_ADDRESS && open <= in_all;
        (fits && !self.closed.load(Ordering::SeqCst)).then_some(place)
    }
}

/// The registration of an open stream. Dropping it removes the stream.
pub struct Place {
    watchers: Arc<Watchers>,
    /// The browser session of the stream.
    pub session: KeyedHash,
    address: IpAddr,
    /// The codes that the stream watches.
    pub codes: Vec<CodeHash>,
    /// The watcher through which the stream is notified.
    pub watcher: Arc<Watcher>,
}

impl Place {
    /// Returns whether the server shuts down.
    pub fn is_closed(&self) -> bool {
        self.watchers.closed.load(Ordering::SeqCst)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for code in &self.codes {
            if let Some(mut watchers) = self.watchers.by_code.get_mut(code) {
                watchers.retain(|watcher| !Arc::ptr_eq(watcher, &self.watcher));
            }
            self.watchers.by_code.remove_if(code, |_, watchers| watchers.is_empty());
        }
        self.watchers.of_session.down(&self.session);
        self.watchers.of_address.down(&self.address);
        self.watchers.open.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(watchers: &Arc<Watchers>, session: u8, address: u8) -> Option<Place> {
        let code = CodeHash(KeyedHash([session; 16]));
        watchers.place(KeyedHash([session; 16]), IpAddr::from([1, 1, 1, address]), 20, vec![code])
    }

    #[test]
    fn places_are_limited_by_session_address_and_in_all_and_come_back() {
        let watchers = Arc::new(Watchers::default());
        let mut held: Vec<_> = (0..4).map(|n| place(&watchers, 1, n).unwrap()).collect();
        assert!(place(&watchers, 1, 9).is_none(), "a fifth of one session");
        held.extend((0..12).map(|n| place(&watchers, 100 + n, 0).unwrap()));
        held.extend((0..3).map(|n| place(&watchers, 120 + n, 0).unwrap()));
        assert!(place(&watchers, 90, 0).is_none(), "a seventeenth of one address");
        held.push(place(&watchers, 91, 1).unwrap());
        assert!(place(&watchers, 92, 2).is_none(), "a twenty-first in all");
        drop(held);
        assert!(place(&watchers, 1, 0).is_some());
        assert_eq!(watchers.open.load(Ordering::SeqCst), 0);
        assert!(watchers.by_code.is_empty() && watchers.of_session.is_empty());
        assert!(watchers.of_address.is_empty());
        watchers.close();
        assert!(place(&watchers, 1, 0).is_none(), "the server shuts down");
    }
}
