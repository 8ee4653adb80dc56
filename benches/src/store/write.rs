//! Writing: entries into a section, encoded, put into an object store in memory as a bundle.
//!
//! Store keys are made before: a working set has their hashes and copies them together as it encodes a slot. The CPU's time
//! is given, all threads together: entries a second of one core. Peers write the same entries, in the same random order,
//! and flush them; theirs is the time of all their threads, too.

use std::sync::Arc;

use bytes::Bytes;
use millstream_common::{Epoch, KeyGroupRanges, Result};
use millstream_objects::object_store::memory::InMemory;
use millstream_state_store::Caches;
use millstream_state_store::{Expiry, Interval, MergeOperators, SectionWriter, StateStore, StateStoreOptions};

use super::args::WriteArgs;
use super::keys::{Entries, store_key};
use super::measure::measured;
use super::observed::Observed;
use super::ours::{TASK, WRITER, empty_tree, store_on};
use super::peers::{self, RocksOptions, SlateOptions};
use super::{Held, StoreBench, median, memory_folder, nanoseconds};
use crate::stats::{Spread, millions};
use crate::table::Table;

/// Nanoseconds of the CPU an entry.
#[derive(Default)]
struct Ours {
    add: Vec<f64>,
    encode: Vec<f64>,
    put: Vec<f64>,
    all: Vec<f64>,
}

/// Runs it.
pub fn run(bench: &StoreBench, args: &WriteArgs) -> Result<()> {
    let entries = Entries::of(0..args.entries, 0, bench.values);
    let keys: Vec<Bytes> = entries.keys.iter().map(store_key).collect();
    let mut ours = Ours::default();
    let mut peers: Vec<(String, Vec<f64>)> = Vec::new();
    for _ in 0..bench.runs {
        measure_ours(bench, &entries, &keys, &mut ours)?;
        for (i, mut held) in peer_stores(bench, args.entries)?.into_iter().enumerate() {
            let store = &mut held.store;
            let write = || store.write(&entries).and_then(|()| store.flush());
            let (_, cost) = measured(write)?;
            if peers.len() <= i {
                peers.push((store.name(), Vec::new()));
            }
            peers[i].1.push(cost.process_ns(args.entries));
        }
    }
    let mut table = Table::new(&[
        "store",
        "entries/s a core",
        "bar",
        "cpu ns an entry",
        "add",
        "sort + encode",
        "put",
        "times ours",
    ]);
    let rate = |ns: &[f64]| Spread::of(ns.iter().map(|ns| 1e9 / ns)).map_or("-".to_owned(), |s| s.text(millions));
    table.row(vec![
        "Millstream".to_owned(),
        rate(&ours.all),
        "2.00 M".to_owned(),
        nanoseconds(&ours.all),
        nanoseconds(&ours.add),
        nanoseconds(&ours.encode),
        nanoseconds(&ours.put),
        "1.0 x".to_owned(),
    ]);
    for (name, ns) in &peers {
        let dash = || "-".to_owned();
        let ratio = format!("{:.1} x", median(ns) / median(&ours.all));
        table.row(vec![name.clone(), rate(ns), dash(), nanoseconds(ns), dash(), dash(), dash(), ratio]);
    }
    bench.print(&format!("write: {} entries in random order, then a flush, to memory", args.entries), &table);
    Ok(())
}

fn measure_ours(bench: &StoreBench, entries: &Entries, keys: &[Bytes], ours: &mut Ours) -> Result<()> {
    let env = bench.runtimes.env();
    let store = store_on(Arc::new(InMemory::new()), &env);
    let caches = Caches::in_memory(0, 64 << 20);
    let states = StateStore::new(store, caches, StateStoreOptions::default(), env, MergeOperators::default());
    let layouts = empty_tree()?.layouts();
    let count = keys.len() as u64;
    let (writer, add) = measured(|| {
        let mut writer = SectionWriter::new(TASK);
        for (key, value) in keys.iter().zip(&entries.values) {
            writer.put(key, value, Expiry::Never);
        }
        Ok(writer)
    })?;
    let options = states.section_options(0);
    let interval = Interval::of(Epoch(1), 0);
    let (section, encode) = measured(|| writer.encode(&options, &layouts, KeyGroupRanges::all(), interval))?;
    let (runs, put) = measured(|| bench.runtimes.block_on(states.write_bundle(WRITER, vec![section])))?;
    debug_assert_eq!(runs[0].entries, count);
    for (into, cost) in [(&mut ours.add, add), (&mut ours.encode, encode), (&mut ours.put, put)] {
        into.push(cost.process_ns(count));
    }
    ours.all.push(add.process_ns(count) + encode.process_ns(count) + put.process_ns(count));
    Ok(())
}

fn peer_stores(bench: &StoreBench, entries: u64) -> Result<Vec<Held>> {
    let buffer_bytes = (entries * super::keys::ENTRY_BYTES * 4).max(64 << 20);
    let mut stores: Vec<Held> = Vec::new();
    let (folder, how) = (memory_folder()?, RocksOptions { cache_bytes: 0, manual: true });
    stores.extend(peers::rocksdb(bench, folder.path(), how)?.map(|s| Held::in_folder(s, folder)));
    let how = SlateOptions { cache_bytes: 0, sst_bytes: buffer_bytes, compacts: false, gets_at_once: 1 };
    stores.extend(peers::slatedb(bench, Observed::new(Arc::new(InMemory::new())), how)?.map(Held::new));
    let folder = memory_folder()?;
    stores.extend(peers::fjall(bench, folder.path(), 0, buffer_bytes)?.map(|s| Held::in_folder(s, folder)));
    Ok(stores)
}
