//! Sources: an enumerator that finds splits, and a reader per split with its position.
//!
//! The runtime owns everything around a reader: assignment of splits to subtasks, pacing, watermarks per split,
//! idleness, barriers, positions in the version. A source only finds splits and reads them.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arrow_array::{RecordBatch, TimestampMillisecondArray};
use arrow_schema::SchemaRef;
use millstream_common::{Error, Result, env::BoxFuture};

use crate::element::TimestampMs;

/// A part of the input that is read in order by one reader: a file, a partition, a slice of a generator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Unique in its source and stable over restarts; users see it.
    pub id: String,
    /// Whatever the source needs to open it.
    pub payload: Vec<u8>,
}

/// Where a reader stands: everything before it was handed out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// What users see: an offset, a count of events, a byte.
    pub offset: u64,
    /// Whatever else the source needs to go on from there.
    pub detail: Vec<u8>,
}

/// What an enumerator found.
#[derive(Clone, Debug)]
pub struct Discovery {
    /// Splits that were not known.
    pub new: Vec<Split>,
    /// No split comes any more, to anyone. Only then can the input end.
    pub complete: bool,
}

/// A place that rows come from. Shared by all its readers; holds settings, no position.
pub trait Source: Send + Sync {
    /// The columns of every batch.
    fn schema(&self) -> SchemaRef;
    /// Finds the splits. Runs in the coordinator.
    fn enumerator(&self) -> Result<Box<dyn SplitEnumerator>>;
    /// How often the enumerator is asked for further splits while the job runs; `None`: never, it is asked when the job is opened.
    fn discovery_interval(&self) -> Option<Duration> {
        None
    }
    /// Opens a split at `position` (`None`: at its start). Runs in a worker.
    fn reader(&self, split: &Split, position: Option<&Position>) -> Result<Box<dyn SplitReader>>;
}

/// Finds splits.
pub trait SplitEnumerator: Send {
    /// The splits that `known` does not name, in a stable order. Asked when the job is opened, and then, if it is not complete, after
    /// each [`Source::discovery_interval`]. What a job had found and no version has is found anew when it is opened again.
    fn discover<'a>(&'a mut self, known: &'a [String]) -> BoxFuture<'a, Result<Discovery>>;
}

/// What a reader has next.
#[derive(Debug)]
pub enum Read {
    /// Between 1 and `max_rows` rows.
    Batch(RecordBatch),
    /// The split has ended for good.
    End,
}

/// Reads one split in order.
pub trait SplitReader: Send {
    /// The next rows, at most `max_rows` of them (never 0 is asked for). Does not wait for a full batch: what is there
    /// is handed out. `Pending` wakes the task when there is more.
    fn poll_next(&mut self, cx: &mut Context<'_>, max_rows: usize) -> Poll<Result<Read>>;
    /// The position behind the last row that was handed out, or behind what follows it and gives no row. A reader opened there
    /// continues exactly.
    fn position(&self) -> Position;
    /// A version with this position is durable: nothing before it is read again.
    fn on_durable(&mut self, _position: &Position) {}
    /// Who says at any moment what this reader has counted; `None`: nobody does.
    fn gauges(&self) -> Option<Arc<dyn SplitGauges>> {
        None
    }
}

/// What a reader counts, for those who watch it. Asked about once a second, from other threads, also while the reader's subtask
/// waits for its receivers, and after the reader is gone: so it holds nothing open, and asks nobody.
pub trait SplitGauges: Send + Sync {
    /// As it is now.
    fn figures(&self) -> SplitFigures;
}

/// What is known of a split besides its rows and their times. Counters begin with the reader; `None`: the source does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SplitFigures {
    /// Bytes that were read.
    pub bytes: Option<u64>,
    /// Records that could not be read and were passed over.
    pub dropped: Option<u64>,
    /// Records that could not be read and were written elsewhere.
    pub dead_letters: Option<u64>,
    /// Time of turning what was read into rows.
    pub decode: Option<Duration>,
    /// Records between the position and the end of the split, as far as the reader has heard of it. `None` also before it has.
    pub lag_records: Option<u64>,
    /// How long ago, by its own time stamp and the wall clock, the last record was written that was read; zero when there is no
    /// other one. `None` also before the first.
    pub lag: Option<Duration>,
}

/// The event times of a batch, one a row; null: the row has none. Empty: no row has one.
pub type EventTimeFn = Arc<dyn Fn(&RecordBatch) -> Result<TimestampMillisecondArray> + Send + Sync>;

/// The event times that are in a column of milliseconds already, which is not copied.
#[must_use]
pub fn event_time_column(name: &'static str) -> EventTimeFn {
    Arc::new(move |batch| {
        let column = batch.column_by_name(name).and_then(|c| c.as_any().downcast_ref::<TimestampMillisecondArray>());
        column.cloned().ok_or_else(|| Error::internal(format!("a batch without a column '{name}' of milliseconds")))
    })
}

/// For rows that say nothing about time.
#[must_use]
pub fn no_event_time() -> EventTimeFn {
    Arc::new(|_| Ok(TimestampMillisecondArray::new_null(0)))
}

/// How watermarks come from rows, per split.
#[derive(Clone)]
pub struct WatermarkStrategy {
    /// The event time of rows.
    pub event_time: EventTimeFn,
    /// Bounded out-of-orderness: watermark = greatest event time of the split - delay (milliseconds). 0 with
    /// `monotonous` semantics: rows of a split never go back.
    pub delay_ms: i64,
    /// A split without rows for so long no longer holds the watermark. `None`: it holds it for ever.
    pub idle_timeout: Option<Duration>,
    /// Splits that are far ahead of others wait for them. `None`: none does.
    pub alignment: Option<WatermarkAlignment>,
}

/// Splits that keep together: of one source, or of all those of the job that name the same group. What a slow one holds back in
/// windows and joins behind the sources stays small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatermarkAlignment {
    /// The group's name.
    pub group: String,
    /// A split whose watermark is ahead of the least in the group by more than this (milliseconds) is not read. Splits without a
    /// watermark, idle ones and those that have ended hold nobody up.
    pub max_drift_ms: i64,
}

impl WatermarkAlignment {
    /// The greatest watermark with which a split is read on, when this is the least of the group.
    #[must_use]
    pub fn bound(&self, least: TimestampMs) -> TimestampMs {
        least.saturating_add(self.max_drift_ms)
    }
}

impl WatermarkStrategy {
    /// Rows of a split are out of order by at most `delay_ms`: the watermark is the greatest event time - delay.
    #[must_use]
    pub fn bounded_out_of_orderness(event_time: EventTimeFn, delay_ms: i64) -> Self {
        Self { event_time, delay_ms, idle_timeout: None, alignment: None }
    }

    /// Event times of a split never go back; rows of the same time may follow, so the watermark stays 1 ms behind.
    #[must_use]
    pub fn monotonous(event_time: EventTimeFn) -> Self {
        Self { event_time, delay_ms: 1, idle_timeout: None, alignment: None }
    }

    /// Splits without rows for `timeout` do not hold the watermark.
    #[must_use]
    pub fn with_idle_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// No split of `group` is read on that is ahead of the least watermark in it by more than `max_drift`. Sources are told of the
    /// least about once a second: what is read faster than `max_drift` of event time a second waits for that.
    #[must_use]
    pub fn with_alignment(mut self, group: impl Into<String>, max_drift: Duration) -> Self {
        let max_drift_ms = i64::try_from(max_drift.as_millis()).unwrap_or(i64::MAX);
        self.alignment = Some(WatermarkAlignment { group: group.into(), max_drift_ms });
        self
    }
}
