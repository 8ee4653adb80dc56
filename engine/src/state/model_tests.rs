//! A working set against an ordered map: random names, late answers, writes, flushes that take their time, evictions,
//! ranges that move away and come back, time that passes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use millstream_common::hash::stable_hash;
use millstream_common::{KeyGroup, KeyGroupRange, KeyGroupRanges, StateId};
use millstream_state_store::entry::Expiry;
use millstream_state_store::key::{KeyBuffer, split_point_key, split_timed_key};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::flush::EntrySink;
use super::{SlotId, StateSet, TimedState};

/// What happens to a key.
#[derive(Debug, PartialEq)]
enum Change {
    Put(Vec<u8>, Expiry),
    Delete,
    Add(Vec<u8>, Expiry),
}

/// Store key and what becomes of it.
type Entry = (Vec<u8>, Change);

/// What a flush holds.
#[derive(Default)]
struct Entries(Vec<Entry>);

impl EntrySink for Entries {
    fn put(&mut self, key: &[u8], value: &[u8], expiry: Expiry) {
        self.0.push((key.to_vec(), Change::Put(value.to_vec(), expiry)));
    }
    fn delete(&mut self, key: &[u8]) {
        self.0.push((key.to_vec(), Change::Delete));
    }
    fn merge(&mut self, key: &[u8], operand: &[u8], _written_ms: i64, expiry: Expiry) {
        self.0.push((key.to_vec(), Change::Add(operand.to_vec(), expiry)));
    }
}

type Store = BTreeMap<Vec<u8>, Vec<u8>>;
/// Times and keys.
type Rows = Vec<(i64, Vec<u8>)>;
/// By time and key.
type Model = BTreeMap<(i64, Vec<u8>), Vec<u8>>;

/// A state as the runtime drives it, beside what it should hold.
struct Sim {
    rng: SmallRng,
    state: TimedState<Vec<u8>>,
    timed: bool,
    /// Values are added to without being read.
    merged: bool,
    keys: u64,
    model: Model,
    store: Arc<Store>,
    /// Batches: the reads that must have been answered, and the rows.
    batches: VecDeque<(u64, Rows)>,
    reads: VecDeque<(Arc<Store>, Vec<Bytes>)>,
    reads_asked: u64,
    reads_answered: u64,
    /// The model when each flush was frozen; entries encoded so far of the oldest that is being encoded.
    frozen: VecDeque<(Model, i64)>,
    encoding: Entries,
    uploads: VecDeque<(Entries, Model, i64)>,
    fired: i64,
    /// What is being fired: an early flush amid that need not hold what is due.
    firing: i64,
    ranges: KeyGroupRanges,
    events: Events,
}

/// What happened, to see that the test reaches what it is for.
#[derive(Default, Debug)]
struct Events {
    evicted: u64,
    answered: u64,
    fired: u64,
    scans: u64,
    moved: u64,
    tombstones: u64,
    operands: u64,
}

fn key_of(n: u64) -> Vec<u8> {
    // Some keys are too long to stand in their slot.
    if n.is_multiple_of(5) {
        format!("a rather long key number {n}").into_bytes()
    } else {
        n.to_be_bytes()[6..].to_vec()
    }
}

fn group_of(key: &[u8]) -> KeyGroup {
    KeyGroup::of_hash(stable_hash(key))
}

impl Sim {
    fn new(seed: u64, timed: bool, merged: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut state = TimedState::new("test", "bytes", rng.random_range(1..20));
        if merged {
            // Bytes in the order in which they were written: nothing is added twice, or in another order.
            state = state.merged("append", Box::new(|older: &mut Vec<u8>, newer| older.extend_from_slice(newer)));
        }
        // A point state is the same working set with the other key layout, where all times are 0.
        state.set.timed = timed;
        let keys = rng.random_range(2..40);
        let mut sim = Self {
            rng,
            state,
            timed,
            merged,
            keys,
            model: Model::new(),
            store: Arc::default(),
            batches: VecDeque::new(),
            reads: VecDeque::new(),
            reads_asked: 0,
            reads_answered: 0,
            frozen: VecDeque::new(),
            encoding: Entries::default(),
            uploads: VecDeque::new(),
            fired: -1,
            firing: -1,
            ranges: KeyGroupRanges::all(),
            events: Events::default(),
        };
        let complete = sim.rng.random_bool(0.5);
        sim.state.open(StateId(7), KeyGroupRanges::all(), complete);
        sim
    }

