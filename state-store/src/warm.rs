//! Warming up: bringing blocks into memory before anybody asks for them.

use std::sync::Arc;

use millstream_common::Result;
use millstream_objects::Purpose;

use crate::fetch::{BlockMode, BlockWish};
use crate::report::ReadReport;
use crate::run::Run;
use crate::section::{PartInfo, SharedBlock};
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

impl View {
    /// Puts the blocks that this view shows into memory, those of the newest runs first, as far as the cache has room:
    /// nothing is pushed out. What is there already costs nothing. `wanted` is asked again as it goes on: runs may die
    /// under way, and what came of those is dropped. The totals of the store do not count it: no read missed.
    pub async fn warm(&self, pace: WarmUp, wanted: impl Fn(&Run) -> bool + Send) -> Result<ReadReport> {
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
                let mine = all.filter(|(_, info)| info.overlaps(self.clip(some[of.run_index])));
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
