//! One deployment of a job on one worker: makes its subtasks, collects the epochs that they close, has bundles written,
//! commits sinks' output once a version stands, merges runs.
//!
//! It is an actor: everything it learns comes through one bounded inbox, and long work runs beside it. It obeys the
//! coordinator and never decides that an epoch is over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::FutureExt;
use millstream_common::env::{AbortOnDrop, Moment, Running};
use millstream_common::kill_points::kill_point;
use millstream_common::planted::bug_is_planted;
use millstream_common::{
    AssignmentId, Env, Epoch, Error, ErrorKind, Execution, Generation, KeyGroupRanges, Lane, Result,
};
use millstream_proto::control::{
    CheckpointFailed, CheckpointReport, CommittableId, Compact, CompactionsHeld, Confirmed, Deploy, Deployed,
    InjectBarrier, JobRef, PrepareRescale, Prepared, Serving, SplitId, SplitOwner, SplitsFinished, TaskFailed,
    inject_barrier, to_coordinator::Message,
};
use millstream_proto::version::VersionRecord;
use millstream_state_store::compaction::Merged;
use millstream_state_store::{Run, StateStore, WriterName};
use tokio::sync::mpsc;

use super::WorkerContext;
use super::committer::{self, Committed, Committers, Durable};
use super::deploy::{self, Deployment};
use super::gauges::JobGauges;
use super::ledger::WorkerLedger;
use super::merging;
use super::shrunk::shrunk;
use super::warming::Warming;
use super::writer::{self, WriteOrder, Written};
use crate::convert::{assignment_from_proto, committable_to_proto, failure_to_proto, ranges_from_proto};
use crate::element::{Assignment, BarrierKind, TimestampMs};
use crate::graph::{Head, JobGraph};
use crate::settings::Settings;
use crate::sink::{Committable, SinkObjects};
use crate::task::{EpochClosed, SubtaskId, TASK_QUEUE, TaskControl, TaskEvent, VersionView};

/// Messages that a job holds before their senders wait.
const INBOX: usize = 1_024;

/// What a job's actor is told.
pub(crate) enum JobMessage {
    /// Further subtasks for a rescale.
    Join(Box<Deploy>),
    /// What a rescale will change.
    Prepare(Box<PrepareRescale>),
    /// Send a barrier from the sources.
    Inject(InjectBarrier),
    /// A record stands.
    Version(Box<VersionRecord>),
    /// How many splits of each source live.
    LiveSplits(Vec<(String, u64)>),
    /// The least watermark of each group of splits that keep together.
    Align(Vec<(String, TimestampMs)>),
    /// Splits that came while the job runs.
    AddSplits(Vec<SplitOwner>),
    /// All splits have ended.
    EndOfInput,
    /// Merge runs.
    Compact(Box<Compact>),
    /// Start no compaction, and say when none runs; or start them again.
    HoldCompactions(bool),
    /// Time has passed: readers may have let go of old versions.
    Beat,
}

/// A running subtask.
pub(crate) struct TaskRun {
    pub(crate) control: mpsc::Sender<TaskControl>,
    /// It was deployed for this assignment while others ran: before that holds, it closes no epoch.
    pub(crate) joined: Option<AssignmentId>,
    /// It leaves with the barrier of the upcoming assignment.
    pub(crate) leaves: bool,
    pub(crate) _task: AbortOnDrop,
}

/// The worker's handle on a job's actor; dropping it ends the deployment here.
pub(crate) struct JobHandle {
    pub(crate) job: JobRef,
    pub(crate) inbox: mpsc::Sender<JobMessage>,
    pub(crate) gauges: Arc<JobGauges>,
    ledger: WorkerLedger,
    _actor: AbortOnDrop,
}

/// What the parts of a deployment share.
pub(crate) struct JobContext {
    pub(crate) env: Env,
    pub(crate) worker: Arc<WorkerContext>,
    pub(crate) job: JobRef,
    pub(crate) graph: JobGraph,
    pub(crate) settings: Settings,
    pub(crate) state: StateStore,
    pub(crate) gauges: Arc<JobGauges>,
    pub(crate) events: mpsc::Sender<TaskEvent>,
}

impl JobContext {
    pub(crate) fn execution(&self) -> (Generation, Execution) {
        (Generation(self.job.generation), Execution(self.job.execution))
    }

    pub(crate) fn sink_objects(&self) -> SinkObjects {
        let (generation, execution) = self.execution();
        SinkObjects::new(self.env.clone(), self.state.shared_store(), generation, execution)
    }
}

