use std::collections::BTreeSet;

use bytes::Bytes;
use millstream_cache::CacheBlock;
use millstream_common::{Env, Epoch, KeyGroupRange};
use millstream_objects::Store;

use super::*;
use crate::golden::Golden;
use crate::testing::*;
use crate::*;

const NOW: ReadTime = ReadTime::START;

fn hot_run(object: &str, parts: &[(u64, &[(usize, Temperature)])]) -> HotRun {
    let mut run = HotRun::named(object.to_owned(), 8);
    for (at, blocks) in parts {
        run.add(*at, blocks.iter().copied());
    }
    run
}

fn list(runs: Vec<HotRun>) -> HeatList {
    let mut list = HeatList::default();
    runs.into_iter().for_each(|run| list.add(run));
    list
}

fn decoded(bytes: &[u8]) -> Result<HeatList, millstream_common::Error> {
    HeatList::decode(bytes, crc32c::crc32c(bytes))
}

#[test]
fn a_block_that_is_read_all_the_time_is_hottest_and_cools_down() {
    assert_eq!(temperature(0, 0, 0), 1);
    assert_eq!(temperature(200, 40, 41), HOTTEST);
    assert!(temperature(8, 40, 41) > temperature(8, 40, 40 + TURNOVER_STEPS));
    assert_eq!(temperature(255, 0, u32::MAX), 2);
}

#[test]
fn the_bytes_of_a_list_are_those_of_the_golden_file() {
    let first = hot_run("7a/2-1-ff", &[(0, &[(0, 3), (1, 3), (2, 15), (300, 1)]), (70_000, &[(5, 2)])]);
    let list = list(vec![first, hot_run("00/1-1-aa", &[(0, &[(7, 1)])]), hot_run("00/1-1-bb", &[])]);
    let bytes = list.encode(HEAT_LIST_BYTES);
    let mut golden = Golden::default();
    golden.line("heat list, format 1");
    golden.bytes("list", &bytes);
    golden.bytes("empty", &HeatList::default().encode(HEAT_LIST_BYTES));
    golden.compare("heat-list-1.txt");
    assert_eq!(decoded(&Golden::read("heat-list-1.txt", "list")).unwrap(), list);
    assert!(decoded(&Golden::read("heat-list-1.txt", "empty")).unwrap().is_empty());
}

#[test]
fn a_damaged_list_is_an_error_and_never_a_panic() {
    let bytes = list(vec![hot_run("7a/2-1-ff", &[(0, &[(0, 3), (200, 3)]), (9, &[(1, 2)])])]).encode(HEAT_LIST_BYTES);
    assert!(HeatList::decode(&bytes, 1).unwrap_err().to_string().contains("checksum"));
    for end in 0..bytes.len() {
        assert!(decoded(&bytes[..end]).is_err(), "{end}");
    }
    for at in 0..bytes.len() {
        let mut other = bytes.to_vec();
        other[at] ^= 0xff;
        // It may say something else, but never more than what stands there.
        drop(decoded(&other));
    }
    let mut newer = bytes.to_vec();
    newer[4] = 2;
    assert!(decoded(&newer).unwrap_err().to_string().contains("format"));
    assert!(decoded(&[&bytes[..], &[0]].concat()).is_err());
}

#[test]
fn the_hottest_blocks_are_kept_when_a_list_would_be_too_long() {
    // No two neighbours are equally hot.
    let blocks: Vec<(usize, Temperature)> = (0..50_000).map(|i| (i * 2, (i % 15 + 1) as u8)).collect();
    let whole = list(vec![hot_run("a", &[(0, &blocks[..25_000])]), hot_run("b", &[(0, &blocks[25_000..])])]);
    let bytes = whole.encode(HEAT_LIST_BYTES);
    assert!(bytes.len() <= HEAT_LIST_BYTES && bytes.len() > HEAT_LIST_BYTES * 9 / 10, "{}", bytes.len());
    let kept = decoded(&bytes).unwrap();
    let of = |list: &HeatList, t: Temperature| -> usize {
        merge(&[Listed { run: &run_of("other", 0, 1), list: list.clone() }], &KeyGroupRanges::all())
            .iter()
            .map(|run| run.blocks_of(0).filter(|(_, of)| *of == t).count())
            .sum()
    };
    assert_eq!((of(&kept, 15), of(&kept, 14)), (of(&whole, 15), of(&whole, 14)));
    assert_eq!(of(&kept, 1), 0);
    assert_eq!(decoded(&list(Vec::new()).encode(0)).unwrap(), HeatList::default(), "never less than its head");
}

