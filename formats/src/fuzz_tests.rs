//! Records that were damaged at random: a decoder says what is wrong or takes them, and never keeps half of one.

use std::sync::Arc;

use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::avro::{AvroDecoding, AvroEncoding, Written};
use crate::csv::{CsvFormat, CsvOptions};
use crate::debezium::DebeziumDecoding;
use crate::json::JsonDecoding;
use crate::raw::RawFormat;
use crate::{Decoder, DecodingFormat, EncodingFormat, Records, lines_of};

const ROUNDS: usize = 20_000;

fn flat() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8, true),
        Field::new("price", DataType::Decimal128(12, 3), true),
        Field::new("at", DataType::Timestamp(TimeUnit::Millisecond, None), true),
        Field::new("ok", DataType::Boolean, true),
    ]))
}

fn nested() -> SchemaRef {
    let entries =
        Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Float64, true)]);
    let inner = DataType::Struct(flat().fields().clone());
    Arc::new(Schema::new(vec![
        Field::new("who", inner.clone(), true),
        Field::new("all", DataType::List(Arc::new(Field::new("item", inner, true))), true),
        Field::new("m", DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries), false)), false), true),
        Field::new("blob", DataType::Binary, true),
    ]))
}

/// Some bytes changed, left out, doubled, or put in from what means something.
fn damage(record: &[u8], rng: &mut SmallRng) -> Vec<u8> {
    let mut out = record.to_vec();
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..=out.len());
        let to = rng.random_range(at..=out.len().min(at + 8));
        match rng.random_range(0..4) {
            0 => out.truncate(at),
            1 => drop(out.drain(at..to)),
            2 => {
                let again = out[at..to].to_vec();
                out.splice(at..at, again);
            }
            _ => {
                let all: [&[u8]; 15] = [
                    b"{", b"}", b"[", b"]", b",", b":", b"\"", b"\\", b"null", b"1e9", b"-", b"\xff", b"\n", b"\0",
                    b"\x02",
                ];
                let with = all[rng.random_range(0..all.len())];
                out.splice(at..to, with.iter().copied());
            }
        }
    }
    out
}

/// Good and damaged records in turn: all rows of the good ones are there, and whole.
fn exam(format: &dyn DecodingFormat, good: &[u8], seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let lines = |decoder: &mut Box<dyn Decoder>| lines_of(&decoder.take().unwrap());
    let mut decoder = format.decoder().unwrap();
    decoder.push(good).unwrap();
    let whole = lines(&mut decoder);
    let mut refused = 0;
    for _ in 0..ROUNDS {
        decoder.push(good).unwrap();
        let taken = decoder.push(&damage(good, &mut rng)).is_ok();
        refused += usize::from(!taken);
        let before = decoder.rows();
        decoder.push(good).unwrap();
        assert_eq!(decoder.rows(), before + whole.len());
        let rows = lines(&mut decoder);
        assert_eq!(rows[..whole.len()], whole);
        assert_eq!(rows[rows.len() - whole.len()..], whole);
        assert!(taken || rows.len() == 2 * whole.len());
    }
    assert!(refused > ROUNDS / 10, "{refused} of {ROUNDS} records were refused");
}

const ROW: &str = r#"{"id":7,"name":"a\"b\u00e9","price":-12.5,"at":"2026-01-01 00:00:04.330","ok":true}"#;

#[test]
fn json() {
    let record = format!(r#"{{"who":{ROW},"all":[{ROW},null,{ROW}],"m":{{"k":1.5,"l":null}},"blob":"AP8="}}"#);
    exam(&JsonDecoding::new(nested()).unwrap(), record.as_bytes(), 1);
}

/// Written with the columns of the table and, for what is passed over, with others.
#[test]
fn avro() {
    let record = format!(r#"{{"who":{ROW},"all":[{ROW},null,{ROW}],"m":{{"k":1.5,"l":null}},"blob":"AP8="}}"#);
    let mut rows = JsonDecoding::new(nested()).unwrap().decoder().unwrap();
    rows.push(record.as_bytes()).unwrap();
    let mut records = Records::default();
    let format = AvroEncoding::new("R").unwrap();
    format.encoder(&nested()).unwrap().encode(&rows.take().unwrap(), &mut records).unwrap();
    let record = records.iter().next().unwrap().unwrap();
    let written = || Written::Schema(format.schema_text(&nested()).unwrap());
    exam(&AvroDecoding::new(nested(), written()).unwrap(), record, 5);
    let last = Arc::new(Schema::new(vec![nested().field(3).clone()]));
    exam(&AvroDecoding::new(last, written()).unwrap(), record, 6);
}

/// Schemas that were damaged: refused, or records are read by them or not.
#[test]
fn avro_schemas() {
    let schema = AvroEncoding::new("R").unwrap().schema_text(&nested()).unwrap();
    let mut rng = SmallRng::seed_from_u64(7);
    let mut refused = 0;
    for _ in 0..ROUNDS {
        let text = String::from_utf8_lossy(&damage(schema.as_bytes(), &mut rng)).into_owned();
        let formats = [
            AvroDecoding::new(nested(), Written::Schema(text.clone())),
            AvroDecoding::with_reader(&text, Written::Schema(schema.clone())),
        ];
        for format in formats {
            let Ok(format) = format else {
                refused += 1;
                continue;
            };
            let mut decoder = format.decoder().unwrap();
            let taken = decoder.push(&[0, 2, 0, 0, 2, 2, 0xff]).is_ok();
            assert_eq!(decoder.take().unwrap().num_rows(), usize::from(taken));
        }
    }
    assert!(refused > ROUNDS / 10, "{refused} of {} schemas were refused", 2 * ROUNDS);
}

#[test]
fn debezium() {
    let record = format!(r#"{{"payload":{{"before":{ROW},"after":{ROW},"op":"u","ts_ms":1}}}}"#);
    exam(&DebeziumDecoding::new(flat()).unwrap(), record.as_bytes(), 2);
}

#[test]
fn csv() {
    let format = CsvFormat::new(flat(), CsvOptions::default()).unwrap();
    exam(&format, b"7,\"a,\"\"b\"\"\",-12.5,2026-01-01 00:00:04.330,true", 3);
}

#[test]
fn raw() {
    let text = Arc::new(Schema::new(vec![Field::new("v", DataType::Utf8, true)]));
    exam(&RawFormat::new(text).unwrap(), "h\u{e9}llo".as_bytes(), 4);
}
