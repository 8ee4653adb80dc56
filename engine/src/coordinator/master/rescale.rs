//! A live rescale, of key groups to another number of subtasks or of subtasks to other workers, stage by stage:
//! compactions come to rest, subtasks and channels are prepared and caches warmed up, a checkpoint makes the next epoch
//! small, a barrier carries the new assignment, and those who gained key groups come to serve. One at a time; a failure anywhere takes the region back to the newest record, whosever assignment that has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millstream_common::env::Moment;
use millstream_common::{Error, KeyGroupRanges};
use millstream_proto::control::{HoldCompactions, PrepareRescale, inject_barrier::Kind, to_worker};

use super::{
    Action, Departed, JobMaster, Phase, Timer, Turn, WorkerFacts, assignment, place, place_near, placement_message,
};
use crate::convert::assignment_to_proto;
use crate::coordinator::statistics::RescaleDone;
use crate::element::Assignment;

/// How long a rescale waits for running compactions.
const QUIET_AT_MOST: Duration = Duration::from_secs(30);
/// And how long when a worker waits to leave.
const QUIET_BEFORE_DRAIN: Duration = Duration::from_secs(5);

/// Checkpoints that go before the one of a rescale, at most.
const BEFORE_AT_MOST: u32 = 4;
/// What has come in during a checkpoint that was done within this is little.
const SHORT: Duration = Duration::from_millis(20);

/// Checkpoints that went before that of a rescale.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Before {
    done: u32,
    /// The one under way failed: how long it took says nothing.
    failed: bool,
    /// How long the last one took.
    took: Option<Duration>,
}

impl Before {
    /// After one more, which took so long; `None`: that was the last.
    fn next(self, took: Duration) -> Option<Self> {
        let done = self.done + 1;
        let again = if self.failed {
            Some(Self { done, failed: false, took: self.took })
        } else {
            let shorter = self.took.is_none_or(|before| took < before / 2);
            (took > SHORT && shorter).then_some(Self { done, failed: false, took: Some(took) })
        };
        again.filter(|_| done < BEFORE_AT_MOST)
    }
}

/// What a rescale is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Another parallelism.
    Parallelism(u32),
    /// Subtasks leave workers that leave.
    Drain,
    /// Subtasks spread over the workers.
    Rebalance,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// Compactions come to their end first: they would share disk and network with the commit. Checkpoints go on.
    Quiet(BTreeSet<String>),
    /// Workers, and whether they have subtasks to deploy, that are not ready.
    Preparing(BTreeSet<(String, bool)>),
    /// A checkpoint goes before, so that the one that carries the assignment is small: what comes in while it is taken
    /// is all that the next one writes. Again as long as that made it much shorter.
    Before(Before),
    Barrier,
    Serving(BTreeSet<String>),
}

/// The assignment that a rescale leads to, the worker of each of its subtasks, and the owner of each split.
pub(super) type Plan = (Assignment, Vec<String>, BTreeMap<(String, String), u32>);

pub(super) struct Rescale {
    pub(super) token: Option<u64>,
    pub(super) purpose: Purpose,
    from: u32,
    to: u32,
    pub(super) stage: Stage,
    pub(super) next: Option<Plan>,
    /// The subtasks that go on on another worker.
    moved: BTreeSet<u32>,
    /// The longest pause of the subtasks that were there before, ms.
    pause_ms: u64,
    /// Since when some subtask has processed nothing that stood before the barrier.
    stopped: Option<Moment>,
    /// The longest time from the opening of gained key groups to the first row behind it, ms.
    open_ms: u64,
    /// Bytes that its epoch wrote.
    pub(super) bytes: u64,
    /// Copies of objects that the job had made before.
    copies_before: u64,
    /// When the stage began, and how long those before took.
    since: Moment,
    took: Vec<(&'static str, Duration)>,
}

impl Rescale {
    fn enter(&mut self, stage: Stage, now: Moment) {
        self.took.push((self.stage.name(), now.since(self.since)));
        self.stage = stage;
        self.since = now;
    }

    /// A checkpoint failed that this may have asked for.
    pub(super) fn checkpoint_failed(&mut self) {
        if let Stage::Before(before) = &mut self.stage {
            before.failed = true;
        }
    }

    /// Some subtask has stood still since `moment`.
    pub(super) fn stopped_at(&mut self, moment: Moment) {
        self.stopped = Some(self.stopped.map_or(moment, |s| s.min(moment)));
    }
}

impl Stage {
    fn name(&self) -> &'static str {
        match self {
            Self::Quiet(_) => "compactions",
            Self::Before(_) => "checkpoint before",
            Self::Preparing(_) => "preparation",
            Self::Barrier => "barrier to commit",
            Self::Serving(_) => "commit to serving",
        }
    }
}

