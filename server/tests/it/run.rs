//! `run`: a whole cluster in one process.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::{Done, command, millstream_in};

/// The lines of all committed files, in the order of the names.
pub fn lines(folder: &Path) -> Vec<String> {
    let mut files: Vec<_> = match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|e| e.unwrap().path()).collect(),
        Err(_) => return Vec::new(),
    };
    files.retain(|f| f.file_name().unwrap().to_string_lossy().starts_with("part-"));
    files.sort();
    files
        .iter()
        .flat_map(|f| std::fs::read_to_string(f).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

fn run(folder: &Path, words: &[&str]) -> Done {
    millstream_in(folder, &[&["run"], words].concat())
}

/// Counts of keyed-count's output by key.
fn counts(folder: &Path) -> BTreeMap<i64, i64> {
    let row = |l: &String| {
        let row: serde_json::Value = serde_json::from_str(l).unwrap();
        (row["key"].as_i64().unwrap(), row["count"].as_i64().unwrap())
    };
    lines(folder).iter().map(row).collect()
}

#[test]
fn a_job_runs_to_its_end_and_says_what_it_did() {
    let folder = tempfile::tempdir().unwrap();
    let words =
        ["nexmark-q1", "-p", "2", "--json", "--summary", "s.json", "--", "--events", "10000", "--output", "files:out"];
    let done = run(folder.path(), &words).ok();
    let summary: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.path().join("s.json")).unwrap()).unwrap();
    assert_eq!(done.json(), summary);
    assert_eq!((&summary["job"], &summary["state"]), (&"nexmark-q1".into(), &"finished".into()));
    assert_eq!((&summary["parallelism"], &summary["events_in"]), (&2.into(), &10_000.into()));
    assert_eq!(summary["late_rows"], 0);
    // 46 of 50 events are bids.
    assert_eq!((&summary["rows_out"], lines(&folder.path().join("out")).len()), (&9_200.into(), 9_200));
    for field in ["cpu_s", "peak_rss_bytes", "wall_s", "checkpoints", "object_store", "cache", "splits", "operators"] {
        assert!(!summary[field].is_null(), "{field} is missing");
    }
    assert!(summary["peak_rss_bytes"].as_u64().unwrap() > 1 << 20);

    let splits = summary["splits"].as_array().unwrap();
    assert_eq!(splits.iter().map(|s| s["rows"].as_u64().unwrap()).sum::<u64>(), 10_000);
    for split in splits {
        // The generator's events are in order, and it knows no bytes.
        let (behind, delay) = (&split["late_behind_watermark"], &split["delay_ms_p999"]);
        assert_eq!((behind, delay, &split["bytes"]), (&0.into(), &1.into(), &serde_json::Value::Null), "{split}");
    }
    let sink = &summary["sinks"][0];
    let text: usize = lines(&folder.path().join("out")).iter().map(|l| l.len() + 1).sum();
    assert_eq!((&sink["rows"], &sink["bytes"]), (&9_200.into(), &text.into()), "{sink}");
    let commits: u64 = sink["commits"]["counts"].as_array().unwrap().iter().map(|c| c.as_u64().unwrap()).sum();
    assert!(commits >= 2, "a file of each subtask at least: {sink}");
}

#[test]
fn print_writes_rows_and_nothing_else_to_stdout() {
    let folder = tempfile::tempdir().unwrap();
    let done = run(folder.path(), &["nexmark-q1", "-p", "1", "--", "--events", "500"]).ok();
    assert_eq!(done.out.lines().count(), 460, "{}", done.err);
    assert!(done.out.lines().all(|l| l.starts_with('{') && l.ends_with('}')));
}

