//! Durations counted in fixed buckets: cheap to note, exact to add up over processes.

use std::ops::AddAssign;
use std::time::Duration;

/// Upper bounds of the buckets, milliseconds, included. What is above the last one is in a bucket of its own.
pub const BOUNDS_MS: [u64; 14] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000];

const BUCKETS: usize = BOUNDS_MS.len() + 1;

/// How many durations lay in which bucket, and their sum. Plain data; adding two gives what both saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    counts: [u64; BUCKETS],
    sum_us: u64,
}

impl Latencies {
    /// Takes note of a duration.
    pub fn note(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.counts[BOUNDS_MS.partition_point(|bound| bound * 1_000 < us)] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// What somebody else counted: by bucket, with these bounds, and the sum in microseconds. Of a release with other
    /// buckets, only what fits is taken.
    #[must_use]
    pub fn of(counts: &[u64], sum_us: u64) -> Self {
        let mut out = Self { counts: [0; BUCKETS], sum_us };
        out.counts.iter_mut().zip(counts).for_each(|(own, theirs)| *own = *theirs);
        out
    }

    /// How many lay in each bucket: one for each of [`BOUNDS_MS`], and one above.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum, microseconds.
    #[must_use]
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }
}

impl AddAssign<&Latencies> for Latencies {
    fn add_assign(&mut self, other: &Latencies) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket_and_sums_are_those_of_both() {
        let mut a = Latencies::default();
        [0, 1_000, 1_001, 30_000_000, 30_000_001].iter().for_each(|us| a.note(Duration::from_micros(*us)));
        assert_eq!((a.counts()[0], a.counts()[1], a.counts()[13], a.counts()[14]), (2, 1, 1, 1));
        let mut both = Latencies::of(a.counts(), a.sum_us());
        assert_eq!(both, a);
        both += &a;
        assert_eq!((both.count(), both.sum_us()), (10, 2 * 60_002_002));
        assert_eq!(Latencies::of(&[7; 99], 1).count(), 7 * 15);
    }
}
