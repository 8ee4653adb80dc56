//! Warming up: bringing blocks into memory before anybody asks for them.

use std::sync::Arc;

use millstream_cache::BlockKey;
use millstream_common::Result;
use millstream_objects::Purpose;

use crate::fetch::{BlockMode, BlockWish, directory_key, part_key};
use crate::report::ReadReport;
use crate::run::Run;
use crate::section::{Directory, Part, PartInfo, SharedBlock};
use crate::store::StateStore;
use crate::view::View;

/// How much of a warm-up goes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WarmUp {
    /// The meta parts of so many runs are held at once.
    pub runs: usize,
    /// About so many bytes are asked for at once: reads that somebody waits for queue behind them.
    pub bytes: u64,
}

impl WarmUp {
    /// Somebody waits for it: all meta parts, whatever room there is for blocks, and blocks as fast as it goes.
    pub const AWAITED: Self = Self { runs: usize::MAX, bytes: 64 << 20 };
    /// Nobody waits for it.
    pub const BEHIND: Self = Self { runs: 1, bytes: 16 << 20 };
}

/// Keys that were hot: those of blocks that are near. Half-open intervals, sorted, without overlap; there are no more than
/// the caches hold blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HotKeys(Vec<(Vec<u8>, Vec<u8>)>);

impl HotKeys {
    /// Of intervals in any order, which may overlap.
    fn new(mut intervals: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        intervals.sort_unstable();
        let mut merged: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for (start, end) in intervals {
            match merged.last_mut() {
                Some((_, last)) if *last >= start => {
                    if end > *last {
                        *last = end;
                    }
                }
                _ => merged.push((start, end)),
            }
        }
        Self(merged)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether any key from `start` up to `end` is among them.
    fn overlap(&self, start: &[u8], end: &[u8]) -> bool {
        let i = self.0.partition_point(|(_, hot_end)| hot_end.as_slice() <= start);
        self.0.get(i).is_some_and(|(hot_start, _)| hot_start.as_slice() < end)
    }
}

impl StateStore {
    /// The keys of those blocks of `runs` that the caches hold, as far as the index is in memory.
    #[must_use]
    pub fn hot_keys<'a>(&self, runs: impl IntoIterator<Item = &'a Run>) -> HotKeys {
        let caches = &self.0.caches;
        let mut intervals = Vec::new();
        for run in runs {
            let Some(directory) = caches.metadata::<Directory>(&directory_key(run)) else { continue };
            let object = run.object_id();
            for info in directory.parts() {
                let Some(part) = caches.metadata::<Part>(&part_key(run, info)) else { continue };
                let is_held = |offset: u64| caches.holds_block(&BlockKey { object, offset: run.offset + offset });
                let held = part.blocks().iter().enumerate().filter(|(_, block)| is_held(block.offset));
                intervals.extend(held.map(|(i, _)| part.keys_of(i)));
            }
        }
        HotKeys::new(intervals)
    }
}

impl View {
    /// As [`View::warm`], those blocks alone that hold hot keys.
    pub async fn warm_hot(
        &self,
        pace: WarmUp,
        hot: &HotKeys,
        wanted: impl Fn(&Run) -> bool + Send,
    ) -> Result<ReadReport> {
        self.warm_some(pace, Some(hot), wanted).await
    }

    /// Puts the blocks that this view shows into memory, those of the newest runs first, as far as the cache has room:
    /// nothing is pushed out. What is there already costs nothing. `wanted` is asked again as it goes on: runs may die
    /// under way, and what came of those is dropped. The totals of the store do not count it: no read missed.
    pub async fn warm(&self, pace: WarmUp, wanted: impl Fn(&Run) -> bool + Send) -> Result<ReadReport> {
        self.warm_some(pace, None, wanted).await
    }

    async fn warm_some(
        &self,
        pace: WarmUp,
        hot: Option<&HotKeys>,
        wanted: impl Fn(&Run) -> bool + Send,
    ) -> Result<ReadReport> {
        let report = &mut ReadReport::default();
        let caches = &self.store.0.caches;
        let all: Vec<usize> = (0..self.runs().len()).collect();
        for some in all.chunks(pace.runs) {
            let some: Vec<usize> = some.iter().copied().filter(|&i| wanted(&self.runs()[i])).collect();
            let runs: Vec<&Arc<Run>> = some.iter().map(|&i| &self.runs()[i]).collect();
            let wide = |r: usize| self.shows_much_of(some[r]);
            let mine = |r: usize, part: &PartInfo| part.overlaps(self.clip(some[r]));
            let parts = &self.store.parts(&runs, wide, mine, Purpose::State, report).await?;
            let key = |wish: &BlockWish| parts[wish.part].key(wish.block);
            let mut blocks = Vec::new();
            for (part, of) in parts.iter().enumerate() {
                let all = of.part.blocks().iter().enumerate();
                let is_hot = |block: usize| {
                    hot.is_none_or(|hot| {
                        let (start, end) = of.part.keys_of(block);
                        hot.overlap(&start, &end)
                    })
                };
                let mine = all.filter(|(i, info)| info.overlaps(self.clip(some[of.run_index])) && is_hot(*i));
                blocks.extend(mine.map(|(block, info)| (BlockWish { part, block }, u64::from(info.body_length))));
            }
            let mut blocks = blocks.into_iter().peekable();
            while blocks.peek().is_some() {
                let lives: Vec<bool> = runs.iter().map(|run| wanted(run)).collect();
                let room = caches.room_bytes();
                let mut bytes = 0;
                let mut wishes: Vec<BlockWish> = Vec::new();
                while let Some((wish, length)) = blocks.peek() {
                    if lives[parts[wish.part].run_index] && !caches.holds_block(&key(wish)) {
                        let enough = !wishes.is_empty() && bytes + length > pace.bytes;
                        if enough || bytes + length > room {
                            break;
                        }
                        bytes += length;
                        wishes.push(*wish);
                    }
                    blocks.next();
                }
                if wishes.is_empty() && blocks.peek().is_some() {
                    return Ok(*report);
                }
                let keep = |i: usize, block: SharedBlock| {
                    caches.insert_in_memory(key(&wishes[i]), block.indexed());
                    Ok(())
                };
                let mode = BlockMode { purpose: Purpose::State, keep: false };
                self.store.blocks(parts, &wishes, mode, report, keep).await?;
                let lives: Vec<bool> = runs.iter().map(|run| wanted(run)).collect();
                wishes
                    .iter()
                    .filter(|wish| !lives[parts[wish.part].run_index])
                    .for_each(|wish| caches.forget_block(&key(wish)));
            }
        }
        Ok(*report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hot_keys_are_merged_and_found() {
        let of = |all: &[(&str, &str)]| {
            HotKeys::new(all.iter().map(|(a, b)| (a.as_bytes().to_vec(), b.as_bytes().to_vec())).collect())
        };
        let hot = of(&[("m", "p"), ("b", "d"), ("c", "f"), ("f", "g"), ("c", "d")]);
        assert_eq!(hot, of(&[("b", "g"), ("m", "p")]));
        for (start, end, is_hot) in [
            ("a", "b", false),
            ("a", "ba", true),
            ("c", "d", true),
            ("g", "m", false),
            ("o", "z", true),
            ("p", "z", false),
        ] {
            assert_eq!(hot.overlap(start.as_bytes(), end.as_bytes()), is_hot, "{start} {end}");
        }
        assert!(HotKeys::default().is_empty() && !HotKeys::default().overlap(b"", b"z"));
    }
}
