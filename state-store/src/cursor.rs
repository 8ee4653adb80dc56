//! Walks several runs at once in key order: what scans and compactions have in common.
//!
//! Each run has a cursor that reads its blocks some way ahead. [`Cursors::next_chain`] is synchronous and gives all
//! entries of the least key, newest first; when a cursor has run dry it says so, and [`Cursors::fill`] reads ahead for
//! all cursors that need it, at once. Entries outside a cursor's clip are skipped.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use millstream_common::{KeyGroupRange, KeyGroupRanges, Result};
use millstream_objects::Purpose;

use crate::Layouts;
use crate::fetch::BlockWish;
use crate::report::ReadReport;
use crate::run::Run;
use crate::section::{Block, SectionMeta};
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
    /// Newest first, as are `metas` and `cursors`.
    runs: Vec<&'a Arc<Run>>,
    metas: Vec<Arc<SectionMeta>>,
    cursors: Vec<Cursor>,
    mode: ReadMode,
}

struct Cursor {
    clip: KeyGroupRanges,
    /// Blocks that are still to be read.
    blocks: Range<usize>,
    loaded: VecDeque<(usize, Block)>,
    loaded_bytes: u64,
    /// Entry of the first loaded block.
    at: usize,
    /// All entries of the first loaded block lie in the clip.
    inside: bool,
    /// Where the walk begins, inclusive, and ends, exclusive.
    from: Vec<u8>,
    to: Option<Vec<u8>>,
}

impl<'a> Cursors<'a> {
    /// Cursors over `runs` (newest first), each clipped, from `from` (inclusive) to `to` (exclusive; none: to the
    /// end).
    pub(crate) fn new(
        store: &'a StateStore,
        layouts: &'a Layouts,
        runs: Vec<(&'a Arc<Run>, KeyGroupRanges)>,
        metas: Vec<Arc<SectionMeta>>,
        (from, to): (&[u8], Option<&[u8]>),
        mode: ReadMode,
    ) -> Self {
        let (runs, clips): (Vec<_>, Vec<_>) = runs.into_iter().unzip();
        let cursors = metas
            .iter()
            .zip(clips)
            .map(|(meta, clip)| {
                let start = meta.seek(0, from);
                let end = match to {
                    None => meta.blocks().len(),
                    Some(to) => start + blocks_below(meta, start, to),
                };
                Cursor {
                    clip,
                    blocks: start..end,
                    loaded: VecDeque::new(),
                    loaded_bytes: 0,
                    at: 0,
                    inside: false,
                    from: from.to_vec(),
                    to: to.map(<[u8]>::to_vec),
                }
            })
            .collect();
        Self { store, layouts, runs, metas, cursors, mode }
    }

    /// Reads ahead for every cursor that has less than half of its share.
    pub(crate) async fn fill(&mut self, report: &mut ReadReport) -> Result<()> {
        let mut wishes = Vec::new();
        let mut bodies: Vec<Option<Bytes>> = Vec::new();
        for (run, cursor) in self.cursors.iter_mut().enumerate() {
            if cursor.loaded_bytes > self.mode.ahead_bytes / 2 {
                continue;
            }
            let meta = &self.metas[run];
            let mut bytes = cursor.loaded_bytes;
            while bytes < self.mode.ahead_bytes
                && let Some(block) = cursor.blocks.next()
            {
                let info = &meta.blocks()[block];
                if info.overlaps(&cursor.clip) {
                    bytes += u64::from(info.body_length);
                    wishes.push(BlockWish { run, block });
                    bodies.push(None);
                }
            }
        }
        let mut missing = Vec::new();
        for (i, wish) in wishes.iter().enumerate() {
            // What is hot is none of a walk's business: no hit is counted and nothing is put in.
            bodies[i] = self.store.0.caches.peek_block(&self.store.block_key(&self.runs, &self.metas, wish));
            match bodies[i] {
                Some(_) => report.memory_hits += 1,
                None => missing.push(i),
            }
        }
        if !missing.is_empty() {
            let asked: Vec<BlockWish> = missing.iter().map(|&i| wishes[i].clone()).collect();
            let mode = (self.mode.purpose, false);
            self.store
                .blocks(&self.runs, &self.metas, &asked, mode, report, |i, body| {
                    bodies[missing[i]] = Some(body);
                    Ok(())
                })
                .await?;
        }
        for (wish, body) in wishes.into_iter().zip(bodies) {
            if let Some(body) = body {
                let cursor = &mut self.cursors[wish.run];
                cursor.loaded_bytes += body.len() as u64;
                cursor.loaded.push_back((wish.block, Block::open(body)?));
                if cursor.loaded.len() == 1 {
                    cursor.enter(&self.metas[wish.run]);
                    cursor.settle(&self.metas[wish.run], self.layouts)?;
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
                    if least.is_none_or(|l| cursor.key_below(block, &self.cursors[l])) {
                        least = Some(i);
                    }
                }
            }
        }
        let Some(least) = least else { return Ok(Step::End) };
        if let Some((_, block)) = self.cursors[least].loaded.front() {
            chain.key.extend_from_slice(block.prefix());
            chain.key.extend_from_slice(block.suffix(self.cursors[least].at));
        }
        for i in least..self.cursors.len() {
            self.cursors[i].take(chain, &self.metas[i], self.layouts)?;
        }
        Ok(Step::Chain)
    }

    /// Puts what was read and not used up into the block cache: the next piece of a scan begins there.
    pub(crate) fn keep_rest(&mut self) {
        for (run, cursor) in self.cursors.iter_mut().enumerate() {
            for (block, loaded) in cursor.loaded.drain(..) {
                let key = self.store.block_key(&self.runs, &self.metas, &BlockWish { run, block });
                if !self.store.0.caches.holds_block(&key) {
                    self.store.0.caches.insert_block(key, loaded.into_body());
                }
            }
        }
    }
}

impl Cursor {
    /// Whether this cursor's key is below the other's.
    #[inline]
    fn key_below(&self, block: &Block, other: &Cursor) -> bool {
        other.loaded.front().is_some_and(|(_, o)| block.compare_across(self.at, o, other.at).is_lt())
    }

