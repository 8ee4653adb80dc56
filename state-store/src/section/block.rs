//! Data blocks: the keys in a column of their own, their common prefix stripped once, and the entries in another.
//!
//! Body: entries u32, prefix length u32, bytes of key suffixes u32, widths of the ends of suffixes and of entries u8
//! each (0: all have one length and no ends are stored, 2, 4), 0 u16; the prefix; ends of key suffixes; ends of entries;
//! key suffixes; entries. Stored: body length u32, compression u8 (0 none, 1 LZ4 block, 2 zstd frame), payload; its
//! CRC32C stands in the index. All numbers little endian.
//!
//! In memory a block that is searched for keys has a hash table besides: 16 bits of the stable hash of each key and where
//! its entries begin. It is made when the block is decoded, since it would not compress. It stands right before the body, whose
//! keys come first: so a look-up finds both in one page, as a rule.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering as Atomic};

use bytes::Bytes;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};
use millstream_cache::CacheBlock;
use millstream_common::hash::stable_hash;
use millstream_common::prefetch::{prefetch, prefetch_range};
use millstream_common::{Error, Result};

use super::column::{Column, Width};
use crate::heads::common_prefix;

const BODY_HEAD: usize = 16;
const RAW: u8 = 0;
const LZ4: u8 = 1;
const ZSTD: u8 = 2;
/// A block is larger only when a single key's entries are; nothing legal comes near.
const MAX_BODY_BYTES: usize = 1 << 30;
/// A block is closed once it has so many entries: the table names the first entry of a key with 16 bits.
const MAX_ENTRIES: usize = 60_000;
/// zstd's own default: the level at which it is still faster to decode than the disk is to read.
const ZSTD_LEVEL: i32 = 3;

/// How blocks are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// For young runs, which are soon merged.
    #[default]
    Lz4,
    /// Smaller and slower: for the bottom level.
    Zstd,
    /// For measurements.
    None,
}

/// Collects sorted entries into one block.
#[derive(Default)]
pub(super) struct BlockBuilder {
    keys: Vec<u8>,
    key_ends: Vec<u32>,
    values: Vec<u8>,
    value_ends: Vec<u32>,
    body: Vec<u8>,
    compressor: Compressor,
}

impl BlockBuilder {
    pub(super) fn new(compression: Compression) -> Self {
        Self { compressor: Compressor { compression, ..Compressor::default() }, ..Self::default() }
    }

    pub(super) fn add(&mut self, key: &[u8], entry: &[u8]) -> Result<()> {
        self.keys.extend_from_slice(key);
        self.values.extend_from_slice(entry);
        if self.keys.len() + self.values.len() > MAX_BODY_BYTES / 2 {
            return Err(Error::data("the entries of one key are larger than 512 MiB").code(3203));
        }
        self.key_ends.push(self.keys.len() as u32);
        self.value_ends.push(self.values.len() as u32);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.key_ends.len()
    }

    /// Whether the next key must begin another block, whatever the bytes.
    pub(super) fn is_full(&self) -> bool {
        self.len() >= MAX_ENTRIES
    }

    pub(super) fn bytes(&self) -> usize {
        self.keys.len() + self.values.len()
    }

    pub(super) fn first_key(&self) -> &[u8] {
        self.key_ends.first().map_or(&[], |end| &self.keys[..*end as usize])
    }

    pub(super) fn last_key(&self) -> &[u8] {
        match self.key_ends.as_slice() {
            [] => &[],
            [end] => &self.keys[..*end as usize],
            [.., start, end] => &self.keys[*start as usize..*end as usize],
        }
    }

