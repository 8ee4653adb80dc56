//! What is written and read: keys and values that are known from a number, batches of them, and popularity.
//!
//! Every store gets the same entries from here. A value begins with a stamp of its id and version, so that the sum of the
//! stamps tells whether the right values came back. Nothing here does I/O.

use bytes::Bytes;
use millstream_common::hash::stable_hash;
use millstream_common::{Error, KeyGroup, Result, StateId};
use millstream_state_store::key::point_key;

/// Bytes of a key.
pub const KEY_BYTES: usize = 16;
/// Bytes of a value.
pub const VALUE_BYTES: usize = 100;
/// Bytes of an entry.
pub const ENTRY_BYTES: u64 = (KEY_BYTES + VALUE_BYTES) as u64;
/// Keys of a batch.
pub const BATCH: usize = 4_096;
/// The state that the entries belong to: the first one that a tree allots.
pub const STATE: StateId = StateId(0);

/// A key.
pub type Key = [u8; KEY_BYTES];
/// A value.
pub type Value = [u8; VALUE_BYTES];

/// A bijection of 64-bit numbers whose outputs look random (the finalizer of splitmix64).
#[inline]
#[must_use]
pub fn mix(mut n: u64) -> u64 {
    n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// The key of an id; other ids have other keys.
#[inline]
#[must_use]
pub fn key_of(id: u64) -> Key {
    let first = mix(id);
    let mut key = [0; KEY_BYTES];
    key[..8].copy_from_slice(&first.to_be_bytes());
    key[8..].copy_from_slice(&mix(first ^ 0x5bd1_e995).to_be_bytes());
    key
}

/// The key group of a key.
#[inline]
#[must_use]
pub fn group_of(key: &Key) -> KeyGroup {
    KeyGroup::of_hash(stable_hash(key))
}

/// How values are filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Values {
    /// Three quarters of each value are the same in all of them; else it is pseudo-random and does not compress.
    pub compressible: bool,
}

impl Values {
    /// The first eight bytes of a value, as a number.
    #[inline]
    #[must_use]
    pub fn stamp(id: u64, version: u64) -> u64 {
        mix(id ^ version.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    /// The value of a version of an id.
    #[must_use]
    pub fn of(self, id: u64, version: u64) -> Value {
        let mut value = [b'm'; VALUE_BYTES];
        let random = if self.compressible { VALUE_BYTES / 4 } else { VALUE_BYTES };
        let mut word = Self::stamp(id, version);
        for piece in value[..random].chunks_mut(8) {
            piece.copy_from_slice(&word.to_le_bytes()[..piece.len()]);
            word = mix(word);
        }
        value
    }
}

/// Entries to be written.
#[derive(Clone, Debug, Default)]
pub struct Entries {
    /// Their keys.
    pub keys: Vec<Key>,
    /// Their values.
    pub values: Vec<Value>,
}

impl Entries {
    /// The entries of some ids at a version.
    #[must_use]
    pub fn of(ids: impl IntoIterator<Item = u64>, version: u64, values: Values) -> Self {
        let mut entries = Self::default();
        for id in ids {
            entries.keys.push(key_of(id));
            entries.values.push(values.of(id, version));
        }
        entries
    }
}

/// What a read brought: how many values, and the sum of their stamps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Values that were found.
    pub found: u64,
    /// The sum of the stamps, wrapping.
    pub stamps: u64,
}

impl Sum {
    /// Counts a value that was read.
    #[inline]
    pub fn add(&mut self, value: &[u8]) {
        if let Some(stamp) = value.first_chunk::<8>() {
            self.found += 1;
            self.stamps = self.stamps.wrapping_add(u64::from_le_bytes(*stamp));
        }
    }
}

/// Keys to be read together, in every form that a store asks for, and what must come back.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The ids.
    pub ids: Vec<u64>,
    /// The keys.
    pub keys: Vec<Key>,
    /// The same as Millstream's store keys.
    pub store_keys: Vec<Bytes>,
    /// What a right answer sums up to.
    pub expected: Sum,
}

impl Batch {
    /// The keys of `ids`; `version` is the version that an id has, `None` when it is absent.
    #[must_use]
    pub fn of(ids: Vec<u64>, version: impl Fn(u64) -> Option<u64>) -> Self {
        let keys: Vec<Key> = ids.iter().map(|&id| key_of(id)).collect();
        let store_keys = keys.iter().map(store_key).collect();
        let mut expected = Sum::default();
        for &id in &ids {
            if let Some(version) = version(id) {
                expected.add(&Values::stamp(id, version).to_le_bytes());
            }
        }
        Self { ids, keys, store_keys, expected }
    }

    /// An error unless `sum` is what must come back.
    pub fn check(&self, who: &str, sum: Sum) -> Result<()> {
        if sum == self.expected {
            return Ok(());
        }
        Err(Error::internal(format!("{who} answered {sum:?}, and {:?} was written", self.expected)))
    }
}

