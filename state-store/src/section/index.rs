//! The meta part of a section, at its end: a part for each stretch of blocks, and the directory of the parts.
//!
//! **Part**: blocks u32, filter kind u8, 0 u8, prefix length u16, filter bytes u32, bytes of the index u32; the prefix that
//! all keys of the index share; per block: stored length u32, its CRC32C u32, body length u32, entries u32, least and
//! greatest key group u16, has times u8, length of its first key without the prefix u32, [least and greatest time i64], that
//! key; the filter.
//!
//! **Directory**: `MSSM`, format u16, 0 u16, CRC32C u32 of all that stands before it in the section, entries u64, states u32,
//! parts u32; per state: id u16, has times u8, least and greatest time i64, entries u64; per part: offset in the section of
//! its first block u64, its own length u32, its CRC32C u32, blocks u32, entries u64, least and greatest key group u16, lengths
//! of first and last key u32, both keys.
//!
//! All little endian. The parts stand back to back before the directory, which ends the section. The directory has no
//! checksum of its own: the version has that of the whole section, which is the one that the directory tells combined with
//! the directory's. (With a CRC at its end it would count for nothing there: the CRC of bytes that end in their own CRC is a
//! constant.)

use std::sync::Weak;

use bytes::Bytes;
use millstream_common::{Error, KeyGroupRange, KeyGroupRanges, Result, StateId};
use parking_lot::RwLock;

use super::block::{Block, is_same, table_bytes};
use super::filter::Filter;
use super::{SECTION_FORMAT, StateStats};
use crate::heads::{common_prefix, head_of};

const MAGIC: &[u8; 4] = b"MSSM";
/// The blocks behind the last one found that a search looks at first. A batch of 4,096 keys over 4,000,000 takes every
/// fifth block.
const NEAR: usize = 16;
/// What stands before the key of a block without times.
const BLOCK_HEAD: usize = 25;
/// Where the checksum of what stands before the directory is.
const BEFORE_CHECKSUM: std::ops::Range<usize> = 8..12;

/// What the index says of a data block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// Where it begins, from the start of the section.
    pub offset: u64,
    /// Stored bytes.
    pub length: u32,
    /// Its checksum.
    pub checksum: u32,
    /// Bytes of the body, uncompressed.
    pub body_length: u32,
    /// How many entries.
    pub entries: u32,
    /// Least and greatest key group.
    pub groups: (u16, u16),
    /// Least and greatest time of its time-ordered entries.
    pub times: Option<(i64, i64)>,
    /// Where its first key ends in the arena of keys; it begins where that of the block before ends.
    pub(super) key_end: u32,
}

impl BlockInfo {
    /// Bytes of memory that its body takes, with the table that a search wants.
    pub(crate) fn searched_bytes(&self) -> u64 {
        u64::from(self.body_length) + table_bytes(self.entries)
    }
}

fn overlaps(groups: (u16, u16), ranges: &KeyGroupRanges) -> bool {
    let own = KeyGroupRange { start: groups.0.into(), end: u32::from(groups.1) + 1 };
    let all = ranges.as_slice();
    let i = all.partition_point(|r| r.end <= own.start);
    all.get(i).is_some_and(|r| r.start < own.end)
}

impl BlockInfo {
    /// Whether it may hold entries of key groups in `ranges`.
    #[must_use]
    pub fn overlaps(&self, ranges: &KeyGroupRanges) -> bool {
        overlaps(self.groups, ranges)
    }
}

/// The index and filter of some neighbouring blocks of a section, decoded.
#[derive(Debug)]
pub struct Part {
    blocks: Vec<BlockInfo>,
    /// What all keys of the index begin with.
    prefix: Vec<u8>,
    /// For each block the 8 bytes of its first key behind the prefix, as a number that compares as they do.
    heads: Vec<u64>,
    /// The first keys behind the prefix.
    keys: Vec<u8>,
    first_key: Vec<u8>,
    last_key: Vec<u8>,
    filter: Filter,
    slots: RwLock<Slots>,
}

/// The blocks of a part that are in the cache, as far as is known: who reads a block leaves it here, so that the next one
/// need not ask the cache for it.
///
/// A slot holds the head of its block's memory even when the cache has long dropped the block, and that is more than all else
/// that a part knows of a block. So the slots of dropped blocks are emptied whenever as many as an eighth of the part's blocks
/// were filled since this was done last. (Those of blocks that are dropped while nothing of the part is read stay until the
/// part itself goes.)
#[derive(Debug)]
pub(crate) struct Slots {
    blocks: Vec<Weak<Block>>,
    /// Slots that were filled since the last sweep, and those that it left filled.
    filled: usize,
    sweep_at: usize,
}

