//! Counters as Prometheus text, made from the documents of the contract: what `status --json` says and what /metrics
//! says is the same.

use std::collections::BTreeMap;
use std::fmt::Write;

use millstream_common::env::BoxFuture;
use serde_json::Value;

use crate::people::items;
use crate::usage::Usage;

/// Who knows the counters of a process.
pub trait MetricsSource: Send + Sync {
    /// `status` documents of the jobs that this process has a part in; empty when nobody can tell now.
    fn documents(&self) -> BoxFuture<'_, Vec<Value>>;
}

/// Families of samples, by name. Each is written once with its type, as the format wants it.
#[derive(Default)]
struct Families(BTreeMap<&'static str, Family>);

struct Family {
    kind: &'static str,
    /// Labels as text, and the value.
    samples: Vec<(String, f64)>,
}

impl Families {
    /// Adds a sample; null and text count as unknown and are left out.
    fn add(&mut self, name: &'static str, kind: &'static str, labels: &[(&str, &str)], value: &Value) {
        let number = value.as_f64().or_else(|| value.as_bool().map(f64::from));
        if let Some(number) = number {
            let family = self.0.entry(name).or_insert_with(|| Family { kind, samples: Vec::new() });
            family.samples.push((labels_text(labels), number));
        }
    }

    fn render(&self) -> String {
        let mut out = String::new();
        for (name, Family { kind, samples }) in &self.0 {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "# TYPE {name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(out, "{name}{labels} {value}");
            }
        }
        out
    }
}

fn labels_text(labels: &[(&str, &str)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let escaped = |v: &str| v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let pairs: Vec<_> = labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escaped(v))).collect();
    format!("{{{}}}", pairs.join(","))
}

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";

/// Fields of the document itself: metric, type, field.
const OF_JOB: [(&str, &str, &str); 13] = [
    ("millstream_parallelism", GAUGE, "parallelism"),
    ("millstream_version", GAUGE, "version"),
    ("millstream_epoch", GAUGE, "epoch"),
    ("millstream_generation", GAUGE, "generation"),
    ("millstream_restarts_total", COUNTER, "restarts"),
    ("millstream_events_in_total", COUNTER, "events_in"),
    ("millstream_rows_out_total", COUNTER, "rows_out"),
    ("millstream_late_rows_total", COUNTER, "late_rows"),
    ("millstream_job_cpu_seconds_total", COUNTER, "cpu_s"),
    ("millstream_job_peak_rss_bytes", GAUGE, "peak_rss_bytes"),
    ("millstream_watermark_ms", GAUGE, "watermark_ms"),
    ("millstream_state_bytes", GAUGE, "state_bytes"),
    ("millstream_state_objects", GAUGE, "state_objects"),
];

const OF_CHECKPOINTS: [(&str, &str, &str); 6] = [
    ("millstream_checkpoints_completed_total", COUNTER, "completed"),
    ("millstream_checkpoints_failed_total", COUNTER, "failed"),
    ("millstream_checkpoint_duration_ms_p50", GAUGE, "duration_ms_p50"),
    ("millstream_checkpoint_duration_ms_max", GAUGE, "duration_ms_max"),
    ("millstream_checkpoint_last_bytes", GAUGE, "bytes_last"),
    ("millstream_checkpoint_last_puts", GAUGE, "puts_last"),
];

const REQUESTS: [&str; 6] = ["get", "put", "list", "head", "delete", "copy"];

const STATES: [&str; 7] = ["created", "running", "restarting", "stopped", "finished", "failed", "canceled"];

/// The text for what this process used and for `documents`.
#[must_use]
pub fn render(usage: &Usage, documents: &[Value]) -> String {
    let mut families = Families::default();
    families.add("process_cpu_seconds_total", COUNTER, &[], &usage.cpu_s.into());
    families.add("millstream_process_peak_rss_bytes", GAUGE, &[], &usage.peak_rss_bytes.into());
    for doc in documents {
        add_job(&mut families, doc);
    }
    families.render()
}

