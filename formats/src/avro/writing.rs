//! Rows as Avro records.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::OnceLock;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, Time32MillisecondType, Time64MicrosecondType, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type,
};
use arrow_array::{Array, ArrayRef, BinaryArray, BooleanArray, LargeStringArray, RecordBatch, StringArray};
use arrow_buffer::NullBuffer;
use arrow_schema::{DataType, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit};
use millstream_common::env::BoxFuture;
use millstream_common::{Error, Result};
use millstream_engine::element::ROW_KIND_COLUMN;
use serde_json::{Value, json};

use super::binary::{put_bytes, put_long};
use super::registry::{SchemaRegistry, frame};
use crate::{Encoder, EncodingFormat, Records};

/// Writes Avro records.
#[derive(Clone)]
pub struct AvroEncoding {
    record: String,
    registered: Option<(String, Arc<dyn SchemaRegistry>)>,
}

impl AvroEncoding {
    /// Writes records of a type named `record`, perhaps behind a namespace (`shop.Order`), as the encoding and nothing else.
    pub fn new(record: impl Into<String>) -> Result<Self> {
        let record = record.into();
        if !record.split('.').all(is_name) {
            return Err(bad_name(&format!("'{record}' cannot be the name of an Avro record")));
        }
        Ok(Self { record, registered: None })
    }

    /// In Confluent's wire format, with the schema registered under `subject` (for the values of a topic usually its name with
    /// `-value` behind it).
    #[must_use]
    pub fn registered(mut self, subject: impl Into<String>, registry: Arc<dyn SchemaRegistry>) -> Self {
        self.registered = Some((subject.into(), registry));
        self
    }

    /// The text of the Avro schema that batches of `schema` are written with; an error names a column that has no form in Avro.
    pub fn schema_text(&self, schema: &Schema) -> Result<String> {
        let mut names = BTreeSet::new();
        Ok(record_type(&self.record, schema.fields(), &mut names)?.to_string())
    }
}

fn is_name(name: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    name.bytes().enumerate().all(|(i, b)| letter(b) || (i > 0 && b.is_ascii_digit())) && !name.is_empty()
}

fn bad_name(what: &str) -> Error {
    Error::config(what).code(1351).next("names in Avro consist of letters, digits and _, and do not begin with a digit")
}

/// `names`: of the records so far.
fn record_type(name: &str, fields: &Fields, names: &mut BTreeSet<String>) -> Result<Value> {
    let mut name = name.to_owned();
    while !names.insert(name.clone()) {
        name.push('_');
    }
    let fields = fields.iter().map(|field| {
        if field.name() == ROW_KIND_COLUMN {
            let what = "a changelog has no form in Avro: its records would not say which rows go";
            return Err(Error::config(what).code(1352).next("write it as Debezium JSON"));
        }
        if !is_name(field.name()) {
            return Err(bad_name(&format!("column '{}' has no name in Avro", field.name())));
        }
        let of = type_of(field, &name, names)?;
        Ok(if field.is_nullable() {
            json!({"name": field.name(), "type": of, "default": null})
        } else {
            json!({"name": field.name(), "type": of})
        })
    });
    let fields: Vec<_> = fields.collect::<Result<_>>()?;
    Ok(json!({"type": "record", "name": name, "fields": fields}))
}

