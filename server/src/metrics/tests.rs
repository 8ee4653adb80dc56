use std::collections::BTreeMap;
use std::time::Duration;

use millstream_cache::{CacheStats, FileStats};
use millstream_common::latency::Latencies;
use millstream_engine::figures::{JobFigures, OperatorFigures, ReadFigures, StoreFigures};
use millstream_engine::memory_plan::MemoryPlan;
use millstream_engine::settings::Settings;
use millstream_objects::{Metered, Operation, Purpose, Tally};
use millstream_state_store::{ReadReport, RequestUse, TaskUse, TaskWrites};
use serde_json::json;

use super::list::{Kind, METRICS};
use super::*;

fn document() -> Value {
    let by = |operator: Value, purpose: &str, operation: &str, requests: u64| json!({"operator": operator, "purpose": purpose, "operation": operation, "requests": requests, "bytes": 7, "usd": 0.5});
    let mut doc = json!({
        "job": "nexmark-q5", "id": "j\"1", "state": "running", "events_in": 4_000_000, "late_rows": null,
        "parallelism": 2, "version": 3, "epoch": 3, "generation": 1, "restarts": 0, "rows_out": 1, "cpu_s": 1.0,
        "peak_rss_bytes": 1, "watermark_ms": 5, "state_bytes": 1, "state_objects": 1,
        "checkpoints": {"completed": 6, "failed": 0, "duration_ms_p50": 3, "duration_ms_max": 4, "bytes": 9, "puts": 12,
            "bytes_last": 1, "puts_last": 2, "durations": {"le_ms": [1, 2], "counts": [1, 2], "sum_ms": 2.5}},
        "object_store": {"get": 0, "put": 14, "usd": 0.00007, "bytes_read": 1, "bytes_written": 2, "retries": 0,
            "throttled": 0, "limiter_wait_ms": 1500, "reads_per_s_max": 70, "writes_per_s_max": null,
            "by": [by("w".into(), "state", "get", 3), by(Value::Null, "state", "put", 14)],
            "coordinator": [by(Value::Null, "state", "put", 5)]},
        "cache": {"memory_hits": 3, "disk_hits": 1, "misses": 1},
        "compaction": {"debt_bytes": 1, "running": 0},
        "versions": {"checkpoints": 1, "records": 2, "objects": 3, "bytes": 4},
        "garbage": {"collections": 1, "failed": 0, "objects_deleted": 2, "bytes_deleted": 3, "records_deleted": 4,
            "orphans_deleted": 5, "orphan_bytes_deleted": 6},
        "operators": [{"uid": "w", "rows_in": 10, "rows_out": 1, "busy": 0.25, "back_pressured": 0.0, "state_wait": 0.0, "merge_wait": 0.0,
            "reads": {"keys_named": 9, "keys_asked": 2, "memory_hits": 1, "disk_hits": 1, "shared": 1, "misses": 1, "gets": 1},
            "writes": {"flushed_bytes": 8, "compactions": 1, "compaction_bytes_in": 2, "compaction_bytes_out": 3},
            "runs_per_key_group_max": 4, "subtasks": [{"index": 1, "rows_in": 4}]}],
    });
    (doc["splits"], doc["sinks"]) = (splits(), sinks());
    doc
}

/// One of which all is known, and one of which nothing is but that it is there.
fn splits() -> Value {
    json!([
        {"split": "a", "position": 7, "watermark_ms": 1, "idle": true, "rows": 20, "bytes": 300, "decode_ms": 2.5,
            "lag_records": 4, "lag_ms": 1500, "dropped": 1, "dead_letters": 2, "late_behind_watermark": 3, "delay_ms_p99": 9,
            "delay_ms_p999": 17, "lateness": {"le_ms": [0, 1, 4], "counts": [10, 0, 5, 5], "sum_ms": 12_000}},
        {"split": "b", "position": 7, "watermark_ms": null, "idle": false, "rows": 0, "bytes": null, "decode_ms": null,
            "lag_records": null, "lag_ms": null, "delay_ms_p99": null, "lateness": null},
    ])
}