    fn random_entry(&mut self) -> (i64, Vec<u8>) {
        let ranges = self.ranges.clone();
        loop {
            let key = key_of(self.rng.random_range(0..self.keys));
            let time = if self.timed { self.fired + self.rng.random_range(-3..30) } else { 0 };
            if ranges.contains(group_of(&key)) || self.rng.random_bool(0.01) {
                return (time, key);
            }
        }
    }

    fn owned(&self, key: &[u8]) -> bool {
        self.ranges.contains(group_of(key))
    }

    fn name_batch(&mut self) {
        let rows = self.rng.random_range(0..6);
        let mut rows: Vec<_> = (0..rows).map(|_| self.random_entry()).collect();
        rows.retain(|r| self.owned(&r.1));
        let mut keys = KeyBuffer::default();
        rows.iter().for_each(|(_, key)| keys.push(key).unwrap());
        let times: Vec<i64> = rows.iter().map(|r| r.0).collect();
        self.state.name_batch(&keys, &times);
        self.state.end_group();
        self.ask();
        self.batches.push_back((self.reads_asked, rows));
    }

    fn ask(&mut self) {
        let mut missing = Vec::new();
        self.state.take_missing(&mut missing);
        if !missing.is_empty() {
            self.reads.push_back((self.store.clone(), missing));
            self.reads_asked += 1;
        }
    }

    fn answer(&mut self) {
        let Some((view, keys)) = self.reads.pop_front() else { return };
        for key in keys {
            self.state.install(&key, view.get(&key[..]).map(Vec::as_slice)).unwrap();
            self.events.answered += 1;
        }
        self.reads_answered += 1;
    }

    fn process(&mut self) {
        match self.batches.front() {
            Some((reads, _)) if *reads <= self.reads_answered => {}
            _ => return,
        }
        let (_, rows) = self.batches.pop_front().unwrap();
        let slots = self.state.take_rows().unwrap();
        assert_eq!(slots.slots.len(), rows.len());
        let distinct: BTreeSet<_> = rows.iter().collect();
        assert_eq!(slots.distinct.len(), distinct.len());
        for (&slot, (time, key)) in slots.slots.iter().zip(&rows) {
            assert_eq!((self.state.time(slot), self.state.key(slot)), (*time, &key[..]));
            if *time > self.fired {
                self.write(slot, *time, key);
            }
        }
        self.state.give_back(slots);
        self.state.release_group();
    }

    fn write(&mut self, slot: SlotId, time: i64, key: &[u8]) {
        let id = (time, key.to_vec());
        let known = self.state.is_resident(slot);
        assert!(known || self.merged);
        if known {
            assert_eq!(self.state.get(slot), self.model.get(&id), "{id:?}");
        }
        let byte: u8 = self.rng.random();
        match self.rng.random_range(0..5) {
            0 => {}
            1 => {
                let (removed, expected) = (self.state.remove(slot), self.model.remove(&id));
                assert_eq!(removed, expected.filter(|_| known));
            }
            2 => {
                let value = vec![byte; self.rng.random_range(0..40)];
                self.state.put(slot, value.clone());
                self.model.insert(id, value);
            }
            _ => {
                self.state.update(slot, Vec::new, |v| v.push(byte));
                self.model.entry(id).or_default().push(byte);
            }
        }
    }

    /// Writes that read nothing.
    fn write_blind(&mut self) {
        let (time, key) = self.random_entry();
        // A key that a batch in the queue has named may not be written around it: it would see the write.
        let named = self.batches.iter().any(|b| b.1.iter().any(|r| *r == (time, key.clone())));
        if named || time <= self.fired || !self.owned(&key) {
            return;
        }
        if self.rng.random_bool(0.6) {
            let value = vec![self.rng.random(); 3];
            self.state.set(stable_hash(&key), time, &key, value.clone());
            self.model.insert((time, key), value);
        } else {
            self.state.unset(stable_hash(&key), time, &key);
            self.model.remove(&(time, key));
        }
    }

    fn freeze(&mut self) {
        if self.frozen.len() + self.uploads.len() < 4 {
            self.state.freeze();
            self.frozen.push_back((self.model.clone(), self.firing));
        }
    }

    fn encode(&mut self) {
        let max = self.rng.random_range(1..8);
        if self.frozen.is_empty() || !self.state.set.encode_frozen(max, &mut self.encoding) {
            return;
        }
        let (model, fired) = self.frozen.pop_front().unwrap();
        self.uploads.push_back((std::mem::take(&mut self.encoding), model, fired));
    }

