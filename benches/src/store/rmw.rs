//! Read-modify-write of resident keys: naming, taking, changing, releasing, batch by batch, as a keyed task does it.
//!
//! The keys of a batch are encoded and hashed before, as the task does for its operator. Every 64 batches everything dirty
//! is frozen, encoded and flushed, outside of what is measured. A hash map with the same values is the limit: it has no
//! dirty marks, no pins, no eviction.

use millstream_common::collections::HashMap;
use millstream_common::{KeyGroupRanges, Result};
use millstream_engine::state::{KeyedState, StateSet};
use millstream_state_store::SectionWriter;
use millstream_state_store::key::KeyBuffer;

use super::args::RmwArgs;
use super::keys::{BATCH, Batch, Entries, Key, Random, STATE, Values};
use super::measure::{Cost, measured};
use super::ours::TASK;
use super::peers::{self, RocksOptions};
use super::row::{Row, key_buffer};
use super::{Held, StoreBench, memory_folder, nanoseconds, times};
use crate::note;
use crate::table::Table;

/// Batches between two checkpoints.
const BATCHES_A_CHECKPOINT: usize = 64;

fn bar_ns(keys: u64) -> &'static str {
    match keys {
        10_000 => "30",
        10_000_000 => "120",
        _ => "-",
    }
}

/// Something whose values are read, changed and written.
trait Changing {
    fn name(&self) -> String;
    fn change(&mut self, batch: &ChangeBatch) -> Result<()>;
    /// What is done between two checkpoints, not measured.
    fn checkpoint(&mut self) -> Result<()>;
}

/// The keys of a batch in the forms that stores ask for.
struct ChangeBatch {
    batch: Batch,
    entries: Entries,
    buffer: KeyBuffer,
}

impl ChangeBatch {
    fn of(ids: impl Iterator<Item = u64>) -> Result<Self> {
        let batch = Batch::of(ids.collect(), |_| None);
        let entries = Entries::of(batch.ids.iter().copied(), 1, Values { compressible: false });
        let buffer = key_buffer(&batch.keys)?;
        Ok(Self { batch, entries, buffer })
    }
}

struct Working(KeyedState<Row>);

impl Working {
    fn new() -> Self {
        let mut state = KeyedState::new("values", "100 bytes");
        state.open(STATE, KeyGroupRanges::all(), true);
        Self(state)
    }
}

impl Changing for Working {
    fn name(&self) -> String {
        "Millstream's working set".to_owned()
    }

    fn change(&mut self, batch: &ChangeBatch) -> Result<()> {
        let state = &mut self.0;
        state.name_batch(&batch.buffer);
        state.end_group();
        let rows = state.take_rows()?;
        for &slot in &rows.slots {
            state.update(slot, || Row([0; super::keys::VALUE_BYTES]), Row::count);
        }
        state.give_back(rows);
        state.release_group();
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<()> {
        let mut section = SectionWriter::new(TASK);
        self.0.freeze();
        while !self.0.encode_frozen(BATCH, &mut section)? {}
        self.0.flushed();
        Ok(())
    }
}

struct Map(HashMap<Key, Row>);

impl Changing for Map {
    fn name(&self) -> String {
        "a hash map".to_owned()
    }

