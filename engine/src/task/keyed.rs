//! A keyed subtask: reads its channels, names and pages in what batches need, processes them in arrival order, closes
//! epochs.
//!
//! Order of events for a batch: it arrives, its keys are encoded, the operator names what it reads (pins), the missing
//! keys go to [`Paging`]; it waits in the queue until all before it are processed and its keys are resident. Barriers
//! and watermarks wait in the same queue. A barrier freezes the state in O(1); the frozen entries are encoded in
//! slices between later batches and handed to the worker, which writes them. Several flushes may wait for that: nothing
//! is ever encoded in one go.
//!
//! Behind a rescale barrier a subtask that gained key groups processes nothing until the version of that epoch is
//! committed; one that lost some goes on with its rows and forgets what it lost as soon as that is encoded (its watermark
//! waits until then); one that leaves, or goes on on another worker, hands over its last epoch and ends.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow_array::{ArrayRef, RecordBatch};
use futures::FutureExt;
use millstream_common::env::Moment;
use millstream_common::planted::bug_is_planted;
use millstream_common::{AssignmentId, Env, Epoch, Error, KeyGroupRanges, Result, StateId, TaskId};
use millstream_state_store::key::{KeyBuffer, encode_keys};
use millstream_state_store::section::{Interval, SectionWriter};
use millstream_state_store::tree::runs_per_key_group_max;
use millstream_state_store::{Layouts, Run, StateStore};
use tokio::sync::mpsc;

use super::chain::Chain;
use super::gate::{GateEvent, InputChannel, InputGate};
use super::output::TimeSignal;
use super::pace::{Pace, Slowdown};
use super::paging::Paging;
use super::slices::{Advance, Cut, Slices};
use super::{
    EpochClosed, PUBLISH_INTERVAL, PendingSection, Preparation, SubtaskId, TaskControl, TaskEvent, TaskMetrics,
    VersionView,
};
use crate::element::{Barrier, BarrierKind, TimestampMs, WATERMARK_MIN};
use crate::operator::{KeyedBatch, Progress, SubtaskTime};

/// Rows that may wait in the queue of a subtask, however fast it is.
const QUEUE_ROWS: usize = 65_536;
/// Rows that may wait there as long as nobody knows how fast it is: its state may be cold.
const QUEUE_ROWS_FIRST: usize = 1_024;
/// Rows that may wait there, however slow it is: enough for reads that take 100 ms to be on their way together at 5,000 rows a
/// second. (A subtask that is given fewer the longer its reads take would come to a standstill.)
const QUEUE_ROWS_MIN: usize = 512;
/// Batches that may wait in the queue of a subtask.
const QUEUE_ITEMS: usize = 256;
/// So many scans for what is due fit into the memory for that.
const SCANS_IN_MEMORY: u64 = 4;
/// Frozen entries that are encoded between two batches.
pub const ENCODE_SLICE: usize = 2_048;
/// So long the first rows behind a rescale are waited for, before nothing to do counts as serving.
const FIRST_ROWS: Duration = Duration::from_millis(100);

/// How much a subtask may hold.
#[derive(Clone, Copy, Debug)]
pub struct TaskMemory {
    /// Clean rows, bytes.
    pub rows_bytes: u64,
    /// Changed entries; above it they are flushed before the barrier.
    pub write_buffer_bytes: u64,
    /// Values that were asked of the store and are not resident yet, bytes (about).
    pub reads_bytes: u64,
    /// Rows that are kept resident to be fired, bytes: with more of them, key groups fire one part after the other.
    pub due_bytes: u64,
}

/// What a keyed subtask is made from.
pub(crate) struct KeyedTaskParts {
    pub(crate) env: Env,
    pub(crate) id: SubtaskId,
    pub(crate) task: TaskId,
    pub(crate) state_ids: Vec<StateId>,
    pub(crate) key_columns: Vec<Vec<usize>>,
    pub(crate) chain: Chain,
    pub(crate) channels: Vec<InputChannel>,
    pub(crate) store: StateStore,
    pub(crate) memory: TaskMemory,
    pub(crate) control: mpsc::Receiver<TaskControl>,
    pub(crate) events: mpsc::Sender<TaskEvent>,
    pub(crate) metrics: Arc<TaskMetrics>,
    /// The epoch that the first barrier closes.
    pub(crate) epoch: Epoch,
    pub(crate) start: Start,
}

