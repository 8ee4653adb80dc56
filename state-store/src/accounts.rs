//! What the store of a job did, by task: requests, bytes written, compactions, how long GETs took.
//!
//! Every run belongs to one task, so each GET of a run, and each request of a compaction, is counted for that task. A bundle
//! is one PUT for the sections of all tasks: the request is counted as shared, whoever has a section in it; the bytes of each
//! section are those of its task. Nothing here is an estimate.
//!
//! Counted once for a request, a bundle or a compaction, never for an entry. It decides nothing.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millstream_common::TaskId;
use millstream_common::latency::Latencies;
use millstream_objects::{Metered, Purpose, Store};
use parking_lot::Mutex;

/// What was done for one task. Addable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskUse {
    /// Requests for its runs alone: reads, and all of compactions.
    pub requests: Metered,
    /// What was written for it.
    pub written: TaskWrites,
}

/// What was written for one task, and merged. Addable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskWrites {
    /// Bytes of its sections in bundles.
    pub flushed_bytes: u64,
    /// Entries of these.
    pub flushed_entries: u64,
    /// Compactions that have ended well.
    pub compactions: u64,
    /// Stored bytes of the blocks that these merged.
    pub compaction_bytes_in: u64,
    /// Bytes that compactions wrote, those included that failed later.
    pub compaction_bytes_out: u64,
}

impl AddAssign for TaskWrites {
    fn add_assign(&mut self, other: Self) {
        self.flushed_bytes += other.flushed_bytes;
        self.flushed_entries += other.flushed_entries;
        self.compactions += other.compactions;
        self.compaction_bytes_in += other.compaction_bytes_in;
        self.compaction_bytes_out += other.compaction_bytes_out;
    }
}

impl AddAssign<&TaskUse> for TaskUse {
    fn add_assign(&mut self, other: &TaskUse) {
        self.requests += &other.requests;
        self.written += other.written;
    }
}

/// How requests for state went. Addable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestUse {
    /// Bundles that were written.
    pub bundles: u64,
    /// GETs that were sent a second time because the first one was slow.
    pub hedged: u64,
    /// Plans that had to make do with fewer GETs than may go at once, since the budget of GETs a second was used up.
    pub over_budget: u64,
    /// Blocks that warm-ups brought.
    pub warmed_blocks: u64,
    /// How long GETs waited for a place among those in flight, summed.
    pub queued: Duration,
    /// How long GETs took that somebody may wait for (reads and warm-ups), from their sending to the end of the body;
    /// waits for the limiter and repetitions are in it.
    pub gets: Latencies,
    /// The same for those of compactions.
    pub compaction_gets: Latencies,
}

impl AddAssign<&RequestUse> for RequestUse {
    fn add_assign(&mut self, other: &RequestUse) {
        self.bundles += other.bundles;
        self.hedged += other.hedged;
        self.over_budget += other.over_budget;
        self.warmed_blocks += other.warmed_blocks;
        self.queued += other.queued;
        self.gets += &other.gets;
        self.compaction_gets += &other.compaction_gets;
    }
}

/// What the store of a job did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreUse {
    /// By task.
    pub tasks: BTreeMap<TaskId, TaskUse>,
    /// Requests that served several tasks at once: bundles.
    pub shared: Metered,
    /// How requests went.
    pub requests: RequestUse,
}

struct Task {
    /// The job's place, with this task's account.
    store: Store,
    written: TaskWrites,
}

/// See the module.
pub(crate) struct Accounts {
    /// The job's place, with the account of what is shared; part of the job's, as are those of the tasks.
    shared: Store,
    whole: Store,
    tasks: Mutex<BTreeMap<TaskId, Task>>,
    latencies: Mutex<(Latencies, Latencies)>,
    bundles: AtomicU64,
    over_budget: AtomicU64,
    warmed_blocks: AtomicU64,
    queued_us: AtomicU64,
}

impl Accounts {
    pub(crate) fn new(whole: Store) -> Self {
        Self {
            shared: part_of(&whole),
            whole,
            tasks: Mutex::default(),
            latencies: Mutex::default(),
            bundles: AtomicU64::new(0),
            over_budget: AtomicU64::new(0),
            warmed_blocks: AtomicU64::new(0),
            queued_us: AtomicU64::new(0),
        }
    }

    /// The job's place, counted for all tasks together.
    pub(crate) fn shared(&self) -> &Store {
        &self.shared
    }

    /// The job's place, counted for one task.
    pub(crate) fn of(&self, task: TaskId) -> Store {
        self.with(task, |t| t.store.clone())
    }

    fn with<T>(&self, task: TaskId, act: impl FnOnce(&mut Task) -> T) -> T {
        let mut tasks = self.tasks.lock();
        act(tasks.entry(task).or_insert_with(|| Task { store: part_of(&self.whole), written: TaskWrites::default() }))
    }

    pub(crate) fn bundle(&self) {
        self.bundles.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn wrote(&self, task: TaskId, written: TaskWrites) {
        self.with(task, |t| t.written += written);
    }

    pub(crate) fn over_budget(&self) {
        self.over_budget.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn warmed(&self, blocks: usize) {
        self.warmed_blocks.fetch_add(blocks as u64, Ordering::Relaxed);
    }

    pub(crate) fn got(&self, purpose: Purpose, queued: Duration, took: Duration) {
        self.queued_us.fetch_add(queued.as_micros() as u64, Ordering::Relaxed);
        let mut latencies = self.latencies.lock();
        let of = if purpose == Purpose::Compaction { &mut latencies.1 } else { &mut latencies.0 };
        of.note(took);
    }

    /// What was counted so far; `hedged` is counted elsewhere.
    pub(crate) fn snapshot(&self, hedged: u64) -> StoreUse {
        let of = |t: &Task| TaskUse { requests: t.store.meter().snapshot(), written: t.written };
        let (gets, compaction_gets) = *self.latencies.lock();
        StoreUse {
            tasks: self.tasks.lock().iter().map(|(id, t)| (*id, of(t))).collect(),
            shared: self.shared.meter().snapshot(),
            requests: RequestUse {
                bundles: self.bundles.load(Ordering::Relaxed),
                hedged,
                over_budget: self.over_budget.load(Ordering::Relaxed),
                warmed_blocks: self.warmed_blocks.load(Ordering::Relaxed),
                queued: Duration::from_micros(self.queued_us.load(Ordering::Relaxed)),
                gets,
                compaction_gets,
            },
        }
    }
}

fn part_of(whole: &Store) -> Store {
    whole.with_meter(whole.meter().part())
}
