//! Aggregates over all rows of a key so far.
//!
//! The result is a changelog: per batch and key one insert, or one pair of update-before and update-after, or nothing
//! when the results did not change. So a reader sees a row's every value at the ends of batches, and no row is taken
//! back that was not given out: what it was follows from the accumulators as they were before the batch.

use std::sync::Arc;

use arrow_array::{ArrayRef, UInt8Array};
use arrow_schema::{DataType, Field, FieldRef, SchemaRef};
use millstream_common::Result;
use millstream_state_store::schema::Ttl;

use super::EMIT_ROWS;
use super::aggregate::{Accumulators, AggregateCall, AggregateSet, Bound, Results};
use super::keys::{KeyColumns, check_append_only, output, output_schema};
use crate::element::{ROW_KIND_COLUMN, RowKind};
use crate::operator::{Collector, KeyedBatch, Operator};
use crate::state::{KeyedState, Rows, SlotId, StateSet};

/// A keyed aggregate over an endless input. Emits the row kind, the key columns, the aggregates.
pub struct RunningAggregate {
    keys: KeyColumns,
    aggregates: AggregateSet,
    schema: SchemaRef,
    state: KeyedState<Accumulators>,
    /// The accumulators of the keys of a batch, before it; `width` numbers a key.
    before: Vec<i64>,
    /// Whether the key was there before.
    existed: Vec<bool>,
}

impl RunningAggregate {
    /// An aggregate over rows of `input`, by `key_columns`.
    pub fn new(input: &SchemaRef, key_columns: &[usize], calls: Vec<AggregateCall>) -> Result<Self> {
        check_append_only(input)?;
        let keys = KeyColumns::new(input, key_columns)?;
        let aggregates = AggregateSet::new(calls, input)?;
        let kind = Arc::new(Field::new(ROW_KIND_COLUMN, DataType::UInt8, false)) as FieldRef;
        let fields = [kind].into_iter().chain(keys.fields.iter().cloned()).chain(aggregates.fields());
        let schema = output_schema(fields.collect())?;
        let state = KeyedState::new("aggregates", &aggregates.value_schema())
            .described(aggregates.form("aggregates".to_owned()));
        Ok(Self { keys, aggregates, schema, state, before: Vec::new(), existed: Vec::new() })
    }

    /// Lets the aggregates of a key expire some time after its last row: the next row begins anew, as an insert.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Option<Ttl>) -> Self {
        self.state = self.state.with_ttl(ttl);
        self
    }

    /// The columns that it emits.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn remember(&mut self, rows: &Rows) {
        self.before.clear();
        self.existed.clear();
        let width = self.aggregates.width();
        for &slot in &rows.distinct {
            let held = self.state.get(slot);
            self.existed.push(held.is_some());
            match held {
                Some(held) => self.before.extend_from_slice(&held.0),
                None => self.before.resize(self.before.len() + width, 0),
            }
        }
    }

    fn add(&mut self, rows: &Rows, bound: &Bound<'_>) {
        let aggregates = &self.aggregates;
        for (row, &slot) in rows.slots.iter().enumerate() {
            self.state.update(slot, || aggregates.init(), |held| bound.add(row, &mut held.0));
        }
    }

    fn emit(&self, rows: &Rows, out: &mut Collector) -> Result<()> {
        let width = self.aggregates.width();
        let mut changes = Changes::new(&self.aggregates, 2 * rows.distinct.len());
        for (i, &slot) in rows.distinct.iter().enumerate() {
            let Some(after) = self.state.get(slot) else { continue };
            let before = &self.before[i * width..(i + 1) * width];
            if !self.existed[i] {
                changes.push(RowKind::Insert, slot, &after.0);
            } else if !self.aggregates.same_results(before, &after.0) {
                changes.push(RowKind::UpdateBefore, slot, before);
                changes.push(RowKind::UpdateAfter, slot, &after.0);
            }
            // A pair stays together.
            if changes.kinds.len() + 2 > EMIT_ROWS {
                let more = Changes::new(&self.aggregates, 2 * (rows.distinct.len() - i));
                self.emit_changes(std::mem::replace(&mut changes, more), out)?;
            }
        }
        self.emit_changes(changes, out)
    }

    fn emit_changes(&self, changes: Changes<'_>, out: &mut Collector) -> Result<()> {
        if changes.kinds.is_empty() {
            return Ok(());
        }
        let mut columns: Vec<ArrayRef> = vec![Arc::new(UInt8Array::from(changes.kinds))];
        columns.extend(self.keys.decode(changes.slots.iter().map(|&s| self.state.key(s)))?);
        columns.extend(changes.results.finish());
        out.emit(output(&self.schema, columns)?);
        Ok(())
    }
}

/// Rows of the changelog in the making.
struct Changes<'a> {
    kinds: Vec<u8>,
    slots: Vec<SlotId>,
    results: Results<'a>,
}

impl<'a> Changes<'a> {
    fn new(aggregates: &'a AggregateSet, rows: usize) -> Self {
        let rows = rows.min(EMIT_ROWS);
        Self { kinds: Vec::with_capacity(rows), slots: Vec::with_capacity(rows), results: aggregates.results() }
    }

    fn push(&mut self, kind: RowKind, slot: SlotId, numbers: &[i64]) {
        self.kinds.push(kind as u8);
        self.slots.push(slot);
        self.results.push(numbers);
    }
}

impl Operator for RunningAggregate {
    fn name_reads(&mut self, _input: usize, batch: &KeyedBatch) -> Result<()> {
        self.state.name_batch(&batch.keys);
        Ok(())
    }

    fn process(&mut self, _input: usize, batch: &KeyedBatch, out: &mut Collector) -> Result<()> {
        let rows = self.state.take_rows()?;
        let bound = self.aggregates.bind(&batch.records)?;
        self.remember(&rows);
        self.add(&rows, &bound);
        self.emit(&rows, out)?;
        self.state.give_back(rows);
        Ok(())
    }

    fn parameters(&self) -> Vec<(String, String)> {
        self.aggregates.parameters()
    }

    fn states(&mut self) -> Vec<&mut dyn StateSet> {
        vec![&mut self.state]
    }
}