struct Compacting {
    subtask: SubtaskId,
    order: Box<Compact>,
    running: Running<Result<Merged>>,
}

/// What a compaction wrote, with what it read and in which key groups.
struct Outputs {
    inputs: Vec<Arc<Run>>,
    ranges: KeyGroupRanges,
    runs: Vec<Run>,
}

/// The subtasks that serve an assignment, and the longest of what each said.
#[derive(Default)]
struct Served {
    subtasks: Vec<SubtaskId>,
    pause_ms: u64,
    open_ms: u64,
}

struct JobActor {
    context: Arc<JobContext>,
    inbox: mpsc::Receiver<JobMessage>,
    events: mpsc::Receiver<TaskEvent>,
    tasks: BTreeMap<SubtaskId, TaskRun>,
    assignment: Assignment,
    /// The assignment of the rescale that is being prepared.
    upcoming: Option<Arc<Assignment>>,
    version: Option<Arc<VersionView>>,
    closed: BTreeMap<Epoch, Vec<EpochClosed>>,
    /// How many subtasks close each epoch: those deployed when its barrier was sent.
    expected: BTreeMap<Epoch, usize>,
    /// What each closed epoch will report once its bundle is written, and since when the first of its keyed subtasks has
    /// processed nothing that stood before the barrier.
    reports: BTreeMap<Epoch, (CheckpointReport, Option<Moment>)>,
    unlisted_runs: Vec<Arc<Run>>,
    uncommitted: Vec<Committable>,
    serving: BTreeMap<AssignmentId, Served>,
    writer: mpsc::Sender<WriteOrder>,
    written: mpsc::Receiver<Written>,
    /// How many splits of each source live, until all have heard of it.
    live_splits: Vec<(String, u64)>,
    committer: mpsc::Sender<Vec<Durable>>,
    /// A batch is being committed.
    committing: bool,
    /// Listed by a version; the next batch.
    to_commit: Vec<Durable>,
    committed: mpsc::Receiver<(Vec<Committed>, Option<Error>)>,
    compacting: Vec<Compacting>,
    /// What compactions wrote here: kept here until a version lists it or it is known that none will.
    outputs: Vec<Outputs>,
    /// Runs that a version no longer lists, or in fewer key groups, and which version: what is kept of them outside of
    /// these goes when nobody reads from older ones.
    retired: Vec<(u64, Run)>,
    /// A rescale is under way: none is started.
    holding: bool,
    /// The coordinator is to be told when none runs.
    owes_held: bool,
    warming: Warming,
    bytes_written: u64,
    puts: u32,
    _helpers: Vec<AbortOnDrop>,
}

/// Starts a deployment; it reports to the coordinator by itself.
pub(crate) fn start(worker: Arc<WorkerContext>, deploy: Deploy) -> Result<JobHandle> {
    let env = worker.env.clone();
    let job = deploy.job.clone().unwrap_or_default();
    let spec = deploy.spec.clone().unwrap_or_default();
    let settings = Settings::from_job_map(&spec.settings)?;
    let mut graph = worker.registry.build(&spec.job, &spec.args, &worker.job_context(&spec.name))?.graph;
    graph.default_idle_timeout(settings.watermark.idle_timeout);
    let store = worker.stores.job_store(&spec.name, &settings)?;
    let state = StateStore::resident(
        store.clone(),
        worker.stores.caches(),
        worker.stores.state_options(&settings),
        env.clone(),
        millstream_state_store::entry::MergeOperators::default(),
        worker.stores.residency(&spec.name, &settings)?,
    );
    let uids = graph.tasks.iter().map(|t| t.uid.clone()).collect();
    let gauges = Arc::new(JobGauges::new(env.clone(), job.clone(), &spec.job, uids, store, state.clone()));
    let ledger = worker.ledger.clone();
    ledger.begin(&gauges);
    let (events_tx, events) = mpsc::channel(INBOX);
    let context = Arc::new(JobContext {
        env: env.clone(),
        worker,
        job: job.clone(),
        graph,
        settings,
        state,
        gauges: gauges.clone(),
        events: events_tx,
    });
    let (inbox_tx, inbox) = mpsc::channel(INBOX);
    let actor = env.spawn(Lane::Io, "job", async move {
        let worker = context.worker.clone();
        let job = context.job.clone();
        if let Err(e) = JobActor::run(context, deploy, inbox, events).await {
            tracing::debug!("job {} execution {}: {e}", job.id, job.execution);
            let failure = Some(failure_to_proto(&e));
            worker.tell(Message::TaskFailed(TaskFailed {
                job: Some(job),
                task_uid: String::new(),
                subtask: 0,
                failure,
            }));
        }
    });
    Ok(JobHandle { job, inbox: inbox_tx, gauges, ledger, _actor: AbortOnDrop(actor) })
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        self.ledger.end(&self.gauges);
    }
}

