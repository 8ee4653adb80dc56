//! Columns of what a record has besides its value.

use std::sync::Arc;

use arrow_array::ArrayRef;
use arrow_array::builder::{
    ArrayBuilder, BinaryBuilder, Int32Builder, Int64Builder, MapBuilder, MapFieldNames, StringBuilder,
    TimestampMillisecondBuilder,
};
use arrow_schema::{DataType, Field, TimeUnit};
use millstream_common::Result;

use super::headers::Headers;
use super::options::Metadata;
use super::queue::Record;
use super::splits::PartitionSplit;

pub(super) fn field(name: &str, what: Metadata) -> Arc<Field> {
    let (kind, nullable) = match what {
        Metadata::Topic => (DataType::Utf8, false),
        Metadata::Partition => (DataType::Int32, false),
        Metadata::Offset => (DataType::Int64, false),
        Metadata::Timestamp => (DataType::Timestamp(TimeUnit::Millisecond, None), true),
        Metadata::Key => (DataType::Binary, true),
        Metadata::Headers => (crate::headers::column_type(), false),
    };
    Arc::new(Field::new(name, kind, nullable))
}

enum Column {
    Topic(StringBuilder),
    Partition(Int32Builder),
    Offset(Int64Builder),
    Timestamp(TimestampMillisecondBuilder),
    Key(BinaryBuilder),
    Headers(Box<MapBuilder<StringBuilder, BinaryBuilder>>),
}

/// The metadata of the rows of a batch.
pub(super) struct Columns(Vec<Column>);

impl Columns {
    pub(super) fn new(wanted: &[(String, Metadata)]) -> Self {
        let names = MapFieldNames { entry: "entries".into(), key: "key".into(), value: "value".into() };
        let column = |what: &Metadata| match what {
            Metadata::Topic => Column::Topic(StringBuilder::new()),
            Metadata::Partition => Column::Partition(Int32Builder::new()),
            Metadata::Offset => Column::Offset(Int64Builder::new()),
            Metadata::Timestamp => Column::Timestamp(TimestampMillisecondBuilder::new()),
            Metadata::Key => Column::Key(BinaryBuilder::new()),
            Metadata::Headers => Column::Headers(Box::new(MapBuilder::new(
                Some(names.clone()),
                StringBuilder::new(),
                BinaryBuilder::new(),
            ))),
        };
        Self(wanted.iter().map(|(_, what)| column(what)).collect())
    }

    /// The headers of a record, if somebody wants them.
    pub(super) fn headers<'a>(&self, record: Record<'a>) -> Result<Headers<'a>> {
        let wanted = self.0.iter().any(|column| matches!(column, Column::Headers(_)));
        if wanted { record.headers() } else { Ok(Vec::new()) }
    }

    /// Adds those of a record of `split`, for as many rows as it has.
    pub(super) fn push(&mut self, split: &PartitionSplit, record: Record<'_>, headers: &Headers<'_>, rows: usize) {
        for column in &mut self.0 {
            for _ in 0..rows {
                match column {
                    Column::Topic(b) => b.append_value(&split.topic),
                    Column::Partition(b) => b.append_value(split.partition),
                    Column::Offset(b) => b.append_value(record.offset()),
                    Column::Timestamp(b) => b.append_option(record.timestamp_ms()),
                    Column::Key(b) => b.append_option(record.key()),
                    Column::Headers(b) => {
                        for (name, value) in headers {
                            b.keys().append_value(name);
                            b.values().append_option(*value);
                        }
                        // Keys and values are of one length: both were just given one each.
                        let _ = b.append(true);
                    }
                }
            }
        }
    }

    pub(super) fn take(&mut self) -> impl Iterator<Item = ArrayRef> {
        self.0.iter_mut().map(|column| match column {
            Column::Topic(b) => ArrayBuilder::finish(b),
            Column::Partition(b) => ArrayBuilder::finish(b),
            Column::Offset(b) => ArrayBuilder::finish(b),
            Column::Timestamp(b) => ArrayBuilder::finish(b),
            Column::Key(b) => ArrayBuilder::finish(b),
            Column::Headers(b) => ArrayBuilder::finish(&mut **b),
        })
    }
}
