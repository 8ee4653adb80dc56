//! How long requests took of late: enough of the last samples of each class to read percentiles from.
//!
//! Only answers count, from the moment a request was sent to the last byte of its body: not what it waited before, not
//! attempts that failed. Nothing is allocated after the first sample of a class.

use std::time::Duration;

use parking_lot::Mutex;

/// So many of the last samples are kept for each class.
const SAMPLES: usize = 512;

/// What takes alike long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LatencyClass {
    /// Reads of a range.
    GetRange,
    /// Reads of whole objects.
    Get,
    /// Writes of objects and of their parts.
    Put,
    /// All else: sizes, listings, deletions.
    Other,
}

impl LatencyClass {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::GetRange, Self::Get, Self::Put, Self::Other];
}

#[derive(Debug, Default)]
pub(crate) struct Latencies([Mutex<Ring>; LatencyClass::ALL.len()]);

#[derive(Debug, Default)]
struct Ring {
    /// Microseconds.
    samples: Vec<u32>,
    /// Where the next one goes, once it is full.
    next: usize,
}

impl Latencies {
    pub(crate) fn add(&self, class: LatencyClass, took: Duration) {
        let us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let mut ring = self.0[class as usize].lock();
        if ring.samples.len() < SAMPLES {
            if ring.samples.capacity() == 0 {
                ring.samples.reserve_exact(SAMPLES);
            }
            ring.samples.push(us);
            return;
        }
        let at = ring.next;
        ring.samples[at] = us;
        ring.next = (at + 1) % SAMPLES;
    }

    /// The smallest time within which `share` (0 to 1) of the last requests were answered; `None` before `least` were.
    pub(crate) fn quantile(&self, class: LatencyClass, share: f64, least: usize) -> Option<Duration> {
        let mut copy = [0_u32; SAMPLES];
        let n = {
            let ring = self.0[class as usize].lock();
            copy[..ring.samples.len()].copy_from_slice(&ring.samples);
            ring.samples.len()
        };
        if n == 0 || n < least {
            return None;
        }
        let rank = ((share.clamp(0.0, 1.0) * n as f64).ceil() as usize).clamp(1, n) - 1;
        let (_, at, _) = copy[..n].select_nth_unstable(rank);
        Some(Duration::from_micros(u64::from(*at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_last_samples() {
        let latencies = Latencies::default();
        let p = |share| latencies.quantile(LatencyClass::GetRange, share, 20).map(|d| d.as_millis());
        assert_eq!(p(0.5), None);
        for ms in (1..=100).rev() {
            latencies.add(LatencyClass::GetRange, Duration::from_millis(ms));
        }
        assert_eq!((p(0.5), p(0.95), p(1.0), p(0.0)), (Some(50), Some(95), Some(100), Some(1)));
        assert_eq!(latencies.quantile(LatencyClass::Put, 0.5, 0), None);
        for _ in 0..SAMPLES {
            latencies.add(LatencyClass::GetRange, Duration::from_millis(7));
        }
        assert_eq!((p(0.0), p(1.0)), (Some(7), Some(7)), "older ones are forgotten");
        latencies.add(LatencyClass::Put, Duration::from_secs(1 << 40));
        assert!(latencies.quantile(LatencyClass::Put, 1.0, 1).is_some());
    }
}
