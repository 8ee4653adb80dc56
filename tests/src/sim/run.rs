//! One run: a cluster, a client, a plan of faults; then everything is repaired, the job must finish, and what came out
//! is compared with the reference.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millstream_common::env::{BoxFuture, CurrentRuntime};
use millstream_common::{Env, Lane};
use millstream_engine::transport::Transport;
use millstream_objects::FaultyStore;
use millstream_proto::control::{
    Checkpoint, ClientReply, ClientRequest, Failure, Fork, List, Rebalance, Rescale, Status, Stop, Submit, Versions,
    client_reply, client_request,
};
use parking_lot::Mutex;
use serde_json::Value;

use super::check;
use super::cluster::{Cluster, Shared};
use super::data::Dataset;
use super::dice::Dice;
use super::jobs::{JobParts, LATE};
use super::plan::{COORDINATORS, Fault, Joins, Plan, Request};
use super::sink::Outside;
use super::source::SimSource;
use super::store::Ledger;
use super::trace::Trace;

/// The job's name: where its state stands.
pub const NAME: &str = "job";
/// The name of a fork of it.
#[must_use]
pub fn fork_name(number: usize) -> String {
    format!("fork-{number}")
}

/// Virtual time that the job has to finish in once everything is repaired.
const PATIENCE: Duration = Duration::from_secs(300);
/// After so long every delayed write has landed.
const LANDING: Duration = Duration::from_secs(90);
/// More events than this are a loop.
const EVENTS_MAX: u64 = 3_000_000;

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// What was wrong; empty when it passed.
    pub violations: Vec<String>,
    /// Hash over all events.
    pub trace_hash: u64,
    /// How many there were.
    pub events: u64,
    /// Virtual time until the job had finished.
    pub virtual_time: Duration,
    /// In a few words: job, faults, versions.
    pub summary: String,
}

/// Runs one seed to its end. With `print`, every event goes to stdout.
#[must_use]
pub fn run(seed: u64, print: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    match runtime {
        Ok(runtime) => runtime.block_on(simulate(seed, print)),
        Err(e) => Outcome {
            seed,
            violations: vec![format!("no runtime: {e}")],
            trace_hash: 0,
            events: 0,
            virtual_time: Duration::ZERO,
            summary: String::new(),
        },
    }
}

