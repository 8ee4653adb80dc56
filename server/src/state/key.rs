//! Keys from JSON: an object of the key's columns, a list of their values in order, or the value of a single one.

use std::sync::Arc;

use arrow_array::types::{
    Decimal32Type, Decimal64Type, Decimal128Type, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};
use arrow_array::{
    ArrayRef, ArrowPrimitiveType, BooleanArray, Date32Array, Float32Array, Float64Array, Int8Array, Int16Array,
    Int32Array, Int64Array, PrimitiveArray, StringArray, UInt8Array, UInt16Array, UInt32Array, UInt64Array,
    new_null_array,
};
use arrow_schema::{DataType, TimeUnit};
use millstream_common::{Error, Result};
use millstream_formats::time::{days_of_civil, parse_timestamp};
use millstream_state_store::key::{KeyBuffer, encode_keys};
use millstream_state_store::schema::{KeyColumn, type_name};
use serde_json::Value;

/// This is no key of the state.
pub const BAD_KEY: u16 = 1431;

/// The encoded key that `text` names, with its stable hash, in a buffer of one.
///
/// Without columns nothing is known of keys: then it is hexadecimal digits.
pub fn parse(text: &str, columns: &[KeyColumn]) -> Result<KeyBuffer> {
    if columns.is_empty() {
        let mut keys = KeyBuffer::default();
        keys.push(&from_hex(text).ok_or_else(|| {
            Error::config(format!("'{text}' is no key of this state"))
                .code(BAD_KEY)
                .next("its columns are not known: give its bytes as hexadecimal digits")
        })?)?;
        return Ok(keys);
    }
    let arrays = arrays(text, columns).map_err(|why| {
        let wanted: Vec<String> = columns
            .iter()
            .map(|c| format!("\"{}\": {}", c.name, type_name(&c.ty).unwrap_or_else(|| c.ty.to_string())))
            .collect();
        Error::config(format!("'{text}' is no key of this state: {why}"))
            .code(BAD_KEY)
            .next(format!("give its columns as JSON: {{{}}}", wanted.join(", ")))
    })?;
    let mut keys = KeyBuffer::default();
    encode_keys(&arrays, &mut keys)?;
    Ok(keys)
}

fn arrays(text: &str, columns: &[KeyColumn]) -> Result<Vec<ArrayRef>, String> {
    let json: Value = match serde_json::from_str(text) {
        Ok(json) => json,
        // A word without quotation marks, for a shell's sake.
        Err(_) if matches!(columns, [c] if c.ty == DataType::Utf8) => Value::String(text.to_owned()),
        Err(e) => return Err(format!("it is no JSON ({e})")),
    };
    let values: Vec<Value> = match json {
        Value::Object(mut object) => {
            let take = |c: &KeyColumn| object.remove(&c.name).ok_or_else(|| format!("'{}' is missing", c.name));
            let values = columns.iter().map(take).collect::<Result<_, _>>()?;
            match object.keys().next() {
                Some(name) => return Err(format!("it has no column '{name}'")),
                None => values,
            }
        }
        Value::Array(values) => values,
        value => vec![value],
    };
    if values.len() != columns.len() {
        return Err(format!("{} values for {} columns", values.len(), columns.len()));
    }
    std::iter::zip(&values, columns).map(|(v, c)| array(v, c)).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let digits = digits.filter(|d| d.len() % 2 == 0)?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// A column of one row.
fn array(value: &Value, column: &KeyColumn) -> Result<ArrayRef, String> {
    if value.is_null() {
        return Ok(new_null_array(&column.ty, 1));
    }
    let wrong = || {
        let ty = type_name(&column.ty).unwrap_or_else(|| column.ty.to_string());
        format!("{value} is no {ty} for '{}'", column.name)
    };
    typed(value, &column.ty).ok_or_else(wrong)
}

fn typed(value: &Value, ty: &DataType) -> Option<ArrayRef> {
    macro_rules! integer {
        ($array:ty, $native:ty) => {
            Arc::new(<$array>::from(vec![<$native>::try_from(value.as_i64()?).ok()?])) as ArrayRef
        };
    }
    Some(match ty {
        DataType::Boolean => Arc::new(BooleanArray::from(vec![value.as_bool()?])),
        DataType::Int8 => integer!(Int8Array, i8),
        DataType::Int16 => integer!(Int16Array, i16),
        DataType::Int32 => integer!(Int32Array, i32),
        DataType::Int64 => integer!(Int64Array, i64),
        DataType::UInt8 => integer!(UInt8Array, u8),
        DataType::UInt16 => integer!(UInt16Array, u16),
        DataType::UInt32 => integer!(UInt32Array, u32),
        DataType::UInt64 => Arc::new(UInt64Array::from(vec![value.as_u64()?])),
        DataType::Float32 => Arc::new(Float32Array::from(vec![value.as_f64()? as f32])),
        DataType::Float64 => Arc::new(Float64Array::from(vec![value.as_f64()?])),
        // All layouts of text encode alike.
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Arc::new(StringArray::from(vec![value.as_str()?])),
        DataType::Date32 => Arc::new(Date32Array::from(vec![day(value.as_str()?)?])),
        DataType::Timestamp(TimeUnit::Second, _) => moment::<TimestampSecondType>(value, 1, 1_000)?,
        DataType::Timestamp(TimeUnit::Millisecond, _) => moment::<TimestampMillisecondType>(value, 1, 1)?,
        DataType::Timestamp(TimeUnit::Microsecond, _) => moment::<TimestampMicrosecondType>(value, 1_000, 1)?,
        DataType::Timestamp(TimeUnit::Nanosecond, _) => moment::<TimestampNanosecondType>(value, 1_000_000, 1)?,
        DataType::Decimal32(p, s) => decimal::<Decimal32Type>(i32::try_from(digits(value, *s)?).ok()?, *p, *s)?,
        DataType::Decimal64(p, s) => decimal::<Decimal64Type>(i64::try_from(digits(value, *s)?).ok()?, *p, *s)?,
        DataType::Decimal128(p, s) => decimal::<Decimal128Type>(digits(value, *s)?, *p, *s)?,
        _ => return None,
    })
}

/// A moment as text, or as a number of the column's unit.
fn moment<T: ArrowPrimitiveType<Native = i64>>(value: &Value, times: i64, parts: i64) -> Option<ArrayRef> {
    let number = match value {
        Value::String(text) => parse_timestamp(text)?.checked_mul(times)?.div_euclid(parts),
        other => other.as_i64()?,
    };
    Some(Arc::new(PrimitiveArray::<T>::from_iter_values([number])))
}

fn day(text: &str) -> Option<i32> {
    let mut parts = text.splitn(3, '-');
    let year: i64 = parts.next()?.parse().ok()?;
    let (month, day) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    i32::try_from(days_of_civil(year, month, day)?).ok()
}

/// A decimal as an integer of `scale`.
fn digits(value: &Value, scale: i8) -> Option<i128> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let scale = usize::try_from(scale).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let kept = fraction.trim_end_matches('0');
    let plain = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    if kept.len() > scale || !plain(fraction) || !plain(whole.strip_prefix('-').unwrap_or(whole)) {
        return None;
    }
    format!("{whole}{kept}{}", "0".repeat(scale - kept.len())).parse().ok()
}

