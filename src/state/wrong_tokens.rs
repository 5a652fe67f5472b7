//! Wrong tokens: counted by network, slowed, logged, and entered into the audit log.
//!
//! A token is compared first, so a right one is never refused or slowed, whatever else its network
//! sends. Only wrong ones come here. Guessing is hopeless anyway, as a token has 256 random bits; this
//! keeps it from being cheap and from going unnoticed.

use crate::state::State;
use iptunnel_domain::address::caller_network;
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_domain::{Refusal, Timestamp};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// The wrong tokens of one network in a minute that are answered at once. Enough for a person who
/// mistypes, and for a few machines behind one address.
const AT_ONCE: u32 = 10;
/// The time after which any further one is answered.
const PAUSE: Duration = Duration::from_secs(1);
/// The most answers that wait at the same time, about 1 KB each. Further ones are sent at once.
const WAITING: usize = 1000;
/// The most networks that are counted separately in a minute, about 50 bytes each. All others share
/// one count.
const NETWORKS: usize = 10_000;
/// The most networks with an entry of their own in the audit log for one minute. One more entry sums
/// up the others.
const ENTRIES: usize = 10;
/// How often the counts of ended minutes are written.
const EVERY: Duration = Duration::from_secs(1);
/// The most ended minutes that wait to be written.
const ENDED: usize = 5;

/// The listener that a wrong token was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// The public listener.
    Public,
    /// The operators' listener.
    Operators,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    listener: &'static str,
}

impl Listener {
    const fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Operators => "operators",
        }
    }
}

/// The wrong tokens of one minute.
#[derive(Default)]
struct Minute {
    /// The minutes since the Unix epoch.
    number: u64,
    networks: HashMap<IpAddr, u32>,
    /// Those of all networks that have no count of their own.
    others: u32,
}

impl Minute {
    fn count(&mut self, network: IpAddr) -> u32 {
        let is_full = self.networks.len() >= NETWORKS && !self.networks.contains_key(&network);
        let count =
            if is_full { &mut self.others } else { self.networks.entry(network).or_default() };
        *count = count.saturating_add(1);
        *count
    }

    /// Returns the entries for the audit log: the networks with the most wrong tokens, and the others
    /// as a sum.
    fn events(self, now: Timestamp) -> Vec<Event> {
        let event = |from, detail| Event {
            detail,
            ..Event::new(Action::TokensRefused, Actor::Unidentified, now, from)
        };
        let mut networks: Vec<_> = self.networks.into_iter().collect();
        networks.sort_unstable_by_key(|(network, count)| (std::cmp::Reverse(*count), *network));
        let rest = networks.split_off(networks.len().min(ENTRIES));
        let count_of_rest = rest.iter().map(|(_, count)| u64::from(*count)).sum::<u64>();
        let mut events: Vec<Event> = networks
            .into_iter()
            .map(|(network, count)| event(Some(network), format!("{count}{IN_A_MINUTE}")))
            .collect();
        if !rest.is_empty() {
            let detail = format!(
                "{}{IN_A_MINUTE}, from other networks",
                count_of_rest + u64::from(self.others)
            );
            events.push(event(None, detail));
        }
        events
    }
}

/// What an entry of the audit log says behind its count.
const IN_A_MINUTE: &str = " in a minute";

/// Returns how many wrong tokens an entry of the audit log counts; 0 if it counts none.
pub fn count_of(event: &Event) -> u64 {
    let count = event.detail.split_once(IN_A_MINUTE).and_then(|(count, _)| count.parse().ok());
    count.unwrap_or_default()
}

/// Whether an entry of the audit log counts so many that its network was slowed.
pub fn is_burst(event: &Event) -> bool {
    count_of(event) > u64::from(AT_ONCE)
}

/// Whether webhooks tell an event: a few wrong tokens are told to nobody.
pub fn is_told(event: &Event) -> bool {
    event.action != Action::TokensRefused || is_burst(event)
}

#[derive(Default)]
struct Inner {
    current: Minute,
    ended: Vec<Minute>,
}

impl Inner {
    /// Ends the current minute if `now` is in another one.
    fn turn(&mut self, now: Timestamp) {
        let number = now.0 / 60;
        if self.current.number != number {
            let next = Minute { number, ..Minute::default() };
            let last = std::mem::replace(&mut self.current, next);
            if !last.networks.is_empty() && self.ended.len() < ENDED {
                self.ended.push(last);
            }
        }
    }
}

/// The wrong tokens that were sent.
pub struct WrongTokens {
    inner: Mutex<Inner>,
    waiting: Semaphore,
    counted: Family<Label, Counter>,
}

