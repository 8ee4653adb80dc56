//! Drives an operator as a cluster would: several subtasks over a real state store in memory, batches cut anywhere, reads
//! that are answered late, evictions, early flushes, checkpoints, restores and rescales at random.
//!
//! It keeps a log of the rows as they were processed, each with the time up to which its key group had fired, so that a
//! test can work out by plain means what the operator must have emitted.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, TimestampMillisecondType, UInt8Type};
use arrow_array::{Array, ArrayRef, RecordBatch, UInt32Array};
use arrow_schema::DataType;
use arrow_select::take::take_record_batch;
use bytes::Bytes;
use millstream_common::{
    Env, Epoch, Execution, Generation, KEY_GROUPS, KeyGroupRange, KeyGroupRanges, StateId, TaskId,
};
use millstream_objects::{Store, StoreEnvironment, StoreOptions};
use millstream_state_store::Caches;
use millstream_state_store::compaction::{CompactionDone, CompactionOptions, CompactionOutcome, Pick, apply, pick};
use millstream_state_store::key::{KeyBuffer, encode_keys};
use millstream_state_store::section::{EncodedSection, Interval, SectionOptions, SectionWriter};
use millstream_state_store::{
    Layout, Layouts, MergeOperators, ReadTime, Run, StateLayout as StoredLayout, StateStore, StateStoreOptions, Tree,
    View, WriterName,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::EMIT_ROWS;
use crate::element::{TimestampMs, WATERMARK_MAX, WATERMARK_MIN};
use crate::operator::{Collector, KeyedBatch, Operator, Progress, SubtaskTime};
use crate::state::{StateLayout, TimeScan};
use crate::task::paging::{Overflow, of_prefix, scan_due, scan_maps};
use crate::task::slices::{Advance, Cut, Slices};

/// A value of a row, for comparison.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cell {
    Null,
    Int(i64),
    Text(String),
}

/// The rows of a batch.
pub(super) fn cells(batch: &RecordBatch) -> Vec<Vec<Cell>> {
    (0..batch.num_rows()).map(|row| batch.columns().iter().map(|c| cell(c, row)).collect()).collect()
}

fn cell(array: &ArrayRef, row: usize) -> Cell {
    if array.is_null(row) {
        return Cell::Null;
    }
    match array.data_type() {
        DataType::Int64 => Cell::Int(array.as_primitive::<Int64Type>().value(row)),
        DataType::Int32 => Cell::Int(array.as_primitive::<Int32Type>().value(row).into()),
        DataType::UInt8 => Cell::Int(array.as_primitive::<UInt8Type>().value(row).into()),
        DataType::Timestamp(..) => Cell::Int(array.as_primitive::<TimestampMillisecondType>().value(row)),
        DataType::Boolean => Cell::Int(array.as_boolean().value(row).into()),
        DataType::Utf8 => Cell::Text(array.as_string::<i32>().value(row).into()),
        other => panic!("no cell of {other}"),
    }
}

/// What comes in.
pub(super) enum Event {
    /// Rows for an input.
    Rows(usize, RecordBatch),
    Watermark(TimestampMs),
}

/// A row as it was processed.
#[derive(Clone, Debug)]
pub(super) struct Logged {
    pub(super) input: usize,
    pub(super) cells: Vec<Cell>,
    /// Up to where its key group had fired.
    pub(super) fired: TimestampMs,
    /// The clock of the machine.
    pub(super) wall: i64,
    /// Which release of the program processed it.
    pub(super) program: usize,
}

/// What a run has led to.
#[derive(Clone, Default)]
pub(super) struct Outcome {
    pub(super) log: Vec<Logged>,
    pub(super) output: Vec<Vec<Cell>>,
    pub(super) late: u64,
    /// Merge operands that were written.
    pub(super) operands: u64,
    /// Scans that brought more than they might, and slices that were cut beside them.
    pub(super) overflows: u64,
    pub(super) cuts: u64,
    /// Compactions that were run.
    pub(super) compactions: u64,
}

/// What a restore goes back to.
#[derive(Clone)]
struct Saved {
    at: usize,
    outcome: Outcome,
    runs: Vec<Arc<Run>>,
    fired: Vec<(KeyGroupRange, TimestampMs)>,
}

enum Item {
    Batch { input: usize, batch: KeyedBatch, reads: u64 },
    Watermark(TimestampMs),
}

