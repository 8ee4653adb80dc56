//! Walks several runs at once in key order: what scans and compactions have in common.
//!
//! Each run has a cursor that reads its blocks some way ahead. [`Cursors::next_chain`] is synchronous and gives all
//! entries of the least key, newest first; when a cursor has run dry it says so, and [`Cursors::fill`] reads ahead for
//! all cursors that need it, at once. Whoever has work to do meanwhile calls [`Cursors::begin_fill`] and
//! [`Cursors::end_fill`] instead. Entries outside a cursor's clip are skipped. Of a range within one key of a map state
//! a cursor reads nothing in the parts whose filters deny the key's prefix.

use std::collections::VecDeque;

use bytes::Bytes;
use futures::future::BoxFuture;
use millstream_common::hash::stable_hash;
use millstream_common::{Error, KeyGroupRange, KeyGroupRanges, Result};
use millstream_objects::Purpose;

use crate::fetch::{BlockMode, BlockWish, PartOf};
use crate::key;
use crate::report::ReadReport;
use crate::section::{Block, BlockForm, Part, PartInfo, SharedBlock};
use crate::store::StateStore;
use crate::{Layout, Layouts};

/// What [`Cursors::next_chain`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A key with its entries.
    Chain,
    /// Call [`Cursors::fill`] first.
    Dry,
    /// There is nothing more.
    End,
}

/// A key and its entries, newest first.
#[derive(Default)]
pub(crate) struct Chain {
    pub(crate) key: Vec<u8>,
    data: Vec<u8>,
    ends: Vec<usize>,
}

impl Chain {
    fn clear(&mut self) {
        self.key.clear();
        self.data.clear();
        self.ends.clear();
    }

    fn push(&mut self, entry: &[u8]) {
        self.data.extend_from_slice(entry);
        self.ends.push(self.data.len());
    }

    pub(crate) fn entries(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.ends.len()).map(|i| {
            let start = if i == 0 { 0 } else { self.ends[i - 1] };
            &self.data[start..self.ends[i]]
        })
    }
}

/// Keys from `from` (inclusive) to `to` (exclusive; none: to the end).
#[derive(Clone, Debug)]
pub(crate) struct KeyRange {
    pub(crate) from: Bytes,
    pub(crate) to: Option<Bytes>,
    /// The hash of the prefix that all of them have: filters hold it.
    prefix: Option<u64>,
}

impl KeyRange {
    pub(crate) fn all() -> Self {
        Self { from: Bytes::new(), to: None, prefix: None }
    }

    /// Keys of states with these layouts. A range within one key of a map state is looked for by the filters first.
    pub(crate) fn new(from: Bytes, to: Bytes, layouts: &Layouts) -> Self {
        let is_map = |state| layouts.get(state).is_some_and(|l| l.layout == Layout::Map);
        let length = key::state_of(&from).filter(|s| is_map(*s)).and_then(|_| key::map_prefix_len(&from));
        let prefix = length.map(|n| &from[..n]).filter(|p| to.starts_with(p) || key::is_map_prefix_end(&to, p));
        Self { prefix: prefix.map(stable_hash), from, to: Some(to) }
    }

    /// Whether a part may hold any of them.
    pub(crate) fn meets(&self, part: &PartInfo) -> bool {
        part.last_key.as_slice() >= self.from.as_ref()
            && self.to.as_ref().is_none_or(|to| part.first_key.as_slice() < to.as_ref())
    }
}

/// How blocks are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadMode {
    pub(crate) purpose: Purpose,
    pub(crate) ahead: Ahead,
}

/// How far ahead the cursors read, in bytes of blocks (uncompressed).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ahead {
    /// Each of them so far.
    Each(u64),
    /// All of them together, most of it in proportion to what each has to read: then all run dry at about the same time,
    /// and a large run among small ones does not take a wait for each little piece of it.
    Together(u64),
}

/// One part of so many of [`Ahead::Together`] is divided evenly.
const EVENLY: u64 = 4;

/// What a read ahead brought.
pub(crate) struct Filled {
    blocks: Vec<(BlockWish, SharedBlock)>,
    report: ReadReport,
}

/// A read ahead that is under way. Others may wait for the blocks that it brings: it is to be polled in a while.
pub(crate) type Filling<'a> = BoxFuture<'a, Result<Filled>>;

pub(crate) struct Cursors<'a> {
    store: &'a StateStore,
    layouts: &'a Layouts,
    parts: &'a [PartOf<'a>],
    /// Sorted and disjoint.
    ranges: &'a [KeyRange],
    /// Newest run first.
    cursors: Vec<Cursor>,
    mode: ReadMode,
    /// Looks of a range into a part that the filter spared.
    filtered: u64,
}

