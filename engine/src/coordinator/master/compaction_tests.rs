//! Who merges what, and what becomes of what they report.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millstream_common::env::Moment;
use millstream_common::{AssignmentId, Epoch, Error, KeyGroupRange, KeyGroupRanges};
use millstream_proto::control::{
    Compact, CompactionDone, CompactionFailed, JobSpec, to_coordinator::Message as Up, to_worker::Message as Down,
};
use millstream_proto::version::{self as proto, VersionRecord};
use millstream_state_store::{Interval, Run, Tree};

use super::compaction::{Given, expired_by, next_pick, runner};
use super::{Action, JobMaster, Phase, Turn, WorkerFacts};
use crate::convert::{assignment_to_proto, failure_to_proto};
use crate::coordinator::assignment;
use crate::element::WATERMARK_MIN;
use crate::settings::{CompactionPlace, Settings};
use crate::worker::Role;

const MIB: u64 = 1 << 20;

fn run(tree: &Tree, name: &str, (first, last): (u64, u64), length: u64, clip: KeyGroupRanges) -> Run {
    Run {
        task: tree.task_id("task").unwrap(),
        object: format!("00/{name}"),
        offset: 8,
        length,
        meta_offset: 4 + length,
        meta_length: 4,
        directory_length: 4,
        checksum: 0,
        clip,
        interval: Interval::of(Epoch(first), 0).hull(Interval::of(Epoch(last), 0)),
        entries: 1,
        states: Vec::new(),
        object_bytes: 8 + length,
        origin: String::new(),
        heat: None,
    }
}

/// A job of two subtasks on `w0` and `w1`, with compactors.
struct Job {
    master: JobMaster,
    compactors: BTreeMap<String, u32>,
    now: Moment,
    wall_ms: i64,
    /// What was asked of whom.
    asked: Vec<(String, Compact)>,
    stale: Vec<String>,
    committing: Option<VersionRecord>,
}

impl Job {
    fn new(settings: &[(&str, &str)], compactors: &[(&str, u32)]) -> Self {
        let mut of_job = Settings::defaults();
        // Compactions have records of their own.
        of_job.set("checkpoint.interval", "0").unwrap();
        settings.iter().for_each(|(key, value)| of_job.set(key, value).unwrap());
        let mut tree = Tree::default();
        tree.add_task("task").unwrap();
        let record = VersionRecord {
            number: 1,
            generation: 1,
            assignment: Some(assignment_to_proto(&assignment::even(AssignmentId(1), 2))),
            tree: Some(tree.to_proto()),
            ..VersionRecord::default()
        };
        let spec = JobSpec { id: "j".into(), name: "job".into(), ..JobSpec::default() };
        let mut master =
            JobMaster::new(spec, of_job, record, None, Vec::new(), ["s".to_owned()].into(), Moment::default()).unwrap();
        (master.phase, master.execution) = (Phase::Running, 1);
        master.placement = vec!["w0".into(), "w1".into()];
        let compactors = compactors.iter().map(|(name, free)| ((*name).to_owned(), *free)).collect();
        let now = Moment(Duration::from_secs(1));
        Self { master, compactors, now, wall_ms: 0, asked: Vec::new(), stale: Vec::new(), committing: None }
    }

