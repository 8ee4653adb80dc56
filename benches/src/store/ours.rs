//! Millstream's state store as a contender, through its public interface alone.
//!
//! One subtask owns all key groups. A flush is a bundle of one section. Compactions are picked and applied by the functions
//! that a worker uses, one at a time as there; here they run between flushes, and [`Pace`] says after how many flushes
//! what one wrote is listed. What is no longer live is deleted: nobody else reads it.

use std::sync::Arc;

use bytes::Bytes;
use millstream_common::env::Runtimes;
use millstream_common::{Env, Epoch, Error, Execution, Generation, KeyGroupRanges, Result, TaskId};
use millstream_objects::object_store::ObjectStore;
use millstream_objects::{Purpose, Store, StoreOptions};
use millstream_state_store::Caches;
use millstream_state_store::compaction::{CompactionDone, CompactionOutcome, Pick, apply, pick};
use millstream_state_store::{
    Interval, Layout, MergeOperators, ReadReport, ReadTime, Run, SectionWriter, StateLayout, StateStore,
    StateStoreOptions, Tree, View, WriterName,
};

use super::contender::{Contender, Counters};
use super::keys::{Batch, Entries, STATE, Sum, store_key};
use super::observed::Observed;

/// Who writes.
pub const WRITER: WriterName = WriterName { generation: Generation(1), execution: Execution(1) };
/// The one task.
pub const TASK: TaskId = TaskId(0);

/// When compactions run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Never.
    Never,
    /// As a worker does: one at a time, each picked from the newest version. From one flush to the next it merges so many
    /// bytes of its inputs; when it has merged all, it is listed.
    BytesPerFlush(u64),
}

/// A compaction that has run and is not listed yet.
struct Waiting {
    pick: Pick,
    outputs: Vec<Run>,
    flushes: u64,
}

/// A state store, what is live in it, and a view of that.
pub struct Millstream {
    runtimes: Arc<Runtimes>,
    states: StateStore,
    observed: Observed,
    tree: Tree,
    writer: SectionWriter,
    epoch: u64,
    view: View,
    pace: Pace,
    waiting: Option<Waiting>,
    flushed: u64,
    /// What the last reads cost.
    pub last_report: ReadReport,
}

/// A tree with the one task and its one state.
pub fn empty_tree() -> Result<Tree> {
    let mut tree = Tree::default();
    let task = tree.add_task("task")?;
    let layout = StateLayout { layout: Layout::Point, merge_operator: String::new() };
    let state = tree.add_state(task, "operator", "values", layout, "100 bytes")?;
    if (task, state) == (TASK, STATE) { Ok(tree) } else { Err(Error::internal("the first ids are not 0")) }
}

/// A place on `backend`.
pub fn store_on(backend: Arc<dyn ObjectStore>, env: &Env) -> Store {
    Store::from_backend(backend, "bench://", &StoreOptions::default(), env)
}

impl Millstream {
    /// On `backend`, with `tree` live.
    pub fn new(
        runtimes: &Arc<Runtimes>,
        backend: Arc<dyn ObjectStore>,
        caches: Caches,
        options: StateStoreOptions,
        tree: Tree,
        pace: Pace,
    ) -> Self {
        let (observed, env) = (Observed::new(backend), runtimes.env());
        let store = store_on(Arc::new(observed.clone()), &env);
        let states = StateStore::new(store, caches, options, env, MergeOperators::default());
        let epoch = tree.runs().iter().map(|r| r.interval.max.epoch.0).max().unwrap_or(0) + 1;
        let view = states.view(tree.runs().to_vec(), KeyGroupRanges::all(), tree.layouts());
        let writer = SectionWriter::new(TASK);
        Self {
            runtimes: runtimes.clone(),
            states,
            observed,
            tree,
            writer,
            epoch,
            view,
            pace,
            waiting: None,
            flushed: 0,
            last_report: ReadReport::default(),
        }
    }

    /// The state store.
    #[must_use]
    pub fn states(&self) -> &StateStore {
        &self.states
    }

    /// The account of its object store.
    #[must_use]
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// What is live.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// A view of all of it.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The threads that it runs on.
    #[must_use]
    pub fn runtimes(&self) -> &Arc<Runtimes> {
        &self.runtimes
    }

    /// The most runs that a key group has.
    #[must_use]
    pub fn runs_per_group(&self) -> usize {
        let runs = self.tree.runs();
        // The number rises only where a clip begins.
        let starts = runs.iter().flat_map(|r| r.clip.iter().map(|c| c.start as u16));
        let live = |g: u16| runs.iter().filter(|r| r.clip.contains(millstream_common::KeyGroup(g))).count();
        starts.map(live).max().unwrap_or(0)
    }

    /// Reads keys that are given as store keys; counts what came.
    pub fn read(&mut self, keys: &[Bytes]) -> Result<Sum> {
        let (values, report) = self.runtimes.block_on(self.view.multi_get(keys, &ReadTime::START))?;
        self.last_report = report;
        let mut sum = Sum::default();
        values.iter().flatten().for_each(|value| sum.add(value));
        Ok(sum)
    }

    fn set_tree(&mut self, tree: Tree) -> Result<()> {
        let live = |run: &Run| tree.runs().iter().any(|r| r.identity() == run.identity());
        let dead: Vec<Arc<Run>> = self.tree.runs().iter().filter(|r| !live(r)).cloned().collect();
        for run in dead {
            self.states.forget(&run);
            // The bundles here have one section each.
            let store = store_on(Arc::new(self.observed.clone()), &self.runtimes.env());
            self.runtimes.block_on(store.delete(&run.path(), Purpose::Compaction))?;
        }
        self.tree = tree;
        self.view = self.states.view(self.tree.runs().to_vec(), KeyGroupRanges::all(), self.tree.layouts());
        Ok(())
    }

