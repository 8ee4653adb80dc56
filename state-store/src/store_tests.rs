//! What reads and writes cost and how they fail, on stores in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use millstream_cache::CacheBlock;
use millstream_common::{Env, Epoch, ErrorKind, KeyGroup, KeyGroupRange, KeyGroupRanges, TaskId};
use millstream_objects::object_store::memory::InMemory;
use millstream_objects::{Faults, FaultyStore, Operation, Purpose, Store, StoreOptions};
use millstream_proto::version::{VersionRecord, version_record};

use crate::compaction::{CompactionDone, CompactionOutcome, Merge, Throttle, apply};
use crate::section::SectionOptions;
use crate::testing::*;
use crate::version::VersionLog;
use crate::*;

const NOW: ReadTime = ReadTime::START;

fn keys(n: usize) -> Vec<Bytes> {
    (0..n).map(|i| point(POINT, format!("key {i}").as_bytes())).collect()
}

fn section(keys: &[Bytes], value: &[u8], epoch: u64, options: &StateStoreOptions) -> EncodedSection {
    let mut writer = SectionWriter::new(TASK);
    keys.iter().for_each(|k| writer.put(k, value, Expiry::Never));
    writer.encode(&options.section, &layouts(), KeyGroupRanges::all(), Interval::of(Epoch(epoch), 0)).unwrap()
}

/// A run in which every key has this value, written by a process whose caches nobody else has.
async fn written(store: &Store, env: &Env, keys: &[Bytes], value: &[u8], epoch: u64) -> Arc<Run> {
    let writer = state_store(store, env, false, small_blocks());
    let section = section(keys, value, epoch, writer.options());
    Arc::new(writer.write_bundle(WRITER, vec![section]).await.unwrap().remove(0))
}

/// So many runs, each with all keys: their values are `bytes` times the number of the epoch, from 1 on.
async fn written_again(store: &Store, env: &Env, keys: &[Bytes], runs: u8, bytes: usize) -> Vec<Arc<Run>> {
    let mut all = Vec::new();
    for epoch in 1..=runs {
        all.push(written(store, env, keys, &vec![epoch; bytes], epoch.into()).await);
    }
    all
}

fn small_blocks() -> StateStoreOptions {
    let section = SectionOptions { block_bytes: 200, keep_blocks_bytes: 0, ..SectionOptions::default() };
    StateStoreOptions { section, gap_bytes: 0, gets_in_flight: 4096, ..StateStoreOptions::default() }
}

fn view(store: &StateStore, runs: &[Arc<Run>]) -> View {
    store.view(runs.to_vec(), KeyGroupRanges::all(), layouts())
}

