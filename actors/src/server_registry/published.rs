//! The registered servers in memory, published for readers.

use dashmap::DashMap;
use iptunnel_domain::Timestamp;
use iptunnel_domain::access::TokenNumber;
use iptunnel_domain::fleet::Source;
use iptunnel_domain::server::{CheckInKey, EnrolledBy, Server, ServerId, ServerNumber};
use iptunnel_storage::{ReadError, Store};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// The part of a server that is in memory: 32 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Live {
    pub(super) number: ServerNumber,
    /// Seconds since the Unix epoch; valid until the year 2106.
    pub(super) last_checkin: u32,
    /// What its check-ins must prove.
    pub(super) key: CheckInKey,
    /// The lower bits of the record's version. They show whether a record read from disk is outdated.
    pub(super) version: u16,
    pub(super) flags: Flags,
    /// Where its last check-in came from. Not known after a start, nor while another server has taken a
    /// later one.
    pub(super) source: Source,
}

/// What is true of a server, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flags(u8);

impl Flags {
    pub(super) const REVOKED: Self = Self(1);
    /// Its record is kept, and it is in no listing.
    pub(super) const DELETED: Self = Self(2);
    /// The store may have lost it since: it is read again before anything rests on it.
    pub(super) const VOID: Self = Self(4);
    /// Its id is not that of its address.
    pub(super) const IMPORTED: Self = Self(8);
    /// An installation has registered it, and it has not checked in since.
    pub(super) const AWAITED: Self = Self(16);

    const fn of(server: &Server) -> Self {
        let mut flags = Self(0);
        flags.set(Self::REVOKED, server.revoked);
        flags.set(Self::DELETED, server.deleted);
        flags.set(Self::IMPORTED, server.id.0 != server.address_id.0);
        flags
    }

    pub(super) const fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }

    pub(super) const fn set(&mut self, flag: Self, value: bool) {
        if value { self.0 |= flag.0 } else { self.0 &= !flag.0 }
    }
}

impl Live {
    pub(super) fn of(server: &Server) -> Self {
        let mut live = Self {
            number: server.number,
            last_checkin: 0,
            key: CheckInKey::of(server),
            version: server.version as u16,
            flags: Flags::of(server),
            source: Source::default(),
        };
        live.set_last_checkin(server.last_checkin);
        live
    }

    /// The access token that has enrolled it, unless it is revoked or deleted.
    pub(super) fn enrolled_by(&self) -> Option<TokenNumber> {
        let counts = !self.flags.has(Flags::REVOKED) && !self.flags.has(Flags::DELETED);
        self.key.access_token().filter(|_| counts)
    }

    /// Whether it is deleted, and its record is kept only for its used ticket, or so that no import brings
    /// it back.
    pub(super) fn is_as_if_gone(&self) -> bool {
        self.flags.has(Flags::DELETED) && !self.flags.has(Flags::REVOKED)
    }

    /// Whether it is deleted, and its record is kept.
    pub(super) fn is_hidden(&self) -> bool {
        self.flags.has(Flags::DELETED)
    }

    /// Notes what is known of its check-ins since it registered. `before` is what memory had of it before, if
    /// it is still registered with the same.
    pub(super) fn await_check_in(&mut self, server: &Server, before: Option<&Self>) {
        let is_installed = matches!(server.enrolled_by, EnrolledBy::Activation(_));
        let is_awaited = before.is_none_or(|before| before.flags.has(Flags::AWAITED));
        self.flags.set(Flags::AWAITED, is_installed && is_awaited);
    }

    pub(super) fn last_checkin(&self) -> Timestamp {
        Timestamp(u64::from(self.last_checkin))
    }

    pub(super) fn set_last_checkin(&mut self, at: Timestamp) {
        self.last_checkin = u32::try_from(at.0).unwrap_or(u32::MAX);
    }
}

/// How many servers are silent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Silent {
    /// The servers that have not checked in for long.
    pub servers: u64,
    /// All servers that are not revoked.
    pub of: u64,
    /// The seconds after which a server is silent.
    pub after_seconds: u64,
    /// Whether they are so many that operators were told.
    pub is_fleet: bool,
}