    /// Appends the stored block to `out` and starts anew; returns the body and the checksum.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) -> (&[u8], u32) {
        self.write_body();
        let start = out.len();
        out.extend_from_slice(&(self.body.len() as u32).to_le_bytes());
        self.compressor.append(&self.body, out);
        let crc = crc32c::crc32c(&out[start..]);
        self.keys.clear();
        self.key_ends.clear();
        self.values.clear();
        self.value_ends.clear();
        (&self.body, crc)
    }

    fn write_body(&mut self) {
        let prefix = common_prefix(self.first_key(), self.last_key());
        let entries = self.key_ends.len();
        let suffixes = self.keys.len() - entries * prefix;
        let prefix_bytes = self.keys.get(..prefix).unwrap_or_default();
        for (n, end) in (1u32..).zip(&mut self.key_ends) {
            *end -= n * prefix as u32;
        }
        let (key_width, value_width) = (Width::of(&self.key_ends), Width::of(&self.value_ends));
        let body = &mut self.body;
        body.clear();
        for n in [entries, prefix, suffixes] {
            body.extend_from_slice(&(n as u32).to_le_bytes());
        }
        body.extend_from_slice(&[key_width as u8, value_width as u8, 0, 0]);
        body.extend_from_slice(prefix_bytes);
        key_width.put(self.key_ends.iter().copied(), body);
        value_width.put(self.value_ends.iter().copied(), body);
        let mut start = 0;
        for (i, &end) in self.key_ends.iter().enumerate() {
            let end = end as usize + (i + 1) * prefix;
            body.extend_from_slice(&self.keys[start + prefix..end]);
            start = end;
        }
        body.extend_from_slice(&self.values);
    }
}

/// Compresses blocks, one after the other.
#[derive(Default)]
struct Compressor {
    compression: Compression,
    scratch: Vec<u8>,
    table: CompressTable,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Compressor {
    /// Appends compression and payload. What does not shrink, or cannot be compressed, is stored as it is.
    fn append(&mut self, body: &[u8], out: &mut Vec<u8>) {
        let (kind, compressed) = match self.compression {
            Compression::None => (RAW, None),
            Compression::Lz4 => {
                self.scratch.resize(get_maximum_output_size(body.len()), 0);
                (LZ4, compress_into_with_table(body, &mut self.scratch, &mut self.table).ok())
            }
            Compression::Zstd => {
                self.scratch.resize(zstd::zstd_safe::compress_bound(body.len()), 0);
                if self.zstd.is_none() {
                    self.zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
                }
                let compress = |z: &mut zstd::bulk::Compressor<'_>| z.compress_to_buffer(body, &mut self.scratch).ok();
                (ZSTD, self.zstd.as_mut().and_then(compress))
            }
        };
        match compressed.filter(|n| *n < body.len()) {
            Some(n) => {
                out.push(kind);
                out.extend_from_slice(&self.scratch[..n]);
            }
            None => {
                out.push(RAW);
                out.extend_from_slice(body);
            }
        }
    }
}

fn bad_block(why: &str) -> Error {
    Error::corrupt(format!("a data block cannot be read: {why}")).code(4003)
}

/// Checks and decompresses a stored block. `checksum` is what the index says: a block of another section does not
/// match it, however whole it is. The caller adds where it stands. The block shares nothing with `stored`.
pub(crate) fn decode_stored(stored: &[u8], checksum: u32, form: BlockForm) -> Result<Block> {
    if crc32c::crc32c(stored) != checksum {
        return Err(Error::corrupt("a data block does not match its checksum").code(4004));
    }
    let (length, rest) = stored.split_first_chunk::<4>().ok_or_else(|| bad_block("it is too short"))?;
    let length = u32::from_le_bytes(*length) as usize;
    let (compression, payload) = rest.split_first().ok_or_else(|| bad_block("it is too short"))?;
    let decompress: fn(&[u8], &mut [u8]) -> Option<usize> = match *compression {
        RAW if payload.len() == length => return Block::copy_of(payload, form),
        // LZ4 cannot shrink by more than 255 to 1: a greater length is a lie that would cost memory.
        LZ4 if length <= MAX_BODY_BYTES && length / 256 <= payload.len() => |from, to| decompress_into(from, to).ok(),
        ZSTD if length <= MAX_BODY_BYTES => decompress_zstd,
        _ => return Err(bad_block("its length or compression is wrong")),
    };
    let whole = |body: &mut [u8]| match decompress(payload, body) {
        Some(n) if n == length => Ok(()),
        _ => Err(bad_block("it cannot be decompressed")),
    };
    if length > SCRATCH_BYTES {
        let mut body = vec![0; length];
        whole(&mut body)?;
        return Block::open(Bytes::from(body))
            .map(|block| if form == BlockForm::Searched { block.indexed() } else { block });
    }
    // Fresh memory is cleared by the kernel first: it is taken once, for what stays.
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < length {
            scratch.resize(length, 0);
        }
        let body = &mut scratch[..length];
        whole(body)?;
        Block::copy_of(body, form)
    })
}

