//! What goes onto the SSD and what is left in memory, with a real folder below it.

use std::sync::Arc;

use bytes::Bytes;
use millstream_cache::{CacheOptions, DiskOptions};
use millstream_common::{Env, Epoch, KeyGroupRanges};
use millstream_objects::Store;

use crate::heat::HotSpans;
use crate::section::SectionOptions;
use crate::testing::*;
use crate::*;

const NOW: ReadTime = ReadTime::START;

fn keys(n: usize) -> Vec<Bytes> {
    (0..n).map(|i| point(POINT, format!("key {i}").as_bytes())).collect()
}

/// A state store with an SSD in `dir`, and so much memory for blocks.
async fn with_ssd(store: &Store, env: &Env, dir: &std::path::Path, memory_bytes: u64) -> StateStore {
    let disk = Some(DiskOptions { dir: dir.to_owned(), bytes: 128 << 20 });
    let caches = Caches::new(&CacheOptions { memory_bytes, metadata_bytes: 64 << 20, pinned_bytes: 0, disk }, env)
        .await
        .unwrap();
    StateStore::new(store.clone(), caches, StateStoreOptions::default(), env.clone(), MergeOperators::default())
}

async fn flush(states: &StateStore, keys: &[Bytes], epoch: u64) -> Arc<Run> {
    let mut writer = SectionWriter::new(TASK);
    // Bytes that do not compress.
    let value = |k: &Bytes| {
        k.iter().cycle().take(200).enumerate().map(|(i, b)| b.wrapping_mul(i as u8 | 1)).collect::<Vec<u8>>()
    };
    keys.iter().for_each(|k| writer.put(k, &value(k), Expiry::Never));
    let options = SectionOptions { keep_blocks_bytes: 0, ..states.section_options(0) };
    let section = writer.encode(&options, &layouts(), KeyGroupRanges::all(), Interval::of(Epoch(epoch), 0)).unwrap();
    Arc::new(states.write_bundle(WRITER, vec![section]).await.unwrap().remove(0))
}

