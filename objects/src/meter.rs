//! What the requests to a store were: how many of each operation, for what purpose, how many bytes, and what they would
//! cost on S3.
//!
//! An attempt is counted when it is sent, so a repeated request counts as often as it was sent. A store is counted
//! where it is called: what the store's own client sends besides (credentials) is not. An upload in parts counts a put
//! for its beginning, for each part and for its end, as stores bill it.

use std::collections::BTreeMap;
use std::ops::{Add, AddAssign};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::limiter::RequestClass;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Reads an object or a range of it.
    Get,
    /// Writes an object.
    Put,
    /// Names the objects below a prefix; one for each 1,000 names.
    List,
    /// Asks for the size of an object.
    Head,
    /// Deletes an object.
    Delete,
    /// Copies an object inside the store.
    Copy,
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// The job's own reads and writes of its state: bundles and SSTs.
    State,
    /// Reads and writes of compaction.
    Compaction,
    /// Version records.
    Version,
    /// Leader election and fencing.
    Leader,
    /// What belongs to a job besides: its plan, its configuration.
    Job,
    /// The proof that everything is there (fsck).
    Check,
    /// Output of sinks.
    Output,
}

impl Operation {
    /// All of them, in order.
    pub const ALL: [Self; 6] = [Self::Get, Self::Put, Self::List, Self::Head, Self::Delete, Self::Copy];

    /// Its name in metrics: `get`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::List => "list",
            Self::Head => "head",
            Self::Delete => "delete",
            Self::Copy => "copy",
        }
    }

    /// What S3 Standard asks for a million of them, in US dollars.
    #[must_use]
    pub fn usd_per_million(self) -> f64 {
        match self {
            Self::Put | Self::List | Self::Copy => 5.0,
            Self::Get | Self::Head => 0.4,
            Self::Delete => 0.0,
        }
    }
}

impl Purpose {
    /// Whether its requests go at once, also while the store throttles: few requests that much waits for.
    #[must_use]
    pub fn is_urgent(self) -> bool {
        matches!(self, Self::Version | Self::Leader | Self::Job)
    }

    /// All of them, in order.
    pub const ALL: [Self; 7] =
        [Self::State, Self::Compaction, Self::Version, Self::Leader, Self::Job, Self::Check, Self::Output];

    /// Its name in metrics: `state`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Compaction => "compaction",
            Self::Version => "version",
            Self::Leader => "leader",
            Self::Job => "job",
            Self::Check => "check",
            Self::Output => "output",
        }
    }
}

const OPERATIONS: usize = Operation::ALL.len();
const PURPOSES: usize = Purpose::ALL.len();

/// An account of requests. Cheap to clone; clones share the account.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    own: Arc<Counters>,
    /// The accounts that this one is a part of.
    above: Arc<[Arc<Counters>]>,
}

#[derive(Debug, Default)]
struct Counters {
    requests: [[AtomicU64; PURPOSES]; OPERATIONS],
    bytes: [[AtomicU64; PURPOSES]; OPERATIONS],
    retries: AtomicU64,
    throttled: AtomicU64,
    limiter_wait_us: AtomicU64,
    /// Requests a second; 0 for none.
    limits: [AtomicU64; 2],
}

impl Meter {
    /// An empty account.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A new account that is a part of this one: what it counts, this one counts, too.
    #[must_use]
    pub fn part(&self) -> Self {
        let above = std::iter::once(&self.own).chain(self.above.iter()).cloned().collect();
        Self { own: Arc::default(), above }
    }

    fn accounts(&self) -> impl Iterator<Item = &Counters> {
        std::iter::once(&*self.own).chain(self.above.iter().map(|a| &**a))
    }

    /// What was counted so far.
    #[must_use]
    pub fn snapshot(&self) -> Metered {
        let n = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &*self.own;
        let limit = |class: RequestClass| Some(n(&counters.limits[class as usize])).filter(|limit| *limit > 0);
        let mut out = Metered {
            retries: n(&counters.retries),
            throttled: n(&counters.throttled),
            limiter_wait_us: n(&counters.limiter_wait_us),
            reads_per_s_max: limit(RequestClass::Read),
            writes_per_s_max: limit(RequestClass::Write),
            ..Metered::default()
        };
        for operation in Operation::ALL {
            for purpose in Purpose::ALL {
                let cell = (operation as usize, purpose as usize);
                let tally = Tally {
                    requests: n(&counters.requests[cell.0][cell.1]),
                    bytes: n(&counters.bytes[cell.0][cell.1]),
                };
                if tally != Tally::default() {
                    out.add_tally(operation, purpose, tally);
                }
            }
        }
        out
    }