    /// A flush has reached the store: it must hold what the model held when it was frozen.
    fn upload(&mut self) {
        let Some((entries, model, fired)) = self.uploads.pop_front() else { return };
        let mut store = (*self.store).clone();
        for (key, value) in entries.0 {
            let expected = if self.timed { Expiry::EventTime(self.split(&key).0) } else { Expiry::Never };
            match value {
                Change::Put(value, expiry) => {
                    assert_eq!(expiry, expected);
                    store.insert(key, value);
                }
                Change::Add(operand, expiry) => {
                    assert!(expiry == expected && self.merged);
                    self.events.operands += 1;
                    store.entry(key).or_default().extend(operand);
                }
                Change::Delete => {
                    self.events.tombstones += 1;
                    store.remove(&key);
                }
            }
        }
        let live = |(time, _): &(i64, Vec<u8>)| !self.timed || *time > fired;
        let stored: Model = store.iter().map(|(k, v)| (self.split(k), v.clone())).filter(|(k, _)| live(k)).collect();
        assert_eq!(stored, model.into_iter().filter(|(k, _)| live(k)).collect::<Model>());
        self.store = Arc::new(store);
        self.state.flushed();
    }

    fn split(&self, key: &[u8]) -> (i64, Vec<u8>) {
        if self.timed {
            let (_, time, _, key) = split_timed_key(key).unwrap();
            (time, key.to_vec())
        } else {
            (0, split_point_key(key).unwrap().2.to_vec())
        }
    }

    fn evict(&mut self) {
        let held = self.state.memory_bytes();
        self.state.evict(held * self.rng.random_range(0..10) / 10);
        self.events.evicted += u64::from(self.state.memory_bytes() < held);
    }

    fn advance(&mut self) {
        let watermark = self.fired + self.rng.random_range(1..15);
        self.firing = watermark;
        loop {
            let loaded = self.state.load_until(watermark, self.fired);
            let until = watermark.min(self.state.loaded_until());
            while let Some(time) = self.state.first_time().filter(|t| *t <= until) {
                for slot in self.state.sorted_at(time) {
                    let key = self.state.key(slot).to_vec();
                    let value = self.state.expire(slot);
                    if time > self.fired {
                        assert_eq!(value, self.model.remove(&(time, key)));
                        self.events.fired += 1;
                    }
                }
            }
            if loaded {
                break;
            }
            let scan = self.state.take_scan().expect("it waits for a scan");
            self.scan(scan.after, scan.until);
        }
        self.state.end_advance();
        let unfired: Vec<_> = self.model.keys().filter(|(t, k)| *t <= watermark && self.owned(k)).collect();
        assert!(unfired.is_empty(), "not fired at {watermark}: {unfired:?}");
        self.fired = watermark;
    }

    fn scan(&mut self, after: i64, until: i64) {
        self.events.scans += 1;
        let view = self.store.clone();
        let found: Vec<(Bytes, Bytes)> = view
            .iter()
            .filter(|(k, _)| (after < self.split(k).0 && self.split(k).0 <= until) && self.owned(&self.split(k).1))
            .map(|(k, v)| (k.clone().into(), v.clone().into()))
            .collect();
        let cut = self.rng.random_range(0..=found.len());
        self.meanwhile();
        self.state.install_scan(&found[..cut], false).unwrap();
        self.meanwhile();
        self.state.install_scan(&found[cut..], true).unwrap();
    }

    /// What may happen while a task waits for state.
    fn meanwhile(&mut self) {
        for _ in 0..self.rng.random_range(0..6) {
            match self.rng.random_range(0..6) {
                0 => self.name_batch(),
                1 => self.answer(),
                2 => self.freeze(),
                3 => self.encode(),
                4 => self.upload(),
                _ => self.evict(),
            }
        }
    }

    /// Everything named is processed, everything written is in the store.
    fn settle(&mut self) {
        while !self.batches.is_empty() {
            self.answer();
            self.process();
        }
        while !self.reads.is_empty() {
            self.answer();
        }
        self.freeze_and_upload();
    }

    fn freeze_and_upload(&mut self) {
        while !self.frozen.is_empty() || !self.uploads.is_empty() {
            self.encode();
            self.upload();
        }
        self.freeze();
        while !self.frozen.is_empty() || !self.uploads.is_empty() {
            self.encode();
            self.upload();
        }
    }

