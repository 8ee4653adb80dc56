//! The processes of the cluster: coordinators, workers and compactors as they ship, on simulated nodes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millstream_common::{Env, ErrorKind, Lane, Result};
use millstream_engine::coordinator::{CoordinatorOptions, run_coordinator};
use millstream_engine::settings::Settings;
use millstream_engine::transport::{CONTROL_QUEUE, Transport};
use millstream_engine::worker::stores::TaskMemory;
use millstream_engine::worker::{LeaveRequest, Role, Stores, WorkerOptions, run_worker};
use millstream_objects::{FaultyStore, Meter, Store};
use millstream_proto::control::ProcessUsage;
use millstream_state_store::Caches;
use millstream_state_store::compaction::Throttle;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::dice::Dice;
use super::jobs::{JobParts, registry};
use super::net::Net;
use super::node::Node;
use super::plan::{COORDINATORS, Plan};
use super::sink::Outside;
use super::store::{Ledger, Witness};
use super::trace::Trace;
use super::transport::SimTransport;

/// Where the cluster keeps its state, for messages.
pub const STATE_URL: &str = "sim://state";
/// Wall-clock time at the start, ms since 1970.
const WALL_MS: i64 = 1_767_225_600_000;

/// Everything outside of the nodes, and the nodes.
pub struct Cluster {
    /// Time of the run.
    pub env: Env,
    /// What happened.
    pub trace: Trace,
    /// How nodes reach each other.
    pub net: Net,
    /// The object store.
    pub store: FaultyStore,
    /// What took effect in it.
    pub ledger: Ledger,
    /// Where output goes.
    pub outside: Outside,
    plan: Plan,
    parts: Arc<JobParts>,
    dice: Mutex<Dice>,
    places: Mutex<BTreeMap<usize, Process>>,
}

/// A process in its place.
struct Process {
    node: Node,
    host: String,
    exited: Arc<AtomicBool>,
    leave: LeaveRequest,
}

impl Cluster {
    /// A cluster without processes.
    pub fn new(env: Env, trace: Trace, plan: Plan, parts: Arc<JobParts>, seed: u64, shared: Shared) -> Self {
        let net = Net::new(env.clone(), trace.clone(), Dice::new(seed, "net"), plan.delays);
        let Shared { store, ledger, outside } = shared;
        let dice = Mutex::new(Dice::new(seed, "cluster"));
        Self { env, trace, net, store, ledger, outside, plan, parts, dice, places: Mutex::default() }
    }

    /// The address of the coordinator in a place.
    #[must_use]
    pub fn coordinator_address(place: usize) -> String {
        format!("c{place}")
    }

    /// All places that may have a process.
    #[must_use]
    pub fn places(&self) -> std::ops::Range<usize> {
        0..self.plan.first_compactor() + self.plan.compactors as usize
    }

    /// Whether readers let go soon.
    #[must_use]
    pub fn has_brisk_readers(&self) -> bool {
        self.plan.brisk_readers
    }

    /// Whether a place is for a worker that replaces one that leaves.
    #[must_use]
    pub fn is_spare(&self, place: usize) -> bool {
        (COORDINATORS + self.plan.workers as usize..self.plan.first_compactor()).contains(&place)
    }

    /// Who is in a place now.
    #[must_use]
    pub fn host(&self, place: usize) -> Option<String> {
        self.places.lock().get(&place).map(|p| p.host.clone())
    }

    /// The transport of a client on a machine of its own.
    #[must_use]
    pub fn client(&self) -> Arc<SimTransport> {
        Arc::new(SimTransport::new(self.net.clone(), "client", self.plan.data_queue))
    }

    /// The store as somebody without faults and without a node sees it.
    #[must_use]
    pub fn inspector(&self) -> Store {
        Store::from_backend_with_uploads(Arc::new(self.ledger.clone()), STATE_URL, &self.plan.store, &self.env)
    }

