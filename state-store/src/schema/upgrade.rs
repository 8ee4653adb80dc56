//! From an older form of a value to the present one. What may differ is decided once, in [`Upgrade::new`]; applying it
//! walks the bytes of a value and writes those of the other form.
//!
//! Allowed: fields added (with their default), dropped, renamed (same id), put in another order; a column that may now
//! be null; integers widened (signed to wider signed, unsigned to wider unsigned or to wider signed), `float16` to
//! `float32` to `float64`, `utf8` to `large_utf8`, `binary` to `large_binary`, decimals of at least as many digits on both
//! sides of the point. Everything else is refused, with the place in words.

use arrow_buffer::i256;
use arrow_schema::DataType;
use millstream_common::Result;

use super::codec::{damaged, put_bytes, put_i64, put_u64, take_bytes, take_i64, take_u64};
use super::types::{ColumnWidth, column_width, type_name};
use super::{COLUMN_NULL, COLUMN_VALUE, DISTINCT_ROW, Field, Form, KeyColumn, NEVER_EXPIRES, Schema};

/// How values of one schema become values of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrade {
    old: Form,
    step: Step,
    /// Whether the old value, and the new one, begin with a stamp.
    stamps: (bool, bool),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// The bytes stay as they are.
    Same,
    /// The old fields, to find their bytes, and for each new one where it comes from.
    Record(Vec<Form>, Vec<Source>),
    List(Form, Box<Step>),
    Framed(Box<Step>),
    Widen(Widening),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Field(usize, Step),
    Default(Vec<u8>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Widening {
    /// Bytes before and after, and whether the sign goes along.
    Integer {
        from: usize,
        to: usize,
        signed: bool,
    },
    Half {
        to: usize,
    },
    Single,
    /// Bytes before and after, and the digits that come behind the point.
    Decimal {
        from: usize,
        to: usize,
        digits: u32,
    },
}

impl Upgrade {
    /// How values of `old` become values of `new`; why not, when they cannot.
    pub fn new(old: &Schema, new: &Schema) -> Result<Self, String> {
        let types = |key: &[KeyColumn]| key.iter().map(|c| (c.ty.clone(), c.nullable)).collect::<Vec<_>>();
        for (what, old, new) in [("key", &old.key, &new.key), ("map key", &old.map_key, &new.map_key)] {
            if !old.is_empty() && !new.is_empty() && types(old) != types(new) {
                return Err(format!("the {what} has other columns"));
            }
        }
        match (old.ttl, new.ttl) {
            (Some(old), Some(new)) if old.clock != new.clock => {
                return Err("its TTL goes by another clock, and the ends of what is stored do not".into());
            }
            (Some(_), None) => {
                return Err("it has a TTL, and what is stored expires by it: keep one, a long one if need be".into());
            }
            _ => {}
        }
        let step = step(&old.value, &new.value, "the value")?;
        let upgrade = Self { old: old.value.clone(), step, stamps: (old.ttl.is_some(), new.ttl.is_some()) };
        if !upgrade.is_same() && old.ttl.is_none() && begins_with_bytes(&old.value) == Some(true) {
            return Err(
                "its values begin with bytes of any kind, which cannot be told from the tag of another schema".into()
            );
        }
        Ok(upgrade)
    }

    /// Whether values stay as they are, byte for byte: the schemas differ in names alone.
    #[must_use]
    pub fn is_same(&self) -> bool {
        self.step == Step::Same && self.stamps.0 == self.stamps.1
    }

    /// Appends what the value `old` (without its tag) is in the new form. A value without a stamp gets one that never
    /// comes.
    pub fn apply(&self, mut old: &[u8], into: &mut Vec<u8>) -> Result<()> {
        let stamp = if self.stamps.0 { take_i64(&mut old)? } else { NEVER_EXPIRES };
        if self.stamps.1 {
            put_i64(stamp, into);
        }
        let mut rest = old;
        self.step.apply(&self.old, &mut rest, into)?;
        if rest.is_empty() { Ok(()) } else { Err(damaged("it goes on behind its last field")) }
    }
}

/// Takes the bytes of `form` off the front of `bytes`.
pub fn skip<'a>(form: &Form, bytes: &mut &'a [u8]) -> Result<&'a [u8]> {
    let all = *bytes;
    match form {
        Form::Nothing => {}
        Form::Integer => drop(take_u64(bytes)?),
        Form::Column(ty) => drop(take_column(ty, bytes)?),
        Form::Record { fields, .. } => {
            for field in fields {
                skip(&field.form, bytes)?;
            }
        }
        Form::List(item) => {
            for _ in 0..take_u64(bytes)? {
                let before = bytes.len();
                skip(item, bytes)?;
                if bytes.len() == before {
                    break; // Items without bytes: their number may be anything.
                }
            }
        }
        Form::Framed(_) => drop(take_bytes(bytes)?),
        Form::Rest | Form::Opaque(_) => *bytes = &[],
    }
    Ok(&all[..all.len() - bytes.len()])
}