struct Cursor {
    clip: KeyGroupRanges,
    /// Blocks that are still to be read.
    blocks: VecDeque<BlockWish>,
    /// Bytes that it reads ahead.
    ahead_bytes: u64,
    /// Blocks that are being read.
    coming: usize,
    loaded: VecDeque<(BlockWish, SharedBlock)>,
    /// Of those that are loaded and those that are coming.
    loaded_bytes: u64,
    /// Entry of the first loaded block.
    at: usize,
    /// Where the entries of the first loaded block end that lie in the range.
    until: usize,
    /// The ranges of which the run may hold anything, by their filters; in order.
    ranges: Vec<u32>,
    /// Which of them the walk is in.
    range: usize,
    /// All entries of the first loaded block lie in the clip.
    inside: bool,
    /// A key, put together; kept for its memory.
    key: Vec<u8>,
}

impl<'a> Cursors<'a> {
    /// Cursors over runs (newest first), each clipped to its `clips`, through `ranges` (sorted, disjoint). `parts`: those of
    /// the runs that overlap these, in the order of runs and keys.
    pub(crate) fn new(
        store: &'a StateStore,
        layouts: &'a Layouts,
        clips: Vec<KeyGroupRanges>,
        parts: &'a [PartOf<'a>],
        ranges: &'a [KeyRange],
        mode: ReadMode,
    ) -> Self {
        let mut cursors: Vec<Cursor> = clips
            .into_iter()
            .map(|clip| Cursor {
                clip,
                blocks: VecDeque::new(),
                ahead_bytes: 0,
                coming: 0,
                loaded: VecDeque::new(),
                loaded_bytes: 0,
                at: 0,
                until: 0,
                ranges: Vec::new(),
                range: 0,
                inside: false,
                key: Vec::new(),
            })
            .collect();
        let mut asked = Asked::new(ranges);
        for (part, of) in parts.iter().enumerate() {
            let cursor = &mut cursors[of.run_index];
            let infos = of.part.blocks();
            // The first block that is not among the wishes yet, and where the search for a range begins.
            let (mut next, mut start) = (0, 0);
            for &r in asked.in_part(&of.part) {
                if cursor.ranges.last().is_none_or(|last| *last < r) {
                    cursor.ranges.push(r);
                }
                let range = &ranges[r as usize];
                start = of.part.seek(start, &range.from);
                let ends = |b: &usize| range.to.as_ref().is_none_or(|to| of.part.compare_first(*b, to).is_lt());
                for block in (start.max(next)..infos.len()).take_while(ends) {
                    next = block + 1;
                    if infos[block].overlaps(&cursor.clip) {
                        cursor.blocks.push_back(BlockWish { part, block });
                    }
                }
            }
        }
        let mut all = Self { store, layouts, parts, ranges, cursors, mode, filtered: asked.filtered };
        all.divide();
        all
    }

    /// Gives each cursor its share of what is read ahead.
    fn divide(&mut self) {
        let of = |cursor: &Cursor| cursor.blocks.iter().map(|w| body_bytes(self.parts, *w)).sum::<u64>();
        let shares: Vec<u64> = match self.mode.ahead {
            Ahead::Each(bytes) => vec![bytes; self.cursors.len()],
            Ahead::Together(bytes) => {
                let each: Vec<u64> = self.cursors.iter().map(of).collect();
                let total = u128::from(each.iter().sum::<u64>()).max(1);
                let even = bytes / EVENLY / each.len().max(1) as u64;
                let rest = bytes - bytes / EVENLY;
                each.iter().map(|b| even + (u128::from(rest) * u128::from(*b) / total) as u64).collect()
            }
        };
        self.cursors.iter_mut().zip(shares).for_each(|(cursor, share)| cursor.ahead_bytes = share);
    }

    /// How many looks of a range into a part the filters spared.
    pub(crate) fn filtered(&self) -> u64 {
        self.filtered
    }

    /// Reads ahead for every cursor that has less than half of its share.
    pub(crate) async fn fill(&mut self, report: &mut ReadReport) -> Result<()> {
        if let Some(filling) = self.begin_fill() {
            let filled = filling.await?;
            self.end_fill(filled, report)?;
        }
        Ok(())
    }

    /// The same without waiting: what it brings goes to [`Cursors::end_fill`] before the next one begins. None: there is
    /// nothing to read now.
    pub(crate) fn begin_fill(&mut self) -> Option<Filling<'a>> {
        let mut wishes = Vec::new();
        for cursor in &mut self.cursors {
            if cursor.loaded_bytes > cursor.ahead_bytes / 2 {
                continue;
            }
            while (cursor.loaded_bytes < cursor.ahead_bytes || cursor.loaded_bytes == 0)
                && let Some(wish) = cursor.blocks.pop_front()
            {
                cursor.loaded_bytes += body_bytes(self.parts, wish);
                cursor.coming += 1;
                wishes.push(wish);
            }
        }
        let (store, parts, purpose) = (self.store, self.parts, self.mode.purpose);
        (!wishes.is_empty()).then(|| -> Filling<'a> { Box::pin(read(store, parts, wishes, purpose)) })
    }

    /// Takes what came, and adds what it cost to `report`.
    pub(crate) fn end_fill(&mut self, filled: Filled, report: &mut ReadReport) -> Result<()> {
        *report += filled.report;
        for (wish, block) in filled.blocks {
            let cursor = &mut self.cursors[self.parts[wish.part].run_index];
            cursor.coming -= 1;
            cursor.loaded.push_back((wish, block));
            if cursor.loaded.len() == 1 {
                cursor.enter(self.parts);
                cursor.settle(self.parts, self.ranges, self.layouts)?;
            }
        }
        Ok(())
    }

    /// The entries of the least key that is left.
    pub(crate) fn next_chain(&mut self, chain: &mut Chain) -> Result<Step> {
        chain.clear();
        let mut least: Option<usize> = None;
        for (i, cursor) in self.cursors.iter().enumerate() {
            match cursor.loaded.front() {
                None if cursor.blocks.is_empty() && cursor.coming == 0 => {}
                None => return Ok(Step::Dry),
                Some((_, block)) => {
                    if least.is_none_or(|l| cursor.key_below(&block.0, &self.cursors[l])) {
                        least = Some(i);
                    }
                }
            }
        }
        let Some(least) = least else { return Ok(Step::End) };
        if let Some((_, block)) = self.cursors[least].loaded.front() {
            chain.key.extend_from_slice(block.0.prefix());
            chain.key.extend_from_slice(block.0.suffix(self.cursors[least].at));
        }
        for cursor in &mut self.cursors[least..] {
            cursor.take(chain, self.parts, self.ranges, self.layouts)?;
        }
        Ok(Step::Chain)
    }

    /// Puts what was read and not used up into the block cache: the next piece of a scan begins there.
    pub(crate) fn keep_rest(&mut self) {
        for cursor in &mut self.cursors {
            for (wish, loaded) in cursor.loaded.drain(..) {
                let key = self.parts[wish.part].key(wish.block);
                if !self.store.0.caches.holds_block(&key) {
                    // On the SSD, where there is one, it is or it was not worth a place.
                    self.store.0.caches.insert_in_memory(key, loaded.indexed());
                }
            }
        }
    }
}

