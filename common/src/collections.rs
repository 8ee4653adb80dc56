//! Hash maps whose order depends on the keys and the history alone, never on a random seed.
//!
//! Use [`std::collections::BTreeMap`] where something is iterated over and the result can be seen; these where only
//! look-ups matter.

use std::hash::{BuildHasherDefault, Hasher};

/// A hasher for maps in memory, after the multiply-and-rotate family (as in rustc); not the stable hash of keys.
#[derive(Clone, Copy, Default)]
pub struct StableHasher(u64);

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for StableHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        self.write_u64(crate::hash::stable_hash(bytes));
    }
    #[inline]
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(26) ^ n).wrapping_mul(MULTIPLIER);
    }
    #[inline]
    fn write_u8(&mut self, n: u8) {
        self.write_u64(u64::from(n));
    }
    #[inline]
    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }
    #[inline]
    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
    #[inline]
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

/// Builds [`StableHasher`]s.
pub type StableBuildHasher = BuildHasherDefault<StableHasher>;
/// A hash map that is the same in each run.
pub type HashMap<K, V> = hashbrown::HashMap<K, V, StableBuildHasher>;
/// A hash set that is the same in each run.
pub type HashSet<K> = hashbrown::HashSet<K, StableBuildHasher>;
