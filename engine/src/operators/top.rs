//! The greatest rows of a window: whole rows, all of them when several share the greatest value.

use std::sync::Arc;

use arrow_array::{Array, BooleanArray, RecordBatch, TimestampMillisecondArray};
use arrow_schema::{FieldRef, SchemaRef};
use arrow_select::filter::filter_record_batch;
use millstream_common::{Error, Result};
use millstream_state_store::schema::{Field, Form};

use super::EMIT_ROWS;
use super::due::{Firing, Next, next_due};
use super::keys::{
    check_append_only, check_int64, check_positive, check_time, int64, output, output_schema, time_field, times,
};
use super::map::MapFn;
use super::row::{RowBuilder, RowCodec};
use super::window::WindowColumns;
use crate::element::TimestampMs;
use crate::operator::{Collector, KeyedBatch, Operator, Progress};
use crate::state::value::{put_bytes, put_i64, put_u64, take_bytes, take_i64, take_u64};
use crate::state::{StateSet, StateValue, TimedState};

/// How far beyond the due windows a scan looks, when their length is not known.
const AHEAD_MS: i64 = 1_000;

/// How the window of a row is found.
#[derive(Clone, Copy, Debug)]
enum WindowOf {
    /// From its event time: tumbling windows of this size.
    Time { column: usize, size_ms: i64 },
    /// It stands in the row: a column with its exclusive end.
    End { column: usize },
}

impl WindowOf {
    /// The last millisecond of each row's window: the time of its entry.
    fn lasts(self, batch: &RecordBatch, into: &mut Vec<TimestampMs>) -> Result<()> {
        into.clear();
        match self {
            Self::Time { column, size_ms } => {
                let last = |t: &i64| (t.div_euclid(size_ms) + 1) * size_ms - 1;
                into.extend(times(batch, column)?.iter().map(last));
            }
            Self::End { column } => into.extend(times(batch, column)?.iter().map(|end| end - 1)),
        }
        Ok(())
    }
}

/// The greatest value so far, and the rows that have it.
#[derive(Debug)]
struct Best {
    value: i64,
    rows: Vec<Box<[u8]>>,
    /// Sum of the lengths of the rows.
    bytes: usize,
}

impl Best {
    fn add(&mut self, value: i64, row: &[u8]) {
        if self.value < value {
            self.value = value;
            self.rows.clear();
            self.bytes = 0;
        }
        self.bytes += row.len();
        self.rows.push(row.into());
    }
}

impl StateValue for Best {
    fn encode(&self, into: &mut Vec<u8>) {
        put_i64(self.value, into);
        put_u64(self.rows.len() as u64, into);
        self.rows.iter().for_each(|row| put_bytes(row, into));
    }

    fn decode(mut bytes: &[u8]) -> Result<Self> {
        let (value, count) = (take_i64(&mut bytes)?, take_u64(&mut bytes)?);
        let mut best = Self { value, rows: Vec::new(), bytes: 0 };
        for _ in 0..count {
            best.add(value, take_bytes(&mut bytes)?);
        }
        Ok(best)
    }

    fn heap_bytes(&self) -> usize {
        self.rows.capacity() * size_of::<Box<[u8]>>() + self.bytes
    }
}

/// Keeps, per key and window, the rows with the greatest value of a column, and emits them at the window's end. Rows
/// without a value are left out. Emits all columns of its input, then the window's own if asked for.
pub struct WindowTop {
    window: WindowOf,
    value: usize,
    columns: WindowColumns,
    codec: RowCodec,
    schema: SchemaRef,
    state: TimedState<Best>,
    lasts: Vec<TimestampMs>,
    firing: Option<Firing>,
}

impl WindowTop {
    /// Per key and tumbling window of `size_ms` of the event times in `time_column`.
    pub fn by_time(
        input: &SchemaRef,
        time_column: usize,
        size_ms: i64,
        value_column: usize,
        columns: WindowColumns,
    ) -> Result<Self> {
        check_time(input, time_column)?;
        check_positive(size_ms, "the size of a window")?;
        Self::new(input, WindowOf::Time { column: time_column, size_ms }, size_ms, value_column, columns)
    }

    /// Per window that an earlier operator has put the row into: `end_column` holds its exclusive end. The key is that
    /// column, alone or with others.
    pub fn by_window_end(input: &SchemaRef, end_column: usize, value_column: usize) -> Result<Self> {
        check_time(input, end_column)?;
        let window = WindowOf::End { column: end_column };
        Self::new(input, window, AHEAD_MS, value_column, WindowColumns::default())
    }

    fn new(input: &SchemaRef, window: WindowOf, ahead: i64, value: usize, columns: WindowColumns) -> Result<Self> {
        check_append_only(input)?;
        check_int64(input, value)?;
        let codec = RowCodec::new(input, (0..input.fields().len()).collect())?;
        let fields: Vec<FieldRef> = input.fields().iter().cloned().chain(columns.fields()).collect();
        let schema = output_schema(fields)?;
        let fields = vec![Field::new("greatest", Form::Integer), Field::new("rows", codec.list_form(false))];
        let form = Form::Record { kind: "greatest".to_owned(), fields };
        let words = format!("greatest value and its rows: {}", codec.value_schema());
        let state = TimedState::new("greatest", &words, ahead).described(form);
        Ok(Self { window, value, columns, codec, schema, state, lasts: Vec::new(), firing: None })
    }

