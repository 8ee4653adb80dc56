//! Which runs to merge next. Pure.
//!
//! Merging k neighbours of together n bytes takes k - 1 runs away for n bytes rewritten. The window with the least
//! n / (k - 1)^4 is merged: so small runs go first and together, a large one waits until much has come above it, and
//! a byte is rewritten a number of times that grows with the logarithm of the number of flushes (measured in tests).

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

/// The compaction that is worth most, if any key group in `ranges` has enough runs. `runs`: those of one task; others
/// than those in `ranges` are not looked at.
#[must_use]
pub fn pick(runs: &[Arc<Run>], ranges: &KeyGroupRanges, options: &CompactionOptions) -> Option<Pick> {
    let mut runs: Vec<(&Arc<Run>, KeyGroupRanges)> =
        runs.iter().map(|r| (r, r.clip.intersect(ranges))).filter(|(_, clip)| !clip.is_empty()).collect();
    runs.sort_by(|(a, _), (b, _)| b.interval.cmp(&a.interval).then_with(|| a.identity().cmp(&b.identity())));
    let segments = segments(runs.iter().map(|(_, clip)| clip));
    let live = |s: &KeyGroupRange| -> Vec<usize> {
        let group = KeyGroup(s.start as u16);
        (0..runs.len()).filter(|&i| runs[i].1.contains(group)).collect()
    };
    let per_segment: Vec<Vec<usize>> = segments.iter().map(live).collect();
    // The first of those with the most runs.
    let worst = (0..segments.len()).rev().max_by_key(|&i| per_segment[i].len())?;
    let worst_runs = &per_segment[worst];
    if worst_runs.len() < options.trigger_runs.max(2) {
        return None;
    }
    let sizes: Vec<u64> = worst_runs.iter().map(|&i| size_in(runs[i].0, &segments[worst])).collect();
    // More runs come while it runs: the more there are above the trigger, the more it must take away.
    let least = (3 + 2 * (sizes.len() - options.trigger_runs.max(2))).min(sizes.len());
    let (from, to) = best_window(&sizes, least);
    let window = &worst_runs[from..=to];
    let bottom = to + 1 == worst_runs.len();
    // Everywhere where the same runs are neighbours in the same place.
    let same =
        |live: &Vec<usize>| live.windows(window.len()).any(|w| w == window) && (live.last() == window.last()) == bottom;
    let ranges = segments.iter().zip(&per_segment).filter(|(_, live)| same(live)).map(|(s, _)| *s).collect();
    Some(Pick { inputs: window.iter().map(|&i| runs[i].0.clone()).collect(), ranges, bottom })
}

/// About how many bytes of a run lie in a segment.
fn size_in(run: &Run, segment: &KeyGroupRange) -> u64 {
    let part = u128::from(run.length) * u128::from(segment.len()) / u128::from(run.clip.len().max(1));
    part as u64 + RUN_COST_BYTES
}

/// The window (first and last index) of at least `least` neighbours (two or more) with the least
/// size / (count - 1)^4; of equals the longer, then the younger one. `sizes` are newest first.
fn best_window(sizes: &[u64], least: usize) -> (usize, usize) {
    let mut best: Option<(u128, usize, usize)> = None;
    for from in 0..sizes.len() {
        let mut size = u128::from(sizes[from]);
        for (to, older) in sizes.iter().enumerate().skip(from + 1) {
            size += u128::from(*older);
            if to - from + 1 < least {
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
    best.map_or((0, sizes.len() - 1), |(_, from, to)| (from, to))
}
