//! A checkpoint of the same change over states of several sizes, with a compaction running.
//!
//! Each state lies in a folder (kept, see [`super::data`]); a checkpoint is: encoding the section, putting the bundle, and
//! creating a version record that lists every live run. The change was collected before. Beside it a compaction of the state
//! is under way all the time, on a thread of its own, into a folder that goes away. Sizes take their turns in each run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use millstream_common::{Epoch, Error, KeyGroupRanges, Lane, Result};
use millstream_proto::version::{VersionRecord, version_record};
use millstream_state_store::Caches;
use millstream_state_store::version::{CommitOutcome, VersionLog};
use millstream_state_store::{
    Expiry, Interval, MergeOperators, ReadTime, Run, SectionWriter, StateStore, StateStoreOptions, Tree,
};
use tempfile::TempDir;

use super::args::CheckpointSizeArgs;
use super::data::{backend, entries_of};
use super::keys::{Random, key_of, store_key};
use super::measure::measured;
use super::observed::Observed;
use super::ours::{TASK, WRITER, store_on};
use super::{StoreBench, median};
use crate::note;
use crate::stats::{spread_text, tenths, whole};
use crate::table::Table;

/// Runs that a compaction beside a checkpoint merges; each is an object of its own.
const MERGED_RUNS: usize = 4;

/// A state under test.
struct Sized {
    gigabytes: f64,
    entries: u64,
    folder: TempDir,
    tree: Tree,
    epoch: u64,
    ms: Vec<f64>,
    cpu_ms: Vec<f64>,
    puts: Vec<f64>,
    megabytes: Vec<f64>,
    merging: bool,
}

/// Runs it.
pub fn run(bench: &StoreBench, args: &CheckpointSizeArgs) -> Result<()> {
    let mut sizes = Vec::new();
    for &gigabytes in &args.sizes {
        let entries = entries_of(gigabytes * 1e9);
        let shard = bench.data.shard(&bench.runtimes, entries, bench.values)?;
        let (folder, tree) = bench.data.linked(&shard)?;
        let (ms, cpu_ms, puts, megabytes) = Default::default();
        sizes.push(Sized { gigabytes, entries, folder, tree, epoch: 2, ms, cpu_ms, puts, megabytes, merging: true });
    }
    for run in 0..bench.runs {
        for size in &mut sizes {
            note(&format!("checkpoint-size: {} GB, {} of {}", size.gigabytes, run + 1, bench.runs));
            checkpoint(bench, args, size)?;
        }
    }
    let head = [
        "GB",
        "runs in the record",
        "ms",
        "process cpu ms",
        "PUTs",
        "bar PUTs",
        "MB",
        "times the first",
        "bar",
        "compacting",
    ];
    let mut table = Table::new(&head);
    for size in &sizes {
        let text = |values: &[f64], show: fn(f64) -> String| spread_text(values.iter().copied(), show);
        table.row(vec![
            size.gigabytes.to_string(),
            size.tree.runs().len().to_string(),
            text(&size.ms, whole),
            text(&size.cpu_ms, whole),
            text(&size.puts, whole),
            "2".to_owned(),
            text(&size.megabytes, tenths),
            format!("{:.2} x", median(&size.ms) / median(&sizes[0].ms)),
            "1.3 x".to_owned(),
            if size.merging { "all the time" } else { "not all the time" }.to_owned(),
        ]);
    }
    bench.print(&format!("checkpoint-size: {} changed entries, state in a folder", args.changes), &table);
    Ok(())
}

fn checkpoint(bench: &StoreBench, args: &CheckpointSizeArgs, size: &mut Sized) -> Result<()> {
    let env = bench.runtimes.env();
    let observed = Observed::new(backend(size.folder.path())?);
    let options = StateStoreOptions::default();
    let open = |caches| {
        let store = store_on(backend(size.folder.path())?, &env);
        Ok::<_, Error>(StateStore::new(store, caches, options.clone(), env.clone(), MergeOperators::default()))
    };
    let compactor = open(Caches::in_memory(0, 256 << 20))?;
    let store = store_on(Arc::new(observed.clone()), &env);
    let caches = Caches::in_memory(64 << 20, 64 << 20);
    let states = StateStore::new(store.clone(), caches, options, env.clone(), MergeOperators::default());
    let mut random = Random::new(size.epoch);
    let mut writer = SectionWriter::new(TASK);
    for _ in 0..args.changes {
        let id = random.below(size.entries);
        writer.put(&store_key(&key_of(id)), &bench.values.of(id, size.epoch), Expiry::Never);
    }
    let (stop, blocks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let merging = merge_until(bench, compactor, &size.tree, stop.clone(), blocks.clone());
    // The compaction is under way.
    crate::outside::sleep(std::time::Duration::from_millis(200));
    let (begun, before) = (blocks.load(Ordering::Relaxed), observed.requests());
    let (outcome, cost) = measured(|| {
        let interval = Interval::of(Epoch(size.epoch), 0);
        let section =
            writer.encode(&states.section_options(0), &size.tree.layouts(), KeyGroupRanges::all(), interval)?;
        bench.runtimes.block_on(async {
            let runs = states.write_bundle(WRITER, vec![section]).await?;
            size.tree.add_runs(runs.into_iter().map(Arc::new));
            VersionLog::new(store, env.clone()).commit(&record(size.epoch, &size.tree, &env.unique_id())).await
        })
    })?;
    if outcome != CommitOutcome::Committed {
        return Err(Error::internal(format!("the record was not created: {outcome:?}")));
    }
    let wrote = observed.requests() - before;
    stop.store(true, Ordering::Relaxed);
    size.merging &= !merging.is_done() || blocks.load(Ordering::Relaxed) > begun;
    merging.end(bench)?;
    size.epoch += 1;
    size.ms.push(cost.wall.as_secs_f64() * 1e3);
    size.cpu_ms.push(cost.process.as_secs_f64() * 1e3);
    size.puts.push(wrote.puts as f64);
    size.megabytes.push(wrote.put_bytes as f64 / 1e6);
    Ok(())
}

fn record(epoch: u64, tree: &Tree, nonce: &str) -> VersionRecord {
    VersionRecord {
        number: epoch,
        kind: version_record::Kind::Checkpoint.into(),
        generation: 1,
        nonce: nonce.to_owned(),
        epoch,
        tree: Some(tree.to_proto()),
        ..VersionRecord::default()
    }
}

/// Compactions that go on until they are stopped.
struct Merging {
    running: millstream_common::env::Running<Result<()>>,
    done: Arc<AtomicBool>,
}

impl Merging {
    fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    fn end(self, bench: &StoreBench) -> Result<()> {
        bench.runtimes.block_on(self.running)?
    }
}

/// Merges some runs of the state again and again; counts how often.
fn merge_until(
    bench: &StoreBench,
    states: StateStore,
    tree: &Tree,
    stop: Arc<AtomicBool>,
    merged: Arc<AtomicU64>,
) -> Merging {
    let runs: Vec<Arc<Run>> = tree.runs().iter().take(MERGED_RUNS).cloned().collect();
    let layouts = tree.layouts();
    let done = Arc::new(AtomicBool::new(false));
    let ended = done.clone();
    let running = bench.runtimes.env().run(Lane::Background, "compaction", async move {
        while !stop.load(Ordering::Relaxed) {
            for run in &runs {
                let one = std::slice::from_ref(run);
                states.compact(one, &run.clip, &layouts, WRITER, false, ReadTime::START).await?;
                merged.fetch_add(1, Ordering::Relaxed);
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
        ended.store(true, Ordering::Relaxed);
        Ok(())
    });
    Merging { running, done }
}
