//! Map states: many entries under one key, read all together by scans that ask the filters for the key's prefix first.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use millstream_cache::{CacheOptions, DiskBudget, LocalFiles};
use millstream_common::{Env, Epoch, KeyGroupRanges};
use millstream_objects::Store;

use crate::section::{FilterKind, SectionOptions};
use crate::testing::*;
use crate::*;

const NOW: ReadTime = ReadTime::START;
const RUNS: usize = 6;
const KEYS: usize = 400;
/// Entries of a key in each run that has it.
const ENTRIES: u32 = 20;

fn key_of(i: usize) -> Vec<u8> {
    format!("\x01key {i}\0\0").into_bytes()
}

/// Key `i` is in the runs that `i` and the number of the run say: in one, in two, or in none.
fn has(run: usize, i: usize) -> bool {
    i % RUNS == run || (i % 10 == 7 && (i + 1) % RUNS == run)
}

fn options(filter: FilterKind) -> StateStoreOptions {
    let section =
        SectionOptions { block_bytes: 300, part_bytes: 8 << 10, keep_blocks_bytes: 0, filter, ..Default::default() };
    StateStoreOptions { section, gap_bytes: 0, ..StateStoreOptions::default() }
}

/// [`RUNS`] runs, oldest first, written by a process whose caches nobody else has. Keys from `KEYS` on are in none.
async fn written(store: &Store, env: &Env, filter: FilterKind) -> Vec<Arc<Run>> {
    let states = state_store(store, env, false, options(filter));
    let mut runs = Vec::new();
    for run in 0..RUNS {
        let mut writer = SectionWriter::new(TASK);
        for i in (0..KEYS).filter(|i| has(run, *i)) {
            for e in 0..ENTRIES {
                writer.put(&mapped(&key_of(i), &e.to_be_bytes()), &[run as u8; 8], Expiry::Never);
            }
        }
        let interval = Interval::of(Epoch(1 + run as u64), 0);
        let section = writer.encode(&states.options().section, &layouts(), KeyGroupRanges::all(), interval).unwrap();
        runs.extend(states.write_bundle(WRITER, vec![section]).await.unwrap().into_iter().map(Arc::new));
    }
    runs
}

fn maps_of(keys: Range<usize>) -> Vec<Range<Bytes>> {
    let mut ranges: Vec<_> = keys.map(|i| map_of(&key_of(i))).collect();
    ranges.sort_by(|a, b| a.start.cmp(&b.start));
    ranges
}

fn view(states: &StateStore, runs: &[Arc<Run>]) -> View {
    states.view(runs.to_vec(), KeyGroupRanges::all(), layouts())
}

/// What the maps of some keys hold, in the order of the store.
fn expected(keys: Range<usize>) -> Vec<(Bytes, Bytes)> {
    let newest = |i: usize| (0..RUNS).rev().find(|run| has(*run, i)).filter(|_| i < KEYS);
    let of_key = |i: usize| {
        newest(i).into_iter().flat_map(move |run| {
            (0..ENTRIES).map(move |e| (mapped(&key_of(i), &e.to_be_bytes()), Bytes::from(vec![run as u8; 8])))
        })
    };
    let mut all: Vec<_> = keys.flat_map(of_key).collect();
    all.sort();
    all
}

const BLOOM: FilterKind = FilterKind::Bloom { bits_per_key: 16 };

#[tokio::test]
async fn a_scan_of_maps_that_are_not_there_reads_no_block() {
    let env = Env::test(1);
    for filter in [BLOOM, FilterKind::Fuse] {
        let store = memory_store(&env);
        let runs = written(&store, &env, filter).await;
        let states = state_store(&store, &env, true, options(filter));
        let view = view(&states, &runs);
        let before = store.meter().snapshot().get;
        let absent = maps_of(KEYS..KEYS + 20);
        let piece = view.scan_many(&absent, usize::MAX, &NOW).await.unwrap();
        let report = piece.report;
        assert!(piece.entries.is_empty() && piece.next.is_none());
        // The caches were cold: the meta part of each run came, with its filters, and nothing else.
        assert_eq!((report.gets, report.meta_gets), (RUNS as u64, RUNS as u64), "{report:?}");
        assert_eq!((report.misses, report.memory_hits, report.merged), (0, 0, 0), "{report:?}");
        assert_eq!(store.meter().snapshot().get - before, RUNS as u64);
        // But for those beyond the first or last key of a run, each range lies in one part of each.
        assert!((115..=20 * RUNS as u64).contains(&report.filtered), "{report:?}");
        // One range by itself, and with the filters in memory nothing at all.
        let one = view.scan(&absent[3].start, &absent[3].end, usize::MAX, &NOW).await.unwrap();
        let again = view.scan_many(&absent, usize::MAX, &NOW).await.unwrap();
        assert_eq!((one.report.gets, one.report.filtered), (0, RUNS as u64));
        assert_eq!((again.report.gets, again.report.filtered), (0, report.filtered));
        assert_eq!(store.meter().snapshot().get - before, RUNS as u64);
    }
}

