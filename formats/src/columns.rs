//! Columns that grow value by value and shrink again when a record turns out to be bad half-way.
//!
//! Arrow's own builders cannot take back what they were given; a bad record must leave no trace. Storage here is what the
//! arrays take over at the end without a copy.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, ListArray, MapArray, PrimitiveArray, RecordBatch, RecordBatchOptions,
    StringArray, StructArray,
    types::{
        ArrowPrimitiveType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
        Int64Type, Time32MillisecondType, Time64MicrosecondType, TimestampMicrosecondType, TimestampMillisecondType,
        TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
    },
};
use arrow_buffer::{BooleanBufferBuilder, Buffer, NullBuffer, NullBufferBuilder, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field, FieldRef, Fields, SchemaRef, TimeUnit};
use millstream_common::{Error, Result};

/// A column of a batch that is being filled.
pub(crate) struct Column {
    pub(crate) nullable: bool,
    nulls: NullBufferBuilder,
    pub(crate) values: Values,
}

/// What a column holds so far; rows that are null hold a default.
pub(crate) enum Values {
    Boolean(BooleanBufferBuilder),
    Int8(Vec<i8>),
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    UInt8(Vec<u8>),
    UInt16(Vec<u16>),
    UInt32(Vec<u32>),
    UInt64(Vec<u64>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    /// With precision and scale.
    Decimal(Vec<i128>, u8, i8),
    Text(Bytes),
    Binary(Bytes),
    /// Days since 1970.
    Date(Vec<i32>),
    Time(Vec<i64>, TimeUnit, Option<Arc<str>>),
    /// Milliseconds since midnight; texts have no such columns.
    DayMillis(Vec<i32>),
    /// Microseconds since midnight.
    DayMicros(Vec<i64>),
    Struct(Vec<Column>, Fields),
    List(Vec<i32>, Box<Column>, FieldRef),
    /// Keys and values of the entries, and the field of the entries.
    Map(Vec<i32>, Box<[Column; 2]>, FieldRef),
}

/// Values of any length, one behind the other.
pub(crate) struct Bytes {
    ends: Vec<i32>,
    bytes: Vec<u8>,
}

impl Bytes {
    fn new() -> Self {
        Self { ends: vec![0], bytes: Vec::new() }
    }

    /// False when the array would grow beyond 2 GiB.
    #[must_use]
    pub(crate) fn push(&mut self, value: &[u8]) -> bool {
        let Ok(end) = i32::try_from(self.bytes.len() + value.len()) else { return false };
        self.bytes.extend_from_slice(value);
        self.ends.push(end);
        true
    }

    fn truncate(&mut self, len: usize) {
        self.ends.truncate(len + 1);
        self.bytes.truncate(self.ends.last().map_or(0, |&end| end as usize));
    }

    fn finish(&mut self) -> (OffsetBuffer<i32>, Buffer) {
        let ends = std::mem::replace(&mut self.ends, vec![0]);
        (OffsetBuffer::new(ends.into()), std::mem::take(&mut self.bytes).into())
    }
}

/// Whether columns of this type can be filled here.
pub(crate) fn check_type(field: &Field) -> Result<()> {
    let refuse = || {
        Err(Error::config(format!("column '{}' of type {} cannot be read from text", field.name(), field.data_type()))
            .code(1330)
            .next("declare it as a number, a string, bytes, a date, a time stamp, or a row, list or map of these"))
    };
    match field.data_type() {
        DataType::Struct(fields) => fields.iter().try_for_each(|f| check_type(f)),
        DataType::List(item) => check_type(item),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(kv) if kv.len() == 2 && kv[0].data_type() == &DataType::Utf8 => check_type(&kv[1]),
            _ => refuse(),
        },
        DataType::Decimal128(precision, scale) if *scale < 0 || *scale > *precision as i8 => refuse(),
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Float32
        | DataType::Float64
        | DataType::Decimal128(..)
        | DataType::Utf8
        | DataType::Binary
        | DataType::Date32
        | DataType::Timestamp(..) => Ok(()),
        _ => refuse(),
    }
}

/// The rows of a batch that is being filled: a record adds all of its rows or none.
pub(crate) struct Rows {
    schema: SchemaRef,
    columns: Vec<Column>,
    rows: usize,
}

impl Rows {
    pub(crate) fn new(schema: &SchemaRef) -> Result<Self> {
        let columns = schema.fields().iter().map(|f| Column::new(f)).collect::<Result<_>>()?;
        Ok(Self { schema: schema.clone(), columns, rows: 0 })
    }

    /// Adds so many rows as `add` says that it has pushed into each column; none when it says what is wrong with the record.
    pub(crate) fn add(&mut self, add: impl FnOnce(&mut [Column]) -> Result<usize, String>) -> Result<()> {
        match add(&mut self.columns) {
            Ok(added) => {
                self.rows += added;
                Ok(())
            }
            Err(what) => {
                self.columns.iter_mut().for_each(|c| c.truncate(self.rows));
                Err(bad(&what))
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    /// The rows as a batch; there are none then.
    pub(crate) fn take(&mut self) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(std::mem::take(&mut self.rows)));
        let arrays: Vec<ArrayRef> = self.columns.iter_mut().map(Column::finish).collect::<Result<_>>()?;
        RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options)
            .map_err(|e| Error::internal("columns that do not fit their schema").source(e))
    }
}