#[tokio::test]
async fn a_bundle_is_one_put_and_its_runs_come_in_order() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let states = state_store(&store, &env, true, StateStoreOptions::default());
    assert!(states.write_bundle(WRITER, Vec::new()).await.unwrap().is_empty());
    let all = keys(30);
    let sections = (0..3).map(|i| section(&all[i * 10..][..10], &[i as u8], 1 + i as u64, states.options())).collect();
    let runs = states.write_bundle(WRITER, sections).await.unwrap();
    assert_eq!(store.meter().snapshot().put, 1);
    assert!(runs.windows(2).all(|w| w[0].object == w[1].object && w[0].offset + w[0].length == w[1].offset));
    assert_eq!(runs[2].offset + runs[2].length, runs[0].object_bytes);
    assert_eq!(store.size(&runs[0].path(), Purpose::Check).await.unwrap(), Some(runs[0].object_bytes));
    assert!(runs[0].object[2..].starts_with("/1-2-"), "{}", runs[0].object);
    let view = view(&states, &runs.into_iter().map(Arc::new).collect::<Vec<_>>());
    let (values, report) = view.multi_get(&all, &NOW).await.unwrap();
    for (i, value) in values.iter().enumerate() {
        assert_eq!(value, Some(&[(i / 10) as u8][..]));
    }
    // All of it was in the caches.
    assert_eq!((report.gets, report.memory_hits, store.meter().snapshot().get), (0, 3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_cold_batch_takes_two_dependent_stages() {
    let env = Env::test(1);
    let latency = Duration::from_millis(30);
    let faults = Faults { latency_p50: latency, latency_p99: latency, ..Faults::none() };
    let backend = FaultyStore::new(Arc::new(InMemory::new()), &env, Faults::none());
    let store = Store::from_backend(Arc::new(backend.clone()), "memory://", &StoreOptions::default(), &env);
    let all = keys(3000);
    let mut runs = Vec::new();
    for run in 0..6 {
        let some: Vec<_> = all.iter().skip(run).step_by(6).cloned().collect();
        runs.push(written(&store, &env, &some, &[run as u8; 20], run as u64).await);
    }
    backend.set(faults);
    let states = state_store(&store, &env, true, small_blocks());
    let started = env.now();
    let (values, report) = view(&states, &runs).multi_get(&all, &NOW).await.unwrap();
    assert!(values.iter().enumerate().all(|(i, v)| v == Some(&[(i % 6) as u8; 20][..])));
    // Two GETs one after the other; the slowest of so many takes up to twice the median.
    let took = env.now().since(started);
    assert!(took <= latency * 4, "{took:?} {report:?}");
    assert!(report.gets > 6 && report.waited == took && report.filtered > 10_000, "{report:?}");
    assert_eq!(report.gets, store.meter().snapshot().tally(Operation::Get, Purpose::State).requests);
    assert_eq!(states.caches().stats().misses, report.misses, "also without an SSD");
    let (_, again) = view(&states, &runs).multi_get(&all, &NOW).await.unwrap();
    assert_eq!((again.gets, again.misses), (0, 0));
}

#[tokio::test]
async fn neighbouring_blocks_come_in_one_get_and_only_newest_ones_when_that_saves_much() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let all = keys(2000);
    let runs = written_again(&store, &env, &all, 6, 20).await;
    let options = StateStoreOptions { gap_bytes: 64 << 10, ..small_blocks() };
    let states = state_store(&store, &env, true, options);
    let (values, report) = view(&states, &runs).multi_get(&all, &NOW).await.unwrap();
    assert!(values.iter().all(|v| v == Some(&[6; 20][..])));
    // Six meta parts, and all blocks of the newest run in one piece.
    assert_eq!(report.gets, 7, "{report:?}");
    assert!(report.misses < 500);
}

#[tokio::test(start_paused = true)]
async fn what_comes_along_is_kept_and_gets_its_table_when_somebody_searches_it() {
    let env = Env::test(1);
    let latency = Duration::from_millis(30);
    let faults = Faults { latency_p50: latency, latency_p99: latency * 3, ..Faults::none() };
    let backend = FaultyStore::new(Arc::new(InMemory::new()), &env, faults);
    let store = Store::from_backend(Arc::new(backend), "memory://", &StoreOptions::default(), &env);
    let all = keys(3000);
    let run = written(&store, &env, &all, &[7; 20], 1).await;
    // Few keys, in GETs that bring what lies between them; with 100 bytes in flight none of it may wait.
    for bytes_in_flight in [128 << 20, 100] {
        let options =
            StateStoreOptions { gap_bytes: 4 << 10, request_bytes: 16 << 10, bytes_in_flight, ..small_blocks() };
        let states = state_store(&store, &env, true, options);
        let view = view(&states, std::slice::from_ref(&run));
        // Those in memory, and those of them that have a table.
        let held = async || {
            let mut report = ReadReport::default();
            let parts = view.store.parts(&[&run], |_| true, |_, _| true, Purpose::State, &mut report).await.unwrap();
            let keys = parts.iter().flat_map(|p| (0..p.part.blocks().len()).map(|b| p.key(b)));
            let blocks: Vec<_> = keys.filter_map(|key| states.caches().peek_block(&key)).collect();
            (blocks.len() as u64, blocks.iter().filter(|b| !b.0.lacks_table()).count() as u64)
        };
        let some: Vec<Bytes> = all.iter().step_by(60).cloned().collect();
        let (_, cold) = view.multi_get(&some, &NOW).await.unwrap();
        let (all_held, with_table) = held().await;
        assert_eq!(with_table, cold.misses, "{cold:?}");
        assert!(cold.gets > 3 && all_held > cold.misses * 2, "{all_held} {cold:?}");
        let (values, warm) = view.multi_get(&all, &NOW).await.unwrap();
        assert!(values.iter().all(|v| v == Some(&[7; 20][..])));
        // A block whose keys are looked up in two goes is found twice.
        assert!(warm.memory_hits >= all_held, "{all_held} {warm:?}");
        assert_eq!(held().await, (all_held + warm.misses, all_held + warm.misses));
        assert_eq!(states.0.undecoded_bytes.load(Ordering::Relaxed), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_block_that_many_want_is_fetched_once() {
    let env = Env::test(1);
    let faults =
        Faults { latency_p50: Duration::from_millis(30), latency_p99: Duration::from_millis(60), ..Faults::none() };
    let backend = FaultyStore::new(Arc::new(InMemory::new()), &env, faults);
    let store = Store::from_backend(Arc::new(backend), "memory://", &StoreOptions::default(), &env);
    let all = keys(500);
    let run = written(&store, &env, &all, b"v", 1).await;
    let states = state_store(&store, &env, true, small_blocks());
    let view = view(&states, &[run]);
    let reads = (0..8).map(|i| view.multi_get(&all[i * 10..], &NOW));
    let reports: Vec<_> = futures::future::join_all(reads).await.into_iter().map(|r| r.unwrap().1).collect();
    let misses: u64 = reports.iter().map(|r| r.misses).sum();
    let shared: u64 = reports.iter().map(|r| r.shared).sum();
    let (runs, mut report) = ([&view.runs()[0]], ReadReport::default());
    let parts = view.store.parts(&runs, |_| true, |_, _| true, Purpose::State, &mut report).await.unwrap();
    let blocks: usize = parts.iter().map(|p| p.part.blocks().len()).sum();
    assert_eq!(misses as usize, blocks);
    assert!(shared > misses, "{shared} {misses}");
    // Who gives up leaves nobody waiting.
    let mut given_up = 0;
    for after_ms in [1, 10, 20, 30, 40, 60] {
        let cold = state_store(&store, &env, true, small_blocks());
        let cold = cold.view(view.runs().to_vec(), KeyGroupRanges::all(), layouts());
        let first = env.timeout(Duration::from_millis(after_ms), "the first", cold.multi_get(&all, &NOW));
        let (first, second) = futures::join!(first, cold.multi_get(&all, &NOW));
        given_up += usize::from(first.is_err());
        assert!(second.unwrap().0.iter().all(|v| v.is_some()));
    }
    assert!(given_up >= 2, "{given_up}");
}

async fn damage(store: &Store, path: &str, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = store.get(path, Purpose::Check).await.unwrap().unwrap().to_vec();
    change(&mut bytes);
    store.delete(path, Purpose::Check).await.unwrap();
    store.put(path, vec![bytes.into()], Purpose::Check).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn damage_is_found_and_named() {
    let env = Env::test(1);
    let all = keys(100);
    for at in (0..).map(|i| 8 + i * 37) {
        let store = memory_store(&env);
        let run = written(&store, &env, &all, b"some value", 1).await;
        if at >= run.object_bytes {
            break;
        }
        damage(&store, &run.path(), |bytes| bytes[at as usize] ^= 0x10).await;
        let states = state_store(&store, &env, false, small_blocks());
        let view = view(&states, std::slice::from_ref(&run));
        let get = view.multi_get(&all, &NOW).await.unwrap_err();
        let scan = view.scan(&[], &[0xff], 1 << 20, &NOW).await.unwrap_err();
        let compact = states
            .compact(std::slice::from_ref(&run), &KeyGroupRanges::all(), &layouts(), WRITER, true, NOW)
            .await
            .unwrap_err();
        for error in [get, scan, compact] {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
            assert!(error.what().contains("checksum"), "byte {at}: {error}");
            assert!(error.place().contains(&run.object) && error.place().contains("offset"), "{error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_in_the_place_of_another_or_none_is_found() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let all = keys(100);
    let a = written(&store, &env, &all, b"value a", 1).await;
    let b = written(&store, &env, &all, b"value b", 2).await;
    assert_eq!(a.length, b.length, "the same shape, other bytes");
    let other = store.get(&b.path(), Purpose::Check).await.unwrap().unwrap();
    damage(&store, &a.path(), |bytes| *bytes = other.to_vec()).await;
    let states = state_store(&store, &env, false, small_blocks());
    let error = view(&states, std::slice::from_ref(&a)).multi_get(&all, &NOW).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupt && error.what().contains("checksum"), "{error}");
    // The metadata was read before the object was swapped: the blocks tell.
    let states = state_store(&store, &env, true, small_blocks());
    damage(&store, &b.path(), |bytes| bytes[9] ^= 0).await;
    let b_view = view(&states, std::slice::from_ref(&b));
    b_view.multi_get(&all[..1], &NOW).await.unwrap();
    let c = written(&store, &env, &all, b"value c", 3).await;
    let other = store.get(&c.path(), Purpose::Check).await.unwrap().unwrap();
    damage(&store, &b.path(), |bytes| *bytes = other.to_vec()).await;
    let error = b_view.multi_get(&all, &NOW).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupt && error.what().contains("checksum"), "{error}");

    damage(&store, &c.path(), |bytes| bytes.truncate(bytes.len() / 2)).await;
    let states = state_store(&store, &env, false, small_blocks());
    let error = view(&states, std::slice::from_ref(&c)).multi_get(&all, &NOW).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    store.delete(&c.path(), Purpose::Check).await.unwrap();
    let error = view(&states, std::slice::from_ref(&c)).multi_get(&all, &NOW).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[tokio::test]
async fn keys_of_other_owners_are_refused() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let states = state_store(&store, &env, true, StateStoreOptions::default());
    let key = point(POINT, b"key");
    let group = u32::from(group_of(b"key").0);
    let own = states.view(Vec::new(), KeyGroupRange::new(group, group + 1).into(), layouts());
    assert_eq!(own.multi_get(std::slice::from_ref(&key), &NOW).await.unwrap().0.get(0), None);
    let others = states.view(Vec::new(), KeyGroupRange::new(group + 1, group + 2).into(), layouts());
    assert_eq!(others.multi_get(&[key], &NOW).await.unwrap_err().kind(), ErrorKind::Internal);
}

#[tokio::test]
async fn a_compaction_of_young_small_runs_reads_nothing_from_the_store() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let states = state_store(&store, &env, true, StateStoreOptions::default());
    let all = keys(50);
    let mut runs = Vec::new();
    for epoch in 1..=8 {
        let section = section(&all, &[epoch as u8], epoch, states.options());
        runs.extend(states.write_bundle(WRITER, vec![section]).await.unwrap().into_iter().map(Arc::new));
    }
    let outputs = states.compact(&runs, &KeyGroupRanges::all(), &layouts(), WRITER, true, NOW).await.unwrap();
    let metered = store.meter().snapshot();
    assert_eq!((outputs.len(), metered.get, metered.put), (1, 0, 9));
    assert_eq!(outputs[0].entries, 50);
    let view = view(&states, &[Arc::new(outputs[0].clone())]);
    let (values, report) = view.multi_get(&all, &NOW).await.unwrap();
    assert!(values.iter().all(|v| v == Some(&[8][..])));
    assert_eq!(report.gets, 0);
}

#[tokio::test]
async fn compactions_and_scans_leave_a_full_cache_alone() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let all = keys(2000);
    let runs = written_again(&store, &env, &all, 3, 50).await;
    let states = state_store(&store, &env, true, small_blocks());
    view(&states, &runs).multi_get(&all[..50], &NOW).await.unwrap();
    let other = millstream_cache::ObjectId::of("another");
    for offset in 0.. {
        if states.caches().room_bytes() == 0 {
            break;
        }
        states.caches().insert_block(millstream_cache::BlockKey { object: other, offset }, filler(1 << 18));
    }
    let before = states.caches().stats();
    states.compact(&runs, &KeyGroupRanges::all(), &layouts(), WRITER, true, NOW).await.unwrap();
    let piece = view(&states, &runs).scan(&[], &[0xff], usize::MAX, &NOW).await.unwrap();
    assert_eq!(piece.entries.len(), 2000);
    let after = states.caches().stats();
    assert_eq!((after.memory_bytes, after.memory_hits), (before.memory_bytes, before.memory_hits));
}

#[tokio::test(start_paused = true)]
async fn a_merge_of_a_large_run_with_small_ones_waits_for_few_reads() {
    let env = Env::test(1);
    let latency = Duration::from_millis(30);
    let backend = FaultyStore::new(Arc::new(InMemory::new()), &env, Faults::none());
    let store = Store::from_backend(Arc::new(backend.clone()), "memory://", &StoreOptions::default(), &env);
    let all = keys(20_000);
    let mut runs = vec![written(&store, &env, &all, &[1; 100], 1).await];
    for epoch in 2..=8 {
        let few: Vec<_> = all.iter().skip(epoch as usize).step_by(100).cloned().collect();
        runs.push(written(&store, &env, &few, &[epoch as u8; 100], epoch).await);
    }
    backend.set(Faults { latency_p50: latency, latency_p99: latency, ..Faults::none() });
    let options = StateStoreOptions { read_ahead_bytes: 64 << 10, gap_bytes: 64 << 10, ..small_blocks() };
    let states = state_store(&store, &env, false, options);
    let started = env.now();
    let outputs = states.compact(&runs, &KeyGroupRanges::all(), &layouts(), WRITER, true, NOW).await.unwrap();
    let waits = env.now().since(started).as_millis() / latency.as_millis();
    assert_eq!(outputs.iter().map(|o| o.entries).sum::<u64>(), 20_000);
    // Of values alone it has 30 times 64 KiB; but its share is three quarters of 512 KiB.
    assert!((4..18).contains(&waits), "{waits} waits");
}

/// A block of so many bytes.
fn filler(bytes: usize) -> SharedBlock {
    let mut body = [1_u32, 0, 0, 0].map(u32::to_le_bytes).concat();
    body.resize(bytes, 7);
    SharedBlock::of_body(body.into()).unwrap()
}

#[tokio::test]
async fn what_a_compaction_wrote_is_read_without_a_get_while_there_is_room() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let all = keys(2000);
    let runs = written_again(&store, &env, &all, 3, 50).await;
    let states = state_store(&store, &env, true, small_blocks());
    view(&states, &runs).multi_get(&all, &NOW).await.unwrap();
    let outputs = states.compact(&runs, &KeyGroupRanges::all(), &layouts(), WRITER, true, NOW).await.unwrap();
    let outputs: Vec<_> = outputs.into_iter().map(Arc::new).collect();
    let (values, report) = view(&states, &outputs).multi_get(&all, &NOW).await.unwrap();
    assert!(values.iter().all(|v| v == Some(&[3; 50][..])));
    assert_eq!((report.gets, report.misses), (0, 0), "{report:?}");
    let before = states.caches().stats().memory_bytes;
    runs.iter().for_each(|run| states.forget(run));
    let after = states.caches().stats().memory_bytes;
    assert!(after < before && after > 0, "{before} {after}");
    assert_eq!(view(&states, &outputs).multi_get(&all, &NOW).await.unwrap().1.gets, 0);
}

#[tokio::test]
async fn what_was_prefetched_is_read_without_a_get() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let all = keys(2000);
    let runs = written_again(&store, &env, &all, 3, 50).await;
    let states = state_store(&store, &env, true, small_blocks());
    let view = view(&states, &runs);
    let prefetched = view.prefetch(&all[..500]).await.unwrap();
    assert!(prefetched.gets > 3 && prefetched.misses > 100, "{prefetched:?}");
    let (values, report) = view.multi_get(&all[..500], &NOW).await.unwrap();
    assert!(values.iter().all(|v| v == Some(&[3; 50][..])));
    assert_eq!((report.gets, report.misses), (0, 0), "{report:?}");
}

#[tokio::test]
async fn what_was_flushed_is_read_without_a_get_while_there_is_room() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let all = keys(5000);
    for cached in [true, false] {
        let states = state_store(&store, &env, cached, small_blocks());
        let mut writer = SectionWriter::new(TASK);
        all.iter().for_each(|k| writer.put(k, &[7; 100], Expiry::Never));
        let options = states.section_options(0);
        let mut section =
            writer.encode(&options, &layouts(), KeyGroupRanges::all(), Interval::of(Epoch(1), 0)).unwrap();
        assert_eq!(section.memory_bytes() > section.encoded_bytes() + 500_000, cached);
        let run = Arc::new(states.write_bundle(WRITER, vec![section.clone()]).await.unwrap().remove(0));
        let (_, report) = view(&states, &[run]).multi_get(&all, &NOW).await.unwrap();
        assert_eq!(report.gets == 0, cached, "{report:?}");
        section.drop_kept_blocks();
        assert!(section.memory_bytes() < section.encoded_bytes() + 500_000);
    }
}

#[tokio::test]
async fn what_a_get_brought_besides_is_kept_while_there_is_room() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let all = keys(2000);
    let run = written(&store, &env, &all, &[7; 50], 1).await;
    let states = state_store(&store, &env, true, StateStoreOptions { gap_bytes: 1 << 20, ..small_blocks() });
    let view = view(&states, std::slice::from_ref(&run));
    let mut sorted = all.clone();
    sorted.sort();
    let (_, report) = view.multi_get(&[sorted[0].clone(), sorted[1999].clone()], &NOW).await.unwrap();
    assert_eq!((report.gets, report.misses), (2, 2), "the meta part, and one GET from the first block to the last");
    let (values, report) = view.multi_get(&all, &NOW).await.unwrap();
    assert!(values.iter().all(|v| v == Some(&[7; 50][..])));
    assert_eq!((report.gets, report.misses), (0, 0), "{report:?}");
}