/// All registered servers that are on disk, for reading.
pub struct Servers {
    pub(super) live: DashMap<ServerId, Live>,
    /// The number of those that are not deleted. Counting the map would lock each of its shards.
    count: AtomicUsize,
    /// How many are silent.
    pub(super) silent: Mutex<Silent>,
}

/// Shards of the map, 128 bytes each. A listing locks one after the other, and the actors wait for the
/// one they need: 8 µs with a million servers, measured (4 ms with eight shards).
const SHARDS: usize = 4096;

/// The servers for which a start makes room at once. What a map grows out of stays with the allocator: a third
/// of the map with a million servers. Room that nobody uses costs a byte a server, because memory that was
/// never written takes no place.
const MOST_ROOM: usize = 4 << 20;

impl Default for Servers {
    fn default() -> Self {
        Self::with_room_for(0)
    }
}

/// The filter of a listing of servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only revoked servers, or only others.
    pub revoked: Option<bool>,
    /// Only those last seen before this instant.
    pub seen_before: Option<Timestamp>,
    /// Only those last seen at this instant or later.
    pub seen_since: Option<Timestamp>,
    /// Only those that this access token enrolled.
    pub enrolled_by: Option<TokenNumber>,
    /// Deleted servers whose records are kept, in place of the others.
    pub deleted: bool,
}

/// How many servers are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByState {
    /// Those that have checked in lately.
    pub live: usize,
    /// Those, not revoked, that have not.
    pub stale: usize,
    /// Those that are revoked.
    pub revoked: usize,
}

/// The order of a listing of servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Those registered last come first.
    Newest,
    /// Those registered first come first.
    Oldest,
    /// Those seen last come first.
    SeenLast,
    /// Those not seen for longest come first.
    SeenFirst,
}

/// A page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// How many servers match, on this page and on others.
    pub count: usize,
    /// The servers of the page, in their order.
    pub servers: Vec<Placed>,
}

/// A server, and where it stands in the order of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Placed {
    /// The place, with which the next page begins. It is not the number of servers before it.
    pub place: u64,
    /// The server's number.
    pub number: ServerNumber,
    /// The server's id.
    pub id: ServerId,
}

/// The smallest of many values, at most `limit` of them. It takes no memory for the others.
pub(super) struct Smallest<T> {
    largest_first: BinaryHeap<T>,
    limit: usize,
}

impl<T: Ord> Smallest<T> {
    pub(super) const fn new(limit: usize) -> Self {
        Self { largest_first: BinaryHeap::new(), limit }
    }

    pub(super) fn add(&mut self, value: T) {
        self.largest_first.push(value);
        if self.largest_first.len() > self.limit {
            self.largest_first.pop();
        }
    }

    pub(super) fn sorted(self) -> Vec<T> {
        self.largest_first.into_sorted_vec()
    }
}

/// Returns at most `limit` of some numbers behind the newest `skip`, the newest first. Sorts no more than it
/// has to: first what is before the end, then the page alone.
fn newest_of(
    mut numbers: Vec<Reverse<ServerNumber>>,
    skip: usize,
    limit: usize,
) -> Vec<ServerNumber> {
    let end = skip.saturating_add(limit);
    if end < numbers.len() {
        numbers.select_nth_unstable(end);
        numbers.truncate(end);
    }
    if skip >= numbers.len() {
        return Vec::new();
    }
    numbers.select_nth_unstable(skip);
    let mut page = numbers.split_off(skip);
    page.sort_unstable();
    page.into_iter().map(|Reverse(number)| number).collect()
}

impl Filter {
    /// Whether a server matches.
    pub fn matches(&self, server: &Server) -> bool {
        self.matches_live(&Live::of(server))
    }

    fn matches_live(&self, live: &Live) -> bool {
        let last_checkin = live.last_checkin();
        self.deleted == live.flags.has(Flags::DELETED)
            && self.revoked.is_none_or(|wanted| wanted == live.flags.has(Flags::REVOKED))
            && self.enrolled_by.is_none_or(|token| live.key.access_token() == Some(token))
            && self.seen_before.is_none_or(|instant| last_checkin < instant)
            && self.seen_since.is_none_or(|instant| last_checkin >= instant)
    }
}

