//! Rows as JSON lines: no spaces, columns in their order, decimals at full scale, time stamps as
//! `2026-01-01 00:00:04.330`, bytes in base64, rows and maps as objects, lists as arrays. A leading row-kind column prints as
//! `"op":"+I"`.
//!
//! What a column needs is prepared once per batch; a row then costs no allocation.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, Float16Type, Float32Type, Float64Type,
    Int8Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, BinaryArray, BooleanArray, LargeStringArray, RecordBatch, StringArray};
use arrow_buffer::NullBuffer;
use arrow_schema::{DataType, Fields, Schema, SchemaRef, TimeUnit};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use millstream_common::{Error, Result};
use millstream_engine::element::{ROW_KIND_COLUMN, RowKind};

use crate::time::{TimestampText, digits_of};
use crate::{Encoder, EncodingFormat, Records};

/// Prints batches of one schema.
#[derive(Clone, Debug)]
pub struct JsonRows {
    labels: Labels,
}

/// By column: what stands before its value, `{"auction":` or `,"price":`.
type Labels = Vec<Vec<u8>>;

impl JsonRows {
    /// A printer for batches of `schema`; an error names a column whose type has no text here.
    pub fn new(schema: &Schema) -> Result<Self> {
        for field in schema.fields() {
            if !printable(field.data_type()) {
                return Err(Error::config(format!(
                    "column '{}' of type {} cannot be printed as JSON",
                    field.name(),
                    field.data_type()
                ))
                .code(1310)
                .next("cast it to a number, a string, a date or a time stamp"));
            }
        }
        Ok(Self { labels: labels_of(schema.fields()) })
    }

    /// Appends the rows of `batch`, a line each.
    pub fn push(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<()> {
        self.rows(batch, out, |out| out, |out| out.push(b'\n'))
    }

    /// Each row into the bytes of `out`, and `end` behind it.
    fn rows<T>(
        &self,
        batch: &RecordBatch,
        out: &mut T,
        bytes: impl Fn(&mut T) -> &mut Vec<u8>,
        end: impl Fn(&mut T),
    ) -> Result<()> {
        let schema = batch.schema();
        if batch.num_columns() != self.labels.len() {
            return Err(Error::internal(format!(
                "{} columns came where {} were announced",
                batch.num_columns(),
                self.labels.len()
            )));
        }
        let mut columns = columns_of(batch.columns(), schema.fields())?;
        for row in 0..batch.num_rows() {
            push_object(&mut columns, &self.labels, row, bytes(out))?;
            end(out);
        }
        Ok(())
    }
}

fn labels_of(fields: &Fields) -> Labels {
    let labels = fields.iter().enumerate().map(|(i, field)| {
        let mut label = vec![if i == 0 { b'{' } else { b',' }];
        push_string(if i == 0 && field.name() == ROW_KIND_COLUMN { "op" } else { field.name() }, &mut label);
        label.push(b':');
        label
    });
    labels.collect()
}

fn columns_of<'a>(arrays: &'a [ArrayRef], fields: &Fields) -> Result<Vec<Column<'a>>> {
    let columns = arrays.iter().zip(fields).enumerate();
    columns.map(|(i, (array, field))| Column::of(array, i == 0 && field.name() == ROW_KIND_COLUMN)).collect()
}

