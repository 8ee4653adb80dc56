//! The master of one job: a state machine that decides when to deploy, checkpoint, restart, rescale and end it.
//!
//! It does no I/O, reads no clock and sends nothing: each handler takes facts and leaves [`Action`]s, which the
//! coordinator carries out. One record is in flight per job; an epoch is over when its record stands (or when nothing
//! had changed), never before.

mod commits;
mod compaction;
#[cfg(test)]
mod compaction_tests;
mod drain;
#[cfg(test)]
mod drain_tests;
mod rescale;
mod splits;
#[cfg(test)]
mod splits_tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use millstream_common::env::Moment;
use millstream_common::planted::bug_is_planted;
use millstream_common::{Applied, AssignmentId, Error, ErrorKind, Result};
use millstream_proto::control::{
    CheckpointReport, Deploy, InjectBarrier, JobRef, JobSpec, Placement, StopJob, VersionCommitted,
    inject_barrier::Kind, to_coordinator, to_worker,
};
use millstream_proto::version::VersionRecord;
use millstream_proto::version::version_record::Status;
use millstream_state_store::compaction::CompactionDone;
use millstream_state_store::version::boundary::Known;
use millstream_state_store::version::delta::settle;

use self::compaction::Book;
use self::drain::Departed;
use self::rescale::{Rescale, Stage};
use super::assignment;
use super::record::{self, CommittableKey, EpochResult, committable_key};
use super::statistics::Statistics;
use crate::convert::{assignment_from_proto, assignment_to_proto, failure_from_proto};
use crate::element::Assignment;
use crate::settings::{RestartStrategy, Settings};

/// What a worker can do, as its session said.
#[derive(Clone, Debug)]
pub(crate) struct WorkerFacts {
    pub(crate) data_address: String,
    /// Slots that no job uses; those of a worker that leaves are no place for anybody.
    pub(crate) free: u32,
    /// It leaves, and waits until then for slots elsewhere.
    pub(crate) leaving: Option<Moment>,
}

/// What a handler knows, and where it leaves what is to be done.
pub(crate) struct Turn<'a> {
    pub(crate) now: Moment,
    pub(crate) wall_ms: i64,
    pub(crate) workers: &'a BTreeMap<String, WorkerFacts>,
    /// Compactors, and how many compactions each could begin.
    pub(crate) compactors: BTreeMap<String, u32>,
    pub(crate) out: Vec<Action>,
}

/// What the coordinator carries out.
#[derive(Debug)]
pub(crate) enum Action {
    Send(String, Box<to_worker::Message>),
    Commit(Box<VersionRecord>),
    /// State objects that no record will ever list: outputs of compactions that came too late.
    Stale(Vec<String>),
    Timer(Timer, Duration),
    /// The answer to a client's request.
    Reply(u64, Result<()>),
    /// The job has come to its end.
    Ended,
}

/// What a timer is for; one that no longer fits is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    Checkpoint {
        turn: u64,
    },
    CheckpointTimeout {
        epoch: u64,
    },
    LateCheckpoint {
        epoch: u64,
    },
    Restart {
        execution: u64,
    },
    RescaleTimeout {
        assignment: AssignmentId,
        execution: u64,
        /// Its record stands: what is waited for is that subtasks serve.
        stands: bool,
    },
    /// Splits have ended: those that live have a greater share of a rate.
    LiveSplits,
    /// Compactions were waited for long enough.
    Quiet {
        execution: u64,
        asked: u64,
    },
    /// Output could not be committed while the job waits for slots.
    CommitAgain,
    /// The record in flight is to be sent again.
    Recommit {
        number: u64,
    },
}

/// A split that some subtask reads.
#[derive(Clone, Debug)]
pub(crate) struct KnownSplit {
    pub(crate) source_uid: String,
    pub(crate) id: String,
    pub(crate) payload: Vec<u8>,
}

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It waits for slots for the first time.
    Created,
    /// The newest version's output is being committed before the subtasks start.
    Recovering,
    /// Workers make the subtasks.
    Deploying(BTreeSet<String>),
    Running,
    /// It waits: for its delay, for slots, or for a record in flight.
    Restarting {
        delayed: bool,
    },
    Ended(End),
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Finished,
    Stopped,
    Canceled,
    Failed,
    Fenced,
}

/// From the end of a split until others are told.
const LIVE_SPLITS_PAUSE: Duration = Duration::from_millis(50);

/// Checkpoints that come so often take compactions along.
const NEAR: Duration = Duration::from_secs(10);

/// A checkpoint that has taken so long is not waited for any more by compactions that are done.
const LATE: Duration = Duration::from_secs(3);

/// From one attempt to write a record, which has itself tried for long, to the next.
const RECOMMIT_PAUSE: Duration = Duration::from_secs(1);

/// The number of a `Canceled` error of a task that ended without saying why: a restart may mend that.
const CANCELED_WITHOUT_A_REASON: u16 = 6000;

struct Checkpoint {
    epoch: u64,
    kind: Kind,
    started: Moment,
    missing: BTreeSet<String>,
    reports: Vec<CheckpointReport>,
    /// Clients that wait for it.
    tokens: Vec<u64>,
}

enum Committing {
    Checkpoint,
    Compaction,
    Confirmation,
}