#[test]
fn a_reader_that_has_seen_enough_ends_the_job() {
    use std::io::BufRead;
    let mut child = command(&["run", "nexmark-q1", "-p", "1", "--", "--events", "0", "--rate", "2000"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with('{'));
    let done = Done::of(child.wait_with_output().unwrap()).ok();
    assert!(!done.err.contains("error"), "{}", done.err);
}

#[test]
fn the_ssd_tier_leaves_stdout_alone() {
    let folder = tempfile::tempdir().unwrap();
    let state = format!("file://{}/state", folder.path().display());
    let words =
        ["nexmark-q17", "-p", "1", "--json", "--state", &state, "--cache-disk", "100MB", "--cache-dir", "cache", "--"];
    let summary =
        run(folder.path(), &[&words[..], &["--events", "2000", "--output", "blackhole"]].concat()).ok().json();
    assert_eq!(summary["state"], "finished");
    assert!(folder.path().join("cache").is_dir());
}

#[test]
fn a_finished_job_says_so_and_writes_nothing_again() {
    let folder = tempfile::tempdir().unwrap();
    let state = format!("file://{}/state", folder.path().display());
    let words = [
        "keyed-count",
        "-p",
        "2",
        "--state",
        &state,
        "--",
        "--keys",
        "3000",
        "--events",
        "6000",
        "--output",
        "files:out",
    ];
    run(folder.path(), &words).ok();
    let first = counts(&folder.path().join("out"));
    assert_eq!(first, BTreeMap::from([(-1, 6000), (0, 2), (1000, 2), (2000, 2)]));
    let again = run(folder.path(), &words).ok();
    assert!(again.err.contains("finished"), "{}", again.err);
    assert_eq!(lines(&folder.path().join("out")).len(), 4);

    let versions = crate::millstream(&["versions", "keyed-count", "--state", &state, "--json"]).ok().json();
    let versions = versions.as_array().unwrap();
    assert!(!versions.is_empty());
    for field in [
        "version",
        "epoch",
        "committed_ms",
        "parallelism",
        "state_bytes",
        "state_objects",
        "bytes_written",
        "restorable",
    ] {
        assert!(!versions[0][field].is_null(), "{field} is missing");
    }
    let list = crate::millstream(&["list", "--state", &state, "--json"]).ok().json();
    assert_eq!((&list[0]["name"], &list[0]["state"]), (&"keyed-count".into(), &"finished".into()));
    let report = crate::millstream(&["fsck", "--state", &state, "--json"]).ok().json();
    assert_eq!((&report["whole"], &report["jobs"]), (&true.into(), &serde_json::json!(["keyed-count"])));
}

#[test]
fn the_state_of_another_job_is_refused_with_both_shown() {
    let folder = tempfile::tempdir().unwrap();
    let state = format!("file://{}/state", folder.path().display());
    let go = |job: &str, more: &[&str]| {
        let words = [&[job, "-p", "1", "--state", &state, "--name", "x"], more].concat();
        run(folder.path(), &words)
    };
    go("nexmark-q17", &["--", "--events", "1000", "--output", "blackhole"]).ok();
    go("nexmark-q5", &["--", "--events", "1000", "--output", "blackhole"]).refused(1, &["nexmark-q5", "nexmark-q17"]);
    go("nexmark-q17", &["--", "--events", "2000", "--output", "blackhole"]).refused(1, &["events", "1000", "2000"]);
    let none = ["--from", "none", "--", "--events", "1000", "--output", "blackhole"];
    go("nexmark-q17", &none).refused(1, &["--discard-state", "state/x"]);
    let absent = ["--from", "77", "--", "--events", "1000", "--output", "blackhole"];
    go("nexmark-q17", &absent).refused(1, &["MS1504", "77", "state/x"]);
}

#[test]
fn bad_input_names_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("bad.ndjson"), "{\"event_type\":2,\"bid\":{\"auction\":}\n").unwrap();
    run(folder.path(), &["nexmark-q1", "--", "--input", "bad.ndjson", "--output", "blackhole"])
        .refused(1, &["bad.ndjson", "1"])
        .once("bad.ndjson");
    run(folder.path(), &["nexmark-q1", "--", "--input", "nowhere.ndjson"]).refused(1, &["nowhere.ndjson"]);
    let twice = ["nexmark-q1", "--", "--input", "bad.ndjson", "./bad.ndjson", "--output", "blackhole"];
    run(folder.path(), &twice).refused(1, &["MS1311", "bad.ndjson", "twice"]);
}

