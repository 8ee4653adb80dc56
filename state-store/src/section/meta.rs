//! The meta part of a section: statistics, block index and filter, contiguous at its end.
//!
//! `MSSM`, format u16, 0 u16, CRC32C u32 of all data blocks, entries u64, states u32, blocks u32, filter bytes u32; per state: id u16, whether it has
//! times u8, entries u64, least and greatest time i64; per block: offset u64, stored length u32, its CRC32C u32, body
//! length u32, entries u32, least and greatest key group u16, whether it has times u8, least and greatest time i64, lengths of
//! first and last key u32, first key, last key; the filter. All little endian. It has no checksum of its own: the
//! version has that of the whole section, which is its blocks' combined with the meta part's. (With a CRC at its end it
//! would count for nothing there: the CRC of bytes that end in their own CRC is a constant.)

use bytes::Bytes;
use millstream_common::{Error, KeyGroupRange, KeyGroupRanges, Result, StateId};

use super::filter::Filter;
use super::{SECTION_FORMAT, StateStats};

const MAGIC: &[u8; 4] = b"MSSM";
/// Where the checksum of the data blocks stands.
const BLOCKS_CHECKSUM: std::ops::Range<usize> = 8..12;

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
    /// In the arena of keys: start and end of the first key, end of the last.
    pub(super) keys: (u32, u32, u32),
}

impl BlockInfo {
    /// Whether it may hold entries of key groups in `ranges`.
    #[must_use]
    pub fn overlaps(&self, ranges: &KeyGroupRanges) -> bool {
        let own = KeyGroupRange { start: self.groups.0.into(), end: u32::from(self.groups.1) + 1 };
        let all = ranges.as_slice();
        let i = all.partition_point(|r| r.end <= own.start);
        all.get(i).is_some_and(|r| r.start < own.end)
    }
}

/// The meta part of a section, decoded.
#[derive(Clone, Debug)]
pub struct SectionMeta {
    /// CRC32C of all data blocks, one after the other.
    pub(super) blocks_checksum: u32,
    pub(super) entries: u64,
    pub(super) states: Vec<StateStats>,
    pub(super) blocks: Vec<BlockInfo>,
    pub(super) keys: Vec<u8>,
    pub(super) filter: Filter,
}

impl SectionMeta {
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

    /// Its data blocks, in key order.
    #[must_use]
    pub fn blocks(&self) -> &[BlockInfo] {
        &self.blocks
    }

    /// The least key of block `i`.
    #[inline]
    #[must_use]
    pub fn first_key(&self, i: usize) -> &[u8] {
        let (start, end, _) = self.blocks[i].keys;
        &self.keys[start as usize..end as usize]
    }

    /// The greatest key of block `i`.
    #[inline]
    #[must_use]
    pub fn last_key(&self, i: usize) -> &[u8] {
        let (_, start, end) = self.blocks[i].keys;
        &self.keys[start as usize..end as usize]
    }

    /// The first block at or behind `from` whose last key is at or above `key`.
    #[inline]
    #[must_use]
    pub fn seek(&self, from: usize, key: &[u8]) -> usize {
        // Sorted look-ups mostly hit the same block or the next.
        let mut step = 1;
        let mut low = from;
        while low + step <= self.blocks.len() && self.last_key(low + step - 1) < key {
            low += step;
            step *= 2;
        }
        let mut high = (low + step).min(self.blocks.len());
        while low < high {
            let mid = low.midpoint(high);
            if self.last_key(mid) < key { low = mid + 1 } else { high = mid }
        }
        low
    }

    /// False only when no key of the section has this hash.
    #[inline]
    #[must_use]
    pub fn may_hold(&self, hash: u64) -> bool {
        self.filter.may_hold(hash)
    }

