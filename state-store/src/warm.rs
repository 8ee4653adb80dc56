//! Warming up: bringing blocks into memory before anybody asks for them, in large reads, as far as there is room.
//!
//! The hottest come first where it is known which those are: from the heat lists that came along in the bundles of the
//! runs ([`View::warm_hottest`]), or from what was hot in the runs whose place others have taken ([`View::refill`]).
//! Then all others, those of the newest runs first ([`View::warm`]). Nothing is ever pushed out, and nobody's read
//! waits for any of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use millstream_common::Result;
use millstream_objects::Purpose;

use crate::fetch::{BlockMode, BlockWish, PartOf, split_batch};
use crate::heat::{HeatList, HotRun, HotSpans, Listed, ON_DISK, Temperature, merge};
use crate::report::ReadReport;
use crate::run::Run;
use crate::section::{BlockForm, PartInfo, SharedBlock};
use crate::store::StateStore;
use crate::view::View;

/// Heat lists that are read at most: those of the newest runs.
const LISTS_MAX: usize = 16;

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

/// What a warm-up is about to bring.
struct Wishes<'a> {
    parts: Vec<PartOf<'a>>,
    /// In the order in which they come.
    blocks: Vec<Wished>,
}

/// A block that is about to be brought.
#[derive(Clone, Copy)]
struct Wished {
    wish: BlockWish,
    /// In memory.
    bytes: u64,
    /// How hot it was; [`ON_DISK`]: not, as far as is known.
    temperature: Temperature,
}

/// So often the cache is told that a block was read which comes as hot: what was never read is the first to go when
/// others come, and that would be what came first.
fn reads_told(temperature: Temperature) -> u32 {
    match temperature {
        ON_DISK => 0,
        1..4 => 1,
        4..8 => 2,
        _ => 3,
    }
}

impl View {
    /// Puts the blocks that this view shows into memory, those of the newest runs first, as far as the cache has room:
    /// nothing is pushed out. What is there already costs nothing. `wanted` is asked again as it goes on: runs may die
    /// under way, and what came of those is dropped. The totals of the store do not count it: no read missed.
    pub async fn warm(&self, pace: WarmUp, wanted: impl Fn(&Run) -> bool + Send) -> Result<ReadReport> {
        let report = &mut ReadReport::default();
        let all: Vec<usize> = (0..self.runs().len()).collect();
        for some in all.chunks(pace.runs) {
            let some: Vec<usize> = some.iter().copied().filter(|&i| wanted(&self.runs()[i])).collect();
            let runs: Vec<&Arc<Run>> = some.iter().map(|&i| &self.runs()[i]).collect();
            let wide = |r: usize| self.shows_much_of(some[r]);
            let mine = |r: usize, part: &PartInfo| part.overlaps(self.clip(some[r]));
            let parts = self.store.parts(&runs, wide, mine, Purpose::State, report).await?;
            let mut blocks = Vec::new();
            for (part, of) in parts.iter().enumerate() {
                let all = of.part.blocks().iter().enumerate();
                let mine = all.filter(|(_, info)| info.overlaps(self.clip(some[of.run_index])));
                blocks.extend(mine.map(|(block, info)| Wished {
                    wish: BlockWish { part, block },
                    bytes: info.body_length.into(),
                    temperature: ON_DISK,
                }));
            }
            if !self.store.bring(&Wishes { parts, blocks }, pace.bytes, &wanted, report).await? {
                return Ok(*report);
            }
        }
        Ok(*report)
    }

