//! Running a compaction: inputs are streamed in key order, what they amount to is written.
//!
//! Outputs are cut by key groups, not by keys: the key groups are split beforehand so that each part holds about
//! `output_bytes`, and each part is merged by itself into one object. So a key group's entries of an interval always
//! stand in one run, and a reader or a later compaction never has to look for siblings. For time-ordered states each
//! part reads through all blocks of its times; parts are few, and only the first split of a large run pays for it.
//! In memory are at any time: one output, and the read-ahead of the inputs, which is read while what came before is
//! merged.

use std::sync::Arc;
use std::task::Poll;

use millstream_cache::{BlockKey, CacheBlock, ObjectId};
use millstream_common::planted::bug_is_planted;
use millstream_common::{Env, Error, KEY_GROUPS, KeyGroupRange, KeyGroupRanges, Result, StateId};
use millstream_objects::Purpose;

use super::throttle::Throttle;
use crate::accounts::TaskWrites;
use crate::cursor::{Ahead, Chain, Cursors, Filling, KeyRange, ReadMode, Step};
use crate::entry::{MergeOperator, ReadTime};
use crate::fetch::PartOf;
use crate::fold::Fold;
use crate::key;
use crate::report::ReadReport;
use crate::run::Run;
use crate::section::{Interval, PartInfo, SectionBuilder, SharedBlock};
use crate::store::{FIRST_SECTION, Keep, StateStore, WriterName};
use crate::tree::sort_newest_first;
use crate::{Layout, Layouts};

/// Others of the thread get their turn after so many keys.
const KEYS_A_TURN: usize = 2048;

/// A compaction to run.
#[derive(Clone, Copy, Debug)]
pub struct Merge<'a> {
    /// Neighbours of one task, in any order.
    pub inputs: &'a [Arc<Run>],
    /// The key groups in which to merge them.
    pub ranges: &'a KeyGroupRanges,
    /// The layouts of the states.
    pub layouts: &'a Layouts,
    /// Nothing older is live in `ranges`, so tombstones go.
    pub bottom: bool,
    /// What had expired by then goes, too; it must be a time that every later read is at or beyond: a committed
    /// watermark, and a processing time of the coordinator's.
    pub read_time: ReadTime,
    /// Who writes.
    pub writer: WriterName,
    /// The number of the compaction among those of its deployment: part of the names of what it writes.
    pub number: Option<u64>,
}

/// What a compaction wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// The runs that are to stand in the place of the inputs, disjoint in key groups.
    pub outputs: Vec<Run>,
    /// Bytes that came from the object store.
    pub bytes_read: u64,
}

impl StateStore {
    /// [`StateStore::merge`] as fast as it goes.
    #[allow(clippy::too_many_arguments)] // as its callers have them, from `Pick`
    pub async fn compact(
        &self,
        inputs: &[Arc<Run>],
        ranges: &KeyGroupRanges,
        layouts: &Layouts,
        writer: WriterName,
        bottom: bool,
        read_time: ReadTime,
    ) -> Result<Vec<Run>> {
        let merge = Merge { inputs, ranges, layouts, bottom, read_time, writer, number: None };
        Ok(self.merge(merge, &Throttle::default()).await?.outputs)
    }

