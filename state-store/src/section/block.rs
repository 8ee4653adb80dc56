//! Data blocks: the keys in a column of their own, their common prefix stripped once, and the entries in another.
//!
//! Body: entries u32, prefix length u32, bytes of key suffixes u32, prefix, ends of key suffixes (u32 each), ends of
//! entries (u32 each), key suffixes, entries. Stored: body length u32, compression u8 (0 none, 1 LZ4), payload; its
//! CRC32C stands in the index. All numbers little endian.

use std::cmp::Ordering;
use std::ops::Range;

use bytes::Bytes;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};
use millstream_common::{Error, Result};

const BODY_HEAD: usize = 12;
const RAW: u8 = 0;
const LZ4: u8 = 1;
/// A block is larger only when a single key's entries are; nothing legal comes near.
const MAX_BODY_BYTES: usize = 1 << 30;

/// Collects sorted entries into one block.
#[derive(Default)]
pub(super) struct BlockBuilder {
    keys: Vec<u8>,
    key_ends: Vec<u32>,
    values: Vec<u8>,
    value_ends: Vec<u32>,
    body: Vec<u8>,
    scratch: Vec<u8>,
    table: CompressTable,
}

impl BlockBuilder {
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
        self.scratch.resize(get_maximum_output_size(self.body.len()), 0);
        // The scratch has the greatest size that the output can have, so this cannot fail; stored raw if it did.
        let compressed = compress_into_with_table(&self.body, &mut self.scratch, &mut self.table)
            .ok()
            .filter(|n| *n < self.body.len());
        out.extend_from_slice(&(self.body.len() as u32).to_le_bytes());
        match compressed {
            Some(n) => {
                out.push(LZ4);
                out.extend_from_slice(&self.scratch[..n]);
            }
            None => {
                out.push(RAW);
                out.extend_from_slice(&self.body);
            }
        }
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
        self.body.clear();
        self.body.extend_from_slice(&(entries as u32).to_le_bytes());
        self.body.extend_from_slice(&(prefix as u32).to_le_bytes());
        self.body.extend_from_slice(&(suffixes as u32).to_le_bytes());
        self.body.extend_from_slice(&self.keys[..prefix]);
        for (i, end) in self.key_ends.iter().enumerate() {
            let end = *end - ((i + 1) * prefix) as u32;
            self.body.extend_from_slice(&end.to_le_bytes());
        }
        for end in &self.value_ends {
            self.body.extend_from_slice(&end.to_le_bytes());
        }
        let mut start = 0;
        for &end in &self.key_ends {
            self.body.extend_from_slice(&self.keys[start + prefix..end as usize]);
            start = end as usize;
        }
        self.body.extend_from_slice(&self.values);
    }
}

/// Bytes that both begin with.
pub(super) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

fn bad_block(why: &str) -> Error {
    Error::corrupt(format!("a data block cannot be read: {why}")).code(4003)
}

/// Checks and decompresses a stored block. `checksum` is what the index says: a block of another section does not
/// match it, however whole it is. The caller adds where it stands.
pub(crate) fn decode_stored(stored: &[u8], checksum: u32) -> Result<Bytes> {
    if crc32c::crc32c(stored) != checksum {
        return Err(Error::corrupt("a data block does not match its checksum").code(4004));
    }
    let (length, rest) = stored.split_first_chunk::<4>().ok_or_else(|| bad_block("it is too short"))?;
    let length = u32::from_le_bytes(*length) as usize;
    let (compression, payload) = rest.split_first().ok_or_else(|| bad_block("it is too short"))?;
    let body = match *compression {
        RAW if payload.len() == length => Bytes::copy_from_slice(payload),
        // LZ4 cannot shrink by more than 255 to 1: a greater length is a lie that would cost memory.
        LZ4 if length <= MAX_BODY_BYTES && length / 256 <= payload.len() => {
            let mut body = vec![0; length];
            match decompress_into(payload, &mut body) {
                Ok(n) if n == length => Bytes::from(body),
                _ => return Err(bad_block("it cannot be decompressed")),
            }
        }
        _ => return Err(bad_block("its length or compression is wrong")),
    };
    Block::open(body.clone())?.validate()?;
    Ok(body)
}

/// A block's body, ready for look-ups.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    body: Bytes,
    entries: usize,
    prefix: usize,
    /// Where the parts begin.
    value_ends_at: usize,
    keys_at: usize,
    values_at: usize,
}

