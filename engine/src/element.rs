//! What flows between subtasks: record batches, watermarks and barriers.

use std::sync::Arc;

use arrow_array::RecordBatch;
use millstream_common::{AssignmentId, Epoch, KeyGroupRanges};

/// Event time in milliseconds since 1970 (UTC).
pub type TimestampMs = i64;

/// The watermark of a stream that has not begun.
pub const WATERMARK_MIN: TimestampMs = i64::MIN;
/// The watermark of a stream that has ended: the end of time.
pub const WATERMARK_MAX: TimestampMs = i64::MAX;

/// The name of the first column of a changelog batch, a non-null `UInt8`: a [`RowKind`] a row.
pub const ROW_KIND_COLUMN: &str = "__row_kind";

/// What a row of a changelog does to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RowKind {
    /// `+I`
    Insert = 0,
    /// `-U`: takes back the row that the following `UpdateAfter` replaces.
    UpdateBefore = 1,
    /// `+U`
    UpdateAfter = 2,
    /// `-D`
    Delete = 3,
}

impl RowKind {
    /// As Flink writes it.
    #[must_use]
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Insert => "+I",
            Self::UpdateBefore => "-U",
            Self::UpdateAfter => "+U",
            Self::Delete => "-D",
        }
    }

    /// The kind behind its number in the column.
    #[must_use]
    pub fn from_number(n: u8) -> Option<Self> {
        [Self::Insert, Self::UpdateBefore, Self::UpdateAfter, Self::Delete].get(usize::from(n)).copied()
    }
}

/// One thing that goes over a channel, in order.
#[derive(Clone, Debug)]
pub enum StreamElement {
    /// Rows.
    Batch(RecordBatch),
    /// No row with an event time at or below this one comes any more (late ones excepted).
    Watermark(TimestampMs),
    /// The sender has nothing to say about time until its next watermark: it does not hold the receiver's back.
    Idle,
    /// The boundary of an epoch.
    Barrier(Barrier),
}

/// The boundary between an epoch and the next.
#[derive(Clone, Debug)]
pub struct Barrier {
    /// The epoch that it closes.
    pub epoch: Epoch,
    /// What comes behind it.
    pub kind: BarrierKind,
}

/// What comes behind a barrier.
#[derive(Clone, Debug)]
pub enum BarrierKind {
    /// The stream goes on.
    Checkpoint,
    /// Nothing: the input has ended or the job is being stopped.
    Last,
    /// The stream goes on under a new assignment.
    Rescale(Arc<Assignment>),
}

/// Who owns which key groups: subtask `i` of every task owns `ranges[i]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Rises with each rescale.
    pub id: AssignmentId,
    /// By subtask index.
    pub ranges: Vec<KeyGroupRanges>,
}

impl Assignment {
    /// How many subtasks each task has.
    #[must_use]
    pub fn parallelism(&self) -> u32 {
        self.ranges.len() as u32
    }
}