#[tokio::test]
async fn what_was_warmed_up_is_read_without_a_get() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let all = keys(2000);
    let runs = [written(&store, &env, &all, &[1; 50], 1).await, written(&store, &env, &all[..500], &[2; 50], 2).await];
    let states = state_store(&store, &env, true, small_blocks());
    let half = KeyGroupRanges::from(KeyGroupRange::new(0, 32_768));
    let half = states.view(runs.to_vec(), half, layouts());
    let warmed = half.warm(WarmUp::BEHIND, |_| true).await.unwrap();
    assert!(warmed.gets >= 4 && warmed.misses > 100, "{warmed:?}");
    assert_eq!(half.warm(WarmUp::BEHIND, |_| true).await.unwrap().gets, 0);
    let mine: Vec<_> =
        all.iter().filter(|k| half.ranges().contains(layouts().locate(k).unwrap().group)).cloned().collect();
    let (values, report) = half.multi_get(&mine, &NOW).await.unwrap();
    assert!(mine.len() > 500 && values.iter().all(|v| v.is_some()));
    assert_eq!(report.gets, 0, "{report:?}");
    // Without room nothing is read but meta parts: of the first run, or of all when somebody waits; of no run that is not
    // wanted.
    let none = || state_store(&store, &env, false, small_blocks());
    let little = view(&none(), &runs).warm(WarmUp::BEHIND, |_| true).await.unwrap();
    let more = view(&none(), &runs).warm(WarmUp::AWAITED, |_| true).await.unwrap();
    assert_eq!((little.misses, little.gets, more.misses, more.gets), (0, 1, 0, 2));
    let other = state_store(&store, &env, true, small_blocks());
    assert!(view(&other, &runs).warm(WarmUp::AWAITED, |_| false).await.unwrap().gets == 0);
    let newest = view(&other, &runs).warm(WarmUp::AWAITED, |r| r.identity() == runs[1].identity()).await.unwrap();
    assert!((20..warmed.misses * 2).contains(&newest.misses), "{newest:?}");
}

