//! Compactors as processes: they merge what they are shown to merge, are killed in the middle of it, and leave.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::Cluster;
use crate::run::lines;
use crate::{Done, command, millstream};

/// A compactor that ends with the test in any case.
struct Compactor(Option<Child>);

impl Compactor {
    fn start(cluster: &Cluster, bytes_per_second: &str) -> Self {
        let setting = format!("state.compaction.bytes-per-second={bytes_per_second}");
        let words = ["compactor", "--coordinator", &cluster.address, "--slots", "2", "-D", &setting];
        let child = command(&words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let compactor = Self(Some(child));
        let pid = compactor.pid();
        let start = Instant::now();
        while shown(cluster, pid).is_none() {
            assert!(start.elapsed() < Duration::from_secs(60), "a compactor says hello within 60 s");
            std::thread::sleep(Duration::from_millis(50));
        }
        compactor
    }

    fn pid(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    fn terminate(mut self) -> Done {
        assert!(Command::new("kill").args(["-TERM", &self.pid().to_string()]).status().unwrap().success());
        Done::of(self.0.take().unwrap().wait_with_output().unwrap())
    }
}

impl Drop for Compactor {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How `workers` shows the process of a number.
fn shown(cluster: &Cluster, pid: u32) -> Option<Value> {
    let all = cluster.ask(&["workers", "--json"]).ok().json();
    all.as_array().unwrap().iter().find(|w| w["pid"] == pid).cloned()
}

/// What the status of a job says of the compactions of a process.
fn of_runner(status: &Value, pid: u32, field: &str) -> u64 {
    let runners = status["compaction"]["runners"].as_array().unwrap();
    let of = runners.iter().find(|r| r["pid"] == pid && r["role"] == "compactor");
    of.and_then(|r| r[field].as_u64()).unwrap_or(0)
}

#[test]
fn compactors_merge_are_killed_in_the_middle_of_it_and_leave() {
    let cluster = Cluster::start(1, "2");
    // So slow that it never comes to an end.
    let slow = Compactor::start(&cluster, "64KiB");
    let row = shown(&cluster, slow.pid()).unwrap();
    assert_eq!((&row["role"], &row["slots"], &row["compaction_slots"]), (&"compactor".into(), &0.into(), &2.into()));
    assert!(cluster.ask(&["workers"]).ok().out.contains("compactor"));
    let words = "submit keyed-count -p 2 --checkpoint-interval 100ms -D state.compaction.trigger-runs=4 \
                 -D state.compaction.where=compactors -- --keys 20000 --passes 6 --rate 6000 --output files:out";
    let id = cluster.ask(&words.split(' ').filter(|w| !w.is_empty()).collect::<Vec<_>>()).ok().out.trim().to_owned();
    let pid = slow.pid();
    cluster.wait_for(&id, "a compactor merges", |s| of_runner(s, pid, "running") > 0);
    assert!(shown(&cluster, pid).unwrap()["compactions"].as_u64() > Some(0));
    drop(slow);

    let quick = Compactor::start(&cluster, "none");
    let pid = quick.pid();
    let merged = |s: &Value| of_runner(s, pid, "completed") > 1 && s["writes"]["flushed_bytes"].as_u64() > Some(0);
    let status = cluster.wait_for(&id, "another one has merged", merged);
    let figures = &status["compaction"];
    assert!(figures["bytes_written"].as_u64() > Some(0) && figures["bytes_read"].as_u64() > Some(0), "{figures}");
    assert!(!figures["runs_per_key_group_max"].is_null(), "{figures}");
    assert!(cluster.ask(&["status", &id]).ok().out.contains("compaction:"));
    quick.terminate().ok().once("this compactor ends");
    assert_eq!(shown(&cluster, pid), None);

    let end = cluster.wait_for(&id, "it finishes", |s| s["state"] == "finished");
    assert_eq!(end["restarts"], 0, "a compactor that goes away costs the job nothing");
    let mut out = lines(&cluster.folder.path().join("out"));
    let counts = (0..20).map(|k| format!(r#"{{"key":{},"count":6}}"#, k * 1_000));
    let mut due: Vec<String> = counts.chain([r#"{"key":-1,"count":120000}"#.to_owned()]).collect();
    out.sort();
    due.sort();
    assert_eq!(out, due);
    let state = format!("file://{}/state", cluster.folder.path().display());
    drop(cluster.processes);
    millstream(&["fsck", "--state", &state]).ok();
}

#[test]
fn a_compactor_without_a_cluster_ends_with_a_signal() {
    let mut child = command(&["compactor", "--coordinator", "127.0.0.1:1", "--metrics-listen", "none"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // From then on it takes signals.
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines().map(|line| line.unwrap());
    assert!(told.any(|line| line.contains("waiting for a coordinator")));
    Compactor(Some(child)).terminate().ok();
    millstream(&["compactor", "--slots", "0"]).refused(2, &["--slots"]);
    millstream(&["compactor", "-D", "state.compaction.where=workers"]).refused(2, &["state.compaction.where"]);
}
