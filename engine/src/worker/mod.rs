//! A worker: offers slots to a coordinator, runs the subtasks that it is told to, holds nothing that matters.
//!
//! Order of events: it opens its data plane, then a session with the first coordinator that answers. A session that
//! ends, or that brings nothing for the heart-beat time-out, is followed by a new one, with the next address. While it
//! has no coordinator its jobs go on and hold their commits; a new session ends them, since the coordinator has
//! deployed them elsewhere by then. When it is asked to leave it ends once the coordinator has let it go ([`leave`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millstream_common::env::AbortOnDrop;
use millstream_common::kill_points::kill_point;
use millstream_common::planted::bug_is_planted;
use millstream_common::{Env, Error, Execution, Generation, Lane, Result};
use millstream_proto::control::{
    CommitNow, CommittableId, Compact, Confirmed, Heartbeat, Hello, JobRef, ProcessUsage, TaskFailed, ToCoordinator,
    ToWorker, to_coordinator, to_worker,
};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::convert::{committable_from_proto, failure_to_proto};
use crate::dataflow::{JobContext as BuildContext, JobRegistry};
use crate::settings::Settings;
use crate::sink::SinkObjects;
use crate::transport::{Transport, WorkerLink};

pub(crate) mod channels;
mod committer;
mod compactor;
pub(crate) mod deploy;
mod gauges;
mod heat;
mod in_use;
mod job;
pub mod leave;
pub mod ledger;
mod merging;
mod shrunk;
pub mod stores;
mod warming;
mod writer;

use channels::Channels;
use committer::Committers;
use compactor::Compactor;
use job::{JobHandle, JobMessage};
pub use leave::{Departure, LeaveRequest};
use leave::{GRACE, Leaving};
pub use ledger::WorkerLedger;
pub use stores::Stores;

/// What the operating system says about this process; implemented by the binary, constant in simulations.
pub type UsageFn = Arc<dyn Fn() -> ProcessUsage + Send + Sync>;

/// The protocol of the control plane that this release speaks.
pub const PROTOCOL: u32 = 3;

/// What a process of a cluster offers its coordinator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Slots for subtasks.
    #[default]
    Worker,
    /// Slots for compactions of any job.
    Compactor,
}

impl Role {
    /// What such a process is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Compactor => "compactor",
        }
    }
}

/// Settings of a worker, or of a compactor.
#[derive(Clone)]
pub struct WorkerOptions {
    /// Unique per start of a process.
    pub name: String,
    /// What its slots are for.
    pub role: Role,
    /// Subtasks of each task that it can run, or compactions at a time.
    pub slots: u32,
    /// Addresses of coordinators, tried in turn.
    pub coordinators: Vec<String>,
    /// The process's number, for people.
    pub pid: u32,
    /// From one heart-beat to the next.
    pub heartbeat_interval: Duration,
    /// A coordinator that is silent for so long is lost.
    pub heartbeat_timeout: Duration,
    /// What the process has used.
    pub usage: UsageFn,
    /// Asks it to leave.
    pub leave: LeaveRequest,
    /// Where it counts what it does.
    pub ledger: WorkerLedger,
    /// Once asked, it waits for so long for slots elsewhere, and for a coordinator.
    pub drain_timeout: Duration,
}

/// What all parts of a worker share.
pub(crate) struct WorkerContext {
    pub(crate) env: Env,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) registry: Arc<JobRegistry>,
    pub(crate) stores: Arc<dyn Stores>,
    pub(crate) channels: Channels,
    pub(crate) data_address: String,
    pub(crate) slots: u32,
    pub(crate) ledger: WorkerLedger,
    session: Mutex<Option<mpsc::Sender<ToCoordinator>>>,
}