fn sinks() -> Value {
    let commits = json!({"le_ms": [1, 2], "counts": [1, 2, 1], "sum_ms": 40.5});
    json!([{"sink": "out", "rows": 5, "bytes": 50, "open_transactions": 2, "commits": commits}])
}

fn figures() -> ProcessFigures {
    let mut requests = Metered { retries: 1, ..Metered::default() };
    requests.add_tally(Operation::Get, Purpose::State, Tally { requests: 1_000_000, bytes: 9 });
    let mut shared = Metered::default();
    shared.add_tally(Operation::Put, Purpose::State, Tally { requests: 2, bytes: 20 });
    let written = TaskWrites { flushed_bytes: 11, ..TaskWrites::default() };
    let mut gets = Latencies::default();
    [3, 30, 40_000].iter().for_each(|ms| gets.note(Duration::from_millis(*ms)));
    let store = StoreFigures {
        operators: BTreeMap::from([
            (String::new(), TaskUse { requests: shared.clone(), ..TaskUse::default() }),
            ("w".to_owned(), TaskUse { requests, written }),
        ]),
        requests: RequestUse { hedged: 4, gets, ..RequestUse::default() },
        ..StoreFigures::default()
    };
    let report = ReadReport { gets: 5, meta_gets: 2, disk_hits: 6, ..ReadReport::default() };
    let operator = OperatorFigures {
        subtasks: 2,
        memory_bytes: 100,
        dirty_bytes: 30,
        busy: Duration::from_millis(1_500),
        reads: ReadFigures { named: 10, asked: 4, report },
        ..OperatorFigures::default()
    };
    ProcessFigures {
        jobs: vec![JobFigures {
            job: "nexmark-q5".into(),
            id: "j\"1".into(),
            operators: BTreeMap::from([("w".to_owned(), operator)]),
            store,
        }],
        caches: Some(CacheStats { disk_capacity_bytes: 1, disk_rests: true, ..CacheStats::default() }),
        local: BTreeMap::from([("nexmark-q5".to_owned(), FileStats { files: 3, refused: 2, ..FileStats::default() })]),
        plan: Some(MemoryPlan::new(&Settings::defaults(), 1 << 33)),
        cluster_requests: shared,
        limits_per_s: (Some(70), Some(9)),
    }
}

fn text() -> String {
    let usage = Usage { cpu_s: Some(1.5), peak_rss_bytes: Some(3), rss_bytes: Some(2) };
    render(&usage, &figures(), &[document()])
}