    /// The store as somebody sees it who is no process of the cluster, faults included.
    #[must_use]
    pub fn outsider(&self, name: &str) -> Store {
        self.store_of(name, &self.env)
    }

    /// Starts a process in a place, unless there is one.
    pub fn start(&self, place: usize) {
        if self.places.lock().contains_key(&place) {
            return;
        }
        let (number, seed, skew) = {
            let mut dice = self.dice.lock();
            (dice.within(0..1_000_000), dice.bits(), dice.signed(-3_600_000..3_600_000))
        };
        let coordinator = place < COORDINATORS;
        let role = if place >= self.plan.first_compactor() { Role::Compactor } else { Role::Worker };
        let host = match role {
            _ if coordinator => Self::coordinator_address(place),
            Role::Worker => format!("w{place}-{number}"),
            Role::Compactor => format!("k{place}-{number}"),
        };
        let node = Node::new(&host, self.env.clone());
        let env = Env::ticking(Arc::new(node.clone()), seed, WALL_MS + skew, self.plan.tick);
        let exited = Arc::new(AtomicBool::new(false));
        let leave = LeaveRequest::default();
        self.trace.event("start", &host, "");
        let main: millstream_common::env::BoxFuture<'static, Result<()>> = if coordinator {
            self.coordinator(place, &host, &env)
        } else {
            self.worker(place, &host, &env, (&leave, role))
        };
        let (done, trace, name) = (exited.clone(), self.trace.clone(), host.clone());
        env.spawn(Lane::Io, "main", async move {
            let outcome = main.await.err();
            trace.event("exit", &name, &outcome.as_ref().map_or_else(String::new, |e| e.to_string()));
            if let Some(broken) = outcome.filter(|e| e.kind() == ErrorKind::Internal) {
                trace.violation(format!("{name} ended with: {broken}"));
            }
            done.store(true, Ordering::Relaxed);
        });
        self.places.lock().insert(place, Process { node, host, exited, leave });
    }

    fn store_of(&self, host: &str, env: &Env) -> Store {
        let witness = Witness::new(self.store.clone(), self.ledger.clone(), self.trace.clone(), host);
        Store::from_backend_with_uploads(Arc::new(witness), STATE_URL, &self.plan.store, env)
    }

    fn coordinator(
        &self,
        place: usize,
        host: &str,
        env: &Env,
    ) -> millstream_common::env::BoxFuture<'static, Result<()>> {
        let (arrivals, arriving) = mpsc::channel(CONTROL_QUEUE);
        self.net.listen_coordinator(host, arrivals);
        let root = self.store_of(host, env);
        let stores = Arc::new(SimStores::new(root.clone(), &self.plan));
        let options = CoordinatorOptions {
            address: host.to_owned(),
            state_url: STATE_URL.into(),
            cluster: Some(root),
            heartbeat_interval: Duration::from_millis(500),
            heartbeat_timeout: self.plan.heartbeat_timeout,
            usage: Arc::new(ProcessUsage::default),
            pid: place as u32,
        };
        let transport: Arc<dyn Transport> = Arc::new(SimTransport::new(self.net.clone(), host, self.plan.data_queue));
        Box::pin(run_coordinator(options, arriving, transport, Arc::new(registry(&self.parts)), stores, env.clone()))
    }

    fn worker(
        &self,
        place: usize,
        host: &str,
        env: &Env,
        (leave, role): (&LeaveRequest, Role),
    ) -> millstream_common::env::BoxFuture<'static, Result<()>> {
        let stores = Arc::new(SimStores::new(self.store_of(host, env), &self.plan));
        let options = WorkerOptions {
            name: host.to_owned(),
            role,
            slots: if role == Role::Compactor { self.plan.compaction_slots } else { self.plan.slots },
            coordinators: (0..COORDINATORS).map(Self::coordinator_address).collect(),
            pid: place as u32,
            heartbeat_interval: Duration::from_millis(500),
            heartbeat_timeout: self.plan.heartbeat_timeout,
            usage: Arc::new(ProcessUsage::default),
            leave: leave.clone(),
            ledger: Default::default(),
            drain_timeout: self.plan.drain_timeout,
        };
        let transport: Arc<dyn Transport> = Arc::new(SimTransport::new(self.net.clone(), host, self.plan.data_queue));
        let worker = run_worker(options, transport, Arc::new(registry(&self.parts)), stores, env.clone());
        Box::pin(async move { worker.await.map(drop) })
    }

    /// Ends the process in a place.
    pub fn kill(&self, place: usize, silently: bool) {
        let Some(process) = self.places.lock().remove(&place) else { return };
        self.trace.event("kill", &process.host, if silently { "silently" } else { "" });
        self.net.host_down(&process.host, silently);
        process.node.kill();
    }

    /// Asks the worker or compactor in a place to leave.
    pub fn leave(&self, place: usize) {
        let places = self.places.lock();
        let Some(process) = places.get(&place) else { return };
        self.trace.event("leave", &process.host, "");
        process.leave.ask();
    }

    /// The process in a place stands still, or goes on.
    pub fn set_paused(&self, place: usize, host: &str, paused: bool) {
        let places = self.places.lock();
        let Some(process) = places.get(&place).filter(|p| p.host == host && p.node.is_paused() != paused) else {
            return;
        };
        let node = process.node.clone();
        drop(places);
        self.trace.event(if paused { "pause" } else { "resume" }, host, "");
        if paused { node.pause() } else { node.resume() }
    }

    /// The hosts that run subtasks although they were told to end them.
    #[must_use]
    pub fn disobedient(&self) -> Vec<String> {
        // What is seen of subtasks does not tell of which job they are.
        if !self.plan.forks.is_empty() {
            return Vec::new();
        }
        let places = self.places.lock();
        let running = places.values().filter(|p| !p.node.is_paused());
        let disobeys = |p: &&Process| self.net.told_to_end(&p.host).is_some_and(|t| p.node.has_subtask_from_before(t));
        running.filter(disobeys).map(|p| p.host.clone()).collect()
    }

    /// The places whose process has ended by itself, and whether it had been asked to; they are free now.
    pub fn reap(&self) -> Vec<(usize, bool)> {
        let ended = |(_, p): &(&usize, &Process)| p.exited.load(Ordering::Relaxed);
        let ended: Vec<(usize, bool)> =
            self.places.lock().iter().filter(ended).map(|(i, p)| (*i, p.leave.is_asked())).collect();
        for &(place, _) in &ended {
            self.kill(place, false);
        }
        ended
    }
}

