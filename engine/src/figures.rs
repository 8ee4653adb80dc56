//! What a job did, as numbers: on one process, or added up over all of them.
//!
//! Workers tell the coordinator, which adds up for `status`; each process shows its own. Both take the figures from here, so
//! that they mean the same. Plain data: no clock, no lock, no label that grows with the data.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::time::Duration;

use millstream_common::latency::Latencies;
use millstream_objects::{Metered, Operation, Purpose, Tally};
use millstream_proto::control::{self, OperatorStore, ReadCounters, RequestTally, StoreCounters};
use millstream_state_store::{ReadReport, RequestUse, TaskUse, TaskWrites};

/// The operator of what served several operators at once, or the job as a whole: bundles, version records.
pub const SHARED: &str = "";

/// What a job asked of the object store, wrote to it and merged in it. Addable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreFigures {
    /// By operator (the uid of its task); [`SHARED`].
    pub operators: BTreeMap<String, TaskUse>,
    /// How requests went.
    pub requests: RequestUse,
    /// The present limits of reads and writes a second while the store throttles; of several processes the least.
    pub limits_per_s: (Option<u64>, Option<u64>),
}

/// What an operator did on a process. Addable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperatorFigures {
    /// Subtasks that run.
    pub subtasks: u64,
    /// Bytes of state in their memory.
    pub memory_bytes: u64,
    /// Those of them that the store does not hold yet.
    pub dirty_bytes: u64,
    /// Rows that came in.
    pub rows_in: u64,
    /// Rows that went out.
    pub rows_out: u64,
    /// Rows that came too late.
    pub late_rows: u64,
    /// Time of processing, summed over subtasks.
    pub busy: Duration,
    /// Time of waiting for receivers.
    pub back_pressured: Duration,
    /// Time of waiting for state.
    pub state_wait: Duration,
    /// Time in which they held back so that compactions catch up.
    pub merge_wait: Duration,
    /// What its reads cost.
    pub reads: ReadFigures,
}

/// What the reads of an operator cost, from the working set down. Addable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadFigures {
    /// Keys that batches named: the distinct ones of each.
    pub named: u64,
    /// Those of them that were asked of the store: all others were in the working set, on their way, or known to be absent.
    pub asked: u64,
    /// What those cost.
    pub report: ReadReport,
}

/// What was written to a sink. Addable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkFigures {
    /// Rows that its writers were given, those of failed epochs included.
    pub rows: u64,
    /// Bytes of them; `None`: the sink does not tell.
    pub bytes: Option<u64>,
    /// Transactions that were begun, or wait until it is known that they were committed; `None`: the sink has none.
    pub open_transactions: Option<u64>,
    /// How long commits took, from the moment when a worker heard that their version is durable.
    pub commits: Latencies,
}

/// What a job did on a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFigures {
    /// The job that the binary contains.
    pub job: String,
    /// Its id.
    pub id: String,
    /// By uid of the task.
    pub operators: BTreeMap<String, OperatorFigures>,
    /// What it asked of the object store.
    pub store: StoreFigures,
}

impl StoreFigures {
    /// Requests that served no operator alone.
    #[must_use]
    pub fn of_shared(requests: Metered) -> Self {
        let used = TaskUse { requests, written: TaskWrites::default() };
        Self { operators: BTreeMap::from([(SHARED.to_owned(), used)]), ..Self::default() }
    }

    /// All requests.
    #[must_use]
    pub fn total(&self) -> Metered {
        self.operators.values().fold(Metered::default(), |mut sum, used| {
            sum += &used.requests;
            sum
        })
    }

    /// What was written for all operators.
    #[must_use]
    pub fn written(&self) -> TaskWrites {
        self.operators.values().fold(TaskWrites::default(), |mut sum, used| {
            sum += used.written;
            sum
        })
    }

    /// The same without what holds only now.
    #[must_use]
    pub fn over(mut self) -> Self {
        self.limits_per_s = (None, None);
        self
    }
}

impl AddAssign<&StoreFigures> for StoreFigures {
    fn add_assign(&mut self, other: &StoreFigures) {
        for (operator, used) in &other.operators {
            *self.operators.entry(operator.clone()).or_default() += used;
        }
        self.requests += &other.requests;
        let least = |a: Option<u64>, b: Option<u64>| [a, b].into_iter().flatten().min();
        self.limits_per_s.0 = least(self.limits_per_s.0, other.limits_per_s.0);
        self.limits_per_s.1 = least(self.limits_per_s.1, other.limits_per_s.1);
    }
}