    /// Merges runs within some key groups and writes what they amount to.
    pub async fn merge(&self, merge: Merge<'_>, throttle: &Throttle) -> Result<Merged> {
        let Merge { ranges, layouts, bottom, read_time, .. } = merge;
        let mut inputs = merge.inputs.to_vec();
        sort_newest_first(&mut inputs);
        let covered = inputs.iter().fold(KeyGroupRanges::empty(), |all, i| all.union(&i.clip)).intersect(ranges);
        let hull = inputs.iter().map(|i| i.interval).reduce(Interval::hull);
        let Some(hull) = hull.filter(|_| !covered.is_empty()) else { return Ok(Merged::default()) };
        if inputs.iter().any(|i| i.task != inputs[0].task) {
            return Err(Error::internal("a compaction was given runs of several tasks").code(9210));
        }
        let mut reads = Reads { report: ReadReport::default(), paid_bytes: 0, throttle };
        let refs: Vec<&Arc<Run>> = inputs.iter().collect();
        let wanted = |r: usize, part: &PartInfo| part.overlaps(&refs[r].clip.intersect(&covered));
        let parts = self.parts(&refs, |_| true, wanted, Purpose::Compaction, &mut reads.report).await?;
        let bytes_in = stored_bytes(&parts, &covered);
        reads.pay(&self.0.env).await;
        // What the inputs have hot here, the outputs will have.
        let hot = self.hot_spans(inputs.iter().map(AsRef::as_ref));
        let cuts = split(&parts, &covered, self.0.options.compaction.output_bytes);
        let options = &self.0.options.section;
        let options = if bottom { options.bottom() } else { options.clone() };
        let all = [KeyRange::all()];
        let ahead_bytes = self.0.options.read_ahead_bytes * self.0.options.compaction.trigger_runs.max(1) as u64;
        let mut outputs = Unlisted { store: self, runs: Vec::with_capacity(cuts.len()) };
        for part in cuts {
            let clips = refs.iter().map(|run| run.clip.intersect(&part)).collect();
            let mode = ReadMode { purpose: Purpose::Compaction, ahead: Ahead::Together(ahead_bytes) };
            let cursors = Cursors::new(self, layouts, clips, &parts, &all, mode);
            let mut output = Output {
                object: self.output_name(merge.writer, merge.number),
                section: SectionBuilder::new(inputs[0].task, &options, layouts),
            };
            self.merge_part(cursors, layouts, (bottom, read_time), &mut output, &mut reads).await?;
            // An output without entries is written, too: it says that the flushes of its interval are not lost.
            let mut section = output.section.finish(part, hull);
            throttle.pass(section.length, &self.0.env).await;
            section.inherit_heat(&output.object, FIRST_SECTION, &hot);
            outputs.runs.extend(self.write(output.object, vec![section], Purpose::Compaction, &Keep::Hot(&hot)).await?);
        }
        let done = TaskWrites { compactions: 1, compaction_bytes_in: bytes_in, ..TaskWrites::default() };
        self.0.accounts.wrote(inputs[0].task, done);
        Ok(Merged { outputs: std::mem::take(&mut outputs.runs), bytes_read: reads.report.bytes })
    }

    async fn merge_part(
        &self,
        mut cursors: Cursors<'_>,
        layouts: &Layouts,
        (bottom, time): (bool, ReadTime),
        output: &mut Output,
        reads: &mut Reads<'_>,
    ) -> Result<()> {
        let mut chain = Chain::default();
        let mut keys = 0;
        // The state of the key before, whether its keys are in time order, and its operator.
        let mut known: Option<(StateId, bool, Option<&dyn MergeOperator>)> = None;
        let mut room = self.keep_output(output);
        let mut filling: Option<Filling<'_>> = None;
        loop {
            match cursors.next_chain(&mut chain)? {
                Step::End => return Ok(()),
                Step::Dry => {
                    if let Some(filling) = filling.take().or_else(|| cursors.begin_fill()) {
                        cursors.end_fill(filling.await?, &mut reads.report)?;
                        reads.pay(&self.0.env).await;
                    }
                }
                Step::Chain => {
                    let (by_time, operator) = match (key::state_of(&chain.key), known) {
                        (Some(state), Some((of, by_time, operator))) if state == of => (by_time, operator),
                        _ => {
                            let state = layouts.locate(&chain.key)?.state;
                            let by_time = layouts.get(state).is_some_and(|l| l.layout == Layout::TimeOrdered);
                            let operator = layouts.operator(state, &self.0.merge)?;
                            known = Some((state, by_time, operator));
                            (by_time, operator)
                        }
                    };
                    let entries: Vec<&[u8]> = chain.entries().collect();
                    // A planted bug: what hides an older entry goes before that entry does.
                    let bottom = bottom || bug_is_planted(6);
                    let fold = Fold { bottom, time, by_time, operator };
                    fold.run(&entries, |entry| output.section.add(&chain.key, entry))?;
                    if room > 0 && output.section.kept_bytes() as u64 > room.min(KEPT_BYTES) {
                        room = self.keep_output(output);
                    }
                    keys += 1;
                    if keys % KEYS_A_TURN == 0 {
                        self.0.env.yield_now().await;
                        // What comes next is read meanwhile. Nobody waits for it while this pays for what was read.
                        filling = filling.or_else(|| cursors.begin_fill());
                        if let Some(coming) = &mut filling
                            && let Poll::Ready(filled) = futures::poll!(coming)
                        {
                            filling = None;
                            cursors.end_fill(filled?, &mut reads.report)?;
                            reads.pay(&self.0.env).await;
                        }
                    }
                }
            }
        }
    }
}

/// What a compaction has read, and how much of that was paid for.
struct Reads<'a> {
    report: ReadReport,
    paid_bytes: u64,
    throttle: &'a Throttle,
}

