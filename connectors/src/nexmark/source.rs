//! The generator as a source: split `i` of `k` holds the events whose number leaves `i` when divided by `k`.

use std::task::{Context, Poll};

use arrow_schema::SchemaRef;
use millstream_common::{Error, Result};
use millstream_engine::source::{Position, Read, Source, Split, SplitEnumerator, SplitReader};

use super::generate::EventSettings;
use super::schema::events_schema;
use crate::numbered::{NumberedSplits, SplitCursor};

/// A source of generated events. Positions count the events of a split that were handed out; going to one costs
/// nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NexmarkSource {
    /// How many events there are; 0: without end.
    pub events: u64,
    /// Events per second of event time; at least 1.
    pub event_rate: u64,
    /// Event time of event 0, in milliseconds since 1970 (UTC).
    pub base_time_ms: i64,
    /// How many splits share the events; at least 1. Part of the meaning of positions: never changes for a job.
    pub splits: u32,
}

impl NexmarkSource {
    /// 10,000 events a second from 2026-01-01T00:00:00Z on, in 16 splits.
    #[must_use]
    pub fn new(events: u64) -> Self {
        Self { events, event_rate: 10_000, base_time_ms: 1_767_225_600_000, splits: 16 }
    }

    fn numbered(&self) -> NumberedSplits {
        NumberedSplits { prefix: "nexmark", splits: self.splits, events: self.events }
    }
}

impl Source for NexmarkSource {
    fn schema(&self) -> SchemaRef {
        events_schema()
    }

    fn enumerator(&self) -> Result<Box<dyn SplitEnumerator>> {
        self.numbered().enumerator()
    }

    fn reader(&self, split: &Split, position: Option<&Position>) -> Result<Box<dyn SplitReader>> {
        if self.event_rate == 0 {
            return Err(Error::config("an event rate of 0 events per second").code(1301).next("give 1 or more"));
        }
        let settings = EventSettings { event_rate: self.event_rate, base_time_ms: self.base_time_ms };
        Ok(Box::new(NexmarkReader { settings, cursor: self.numbered().open(split, position)? }))
    }
}

struct NexmarkReader {
    settings: EventSettings,
    cursor: SplitCursor,
}

impl SplitReader for NexmarkReader {
    fn poll_next(&mut self, _: &mut Context<'_>, max_rows: usize) -> Poll<Result<Read>> {
        Poll::Ready(match self.cursor.next(max_rows) {
            None => Ok(Read::End),
            Some(run) => self.settings.generate(run.first, run.step, run.count).map(Read::Batch),
        })
    }

    fn position(&self) -> Position {
        self.cursor.position()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[tokio::test]
    async fn the_generator_passes_the_exam_of_sources() {
        let source = NexmarkSource { event_rate: 333, ..NexmarkSource::new(1_000) };
        let rows = conformance::check_source(&source, 3).await;
        assert_eq!(rows, [[63; 8], [62; 8]].concat());
        let endless = NexmarkSource { splits: 3, ..NexmarkSource::new(0) };
        assert_eq!(conformance::check_source_up_to(&endless, 3, 150).await, [150; 3]);
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let source = NexmarkSource { event_rate: 0, ..NexmarkSource::new(1) };
        let split = Split { id: "nexmark-00".into(), payload: 0_u32.to_le_bytes().to_vec() };
        assert!(source.reader(&split, None).is_err());
        assert!(NexmarkSource { splits: 0, ..NexmarkSource::new(1) }.enumerator().is_err());
    }
}
