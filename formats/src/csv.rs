//! Delimited text, a record a row: fields in the order of the columns, quoted where they must be (RFC 4180).
//!
//! Only flat columns. An empty field is null, but in a string column, where it is an empty string; with a null literal, a
//! field that equals it is null in every column. Numbers are read as the JSON format reads them from strings.

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Schema, SchemaRef};
use csv_core::{ReadRecordResult, Reader, ReaderBuilder, WriteResult, Writer, WriterBuilder};
use millstream_common::{Error, Result};

use crate::columns::{Column, Rows, Values, check_type};
use crate::json::push_value;
use crate::text::{NotThat, parse_into};
use crate::{Decoder, DecodingFormat, Encoder, EncodingFormat, Records};

/// How fields stand in a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsvOptions {
    /// Between fields.
    pub delimiter: u8,
    /// Around fields; two of it inside stand for one.
    pub quote: u8,
    /// What stands for null. `None`: an empty field, but in a string column.
    pub null_literal: Option<String>,
}

impl Default for CsvOptions {
    fn default() -> Self {
        Self { delimiter: b',', quote: b'"', null_literal: None }
    }
}

/// Reads and writes delimited text.
#[derive(Clone, Debug)]
pub struct CsvFormat {
    schema: SchemaRef,
    options: CsvOptions,
}

impl CsvFormat {
    /// Of the columns of `schema`; an error names one that is not flat.
    pub fn new(schema: SchemaRef, options: CsvOptions) -> Result<Self> {
        check(&schema)?;
        if options.delimiter == options.quote || [options.delimiter, options.quote].iter().any(|b| b"\r\n".contains(b))
        {
            return Err(Error::config("the delimiter and the quote of CSV must differ, and be no line ends").code(1332));
        }
        Ok(Self { schema, options })
    }
}

fn check(schema: &Schema) -> Result<()> {
    for field in schema.fields() {
        check_type(field)?;
        if field.data_type().is_nested() || field.data_type() == &DataType::Binary {
            return Err(Error::config(format!(
                "column '{}' of type {} has no CSV form",
                field.name(),
                field.data_type()
            ))
            .code(1332)
            .next("declare it as a string, or take the JSON format"));
        }
    }
    Ok(())
}

impl DecodingFormat for CsvFormat {
    fn name(&self) -> &'static str {
        "csv"
    }

    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn decoder(&self) -> Result<Box<dyn Decoder>> {
        let reader = ReaderBuilder::new().delimiter(self.options.delimiter).quote(self.options.quote).build();
        Ok(Box::new(CsvDecoder {
            rows: Rows::new(&self.schema)?,
            fields: Fields {
                ends: vec![0; self.schema.fields().len() + 1],
                text: Vec::new(),
                schema: self.schema.clone(),
                null_literal: self.options.null_literal.clone(),
                reader,
            },
        }))
    }
}

struct CsvDecoder {
    rows: Rows,
    fields: Fields,
}

impl Decoder for CsvDecoder {
    fn push(&mut self, record: &[u8]) -> Result<()> {
        self.rows.add(|columns| self.fields.read(record, columns).map(|()| 1))
    }

    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn take(&mut self) -> Result<RecordBatch> {
        self.rows.take()
    }
}

