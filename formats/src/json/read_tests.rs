use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Decimal128Type, Float64Type, Int64Type};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};

use super::*;
use crate::lines_of;

fn one(name: &str, kind: DataType) -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new(name, kind, true)]))
}

fn decode(schema: SchemaRef, records: &[&str]) -> Result<RecordBatch> {
    let mut decoder = JsonDecoding::new(schema)?.decoder()?;
    for record in records {
        decoder.push(record.as_bytes())?;
    }
    decoder.take()
}

fn refused(kind: DataType, value: &str) -> String {
    match decode(one("v", kind.clone()), &[&format!("{{\"v\":{value}}}")]) {
        Ok(batch) => panic!("{value} was read as {kind}: {:?}", batch.column(0)),
        Err(e) => e.what().to_owned(),
    }
}

fn nested() -> SchemaRef {
    let item = Field::new("item", DataType::Int32, true);
    let entries =
        Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Float64, true)]);
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("at", DataType::Timestamp(TimeUnit::Millisecond, None), true),
        Field::new("tags", DataType::List(Arc::new(item)), true),
        Field::new(
            "who",
            DataType::Struct(Fields::from(vec![
                Field::new("name", DataType::Utf8, true),
                Field::new("price", DataType::Decimal128(10, 2), true),
            ])),
            true,
        ),
        Field::new("m", DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries), false)), false), true),
        Field::new("ok", DataType::Boolean, true),
    ]))
}

#[test]
fn what_is_nested_comes_back_as_it_was() {
    let lines = [
        r#"{"id":1,"at":"2026-01-01 00:00:04.330","tags":[1,null,-3],"who":{"name":"é\"\n","price":12.50},"m":{"a":1.5,"b":null},"ok":true}"#,
        r#"{"id":2,"at":null,"tags":[],"who":{"name":null,"price":null},"m":{},"ok":false}"#,
        r#"{"id":3,"at":null,"tags":null,"who":null,"m":null,"ok":null}"#,
    ];
    let batch = decode(nested(), &lines).unwrap();
    assert_eq!(lines_of(&batch), lines);
}

#[test]
fn members_come_in_any_order_or_not_at_all() {
    let batch = decode(
        nested(),
        &[
            r#" { "unknown":{"deep":[1,{"x":2}]}, "who":{"price":"3","other":1}, "id":1.0 , "ok":"FALSE"} "#,
            r#"{"ok":null,"id":2}"#,
        ],
    )
    .unwrap();
    assert_eq!(
        lines_of(&batch),
        [
            r#"{"id":1,"at":null,"tags":null,"who":{"name":null,"price":3.00},"m":null,"ok":false}"#,
            r#"{"id":2,"at":null,"tags":null,"who":null,"m":null,"ok":null}"#,
        ]
    );
}