/// A process that has read few keys of the runs that somebody else then merges.
#[tokio::test]
async fn what_was_hot_in_the_parents_is_read_ahead_from_what_took_their_place() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let mut all = keys(2000);
    all.sort();
    let runs = [written(&store, &env, &all, &[1; 50], 1).await, written(&store, &env, &all[..500], &[2; 50], 2).await];
    let here = state_store(&store, &env, true, StateStoreOptions { gap_bytes: 0, ..small_blocks() });
    let hot: Vec<_> = all[100..110].iter().chain(&all[1500..1510]).cloned().collect();
    let (_, report) = view(&here, &runs).multi_get(&hot, &NOW).await.unwrap();
    assert!(report.misses < 15, "{report:?}");
    // What came along with them is not what anybody asked for.
    let elsewhere = state_store(&store, &env, true, small_blocks());
    let everything = KeyGroupRanges::all();
    let outputs = elsewhere.compact(&runs, &everything, &layouts(), WRITER, true, NOW).await.unwrap();
    let outputs: Vec<Arc<Run>> = outputs.into_iter().map(Arc::new).collect();
    let spans = here.hot_spans(runs.iter().map(|r| &**r));
    runs.iter().for_each(|run| here.forget(run));
    assert!(here.hot_spans(runs.iter().map(|r| &**r)).is_empty(), "they are forgotten");
    let merged = view(&here, &outputs);
    let warmed = merged.refill(&spans, false, WarmUp::BEHIND, |_| true).await.unwrap();
    assert!(warmed.misses > 0 && warmed.misses < 20, "{warmed:?}");
    let (values, report) = merged.multi_get(&hot, &NOW).await.unwrap();
    assert!(values.iter().all(|v| v.is_some()));
    assert_eq!((report.gets, report.misses), (0, 0), "{report:?}");
    let (_, report) = merged.multi_get(&all[800..801], &NOW).await.unwrap();
    assert_eq!(report.misses, 1, "what was not hot was not read");
}

