//! JSON objects as rows of a declared schema.
//!
//! One pass from the text into the columns: no tree is built, strings without escapes are copied once. serde_json does the
//! parsing; what a value may be is decided here:
//!
//! | column | JSON |
//! |---|---|
//! | integer | a number without a fraction (`12`, `12.0`, `1.2e1`) that fits; a string that holds one |
//! | float, double | a number; a string that holds one, `NaN` and `Infinity` included |
//! | decimal | a number or a string that fits precision and scale without being rounded |
//! | string | a string; of anything else its JSON text |
//! | bytes | a string in base64 |
//! | boolean | `true`, `false`; a string that says so |
//! | date | a string `2026-01-01` |
//! | time stamp | a string `2026-01-01 00:00:04.330`, also with a `T` and a `Z`; finer digits than the column's are cut off |
//! | row | an object; what is missing is null; members that no column names are passed over |
//! | list, map | an array; an object |
//!
//! A number is never rounded or cut to fit an integer or a decimal: such a record is bad. So is one that names a member twice.

use std::fmt;

use arrow_array::RecordBatch;
use arrow_schema::{Fields, SchemaRef};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use millstream_common::Result;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::columns::{Column, Rows, Values, check_type};
use crate::text::{NotThat, parse_into};
use crate::{Decoder, DecodingFormat};

/// JSON objects, one a record.
#[derive(Clone, Debug)]
pub struct JsonDecoding {
    schema: SchemaRef,
    missing_is_bad: bool,
}

impl JsonDecoding {
    /// Reads objects with the columns of `schema`; an error names a column whose type cannot be read from JSON.
    pub fn new(schema: SchemaRef) -> Result<Self> {
        schema.fields().iter().try_for_each(|f| check_type(f))?;
        Ok(Self { schema, missing_is_bad: false })
    }

    /// Whether a record that lacks a member is bad, instead of null in that column. (A column that may not be null wants
    /// its member anyway.)
    #[must_use]
    pub fn with_missing_is_bad(mut self, yes: bool) -> Self {
        self.missing_is_bad = yes;
        self
    }
}

impl DecodingFormat for JsonDecoding {
    fn name(&self) -> &'static str {
        "json"
    }

    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn decoder(&self) -> Result<Box<dyn Decoder>> {
        let rows = Rows::new(&self.schema)?;
        Ok(Box::new(JsonDecoder { rows, fields: self.schema.fields().clone(), missing_is_bad: self.missing_is_bad }))
    }
}

struct JsonDecoder {
    rows: Rows,
    fields: Fields,
    missing_is_bad: bool,
}

impl Decoder for JsonDecoder {
    fn push(&mut self, record: &[u8]) -> Result<()> {
        self.rows.add(|columns| match read(record, columns, &self.fields, self.missing_is_bad) {
            Ok(()) => Ok(1),
            Err((path, what)) if path.is_empty() => Err(what),
            Err((path, what)) => Err(format!("{}: {what}", path.strip_prefix('.').unwrap_or(&path))),
        })
    }

    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn take(&mut self) -> Result<RecordBatch> {
        self.rows.take()
    }
}

/// Adds a row. Otherwise it says where in the record (`.who.price`, `.tags[1]`; empty: anywhere) what is wrong, and leaves half
/// a row behind.
pub(crate) fn read(
    record: &[u8],
    columns: &mut [Column],
    fields: &Fields,
    missing_is_bad: bool,
) -> Result<(), (String, String)> {
    let text = std::str::from_utf8(record);
    let text = text.map_err(|e| (String::new(), format!("no UTF-8 at byte {}", e.valid_up_to())))?;
    let mut json = serde_json::Deserializer::from_str(text);
    let mut at = Vec::new();
    let object = Object { columns, fields, missing_is_bad, at: &mut at };
    let done = json.deserialize_map(object).and_then(|()| json.end());
    done.map_err(|e| (at.iter().rev().map(String::as_str).collect(), said(&e)))
}

/// serde_json's words without the line, which is always the first here.
fn said(e: &serde_json::Error) -> String {
    let text = e.to_string();
    match text.rsplit_once(" at line ") {
        Some((what, _)) if e.is_data() => what.to_owned(),
        Some((what, _)) => format!("{what} at byte {}", e.column()),
        None => text,
    }
}

/// The members of an object, each into its column.
struct Object<'a> {
    columns: &'a mut [Column],
    fields: &'a Fields,
    missing_is_bad: bool,
    /// Where it failed, innermost first.
    at: &'a mut Vec<String>,
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let rows = self.columns.iter().map(Column::len).min().unwrap_or(0);
        // Members mostly come in the order of the columns.
        let mut expected = 0;
        while let Some(found) = map.next_key_seed(Name { fields: self.fields, expected })? {
            let Some(i) = found else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            expected = i + 1;
            let column = &mut self.columns[i];
            let done = if column.len() > rows {
                Err(A::Error::custom("stands there twice"))
            } else {
                map.next_value_seed(Value { column, missing_is_bad: self.missing_is_bad, at: &mut *self.at })
            };
            if let Err(e) = done {
                self.at.push(format!(".{}", self.fields[i].name()));
                return Err(e);
            }
        }
        for (column, field) in self.columns.iter_mut().zip(self.fields) {
            if column.len() > rows {
                continue;
            }
            if self.missing_is_bad || !column.nullable {
                self.at.push(format!(".{}", field.name()));
                return Err(A::Error::custom("is missing"));
            }
            column.push_null();
        }
        Ok(())
    }
}

