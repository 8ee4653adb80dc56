//! A process kills itself at each step of a commit, once, and another one takes its place: each row is there once.
//!
//! The steps are the kill points of the program (`millstream_common::kill_points`, docs/kafka.md). q20 has rows, and so
//! something to commit, in each epoch. Where a step is "sent", the other side stays where it has received it, and the process
//! is killed then.

use super::cluster::{Armed, Cluster, Role};
use super::program::wait;
use super::queries::{exactly, golden_events};
use super::support::{bootstrap, create_topic, run, unique};

use Role::{Coordinator, Worker};

const KILL: &str = "MILLSTREAM_KILL_AT";
const STAY: &str = "MILLSTREAM_STAY_AT";

/// A coordinator and workers, and who is to be killed where, in this order.
struct Step {
    workers: usize,
    slots: u32,
    armed: Vec<Armed>,
    deaths: Vec<(Role, &'static str)>,
}

impl Step {
    /// Two workers of a slot, one of which is killed, or the coordinator: `at` is NAME:N.
    fn new(role: Role, at: &'static str) -> Self {
        Self { workers: 2, slots: 1, armed: vec![(role, KILL, at)], deaths: vec![(role, name(at))] }
    }

    /// Both subtasks on one worker: what it says it says at once.
    fn on_one_worker(mut self) -> Self {
        (self.workers, self.slots) = (1, 2);
        self
    }

    /// A slot is free wherever one is lost: what was left to be committed is, before a deployment.
    fn with_free_slots(mut self) -> Self {
        self.slots = 2;
        self
    }

    /// Then, another one.
    fn then(mut self, role: Role, at: &'static str) -> Self {
        self.armed.push((role, KILL, at));
        self.deaths.push((role, name(at)));
        self
    }

    /// The first one is killed while this one stays there.
    fn while_other_stays(mut self, role: Role, at: &'static str) -> Self {
        self.armed.push((role, STAY, at));
        self
    }

    fn run(&self) {
        let events = golden_events();
        let results = unique("killed");
        run(|_| async { create_topic(&results, 2).await });
        let mut cluster = Cluster::start(self.workers, self.slots, &self.armed);
        let options = ["-p", "2", "--checkpoint-interval", "200ms", "-D", "checkpoint.timeout=60s"];
        let (brokers, more) = (bootstrap(), ["--stop", "latest", "--rate", "2500", "--transaction-timeout", "2m"]);
        let args = [&["--brokers", &brokers, "--events", events, "--results", &results][..], &more].concat();
        cluster.submit("q20", &results, &options, &args);
        if let Some((_, _, at)) = self.armed.iter().find(|a| a.1 == STAY) {
            let stays = cluster.point(&format!("stays-{}", name(at)));
            wait("somebody stays", || stays.exists());
            std::fs::write(cluster.point("go"), "").unwrap();
            wait("somebody is killed", || {
                cluster.tend();
                !cluster.deaths.is_empty()
            });
            if name(at) == "coordinator-has-reports" {
                // The worker is known to be lost while the version is being written.
                cluster.wait_for(&results, "it restarts", |s| s["restarts"].as_u64() > Some(0));
            }
            std::fs::remove_file(stays).unwrap();
        }
        cluster.finish(&results);
        let roles = |deaths: &[(Role, &str)]| deaths.iter().map(|d| d.0).collect::<Vec<_>>();
        assert_eq!(cluster.deaths.iter().map(|d| d.role).collect::<Vec<_>>(), roles(&self.deaths));
        for (death, (_, at)) in cluster.deaths.iter().zip(&self.deaths) {
            assert_eq!(death.signal, Some(9), "{at}: {}", death.log);
            assert!(death.log.contains(&format!("killed at {at}\n")), "{at}: {}", death.log);
            let left = std::fs::read_to_string(cluster.point(&format!("killed-{at}"))).unwrap();
            assert_eq!(left, death.pid.to_string(), "{at}");
        }
        exactly(&results, "q20");
    }
}

fn name(at: &'static str) -> &'static str {
    at.split(':').next().unwrap()
}

#[test]
fn a_worker_that_has_flushed() {
    Step::new(Worker, "sink-flushed:4").run();
}

#[test]
fn a_worker_that_knows_its_transaction_and_has_not_reported_it() {
    Step::new(Worker, "sink-described:4").run();
}

#[test]
fn a_worker_whose_report_is_there_before_the_version_is_written() {
    Step::new(Worker, "worker-reported:3:wait").while_other_stays(Coordinator, "coordinator-has-reports:5").run();
}

#[test]
fn a_worker_that_was_told_of_the_version_and_has_not_committed() {
    Step::new(Worker, "worker-told:3").run();
}

#[test]
fn a_worker_that_has_sent_the_commit_and_read_no_answer() {
    Step::new(Worker, "end-sent:3").run();
}

#[test]
fn a_worker_that_has_the_answer_and_has_not_confirmed() {
    Step::new(Worker, "worker-answered:3").run();
}

#[test]
fn a_worker_whose_confirmation_is_there() {
    let killed = Step::new(Worker, "worker-confirmed:2:wait").on_one_worker();
    killed.while_other_stays(Coordinator, "coordinator-confirmed:8").run();
}

#[test]
fn a_coordinator_that_has_all_reports_and_has_written_no_version() {
    Step::new(Coordinator, "coordinator-has-reports:4").run();
}

#[test]
fn a_coordinator_that_has_written_a_version_and_told_nobody() {
    Step::new(Coordinator, "coordinator-wrote:4").run();
}

#[test]
fn a_coordinator_that_has_told_of_a_version_before_it_is_committed() {
    let killed = Step::new(Coordinator, "coordinator-told:2:wait").on_one_worker();
    killed.while_other_stays(Worker, "worker-told:4").run();
}

#[test]
fn a_coordinator_that_has_a_confirmation_which_no_version_knows() {
    Step::new(Coordinator, "coordinator-confirmed:5").run();
}

#[test]
fn a_worker_amid_the_commits_before_a_deployment() {
    let killed = Step::new(Coordinator, "coordinator-wrote:4").with_free_slots();
    killed.then(Worker, "recovery-committed:1").run();
}

#[test]
fn a_worker_amid_the_end_of_what_an_older_deployment_left_open() {
    let killed = Step::new(Coordinator, "coordinator-wrote:4").with_free_slots();
    killed.then(Worker, "recovery-aborted:1").run();
}
