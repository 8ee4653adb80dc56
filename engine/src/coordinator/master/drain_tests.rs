//! The state machine of a job beside workers that do as they are told, until one is asked to leave.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use millstream_common::env::Moment;
use millstream_common::{AssignmentId, Error, Result};
use millstream_proto::control::{
    CheckpointReport, CommittableId, CompactionsHeld, Confirmed, Deployed, JobRef, JobSpec, Prepared, Serving,
    to_coordinator::Message as Up, to_worker::Message as Down,
};
use millstream_proto::version::version_record::Status;
use millstream_proto::version::{Committable, VersionRecord};

use super::{Action, End, JobMaster, KnownSplit, Phase, Timer, Turn, WorkerFacts};
use crate::convert::{assignment_to_proto, failure_to_proto};
use crate::coordinator::assignment;
use crate::settings::Settings;

struct Worker {
    slots: u32,
    leaving: Option<Moment>,
    /// The assignment that it was told of and that no record has yet.
    upcoming: Option<u64>,
}

/// A job, its workers, and what was sent to them.
pub(super) struct Cluster {
    pub(super) master: JobMaster,
    workers: BTreeMap<String, Worker>,
    now: Moment,
    inbox: VecDeque<(String, Down)>,
    pub(super) told: Vec<(String, Down)>,
    in_flight: Option<Box<VersionRecord>>,
    pub(super) replies: BTreeMap<u64, Result<()>>,
    /// Each report lists output that has to be committed.
    with_output: bool,
    /// Nobody reports an epoch.
    silent: bool,
    owed: BTreeMap<String, Vec<CommittableId>>,
}

impl Cluster {
    /// A running job of so many subtasks on `workers`.
    pub(super) fn running(parallelism: u32, workers: &[(&str, u32)]) -> Self {
        let mut cluster = Self::created(parallelism);
        for (name, slots) in workers {
            cluster.joins(name, *slots);
        }
        cluster.settle();
        assert_eq!(cluster.master.phase, Phase::Running);
        cluster
    }

    fn created(parallelism: u32) -> Self {
        let assigned = assignment::even(AssignmentId(1), parallelism);
        let record = VersionRecord {
            number: 1,
            generation: 1,
            assignment: Some(assignment_to_proto(&assigned)),
            ..VersionRecord::default()
        };
        let spec = JobSpec { id: "j".into(), name: "job".into(), ..JobSpec::default() };
        let splits = vec![KnownSplit { source_uid: "s".into(), id: "0".into(), payload: Vec::new() }];
        let settings = Settings::defaults();
        let master = JobMaster::new(spec, settings, record, None, splits, BTreeSet::new(), Moment::default()).unwrap();
        Self {
            master,
            workers: BTreeMap::new(),
            now: Moment(Duration::from_secs(1)),
            inbox: VecDeque::new(),
            told: Vec::new(),
            in_flight: None,
            replies: BTreeMap::new(),
            with_output: false,
            silent: false,
            owed: BTreeMap::new(),
        }
    }

