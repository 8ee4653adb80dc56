//! Cuts sorted entries into blocks and parts and writes the section's bytes.

use std::sync::Arc;

use bytes::Bytes;
use millstream_common::hash::stable_hash;
use millstream_common::{Error, KeyGroupRanges, Result, StateId, TaskId};

use super::block::BlockBuilder;
use super::filter::Filter;
use super::index::{BlockInfo, Directory, Part, PartDraft, PartInfo};
use super::{EncodedSection, Interval, SectionOptions, StateStats};
use crate::key;
use crate::layout::unknown_state;
use crate::{Layout, Layouts};

/// Output gathers in pieces of about this size: a large buffer that grows would be copied again and again.
const PIECE_BYTES: usize = 1 << 20;

/// Builds a section from sorted entries.
pub struct SectionBuilder {
    task: TaskId,
    options: SectionOptions,
    layouts: Layouts,
    block: BlockBuilder,
    bounds: Bounds,
    last_key: Vec<u8>,
    output: Output,
    part: OpenPart,
    parts: Vec<(PartInfo, Arc<Part>, Vec<u8>)>,
    entries: u64,
    states: Vec<StateStats>,
    /// The state of the entry before, with its layout and its place in `states`.
    state: Option<(StateId, Layout, usize)>,
    /// As many blocks as are to be kept.
    kept_blocks: Vec<(u64, Bytes)>,
    kept_bytes: usize,
}

/// The section's bytes so far: finished pieces and the open one.
#[derive(Default)]
struct Output {
    pieces: Vec<Bytes>,
    piece: Vec<u8>,
    length: u64,
    checksum: u32,
}

/// What is known of the part that is being written.
#[derive(Default)]
struct OpenPart {
    offset: u64,
    blocks: Vec<BlockInfo>,
    keys: Vec<u8>,
    hashes: Vec<u64>,
    /// In a map state: the prefix of the key before.
    prefix: Vec<u8>,
    entries: u64,
    groups: Option<(u16, u16)>,
    last_key: Vec<u8>,
}

/// Least and greatest key group and time of a block.
#[derive(Clone, Copy, Default)]
struct Bounds {
    groups: Option<(u16, u16)>,
    times: Option<(i64, i64)>,
}

fn widen<T: Ord + Copy>(old: Option<(T, T)>, least: T, greatest: T) -> Option<(T, T)> {
    Some(old.map_or((least, greatest), |(a, b)| (a.min(least), b.max(greatest))))
}

impl OpenPart {
    /// What the filter is to hold of a key that differs from the one before.
    fn add_hashes(&mut self, key: &[u8], layout: Layout) -> Result<()> {
        self.hashes.push(stable_hash(key));
        // No prefix begins another one's keys.
        if layout != Layout::Map || (!self.prefix.is_empty() && key.starts_with(&self.prefix)) {
            return Ok(());
        }
        let length = key::map_prefix_len(key).ok_or_else(|| endless_key(key))?;
        self.prefix.clear();
        self.prefix.extend_from_slice(&key[..length]);
        // With an empty map key the whole key is the prefix.
        if length < key.len() {
            self.hashes.push(stable_hash(&self.prefix));
        }
        Ok(())
    }
}

fn endless_key(key: &[u8]) -> Error {
    Error::internal(format!("{key:02x?} is a store key of a map state in which the key does not end")).code(9204)
}

impl Output {
    /// Room for a block of about so many bytes. A small section is one piece; a large one grows by whole pieces.
    fn reserve(&mut self, block_bytes: usize) {
        if self.piece.capacity() == 0 {
            let expected = if self.length == 0 { block_bytes + 4096 } else { PIECE_BYTES + PIECE_BYTES / 8 };
            self.piece.reserve(expected);
        }
    }

    /// Counts what was appended to the open piece behind `before`.
    fn appended(&mut self, before: usize) {
        let new = &self.piece[before..];
        self.checksum = crc32c::crc32c_append(self.checksum, new);
        self.length += new.len() as u64;
        if self.piece.len() >= PIECE_BYTES {
            self.pieces.push(Bytes::from(std::mem::take(&mut self.piece)));
        }
    }

    fn append(&mut self, bytes: Vec<u8>) {
        if self.piece.len() + bytes.len() <= PIECE_BYTES {
            let before = self.piece.len();
            self.piece.extend_from_slice(&bytes);
            return self.appended(before);
        }
        self.checksum = crc32c::crc32c_append(self.checksum, &bytes);
        self.length += bytes.len() as u64;
        let open = std::mem::take(&mut self.piece);
        self.pieces.extend([open, bytes].into_iter().filter(|p| !p.is_empty()).map(Bytes::from));
    }
}