impl WorkerContext {
    /// Sends to the coordinator of the present session. Without one the message is dropped: the coordinator deploys
    /// anew. A session that does not take messages ends, so that it does so then, too.
    pub(crate) fn tell(&self, message: to_coordinator::Message) {
        let mut session = self.session.lock();
        if let Some(tx) = &*session
            && tx.try_send(ToCoordinator { message: Some(message) }).is_err()
        {
            tracing::warn!("the coordinator does not take messages: the session ends");
            *session = None;
        }
    }

    pub(crate) fn job_context(&self, name: &str) -> BuildContext {
        BuildContext::new(self.env.clone(), name)
    }
}

struct Worker {
    options: WorkerOptions,
    context: Arc<WorkerContext>,
    jobs: BTreeMap<String, JobHandle>,
    /// Recoveries that are being committed, by job.
    recovering: BTreeMap<String, AbortOnDrop>,
    /// Of a compactor.
    compactor: Option<Compactor>,
    generation: Generation,
    leaving: Leaving,
}

/// How a session goes on.
enum Turn {
    On,
    LetGo(Departure),
}

/// Runs a worker or compactor until it is dropped, or until it was asked to leave and was let go. A worker ends with an
/// error when its data plane cannot be opened, or when it was not let go in time.
pub async fn run_worker(
    options: WorkerOptions,
    transport: Arc<dyn Transport>,
    registry: Arc<JobRegistry>,
    stores: Arc<dyn Stores>,
    env: Env,
) -> Result<Departure> {
    let channels = Channels::default();
    let is_compactor = options.role == Role::Compactor;
    // Nobody sends rows to a compactor.
    let (data_address, _accepting) = if is_compactor {
        (String::new(), None)
    } else {
        let (data_address, mut connections) = transport.listen_data().await?;
        let arriving = channels.clone();
        let accepting = env.spawn(Lane::Io, "data plane", async move {
            while let Some(c) = connections.recv().await {
                arriving.arrived(c.key, c.elements);
            }
        });
        (data_address, Some(AbortOnDrop(accepting)))
    };
    let slots = options.slots;
    let context = Arc::new(WorkerContext {
        env,
        transport,
        registry,
        stores,
        channels,
        data_address,
        slots,
        ledger: options.ledger.clone(),
        session: Mutex::new(None),
    });
    let mut worker = Worker {
        options,
        compactor: is_compactor.then(|| Compactor::new(context.clone(), slots)),
        context,
        jobs: BTreeMap::new(),
        recovering: BTreeMap::new(),
        generation: Generation(0),
        leaving: Leaving::default(),
    };
    worker.run().await
}

impl Worker {
    async fn run(&mut self) -> Result<Departure> {
        let (context, leave) = (self.context.clone(), self.options.leave.clone());
        let (timeout, is_compactor) = (self.options.drain_timeout, self.compactor.is_some());
        let overdue = async {
            leave.asked().await;
            if is_compactor {
                // What it has not merged by then is for others.
                context.env.sleep(timeout).await;
                return Ok(Departure { waiting: Vec::new() });
            }
            context.env.sleep(timeout + GRACE).await;
            let has_session = context.session.lock().is_some();
            Err(if has_session { leave::held(timeout) } else { leave::unreachable(timeout) })
        };
        millstream_common::select! {
            outcome = self.serve() => outcome,
            late = overdue => late,
        }
    }

    async fn serve(&mut self) -> Result<Departure> {
        let mut next = 0;
        loop {
            if self.options.leave.is_asked() {
                // From then on it counts, whether a coordinator is there to be told or not.
                self.leaving.begin(&self.context.env);
            }
            // Without a session nothing can be given to it any more.
            if self.options.leave.is_asked() && self.jobs.is_empty() && self.recovering.is_empty() {
                return Ok(Departure { waiting: Vec::new() });
            }
            let address = self.options.coordinators[next % self.options.coordinators.len()].clone();
            next += 1;
            match self.context.transport.connect_coordinator(&address).await {
                Ok(link) => {
                    let outcome = self.session(link).await;
                    *self.context.session.lock() = None;
                    match outcome {
                        Ok(departure) => return self.gone(departure),
                        Err(e) => tracing::info!("the session with the coordinator at {address} ended: {e}"),
                    }
                }
                Err(e) => tracing::debug!("no coordinator at {address}: {e}"),
            }
            self.context.env.sleep(Duration::from_millis(200)).await;
        }
    }