impl Slots {
    pub(super) fn new(blocks: usize) -> Self {
        let empty = (0..blocks).map(|_| Weak::new()).collect();
        Self { blocks: empty, filled: 0, sweep_at: Self::stale_max(blocks) }
    }

    /// How many slots of dropped blocks may be there.
    const fn stale_max(blocks: usize) -> usize {
        blocks / 8 + 1
    }

    /// By block.
    #[inline]
    pub(crate) fn blocks(&self) -> &[Weak<Block>] {
        &self.blocks
    }

    pub(crate) fn fill(&mut self, block: usize, with: Weak<Block>) {
        let Some(slot) = self.blocks.get_mut(block) else { return };
        // Of one that is filled already nobody knows whether its block lives: it is counted again, and the sweep comes earlier.
        *slot = with;
        self.filled += 1;
        if self.filled >= self.sweep_at {
            let mut live = 0;
            for slot in &mut self.blocks {
                if slot.strong_count() == 0 {
                    *slot = Weak::new();
                } else {
                    live += 1;
                }
            }
            (self.filled, self.sweep_at) = (live, live + Self::stale_max(self.blocks.len()));
        }
    }
}

/// What a builder knows of a part.
pub(super) struct PartDraft {
    pub(super) blocks: Vec<BlockInfo>,
    /// The first keys, whole, by [`BlockInfo::key_end`].
    pub(super) keys: Vec<u8>,
    pub(super) last_key: Vec<u8>,
    pub(super) filter: Filter,
}

impl Part {
    pub(super) fn new(draft: PartDraft) -> Self {
        let PartDraft { mut blocks, keys, last_key, filter } = draft;
        let first = blocks.first().map_or(&[][..], |b| &keys[..b.key_end as usize]);
        let last_at = if blocks.len() < 2 { 0 } else { blocks[blocks.len() - 2].key_end as usize };
        let prefix = common_prefix(first, &keys[last_at..]).min(u16::MAX.into());
        let prefix_bytes = first[..prefix].to_vec();
        let mut suffixes = Vec::with_capacity(keys.len());
        let mut start = 0;
        for block in &mut blocks {
            let end = block.key_end as usize;
            suffixes.extend_from_slice(&keys[start + prefix..end]);
            block.key_end = suffixes.len() as u32;
            start = end;
        }
        Self::of(blocks, prefix_bytes, suffixes, last_key, filter)
    }

    fn of(blocks: Vec<BlockInfo>, prefix: Vec<u8>, keys: Vec<u8>, last_key: Vec<u8>, filter: Filter) -> Self {
        let slots = RwLock::new(Slots::new(blocks.len()));
        let first_key = blocks.first().map_or_else(Vec::new, |b| [&prefix, &keys[..b.key_end as usize]].concat());
        let mut part = Self { blocks, prefix, heads: Vec::new(), keys, first_key, last_key, filter, slots };
        part.heads = (0..part.blocks.len()).map(|i| head_of(part.suffix(i))).collect();
        part
    }

    /// Its least key.
    #[must_use]
    pub fn first_key(&self) -> &[u8] {
        &self.first_key
    }

    /// Its greatest key.
    #[must_use]
    pub fn last_key(&self) -> &[u8] {
        &self.last_key
    }

    /// Its data blocks, in key order.
    #[must_use]
    pub fn blocks(&self) -> &[BlockInfo] {
        &self.blocks
    }