async fn simulate(seed: u64, print: bool) -> Outcome {
    let env = Env::new(Arc::new(CurrentRuntime), seed, 0);
    let trace = Trace::new(env.clone(), print);
    let plan = Plan::draw(seed);
    let data = Arc::new(Dataset::generate(seed, plan.paced_ms, plan.late_split, plan.job == LATE));
    if print {
        println!("{plan:#?}\n{} splits, {} rows", data.splits.len(), data.events().count());
    }
    let ledger = Ledger::new(trace.clone());
    let store = FaultyStore::with_uploads(Arc::new(ledger.clone()), &env, plan.latency.clone());
    let outside = Outside::new(env.clone(), trace.clone(), ledger.clone(), Dice::new(seed, "outside"), plan.to_kafka);
    let source = Arc::new(SimSource::new(data.clone(), env.clone(), plan.batch_rows));
    let parts = Arc::new(JobParts { source, outside: outside.clone(), batch_rows: plan.batch_rows });
    let shared = Shared { store, ledger, outside: outside.clone() };
    let cluster = Arc::new(Cluster::new(env.clone(), trace.clone(), plan.clone(), parts, seed, shared));
    let progress = Arc::new(Mutex::new(None));
    let client = Arc::new(Client { cluster: cluster.clone(), transport: cluster.client(), plan: plan.clone() });
    let (done, asking, forking) = (progress.clone(), client.clone(), client.clone());
    env.spawn(Lane::Io, "client", async move {
        client.submit(NAME, 0, client.plan.parallelism, &client.plan.settings).await;
        let end = client.wait_for_end().await;
        *done.lock() = Some(end);
    });
    env.spawn(Lane::Io, "requests", async move { asking.ask_all().await });
    for (i, (when, old)) in plan.forks.iter().copied().enumerate() {
        let (client, sleep) = (forking.clone(), env.sleep(when));
        env.spawn(Lane::Io, "fork", async move {
            sleep.await;
            client.fork(&fork_name(i), old).await;
        });
    }
    for (number, when) in plan.readers.iter().copied().enumerate() {
        let (cluster, sleep) = (cluster.clone(), env.sleep(when));
        env.spawn(Lane::Io, "reader", async move {
            sleep.await;
            let store = cluster.outsider("reader");
            super::reader::read(cluster, store, number as u64, seed).await;
        });
    }
    let mut driver = Driver {
        cluster: cluster.clone(),
        plan: plan.clone(),
        due: BTreeMap::new(),
        serial: 0,
        exits: 0,
        disobedient: BTreeMap::new(),
    };
    let end = driver.drive(&progress).await;
    let virtual_time = env.now().0;
    let figures = match &end {
        Some(Ok(s)) => format!(
            "generation {}, execution {}, {} rescales, {} moves, {} compactions ({} elsewhere), {} checkpoints",
            s["generation"],
            s["execution"],
            rescales(s, |r| r["from"] != r["to"]),
            rescales(s, |r| r["from"] == r["to"]),
            s["compaction"]["completed"],
            by_compactors(s),
            s["checkpoints"]["completed"]
        ),
        _ => String::new(),
    };
    // A transaction that took too long is lost: the job has to say so, and to end.
    let write_again = plan.to_kafka.is_some_and(|to| to.write_again);
    let lost = outside.has_lost() && !write_again;
    match end {
        Some(Err(why)) if lost && why.contains("are lost: their transaction") => {}
        Some(Ok(_)) if lost => trace.violation("rows were lost, and nobody has said so".to_owned()),
        Some(Ok(status)) => {
            for place in cluster.places() {
                cluster.kill(place, false);
            }
            env.sleep(LANDING).await;
            check::all(&cluster, &plan, &data, &status).await;
        }
        Some(Err(why)) => trace.violation(why),
        None if trace.violations().is_empty() => {
            let (_, events) = trace.hash();
            trace.violation(format!(
                "the job has not finished {PATIENCE:?} after everything was repaired ({events} events)"
            ));
        }
        None => {}
    }
    let (trace_hash, events) = trace.hash();
    let summary = format!(
        "{}{} p{} on {} workers and {} compactors, {} leave, {} faults, {} requests, {} versions, {} deleted; {figures}",
        plan.job,
        match plan.to_kafka {
            None => String::new(),
            Some(_) if lost => " to topics (rows were lost, and that was said)".to_owned(),
            Some(to) if write_again => {
                format!(" to topics within {:?}, {} written again", to.transaction_timeout, outside.written_again())
            }
            Some(to) => format!(" to topics within {:?}", to.transaction_timeout),
        },
        plan.parallelism,
        plan.workers,
        plan.compactors,
        plan.leaves.len(),
        plan.faults.len(),
        plan.requests.len(),
        cluster.ledger.versions(),
        cluster.ledger.deleted(),
    );
    Outcome { seed, violations: trace.violations(), trace_hash, events, virtual_time, summary }
}

fn rescales(status: &Value, which: impl Fn(&Value) -> bool) -> usize {
    status["rescales"].as_array().map_or(0, |all| all.iter().filter(|r| which(r)).count())
}

/// How many compactions compactors have run.
fn by_compactors(status: &Value) -> u64 {
    let runners = status["compaction"]["runners"].as_array().into_iter().flatten();
    runners.filter(|r| r["role"] == "compactor").filter_map(|r| r["completed"].as_u64()).sum()
}

type End = Option<Result<Value, String>>;

/// What the driver does at a moment.
enum Step {
    Fault(Fault),
    Start(usize),
    Leave(usize),
    Resume(usize, String),
    Heal(Repair),
    HealAll,
}

enum Repair {
    Net,
    Store,
    Outside,
}