impl Servers {
    fn with_room_for(servers: usize) -> Self {
        Self {
            live: DashMap::with_capacity_and_shard_amount(servers, SHARDS),
            count: AtomicUsize::new(0),
            silent: Mutex::default(),
        }
    }

    pub(super) fn insert(&self, id: ServerId, live: Live) {
        let before = self.live.insert(id, live);
        self.count_change(before, Some(live));
    }

    /// Removes a server if `is_gone` says so. Returns what memory had of it.
    pub(super) fn remove(&self, id: ServerId, is_gone: impl FnOnce(&Live) -> bool) -> Option<Live> {
        let (_, live) = self.live.remove_if(&id, |_, live| is_gone(live))?;
        self.count_change(Some(live), None);
        Some(live)
    }

    fn count_change(&self, before: Option<Live>, after: Option<Live>) {
        let counts = |live: Option<Live>| live.is_some_and(|live| !live.flags.has(Flags::DELETED));
        match (counts(before), counts(after)) {
            (false, true) => self.count.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.count.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
    }

    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Returns the number of servers that match `filter`.
    pub fn count(&self, filter: &Filter) -> usize {
        if *filter == Filter::default() {
            return self.len();
        }
        self.live.iter().filter(|entry| filter.matches_live(entry.value())).count()
    }

    /// Returns how many servers are live, stale (last seen before `stale`) and revoked, without deleted ones.
    ///
    /// It examines all servers: a million take about 50 ms.
    pub fn by_state(&self, stale: Timestamp) -> ByState {
        let mut counts = ByState::default();
        for entry in &self.live {
            let live = entry.value();
            if live.flags.has(Flags::DELETED) {
                continue;
            }
            let of_its_state = if live.flags.has(Flags::REVOKED) {
                &mut counts.revoked
            } else if live.last_checkin() < stale {
                &mut counts.stale
            } else {
                &mut counts.live
            };
            *of_its_state += 1;
        }
        counts
    }

    /// Returns how many servers each access token has enrolled. Revoked ones do not count.
    ///
    /// It examines all servers: a million take about 50 ms.
    pub fn enrolled(&self) -> HashMap<TokenNumber, usize> {
        let mut enrolled = HashMap::new();
        for entry in &self.live {
            if let Some(token) = entry.enrolled_by() {
                *enrolled.entry(token).or_default() += 1;
            }
        }
        enrolled
    }

    /// Returns at most `limit` of the servers that match `filter`, in the order of `sort`. Only servers behind
    /// the place `after` are returned; all are counted.
    ///
    /// It examines all servers: a million take about 50 ms.
    pub fn page(&self, filter: &Filter, sort: Sort, after: Option<u64>, limit: usize) -> Page {
        let (mut count, mut first) = (0, Smallest::new(limit));
        for entry in self.live.iter().filter(|entry| filter.matches_live(entry.value())) {
            count += 1;
            let (number, seen) = (entry.number.0, entry.last_checkin);
            let place = match sort {
                Sort::Newest => u64::from(u32::MAX - number),
                Sort::Oldest => u64::from(number),
                Sort::SeenLast => u64::from(u32::MAX - seen) << 32 | u64::from(number),
                Sort::SeenFirst => u64::from(seen) << 32 | u64::from(number),
            };
            if after.is_none_or(|after| place > after) {
                first.add(Placed { place, number: entry.number, id: *entry.key() });
            }
        }
        Page { count, servers: first.sorted() }
    }

    /// Returns how many servers match `filter`, and the numbers of at most `limit` of those that were
    /// registered before `before`, the newest first.
    ///
    /// It examines all servers, and takes four bytes for each match: a million take about 50 ms.
    pub fn newest(
        &self,
        filter: &Filter,
        before: Option<ServerNumber>,
        limit: usize,
    ) -> (usize, Vec<ServerNumber>) {
        let mut numbers = self.matching(filter);
        let count = numbers.len();
        if let Some(before) = before {
            numbers.retain(|Reverse(number)| *number < before);
        }
        (count, newest_of(numbers, 0, limit))
    }

    /// Returns how many servers match `filter`, and the numbers of at most `limit` of them behind the first
    /// `skip`, the newest first.
    ///
    /// It examines all servers, and takes four bytes for each match: a million take about 50 ms.
    pub fn page_at(
        &self,
        filter: &Filter,
        skip: usize,
        limit: usize,
    ) -> (usize, Vec<ServerNumber>) {
        let numbers = self.matching(filter);
        (numbers.len(), newest_of(numbers, skip, limit))
    }

    fn matching(&self, filter: &Filter) -> Vec<Reverse<ServerNumber>> {
        let entries = self.live.iter().filter(|entry| filter.matches_live(entry.value()));
        entries.map(|entry| Reverse(entry.number)).collect()
    }

    /// Returns the number of the server with this id, as far as memory knows it.
    pub fn number_of(&self, id: ServerId) -> Option<ServerNumber> {
        self.live.get(&id).map(|live| live.number)
    }

    /// Returns whether a server that an installation has registered has checked in since, as far as memory
    /// knows it.
    pub fn has_checked_in(&self, id: ServerId) -> bool {
        self.live.get(&id).is_some_and(|live| !live.flags.has(Flags::AWAITED))
    }

    /// Returns a record read from disk, with the time of its last check-in, which may not be on disk
    /// yet.
    pub fn as_last_seen(&self, mut server: Server, now: Timestamp) -> Server {
        if let Some(seen) = self.live.get(&server.id).map(|live| live.last_checkin()) {
            server.last_checkin = server.last_checkin.or_later(seen, now);
        }
        server
    }
}

/// The stored servers, with which the registry starts.
pub(crate) struct Registered {
    pub(super) servers: Arc<Servers>,
    pub(super) owners: Owners,
    pub(super) last_number: Option<ServerNumber>,
}

/// What the registry alone knows of servers besides. Both are empty in most stores.
#[derive(Default)]
pub(super) struct Owners {
    /// The ids of imported servers by those of their addresses. A tree takes 27 MB for a million, a hash map 36.
    at: BTreeMap<ServerId, ServerId>,
    /// How many servers each access token has enrolled, revoked and deleted ones not counted.
    enrolled: HashMap<TokenNumber, u64>,
}

impl Owners {
    /// Returns the id of the imported server at an address.
    pub(super) fn imported(&self, address: ServerId) -> Option<ServerId> {
        self.at.get(&address).copied()
    }

