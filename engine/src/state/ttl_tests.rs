//! A state with a TTL against an ordered map, in both clocks: random reads and writes, late answers, flushes that take
//! their time, evictions, time that passes, ranges that move away and come back, and restarts with another TTL.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use millstream_common::hash::stable_hash;
use millstream_common::{KeyGroup, KeyGroupRange, KeyGroupRanges, StateId};
use millstream_state_store::entry::{Expiry, ReadTime};
use millstream_state_store::key::{KeyBuffer, split_point_key};
use millstream_state_store::schema::{Ttl, TtlClock};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::flush::EntrySink;
use super::working_set::{NO_TIME, WorkingSet};
use crate::element::WATERMARK_MIN;
use crate::operator::SubtaskTime;

/// The newest entry of each key.
type Store = BTreeMap<Vec<u8>, (Option<Vec<u8>>, Expiry)>;
/// Values with the time at which they expire; `None`: never.
type Model = BTreeMap<Vec<u8>, (Vec<u8>, Option<i64>)>;

#[derive(Default)]
struct Entries(Store);

impl EntrySink for Entries {
    fn put(&mut self, key: &[u8], value: &[u8], expiry: Expiry) {
        self.0.insert(key.to_vec(), (Some(value.to_vec()), expiry));
    }
    fn delete(&mut self, key: &[u8]) {
        self.0.insert(key.to_vec(), (None, Expiry::Never));
    }
    fn merge(&mut self, _key: &[u8], _operand: &[u8], _written_ms: i64, _expiry: Expiry) {
        panic!("a state with a TTL is read before it is written");
    }
}

#[derive(Default, Debug)]
struct Counts {
    lapsed: u64,
    read: u64,
    evicted: u64,
    restarts: u64,
}

struct Sim {
    rng: SmallRng,
    clock: TtlClock,
    ttl_ms: i64,
    /// Of that clock.
    now: i64,
    state: WorkingSet<Vec<u8>>,
    model: Model,
    store: Arc<Store>,
    /// Reads on their way: what the store held, and the time, when they were asked.
    reads: VecDeque<(Arc<Store>, i64, Vec<Bytes>)>,
    asked: u64,
    answered: u64,
    batches: VecDeque<(u64, Vec<Vec<u8>>)>,
    frozen: usize,
    encoding: Entries,
    uploads: VecDeque<Store>,
    ranges: KeyGroupRanges,
    counts: Counts,
}

fn key_of(n: u64) -> Vec<u8> {
    format!("key {n}").into_bytes()
}

