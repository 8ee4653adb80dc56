//! Encoding of key columns, a column at a time: one pass measures, one writes.

use std::fmt::Write as _;

use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::{Array, ArrayRef, downcast_dictionary_array};
use arrow_buffer::NullBuffer;
use arrow_schema::{DataType, TimeUnit};
use millstream_common::hash::stable_hash;
use millstream_common::{Error, Result};

use super::{KeyBuffer, NULL, VALUE};

pub(super) const MS_A_DAY: i64 = 86_400_000;
pub(super) const DECIMAL_NEGATIVE: u8 = 1;
pub(super) const DECIMAL_ZERO: u8 = 2;
pub(super) const DECIMAL_POSITIVE: u8 = 3;
pub(super) const DECIMAL_BIAS: i32 = 1 << 15;

/// Encodes `columns` row by row into `into` (cleared first) and hashes the keys.
///
/// No columns give no keys. A type that cannot be a key is refused with the column's index and type.
pub fn encode_keys(columns: &[ArrayRef], into: &mut KeyBuffer) -> Result<()> {
    into.clear();
    let Some(first) = columns.first() else { return Ok(()) };
    let rows = first.len();
    if let Some((i, odd)) = columns.iter().enumerate().find(|(_, c)| c.len() != rows) {
        return Err(Error::internal(format!("key column {i} has {} rows, column 0 has {rows}", odd.len())).code(9201));
    }
    let mut measure = Measure { fixed: 0, lengths: Vec::new(), rows };
    for (i, column) in columns.iter().enumerate() {
        visit(column, i, &mut measure)?;
    }
    let total = measure.write_ends(&mut into.ends)?;
    into.data.resize(total, 0);
    let mut fill = Fill { data: &mut into.data, ends: &into.ends, cursors: Vec::new(), at: 0, stride: None };
    if measure.lengths.is_empty() {
        fill.stride = Some(measure.fixed);
    } else {
        fill.start_cursors();
    }
    for (i, column) in columns.iter().enumerate() {
        visit(column, i, &mut fill)?;
    }
    hash_all(into);
    Ok(())
}

/// Says by an error when a column of this type cannot be part of a key.
pub fn check_key_type(index: usize, ty: &DataType) -> Result<()> {
    let empty = arrow_array::new_empty_array(ty);
    visit(&empty, index, &mut Measure { fixed: 0, lengths: Vec::new(), rows: 0 })
}

fn hash_all(keys: &mut KeyBuffer) {
    keys.hashes.reserve(keys.ends.len());
    let mut start = 0;
    for &end in &keys.ends {
        keys.hashes.push(stable_hash(&keys.data[start..end as usize]));
        start = end as usize;
    }
}

pub(super) fn too_long() -> Error {
    Error::data("the keys of one batch are longer than 4 GiB").code(3201).next("use smaller batches or shorter keys")
}

/// One column: how long the encoding of a row is, and the encoding. Markers included.
trait Encode {
    /// The length of every row, when all are alike.
    fn fixed(&self) -> Option<usize>;
    fn len(&self, row: usize) -> usize;
    /// Writes row `row` at the start of `out`; returns how many bytes.
    fn write(&self, row: usize, out: &mut [u8]) -> usize;
}

trait Visitor {
    fn column(&mut self, column: impl Encode);
}

struct Measure {
    /// Bytes that every row has.
    fixed: usize,
    /// Further bytes of each row; empty while all rows are alike.
    lengths: Vec<usize>,
    rows: usize,
}

impl Visitor for Measure {
    fn column(&mut self, column: impl Encode) {
        if let Some(n) = column.fixed() {
            self.fixed += n;
            return;
        }
        self.lengths.resize(self.rows, 0);
        for (row, length) in self.lengths.iter_mut().enumerate() {
            *length += column.len(row);
        }
    }
}

impl Measure {
    fn write_ends(&self, ends: &mut Vec<u32>) -> Result<usize> {
        let total = self.fixed * self.rows + self.lengths.iter().sum::<usize>();
        u32::try_from(total).map_err(|_| too_long())?;
        // The total fits into 32 bits, so every partial sum does.
        if self.lengths.is_empty() {
            ends.extend((1..=self.rows).map(|i| (i * self.fixed) as u32));
        } else {
            let mut end = 0;
            ends.extend(self.lengths.iter().map(|n| {
                end += self.fixed + n;
                end as u32
            }));
        }
        Ok(total)
    }
}