/// What a subtask starts from.
pub(crate) enum Start {
    /// This version.
    From(Arc<VersionView>),
    /// The version that will carry this assignment.
    When(AssignmentId),
}

enum Item {
    Batch { input: usize, batch: KeyedBatch, read: Option<u64> },
    Watermark(TimestampMs),
    Idle,
    Barrier(Barrier),
}

/// A frozen flush that is being encoded.
struct Encoding {
    section: SectionWriter,
    /// Its states before this one are encoded.
    state: usize,
    interval: Interval,
    ranges: KeyGroupRanges,
    /// With the barrier's flush: what to hand over with it.
    closed: Option<Box<EpochClosed>>,
}

/// It has opened what it gained in an assignment, and processed no row since.
struct Opened {
    assignment: AssignmentId,
    at: Moment,
    /// Since when it had processed nothing.
    stood_since: Moment,
}

pub(crate) struct KeyedTask {
    env: Env,
    id: SubtaskId,
    task: TaskId,
    state_ids: Vec<StateId>,
    key_columns: Vec<Vec<usize>>,
    chain: Chain,
    gate: InputGate,
    paging: Paging,
    memory: TaskMemory,
    control: mpsc::Receiver<TaskControl>,
    events: mpsc::Sender<TaskEvent>,
    metrics: Arc<TaskMetrics>,
    queue: VecDeque<Item>,
    queued_rows: usize,
    pace: Pace,
    /// Whether a state has a TTL: then states are told what time it is.
    keeps_time: bool,
    epoch: Epoch,
    flush: u32,
    ranges: KeyGroupRanges,
    time: SubtaskTime,
    layouts: Layouts,
    version_runs: Vec<Arc<Run>>,
    own: Vec<Arc<Run>>,
    /// Flushes that the store does not hold yet, oldest first: whether there is a section to be written.
    handed_over: VecDeque<bool>,
    /// Frozen flushes that are not encoded in whole, oldest first.
    encodings: VecDeque<Encoding>,
    /// What it lost is to be forgotten once all that is encoded: it keeps these.
    shrinking: Option<KeyGroupRanges>,
    advancing: Option<u64>,
    /// Of key groups, while what is due does not fire all at once.
    slices: Slices,
    /// What scans have brought since it was looked at how much is due; all of it when that was not.
    due_unseen_bytes: u64,
    waiting: Option<AssignmentId>,
    /// This instance leaves with the barrier of the next assignment.
    leaves: bool,
    /// Since when a barrier that changes or ends the stream has kept rows back.
    waiting_since: Option<Moment>,
    /// What it starts from, until it has begun.
    begins_with: Option<Arc<VersionView>>,
    /// Since when it has had nothing to do but wait for the rest of a barrier.
    aligning_since: Option<Moment>,
    opened: Option<Opened>,
    last_rows: Moment,
    /// Beyond so many runs it is slowed down.
    runs_max: usize,
    /// How many runs of the version a read of a key looks into at most: what compactions can do something about.
    runs_to_merge: usize,
    slowdown: Slowdown,
    ended: bool,
    published: Moment,
}

/// Runs the subtask until its control queue closes or it fails.
pub(crate) async fn run(parts: KeyedTaskParts) {
    let (events, subtask) = (parts.events.clone(), parts.id);
    let mut task = KeyedTask::new(parts);
    if let Err(error) = task.run().await {
        // A worker that is gone wants no event.
        let _ = events.send(TaskEvent::Failed { subtask, error }).await;
    }
}