/// What a block is decoded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockForm {
    /// To be searched for keys: it has a table.
    Searched,
    /// To be walked, or for somebody who may come.
    Walked,
}

/// Blocks with bodies up to this size are decompressed by way of memory that each thread keeps.
const SCRATCH_BYTES: usize = 256 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Making a context costs more than decompressing a block with it.
    static ZSTD_CONTEXT: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

fn decompress_zstd(payload: &[u8], body: &mut [u8]) -> Option<usize> {
    ZSTD_CONTEXT.with_borrow_mut(|context| {
        if context.is_none() {
            *context = zstd::bulk::Decompressor::new().ok();
        }
        context.as_mut()?.decompress_to_buffer(payload, body).ok()
    })
}

/// A block in memory, ready to be searched and walked.
#[derive(Debug)]
pub struct Block {
    /// The table, if there is one, then the body.
    ///
    /// The table has places of four bytes: 16 bits of the key's hash above the index of its first entry; [`EMPTY`] where there is
    /// none. A block that is only walked has none.
    memory: Bytes,
    body_at: u32,
    layout: BodyLayout,
    /// The turnover of the cache when it was last told that this block is read.
    pub(crate) touched: AtomicU32,
    /// In how many steps of the turnover it was read: 255 at most.
    pub(crate) steps_read: AtomicU8,
}

/// Where what stands in a body.
#[derive(Clone, Copy, Debug)]
struct BodyLayout {
    entries: u32,
    prefix: u32,
    /// The first bytes of the prefix: a look-up needs them, and would wait for the body's first line.
    prefix_head: [u8; PREFIX_HEAD],
    keys: Column,
    values: Column,
}

/// With so many bytes a block in an `Arc` takes two lines.
const PREFIX_HEAD: usize = 16;
const _: () = assert!(size_of::<Block>() <= 128 - 2 * size_of::<usize>());

/// Bytes of a place of the table.
const PLACE_BYTES: usize = size_of::<u32>();
/// A free place of the table.
const EMPTY: u32 = u32::MAX;

/// Places of a table of so many keys: a quarter of them is free.
fn places_for(keys: usize) -> usize {
    keys.div_ceil(3) * 4
}

/// Bytes of the table of a block of so many entries, at most.
pub(super) fn table_bytes(entries: u32) -> u64 {
    (places_for(entries as usize) * PLACE_BYTES) as u64
}

