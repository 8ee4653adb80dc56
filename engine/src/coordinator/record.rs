//! The version records of a job, one from the other. Pure functions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use millstream_common::hash::HASH_ID;
use millstream_common::{AssignmentId, Epoch, Error, Result};
use millstream_proto::control::{CheckpointReport, CommittableId};
use millstream_proto::version::version_record::{Kind, Status};
use millstream_proto::version::{Argument, Committable, JobIdentity, SplitState, TaskProgress, VersionRecord};
use millstream_state_store::Run;
use millstream_state_store::compaction::{self, CompactionDone, CompactionOutcome};
use millstream_state_store::key::KEY_CODEC_ID;
use millstream_state_store::tree::{Tree, check_successor};

use super::assignment;
use crate::convert::{assignment_from_proto, assignment_to_proto, range_from_proto, ranges_from_proto};
use crate::element::Assignment;
use crate::graph::{Head, JobGraph};
use crate::state::StateLayout;

/// What the job is, for the version.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The job's name in the binary.
    pub job: String,
    /// Its arguments that may not differ.
    pub args: Vec<(String, String)>,
    /// A line per task.
    pub plan: Vec<String>,
    /// What gives its states their meaning beside their schemas.
    pub parameters: BTreeMap<String, String>,
    /// The states that it has: operator and name.
    pub states: BTreeSet<(String, String)>,
    /// The sources that it has.
    pub sources: BTreeSet<String>,
    /// The sinks that it has.
    pub sinks: BTreeSet<String>,
}

impl Identity {
    /// Of the job `job` with the graph that these arguments make.
    pub fn new(job: &str, args: Vec<(String, String)>, graph: &JobGraph) -> Result<Self> {
        let source = |head: &Head| match head {
            Head::Source(source) => Some(source.uid.clone()),
            Head::Exchange => None,
        };
        Ok(Self {
            job: job.to_owned(),
            args,
            plan: graph.describe(),
            parameters: graph.parameters()?,
            states: graph.states()?,
            sources: graph.tasks.iter().filter_map(|t| source(&t.head)).collect(),
            sinks: graph.tasks.iter().flat_map(|t| &t.sinks).map(|s| s.uid.clone()).collect(),
        })
    }
}

/// What to do about what stands at the place of a job's state.
#[derive(Debug)]
pub enum Admission {
    /// Nothing stands there, or it is to be discarded.
    Fresh,
    /// Go on from there.
    Continue(Box<VersionRecord>),
    /// It had finished.
    Finished(Box<VersionRecord>),
}

/// Whether a job may start from `newest`.
pub fn admit(newest: Option<VersionRecord>, identity: &Identity, from_none: bool, discard: bool) -> Result<Admission> {
    let Some(record) = newest else { return Ok(Admission::Fresh) };
    if discard {
        return Ok(Admission::Fresh);
    }
    if from_none {
        return Err(Error::config(format!(
            "there are versions at the place of the state, the newest is {}",
            record.number
        ))
        .code(1501)
        .next("give --discard-state to start without them, another --name, or leave --from away to go on"));
    }
    if record.hash_id != HASH_ID || record.key_codec_id != KEY_CODEC_ID {
        return Err(Error::config(format!(
            "the state was written with hash {} and key codec {}, this release has {HASH_ID} and {KEY_CODEC_ID}",
            record.hash_id, record.key_codec_id
        ))
        .code(1502)
        .next("use the release that wrote it"));
    }
    same_job(&record, identity)?;
    if record.status() == Status::Finished {
        return Ok(Admission::Finished(Box::new(record)));
    }
    Ok(Admission::Continue(Box::new(record)))
}

