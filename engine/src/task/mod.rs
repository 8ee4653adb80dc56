//! Subtasks: one async loop each, on the compute threads. A source subtask reads splits; a keyed subtask reads its
//! channels, pages state in, processes batches in order. Both end in a chain of operators, edges and sinks.
//!
//! A subtask talks to its worker by two bounded queues: [`TaskControl`] in, [`TaskEvent`] out. It never talks to the
//! coordinator or writes an object itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use millstream_common::env::Moment;
use millstream_common::{AssignmentId, Epoch, Error, KeyGroupRange, KeyGroupRanges};
use millstream_proto::version::SplitState;
use millstream_state_store::section::{Interval, SectionWriter};
use millstream_state_store::{Layouts, ReadReport, Run};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::element::{Assignment, BarrierKind, StreamElement, TimestampMs, WATERMARK_MIN};
use crate::lateness::SplitProgress;
use crate::sink::{Committable, WriterFigures};
use crate::source::SplitGauges;

pub(crate) mod chain;
pub mod gate;
pub(crate) mod keyed;
#[cfg(test)]
mod keyed_tests;
pub(crate) mod output;
pub(crate) mod pace;
pub(crate) mod paging;
pub(crate) mod slices;
pub(crate) mod source;

pub use keyed::ENCODE_SLICE;

/// A busy subtask publishes what it counts this often; one that waits does so before it waits.
const PUBLISH_INTERVAL: std::time::Duration = std::time::Duration::from_millis(100);

/// Control messages that a subtask holds before its worker waits.
pub const TASK_QUEUE: usize = 256;

/// Which subtask of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubtaskId {
    /// Index of the task in the job graph.
    pub task: usize,
    /// Index of the subtask.
    pub index: u32,
}

/// What a subtask needs of a version record; made once per record and shared.
#[derive(Debug)]
pub struct VersionView {
    /// The record's greatest epoch.
    pub epoch: Epoch,
    /// When it was committed, by the coordinator's clock: milliseconds since 1970 that never go back within the job.
    pub committed_ms: i64,
    /// The assignment in it.
    pub assignment: Assignment,
    /// The runs of each task, by index of the task in the graph.
    pub runs: Vec<Vec<Arc<Run>>>,
    /// Where key groups stand in the keys of each state.
    pub layouts: Layouts,
    /// Up to where key groups have fired, by index of the task.
    pub fired: Vec<Vec<(KeyGroupRange, TimestampMs)>>,
    /// Positions, by source and split.
    pub splits: BTreeMap<(String, String), SplitState>,
    /// The id of each task in the tree, by index in the graph; `None` for tasks without state.
    pub task_ids: Vec<Option<millstream_common::TaskId>>,
    /// What sinks have not been confirmed to have committed, by the sink's id.
    pub committables: BTreeMap<String, Vec<Committable>>,
}

/// A new channel into a subtask.
pub struct NewInput {
    /// Which input of the head operator.
    pub input: usize,
    /// Index of the edge.
    pub edge: usize,
    /// The sending subtask.
    pub from: u32,
    /// Where its rows come from.
    pub origin: gate::Origin,
    /// Its end.
    pub end: gate::ChannelEnd,
}

/// New channels of an edge, by receiving subtask.
pub type NewOutputs = Vec<(u32, mpsc::Sender<StreamElement>)>;

/// What changes for a subtask at the barrier of an assignment.
pub struct Preparation {
    /// The assignment that the barrier will carry.
    pub assignment: AssignmentId,
    /// This instance leaves with the barrier.
    pub leaves: bool,
    /// Subtasks that go on elsewhere: channels from their present instances leave with the barrier.
    pub moved: BTreeSet<u32>,
    /// New channels in.
    pub inputs: Vec<NewInput>,
    /// New channels out: by edge, then by receiving subtask in rising order. One to a subtask that goes on elsewhere
    /// takes the place of the present one.
    pub outputs: Vec<(usize, NewOutputs)>,
    /// The splits that a source subtask will own: source uid, split.
    pub splits: Vec<OwnedSplit>,
}

/// A split that a source subtask reads.
#[derive(Clone, Debug)]
pub struct OwnedSplit {
    /// Stable id of the source.
    pub source_uid: String,
    /// The split.
    pub split: crate::source::Split,
    /// Its place among the splits of the job: paced splits take turns by it.
    pub index: u32,
}

/// From the worker to a subtask.
pub enum TaskControl {
    /// To sources: send this barrier.
    Barrier {
        /// The epoch that it closes.
        epoch: Epoch,
        /// What comes behind it.
        kind: BarrierKind,
    },
    /// A record stands.
    Version(Arc<VersionView>),
    /// The oldest section that this subtask handed over can be read from the store.
    Flushed(Arc<Run>),
    /// What a rescale barrier will change.
    Prepare(Preparation),
    /// To sources: the least watermark of the splits that theirs keep together with.
    Align(TimestampMs),
    /// To sources: read these splits, too.
    AddSplits(Vec<OwnedSplit>),
    /// How many splits of the source have not ended, over all subtasks.
    LiveSplits(u64),
    /// All splits of all sources have ended and no split comes any more.
    EndOfInput,
}

