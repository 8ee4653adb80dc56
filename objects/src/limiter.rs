//! How many requests a second go to a store that throttles: one limiter for each opened store, shared by all its handles.
//!
//! There is no limit until the store refuses more than one request in twenty; fewer are mishaps, which repetition mends.
//! Then reads and writes each have one of their own (stores count them apart): it falls to seven tenths of what was being
//! sent (multiplicative decrease), and grows by a twentieth of that each second in which somebody had to wait (additive
//! increase), by a fifth when nothing was refused for five seconds: the trouble is over. Answers to requests that were sent
//! before a decrease say nothing about the new limit. A limit that nobody has met for a minute goes away.
//!
//! Requests get turns in the order in which they ask; who waits when a limit falls asks again when its old turn comes. What is urgent
//! (version records, leader records, definitions of jobs: a few requests a second at most) never waits here, so a commit
//! does not stand behind bulk reads; it counts all the same.
//!
//! It holds no request and no task: whoever waits sleeps in its own future. All time is handed in, so a seed repeats it.

use std::time::Duration;

use millstream_common::env::Moment;
use parking_lot::Mutex;

use crate::meter::Operation;

/// A limit falls to this share of the rate that the store refused.
const DECREASE: f64 = 0.7;
/// A limit grows by this share of its last fallen value each second.
const INCREASE: f64 = 0.05;
/// When the store has refused nothing for this long, a limit grows by this share of itself each second.
const CALM: Duration = Duration::from_secs(5);
const INCREASE_CALM: f64 = 0.2;
/// A limit falls when this share of the answers were refusals.
const REFUSED: f64 = 0.05;
/// The weight of one answer in that share: it is about the last hundred.
const WEIGHT: f64 = 0.01;
/// No limit is below this, requests a second.
const LEAST: f64 = 2.0;
/// Who comes after a pause may send what this time allows at once.
const BURST: Duration = Duration::from_millis(100);
/// A limit goes away when it has delayed nobody, and the store has refused nothing, for this long.
const FORGET: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// What stores count apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestClass {
    Read,
    Write,
}

impl RequestClass {
    pub(crate) fn of(operation: Operation) -> Self {
        match operation {
            Operation::Get | Operation::Head | Operation::List => Self::Read,
            Operation::Put | Operation::Delete | Operation::Copy => Self::Write,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "reads",
            Self::Write => "writes",
        }
    }
}

/// How hard an answer says that the store is pressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pressure {
    /// It says nothing about that.
    #[default]
    None,
    /// It failed inside (500, 502, 504), which may be a sign of too much work.
    Failing,
    /// The store asks for fewer requests (503 SlowDown, 429).
    Throttled,
}

/// A place in the row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Turn {
    /// To be slept before the request goes.
    pub(crate) wait: Duration,
    /// When it has changed since, the turn is void.
    round: u64,
    /// The limit as it is, requests a second.
    pub(crate) limit: Option<f64>,
}

/// How a limit has changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Changed {
    /// Requests a second; `None`: there is no limit any more.
    pub(crate) per_s: Option<f64>,
    /// There was none before.
    pub(crate) first: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    read: Mutex<Class>,
    write: Mutex<Class>,
}

#[derive(Debug, Default)]
struct Class {
    /// Requests a second; `None` as long as the store has not refused.
    limit: Option<f64>,
    /// When the next who asks may go.
    next: Moment,
    /// Rises with each decrease.
    round: u64,
    decreased: Moment,
    /// The limit after the last decrease.
    fallen: f64,
    grown: Moment,
    /// When somebody last had to wait.
    held: Moment,
    /// When the store last refused.
    refused_at: Moment,
    /// The share of refusals among the last answers, since the last decrease.
    refused: f64,
    /// The start of the second that is being counted, what was sent in it, and the rate of the one before.
    second: Moment,
    sent: u32,
    rate: f64,
}

impl Limiter {
    fn class(&self, class: RequestClass) -> &Mutex<Class> {
        match class {
            RequestClass::Read => &self.read,
            RequestClass::Write => &self.write,
        }
    }

    /// The next turn of `class`.
    pub(crate) fn turn(&self, class: RequestClass, now: Moment) -> Turn {
        let mut c = self.class(class).lock();
        let Some(limit) = c.limit else { return Turn { wait: Duration::ZERO, round: c.round, limit: None } };
        let at = c.next.max(Moment(now.0.saturating_sub(BURST)));
        c.next = at + Duration::from_secs_f64(1.0 / limit);
        let wait = at.since(now);
        if !wait.is_zero() {
            c.held = now;
        }
        Turn { wait, round: c.round, limit: c.limit }
    }

    /// The present limit of `class`, requests a second; `None`: there is none.
    pub(crate) fn limit(&self, class: RequestClass) -> Option<f64> {
        self.class(class).lock().limit
    }

    /// Whether a turn still holds after its wait.
    pub(crate) fn holds(&self, class: RequestClass, turn: Turn) -> bool {
        self.class(class).lock().round == turn.round
    }

    /// A request goes.
    pub(crate) fn sent(&self, class: RequestClass, now: Moment) {
        let mut c = self.class(class).lock();
        let elapsed = now.since(c.second);
        if elapsed >= SECOND {
            c.rate = f64::from(c.sent) / elapsed.as_secs_f64();
            c.second = now;
            c.sent = 0;
        }
        c.sent = c.sent.saturating_add(1);
    }