/// What is wrong with a record.
pub(crate) fn bad(what: &str) -> Error {
    Error::data(format!("not a record of this format: {what}")).code(3301)
}

impl Column {
    /// An empty column; its type has passed [`check_type`].
    pub(crate) fn new(field: &Field) -> Result<Self> {
        let values = match field.data_type() {
            DataType::Boolean => Values::Boolean(BooleanBufferBuilder::new(0)),
            DataType::Int8 => Values::Int8(Vec::new()),
            DataType::Int16 => Values::Int16(Vec::new()),
            DataType::Int32 => Values::Int32(Vec::new()),
            DataType::Int64 => Values::Int64(Vec::new()),
            DataType::UInt8 => Values::UInt8(Vec::new()),
            DataType::UInt16 => Values::UInt16(Vec::new()),
            DataType::UInt32 => Values::UInt32(Vec::new()),
            DataType::UInt64 => Values::UInt64(Vec::new()),
            DataType::Float32 => Values::Float32(Vec::new()),
            DataType::Float64 => Values::Float64(Vec::new()),
            DataType::Decimal128(precision, scale) => Values::Decimal(Vec::new(), *precision, *scale),
            DataType::Utf8 => Values::Text(Bytes::new()),
            DataType::Binary => Values::Binary(Bytes::new()),
            DataType::Date32 => Values::Date(Vec::new()),
            DataType::Timestamp(unit, zone) => Values::Time(Vec::new(), *unit, zone.clone()),
            DataType::Time32(TimeUnit::Millisecond) => Values::DayMillis(Vec::new()),
            DataType::Time64(TimeUnit::Microsecond) => Values::DayMicros(Vec::new()),
            DataType::Struct(fields) => {
                Values::Struct(fields.iter().map(|f| Self::new(f)).collect::<Result<_>>()?, fields.clone())
            }
            DataType::List(item) => Values::List(vec![0], Box::new(Self::new(item)?), item.clone()),
            DataType::Map(entries, _) => {
                let DataType::Struct(kv) = entries.data_type() else { return Err(unannounced(field)) };
                let columns = [Self::new(&kv[0])?, Self::new(&kv[1])?];
                Values::Map(vec![0], Box::new(columns), entries.clone())
            }
            _ => return Err(unannounced(field)),
        };
        Ok(Self { nullable: field.is_nullable(), nulls: NullBufferBuilder::new(0), values })
    }

    /// Rows that it holds.
    pub(crate) fn len(&self) -> usize {
        self.nulls.len()
    }

    /// What was pushed into `values` is a row.
    pub(crate) fn pushed(&mut self) {
        self.nulls.append_non_null();
    }

    /// Adds a row without a value, nullable or not.
    pub(crate) fn push_null(&mut self) {
        self.nulls.append_null();
        match &mut self.values {
            Values::Boolean(v) => v.append(false),
            Values::Int8(v) => v.push(0),
            Values::Int16(v) => v.push(0),
            Values::Int32(v) | Values::Date(v) | Values::DayMillis(v) => v.push(0),
            Values::Int64(v) | Values::Time(v, ..) | Values::DayMicros(v) => v.push(0),
            Values::UInt8(v) => v.push(0),
            Values::UInt16(v) => v.push(0),
            Values::UInt32(v) => v.push(0),
            Values::UInt64(v) => v.push(0),
            Values::Float32(v) => v.push(0.0),
            Values::Float64(v) => v.push(0.0),
            Values::Decimal(v, ..) => v.push(0),
            Values::Text(v) | Values::Binary(v) => {
                // Nothing makes an array grow.
                let _ = v.push(&[]);
            }
            Values::Struct(columns, _) => columns.iter_mut().for_each(Self::push_null),
            Values::List(ends, ..) | Values::Map(ends, ..) => ends.push(ends.last().copied().unwrap_or(0)),
        }
    }

