//! How late the rows of a split are: how far each lies behind the greatest event time that its split had shown before it, whatever
//! the batches were. Operators judge by their windows and count their late rows themselves; this says what the delay of a watermark
//! would have to be.

use std::ops::AddAssign;

use arrow_array::{Array, TimestampMillisecondArray};

use crate::element::TimestampMs;

/// Buckets a power of two: a bound is above what it stands for by less than an eighth.
const FINE_BITS: u32 = 3;
/// What lies behind by more than this (24 days) is in the last bucket, which has no bound.
const LATENESS_MS_MAX: u64 = 1 << 31;
/// Rows in order, those of [`LATENESS_MS_MAX`] and less, and those above.
const BUCKETS: usize = 1 + (((31 - FINE_BITS + 1) as usize) << FINE_BITS) + 1;

/// Upper bounds of what others are told, milliseconds, included: 0 is in order. What is above the last one is in a bucket of its own.
pub const BOUNDS_MS: [u64; 17] = {
    let mut bounds = [0; 17];
    let mut i = 1;
    while i < bounds.len() {
        bounds[i] = 1 << (2 * (i - 1));
        i += 1;
    }
    bounds
};

/// How many rows lay behind by how much. Plain data; adding two gives what both saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lateness {
    counts: Box<[u64; BUCKETS]>,
    sum_ms: u64,
}

impl Default for Lateness {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]), sum_ms: 0 }
    }
}

/// The bucket of a row that lies so far behind.
fn bucket(late_ms: u64) -> usize {
    match late_ms {
        0 => 0,
        1..=LATENESS_MS_MAX => {
            // Bounds are included: the bucket of 1 begins at 0 here.
            let below = late_ms - 1;
            let octave = (below >> FINE_BITS).checked_ilog2().map_or(0, |log| log + 1);
            let fine = (below >> octave.saturating_sub(1)) & ((1 << FINE_BITS) - 1);
            1 + ((octave as usize) << FINE_BITS) + fine as usize
        }
        _ => BUCKETS - 1,
    }
}

/// The greatest lateness of a bucket, milliseconds; `None`: it has none.
fn bound_ms(bucket: usize) -> Option<u64> {
    let Some(at) = bucket.checked_sub(1) else { return Some(0) };
    let (octave, fine) = ((at >> FINE_BITS) as u32, (at & ((1 << FINE_BITS) - 1)) as u64);
    let bound = match octave {
        0 => fine + 1,
        octave => ((1 << FINE_BITS) + fine + 1) << (octave - 1),
    };
    (bucket < BUCKETS - 1).then_some(bound)
}

impl Lateness {
    /// Takes note of a row that lies so far behind, milliseconds; 0: it is in order.
    pub fn note(&mut self, late_ms: u64) {
        self.counts[bucket(late_ms)] += 1;
        self.sum_ms = self.sum_ms.saturating_add(late_ms);
    }

    /// How many rows there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// By how much all of them lay behind together, milliseconds.
    #[must_use]
    pub fn sum_ms(&self) -> u64 {
        self.sum_ms
    }

    /// How many lay in each of [`BOUNDS_MS`], and above.
    #[must_use]
    pub fn coarse(&self) -> [u64; BOUNDS_MS.len() + 1] {
        let mut out = [0; BOUNDS_MS.len() + 1];
        for (i, count) in self.counts.iter().enumerate() {
            // Each of these bounds is one of the finer ones.
            let at = bound_ms(i).map_or(BOUNDS_MS.len(), |bound| BOUNDS_MS.partition_point(|b| *b < bound));
            out[at] += count;
        }
        out
    }

    /// The watermark delay, milliseconds, with which at least so many of a thousand rows would not have come at or behind their
    /// split's watermark. An upper bound: too large by less than an eighth. `None`: there was no row, or the delay is above 24 days.
    #[must_use]
    pub fn delay_ms(&self, of_1000: u64) -> Option<u64> {
        let all = self.count();
        let wanted = (u128::from(all) * u128::from(of_1000.min(1_000))).div_ceil(1_000);
        let mut held = 0;
        for (i, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            held += u128::from(*count);
            if held >= wanted {
                // A row at the watermark is behind it.
                return bound_ms(i).map(|bound| bound + 1);
            }
        }
        None
    }
}

impl AddAssign<&Lateness> for Lateness {
    fn add_assign(&mut self, other: &Lateness) {
        self.counts.iter_mut().zip(other.counts.iter()).for_each(|(a, b)| *a += b);
        self.sum_ms = self.sum_ms.saturating_add(other.sum_ms);
    }
}

/// How far a split has come, since the subtask took it up.
#[derive(Clone, Debug)]
pub struct SplitProgress {
    rows: u64,
    /// Least of all numbers: there was none.
    greatest: TimestampMs,
    behind: u64,
    lateness: Lateness,
}

impl SplitProgress {
    /// `greatest`: the greatest event time that the split had shown before.
    #[must_use]
    pub fn new(greatest: Option<TimestampMs>) -> Self {
        let greatest = greatest.unwrap_or(TimestampMs::MIN);
        Self { rows: 0, greatest, behind: 0, lateness: Lateness::default() }
    }

    /// Takes note of so many rows, which have these event times, in order; the watermark stays behind by `delay_ms`. Gives the
    /// greatest event time so far when there is one among these rows.
    pub fn note(&mut self, rows: u64, times: &TimestampMillisecondArray, delay_ms: i64) -> Option<TimestampMs> {
        self.rows += rows;
        if times.null_count() == times.len() {
            return None;
        }
        if times.null_count() == 0 {
            self.note_times(times.values().iter().copied(), delay_ms);
        } else {
            self.note_times(times.iter().flatten(), delay_ms);
        }
        Some(self.greatest)
    }

    fn note_times(&mut self, times: impl Iterator<Item = TimestampMs>, delay_ms: i64) {
        let (mut greatest, mut behind, mut in_order) = (self.greatest, 0, 0);
        for time in times {
            if time > greatest {
                (greatest, in_order) = (time, in_order + 1);
                continue;
            }
            let late = greatest.saturating_sub(time);
            behind += u64::from(late >= delay_ms);
            if late == 0 {
                in_order += 1;
            } else {
                self.lateness.note(late as u64);
            }
        }
        (self.greatest, self.behind) = (greatest, self.behind + behind);
        self.lateness.counts[0] += in_order;
    }

    /// How many rows there were.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// How many of them came at or behind the watermark, were it told behind each row.
    #[must_use]
    pub fn behind(&self) -> u64 {
        self.behind
    }

    /// How late those were that have an event time.
    #[must_use]
    pub fn lateness(&self) -> &Lateness {
        &self.lateness
    }
}

#[cfg(test)]
#[path = "lateness_tests.rs"]
mod tests;
