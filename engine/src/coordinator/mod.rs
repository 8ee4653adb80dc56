//! The coordinator: keeps the sessions of workers, carries out what the masters of jobs decide, answers clients.
//!
//! It keeps nothing on disk: jobs, their versions and the leader's generation are in the object store. In a cluster it
//! first becomes the leader ([`leader`]); in one process there is nobody to agree with. Either way a job belongs to
//! whoever wrote its newest version record ([`open`], [`record`]).
//!
//! It is an actor with one bounded inbox. Object I/O runs beside it and comes back as an event.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millstream_common::env::{AbortOnDrop, Moment};
use millstream_common::kill_points::kill_point;
use millstream_common::{Env, Error, ErrorKind, Generation, Lane, Result};
use millstream_objects::Store;
use millstream_proto::control::{
    ClientReply, Failure, Fork, JobRef, JobSpec, LeaderInfo, Leave, LetGo, Ping, ProcessUsage, Submit, ToCoordinator,
    ToWorker, Welcome, client_reply, client_request, to_coordinator, to_worker,
};
use millstream_state_store::version::delta::stored;
use millstream_state_store::version::{CommitOutcome, VersionLog};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::convert::failure_to_proto;
use crate::dataflow::JobRegistry;
use crate::graph::JobGraph;
use crate::source::Discovery;
use crate::transport::{Arrival, ClientCall, CoordinatorLink, Transport};
use crate::worker::{PROTOCOL, Role, Stores, UsageFn};

pub mod assignment;
mod collector;
mod discovery;
pub mod fork;
mod leader;
mod master;
mod open;
pub mod record;
mod statistics;
mod status;
pub mod versions;

use collector::Collector;
use discovery::Discoverer;
use fork::{ForkOrder, Forked};
use leader::{Cluster, Listing};
use master::{Action, JobMaster, Timer, Turn, WorkerFacts};
use open::{From, OpenRequest, Opened};
use status::StatusFacts;

/// Settings of a coordinator.
#[derive(Clone)]
pub struct CoordinatorOptions {
    /// Where clients and workers reach it; written into the leader's record.
    pub address: String,
    /// The place of all state, for messages.
    pub state_url: String,
    /// In a cluster: the place of all state. `None` in one process: no election, no list of jobs.
    pub cluster: Option<Store>,
    /// From one ping of a worker to the next.
    pub heartbeat_interval: Duration,
    /// A worker that is silent for so long is lost.
    pub heartbeat_timeout: Duration,
    /// What this process has used.
    pub usage: UsageFn,
    /// This process's number, so that a worker in it is not counted twice.
    pub pid: u32,
}

struct WorkerSession {
    session: u64,
    tx: mpsc::Sender<ToWorker>,
    data_address: String,
    slots: u32,
    /// Of a compactor: how many compactions it runs at a time.
    compaction_slots: u32,
    heard: Moment,
    /// It leaves, and waits until then for slots elsewhere.
    leaving: Option<Moment>,
    /// It was told that nothing holds it any more.
    let_go: bool,
    usage: ProcessUsage,
    _reader: AbortOnDrop,
}

impl WorkerSession {
    fn role(&self) -> Role {
        if self.compaction_slots > 0 { Role::Compactor } else { Role::Worker }
    }
}

struct Job {
    master: JobMaster,
    graph: JobGraph,
    log: VersionLog,
    store: Store,
    started: Moment,
    already_finished: bool,
    /// Usage of processes that have worked for the job, by process, and the CPU time that each had used before.
    usage: BTreeMap<String, (ProcessUsage, f64)>,
    /// CPU time that this process had used before, seconds.
    own_cpu_before_s: f64,
    ended: Option<Value>,
    /// The cluster knows that it has ended: nobody goes on with it any more.
    end_recorded: bool,
    /// Answers that wait for that.
    held: Vec<(u64, Result<()>)>,
    /// As long as it runs.
    collector: Option<Collector>,
    discoverer: Option<Discoverer>,
    /// What was collected.
    garbage: Value,
    /// By worker: the oldest version that it may read from, of which deployment.
    in_use: BTreeMap<String, (JobRef, u64)>,
}

impl Job {
    /// The oldest version that a worker of the present deployment may read from, or whose runs somebody merges for it.
    fn oldest_in_use(&self) -> Option<u64> {
        let present = self.master.job_ref();
        let of = |w: &String| self.in_use.get(w).filter(|(job, _)| *job == present).map(|(_, version)| *version);
        // Who was told nothing yet will start from the newest record.
        let read = self.master.workers_in_use().into_iter().map(|w| of(&w).unwrap_or(self.master.record.number));
        read.chain(self.master.book.oldest_version()).min()
    }

    /// A worker is told to read from a version; it may still read from older ones.
    fn told(&mut self, worker: &str, job: &JobRef, version: u64) {
        if self.in_use.get(worker).is_none_or(|(there, _)| there != job) {
            self.in_use.insert(worker.to_owned(), (job.clone(), version));
        }
    }

    /// A worker says which version is the oldest that it may read from. That only rises.
    fn uses(&mut self, worker: &str, job: JobRef, version: u64) {
        if let Some((there, of)) = self.in_use.get_mut(worker)
            && *there == job
        {
            *of = version.max(*of);
        }
    }
}

enum Event {
    Worker(u64, Box<ToCoordinator>),
    WorkerGone(u64),
    Opened {
        request: Box<OpenRequest>,
        result: Box<Result<Opened>>,
        reply: Option<oneshot::Sender<ClientReply>>,
    },
    Reopen {
        request: Box<OpenRequest>,
    },
    Discovered {
        id: String,
        source_uid: String,
        found: Discovery,
    },
    Forked {
        fork: Fork,
        settings: BTreeMap<String, String>,
        result: Result<Forked>,
        reply: oneshot::Sender<ClientReply>,
    },
    EndRecorded {
        id: String,
    },
    Committed {
        id: String,
        number: u64,
        result: Result<CommitOutcome>,
    },
    /// A subtask missed an object; whether that is because somebody else leads.
    Missed {
        id: String,
        job: JobRef,
        worker: String,
        message: Box<to_coordinator::Message>,
        successor: Result<bool>,
    },
    Timer {
        id: String,
        timer: Timer,
    },
    Succeeded,
}