impl BodyLayout {
    /// Reads and checks a body. After that no access can go wrong.
    fn read(body: &[u8]) -> Result<Self> {
        let number =
            |at: usize| -> Option<usize> { Some(u32::from_le_bytes(body.get(at..at + 4)?.try_into().ok()?) as usize) };
        let width = |at: usize| body.get(at).and_then(|n| Width::from_number(*n));
        let head = (|| Some((number(0)?, number(4)?, number(8)?, width(12)?, width(13)?)))();
        let (entries, prefix, suffixes, key_width, value_width) = head.ok_or_else(|| bad_block("its head is wrong"))?;
        let key_ends_at = BODY_HEAD + prefix;
        let value_ends_at = key_ends_at + Column::ends_bytes(key_width, entries);
        let keys_at = value_ends_at + Column::ends_bytes(value_width, entries);
        let values_at = keys_at + suffixes;
        let values = body.len().checked_sub(values_at).ok_or_else(|| bad_block("its parts do not fit"))?;
        let columns = (|| {
            let keys = Column::new(key_width, entries, suffixes, key_ends_at, keys_at)?;
            let values = Column::new(value_width, entries, values, value_ends_at, values_at)?;
            Some((keys, values))
        })();
        let (key_column, value_column) = columns.ok_or_else(|| bad_block("its parts have other lengths"))?;
        if !key_column.is_sound(body, entries, suffixes) || !value_column.is_sound(body, entries, values) {
            return Err(bad_block("its parts have other lengths than their ends say"));
        }
        let mut prefix_head = [0; PREFIX_HEAD];
        let short = prefix.min(PREFIX_HEAD);
        prefix_head[..short].copy_from_slice(&body[BODY_HEAD..BODY_HEAD + short]);
        // Both came as such.
        let (entries, prefix) = (entries as u32, prefix as u32);
        let layout = Self { entries, prefix, prefix_head, keys: key_column, values: value_column };
        if (1..entries as usize).any(|i| layout.suffix(body, i - 1) > layout.suffix(body, i)) {
            return Err(bad_block("its keys are not sorted"));
        }
        Ok(layout)
    }

    #[inline]
    fn suffix<'b>(&self, body: &'b [u8], i: usize) -> &'b [u8] {
        body.get(self.keys.range(body, i)).unwrap_or_default()
    }

    #[inline]
    fn prefix<'b>(&self, body: &'b [u8]) -> &'b [u8] {
        &body[BODY_HEAD..BODY_HEAD + self.prefix as usize]
    }

    /// The table that [`Block::find`] needs, before the body.
    fn with_table(&self, body: &[u8]) -> (Bytes, u32) {
        let entries = self.entries as usize;
        let is_first = |i: &usize| *i == 0 || self.suffix(body, i - 1) != self.suffix(body, *i);
        // The index of a first entry has 16 bits; in a block that another program made larger, keys behind are searched
        // for by their order.
        let firsts = (0..entries.min(EMPTY as u16 as usize)).filter(is_first);
        let places = places_for(firsts.clone().count());
        let mut table = vec![EMPTY; places];
        let mut key = self.prefix(body).to_vec();
        for i in firsts {
            key.truncate(self.prefix as usize);
            key.extend_from_slice(self.suffix(body, i));
            let (mut at, tag) = place_of(stable_hash(&key), places);
            while table[at] != EMPTY {
                at = if at + 1 == places { 0 } else { at + 1 };
            }
            table[at] = tag | i as u32;
        }
        let mut memory = Vec::with_capacity(places * PLACE_BYTES + body.len());
        table.into_iter().for_each(|place| memory.extend_from_slice(&place.to_le_bytes()));
        let body_at = memory.len() as u32;
        memory.extend_from_slice(body);
        (Bytes::from(memory), body_at)
    }
}

impl Block {
    /// Reads and checks a body. After that no access can go wrong.
    pub(crate) fn open(body: Bytes) -> Result<Self> {
        let layout = BodyLayout::read(&body)?;
        Ok(Self::of(body, 0, layout))
    }

    /// The same of a copy of the body.
    fn copy_of(body: &[u8], form: BlockForm) -> Result<Self> {
        let layout = BodyLayout::read(body)?;
        let (memory, body_at) = match form {
            BlockForm::Searched => layout.with_table(body),
            BlockForm::Walked => (Bytes::copy_from_slice(body), 0),
        };
        Ok(Self::of(memory, body_at, layout))
    }

    fn of(memory: Bytes, body_at: u32, layout: BodyLayout) -> Self {
        Self { memory, body_at, layout, touched: AtomicU32::new(0), steps_read: AtomicU8::new(0) }
    }

    /// Another handle of the same memory.
    fn copy(&self) -> Self {
        Self::of(self.memory.clone(), self.body_at, self.layout)
    }

    #[inline]
    fn body(&self) -> &[u8] {
        &self.memory[self.body_at as usize..]
    }

    /// Places of the table.
    #[inline]
    fn places(&self) -> usize {
        self.body_at as usize / PLACE_BYTES
    }

