//! The output side of an edge: hashes rows to the subtasks that own their key groups, coalesces slivers, bounds how
//! long they wait.

use std::time::Duration;

use arrow_array::{ArrayRef, RecordBatch, UInt32Array};
use arrow_schema::SchemaRef;
use arrow_select::concat::concat_batches;
use arrow_select::take::take_record_batch;
use millstream_common::env::Moment;
use millstream_common::{AssignmentId, Error, KEY_GROUPS, Result};
use millstream_state_store::key::{KeyBuffer, encode_keys};
use tokio::sync::mpsc;

use super::NewOutputs;
use super::pace::Portion;
use crate::element::{Assignment, Barrier, BarrierKind, StreamElement, TimestampMs};
use crate::transport::DATA_PLACES;

/// A batch leaves when it has so many rows.
const COALESCE_ROWS: usize = 1_024;
/// Or when its first row has waited so long.
pub(crate) const LINGER: Duration = Duration::from_millis(5);
/// A full channel is given pieces of so many rows at least.
pub(crate) const PIECE_ROWS_MIN: usize = 32;

/// The sending ends of an edge, by receiving subtask.
pub type OutputChannels = Vec<mpsc::Sender<StreamElement>>;

/// What a sender says about time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeSignal {
    Watermark(TimestampMs),
    Idle,
}

/// One outgoing edge of a subtask.
pub(crate) struct EdgeOutput {
    edge: usize,
    key_columns: Vec<usize>,
    schema: SchemaRef,
    /// Owner by key group.
    route: Vec<u16>,
    channels: OutputChannels,
    upcoming: Option<(AssignmentId, NewOutputs)>,
    slivers: Vec<Slivers>,
    keys: KeyBuffer,
    rows_of: Vec<Vec<u32>>,
    waiting_since: Option<Moment>,
    /// Rows of a piece at most: a channel has a fixed number of places.
    piece: Portion,
    time: Option<TimeSignal>,
    announced: Option<TimeSignal>,
}

#[derive(Default)]
struct Slivers {
    batches: Vec<RecordBatch>,
    rows: usize,
}

impl EdgeOutput {
    pub(crate) fn new(
        edge: usize,
        key_columns: Vec<usize>,
        schema: SchemaRef,
        assignment: &Assignment,
        channels: OutputChannels,
    ) -> Self {
        let n = channels.len();
        Self {
            edge,
            key_columns,
            schema,
            route: route_table(assignment),
            channels,
            upcoming: None,
            slivers: (0..n).map(|_| Slivers::default()).collect(),
            keys: KeyBuffer::default(),
            rows_of: vec![Vec::new(); n],
            waiting_since: None,
            piece: Portion::new(PIECE_ROWS_MIN),
            time: None,
            announced: None,
        }
    }

    /// Index of the edge in the graph.
    pub(crate) fn edge(&self) -> usize {
        self.edge
    }

    /// Channels that come with the barrier of `assignment`: to new subtasks, and to those that go on elsewhere.
    pub(crate) fn prepare(&mut self, assignment: AssignmentId, channels: NewOutputs) {
        self.upcoming = Some((assignment, channels));
    }

    /// Takes a batch; sends what is big enough.
    pub(crate) async fn push(&mut self, batch: RecordBatch, now: Moment) -> Result<()> {
        if self.channels.len() == 1 {
            self.add(0, batch);
        } else {
            self.split(&batch)?;
        }
        if self.waiting_since.is_none() {
            self.waiting_since = Some(now);
        }
        // Before a full channel, what is gathered stands like what is in it.
        let enough = COALESCE_ROWS.min(self.piece.rows());
        for target in 0..self.channels.len() {
            if self.slivers[target].rows >= enough {
                self.send_rows(target).await?;
            }
        }
        Ok(())
    }

    fn split(&mut self, batch: &RecordBatch) -> Result<()> {
        let columns: Vec<ArrayRef> = self.key_columns.iter().map(|&c| batch.column(c).clone()).collect();
        encode_keys(&columns, &mut self.keys)?;
        for rows in &mut self.rows_of {
            rows.clear();
        }
        for (row, hash) in self.keys.hashes().iter().enumerate() {
            let owner = self.route[(hash >> 48) as usize];
            self.rows_of[usize::from(owner)].push(row as u32);
        }
        for target in 0..self.channels.len() {
            let rows = std::mem::take(&mut self.rows_of[target]);
            if rows.len() == batch.num_rows() {
                self.add(target, batch.clone());
            } else if !rows.is_empty() {
                let indices = UInt32Array::from(rows.clone());
                let sliver = take_record_batch(batch, &indices)
                    .map_err(|e| Error::internal("cannot split a batch for an exchange").source(e))?;
                self.add(target, sliver);
            }
            self.rows_of[target] = rows;
        }
        Ok(())
    }

    fn add(&mut self, target: usize, batch: RecordBatch) {
        let s = &mut self.slivers[target];
        s.rows += batch.num_rows();
        s.batches.push(batch);
    }