struct Coordinator {
    env: Env,
    options: CoordinatorOptions,
    transport: Arc<dyn Transport>,
    registry: Arc<JobRegistry>,
    stores: Arc<dyn Stores>,
    cluster: Option<Cluster>,
    generation: Generation,
    workers: BTreeMap<String, WorkerSession>,
    /// Sessions that have not said hello.
    strangers: BTreeMap<u64, (mpsc::Sender<ToWorker>, AbortOnDrop)>,
    pids: BTreeMap<String, u32>,
    jobs: BTreeMap<String, Job>,
    /// Ended before this coordinator led: their last status.
    past: BTreeMap<String, Value>,
    /// Ids of the jobs that are being opened, and whether an earlier leader had them, by name.
    opening: BTreeMap<String, (String, bool)>,
    replies: BTreeMap<u64, (String, bool, oneshot::Sender<ClientReply>)>,
    next_number: u64,
    events: mpsc::Sender<Event>,
    fenced: Option<Error>,
    /// When it last asked the store whether it still leads.
    checked: Moment,
}

/// How often a leader asks whether it still is one.
const LEADER_CHECK: Duration = Duration::from_secs(10);

/// From one try to open a job, or to record its end, to the next; each has itself tried for long.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// The number of the error that says that an object is not there.
const OBJECT_ABSENT: u32 = 4100;
/// No worker that leaves is waited for longer.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Events that wait before their senders do.
const INBOX: usize = 4_096;

/// Runs a coordinator on what arrives for it. Ends with a `Fenced` error when a newer leader has taken over, or when
/// nothing can arrive any more.
pub async fn run_coordinator(
    options: CoordinatorOptions,
    mut arrivals: mpsc::Receiver<Arrival>,
    transport: Arc<dyn Transport>,
    registry: Arc<JobRegistry>,
    stores: Arc<dyn Stores>,
    env: Env,
) -> Result<()> {
    let (events, mut inbox) = mpsc::channel(INBOX);
    let cluster = options.cluster.as_ref().map(|root| Cluster::new(root, env.clone()));
    let mut c = Coordinator {
        env: env.clone(),
        transport,
        registry,
        stores,
        cluster,
        generation: Generation(1),
        workers: BTreeMap::new(),
        strangers: BTreeMap::new(),
        pids: BTreeMap::new(),
        jobs: BTreeMap::new(),
        past: BTreeMap::new(),
        opening: BTreeMap::new(),
        replies: BTreeMap::new(),
        next_number: 0,
        events,
        fenced: None,
        checked: env.now(),
        options,
    };
    // It may be paused before it has begun.
    let mut last_tick = env.now();
    c.take_lead().await?;
    // When all that had come was dealt with.
    let mut caught_up = env.now();
    loop {
        if let Some(fenced) = c.fenced.take() {
            return Err(fenced);
        }
        let tick = env.sleep(c.options.heartbeat_interval);
        millstream_common::select! {
            a = arrivals.recv() => match a {
                Some(Arrival::Worker(link)) => c.greet(link),
                Some(Arrival::Client(call)) => c.on_call(call),
                None => return Err(Error::canceled("nobody can reach this coordinator any more")),
            },
            Some(e) = inbox.recv() => c.on_event(e),
            () = tick => {}
        }
        c.let_go();
        let now = env.now();
        if inbox.is_empty() {
            caught_up = now;
        }
        if now.since(last_tick) >= c.options.heartbeat_interval {
            // After a pause of the whole process somebody may lead instead.
            let paused = now.since(last_tick) > Duration::from_secs(2);
            last_tick = now;
            c.tick(paused, caught_up);
        }
    }
}

