//! The bytes of a record as the value of a single column, and back.
//!
//! | column | bytes |
//! |---|---|
//! | bytes | as they are |
//! | string | UTF-8 |
//! | boolean | one byte, 0 or 1 |
//! | integer, float, double | big-endian, as many bytes as the type has |
//!
//! A null writes a record without a value.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Schema, SchemaRef};
use millstream_common::{Error, Result};

use crate::columns::{Column, Rows, Values};
use crate::{Decoder, DecodingFormat, Encoder, EncodingFormat, Records};

/// Reads and writes records as the one column of a schema.
#[derive(Clone, Debug)]
pub struct RawFormat {
    schema: SchemaRef,
}

impl RawFormat {
    /// Of a schema with one column; an error says what is wrong with it.
    pub fn new(schema: SchemaRef) -> Result<Self> {
        check(&schema)?;
        Ok(Self { schema })
    }
}

fn check(schema: &Schema) -> Result<()> {
    let next = "declare one column that is bytes, a string, a boolean or a number";
    let [field] = &schema.fields()[..] else {
        return Err(Error::config(format!("the raw format has one column, not {}", schema.fields().len()))
            .code(1331)
            .next(next));
    };
    match field.data_type() {
        DataType::Binary | DataType::Utf8 | DataType::Boolean | DataType::Float32 | DataType::Float64 => Ok(()),
        other if other.is_integer() => Ok(()),
        other => Err(Error::config(format!("column '{}' of type {other} has no raw form", field.name()))
            .code(1331)
            .next(next)),
    }
}

impl DecodingFormat for RawFormat {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn decoder(&self) -> Result<Box<dyn Decoder>> {
        Ok(Box::new(RawDecoder(Rows::new(&self.schema)?)))
    }
}

struct RawDecoder(Rows);

impl Decoder for RawDecoder {
    fn push(&mut self, record: &[u8]) -> Result<()> {
        self.0.add(|columns| columns.iter_mut().try_for_each(|column| read(record, column)).map(|()| 1))
    }

    fn rows(&self) -> usize {
        self.0.len()
    }

    fn take(&mut self) -> Result<RecordBatch> {
        self.0.take()
    }
}

/// Adds the value that a record is.
fn read(record: &[u8], column: &mut Column) -> Result<(), String> {
    const FULL: &str = "more than 2 GiB in a batch";
    fn sized<const N: usize>(record: &[u8]) -> Result<[u8; N], String> {
        record.try_into().map_err(|_| format!("{} bytes where {N} are wanted", record.len()))
    }
    match &mut column.values {
        Values::Binary(v) => v.push(record).then_some(()).ok_or(FULL)?,
        Values::Text(v) => {
            std::str::from_utf8(record).map_err(|e| format!("no UTF-8 at byte {}", e.valid_up_to()))?;
            v.push(record).then_some(()).ok_or(FULL)?;
        }
        Values::Boolean(v) => match sized::<1>(record)? {
            [0] => v.append(false),
            [1] => v.append(true),
            [other] => return Err(format!("{other} is neither 0 nor 1")),
        },
        Values::Int8(v) => v.push(i8::from_be_bytes(sized(record)?)),
        Values::Int16(v) => v.push(i16::from_be_bytes(sized(record)?)),
        Values::Int32(v) => v.push(i32::from_be_bytes(sized(record)?)),
        Values::Int64(v) => v.push(i64::from_be_bytes(sized(record)?)),
        Values::UInt8(v) => v.push(u8::from_be_bytes(sized(record)?)),
        Values::UInt16(v) => v.push(u16::from_be_bytes(sized(record)?)),
        Values::UInt32(v) => v.push(u32::from_be_bytes(sized(record)?)),
        Values::UInt64(v) => v.push(u64::from_be_bytes(sized(record)?)),
        Values::Float32(v) => v.push(f32::from_be_bytes(sized(record)?)),
        Values::Float64(v) => v.push(f64::from_be_bytes(sized(record)?)),
        _ => return Err("a column without a raw form".into()),
    }
    column.pushed();
    Ok(())
}

impl EncodingFormat for RawFormat {
    fn encoder(&self, schema: &SchemaRef) -> Result<Box<dyn Encoder>> {
        check(schema)?;
        Ok(Box::new(RawEncoder))
    }
}

struct RawEncoder;

impl Encoder for RawEncoder {
    fn encode(&mut self, batch: &RecordBatch, records: &mut Records) -> Result<()> {
        let column = batch.column(0);
        for row in 0..column.len() {
            if column.is_null(row) {
                records.push_tombstone();
                continue;
            }
            push(column, row, records.bytes_mut())?;
            records.end();
        }
        Ok(())
    }
}

