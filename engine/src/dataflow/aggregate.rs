//! Aggregates: what is kept of many rows of a key.

use millstream_common::Result;
use millstream_state_store::schema::field_id;

use super::plan::column_index;
use crate::operators::aggregate::{AggregateCall, AggregateFunction};
use arrow_schema::Schema;

/// One aggregate over the rows of a key, or of a key and window. Made by [`count`], [`sum`], [`min`], [`max`] and
/// [`avg`].
#[derive(Clone, Debug)]
pub struct Aggregate {
    function: AggregateFunction,
    input: Option<String>,
    filter: Option<String>,
    name: String,
    state_id: Option<u32>,
}

/// How many rows there are.
#[must_use]
pub fn count() -> Aggregate {
    Aggregate { function: AggregateFunction::Count, input: None, filter: None, name: "count".into(), state_id: None }
}

/// The sum of a column.
#[must_use]
pub fn sum(column: &str) -> Aggregate {
    Aggregate::over(AggregateFunction::Sum, "sum", column)
}

/// The least value of a column.
#[must_use]
pub fn min(column: &str) -> Aggregate {
    Aggregate::over(AggregateFunction::Min, "min", column)
}

/// The greatest value of a column.
#[must_use]
pub fn max(column: &str) -> Aggregate {
    Aggregate::over(AggregateFunction::Max, "max", column)
}

/// The average of a column; of integers an integer, cut towards zero, as in SQL.
#[must_use]
pub fn avg(column: &str) -> Aggregate {
    Aggregate::over(AggregateFunction::Avg, "avg", column)
}

impl Aggregate {
    fn over(function: AggregateFunction, word: &str, column: &str) -> Self {
        Self { function, input: Some(column.into()), filter: None, name: format!("{word}_{column}"), state_id: None }
    }

    /// Names its column. Without it: `count`, `sum_price` and the like.
    #[must_use]
    pub fn as_(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// What it was called when the state was written that the job goes on from: its numbers are those.
    #[must_use]
    pub fn renamed_from(self, name: &str) -> Self {
        self.state_id(field_id(name))
    }

    /// The id of its numbers in the state, which stays when its name changes. Without it: that of its name.
    #[must_use]
    pub fn state_id(mut self, id: u32) -> Self {
        self.state_id = Some(id);
        self
    }

    /// Looks only at rows whose Boolean column `column` is true.
    #[must_use]
    pub fn filter(mut self, column: &str) -> Self {
        self.filter = Some(column.into());
        self
    }

    /// The columns that it reads.
    pub(super) fn reads(&self) -> impl Iterator<Item = &String> {
        self.input.iter().chain(&self.filter)
    }

    /// In words, for the plan.
    pub(super) fn describe(&self) -> String {
        let word = format!("{:?}", self.function).to_lowercase();
        let filter = self.filter.as_ref().map(|f| format!(" where {f}")).unwrap_or_default();
        format!("{word}({}){filter} as {}", self.input.as_deref().unwrap_or("*"), self.name)
    }

    /// As the operators want it, over the columns of `schema`.
    pub(super) fn call(&self, schema: &Schema, operator: &str) -> Result<AggregateCall> {
        let index = |name: &Option<String>| name.as_ref().map(|n| column_index(schema, n, operator)).transpose();
        Ok(AggregateCall {
            function: self.function,
            input: index(&self.input)?,
            filter: index(&self.filter)?,
            name: self.name.clone(),
            state_id: self.state_id,
        })
    }
}
