//! A coordinator and workers as processes, and what they say about a job.
//!
//! Commands go through the command line as a user's do. What is looked at many times a second comes from the
//! coordinator's `/metrics`, which has the counters of `status --json` without a process for each look.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use millstream_common::{Error, Result};
use serde_json::Value;

use crate::binary::{Binary, Running, words};
use crate::counters::{get, samples};
use crate::outside::{free_ports, now, wait_for};
use crate::place::Place;

/// Slots of a cluster, whatever the number of its workers.
pub const SLOTS: u32 = 4;

/// From one heart-beat to the next, and so how old a counter may be. Short: moments are read from counters.
const HEARTBEAT: &str = "heartbeat.interval=50ms";

/// From one look at a cluster to the next.
pub const LOOK: Duration = Duration::from_millis(10);

/// How long anything may take that a cluster is asked for: to fill many gigabytes, for instance.
pub const LIMIT: Duration = Duration::from_secs(3 * 3600);

/// What a cluster is made of. One plan can start several clusters, one after the other, at the same addresses.
#[derive(Debug)]
pub struct Plan<'a> {
    binary: &'a Binary,
    place: &'a Place,
    workers: u32,
    /// Options of the workers besides.
    worker_options: Vec<String>,
    address: SocketAddr,
    metrics: SocketAddr,
    /// How often it has been started: each time caches are new.
    starts: u32,
}

impl<'a> Plan<'a> {
    /// A cluster of `workers` that share [`SLOTS`].
    pub fn new(binary: &'a Binary, place: &'a Place, workers: u32) -> Result<Self> {
        let ports = free_ports(2)?;
        let at = |i: usize| SocketAddr::from(([127, 0, 0, 1], ports[i]));
        Ok(Self { binary, place, workers, worker_options: Vec::new(), address: at(0), metrics: at(1), starts: 0 })
    }

    /// With more options for the workers.
    #[must_use]
    pub fn with_worker_options(mut self, options: &str) -> Self {
        self.worker_options.extend(words(options));
        self
    }

    /// Starts fresh processes with empty caches. They may not serve yet: see [`Cluster::wait_until_it_serves`].
    pub fn start(&mut self) -> Result<Cluster<'a>> {
        self.starts += 1;
        let folder = self.place.folder();
        let started = now();
        let (address, metrics, url) = (self.address, self.metrics, self.place.url());
        let coordinator =
            format!("coordinator --state {url} --listen {address} --metrics-listen {metrics} -D {HEARTBEAT}");
        let log = folder.join("coordinator.log");
        let mut processes = vec![self.binary.start(&words(&coordinator), &log)?];
        for i in 0..self.workers {
            let mut worker =
                words(&format!("worker --coordinator {address} --slots {} -D {HEARTBEAT}", SLOTS / self.workers));
            let cache = folder.join(format!("cache-{}-{i}", self.starts));
            worker.extend(["--cache-dir".to_owned(), cache.display().to_string()]);
            worker.extend(self.worker_options.iter().cloned());
            processes.push(self.binary.start(&worker, &folder.join(format!("worker-{i}.log")))?);
        }
        Ok(Cluster { binary: self.binary, address, metrics, log, processes, started })
    }
}

/// A running cluster. Its processes are killed when this ends.
#[derive(Debug)]
pub struct Cluster<'a> {
    binary: &'a Binary,
    address: SocketAddr,
    metrics: SocketAddr,
    /// Of the coordinator.
    log: PathBuf,
    processes: Vec<Running>,
    /// When the first of its processes was started.
    pub started: Instant,
}