impl JobActor {
    async fn run(
        context: Arc<JobContext>,
        deploy: Deploy,
        inbox: mpsc::Receiver<JobMessage>,
        events: mpsc::Receiver<TaskEvent>,
    ) -> Result<()> {
        let assignment = current_assignment(&deploy)?;
        let env = context.env.clone();
        // Each keyed subtask has one early flush under way at most, each epoch in flight one order.
        let subtasks = deploy.placement.as_ref().map_or(0, |p| p.data_address.len()).max(context.worker.slots as usize);
        let (writer, orders) = mpsc::channel(subtasks * context.graph.tasks.len() + 64);
        let (written_tx, written) = mpsc::channel(64);
        let (generation, execution) = context.execution();
        let name = WriterName { generation, execution };
        let writing = env.spawn(
            Lane::Io,
            "bundle writer",
            writer::run(env.clone(), context.state.clone(), name, orders, written_tx),
        );
        let (committer, batches) = mpsc::channel(1);
        let (committed_tx, committed) = mpsc::channel(1);
        let committers = Committers::new(env.clone(), &context.graph, None)?;
        let committing = env.spawn(Lane::Io, "committer", committer::run(committers, batches, committed_tx));
        let mut actor = Self {
            context,
            inbox,
            events,
            tasks: BTreeMap::new(),
            assignment,
            upcoming: None,
            version: None,
            closed: BTreeMap::new(),
            expected: BTreeMap::new(),
            reports: BTreeMap::new(),
            unlisted_runs: Vec::new(),
            uncommitted: Vec::new(),
            serving: BTreeMap::new(),
            writer,
            written,
            live_splits: Vec::new(),
            committer,
            committing: false,
            to_commit: Vec::new(),
            committed,
            compacting: Vec::new(),
            outputs: Vec::new(),
            retired: Vec::new(),
            holding: deploy.join,
            owes_held: false,
            warming: Warming::default(),
            bytes_written: 0,
            puts: 0,
            _helpers: vec![AbortOnDrop(writing), AbortOnDrop(committing)],
        };
        actor.deploy(deploy).await?;
        actor.work().await
    }

    async fn work(&mut self) -> Result<()> {
        loop {
            let compacting = !self.compacting.is_empty();
            millstream_common::select! {
                m = self.inbox.recv() => match m {
                    Some(m) => self.on_message(m).await?,
                    None => return Ok(()),
                },
                Some(e) = self.events.recv() => self.on_event(e).await?,
                Some(w) = self.written.recv() => self.on_written(w)?,
                Some((done, failed)) = self.committed.recv() => self.on_committed(done, failed)?,
                (i, outcome) = next_compaction(&mut self.compacting), if compacting => self.on_compacted(i, outcome)?,
            }
        }
    }

    fn tell(&self, message: Message) {
        self.context.worker.tell(message);
    }

    fn job(&self) -> Option<JobRef> {
        Some(self.context.job.clone())
    }

    // ---- deployment

    async fn deploy(&mut self, deploy: Deploy) -> Result<()> {
        let view = |record| deploy::version_view(&self.context.graph, record).map(Arc::new);
        let version = deploy.version.as_ref().map(view).transpose()?;
        if let (Some(record), Some(version)) = (&deploy.version, &version) {
            self.context.gauges.uses(record.number, version, &[]);
        }
        let begins = self.tasks.is_empty() && self.version.is_none();
        if let Some(version) = version.as_ref().filter(|_| begins) {
            self.context.state.release_others(version.runs.iter().flatten().map(AsRef::as_ref));
        }
        // Who joins starts from a version to come, and warms up from this one.
        let (version, before) = if deploy.join { (None, version) } else { (version, None) };
        let assignment = assignment_from_proto(deploy.assignment.as_ref().unwrap_or(&Default::default()))?;
        // A worker without subtasks of the job has not followed its versions.
        self.assignment = current_assignment(&deploy)?;
        let gained = deploy.subtasks.iter().filter_map(|i| assignment.ranges.get(*i as usize));
        let gained = gained.fold(KeyGroupRanges::empty(), |all, r| all.union(r));
        if let Some(record) = &deploy.version {
            deploy::check_program(record, &self.context.graph)?;
        }
        let deployment = Deployment::new(&deploy, assignment, version.clone())?;
        let tasks = deploy::start_subtasks(&self.context, &deployment).await?;
        if let Some(id) = tasks.keys().find(|id| self.tasks.contains_key(id)) {
            return Err(Error::internal(format!("subtask {} of {} runs here already", id.index, self.uid(*id))));
        }
        self.tasks.extend(tasks);
        self.share_pins();
        if let Some(version) = version {
            self.warming.behind(&self.context, &version, &gained);
            self.version = Some(version);
        }
        let deployed = Message::Deployed(Deployed { job: self.job(), assignment_id: deployment.assignment.id.0 });
        match before {
            Some(before) => self.warming.before_rescale(&self.context, &before, &gained, deployed),
            None => self.tell(deployed),
        }
        Ok(())
    }

