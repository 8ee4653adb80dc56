//! What of the runs of one version the next one no longer shows. Pure.
//!
//! A compaction within some key groups takes its inputs out of these alone: such a run stays listed, with a smaller clip.
//! What it held there is as dead as a run that is not listed at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use millstream_common::KeyGroupRanges;
use millstream_state_store::Run;

/// A run that shows less than it did.
#[derive(Debug)]
pub(super) struct Shrunk {
    /// The run in the key groups that have gone.
    pub(super) gone: Run,
    /// The run in those that are left, if any.
    pub(super) left: Run,
}

/// The runs of a version by task.
type Runs = [Vec<Arc<Run>>];

/// By identity: the key groups in which each run is live.
fn clips(runs: &Runs) -> BTreeMap<(&str, u64), &KeyGroupRanges> {
    runs.iter().flatten().map(|run| (run.identity(), &run.clip)).collect()
}

/// The runs of `old` that `new` does not list, and those that it lists in fewer key groups of `owned`.
pub(super) fn shrunk(old: &Runs, new: &Runs, owned: &KeyGroupRanges) -> Vec<Shrunk> {
    let live = clips(new);
    let less = |run: &Arc<Run>| {
        let left = live.get(&run.identity()).map_or_else(KeyGroupRanges::empty, |clip| run.clip.intersect(clip));
        let gone = run.clip.subtract(&left);
        let counts = left.is_empty() || gone.overlaps(owned);
        counts.then(|| Shrunk { gone: run.with_clip(gone), left: run.with_clip(left) })
    };
    old.iter().flatten().filter_map(less).collect()
}

/// Tells of a run of `new` whether it has key groups that it did not have in `old`.
pub(super) fn is_new(old: &Runs) -> impl Fn(&Run) -> bool {
    let known = clips(old);
    move |run| !known.get(&run.identity()).is_some_and(|clip| clip.covers(&run.clip))
}

#[cfg(test)]
mod tests {
    use millstream_common::{Epoch, KeyGroupRange, TaskId};
    use millstream_state_store::{Interval, Sequence};

    use super::*;

    fn groups(start: u32, end: u32) -> KeyGroupRanges {
        KeyGroupRanges::from(KeyGroupRange::new(start, end))
    }

    fn run(object: &str, clip: KeyGroupRanges) -> Arc<Run> {
        let at = Sequence { epoch: Epoch(1), flush: 0 };
        Arc::new(Run {
            task: TaskId(1),
            object: object.to_owned(),
            offset: 0,
            length: 1,
            meta_offset: 0,
            meta_length: 1,
            directory_length: 1,
            checksum: 0,
            clip,
            interval: Interval { min: at, max: at },
            entries: 1,
            states: Vec::new(),
            object_bytes: 1,
            origin: String::new(),
            heat: None,
        })
    }

    #[test]
    fn a_run_shrinks_where_it_was_merged_and_only_what_is_owned_counts() {
        let old = [vec![run("dead", groups(0, 10)), run("half", groups(0, 100))], vec![run("whole", groups(0, 9))]];
        let output = run("output", groups(0, 50));
        let new = [vec![output.clone(), run("half", groups(50, 100))], vec![run("whole", groups(0, 9))]];
        let told = |owned: KeyGroupRanges| {
            let all = shrunk(&old, &new, &owned);
            all.into_iter().map(|s| (s.gone.object, s.gone.clip, s.left.clip)).collect::<Vec<_>>()
        };
        let dead = ("dead".to_owned(), groups(0, 10), KeyGroupRanges::empty());
        assert_eq!(told(groups(40, 60)), [dead.clone(), ("half".to_owned(), groups(0, 50), groups(50, 100))]);
        assert_eq!(told(groups(50, 60)), [dead], "it was merged by somebody else");
        let is_new = is_new(&old);
        assert!(is_new(&output) && !is_new(&new[0][1]) && is_new(&run("half", groups(0, 101))));
    }
}