/// Starts processes, carries out the faults, repairs everything in the end.
struct Driver {
    cluster: Arc<Cluster>,
    plan: Plan,
    due: BTreeMap<(Duration, u64), Step>,
    serial: u64,
    /// Processes that have ended by themselves.
    exits: u64,
    /// Hosts that run what they should have ended, and since when.
    disobedient: BTreeMap<String, Duration>,
}

impl Driver {
    fn at(&mut self, when: Duration, step: Step) {
        self.serial += 1;
        self.due.insert((when, self.serial), step);
    }

    fn later(&mut self, wait: Duration, step: Step) {
        let now = self.cluster.env.now().0;
        self.at(now + wait, step);
    }

    async fn drive(&mut self, progress: &Mutex<End>) -> End {
        let first = |p: &usize| *p != 1 && !self.cluster.is_spare(*p);
        for place in self.cluster.places().filter(first).collect::<Vec<_>>() {
            self.at(Duration::ZERO, Step::Start(place));
        }
        for (when, leave) in std::mem::take(&mut self.plan.leaves) {
            self.at(when, Step::Leave(leave.place));
            match leave.joins {
                Joins::Before(lead) => self.at(when.saturating_sub(lead), Step::Start(leave.spare)),
                Joins::After(wait) => self.at(when + wait, Step::Start(leave.spare)),
                Joins::WhenHealed => {}
            }
        }
        for (when, place) in std::mem::take(&mut self.plan.compactor_leaves) {
            self.at(when, Step::Leave(place));
            // Whoever looks after processes starts another one.
            self.at(when + Duration::from_secs(2), Step::Start(place));
        }
        for (when, fault) in std::mem::take(&mut self.plan.faults) {
            self.at(when, Step::Fault(fault));
        }
        self.at(self.plan.healed, Step::HealAll);
        let env = self.cluster.env.clone();
        loop {
            if let Some(end) = progress.lock().take() {
                return Some(end);
            }
            let now = env.now().0;
            let looped = self.cluster.trace.hash().1 > EVENTS_MAX;
            if looped || now > self.plan.healed + PATIENCE || !self.cluster.trace.violations().is_empty() {
                return None;
            }
            self.check_obedience(now);
            for (place, asked) in self.cluster.reap() {
                if asked {
                    continue;
                }
                // Whoever looks after processes starts another one, the longer after the more often it has ended.
                self.exits += 1;
                self.later(Duration::from_millis(700 + 400 * self.exits.min(20)), Step::Start(place));
            }
            while let Some(entry) = self.due.first_entry() {
                if entry.key().0 > now {
                    break;
                }
                let step = entry.remove();
                self.step(step);
            }
            let next = self.due.first_key_value().map_or(Duration::from_secs(1), |(k, _)| k.0.saturating_sub(now));
            env.sleep(next.clamp(Duration::from_millis(1), Duration::from_millis(200))).await;
        }
    }

