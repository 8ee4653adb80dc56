//! Zipf's distribution without a table: rejection-inversion (W. Hörmann and G. Derflinger, 1996).
//!
//! The sum of k^-skew is enclosed by an integral that can be inverted; a draw is kept when it lies under the steps.
//! More than nine in ten are. Mathematics comes from `libm`, which gives the same bits on every machine.

use crate::random::Draws;

/// Ranks 1 to `size`; rank k has a share in proportion to `k^-skew`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Zipf {
    size: f64,
    skew: f64,
    /// The integral at both ends.
    first: f64,
    last: f64,
    /// A draw this close to its rank is kept without looking further.
    close: f64,
}

impl Zipf {
    /// `size` is at least 1, `skew` finite and not negative.
    pub(super) fn new(size: u64, skew: f64) -> Self {
        let mut zipf = Self { size: size as f64, skew, first: 0.0, last: 0.0, close: 0.0 };
        zipf.first = zipf.integral(1.5) - 1.0;
        zipf.last = zipf.integral(zipf.size + 0.5);
        zipf.close = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.height(2.0));
        zipf
    }

    /// A rank less one: 0 is the most frequent.
    pub(super) fn draw(&self, draws: &mut Draws) -> u64 {
        loop {
            let area = self.last + draws.unit() * (self.first - self.last);
            let x = self.inverse(area);
            let rank = libm::floor(x + 0.5).clamp(1.0, self.size);
            if rank - x <= self.close || area >= self.integral(rank + 0.5) - self.height(rank) {
                return rank as u64 - 1;
            }
        }
    }

    fn height(&self, x: f64) -> f64 {
        libm::exp(-self.skew * libm::log(x))
    }

    /// The integral of `height` from 1 to x: (x^(1 - skew) - 1) / (1 - skew), or the logarithm when skew is 1.
    fn integral(&self, x: f64) -> f64 {
        let log = libm::log(x);
        let t = (1.0 - self.skew) * log;
        if t.abs() > 1e-8 { libm::expm1(t) / t * log } else { log * (1.0 + t * 0.5) }
    }

    fn inverse(&self, area: f64) -> f64 {
        // Rounding may bring it below the least argument of the logarithm.
        let t = (area * (1.0 - self.skew)).max(-1.0);
        let log = if t.abs() > 1e-8 { libm::log1p(t) / t * area } else { area * (1.0 - t * 0.5) };
        libm::exp(log)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_of_the_formula() {
        for (size, skew) in [(1_000, 0.99), (1_000, 1.0), (100, 2.0), (10, 0.0), (1, 0.99), (50, 0.5)] {
            let zipf = Zipf::new(size, skew);
            let draws = 200_000;
            let mut counts = vec![0_u32; size as usize];
            for n in 0..draws {
                counts[zipf.draw(&mut Draws::of(4, n)) as usize] += 1;
            }
            let total: f64 = (1..=size).map(|k| (k as f64).powf(-skew)).sum();
            for k in 1..=size.min(10) {
                let expected = (k as f64).powf(-skew) / total * draws as f64;
                let got = f64::from(counts[k as usize - 1]);
                assert!(
                    (got - expected).abs() < 6.0 * expected.sqrt() + 1.0,
                    "{size} {skew} {k}: {got} for {expected}"
                );
            }
        }
    }
}
