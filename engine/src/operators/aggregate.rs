//! Aggregates over integers: counted, added up and compared in small rows of accumulators.
//!
//! A row of accumulators holds the numbers of all aggregates of an operator side by side. What an aggregate holds:
//! count: the count. sum and avg: the sum and how many values it has. min and max: the value and how many were seen.
//! Sums wrap around at the ends of 64 bits. An average is cut towards zero, as SQL has it for integers.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch};
use arrow_buffer::{BooleanBuffer, NullBufferBuilder};
use arrow_schema::{DataType, Field, FieldRef, Schema};
use millstream_common::{Error, Result};
use millstream_state_store::schema::{Accumulate, Field as StateField, Form, MAX, MIN, SUM};
use smallvec::SmallVec;

use super::keys::{check_int64, check_type, field, int64, wrong_column};
use crate::state::StateValue;
use crate::state::value::{put_i64, take_i64};

/// What is kept of many values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AggregateFunction {
    /// How many rows there are; with an input column: how many values.
    Count,
    /// Their sum; null without values.
    Sum,
    /// The least; null without values.
    Min,
    /// The greatest; null without values.
    Max,
    /// Sum divided by count, cut towards zero; null without values.
    Avg,
}

/// One aggregate over columns of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AggregateCall {
    /// What is computed.
    pub function: AggregateFunction,
    /// The column that it reads: `Int64`; for a count any, or none.
    pub input: Option<usize>,
    /// A Boolean column: only rows where it is true count.
    pub filter: Option<usize>,
    /// The name of the result's column.
    pub name: String,
    /// What its numbers are called in the state, whatever its name; `None`: what goes with the name.
    pub state_id: Option<u32>,
}

impl AggregateFunction {
    /// Numbers that it keeps.
    fn width(self) -> usize {
        if self == Self::Count { 1 } else { 2 }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Sum => "sum",
            Self::Min => "min",
            Self::Max => "max",
            Self::Avg => "avg",
        }
    }
}

/// The accumulators of one key, window or session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Accumulators(pub(super) SmallVec<[i64; 3]>);

impl Accumulators {
    pub(super) fn encode_to(&self, into: &mut Vec<u8>) {
        self.0.iter().for_each(|&n| put_i64(n, into));
    }
}

impl StateValue for Accumulators {
    const FIXED: bool = true;

    fn encode(&self, into: &mut Vec<u8>) {
        self.encode_to(into);
    }

    fn decode(mut bytes: &[u8]) -> Result<Self> {
        let mut numbers = SmallVec::new();
        while !bytes.is_empty() {
            numbers.push(take_i64(&mut bytes)?);
        }
        Ok(Self(numbers))
    }

    fn heap_bytes(&self) -> usize {
        if self.0.spilled() { self.0.capacity() * size_of::<i64>() } else { 0 }
    }
}

/// All aggregates of an operator.
#[derive(Debug)]
pub(super) struct AggregateSet {
    calls: Vec<Placed>,
    width: usize,
    accumulate: Accumulate,
}

#[derive(Debug)]
struct Placed {
    call: AggregateCall,
    /// Which values of which rows it takes, in words.
    over: String,
    /// Where its numbers begin.
    at: usize,
}

/// The columns of a batch, as the aggregates read them.
pub(super) struct Bound<'a> {
    calls: SmallVec<[BoundCall<'a>; 8]>,
}

struct BoundCall<'a> {
    function: AggregateFunction,
    at: usize,
    values: &'a [i64],
    /// The rows that count; `None`: all.
    rows: Option<BooleanBuffer>,
}

impl AggregateSet {
    pub(super) fn new(calls: Vec<AggregateCall>, schema: &Schema) -> Result<Self> {
        let mut placed = Vec::with_capacity(calls.len());
        let mut width = 0;
        for call in calls {
            match (call.function, call.input) {
                (AggregateFunction::Count, None) => {}
                (AggregateFunction::Count, Some(i)) => drop(field(schema, i)?),
                (_, Some(i)) => check_int64(schema, i)?,
                (_, None) => {
                    let what = format!("the aggregate {:?} has no input column", call.name);
                    return Err(Error::config(what).code(1045));
                }
            }
            if let Some(i) = call.filter {
                check_type(schema, i, "a Boolean", |t| *t == DataType::Boolean)?;
            }
            let name = |i: usize| schema.field(i).name();
            let over = call.input.map_or_else(|| "rows".to_owned(), |i| format!("values of {}", name(i)));
            let over = call.filter.map_or_else(|| over.clone(), |i| format!("{over} where {}", name(i)));
            let at = width;
            width += call.function.width();
            placed.push(Placed { call, over, at });
        }
        let accumulate = Accumulate::of(&form_of(&placed, String::new()))
            .map_err(|why| Error::internal(format!("aggregates that do not add up: {why}")).code(9119))?;
        debug_assert_eq!(accumulate.width(), width);
        Ok(Self { calls: placed, width, accumulate })
    }

