//! Records as what changed since the record before. Pure.
//!
//! A group of records begins with a snapshot; the others of the group are deltas, each against its predecessor. In memory
//! a record is always whole: `snapshot` says which group its stored form belongs to, `delta` is absent. The lists of a
//! whole record are in order ([`settle`]), so that a delta applied is the record it was made from, byte for byte.

use std::collections::BTreeMap;

use millstream_common::{Error, Result};
use millstream_proto::version::version_record::Kind;
use millstream_proto::version::{
    Committable, CommittableName, Delta, ProgressList, Run, RunClip, RunId, SplitName, SplitState, Tree, VersionRecord,
};
use prost::Message;

/// A group has so many records at most: reading one needs all before it in its group.
pub const GROUP_RECORDS: u64 = 16;

/// The number of the snapshot that a record's group begins with.
#[must_use]
pub fn group_of(record: &VersionRecord) -> u64 {
    if record.snapshot == 0 { record.number } else { record.snapshot }
}

/// Puts the lists of a whole record in order and decides how it is stored behind `base`: in the group of `base`, or as
/// the first of a group of its own, at a take-over, when the group is full, and when a delta would not be clearly smaller.
pub fn settle(base: Option<&VersionRecord>, record: &mut VersionRecord) {
    sort(record);
    record.snapshot = record.number;
    let Some(base) = base else { return };
    let group = group_of(base);
    let follows = base.number + 1 == record.number && base.generation == record.generation;
    if !follows || record.kind() == Kind::TakeOver || record.number - group >= GROUP_RECORDS {
        return;
    }
    if let Some(delta) = delta(base, record)
        && delta.encoded_len() * 4 < record.encoded_len() * 3
    {
        record.snapshot = group;
    }
}

/// What is written for a settled record.
#[must_use]
pub fn stored(base: Option<&VersionRecord>, record: &VersionRecord) -> VersionRecord {
    let changes = base.filter(|_| group_of(record) != record.number).and_then(|base| delta(base, record));
    let Some(changes) = changes else { return VersionRecord { snapshot: record.number, ..record.clone() } };
    VersionRecord { delta: Some(changes), ..head(record) }
}

/// The fields that each record has for itself.
fn head(record: &VersionRecord) -> VersionRecord {
    VersionRecord {
        number: record.number,
        kind: record.kind,
        generation: record.generation,
        nonce: record.nonce.clone(),
        epoch: record.epoch,
        committed_ms: record.committed_ms,
        hash_id: record.hash_id,
        key_codec_id: record.key_codec_id,
        status: record.status,
        bytes_written: record.bytes_written,
        retained_checkpoints: record.retained_checkpoints,
        snapshot: record.snapshot,
        boundary: record.boundary,
        bound: record.bound,
        fork: record.fork.clone(),
        retained_for_ms: record.retained_for_ms,
        base: record.base,
        leader: record.leader,
        ..VersionRecord::default()
    }
}

/// What leads from one whole record to the next; `None` when only a snapshot can say it.
#[must_use]
pub fn delta(old: &VersionRecord, new: &VersionRecord) -> Option<Delta> {
    let (from, to) = (old.tree.as_ref()?, new.tree.as_ref()?);
    // Absent is said by "unchanged".
    let known = new.job.is_some() && new.assignment.is_some();
    if !known || !to.tasks.starts_with(&from.tasks) || !to.states.starts_with(&from.states) {
        return None;
    }
    let mut delta = Delta {
        job: (old.job != new.job).then(|| new.job.clone()).flatten(),
        assignment: (old.assignment != new.assignment).then(|| new.assignment.clone()).flatten(),
        tasks: to.tasks[from.tasks.len()..].to_vec(),
        states: to.states[from.states.len()..].to_vec(),
        next_task_id: to.next_task_id,
        next_state_id: to.next_state_id,
        progress: (old.progress != new.progress).then(|| ProgressList { entries: new.progress.clone() }),
        ..Delta::default()
    };
    runs_between(from, to, &mut delta);
    let (before, after) = (by_key(&old.splits, split_key), by_key(&new.splits, split_key));
    delta.splits = after.iter().filter(|(k, s)| before.get(*k) != Some(*s)).map(|(_, s)| (*s).clone()).collect();
    let gone = before.values().filter(|s| !after.contains_key(&split_key(s)));
    delta.splits_removed =
        gone.map(|s| SplitName { source_uid: s.source_uid.clone(), split_id: s.split_id.clone() }).collect();
    let (before, after) = (by_key(&old.committables, committable_key), by_key(&new.committables, committable_key));
    // One that says something else under the same name goes and comes again.
    let news = after.iter().filter(|(k, c)| before.get(*k) != Some(*c));
    delta.committables_added = news.map(|(_, c)| (*c).clone()).collect();
    let gone = before.iter().filter(|(k, c)| after.get(*k) != Some(*c));
    delta.committables_removed = gone
        .map(|(_, c)| CommittableName {
            sink_uid: c.sink_uid.clone(),
            epoch: c.epoch,
            subtask: c.subtask,
            sequence: c.sequence,
        })
        .collect();
    Some(delta)
}

