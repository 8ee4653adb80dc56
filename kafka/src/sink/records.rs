//! Rows of a batch as records.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, TimestampMillisecondType, UInt8Type};
use arrow_array::{Array, BooleanArray, Int32Array, MapArray, PrimitiveArray, RecordBatch, StringArray};
use arrow_schema::{DataType, Schema, SchemaRef, TimeUnit};
use arrow_select::filter::filter_record_batch;
use millstream_common::{Error, Result};
use millstream_engine::element::{ROW_KIND_COLUMN, RowKind};
use millstream_formats::{Encoder, EncodingFormat, Records};

use super::options::{KafkaSinkOptions, ToTopic};
use super::produce::Outgoing;

/// Turns batches of one schema into records.
pub(super) struct RecordMaker {
    topic: Topic,
    /// The changes are told apart here: rows before a change are left out, deletions become tombstones.
    upsert: bool,
    value: Encoded,
    key: Option<Encoded>,
    partition: Option<usize>,
    timestamp: Option<usize>,
    headers: Option<usize>,
}

enum Topic {
    Named(String),
    Column(usize),
}

/// Some columns in a format.
struct Encoded {
    /// `None`: all of them.
    columns: Option<Vec<usize>>,
    encoder: Box<dyn Encoder>,
    records: Records,
}

impl Encoded {
    fn new(schema: &SchemaRef, columns: Vec<usize>, format: &dyn EncodingFormat) -> Result<Self> {
        let all = columns.iter().copied().eq(0..schema.fields().len());
        let of = if all { schema.clone() } else { Arc::new(project(schema, &columns)?) };
        Ok(Self { columns: (!all).then_some(columns), encoder: format.encoder(&of)?, records: Records::default() })
    }

    /// One record a row.
    fn encode(&mut self, batch: &RecordBatch) -> Result<()> {
        self.records.clear();
        match &self.columns {
            None => self.encoder.encode(batch, &mut self.records)?,
            Some(columns) => {
                let some = batch.project(columns).map_err(|e| Error::internal("columns of a batch").source(e))?;
                self.encoder.encode(&some, &mut self.records)?;
            }
        }
        if self.records.len() != batch.num_rows() {
            let (made, rows) = (self.records.len(), batch.num_rows());
            return Err(Error::config(format!("the format makes {made} records of {rows} rows"))
                .code(1364)
                .next("use a format that makes one of each, or have it write changes by itself"));
        }
        Ok(())
    }
}

fn project(schema: &Schema, columns: &[usize]) -> Result<Schema> {
    schema.project(columns).map_err(|e| Error::internal("columns of a schema").source(e))
}

impl RecordMaker {
    /// For batches of `schema`. An error names the column that is not there, or is of another type.
    pub(super) fn new(schema: &SchemaRef, options: &KafkaSinkOptions) -> Result<Self> {
        let topic = match &options.topic {
            ToTopic::Named(name) => Topic::Named(name.clone()),
            ToTopic::Column(name) => Topic::Column(column(schema, name, &DataType::Utf8, "names the topic")?),
        };
        let of = |name: &Option<String>, kind: DataType, what: &str| {
            name.as_ref().map(|name| column(schema, name, &kind, what)).transpose()
        };
        let partition = of(&options.columns.partition, DataType::Int32, "is the partition")?;
        let timestamp =
            of(&options.columns.timestamp, DataType::Timestamp(TimeUnit::Millisecond, None), "is the time stamp")?;
        let map = crate::headers::column_type();
        let headers = of(&options.columns.headers, map, "is the headers")?;
        let changes = schema.fields().first().is_some_and(|f| f.name() == ROW_KIND_COLUMN);
        let upsert = changes && !options.value_knows_changes;
        if upsert && options.key.is_none() {
            return Err(Error::config(
                "rows that change or are deleted need a key, by which readers tell which row is meant",
            )
            .code(1365)
            .next("name the columns of the key, or write the changes themselves (Debezium)"));
        }
        let of_topic = match topic {
            Topic::Column(c) => Some(c),
            Topic::Named(_) => None,
        };
        let kind = upsert.then_some(0);
        let apart: Vec<usize> = [of_topic, partition, timestamp, headers, kind].into_iter().flatten().collect();
        let values = (0..schema.fields().len()).filter(|c| !apart.contains(c)).collect();
        let key = options.key.as_ref().map(|key| {
            let index = |name: &String| schema.index_of(name).map_err(|_| absent(schema, name, "is part of the key"));
            let columns = key.columns.iter().map(index).collect::<Result<Vec<_>>>()?;
            Encoded::new(schema, columns, &*key.format)
        });
        Ok(Self {
            topic,
            upsert,
            value: Encoded::new(schema, values, &*options.value)?,
            key: key.transpose()?,
            partition,
            timestamp,
            headers,
        })
    }

