//! A map state against an ordered map: random names of maps and entries, late answers, writes with and without reading,
//! flushes that take their time, evictions, ranges that move away and come back, entries that expire.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use millstream_common::hash::stable_hash;
use millstream_common::{KeyGroup, KeyGroupRange, KeyGroupRanges, StateId};
use millstream_state_store::entry::Expiry;
use millstream_state_store::key::{KeyBuffer, map_key, map_prefix, split_map_key};
use millstream_state_store::schema::{NEVER_EXPIRES, Ttl, TtlClock, put_i64};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::flush::EntrySink;
use super::{MapId, MapState, StateSet};
use crate::operator::SubtaskTime;

const STATE: StateId = StateId(7);
const TTL_MS: i64 = 20;

/// Key and map key.
type Place = (Vec<u8>, Vec<u8>);
/// Values and when they expire.
type Model = BTreeMap<Place, (Vec<u8>, i64)>;
/// The same by store key, as values are encoded.
type Store = BTreeMap<Vec<u8>, (Vec<u8>, i64)>;

/// A store key and what becomes of it; `None`: a tombstone.
type Change = (Vec<u8>, Option<(Vec<u8>, i64)>);

/// What a flush holds.
#[derive(Default)]
struct Entries(Vec<Change>);

impl EntrySink for Entries {
    fn put(&mut self, key: &[u8], value: &[u8], expiry: Expiry) {
        let stamp = match expiry {
            Expiry::Never => NEVER_EXPIRES,
            Expiry::ProcessingTime(stamp) => stamp,
            Expiry::EventTime(_) => panic!("{expiry:?}"),
        };
        self.0.push((key.to_vec(), Some((value.to_vec(), stamp))));
    }
    fn delete(&mut self, key: &[u8]) {
        self.0.push((key.to_vec(), None));
    }
    fn merge(&mut self, _: &[u8], _: &[u8], _: i64, _: Expiry) {
        panic!("a map state has no operands");
    }
}

enum Batch {
    Maps(Vec<Vec<u8>>),
    Entries(Vec<Place>),
}

struct Read {
    view: Arc<Store>,
    now: i64,
    keys: Vec<Bytes>,
    prefixes: Vec<Bytes>,
}

#[derive(Default, Debug)]
struct Events {
    evicted: u64,
    keys_asked: u64,
    maps_asked: u64,
    maps_known: u64,
    entries_known: u64,
    unknown: u64,
    iterated: u64,
    cleared: u64,
    tombstones: u64,
    moved: u64,
    lapsed: u64,
}

/// A state as the runtime drives it, beside what it should hold.
struct Sim {
    rng: SmallRng,
    state: MapState<Vec<u8>>,
    ttl: bool,
    now: i64,
    keys: u64,
    map_keys: u64,
    model: Model,
    store: Arc<Store>,
    /// The reads that must have been answered, and the rows.
    batches: VecDeque<(u64, Batch)>,
    reads: VecDeque<Read>,
    reads_asked: u64,
    reads_answered: u64,
    frozen: VecDeque<Model>,
    encoding: Entries,
    uploads: VecDeque<(Entries, Model)>,
    ranges: KeyGroupRanges,
    events: Events,
}

fn key_of(n: u64) -> Vec<u8> {
    match n % 5 {
        0 => format!("a rather long key number {n}").into_bytes(),
        1 => vec![0; n as usize],
        _ => n.to_be_bytes()[5..].to_vec(),
    }
}

fn map_key_of(n: u64) -> Vec<u8> {
    match n % 4 {
        0 => format!("a rather long map key number {n}").into_bytes(),
        1 => vec![0; n as usize / 4],
        _ => vec![n as u8],
    }
}

fn group_of(key: &[u8]) -> KeyGroup {
    KeyGroup::of_hash(stable_hash(key))
}

fn store_key((key, entry): &Place) -> Vec<u8> {
    let mut out = Vec::new();
    map_key(STATE, group_of(key), key, entry, &mut out);
    out
}

fn prefix_of(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    map_prefix(STATE, group_of(key), key, &mut out);
    out
}

fn place_of(store_key: &[u8]) -> Place {
    let mut key = Vec::new();
    let (id, group, entry) = split_map_key(store_key, &mut key).unwrap();
    assert_eq!((id, group), (STATE, group_of(&key)));
    (key, entry.to_vec())
}