/// The fields of a record.
struct Fields {
    schema: SchemaRef,
    null_literal: Option<String>,
    reader: Reader,
    /// Without their quotes, and where each ends.
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Fields {
    /// Adds a row; half of one may be left behind an error.
    fn read(&mut self, record: &[u8], columns: &mut [Column]) -> Result<(), String> {
        let fields = self.split(record)?;
        if fields != columns.len() {
            return Err(format!("{fields} fields where {} are wanted", columns.len()));
        }
        let mut start = 0;
        for ((column, &end), field) in columns.iter_mut().zip(&self.ends).zip(self.schema.fields()) {
            // Quotes and delimiters are ASCII: what is cut at them stays UTF-8.
            let text = std::str::from_utf8(&self.text[start..end]).map_err(|_| "no UTF-8".to_owned())?;
            start = end;
            let is_null = match &self.null_literal {
                Some(literal) => text == literal,
                None => text.is_empty() && !matches!(column.values, Values::Text(_)),
            };
            let done = match is_null {
                true if column.nullable => {
                    column.push_null();
                    Ok(())
                }
                true => Err(NotThat("null, which it may not be")),
                false => parse_into(text, column),
            };
            done.map_err(|NotThat(what)| format!("{}: '{text}' is {what}", field.name()))?;
        }
        Ok(())
    }

    /// Splits a record into `text` and `ends`: how many fields it has.
    fn split(&mut self, record: &[u8]) -> Result<usize, String> {
        std::str::from_utf8(record).map_err(|e| format!("no UTF-8 at byte {}", e.valid_up_to()))?;
        // Fields without their quotes are never longer than with them.
        self.text.resize(self.text.len().max(record.len()), 0);
        self.reader.reset();
        let (mut input, mut written, mut fields) = (record, 0, 0);
        loop {
            let (result, read, out, ended) =
                self.reader.read_record(input, &mut self.text[written..], &mut self.ends[fields..]);
            (input, written, fields) = (&input[read..], written + out, fields + ended);
            match result {
                // An empty input says that this is the end of the record.
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::Record if input.iter().all(|b| b"\r\n".contains(b)) => return Ok(fields),
                ReadRecordResult::Record => return Err("more than one line".into()),
                ReadRecordResult::End => return Ok(fields),
                ReadRecordResult::OutputEndsFull | ReadRecordResult::OutputFull => {
                    return Err(format!("more than the {} fields of the columns", self.schema.fields().len()));
                }
            }
        }
    }
}

impl EncodingFormat for CsvFormat {
    fn encoder(&self, schema: &SchemaRef) -> Result<Box<dyn Encoder>> {
        check(schema)?;
        let writer = WriterBuilder::new()
            .delimiter(self.options.delimiter)
            .quote(self.options.quote)
            .terminator(csv_core::Terminator::Any(b'\n'))
            .build();
        let null_literal = self.options.null_literal.clone().unwrap_or_default();
        Ok(Box::new(CsvEncoder { writer, null_literal, text: Vec::new() }))
    }
}

struct CsvEncoder {
    writer: Writer,
    null_literal: String,
    text: Vec<u8>,
}

impl Encoder for CsvEncoder {
    fn encode(&mut self, batch: &RecordBatch, records: &mut Records) -> Result<()> {
        for row in 0..batch.num_rows() {
            let out = records.bytes_mut();
            for (i, column) in batch.columns().iter().enumerate() {
                self.text.clear();
                if column.is_null(row) {
                    self.text.extend_from_slice(self.null_literal.as_bytes());
                } else if let Some(text) = column.as_string_opt::<i32>() {
                    self.text.extend_from_slice(text.value(row).as_bytes());
                } else if let Some(word) = no_number(column, row) {
                    self.text.extend_from_slice(word.as_bytes());
                } else {
                    push_value(column, row, &mut self.text)?;
                    if self.text.first() == Some(&b'"') {
                        self.text.remove(0);
                        self.text.pop();
                    }
                }
                if i > 0 {
                    grow(out, |room| self.writer.delimiter(room));
                }
                let mut text = &self.text[..];
                grow(out, |room| {
                    let (result, read, wrote) = self.writer.field(text, room);
                    text = &text[read..];
                    (result, wrote)
                });
            }
            grow(out, |room| self.writer.terminator(room));
            out.pop();
            records.end();
        }
        Ok(())
    }
}

/// What stands for a float that has no digits; JSON has nothing for it.
fn no_number(column: &ArrayRef, row: usize) -> Option<&'static str> {
    let value = match column.data_type() {
        DataType::Float32 => f64::from(column.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row),
        _ => return None,
    };
    match value {
        _ if value.is_nan() => Some("NaN"),
        f64::INFINITY => Some("Infinity"),
        f64::NEG_INFINITY => Some("-Infinity"),
        _ => None,
    }
}