    /// The same for the blocks that were hot where the runs of this view were read before, the hottest first: the heat
    /// lists in the objects of these runs say which. Without lists, nothing comes.
    pub async fn warm_hottest(&self, pace: WarmUp, wanted: impl Fn(&Run) -> bool + Send) -> Result<ReadReport> {
        let report = &mut ReadReport::default();
        let hot = merge(&self.heat_lists(report).await, self.ranges());
        let of = |run: &Run| hot.iter().find(|h| h.is(run));
        let meets = |run: &Run, info: &PartInfo| of(run).is_some_and(|h| h.has(info.offset));
        let hot_of = |part: &PartOf<'_>| {
            let at = part.part.blocks().first().map_or(0, |b| b.offset);
            // A list that is wrong about a part is wrong about its end.
            let all = of(part.run).into_iter().flat_map(|h: &HotRun| h.blocks_of(at));
            all.take_while(|(i, _)| *i < part.part.blocks().len()).collect()
        };
        let (wishes, _) = self.hottest_first(meets, hot_of, report).await?;
        self.store.bring(&wishes, pace.bytes, &wanted, report).await?;
        Ok(*report)
    }

    /// The same for blocks that hold keys which were hot in runs whose place those of this view have taken. With
    /// `onto_disk`, what was hot on the SSD alone, or finds no room in memory, goes onto the SSD; without, that is left
    /// to whoever wrote the runs here.
    pub async fn refill(
        &self,
        hot: &HotSpans,
        onto_disk: bool,
        pace: WarmUp,
        wanted: impl Fn(&Run) -> bool + Send,
    ) -> Result<ReadReport> {
        let report = &mut ReadReport::default();
        if hot.is_empty() {
            return Ok(*report);
        }
        let meets = |_: &Run, info: &PartInfo| hot.meets(&info.first_key, &info.last_key);
        let (wishes, on_disk) = self.hottest_first(meets, |part| hot.blocks_of(&part.part), report).await?;
        self.store.bring(&wishes, pace.bytes, &wanted, report).await?;
        if onto_disk && self.store.0.caches.has_disk() {
            let left = wishes.blocks.iter().map(|wished| wished.wish).chain(on_disk);
            self.store.bring_onto_disk(&wishes.parts, left.collect(), pace.bytes, &wanted, report).await?;
        }
        Ok(*report)
    }

    /// The hot blocks that the view shows, of those parts that `meets` says: those that were hot in memory, the hottest
    /// first; and those that were on the SSD alone.
    async fn hottest_first(
        &self,
        meets: impl Fn(&Run, &PartInfo) -> bool,
        hot_of: impl Fn(&PartOf<'_>) -> Vec<(usize, Temperature)>,
        report: &mut ReadReport,
    ) -> Result<(Wishes<'_>, Vec<BlockWish>)> {
        let runs: Vec<&Arc<Run>> = self.runs().iter().collect();
        let mine = |r: usize, info: &PartInfo| info.overlaps(self.clip(r)) && meets(&self.runs()[r], info);
        let parts = self.store.parts(&runs, |_| false, mine, Purpose::State, report).await?;
        let mut hot: Vec<Wished> = Vec::new();
        for (part, of) in parts.iter().enumerate() {
            for (block, temperature) in hot_of(of) {
                let info = &of.part.blocks()[block];
                if info.overlaps(self.clip(of.run_index)) {
                    hot.push(Wished { wish: BlockWish { part, block }, bytes: info.body_length.into(), temperature });
                }
            }
        }
        // Neighbours of one temperature stay neighbours: they come in one GET.
        hot.sort_by_key(|wished| std::cmp::Reverse(wished.temperature));
        let cold = hot.partition_point(|wished| wished.temperature > ON_DISK);
        let on_disk = hot.split_off(cold).into_iter().map(|wished| wished.wish).collect();
        Ok((Wishes { parts, blocks: hot }, on_disk))
    }

    /// The heat lists of the view's runs, newest first. One that cannot be had is left out.
    async fn heat_lists(&self, report: &mut ReadReport) -> Vec<Listed<'_>> {
        let with_list = self.runs().iter().filter_map(|run| Some((run, run.heat?))).take(LISTS_MAX);
        // The lists of a bundle stand back to back.
        let mut objects: BTreeMap<&str, (&Run, u64, u64)> = BTreeMap::new();
        for (run, heat) in with_list.clone() {
            let end = heat.offset + u64::from(heat.length);
            let range = objects.entry(&run.object).or_insert((run, heat.offset, end));
            (range.1, range.2) = (range.1.min(heat.offset), range.2.max(end));
        }
        let mut bodies: BTreeMap<&str, (u64, Bytes)> = BTreeMap::new();
        for (object, (run, start, end)) in objects {
            match self.store.get(run, start..end, Purpose::State).await {
                Ok(body) => {
                    report.gets += 1;
                    report.bytes += body.len() as u64;
                    bodies.insert(object, (start, body));
                }
                Err(e) => tracing::debug!("a heat list could not be read: {e}"),
            }
        }
        let list = |run: &Run, heat: crate::run::HeatPart| {
            let (start, body) = bodies.get(run.object.as_str())?;
            let at = (heat.offset - start) as usize;
            HeatList::decode(body.get(at..at + heat.length as usize)?, heat.checksum)
                .inspect_err(|e| tracing::debug!("{}: {e}", run.object))
                .ok()
        };
        with_list.filter_map(|(run, heat)| Some(Listed { run, list: list(run, heat)? })).collect()
    }
}