impl Block {
    /// Reads the head of a body. O(1).
    #[inline]
    pub(crate) fn open(body: Bytes) -> Result<Self> {
        let number =
            |at: usize| -> Option<usize> { Some(u32::from_le_bytes(body.get(at..at + 4)?.try_into().ok()?) as usize) };
        let head = (|| Some((number(0)?, number(4)?, number(8)?)))();
        let (entries, prefix, suffixes) = head.ok_or_else(|| bad_block("it is too short"))?;
        let value_ends_at = BODY_HEAD + prefix + entries * 4;
        let keys_at = value_ends_at + entries * 4;
        let values_at = keys_at + suffixes;
        if values_at > body.len() {
            return Err(bad_block("its parts do not fit"));
        }
        Ok(Self { body, entries, prefix, value_ends_at, keys_at, values_at })
    }

    /// Checks all offsets and the order of the keys. After that no access can go wrong.
    fn validate(&self) -> Result<()> {
        let (mut key_end, mut value_end) = (0, 0);
        for i in 0..self.entries {
            let (key, value) = (self.key_end(i), self.value_end(i));
            if key < key_end || value < value_end {
                return Err(bad_block("its offsets go back"));
            }
            (key_end, value_end) = (key, value);
        }
        if key_end != self.values_at - self.keys_at || value_end != self.body.len() - self.values_at {
            return Err(bad_block("its parts have other lengths than their offsets say"));
        }
        if (1..self.entries).any(|i| self.suffix(i - 1) > self.suffix(i)) {
            return Err(bad_block("its keys are not sorted"));
        }
        Ok(())
    }

    #[inline]
    fn number(&self, at: usize) -> usize {
        self.body.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, |b| u32::from_le_bytes(b) as usize)
    }

    #[inline]
    fn key_end(&self, i: usize) -> usize {
        self.number(BODY_HEAD + self.prefix + i * 4)
    }

    #[inline]
    fn value_end(&self, i: usize) -> usize {
        self.number(self.value_ends_at + i * 4)
    }

    /// How many entries.
    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    /// What all keys begin with.
    #[inline]
    pub(crate) fn prefix(&self) -> &[u8] {
        &self.body[BODY_HEAD..BODY_HEAD + self.prefix]
    }

    /// Key `i` without the prefix.
    #[inline]
    pub(crate) fn suffix(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.key_end(i - 1) };
        self.body.get(self.keys_at + start..self.keys_at + self.key_end(i)).unwrap_or_default()
    }

    /// Where entry `i` stands in the body.
    #[inline]
    fn entry_range(&self, i: usize) -> Range<usize> {
        let start = if i == 0 { 0 } else { self.value_end(i - 1) };
        self.values_at + start..self.values_at + self.value_end(i)
    }

    /// Entry `i`.
    #[inline]
    pub(crate) fn entry(&self, i: usize) -> &[u8] {
        self.body.get(self.entry_range(i)).unwrap_or_default()
    }

    /// How key `i` compares with `key`.
    #[inline]
    pub(crate) fn compare(&self, i: usize, key: &[u8]) -> Ordering {
        let prefix = self.prefix();
        let head = key.len().min(prefix.len());
        prefix[..head]
            .cmp(&key[..head])
            .then_with(|| if key.len() < prefix.len() { Ordering::Greater } else { self.suffix(i).cmp(&key[head..]) })
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

    /// Bytes of the body.
    pub(crate) fn body_len(&self) -> usize {
        self.body.len()
    }

    /// The body.
    pub(crate) fn into_body(self) -> Bytes {
        self.body
    }

    /// The first entry whose key is at or above `key`, at or behind `from`.
    #[inline]
    pub(crate) fn lower_bound(&self, from: usize, key: &[u8]) -> usize {
        let prefix = self.prefix();
        let head = key.len().min(prefix.len());
        match prefix[..head].cmp(&key[..head]) {
            Ordering::Less => return self.entries,
            Ordering::Greater => return from,
            Ordering::Equal if key.len() < prefix.len() => return from,
            Ordering::Equal => {}
        }
        let rest = &key[head..];
        let (mut low, mut high) = (from, self.entries);
        while low < high {
            let mid = low.midpoint(high);
            if self.suffix(mid) < rest { low = mid + 1 } else { high = mid }
        }
        low
    }

    /// Whether key `i` is `key`.
    #[inline]
    pub(crate) fn is_key(&self, i: usize, key: &[u8]) -> bool {
        i < self.entries
            && key.len() >= self.prefix
            && key[..self.prefix] == *self.prefix()
            && key[self.prefix..] == *self.suffix(i)
    }
}
