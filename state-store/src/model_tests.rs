//! The state store against an ordered map: random sequences of everything that a job does to its state, with races
//! of compactions, failed epochs, restarts and moved ranges. A failure prints the seed of its sequence.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use millstream_common::{Env, Epoch, KEY_GROUPS, KeyGroupRange, KeyGroupRanges, StateId};
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use crate::compaction::{CompactionDone, CompactionOptions, CompactionOutcome, Pick, apply, pick};
use crate::entry::append_element;
use crate::section::{Compression, FilterKind, SectionOptions};
use crate::testing::*;
use crate::tree::{check_successor, live_in_segments};
use crate::*;

/// The keys of the map state: no one's entries are another's, however alike they are.
const MAP_KEYS: [&[u8]; 5] = [b"", b"\0", b"\0\0", b"key", b"key\0"];

/// What a key is worth: the value and until when it counts, as of the last write.
type Reference = BTreeMap<Bytes, (Vec<u8>, Expiry)>;

struct Owner {
    ranges: KeyGroupRanges,
    writer: SectionWriter,
    dirty: BTreeSet<Bytes>,
    /// Sections above the version.
    pending: Vec<Arc<Run>>,
    flush: u32,
}

impl Owner {
    fn new(ranges: KeyGroupRanges) -> Self {
        Self { ranges, writer: SectionWriter::new(TASK), dirty: BTreeSet::new(), pending: Vec::new(), flush: 0 }
    }
}

struct Model {
    rng: SmallRng,
    store: StateStore,
    layouts: Layouts,
    keys: Vec<(StateId, Bytes)>,
    tree: Tree,
    owners: Vec<Owner>,
    /// The epoch that is open, and the committed one.
    epoch: Epoch,
    committed_epoch: Epoch,
    now: ReadTime,
    committed_event_time: i64,
    reference: Reference,
    committed: Reference,
    /// Compactions that have written their outputs and wait for their turn.
    done: Vec<CompactionDone>,
    options: CompactionOptions,
    stats: Stats,
}

/// What the sequences did, so that a test can tell that they did it.
#[derive(Debug, Default)]
struct Stats {
    compactions: u64,
    stale: u64,
    bottom: u64,
    above: u64,
    read: u64,
    present: u64,
    expired: u64,
    scanned: u64,
    pieces: u64,
    filtered: u64,
}