impl JobMaster {
    pub(crate) fn want_rescale(&mut self, parallelism: u32, token: u64, t: &mut Turn<'_>) {
        let now = self.assignment.parallelism();
        let refusal = if parallelism == 0 {
            Some(Error::config("parallelism 0 is no parallelism").code(1506))
        } else if let Some(e) = self.refuses_rescale() {
            Some(e)
        } else if parallelism > now && place(parallelism - now, t.workers).is_none() {
            Some(too_few_slots(parallelism, parallelism - now, t.workers))
        } else {
            None
        };
        if let Some(e) = refusal {
            return t.out.push(Action::Reply(token, Err(e)));
        }
        if parallelism == now {
            return t.out.push(Action::Reply(token, Ok(())));
        }
        self.start_rescale(Purpose::Parallelism(parallelism), Some(token), t);
    }

    /// Why no rescale of any kind can begin now.
    pub(super) fn refuses_rescale(&self) -> Option<Error> {
        if self.phase != Phase::Running || self.input_ended || self.ending.is_some() {
            return Some(self.not_running());
        }
        let what = match self.rescale.as_ref()?.purpose {
            Purpose::Drain => "subtasks are moving off a worker that leaves",
            Purpose::Rebalance => "subtasks are moving to other workers",
            Purpose::Parallelism(_) => "another rescale is under way",
        };
        Some(Error::unavailable(what).code(7130).next("ask again when it is done"))
    }

    pub(super) fn start_rescale(&mut self, purpose: Purpose, token: Option<u64>, t: &mut Turn<'_>) {
        let now = self.assignment.parallelism();
        let to = if let Purpose::Parallelism(to) = purpose { to } else { now };
        self.rescale = Some(Rescale {
            token,
            purpose,
            from: now,
            to,
            stage: Stage::Quiet(self.placement.iter().cloned().collect()),
            next: None,
            moved: BTreeSet::new(),
            pause_ms: 0,
            stopped: None,
            open_ms: 0,
            bytes: 0,
            copies_before: self.statistics.store().total().copy,
            since: t.now,
            took: Vec::new(),
        });
        self.rescales_asked += 1;
        let timer = Timer::Quiet { execution: self.execution, asked: self.rescales_asked };
        let at_most = if purpose == Purpose::Drain { QUIET_BEFORE_DRAIN } else { QUIET_AT_MOST };
        t.out.push(Action::Timer(timer, at_most.min(self.settings.checkpoint.timeout)));
        self.hold_compactions(true, t);
    }

    pub(super) fn hold_compactions(&self, hold: bool, t: &mut Turn<'_>) {
        self.broadcast(t, |job| to_worker::Message::HoldCompactions(HoldCompactions { job: Some(job), hold }));
    }

    /// Whether a rescale is so far that no other checkpoint may come between.
    pub(super) fn rescale_is_near(&self) -> bool {
        self.rescale.as_ref().is_some_and(|r| !matches!(r.stage, Stage::Quiet(_)))
    }

    /// No compaction runs, or they take too long to be waited for.
    pub(super) fn when_quiet(&mut self, t: &mut Turn<'_>) {
        let Some(r) = &mut self.rescale else { return };
        if !matches!(r.stage, Stage::Quiet(_)) {
            return;
        }
        self.prepare_rescale(t);
    }

    /// The assignment that the rescale leads to, where its subtasks run and who reads which split, and which subtasks move.
    /// `None` when there are no slots for it any more, or nothing is left to be done.
    fn plan(&self, purpose: Purpose, (from, to): (u32, u32), t: &Turn<'_>) -> Option<(Plan, BTreeSet<u32>)> {
        let id = self.assignment.id.next();
        let mut placement: Vec<String> = self.placement.iter().take(to as usize).cloned().collect();
        if from == to {
            // Key groups and splits stay with their subtasks.
            let moves = self.moves(purpose, t);
            if moves.is_empty() {
                return None;
            }
            let moved = moves.keys().copied().collect();
            for (i, w) in moves {
                placement[i as usize] = w;
            }
            let assignment = Assignment { id, ranges: self.assignment.ranges.clone() };
            return Some(((assignment, placement, self.owners.clone()), moved));
        }
        let assignment = assignment::rescale(&self.assignment, id, to);
        let near = |i: u32| self.workers_of(&assignment.ranges[i as usize]);
        placement.extend(place_near((from..to).map(near).collect(), t.workers)?);
        let owners = self.owners_for(to);
        Some(((assignment, placement, owners), BTreeSet::new()))
    }