impl Reads<'_> {
    async fn pay(&mut self, env: &Env) {
        let bytes = self.report.bytes - self.paid_bytes;
        self.paid_bytes = self.report.bytes;
        if bytes > 0 {
            self.throttle.pass(bytes, env).await;
        }
    }
}

/// What was written by a compaction or a flush that is not over: if it fails or is given up, nobody will ever read it.
pub(crate) struct Unlisted<'a> {
    pub(crate) store: &'a StateStore,
    pub(crate) runs: Vec<Run>,
}

impl Drop for Unlisted<'_> {
    fn drop(&mut self) {
        self.runs.iter().for_each(|run| self.store.release(run));
    }
}

/// What a compaction is writing.
struct Output {
    /// The name that its object will have.
    object: String,
    section: SectionBuilder,
}

/// Blocks of an output that gather before they go into the cache.
const KEPT_BYTES: u64 = 256 << 10;

impl StateStore {
    /// Puts finished blocks of an output into the cache as long as that is not full: whoever reads the inputs now will
    /// read the output next, and from the object it would cost a GET. Nothing hot is pushed out. How much room is left,
    /// bytes.
    fn keep_output(&self, output: &mut Output) -> u64 {
        if self.is_in_memory() {
            // All of it is pinned once it is written.
            output.section.keep_blocks(0);
            return 0;
        }
        let object = ObjectId::of(&output.object);
        let mut room = self.0.caches.room_bytes();
        for (at, block) in output.section.take_kept() {
            let bytes = block.len() as u64;
            if room >= bytes {
                room -= bytes;
                let key = BlockKey { object, offset: FIRST_SECTION + at };
                // It was made here: what cannot be read was never kept.
                if let Ok(block) = SharedBlock::of_body(block) {
                    self.0.caches.insert_in_memory(key, block);
                }
            }
        }
        // Without room a small output is kept as any small section is.
        output.section.keep_blocks(if room > 0 { usize::MAX } else { self.0.options.section.keep_blocks_bytes });
        room
    }
}

/// Stored bytes of the blocks in which a compaction of `ranges` finds entries.
fn stored_bytes(inputs: &[PartOf<'_>], ranges: &KeyGroupRanges) -> u64 {
    let of = |input: &PartOf<'_>| -> u64 {
        let mine = input.run.clip.intersect(ranges);
        input.part.blocks().iter().filter(|b| b.overlaps(&mine)).map(|b| u64::from(b.length)).sum()
    };
    inputs.iter().map(of).sum()
}

/// Cuts `ranges` into parts of about `part_bytes` stored bytes each, by what the block indexes say.
fn split(inputs: &[PartOf<'_>], ranges: &KeyGroupRanges, part_bytes: u64) -> Vec<KeyGroupRanges> {
    // Bytes in each key group, in 1/65,536 bytes: the difference to the group before.
    let mut change = vec![0_i64; KEY_GROUPS as usize + 1];
    for input in inputs {
        for block in input.part.blocks() {
            let groups = KeyGroupRange { start: block.groups.0.into(), end: u32::from(block.groups.1) + 1 };
            let density = (i64::from(block.length) << 16) / i64::from(groups.len());
            for piece in input.run.clip.intersect(&groups.into()).iter() {
                change[piece.start as usize] += density;
                change[piece.end as usize] -= density;
            }
        }
    }
    let mut density = 0;
    let bytes: Vec<i64> = change
        .iter()
        .map(|c| {
            density += c;
            density
        })
        .collect();
    let of = |r: &KeyGroupRange| bytes[r.start as usize..r.end as usize].iter().sum::<i64>();
    let total: i64 = ranges.iter().map(of).sum();
    let target = (part_bytes.min(1 << 40) << 16) as i64;
    let parts = (total / target + 1).min(i64::from(ranges.len()));
    let target = total / parts + 1;
    let (mut done, mut part, mut filled) = (Vec::new(), Vec::new(), 0);
    for range in ranges.iter() {
        let mut start = range.start;
        for group in range.start..range.end {
            filled += bytes[group as usize];
            if filled >= target {
                part.push(KeyGroupRange::new(start, group + 1));
                done.push(KeyGroupRanges::new(std::mem::take(&mut part)));
                start = group + 1;
                filled = 0;
            }
        }
        part.push(KeyGroupRange::new(start, range.end));
    }
    let rest = KeyGroupRanges::new(part);
    if !rest.is_empty() {
        done.push(rest);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_data_there_is_one_part() {
        assert_eq!(split(&[], &KeyGroupRanges::all(), 1), [KeyGroupRanges::all()]);
    }
}
