//! The counters of the rate limits: a bounded table that finds the counter to evict at once.
//!
//! Each counter has a numbered slot, with the same number in the store, and is in one list of all
//! counters with the same window, policy and charge. Free slots have a list of their own. A slot joins
//! and leaves its list without a walk. There are few windows, and each sorts its lists by charge, so
//! the counter to evict is found at once: one of a window that is not the current one, else the least
//! charged, never one that is at its limit. A counter takes 24 bytes, and 5 to 10 in the index.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use iptunnel_domain::Timestamp;
use iptunnel_domain::limit::{Limits, Policy, Standing, Subject};
use iptunnel_storage::{Counter, CounterRow};
use std::collections::{BTreeMap, VecDeque};

/// No slot: the end of a list.
const NONE: u32 = u32::MAX;
/// Windows end on whole hours, so an hour's number is enough.
const HOUR: u64 = 3600;

/// A policy's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Window {
    end_hour: u32,
    policy: Policy,
}

impl Window {
    fn new(policy: Policy, end: Timestamp) -> Self {
        Self { end_hour: u32::try_from(end.0 / HOUR).unwrap_or(u32::MAX), policy }
    }

    fn end(self) -> Timestamp {
        Timestamp(u64::from(self.end_hour) * HOUR)
    }

    /// Whether it has ended, or began in the future because a clock was wrong. It does not count then.
    fn is_void(self, now: Timestamp) -> bool {
        self.end() != self.policy.window_end(now)
    }
}

/// What the counters of one list share. A slot with nothing used is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Class {
    window: Window,
    used: u32,
}

impl Class {
    fn of(counter: &Counter) -> Self {
        Self { window: Window::new(counter.policy, counter.window_end), used: counter.used }
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    key: u64,
    end_hour: u32,
    /// The lower 27 bits are the charge, then four bits of policy and one for "not written yet".
    packed: u32,
    previous: u32,
    next: u32,
}

const USED_BITS: u32 = 27;
const USED: u32 = (1 << USED_BITS) - 1;
const DIRTY: u32 = 1 << 31;

impl Slot {
    const FREE: Self = Self { key: 0, end_hour: 0, packed: 0, previous: NONE, next: NONE };

    fn class(&self) -> Class {
        let number = (self.packed & !DIRTY) >> USED_BITS;
        let policy = u8::try_from(number).ok().and_then(Policy::from_number);
        let policy = policy.unwrap_or(Policy::IssuePerIpHour);
        let window = Window { end_hour: self.end_hour, policy };
        Class { window, used: self.packed & USED }
    }

    fn set_class(&mut self, class: Class) {
        let Class { window: Window { end_hour, policy }, used } = class;
        self.end_hour = end_hour;
        self.packed = (self.packed & DIRTY) | (policy as u32) << USED_BITS | used.min(USED);
    }

    fn counter(&self) -> Option<Counter> {
        let class = self.class();
        (class.used > 0).then_some(Counter {
            key: self.key,
            policy: class.window.policy,
            used: class.used,
            window_end: class.window.end(),
        })
    }
}

/// The slots by number. They are stored in pieces, so that growing copies nothing: one vector of
/// 100 MB would be in memory twice while it grows.
#[derive(Default)]
struct Slots(Vec<Vec<Slot>>);

/// Slots to a piece, a power of two: 400 KB.
const PIECE: usize = 1 << 14;

impl Slots {
    fn get(&self, number: u32) -> Option<&Slot> {
        self.0.get(number as usize / PIECE)?.get(number as usize % PIECE)
    }

    fn get_mut(&mut self, number: u32) -> Option<&mut Slot> {
        self.0.get_mut(number as usize / PIECE)?.get_mut(number as usize % PIECE)
    }

    fn len(&self) -> usize {
        let full = self.0.len().saturating_sub(1) * PIECE;
        full + self.0.last().map_or(0, Vec::len)
    }

    /// The slots of `pieces` that are in use, each with its number. The first piece is number `first`.
    fn used(pieces: &[Vec<Slot>], first: usize) -> impl Iterator<Item = (u64, u32)> {
        let numbers = (first * PIECE) as u32..;
        let slots = numbers.zip(pieces.iter().flatten());
        slots.filter(|(_, slot)| slot.packed & USED > 0).map(|(number, slot)| (slot.key, number))
    }