fn buffer<'a>(keys: impl IntoIterator<Item = &'a Vec<u8>>) -> KeyBuffer {
    let mut buffer = KeyBuffer::default();
    keys.into_iter().for_each(|key| buffer.push(key).unwrap());
    buffer
}

impl Sim {
    fn new(seed: u64, ttl: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut state = MapState::new("test", "bytes")
            .with_ttl(ttl.then_some(Ttl { duration_ms: TTL_MS, clock: TtlClock::ProcessingTime }));
        let (keys, map_keys) = (rng.random_range(1..12), rng.random_range(1..20));
        let complete = rng.random_bool(0.5);
        state.open(STATE, KeyGroupRanges::all(), complete);
        Self {
            rng,
            state,
            ttl,
            now: 1_000,
            keys,
            map_keys,
            model: Model::new(),
            store: Arc::default(),
            batches: VecDeque::new(),
            reads: VecDeque::new(),
            reads_asked: 0,
            reads_answered: 0,
            frozen: VecDeque::new(),
            encoding: Entries::default(),
            uploads: VecDeque::new(),
            ranges: KeyGroupRanges::all(),
            events: Events::default(),
        }
    }

    fn owned(&self, key: &[u8]) -> bool {
        self.ranges.contains(group_of(key))
    }

    fn random_place(&mut self) -> Place {
        (key_of(self.rng.random_range(0..self.keys)), map_key_of(self.rng.random_range(0..self.map_keys)))
    }

    // ---- what the runtime does

    fn name_batch(&mut self) {
        let count = self.rng.random_range(0..5);
        let mut rows: Vec<Place> = (0..count).map(|_| self.random_place()).collect();
        rows.retain(|r| self.owned(&r.0));
        let batch = if self.rng.random() {
            let keys: Vec<Vec<u8>> = rows.into_iter().map(|r| r.0).collect();
            self.state.name_maps(&buffer(&keys));
            Batch::Maps(keys)
        } else {
            self.state.name_entries(&buffer(rows.iter().map(|r| &r.0)), &buffer(rows.iter().map(|r| &r.1))).unwrap();
            Batch::Entries(rows)
        };
        self.state.end_group();
        let (mut keys, mut prefixes) = (Vec::new(), Vec::new());
        self.state.take_missing(&mut keys);
        self.state.take_missing_maps(&mut prefixes);
        if !keys.is_empty() || !prefixes.is_empty() {
            self.events.keys_asked += keys.len() as u64;
            self.events.maps_asked += prefixes.len() as u64;
            self.reads.push_back(Read { view: self.store.clone(), now: self.now, keys, prefixes });
            self.reads_asked += 1;
        }
        self.batches.push_back((self.reads_asked, batch));
    }

    fn answer(&mut self) {
        let Some(read) = self.reads.pop_front() else { return };
        let live = |(_, stamp): &&(Vec<u8>, i64)| *stamp > read.now;
        for key in read.keys {
            let value = read.view.get(&key[..]).filter(live);
            self.state.install(&key, value.map(|v| &v.0[..])).unwrap();
        }
        for prefix in read.prefixes {
            let of_map = read.view.range(prefix.to_vec()..).take_while(|(k, _)| k.starts_with(&prefix));
            let of_map = of_map.filter(|(_, v)| live(v));
            let entries: Vec<(Bytes, Bytes)> = of_map.map(|(k, v)| (k.clone().into(), v.0.clone().into())).collect();
            self.state.install_map(&prefix, &entries).unwrap();
        }
        self.reads_answered += 1;
    }

    fn process(&mut self) {
        match self.batches.front() {
            Some((reads, _)) if *reads <= self.reads_answered => {}
            _ => return,
        }
        if self.ttl {
            self.now += self.rng.random_range(0..6);
            self.state.set_clock(&SubtaskTime::default(), self.now);
        }
        match self.batches.pop_front().unwrap().1 {
            Batch::Maps(keys) => self.process_maps(&keys),
            Batch::Entries(places) => self.process_entries(&places),
        }
        self.state.release_group();
    }

    fn process_maps(&mut self, keys: &[Vec<u8>]) {
        let rows = self.state.take_maps().unwrap();
        assert_eq!(rows.maps.len(), keys.len());
        assert_eq!(rows.distinct.len(), keys.iter().collect::<BTreeSet<_>>().len());
        for (&map, key) in rows.maps.iter().zip(keys) {
            assert_eq!((self.state.key(map), self.state.group(map)), (&key[..], group_of(key)));
            assert!(self.state.is_whole(map));
            for _ in 0..self.rng.random_range(0..4) {
                let entry = map_key_of(self.rng.random_range(0..self.map_keys));
                self.change_map(map, (key.clone(), entry));
            }
        }
    }

