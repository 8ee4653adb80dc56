//! JSON documents of the contract as text for people. Only looks at what is there: a field that a document lacks or
//! that is null shows as `-`.

use millstream_formats::time::format_timestamp_ms;
use serde_json::Value;

use crate::table::{Table, bytes, grouped};

/// Watermarks beyond this are the end of time.
const END_OF_TIME_MS: i64 = i64::MAX / 4;

/// A `status` document.
#[must_use]
pub fn status(doc: &Value) -> String {
    let mut lines = vec![format!(
        "{}  {}  {}, parallelism {}, {} restarts",
        text(&doc["job"]),
        text(&doc["id"]),
        text(&doc["state"]),
        count(&doc["parallelism"]),
        count(&doc["restarts"])
    )];
    if doc["error"].is_object() {
        lines.push(format!("error[{}]: {}", text(&doc["error"]["code"]), text(&doc["error"]["what"])));
    }
    lines.push(format!(
        "version {} (epoch {}, generation {}), state {} in {} objects",
        count(&doc["version"]),
        count(&doc["epoch"]),
        count(&doc["generation"]),
        size(&doc["state_bytes"]),
        count(&doc["state_objects"])
    ));
    lines.push(format!(
        "{} rows in, {} rows out, {} late; watermark {}",
        count(&doc["events_in"]),
        count(&doc["rows_out"]),
        count(&doc["late_rows"]),
        time(&doc["watermark_ms"])
    ));
    lines.extend(lag(doc));
    let (checkpoints, store, cache) = (&doc["checkpoints"], &doc["object_store"], &doc["cache"]);
    lines.push(format!(
        "checkpoints: {} completed, {} failed, {} ms (p50), {} ms (max), last {} in {} PUTs",
        count(&checkpoints["completed"]),
        count(&checkpoints["failed"]),
        count(&checkpoints["duration_ms_p50"]),
        count(&checkpoints["duration_ms_max"]),
        size(&checkpoints["bytes_last"]),
        count(&checkpoints["puts_last"])
    ));
    lines.push(format!(
        "object store: {} GET, {} PUT, {} LIST, {} HEAD, read {}, wrote {}, about {} $",
        count(&store["get"]),
        count(&store["put"]),
        count(&store["list"]),
        count(&store["head"]),
        size(&store["bytes_read"]),
        size(&store["bytes_written"]),
        store["usd"].as_f64().map_or("-".to_owned(), |usd| format!("{usd:.4}"))
    ));
    lines.extend(throttled(store));
    lines.push(format!(
        "cache: {} hits in memory, {} on disk, {} misses",
        count(&cache["memory_hits"]),
        count(&cache["disk_hits"]),
        count(&cache["misses"])
    ));
    let compaction = &doc["compaction"];
    if compaction.is_object() {
        lines.push(format!(
            "compaction: {} done, {} running, read {}, wrote {} ({} flushed); {} to merge, {} runs at most",
            count(&compaction["completed"]),
            count(&compaction["running"]),
            size(&compaction["bytes_read"]),
            size(&compaction["bytes_written"]),
            size(&doc["writes"]["flushed_bytes"]),
            size(&compaction["debt_bytes"]),
            count(&compaction["runs_per_key_group_max"])
        ));
    }
    if doc["garbage"].is_object() {
        let garbage = &doc["garbage"];
        lines.push(format!(
            "garbage: versions from {} on are kept, {} pins; {} objects ({}) and {} records deleted, {} left-over objects",
            count(&garbage["boundary"]),
            count(&garbage["pins"]),
            count(&garbage["objects_deleted"]),
            size(&garbage["bytes_deleted"]),
            count(&garbage["records_deleted"]),
            count(&garbage["orphans_deleted"])
        ));
    }
    if doc["forked_from"].is_object() {
        let origin = &doc["forked_from"];
        lines.push(format!("forked from version {} of {}", text(&origin["version"]), text(&origin["job"])));
    }
    lines.push(String::new());
    lines.push(operators(doc));
    lines.join("\n")
}