#[tokio::test]
async fn the_map_of_a_key_is_read_from_the_runs_that_have_it() {
    let env = Env::test(1);
    for filter in [BLOOM, FilterKind::Fuse] {
        let store = memory_store(&env);
        let runs = written(&store, &env, filter).await;
        let states = state_store(&store, &env, true, options(filter));
        let view = view(&states, &runs);
        for i in [12, 13, 27, KEYS] {
            let in_runs = (0..RUNS).filter(|run| i < KEYS && has(*run, i)).count() as u64;
            let piece = view.scan_many(&maps_of(i..i + 1), usize::MAX, &NOW).await.unwrap();
            assert_eq!(piece.entries, expected(i..i + 1));
            // Its 20 entries lie in a few blocks of each of these runs.
            let blocks = piece.report.misses + piece.report.memory_hits;
            assert!((in_runs..=in_runs * 5).contains(&blocks), "{i}: {:?}", piece.report);
            assert_eq!(piece.report.filtered, RUNS as u64 - in_runs, "{i}: {:?}", piece.report);
        }
        // By whole keys through the same filters.
        let keys: Vec<Bytes> = (0..ENTRIES).map(|e| mapped(&key_of(13), &e.to_be_bytes())).collect();
        let others: Vec<Bytes> = (0..ENTRIES).map(|e| mapped(&key_of(KEYS), &e.to_be_bytes())).collect();
        let (values, _) = view.multi_get(&keys, &NOW).await.unwrap();
        assert!(values.iter().all(|v| v == Some(&[1; 8][..])));
        let (values, report) = view.multi_get(&others, &NOW).await.unwrap();
        assert!(values.iter().all(|v| v.is_none()) && report.filtered > u64::from(ENTRIES) * 5, "{report:?}");
    }
}

#[tokio::test]
async fn thousands_of_maps_are_one_walk_in_pieces_or_whole_with_others_between() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let mut runs = written(&store, &env, BLOOM).await;
    let states = state_store(&store, &env, true, options(BLOOM));
    // Another state before and behind, read by a range of its own.
    let points: Vec<Bytes> = (0..50).map(|i| point(POINT, format!("{i}").as_bytes())).collect();
    let mut writer = SectionWriter::new(TASK);
    points.iter().for_each(|p| writer.put(p, b"point", Expiry::Never));
    let interval = Interval::of(Epoch(100), 0);
    let section = writer.encode(&states.options().section, &layouts(), KeyGroupRanges::all(), interval).unwrap();
    runs.extend(states.write_bundle(WRITER, vec![section]).await.unwrap().into_iter().map(Arc::new));
    let view = view(&states, &runs);
    let mut ranges = maps_of(0..KEYS + 600);
    ranges.insert(0, Bytes::from(key::state_start(POINT))..Bytes::from(key::state_end(POINT)));
    let mut wanted: Vec<_> = points.iter().map(|p| (p.clone(), Bytes::from_static(b"point"))).collect();
    wanted.extend(expected(0..KEYS));
    wanted.sort();
    let whole = view.scan_many(&ranges, usize::MAX, &NOW).await.unwrap();
    assert!(whole.entries == wanted && whole.next.is_none());
    let (mut pieces, mut left, mut found) = (0, ranges.clone(), Vec::new());
    loop {
        let piece = view.scan_many(&left, 3_000, &NOW).await.unwrap();
        pieces += 1;
        found.extend(piece.entries);
        let Some(next) = piece.next else { break };
        left.retain(|r| r.end > next);
        left[0].start = left[0].start.clone().max(next);
    }
    assert!(found == wanted && pieces > 20, "{pieces}");
    // A range that begins in the middle of a map is still asked of the filters; one that goes beyond it is not.
    let map = map_of(&key_of(KEYS + 1));
    let middle = Bytes::from([&map.start[..], b"zz"].concat());
    let inside = view.scan(&middle, &map.end, usize::MAX, &NOW).await.unwrap();
    let narrow = view.scan(&map.start, &middle, usize::MAX, &NOW).await.unwrap();
    let beyond = Bytes::from([&map.end[..], b"\0"].concat());
    let beyond = view.scan(&map.start, &beyond, usize::MAX, &NOW).await.unwrap();
    let counted = [inside, narrow, beyond].map(|p| (p.report.filtered, p.entries.len()));
    assert_eq!(counted, [(RUNS as u64, 0), (RUNS as u64, 0), (0, 0)]);
}