/// Takes a column off the front of `bytes`: the bytes of its value, without marker and length; `None` when it is null.
fn take_column<'a>(ty: &DataType, bytes: &mut &'a [u8]) -> Result<Option<&'a [u8]>> {
    let (&marker, rest) = bytes.split_first().ok_or_else(|| damaged("a row is cut short"))?;
    *bytes = rest;
    match marker {
        COLUMN_NULL => return Ok(None),
        COLUMN_VALUE => {}
        _ => return Err(damaged("a column of a row is neither null nor a value")),
    }
    match column_width(ty) {
        None => Err(damaged(&format!("a row cannot hold a column of type {ty}"))),
        Some(ColumnWidth::Varying) => take_bytes(bytes).map(Some),
        Some(ColumnWidth::Fixed(width)) => {
            let (value, rest) = bytes.split_at_checked(width).ok_or_else(|| damaged("a row is cut short"))?;
            *bytes = rest;
            Ok(Some(value))
        }
    }
}

fn step(old: &Form, new: &Form, place: &str) -> Result<Step, String> {
    match (old, new) {
        (Form::Record { kind: a, fields: old }, Form::Record { kind: b, fields: new }) if a == b => {
            record(old, new, a == DISTINCT_ROW, place)
        }
        (Form::Record { kind: a, .. }, Form::Record { kind: b, .. }) => {
            Err(format!("{place} was '{a}' and would be '{b}'"))
        }
        (Form::List(a), Form::List(b)) => Ok(match step(a, b, place)? {
            Step::Same => Step::Same,
            item => Step::List((**a).clone(), Box::new(item)),
        }),
        (Form::Framed(a), Form::Framed(b)) => Ok(match step(a, b, place)? {
            Step::Same => Step::Same,
            inner => Step::Framed(Box::new(inner)),
        }),
        (Form::Column(a), Form::Column(b)) if a != b => {
            let name = |t: &DataType| type_name(t).unwrap_or_else(|| t.to_string());
            widening(a, b).ok_or_else(|| format!("{place} was {} and would be {}", name(a), name(b)))
        }
        (a, b) if a == b => Ok(Step::Same),
        (a, b) => Err(format!("{place} was {a} and would be {b}")),
    }
}

fn record(old: &[Field], new: &[Field], keeps_all: bool, place: &str) -> Result<Step, String> {
    let mut sources = Vec::with_capacity(new.len());
    for field in new {
        let place = format!("{place}, field '{}'", field.name);
        let Some(at) = old.iter().position(|o| o.id == field.id) else {
            sources.push(Source::Default(default_of(field, &place)?));
            continue;
        };
        if old[at].nullable && !field.nullable {
            return Err(format!("{place} could be null and could no longer be"));
        }
        sources.push(Source::Field(at, step(&old[at].form, &field.form, &place)?));
    }
    let dropped = old.iter().find(|o| !new.iter().any(|n| n.id == o.id));
    if let Some(field) = dropped.filter(|_| keeps_all) {
        return Err(format!("{place} is kept once per distinct row, and field '{}' would be dropped", field.name));
    }
    let in_place = |(i, s): (usize, &Source)| *s == Source::Field(i, Step::Same);
    if old.len() == new.len() && sources.iter().enumerate().all(in_place) {
        return Ok(Step::Same);
    }
    if old.iter().rev().skip(1).any(|f| to_the_end(&f.form)) {
        return Err(format!("{place} has a field behind one that goes to the end"));
    }
    if new.iter().rev().skip(1).any(|f| to_the_end(&f.form)) {
        return Err(format!("{place} would have a field behind one that goes to the end"));
    }
    Ok(Step::Record(old.iter().map(|f| f.form.clone()).collect(), sources))
}