fn push_object(columns: &mut [Column<'_>], labels: &Labels, row: usize, out: &mut Vec<u8>) -> Result<()> {
    for (column, label) in columns.iter_mut().zip(labels) {
        out.extend_from_slice(label);
        column.push(row, out)?;
    }
    out.extend_from_slice(if labels.is_empty() { b"{}" } else { b"}" });
    Ok(())
}

/// Rows as JSON objects, one a record, as [`JsonRows`] prints them.
#[derive(Clone, Copy, Debug, Default)]
pub struct JsonEncoding;

impl EncodingFormat for JsonEncoding {
    fn encoder(&self, schema: &SchemaRef) -> Result<Box<dyn Encoder>> {
        Ok(Box::new(JsonRows::new(schema)?))
    }
}

impl Encoder for JsonRows {
    fn encode(&mut self, batch: &RecordBatch, records: &mut Records) -> Result<()> {
        self.rows(batch, records, |records| &mut records.bytes, Records::end)
    }
}

/// Appends one value as JSON, as [`JsonRows`] prints it. What has no text there: bytes as hexadecimal digits behind `0x`,
/// lengths of time and times of day as numbers of their unit, wide decimals as the others. Time stamps with a zone print
/// as UTC without saying so. An error for what is none of these.
pub fn push_value(array: &ArrayRef, row: usize, out: &mut Vec<u8>) -> Result<()> {
    if array.is_null(row) {
        out.extend_from_slice(b"null");
        return Ok(());
    }
    let hex = |bytes: &[u8], out: &mut Vec<u8>| {
        let digits: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        push_string(&format!("0x{digits}"), out);
    };
    match array.data_type() {
        DataType::Binary => hex(array.as_binary::<i32>().value(row), out),
        DataType::LargeBinary => hex(array.as_binary::<i64>().value(row), out),
        DataType::BinaryView => hex(array.as_binary_view().value(row), out),
        DataType::FixedSizeBinary(_) => hex(array.as_fixed_size_binary().value(row), out),
        DataType::Utf8View => push_string(array.as_string_view().value(row), out),
        DataType::Float16 => {
            let value = array.as_primitive::<Float16Type>().value(row).to_f32();
            push_float(value.is_finite(), value, out);
        }
        DataType::Decimal32(_, scale) => {
            push_decimal(array.as_primitive::<Decimal32Type>().value(row).into(), checked_scale(*scale)?, out);
        }
        DataType::Decimal64(_, scale) => {
            push_decimal(array.as_primitive::<Decimal64Type>().value(row).into(), checked_scale(*scale)?, out);
        }
        DataType::Decimal256(_, scale) => {
            let value = array.as_primitive::<Decimal256Type>().value(row);
            push_digits(value.is_negative(), value.to_string().trim_start_matches('-'), checked_scale(*scale)?, out);
        }
        DataType::Timestamp(unit, Some(_)) => {
            let data = array.to_data().into_builder().data_type(DataType::Timestamp(*unit, None)).build();
            let plain = data.map_err(|e| Error::internal("a time stamp that has no other zone").source(e))?;
            push_value(&arrow_array::make_array(plain), row, out)?;
        }
        DataType::Date64 | DataType::Time64(_) | DataType::Duration(_) => {
            push_integer(number_at::<i64>(array, row), out);
        }
        DataType::Time32(_) => push_integer(number_at::<i32>(array, row), out),
        kind if printable(kind) => Column::of(array, false)?.push(row, out)?,
        kind => {
            return Err(Error::config(format!("a value of type {kind} cannot be printed as JSON")).code(1310));
        }
    }
    Ok(())
}

/// The number that stands in row `row`, whatever it means.
fn number_at<T: arrow_buffer::ArrowNativeType>(array: &ArrayRef, row: usize) -> T {
    let data = array.to_data();
    data.buffer::<T>(0)[row]
}

fn checked_scale(scale: i8) -> Result<usize> {
    usize::try_from(scale)
        .map_err(|_| Error::config(format!("a decimal of scale {scale} cannot be printed as JSON")).code(1310))
}

fn printable(kind: &DataType) -> bool {
    match kind {
        DataType::Decimal128(_, scale) => *scale >= 0,
        DataType::Struct(fields) => fields.iter().all(|f| printable(f.data_type())),
        DataType::List(item) => printable(item.data_type()),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(kv) => {
                kv.len() == 2 && kv[0].data_type() == &DataType::Utf8 && printable(kv[1].data_type())
            }
            _ => false,
        },
        other => {
            other.is_integer()
                || matches!(
                    other,
                    DataType::Null
                        | DataType::Boolean
                        | DataType::Float32
                        | DataType::Float64
                        | DataType::Utf8
                        | DataType::LargeUtf8
                        | DataType::Binary
                        | DataType::Date32
                        | DataType::Timestamp(..)
                )
        }
    }
}

/// The values of a column, as far as printing tells them apart.
struct Column<'a> {
    nulls: Option<&'a NullBuffer>,
    values: Values<'a>,
}