    #[inline]
    fn suffix(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.blocks[i - 1].key_end as usize };
        &self.keys[start..self.blocks[i].key_end as usize]
    }

    /// The least key of block `i`.
    pub(crate) fn first_key_of(&self, i: usize) -> Vec<u8> {
        [&self.prefix, self.suffix(i)].concat()
    }

    /// How the least key of block `i` compares with `key`.
    #[inline]
    pub(crate) fn compare_first(&self, i: usize, key: &[u8]) -> std::cmp::Ordering {
        let head = key.len().min(self.prefix.len());
        self.prefix[..head].cmp(&key[..head]).then_with(|| {
            if key.len() < self.prefix.len() { std::cmp::Ordering::Greater } else { self.suffix(i).cmp(&key[head..]) }
        })
    }

    /// The block at or behind `from` that holds `key` if any does: the last one whose least key is at or below it. `from`
    /// when there is none: then no block does.
    #[inline]
    pub(crate) fn seek(&self, from: usize, key: &[u8]) -> usize {
        let prefix = self.prefix.len();
        if key.len() < prefix || !is_same(&key[..prefix], &self.prefix) {
            return if key > self.prefix.as_slice() { self.blocks.len().saturating_sub(1).max(from) } else { from };
        }
        let suffix = &key[prefix..];
        let head = head_of(suffix);
        let above = |i: usize| self.heads[i] > head || (self.heads[i] == head && self.suffix(i) > suffix);
        // Sorted look-ups mostly hit the same block or one of the next. Those are counted by their heads, which rise: a search
        // would take half of its steps in the wrong direction.
        let near = self.heads.get(from + 1..).unwrap_or_default();
        let near = near.first_chunk::<NEAR>().map_or(near, |near| near);
        let mut low = from + near.iter().map(|h| usize::from(*h <= head)).sum::<usize>();
        // Where heads are alike the rest of the keys tells.
        while low > from && self.heads[low] == head && self.suffix(low) > suffix {
            low -= 1;
        }
        if low < from + near.len() {
            return low;
        }
        let mut step = 1;
        while low + step < self.blocks.len() && !above(low + step) {
            low += step;
            step *= 2;
        }
        let mut high = (low + step).min(self.blocks.len());
        // `low` is not above, as far as was looked; `high` is.
        while low + 1 < high {
            let mid = low.midpoint(high);
            if above(mid) { high = mid } else { low = mid }
        }
        low
    }

    /// The filter.
    pub(crate) fn filter(&self) -> &Filter {
        &self.filter
    }

    /// The blocks that are in memory.
    pub(crate) fn slots(&self) -> &RwLock<Slots> {
        &self.slots
    }

    /// Bytes of memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let a_block = size_of::<BlockInfo>() + size_of::<u64>() + size_of::<Weak<Block>>();
        let stale = Slots::stale_max(self.blocks.len()) * (size_of::<Block>() + 2 * size_of::<usize>());
        let keys = self.keys.len() + self.prefix.len() + self.first_key.len() + self.last_key.len();
        self.filter.memory_bytes() + keys + self.blocks.len() * a_block + stale + size_of::<Self>()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, filter) = self.filter.stored();
        let filter_bytes: usize = filter.iter().map(|f| f.len()).sum();
        let mut index = Vec::with_capacity(self.prefix.len() + self.blocks.len() * 48 + self.keys.len());
        index.extend_from_slice(&self.prefix);
        for (i, b) in self.blocks.iter().enumerate() {
            for n in [b.length, b.checksum, b.body_length, b.entries] {
                index.extend_from_slice(&n.to_le_bytes());
            }
            index.extend_from_slice(&b.groups.0.to_le_bytes());
            index.extend_from_slice(&b.groups.1.to_le_bytes());
            index.push(b.times.is_some().into());
            index.extend_from_slice(&(self.suffix(i).len() as u32).to_le_bytes());
            if let Some((min, max)) = b.times {
                index.extend_from_slice(&min.to_le_bytes());
                index.extend_from_slice(&max.to_le_bytes());
            }
            index.extend_from_slice(self.suffix(i));
        }
        let mut out = Vec::with_capacity(16 + index.len() + filter_bytes);
        out.extend_from_slice(&(self.blocks.len() as u32).to_le_bytes());
        out.extend_from_slice(&[kind, 0]);
        out.extend_from_slice(&(self.prefix.len() as u16).to_le_bytes());
        out.extend_from_slice(&(filter_bytes as u32).to_le_bytes());
        out.extend_from_slice(&(index.len() as u32).to_le_bytes());
        out.extend_from_slice(&index);
        filter.iter().for_each(|f| out.extend_from_slice(f));
        out
    }

    /// Reads a part; `info` is what the directory says of it. The caller adds where it stands. The part keeps nothing of
    /// `stored`.
    pub(crate) fn decode(stored: &[u8], info: &PartInfo) -> Result<Self> {
        if crc32c::crc32c(stored) != info.checksum {
            return Err(Error::corrupt("a part of a section's index does not match its checksum").code(4004));
        }
        let mut reader = Reader { rest: stored };
        let blocks = reader.u32()?;
        let [kind, _] = reader.take()?;
        let prefix_bytes = u16::from_le_bytes(reader.take()?);
        let [filter_bytes, index_bytes] = [reader.u32()?, reader.u32()?];
        let index = reader.bytes(index_bytes)?;
        if reader.rest.len() != filter_bytes as usize || blocks != info.blocks {
            return Err(bad_meta("a part has another size than it says"));
        }
        let filter = Filter::from_stored(kind, Bytes::copy_from_slice(reader.rest))?;
        let mut reader = Reader { rest: index };
        let prefix = reader.bytes(prefix_bytes.into())?.to_vec();
        let mut keys = Vec::with_capacity(reader.rest.len().saturating_sub(blocks as usize * BLOCK_HEAD));
        let mut offset = info.offset;
        let mut blocks = (0..blocks).map(|_| reader.block(&mut offset, &mut keys)).collect::<Result<Vec<_>>>()?;
        blocks.shrink_to_fit();
        let part = Self::of(blocks, prefix, keys, info.last_key.clone(), filter);
        let sorted = (1..part.blocks.len()).all(|i| part.suffix(i - 1) < part.suffix(i));
        if !sorted || part.blocks.iter().any(|b| b.groups.0 > b.groups.1) {
            return Err(bad_meta("its index is not in order"));
        }
        Ok(part)
    }
}