    pub(crate) fn count_requests(&self, operation: Operation, purpose: Purpose, requests: u64) {
        self.count(requests, |c| &c.requests[operation as usize][purpose as usize]);
    }

    pub(crate) fn count_bytes(&self, operation: Operation, purpose: Purpose, bytes: u64) {
        self.count(bytes, |c| &c.bytes[operation as usize][purpose as usize]);
    }

    pub(crate) fn count_retry(&self) {
        self.count(1, |c| &c.retries);
    }

    pub(crate) fn count_throttled(&self) {
        self.count(1, |c| &c.throttled);
    }

    pub(crate) fn count_wait(&self, waited: Duration) {
        self.count(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX), |c| &c.limiter_wait_us);
    }

    pub(crate) fn show_limit(&self, class: RequestClass, per_s: Option<f64>) {
        let shown = shown_limit(per_s).unwrap_or(0);
        self.accounts().for_each(|c| c.limits[class as usize].store(shown, Ordering::Relaxed));
    }

    fn count(&self, n: u64, counter: impl Fn(&Counters) -> &AtomicU64) {
        for account in self.accounts() {
            counter(account).fetch_add(n, Ordering::Relaxed);
        }
    }
}

/// Rounded up: a limit below 1 must not look like none.
pub(crate) fn shown_limit(per_s: Option<f64>) -> Option<u64> {
    per_s.map(|limit| limit.ceil() as u64)
}

/// Requests of one operation for one purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many were sent.
    pub requests: u64,
    /// The bytes of their bodies: sent by puts, received by gets.
    pub bytes: u64,
}

/// What a [`Meter`] had counted at one moment. Plain data; adding two gives the sum of both accounts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metered {
    /// Requests that read an object or a range.
    pub get: u64,
    /// Requests that wrote an object.
    pub put: u64,
    /// Requests that listed up to 1,000 names.
    pub list: u64,
    /// Requests that asked for a size.
    pub head: u64,
    /// Requests that deleted an object.
    pub delete: u64,
    /// Requests that copied an object.
    pub copy: u64,
    /// Bytes received by gets.
    pub bytes_read: u64,
    /// Bytes sent by puts.
    pub bytes_written: u64,
    /// How many of the requests repeated one that had failed.
    pub retries: u64,
    /// How many were answered by a refusal that asks for fewer requests (503 SlowDown, 429).
    pub throttled: u64,
    /// How long requests waited for their turn while the store throttled, microseconds, summed.
    pub limiter_wait_us: u64,
    /// The present limit of reads (get, head, list), requests a second; `None`: the store does not throttle. Of several
    /// accounts the least.
    pub reads_per_s_max: Option<u64>,
    /// The same for writes (put, delete, copy).
    pub writes_per_s_max: Option<u64>,
    /// Requests and bytes by operation and purpose; what never happened is absent.
    pub table: BTreeMap<(Operation, Purpose), Tally>,
}

impl Metered {
    /// All requests.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.get + self.put + self.list + self.head + self.delete + self.copy
    }

    /// The requests of `operation` for `purpose`.
    #[must_use]
    pub fn tally(&self, operation: Operation, purpose: Purpose) -> Tally {
        self.table.get(&(operation, purpose)).copied().unwrap_or_default()
    }

    /// What the requests cost at S3 Standard's prices, in US dollars. Storage and traffic are not in it.
    #[must_use]
    pub fn usd(&self) -> f64 {
        self.table.iter().map(|((o, _), t)| t.requests as f64 * o.usd_per_million() / 1e6).sum()
    }

    /// What was counted after `earlier`, a snapshot of the same meter.
    #[must_use]
    pub fn since(&self, earlier: &Metered) -> Metered {
        let mut out = Metered {
            retries: self.retries.saturating_sub(earlier.retries),
            throttled: self.throttled.saturating_sub(earlier.throttled),
            limiter_wait_us: self.limiter_wait_us.saturating_sub(earlier.limiter_wait_us),
            reads_per_s_max: self.reads_per_s_max,
            writes_per_s_max: self.writes_per_s_max,
            ..Metered::default()
        };
        for (&(operation, purpose), now) in &self.table {
            let before = earlier.tally(operation, purpose);
            let tally = Tally {
                requests: now.requests.saturating_sub(before.requests),
                bytes: now.bytes.saturating_sub(before.bytes),
            };
            if tally != Tally::default() {
                out.add_tally(operation, purpose, tally);
            }
        }
        out
    }

    /// Adds requests that were counted elsewhere, for instance in another process.
    pub fn add_tally(&mut self, operation: Operation, purpose: Purpose, tally: Tally) {
        let cell = self.table.entry((operation, purpose)).or_default();
        cell.requests += tally.requests;
        cell.bytes += tally.bytes;
        match operation {
            Operation::Get => {
                self.get += tally.requests;
                self.bytes_read += tally.bytes;
            }
            Operation::Put => {
                self.put += tally.requests;
                self.bytes_written += tally.bytes;
            }
            Operation::List => self.list += tally.requests,
            Operation::Head => self.head += tally.requests,
            Operation::Delete => self.delete += tally.requests,
            Operation::Copy => self.copy += tally.requests,
        }
    }
}