    fn change_map(&mut self, map: MapId, place: Place) {
        let (key, entry) = place.clone();
        let expected = self.expected(&place);
        assert_eq!(self.state.get(map, &entry).unwrap().cloned(), expected, "{place:?}");
        assert_eq!(self.state.contains(map, &entry).unwrap(), expected.is_some());
        match self.rng.random_range(0..7) {
            0 => {
                let found: Vec<Place> = self.state.iter(map).unwrap().map(|(k, v)| (k.to_vec(), v.clone())).collect();
                let of_key = self.model.iter().filter(|((k, _), v)| *k == key && v.1 > self.now);
                let all: Vec<Place> = of_key.map(|((_, e), v)| (e.clone(), v.0.clone())).collect();
                assert_eq!(found, all, "{key:?}");
                assert_eq!(self.state.is_empty(map).unwrap(), all.is_empty());
                self.events.iterated += 1;
            }
            1 if self.rng.random_bool(0.3) => {
                self.state.clear(map).unwrap();
                self.model.retain(|(k, _), _| *k != key);
                assert!(self.state.is_empty(map).unwrap());
                self.events.cleared += 1;
            }
            2 => assert_eq!(self.state.remove(map, &entry), self.take(&place)),
            3 => {
                let value = self.random_value();
                self.state.put(map, &entry, value.clone());
                self.set(place, value);
            }
            _ => {
                let byte: u8 = self.rng.random();
                let value = [expected.unwrap_or_default(), vec![byte]].concat();
                self.state.update(map, &entry, Vec::new, |v| v.push(byte)).unwrap();
                self.set(place, value);
            }
        }
    }

    fn process_entries(&mut self, places: &[Place]) {
        let rows = self.state.take_rows().unwrap();
        assert_eq!(rows.slots.len(), places.len());
        assert_eq!(rows.distinct.len(), places.iter().collect::<BTreeSet<_>>().len());
        for (&slot, place) in rows.slots.iter().zip(places) {
            let map = self.state.map_of(slot);
            assert_eq!((self.state.key(map), self.state.map_key(slot)), (&place.0[..], &place.1[..]));
            assert_eq!(self.state.get_entry(slot).cloned(), self.expected(place), "{place:?}");
            match self.rng.random_range(0..4) {
                0 => assert_eq!(self.state.remove_entry(slot), self.take(place)),
                1 => {
                    let value = self.random_value();
                    self.state.put_entry(slot, value.clone());
                    self.set(place.clone(), value);
                }
                2 => {
                    let byte: u8 = self.rng.random();
                    let value = [self.expected(place).unwrap_or_default(), vec![byte]].concat();
                    self.state.update_entry(slot, Vec::new, |v| v.push(byte));
                    self.set(place.clone(), value);
                }
                _ => {}
            }
            self.change_unnamed(map, &place.0);
        }
        self.state.give_back(rows);
    }

    /// An entry of which only the map is at hand: it may be written, and read only when it happens to be known.
    fn change_unnamed(&mut self, map: MapId, key: &[u8]) {
        let place = (key.to_vec(), map_key_of(self.rng.random_range(0..self.map_keys)));
        match self.rng.random_range(0..5) {
            0 => {
                let value = self.random_value();
                self.state.put(map, &place.1, value.clone());
                self.set(place, value);
            }
            1 => {
                let (removed, expected) = (self.state.remove(map, &place.1), self.take(&place));
                assert!(removed.is_none() || removed == expected);
            }
            2 => match self.state.get(map, &place.1) {
                Ok(value) => {
                    assert_eq!(value.cloned(), self.expected(&place), "{place:?}");
                    self.events.entries_known += 1;
                }
                Err(e) => {
                    assert!(e.number() == 9115 && !self.state.is_whole(map), "{e}");
                    self.events.unknown += 1;
                }
            },
            3 => match self.state.iter(map).map(|entries| entries.len()) {
                Ok(count) => {
                    let all = self.model.iter().filter(|((k, _), v)| *k == key && v.1 > self.now).count();
                    assert_eq!(count, all);
                    self.events.maps_known += 1;
                }
                Err(e) => {
                    assert!(e.number() == 9115 && self.state.clear(map).is_err() && self.state.is_empty(map).is_err());
                }
            },
            _ => {}
        }
    }

