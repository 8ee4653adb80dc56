//! An operator of the simulation's own, with both kinds of state and encodings that the checks know: counts rows by key
//! and reminds of each key some time after its rows.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMillisecondType;
use arrow_array::{Int64Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use millstream_common::{Error, Result};
use millstream_engine::element::TimestampMs;
use millstream_engine::operator::{Collector, KeyedBatch, Operator, Progress};
use millstream_engine::state::{KeyedState, StateSet, TimedState};

/// Reminders of a batch at most.
const EMIT_ROWS: usize = 64;

/// When a row at `time` is reminded of.
#[must_use]
pub fn due(time: TimestampMs) -> TimestampMs {
    (time.div_euclid(1_000) + 2) * 1_000
}

/// Counts rows by key; emits (key, due) once for each key and time.
pub struct Reminders {
    counts: KeyedState<i64>,
    timers: TimedState<()>,
}

impl Default for Reminders {
    fn default() -> Self {
        Self { counts: KeyedState::new("counts", "i64 count"), timers: TimedState::new("timers", "", 700) }
    }
}

/// The columns that it emits.
#[must_use]
pub fn schema() -> SchemaRef {
    let number = |name: &str| Field::new(name, DataType::Int64, false);
    Arc::new(Schema::new(vec![number("key"), number("due")]))
}

/// The number behind the encoded key of one Int64 column.
pub fn key_number(key: &[u8]) -> Result<i64> {
    let digits = key.strip_prefix(&[1]).and_then(|k| k.try_into().ok());
    digits.map(|d| i64::from_be_bytes(d) ^ i64::MIN).ok_or_else(|| Error::internal("this is no key of one number"))
}

fn emit(rows: &mut Vec<(i64, i64)>, out: &mut Collector) -> Result<()> {
    let keys: Int64Array = rows.iter().map(|r| r.0).collect();
    let dues: Int64Array = rows.iter().map(|r| r.1).collect();
    rows.clear();
    let batch = RecordBatch::try_new(schema(), vec![Arc::new(keys), Arc::new(dues)]);
    out.emit(batch.map_err(|e| Error::internal("reminders make no batch").source(e))?);
    Ok(())
}

impl Operator for Reminders {
    fn name_reads(&mut self, _input: usize, batch: &KeyedBatch) -> Result<()> {
        self.counts.name_batch(&batch.keys);
        Ok(())
    }

    fn process(&mut self, _input: usize, batch: &KeyedBatch, out: &mut Collector) -> Result<()> {
        let times = batch.records.column_by_name("time").ok_or_else(|| Error::internal("a batch without time"))?;
        let times = times.as_primitive::<TimestampMillisecondType>().values();
        let rows = self.counts.take_rows()?;
        for (i, &slot) in rows.slots.iter().enumerate() {
            self.counts.update(slot, || 0, |count| *count += 1);
            let due = due(times[i]);
            if due <= out.fired(batch.keys.group(i)) {
                out.count_late(1);
                continue;
            }
            self.timers.set(batch.keys.hash(i), due, batch.keys.key(i), ());
        }
        self.counts.give_back(rows);
        Ok(())
    }

    fn advance(&mut self, watermark: TimestampMs, out: &mut Collector) -> Result<Progress> {
        let mut rows = Vec::new();
        let loaded = self.timers.load_until(watermark, out.fired_min());
        let until = watermark.min(self.timers.loaded_until());
        while let Some(time) = self.timers.first_time().filter(|t| *t <= until) {
            for slot in self.timers.sorted_at(time) {
                if time > out.fired(self.timers.group(slot)) {
                    rows.push((key_number(self.timers.key(slot))?, time));
                }
                self.timers.expire(slot);
                if rows.len() >= EMIT_ROWS {
                    emit(&mut rows, out)?;
                }
            }
        }
        emit(&mut rows, out)?;
        if !loaded {
            return Ok(Progress::NeedsState);
        }
        self.timers.end_advance();
        Ok(Progress::Done)
    }

    fn states(&mut self) -> Vec<&mut dyn StateSet> {
        vec![&mut self.counts, &mut self.timers]
    }
}