struct Read {
    view: View,
    time: ReadTime,
    what: Asked,
}

enum Asked {
    Keys(Vec<Bytes>),
    /// All entries under these prefixes.
    Maps(Vec<Bytes>),
    Scan(usize, TimeScan),
}

struct Subtask {
    operator: Box<dyn Operator>,
    ranges: KeyGroupRanges,
    out: Collector,
    queue: VecDeque<Item>,
    reads: VecDeque<Read>,
    asked: u64,
    answered: u64,
    /// `advance` waits for this read.
    waits: u64,
    slices: Slices,
    overflows: Vec<Overflow>,
    view: View,
    own: Vec<Arc<Run>>,
    encoding: Option<(SectionWriter, Interval)>,
    /// Flushes on their way; `None`: nothing was in it.
    uploads: VecDeque<Option<EncodedSection>>,
    /// Merge operands in them.
    operands: u64,
    flush: u32,
}

/// One release of the program.
pub(super) struct Program {
    pub(super) make: Box<dyn Fn() -> Box<dyn Operator>>,
    /// What becomes of the rows before it reads them.
    pub(super) convert: fn(&RecordBatch) -> RecordBatch,
}

/// What a test gives.
pub(super) struct Setup {
    /// A restore may go on with the next one.
    pub(super) programs: Vec<Program>,
    /// By input.
    pub(super) key_columns: Vec<Vec<usize>>,
    pub(super) events: Vec<Event>,
}

struct Cluster<'a> {
    setup: &'a Setup,
    rng: SmallRng,
    runtime: tokio::runtime::Runtime,
    store: StateStore,
    layouts: Layouts,
    /// The table of states of the newest version.
    tree: Tree,
    program: usize,
    wall: i64,
    epoch: Epoch,
    subtasks: Vec<Subtask>,
    at: usize,
    saved: Saved,
    outcome: Outcome,
}

/// Runs `setup` once, at random from `seed`.
pub(super) fn run(seed: u64, setup: &Setup) -> Outcome {
    let mut cluster = Cluster::new(seed, setup);
    let mut restores = 0;
    while cluster.at < setup.events.len() || cluster.subtasks.iter().any(|s| !s.queue.is_empty()) {
        match cluster.rng.random_range(0..1_000) {
            0..400 => cluster.feed(),
            400..980 => cluster.step(),
            980..990 => cluster.checkpoint(),
            990..995 => cluster.rescale(),
            995..998 if restores < 4 + setup.programs.len() => {
                restores += 1;
                cluster.restore();
            }
            _ => {}
        }
    }
    for i in 0..cluster.subtasks.len() {
        cluster.subtasks[i].queue.push_back(Item::Watermark(WATERMARK_MAX));
    }
    cluster.drain();
    cluster.checkpoint();
    cluster.outcome
}