/// A run of nothing, for its name, place in time and key groups.
fn run_of(object: &str, epoch: u64, groups: u32) -> Run {
    let proto = millstream_proto::version::Run {
        object: object.to_owned(),
        offset: 8,
        length: 1,
        meta_offset: 8,
        meta_length: 1,
        directory_length: 1,
        epoch_min: epoch,
        epoch_max: epoch,
        clip: ranges_to_proto(&KeyGroupRanges::from(KeyGroupRange::new(groups - 1, groups))),
        object_bytes: 9,
        ..Default::default()
    };
    Run::from_proto(&proto).unwrap()
}

#[test]
fn of_each_key_group_the_newest_list_holds_and_owners_of_one_run_add_up() {
    let runs = [run_of("d", 4, 2), run_of("c", 3, 1), run_of("b", 2, 1), run_of("a", 1, 1)];
    let lists = [
        Listed { run: &runs[0], list: list(vec![hot_run("a", &[(0, &[(5, 2), (6, 2)])])]) },
        Listed { run: &runs[1], list: list(vec![hot_run("a", &[(0, &[(1, 4), (5, 7)])])]) },
        Listed { run: &runs[2], list: list(vec![hot_run("a", &[(0, &[(9, 9)])]), hot_run("b", &[(0, &[(9, 9)])])]) },
        Listed { run: &runs[3], list: list(vec![hot_run("a", &[(0, &[(3, 3)])])]) },
    ];
    let merged = merge(&lists, &KeyGroupRanges::all());
    let of_a: Vec<_> = merged.iter().find(|r| r.is(&runs[3])).unwrap().blocks_of(0).collect();
    assert_eq!(of_a, [(1, 4), (5, 7), (6, 2)]);
    assert!(!merged.iter().any(|r| r.is(&runs[2])), "an older list of these key groups does not hold");
    // What a compaction said of its output holds as long as nobody who reads it has said more.
    let merged = merge(&lists[3..], &KeyGroupRanges::all());
    assert_eq!(merged[0].blocks_of(0).collect::<Vec<_>>(), [(3, 3)]);
}

fn keys(n: usize) -> Vec<Bytes> {
    let mut keys: Vec<Bytes> = (0..n).map(|i| point(POINT, format!("key {i}").as_bytes())).collect();
    keys.sort();
    keys
}

fn options() -> StateStoreOptions {
    let section =
        SectionOptions { block_bytes: 2 << 10, keep_blocks_bytes: 0, part_bytes: 64 << 10, ..Default::default() };
    StateStoreOptions { section, gap_bytes: 0, ..StateStoreOptions::default() }
}

use crate::section::SectionOptions;

fn section(keys: &[Bytes], value: &[u8], epoch: u64, options: &SectionOptions) -> EncodedSection {
    let mut writer = SectionWriter::new(TASK);
    keys.iter().for_each(|k| writer.put(k, value, Expiry::Never));
    writer.encode(options, &layouts(), KeyGroupRanges::all(), Interval::of(Epoch(epoch), 0)).unwrap()
}

/// A state store with so much memory for blocks.
fn states(store: &Store, env: &Env, bytes: u64, options: StateStoreOptions) -> StateStore {
    let caches = millstream_cache::Caches::in_memory(bytes, 64 << 20);
    StateStore::new(store.clone(), caches, options, env.clone(), MergeOperators::default())
}

fn shared(runs: Vec<Run>) -> Vec<Arc<Run>> {
    runs.into_iter().map(Arc::new).collect()
}

fn view(states: &StateStore, runs: &[Arc<Run>]) -> View {
    states.view(runs.to_vec(), KeyGroupRanges::all(), layouts())
}

