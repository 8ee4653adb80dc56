//! What the reader wants of each record, and the steps that lead there from what was written.
//!
//! Source: the specification of Apache Avro 1.12, "Schema Resolution".

use std::sync::Arc;

use arrow_schema::{DataType, Field as ArrowField, FieldRef, Fields as ArrowFields, TimeUnit};
use serde_json::Value;

use super::binary::{Input, put_bytes, put_long};
use super::schema::{Field, Id, Kind, Logical, Node, Schema};
use crate::columns::{Column, check_type};
use crate::time::digits_of;

type Result<T> = std::result::Result<T, String>;

/// A column that the reader wants, or a part of one.
pub(super) struct Wanted {
    pub(super) field: FieldRef,
    /// Other names that it may have where it was written.
    aliases: Vec<String>,
    /// What stands for it where it was not written.
    default: Option<Arc<Preset>>,
    /// Of an enum: those that are known, and what stands for others.
    symbols: Option<(Vec<String>, Option<String>)>,
    /// The columns of a row, the item of a list, the value of a map.
    parts: Vec<Wanted>,
}

/// A default, encoded.
pub(super) struct Preset {
    bytes: Vec<u8>,
    step: Step,
    schema: Arc<Schema>,
}

/// How records of a schema become rows.
pub(super) struct Plan {
    schema: Arc<Schema>,
    fields: Fields,
}

/// How a record becomes a row of columns.
pub(super) struct Fields {
    /// By column.
    pub(super) names: Vec<String>,
    /// In the order in which they were written.
    pub(super) parts: Vec<Part>,
    /// Columns that were not written; `None`: they are null.
    pub(super) absent: Vec<(usize, Option<Arc<Preset>>)>,
}

pub(super) enum Part {
    Into(usize, Step),
    /// What nobody wants.
    Over(Id),
}

/// How a value gets into a column.
pub(super) enum Step {
    Null,
    Value(Read),
    Record(Fields),
    List(Box<Step>),
    Map(Box<Step>),
    /// By branch; an error says why its values have no place in the column.
    Union(Vec<Result<Step>>),
}

/// A value without parts.
pub(super) enum Read {
    Boolean,
    /// An integer, of which the column gets `times` as much and then an `over`-th.
    Whole {
        long: bool,
        times: i64,
        over: i64,
    },
    Float,
    Double,
    /// Bytes that must be UTF-8.
    Text,
    /// As many as stand in front of them, or as the type has.
    Bytes(Option<usize>),
    Uuid,
    /// By symbol as written: what the column gets.
    Symbol(Vec<Option<String>>),
    /// Bytes as above, of a number that the column gets times 10 to the `shift`.
    Decimal {
        len: Option<usize>,
        shift: i32,
    },
}

impl Wanted {
    /// The columns of a table, or one of them; otherwise it names a column that has no form in Avro.
    pub(super) fn of_arrow(field: &FieldRef) -> Result<Self> {
        let no_form = || format!("column '{}' of type {} has no form in Avro", field.name(), field.data_type());
        let parts = match field.data_type() {
            DataType::Struct(fields) if !fields.is_empty() => {
                fields.iter().map(Self::of_arrow).collect::<Result<_>>()?
            }
            DataType::List(item) => vec![Self::of_arrow(item)?],
            DataType::Map(entries, _) => match entries.data_type() {
                DataType::Struct(kv) if kv.len() == 2 && kv[0].data_type() == &DataType::Utf8 => {
                    vec![Self::of_arrow(&kv[1])?]
                }
                _ => return Err(no_form()),
            },
            DataType::Struct(_) => return Err(no_form()),
            DataType::Time32(TimeUnit::Millisecond) | DataType::Time64(TimeUnit::Microsecond) => Vec::new(),
            _ => check_type(field).map(|()| Vec::new()).map_err(|_| no_form())?,
        };
        Ok(Self { field: field.clone(), aliases: Vec::new(), default: None, symbols: None, parts })
    }

    /// What a reader's schema asks for; its type must be a record.
    pub(super) fn of_reader(schema: &Arc<Schema>) -> Result<Self> {
        match schema.node(schema.root).kind {
            Kind::Record(_) => Self::of_avro(schema, schema.root, "", &mut Vec::new()),
            ref other => Err(format!("the schema of a table is a record, not {}", other.name())),
        }
    }