    /// Numbers in a row of accumulators.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// How rows of accumulators are encoded, in words.
    pub(super) fn value_schema(&self) -> String {
        let words: Vec<_> = self.calls.iter().map(|c| c.call.function.word()).collect();
        format!("accumulators/1 ({})", words.join(", "))
    }

    /// What each aggregate is over. Who has said by an id that an aggregate is the one that another release called
    /// something else is believed.
    pub(super) fn parameters(&self) -> Vec<(String, String)> {
        let named = self.calls.iter().filter(|c| c.call.state_id.is_none());
        named.map(|c| (format!("aggregate {}", c.call.name), c.over.clone())).collect()
    }

    /// What rows of accumulators are made of; `kind` says whose they are.
    pub(super) fn form(&self, kind: String) -> Form {
        form_of(&self.calls, kind)
    }

    /// How rows of accumulators add up.
    pub(super) fn accumulate(&self) -> &Accumulate {
        &self.accumulate
    }

    /// The accumulators of no row.
    #[inline]
    pub(super) fn init(&self) -> Accumulators {
        Accumulators(SmallVec::from_elem(0, self.width()))
    }

    /// The result's columns.
    pub(super) fn fields(&self) -> impl Iterator<Item = FieldRef> {
        self.calls.iter().map(|c| {
            let nullable = c.call.function != AggregateFunction::Count;
            Arc::new(Field::new(&c.call.name, DataType::Int64, nullable)) as FieldRef
        })
    }

    pub(super) fn bind<'a>(&self, batch: &'a RecordBatch) -> Result<Bound<'a>> {
        self.calls.iter().map(|c| c.bind(batch)).collect::<Result<_>>().map(|calls| Bound { calls })
    }

    /// Adds what `from` holds to `into`.
    #[inline]
    pub(super) fn merge(&self, into: &mut [i64], from: &[i64]) {
        self.accumulate.add(into, from);
    }

    /// Whether the results of both are the same.
    pub(super) fn same_results(&self, a: &[i64], b: &[i64]) -> bool {
        a == b || self.calls.iter().all(|c| c.result(a) == c.result(b))
    }

    /// Collects results as columns.
    pub(super) fn results(&self) -> Results<'_> {
        Results { set: self, columns: self.calls.iter().map(|_| ResultColumn::default()).collect() }
    }
}

fn form_of(calls: &[Placed], kind: String) -> Form {
    let field = |c: &Placed| {
        let numbers = |kind: &str| {
            let fields = [kind, "values"].map(|name| StateField::new(name, Form::Integer)).to_vec();
            Form::Record { kind: kind.to_owned(), fields }
        };
        let form = match c.call.function {
            AggregateFunction::Count => Form::Integer,
            // An average is kept as what it is made of.
            AggregateFunction::Sum | AggregateFunction::Avg => numbers(SUM),
            AggregateFunction::Min => numbers(MIN),
            AggregateFunction::Max => numbers(MAX),
        };
        let field = StateField::new(&c.call.name, form);
        match c.call.state_id {
            Some(id) => field.with_id(id),
            None => field,
        }
    };
    Form::Record { kind, fields: calls.iter().map(field).collect() }
}

#[inline]
fn extreme(min: bool, numbers: &mut [i64], at: usize, value: i64) {
    let held = numbers[at];
    if numbers[at + 1] == 0 || if min { value < held } else { value > held } {
        numbers[at] = value;
    }
    numbers[at + 1] += 1;
}

impl Placed {
    fn bind<'a>(&self, batch: &'a RecordBatch) -> Result<BoundCall<'a>> {
        let mut rows: Option<BooleanBuffer> = None;
        let mut only = |mask: BooleanBuffer| rows = Some(rows.take().map_or_else(|| mask.clone(), |r| &r & &mask));
        let mut values: &[i64] = &[];
        if let Some(i) = self.call.input {
            if self.call.function != AggregateFunction::Count {
                values = int64(batch, i)?.values();
            }
            if let Some(nulls) = batch.column(i).logical_nulls().filter(|n| n.null_count() > 0) {
                only(nulls.into_inner());
            }
        }
        if let Some(i) = self.call.filter {
            let filter = batch.column(i).as_boolean_opt().ok_or_else(|| wrong_column(batch, i, "a Boolean"))?;
            only(filter.values().clone());
            if let Some(nulls) = filter.nulls() {
                only(nulls.inner().clone());
            }
        }
        Ok(BoundCall { function: self.call.function, at: self.at, values, rows })
    }

    fn result(&self, numbers: &[i64]) -> Option<i64> {
        let value = numbers[self.at];
        if self.call.function == AggregateFunction::Count {
            return Some(value);
        }
        let values = numbers[self.at + 1];
        match self.call.function {
            _ if values == 0 => None,
            AggregateFunction::Avg => Some(value / values),
            _ => Some(value),
        }
    }
}