/// What exists before the cluster and after it.
pub struct Shared {
    /// The object store.
    pub store: FaultyStore,
    /// What took effect in it.
    pub ledger: Ledger,
    /// Where output goes.
    pub outside: Outside,
}

/// What a process gets around it.
///
/// Replaces: the SSD tier and state on the local disk (there is none of either) and the sizes of the caches. The metadata cache is so large that nothing is
/// ever evicted, since moka looks at real time when it does.
struct SimStores {
    store: Store,
    caches: Caches,
    memory: TaskMemory,
    throttle: Throttle,
}

impl SimStores {
    fn new(store: Store, plan: &Plan) -> Self {
        let caches = Caches::in_memory(plan.block_cache_bytes, 1 << 30);
        let throttle = Throttle::new(plan.compaction_bytes_per_second);
        Self { store, caches, memory: plan.memory, throttle }
    }
}

impl Stores for SimStores {
    fn job_store(&self, name: &str, _: &Settings) -> Result<Store> {
        Ok(self.store.child(name).with_meter(Meter::new()))
    }

    fn caches(&self) -> Caches {
        self.caches.clone()
    }

    fn task_memory(&self, _: &Settings, _: usize) -> TaskMemory {
        self.memory
    }

    fn throttle(&self) -> Throttle {
        self.throttle.clone()
    }
}
