//! A batch of keys with nothing in memory, from an object store that takes its time.
//!
//! Millstream and SlateDB read the same entries from folders behind the same wrapper, which delays each request (median and
//! 99th percentile are options) and writes down when each read began and ended. The files may be in the page cache: what is
//! measured is requests, not the disk. *Waves* is the longest chain of reads each of which began after the one before it had
//! ended; *stages* is the same with no limit of requests in flight, so how often a read had to wait for what another brought.
//! SlateDB is asked for all keys at once; it has no limit of its own.
//!
//! With AWS_ENDPOINT_URL Millstream's shard is put on that server once (below `store-bench/`) and read from there, without delay.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream_common::{Error, Result};
use millstream_objects::object_store::aws::AmazonS3Builder;
use millstream_objects::object_store::path::Path;
use millstream_objects::object_store::prefix::PrefixStore;
use millstream_objects::object_store::{ObjectStore, ObjectStoreExt};
use millstream_objects::{Faults, FaultyStore};
use millstream_state_store::Caches;
use millstream_state_store::StateStoreOptions;

use super::args::ColdArgs;
use super::contender::Contender;
use super::data::{BASE_VERSION, Shard, backend, entries_of, named};
use super::keys::{Batch, Random};
use super::measure::measured;
use super::observed::{Observed, Requests};
use super::ours::{Millstream, Pace};
use super::peers::{self, SlateOptions};
use super::{StoreBench, median};
use crate::note;
use crate::outside::{variable, variables};
use crate::stats::{spread_text, tenths, whole};
use crate::table::Table;

/// The bucket of the S3 server.
const BUCKET: &str = "millstream";

#[derive(Default)]
struct Figures {
    wall_ms: Vec<f64>,
    cpu_ms: Vec<f64>,
    gets: Vec<f64>,
    megabytes: Vec<f64>,
    waves: Vec<f64>,
    stages: Vec<f64>,
}

impl Figures {
    fn add(&mut self, cost: super::measure::Cost, requests: Requests, waves: usize) {
        self.wall_ms.push(cost.wall.as_secs_f64() * 1e3);
        self.cpu_ms.push(cost.process.as_secs_f64() * 1e3);
        self.gets.push(requests.gets as f64);
        self.megabytes.push(requests.get_bytes as f64 / 1e6);
        self.waves.push(waves as f64);
    }

    fn row(&self, name: &str, ours: &Self) -> Vec<String> {
        let text = |values: &[f64], show: fn(f64) -> String| spread_text(values.iter().copied(), show);
        vec![
            name.to_owned(),
            text(&self.stages, whole),
            text(&self.waves, whole),
            text(&self.gets, whole),
            text(&self.megabytes, tenths),
            text(&self.wall_ms, whole),
            text(&self.cpu_ms, whole),
            super::times(&self.wall_ms, &ours.wall_ms),
        ]
    }
}

/// Runs it.
pub fn run(bench: &StoreBench, args: &ColdArgs) -> Result<()> {
    let entries = entries_of(args.gigabytes * 1e9);
    let shard = bench.data.shard(&bench.runtimes, entries, bench.values)?;
    let slow: Arc<dyn ObjectStore> = Arc::new(slowed(bench, args, backend(&shard.folder)?));
    let s3 = match variable("AWS_ENDPOINT_URL") {
        Some(_) => Some(on_s3(bench, &shard, entries)?),
        None => None,
    };
    let (mut ours, mut of_s3, mut of_slate) = (Figures::default(), Figures::default(), Figures::default());
    let mut random = Random::new(11);
    for _ in 0..bench.runs {
        let ids = (0..args.keys).map(|_| random.below(entries)).collect();
        let batch = Batch::of(ids, |_| Some(BASE_VERSION));
        read_ours(bench, &shard, &slow, &batch, &mut ours)?;
        if let Some(s3) = &s3 {
            read_ours(bench, &shard, s3, &batch, &mut of_s3)?;
        }
        read_slate(bench, args, entries, &batch, &mut of_slate)?;
    }
    let head = ["store", "stages", "waves", "GETs", "MB", "ms", "of which cpu ms", "times ours"];
    let mut table = Table::new(&head);
    let (ms, cpu) = ("-".to_owned(), "-".to_owned());
    let bar = ["the bar", "2", "6", "1400", "-"].map(str::to_owned).into_iter().chain([ms, cpu, "-".to_owned()]);
    table.row(bar.collect());
    table.row(ours.row("Millstream", &ours));
    if !of_s3.gets.is_empty() {
        table.row(of_s3.row("Millstream on the S3 server, no delay added", &ours));
    }
    if !of_slate.gets.is_empty() {
        table.row(of_slate.row("SlateDB", &ours));
    }
    let (keys, gb, p50, p99) = (args.keys, args.gigabytes, args.p50_ms, args.p99_ms);
    bench.print(&format!("cold: {keys} keys over {gb} GB, {p50} ms at the median, {p99} ms at p99"), &table);
    note(&format!("cold: GETs a key: {:.2}", median(&ours.gets) / keys as f64));
    Ok(())
}