impl WrongTokens {
    /// Starts to count, and registers the metric.
    pub fn new(registry: &mut Registry) -> Self {
        let counted = Family::<Label, Counter>::default();
        for listener in [Listener::Public, Listener::Operators] {
            let label = Label { listener: listener.name() };
            drop(counted.get_or_create(&label));
        }
        registry.register("wrong_tokens", "Requests with a wrong token", counted.clone());
        Self { inner: Mutex::default(), waiting: Semaphore::new(WAITING), counted }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a wrong token. If its network has sent too many in this minute, waits a moment.
    ///
    /// # Errors
    /// [`Refusal::RateLimited`] if the network has sent too many.
    pub async fn note(
        &self,
        from: IpAddr,
        listener: Listener,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let network = caller_network(from);
        self.counted.get_or_create(&Label { listener: listener.name() }).inc();
        let count = {
            let mut inner = self.lock();
            inner.turn(now);
            inner.current.count(network)
        };
        // At most two lines for each network and minute.
        if count == 1 {
            tracing::warn!(%network, listener = listener.name(), "a wrong token was sent");
        }
        if count <= AT_ONCE {
            return Ok(());
        }
        if count == AT_ONCE + 1 {
            tracing::warn!(%network, "too many wrong tokens: further ones are slowed for a minute");
        }
        if let Ok(_place) = self.waiting.try_acquire() {
            tokio::time::sleep(PAUSE).await;
        }
        Err(Refusal::RateLimited { retry_after: 60 - now.0 % 60 })
    }

    fn ended(&self, now: Timestamp) -> Vec<Event> {
        let mut inner = self.lock();
        inner.turn(now);
        inner.ended.drain(..).flat_map(|minute| minute.events(now)).collect()
    }

    fn all(&self, now: Timestamp) -> Vec<Event> {
        let current = std::mem::take(&mut self.lock().current);
        self.ended(now).into_iter().chain(current.events(now)).collect()
    }
}

impl State {
    /// Enters wrong tokens into the audit log, each minute's at its end, while the server runs.
    pub async fn keep_wrong_tokens(&self) {
        loop {
            tokio::time::sleep(EVERY).await;
            self.enter(self.wrong_tokens.ended(self.clock.now())).await;
        }
    }

    /// Enters all wrong tokens into the audit log, as the server stops.
    pub async fn keep_last_wrong_tokens(&self) {
        self.enter(self.wrong_tokens.all(self.clock.now())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::from((0x0808_0000 + number).to_be_bytes())
    }

    #[test]
    fn a_minute_has_few_entries_however_many_networks_send_wrong_tokens() {
        let mut minute = Minute::default();
        let networks = NETWORKS as u32 + 500;
        for number in 0..networks {
            minute.count(address(number));
        }
        assert_eq!(minute.count(address(7)), 2);
        assert_eq!(minute.networks.len(), NETWORKS);
        let events = minute.events(Timestamp(60));
        assert_eq!(events.len(), ENTRIES + 1);
        assert_eq!(
            (events[0].from, events[0].detail.as_str()),
            (Some(address(7)), "2 in a minute")
        );
        let rest = networks as usize - ENTRIES;
        let words = format!("{rest} in a minute, from other networks");
        assert_eq!((events[ENTRIES].from, &events[ENTRIES].detail), (None, &words));
    }

    #[test]
    fn a_new_minute_counts_anew_and_ends_the_one_before_wherever_the_clock_goes() {
        let mut inner = Inner::default();
        for (now, ended) in [(600, 0), (659, 0), (660, 1), (600, 2)] {
            inner.turn(Timestamp(now));
            inner.current.count(address(1));
            assert_eq!(inner.ended.len(), ended, "{now}");
        }
        assert_eq!(inner.current.networks[&address(1)], 1);
    }

    #[tokio::test]
    async fn the_eleventh_wrong_token_of_a_network_is_slowed_and_those_of_others_are_not() {
        let tokens = WrongTokens::new(&mut Registry::default());
        let (here, there) = (address(1), address(2));
        for _ in 0..AT_ONCE {
            assert_eq!(tokens.note(here, Listener::Public, Timestamp(90)).await, Ok(()));
        }
        let begun = tokio::time::Instant::now();
        let refused = tokens.note(here, Listener::Operators, Timestamp(90)).await;
        assert_eq!(refused, Err(Refusal::RateLimited { retry_after: 30 }));
        assert!(begun.elapsed() >= PAUSE);
        assert_eq!(tokens.note(there, Listener::Public, Timestamp(90)).await, Ok(()));
        assert_eq!(tokens.note(here, Listener::Public, Timestamp(120)).await, Ok(()));
    }
}