/// The state machine; see the module.
pub(crate) struct JobMaster {
    pub(crate) spec: JobSpec,
    pub(crate) settings: Settings,
    pub(crate) record: VersionRecord,
    pub(crate) restored_from: Option<u64>,
    pub(crate) execution: u64,
    attempt: u64,
    next_epoch: u64,
    pub(crate) assignment: Assignment,
    /// By subtask index: the worker.
    pub(crate) placement: Vec<String>,
    /// Workers without subtasks since a rescale: they may still owe commits.
    departed: BTreeMap<String, Departed>,
    /// The worker that commits what the record lists while the job waits for slots.
    commits_at: Option<String>,
    /// Since when a last checkpoint is waited for, before slots that leave are given up.
    giving_up: Option<Moment>,
    splits: Vec<KnownSplit>,
    owners: BTreeMap<(String, String), u32>,
    finished: BTreeSet<(String, String)>,
    /// Sources of which more splits may come.
    open_sources: BTreeSet<String>,
    live_splits_due: bool,
    /// By group of splits that keep together: their sources.
    pub(crate) alignment: BTreeMap<String, BTreeSet<String>>,
    aligned: Moment,
    input_ended: bool,
    pub(crate) phase: Phase,
    /// An earlier leader ran it: until it runs again it is restarting.
    pub(crate) taken_over: bool,
    checkpoint: Option<Checkpoint>,
    committing: Option<Committing>,
    in_flight: Option<Box<VersionRecord>>,
    /// The record in flight may stand although nobody said so.
    in_doubt: bool,
    confirmed: BTreeSet<CommittableKey>,
    /// Reported, and in no record yet.
    compactions: Vec<(u64, CompactionDone)>,
    pub(crate) book: Book,
    rescale: Option<Rescale>,
    rescales_asked: u64,
    /// The status that the last barrier's record leads to.
    ending: Option<Status>,
    /// The last barrier's record stands; what is left is to confirm its commits.
    last_committed: bool,
    stop_tokens: Vec<u64>,
    wanted_checkpoints: Vec<u64>,
    checkpoint_turn: u64,
    last_checkpoint_end: Moment,
    failures_in_row: u32,
    delay: Duration,
    running_since: Moment,
    pub(crate) error: Option<Arc<Error>>,
    pub(crate) statistics: Statistics,
}

impl JobMaster {
    /// A job whose take-over record `record` stands.
    pub(crate) fn new(
        spec: JobSpec,
        settings: Settings,
        record: VersionRecord,
        restored_from: Option<u64>,
        splits: Vec<KnownSplit>,
        open_sources: BTreeSet<String>,
        now: Moment,
    ) -> Result<Self> {
        let assignment = assignment_from_proto(record.assignment.as_ref().unwrap_or(&Default::default()))?;
        Ok(Self {
            next_epoch: record.epoch + 1,
            delay: settings.restart.initial_delay,
            spec,
            settings,
            restored_from,
            execution: 0,
            attempt: 0,
            assignment,
            placement: Vec::new(),
            departed: BTreeMap::new(),
            commits_at: None,
            giving_up: None,
            splits,
            owners: BTreeMap::new(),
            finished: BTreeSet::new(),
            open_sources,
            live_splits_due: false,
            alignment: BTreeMap::new(),
            aligned: now,
            input_ended: false,
            phase: Phase::Created,
            taken_over: false,
            checkpoint: None,
            committing: None,
            in_flight: None,
            in_doubt: false,
            confirmed: BTreeSet::new(),
            compactions: Vec::new(),
            book: Book::default(),
            rescale: None,
            rescales_asked: 0,
            ending: None,
            last_committed: false,
            stop_tokens: Vec::new(),
            wanted_checkpoints: Vec::new(),
            checkpoint_turn: 0,
            last_checkpoint_end: now,
            failures_in_row: 0,
            running_since: now,
            error: None,
            statistics: Statistics::default(),
            record,
        })
    }

    /// A job that had ended before it was asked for again.
    pub(crate) fn ended(
        spec: JobSpec,
        settings: Settings,
        record: VersionRecord,
        end: End,
        now: Moment,
    ) -> Result<Self> {
        let restored = Some(record.number);
        let mut master = Self::new(spec, settings, record, restored, Vec::new(), BTreeSet::new(), now)?;
        master.phase = Phase::Ended(end);
        Ok(master)
    }

    /// The number of the record in flight.
    pub(crate) fn in_flight_number(&self) -> Option<u64> {
        self.in_flight.as_ref().map(|r| r.number)
    }

    /// The record in flight goes out under this nonce, and with what is known of the boundary, again and again.
    pub(crate) fn seal(&mut self, nonce: String, known: Known) {
        if let Some(r) = &mut self.in_flight {
            (r.nonce, r.boundary, r.bound) = (nonce, known.number, known.bound);
        }
    }

    /// The record that is being written.
    pub(crate) fn in_flight(&self) -> Option<&VersionRecord> {
        self.in_flight.as_deref()
    }

    /// Why something went wrong cannot be learned now: the deployment starts again.
    pub(crate) fn restart_after(&mut self, error: Error, t: &mut Turn<'_>) {
        self.on_failure(error, t);
    }

