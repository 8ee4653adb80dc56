//! Which runs to merge next. Pure.
//!
//! Merging k neighbours of together n bytes takes k - 1 runs away for n bytes rewritten. The window with the least
//! n / (k - 1)^4 is merged: so small runs go first and together, a large one waits until much has come above it, and
//! a byte is rewritten a number of times that grows with the logarithm of the number of flushes (measured in tests).

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use millstream_common::{KeyGroupRange, KeyGroupRanges};

use super::CompactionOptions;
use crate::run::Run;
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
    let segments = live_in_segments(runs.iter().map(|(_, clip)| clip));
    let trigger = options.trigger_runs.max(2);
    let mut order: Vec<&(KeyGroupRange, Vec<usize>)> =
        segments.iter().filter(|(_, live)| live.len() >= trigger).collect();
    // Those with the most runs first.
    order.sort_by_key(|(_, live)| Reverse(live.len()));
    let is_busy = |run: &Run| limits.busy.iter().any(|b| b.identity() == run.identity());
    let busy: Vec<bool> = runs.iter().map(|(run, _)| is_busy(run)).collect();
    let whole: Vec<u64> = runs.iter().map(|(run, clip)| bytes_in(run, clip.len())).collect();
    let (window, bottom) = order.into_iter().find_map(|(segment, live)| {
        let last = live.len() - 1;
        let neighbours: Vec<Neighbour> = live
            .iter()
            .map(|&i| Neighbour { bytes: size_in(runs[i].0, segment), whole: whole[i], busy: busy[i] })
            .collect();
        let above: u64 = neighbours[..last].iter().map(|n| n.bytes).sum();
        let overdue = live.len() >= options.runs_max() || above >= 2 * neighbours[last].bytes;
        let put_off = limits.put_off_bytes.filter(|_| !overdue);
        // More runs come while it runs: the more there are above the trigger, the more it must take away.
        let least = (3 + 2 * (live.len() - trigger)).min(live.len());
        let (from, to) = best_window(&neighbours, least, put_off).or_else(|| best_window(&neighbours, 2, put_off))?;
        Some((&live[from..=to], to == last))
    })?;
    // Everywhere where the same runs are neighbours in the same place.
    let same =
        |live: &Vec<usize>| live.windows(window.len()).any(|w| w == window) && (live.last() == window.last()) == bottom;
    let ranges = segments.iter().filter(|(_, live)| same(live)).map(|(segment, _)| *segment).collect();
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

/// About how many bytes of a run lie in so many of its key groups.
fn bytes_in(run: &Run, groups: u32) -> u64 {
    (u128::from(run.length) * u128::from(groups) / u128::from(run.clip.len().max(1))) as u64
}

/// What a run costs in a segment.
fn size_in(run: &Run, segment: &KeyGroupRange) -> u64 {
    bytes_in(run, segment.len()) + RUN_COST_BYTES
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
}

/// The window (first and last index) of at least `least` neighbours (two or more), none of them busy, with the least
/// size / (count - 1)^4; of equals the longer, then the younger one. `runs` are newest first. One that ends with the oldest
/// run has `put_off` bytes at most, in all. The time is that of the square of the number of runs.
fn best_window(runs: &[Neighbour], least: usize, put_off: Option<u64>) -> Option<(usize, usize)> {
    let mut best: Option<(u128, u128, usize, usize)> = None;
    for from in 0..runs.len() {
        let (mut size, mut whole) = (0_u64, 0_u64);
        for (to, run) in runs.iter().enumerate().skip(from) {
            if run.busy {
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