    pub(super) fn turn(&mut self, act: impl FnOnce(&mut JobMaster, &mut Turn<'_>)) {
        let used = self.master.slots_in_use();
        let fact = |(name, w): (&String, &Worker)| {
            let free = w.slots - used.get(name).copied().unwrap_or(0);
            let free = if w.leaving.is_some() { 0 } else { free };
            (name.clone(), WorkerFacts { data_address: name.clone(), free, leaving: w.leaving })
        };
        let workers = self.workers.iter().map(fact).collect();
        let compactors = BTreeMap::new();
        let mut t = Turn { now: self.now, wall_ms: 0, workers: &workers, compactors, out: Vec::new() };
        act(&mut self.master, &mut t);
        for action in t.out {
            match action {
                Action::Send(to, message) => {
                    self.told.push((to.clone(), (*message).clone()));
                    self.inbox.push_back((to, *message));
                }
                Action::Commit(record) => self.in_flight = Some(record),
                Action::Reply(token, outcome) => drop(self.replies.insert(token, outcome)),
                Action::Timer(..) | Action::Stale(_) | Action::Ended => {}
            }
        }
    }

    pub(super) fn joins(&mut self, name: &str, slots: u32) {
        self.workers.insert(name.into(), Worker { slots, leaving: None, upcoming: None });
        self.turn(JobMaster::tend);
    }

    /// It waits for slots elsewhere for 25 s.
    fn leaves(&mut self, name: &str) {
        self.workers.get_mut(name).unwrap().leaving = Some(self.now + Duration::from_secs(25));
        self.turn(JobMaster::tend);
    }

    pub(super) fn is_lost(&mut self, name: &str) {
        self.workers.remove(name);
        self.turn(|m, t| m.on_worker_lost(name, t));
    }

    fn passes(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
        self.turn(JobMaster::tend);
    }

    fn says(&mut self, worker: &str, message: Up) {
        self.turn(|m, t| m.on_message(worker, message, t));
    }

    /// The record in flight stands.
    fn commit(&mut self) {
        if self.in_flight.take().is_some() {
            self.turn(|m, t| m.on_committed(true, t));
        }
    }

    /// Everybody does as told, until nothing is left to be done.
    pub(super) fn settle(&mut self) {
        loop {
            while let Some((worker, message)) = self.inbox.pop_front() {
                self.obeys(&worker, message);
            }
            if self.in_flight.is_none() {
                return;
            }
            self.commit();
        }
    }

    /// The next message that is one of `which` is answered, and all before it.
    pub(super) fn settle_until(&mut self, which: impl Fn(&Down) -> bool) {
        while let Some((worker, message)) = self.inbox.pop_front() {
            let found = which(&message);
            self.obeys(&worker, message);
            if found {
                return;
            }
        }
        panic!("that was not said");
    }

    fn obeys(&mut self, name: &str, message: Down) {
        let Some(worker) = self.workers.get_mut(name) else { return };
        let job = Some(JobRef { id: "j".into(), generation: 1, execution: self.master.execution });
        let answer = match message {
            Down::CommitNow(c) => {
                let id = |c: &Committable| CommittableId {
                    sink_uid: c.sink_uid.clone(),
                    epoch: c.epoch,
                    subtask: c.subtask,
                    sequence: c.sequence,
                    took_us: None,
                };
                Up::Confirmed(Confirmed { job, committables: c.committables.iter().map(id).collect(), failure: None })
            }
            Down::Deploy(d) => Up::Deployed(Deployed { job, assignment_id: d.assignment.unwrap().id }),
            Down::HoldCompactions(h) if h.hold => Up::CompactionsHeld(CompactionsHeld { job }),
            Down::PrepareRescale(p) => {
                let assignment_id = p.assignment.unwrap().id;
                worker.upcoming = Some(assignment_id);
                Up::Prepared(Prepared { job, assignment_id })
            }
            Down::InjectBarrier(b) if !self.silent => {
                let mut report = CheckpointReport { job, epoch: b.epoch, ..CheckpointReport::default() };
                if self.with_output {
                    let subtask = self.master.placement.iter().position(|w| w == name).unwrap() as u32;
                    let made =
                        Committable { sink_uid: "out".into(), epoch: b.epoch, subtask, ..Committable::default() };
                    let (sink_uid, epoch) = ("out".into(), b.epoch);
                    let id = CommittableId { sink_uid, epoch, subtask, ..CommittableId::default() };
                    self.owed.entry(name.to_owned()).or_default().push(id);
                    report.committables.push(made);
                }
                Up::Report(report)
            }
            Down::VersionCommitted(v) => {
                let id = v.record.unwrap().assignment.unwrap().id;
                if worker.upcoming != Some(id) {
                    return;
                }
                worker.upcoming = None;
                Up::Serving(Serving { job, assignment_id: id, ..Serving::default() })
            }
            _ => return,
        };
        // Who was deployed for an assignment serves it, too.
        if let Up::Deployed(d) = &answer
            && self.master.rescale.is_some()
        {
            self.workers.get_mut(name).unwrap().upcoming = Some(d.assignment_id);
        }
        self.says(name, answer);
    }

    /// All that a worker has made and not confirmed becomes visible.
    fn confirms(&mut self, worker: &str) {
        let committables = self.owed.remove(worker).unwrap_or_default();
        self.says(worker, Up::Confirmed(Confirmed { job: None, committables, failure: None }));
    }

    fn placement(&self) -> String {
        self.master.placement.join(" ")
    }

    fn restarts(&self) -> u64 {
        self.master.statistics.restarts
    }

    fn was_stopped(&self, worker: &str) -> bool {
        self.told.iter().any(|(w, m)| w == worker && matches!(m, Down::StopJob(_)))
    }
}

#[test]
fn subtasks_move_off_a_worker_that_leaves_and_it_is_needed_no_more() {
    let mut c = Cluster::running(2, &[("a", 1), ("b", 1), ("c", 1)]);
    assert_eq!(c.placement(), "a b");
    c.leaves("a");
    assert!(c.master.needs("a"));
    c.settle();
    assert_eq!(c.placement(), "c b");
    assert!(!c.master.needs("a") && c.was_stopped("a"), "it has nothing left");
    assert_eq!((c.restarts(), c.master.assignment.id, c.master.execution), (0, AssignmentId(2), 1));
    let joins = |(w, m): &&(String, Down)| matches!(m, Down::Deploy(d) if d.join && w == "c" && d.subtasks == [0]);
    assert_eq!(c.told.iter().filter(joins).count(), 1);
    let moved = |(_, m): &&(String, Down)| matches!(m, Down::PrepareRescale(p) if p.moved == [0]);
    assert_eq!(c.told.iter().filter(moved).count(), 2, "a and b hear of it");
    assert_eq!(c.master.assignment.ranges, assignment::even(AssignmentId(1), 2).ranges, "no key group moved");
}

#[test]
fn a_worker_that_comes_back_is_not_stopped_for_what_it_owed() {
    let mut c = Cluster::running(2, &[("a", 1), ("b", 1)]);
    c.with_output = true;
    assert_eq!(c.placement(), "a b");
    c.turn(|m, t| m.want_rescale(1, 1, t));
    c.settle();
    assert_eq!(c.placement(), "a");
    // It joins again before what it owes is visible.
    c.turn(|m, t| m.want_rescale(2, 2, t));
    c.settle_until(|m| matches!(m, Down::PrepareRescale(_)));
    c.confirms("b");
    c.settle();
    assert!(!c.was_stopped("b"));
    assert_eq!((c.placement().as_str(), c.restarts()), ("a b", 0));
}

#[test]
fn what_a_worker_owes_is_not_forgotten_while_it_runs_others() {
    let mut c = Cluster::running(3, &[("a", 3)]);
    c.with_output = true;
    c.joins("b", 2);
    c.turn(|m, t| m.want_rebalance(1, t));
    c.settle();
    assert_eq!(c.placement(), "a a b", "one subtask has moved, its output is not visible yet");
    c.joins("c", 2);
    c.leaves("a");
    c.settle();
    assert!(!c.placement().contains('a'));
    c.confirms("b");
    c.confirms("c");
    assert!(c.master.needs("a"));
    c.confirms("a");
    assert!(!c.master.needs("a") && c.was_stopped("a"));
}

#[test]
fn a_worker_stays_until_its_output_is_confirmed() {
    let mut c = Cluster::running(2, &[("a", 1), ("b", 1), ("c", 1)]);
    c.with_output = true;
    c.leaves("a");
    c.settle();
    assert_eq!(c.placement(), "c b");
    c.confirms("b");
    assert!(c.master.needs("a") && !c.was_stopped("a"), "its own output is not visible");
    c.confirms("a");
    assert!(!c.master.needs("a") && c.was_stopped("a"));
    c.is_lost("a");
    assert_eq!(c.restarts(), 0);
}

#[test]
fn what_a_worker_owes_is_committed_by_others_when_it_is_lost() {
    let mut c = Cluster::running(2, &[("a", 1), ("b", 1), ("c", 1)]);
    c.with_output = true;
    c.leaves("a");
    c.settle();
    c.is_lost("a");
    assert_eq!((c.restarts(), c.master.phase.clone()), (1, Phase::Restarting { delayed: true }));
}

#[test]
fn the_only_worker_waits_for_another_one() {
    let mut c = Cluster::running(2, &[("a", 2)]);
    c.leaves("a");
    c.settle();
    c.passes(10);
    assert_eq!(c.placement(), "a a");
    c.joins("b", 1);
    c.settle();
    assert_eq!(c.placement(), "a a", "one slot is not enough");
    c.joins("c", 1);
    c.settle();
    assert_eq!((c.placement().as_str(), c.restarts()), ("b c", 0), "at once, no heart-beat was waited for");
    assert!(!c.master.needs("a"));
}

#[test]
fn without_slots_a_last_checkpoint_is_taken_and_the_job_waits() {
    let mut c = Cluster::running(2, &[("a", 2)]);
    c.leaves("a");
    c.settle();
    let epoch = c.master.record.epoch;
    c.with_output = true;
    c.passes(26);
    assert!(c.master.needs("a"), "the checkpoint goes before");
    let listed = |m: &Down| matches!(m, Down::CommitNow(order) if !order.clean_up && order.committables.len() == 1);
    while !c.told.iter().any(|(w, m)| w == "a" && listed(m)) {
        match c.inbox.pop_front() {
            Some((worker, message)) => c.obeys(&worker, message),
            None if c.in_flight.is_some() => c.commit(),
            None => panic!("nobody commits"),
        }
    }
    assert!(c.master.record.epoch > epoch);
    assert_eq!((c.master.state(), c.restarts()), ("restarting", 1));
    assert!(c.master.needs("a"), "its output is not visible");
    c.settle();
    assert!(!c.master.needs("a") && c.was_stopped("a"));
    assert_eq!(c.master.assignment.parallelism(), 2);
    assert_eq!(c.master.statistics.last_failure.as_ref().map(|f| f.0), Some(7133));
    c.is_lost("a");
    c.joins("b", 2);
    c.settle();
    assert_eq!((c.master.state(), c.placement().as_str(), c.restarts()), ("running", "b b", 1));
}

#[test]
fn a_job_that_waits_for_slots_has_its_output_committed_by_whoever_is_there() {
    let mut c = Cluster::running(2, &[("a", 2)]);
    c.with_output = true;
    c.turn(|m, t| m.want_checkpoint(1, t));
    c.settle();
    c.is_lost("a");
    assert_eq!(c.master.phase, Phase::Restarting { delayed: true });
    c.joins("b", 1);
    let execution = c.master.execution;
    c.turn(|m, t| m.on_timer(Timer::Restart { execution }, t));
    assert!(c.master.needs("b"), "it commits");
    // It fails, and is asked again; then it is lost, and another one commits.
    let failure = Some(failure_to_proto(&Error::unavailable("no answer")));
    c.says("b", Up::Confirmed(Confirmed { failure, ..Confirmed::default() }));
    assert!(!c.master.needs("b") && c.was_stopped("b"));
    c.turn(|m, t| m.on_timer(Timer::CommitAgain, t));
    assert!(c.master.needs("b"));
    c.is_lost("b");
    c.inbox.clear();
    c.joins("c", 1);
    assert!(c.master.needs("c"));
    c.settle();
    assert_eq!((c.master.state(), c.master.needs("c")), ("restarting", false));
    c.joins("d", 1);
    c.settle();
    assert_eq!(c.master.state(), "running");
    let orders = c.told.iter().filter_map(|(w, m)| match m {
        Down::CommitNow(order) => Some((w.as_str(), order.committables.len(), order.clean_up)),
        _ => None,
    });
    let orders: Vec<_> = orders.collect();
    assert_eq!(orders[1..], [("b", 1, false), ("b", 1, false), ("c", 1, false), ("c", 0, true)]);
}

#[test]
fn a_last_checkpoint_that_does_not_come_is_not_waited_for_long() {
    let mut c = Cluster::running(1, &[("a", 1)]);
    c.silent = true;
    c.leaves("a");
    c.passes(26);
    c.settle();
    assert!(c.master.needs("a"));
    c.passes(3);
    assert_eq!((c.master.state(), c.master.needs("a")), ("restarting", false));
}

#[test]
fn slots_that_come_while_the_last_checkpoint_is_taken_are_used() {
    let mut c = Cluster::running(1, &[("a", 1)]);
    c.leaves("a");
    c.passes(26);
    c.joins("b", 1);
    // However often it is looked at meanwhile.
    c.passes(0);
    c.settle();
    c.passes(3);
    c.settle();
    assert_eq!((c.placement().as_str(), c.restarts()), ("b", 0));
}

#[test]
fn several_leave_at_once_and_those_move_for_whom_there_are_slots() {
    let mut c = Cluster::running(4, &[("a", 2), ("b", 2)]);
    assert_eq!(c.placement(), "a b a b");
    c.joins("c", 2);
    c.leaves("a");
    c.leaves("b");
    c.settle();
    assert_eq!(c.placement(), "c b c b");
    assert!(!c.master.needs("a") && c.master.needs("b"));
    c.is_lost("a");
    c.joins("d", 3);
    c.settle();
    assert_eq!((c.placement().as_str(), c.restarts()), ("c d c d", 0));
    assert!(!c.master.needs("b"));
}

#[test]
fn a_leave_amid_a_rescale_waits_for_its_end() {
    let mut c = Cluster::running(1, &[("a", 2), ("b", 2)]);
    c.turn(|m, t| m.want_rescale(2, 1, t));
    c.settle_until(|m| matches!(m, Down::PrepareRescale(_)));
    c.leaves("b");
    c.settle();
    assert!(matches!(c.replies.get(&1), Some(Ok(()))));
    assert_eq!((c.placement().as_str(), c.restarts()), ("a a", 0), "first onto b, then off it");
    assert!(!c.master.needs("b"));
    // Asked for while subtasks move, a rescale is refused, and says why.
    c.joins("c", 2);
    c.leaves("a");
    c.turn(|m, t| m.want_rescale(1, 2, t));
    assert!(c.replies[&2].as_ref().unwrap_err().to_string().contains("moving off"));
}

#[test]
fn a_leave_amid_a_checkpoint_takes_its_turn() {
    let mut c = Cluster::running(1, &[("a", 1), ("b", 1)]);
    c.turn(|m, t| m.want_checkpoint(1, t));
    c.leaves("a");
    c.settle();
    assert!(matches!(c.replies.get(&1), Some(Ok(()))));
    assert_eq!((c.placement().as_str(), c.restarts()), ("b", 0));
}

#[test]
fn a_leave_amid_a_stop_or_a_cancel_leaves_it_to_them() {
    let mut c = Cluster::running(1, &[("a", 1), ("b", 1)]);
    c.turn(|m, t| m.want_stop(1, t));
    c.leaves("a");
    assert!(c.master.needs("a"), "the last checkpoint is under way");
    c.settle();
    assert_eq!(c.master.phase, Phase::Ended(End::Stopped));
    assert_eq!(c.master.record.status(), Status::Stopped);
    assert!(!c.master.needs("a"));

    let mut c = Cluster::running(1, &[("a", 1), ("b", 1)]);
    c.leaves("a");
    c.settle_until(|m| matches!(m, Down::PrepareRescale(_)));
    c.turn(|m, t| m.cancel(1, t));
    assert!(!c.master.needs("a") && !c.master.needs("b") && c.was_stopped("a") && c.was_stopped("b"));
}

#[test]
fn a_leave_amid_a_recovery_waits_until_the_job_runs() {
    let mut c = Cluster::created(1);
    c.joins("a", 1);
    c.settle_until(|m| matches!(m, Down::CommitNow(_)));
    c.joins("b", 1);
    c.leaves("a");
    assert!(c.master.needs("a"));
    c.settle();
    assert_eq!((c.placement().as_str(), c.restarts()), ("b", 0));
}

#[test]
fn nobody_needs_a_worker_without_subtasks_or_one_of_a_job_that_waits() {
    let mut c = Cluster::running(1, &[("a", 1), ("b", 1)]);
    c.leaves("b");
    assert!(!c.master.needs("b"));
    let mut c = Cluster::created(2);
    c.joins("a", 1);
    c.leaves("a");
    assert!(!c.master.needs("a"));
    c.joins("b", 2);
    c.settle();
    assert_eq!(c.placement(), "b b", "a worker that leaves is no place");
}

#[test]
fn slots_of_a_worker_that_leaves_do_not_count_for_a_rescale() {
    let mut c = Cluster::running(1, &[("a", 1), ("b", 3)]);
    c.leaves("b");
    c.settle();
    assert_eq!(c.placement(), "a", "first the worker with most slots, then off it");
    c.turn(|m, t| m.want_rescale(2, 1, t));
    let refused = c.replies[&1].as_ref().unwrap_err();
    assert!(refused.number() == 7131 && refused.to_string().contains("leave do not count"), "{refused}");
    c.joins("c", 1);
    c.turn(|m, t| m.want_rescale(2, 2, t));
    c.settle();
    assert!(matches!(c.replies.get(&2), Some(Ok(()))), "those of a new one do at once");
    assert_eq!(c.placement(), "a c");
}

#[test]
fn a_worker_that_goes_before_it_has_said_that_it_serves_holds_nobody_up() {
    let mut c = Cluster::running(2, &[("a", 1), ("b", 1), ("c", 1)]);
    c.leaves("a");
    while c.master.placement[0] == "a" {
        let next = c.inbox.pop_front();
        match next {
            Some((worker, message)) => c.obeys(&worker, message),
            None => c.commit(),
        }
    }
    c.is_lost("a");
    c.settle();
    assert_eq!((c.placement().as_str(), c.restarts()), ("c b", 0));
    assert!(c.master.rescale.is_none());
}

#[test]
fn a_rebalance_spreads_the_subtasks() {
    let mut c = Cluster::running(4, &[("a", 4)]);
    c.turn(|m, t| m.want_rebalance(1, t));
    assert!(matches!(c.replies.get(&1), Some(Ok(()))), "there is nobody else");
    c.joins("b", 4);
    assert_eq!(c.placement(), "a a a a", "a worker that comes draws nothing to it");
    c.turn(|m, t| m.want_rebalance(2, t));
    c.settle();
    assert!(matches!(c.replies.get(&2), Some(Ok(()))));
    assert_eq!((c.placement().as_str(), c.restarts()), ("a a b b", 0));
    let moved: BTreeSet<u32> = c.master.statistics.rescales[0].moved.iter().copied().collect();
    assert_eq!(moved, BTreeSet::from([2, 3]));
}