    fn prepare_rescale(&mut self, t: &mut Turn<'_>) {
        let Some(r) = &self.rescale else { return };
        let (from, to) = (r.from, r.to);
        let Some((plan, moved)) = self.plan(r.purpose, (from, to), t) else { return self.call_rescale_off(t) };
        let (assignment, placement, owners) = &plan;
        let mut missing = BTreeSet::new();
        self.attempt += 1;
        let joins = |i: u32| i >= from || moved.contains(&i);
        let joined: BTreeSet<&String> = (0u32..).zip(placement).filter(|(i, _)| joins(*i)).map(|(_, w)| w).collect();
        for w in joined {
            let subtasks = (0u32..).zip(placement).filter(|(i, p)| joins(*i) && *p == w).map(|(i, _)| i).collect();
            let mut deploy = self.deploy_message(t, assignment, placement, subtasks, owners);
            deploy.join = true;
            deploy.previous = Some(assignment_to_proto(&self.assignment));
            t.out.push(Action::Send(w.clone(), Box::new(to_worker::Message::Deploy(deploy))));
            missing.insert((w.clone(), true));
        }
        for w in self.placement.iter().cloned().collect::<BTreeSet<_>>() {
            let prepare = PrepareRescale {
                job: Some(self.job_ref()),
                assignment: Some(assignment_to_proto(assignment)),
                placement: Some(placement_message(placement, t.workers)),
                splits: self.split_owner_messages(owners),
                moved: moved.iter().copied().collect(),
            };
            t.out.push(Action::Send(w.clone(), Box::new(to_worker::Message::PrepareRescale(prepare))));
            missing.insert((w, false));
        }
        let timeout = Timer::RescaleTimeout { assignment: assignment.id, execution: self.execution, stands: false };
        t.out.push(Action::Timer(timeout, self.settings.checkpoint.timeout));
        if let Some(r) = &mut self.rescale {
            r.enter(Stage::Preparing(missing), t.now);
            r.moved = moved;
            r.next = Some(plan);
        }
    }

    /// Nobody has been told of it yet but to hold compactions.
    fn call_rescale_off(&mut self, t: &mut Turn<'_>) {
        let called_off = self.rescale.take().map(|r| (r.token, r.purpose));
        if let Some((Some(token), purpose)) = called_off {
            // Subtasks that are spread already need no move.
            let gone = || Error::unavailable("the free slots have gone").code(7132).next("ask again");
            let outcome = if purpose == Purpose::Rebalance { Ok(()) } else { Err(gone()) };
            t.out.push(Action::Reply(token, outcome));
        }
        self.hold_compactions(false, t);
        if self.checkpoint.is_none() {
            self.after_checkpoint(t);
        }
    }

    /// How many key groups of `ranges` each worker serves now: what it has in its caches is near.
    pub(super) fn workers_of(&self, ranges: &KeyGroupRanges) -> BTreeMap<String, u32> {
        let mut groups = BTreeMap::new();
        for (owned, worker) in self.assignment.ranges.iter().zip(&self.placement) {
            *groups.entry(worker.clone()).or_default() += owned.intersect(ranges).len();
        }
        groups
    }

    /// Goes on when everybody is ready and no checkpoint is in flight.
    pub(super) fn when_prepared(&mut self, t: &mut Turn<'_>) {
        let Some(r) = &mut self.rescale else { return };
        if self.checkpoint.is_some() {
            return;
        }
        match &r.stage {
            Stage::Preparing(missing) if missing.is_empty() => {
                r.enter(Stage::Before(Before::default()), t.now);
                self.trigger(Kind::Checkpoint, t);
            }
            Stage::Before(before) => match before.next(t.now.since(r.since)) {
                Some(before) => {
                    r.enter(Stage::Before(before), t.now);
                    self.trigger(Kind::Checkpoint, t);
                }
                None => {
                    r.enter(Stage::Barrier, t.now);
                    self.trigger(Kind::Rescale, t);
                }
            },
            _ => {}
        }
    }

    pub(super) fn on_rescale_committed(&mut self, t: &mut Turn<'_>) {
        if self.phase != Phase::Running {
            return;
        }
        self.assume_rescaled(t);
        self.forget_moved_compactions();
        // From here on it is the subtasks that have to come to serve.
        let timeout = Timer::RescaleTimeout { assignment: self.assignment.id, execution: self.execution, stands: true };
        t.out.push(Action::Timer(timeout, self.settings.checkpoint.timeout));
    }

