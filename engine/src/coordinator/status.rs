//! The documents that clients get, as JSON.

use std::collections::BTreeMap;

use millstream_common::KeyGroupRange;
use millstream_common::env::Moment;
use millstream_common::latency::{BOUNDS_MS, Latencies};
use millstream_objects::{Metered, Tally};
use millstream_proto::control::{ProcessUsage, SplitCounters, SubtaskCounters};
use millstream_proto::version::VersionRecord;
use millstream_state_store::tree::ranges_at_once_max;
use millstream_state_store::{ReadReport, TaskWrites};
use serde_json::{Value, json};

use super::master::JobMaster;
use crate::element::{WATERMARK_MAX, WATERMARK_MIN};
use crate::figures::{ReadFigures, SHARED, StoreFigures};
use crate::graph::{JobGraph, SinkPlan};
use crate::lateness;
use crate::worker::Role;

/// What the status of a job is made from, besides its master.
pub(crate) struct StatusFacts<'a> {
    pub(crate) graph: &'a JobGraph,
    pub(crate) now: Moment,
    pub(crate) started: Moment,
    /// Usage of the processes that have worked for the job, by process.
    pub(crate) processes: Vec<ProcessUsage>,
    /// Process numbers by worker.
    pub(crate) pids: &'a BTreeMap<String, u32>,
    /// Requests of the coordinator itself for the job.
    pub(crate) own_requests: Metered,
    pub(crate) already_finished: bool,
    /// What the collector has done; null when the job has none.
    pub(crate) garbage: Value,
    /// The versions that stand; null when it is not known.
    pub(crate) versions: Value,
}

/// The status document; also the summary of a run.
pub(crate) fn status(master: &JobMaster, facts: &StatusFacts<'_>) -> Value {
    let s = &master.statistics;
    let (state_bytes, state_objects) = state_size(&master.record);
    let cache = s.cache();
    let mut store = s.store();
    store += &StoreFigures::of_shared(facts.own_requests.clone());
    let mut subtasks = s.subtasks();
    // Those that a scale-in took away say nothing of the job any more.
    subtasks.retain(|(_, index), _| *index < master.assignment.parallelism());
    json!({
        "job": master.spec.job,
        "name": master.spec.name,
        "id": master.spec.id,
        "state": master.state(),
        "parallelism": master.assignment.parallelism(),
        "version": master.record.number,
        "epoch": master.record.epoch,
        "generation": master.record.generation,
        "execution": master.execution,
        "restarts": s.restarts,
        "last_failure": s.last_failure.as_ref().map(|(number, what)| json!({
            "code": format!("MS{number:04}"), "what": what,
        })),
        "restored_from_version": master.restored_from,
        "already_finished": facts.already_finished,
        "events_in": s.events_in(),
        "rows_out": s.rows_out,
        "late_rows": s.late_rows(),
        "wall_s": rounded(facts.now.since(facts.started).as_secs_f64()),
        "cpu_s": rounded(facts.processes.iter().map(|p| p.cpu_s).sum()),
        "peak_rss_bytes": facts.processes.iter().map(|p| p.peak_rss_bytes).sum::<u64>(),
        "watermark_ms": watermark(master, subtasks.values().map(|s| &s.1)),
        "state_bytes": state_bytes,
        "state_objects": state_objects,
        "checkpoints": {
            "completed": s.completed, "failed": s.failed,
            "duration_ms_p50": s.duration_p50_ms(), "duration_ms_max": s.duration_max_ms(),
            "bytes_last": s.bytes_last, "puts_last": s.puts_last, "bytes": s.bytes, "puts": s.puts,
            "durations": latencies(&s.durations),
        },
        "object_store": object_store(facts, &store),
        "reads": reads(&all_reads(master, facts.graph)),
        "writes": writes(&store.written(), Some(store.requests.bundles)),
        "versions": facts.versions,
        "compaction": compaction(master, facts),
        "cache": {"memory_hits": cache.0, "disk_hits": cache.1, "misses": cache.2},
        "garbage": facts.garbage,
        "forked_from": master.record.fork.as_ref().map(|f| json!({"job": f.job, "version": f.version})),
        "rescales": s.rescales.iter().map(|r| json!({
            "from": r.from, "to": r.to, "pause_ms": r.pause_ms,
            "objects_copied": r.objects_copied, "bytes_written": r.bytes_written, "moved": r.moved,
        })).collect::<Vec<_>>(),
        "splits": splits(master, subtasks.values().map(|s| &s.1)),
        "sinks": sinks(master, facts.graph, subtasks.values().map(|s| &s.1)),
        "operators": operators(master, facts, &store, &subtasks),
        "error": master.error.as_ref().map(|e| json!({
            "code": format!("MS{:04}", e.number()), "kind": e.kind_number(), "what": e.to_string(),
        })),
    })
}

