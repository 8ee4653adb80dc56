//! Which runs to merge next. Pure.
//!
//! What one flush or one merge wrote side by side, runs of one interval, is one *logical run*: windows and weights are those
//! of logical runs, and the runs that lie in a window are found at the end.
//!
//! *Piles.* Merging k neighbours of together n bytes takes k - 1 runs away for n bytes rewritten. Where many runs lie above
//! one another, the window with the least n / (k - 1)^4 is merged: so small runs go first and together, a large one waits until
//! much has come above it, and a byte is rewritten a number of times that grows with the logarithm of the number of
//! flushes (measured in tests). A window takes runs that cover the same key groups, where there are such: a merge that leaves rests
//! of its inputs in other key groups takes those apart, and what follows fits in fewer of them. One of more than a few outputs goes
//! a few pieces at a time.
//!
//! *Rounds.* The oldest run, once it is large, is no part of a pile: a merge takes only some of it, and key groups that differ
//! in what lies above can hardly be merged together again. When a quarter of its bytes lies above it, those of that which cover the same
//! key groups become one run, which then goes into the oldest one a few pieces at a time: the round. What comes meanwhile covers all
//! key groups, and is a pile of its own. The same brings key groups together that a rescale has put into one subtask: what covers
//! only some of them goes into the oldest run there, until no more than the oldest ones differ.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use millstream_common::{KeyGroupRange, KeyGroupRanges};

use super::CompactionOptions;
use crate::run::Run;
use crate::section::Interval;
use crate::tree::live_in_segments;

/// A compaction to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick {
    /// Neighbours in interval order, newest first.
    pub inputs: Vec<Arc<Run>>,
    /// The key groups in which to merge them.
    pub ranges: KeyGroupRanges,
    /// Nothing older is live there.
    pub bottom: bool,
}

/// What writing a run costs beside its bytes, in bytes.
const RUN_COST_BYTES: u64 = 4 << 10;

/// What a pick leaves alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits<'a> {
    /// Runs that are being merged.
    pub busy: &'a [Arc<Run>],
    /// Merges into the oldest run of more than so many bytes wait, unless they are overdue: twice as many bytes lie above it as in
    /// it, or, where it is part of a pile, a key group has as many runs as a read is to see at most
    /// ([`CompactionOptions::runs_max`]).
    pub put_off_bytes: Option<u64>,
}

impl Limits<'_> {
    fn is_busy(&self, run: &Run) -> bool {
        self.busy.iter().any(|b| b.identity() == run.identity())
    }
}

/// The compaction that is worth most, if any key group in `ranges` has enough runs, or enough bytes above a large oldest run.
/// `runs`: those of one task; others than those in `ranges` are not looked at.
#[must_use]
pub fn pick(runs: &[Arc<Run>], ranges: &KeyGroupRanges, options: &CompactionOptions) -> Option<Pick> {
    pick_within(runs, ranges, options, &Limits::default())
}

/// As [`pick`], within limits. The runs of a key group that are busy count among those that a read sees, but merges go
/// around them.
#[must_use]
pub fn pick_within(
    runs: &[Arc<Run>],
    ranges: &KeyGroupRanges,
    options: &CompactionOptions,
    limits: &Limits<'_>,
) -> Option<Pick> {
    let scene = Scene::of(runs, ranges, options, limits);
    let segments = live_in_segments(scene.runs.iter().map(|l| &l.cover));
    let mut order: Vec<&Segment> = segments.iter().filter(|(_, live)| scene.beyond(live).is_some()).collect();
    // Those with the most runs first.
    order.sort_by_key(|(_, live)| Reverse(live.len()));
    let pile = || order.iter().find_map(|segment| scene.pile(segment));
    // A round goes on when nothing else does.
    let round = || limits.busy.is_empty().then(|| scene.round(&segments)).flatten();
    Some(scene.merge_of(&segments, &pile().or_else(round)?))
}

/// Key groups with the same logical runs, these newest first.
type Segment = (KeyGroupRange, Vec<usize>);