/// Whether a value begins with bytes that may be anything; `None` when it has no bytes.
fn begins_with_bytes(form: &Form) -> Option<bool> {
    match form {
        Form::Nothing => None,
        Form::Rest | Form::Opaque(_) => Some(true),
        Form::Record { fields, .. } => fields.iter().find_map(|f| begins_with_bytes(&f.form)),
        Form::Integer | Form::Column(_) | Form::List(_) | Form::Framed(_) => Some(false),
    }
}

fn to_the_end(form: &Form) -> bool {
    match form {
        Form::Rest | Form::Opaque(_) => true,
        Form::Record { fields, .. } => fields.iter().any(|f| to_the_end(&f.form)),
        _ => false,
    }
}

/// What a field has in values that were written without it.
fn default_of(field: &Field, place: &str) -> Result<Vec<u8>, String> {
    if let Some(default) = &field.default {
        let mut rest = &default[..];
        return match skip(&field.form, &mut rest) {
            Ok(_) if rest.is_empty() => Ok(default.clone()),
            _ => Err(format!("{place} has a default that is no {}", field.form)),
        };
    }
    Ok(match &field.form {
        Form::Nothing | Form::Rest => Vec::new(),
        Form::Integer | Form::List(_) => vec![0],
        Form::Column(_) if field.nullable => vec![COLUMN_NULL],
        Form::Column(_) => return Err(format!("{place} is new, cannot be null and has no default")),
        Form::Opaque(_) => return Err(format!("{place} is new, and nothing is known of its bytes")),
        Form::Framed(inner) => {
            let (mut out, plain) = (Vec::new(), Field { form: (**inner).clone(), ..field.clone() });
            put_bytes(&default_of(&plain, place)?, &mut out);
            out
        }
        Form::Record { fields, .. } => {
            let parts = fields.iter().map(|f| default_of(f, place)).collect::<Result<Vec<_>, _>>()?;
            parts.concat()
        }
    })
}

fn widening(old: &DataType, new: &DataType) -> Option<Step> {
    use DataType::{Binary, Float16, Float32, Float64, LargeBinary, LargeUtf8, Utf8};
    let widths = (old.primitive_width(), new.primitive_width());
    Some(match (old, new) {
        (Utf8, LargeUtf8) | (Binary, LargeBinary) => Step::Same,
        (Float16, Float32 | Float64) => Step::Widen(Widening::Half { to: widths.1? }),
        (Float32, Float64) => Step::Widen(Widening::Single),
        (a, b) if a.is_integer() && b.is_integer() => {
            let (from, to) = (widths.0?, widths.1?);
            // A negative number has no place in an unsigned column.
            if to <= from || (a.is_signed_integer() && b.is_unsigned_integer()) {
                return None;
            }
            Step::Widen(Widening::Integer { from, to, signed: a.is_signed_integer() })
        }
        (a, b) => {
            let ((p1, s1), (p2, s2)) = (decimal(a)?, decimal(b)?);
            let (from, to) = (widths.0?, widths.1?);
            if s2 < s1 || p2 - s2 < p1 - s1 || to < from {
                return None;
            }
            if (from, s1) == (to, s2) {
                return Some(Step::Same);
            }
            Step::Widen(Widening::Decimal { from, to, digits: u32::try_from(s2 - s1).ok()? })
        }
    })
}