    /// Begins with the first loaded block.
    fn enter(&mut self, meta: &SectionMeta) {
        if let Some((index, block)) = self.loaded.front() {
            let groups = meta.blocks()[*index].groups;
            let all = KeyGroupRange { start: groups.0.into(), end: u32::from(groups.1) + 1 };
            self.inside = self.clip.covers(&KeyGroupRanges::from(all));
            self.at = if self.from.is_empty() { 0 } else { block.lower_bound(0, &self.from) };
        }
    }

    /// Moves on to the next entry that is to be seen: inside the clip, below the end.
    fn settle(&mut self, meta: &SectionMeta, layouts: &Layouts) -> Result<()> {
        let mut key = Vec::new();
        while let Some((_, block)) = self.loaded.front() {
            if self.at >= block.len() {
                self.loaded_bytes -= block.body_len() as u64;
                self.loaded.pop_front();
                // Later blocks begin above `from`.
                self.from.clear();
                self.enter(meta);
                continue;
            }
            if self.to.as_ref().is_some_and(|to| block.compare(self.at, to).is_ge()) {
                self.loaded.clear();
                self.loaded_bytes = 0;
                self.blocks = 0..0;
                return Ok(());
            }
            if self.inside {
                return Ok(());
            }
            key.clear();
            key.extend_from_slice(block.prefix());
            key.extend_from_slice(block.suffix(self.at));
            if self.clip.contains(layouts.locate(&key)?.group) {
                return Ok(());
            }
            self.at += 1;
        }
        Ok(())
    }

    /// Takes the entries of `chain.key`, if they are next here.
    fn take(&mut self, chain: &mut Chain, meta: &SectionMeta, layouts: &Layouts) -> Result<()> {
        let Some((_, block)) = self.loaded.front() else { return Ok(()) };
        if !block.is_key(self.at, &chain.key) {
            return Ok(());
        }
        // All entries of a key stand in one block.
        while block.is_key(self.at, &chain.key) {
            chain.push(block.entry(self.at));
            self.at += 1;
        }
        self.settle(meta, layouts)
    }
}

/// How many blocks from `start` on begin below `to`.
fn blocks_below(meta: &SectionMeta, start: usize, to: &[u8]) -> usize {
    let (mut low, mut high) = (start, meta.blocks().len());
    while low < high {
        let mid = low.midpoint(high);
        if meta.first_key(mid) < to { low = mid + 1 } else { high = mid }
    }
    low - start
}
