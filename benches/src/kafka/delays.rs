//! When events are due, and how long after that their rows were there.
//!
//! An event is late from the moment at which it was due, not from that at which a busy machine got round to it: else a system that
//! stands still would be asked less while it does, and look better for it.

use std::time::Duration;

/// At most so much later, at the median, the rows of the last quarter may be than those of the first.
const DRIFT: Duration = Duration::from_secs(1);

/// Events at a fixed rate, numbered from 0.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Events a second.
    pub rate: u64,
}

impl Schedule {
    /// When an event is due, behind the start.
    #[must_use]
    pub fn due(self, event: u64) -> Duration {
        Duration::from_secs_f64(event as f64 / self.rate as f64)
    }

    /// How many are due by then.
    #[must_use]
    pub fn due_by(self, since_start: Duration) -> u64 {
        (since_start.as_secs_f64() * self.rate as f64) as u64 + 1
    }

    /// How many there are in so many seconds.
    #[must_use]
    pub fn events_in(self, seconds: u32) -> u64 {
        self.rate * u64::from(seconds)
    }
}

/// How late the row of each event was.
#[derive(Debug)]
pub struct Delays {
    schedule: Schedule,
    /// Microseconds; `NONE`: no row so far.
    of: Vec<u32>,
    seen: u64,
    twice: u64,
}

const NONE: u32 = u32::MAX;

/// Percentiles in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Percentiles {
    /// Half of the rows were there sooner.
    pub p50: f64,
    /// 90 of 100.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// The latest of all.
    pub max: f64,
}

impl Delays {
    /// Of so many events, none of whose rows is there.
    #[must_use]
    pub fn new(schedule: Schedule, events: u64) -> Self {
        Self { schedule, of: vec![NONE; usize::try_from(events).unwrap_or(0)], seen: 0, twice: 0 }
    }

    /// The row of an event was there at this time. False: there is no such event.
    pub fn saw(&mut self, event: u64, since_start: Duration) -> bool {
        let delay = since_start.saturating_sub(self.schedule.due(event)).as_micros();
        let Some(of) = usize::try_from(event).ok().and_then(|i| self.of.get_mut(i)) else { return false };
        if *of == NONE {
            *of = u32::try_from(delay).unwrap_or(NONE).min(NONE - 1);
            self.seen += 1;
        } else {
            self.twice += 1;
        }
        true
    }

    /// Events without a row.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.of.len() as u64 - self.seen
    }

    /// Rows of events that had one already.
    #[must_use]
    pub fn twice(&self) -> u64 {
        self.twice
    }

    /// Behind the first `warm_up` events; `Err` says why there is nothing to tell: not all rows came, or they came later and later.
    pub fn percentiles(&self, warm_up: u64) -> Result<Percentiles, String> {
        if self.missing() > 0 {
            return Err(format!("does not keep up: {} of {} rows had not come", self.missing(), self.of.len()));
        }
        let measured = &self.of[usize::try_from(warm_up).unwrap_or(usize::MAX).min(self.of.len())..];
        let quarter = measured.len() / 4;
        if quarter == 0 {
            return Err("too few events".to_owned());
        }
        let ms = |micros: u32| f64::from(micros) / 1e3;
        let median = |part: &[u32]| ms(sorted(part)[part.len() / 2]);
        let (first, last) = (median(&measured[..quarter]), median(&measured[measured.len() - quarter..]));
        if last > first + DRIFT.as_secs_f64() * 1e3 {
            return Err(format!(
                "does not keep up: median {first:.0} ms in the first quarter, {last:.0} ms in the last"
            ));
        }
        let all = sorted(measured);
        // Nearest rank.
        let at = |percent: usize| ms(all[(all.len() * percent).div_ceil(100).max(1) - 1]);
        Ok(Percentiles { p50: at(50), p90: at(90), p99: at(99), max: at(100) })
    }
}

fn sorted(part: &[u32]) -> Vec<u32> {
    let mut part = part.to_vec();
    part.sort_unstable();
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: Schedule = Schedule { rate: 1_000 };

    fn delays(ms: impl Fn(u64) -> u64) -> Delays {
        let mut delays = Delays::new(SCHEDULE, 400);
        (0..400).for_each(|n| assert!(delays.saw(n, SCHEDULE.due(n) + Duration::from_millis(ms(n)))));
        delays
    }

    #[test]
    fn events_are_due_at_a_rate() {
        assert_eq!((SCHEDULE.due(0), SCHEDULE.due(2_500)), (Duration::ZERO, Duration::from_millis(2_500)));
        assert_eq!((SCHEDULE.due_by(Duration::ZERO), SCHEDULE.due_by(Duration::from_micros(2_500))), (1, 3));
        assert_eq!(SCHEDULE.events_in(3), 3_000);
    }

    #[test]
    fn percentiles_are_those_behind_the_warm_up() {
        let found = delays(|n| if n < 300 { 900 } else { n - 299 }).percentiles(300).unwrap();
        assert_eq!(found, Percentiles { p50: 50.0, p90: 90.0, p99: 99.0, max: 100.0 });
        assert_eq!(delays(|n| if n < 300 { 900 } else { n - 299 }).percentiles(0).unwrap().max, 900.0);
        assert!(delays(|_| 1).percentiles(398).is_err());
    }

    #[test]
    fn who_does_not_keep_up_gets_no_percentiles() {
        let e = delays(|n| n * 5).percentiles(0).unwrap_err();
        assert_eq!(e, "does not keep up: median 250 ms in the first quarter, 1750 ms in the last");
        let mut some = Delays::new(SCHEDULE, 400);
        assert!(some.saw(3, Duration::from_secs(1)) && some.saw(3, Duration::from_secs(2)));
        assert!(!some.saw(400, Duration::from_secs(1)));
        assert_eq!((some.missing(), some.twice()), (399, 1));
        assert!(some.percentiles(0).unwrap_err().contains("399 of 400 rows had not come"));
    }
}