    /// Waits for what the formats need before their first batch.
    pub(super) async fn prepare(&mut self) -> Result<()> {
        let (value, key) = (self.value.encoder.before(), self.key.as_mut().and_then(|k| k.encoder.before()));
        for ready in [value, key].into_iter().flatten() {
            ready.await?;
        }
        Ok(())
    }

    /// Makes the records of a batch, to be sent one after the other.
    pub(super) fn make(&mut self, batch: &RecordBatch) -> Result<Made<'_>> {
        let batch = if self.upsert { after(batch)? } else { batch.clone() };
        self.value.encode(&batch)?;
        if let Some(key) = &mut self.key {
            key.encode(&batch)?;
        }
        let deleted = self.upsert.then(|| batch.column(0).as_primitive::<UInt8Type>().clone());
        let topic = match &self.topic {
            Topic::Named(name) => MadeTopic::Named(name),
            Topic::Column(c) => MadeTopic::Column(batch.column(*c).as_string::<i32>().clone()),
        };
        Ok(Made {
            topic,
            deleted,
            partition: self.partition.map(|c| batch.column(c).as_primitive::<Int32Type>().clone()),
            timestamp: self.timestamp.map(|c| batch.column(c).as_primitive::<TimestampMillisecondType>().clone()),
            headers: self.headers.map(|c| batch.column(c).as_map().clone()),
            values: &self.value.records,
            keys: self.key.as_ref().map(|k| &k.records),
        })
    }
}

/// Without the rows before a change.
fn after(batch: &RecordBatch) -> Result<RecordBatch> {
    let kinds = batch.column(0).as_primitive::<UInt8Type>();
    let before = RowKind::UpdateBefore as u8;
    if !kinds.values().contains(&before) {
        return Ok(batch.clone());
    }
    let kept: BooleanArray = kinds.values().iter().map(|k| Some(*k != before)).collect();
    filter_record_batch(batch, &kept).map_err(|e| Error::internal("rows of a batch").source(e))
}

/// The records of a batch.
pub(super) struct Made<'a> {
    topic: MadeTopic<'a>,
    deleted: Option<PrimitiveArray<UInt8Type>>,
    partition: Option<Int32Array>,
    timestamp: Option<PrimitiveArray<TimestampMillisecondType>>,
    headers: Option<MapArray>,
    values: &'a Records,
    keys: Option<&'a Records>,
}

enum MadeTopic<'a> {
    Named(&'a str),
    Column(StringArray),
}

impl Made<'_> {
    /// Hands each record to `send` until that says `false`; those before record `from` have been sent. Gives the number of the
    /// first that is left, and whether there is one.
    pub(super) fn send_from(
        &self,
        from: usize,
        mut send: impl FnMut(&Outgoing<'_>) -> Result<bool>,
    ) -> Result<(usize, bool)> {
        let mut keys = self.keys.map(|k| k.iter().skip(from));
        let mut headers = Vec::new();
        for (row, value) in self.values.iter().enumerate().skip(from) {
            headers.clear();
            if let Some(map) = self.headers.as_ref().filter(|m| m.is_valid(row)) {
                let (start, end) = (map.value_offsets()[row] as usize, map.value_offsets()[row + 1] as usize);
                let (names, values) = (map.keys().as_string::<i32>(), map.values().as_binary::<i32>());
                headers.extend((start..end).map(|i| (names.value(i), values.is_valid(i).then(|| values.value(i)))));
            }
            let topic = match &self.topic {
                MadeTopic::Named(name) => name,
                MadeTopic::Column(names) if names.is_valid(row) => names.value(row),
                MadeTopic::Column(_) => return Err(Error::data("a row names no topic").code(3332)),
            };
            let gone = self.deleted.as_ref().is_some_and(|kinds| kinds.value(row) == RowKind::Delete as u8);
            let record = Outgoing {
                topic,
                partition: self.partition.as_ref().filter(|p| p.is_valid(row)).map(|p| p.value(row)),
                key: keys.as_mut().and_then(Iterator::next).flatten(),
                value: value.filter(|_| !gone),
                timestamp: self.timestamp.as_ref().filter(|t| t.is_valid(row)).map(|t| t.value(row)),
                headers: &headers,
            };
            if !send(&record)? {
                return Ok((row, true));
            }
        }
        Ok((self.values.len(), false))
    }
}

fn column(schema: &Schema, name: &str, kind: &DataType, what: &str) -> Result<usize> {
    let index = schema.index_of(name).map_err(|_| absent(schema, name, what))?;
    let found = schema.field(index).data_type();
    if found != kind {
        let text = format!("column '{name}', which {what}, is of type {found}, not {kind}");
        return Err(Error::config(text).code(1366));
    }
    Ok(index)
}

fn absent(schema: &Schema, name: &str, what: &str) -> Error {
    let there: Vec<_> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    Error::config(format!("there is no column '{name}', which {what}: there are {}", there.join(", "))).code(1366)
}