    /// Whoever lets a worker go has ended everything that it ran.
    fn gone(&self, departure: Departure) -> Result<Departure> {
        match self.jobs.keys().chain(self.recovering.keys()).next() {
            None => Ok(departure),
            Some(job) => {
                Err(Error::internal(format!("this worker was let go while it works for job {job}")).code(9114))
            }
        }
    }

    async fn session(&mut self, mut link: WorkerLink) -> Result<Departure> {
        let mut told = self.options.leave.is_asked();
        if told {
            self.leaving.begin(&self.context.env);
        }
        let (slots, compaction_slots) = match self.options.role {
            Role::Worker => (self.options.slots, 0),
            Role::Compactor => (0, self.options.slots),
        };
        let hello = Hello {
            data_address: self.context.data_address.clone(),
            slots,
            compaction_slots,
            pid: self.options.pid,
            worker: self.options.name.clone(),
            generation_seen: self.generation.0,
            protocol: PROTOCOL,
            leave: self.leaving.message(&self.context.env, self.options.drain_timeout),
        };
        self.send(&link, to_coordinator::Message::Hello(hello)).await?;
        let silence = self.options.heartbeat_timeout;
        let first = self.context.env.timeout(silence, "the coordinator's welcome", link.rx.recv()).await?;
        match first.and_then(|m| m.message) {
            Some(to_worker::Message::Welcome(w)) if w.generation >= self.generation.0 => {
                self.generation = Generation(w.generation);
            }
            Some(to_worker::Message::Welcome(w)) => {
                return Err(Error::fenced(format!(
                    "it is of generation {}, {} was seen",
                    w.generation, self.generation
                )));
            }
            _ => return Err(Error::unavailable("it did not welcome this worker").code(2160)),
        }
        // Whoever leads deploys anew: what ran under the last session ends here.
        if !bug_is_planted(20) {
            self.stop_all();
        }
        *self.context.session.lock() = Some(link.tx.clone());
        let mut heard = self.context.env.now();
        let mut beat_at = heard + self.options.heartbeat_interval;
        let leave = self.options.leave.clone();
        loop {
            // Messages that come all the time must not put the heart-beat off.
            let tick = self.context.env.sleep(beat_at.since(self.context.env.now()));
            millstream_common::select! {
                m = link.rx.recv() => match m {
                    Some(m) => {
                        heard = self.context.env.now();
                        if let Turn::LetGo(departure) = self.on_message(m) {
                            return Ok(departure);
                        }
                    }
                    None => return Err(Error::unavailable("the connection closed").code(2161)),
                },
                () = leave.asked(), if !told => {
                    told = true;
                    self.leaving.begin(&self.context.env);
                    if let Some(leave) = self.leaving.message(&self.context.env, self.options.drain_timeout) {
                        self.context.tell(to_coordinator::Message::Leave(leave));
                    }
                }
                () = tick => {
                    beat_at = self.context.env.now() + self.options.heartbeat_interval;
                    self.heartbeat();
                    if self.context.session.lock().is_none() {
                        return Err(Error::unavailable("it takes no messages").code(2163));
                    }
                    if self.context.env.now().since(heard) > silence {
                        return Err(Error::unavailable(format!("it was silent for {silence:?}")).code(2162));
                    }
                }
            }
        }
    }

    async fn send(&self, link: &WorkerLink, message: to_coordinator::Message) -> Result<()> {
        link.tx
            .send(ToCoordinator { message: Some(message) })
            .await
            .map_err(|_| Error::unavailable("the connection closed").code(2161))
    }

