//! Splits of a generator: event number `n` belongs to split `n % splits`, and the position is how many events of a
//! split were handed out.

use millstream_common::env::BoxFuture;
use millstream_common::{Error, Result};
use millstream_engine::source::{Discovery, Position, Split, SplitEnumerator};

/// The splits of one generator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NumberedSplits {
    /// What their names begin with.
    pub(crate) prefix: &'static str,
    /// How many there are.
    pub(crate) splits: u32,
    /// Events over all splits; 0: without end.
    pub(crate) events: u64,
}

/// Events of a split to make: `first`, `first + step`, ..., `count` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: u64,
    pub(crate) step: u64,
    pub(crate) count: usize,
}

impl NumberedSplits {
    pub(crate) fn enumerator(self) -> Result<Box<dyn SplitEnumerator>> {
        if self.splits == 0 {
            return Err(Error::config("a generator with 0 splits").code(1302).next("give 1 or more"));
        }
        Ok(Box::new(self))
    }

    fn split(&self, index: u32) -> Split {
        Split { id: format!("{}-{index:02}", self.prefix), payload: index.to_le_bytes().to_vec() }
    }

    /// Opens a split of this generator.
    pub(crate) fn open(self, split: &Split, position: Option<&Position>) -> Result<SplitCursor> {
        let index = <[u8; 4]>::try_from(split.payload.as_slice()).ok().map(u32::from_le_bytes);
        let index = index.filter(|i| *i < self.splits).ok_or_else(|| {
            Error::new(
                millstream_common::ErrorKind::Corrupt,
                4301,
                format!("'{}' is no split of this generator", split.id),
            )
        })?;
        let (index, splits) = (u64::from(index), u64::from(self.splits));
        let len = match self.events {
            0 => u64::MAX / splits - 1,
            events => events.saturating_sub(index).div_ceil(splits),
        };
        Ok(SplitCursor { index, splits, len, done: position.map_or(0, |p| p.offset) })
    }
}

impl SplitEnumerator for NumberedSplits {
    fn discover<'a>(&'a mut self, known: &'a [String]) -> BoxFuture<'a, Result<Discovery>> {
        let new = (0..self.splits).map(|i| self.split(i)).filter(|s| !known.contains(&s.id)).collect();
        Box::pin(std::future::ready(Ok(Discovery { new, complete: true })))
    }
}

/// Where a reader of a split stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SplitCursor {
    index: u64,
    splits: u64,
    len: u64,
    done: u64,
}

impl SplitCursor {
    /// Hands out at most `max_rows` events, or `None` at the end.
    pub(crate) fn next(&mut self, max_rows: usize) -> Option<Run> {
        let count = self.len.saturating_sub(self.done).min(max_rows.max(1) as u64);
        if count == 0 {
            return None;
        }
        let first = self.index + self.done * self.splits;
        self.done += count;
        Some(Run { first, step: self.splits, count: count as usize })
    }

    pub(crate) fn position(&self) -> Position {
        Position { offset: self.done, detail: Vec::new() }
    }
}