#[test]
fn documents_and_figures_become_samples() {
    let text = text();
    let job = r#"job="nexmark-q5",id="j\"1""#;
    for line in [
        "process_cpu_seconds_total 1.5",
        "process_resident_memory_bytes 2",
        "millstream_events_in_total{JOB} 4000000",
        "millstream_job_state{JOB,state=\"running\"} 1",
        "millstream_job_state{JOB,state=\"failed\"} 0",
        "millstream_object_store_requests_total{JOB,operator=\"w\",purpose=\"state\",operation=\"get\"} 3",
        "millstream_object_store_requests_total{JOB,operator=\"shared\",purpose=\"state\",operation=\"put\"} 14",
        "millstream_object_store_limit_per_second{JOB,class=\"read\"} 70",
        "millstream_object_store_limiter_wait_seconds_total{JOB} 1.5",
        "millstream_checkpoint_duration_seconds_bucket{JOB,le=\"0.002\"} 3",
        "millstream_checkpoint_duration_seconds_count{JOB} 3",
        "millstream_split_idle{JOB,split=\"a\"} 1",
        "millstream_split_rows_total{JOB,split=\"a\"} 20",
        "millstream_split_lag_records{JOB,split=\"a\"} 4",
        "millstream_split_lag_seconds{JOB,split=\"a\"} 1.5",
        "millstream_split_decode_seconds_total{JOB,split=\"a\"} 0.0025",
        "millstream_split_lateness_seconds_bucket{JOB,split=\"a\",le=\"0\"} 10",
        "millstream_split_lateness_seconds_bucket{JOB,split=\"a\",le=\"0.004\"} 15",
        "millstream_split_lateness_seconds_bucket{JOB,split=\"a\",le=\"+Inf\"} 20",
        "millstream_split_lateness_seconds_sum{JOB,split=\"a\"} 12",
        "millstream_split_rows_total{JOB,split=\"b\"} 0",
        "millstream_sink_open_transactions{JOB,sink=\"out\"} 2",
        "millstream_sink_commit_duration_seconds_bucket{JOB,sink=\"out\",le=\"0.002\"} 3",
        "millstream_sink_commit_duration_seconds_count{JOB,sink=\"out\"} 4",
        "millstream_operator_busy_ratio{JOB,operator=\"w\"} 0.25",
        "millstream_operator_blocks_total{JOB,operator=\"w\",source=\"object-store\"} 1",
        "millstream_subtask_rows_in_total{JOB,operator=\"w\",subtask=\"1\"} 4",
        "millstream_process_object_store_requests_total{JOB,operator=\"w\",purpose=\"state\",operation=\"get\"} 1000000",
        "millstream_process_object_store_usd_total{JOB,operator=\"w\",purpose=\"state\"} 0.4",
        // Two of the worker and five of the coordinator, which are one process here.
        "millstream_process_object_store_requests_total{JOB,operator=\"shared\",purpose=\"state\",operation=\"put\"} 7",
        "millstream_process_object_store_requests_total{job=\"\",id=\"\",operator=\"shared\",purpose=\"state\",operation=\"put\"} 2",
        "millstream_process_read_gets_total{JOB,operator=\"w\",what=\"blocks\"} 3",
        "millstream_process_busy_seconds_total{JOB,operator=\"w\"} 1.5",
        "millstream_process_memory_used_bytes{part=\"rows\"} 70",
        "millstream_process_get_duration_seconds_bucket{JOB,purpose=\"state\",le=\"30\"} 2",
        "millstream_process_get_duration_seconds_bucket{JOB,purpose=\"state\",le=\"+Inf\"} 3",
        "millstream_process_ssd_rests 1",
        "millstream_process_local_files{job=\"nexmark-q5\"} 3",
        "millstream_process_local_refused_total{job=\"nexmark-q5\"} 2",
    ] {
        let line = line.replace("JOB", job);
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert_eq!(text.matches("# TYPE millstream_events_in_total counter").count(), 1);
    let of_b = text.lines().filter(|l| l.contains("split=\"b\"")).count();
    assert_eq!(of_b, 3, "position, idle and rows: all else is not known");
    assert!(
        !text.contains("millstream_late_rows_total{") && !text.contains("class=\"write\"} null"),
        "unknown is left out"
    );
    assert!(
        !text.contains("millstream_object_store_limit_per_second{job=\"nexmark-q5\",id=\"j\\\"1\",class=\"write\"}")
    );
}

#[test]
fn everything_in_the_list_is_served_and_no_series_twice() {
    let mut text = text();
    // The one that the document above says is not known.
    text.push_str(&render(&Usage::default(), &ProcessFigures::default(), &[json!({"late_rows": 0})]));
    let served = |name: &str| text.lines().any(|l| l.starts_with(&format!("# TYPE {name} ")));
    let missing: Vec<_> = METRICS.iter().map(|d| d.name).filter(|name| !served(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let text = self::text();
    let mut series: Vec<&str> =
        text.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.rsplit_once(' ')).map(|(s, _)| s).collect();
    let all = series.len();
    series.sort_unstable();
    series.dedup();
    assert_eq!(series.len(), all);
}

#[test]
fn the_list_keeps_to_the_customs_of_prometheus() {
    for def in METRICS {
        assert_eq!(METRICS.iter().filter(|d| d.name == def.name).count(), 1, "{}", def.name);
        assert_eq!(def.name.ends_with("_total"), def.kind == Kind::Counter, "{}", def.name);
        let of_process = def.name.starts_with("millstream_process_") || def.name.starts_with("process_");
        assert_eq!(of_process, def.of == list::Of::Process, "{}", def.name);
        assert!(def.help.ends_with('.') && !def.help.contains('|'), "{}", def.help);
    }
}

#[test]
fn a_process_that_runs_nothing_says_nothing_of_it() {
    let text = render(&Usage::default(), &ProcessFigures::default(), &[]);
    assert!(!text.contains("millstream_process_cache") && !text.contains("null"), "{text}");
}
