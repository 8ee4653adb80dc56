//! How much may wait before a subtask: as much as it gets through in a moment.
//!
//! Rows that stand before a barrier are processed before it. A subtask whose state is on its way from the object store may
//! be a hundred times slower than one whose state is resident, and a bound in rows that keeps the latter busy would hold the
//! former's barriers up for minutes. So queues are bounded in time: by the rate at which rows went through lately (Flink
//! calls this buffer debloating, FLIP-183).

use std::time::Duration;

use millstream_common::env::Moment;

/// Rows may wait for about so long in the queue of a subtask, and again in the channels to it.
pub(crate) const WAITING: Duration = Duration::from_millis(500);
/// A rate is measured over so much time at least.
const WINDOW: Duration = Duration::from_millis(200);

/// The rate at which rows go through while there are some.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Rows a second; the mean of the last windows, younger ones weigh more.
    rate: Option<f64>,
    rows: usize,
    busy: Duration,
    /// Since when something has waited that was not counted yet.
    since: Option<Moment>,
}

impl Pace {
    /// Something waits, from now on.
    pub(crate) fn begin(&mut self, now: Moment) {
        self.since.get_or_insert(now);
    }

    /// Rows have gone through; whether others wait. How long they took since they or those before them did.
    pub(crate) fn passed(&mut self, rows: usize, more: bool, now: Moment) -> Duration {
        let Some(since) = self.since else { return Duration::ZERO };
        let took = now.since(since);
        self.busy += took;
        self.rows += rows;
        self.since = more.then_some(now);
        if self.busy >= WINDOW {
            let rate = self.rows as f64 / self.busy.as_secs_f64();
            self.rate = Some(self.rate.map_or(rate, |before| (before + rate) / 2.0));
            (self.rows, self.busy) = (0, Duration::ZERO);
        }
        took
    }

    /// Whether a rate is known.
    pub(crate) fn is_known(&self) -> bool {
        self.rate.is_some()
    }

    /// How many rows may wait: at least `least`, at most `most`. As long as no rate is known: `first`.
    pub(crate) fn room(&self, least: usize, first: usize, most: usize) -> usize {
        let room = |rate: f64| (rate * WAITING.as_secs_f64()) as usize;
        self.rate.map_or(first, |rate| room(rate).clamp(least, most))
    }
}

/// Channels that take longer than this for what they are given are full.
const STOOD: Duration = Duration::from_millis(2);

/// A portion grows once in so much time at most: channels that are not full yet take whatever they are given.
const GROWS: Duration = Duration::from_millis(5);

/// How many rows a sender hands out together: few at first, twice as many every [`GROWS`] while channels take them at once.
/// While channels are full: what goes through them in a moment, since a barrier waits until all that was handed out before
/// it has gone.
#[derive(Debug)]
pub(crate) struct Portion {
    rows: usize,
    least: usize,
    pace: Pace,
    grown: Option<Moment>,
}

impl Portion {
    /// At least `least` rows, however slow those are who take them.
    pub(crate) fn new(least: usize) -> Self {
        Self { rows: least, least, pace: Pace::default(), grown: None }
    }

    /// So many rows may be handed out together.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// So many rows have gone from `start` to `end`, through full channels for `waited` of this time. `shares` portions
    /// stand in the channels at a time.
    pub(crate) fn learn(&mut self, rows: usize, (start, end): (Moment, Moment), waited: Duration, shares: usize) {
        if waited < STOOD {
            if self.grown.is_none_or(|grown| end.since(grown) >= GROWS) {
                self.rows = self.rows.saturating_mul(2);
                self.grown = Some(end);
            }
            return;
        }
        self.pace.begin(start);
        self.pace.passed(rows, false, end);
        // As long as nobody knows how slow they are, it stays as small as it is.
        if self.pace.is_known() {
            self.rows = (self.pace.room(0, 0, usize::MAX) / shares.max(1)).max(self.least);
        }
    }
}

/// A subtask that is slowed down pauses for no longer than this at a time.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How long a subtask pauses behind a batch that `took` so long, while a read looks into `runs` runs of the version. Up to
/// `runs_max` not at all; beyond, it takes a share of the time that falls with the square of the runs, so that at twice as
/// many compactions have three quarters of it. It never stands still: there is no debt at which nothing would end the wait.
pub(crate) fn pause_for(took: Duration, runs: usize, runs_max: usize) -> Duration {
    let over = runs as f64 / runs_max.max(1) as f64;
    if over <= 1.0 {
        return Duration::ZERO;
    }
    took.mul_f64(over * over - 1.0).min(PAUSE_MAX)
}

/// Holds batches of a subtask back, one pause behind each; see [`pause_for`].
#[derive(Debug, Default)]
pub(crate) struct Slowdown {
    /// No batch is processed before.
    until: Moment,
    /// The batch whose turn it is waits for that and for nothing else.
    holds: bool,
}

