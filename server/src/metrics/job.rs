//! Metrics of jobs, from the documents of the contract: what `status --json` says and what /metrics says is the same.

use millstream_common::latency::Latencies;
use serde_json::Value;

use super::families::Families;
use super::shown_operator;
use crate::people::items;

/// Fields of the document itself: metric, field.
const OF_JOB: [(&str, &str); 13] = [
    ("millstream_parallelism", "parallelism"),
    ("millstream_version", "version"),
    ("millstream_epoch", "epoch"),
    ("millstream_generation", "generation"),
    ("millstream_restarts_total", "restarts"),
    ("millstream_events_in_total", "events_in"),
    ("millstream_rows_out_total", "rows_out"),
    ("millstream_late_rows_total", "late_rows"),
    ("millstream_job_cpu_seconds_total", "cpu_s"),
    ("millstream_job_peak_rss_bytes", "peak_rss_bytes"),
    ("millstream_watermark_ms", "watermark_ms"),
    ("millstream_state_bytes", "state_bytes"),
    ("millstream_state_objects", "state_objects"),
];

const OF_CHECKPOINTS: [(&str, &str); 8] = [
    ("millstream_checkpoints_completed_total", "completed"),
    ("millstream_checkpoints_failed_total", "failed"),
    ("millstream_checkpoint_duration_ms_p50", "duration_ms_p50"),
    ("millstream_checkpoint_duration_ms_max", "duration_ms_max"),
    ("millstream_checkpoint_bytes_total", "bytes"),
    ("millstream_checkpoint_puts_total", "puts"),
    ("millstream_checkpoint_last_bytes", "bytes_last"),
    ("millstream_checkpoint_last_puts", "puts_last"),
];

const OF_STORE: [(&str, &str); 4] = [
    ("millstream_object_store_read_bytes_total", "bytes_read"),
    ("millstream_object_store_written_bytes_total", "bytes_written"),
    ("millstream_object_store_retries_total", "retries"),
    ("millstream_object_store_throttled_total", "throttled"),
];

const OF_COMPACTION: [(&str, &str); 2] =
    [("millstream_compaction_debt_bytes", "debt_bytes"), ("millstream_compactions_running", "running")];

const OF_VERSIONS: [(&str, &str); 4] = [
    ("millstream_versions_checkpoints", "checkpoints"),
    ("millstream_versions_records", "records"),
    ("millstream_versions_objects", "objects"),
    ("millstream_versions_bytes", "bytes"),
];

const OF_OPERATOR: [(&str, &str); 6] = [
    ("millstream_operator_rows_in_total", "rows_in"),
    ("millstream_operator_rows_out_total", "rows_out"),
    ("millstream_operator_busy_ratio", "busy"),
    ("millstream_operator_back_pressured_ratio", "back_pressured"),
    ("millstream_operator_state_wait_ratio", "state_wait"),
    ("millstream_operator_merge_wait_ratio", "merge_wait"),
];

const OF_WRITES: [(&str, &str); 4] = [
    ("millstream_operator_flushed_bytes_total", "flushed_bytes"),
    ("millstream_operator_compactions_total", "compactions"),
    ("millstream_operator_compaction_in_bytes_total", "compaction_bytes_in"),
    ("millstream_operator_compaction_out_bytes_total", "compaction_bytes_out"),
];

const OF_READS: [(&str, &str); 3] = [
    ("millstream_operator_keys_named_total", "keys_named"),
    ("millstream_operator_keys_asked_total", "keys_asked"),
    ("millstream_operator_read_gets_total", "gets"),
];

const OF_SPLIT: [(&str, &str); 11] = [
    ("millstream_split_position", "position"),
    ("millstream_split_watermark_ms", "watermark_ms"),
    ("millstream_split_idle", "idle"),
    ("millstream_split_rows_total", "rows"),
    ("millstream_split_bytes_total", "bytes"),
    ("millstream_split_lag_records", "lag_records"),
    ("millstream_split_dropped_total", "dropped"),
    ("millstream_split_dead_letters_total", "dead_letters"),
    ("millstream_split_behind_watermark_total", "late_behind_watermark"),
    ("millstream_split_delay_ms_p99", "delay_ms_p99"),
    ("millstream_split_delay_ms_p999", "delay_ms_p999"),
];

/// Milliseconds there, seconds here.
const SECONDS_OF_SPLIT: [(&str, &str); 2] =
    [("millstream_split_lag_seconds", "lag_ms"), ("millstream_split_decode_seconds_total", "decode_ms")];

const OF_SINK: [(&str, &str); 3] = [
    ("millstream_sink_rows_total", "rows"),
    ("millstream_sink_bytes_total", "bytes"),
    ("millstream_sink_open_transactions", "open_transactions"),
];

/// Where a block was: the label, and the field.
const SOURCES: [(&str, &str); 4] =
    [("memory", "memory_hits"), ("ssd", "disk_hits"), ("shared", "shared"), ("object-store", "misses")];

const STATES: [&str; 7] = ["created", "running", "restarting", "stopped", "finished", "failed", "canceled"];