impl<'a> Cluster<'a> {
    fn new(seed: u64, setup: &'a Setup) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let store = runtime.block_on(async {
            let env = Env::test(seed);
            let objects = Store::open("memory://", &StoreOptions::default(), &StoreEnvironment::new(), &env).unwrap();
            let caches = Caches::in_memory(1 << 20, 1 << 20);
            StateStore::new(objects, caches, StateStoreOptions::default(), env, MergeOperators::default())
        });
        let parallelism = rng.random_range(1..4);
        let saved = Saved { at: 0, outcome: Outcome::default(), runs: Vec::new(), fired: Vec::new() };
        let mut cluster = Self {
            setup,
            rng,
            runtime,
            store,
            layouts: Layouts::default(),
            tree: Tree::default(),
            program: 0,
            wall: 1_000,
            epoch: Epoch(1),
            subtasks: Vec::new(),
            at: 0,
            saved,
            outcome: Outcome::default(),
        };
        cluster.open_all(parallelism);
        cluster
    }

    fn random_ranges(&mut self, parallelism: usize) -> Vec<KeyGroupRanges> {
        let mut cuts: Vec<u32> = (1..2 * parallelism).map(|_| self.rng.random_range(0..=KEY_GROUPS)).collect();
        cuts.extend([0, KEY_GROUPS]);
        cuts.sort_unstable();
        let pieces: Vec<_> = cuts.windows(2).map(|c| KeyGroupRange::new(c[0], c[1])).collect();
        (0..parallelism)
            .map(|i| pieces.iter().copied().skip(i).step_by(parallelism).collect::<KeyGroupRanges>())
            .collect()
    }

    /// New subtasks from what was saved.
    fn open_all(&mut self, parallelism: usize) {
        self.subtasks.clear();
        // The take-over of a leader with this program.
        let task = self.tree.add_task("task").unwrap();
        let mut operator = (self.setup.programs[self.program].make)();
        let mut described = Vec::new();
        for (i, state) in operator.states().into_iter().enumerate() {
            let d = state.descriptor();
            let layout = match d.layout {
                StateLayout::Point => Layout::Point,
                StateLayout::TimeOrdered => Layout::TimeOrdered,
                StateLayout::Map => Layout::Map,
            };
            let layout = StoredLayout { layout, merge_operator: d.merge_operator.clone() };
            let values = (&*d.value_schema, Some(d.schema(Vec::new())));
            self.tree.add_described_state(task, "task", &d.name, layout.clone(), values).unwrap();
            described.push((StateId(i as u16 + 3), d.name.clone(), layout));
        }
        let states = self.tree.states();
        let schemas = |name: &str| &states.iter().find(|s| s.name == name).unwrap().schemas[..];
        self.layouts = Layouts::described(described.iter().map(|(id, name, l)| (*id, l.clone(), schemas(name))));
        for ranges in self.random_ranges(parallelism) {
            let subtask = self.new_subtask(ranges);
            self.subtasks.push(subtask);
        }
    }

    fn time_of(&self, ranges: &KeyGroupRanges) -> SubtaskTime {
        let mut fired = Vec::new();
        for (range, time) in &self.saved.fired {
            fired.extend(ranges.intersect(&KeyGroupRanges::from(*range)).iter().map(|r| (*r, *time)));
        }
        SubtaskTime::of_ranges(fired)
    }

    fn new_subtask(&mut self, ranges: KeyGroupRanges) -> Subtask {
        let mut operator = (self.setup.programs[self.program].make)();
        let view = self.store.view(self.saved.runs.clone(), ranges.clone(), self.layouts.clone());
        for (i, state) in operator.states().into_iter().enumerate() {
            let id = StateId(i as u16 + 3);
            let known = self.tree.states().iter().find(|s| s.name == state.descriptor().name).unwrap();
            state.set_history(&known.schemas).unwrap();
            state.open(id, ranges.clone(), !view.may_hold(id, None) && self.rng.random_bool(0.7));
        }
        Subtask {
            operator,
            out: Collector::new(self.time_of(&ranges)),
            ranges,
            queue: VecDeque::new(),
            reads: VecDeque::new(),
            asked: 0,
            answered: 0,
            waits: 0,
            slices: Slices::default(),
            overflows: Vec::new(),
            view,
            own: Vec::new(),
            encoding: None,
            uploads: VecDeque::new(),
            operands: 0,
            flush: 0,
        }
    }

    fn feed(&mut self) {
        let Some(event) = self.setup.events.get(self.at) else { return };
        self.at += 1;
        match event {
            Event::Watermark(w) => {
                for s in &mut self.subtasks {
                    // A subtask may hear of a watermark late: then key groups have fired up to different times.
                    if self.rng.random_bool(0.8) {
                        s.queue.push_back(Item::Watermark(*w));
                    }
                }
            }
            Event::Rows(input, batch) => {
                let batch = &(self.setup.programs[self.program].convert)(batch);
                let keys = self.keys(*input, batch);
                for i in 0..self.subtasks.len() {
                    let mine = (0..keys.len()).filter(|&row| self.subtasks[i].ranges.contains(keys.group(row)));
                    let mine: UInt32Array = mine.map(|row| row as u32).collect();
                    let mine = take_record_batch(batch, &mine).unwrap();
                    let mut from = 0;
                    while from < mine.num_rows() {
                        let length = self.rng.random_range(1..=mine.num_rows() - from);
                        self.arrive(i, *input, mine.slice(from, length));
                        from += length;
                    }
                }
            }
        }
    }

    fn keys(&self, input: usize, batch: &RecordBatch) -> KeyBuffer {
        let columns: Vec<ArrayRef> = self.setup.key_columns[input].iter().map(|&c| batch.column(c).clone()).collect();
        let mut keys = KeyBuffer::default();
        encode_keys(&columns, &mut keys).unwrap();
        keys
    }

    fn arrive(&mut self, i: usize, input: usize, records: RecordBatch) {
        let batch = KeyedBatch { keys: self.keys(input, &records), records };
        let s = &mut self.subtasks[i];
        s.operator.name_reads(input, &batch).unwrap();
        s.operator.states().into_iter().for_each(|state| state.end_group());
        s.gather(self.wall);
        s.queue.push_back(Item::Batch { input, batch, reads: s.asked });
    }

    /// Something happens in a subtask.
    fn step(&mut self) {
        let i = self.rng.random_range(0..self.subtasks.len());
        self.wall += self.rng.random_range(0..3);
        match self.rng.random_range(0..20) {
            0..6 => self.answer(i),
            6..14 => self.process(i),
            14 => self.subtasks[i].freeze(self.epoch),
            15 => {
                let max = self.rng.random_range(1..30);
                self.subtasks[i].encode(max, &self.layouts);
            }
            16 => self.upload(i),
            _ => {
                let s = &mut self.subtasks[i];
                for state in s.operator.states() {
                    state.evict(state.memory_bytes() * self.rng.random_range(0..10) / 10);
                }
            }
        }
    }

    fn answer(&mut self, i: usize) {
        let s = &mut self.subtasks[i];
        let Some(Read { view, time, what }) = s.reads.pop_front() else { return };
        s.answered += 1;
        let mut states = s.operator.states();
        match what {
            Asked::Keys(keys) => {
                let (values, _) = self.runtime.block_on(view.multi_get(&keys, &time)).unwrap();
                for (key, value) in keys.iter().zip(values.iter()) {
                    let state = usize::from(u16::from_be_bytes([key[0], key[1]])) - 3;
                    states[state].install(key, value).unwrap();
                }
            }
            Asked::Maps(prefixes) => {
                let (entries, _) = self.runtime.block_on(scan_maps(&view, &prefixes, &time)).unwrap();
                for prefix in &prefixes {
                    let state = usize::from(u16::from_be_bytes([prefix[0], prefix[1]])) - 3;
                    states[state].install_map(prefix, of_prefix(&entries, prefix)).unwrap();
                }
            }
            Asked::Scan(state, scan) => {
                // At times there is room for a few entries only.
                let may_cut = s.slices.may_cut(&s.ranges) && self.rng.random_bool(0.5);
                let max_bytes = if may_cut { self.rng.random_range(1..700) } else { u64::MAX };
                let scan_due = scan_due(&view, StateId(state as u16 + 3), &scan, max_bytes, &time);
                let found = self.runtime.block_on(scan_due).unwrap();
                self.outcome.overflows += u64::from(found.cut.is_some());
                s.overflows.extend(found.install(state, &scan, &mut states).unwrap());
            }
        }
    }

    fn process(&mut self, i: usize) {
        let s = &mut self.subtasks[i];
        let time = s.out.time().clone();
        s.operator.states().into_iter().for_each(|state| state.set_clock(&time, self.wall));
        match s.queue.front() {
            None => {}
            Some(Item::Batch { reads, .. }) if *reads > s.answered => {}
            Some(Item::Batch { .. }) => {
                let Some(Item::Batch { input, batch, .. }) = s.queue.pop_front() else { return };
                for (row, cells) in cells(&batch.records).into_iter().enumerate() {
                    let fired = s.out.fired(batch.keys.group(row));
                    self.outcome.log.push(Logged { input, cells, fired, wall: self.wall, program: self.program });
                }
                s.operator.process(input, &batch, &mut s.out).unwrap();
                s.operator.states().into_iter().for_each(|state| state.release_group());
            }
            Some(&Item::Watermark(w)) => {
                if s.waits > s.answered {
                    return;
                }
                let (operator, overflows) = (s.operator.as_mut(), std::mem::take(&mut s.overflows));
                let of = Advance { all: &s.ranges, time: s.out.time(), watermark: w };
                s.slices.overflowed(overflows, operator, of).unwrap();
                let target = s.slices.target(w);
                let progress = if target > s.slices.fired(s.out.time()) {
                    s.operator.advance(target, &mut s.out).unwrap()
                } else {
                    Progress::Done
                };
                let cut_chance = s.cut_chance();
                let (operator, time) = (s.operator.as_mut(), s.out.time().clone());
                let of = Advance { all: &s.ranges, time: &time, watermark: w };
                match progress {
                    Progress::More => {}
                    Progress::NeedsState if s.slices.may_cut(&s.ranges) && self.rng.random_bool(cut_chance) => {
                        self.outcome.cuts += 1;
                        s.slices.cut(Cut::Parts, operator, of);
                    }
                    Progress::NeedsState => {
                        s.gather(self.wall);
                        s.scan(self.wall);
                        assert!(s.asked > s.answered, "it waits for nothing");
                        s.waits = s.asked;
                    }
                    Progress::Done => match s.slices.done(operator, of) {
                        Some(time) => s.out.set_time(time),
                        None => {
                            let mut time = s.out.time().clone();
                            time.advance(w);
                            s.out.set_time(time);
                            s.queue.pop_front();
                        }
                    },
                }
            }
        }
        for batch in s.out.take() {
            assert!(batch.num_rows() <= EMIT_ROWS);
            self.outcome.output.extend(cells(&batch));
        }
        let late = s.out.late_rows();
        self.outcome.late += late;
        // Counted anew from here.
        let time = s.out.time().clone();
        if late > 0 {
            s.out = Collector::new(time);
        }
    }

    fn upload(&mut self, i: usize) {
        let s = &mut self.subtasks[i];
        let Some(section) = s.uploads.pop_front() else { return };
        self.outcome.operands += std::mem::take(&mut s.operands);
        if let Some(section) = section {
            let writer = WriterName { generation: Generation(1), execution: Execution(1) };
            let runs = self.runtime.block_on(self.store.write_bundle(writer, vec![section])).unwrap();
            s.own.extend(runs.into_iter().map(Arc::new));
            let all = self.saved.runs.iter().chain(&s.own).cloned().collect();
            s.view = self.store.view(all, s.ranges.clone(), self.layouts.clone());
        }
        s.operator.states().into_iter().for_each(|state| state.flushed());
    }

    /// Everything that came in is processed.
    fn drain(&mut self) {
        for i in 0..self.subtasks.len() {
            while !self.subtasks[i].queue.is_empty() {
                self.answer(i);
                self.process(i);
            }
            while !self.subtasks[i].reads.is_empty() {
                self.answer(i);
            }
        }
    }

    fn checkpoint(&mut self) {
        self.drain();
        let mut fired = Vec::new();
        for i in 0..self.subtasks.len() {
            self.subtasks[i].finish_encoding(&self.layouts);
            self.subtasks[i].freeze(self.epoch);
            self.subtasks[i].finish_encoding(&self.layouts);
            while !self.subtasks[i].uploads.is_empty() {
                self.upload(i);
            }
            let s = &self.subtasks[i];
            match s.out.time().ranges() {
                [] => fired.extend(s.ranges.iter().map(|r| (*r, s.out.fired_min()))),
                ranges => fired.extend_from_slice(ranges),
            }
        }
        for s in &mut self.subtasks {
            self.saved.runs.append(&mut s.own);
            s.flush = 0;
        }
        self.epoch = self.epoch.next();
        self.saved.at = self.at;
        self.saved.fired = fired;
        if self.rng.random_bool(0.4) {
            self.compact();
        }
        self.saved.outcome = self.outcome.clone();
        for i in 0..self.subtasks.len() {
            let ranges = self.subtasks[i].ranges.clone();
            self.subtasks[i].view = self.store.view(self.saved.runs.clone(), ranges, self.layouts.clone());
        }
    }

    /// Merges some neighbours, as a worker does behind a checkpoint.
    fn compact(&mut self) {
        let options = CompactionOptions { trigger_runs: 2, ..CompactionOptions::default() };
        let Some(pick) = pick(&self.saved.runs, &KeyGroupRanges::all(), &options) else { return };
        let event_time_ms = self.saved.fired.iter().map(|f| f.1).min().unwrap_or(WATERMARK_MIN);
        let time = ReadTime { event_time_ms, processing_time_ms: self.wall };
        let writer = WriterName { generation: Generation(1), execution: Execution(1) };
        let merge = self.store.compact(&pick.inputs, &pick.ranges, &self.layouts, writer, pick.bottom, time);
        let outputs = self.runtime.block_on(merge).unwrap();
        let Pick { inputs, ranges, bottom } = pick;
        let done = CompactionDone { task: TaskId(1), inputs, ranges, bottom, outputs };
        match apply(&Tree::default().with_runs(self.saved.runs.clone()), &done) {
            CompactionOutcome::Applied(tree) => self.saved.runs = tree.runs().to_vec(),
            CompactionOutcome::Stale(why) => panic!("{why}"),
        }
        self.outcome.compactions += 1;
    }

    fn restore(&mut self) {
        self.at = self.saved.at;
        self.outcome = self.saved.outcome.clone();
        self.epoch = self.epoch.next();
        let parallelism = self.rng.random_range(1..5);
        if self.program + 1 < self.setup.programs.len() && self.rng.random_bool(0.7) {
            self.program += 1;
        }
        self.open_all(parallelism);
    }

    /// Moves ranges between subtasks that go on.
    fn rescale(&mut self) {
        self.checkpoint();
        let parallelism = self.rng.random_range(1..5);
        let ranges = self.random_ranges(parallelism);
        self.subtasks.truncate(parallelism);
        for (i, ranges) in ranges.into_iter().enumerate() {
            if i >= self.subtasks.len() {
                let subtask = self.new_subtask(ranges);
                self.subtasks.push(subtask);
                continue;
            }
            let time = self.time_of(&ranges);
            let view = self.store.view(self.saved.runs.clone(), ranges.clone(), self.layouts.clone());
            let s = &mut self.subtasks[i];
            let gained = !s.ranges.covers(&ranges);
            for (i, state) in s.operator.states().into_iter().enumerate() {
                state.retain(&ranges, gained);
                if gained {
                    state.open(StateId(i as u16 + 3), ranges.clone(), false);
                    state.retain(&ranges, true);
                }
            }
            s.out.set_time(time);
            s.ranges = ranges;
            s.view = view;
        }
    }
}

