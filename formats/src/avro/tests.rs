//! Bytes that were worked out by hand from the specification, schemas that change, and a registry in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use futures::FutureExt;
use millstream_common::env::BoxFuture;
use millstream_common::{Error, ErrorKind, Result};
use millstream_engine::element::ROW_KIND_COLUMN;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::json::JsonDecoding;
use crate::{Decoder, DecodingFormat, EncodingFormat, Records, lines_of};

fn table(columns: &[(&str, DataType, bool)]) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(|(n, t, null)| Field::new(*n, t.clone(), *null)).collect::<Vec<_>>()))
}

fn list(of: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("item", of, true)))
}

fn map(of: DataType) -> DataType {
    let entries = Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", of, true)]);
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries), false)), false)
}

fn record(fields: Value) -> Value {
    json!({"type": "record", "name": "R", "fields": fields})
}

fn written(schema: &Value) -> Written {
    Written::Schema(schema.to_string())
}

/// A record that was written with `schema`, read into `columns`, as JSON.
fn read(schema: &Value, columns: &SchemaRef, bytes: &[u8]) -> Result<String> {
    let mut decoder = AvroDecoding::new(columns.clone(), written(schema))?.decoder()?;
    decoder.push(bytes)?;
    Ok(lines_of(&decoder.take()?).remove(0))
}

fn encoded(format: &AvroEncoding, batch: &RecordBatch) -> Vec<Vec<u8>> {
    let mut encoder = format.encoder(&batch.schema()).unwrap();
    if let Some(before) = encoder.before() {
        before.now_or_never().unwrap().unwrap();
    }
    let mut records = Records::default();
    encoder.encode(batch, &mut records).unwrap();
    records.iter().map(|r| r.unwrap().to_vec()).collect()
}

fn batch_of(columns: &SchemaRef, rows: &[&str]) -> RecordBatch {
    let mut decoder = JsonDecoding::new(columns.clone()).unwrap().decoder().unwrap();
    rows.iter().for_each(|row| decoder.push(row.as_bytes()).unwrap());
    decoder.take().unwrap()
}

