//! One partition, read in order.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::SchemaRef;
use futures::task::AtomicWaker;
use millstream_common::env::{BoxFuture, Running};
use millstream_common::{Error, ErrorKind, Result};
use millstream_engine::source::{Position, Read, SplitGauges, SplitReader};
use millstream_formats::Decoder;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::bad::OnBad;
use super::consumer::{Consumer, Opened};
use super::dead_letters::Letter;
use super::gauges::PartitionGauges;
use super::metadata::Columns;
use super::queue::{Next, Record, Records};
use super::splits::PartitionSplit;

/// Records that one call takes at most although they give no row (tombstones, records that are dropped).
const RECORDS_A_POLL: usize = 16_384;

/// Bytes of records that one call takes, give or take a record: a batch has no more than that by far.
const BYTES_A_POLL: usize = 16 << 20;

/// Bytes of bad records that one call sets aside, give or take a record: they are written and acknowledged together.
const LETTERS_A_POLL: usize = 1 << 20;

pub(super) struct PartitionReader {
    consumer: Arc<Consumer>,
    split: PartitionSplit,
    schema: SchemaRef,
    decoder: Box<dyn Decoder>,
    columns: Columns,
    on_bad: OnBad,
    waker: Arc<AtomicWaker>,
    /// What was taken out of the queue, and the right to do that; `None` before the first rows are asked for.
    opened: Option<(Records, Opened)>,
    /// The offset of the next record, and how many of its rows were handed out already.
    next: (i64, u32),
    /// Records of what was taken and not handed out, with how many rows each has: the last, or all that have rows when bad ones
    /// are written. While they are, the number of rows that are wanted may fall, and a batch may be cut anywhere.
    records: Vec<(i64, usize)>,
    /// Rows from record `next` on which found no room in the batch before, and the offset of the last record that was taken.
    left: Option<(RecordBatch, i64)>,
    /// Bad records on their way to their topic, how many, and the offset of the last record that was taken with them.
    letters: Option<(Running<Result<()>>, u64, i64)>,
    /// A record behind what was handed out that cannot be read.
    bad: Option<Error>,
    /// The first of those that were taken out of the queue cannot be read before this is done.
    waiting: Option<BoxFuture<'static, Result<()>>>,
    /// While no broker answers.
    timer: Option<BoxFuture<'static, Result<()>>>,
    /// Where the partition's end was when nothing more was there to be taken; `None` while there may be.
    reached: Option<i64>,
    ended: bool,
    gauges: Arc<PartitionGauges>,
}

/// What one call has taken.
#[derive(Default)]
struct Taken {
    bytes: usize,
    /// The offset of the last record.
    last: Option<i64>,
    /// Its time stamp.
    written_ms: Option<i64>,
    /// Bad records for their topic, and how many bytes they are.
    letters: Vec<Letter>,
    letter_bytes: usize,
    /// Nothing behind it is to be taken.
    enough: bool,
    /// Nothing more is there: the queue wakes when there is.
    all: bool,
}

impl PartitionReader {
    pub(super) fn new(
        consumer: Arc<Consumer>,
        split: PartitionSplit,
        position: Option<&Position>,
        schema: SchemaRef,
        decoder: Box<dyn Decoder>,
        columns: Columns,
        on_bad: OnBad,
    ) -> Result<Self> {
        let next = match position {
            None => (split.start, 0),
            Some(p) => position_of(p).ok_or_else(|| {
                Error::new(ErrorKind::Corrupt, 4321, "the position of a split cannot be").at(split.id())
            })?,
        };
        let ended = split.stop.is_some_and(|stop| next.0 >= stop);
        let gauges = Arc::new(PartitionGauges::new(&consumer, &split, next.0, ended)?);
        Ok(Self {
            consumer,
            split,
            schema,
            decoder,
            columns,
            on_bad,
            waker: Arc::default(),
            opened: None,
            next,
            records: Vec::new(),
            left: None,
            letters: None,
            bad: None,
            waiting: None,
            timer: None,
            reached: None,
            ended,
            gauges,
        })
    }

    /// Takes records until there are `max_rows` rows, none is there, or one has to wait.
    fn fill(&mut self, max_rows: usize) -> Result<Taken> {
        let (mut records, opened) = match self.opened.take() {
            Some(open) => open,
            None => {
                let (topic, partition) = (&self.split.topic, self.split.partition);
                let opened = self.consumer.open(topic, partition, self.next.0, self.waker.clone())?;
                (opened.records(), opened)
            }
        };
        let filled = match opened.turn() {
            Some(_turn) => self.fill_from(&mut records, max_rows),
            None => Err(Error::canceled("another reader has taken over this partition").at(self.split.id())),
        };
        self.opened = Some((records, opened));
        filled
    }

