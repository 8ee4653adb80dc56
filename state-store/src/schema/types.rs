//! Names of column types in stored schemas. They are durable: Arrow's own texts may change between its releases.

use arrow_schema::{DataType, IntervalUnit, TimeUnit};

/// Types without parameters, by name.
const PLAIN: &[(&str, DataType)] = &[
    ("bool", DataType::Boolean),
    ("int8", DataType::Int8),
    ("int16", DataType::Int16),
    ("int32", DataType::Int32),
    ("int64", DataType::Int64),
    ("uint8", DataType::UInt8),
    ("uint16", DataType::UInt16),
    ("uint32", DataType::UInt32),
    ("uint64", DataType::UInt64),
    ("float16", DataType::Float16),
    ("float32", DataType::Float32),
    ("float64", DataType::Float64),
    ("date32", DataType::Date32),
    ("date64", DataType::Date64),
    ("time32_s", DataType::Time32(TimeUnit::Second)),
    ("time32_ms", DataType::Time32(TimeUnit::Millisecond)),
    ("time64_us", DataType::Time64(TimeUnit::Microsecond)),
    ("time64_ns", DataType::Time64(TimeUnit::Nanosecond)),
    ("timestamp_s", DataType::Timestamp(TimeUnit::Second, None)),
    ("timestamp_ms", DataType::Timestamp(TimeUnit::Millisecond, None)),
    ("timestamp_us", DataType::Timestamp(TimeUnit::Microsecond, None)),
    ("timestamp_ns", DataType::Timestamp(TimeUnit::Nanosecond, None)),
    ("duration_s", DataType::Duration(TimeUnit::Second)),
    ("duration_ms", DataType::Duration(TimeUnit::Millisecond)),
    ("duration_us", DataType::Duration(TimeUnit::Microsecond)),
    ("duration_ns", DataType::Duration(TimeUnit::Nanosecond)),
    ("interval_months", DataType::Interval(IntervalUnit::YearMonth)),
    ("interval_days", DataType::Interval(IntervalUnit::DayTime)),
    ("interval_nanos", DataType::Interval(IntervalUnit::MonthDayNano)),
    ("utf8", DataType::Utf8),
    ("large_utf8", DataType::LargeUtf8),
    ("utf8_view", DataType::Utf8View),
    ("binary", DataType::Binary),
    ("large_binary", DataType::LargeBinary),
    ("binary_view", DataType::BinaryView),
];

/// The name of a type, as `timestamp_ms` or `decimal128(23,3)`; `None` for types that neither keys nor rows hold. A
/// dictionary has the name of its values' type.
#[must_use]
pub fn type_name(ty: &DataType) -> Option<String> {
    if let Some((name, _)) = PLAIN.iter().find(|(_, t)| t == ty) {
        return Some((*name).to_owned());
    }
    match ty {
        DataType::Dictionary(_, values) => type_name(values),
        DataType::FixedSizeBinary(width) => Some(format!("fixed_binary({width})")),
        DataType::Decimal32(p, s) => Some(format!("decimal32({p},{s})")),
        DataType::Decimal64(p, s) => Some(format!("decimal64({p},{s})")),
        DataType::Decimal128(p, s) => Some(format!("decimal128({p},{s})")),
        DataType::Decimal256(p, s) => Some(format!("decimal256({p},{s})")),
        DataType::Timestamp(unit, Some(zone)) => {
            type_name(&DataType::Timestamp(*unit, None)).map(|name| format!("{name}({zone})"))
        }
        _ => None,
    }
}

/// The type of a name; `None` when this release does not know it.
#[must_use]
pub fn type_of_name(name: &str) -> Option<DataType> {
    if let Some((_, ty)) = PLAIN.iter().find(|(n, _)| *n == name) {
        return Some(ty.clone());
    }
    let (head, inside) = name.strip_suffix(')')?.split_once('(')?;
    if head == "fixed_binary" {
        return inside.parse().ok().filter(|w| *w >= 0).map(DataType::FixedSizeBinary);
    }
    if let Some(DataType::Timestamp(unit, None)) = type_of_name(head) {
        return Some(DataType::Timestamp(unit, Some(inside.into())));
    }
    let (precision, scale) = inside.split_once(',')?;
    let (precision, scale) = (precision.parse().ok()?, scale.parse().ok()?);
    Some(match head {
        "decimal32" => DataType::Decimal32(precision, scale),
        "decimal64" => DataType::Decimal64(precision, scale),
        "decimal128" => DataType::Decimal128(precision, scale),
        "decimal256" => DataType::Decimal256(precision, scale),
        _ => return None,
    })
}

/// How the values of a column stand in a stored row, behind the marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnWidth {
    /// So many bytes, little endian, as Arrow has them.
    Fixed(usize),
    /// A length and bytes.
    Varying,
}

/// How values of a type stand in a stored row; `None` for types that rows cannot hold.
#[must_use]
pub fn column_width(ty: &DataType) -> Option<ColumnWidth> {
    match ty {
        DataType::Boolean => Some(ColumnWidth::Fixed(1)),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary => Some(ColumnWidth::Varying),
        DataType::FixedSizeBinary(width) => usize::try_from(*width).ok().map(ColumnWidth::Fixed),
        _ => ty.primitive_width().map(ColumnWidth::Fixed),
    }
}
