//! The figures of a job as `status` shows them, over all its processes and deployments.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millstream_common::Error;
use millstream_common::env::Moment;
use millstream_common::latency::Latencies;
use millstream_proto::control::{CommittableId, JobCounters, SubtaskCounters};
use millstream_state_store::Run;

use crate::element::TimestampMs;
use crate::figures::{OperatorFigures, SinkFigures, StoreFigures, reads_from_proto, store_from_proto};
use crate::worker::Role;

/// Durations that the percentile is taken over.
const DURATIONS_MAX: usize = 1_000;

/// One live rescale.
#[derive(Clone, Debug)]
pub(crate) struct RescaleDone {
    pub(crate) from: u32,
    pub(crate) to: u32,
    pub(crate) pause_ms: u64,
    pub(crate) objects_copied: u64,
    pub(crate) bytes_written: u64,
    /// Subtasks that went on on another worker.
    pub(crate) moved: Vec<u32>,
}

/// What compactions that came to their end have cost, whoever ran them.
#[derive(Clone, Debug, Default)]
pub(crate) struct CompactionFigures {
    /// Bytes that came from the object store.
    pub(crate) bytes_read: u64,
    /// Bytes of their outputs.
    pub(crate) bytes_written: u64,
    pub(crate) completed: u64,
    /// By runner: what it is, and how many it ended.
    pub(crate) by_runner: BTreeMap<String, (Role, u64)>,
}

/// Runners that status tells apart; a cluster whose processes come and go all the time has more.
const RUNNERS_MAX: usize = 256;

/// Sums of what is over, and the latest of what runs.
#[derive(Debug, Default)]
pub(crate) struct Statistics {
    pub(crate) rows_out: u64,
    pub(crate) restarts: u64,
    /// Why it restarted last: number and text of the error.
    pub(crate) last_failure: Option<(u16, String)>,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) bytes_last: u64,
    pub(crate) puts_last: u64,
    /// Of all checkpoints.
    pub(crate) bytes: u64,
    pub(crate) puts: u64,
    pub(crate) durations: Latencies,
    pub(crate) last_trigger: Moment,
    pub(crate) rescales: Vec<RescaleDone>,
    pub(crate) compaction: CompactionFigures,
    durations_ms: Vec<u64>,
    folded: Folded,
    /// By worker, task, subtask and attempt.
    current: BTreeMap<(String, String, u32, u64), SubtaskCounters>,
    /// By worker.
    requests: BTreeMap<String, JobCounters>,
}

#[derive(Clone, Debug, Default)]
struct Folded {
    events_in: u64,
    late_rows: u64,
    cache: (u64, u64, u64),
    /// By task: rows in and out, and what reads cost.
    operators: BTreeMap<String, OperatorFigures>,
    store: StoreFigures,
    sinks: BTreeMap<String, SinkFigures>,
}

impl Statistics {
    /// What a worker says about the present deployment.
    pub(crate) fn update(&mut self, worker: &str, counters: JobCounters) {
        for s in &counters.subtasks {
            let key = (worker.to_owned(), s.task_uid.clone(), s.subtask, s.attempt);
            self.current.insert(key, s.clone());
        }
        self.requests.insert(worker.to_owned(), JobCounters { subtasks: Vec::new(), ..counters });
    }

    /// The least watermark of the splits of these sources that hold one, over subtasks below `parallelism`.
    pub(crate) fn least_watermark(&self, sources: &BTreeSet<&str>, parallelism: u32) -> Option<TimestampMs> {
        let subtasks = self.subtasks();
        let present = subtasks.iter().filter(|((_, subtask), _)| *subtask < parallelism);
        let splits = present.flat_map(|(_, (_, counters))| &counters.splits);
        let holding = splits.filter(|s| !s.idle && !s.finished && sources.contains(s.source_uid.as_str()));
        holding.filter_map(|s| s.watermark_ms).min()
    }

    /// The present deployment is over and another one follows: its figures are added up. Those of the last one stay.
    pub(crate) fn fold(&mut self) {
        self.folded.events_in = self.events_in();
        self.folded.late_rows = self.late_rows();
        self.folded.cache = self.cache();
        self.folded.store = self.store().over();
        self.folded.sinks = self.sinks([]);
        let tasks: BTreeSet<String> = self.current.keys().map(|k| k.1.clone()).collect();
        for task in tasks {
            let figures = self.operator_figures(&task);
            self.folded.operators.insert(task, figures);
        }
        self.current.clear();
        self.requests.clear();
    }