impl StateStore {
    /// Brings blocks into memory in their order until there is no room; whether there was room for all. `bytes` at once.
    async fn bring(
        &self,
        wishes: &Wishes<'_>,
        bytes: u64,
        wanted: &(impl Fn(&Run) -> bool + Send),
        report: &mut ReadReport,
    ) -> Result<bool> {
        let caches = &self.0.caches;
        let parts = &wishes.parts;
        let key = |wish: &BlockWish| parts[wish.part].key(wish.block);
        let mut blocks = wishes.blocks.iter().peekable();
        while blocks.peek().is_some() {
            let lives: Vec<bool> = parts.iter().map(|of| wanted(of.run)).collect();
            let room = caches.room_bytes();
            let mut taken = 0;
            let mut some: Vec<BlockWish> = Vec::new();
            let mut hot: Vec<Temperature> = Vec::new();
            while let Some(next) = blocks.peek() {
                if lives[next.wish.part] && !caches.holds_block(&key(&next.wish)) {
                    let enough = !some.is_empty() && taken + next.bytes > bytes;
                    if enough || taken + next.bytes > room {
                        break;
                    }
                    taken += next.bytes;
                    some.push(next.wish);
                    hot.push(next.temperature);
                }
                blocks.next();
            }
            if some.is_empty() && blocks.peek().is_some() {
                return Ok(false);
            }
            let keep = |i: usize, block: SharedBlock| {
                let key = key(&some[i]);
                caches.insert_in_memory(key, block.indexed());
                (0..reads_told(hot[i])).for_each(|_| caches.touch(&key));
                Ok(())
            };
            let mode = BlockMode { purpose: Purpose::State, keep: false, form: BlockForm::Searched };
            self.blocks(parts, &some, mode, report, keep).await?;
            self.0.accounts.warmed(some.len());
            let lives: Vec<bool> = parts.iter().map(|of| wanted(of.run)).collect();
            some.iter().filter(|wish| !lives[wish.part]).for_each(|wish| caches.forget_block(&key(wish)));
        }
        Ok(true)
    }

    /// Brings blocks onto the SSD that are neither there nor in memory.
    async fn bring_onto_disk(
        &self,
        parts: &[PartOf<'_>],
        mut wishes: Vec<BlockWish>,
        bytes: u64,
        wanted: &(impl Fn(&Run) -> bool + Send),
        report: &mut ReadReport,
    ) -> Result<()> {
        let caches = &self.0.caches;
        let key = |wish: &BlockWish| parts[wish.part].key(wish.block);
        wishes.retain(|wish| !caches.holds_block(&key(wish)) && !caches.may_be_on_disk(&key(wish)));
        let mut left = &wishes[..];
        while !left.is_empty() {
            let (batch, rest) = split_batch(parts, left, bytes);
            left = rest;
            let lives: Vec<bool> = parts.iter().map(|of| wanted(of.run)).collect();
            let some: Vec<BlockWish> = batch.iter().copied().filter(|wish| lives[wish.part]).collect();
            let mut brought = Vec::with_capacity(some.len());
            let mode = BlockMode { purpose: Purpose::State, keep: false, form: BlockForm::Walked };
            let take = |i: usize, block: SharedBlock| {
                brought.push((key(&some[i]), block));
                Ok(())
            };
            self.blocks(parts, &some, mode, report, take).await?;
            self.0.accounts.warmed(brought.len());
            caches.admit(brought.into_iter()).await;
        }
        Ok(())
    }
}