/// Appends what `write` puts into the room it is given, until it has put all.
fn grow(out: &mut Vec<u8>, mut write: impl FnMut(&mut [u8]) -> (WriteResult, usize)) {
    let mut room = 64;
    loop {
        let start = out.len();
        out.resize(start + room, 0);
        let (result, wrote) = write(&mut out[start..]);
        out.truncate(start + wrote);
        if matches!(result, WriteResult::InputEmpty) {
            return;
        }
        room *= 2;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_schema::{Field, TimeUnit};

    use super::*;
    use crate::lines_of;

    fn format(options: CsvOptions) -> CsvFormat {
        let schema = Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("name", DataType::Utf8, true),
            Field::new("price", DataType::Decimal128(8, 2), true),
            Field::new("at", DataType::Timestamp(TimeUnit::Millisecond, None), true),
        ]);
        CsvFormat::new(Arc::new(schema), options).unwrap()
    }

    fn written(format: &CsvFormat, batch: &RecordBatch) -> Vec<String> {
        let mut records = Records::default();
        format.encoder(&batch.schema()).unwrap().encode(batch, &mut records).unwrap();
        records.iter().map(|r| String::from_utf8(r.unwrap().to_vec()).unwrap()).collect()
    }

    #[test]
    fn what_is_read_is_written_again() {
        let lines = [
            "1,plain,12.50,2026-01-01 00:00:04.330",
            "-2,\"a,\"\"b\"\"\nc\",-0.01,",
            "3,,,",
            "4,é,0.00,1969-12-31 23:59:59.999",
        ];
        let format = format(CsvOptions::default());
        let mut decoder = format.decoder().unwrap();
        lines.iter().for_each(|line| decoder.push(line.as_bytes()).unwrap());
        decoder.push(b"5,x,1,\r\n").unwrap();
        let batch = decoder.take().unwrap();
        assert_eq!(
            lines_of(&batch),
            [
                r#"{"id":1,"name":"plain","price":12.50,"at":"2026-01-01 00:00:04.330"}"#,
                r#"{"id":-2,"name":"a,\"b\"\nc","price":-0.01,"at":null}"#,
                r#"{"id":3,"name":"","price":null,"at":null}"#,
                r#"{"id":4,"name":"é","price":0.00,"at":"1969-12-31 23:59:59.999"}"#,
                r#"{"id":5,"name":"x","price":1.00,"at":null}"#,
            ]
        );
        let back = written(&format, &batch);
        assert_eq!(back[..4], lines);
        assert_eq!(back[4], "5,x,1.00,");
    }

    #[test]
    fn other_delimiters_and_a_null_literal() {
        let options = CsvOptions { delimiter: b'|', quote: b'\'', null_literal: Some("n/a".into()) };
        let format = format(options);
        let mut decoder = format.decoder().unwrap();
        for line in ["1|'a|b'|n/a|n/a", "2|n/a|1.5|n/a"] {
            decoder.push(line.as_bytes()).unwrap();
        }
        assert!(decoder.push(b"3|x||n/a").unwrap_err().what().contains("price: '' is no decimal number"));
        let batch = decoder.take().unwrap();
        assert_eq!(lines_of(&batch)[1], r#"{"id":2,"name":null,"price":1.50,"at":null}"#);
        assert_eq!(written(&format, &batch), ["1|'a|b'|n/a|n/a", "2|n/a|1.50|n/a"]);
    }

    #[test]
    fn a_bad_record_leaves_no_trace() {
        let mut decoder = format(CsvOptions::default()).decoder().unwrap();
        for (record, expected) in [
            ("1,a,2", "3 fields where 4 are wanted"),
            ("1,a,2,,", "5 fields where 4 are wanted"),
            ("1,a,2,,,6", "more than the 4 fields"),
            ("1,a,2.001,", "price: '2.001' is a number with more digits"),
            ("x,a,2,", "id: 'x' is no integer that fits"),
            (",a,2,", "id: '' is null, which it may not be"),
            ("1,a,2,never", "at: 'never' is no time stamp"),
            ("1,a,2,\n2,b,3,", "more than one line"),
            ("", "0 fields where 4 are wanted"),
        ] {
            decoder.push(b"7,good,1,").unwrap();
            let error = decoder.push(record.as_bytes()).unwrap_err();
            assert!(error.what().contains(expected), "{record}: {error}");
        }
        assert!(decoder.push(b"1,\xff,2,").unwrap_err().what().contains("no UTF-8 at byte 2"));
        let rows = lines_of(&decoder.take().unwrap());
        assert_eq!(rows, vec![r#"{"id":7,"name":"good","price":1.00,"at":null}"#; 9]);
    }

    #[test]
    fn long_fields_and_single_columns() {
        let schema = Arc::new(Schema::new(vec![Field::new("v", DataType::Utf8, true)]));
        let format = CsvFormat::new(schema, CsvOptions::default()).unwrap();
        let long = "\"x".repeat(5_000);
        let column: arrow_array::ArrayRef =
            Arc::new(arrow_array::StringArray::from(vec![Some(long.as_str()), Some(""), None]));
        let batch = RecordBatch::try_new(format.schema(), vec![column]).unwrap();
        let back = written(&format, &batch);
        assert_eq!(back[1..], ["\"\"", "\"\""]);
        let mut decoder = format.decoder().unwrap();
        back.iter().for_each(|r| decoder.push(r.as_bytes()).unwrap());
        let read = decoder.take().unwrap();
        assert_eq!(read.column(0).as_string::<i32>().iter().collect::<Vec<_>>(), [Some(&long[..]), Some(""), Some("")]);
    }

    #[test]
    fn floats_without_digits_come_back() {
        let schema = Arc::new(Schema::new(vec![Field::new("v", DataType::Float64, true)]));
        let format = CsvFormat::new(schema, CsvOptions::default()).unwrap();
        let values = [f64::INFINITY, f64::NEG_INFINITY, 0.1, 1e300];
        let column: ArrayRef = Arc::new(arrow_array::Float64Array::from(values.to_vec()));
        let batch = RecordBatch::try_new(format.schema(), vec![column]).unwrap();
        let lines = written(&format, &batch);
        assert_eq!(lines[..2], ["Infinity", "-Infinity"]);
        let mut decoder = format.decoder().unwrap();
        lines.iter().for_each(|l| decoder.push(l.as_bytes()).unwrap());
        assert_eq!(decoder.take().unwrap(), batch);
        decoder.push(b"NaN").unwrap();
        assert!(decoder.push(b"1e999").unwrap_err().what().contains("a number that does not fit"));
    }

    #[test]
    fn what_is_nested_is_refused_by_name() {
        let item = Arc::new(Field::new("item", DataType::Int32, true));
        let schema = Arc::new(Schema::new(vec![Field::new("tags", DataType::List(item), true)]));
        let error = CsvFormat::new(schema, CsvOptions::default()).unwrap_err();
        assert!(error.what().contains("'tags'") && error.number() == 1332);
        let schema = Arc::new(Schema::empty());
        let same = CsvOptions { quote: b',', ..CsvOptions::default() };
        assert_eq!(CsvFormat::new(schema, same).unwrap_err().number(), 1332);
    }
}