    pub(super) fn enrolled(&self, by: TokenNumber) -> u64 {
        self.enrolled.get(&by).copied().unwrap_or(0)
    }

    /// Notes that a server is about to be registered under another id than that of its address.
    pub(super) fn expect(&mut self, address: ServerId, id: ServerId) {
        self.at.insert(address, id);
    }

    /// Notes what memory has of a server now, and what it had before.
    pub(super) fn note(&mut self, server: &Server, before: Option<&Live>, now: &Live) {
        if now.flags.has(Flags::IMPORTED) {
            self.at.insert(server.address_id, server.id);
        } else {
            // Another process may have deleted the imported server that was there.
            self.at.remove(&server.address_id);
        }
        self.count(before.and_then(Live::enrolled_by), now.enrolled_by());
    }

    /// Notes that memory has forgotten a server, of which it had this before. Where its address is not
    /// known, the address still leads to its id, and nothing is found there.
    pub(super) fn forget(&mut self, address: Option<ServerId>, before: &Live) {
        if let Some(address) = address {
            self.at.remove(&address);
        }
        self.count(before.enrolled_by(), None);
    }

    fn count(&mut self, before: Option<TokenNumber>, now: Option<TokenNumber>) {
        if before == now {
            return;
        }
        if let Some(token) = before
            && let Some(count) = self.enrolled.get_mut(&token)
        {
            *count = count.saturating_sub(1);
        }
        if let Some(token) = now {
            *self.enrolled.entry(token).or_default() += 1;
        }
    }
}

impl Registered {
    /// Reads all servers.
    pub(crate) fn load(store: &dyn Store) -> Result<Self, ReadError> {
        // Also of a server that was deleted since.
        let mut last_number = store.frontier()?.server;
        let most = last_number.map_or(0, |last| last.0 as usize + 1).min(MOST_ROOM);
        let (servers, mut owners) = (Servers::with_room_for(most), Owners::default());
        store.each_server(&mut |server| {
            last_number = last_number.max(Some(server.number));
            let mut live = Live::of(&server);
            // A check-in within the second of the registration is not told apart.
            if server.last_checkin == server.registered_at {
                live.await_check_in(&server, None);
            }
            owners.note(&server, None, &live);
            servers.insert(server.id, live);
        })?;
        Ok(Self { servers: Arc::new(servers), owners, last_number })
    }