    /// A newer leader was seen.
    pub(crate) fn fence(&mut self, t: &mut Turn<'_>) {
        if !self.has_ended() {
            let what = "a newer leader has taken this job over: this one is fenced";
            self.end(End::Fenced, Some(Error::fenced(what)), t);
        }
    }

    /// The name of its present deployment.
    pub(crate) fn job_ref(&self) -> JobRef {
        JobRef { id: self.spec.id.clone(), generation: self.record.generation, execution: self.execution }
    }

    /// As `status` shows it.
    pub(crate) fn state(&self) -> &'static str {
        match &self.phase {
            Phase::Created | Phase::Recovering | Phase::Deploying(_) if self.execution <= 1 && !self.taken_over => {
                "created"
            }
            Phase::Created | Phase::Recovering | Phase::Deploying(_) | Phase::Restarting { .. } => "restarting",
            Phase::Running => "running",
            Phase::Ended(End::Finished) => "finished",
            Phase::Ended(End::Stopped) => "stopped",
            Phase::Ended(End::Canceled) => "canceled",
            Phase::Ended(End::Failed | End::Fenced) => "failed",
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }

    /// The workers that have to do with the present deployment.
    pub(crate) fn workers_in_use(&self) -> BTreeSet<String> {
        let next = self.rescale.iter().filter_map(|r| r.next.as_ref()).flat_map(|n| &n.1);
        self.placement.iter().chain(next).cloned().collect()
    }

    /// How many slots of each worker the job holds.
    pub(crate) fn slots_in_use(&self) -> BTreeMap<String, u32> {
        let mut used = BTreeMap::new();
        let planned = self.rescale.iter().filter_map(|r| r.next.as_ref()).flat_map(|n| n.1.iter().enumerate());
        // While a subtask moves it has a slot here and there.
        let joining = planned.filter(|(i, w)| self.placement.get(*i) != Some(w)).map(|(_, w)| w);
        for w in self.placement.iter().chain(joining) {
            *used.entry(w.clone()).or_insert(0) += 1;
        }
        used
    }

    // ---- deployment

    /// Deploys the job when it waits for slots and there are enough.
    pub(crate) fn try_deploy(&mut self, t: &mut Turn<'_>) {
        let waits = matches!(self.phase, Phase::Created | Phase::Restarting { delayed: false });
        if !waits || self.committing.is_some() {
            return;
        }
        // After a failure amid a rescale it is the newest record that says whose table holds.
        match assignment_from_proto(self.record.assignment.as_ref().unwrap_or(&Default::default())) {
            Ok(a) => self.assignment = a,
            Err(e) => return self.end(End::Failed, Some(e), t),
        }
        let Some(placement) = place(self.assignment.parallelism(), t.workers) else {
            return self.commit_without_slots(t);
        };
        self.release_committer(t);
        self.placement = placement;
        self.last_committed = false;
        self.execution += 1;
        self.attempt += 1;
        self.finished = self
            .record
            .splits
            .iter()
            .filter(|s| s.finished)
            .map(|s| (s.source_uid.clone(), s.split_id.clone()))
            .collect();
        self.owners = self.owners_for(self.assignment.parallelism());
        self.input_ended = false;
        self.phase = Phase::Recovering;
        // What the record lists is committed before anybody writes on; leftovers of older deployments go.
        self.commit_listed(&self.placement[0], true, t);
    }

    fn deploy(&mut self, t: &mut Turn<'_>) {
        let workers: BTreeSet<String> = self.placement.iter().cloned().collect();
        for w in &workers {
            let subtasks = (0u32..).zip(&self.placement).filter(|(_, p)| *p == w).map(|(i, _)| i).collect();
            let deploy = self.deploy_message(t, &self.assignment, &self.placement, subtasks, &self.owners);
            t.out.push(Action::Send(w.clone(), Box::new(to_worker::Message::Deploy(deploy))));
        }
        self.phase = Phase::Deploying(workers);
    }

    fn deploy_message(
        &self,
        t: &Turn<'_>,
        assignment: &Assignment,
        placement: &[String],
        subtasks: Vec<u32>,
        owners: &BTreeMap<(String, String), u32>,
    ) -> Deploy {
        Deploy {
            job: Some(self.job_ref()),
            spec: Some(self.spec.clone()),
            assignment: Some(assignment_to_proto(assignment)),
            placement: Some(placement_message(placement, t.workers)),
            subtasks,
            attempt: self.attempt,
            version: Some(self.record.clone()),
            splits: self.split_owner_messages(owners),
            join: false,
            live_splits: self.live_splits().values().copied().max().unwrap_or(0),
            epoch: self.next_epoch,
            previous: None,
        }
    }

    fn on_deployed(&mut self, worker: &str, t: &mut Turn<'_>) {
        if let Phase::Deploying(missing) = &mut self.phase {
            missing.remove(worker);
            if missing.is_empty() {
                self.phase = Phase::Running;
                self.running_since = t.now;
                self.last_checkpoint_end = t.now;
                self.schedule_checkpoint(t);
                self.send_live_splits(t);
                self.give_splits(t);
                self.check_end_of_input(t);
                self.hand_over(t);
                self.give_compactions(t);
            }
        } else if let Some(Rescale { stage: Stage::Preparing(missing), .. }) = &mut self.rescale {
            missing.remove(&(worker.to_owned(), true));
            self.when_prepared(t);
        }
    }