    fn push(&mut self, slot: Slot) {
        match self.0.last_mut() {
            Some(piece) if piece.len() < PIECE => piece.push(slot),
            _ => {
                let mut piece = Vec::with_capacity(PIECE);
                piece.push(slot);
                self.0.push(piece);
            }
        }
    }
}

/// The slots by key. Keys are keyed hashes, so a key is its own hash.
///
/// The index is split into many small tables. A hash table that grows, or cleans up after removals,
/// walks over all its entries, and four million entries would delay every actor.
struct Index {
    tables: Vec<HashTable<u32>>,
    len: usize,
}

/// Tables of the index, a power of two: four million counters are a thousand to a table, and one of
/// them grows in some ten microseconds.
const TABLES: usize = 1 << 12;

impl Default for Index {
    fn default() -> Self {
        Self { tables: std::iter::repeat_with(HashTable::new).take(TABLES).collect(), len: 0 }
    }
}

impl Index {
    /// Returns the table of a key. It uses middle bits, because the table itself uses the lowest and the
    /// highest.
    const fn table(key: u64) -> usize {
        (key >> 40) as usize % TABLES
    }

    fn find(&self, key: u64, slots: &Slots) -> Option<u32> {
        let same = |slot: &u32| slots.get(*slot).is_some_and(|slot| slot.key == key);
        self.tables.get(Self::table(key))?.find(key, same).copied()
    }

    /// Inserts a key that is not in the index yet.
    fn insert(&mut self, key: u64, number: u32, slots: &Slots) {
        if let Some(table) = self.tables.get_mut(Self::table(key)) {
            let key_of = |number: &u32| slots.get(*number).map_or(0, |slot| slot.key);
            table.insert_unique(key, number, key_of);
            self.len += 1;
        }
    }

    /// Inserts all slots in use into an empty index. Returns those whose key another slot has already.
    fn fill(&mut self, slots: &Slots) -> Vec<u32> {
        let key_of = |number: &u32| slots.get(*number).map_or(0, |slot| slot.key);
        let sizes = count_by_table(Slots::used(&slots.0, 0));
        for (table, size) in self.tables.iter_mut().zip(sizes) {
            table.reserve(size, key_of);
        }
        let mut twice = Vec::new();
        for (block, pieces) in slots.0.chunks(BLOCK).enumerate() {
            for (key, number) in sorted_by_table(|| Slots::used(pieces, block * BLOCK)) {
                let Some(table) = self.tables.get_mut(Self::table(key)) else { continue };
                match table.entry(key, |other| key_of(other) == key, key_of) {
                    Entry::Occupied(_) => twice.push(number),
                    Entry::Vacant(place) => {
                        place.insert(number);
                        self.len += 1;
                    }
                }
            }
        }
        twice
    }

    fn remove(&mut self, key: u64, number: u32) {
        if let Some(table) = self.tables.get_mut(Self::table(key))
            && let Ok(entry) = table.find_entry(key, |other| *other == number)
        {
            entry.remove();
            self.len -= 1;
        }
    }
}

/// Pieces of slots whose keys are sorted together: a million slots, for which 16 MB are needed.
const BLOCK: usize = if cfg!(test) { 1 } else { 64 };

/// Returns how many keys each table of the index gets.
fn count_by_table(keys: impl Iterator<Item = (u64, u32)>) -> Vec<usize> {
    let mut counts = vec![0; TABLES];
    for (key, _) in keys {
        if let Some(count) = counts.get_mut(Index::table(key)) {
            *count += 1;
        }
    }
    counts
}

/// Returns the keys in the order of their tables. Those of one table keep their order.
fn sorted_by_table<I: Iterator<Item = (u64, u32)>>(keys: impl Fn() -> I) -> Vec<(u64, u32)> {
    let (mut places, mut len) = (count_by_table(keys()), 0);
    for place in &mut places {
        len += std::mem::replace(place, len);
    }
    let mut sorted = vec![(0, 0); len];
    for (key, number) in keys() {
        let Some(place) = places.get_mut(Index::table(key)) else { continue };
        if let Some(entry) = sorted.get_mut(*place) {
            *entry = (key, number);
        }
        *place += 1;
    }
    sorted
}

/// The stored counters, while a start reads them.
///
/// The index is filled at the end, table by table. One after the other, each counter would look for its key in a
/// table outside all caches, and the tables would grow many times: four million counters took more than a second.
pub(crate) struct Restored {
    counters: Counters,
    now: Timestamp,
}

impl Restored {
    pub(crate) fn new(now: Timestamp) -> Self {
        Self { counters: Counters::new(), now }
    }