/// Compactions that the coordinator has given out: what those have done that were not given up, and, of the present
/// deployment, what runs and what is due. What all of them wrote is in `writes`.
fn compaction(master: &JobMaster, facts: &StatusFacts<'_>) -> Value {
    let figures = &master.statistics.compaction;
    let (running, debt) = (master.book.running(), master.book.debt());
    let done = figures.by_runner.iter().map(|(name, (role, _))| (name.as_str(), *role));
    let runners: BTreeMap<&str, Role> = done.chain(running.iter().map(|(name, r)| (*name, r.0))).collect();
    let runner = |(name, role): (&str, Role)| {
        json!({
            "worker": name, "pid": facts.pids.get(name), "role": role.name(),
            "completed": figures.by_runner.get(name).map_or(0, |r| r.1),
            "running": running.get(name).map_or(0, |r| r.1),
        })
    };
    json!({
        "completed": figures.completed, "bytes_read": figures.bytes_read, "bytes_written": figures.bytes_written,
        "running": running.values().map(|r| r.1).sum::<u64>(),
        "debt_bytes": debt.map(|d| d.0), "runs_per_key_group_max": debt.map(|d| d.1),
        "runners": runners.into_iter().map(runner).collect::<Vec<_>>(),
    })
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// All requests of the job, the coordinator's among them: sums, by operator and purpose, and how the store takes them.
fn object_store(facts: &StatusFacts<'_>, store: &StoreFigures) -> Value {
    let all = store.total();
    let r = &store.requests;
    json!({
        "get": all.get, "put": all.put, "list": all.list, "head": all.head, "delete": all.delete, "copy": all.copy,
        "bytes_read": all.bytes_read, "bytes_written": all.bytes_written, "usd": all.usd(),
        "retries": all.retries, "throttled": all.throttled, "limiter_wait_ms": all.limiter_wait_us / 1000,
        "reads_per_s_max": store.limits_per_s.0, "writes_per_s_max": store.limits_per_s.1,
        "hedged": r.hedged, "over_budget": r.over_budget, "warmed_blocks": r.warmed_blocks, "queued_ms": r.queued.as_millis() as u64,
        "gets": latencies(&r.gets), "compaction_gets": latencies(&r.compaction_gets),
        "by": store.operators.iter().flat_map(|(operator, used)| tallies(operator, &used.requests)).collect::<Vec<_>>(),
        "coordinator": tallies(SHARED, &facts.own_requests),
    })
}

/// A row for each operator, purpose and operation of which there was a request; operator null: it served several at once,
/// or the job as a whole.
fn tallies(operator: &str, requests: &Metered) -> Vec<Value> {
    let row = |(&(operation, purpose), tally): (
        &(millstream_objects::Operation, millstream_objects::Purpose),
        &Tally,
    )| {
        json!({
            "operator": (operator != SHARED).then_some(operator), "purpose": purpose.name(), "operation": operation.name(),
            "requests": tally.requests, "bytes": tally.bytes,
            "usd": tally.requests as f64 * operation.usd_per_million() / 1e6,
        })
    };
    requests.table.iter().map(row).collect()
}

/// By bucket (`le_ms`: their upper bounds; one more is above the last), and the sum.
fn latencies(l: &Latencies) -> Value {
    json!({"le_ms": BOUNDS_MS, "counts": l.counts(), "sum_ms": l.sum_us() as f64 / 1e3})
}

fn all_reads(master: &JobMaster, graph: &JobGraph) -> ReadFigures {
    let of = |task: &crate::graph::TaskPlan| master.statistics.operator_figures(&task.uid).reads;
    graph.tasks.iter().map(of).fold(ReadFigures::default(), |mut sum, reads| {
        sum += reads;
        sum
    })
}

/// What reads cost, from the working set down.
fn reads(f: &ReadFigures) -> Value {
    let ReadReport {
        keys,
        filtered,
        memory_hits,
        disk_hits,
        shared,
        misses,
        gets,
        meta_gets,
        merged,
        bytes,
        scanned,
        waited,
    } = f.report;
    json!({
        "keys_named": f.named, "keys_asked": f.asked, "keys_read": keys, "filtered": filtered,
        "memory_hits": memory_hits, "disk_hits": disk_hits, "shared": shared, "misses": misses,
        "gets": gets, "meta_gets": meta_gets, "merged": merged, "bytes": bytes, "scanned": scanned,
        "waited_ms": waited.as_millis() as u64,
    })
}

/// What flushes and compactions wrote. Write amplification: all that was written for what was flushed; null before the first.
fn writes(w: &TaskWrites, bundles: Option<u64>) -> Value {
    let all = w.flushed_bytes + w.compaction_bytes_out;
    let mut document = json!({
        "flushed_bytes": w.flushed_bytes, "flushed_entries": w.flushed_entries, "compactions": w.compactions,
        "compaction_bytes_in": w.compaction_bytes_in, "compaction_bytes_out": w.compaction_bytes_out,
        "write_amplification": (w.flushed_bytes > 0).then(|| rounded(all as f64 / w.flushed_bytes as f64)),
    });
    if let Some(bundles) = bundles {
        document["bundles"] = bundles.into();
    }
    document
}

/// By operator with state: how many runs a read looks into at most.
fn runs_per_key_group(record: &VersionRecord) -> BTreeMap<String, u64> {
    // Asked many times a second: not by way of a whole tree.
    let Some(tree) = &record.tree else { return BTreeMap::new() };
    let mut clips: BTreeMap<u32, Vec<KeyGroupRange>> = BTreeMap::new();
    for run in &tree.runs {
        let ranges = run.clip.iter().map(|r| KeyGroupRange { start: r.start, end: r.end });
        clips.entry(run.task_id).or_default().extend(ranges);
    }
    let mut most = |id| ranges_at_once_max(clips.remove(&id).unwrap_or_default()) as u64;
    tree.tasks.iter().map(|task| (task.uid.clone(), most(task.task_id))).collect()
}

/// Bytes and number of the objects that a record's runs lie in.
pub(crate) fn state_size(record: &VersionRecord) -> (u64, u64) {
    let runs = record.tree.as_ref().map(|t| t.runs.as_slice()).unwrap_or_default();
    let objects: BTreeMap<&str, u64> = runs.iter().map(|r| (r.object.as_str(), r.object_bytes)).collect();
    (objects.values().sum(), objects.len() as u64)
}

/// The least watermark of the subtasks that have one; of the newest record when none runs.
fn watermark<'a>(master: &JobMaster, subtasks: impl Iterator<Item = &'a SubtaskCounters>) -> Value {
    let running: Vec<i64> = subtasks.filter(|s| !s.is_source).filter_map(|s| s.watermark_ms).collect();
    let least = running.into_iter().min().or_else(|| master.record.progress.iter().map(|p| p.fired_ms).min());
    match least {
        Some(w) if w != WATERMARK_MIN && w != WATERMARK_MAX => json!(w),
        // The end of time is no moment: the latest moment that rows have spoken of stands for it.
        Some(WATERMARK_MAX) => json!(master.record.splits.iter().filter_map(|s| s.watermark_ms).max()),
        _ => Value::Null,
    }
}

