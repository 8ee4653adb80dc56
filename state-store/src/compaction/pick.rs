//! Which runs to merge next. Pure.
//!
//! Merging k neighbours of together n bytes takes k - 1 runs away for n bytes rewritten. The window with the least
//! n / (k - 1)^4 is merged: so small runs go first and together, a large one waits until much has come above it, and
//! a byte is rewritten a number of times that grows with the logarithm of the number of flushes (measured in tests).

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use millstream_common::{KeyGroup, KeyGroupRange, KeyGroupRanges};

use super::CompactionOptions;
use crate::run::Run;
use crate::tree::segments;

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

/// The compaction that is worth most, if any key group in `ranges` has enough runs. `runs`: those of one task; others
/// than those in `ranges` are not looked at.
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
    let mut runs: Vec<(&Arc<Run>, KeyGroupRanges)> =
        runs.iter().map(|r| (r, r.clip.intersect(ranges))).filter(|(_, clip)| !clip.is_empty()).collect();
    runs.sort_by(|(a, _), (b, _)| b.interval.cmp(&a.interval).then_with(|| a.identity().cmp(&b.identity())));
    let segments = segments(runs.iter().map(|(_, clip)| clip));
    let per_segment: Vec<Vec<usize>> = segments.iter().map(|s| live_in(&runs, s)).collect();
    let trigger = options.trigger_runs.max(2);
    let mut order: Vec<usize> = (0..segments.len()).filter(|&i| per_segment[i].len() >= trigger).collect();
    // Those with the most runs first.
    order.sort_by_key(|&i| (Reverse(per_segment[i].len()), i));
    let is_busy = |run: &Run| limits.busy.iter().any(|b| b.identity() == run.identity());
    let busy: Vec<bool> = runs.iter().map(|(run, _)| is_busy(run)).collect();
    let (window, bottom) = order.into_iter().find_map(|worst| {
        let live = &per_segment[worst];
        let sizes: Vec<u64> = live.iter().map(|&i| size_in(runs[i].0, &segments[worst])).collect();
        let last = live.len() - 1;
        let overdue = live.len() >= options.runs_max() || sizes[..last].iter().sum::<u64>() >= 2 * sizes[last];
        let put_off = limits.put_off_bytes.filter(|_| !overdue);
        let allowed = |from: usize, to: usize| {
            let whole: u64 = live[from..=to].iter().map(|&i| bytes_in(runs[i].0, runs[i].1.len())).sum();
            let waits = to == last && put_off.is_some_and(|most| whole > most);
            !waits && !live[from..=to].iter().any(|&i| busy[i])
        };
        // More runs come while it runs: the more there are above the trigger, the more it must take away.
        let least = (3 + 2 * (live.len() - trigger)).min(live.len());
        let (from, to) = best_window(&sizes, least, allowed).or_else(|| best_window(&sizes, 2, allowed))?;
        Some((&live[from..=to], to == last))
    })?;
    // Everywhere where the same runs are neighbours in the same place.
    let same =
        |live: &Vec<usize>| live.windows(window.len()).any(|w| w == window) && (live.last() == window.last()) == bottom;
    let ranges = segments.iter().zip(&per_segment).filter(|(_, live)| same(live)).map(|(s, _)| *s).collect();
    Some(Pick { inputs: window.iter().map(|&i| runs[i].0.clone()).collect(), ranges, bottom })
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

/// The runs, by index, that are live in a segment.
fn live_in(runs: &[(&Arc<Run>, KeyGroupRanges)], segment: &KeyGroupRange) -> Vec<usize> {
    let group = KeyGroup(segment.start as u16);
    (0..runs.len()).filter(|&i| runs[i].1.contains(group)).collect()
}

/// About how many bytes of a run lie in so many of its key groups.
fn bytes_in(run: &Run, groups: u32) -> u64 {
    (u128::from(run.length) * u128::from(groups) / u128::from(run.clip.len().max(1))) as u64
}

/// What a run costs in a segment.
fn size_in(run: &Run, segment: &KeyGroupRange) -> u64 {
    bytes_in(run, segment.len()) + RUN_COST_BYTES
}

/// The window (first and last index) of at least `least` neighbours (two or more) with the least
/// size / (count - 1)^4, of those that are allowed; of equals the longer, then the younger one. `sizes` are newest first.
fn best_window(sizes: &[u64], least: usize, allowed: impl Fn(usize, usize) -> bool) -> Option<(usize, usize)> {
    let mut best: Option<(u128, usize, usize)> = None;
    for from in 0..sizes.len() {
        let mut size = u128::from(sizes[from]);
        for (to, older) in sizes.iter().enumerate().skip(from + 1) {
            size += u128::from(*older);
            if to - from + 1 < least || !allowed(from, to) {
                continue;
            }
            let weight = |from: usize, to: usize| ((to - from) as u128).pow(4);
            let better = best.is_none_or(|(best_size, a, b)| {
                let (new, old) = (size * weight(a, b), best_size * weight(from, to));
                new < old || (new == old && to - from > b - a)
            });
            if better {
                best = Some((size, from, to));
            }
        }
    }
    best.map(|(_, from, to)| (from, to))
}