    fn change(&mut self, batch: &ChangeBatch) -> Result<()> {
        for key in &batch.batch.keys {
            self.0.entry(*key).or_insert(Row([0; super::keys::VALUE_BYTES])).count();
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A store that is asked for the keys and then written: what it answers does not decide what is written.
struct Stored(Held);

impl Changing for Stored {
    fn name(&self) -> String {
        format!("{}, WAL off", self.0.store.name())
    }

    fn change(&mut self, batch: &ChangeBatch) -> Result<()> {
        std::hint::black_box(self.0.store.multi_get(&batch.batch)?);
        self.0.store.write(&batch.entries)
    }

    fn checkpoint(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Runs it.
pub fn run(bench: &StoreBench, args: &RmwArgs) -> Result<()> {
    let mut table = Table::new(&["keys", "what", "ns a key", "cpu ns a key", "bar ns", "cpu: times ours"]);
    for &keys in &args.keys {
        let (names, walls, cpus) = measure_keys(bench, args, keys)?;
        for (i, name) in names.iter().enumerate() {
            let (wall, cpu) = (nanoseconds(&walls[i]), nanoseconds(&cpus[i]));
            let bar = bar_ns(keys).to_owned();
            table.row(vec![keys.to_string(), name.clone(), wall, cpu, bar, times(&cpus[i], &cpus[0])]);
        }
    }
    let title = format!("rmw: read-modify-write of resident keys, batches of {BATCH} random keys");
    bench.print(&title, &table);
    Ok(())
}

type Measured = (Vec<String>, Vec<Vec<f64>>, Vec<Vec<f64>>);

fn measure_keys(bench: &StoreBench, args: &RmwArgs, keys: u64) -> Result<Measured> {
    let mut all: Vec<Box<dyn Changing>> = vec![Box::new(Working::new()), Box::new(Map(HashMap::default()))];
    let cache_bytes = keys * super::keys::ENTRY_BYTES * 2 + (64 << 20);
    let (folder, how) = (memory_folder()?, RocksOptions { cache_bytes, manual: false });
    if let Some(store) = peers::rocksdb(bench, folder.path(), how)? {
        all.push(Box::new(Stored(Held::in_folder(store, folder))));
    }
    for one in &mut all {
        note(&format!("rmw: {keys} keys into {}", one.name()));
        for from in (0..keys).step_by(BATCH) {
            one.change(&ChangeBatch::of(from..(from + BATCH as u64).min(keys))?)?;
            if (from / BATCH as u64).is_multiple_of(BATCHES_A_CHECKPOINT as u64) {
                one.checkpoint()?;
            }
        }
        one.checkpoint()?;
    }
    let mut random = Random::new(keys);
    let (mut walls, mut cpus) = (vec![Vec::new(); all.len()], vec![Vec::new(); all.len()]);
    for _ in 0..bench.runs {
        let batches: Vec<ChangeBatch> = (0..args.batches)
            .map(|_| ChangeBatch::of((0..BATCH).map(|_| random.below(keys)).collect::<Vec<_>>().into_iter()))
            .collect::<Result<_>>()?;
        for (i, one) in all.iter_mut().enumerate() {
            let mut cost = Cost::default();
            for some in batches.chunks(BATCHES_A_CHECKPOINT) {
                cost += measured(|| some.iter().try_for_each(|b| one.change(std::hint::black_box(b))))?.1;
                one.checkpoint()?;
            }
            let count = u64::from(args.batches) * BATCH as u64;
            walls[i].push(cost.wall_ns(count));
            cpus[i].push(cost.thread_ns(count));
        }
    }
    Ok((all.iter().map(|o| o.name()).collect(), walls, cpus))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_working_set_counts_as_a_map_does() {
        let (mut working, mut map) = (Working::new(), Map(HashMap::default()));
        let mut random = Random::new(1);
        for i in 0..20 {
            let ids: Vec<u64> = (0..BATCH).map(|_| random.below(1_000)).collect();
            let batch = ChangeBatch::of(ids.into_iter()).unwrap();
            working.change(&batch).unwrap();
            map.change(&batch).unwrap();
            if i % 7 == 0 {
                working.checkpoint().unwrap();
            }
        }
        let batch = ChangeBatch::of(0..1_000).unwrap();
        working.0.name_batch(&batch.buffer);
        let rows = working.0.take_rows().unwrap();
        for (key, &slot) in batch.batch.keys.iter().zip(&rows.slots) {
            assert_eq!(working.0.get(slot), map.0.get(key));
        }
    }
}
