//! The source of the simulation: the splits of a [`Dataset`], at the virtual times that it says.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arrow_schema::SchemaRef;
use millstream_common::env::{BoxFuture, Moment};
use millstream_common::{Env, Error, Result};
use millstream_engine::source::{
    Discovery, Position, Read, Source, Split, SplitEnumerator, SplitReader, WatermarkStrategy, event_time_column,
};

use super::data::{self, Dataset};

/// Reads a dataset. Time is that of the run, not of a node.
pub struct SimSource {
    data: Arc<Dataset>,
    env: Env,
    /// Rows that a reader hands out together at most.
    rows: usize,
}

impl SimSource {
    /// A source over `data`; `env` began with the run.
    #[must_use]
    pub fn new(data: Arc<Dataset>, env: Env, rows: usize) -> Self {
        Self { data, env, rows }
    }

    /// Its watermarks: the dataset says how far rows are out of order.
    #[must_use]
    pub fn watermarks(&self) -> WatermarkStrategy {
        // A row may be as old as the watermark that its own batch makes: 1 ms more keeps it from being late.
        let delay_ms = if self.data.late { self.data.delay_ms / 8 } else { self.data.delay_ms + 1 };
        let strategy = WatermarkStrategy::bounded_out_of_orderness(event_time_column("time"), delay_ms)
            .with_idle_timeout(self.data.idle_ms.map(Duration::from_millis));
        match self.data.max_drift_ms {
            None => strategy,
            Some(ms) => strategy.with_alignment("all", Duration::from_millis(ms)),
        }
    }
}

impl Source for SimSource {
    fn schema(&self) -> SchemaRef {
        data::schema()
    }

    fn enumerator(&self) -> Result<Box<dyn SplitEnumerator>> {
        Ok(Box::new(Enumerator { data: self.data.clone(), env: self.env.clone() }))
    }

    fn discovery_interval(&self) -> Option<Duration> {
        self.data.appears_ms.map(|_| Duration::from_millis(300))
    }

    fn reader(&self, split: &Split, position: Option<&Position>) -> Result<Box<dyn SplitReader>> {
        let index: usize =
            split.id.parse().map_err(|_| Error::internal("this is no split of ours").at(split.id.clone()))?;
        let next = position.map_or(0, |p| p.offset as usize);
        let (data, env) = (self.data.clone(), self.env.clone());
        Ok(Box::new(Reader { data, env, split: index, next, rows: self.rows, wait: None }))
    }
}

struct Enumerator {
    data: Arc<Dataset>,
    env: Env,
}

impl SplitEnumerator for Enumerator {
    fn discover<'a>(&'a mut self, known: &'a [String]) -> BoxFuture<'a, Result<Discovery>> {
        let Moment(now) = self.env.now();
        let complete = self.data.appears_ms.is_none_or(|ms| Duration::from_millis(ms) <= now);
        let there = self.data.splits.len() - usize::from(!complete);
        let all = (0..there).map(|i| Split { id: format!("{i:03}"), payload: vec![i as u8] });
        let new = all.filter(|s| !known.contains(&s.id)).collect();
        Box::pin(std::future::ready(Ok(Discovery { new, complete })))
    }
}

struct Reader {
    data: Arc<Dataset>,
    env: Env,
    split: usize,
    next: usize,
    rows: usize,
    wait: Option<BoxFuture<'static, ()>>,
}

impl SplitReader for Reader {
    fn poll_next(&mut self, cx: &mut Context<'_>, max_rows: usize) -> Poll<Result<Read>> {
        loop {
            if let Some(wait) = &mut self.wait {
                match wait.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(()) => self.wait = None,
                }
            }
            let left = &self.data.splits[self.split][self.next..];
            let Some(first) = left.first() else { return Poll::Ready(Ok(Read::End)) };
            let Moment(now) = self.env.now();
            let there = left.iter().take_while(|e| Duration::from_millis(e.at_ms) <= now).count();
            if there == 0 {
                self.wait = Some(self.env.sleep(Duration::from_millis(first.at_ms).saturating_sub(now)));
                continue;
            }
            let taken = &left[..there.min(max_rows).min(self.rows)];
            self.next += taken.len();
            return Poll::Ready(data::batch(taken).map(Read::Batch));
        }
    }

    fn position(&self) -> Position {
        Position { offset: self.next as u64, detail: Vec::new() }
    }
}