struct Fill<'a> {
    data: &'a mut [u8],
    ends: &'a [u32],
    /// Where the next column of each row goes; unused when all rows have the same length.
    cursors: Vec<u32>,
    /// With a stride: where the next column goes in each row.
    at: usize,
    stride: Option<usize>,
}

impl Fill<'_> {
    fn start_cursors(&mut self) {
        self.cursors.reserve(self.ends.len());
        self.cursors.push(0);
        self.cursors.extend_from_slice(self.ends);
        self.cursors.pop();
    }
}

impl Visitor for Fill<'_> {
    fn column(&mut self, column: impl Encode) {
        if let Some(stride) = self.stride {
            let mut wrote = 0;
            for (row, key) in self.data.chunks_exact_mut(stride).enumerate() {
                wrote = column.write(row, &mut key[self.at..]);
            }
            self.at += wrote;
            return;
        }
        for (row, cursor) in self.cursors.iter_mut().enumerate() {
            *cursor += column.write(row, &mut self.data[*cursor as usize..]) as u32;
        }
    }
}

/// Values of `N` bytes; `F` gives those of a row that is not null.
struct Fixed<'a, const N: usize, F> {
    nulls: Option<&'a NullBuffer>,
    value: F,
}

impl<const N: usize, F: Fn(usize) -> [u8; N]> Encode for Fixed<'_, N, F> {
    #[inline]
    fn fixed(&self) -> Option<usize> {
        self.nulls.is_none().then_some(1 + N)
    }
    #[inline]
    fn len(&self, row: usize) -> usize {
        if is_null(self.nulls, row) { 1 } else { 1 + N }
    }
    #[inline]
    fn write(&self, row: usize, out: &mut [u8]) -> usize {
        if is_null(self.nulls, row) {
            out[0] = NULL;
            return 1;
        }
        out[0] = VALUE;
        out[1..=N].copy_from_slice(&(self.value)(row));
        1 + N
    }
}

/// Text and binary.
struct Text<'a, F> {
    nulls: Option<&'a NullBuffer>,
    value: F,
}

impl<'a, F: Fn(usize) -> &'a [u8]> Encode for Text<'a, F> {
    fn fixed(&self) -> Option<usize> {
        None
    }
    #[inline]
    fn len(&self, row: usize) -> usize {
        if is_null(self.nulls, row) { 1 } else { escaped_len((self.value)(row)) + 1 }
    }
    #[inline]
    fn write(&self, row: usize, out: &mut [u8]) -> usize {
        if is_null(self.nulls, row) {
            out[0] = NULL;
            return 1;
        }
        out[0] = VALUE;
        1 + escape((self.value)(row), &mut out[1..])
    }
}

/// Columns that were encoded beforehand, markers included: dictionaries (by value) and decimals (by row).
struct Encoded<'a, F> {
    values: &'a Pieces,
    /// Which piece a row has.
    piece: F,
}

/// Byte strings one after the other.
#[derive(Default)]
struct Pieces {
    data: Vec<u8>,
    ends: Vec<usize>,
}

impl Pieces {
    fn get(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.data[start..self.ends[i]]
    }
}

impl<F: Fn(usize) -> Option<usize>> Encode for Encoded<'_, F> {
    fn fixed(&self) -> Option<usize> {
        None
    }
    fn len(&self, row: usize) -> usize {
        (self.piece)(row).map_or(1, |i| self.values.get(i).len())
    }
    fn write(&self, row: usize, out: &mut [u8]) -> usize {
        match (self.piece)(row) {
            None => {
                out[0] = NULL;
                1
            }
            Some(i) => {
                let bytes = self.values.get(i);
                out[..bytes.len()].copy_from_slice(bytes);
                bytes.len()
            }
        }
    }
}

struct AllNull;

impl Encode for AllNull {
    fn fixed(&self) -> Option<usize> {
        Some(1)
    }
    fn len(&self, _: usize) -> usize {
        1
    }
    fn write(&self, _: usize, out: &mut [u8]) -> usize {
        out[0] = NULL;
        1
    }
}

#[inline]
fn is_null(nulls: Option<&NullBuffer>, row: usize) -> bool {
    nulls.is_some_and(|n| n.is_null(row))
}

fn escaped_len(bytes: &[u8]) -> usize {
    bytes.len() + bytes.iter().filter(|b| **b == 0).count() + 2
}