impl KeyedTask {
    fn new(mut p: KeyedTaskParts) -> Self {
        let keeps_time = p.chain.head().operator.states().into_iter().any(|s| s.descriptor().ttl.is_some());
        let runs_max = p.store.options().compaction.runs_max();
        let view = p.store.view(Vec::new(), KeyGroupRanges::empty(), Layouts::default());
        let waiting = match &p.start {
            Start::When(id) => Some(*id),
            Start::From(_) => None,
        };
        let mut task = Self {
            paging: Paging::new(
                p.env.clone(),
                p.store,
                p.state_ids.clone(),
                view,
                p.memory.reads_bytes,
                p.metrics.clone(),
            ),
            gate: InputGate::new(p.channels, WATERMARK_MIN),
            env: p.env,
            id: p.id,
            task: p.task,
            state_ids: p.state_ids,
            key_columns: p.key_columns,
            chain: p.chain,
            memory: p.memory,
            control: p.control,
            events: p.events,
            metrics: p.metrics,
            queue: VecDeque::new(),
            queued_rows: 0,
            pace: Pace::default(),
            keeps_time,
            epoch: p.epoch,
            flush: 0,
            ranges: KeyGroupRanges::empty(),
            time: SubtaskTime::default(),
            layouts: Layouts::default(),
            version_runs: Vec::new(),
            own: Vec::new(),
            handed_over: VecDeque::new(),
            encodings: VecDeque::new(),
            shrinking: None,
            advancing: None,
            slices: Slices::default(),
            due_unseen_bytes: u64::MAX,
            waiting,
            leaves: false,
            waiting_since: None,
            begins_with: None,
            aligning_since: None,
            opened: None,
            last_rows: Moment::default(),
            runs_max,
            runs_to_merge: 0,
            slowdown: Slowdown::default(),
            ended: false,
            published: Moment::default(),
        };
        if let Start::From(version) = p.start {
            task.start_from(&version);
            task.begins_with = Some(version);
        }
        task
    }

    async fn run(&mut self) -> Result<()> {
        if let Some(version) = self.begins_with.take() {
            self.chain.on_version(&version).await?;
        }
        loop {
            while let Ok(control) = self.control.try_recv() {
                self.on_control(control).await?;
            }
            if self.paging.is_reading() {
                let node = &mut self.chain.nodes[0];
                if let Some(done) = self.paging.next(node.operator.as_mut(), &self.time).now_or_never() {
                    done?;
                }
            }
            if self.step().await? {
                self.chain.flush_due().await?;
                self.publish_due();
                continue;
            }
            if self.accepts()
                && let Some(event) = self.gate.next().now_or_never()
            {
                self.accept(event?)?;
                continue;
            }
            self.chain.flush().await?;
            self.publish();
            if !self.wait().await? {
                return Ok(());
            }
        }
    }

    /// Waits for anything; false when the worker has let go of this subtask.
    async fn wait(&mut self) -> Result<bool> {
        let start = self.env.now();
        if self.gate.is_aligning() {
            self.aligning_since.get_or_insert(start);
        }
        let left = self.opened.as_ref().map(|o| FIRST_ROWS.saturating_sub(start.since(o.at)));
        let left = left.filter(|_| self.queue.is_empty());
        let pause = self.slowdown.left(start);
        if left == Some(Duration::ZERO) {
            // It serves, only there is nothing to be served.
            self.say_serving(false).await?;
        }
        let (accepts, reading) = (self.accepts(), self.paging.is_reading());
        let needs_state = reading && !self.queue.is_empty();
        let node = &mut self.chain.nodes[0];
        let mut event = None;
        let mut control = None;
        millstream_common::select! {
            c = self.control.recv() => match c {
                Some(c) => control = Some(c),
                None => return Ok(false),
            },
            done = self.paging.next(node.operator.as_mut(), &self.time), if reading => done?,
            e = self.gate.next(), if accepts => event = Some(e?),
            () = async { self.env.sleep(pause.unwrap_or_default()).await }, if pause.is_some() => {}
            () = async { self.env.sleep(left.unwrap_or_default()).await }, if left.is_some_and(|l| !l.is_zero()) => {}
        }
        let waited = self.env.now().since(start).as_nanos() as u64;
        if needs_state {
            TaskMetrics::add(&self.metrics.state_wait_ns, waited);
        }
        if let Some(pause) = pause {
            TaskMetrics::add(&self.metrics.merge_wait_ns, waited.min(pause.as_nanos() as u64));
        }
        if let Some(c) = control {
            self.on_control(c).await?;
        }
        if let Some(e) = event {
            self.accept(e)?;
        }
        Ok(true)
    }

    fn accepts(&self) -> bool {
        !self.ended
            && self.waiting.is_none()
            && self.queue.len() < QUEUE_ITEMS
            && self.queued_rows < self.pace.room(QUEUE_ROWS_MIN, QUEUE_ROWS_FIRST, QUEUE_ROWS)
            && (self.queue.is_empty() || !(self.is_over_memory() || self.paging.is_over_memory()))
            // What follows a barrier that changes the ranges is named under the new ones.
            && !matches!(self.queue.back(), Some(Item::Barrier(b)) if !matches!(b.kind, BarrierKind::Checkpoint))
    }

