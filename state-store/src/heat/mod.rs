//! What of the state is hot: which blocks of which runs were read lately, from this process's caches.
//!
//! The caches know it as long as the process lives and the runs do. It is told on in two ways, both pure:
//!
//! - to the runs that a compaction puts in the place of others: [`HotSpans`] are the stretches of keys whose blocks
//!   were hot, so that the blocks of the successors which hold those keys are kept ([`spans`]);
//! - to whoever reads the runs next, after a restart or a rescale: a [`HeatList`] names the blocks themselves and goes
//!   along in the bundle of a checkpoint ([`list`]), never in an object of its own.
//!
//! Heat is a hint. What is missing, stale or damaged costs time alone, so nothing here is ever an error of a read.

mod list;
mod spans;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use millstream_cache::{BlockKey, TURNOVER_STEPS};
use millstream_common::KeyGroupRanges;

use crate::run::Run;
use crate::section::{EncodedSection, Part};
use crate::store::StateStore;

pub use list::{HEAT_LIST_BYTES, HeatList};
pub(crate) use list::{HotRun, Listed, merge};
pub use spans::HotSpans;

/// How hot a block is: [`ON_DISK`], or from 1 (it was read once while it was in memory) to [`HOTTEST`].
pub(crate) type Temperature = u8;

/// It is on the SSD alone.
pub(crate) const ON_DISK: Temperature = 0;
/// It was read in nearly every step of the turnover of late.
pub(crate) const HOTTEST: Temperature = 15;

/// How hot a block in memory is that was read in so many `steps` of the turnover, last in step `touched`; it is step
/// `now`. What was not read while all of memory was replaced counts half.
pub(crate) fn temperature(steps: u8, touched: u32, now: u32) -> Temperature {
    let rounds = (now.wrapping_sub(touched) / TURNOVER_STEPS).min(7);
    1 + (steps >> rounds).min(HOTTEST - 1)
}

impl StateStore {
    /// The parts of a run whose index is in memory, in order.
    fn known_parts(&self, run: &Run) -> Vec<Arc<Part>> {
        self.known_index(run).into_iter().map(|(_, part)| part).collect()
    }

    /// How hot each block of a part is that is hot at all, by its place. `with_disk`: those that are on the SSD alone, too.
    fn hot_blocks(&self, run: &Run, part: &Part, with_disk: bool) -> Vec<(usize, Temperature)> {
        let caches = &self.0.caches;
        let (object, now) = (run.object_id(), caches.turnover());
        let slots = part.slots().read();
        let hot = slots.blocks().iter().enumerate().filter_map(|(i, slot)| {
            // Whoever only walked, or warmed up, has remembered nothing here.
            if let Some(block) = slot.upgrade() {
                let (steps, touched) =
                    (block.steps_read.load(Ordering::Relaxed), block.touched.load(Ordering::Relaxed));
                return Some((i, temperature(steps, touched, now)));
            }
            let key = BlockKey { object, offset: run.offset + part.blocks()[i].offset };
            (with_disk && caches.may_be_on_disk(&key)).then_some((i, ON_DISK))
        });
        hot.collect()
    }

    /// The stretches of keys whose blocks in the clips of `runs` are hot, as far as is known without I/O.
    #[must_use]
    pub fn hot_spans<'a>(&self, runs: impl IntoIterator<Item = &'a Run>) -> HotSpans {
        let mut spans = HotSpans::default();
        let with_disk = self.0.caches.has_disk();
        for run in runs {
            for part in self.known_parts(run) {
                let mut hot = self.hot_blocks(run, &part, with_disk);
                hot.retain(|(i, _)| part.blocks()[*i].overlaps(&run.clip));
                spans.add(&part, &hot);
            }
        }
        spans.sorted()
    }

    /// The blocks of `runs` within `ranges` that are hot in memory here, the hottest of them if they are too many; as
    /// the bytes that [`crate::EncodedSection::attach_heat`] takes. `None` when nothing is.
    #[must_use]
    pub fn heat_list<'a>(
        &self,
        runs: impl IntoIterator<Item = &'a Run>,
        ranges: &KeyGroupRanges,
    ) -> Option<bytes::Bytes> {
        let mut list = HeatList::default();
        for run in runs {
            let clip = run.clip.intersect(ranges);
            let mut hot = HotRun::of(run);
            for part in self.known_parts(run) {
                let blocks = self.hot_blocks(run, &part, false);
                let mine = blocks.into_iter().filter(|(i, _)| part.blocks()[*i].overlaps(&clip));
                hot.add(part.blocks().first().map_or(0, |b| b.offset), mine);
            }
            list.add(hot);
        }
        (!list.is_empty()).then(|| list.encode(HEAT_LIST_BYTES))
    }
}

impl EncodedSection {
    /// Attaches a list of its own hot blocks: those that hold what was hot in the runs whose place it takes. It will
    /// begin at `offset` of `object`.
    pub(crate) fn inherit_heat(&mut self, object: &str, offset: u64, hot: &HotSpans) {
        let mut own = HotRun::named(object.to_owned(), offset);
        for (info, part) in self.directory.parts().iter().zip(&self.parts) {
            own.add(info.offset, hot.blocks_of(part).into_iter().filter(|(_, t)| *t > ON_DISK));
        }
        let mut list = HeatList::default();
        list.add(own);
        if !list.is_empty() {
            self.attach_heat(list.encode(HEAT_LIST_BYTES));
        }
    }
}

#[cfg(test)]
mod tests;
