//! `state`: a look into what a job keeps, and kept.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::cluster::Cluster;
use crate::{Done, millstream, millstream_in};

/// Runs a job with its state in a folder.
fn run(folder: &Path, words: &[&str]) -> String {
    let state = format!("file://{}/state", folder.display());
    let words: Vec<&str> =
        ["run"].iter().chain(&words[..1]).chain(&["--state", &state]).chain(&words[1..]).copied().collect();
    millstream_in(folder, &words).ok();
    state
}

/// `state COMMAND ... --state URL --job NAME`.
fn look(url: &str, name: &str, words: &[&str]) -> Done {
    millstream(&[&["state"], words, &["--state", url, "--job", name]].concat())
}

fn rows(done: Done) -> Vec<Value> {
    done.ok().out.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn versions(url: &str, name: &str) -> Vec<String> {
    let list = millstream(&["versions", name, "--state", url, "--json"]).ok().json();
    list.as_array().unwrap().iter().map(|v| v["version"].to_string()).collect()
}

#[test]
fn the_state_of_a_job_is_shown_by_its_columns() {
    let folder = tempfile::tempdir().unwrap();
    let words = [
        "keyed-count",
        "-p",
        "2",
        "--",
        "--keys",
        "500",
        "--passes",
        "3",
        "--value-bytes",
        "4",
        "--output",
        "blackhole",
    ];
    let url = run(folder.path(), &words);
    let list = look(&url, "keyed-count", &["ls", "--json"]).ok().json();
    let names: Vec<_> = list.as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["counts", "results"]);
    let counts = list[0]["state"].as_str().unwrap();
    assert_eq!(list[0]["schema"], "key (key: int64), value (count: integer, bytes: bytes)");
    assert!(list[0]["entries"].as_u64().unwrap() >= 501 && list[0]["bytes"].as_u64().unwrap() > 0, "{list}");
    let table = look(&url, "keyed-count", &["ls"]).ok().out;
    assert!(table.contains("time-ordered") && table.contains(counts), "{table}");

    let scanned = rows(look(&url, "keyed-count", &["scan", counts]));
    let keys: BTreeSet<i64> = scanned.iter().map(|r| r["key"]["key"].as_i64().unwrap()).collect();
    assert_eq!(keys, (-1..500).collect());
    assert!(scanned.iter().all(|r| r["value"]["count"] == 3 || r["key"]["key"] == -1));

    let got = look(&url, "keyed-count", &["get", counts, "-1", "{\"key\":7}", "500"]).ok().out;
    let lines: Vec<&str> = got.lines().collect();
    assert!(lines[0].starts_with(r#"{"key":{"key":-1},"value":{"count":1500,"#), "{got}");
    assert!(lines[1].starts_with(r#"{"key":{"key":7},"value":{"count":3,"bytes":"0x"#), "{got}");
    assert_eq!(lines[2], r#"{"key":{"key":500},"value":null}"#);
    // The bytes as they stand: the count (3, zig-zag) and four bytes.
    let raw = rows(look(&url, "keyed-count", &["get", counts, "7", "--raw"]));
    assert!(raw[0]["value"].as_str().is_some_and(|v| v.len() == 10 && v.starts_with("06")), "{raw:?}");

    // Parts of a scan are the whole.
    let half = |groups| look(&url, "keyed-count", &["scan", counts, "--key-groups", groups]).ok().out;
    let whole = look(&url, "keyed-count", &["scan", counts]).ok().out;
    assert_eq!(half("0-32767") + &half("32768-65535"), whole);
    let first = look(&url, "keyed-count", &["scan", counts, "--limit", "200"]).ok().out;
    let next = scanned[200]["key"].to_string();
    let rest = look(&url, "keyed-count", &["scan", counts, "--from", &next]).ok().out;
    assert_eq!(first + &rest, whole);
}

#[test]
fn two_versions_differ_by_what_was_written_between() {
    let folder = tempfile::tempdir().unwrap();
    let words = [
        "nexmark-q17",
        "-p",
        "2",
        "--checkpoint-interval",
        "100ms",
        "--",
        "--events",
        "2000",
        "--rate",
        "2000",
        "--output",
        "blackhole",
    ];
    let url = run(folder.path(), &words);
    let state = look(&url, "nexmark-q17", &["ls", "--json"]).ok().json()[0]["state"].as_str().unwrap().to_owned();
    let versions = versions(&url, "nexmark-q17");
    assert!(versions.len() >= 4, "{versions:?}");
    let (first, last) = (&versions[1], versions.last().unwrap());
    let at = |version: &str| -> BTreeMap<String, Value> {
        let scanned = rows(look(&url, "nexmark-q17", &["scan", &state, "--at", version]));
        scanned.into_iter().map(|r| (r["key"].to_string(), r["value"].clone())).collect()
    };
    let (old, new) = (at(first), at(last));
    assert!(!old.is_empty() && old.len() < new.len());
    let value = new.values().next().unwrap();
    assert!(value["total_bids"].is_i64() && value["max_price"]["max"].is_i64(), "{value}");
    let changes = rows(look(&url, "nexmark-q17", &["diff", &state, "--at", first, "--to", last]));
    // What the first holds, with the changes, is what the last holds.
    let mut applied = old.clone();
    for change in &changes {
        let key = change["key"].to_string();
        match change["change"].as_str().unwrap() {
            "added" => assert_eq!(applied.insert(key, change["after"].clone()), None),
            "changed" => assert_eq!(applied.insert(key, change["after"].clone()).as_ref(), Some(&change["before"])),
            "removed" => assert_eq!(applied.remove(&key).as_ref(), Some(&change["before"])),
            other => panic!("{other}"),
        }
    }
    assert_eq!(applied, new);
    let untouched = old.iter().filter(|(k, v)| new.get(*k) == Some(v)).count();
    assert_eq!(changes.len(), new.len() - untouched);
    // And back.
    let back = rows(look(&url, "nexmark-q17", &["diff", &state, "--at", last, "--to", first]));
    assert_eq!(back.len(), changes.len());
    assert_eq!(
        back.iter().filter(|c| c["change"] == "removed").count(),
        changes.iter().filter(|c| c["change"] == "added").count()
    );
    assert!(rows(look(&url, "nexmark-q17", &["diff", &state, "--at", last])).is_empty());
}

#[test]
fn windows_are_shown_with_their_times() {
    let folder = tempfile::tempdir().unwrap();
    let words = [
        "nexmark-q5",
        "-p",
        "1",
        "--checkpoint-interval",
        "100ms",
        "--",
        "--events",
        "3000",
        "--rate",
        "3000",
        "--event-rate",
        "100",
        "--output",
        "blackhole",
    ];
    let url = run(folder.path(), &words);
    let list = look(&url, "nexmark-q5", &["ls", "--json"]).ok().json();
    let panes =
        list.as_array().unwrap().iter().find(|s| s["name"] == "panes").unwrap()["state"].as_str().unwrap().to_owned();
    let versions = versions(&url, "nexmark-q5");
    let middle = &versions[versions.len() / 2];
    let scanned = look(&url, "nexmark-q5", &["scan", &panes, "--at", middle]).ok().out;
    let lines: Vec<&str> = scanned.lines().collect();
    assert!(lines.len() > 5, "{scanned}");
    let times: Vec<Value> = lines.iter().map(|l| serde_json::from_str::<Value>(l).unwrap()["time"].clone()).collect();
    assert!(
        times.iter().all(|t| t.as_str().is_some_and(|t| t.starts_with("2026-01-01 00:00:") && t.ends_with(".999")))
    );
    assert!(times.is_sorted_by(|a, b| a.as_str() <= b.as_str()));
    let row: Value = serde_json::from_str(lines[3]).unwrap();
    let (key, time) = (row["key"].to_string(), row["time"].as_str().unwrap());
    let got = look(&url, "nexmark-q5", &["get", &panes, &key, "--time", time, "--at", middle]).ok().out;
    assert_eq!(got.trim_end(), lines[3]);
    let from = look(&url, "nexmark-q5", &["scan", &panes, "--time", time, "--at", middle]).ok().out;
    assert_eq!(from.lines().count(), times.iter().filter(|t| t.as_str() >= Some(time)).count());
    look(&url, "nexmark-q5", &["get", &panes, &key]).refused(1, &["MS1433", "--time"]);
    // All windows have fired at the end: what was there is gone.
    assert!(rows(look(&url, "nexmark-q5", &["scan", &panes])).is_empty());
    let changes = rows(look(&url, "nexmark-q5", &["diff", &panes, "--at", middle]));
    assert_eq!(changes.iter().filter(|c| c["change"] == "removed").count(), lines.len());
}

#[test]
fn what_is_not_there_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let url = run(folder.path(), &["keyed-count", "-p", "1", "--", "--keys", "20", "--output", "blackhole"]);
    let look = |words: &[&str]| look(&url, "keyed-count", words);
    millstream(&["state", "ls", "--state", &url, "--job", "other"]).refused(1, &["MS1422", "'other'"]);
    look(&["ls", "--at", "999"]).refused(1, &["MS1504", "999"]);
    look(&["scan", "count/cuonts"]).refused(1, &["MS1430", "/counts"]);
    let list = look(&["ls", "--json"]).ok().json();
    let counts = list[0]["state"].as_str().unwrap();
    look(&["get", counts, "\"x\""]).refused(1, &["MS1431", "int64"]);
    look(&["get", counts, "1", "--time", "0"]).refused(1, &["MS1433"]);
    look(&["scan", counts, "--key-groups", "9-1"]).refused(2, &["MS1003"]);
    look(&["scan", counts, "--time", "yesterday"]).refused(2, &["MS1003"]);
}

#[test]
fn the_state_of_a_running_job_is_read_by_asking_its_coordinator() {
    let mut cluster = Cluster::start(1, "2");
    let words = [
        "submit",
        "keyed-count",
        "--name",
        "counted",
        "-p",
        "2",
        "--checkpoint-interval",
        "100ms",
        "--",
        "--keys",
        "50",
    ];
    let words = [&words[..], &["--events", "0", "--rate", "500", "--output", "blackhole"]].concat();
    let id = cluster.ask(&words).ok().out.trim().to_owned();
    let at = cluster.wait_for(&id, "it has counted", |s| {
        s["checkpoints"]["completed"].as_u64() > Some(1) && s["events_in"].as_u64() > Some(500)
    })["version"]
        .to_string();
    cluster.ask(&["checkpoint", &id]).ok();
    let look = |words: &[&str], job: &str| cluster.ask(&[&["state"], words, &["--job", job]].concat());
    let list = look(&["ls", "--json"], &id).ok().json();
    let counts = list[0]["state"].as_str().unwrap().to_owned();
    let by_id = look(&["get", &counts, "7", "--at", &at], &id).ok().out;
    assert_eq!(by_id, look(&["get", &counts, "7", "--at", &at], "counted").ok().out);
    let url = format!("file://{}/state", cluster.folder.path().display());
    assert_eq!(
        by_id,
        millstream(&["state", "get", &counts, "7", "--at", &at, "--state", &url, "--job", "counted"]).ok().out
    );
    let changes = rows(look(&["diff", &counts, "--at", &at], &id));
    assert!(changes.iter().all(|c| c["change"] == "changed" || c["change"] == "added") && !changes.is_empty());
    assert_eq!(rows(look(&["scan", &counts, "--limit", "3"], &id)).len(), 3);

    look(&["ls"], "no-such-job").refused(1, &["MS7140", "no-such-job"]);
    look(&["ls", "--at", "99999"], &id).refused(1, &["MS1504", "99999"]);
    millstream(&["state", "ls", "--job", "x", "--state", &url, "--coordinator", &cluster.address])
        .refused(2, &["MS1003", "--coordinator"]);
    // The coordinator has it, who asks has not: as when the folder is one of another machine. Nobody writes meanwhile: a
    // worker might still, what a merge had begun when the job was stopped.
    cluster.ask(&["stop", &id]).ok();
    cluster.processes.truncate(1);
    let state = cluster.folder.path().join("state");
    std::fs::rename(&state, cluster.folder.path().join("elsewhere")).unwrap();
    let hidden = cluster.ask(&["state", "ls", "--job", &id]);
    std::fs::rename(cluster.folder.path().join("elsewhere"), &state).unwrap();
    hidden.refused(1, &["MS1434", "coordinator's machine"]);
}
