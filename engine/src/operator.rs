//! Operators: ordinary, synchronous, vectorised code over hot state.
//!
//! For each batch the runtime calls [`Operator::name_reads`] when it arrives (before its turn), pages in what was
//! named, and calls [`Operator::process`] in arrival order once all of it is resident. When the watermark advances it
//! calls [`Operator::advance`] until that says `Done`.

use arrow_array::RecordBatch;
use millstream_common::{KeyGroup, KeyGroupRange, KeyGroupRanges, Result};
use millstream_state_store::key::KeyBuffer;

use crate::element::TimestampMs;
use crate::state::StateSet;

/// A batch with the encoded keys of its rows (no keys when the input is not keyed).
#[derive(Debug)]
pub struct KeyedBatch {
    /// The rows.
    pub records: RecordBatch,
    /// A key per row, with its stable hash.
    pub keys: KeyBuffer,
}

/// Whether an operator has done all that a watermark asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All that was due has fired.
    Done,
    /// It named reads or scans in its states: call again when they are resident.
    NeedsState,
    /// It gave way after a bounded piece of work: call again.
    More,
}

/// One operator of one subtask.
pub trait Operator: Send {
    /// Names, in its states, what `batch` will read. Only the head of a keyed task is asked.
    fn name_reads(&mut self, _input: usize, _batch: &KeyedBatch) -> Result<()> {
        Ok(())
    }

    /// Processes a batch from input `input`. Everything it named is resident.
    fn process(&mut self, input: usize, batch: &KeyedBatch, out: &mut Collector) -> Result<()>;

    /// Fires what is due up to and including `watermark`. `out.is_late` and [`Collector::fired`] still speak of the
    /// time before. Called again until it says `Done`.
    fn advance(&mut self, _watermark: TimestampMs, _out: &mut Collector) -> Result<Progress> {
        Ok(Progress::Done)
    }

    /// The states that it owns, always in the same order. Only the head of a keyed task may have any.
    fn states(&mut self) -> Vec<&mut dyn StateSet> {
        Vec::new()
    }

    /// What gives the entries of its states their meaning and does not show in their schemas: parameters by name. A later
    /// release that has another value under one of these names is refused; names that only one of the two has do not matter.
    fn parameters(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// Takes what an operator emits, and knows the time of its subtask.
#[derive(Debug, Default)]
pub struct Collector {
    batches: Vec<RecordBatch>,
    late_rows: u64,
    time: SubtaskTime,
}

impl Collector {
    /// A collector of a subtask whose key groups have fired as `time` says.
    #[must_use]
    pub fn new(time: SubtaskTime) -> Self {
        Self { batches: Vec::new(), late_rows: 0, time }
    }

    /// Hands rows on. Empty batches are dropped.
    pub fn emit(&mut self, batch: RecordBatch) {
        if batch.num_rows() > 0 {
            self.batches.push(batch);
        }
    }

    /// What was emitted since the last call.
    pub fn take(&mut self) -> Vec<RecordBatch> {
        std::mem::take(&mut self.batches)
    }

    /// Whether nothing was emitted since the last `take`.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// The watermark up to which windows and timers of `group` have fired, inclusive. A row is late when its window
    /// ends (exclusive end - 1 ms) at or below it.
    #[inline]
    #[must_use]
    pub fn fired(&self, group: KeyGroup) -> TimestampMs {
        self.time.fired(group)
    }

    /// The least of [`Collector::fired`] over all key groups of the subtask.
    #[inline]
    #[must_use]
    pub fn fired_min(&self) -> TimestampMs {
        self.time.min
    }

    /// The greatest of [`Collector::fired`] over all key groups of the subtask: a window beyond it is surely open.
    #[inline]
    #[must_use]
    pub fn fired_max(&self) -> TimestampMs {
        self.time.max
    }

    /// Counts rows that came too late.
    pub fn count_late(&mut self, rows: u64) {
        self.late_rows += rows;
    }

    /// The late rows counted so far.
    #[must_use]
    pub fn late_rows(&self) -> u64 {
        self.late_rows
    }

    /// The time of the subtask.
    #[must_use]
    pub fn time(&self) -> &SubtaskTime {
        &self.time
    }

    /// Replaces the time of the subtask.
    pub fn set_time(&mut self, time: SubtaskTime) {
        self.time = time;
    }
}

/// Up to where the key groups of a subtask have fired. Ranges differ only for a while after a rescale or a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubtaskTime {
    /// Sorted, disjoint; key groups that no range holds have fired up to `min`.
    ranges: Vec<(KeyGroupRange, TimestampMs)>,
    min: TimestampMs,
    max: TimestampMs,
}

impl Default for SubtaskTime {
    fn default() -> Self {
        Self::uniform(crate::element::WATERMARK_MIN)
    }
}

impl SubtaskTime {
    /// All key groups have fired up to `fired`.
    #[must_use]
    pub fn uniform(fired: TimestampMs) -> Self {
        Self { ranges: Vec::new(), min: fired, max: fired }
    }

