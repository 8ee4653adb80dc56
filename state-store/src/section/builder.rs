//! Builds a section from sorted entries, holding the compressed output and the hashes of its keys, nothing more.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use millstream_common::hash::stable_hash;
use millstream_common::{Error, KeyGroupRanges, Result, StateId, TaskId};

use super::block::BlockBuilder;
use super::filter::Filter;
use super::meta::{BlockInfo, SectionMeta};
use super::{EncodedSection, Interval, SectionOptions, StateStats};
use crate::Layouts;

const PIECE_BYTES: usize = 1 << 20;

/// Takes entries in key order and builds a section of them.
pub struct SectionBuilder {
    task: TaskId,
    options: SectionOptions,
    layouts: Layouts,
    block: BlockBuilder,
    bounds: Bounds,
    last_key: Vec<u8>,
    /// Finished pieces of the output and the open one.
    pieces: Vec<Bytes>,
    piece: Vec<u8>,
    length: u64,
    checksum: u32,
    blocks: Vec<BlockInfo>,
    keys: Vec<u8>,
    hashes: Vec<u64>,
    entries: u64,
    states: BTreeMap<StateId, StateStats>,
    /// As many blocks as are to be kept.
    kept_blocks: Vec<(u64, Bytes)>,
    kept_bytes: usize,
}

/// Least and greatest key group and time of a block.
#[derive(Clone, Copy, Default)]
struct Bounds {
    groups: Option<(u16, u16)>,
    times: Option<(i64, i64)>,
}

impl SectionBuilder {
    /// A section of `task` without entries.
    #[must_use]
    pub fn new(task: TaskId, options: &SectionOptions, layouts: &Layouts) -> Self {
        Self {
            task,
            options: options.clone(),
            layouts: layouts.clone(),
            block: BlockBuilder::default(),
            bounds: Bounds::default(),
            last_key: Vec::new(),
            pieces: Vec::new(),
            piece: Vec::new(),
            length: 0,
            checksum: 0,
            blocks: Vec::new(),
            keys: Vec::new(),
            hashes: Vec::new(),
            entries: 0,
            states: BTreeMap::new(),
            kept_blocks: Vec::new(),
            kept_bytes: 0,
        }
    }

    /// Appends an encoded entry. Keys must come in order; the entries of one key newest first.
    pub fn add(&mut self, key: &[u8], entry: &[u8]) -> Result<()> {
        let same_key = self.entries > 0 && key == self.last_key.as_slice();
        if !same_key {
            if self.entries > 0 && key < self.last_key.as_slice() {
                return Err(Error::internal("entries of a section came out of order").code(9205));
            }
            // A key's entries never span two blocks.
            if self.block.bytes() >= self.options.block_bytes {
                self.close_block();
            }
            self.last_key.clear();
            self.last_key.extend_from_slice(key);
            self.hashes.push(stable_hash(key));
        }
        let place = self.layouts.locate(key)?;
        self.block.add(key, entry)?;
        self.entries += 1;
        let g = place.group.0;
        self.bounds.groups = Some(self.bounds.groups.map_or((g, g), |(a, b)| (a.min(g), b.max(g))));
        let stats =
            self.states.entry(place.state).or_insert(StateStats { state: place.state, times: None, entries: 0 });
        stats.entries += 1;
        if let Some(t) = place.time_ms {
            let widen = |old: Option<(i64, i64)>| Some(old.map_or((t, t), |(a, b)| (a.min(t), b.max(t))));
            self.bounds.times = widen(self.bounds.times);
            stats.times = widen(stats.times);
        }
        Ok(())
    }

    /// From here on finished blocks are kept while they have no more than `bytes`; the caller may take them with
    /// [`SectionBuilder::take_kept`].
    pub(crate) fn keep_blocks(&mut self, bytes: usize) {
        self.options.keep_blocks_bytes = bytes;
    }

    /// Bytes of blocks that are kept.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// The kept blocks, with their offsets in the section.
    pub(crate) fn take_kept(&mut self) -> Vec<(u64, Bytes)> {
        self.kept_bytes = 0;
        std::mem::take(&mut self.kept_blocks)
    }

    /// How many entries were added.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }

    fn close_block(&mut self) {
        if self.block.len() == 0 {
            return;
        }
        let start = self.keys.len() as u32;
        self.keys.extend_from_slice(self.block.first_key());
        let middle = self.keys.len() as u32;
        self.keys.extend_from_slice(self.block.last_key());
        let entries = self.block.len() as u32;
        if self.piece.capacity() == 0 {
            // A small section is one piece; a large one grows by whole pieces.
            let expected = if self.length == 0 { self.block.bytes() + 4096 } else { PIECE_BYTES + PIECE_BYTES / 8 };
            self.piece.reserve(expected);
        }
        let before = self.piece.len();
        let (body, checksum) = self.block.finish(&mut self.piece);
        let stored = &self.piece[before..];
        self.checksum = crc32c::crc32c_append(self.checksum, stored);
        self.blocks.push(BlockInfo {
            offset: self.length,
            length: stored.len() as u32,
            checksum,
            body_length: body.len() as u32,
            entries,
            groups: self.bounds.groups.unwrap_or_default(),
            times: self.bounds.times,
            keys: (start, middle, self.keys.len() as u32),
        });
        if self.kept_bytes + body.len() <= self.options.keep_blocks_bytes {
            self.kept_bytes += body.len();
            self.kept_blocks.push((self.length, Bytes::copy_from_slice(body)));
        }
        self.length += stored.len() as u64;
        self.bounds = Bounds::default();
        if self.piece.len() >= PIECE_BYTES {
            self.pieces.push(Bytes::from(std::mem::take(&mut self.piece)));
        }
    }

    /// Closes the section. It is live for `ranges` and holds `interval`.
    #[must_use]
    pub fn finish(mut self, ranges: KeyGroupRanges, interval: Interval) -> EncodedSection {
        self.close_block();
        let filter = Filter::build(&self.hashes, self.options.filter_bits_per_key);
        let meta = SectionMeta {
            blocks_checksum: self.checksum,
            entries: self.entries,
            states: self.states.into_values().collect(),
            blocks: self.blocks,
            keys: self.keys,
            filter,
        };
        let stored = meta.encode();
        let meta_offset = self.length;
        self.checksum = crc32c::crc32c_append(self.checksum, &stored);
        self.length += stored.len() as u64;
        if self.piece.len() + stored.len() <= PIECE_BYTES {
            self.piece.extend_from_slice(&stored);
            self.pieces.push(Bytes::from(self.piece));
        } else {
            self.pieces.extend([self.piece, stored].into_iter().filter(|p| !p.is_empty()).map(Bytes::from));
        }
        EncodedSection {
            task: self.task,
            ranges,
            interval,
            pieces: self.pieces,
            length: self.length,
            meta_offset,
            checksum: self.checksum,
            meta: Arc::new(meta),
            kept_blocks: self.kept_blocks,
        }
    }
}
