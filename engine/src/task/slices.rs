//! Firing more than fits into memory: the key groups of a subtask fire in slices, one after the other.
//!
//! What is due at a time must be resident before it fires, and a time alone (the end of a window) may have more entries than
//! there is memory. So whoever drives an operator may cut its key groups into slices: [`Operator::advance`] goes to its
//! goal with each of them. A slice shows in the states only, which leave other key groups out, and in the time of the subtask:
//! key groups of slices that are done have fired. An operator that goes by [`Collector::fired`] for each key group, as it
//! must behind a rescale anyway, knows nothing of slices.
//!
//! There are two cuts, by what an operator needs to fire:
//!
//! - **Entries count for themselves** (timers, windows that do not overlap): the store has them in the order of time and
//!   key group, and a scan that stops within a time has some key groups whole. These fire up to that time; then the scan goes
//!   on behind them. So what is due is read once, in order, but for the scan that shows that a time has too much.
//! - **Entries of many times are needed together** (panes of sliding windows): the key groups are cut in parts, each of which
//!   goes up to the watermark; a part that is still too large is cut again.
//!
//! Nothing is cut while an operator is in the middle of something: first it advances to where it can with what is resident. That
//! is as if the watermark had come in two steps. Slices begin and end within one `advance` of a subtask: no row and no barrier
//! comes between.
//!
//! [`Collector::fired`]: crate::operator::Collector::fired

use millstream_common::{KeyGroup, KeyGroupRanges, Result};
use millstream_state_store::key::split_timed_key;

use super::paging::Overflow;
use crate::element::TimestampMs;
use crate::operator::{Operator, SubtaskTime};

/// Key groups whose entries are needed together are cut into so many parts.
const PARTS: u32 = 4;

/// How to cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// This time has more than is brought at once; the key groups before this one have not.
    Before(TimestampMs, KeyGroup),
    Parts,
}

/// What a subtask advances.
#[derive(Clone, Copy)]
pub(crate) struct Advance<'a> {
    /// All its key groups.
    pub(crate) all: &'a KeyGroupRanges,
    /// Up to where they have fired.
    pub(crate) time: &'a SubtaskTime,
    pub(crate) watermark: TimestampMs,
}

/// Key groups that go to a goal one part after the other.
struct Level {
    goal: TimestampMs,
    /// Those that are not there yet.
    left: KeyGroupRanges,
    /// Those of them that are on their way.
    present: KeyGroupRanges,
    /// As many as go at once; `None` for as many as a scan brings.
    size: Option<u32>,
}

/// The slices of a subtask; none while all key groups fire together. The present slice of a level may be cut into another level.
#[derive(Default)]
pub(crate) struct Slices {
    levels: Vec<Level>,
    /// What is to be cut once the operator has advanced to here.
    cut: Option<(TimestampMs, Cut)>,
}

impl Slices {
    /// The key groups that fire, of `all`.
    pub(crate) fn present<'a>(&'a self, all: &'a KeyGroupRanges) -> &'a KeyGroupRanges {
        self.levels.last().map_or(all, |level| &level.present)
    }

    /// Whether there can be smaller ones. While the operator advances to where it can, so that a cut can be made, it is given
    /// all that it needs.
    pub(crate) fn may_cut(&self, all: &KeyGroupRanges) -> bool {
        self.cut.is_none() && self.present(all).len() > 1
    }

    /// Where the operator is to advance to, when the watermark is `watermark`.
    pub(crate) fn target(&self, watermark: TimestampMs) -> TimestampMs {
        match (&self.cut, self.levels.last()) {
            (Some((target, _)), _) => *target,
            (None, Some(level)) => level.goal,
            (None, None) => watermark,
        }
    }

    /// Up to where all that fire have fired.
    pub(crate) fn fired(&self, time: &SubtaskTime) -> TimestampMs {
        self.levels.last().map_or(time.min(), |level| time.min_of(&level.present))
    }

    /// What becomes of scans that brought too much: the present slice is what they have whole, or there is to be one.
    pub(crate) fn overflowed(
        &mut self,
        overflows: Vec<Overflow>,
        operator: &mut dyn Operator,
        of: Advance<'_>,
    ) -> Result<()> {
        for overflow in overflows {
            let by_scans = |level: &&mut Level| level.size.is_none() && level.goal == overflow.time;
            let Some(level) = self.levels.last_mut().filter(by_scans) else {
                // No scan brings anything any more.
                self.cut(Cut::Before(overflow.time, overflow.before), operator, of);
                return Ok(());
            };
            level.present = level.present.before(overflow.before);
            let mut states = operator.states();
            states.iter_mut().for_each(|state| state.narrow_slice(&level.present));
            // Another scan may have narrowed it further.
            let is_present = |key: &[u8]| split_timed_key(key).is_some_and(|(_, _, g, _)| level.present.contains(g));
            let entries: Vec<_> = overflow.entries.into_iter().filter(|(key, _)| is_present(key)).collect();
            states[overflow.state].shorten_scan(overflow.time);
            states[overflow.state].install_scan(&entries, true)?;
        }
        Ok(())
    }

    /// Has what fires cut, now or when the operator has advanced to where it can. Only when it may be.
    pub(crate) fn cut(&mut self, cut: Cut, operator: &mut dyn Operator, of: Advance<'_>) {
        let mut reach = self.target(of.watermark);
        for state in operator.states() {
            state.abandon_scan();
            reach = reach.min(state.fires_until());
        }
        if reach > self.fired(of.time) {
            self.cut = Some((reach, cut));
        } else {
            self.begin(cut, operator, of);
        }
    }

    /// The operator is done with `advance` to [`Slices::target`]: the time of the subtask from here on. `None` when there are no
    /// slices and none are to come.
    pub(crate) fn done(&mut self, operator: &mut dyn Operator, of: Advance<'_>) -> Option<SubtaskTime> {
        if let Some((target, cut)) = self.cut.take() {
            let time = of.time.advanced(of.all, self.present(of.all), target);
            self.begin(cut, operator, Advance { time: &time, ..of });
            return Some(time);
        }
        let level = self.levels.last_mut()?;
        let time = of.time.advanced(of.all, &level.present, level.goal);
        level.left = level.left.subtract(&level.present);
        if level.left.is_empty() {
            self.levels.pop();
        } else {
            level.present = next(&level.left, level.size);
        }
        self.tell(operator, &time);
        Some(time)
    }

    fn begin(&mut self, cut: Cut, operator: &mut dyn Operator, of: Advance<'_>) {
        let (goal, left) = (self.target(of.watermark), self.present(of.all).clone());
        let is_together = operator.states().iter().any(|state| state.looks_beyond());
        let level = match cut {
            Cut::Before(at, group) if at <= goal && !is_together && !left.before(group).is_empty() => {
                Level { goal: at, present: left.before(group), left, size: None }
            }
            _ => {
                let size = Some(left.len().div_ceil(PARTS));
                Level { goal, present: next(&left, size), left, size }
            }
        };
        self.levels.push(level);
        self.tell(operator, of.time);
    }

    fn tell(&self, operator: &mut dyn Operator, time: &SubtaskTime) {
        for state in operator.states() {
            state.set_slice(self.levels.last().map(|level| (&level.present, time)));
        }
    }
}

/// The first `size` key groups.
fn next(left: &KeyGroupRanges, size: Option<u32>) -> KeyGroupRanges {
    size.map_or_else(|| left.clone(), |size| left.first(size))
}