/// Of the present deployment; what only a worker knows is null where none reads the split.
fn splits<'a>(master: &JobMaster, subtasks: impl Iterator<Item = &'a SubtaskCounters>) -> Vec<Value> {
    let mut out: BTreeMap<(String, String), Value> = BTreeMap::new();
    for s in &master.record.splits {
        let (source_uid, split) = (s.source_uid.clone(), s.split_id.clone());
        let (position, watermark_ms, finished) = (s.offset, s.watermark_ms, s.finished);
        let known = SplitCounters { source_uid, split, position, watermark_ms, finished, ..SplitCounters::default() };
        out.insert((s.source_uid.clone(), s.split_id.clone()), split_shown(&known, false));
    }
    for s in subtasks.flat_map(|s| &s.splits) {
        out.insert((s.source_uid.clone(), s.split.clone()), split_shown(s, true));
    }
    out.into_values().collect()
}

/// `is_read`: by a subtask, which counts.
fn split_shown(s: &SplitCounters, is_read: bool) -> Value {
    let late = s.lateness.as_ref();
    let decode_ms = s.decode_us.map(|us| us as f64 / 1e3);
    json!({
        "source": s.source_uid, "split": s.split, "position": s.position, "watermark_ms": s.watermark_ms,
        "idle": s.idle, "finished": s.finished,
        "rows": is_read.then_some(s.rows), "bytes": s.bytes, "decode_ms": decode_ms,
        "lag_records": s.lag_records, "lag_ms": s.lag_ms, "dropped": s.dropped, "dead_letters": s.dead_letters,
        "late_behind_watermark": late.map(|l| l.behind),
        "delay_ms_p99": late.and_then(|l| l.delay_ms_990), "delay_ms_p999": late.and_then(|l| l.delay_ms_999),
        "lateness": late.map(|l| json!({"le_ms": lateness::BOUNDS_MS, "counts": l.counts, "sum_ms": l.sum_ms})),
    })
}

