//! Pseudo-random numbers that are a pure function of a seed and a number: no state to store, any place can be sought.

/// Spreads the bits of `n` over the whole word. A bijection.
#[inline]
#[must_use]
pub fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let n = (n ^ (n >> 29)).wrapping_mul(0xa076_1d64_78bd_642f);
    n ^ (n >> 32)
}

/// The numbers that belong to one seed and one event.
#[derive(Clone, Debug)]
pub struct Draws(u64);

impl Draws {
    /// The draws of number `n` under `seed`.
    #[inline]
    #[must_use]
    pub fn of(seed: u64, n: u64) -> Self {
        Self(mix(n.wrapping_add(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
    }

    /// 64 random bits: a counter, folded over a 128-bit product.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0xa076_1d64_78bd_642f);
        let product = u128::from(self.0) * u128::from(self.0 ^ 0xe703_7ed1_a0b4_28db);
        (product >> 64) as u64 ^ product as u64
    }

    /// A number below `n` (0 for 0), by the upper bits of a 64-bit draw: no bias that could be seen.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        scale(self.bits(), n)
    }

    /// A number in [0, 1) with 53 random bits.
    #[inline]
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Appends `len` random bytes.
    pub fn bytes(&mut self, len: usize, out: &mut Vec<u8>) {
        let end = out.len() + len;
        out.reserve(len + 8);
        while out.len() + 8 <= end {
            out.extend_from_slice(&self.bits().to_le_bytes());
        }
        let rest = end - out.len();
        out.extend_from_slice(&self.bits().to_le_bytes()[..rest]);
    }
}

/// Scales 64 random bits to a number below `n`.
#[inline]
#[must_use]
pub fn scale(bits: u64, n: u64) -> u64 {
    ((u128::from(bits) * u128::from(n)) >> 64) as u64
}

/// Scales 32 random bits (the upper half is ignored) to a number below `n`.
#[inline]
#[must_use]
pub fn scale32(bits: u64, n: u32) -> u32 {
    (((bits & 0xffff_ffff) * u64::from(n)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_even_and_differ_between_neighbours() {
        let mut counts = [0_u32; 26];
        let mut ones = 0;
        for n in 0..100_000 {
            let mut d = Draws::of(1, n);
            counts[d.below(26) as usize] += 1;
            ones += d.bits().count_ones();
        }
        assert!(counts.iter().all(|c| (3_600..4_100).contains(c)), "{counts:?}");
        assert!((3_190_000..3_210_000).contains(&ones), "{ones}");
        assert_ne!(Draws::of(1, 7).bits(), Draws::of(2, 7).bits());
        assert_eq!(Draws::of(1, 7).bits(), Draws::of(1, 7).bits());
    }

    #[test]
    fn numbers_stay_what_they_are() {
        // Positions in stored versions point into these sequences: they must never change.
        let mut d = Draws::of(3, 5);
        assert_eq!([d.bits(), d.bits(), d.below(1_000)], NUMBERS_OF_3_5);
    }

    const NUMBERS_OF_3_5: [u64; 3] = [13_995_811_479_176_484_863, 15_364_341_584_447_646_872, 923];

    #[test]
    fn as_many_bytes_as_asked_for() {
        for len in [0, 1, 7, 8, 9, 100] {
            let mut out = vec![1];
            Draws::of(0, 0).bytes(len, &mut out);
            assert_eq!(out.len(), 1 + len);
        }
    }
}