fn escape(bytes: &[u8], out: &mut [u8]) -> usize {
    let mut at = 0;
    let mut rest = bytes;
    while let Some(zero) = rest.iter().position(|b| *b == 0) {
        out[at..=at + zero].copy_from_slice(&rest[..=zero]);
        out[at + zero + 1] = 0xff;
        at += zero + 2;
        rest = &rest[zero + 1..];
    }
    out[at..at + rest.len()].copy_from_slice(rest);
    at += rest.len();
    out[at..at + 2].fill(0);
    at + 2
}

pub(super) fn i64_bytes(v: i64) -> [u8; 8] {
    (v as u64 ^ (1 << 63)).to_be_bytes()
}

fn f64_bytes(v: f64) -> [u8; 8] {
    let bits = if v.is_nan() {
        f64::NAN.to_bits() & !(1 << 63)
    } else if v == 0.0 {
        0
    } else {
        v.to_bits()
    };
    (if bits >> 63 == 1 { !bits } else { bits ^ (1 << 63) }).to_be_bytes()
}

/// `value` units of `nanos` nanoseconds each, as a 96-bit integer.
fn nanos_bytes(value: i64, nanos: i64) -> [u8; 12] {
    let v = i128::from(value) * i128::from(nanos);
    let mut out = [0; 12];
    out.copy_from_slice(&v.to_be_bytes()[4..]);
    out[0] ^= 0x80;
    out
}

pub(super) fn unit_nanos(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1_000_000_000,
        TimeUnit::Millisecond => 1_000_000,
        TimeUnit::Microsecond => 1_000,
        TimeUnit::Nanosecond => 1,
    }
}

fn visit(array: &ArrayRef, index: usize, visitor: &mut impl Visitor) -> Result<()> {
    let nulls = array.nulls().filter(|n| n.null_count() > 0);
    macro_rules! fixed {
        ($t:ty, $encode:expr) => {{
            let values = array.as_primitive::<$t>().values();
            let encode = $encode;
            visitor.column(Fixed { nulls, value: |row: usize| encode(values[row]) });
        }};
    }
    macro_rules! text {
        ($typed:expr) => {{
            let values = $typed;
            visitor.column(Text { nulls, value: |row: usize| <_ as AsRef<[u8]>>::as_ref(values.value(row)) });
        }};
    }
    match array.data_type() {
        DataType::Int64 => fixed!(Int64Type, i64_bytes),
        DataType::Int32 => fixed!(Int32Type, |v: i32| i64_bytes(v.into())),
        DataType::Int16 => fixed!(Int16Type, |v: i16| i64_bytes(v.into())),
        DataType::Int8 => fixed!(Int8Type, |v: i8| i64_bytes(v.into())),
        DataType::UInt32 => fixed!(UInt32Type, |v: u32| i64_bytes(v.into())),
        DataType::UInt16 => fixed!(UInt16Type, |v: u16| i64_bytes(v.into())),
        DataType::UInt8 => fixed!(UInt8Type, |v: u8| i64_bytes(v.into())),
        DataType::UInt64 => fixed!(UInt64Type, u64::to_be_bytes),
        DataType::Float64 => fixed!(Float64Type, f64_bytes),
        DataType::Float32 => fixed!(Float32Type, |v: f32| f64_bytes(v.into())),
        DataType::Float16 => {
            fixed!(Float16Type, |v: <Float16Type as ArrowPrimitiveType>::Native| f64_bytes(v.to_f64()))
        }
        DataType::Date32 => fixed!(Date32Type, |v: i32| i64_bytes(i64::from(v) * MS_A_DAY)),
        DataType::Date64 => fixed!(Date64Type, i64_bytes),
        DataType::Utf8 => text!(array.as_string::<i32>()),
        DataType::LargeUtf8 => text!(array.as_string::<i64>()),
        DataType::Utf8View => text!(array.as_string_view()),
        DataType::Binary => text!(array.as_binary::<i32>()),
        DataType::LargeBinary => text!(array.as_binary::<i64>()),
        DataType::BinaryView => text!(array.as_binary_view()),
        DataType::FixedSizeBinary(_) => text!(array.as_fixed_size_binary()),
        DataType::Boolean => {
            let values = array.as_boolean().values();
            visitor.column(Fixed { nulls, value: |row: usize| [u8::from(values.value(row))] });
        }
        DataType::Null => visitor.column(AllNull),
        DataType::Dictionary(..) => return dictionary(array, index, visitor),
        _ => return visit_rarer(array, index, visitor),
    }
    Ok(())
}

