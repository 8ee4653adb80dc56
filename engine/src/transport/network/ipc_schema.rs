//! Which schemas cross between processes, checked on both ends.
//!
//! The decoder of arrow-ipc panics on a schema message that no writer makes (an integer of 7 bits, a list without a
//! child); so what it would stumble over is refused here first. Never looks at rows.

use arrow_ipc::{DateUnit, Endianness, IntervalUnit, Precision, TimeUnit, Type, UnionMode};
use arrow_ipc::{Field as FieldMessage, Schema as SchemaMessage};
use arrow_schema::{DataType, Field, Schema};
use millstream_common::{Error, Result};

use super::frame::bad;

/// How deep fields may nest.
const DEPTH_MAX: u32 = 32;
/// A dense union's type ids are non-negative `i8`s.
const UNION_FIELDS_MAX: usize = 128;

/// Whether batches of `schema` can be sent. A config error names the column that cannot.
pub(super) fn check_sendable(schema: &Schema) -> Result<()> {
    schema.fields().iter().try_for_each(|field| sendable(field, 0))
}

fn sendable(field: &Field, depth: u32) -> Result<()> {
    let children: Vec<&Field> = match field.data_type() {
        DataType::Dictionary(..) | DataType::RunEndEncoded(..) | DataType::ListView(_) | DataType::LargeListView(_) => {
            let what = format!("a column of type {} cannot go from process to process", field.data_type());
            let next = "cast it to its plain type before the exchange";
            return Err(Error::config(what).code(1124).at(format!("column {}", field.name())).next(next));
        }
        DataType::List(child) | DataType::LargeList(child) | DataType::Map(child, _) => vec![child.as_ref()],
        DataType::FixedSizeList(child, _) => vec![child.as_ref()],
        DataType::Struct(fields) => fields.iter().map(AsRef::as_ref).collect(),
        DataType::Union(fields, _) => fields.iter().map(|(_, field)| field.as_ref()).collect(),
        _ => Vec::new(),
    };
    if depth >= DEPTH_MAX {
        let what = format!("types that nest deeper than {DEPTH_MAX} cannot go from process to process");
        return Err(Error::config(what).code(1124).at(format!("column {}", field.name())));
    }
    children.into_iter().try_for_each(|child| sendable(child, depth + 1))
}

/// Whether the decoder can read `schema`.
pub(super) fn check_schema_message(schema: &SchemaMessage<'_>) -> Result<()> {
    if schema.endianness() != Endianness::Little {
        return Err(bad("a schema that is not little-endian"));
    }
    let fields = schema.fields().ok_or_else(|| bad("a schema without fields"))?;
    fields.iter().try_for_each(|field| check_field(&field, 0))
}

fn check_field(field: &FieldMessage<'_>, depth: u32) -> Result<()> {
    if depth > DEPTH_MAX {
        return Err(bad("a schema that nests too deep"));
    }
    let children = field.children().map_or(0, |c| c.len());
    let fits = field.dictionary().is_none()
        && match field.type_type() {
            Type::List | Type::LargeList => children == 1,
            Type::FixedSizeList => children == 1 && field.type_as_fixed_size_list().is_some_and(|t| t.listSize() > 0),
            Type::Map => field.type_as_map().is_some() && map_child_fits(field),
            Type::Struct_ => true,
            Type::Union => union_fits(field, children),
            _ => children == 0 && leaf_fits(field),
        };
    if !fits {
        let name = field.name().unwrap_or_default();
        return Err(bad(format!("a schema whose column '{name}' is of no known type ({:?})", field.type_type())));
    }
    match field.children() {
        Some(children) => children.iter().try_for_each(|child| check_field(&child, depth + 1)),
        None => Ok(()),
    }
}

/// A map's child is a struct of key and value without nulls of its own.
fn map_child_fits(field: &FieldMessage<'_>) -> bool {
    let Some(children) = field.children().filter(|c| c.len() == 1) else { return false };
    let entries = children.get(0);
    entries.type_type() == Type::Struct_
        && entries.dictionary().is_none()
        && entries.children().is_some_and(|c| c.len() == 2)
}

fn union_fits(field: &FieldMessage<'_>, children: usize) -> bool {
    let Some(union) = field.type_as_union() else { return false };
    if children > UNION_FIELDS_MAX || ![UnionMode::Dense, UnionMode::Sparse].contains(&union.mode()) {
        return false;
    }
    let Some(ids) = union.typeIds() else { return true };
    let mut seen = 0u128;
    ids.len() == children
        && ids.iter().all(|id| {
            let bit = u32::try_from(id).ok().and_then(|id| 1u128.checked_shl(id));
            let fresh = bit.is_some_and(|bit| seen & bit == 0);
            seen |= bit.unwrap_or(0);
            fresh
        })
}

fn leaf_fits(field: &FieldMessage<'_>) -> bool {
    match field.type_type() {
        Type::Null | Type::Bool => true,
        Type::Binary | Type::LargeBinary | Type::BinaryView | Type::Utf8 | Type::LargeUtf8 | Type::Utf8View => true,
        Type::Int => field.type_as_int().is_some_and(|t| [8, 16, 32, 64].contains(&t.bitWidth())),
        Type::FloatingPoint => field
            .type_as_floating_point()
            .is_some_and(|t| [Precision::HALF, Precision::SINGLE, Precision::DOUBLE].contains(&t.precision())),
        Type::FixedSizeBinary => field.type_as_fixed_size_binary().is_some_and(|t| t.byteWidth() > 0),
        Type::Decimal => field.type_as_decimal().is_some_and(|t| {
            let digits = match t.bitWidth() {
                32 => 9,
                64 => 18,
                128 => 38,
                256 => 76,
                _ => 0,
            };
            (1..=digits).contains(&t.precision()) && i8::try_from(t.scale()).is_ok()
        }),
        Type::Date => field.type_as_date().is_some_and(|t| [DateUnit::DAY, DateUnit::MILLISECOND].contains(&t.unit())),
        Type::Time => field.type_as_time().is_some_and(|t| match t.bitWidth() {
            32 => [TimeUnit::SECOND, TimeUnit::MILLISECOND].contains(&t.unit()),
            64 => [TimeUnit::MICROSECOND, TimeUnit::NANOSECOND].contains(&t.unit()),
            _ => false,
        }),
        Type::Timestamp => field.type_as_timestamp().is_some_and(|t| time_unit_fits(t.unit())),
        Type::Duration => field.type_as_duration().is_some_and(|t| time_unit_fits(t.unit())),
        Type::Interval => field.type_as_interval().is_some_and(|t| {
            [IntervalUnit::YEAR_MONTH, IntervalUnit::DAY_TIME, IntervalUnit::MONTH_DAY_NANO].contains(&t.unit())
        }),
        _ => false,
    }
}

fn time_unit_fits(unit: TimeUnit) -> bool {
    [TimeUnit::SECOND, TimeUnit::MILLISECOND, TimeUnit::MICROSECOND, TimeUnit::NANOSECOND].contains(&unit)
}