impl Bound<'_> {
    /// Adds row `row` of the batch to `numbers`.
    #[inline]
    pub(super) fn add(&self, row: usize, numbers: &mut [i64]) {
        for c in &self.calls {
            if let Some(rows) = &c.rows
                && !rows.value(row)
            {
                continue;
            }
            let at = c.at;
            match c.function {
                AggregateFunction::Count => numbers[at] += 1,
                AggregateFunction::Sum | AggregateFunction::Avg => {
                    numbers[at] = numbers[at].wrapping_add(c.values[row]);
                    numbers[at + 1] += 1;
                }
                AggregateFunction::Min => extreme(true, numbers, at, c.values[row]),
                AggregateFunction::Max => extreme(false, numbers, at, c.values[row]),
            }
        }
    }
}

/// Results of many rows of accumulators, as columns in the making.
pub(super) struct Results<'a> {
    set: &'a AggregateSet,
    columns: Vec<ResultColumn>,
}

struct ResultColumn {
    values: Vec<i64>,
    nulls: NullBufferBuilder,
}

impl Default for ResultColumn {
    fn default() -> Self {
        Self { values: Vec::new(), nulls: NullBufferBuilder::new(0) }
    }
}

impl Results<'_> {
    pub(super) fn push(&mut self, numbers: &[i64]) {
        for (call, column) in self.set.calls.iter().zip(&mut self.columns) {
            let result = call.result(numbers);
            column.values.push(result.unwrap_or(0));
            column.nulls.append(result.is_some());
        }
    }

    pub(super) fn finish(self) -> impl Iterator<Item = ArrayRef> {
        self.columns.into_iter().map(|mut c| Arc::new(Int64Array::new(c.values.into(), c.nulls.finish())) as ArrayRef)
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::BooleanArray;

    use super::*;

    fn call(function: AggregateFunction, input: Option<usize>, filter: Option<usize>) -> AggregateCall {
        AggregateCall { function, input, filter, name: format!("{function:?}"), state_id: None }
    }

    fn all() -> [AggregateFunction; 5] {
        use AggregateFunction::*;
        [Count, Sum, Min, Max, Avg]
    }

    fn batch() -> RecordBatch {
        let values = Int64Array::from(vec![Some(-7), None, Some(4), Some(-8), None]);
        let keep = BooleanArray::from(vec![Some(true), Some(true), None, Some(true), Some(false)]);
        let columns: Vec<(&str, ArrayRef)> = vec![("v", Arc::new(values)), ("keep", Arc::new(keep))];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    fn results(set: &AggregateSet, numbers: &[i64]) -> Vec<Option<i64>> {
        set.calls.iter().map(|c| c.result(numbers)).collect()
    }

    #[test]
    fn nulls_and_filters_are_left_out() {
        let batch = batch();
        for (filter, expected) in [
            (None, [Some(3), Some(-11), Some(-8), Some(4), Some(-3)]),
            (Some(1), [Some(2), Some(-15), Some(-8), Some(-7), Some(-7)]),
        ] {
            let calls = all().map(|f| call(f, Some(0), filter)).to_vec();
            let set = AggregateSet::new(calls, batch.schema_ref()).unwrap();
            let bound = set.bind(&batch).unwrap();
            let (mut one, mut other) = (set.init(), set.init());
            assert_eq!(results(&set, &one.0), [Some(0), None, None, None, None]);
            (0..2).for_each(|row| bound.add(row, &mut one.0));
            (2..5).for_each(|row| bound.add(row, &mut other.0));
            set.merge(&mut one.0, &other.0);
            assert_eq!(results(&set, &one.0), expected);
            let mut bytes = Vec::new();
            one.encode(&mut bytes);
            assert_eq!(Accumulators::decode(&bytes).unwrap(), one);
            let mut columns = set.results();
            columns.push(&one.0);
            columns.push(&set.init().0);
            let columns: Vec<_> = columns.finish().collect();
            assert_eq!(columns[1].as_ref(), &Int64Array::from(vec![expected[1], None]) as &dyn Array);
        }
        let rows = AggregateSet::new(vec![call(AggregateFunction::Count, None, None)], batch.schema_ref()).unwrap();
        let mut numbers = rows.init();
        (0..5).for_each(|row| rows.bind(&batch).unwrap().add(row, &mut numbers.0));
        assert_eq!(numbers.0[0], 5);
    }

    #[test]
    fn wrong_columns_are_refused() {
        let schema = batch().schema();
        for bad in [
            call(AggregateFunction::Sum, None, None),
            call(AggregateFunction::Sum, Some(1), None),
            call(AggregateFunction::Count, Some(2), None),
            call(AggregateFunction::Count, None, Some(0)),
        ] {
            let error = AggregateSet::new(vec![bad], &schema).unwrap_err();
            assert_eq!(error.kind(), millstream_common::ErrorKind::Config);
        }
    }
}