    /// A worker has nothing to do with the job any more; should it come back, it counts anew.
    pub(crate) fn fold_worker(&mut self, worker: &str) {
        let Some(last) = self.requests.remove(worker) else { return };
        self.folded.cache.0 += last.cache_memory_hits;
        self.folded.cache.1 += last.cache_disk_hits;
        self.folded.cache.2 += last.cache_misses;
        if let Some(store) = &last.store {
            self.folded.store += &store_from_proto(store).over();
        }
    }

    /// A compaction has come to its end.
    pub(crate) fn compacted(&mut self, runner: &str, role: Role, bytes_read: u64, outputs: &[Run]) {
        let figures = &mut self.compaction;
        figures.bytes_read += bytes_read;
        figures.bytes_written += outputs.iter().map(|r| r.length).sum::<u64>();
        figures.completed += 1;
        if figures.by_runner.len() < RUNNERS_MAX || figures.by_runner.contains_key(runner) {
            figures.by_runner.entry(runner.to_owned()).or_insert((role, 0)).1 += 1;
        }
    }

    /// A commit is confirmed.
    pub(crate) fn committed(&mut self, id: &CommittableId) {
        if let Some(took_us) = id.took_us {
            entry(&mut self.folded.sinks, &id.sink_uid).commits.note(Duration::from_micros(took_us));
        }
    }

    pub(crate) fn restarted(&mut self, error: &Error) {
        self.restarts += 1;
        self.last_failure = Some((error.number(), error.to_string()));
    }

    pub(crate) fn events_in(&self) -> u64 {
        self.folded.events_in + self.current.values().filter(|s| s.is_source).map(|s| s.rows_in).sum::<u64>()
    }

    /// Rows that came into a task and left it, and what its reads cost, over all its subtasks and deployments.
    pub(crate) fn operator_figures(&self, task: &str) -> OperatorFigures {
        let mut sum = self.folded.operators.get(task).copied().unwrap_or_default();
        for (_, s) in self.current.iter().filter(|(k, _)| k.1 == task) {
            let reads = s.reads.as_ref().map(reads_from_proto).unwrap_or_default();
            sum += OperatorFigures { rows_in: s.rows_in, rows_out: s.rows_out, reads, ..OperatorFigures::default() };
        }
        sum
    }

    /// What all workers asked of the object store.
    pub(crate) fn store(&self) -> StoreFigures {
        let mut sum = self.folded.store.clone();
        for store in self.requests.values().filter_map(|c| c.store.as_ref()) {
            sum += &store_from_proto(store);
        }
        sum
    }

    /// What was written to each sink, over all deployments; transactions that are open: those of the subtasks that are `present`.
    pub(crate) fn sinks<'a>(
        &self,
        present: impl IntoIterator<Item = &'a SubtaskCounters>,
    ) -> BTreeMap<String, SinkFigures> {
        let mut sum = self.folded.sinks.clone();
        for s in self.current.values().flat_map(|s| &s.sinks) {
            let written = SinkFigures { rows: s.rows, bytes: s.bytes, ..SinkFigures::default() };
            *entry(&mut sum, &s.sink_uid) += &written;
        }
        for s in present.into_iter().flat_map(|counters| &counters.sinks) {
            let open = SinkFigures { open_transactions: s.open_transactions, ..SinkFigures::default() };
            *entry(&mut sum, &s.sink_uid) += &open;
        }
        sum
    }

    pub(crate) fn late_rows(&self) -> u64 {
        self.folded.late_rows + self.current.values().map(|s| s.late_rows).sum::<u64>()
    }

    pub(crate) fn cache(&self) -> (u64, u64, u64) {
        let mut sum = self.folded.cache;
        for c in self.requests.values() {
            sum.0 += c.cache_memory_hits;
            sum.1 += c.cache_disk_hits;
            sum.2 += c.cache_misses;
        }
        sum
    }

    /// The subtasks that run (the latest attempt of each), by task and index.
    pub(crate) fn subtasks(&self) -> BTreeMap<(String, u32), (String, SubtaskCounters)> {
        let mut latest: BTreeMap<(String, u32), (String, SubtaskCounters)> = BTreeMap::new();
        for ((worker, task, index, attempt), counters) in &self.current {
            let newer = latest.get(&(task.clone(), *index)).is_none_or(|(_, c)| c.attempt < *attempt);
            if newer {
                latest.insert((task.clone(), *index), (worker.clone(), counters.clone()));
            }
        }
        latest
    }

    pub(crate) fn checkpoint_done(&mut self, duration: Duration, bytes: u64, puts: u64) {
        self.completed += 1;
        self.bytes_last = bytes;
        self.puts_last = puts;
        self.bytes += bytes;
        self.puts += puts;
        self.durations.note(duration);
        if self.durations_ms.len() == DURATIONS_MAX {
            self.durations_ms.remove(0);
        }
        self.durations_ms.push(duration.as_millis() as u64);
    }

    pub(crate) fn duration_p50_ms(&self) -> Option<u64> {
        let mut sorted = self.durations_ms.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }

    pub(crate) fn duration_max_ms(&self) -> Option<u64> {
        self.durations_ms.iter().copied().max()
    }
}