    /// Takes back all rows but the first `len`, and whatever stands half-pushed behind them.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.nulls.truncate(len.min(self.nulls.len()));
        match &mut self.values {
            Values::Boolean(v) => v.truncate(len.min(v.len())),
            Values::Int8(v) => v.truncate(len),
            Values::Int16(v) => v.truncate(len),
            Values::Int32(v) | Values::Date(v) | Values::DayMillis(v) => v.truncate(len),
            Values::Int64(v) | Values::Time(v, ..) | Values::DayMicros(v) => v.truncate(len),
            Values::UInt8(v) => v.truncate(len),
            Values::UInt16(v) => v.truncate(len),
            Values::UInt32(v) => v.truncate(len),
            Values::UInt64(v) => v.truncate(len),
            Values::Float32(v) => v.truncate(len),
            Values::Float64(v) => v.truncate(len),
            Values::Decimal(v, ..) => v.truncate(len),
            Values::Text(v) | Values::Binary(v) => v.truncate(len),
            Values::Struct(columns, _) => columns.iter_mut().for_each(|c| c.truncate(len)),
            Values::List(ends, items, _) => {
                ends.truncate(len + 1);
                items.truncate(ends.last().map_or(0, |&end| end as usize));
            }
            Values::Map(ends, entries, _) => {
                ends.truncate(len + 1);
                let len = ends.last().map_or(0, |&end| end as usize);
                entries.iter_mut().for_each(|c| c.truncate(len));
            }
        }
    }

    /// The column as an array; it is empty again.
    pub(crate) fn finish(&mut self) -> Result<ArrayRef> {
        let nulls = self.nulls.finish();
        fn primitive<T: ArrowPrimitiveType>(
            values: &mut Vec<T::Native>,
            nulls: Option<NullBuffer>,
        ) -> PrimitiveArray<T> {
            PrimitiveArray::new(ScalarBuffer::from(std::mem::take(values)), nulls)
        }
        let wrong = |e| Error::internal("columns that do not fit together").source(e);
        Ok(match &mut self.values {
            Values::Boolean(v) => Arc::new(BooleanArray::new(v.finish(), nulls)),
            Values::Int8(v) => Arc::new(primitive::<Int8Type>(v, nulls)),
            Values::Int16(v) => Arc::new(primitive::<Int16Type>(v, nulls)),
            Values::Int32(v) => Arc::new(primitive::<Int32Type>(v, nulls)),
            Values::Int64(v) => Arc::new(primitive::<Int64Type>(v, nulls)),
            Values::UInt8(v) => Arc::new(primitive::<UInt8Type>(v, nulls)),
            Values::UInt16(v) => Arc::new(primitive::<UInt16Type>(v, nulls)),
            Values::UInt32(v) => Arc::new(primitive::<UInt32Type>(v, nulls)),
            Values::UInt64(v) => Arc::new(primitive::<UInt64Type>(v, nulls)),
            Values::Float32(v) => Arc::new(primitive::<Float32Type>(v, nulls)),
            Values::Float64(v) => Arc::new(primitive::<Float64Type>(v, nulls)),
            Values::Decimal(v, precision, scale) => Arc::new(
                primitive::<Decimal128Type>(v, nulls).with_precision_and_scale(*precision, *scale).map_err(wrong)?,
            ),
            Values::Text(v) => {
                let (offsets, bytes) = v.finish();
                Arc::new(StringArray::try_new(offsets, bytes, nulls).map_err(wrong)?)
            }
            Values::Binary(v) => {
                let (offsets, bytes) = v.finish();
                Arc::new(BinaryArray::try_new(offsets, bytes, nulls).map_err(wrong)?)
            }
            Values::Date(v) => Arc::new(primitive::<Date32Type>(v, nulls)),
            Values::Time(v, unit, zone) => {
                let zone = zone.clone();
                match unit {
                    TimeUnit::Second => {
                        Arc::new(primitive::<TimestampSecondType>(v, nulls).with_timezone_opt(zone)) as ArrayRef
                    }
                    TimeUnit::Millisecond => {
                        Arc::new(primitive::<TimestampMillisecondType>(v, nulls).with_timezone_opt(zone))
                    }
                    TimeUnit::Microsecond => {
                        Arc::new(primitive::<TimestampMicrosecondType>(v, nulls).with_timezone_opt(zone))
                    }
                    TimeUnit::Nanosecond => {
                        Arc::new(primitive::<TimestampNanosecondType>(v, nulls).with_timezone_opt(zone))
                    }
                }
            }
            Values::DayMillis(v) => Arc::new(primitive::<Time32MillisecondType>(v, nulls)),
            Values::DayMicros(v) => Arc::new(primitive::<Time64MicrosecondType>(v, nulls)),
            Values::Struct(columns, fields) => {
                let len = columns.first().map_or(0, Self::len);
                let arrays: Vec<ArrayRef> = columns.iter_mut().map(Self::finish).collect::<Result<_>>()?;
                Arc::new(StructArray::try_new_with_length(fields.clone(), arrays, nulls, len).map_err(wrong)?)
            }
            Values::List(ends, items, field) => {
                let offsets = OffsetBuffer::new(std::mem::replace(ends, vec![0]).into());
                Arc::new(ListArray::try_new(field.clone(), offsets, items.finish()?, nulls).map_err(wrong)?)
            }
            Values::Map(ends, entries, field) => {
                let offsets = OffsetBuffer::new(std::mem::replace(ends, vec![0]).into());
                let DataType::Struct(fields) = field.data_type() else { return Err(unannounced(field)) };
                let [keys, values] = &mut **entries;
                let entries = StructArray::try_new(fields.clone(), vec![keys.finish()?, values.finish()?], None)
                    .map_err(wrong)?;
                Arc::new(MapArray::try_new(field.clone(), offsets, entries, nulls, false).map_err(wrong)?)
            }
        })
    }
}

fn unannounced(field: &Field) -> Error {
    Error::internal(format!("column '{}' of type {} was not checked", field.name(), field.data_type()))
}