fn decimal<T: arrow_array::types::DecimalType>(value: T::Native, precision: u8, scale: i8) -> Option<ArrayRef> {
    let array = PrimitiveArray::<T>::from_iter_values([value]).with_precision_and_scale(precision, scale).ok()?;
    array.validate_decimal_precision(precision).ok()?;
    Some(Arc::new(array))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::text::push_key;

    fn column(name: &str, ty: DataType) -> KeyColumn {
        KeyColumn { name: name.into(), ty, nullable: true }
    }

    fn back(text: &str, columns: &[KeyColumn]) -> String {
        let mut out = Vec::new();
        push_key(parse(text, columns).unwrap().key(0), columns, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_key_prints_as_it_was_given() {
        let all = [
            column("n", DataType::Int64),
            column("u", DataType::UInt64),
            column("s", DataType::LargeUtf8),
            column("b", DataType::Boolean),
            column("f", DataType::Float64),
            column("day", DataType::Date32),
            column("at", DataType::Timestamp(TimeUnit::Millisecond, None)),
            column("us", DataType::Timestamp(TimeUnit::Microsecond, None)),
            column("d", DataType::Decimal128(23, 3)),
            column("e", DataType::Decimal64(9, 2)),
            column("none", DataType::Int8),
        ];
        let text = concat!(
            r#"{"n":-5,"u":18446744073709551615,"s":"a b","b":true,"f":1.5,"day":"2026-01-01","#,
            r#""at":"2026-01-01 00:00:04.330","us":"2026-01-01 00:00:04.330000","d":-0.140,"e":7.00,"none":null}"#
        );
        let given = text.replace("04.330000", "04.33");
        assert_eq!(back(&given, &all), text);
        assert_eq!(back("17", &all[..1]), r#"{"n":17}"#);
        assert_eq!(back("[17]", &all[..1]), r#"{"n":17}"#);
        let word = [column("s", DataType::Utf8)];
        assert_eq!((back("abc", &word), back("\"abc\"", &word)), (r#"{"s":"abc"}"#.into(), r#"{"s":"abc"}"#.into()));
    }

    #[test]
    fn what_is_no_key_is_told_why() {
        let columns = [column("a", DataType::Int32), column("b", DataType::Utf8)];
        for (text, word) in [
            ("{", "no JSON"),
            ("{\"a\":1}", "'b' is missing"),
            (r#"{"a":1,"b":"x","c":2}"#, "no column 'c'"),
            ("[1]", "1 values for 2 columns"),
            (r#"["x","y"]"#, "no int32 for 'a'"),
            (r#"[3000000000,"y"]"#, "no int32 for 'a'"),
        ] {
            let error = parse(text, &columns).unwrap_err();
            assert!(error.number() == BAD_KEY && error.what().contains(word), "{error}");
        }
        let decimal = [column("d", DataType::Decimal128(5, 2))];
        for text in ["1.234", "1e3", "\"1-2\"", "true", "\"--1\""] {
            assert!(parse(text, &decimal).is_err(), "{text}");
        }
        parse("1.2300", &decimal).unwrap();
    }
}
