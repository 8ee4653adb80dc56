//! Documents that the binary makes, and pages that must agree with it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::millstream;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[test]
fn the_page_of_settings_is_the_list() {
    let page = std::fs::read_to_string(root().join("docs/settings.md")).unwrap();
    let made = millstream(&["settings", "--markdown"]).ok().out;
    assert_eq!(made.trim_end(), page.trim_end(), "make it again: millstream settings --markdown > docs/settings.md");
}

#[test]
fn the_page_of_metrics_is_the_list() {
    let page = std::fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let made = millstream(&["metrics", "--markdown"]).ok().out;
    assert_eq!(made.trim_end(), page.trim_end(), "make it again: millstream metrics --markdown > docs/metrics.md");
    let list = millstream(&["metrics", "--json"]).ok().json();
    assert!(
        list.as_array().unwrap().iter().any(|m| m["name"] == "millstream_events_in_total" && m["type"] == "counter")
    );
    assert!(millstream(&["metrics"]).ok().out.contains("millstream_process_get_duration_seconds"));
}

#[test]
fn settings_and_jobs_are_listed() {
    let settings = millstream(&["settings", "--json"]).ok().json();
    assert!(settings.as_array().unwrap().iter().any(|s| s["key"] == "checkpoint.interval" && s["default"] == "1s"));
    assert!(millstream(&["settings"]).ok().out.contains("checkpoint.interval"));
    let jobs = millstream(&["jobs", "--json"]).ok().json();
    let names: Vec<_> = jobs.as_array().unwrap().iter().map(|j| j["name"].as_str().unwrap()).collect();
    for name in [
        "nexmark-q0",
        "nexmark-q1",
        "nexmark-q2",
        "nexmark-q5",
        "nexmark-q7",
        "nexmark-q8",
        "nexmark-q11",
        "nexmark-q17",
        "keyed-count",
    ] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    assert!(jobs[0]["description"].is_string());
    assert!(millstream(&["jobs"]).ok().out.contains("keyed-count"));
}

#[test]
fn an_empty_place_of_state_has_no_jobs() {
    let folder = tempfile::tempdir().unwrap();
    let state = format!("file://{}", folder.path().display());
    assert_eq!(millstream(&["list", "--state", &state, "--json"]).ok().json(), serde_json::json!([]));
}

/// Numbers of errors that the sources give, by the forms in which they are written.
fn numbers_in(text: &str) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for mark in [".code(", "u16 = ", "Error::new(ErrorKind::"] {
        for (at, _) in text.match_indices(mark) {
            let rest = &text[at + mark.len()..];
            // The third form has the kind first.
            let rest = if mark.ends_with("::") { rest.split_once(", ").map_or("", |(_, r)| r) } else { rest };
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            if digits.len() == 4 {
                found.extend(digits.parse::<u32>());
            }
        }
    }
    found
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn every_number_of_an_error_is_documented() {
    let page = std::fs::read_to_string(root().join("docs/errors.md")).unwrap();
    let documented: BTreeSet<u32> =
        page.lines().filter_map(|l| l.strip_prefix("| MS")?.get(..4)?.parse().ok()).collect();
    assert!(documented.len() > 50);
    let mut files = Vec::new();
    for part in
        ["common", "objects", "cache", "state-store", "engine", "formats", "connectors", "kafka", "jobs", "server"]
    {
        sources(&root().join(part).join("src"), &mut files);
    }
    let mut missing = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let place = file.strip_prefix(root()).unwrap().display().to_string();
        missing.extend(numbers_in(&text).difference(&documented).map(|n| format!("MS{n:04} of {place}")));
    }
    assert!(missing.is_empty(), "not in docs/errors.md: {missing:?}");
}

#[test]
fn nothing_selects_in_a_random_order() {
    let mut files = Vec::new();
    for part in [
        "common",
        "objects",
        "cache",
        "state-store",
        "engine",
        "formats",
        "connectors",
        "kafka",
        "jobs",
        "server",
        "benches",
        "tests",
    ] {
        sources(&root().join(part).join("src"), &mut files);
    }
    assert!(files.len() > 50);
    // Written so that this line is no match; the one in `common` is the macro that adds `biased`.
    let banned = ["tokio::sel", "ect!"].concat();
    let mut found: Vec<_> = files
        .iter()
        .filter(|f| {
            std::fs::read_to_string(f)
                .unwrap()
                .lines()
                .any(|l| !l.trim_start().starts_with("//") && l.contains(&banned))
        })
        .map(|f| f.strip_prefix(root()).unwrap().display().to_string())
        .collect();
    found.retain(|f| f != "common/src/lib.rs");
    assert!(found.is_empty(), "use millstream_common::select! in {found:?}");
}
