//! An operator of the simulation's own, with all kinds of state and encodings that the checks know: counts rows by key
//! and reminds of each key some time after its rows, saying how many there were. What it will remind of is a map of each
//! key, by time: rows need all of it, and one entry is taken out when its time has come.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMillisecondType;
use arrow_array::{Int64Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use millstream_common::hash::stable_hash;
use millstream_common::{Error, Result};
use millstream_engine::element::TimestampMs;
use millstream_engine::operator::{Collector, KeyedBatch, Operator, Progress};
use millstream_engine::state::{KeyedState, MapState, SlotId, StateSet, TimedState};

/// Reminders of a batch, about.
const EMIT_ROWS: usize = 64;

/// When a row at `time` is reminded of.
#[must_use]
pub fn due(time: TimestampMs) -> TimestampMs {
    (time.div_euclid(1_000) + 2) * 1_000
}

/// Counts rows by key; emits (key, due, rows) once for each key and time.
pub struct Reminders {
    counts: KeyedState<i64>,
    /// By key and due: rows.
    pending: MapState<i64>,
    timers: TimedState<()>,
    /// What is being fired.
    due: Vec<Due>,
}

struct Due {
    key: i64,
    time: TimestampMs,
    rows: SlotId,
}

impl Default for Reminders {
    fn default() -> Self {
        Self {
            counts: KeyedState::new("counts", "i64 count"),
            pending: MapState::new("pending", "i64 rows"),
            timers: TimedState::new("timers", "", 700),
            due: Vec::new(),
        }
    }
}

/// The columns that it emits.
#[must_use]
pub fn schema() -> SchemaRef {
    let number = |name: &str| Field::new(name, DataType::Int64, false);
    Arc::new(Schema::new(vec![number("key"), number("due"), number("rows")]))
}

/// The number behind the encoded key of one Int64 column.
pub fn key_number(key: &[u8]) -> Result<i64> {
    let digits = key.strip_prefix(&[1]).and_then(|k| k.try_into().ok());
    digits.map(|d| i64::from_be_bytes(d) ^ i64::MIN).ok_or_else(|| Error::internal("this is no key of one number"))
}

impl Reminders {
    /// Gathers what is due, some at a time; whether all that is due was there.
    fn gather(&mut self, watermark: TimestampMs, out: &Collector) -> Result<bool> {
        let loaded = self.timers.load_until(watermark, out.fired_min());
        let until = watermark.min(self.timers.loaded_until());
        while self.due.len() < EMIT_ROWS
            && let Some(time) = self.timers.first_time().filter(|t| *t <= until)
        {
            for slot in self.timers.sorted_at(time) {
                if time > out.fired(self.timers.group(slot)) {
                    let (key, entry) = (self.timers.key(slot), time.to_be_bytes());
                    let place = (self.timers.hash(slot), key);
                    let rows = self.pending.name_entry(place, (stable_hash(&entry), &entry));
                    self.due.push(Due { key: key_number(key)?, time, rows });
                }
                self.timers.expire(slot);
            }
        }
        Ok(loaded)
    }

    /// Emits what was gathered.
    fn emit(&mut self, out: &mut Collector) -> Result<()> {
        let due = std::mem::take(&mut self.due);
        let rows: Int64Array = due.iter().map(|d| self.pending.remove_entry(d.rows).unwrap_or_default()).collect();
        let keys: Int64Array = due.iter().map(|d| d.key).collect();
        let dues: Int64Array = due.iter().map(|d| d.time).collect();
        let batch = RecordBatch::try_new(schema(), vec![Arc::new(keys), Arc::new(dues), Arc::new(rows)]);
        out.emit(batch.map_err(|e| Error::internal("reminders make no batch").source(e))?);
        Ok(())
    }
}

impl Operator for Reminders {
    fn name_reads(&mut self, _input: usize, batch: &KeyedBatch) -> Result<()> {
        self.counts.name_batch(&batch.keys);
        self.pending.name_maps(&batch.keys);
        Ok(())
    }

    fn process(&mut self, _input: usize, batch: &KeyedBatch, out: &mut Collector) -> Result<()> {
        let times = batch.records.column_by_name("time").ok_or_else(|| Error::internal("a batch without time"))?;
        let times = times.as_primitive::<TimestampMillisecondType>().values();
        let (rows, maps) = (self.counts.take_rows()?, self.pending.take_maps()?);
        for (i, &slot) in rows.slots.iter().enumerate() {
            self.counts.update(slot, || 0, |count| *count += 1);
            let due = due(times[i]);
            if due <= out.fired(batch.keys.group(i)) {
                out.count_late(1);
                continue;
            }
            self.pending.update(maps.maps[i], &due.to_be_bytes(), || 0, |rows| *rows += 1)?;
            self.timers.set(batch.keys.hash(i), due, batch.keys.key(i), ());
        }
        self.counts.give_back(rows);
        Ok(())
    }

    fn advance(&mut self, watermark: TimestampMs, out: &mut Collector) -> Result<Progress> {
        loop {
            let loaded = !self.due.is_empty() || self.gather(watermark, out)?;
            if self.due.is_empty() {
                if !loaded {
                    return Ok(Progress::NeedsState);
                }
                self.timers.end_advance();
                return Ok(Progress::Done);
            }
            if !self.due.iter().all(|d| self.pending.is_resident(d.rows)) {
                return Ok(Progress::NeedsState);
            }
            self.emit(out)?;
        }
    }

    fn states(&mut self) -> Vec<&mut dyn StateSet> {
        vec![&mut self.counts, &mut self.pending, &mut self.timers]
    }
}
