//! Avro's binary encoding: bytes into columns, by the steps that resolution gave.
//!
//! Nothing is trusted: a length is bounded by the bytes that are there, and values that take no bytes are counted, so that a
//! damaged record costs no more than a whole one of its size. Source: the specification of Apache Avro 1.12, "Binary Encoding".

use super::resolve::{Fields, Part, Read, Step};
use super::schema::{Id, Kind, Schema};
use crate::columns::{Column, Values};

/// What is wrong with a record.
type Result<T> = std::result::Result<T, String>;

/// How many values of a record may take no bytes (items that are null, empty records).
const FREE_VALUES: u32 = 65_536;

/// How deep values that are passed over may stand in one another.
const DEPTH_MAX: usize = 256;

const TOO_LARGE: &str = "more than 2 GiB in a batch";
const UNFIT: &str = "a number that does not fit the column";

/// What is left of a record.
pub(super) struct Input<'a> {
    rest: &'a [u8],
    schema: &'a Schema,
    free: u32,
}

impl<'a> Input<'a> {
    /// A record that was written with `schema`.
    pub(super) fn new(record: &'a [u8], schema: &'a Schema) -> Self {
        Self { rest: record, schema, free: FREE_VALUES }
    }

    /// An error when bytes are left.
    pub(super) fn end(&self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(format!("{} bytes behind the record", self.rest.len())) }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.rest.split_at_checked(len) else {
            return Err(format!("it ends where {len} bytes are to come, after {} of them", self.rest.len()));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| "it ends too soon".to_owned())
    }

    /// Seven bits a byte, lowest first; zig-zag.
    fn long(&mut self) -> Result<i64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        Err("a number of more than 64 bits".into())
    }

    fn len(&mut self) -> Result<usize> {
        let len = self.long()?;
        usize::try_from(len).map_err(|_| format!("a length of {len}"))
    }

    fn bytes(&mut self) -> Result<&'a [u8]> {
        let len = self.len()?;
        self.take(len)
    }

    fn text(&mut self) -> Result<&'a [u8]> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes).map(|_| bytes).map_err(|e| format!("no UTF-8 at byte {}", e.valid_up_to()))
    }

    /// A value was read, and before it so many bytes were left.
    fn spend(&mut self, before: usize) -> Result<()> {
        if self.rest.len() == before {
            self.free = self.free.checked_sub(1).ok_or("too many values that take no bytes")?;
        }
        Ok(())
    }

    /// The items of an array, or the entries of a map.
    fn blocks(&mut self, mut item: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        loop {
            let mut count = self.long()?;
            if count < 0 {
                // The length of the block in bytes follows, for those who pass over it.
                self.len()?;
                count = count.checked_neg().ok_or("a block of too many items")?;
            }
            if count == 0 {
                return Ok(());
            }
            for _ in 0..count {
                let before = self.rest.len();
                item(self)?;
                self.spend(before)?;
            }
        }
    }

    /// Passes over a value of type `id`.
    fn skip(&mut self, id: Id, depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err("values too deep within one another".into());
        }
        let before = self.rest.len();
        let schema = self.schema;
        match &schema.node(id).kind {
            Kind::Null => {}
            Kind::Boolean => drop(self.take(1)?),
            Kind::Int | Kind::Long | Kind::Enum { .. } => drop(self.long()?),
            Kind::Float => drop(self.take(4)?),
            Kind::Double => drop(self.take(8)?),
            Kind::Bytes | Kind::Text => drop(self.bytes()?),
            Kind::Fixed(len) => drop(self.take(*len)?),
            Kind::Record(fields) => fields.iter().try_for_each(|f| self.skip(f.of, depth + 1))?,
            Kind::Array(items) => self.blocks(|input| input.skip(*items, depth + 1))?,
            Kind::Map(values) => self.blocks(|input| {
                input.bytes()?;
                input.skip(*values, depth + 1)
            })?,
            Kind::Union(branches) => self.branch(branches).and_then(|&id| self.skip(id, depth + 1))?,
        }
        self.spend(before)
    }

    fn branch<'b, T>(&mut self, branches: &'b [T]) -> Result<&'b T> {
        let at = self.long()?;
        let found = usize::try_from(at).ok().and_then(|at| branches.get(at));
        found.ok_or_else(|| format!("branch {at} of a union of {}", branches.len()))
    }
}

impl Fields {
    /// Adds a row; half of one may be left behind an error.
    pub(super) fn read(&self, input: &mut Input<'_>, columns: &mut [Column]) -> Result<()> {
        let named = |column: usize| move |e| format!("{}: {e}", self.names[column]);
        for part in &self.parts {
            match part {
                Part::Into(column, step) => step.read(input, &mut columns[*column]).map_err(named(*column))?,
                Part::Over(id) => input.skip(*id, 0)?,
            }
        }
        for (column, preset) in &self.absent {
            match preset {
                None => columns[*column].push_null(),
                Some(preset) => preset.read(&mut columns[*column]).map_err(named(*column))?,
            }
        }
        Ok(())
    }
}

impl Step {
    pub(super) fn read(&self, input: &mut Input<'_>, column: &mut Column) -> Result<()> {
        match (self, &mut column.values) {
            (Self::Null, _) if column.nullable => {
                column.push_null();
                return Ok(());
            }
            (Self::Null, _) => return Err("may not be null".into()),
            (Self::Union(branches), _) => {
                return input.branch(branches)?.as_ref().map_err(Clone::clone)?.read(input, column);
            }
            (Self::Value(read), _) => return read.read(input, column),
            (Self::Record(fields), Values::Struct(columns, _)) => fields.read(input, columns)?,
            (Self::List(step), Values::List(ends, items, _)) => {
                input.blocks(|input| step.read(input, items))?;
                ends.push(i32::try_from(items.len()).map_err(|_| TOO_LARGE)?);
            }
            (Self::Map(step), Values::Map(ends, entries, _)) => {
                let [keys, values] = &mut **entries;
                input.blocks(|input| {
                    push_bytes(input.text()?, keys)?;
                    step.read(input, values)
                })?;
                ends.push(i32::try_from(keys.len()).map_err(|_| TOO_LARGE)?);
            }
            _ => return Err("a column of another type".into()),
        }
        column.pushed();
        Ok(())
    }
}

