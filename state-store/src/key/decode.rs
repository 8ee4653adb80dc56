//! Decoding of keys back to columns: for people and for operators that emit their key columns.

use std::sync::Arc;

use arrow_array::builder::*;
use arrow_array::types::*;
use arrow_array::*;
use arrow_buffer::{ArrowNativeType, NullBuffer, i256};
use arrow_schema::{DataType, TimeUnit};
use millstream_common::{Error, Result};

use super::encode::{
    DECIMAL_BIAS, DECIMAL_NEGATIVE, DECIMAL_POSITIVE, DECIMAL_ZERO, MS_A_DAY, unit_nanos, unsupported,
};
use super::{NULL, VALUE};

/// The columns of one key, as arrays of one row.
pub fn decode_key(key: &[u8], types: &[DataType]) -> Result<Vec<ArrayRef>> {
    decode_keys(std::iter::once(key), types)
}

/// The columns of many keys. Every key must hold exactly the columns of `types`.
pub fn decode_keys<'a>(keys: impl IntoIterator<Item = &'a [u8]>, types: &[DataType]) -> Result<Vec<ArrayRef>> {
    let mut rest: Vec<&[u8]> = keys.into_iter().collect();
    let columns = types.iter().enumerate().map(|(i, t)| decode_column(&mut rest, i, t)).collect::<Result<_>>()?;
    if rest.iter().any(|r| !r.is_empty()) {
        return Err(damaged("it goes on after its last column"));
    }
    Ok(columns)
}

/// How many bytes at the start of `bytes` are a key with columns of these types; what follows is a sub-key.
pub fn encoded_len(bytes: &[u8], types: &[DataType]) -> Result<usize> {
    let mut rest = [bytes];
    for (i, t) in types.iter().enumerate() {
        decode_column(&mut rest, i, t)?;
    }
    Ok(bytes.len() - rest[0].len())
}

fn damaged(why: &str) -> Error {
    Error::corrupt(format!("a stored key does not fit its columns: {why}"))
        .code(4001)
        .next("check that the job has not changed the types of its key columns")
}

