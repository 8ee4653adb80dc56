//! The stable hash: XXH3, 64 bits, seed 0 (specified by the xxHash project; its values are fixed since release 0.8).

/// Written into every version and refused on mismatch.
pub const HASH_ID: u32 = 1;

/// The stable 64-bit hash of an encoded key.
#[inline]
#[must_use]
pub fn stable_hash(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}
