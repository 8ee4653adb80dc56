//! Coordinator, workers and clients as processes.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::run::lines;
use crate::{Done, command, millstream_in};

/// A process that ends with the test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Cluster {
    pub folder: tempfile::TempDir,
    pub address: String,
    /// The coordinator first.
    pub processes: Vec<Running>,
}

impl Cluster {
    pub fn start(workers: usize, slots: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (coordinator, address) = coordinator(folder.path(), "127.0.0.1:0");
        let mut cluster = Self { folder, address, processes: vec![coordinator] };
        for _ in 0..workers {
            cluster.worker(slots);
        }
        cluster
    }

    fn worker(&mut self, slots: &str) {
        let child = command(&["worker", "--coordinator", &self.address, "--slots", slots])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.processes.push(Running(child));
    }

    pub fn ask(&self, words: &[&str]) -> Done {
        // Before `--`, where the job's own arguments begin.
        let at = words.iter().position(|w| *w == "--").unwrap_or(words.len());
        let words = [&words[..at], &["--coordinator", &self.address], &words[at..]].concat();
        millstream_in(self.folder.path(), &words)
    }

    pub fn status(&self, job: &str) -> Value {
        self.ask(&["status", job, "--json"]).ok().json()
    }

    pub fn wait_for(&self, job: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let status = self.status(job);
            if condition(&status) {
                return status;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{what} within 60 s: {status}");
        }
    }
}

/// A coordinator over `folder`, and the address in the line it prints.
fn coordinator(folder: &Path, listen: &str) -> (Running, String) {
    let state = format!("file://{}/state", folder.display());
    let mut child = command(&["coordinator", "--state", &state, "--listen", listen, "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = serde_json::from_str::<Value>(&line).unwrap()["listen"].as_str().unwrap().to_owned();
    (Running(child), address)
}

#[test]
fn a_job_is_submitted_rescaled_and_finishes() {
    let cluster = Cluster::start(2, "2");
    assert_eq!(cluster.ask(&["list", "--json"]).ok().json(), serde_json::json!([]));
    let words = [
        "submit",
        "nexmark-q1",
        "-p",
        "2",
        "--checkpoint-interval",
        "200ms",
        "--",
        "--events",
        "20000",
        "--rate",
        "4000",
        "--output",
        "files:out",
    ];
    let done = cluster.ask(&words).ok();
    let id = done.out.trim().to_owned();
    assert!(!id.is_empty() && id.split_whitespace().count() == 1, "{}", done.out);
    cluster.wait_for(&id, "it runs", |s| s["state"] == "running");

    cluster.ask(&words).refused(1, &["nexmark-q1", &id]);
    let too_many = cluster.ask(&["rescale", &id, "-p", "9"]);
    too_many.refused(1, &["slots"]);
    let rescaled = cluster.ask(&["rescale", &id, "-p", "4", "--json"]).ok().json();
    assert_eq!(rescaled["parallelism"], 4);
    assert_eq!(cluster.ask(&["rescale", &id, "-p", "4", "--json"]).ok().json()["parallelism"], 4);
    cluster.ask(&["checkpoint", &id]).ok();
    let list = cluster.ask(&["list", "--json"]).ok().json();
    assert_eq!((&list[0]["id"], &list[0]["parallelism"]), (&id.as_str().into(), &4.into()));

    let end = cluster.wait_for(&id, "it finishes", |s| s["state"] == "finished");
    assert_eq!((&end["restarts"], &end["rows_out"]), (&0.into(), &18_400.into()));
    assert_eq!(lines(&cluster.folder.path().join("out")).len(), 18_400);
    assert!(cluster.ask(&["status", &id]).ok().out.contains("finished"));
    assert!(!cluster.ask(&["versions", &id, "--json"]).ok().json().as_array().unwrap().is_empty());
    let again = cluster.ask(&words).ok();
    assert!(again.err.contains("finished"), "{}", again.err);
}

#[test]
fn stop_and_cancel_end_a_job_and_it_goes_on_when_submitted_again() {
    let cluster = Cluster::start(1, "2");
    let words = ["submit", "nexmark-q1", "-p", "2", "--", "--events", "0", "--rate", "1000", "--output", "blackhole"];
    let id = cluster.ask(&words).ok().out.trim().to_owned();
    cluster.wait_for(&id, "it has a version", |s| s["checkpoints"]["completed"].as_u64() > Some(0));
    assert_eq!(cluster.ask(&["stop", &id, "--json"]).ok().json()["state"], "stopped");
    let next = cluster.ask(&words).ok().out.trim().to_owned();
    let status = cluster.wait_for(&next, "it goes on", |s| s["state"] == "running");
    assert!(!status["restored_from_version"].is_null());
    assert_eq!(cluster.ask(&["cancel", &next, "--json"]).ok().json()["state"], "canceled");
    cluster.ask(&["status", "no-such-job"]).refused(1, &["no-such-job"]);
}

#[test]
fn a_job_waits_for_slots_and_a_killed_coordinator_comes_back() {
    let mut cluster = Cluster::start(0, "0");
    let words = ["submit", "nexmark-q1", "--", "--events", "0", "--rate", "100", "--output", "blackhole"];
    let id = cluster.ask(&words).ok().out.trim().to_owned();
    assert_eq!(cluster.status(&id)["state"], "created");
    cluster.worker("1");
    let before =
        cluster.wait_for(&id, "it has versions", |s| s["state"] == "running" && s["version"].as_u64() > Some(2));

    cluster.processes.remove(0);
    let (coordinator, _) = coordinator(cluster.folder.path(), &cluster.address);
    cluster.processes.insert(0, coordinator);
    let after = cluster.wait_for(&id, "it runs again", |s| s["state"] == "running");
    assert!(after["version"].as_u64() > before["version"].as_u64());
    assert!(after["generation"].as_u64() > before["generation"].as_u64());

    // A job that has run is not new to the next leader, even when it waits for a worker.
    cluster.processes.clear();
    cluster.processes.push(self::coordinator(cluster.folder.path(), &cluster.address).0);
    let waiting = cluster.wait_for(&id, "it has been opened", |s| s["version"].as_u64() > after["version"].as_u64());
    assert_eq!(waiting["state"], "restarting");
    cluster.worker("1");
    cluster.wait_for(&id, "it runs once more", |s| s["state"] == "running");
}

#[test]
fn a_second_coordinator_says_that_the_first_answers() {
    let cluster = Cluster::start(0, "0");
    let state = format!("file://{}/state", cluster.folder.path().display());
    crate::millstream(&["coordinator", "--state", &state, "--listen", "127.0.0.1:0"]).refused(1, &[&cluster.address]);
}