/// A merge of more than so many outputs goes piece by piece.
const WHOLE_OUTPUTS: u64 = 8;
/// A round is due where so many times the bytes above the oldest run are those of that.
const ROUND_SHARE: u64 = 4;
/// So many runs of a round that goes on do not count: else the young ones above them are merged again and again for want of
/// places, and the round gets no turn.
const ROUND_RUNS: usize = 3;

/// A logical run: what one flush or one merge wrote, runs of one interval side by side.
struct Logical {
    /// Each with the key groups in which it is looked at; in their order.
    pieces: Vec<(Arc<Run>, KeyGroupRanges)>,
    /// All of these.
    cover: KeyGroupRanges,
    /// Bytes in them.
    bytes: u64,
    /// A piece is being merged.
    busy: bool,
    /// Those of one number cover the same key groups.
    class: usize,
}

/// Logical runs to merge: neighbours in some segments, newest first.
struct Window<'a> {
    runs: &'a [usize],
    /// They end with the oldest run.
    bottom: bool,
}

impl Logical {
    /// About how many bytes lie in so many of its key groups.
    fn bytes_in(&self, groups: u32) -> u64 {
        (u128::from(self.bytes) * u128::from(groups) / u128::from(self.cover.len().max(1))) as u64
    }
}

/// The runs of a task in some key groups.
struct Scene<'a> {
    /// Newest first.
    runs: Vec<Logical>,
    /// The key groups in which anything is live.
    all: KeyGroupRanges,
    limits: &'a Limits<'a>,
    trigger: usize,
    runs_max: usize,
    whole_bytes: u64,
}

impl<'a> Scene<'a> {
    fn of(runs: &[Arc<Run>], ranges: &KeyGroupRanges, options: &CompactionOptions, limits: &'a Limits<'a>) -> Self {
        let mut by_interval: BTreeMap<Interval, Logical> = BTreeMap::new();
        for run in runs {
            let clip = run.clip.intersect(ranges);
            if clip.is_empty() {
                continue;
            }
            let none =
                || Logical { pieces: Vec::new(), cover: KeyGroupRanges::empty(), bytes: 0, busy: false, class: 0 };
            let logical = by_interval.entry(run.interval).or_insert_with(none);
            logical.bytes += bytes_in(run, clip.len());
            logical.busy |= limits.is_busy(run);
            logical.pieces.push((run.clone(), clip));
        }
        let mut runs: Vec<Logical> = by_interval.into_values().rev().collect();
        let mut classes: BTreeMap<Vec<(u32, u32)>, usize> = BTreeMap::new();
        for logical in &mut runs {
            logical.cover = KeyGroupRanges::new(logical.pieces.iter().flat_map(|p| p.1.iter().copied()));
            let (bounds, next) = (logical.cover.iter().map(|r| (r.start, r.end)).collect(), classes.len());
            logical.class = *classes.entry(bounds).or_insert(next);
            logical.pieces.sort_by_key(|(_, clip)| clip.as_slice().first().map(|r| r.start));
        }
        let all = KeyGroupRanges::new(runs.iter().flat_map(|l| l.cover.iter().copied()));
        let (trigger, runs_max) = (options.trigger_runs.max(2), options.runs_max());
        Self { runs, all, limits, trigger, runs_max, whole_bytes: options.output_bytes.saturating_mul(WHOLE_OUTPUTS) }
    }

    /// How many runs of a segment do not count, for a round is taking them away.
    fn grace(&self, live: &[usize]) -> usize {
        let above = &live[..live.len() - 1];
        let partial = above.iter().filter(|i| self.runs[**i].cover != self.all).count();
        // With them there are fewer than a read is to see at most.
        partial.min(ROUND_RUNS).min((self.runs_max - self.trigger).saturating_sub(1))
    }

    /// How many runs of a segment there are beyond those that start a merge.
    fn beyond(&self, live: &[usize]) -> Option<usize> {
        live.len().checked_sub(self.trigger + self.grace(live))
    }