#[test]
fn a_job_goes_on_after_a_kill_exactly_once() {
    let folder = tempfile::tempdir().unwrap();
    let state = format!("file://{}/state", folder.path().display());
    let words = [
        "run",
        "keyed-count",
        "-p",
        "2",
        "--state",
        &state,
        "--checkpoint-interval",
        "100ms",
        "--summary",
        "s.json",
        "--",
        "--keys",
        "5000",
        "--events",
        "20000",
        "--output",
        "files:out",
        "--rate",
    ];
    let mut child = command(&[&words[..], &["5000"]].concat()).current_dir(folder.path()).spawn().unwrap();
    let versions = folder.path().join("state/keyed-count/version");
    let start = Instant::now();
    while std::fs::read_dir(&versions).map_or(0, Iterator::count) < 6 {
        assert!(start.elapsed() < Duration::from_secs(30), "no version within 30 s");
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    millstream_in(folder.path(), &[&words[..], &["0"]].concat()).ok();
    let counted = counts(&folder.path().join("out"));
    assert_eq!(counted[&-1], 20_000);
    assert!((0..5).all(|k| counted[&(k * 1000)] == 4), "{counted:?}");
    let summary: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.path().join("s.json")).unwrap()).unwrap();
    assert!(!summary["restored_from_version"].is_null());
    assert!(summary["events_in"].as_u64().unwrap() < 20_000, "it began at the start");
}

#[test]
fn a_later_run_fences_the_earlier() {
    let folder = tempfile::tempdir().unwrap();
    let state = format!("file://{}/state", folder.path().display());
    let words = [
        "run",
        "nexmark-q1",
        "-p",
        "1",
        "--state",
        &state,
        "--checkpoint-interval",
        "100ms",
        "--",
        "--events",
        "3000",
        "--output",
        "blackhole",
        "--rate",
    ];
    let first = command(&[&words[..], &["200"]].concat())
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let versions = folder.path().join("state/nexmark-q1/version");
    let start = Instant::now();
    while std::fs::read_dir(&versions).map_or(0, Iterator::count) < 3 {
        assert!(start.elapsed() < Duration::from_secs(30), "no version within 30 s");
        std::thread::yield_now();
    }
    crate::millstream(&[&words[..], &["0"]].concat()).ok();
    Done::of(first.wait_with_output().unwrap()).refused(1, &["fenced"]);
}

#[test]
fn a_signal_ends_it_with_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let words = ["run", "nexmark-q1", "-p", "1", "--state", "memory://", "--summary", "s.json", "--"];
    let child = command(&[&words[..], &["--events", "0", "--rate", "10", "--output", "blackhole"]].concat())
        .current_dir(folder.path())
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Until it listens to signals; an earlier one would end it without a word.
    let status = format!("/proc/{}/status", child.id());
    let start = Instant::now();
    while !std::fs::read_to_string(&status).is_ok_and(|t| catches_term(&t)) {
        assert!(start.elapsed() < Duration::from_secs(30), "it does not listen to signals");
        std::thread::yield_now();
    }
    let killed = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let done = Done::of(child.wait_with_output().unwrap()).refused(1, &["SIGTERM", "MS6001"]);
    assert_eq!(done.err.lines().count(), 1, "{}", done.err);
    let summary = std::fs::read_to_string(folder.path().join("s.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    assert_eq!((&summary["job"], &summary["state"]), (&"nexmark-q1".into(), &"canceled".into()));
}

/// Whether /proc says that SIGTERM (15) is caught.
fn catches_term(status: &str) -> bool {
    let mask = status.lines().find_map(|l| l.strip_prefix("SigCgt:"));
    mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).is_some_and(|m| m & (1 << 14) != 0)
}
