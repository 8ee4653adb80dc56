//! Bytes written for each byte that was flushed, over many checkpoints of random updates.
//!
//! Millstream flushes behind each epoch and compacts as a worker does. RocksDB (level style, its defaults) decides by itself when
//! to flush and to compact, and says what it wrote: flushes and compactions. SlateDB flushes behind each epoch, too, and its
//! compactor runs beside it; its bytes are counted in the object store. *Over updates* has the same base for all: 116 bytes for
//! each update. The first load of all keys is not counted.

use std::sync::Arc;

use millstream_common::Result;
use millstream_objects::object_store::memory::InMemory;
use millstream_state_store::Caches;
use millstream_state_store::StateStoreOptions;

use super::args::WriteAmpArgs;
use super::contender::{Contender, Counters};
use super::data::bulk;
use super::keys::{BATCH, Batch, ENTRY_BYTES, Entries, Popularity, Random, Zipf};
use super::observed::Observed;
use super::ours::{Millstream, Pace, empty_tree};
use super::peers::{self, RocksOptions, SlateOptions};
use super::{Held, StoreBench, memory_folder};
use crate::note;
use crate::stats::{hundredths, whole};
use crate::table::Table;

/// Runs it.
pub fn run(bench: &StoreBench, args: &WriteAmpArgs) -> Result<()> {
    let head = [
        "updates",
        "store",
        "MB updated",
        "MB flushed",
        "MB written",
        "written / flushed",
        "written / updated",
        "runs at the end",
    ];
    let mut table = Table::new(&head);
    let popularities =
        [("uniform", Popularity::Uniform(args.keys)), ("zipf 0.99", Popularity::Zipf(Zipf::new(args.keys, 0.99)))];
    for (name, popularity) in popularities {
        let mut ours = ours(bench, args)?;
        let before = ours.counters()?;
        update(bench, args, &popularity, &mut ours)?;
        let runs = ours.runs_per_group().to_string();
        table.row(row(args, name, &ours.name(), (before, ours.counters()?), runs));
        drop(ours);
        for mut held in peer_stores(bench)? {
            let store = &mut held.store;
            note(&format!("write-amp: {} keys into {}", args.keys, store.name()));
            let all: Vec<u64> = (0..args.keys).collect();
            for ids in all.chunks(1 << 16) {
                store.write(&Entries::of(ids.iter().copied(), 0, bench.values))?;
            }
            store.settle()?;
            let before = store.counters()?;
            update(bench, args, &popularity, store.as_mut())?;
            table.row(row(args, name, &store.name(), (before, store.counters()?), "-".to_owned()));
        }
    }
    let title = format!("write-amp: {} epochs of {} updates over {} keys", args.epochs, args.changes, args.keys);
    bench.print(&title, &table);
    Ok(())
}

fn row(
    args: &WriteAmpArgs,
    name: &str,
    store: &str,
    (before, after): (Counters, Counters),
    runs: String,
) -> Vec<String> {
    let updated = (args.epochs * args.changes * ENTRY_BYTES) as f64;
    let (flushed, written) = ((after.flushed - before.flushed) as f64, (after.written - before.written) as f64);
    vec![
        name.to_owned(),
        store.to_owned(),
        whole(updated / 1e6),
        whole(flushed / 1e6),
        whole(written / 1e6),
        hundredths(written / flushed.max(1.0)),
        hundredths(written / updated),
        runs,
    ]
}

fn update(bench: &StoreBench, args: &WriteAmpArgs, popularity: &Popularity, store: &mut dyn Contender) -> Result<()> {
    let mut random = Random::new(31);
    let mut last: Vec<u64> = Vec::new();
    for epoch in 1..=args.epochs {
        // A working set writes a key once an epoch, however often it was changed.
        last = (0..args.changes).map(|_| popularity.draw(&mut random)).collect();
        last.sort_unstable();
        last.dedup();
        store.write(&Entries::of(last.iter().copied(), epoch, bench.values))?;
        store.flush_epoch()?;
        if epoch % 100 == 0 {
            note(&format!("write-amp: {}, {epoch} of {}", store.name(), args.epochs));
        }
    }
    // What a store that flushes by itself has in its buffer counts, too.
    store.flush()?;
    last.truncate(BATCH);
    let batch = Batch::of(last, |_| Some(args.epochs));
    batch.check(&store.name(), store.multi_get(&batch)?)
}

fn ours(bench: &StoreBench, args: &WriteAmpArgs) -> Result<Millstream> {
    let caches = Caches::in_memory(64 << 20, 256 << 20);
    let pace = Pace::BytesPerFlush(args.merged_megabytes * 1_000_000);
    let (options, backend) = (StateStoreOptions::default(), Arc::new(InMemory::new()));
    let open = |tree| Millstream::new(&bench.runtimes, backend.clone(), caches.clone(), options.clone(), tree, pace);
    let mut tree = empty_tree()?;
    let empty = open(tree.clone());
    tree.add_runs(bulk(&bench.runtimes, empty.states(), &tree, args.keys, bench.values)?);
    Ok(open(tree))
}

fn peer_stores(bench: &StoreBench) -> Result<Vec<Held>> {
    let mut stores: Vec<Held> = Vec::new();
    let (folder, how) = (memory_folder()?, RocksOptions { cache_bytes: 64 << 20, manual: false });
    stores.extend(peers::rocksdb(bench, folder.path(), how)?.map(|s| Held::in_folder(s, folder)));
    let how = SlateOptions { cache_bytes: 64 << 20, sst_bytes: 64 << 20, compacts: true, gets_at_once: 1 };
    stores.extend(peers::slatedb(bench, Observed::new(Arc::new(InMemory::new())), how)?.map(Held::new));
    Ok(stores)
}