/// The type of a column of the record `parent`.
fn type_of(field: &FieldRef, parent: &str, names: &mut BTreeSet<String>) -> Result<Value> {
    let inner = || format!("{parent}_{}", field.name());
    let moment = |unit: &str, zone: bool| {
        let local = if zone { "" } else { "local-" };
        json!({"type": "long", "logicalType": format!("{local}timestamp-{unit}")})
    };
    let of = match field.data_type() {
        DataType::Boolean => json!("boolean"),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => json!("int"),
        DataType::Int64 | DataType::UInt32 => json!("long"),
        DataType::Float32 => json!("float"),
        DataType::Float64 => json!("double"),
        DataType::Utf8 | DataType::LargeUtf8 => json!("string"),
        DataType::Binary => json!("bytes"),
        DataType::Date32 => json!({"type": "int", "logicalType": "date"}),
        DataType::Time32(TimeUnit::Millisecond) => json!({"type": "int", "logicalType": "time-millis"}),
        DataType::Time64(TimeUnit::Microsecond) => json!({"type": "long", "logicalType": "time-micros"}),
        DataType::Timestamp(TimeUnit::Second | TimeUnit::Millisecond, zone) => moment("millis", zone.is_some()),
        DataType::Timestamp(TimeUnit::Microsecond, zone) => moment("micros", zone.is_some()),
        DataType::Timestamp(TimeUnit::Nanosecond, zone) => moment("nanos", zone.is_some()),
        DataType::Decimal128(precision, scale) if *scale >= 0 && *scale <= *precision as i8 => {
            json!({"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale})
        }
        DataType::Struct(fields) if !fields.is_empty() => record_type(&inner(), fields, names)?,
        DataType::List(item) => json!({"type": "array", "items": type_of(item, &inner(), names)?}),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(kv) if kv.len() == 2 && kv[0].data_type() == &DataType::Utf8 => {
                json!({"type": "map", "values": type_of(&kv[1], &inner(), names)?})
            }
            _ => return Err(no_form(field)),
        },
        _ => return Err(no_form(field)),
    };
    Ok(if field.is_nullable() { json!(["null", of]) } else { of })
}

fn no_form(field: &Field) -> Error {
    Error::config(format!("column '{}' of type {} has no form in Avro", field.name(), field.data_type()))
        .code(1350)
        .next("cast it to a number with a sign, a decimal, a string, bytes, a date or a time stamp")
}

impl EncodingFormat for AvroEncoding {
    fn encoder(&self, schema: &SchemaRef) -> Result<Box<dyn Encoder>> {
        let text = self.schema_text(schema)?;
        let registration = self.registered.clone().map(|(subject, registry)| Registration {
            subject,
            text,
            registry,
            id: Arc::default(),
        });
        Ok(Box::new(AvroEncoder { registration }))
    }
}

struct AvroEncoder {
    registration: Option<Registration>,
}

/// What comes before the first record.
struct Registration {
    subject: String,
    text: String,
    registry: Arc<dyn SchemaRegistry>,
    id: Arc<OnceLock<u32>>,
}

impl Encoder for AvroEncoder {
    fn before(&mut self) -> Option<BoxFuture<'static, Result<()>>> {
        let Registration { subject, text, registry, id } = self.registration.as_ref()?;
        if id.get().is_some() {
            return None;
        }
        let (subject, text, registry, id) = (subject.clone(), text.clone(), registry.clone(), id.clone());
        Some(Box::pin(async move {
            let found = registry.register(&subject, &text).await?;
            // Whoever asked twice got the same id.
            let _ = id.set(found);
            Ok(())
        }))
    }

    fn encode(&mut self, batch: &RecordBatch, records: &mut Records) -> Result<()> {
        let id = match &self.registration {
            None => None,
            Some(r) => Some(
                *r.id.get().ok_or_else(|| Error::internal("rows came before the id of their schema was awaited"))?,
            ),
        };
        let schema = batch.schema();
        let columns = columns_of(batch.columns(), schema.fields())?;
        for row in 0..batch.num_rows() {
            let out = records.bytes_mut();
            let start = out.len();
            if let Some(id) = id {
                frame(id, out);
            }
            if let Err(e) = columns.iter().try_for_each(|c| c.push(row, out)) {
                out.truncate(start);
                return Err(e);
            }
            records.end();
        }
        Ok(())
    }
}

/// The values of a column, as far as writing tells them apart.
struct Column<'a> {
    nullable: bool,
    nulls: Option<&'a NullBuffer>,
    values: Values<'a>,
}