    // ---- messages of workers

    /// A message of a worker about this job's present deployment.
    pub(crate) fn on_message(&mut self, worker: &str, message: to_coordinator::Message, t: &mut Turn<'_>) {
        use to_coordinator::Message as M;
        if self.has_ended() {
            return;
        }
        match message {
            M::Deployed(_) => self.on_deployed(worker, t),
            M::Prepared(_) => {
                if let Some(Rescale { stage: Stage::Preparing(missing), .. }) = &mut self.rescale {
                    missing.remove(&(worker.to_owned(), false));
                    self.when_prepared(t);
                }
            }
            M::CompactionsHeld(_) => {
                if let Some(Rescale { stage: Stage::Quiet(missing), .. }) = &mut self.rescale {
                    missing.remove(worker);
                    if missing.is_empty() {
                        self.when_quiet(t);
                    }
                }
            }
            M::Report(report) => self.on_report(worker, report, t),
            M::CheckpointFailed(f) => {
                let error = failure_from_proto(&f.failure.unwrap_or_default());
                self.on_checkpoint_failed(f.epoch, &error, t);
            }
            // That of a deployment that was told to end: what it still reads may have been deleted.
            M::TaskFailed(_) if matches!(self.phase, Phase::Restarting { .. }) => {}
            M::TaskFailed(f) => {
                let error = failure_from_proto(&f.failure.unwrap_or_default());
                self.on_failure(error, t);
            }
            M::Confirmed(c) => self.on_confirmed(worker, c, t),
            M::CompactionDone(c) => self.on_compacted(worker, c, t),
            M::CompactionFailed(f) => self.on_compaction_failed(worker, f, t),
            M::Serving(s) => {
                if let Some(counters) = s.counters
                    && self.reckons_with(worker)
                {
                    self.statistics.update(worker, counters);
                }
                self.on_serving(worker, (s.pause_ms, s.open_ms), t);
            }
            M::SplitsFinished(s) => self.on_splits_finished(s.splits, t),
            M::Hello(_) | M::Heartbeat(_) | M::Leave(_) => {}
        }
    }

    fn broadcast(&self, t: &mut Turn<'_>, message: impl Fn(JobRef) -> to_worker::Message) {
        for w in self.workers_in_use() {
            t.out.push(Action::Send(w, Box::new(message(self.job_ref()))));
        }
    }

    // ---- checkpoints

    fn schedule_checkpoint(&mut self, t: &mut Turn<'_>) {
        let c = &self.settings.checkpoint;
        if c.interval.is_zero() {
            return;
        }
        self.checkpoint_turn += 1;
        let since_start = t.now.since(self.statistics.last_trigger);
        let since_end = t.now.since(self.last_checkpoint_end);
        let wait = c.interval.saturating_sub(since_start).max(c.min_pause.saturating_sub(since_end));
        t.out.push(Action::Timer(Timer::Checkpoint { turn: self.checkpoint_turn }, wait));
    }

    fn trigger(&mut self, kind: Kind, t: &mut Turn<'_>) {
        let epoch = self.next_epoch;
        self.next_epoch += 1;
        self.statistics.last_trigger = t.now;
        let missing: BTreeSet<String> = self.placement.iter().cloned().collect();
        let assignment_id = match (&kind, self.rescale.as_ref().and_then(|r| r.next.as_ref())) {
            (Kind::Rescale, Some((a, _, _))) => a.id.0,
            _ => self.assignment.id.0,
        };
        for w in &missing {
            let inject = InjectBarrier { job: Some(self.job_ref()), epoch, kind: kind.into(), assignment_id };
            t.out.push(Action::Send(w.clone(), Box::new(to_worker::Message::InjectBarrier(inject))));
        }
        t.out.push(Action::Timer(Timer::CheckpointTimeout { epoch }, self.settings.checkpoint.timeout));
        t.out.push(Action::Timer(Timer::LateCheckpoint { epoch }, LATE));
        let tokens = std::mem::take(&mut self.wanted_checkpoints);
        self.checkpoint = Some(Checkpoint { epoch, kind, started: t.now, missing, reports: Vec::new(), tokens });
    }

    fn on_report(&mut self, worker: &str, report: CheckpointReport, t: &mut Turn<'_>) {
        if let Some(c) = &mut self.checkpoint
            && c.epoch == report.epoch
            && c.missing.remove(worker)
        {
            if let Some(r) = self.rescale.as_mut().filter(|_| c.kind == Kind::Rescale) {
                r.stopped_at(Moment(t.now.0.saturating_sub(Duration::from_millis(report.stopped_ms_ago))));
            }
            c.reports.push(report);
        }
        self.pump(t);
    }

