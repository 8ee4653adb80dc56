//! Schemas of states: what stands in keys and values, which forms the values of a state have had, and how a value of an
//! older form becomes one of the present form.
//!
//! A [`Schema`] describes one form; the table of states holds all that a state has had, oldest first. A value says by its
//! tag which of them it was written with ([`put_tag`]: nothing for the first one, two bytes for those that follow).
//! [`Upgrade`] is worked out once per older schema when a state is opened; it rewrites a value when that is read, so
//! nothing is rewritten ahead of time and what is resident is always of the newest form.
//!
//! Order of events: the program's [`Schema`] is compared with the newest stored one when a leader takes a job over
//! ([`crate::tree::Tree::add_state`]): equal, or another one is added to the history, or the start is refused. Workers
//! get the history with the tree.
//!
//! Nothing here reads or writes the store, and nothing here knows what a value means, but for rows of accumulators: how
//! those add up follows from their schema ([`AccumulatorMerge`]), so that the store merges them without the program.

mod accumulate;
mod codec;
mod history;
mod newest;
mod proto;
#[cfg(test)]
mod tests;
mod types;
mod upgrade;

use std::fmt;

use arrow_schema::{DataType, Field as ArrowField};
use millstream_common::hash::stable_hash;
use millstream_common::{Error, Result};

pub use accumulate::{ACCUMULATORS, Accumulate, AccumulatorMerge, MAX, MIN, SUM};
pub use codec::{UNTAGGED, damaged, put_bytes, put_i64, put_tag, put_u64, split_tag, take_bytes, take_i64, take_u64};
pub use newest::{Newest, UpgradeBuffers};
pub(crate) use proto::{schema_from_proto, schema_to_proto};
pub use types::{ColumnWidth, column_width, type_name, type_of_name};
pub use upgrade::{Upgrade, skip};

/// In a stored row: a column without a value.
pub const COLUMN_NULL: u8 = 0;
/// In a stored row: a column with a value, which follows.
pub const COLUMN_VALUE: u8 = 1;
/// The stamp of a value that does not expire.
pub const NEVER_EXPIRES: i64 = i64::MAX;
/// The kind of rows that are kept once: no column may be dropped from them, or rows that differed would be alike.
pub const DISTINCT_ROW: &str = "distinct row";

/// How a value, or a part of one, stands in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// Nothing: timers.
    Nothing,
    /// A signed number of 64 bits ([`put_i64`]).
    Integer,
    /// A column of a row: a marker, then the value as Arrow has it.
    Column(DataType),
    /// Its fields one after the other.
    Record {
        /// What it is, with what must not change: another kind is another state.
        kind: String,
        /// In the order of their bytes.
        fields: Vec<Field>,
    },
    /// How many, then each.
    List(Box<Form>),
    /// A length, then the form.
    Framed(Box<Form>),
    /// Bytes to the end of the value.
    Rest,
    /// Bytes of which only a text tells: another text is another state.
    Opaque(String),
}

/// A part of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Tells it from the others over all schemas of the state, whatever it is called.
    pub id: u32,
    /// For people.
    pub name: String,
    /// Whether a column may be null.
    pub nullable: bool,
    /// How it stands in bytes.
    pub form: Form,
    /// What values have that were written before the field was added, encoded; `None`: null, 0, or an empty list.
    pub default: Option<Vec<u8>>,
}

impl Field {
    /// A field with the id that goes with its name.
    #[must_use]
    pub fn new(name: &str, form: Form) -> Self {
        Self { id: field_id(name), name: name.to_owned(), nullable: false, form, default: None }
    }

    /// A column of a row, with its name, type and nullability.
    #[must_use]
    pub fn column(field: &ArrowField) -> Self {
        let form = Form::Column(field.data_type().clone());
        Self { nullable: field.is_nullable(), ..Self::new(field.name(), form) }
    }

    /// The same with another id: that of the field that it was before it was renamed, say.
    #[must_use]
    pub fn with_id(self, id: u32) -> Self {
        Self { id, ..self }
    }

    /// The same with a default (see [`Field::default`]).
    #[must_use]
    pub fn with_default(self, encoded: Vec<u8>) -> Self {
        Self { default: Some(encoded), ..self }
    }
}

/// The id of a field that has none of its own: from its name, never 0.
#[must_use]
pub fn field_id(name: &str) -> u32 {
    ((stable_hash(name.as_bytes()) >> 32) as u32).max(1)
}