/// Takes the marker; true when a value follows.
fn take_marker(rest: &mut &[u8]) -> Result<bool> {
    let (marker, after) = rest.split_first().ok_or_else(|| damaged("it is too short"))?;
    *rest = after;
    match *marker {
        NULL => Ok(false),
        VALUE => Ok(true),
        _ => Err(damaged("a column begins with neither null nor a value")),
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<Option<[u8; N]>> {
    if !take_marker(rest)? {
        return Ok(None);
    }
    let (value, after) = rest.split_first_chunk::<N>().ok_or_else(|| damaged("it is too short"))?;
    *rest = after;
    Ok(Some(*value))
}

fn take_i64(rest: &mut &[u8]) -> Result<Option<i64>> {
    Ok(take::<8>(rest)?.map(|b| (u64::from_be_bytes(b) ^ (1 << 63)) as i64))
}

fn take_f64(rest: &mut &[u8]) -> Result<Option<f64>> {
    Ok(take::<8>(rest)?.map(|b| {
        let bits = u64::from_be_bytes(b);
        f64::from_bits(if bits >> 63 == 1 { bits ^ (1 << 63) } else { !bits })
    }))
}

/// A moment or span in units of `nanos` nanoseconds.
fn take_nanos(rest: &mut &[u8], nanos: i64) -> Result<Option<i64>> {
    let Some(mut b) = take::<12>(rest)? else { return Ok(None) };
    b[0] ^= 0x80;
    let mut wide = [if b[0] & 0x80 == 0 { 0 } else { 0xff }; 16];
    wide[4..].copy_from_slice(&b);
    let value = i128::from_be_bytes(wide);
    let nanos = i128::from(nanos);
    if value % nanos != 0 {
        return Err(damaged("a time is finer than its column"));
    }
    i64::try_from(value / nanos).map(Some).map_err(|_| damaged("a time is beyond its column"))
}

/// Text or binary, unescaped into `into`; false when null.
fn take_text(rest: &mut &[u8], into: &mut Vec<u8>) -> Result<bool> {
    into.clear();
    if !take_marker(rest)? {
        return Ok(false);
    }
    loop {
        let zero = rest.iter().position(|b| *b == 0).ok_or_else(|| damaged("a text does not end"))?;
        into.extend_from_slice(&rest[..zero]);
        let after = rest.get(zero + 1).copied().ok_or_else(|| damaged("a text does not end"))?;
        *rest = &rest[zero + 2..];
        match after {
            0 => return Ok(true),
            0xff => into.push(0),
            _ => return Err(damaged("a text holds a zero that is not escaped")),
        }
    }
}

/// A decimal as an integer of `scale`.
fn take_decimal(rest: &mut &[u8], scale: i8) -> Result<Option<i256>> {
    if !take_marker(rest)? {
        return Ok(None);
    }
    let (class, after) = rest.split_first().ok_or_else(|| damaged("it is too short"))?;
    *rest = after;
    let flip = match *class {
        DECIMAL_ZERO => return Ok(Some(i256::ZERO)),
        DECIMAL_POSITIVE => 0,
        DECIMAL_NEGATIVE => 0xff,
        _ => return Err(damaged("a decimal has no sign")),
    };
    let (exponent, after) = rest.split_first_chunk::<2>().ok_or_else(|| damaged("it is too short"))?;
    *rest = after;
    let exponent = i32::from(u16::from_be_bytes(exponent.map(|b| b ^ flip))) - DECIMAL_BIAS;
    let mut text = String::from(if flip == 0 { "" } else { "-" });
    let sign = text.len();
    loop {
        let (pair, after) = rest.split_first().ok_or_else(|| damaged("a decimal does not end"))?;
        *rest = after;
        match pair ^ flip {
            0 => break,
            p @ 1..=100 => text.extend([(b'0' + (p - 1) / 10) as char, (b'0' + (p - 1) % 10) as char]),
            _ => return Err(damaged("a decimal holds no digits")),
        }
    }
    let wanted =
        usize::try_from(exponent + i32::from(scale)).map_err(|_| damaged("a decimal is finer than its column"))?;
    let digits = text.len() - sign;
    if wanted > 78 || (digits > wanted && text[sign + wanted..].bytes().any(|d| d != b'0')) {
        return Err(damaged("a decimal does not fit its column"));
    }
    if digits > wanted {
        text.truncate(sign + wanted);
    } else {
        text.extend(std::iter::repeat_n('0', wanted - digits));
    }
    i256::from_string(&text).map(Some).ok_or_else(|| damaged("a decimal does not fit its column"))
}

/// Takes one column off every key.
fn decode_column(keys: &mut [&[u8]], index: usize, ty: &DataType) -> Result<ArrayRef> {
    macro_rules! column {
        ($array:ty, $take:expr) => {{
            let take = $take;
            let values = keys.iter_mut().map(take).collect::<Result<Vec<_>>>()?;
            Arc::new(<$array>::from(values))
        }};
    }
    macro_rules! int {
        ($array:ty, $native:ty) => {
            column!($array, |k: &mut &[u8]| narrow::<$native>(take_i64(k)?))
        };
    }
    macro_rules! text {
        ($builder:expr, $convert:expr) => {{
            let mut builder = $builder;
            let mut value = Vec::new();
            for key in keys.iter_mut() {
                if take_text(key, &mut value)? {
                    builder.append_value($convert(&value)?);
                } else {
                    builder.append_null();
                }
            }
            Arc::new(builder.finish())
        }};
    }
    let binary = |v: &Vec<u8>| -> Result<Vec<u8>> { Ok(v.clone()) };
    Ok(match ty {
        DataType::Int64 => int!(Int64Array, i64),
        DataType::Int32 => int!(Int32Array, i32),
        DataType::Int16 => int!(Int16Array, i16),
        DataType::Int8 => int!(Int8Array, i8),
        DataType::UInt32 => int!(UInt32Array, u32),
        DataType::UInt16 => int!(UInt16Array, u16),
        DataType::UInt8 => int!(UInt8Array, u8),
        DataType::UInt64 => column!(UInt64Array, |k: &mut &[u8]| Ok(take::<8>(k)?.map(u64::from_be_bytes))),
        DataType::Float64 => column!(Float64Array, take_f64),
        DataType::Float32 => column!(Float32Array, |k: &mut &[u8]| Ok(take_f64(k)?.map(|v| v as f32))),
        DataType::Boolean => {
            column!(BooleanArray, |k: &mut &[u8]| Ok(take::<1>(k)?.map(|b| b[0] != 0)))
        }
        DataType::Date32 => {
            column!(Date32Array, |k: &mut &[u8]| narrow::<i32>(take_i64(k)?.map(|ms| ms.div_euclid(MS_A_DAY))))
        }
        DataType::Date64 => int!(Date64Array, i64),
        DataType::Utf8 => text!(StringBuilder::new(), utf8),
        DataType::LargeUtf8 => text!(LargeStringBuilder::new(), utf8),
        DataType::Utf8View => text!(StringViewBuilder::new(), utf8),
        DataType::Binary => text!(BinaryBuilder::new(), binary),
        DataType::LargeBinary => text!(LargeBinaryBuilder::new(), binary),
        DataType::BinaryView => text!(BinaryViewBuilder::new(), binary),
        DataType::Dictionary(..) => return dictionary(keys, index, ty),
        _ => return decode_rarer(keys, index, ty),
    })
}

fn decode_rarer(keys: &mut [&[u8]], index: usize, ty: &DataType) -> Result<ArrayRef> {
    macro_rules! timed {
        ($unit:expr, $s:ty, $ms:ty, $us:ty, $ns:ty) => {{
            let nanos = unit_nanos(*$unit);
            let values = keys.iter_mut().map(|k| take_nanos(k, nanos)).collect::<Result<Vec<_>>>()?;
            match $unit {
                TimeUnit::Second => typed::<$s>(values, ty),
                TimeUnit::Millisecond => typed::<$ms>(values, ty),
                TimeUnit::Microsecond => typed::<$us>(values, ty),
                TimeUnit::Nanosecond => typed::<$ns>(values, ty),
            }
        }};
    }
    macro_rules! time_of_day {
        ($t:ty, $nanos:expr) => {{
            let take = |k: &mut &[u8]| narrow(take_i64(k)?.map(|v| v / $nanos));
            typed::<$t>(keys.iter_mut().map(take).collect::<Result<Vec<_>>>()?, ty)
        }};
    }
    macro_rules! decimal {
        ($t:ty, $scale:expr, $convert:expr) => {{
            let convert = $convert;
            let take = |k: &mut &[u8]| match take_decimal(k, *$scale)? {
                None => Ok(None),
                Some(v) => convert(v).map(Some).ok_or_else(|| damaged("a decimal does not fit its column")),
            };
            typed::<$t>(keys.iter_mut().map(take).collect::<Result<Vec<_>>>()?, ty)
        }};
    }
    Ok(match ty {
        DataType::Timestamp(unit, _) => timed!(
            unit,
            TimestampSecondType,
            TimestampMillisecondType,
            TimestampMicrosecondType,
            TimestampNanosecondType
        ),
        DataType::Duration(unit) => {
            timed!(unit, DurationSecondType, DurationMillisecondType, DurationMicrosecondType, DurationNanosecondType)
        }
        DataType::Time32(TimeUnit::Second) => time_of_day!(Time32SecondType, 1_000_000_000),
        DataType::Time32(TimeUnit::Millisecond) => time_of_day!(Time32MillisecondType, 1_000_000),
        DataType::Time64(TimeUnit::Microsecond) => time_of_day!(Time64MicrosecondType, 1_000),
        DataType::Time64(TimeUnit::Nanosecond) => time_of_day!(Time64NanosecondType, 1),
        DataType::Decimal32(_, s) => {
            decimal!(Decimal32Type, s, |v: i256| v.to_i128().and_then(|v| i32::try_from(v).ok()))
        }
        DataType::Decimal64(_, s) => {
            decimal!(Decimal64Type, s, |v: i256| v.to_i128().and_then(|v| i64::try_from(v).ok()))
        }
        DataType::Decimal128(_, s) => decimal!(Decimal128Type, s, |v: i256| v.to_i128()),
        DataType::Decimal256(_, s) => decimal!(Decimal256Type, s, Some),
        DataType::Float16 => {
            type Half = <Float16Type as ArrowPrimitiveType>::Native;
            let take = |k: &mut &[u8]| Ok(take_f64(k)?.map(Half::from_f64));
            typed::<Float16Type>(keys.iter_mut().map(take).collect::<Result<Vec<_>>>()?, ty)
        }
        DataType::FixedSizeBinary(width) => {
            let mut builder = FixedSizeBinaryBuilder::with_capacity(keys.len(), *width);
            let mut value = Vec::new();
            for key in keys.iter_mut() {
                if take_text(key, &mut value)? {
                    builder.append_value(&value).map_err(|_| damaged("a value has another width than its column"))?;
                } else {
                    builder.append_null();
                }
            }
            Arc::new(builder.finish())
        }
        DataType::Null => {
            for key in keys.iter_mut() {
                if take_marker(key)? {
                    return Err(damaged("a column of nulls holds a value"));
                }
            }
            Arc::new(NullArray::new(keys.len()))
        }
        other => return Err(unsupported(index, other)),
    })
}

/// An array of exactly the type `ty` (zone, precision and scale included).
fn typed<T: ArrowPrimitiveType>(values: Vec<Option<T::Native>>, ty: &DataType) -> ArrayRef {
    Arc::new(values.into_iter().collect::<PrimitiveArray<T>>().with_data_type(ty.clone()))
}

fn narrow<T: TryFrom<i64>>(value: Option<i64>) -> Result<Option<T>> {
    value.map(|v| T::try_from(v).map_err(|_| damaged("a number does not fit its column"))).transpose()
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| damaged("a text is not UTF-8"))
}

/// A dictionary with an entry a row: right, if not small.
fn dictionary(keys: &mut [&[u8]], index: usize, ty: &DataType) -> Result<ArrayRef> {
    let DataType::Dictionary(key_type, value_type) = ty else { return Err(unsupported(index, ty)) };
    let values = decode_column(keys, index, value_type)?;
    macro_rules! build {
        ($($variant:ident => $t:ty),*) => {
            match key_type.as_ref() {
                $(DataType::$variant => indexed::<$t>(values),)*
                _ => Err(unsupported(index, ty)),
            }
        };
    }
    build!(Int8 => Int8Type, Int16 => Int16Type, Int32 => Int32Type, Int64 => Int64Type,
        UInt8 => UInt8Type, UInt16 => UInt16Type, UInt32 => UInt32Type, UInt64 => UInt64Type)
}

fn indexed<K: ArrowDictionaryKeyType>(values: ArrayRef) -> Result<ArrayRef> {
    let rows = (0..values.len())
        .map(|i| K::Native::from_usize(i).ok_or_else(|| damaged("there are more rows than the dictionary can number")))
        .collect::<Result<Vec<_>>>()?;
    let nulls: Option<NullBuffer> = values.nulls().cloned();
    let rows = PrimitiveArray::<K>::new(rows.into(), nulls);
    let array = DictionaryArray::<K>::try_new(rows, values)
        .map_err(|e| Error::internal("a dictionary of key columns cannot be built").code(9202).source(e))?;
    Ok(Arc::new(array))
}