    fn is_over_memory(&self) -> bool {
        self.metrics.memory_bytes.load(Ordering::Relaxed) > self.memory.rows_bytes + self.memory.write_buffer_bytes
    }

    // ---- arrival

    fn accept(&mut self, event: GateEvent) -> Result<()> {
        match event {
            GateEvent::Batch { input, records } => self.accept_batch(input, records),
            GateEvent::Watermark(w) => {
                match self.queue.back_mut() {
                    Some(Item::Watermark(last)) => *last = w,
                    _ => self.queue.push_back(Item::Watermark(w)),
                }
                Ok(())
            }
            GateEvent::Idle => {
                self.queue.push_back(Item::Idle);
                Ok(())
            }
            GateEvent::Barrier(barrier) => {
                let since = self.aligning_since.take().unwrap_or_else(|| self.env.now());
                // Nothing behind a barrier that changes or ends the stream is taken before its turn.
                if !matches!(barrier.kind, BarrierKind::Checkpoint) {
                    self.waiting_since = Some(since);
                }
                self.queue.push_back(Item::Barrier(barrier));
                Ok(())
            }
        }
    }

    fn accept_batch(&mut self, input: usize, records: RecordBatch) -> Result<()> {
        let columns: Vec<ArrayRef> = self.key_columns[input].iter().map(|&c| records.column(c).clone()).collect();
        let mut keys = KeyBuffer::default();
        encode_keys(&columns, &mut keys)?;
        let batch = KeyedBatch { records, keys };
        self.queued_rows += batch.records.num_rows();
        self.pace.begin(self.env.now());
        TaskMetrics::add(&self.metrics.rows_in, batch.records.num_rows() as u64);
        let operator = self.chain.nodes[0].operator.as_mut();
        operator.name_reads(input, &batch)?;
        for state in operator.states() {
            state.end_group();
        }
        let read = self.paging.gather(operator, &self.time);
        self.queue.push_back(Item::Batch { input, batch, read });
        Ok(())
    }

    // ---- work

    /// One bounded piece of work; false when there is none to be done now.
    async fn step(&mut self) -> Result<bool> {
        let start = self.env.now();
        let waited_before = self.chain.back_pressured_ns;
        let mut worked = false;
        self.slowdown.let_go();
        // The more flushes wait, the more is encoded for each batch: else they would become ever more.
        for _ in 0..self.encodings.len() {
            worked |= self.encode_slice(ENCODE_SLICE).await?;
        }
        if self.waiting.is_none() && !self.must_wait() {
            worked |= self.process_head().await?;
        }
        if worked {
            let waited = self.chain.back_pressured_ns - waited_before;
            let total = self.env.now().since(start).as_nanos() as u64;
            TaskMetrics::add(&self.metrics.busy_ns, total.saturating_sub(waited));
            TaskMetrics::add(&self.metrics.back_pressured_ns, waited);
        }
        Ok(worked)
    }

    /// With too much that waits to be written, processing waits. Never when nothing is under way that would end the wait.
    fn must_wait(&self) -> bool {
        let under_way = !self.handed_over.is_empty();
        let unwritten = self.metrics.memory_bytes.load(Ordering::Relaxed)
            > self.memory.rows_bytes + 2 * self.memory.write_buffer_bytes;
        unwritten && (under_way || !self.encodings.is_empty())
    }

    async fn process_head(&mut self) -> Result<bool> {
        match self.queue.front() {
            None => Ok(false),
            Some(Item::Batch { read, .. }) => {
                if read.is_some_and(|number| !self.paging.is_done(number)) {
                    return Ok(false);
                }
                if self.slowdown.holds(self.env.now()) {
                    return Ok(false);
                }
                self.process_batch().await?;
                Ok(true)
            }
            // What was lost may not fire.
            Some(Item::Watermark(_)) if self.shrinking.is_some() => Ok(false),
            Some(Item::Watermark(w)) => {
                let w = *w;
                self.advance(w).await
            }
            Some(Item::Idle) => {
                self.queue.pop_front();
                self.chain.set_time(TimeSignal::Idle);
                Ok(true)
            }
            Some(Item::Barrier(_)) => {
                if let Some(Item::Barrier(barrier)) = self.queue.pop_front() {
                    self.on_barrier(barrier).await?;
                }
                Ok(true)
            }
        }
    }