/// From a subtask to its worker.
pub enum TaskEvent {
    /// The subtask has closed an epoch.
    Closed(Box<EpochClosed>),
    /// A section of an epoch that is not closed yet, to be written at once.
    EarlySection {
        /// Whose.
        subtask: SubtaskId,
        /// What to write.
        section: PendingSection,
    },
    /// The subtask has failed.
    Failed {
        /// Whose.
        subtask: SubtaskId,
        /// Why.
        error: Error,
    },
    /// The subtask serves what the assignment gave it.
    Serving {
        /// Whose.
        subtask: SubtaskId,
        /// Of which assignment.
        assignment: AssignmentId,
        /// How long it had processed nothing, milliseconds.
        pause_ms: u64,
        /// How much of that passed behind the opening of what it gained, milliseconds.
        open_ms: u64,
    },
    /// Splits that have ended: source uid, split id.
    SplitsFinished(Vec<(String, String)>),
}

/// Entries to be encoded and written.
pub struct PendingSection {
    /// The entries.
    pub writer: SectionWriter,
    /// Whose key groups they are.
    pub ranges: KeyGroupRanges,
    /// Epoch and flush.
    pub interval: Interval,
    /// Where key groups stand in keys.
    pub layouts: Layouts,
}

/// What a subtask hands over when it has closed an epoch.
pub struct EpochClosed {
    /// Whose.
    pub subtask: SubtaskId,
    /// The epoch.
    pub epoch: Epoch,
    /// What changed in its state.
    pub section: Option<PendingSection>,
    /// Positions of the splits that it owned.
    pub splits: Vec<SplitState>,
    /// Up to where its key groups have fired.
    pub fired: Vec<(KeyGroupRange, TimestampMs)>,
    /// What its sinks left.
    pub committables: Vec<Committable>,
    /// Rows of sinks that commit nothing.
    pub rows_out: u64,
    /// Of a keyed subtask: since when it has processed nothing that stood before the barrier.
    pub stopped: Option<Moment>,
}

/// Counters of a subtask, read by its worker at any time.
#[derive(Debug)]
pub struct TaskMetrics {
    /// Rows that came in.
    pub rows_in: AtomicU64,
    /// Rows that went out.
    pub rows_out: AtomicU64,
    /// Rows that came too late.
    pub late_rows: AtomicU64,
    /// Nanoseconds of processing.
    pub busy_ns: AtomicU64,
    /// Nanoseconds of waiting for receivers.
    pub back_pressured_ns: AtomicU64,
    /// Nanoseconds of waiting for state.
    pub state_wait_ns: AtomicU64,
    /// Nanoseconds in which it held back, since reads look into too many runs.
    pub merge_wait_ns: AtomicU64,
    /// The subtask's watermark; [`WATERMARK_MIN`] before the first.
    pub watermark: AtomicI64,
    /// Bytes of state in memory.
    pub memory_bytes: AtomicU64,
    /// Those of them that the store does not hold yet.
    pub dirty_bytes: AtomicU64,
    /// Keys that batches named: the distinct ones of each.
    pub keys_named: AtomicU64,
    /// Those of them that were asked of the store.
    pub keys_asked: AtomicU64,
    /// What its reads cost.
    pub reads: Mutex<ReadReport>,
    /// Whether it reads splits.
    pub is_source: AtomicBool,
    /// Its splits as `status` shows them.
    pub splits: Mutex<Vec<SplitMetrics>>,
    /// Its sinks.
    pub sinks: Mutex<Vec<SinkMetrics>>,
}

impl Default for TaskMetrics {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            rows_in: zero(),
            rows_out: zero(),
            late_rows: zero(),
            busy_ns: zero(),
            back_pressured_ns: zero(),
            state_wait_ns: zero(),
            merge_wait_ns: zero(),
            watermark: AtomicI64::new(WATERMARK_MIN),
            memory_bytes: zero(),
            dirty_bytes: zero(),
            keys_named: zero(),
            keys_asked: zero(),
            reads: Mutex::default(),
            is_source: AtomicBool::new(false),
            splits: Mutex::new(Vec::new()),
            sinks: Mutex::new(Vec::new()),
        }
    }
}

impl TaskMetrics {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// One split as `status` shows it.
#[derive(Clone)]
pub struct SplitMetrics {
    /// Stable id of the source.
    pub source_uid: String,
    /// The split's id.
    pub split: String,
    /// Where its reader stands.
    pub position: u64,
    /// Its watermark.
    pub watermark: Option<TimestampMs>,
    /// It has had no row for longer than the idle time-out.
    pub idle: bool,
    /// It has ended.
    pub finished: bool,
    /// Its rows, and how late they were. Held by the subtask for a moment each batch.
    pub progress: Arc<Mutex<SplitProgress>>,
    /// What its reader counts.
    pub gauges: Option<Arc<dyn SplitGauges>>,
}

impl std::fmt::Debug for SplitMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SplitMetrics")
            .field("split", &self.split)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

/// What a subtask has written to one of its sinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkMetrics {
    /// Stable id of the sink.
    pub sink_uid: String,
    /// Rows that its writer was given.
    pub rows: u64,
    /// What the writer counts.
    pub figures: WriterFigures,
}
