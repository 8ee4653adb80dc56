//! Splits: who reads which, which have ended, which have come since the job was opened.
//!
//! A split that is found while the job runs goes to a subtask at once, without a barrier: the next version has its position,
//! and a job that goes back to the version before begins it again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millstream_proto::control::{
    AddSplits, AlignWatermarks, EndOfInput, GroupWatermark, LiveSplits, SplitCount, SplitId, SplitOwner,
    inject_barrier::Kind, to_worker,
};
use millstream_proto::version::version_record::Status;

use super::{Action, JobMaster, KnownSplit, LIVE_SPLITS_PAUSE, Phase, Timer, Turn, assignment};
use crate::source::Discovery;

/// From one word on the least watermarks to the next, at least.
const ALIGN_PAUSE: Duration = Duration::from_millis(900);

impl JobMaster {
    pub(super) fn owners_for(&self, parallelism: u32) -> BTreeMap<(String, String), u32> {
        let mut owners = BTreeMap::new();
        let sources: BTreeSet<&String> = self.splits.iter().map(|s| &s.source_uid).collect();
        for source in sources {
            let of_source: Vec<(String, bool)> = self
                .splits
                .iter()
                .filter(|s| s.source_uid == *source)
                .map(|s| (s.id.clone(), !self.finished.contains(&(source.clone(), s.id.clone()))))
                .collect();
            let old: BTreeMap<String, u32> =
                self.owners.iter().filter(|((s, _), _)| s == source).map(|((_, id), &o)| (id.clone(), o)).collect();
            for (id, owner) in assignment::split_owners(&of_source, &old, parallelism) {
                owners.insert((source.clone(), id), owner);
            }
        }
        owners
    }

    pub(super) fn split_owner_messages(&self, owners: &BTreeMap<(String, String), u32>) -> Vec<SplitOwner> {
        let owned = |(index, s): (u32, &KnownSplit)| {
            let subtask = *owners.get(&(s.source_uid.clone(), s.id.clone()))?;
            let (source_uid, split_id, payload) = (s.source_uid.clone(), s.id.clone(), s.payload.clone());
            Some(SplitOwner { index, source_uid, split_id, payload, subtask })
        };
        (0u32..).zip(&self.splits).filter_map(owned).collect()
    }

    pub(super) fn live_splits(&self) -> BTreeMap<String, u64> {
        let mut live = BTreeMap::new();
        for s in &self.splits {
            let alive = !self.finished.contains(&(s.source_uid.clone(), s.id.clone()));
            *live.entry(s.source_uid.clone()).or_insert(0) += u64::from(alive);
        }
        live
    }

    pub(super) fn on_splits_finished(&mut self, splits: Vec<SplitId>, t: &mut Turn<'_>) {
        self.finished.extend(splits.into_iter().map(|s| (s.source_uid, s.split_id)));
        // Thousands of small files may end at once.
        if !std::mem::replace(&mut self.live_splits_due, true) {
            t.out.push(Action::Timer(Timer::LiveSplits, LIVE_SPLITS_PAUSE));
        }
        self.check_end_of_input(t);
    }

    pub(super) fn send_live_splits(&self, t: &mut Turn<'_>) {
        let counts: Vec<_> =
            self.live_splits().into_iter().map(|(source_uid, live)| SplitCount { source_uid, live }).collect();
        self.broadcast(t, |job| to_worker::Message::LiveSplits(LiveSplits { job: Some(job), counts: counts.clone() }));
    }

    /// When all splits of all sources have ended and none comes any more, time ends, and so does the job.
    pub(super) fn check_end_of_input(&mut self, t: &mut Turn<'_>) {
        let all = self.splits.iter().all(|s| self.finished.contains(&(s.source_uid.clone(), s.id.clone())));
        if !all || !self.open_sources.is_empty() || self.phase != Phase::Running || self.rescale.is_some() {
            return;
        }
        if !self.input_ended {
            self.input_ended = true;
            self.broadcast(t, |job| to_worker::Message::EndOfInput(EndOfInput { job: Some(job) }));
        }
        if self.ending.is_none() && self.checkpoint.is_none() {
            self.ending = Some(Status::Finished);
            self.trigger(Kind::Last, t);
        }
    }