    /// A part of the key groups goes to another owner, who changes something, and comes back.
    fn move_ranges(&mut self) {
        self.settle();
        self.events.moved += 1;
        let cut = self.rng.random_range(0..=65_536);
        self.ranges = KeyGroupRanges::from(KeyGroupRange::new(0, cut));
        self.state.retain(&self.ranges, false);
        for _ in 0..5 {
            let entry = self.random_entry();
            if self.owned(&entry.1) || entry.0 <= self.fired {
                continue;
            }
            let mut key = Vec::new();
            if self.timed {
                millstream_state_store::key::timed_key(StateId(7), entry.0, group_of(&entry.1), &entry.1, &mut key);
            } else {
                millstream_state_store::key::point_key(StateId(7), group_of(&entry.1), &entry.1, &mut key);
            }
            let mut store = (*self.store).clone();
            store.insert(key, vec![9]);
            self.store = Arc::new(store);
            self.model.insert(entry, vec![9]);
        }
        if cut > 20_000 {
            (0..self.rng.random_range(0..20)).for_each(|_| self.step(false));
        }
        self.settle();
        // The other owner has fired up to the same watermark.
        self.model.retain(|(time, _), _| !self.timed || *time > self.fired);
        self.ranges = KeyGroupRanges::all();
        self.state.open(StateId(7), self.ranges.clone(), false);
        self.state.retain(&self.ranges.clone(), true);
    }

    fn step(&mut self, may_move: bool) {
        match self.rng.random_range(0..100) {
            0..25 => self.name_batch(),
            25..45 => self.answer(),
            45..65 => self.process(),
            65..70 => self.freeze(),
            70..78 => self.encode(),
            78..84 => self.upload(),
            84..90 => self.evict(),
            90..94 => self.write_blind(),
            94..96 if self.timed => {
                // A watermark waits for the batches before it.
                while !self.batches.is_empty() {
                    self.answer();
                    self.process();
                }
                self.advance();
            }
            99 if may_move => self.move_ranges(),
            _ => {}
        }
        self.check_account();
    }

    /// The running totals are the sums of what they count.
    fn check_account(&self) {
        let set = &self.state.set;
        let live: Vec<u32> = (0..set.slots.end()).filter(|&i| set.slots.live_at(i).is_some()).collect();
        assert_eq!(live.len(), set.slots.live());
        assert_eq!(live.len(), set.table.len());
        let sum: usize = live.iter().map(|&i| set.slot_bytes(i)).sum();
        assert_eq!(set.memory_bytes(), (sum + set.side_bytes()) as u64);
        let dirty: Vec<u32> = live.iter().copied().filter(|&i| set.slots[i].written > set.flushed).collect();
        let dirty_sum: usize = dirty.iter().map(|&i| set.slot_bytes(i)).sum();
        assert_eq!(set.dirty_bytes(), (dirty_sum + set.side_bytes()) as u64);
        assert_eq!(set.generations.iter().map(|g| g.slots).sum::<usize>(), dirty.len());
        if self.timed {
            let indexed: usize = set.times.values().map(|l| l.len()).sum();
            assert_eq!(indexed, live.iter().filter(|&&i| set.slots[i].value.is_some()).count());
            assert!(set.times.values().all(|l| !l.is_empty()));
        }
    }

    fn finish(&mut self) {
        self.settle();
        self.state.evict(0);
        // The keys of the last group may still be pinned by the group that is open.
        self.state.end_group();
        self.state.release_group();
        self.state.evict(0);
        self.check_account();
        assert_eq!(self.state.memory_bytes(), 0);
    }
}

fn run(timed: bool, merged: bool, sequences: u64) {
    let mut all = Events::default();
    for seed in 0..sequences {
        let mut sim = Sim::new(seed, timed, merged);
        for _ in 0..sim.rng.random_range(20..200) {
            sim.step(true);
        }
        sim.finish();
        let e = sim.events;
        all.evicted += e.evicted;
        all.answered += e.answered;
        all.fired += e.fired;
        all.scans += e.scans;
        all.moved += e.moved;
        all.tombstones += e.tombstones;
        all.operands += e.operands;
    }
    assert!(all.evicted > sequences && all.tombstones > sequences / 2, "{all:?}");
    // Who adds reads nothing.
    assert!(if merged { all.answered == 0 && all.operands > sequences } else { all.answered > sequences }, "{all:?}");
    assert!(all.moved > sequences / 4, "{all:?}");
    assert!(!timed || (all.fired > sequences && all.scans > sequences / 2), "{all:?}");
}

