//! What a worker can say about a job at any moment, without asking its subtasks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use millstream_common::Env;
use millstream_common::TaskId;
use millstream_common::env::Moment;
use millstream_objects::Store;
use millstream_proto::control::{
    JobCounters, JobRef, SinkCounters, SplitCounters, SplitLateness, SubtaskCounters, VersionInUse,
};
use millstream_state_store::{Run, StateStore, Tree};
use parking_lot::Mutex;

use super::in_use::InUse;
use crate::element::WATERMARK_MIN;
use crate::figures::{self, JobFigures, OperatorFigures, ReadFigures, SHARED, StoreFigures};
use crate::lateness::SplitProgress;
use crate::task::{SinkMetrics, SplitMetrics, SubtaskId, TaskMetrics, VersionView};

/// The counters of one job on this worker.
pub(crate) struct JobGauges {
    env: Env,
    pub(crate) job: JobRef,
    /// The job that the binary contains.
    name: String,
    task_uids: Vec<String>,
    /// The uids of the tasks that keep state, by their ids in the tree.
    state_uids: Mutex<BTreeMap<TaskId, String>>,
    store: Store,
    state: StateStore,
    subtasks: Mutex<BTreeMap<SubtaskId, Subtask>>,
    in_use: Mutex<InUse>,
    /// What instances of subtasks did that others have followed here, by index of the task.
    replaced: Mutex<BTreeMap<usize, OperatorFigures>>,
}

struct Subtask {
    attempt: u64,
    started: Moment,
    metrics: Arc<TaskMetrics>,
}

impl JobGauges {
    /// `name`: the job that the binary contains.
    pub(crate) fn new(
        env: Env,
        job: JobRef,
        name: &str,
        task_uids: Vec<String>,
        store: Store,
        state: StateStore,
    ) -> Self {
        Self {
            env,
            job,
            name: name.to_owned(),
            task_uids,
            state_uids: Mutex::default(),
            store,
            state,
            subtasks: Mutex::default(),
            in_use: Mutex::default(),
            replaced: Mutex::default(),
        }
    }

    /// The deployment reads from a version from now on, and perhaps from `own` sections that it lists.
    pub(crate) fn uses(&self, number: u64, version: &VersionView, own: &[Arc<Run>]) {
        self.in_use.lock().add(number, version.runs.iter().flatten().chain(own));
        let known = std::iter::zip(&version.task_ids, &self.task_uids);
        self.state_uids.lock().extend(known.filter_map(|(id, uid)| Some(((*id)?, uid.clone()))));
    }

    /// Tasks of the job that keep state, as the newest tree names them.
    pub(crate) fn learn(&self, tree: &Tree) {
        self.state_uids.lock().extend(tree.tasks().iter().map(|task| (task.id, task.uid.clone())));
    }

    /// The oldest version whose objects may still be read here; `None` before the first.
    pub(crate) fn oldest_in_use(&self) -> Option<VersionInUse> {
        let version = self.in_use.lock().oldest()?;
        Some(VersionInUse { job: Some(self.job.clone()), version })
    }

    pub(crate) fn add(&self, id: SubtaskId, attempt: u64, metrics: Arc<TaskMetrics>) {
        let started = self.env.now();
        let before = self.subtasks.lock().insert(id, Subtask { attempt, started, metrics });
        if let Some(before) = before {
            *self.replaced.lock().entry(id.task).or_default() += operator_figures(&before.metrics).over();
        }
    }

    /// What this process shows of the deployment.
    pub(crate) fn figures(&self) -> JobFigures {
        let mut tasks = self.replaced.lock().clone();
        for (id, subtask) in self.subtasks.lock().iter() {
            // Only this holds the counters of one that has ended.
            let runs = Arc::strong_count(&subtask.metrics) > 1;
            let figures = operator_figures(&subtask.metrics);
            *tasks.entry(id.task).or_default() += if runs { figures } else { figures.over() };
        }
        let operators = tasks.into_iter().map(|(task, figures)| (self.task_uids[task].clone(), figures)).collect();
        JobFigures { job: self.name.clone(), id: self.job.id.clone(), operators, store: self.store_figures() }
    }

    fn store_figures(&self) -> StoreFigures {
        let used = self.state.used();
        let mut figures = StoreFigures::of_shared(used.shared);
        figures.requests = used.requests;
        figures.limits_per_s = self.store.limits_per_s();
        let uids = self.state_uids.lock();
        for (id, task) in &used.tasks {
            let uid = uids.get(id).map_or(SHARED, String::as_str);
            *figures.operators.entry(uid.to_owned()).or_default() += task;
        }
        figures
    }