#[tokio::test]
async fn successors_of_hot_blocks_are_hot_and_small_runs_say_nothing_of_large_ones() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let all = keys(20_000);
    let writer = states(&store, &env, 0, options());
    let large = section(&all, &[1; 60], 1, &options().section);
    let spread: Vec<_> = all.iter().step_by(1000).cloned().collect();
    let small = section(&spread, &[2; 60], 2, &options().section);
    let old = shared(writer.write_bundle(WRITER, vec![large]).await.unwrap());
    let young = shared(writer.write_bundle(WRITER, vec![small]).await.unwrap());
    let runs = [old[0].clone(), young[0].clone()];
    let reader = states(&store, &env, 64 << 20, options());
    assert!(reader.hot_spans(runs.iter().map(AsRef::as_ref)).is_empty(), "nothing was read");
    let hot = &all[5000..5100];
    view(&reader, &runs).multi_get(hot, &NOW).await.unwrap();
    view(&reader, &runs).multi_get(&spread, &NOW).await.unwrap();
    let of_young = reader.hot_spans([young[0].as_ref()]);
    let of_old = reader.hot_spans([old[0].as_ref()]);
    let merged = reader.compact(&runs, &KeyGroupRanges::all(), &layouts(), WRITER, true, NOW).await.unwrap();
    assert!(merged[0].heat.is_some(), "its own hot blocks are named in its object");
    let outputs = shared(merged);
    let parts = reader.known_parts(&outputs[0]);
    let blocks = |spans: &HotSpans| -> usize { parts.iter().map(|p| spans.blocks_of(p).len()).sum() };
    let total: usize = parts.iter().map(|p| p.blocks().len()).sum();
    // The keys that are spread were found in the young run: of the old one nothing else was read.
    let hot_blocks = blocks(&of_old);
    assert!((3..10).contains(&hot_blocks) && total > 600, "{hot_blocks} of {total}");
    assert_eq!(blocks(&of_young), 0, "its one block spans them all");

    // Another process refills from them: what was hot is read without a GET, and little else came.
    let other = states(&store, &env, 64 << 20, options());
    let merged = view(&other, &outputs);
    let report = merged.refill(&of_old, false, WarmUp::BEHIND, |_| true).await.unwrap();
    assert_eq!(report.misses as usize, hot_blocks);
    let (_, report) = merged.multi_get(hot, &NOW).await.unwrap();
    assert_eq!(report.gets, 0, "{report:?}");
    // So it does from the list in the object of the output.
    let third = states(&store, &env, 64 << 20, options());
    let report = view(&third, &outputs).warm_hottest(WarmUp::BEHIND, |_| true).await.unwrap();
    assert_eq!(report.misses as usize, hot_blocks);
}

/// Ranks as zipf's law with exponent 1 has them, about: `n` to the power of a uniform number.
fn zipf(env: &Env, n: usize) -> usize {
    let uniform = env.random_below(1 << 32) as f64 / (1_u64 << 32) as f64;
    ((n as f64).powf(uniform) as usize - 1).min(n - 1)
}

fn batch(env: &Env, by_rank: &[Bytes]) -> Vec<Bytes> {
    let ranks: BTreeSet<usize> = (0..64).map(|_| zipf(env, by_rank.len())).collect();
    ranks.into_iter().map(|r| by_rank[r].clone()).collect()
}

/// What some batches behind a restart cost: blocks from memory, blocks from the store, GETs by the store's meter.
async fn first_batches(
    store: &Store,
    states: &StateStore,
    runs: &[Arc<Run>],
    by_rank: &[Bytes],
    seed: u64,
) -> (u64, u64, u64) {
    let env = Env::test(seed);
    let (before, gets) = (states.totals(), store.meter().snapshot().get);
    for _ in 0..50 {
        view(states, runs).multi_get(&batch(&env, by_rank), &NOW).await.unwrap();
    }
    let after = states.totals();
    let gets = store.meter().snapshot().get - gets;
    (after.memory_hits - before.memory_hits, after.misses - before.misses, gets)
}