/// How far sources are behind that know it, and what became of records that they cannot read.
fn lag(doc: &Value) -> Option<String> {
    let of = |field: &'static str| items(&doc["splits"]).filter_map(move |s| s[field].as_u64());
    let longest = of("lag_ms").max()?;
    let seconds = longest as f64 / 1e3;
    let sum = |field| count(&of(field).sum::<u64>().into());
    let (records, dropped, letters) = (sum("lag_records"), sum("dropped"), sum("dead_letters"));
    Some(format!(
        "behind by {records} records, {seconds:.1} s; {dropped} bad records dropped, {letters} written elsewhere"
    ))
}

/// What a store that throttles is sent at most.
fn throttled(store: &Value) -> Option<String> {
    let limit = |field: &str, what| Some(format!("{} {what} a second", store[field].as_u64()?));
    let limits: Vec<String> =
        [limit("reads_per_s_max", "reads"), limit("writes_per_s_max", "writes")].into_iter().flatten().collect();
    (!limits.is_empty()).then(|| format!("the object store throttles: {} from a worker at most", limits.join(", ")))
}

fn operators(doc: &Value) -> String {
    let mut table = Table::new(&[
        "operator",
        "parallelism",
        "rows in",
        "rows out",
        "busy",
        "back-pressured",
        "state wait",
        "merge wait",
    ]);
    for op in items(&doc["operators"]) {
        table.row(vec![
            text(&op["name"]),
            count(&op["parallelism"]),
            count(&op["rows_in"]),
            count(&op["rows_out"]),
            share(&op["busy"]),
            share(&op["back_pressured"]),
            share(&op["state_wait"]),
            share(&op["merge_wait"]),
        ]);
    }
    table.render()
}

/// A `list` document.
#[must_use]
pub fn list(doc: &Value) -> String {
    let mut table = Table::new(&["id", "name", "state", "parallelism"]);
    for job in items(doc) {
        table.row(vec![text(&job["id"]), text(&job["name"]), text(&job["state"]), count(&job["parallelism"])]);
    }
    table.render()
}

/// A `workers` document.
#[must_use]
pub fn workers(doc: &Value) -> String {
    let mut table = Table::new(&["worker", "role", "pid", "address", "slots", "free", "compactions", "leaving"]);
    for w in items(doc) {
        // A compactor's slots are for compactions.
        let (all, running) = (w["compaction_slots"].as_u64().unwrap_or(0), w["compactions"].as_u64().unwrap_or(0));
        let of_compactor = w["role"] == "compactor";
        let slots = if of_compactor { count(&all.into()) } else { count(&w["slots"]) };
        let free = if of_compactor { count(&all.saturating_sub(running).into()) } else { count(&w["free"]) };
        table.row(vec![
            text(&w["worker"]),
            text(&w["role"]),
            text(&w["pid"]),
            text(&w["address"]),
            slots,
            free,
            count(&running.into()),
            w["leaving"].as_bool().map_or("-", |yes| if yes { "yes" } else { "no" }).to_owned(),
        ]);
    }
    table.render()
}

/// A `versions` document.
#[must_use]
pub fn versions(doc: &Value) -> String {
    let mut table =
        Table::new(&["version", "epoch", "committed", "parallelism", "state", "objects", "written", "restorable"]);
    for v in items(doc) {
        table.row(vec![
            // Numbers are named in commands: no separators.
            text(&v["version"]),
            text(&v["epoch"]),
            time(&v["committed_ms"]),
            count(&v["parallelism"]),
            size(&v["state_bytes"]),
            count(&v["state_objects"]),
            size(&v["bytes_written"]),
            v["restorable"].as_bool().map_or("-", |yes| if yes { "yes" } else { "no" }).to_owned(),
        ]);
    }
    table.render()
}

/// A `state ls` document.
#[must_use]
pub fn states(doc: &Value) -> String {
    let mut table = Table::new(&["state", "layout", "entries", "bytes", "runs", "schema"]);
    for state in items(doc) {
        table.row(vec![
            text(&state["state"]),
            text(&state["layout"]),
            count(&state["entries"]),
            size(&state["bytes"]),
            count(&state["runs"]),
            text(&state["schema"]),
        ]);
    }
    table.render()
}