impl Slowdown {
    /// A batch that took so long is done; reads look into `runs` runs.
    pub(crate) fn behind(&mut self, took: Duration, now: Moment, runs: usize, runs_max: usize) {
        // Of what it took, the pause before it is not to be counted again.
        let took = took.min(now.since(self.until));
        self.until = now + pause_for(took, runs, runs_max);
    }

    /// Nothing is held back as long as it is no batch's turn.
    pub(crate) fn let_go(&mut self) {
        self.holds = false;
    }

    /// Whether a batch whose turn it is must wait.
    pub(crate) fn holds(&mut self, now: Moment) -> bool {
        self.holds = now < self.until;
        self.holds
    }

    /// How long to sleep for the batch that is held back. Zero when its pause has ended since: nothing else need come to
    /// end the wait.
    pub(crate) fn left(&self, now: Moment) -> Option<Duration> {
        self.holds.then(|| self.until.since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_that_has_ended_since_it_was_looked_at_still_ends_the_wait() {
        let mut slowdown = Slowdown::default();
        slowdown.behind(Duration::from_millis(10), at(100), 24, 12);
        assert!(slowdown.holds(at(129)));
        assert_eq!(slowdown.left(at(129)), Some(Duration::from_millis(1)));
        assert_eq!([130, 131].map(|ms| slowdown.left(at(ms))), [Some(Duration::ZERO); 2]);
        slowdown.let_go();
        assert_eq!(slowdown.left(at(129)), None, "something else is waited for");
        assert!(!slowdown.holds(at(130)) && slowdown.left(at(130)).is_none());
        // It took 20 ms behind the last batch, 10 of which were the pause.
        slowdown.behind(Duration::from_millis(40), at(140), 24, 12);
        assert!(slowdown.holds(at(169)) && !slowdown.holds(at(170)));
    }

    #[test]
    fn the_more_runs_there_are_beyond_the_bound_the_longer_is_the_pause() {
        let of = |runs| pause_for(Duration::from_millis(10), runs, 12).as_millis();
        assert_eq!([0, 8, 12, 18, 24, 48].map(of), [0, 0, 0, 12, 30, 150]);
        assert_eq!(pause_for(Duration::from_secs(10), 24, 12), PAUSE_MAX);
        assert_eq!(pause_for(Duration::ZERO, 1_000, 12), Duration::ZERO);
    }

    fn at(ms: u64) -> Moment {
        Moment(Duration::from_millis(ms))
    }

    #[test]
    fn room_follows_the_rate_of_the_time_in_which_something_waits() {
        let mut pace = Pace::default();
        assert_eq!(pace.room(10, 50, 1_000), 50);
        // Nothing waited for the first 10 s: that says nothing.
        pace.begin(at(10_000));
        pace.passed(20, true, at(10_100));
        assert_eq!(pace.room(10, 50, 1_000), 50);
        pace.passed(20, false, at(10_200));
        assert_eq!(pace.room(10, 50, 1_000), 100, "200 rows a second");
        pace.begin(at(60_000));
        pace.passed(400, false, at(60_200));
        assert_eq!(pace.room(10, 50, 1_000), 550);
        pace.begin(at(70_000));
        for i in 1..=20 {
            pace.passed(1, true, at(70_000 + i * 1_000));
        }
        assert_eq!(pace.room(10, 50, 1_000), 10);
    }

    #[test]
    fn a_portion_does_not_grow_before_channels_of_unknown_pace_that_are_full() {
        let mut portion = Portion::new(32);
        portion.learn(32, (at(0), at(150)), Duration::from_millis(150), 1);
        assert_eq!(portion.rows(), 32);
        portion.learn(32, (at(150), at(300)), Duration::from_millis(150), 1);
        assert_eq!(portion.rows(), 106, "213 rows a second");
    }

    #[test]
    fn a_portion_is_what_goes_through_full_channels_in_a_moment() {
        let mut portion = Portion::new(32);
        let second = |n: u64| (at(n * 1_000), at((n + 1) * 1_000));
        assert_eq!(portion.rows(), 32, "nobody knows who comes behind it");
        (0..10).for_each(|_| portion.learn(10_000, second(0), Duration::from_millis(1), 1));
        assert_eq!(portion.rows(), 64, "channels may only not be full yet");
        (1..10).for_each(|n| portion.learn(10_000, second(n), Duration::from_millis(1), 1));
        assert_eq!(portion.rows(), 32 << 10, "nothing stood");
        portion.learn(10_000, second(11), Duration::from_millis(900), 1);
        assert_eq!(portion.rows(), 5_000);
        portion.learn(10_000, second(12), Duration::from_millis(900), 10);
        assert_eq!(portion.rows(), 500);
        portion.learn(1, (at(13_000), at(99_000)), Duration::from_secs(86), 10);
        assert!(portion.rows() < 500);
        for n in 100..120 {
            portion.learn(1, second(n), Duration::from_secs(1), 10);
        }
        assert_eq!(portion.rows(), 32);
        portion.learn(32, (at(200_000), at(200_001)), Duration::ZERO, 10);
        assert_eq!(portion.rows(), 64, "it grows again");
    }
}