    fn compact(&self, pick: &Pick) -> Result<Vec<Run>> {
        let layouts = self.tree.layouts();
        let Pick { inputs, ranges, bottom } = pick;
        self.runtimes.block_on(self.states.compact(inputs, ranges, &layouts, WRITER, *bottom, ReadTime::START))
    }

    fn list(&mut self, pick: Pick, outputs: Vec<Run>) -> Result<()> {
        let Pick { inputs, ranges, bottom } = pick;
        let done = CompactionDone { task: TASK, inputs, ranges, bottom, outputs };
        match apply(&self.tree, &done) {
            CompactionOutcome::Applied(tree) => self.set_tree(tree),
            CompactionOutcome::Stale(why) => Err(Error::internal(format!("a compaction was stale: {why}"))),
        }
    }

    /// A view of what a full compaction makes of the state. What is live stays as it is.
    pub fn merged_view(&mut self) -> Result<View> {
        if let Some(waiting) = self.waiting.take() {
            self.list(waiting.pick, waiting.outputs)?;
        }
        let inputs = self.tree.runs().to_vec();
        let outputs = self.compact(&Pick { inputs, ranges: KeyGroupRanges::all(), bottom: true })?;
        let runs = outputs.into_iter().map(Arc::new).collect();
        Ok(self.states.view(runs, KeyGroupRanges::all(), self.tree.layouts()))
    }

    /// One step of compactions, behind a flush.
    fn compact_at_pace(&mut self) -> Result<()> {
        let Pace::BytesPerFlush(bytes) = self.pace else { return Ok(()) };
        match self.waiting.take() {
            Some(waiting) if waiting.flushes > 1 => {
                self.waiting = Some(Waiting { flushes: waiting.flushes - 1, ..waiting });
                return Ok(());
            }
            Some(waiting) => self.list(waiting.pick, waiting.outputs)?,
            None => {}
        }
        let options = &self.states.options().compaction;
        if let Some(pick) = pick(self.tree.runs(), &KeyGroupRanges::all(), options) {
            let merged: u64 = pick.inputs.iter().map(|r| r.length).sum();
            let outputs = self.compact(&pick)?;
            self.waiting = Some(Waiting { pick, outputs, flushes: merged.div_ceil(bytes.max(1)).max(1) });
        }
        Ok(())
    }
}

impl Contender for Millstream {
    fn name(&self) -> String {
        "Millstream".to_owned()
    }

    fn write(&mut self, entries: &Entries) -> Result<()> {
        for (key, value) in entries.keys.iter().zip(&entries.values) {
            self.writer.put(&store_key(key), value, millstream_state_store::Expiry::Never);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let writer = std::mem::replace(&mut self.writer, SectionWriter::new(TASK));
        if !writer.is_empty() {
            let (options, interval) = (self.states.section_options(0), Interval::of(Epoch(self.epoch), 0));
            let section = writer.encode(&options, &self.tree.layouts(), KeyGroupRanges::all(), interval)?;
            self.flushed += section.encoded_bytes();
            self.epoch += 1;
            let runs = self.runtimes.block_on(self.states.write_bundle(WRITER, vec![section]))?;
            let mut tree = self.tree.clone();
            tree.add_runs(runs.into_iter().map(Arc::new));
            self.set_tree(tree)?;
        }
        self.compact_at_pace()
    }

    fn settle(&mut self) -> Result<()> {
        if let Some(waiting) = self.waiting.take() {
            self.list(waiting.pick, waiting.outputs)?;
        }
        let inputs = self.tree.runs().to_vec();
        let pick = Pick { inputs, ranges: KeyGroupRanges::all(), bottom: true };
        let outputs = self.compact(&pick)?;
        self.list(pick, outputs)
    }

    fn multi_get(&mut self, batch: &Batch) -> Result<Sum> {
        self.read(&batch.store_keys)
    }

    fn counters(&self) -> Result<Counters> {
        let written = self.observed.requests().put_bytes;
        Ok(Counters { written, flushed: self.flushed, ..Counters::default() })
    }
}

#[cfg(test)]
mod tests {
    use millstream_objects::object_store::memory::InMemory;

    use super::super::keys::Values;
    use super::*;

    #[test]
    fn it_reads_what_was_written_through_flushes_and_compactions() {
        let runtimes = Arc::new(Runtimes::start(1).unwrap());
        let caches = Caches::in_memory(64 << 20, 8 << 20);
        let (options, tree) = (StateStoreOptions::default(), empty_tree().unwrap());
        let pace = Pace::BytesPerFlush(100_000);
        let mut ours = Millstream::new(&runtimes, Arc::new(InMemory::new()), caches, options, tree, pace);
        let values = Values { compressible: false };
        for epoch in 0..30 {
            ours.write(&Entries::of((0..1_000).filter(|id| epoch == 0 || id % 7 == epoch % 7), epoch, values)).unwrap();
            ours.flush().unwrap();
        }
        // The last epoch at or below 29 that wrote the id.
        let version = |id: u64| (id < 1_000).then(|| (1..30).rev().find(|e| e % 7 == id % 7).unwrap_or(0));
        let batch = Batch::of((0..1_100).collect(), version);
        batch.check("ours", ours.multi_get(&batch).unwrap()).unwrap();
        assert!(ours.runs_per_group() > 1);
        let written = ours.counters().unwrap();
        assert!(written.written > written.flushed && written.flushed > 100_000, "{written:?}");
        ours.settle().unwrap();
        assert_eq!(ours.runs_per_group(), 1);
        batch.check("ours", ours.multi_get(&batch).unwrap()).unwrap();
    }
}