    async fn process_batch(&mut self) -> Result<()> {
        let Some(Item::Batch { input, batch, .. }) = self.queue.pop_front() else { return Ok(()) };
        let rows = batch.records.num_rows();
        self.queued_rows -= rows;
        self.tell_time();
        let node = self.chain.head();
        node.operator.process(input, &batch, &mut node.collector)?;
        for state in node.operator.states() {
            state.release_group();
        }
        self.chain.deliver_head().await?;
        self.last_rows = self.env.now();
        let took = self.pace.passed(rows, self.queued_rows > 0, self.last_rows);
        self.slowdown.behind(took, self.last_rows, self.runs_to_merge, self.runs_max);
        self.say_serving(true).await?;
        self.tend_memory().await
    }

    /// One time for all rows of a batch: what expires does so between batches.
    fn tell_time(&mut self) {
        if self.keeps_time {
            let now = self.paging.processing_ms();
            for state in self.chain.head().operator.states() {
                state.set_clock(&self.time, now);
            }
        }
    }

    /// Tells, once, that what a rescale brought is served, and for how long nothing was processed: until a row was just
    /// now, or, without one, until it was opened.
    async fn say_serving(&mut self, row: bool) -> Result<()> {
        let Some(opened) = self.opened.take() else { return Ok(()) };
        let end = if row { self.env.now() } else { opened.at };
        let ms = |since: Moment| end.since(since).as_millis() as u64;
        self.send(TaskEvent::Serving {
            subtask: self.id,
            assignment: opened.assignment,
            pause_ms: ms(opened.stood_since),
            open_ms: ms(opened.at),
        })
        .await
    }

    /// Fires what is due; true when something was done.
    async fn advance(&mut self, w: TimestampMs) -> Result<bool> {
        if self.advancing.is_some_and(|number| !self.paging.is_done(number)) {
            return Ok(false);
        }
        self.advancing = None;
        let (operator, overflows) = (self.chain.nodes[0].operator.as_mut(), self.paging.take_overflows());
        let of = Advance { all: &self.ranges, time: &self.time, watermark: w };
        self.slices.overflowed(overflows, operator, of)?;
        let target = self.slices.target(w);
        if target > self.slices.fired(&self.time) {
            self.tell_time();
            let node = self.chain.head();
            let progress = node.operator.advance(target, &mut node.collector)?;
            self.chain.deliver_head().await?;
            match progress {
                Progress::More => {
                    self.tend_memory().await?;
                    return Ok(true);
                }
                Progress::NeedsState => {
                    self.read_due(w).await?;
                    return Ok(true);
                }
                Progress::Done => {}
            }
        }
        self.due_unseen_bytes = u64::MAX;
        let operator = self.chain.nodes[0].operator.as_mut();
        let of = Advance { all: &self.ranges, time: &self.time, watermark: w };
        if let Some(time) = self.slices.done(operator, of) {
            self.time = time;
            self.chain.set_subtask_time(&self.time);
            self.tend_memory().await?;
            return Ok(true);
        }
        if w > self.time.min() {
            self.time.advance(w);
            self.chain.set_subtask_time(&self.time);
        }
        self.metrics.watermark.store(self.time.min(), Ordering::Relaxed);
        self.queue.pop_front();
        self.chain.set_time(TimeSignal::Watermark(self.time.min()));
        self.tend_memory().await?;
        Ok(true)
    }

