//! Workers that are asked to end, as processes: who takes over, what they say, and how they end.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::Cluster;
use crate::run::lines;
use crate::{Done, command};

/// A worker whose end is looked at; it ends with the test in any case.
struct Worker(Option<Child>);

impl Worker {
    fn start(cluster: &Cluster, slots: &str, drain_timeout: &str) -> Self {
        let setting = format!("worker.drain-timeout={drain_timeout}");
        let names = || workers(cluster).iter().map(|w| w["worker"].to_string()).collect::<BTreeSet<_>>();
        let known = names();
        let child = command(&["worker", "--coordinator", &cluster.address, "--slots", slots, "-D", &setting])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let worker = Self(Some(child));
        let start = Instant::now();
        // Others may go meanwhile.
        while names().is_subset(&known) {
            assert!(start.elapsed() < Duration::from_secs(60), "a worker says hello within 60 s");
            std::thread::sleep(Duration::from_millis(50));
        }
        worker
    }

    fn pid(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.pid().to_string()]).status().unwrap().success());
    }

    fn end(mut self) -> Done {
        Done::of(self.0.take().unwrap().wait_with_output().unwrap())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn workers(cluster: &Cluster) -> Vec<Value> {
    cluster.ask(&["workers", "--json"]).ok().json().as_array().unwrap().clone()
}

/// A job of two subtasks that counts 60,000 events in at least 12 s.
fn submit(cluster: &Cluster) -> String {
    let words = "submit keyed-count -p 2 --checkpoint-interval 200ms -- --keys 1000 --events 60000 --rate 5000 --output files:out";
    let id = cluster.ask(&words.split(' ').collect::<Vec<_>>()).ok().out.trim().to_owned();
    cluster.wait_for(&id, "it has versions", |s| s["state"] == "running" && s["version"].as_u64() > Some(2));
    id
}

fn finishes(cluster: &Cluster, id: &str) -> Value {
    let end = cluster.wait_for(id, "it finishes", |s| s["state"] == "finished");
    let out = lines(&cluster.folder.path().join("out"));
    assert!(out.contains(&r#"{"key":-1,"count":60000}"#.to_owned()), "{out:?}");
    assert_eq!(out.len(), 2, "key 0 and the total: {out:?}");
    end
}

#[test]
fn all_workers_are_replaced_under_load_and_the_job_never_restarts() {
    let cluster = Cluster::start(0, "0");
    let mut old = vec![Worker::start(&cluster, "1", "25s"), Worker::start(&cluster, "1", "25s")];
    let id = submit(&cluster);
    assert_eq!(cluster.ask(&["rescale", &id, "-p", "3"]).refused(1, &["0 are free"]).code, Some(1));
    for name in ["-TERM", "-INT"] {
        let new = Worker::start(&cluster, "1", "25s");
        let leaving = old.remove(0);
        let pid = leaving.pid();
        leaving.signal(name);
        leaving.end().ok().once("handed over");
        let status = cluster.status(&id);
        let subtasks = status["operators"][1]["subtasks"].as_array().unwrap();
        assert!(subtasks.iter().all(|s| s["pid"] != pid), "{subtasks:?}");
        old.push(new);
    }
    let status = cluster.status(&id);
    assert_eq!((&status["restarts"], &status["execution"]), (&0.into(), &1.into()), "{status}");
    let moved: Vec<_> = status["rescales"].as_array().unwrap().iter().map(|r| &r["moved"]).collect();
    assert_eq!(moved.len(), 2, "{moved:?}");
    let attempts = status["operators"][1]["subtasks"].as_array().unwrap().iter().map(|s| s["attempt"].as_u64());
    assert!(attempts.into_iter().all(|a| a > Some(1)), "each subtask was deployed anew once: {status}");
    assert_eq!(finishes(&cluster, &id)["restarts"], 0);
}

#[test]
fn a_job_waits_for_slots_that_did_not_come_in_time() {
    let cluster = Cluster::start(0, "0");
    let only = Worker::start(&cluster, "2", "500ms");
    let id = submit(&cluster);
    only.signal("-TERM");
    only.end().ok().once("waiting for slots, with their state as of the newest version: keyed-count");
    let waiting = cluster.status(&id);
    assert_eq!((&waiting["state"], &waiting["restarts"]), (&"restarting".into(), &1.into()));
    assert_eq!((&waiting["last_failure"]["code"], &waiting["parallelism"]), (&"MS7133".into(), &2.into()));
    let next = Worker::start(&cluster, "2", "500ms");
    finishes(&cluster, &id);
    // It runs nothing any more.
    next.signal("-TERM");
    next.end().ok().once("handed over");
}

#[test]
fn a_drain_uses_a_worker_that_comes_late_and_slots_that_leave_are_shown() {
    let cluster = Cluster::start(0, "0");
    let first = Worker::start(&cluster, "2", "25s");
    let id = submit(&cluster);
    first.signal("-TERM");
    let start = Instant::now();
    while workers(&cluster)[0]["leaving"] != true {
        assert!(start.elapsed() < Duration::from_secs(60), "the worker says that it leaves within 60 s");
    }
    let shown = &workers(&cluster)[0];
    assert_eq!((&shown["slots"], &shown["free"]), (&2.into(), &0.into()));
    assert!(cluster.ask(&["workers"]).ok().out.contains("yes"));
    let second = Worker::start(&cluster, "2", "25s");
    first.end().ok().once("handed over");
    let end = finishes(&cluster, &id);
    assert_eq!((&end["restarts"], end["workers"].as_array().unwrap().len()), (&0.into(), 1), "{end}");
    drop(second);
}

#[test]
fn a_second_signal_ends_a_worker_at_once_and_without_a_coordinator_it_fails() {
    let mut cluster = Cluster::start(0, "0");
    let only = Worker::start(&cluster, "2", "25s");
    let id = submit(&cluster);
    only.signal("-TERM");
    std::thread::sleep(Duration::from_millis(500));
    only.signal("-TERM");
    only.end().refused(1, &["MS6001", "SIGTERM"]);
    let next = Worker::start(&cluster, "2", "1s");
    cluster.wait_for(&id, "it runs again", |s| s["state"] == "running");
    cluster.processes.remove(0);
    next.signal("-TERM");
    next.end().refused(1, &["MS7024", "no coordinator"]);
}

#[test]
fn a_rebalance_spreads_a_job_over_its_workers() {
    let cluster = Cluster::start(0, "0");
    let first = Worker::start(&cluster, "2", "25s");
    let id = submit(&cluster);
    let second = Worker::start(&cluster, "2", "25s");
    let free = |cluster: &Cluster| workers(cluster).iter().map(|w| w["free"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(free(&cluster).iter().sum::<u64>(), 2);
    let status = cluster.ask(&["rebalance", &id, "--json"]).ok().json();
    assert_eq!((&status["restarts"], &status["rescales"][0]["moved"]), (&0.into(), &serde_json::json!([1])));
    assert_eq!(free(&cluster), [1, 1]);
    assert_eq!(finishes(&cluster, &id)["restarts"], 0);
    drop([first, second]);
}