    fn turn(&mut self, act: impl FnOnce(&mut JobMaster, &mut Turn<'_>)) {
        let fact = |w: &str| (w.to_owned(), WorkerFacts { data_address: String::new(), free: 0, leaving: None });
        let workers = BTreeMap::from([fact("w0"), fact("w1")]);
        let free = |(name, slots): (&String, &u32)| (name.clone(), slots - self.master.book.running_at(name));
        let compactors = self.compactors.iter().map(free).collect();
        let mut t = Turn { now: self.now, wall_ms: self.wall_ms, workers: &workers, compactors, out: Vec::new() };
        act(&mut self.master, &mut t);
        for action in t.out {
            match action {
                Action::Send(to, message) => {
                    if let Down::Compact(compact) = *message {
                        self.asked.push((to, compact));
                    }
                }
                Action::Stale(objects) => self.stale.extend(objects),
                Action::Commit(record) => self.committing = Some(*record),
                _ => {}
            }
        }
    }

    /// A checkpoint adds a run of so many bytes in the key groups of a subtask.
    fn flushes(&mut self, subtask: usize, bytes: u64) {
        let mut tree = self.tree();
        let epoch = self.master.record.epoch + 1;
        let clip = self.master.assignment.ranges[subtask].clone();
        tree.add_runs([Arc::new(run(&tree, &format!("r{epoch}"), (epoch, epoch), bytes, clip))]);
        self.master.record.epoch = epoch;
        self.master.record.number += 1;
        self.master.record.tree = Some(tree.to_proto());
        self.turn(JobMaster::tend);
    }

    fn tree(&self) -> Tree {
        Tree::from_proto(self.master.record.tree.as_ref().unwrap()).unwrap()
    }

    fn takes_asked(&mut self) -> (String, Compact) {
        assert_eq!(self.asked.len(), 1, "{:?}", self.asked.iter().map(|a| &a.0).collect::<Vec<_>>());
        self.asked.remove(0)
    }

    /// `who` reports that it has merged what it was asked to.
    fn reports(&mut self, who: &str, order: &Compact) {
        let inputs: Vec<Run> = order.inputs.iter().map(|r| Run::from_proto(r).unwrap()).collect();
        let hull = inputs.iter().map(|i| i.interval).reduce(Interval::hull).unwrap();
        let tree = self.tree();
        let of = (hull.min.epoch.0, hull.max.epoch.0);
        let output = run(&tree, &format!("1-1-c{}-0", order.number), of, 7, ranges(&order.ranges));
        let done = CompactionDone {
            job: order.job.clone(),
            outputs: vec![output.to_proto()],
            number: order.number,
            bytes_read: 100,
        };
        self.turn(|m, t| m.on_message(who, Up::CompactionDone(done), t));
    }

    fn fails(&mut self, who: &str, order: &Compact, error: &Error) {
        let failed =
            CompactionFailed { job: order.job.clone(), number: order.number, failure: Some(failure_to_proto(error)) };
        self.turn(|m, t| m.on_message(who, Up::CompactionFailed(failed), t));
    }

    fn commits(&mut self) {
        assert!(self.committing.take().is_some());
        self.turn(|m, t| m.on_committed(true, t));
    }
}

fn ranges(proto: &[millstream_proto::version::KeyGroupRange]) -> KeyGroupRanges {
    crate::convert::ranges_from_proto(proto).unwrap()
}

#[test]
fn compactors_come_first_and_the_owner_merges_what_it_waits_for() {
    let owner = "w".to_owned();
    let two = BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]);
    let full = BTreeMap::from([("a".to_owned(), 0)]);
    let who =
        |place, compactors, at_bound| runner(place, Some(&owner), compactors, at_bound).map(|r| (r.0.as_str(), r.1));
    use CompactionPlace::{Auto, Compactors, Workers};
    assert_eq!(who(Auto, &two, false), Some(("b", false)), "the one with the most free slots");
    assert_eq!(who(Auto, &full, false), Some(("w", true)));
    assert_eq!(who(Workers, &two, false), Some(("w", true)));
    assert_eq!(who(Compactors, &two, false), Some(("b", false)));
    assert_eq!(who(Compactors, &full, false), None, "it waits for a slot");
    for place in [Auto, Workers, Compactors] {
        assert_eq!(who(place, &two, true), Some(("w", true)), "a subtask waits for its own worker only");
    }
    assert_eq!(runner(Auto, None, &full, false), None);
}

#[test]
fn at_the_bound_the_owner_merges_around_what_a_compactor_merges() {
    let options = super::compaction::options_of(&Settings::defaults().state);
    let mut tree = Tree::default();
    tree.add_task("task").unwrap();
    let mut runs: Vec<Arc<Run>> =
        (1..=8).map(|e| Arc::new(run(&tree, &format!("r{e}"), (e, e), MIB, KeyGroupRanges::all()))).collect();
    let all = KeyGroupRanges::all();
    let (pick, at_bound) = next_pick(&runs, &all, &options, None, &[]).unwrap();
    assert!(pick.inputs.len() == 8 && !at_bound);
    let elsewhere = Given::of((0, 0), "k", false, 1, pick.clone());
    assert!(next_pick(&runs, &all, &options, None, &[&elsewhere]).is_none(), "nothing else is there");
    runs.extend((9..=13).map(|e| Arc::new(run(&tree, &format!("r{e}"), (e, e), MIB, all.clone()))));
    let (around, at_bound) = next_pick(&runs, &all, &options, None, &[&elsewhere]).unwrap();
    assert!(at_bound && around.inputs.len() == 5 && !around.bottom);
    let own = Given::of((0, 0), "w", true, 1, around.clone());
    // All that is left is one run.
    runs.push(Arc::new(run(&tree, "r14", (14, 14), MIB, all.clone())));
    assert!(next_pick(&runs, &all, &options, None, &[&elsewhere, &own]).is_none());
    runs.extend((15..=18).map(|e| Arc::new(run(&tree, &format!("r{e}"), (e, e), MIB, all.clone()))));
    let (beside, _) = next_pick(&runs, &all, &options, None, &[&elsewhere, &own]).unwrap();
    assert_eq!(beside.inputs.len(), 5);
    let again = Given::of((0, 0), "w", true, 1, around);
    assert!(next_pick(&runs, &all, &options, None, &[&elsewhere, &own, &again]).is_none(), "two at a time");
    // Other key groups have nothing to do with it.
    let half: KeyGroupRanges = [KeyGroupRange::new(0, 100)].into_iter().collect();
    let few: Vec<_> = runs.iter().map(|r| Arc::new(r.with_clip(half.clone()))).collect();
    let others: KeyGroupRanges = [KeyGroupRange::new(100, 65_536)].into_iter().collect();
    assert!(next_pick(&few, &others, &options, None, &[]).is_none());
}