    /// An answer came that was no refusal.
    pub(crate) fn served(&self, class: RequestClass, now: Moment) -> Option<Changed> {
        let mut c = self.class(class).lock();
        c.refused *= 1.0 - WEIGHT;
        let limit = c.limit?;
        if now.since(c.grown) < SECOND {
            return None;
        }
        c.grown = now;
        if now.since(c.held) < SECOND * 2 {
            let calm = now.since(c.refused_at) >= CALM;
            c.limit = Some(limit + if calm { limit * INCREASE_CALM } else { (c.fallen * INCREASE).max(0.5) });
        } else if now.since(c.decreased.max(c.held)) >= FORGET {
            c.limit = None;
        } else {
            return None;
        }
        Some(Changed { per_s: c.limit, first: false })
    }

    /// The store refused a request that was sent at `sent_at`; after a decrease nobody goes for `quiet`.
    pub(crate) fn refused(
        &self,
        class: RequestClass,
        sent_at: Moment,
        now: Moment,
        quiet: Duration,
    ) -> Option<Changed> {
        let mut c = self.class(class).lock();
        if c.limit.is_some() && sent_at < c.decreased {
            return None;
        }
        c.refused += WEIGHT * (1.0 - c.refused);
        c.refused_at = now;
        if c.refused <= REFUSED {
            return None;
        }
        let first = c.limit.is_none();
        let sending = c.rate.max(f64::from(c.sent));
        let limit = (c.limit.unwrap_or(sending).min(sending) * DECREASE).max(LEAST);
        c.limit = Some(limit);
        c.fallen = limit;
        c.refused = 0.0;
        c.decreased = now;
        c.grown = now;
        c.round += 1;
        c.next = now + quiet;
        c.held = now;
        Some(Changed { per_s: c.limit, first })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: RequestClass = RequestClass::Read;
    const QUIET: Duration = Duration::from_millis(100);

    fn at(ms: u64) -> Moment {
        Moment(Duration::from_millis(ms))
    }

    /// Six refusals in a row; what the last one changes.
    fn refuse(limiter: &Limiter, sent_ms: u64, now_ms: u64) -> Option<Changed> {
        for _ in 0..5 {
            assert_eq!(limiter.refused(READ, at(sent_ms), at(now_ms), QUIET), None, "five are mishaps");
        }
        limiter.refused(READ, at(sent_ms), at(now_ms), QUIET)
    }

    /// A limiter that was refused while it sent 100 reads a second.
    fn limited() -> Limiter {
        let limiter = Limiter::default();
        for i in 0..100 {
            limiter.sent(READ, at(10_000 + i * 10));
        }
        let changed = refuse(&limiter, 10_990, 11_000);
        assert!(
            matches!(changed, Some(Changed { per_s: Some(limit), first: true }) if (69.0..71.0).contains(&limit)),
            "{changed:?}"
        );
        limiter
    }

    #[test]
    fn nobody_waits_until_the_store_refuses_and_writes_do_not_for_reads() {
        let fresh = Limiter::default();
        assert!((0..10_000).all(|_| fresh.turn(READ, at(0)).wait.is_zero()));
        assert!(limited().turn(RequestClass::Write, at(11_000)).wait.is_zero());
    }

    #[test]
    fn turns_come_at_the_limit_and_in_order() {
        let limiter = limited();
        let waits: Vec<_> = (0..71).map(|_| limiter.turn(READ, at(11_000)).wait).collect();
        assert_eq!(waits[0], QUIET);
        assert!(waits.is_sorted() && waits[70] > QUIET + Duration::from_millis(950), "{:?}", waits[70]);
        // After a pause a tenth of a second's worth may go at once.
        let free = (0..100).filter(|_| limiter.turn(READ, at(20_000)).wait.is_zero()).count();
        assert!((7..=8).contains(&free), "{free}");
    }

    #[test]
    fn answers_to_what_was_sent_before_a_decrease_change_nothing() {
        let limiter = limited();
        let turn = limiter.turn(READ, at(11_000));
        assert_eq!(refuse(&limiter, 10_995, 11_100), None);
        assert!(limiter.holds(READ, turn));
        let again = refuse(&limiter, 11_050, 11_200);
        assert!(matches!(again, Some(Changed { per_s: Some(limit), first: false }) if limit < 50.0), "{again:?}");
        assert!(!limiter.holds(READ, turn), "who waits must get a new turn");
    }

    #[test]
    fn it_grows_slowly_while_somebody_waits_and_is_forgotten_when_nobody_does() {
        let limiter = limited();
        let mut grown = Vec::new();
        for second in 0..12 {
            let now = at(11_000 + second * 1_000);
            while limiter.turn(READ, now).wait.is_zero() {}
            grown.extend(limiter.served(READ, now).and_then(|c| c.per_s));
        }
        assert!(grown.is_sorted() && grown.len() == 11, "{grown:?}");
        assert!((80.0..90.0).contains(&grown[3]), "a twentieth each second: {grown:?}");
        assert!((200.0..350.0).contains(&grown[10]), "then a fifth: {grown:?}");
        assert_eq!(limiter.served(READ, at(60_000)), None);
        assert_eq!(limiter.served(READ, at(95_000)), Some(Changed { per_s: None, first: false }));
        assert!(limiter.turn(READ, at(95_000)).wait.is_zero());
    }

    #[test]
    fn few_refusals_are_mishaps_and_no_limit_falls_to_nothing() {
        let limiter = Limiter::default();
        for i in 0..10_000 {
            limiter.sent(READ, at(i));
            assert_eq!(limiter.served(READ, at(i)), None);
            if i % 40 == 0 {
                assert_eq!(limiter.refused(READ, at(i), at(i), QUIET), None, "{i}");
            }
        }
        let idle = Limiter::default();
        idle.sent(READ, at(0));
        assert_eq!(refuse(&idle, 0, 1), Some(Changed { per_s: Some(LEAST), first: true }));
    }
}
