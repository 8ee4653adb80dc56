//! What a finished compaction makes of the tree. Pure.

use std::sync::Arc;

use millstream_common::{KeyGroupRanges, TaskId};

use crate::run::Run;
use crate::section::Interval;
use crate::tree::Tree;

/// A compaction that has written its outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactionDone {
    /// The task whose runs were merged.
    pub task: TaskId,
    /// The inputs, as they were listed when it began.
    pub inputs: Vec<Arc<Run>>,
    /// The key groups in which they were merged.
    pub ranges: KeyGroupRanges,
    /// Tombstones were dropped: nothing older may be live there.
    pub bottom: bool,
    /// What it wrote: disjoint in key groups, together all that the inputs had in `ranges`.
    pub outputs: Vec<Run>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompactionOutcome {
    /// The tree with the outputs in the place of the inputs.
    Applied(Tree),
    /// The tree has moved on, for this reason: drop the outputs and pick again.
    Stale(String),
}

/// The tree after putting the outputs in the place of the inputs, within the ranges of the compaction.
#[must_use]
pub fn apply(tree: &Tree, done: &CompactionDone) -> CompactionOutcome {
    match successor(tree, done) {
        Ok(tree) => CompactionOutcome::Applied(tree),
        Err(why) => CompactionOutcome::Stale(why),
    }
}

fn successor(tree: &Tree, done: &CompactionDone) -> Result<Tree, String> {
    let is_input = |run: &Run| done.inputs.iter().any(|i| i.identity() == run.identity());
    let mut covered = KeyGroupRanges::empty();
    for input in &done.inputs {
        let name = format!("the run in {} at {}", input.object, input.offset);
        let live = tree.runs().iter().find(|r| r.identity() == input.identity());
        let live = live.ok_or_else(|| format!("{name} is no longer live"))?;
        let took = live.clip.intersect(&done.ranges);
        if took != input.clip.intersect(&done.ranges) || live.interval != input.interval || live.task != done.task {
            return Err(format!("{name} is live in other key groups now"));
        }
        covered = covered.union(&took);
    }
    let hull = done.inputs.iter().map(|i| i.interval).reduce(Interval::hull).ok_or("it has no inputs")?;
    check_outputs(done, &covered, hull)?;
    for other in tree.runs().iter().filter(|r| r.task == done.task && !is_input(r) && r.clip.overlaps(&covered)) {
        if other.interval.overlaps(&hull) {
            return Err(format!("a run with the flushes {} lies between its inputs", other.interval));
        }
        if done.bottom && other.interval.max < hull.min {
            return Err(format!("a run with the flushes {} lies below its inputs", other.interval));
        }
    }
    let kept = tree.runs().iter().filter_map(|run| {
        if !is_input(run) {
            return Some(run.clone());
        }
        let clip = run.clip.subtract(&done.ranges);
        (!clip.is_empty()).then(|| Arc::new(run.with_clip(clip)))
    });
    let outputs = done.outputs.iter().map(|run| Arc::new(run.clone()));
    Ok(tree.with_runs(kept.chain(outputs).collect()))
}

fn check_outputs(done: &CompactionDone, covered: &KeyGroupRanges, hull: Interval) -> Result<(), String> {
    let mut written = KeyGroupRanges::empty();
    for output in &done.outputs {
        if output.task != done.task || output.interval != hull || output.clip.is_empty() {
            return Err("an output is not of its task or its flushes".to_owned());
        }
        if output.clip.overlaps(&written) {
            return Err("two outputs share key groups".to_owned());
        }
        written = written.union(&output.clip);
    }
    if written == *covered { Ok(()) } else { Err(format!("its outputs hold {written} instead of {covered}")) }
}