/// What was written to each sink of the plan and how its commits went. Rows of failed epochs are in it, unlike in `rows_out`.
fn sinks<'a>(master: &JobMaster, graph: &JobGraph, subtasks: impl Iterator<Item = &'a SubtaskCounters>) -> Vec<Value> {
    let written = master.statistics.sinks(subtasks);
    let shown = |sink: &SinkPlan| {
        let s = written.get(&sink.uid).cloned().unwrap_or_default();
        json!({
            "sink": sink.uid, "rows": s.rows, "bytes": s.bytes, "open_transactions": s.open_transactions,
            "commits": latencies(&s.commits),
        })
    };
    graph.tasks.iter().flat_map(|task| &task.sinks).map(shown).collect()
}

fn operators(
    master: &JobMaster,
    facts: &StatusFacts<'_>,
    store: &StoreFigures,
    subtasks: &BTreeMap<(String, u32), (String, SubtaskCounters)>,
) -> Vec<Value> {
    let runs = runs_per_key_group(&master.record);
    let parallelism = master.assignment.parallelism();
    facts
        .graph
        .tasks
        .iter()
        .map(|task| {
            let mine: Vec<_> =
                (0..parallelism).filter_map(|i| subtasks.get(&(task.uid.clone(), i)).map(|s| (i, s))).collect();
            let share = |part: fn(&SubtaskCounters) -> u64| {
                let alive: u64 = mine.iter().map(|(_, s)| s.1.alive_ms).sum();
                let part: u64 = mine.iter().map(|(_, s)| part(&s.1)).sum();
                if alive == 0 { Value::Null } else { json!(rounded(part as f64 / alive as f64)) }
            };
            let done = master.statistics.operator_figures(&task.uid);
            let keeps_state = runs.get(&task.uid);
            let used = store.operators.get(&task.uid);
            json!({
                "name": task.name,
                "uid": task.uid,
                "parallelism": parallelism,
                "rows_in": done.rows_in,
                "rows_out": done.rows_out,
                "busy": share(|s| s.busy_ms),
                "back_pressured": share(|s| s.back_pressured_ms),
                "state_wait": share(|s| s.state_wait_ms),
                "merge_wait": share(|s| s.merge_wait_ms),
                "reads": keeps_state.map(|_| reads(&done.reads)),
                "writes": keeps_state.map(|_| writes(&used.map(|u| u.written).unwrap_or_default(), None)),
                "usd": keeps_state.map(|_| used.map_or(0.0, |u| u.requests.usd())),
                "runs_per_key_group_max": keeps_state,
                "subtasks": mine.iter().map(|(i, (worker, s))| json!({
                    "index": i, "attempt": s.attempt, "worker": worker, "pid": facts.pids.get(worker),
                    "rows_in": s.rows_in, "rows_out": s.rows_out, "late_rows": s.late_rows,
                    "watermark_ms": s.watermark_ms, "memory_bytes": s.memory_bytes,
                })).collect::<Vec<_>>(),
            })
        })
        .collect()
}