    /// What the coordinator is told.
    pub(crate) fn counters(&self) -> JobCounters {
        let cache = self.state.totals();
        let now = self.env.now();
        let subtasks = self.subtasks.lock();
        JobCounters {
            job: Some(self.job.clone()),
            subtasks: subtasks.iter().map(|(id, s)| self.subtask(*id, s, now)).collect(),
            cache_memory_hits: cache.memory_hits,
            cache_disk_hits: cache.disk_hits,
            cache_misses: cache.misses,
            store: Some(figures::store_to_proto(&self.store_figures())),
        }
    }

    fn subtask(&self, id: SubtaskId, s: &Subtask, now: Moment) -> SubtaskCounters {
        let m = &s.metrics;
        let ms = |ns: u64| ns / 1_000_000;
        let watermark = m.watermark.load(Ordering::Relaxed);
        SubtaskCounters {
            task_uid: self.task_uids[id.task].clone(),
            subtask: id.index,
            rows_in: m.rows_in.load(Ordering::Relaxed),
            rows_out: m.rows_out.load(Ordering::Relaxed),
            late_rows: m.late_rows.load(Ordering::Relaxed),
            busy_ms: ms(m.busy_ns.load(Ordering::Relaxed)),
            back_pressured_ms: ms(m.back_pressured_ns.load(Ordering::Relaxed)),
            state_wait_ms: ms(m.state_wait_ns.load(Ordering::Relaxed)),
            merge_wait_ms: ms(m.merge_wait_ns.load(Ordering::Relaxed)),
            alive_ms: now.since(s.started).as_millis() as u64,
            watermark_ms: (watermark > WATERMARK_MIN).then_some(watermark),
            splits: m.splits.lock().iter().map(split_counters).collect(),
            attempt: s.attempt,
            is_source: m.is_source.load(Ordering::Relaxed),
            memory_bytes: m.memory_bytes.load(Ordering::Relaxed),
            reads: Some(figures::reads_to_proto(&read_figures(m))),
            sinks: m.sinks.lock().iter().map(sink_counters).collect(),
        }
    }
}

fn operator_figures(m: &TaskMetrics) -> OperatorFigures {
    let n = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    OperatorFigures {
        subtasks: 1,
        memory_bytes: n(&m.memory_bytes),
        dirty_bytes: n(&m.dirty_bytes),
        rows_in: n(&m.rows_in),
        rows_out: n(&m.rows_out),
        late_rows: n(&m.late_rows),
        busy: Duration::from_nanos(n(&m.busy_ns)),
        back_pressured: Duration::from_nanos(n(&m.back_pressured_ns)),
        state_wait: Duration::from_nanos(n(&m.state_wait_ns)),
        merge_wait: Duration::from_nanos(n(&m.merge_wait_ns)),
        reads: read_figures(m),
    }
}

fn read_figures(m: &TaskMetrics) -> ReadFigures {
    ReadFigures {
        named: m.keys_named.load(Ordering::Relaxed),
        asked: m.keys_asked.load(Ordering::Relaxed),
        report: *m.reads.lock(),
    }
}

fn split_counters(s: &SplitMetrics) -> SplitCounters {
    let figures = s.gauges.as_ref().map(|g| g.figures()).unwrap_or_default();
    let progress = s.progress.lock();
    SplitCounters {
        split: s.split.clone(),
        position: s.position,
        watermark_ms: s.watermark,
        idle: s.idle,
        finished: s.finished,
        source_uid: s.source_uid.clone(),
        rows: progress.rows(),
        bytes: figures.bytes,
        dropped: figures.dropped,
        dead_letters: figures.dead_letters,
        decode_us: figures.decode.map(|d| d.as_micros() as u64),
        lag_records: figures.lag_records,
        lag_ms: figures.lag.map(|l| l.as_millis() as u64),
        lateness: split_lateness(&progress),
    }
}

fn split_lateness(progress: &SplitProgress) -> Option<SplitLateness> {
    let lateness = progress.lateness();
    (lateness.count() > 0).then(|| SplitLateness {
        behind: progress.behind(),
        counts: lateness.coarse().to_vec(),
        sum_ms: lateness.sum_ms(),
        delay_ms_990: lateness.delay_ms(990),
        delay_ms_999: lateness.delay_ms(999),
    })
}

fn sink_counters(s: &SinkMetrics) -> SinkCounters {
    SinkCounters {
        sink_uid: s.sink_uid.clone(),
        rows: s.rows,
        bytes: s.figures.bytes,
        open_transactions: s.figures.open_transactions,
    }
}