#[tokio::test]
async fn a_restart_with_a_heat_list_reads_what_is_hot_from_memory() {
    let env = Env::test(1);
    let store = memory_store(&env);
    // By rank; their places are those of their hashes.
    let by_rank: Vec<Bytes> = (0..200_000).map(|i| point(POINT, format!("key {i}").as_bytes())).collect();
    let options = || StateStoreOptions { gap_bytes: 16 << 10, ..options() };
    let writer = states(&store, &env, 0, options());
    let mut runs =
        shared(writer.write_bundle(WRITER, vec![section(&by_rank, &[7; 100], 1, &options().section)]).await.unwrap());
    let memory = runs[0].entries * 116 / 10;
    let before = states(&store, &env, memory, options());
    for _ in 0..400 {
        view(&before, &runs).multi_get(&batch(&env, &by_rank), &NOW).await.unwrap();
    }
    let steady = first_batches(&store, &before, &runs, &by_rank, 9).await;
    // The next checkpoint takes the list along, in its one PUT.
    let list = before.heat_list(runs.iter().map(AsRef::as_ref), &KeyGroupRanges::all()).unwrap();
    let mut next = section(&by_rank[..100], &[8; 100], 2, &options().section);
    next.attach_heat(list.clone());
    let puts = store.meter().snapshot().put;
    runs.insert(0, Arc::new(before.write_bundle(WRITER, vec![next]).await.unwrap().remove(0)));
    assert_eq!(store.meter().snapshot().put, puts + 1);
    assert_eq!(Run::from_proto(&runs[0].to_proto()).unwrap(), *runs[0]);

    let cold = states(&store, &env, memory, options());
    let nothing = first_batches(&store, &cold, &runs, &by_rank, 9).await;
    let in_order = states(&store, &env, memory, options());
    let warm_up = view(&in_order, &runs).warm(WarmUp::BEHIND, |_| true).await.unwrap();
    let without = first_batches(&store, &in_order, &runs, &by_rank, 9).await;
    let with_list = states(&store, &env, memory, options());
    let warmed = view(&with_list, &runs).warm_hottest(WarmUp::BEHIND, |_| true).await.unwrap();
    let with = first_batches(&store, &with_list, &runs, &by_rank, 9).await;
    let ratio = |(hits, misses, _): (u64, u64, u64)| 100 * hits / (hits + misses);
    println!("list of {} bytes; cache for 10 %; 50 batches of 64 zipf reads after a restart:", list.len());
    println!("  before the restart        hits {:3} %, {:5} GETs", ratio(steady), steady.2);
    println!("  no warm-up                hits {:3} %, {:5} GETs", ratio(nothing), nothing.2);
    println!(
        "  read ahead in key order   hits {:3} %, {:5} GETs, and {} of the warm-up",
        ratio(without),
        without.2,
        warm_up.gets
    );
    println!(
        "  read ahead the hottest    hits {:3} %, {:5} GETs, and {} of the warm-up",
        ratio(with),
        with.2,
        warmed.gets
    );
    assert!(list.len() <= HEAT_LIST_BYTES);
    assert!(with.2 * 10 < without.2 * 9 && ratio(with) + 8 > ratio(steady), "{with:?} {without:?} {steady:?}");
    assert!(with_list.caches().stats().memory_bytes <= memory);
    // A list that is gone or damaged costs time alone.
    let mut damaged = Run::clone(&runs[0]);
    damaged.heat = damaged.heat.map(|h| HeatPart { checksum: h.checksum ^ 1, ..h });
    let report = view(&cold, &[Arc::new(damaged)]).warm_hottest(WarmUp::BEHIND, |_| true).await.unwrap();
    assert_eq!((report.gets, report.misses), (1, 0));
}

#[test]
fn blocks_that_were_only_walked_are_not_hot() {
    let block = SharedBlock::of_body(Bytes::from([1_u32, 0, 0, 0].map(u32::to_le_bytes).concat())).unwrap();
    assert_eq!(block.0.steps_read.load(Ordering::Relaxed), 0);
    assert!(block.0.touch(5) && !block.0.touch(5) && block.0.touch(6));
    assert_eq!(block.0.steps_read.load(Ordering::Relaxed), 2);
}