    /// It was read in step `turnover` of the cache's turnover. Whether that was not known yet.
    #[inline]
    pub(crate) fn touch(&self, turnover: u32) -> bool {
        if self.touched.load(Atomic::Relaxed) == turnover {
            return false;
        }
        self.touched.store(turnover, Atomic::Relaxed);
        // What another thread counts at the same moment may be lost: it is a hint.
        self.steps_read.store(self.steps_read.load(Atomic::Relaxed).saturating_add(1), Atomic::Relaxed);
        true
    }

    /// With the table that [`Block::find`] needs.
    pub(crate) fn indexed(mut self) -> Self {
        if !self.lacks_table() {
            return self;
        }
        (self.memory, self.body_at) = self.layout.with_table(&self.memory);
        self
    }

    /// Whether a search for keys would want a table that is not there.
    #[inline]
    pub(crate) fn lacks_table(&self) -> bool {
        !self.has_table() && self.layout.entries > 0
    }

    #[inline]
    fn has_table(&self) -> bool {
        self.body_at > 0
    }

    /// Asks for the memory that [`Block::find`] will look at first.
    #[inline]
    pub(crate) fn prefetch_place(&self, hash: u64) {
        if self.has_table() {
            prefetch(&self.memory, place_of(hash, self.places()).0 * PLACE_BYTES);
        }
    }

    /// Where the entries of the key with this hash begin, as the table knows it: it is wrong about 1 of 65,536 other keys.
    /// Asks for the memory of the key and its entry.
    #[inline]
    pub(crate) fn guess(&self, hash: u64) -> Option<usize> {
        let i = self.probe(hash, |_| true)?;
        prefetch_range(self.body(), self.layout.keys.hint(i));
        prefetch_range(self.body(), self.layout.values.hint(i));
        Some(i)
    }

    /// The first entry of a key, if it is here. `hash`: the stable hash of the key.
    #[inline]
    pub(crate) fn find(&self, hash: u64, key: &[u8]) -> Option<usize> {
        if !self.has_table() || self.len() > EMPTY as u16 as usize {
            let i = self.lower_bound(0, key);
            return self.is_key(i, key).then_some(i);
        }
        self.probe(hash, |i| self.is_key(i, key))
    }

    #[inline]
    fn probe(&self, hash: u64, right: impl Fn(usize) -> bool) -> Option<usize> {
        let (table, _) = self.memory[..self.body_at as usize].as_chunks::<PLACE_BYTES>();
        let places = table.len();
        if places == 0 {
            return None;
        }
        let (mut at, tag) = place_of(hash, places);
        // A quarter of the places is free.
        loop {
            let there = u32::from_le_bytes(table[at]);
            if there == EMPTY {
                return None;
            }
            if there & !0xffff == tag && right(there as u16 as usize) {
                return Some(there as u16 as usize);
            }
            at = if at + 1 == places { 0 } else { at + 1 };
        }
    }

