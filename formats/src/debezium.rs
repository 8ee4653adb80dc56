//! Change events as Debezium writes them in JSON, to the rows of a changelog and back.
//!
//! A record holds the row before and after a change: `{"before":null,"after":{"id":1},"op":"c"}`. It may stand in the
//! `payload` of an envelope with its schema, and has more members (`source`, `ts_ms`), which are passed over. `c` (created) and `r`
//! (read by a snapshot) give an insertion, `d` a deletion, `u` the row before and the one after. A record without
//! a value, which follows a deletion so that the topic can be compacted, gives nothing.
//! Source: Debezium's documentation of its connectors, "Change events".
//!
//! Written are `c` for insertions and rows after an update, `d` for deletions and rows before one, as Flink does: each row of
//! the changelog is a record of its own.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::UInt8Type;
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};
use millstream_common::{Error, Result};
use millstream_engine::element::{ROW_KIND_COLUMN, RowKind};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::columns::{Column, Rows, Values, check_type};
use crate::json::{JsonRows, read};
use crate::{Decoder, DecodingFormat, Encoder, EncodingFormat, Records};

/// Reads change events; its batches have the row-kind column before those of the table.
#[derive(Clone, Debug)]
pub struct DebeziumDecoding {
    table: SchemaRef,
    changelog: SchemaRef,
}

impl DebeziumDecoding {
    /// Of a table with the columns of `table`.
    pub fn new(table: SchemaRef) -> Result<Self> {
        table.fields().iter().try_for_each(|f| check_type(f))?;
        let kind = Arc::new(Field::new(ROW_KIND_COLUMN, DataType::UInt8, false));
        let fields: Vec<_> = std::iter::once(kind).chain(table.fields().iter().cloned()).collect();
        Ok(Self { table, changelog: Arc::new(Schema::new(fields)) })
    }
}

impl DecodingFormat for DebeziumDecoding {
    fn name(&self) -> &'static str {
        "debezium-json"
    }

    fn schema(&self) -> SchemaRef {
        self.changelog.clone()
    }

    fn decoder(&self) -> Result<Box<dyn Decoder>> {
        let rows = Rows::new(&self.changelog)?;
        Ok(Box::new(DebeziumDecoder { rows, table: self.table.fields().clone() }))
    }
}

struct DebeziumDecoder {
    /// Their kind first.
    rows: Rows,
    table: Fields,
}

/// A change, or an envelope around one.
#[derive(Deserialize)]
struct Change<'a> {
    #[serde(borrow)]
    before: Option<&'a RawValue>,
    #[serde(borrow)]
    after: Option<&'a RawValue>,
    op: Option<Op>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

#[derive(Clone, Copy, Deserialize)]
enum Op {
    #[serde(rename = "c")]
    Create,
    #[serde(rename = "r")]
    Read,
    #[serde(rename = "u")]
    Update,
    #[serde(rename = "d")]
    Delete,
    /// Of a whole table, which no row stands for.
    #[serde(rename = "t")]
    Truncate,
    /// A message that the database was told to send.
    #[serde(rename = "m")]
    Message,
}

impl Decoder for DebeziumDecoder {
    fn push(&mut self, record: &[u8]) -> Result<()> {
        if record.is_empty() {
            return Ok(());
        }
        self.rows.add(|columns| read_change(record, columns, &self.table))
    }

    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn take(&mut self) -> Result<RecordBatch> {
        self.rows.take()
    }
}