/// Millstream's store key of a key.
#[must_use]
pub fn store_key(key: &Key) -> Bytes {
    let mut out = Vec::new();
    point_key(STATE, group_of(key), key, &mut out);
    out.into()
}

/// Pseudo-random numbers from a seed.
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// 64 bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0)
    }

    /// A number below `n`.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// A number in [0, 1).
    #[inline]
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Which ids are drawn how often.
#[derive(Clone, Copy, Debug)]
pub enum Popularity {
    /// All alike.
    Uniform(u64),
    /// Id `i` in proportion to 1 / (i + 1)^skew.
    Zipf(Zipf),
}

impl Popularity {
    /// An id.
    #[inline]
    pub fn draw(&self, random: &mut Random) -> u64 {
        match self {
            Self::Uniform(n) => random.below(*n),
            Self::Zipf(zipf) => zipf.draw(random),
        }
    }

    /// The probability that a draw is one of the `k` most popular ids.
    #[must_use]
    pub fn share_of_top(&self, k: u64) -> f64 {
        match self {
            Self::Uniform(n) => k.min(*n) as f64 / *n as f64,
            Self::Zipf(zipf) => zeta(k.min(zipf.n), zipf.skew) / zeta(zipf.n, zipf.skew),
        }
    }
}

/// Zipf by rejection-inversion: W. Hörmann and G. Derflinger, "Rejection-inversion to generate variates from monotone
/// discrete distributions", 1996. Skews below and above 1, not 1 itself.
#[derive(Clone, Copy, Debug)]
pub struct Zipf {
    n: u64,
    skew: f64,
    low: f64,
    high: f64,
    near: f64,
}

impl Zipf {
    /// Over the ids below `n`.
    #[must_use]
    pub fn new(n: u64, skew: f64) -> Self {
        let mut zipf = Self { n, skew, low: 0.0, high: 0.0, near: 0.0 };
        zipf.low = zipf.integral(1.5) - 1.0;
        zipf.high = zipf.integral(n as f64 + 0.5);
        zipf.near = 2.0 - zipf.inverse(zipf.integral(2.5) - 2_f64.powf(-skew));
        zipf
    }

    /// The integral of x^-skew.
    fn integral(&self, x: f64) -> f64 {
        (x.powf(1.0 - self.skew) - 1.0) / (1.0 - self.skew)
    }

    fn inverse(&self, y: f64) -> f64 {
        (y * (1.0 - self.skew) + 1.0).powf(1.0 / (1.0 - self.skew))
    }

    fn draw(&self, random: &mut Random) -> u64 {
        loop {
            let y = self.high + random.unit() * (self.low - self.high);
            let x = self.inverse(y);
            let rank = x.round().clamp(1.0, self.n as f64);
            if rank - x <= self.near || y >= self.integral(rank + 0.5) - rank.powf(-self.skew) {
                return rank as u64 - 1;
            }
        }
    }
}

/// The sum of 1 / i^skew for i from 1 to n.
fn zeta(n: u64, skew: f64) -> f64 {
    (1..=n).map(|i| (i as f64).powf(-skew)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_is_found_out() {
        let values = Values { compressible: false };
        let batch = Batch::of(vec![1, 2, 9], |id| (id < 5).then_some(7));
        let mut sum = Sum::default();
        [1, 2].iter().for_each(|&id| sum.add(&values.of(id, 7)));
        batch.check("x", sum).unwrap();
        let mut stale = Sum::default();
        [(1, 7), (2, 6)].iter().for_each(|&(id, version)| stale.add(&values.of(id, version)));
        assert!(batch.check("x", stale).is_err() && batch.check("x", Sum::default()).is_err());
        assert_eq!(batch.store_keys[0].len(), 4 + KEY_BYTES);
    }

    #[test]
    fn popularity_is_as_said() {
        let zipf = Popularity::Zipf(Zipf::new(1_000, 0.99));
        let mut random = Random::new(1);
        let draws = 200_000;
        let top = (0..draws).filter(|_| zipf.draw(&mut random) < 10).count();
        let expected = zipf.share_of_top(10);
        assert!((top as f64 / f64::from(draws) - expected).abs() < 0.01, "{top} {expected}");
        assert!((0..10_000).all(|_| zipf.draw(&mut random) < 1_000));
        assert_eq!(Popularity::Uniform(10).share_of_top(5), 0.5);
    }

    #[test]
    fn compressible_values_share_most_bytes() {
        let of = |compressible| (Values { compressible }.of(1, 1), Values { compressible }.of(2, 1));
        let same = |(a, b): (Value, Value)| a.iter().zip(&b).filter(|(x, y)| x == y).count();
        assert!(same(of(true)) >= 75 && same(of(false)) < 20);
    }
}