/// Whether this is the job that wrote the record. Operators are told from one another by their ids, as in Flink: the plan
/// may change as long as everything that the record holds finds its place. Whether values do, their schemas decide later.
fn same_job(record: &VersionRecord, here: &Identity) -> Result<()> {
    let none = JobIdentity::default();
    let there = record.job.as_ref().unwrap_or(&none);
    let mut differs = Vec::new();
    if there.job != here.job {
        differs.push(format!("the state belongs to another job: {} there, {} here", there.job, here.job));
    } else {
        let a: BTreeMap<_, _> = there.args.iter().map(|a| (&a.name, &a.value)).collect();
        let b: BTreeMap<_, _> = here.args.iter().map(|(n, v)| (n, v)).collect();
        let names: BTreeSet<_> = a.keys().chain(b.keys()).collect();
        let shown = |v: Option<&&String>| v.map_or_else(|| "none".to_owned(), |v| v.to_string());
        for name in names {
            if a.get(*name) != b.get(*name) {
                differs.push(format!("--{name} differs: {} there, {} here", shown(a.get(*name)), shown(b.get(*name))));
            }
        }
    }
    if !differs.is_empty() {
        return Err(Error::config(differs.join("; "))
            .code(1503)
            .next("start it under another --name or --state, or with what the state was made with"));
    }
    let mut lost: Vec<String> = without_place(record, here).into_iter().collect();
    // Releases that compared plans word by word left no sinks and no parameters.
    if there.sinks.is_empty() && there.plan != here.plan {
        let differs = |(i, line): &(usize, &String)| there.plan.get(*i) != Some(line);
        let (i, line) = here.plan.iter().enumerate().find(differs).map_or((0, ""), |(i, line)| (i, line));
        let old = there.plan.get(i).map_or("nothing", String::as_str);
        lost.push(format!("an earlier release wrote it, by another plan: '{old}' there, '{line}' here"));
    }
    let changed = there.parameters.iter().filter_map(|p| {
        let now = here.parameters.get(&p.name).filter(|now| **now != p.value)?;
        Some(format!("{} is '{}' there and '{now}' here", p.name, p.value))
    });
    lost.extend(changed);
    if lost.is_empty() {
        return Ok(());
    }
    Err(Error::config(format!("this plan cannot go on with the state: {}", lost.join("; "))).code(1515).next(
        "give operators the ids that they had (`.uid(..)`), another name to what is new, or start under another --name; \
         --discard-state starts without the state",
    ))
}

/// What the record holds for operators, sources and sinks that the job does not have.
fn without_place(record: &VersionRecord, here: &Identity) -> BTreeSet<String> {
    let tree = record.tree.as_ref();
    let has_runs = |task: u32| tree.is_some_and(|t| t.runs.iter().any(|r| r.task_id == task));
    let states = tree.iter().flat_map(|t| &t.states).filter(|s| has_runs(s.task_id));
    let states = states.filter(|s| !here.states.contains(&(s.operator_uid.clone(), s.name.clone())));
    let sources = record.splits.iter().filter(|s| !s.finished && !here.sources.contains(&s.source_uid));
    let sinks = record.committables.iter().filter(|c| !here.sinks.contains(&c.sink_uid));
    let states = states.map(|s| format!("the state '{}' of operator '{}' would be lost", s.name, s.operator_uid));
    let sources = sources.map(|s| format!("the positions of source '{}' would be lost", s.source_uid));
    let sinks = sinks.map(|c| format!("output of sink '{}' that is not committed yet would be lost", c.sink_uid));
    states.chain(sources).chain(sinks).collect()
}

/// The record by which a leader takes a job over: the snapshot of `base` under a higher generation. Ids of new tasks
/// and states are allotted here.
pub fn take_over(
    base: Option<&VersionRecord>,
    identity: &Identity,
    graph: &JobGraph,
    parallelism: u32,
    newest_number: u64,
    generation: u64,
    epoch_floor: u64,
) -> Result<VersionRecord> {
    let mut record = base.cloned().unwrap_or_default();
    let mut tree = Tree::from_proto(record.tree.as_ref().unwrap_or(&Default::default()))?;
    for (index, task) in graph.tasks.iter().enumerate().filter(|(_, t)| matches!(t.head, Head::Exchange)) {
        let id = tree.add_task(&task.uid)?;
        let key = graph.key_of(index);
        let mut operator = (task.nodes[0].make)()?;
        for state in operator.states() {
            let d = state.descriptor();
            let layout = match d.layout {
                StateLayout::Point => millstream_state_store::Layout::Point,
                StateLayout::TimeOrdered => millstream_state_store::Layout::TimeOrdered,
                StateLayout::Map => millstream_state_store::Layout::Map,
            };
            let layout = millstream_state_store::StateLayout { layout, merge_operator: d.merge_operator.clone() };
            let values = (&*d.value_schema, Some(d.schema(key.clone())));
            tree.add_described_state(id, &task.nodes[0].uid, &d.name, layout, values)?;
        }
    }
    record.tree = Some(tree.to_proto());
    let assigned = match &record.assignment {
        Some(a) => {
            let old = assignment_from_proto(a)?;
            if old.parallelism() == parallelism { old } else { assignment::rescale(&old, old.id.next(), parallelism) }
        }
        None => assignment::even(AssignmentId(1), parallelism),
    };
    record.assignment = Some(assignment_to_proto(&assigned));
    record.number = newest_number + 1;
    record.set_kind(Kind::TakeOver);
    record.set_status(Status::Running);
    record.generation = generation;
    record.epoch = record.epoch.max(epoch_floor);
    record.hash_id = HASH_ID;
    record.key_codec_id = KEY_CODEC_ID;
    record.bytes_written = 0;
    record.job = Some(JobIdentity {
        job: identity.job.clone(),
        args: identity.args.iter().map(|(name, value)| Argument { name: name.clone(), value: value.clone() }).collect(),
        plan: identity.plan.clone(),
        parallelism,
        parameters: identity
            .parameters
            .iter()
            .map(|(name, value)| Argument { name: name.clone(), value: value.clone() })
            .collect(),
        sinks: identity.sinks.iter().cloned().collect(),
    });
    Ok(record)
}