    async fn prepare(&mut self, prepare: PrepareRescale) -> Result<()> {
        let assignment = Arc::new(assignment_from_proto(prepare.assignment.as_ref().unwrap_or(&Default::default()))?);
        let preparations =
            deploy::prepare_subtasks(&self.context, &self.assignment, &assignment, &prepare, &self.tasks).await?;
        for (id, p) in preparations {
            if let Some(task) = self.tasks.get_mut(&id) {
                task.leaves = p.leaves;
            }
            self.control(id, TaskControl::Prepare(p))?;
        }
        let prepared = Message::Prepared(Prepared { job: self.job(), assignment_id: assignment.id.0 });
        let here: BTreeSet<usize> = self.tasks.keys().map(|id| id.index as usize).collect();
        let gained = here.iter().filter_map(|&i| {
            let (old, new) = (self.assignment.ranges.get(i)?, assignment.ranges.get(i)?);
            Some(new.subtract(old))
        });
        let gained = gained.fold(KeyGroupRanges::empty(), |all, r| all.union(&r));
        match self.version.clone() {
            Some(version) => self.warming.before_rescale(&self.context, &version, &gained, prepared),
            None => self.tell(prepared),
        }
        self.upcoming = Some(assignment);
        Ok(())
    }

    fn control(&self, id: SubtaskId, control: TaskControl) -> Result<()> {
        let Some(task) = self.tasks.get(&id) else { return Ok(()) };
        task.control.try_send(control).map_err(|_| {
            Error::unavailable(format!("subtask {} of {} does not take its messages", id.index, self.uid(id)))
                .code(7020)
        })
    }

    /// The key groups of the subtasks here.
    fn owned(&self) -> KeyGroupRanges {
        let here: BTreeSet<u32> = self.tasks.keys().map(|id| id.index).collect();
        let ranges = here.iter().filter_map(|&i| self.assignment.ranges.get(i as usize));
        ranges.fold(KeyGroupRanges::empty(), |all, r| all.union(r))
    }

    /// The job pins as much as its subtasks have of the worker's slots.
    fn share_pins(&self) {
        let here: BTreeSet<u32> = self.tasks.keys().map(|id| id.index).collect();
        let worker = &self.context.worker;
        self.context.state.share_pins(worker.stores.pin_share_bytes(here.len(), worker.slots as usize));
    }

    fn uid(&self, id: SubtaskId) -> &str {
        &self.context.graph.tasks[id.task].uid
    }

    fn sources(&self) -> Vec<SubtaskId> {
        let is_source = |id: &&SubtaskId| matches!(self.context.graph.tasks[id.task].head, Head::Source(_));
        self.tasks.keys().filter(is_source).copied().collect()
    }

    async fn on_message(&mut self, message: JobMessage) -> Result<()> {
        match message {
            JobMessage::Join(deploy) => self.deploy(*deploy).await,
            JobMessage::Prepare(prepare) => self.prepare(*prepare).await,
            JobMessage::Inject(inject) => self.inject(&inject),
            JobMessage::Version(record) => self.on_version(&record),
            JobMessage::LiveSplits(counts) => {
                self.live_splits = counts;
                self.tell_live_splits();
                Ok(())
            }
            JobMessage::Align(least) => {
                self.align(&least);
                Ok(())
            }
            JobMessage::AddSplits(splits) => {
                for id in self.sources() {
                    // A source takes its own of them.
                    let its = deploy::owned_splits(&splits, id.index);
                    if !its.is_empty() {
                        self.control(id, TaskControl::AddSplits(its))?;
                    }
                }
                Ok(())
            }
            JobMessage::Compact(order) => self.compact(order),
            JobMessage::HoldCompactions(hold) => self.hold_compactions(hold),
            JobMessage::Beat => {
                self.let_go_of_retired();
                Ok(())
            }
            JobMessage::EndOfInput => {
                for id in self.sources() {
                    self.control(id, TaskControl::EndOfInput)?;
                }
                Ok(())
            }
        }
    }

