//! What the bytes of a record mean: rows from bytes, and bytes from rows. Knows no connector and does no I/O.
//!
//! - [`json`]: JSON objects, nested or flat; [`csv`]: delimited text; [`raw`]: the bytes themselves;
//!   [`debezium`]: change events in JSON; [`avro`]: Avro, alone or with a schema registry.
//! - [`time`]: time stamps as text.
//!
//! A connector hands each record to a [`Decoder`] and takes batches out of it. A record that cannot be read leaves no trace
//! in the decoder; what becomes of it (fail, drop and count, another topic) is the connector's decision.

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use millstream_common::Result;
use millstream_common::env::BoxFuture;

pub mod avro;
mod columns;
pub mod csv;
pub mod debezium;
pub mod json;
pub mod raw;
mod text;
pub mod time;

#[cfg(test)]
mod fuzz_tests;

/// How records are read: settings, shared by all decoders of a source.
pub trait DecodingFormat: Send + Sync {
    /// What users call it: `json`.
    fn name(&self) -> &'static str;
    /// The columns of every batch.
    fn schema(&self) -> SchemaRef;
    /// A decoder without rows.
    fn decoder(&self) -> Result<Box<dyn Decoder>>;
}

/// Collects records as rows of a batch.
pub trait Decoder: Send {
    /// What must be awaited before `record` can be pushed: a schema that is not known yet, say. Mostly nothing. To be asked for each
    /// record; an error is none of the record's, and the same record may be asked for again.
    fn before(&mut self, _record: &[u8]) -> Option<BoxFuture<'static, Result<()>>> {
        None
    }
    /// Adds the rows of a record: mostly one; none where a record says nothing (the tombstone of a changelog, say), two
    /// where it changes something. On an error, which says what is wrong with the record and not where it stands, no row was added.
    fn push(&mut self, record: &[u8]) -> Result<()>;
    /// Rows added since the last `take`.
    fn rows(&self) -> usize;
    /// The rows as a batch; the decoder is empty again.
    fn take(&mut self) -> Result<RecordBatch>;
}

/// How rows are written: settings, shared by all encoders of a sink.
pub trait EncodingFormat: Send + Sync {
    /// An encoder for batches of `schema`; an error names a column that has no form here.
    fn encoder(&self, schema: &SchemaRef) -> Result<Box<dyn Encoder>>;
}

/// Turns batches into records.
pub trait Encoder: Send {
    /// What must be awaited before the first batch: the id of its schema, say. Mostly nothing.
    fn before(&mut self) -> Option<BoxFuture<'static, Result<()>>> {
        None
    }
    /// Appends the records of `batch`, mostly one a row, in order.
    fn encode(&mut self, batch: &RecordBatch, records: &mut Records) -> Result<()>;
}

/// Records one behind the other, each of which has bytes or is a tombstone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    bytes: Vec<u8>,
    /// By record: where it ends, and whether it has bytes.
    ends: Vec<(usize, bool)>,
}

impl Records {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Where the bytes of the next record go, before [`Self::end`].
    pub fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// What was appended since the last record is one.
    pub fn end(&mut self) {
        self.ends.push((self.bytes.len(), true));
    }

    /// Adds a record without a value.
    pub fn push_tombstone(&mut self) {
        self.ends.push((self.bytes.len(), false));
    }

    /// The records in order; `None` for a tombstone.
    pub fn iter(&self) -> impl Iterator<Item = Option<&[u8]>> {
        let mut start = 0;
        self.ends.iter().map(move |&(end, is_some)| {
            let bytes = &self.bytes[start..end];
            start = end;
            is_some.then_some(bytes)
        })
    }

    /// Forgets all of them and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}

/// The rows of a batch as JSON lines.
#[cfg(test)]
fn lines_of(batch: &RecordBatch) -> Vec<String> {
    let mut out = Vec::new();
    json::JsonRows::new(&batch.schema()).unwrap().push(batch, &mut out).unwrap();
    String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
}
