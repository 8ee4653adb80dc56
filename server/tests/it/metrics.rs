//! /metrics of every process, and that it says what `status` says.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{ChildStderr, ChildStdout, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, Running};
use crate::command;

/// Heart-beats come often, so that counters of the coordinator are soon those of the worker.
const HEARTBEAT: &str = "heartbeat.interval=100ms";

/// Starts a process that serves metrics; its stdout, and the address that its log tells.
fn scraped(words: &[&str]) -> (Running, BufReader<ChildStdout>, String) {
    let mut child = command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (out, err) = (BufReader::new(child.stdout.take().unwrap()), child.stderr.take().unwrap());
    let running = Running(child);
    (running, out, address_in(err))
}

fn address_in(log: ChildStderr) -> String {
    let mut lines = BufReader::new(log).lines().map_while(Result::ok);
    let told = lines.find(|l| l.contains("metrics at http://")).expect("the log says where");
    // Whoever logs must not find its pipe closed.
    std::thread::spawn(move || lines.for_each(drop));
    told.split("http://").nth(1).and_then(|t| t.split("/metrics").next()).unwrap().to_owned()
}

/// A cluster of a coordinator and a worker, and where each serves its metrics.
fn start(slots: &str) -> (Cluster, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let state = format!("file://{}/state", folder.path().display());
    let words = ["coordinator", "--state", &state, "--listen", "127.0.0.1:0", "--json", "-D", HEARTBEAT];
    let (coordinator, mut out, of_coordinator) = scraped(&words);
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    let address = serde_json::from_str::<Value>(&line).unwrap()["listen"].as_str().unwrap().to_owned();
    let cache = folder.path().join("cache").display().to_string();
    let (worker, of_worker) = worker(&address, slots, &["--cache-dir", &cache, "--cache-disk", "80MB"]);
    (Cluster { folder, address, processes: vec![coordinator, worker] }, of_coordinator, of_worker)
}

/// A worker with little memory for blocks, and where it serves its metrics.
fn worker(coordinator: &str, slots: &str, more: &[&str]) -> (Running, String) {
    let words = ["worker", "--coordinator", coordinator, "--slots", slots, "-D", HEARTBEAT, "--cache-memory", "1MB"];
    let (running, _, address) = scraped(&[&words[..], more].concat());
    (running, address)
}

/// Samples by series, as the text has them.
#[derive(Clone, Debug, PartialEq)]
struct Samples(BTreeMap<String, f64>);

impl Samples {
    fn of(address: &str) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.0 200") || text.starts_with("HTTP/1.1 200"), "{text}");
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().unwrap()))
        };
        Self(body.lines().filter(|l| !l.starts_with('#')).filter_map(sample).collect())
    }

    /// The sum over the series of a metric that have all these labels.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |series: &str| labels.iter().all(|(k, v)| series.contains(&format!("{k}=\"{v}\"")));
        let mine = |s: &&String| s.split('{').next() == Some(name) && has(s);
        self.0.iter().filter(|(s, _)| mine(s)).map(|(_, v)| v).sum()
    }

    /// Those of a job's requests and rows: what stands still when the job does.
    fn of_job(&self, id: &str) -> BTreeMap<String, f64> {
        let counted = |s: &str| s.contains("requests_total") || s.contains("rows_in_total") || s.contains("keys_");
        self.0.iter().filter(|(s, _)| s.contains(id) && counted(s)).map(|(s, v)| (s.clone(), *v)).collect()
    }
}

fn words<'a>(name: &'a str, rate: &'a str) -> Vec<&'a str> {
    let job = ["submit", "keyed-count", "--name", name, "-p", "2", "--checkpoint-interval", "100ms", "--"];
    [&job[..], &["--keys", "30000", "--events", "0", "--rate", rate, "--output", "blackhole"]].concat()
}

/// The job stands still between two events: what all processes say of it at such a moment.
fn at_rest(cluster: &Cluster, id: &str, coordinator: &str, worker: &str) -> (Value, Samples, Samples) {
    for _ in 0..60 {
        let before = (Samples::of(coordinator).of_job(id), Samples::of(worker).of_job(id));
        // For so long no heart-beat is under way.
        std::thread::sleep(Duration::from_secs(2));
        let found = (cluster.status(id), Samples::of(coordinator), Samples::of(worker));
        if before == (found.1.of_job(id), found.2.of_job(id)) {
            return found;
        }
    }
    panic!("job {id} never stands still");
}