    fn fill_from(&mut self, records: &mut Records, max_rows: usize) -> Result<Taken> {
        let mut taken = Taken::default();
        // Nothing is in the way of the one that was waited for.
        let mut ready = self.waiting.take().is_some();
        for _ in 0..RECORDS_A_POLL {
            if taken.enough || self.ended || self.decoder.rows() >= max_rows || taken.bytes >= BYTES_A_POLL {
                break;
            }
            match records.first() {
                None => {
                    taken.all = true;
                    break;
                }
                Some(Next::Record(record)) => {
                    self.reached = None;
                    let offset = record.offset();
                    if self.split.stop.is_some_and(|stop| offset >= stop) {
                        self.ended = true;
                        break;
                    }
                    // librdkafka may hand out what lies before the place that it was told, within a batch of the broker.
                    if offset >= self.next.0 {
                        let before = if ready { None } else { record.value().and_then(|v| self.decoder.before(v)) };
                        if before.is_some() {
                            self.waiting = before;
                            break;
                        }
                        self.take(record, &mut taken)?;
                    }
                }
                Some(Next::End(end)) => {
                    self.reached = self.gauges.end();
                    // What was there when the job was to stop has been read, unless this is a leader that lacks some of it.
                    self.ended = self.split.stop.is_some_and(|stop| end >= stop);
                    // Records that were aborted, and markers of transactions, are behind us, too.
                    if end > self.next.0 {
                        if taken.last.is_none() {
                            // The record that was half handed out is gone.
                            self.next.1 = 0;
                        }
                        taken.last = taken.last.max(Some(end - 1));
                    }
                }
                Some(Next::Failed(e)) => return Err(failed(e, &self.split, self.next.0)),
            }
            ready = false;
            records.pass();
        }
        Ok(taken)
    }

    /// Takes one record.
    fn take(&mut self, record: Record<'_>, taken: &mut Taken) -> Result<()> {
        let offset = record.offset();
        if taken.last.is_none() && offset != self.next.0 {
            // The record that was half handed out is gone.
            self.next.1 = 0;
        }
        taken.bytes += record.value().map_or(0, <[u8]>::len) + record.key().map_or(0, <[u8]>::len);
        let before = self.decoder.rows();
        let read = self
            .columns
            .headers(record)
            .and_then(|headers| record.value().map_or(Ok(()), |value| self.decoder.push(value)).map(|()| headers));
        let headers = match read {
            Ok(headers) => headers,
            Err(e) => {
                self.take_bad(record, e, taken)?;
                if self.bad.is_some() {
                    return Ok(());
                }
                Vec::new()
            }
        };
        let rows = self.decoder.rows() - before;
        if taken.last.is_none() {
            // It may be bad by now.
            self.next.1 = self.next.1.min(rows as u32);
        }
        self.columns.push(&self.split, record, &headers, rows);
        taken.last = Some(offset);
        taken.written_ms = record.timestamp_ms();
        if rows > 0 {
            if !matches!(self.on_bad, OnBad::Write(_)) {
                self.records.clear();
            }
            self.records.push((offset, rows));
        }
        if self.split.stop.is_some_and(|stop| offset + 1 >= stop) {
            self.ended = true;
            taken.enough = true;
        }
        Ok(())
    }