#[tokio::test(start_paused = true)]
async fn a_merge_keeps_to_its_throttle_and_says_what_it_read() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let all = keys(2000);
    let runs = [written(&store, &env, &all, &[1; 50], 1).await, written(&store, &env, &all, &[2; 50], 2).await];
    let (everything, layouts) = (KeyGroupRanges::all(), layouts());
    let merge = Merge {
        inputs: &runs,
        ranges: &everything,
        layouts: &layouts,
        bottom: true,
        read_time: NOW,
        writer: WRITER,
        number: Some(7),
    };
    let states = state_store(&store, &env, false, small_blocks());
    let before = env.now();
    let merged = states.merge(merge, &Throttle::new(10_000)).await.unwrap();
    let took = env.now().since(before).as_secs_f64();
    let written: u64 = merged.outputs.iter().map(|r| r.length).sum();
    let stored: u64 = runs.iter().map(|r| r.length).sum();
    assert!(merged.bytes_read >= stored / 2 && written > 10_000, "{} of {stored}", merged.bytes_read);
    // All but the last transfer are paid for.
    let most = (merged.bytes_read + written) as f64 / 10_000.0;
    assert!(took <= most && took > most / 3.0, "{took} s for {} and {written} bytes", merged.bytes_read);
    assert_eq!(crate::version::garbage::compaction_of(&merged.outputs[0].object), Some(7));
}

