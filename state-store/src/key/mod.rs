//! The key codec, id 1: how the columns of a row become the bytes of a key, and where a key stands in the tree.
//!
//! The encoding is final. It goes into every stored key and, through the stable hash, decides which key group a row
//! belongs to; a change would be another codec id. Golden files under `tests/golden/` hold it in place.
//!
//! A key is its columns one after the other. Each begins with a marker: `00` for null (so nulls come first), `01` for
//! a value. Values compare as their bytes do, and each ends by itself, so that whole keys compare column by column:
//!
//! | type | value |
//! |---|---|
//! | signed integers, unsigned up to 32 bits, Time32, Time64 (as nanoseconds), Date32, Date64 (as milliseconds) | as i64: 8 bytes, big endian, sign bit flipped |
//! | UInt64 | 8 bytes, big endian |
//! | floats | as f64 with one zero and one NaN (the greatest): 8 bytes, big endian; sign bit flipped, or all bits when negative |
//! | Boolean | 1 byte, 0 or 1 |
//! | Timestamp, Duration of any unit | nanoseconds as a 96-bit integer: 12 bytes, big endian, sign bit flipped |
//! | text and binary of any layout | the bytes with each `00` as `00 FF`, then `00 00` |
//! | decimals of any width and scale | class (`01` negative, `02` zero, `03` positive); for the others the decimal exponent (u16, big endian, biased), digits in pairs (pair + 1), `00`; all complemented when negative |
//!
//! So the same value has the same bytes whatever the width, unit, scale, nullability or dictionary of its column, and
//! both sides of a join hash alike. Other types are refused by name.

mod decode;
mod encode;
mod map_key;
mod store_key;
#[cfg(test)]
mod tests;

use millstream_common::KeyGroup;
use millstream_common::hash::stable_hash;

pub use decode::{decode_key, decode_keys, encoded_len};
pub use encode::{check_key_type, encode_keys};
pub(crate) use map_key::is_map_prefix_end;
pub use map_key::{map_key, map_prefix, map_prefix_end, map_prefix_len, split_map_key};
pub use store_key::{
    POINT_KEY_AT, TIMED_KEY_AT, key_group, point_key, split_point_key, split_timed_key, state_end, state_of,
    state_start, time_of, timed_key, timed_start,
};

/// Written into every version and refused on mismatch.
pub const KEY_CODEC_ID: u32 = 1;

/// Marker of a null column.
pub(crate) const NULL: u8 = 0;
/// Marker of a column with a value.
pub(crate) const VALUE: u8 = 1;

/// The encoded keys of a batch, one a row, with their stable hashes.
#[derive(Debug, Default, Clone)]
pub struct KeyBuffer {
    data: Vec<u8>,
    /// Where each key ends in `data`.
    ends: Vec<u32>,
    hashes: Vec<u64>,
}

impl KeyBuffer {
    /// How many keys.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether it holds no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// The bytes of key `i`.
    #[inline]
    #[must_use]
    pub fn key(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        &self.data[start..self.ends[i] as usize]
    }

    /// The stable hash of key `i`.
    #[inline]
    #[must_use]
    pub fn hash(&self, i: usize) -> u64 {
        self.hashes[i]
    }

    /// The stable hashes of all keys.
    #[inline]
    #[must_use]
    pub fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    /// The key group of key `i`.
    #[inline]
    #[must_use]
    pub fn group(&self, i: usize) -> KeyGroup {
        KeyGroup::of_hash(self.hashes[i])
    }

    /// The keys in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len()).map(|i| self.key(i))
    }

    /// Appends a key that is encoded already. At most 4 GiB of keys fit into one buffer; what does not is refused.
    pub fn push(&mut self, key: &[u8]) -> millstream_common::Result<()> {
        let end = u32::try_from(self.data.len() + key.len()).map_err(|_| encode::too_long())?;
        self.data.extend_from_slice(key);
        self.ends.push(end);
        self.hashes.push(stable_hash(key));
        Ok(())
    }

    /// Bytes that it holds on to.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.data.capacity() + self.ends.capacity() * 4 + self.hashes.capacity() * 8
    }

    /// Forgets all keys and keeps the memory.
    pub fn clear(&mut self) {
        self.data.clear();
        self.ends.clear();
        self.hashes.clear();
    }
}