    /// How many entries.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.layout.entries as usize
    }

    /// What all keys begin with.
    #[inline]
    pub(crate) fn prefix(&self) -> &[u8] {
        self.layout.prefix(self.body())
    }

    /// Key `i` without the prefix.
    #[inline]
    pub(crate) fn suffix(&self, i: usize) -> &[u8] {
        self.layout.suffix(self.body(), i)
    }

    /// Where entry `i` stands in the body.
    #[inline]
    pub(crate) fn entry_range(&self, i: usize) -> Range<usize> {
        self.layout.values.range(self.body(), i)
    }

    /// Entry `i`.
    #[inline]
    pub(crate) fn entry(&self, i: usize) -> &[u8] {
        self.body().get(self.entry_range(i)).unwrap_or_default()
    }

    /// How key `i` compares with key `j` of another block.
    #[inline]
    pub(crate) fn compare_across(&self, i: usize, other: &Block, j: usize) -> Ordering {
        let (a, b) = (self.prefix(), other.prefix());
        if a == b {
            return self.suffix(i).cmp(other.suffix(j));
        }
        a.iter().chain(self.suffix(i)).cmp(b.iter().chain(other.suffix(j)))
    }

    /// The first entry whose key is at or above `key`, at or behind `from`.
    #[inline]
    pub(crate) fn lower_bound(&self, from: usize, key: &[u8]) -> usize {
        let prefix = self.prefix();
        let head = key.len().min(prefix.len());
        match prefix[..head].cmp(&key[..head]) {
            Ordering::Less => return self.len(),
            Ordering::Greater => return from,
            Ordering::Equal if key.len() < prefix.len() => return from,
            Ordering::Equal => {}
        }
        let rest = &key[head..];
        let (mut low, mut high) = (from, self.len());
        while low < high {
            let mid = low.midpoint(high);
            if self.suffix(mid) < rest { low = mid + 1 } else { high = mid }
        }
        low
    }

    /// Whether key `i` is `key`.
    #[inline]
    pub(crate) fn is_key(&self, i: usize, key: &[u8]) -> bool {
        let prefix = self.layout.prefix as usize;
        i < self.len() && key.len() >= prefix && is_same(&key[prefix..], self.suffix(i)) && self.has_prefix_of(key)
    }

    /// Whether a key that is no shorter than the prefix begins with it.
    #[inline]
    fn has_prefix_of(&self, key: &[u8]) -> bool {
        let prefix = self.layout.prefix as usize;
        match key.first_chunk::<PREFIX_HEAD>() {
            Some(head) if prefix <= PREFIX_HEAD => {
                let differs = u128::from_le_bytes(*head) ^ u128::from_le_bytes(self.layout.prefix_head);
                let mask = u128::MAX.checked_shr((PREFIX_HEAD - prefix) as u32 * 8).unwrap_or(0);
                differs & mask == 0
            }
            _ => is_same(&key[..prefix], self.prefix()),
        }
    }
}

/// Equality of short strings, without a call: keys have a few to some dozen bytes.
#[inline(always)]
pub(crate) fn is_same(a: &[u8], b: &[u8]) -> bool {
    let n = a.len();
    if n != b.len() {
        return false;
    }
    let word = |s: &[u8], at: usize| s.get(at..at + 8).and_then(|w| w.try_into().ok()).map_or(0, u64::from_ne_bytes);
    match n {
        0..8 => a.iter().zip(b).fold(0, |all, (x, y)| all | (x ^ y)) == 0,
        // The last two words may overlap the first ones.
        8..=16 => word(a, 0) == word(b, 0) && word(a, n - 8) == word(b, n - 8),
        17..=32 => {
            let differs = |at| word(a, at) ^ word(b, at);
            differs(0) | differs(8) | differs(n - 16) | differs(n - 8) == 0
        }
        _ => a == b,
    }
}

/// Where a key's search in a table of `places` begins, and its 16 bits in their place.
#[inline]
fn place_of(hash: u64, places: usize) -> (usize, u32) {
    let low = hash as u32;
    (((u64::from(low & 0xffff) * places as u64) >> 16) as usize, low & !0xffff)
}

/// A block as the caches share it.
#[derive(Clone, Debug)]
pub struct SharedBlock(pub(crate) Arc<Block>);

impl SharedBlock {
    /// With the table that a search wants.
    pub(crate) fn indexed(self) -> Self {
        if !self.0.lacks_table() {
            return self;
        }
        match Arc::try_unwrap(self.0) {
            Ok(block) => block.indexed().into(),
            Err(shared) => shared.copy().indexed().into(),
        }
    }
}

impl From<Block> for SharedBlock {
    fn from(block: Block) -> Self {
        Self(Arc::new(block))
    }
}

impl CacheBlock for SharedBlock {
    fn body(&self) -> &[u8] {
        self.0.body()
    }

    fn memory_bytes(&self) -> usize {
        self.0.memory.len() + size_of::<Block>()
    }

    fn of_body(body: Bytes) -> Result<Self> {
        Block::open(body).map(|block| block.indexed().into())
    }
}
