//! A sink that takes rows and counts them, and nothing else: for measuring what comes before it.

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use millstream_common::env::BoxFuture;
use millstream_common::{Epoch, Error, Result};
use millstream_engine::sink::{Committable, Committer, PreCommit, Sink, SinkContext, SinkWriter};

/// A sink that throws rows away.
#[derive(Clone, Copy, Debug, Default)]
pub struct BlackholeSink;

impl Sink for BlackholeSink {
    fn writer(&self, _: SchemaRef, _: SinkContext) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(BlackholeWriter { rows: 0 }))
    }

    fn committer(&self) -> Result<Box<dyn Committer>> {
        Ok(Box::new(NothingToCommit))
    }
}

struct BlackholeWriter {
    rows: u64,
}

impl SinkWriter for BlackholeWriter {
    fn write<'a>(&'a mut self, batch: &'a RecordBatch) -> BoxFuture<'a, Result<()>> {
        self.rows += batch.num_rows() as u64;
        Box::pin(std::future::ready(Ok(())))
    }

    fn pre_commit(&mut self, _: Epoch) -> BoxFuture<'_, Result<PreCommit>> {
        let rows = std::mem::take(&mut self.rows);
        Box::pin(std::future::ready(Ok(PreCommit { rows, ..PreCommit::default() })))
    }
}

/// The committer of sinks whose writers never leave a committable.
pub(crate) struct NothingToCommit;

impl Committer for NothingToCommit {
    fn commit<'a>(&'a mut self, committable: &'a Committable) -> BoxFuture<'a, Result<()>> {
        let error = Error::internal(format!("a committable of '{}', which commits nothing", committable.sink_uid));
        Box::pin(std::future::ready(Err(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[tokio::test]
    async fn throwing_away_passes_the_exam_of_sinks_that_commit_nothing() {
        conformance::check_uncommitted_sink(&BlackholeSink).await;
    }
}