    fn on_checkpoint_failed(&mut self, epoch: u64, error: &Error, t: &mut Turn<'_>) {
        // Once its record is on its way an epoch ends only with it.
        if self.checkpoint.as_ref().is_none_or(|c| c.epoch != epoch)
            || matches!(self.committing, Some(Committing::Checkpoint))
        {
            return;
        }
        let Some(c) = self.checkpoint.take() else { return };
        self.statistics.failed += 1;
        self.failures_in_row += 1;
        tracing::warn!("job {}: the checkpoint of epoch {epoch} failed: {error}", self.spec.name);
        for token in c.tokens {
            t.out.push(Action::Reply(
                token,
                Err(Error::unavailable(format!("the checkpoint failed: {error}")).code(7110)),
            ));
        }
        let ordinary = c.kind == Kind::Checkpoint || (bug_is_planted(25) && c.kind == Kind::Rescale);
        if !ordinary || self.failures_in_row > self.settings.checkpoint.tolerable_failures {
            let what = format!("{} checkpoints failed in a row, the last: {error}", self.failures_in_row);
            return self.on_failure(Error::unavailable(what).code(7111), t);
        }
        if bug_is_planted(25) && c.kind == Kind::Rescale {
            // Planted: the rescale goes on as if its epoch could be taken along by a later one: who gained key groups
            // starts from the record before.
            self.assume_rescaled(t);
            self.record.assignment = Some(assignment_to_proto(&self.assignment));
            self.announce_version(t);
        }
        self.last_checkpoint_end = t.now;
        if let Some(rescale) = &mut self.rescale {
            rescale.checkpoint_failed();
        }
        self.after_checkpoint(t);
    }

    /// What goes into a record next, if anything, now that none is in flight.
    fn pump(&mut self, t: &mut Turn<'_>) {
        if self.committing.is_some() || self.has_ended() {
            return;
        }
        if self.checkpoint.as_ref().is_some_and(|c| c.missing.is_empty()) {
            return self.commit_checkpoint(t);
        }
        let confirmed_all = self.confirmed_all();
        if let Some(status) = self.ending
            && self.checkpoint.is_none()
            && self.record.status() == Status::Running
            && self.last_committed
            && confirmed_all
        {
            let record = record::confirmation(&self.record, &self.confirmed, status);
            return self.commit(Committing::Confirmation, record, t);
        }
        // Nor between the barriers of the last checkpoint and its record.
        let is_periodic = self.ending.is_none() && self.checkpoint.as_ref().is_none_or(|c| c.kind == Kind::Checkpoint);
        let urgent = is_periodic && self.book.is_at_bound(&compaction::options_of(&self.settings.state));
        let waits = (!urgent && self.checkpoint_is_near(t.now)) || self.rescale_is_near();
        if !self.compactions.is_empty() && self.phase == Phase::Running && !waits {
            let done = std::mem::take(&mut self.compactions);
            match record::compactions(&self.record, &done) {
                Ok(Some(record)) => {
                    Self::drop_stale(&done, &record, t);
                    self.commit(Committing::Compaction, record, t);
                }
                Ok(None) => Self::drop_stale(&done, &self.record, t),
                Err(e) => self.on_failure(e, t),
            }
        }
    }

    /// Whether a checkpoint's record comes soon, and takes along what needs no record of its own. One that takes long is
    /// not near: what keeps it may be reads that look into many runs, which a compaction has merged.
    fn checkpoint_is_near(&self, now: Moment) -> bool {
        let interval = self.settings.checkpoint.interval;
        let late = |c: &Checkpoint| c.kind == Kind::Checkpoint && now.since(c.started) >= LATE;
        if self.checkpoint.as_ref().is_some_and(late) {
            return false;
        }
        let periodic = !interval.is_zero() && interval <= NEAR && self.ending.is_none() && self.rescale.is_none();
        periodic || self.checkpoint.is_some()
    }

    /// What compactions wrote that `record`, made with them, does not list goes at once.
    fn drop_stale(done: &[(u64, CompactionDone)], record: &VersionRecord, t: &mut Turn<'_>) {
        let stale = record::stale_outputs(done, record);
        if !stale.is_empty() {
            t.out.push(Action::Stale(stale));
        }
    }

    fn commit(&mut self, what: Committing, mut record: VersionRecord, t: &mut Turn<'_>) {
        record.committed_ms = record::committed_ms(Some(&self.record), t.wall_ms);
        settle(Some(&self.record), &mut record);
        self.committing = Some(what);
        self.in_flight = Some(Box::new(record.clone()));
        self.in_doubt = false;
        t.out.push(Action::Commit(Box::new(record)));
    }

    fn commit_checkpoint(&mut self, t: &mut Turn<'_>) {
        let Some(c) = &self.checkpoint else { return };
        let next = self.rescale.as_ref().and_then(|r| r.next.as_ref());
        // Whoever gains key groups has warmed up what is live now: what compactors have merged meanwhile comes later.
        let compactions = if self.rescale_is_near() { Vec::new() } else { std::mem::take(&mut self.compactions) };
        let result = EpochResult {
            epoch: c.epoch,
            reports: &c.reports,
            confirmed: &self.confirmed,
            compactions: &compactions,
            assignment: if c.kind == Kind::Rescale { next.map(|n| &n.0) } else { None },
            last: if c.kind == Kind::Last { self.ending } else { None },
        };
        match record::checkpoint(&self.record, &result) {
            Ok(Some(record)) => {
                Self::drop_stale(&compactions, &record, t);
                self.commit(Committing::Checkpoint, record, t);
            }
            Ok(None) => {
                Self::drop_stale(&compactions, &self.record, t);
                self.end_checkpoint(false, t);
            }
            Err(e) => self.on_failure(e, t),
        }
    }