#[tokio::test]
async fn large_outputs_are_cut_by_key_groups() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let mut options = small_blocks();
    options.compaction.output_bytes = 10_000;
    let states = state_store(&store, &env, false, options);
    let all = keys(3000);
    let (a, b) =
        (written(&store, &env, &all[..2000], b"a", 1).await, written(&store, &env, &all[1000..], b"b", 2).await);
    let outputs =
        states.compact(&[a.clone(), b.clone()], &KeyGroupRanges::all(), &layouts(), WRITER, true, NOW).await.unwrap();
    assert!(outputs.len() > 3, "{}", outputs.len());
    assert!(outputs.iter().all(|o| o.length < 15_000));
    let done = CompactionDone {
        task: TASK,
        inputs: vec![a.clone(), b.clone()],
        ranges: KeyGroupRanges::all(),
        bottom: true,
        outputs,
    };
    let old = tree().with_runs(vec![a, b]);
    let CompactionOutcome::Applied(new) = apply(&old, &done) else { panic!() };
    new.check().unwrap();
    assert_eq!(new.runs_of(TASK, &KeyGroupRange::new(7, 8).into()).len(), 1);
    let (values, _) = view(&states, new.runs()).multi_get(&all, &NOW).await.unwrap();
    for (i, value) in values.iter().enumerate() {
        assert_eq!(value, Some(if i < 1000 { &b"a"[..] } else { b"b" }));
    }
    assert!(new.runs().iter().all(|r| !r.clip.contains(KeyGroup(0)) || r.entries > 0));
}