    fn heartbeat(&mut self) {
        let mut jobs: Vec<_> = self.jobs.values().map(|j| j.gauges.counters()).collect();
        jobs.extend(self.compactor.iter_mut().flat_map(Compactor::counters));
        let process = Some((self.options.usage)());
        let in_use = self.jobs.values().filter_map(|j| j.gauges.oldest_in_use()).collect();
        let beat = Heartbeat { generation_seen: self.generation.0, process, jobs, in_use };
        self.context.tell(to_coordinator::Message::Heartbeat(beat));
        // One that has no room for it has other messages, and will see the next.
        self.jobs.values().for_each(|j| drop(j.inbox.try_send(JobMessage::Beat)));
    }

    fn stop_all(&mut self) {
        for id in self.jobs.keys() {
            self.context.channels.forget(id);
        }
        self.jobs.clear();
        self.recovering.clear();
        self.compactor.iter_mut().for_each(Compactor::stop_all);
    }

    fn stop(&mut self, id: &str) {
        if self.jobs.remove(id).is_some() {
            self.context.channels.forget(id);
        }
        self.recovering.remove(id);
    }

    fn on_message(&mut self, m: ToWorker) -> Turn {
        use to_worker::Message;
        let Some(message) = m.message else { return Turn::On };
        if let Some(compactor) = &mut self.compactor {
            match message {
                Message::Compact(order) => compactor.compact(order),
                Message::StopJob(stop) => compactor.stop(&stop),
                Message::LetGo(l) => return Turn::LetGo(Departure { waiting: l.waiting }),
                // Nothing else is for a process without subtasks.
                _ => {}
            }
            return Turn::On;
        }
        match message {
            Message::Deploy(d) if d.join && self.runs(d.job.as_ref()) => {
                self.pass_on(d.job.clone(), JobMessage::Join(Box::new(d)));
            }
            Message::Deploy(d) => {
                let job = d.job.clone().unwrap_or_default();
                self.stop(&job.id);
                match job::start(self.context.clone(), d) {
                    Ok(handle) => drop(self.jobs.insert(job.id.clone(), handle)),
                    Err(e) => {
                        let failure = Some(failure_to_proto(&e));
                        let failed = TaskFailed { job: Some(job), task_uid: String::new(), subtask: 0, failure };
                        self.context.tell(to_coordinator::Message::TaskFailed(failed));
                    }
                }
            }
            Message::InjectBarrier(i) => self.pass_on(i.job.clone(), JobMessage::Inject(i)),
            Message::VersionCommitted(v) => {
                self.pass_on(v.job, JobMessage::Version(Box::new(v.record.unwrap_or_default())));
            }
            Message::CommitNow(c) => self.commit_now(c),
            Message::StopJob(s) => {
                let job = s.job.unwrap_or_default();
                // One for an older deployment must not touch what the newer one waits for.
                let runs = self.jobs.get(&job.id).map(|j| &j.job);
                if runs.is_none_or(|j| (j.generation, j.execution) <= (job.generation, job.execution)) {
                    self.stop(&job.id);
                }
            }
            Message::LiveSplits(l) => {
                let counts = l.counts.into_iter().map(|c| (c.source_uid, c.live)).collect();
                self.pass_on(l.job, JobMessage::LiveSplits(counts));
            }
            Message::AlignWatermarks(a) => {
                let least = a.groups.into_iter().map(|g| (g.group, g.least_ms)).collect();
                self.pass_on(a.job, JobMessage::Align(least));
            }
            Message::AddSplits(a) => self.pass_on(a.job, JobMessage::AddSplits(a.splits)),
            Message::Compact(order) => self.compact(order),
            Message::HoldCompactions(h) => self.pass_on(h.job, JobMessage::HoldCompactions(h.hold)),
            Message::EndOfInput(e) => self.pass_on(e.job, JobMessage::EndOfInput),
            Message::PrepareRescale(p) => self.pass_on(p.job.clone(), JobMessage::Prepare(Box::new(p))),
            Message::LetGo(l) => return Turn::LetGo(Departure { waiting: l.waiting }),
            Message::Welcome(_) | Message::Ping(_) => {}
        }
        Turn::On
    }

