//! Whether the SSD tier is worth asking. Pure.
//!
//! A disk that fails or is slower than the object store would be must not make reads slower than they would be without it.
//! So what became of the last look-ups is kept; when too many of them were bad, the tier rests, longer each time, and is
//! then tried again. Look-ups that began before its rest was over say nothing more: a disk that stands still for a moment
//! makes hundreds of them bad at once.

use std::time::Duration;

use millstream_common::env::Moment;

/// What became of a look-up or a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Good,
    /// It took longer than the object store would have.
    Slow,
    Failed,
}

/// Outcomes that are looked at.
const WINDOW: u32 = 64;
/// So many bad ones of the last [`WINDOW`] are too many.
const TOO_MANY: u32 = 16;
const FIRST_REST: Duration = Duration::from_secs(10);
const LONGEST_REST: Duration = Duration::from_secs(300);

/// The health of the tier.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Health {
    /// A bit for each of the last outcomes: set when it was bad.
    bad: u64,
    seen: u32,
    rest: Duration,
    resting_until: Option<Moment>,
}

/// What a change of the health is, for who reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    /// The tier rests for so long.
    Rests(Duration),
    /// It was tried again and is well.
    Recovered,
}

impl Default for Health {
    fn default() -> Self {
        Self { bad: 0, seen: 0, rest: FIRST_REST, resting_until: None }
    }
}

impl Health {
    /// Whether the tier is to be used at `now`. After a rest it is: what happens then decides.
    pub(crate) fn is_usable(&self, now: Moment) -> bool {
        self.resting_until.is_none_or(|until| now >= until)
    }

    /// Takes note of the outcome of what began at `begun`.
    pub(crate) fn note(&mut self, outcome: Outcome, begun: Moment, now: Moment) -> Change {
        if !self.is_usable(begun) {
            return Change::None;
        }
        self.bad = self.bad << 1 | u64::from(outcome != Outcome::Good);
        self.seen = (self.seen + 1).min(WINDOW);
        if self.bad.count_ones() >= TOO_MANY {
            let rest = self.rest;
            *self = Self { bad: 0, seen: 0, rest: (rest * 2).min(LONGEST_REST), resting_until: Some(now + rest) };
            return Change::Rests(rest);
        }
        if self.resting_until.is_some() && self.seen == WINDOW {
            *self = Self::default();
            return Change::Recovered;
        }
        Change::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Moment {
        Moment(Duration::from_secs(s))
    }

    #[test]
    fn a_few_bad_ones_among_good_ones_are_nothing() {
        let mut health = Health::default();
        for n in 0..10_000 {
            let outcome = if n % 5 == 0 { Outcome::Failed } else { Outcome::Good };
            assert_eq!(health.note(outcome, at(n), at(n)), Change::None);
        }
        assert!(health.is_usable(at(10_000)));
    }

    #[test]
    fn it_rests_longer_each_time_and_recovers() {
        let mut health = Health::default();
        let fails = |health: &mut Health, now| {
            (0..TOO_MANY).map(|_| health.note(Outcome::Slow, at(now), at(now))).find(|c| *c != Change::None)
        };
        assert_eq!(fails(&mut health, 0), Some(Change::Rests(FIRST_REST)));
        assert!(!health.is_usable(at(9)) && health.is_usable(at(10)));
        assert_eq!(fails(&mut health, 10), Some(Change::Rests(FIRST_REST * 2)));
        assert!(!health.is_usable(at(29)));
        for n in 1..WINDOW {
            assert_eq!(health.note(Outcome::Good, at(30), at(30)), Change::None, "{n}");
        }
        assert_eq!(health.note(Outcome::Good, at(30), at(30)), Change::Recovered);
        assert_eq!(fails(&mut health, 40), Some(Change::Rests(FIRST_REST)));
    }

    #[test]
    fn what_began_before_its_rest_was_over_says_nothing() {
        let mut health = Health::default();
        // All of one stall.
        let rests: Vec<_> = (0..1_000).map(|_| health.note(Outcome::Slow, at(8), at(10))).collect();
        assert_eq!(rests.iter().filter(|c| **c == Change::Rests(FIRST_REST)).count(), 1);
        assert_eq!(rests.iter().filter(|c| **c == Change::None).count(), 999);
        // Nor do good ones end it.
        (0..1_000).for_each(|_| assert_eq!(health.note(Outcome::Good, at(8), at(11)), Change::None));
        assert!(!health.is_usable(at(19)) && health.is_usable(at(20)));
        // One that comes late, and its successors, which count.
        assert_eq!(health.note(Outcome::Slow, at(8), at(21)), Change::None);
        let again: Vec<_> = (0..TOO_MANY).map(|_| health.note(Outcome::Slow, at(20), at(22))).collect();
        assert_eq!(again.last(), Some(&Change::Rests(FIRST_REST * 2)));
    }
}
