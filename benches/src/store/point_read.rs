//! Reading batches of random keys when all blocks are in memory.
//!
//! Each store holds the same keys in one run, or in several that each hold a share of them. Everything is read once before
//! anything is measured. Absent keys cost what the filters cost.

use std::sync::Arc;

use millstream_common::Result;
use millstream_objects::object_store::memory::InMemory;
use millstream_state_store::Caches;
use millstream_state_store::StateStoreOptions;

use super::args::PointReadArgs;
use super::contender::Contender;
use super::keys::{BATCH, Batch, Entries, Random};
use super::measure::measured;
use super::observed::Observed;
use super::ours::{Millstream, Pace, empty_tree};
use super::peers::{self, RocksOptions, SlateOptions};
use super::{Held, StoreBench, memory_folder, nanoseconds, times};
use crate::note;
use crate::table::Table;

/// Nanoseconds a key over this many runs are to be reached.
fn bar_ns(runs: u64) -> &'static str {
    match runs {
        1 => "200",
        6 => "400",
        _ => "-",
    }
}

/// What was measured of a store.
#[derive(Default)]
struct Figures {
    name: String,
    present_wall: Vec<f64>,
    present_cpu: Vec<f64>,
    absent_cpu: Vec<f64>,
}

/// Runs it.
pub fn run(bench: &StoreBench, args: &PointReadArgs) -> Result<()> {
    let head = [
        "over runs",
        "store",
        "ns a key",
        "cpu ns a key",
        "absent: cpu ns a key",
        "bar ns",
        "cpu: times ours",
        "absent: times ours",
    ];
    let mut table = Table::new(&head);
    for &over in &args.over {
        let figures = measure_over(bench, args, over)?;
        for f in &figures {
            let ours = &figures[0];
            table.row(vec![
                over.to_string(),
                f.name.clone(),
                nanoseconds(&f.present_wall),
                nanoseconds(&f.present_cpu),
                nanoseconds(&f.absent_cpu),
                bar_ns(over).to_owned(),
                times(&f.present_cpu, &ours.present_cpu),
                times(&f.absent_cpu, &ours.absent_cpu),
            ]);
        }
    }
    let title = format!("point-read: {} keys, batches of {BATCH} random keys, all blocks in memory", args.keys);
    bench.print(&title, &table);
    Ok(())
}

fn measure_over(bench: &StoreBench, args: &PointReadArgs, over: u64) -> Result<Vec<Figures>> {
    let mut stores = stores(bench, args.keys)?;
    for Held { store, .. } in &mut stores {
        note(&format!("point-read: {} keys into {}, {over} runs", args.keys, store.name()));
        for run in 0..over {
            let mine: Vec<u64> = (0..args.keys).filter(|id| id % over == run).collect();
            for ids in mine.chunks(1 << 16) {
                store.write(&Entries::of(ids.iter().copied(), 0, bench.values))?;
            }
            store.flush()?;
        }
        for from in (0..args.keys).step_by(BATCH) {
            let batch = Batch::of((from..(from + BATCH as u64).min(args.keys)).collect(), |_| Some(0));
            batch.check(&store.name(), store.multi_get(&batch)?)?;
        }
    }
    let mut random = Random::new(over);
    let mut figures: Vec<Figures> =
        stores.iter().map(|h| Figures { name: h.store.name(), ..Figures::default() }).collect();
    for _ in 0..bench.runs {
        let draw = |random: &mut Random, from: u64| -> Vec<u64> {
            (0..BATCH).map(|_| from + random.below(args.keys)).collect()
        };
        let of = |random: &mut Random, from: u64| -> Vec<Batch> {
            let version = |id| (id < args.keys).then_some(0);
            (0..args.batches).map(|_| Batch::of(draw(random, from), version)).collect()
        };
        let (present, absent) = (of(&mut random, 0), of(&mut random, args.keys));
        for (Held { store, .. }, f) in stores.iter_mut().zip(&mut figures) {
            let (wall, cpu) = read(store.as_mut(), &present)?;
            f.present_wall.push(wall);
            f.present_cpu.push(cpu);
            f.absent_cpu.push(read(store.as_mut(), &absent)?.1);
        }
    }
    Ok(figures)
}

/// Nanoseconds a key, of the clock and of the CPU (all threads).
fn read(store: &mut dyn Contender, batches: &[Batch]) -> Result<(f64, f64)> {
    let name = store.name();
    let keys = batches.iter().map(|b| b.keys.len() as u64).sum();
    let (sums, cost) =
        measured(|| batches.iter().map(|b| store.multi_get(std::hint::black_box(b))).collect::<Result<Vec<_>>>())?;
    batches.iter().zip(sums).try_for_each(|(batch, sum)| batch.check(&name, sum))?;
    Ok((cost.wall_ns(keys), cost.process_ns(keys)))
}

fn stores(bench: &StoreBench, keys: u64) -> Result<Vec<Held>> {
    // Twice the entries: blocks have keys, lengths and offsets besides.
    let cache_bytes = keys * super::keys::ENTRY_BYTES * 2 + (64 << 20);
    let caches = Caches::in_memory(cache_bytes, cache_bytes);
    let options = StateStoreOptions::default();
    let backend = Arc::new(InMemory::new());
    let ours = Millstream::new(&bench.runtimes, backend, caches, options, empty_tree()?, Pace::Never);
    let mut stores = vec![Held::new(Box::new(ours))];
    for cache_bytes in [cache_bytes, 0] {
        let (folder, how) = (memory_folder()?, RocksOptions { cache_bytes, manual: true });
        stores.extend(peers::rocksdb(bench, folder.path(), how)?.map(|s| Held::in_folder(s, folder)));
    }
    let how = SlateOptions { cache_bytes, sst_bytes: 8 << 30, compacts: false, gets_at_once: 1 };
    stores.extend(peers::slatedb(bench, Observed::new(Arc::new(InMemory::new())), how)?.map(Held::new));
    let folder = memory_folder()?;
    stores.extend(peers::fjall(bench, folder.path(), cache_bytes, 8 << 30)?.map(|s| Held::in_folder(s, folder)));
    Ok(stores)
}
