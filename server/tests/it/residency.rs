//! Where live state is kept makes no difference to what comes out, and may change from one start to the next.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::run::lines;
use crate::{command, millstream, millstream_in};

/// So many events for each key, and far more state than rows have room.
const JOB: [&str; 6] = ["--keys", "20000", "--value-bytes", "200", "--events", "80000"];

fn words<'a>(state: &'a str, residency: &'a str, rate: &'a str) -> Vec<&'a str> {
    let options = ["run", "keyed-count", "-p", "2", "--json", "--state", state, "--checkpoint-interval", "100ms"];
    // Little cache, so that most reads go beyond it.
    let caches = ["--cache-memory", "1MB", "--cache-dir", "cache", "--residency", residency, "--"];
    [&options[..], &caches, &JOB, &["--rate", rate, "--output", "files:out"]].concat()
}

fn counts(folder: &Path) -> BTreeMap<i64, i64> {
    let row = |l: &String| {
        let row: serde_json::Value = serde_json::from_str(l).unwrap();
        (row["key"].as_i64().unwrap(), row["count"].as_i64().unwrap())
    };
    lines(&folder.join("out")).iter().map(row).collect()
}

fn expected() -> BTreeMap<i64, i64> {
    (0..20).map(|n| (n * 1000, 4)).chain([(-1, 80_000)]).collect()
}

/// The newest committed version.
fn newest(state: &str) -> u64 {
    let done = millstream(&["versions", "keyed-count", "--state", state, "--json"]);
    let Ok(versions) = serde_json::from_str::<serde_json::Value>(&done.out) else { return 0 };
    versions.as_array().and_then(|all| all.last()).map_or(0, |last| last["version"].as_u64().unwrap())
}

/// Sections that stand in files.
fn sections(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder.join("cache/local/keyed-count")) else { return 0 };
    entries.filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|e| e == "section")).count()
}

#[test]
fn each_gives_the_same_and_all_but_remote_read_nothing_from_the_store() {
    for residency in ["memory", "local", "remote"] {
        let folder = tempfile::tempdir().unwrap();
        let state = format!("file://{}/state", folder.path().display());
        // Slow enough for checkpoints: what they have flushed is read again.
        let summary = millstream_in(folder.path(), &words(&state, residency, "30000")).ok().json();
        assert_eq!(counts(folder.path()), expected(), "{residency}");
        let cache = |tier: &str| summary["cache"][tier].as_u64().unwrap();
        let gets = summary["object_store"]["get"].as_u64().unwrap();
        println!("{residency}: {gets} GETs, cache {}", summary["cache"]);
        match residency {
            // One or two for the records of versions.
            "memory" => assert!(gets <= 2 && cache("memory_hits") > 100 && cache("misses") == 0),
            "local" => assert!(gets <= 2 && cache("disk_hits") > 100 && cache("misses") == 0),
            _ => assert!(gets > 20 && cache("misses") > 20 && cache("disk_hits") == 0),
        }
        assert_eq!(sections(folder.path()) > 0, residency == "local");
    }
}

#[test]
fn it_may_change_whenever_the_job_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let state = format!("file://{}/state", folder.path().display());
    for residency in ["remote", "memory", "local", "memory", "local"] {
        let before = newest(&state);
        let mut child = command(&words(&state, residency, "3000"))
            .current_dir(folder.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Killed amid its work, a few checkpoints on.
        while newest(&state) < before + 6 {
            std::thread::sleep(Duration::from_millis(50));
            assert!(child.try_wait().unwrap().is_none(), "it has ended by itself");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(sections(folder.path()) > 0);
    let done = millstream_in(folder.path(), &words(&state, "local", "0")).ok();
    assert_eq!((&done.json()["state"], counts(folder.path())), (&"finished".into(), expected()));
    millstream(&["fsck", "--state", &state]).ok();
}

#[test]
fn a_disk_that_takes_nothing_and_a_memory_that_is_too_small_only_slow_the_job_down() {
    for (residency, more) in [("local", ["--cache-disk", "1KB"]), ("memory", ["--memory-limit", "128MiB"])] {
        let folder = tempfile::tempdir().unwrap();
        let state = format!("file://{}/state", folder.path().display());
        // Slow enough for checkpoints: without one nothing is to be put there before the end.
        let mut words = words(&state, residency, "30000");
        let at = words.iter().position(|w| *w == "--").unwrap();
        words.splice(at..at, more);
        let done = millstream_in(folder.path(), &words).ok();
        assert_eq!(counts(folder.path()), expected(), "{residency}");
        assert!(done.err.contains("is read from the object store"), "{residency}: {}", done.err);
    }
}