    /// The outcome of the record in flight: it stands (true), or somebody else's does.
    pub(crate) fn on_committed(&mut self, stands: bool, t: &mut Turn<'_>) {
        let (Some(what), Some(record)) = (self.committing.take(), self.in_flight.take()) else { return };
        if self.has_ended() {
            return;
        }
        if !stands {
            let what = "a newer leader has taken this job over: this one is fenced";
            let e = Error::fenced(what).at(format!("version {}", record.number));
            return self.end(End::Fenced, Some(e), t);
        }
        self.record = *record;
        let still: BTreeSet<_> = self.record.committables.iter().map(committable_key).collect();
        self.confirmed.retain(|k| still.contains(k));
        match what {
            Committing::Checkpoint => {
                let deployed = matches!(self.phase, Phase::Running);
                if deployed {
                    self.announce_version(t);
                }
                self.end_checkpoint(true, t);
            }
            Committing::Compaction => {
                self.announce_version(t);
            }
            Committing::Confirmation => {}
        }
        self.maybe_ended(t);
        self.pump(t);
        self.try_deploy(t);
        self.give_compactions(t);
    }

    /// The coordinator could not learn what became of the record in flight. It is sent again, after a pause, until its
    /// number is taken; only when the store has refused it for good, and no earlier attempt is in doubt, the job fails.
    pub(crate) fn on_commit_unknown(&mut self, error: &Error, t: &mut Turn<'_>) {
        if bug_is_planted(24) && matches!(self.committing, Some(Committing::Checkpoint)) {
            // Planted: what was not found when it was read back is taken for never written.
            self.committing = None;
            self.in_flight = None;
            if let Some(epoch) = self.checkpoint.as_ref().map(|c| c.epoch) {
                return self.on_checkpoint_failed(epoch, error, t);
            }
        }
        self.in_doubt |= error.applied() == Applied::Maybe;
        let Some(number) = self.in_flight_number() else { return };
        if self.has_ended() || (error.is_final() && !self.in_doubt) {
            self.committing = None;
            self.in_flight = None;
            if !self.has_ended() {
                let what = format!("version {number} cannot be written: {error}");
                let e = Error::new(error.kind(), 7114, what).next("mend that and submit the job again: it goes on");
                self.end(End::Failed, Some(e), t);
            }
            return;
        }
        tracing::warn!("job {}: version record {number} will be sent again: {error}", self.spec.name);
        t.out.push(Action::Timer(Timer::Recommit { number }, RECOMMIT_PAUSE));
    }

    fn announce_version(&self, t: &mut Turn<'_>) {
        let record = self.record.clone();
        self.broadcast(t, |job| {
            to_worker::Message::VersionCommitted(VersionCommitted { job: Some(job), record: Some(record.clone()) })
        });
    }

    fn maybe_ended(&mut self, t: &mut Turn<'_>) {
        match self.record.status() {
            Status::Finished => self.end(End::Finished, None, t),
            Status::Stopped => self.end(End::Stopped, None, t),
            _ => {}
        }
    }

    /// The epoch in flight is over: its record stands, or nothing had changed.
    fn end_checkpoint(&mut self, committed: bool, t: &mut Turn<'_>) {
        let Some(c) = self.checkpoint.take() else { return };
        self.failures_in_row = 0;
        self.last_checkpoint_end = t.now;
        self.statistics.rows_out += c.reports.iter().map(|r| r.rows_out).sum::<u64>();
        if committed {
            let bytes = c.reports.iter().map(|r| r.bytes_written).sum();
            let puts = c.reports.iter().map(|r| u64::from(r.puts)).sum::<u64>() + 1;
            self.statistics.checkpoint_done(t.now.since(c.started), bytes, puts);
            if c.kind == Kind::Rescale
                && let Some(r) = &mut self.rescale
            {
                r.bytes = bytes;
            }
        }
        for token in c.tokens {
            t.out.push(Action::Reply(token, Ok(())));
        }
        match c.kind {
            Kind::Last => {
                self.last_committed = true;
                self.maybe_ended(t);
            }
            Kind::Rescale => self.on_rescale_committed(t),
            _ => self.after_checkpoint(t),
        }
    }

    fn after_checkpoint(&mut self, t: &mut Turn<'_>) {
        if self.phase != Phase::Running {
            return;
        }
        if self.rescale_is_near() {
            return self.when_prepared(t);
        }
        // A stop waits for the end of a rescale that was asked for before.
        if !self.stop_tokens.is_empty() && self.ending.is_none() && self.rescale.is_none() {
            self.ending = Some(Status::Stopped);
            return self.trigger(Kind::Last, t);
        }
        if self.giving_up.is_some() {
            return self.give_up(t);
        }
        self.give_splits(t);
        self.check_end_of_input(t);
        if self.checkpoint.is_some() {
            return;
        }
        self.hand_over(t);
        if self.checkpoint.is_some() {
            return;
        }
        if !self.wanted_checkpoints.is_empty() {
            return self.trigger(Kind::Checkpoint, t);
        }
        self.schedule_checkpoint(t);
    }

    // ---- timers