    /// The columns that it emits.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// Emits one batch of what fires; true when something was left.
    fn emit(&mut self, firing: &mut Firing, out: &mut Collector) -> Result<bool> {
        let mut builder = self.codec.builder();
        let mut rows = 0;
        while rows < EMIT_ROWS
            && let Some(slot) = firing.next()
        {
            let Some(best) = self.state.expire(slot) else { continue };
            for row in &best.rows {
                builder.push(row)?;
                rows += 1;
                if rows % EMIT_ROWS == 0 {
                    self.emit_rows(std::mem::replace(&mut builder, self.codec.builder()), EMIT_ROWS, firing.time, out)?;
                }
            }
        }
        self.emit_rows(builder, rows % EMIT_ROWS, firing.time, out)?;
        Ok(rows >= EMIT_ROWS)
    }

    fn emit_rows(&self, builder: RowBuilder, rows: usize, last: TimestampMs, out: &mut Collector) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        let mut columns = builder.finish()?;
        let size = if let WindowOf::Time { size_ms, .. } = self.window { size_ms } else { 0 };
        let bound = |time: i64| Arc::new(TimestampMillisecondArray::from_value(time, rows)) as arrow_array::ArrayRef;
        columns.extend(self.columns.values(bound(last + 1 - size), bound(last + 1)));
        out.emit(output(&self.schema, columns)?);
        Ok(())
    }
}

impl Operator for WindowTop {
    fn name_reads(&mut self, _input: usize, batch: &KeyedBatch) -> Result<()> {
        self.window.lasts(&batch.records, &mut self.lasts)?;
        self.state.name_batch(&batch.keys, &self.lasts);
        Ok(())
    }

    fn process(&mut self, _input: usize, batch: &KeyedBatch, out: &mut Collector) -> Result<()> {
        let rows = self.state.take_rows()?;
        let (values, bound) = (int64(&batch.records, self.value)?, self.codec.bind(&batch.records)?);
        let (mut late, mut bytes) = (0, Vec::new());
        for (row, &slot) in rows.slots.iter().enumerate() {
            let last = self.state.time(slot);
            if last <= out.fired_max() && last <= out.fired(self.state.group(slot)) {
                late += 1;
                continue;
            }
            if values.is_null(row) {
                continue;
            }
            let value = values.value(row);
            if self.state.get(slot).is_some_and(|best| best.value > value) {
                continue;
            }
            bound.encode(row, &mut bytes);
            let init = || Best { value, rows: Vec::new(), bytes: 0 };
            self.state.update(slot, init, |best| best.add(value, &bytes));
        }
        out.count_late(late);
        self.state.give_back(rows);
        Ok(())
    }

    fn advance(&mut self, watermark: TimestampMs, out: &mut Collector) -> Result<Progress> {
        loop {
            if let Some(mut firing) = self.firing.take()
                && self.emit(&mut firing, out)?
            {
                self.firing = Some(firing);
                return Ok(Progress::More);
            }
            match next_due(&mut self.state, watermark, out) {
                Next::Fire(time) => self.firing = Some(Firing::start(&mut self.state, time, out)),
                Next::State => return Ok(Progress::NeedsState),
                Next::Nothing => return Ok(Progress::Done),
            }
        }
    }

    fn parameters(&self) -> Vec<(String, String)> {
        let window = match self.window {
            WindowOf::Time { size_ms, .. } => format!("of {size_ms} ms"),
            WindowOf::End { .. } => "that rows were put into before".to_owned(),
        };
        // The columns of the input come first.
        let greatest = self.schema.field(self.value).name().clone();
        vec![("window".to_owned(), window), ("greatest".to_owned(), greatest)]
    }

    fn states(&mut self) -> Vec<&mut dyn StateSet> {
        vec![&mut self.state]
    }
}

/// The rows of a batch that can still be the greatest of their window: those with the greatest value of their window in
/// the batch. A function without state, to be put before the exchange to [`WindowTop::by_window_end`].
pub fn local_top(input: &SchemaRef, end_column: usize, value_column: usize) -> Result<MapFn> {
    check_append_only(input)?;
    check_time(input, end_column)?;
    check_int64(input, value_column)?;
    Ok(Arc::new(move |batch| {
        let (ends, values) = (times(batch, end_column)?, int64(batch, value_column)?);
        let mut greatest: Vec<(i64, i64)> = Vec::new();
        for (row, &end) in ends.iter().enumerate().filter(|(row, _)| values.is_valid(*row)) {
            let value = values.value(row);
            // Few windows meet in a batch, and most rows lie in the window of the row before.
            match greatest.iter().rposition(|g| g.0 == end) {
                Some(i) => greatest[i].1 = greatest[i].1.max(value),
                None => greatest.push((end, value)),
            }
        }
        greatest.sort_unstable();
        let keeps = |row: usize| {
            let found = greatest.binary_search_by_key(&ends[row], |g| g.0);
            values.is_valid(row) && found.is_ok_and(|i| greatest[i].1 == values.value(row))
        };
        let keep: BooleanArray = (0..batch.num_rows()).map(|row| Some(keeps(row))).collect();
        filter_record_batch(batch, &keep).map_err(|e| Error::internal("rows cannot be filtered").code(9122).source(e))
    }))
}

impl WindowColumns {
    /// The fields that were asked for.
    pub(super) fn fields(&self) -> impl Iterator<Item = FieldRef> {
        self.start.iter().chain(&self.end).map(|name| time_field(name)).collect::<Vec<_>>().into_iter()
    }

    /// Of both columns, those that were asked for.
    pub(super) fn values<T>(&self, start: T, end: T) -> impl Iterator<Item = T> {
        self.start.as_ref().map(|_| start).into_iter().chain(self.end.as_ref().map(|_| end))
    }
}
