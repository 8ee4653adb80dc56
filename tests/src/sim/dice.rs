//! Random numbers of the plan: a generator of its own, so that drawing one more number in one part of the simulation
//! does not change what another part draws.

use std::ops::Range;
use std::time::Duration;

use millstream_common::hash::stable_hash;

/// Random numbers from a seed and a purpose.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The dice of `purpose` in the run of `seed`.
    #[must_use]
    pub fn new(seed: u64, purpose: &str) -> Self {
        let mut bytes = seed.to_le_bytes().to_vec();
        bytes.extend_from_slice(purpose.as_bytes());
        Self(stable_hash(&bytes))
    }

    /// 64 random bits (splitmix64).
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `range`; its start when the range is empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.bits() % range.end.saturating_sub(range.start).max(1)
    }

    /// A number in `range`, signed.
    pub fn signed(&mut self, range: Range<i64>) -> i64 {
        range.start + self.within(0..(range.end - range.start).max(1) as u64) as i64
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.within(0..100) < percent
    }

    /// One of `choices`, which is not empty.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.within(0..choices.len() as u64) as usize]
    }

    /// A time in `range`, milliseconds.
    pub fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_micros(self.within(range.start * 1000..range.end * 1000))
    }
}