/// A column of the key. Only its type matters; its name may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyColumn {
    /// For people.
    pub name: String,
    /// The type; a dictionary by its values.
    pub ty: DataType,
    /// Whether it may be null.
    pub nullable: bool,
}

impl KeyColumn {
    /// A column of rows as a part of their key.
    #[must_use]
    pub fn of(field: &ArrowField) -> Self {
        let mut ty = field.data_type();
        while let DataType::Dictionary(_, values) = ty {
            ty = values;
        }
        Self { name: field.name().clone(), ty: ty.clone(), nullable: field.is_nullable() }
    }
}

/// The clock by which values expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TtlClock {
    /// The watermark up to which the key group has fired.
    EventTime,
    /// The clock of the machine.
    ProcessingTime,
}

/// How long a value counts after it was last written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ttl {
    /// Milliseconds, at least 1.
    pub duration_ms: i64,
    /// By which clock.
    pub clock: TtlClock,
}

/// One form that the entries of a state have had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    /// The columns of the key; empty when they are not known.
    pub key: Vec<KeyColumn>,
    /// Of a map state: the columns of the map key, which follows the key; empty when they are not known.
    pub map_key: Vec<KeyColumn>,
    /// The value. With a TTL it stands behind its stamp: when it expires, as [`put_i64`] writes it.
    pub value: Form,
    /// How long values count.
    pub ttl: Option<Ttl>,
}

impl Schema {
    /// Refuses what cannot be stored, or could not be told apart later: types without a name, two fields of a record with
    /// one id, a TTL of nothing.
    pub fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::config(what).code(1208).next("describe the state otherwise"));
        if let Some(column) = self.key.iter().chain(&self.map_key).find(|c| type_name(&c.ty).is_none()) {
            return bad(format!(
                "the key column '{}' of a state is {}: this cannot be described",
                column.name, column.ty
            ));
        }
        if self.ttl.is_some_and(|t| t.duration_ms < 1) {
            return bad("the TTL of a state is less than a millisecond".to_owned());
        }
        self.value.check().or_else(bad)
    }
}

impl Form {
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Column(ty) if column_width(ty).is_none() || type_name(ty).is_none() => {
                Err(format!("a value of a state has a column of type {ty}: this cannot be described"))
            }
            Self::Record { fields, .. } => {
                for (i, field) in fields.iter().enumerate() {
                    if let Some(other) = fields[..i].iter().find(|f| f.id == field.id) {
                        return Err(format!("the fields '{}' and '{}' of a state have one id", other.name, field.name));
                    }
                    field.form.check()?;
                }
                Ok(())
            }
            Self::List(form) | Self::Framed(form) => form.check(),
            Self::Nothing | Self::Integer | Self::Column(_) | Self::Rest | Self::Opaque(_) => Ok(()),
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Integer => f.write_str("integer"),
            Self::Column(ty) => f.write_str(&type_name(ty).unwrap_or_else(|| ty.to_string())),
            Self::Record { kind, fields } => {
                if !kind.is_empty() {
                    write!(f, "{kind} ")?;
                }
                f.write_str("(")?;
                for (i, field) in fields.iter().enumerate() {
                    let (comma, null) = (if i == 0 { "" } else { ", " }, if field.nullable { "?" } else { "" });
                    write!(f, "{comma}{}: {}{null}", field.name, field.form)?;
                }
                f.write_str(")")
            }
            Self::List(item) => write!(f, "list of {item}"),
            Self::Framed(form) => form.fmt(f),
            Self::Rest => f.write_str("bytes"),
            Self::Opaque(text) => write!(f, "bytes '{text}'"),
        }
    }
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clock = match self.clock {
            TtlClock::EventTime => "event time",
            TtlClock::ProcessingTime => "processing time",
        };
        write!(f, "{} ms of {clock}", self.duration_ms)
    }
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, columns) in [("key", &self.key), ("map key", &self.map_key)] {
            if columns.is_empty() {
                continue;
            }
            write!(f, "{what} (")?;
            for (i, column) in columns.iter().enumerate() {
                let (comma, null) = (if i == 0 { "" } else { ", " }, if column.nullable { "?" } else { "" });
                let ty = type_name(&column.ty).unwrap_or_else(|| column.ty.to_string());
                write!(f, "{comma}{}: {ty}{null}", column.name)?;
            }
            f.write_str("), ")?;
        }
        if !(self.key.is_empty() && self.map_key.is_empty()) {
            f.write_str("value ")?;
        }
        self.value.fmt(f)?;
        self.ttl.map_or(Ok(()), |ttl| write!(f, ", expires after {ttl}"))
    }
}