#[tokio::test]
async fn a_time_range_is_one_forward_scan() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let states = state_store(&store, &env, false, small_blocks());
    let mut writer = SectionWriter::new(TASK);
    let mut expected = BTreeMap::new();
    for t in 0..100 {
        for k in 0..20 {
            let key = timed(t, format!("{k}").as_bytes());
            writer.put(&key, &[k], Expiry::Never);
            expected.insert(key, Bytes::from(vec![k]));
        }
    }
    let section =
        writer.encode(&states.options().section, &layouts(), KeyGroupRanges::all(), Interval::of(Epoch(1), 0)).unwrap();
    let run = Arc::new(states.write_bundle(WRITER, vec![section]).await.unwrap().remove(0));
    let view = view(&states, &[run]);
    let (mut from, mut to) = (Vec::new(), Vec::new());
    key::timed_start(TIMED, 10, &mut from);
    key::timed_start(TIMED, 13, &mut to);
    let piece = view.scan(&from, &to, usize::MAX, &NOW).await.unwrap();
    let due: Vec<_> = expected.range(Bytes::from(from)..Bytes::from(to)).map(|(k, v)| (k.clone(), v.clone())).collect();
    assert_eq!((piece.entries, piece.next), (due, None));
    assert_eq!(piece.report.gets, 2, "meta part and blocks");
    assert!(view.may_hold(TIMED, Some((98, 200))) && !view.may_hold(TIMED, Some((99, 200))));
    assert!(!view.may_hold(TIMED, Some((i64::MAX, i64::MAX))) && !view.may_hold(POINT, None));
}