    /// Adds the counter of a slot.
    pub(crate) fn add(&mut self, slot: u32, counter: Counter) {
        if Class::of(&counter).window.is_void(self.now) {
            self.counters.add_slots(slot.saturating_add(1));
            // Written later, so that the store deletes it, too.
            self.counters.mark_dirty(slot);
        } else {
            self.counters.place(slot, counter);
        }
    }

    /// Returns all of them. Of several slots with one key the first counts.
    pub(crate) fn finish(self) -> Counters {
        let mut counters = self.counters;
        for number in counters.index.fill(&counters.slots) {
            counters.free(number);
        }
        counters
    }
}

/// All counters.
pub(crate) struct Counters {
    slots: Slots,
    index: Index,
    /// The first free slot.
    free: u32,
    /// The lists of each window by charge: the first slot of each.
    windows: BTreeMap<Window, BTreeMap<u32, u32>>,
    /// Slots that are not written yet, the oldest change first.
    dirty: VecDeque<u32>,
}

/// The table is full: all counters have reached their limits, so none can be evicted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Counters {
    pub(crate) fn new() -> Self {
        Self {
            slots: Slots::default(),
            index: Index::default(),
            free: NONE,
            windows: BTreeMap::new(),
            dirty: VecDeque::new(),
        }
    }

    /// Returns the number of counters.
    pub(crate) fn len(&self) -> usize {
        self.index.len
    }

    fn find(&self, key: u64) -> Option<u32> {
        self.index.find(key, &self.slots)
    }

    /// Returns the standing of `subject` at `now`.
    pub(crate) fn standing(&self, subject: &Subject, limits: &Limits, now: Timestamp) -> Standing {
        let window_end = subject.policy.window_end(now);
        let slot = self.find(subject.key()).and_then(|slot| self.slots.get(slot));
        let class = slot.map(Slot::class);
        let used = class.filter(|c| c.window.end() == window_end).map_or(0, |c| c.used);
        let allowed = limits.allowed(subject.policy);
        Standing { policy: subject.policy, allowed, used, window_end }
    }

    /// Makes sure that `subjects` can be charged, by evicting other counters if needed.
    ///
    /// # Errors
    /// [`Full`] if no counter may be evicted.
    pub(crate) fn make_room(
        &mut self,
        subjects: &[Subject],
        limits: &Limits,
        now: Timestamp,
    ) -> Result<(), Full> {
        let needed = |it: &Self| {
            it.len() + subjects.iter().filter(|subject| it.find(subject.key()).is_none()).count()
        };
        let room = limits.max_tracked as usize;
        let mut tries = subjects.len() + EXTRA_EVICTIONS;
        while needed(self) > room && tries > 0 {
            let Some(victim) = self.victim(subjects, limits, now) else { return Err(Full) };
            self.remove(victim);
            tries -= 1;
        }
        Ok(())
    }

    /// Returns a counter of a void window.
    fn void(&self, now: Timestamp) -> Option<u32> {
        let mut void = self.windows.iter().filter(|(window, _)| window.is_void(now));
        void.find_map(|(_, lists)| lists.first_key_value()).map(|(_, head)| *head)
    }

    /// Returns the counter to evict: one of a void window, else the least charged below its limit.
    fn victim(&self, spared: &[Subject], limits: &Limits, now: Timestamp) -> Option<u32> {
        let keys: Vec<u64> = spared.iter().map(Subject::key).collect();
        let least_charged = || {
            let of_each = self.windows.iter().filter_map(|(window, lists)| {
                let below_limit = lists.range(..limits.allowed(window.policy));
                // The few spared counters fill a few lists at most.
                let mut slots = below_limit.filter_map(|(used, head)| {
                    self.first_other_than(&keys, *head).map(|slot| (*used, slot))
                });
                slots.next()
            });
            of_each.min().map(|(_, slot)| slot)
        };
        self.void(now).or_else(least_charged)
    }