impl Cluster<'_> {
    /// Waits until the coordinator answers.
    pub fn wait_until_it_serves(&mut self) -> Result<()> {
        let metrics = self.metrics;
        self.wait("the coordinator answers", |_| Ok(get(metrics, "/metrics").ok().map(drop)))
    }

    /// Waits until all workers have said hello, as the coordinator's log tells: a job that is submitted before has all its
    /// subtasks on those that were quicker.
    pub fn wait_for_workers(&mut self) -> Result<()> {
        self.wait_until_it_serves()?;
        let (log, workers) = (self.log.clone(), self.processes.len() - 1);
        self.wait("all workers are there", |_| {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let last = text.rsplit("leading with generation").next().unwrap_or_default();
            Ok((last.matches(" slots at ").count() >= workers).then_some(()))
        })
    }

    /// The process of a worker.
    #[must_use]
    pub fn worker(&self, i: usize) -> &Running {
        &self.processes[1 + i]
    }

    /// The process of the coordinator.
    #[must_use]
    pub fn coordinator(&self) -> &Running {
        &self.processes[0]
    }

    /// Runs a client's command; gives its stdout. What stands behind `--` stays there.
    pub fn ask(&self, text: &str) -> Result<String> {
        Ok(self.binary.call(&self.command(text))?.trim().to_owned())
    }

    /// Starts a client's command.
    pub fn begin(&self, text: &str, place: &Place) -> Result<Running> {
        self.binary.start(&self.command(text), &place.folder().join("client.log"))
    }

    fn command(&self, text: &str) -> Vec<String> {
        let mut all = words(text);
        let at = all.iter().position(|w| w == "--").unwrap_or(all.len());
        all.splice(at..at, ["--coordinator".to_owned(), self.address.to_string()]);
        all
    }

    /// A document of a client's command.
    pub fn document(&self, text: &str) -> Result<Value> {
        let said = self.ask(text)?;
        serde_json::from_str(&said).map_err(|e| {
            Error::internal(format!("this is no JSON document: {said:.200}"))
                .at(text.to_owned())
                .next("run the command by hand")
                .source(e)
        })
    }

    /// The counters of a job now; `None` while nobody answers or the job is not there yet.
    #[must_use]
    pub fn counters(&self, job: &str) -> Option<Counters> {
        Counters::read(&get(self.metrics, "/metrics").ok()?, job)
    }

    /// Asks until there is an answer. Ends with an error when there is none within [`LIMIT`], or a process has ended.
    pub fn wait<T>(&mut self, what: &str, mut answer: impl FnMut(&Self) -> Result<Option<T>>) -> Result<T> {
        let found = wait_for(LIMIT, LOOK, || {
            self.processes.iter_mut().try_for_each(Running::must_run)?;
            answer(self)
        })?;
        found.ok_or_else(|| {
            Error::unavailable(format!("it did not come to this within {LIMIT:?}: {what}"))
                .at(format!("the cluster at {}", self.address))
                .next("try it with a smaller size or a lower rate")
        })
    }

    /// Waits until the counters of a job satisfy `condition`; gives them.
    pub fn wait_for_job(&mut self, job: &str, what: &str, condition: impl Fn(&Counters) -> bool) -> Result<Counters> {
        self.wait(what, |cluster| {
            let counters = cluster.counters(job);
            match counters.as_ref().filter(|c| c.failed) {
                Some(_) => {
                    Err(Error::unavailable(format!("the job {job} has failed"))
                        .at(cluster.ask(&format!("status {job}"))?))
                }
                None => Ok(counters.filter(&condition)),
            }
        })
    }
}

/// What is looked at many times a second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counters {
    /// Rows that sources have read.
    pub events_in: f64,
    /// Checkpoints that are durable.
    pub checkpoints: f64,
    /// Reads of the object store.
    pub gets: f64,
    /// Bytes read from the object store.
    pub bytes_read: f64,
    /// Whether it has failed for good.
    pub failed: bool,
    /// Rows that each subtask has taken, by operator and subtask.
    pub rows_in: BTreeMap<(String, String), f64>,
}

impl Counters {
    fn read(text: &str, job: &str) -> Option<Self> {
        let mut counters = Self::default();
        let mut there = false;
        for sample in samples(text).filter(|s| s.has("id", job)) {
            there = true;
            match sample.name {
                "millstream_events_in_total" => counters.events_in = sample.value,
                "millstream_checkpoints_completed_total" => counters.checkpoints = sample.value,
                "millstream_object_store_read_bytes_total" => counters.bytes_read = sample.value,
                "millstream_object_store_requests_total" if sample.has("operation", "get") => {
                    counters.gets += sample.value;
                }
                "millstream_job_state" if sample.has("state", "failed") => counters.failed = sample.value > 0.0,
                "millstream_subtask_rows_in_total" => {
                    let label = |name| sample.labels.get(name).copied().unwrap_or_default().to_owned();
                    counters.rows_in.insert((label("operator"), label("subtask")), sample.value);
                }
                _ => {}
            }
        }
        there.then_some(counters)
    }

    /// Rows taken by each subtask of an operator.
    pub fn subtasks_of(&self, operator: &str) -> impl Iterator<Item = f64> {
        self.rows_in.iter().filter(move |((o, _), _)| o == operator).map(|(_, rows)| *rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_those_of_the_job() {
        let text = "millstream_events_in_total{job=\"k\",id=\"a\"} 7\nmillstream_events_in_total{job=\"k\",id=\"b\"} 9\n\
                    millstream_job_state{job=\"k\",id=\"a\",state=\"failed\"} 1\n\
                    millstream_object_store_requests_total{job=\"k\",id=\"a\",operator=\"x\",operation=\"get\"} 1\n\
                    millstream_object_store_requests_total{job=\"k\",id=\"a\",operator=\"y\",operation=\"get\"} 2\n\
                    millstream_object_store_requests_total{job=\"k\",id=\"a\",operation=\"put\"} 4\n\
                    millstream_subtask_rows_in_total{job=\"k\",id=\"a\",operator=\"x/y\",subtask=\"1\"} 5\n";
        let a = Counters::read(text, "a").unwrap();
        assert_eq!((a.events_in, a.gets, a.failed), (7.0, 3.0, true));
        assert_eq!(a.subtasks_of("x/y").collect::<Vec<_>>(), [5.0]);
        assert_eq!(a.subtasks_of("x").count(), 0);
        assert!(!Counters::read(text, "b").unwrap().failed && Counters::read(text, "c").is_none());
    }
}