    async fn send_rows(&mut self, target: usize) -> Result<()> {
        let s = std::mem::take(&mut self.slivers[target]);
        let batch = match s.batches.len() {
            0 => return Ok(()),
            1 => s.batches.into_iter().next().unwrap_or_else(|| RecordBatch::new_empty(self.schema.clone())),
            _ => concat_batches(&self.schema, &s.batches)
                .map_err(|e| Error::internal("cannot join batches of an exchange").source(e))?,
        };
        let mut from = 0;
        while from < batch.num_rows() {
            let rows = self.piece.rows().min(batch.num_rows() - from);
            self.send(target, StreamElement::Batch(batch.slice(from, rows))).await?;
            from += rows;
        }
        Ok(())
    }

    /// Rows were taken from `start` to `end`. While channels are full, pieces become so small that what fills the channels is
    /// processed in [`WAITING`](super::pace::WAITING); else they grow again.
    pub(crate) fn learn(&mut self, rows: usize, start: Moment, end: Moment) {
        let places = DATA_PLACES * self.channels.len().max(1);
        self.piece.learn(rows, (start, end), end.since(start), places);
    }

    async fn send(&self, target: usize, element: StreamElement) -> Result<()> {
        self.channels[target].send(element).await.map_err(|_| {
            Error::unavailable(format!("the channel to subtask {target} of edge {} closed", self.edge)).code(2111)
        })
    }

    /// Says what holds for all rows from here on; goes out with the next flush.
    pub(crate) fn set_time(&mut self, time: TimeSignal, now: Moment) {
        self.time = Some(time);
        if self.time != self.announced && self.waiting_since.is_none() {
            self.waiting_since = Some(now);
        }
    }

    /// Whether rows or the time have waited for longer than the linger.
    pub(crate) fn is_due(&self, now: Moment) -> bool {
        self.waiting_since.is_some_and(|since| now.since(since) >= LINGER)
    }

    /// Sends all rows that wait, then the time.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        if self.waiting_since.take().is_some() {
            for target in 0..self.channels.len() {
                self.send_rows(target).await?;
            }
        }
        if self.time != self.announced {
            let element = match self.time {
                Some(TimeSignal::Watermark(w)) => StreamElement::Watermark(w),
                Some(TimeSignal::Idle) => StreamElement::Idle,
                None => return Ok(()),
            };
            for target in 0..self.channels.len() {
                self.send(target, element.clone()).await?;
            }
            self.announced = self.time;
        }
        Ok(())
    }

    /// Sends the barrier behind all rows. A rescale barrier goes to the channels of the old assignment; behind it rows
    /// go by the new one, and nothing is announced about time until [`EdgeOutput::set_time`] is called again.
    pub(crate) async fn barrier(&mut self, barrier: &Barrier) -> Result<()> {
        self.flush().await?;
        for target in 0..self.channels.len() {
            self.send(target, StreamElement::Barrier(barrier.clone())).await?;
        }
        if let BarrierKind::Rescale(assignment) = &barrier.kind {
            self.change_channels(assignment)?;
        }
        Ok(())
    }

    fn change_channels(&mut self, assignment: &Assignment) -> Result<()> {
        let n = assignment.ranges.len();
        self.channels.truncate(n);
        match self.upcoming.take() {
            Some((id, channels)) if id == assignment.id => {
                for (to, tx) in channels {
                    let count = self.channels.len();
                    match self.channels.get_mut(to as usize) {
                        // Its present instance has the barrier as the last of this channel.
                        Some(channel) => *channel = tx,
                        None if to as usize == count => self.channels.push(tx),
                        None => return Err(Error::internal(format!("channel to subtask {to} prepared out of order"))),
                    }
                }
            }
            _ => {
                return Err(Error::internal(format!(
                    "edge {} is not prepared for assignment {}",
                    self.edge, assignment.id
                )));
            }
        }
        if self.channels.len() != n {
            return Err(Error::internal(format!(
                "edge {} has {} channels for {n} subtasks",
                self.edge,
                self.channels.len()
            )));
        }
        self.route = route_table(assignment);
        self.slivers = (0..n).map(|_| Slivers::default()).collect();
        self.rows_of = vec![Vec::new(); n];
        self.time = None;
        self.announced = None;
        Ok(())
    }

    /// Whether something waits to be sent.
    pub(crate) fn waits(&self) -> bool {
        self.waiting_since.is_some()
    }
}

/// The owner of each key group. Key groups that nobody owns go to subtask 0 (there are none in a valid assignment).
fn route_table(assignment: &Assignment) -> Vec<u16> {
    let mut route = vec![0u16; KEY_GROUPS as usize];
    for (subtask, ranges) in assignment.ranges.iter().enumerate() {
        for r in ranges.iter() {
            route[r.start as usize..r.end as usize].fill(subtask as u16);
        }
    }
    route
}