/// Finds the column that a member is called after.
struct Name<'a> {
    fields: &'a Fields,
    expected: usize,
}

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a member")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        if self.fields.get(self.expected).is_some_and(|f| f.name() == name) {
            return Ok(Some(self.expected));
        }
        Ok(self.fields.iter().position(|f| f.name() == name))
    }
}

/// A value into its column.
struct Value<'a> {
    column: &'a mut Column,
    missing_is_bad: bool,
    at: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match &self.column.values {
            // Their text as it stands: digits that a double would lose, JSON in a string column.
            Values::Text(_)
            | Values::Binary(_)
            | Values::Decimal(..)
            | Values::Int8(_)
            | Values::Int16(_)
            | Values::Int32(_)
            | Values::Int64(_)
            | Values::UInt8(_)
            | Values::UInt16(_)
            | Values::UInt32(_)
            | Values::UInt64(_) => {
                let raw = <&RawValue as serde::Deserialize>::deserialize(deserializer)?;
                push_raw(raw.get(), self.column).map_err(D::Error::custom)
            }
            _ => deserializer.deserialize_any(self),
        }
    }
}

fn push_null(column: &mut Column) -> Result<(), &'static str> {
    if !column.nullable {
        return Err("may not be null");
    }
    column.push_null();
    Ok(())
}

/// Text, bytes, an integer or a decimal from the JSON text of a value.
fn push_raw(raw: &str, column: &mut Column) -> Result<(), String> {
    if raw == "null" {
        return push_null(column).map_err(str::to_owned);
    }
    let inner = raw.strip_prefix('"').and_then(|r| r.strip_suffix('"'));
    let unescaped: String;
    let (text, quoted) = match inner {
        None => (raw, false),
        Some(inner) if memchr::memchr(b'\\', inner.as_bytes()).is_none() => (inner, true),
        Some(_) => {
            unescaped = serde_json::from_str(raw).map_err(|e| said(&e))?;
            (unescaped.as_str(), true)
        }
    };
    match &mut column.values {
        Values::Text(v) => v.push(text.as_bytes()).then_some(()).ok_or(TOO_LARGE)?,
        Values::Binary(v) if quoted => {
            let bytes = BASE64.decode(text).map_err(|e| format!("no base64 ({e})"))?;
            v.push(&bytes).then_some(()).ok_or(TOO_LARGE)?;
        }
        Values::Binary(_) => return Err("expected a string in base64".into()),
        _ => return parse_into(text, column).map_err(|NotThat(what)| format!("'{}' is {what}", shortened(text))),
    }
    column.pushed();
    Ok(())
}

const TOO_LARGE: &str = "more than 2 GiB of text in a batch";

/// As much of a value as belongs in a message.
fn shortened(text: &str) -> &str {
    match text.char_indices().nth(60) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.column.values {
            Values::Boolean(_) => "true or false",
            Values::Float32(_) | Values::Float64(_) => "a number",
            Values::Date(_) => "a date as a string",
            Values::Time(..) => "a time stamp as a string",
            Values::Struct(..) | Values::Map(..) => "an object",
            Values::List(..) => "an array",
            _ => "another value",
        })
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        push_null(self.column).map_err(E::custom)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        let Values::Boolean(v) = &mut self.column.values else {
            return Err(E::invalid_type(serde::de::Unexpected::Bool(value), &self));
        };
        v.append(value);
        self.column.pushed();
        Ok(())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        match &mut self.column.values {
            Values::Float32(_) if value.abs() > f64::from(f32::MAX) => {
                return Err(E::custom(format!("{value} does not fit")));
            }
            Values::Float32(v) => v.push(value as f32),
            Values::Float64(v) => v.push(value),
            _ => return Err(E::invalid_type(serde::de::Unexpected::Float(value), &self)),
        }
        self.column.pushed();
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        if matches!(self.column.values, Values::Struct(..) | Values::Map(..) | Values::List(..)) {
            return Err(E::invalid_type(serde::de::Unexpected::Str(shortened(text)), &self));
        }
        parse_into(text, self.column).map_err(|NotThat(what)| E::custom(format!("'{}' is {what}", shortened(text))))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        match &mut self.column.values {
            Values::Struct(columns, fields) => {
                Object { columns, fields, missing_is_bad: self.missing_is_bad, at: self.at }.visit_map(map)?;
            }
            Values::Map(ends, entries, _) => {
                let [keys, values] = &mut **entries;
                while map.next_key_seed(Value { column: keys, missing_is_bad: false, at: &mut *self.at })?.is_some() {
                    let value = Value { column: values, missing_is_bad: self.missing_is_bad, at: &mut *self.at };
                    if let Err(e) = map.next_value_seed(value) {
                        self.at.push("[a value]".into());
                        return Err(e);
                    }
                }
                ends.push(i32::try_from(keys.len()).map_err(|_| A::Error::custom(TOO_LARGE))?);
            }
            _ => return Err(A::Error::invalid_type(serde::de::Unexpected::Map, &self)),
        }
        self.column.pushed();
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Values::List(ends, column, _) = &mut self.column.values else {
            return Err(A::Error::invalid_type(serde::de::Unexpected::Seq, &self));
        };
        let first = column.len();
        loop {
            let item = Value { column, missing_is_bad: self.missing_is_bad, at: &mut *self.at };
            match items.next_element_seed(item) {
                Ok(Some(())) => {}
                Ok(None) => break,
                Err(e) => {
                    self.at.push(format!("[{}]", column.len() - first));
                    return Err(e);
                }
            }
        }
        ends.push(i32::try_from(column.len()).map_err(|_| A::Error::custom(TOO_LARGE))?);
        self.column.pushed();
        Ok(())
    }
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