    // ---- the model

    fn random_value(&mut self) -> Vec<u8> {
        vec![self.rng.random(); self.rng.random_range(0..40)]
    }

    fn expected(&mut self, place: &Place) -> Option<Vec<u8>> {
        let (value, stamp) = self.model.get(place)?;
        self.events.lapsed += u64::from(*stamp <= self.now);
        Some(value.clone()).filter(|_| *stamp > self.now)
    }

    fn take(&mut self, place: &Place) -> Option<Vec<u8>> {
        let expected = self.expected(place);
        self.model.remove(place);
        expected
    }

    fn set(&mut self, place: Place, value: Vec<u8>) {
        let stamp = if self.ttl { self.now + TTL_MS } else { NEVER_EXPIRES };
        self.model.insert(place, (value, stamp));
    }

    fn encoded(&self, (value, stamp): &(Vec<u8>, i64)) -> (Vec<u8>, i64) {
        let mut bytes = Vec::new();
        if self.ttl {
            put_i64(*stamp, &mut bytes);
        }
        bytes.extend_from_slice(value);
        (bytes, *stamp)
    }

    // ---- flushes

    fn freeze(&mut self) {
        if self.frozen.len() + self.uploads.len() < 4 {
            self.state.freeze();
            self.frozen.push_back(self.model.clone());
        }
    }

    fn encode(&mut self) {
        let max = self.rng.random_range(1..8);
        if self.frozen.is_empty() || !self.state.set.encode_frozen(max, &mut self.encoding) {
            return;
        }
        let model = self.frozen.pop_front().unwrap();
        self.uploads.push_back((std::mem::take(&mut self.encoding), model));
    }

    /// A flush has reached the store: it must hold what the model held when it was frozen.
    fn upload(&mut self) {
        let Some((entries, model)) = self.uploads.pop_front() else { return };
        let mut store = (*self.store).clone();
        for (key, value) in entries.0 {
            match value {
                Some(value) => drop(store.insert(key, value)),
                None => {
                    self.events.tombstones += 1;
                    store.remove(&key);
                }
            }
        }
        let live = |stamp: i64| stamp > self.now;
        let stored: BTreeMap<Place, (Vec<u8>, i64)> =
            store.iter().filter(|(_, v)| live(v.1)).map(|(k, v)| (place_of(k), v.clone())).collect();
        let expected: BTreeMap<Place, (Vec<u8>, i64)> =
            model.iter().filter(|(_, v)| live(v.1)).map(|(k, v)| (k.clone(), self.encoded(v))).collect();
        assert_eq!(stored, expected);
        self.store = Arc::new(store);
        self.state.flushed();
    }

    fn evict(&mut self) {
        let held = self.state.memory_bytes();
        self.state.evict(held * self.rng.random_range(0..10) / 10);
        self.events.evicted += u64::from(self.state.memory_bytes() < held);
    }

    // ---- the rest

    /// Everything named is processed, everything written is in the store.
    fn settle(&mut self) {
        while !self.batches.is_empty() || !self.reads.is_empty() {
            self.answer();
            self.process();
        }
        for _ in 0..2 {
            while !self.frozen.is_empty() || !self.uploads.is_empty() {
                self.encode();
                self.upload();
            }
            self.freeze();
        }
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
        self.check_account();
        for _ in 0..8 {
            let place = self.random_place();
            if self.owned(&place.0) {
                continue;
            }
            let mut store = (*self.store).clone();
            if self.rng.random_bool(0.3) {
                store.retain(|k, _| !k.starts_with(&prefix_of(&place.0)));
                self.model.retain(|(k, _), _| *k != place.0);
            } else {
                let value = self.random_value();
                self.set(place.clone(), value);
                store.insert(store_key(&place), self.encoded(&self.model[&place]));
            }
            self.store = Arc::new(store);
        }
        (0..self.rng.random_range(0..20)).for_each(|_| self.step(false));
        self.settle();
        self.ranges = KeyGroupRanges::all();
        self.state.open(STATE, self.ranges.clone(), false);
        self.state.retain(&self.ranges.clone(), true);
    }