async fn commit(log: &VersionLog, number: u64, epoch: u64, tree: &Tree) {
    let record = VersionRecord {
        number,
        kind: version_record::Kind::Checkpoint.into(),
        generation: 1,
        nonce: format!("{number:032x}"),
        epoch,
        hash_id: 1,
        key_codec_id: 1,
        tree: Some(tree.to_proto()),
        ..VersionRecord::default()
    };
    log.commit(&record).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn fsck_finds_what_is_wrong_and_nothing_else() {
    let env = Env::test(1);
    let all = keys(100);
    let state_of_a_job = async || {
        let store = memory_store(&env);
        let job = store.child("job");
        let log = VersionLog::new(job.clone(), env.clone());
        let mut tree = tree();
        let mut runs = Vec::new();
        for epoch in 1..=3 {
            let run = written(&job, &env, &all, &[epoch as u8], epoch).await;
            runs.push(run.clone());
            tree.add_runs([run]);
            commit(&log, epoch, epoch, &tree).await;
        }
        written(&job, &env, &all, b"left over", 9).await;
        (store, job, log, tree, runs)
    };
    let (store, job, log, tree, runs) = state_of_a_job().await;
    let report = fsck::check(&store, &env).await.unwrap();
    assert_eq!((report.problems.as_slice(), report.jobs.as_slice()), (&[][..], &["job".to_owned()][..]));
    assert_eq!((report.versions, report.objects, report.unreferenced.0), (3, 3, 1));
    assert_eq!(report.bytes, runs.iter().map(|r| r.object_bytes).sum::<u64>());

    // A successor that loses a run.
    commit(&log, 4, 4, &tree.with_runs(runs[1..].to_vec())).await;
    let problems = fsck::check(&store, &env).await.unwrap().problems;
    assert!(problems.len() == 1 && problems[0].what.contains("lost"), "{problems:?}");
    assert_eq!(problems[0].object, format!("job/{}", VersionLog::path(4.into())));

    damage(&job, &runs[0].path(), |b| b[20] ^= 1).await;
    damage(&job, &runs[1].path(), |b| b.push(0)).await;
    job.delete(&runs[2].path(), Purpose::Check).await.unwrap();
    damage(&job, &VersionLog::path(1.into()), |b| b[20] ^= 1).await;
    let problems = fsck::check(&store, &env).await.unwrap().problems;
    let find = |path: String, text: &str| {
        let path = format!("job/{path}");
        assert!(problems.iter().any(|p| p.object == path && p.what.contains(text)), "{path} {text}: {problems:?}");
    };
    find(runs[0].path(), "checksum");
    find(runs[1].path(), "bytes instead of");
    find(runs[2].path(), "not there");
    find(VersionLog::path(1.into()), "checksum");
    assert_eq!(problems.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn what_was_done_is_counted_by_task_and_adds_up_to_what_the_store_saw() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let states = state_store(&store, &env, false, small_blocks());
    let (all, other) = (keys(300), TaskId(1));
    let section_of = |task: TaskId, epoch: u64| {
        let mut writer = SectionWriter::new(task);
        all.iter().for_each(|k| writer.put(k, &[epoch as u8; 20], Expiry::Never));
        let interval = Interval::of(Epoch(epoch), 0);
        writer.encode(&states.options().section, &layouts(), KeyGroupRanges::all(), interval).unwrap()
    };
    let mut runs: Vec<Vec<Arc<Run>>> = vec![Vec::new(); 2];
    for epoch in 1..=3 {
        let bundle =
            states.write_bundle(WRITER, vec![section_of(TASK, epoch), section_of(other, epoch)]).await.unwrap();
        std::iter::zip(&mut runs, bundle).for_each(|(runs, run)| runs.push(Arc::new(run)));
    }
    let flushed: Vec<u64> = runs.iter().map(|r| r.iter().map(|r| r.length).sum()).collect();
    let report = view(&states, &runs[0]).multi_get(&all[..50], &NOW).await.unwrap().1;
    let outputs =
        states.compact(&runs[1], &KeyGroupRanges::all(), &layouts(), WRITER, true, ReadTime::START).await.unwrap();

    let used = states.used();
    let (mine, theirs) = (&used.tasks[&TASK], &used.tasks[&other]);
    assert!(report.gets > 3 && report.meta_gets == 3 && report.merged > 0, "{report:?}");
    assert_eq!(report.misses, report.gets - report.meta_gets + report.merged);
    assert_eq!(mine.requests.table.keys().copied().collect::<Vec<_>>(), [(Operation::Get, Purpose::State)]);
    assert_eq!((mine.requests.get, mine.requests.bytes_read), (report.gets, report.bytes));
    let compaction = |o| theirs.requests.tally(o, Purpose::Compaction);
    assert!(compaction(Operation::Get).requests > 3 && theirs.requests.get == compaction(Operation::Get).requests);
    assert_eq!(compaction(Operation::Put).requests, outputs.len() as u64);
    assert_eq!((used.shared.put, used.shared.requests(), used.requests.bundles), (3, 3, 3));
    assert_eq!((mine.written.flushed_bytes, theirs.written.flushed_bytes), (flushed[0], flushed[1]));
    assert_eq!((mine.written.flushed_entries, mine.written.compactions, theirs.written.compactions), (900, 0, 1));
    assert_eq!(theirs.written.compaction_bytes_out, outputs.iter().map(|r| r.length).sum::<u64>());
    // All blocks of the inputs: what stands before their indexes.
    let blocks: u64 = runs[1].iter().map(|r| r.meta_offset - r.offset).sum();
    assert_eq!(theirs.written.compaction_bytes_in, blocks);
    assert_eq!(
        used.requests.gets.count() + used.requests.compaction_gets.count(),
        mine.requests.get + theirs.requests.get
    );
    let parts = used.shared.clone() + mine.requests.clone() + theirs.requests.clone();
    assert_eq!(parts, store.meter().snapshot());
}

#[tokio::test(start_paused = true)]
async fn plans_that_the_budget_of_requests_narrows_and_waits_for_a_place_are_counted() {
    let env = Env::test(1);
    let latency = Duration::from_millis(30);
    let faults = Faults { latency_p50: latency, latency_p99: latency, ..Faults::none() };
    let backend = FaultyStore::new(Arc::new(InMemory::new()), &env, Faults::none());
    let store = Store::from_backend(Arc::new(backend.clone()), "memory://", &StoreOptions::default(), &env);
    let all = keys(2000);
    let runs = written_again(&store, &env, &all, 1, 20).await;
    backend.set(faults);
    let read = async |options: StateStoreOptions| {
        let states = state_store(&store, &env, false, options);
        // Few enough that hardly two lie side by side.
        let some: Vec<Bytes> = all.iter().step_by(50).cloned().collect();
        view(&states, &runs).multi_get(&some, &NOW).await.unwrap();
        states.used().requests
    };
    let narrow = || StateStoreOptions { widest_gap_bytes: 0, ..small_blocks() };
    let plenty = read(StateStoreOptions { gets_per_second: 1_000, ..narrow() }).await;
    assert_eq!((plenty.over_budget, plenty.queued), (0, Duration::ZERO));
    assert!(plenty.gets.count() > 20 && plenty.gets.sum_us() >= plenty.gets.count() * 20_000, "{plenty:?}");
    assert_eq!(read(StateStoreOptions { gets_per_second: 1, ..narrow() }).await.over_budget, 1);
    let queue = read(StateStoreOptions { gets_in_flight: 1, ..narrow() }).await;
    assert!(queue.queued > latency * 10 && queue.over_budget == 0, "{queue:?}");
}

#[test]
fn the_key_group_with_the_most_runs_counts() {
    let run = |ranges: &[(u32, u32)]| {
        let clip = ranges.iter().map(|&(a, b)| KeyGroupRange::new(a, b)).collect::<Vec<_>>();
        Arc::new(Run { clip: KeyGroupRanges::new(clip), ..empty_run() })
    };
    let most = |runs: &[Arc<Run>]| tree::runs_per_key_group_max(runs, &KeyGroupRanges::all());
    assert_eq!(most(&[]), 0);
    assert_eq!(most(&[run(&[(0, 10)]), run(&[(10, 20)])]), 1);
    assert_eq!(most(&[run(&[(0, 10), (30, 40)]), run(&[(9, 31)]), run(&[(35, 36)])]), 2);
}

fn empty_run() -> Run {
    Run {
        task: TASK,
        object: String::new(),
        offset: 0,
        length: 0,
        meta_offset: 0,
        meta_length: 0,
        directory_length: 0,
        checksum: 0,
        clip: KeyGroupRanges::empty(),
        interval: Interval::of(Epoch(1), 0),
        entries: 0,
        states: Vec::new(),
        object_bytes: 0,
        origin: String::new(),
        heat: None,
    }
}