    /// Only the last count matters, for the share of a rate: a subtask that has much to read yet hears of it with the
    /// next barrier.
    fn tell_live_splits(&mut self) {
        let mut all_told = true;
        for id in self.sources() {
            let Head::Source(source) = &self.context.graph.tasks[id.task].head else { continue };
            let count = self.live_splits.iter().find(|(uid, _)| *uid == source.uid);
            if let (Some((_, n)), Some(task)) = (count, self.tasks.get(&id)) {
                let room = task.control.capacity() > task.control.max_capacity() / 2;
                all_told &= room && task.control.try_send(TaskControl::LiveSplits(*n)).is_ok();
            }
        }
        if all_told {
            self.live_splits.clear();
        }
    }

    /// It comes again: a subtask that has much to read yet may miss it.
    fn align(&self, least: &[(String, TimestampMs)]) {
        for id in self.sources() {
            let Head::Source(source) = &self.context.graph.tasks[id.task].head else { continue };
            let Some(alignment) = &source.watermarks.alignment else { continue };
            let told = least.iter().find(|(group, _)| *group == alignment.group);
            if let (Some((_, least)), Some(task)) = (told, self.tasks.get(&id))
                && task.control.capacity() > task.control.max_capacity() / 2
            {
                let _ = task.control.try_send(TaskControl::Align(*least));
            }
        }
    }

    fn inject(&mut self, inject: &InjectBarrier) -> Result<()> {
        let epoch = Epoch(inject.epoch);
        let kind = match inject.kind() {
            inject_barrier::Kind::Last => BarrierKind::Last,
            inject_barrier::Kind::Rescale => match &self.upcoming {
                Some(a) if a.id.0 == inject.assignment_id => BarrierKind::Rescale(a.clone()),
                _ => return Err(Error::internal(format!("not prepared for assignment {}", inject.assignment_id))),
            },
            _ => BarrierKind::Checkpoint,
        };
        // Subtasks that wait for the assignment of this very barrier do not close its epoch.
        let takes_part = |task: &TaskRun| task.joined.is_none_or(|assignment| assignment <= self.assignment.id);
        self.expected.insert(epoch, self.tasks.values().filter(|t| takes_part(t)).count());
        let sources: Vec<_> = self.sources().into_iter().filter(|id| takes_part(&self.tasks[id])).collect();
        self.tell_live_splits();
        for id in sources {
            self.control(id, TaskControl::Barrier { epoch, kind: kind.clone() })?;
        }
        self.report_when_closed(epoch)
    }

    // ---- epochs

    async fn on_event(&mut self, event: TaskEvent) -> Result<()> {
        match event {
            TaskEvent::Closed(closed) => {
                let epoch = closed.epoch;
                self.closed.entry(epoch).or_default().push(*closed);
                self.report_when_closed(epoch)
            }
            TaskEvent::EarlySection { subtask, section } => self.order(WriteOrder::Early(subtask, section)),
            TaskEvent::Failed { subtask, error } => {
                self.tell(Message::TaskFailed(TaskFailed {
                    job: self.job(),
                    task_uid: self.uid(subtask).to_owned(),
                    subtask: subtask.index,
                    failure: Some(failure_to_proto(&error)),
                }));
                Ok(())
            }
            TaskEvent::Serving { subtask, assignment, pause_ms, open_ms } => {
                let served = self.serving.entry(assignment).or_default();
                served.subtasks.push(subtask);
                served.pause_ms = served.pause_ms.max(pause_ms);
                served.open_ms = served.open_ms.max(open_ms);
                self.serve_when_all(assignment);
                Ok(())
            }
            TaskEvent::SplitsFinished(splits) => {
                let splits =
                    splits.into_iter().map(|(source_uid, split_id)| SplitId { source_uid, split_id }).collect();
                self.tell(Message::SplitsFinished(SplitsFinished { job: self.job(), splits }));
                Ok(())
            }
        }
    }

    fn order(&self, order: WriteOrder) -> Result<()> {
        self.writer.try_send(order).map_err(|_| Error::unavailable("the bundle writer is too far behind").code(7021))
    }