    fn step(&mut self, may_move: bool) {
        match self.rng.random_range(0..100) {
            0..25 => self.name_batch(),
            25..45 => self.answer(),
            45..68 => self.process(),
            68..73 => self.freeze(),
            73..81 => self.encode(),
            81..88 => self.upload(),
            88..96 => self.evict(),
            99 if may_move => self.move_ranges(),
            _ => {}
        }
        self.check_account();
    }

    /// The running totals are the sums of what they count.
    fn check_account(&self) {
        let set = &self.state.set;
        let live: Vec<u32> = (0..set.slots.end()).filter(|&i| set.slots.live_at(i).is_some()).collect();
        assert_eq!((live.len(), live.len()), (set.slots.live(), set.table.len()));
        let sum: usize = live.iter().map(|&i| set.slot_bytes(i)).sum();
        assert_eq!(set.memory_bytes(), (sum + set.side_bytes() + set.maps.memory_bytes()) as u64);
        let dirty: Vec<u32> = live.iter().copied().filter(|&i| set.slots[i].written > set.flushed).collect();
        let dirty_sum: usize = dirty.iter().map(|&i| set.slot_bytes(i)).sum();
        assert_eq!(set.dirty_bytes(), (dirty_sum + set.side_bytes()) as u64);
        let with_value = live.iter().filter(|&&i| set.slots[i].value.is_some()).count();
        let (_, slots, entries) = set.maps.counts();
        assert_eq!((slots, entries), (live.len(), with_value));
    }

    fn finish(&mut self) {
        self.settle();
        // The keys of the last group may still be pinned by the group that is open.
        self.state.end_group();
        self.state.release_group();
        self.state.evict(0);
        self.state.evict(0);
        self.check_account();
        assert_eq!(self.state.memory_bytes(), 0);
    }
}

fn run(ttl: bool, sequences: u64) {
    let mut all = Events::default();
    for seed in 0..sequences {
        let mut sim = Sim::new(seed, ttl);
        for _ in 0..sim.rng.random_range(20..250) {
            sim.step(true);
        }
        sim.finish();
        let e = sim.events;
        all.evicted += e.evicted;
        all.keys_asked += e.keys_asked;
        all.maps_asked += e.maps_asked;
        all.maps_known += e.maps_known;
        all.entries_known += e.entries_known;
        all.unknown += e.unknown;
        all.iterated += e.iterated;
        all.cleared += e.cleared;
        all.tombstones += e.tombstones;
        all.moved += e.moved;
        all.lapsed += e.lapsed;
    }
    let least = [all.evicted, all.keys_asked, all.maps_asked, all.entries_known, all.unknown, all.iterated];
    assert!(least.into_iter().all(|n| n > sequences), "{all:?}");
    assert!([all.maps_known, all.cleared, all.tombstones, all.moved].into_iter().all(|n| n > sequences / 4), "{all:?}");
    assert_eq!(all.lapsed > sequences, ttl, "{all:?}");
}

#[test]
fn a_map_state_is_an_ordered_map() {
    run(false, 2_000);
}

#[test]
fn a_map_state_with_a_ttl_is_an_ordered_map_that_forgets() {
    run(true, 1_500);
}

fn opened(complete: bool) -> MapState<i64> {
    let mut state = MapState::new("test", "i64");
    state.open(STATE, KeyGroupRanges::all(), complete);
    state
}

fn asked(state: &mut MapState<i64>) -> (Vec<Bytes>, Vec<Bytes>) {
    let (mut keys, mut prefixes) = (Vec::new(), Vec::new());
    state.take_missing(&mut keys);
    state.take_missing_maps(&mut prefixes);
    (keys, prefixes)
}

fn name(state: &mut MapState<i64>, key: &[u8]) -> MapId {
    let map = state.name_map(stable_hash(key), key);
    state.end_group();
    map
}

fn entry(key: &[u8], map_key: &[u8], value: i64) -> (Bytes, Bytes) {
    (store_key(&(key.to_vec(), map_key.to_vec())).into(), value.to_le_bytes().to_vec().into())
}

/// Everything that is dirty is in the store.
fn flush(state: &mut MapState<i64>) -> Entries {
    state.freeze();
    let mut entries = Entries::default();
    while !state.set.encode_frozen(100, &mut entries) {}
    state.flushed();
    entries
}