/// A `pins` document.
#[must_use]
pub fn pins(doc: &Value) -> String {
    let mut table = Table::new(&["pin", "version", "kind", "created", "by"]);
    for p in items(doc) {
        let (id, version) = (text(&p["id"]), text(&p["version"]));
        table.row(vec![id, version, text(&p["kind"]), time(&p["created_ms"]), text(&p["who"])]);
    }
    table.render()
}

/// A `jobs` document.
#[must_use]
pub fn jobs(doc: &Value) -> String {
    let mut table = Table::new(&["job", "description"]);
    for job in items(doc) {
        table.row(vec![text(&job["name"]), text(&job["description"])]);
    }
    table.render()
}

/// The entries of a list; none when it is no list.
pub fn items(doc: &Value) -> impl Iterator<Item = &Value> {
    doc.as_array().into_iter().flatten()
}

/// A moment in milliseconds.
#[must_use]
pub fn time(value: &Value) -> String {
    match value.as_i64() {
        Some(ms) if ms >= END_OF_TIME_MS => "end of time".to_owned(),
        Some(ms) if ms > -END_OF_TIME_MS => format_timestamp_ms(ms),
        _ => "-".to_owned(),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn count(value: &Value) -> String {
    value.as_u64().map_or_else(|| text(value), grouped)
}

fn size(value: &Value) -> String {
    value.as_u64().map_or_else(|| text(value), bytes)
}

fn share(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), |x| format!("{:.0} %", x * 100.0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_shows_what_is_known_and_a_dash_for_the_rest() {
        let doc = json!({
            "job": "nexmark-q5", "id": "j1", "state": "running", "parallelism": 2, "restarts": 0, "version": 17,
            "epoch": 17, "generation": 1, "state_bytes": 1_500_000, "state_objects": 12, "events_in": 4_000_000,
            "rows_out": 29, "late_rows": 0, "watermark_ms": 1_767_225_604_330_i64,
            "splits": [{"lag_records": 1_000, "lag_ms": 1_500, "dropped": 2, "dead_letters": 0}, {"lag_records": null},
                {"lag_records": 500, "lag_ms": 0, "dropped": 1, "dead_letters": null}],
            "operators": [{"name": "window", "parallelism": 2, "rows_in": 1000, "rows_out": 1, "busy": 0.4, "state_wait": null}],
        });
        let shown = status(&doc);
        for part in
            ["nexmark-q5  j1  running", "4,000,000 rows in", "1.5 MB in 12 objects", "2026-01-01 00:00:04.330", "40 %"]
        {
            assert!(shown.contains(part), "{part} is not in\n{shown}");
        }
        assert!(shown.contains("- GET"), "{shown}");
        assert!(
            shown.contains("behind by 1,500 records, 1.5 s; 3 bad records dropped, 0 written elsewhere"),
            "{shown}"
        );
        assert!(!shown.contains("error[") && !shown.contains("null"), "{shown}");
    }

    #[test]
    fn failures_and_the_end_of_time() {
        let doc = json!({"error": {"code": "MS3002", "kind": 1, "what": "bad line; at a.ndjson:51"}, "watermark_ms": i64::MAX});
        let shown = status(&doc);
        assert!(
            shown.contains("error[MS3002]: bad line; at a.ndjson:51\n") && shown.contains("end of time"),
            "{shown}"
        );
    }

    #[test]
    fn lists() {
        assert_eq!(list(&json!([])), "id  name  state  parallelism");
        let v = json!([{"version": 1234, "epoch": 5, "committed_ms": 0, "parallelism": 2, "state_bytes": 0,
            "state_objects": 1, "bytes_written": 10, "restorable": true}]);
        assert!(
            versions(&v).contains("1234")
                && versions(&v).contains("1970-01-01 00:00:00.000")
                && versions(&v).ends_with("yes")
        );
        assert!(jobs(&json!([{"name": "a", "description": "b"}])).ends_with("a    b"));
    }
}
