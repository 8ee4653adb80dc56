//! The column of a record's headers.

use std::sync::Arc;

use arrow_schema::{DataType, Field, Fields};

/// A map of names to bytes, in their order; a name may stand there several times.
pub(crate) fn column_type() -> DataType {
    let entry =
        Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Binary, true)]);
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entry), false)), false)
}