    /// `open`: the records that this one stands in.
    fn of_avro(schema: &Arc<Schema>, id: Id, name: &str, open: &mut Vec<Id>) -> Result<Self> {
        let (id, nullable) = match &schema.node(id).kind {
            Kind::Union(branches) => {
                let mut values = branches.iter().filter(|&&b| !matches!(schema.node(b).kind, Kind::Null));
                match (values.next(), values.next()) {
                    (Some(&value), None) => (value, branches.len() > 1),
                    _ => return Err("no column holds a union but that of null and one type".into()),
                }
            }
            _ => (id, false),
        };
        let node = schema.node(id);
        let (mut symbols, mut parts) = (None, Vec::new());
        let data_type = match &node.kind {
            Kind::Enum { symbols: known, default } => {
                symbols = Some((known.clone(), default.clone()));
                DataType::Utf8
            }
            Kind::Array(items) => {
                parts.push(Self::of_avro(schema, *items, "item", open)?);
                DataType::List(parts[0].field.clone())
            }
            Kind::Map(values) => {
                parts.push(Self::of_avro(schema, *values, "value", open)?);
                let key = Arc::new(ArrowField::new("key", DataType::Utf8, false));
                let entries = DataType::Struct(vec![key, parts[0].field.clone()].into());
                DataType::Map(Arc::new(ArrowField::new("entries", entries, false)), false)
            }
            Kind::Record(fields) => {
                if open.contains(&id) {
                    return Err("no column holds a record that contains itself".into());
                }
                open.push(id);
                for field in fields {
                    let part = Self::of_field(schema, field, open);
                    parts.push(part.map_err(|e| format!("{}: {e}", field.name))?);
                }
                open.pop();
                DataType::Struct(parts.iter().map(|p| p.field.clone()).collect::<ArrowFields>())
            }
            _ => column_of(node).ok_or_else(|| format!("no column holds {}", node.kind.name()))?,
        };
        if parts.is_empty() && data_type.is_nested() {
            return Err("a record without fields".into());
        }
        let field = Arc::new(ArrowField::new(name, data_type, nullable));
        Ok(Self { field, aliases: Vec::new(), default: None, symbols, parts })
    }

    fn of_field(schema: &Arc<Schema>, field: &Field, open: &mut Vec<Id>) -> Result<Self> {
        let mut wanted = Self::of_avro(schema, field.of, &field.name, open)?;
        wanted.aliases.clone_from(&field.aliases);
        if let Some(default) = &field.default {
            let mut bytes = Vec::new();
            encode_default(schema, field.of, default, &mut bytes)?;
            let preset = Preset { bytes, step: Step::of(schema, field.of, &wanted)?, schema: schema.clone() };
            // What no column can hold is refused now rather than with each record.
            let mut column = Column::new(&wanted.field).map_err(|e| e.to_string())?;
            preset.read(&mut column).map_err(|e| format!("its default: {e}"))?;
            wanted.default = Some(Arc::new(preset));
        }
        Ok(wanted)
    }
}

impl Preset {
    /// Adds the default to its column.
    pub(super) fn read(&self, column: &mut Column) -> Result<()> {
        self.step.read(&mut Input::new(&self.bytes, &self.schema), column)
    }
}

/// The column for values without parts.
fn column_of(node: &Node) -> Option<DataType> {
    Some(match (&node.kind, node.logical) {
        (Kind::Boolean, _) => DataType::Boolean,
        (Kind::Int, Logical::Date) => DataType::Date32,
        (Kind::Int, Logical::TimeMillis) => DataType::Time32(TimeUnit::Millisecond),
        (Kind::Int, _) => DataType::Int32,
        (Kind::Long, Logical::TimeMicros) => DataType::Time64(TimeUnit::Microsecond),
        (Kind::Long, Logical::Moment { digits, local }) => {
            let unit = match digits {
                3 => TimeUnit::Millisecond,
                6 => TimeUnit::Microsecond,
                _ => TimeUnit::Nanosecond,
            };
            DataType::Timestamp(unit, (!local).then(|| "UTC".into()))
        }
        (Kind::Long, _) => DataType::Int64,
        (Kind::Float, _) => DataType::Float32,
        (Kind::Double, _) => DataType::Float64,
        (Kind::Text, _) | (Kind::Fixed(_), Logical::Uuid) => DataType::Utf8,
        (Kind::Bytes | Kind::Fixed(_), Logical::Decimal { precision, scale }) => {
            (precision <= 38).then_some(DataType::Decimal128(precision, scale as i8))?
        }
        (Kind::Bytes | Kind::Fixed(_), _) => DataType::Binary,
        _ => return None,
    })
}