    fn report_when_closed(&mut self, epoch: Epoch) -> Result<()> {
        let Some(expected) = self.expected.get(&epoch).copied() else { return Ok(()) };
        if self.closed.get(&epoch).map_or(0, Vec::len) < expected {
            return Ok(());
        }
        self.expected.remove(&epoch);
        let mut report = CheckpointReport { job: self.job(), epoch: epoch.0, ..CheckpointReport::default() };
        let mut sections = Vec::new();
        let mut stopped: Option<Moment> = None;
        for closed in self.closed.remove(&epoch).unwrap_or_default() {
            stopped = stopped.into_iter().chain(closed.stopped).min();
            report.rows_out += closed.rows_out;
            report.splits.extend(closed.splits);
            self.uncommitted.extend(closed.committables);
            if let Some(task_id) = self.task_id(closed.subtask) {
                report.progress.extend(closed.fired.iter().map(|(range, fired)| {
                    millstream_proto::version::TaskProgress {
                        task_id: u32::from(task_id),
                        range: Some(crate::convert::range_to_proto(range)),
                        fired_ms: *fired,
                    }
                }));
            }
            if let Some(section) = closed.section {
                sections.push((closed.subtask, section));
            }
        }
        self.reports.insert(epoch, (report, stopped));
        self.order(WriteOrder::Epoch(epoch, sections, self.version.clone()))
    }

    fn task_id(&self, id: SubtaskId) -> Option<u16> {
        deploy::task_id(&self.context.graph, self.version.as_deref()?, id.task)
    }

    fn on_written(&mut self, written: Written) -> Result<()> {
        if let Some(e) = written.lost {
            return Err(e);
        }
        self.bytes_written += written.bytes;
        self.puts += written.puts;
        for (id, run) in written.runs {
            self.unlisted_runs.push(run.clone());
            self.control(id, TaskControl::Flushed(run))?;
        }
        match written.epoch {
            None => {}
            Some((epoch, Some(error))) => {
                self.reports.remove(&epoch);
                let failure = Some(failure_to_proto(&error));
                self.tell(Message::CheckpointFailed(CheckpointFailed { job: self.job(), epoch: epoch.0, failure }));
            }
            Some((epoch, None)) => {
                if let Some((mut report, stopped)) = self.reports.remove(&epoch) {
                    let until = |e: Epoch| e <= epoch;
                    report.runs = self
                        .unlisted_runs
                        .iter()
                        .filter(|r| until(r.interval.max.epoch))
                        .map(|r| r.to_proto())
                        .collect();
                    // A planted bug: what failed epochs have left is not taken along.
                    let until = |e: Epoch| until(e) && (e == epoch || !bug_is_planted(13));
                    report.committables =
                        self.uncommitted.iter().filter(|c| until(c.epoch)).map(committable_to_proto).collect();
                    report.bytes_written = std::mem::take(&mut self.bytes_written);
                    report.puts = std::mem::take(&mut self.puts);
                    let stood = stopped.map(|since| self.context.env.now().since(since)).unwrap_or_default();
                    report.stopped_ms_ago = stood.as_millis() as u64;
                    report.counters = Some(self.context.gauges.counters());
                    self.tell(Message::Report(report));
                    kill_point("worker-reported");
                }
            }
        }
        Ok(())
    }

    // ---- versions

