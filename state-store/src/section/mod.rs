//! A section: the sorted entries of one task for some key groups, as it stands inside a bundle object.
//!
//! Data blocks come first, then the meta part: index and filter of every stretch of blocks (a [`Part`]) and the
//! [`Directory`] of the parts, contiguous, so that one GET reads all of it or any of it. The format is `docs/formats.md`,
//! version 2. A key's entries stand together in one block, newest first: merge operands and then at most one put or
//! delete. Nothing here does I/O.
//!
//! - [`SectionWriter`]: collects unsorted entries; what a flush uses.
//! - [`SectionBuilder`]: takes sorted entries one by one; what a compaction uses.

mod block;
mod builder;
mod column;
mod filter;
mod index;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;

use bytes::Bytes;
use millstream_common::{Epoch, KeyGroupRanges, StateId, TaskId};

pub use block::{Block, Compression, SharedBlock};
pub use builder::SectionBuilder;
pub use filter::FilterKind;
pub use index::{BlockInfo, Directory, Part, PartInfo};
pub use writer::SectionWriter;

pub(crate) use block::{BlockForm, decode_stored, is_same};

/// Format version of sections.
pub const SECTION_FORMAT: u16 = 2;

/// How sections are cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectionOptions {
    /// A data block is closed once its keys and values have this many bytes.
    pub block_bytes: usize,
    /// How they are compressed.
    pub compression: Compression,
    /// Which filter a part has.
    pub filter: FilterKind,
    /// A part of the index is closed once its blocks have this many stored bytes: so much is read at once to find a key.
    pub part_bytes: u64,
    /// Blocks of sections up to this size (uncompressed bytes) are handed to the block cache when they are written.
    pub keep_blocks_bytes: usize,
}

impl Default for SectionOptions {
    fn default() -> Self {
        Self {
            block_bytes: 15 << 10,
            compression: Compression::Lz4,
            filter: FilterKind::Bloom { bits_per_key: 16 },
            part_bytes: 16 << 20,
            keep_blocks_bytes: 256 << 10,
        }
    }
}

impl SectionOptions {
    /// The same for the bottom level, which is rewritten seldom: smaller blocks and filters for more work.
    #[must_use]
    pub fn bottom(&self) -> Self {
        let compression = if self.compression == Compression::Lz4 { Compression::Zstd } else { self.compression };
        Self { compression, filter: FilterKind::Fuse, ..self.clone() }
    }
}

/// One flush: the `flush`-th of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence {
    /// The epoch.
    pub epoch: Epoch,
    /// Counted from 0 in each epoch.
    pub flush: u32,
}

/// What a run holds: all flushes from `min` to `max`, both included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval {
    /// The oldest.
    pub min: Sequence,
    /// The newest.
    pub max: Sequence,
}

impl Interval {
    /// Flush number `flush` of `epoch`.
    #[must_use]
    pub fn of(epoch: Epoch, flush: u32) -> Self {
        let one = Sequence { epoch, flush };
        Self { min: one, max: one }
    }

    /// The smallest interval that holds both.
    #[must_use]
    pub fn hull(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }

    /// Whether `other` lies inside.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        self.min <= other.min && other.max <= self.max
    }

    /// Whether they share a flush.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.min <= other.max && other.min <= self.max
    }
}

impl std::fmt::Display for Interval {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}..{}.{}", self.min.epoch, self.min.flush, self.max.epoch, self.max.flush)
    }
}

/// What a section holds of one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateStats {
    /// The state.
    pub state: StateId,
    /// Least and greatest time; for time-ordered states only.
    pub times: Option<(i64, i64)>,
    /// How many entries.
    pub entries: u64,
}

/// A section ready to be written into a bundle.
#[derive(Clone, Debug)]
pub struct EncodedSection {
    pub(crate) task: TaskId,
    pub(crate) ranges: KeyGroupRanges,
    pub(crate) interval: Interval,
    /// The bytes, in pieces.
    pub(crate) pieces: Vec<Bytes>,
    pub(crate) length: u64,
    pub(crate) meta_offset: u64,
    pub(crate) directory_length: u32,
    pub(crate) checksum: u32,
    pub(crate) directory: Arc<Directory>,
    pub(crate) parts: Vec<Arc<Part>>,
    /// Offset in the section and uncompressed body of the first blocks, as many as were to be kept.
    pub(crate) kept_blocks: Vec<(u64, Bytes)>,
    /// A heat list to be written behind it.
    pub(crate) heat: Option<Bytes>,
}

impl EncodedSection {
    /// What is hot where this section will be read: goes along in its object.
    pub fn attach_heat(&mut self, list: Bytes) {
        self.heat = Some(list);
    }

    /// The task whose entries it holds.
    #[must_use]
    pub fn task(&self) -> TaskId {
        self.task
    }

    /// The flushes that it holds.
    #[must_use]
    pub fn interval(&self) -> Interval {
        self.interval
    }

    /// How many entries.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.directory.entries()
    }

    /// How many bytes it has in the bundle.
    #[must_use]
    pub fn encoded_bytes(&self) -> u64 {
        self.length
    }

    /// Bytes of memory that it holds.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let parts: usize = self.parts.iter().map(|p| p.memory_bytes()).sum();
        let meta = (parts + self.directory.memory_bytes()) as u64;
        let heat = self.heat.as_ref().map_or(0, Bytes::len) as u64;
        self.length + meta + heat + self.kept_bytes() + self.kept_blocks.len() as u64 * 48
    }

    /// Bytes of the blocks that it keeps for the caches.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.kept_blocks.iter().map(|(_, block)| block.len() as u64).sum()
    }

    /// Drops the blocks that are kept for the caches: while it waits to be written again it holds its output alone.
    pub fn drop_kept_blocks(&mut self) {
        self.kept_blocks = Vec::new();
    }
}
