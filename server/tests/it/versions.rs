//! Versions that are kept, pinned, forked and given up.

use std::path::Path;
use std::time::Duration;

use crate::run::lines;
use crate::{Done, command, millstream, millstream_in};

const COLLECTING: [&str; 8] = [
    "-D",
    "versions.collect-interval=40ms",
    "-D",
    "versions.collect-records=2",
    "-D",
    "checkpoint.retained=2",
    "--checkpoint-interval",
    "40ms",
];

/// A job of about two seconds that counts each of 2,000 keys ten times.
fn words<'a>(name: &'a str, state: &'a str, output: &'a str) -> Vec<&'a str> {
    let head = ["run", "keyed-count", "-p", "2", "--json", "--name", name, "--state", state];
    let args = ["--", "--keys", "2000", "--events", "20000", "--rate", "10000", "--output", output];
    [&head[..], &COLLECTING, &args].concat()
}

fn versions(name: &str, state: &str) -> Vec<serde_json::Value> {
    let done = millstream(&["versions", name, "--state", state, "--json"]);
    if done.code == Some(0) { done.json().as_array().unwrap().clone() } else { Vec::new() }
}

fn sorted(folder: &Path) -> Vec<String> {
    let mut rows = lines(folder);
    rows.sort();
    rows
}

fn whole(state: &str) -> serde_json::Value {
    let report = millstream(&["fsck", "--state", state, "--json"]).ok().json();
    assert_eq!(report["whole"], true, "{report}");
    report
}

#[test]
fn a_place_of_state_does_not_grow_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let state = format!("file://{}/state", folder.path().display());
    // The second start begins a group of records of its own, so that those before can go.
    killed_amid(folder.path(), &state);
    let summary = millstream_in(folder.path(), &words("a", &state, "files:out")).ok().json();
    let garbage = &summary["garbage"];
    for field in ["boundary", "collections", "objects_deleted", "bytes_deleted", "records_deleted"] {
        assert!(garbage[field].as_u64().unwrap() > 0, "{field}: {garbage}");
    }
    let bound = garbage["boundary"].as_u64().unwrap();
    let rows = versions("a", &state);
    assert!(rows.iter().all(|r| r["version"].as_u64().unwrap() >= bound), "{bound}: {rows:?}");
    let restorable = rows.iter().filter(|r| r["restorable"] == true).count();
    assert_eq!(restorable, 2, "{rows:?}");
    let report = whole(&state);
    assert!(report["versions"].as_u64().unwrap() < summary["version"].as_u64().unwrap(), "{report}");
    assert!(!folder.path().join(format!("state/a/version/{:020}", 2)).exists());
    let job = words("a", &state, "files:out");
    let at = job.iter().position(|w| *w == "--").unwrap();
    let gone = millstream_in(folder.path(), &[&job[..at], &["--from", "1"], &job[at..]].concat());
    gone.refused(1, &["MS1509", "version 1 is no longer kept"]);
}

/// Runs the job until it has some versions, then kills it.
fn killed_amid(folder: &Path, state: &str) -> u64 {
    let mut child = command(&words("a", state, "files:out"))
        .current_dir(folder)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let version = loop {
        std::thread::sleep(Duration::from_millis(20));
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
        if let Some(last) = versions("a", state).last() {
            break last["version"].as_u64().unwrap();
        }
    };
    child.kill().unwrap();
    child.wait().unwrap();
    version
}

#[test]
fn a_fork_and_its_parent_come_to_the_same_end() {
    let folder = tempfile::tempdir().unwrap();
    let state = format!("file://{}/state", folder.path().display());
    let at = killed_amid(folder.path(), &state).to_string();
    let fork = |words: &[&str]| -> Done {
        millstream_in(folder.path(), &[&["fork", "a", "--state", &state, "--json"], words].concat())
    };
    fork(&["--name", "b"]).refused(1, &["MS1513", "output of 'a'"]);
    fork(&["--name", "b", "--", "--keys", "7"]).refused(1, &["MS1514", "--keys differs: 2000 there, 7 here"]);
    fork(&["--name", "a", "--", "--output", "files:b"]).refused(1, &["MS1512"]);
    fork(&["--name", "b", "--at", "99999", "--", "--output", "files:b"]).refused(1, &["MS1504"]);
    let pins = || millstream(&["pins", "a", "--state", &state, "--json"]).ok().json();
    assert_eq!(pins(), serde_json::json!([]), "what was refused leaves no pin");
    let made = fork(&["--name", "b", "--at", &at, "--", "--output", "files:b"]).ok().json();
    assert_eq!((&made["parent"], made["version"].to_string()), (&"a".into(), at.clone()));
    let pin = |id: &str| millstream(&["pin", "a", "--state", &state, "--at", &at, "--as", id]);
    pin("keep").ok();
    pin("keep").refused(1, &["MS1510"]);
    pin("no/name").refused(1, &["MS1508"]);
    whole(&state);
    // The parent goes on and gives up the version; the fork has it still.
    let parent = millstream_in(folder.path(), &words("a", &state, "files:out")).ok().json();
    assert!(parent["garbage"]["boundary"].as_u64().unwrap() > at.parse().unwrap(), "{}", parent["garbage"]);
    assert_eq!((&pins()[0]["id"], &pins()[1]["id"]), (&"fork-b".into(), &"keep".into()));
    let kept = versions("a", &state).into_iter().find(|r| r["version"].as_u64() == at.parse().ok()).unwrap();
    assert_eq!((&kept["restorable"], &kept["pins"]), (&true.into(), &serde_json::json!(["fork-b", "keep"])));
    whole(&state);
    let forked = millstream_in(folder.path(), &words("b", &state, "files:b")).ok().json();
    assert_eq!(forked["forked_from"]["version"].to_string(), at);
    assert_eq!(forked["state"], "finished");
    let (ours, theirs) = (sorted(&folder.path().join("out")), sorted(&folder.path().join("b")));
    assert!(ours == theirs && ours.len() == 3, "{ours:?} {theirs:?}");
    whole(&state);
    millstream(&["pins", "a", "--state", &state, "--release", "keep"]).ok();
    millstream(&["pins", "a", "--state", &state, "--release", "keep"]).refused(1, &["MS1511"]);
    assert!(pins().as_array().unwrap().iter().all(|p| p["id"] != "keep"));
}
