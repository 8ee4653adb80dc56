//! Pseudo-random orders of 0 to N-1 that can be entered anywhere: a Feistel network over the next power of two, and a
//! walk along its cycle until a number is below N (fewer than two steps on average).

use crate::random::mix;

/// An order of the numbers below `size`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permutation {
    size: u64,
    seed: u64,
    lower_bits: u32,
    upper_mask: u64,
    lower_mask: u64,
}

const ROUNDS: u64 = 4;

impl Permutation {
    /// An order of `size` numbers (at least 1); every seed gives another.
    pub(super) fn new(size: u64, seed: u64) -> Self {
        let bits = 64 - (size - 1).leading_zeros();
        let lower_bits = bits.div_ceil(2);
        let mask = |bits: u32| if bits == 0 { 0 } else { u64::MAX >> (64 - bits) };
        Self { size, seed: mix(seed), lower_bits, upper_mask: mask(bits - lower_bits), lower_mask: mask(lower_bits) }
    }

    /// The number at place `at`, which is below the size.
    #[inline]
    pub(super) fn get(&self, at: u64) -> u64 {
        debug_assert!(at < self.size);
        let mut n = at;
        loop {
            n = self.scramble(n);
            if n < self.size {
                return n;
            }
        }
    }

    /// A bijection of the numbers of so many bits: each round changes one half by what the other says.
    #[inline]
    fn scramble(&self, n: u64) -> u64 {
        let (mut upper, mut lower) = (n >> self.lower_bits, n & self.lower_mask);
        for round in 0..ROUNDS {
            let key = self.seed.wrapping_add(round << 56);
            upper ^= mix(lower ^ key) & self.upper_mask;
            lower ^= mix(upper.wrapping_add(!key)) & self.lower_mask;
        }
        upper << self.lower_bits | lower
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_once_and_seeds_differ() {
        for size in [1, 2, 3, 4, 5, 7, 16, 17, 100, 1_000, 4_096, 4_097, 100_000] {
            for seed in 0..3 {
                let order = Permutation::new(size, seed);
                let mut seen: Vec<u64> = (0..size).map(|i| order.get(i)).collect();
                let same = seen.iter().zip(0..).filter(|(a, b)| **a == *b).count();
                assert!(size < 100 || same < 12, "{same} of {size} stay in place");
                seen.sort_unstable();
                assert!(seen.into_iter().eq(0..size), "size {size} seed {seed}");
            }
        }
        let (a, b) = (Permutation::new(1_000, 1), Permutation::new(1_000, 2));
        assert!((0..1_000).filter(|i| a.get(*i) == b.get(*i)).count() < 12);
    }

    #[test]
    fn neighbours_are_scattered() {
        let order = Permutation::new(1_000_000, 9);
        let mean = (1..10_000).map(|i| order.get(i).abs_diff(order.get(i - 1))).sum::<u64>() / 9_999;
        // A third of the range for numbers drawn at random.
        assert!((315_000..352_000).contains(&mean), "{mean}");
    }
}
