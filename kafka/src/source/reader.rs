//! One partition, read in order.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::SchemaRef;
use futures::task::AtomicWaker;
use millstream_common::env::BoxFuture;
use millstream_common::{Error, ErrorKind, Result};
use millstream_engine::source::{Position, Read, SplitReader};
use millstream_formats::Decoder;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Message, OwnedMessage};

use super::consumer::{Consumer, Opened};
use super::metadata::Columns;
use super::options::BadRecords;
use super::splits::PartitionSplit;

/// Records that one call takes at most although they give no row (tombstones, records that are dropped).
const RECORDS_A_POLL: usize = 16_384;

/// Bytes of records that one call takes, give or take a record: a batch has no more than that by far.
const BYTES_A_POLL: usize = 16 << 20;

pub(super) struct PartitionReader {
    consumer: Arc<Consumer>,
    split: PartitionSplit,
    schema: SchemaRef,
    decoder: Box<dyn Decoder>,
    columns: Columns,
    bad_records: BadRecords,
    waker: Arc<AtomicWaker>,
    /// `None` before the first rows are asked for.
    opened: Option<Opened>,
    /// The offset of the next record, and how many of its rows were handed out already.
    next: (i64, u32),
    /// The last rows of record `next`, which found no room in the batch before.
    left: Option<RecordBatch>,
    /// A record behind what was handed out that cannot be read.
    bad: Option<Error>,
    /// A record that cannot be read before this is done.
    waiting: Option<(OwnedMessage, BoxFuture<'static, Result<()>>)>,
    /// While no broker answers.
    timer: Option<BoxFuture<'static, Result<()>>>,
    ended: bool,
}

/// What one call has taken.
#[derive(Default)]
struct Taken {
    bytes: usize,
    /// The offset of the last record, and how many rows it has.
    last: Option<(i64, usize)>,
    /// Nothing behind it is to be taken.
    enough: bool,
}

impl PartitionReader {
    pub(super) fn new(
        consumer: Arc<Consumer>,
        split: PartitionSplit,
        position: Option<&Position>,
        schema: SchemaRef,
        decoder: Box<dyn Decoder>,
        columns: Columns,
        bad_records: BadRecords,
    ) -> Result<Self> {
        let next = match position {
            None => (split.start, 0),
            Some(p) => position_of(p).ok_or_else(|| {
                Error::new(ErrorKind::Corrupt, 4321, "the position of a split cannot be").at(split.id())
            })?,
        };
        let ended = split.stop.is_some_and(|stop| next.0 >= stop);
        Ok(Self {
            consumer,
            split,
            schema,
            decoder,
            columns,
            bad_records,
            waker: Arc::default(),
            opened: None,
            next,
            left: None,
            bad: None,
            waiting: None,
            timer: None,
            ended,
        })
    }

    /// Takes records until there are `max_rows` rows, none is there, or one has to wait; the offset of the last one and how many
    /// rows it has.
    fn fill(&mut self, max_rows: usize) -> Result<Option<(i64, usize)>> {
        let opened = match self.opened.take() {
            Some(opened) => opened,
            None => {
                let (topic, partition) = (&self.split.topic, self.split.partition);
                self.consumer.open(topic, partition, self.next.0, self.waker.clone())?
            }
        };
        let filled = self.fill_from(&opened, max_rows);
        self.opened = Some(opened);
        filled
    }

