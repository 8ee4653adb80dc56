//! Walks several runs at once in key order: what scans and compactions have in common.
//!
//! Each run has a cursor that reads its blocks some way ahead. [`Cursors::next_chain`] is synchronous and gives all
//! entries of the least key, newest first; when a cursor has run dry it says so, and [`Cursors::fill`] reads ahead for
//! all cursors that need it, at once. Entries outside a cursor's clip are skipped.

use std::collections::VecDeque;

use bytes::Bytes;
use millstream_common::{KeyGroupRange, KeyGroupRanges, Result};
use millstream_objects::Purpose;

use crate::Layouts;
use crate::fetch::{BlockMode, BlockWish, PartOf};
use crate::report::ReadReport;
use crate::section::{Block, PartInfo, SharedBlock};
use crate::store::StateStore;

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
}

impl KeyRange {
    pub(crate) fn all() -> Self {
        Self { from: Bytes::new(), to: None }
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
    /// Bytes of blocks (uncompressed) that each cursor reads ahead.
    pub(crate) ahead_bytes: u64,
}

pub(crate) struct Cursors<'a> {
    store: &'a StateStore,
    layouts: &'a Layouts,
    parts: &'a [PartOf<'a>],
    /// Sorted and disjoint.
    ranges: &'a [KeyRange],
    /// Newest run first.
    cursors: Vec<Cursor>,
    mode: ReadMode,
}

struct Cursor {
    clip: KeyGroupRanges,
    /// Blocks that are still to be read.
    blocks: VecDeque<BlockWish>,
    loaded: VecDeque<(BlockWish, SharedBlock)>,
    loaded_bytes: u64,
    /// Entry of the first loaded block.
    at: usize,
    /// Where the entries of the first loaded block end that lie in the range.
    until: usize,
    /// The range that the walk is in.
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
                loaded: VecDeque::new(),
                loaded_bytes: 0,
                at: 0,
                until: 0,
                range: 0,
                inside: false,
                key: Vec::new(),
            })
            .collect();
        for (part, of) in parts.iter().enumerate() {
            let cursor = &mut cursors[of.run_index];
            let infos = of.part.blocks();
            // The first block that is not among the wishes yet, and where the search for a range begins.
            let (mut next, mut start) = (0, 0);
            let first = ranges.partition_point(|r| r.to.as_ref().is_some_and(|to| to.as_ref() <= of.part.first_key()));
            for range in ranges[first..].iter().take_while(|r| r.from.as_ref() <= of.part.last_key()) {
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
        Self { store, layouts, parts, ranges, cursors, mode }
    }

    /// Reads ahead for every cursor that has less than half of its share.
    pub(crate) async fn fill(&mut self, report: &mut ReadReport) -> Result<()> {
        let mut wishes = Vec::new();
        for cursor in &mut self.cursors {
            if cursor.loaded_bytes > self.mode.ahead_bytes / 2 {
                continue;
            }
            let mut bytes = cursor.loaded_bytes;
            while bytes < self.mode.ahead_bytes
                && let Some(wish) = cursor.blocks.pop_front()
            {
                bytes += u64::from(self.parts[wish.part].part.blocks()[wish.block].body_length);
                wishes.push(wish);
            }
        }
        let mut blocks: Vec<Option<SharedBlock>> = Vec::with_capacity(wishes.len());
        let mut missing = Vec::new();
        for (i, wish) in wishes.iter().enumerate() {
            // What is hot is none of a walk's business: no hit is counted and nothing is put in.
            let of = &self.parts[wish.part];
            let known = of.part.slots().read()[wish.block].upgrade().map(SharedBlock);
            let there = known.or_else(|| self.store.0.caches.peek_block(&of.key(wish.block)));
            match there {
                Some(_) => report.memory_hits += 1,
                None => missing.push(i),
            }
            blocks.push(there);
        }
        if !missing.is_empty() {
            let asked: Vec<BlockWish> = missing.iter().map(|&i| wishes[i]).collect();
            let mode = BlockMode { purpose: self.mode.purpose, keep: false };
            self.store
                .blocks(self.parts, &asked, mode, report, |i, block| {
                    blocks[missing[i]] = Some(block);
                    Ok(())
                })
                .await?;
        }
        for (wish, block) in wishes.into_iter().zip(blocks) {
            if let Some(block) = block {
                let of = &self.parts[wish.part];
                let cursor = &mut self.cursors[of.run_index];
                cursor.loaded_bytes += block.0.body_len() as u64;
                cursor.loaded.push_back((wish, block));
                if cursor.loaded.len() == 1 {
                    cursor.enter(self.parts);
                    cursor.settle(self.parts, self.ranges, self.layouts)?;
                }
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
                None if cursor.blocks.is_empty() => {}
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
        while let Some((_, SharedBlock(block))) = self.loaded.front() {
            if self.at >= block.len() {
                self.loaded_bytes -= block.body_len() as u64;
                self.loaded.pop_front();
                self.enter(parts);
                continue;
            }
            if self.at >= self.until {
                let Some(range) = ranges.get(self.range) else {
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