fn add_job(families: &mut Families, doc: &Value) {
    let (job, id) = (doc["job"].as_str().unwrap_or(""), doc["id"].as_str().unwrap_or(""));
    let labels = [("job", job), ("id", id)];
    for state in STATES {
        let on = Value::from(u8::from(doc["state"] == state));
        families.add("millstream_job_state", GAUGE, &[labels[0], labels[1], ("state", state)], &on);
    }
    for (name, kind, field) in OF_JOB {
        families.add(name, kind, &labels, &doc[field]);
    }
    for (name, kind, field) in OF_CHECKPOINTS {
        families.add(name, kind, &labels, &doc["checkpoints"][field]);
    }
    let store = &doc["object_store"];
    for operation in REQUESTS {
        let labels = [labels[0], labels[1], ("operation", operation)];
        families.add("millstream_object_store_requests_total", COUNTER, &labels, &store[operation]);
    }
    families.add("millstream_object_store_read_bytes_total", COUNTER, &labels, &store["bytes_read"]);
    families.add("millstream_object_store_written_bytes_total", COUNTER, &labels, &store["bytes_written"]);
    families.add("millstream_object_store_usd_total", COUNTER, &labels, &store["usd"]);
    for (tier, field) in [("memory", "memory_hits"), ("disk", "disk_hits")] {
        let labels = [labels[0], labels[1], ("tier", tier)];
        families.add("millstream_cache_hits_total", COUNTER, &labels, &doc["cache"][field]);
    }
    families.add("millstream_cache_misses_total", COUNTER, &labels, &doc["cache"]["misses"]);
    families.add("millstream_rescales_total", COUNTER, &labels, &items(&doc["rescales"]).count().into());
    for op in items(&doc["operators"]) {
        add_operator(families, &labels, op);
    }
    for split in items(&doc["splits"]) {
        let labels = [labels[0], labels[1], ("split", split["split"].as_str().unwrap_or(""))];
        families.add("millstream_split_position", GAUGE, &labels, &split["position"]);
        families.add("millstream_split_watermark_ms", GAUGE, &labels, &split["watermark_ms"]);
        families.add("millstream_split_idle", GAUGE, &labels, &split["idle"]);
    }
}

fn add_operator(families: &mut Families, job: &[(&str, &str); 2], op: &Value) {
    let labels = [job[0], job[1], ("operator", op["uid"].as_str().or(op["name"].as_str()).unwrap_or(""))];
    families.add("millstream_operator_rows_in_total", COUNTER, &labels, &op["rows_in"]);
    families.add("millstream_operator_rows_out_total", COUNTER, &labels, &op["rows_out"]);
    families.add("millstream_operator_busy_ratio", GAUGE, &labels, &op["busy"]);
    families.add("millstream_operator_back_pressured_ratio", GAUGE, &labels, &op["back_pressured"]);
    families.add("millstream_operator_state_wait_ratio", GAUGE, &labels, &op["state_wait"]);
    for subtask in items(&op["subtasks"]) {
        let index = subtask["index"].to_string();
        let labels = [labels[0], labels[1], labels[2], ("subtask", index.as_str())];
        families.add("millstream_subtask_rows_in_total", COUNTER, &labels, &subtask["rows_in"]);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_document_becomes_samples() {
        let doc = json!({
            "job": "nexmark-q5", "id": "j\"1", "state": "running", "events_in": 4_000_000, "late_rows": null,
            "checkpoints": {"completed": 6}, "object_store": {"get": 0, "put": 14, "usd": 0.00007},
            "cache": {"memory_hits": 3}, "splits": [{"split": "a", "position": 7, "idle": true}],
            "operators": [{"uid": "w", "rows_in": 10, "busy": 0.25, "subtasks": [{"index": 1, "rows_in": 4}]}],
        });
        let usage = Usage { cpu_s: Some(1.5), peak_rss_bytes: None };
        let text = render(&usage, &[doc.clone(), doc]);
        for line in [
            "process_cpu_seconds_total 1.5",
            "millstream_events_in_total{job=\"nexmark-q5\",id=\"j\\\"1\"} 4000000",
            "millstream_job_state{job=\"nexmark-q5\",id=\"j\\\"1\",state=\"running\"} 1",
            "millstream_job_state{job=\"nexmark-q5\",id=\"j\\\"1\",state=\"failed\"} 0",
            "millstream_object_store_requests_total{job=\"nexmark-q5\",id=\"j\\\"1\",operation=\"put\"} 14",
            "millstream_object_store_usd_total{job=\"nexmark-q5\",id=\"j\\\"1\"} 0.00007",
            "millstream_split_idle{job=\"nexmark-q5\",id=\"j\\\"1\",split=\"a\"} 1",
            "millstream_operator_busy_ratio{job=\"nexmark-q5\",id=\"j\\\"1\",operator=\"w\"} 0.25",
            "millstream_subtask_rows_in_total{job=\"nexmark-q5\",id=\"j\\\"1\",operator=\"w\",subtask=\"1\"} 4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("# TYPE millstream_events_in_total counter").count(), 1);
        assert!(!text.contains("late_rows") && !text.contains("peak_rss"), "unknown is left out, never 0");
    }
}