    /// Returns the first slot of a list that holds none of `keys`, of which there are few.
    fn first_other_than(&self, keys: &[u64], head: u32) -> Option<u32> {
        let mut at = head;
        while let Some(slot) = self.slots.get(at) {
            if !keys.contains(&slot.key) {
                return Some(at);
            }
            at = slot.next;
        }
        None
    }

    /// Charges `subject` once in the window of `now`.
    pub(crate) fn charge(&mut self, subject: &Subject, now: Timestamp) {
        let window_end = subject.policy.window_end(now);
        let fresh = Counter { key: subject.key(), policy: subject.policy, used: 1, window_end };
        match self.find(fresh.key) {
            None => {
                let slot = if self.free == NONE { self.slots.len() as u32 } else { self.free };
                self.put(slot, fresh);
                self.mark_dirty(slot);
            }
            Some(slot) => {
                let Some(class) = self.slots.get(slot).map(Slot::class) else { return };
                let same = class.window.end() == window_end;
                let used = if same { class.used.saturating_add(1) } else { 1 };
                self.move_to(slot, Class::of(&Counter { used, ..fresh }));
            }
        }
    }

    /// Gives one charge back that was made in the window that ends at `window_end`.
    pub(crate) fn give_back(&mut self, key: u64, window_end: Timestamp) {
        let Some(slot) = self.find(key) else { return };
        let Some(class) = self.slots.get(slot).map(Slot::class) else { return };
        match class.used {
            _ if class.window.end() != window_end => {}
            0 | 1 => self.remove(slot),
            used => self.move_to(slot, Class { used: used - 1, ..class }),
        }
    }

    /// Removes at most `budget` counters of void windows.
    pub(crate) fn expire(&mut self, budget: usize, now: Timestamp) {
        for _ in 0..budget {
            let Some(slot) = self.void(now) else {
                return self.windows.retain(|window, _| !window.is_void(now));
            };
            self.remove(slot);
        }
    }

    /// Takes at most `count` rows that are not written yet.
    pub(crate) fn take_dirty(&mut self, count: usize) -> Vec<CounterRow> {
        let count = count.min(self.dirty.len());
        let mut rows = Vec::with_capacity(count);
        for number in self.dirty.drain(..count) {
            if let Some(slot) = self.slots.get_mut(number) {
                slot.packed &= !DIRTY;
                rows.push(CounterRow { slot: number, counter: slot.counter() });
            }
        }
        rows
    }

    /// Returns the number of slots that are not written yet.
    pub(crate) fn dirty(&self) -> usize {
        self.dirty.len()
    }

    /// Marks a slot as not written yet.
    pub(crate) fn mark_dirty(&mut self, number: u32) {
        if let Some(slot) = self.slots.get_mut(number)
            && slot.packed & DIRTY == 0
        {
            slot.packed |= DIRTY;
            self.dirty.push_back(number);
        }
    }

    /// Adds free slots until there are `count` slots.
    fn add_slots(&mut self, count: u32) {
        while self.slots.len() < count as usize {
            let number = self.slots.len() as u32;
            self.slots.push(Slot::FREE);
            self.link(number);
        }
    }

    /// Puts a new counter into a free slot.
    fn put(&mut self, number: u32, counter: Counter) {
        self.place(number, counter);
        self.index.insert(counter.key, number, &self.slots);
    }

    /// Puts a new counter into a free slot, and not into the index.
    fn place(&mut self, number: u32, counter: Counter) {
        self.add_slots(number);
        if self.slots.len() == number as usize {
            self.slots.push(Slot::FREE);
        } else {
            self.unlink(number);
        }
        if let Some(slot) = self.slots.get_mut(number) {
            slot.key = counter.key;
            slot.set_class(Class::of(&counter));
        }
        self.link(number);
    }

    fn remove(&mut self, number: u32) {
        if let Some(key) = self.slots.get(number).map(|slot| slot.key) {
            self.index.remove(key, number);
            self.free(number);
        }
    }

    /// Frees a slot that is not in the index.
    fn free(&mut self, number: u32) {
        self.unlink(number);
        if let Some(slot) = self.slots.get_mut(number) {
            slot.packed &= DIRTY;
        }
        self.link(number);
        self.mark_dirty(number);
    }