fn runs_between(from: &Tree, to: &Tree, delta: &mut Delta) {
    let (before, after) = (by_key(&from.runs, run_key), by_key(&to.runs, run_key));
    let unclipped = |r: &Run| Run { clip: Vec::new(), ..r.clone() };
    for (key, run) in &after {
        match before.get(key) {
            Some(there) if there == run => {}
            Some(there) if unclipped(there) == unclipped(run) => {
                delta.runs_clipped.push(RunClip {
                    object: run.object.clone(),
                    offset: run.offset,
                    clip: run.clip.clone(),
                });
            }
            there => {
                if there.is_some() {
                    delta.runs_removed.push(RunId { object: run.object.clone(), offset: run.offset });
                }
                delta.runs_added.push((*run).clone());
            }
        }
    }
    let gone = before.iter().filter(|(key, _)| !after.contains_key(*key));
    delta.runs_removed.extend(gone.map(|(_, r)| RunId { object: r.object.clone(), offset: r.offset }));
}

/// The whole record that a stored delta stands for, from its predecessor's. Changes that do not fit the predecessor are
/// an error.
pub fn apply(old: &VersionRecord, stored: &VersionRecord) -> Result<VersionRecord> {
    let Some(changes) = &stored.delta else { return Err(misfit(stored, "it has no changes")) };
    if old.number + 1 != stored.number || group_of(old) != group_of(stored) {
        return Err(misfit(stored, &format!("it does not follow version {}", old.number)));
    }
    let mut tree = old.tree.clone().unwrap_or_default();
    tree.tasks.extend_from_slice(&changes.tasks);
    tree.states.extend_from_slice(&changes.states);
    (tree.next_task_id, tree.next_state_id) = (changes.next_task_id, changes.next_state_id);
    let mut runs: BTreeMap<_, Run> = tree.runs.into_iter().map(|r| ((r.object.clone(), r.offset), r)).collect();
    for id in &changes.runs_removed {
        if runs.remove(&(id.object.clone(), id.offset)).is_none() {
            return Err(misfit(stored, &format!("it removes a run in {} that is not there", id.object)));
        }
    }
    for clip in &changes.runs_clipped {
        match runs.get_mut(&(clip.object.clone(), clip.offset)) {
            Some(run) => run.clip.clone_from(&clip.clip),
            None => return Err(misfit(stored, &format!("it clips a run in {} that is not there", clip.object))),
        }
    }
    for run in &changes.runs_added {
        if runs.insert((run.object.clone(), run.offset), run.clone()).is_some() {
            return Err(misfit(stored, &format!("it adds a run in {} that is there", run.object)));
        }
    }
    tree.runs = runs.into_values().collect();
    let mut splits: BTreeMap<_, SplitState> =
        old.splits.iter().map(|s| ((s.source_uid.clone(), s.split_id.clone()), s.clone())).collect();
    for s in &changes.splits_removed {
        splits.remove(&(s.source_uid.clone(), s.split_id.clone()));
    }
    splits.extend(changes.splits.iter().map(|s| ((s.source_uid.clone(), s.split_id.clone()), s.clone())));
    let gone: std::collections::BTreeSet<_> =
        changes.committables_removed.iter().map(|c| (c.sink_uid.as_str(), c.epoch, c.subtask, c.sequence)).collect();
    let kept = old.committables.iter().filter(|c| !gone.contains(&committable_key(c)));
    let mut record = VersionRecord {
        job: changes.job.clone().or_else(|| old.job.clone()),
        assignment: changes.assignment.clone().or_else(|| old.assignment.clone()),
        tree: Some(tree),
        splits: splits.into_values().collect(),
        progress: changes.progress.as_ref().map_or_else(|| old.progress.clone(), |p| p.entries.clone()),
        committables: kept.chain(&changes.committables_added).cloned().collect(),
        ..head(stored)
    };
    sort(&mut record);
    Ok(record)
}

fn misfit(stored: &VersionRecord, why: &str) -> Error {
    Error::corrupt(format!("the changes of version {} do not fit: {why}", stored.number))
        .code(4007)
        .next("`millstream fsck` shows what else is wrong; start from an older version")
}

fn sort(record: &mut VersionRecord) {
    if let Some(tree) = &mut record.tree {
        tree.runs.sort_by(|a, b| run_key(a).cmp(&run_key(b)));
    }
    record.splits.sort_by(|a, b| split_key(a).cmp(&split_key(b)));
    record.committables.sort_by(|a, b| committable_key(a).cmp(&committable_key(b)));
}

fn run_key(r: &Run) -> (&str, u64) {
    (&r.object, r.offset)
}

fn split_key(s: &SplitState) -> (&str, &str) {
    (&s.source_uid, &s.split_id)
}

fn committable_key(c: &Committable) -> (&str, u64, u32, u32) {
    (&c.sink_uid, c.epoch, c.subtask, c.sequence)
}

fn by_key<'a, T, K: Ord>(all: &'a [T], key: fn(&'a T) -> K) -> BTreeMap<K, &'a T> {
    all.iter().map(|t| (key(t), t)).collect()
}