/// A default as its type is encoded: that of the first branch that it fits in a union.
fn encode_default(schema: &Schema, id: Id, json: &Value, out: &mut Vec<u8>) -> Result<()> {
    let unfit = || format!("its default {json} is no {}", schema.node(id).kind.name());
    let int = || json.as_i64().ok_or_else(unfit);
    let text = || json.as_str().ok_or_else(unfit);
    // Each character stands for a byte.
    let bytes = || text()?.chars().map(|c| u8::try_from(u32::from(c)).map_err(|_| unfit())).collect::<Result<Vec<_>>>();
    match &schema.node(id).kind {
        Kind::Null => json.is_null().then_some(()).ok_or_else(unfit)?,
        Kind::Boolean => out.push(json.as_bool().ok_or_else(unfit)?.into()),
        Kind::Int => put_long(i32::try_from(int()?).map_err(|_| unfit())?.into(), out),
        Kind::Long => put_long(int()?, out),
        Kind::Float => out.extend_from_slice(&(json.as_f64().ok_or_else(unfit)? as f32).to_le_bytes()),
        Kind::Double => out.extend_from_slice(&json.as_f64().ok_or_else(unfit)?.to_le_bytes()),
        Kind::Bytes => put_bytes(&bytes()?, out),
        Kind::Fixed(len) => out.extend_from_slice(&Some(bytes()?).filter(|b| b.len() == *len).ok_or_else(unfit)?),
        Kind::Text => put_bytes(text()?.as_bytes(), out),
        Kind::Enum { symbols, .. } => {
            let symbol = text()?;
            put_long(symbols.iter().position(|s| s == symbol).ok_or_else(unfit)? as i64, out);
        }
        Kind::Record(fields) => {
            let object = json.as_object().ok_or_else(unfit)?;
            for field in fields {
                let value = object.get(&field.name).or(field.default.as_ref()).ok_or_else(unfit)?;
                encode_default(schema, field.of, value, out)?;
            }
        }
        Kind::Array(of) => {
            let items = json.as_array().ok_or_else(unfit)?;
            for item in items {
                put_long(1, out);
                encode_default(schema, *of, item, out)?;
            }
            out.push(0);
        }
        Kind::Map(of) => {
            for (key, value) in json.as_object().ok_or_else(unfit)? {
                put_long(1, out);
                put_bytes(key.as_bytes(), out);
                encode_default(schema, *of, value, out)?;
            }
            out.push(0);
        }
        Kind::Union(branches) => {
            let start = out.len();
            for (i, &branch) in branches.iter().enumerate() {
                put_long(i as i64, out);
                if encode_default(schema, branch, json, out).is_ok() {
                    return Ok(());
                }
                out.truncate(start);
            }
            return Err(unfit());
        }
    }
    Ok(())
}

impl Plan {
    /// How records of `schema` become rows of the parts of `wanted`; otherwise it names a column that they have nothing for.
    pub(super) fn new(schema: Arc<Schema>, wanted: &Wanted) -> Result<Self> {
        let fields = match &schema.node(schema.root).kind {
            Kind::Record(written) => Fields::of(&schema, written, &wanted.parts)?,
            other => return Err(format!("the schema is no record, but {}", other.name())),
        };
        Ok(Self { schema, fields })
    }

    /// Adds the row of a record; half of one may be left behind an error.
    pub(super) fn read(&self, record: &[u8], columns: &mut [Column]) -> Result<()> {
        let mut input = Input::new(record, &self.schema);
        self.fields.read(&mut input, columns)?;
        input.end()
    }
}

impl Fields {
    fn of(schema: &Schema, written: &[Field], wanted: &[Wanted]) -> Result<Self> {
        // By what was written: who wants it. Names go before aliases.
        let mut takers = vec![None; written.len()];
        let mut found = vec![false; wanted.len()];
        let mut take = |column: usize, name: &str| {
            let at = written.iter().position(|w| w.name == name).filter(|&at| takers[at].is_none());
            if let (Some(at), false) = (at, found[column]) {
                (takers[at], found[column]) = (Some(column), true);
            }
        };
        wanted.iter().enumerate().for_each(|(i, w)| take(i, w.field.name()));
        wanted.iter().enumerate().for_each(|(i, w)| w.aliases.iter().for_each(|alias| take(i, alias)));
        let parts = written.iter().zip(&takers).map(|(field, taker)| match *taker {
            None => Ok(Part::Over(field.of)),
            Some(column) => {
                let step = Step::of(schema, field.of, &wanted[column]);
                Ok(Part::Into(column, step.map_err(|e| format!("{}: {e}", wanted[column].field.name()))?))
            }
        });
        let parts = parts.collect::<Result<_>>()?;
        let absent = wanted.iter().enumerate().filter(|(i, _)| !found[*i]).map(|(i, w)| match &w.default {
            None if !w.field.is_nullable() => Err(format!("{}: was not written, and has no default", w.field.name())),
            default => Ok((i, default.clone())),
        });
        let absent = absent.collect::<Result<_>>()?;
        Ok(Self { names: wanted.iter().map(|w| w.field.name().clone()).collect(), parts, absent })
    }
}