impl SectionBuilder {
    /// A section of `task` without entries.
    #[must_use]
    pub fn new(task: TaskId, options: &SectionOptions, layouts: &Layouts) -> Self {
        Self {
            task,
            block: BlockBuilder::new(options.compression),
            options: options.clone(),
            layouts: layouts.clone(),
            bounds: Bounds::default(),
            last_key: Vec::new(),
            output: Output::default(),
            part: OpenPart::default(),
            parts: Vec::new(),
            entries: 0,
            states: Vec::new(),
            state: None,
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
            if self.block.bytes() >= self.options.block_bytes || self.block.is_full() {
                self.close_block();
            }
        }
        let (state, layout) = self.enter_state(key)?;
        let (group, time) = key::key_group(key, layout).ok_or_else(|| crate::layout::bad_key(key))?;
        if !same_key {
            self.part.add_hashes(key, layout)?;
            self.last_key.clear();
            self.last_key.extend_from_slice(key);
        }
        self.block.add(key, entry)?;
        self.entries += 1;
        self.bounds.groups = widen(self.bounds.groups, group.0, group.0);
        let stats = &mut self.states[state];
        stats.entries += 1;
        if let Some(t) = time {
            self.bounds.times = widen(self.bounds.times, t, t);
            stats.times = widen(stats.times, t, t);
        }
        Ok(())
    }

    /// The place in `states` of the key's state, and its layout.
    #[inline]
    fn enter_state(&mut self, key: &[u8]) -> Result<(usize, Layout)> {
        let id = key::state_of(key).ok_or_else(|| crate::layout::bad_key(key))?;
        if let Some((state, layout, at)) = self.state
            && state == id
        {
            return Ok((at, layout));
        }
        let layout = self.layouts.get(id).ok_or_else(|| unknown_state(id))?.layout;
        // Keys come in order, and a key begins with its state.
        let at = self.states.len();
        self.states.push(StateStats { state: id, times: None, entries: 0 });
        self.state = Some((id, layout, at));
        Ok((at, layout))
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
        self.output.reserve(self.block.bytes());
        let part = &mut self.part;
        part.keys.extend_from_slice(self.block.first_key());
        part.last_key.clear();
        part.last_key.extend_from_slice(self.block.last_key());
        let entries = self.block.len() as u32;
        let (offset, before) = (self.output.length, self.output.piece.len());
        let (body, checksum) = self.block.finish(&mut self.output.piece);
        let groups = self.bounds.groups.unwrap_or_default();
        part.blocks.push(BlockInfo {
            offset,
            length: (self.output.piece.len() - before) as u32,
            checksum,
            body_length: body.len() as u32,
            entries,
            groups,
            times: self.bounds.times,
            key_end: part.keys.len() as u32,
        });
        part.entries += u64::from(entries);
        part.groups = widen(part.groups, groups.0, groups.1);
        if self.kept_bytes + body.len() <= self.options.keep_blocks_bytes {
            self.kept_bytes += body.len();
            self.kept_blocks.push((offset, Bytes::copy_from_slice(body)));
        }
        self.output.appended(before);
        self.bounds = Bounds::default();
        if self.output.length - self.part.offset >= self.options.part_bytes {
            self.close_part();
        }
    }

    fn close_part(&mut self) {
        let next = OpenPart { offset: self.output.length, ..OpenPart::default() };
        let open = std::mem::replace(&mut self.part, next);
        let Some(first) = open.blocks.first() else { return };
        let (first_key, blocks) = (open.keys[..first.key_end as usize].to_vec(), open.blocks.len() as u32);
        let filter = Filter::build(&open.hashes, self.options.filter);
        let part =
            Part::new(PartDraft { blocks: open.blocks, keys: open.keys, last_key: open.last_key.clone(), filter });
        let stored = part.encode();
        let info = PartInfo {
            offset: open.offset,
            length: stored.len() as u32,
            checksum: crc32c::crc32c(&stored),
            blocks,
            entries: open.entries,
            groups: open.groups.unwrap_or_default(),
            first_key,
            last_key: open.last_key,
            at: self.parts.last().map_or(0, |(p, ..)| p.at + u64::from(p.length)),
        };
        self.parts.push((info, Arc::new(part), stored));
    }

    /// Closes the section. It is live for `ranges` and holds `interval`.
    #[must_use]
    pub fn finish(mut self, ranges: KeyGroupRanges, interval: Interval) -> EncodedSection {
        self.close_block();
        self.close_part();
        let meta_offset = self.output.length;
        let (mut infos, mut parts) = (Vec::new(), Vec::new());
        for (info, part, stored) in self.parts {
            self.output.append(stored);
            infos.push(info);
            parts.push(part);
        }
        let directory = Directory {
            before_checksum: self.output.checksum,
            entries: self.entries,
            states: self.states,
            parts: infos,
        };
        let stored = directory.encode();
        let directory_length = stored.len() as u32;
        self.output.append(stored);
        let Output { mut pieces, piece, length, checksum } = self.output;
        if !piece.is_empty() {
            pieces.push(Bytes::from(piece));
        }
        EncodedSection {
            task: self.task,
            ranges,
            interval,
            pieces,
            length,
            meta_offset,
            directory_length,
            checksum,
            directory: Arc::new(directory),
            parts,
            kept_blocks: self.kept_blocks,
            heat: None,
        }
    }
}