    /// Bytes of memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.filter.len()
            + self.keys.len()
            + self.blocks.len() * size_of::<BlockInfo>()
            + self.states.len() * size_of::<StateStats>()
            + size_of::<Self>()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.blocks.len() * 56 + self.keys.len() + self.filter.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&SECTION_FORMAT.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.blocks_checksum.to_le_bytes());
        out.extend_from_slice(&self.entries.to_le_bytes());
        for n in [self.states.len(), self.blocks.len(), self.filter.len()] {
            out.extend_from_slice(&(n as u32).to_le_bytes());
        }
        for s in &self.states {
            out.extend_from_slice(&s.state.0.to_le_bytes());
            put_times(s.times, &mut out);
            out.extend_from_slice(&s.entries.to_le_bytes());
        }
        for (i, b) in self.blocks.iter().enumerate() {
            out.extend_from_slice(&b.offset.to_le_bytes());
            for n in [b.length, b.checksum, b.body_length, b.entries] {
                out.extend_from_slice(&n.to_le_bytes());
            }
            out.extend_from_slice(&b.groups.0.to_le_bytes());
            out.extend_from_slice(&b.groups.1.to_le_bytes());
            put_times(b.times, &mut out);
            let (first, last) = (self.first_key(i), self.last_key(i));
            out.extend_from_slice(&(first.len() as u32).to_le_bytes());
            out.extend_from_slice(&(last.len() as u32).to_le_bytes());
            out.extend_from_slice(first);
            out.extend_from_slice(last);
        }
        out.extend_from_slice(self.filter.bits());
        out
    }

    /// Reads a meta part. `checksum` is the whole section's as the version says it: the meta part of another section
    /// does not match it, however whole it is. The caller adds where it stands.
    pub fn decode(stored: &Bytes, checksum: u32) -> Result<Self> {
        let of_blocks = stored.get(BLOCKS_CHECKSUM).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        if crc32c::crc32c_combine(of_blocks, crc32c::crc32c(stored), stored.len()) != checksum {
            return Err(Error::corrupt("the meta part of a section does not match its checksum").code(4004));
        }
        Self::parse(stored)
    }

    fn parse(stored: &Bytes) -> Result<Self> {
        let mut reader = Reader { rest: stored };
        if reader.take::<4>()? != *MAGIC {
            return Err(bad_meta("it does not begin with MSSM"));
        }
        let format = u16::from_le_bytes(reader.take()?);
        if format != SECTION_FORMAT {
            return Err(bad_meta(&format!("its format is {format}, this program reads {SECTION_FORMAT}")));
        }
        reader.take::<2>()?;
        let blocks_checksum = reader.u32()?;
        let entries = u64::from_le_bytes(reader.take()?);
        let [states, blocks, filter] = [reader.u32()?, reader.u32()?, reader.u32()?];
        let states = (0..states).map(|_| reader.state()).collect::<Result<Vec<_>>>()?;
        let mut keys = Vec::new();
        let blocks = (0..blocks).map(|_| reader.block(&mut keys)).collect::<Result<Vec<_>>>()?;
        if reader.rest.len() != filter as usize {
            return Err(bad_meta("its filter has another length than it says"));
        }
        // The filter shares the stored bytes: it is most of them.
        let filter = Filter::from_bytes(stored.slice_ref(reader.rest))?;
        let meta = Self { blocks_checksum, entries, states, blocks, keys, filter };
        meta.validate()?;
        Ok(meta)
    }

    fn validate(&self) -> Result<()> {
        let mut end = 0;
        for (i, b) in self.blocks.iter().enumerate() {
            let sorted = self.first_key(i) <= self.last_key(i) && (i == 0 || self.last_key(i - 1) < self.first_key(i));
            if !sorted || b.offset != end || b.groups.0 > b.groups.1 {
                return Err(bad_meta("its index is not in order"));
            }
            end = b.offset.saturating_add(b.length.into());
        }
        Ok(())
    }

    /// Where the last data block ends: that is where the meta part begins.
    pub(crate) fn blocks_end(&self) -> u64 {
        self.blocks.last().map_or(0, |b| b.offset + u64::from(b.length))
    }
}

fn put_times(times: Option<(i64, i64)>, out: &mut Vec<u8>) {
    out.push(times.is_some().into());
    let (min, max) = times.unwrap_or_default();
    out.extend_from_slice(&min.to_le_bytes());
    out.extend_from_slice(&max.to_le_bytes());
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

    fn times(&mut self) -> Result<Option<(i64, i64)>> {
        let [has] = self.take()?;
        let times = (i64::from_le_bytes(self.take()?), i64::from_le_bytes(self.take()?));
        Ok((has != 0).then_some(times))
    }

    fn state(&mut self) -> Result<StateStats> {
        let state = StateId(u16::from_le_bytes(self.take()?));
        Ok(StateStats { state, times: self.times()?, entries: u64::from_le_bytes(self.take()?) })
    }

    fn block(&mut self, keys: &mut Vec<u8>) -> Result<BlockInfo> {
        let offset = u64::from_le_bytes(self.take()?);
        let [length, checksum, body_length, entries] = [self.u32()?, self.u32()?, self.u32()?, self.u32()?];
        let groups = (u16::from_le_bytes(self.take()?), u16::from_le_bytes(self.take()?));
        let times = self.times()?;
        let (first, last) = (self.u32()?, self.u32()?);
        let start = keys.len() as u32;
        keys.extend_from_slice(self.bytes(first)?);
        let middle = keys.len() as u32;
        keys.extend_from_slice(self.bytes(last)?);
        let keys = (start, middle, keys.len() as u32);
        Ok(BlockInfo { offset, length, checksum, body_length, entries, groups, times, keys })
    }
}