    /// Asks for what the operator needs to advance, or has less advance at once.
    async fn read_due(&mut self, w: TimestampMs) -> Result<()> {
        self.tend_memory().await?;
        let a_scan = self.memory.due_bytes / SCANS_IN_MEMORY;
        let may_cut = self.slices.may_cut(&self.ranges);
        let operator = self.chain.nodes[0].operator.as_mut();
        self.due_unseen_bytes = self.due_unseen_bytes.saturating_add(self.paging.take_scanned_bytes());
        if may_cut && self.due_unseen_bytes > a_scan / 2 {
            self.due_unseen_bytes = 0;
            let due_bytes: u64 = operator.states().iter().map(|state| state.due_bytes()).sum();
            if due_bytes > self.memory.due_bytes - a_scan {
                let of = Advance { all: &self.ranges, time: &self.time, watermark: w };
                self.slices.cut(Cut::Parts, operator, of);
                return Ok(());
            }
        }
        let keys = self.paging.gather(operator, &self.time);
        let max_bytes = if may_cut { a_scan } else { u64::MAX };
        let scans = self.paging.scan(operator, &self.time, self.slices.present(&self.ranges), max_bytes);
        // What it misses may be on its way already, asked for by a batch behind this watermark.
        self.advancing = keys.max(scans).or_else(|| self.paging.last());
        if self.advancing.is_none() {
            return Err(Error::internal("an operator waits for state that it has not named").code(9113));
        }
        Ok(())
    }

    // ---- epochs

    async fn on_barrier(&mut self, barrier: Barrier) -> Result<()> {
        // Rows that stood before the barrier were processed while it waited.
        let start = self.waiting_since.unwrap_or_else(|| self.env.now()).max(self.last_rows);
        let pre = self.chain.pre_commit(barrier.epoch).await?;
        // The worker's report of this epoch has its rows.
        self.publish();
        let closed = EpochClosed {
            subtask: self.id,
            epoch: barrier.epoch,
            section: None,
            splits: Vec::new(),
            fired: self.fired(),
            committables: pre.committables,
            rows_out: pre.rows_out,
            stopped: Some(start),
        };
        self.freeze(barrier.epoch, Some(Box::new(closed)));
        self.chain.barrier(&barrier).await?;
        self.epoch = barrier.epoch.next();
        self.flush = 0;
        match barrier.kind {
            BarrierKind::Checkpoint => Ok(()),
            BarrierKind::Last => {
                self.ended = true;
                Ok(())
            }
            BarrierKind::Rescale(assignment) => self.change_ranges(&assignment, start).await,
        }
    }

    fn fired(&self) -> Vec<(millstream_common::KeyGroupRange, TimestampMs)> {
        if self.time.ranges().is_empty() {
            return self.ranges.iter().map(|&r| (r, self.time.min())).collect();
        }
        self.time.ranges().to_vec()
    }

    async fn change_ranges(&mut self, assignment: &crate::element::Assignment, start: Moment) -> Result<()> {
        let Some(ranges) = assignment.ranges.get(self.id.index as usize).filter(|_| !self.leaves) else {
            self.ended = true;
            return Ok(());
        };
        // What was lost before must be gone before it could come back.
        while self.shrinking.is_some() && self.encode_slice(ENCODE_SLICE).await? {
            self.env.yield_now().await;
        }
        if !self.ranges.covers(ranges) {
            // It forgets what it lost when it opens what it gained: then all this is written.
            self.waiting = Some(assignment.id);
            self.waiting_since = Some(start);
            return Ok(());
        }
        self.ranges = ranges.clone();
        self.shrinking = Some(ranges.clone());
        self.forget_lost();
        self.time = restrict(&self.time, ranges);
        self.chain.set_subtask_time(&self.time);
        self.rebuild_view();
        self.announce();
        self.waiting_since = None;
        let pause_ms = self.env.now().since(start).as_millis() as u64;
        let (subtask, assignment) = (self.id, assignment.id);
        self.send(TaskEvent::Serving { subtask, assignment, pause_ms, open_ms: 0 }).await
    }

    /// Forgets the key groups that it lost, if nothing of them is still to be encoded.
    fn forget_lost(&mut self) {
        if !self.encodings.is_empty() {
            return;
        }
        if let Some(ranges) = self.shrinking.take() {
            for state in self.chain.nodes[0].operator.states() {
                state.retain(&ranges, false);
            }
        }
    }

    fn announce(&mut self) {
        if self.time.min() > WATERMARK_MIN {
            self.chain.set_time(TimeSignal::Watermark(self.time.min()));
        }
    }

    /// All that is dirty now belongs to (`epoch`, the current flush).
    fn freeze(&mut self, epoch: Epoch, closed: Option<Box<EpochClosed>>) {
        let entries = self.chain.nodes[0].operator.states().into_iter().map(|state| state.freeze()).sum();
        self.encodings.push_back(Encoding {
            section: SectionWriter::with_capacity(self.task, entries),
            state: 0,
            interval: Interval::of(epoch, self.flush),
            ranges: self.ranges.clone(),
            closed,
        });
        self.flush += 1;
    }