#[test]
fn a_complete_state_asks_the_store_for_nothing_until_something_of_it_goes() {
    let mut state = opened(true);
    for key in [&b"a"[..], b"b"] {
        let map = name(&mut state, key);
        assert!(state.is_whole(map) && state.is_empty(map).unwrap());
        state.put(map, b"1", 1);
        state.put(map, b"2", 2);
        state.release_group();
    }
    assert_eq!(asked(&mut state), (Vec::new(), Vec::new()));
    flush(&mut state);
    // One of them is pinned, the other one goes.
    let a = name(&mut state, b"a");
    state.evict(0);
    assert!(state.is_whole(a) && state.iter(a).unwrap().map(|(_, v)| *v).eq([1, 2]));
    assert_eq!(asked(&mut state), (Vec::new(), Vec::new()));
    let b = name(&mut state, b"b");
    assert!(!state.is_whole(b));
    assert_eq!(asked(&mut state).1, [prefix_of(b"b")]);
    // Nobody knows what a key has that was never named.
    let c = name(&mut state, b"c");
    assert!(!state.is_whole(c) && asked(&mut state).1 == [prefix_of(b"c")]);
    // Named again, before the answer: it is on its way.
    let again = name(&mut state, b"b");
    assert!(again == b && asked(&mut state) == (Vec::new(), Vec::new()));
}

#[test]
fn what_was_written_or_removed_since_is_not_brought_back_by_a_scan() {
    let mut state = opened(false);
    let map = name(&mut state, b"k");
    let (_, prefixes) = asked(&mut state);
    // Without having been read.
    state.put(map, b"put", 10);
    assert_eq!(state.remove(map, b"removed"), None);
    assert_eq!(state.get(map, b"put").unwrap(), Some(&10));
    assert!(state.get(map, b"stored").is_err() && state.update(map, b"stored", || 0, |_| ()).is_err());
    // All of it is in the store, in a view that the scan does not have, and memory is wanted.
    let flushed = flush(&mut state);
    assert_eq!(flushed.0.len(), 2);
    assert!(flushed.0.contains(&(store_key(&(b"k".to_vec(), b"removed".to_vec())), None)));
    state.evict(0);
    let found = [entry(b"k", b"put", 1), entry(b"k", b"removed", 2), entry(b"k", b"stored", 3)];
    state.install_map(&prefixes[0], &found).unwrap();
    let entries: Vec<(Vec<u8>, i64)> = state.iter(map).unwrap().map(|(k, v)| (k.to_vec(), *v)).collect();
    assert_eq!(entries, [(b"put".to_vec(), 10), (b"stored".to_vec(), 3)]);
    // Whole: what is not there is known not to be, and to remove it takes no tombstone.
    assert_eq!(state.remove(map, b"nothing"), None);
    state.put(map, b"for a moment", 1);
    assert_eq!(state.remove(map, b"for a moment"), Some(1));
    let named = state.name_entry((stable_hash(b"k"), b"k"), (stable_hash(b"new"), b"new"));
    assert!(state.is_resident(named) && asked(&mut state).0.is_empty());
    assert!(flush(&mut state).0.is_empty());
}

#[test]
fn what_comes_into_a_map_that_is_pinned_is_pinned_with_it() {
    let mut state = opened(true);
    let (map, second) = (name(&mut state, b"k"), name(&mut state, b"k"));
    assert_eq!(map, second);
    // The first batch writes; the second has not had its turn.
    state.put(map, b"1", 1);
    state.release_group();
    flush(&mut state);
    state.evict(0);
    assert!(state.is_whole(map) && state.get(map, b"1").unwrap() == Some(&1));
    state.release_group();
    state.end_group();
    state.release_group();
    // An eviction that found nothing is tried again after a flush.
    flush(&mut state);
    state.evict(0);
    state.evict(0);
    assert_eq!(state.memory_bytes(), 0);
}

#[test]
fn entries_that_are_no_ones_are_refused() {
    let mut state = opened(false);
    name(&mut state, b"k");
    let (_, prefixes) = asked(&mut state);
    assert_eq!(state.install_map(&prefixes[0], &[entry(b"l", b"1", 1)]).unwrap_err().number(), 9112);
    assert_eq!(state.install(&[0, 8, 0, 0, 1, 0, 0], None).unwrap_err().number(), 9112);
    assert_eq!(state.name_entries(&buffer(&[b"k".to_vec()]), &KeyBuffer::default()).unwrap_err().number(), 9115);
    assert_eq!(state.take_maps().unwrap_err().number(), 9110);
    state.name_maps(&buffer(&[b"other".to_vec()]));
    assert_eq!(state.take_maps().unwrap_err().number(), 9111);
}