    fn on_version(&mut self, record: &VersionRecord) -> Result<()> {
        let version = Arc::new(deploy::version_view(&self.context.graph, record)?);
        let is_listed = |r: &mut Arc<Run>| r.interval.max.epoch <= version.epoch;
        let listed: Vec<_> = self.unlisted_runs.extract_if(.., is_listed).collect();
        self.context.gauges.uses(record.number, &version, &listed);
        drop(listed);
        let (mine, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.uncommitted).into_iter().partition(|c| c.epoch <= version.epoch);
        self.uncommitted = later;
        // A planted bug: who takes subtasks away takes along what they have left to commit.
        let stays = |c: &Committable| c.subtask.0 < version.assignment.parallelism() || !bug_is_planted(30);
        if !mine.is_empty() {
            let since = self.context.env.now();
            self.to_commit.extend(mine.into_iter().filter(stays).map(|c| (c, since)));
        }
        self.commit_next()?;
        let reassigned = version.assignment.id != self.assignment.id;
        if reassigned {
            self.assignment = version.assignment.clone();
            self.upcoming = None;
            self.tasks.retain(|_, task| !task.leaves);
            self.share_pins();
            // Nobody counts a worker without subtasks among those that read.
            for mut c in self.compacting.extract_if(.., |c| !self.tasks.contains_key(&c.subtask)) {
                // One that is done, and of which nobody will hear.
                if let Some(Ok(Ok(merged))) = (&mut c.running).now_or_never() {
                    merged.outputs.iter().for_each(|run| self.context.state.release(run));
                }
                let e = Error::canceled("the subtask is no longer here");
                self.context.worker.tell(merging::given_up(c.order.job, c.order.number, &e));
            }
            self.tell_held();
            self.serving.retain(|id, _| *id >= self.assignment.id);
            self.serving.entry(self.assignment.id).or_default();
        }
        for id in self.tasks.keys().copied().collect::<Vec<_>>() {
            self.control(id, TaskControl::Version(version.clone()))?;
        }
        self.warming.newest(&version);
        if let Some(old) = self.version.replace(version.clone()) {
            let shrunk = shrunk(&old.runs, &version.runs, &self.owned());
            // Nothing is read ahead amid a rescale.
            let refills = !self.holding && !shrunk.is_empty();
            let hot = refills.then(|| self.context.state.hot_spans(shrunk.iter().map(|s| &s.gone)));
            shrunk.iter().for_each(|s| self.context.state.forget_outside(&s.gone, &s.left.clip));
            if self.context.state.keeps_state() {
                self.retired.extend(shrunk.into_iter().map(|s| (record.number, s.left)));
                self.keep_what_lives(&version, reassigned);
            }
            if let Some(hot) = hot {
                self.warming.after_compaction(&self.context, &old, &version, &self.owned(), &Arc::new(hot));
            }
        }
        self.let_go_of_outputs(&version);
        self.serve_when_all(version.assignment.id);
        Ok(())
    }

    /// Of state that is kept here: what no version in use lists goes, and so does what others own now; what others have
    /// written comes.
    fn keep_what_lives(&mut self, version: &Arc<VersionView>, reassigned: bool) {
        self.let_go_of_retired();
        let (state, owned) = (&self.context.state, self.owned());
        if reassigned {
            version.runs.iter().flatten().for_each(|run| state.release_outside(run, &owned));
        }
        if !self.holding {
            self.warming.settle(&self.context, version, &owned);
        }
    }

    /// What no version in use shows any more goes.
    fn let_go_of_retired(&mut self) {
        if self.retired.is_empty() {
            return;
        }
        let oldest = self.context.gauges.oldest_in_use().map_or(0, |in_use| in_use.version);
        let owned = self.owned();
        let unused = self.retired.extract_if(.., |(since, _)| *since <= oldest);
        unused.for_each(|(_, run)| self.context.state.release_outside(&run, &owned));
    }

    /// What a compaction wrote here and no version will list is not kept.
    fn let_go_of_outputs(&mut self, version: &VersionView) {
        // One that was applied, or that no longer fits, has at least one input that is not live as it was.
        let fits = |of: &mut Outputs| {
            let live = |i: &Arc<Run>| version.runs.iter().flatten().any(|r| merging::is_as_ordered(r, i, &of.ranges));
            of.inputs.iter().all(live)
        };
        for of in self.outputs.extract_if(.., |of| !fits(of)) {
            let listed = |run: &Run| version.runs.iter().flatten().any(|r| r.identity() == run.identity());
            of.runs.iter().filter(|run| !listed(run)).for_each(|run| self.context.state.release(run));
        }
    }

    /// Once the version of the assignment stands and every subtask here serves it, the coordinator is told.
    fn serve_when_all(&mut self, assignment: AssignmentId) {
        let all = |s: &Served| s.subtasks.len() >= self.tasks.len();
        if assignment != self.assignment.id || !self.serving.get(&assignment).is_some_and(all) {
            return;
        }
        let Some(served) = self.serving.remove(&assignment) else { return };
        self.tell(Message::Serving(Serving {
            job: self.job(),
            assignment_id: assignment.0,
            pause_ms: served.pause_ms,
            counters: Some(self.context.gauges.counters()),
            open_ms: served.open_ms,
        }));
    }

    /// One batch at a time: what a slow sink has not committed waits here, and in every version, and holds nothing up.
    fn commit_next(&mut self) -> Result<()> {
        if self.committing || self.to_commit.is_empty() {
            return Ok(());
        }
        self.committing = true;
        let batch = std::mem::take(&mut self.to_commit);
        kill_point("worker-told");
        self.committer.try_send(batch).map_err(|_| Error::internal("the committer has ended"))
    }