impl Read {
    fn read(&self, input: &mut Input<'_>, column: &mut Column) -> Result<()> {
        match (self, &mut column.values) {
            (Self::Boolean, Values::Boolean(v)) => match input.array()? {
                [0] => v.append(false),
                [1] => v.append(true),
                [other] => return Err(format!("{other} is neither true nor false")),
            },
            (Self::Whole { long, times, over }, _) => {
                let n = input.long()?;
                if !long && i32::try_from(n).is_err() {
                    return Err("an int of more than 32 bits".into());
                }
                push_whole(n.checked_mul(*times).ok_or(UNFIT)?.div_euclid(*over), column)?;
            }
            (Self::Float, Values::Float32(v)) => v.push(f32::from_le_bytes(input.array()?)),
            (Self::Float, Values::Float64(v)) => v.push(f32::from_le_bytes(input.array()?).into()),
            (Self::Double, Values::Float64(v)) => v.push(f64::from_le_bytes(input.array()?)),
            (Self::Text, _) => return push_bytes(input.text()?, column),
            (Self::Bytes(None), _) => return push_bytes(input.bytes()?, column),
            (Self::Bytes(Some(len)), _) => return push_bytes(input.take(*len)?, column),
            (Self::Uuid, _) => return push_bytes(uuid(input.array()?).as_bytes(), column),
            (Self::Symbol(symbols), _) => {
                let symbol = input.branch(symbols)?.as_ref();
                return push_bytes(symbol.ok_or("a symbol that the reader does not know")?.as_bytes(), column);
            }
            (Self::Decimal { len, shift }, Values::Decimal(v, precision, _)) => {
                let bytes = match len {
                    None => input.bytes()?,
                    Some(len) => input.take(*len)?,
                };
                let value = decimal(bytes, *shift).ok_or(UNFIT)?;
                if value.unsigned_abs() >= 10_u128.checked_pow(u32::from(*precision)).unwrap_or(u128::MAX) {
                    return Err(UNFIT.into());
                }
                v.push(value);
            }
            _ => return Err("a column of another type".into()),
        }
        column.pushed();
        Ok(())
    }
}

fn push_bytes(bytes: &[u8], column: &mut Column) -> Result<()> {
    let (Values::Text(v) | Values::Binary(v)) = &mut column.values else {
        return Err("a column of another type".into());
    };
    v.push(bytes).then_some(()).ok_or(TOO_LARGE)?;
    column.pushed();
    Ok(())
}

/// Into the values alone.
fn push_whole(n: i64, column: &mut Column) -> Result<()> {
    fn fit<T: TryFrom<i64>>(n: i64) -> Result<T> {
        T::try_from(n).map_err(|_| UNFIT.to_owned())
    }
    fn of_day(n: i64, unit: i64) -> Result<i64> {
        if (0..86_400 * unit).contains(&n) { Ok(n) } else { Err(format!("{n} is no time of day")) }
    }
    match &mut column.values {
        Values::Int8(v) => v.push(fit(n)?),
        Values::Int16(v) => v.push(fit(n)?),
        Values::Int32(v) | Values::Date(v) => v.push(fit(n)?),
        Values::Int64(v) | Values::Time(v, ..) => v.push(n),
        Values::UInt8(v) => v.push(fit(n)?),
        Values::UInt16(v) => v.push(fit(n)?),
        Values::UInt32(v) => v.push(fit(n)?),
        Values::UInt64(v) => v.push(fit(n)?),
        Values::Float32(v) => v.push(n as f32),
        Values::Float64(v) => v.push(n as f64),
        Values::DayMillis(v) => v.push(fit(of_day(n, 1_000)?)?),
        Values::DayMicros(v) => v.push(of_day(n, 1_000_000)?),
        _ => return Err("a column of another type".into()),
    }
    Ok(())
}

fn uuid(bytes: [u8; 16]) -> String {
    let mut out = String::with_capacity(36);
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        out.extend([byte >> 4, byte & 15].iter().filter_map(|&digit| char::from_digit(digit.into(), 16)));
    }
    out
}

/// A number in two's complement, big-endian, times 10 to the `shift`; nothing rather than a rounded one.
fn decimal(bytes: &[u8], shift: i32) -> Option<i128> {
    let sign = if *bytes.first()? < 0x80 { 0 } else { 0xff };
    let (above, digits) = bytes.split_at(bytes.len().saturating_sub(16));
    let mut wide = [sign; 16];
    wide[16 - digits.len()..].copy_from_slice(digits);
    let value = i128::from_be_bytes(wide);
    if above.iter().any(|&b| b != sign) || (value < 0) != (sign == 0xff) {
        return None;
    }
    let factor = 10_i128.checked_pow(shift.unsigned_abs())?;
    if shift >= 0 { value.checked_mul(factor) } else { (value % factor == 0).then_some(value / factor) }
}

/// Appends a number as [`Input::long`] reads it.
pub(super) fn put_long(n: i64, out: &mut Vec<u8>) {
    let mut rest = (n << 1 ^ n >> 63) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Appends bytes behind their length.
pub(super) fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    put_long(bytes.len() as i64, out);
    out.extend_from_slice(bytes);
}