/// When a record that follows `base` is committed, by the coordinator's clock, which shows `wall_ms`. It never goes back
/// within a job, whoever leads it: compactions drop by it what has expired in processing time, and what was dropped once
/// may never count again.
#[must_use]
pub fn committed_ms(base: Option<&VersionRecord>, wall_ms: i64) -> i64 {
    base.map_or(wall_ms, |b| b.committed_ms.max(wall_ms))
}

/// What a finished epoch adds to the newest record.
pub struct EpochResult<'a> {
    /// The epoch.
    pub epoch: u64,
    /// What the workers reported.
    pub reports: &'a [CheckpointReport],
    /// What was confirmed since the record before.
    pub confirmed: &'a BTreeSet<CommittableKey>,
    /// Compactions that have come to their end since: they need no record of their own.
    pub compactions: &'a [(u64, CompactionDone)],
    /// With a rescale's epoch: the assignment that holds from here on.
    pub assignment: Option<&'a Assignment>,
    /// Whether the stream ends with it, and how.
    pub last: Option<Status>,
}

/// A committable's identity.
pub type CommittableKey = (String, u64, u32, u32);

/// The identity of a listed committable.
#[must_use]
pub fn committable_key(c: &Committable) -> CommittableKey {
    (c.sink_uid.clone(), c.epoch, c.subtask, c.sequence)
}

/// The identity in a message.
#[must_use]
pub fn committable_id_key(c: &CommittableId) -> CommittableKey {
    (c.sink_uid.clone(), c.epoch, c.subtask, c.sequence)
}

/// The record of a finished epoch; `None` when nothing changed, so that the record before stands for it.
pub fn checkpoint(base: &VersionRecord, result: &EpochResult<'_>) -> Result<Option<VersionRecord>> {
    let mut record = base.clone();
    record.number = base.number + 1;
    record.set_kind(Kind::Checkpoint);
    let before = tree_of(base)?;
    let (mut tree, compacted) = compact(&before, result.compactions);
    let runs = result.reports.iter().flat_map(|r| &r.runs);
    tree.add_runs(runs.map(|r| Ok(Arc::new(Run::from_proto(r)?))).collect::<Result<Vec<_>>>()?);
    check_successor(&before, &tree, (Epoch(base.epoch), Epoch(result.epoch)))?;
    record.tree = Some(tree.to_proto());
    let flushed: u64 = result.reports.iter().map(|r| r.bytes_written).sum();
    record.bytes_written = flushed + compacted.unwrap_or_default();
    record.splits = merge_splits(&base.splits, result.reports);
    record.progress = merge_progress(&base.progress, result.reports)?;
    let new = result.reports.iter().flat_map(|r| &r.committables);
    record.committables = unconfirmed(base.committables.iter().chain(new), result.confirmed);
    if let Some(a) = result.assignment {
        record.assignment = Some(assignment_to_proto(a));
        if let Some(job) = &mut record.job {
            job.parallelism = a.parallelism();
        }
    }
    if let Some(status) = result.last
        && record.committables.is_empty()
    {
        record.set_status(status);
    }
    let changed = record.tree != base.tree
        || record.splits != base.splits
        || record.progress != base.progress
        || record.committables != base.committables
        || record.assignment != base.assignment
        || record.status() != base.status();
    record.epoch = result.epoch;
    Ok((changed || result.last.is_some()).then_some(record))
}

fn tree_of(record: &VersionRecord) -> Result<Tree> {
    Tree::from_proto(record.tree.as_ref().unwrap_or(&Default::default()))
}

/// The tree with the compactions that still fit, and the bytes that those wrote; `None` when none fits.
fn compact(before: &Tree, done: &[(u64, CompactionDone)]) -> (Tree, Option<u64>) {
    let (mut tree, mut bytes) = (before.clone(), None);
    for (_, done) in done {
        match compaction::apply(&tree, done) {
            CompactionOutcome::Applied(after) => {
                tree = after;
                *bytes.get_or_insert(0) += done.outputs.iter().map(|r| r.length).sum::<u64>();
            }
            CompactionOutcome::Stale(why) => tracing::debug!("a compaction no longer fits: {why}"),
        }
    }
    (tree, bytes)
}