    /// Encodes some entries of the oldest frozen flush; hands its section over when none is left. True when there was
    /// something to do.
    async fn encode_slice(&mut self, entries: usize) -> Result<bool> {
        let Some(encoding) = self.encodings.front_mut() else { return Ok(false) };
        let mut states = self.chain.nodes[0].operator.states();
        if let Some(state) = states.get_mut(encoding.state) {
            encoding.state += usize::from(state.encode_frozen(entries, &mut encoding.section)?);
            return Ok(true);
        }
        let Some(encoding) = self.encodings.pop_front() else { return Ok(false) };
        self.forget_lost();
        let section = (!encoding.section.is_empty()).then(|| PendingSection {
            writer: encoding.section,
            ranges: encoding.ranges,
            interval: encoding.interval,
            layouts: self.layouts.clone(),
        });
        // An empty flush is not in the store before those that went ahead of it.
        self.handed_over.push_back(section.is_some());
        self.mark_empty_flushes();
        match (encoding.closed, section) {
            (Some(mut closed), section) => {
                closed.section = section;
                self.send(TaskEvent::Closed(closed)).await?;
            }
            (None, Some(section)) => self.send(TaskEvent::EarlySection { subtask: self.id, section }).await?,
            (None, None) => {}
        }
        Ok(true)
    }

    fn mark_empty_flushes(&mut self) {
        while self.handed_over.front() == Some(&false) {
            self.handed_over.pop_front();
            self.mark_flushed();
        }
    }

    fn mark_flushed(&mut self) {
        for state in self.chain.nodes[0].operator.states() {
            state.flushed();
        }
    }

    // ---- memory

    async fn tend_memory(&mut self) -> Result<()> {
        let (mut held, mut dirty) = self.memory_now();
        if dirty > self.memory.write_buffer_bytes && self.encodings.is_empty() && self.handed_over.is_empty() {
            self.freeze(self.epoch, None);
        }
        if held > self.memory.rows_bytes + dirty {
            for state in self.chain.nodes[0].operator.states() {
                let share =
                    state.memory_bytes() as u128 * u128::from(self.memory.rows_bytes + dirty) / u128::from(held.max(1));
                state.evict(share as u64 * 9 / 10);
            }
            (held, dirty) = self.memory_now();
        }
        self.metrics.dirty_bytes.store(dirty, Ordering::Relaxed);
        self.metrics.memory_bytes.store(held, Ordering::Relaxed);
        Ok(())
    }

    fn memory_now(&mut self) -> (u64, u64) {
        let mut held = 0;
        let mut dirty = 0;
        for state in self.chain.nodes[0].operator.states() {
            held += state.memory_bytes();
            dirty += state.dirty_bytes();
        }
        (held, dirty)
    }

    // ---- control

    async fn on_control(&mut self, control: TaskControl) -> Result<()> {
        match control {
            TaskControl::Version(version) => self.on_version(&version).await,
            TaskControl::Flushed(run) => {
                self.handed_over.pop_front();
                if !self.version_runs.iter().any(|r| r.identity() == run.identity()) {
                    self.own.push(run);
                }
                self.mark_flushed();
                self.mark_empty_flushes();
                self.rebuild_view();
                self.tend_memory().await
            }
            TaskControl::Prepare(preparation) => {
                self.prepare(preparation);
                Ok(())
            }
            TaskControl::Barrier { .. }
            | TaskControl::Align(_)
            | TaskControl::AddSplits(_)
            | TaskControl::LiveSplits(_)
            | TaskControl::EndOfInput => Ok(()),
        }
    }

    fn prepare(&mut self, p: Preparation) {
        let inputs =
            p.inputs.into_iter().map(|i| InputChannel::new(i.input, i.edge, i.from, i.origin, i.end)).collect();
        self.leaves = p.leaves;
        self.gate.prepare(p.assignment, p.moved, inputs);
        for (edge, channels) in p.outputs {
            for e in self.chain.edges.iter_mut().filter(|e| e.edge() == edge) {
                e.prepare(p.assignment, channels.clone());
            }
        }
    }