    fn on_committed(&mut self, done: Vec<Committed>, failed: Option<Error>) -> Result<()> {
        // Nothing behind a commit that can never be is committed: the job ends.
        self.committing = failed.is_some();
        let committables = done
            .iter()
            .map(|(c, took)| CommittableId {
                sink_uid: c.sink_uid.clone(),
                epoch: c.epoch.0,
                subtask: c.subtask.0,
                sequence: c.sequence,
                took_us: Some(took.as_micros() as u64),
            })
            .collect();
        let failure = failed.as_ref().map(failure_to_proto);
        kill_point("worker-answered");
        self.tell(Message::Confirmed(Confirmed { job: self.job(), committables, failure }));
        kill_point("worker-confirmed");
        self.commit_next()
    }

    // ---- compaction

    fn hold_compactions(&mut self, hold: bool) -> Result<()> {
        self.holding = hold;
        self.owes_held = hold;
        self.tell_held();
        self.warming.stop();
        if let Some(version) = self.version.clone().filter(|_| !hold) {
            self.warming.behind(&self.context, &version, &self.owned());
        }
        Ok(())
    }

    fn tell_held(&mut self) {
        if self.owes_held && self.compacting.is_empty() {
            self.owes_held = false;
            self.tell(Message::CompactionsHeld(CompactionsHeld { job: self.job() }));
        }
    }

    /// Merges what the coordinator has picked for a subtask here.
    fn compact(&mut self, order: Box<Compact>) -> Result<()> {
        let version = self.version.clone();
        let of_task =
            |v: &Arc<VersionView>| v.task_ids.iter().position(|t| t.is_some_and(|t| u32::from(t.0) == order.task_id));
        let subtask = version.as_ref().and_then(of_task).map(|task| SubtaskId { task, index: order.subtask });
        let here = subtask.filter(|id| self.tasks.contains_key(id) && !self.holding);
        let (Some(id), Some(version)) = (here, version) else {
            let e = Error::canceled("its key groups are not, or not only, here");
            self.tell(merging::given_up(order.job, order.number, &e));
            return Ok(());
        };
        let ranges = ranges_from_proto(&order.ranges)?;
        // Those of the version, as long as it lists them: who holds them says so by the version in use.
        let listed = |input: Arc<Run>| {
            let same = |r: &&Arc<Run>| merging::is_as_ordered(r, &input, &ranges);
            version.runs[id.task].iter().find(same).cloned().unwrap_or(input)
        };
        let inputs: Vec<Arc<Run>> = merging::inputs(&order)?.into_iter().map(listed).collect();
        let (state, throttle) = (self.context.state.clone(), self.context.worker.stores.throttle());
        let of = order.clone();
        let running = self
            .context
            .env
            .run(Lane::Background, "compaction", async move { merging::merge(&state, &of, &inputs, &throttle).await });
        self.compacting.push(Compacting { subtask: id, order, running });
        Ok(())
    }

    fn on_compacted(&mut self, i: usize, outcome: Result<Merged>) -> Result<()> {
        let done = self.compacting.remove(i);
        if let Ok(merged) = &outcome
            && self.context.state.keeps_state()
        {
            let (inputs, ranges) = (merging::inputs(&done.order)?, ranges_from_proto(&done.order.ranges)?);
            self.outputs.push(Outputs { inputs, ranges, runs: merged.outputs.clone() });
        }
        match outcome {
            Err(e) if e.kind() == ErrorKind::Corrupt => return Err(e),
            outcome => self.tell(merging::report(*done.order, outcome)),
        }
        self.tell_held();
        Ok(())
    }
}

impl Drop for JobActor {
    fn drop(&mut self) {
        // No version lists them, and as far as this worker knows none will.
        self.unlisted_runs.iter().for_each(|run| self.context.state.forget(run));
        // Writers, compactions and warm-ups end after this: what they would keep yet is refused.
        self.context.state.release_all();
    }
}

/// The assignment that holds until the next record: with a join, the one that stood before.
fn current_assignment(deploy: &Deploy) -> Result<Assignment> {
    let current = if deploy.join { &deploy.previous } else { &deploy.assignment };
    assignment_from_proto(current.as_ref().unwrap_or(&Default::default()))
}

/// Waits for any of the running compactions.
async fn next_compaction(compacting: &mut [Compacting]) -> (usize, Result<Merged>) {
    use std::future::Future;
    use std::task::Poll;
    futures::future::poll_fn(|cx| {
        for (i, c) in compacting.iter_mut().enumerate() {
            if let Poll::Ready(outcome) = std::pin::Pin::new(&mut c.running).poll(cx) {
                return Poll::Ready((i, outcome.and_then(|o| o)));
            }
        }
        Poll::Pending
    })
    .await
}

/// How many control messages a subtask holds.
pub(crate) const CONTROL: usize = TASK_QUEUE;