pub(super) fn add(families: &mut Families, doc: &Value) {
    let labels = [doc["job"].as_str().unwrap_or(""), doc["id"].as_str().unwrap_or("")];
    let with = |value| [labels[0], labels[1], value];
    for state in STATES {
        families.add("millstream_job_state", &with(state), f64::from(doc["state"] == state));
    }
    fields(families, &OF_JOB, &labels, doc);
    fields(families, &OF_CHECKPOINTS, &labels, &doc["checkpoints"]);
    if let Some(durations) = durations(&doc["checkpoints"]["durations"]) {
        families.durations("millstream_checkpoint_duration_seconds", &labels, &durations);
    }
    add_store(families, labels, &doc["object_store"]);
    for (tier, field) in [("memory", "memory_hits"), ("disk", "disk_hits")] {
        families.json("millstream_cache_hits_total", &with(tier), &doc["cache"][field]);
    }
    families.json("millstream_cache_misses_total", &labels, &doc["cache"]["misses"]);
    families.count("millstream_rescales_total", &labels, items(&doc["rescales"]).count() as u64);
    fields(families, &OF_COMPACTION, &labels, &doc["compaction"]);
    fields(families, &OF_VERSIONS, &labels, &doc["versions"]);
    add_collected(families, labels, &doc["garbage"]);
    for op in items(&doc["operators"]) {
        add_operator(families, labels, op);
    }
    for split in items(&doc["splits"]) {
        add_split(families, &with(split["split"].as_str().unwrap_or("")), split);
    }
    for sink in items(&doc["sinks"]) {
        let labels = with(sink["sink"].as_str().unwrap_or(""));
        fields(families, &OF_SINK, &labels, sink);
        families.buckets("millstream_sink_commit_duration_seconds", &labels, &sink["commits"]);
    }
}

fn add_split(families: &mut Families, labels: &[&str], split: &Value) {
    fields(families, &OF_SPLIT, labels, split);
    for (name, field) in SECONDS_OF_SPLIT {
        if let Some(ms) = split[field].as_f64() {
            families.add(name, labels, ms / 1e3);
        }
    }
    families.buckets("millstream_split_lateness_seconds", labels, &split["lateness"]);
}

fn fields(families: &mut Families, fields: &[(&str, &str)], labels: &[&str], of: &Value) {
    for (name, field) in fields {
        families.json(name, labels, &of[*field]);
    }
}

fn add_store(families: &mut Families, [job, id]: [&str; 2], store: &Value) {
    fields(families, &OF_STORE, &[job, id], store);
    if let Some(ms) = store["limiter_wait_ms"].as_f64() {
        families.add("millstream_object_store_limiter_wait_seconds_total", &[job, id], ms / 1e3);
    }
    for (class, field) in [("read", "reads_per_s_max"), ("write", "writes_per_s_max")] {
        families.json("millstream_object_store_limit_per_second", &[job, id, class], &store[field]);
    }
    for row in items(&store["by"]) {
        let [operator, purpose, operation] = words(row);
        let labels = [job, id, operator, purpose, operation];
        families.json("millstream_object_store_requests_total", &labels, &row["requests"]);
        families.json("millstream_object_store_usd_total", &labels[..4], &row["usd"]);
    }
}

/// What a coordinator asked of the object store for a job, by itself.
pub(super) fn add_of_coordinator(families: &mut Families, doc: &Value) {
    let (job, id) = (doc["job"].as_str().unwrap_or(""), doc["id"].as_str().unwrap_or(""));
    for row in items(&doc["object_store"]["coordinator"]) {
        let [operator, purpose, operation] = words(row);
        let labels = [job, id, operator, purpose, operation];
        families.json("millstream_process_object_store_requests_total", &labels, &row["requests"]);
        families.json("millstream_process_object_store_bytes_total", &labels, &row["bytes"]);
        families.json("millstream_process_object_store_usd_total", &labels[..4], &row["usd"]);
    }
}

fn words(row: &Value) -> [&str; 3] {
    let word = |field: &str| row[field].as_str().unwrap_or("");
    [shown_operator(word("operator")), word("purpose"), word("operation")]
}

fn add_collected(families: &mut Families, [job, id]: [&str; 2], garbage: &Value) {
    families.json("millstream_collections_total", &[job, id], &garbage["collections"]);
    families.json("millstream_collections_failed_total", &[job, id], &garbage["failed"]);
    for (what, objects, bytes) in [
        ("state", "objects_deleted", "bytes_deleted"),
        ("record", "records_deleted", ""),
        ("orphan", "orphans_deleted", "orphan_bytes_deleted"),
    ] {
        families.json("millstream_collected_objects_total", &[job, id, what], &garbage[objects]);
        families.json("millstream_collected_bytes_total", &[job, id, what], &garbage[bytes]);
    }
}

fn add_operator(families: &mut Families, [job, id]: [&str; 2], op: &Value) {
    let operator = op["uid"].as_str().or(op["name"].as_str()).unwrap_or("");
    let labels = [job, id, operator];
    fields(families, &OF_OPERATOR, &labels, op);
    fields(families, &OF_WRITES, &labels, &op["writes"]);
    fields(families, &OF_READS, &labels, &op["reads"]);
    for (source, field) in SOURCES {
        families.json("millstream_operator_blocks_total", &[job, id, operator, source], &op["reads"][field]);
    }
    families.json("millstream_operator_runs_per_key_group_max", &labels, &op["runs_per_key_group_max"]);
    for subtask in items(&op["subtasks"]) {
        let index = subtask["index"].to_string();
        families.json("millstream_subtask_rows_in_total", &[job, id, operator, &index], &subtask["rows_in"]);
    }
}

/// Durations as a document has them.
fn durations(doc: &Value) -> Option<Latencies> {
    let counts: Option<Vec<u64>> = doc["counts"].as_array()?.iter().map(Value::as_u64).collect();
    Some(Latencies::of(&counts?, (doc["sum_ms"].as_f64()? * 1e3) as u64))
}