    pub(super) fn assume_rescaled(&mut self, t: &Turn<'_>) {
        let workers = self.workers_in_use();
        let Some(r) = &mut self.rescale else { return };
        if let Some((assignment, placement, owners)) = r.next.clone() {
            self.assignment = assignment;
            let leaves = |(i, w): &(u32, &String)| placement.get(*i as usize) != Some(*w);
            for (i, w) in (0u32..).zip(&self.placement).filter(leaves) {
                let none = || Departed { epoch: 0, subtasks: BTreeSet::new() };
                let departed = self.departed.entry(w.clone()).or_insert_with(none);
                departed.epoch = self.record.epoch;
                departed.subtasks.insert(i);
            }
            self.giving_up = None;
            self.placement = placement;
            self.owners = owners;
        }
        r.enter(Stage::Serving(workers), t.now);
    }

    pub(super) fn on_serving(&mut self, worker: &str, (pause_ms, open_ms): (u64, u64), t: &mut Turn<'_>) {
        let Some(r) = &mut self.rescale else { return };
        let Stage::Serving(missing) = &mut r.stage else { return };
        missing.remove(worker);
        r.pause_ms = r.pause_ms.max(pause_ms);
        r.open_ms = r.open_ms.max(open_ms);
        let all = missing.is_empty();
        self.release_departed(t);
        if !all {
            return;
        }
        if let Some(mut r) = self.rescale.take() {
            r.took.push((r.stage.name(), t.now.since(r.since)));
            // Key groups that moved stood still from their old owner's last row to their new owner's first.
            let to_commit = r.stopped.map_or(0, |stopped| r.since.since(stopped).as_millis() as u64);
            let pause_ms = r.pause_ms.max(to_commit + r.open_ms);
            let stages: Vec<_> = r.took.iter().map(|(name, took)| format!("{name} {took:.1?}")).collect();
            let (name, stages) = (&self.spec.name, stages.join(", "));
            let what = match r.purpose {
                Purpose::Parallelism(to) => format!("rescaled from {} to {to}", r.from),
                Purpose::Drain | Purpose::Rebalance => format!("moved subtasks {:?}", r.moved),
            };
            tracing::info!("job {name}: {what}, pause {pause_ms} ms; {stages}");
            self.statistics.rescales.push(RescaleDone {
                from: r.from,
                to: r.to,
                pause_ms,
                objects_copied: self.statistics.store().total().copy.saturating_sub(r.copies_before),
                bytes_written: r.bytes,
                moved: r.moved.into_iter().collect(),
            });
            self.hold_compactions(false, t);
            if let Some(token) = r.token {
                t.out.push(Action::Reply(token, Ok(())));
            }
        }
        if self.checkpoint.is_none() {
            self.after_checkpoint(t);
        }
    }
}

/// Why there can be no rescale to `parallelism`.
fn too_few_slots(parallelism: u32, more: u32, workers: &BTreeMap<String, WorkerFacts>) -> Error {
    let free: u32 = workers.values().map(|w| w.free).sum();
    let leaving = workers.values().filter(|w| w.leaving.is_some()).count();
    let mut what = format!("{more} more slots are needed for parallelism {parallelism}, {free} are free");
    if leaving > 0 {
        what += &format!("; those of {leaving} workers that leave do not count");
    }
    Error::config(what).code(7131).next("start more workers, or ask for less")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_go_before_as_long_as_they_get_much_shorter() {
        let taken = |all: &[u64]| {
            let mut before = Some(Before::default());
            let next = |ms: &&u64| {
                before = before.and_then(|b| b.next(Duration::from_millis(**ms)));
                before.is_some()
            };
            1 + all.iter().take_while(next).count()
        };
        assert_eq!(taken(&[20, 5]), 1, "short at once");
        assert_eq!(taken(&[300, 120, 110, 10]), 3, "the third was not much shorter");
        assert_eq!(taken(&[300, 200]), 2);
        assert_eq!(taken(&[900, 400, 150, 60, 25]), 4, "at most");
        let failed = Before { failed: true, ..Before::default() };
        let again = failed.next(Duration::from_millis(1)).unwrap();
        assert!(!again.failed && again.next(Duration::from_millis(1)).is_none(), "a failed one is taken again");
        assert!(Before { done: 3, failed: true, took: None }.next(Duration::ZERO).is_none());
    }
}