    pub(crate) fn published(&self) -> Arc<Servers> {
        Arc::clone(&self.servers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iptunnel_domain::lookup::KeyedHash;
    use iptunnel_domain::server::Credential;

    fn live(number: u32) -> Live {
        let credential =
            Credential { hash: KeyedHash([1; 16]), by: EnrolledBy::Master, made_ms: None };
        let (id, ip) = (ServerId(0), std::net::IpAddr::from([1, 2, 3, 4]));
        let (number, now) = (ServerNumber(number), Timestamp(0));
        Live::of(&Server::register(number, id, (id, ip), "".into(), &credential, now))
    }

    #[test]
    fn memory_keeps_32_bytes_of_a_server() {
        assert_eq!(size_of::<Live>(), 32);
    }

    #[test]
    fn a_page_has_the_newest_behind_those_that_are_skipped() {
        let servers = Servers::default();
        for number in 0..10u32 {
            let mut live = live(number);
            live.flags.set(Flags::REVOKED, number % 2 == 0);
            servers.insert(ServerId(u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15)), live);
        }
        let page = |filter, skip, limit| {
            let (count, page) = servers.page_at(&filter, skip, limit);
            (count, page.into_iter().map(|number| number.0).collect::<Vec<_>>())
        };
        let all = Filter::default();
        assert_eq!(page(all, 0, 3), (10, vec![9, 8, 7]));
        assert_eq!(page(all, 8, 3), (10, vec![1, 0]));
        assert_eq!(page(all, 10, 3), (10, vec![]));
        assert_eq!(page(all, usize::MAX, 3), (10, vec![]));
        let revoked = Filter { revoked: Some(true), ..all };
        assert_eq!(page(revoked, 1, 100), (5, vec![6, 4, 2, 0]));
        let newest = |filter, before: Option<u32>, limit| {
            let (count, page) = servers.newest(&filter, before.map(ServerNumber), limit);
            (count, page.into_iter().map(|number| number.0).collect::<Vec<_>>())
        };
        assert_eq!(newest(all, None, 3), (10, vec![9, 8, 7]));
        assert_eq!(newest(revoked, Some(6), usize::MAX), (5, vec![4, 2, 0]));
        assert_eq!(newest(revoked, Some(0), 1), (5, vec![]));
        let sorted = |sort, after, limit| {
            let Page { count, servers } = servers.page(&revoked, sort, after, limit);
            (count, servers.into_iter().map(|placed| placed.number.0).collect::<Vec<_>>())
        };
        assert_eq!(sorted(Sort::Oldest, None, 2), (5, vec![0, 2]));
        assert_eq!(sorted(Sort::Oldest, Some(2), 2), (5, vec![4, 6]));
        assert_eq!(sorted(Sort::Newest, None, 9), (5, vec![8, 6, 4, 2, 0]));
        assert_eq!(sorted(Sort::SeenFirst, None, 0), (5, vec![]));
    }

    #[test]
    fn a_listing_blocks_the_actors_for_one_server_in_a_thousand_at_most() {
        let servers = Servers::default();
        let live = live(0);
        let ids = || (0..100_000u64).map(|n| ServerId(n.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        for id in ids() {
            servers.insert(id, live);
        }
        let listing = servers.live.iter().next().unwrap();
        let held = ids().filter(|id| servers.live.try_get_mut(id).is_locked()).count();
        drop(listing);
        assert!(held <= 100, "{held} of 100,000");
        servers.insert(ServerId(0), live);
        assert_eq!(servers.len(), 100_000, "a known server is not counted twice");
    }
}