    /// What to merge where there are many runs.
    fn pile<'b>(&self, (segment, live): &'b Segment) -> Option<Window<'b>> {
        let last = live.len() - 1;
        let oldest = &self.runs[live[last]];
        let for_round = oldest.bytes > self.whole_bytes || oldest.cover != self.all;
        let neighbours: Vec<Neighbour> = (0..live.len())
            .map(|at| {
                let run = &self.runs[live[at]];
                let bytes = run.bytes_in(segment.len()) + RUN_COST_BYTES;
                let alone = for_round && at == last;
                let class = (!alone).then_some(run.class);
                Neighbour { bytes, whole: run.bytes, busy: run.busy, class }
            })
            .collect();
        let above: u64 = neighbours[..last].iter().map(|n| n.bytes).sum();
        let overdue = live.len() >= self.runs_max || above >= 2 * neighbours[last].bytes;
        let put_off = self.limits.put_off_bytes.filter(|_| !overdue);
        // More runs come while it runs: the more there are above the trigger, the more it must take away.
        let least = (3 + self.beyond(live)?).min(live.len());
        // What covers other key groups is taken when nothing else is there.
        let mut windows = vec![(least, true), (2, true), (2, false)];
        if neighbours.iter().any(|n| n.busy) {
            // A merge takes some away. Beside it, those that come are merged when they are many by themselves.
            let is_enough = |alike: bool| {
                let near = |a: &Neighbour, b: &Neighbour| !a.busy && !b.busy && (!alike || a.class == b.class);
                neighbours.chunk_by(near).any(|stretch| stretch.len() > self.trigger / 2)
            };
            let at_bound = live.len() >= self.runs_max + self.grace(live);
            windows = vec![(3, true)];
            windows.extend(at_bound.then_some((self.trigger / 2 + 1, false)));
            windows.retain(|&(_, alike)| is_enough(alike));
        }
        let (from, to) =
            windows.into_iter().find_map(|(least, alike)| best_window(&neighbours, least, put_off, alike))?;
        Some(Window { runs: &live[from..=to], bottom: to == last })
    }

    /// The next step of a round over the oldest run.
    fn round<'b>(&self, segments: &'b [Segment]) -> Option<Window<'b>> {
        let step = |(segment, live): &'b Segment| {
            let (&oldest, above) = live.split_last()?;
            let (&upper, _) = above.split_last()?;
            let bytes = |i: usize| self.runs[i].bytes_in(segment.len());
            let (below, of_upper) = (bytes(oldest).max(1), bytes(upper));
            let in_pile = self.runs[oldest].bytes <= self.whole_bytes && self.runs[oldest].cover == self.all;
            if in_pile && self.runs[upper].cover == self.all {
                return None;
            }
            let of_above: u64 = above.iter().map(|i| bytes(*i)).sum();
            if of_above.saturating_mul(ROUND_SHARE) < below {
                return None;
            }
            let alike = above.iter().rev().take_while(|i| self.runs[**i].class == self.runs[upper].class).count();
            let share = u128::from(of_above) * 1024 / u128::from(below);
            if alike > 1 && of_upper.saturating_mul(ROUND_SHARE) < below {
                return Some((true, share, Window { runs: &above[above.len() - alike..], bottom: false }));
            }
            let put_off = self.limits.put_off_bytes.is_some_and(|most| self.runs[oldest].bytes > most);
            if put_off && of_above < 2 * below {
                return None;
            }
            Some((false, share, Window { runs: &live[above.len() - 1..], bottom: true }))
        };
        // One run first, everywhere.
        let steps = segments.iter().filter_map(step);
        steps.max_by_key(|(is_first, share, _)| (*is_first, *share)).map(|(.., window)| window)
    }

    /// The merge of a window, everywhere where its runs are neighbours in the same place; of some pieces of the oldest of them
    /// when they are large. None of them is being merged.
    fn merge_of(&self, segments: &[Segment], window: &Window<'_>) -> Pick {
        let same = |live: &[usize]| {
            let ends = live.last() == window.runs.last();
            live.windows(window.runs.len()).any(|w| w == window.runs) && ends == window.bottom
        };
        let mut ranges: KeyGroupRanges =
            segments.iter().filter(|(_, live)| same(live)).map(|(segment, _)| *segment).collect();
        let bytes_in = |groups: u32| -> u64 { window.runs.iter().map(|&i| self.runs[i].bytes_in(groups)).sum() };
        if bytes_in(ranges.len()) > self.whole_bytes {
            let pieces = window.runs.last().map_or(&[][..], |&oldest| &self.runs[oldest].pieces);
            let clips = pieces.iter().map(|(_, clip)| clip.intersect(&ranges)).filter(|clip| !clip.is_empty());
            let mut bytes = 0;
            let some = clips.enumerate().take_while(|(i, clip)| {
                bytes += bytes_in(clip.len());
                *i == 0 || bytes <= self.whole_bytes
            });
            ranges = KeyGroupRanges::new(some.flat_map(|(_, clip)| clip.as_slice().to_vec()));
        }
        let pieces = window.runs.iter().flat_map(|&i| &self.runs[i].pieces);
        let inputs = pieces.filter(|(_, clip)| clip.overlaps(&ranges)).map(|(run, _)| run.clone()).collect();
        Pick { inputs, ranges, bottom: window.bottom }
    }
}