impl Sim {
    fn new(seed: u64, clock: TtlClock) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let now = if clock == TtlClock::EventTime && rng.random_bool(0.2) { WATERMARK_MIN } else { 0 };
        let mut sim = Self {
            ttl_ms: rng.random_range(1..60),
            rng,
            clock,
            now,
            state: WorkingSet::new(false),
            model: Model::new(),
            store: Arc::default(),
            reads: VecDeque::new(),
            asked: 0,
            answered: 0,
            batches: VecDeque::new(),
            frozen: 0,
            encoding: Entries::default(),
            uploads: VecDeque::new(),
            ranges: KeyGroupRanges::all(),
            counts: Counts::default(),
        };
        sim.open(true);
        sim
    }

    fn open(&mut self, complete: bool) {
        self.state = WorkingSet::new(false);
        self.state.set_ttl(Some(Ttl { duration_ms: self.ttl_ms, clock: self.clock }));
        self.state.open(StateId(4), self.ranges.clone(), complete, true);
        self.tell_time();
    }

    fn tell_time(&mut self) {
        match self.clock {
            TtlClock::EventTime => self.state.stored.set_clock(&SubtaskTime::uniform(self.now), i64::MAX),
            TtlClock::ProcessingTime => self.state.stored.set_clock(&SubtaskTime::uniform(i64::MAX), self.now),
        }
    }

    fn read_time(&self, at: i64) -> ReadTime {
        match self.clock {
            TtlClock::EventTime => ReadTime { event_time_ms: at, processing_time_ms: i64::MIN },
            TtlClock::ProcessingTime => ReadTime { event_time_ms: i64::MIN, processing_time_ms: at },
        }
    }

    fn expected(&self, key: &[u8]) -> Option<&Vec<u8>> {
        self.model.get(key).filter(|(_, expires)| expires.is_none_or(|e| e > self.now)).map(|(value, _)| value)
    }

    fn expiry(&self) -> Option<i64> {
        (self.now != WATERMARK_MIN).then(|| self.now + self.ttl_ms)
    }

    fn owned(&self, key: &[u8]) -> bool {
        self.ranges.contains(KeyGroup::of_hash(stable_hash(key)))
    }

    fn name(&mut self) {
        let names: Vec<u64> = (0..self.rng.random_range(1..6)).map(|_| self.rng.random_range(0..15)).collect();
        let mut rows: Vec<Vec<u8>> = names.into_iter().map(key_of).collect();
        rows.retain(|k| self.owned(k));
        let mut keys = KeyBuffer::default();
        rows.iter().for_each(|k| keys.push(k).unwrap());
        self.state.name_batch(&keys, |_| NO_TIME);
        self.state.end_group();
        let mut missing = Vec::new();
        self.state.take_missing(&mut missing);
        if !missing.is_empty() {
            self.reads.push_back((self.store.clone(), self.now, missing));
            self.asked += 1;
        }
        self.batches.push_back((self.asked, rows));
    }

    fn answer(&mut self) {
        let Some((store, at, keys)) = self.reads.pop_front() else { return };
        for key in keys {
            // As the store reads.
            let time = self.read_time(at);
            let entry = store.get(&key[..]).filter(|(_, expiry)| !expiry.has_come(&time));
            self.state.install(&key, entry.and_then(|e| e.0.as_deref())).unwrap();
            self.counts.read += 1;
        }
        self.answered += 1;
    }

    fn process(&mut self) {
        if self.batches.front().is_none_or(|(reads, _)| *reads > self.answered) {
            return;
        }
        let (_, rows) = self.batches.pop_front().unwrap();
        self.tell_time();
        let slots = self.state.take_rows().unwrap();
        for (slot, key) in slots.slots.iter().zip(&rows) {
            self.write(slot.0, key);
        }
        self.state.give_back(slots);
        self.state.release_group();
    }

    fn write(&mut self, slot: u32, key: &[u8]) {
        assert_eq!(self.state.get(slot), self.expected(key), "{key:?} at {}", self.now);
        let was = self.expected(key).cloned();
        self.counts.lapsed += u64::from(was.is_none() && self.model.contains_key(key));
        let (byte, expires) = (self.rng.random(), self.expiry());
        match self.rng.random_range(0..6) {
            0 | 1 => {}
            2 => {
                assert_eq!(self.state.delete(slot), was);
                self.model.remove(key);
            }
            3 => {
                self.state.put(slot, vec![byte; 3]);
                self.model.insert(key.to_vec(), (vec![byte; 3], expires));
            }
            _ => {
                self.state.update(slot, Vec::new, |v| v.push(byte));
                let mut value = was.unwrap_or_default();
                value.push(byte);
                self.model.insert(key.to_vec(), (value, expires));
            }
        }
    }

    fn freeze(&mut self) {
        if self.frozen < 3 {
            self.state.freeze();
            self.frozen += 1;
        }
    }

    fn encode(&mut self) {
        let max = self.rng.random_range(1..5);
        if self.frozen > 0 && self.state.encode_frozen(max, &mut self.encoding) {
            self.frozen -= 1;
            self.uploads.push_back(std::mem::take(&mut self.encoding).0);
        }
    }

    fn upload(&mut self) {
        let Some(entries) = self.uploads.pop_front() else { return };
        let mut store = (*self.store).clone();
        store.extend(entries);
        self.store = Arc::new(store);
        self.state.flushed();
    }

    fn settle(&mut self) {
        while !self.batches.is_empty() {
            self.answer();
            self.process();
        }
        while !self.reads.is_empty() {
            self.answer();
        }
        for _ in 0..2 {
            self.freeze();
            while self.frozen > 0 || !self.uploads.is_empty() {
                self.encode();
                self.upload();
            }
        }
        self.check_store();
    }

    /// What the store gives from now on is what the model holds, whenever it is read.
    fn check_store(&self) {
        for later in [0, 1, 20, 1_000] {
            let at = self.now.saturating_add(later);
            let time = self.read_time(at);
            let live = |(key, (value, expiry)): (&Vec<u8>, &(Option<Vec<u8>>, Expiry))| {
                let key = split_point_key(key).unwrap().2.to_vec();
                value.is_some().then_some(key).filter(|_| !expiry.has_come(&time))
            };
            let stored: Vec<Vec<u8>> = self.store.iter().filter_map(live).collect();
            let mut stored: Vec<_> = stored.into_iter().filter(|k| self.owned(k)).collect();
            stored.sort();
            let held = self.model.iter().filter(|(_, (_, e))| e.is_none_or(|e| e > at)).map(|(k, _)| k.clone());
            assert_eq!(stored, held.filter(|k| self.owned(k)).collect::<Vec<_>>(), "at {at}, now {}", self.now);
        }
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..25 => self.name(),
            25..45 => self.answer(),
            45..65 => self.process(),
            65..70 => self.freeze(),
            70..78 => self.encode(),
            78..84 => self.upload(),
            84..90 => {
                let held = self.state.memory_bytes();
                self.state.evict(held * self.rng.random_range(0..10) / 10);
                self.counts.evicted += u64::from(self.state.memory_bytes() < held);
            }
            90..97 if self.now == WATERMARK_MIN => self.now = 0,
            90..97 => self.now += self.rng.random_range(1..30),
            97 => {
                self.settle();
                // Another owner takes a part, and gives it back.
                self.ranges = KeyGroupRanges::from(KeyGroupRange::new(0, self.rng.random_range(1..=65_536)));
                self.state.retain(&self.ranges.clone(), false);
                (0..10).for_each(|_| self.step_in_part());
                self.settle();
                self.ranges = KeyGroupRanges::all();
                self.state.open(StateId(4), KeyGroupRanges::all(), false, false);
                self.state.retain(&KeyGroupRanges::all(), true);
            }
            98 => {
                self.settle();
                self.counts.restarts += 1;
                self.ttl_ms = self.rng.random_range(1..60);
                self.open(false);
            }
            _ => {}
        }
    }

    fn step_in_part(&mut self) {
        match self.rng.random_range(0..4) {
            0 => self.name(),
            1 => self.answer(),
            2 => self.process(),
            _ => self.now = self.now.saturating_add(self.rng.random_range(0..9)),
        }
    }
}

fn run(clock: TtlClock) {
    let mut all = Counts::default();
    for seed in 0..2_000 {
        let mut sim = Sim::new(seed, clock);
        (0..sim.rng.random_range(20..300)).for_each(|_| sim.step());
        sim.settle();
        all.lapsed += sim.counts.lapsed;
        all.read += sim.counts.read;
        all.evicted += sim.counts.evicted;
        all.restarts += sim.counts.restarts;
    }
    assert!(all.lapsed > 5_000 && all.read > 5_000 && all.evicted > 1_000 && all.restarts > 1_000, "{all:?}");
}

#[test]
fn what_expires_by_event_time_is_absent() {
    run(TtlClock::EventTime);
}

#[test]
fn what_expires_by_processing_time_is_absent() {
    run(TtlClock::ProcessingTime);
}