    /// Source and id of each split.
    pub(crate) fn known_splits(&self) -> Vec<(String, String)> {
        self.splits.iter().map(|s| (s.source_uid.clone(), s.id.clone())).collect()
    }

    /// A source was asked for splits again.
    pub(crate) fn on_discovered(&mut self, source_uid: &str, found: Discovery, t: &mut Turn<'_>) {
        if self.has_ended() {
            return;
        }
        if found.complete {
            self.open_sources.remove(source_uid);
        }
        for split in found.new {
            if self.splits.iter().any(|s| s.source_uid == source_uid && s.id == split.id) {
                continue;
            }
            tracing::info!("job {}: source {source_uid} has a new split {}", self.spec.name, split.id);
            let source_uid = source_uid.to_owned();
            // Behind the others, which keep their places.
            self.splits.push(KnownSplit { source_uid, id: split.id, payload: split.payload });
        }
        self.give_splits(t);
        self.check_end_of_input(t);
    }

    /// Splits that nobody reads yet go to subtasks, unless something else is about to change who reads what.
    pub(super) fn give_splits(&mut self, t: &mut Turn<'_>) {
        if self.phase != Phase::Running || self.rescale.is_some() || self.ending.is_some() || self.input_ended {
            return;
        }
        // Every owner is of a split that is known.
        if self.owners.len() >= self.splits.len() {
            return;
        }
        let key = |s: &KnownSplit| (s.source_uid.clone(), s.id.clone());
        let new: Vec<_> = self.splits.iter().map(key).filter(|key| !self.owners.contains_key(key)).collect();
        let mut given = BTreeMap::new();
        for split in new {
            let subtask = self.fewest_splits(&split.0);
            self.owners.insert(split.clone(), subtask);
            given.insert(split, subtask);
        }
        let all = self.split_owner_messages(&given);
        for worker in self.placement.iter().collect::<BTreeSet<_>>() {
            let here = |s: &&SplitOwner| self.placement.get(s.subtask as usize) == Some(worker);
            let splits: Vec<_> = all.iter().filter(here).cloned().collect();
            if !splits.is_empty() {
                let add = to_worker::Message::AddSplits(AddSplits { job: Some(self.job_ref()), splits });
                t.out.push(Action::Send(worker.clone(), Box::new(add)));
            }
        }
        self.send_live_splits(t);
    }

    /// Tells sources how far the slowest split of their group is; workers have said.
    pub(crate) fn align(&mut self, t: &mut Turn<'_>) {
        if self.alignment.is_empty() || self.phase != Phase::Running || t.now.since(self.aligned) < ALIGN_PAUSE {
            return;
        }
        self.aligned = t.now;
        let parallelism = self.assignment.parallelism();
        let least = |(group, sources): (&String, &BTreeSet<String>)| {
            let sources = sources.iter().map(String::as_str).collect();
            let least_ms = self.statistics.least_watermark(&sources, parallelism)?;
            Some(GroupWatermark { group: group.clone(), least_ms })
        };
        let groups: Vec<_> = self.alignment.iter().filter_map(least).collect();
        self.broadcast(t, |job| {
            to_worker::Message::AlignWatermarks(AlignWatermarks { job: Some(job), groups: groups.clone() })
        });
    }

    /// The subtask that reads the fewest live splits of a source.
    fn fewest_splits(&self, source_uid: &str) -> u32 {
        let mut held = vec![0u32; self.placement.len()];
        let live = self.owners.iter().filter(|(split, _)| split.0 == source_uid && !self.finished.contains(split));
        for (_, owner) in live {
            if let Some(held) = held.get_mut(*owner as usize) {
                *held += 1;
            }
        }
        (0u32..).zip(held).min_by_key(|(i, held)| (*held, *i)).map_or(0, |(i, _)| i)
    }
}
