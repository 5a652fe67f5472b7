//! The counters behind the limits: a bounded table that knows which counter to give up first.
//!
//! Each counter stands in a numbered slot (where the store keeps it, too) and in one list of all
//! counters that share window, policy and charge. There are few such lists, so the one to give up
//! from is found at once: ended windows first, then the least charged, never a counter that is at
//! its limit. A counter costs 24 bytes and 5 to 10 in the index.

use hashbrown::HashTable;
use iptunnel_domain::Timestamp;
use iptunnel_domain::limit::{Limits, Policy, Standing, Subject};
use iptunnel_storage::{Counter, CounterRow};
use std::collections::{BTreeMap, VecDeque};

/// No slot: the end of a list.
const NONE: u32 = u32::MAX;
/// Windows end on whole hours, so an hour's number is enough.
const HOUR: u64 = 3600;

/// What the counters of one list have in common. Ordered by the end of their window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    end_hour: u32,
    policy: Policy,
    used: u32,
}

impl Class {
    fn of(counter: &Counter) -> Self {
        let end_hour = u32::try_from(counter.window_end.0 / HOUR).unwrap_or(u32::MAX);
        Self { end_hour, policy: counter.policy, used: counter.used }
    }

    fn window_end(&self) -> Timestamp {
        Timestamp(u64::from(self.end_hour) * HOUR)
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    key: u64,
    end_hour: u32,
    /// The lower 28 bits; above them three of policy and one that says that the store is behind.
    packed: u32,
    previous: u32,
    next: u32,
}

const USED_BITS: u32 = 28;
const USED: u32 = (1 << USED_BITS) - 1;
const DIRTY: u32 = 1 << 31;

impl Slot {
    fn class(&self) -> Class {
        let number = (self.packed & !DIRTY) >> USED_BITS;
        let policy = u8::try_from(number).ok().and_then(Policy::from_number);
        Class {
            end_hour: self.end_hour,
            policy: policy.unwrap_or(Policy::IssuePerIpHour),
            used: self.packed & USED,
        }
    }

    fn set_class(&mut self, class: Class) {
        self.end_hour = class.end_hour;
        let used = class.used.min(USED);
        self.packed = (self.packed & DIRTY) | (class.policy as u32) << USED_BITS | used;
    }