    /// A worker that was told to end what it runs has a second to do so.
    fn check_obedience(&mut self, now: Duration) {
        let hosts = self.cluster.disobedient();
        self.disobedient.retain(|host, _| hosts.contains(host));
        for host in hosts {
            let since = *self.disobedient.entry(host.clone()).or_insert(now);
            if now > since + Duration::from_secs(1) {
                self.cluster.trace.violation(format!("a subtask on {host} survives its end"));
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Fault(fault) => self.fault(fault),
            Step::Start(place) => self.cluster.start(place),
            Step::Leave(place) => self.cluster.leave(place),
            Step::Resume(place, host) => self.cluster.set_paused(place, &host, false),
            Step::Heal(repair) => self.heal(&repair),
            Step::HealAll => {
                for repair in [Repair::Net, Repair::Store, Repair::Outside] {
                    self.heal(&repair);
                }
                for place in self.cluster.places() {
                    if let Some(host) = self.cluster.host(place) {
                        self.cluster.set_paused(place, &host, false);
                    } else if place != 1 {
                        self.cluster.start(place);
                    }
                }
            }
        }
    }

    fn heal(&self, repair: &Repair) {
        match repair {
            Repair::Net => self.cluster.net.heal(),
            Repair::Store => self.cluster.store.set(self.plan.latency.clone()),
            Repair::Outside => self.cluster.outside.set_faults(0),
        }
    }

    fn fault(&mut self, fault: Fault) {
        let c = self.cluster.clone();
        c.trace.event("fault", "", &format!("{fault:?}"));
        match fault {
            Fault::Kill { place, silently, back_after } => {
                c.kill(place, silently);
                self.later(back_after, Step::Start(place));
                if silently {
                    self.later(back_after + Duration::from_secs(5), Step::Heal(Repair::Net));
                }
            }
            Fault::Pause { place, lasts } => {
                if let Some(host) = c.host(place) {
                    c.set_paused(place, &host, true);
                    self.later(lasts, Step::Resume(place, host));
                }
            }
            Fault::Partition { from, to, both, lasts } => {
                if let (Some(from), Some(to)) = (c.host(from), c.host(to)) {
                    c.net.block(&from, &to);
                    if both {
                        c.net.block(&to, &from);
                    }
                    self.later(lasts, Step::Heal(Repair::Net));
                }
            }
            Fault::Break(one_in) => drop(c.net.break_some(one_in)),
            Fault::Store { faults, lasts } => {
                c.store.set(*faults);
                self.later(lasts, Step::Heal(Repair::Store));
            }
            Fault::Outside { percent, lasts } => {
                c.outside.set_faults(percent);
                self.later(lasts, Step::Heal(Repair::Outside));
            }
            Fault::SecondCoordinator => c.start(1),
        }
    }
}

/// Somebody with the command line.
struct Client {
    cluster: Arc<Cluster>,
    transport: Arc<dyn Transport>,
    plan: Plan,
}

impl Client {
    fn call(&self, coordinator: usize, request: client_request::Request) -> BoxFuture<'static, Option<ClientReply>> {
        let (transport, env) = (self.transport.clone(), self.cluster.env.clone());
        Box::pin(async move {
            let address = Cluster::coordinator_address(coordinator);
            let call = transport.call(&address, ClientRequest { request: Some(request) });
            env.timeout(Duration::from_secs(8), "the call", call).await.ok()?.ok()
        })
    }

    async fn pause(&self) {
        self.cluster.env.sleep(Duration::from_millis(300)).await;
    }

    /// Asks for a fork, once or twice: it may come to be or not.
    async fn fork(&self, name: &str, old: bool) {
        for turn in 0..2 * COORDINATORS {
            let coordinator = turn % COORDINATORS;
            let mut at = 0;
            if old {
                let versions = client_request::Request::Versions(Versions { job: NAME.to_owned() });
                let Some(versions) = self.json(coordinator, versions).await else { continue };
                at = versions[0]["version"].as_u64().unwrap_or_default();
            }
            let args = vec![format!("--output={name}")];
            let fork = Fork { job: NAME.to_owned(), at, name: name.to_owned(), parallelism: 1, args };
            match self.call(coordinator, client_request::Request::Fork(fork)).await.and_then(|r| r.reply) {
                Some(client_reply::Reply::JobId(_)) => return,
                _ => self.pause().await,
            }
        }
    }

    /// The jobs that there are, the forks only once they have a version.
    fn names(&self) -> Vec<String> {
        let forks = (0..self.plan.forks.len()).map(fork_name);
        let born = forks.filter(|f| self.cluster.ledger.newest(f).is_some());
        std::iter::once(NAME.to_owned()).chain(born).collect()
    }