#[test]
fn what_is_due_goes_to_a_compactor_and_its_outputs_into_the_next_record() {
    let mut job = Job::new(&[], &[("k", 1)]);
    (0..8).for_each(|_| job.flushes(0, MIB));
    let (to, order) = job.takes_asked();
    assert_eq!((to.as_str(), order.inputs.len(), order.subtask), ("k", 8, 0));
    assert!(order.spec.is_some() && order.bottom && order.tree.as_ref().unwrap().runs.is_empty());
    assert_eq!(job.master.book.oldest_version(), Some(job.master.record.number));
    assert!(job.master.needs("k") && job.master.open_compactions().open.contains(&order.number));
    job.flushes(0, MIB);
    assert!(job.asked.is_empty(), "its key groups are being merged");
    job.reports("k", &order);
    assert!(!job.master.needs("k") && job.master.open_compactions().open.is_empty());
    job.commits();
    assert_eq!(job.tree().runs().len(), 2);
    let figures = &job.master.statistics.compaction;
    assert_eq!((figures.completed, figures.bytes_read, figures.bytes_written), (1, 100, 7));
    assert_eq!(figures.by_runner["k"], (Role::Compactor, 1));
    assert_eq!(job.master.book.debt().unwrap().1, 2);
}

#[test]
fn without_a_free_compactor_the_owner_merges() {
    let mut job = Job::new(&[], &[("k", 1)]);
    (0..8).for_each(|_| job.flushes(0, MIB));
    assert_eq!(job.takes_asked().0, "k");
    (0..8).for_each(|_| job.flushes(1, MIB));
    let (to, order) = job.takes_asked();
    assert_eq!((to.as_str(), order.subtask), ("w1", 1));
    assert!(order.spec.is_none(), "a worker has it");
    job.reports("w1", &order);
    assert_eq!(job.master.statistics.compaction.by_runner["w1"], (Role::Worker, 1));
}

#[test]
fn a_compaction_whose_runner_goes_away_is_given_to_another_and_a_late_report_is_dropped() {
    let mut job = Job::new(&[("state.compaction.where", "compactors")], &[("k", 1)]);
    (0..8).for_each(|_| job.flushes(0, MIB));
    let (_, first) = job.takes_asked();
    job.compactors.clear();
    job.turn(|m, t| m.on_worker_lost("k", t));
    assert_eq!((job.master.phase.clone(), job.master.book.oldest_version()), (Phase::Running, None), "no job restarts");
    job.turn(JobMaster::tend);
    assert!(job.asked.is_empty(), "nobody has a slot, and workers shall not");
    job.compactors.insert("l".into(), 1);
    job.turn(JobMaster::tend);
    let (to, second) = job.takes_asked();
    assert!(to == "l" && second.number != first.number && second.inputs == first.inputs);
    job.reports("k", &first);
    assert!(job.committing.is_none() && job.stale == [format!("00/1-1-c{}-0", first.number)]);
    // Nor may somebody report what another was given.
    job.reports("k", &second);
    assert!(job.committing.is_none());
    job.reports("l", &second);
    job.commits();
    assert_eq!(job.tree().runs().len(), 1);
    let open = job.master.open_compactions();
    assert!(open.open.is_empty() && open.next > second.number);
}

#[test]
fn at_the_bound_workers_merge_even_where_compactors_shall() {
    let mut job = Job::new(&[("state.compaction.where", "compactors")], &[]);
    (0..11).for_each(|_| job.flushes(0, MIB));
    assert!(job.asked.is_empty());
    job.flushes(0, MIB);
    assert_eq!(job.takes_asked().0, "w0");
}

#[test]
fn what_is_merged_waits_for_a_checkpoint_s_record_unless_reads_see_too_many_runs() {
    let mut job = Job::new(&[("checkpoint.interval", "1s")], &[]);
    (0..8).for_each(|_| job.flushes(0, MIB));
    let (_, order) = job.takes_asked();
    job.reports("w0", &order);
    assert!(job.committing.is_none(), "a checkpoint comes soon");
    let mut job = Job::new(&[("checkpoint.interval", "1s")], &[]);
    (0..8).for_each(|_| job.flushes(0, MIB));
    let (_, order) = job.takes_asked();
    (0..4).for_each(|_| job.flushes(0, MIB));
    job.reports("w0", &order);
    job.commits();
    assert_eq!(job.tree().runs().len(), 12 + 1 - order.inputs.len());
}