    /// Each range has fired up to its own time.
    #[must_use]
    pub fn of_ranges(mut ranges: Vec<(KeyGroupRange, TimestampMs)>) -> Self {
        let min = ranges.iter().map(|r| r.1).min().unwrap_or(crate::element::WATERMARK_MIN);
        let max = ranges.iter().map(|r| r.1).max().unwrap_or(crate::element::WATERMARK_MIN);
        if min == max {
            return Self::uniform(min);
        }
        ranges.sort_unstable_by_key(|r| r.0);
        Self { ranges, min, max }
    }

    /// Everything up to `watermark` has fired. Key groups that had fired farther stay where they were: else their windows
    /// would fire again.
    pub fn advance(&mut self, watermark: TimestampMs) {
        self.min = self.min.max(watermark);
        self.max = self.max.max(watermark);
        if self.min == self.max {
            self.ranges.clear();
        }
        self.ranges.iter_mut().for_each(|r| r.1 = r.1.max(watermark));
    }

    /// As [`SubtaskTime::advance`], for `some` of `all` its key groups.
    #[must_use]
    pub(crate) fn advanced(&self, all: &KeyGroupRanges, some: &KeyGroupRanges, watermark: TimestampMs) -> Self {
        let own = self.ranges.iter().map(|(range, _)| range);
        let mut cuts: Vec<u32> = all.iter().chain(some.iter()).chain(own).flat_map(|r| [r.start, r.end]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let pieces = cuts.windows(2).map(|cut| KeyGroupRange { start: cut[0], end: cut[1] });
        let mut ranges: Vec<(KeyGroupRange, TimestampMs)> = Vec::new();
        for piece in pieces {
            let first = KeyGroup(piece.start as u16);
            if !all.contains(first) {
                continue;
            }
            let before = self.fired(first);
            let fired = if some.contains(first) { before.max(watermark) } else { before };
            match ranges.last_mut() {
                Some((last, time)) if last.end == piece.start && *time == fired => last.end = piece.end,
                _ => ranges.push((piece, fired)),
            }
        }
        Self::of_ranges(ranges)
    }

    /// Up to where all of `groups` have fired.
    #[must_use]
    pub(crate) fn min_of(&self, groups: &KeyGroupRanges) -> TimestampMs {
        let within = |r: &&(KeyGroupRange, TimestampMs)| !groups.intersect(&KeyGroupRanges::from(r.0)).is_empty();
        self.ranges.iter().filter(within).map(|r| r.1).min().unwrap_or(self.min)
    }

    /// Up to where `group` has fired.
    #[inline]
    #[must_use]
    pub fn fired(&self, group: KeyGroup) -> TimestampMs {
        if self.min == self.max {
            return self.min;
        }
        let i = self.ranges.partition_point(|r| r.0.end <= u32::from(group.0));
        self.ranges.get(i).filter(|r| r.0.contains(group)).map_or(self.min, |r| r.1)
    }

    /// The least over all key groups.
    #[must_use]
    pub fn min(&self) -> TimestampMs {
        self.min
    }

    /// The greatest over all key groups.
    #[must_use]
    pub fn max(&self) -> TimestampMs {
        self.max
    }

    /// The ranges with a time of their own; empty when all are alike.
    #[must_use]
    pub fn ranges(&self) -> &[(KeyGroupRange, TimestampMs)] {
        &self.ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_key_groups_fire_before_others() {
        let set = |pairs: &[(u32, u32)]| pairs.iter().map(|&(start, end)| KeyGroupRange { start, end }).collect();
        let all: KeyGroupRanges = set(&[(0, 100), (200, 300)]);
        let fired = |time: &SubtaskTime| [0, 49, 50, 99, 200, 299].map(|g| time.fired(KeyGroup(g)));
        let time = SubtaskTime::uniform(5).advanced(&all, &set(&[(50, 100), (200, 210)]), 9);
        assert_eq!((fired(&time), time.min(), time.max()), ([5, 5, 9, 9, 9, 5], 5, 9));
        assert_eq!([(60, 80), (60, 210), (0, 60)].map(|pair| time.min_of(&set(&[pair]))), [9, 9, 5]);
        // What has fired farther stays.
        let time = time.advanced(&all, &set(&[(0, 60)]), 7);
        assert_eq!(fired(&time), [7, 7, 9, 9, 9, 5]);
        // Neighbours with the same time are one.
        assert_eq!(time.advanced(&all, &set(&[(0, 50)]), 9).ranges().len(), 3);
        let time = time.advanced(&all, &all, 10);
        assert_eq!((time.min(), time.max(), time.ranges().len()), (10, 10, 0));
    }
}
