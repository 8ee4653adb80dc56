//! Firing more than fits into memory: the key groups of a subtask fire in slices, one after the other.
//!
//! What is due at a time must be resident before it fires, and a time alone (the end of a window) may have more entries than
//! there is memory. So whoever drives an operator may cut its key groups into slices: [`Operator::advance`] goes from its
//! beginning to its end with each. A slice shows in the states only, which leave other key groups out, and in the time
//! of the subtask: key groups of slices that are done have fired. An operator that goes by [`Collector::fired`] for each
//! key group, as it must behind a rescale anyway, knows nothing of slices.
//!
//! A slice that is still too large is cut again. What had fired for all of its key groups by then does not fire again: the
//! subtask's time says so where the states dropped a time as a whole, and their scans begin behind all that was dropped.
//!
//! [`Collector::fired`]: crate::operator::Collector::fired

use millstream_common::KeyGroupRanges;

use crate::element::TimestampMs;
use crate::operator::{Operator, SubtaskTime};

/// A slice is cut into so many.
const PARTS: u32 = 8;

struct Slice {
    groups: KeyGroupRanges,
    /// By state: what stands at or below it is not read again.
    known: Vec<TimestampMs>,
}

/// The slices that have not fired; the present one is the last. None while all key groups fire together.
#[derive(Default)]
pub(crate) struct Slices(Vec<Slice>);

impl Slices {
    /// The key groups that fire, of `all`.
    pub(crate) fn present<'a>(&'a self, all: &'a KeyGroupRanges) -> &'a KeyGroupRanges {
        self.0.last().map_or(all, |s| &s.groups)
    }

    /// Cuts the key groups that fire into smaller slices and begins the first. The time of the subtask from here on; `None`
    /// when there is only one key group.
    pub(crate) fn cut(
        &mut self,
        all: &KeyGroupRanges,
        operator: &mut dyn Operator,
        time: &SubtaskTime,
    ) -> Option<SubtaskTime> {
        let groups = self.present(all).clone();
        let parts = groups.split(PARTS);
        if parts.len() < 2 {
            return None;
        }
        let before = self.0.pop().map(|s| s.known).unwrap_or_default();
        let states = operator.states();
        let fired = states.iter().map(|s| s.fired_until()).max().unwrap_or(TimestampMs::MIN);
        let known = |(i, expired): (usize, TimestampMs)| before.get(i).map_or(expired, |before| expired.max(*before));
        let known: Vec<_> = states.iter().map(|s| s.expired_until()).enumerate().map(known).collect();
        self.0.extend(parts.into_iter().rev().map(|groups| Slice { groups, known: known.clone() }));
        self.begin(operator);
        Some(time.advanced(all, &groups, fired))
    }

    /// The present slice has fired up to `watermark`; the time of the subtask from here on, and whether another slice follows. `None`
    /// when there are no slices.
    pub(crate) fn next(
        &mut self,
        all: &KeyGroupRanges,
        operator: &mut dyn Operator,
        time: &SubtaskTime,
        watermark: TimestampMs,
    ) -> Option<(SubtaskTime, bool)> {
        let done = self.0.pop()?;
        self.begin(operator);
        Some((time.advanced(all, &done.groups, watermark), !self.0.is_empty()))
    }

    fn begin(&self, operator: &mut dyn Operator) {
        let slice = self.0.last();
        for (i, state) in operator.states().into_iter().enumerate() {
            state.set_slice(slice.map(|s| (&s.groups, s.known[i])));
        }
    }
}