fn slowed(bench: &StoreBench, args: &ColdArgs, store: Arc<dyn ObjectStore>) -> FaultyStore {
    let (latency_p50, latency_p99) = (Duration::from_millis(args.p50_ms), Duration::from_millis(args.p99_ms));
    FaultyStore::new(store, &bench.runtimes.env(), Faults { latency_p50, latency_p99, ..Faults::none() })
}

fn read_ours(
    bench: &StoreBench,
    shard: &Shard,
    store: &Arc<dyn ObjectStore>,
    batch: &Batch,
    figures: &mut Figures,
) -> Result<()> {
    let usual = StateStoreOptions::default();
    let unlimited = StateStoreOptions { gets_in_flight: 100_000, bytes_in_flight: 1 << 40, ..usual.clone() };
    for (options, limited) in [(usual, true), (unlimited, false)] {
        let caches = Caches::in_memory(256 << 20, 256 << 20);
        let tree = shard.tree.clone();
        let mut ours = Millstream::new(&bench.runtimes, store.clone(), caches, options, tree, Pace::Never);
        let (sum, cost) = measured(|| ours.multi_get(batch))?;
        batch.check("Millstream", sum)?;
        let observed = ours.observed();
        if limited {
            figures.add(cost, observed.requests(), observed.waves());
        } else {
            figures.stages.push(observed.waves() as f64);
        }
    }
    Ok(())
}

/// The shard on the S3 server, put there when it is not.
fn on_s3(bench: &StoreBench, shard: &Shard, entries: u64) -> Result<Arc<dyn ObjectStore>> {
    let failed = |e: &dyn std::fmt::Display| Error::unavailable(format!("the shard on the S3 server: {e}"));
    let set: BTreeMap<String, String> = variables().into_iter().filter(|(k, _)| k.starts_with("AWS_")).collect();
    let mut builder = AmazonS3Builder::new().with_bucket_name(BUCKET).with_allow_http(true);
    for (name, value) in &set {
        if let Ok(key) = name.to_lowercase().parse() {
            builder = builder.with_config(key, value);
        }
    }
    let name = format!("store-bench/{}", named(entries, bench.values));
    let store: Arc<dyn ObjectStore> = Arc::new(PrefixStore::new(builder.build().map_err(|e| failed(&e))?, name));
    let folder = backend(&shard.folder)?;
    bench.runtimes.block_on(async {
        for run in shard.tree.runs() {
            let path = Path::from(run.path());
            if store.head(&path).await.is_err() {
                let body: Bytes =
                    folder.get(&path).await.map_err(|e| failed(&e))?.bytes().await.map_err(|e| failed(&e))?;
                store.put(&path, body.into()).await.map_err(|e| failed(&e))?;
            }
        }
        Ok::<(), Error>(())
    })?;
    Ok(Arc::new(Observed::new(store)))
}

fn read_slate(bench: &StoreBench, args: &ColdArgs, entries: u64, batch: &Batch, figures: &mut Figures) -> Result<()> {
    let how = SlateOptions { cache_bytes: 256 << 20, sst_bytes: 64 << 20, compacts: false, gets_at_once: 100_000 };
    let Some(folder) = bench.data.slatedb(bench, entries, how)? else { return Ok(()) };
    let slow = Observed::new(Arc::new(slowed(bench, args, backend(&folder)?)));
    let Some(mut slate) = peers::slatedb(bench, slow.clone(), how)? else { return Ok(()) };
    let opened = slow.requests();
    slow.forget_reads();
    let (sum, cost) = measured(|| slate.multi_get(batch))?;
    batch.check("SlateDB", sum)?;
    let (requests, waves) = (slow.requests() - opened, slow.waves());
    figures.add(cost, requests, waves);
    figures.stages.push(waves as f64);
    Ok(())
}