impl AddAssign for ReadFigures {
    fn add_assign(&mut self, other: Self) {
        self.named += other.named;
        self.asked += other.asked;
        self.report += other.report;
    }
}

impl AddAssign<&SinkFigures> for SinkFigures {
    fn add_assign(&mut self, other: &SinkFigures) {
        let sum = |a: Option<u64>, b: Option<u64>| a.map_or(b, |a| Some(a + b.unwrap_or(0)));
        self.rows += other.rows;
        self.bytes = sum(self.bytes, other.bytes);
        self.open_transactions = sum(self.open_transactions, other.open_transactions);
        self.commits += &other.commits;
    }
}

impl OperatorFigures {
    /// The same without what holds only now.
    #[must_use]
    pub fn over(self) -> Self {
        Self { subtasks: 0, memory_bytes: 0, dirty_bytes: 0, ..self }
    }
}

impl AddAssign for OperatorFigures {
    fn add_assign(&mut self, other: Self) {
        self.subtasks += other.subtasks;
        self.memory_bytes += other.memory_bytes;
        self.dirty_bytes += other.dirty_bytes;
        self.rows_in += other.rows_in;
        self.rows_out += other.rows_out;
        self.late_rows += other.late_rows;
        self.busy += other.busy;
        self.back_pressured += other.back_pressured;
        self.state_wait += other.state_wait;
        self.merge_wait += other.merge_wait;
        self.reads += other.reads;
    }
}

impl JobFigures {
    /// The same without what holds only now.
    #[must_use]
    pub fn over(mut self) -> Self {
        self.store = self.store.over();
        self.operators.values_mut().for_each(|o| *o = o.over());
        self
    }
}

impl AddAssign<&JobFigures> for JobFigures {
    fn add_assign(&mut self, other: &JobFigures) {
        for (operator, figures) in &other.operators {
            *self.operators.entry(operator.clone()).or_default() += *figures;
        }
        self.store += &other.store;
    }
}

// ---- as messages

pub(crate) fn store_to_proto(figures: &StoreFigures) -> StoreCounters {
    let r = &figures.requests;
    StoreCounters {
        operators: figures.operators.iter().map(|(operator, used)| operator_to_proto(operator, used)).collect(),
        bundles: r.bundles,
        hedged: r.hedged,
        over_budget: r.over_budget,
        warmed_blocks: r.warmed_blocks,
        queued_us: r.queued.as_micros() as u64,
        gets: Some(latencies_to_proto(&r.gets)),
        compaction_gets: Some(latencies_to_proto(&r.compaction_gets)),
        reads_per_s_max: figures.limits_per_s.0,
        writes_per_s_max: figures.limits_per_s.1,
    }
}

fn operator_to_proto(operator: &str, used: &TaskUse) -> OperatorStore {
    let tally = |(&(operation, purpose), tally): (&(Operation, Purpose), &Tally)| RequestTally {
        operation: operation.name().to_owned(),
        purpose: purpose.name().to_owned(),
        requests: tally.requests,
        bytes: tally.bytes,
    };
    OperatorStore {
        operator: operator.to_owned(),
        requests: used.requests.table.iter().map(tally).collect(),
        retries: used.requests.retries,
        throttled: used.requests.throttled,
        limiter_wait_us: used.requests.limiter_wait_us,
        flushed_bytes: used.written.flushed_bytes,
        flushed_entries: used.written.flushed_entries,
        compactions: used.written.compactions,
        compaction_bytes_in: used.written.compaction_bytes_in,
        compaction_bytes_out: used.written.compaction_bytes_out,
    }
}

pub(crate) fn store_from_proto(c: &StoreCounters) -> StoreFigures {
    let latencies =
        |l: &Option<control::Latencies>| l.as_ref().map(|l| Latencies::of(&l.counts, l.sum_us)).unwrap_or_default();
    StoreFigures {
        operators: c.operators.iter().map(|o| (o.operator.clone(), operator_from_proto(o))).collect(),
        requests: RequestUse {
            bundles: c.bundles,
            hedged: c.hedged,
            over_budget: c.over_budget,
            warmed_blocks: c.warmed_blocks,
            queued: Duration::from_micros(c.queued_us),
            gets: latencies(&c.gets),
            compaction_gets: latencies(&c.compaction_gets),
        },
        limits_per_s: (c.reads_per_s_max, c.writes_per_s_max),
    }
}