    fn move_to(&mut self, number: u32, class: Class) {
        self.unlink(number);
        if let Some(slot) = self.slots.get_mut(number) {
            slot.set_class(class);
        }
        self.link(number);
        self.mark_dirty(number);
    }

    /// Puts a slot at the head of its list.
    fn link(&mut self, number: u32) {
        let Some(class) = self.slots.get(number).map(Slot::class) else { return };
        let head = self.set_head(class, number);
        if let Some(slot) = self.slots.get_mut(number) {
            (slot.previous, slot.next) = (NONE, head);
        }
        if let Some(old_head) = self.slots.get_mut(head) {
            old_head.previous = number;
        }
    }

    /// Takes a slot out of its list.
    fn unlink(&mut self, number: u32) {
        let Some(slot) = self.slots.get(number).copied() else { return };
        if let Some(next) = self.slots.get_mut(slot.next) {
            next.previous = slot.previous;
        }
        if let Some(previous) = self.slots.get_mut(slot.previous) {
            previous.next = slot.next;
        } else {
            self.set_head(slot.class(), slot.next);
        }
    }

    /// Sets the first slot of a list, or removes the list if that is [`NONE`]. Returns the previous first
    /// slot. A window without lists is kept, because it is about to get another one.
    fn set_head(&mut self, class: Class, head: u32) -> u32 {
        if class.used == 0 {
            return std::mem::replace(&mut self.free, head);
        }
        let lists = self.windows.entry(class.window).or_default();
        let before =
            if head == NONE { lists.remove(&class.used) } else { lists.insert(class.used, head) };
        before.unwrap_or(NONE)
    }
}