/// What the directory says of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartInfo {
    /// Where its first block begins, from the start of the section.
    pub offset: u64,
    /// Bytes of the part itself.
    pub length: u32,
    /// Its checksum.
    pub checksum: u32,
    /// How many blocks.
    pub blocks: u32,
    /// How many entries.
    pub entries: u64,
    /// Least and greatest key group.
    pub groups: (u16, u16),
    /// Its least and greatest key.
    pub first_key: Vec<u8>,
    /// Its greatest key.
    pub last_key: Vec<u8>,
    /// Where the part begins, from the beginning of the first.
    pub at: u64,
}

impl PartInfo {
    /// Whether it may hold entries of key groups in `ranges`.
    #[must_use]
    pub fn overlaps(&self, ranges: &KeyGroupRanges) -> bool {
        overlaps(self.groups, ranges)
    }
}

/// The directory of a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// CRC32C of all that stands before the directory.
    pub(super) before_checksum: u32,
    pub(super) entries: u64,
    pub(super) states: Vec<StateStats>,
    pub(super) parts: Vec<PartInfo>,
}

impl Directory {
    /// How many entries the section has.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Its states, by id.
    #[must_use]
    pub fn states(&self) -> &[StateStats] {
        &self.states
    }

    /// Its parts, in key order.
    #[must_use]
    pub fn parts(&self) -> &[PartInfo] {
        &self.parts
    }

    /// Bytes of all parts.
    #[must_use]
    pub fn parts_bytes(&self) -> u64 {
        self.parts.last().map_or(0, |p| p.at + u64::from(p.length))
    }

