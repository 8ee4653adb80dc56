//! Reading when a part of the state fits into memory: the grid of cache shares, popularity and SSD tier.
//!
//! The memory is divided as a worker divides it (`MemoryPlan`): seven eighths for rows, an eighth for blocks. Rows are a
//! [`KeyedState`], which is what an operator has, with its eviction; what it misses is read from a view, batch by batch, with
//! four reads on their way, and installed. So this is the worker's row cache and block caches, without the task around them:
//! a task also gathers what several batches miss into one read.
//!
//! - *row hits*: of the rows of all batches, those whose key was resident, or was brought by an earlier row of the batch.
//! - *with blocks*: and those whose block was in memory. *With blocks* over the ideal is what is to be reached.
//! - *ideal*: the popularity of as many rows as fit into the bytes, 116 bytes each; *LFU*: exact LFU of as many rows over the
//!   same trace, warm-up included. Neither pays for slots, keys' places or blocks, and ours does.
//! - *bound*: the smaller of what the same loop does when all is resident, and what the tier below gives: its reads a second,
//!   measured with random blocks in the same run, over the ratio of rows that go there.
//!
//! RocksDB stands beside it with a block cache of all the bytes, its files behind the page cache as Millstream's objects are.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream_cache::{BlockKey, CacheOptions, DiskOptions};
use millstream_common::env::Running;
use millstream_common::{Error, KeyGroupRanges, Lane, Result};
use millstream_engine::memory_plan::MemoryPlan;
use millstream_engine::settings::Settings;
use millstream_engine::state::{KeyedState, StateSet};
use millstream_objects::object_store::ObjectStore;
use millstream_objects::{Faults, FaultyStore, Purpose};
use millstream_state_store::Caches;
use millstream_state_store::key::KeyBuffer;
use millstream_state_store::{ReadReport, ReadTime, StateStoreOptions};

use super::StoreBench;
use super::args::ZipfArgs;
use super::data::{BASE_VERSION, Shard, backend, entries_of};
use super::ideal::Lfu;
use super::keys::{BATCH, Batch, ENTRY_BYTES, Popularity, Random, STATE, Sum, Values, Zipf, key_of};
use super::measure::measured;
use super::ours::{Millstream, Pace, store_on};
use super::peers::{self, RocksOptions};
use super::plot::{Line, plot};
use super::row::{Row, key_buffer};
use crate::note;
use crate::outside::now;
use crate::stats::{hundredths, whole};
use crate::table::Table;

/// Reads that are on their way at once, as in a task.
const READS_AT_ONCE: usize = 4;
/// A working set of more rows is not built to see what resident rows give.
const RESIDENT_ROWS: u64 = 10_000_000;
/// Blocks that are read to see what a tier gives, and how many at once.
const PROBES: usize = 4_000;
const PROBES_AT_ONCE: usize = 64;

/// A case of the grid.
#[derive(Clone, Copy)]
struct Case {
    share: f64,
    popularity: Popularity,
    name: &'static str,
    ssd: bool,
}

/// What a case gave.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    row_hits: f64,
    block_hits: f64,
    ideal: f64,
    lfu: f64,
    gets_a_miss: f64,
    keys_a_second: f64,
    bound: f64,
}

/// A batch that was named and waits for its read.
struct Named {
    batch: TraceBatch,
    missing: u64,
    read: Option<Running<Result<Answer>>>,
}

/// What a read brings: keys, values, and what it cost.
type Answer = (Vec<Bytes>, millstream_state_store::Values, ReadReport);

struct TraceBatch {
    ids: Vec<u64>,
    buffer: KeyBuffer,
}

impl TraceBatch {
    fn draw(popularity: &Popularity, random: &mut Random) -> Result<Self> {
        let ids: Vec<u64> = (0..BATCH).map(|_| popularity.draw(random)).collect();
        let buffer = key_buffer(&ids.iter().map(|id| key_of(*id)).collect::<Vec<_>>())?;
        Ok(Self { ids, buffer })
    }
}

/// Rows over blocks over an object store.
struct Paged<'a> {
    ours: &'a Millstream,
    rows: KeyedState<Row>,
    rows_bytes: u64,
    waiting: VecDeque<Named>,
    /// Rows, rows that were not resident, and what reads cost.
    counted: (u64, u64, ReadReport),
}