    fn fill_from(&mut self, opened: &Opened, max_rows: usize) -> Result<Option<(i64, usize)>> {
        let Some(_turn) = opened.turn() else {
            return Err(Error::canceled("another reader has taken over this partition").at(self.split.id()));
        };
        let mut taken = Taken::default();
        if let Some((record, _)) = self.waiting.take() {
            self.take(&record, &mut taken)?;
        }
        for _ in 0..RECORDS_A_POLL {
            if taken.enough || self.decoder.rows() >= max_rows || taken.bytes >= BYTES_A_POLL {
                break;
            }
            let message = match opened.queue.poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => message,
                // What was there when the job was to stop has been read: the end that is told lies behind it.
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    self.ended |= self.split.stop.is_some();
                    break;
                }
                Some(Err(e)) => return Err(failed(e, &self.split, self.next.0)),
            };
            let offset = message.offset();
            if self.split.stop.is_some_and(|stop| offset >= stop) {
                self.ended = true;
                break;
            }
            // librdkafka may hand out what lies before the place that it was told, within a batch of the broker.
            if offset < self.next.0 {
                continue;
            }
            if let Some(ready) = message.payload().and_then(|payload| self.decoder.before(payload)) {
                self.waiting = Some((message.detach(), ready));
                break;
            }
            self.take(&message, &mut taken)?;
        }
        Ok(taken.last)
    }

    /// Takes one record.
    fn take<M: Message>(&mut self, message: &M, taken: &mut Taken) -> Result<()> {
        let offset = message.offset();
        if taken.last.is_none() && offset != self.next.0 {
            // The record that was half handed out is gone.
            self.next.1 = 0;
        }
        taken.bytes += message.payload().map_or(0, <[u8]>::len) + message.key().map_or(0, <[u8]>::len);
        let before = self.decoder.rows();
        if let Some(payload) = message.payload()
            && let Err(e) = self.decoder.push(payload)
        {
            match self.bad_records {
                BadRecords::Drop => tracing::debug!("dropped: {}", bad(e, &self.split, offset)),
                // Rows before a bad record are handed out first, so that the batch size changes nothing.
                BadRecords::Fail if before > 0 => {
                    self.bad = Some(bad(e, &self.split, offset));
                    taken.enough = true;
                    return Ok(());
                }
                BadRecords::Fail => return Err(bad(e, &self.split, offset)),
            }
        }
        let rows = self.decoder.rows() - before;
        self.columns.push(message, rows);
        taken.last = Some((offset, rows));
        if self.split.stop.is_some_and(|stop| offset + 1 >= stop) {
            self.ended = true;
            taken.enough = true;
        }
        Ok(())
    }

    /// The rows that were taken, without those of the first record that were handed out before a restart.
    fn batch(&mut self) -> Result<RecordBatch> {
        let rows = self.decoder.rows();
        let values = self.decoder.take()?;
        let arrays = values.columns().iter().cloned().chain(self.columns.take()).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options)
            .map_err(|e| Error::internal("a batch that does not fit its schema").source(e))?;
        let again = (std::mem::take(&mut self.next.1) as usize).min(rows);
        Ok(batch.slice(again, rows - again))
    }

    /// At most `max_rows` of `batch`, which ends with record `last` of so many rows; the others wait.
    fn hand_out(&mut self, batch: RecordBatch, (offset, rows): (i64, usize), max_rows: usize) -> RecordBatch {
        let more = batch.num_rows().saturating_sub(max_rows);
        if more == 0 {
            self.next = (offset + 1, 0);
            return batch;
        }
        self.next = (offset, (rows - more) as u32);
        self.left = Some(batch.slice(max_rows, more));
        batch.slice(0, max_rows)
    }

    fn poll(&mut self, cx: &mut Context<'_>, max_rows: usize) -> Result<Poll<Read>> {
        if let Some(left) = self.left.take() {
            let last = (self.next.0, self.next.1 as usize + left.num_rows());
            return Ok(Poll::Ready(Read::Batch(self.hand_out(left, last, max_rows))));
        }
        if self.ended {
            return Ok(Poll::Ready(Read::End));
        }
        // Before the queue is looked at: what comes behind that look wakes.
        self.waker.register(cx.waker());
        match self.consumer.serve()? {
            None => self.timer = None,
            Some(left) => {
                let timer = self.timer.get_or_insert_with(|| self.consumer.look_again(left));
                if let Poll::Ready(answer) = timer.as_mut().poll(cx) {
                    self.timer = None;
                    answer?;
                    cx.waker().wake_by_ref();
                }
            }
        }
        if let Some(e) = self.bad.take() {
            return Err(e);
        }
        if let Some((_, ready)) = &mut self.waiting {
            match ready.as_mut().poll(cx) {
                Poll::Ready(done) => done?,
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        let Some(last) = self.fill(max_rows)? else {
            if self.waiting.is_some() {
                cx.waker().wake_by_ref();
            }
            if self.ended {
                return Ok(Poll::Ready(Read::End));
            }
            return self.bad.take().map_or(Ok(Poll::Pending), Err);
        };
        self.consumer.is_up();
        if self.decoder.rows() > 0 {
            let batch = self.batch()?;
            if batch.num_rows() > 0 {
                return Ok(Poll::Ready(Read::Batch(self.hand_out(batch, last, max_rows))));
            }
        }
        // Nothing but tombstones, or what was dropped; there may be more.
        self.next = (last.0 + 1, 0);
        cx.waker().wake_by_ref();
        Ok(Poll::Pending)
    }
}

impl SplitReader for PartitionReader {
    fn poll_next(&mut self, cx: &mut Context<'_>, max_rows: usize) -> Poll<Result<Read>> {
        match self.poll(cx, max_rows.max(1)) {
            Ok(Poll::Ready(read)) => Poll::Ready(Ok(read)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(e) => Poll::Ready(Err(e)),
        }
    }

    fn position(&self) -> Position {
        let (offset, rows) = self.next;
        let detail = if rows == 0 { Vec::new() } else { rows.to_le_bytes().to_vec() };
        Position { offset: offset.max(0) as u64, detail }
    }

    fn on_durable(&mut self, position: &Position) {
        if let Some((offset, _)) = position_of(position) {
            self.consumer.is_durable(&self.split.topic, self.split.partition, offset);
        }
    }
}

impl Drop for PartitionReader {
    fn drop(&mut self) {
        if let Some(opened) = self.opened.take() {
            self.consumer.close(&self.split.topic, self.split.partition, &opened);
        }
    }
}

fn position_of(position: &Position) -> Option<(i64, u32)> {
    let rows = match &position.detail[..] {
        [] => 0,
        detail => u32::from_le_bytes(detail.try_into().ok()?),
    };
    Some((i64::try_from(position.offset).ok()?, rows))
}

fn place(split: &PartitionSplit, offset: i64) -> String {
    format!("topic {}, partition {}, offset {offset}", split.topic, split.partition)
}

fn bad(error: Error, split: &PartitionSplit, offset: i64) -> Error {
    Error::new(error.kind(), 3310, error.what().to_owned())
        .at(place(split, offset))
        .next("correct the format of the source, or have bad records dropped")
}

fn failed(error: KafkaError, split: &PartitionSplit, next: i64) -> Error {
    let at = place(split, next);
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => Error::data(
            "the records that are to be read next are gone: the topic no longer keeps them, or was made anew",
        )
        .code(3311)
        .at(at)
        .next("start the job anew at an offset that is there, and have the topic keep records for longer"),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownPartition) => {
            // Also where a broker does not know of it yet; whoever discovers partitions says it for good.
            Error::unavailable("the partition is gone").code(2414).at(at).source(error)
        }
        _ => Error::unavailable("the partition cannot be read").code(2413).at(at).source(error),
    }
}