fn push(column: &ArrayRef, row: usize, out: &mut Vec<u8>) -> Result<()> {
    match column.data_type() {
        DataType::Binary => out.extend_from_slice(column.as_binary::<i32>().value(row)),
        DataType::Utf8 => out.extend_from_slice(column.as_string::<i32>().value(row).as_bytes()),
        DataType::Boolean => out.push(u8::from(column.as_boolean().value(row))),
        DataType::Int8 => out.extend_from_slice(&column.as_primitive::<Int8Type>().value(row).to_be_bytes()),
        DataType::Int16 => out.extend_from_slice(&column.as_primitive::<Int16Type>().value(row).to_be_bytes()),
        DataType::Int32 => out.extend_from_slice(&column.as_primitive::<Int32Type>().value(row).to_be_bytes()),
        DataType::Int64 => out.extend_from_slice(&column.as_primitive::<Int64Type>().value(row).to_be_bytes()),
        DataType::UInt8 => out.extend_from_slice(&column.as_primitive::<UInt8Type>().value(row).to_be_bytes()),
        DataType::UInt16 => out.extend_from_slice(&column.as_primitive::<UInt16Type>().value(row).to_be_bytes()),
        DataType::UInt32 => out.extend_from_slice(&column.as_primitive::<UInt32Type>().value(row).to_be_bytes()),
        DataType::UInt64 => out.extend_from_slice(&column.as_primitive::<UInt64Type>().value(row).to_be_bytes()),
        DataType::Float32 => out.extend_from_slice(&column.as_primitive::<Float32Type>().value(row).to_be_bytes()),
        DataType::Float64 => out.extend_from_slice(&column.as_primitive::<Float64Type>().value(row).to_be_bytes()),
        other => return Err(Error::internal(format!("a column of type {other} came unannounced"))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{BinaryArray, Float64Array, Int32Array, StringArray};
    use arrow_schema::Field;

    use super::*;

    fn of(kind: DataType) -> RawFormat {
        RawFormat::new(Arc::new(Schema::new(vec![Field::new("v", kind, true)]))).unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let columns: [ArrayRef; 4] = [
            Arc::new(BinaryArray::from_vec(vec![b"", b"\0\xff"])),
            Arc::new(StringArray::from(vec!["é", ""])),
            Arc::new(Int32Array::from(vec![i32::MIN, 258])),
            Arc::new(Float64Array::from(vec![0.1, f64::INFINITY])),
        ];
        for column in columns {
            let format = of(column.data_type().clone());
            let batch = RecordBatch::try_new(format.schema(), vec![column]).unwrap();
            let mut records = Records::default();
            format.encoder(&batch.schema()).unwrap().encode(&batch, &mut records).unwrap();
            let mut decoder = format.decoder().unwrap();
            records.iter().for_each(|r| decoder.push(r.unwrap()).unwrap());
            assert_eq!(decoder.rows(), 2);
            assert_eq!(decoder.take().unwrap(), batch);
        }
    }

    #[test]
    fn bytes_of_a_number_are_big_endian_and_a_null_is_a_tombstone() {
        let format = of(DataType::Int32);
        let column: ArrayRef = Arc::new(Int32Array::from(vec![Some(258), None]));
        let batch = RecordBatch::try_new(format.schema(), vec![column]).unwrap();
        let mut records = Records::default();
        format.encoder(&batch.schema()).unwrap().encode(&batch, &mut records).unwrap();
        assert_eq!(records.iter().collect::<Vec<_>>(), [Some(&[0, 0, 1, 2][..]), None]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let wrong = |kind: DataType, bytes: &[u8]| {
            let mut decoder = of(kind).decoder().unwrap();
            let error = decoder.push(bytes).unwrap_err();
            assert_eq!(decoder.rows(), 0);
            error.what().to_owned()
        };
        assert!(wrong(DataType::Int64, b"123").contains("3 bytes where 8 are wanted"));
        assert!(wrong(DataType::Utf8, b"a\xff").contains("no UTF-8 at byte 1"));
        assert!(wrong(DataType::Boolean, &[2]).contains("neither 0 nor 1"));
        let two = Schema::new(vec![Field::new("a", DataType::Utf8, true), Field::new("b", DataType::Utf8, true)]);
        assert_eq!(RawFormat::new(Arc::new(two)).unwrap_err().number(), 1331);
        let date = Schema::new(vec![Field::new("day", DataType::Date32, true)]);
        assert!(RawFormat::new(Arc::new(date)).unwrap_err().what().contains("'day'"));
    }
}