impl Step {
    fn of(schema: &Schema, id: Id, wanted: &Wanted) -> Result<Self> {
        let node = schema.node(id);
        let to = wanted.field.data_type();
        Ok(match (&node.kind, to) {
            (Kind::Union(branches), _) => {
                let steps: Vec<_> = branches.iter().map(|&b| Self::of(schema, b, wanted)).collect();
                // One value that can be read is enough: the other branches may never come.
                let mut values =
                    steps.iter().zip(branches).filter(|&(_, &b)| !matches!(schema.node(b).kind, Kind::Null)).peekable();
                if let Some((Err(e), _)) = values.peek().copied()
                    && values.all(|(step, _)| step.is_err())
                {
                    return Err(e.clone());
                }
                Self::Union(steps)
            }
            (Kind::Null, _) if wanted.field.is_nullable() => Self::Null,
            (Kind::Null, _) => return Err("may not be null".into()),
            (Kind::Record(fields), DataType::Struct(_)) => Self::Record(Fields::of(schema, fields, &wanted.parts)?),
            (Kind::Array(of), DataType::List(_)) => Self::List(Box::new(Self::of(schema, *of, &wanted.parts[0])?)),
            (Kind::Map(of), DataType::Map(..)) => Self::Map(Box::new(Self::of(schema, *of, &wanted.parts[0])?)),
            _ => Self::Value(Read::of(node, wanted).ok_or_else(|| {
                let logical = Some(node.logical).filter(|&l| l != Logical::None);
                let logical = logical.map_or(String::new(), |l| format!(" ({l:?})"));
                format!("what was written as {}{logical} cannot be read as {to}", node.kind.name())
            })?),
        })
    }
}

impl Read {
    fn of(node: &Node, wanted: &Wanted) -> Option<Self> {
        let to = wanted.field.data_type();
        let len = if let Kind::Fixed(len) = node.kind { Some(len) } else { None };
        Some(match (&node.kind, node.logical, to) {
            (Kind::Boolean, _, DataType::Boolean) => Self::Boolean,
            (Kind::Int, logical, _) => Self::whole(false, logical, to)?,
            (Kind::Long, logical, _) => Self::whole(true, logical, to)?,
            (Kind::Float, _, DataType::Float32 | DataType::Float64) => Self::Float,
            (Kind::Double, _, DataType::Float64) => Self::Double,
            (Kind::Text, _, DataType::Utf8) | (Kind::Bytes, Logical::None, DataType::Utf8) => Self::Text,
            (Kind::Fixed(16), Logical::Uuid, DataType::Utf8) => Self::Uuid,
            (Kind::Enum { symbols, .. }, _, DataType::Utf8) => {
                Self::Symbol(symbols.iter().map(|s| known_symbol(s, wanted)).collect())
            }
            (Kind::Text | Kind::Bytes | Kind::Fixed(_), _, DataType::Binary) => Self::Bytes(len),
            (Kind::Bytes | Kind::Fixed(_), Logical::Decimal { scale: from, .. }, DataType::Decimal128(_, scale)) => {
                Self::Decimal { len, shift: i32::from(*scale) - i32::from(from) }
            }
            _ => return None,
        })
    }

    /// Where the written type says nothing of its meaning, the column's is taken.
    fn whole(long: bool, logical: Logical, to: &DataType) -> Option<Self> {
        let (millis, micros) = (DataType::Time32(TimeUnit::Millisecond), DataType::Time64(TimeUnit::Microsecond));
        let (times, over) = match (logical, to) {
            (Logical::Moment { local: true, .. }, DataType::Timestamp(_, Some(_))) => return None,
            (Logical::Moment { digits, .. }, DataType::Timestamp(unit, _)) => {
                let wanted = digits_of(*unit);
                (10_i64.pow(wanted.saturating_sub(digits)), 10_i64.pow(digits.saturating_sub(wanted)))
            }
            (Logical::TimeMillis, to) if *to == micros => (1_000, 1),
            (Logical::TimeMicros, to) if *to == millis => (1, 1_000),
            (Logical::TimeMillis, to) if *to == millis => (1, 1),
            (Logical::TimeMicros, to) if *to == micros => (1, 1),
            (Logical::Date, DataType::Date32) => (1, 1),
            (Logical::None, DataType::Date32) if !long => (1, 1),
            (Logical::None, to) if (*to == millis && !long) || (*to == micros && long) => (1, 1),
            (Logical::None, DataType::Timestamp(..)) if long => (1, 1),
            (Logical::None, DataType::Float32 | DataType::Float64) => (1, 1),
            (_, to) if to.is_integer() => (1, 1),
            _ => return None,
        };
        Some(Self::Whole { long, times, over })
    }
}

/// What a column gets for a symbol.
fn known_symbol(symbol: &String, wanted: &Wanted) -> Option<String> {
    match &wanted.symbols {
        Some((known, default)) if !known.contains(symbol) => default.clone(),
        _ => Some(symbol.clone()),
    }
}
