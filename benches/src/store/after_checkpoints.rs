//! Reads after many small checkpoints, beside reads after everything was merged into one run.
//!
//! The state is built in bulk in memory; then each epoch changes some random keys and is flushed, and compactions run as a
//! worker runs them. How many runs a key group has is looked at behind each flush. Then both shapes are read in turn.

use std::sync::Arc;

use millstream_common::collections::HashMap;
use millstream_common::{Error, Result};
use millstream_objects::object_store::memory::InMemory;
use millstream_state_store::Caches;
use millstream_state_store::{ReadTime, StateStoreOptions, View};

use super::args::AfterCheckpointsArgs;
use super::contender::Contender;
use super::data::{BASE_VERSION, bulk, entries_of};
use super::keys::{BATCH, Batch, Entries, Random, Sum};
use super::measure::measured;
use super::ours::{Millstream, Pace, empty_tree};
use super::{StoreBench, median, nanoseconds};
use crate::note;
use crate::stats::{Spread, whole};
use crate::table::Table;

/// Runs it.
pub fn run(bench: &StoreBench, args: &AfterCheckpointsArgs) -> Result<()> {
    let entries = entries_of(args.gigabytes * 1e9);
    let mut ours = filled(bench, args, entries)?;
    let mut versions: HashMap<u64, u64> = HashMap::default();
    let mut random = Random::new(5);
    let mut runs_seen = Vec::new();
    for epoch in 1..=args.epochs {
        let ids: Vec<u64> = (0..args.changes).map(|_| random.below(entries)).collect();
        versions.extend(ids.iter().map(|id| (*id, epoch)));
        ours.write(&Entries::of(ids, epoch, bench.values))?;
        ours.flush()?;
        runs_seen.push(ours.runs_per_group() as f64);
        if epoch % 100 == 0 {
            note(&format!("after-checkpoints: {epoch} of {}", args.epochs));
        }
    }
    let merged = ours.merged_view()?;
    let many = ours.view().clone();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    // The first round brings all blocks that are not in memory yet.
    for round in 0..=bench.runs {
        let version = |id: u64| Some(versions.get(&id).copied().unwrap_or(BASE_VERSION));
        let batches: Vec<Batch> = (0..args.batches)
            .map(|_| Batch::of((0..BATCH).map(|_| random.below(entries)).collect(), version))
            .collect();
        if round == 0 {
            read_all(bench, &many, entries)?;
            read_all(bench, &merged, entries)?;
        }
        let (one, other) = (read(bench, &many, &batches)?, read(bench, &merged, &batches)?);
        if round > 0 {
            before.push(one);
            after.push(other);
        }
    }
    let mut table = Table::new(&["reads", "ns a key", "runs a key group at the end", "times merged", "bar"]);
    let ratio = format!("{:.2} x", median(&before) / median(&after));
    let now = ours.runs_per_group().to_string();
    table.row(vec![format!("after {} checkpoints", args.epochs), nanoseconds(&before), now, ratio, "2 x".to_owned()]);
    table.row(vec![
        "after full compaction".to_owned(),
        nanoseconds(&after),
        "1".to_owned(),
        "1.00 x".to_owned(),
        "-".to_owned(),
    ]);
    let seen = Spread::of(runs_seen.iter().copied()).map_or("-".to_owned(), |s| s.text(whole));
    let (gb, changes) = (args.gigabytes, args.changes);
    let title = format!("after-checkpoints: {gb} GB, {changes} changes each; runs a key group behind a flush: {seen}");
    bench.print(&title, &table);
    Ok(())
}

fn filled(bench: &StoreBench, args: &AfterCheckpointsArgs, entries: u64) -> Result<Millstream> {
    note(&format!("after-checkpoints: building {entries} entries"));
    // Room for both shapes.
    let cache_bytes = (args.gigabytes * 1e9) as u64 * 4 + (1 << 30);
    let caches = Caches::in_memory(cache_bytes, cache_bytes);
    let pace = Pace::BytesPerFlush(args.merged_megabytes * 1_000_000);
    let (options, tree) = (StateStoreOptions::default(), empty_tree()?);
    let backend = Arc::new(InMemory::new());
    let mut ours = Millstream::new(&bench.runtimes, backend.clone(), caches.clone(), options.clone(), tree, pace);
    let runs = bulk(&bench.runtimes, ours.states(), ours.tree(), entries, bench.values)?;
    let mut tree = ours.tree().clone();
    tree.add_runs(runs);
    ours = Millstream::new(&bench.runtimes, backend, caches, options, tree, pace);
    Ok(ours)
}

fn read_all(bench: &StoreBench, view: &View, entries: u64) -> Result<()> {
    for from in (0..entries).step_by(BATCH) {
        let batch = Batch::of((from..(from + BATCH as u64).min(entries)).collect(), |_| None);
        let (values, _) = bench.runtimes.block_on(view.multi_get(&batch.store_keys, &ReadTime::START))?;
        if values.iter().any(|v| v.is_none()) {
            return Err(Error::internal("a key of the state was not found"));
        }
    }
    Ok(())
}

fn read(bench: &StoreBench, view: &View, batches: &[Batch]) -> Result<f64> {
    let get = |batch: &Batch| -> Result<Sum> {
        let (values, _) = bench.runtimes.block_on(view.multi_get(&batch.store_keys, &ReadTime::START))?;
        let mut sum = Sum::default();
        values.iter().flatten().for_each(|value| sum.add(value));
        Ok(sum)
    };
    let (sums, cost) = measured(|| batches.iter().map(get).collect::<Result<Vec<_>>>())?;
    batches.iter().zip(sums).try_for_each(|(batch, sum)| batch.check("Millstream", sum))?;
    Ok(cost.thread_ns(batches.iter().map(|b| b.keys.len() as u64).sum()))
}