impl<'a> Paged<'a> {
    fn new(ours: &'a Millstream, rows_bytes: u64, complete: bool) -> Self {
        let mut rows = KeyedState::new("values", "100 bytes");
        rows.open(STATE, KeyGroupRanges::all(), complete);
        Self { ours, rows, rows_bytes, waiting: VecDeque::new(), counted: Default::default() }
    }

    /// Names a batch and starts its read; the oldest one is processed when as many wait as may.
    fn push(&mut self, batch: TraceBatch) -> Result<()> {
        self.rows.name_batch(&batch.buffer);
        self.rows.end_group();
        let mut keys = Vec::new();
        self.rows.take_missing(&mut keys);
        let missing = keys.len() as u64;
        let read = (missing > 0).then(|| {
            let view = self.ours.view().clone();
            self.ours.runtimes().env().run(Lane::Background, "read", async move {
                let (values, report) = view.multi_get(&keys, &ReadTime::START).await?;
                Ok((keys, values, report))
            })
        });
        self.waiting.push_back(Named { batch, missing, read });
        if self.waiting.len() >= READS_AT_ONCE { self.finish_oldest() } else { Ok(()) }
    }

    fn finish_oldest(&mut self) -> Result<()> {
        let Some(Named { batch, missing, read }) = self.waiting.pop_front() else { return Ok(()) };
        if let Some(read) = read {
            let (keys, values, report) = self.ours.runtimes().block_on(read)??;
            for (key, value) in keys.iter().zip(values.iter()) {
                self.rows.install(key, value)?;
            }
            self.counted.2 += report;
        }
        let rows = self.rows.take_rows()?;
        let (mut sum, mut expected) = (Sum::default(), Sum::default());
        for (&slot, &id) in rows.slots.iter().zip(&batch.ids) {
            if let Some(row) = self.rows.get(slot) {
                sum.add(&row.0);
            }
            expected.add(&Values::stamp(id, BASE_VERSION).to_le_bytes());
        }
        if sum != expected {
            return Err(Error::internal(format!("a batch gave {sum:?} instead of {expected:?}")));
        }
        self.rows.give_back(rows);
        self.rows.release_group();
        if self.rows.memory_bytes() > self.rows_bytes {
            self.rows.evict(self.rows_bytes / 10 * 9);
        }
        self.counted.0 += batch.ids.len() as u64;
        self.counted.1 += missing;
        Ok(())
    }

    fn finish_all(&mut self) -> Result<()> {
        while !self.waiting.is_empty() {
            self.finish_oldest()?;
        }
        Ok(())
    }
}

/// Runs it.
pub fn run(bench: &StoreBench, args: &ZipfArgs) -> Result<()> {
    let entries = entries_of(args.gigabytes * 1e9);
    let shard = bench.data.shard(&bench.runtimes, entries, bench.values)?;
    let populations =
        [("zipf", Popularity::Zipf(Zipf::new(entries, args.skew))), ("uniform", Popularity::Uniform(entries))];
    let head = [
        "keys",
        "memory",
        "SSD",
        "row hits",
        "with blocks",
        "ideal",
        "LFU",
        "of ideal",
        "of LFU",
        "bar",
        "GETs a miss",
        "keys/s",
        "bound",
        "of bound",
        "RocksDB hits",
        "RocksDB keys/s",
    ];
    let mut table = Table::new(&head);
    let mut lines: Vec<Line> = Vec::new();
    for (name, popularity) in populations {
        let resident = resident(bench, &shard, &popularity, entries, args)?;
        note(&format!("zipf: {name}, all resident: {resident:.0} keys/s"));
        let mut line = |label: &str, x: f64, y: f64| match lines.iter_mut().find(|l| l.name == label) {
            Some(line) => line.points.push((x, y)),
            None => lines.push(Line { name: label.to_owned(), points: vec![(x, y)] }),
        };
        for &share in &args.shares {
            let peer = rocksdb(bench, args, entries, &popularity, share)?;
            for ssd in [false, true] {
                let case = Case { share, popularity, name, ssd };
                let f = measure_case(bench, args, &shard, case, entries, resident)?;
                table.row(row(case, &f, peer));
                line(&format!("{name}, {}", if ssd { "SSD" } else { "no SSD" }), share, f.block_hits);
                if !ssd {
                    line(&format!("{name}, ideal"), share, f.ideal);
                    if let Some((hits, _)) = peer {
                        line(&format!("{name}, RocksDB"), share, hits);
                    }
                }
            }
        }
    }
    let title = format!("zipf: {} GB, skew {}", args.gigabytes, args.skew);
    bench.print(&title, &table);
    args.plot
        .as_ref()
        .map_or(Ok(()), |file| plot(file, "hits over the share of the state that fits into memory", &lines))
}