impl AddAssign<&Metered> for Metered {
    fn add_assign(&mut self, other: &Metered) {
        self.retries += other.retries;
        self.throttled += other.throttled;
        self.limiter_wait_us += other.limiter_wait_us;
        self.reads_per_s_max = least(self.reads_per_s_max, other.reads_per_s_max);
        self.writes_per_s_max = least(self.writes_per_s_max, other.writes_per_s_max);
        for (&(operation, purpose), &tally) in &other.table {
            self.add_tally(operation, purpose, tally);
        }
    }
}

fn least(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    [a, b].into_iter().flatten().min()
}

impl Add for Metered {
    type Output = Metered;
    fn add(mut self, other: Metered) -> Metered {
        self += &other;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_add_up_and_subtract() {
        let (a, b) = (Meter::new(), Meter::new());
        a.count_requests(Operation::Put, Purpose::State, 2);
        a.count_bytes(Operation::Put, Purpose::State, 100);
        a.count_requests(Operation::Get, Purpose::State, 1_000);
        let earlier = a.snapshot();
        a.count_requests(Operation::Put, Purpose::Version, 1);
        a.count_retry();
        a.count_throttled();
        a.count_wait(Duration::from_millis(3));
        a.show_limit(RequestClass::Read, Some(69.2));
        b.show_limit(RequestClass::Read, Some(700.0));
        b.count_requests(Operation::Delete, Purpose::Check, 5);
        let sum = a.snapshot() + b.snapshot();
        assert_eq!((sum.put, sum.get, sum.delete, sum.bytes_written, sum.retries), (3, 1_000, 5, 100, 1));
        assert_eq!(sum.requests(), 1_008);
        assert!((sum.usd() - (3.0 * 5.0 + 1_000.0 * 0.4) / 1e6).abs() < 1e-12);
        assert_eq!((sum.throttled, sum.limiter_wait_us), (1, 3_000));
        assert_eq!((sum.reads_per_s_max, sum.writes_per_s_max), (Some(70), None));
        b.show_limit(RequestClass::Read, None);
        assert_eq!(b.snapshot().reads_per_s_max, None);
        let later = a.snapshot().since(&earlier);
        assert_eq!((later.throttled, later.reads_per_s_max), (1, Some(70)));
        assert_eq!((later.put, later.get, later.bytes_written, later.retries), (1, 0, 0, 1));
        assert_eq!(later.tally(Operation::Put, Purpose::Version).requests, 1);
        assert_eq!(later.table.len(), 1);
    }

    #[test]
    fn a_part_counts_in_the_whole_and_not_in_its_sister() {
        let whole = Meter::new();
        let (a, b) = (whole.part(), whole.part());
        let deep = a.part();
        deep.count_requests(Operation::Get, Purpose::State, 3);
        b.count_requests(Operation::Get, Purpose::Compaction, 2);
        b.count_bytes(Operation::Get, Purpose::Compaction, 20);
        whole.count_requests(Operation::Put, Purpose::State, 1);
        b.count_retry();
        let count = |m: &Meter| (m.snapshot().get, m.snapshot().put, m.snapshot().retries, m.snapshot().bytes_read);
        assert_eq!([&deep, &a, &b, &whole].map(count), [(3, 0, 0, 0), (3, 0, 0, 0), (2, 0, 1, 20), (5, 1, 1, 20)]);
    }
}