impl Subtask {
    /// A part is seldom cut again.
    fn cut_chance(&self) -> f64 {
        if self.slices.present(&self.ranges) == &self.ranges { 0.03 } else { 0.002 }
    }

    fn read(&mut self, what: Asked, wall: i64) {
        let time = ReadTime { event_time_ms: self.out.fired_min(), processing_time_ms: wall };
        let view = match what {
            Asked::Scan(..) => self.view.within(self.slices.present(&self.ranges)),
            _ => self.view.clone(),
        };
        self.reads.push_back(Read { view, time, what });
        self.asked += 1;
    }

    fn gather(&mut self, wall: i64) {
        let mut missing = Vec::new();
        self.operator.states().into_iter().for_each(|state| state.take_missing(&mut missing));
        if !missing.is_empty() {
            self.read(Asked::Keys(missing), wall);
        }
        let mut prefixes = Vec::new();
        self.operator.states().into_iter().for_each(|state| state.take_missing_maps(&mut prefixes));
        if !prefixes.is_empty() {
            self.read(Asked::Maps(prefixes), wall);
        }
    }

    fn scan(&mut self, wall: i64) {
        let scans: Vec<_> = self.operator.states().into_iter().map(|state| state.take_scan()).enumerate().collect();
        for (state, scan) in scans {
            if let Some(scan) = scan {
                self.read(Asked::Scan(state, scan), wall);
            }
        }
    }

    fn freeze(&mut self, epoch: Epoch) {
        if self.encoding.is_some() {
            return;
        }
        for state in self.operator.states() {
            state.freeze();
        }
        self.encoding = Some((SectionWriter::new(TaskId(1)), Interval::of(epoch, self.flush)));
        self.flush += 1;
    }

    fn encode(&mut self, max: usize, layouts: &Layouts) {
        let Some((section, _)) = &mut self.encoding else { return };
        for state in self.operator.states() {
            if !state.encode_frozen(max, section).unwrap() {
                return;
            }
        }
        let Some((section, interval)) = self.encoding.take() else { return };
        self.operands += section.operands() as u64;
        let encoded = (!section.is_empty())
            .then(|| section.encode(&SectionOptions::default(), layouts, self.ranges.clone(), interval).unwrap());
        self.uploads.push_back(encoded);
    }

    fn finish_encoding(&mut self, layouts: &Layouts) {
        while self.encoding.is_some() {
            self.encode(1_000, layouts);
        }
    }
}