fn row(case: Case, f: &Figures, peer: Option<(f64, f64)>) -> Vec<String> {
    let percent = |x: f64| format!("{:.1} %", x * 100.0);
    let bar = if case.name == "zipf" { "95 %; 1.05 GETs; 80 %" } else { "-" };
    vec![
        case.name.to_owned(),
        format!("{} %", case.share),
        if case.ssd { "yes" } else { "no" }.to_owned(),
        percent(f.row_hits),
        percent(f.block_hits),
        percent(f.ideal),
        percent(f.lfu),
        percent(f.block_hits / f.ideal),
        percent(f.block_hits / f.lfu),
        bar.to_owned(),
        hundredths(f.gets_a_miss),
        whole(f.keys_a_second),
        whole(f.bound),
        percent(f.keys_a_second / f.bound),
        peer.map_or_else(|| "-".to_owned(), |p| percent(p.0)),
        peer.map_or_else(|| "-".to_owned(), |p| whole(p.1)),
    ]
}

fn slow(bench: &StoreBench, args: &ZipfArgs, shard: &Shard) -> Result<Arc<dyn ObjectStore>> {
    let (p50, p99) = (Duration::from_millis(args.p50_ms), Duration::from_millis(args.p50_ms * 3));
    let faults = Faults { latency_p50: p50, latency_p99: p99, ..Faults::none() };
    Ok(Arc::new(FaultyStore::new(backend(&shard.folder)?, &bench.runtimes.env(), faults)))
}

/// Keys a second when every row is resident.
fn resident(bench: &StoreBench, shard: &Shard, popularity: &Popularity, entries: u64, args: &ZipfArgs) -> Result<f64> {
    let caches = Caches::in_memory(0, 0);
    let (store, tree) = (slow(bench, args, shard)?, shard.tree.clone());
    let ours = Millstream::new(&bench.runtimes, store, caches, StateStoreOptions::default(), tree, Pace::Never);
    let mut paged = Paged::new(&ours, u64::MAX, true);
    let rows = entries.min(RESIDENT_ROWS);
    for from in (0..rows).step_by(BATCH) {
        let ids = from..(from + BATCH as u64).min(rows);
        let buffer = key_buffer(&ids.clone().map(key_of).collect::<Vec<_>>())?;
        paged.rows.name_batch(&buffer);
        paged.rows.end_group();
        let slots = paged.rows.take_rows()?;
        for (&slot, id) in slots.slots.iter().zip(ids) {
            paged.rows.put(slot, Row(bench.values.of(id, BASE_VERSION)));
        }
        paged.rows.give_back(slots);
        paged.rows.release_group();
    }
    let mut random = Random::new(1);
    let draw = match popularity {
        Popularity::Uniform(_) => Popularity::Uniform(rows),
        zipf => *zipf,
    };
    let mut best = 0.0_f64;
    for _ in 0..3 {
        let batches = (0..128)
            .map(|_| {
                let ids: Vec<u64> = (0..BATCH).map(|_| draw.draw(&mut random).min(rows - 1)).collect();
                let buffer = key_buffer(&ids.iter().map(|id| key_of(*id)).collect::<Vec<_>>())?;
                Ok(TraceBatch { ids, buffer })
            })
            .collect::<Result<Vec<_>>>()?;
        let count = (batches.len() * BATCH) as f64;
        let (_, cost) = measured(|| {
            batches.into_iter().try_for_each(|b| paged.push(b))?;
            paged.finish_all()
        })?;
        best = best.max(count / cost.wall.as_secs_f64());
    }
    Ok(best)
}

