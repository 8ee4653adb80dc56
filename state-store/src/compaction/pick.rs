//! Which runs to merge next. Pure.
//!
//! What one flush or one merge wrote side by side, runs of one interval, is one *logical run*: windows and weights are those
//! of logical runs, and the runs that lie in a window are found at the end.
//!
//! *Piles.* Merging k neighbours of together n bytes takes k - 1 runs away for n bytes rewritten. Where many runs lie above
//! one another, the window with the least n / (k - 1)^4 is merged: so small runs go first and together, a large one waits until
//! much has come above it, and a byte is rewritten a number of times that grows with the logarithm of the number of
//! flushes (measured in tests). A window takes runs that cover the same key groups, where there are such: so no merge leaves
//! rests of its inputs in other key groups, in which they would have to be merged once more.
//!
//! *Rounds.* The oldest run, once it is large, is no part of a pile: a merge takes only a piece of it, and key groups that differ
//! by piece in what lies above can never be merged together again. When a quarter of its bytes lies above it, all of that
//! becomes one run, which then goes into the oldest one piece by piece: the round. What comes meanwhile covers all key groups,
//! and is a pile of its own. The same brings key groups together that a rescale has put into one subtask.

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
    /// Merges into the oldest run of more than so many bytes wait, unless they are overdue: a key group has as many runs
    /// as a read is to see at most ([`CompactionOptions::runs_max`]), or twice as many bytes above its oldest run as in it.
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
    let pile = order.iter().find_map(|segment| scene.pile(&segments, segment));
    // A round goes on when nothing else does.
    pile.or_else(|| scene.round(&segments).filter(|_| limits.busy.is_empty()))
}

/// Key groups with the same logical runs, these newest first.
type Segment = (KeyGroupRange, Vec<usize>);