    /// Bytes of memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let keys: usize = self.parts.iter().map(|p| p.first_key.len() + p.last_key.len()).sum();
        keys + self.parts.len() * size_of::<PartInfo>()
            + self.states.len() * size_of::<StateStats>()
            + size_of::<Self>()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.parts.len() * 96);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&SECTION_FORMAT.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.before_checksum.to_le_bytes());
        out.extend_from_slice(&self.entries.to_le_bytes());
        out.extend_from_slice(&(self.states.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.parts.len() as u32).to_le_bytes());
        for s in &self.states {
            out.extend_from_slice(&s.state.0.to_le_bytes());
            out.push(s.times.is_some().into());
            let (min, max) = s.times.unwrap_or_default();
            out.extend_from_slice(&min.to_le_bytes());
            out.extend_from_slice(&max.to_le_bytes());
            out.extend_from_slice(&s.entries.to_le_bytes());
        }
        for p in &self.parts {
            out.extend_from_slice(&p.offset.to_le_bytes());
            for n in [p.length, p.checksum, p.blocks] {
                out.extend_from_slice(&n.to_le_bytes());
            }
            out.extend_from_slice(&p.entries.to_le_bytes());
            out.extend_from_slice(&p.groups.0.to_le_bytes());
            out.extend_from_slice(&p.groups.1.to_le_bytes());
            out.extend_from_slice(&(p.first_key.len() as u32).to_le_bytes());
            out.extend_from_slice(&(p.last_key.len() as u32).to_le_bytes());
            out.extend_from_slice(&p.first_key);
            out.extend_from_slice(&p.last_key);
        }
        out
    }

    /// Reads a directory. `checksum` is the whole section's as the version says it: the directory of another section does
    /// not match it, however whole it is. The caller adds where it stands.
    pub fn decode(stored: &[u8], checksum: u32) -> Result<Self> {
        let before = stored.get(BEFORE_CHECKSUM).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        if crc32c::crc32c_combine(before, crc32c::crc32c(stored), stored.len()) != checksum {
            return Err(Error::corrupt("the directory of a section does not match its checksum").code(4004));
        }
        let mut reader = Reader { rest: stored };
        if reader.take::<4>()? != *MAGIC {
            return Err(bad_meta("it does not begin with MSSM"));
        }
        let format = u16::from_le_bytes(reader.take()?);
        if format != SECTION_FORMAT {
            return Err(bad_meta(&format!("its format is {format}, this program reads {SECTION_FORMAT}")));
        }
        reader.take::<2>()?;
        let before_checksum = reader.u32()?;
        let entries = u64::from_le_bytes(reader.take()?);
        let [states, parts] = [reader.u32()?, reader.u32()?];
        let states = (0..states).map(|_| reader.state()).collect::<Result<Vec<_>>>()?;
        let mut at = 0;
        let parts = (0..parts).map(|_| reader.part(&mut at)).collect::<Result<Vec<_>>>()?;
        let sorted = parts.is_sorted_by(|a: &PartInfo, b| a.last_key < b.first_key && a.offset <= b.offset);
        let sound = parts.iter().all(|p| p.first_key <= p.last_key && p.groups.0 <= p.groups.1 && p.offset < 1 << 48);
        if !reader.rest.is_empty() || !sorted || !sound {
            return Err(bad_meta("its directory is not in order"));
        }
        Ok(Self { before_checksum, entries, states, parts })
    }
}

pub(super) fn bad_meta(why: &str) -> Error {
    Error::corrupt(format!("the meta part of a section cannot be read: {why}")).code(4003)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (value, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| bad_meta("it is too short"))?;
        self.rest = rest;
        Ok(*value)
    }

    fn bytes(&mut self, length: u32) -> Result<&'a [u8]> {
        let (value, rest) = self.rest.split_at_checked(length as usize).ok_or_else(|| bad_meta("it is too short"))?;
        self.rest = rest;
        Ok(value)
    }

    fn u32(&mut self) -> Result<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn times(&mut self) -> Result<(i64, i64)> {
        Ok((i64::from_le_bytes(self.take()?), i64::from_le_bytes(self.take()?)))
    }

    fn groups(&mut self) -> Result<(u16, u16)> {
        Ok((u16::from_le_bytes(self.take()?), u16::from_le_bytes(self.take()?)))
    }

    fn state(&mut self) -> Result<StateStats> {
        let state = StateId(u16::from_le_bytes(self.take()?));
        let [has] = self.take()?;
        let times = self.times()?;
        Ok(StateStats { state, times: (has != 0).then_some(times), entries: u64::from_le_bytes(self.take()?) })
    }

    fn part(&mut self, at: &mut u64) -> Result<PartInfo> {
        let offset = u64::from_le_bytes(self.take()?);
        let [length, checksum, blocks] = [self.u32()?, self.u32()?, self.u32()?];
        let entries = u64::from_le_bytes(self.take()?);
        let groups = self.groups()?;
        let [first, last] = [self.u32()?, self.u32()?];
        let (first_key, last_key) = (self.bytes(first)?.to_vec(), self.bytes(last)?.to_vec());
        let info = PartInfo { offset, length, checksum, blocks, entries, groups, first_key, last_key, at: *at };
        *at += u64::from(length);
        Ok(info)
    }

    fn block(&mut self, offset: &mut u64, keys: &mut Vec<u8>) -> Result<BlockInfo> {
        let [length, checksum, body_length, entries] = [self.u32()?, self.u32()?, self.u32()?, self.u32()?];
        let groups = self.groups()?;
        let [has_times] = self.take()?;
        let key = self.u32()?;
        let times = if has_times == 0 { None } else { Some(self.times()?) };
        keys.extend_from_slice(self.bytes(key)?);
        let key_end = u32::try_from(keys.len()).map_err(|_| bad_meta("its keys are too long"))?;
        let info = BlockInfo { offset: *offset, length, checksum, body_length, entries, groups, times, key_end };
        *offset += u64::from(length);
        Ok(info)
    }
}