/// What a worker serves once nothing of a job runs on it any more.
fn over(worker: &str, id: &str) -> Samples {
    for _ in 0..600 {
        let samples = Samples::of(worker);
        if samples.sum("millstream_process_subtasks", &[("id", id)]) == 0.0 {
            return samples;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("subtasks of {id} still run");
}

#[test]
fn what_worker_and_coordinator_serve_adds_up_to_what_status_says() {
    let (cluster, of_coordinator, of_worker) = start("2");
    let first = cluster.ask(&words("counted", "20000")).ok().out.trim().to_owned();
    cluster.wait_for(&first, "it has state", |s| s["events_in"].as_u64() > Some(60_000));
    cluster.ask(&["stop", &first]).ok();
    let stopped = over(&of_worker, &first);
    assert!(stopped.sum("millstream_process_rows_in_total", &[("id", &first)]) > 60_000.0, "it is over, and counts on");

    // Behind a restart every key is a read.
    let id = cluster.ask(&words("counted", "0.2")).ok().out.trim().to_owned();
    cluster.wait_for(&id, "it reads", |s| s["reads"]["keys_asked"].as_u64() > Some(1));
    let (status, coordinator, worker) = at_rest(&cluster, &id, &of_coordinator, &of_worker);
    let of = [("id", id.as_str())];

    // Requests: the processes', the job's, and the document's are the same, in whole and by operation.
    let store = &status["object_store"];
    let number = |v: &Value| v.as_f64().unwrap_or_else(|| panic!("{v} is no number in {status}"));
    assert!(number(&store["get"]) > 0.0 && number(&store["put"]) > 0.0, "{status}");
    let requests = "millstream_process_object_store_requests_total";
    for operation in ["get", "put", "list", "head", "delete", "copy"] {
        let labels = [of[0], ("operation", operation)];
        let of_processes = worker.sum(requests, &labels) + coordinator.sum(requests, &labels);
        assert_eq!(of_processes, number(&store[operation]), "{operation}");
        assert_eq!(coordinator.sum("millstream_object_store_requests_total", &labels), of_processes, "{operation}");
    }
    let usd = "millstream_process_object_store_usd_total";
    assert!((worker.sum(usd, &of) + coordinator.sum(usd, &of) - number(&store["usd"])).abs() < 1e-12);
    let bytes =
        |operation| worker.sum("millstream_process_object_store_bytes_total", &[of[0], ("operation", operation)]);
    assert!(bytes("get") > 0.0 && bytes("get") <= number(&store["bytes_read"]));

    // By operator: only the one that keeps state reads; bundles and version records are shared.
    let operator = status["operators"].as_array().unwrap().iter().find(|o| !o["reads"].is_null()).unwrap();
    let uid = operator["uid"].as_str().unwrap();
    let state_gets = [of[0], ("purpose", "state"), ("operation", "get")];
    let mine = [of[0], ("operator", uid), ("purpose", "state"), ("operation", "get")];
    assert_eq!(worker.sum(requests, &mine), worker.sum(requests, &state_gets));
    let planned = worker.sum("millstream_process_read_gets_total", &[of[0], ("operator", uid)]);
    assert_eq!(planned, number(&operator["reads"]["gets"]));
    assert!(planned <= worker.sum(requests, &mine), "warm-ups and second ones come on top");
    let versions = [of[0], ("operator", "shared"), ("purpose", "version"), ("operation", "put")];
    assert!(coordinator.sum(requests, &versions) > 0.0 && worker.sum(requests, &versions) == 0.0);
    let bundles = [of[0], ("operator", "shared"), ("purpose", "state"), ("operation", "put")];
    assert_eq!(worker.sum(requests, &bundles), number(&status["writes"]["bundles"]));
    assert_eq!(worker.sum("millstream_process_bundles_total", &of), number(&status["writes"]["bundles"]));

    // Reads and rows by operator.
    for (metric, field) in [
        ("millstream_process_keys_named_total", "keys_named"),
        ("millstream_process_keys_asked_total", "keys_asked"),
        ("millstream_process_merged_blocks_total", "merged"),
        ("millstream_process_read_bytes_total", "bytes"),
    ] {
        assert_eq!(worker.sum(metric, &[of[0], ("operator", uid)]), number(&operator["reads"][field]), "{metric}");
        assert_eq!(status["reads"][field], operator["reads"][field]);
    }
    for (source, field) in [("memory", "memory_hits"), ("ssd", "disk_hits"), ("object-store", "misses")] {
        let labels = [of[0], ("operator", uid), ("source", source)];
        let blocks = worker.sum("millstream_process_blocks_total", &labels);
        assert_eq!(blocks, number(&operator["reads"][field]), "{source}");
        assert_eq!(blocks, number(&status["cache"][field]), "{source}");
        assert_eq!(coordinator.sum("millstream_operator_blocks_total", &labels), blocks, "{source}");
    }
    // Splits, and the sink, which keeps nothing.
    let read = number(&status["events_in"]);
    for metric in ["millstream_split_rows_total", "millstream_split_lateness_seconds_count"] {
        assert_eq!(coordinator.sum(metric, &of), read, "{metric}");
    }
    let is_delay = |s: &&String| s.starts_with("millstream_split_delay_ms_p99{") && s.contains(&id);
    let delays: Vec<f64> = coordinator.0.iter().filter(|(s, _)| is_delay(s)).map(|(_, delay)| *delay).collect();
    assert!(!delays.is_empty() && delays.iter().all(|delay| *delay == 1.0), "splits in order: {delays:?}");
    assert_eq!(coordinator.sum("millstream_sink_rows_total", &of), number(&status["sinks"][0]["rows"]));
    assert_eq!(status["sinks"][0]["bytes"], Value::Null);
    let rows = |s: &Samples, metric| s.sum(metric, &[of[0], ("operator", uid)]);
    assert_eq!(rows(&worker, "millstream_process_rows_in_total"), number(&operator["rows_in"]));
    assert_eq!(rows(&coordinator, "millstream_operator_rows_in_total"), number(&operator["rows_in"]));
    assert_eq!(worker.sum("millstream_process_subtasks", &[of[0], ("operator", uid)]), 2.0);

    // What is of the process alone, and what is of the job alone.
    assert!(worker.sum("millstream_process_cache_capacity_bytes", &[("tier", "ssd")]) == 80e6);
    assert!(worker.sum("millstream_process_memory_budget_bytes", &[("part", "write-buffer")]) > 0.0);
    assert!(!worker.0.keys().any(|s| s.starts_with("millstream_events_in_total")), "jobs are the coordinator's");
    assert!(!coordinator.0.keys().any(|s| s.starts_with("millstream_process_cache")), "it has no caches");
    assert!(coordinator.sum(requests, &[("id", ""), ("purpose", "leader")]) > 0.0);
    let durations = coordinator.sum("millstream_checkpoint_duration_seconds_count", &of);
    assert_eq!(durations, number(&status["checkpoints"]["completed"]));
    assert_eq!(coordinator.sum("millstream_events_in_total", &of), number(&status["events_in"]));
    assert_eq!((&store["reads_per_s_max"], &store["writes_per_s_max"]), (&Value::Null, &Value::Null));
    let of_first = |s: &Samples| s.sum("millstream_process_rows_in_total", &[("id", &first)]);
    assert_eq!(of_first(&worker), of_first(&stopped), "what is over stays as it was");
}

#[test]
fn workers_with_empty_caches_are_warmed_up_at_a_restart_and_before_a_rescale() {
    let (mut cluster, _, _) = start("2");
    let id = cluster.ask(&words("warmed", "20000")).ok().out.trim().to_owned();
    cluster.wait_for(&id, "it has state", |s| s["events_in"].as_u64() > Some(60_000));
    let warmed = |worker: &str| Samples::of(worker).sum("millstream_process_warmed_blocks_total", &[("id", &id)]);
    let wait_for_blocks = |worker: &str| {
        let start = std::time::Instant::now();
        while warmed(worker) == 0.0 {
            assert!(start.elapsed() < Duration::from_secs(60), "{worker} is not warmed up");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    // The job goes on in another process.
    let (second, of_second) = worker(&cluster.address, "2", &["--cache-disk", "0"]);
    cluster.processes.push(second);
    drop(cluster.processes.remove(1));
    wait_for_blocks(&of_second);
    cluster.wait_for(&id, "it runs again", |s| s["restarts"] == 1 && s["state"] == "running");
    // A third one gains a half of the key groups: the blocks are there before it serves them.
    let (third, of_third) = worker(&cluster.address, "2", &["--cache-disk", "0"]);
    cluster.processes.push(third);
    let start = std::time::Instant::now();
    while cluster.ask(&["rescale", &id, "-p", "4"]).code != Some(0) {
        assert!(start.elapsed() < Duration::from_secs(60), "there are four slots");
    }
    assert!(warmed(&of_third) > 0.0);
}

#[test]
fn run_serves_what_a_worker_and_a_coordinator_do() {
    let folder = tempfile::tempdir().unwrap();
    let out = format!("files:{}", Path::new(folder.path()).join("out").display());
    let words = ["run", "nexmark-q17", "-p", "1", "--metrics-listen", "127.0.0.1:0", "--checkpoint-interval", "100ms"];
    let words = [&words[..], &["--", "--events", "0", "--rate", "2000", "--output", &out]].concat();
    let (_running, _, address) = scraped(&words);
    let start = std::time::Instant::now();
    let samples = loop {
        let samples = Samples::of(&address);
        if samples.sum("millstream_checkpoints_completed_total", &[]) > 2.0 {
            break samples;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{samples:?}");
        std::thread::sleep(Duration::from_millis(100));
    };
    for metric in ["millstream_events_in_total", "millstream_process_rows_in_total", "process_cpu_seconds_total"] {
        assert!(samples.sum(metric, &[]) > 0.0, "{metric}");
    }
    // Coordinator and worker are one process: their requests are one series.
    let requests = "millstream_process_object_store_requests_total";
    assert!(samples.sum(requests, &[("purpose", "version"), ("operation", "put")]) > 2.0);
    assert!(samples.sum(requests, &[("purpose", "state"), ("operation", "put")]) > 0.0);
    assert!(samples.sum("millstream_process_flushed_bytes_total", &[]) > 0.0);
}