impl Model {
    fn new(seed: u64, env: &Env) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let options = CompactionOptions {
            trigger_runs: rng.random_range(2..5),
            output_bytes: *[1, 200, 1 << 20].choose(&mut rng).unwrap(),
        };
        let store_options = StateStoreOptions {
            section: SectionOptions {
                block_bytes: rng.random_range(1..300),
                compression: *[Compression::Lz4, Compression::None].choose(&mut rng).unwrap(),
                filter: *[FilterKind::Bloom { bits_per_key: rng.random_range(1..12) }, FilterKind::Fuse]
                    .choose(&mut rng)
                    .unwrap(),
                part_bytes: rng.random_range(1..2000),
                keep_blocks_bytes: *[0, 4096].choose(&mut rng).unwrap(),
            },
            gap_bytes: rng.random_range(0..300),
            widest_gap_bytes: rng.random_range(0..3000),
            request_bytes: rng.random_range(1..600),
            gets_in_flight: rng.random_range(1..5),
            bytes_in_flight: rng.random_range(1..3000),
            gets_per_second: rng.random_range(1..10),
            read_ahead_bytes: rng.random_range(1..500),
            admission_bytes: 0,
            compaction: options.clone(),
        };
        let store = memory_store(env);
        let store = state_store(&store, env, rng.random(), store_options);
        let mut keys = Vec::new();
        for state in [POINT, SUMS, LISTS] {
            keys.extend((0..3).map(|i| (state, point(state, format!("key {i}").as_bytes()))));
            // Sub-keys: in the key group of their key, right behind it.
            let parent = point(state, b"parent");
            let sub_keys = [&b""[..], b"\0", b"\0\0", b"\x01"];
            keys.extend(sub_keys.iter().map(|s| (state, Bytes::from([&parent[..], s].concat()))));
        }
        keys.extend((0..9).map(|i| (TIMED, timed(i % 3 * 10, format!("key {}", i / 3).as_bytes()))));
        let of_key = |key: &'static [u8]| [&b""[..], b"\0", b"x", b"\xff"].map(|entry| (MAP, mapped(key, entry)));
        keys.extend(MAP_KEYS.into_iter().flat_map(of_key));
        let mut model = Self {
            rng,
            store,
            layouts: layouts(),
            keys,
            tree: tree(),
            owners: Vec::new(),
            epoch: Epoch(1),
            committed_epoch: Epoch(0),
            now: ReadTime { event_time_ms: 0, processing_time_ms: 0 },
            committed_event_time: 0,
            reference: Reference::new(),
            committed: Reference::new(),
            done: Vec::new(),
            options,
            stats: Stats::default(),
        };
        model.assign();
        model
    }

    /// Deals the key groups out anew.
    fn assign(&mut self) {
        let parallelism = self.rng.random_range(1..4);
        let mut cuts: Vec<u32> =
            (0..self.rng.random_range(0..5)).map(|_| self.rng.random_range(0..KEY_GROUPS)).collect();
        cuts.extend([0, KEY_GROUPS]);
        cuts.sort_unstable();
        let mut ranges = vec![Vec::new(); parallelism];
        for (i, cut) in cuts.windows(2).enumerate() {
            ranges[i % parallelism].push(KeyGroupRange::new(cut[0], cut[1]));
        }
        self.owners = ranges.into_iter().map(|r| Owner::new(KeyGroupRanges::new(r))).collect();
    }

    fn write(&mut self) {
        let (state, key) = self.keys.choose(&mut self.rng).unwrap().clone();
        let group = self.layouts.locate(&key).unwrap().group;
        let owner = self.owners.iter_mut().find(|o| o.ranges.contains(group)).unwrap();
        owner.dirty.insert(key.clone());
        let value = self.rng.random_range(-100_i64..100);
        // A state with merges expires by one clock alone.
        let clock = match state {
            SUMS => 1,
            LISTS => 2,
            _ => self.rng.random_range(0..3),
        };
        let life = self.rng.random_range(0..12);
        let expiry = match clock {
            _ if self.rng.random_bool(0.4) => Expiry::Never,
            1 => Expiry::EventTime(self.now.event_time_ms + life),
            _ => Expiry::ProcessingTime(self.now.processing_time_ms + life),
        };
        let mut element = Vec::new();
        append_element(&value.to_le_bytes()[..self.rng.random_range(0..8)], &mut element).unwrap();
        let payload = if state == LISTS { element } else { value.to_le_bytes().to_vec() };
        match self.rng.random_range(0..10) {
            0..2 => {
                owner.writer.delete(&key);
                self.reference.remove(&key);
            }
            2..7 if state == SUMS || state == LISTS => {
                let now = if state == SUMS { self.now.event_time_ms } else { self.now.processing_time_ms };
                owner.writer.merge(&key, &payload, now, expiry);
                let base = self.reference.get(&key).filter(|(_, e)| !e.had_come(now)).map(|(v, _)| v.clone());
                let merged = match base {
                    None => payload,
                    Some(base) if state == LISTS => [base, payload].concat(),
                    Some(base) => (i64::from_le_bytes(base.try_into().unwrap()) + value).to_le_bytes().to_vec(),
                };
                self.reference.insert(key, (merged, expiry));
            }
            _ => {
                owner.writer.put(&key, &payload, expiry);
                self.reference.insert(key, (payload, expiry));
            }
        }
    }

    /// Writes what an owner holds as a section of the open epoch.
    async fn flush(&mut self, i: usize) {
        let owner = &mut self.owners[i];
        if owner.writer.is_empty() {
            return;
        }
        let writer = std::mem::replace(&mut owner.writer, SectionWriter::new(TASK));
        owner.dirty.clear();
        let interval = Interval::of(self.epoch, owner.flush);
        owner.flush += 1;
        let options = &self.store.options().section;
        let section = writer.encode(options, &self.layouts, owner.ranges.clone(), interval).unwrap();
        let runs = self.store.write_bundle(WRITER, vec![section]).await.unwrap();
        self.owners[i].pending.extend(runs.into_iter().map(Arc::new));
    }

    /// Ends the epoch: everybody flushes; it commits or it fails, and then its sections go into the next report.
    async fn end_epoch(&mut self, commits: bool) {
        for i in 0..self.owners.len() {
            self.flush(i).await;
            self.owners[i].flush = 0;
        }
        if commits {
            let mut next = self.tree.clone();
            next.add_runs(self.owners.iter_mut().flat_map(|o| std::mem::take(&mut o.pending)));
            self.commit(next, self.epoch);
            self.committed_epoch = self.epoch;
            self.committed = self.reference.clone();
            self.committed_event_time = self.now.event_time_ms;
        }
        self.epoch = self.epoch.next();
    }

    fn commit(&mut self, next: Tree, epoch: Epoch) {
        check_successor(&self.tree, &next, (self.committed_epoch, epoch)).unwrap();
        let stored = Tree::from_proto(&next.to_proto()).unwrap();
        assert_eq!(stored, next);
        self.tree = stored;
    }

    /// Any neighbours in any key groups where they are neighbours, whatever it is good for.
    fn random_pick(&mut self, owned: &KeyGroupRanges) -> Option<Pick> {
        let runs = self.tree.runs_of(TASK, owned);
        let clips: Vec<_> = runs.iter().map(|r| r.clip.intersect(owned)).collect();
        let segments = live_in_segments(clips.iter());
        let (segment, live) = segments.choose(&mut self.rng)?;
        let (segment, live): (_, Vec<_>) = (*segment, live.iter().map(|&i| runs[i].clone()).collect());
        let from = self.rng.random_range(0..live.len());
        let to = self.rng.random_range(from..live.len());
        let part = match self.rng.random_range(0..3) {
            0 => KeyGroupRange::new(segment.start, self.rng.random_range(segment.start + 1..=segment.end)),
            _ => segment,
        };
        Some(Pick { inputs: live[from..=to].to_vec(), ranges: part.into(), bottom: to + 1 == live.len() })
    }

    async fn begin_compaction(&mut self) {
        let Some(owner) = self.owners.choose(&mut self.rng) else { return };
        let ranges = owner.ranges.clone();
        let picked = if self.rng.random() {
            pick(&self.tree.runs_of(TASK, &ranges), &ranges, &self.options)
        } else {
            self.random_pick(&ranges)
        };
        let Some(pick) = picked else { return };
        self.stats.above += u64::from(!pick.bottom);
        self.stats.bottom += u64::from(pick.bottom);
        let time = ReadTime { event_time_ms: self.committed_event_time, ..self.now };
        let outputs =
            self.store.compact(&pick.inputs, &pick.ranges, &self.layouts, WRITER, pick.bottom, time).await.unwrap();
        let Pick { inputs, ranges, bottom } = pick;
        self.done.push(CompactionDone { task: TASK, inputs, ranges, bottom, outputs });
    }

    fn end_compaction(&mut self) {
        if self.done.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.done.len());
        let done = self.done.swap_remove(at);
        match apply(&self.tree, &done) {
            CompactionOutcome::Applied(next) => {
                self.stats.compactions += 1;
                self.commit(next, self.committed_epoch);
            }
            CompactionOutcome::Stale(_) => self.stats.stale += 1,
        }
    }

    /// All that was not committed is lost.
    fn restart(&mut self) {
        self.reference = self.committed.clone();
        self.now.event_time_ms = self.committed_event_time;
        self.epoch = self.epoch.next();
        self.assign();
    }

    fn view(&self, owner: &Owner) -> View {
        let mut runs = self.tree.runs_of(TASK, &owner.ranges);
        runs.extend(owner.pending.iter().cloned());
        self.store.view(runs, owner.ranges.clone(), self.layouts.clone())
    }

    fn expected(&self, key: &Bytes) -> Option<Vec<u8>> {
        self.reference.get(key).filter(|(_, e)| !e.has_come(&self.now)).map(|(v, _)| v.clone())
    }

    async fn read(&mut self, owner: usize) {
        let owner = &self.owners[owner];
        let view = self.view(owner);
        let mut keys: Vec<Bytes> = self
            .keys
            .iter()
            .map(|(_, k)| k.clone())
            .filter(|k| owner.ranges.contains(self.layouts.locate(k).unwrap().group) && !owner.dirty.contains(k))
            .collect();
        keys.shuffle(&mut self.rng);
        keys.truncate(self.rng.random_range(1..20));
        keys.extend(keys.first().cloned());
        let (values, report) = view.multi_get(&keys, &self.now).await.unwrap();
        assert_eq!(values.len(), keys.len());
        for (key, value) in keys.iter().zip(values.iter()) {
            assert_eq!(value, self.expected(key).as_deref(), "{key:02x?} at {:?}", self.now);
            self.stats.read += 1;
            self.stats.present += u64::from(value.is_some());
            self.stats.expired += u64::from(value.is_none() && self.reference.contains_key(key));
            let place = self.layouts.locate(key).unwrap();
            let time = place.time_ms.map(|t| (t - 1, t));
            assert!(value.is_none() || view.may_hold(place.state, time));
        }
        assert!(report.keys as usize <= keys.len());
    }

    async fn scan(&mut self, owner: usize) {
        let (a, b) = (self.keys.choose(&mut self.rng).unwrap(), self.keys.choose(&mut self.rng).unwrap());
        let (from, to) = match self.rng.random_range(0..3) {
            0 => (key::state_start(a.0), key::state_end(a.0)),
            1 => (Vec::new(), vec![0xff]),
            _ => (a.1.to_vec(), b.1.to_vec()),
        };
        let max_bytes = *[1, 30, 1 << 20].choose(&mut self.rng).unwrap();
        let index = owner;
        let owner = &self.owners[owner];
        let view = self.view(owner);
        let mut found = BTreeMap::new();
        let mut start = Bytes::from(from.clone());
        loop {
            let piece = view.scan(&start, &to, max_bytes, &self.now).await.unwrap();
            self.stats.pieces += 1;
            for (key, value) in piece.entries {
                assert!(found.last_key_value().is_none_or(|(last, _)| *last < key));
                found.insert(key, value.to_vec());
            }
            match piece.next {
                Some(next) => start = next,
                None => break,
            }
        }
        self.stats.scanned += found.len() as u64;
        found.retain(|k, _| !owner.dirty.contains(k));
        let expected: BTreeMap<Bytes, Vec<u8>> = self
            .keys
            .iter()
            .map(|(_, k)| k.clone())
            .filter(|k| **k >= *from && **k < *to && !owner.dirty.contains(k))
            .filter(|k| owner.ranges.contains(self.layouts.locate(k).unwrap().group))
            .filter_map(|k| self.expected(&k).map(|v| (k, v)))
            .collect();
        assert_eq!(found, expected);
        self.scan_many(index, &expected).await;
    }

    /// The maps of some keys, and perhaps stretches of others: what filters spare changes no answer.
    async fn scan_maps(&mut self, owner: usize) {
        let mut ranges: Vec<_> = MAP_KEYS.into_iter().map(map_of).collect();
        // Keys that nobody has.
        ranges.extend((0..6_u8).map(|i| map_of(&[b'n', i])));
        ranges.shuffle(&mut self.rng);
        ranges.truncate(self.rng.random_range(1..8));
        if self.rng.random_bool(0.2) {
            ranges.push(Bytes::from(key::state_start(POINT))..Bytes::from(key::state_end(POINT)));
        }
        ranges.sort_by(|a, b| a.start.cmp(&b.start));
        self.scan_ranges(owner, ranges).await;
    }

    /// Stretches of what a scan has found, and gaps between them.
    async fn scan_many(&mut self, owner: usize, all: &BTreeMap<Bytes, Vec<u8>>) {
        let mut bounds: Vec<Bytes> = all.keys().cloned().collect();
        bounds.extend(self.keys.iter().map(|(_, k)| Bytes::from([&k[..], &[0]].concat())));
        bounds.shuffle(&mut self.rng);
        bounds.truncate(self.rng.random_range(0..8));
        bounds.sort();
        let ranges: Vec<_> = bounds.chunks_exact(2).map(|w| w[0].clone()..w[1].clone()).collect();
        self.scan_ranges(owner, ranges).await;
    }

    /// `ranges` are sorted and disjoint.
    async fn scan_ranges(&mut self, owner: usize, ranges: Vec<std::ops::Range<Bytes>>) {
        let max_bytes = *[1, 30, 1 << 20].choose(&mut self.rng).unwrap();
        let owner = &self.owners[owner];
        let view = self.view(owner);
        let (mut found, mut left) = (BTreeMap::new(), ranges.clone());
        loop {
            let piece = view.scan_many(&left, max_bytes, &self.now).await.unwrap();
            self.stats.filtered += piece.report.filtered;
            found.extend(piece.entries.into_iter().map(|(k, v)| (k, v.to_vec())));
            let Some(next) = piece.next else { break };
            left.retain(|r| r.end > next);
            if let Some(first) = left.first_mut() {
                first.start = first.start.clone().max(next);
            }
        }
        found.retain(|k, _| !owner.dirty.contains(k));
        let expected: BTreeMap<Bytes, Vec<u8>> = self
            .keys
            .iter()
            .filter(|(_, k)| ranges.iter().any(|r| r.contains(k)) && !owner.dirty.contains(k))
            .filter(|(_, k)| owner.ranges.contains(self.layouts.locate(k).unwrap().group))
            .filter_map(|(_, k)| self.expected(k).map(|v| (k.clone(), v)))
            .collect();
        assert_eq!(found, expected, "{ranges:02x?}");
    }

    async fn step(&mut self) {
        let owner = self.rng.random_range(0..self.owners.len());
        match self.rng.random_range(0..100) {
            0..40 => {
                for _ in 0..self.rng.random_range(1..8) {
                    self.write();
                }
            }
            40..50 => self.flush(owner).await,
            50..62 => self.end_epoch(true).await,
            62..66 => self.end_epoch(false).await,
            66..74 => self.begin_compaction().await,
            74..82 => self.end_compaction(),
            82..86 => {
                self.now.event_time_ms += self.rng.random_range(0..8);
                self.now.processing_time_ms += self.rng.random_range(0..8);
            }
            86..88 => {
                self.end_epoch(true).await;
                self.assign();
            }
            88..90 => self.restart(),
            90..95 => self.read(owner).await,
            95..97 => self.scan_maps(owner).await,
            _ => self.scan(owner).await,
        }
    }
}