/// A merge of more than so many outputs goes piece by piece.
const WHOLE_OUTPUTS: u64 = 8;
/// A round begins where so many times the bytes of the run above the oldest one are those of that.
const ROUND_BEGINS: u64 = 4;
/// And goes on while so many times are.
const ROUND_GOES_ON: u64 = 8;
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
            let none = || Logical { pieces: Vec::new(), cover: KeyGroupRanges::empty(), bytes: 0, busy: false };
            let logical = by_interval.entry(run.interval).or_insert_with(none);
            logical.bytes += bytes_in(run, clip.len());
            logical.busy |= limits.is_busy(run);
            logical.pieces.push((run.clone(), clip));
        }
        let cover = |pieces: &[(Arc<Run>, KeyGroupRanges)]| {
            KeyGroupRanges::new(pieces.iter().flat_map(|p| p.1.iter().copied()))
        };
        let mut runs: Vec<Logical> = by_interval.into_values().rev().collect();
        for logical in &mut runs {
            logical.cover = cover(&logical.pieces);
            logical.pieces.sort_by_key(|(_, clip)| clip.as_slice().first().map(|r| r.start));
        }
        let all = KeyGroupRanges::new(runs.iter().flat_map(|l| l.cover.iter().copied()));
        let (trigger, runs_max) = (options.trigger_runs.max(2), options.runs_max());
        Self { runs, all, limits, trigger, runs_max, whole_bytes: options.output_bytes.saturating_mul(WHOLE_OUTPUTS) }
    }

    /// How many runs of a segment do not count, for a round is taking them away.
    fn grace(&self, live: &[usize]) -> usize {
        let above = &live[..live.len() - 1];
        above.iter().filter(|i| self.runs[**i].cover != self.all).count().min(ROUND_RUNS)
    }

    /// How many runs of a segment there are beyond those that start a merge.
    fn beyond(&self, live: &[usize]) -> Option<usize> {
        live.len().checked_sub(self.trigger + self.grace(live))
    }

    /// What to merge where there are many runs.
    fn pile(&self, segments: &[Segment], (segment, live): &Segment) -> Option<Pick> {
        let last = live.len() - 1;
        let oldest = &self.runs[live[last]];
        let for_round = oldest.bytes > self.whole_bytes || oldest.cover != self.all;
        let neighbours: Vec<Neighbour> = (0..live.len())
            .map(|at| {
                let run = &self.runs[live[at]];
                let bytes = run.bytes_in(segment.len()) + RUN_COST_BYTES;
                let alone = for_round && at == last;
                let class = self.runs.iter().position(|r| r.cover == run.cover).filter(|_| !alone);
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
            let many = self.trigger / 2 + 1;
            let stretches = neighbours.chunk_by(|a, b| !a.busy && !b.busy && a.class == b.class);
            let is_enough = stretches.map(<[_]>::len).max().is_some_and(|longest| longest >= many);
            windows = if is_enough { vec![(3, true)] } else { Vec::new() };
        }
        windows.into_iter().find_map(|(least, alike)| {
            let (from, to) = best_window(&neighbours, least, put_off, alike)?;
            self.merge_of(segments, &live[from..=to], to == last)
        })
    }

    /// The next step of a round over the oldest run: all that lies above it becomes one run, which goes into it piece by piece.
    /// What comes meanwhile covers all key groups, and is merged by itself.
    fn round(&self, segments: &[Segment]) -> Option<Pick> {
        let step = |(segment, live): &Segment| {
            let (&oldest, above) = live.split_last()?;
            let (&upper, _) = above.split_last()?;
            let bytes = |i: usize| self.runs[i].bytes_in(segment.len());
            let (below, of_upper) = (bytes(oldest).max(1), bytes(upper));
            let goes_on = self.runs[upper].cover != self.all;
            if !goes_on && self.runs[oldest].bytes <= self.whole_bytes {
                return None;
            }
            let alike = above.iter().rev().take_while(|i| self.runs[**i].cover == self.runs[upper].cover).count();
            let from = above.len() - alike;
            let of_alike: u64 = above[from..].iter().map(|i| bytes(*i)).sum();
            let share = if goes_on { ROUND_GOES_ON } else { ROUND_BEGINS };
            let (bytes, pick) = if of_upper.saturating_mul(share) >= below {
                let put_off = self.limits.put_off_bytes.is_some_and(|most| self.runs[oldest].bytes > most);
                if put_off && of_upper < 2 * below {
                    return None;
                }
                (of_upper, self.merge_of(segments, &live[above.len() - 1..], true)?)
            } else if alike > 1 && of_alike.saturating_mul(ROUND_BEGINS) >= below {
                (of_alike, self.merge_of(segments, &above[from..], false)?)
            } else {
                return None;
            };
            Some((!pick.bottom, u128::from(bytes) * 1024 / u128::from(below), pick))
        };
        // One run first, everywhere.
        segments.iter().filter_map(step).max_by_key(|(is_first, share, _)| (*is_first, *share)).map(|(.., pick)| pick)
    }

    /// The merge of these logical runs, everywhere where they are neighbours in the same place; of one piece of the oldest of
    /// them, when they are large. None when any of it is being merged.
    fn merge_of(&self, segments: &[Segment], window: &[usize], bottom: bool) -> Option<Pick> {
        let same = |live: &[usize]| {
            live.windows(window.len()).any(|w| w == window) && (live.last() == window.last()) == bottom
        };
        let mut ranges: KeyGroupRanges =
            segments.iter().filter(|(_, live)| same(live)).map(|(segment, _)| *segment).collect();
        let bytes: u64 = window.iter().map(|&i| self.runs[i].bytes_in(ranges.len())).sum();
        if bytes > self.whole_bytes {
            // Neighbours among the pieces of the oldest of them.
            let bytes_in =
                |clip: &KeyGroupRanges| -> u64 { window.iter().map(|&i| self.runs[i].bytes_in(clip.len())).sum() };
            let (mut some, mut of_some) = (Vec::new(), 0);
            for (run, clip) in &self.runs[*window.last()?].pieces {
                let clip = clip.intersect(&ranges);
                if clip.is_empty() || self.limits.is_busy(run) {
                    if some.is_empty() { continue } else { break }
                }
                let of_clip = bytes_in(&clip);
                if !some.is_empty() && of_some + of_clip > self.whole_bytes {
                    break;
                }
                of_some += of_clip;
                some.extend(clip.iter().copied());
            }
            ranges = KeyGroupRanges::new(some);
            if ranges.is_empty() {
                return None;
            }
        }
        let pieces = || window.iter().flat_map(|&i| &self.runs[i].pieces).filter(|(_, clip)| clip.overlaps(&ranges));
        let inputs: Vec<Arc<Run>> = pieces().map(|(run, _)| run.clone()).collect();
        (!inputs.iter().any(|run| self.limits.is_busy(run))).then_some(Pick { inputs, ranges, bottom })
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
