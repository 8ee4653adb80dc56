//! Rows as JSON lines on stdout, at once: for looking, not exactly once. Nothing is committed; rows of a failed epoch
//! are printed again.

use std::io::{self, ErrorKind, Write};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use millstream_common::env::BoxFuture;
use millstream_common::{Epoch, Error, Result};
use millstream_engine::sink::{Committer, PreCommit, Sink, SinkContext, SinkWriter, WriterFigures};
use millstream_formats::json::JsonRows;

use crate::blackhole::NothingToCommit;

/// The number of the error that says that nobody reads stdout any more: a reason to end without a word.
pub const STDOUT_CLOSED: u16 = 6310;

/// A sink that prints.
#[derive(Clone, Copy, Debug, Default)]
pub struct PrintSink;

impl Sink for PrintSink {
    fn writer(&self, schema: SchemaRef, _: SinkContext) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(PrintWriter::new(&schema)?))
    }

    fn committer(&self) -> Result<Box<dyn Committer>> {
        Ok(Box::new(NothingToCommit))
    }
}

struct PrintWriter {
    rows: JsonRows,
    text: Vec<u8>,
    /// Rows of the epoch.
    count: u64,
    /// Of all epochs.
    bytes: u64,
}

impl PrintWriter {
    fn new(schema: &SchemaRef) -> Result<Self> {
        Ok(Self { rows: JsonRows::new(schema)?, text: Vec::new(), count: 0, bytes: 0 })
    }

    fn print(&mut self, batch: &RecordBatch, out: &mut dyn Write) -> Result<()> {
        self.text.clear();
        self.rows.push(batch, &mut self.text)?;
        out.write_all(&self.text).and_then(|()| out.flush()).map_err(|e| match e.kind() {
            ErrorKind::BrokenPipe => Error::canceled("nobody reads stdout any more").code(STDOUT_CLOSED),
            _ => Error::unavailable("cannot write to stdout").code(2411).source(e),
        })?;
        self.count += batch.num_rows() as u64;
        self.bytes += self.text.len() as u64;
        Ok(())
    }
}

impl SinkWriter for PrintWriter {
    fn write<'a>(&'a mut self, batch: &'a RecordBatch) -> BoxFuture<'a, Result<()>> {
        // Locked for the batch: lines of other subtasks never fall into one of these.
        Box::pin(async move { self.print(batch, &mut io::stdout().lock()) })
    }

    fn pre_commit(&mut self, _: Epoch) -> BoxFuture<'_, Result<PreCommit>> {
        let rows = std::mem::take(&mut self.count);
        Box::pin(std::future::ready(Ok(PreCommit { rows, ..PreCommit::default() })))
    }

    fn figures(&self) -> WriterFigures {
        WriterFigures { bytes: Some(self.bytes), open_transactions: None }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::Int64Array;
    use millstream_common::ErrorKind as Kind;

    use super::*;
    use crate::conformance;

    /// A pipe that nobody reads, or a full disk.
    struct Refusing(ErrorKind);

    impl Write for Refusing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_told_from_other_failures_and_counts_nothing() {
        let column = Arc::new(Int64Array::from(vec![1, 2])) as _;
        let batch = RecordBatch::try_from_iter([("n", column)]).unwrap();
        let mut writer = PrintWriter::new(&batch.schema()).unwrap();
        let closed = writer.print(&batch, &mut Refusing(ErrorKind::BrokenPipe)).unwrap_err();
        assert_eq!((closed.kind(), closed.number()), (Kind::Canceled, STDOUT_CLOSED));
        let full = writer.print(&batch, &mut Refusing(ErrorKind::StorageFull)).unwrap_err();
        assert_eq!(full.kind(), Kind::Unavailable);
        assert_eq!((writer.count, writer.figures().bytes), (0, Some(0)));
        let mut out = Vec::new();
        writer.print(&batch, &mut out).unwrap();
        assert_eq!((out.as_slice(), writer.count), (&b"{\"n\":1}\n{\"n\":2}\n"[..], 2));
        assert_eq!(writer.figures().bytes, Some(16));
    }

    #[tokio::test]
    async fn printing_passes_the_exam_of_sinks_that_commit_nothing() {
        conformance::check_uncommitted_sink(&PrintSink).await;
    }
}