/// Until the SSD has all that was handed over.
async fn admitted(states: &StateStore, env: &Env) {
    while states.admission_bytes() > 0 {
        env.sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn view(states: &StateStore, runs: &[Arc<Run>]) -> View {
    states.view(runs.to_vec(), KeyGroupRanges::all(), layouts())
}

/// Blocks of a run that may be on the SSD, and all of them.
fn on_disk(states: &StateStore, run: &Run) -> (usize, usize) {
    let blocks = states.known_blocks(run);
    (blocks.iter().filter(|(key, _)| states.caches().may_be_on_disk(key)).count(), blocks.len())
}

#[tokio::test]
async fn what_a_flush_wrote_is_read_from_the_ssd_when_memory_is_empty() {
    let env = Env::test(1);
    let (store, dir) = (memory_store(&env), tempfile::tempdir().unwrap());
    let all = keys(100_000);
    // Next to nothing in memory.
    let states = with_ssd(&store, &env, dir.path(), 1 << 10).await;
    let run = flush(&states, &all, 1).await;
    admitted(&states, &env).await;
    let (there, blocks) = on_disk(&states, &run);
    let stats = states.caches().stats();
    println!("{there} of {blocks} blocks ({} bytes) are on the SSD, {} were dropped", run.length, stats.disk_dropped);
    // It comes faster than the disk takes it: handed over at once, most of it would be dropped.
    assert_eq!((there, stats.disk_dropped), (blocks, 0));
    assert!(run.length > 16 << 20);
    let (values, report) = view(&states, &[run]).multi_get(&all, &NOW).await.unwrap();
    assert!(values.iter().all(|v| v.is_some_and(|v| v.len() == 200)));
    assert_eq!((report.gets, store.meter().snapshot().get, report.disk_hits as usize), (0, 0, blocks), "{report:?}");
    states.caches().close().await;
}

#[tokio::test]
async fn walks_and_merges_leave_what_is_hot_in_memory() {
    let env = Env::test(1);
    let (store, dir) = (memory_store(&env), tempfile::tempdir().unwrap());
    let all = keys(60_000);
    let states = with_ssd(&store, &env, dir.path(), 2 << 20).await;
    let mut sorted = all.clone();
    sorted.sort();
    let runs = [flush(&states, &all, 1).await, flush(&states, &all[..30_000], 2).await];
    admitted(&states, &env).await;
    let view = view(&states, &runs);
    // A tenth of what memory holds, read again and again.
    let hot = &sorted[..800];
    for _ in 0..5 {
        view.multi_get(hot, &NOW).await.unwrap();
    }
    let (_, before) = view.multi_get(hot, &NOW).await.unwrap();
    assert_eq!((before.disk_hits, before.gets), (0, 0), "{before:?}");
    let piece = view.scan(&[], &[0xff], usize::MAX, &NOW).await.unwrap();
    assert_eq!(piece.entries.len(), all.len());
    let outputs = states.compact(&runs, &KeyGroupRanges::all(), &layouts(), WRITER, true, NOW).await.unwrap();
    assert!(outputs.iter().map(|o| o.length).sum::<u64>() > 4 << 20, "much more than memory holds");
    let (_, after) = view.multi_get(hot, &NOW).await.unwrap();
    assert_eq!((after.memory_hits, after.disk_hits, after.gets), (before.memory_hits, 0, 0), "{after:?}");
    states.caches().close().await;
}

#[tokio::test]
async fn of_what_a_compaction_wrote_what_was_hot_goes_onto_the_ssd() {
    let env = Env::test(1);
    let (store, dir) = (memory_store(&env), tempfile::tempdir().unwrap());
    let all = keys(60_000);
    let mut sorted = all.clone();
    sorted.sort();
    // Another process wrote them: here nothing is known of them.
    let elsewhere = state_store(&store, &env, false, StateStoreOptions::default());
    let runs = [flush(&elsewhere, &all, 1).await, flush(&elsewhere, &all[..30_000], 2).await];
    let states = with_ssd(&store, &env, dir.path(), 1 << 20).await;
    let hot: HotSpans = states.hot_spans(runs.iter().map(AsRef::as_ref));
    assert!(hot.is_empty());
    let cold = states.compact(&runs, &KeyGroupRanges::all(), &layouts(), WRITER, true, NOW).await.unwrap();
    admitted(&states, &env).await;
    let (there, blocks) = on_disk(&states, &cold[0]);
    assert!(there == 0 && blocks > 500, "{there} of {blocks}");
    // A tenth is read, so it is in memory or on the SSD.
    view(&states, &runs).multi_get(&sorted[..6000], &NOW).await.unwrap();
    states.compact(&runs, &KeyGroupRanges::all(), &layouts(), WRITER, true, NOW).await.unwrap();
    let warm = states.compact(&runs, &KeyGroupRanges::all(), &layouts(), WRITER, true, NOW).await.unwrap();
    admitted(&states, &env).await;
    let (there, blocks) = on_disk(&states, &warm[0]);
    assert!(there > blocks / 12 && there < blocks / 6, "{there} of {blocks}");
    let warm: Vec<_> = warm.into_iter().map(Arc::new).collect();
    let (_, report) = view(&states, &warm).multi_get(&sorted[..6000], &NOW).await.unwrap();
    assert_eq!(report.gets, 0, "{report:?}");

    // A merge that ran elsewhere: the worker refills what was hot, in memory first and then on the SSD.
    let hot = states.hot_spans(warm.iter().map(AsRef::as_ref));
    let remote = elsewhere.compact(&warm, &KeyGroupRanges::all(), &layouts(), WRITER, true, NOW).await.unwrap();
    let remote: Vec<_> = remote.into_iter().map(Arc::new).collect();
    warm.iter().for_each(|run| states.forget(run));
    let refilled = view(&states, &remote).refill(&hot, true, WarmUp::BEHIND, |_| true).await.unwrap();
    assert!(refilled.gets < 20, "in few large GETs: {refilled:?}");
    let (_, report) = view(&states, &remote).multi_get(&sorted[..6000], &NOW).await.unwrap();
    assert!(report.gets == 0 && report.disk_hits > 0 && report.memory_hits > 0, "{report:?}");
    states.caches().close().await;
}

#[tokio::test]
async fn what_waits_for_the_ssd_is_bounded() {
    let env = Env::test(1);
    let (store, dir) = (memory_store(&env), tempfile::tempdir().unwrap());
    let states = with_ssd(&store, &env, dir.path(), 1 << 10).await;
    let options = StateStoreOptions { admission_bytes: 1 << 20, ..StateStoreOptions::default() };
    let caches = states.caches().clone();
    let states = StateStore::new(store, caches, options, env.clone(), MergeOperators::default());
    let run = flush(&states, &keys(20_000), 1).await;
    assert!(run.length > 2 << 20 && states.admission_bytes() == 0);
    let (there, blocks) = on_disk(&states, &run);
    assert_eq!((there, states.caches().stats().disk_dropped), (0, blocks as u64));
    states.caches().close().await;
}