    async fn on_version(&mut self, version: &Arc<VersionView>) -> Result<()> {
        if let Some(id) = self.waiting {
            // Planted bug 32: who takes over does not wait for what the barrier closed.
            if version.assignment.id != id && !bug_is_planted(32) {
                return Ok(());
            }
            self.waiting = None;
            self.shrinking = None;
            self.chain.on_version(version).await?;
            // A new subtask learns here which epoch its first barrier closes.
            self.epoch = version.epoch.next();
            self.start_from(version);
            self.announce();
            let at = self.env.now();
            self.opened = Some(Opened { assignment: id, at, stood_since: self.waiting_since.take().unwrap_or(at) });
            return Ok(());
        }
        self.version_runs = version.runs[self.id.task].clone();
        self.paging.set_committed(version.committed_ms);
        self.own.retain(|own| own.interval.max.epoch > version.epoch);
        self.rebuild_view();
        self.chain.on_version(version).await
    }

    /// Opens the key groups that the version gives this subtask.
    fn start_from(&mut self, version: &Arc<VersionView>) {
        let fresh = self.ranges.is_empty();
        self.ranges = version.assignment.ranges.get(self.id.index as usize).cloned().unwrap_or_default();
        self.layouts = version.layouts.clone();
        self.version_runs = version.runs[self.id.task].clone();
        self.paging.set_committed(version.committed_ms);
        self.own.retain(|own| own.interval.max.epoch > version.epoch);
        self.rebuild_view();
        let mut fired = Vec::new();
        let mut unknown = self.ranges.clone();
        for (range, w) in &version.fired[self.id.task] {
            let mine = self.ranges.intersect(&KeyGroupRanges::from(*range));
            unknown = unknown.subtract(&mine);
            fired.extend(mine.iter().map(|&r| (r, *w)));
        }
        fired.extend(unknown.iter().map(|&r| (r, WATERMARK_MIN)));
        if bug_is_planted(11) {
            // Planted: the watermark is not restored.
            fired.iter_mut().for_each(|f| f.1 = WATERMARK_MIN);
        }
        self.time = SubtaskTime::of_ranges(fired);
        self.chain.set_subtask_time(&self.time);
        self.gate.reset_watermark(self.time.min());
        self.metrics.watermark.store(self.time.min(), Ordering::Relaxed);
        let ranges = self.ranges.clone();
        for (i, state) in self.chain.nodes[0].operator.states().into_iter().enumerate() {
            let complete = fresh && !self.paging.view().may_hold(self.state_ids[i], None);
            state.open(self.state_ids[i], ranges.clone(), complete);
            if !fresh {
                state.retain(&ranges, true);
            }
        }
    }

    fn rebuild_view(&mut self) {
        self.runs_to_merge = runs_per_key_group_max(&self.version_runs, &self.ranges);
        let runs = self.version_runs.iter().chain(&self.own).cloned().collect();
        let view = self.paging.make_view(runs, &self.ranges, self.layouts.clone());
        self.paging.set_view(view);
    }

    fn send(&self, event: TaskEvent) -> impl Future<Output = Result<()>> + Send + use<> {
        let events = self.events.clone();
        async move { events.send(event).await.map_err(|_| Error::canceled("the worker has let go of this subtask")) }
    }

    fn publish_due(&mut self) {
        let now = self.env.now();
        if now.since(self.published) >= PUBLISH_INTERVAL {
            self.published = now;
            self.publish();
        }
    }

    fn publish(&self) {
        self.metrics.late_rows.store(self.chain.late_rows(), Ordering::Relaxed);
        self.metrics.rows_out.store(self.chain.rows_out, Ordering::Relaxed);
        self.chain.publish_sinks(&self.metrics.sinks);
    }
}

/// The time of the key groups in `ranges`.
fn restrict(time: &SubtaskTime, ranges: &KeyGroupRanges) -> SubtaskTime {
    if time.ranges().is_empty() {
        return SubtaskTime::uniform(time.min());
    }
    let mut kept = Vec::new();
    for (range, w) in time.ranges() {
        kept.extend(ranges.intersect(&KeyGroupRanges::from(*range)).iter().map(|&r| (r, *w)));
    }
    SubtaskTime::of_ranges(kept)
}
