//! What operators need of columns: keys decoded for output, event times, columns of a known type, output batches.

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMillisecondType};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use millstream_common::{Error, Result};
use millstream_state_store::key::{check_key_type, decode_keys};

use crate::element::{ROW_KIND_COLUMN, TimestampMs};

/// Beyond it there is no event time: windows around it would leave the range of numbers.
const TIME_LIMIT_MS: i64 = i64::MAX / 4;

/// The key columns of an operator.
#[derive(Debug)]
pub(super) struct KeyColumns {
    pub(super) fields: Vec<FieldRef>,
    types: Vec<DataType>,
}

impl KeyColumns {
    pub(super) fn new(schema: &Schema, columns: &[usize]) -> Result<Self> {
        let fields = columns.iter().map(|&i| field(schema, i).cloned()).collect::<Result<Vec<_>>>()?;
        for (&i, field) in columns.iter().zip(&fields) {
            check_key_type(i, field.data_type()).map_err(|e| e.at(format!("column {:?}", field.name())))?;
        }
        let types = fields.iter().map(|f| f.data_type().clone()).collect();
        Ok(Self { fields, types })
    }

    /// Encoded keys as columns again.
    pub(super) fn decode<'a>(&self, keys: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>> {
        decode_keys(keys, &self.types)
    }
}

/// A column of the input; an error when there is none with this index.
pub(super) fn field(schema: &Schema, column: usize) -> Result<&FieldRef> {
    schema.fields().get(column).ok_or_else(|| {
        let there = schema.fields().len();
        Error::config(format!("there is no column {column}: the input has {there}")).code(1040)
    })
}

/// An error unless column `column` has what `fits` asks for.
pub(super) fn check_type(schema: &Schema, column: usize, wanted: &str, fits: impl Fn(&DataType) -> bool) -> Result<()> {
    let field = field(schema, column)?;
    if fits(field.data_type()) {
        return Ok(());
    }
    Err(Error::config(format!("column {:?} is {}, but {wanted} is needed", field.name(), field.data_type()))
        .code(1041)
        .next("convert it with a map before"))
}

pub(super) fn check_time(schema: &Schema, column: usize) -> Result<()> {
    check_type(schema, column, "a time stamp in milliseconds", |t| {
        matches!(t, DataType::Timestamp(TimeUnit::Millisecond, _))
    })
}

pub(super) fn check_int64(schema: &Schema, column: usize) -> Result<()> {
    check_type(schema, column, "a 64-bit integer", |t| *t == DataType::Int64)
}

/// Operators that keep rows or add them up do not know how to take one back.
pub(super) fn check_append_only(schema: &Schema) -> Result<()> {
    if schema.column_with_name(ROW_KIND_COLUMN).is_some() {
        return Err(Error::config("this operator reads rows that stay, its input is a changelog").code(1042));
    }
    Ok(())
}

pub(super) fn check_positive(ms: i64, what: &str) -> Result<()> {
    if (1..TIME_LIMIT_MS).contains(&ms) {
        return Ok(());
    }
    Err(Error::config(format!("{what} is {ms} ms")).code(1043).next("it has to be a millisecond or more"))
}

/// The event times of a batch.
pub(super) fn times(batch: &RecordBatch, column: usize) -> Result<&[TimestampMs]> {
    let array = batch.column(column);
    let name = || batch.schema_ref().field(column).name().clone();
    let times = array
        .as_primitive_opt::<TimestampMillisecondType>()
        .ok_or_else(|| wrong_column(batch, column, "a time stamp in milliseconds"))?;
    if times.null_count() > 0 {
        return Err(Error::data(format!("column {:?} holds event times, but a row has none", name()))
            .code(3010)
            .next("filter such rows out before"));
    }
    let times: &[i64] = times.values();
    let (least, greatest) = times.iter().fold((0, 0), |(l, g), &t| (t.min(l), t.max(g)));
    if least < -TIME_LIMIT_MS || greatest > TIME_LIMIT_MS {
        let bad = if least < -TIME_LIMIT_MS { least } else { greatest };
        return Err(Error::data(format!("column {:?} holds event times, but {bad} ms is none", name()))
            .code(3011)
            .next("filter such rows out before"));
    }
    Ok(times)
}

/// A column of the batch that does not have the type of the schema that the operator was built for.
pub(super) fn wrong_column(batch: &RecordBatch, column: usize, wanted: &str) -> Error {
    let is = batch.column(column).data_type();
    Error::internal(format!("column {column} of a batch is {is}, not {wanted}, for which its operator was built"))
        .code(9130)
}

/// The values of a column of integers, with its nulls.
pub(super) fn int64(batch: &RecordBatch, column: usize) -> Result<&arrow_array::Int64Array> {
    batch.column(column).as_primitive_opt::<Int64Type>().ok_or_else(|| wrong_column(batch, column, "a 64-bit integer"))
}

/// A batch for output.
pub(super) fn output(schema: &SchemaRef, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
    RecordBatch::try_new(schema.clone(), columns)
        .map_err(|e| Error::internal("the columns of a result do not fit its schema").code(9131).source(e))
}

/// The first 16 bytes of a key, as a number that orders like them.
#[inline]
pub(super) fn key_head(key: &[u8]) -> u128 {
    let mut head = [0; 16];
    let n = key.len().min(16);
    head[..n].copy_from_slice(&key[..n]);
    u128::from_be_bytes(head)
}

/// The schema of a result, whose column names must differ.
pub(super) fn output_schema(fields: Vec<FieldRef>) -> Result<SchemaRef> {
    for (i, field) in fields.iter().enumerate() {
        if fields[..i].iter().any(|f| f.name() == field.name()) {
            return Err(Error::config(format!("the result would have two columns {:?}", field.name()))
                .code(1044)
                .next("name one of them otherwise"));
        }
    }
    Ok(std::sync::Arc::new(Schema::new(fields)))
}

/// A column of window bounds.
pub(super) fn time_field(name: &str) -> FieldRef {
    std::sync::Arc::new(Field::new(name, DataType::Timestamp(TimeUnit::Millisecond, None), false))
}