fn decimal(ty: &DataType) -> Option<(i32, i32)> {
    match ty {
        DataType::Decimal32(p, s) | DataType::Decimal64(p, s) => Some((i32::from(*p), i32::from(*s))),
        DataType::Decimal128(p, s) | DataType::Decimal256(p, s) => Some((i32::from(*p), i32::from(*s))),
        _ => None,
    }
}

impl Step {
    /// Takes a value of the form `old` off the front of `bytes` and appends what becomes of it.
    fn apply(&self, old: &Form, bytes: &mut &[u8], into: &mut Vec<u8>) -> Result<()> {
        match (self, old) {
            (Self::Same, _) => into.extend_from_slice(skip(old, bytes)?),
            (Self::Record(forms, sources), _) => {
                let parts = forms.iter().map(|f| skip(f, bytes)).collect::<Result<Vec<_>>>()?;
                for source in sources {
                    match source {
                        Source::Default(bytes) => into.extend_from_slice(bytes),
                        Source::Field(i, step) => step.apply(&forms[*i], &mut &parts[*i][..], into)?,
                    }
                }
            }
            (Self::List(item, step), _) => {
                let count = take_u64(bytes)?;
                if count > bytes.len() as u64 {
                    return Err(damaged("a list is cut short"));
                }
                put_u64(count, into);
                for _ in 0..count {
                    step.apply(item, bytes, into)?;
                }
            }
            (Self::Framed(step), Form::Framed(inner)) => {
                let (mut part, mut out) = (take_bytes(bytes)?, Vec::new());
                step.apply(inner, &mut part, &mut out)?;
                if !part.is_empty() {
                    return Err(damaged("it goes on behind its last field"));
                }
                put_bytes(&out, into);
            }
            (Self::Widen(widening), Form::Column(ty)) => match take_column(ty, bytes)? {
                None => into.push(COLUMN_NULL),
                Some(value) => {
                    into.push(COLUMN_VALUE);
                    widening.apply(value, into)?;
                }
            },
            (Self::Framed(_) | Self::Widen(_), _) => return Err(damaged("its schema does not fit it")),
        }
        Ok(())
    }
}

impl Widening {
    fn apply(self, value: &[u8], into: &mut Vec<u8>) -> Result<()> {
        let short = || damaged("a number has another width");
        let filled = |negative: bool| if negative { 0xff } else { 0 };
        let negative = value.last().is_some_and(|b| b & 0x80 != 0);
        match self {
            Self::Integer { from, to, signed } if value.len() == from => {
                into.extend_from_slice(value);
                into.resize(into.len() + to - from, filled(signed && negative));
            }
            Self::Half { to } => {
                let bits = u16::from_le_bytes(value.try_into().map_err(|_| short())?);
                let wide = half_to_f64(bits);
                match to {
                    4 => into.extend_from_slice(&(wide as f32).to_le_bytes()),
                    _ => into.extend_from_slice(&wide.to_le_bytes()),
                }
            }
            Self::Single => {
                let value = f32::from_le_bytes(value.try_into().map_err(|_| short())?);
                into.extend_from_slice(&f64::from(value).to_le_bytes());
            }
            Self::Decimal { from, to, digits } if value.len() == from => {
                let mut wide = [filled(negative); 32];
                wide[..from].copy_from_slice(value);
                let factor = i256::from_i128(10).checked_pow(digits);
                let scaled = factor.and_then(|f| i256::from_le_bytes(wide).checked_mul(f));
                let scaled = scaled.ok_or_else(|| damaged("a decimal is beyond its precision"))?;
                into.extend_from_slice(&scaled.to_le_bytes()[..to]);
            }
            Self::Integer { .. } | Self::Decimal { .. } => return Err(short()),
        }
        Ok(())
    }
}

/// A number of 16 bits: sign, 5 bits of exponent, 10 of fraction.
fn half_to_f64(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1_023));
    let size = match exponent {
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        0 => fraction * 2f64.powi(-24),
        _ => (1_024.0 + fraction) * 2f64.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}