#[tokio::test]
async fn filters_of_maps_are_made_anew_by_compactions() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let runs = written(&store, &env, BLOOM).await;
    for bottom in [false, true] {
        let states = state_store(&store, &env, false, options(BLOOM));
        let outputs = states.compact(&runs, &KeyGroupRanges::all(), &layouts(), WRITER, bottom, NOW).await.unwrap();
        let outputs: Vec<Arc<Run>> = outputs.into_iter().map(Arc::new).collect();
        let states = state_store(&store, &env, true, options(BLOOM));
        let view = view(&states, &outputs);
        let absent = view.scan_many(&maps_of(KEYS..KEYS + 20), usize::MAX, &NOW).await.unwrap();
        assert_eq!((absent.report.filtered, absent.report.misses), (20, 0), "{bottom} {:?}", absent.report);
        assert_eq!(absent.report.gets, absent.report.meta_gets);
        let all = view.scan_many(&maps_of(0..KEYS + 20), usize::MAX, &NOW).await.unwrap();
        assert!(all.entries == expected(0..KEYS));
    }
}

#[tokio::test]
async fn one_map_in_many_parts_is_found_in_all_of_them() {
    let env = Env::test(1);
    let store = memory_store(&env);
    for filter in [BLOOM, FilterKind::Fuse] {
        let states = state_store(&store, &env, true, options(filter));
        let mut writer = SectionWriter::new(TASK);
        for e in 0..20_000_u32 {
            writer.put(&mapped(b"large", &e.to_be_bytes()), &e.to_le_bytes(), Expiry::Never);
        }
        let section = &states.options().section;
        let section = writer.encode(section, &layouts(), KeyGroupRanges::all(), Interval::of(Epoch(1), 0)).unwrap();
        assert!(section.parts.len() > 10, "{}", section.parts.len());
        let run = Arc::new(states.write_bundle(WRITER, vec![section]).await.unwrap().remove(0));
        let map = map_of(b"large");
        let piece = view(&states, &[run]).scan_many(&[map], usize::MAX, &NOW).await.unwrap();
        assert_eq!((piece.entries.len(), piece.report.filtered), (20_000, 0));
    }
}

#[tokio::test]
async fn maps_on_the_local_disk_and_in_memory_are_asked_of_the_filters_too() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let dir = tempfile::tempdir().unwrap();
    let runs = written(&store, &env, BLOOM).await;
    let local = Residency::Local(LocalFiles::open(dir.path(), &DiskBudget::new(u64::MAX), &env).unwrap());
    for residency in [local, Residency::Memory] {
        let caches =
            CacheOptions { memory_bytes: 1 << 10, metadata_bytes: 1 << 10, pinned_bytes: 64 << 20, disk: None };
        let caches = Caches::new(&caches, &env).await.unwrap();
        let states = StateStore::resident(
            store.clone(),
            caches,
            options(BLOOM),
            env.clone(),
            MergeOperators::default(),
            residency,
        );
        let view = view(&states, &runs);
        view.make_resident(WarmUp::BEHIND, |_| true).await.unwrap();
        let before = store.meter().snapshot().get;
        let absent = view.scan_many(&maps_of(KEYS..KEYS + 20), usize::MAX, &NOW).await.unwrap();
        let r = absent.report;
        assert!(r.filtered >= 115 && (r.misses, r.disk_hits, r.memory_hits) == (0, 0, 0), "{r:?}");
        let all = view.scan_many(&maps_of(0..KEYS), usize::MAX, &NOW).await.unwrap();
        assert!(all.entries == expected(0..KEYS) && all.report.filtered > 0);
        assert_eq!(store.meter().snapshot().get, before, "nothing was read from the store");
    }
}