fn operator_from_proto(o: &OperatorStore) -> TaskUse {
    let mut requests = Metered {
        retries: o.retries,
        throttled: o.throttled,
        limiter_wait_us: o.limiter_wait_us,
        ..Metered::default()
    };
    for t in &o.requests {
        let operation = Operation::ALL.into_iter().find(|o| o.name() == t.operation);
        let purpose = Purpose::ALL.into_iter().find(|p| p.name() == t.purpose);
        // Both ends speak one protocol.
        if let (Some(operation), Some(purpose)) = (operation, purpose) {
            requests.add_tally(operation, purpose, Tally { requests: t.requests, bytes: t.bytes });
        }
    }
    let written = TaskWrites {
        flushed_bytes: o.flushed_bytes,
        flushed_entries: o.flushed_entries,
        compactions: o.compactions,
        compaction_bytes_in: o.compaction_bytes_in,
        compaction_bytes_out: o.compaction_bytes_out,
    };
    TaskUse { requests, written }
}

fn latencies_to_proto(l: &Latencies) -> control::Latencies {
    control::Latencies { counts: l.counts().to_vec(), sum_us: l.sum_us() }
}

pub(crate) fn reads_to_proto(f: &ReadFigures) -> ReadCounters {
    let r = &f.report;
    ReadCounters {
        named: f.named,
        asked: f.asked,
        keys: r.keys,
        filtered: r.filtered,
        memory_hits: r.memory_hits,
        disk_hits: r.disk_hits,
        shared: r.shared,
        misses: r.misses,
        gets: r.gets,
        meta_gets: r.meta_gets,
        merged: r.merged,
        bytes: r.bytes,
        scanned: r.scanned,
        waited_us: r.waited.as_micros() as u64,
    }
}

pub(crate) fn reads_from_proto(c: &ReadCounters) -> ReadFigures {
    ReadFigures {
        named: c.named,
        asked: c.asked,
        report: ReadReport {
            keys: c.keys,
            filtered: c.filtered,
            memory_hits: c.memory_hits,
            disk_hits: c.disk_hits,
            shared: c.shared,
            misses: c.misses,
            gets: c.gets,
            meta_gets: c.meta_gets,
            merged: c.merged,
            bytes: c.bytes,
            scanned: c.scanned,
            waited: Duration::from_micros(c.waited_us),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> StoreFigures {
        let mut requests = Metered { retries: 3, throttled: 2, limiter_wait_us: 5, ..Metered::default() };
        requests.add_tally(Operation::Get, Purpose::Compaction, Tally { requests: 7, bytes: 70 });
        let written = TaskWrites {
            flushed_bytes: 1,
            flushed_entries: 2,
            compactions: 3,
            compaction_bytes_in: 4,
            compaction_bytes_out: 5,
        };
        let mut gets = Latencies::default();
        gets.note(Duration::from_millis(30));
        StoreFigures {
            operators: BTreeMap::from([("count".to_owned(), TaskUse { requests, written })]),
            requests: RequestUse {
                bundles: 1,
                hedged: 2,
                over_budget: 3,
                warmed_blocks: 5,
                queued: Duration::from_micros(4),
                gets,
                compaction_gets: Latencies::default(),
            },
            limits_per_s: (Some(70), None),
        }
    }

    #[test]
    fn figures_survive_the_wire_and_add_up() {
        let figures = figures();
        assert_eq!(store_from_proto(&store_to_proto(&figures)), figures);
        let mut sum = figures.clone();
        sum += &StoreFigures { limits_per_s: (Some(9), Some(8)), ..StoreFigures::of_shared(Metered::default()) };
        sum += &figures;
        assert_eq!(
            (sum.total().get, sum.written().compaction_bytes_out, sum.limits_per_s),
            (14, 10, (Some(9), Some(8)))
        );
        assert_eq!(sum.requests.gets.count(), 2);
        assert_eq!(sum.over().limits_per_s, (None, None));
        let report = ReadReport { misses: 1, merged: 2, waited: Duration::from_micros(3), ..ReadReport::default() };
        let reads = ReadFigures { named: 10, asked: 4, report };
        assert_eq!(reads_from_proto(&reads_to_proto(&reads)), reads);
    }
}