    pub(crate) fn on_timer(&mut self, timer: Timer, t: &mut Turn<'_>) {
        match timer {
            Timer::Checkpoint { turn } => {
                let due = turn == self.checkpoint_turn && self.phase == Phase::Running && self.ending.is_none();
                if due && self.checkpoint.is_none() && !self.rescale_is_near() {
                    self.trigger(Kind::Checkpoint, t);
                }
            }
            Timer::LateCheckpoint { epoch } => {
                if self.checkpoint.as_ref().is_some_and(|c| c.epoch == epoch) {
                    self.pump(t);
                }
            }
            Timer::CheckpointTimeout { epoch } => {
                let limit = self.settings.checkpoint.timeout;
                let e = Error::unavailable(format!("it took longer than {limit:?}")).code(7112);
                self.on_checkpoint_failed(epoch, &e, t);
            }
            Timer::Restart { execution } => {
                if execution == self.execution
                    && let Phase::Restarting { delayed } = &mut self.phase
                {
                    *delayed = false;
                    self.try_deploy(t);
                }
            }
            Timer::LiveSplits => {
                self.live_splits_due = false;
                if self.phase == Phase::Running {
                    self.send_live_splits(t);
                }
            }
            Timer::CommitAgain => self.commit_without_slots(t),
            Timer::Quiet { execution, asked } => {
                if execution == self.execution && asked == self.rescales_asked {
                    self.when_quiet(t);
                }
            }
            Timer::Recommit { number } => {
                if let Some(record) = self.in_flight.as_ref().filter(|r| r.number == number) {
                    t.out.push(Action::Commit(record.clone()));
                }
            }
            Timer::RescaleTimeout { assignment, execution, stands } => {
                let late = self.rescale.as_ref().and_then(|r| r.next.as_ref()).is_some_and(|n| n.0.id == assignment);
                let open = match self.rescale.as_ref().map(|r| &r.stage) {
                    Some(Stage::Preparing(_)) => !stands,
                    Some(Stage::Serving(_)) => stands,
                    _ => false,
                };
                if late && open && execution == self.execution {
                    let e = Error::unavailable("the rescale took longer than a checkpoint may").code(7113);
                    self.on_failure(e, t);
                }
            }
        }
    }

    // ---- failures

    /// A worker is gone.
    pub(crate) fn on_worker_lost(&mut self, worker: &str, t: &mut Turn<'_>) {
        self.on_runner_lost(worker);
        if self.commits_at.take_if(|w| w == worker).is_some() {
            self.commit_without_slots(t);
        }
        // One that a rescale has left without subtasks takes the commits along that it owes: others make them anew.
        let owes = self.departed.remove(worker).is_some_and(|d| self.owes(&d)) && !bug_is_planted(31);
        if !self.has_ended() && (owes || self.uses(worker)) {
            if bug_is_planted(26) {
                self.keep_survivors();
            }
            return self.on_failure(Error::unavailable(format!("worker {worker} is lost")).code(7120), t);
        }
        // Nobody waits for the word of one that has nothing to serve; should it come back, it counts anew.
        self.statistics.fold_worker(worker);
        self.on_serving(worker, (0, 0), t);
    }

    /// Planted bug 26: the subtasks of the workers that are left go on with their state (what they have reported since the
    /// newest record) while the sources are rewound.
    fn keep_survivors(&mut self) {
        let Some(c) = self.checkpoint.as_ref().filter(|_| self.committing.is_none()) else { return };
        let result = EpochResult {
            epoch: c.epoch,
            reports: &c.reports,
            confirmed: &BTreeSet::new(),
            compactions: &[],
            assignment: None,
            last: None,
        };
        if let Ok(Some(after)) = record::checkpoint(&self.record, &result) {
            (self.record.tree, self.record.progress) = (after.tree, after.progress);
        }
    }

    fn on_failure(&mut self, error: Error, t: &mut Turn<'_>) {
        if self.has_ended() {
            return;
        }
        let none = self.settings.restart.strategy == RestartStrategy::None;
        if error.kind() == ErrorKind::Canceled && error.number() != CANCELED_WITHOUT_A_REASON {
            // Its owner called it off, as the reader of stdout does that closes it.
            return self.end(End::Canceled, Some(error), t);
        }
        if (error.is_final() && error.kind() != ErrorKind::Canceled) || none {
            return self.end(End::Failed, Some(error), t);
        }
        if matches!(self.phase, Phase::Created | Phase::Restarting { .. }) {
            return;
        }
        self.take_down(&error, t);
        let r = &self.settings.restart;
        // How long it could not be deployed says nothing for it.
        if self.phase == Phase::Running && t.now.since(self.running_since) >= r.reset_after {
            self.delay = r.initial_delay;
        }
        let wait = self.delay;
        self.delay = self.delay.mul_f64(r.backoff_multiplier.max(1.0)).min(r.max_delay);
        self.phase = Phase::Restarting { delayed: true };
        t.out.push(Action::Timer(Timer::Restart { execution: self.execution }, wait));
    }

    /// Ends the deployment everywhere; what follows is for the caller to decide.
    fn take_down(&mut self, error: &Error, t: &mut Turn<'_>) {
        tracing::warn!("job {}: restart after: {error}", self.spec.name);
        self.stop_deployment(t);
        self.fail_requests(error, t);
        self.statistics.restarted(error);
    }