fn entry<'a>(sinks: &'a mut BTreeMap<String, SinkFigures>, uid: &str) -> &'a mut SinkFigures {
    sinks.entry(uid.to_owned()).or_default()
}

#[cfg(test)]
mod tests {
    use millstream_proto::control::{OperatorStore, ReadCounters, RequestTally, SinkCounters, StoreCounters};

    use super::*;

    fn counters(gets: u64, limit: Option<u64>) -> JobCounters {
        let tally = RequestTally { operation: "get".into(), purpose: "state".into(), requests: gets, bytes: gets * 10 };
        let operator =
            OperatorStore { operator: "count".into(), requests: vec![tally], flushed_bytes: 7, ..Default::default() };
        let reads = ReadCounters { named: gets * 2, asked: gets, misses: gets, ..Default::default() };
        JobCounters {
            subtasks: vec![SubtaskCounters { task_uid: "count".into(), reads: Some(reads), ..Default::default() }],
            store: Some(StoreCounters {
                operators: vec![operator],
                hedged: 1,
                reads_per_s_max: limit,
                ..Default::default()
            }),
            ..JobCounters::default()
        }
    }

    #[test]
    fn figures_of_workers_and_of_earlier_deployments_add_up() {
        let mut s = Statistics::default();
        s.update("a", counters(1, Some(50)));
        s.update("a", counters(3, Some(40)));
        s.update("b", counters(4, Some(60)));
        let gets = |s: &Statistics| (s.store().total().get, s.operator_figures("count").reads.asked);
        assert_eq!(gets(&s), (7, 7));
        assert_eq!((s.store().limits_per_s, s.store().requests.hedged), ((Some(40), None), 2));
        s.fold();
        assert_eq!(gets(&s), (7, 7));
        assert_eq!(s.store().limits_per_s, (None, None), "a deployment that is over waits for nothing");
        s.update("b", counters(5, None));
        assert_eq!(gets(&s), (12, 12));
        // It leaves, comes back and counts anew; its subtasks are still told apart by their attempts.
        s.fold_worker("b");
        s.update("b", JobCounters { subtasks: Vec::new(), ..counters(1, None) });
        assert_eq!((s.store().total().get, s.store().written().flushed_bytes), (13, 28));
    }

    /// What a worker says of a sink: rows (and bytes) and open transactions, by subtask.
    fn written(of: &[(u32, u64, u64)]) -> JobCounters {
        let subtask = |&(subtask, rows, open): &(u32, u64, u64)| {
            let open_transactions = Some(open);
            let sink = SinkCounters { sink_uid: "out".into(), rows, bytes: Some(rows * 10), open_transactions };
            SubtaskCounters { task_uid: "count".into(), subtask, sinks: vec![sink], ..Default::default() }
        };
        JobCounters { subtasks: of.iter().map(subtask).collect(), ..JobCounters::default() }
    }

    #[test]
    fn what_is_written_adds_up_and_transactions_are_those_of_the_present_subtasks() {
        let mut s = Statistics::default();
        let sinks = |s: &Statistics, parallelism| {
            let subtasks = s.subtasks();
            s.sinks(subtasks.iter().filter(|((_, index), _)| *index < parallelism).map(|(_, (_, counters))| counters))
        };
        let sum = |s: &Statistics, parallelism| {
            let out = sinks(s, parallelism)["out"].clone();
            (out.rows, out.bytes, out.open_transactions)
        };
        s.update("a", written(&[(0, 1, 1), (1, 2, 2)]));
        s.update("b", written(&[(2, 4, 4)]));
        assert_eq!(sum(&s, 3), (7, Some(70), Some(7)));
        assert_eq!(sum(&s, 2), (7, Some(70), Some(3)), "a scale-in took the third one away");
        let commit = |took_us| CommittableId { sink_uid: "out".into(), took_us, ..CommittableId::default() };
        s.committed(&commit(Some(30_000)));
        s.committed(&commit(None));
        s.fold();
        assert_eq!(sum(&s, 3), (7, Some(70), None));
        s.update("a", written(&[(0, 8, 1)]));
        assert_eq!(sum(&s, 3), (15, Some(150), Some(1)));
        s.committed(&commit(Some(40_000)));
        let commits = sinks(&s, 3)["out"].commits;
        assert_eq!((commits.count(), commits.sum_us()), (2, 70_000), "those of a recovery tell no time");
    }
}