/// The number of counters that one request evicts beyond those needed. So a lowered bound is reached
/// soon, and no single request pays for all evictions.
const EXTRA_EVICTIONS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use iptunnel_domain::lookup::KeyedHash;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const IP: Policy = Policy::ActivatePerIpDay;

    fn subject(policy: Policy, who: u64) -> Subject {
        let spread = u128::from(who.wrapping_mul(0x9E37_79B9_7F4A_7C15)) << 64;
        Subject { policy, who: KeyedHash(spread.to_be_bytes()) }
    }

    fn limits(max_tracked: u32) -> Limits {
        Limits::new(|policy| Limits::default().allowed(policy), max_tracked)
    }

    fn used(counters: &Counters, who: u64, now: u64) -> u32 {
        counters.standing(&subject(IP, who), &limits(10), Timestamp(now)).used
    }

    fn charge(counters: &mut Counters, who: u64, now: u64, limits: &Limits) -> Result<(), Full> {
        let subject = subject(IP, who);
        counters.make_room(&[subject], limits, Timestamp(now))?;
        counters.charge(&subject, Timestamp(now));
        Ok(())
    }

    fn restored(rows: &[CounterRow], now: u64) -> Counters {
        let mut restored = Restored::new(Timestamp(now));
        for row in rows {
            if let Some(counter) = row.counter {
                restored.add(row.slot, counter);
            }
        }
        restored.finish()
    }

    #[test]
    fn counters_of_every_policy_are_written_and_restored() {
        let of = |policy: Policy| Subject { policy, who: subject(policy, 7).who };
        let mut counters = Counters::new();
        for policy in Policy::ALL {
            counters.charge(&of(policy), Timestamp(0));
            counters.charge(&of(policy), Timestamp(0));
        }
        let again = restored(&counters.take_dirty(100), 0);
        for policy in Policy::ALL {
            let standing = again.standing(&of(policy), &limits(100), Timestamp(0));
            assert_eq!((standing.used, standing.policy), (2, policy));
        }
    }

    #[test]
    fn of_two_stored_slots_with_one_key_the_first_counts_and_the_other_is_free() {
        let counter = |who, used| {
            let (key, window_end) = (subject(IP, who).key(), IP.window_end(Timestamp(0)));
            Some(Counter { key, policy: IP, used, window_end })
        };
        let row = |slot, counter| CounterRow { slot, counter };
        let rows = [row(1, counter(7, 2)), row(2, counter(8, 1)), row(4, counter(7, 3))];
        let mut counters = restored(&rows, 0);
        assert_eq!([7, 8].map(|who| used(&counters, who, 0)), [2, 1]);
        assert_eq!((counters.len(), free(&counters)), (2, vec![4, 3, 0]));
        assert_eq!(counters.take_dirty(9), [row(4, None)]);
        charge(&mut counters, 7, 0, &limits(10)).unwrap();
        assert_eq!(used(&counters, 7, 0), 3);
    }

    #[test]
    fn more_counters_than_a_block_are_all_restored() {
        let rows: Vec<CounterRow> = (0..(BLOCK * PIECE + 3) as u32)
            .map(|slot| {
                let (key, window_end) =
                    (subject(IP, slot.into()).key(), IP.window_end(Timestamp(0)));
                CounterRow { slot, counter: Some(Counter { key, policy: IP, used: 1, window_end }) }
            })
            .collect();
        let counters = restored(&rows, 0);
        assert_eq!(counters.len(), rows.len());
        let all = 0..rows.len() as u64;
        assert_eq!(all.filter(|who| used(&counters, *who, 0) != 1).count(), 0);
    }

    #[test]
    fn ended_windows_are_evicted_first_then_the_least_charged_never_one_at_its_limit() {
        let mut counters = Counters::new();
        let limits = limits(3);
        for _ in 0..5 {
            charge(&mut counters, 1, 0, &limits).unwrap();
        }
        charge(&mut counters, 2, 0, &limits).unwrap();
        charge(&mut counters, 2, 0, &limits).unwrap();
        charge(&mut counters, 3, 0, &limits).unwrap();
        charge(&mut counters, 4, 0, &limits).unwrap();
        assert_eq!([1, 2, 3, 4].map(|who| used(&counters, who, 0)), [5, 2, 0, 1]);

        let next_day = 86_400;
        charge(&mut counters, 5, next_day, &limits).unwrap();
        assert_eq!((counters.len(), used(&counters, 5, next_day)), (3, 1));
    }

    #[test]
    fn the_table_is_full_when_all_counters_are_at_their_limits() {
        let mut counters = Counters::new();
        let limits = limits(2);
        for who in [1, 1, 1, 1, 1, 2, 2, 2, 2, 2] {
            charge(&mut counters, who, 0, &limits).unwrap();
        }
        assert_eq!(charge(&mut counters, 3, 0, &limits), Err(Full));
        assert_eq!(
            charge(&mut counters, 1, 0, &limits),
            Ok(()),
            "a known caller can still be charged"
        );
    }

    #[test]
    fn an_eviction_never_takes_a_counter_of_the_same_request() {
        let mut counters = Counters::new();
        let limits = limits(1);
        let known = subject(IP, 1);
        counters.charge(&known, Timestamp(0));
        let both = [known, subject(Policy::ActivatePerMachineDay, 1)];
        assert_eq!(counters.make_room(&both, &limits, Timestamp(0)), Err(Full));
        assert_eq!(used(&counters, 1, 0), 1);
    }

    #[test]
    fn written_counters_are_restored_to_their_slots() {
        let mut counters = Counters::new();
        for who in [1, 2, 2, 3] {
            charge(&mut counters, who, 0, &limits(10)).unwrap();
        }
        counters.give_back(subject(IP, 3).key(), IP.window_end(Timestamp(0)));
        let rows = counters.take_dirty(100);
        assert_eq!(rows.len(), 3);
        assert!(counters.take_dirty(100).is_empty());
        let again = restored(&rows, 0);
        assert_eq!([1, 2, 3].map(|who| used(&again, who, 0)), [1, 2, 0]);
        let mut late = restored(&rows, 86_400);
        assert_eq!(late.len(), 0);
        assert!(late.take_dirty(100).iter().all(|row| row.counter.is_none()));
    }

    #[test]
    fn windows_dated_in_the_future_restart_and_are_evicted_first() {
        let (mut counters, month) = (Counters::new(), 30 * 86_400);
        let limits = limits(2);
        for who in [1, 1, 1, 1, 1, 2] {
            charge(&mut counters, who, month, &limits).unwrap();
        }
        assert_eq!([1, 2].map(|who| used(&counters, who, 0)), [0, 0]);
        charge(&mut counters, 1, 0, &limits).unwrap();
        assert_eq!(used(&counters, 1, 0), 1, "a new window");
        charge(&mut counters, 3, 0, &limits).unwrap();
        assert_eq!([1, 3].map(|who| used(&counters, who, 0)), [1, 1], "2 is evicted");
        charge(&mut counters, 2, month, &limits).unwrap();
        counters.expire(10, Timestamp(0));
        assert_eq!(counters.len(), 1, "the rest of the future windows expires");
    }

    #[test]
    fn a_window_dated_in_the_future_is_not_restored() {
        let mut counters = Counters::new();
        charge(&mut counters, 1, 30 * 86_400, &limits(10)).unwrap();
        let row = counters.take_dirty(1).remove(0);
        let mut again = restored(&[row], 0);
        assert_eq!(again.len(), 0);
        assert_eq!(again.take_dirty(9), [CounterRow { slot: row.slot, counter: None }]);
    }

    #[test]
    fn a_request_whose_own_counter_is_of_an_ended_window_stays_within_the_bound() {
        let mut counters = Counters::new();
        charge(&mut counters, 1, 0, &limits(1)).unwrap();
        let both = [subject(IP, 1), subject(Policy::ActivatePerMachineDay, 1)];
        assert_eq!(counters.make_room(&both, &limits(1), Timestamp(86_400)), Err(Full));
    }

    /// Returns all free slots, and checks that their list is the same backwards.
    fn free(counters: &Counters) -> Vec<u32> {
        let (mut all, mut at, mut before) = (Vec::new(), counters.free, NONE);
        while let Some(slot) = counters.slots.get(at) {
            assert_eq!((slot.previous, slot.class().used), (before, 0));
            all.push(at);
            (before, at) = (at, slot.next);
        }
        all
    }

    #[derive(Clone, Debug)]
    enum Step {
        Charge(u64),
        GiveBack(u64),
        Wait(i64),
        Expire,
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0u64..12).prop_map(Step::Charge),
            2 => (0u64..12).prop_map(Step::GiveBack),
            1 => (-20_000i64..50_000).prop_map(Step::Wait),
            1 => Just(Step::Expire),
            1 => Just(Step::Restart),
        ]
    }

    proptest! {
        /// Compares with a simple model: a map from subject to its last window and a number.
        #[test]
        fn a_table_that_is_not_full_counts_like_a_plain_map(steps in prop::collection::vec(step(), 1..200)) {
            let (mut counters, mut model) = (Counters::new(), HashMap::<u64, (u64, u32)>::new());
            let (mut now, mut disk) = (0u64, HashMap::new());
            for step in steps {
                let end = IP.window_end(Timestamp(now)).0;
                match step {
                    Step::Charge(who) => {
                        charge(&mut counters, who, now, &limits(1000)).unwrap();
                        let (window, used) = model.entry(who).or_default();
                        *used = if *window == end { *used + 1 } else { 1 };
                        *window = end;
                    }
                    Step::GiveBack(who) => {
                        counters.give_back(subject(IP, who).key(), Timestamp(end));
                        if let Some((_, used)) = model.get_mut(&who).filter(|(at, _)| *at == end) {
                            *used = used.saturating_sub(1);
                        }
                    }
                    Step::Wait(seconds) => now = now.saturating_add_signed(seconds),
                    Step::Expire => {
                        counters.expire(usize::MAX, Timestamp(now));
                        model.retain(|_, (window, _)| *window == end);
                    }
                    Step::Restart => {
                        for row in counters.take_dirty(usize::MAX) {
                            disk.insert(row.slot, row.counter);
                        }
                        let rows = disk.iter().map(|(&slot, &counter)| CounterRow { slot, counter });
                        let mut rows: Vec<_> = rows.collect();
                        rows.sort_by_key(|row| row.slot);
                        counters = restored(&rows, now);
                        model.retain(|_, (window, _)| *window == end);
                    }
                }
                let end = IP.window_end(Timestamp(now)).0;
                for who in 0..12 {
                    let counted = model.get(&who).filter(|(window, _)| *window == end);
                    let expected = counted.map_or(0, |(_, used)| *used);
                    prop_assert_eq!(used(&counters, who, now), expected);
                }
                prop_assert_eq!(counters.slots.len(), counters.len() + free(&counters).len());
            }
        }

        #[test]
        fn the_table_never_exceeds_its_bound(callers in prop::collection::vec(0u64..1000, 1..300)) {
            let mut counters = Counters::new();
            for who in callers {
                let _ = charge(&mut counters, who, 0, &limits(16));
                prop_assert!(counters.len() <= 16);
            }
        }
    }
}