    /// Whoever asks for a compaction of a job that does not run here is told so.
    fn compact(&mut self, order: Compact) {
        if !self.runs(order.job.as_ref()) {
            let e = Error::canceled("the job does not run here");
            return self.context.tell(merging::given_up(order.job, order.number, &e));
        }
        self.pass_on(order.job.clone(), JobMessage::Compact(Box::new(order)));
    }

    fn runs(&self, job: Option<&JobRef>) -> bool {
        job.is_some_and(|j| self.jobs.get(&j.id).is_some_and(|h| h.job == *j))
    }

    /// A message for another deployment than the one that runs is dropped.
    fn pass_on(&mut self, job: Option<JobRef>, message: JobMessage) {
        let Some(handle) = job.and_then(|j| self.jobs.get(&j.id).filter(|h| h.job == j)) else { return };
        if handle.inbox.try_send(message).is_err() {
            tracing::warn!("job {} does not take its messages: it is stopped here", handle.job.id);
            let failure = Some(failure_to_proto(&Error::unavailable("the job does not take its messages").code(7023)));
            let job = handle.job.clone();
            let failed = TaskFailed { job: Some(job.clone()), task_uid: String::new(), subtask: 0, failure };
            self.context.tell(to_coordinator::Message::TaskFailed(failed));
            self.stop(&job.id);
        }
    }

    /// Commits what a version lists, before the job is deployed again.
    fn commit_now(&mut self, order: CommitNow) {
        let job = order.job.clone().unwrap_or_default();
        self.stop(&job.id);
        let context = self.context.clone();
        let id = job.id.clone();
        let task = self.context.env.spawn(Lane::Io, "recover commits", async move {
            let failure = recover_commits(&context, &order).await.err();
            let failed = failure.is_some();
            let committables = if failed { Vec::new() } else { order.committables.iter().map(id_of).collect() };
            let failure = failure.as_ref().map(failure_to_proto);
            context.tell(to_coordinator::Message::Confirmed(Confirmed { job: Some(job), committables, failure }));
        });
        self.recovering.insert(id, AbortOnDrop(task));
    }
}

fn id_of(c: &millstream_proto::version::Committable) -> CommittableId {
    let (epoch, subtask, sequence) = (c.epoch, c.subtask, c.sequence);
    CommittableId { sink_uid: c.sink_uid.clone(), epoch, subtask, sequence, took_us: None }
}

async fn recover_commits(context: &WorkerContext, order: &CommitNow) -> Result<()> {
    let spec = order.spec.clone().unwrap_or_default();
    let graph = context.registry.build(&spec.job, &spec.args, &context.job_context(&spec.name))?.graph;
    let job = order.job.clone().unwrap_or_default();
    let (generation, execution) = (Generation(job.generation), Execution(job.execution));
    let store = context.stores.job_store(&spec.name, &Settings::from_job_map(&spec.settings)?)?;
    let objects = SinkObjects::new(context.env.clone(), store, generation, execution);
    let mut committers = Committers::new(context.env.clone(), &graph, Some(objects))?;
    let mut committables: Vec<_> = order.committables.iter().map(committable_from_proto).collect();
    committables.sort_by_key(|c| (c.epoch, c.subtask, c.sequence));
    for c in &mut committables {
        if bug_is_planted(16) {
            // Planted: what may have been committed, with its acknowledgement lost, is repeated as a new epoch.
            c.epoch = c.epoch.next();
        }
        committers.commit(c).await?;
        kill_point("recovery-committed");
    }
    if order.clean_up {
        for committer in committers.all() {
            committer.clean_up(generation, execution).await?;
        }
    }
    Ok(())
}