    /// Takes one that cannot be read.
    fn take_bad(&mut self, record: Record<'_>, error: Error, taken: &mut Taken) -> Result<()> {
        match &self.on_bad {
            OnBad::Drop(counts) => {
                self.gauges.dropped_one();
                counts.drop_one(|| bad(error, &self.split, record.offset()).to_string());
            }
            OnBad::Write(_) => {
                let letter = Letter::new(record, &error);
                taken.letter_bytes += letter.bytes();
                taken.enough |= taken.letter_bytes >= LETTERS_A_POLL;
                taken.letters.push(letter);
            }
            // Rows before a bad record are handed out first, so that the batch size changes nothing.
            OnBad::Fail if self.decoder.rows() > 0 => {
                self.bad = Some(bad(error, &self.split, record.offset()));
                taken.enough = true;
            }
            OnBad::Fail => return Err(bad(error, &self.split, record.offset())),
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

    /// What was taken up to record `last`; nothing yet when that gives no rows.
    fn give(&mut self, cx: &mut Context<'_>, last: i64, max_rows: usize) -> Result<Poll<Read>> {
        if self.decoder.rows() > 0 {
            let begun = self.consumer.env().now();
            let batch = self.batch()?;
            self.gauges.decoded(self.consumer.env().now().since(begun));
            if batch.num_rows() > 0 {
                return Ok(Poll::Ready(Read::Batch(self.hand_out(batch, last, max_rows))));
            }
        }
        // Nothing but tombstones, or bad records; there may be more.
        self.records.clear();
        self.next = (last + 1, 0);
        cx.waker().wake_by_ref();
        Ok(Poll::Pending)
    }

    /// At most `max_rows` of `batch`, behind which comes what follows record `last`; the others wait.
    fn hand_out(&mut self, batch: RecordBatch, last: i64, max_rows: usize) -> RecordBatch {
        let more = batch.num_rows().saturating_sub(max_rows);
        if more == 0 {
            self.records.clear();
            self.next = (last + 1, 0);
            return batch;
        }
        // From behind: what is left ends with the last record.
        let (mut behind, mut first) = (more, 0);
        for (i, &(offset, rows)) in self.records.iter().enumerate().rev() {
            if behind <= rows {
                (self.next, first) = ((offset, (rows - behind) as u32), i);
                break;
            }
            behind -= rows;
        }
        self.records.drain(..first);
        self.left = Some((batch.slice(max_rows, more), last));
        batch.slice(0, max_rows)
    }

    fn poll(&mut self, cx: &mut Context<'_>, max_rows: usize) -> Result<Poll<Read>> {
        if let Some((left, last)) = self.left.take() {
            return Ok(Poll::Ready(Read::Batch(self.hand_out(left, last, max_rows))));
        }
        if let Some((written, count, last)) = &mut self.letters {
            let (count, last) = (*count, *last);
            let Poll::Ready(written) = Pin::new(written).poll(cx) else { return Ok(Poll::Pending) };
            self.letters = None;
            written??;
            self.gauges.wrote_letters(count);
            return self.give(cx, last, max_rows);
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
        if let Some(ready) = &mut self.waiting {
            match ready.as_mut().poll(cx) {
                Poll::Ready(done) => done?,
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        let begun = self.consumer.env().now();
        let taken = self.fill(max_rows)?;
        let Some(last) = taken.last else {
            if !taken.all {
                cx.waker().wake_by_ref();
            }
            if self.ended {
                return Ok(Poll::Ready(Read::End));
            }
            return self.bad.take().map_or(Ok(Poll::Pending), Err);
        };
        self.gauges.took(taken.bytes, taken.written_ms);
        self.gauges.decoded(self.consumer.env().now().since(begun));
        self.consumer.is_up();
        match &self.on_bad {
            OnBad::Write(topic) if !taken.letters.is_empty() => {
                let count = taken.letters.len() as u64;
                self.letters = Some((topic.deliver(&self.split, taken.letters), count, last));
                cx.waker().wake_by_ref();
                Ok(Poll::Pending)
            }
            _ => self.give(cx, last, max_rows),
        }
    }
}

impl SplitReader for PartitionReader {
    fn poll_next(&mut self, cx: &mut Context<'_>, max_rows: usize) -> Poll<Result<Read>> {
        let polled = self.poll(cx, max_rows.max(1));
        // What is in hand is not handed out.
        let in_hand = self.left.is_some() || self.letters.is_some() || self.waiting.is_some();
        let ended = matches!(polled, Ok(Poll::Ready(Read::End)));
        self.gauges.stands(self.next.0, self.reached.filter(|_| !in_hand), (self.opened.is_some(), ended));
        match polled {
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

    fn gauges(&self) -> Option<Arc<dyn SplitGauges>> {
        Some(self.gauges.clone())
    }
}

impl Drop for PartitionReader {
    fn drop(&mut self) {
        self.gauges.closed();
        if let Some((records, opened)) = self.opened.take() {
            drop(records);
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

fn bad(error: Error, split: &PartitionSplit, offset: i64) -> Error {
    Error::new(error.kind(), 3310, error.what().to_owned())
        .at(split.place(offset))
        .next("correct the format of the source, or have bad records dropped or written to another topic")
}

fn failed(error: KafkaError, split: &PartitionSplit, next: i64) -> Error {
    let at = split.place(next);
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => Error::data(
            "the records that are to be read next are gone: the topic no longer keeps them, or was made anew",
        )
        .code(3311)
        .at(at)
        .next("start the job anew at an offset that is there, and have the topic keep records for longer"),
        _ => Error::unavailable("the partition cannot be read").code(2413).at(at).source(error),
    }
}
