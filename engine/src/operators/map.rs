//! Functions of a batch.

use std::sync::Arc;

use arrow_array::RecordBatch;
use millstream_common::Result;

use crate::operator::{Collector, KeyedBatch, Operator};

/// A function of a batch; called for one batch after the other, from several subtasks at once.
pub type MapFn = Arc<dyn Fn(&RecordBatch) -> Result<RecordBatch> + Send + Sync>;

/// Applies a function to every batch: map, filter, projection. Without state.
pub struct Map {
    function: MapFn,
}

impl Map {
    /// An operator that emits what `function` makes of its input; empty batches are dropped.
    #[must_use]
    pub fn new(function: MapFn) -> Self {
        Self { function }
    }
}

impl Operator for Map {
    fn process(&mut self, _input: usize, batch: &KeyedBatch, out: &mut Collector) -> Result<()> {
        out.emit((self.function)(&batch.records)?);
        Ok(())
    }
}