#[test]
fn the_example_of_the_specification() {
    let columns = table(&[("a", DataType::Int64, false), ("b", DataType::Utf8, false)]);
    let bytes = [0x36, 0x06, 0x66, 0x6f, 0x6f];
    let format = AvroEncoding::new("test").unwrap();
    assert_eq!(encoded(&format, &batch_of(&columns, &[r#"{"a":27,"b":"foo"}"#])), [bytes]);
    let schema = json!({"type": "record", "name": "test",
        "fields": [{"name": "a", "type": "long"}, {"name": "b", "type": "string"}]});
    assert_eq!(format.schema_text(&columns).unwrap(), schema.to_string());
    assert_eq!(read(&schema, &columns, &bytes).unwrap(), r#"{"a":27,"b":"foo"}"#);
}

#[test]
fn each_type_has_its_bytes() {
    let row = DataType::Struct(Fields::from(vec![Field::new("x", DataType::Int64, true)]));
    let columns = table(&[
        ("bool", DataType::Boolean, false),
        ("int", DataType::Int32, false),
        ("long", DataType::Int64, false),
        ("float", DataType::Float32, false),
        ("double", DataType::Float64, false),
        ("text", DataType::Utf8, false),
        ("bytes", DataType::Binary, false),
        ("money", DataType::Decimal128(5, 2), false),
        ("debt", DataType::Decimal128(5, 2), false),
        ("day", DataType::Date32, false),
        ("at", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), false),
        ("here", DataType::Timestamp(TimeUnit::Microsecond, None), false),
        ("row", row, false),
        ("list", list(DataType::Utf8), false),
        ("map", map(DataType::Int64), true),
        ("none", DataType::Utf8, true),
    ]);
    let line = concat!(
        r#"{"bool":true,"int":-64,"long":64,"float":1.5,"double":-2.0,"text":"é","bytes":"/w==","money":1.28,"#,
        r#""debt":-1.28,"day":"1970-01-02","at":"1970-01-01 00:00:01.000Z","here":"1969-12-31 23:59:59.999999","#,
        r#""row":{"x":null},"list":["a",null],"map":{"k":1},"none":null}"#
    );
    let bytes: [&[u8]; 16] = [
        &[1],
        &[0x7f],
        &[0x80, 1],
        &[0, 0, 0xc0, 0x3f],
        &[0, 0, 0, 0, 0, 0, 0, 0xc0],
        &[4, 0xc3, 0xa9],
        &[2, 0xff],
        &[4, 0, 0x80],
        &[2, 0x80],
        &[2],
        &[0xd0, 0x0f],
        &[1],
        &[0],
        // Two items: "a" of branch 1, branch 0; no further block.
        &[4, 2, 2, b'a', 0, 0],
        // Branch 1; one entry: "k", 1 of branch 1; no further block.
        &[2, 2, 2, b'k', 2, 2, 0],
        &[0],
    ];
    let format = AvroEncoding::new("shop.R").unwrap();
    let batch = batch_of(&columns, &[line]);
    assert_eq!(encoded(&format, &batch), [bytes.concat()]);
    let text = format.schema_text(&columns).unwrap();
    let mut decoder = AvroDecoding::new(columns.clone(), Written::Schema(text.clone())).unwrap().decoder().unwrap();
    decoder.push(&bytes.concat()).unwrap();
    assert_eq!(decoder.take().unwrap(), batch);
    let schema: Value = serde_json::from_str(&text).unwrap();
    let of = |i: usize| schema["fields"][i].clone();
    assert_eq!(
        of(7),
        json!({"name": "money", "type": {"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 2}})
    );
    assert_eq!(of(11)["type"]["logicalType"], "local-timestamp-micros");
    assert_eq!(of(12)["type"]["name"], "shop.R_row");
    assert_eq!(of(14)["type"][1], json!({"type": "map", "values": ["null", "long"]}));
    assert_eq!(of(15), json!({"name": "none", "type": ["null", "string"], "default": null}));
    // As a reader's schema it asks for the same columns.
    let again = AvroDecoding::with_reader(&text, Written::Schema(text.clone())).unwrap();
    assert_eq!(again.schema(), columns);
}

#[test]
fn times_of_day_and_unsigned_numbers() {
    let columns = table(&[
        ("ms", DataType::Time32(TimeUnit::Millisecond), false),
        ("us", DataType::Time64(TimeUnit::Microsecond), false),
        ("u", DataType::UInt32, false),
    ]);
    let format = AvroEncoding::new("R").unwrap();
    let text = format.schema_text(&columns).unwrap();
    // 86,399,999; 1; 4,294,967,295.
    let bytes = [&[0xfe, 0xef, 0xb2, 0x52][..], &[2], &[0xfe, 0xff, 0xff, 0xff, 0x1f]].concat();
    let mut decoder = AvroDecoding::new(columns.clone(), Written::Schema(text)).unwrap().decoder().unwrap();
    decoder.push(&bytes).unwrap();
    let midnight = [&[0x80, 0xf0, 0xb2, 0x52][..], &[2, 2]].concat();
    assert!(decoder.push(&midnight).unwrap_err().what().contains("ms: 86400000 is no time of day"));
    assert_eq!(encoded(&format, &decoder.take().unwrap()), [bytes]);
}

#[test]
fn what_others_write() {
    let schema = record(json!([
        {"name": "e", "type": {"type": "enum", "name": "E", "symbols": ["A", "B"]}},
        {"name": "id", "type": {"type": "fixed", "name": "F", "size": 16, "logicalType": "uuid"}},
        {"name": "dec", "type": {"type": "fixed", "name": "D", "size": 3, "logicalType": "decimal", "precision": 6, "scale": 1}},
        {"name": "longs", "type": {"type": "array", "items": "int"}},
        {"name": "any", "type": ["string", "null", "int"]},
        {"name": "again", "type": "E"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "blob", "type": "F"},
    ]));
    let columns = table(&[
        ("again", DataType::Utf8, false),
        ("e", DataType::Utf8, false),
        ("id", DataType::Utf8, false),
        ("dec", DataType::Decimal128(10, 3), false),
        ("longs", list(DataType::Float64), false),
        ("any", DataType::Int64, true),
        ("at", DataType::Timestamp(TimeUnit::Millisecond, None), false),
        ("blob", DataType::Binary, true),
    ]);
    let id: Vec<u8> = (0..16).map(|i| i * 17).collect();
    let record = |any: &[u8]| {
        // Blocks of two items, whose length in bytes is told, and of one.
        [&[2], &id[..], &[0xff, 0xff, 0xfe], &[3, 4, 2, 4, 2, 6, 0], any, &[0], &[0x9f, 0x1f], &id].concat()
    };
    let line = |any: &[u8]| read(&schema, &columns, &record(any));
    let expected = concat!(
        r#"{"again":"A","e":"B","id":"00112233-4455-6677-8899-aabbccddeeff","dec":-0.200,"longs":[1.0,2.0,3.0],"any":7,"#,
        r#""at":"1969-12-31 23:59:59.998","blob":"ABEiM0RVZneImaq7zN3u/w=="}"#
    );
    assert_eq!(line(&[4, 14]).unwrap(), expected);
    assert!(line(&[2]).unwrap().contains(r#""any":null"#));
    let error = line(&[0, 2, b'x']).unwrap_err();
    assert!(error.what().contains("any: what was written as string cannot be read as Int64"), "{error}");
    assert!(line(&[6]).unwrap_err().what().contains("branch 3 of a union of 3"));
}

#[test]
fn schemas_change() {
    let node = json!({"type": "record", "name": "Node", "fields": [
        {"name": "v", "type": "string"}, {"name": "next", "type": ["null", "Node"]}]});
    let old = record(json!([
        {"name": "gone", "type": {"type": "map", "values": {"type": "array", "items": node}}},
        {"name": "id", "type": "int"},
        {"name": "price", "type": "float"},
        {"name": "color", "type": {"type": "enum", "name": "C", "symbols": ["RED", "GREY"]}},
        {"name": "title", "type": "bytes"},
        {"name": "who", "type": ["null", {"type": "record", "name": "Who", "namespace": "a-b", "fields": [
            {"name": "age", "type": ["int", "null"], "default": null}]}]},
    ]));
    let new = record(json!([
        {"name": "id", "type": "long"},
        {"name": "price", "type": "double"},
        {"name": "color", "type": {"type": "enum", "name": "C", "symbols": ["RED", "?"], "default": "?"}},
        {"name": "name", "type": "string", "aliases": ["label", "title"]},
        {"name": "who", "type": ["null", {"type": "record", "name": "Who", "fields": [
            {"name": "age", "type": ["null", "long"]},
            {"name": "tags", "type": {"type": "array", "items": "string"}, "default": ["x", "y"]}]}]},
        {"name": "more", "type": ["null", "int"], "default": null},
        {"name": "rate", "type": ["double", "null"], "default": 0.5},
        {"name": "raw", "type": "bytes", "default": "\u{ff}a"},
        {"name": "row", "type": {"type": "record", "name": "Row", "fields": [
            {"name": "n", "type": "int", "default": 3}, {"name": "m", "type": {"type": "map", "values": "int"}}]},
            "default": {"m": {"k": 1}}},
    ]));
    let record = [
        // {"k": [Node a -> Node b]}
        &[2, 2, b'k', 2, 2, b'a', 2, 2, b'b', 0, 0, 0][..],
        &[0x0d],
        &[0, 0, 0xc0, 0x3f],
        &[2],
        &[6, b'f', b'o', b'o'],
        &[2, 0, 0x54],
    ]
    .concat();
    let format = AvroDecoding::with_reader(&new.to_string(), written(&old)).unwrap();
    let mut decoder = format.decoder().unwrap();
    decoder.push(&record).unwrap();
    let expected = concat!(
        r#"{"id":-7,"price":1.5,"color":"?","name":"foo","who":{"age":42,"tags":["x","y"]},"more":null,"rate":0.5,"#,
        r#""raw":"/2E=","row":{"n":3,"m":{"k":1}}}"#
    );
    assert_eq!(lines_of(&decoder.take().unwrap()), [expected]);
    // A table says which columns it wants, and what may be null.
    let columns = table(&[("new", DataType::Date32, true), ("id", DataType::Int16, false)]);
    assert_eq!(read(&old, &columns, &record).unwrap(), r#"{"new":null,"id":-7}"#);
}

#[test]
fn what_cannot_be_read_is_refused_at_once() {
    let schema = |of: Value| record(json!([{"name": "a", "type": of}]));
    let wrong = |of: Value, kind: DataType| {
        let error = AvroDecoding::new(table(&[("a", kind, false)]), written(&schema(of))).err().unwrap();
        assert_eq!((error.kind(), error.number()), (ErrorKind::Config, 1351));
        error.what().to_owned()
    };
    for (of, kind) in [
        (json!("string"), DataType::Int64),
        (json!("double"), DataType::Float32),
        (json!("bytes"), DataType::Decimal128(5, 2)),
        (json!(["null", "string", "double"]), DataType::Int32),
        (json!({"type": "int", "logicalType": "date"}), DataType::Timestamp(TimeUnit::Second, None)),
        (
            json!({"type": "long", "logicalType": "local-timestamp-millis"}),
            DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
        ),
    ] {
        let what = wrong(of.clone(), kind);
        assert!(what.contains("a: what was written as") && what.contains("cannot be read as"), "{of}: {what}");
    }
    assert!(wrong(json!("null"), DataType::Int64).contains("a: may not be null"));
    assert!(wrong(json!("Unknown"), DataType::Int64).contains("a: type 'Unknown' is not defined"));
    assert!(wrong(json!({"type": "fixed", "name": "F", "size": -1}), DataType::Binary).contains("size"));
    assert!(wrong(json!(["null", ["int"]]), DataType::Int64).contains("a union directly within a union"));
    let lacks = AvroDecoding::new(table(&[("b", DataType::Utf8, false)]), written(&schema(json!("int"))));
    assert!(lacks.err().unwrap().what().contains("b: was not written, and has no default"));
    let reader = |of: Value| {
        let schema = schema(of).to_string();
        AvroDecoding::with_reader(&schema, Written::Schema(schema.clone())).err().unwrap().what().to_owned()
    };
    assert!(reader(json!(["int", "string"])).contains("a: no column holds a union"));
    assert!(reader(json!(["null", "R"])).contains("a: no column holds a record that contains itself"));
    assert!(reader(json!("null")).contains("a: no column holds null"));
    for kind in [DataType::Time32(TimeUnit::Second), DataType::Duration(TimeUnit::Second), DataType::Null] {
        let columns = table(&[("bad", kind, true)]);
        let error = AvroDecoding::new(columns.clone(), written(&schema(json!("int")))).err().unwrap();
        assert_eq!(error.number(), 1350);
        assert!(error.what().contains("column 'bad' of type"), "{error}");
        let error = AvroEncoding::new("R").unwrap().encoder(&columns).err().unwrap();
        assert!(error.number() == 1350 && error.what().contains("column 'bad' of type"), "{error}");
    }
    let number = |name: &str, kind| {
        AvroEncoding::new("R").unwrap().encoder(&table(&[(name, kind, false)])).err().unwrap().number()
    };
    assert_eq!(number("a-b", DataType::Int8), 1351);
    assert_eq!(number("u", DataType::UInt64), 1350);
    assert_eq!(number(ROW_KIND_COLUMN, DataType::UInt8), 1352);
    assert_eq!(AvroEncoding::new("a..b").err().unwrap().number(), 1351);
}

#[test]
fn damaged_bytes_cost_little() {
    let nothing = json!({"type": "record", "name": "Nothing", "fields": []});
    let loop_ = json!({"type": "record", "name": "Loop", "fields": [{"name": "l", "type": "Loop"}]});
    let deep = json!({"type": "record", "name": "Deep", "fields": [{"name": "d", "type": {"type": "array", "items": "Deep"}}]});
    let columns = table(&[("a", list(DataType::Utf8), true)]);
    let wrong = |of: Value, name: &str, bytes: &[u8]| {
        let schema = record(json!([{"name": name, "type": of}]));
        let mut decoder = AvroDecoding::new(columns.clone(), written(&schema)).unwrap().decoder().unwrap();
        let error = decoder.push(bytes).unwrap_err();
        assert_eq!((error.kind(), error.number(), decoder.rows()), (ErrorKind::Data, 3301, 0));
        error.what().to_owned()
    };
    let most = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    let least = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    let array = |of: &Value| json!({"type": "array", "items": of});
    for name in ["a", "other"] {
        assert!(wrong(array(&json!("null")), name, &most).contains("too many values that take no bytes"));
        assert!(wrong(array(&json!("string")), name, &most).contains("it ends"));
        assert!(wrong(array(&json!("string")), name, &[&[2], &most[..]].concat()).contains("it ends where 92233720"));
        assert!(wrong(array(&json!("string")), name, &[2, 1]).contains("a length of -1"));
        assert!(wrong(array(&json!("string")), name, &[&least[..], &[0]].concat()).contains("too many items"));
        assert!(wrong(array(&json!("string")), name, &[0xff; 10]).contains("more than 64 bits"));
        assert!(wrong(array(&json!("string")), name, &[0, 0]).contains("1 bytes behind the record"));
    }
    assert!(wrong(array(&nothing), "other", &most).contains("too many values that take no bytes"));
    assert!(wrong(loop_, "other", &[]).contains("too deep"));
    assert!(wrong(deep, "other", &[2; 1_000_000]).contains("too deep"));
    assert!(wrong(array(&json!("string")), "a", &[2, 2, 0xff, 0]).contains("a: no UTF-8 at byte 0"));
    let number = table(&[("a", DataType::Decimal128(3, 0), false)]);
    let schema = record(json!([{"name": "a", "type":
        {"type": "bytes", "logicalType": "decimal", "precision": 40, "scale": 1}}]));
    let bytes = |value: &[u8]| [&[value.len() as u8 * 2], value].concat();
    for bad in [&[][..], &[1], &[0x27, 0x10], &[1; 17], &[0x80; 16]] {
        assert!(read(&schema, &number, &bytes(bad)).is_err(), "{bad:?}");
    }
    assert_eq!(read(&schema, &number, &bytes(&[&[0xff; 30][..], &[0xf6]].concat())).unwrap(), r#"{"a":-1}"#);
}

/// Schemas in memory; ids from 1.
#[derive(Default)]
struct InMemory {
    schemas: Mutex<Vec<(String, String)>>,
    is_down: Mutex<bool>,
    asked: AtomicUsize,
}

impl SchemaRegistry for InMemory {
    fn schema(&self, id: u32) -> BoxFuture<'_, Result<Option<String>>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let found = self.schemas.lock().get((id as usize).wrapping_sub(1)).map(|(_, text)| text.clone());
        let down = *self.is_down.lock();
        Box::pin(async move { if down { Err(Error::unavailable("down")) } else { Ok(found) } })
    }

    fn register(&self, subject: &str, schema: &str) -> BoxFuture<'_, Result<u32>> {
        let mut schemas = self.schemas.lock();
        let entry = (subject.to_owned(), schema.to_owned());
        let at = schemas.iter().position(|s| *s == entry).unwrap_or(schemas.len());
        if at == schemas.len() {
            schemas.push(entry);
        }
        Box::pin(async move { Ok(at as u32 + 1) })
    }
}

/// Pushes a record as a connector does.
fn push(decoder: &mut dyn Decoder, record: &[u8]) -> Result<()> {
    if let Some(before) = decoder.before(record) {
        before.now_or_never().unwrap()?;
    }
    assert!(decoder.before(record).is_none());
    decoder.push(record)
}

#[test]
fn a_registry_says_how_records_were_written() {
    let registry = Arc::new(InMemory::default());
    let first = table(&[("id", DataType::Int32, false)]);
    let second = table(&[("name", DataType::Utf8, true), ("id", DataType::Int64, false)]);
    let format = AvroEncoding::new("R").unwrap().registered("t-value", registry.clone());
    let one = encoded(&format, &batch_of(&first, &[r#"{"id":1}"#])).remove(0);
    let two = encoded(&format, &batch_of(&second, &[r#"{"id":2,"name":"x"}"#])).remove(0);
    assert_eq!((&one[..], &two[..]), (&[0, 0, 0, 0, 1, 2][..], &[0, 0, 0, 0, 2, 2, 2, b'x', 4][..]));
    assert_eq!(registry.schemas.lock()[1].0, "t-value");
    let mut encoder = format.encoder(&first).unwrap();
    assert_eq!(
        encoder.encode(&batch_of(&first, &[]), &mut Records::default()).unwrap_err().kind(),
        ErrorKind::Internal
    );

    let format = AvroDecoding::new(second, Written::Registered(registry.clone())).unwrap();
    let mut decoder = format.decoder().unwrap();
    assert_eq!(decoder.push(&one).unwrap_err().kind(), ErrorKind::Internal);
    for record in [&one, &two, &one, &one] {
        push(&mut *decoder, record).unwrap();
    }
    assert_eq!(registry.asked.load(Ordering::Relaxed), 2);
    let (a, b) = (r#"{"name":null,"id":1}"#, r#"{"name":"x","id":2}"#);
    assert_eq!(lines_of(&decoder.take().unwrap()), [a, b, a, a]);
    // Other decoders of the format know them, too.
    push(&mut *format.decoder().unwrap(), &two).unwrap();
    assert_eq!(registry.asked.load(Ordering::Relaxed), 2);

    assert_eq!(push(&mut *decoder, &[1, 0, 0, 0, 1, 2]).unwrap_err().number(), 3301);
    assert_eq!(push(&mut *decoder, &[0, 0, 0, 1]).unwrap_err().number(), 3301);
    registry.schemas.lock().push(("t-value".into(), record(json!([])).to_string()));
    let unfit = push(&mut *decoder, &[0, 0, 0, 0, 3]).unwrap_err();
    assert_eq!((unfit.kind(), unfit.number()), (ErrorKind::Data, 3321));
    assert!(unfit.what().contains("records of schema 3 cannot be read: id: was not written"), "{unfit}");
    assert_eq!(decoder.rows(), 0);
    *registry.is_down.lock() = true;
    let down = decoder.before(&[0, 0, 0, 0, 9]).unwrap().now_or_never().unwrap().unwrap_err();
    assert_eq!(down.kind(), ErrorKind::Unavailable);
}

#[test]
fn ids_of_damaged_records_are_forgotten_first() {
    let registry = Arc::new(InMemory::default());
    let columns = table(&[("id", DataType::Int32, false)]);
    let format = AvroEncoding::new("R").unwrap().registered("t-value", registry.clone());
    let good = encoded(&format, &batch_of(&columns, &[r#"{"id":1}"#])).remove(0);
    let format = AvroDecoding::new(columns.clone(), Written::Registered(registry.clone())).unwrap();
    let mut decoder = format.decoder().unwrap();
    push(&mut *decoder, &good).unwrap();
    let damaged = |id: u32| [&[0][..], &id.to_be_bytes(), &[2]].concat();
    for id in 2..5_000 {
        let error = push(&mut *decoder, &damaged(id)).unwrap_err();
        assert_eq!((error.kind(), error.number()), (ErrorKind::Data, 3320));
    }
    assert_eq!(registry.asked.load(Ordering::Relaxed), 4_999);
    push(&mut *format.decoder().unwrap(), &good).unwrap();
    assert_eq!(registry.asked.load(Ordering::Relaxed), 4_999);
    // An id that is not there is asked for again now and then, as the registry may lag behind.
    for _ in 0..1_500 {
        push(&mut *decoder, &damaged(4_999)).unwrap_err();
    }
    assert_eq!(registry.asked.load(Ordering::Relaxed), 5_000);
    push(&mut *decoder, &good).unwrap();
    assert_eq!(decoder.rows(), 2);
}