async fn sequence(seed: u64) -> Stats {
    let env = Env::test(seed);
    let mut model = Model::new(seed, &env);
    for _ in 0..model.rng.random_range(10..60) {
        model.step().await;
    }
    for owner in 0..model.owners.len() {
        model.flush(owner).await;
        model.read(owner).await;
        model.scan(owner).await;
        model.scan_maps(owner).await;
    }
    model.stats
}

/// Says which seed failed while a panic unwinds.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the sequence of seed {} failed", self.0);
        }
    }
}

fn run(seeds: std::ops::Range<u64>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let mut all = Stats::default();
    for seed in seeds {
        let _seed = Seed(seed);
        let s = runtime.block_on(sequence(seed));
        all.compactions += s.compactions;
        all.stale += s.stale;
        all.bottom += s.bottom;
        all.above += s.above;
        all.read += s.read;
        all.present += s.present;
        all.expired += s.expired;
        all.scanned += s.scanned;
        all.pieces += s.pieces;
        all.filtered += s.filtered;
    }
    // The sequences do what they are for.
    assert!(all.compactions > 1000 && all.stale > 50 && all.bottom > 500 && all.above > 500, "{all:?}");
    assert!(all.filtered > 10_000, "{all:?}");
    assert!(all.present > 1000 && all.expired > 500 && all.scanned > 1000 && all.pieces > all.scanned / 10, "{all:?}");
}

#[test]
fn five_thousand_sequences_agree_with_an_ordered_map() {
    run(0..5_000);
}

#[test]
fn five_thousand_more_sequences_agree_with_an_ordered_map() {
    run(5_000..10_000);
}