/// Bytes of the runs of those key groups that have so many that they are to be merged, about: how far behind compactions
/// are. `runs`: all live ones of a task.
#[must_use]
pub fn debt_bytes(runs: &[Arc<Run>], options: &CompactionOptions) -> u64 {
    // At each bound of a clip: how many runs begin or end there, and by how much a key group has more bytes, in 2^-32.
    let mut changes: BTreeMap<u32, (i64, i128)> = BTreeMap::new();
    for run in runs {
        let density = (i128::from(run.length) << 32) / i128::from(run.clip.len().max(1));
        for range in run.clip.iter() {
            for (bound, sign) in [(range.start, 1), (range.end, -1)] {
                let change = changes.entry(bound).or_default();
                *change = (change.0 + sign, change.1 + i128::from(sign) * density);
            }
        }
    }
    let mut bytes = 0_i128;
    let (mut live, mut density, mut start) = (0_i64, 0_i128, 0_u32);
    for (bound, change) in changes {
        if live as usize >= options.trigger_runs.max(2) {
            bytes += density * i128::from(bound - start);
        }
        (live, density, start) = (live + change.0, density + change.1, bound);
    }
    ((bytes + (1 << 31)) >> 32) as u64
}

/// About how many bytes of a run lie in so many of its key groups.
fn bytes_in(run: &Run, groups: u32) -> u64 {
    (u128::from(run.length) * u128::from(groups) / u128::from(run.clip.len().max(1))) as u64
}

/// A run among those of a key group.
#[derive(Clone, Copy, Debug)]
struct Neighbour {
    /// What it costs in the key group's segment.
    bytes: u64,
    /// Its bytes in all key groups that are looked at.
    whole: u64,
    /// It is being merged.
    busy: bool,
    /// Those of one number cover the same key groups; none: it goes with no other.
    class: Option<usize>,
}

/// The window (first and last index) of at least `least` neighbours (two or more), none of them busy, with the least
/// size / (count - 1)^4; of equals the longer, then the younger one. `runs` are newest first. One that ends with the oldest
/// run has `put_off` bytes at most, in all. The time is that of the square of the number of runs.
fn best_window(runs: &[Neighbour], least: usize, put_off: Option<u64>, alike: bool) -> Option<(usize, usize)> {
    let mut best: Option<(u128, u128, usize, usize)> = None;
    for from in 0..runs.len() {
        let (mut size, mut whole) = (0_u64, 0_u64);
        for (to, run) in runs.iter().enumerate().skip(from) {
            if run.busy || (alike && run.class != runs[from].class) {
                break;
            }
            size = size.saturating_add(run.bytes);
            whole = whole.saturating_add(run.whole);
            let count = to - from + 1;
            let waits = to + 1 == runs.len() && put_off.is_some_and(|most| whole > most);
            if count < least.max(2) || waits {
                continue;
            }
            let weight = ((count - 1) as u128).pow(4);
            let better = best.is_none_or(|(best_size, best_weight, a, b)| {
                let (new, old) = (u128::from(size) * best_weight, best_size * weight);
                new < old || (new == old && count > b - a + 1)
            });
            if better {
                best = Some((u128::from(size), weight, from, to));
            }
        }
    }
    best.map(|(_, _, from, to)| (from, to))
}