    async fn submit(&self, name: &str, release: u32, parallelism: u32, settings: &BTreeMap<String, String>) {
        let mut args = if name == NAME { Vec::new() } else { vec![format!("--output={name}")] };
        args.extend((release > 0).then(|| format!("--release={release}")));
        for turn in 0.. {
            let submit = Submit {
                job: self.plan.job.into(),
                name: name.into(),
                args: args.clone(),
                parallelism,
                settings: settings.clone().into_iter().collect(),
                ..Submit::default()
            };
            let reply = self.call(turn % COORDINATORS, client_request::Request::Submit(submit)).await;
            match reply.and_then(|r| r.reply) {
                Some(client_reply::Reply::JobId(_)) => return,
                // It runs already: an earlier reply was lost.
                Some(client_reply::Reply::Failure(Failure { code: 7141, .. })) => return,
                Some(client_reply::Reply::Failure(f)) if f.code < 2_000 => {
                    return self.cluster.trace.violation(format!("the job is refused: {}", f.what));
                }
                _ => self.pause().await,
            }
        }
    }

    async fn ask_all(&self) {
        for (when, request) in &self.plan.requests {
            let now = self.cluster.env.now().0;
            self.cluster.env.sleep(when.saturating_sub(now)).await;
            let job = NAME.to_owned();
            let request = match *request {
                Request::Rescale(parallelism) => {
                    client_request::Request::Rescale(Rescale { job, parallelism, no_wait: false })
                }
                Request::Checkpoint => client_request::Request::Checkpoint(Checkpoint { job, no_wait: false }),
                Request::Status => client_request::Request::Status(Status { job }),
                Request::Rebalance => client_request::Request::Rebalance(Rebalance { job, no_wait: false }),
                Request::Stop => client_request::Request::Stop(Stop { job, no_wait: false }),
            };
            // Refusals and lost replies are as good as any answer here.
            for coordinator in 0..COORDINATORS {
                let call = self.call(coordinator, request.clone());
                self.cluster.env.spawn(Lane::Io, "request", async move { drop(call.await) });
            }
        }
    }

    /// Waits until the leader says that the job has ended, and starts it again when it was stopped or lost; its last
    /// status.
    async fn wait_for_end(&self) -> Result<Value, String> {
        for turn in 0.. {
            self.pause().await;
            let coordinator = turn % COORDINATORS;
            let Some(list) = self.json(coordinator, client_request::Request::List(List {})).await else { continue };
            let jobs = list.as_array().cloned().unwrap_or_default();
            let mut ended = None;
            let names = self.names();
            let mut finished = 0;
            for name in &names {
                match self.look_after(&jobs, name, coordinator).await? {
                    Some(status) if name == NAME => (ended, finished) = (Some(status), finished + 1),
                    Some(_) => finished += 1,
                    None => {}
                }
            }
            if let Some(status) = ended.filter(|_| finished == names.len()) {
                return Ok(status);
            }
        }
        Err("nobody waits any more".into())
    }

    /// The status of a job that has finished. One that was stopped or lost is started again.
    async fn look_after(&self, jobs: &[Value], name: &str, coordinator: usize) -> Result<Option<Value>, String> {
        let of_job = || jobs.iter().filter(|j| j["name"] == name);
        let status = |job: &Value| {
            let id = job["id"].as_str().unwrap_or_default().to_owned();
            self.json(coordinator, client_request::Request::Status(Status { job: id }))
        };
        if let Some(failed) = of_job().find(|j| j["state"] == "failed") {
            let why = status(failed).await.map_or(Value::Null, |s| s["error"].clone());
            return Err(format!("the job {name} failed: {why}"));
        }
        if let Some(finished) = of_job().find(|j| j["state"] == "finished") {
            return Ok(status(finished).await);
        }
        let lives = |j: &Value| matches!(j["state"].as_str(), Some("created" | "running" | "restarting" | "finished"));
        if !of_job().any(lives) {
            // It was stopped, or its submission was lost with a coordinator.
            let now = self.cluster.env.now().0.as_millis() as u64;
            let parallelism = if name == NAME { 1 + (now % 4) as u32 } else { 1 };
            self.submit(name, 1, parallelism, &self.plan.settings_later).await;
        }
        Ok(None)
    }

    async fn json(&self, coordinator: usize, request: client_request::Request) -> Option<Value> {
        match self.call(coordinator, request).await?.reply? {
            client_reply::Reply::Json(text) => serde_json::from_str(&text).ok(),
            _ => None,
        }
    }
}