fn measure_case(
    bench: &StoreBench,
    args: &ZipfArgs,
    shard: &Shard,
    case: Case,
    entries: u64,
    resident: f64,
) -> Result<Figures> {
    let bytes = (entries * ENTRY_BYTES) as f64 * case.share / 100.0;
    let mut settings = Settings::defaults();
    settings.cache.memory_bytes = Some(bytes as u64);
    let MemoryPlan { rows_bytes, blocks_bytes, .. } = MemoryPlan::new(&settings, 0);
    let folder = bench.data.fresh()?;
    let disk_bytes = (args.ssd_gigabytes * 1e9) as u64;
    let disk = case.ssd.then(|| DiskOptions { dir: folder.path().to_owned(), bytes: disk_bytes });
    let options = CacheOptions { memory_bytes: blocks_bytes, metadata_bytes: 1 << 30, pinned_bytes: 0, disk };
    let caches = bench.runtimes.block_on(Caches::new(&options, &bench.runtimes.env()))?;
    let (store, tree) = (slow(bench, args, shard)?, shard.tree.clone());
    let ours = Millstream::new(&bench.runtimes, store, caches.clone(), StateStoreOptions::default(), tree, Pace::Never);
    let mut paged = Paged::new(&ours, rows_bytes, false);
    let mut lfu = Lfu::new((bytes / ENTRY_BYTES as f64) as u64);
    let mut random = Random::new(17);
    let start = now();
    let enough = (bytes / ENTRY_BYTES as f64) as u64 * 4;
    while paged.counted.0 < enough && start.elapsed().as_secs_f64() < args.warm_s {
        let batch = TraceBatch::draw(&case.popularity, &mut random)?;
        for id in &batch.ids {
            lfu.access(*id);
        }
        paged.push(batch)?;
    }
    paged.finish_all()?;
    let warmed = std::mem::take(&mut paged.counted).0;
    let (mut wall, mut lfu_hits) = (Duration::ZERO, 0_u64);
    while wall.as_secs_f64() < args.measure_s {
        let batches = (0..64).map(|_| TraceBatch::draw(&case.popularity, &mut random)).collect::<Result<Vec<_>>>()?;
        lfu_hits += batches.iter().flat_map(|b| &b.ids).filter(|id| lfu.access(**id)).count() as u64;
        let (_, cost) = measured(|| {
            batches.into_iter().try_for_each(|b| paged.push(b))?;
            paged.finish_all()
        })?;
        wall += cost.wall;
    }
    let (rows, missing, report) = paged.counted;
    note(&format!("zipf: {} {} % ssd {}: warmed by {warmed} rows; {report:?}", case.name, case.share, case.ssd));
    let below = report.disk_hits + report.shared + report.misses;
    let in_memory = report.memory_hits as f64 / (report.memory_hits + below).max(1) as f64;
    let tier = if case.ssd { disk_reads(bench, shard, &ours, &caches)? } else { store_reads(bench, shard, &ours)? };
    let miss_ratio = missing as f64 / rows as f64;
    let goes_below = miss_ratio * (1.0 - in_memory);
    let figures = Figures {
        row_hits: 1.0 - miss_ratio,
        block_hits: 1.0 - goes_below,
        ideal: case.popularity.share_of_top((bytes / ENTRY_BYTES as f64) as u64),
        lfu: lfu_hits as f64 / rows as f64,
        gets_a_miss: report.gets as f64 / report.misses.max(1) as f64,
        keys_a_second: rows as f64 / wall.as_secs_f64(),
        bound: resident.min(tier / goes_below.max(1e-9)),
    };
    bench.runtimes.block_on(caches.close());
    Ok(figures)
}

/// The blocks of the shard whose meta parts are in memory.
fn blocks(shard: &Shard, ours: &Millstream) -> Vec<(usize, BlockKey, std::ops::Range<u64>)> {
    let of_run = |(i, run)| ours.states().known_blocks(run).into_iter().map(move |(key, range)| (i, key, range));
    shard.tree.runs().iter().map(AsRef::as_ref).enumerate().flat_map(of_run).collect()
}

/// Random blocks a second from the object store.
fn store_reads(bench: &StoreBench, shard: &Shard, ours: &Millstream) -> Result<f64> {
    use futures::StreamExt;
    let all = blocks(shard, ours);
    let store = store_on(Arc::new(ours.observed().clone()), &bench.runtimes.env());
    let mut random = Random::new(23);
    let some: Vec<_> = (0..PROBES).map(|_| &all[random.below(all.len() as u64) as usize]).collect();
    let (_, cost) = measured(|| {
        bench.runtimes.block_on(async {
            let reads = some.iter().map(|(run, _, range)| {
                let (store, path) = (&store, shard.tree.runs()[*run].path());
                async move { store.get_range(&path, range.clone(), Purpose::Check).await }
            });
            let mut reads = futures::stream::iter(reads).buffer_unordered(PROBES_AT_ONCE);
            while let Some(read) = reads.next().await {
                std::hint::black_box(read?);
            }
            Ok(())
        })
    })?;
    Ok(PROBES as f64 / cost.wall.as_secs_f64())
}