fn body_bytes(parts: &[PartOf<'_>], wish: BlockWish) -> u64 {
    parts[wish.part].part.blocks()[wish.block].body_length.into()
}

/// Brings blocks, from memory or from where they are, and leaves the caches as they are.
async fn read(store: &StateStore, parts: &[PartOf<'_>], wishes: Vec<BlockWish>, purpose: Purpose) -> Result<Filled> {
    let mut report = ReadReport::default();
    let mut blocks: Vec<Option<SharedBlock>> = Vec::with_capacity(wishes.len());
    let mut missing = Vec::new();
    for (i, wish) in wishes.iter().enumerate() {
        // What is hot is none of a walk's business: no hit is counted and nothing is put in.
        let of = &parts[wish.part];
        let known = of.part.slots().read().blocks()[wish.block].upgrade().map(SharedBlock);
        let there = known.or_else(|| store.0.caches.peek_block(&of.key(wish.block)));
        match there {
            Some(_) => report.memory_hits += 1,
            None => missing.push(i),
        }
        blocks.push(there);
    }
    if !missing.is_empty() {
        let asked: Vec<BlockWish> = missing.iter().map(|&i| wishes[i]).collect();
        let mode = BlockMode { purpose, keep: false, form: BlockForm::Walked };
        let take = |i: usize, block| {
            blocks[missing[i]] = Some(block);
            Ok(())
        };
        store.blocks(parts, &asked, mode, &mut report, take).await?;
    }
    let absent = || Error::internal("a block that was asked for has not come").code(9213);
    let brought = wishes.into_iter().zip(blocks).map(|(wish, block)| Ok((wish, block.ok_or_else(absent)?)));
    Ok(Filled { blocks: brought.collect::<Result<_>>()?, report })
}

/// Ranges whose prefixes go through the filter of a part together: their lines fit into the nearest cache.
const GROUP: usize = 64;

/// Which ranges are looked for in which part; kept from part to part for its memory.
struct Asked<'a> {
    ranges: &'a [KeyRange],
    /// By range: the hash of its prefix; empty when no range has one.
    hashes: Vec<u64>,
    prefixed: Vec<u32>,
    /// What came out of the last part.
    found: Vec<u32>,
    filtered: u64,
}

impl<'a> Asked<'a> {
    fn new(ranges: &'a [KeyRange]) -> Self {
        let mut hashes = Vec::new();
        if ranges.iter().any(|r| r.prefix.is_some()) {
            hashes.extend(ranges.iter().map(|r| r.prefix.unwrap_or_default()));
        }
        Self { ranges, hashes, prefixed: Vec::new(), found: Vec::new(), filtered: 0 }
    }

    /// The ranges that meet the part, in order, but for those whose prefix its filter denies.
    fn in_part(&mut self, part: &Part) -> &[u32] {
        let first = self.ranges.partition_point(|r| r.to.as_ref().is_some_and(|to| to.as_ref() <= part.first_key()));
        let end = self.ranges.partition_point(|r| r.from.as_ref() <= part.last_key()).max(first);
        let meets = first as u32..end as u32;
        self.found.clear();
        if self.hashes.is_empty() {
            self.found.extend(meets);
            return &self.found;
        }
        self.prefixed.clear();
        for r in meets {
            let one = if self.ranges[r as usize].prefix.is_some() { &mut self.prefixed } else { &mut self.found };
            one.push(r);
        }
        let others = self.found.len();
        for group in self.prefixed.chunks(GROUP) {
            part.filter().select(&self.hashes, group, &mut self.found);
        }
        self.filtered += (self.prefixed.len() - (self.found.len() - others)) as u64;
        if others > 0 {
            self.found.sort_unstable();
        }
        &self.found
    }
}

impl Cursor {
    /// Whether this cursor's key is below the other's.
    #[inline]
    fn key_below(&self, block: &Block, other: &Cursor) -> bool {
        other.loaded.front().is_some_and(|(_, o)| block.compare_across(self.at, &o.0, other.at).is_lt())
    }

    /// Begins with the first loaded block.
    fn enter(&mut self, parts: &[PartOf<'_>]) {
        if let Some((wish, _)) = self.loaded.front() {
            let groups = parts[wish.part].part.blocks()[wish.block].groups;
            let all = KeyGroupRange { start: groups.0.into(), end: u32::from(groups.1) + 1 };
            self.inside = self.clip.covers(&KeyGroupRanges::from(all));
            // The range is looked for before the first entry is.
            (self.at, self.until) = (0, 0);
        }
    }

    /// Moves on to the next entry that is to be seen: inside a range and the clip.
    fn settle(&mut self, parts: &[PartOf<'_>], ranges: &[KeyRange], layouts: &Layouts) -> Result<()> {
        while let Some((wish, SharedBlock(block))) = self.loaded.front() {
            if self.at >= block.len() {
                self.loaded_bytes = self.loaded_bytes.saturating_sub(body_bytes(parts, *wish));
                self.loaded.pop_front();
                self.enter(parts);
                continue;
            }
            if self.at >= self.until {
                let Some(range) = self.ranges.get(self.range).and_then(|&r| ranges.get(r as usize)) else {
                    self.loaded.clear();
                    self.loaded_bytes = 0;
                    self.blocks.clear();
                    return Ok(());
                };
                self.at = block.lower_bound(self.at, &range.from);
                self.until = range.to.as_ref().map_or(block.len(), |to| block.lower_bound(self.at, to));
                // It ends in this block, or before it.
                self.range += usize::from(self.until < block.len() && self.at >= self.until);
                continue;
            }
            if self.inside {
                return Ok(());
            }
            self.key.clear();
            self.key.extend_from_slice(block.prefix());
            self.key.extend_from_slice(block.suffix(self.at));
            if self.clip.contains(layouts.locate(&self.key)?.group) {
                return Ok(());
            }
            self.at += 1;
        }
        Ok(())
    }

    /// Takes the entries of `chain.key`, if they are next here.
    fn take(&mut self, chain: &mut Chain, parts: &[PartOf<'_>], ranges: &[KeyRange], layouts: &Layouts) -> Result<()> {
        let Some((_, SharedBlock(block))) = self.loaded.front() else { return Ok(()) };
        if !block.is_key(self.at, &chain.key) {
            return Ok(());
        }
        // All entries of a key stand in one block.
        while block.is_key(self.at, &chain.key) {
            chain.push(block.entry(self.at));
            self.at += 1;
        }
        self.settle(parts, ranges, layouts)
    }
}