enum Values<'a> {
    Null,
    Boolean(&'a BooleanArray),
    Int8(&'a [i8]),
    Int16(&'a [i16]),
    Int32(&'a [i32]),
    Int64(&'a [i64]),
    UInt8(&'a [u8]),
    UInt16(&'a [u16]),
    UInt32(&'a [u32]),
    UInt64(&'a [u64]),
    Float32(&'a [f32]),
    Float64(&'a [f64]),
    Decimal(&'a [i128], usize),
    Text(&'a StringArray),
    LargeText(&'a LargeStringArray),
    Binary(&'a BinaryArray),
    Date(&'a [i32], TimestampText),
    /// With the number of digits of its fraction, and whether it says that it is UTC.
    Time(&'a [i64], u32, bool, TimestampText),
    RowKind(&'a [u8]),
    Struct(Vec<Column<'a>>, Labels),
    List(&'a [i32], Box<Column<'a>>),
    /// Where the entries of each row begin, keys and values.
    Map(&'a [i32], &'a StringArray, Box<Column<'a>>),
}

impl<'a> Column<'a> {
    fn of(array: &'a ArrayRef, row_kind: bool) -> Result<Self> {
        let values = match array.data_type() {
            DataType::UInt8 if row_kind => Values::RowKind(array.as_primitive::<UInt8Type>().values()),
            DataType::Null => Values::Null,
            DataType::Boolean => Values::Boolean(array.as_boolean()),
            DataType::Int8 => Values::Int8(array.as_primitive::<Int8Type>().values()),
            DataType::Int16 => Values::Int16(array.as_primitive::<Int16Type>().values()),
            DataType::Int32 => Values::Int32(array.as_primitive::<Int32Type>().values()),
            DataType::Int64 => Values::Int64(array.as_primitive::<Int64Type>().values()),
            DataType::UInt8 => Values::UInt8(array.as_primitive::<UInt8Type>().values()),
            DataType::UInt16 => Values::UInt16(array.as_primitive::<UInt16Type>().values()),
            DataType::UInt32 => Values::UInt32(array.as_primitive::<UInt32Type>().values()),
            DataType::UInt64 => Values::UInt64(array.as_primitive::<UInt64Type>().values()),
            DataType::Float32 => Values::Float32(array.as_primitive::<Float32Type>().values()),
            DataType::Float64 => Values::Float64(array.as_primitive::<Float64Type>().values()),
            DataType::Decimal128(_, scale) if *scale >= 0 => {
                Values::Decimal(array.as_primitive::<Decimal128Type>().values(), *scale as usize)
            }
            DataType::Utf8 => Values::Text(array.as_string()),
            DataType::LargeUtf8 => Values::LargeText(array.as_string()),
            DataType::Binary => Values::Binary(array.as_binary()),
            DataType::Date32 => Values::Date(array.as_primitive::<Date32Type>().values(), TimestampText::default()),
            DataType::Timestamp(unit, zone) => {
                let values = match unit {
                    TimeUnit::Second => array.as_primitive::<TimestampSecondType>().values(),
                    TimeUnit::Millisecond => array.as_primitive::<TimestampMillisecondType>().values(),
                    TimeUnit::Microsecond => array.as_primitive::<TimestampMicrosecondType>().values(),
                    TimeUnit::Nanosecond => array.as_primitive::<TimestampNanosecondType>().values(),
                };
                Values::Time(values, digits_of(*unit), zone.is_some(), TimestampText::default())
            }
            DataType::Struct(fields) => {
                Values::Struct(columns_of(array.as_struct().columns(), fields)?, labels_of(fields))
            }
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                Values::List(list.value_offsets(), Box::new(Self::of(list.values(), false)?))
            }
            DataType::Map(..) => {
                let map = array.as_map();
                let keys = map.keys().as_string_opt::<i32>();
                let keys = keys.ok_or_else(|| Error::internal("a map's keys that are no strings came unannounced"))?;
                Values::Map(map.value_offsets(), keys, Box::new(Self::of(map.values(), false)?))
            }
            other => return Err(Error::internal(format!("a column of type {other} came unannounced"))),
        };
        Ok(Self { nulls: array.nulls(), values })
    }

    #[inline]
    fn push(&mut self, row: usize, out: &mut Vec<u8>) -> Result<()> {
        if self.nulls.is_some_and(|n| n.is_null(row)) {
            out.extend_from_slice(b"null");
            return Ok(());
        }
        match &mut self.values {
            Values::Null => out.extend_from_slice(b"null"),
            Values::Boolean(v) => out.extend_from_slice(if v.value(row) { b"true" } else { b"false" }),
            Values::Int8(v) => push_integer(v[row], out),
            Values::Int16(v) => push_integer(v[row], out),
            Values::Int32(v) => push_integer(v[row], out),
            Values::Int64(v) => push_integer(v[row], out),
            Values::UInt8(v) => push_integer(v[row], out),
            Values::UInt16(v) => push_integer(v[row], out),
            Values::UInt32(v) => push_integer(v[row], out),
            Values::UInt64(v) => push_integer(v[row], out),
            Values::Float32(v) => push_float(v[row].is_finite(), v[row], out),
            Values::Float64(v) => push_float(v[row].is_finite(), v[row], out),
            Values::Decimal(v, scale) => push_decimal(v[row], *scale, out),
            Values::Text(v) => push_string(v.value(row), out),
            Values::LargeText(v) => push_string(v.value(row), out),
            Values::Binary(v) => {
                out.push(b'"');
                push_base64(v.value(row), out);
                out.push(b'"');
            }
            Values::Date(v, text) => {
                out.push(b'"');
                text.push_date(i64::from(v[row]), out);
                out.push(b'"');
            }
            Values::Time(v, digits, zoned, text) => {
                out.push(b'"');
                text.push_timestamp(v[row], *digits, out);
                out.extend_from_slice(if *zoned { b"Z\"" } else { b"\"" });
            }
            Values::Struct(columns, labels) => push_object(columns, labels, row, out)?,
            Values::List(offsets, items) => {
                out.push(b'[');
                for item in offsets[row]..offsets[row + 1] {
                    if item > offsets[row] {
                        out.push(b',');
                    }
                    items.push(item as usize, out)?;
                }
                out.push(b']');
            }
            Values::Map(offsets, keys, values) => {
                out.push(b'{');
                for entry in offsets[row]..offsets[row + 1] {
                    if entry > offsets[row] {
                        out.push(b',');
                    }
                    push_string(keys.value(entry as usize), out);
                    out.push(b':');
                    values.push(entry as usize, out)?;
                }
                out.push(b'}');
            }
            Values::RowKind(v) => {
                let kind = RowKind::from_number(v[row])
                    .ok_or_else(|| Error::internal(format!("{} is no kind of row", v[row])))?;
                out.push(b'"');
                out.extend_from_slice(kind.symbol().as_bytes());
                out.push(b'"');
            }
        }
        Ok(())
    }
}

fn push_base64(bytes: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    // The room is exactly what padded base64 takes.
    let _ = BASE64.encode_slice(bytes, &mut out[start..]);
}

#[inline]
fn push_integer(value: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// The shortest text that reads back as the same number; JSON has none for infinity and not-a-number.
fn push_float(finite: bool, value: impl std::fmt::Debug, out: &mut Vec<u8>) {
    use std::io::Write;
    if finite {
        // Writing to a vector cannot fail.
        let _ = write!(out, "{value:?}");
    } else {
        out.extend_from_slice(b"null");
    }
}

/// All `scale` digits behind the point, also when they are zeros.
fn push_decimal(value: i128, scale: usize, out: &mut Vec<u8>) {
    push_digits(value < 0, itoa::Buffer::new().format(value.unsigned_abs()), scale, out);
}

fn push_digits(negative: bool, digits: &str, scale: usize, out: &mut Vec<u8>) {
    if negative {
        out.push(b'-');
    }
    let digits = digits.as_bytes();
    if digits.len() > scale {
        out.extend_from_slice(&digits[..digits.len() - scale]);
    } else {
        out.push(b'0');
    }
    if scale > 0 {
        out.push(b'.');
        out.resize(out.len() + scale.saturating_sub(digits.len()), b'0');
        out.extend_from_slice(&digits[digits.len().saturating_sub(scale)..]);
    }
}

/// By byte: 0 when it stands for itself in a JSON string, else what follows the backslash (`u`: as four digits).
const ESCAPES: [u8; 256] = {
    let mut table = [0; 256];
    let mut control = 0;
    while control < 0x20 {
        table[control] = b'u';
        control += 1;
    }
    table[0x08] = b'b';
    table[0x09] = b't';
    table[0x0a] = b'n';
    table[0x0c] = b'f';
    table[0x0d] = b'r';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
};

/// Appends `text` as a JSON string: only what JSON demands is escaped.
pub fn push_string(text: &str, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    out.reserve(bytes.len() + 2);
    out.push(b'"');
    let mut start = 0;
    for (i, byte) in bytes.iter().enumerate() {
        let escape = ESCAPES[*byte as usize];
        if escape == 0 {
            continue;
        }
        out.extend_from_slice(&bytes[start..i]);
        out.extend_from_slice(&[b'\\', escape]);
        if escape == b'u' {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            out.extend_from_slice(&[b'0', b'0', HEX[(byte >> 4) as usize], HEX[(byte & 15) as usize]]);
        }
        start = i + 1;
    }
    out.extend_from_slice(&bytes[start..]);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{
        BinaryArray, Date32Array, Decimal64Array, Decimal128Array, Decimal256Array, DurationSecondArray, Float64Array,
        Int64Array, NullArray, StringViewArray, Time32SecondArray, TimestampMillisecondArray, UInt8Array,
    };
    use arrow_schema::Field;

    use super::*;

    fn print(columns: Vec<(&str, ArrayRef)>) -> String {
        let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true))).unwrap();
        let mut out = Vec::new();
        JsonRows::new(&batch.schema()).unwrap().push(&batch, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_type_prints() {
        let decimal = Decimal128Array::from(vec![Some(1_006_023_140), Some(-140), Some(0), None]);
        let text = print(vec![
            (ROW_KIND_COLUMN, Arc::new(UInt8Array::from(vec![0, 1, 2, 3]))),
            ("n", Arc::new(Int64Array::from(vec![Some(i64::MIN), None, Some(0), Some(7)]))),
            ("price", Arc::new(decimal.with_precision_and_scale(23, 3).unwrap())),
            ("at", Arc::new(TimestampMillisecondArray::from(vec![1_767_225_604_330, -1, 0, 5]))),
            ("day", Arc::new(Date32Array::from(vec![20_454, 0, 1, -1]))),
            ("f", Arc::new(Float64Array::from(vec![1.0, 0.1, f64::NAN, 1e300]))),
            ("b", Arc::new(BooleanArray::from(vec![true, false, true, true]))),
            ("nothing", Arc::new(NullArray::new(4))),
        ]);
        let expected = [
            r#"{"op":"+I","n":-9223372036854775808,"price":1006023.140,"at":"2026-01-01 00:00:04.330","day":"2026-01-01","f":1.0,"b":true,"nothing":null}"#,
            r#"{"op":"-U","n":null,"price":-0.140,"at":"1969-12-31 23:59:59.999","day":"1970-01-01","f":0.1,"b":false,"nothing":null}"#,
            r#"{"op":"+U","n":0,"price":0.000,"at":"1970-01-01 00:00:00.000","day":"1970-01-02","f":null,"b":true,"nothing":null}"#,
            r#"{"op":"-D","n":7,"price":null,"at":"1970-01-01 00:00:00.005","day":"1969-12-31","f":1e300,"b":true,"nothing":null}"#,
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn text_is_escaped_as_little_as_json_allows() {
        let all: String = (0..0x80_u8).map(char::from).chain("é\u{2028}🦀".chars()).collect();
        let text = print(vec![("a\"b", Arc::new(StringArray::from(vec![all.as_str(), ""])))]);
        let lines: Vec<&str> = text.split('\n').collect();
        assert_eq!(lines.len(), 3);
        let back: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
        assert_eq!(back["a\"b"], all);
        assert!(lines[0].starts_with(r#"{"a\"b":"\u0000\u0001"#));
        assert!(lines[0].contains(r#"\u0007\b\t\n\u000b\f\r\u000e"#) && lines[0].contains(r#"[\\]^_`a"#));
        assert!(lines[0].ends_with("}~\u{7f}é\u{2028}🦀\"}"));
        assert_eq!(lines[1], r#"{"a\"b":""}"#);
    }

    #[test]
    fn single_values_print_also_where_columns_do_not() {
        let one = |array: ArrayRef| {
            let mut out = Vec::new();
            push_value(&array, array.len() - 1, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let at = TimestampMillisecondArray::from(vec![1, 1_767_225_604_330]);
        assert_eq!(one(Arc::new(at.clone())), r#""2026-01-01 00:00:04.330""#);
        assert_eq!(one(Arc::new(at.with_timezone("+02:00"))), r#""2026-01-01 00:00:04.330""#);
        assert_eq!(one(Arc::new(BinaryArray::from_vec(vec![b"a", b"\0\xff"]))), r#""0x00ff""#);
        assert_eq!(one(Arc::new(StringViewArray::from(vec!["a", "b\"c"]))), r#""b\"c""#);
        assert_eq!(one(Arc::new(DurationSecondArray::from(vec![5, -7]))), "-7");
        assert_eq!(one(Arc::new(Time32SecondArray::from(vec![5, 7]).slice(0, 1))), "5");
        let small = Decimal64Array::from(vec![-140]).with_precision_and_scale(9, 3).unwrap();
        assert_eq!(one(Arc::new(small)), "-0.140");
        let wide = Decimal256Array::from(vec![arrow_buffer::i256::MIN]).with_precision_and_scale(76, 2).unwrap();
        assert!(
            one(Arc::new(wide))
                .starts_with("-5789604461865809771178549250434395392663499233282028201972879200395656481")
        );
        assert_eq!(one(Arc::new(Int64Array::from(vec![Some(1), None]))), "null");
        let months = arrow_array::IntervalYearMonthArray::from(vec![1]);
        assert_eq!(push_value(&(Arc::new(months) as ArrayRef), 0, &mut Vec::new()).unwrap_err().number(), 1310);
    }

    #[test]
    fn a_type_without_a_text_is_refused_by_name() {
        let schema = Schema::new(vec![Field::new("blob", DataType::Duration(TimeUnit::Second), true)]);
        let error = JsonRows::new(&schema).unwrap_err().to_string();
        assert!(error.contains("'blob'"), "{error}");
    }
}