    fn counter(&self) -> Option<Counter> {
        let class = self.class();
        (class.used > 0).then_some(Counter {
            key: self.key,
            policy: class.policy,
            used: class.used,
            window_end: class.window_end(),
        })
    }
}

/// Slots by their number. In pieces, so that growing copies nothing: one vector of 100 MB would
/// stand in memory twice while it grows.
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

/// All counters.
pub(crate) struct Counters {
    slots: Slots,
    /// Slots by key. Keys are keyed hashes, so a key is its own hash.
    index: HashTable<u32>,
    free: Vec<u32>,
    lists: BTreeMap<Class, u32>,
    /// Slots in which the store is behind, the longest first.
    dirty: VecDeque<u32>,
}

/// There is no room for another counter: all that there are have reached their limits.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Counters {
    pub(crate) fn new() -> Self {
        Self {
            slots: Slots::default(),
            index: HashTable::new(),
            free: Vec::new(),
            lists: BTreeMap::new(),
            dirty: VecDeque::new(),
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    fn find(&self, key: u64) -> Option<u32> {
        let same = |slot: &u32| self.slots.get(*slot).is_some_and(|s| s.key == key);
        self.index.find(key, same).copied()
    }

    /// How `subject` stands at `now`.
    pub(crate) fn standing(&self, subject: &Subject, limits: &Limits, now: Timestamp) -> Standing {
        let window_end = subject.policy.window_end(now);
        let slot = self.find(subject.key()).and_then(|slot| self.slots.get(slot));
        let class = slot.map(Slot::class);
        let used = class.filter(|c| c.window_end() == window_end).map_or(0, |c| c.used);
        let allowed = limits.allowed(subject.policy);
        Standing { policy: subject.policy, allowed, used, window_end }
    }

    /// Makes sure that `subjects` can be charged.
    ///
    /// # Errors
    /// [`Full`] where nothing may be given up for them.
    pub(crate) fn make_room(
        &mut self,
        subjects: &[Subject],
        limits: &Limits,
        now: Timestamp,
    ) -> Result<(), Full> {
        let new = subjects.iter().filter(|subject| self.find(subject.key()).is_none()).count();
        let room = (limits.max_tracked as usize).saturating_sub(new);
        let mut tries = new + EXTRA_EVICTIONS;
        while self.len() > room && tries > 0 {
            let Some(victim) = self.victim(subjects, limits, now) else { break };
            self.remove(victim);
            tries -= 1;
        }
        if self.len() <= room || tries == 0 { Ok(()) } else { Err(Full) }
    }

    /// The counter to give up: of an ended window, else the least charged below its limit.
    fn victim(&self, spared: &[Subject], limits: &Limits, now: Timestamp) -> Option<u32> {
        if let Some((class, head)) = self.lists.first_key_value()
            && class.window_end() <= now
        {
            return Some(*head);
        }
        let below_limit = |class: &Class| class.used < limits.allowed(class.policy);
        let mut lists: Vec<_> = self.lists.iter().filter(|(class, _)| below_limit(class)).collect();
        lists.sort_unstable_by_key(|(class, _)| class.used);
        let keys: Vec<u64> = spared.iter().map(Subject::key).collect();
        lists.into_iter().find_map(|(_, head)| self.first_other_than(&keys, *head))
    }

    /// The first slot of a list that holds none of `keys`; there are at most a few of those.
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

    /// Counts one more for `subject` in the window of `now`.
    pub(crate) fn charge(&mut self, subject: &Subject, now: Timestamp) {
        let window_end = subject.policy.window_end(now);
        let fresh = Counter { key: subject.key(), policy: subject.policy, used: 1, window_end };
        match self.find(fresh.key) {
            None => {
                let slot = self.free.pop().unwrap_or(self.slots.len() as u32);
                self.put(slot, fresh);
                self.mark_dirty(slot);
            }
            Some(slot) => {
                let Some(class) = self.slots.get(slot).map(Slot::class) else { return };
                let same = class.window_end() == window_end;
                let used = if same { class.used.saturating_add(1) } else { 1 };
                self.move_to(slot, Class::of(&Counter { used, ..fresh }));
            }
        }
    }

    /// Takes back one charge that was made in the window that ends at `window_end`.
    pub(crate) fn give_back(&mut self, key: u64, window_end: Timestamp) {
        let Some(slot) = self.find(key) else { return };
        let Some(class) = self.slots.get(slot).map(Slot::class) else { return };
        match class.used {
            _ if class.window_end() != window_end => {}
            0 | 1 => self.remove(slot),
            used => self.move_to(slot, Class { used: used - 1, ..class }),
        }
    }

    /// Drops at most `budget` counters of ended windows.
    pub(crate) fn expire(&mut self, budget: usize, now: Timestamp) {
        for _ in 0..budget {
            match self.lists.first_key_value() {
                Some((class, head)) if class.window_end() <= now => self.remove(*head),
                _ => return,
            }
        }
    }

    /// Puts back what the store kept.
    pub(crate) fn restore(&mut self, slot: u32, counter: Counter, now: Timestamp) {
        if counter.window_end <= now || self.find(counter.key).is_some() {
            // The store forgets it, too.
            self.dirty.push_back(slot);
            while self.slots.len() <= slot as usize {
                self.add_free_slot();
            }
            if let Some(slot) = self.slots.get_mut(slot) {
                slot.packed |= DIRTY;
            }
            return;
        }
        self.put(slot, counter);
    }

    /// At most `count` rows in which the store is behind.
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

    /// In how many slots the store is behind.
    pub(crate) fn dirty(&self) -> usize {
        self.dirty.len()
    }

    /// The store is behind in this slot.
    pub(crate) fn mark_dirty(&mut self, number: u32) {
        if let Some(slot) = self.slots.get_mut(number)
            && slot.packed & DIRTY == 0
        {
            slot.packed |= DIRTY;
            self.dirty.push_back(number);
        }
    }

    fn add_free_slot(&mut self) {
        self.free.push(self.slots.len() as u32);
        self.slots.push(Slot { key: 0, end_hour: 0, packed: 0, previous: NONE, next: NONE });
    }

    /// Puts a counter that is not there yet into a free slot.
    fn put(&mut self, number: u32, counter: Counter) {
        while self.slots.len() <= number as usize {
            self.add_free_slot();
        }
        if self.free.last() == Some(&number) {
            self.free.pop();
        } else {
            self.free.retain(|free| *free != number);
        }
        if let Some(slot) = self.slots.get_mut(number) {
            slot.key = counter.key;
            slot.set_class(Class::of(&counter));
        }
        self.link(number);
        let slots = &self.slots;
        let key_of = |number: &u32| slots.get(*number).map_or(0, |slot| slot.key);
        self.index.insert_unique(counter.key, number, key_of);
    }

    fn remove(&mut self, number: u32) {
        self.unlink(number);
        let Some(slot) = self.slots.get_mut(number) else { return };
        slot.packed &= DIRTY;
        let key = slot.key;
        if let Ok(entry) = self.index.find_entry(key, |other| *other == number) {
            entry.remove();
        }
        self.free.push(number);
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

    fn link(&mut self, number: u32) {
        let Some(class) = self.slots.get(number).map(Slot::class) else { return };
        let head = self.lists.insert(class, number).unwrap_or(NONE);
        if let Some(slot) = self.slots.get_mut(number) {
            (slot.previous, slot.next) = (NONE, head);
        }
        if let Some(old_head) = self.slots.get_mut(head) {
            old_head.previous = number;
        }
    }

    fn unlink(&mut self, number: u32) {
        let Some(slot) = self.slots.get(number).copied() else { return };
        if let Some(next) = self.slots.get_mut(slot.next) {
            next.previous = slot.previous;
        }
        if let Some(previous) = self.slots.get_mut(slot.previous) {
            previous.next = slot.next;
        } else if slot.next == NONE {
            self.lists.remove(&slot.class());
        } else {
            self.lists.insert(slot.class(), slot.next);
        }
    }
}

/// How many counters beyond those needed one request gives up, so that a bound that was lowered is
/// reached soon without any request paying for it all.
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

    #[test]
    fn ended_windows_go_first_then_the_least_charged_and_never_one_at_its_limit() {
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
    fn where_all_are_at_their_limits_there_is_no_room() {
        let mut counters = Counters::new();
        let limits = limits(2);
        for who in [1, 1, 1, 1, 1, 2, 2, 2, 2, 2] {
            charge(&mut counters, who, 0, &limits).unwrap();
        }
        assert_eq!(charge(&mut counters, 3, 0, &limits), Err(Full));
        assert_eq!(charge(&mut counters, 1, 0, &limits), Ok(()), "known callers are counted on");
    }

    #[test]
    fn making_room_for_one_policy_spares_the_counter_of_the_same_request() {
        let mut counters = Counters::new();
        let limits = limits(1);
        let known = subject(IP, 1);
        counters.charge(&known, Timestamp(0));
        let both = [known, subject(Policy::ActivatePerMachineDay, 1)];
        assert_eq!(counters.make_room(&both, &limits, Timestamp(0)), Err(Full));
        assert_eq!(used(&counters, 1, 0), 1);
    }

    #[test]
    fn what_was_taken_down_comes_back_where_it_stood() {
        let mut counters = Counters::new();
        for who in [1, 2, 2, 3] {
            charge(&mut counters, who, 0, &limits(10)).unwrap();
        }
        counters.give_back(subject(IP, 3).key(), IP.window_end(Timestamp(0)));
        let rows = counters.take_dirty(100);
        assert_eq!(rows.len(), 3);
        assert!(counters.take_dirty(100).is_empty());
        let mut again = Counters::new();
        for row in &rows {
            if let Some(counter) = row.counter {
                again.restore(row.slot, counter, Timestamp(0));
            }
        }
        assert_eq!([1, 2, 3].map(|who| used(&again, who, 0)), [1, 2, 0]);
        let mut late = Counters::new();
        for row in &rows {
            if let Some(counter) = row.counter {
                late.restore(row.slot, counter, Timestamp(86_400));
            }
        }
        assert_eq!(late.len(), 0);
        assert!(late.take_dirty(100).iter().all(|row| row.counter.is_none()));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Charge(u64),
        GiveBack(u64),
        Wait(u64),
        Expire,
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0u64..12).prop_map(Step::Charge),
            2 => (0u64..12).prop_map(Step::GiveBack),
            1 => (0u64..50_000).prop_map(Step::Wait),
            1 => Just(Step::Expire),
            1 => Just(Step::Restart),
        ]
    }

    proptest! {
        /// Against the plainest model there is: a map from subject and window to a number.
        #[test]
        fn with_room_for_all_it_counts_like_a_plain_map(steps in prop::collection::vec(step(), 1..200)) {
            let (mut counters, mut model) = (Counters::new(), HashMap::<(u64, u64), u32>::new());
            let (mut now, mut disk) = (0, HashMap::new());
            for step in steps {
                let end = IP.window_end(Timestamp(now)).0;
                match step {
                    Step::Charge(who) => {
                        charge(&mut counters, who, now, &limits(1000)).unwrap();
                        *model.entry((who, end)).or_default() += 1;
                    }
                    Step::GiveBack(who) => {
                        counters.give_back(subject(IP, who).key(), Timestamp(end));
                        let used = model.entry((who, end)).or_default();
                        *used = used.saturating_sub(1);
                    }
                    Step::Wait(seconds) => now += seconds,
                    Step::Expire => counters.expire(3, Timestamp(now)),
                    Step::Restart => {
                        for row in counters.take_dirty(usize::MAX) {
                            disk.insert(row.slot, row.counter);
                        }
                        counters = Counters::new();
                        let mut rows: Vec<_> = disk.iter().collect();
                        rows.sort_by_key(|(slot, _)| **slot);
                        for (slot, counter) in rows {
                            if let Some(counter) = counter {
                                counters.restore(*slot, *counter, Timestamp(now));
                            }
                        }
                    }
                }
                let end = IP.window_end(Timestamp(now)).0;
                for who in 0..12 {
                    let expected = model.get(&(who, end)).copied().unwrap_or(0);
                    prop_assert_eq!(used(&counters, who, now), expected);
                }
            }
        }

        #[test]
        fn it_never_holds_more_than_its_bound(callers in prop::collection::vec(0u64..1000, 1..300)) {
            let mut counters = Counters::new();
            for who in callers {
                let _ = charge(&mut counters, who, 0, &limits(16));
                prop_assert!(counters.len() <= 16);
            }
        }
    }
}
