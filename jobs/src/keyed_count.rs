//! `keyed-count`: for each event the key's state (a count and some bytes) is read, counted and written back with fresh
//! bytes. So state is as large as one likes, every event touches it, and the result is known in advance.
//!
//! At the end of input it gives the count of every key that divides by 1,000, and under key -1 the count of all events.
//! The total comes by a second way: each batch of events sends its number of rows under key -1 to the same operator, so
//! that it says how many events there were even if a key's count were wrong.

use std::sync::Arc;

use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, RecordBatch, cast::AsArray};
use arrow_schema::{DataType, Field as Column, Schema, SchemaRef};
use millstream_common::{Error, Result};
use millstream_connectors::keyed_count::{event_times, value_bytes};
use millstream_engine::dataflow::{Dataflow, JobContext, JobDefinition};
use millstream_engine::element::{TimestampMs, WATERMARK_MAX};
use millstream_engine::graph::JobGraph;
use millstream_engine::operator::{Collector, KeyedBatch, Operator, Progress};
use millstream_engine::source::WatermarkStrategy;
use millstream_engine::state::value::{put_i64, take_i64};
use millstream_engine::state::{KeyedState, SlotId, StateSet, StateValue, TimedState};
use millstream_state_store::key::decode_keys;
use millstream_state_store::schema::{Field, Form};

use crate::args::KeyedCountArgs;

/// Keys that divide by this are printed at the end.
const PRINTED: i64 = 1_000;
/// The key of the total.
const TOTAL: i64 = -1;
/// When results come: at the end of time, which is the end of input.
const END: TimestampMs = WATERMARK_MAX;
/// Results of one step at the end: their state is resident at the same time.
const RESULTS_A_STEP: usize = 1_024;
/// The input of the events; the other one brings numbers of rows.
const EVENTS: usize = 0;

/// The job.
#[must_use]
pub fn definition() -> JobDefinition {
    JobDefinition::new(
        "keyed-count",
        "counts events by key, with some bytes of state a key: for measuring and testing paged state",
        |args: &KeyedCountArgs, _: &JobContext| build(args),
    )
}

fn build(args: &KeyedCountArgs) -> Result<JobGraph> {
    let flow = Dataflow::new();
    let events = flow
        .source("events", Arc::new(args.source()))
        .watermarks(WatermarkStrategy::monotonous(event_times()))
        .rate(args.rate);
    let totals = events.map("rows per batch", key_and("rows"), |batch| {
        let columns: Vec<ArrayRef> =
            vec![Arc::new(Int64Array::from(vec![TOTAL])), Arc::new(Int64Array::from(vec![batch.num_rows() as i64]))];
        rows(&key_and("rows"), columns)
    });
    let value_bytes = args.value_bytes as usize;
    events
        .select(["key"])
        .key_by(["key"])
        .connect(&totals.key_by(["key"]))
        .process("count", key_and("count"), move || KeyedCount::new(value_bytes))
        .sink("out", args.output.sink()?);
    flow.build()
}

fn key_and(name: &str) -> SchemaRef {
    Arc::new(Schema::new(vec![Column::new("key", DataType::Int64, false), Column::new(name, DataType::Int64, false)]))
}

fn rows(schema: &SchemaRef, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
    RecordBatch::try_new(schema.clone(), columns).map_err(|e| Error::internal("columns that make no batch").source(e))
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a Int64Array> {
    let column = batch.column_by_name(name).and_then(|c| c.as_primitive_opt::<Int64Type>());
    column.ok_or_else(|| Error::internal(format!("a batch without the integers {name:?}")))
}

/// What is kept of a key.
#[derive(Default)]
struct Counted {
    count: i64,
    bytes: Vec<u8>,
}

impl StateValue for Counted {
    fn encode(&self, into: &mut Vec<u8>) {
        put_i64(self.count, into);
        into.extend_from_slice(&self.bytes);
    }

    fn decode(mut bytes: &[u8]) -> Result<Self> {
        let count = take_i64(&mut bytes)?;
        Ok(Self { count, bytes: bytes.to_vec() })
    }

    fn heap_bytes(&self) -> usize {
        self.bytes.capacity()
    }
}

/// Counts by key; see the module.
struct KeyedCount {
    value_bytes: usize,
    counts: KeyedState<Counted>,
    /// An entry at the end of time for each key that is to be printed.
    results: TimedState<()>,
}

impl KeyedCount {
    fn new(value_bytes: usize) -> Self {
        Self {
            value_bytes,
            counts: KeyedState::new("counts", "varint count, bytes").described(Form::Record {
                kind: String::new(),
                fields: vec![Field::new("count", Form::Integer), Field::new("bytes", Form::Rest)],
            }),
            // Nothing is due before the end: one scan looks at everything.
            results: TimedState::new("results", "", i64::MAX),
        }
    }

    /// The next keys whose results are due, with the slots of their counts.
    fn due(&mut self) -> Vec<(SlotId, SlotId)> {
        let mut due = self.results.sorted_at(END);
        due.truncate(RESULTS_A_STEP);
        let Self { results, counts, .. } = self;
        due.into_iter().map(|timer| (timer, counts.name(results.hash(timer), results.key(timer)))).collect()
    }
}

impl Operator for KeyedCount {
    fn name_reads(&mut self, _input: usize, batch: &KeyedBatch) -> Result<()> {
        self.counts.name_batch(&batch.keys);
        Ok(())
    }

    fn process(&mut self, input: usize, batch: &KeyedBatch, _out: &mut Collector) -> Result<()> {
        let keys = column(&batch.records, "key")?;
        let rows_of_batches = if input == EVENTS { None } else { Some(column(&batch.records, "rows")?) };
        let slots = self.counts.take_rows()?;
        for (i, &slot) in slots.slots.iter().enumerate() {
            let (key, size) = (keys.value(i), self.value_bytes);
            let first = self.counts.update(slot, Counted::default, |counted| {
                let first = counted.count == 0;
                match rows_of_batches {
                    Some(rows) => counted.count += rows.value(i),
                    None => {
                        counted.count += 1;
                        value_bytes(key, counted.count.unsigned_abs(), size, &mut counted.bytes);
                    }
                }
                first
            });
            if first && (key == TOTAL || key % PRINTED == 0) {
                self.results.set(batch.keys.hash(i), END, batch.keys.key(i), ());
            }
        }
        self.counts.give_back(slots);
        Ok(())
    }

    fn advance(&mut self, watermark: TimestampMs, out: &mut Collector) -> Result<Progress> {
        if watermark < END {
            return Ok(Progress::Done);
        }
        if !self.results.load_until(END, out.fired_min()) {
            return Ok(Progress::NeedsState);
        }
        let due = self.due();
        if due.is_empty() {
            self.results.end_advance();
            return Ok(Progress::Done);
        }
        if due.iter().any(|(_, count)| !self.counts.is_resident(*count)) {
            return Ok(Progress::NeedsState);
        }
        let keys = decode_keys(due.iter().map(|(timer, _)| self.results.key(*timer)), &[DataType::Int64])?;
        let counts = due.iter().map(|(_, count)| self.counts.get(*count).map_or(0, |c| c.count));
        let counts: ArrayRef = Arc::new(Int64Array::from_iter_values(counts));
        out.emit(rows(&key_and("count"), keys.into_iter().chain([counts]).collect())?);
        for (timer, _) in due {
            self.results.expire(timer);
        }
        Ok(Progress::More)
    }

    fn states(&mut self) -> Vec<&mut dyn StateSet> {
        vec![&mut self.counts, &mut self.results]
    }
}