#[test]
fn a_point_state_is_an_ordered_map() {
    run(false, false, 3_000);
}

#[test]
fn a_timed_state_is_an_ordered_map() {
    run(true, false, 3_000);
}

#[test]
fn what_is_added_without_being_read_is_there_when_it_fires() {
    run(true, true, 6_000);
}

#[test]
fn a_complete_state_asks_the_store_for_nothing() {
    let mut state = TimedState::<i64>::new("t", "", 10);
    state.open(StateId(1), KeyGroupRanges::all(), true);
    let mut missing = Vec::new();
    for n in 0..1_000i64 {
        let key = n.to_be_bytes();
        let slot = state.name(stable_hash(&key), n, &key);
        assert!(state.is_resident(slot) && state.get(slot).is_none());
        state.put(slot, n);
        state.end_group();
        state.release_group();
    }
    state.take_missing(&mut missing);
    assert!(missing.is_empty() && state.load_until(i64::MAX, i64::MIN));
    // Fired before a flush: nothing of it is ever written.
    state.expire_until(499);
    state.freeze();
    let mut entries = Entries::default();
    while !state.set.encode_frozen(100, &mut entries) {}
    assert_eq!(entries.0.len(), 500);
    state.flushed();
    // Fired after it: no tombstone.
    state.expire_until(i64::MAX);
    state.freeze();
    let mut entries = Entries::default();
    while !state.set.encode_frozen(100, &mut entries) {}
    assert!(entries.0.is_empty());
    assert_eq!(state.memory_bytes(), 0);
}

#[test]
fn freezing_encodes_nothing_and_any_number_of_flushes_may_wait() {
    let mut state = TimedState::<i64>::new("t", "", 10);
    state.open(StateId(1), KeyGroupRanges::all(), true);
    let write = |state: &mut TimedState<i64>, keys: std::ops::Range<i64>, value: i64| {
        for n in keys {
            state.set(stable_hash(&n.to_be_bytes()), 5, &n.to_be_bytes(), value);
        }
    };
    write(&mut state, 0..3_000, 1);
    assert_eq!((state.freeze(), state.set.side_bytes()), (3_000, 0));
    // A tenth is written again, so it is encoded aside; the rest waits.
    write(&mut state, 0..300, 2);
    let aside = state.set.side_bytes();
    assert!(aside > 300 * 16 && aside < 600 * 128, "{aside}");
    assert_eq!((state.freeze(), state.set.side_bytes()), (300, aside));
    write(&mut state, 200..400, 3);
    assert_eq!(state.freeze(), 200);
    for (entries, values) in [(3_000, vec![1; 3_000]), (300, vec![2; 300]), (200, vec![3; 200])] {
        let (mut flush, mut slices) = (Entries::default(), 1);
        while !state.set.encode_frozen(64, &mut flush) {
            slices += 1;
        }
        assert!(slices >= entries / 64);
        let encoded = |c: &Change| if let Change::Put(v, _) = c { v[0] } else { panic!("{c:?}") };
        assert_eq!(flush.0.iter().map(|e| encoded(&e.1)).collect::<Vec<u8>>(), values);
        state.flushed();
    }
    assert_eq!(state.set.side_bytes(), 0);
}

#[test]
fn what_is_named_twice_is_pinned_until_the_last_group_goes() {
    let mut state = TimedState::<i64>::new("t", "", 10);
    state.open(StateId(1), KeyGroupRanges::all(), false);
    let slot = state.name(1 << 48, 5, b"k");
    state.end_group();
    assert_eq!(state.name(1 << 48, 5, b"k"), slot);
    state.end_group();
    let mut key = Vec::new();
    millstream_state_store::key::timed_key(StateId(1), 5, KeyGroup(1), b"k", &mut key);
    // Not the stable hash of the key: the store's answer is for another slot.
    state.install(&key, None).unwrap();
    assert!(!state.is_resident(slot));
    state.set.delete(slot.0);
    state.freeze();
    let mut entries = Entries::default();
    assert!(state.set.encode_frozen(9, &mut entries));
    assert_eq!(entries.0, [(key, Change::Delete)]);
    state.flushed();
    state.evict(0);
    state.release_group();
    state.evict(0);
    assert!(state.memory_bytes() > 0);
    state.release_group();
    state.end_group();
    state.release_group();
    state.evict(0);
    assert_eq!(state.memory_bytes(), 0);
}