#[test]
fn a_bad_record_leaves_no_trace() {
    let good = r#"{"id":1,"tags":[1,2],"who":{"name":"a","price":1},"m":{"k":1},"ok":true}"#;
    let bad = [
        (
            r#"{"id":7,"tags":[3,4],"who":{"name":"b","price":1.234},"m":{"k":2},"ok":true}"#,
            "who.price: '1.234' is a number with more digits",
        ),
        (r#"{"id":7,"tags":[3,"x"],"who":null}"#, "tags[1]: 'x' is no integer that fits"),
        (r#"{"id":7,"tags":[3,4],"m":{"k":2,"l":{}},"ok":true}"#, "m[a value]: invalid type: map, expected a number"),
        (r#"{"id":7,"tags":[3,4],"ok":tru"#, "ok: EOF while parsing a value at byte 29"),
        (r#"{"id":7,"tags":[3,4]"#, "EOF while parsing an object at byte 20"),
        (r#"{"id":7}{"id":8}"#, "trailing characters at byte 9"),
        (r#"{"id":7,"ok":true,"id":8}"#, "id: stands there twice"),
        (r#"{"tags":[1]}"#, "id: is missing"),
        (r#"{"id":null}"#, "id: may not be null"),
        (r#"{"id":7,"at":"yesterday"}"#, "at: 'yesterday' is no time stamp like"),
        (r#"{"id":7,"who":[1]}"#, "who: invalid type: sequence, expected an object"),
        (r#"{"id":7,"who":"x"}"#, "who: invalid type: string \"x\", expected an object"),
        (r#"[1]"#, "invalid type: sequence, expected an object"),
        ("null", "invalid type: null, expected an object"),
        ("", "EOF while parsing a value at byte 0"),
    ];
    let mut decoder = JsonDecoding::new(nested()).unwrap().decoder().unwrap();
    for (record, expected) in bad {
        decoder.push(good.as_bytes()).unwrap();
        let error = decoder.push(record.as_bytes()).unwrap_err();
        assert_eq!(error.number(), 3301);
        assert!(error.what().contains(expected), "{record}: {error}");
    }
    assert!(decoder.push(b"{\"id\":\xff}").unwrap_err().what().contains("no UTF-8 at byte 6"));
    decoder.push(good.as_bytes()).unwrap();
    assert_eq!(decoder.rows(), bad.len() + 1);
    let rows = lines_of(&decoder.take().unwrap());
    assert_eq!(rows.len(), bad.len() + 1);
    let expected = r#"{"id":1,"at":null,"tags":[1,2],"who":{"name":"a","price":1.00},"m":{"k":1.0},"ok":true}"#;
    assert!(rows.iter().all(|row| row == expected), "{rows:?}");
    assert_eq!(decoder.rows(), 0);
    assert_eq!(decoder.take().unwrap().num_rows(), 0);
}

#[test]
fn numbers_keep_every_digit_or_are_refused() {
    let records = ["{\"v\":9223372036854775807}", "{\"v\":-9223372036854775808}", "{\"v\":1e3}", "{\"v\":\"42\"}"];
    let batch = decode(one("v", DataType::Int64), &records).unwrap();
    assert_eq!(batch.column(0).as_primitive::<Int64Type>().values(), &[i64::MAX, i64::MIN, 1_000, 42]);
    for value in [
        "9223372036854775808",
        "1.5",
        "4503599627370497.5",
        "0.99999999999999999",
        "1e-400",
        "1e30",
        "true",
        "\"\"",
        "[1]",
    ] {
        let said = refused(DataType::Int64, value);
        assert!(said.contains("is no integer that fits"), "{value}: {said}");
    }
    let exact = decode(one("v", DataType::Int64), &["{\"v\":9007199254740993.0}"]).unwrap();
    assert_eq!(exact.column(0).as_primitive::<Int64Type>().value(0), 9_007_199_254_740_993);
    assert!(refused(DataType::Int8, "128").contains("'128' is no integer that fits"));
    assert!(refused(DataType::UInt32, "-1").contains("'-1' is no integer that fits"));
    assert!(refused(DataType::Float32, "1e39").contains("does not fit"));
    assert!(refused(DataType::Float32, "\"1e39\"").contains("a number that does not fit"));

    let doubles = ["{\"v\":0.1}", "{\"v\":7}", "{\"v\":1.7976931348623157e308}", "{\"v\":5e-324}", "{\"v\":\"NaN\"}"];
    let batch = decode(one("v", DataType::Float64), &doubles).unwrap();
    let values = batch.column(0).as_primitive::<Float64Type>().values();
    assert_eq!(&values[..4], &[0.1, 7.0, f64::MAX, 5e-324]);
    assert!(values[4].is_nan());
    // Wrong by one in the last place where digits are not all used.
    let exact = "9.4247779607693793";
    let batch = decode(one("v", DataType::Float64), &[&format!("{{\"v\":{exact}}}")]).unwrap();
    assert_eq!(batch.column(0).as_primitive::<Float64Type>().value(0), exact.parse::<f64>().unwrap());

    let long = "123456789012345678901234567890.12345678";
    let batch = decode(one("v", DataType::Decimal128(38, 8)), &[&format!("{{\"v\":{long}}}")]).unwrap();
    let value = batch.column(0).as_primitive::<Decimal128Type>().value(0);
    assert_eq!(value.to_string(), long.replace('.', ""));
}

#[test]
fn a_string_column_takes_the_text_of_anything() {
    let records = [
        r#"{"v":"plain"}"#,
        r#"{"v":"\u00e9\t\"\\\ud83e\udd80"}"#,
        r#"{"v":1.50}"#,
        r#"{"v":{"a": [1, 2]}}"#,
        r#"{"v":true}"#,
        r#"{"v":null}"#,
        r#"{}"#,
    ];
    let batch = decode(one("v", DataType::Utf8), &records).unwrap();
    let texts: Vec<_> = batch.column(0).as_string::<i32>().iter().collect();
    let expected = [Some("plain"), Some("é\t\"\\🦀"), Some("1.50"), Some("{\"a\": [1, 2]}"), Some("true"), None, None];
    assert_eq!(texts, expected);
    assert!(refused(DataType::Utf8, "\"\\ud83e\"").contains("hex escape"), "half of a pair");
    assert!(refused(DataType::Utf8, "\"a\u{1}\"").contains("control character"));
}

#[test]
fn bytes_are_base64() {
    let batch = decode(one("v", DataType::Binary), &[r#"{"v":"AP8="}"#, r#"{"v":""}"#]).unwrap();
    let values: Vec<_> = batch.column(0).as_binary::<i32>().iter().collect();
    assert_eq!(values, [Some(&[0, 0xff][..]), Some(&[][..])]);
    assert!(refused(DataType::Binary, "\"?\"").contains("no base64"));
    assert!(refused(DataType::Binary, "12").contains("expected a string in base64"));
}

#[test]
fn what_is_missing_is_bad_when_asked_for() {
    let format = JsonDecoding::new(one("v", DataType::Int64)).unwrap().with_missing_is_bad(true);
    let mut decoder = format.decoder().unwrap();
    decoder.push(b"{\"v\":null}").unwrap();
    assert!(decoder.push(b"{}").unwrap_err().what().contains("v: is missing"));
    assert_eq!(decoder.take().unwrap().column(0).null_count(), 1);
}

#[test]
fn a_type_that_json_has_not_is_refused_by_name() {
    let error = JsonDecoding::new(one("when", DataType::Duration(TimeUnit::Second))).unwrap_err();
    assert!(error.what().contains("'when'") && error.number() == 1330, "{error}");
}