#[test]
fn one_that_fails_is_for_the_owner_after_a_pause_and_what_the_owner_finds_damaged_ends_the_job() {
    let mut job = Job::new(&[], &[("k", 1)]);
    (0..8).for_each(|_| job.flushes(0, MIB));
    let (_, order) = job.takes_asked();
    // It may be its own disk or memory.
    job.fails("k", &order, &Error::corrupt("a block does not match its checksum"));
    job.turn(JobMaster::tend);
    assert!(job.asked.is_empty() && job.master.phase == Phase::Running);
    job.now = job.now + Duration::from_secs(1);
    job.turn(JobMaster::tend);
    let (to, again) = job.takes_asked();
    assert_eq!(to, "w0");
    // The compactor gets nothing for a while.
    (0..8).for_each(|_| job.flushes(1, MIB));
    assert_eq!(job.takes_asked().0, "w1");
    job.fails("k", &order, &Error::corrupt("of one that was given up"));
    assert_eq!(job.master.phase, Phase::Running);
    job.fails("w0", &again, &Error::corrupt("a block does not match its checksum"));
    assert!(job.master.has_ended());
}

#[test]
fn a_restart_ends_what_runs_elsewhere() {
    let mut job = Job::new(&[], &[("k", 1)]);
    (0..8).for_each(|_| job.flushes(0, MIB));
    let (_, order) = job.takes_asked();
    let mut stopped = Vec::new();
    job.turn(|m, t| {
        m.on_worker_lost("w0", t);
        let told = t.out.iter().filter_map(|a| match a {
            Action::Send(to, message) if matches!(**message, Down::StopJob(_)) => Some(to.clone()),
            _ => None,
        });
        stopped.extend(told);
    });
    assert!(stopped.contains(&"k".to_owned()), "{stopped:?}");
    assert!(matches!(job.master.phase, Phase::Restarting { .. }));
    // Its report crosses the order: it is of no use in the deployment that follows.
    job.reports("k", &order);
    assert!(job.master.compactions.is_empty() && job.stale.len() == 1);
}

#[test]
fn large_merges_wait_for_their_hours() {
    let picked_at = |hour: i64| {
        let mut job = Job::new(&[("state.compaction.schedule", "22:00-06:00")], &[("k", 1)]);
        job.wall_ms = hour * 3_600_000;
        job.flushes(0, 400 * MIB);
        (0..7).for_each(|_| job.flushes(0, 100 * MIB));
        let (_, order) = job.takes_asked();
        (order.inputs.len(), order.bottom)
    };
    assert_eq!(picked_at(12), (7, false), "what is young is merged by day");
    assert_eq!(picked_at(23), (8, true));
}

#[test]
fn what_is_merged_amid_a_rescale_is_listed_behind_it() {
    let mut job = Job::new(&[], &[("k", 1)]);
    (0..8).for_each(|_| job.flushes(0, MIB));
    let (_, order) = job.takes_asked();
    job.turn(|m, t| m.start_rescale(super::rescale::Purpose::Parallelism(1), None, t));
    // Compactions of workers are at rest.
    job.turn(JobMaster::when_quiet);
    assert!(job.master.rescale_is_near());
    job.reports("k", &order);
    job.turn(JobMaster::tend);
    assert!(job.committing.is_none() && job.asked.is_empty(), "nothing changes, and nothing is begun");
    assert!(job.master.open_compactions().open.contains(&order.number), "its outputs are needed yet");
    job.master.rescale = None;
    job.turn(JobMaster::tend);
    job.commits();
    assert_eq!(job.tree().runs().len(), 1);
}

#[test]
fn what_a_compaction_may_drop_has_expired_for_all_of_its_key_groups() {
    let fired = |(start, end), fired_ms| proto::TaskProgress {
        task_id: 1,
        range: Some(proto::KeyGroupRange { start, end }),
        fired_ms,
    };
    let record = proto::VersionRecord {
        committed_ms: 5_000,
        progress: vec![fired((0, 100), 40), fired((100, 200), 60), fired((200, 300), 10)],
        ..Default::default()
    };
    let by = |task, from, to| {
        let time = expired_by(&record, task, &KeyGroupRange::new(from, to).into());
        assert_eq!(time.processing_time_ms, 5_000);
        time.event_time_ms
    };
    assert_eq!((by(1, 0, 100), by(1, 100, 200), by(1, 50, 200), by(1, 0, 300)), (40, 60, 40, 10));
    // Of some nothing is known.
    assert_eq!((by(1, 250, 301), by(0, 0, 1)), (WATERMARK_MIN, WATERMARK_MIN));
}