enum Values<'a> {
    Boolean(&'a BooleanArray),
    Whole(Box<dyn Fn(usize) -> i64 + 'a>),
    /// Time stamps in seconds.
    Seconds(&'a [i64]),
    Float(&'a [f32]),
    Double(&'a [f64]),
    Decimal(&'a [i128]),
    Text(&'a StringArray),
    LargeText(&'a LargeStringArray),
    Binary(&'a BinaryArray),
    Record(Vec<Column<'a>>),
    /// Where the items of each row begin.
    List(&'a [i32], Box<Column<'a>>),
    /// Where the entries of each row begin, keys and values.
    Map(&'a [i32], &'a StringArray, Box<Column<'a>>),
}

fn columns_of<'a>(arrays: &'a [ArrayRef], fields: &Fields) -> Result<Vec<Column<'a>>> {
    arrays.iter().zip(fields).map(|(array, field)| Column::of(array, field)).collect()
}

fn whole<T: ArrowPrimitiveType>(array: &ArrayRef) -> Values<'_>
where
    T::Native: Into<i64>,
{
    let values = array.as_primitive::<T>().values();
    Values::Whole(Box::new(move |row| values[row].into()))
}

impl<'a> Column<'a> {
    fn of(array: &'a ArrayRef, field: &FieldRef) -> Result<Self> {
        let values = match array.data_type() {
            DataType::Boolean => Values::Boolean(array.as_boolean()),
            DataType::Int8 => whole::<Int8Type>(array),
            DataType::Int16 => whole::<Int16Type>(array),
            DataType::Int32 => whole::<Int32Type>(array),
            DataType::Int64 => whole::<Int64Type>(array),
            DataType::UInt8 => whole::<UInt8Type>(array),
            DataType::UInt16 => whole::<UInt16Type>(array),
            DataType::UInt32 => whole::<UInt32Type>(array),
            DataType::Date32 => whole::<Date32Type>(array),
            DataType::Time32(TimeUnit::Millisecond) => whole::<Time32MillisecondType>(array),
            DataType::Time64(TimeUnit::Microsecond) => whole::<Time64MicrosecondType>(array),
            DataType::Timestamp(TimeUnit::Second, _) => {
                Values::Seconds(array.as_primitive::<TimestampSecondType>().values())
            }
            DataType::Timestamp(TimeUnit::Millisecond, _) => whole::<TimestampMillisecondType>(array),
            DataType::Timestamp(TimeUnit::Microsecond, _) => whole::<TimestampMicrosecondType>(array),
            DataType::Timestamp(TimeUnit::Nanosecond, _) => whole::<TimestampNanosecondType>(array),
            DataType::Float32 => Values::Float(array.as_primitive::<Float32Type>().values()),
            DataType::Float64 => Values::Double(array.as_primitive::<Float64Type>().values()),
            DataType::Decimal128(..) => Values::Decimal(array.as_primitive::<Decimal128Type>().values()),
            DataType::Utf8 => Values::Text(array.as_string()),
            DataType::LargeUtf8 => Values::LargeText(array.as_string()),
            DataType::Binary => Values::Binary(array.as_binary()),
            DataType::Struct(fields) => Values::Record(columns_of(array.as_struct().columns(), fields)?),
            DataType::List(item) => {
                let list = array.as_list::<i32>();
                Values::List(list.value_offsets(), Box::new(Self::of(list.values(), item)?))
            }
            DataType::Map(entries, _) => {
                let map = array.as_map();
                let (DataType::Struct(kv), Some(keys)) = (entries.data_type(), map.keys().as_string_opt()) else {
                    return Err(Error::internal("a map's keys that are no strings came unannounced"));
                };
                Values::Map(map.value_offsets(), keys, Box::new(Self::of(map.values(), &kv[1])?))
            }
            other => return Err(Error::internal(format!("a column of type {other} came unannounced"))),
        };
        Ok(Self { nullable: field.is_nullable(), nulls: array.nulls(), values })
    }

    /// Appends a value; part of one may be left behind an error.
    fn push(&self, row: usize, out: &mut Vec<u8>) -> Result<()> {
        if self.nullable {
            let is_null = self.nulls.is_some_and(|n| n.is_null(row));
            put_long(i64::from(!is_null), out);
            if is_null {
                return Ok(());
            }
        }
        match &self.values {
            Values::Boolean(v) => out.push(v.value(row).into()),
            Values::Whole(value) => put_long(value(row), out),
            Values::Seconds(v) => {
                let millis = v[row].checked_mul(1_000);
                put_long(
                    millis.ok_or_else(|| Error::data("a time stamp that milliseconds do not reach").code(3322))?,
                    out,
                );
            }
            Values::Float(v) => out.extend_from_slice(&v[row].to_le_bytes()),
            Values::Double(v) => out.extend_from_slice(&v[row].to_le_bytes()),
            Values::Decimal(v) => put_decimal(v[row], out),
            Values::Text(v) => put_bytes(v.value(row).as_bytes(), out),
            Values::LargeText(v) => put_bytes(v.value(row).as_bytes(), out),
            Values::Binary(v) => put_bytes(v.value(row), out),
            Values::Record(columns) => columns.iter().try_for_each(|c| c.push(row, out))?,
            Values::List(ends, items) => put_block(ends, row, out, |i, out| items.push(i, out))?,
            Values::Map(ends, keys, values) => put_block(ends, row, out, |i, out| {
                put_bytes(keys.value(i).as_bytes(), out);
                values.push(i, out)
            })?,
        }
        Ok(())
    }
}

/// Items as one block, and the end of blocks.
fn put_block(
    ends: &[i32],
    row: usize,
    out: &mut Vec<u8>,
    put: impl Fn(usize, &mut Vec<u8>) -> Result<()>,
) -> Result<()> {
    let (start, end) = (ends[row] as usize, ends[row + 1] as usize);
    if start < end {
        put_long((end - start) as i64, out);
        (start..end).try_for_each(|i| put(i, out))?;
    }
    out.push(0);
    Ok(())
}

/// In two's complement, big-endian, in as few bytes as hold it.
fn put_decimal(value: i128, out: &mut Vec<u8>) {
    let bits = 129 - if value < 0 { value.leading_ones() } else { value.leading_zeros() };
    put_bytes(&value.to_be_bytes()[16 - bits.div_ceil(8) as usize..], out);
}