/// How many rows the change has; half of one may be left behind an error.
fn read_change(record: &[u8], columns: &mut [Column], table: &Fields) -> Result<usize, String> {
    let mut add = |kind, member, row| read_row(columns, table, kind, member, row);
    let mut change: Change<'_> = serde_json::from_slice(record).map_err(|e| e.to_string())?;
    if let (None, Some(payload)) = (change.op, change.payload) {
        change = serde_json::from_str(payload.get()).map_err(|e| format!("payload: {e}"))?;
    }
    let is_null = |row: &Option<&RawValue>| row.is_none_or(|r| r.get() == "null");
    match change.op.ok_or("neither an \"op\" nor a \"payload\" with one")? {
        Op::Create | Op::Read => add(RowKind::Insert, "after", change.after)?,
        Op::Delete => add(RowKind::Delete, "before", change.before)?,
        Op::Update if is_null(&change.before) => {
            return Err(
                "an update without the row before it; a table of PostgreSQL must have REPLICA IDENTITY FULL".into()
            );
        }
        Op::Update => {
            add(RowKind::UpdateBefore, "before", change.before)?;
            add(RowKind::UpdateAfter, "after", change.after)?;
            return Ok(2);
        }
        Op::Message => return Ok(0),
        Op::Truncate => return Err("a whole table was emptied, which no rows stand for".into()),
    }
    Ok(1)
}

fn read_row(
    columns: &mut [Column],
    table: &Fields,
    kind: RowKind,
    member: &str,
    row: Option<&RawValue>,
) -> Result<(), String> {
    let row = row.ok_or_else(|| format!("{member}: is missing"))?;
    let Some((kinds, columns)) = columns.split_first_mut() else { return Ok(()) };
    read(row.get().as_bytes(), columns, table, false).map_err(|(path, what)| format!("{member}{path}: {what}"))?;
    if let Values::UInt8(v) = &mut kinds.values {
        v.push(kind as u8);
    }
    kinds.pushed();
    Ok(())
}

/// Writes the rows of a changelog as change events.
#[derive(Clone, Copy, Debug, Default)]
pub struct DebeziumEncoding;

impl EncodingFormat for DebeziumEncoding {
    fn encoder(&self, schema: &SchemaRef) -> Result<Box<dyn Encoder>> {
        let is_changelog = schema.fields().first().is_some_and(|f| f.name() == ROW_KIND_COLUMN);
        let columns: Vec<usize> = (usize::from(is_changelog)..schema.fields().len()).collect();
        let table =
            schema.project(&columns).map_err(|e| Error::internal("a schema without its first column").source(e))?;
        Ok(Box::new(DebeziumEncoder { rows: JsonRows::new(&table)?, columns, is_changelog, table: Records::default() }))
    }
}

struct DebeziumEncoder {
    rows: JsonRows,
    /// The columns of the table.
    columns: Vec<usize>,
    is_changelog: bool,
    table: Records,
}