impl Coordinator {
    async fn take_lead(&mut self) -> Result<()> {
        let Some(cluster) = self.cluster.clone() else { return Ok(()) };
        self.generation = cluster.lead(&self.options.address, &self.transport).await?;
        tracing::info!("leading with generation {}", self.generation);
        let mut last_resumed = BTreeMap::new();
        for Listing { spec, ended, resumed } in cluster.jobs().await? {
            let last = *last_resumed.entry(spec.name.clone()).or_insert(resumed);
            match ended {
                Some(status) => drop(self.past.insert(spec.id.clone(), status)),
                None if resumed < last || self.opening.contains_key(&spec.name) => {
                    let e = Error::canceled("a later job of the same name stands instead").code(7141);
                    self.never_opened(&spec, &e);
                }
                None => {
                    let request = OpenRequest {
                        spec,
                        parallelism: None,
                        from: From::Latest,
                        discard_state: false,
                        taken_over: true,
                    };
                    self.open(request, None);
                }
            }
        }
        Ok(())
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    // ---- workers

    fn greet(&mut self, link: CoordinatorLink) {
        let session = self.number();
        let events = self.events.clone();
        let mut rx = link.rx;
        let reader = self.env.spawn(Lane::Io, "worker session", async move {
            while let Some(m) = rx.recv().await {
                if events.send(Event::Worker(session, Box::new(m))).await.is_err() {
                    return;
                }
            }
            // The coordinator is gone when this fails.
            let _ = events.send(Event::WorkerGone(session)).await;
        });
        self.strangers.insert(session, (link.tx, AbortOnDrop(reader)));
    }

    fn on_hello(&mut self, session: u64, hello: millstream_proto::control::Hello) {
        let Some((tx, reader)) = self.strangers.remove(&session) else { return };
        if hello.generation_seen > self.generation.0 {
            self.succeeded();
            return;
        }
        if hello.protocol != PROTOCOL {
            tracing::warn!("worker {} speaks protocol {}, not {PROTOCOL}: refused", hello.worker, hello.protocol);
            return;
        }
        // The same worker again: what it ran is over.
        self.lose_worker(&hello.worker, "it opened a new session");
        let welcome = Welcome { generation: self.generation.0 };
        if tx.try_send(ToWorker { message: Some(to_worker::Message::Welcome(welcome)) }).is_err() {
            return;
        }
        let what = if hello.leave.is_some() { " that leave" } else { "" };
        if hello.compaction_slots > 0 {
            tracing::info!("compactor {} with {} slots{what}", hello.worker, hello.compaction_slots);
        } else {
            tracing::info!("worker {} with {} slots{what} at {}", hello.worker, hello.slots, hello.data_address);
        }
        self.pids.insert(hello.worker.clone(), hello.pid);
        let heard = self.env.now();
        let leaving = hello.leave.map(|leave| waits_until(heard, &leave));
        self.workers.insert(
            hello.worker,
            WorkerSession {
                session,
                tx,
                data_address: hello.data_address,
                slots: hello.slots,
                compaction_slots: hello.compaction_slots,
                heard,
                leaving,
                let_go: false,
                usage: ProcessUsage::default(),
                _reader: reader,
            },
        );
        self.tend_all();
    }

    /// From here on its slots are no place for a subtask.
    fn on_leave(&mut self, name: &str, leave: Leave) {
        let until = waits_until(self.env.now(), &leave);
        let Some(w) = self.workers.get_mut(name) else { return };
        w.leaving = Some(until);
        tracing::info!("worker {name} leaves");
        self.tend_all();
    }

    /// Lets those go that want to leave and that no job needs.
    fn let_go(&mut self) {
        let held = |name: &String| self.jobs.values().any(|j| j.master.needs(name));
        let free = |(name, w): &(&String, &WorkerSession)| w.leaving.is_some() && !w.let_go && !held(name);
        let free: Vec<String> = self.workers.iter().filter(free).map(|(name, _)| name.clone()).collect();
        if free.is_empty() {
            return;
        }
        let waits =
            |j: &&Job| matches!(j.master.phase, master::Phase::Created | master::Phase::Restarting { delayed: false });
        let waiting: Vec<String> = self.jobs.values().filter(waits).map(|j| j.master.spec.name.clone()).collect();
        for name in free {
            if let Some(w) = self.workers.get_mut(&name) {
                w.let_go = true;
            }
            tracing::info!("worker {name} is let go");
            self.send(&name, to_worker::Message::LetGo(LetGo { waiting: waiting.clone() }));
        }
    }

    fn lose_worker(&mut self, name: &str, why: &str) {
        if self.workers.remove(name).is_none() {
            return;
        }
        tracing::info!("worker {name} is lost: {why}");
        for id in self.jobs.keys().cloned().collect::<Vec<_>>() {
            self.turn(&id, |master, t| master.on_worker_lost(name, t));
        }
    }

    fn worker_of(&self, session: u64) -> Option<String> {
        self.workers.iter().find(|(_, w)| w.session == session).map(|(name, _)| name.clone())
    }

    fn on_worker_message(&mut self, session: u64, m: ToCoordinator) {
        use to_coordinator::Message as M;
        let Some(message) = m.message else { return };
        if let M::Hello(hello) = message {
            return self.on_hello(session, hello);
        }
        let Some(name) = self.worker_of(session) else { return };
        if let Some(w) = self.workers.get_mut(&name) {
            w.heard = self.env.now();
        }
        match message {
            M::Heartbeat(beat) => {
                if beat.generation_seen > self.generation.0 {
                    self.succeeded();
                }
                self.on_heartbeat(&name, beat);
            }
            M::Leave(leave) => self.on_leave(&name, leave),
            message => {
                let Some(job) = job_of(&message) else { return };
                if let M::Report(r) = &message
                    && let Some(counters) = &r.counters
                {
                    self.count(&name, counters.clone());
                }
                let failure = match &message {
                    M::TaskFailed(f) => f.failure.as_ref(),
                    M::CompactionFailed(f) => f.failure.as_ref(),
                    _ => None,
                };
                if let M::CompactionFailed(failed) = &message
                    && self.jobs.get(&job.id).is_none_or(|j| !j.master.book.has_given(&name, failed.number))
                {
                    // It was given up: an input may well be gone by now.
                    return;
                }
                if failure.is_some_and(|f| f.code == OBJECT_ABSENT) {
                    return self.ask_why_absent(job, name, message);
                }
                if self.jobs.get(&job.id).is_some_and(|j| j.master.job_ref() == job) {
                    self.turn(&job.id, |master, t| master.on_message(&name, message, t));
                }
            }
        }
    }

    /// A state object was not there. A deployment whose leader was succeeded may well miss what the successor has deleted:
    /// that is its end, not damage.
    fn ask_why_absent(&mut self, of: JobRef, worker: String, message: to_coordinator::Message) {
        let Some(job) = self.jobs.get(&of.id).filter(|j| j.master.job_ref() == of) else { return };
        let (log, events, id) = (job.log.clone(), self.events.clone(), of.id.clone());
        let (newest, generation) = (job.master.record.number, Generation(of.generation));
        self.env.spawn(Lane::Io, "absent object", async move {
            let successor = log.successor(newest, generation).await.map(|s| s.is_some());
            let _ = events.send(Event::Missed { id, job: of, worker, message: Box::new(message), successor }).await;
        });
    }

    fn on_heartbeat(&mut self, name: &str, beat: millstream_proto::control::Heartbeat) {
        for used in beat.in_use {
            let Some(of) = used.job else { continue };
            if let Some(job) = self.jobs.get_mut(&of.id) {
                job.uses(name, of, used.version);
            }
        }
        let usage = beat.process.unwrap_or_default();
        let before = self.workers.get_mut(name).map_or(usage, |w| std::mem::replace(&mut w.usage, usage));
        for counters in beat.jobs {
            if let Some(job) = counters.job.as_ref().and_then(|j| self.jobs.get_mut(&j.id)) {
                let entry = job.usage.entry(name.to_owned()).or_insert((usage, before.cpu_s));
                entry.0 = usage;
            }
            self.count(name, counters);
        }
    }

    fn count(&mut self, worker: &str, counters: millstream_proto::control::JobCounters) {
        let Some(of) = counters.job.clone() else { return };
        let counts = |m: &JobMaster| m.job_ref() == of && !m.has_ended() && m.reckons_with(worker);
        if let Some(job) = self.jobs.get_mut(&of.id).filter(|j| counts(&j.master)) {
            job.master.statistics.update(worker, counters);
            if !job.master.alignment.is_empty() {
                self.turn(&of.id, JobMaster::align);
            }
        }
    }

    fn send(&mut self, worker: &str, message: to_worker::Message) {
        let Some(w) = self.workers.get(worker) else { return };
        if w.tx.try_send(ToWorker { message: Some(message) }).is_err() {
            // A session that takes no messages is as good as lost; the reader's end or the time-out says so.
            tracing::warn!("worker {worker} does not take its messages");
            let (events, session) = (self.events.clone(), w.session);
            self.env.spawn(Lane::Io, "lost worker", async move {
                let _ = events.send(Event::WorkerGone(session)).await;
            });
        }
    }

    /// `caught_up`: the last moment at which nothing waited to be dealt with. A worker whose words may still be among what
    /// waits is not silent.
    fn tick(&mut self, paused: bool, caught_up: Moment) {
        let now = self.env.now();
        // One that commits nothing would never learn that it was succeeded, and keep its workers for ever.
        if paused || now.since(self.checked) >= LEADER_CHECK {
            self.check_lead();
        }
        if paused {
            // Silence while this process stood still says nothing about the workers.
            for w in self.workers.values_mut() {
                w.heard = now;
            }
        }
        let limit = self.options.heartbeat_timeout;
        let silent: Vec<String> =
            self.workers.iter().filter(|(_, w)| caught_up.since(w.heard) > limit).map(|(n, _)| n.clone()).collect();
        for name in silent {
            self.lose_worker(&name, &format!("silent for {limit:?}"));
        }
        for name in self.workers.keys().cloned().collect::<Vec<_>>() {
            self.send(&name, to_worker::Message::Ping(Ping {}));
        }
        // A scale-in may have left slots that another job waits for; who leaves does not wait for ever.
        self.tend_all();
    }

    fn check_lead(&mut self) {
        let Some(cluster) = self.cluster.clone() else { return };
        self.checked = self.env.now();
        let (events, generation) = (self.events.clone(), self.generation);
        self.env.spawn(Lane::Io, "leader check", async move {
            if matches!(cluster.is_succeeded(generation).await, Ok(true)) {
                let _ = events.send(Event::Succeeded).await;
            }
        });
    }

    fn succeeded(&mut self) {
        let what = format!("a newer coordinator leads this cluster: generation {} is fenced", self.generation);
        self.fenced = Some(Error::fenced(what).code(5004).at(self.options.state_url.clone()));
    }

    // ---- jobs

    fn facts(&self) -> BTreeMap<String, WorkerFacts> {
        let mut used: BTreeMap<String, u32> = BTreeMap::new();
        for job in self.jobs.values() {
            for (w, n) in job.master.slots_in_use() {
                *used.entry(w).or_insert(0) += n;
            }
        }
        self.workers
            .iter()
            .filter(|(_, w)| w.role() == Role::Worker)
            .map(|(name, w)| {
                let free = w.slots.saturating_sub(used.get(name).copied().unwrap_or(0));
                let free = if w.leaving.is_some() { 0 } else { free };
                (name.clone(), WorkerFacts { data_address: w.data_address.clone(), free, leaving: w.leaving })
            })
            .collect()
    }

    /// Compactors, and how many compactions each could begin.
    fn free_compactors(&self) -> BTreeMap<String, u32> {
        let running = |name: &str| self.jobs.values().map(|j| j.master.book.running_at(name)).sum::<u32>();
        let there = self.workers.iter().filter(|(_, w)| w.role() == Role::Compactor && w.leaving.is_none());
        there.map(|(name, w)| (name.clone(), w.compaction_slots.saturating_sub(running(name)))).collect()
    }

    /// Gives a job's master its turn and carries out what it decides.
    fn turn(&mut self, id: &str, act: impl FnOnce(&mut JobMaster, &mut Turn<'_>)) {
        let (workers, compactors) = (self.facts(), self.free_compactors());
        let Some(job) = self.jobs.get_mut(id) else { return };
        let (now, wall_ms) = (self.env.now(), self.env.wall_ms());
        let mut t = Turn { now, wall_ms, workers: &workers, compactors, out: Vec::new() };
        act(&mut job.master, &mut t);
        for action in t.out {
            self.carry_out(id, action);
        }
        // Behind the actions: what is no longer open may be in the record that was just sent.
        if let Some(job) = self.jobs.get(id)
            && let Some(collector) = &job.collector
        {
            collector.deployment(job.master.execution, job.oldest_in_use(), job.master.open_compactions());
        }
    }

    fn carry_out(&mut self, id: &str, action: Action) {
        match action {
            Action::Send(worker, message) => {
                if let to_worker::Message::Deploy(d) = &*message
                    && let (Some(of), Some(record)) = (&d.job, &d.version)
                    && let Some(job) = self.jobs.get_mut(id)
                {
                    job.told(&worker, of, record.number);
                }
                self.send(&worker, *message);
            }
            Action::Stale(objects) => {
                if let Some(collector) = self.jobs.get(id).and_then(|j| j.collector.as_ref()) {
                    collector.stale(objects);
                }
            }
            Action::Commit(record) => self.commit(id, *record),
            Action::Timer(timer, wait) => {
                let wait = self.jittered(id, timer, wait);
                let (events, id, sleep) = (self.events.clone(), id.to_owned(), self.env.sleep(wait));
                self.env.spawn(Lane::Io, "timer", async move {
                    sleep.await;
                    let _ = events.send(Event::Timer { id, timer }).await;
                });
            }
            Action::Reply(token, outcome) => match self.jobs.get_mut(id) {
                // That it has ended is true when it cannot come back.
                Some(job) if self.cluster.is_some() && job.master.has_ended() && !job.end_recorded => {
                    job.held.push((token, outcome));
                }
                _ => self.reply(token, outcome),
            },
            Action::Ended => self.on_ended(id),
        }
    }

    /// Restarts of many jobs after one failure do not come all at once.
    fn jittered(&self, id: &str, timer: Timer, wait: Duration) -> Duration {
        let jitter = self.jobs.get(id).map_or(0.0, |j| j.master.settings.restart.jitter);
        if jitter <= 0.0 || !matches!(timer, Timer::Restart { .. }) {
            return wait;
        }
        // Between -1 and 1.
        let share = self.env.random_below(2_000_001) as f64 / 1e6 - 1.0;
        wait.mul_f64(1.0 + jitter * share)
    }

    fn commit(&mut self, id: &str, mut record: millstream_proto::version::VersionRecord) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        if record.nonce == job.master.record.nonce {
            job.master.seal(self.env.unique_id(), job.log.boundaries().known());
            let Some(sealed) = job.master.in_flight() else { return };
            record = sealed.clone();
        }
        if let Some(collector) = &job.collector {
            collector.sent(&record);
        }
        let stored = stored(Some(&job.master.record), &record);
        let (log, events, id) = (job.log.clone(), self.events.clone(), id.to_owned());
        self.env.spawn(Lane::Io, "commit", async move {
            let number = stored.number;
            kill_point("coordinator-has-reports");
            let result = log.commit(&stored).await;
            kill_point("coordinator-wrote");
            let _ = events.send(Event::Committed { id, number, result }).await;
        });
    }

    fn reply(&mut self, token: u64, outcome: Result<()>) {
        let Some((id, document, tx)) = self.replies.remove(&token) else { return };
        let reply = match outcome {
            Ok(()) if document => client_reply::Reply::Json(self.status(&id).to_string()),
            Ok(()) => client_reply::Reply::JobId(id),
            Err(e) => client_reply::Reply::Failure(failure_to_proto(&e)),
        };
        // A client that went away wants no answer.
        let _ = tx.send(ClientReply { reply: Some(reply) });
    }

    fn on_ended(&mut self, id: &str) {
        // Nothing is deleted behind its end.
        let status = self.status(id);
        let Some(job) = self.jobs.get_mut(id) else { return };
        job.ended = Some(status.clone());
        job.discoverer = None;
        if let Some(collector) = job.collector.take() {
            job.garbage = collector.status();
        }
        let fenced = matches!(job.master.phase, master::Phase::Ended(master::End::Fenced));
        if let Some(e) = &job.master.error {
            tracing::error!("job {} ({id}) failed: {e}", job.master.spec.name);
        }
        if fenced {
            // By a newer coordinator, or, alone, by a process that runs this one job.
            self.check_lead();
        }
        if let Some(cluster) = self.cluster.clone() {
            self.record_end(cluster, id.to_owned(), status);
        }
        self.tend_all();
    }

    /// Writes down that a job has ended, until it stands or somebody else leads.
    fn record_end(&self, cluster: Cluster, id: String, status: Value) {
        let (events, env, generation) = (self.events.clone(), self.env.clone(), self.generation);
        self.env.spawn(Lane::Io, "end of a job", async move {
            loop {
                let event = match cluster.end(&id, generation, &status).await {
                    Ok(()) => Event::EndRecorded { id },
                    Err(e) if e.kind() == ErrorKind::Fenced => Event::Succeeded,
                    Err(e) => {
                        tracing::warn!("the end of job {id} is not recorded yet: {e}");
                        env.sleep(RETRY_PAUSE).await;
                        continue;
                    }
                };
                let _ = events.send(event).await;
                return;
            }
        });
    }

    /// A job that was there before this coordinator led and cannot go on.
    fn never_opened(&mut self, spec: &JobSpec, e: &Error) {
        tracing::error!("job {} ({}) cannot be opened: {e}", spec.name, spec.id);
        let error = json!({"code": format!("MS{:04}", e.number()), "what": e.to_string()});
        let state = if e.kind() == ErrorKind::Canceled { "canceled" } else { "failed" };
        let failed = json!({"id": spec.id, "name": spec.name, "job": spec.job, "state": state, "error": error});
        if let Some(cluster) = self.cluster.clone() {
            self.record_end(cluster, spec.id.clone(), failed.clone());
        }
        self.past.insert(spec.id.clone(), failed);
    }

    /// Workers have come, leave, or have other slots: every job may have something to do.
    fn tend_all(&mut self) {
        for id in self.jobs.keys().cloned().collect::<Vec<_>>() {
            self.turn(&id, JobMaster::tend);
        }
    }

    fn open(&mut self, request: OpenRequest, reply: Option<oneshot::Sender<ClientReply>>) {
        self.opening.insert(request.spec.name.clone(), (request.spec.id.clone(), request.taken_over));
        let (registry, stores, env) = (self.registry.clone(), self.stores.clone(), self.env.clone());
        let (events, cluster, generation) = (self.events.clone(), self.cluster.clone(), self.generation);
        let is_new = reply.is_some();
        self.env.spawn(Lane::Io, "open job", async move {
            let name = request.spec.name.clone();
            let spec = request.spec.clone();
            let attempt = async {
                let settings = crate::settings::Settings::from_job_map(&spec.settings)?;
                let store = stores.job_store(&name, &settings)?;
                if let Some(cluster) = &cluster {
                    // A deposed leader must neither take a job from the one that leads nor leave a second definition.
                    cluster.still_leads(generation).await?;
                    cluster.resume(&spec.id, generation).await?;
                }
                let leader = if cluster.is_some() { generation.0 } else { 0 };
                let opened = open::open(registry, store, request.clone(), leader, env).await?;
                if let Some(cluster) = cluster.filter(|_| is_new) {
                    cluster.define(&opened.master.spec).await?;
                    cluster.still_leads(generation).await?;
                }
                Ok(opened)
            };
            let result = Box::new(attempt.await);
            let _ = events.send(Event::Opened { request: Box::new(request), result, reply }).await;
        });
    }

    fn on_opened(
        &mut self,
        request: Box<OpenRequest>,
        result: Result<Opened>,
        reply: Option<oneshot::Sender<ClientReply>>,
    ) {
        let id = request.spec.id.clone();
        match &result {
            Err(e) if e.kind() == ErrorKind::Fenced && self.cluster.is_some() => self.succeeded(),
            // It is a job of the cluster: it goes on as soon as the store can be reached, and keeps its name until then.
            Err(e) if reply.is_none() && !e.is_final() => {
                tracing::warn!("job {} ({id}) cannot be opened yet: {e}", request.spec.name);
                let (events, sleep) = (self.events.clone(), self.env.sleep(RETRY_PAUSE));
                self.env.spawn(Lane::Io, "open job again", async move {
                    sleep.await;
                    let _ = events.send(Event::Reopen { request }).await;
                });
                return;
            }
            _ => {}
        }
        self.opening.retain(|_, (i, _)| *i != id);
        let answer = match result {
            Ok(opened) => {
                let collector = (!opened.master.has_ended()).then(|| {
                    let (log, store) = (opened.log.clone(), opened.store.clone());
                    let (name, settings) = (&opened.master.spec.name, &opened.master.settings);
                    Collector::start(self.env.clone(), log, store, name, settings, &opened.master.record)
                });
                let discoverer = (!opened.master.has_ended()).then(|| {
                    let known = opened.master.known_splits();
                    Discoverer::start(&self.env, &id, &opened.graph, opened.enumerators, &known, &self.events)
                });
                let job = Job {
                    started: self.env.now(),
                    already_finished: opened.already_finished,
                    master: opened.master,
                    graph: opened.graph,
                    log: opened.log,
                    store: opened.store,
                    usage: BTreeMap::new(),
                    // A process that runs one job has used everything for it.
                    own_cpu_before_s: if self.cluster.is_some() { (self.options.usage)().cpu_s } else { 0.0 },
                    ended: None,
                    end_recorded: false,
                    held: Vec::new(),
                    collector,
                    discoverer,
                    garbage: Value::Null,
                    in_use: BTreeMap::new(),
                };
                self.jobs.insert(id.clone(), job);
                if self.jobs.get(&id).is_some_and(|j| j.master.has_ended()) {
                    self.on_ended(&id);
                }
                self.turn(&id, JobMaster::try_deploy);
                client_reply::Reply::JobId(id)
            }
            Err(e) => {
                if reply.is_none() {
                    self.never_opened(&request.spec, &e);
                }
                client_reply::Reply::Failure(failure_to_proto(&e))
            }
        };
        if let Some(tx) = reply {
            let _ = tx.send(ClientReply { reply: Some(answer) });
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Worker(session, m) => self.on_worker_message(session, *m),
            Event::WorkerGone(session) => {
                self.strangers.remove(&session);
                if let Some(name) = self.worker_of(session) {
                    self.lose_worker(&name, "its connection closed");
                }
            }
            Event::Opened { request, result, reply } => self.on_opened(request, *result, reply),
            Event::Reopen { request } => self.open(*request, None),
            Event::Discovered { id, source_uid, found } => {
                self.turn(&id, |master, t| master.on_discovered(&source_uid, found, t));
            }
            Event::Forked { fork, settings, result, reply } => self.on_forked(fork, settings, result, reply),
            Event::EndRecorded { id } => {
                let Some(job) = self.jobs.get_mut(&id) else { return };
                job.end_recorded = true;
                for (token, outcome) in std::mem::take(&mut job.held) {
                    self.reply(token, outcome);
                }
            }
            Event::Committed { id, number, result } => {
                if self.jobs.get(&id).is_none_or(|j| j.master.in_flight_number() != Some(number)) {
                    return;
                }
                match result {
                    Ok(outcome) => {
                        let stands = matches!(outcome, CommitOutcome::Committed);
                        if stands
                            && let Some(job) = self.jobs.get(&id)
                            && let (Some(collector), Some(record)) = (&job.collector, job.master.in_flight())
                        {
                            collector.committed(record);
                        }
                        self.turn(&id, |master, t| master.on_committed(stands, t));
                        kill_point("coordinator-told");
                    }
                    Err(e) => self.turn(&id, |master, t| master.on_commit_unknown(&e, t)),
                }
            }
            Event::Missed { id, job, worker, message, successor } => {
                if self.jobs.get(&id).is_none_or(|j| j.master.job_ref() != job) {
                    return;
                }
                match successor {
                    Ok(true) => self.turn(&id, JobMaster::fence),
                    Ok(false) => self.turn(&id, |master, t| master.on_message(&worker, *message, t)),
                    Err(e) => self.turn(&id, |master, t| master.restart_after(e, t)),
                }
            }
            Event::Timer { id, timer } => self.turn(&id, |master, t| master.on_timer(timer, t)),
            Event::Succeeded => self.succeeded(),
        }
    }

    // ---- clients

    fn on_call(&mut self, call: ClientCall) {
        use client_request::Request as R;
        let ClientCall { request, reply } = call;
        let answer = match request.request {
            Some(R::Submit(submit)) => return self.submit(submit, reply),
            Some(R::Checkpoint(r)) => {
                return self.ask(&r.job, r.no_wait, reply, |m, token, t| m.want_checkpoint(token, t));
            }
            Some(R::Rescale(r)) => {
                return self.ask(&r.job, r.no_wait, reply, move |m, token, t| m.want_rescale(r.parallelism, token, t));
            }
            Some(R::Rebalance(r)) => {
                return self.ask(&r.job, r.no_wait, reply, |m, token, t| m.want_rebalance(token, t));
            }
            Some(R::Workers(_)) => Ok(client_reply::Reply::Json(self.workers_document().to_string())),
            Some(R::Cancel(r)) => return self.ask(&r.job, r.no_wait, reply, |m, token, t| m.cancel(token, t)),
            Some(R::Stop(r)) => return self.ask(&r.job, r.no_wait, reply, |m, token, t| m.want_stop(token, t)),
            Some(R::List(_)) => Ok(client_reply::Reply::Json(self.list().to_string())),
            Some(R::Status(r)) => self.find(&r.job).map(|id| client_reply::Reply::Json(self.status(&id).to_string())),
            Some(R::Fork(r)) => return self.fork(r, reply),
            Some(R::Versions(r)) => return self.versions(&r.job, reply),
            Some(R::Info(_)) => {
                let info = LeaderInfo { generation: self.generation.0, state_url: self.options.state_url.clone() };
                Ok(client_reply::Reply::Info(info))
            }
            None => Err(Error::config("an empty request").code(1507)),
        };
        let reply_with = answer.unwrap_or_else(|e| client_reply::Reply::Failure(failure_to_proto(&e)));
        let _ = reply.send(ClientReply { reply: Some(reply_with) });
    }

    /// A job by its id or, when only one has it, its name; running ones first.
    fn find(&self, job: &str) -> Result<String> {
        if self.jobs.contains_key(job) || self.past.contains_key(job) || self.opening.values().any(|(i, _)| i == job) {
            return Ok(job.to_owned());
        }
        let named = |j: &&(&String, &Job)| j.1.master.spec.name == job;
        let found = self.jobs.iter().filter(|j| named(&j)).max_by_key(|j| (!j.1.master.has_ended(), j.1.started));
        let past = || self.past.iter().find(|(_, s)| s["name"] == job).map(|(id, _)| id);
        found
            .map(|(id, _)| id)
            .or_else(past)
            .cloned()
            .ok_or_else(|| Error::config(format!("there is no job '{job}'")).code(7140).next("see `millstream list`"))
    }

    fn ask(
        &mut self,
        job: &str,
        no_wait: bool,
        reply: oneshot::Sender<ClientReply>,
        act: impl FnOnce(&mut JobMaster, u64, &mut Turn<'_>),
    ) {
        let id = match self.find(job) {
            Ok(id) if self.jobs.contains_key(&id) => id,
            Ok(id) => {
                let e =
                    Error::unavailable(format!("job {id} does not run")).code(7123).next("submit it again to go on");
                let _ = reply.send(failure(&e));
                return;
            }
            Err(e) => {
                let _ = reply.send(failure(&e));
                return;
            }
        };
        let token = self.number();
        self.replies.insert(token, (id.clone(), true, reply));
        self.turn(&id, |master, t| act(master, token, t));
        if no_wait && self.replies.contains_key(&token) {
            self.reply(token, Ok(()));
        }
    }

    fn submit(&mut self, s: Submit, reply: oneshot::Sender<ClientReply>) {
        if let Err(e) = self.check_submission(&s) {
            let _ = reply.send(failure(&e));
            return;
        }
        let from = match s.from.as_str() {
            "" | "latest" => From::Latest,
            "none" => From::None,
            n => match n.parse() {
                Ok(n) => From::Version(n),
                Err(_) => {
                    let e = Error::config(format!("--from {n} is neither latest, none nor a number")).code(1505);
                    let _ = reply.send(failure(&e));
                    return;
                }
            },
        };
        let spec = JobSpec {
            id: self.env.unique_id()[..12].to_owned(),
            name: s.name,
            job: s.job,
            args: s.args,
            settings: s.settings,
        };
        let parallelism = (s.parallelism > 0).then_some(s.parallelism);
        let request = OpenRequest { spec, parallelism, from, discard_state: s.discard_state, taken_over: false };
        self.open(request, Some(reply));
    }

    /// Makes the first version of a fork; then it is opened like any job.
    fn fork(&mut self, fork: Fork, reply: oneshot::Sender<ClientReply>) {
        let prepared = self.fork_order(&fork);
        let (order, settings, store) = match prepared {
            Ok(prepared) => prepared,
            Err(e) => {
                let _ = reply.send(failure(&e));
                return;
            }
        };
        let (registry, events, env) = (self.registry.clone(), self.events.clone(), self.env.clone());
        self.env.spawn(Lane::Io, "fork", async move {
            let result = fork::fork(&registry, &store, &order, &env).await;
            let _ = events.send(Event::Forked { fork, settings, result, reply }).await;
        });
    }

    fn fork_order(&self, fork: &Fork) -> Result<(ForkOrder, BTreeMap<String, String>, Store)> {
        self.check_name(&fork.name)?;
        let id = self.find(&fork.job)?;
        let spec = self.jobs.get(&id).map(|j| &j.master.spec);
        let name = match (spec, self.past.get(&id).and_then(|s| s["name"].as_str())) {
            (Some(spec), _) => spec.name.clone(),
            (None, Some(name)) => name.to_owned(),
            (None, None) => return Err(Error::unavailable(format!("job {id} is not open yet")).code(7123)),
        };
        if name == fork.name {
            return Err(Error::config(format!("a fork of '{name}' needs a name of its own")).code(1512));
        }
        let settings: BTreeMap<String, String> =
            spec.map(|s| s.settings.clone().into_iter().collect()).unwrap_or_default();
        let store = self.stores.job_store(&name, &crate::settings::Settings::from_job_map(&settings)?)?;
        let order = ForkOrder {
            parent: name,
            at: (fork.at > 0).then_some(fork.at),
            name: fork.name.clone(),
            args: fork.args.clone(),
            parent_args: spec.map(|s| s.args.clone()),
        };
        Ok((order, settings, store))
    }

    fn on_forked(
        &mut self,
        fork: Fork,
        settings: BTreeMap<String, String>,
        result: Result<Forked>,
        reply: oneshot::Sender<ClientReply>,
    ) {
        let forked = match result.and_then(|forked| self.check_name(&fork.name).map(|()| forked)) {
            Ok(forked) => forked,
            Err(e) => {
                let _ = reply.send(failure(&e));
                return;
            }
        };
        let spec = JobSpec {
            id: self.env.unique_id()[..12].to_owned(),
            name: fork.name,
            job: forked.job,
            args: forked.args,
            settings: settings.into_iter().collect(),
        };
        let parallelism = Some(if fork.parallelism > 0 { fork.parallelism } else { forked.parallelism });
        let request = OpenRequest { spec, parallelism, from: From::Latest, discard_state: false, taken_over: false };
        self.open(request, Some(reply));
    }

    fn check_name(&self, name: &str) -> Result<()> {
        let running = self.jobs.iter().find(|(_, j)| j.master.spec.name == name && !j.master.has_ended());
        if let Some(id) = running.map(|(id, _)| id).or_else(|| self.opening.get(name).map(|(id, _)| id)) {
            return Err(Error::config(format!("a job with the name '{name}' runs already: {id}"))
                .code(7141)
                .next("cancel or stop it first, or give another --name"));
        }
        Ok(())
    }

    fn check_submission(&self, s: &Submit) -> Result<()> {
        self.check_name(&s.name)?;
        if !s.state_url.is_empty() && s.state_url.trim_end_matches('/') != self.options.state_url.trim_end_matches('/')
        {
            return Err(Error::config(format!(
                "the cluster keeps its state at {}, not at {}",
                self.options.state_url, s.state_url
            ))
            .code(7142)
            .next("leave --state away"));
        }
        Ok(())
    }

    /// The versions of a job that had ended before this coordinator led.
    fn past_log(&self, id: &str) -> Result<VersionLog> {
        let absent = || Error::config(format!("job {id} is not open")).code(7143).next("ask with --state URL");
        let name = self.past.get(id).and_then(|s| s["name"].as_str()).ok_or_else(absent)?;
        let settings = crate::settings::Settings::defaults();
        let store = self.stores.job_store(name, &settings)?;
        Ok(VersionLog::new(store, self.env.clone()))
    }

    /// Whether a job that was fenced has failed is not known before its end is recorded: whoever fenced it may lead the
    /// cluster by now, and run it.
    fn state_of(&self, job: &Job) -> &'static str {
        let fenced = matches!(job.master.phase, master::Phase::Ended(master::End::Fenced));
        if fenced && self.cluster.is_some() && !job.end_recorded { "restarting" } else { job.master.state() }
    }

    fn list(&self) -> Value {
        let mut rows: Vec<Value> = self
            .past
            .iter()
            .map(|(id, s)| json!({"id": id, "name": s["name"], "state": s["state"], "parallelism": s["parallelism"]}))
            .collect();
        rows.extend(self.jobs.iter().map(|(id, j)| {
            json!({"id": id, "name": j.master.spec.name, "state": self.state_of(j), "parallelism": j.master.assignment.parallelism()})
        }));
        Value::Array(rows)
    }

    fn workers_document(&self) -> Value {
        let facts = self.facts();
        let compactions = |name: &str| self.jobs.values().map(|j| j.master.book.running_at(name)).sum::<u32>();
        let row = |(name, w): (&String, &WorkerSession)| {
            json!({
                "worker": name, "role": w.role().name(),
                "pid": self.pids.get(name), "address": w.data_address, "slots": w.slots,
                "free": facts.get(name).map_or(0, |f| f.free), "leaving": w.leaving.is_some(),
                "compaction_slots": w.compaction_slots, "compactions": compactions(name),
            })
        };
        self.workers.iter().map(row).collect()
    }

    fn status(&self, id: &str) -> Value {
        if let Some(past) = self.past.get(id) {
            return past.clone();
        }
        let Some(job) = self.jobs.get(id) else {
            let opening = self.opening.iter().find(|(_, (i, _))| i == id);
            let state = if opening.is_some_and(|(_, (_, taken_over))| *taken_over) { "restarting" } else { "created" };
            return json!({"id": id, "name": opening.map(|(name, _)| name), "state": state});
        };
        if let Some(ended) = &job.ended {
            let mut document = ended.clone();
            document["state"] = self.state_of(job).into();
            return document;
        }
        let mut processes = job.usage.clone();
        processes.retain(|w, _| self.pids.get(w) != Some(&self.options.pid));
        processes.insert(String::new(), ((self.options.usage)(), job.own_cpu_before_s));
        let since = |(usage, before): (ProcessUsage, f64)| ProcessUsage { cpu_s: usage.cpu_s - before, ..usage };
        let facts = StatusFacts {
            graph: &job.graph,
            now: self.env.now(),
            started: job.started,
            processes: processes.into_values().map(since).collect(),
            pids: &self.pids,
            own_requests: job.store.meter().snapshot(),
            already_finished: job.already_finished,
            garbage: job.collector.as_ref().map_or_else(|| job.garbage.clone(), Collector::status),
            versions: job.collector.as_ref().map_or(Value::Null, Collector::versions),
        };
        let mut document = status::status(&job.master, &facts);
        document["workers"] = self.workers_document();
        document
    }

    fn versions(&self, job: &str, reply: oneshot::Sender<ClientReply>) {
        let found = self.find(job).and_then(|id| match self.jobs.get(&id) {
            Some(job) => Ok(job.log.clone()),
            None => self.past_log(&id),
        });
        let log = match found {
            Ok(found) => found,
            Err(e) => {
                let _ = reply.send(failure(&e));
                return;
            }
        };
        self.env.spawn(Lane::Io, "versions", async move {
            let answer = match versions::list(&log).await {
                Ok(rows) => ClientReply { reply: Some(client_reply::Reply::Json(Value::Array(rows).to_string())) },
                Err(e) => failure(&e),
            };
            let _ = reply.send(answer);
        });
    }
}

/// Until when a worker that leaves waits for slots elsewhere.
fn waits_until(now: Moment, leave: &Leave) -> Moment {
    now + Duration::from_millis(leave.wait_ms).min(WAIT_MAX)
}

fn failure(e: &Error) -> ClientReply {
    let f: Failure = failure_to_proto(e);
    ClientReply { reply: Some(client_reply::Reply::Failure(f)) }
}

fn job_of(m: &to_coordinator::Message) -> Option<JobRef> {
    use to_coordinator::Message as M;
    match m {
        M::Deployed(x) => x.job.clone(),
        M::Report(x) => x.job.clone(),
        M::CheckpointFailed(x) => x.job.clone(),
        M::TaskFailed(x) => x.job.clone(),
        M::Confirmed(x) => x.job.clone(),
        M::CompactionDone(x) => x.job.clone(),
        M::CompactionFailed(x) => x.job.clone(),
        M::Serving(x) => x.job.clone(),
        M::SplitsFinished(x) => x.job.clone(),
        M::Prepared(x) => x.job.clone(),
        M::CompactionsHeld(x) => x.job.clone(),
        M::Hello(_) | M::Heartbeat(_) | M::Leave(_) => None,
    }
}