fn merge_splits(base: &[SplitState], reports: &[CheckpointReport]) -> Vec<SplitState> {
    let key = |s: &SplitState| (s.source_uid.clone(), s.split_id.clone());
    let mut splits: BTreeMap<_, SplitState> = base.iter().map(|s| (key(s), s.clone())).collect();
    for s in reports.iter().flat_map(|r| &r.splits) {
        splits.insert(key(s), s.clone());
    }
    splits.into_values().collect()
}

/// Key groups that a report speaks of have fired as it says; the others as before.
fn merge_progress(base: &[TaskProgress], reports: &[CheckpointReport]) -> Result<Vec<TaskProgress>> {
    let reported: Vec<_> = reports.iter().flat_map(|r| &r.progress).collect();
    let mut out: Vec<TaskProgress> = reported.iter().map(|p| **p).collect();
    for old in base {
        let mut left = ranges_from_proto(std::slice::from_ref(old.range.as_ref().unwrap_or(&Default::default())))?;
        for new in reported.iter().filter(|p| p.task_id == old.task_id) {
            let range = range_from_proto(new.range.as_ref().unwrap_or(&Default::default()))?;
            left = left.subtract(&range.into());
        }
        out.extend(left.iter().map(|r| TaskProgress {
            task_id: old.task_id,
            range: Some(crate::convert::range_to_proto(r)),
            fired_ms: old.fired_ms,
        }));
    }
    out.sort_by_key(|p| (p.task_id, p.range.map_or(0, |r| r.start)));
    out.dedup_by(|next, kept| {
        let joins = next.task_id == kept.task_id
            && next.fired_ms == kept.fired_ms
            && next.range.map(|r| r.start) == kept.range.map(|r| r.end);
        if joins && let (Some(k), Some(n)) = (&mut kept.range, &next.range) {
            k.end = n.end;
        }
        joins
    });
    Ok(out)
}

fn unconfirmed<'a>(
    all: impl Iterator<Item = &'a Committable>,
    confirmed: &BTreeSet<CommittableKey>,
) -> Vec<Committable> {
    let mut left: BTreeMap<CommittableKey, Committable> = all.map(|c| (committable_key(c), c.clone())).collect();
    left.retain(|key, _| !confirmed.contains(key));
    left.into_values().collect()
}

/// The record that ends a job once its last commits are confirmed.
#[must_use]
pub fn confirmation(base: &VersionRecord, confirmed: &BTreeSet<CommittableKey>, status: Status) -> VersionRecord {
    let mut record = base.clone();
    record.number = base.number + 1;
    record.set_kind(Kind::Confirmation);
    record.bytes_written = 0;
    record.committables = unconfirmed(base.committables.iter(), confirmed);
    record.set_status(status);
    record
}

/// The record of finished compactions that still fit; `None` when none does.
pub fn compactions(base: &VersionRecord, done: &[(u64, CompactionDone)]) -> Result<Option<VersionRecord>> {
    let before = tree_of(base)?;
    let (tree, bytes) = compact(&before, done);
    let Some(bytes) = bytes else { return Ok(None) };
    check_successor(&before, &tree, (Epoch(base.epoch), Epoch(base.epoch)))?;
    let mut record = base.clone();
    record.number = base.number + 1;
    record.set_kind(Kind::Compaction);
    record.bytes_written = bytes;
    record.tree = Some(tree.to_proto());
    Ok(Some(record))
}

/// The objects that compactions wrote and `record`, the first that could list them, does not: none ever will.
#[must_use]
pub fn stale_outputs(done: &[(u64, CompactionDone)], record: &VersionRecord) -> Vec<String> {
    let listed: BTreeSet<&str> = record.tree.iter().flat_map(|t| &t.runs).map(|r| r.object.as_str()).collect();
    let written: BTreeSet<&str> = done.iter().flat_map(|(_, d)| &d.outputs).map(|r| r.object.as_str()).collect();
    written.difference(&listed).map(|o| (*o).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_a_job_never_goes_back() {
        assert_eq!(committed_ms(None, 70), 70);
        let base = VersionRecord { committed_ms: 90, ..VersionRecord::default() };
        // A leader on a machine whose clock is behind.
        assert_eq!((committed_ms(Some(&base), 70), committed_ms(Some(&base), 91)), (90, 91));
    }
}