impl Encoder for DebeziumEncoder {
    fn encode(&mut self, batch: &RecordBatch, records: &mut Records) -> Result<()> {
        let table =
            batch.project(&self.columns).map_err(|e| Error::internal("a batch without its first column").source(e))?;
        self.table.clear();
        self.rows.encode(&table, &mut self.table)?;
        let kinds = self.is_changelog.then(|| batch.column(0).as_primitive::<UInt8Type>().values());
        for (i, row) in self.table.iter().enumerate() {
            let kind = kinds.map_or(Some(RowKind::Insert), |k| RowKind::from_number(k[i]));
            let kind = kind.ok_or_else(|| Error::internal("a row of no kind"))?;
            let (before, after, op): (&[u8], &[u8], &[u8]) = match kind {
                RowKind::Insert | RowKind::UpdateAfter => (b"null", row.unwrap_or_default(), b"c"),
                RowKind::Delete | RowKind::UpdateBefore => (row.unwrap_or_default(), b"null", b"d"),
            };
            let out = records.bytes_mut();
            for part in [&b"{\"before\":"[..], before, b",\"after\":", after, b",\"op\":\"", op, b"\"}"] {
                out.extend_from_slice(part);
            }
            records.end();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lines_of;

    fn table() -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false), Field::new("name", DataType::Utf8, true)]))
    }

    #[test]
    fn changes_become_rows_and_rows_changes() {
        let mut decoder = DebeziumDecoding::new(table()).unwrap().decoder().unwrap();
        for record in [
            r#"{"before":null,"after":{"id":1,"name":"a"},"source":{"lsn":7},"op":"c","ts_ms":1}"#,
            r#"{"schema":{"type":"struct"},"payload":{"op":"r","after":{"id":2,"name":"b"},"before":null}}"#,
            r#"{"before":{"id":1,"name":"a"},"after":{"id":1,"name":null},"op":"u"}"#,
            r#"{"before":{"id":2,"name":"b"},"after":null,"op":"d"}"#,
            "",
            r#"{"op":"m","message":{}}"#,
        ] {
            decoder.push(record.as_bytes()).unwrap();
        }
        assert_eq!(decoder.rows(), 5);
        let batch = decoder.take().unwrap();
        assert_eq!(
            lines_of(&batch),
            [
                r#"{"op":"+I","id":1,"name":"a"}"#,
                r#"{"op":"+I","id":2,"name":"b"}"#,
                r#"{"op":"-U","id":1,"name":"a"}"#,
                r#"{"op":"+U","id":1,"name":null}"#,
                r#"{"op":"-D","id":2,"name":"b"}"#,
            ]
        );
        let mut records = Records::default();
        DebeziumEncoding.encoder(&batch.schema()).unwrap().encode(&batch, &mut records).unwrap();
        let written: Vec<_> = records.iter().map(|r| std::str::from_utf8(r.unwrap()).unwrap()).collect();
        assert_eq!(
            written,
            [
                r#"{"before":null,"after":{"id":1,"name":"a"},"op":"c"}"#,
                r#"{"before":null,"after":{"id":2,"name":"b"},"op":"c"}"#,
                r#"{"before":{"id":1,"name":"a"},"after":null,"op":"d"}"#,
                r#"{"before":null,"after":{"id":1,"name":null},"op":"c"}"#,
                r#"{"before":{"id":2,"name":"b"},"after":null,"op":"d"}"#,
            ]
        );
    }

    #[test]
    fn a_bad_record_leaves_no_trace() {
        let mut decoder = DebeziumDecoding::new(table()).unwrap().decoder().unwrap();
        for (record, expected) in [
            (r#"{"before":{"id":1,"name":"a"},"after":{"id":"x"},"op":"u"}"#, "after.id: 'x' is no integer"),
            (r#"{"before":null,"after":{"id":1},"op":"u"}"#, "REPLICA IDENTITY FULL"),
            (r#"{"after":{"id":1},"op":"d"}"#, "before: is missing"),
            (r#"{"after":{"id":1},"op":"z"}"#, "unknown variant `z`"),
            (r#"{"after":{"id":1}}"#, "neither an \"op\""),
            (r#"{"payload":{"op":"c","after":{"name":"a"}}}"#, "after.id: is missing"),
            (r#"{"op":"t"}"#, "a whole table was emptied"),
            ("x", "expected value"),
        ] {
            decoder.push(br#"{"after":{"id":7},"op":"c"}"#).unwrap();
            let error = decoder.push(record.as_bytes()).unwrap_err();
            assert!(error.what().contains(expected) && error.number() == 3301, "{record}: {error}");
        }
        assert_eq!(lines_of(&decoder.take().unwrap()), vec![r#"{"op":"+I","id":7,"name":null}"#; 8]);
    }

    #[test]
    fn rows_without_kinds_are_insertions() {
        let mut decoder = DebeziumDecoding::new(table()).unwrap().decoder().unwrap();
        decoder.push(br#"{"after":{"id":7},"op":"c"}"#).unwrap();
        let rows = decoder.take().unwrap().project(&[1, 2]).unwrap();
        let mut records = Records::default();
        DebeziumEncoding.encoder(&rows.schema()).unwrap().encode(&rows, &mut records).unwrap();
        assert_eq!(
            records.iter().next().unwrap().unwrap(),
            br#"{"before":null,"after":{"id":7,"name":null},"op":"c"}"#
        );
    }
}