    fn stop_everywhere(&mut self, t: &mut Turn<'_>) {
        let mut workers = self.workers_in_use();
        workers.extend(std::mem::take(&mut self.departed).into_keys());
        workers.extend(self.stop_compactors());
        workers.extend(self.commits_at.take());
        for w in workers {
            let stop = to_worker::Message::StopJob(StopJob { job: Some(self.job_ref()) });
            t.out.push(Action::Send(w, Box::new(stop)));
        }
    }

    /// The newest record stands; everything that ran since is forgotten.
    fn stop_deployment(&mut self, t: &mut Turn<'_>) {
        self.stop_everywhere(t);
        self.statistics.fold();
        if !matches!(self.committing, Some(Committing::Checkpoint)) {
            self.checkpoint = None;
        }
        self.placement.clear();
        self.failures_in_row = 0;
        self.ending = None;
        self.last_committed = false;
        self.giving_up = None;
    }

    fn fail_requests(&mut self, error: &Error, t: &mut Turn<'_>) {
        let mut tokens = std::mem::take(&mut self.wanted_checkpoints);
        tokens.append(&mut self.stop_tokens);
        tokens.extend(self.checkpoint.iter_mut().flat_map(|c| std::mem::take(&mut c.tokens)));
        if let Some(r) = self.rescale.take() {
            tokens.extend(r.token);
            // The table of the newest record holds, whichever it is, once the record in flight is decided.
        }
        for token in tokens {
            let e = Error::unavailable(format!("the job restarts: {error}")).code(7121).next("ask again");
            t.out.push(Action::Reply(token, Err(e)));
        }
    }

    fn end(&mut self, end: End, error: Option<Error>, t: &mut Turn<'_>) {
        self.stop_everywhere(t);
        let stopped = std::mem::take(&mut self.stop_tokens);
        for token in stopped {
            let outcome = match end {
                End::Stopped | End::Finished | End::Canceled => Ok(()),
                _ => Err(Error::unavailable("the job failed before it had stopped").code(7122)),
            };
            t.out.push(Action::Reply(token, outcome));
        }
        let why =
            error.as_ref().map_or_else(|| Error::canceled("the job has ended"), |e| Error::canceled(e.to_string()));
        self.fail_requests(&why, t);
        self.placement.clear();
        self.error = error.map(Arc::new);
        self.phase = Phase::Ended(end);
        t.out.push(Action::Ended);
    }

    // ---- requests of clients

    pub(crate) fn want_checkpoint(&mut self, token: u64, t: &mut Turn<'_>) {
        if self.phase != Phase::Running || self.ending.is_some() {
            return t.out.push(Action::Reply(token, Err(self.not_running())));
        }
        self.wanted_checkpoints.push(token);
        if self.checkpoint.is_none() && self.rescale.is_none() {
            self.trigger(Kind::Checkpoint, t);
        }
    }

    fn not_running(&self) -> Error {
        let e = Error::unavailable(format!("the job is {}", self.state())).code(7123);
        if self.has_ended() { e.next("submit it again to go on") } else { e.next("ask again when it runs") }
    }

    pub(crate) fn want_stop(&mut self, token: u64, t: &mut Turn<'_>) {
        if self.phase != Phase::Running || self.input_ended {
            return t.out.push(Action::Reply(token, Err(self.not_running())));
        }
        self.stop_tokens.push(token);
        if self.checkpoint.is_none() && self.rescale.is_none() && self.ending.is_none() {
            self.ending = Some(Status::Stopped);
            self.trigger(Kind::Last, t);
        }
    }

    pub(crate) fn cancel(&mut self, token: u64, t: &mut Turn<'_>) {
        if !self.has_ended() {
            self.end(End::Canceled, None, t);
        }
        t.out.push(Action::Reply(token, Ok(())));
    }
}

/// Workers for `count` subtasks; see [`place_near`].
fn place(count: u32, workers: &BTreeMap<String, WorkerFacts>) -> Option<Vec<String>> {
    place_near((0..count).map(|_| BTreeMap::new()).collect(), workers)
}

/// A worker for each subtask: of those with the most free slots the one that is nearest to its state, by the number that
/// the subtask has for the worker. `None` when slots are too few.
fn place_near(subtasks: Vec<BTreeMap<String, u32>>, workers: &BTreeMap<String, WorkerFacts>) -> Option<Vec<String>> {
    let mut free: BTreeMap<&String, u32> = workers.iter().map(|(w, f)| (w, f.free)).collect();
    let mut placement = Vec::new();
    for near in subtasks {
        let nearness = |worker: &String| near.get(worker).copied().unwrap_or_default();
        let (worker, slots) =
            free.iter_mut().max_by_key(|(worker, slots)| (**slots, nearness(worker), Reverse(worker.as_str())))?;
        if *slots == 0 {
            return None;
        }
        *slots -= 1;
        placement.push((*worker).clone());
    }
    Some(placement)
}

fn placement_message(placement: &[String], workers: &BTreeMap<String, WorkerFacts>) -> Placement {
    let address = |w: &String| workers.get(w).map(|f| f.data_address.clone()).unwrap_or_default();
    Placement { data_address: placement.iter().map(address).collect() }
}