fn visit_rarer(array: &ArrayRef, index: usize, visitor: &mut impl Visitor) -> Result<()> {
    let nulls = array.nulls().filter(|n| n.null_count() > 0);
    macro_rules! timed {
        ($unit:expr, $s:ty, $ms:ty, $us:ty, $ns:ty) => {{
            let values: &[i64] = match $unit {
                TimeUnit::Second => array.as_primitive::<$s>().values(),
                TimeUnit::Millisecond => array.as_primitive::<$ms>().values(),
                TimeUnit::Microsecond => array.as_primitive::<$us>().values(),
                TimeUnit::Nanosecond => array.as_primitive::<$ns>().values(),
            };
            let nanos = unit_nanos(*$unit);
            visitor.column(Fixed { nulls, value: |row: usize| nanos_bytes(values[row], nanos) });
        }};
    }
    macro_rules! time_of_day {
        ($t:ty, $nanos:expr) => {{
            let values = array.as_primitive::<$t>().values();
            // A time of day is below 86,400 seconds; what is not wraps alike on every side.
            let value = |row: usize| i64_bytes(i64::from(values[row]).wrapping_mul($nanos));
            visitor.column(Fixed { nulls, value });
        }};
    }
    macro_rules! decimal {
        ($t:ty, $scale:expr) => {{
            let typed = array.as_primitive::<$t>();
            let scale = i32::from(*$scale);
            let mut pieces = Pieces::default();
            let mut digits = String::new();
            for row in 0..typed.len() {
                if typed.is_valid(row) {
                    digits.clear();
                    // Writing into a String cannot fail.
                    let _ = write!(digits, "{}", typed.value(row));
                    pieces.data.push(VALUE);
                    encode_decimal(&digits, scale, &mut pieces.data);
                }
                pieces.ends.push(pieces.data.len());
            }
            visitor.column(Encoded { values: &pieces, piece: |row| typed.is_valid(row).then_some(row) });
        }};
    }
    match array.data_type() {
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
        DataType::Decimal32(_, scale) => decimal!(Decimal32Type, scale),
        DataType::Decimal64(_, scale) => decimal!(Decimal64Type, scale),
        DataType::Decimal128(_, scale) => decimal!(Decimal128Type, scale),
        DataType::Decimal256(_, scale) => decimal!(Decimal256Type, scale),
        other => return Err(unsupported(index, other)),
    }
    Ok(())
}

pub(super) fn unsupported(index: usize, ty: &DataType) -> Error {
    Error::config(format!("key column {index} has type {ty}, which cannot be part of a key"))
        .code(1201)
        .next("use numbers, text, binary, booleans, decimals, dates or times as keys")
}

fn dictionary(array: &ArrayRef, index: usize, visitor: &mut impl Visitor) -> Result<()> {
    downcast_dictionary_array!(
        array => {
            let mut values = KeyBuffer::default();
            let mut measure = Measure { fixed: 0, lengths: Vec::new(), rows: array.values().len() };
            visit(array.values(), index, &mut measure)?;
            let total = measure.write_ends(&mut values.ends)?;
            values.data.resize(total, 0);
            let mut fill =
                Fill { data: &mut values.data, ends: &values.ends, cursors: Vec::new(), at: 0, stride: None };
            fill.start_cursors();
            visit(array.values(), index, &mut fill)?;
            let pieces = Pieces { data: values.data, ends: values.ends.iter().map(|e| *e as usize).collect() };
            visitor.column(Encoded { values: &pieces, piece: |row| array.key(row) });
            Ok(())
        }
        other => Err(unsupported(index, other))
    )
}

/// Appends the decimal `digits` (an integer with an optional minus sign) times `10^-scale`.
fn encode_decimal(digits: &str, scale: i32, out: &mut Vec<u8>) {
    let (negative, digits) = match digits.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, digits),
    };
    let significant = digits.trim_start_matches('0');
    if significant.is_empty() {
        out.push(DECIMAL_ZERO);
        return;
    }
    // The value is 0.SIGNIFICANT times 10^exponent. At most 76 digits and 8 bits of scale: far inside 16 bits.
    let exponent = significant.len() as i32 - scale;
    let significant = significant.trim_end_matches('0').as_bytes();
    out.push(if negative { DECIMAL_NEGATIVE } else { DECIMAL_POSITIVE });
    let start = out.len();
    out.extend_from_slice(&((exponent + DECIMAL_BIAS) as u16).to_be_bytes());
    for pair in significant.chunks(2) {
        let low = pair.get(1).map_or(0, |d| d - b'0');
        out.push((pair[0] - b'0') * 10 + low + 1);
    }
    out.push(0);
    if negative {
        out[start..].iter_mut().for_each(|b| *b = !*b);
    }
}
