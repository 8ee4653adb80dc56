//! The documents that clients get, as JSON.

use std::collections::{BTreeMap, BTreeSet};

use millstream_common::env::Moment;
use millstream_proto::control::{ProcessUsage, RequestCounters, SubtaskCounters};
use millstream_proto::version::VersionRecord;
use serde_json::{Value, json};

use super::master::JobMaster;
use super::statistics::add_requests;
use crate::element::{WATERMARK_MAX, WATERMARK_MIN};
use crate::graph::JobGraph;

/// What the status of a job is made from, besides its master.
pub(crate) struct StatusFacts<'a> {
    pub(crate) graph: &'a JobGraph,
    pub(crate) now: Moment,
    pub(crate) started: Moment,
    /// Usage of the processes that have worked for the job, by process.
    pub(crate) processes: Vec<ProcessUsage>,
    /// Process numbers by worker.
    pub(crate) pids: &'a BTreeMap<String, u32>,
    /// The names of those that are or were compactors.
    pub(crate) compactors: &'a BTreeSet<String>,
    /// Requests of the coordinator itself for the job.
    pub(crate) own_requests: RequestCounters,
    pub(crate) already_finished: bool,
    /// What the collector has done; null when the job has none.
    pub(crate) garbage: Value,
}

/// The status document; also the summary of a run.
pub(crate) fn status(master: &JobMaster, facts: &StatusFacts<'_>) -> Value {
    let s = &master.statistics;
    let (state_bytes, state_objects) = state_size(&master.record);
    let mut requests = s.requests();
    add_requests(&mut requests, &facts.own_requests);
    let cache = s.cache();
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
            "bytes_last": s.bytes_last, "puts_last": s.puts_last,
        },
        "object_store": {
            "get": requests.get, "put": requests.put, "list": requests.list, "head": requests.head,
            "delete": requests.delete, "copy": requests.copy,
            "bytes_read": requests.bytes_read, "bytes_written": requests.bytes_written, "usd": requests.usd,
        },
        "compaction": compaction(master, facts),
        "cache": {"memory_hits": cache.0, "disk_hits": cache.1, "misses": cache.2},
        "garbage": facts.garbage,
        "forked_from": master.record.fork.as_ref().map(|f| json!({"job": f.job, "version": f.version})),
        "rescales": s.rescales.iter().map(|r| json!({
            "from": r.from, "to": r.to, "pause_ms": r.pause_ms,
            "objects_copied": r.objects_copied, "bytes_written": r.bytes_written, "moved": r.moved,
        })).collect::<Vec<_>>(),
        "splits": splits(master, subtasks.values().map(|s| &s.1)),
        "operators": operators(master, facts, &subtasks),
        "error": master.error.as_ref().map(|e| json!({
            "code": format!("MS{:04}", e.number()), "kind": e.kind_number(), "what": e.to_string(),
        })),
    })
}

/// Figures of compactions. Those of what runs and of what is due are of the present deployment.
fn compaction(master: &JobMaster, facts: &StatusFacts<'_>) -> Value {
    let figures = &master.statistics.compaction;
    let (running, debt) = (master.book.running(), master.book.debt());
    let names: BTreeSet<&str> = figures.by_runner.keys().map(String::as_str).chain(running.keys().copied()).collect();
    let role = |name: &str| if facts.compactors.contains(name) { "compactor" } else { "worker" };
    let runner = |name: &str| {
        json!({
            "worker": name, "pid": facts.pids.get(name), "role": role(name),
            "tasks": figures.by_runner.get(name).copied().unwrap_or_default(),
            "running": running.get(name).copied().unwrap_or_default(),
        })
    };
    let flushed = master.statistics.bytes_flushed;
    // Bytes written for each byte that a checkpoint wrote.
    let amplification = (flushed > 0).then(|| rounded((flushed + figures.bytes_written) as f64 / flushed as f64));
    json!({
        "bytes_flushed": flushed, "write_amplification": amplification,
        "bytes_read": figures.bytes_read, "bytes_written": figures.bytes_written, "tasks": figures.tasks,
        "running": running.values().sum::<u64>(),
        "debt_bytes": debt.map(|d| d.bytes), "runs_max": debt.map(|d| d.runs_max),
        "runners": names.into_iter().map(runner).collect::<Vec<_>>(),
    })
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
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

fn splits<'a>(master: &JobMaster, subtasks: impl Iterator<Item = &'a SubtaskCounters>) -> Vec<Value> {
    let mut out: BTreeMap<(String, String), Value> = BTreeMap::new();
    for s in &master.record.splits {
        let shown = json!({"split": s.split_id, "position": s.offset, "watermark_ms": s.watermark_ms, "idle": false, "finished": s.finished});
        out.insert((s.source_uid.clone(), s.split_id.clone()), shown);
    }
    for s in subtasks.flat_map(|s| &s.splits) {
        let shown = json!({"split": s.split, "position": s.position, "watermark_ms": s.watermark_ms, "idle": s.idle, "finished": s.finished});
        out.insert((s.source_uid.clone(), s.split.clone()), shown);
    }
    out.into_values().collect()
}

fn operators(
    master: &JobMaster,
    facts: &StatusFacts<'_>,
    subtasks: &BTreeMap<(String, u32), (String, SubtaskCounters)>,
) -> Vec<Value> {
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
            let (rows_in, rows_out) = master.statistics.operator_rows(&task.uid);
            json!({
                "name": task.name,
                "uid": task.uid,
                "parallelism": parallelism,
                "rows_in": rows_in,
                "rows_out": rows_out,
                "busy": share(|s| s.busy_ms),
                "back_pressured": share(|s| s.back_pressured_ms),
                "state_wait": share(|s| s.state_wait_ms),
                "subtasks": mine.iter().map(|(i, (worker, s))| json!({
                    "index": i, "attempt": s.attempt, "worker": worker, "pid": facts.pids.get(worker),
                    "rows_in": s.rows_in, "rows_out": s.rows_out, "late_rows": s.late_rows,
                    "watermark_ms": s.watermark_ms, "memory_bytes": s.memory_bytes,
                })).collect::<Vec<_>>(),
            })
        })
        .collect()
}