/// Random blocks a second that the SSD tier has.
fn disk_reads(bench: &StoreBench, shard: &Shard, ours: &Millstream, caches: &Caches) -> Result<f64> {
    use futures::StreamExt;
    let all = blocks(shard, ours);
    let mut random = Random::new(23);
    let some: Vec<_> = (0..PROBES).map(|_| all[random.below(all.len() as u64) as usize].1).collect();
    let (found, cost) = measured(|| {
        Ok(bench.runtimes.block_on(async {
            let reads = some.iter().map(|key| caches.disk_block(key, None));
            let mut reads = futures::stream::iter(reads).buffer_unordered(PROBES_AT_ONCE);
            let mut found = 0;
            while let Some(read) = reads.next().await {
                found += u64::from(read.is_some());
            }
            found
        }))
    })?;
    note(&format!("zipf: of {PROBES} random blocks the SSD tier has {found}"));
    Ok(found.max(1) as f64 / cost.wall.as_secs_f64())
}

/// The share of keys for which it read no block, and keys a second.
fn rocksdb(
    bench: &StoreBench,
    args: &ZipfArgs,
    entries: u64,
    popularity: &Popularity,
    share: f64,
) -> Result<Option<(f64, f64)>> {
    let Some(folder) = bench.data.rocksdb(bench, entries)? else { return Ok(None) };
    let cache_bytes = ((entries * ENTRY_BYTES) as f64 * share / 100.0) as u64;
    let how = RocksOptions { cache_bytes, manual: false };
    let Some(mut rocks) = peers::rocksdb(bench, &folder, how)? else { return Ok(None) };
    let mut random = Random::new(17);
    let mut draw = || Batch::of((0..BATCH).map(|_| popularity.draw(&mut random)).collect(), |_| Some(BASE_VERSION));
    let start = now();
    while start.elapsed().as_secs_f64() < args.warm_s {
        rocks.multi_get(&draw())?;
    }
    let before = rocks.counters()?;
    let (mut wall, mut keys) = (Duration::ZERO, 0);
    while wall.as_secs_f64() < args.measure_s {
        let batch = draw();
        let (sum, cost) = measured(|| rocks.multi_get(&batch))?;
        batch.check("RocksDB", sum)?;
        wall += cost.wall;
        keys += batch.keys.len();
    }
    let after = rocks.counters()?;
    // It looks a block up once for all keys of a batch that are in it: a hit is a key that did not need a block read.
    let misses = after.block_misses - before.block_misses;
    Ok(Some((1.0 - misses as f64 / keys.max(1) as f64, keys as f64 / wall.as_secs_f64())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_paged_in_and_comes_back_right() {
        let data_folder = tempfile::tempdir().unwrap();
        let data = super::super::data::DataFolder::open(Some(data_folder.path())).unwrap();
        let runtimes = Arc::new(millstream_common::env::Runtimes::start(1).unwrap());
        let shard = data.shard(&runtimes, 20_000, Values { compressible: false }).unwrap();
        let caches = Caches::in_memory(100_000, 1 << 20);
        let (options, tree) = (StateStoreOptions::default(), shard.tree.clone());
        let store = backend(&shard.folder).unwrap();
        let ours = Millstream::new(&runtimes, store, caches, options, tree, Pace::Never);
        let mut paged = Paged::new(&ours, 500_000, false);
        let (popularity, mut random) = (Popularity::Uniform(20_000), Random::new(1));
        for _ in 0..40 {
            paged.push(TraceBatch::draw(&popularity, &mut random).unwrap()).unwrap();
        }
        paged.finish_all().unwrap();
        let (rows, missing, report) = paged.counted;
        assert_eq!(rows, 40 * BATCH as u64);
        assert!(missing > rows / 2 && missing < rows && report.keys == missing, "{missing} {report:?}");
    }
}
