//! `coordinator` and `worker`: the processes of a cluster. A coordinator ends with a signal, or when it is fenced. A
//! worker that is asked to end by a signal first hands over what it runs; a second signal ends it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millstream_common::env::BoxFuture;
use millstream_common::{Env, Error, Lane, Result};
use millstream_engine::coordinator::{CoordinatorOptions, run_coordinator};
use millstream_engine::dataflow::JobRegistry;
use millstream_engine::memory_plan::MemoryPlan;
use millstream_engine::settings::Settings;
use millstream_engine::transport::network::{Network, NetworkSettings};
use millstream_engine::worker::{Departure, LeaveRequest, Role, WorkerOptions, run_worker};
use millstream_objects::Store;
use millstream_proto::control::{LeaderInfo, ProcessUsage};
use serde_json::{Value, json};

use crate::args::{CoordinatorArgs, ServeArgs, WorkerArgs};
use crate::client::Client;
use crate::environment::{self, Environment};
use crate::metrics::{MetricsSource, ProcessFigures, ProcessParts};
use crate::process::{Process, for_cluster};
use crate::signals::Signals;
use crate::stores::ProcessStores;
use crate::{http, logs, options, out, signals, usage};

/// From one question for a coordinator to the next, while none answers.
const SEARCH: Duration = Duration::from_millis(200);

/// Levels of logs of a process of a cluster: ours at info, what we use at warn.
pub(super) const LEVEL: &str = "warn,millstream=info";

/// What /metrics of a process is made from.
pub(super) struct Scraped {
    /// Of a process that leads: whom it asks for the jobs.
    pub(super) leader: Option<Client>,
    /// Itself.
    pub(super) parts: ProcessParts,
}

impl MetricsSource for Scraped {
    fn documents(&self) -> BoxFuture<'_, Vec<Value>> {
        Box::pin(async move {
            let Some(leader) = &self.leader else { return Vec::new() };
            // Whoever scrapes sees the process's own counters in any case.
            leader.all_statuses().await.unwrap_or_else(|e| {
                tracing::debug!("/metrics: {e}");
                Vec::new()
            })
        })
    }

    fn figures(&self) -> ProcessFigures {
        self.parts.figures()
    }
}

/// Settings of a coordinator; `cluster`: the place of all state, when it leads a cluster.
pub(super) fn coordinator_options(
    cluster: Option<Store>,
    url: &str,
    address: &str,
    settings: &Settings,
) -> CoordinatorOptions {
    CoordinatorOptions {
        address: address.to_owned(),
        state_url: url.to_owned(),
        cluster,
        heartbeat_interval: settings.heartbeat.interval,
        heartbeat_timeout: settings.heartbeat.timeout,
        usage: Arc::new(process_usage),
        pid: std::process::id(),
    }
}

/// Settings of a worker.
pub(super) fn worker_options(
    coordinators: Vec<String>,
    slots: u32,
    settings: &Settings,
    env: &Env,
    parts: &ProcessParts,
) -> WorkerOptions {
    let pid = std::process::id();
    WorkerOptions {
        name: format!("{pid}-{:08x}", env.random() as u32),
        role: Role::Worker,
        slots,
        coordinators,
        pid,
        heartbeat_interval: settings.heartbeat.interval,
        heartbeat_timeout: settings.heartbeat.timeout,
        usage: Arc::new(process_usage),
        leave: LeaveRequest::default(),
        ledger: parts.ledger(),
        drain_timeout: settings.worker.drain_timeout,
    }
}

fn process_usage() -> ProcessUsage {
    let used = usage::of_this_process();
    ProcessUsage { cpu_s: used.cpu_s.unwrap_or(0.0), peak_rss_bytes: used.peak_rss_bytes.unwrap_or(0) }
}

fn refuse_open_addresses(listen: &str, serve: &ServeArgs) -> Result<()> {
    options::refuse_open_address("--listen", listen, serve.insecure)?;
    if let Some(address) = &serve.advertise {
        options::refuse_open_address("--advertise", address, serve.insecure)?;
    }
    if serve.metrics_listen != "none" {
        options::refuse_open_address("--metrics-listen", &serve.metrics_listen, serve.insecure)?;
    }
    Ok(())
}

pub(super) async fn serve_metrics(listen: &str, scraped: Scraped, env: &Env) -> Result<()> {
    if listen != "none" {
        let bound = http::serve(listen, Arc::new(scraped), env).await?;
        tracing::info!("metrics at http://{bound}/metrics");
    }
    Ok(())
}

pub(super) fn coordinator(
    args: CoordinatorArgs,
    json: bool,
    registry: Arc<JobRegistry>,
    environment: Environment,
) -> Result<()> {
    refuse_open_addresses(&args.listen, &args.serve)?;
    let settings = options::of_server(&args.serve.settings, &[])?;
    if args.state.starts_with("memory:") {
        return Err(Error::config("the state of a cluster cannot be in the memory of its coordinator")
            .code(1425)
            .next("give --state file:///..., s3://bucket/prefix, gs:// or az://; `millstream run` takes memory://"));
    }
    logs::start(&environment, LEVEL);
    let process = Process::start(environment::cores(), environment)?;
    process.block_on(lead(&args, json, &settings, registry, &process))
}

async fn lead(
    args: &CoordinatorArgs,
    json: bool,
    settings: &Settings,
    registry: Arc<JobRegistry>,
    process: &Process,
) -> Result<()> {
    let env = &process.env;
    let state = for_cluster(process.open_store(&args.state, settings)?).await?;
    let network =
        Network::new(env.clone(), NetworkSettings { insecure: args.serve.insecure, ..NetworkSettings::default() });
    let (bound, arrivals) = network.serve_coordinator(&args.listen).await?;
    let address = args.serve.advertise.clone().unwrap_or_else(|| bound.to_string());
    // It reads no state of jobs: caches of its own would stay empty.
    let stores = Arc::new(ProcessStores::without_caches(state.clone(), env));
    let parts = ProcessParts::default();
    parts.opened(stores.clone());
    let options = coordinator_options(Some(state), &args.state, &address, settings);
    let transport = Arc::new(network);
    let client = Client::new(transport.clone(), vec![bound.to_string()], env.clone());
    let mut running =
        env.run(Lane::Io, "coordinator", run_coordinator(options, arrivals, transport, registry, stores, env.clone()));
    let announced = async {
        // It answers once it leads.
        let info = loop {
            match client.info().await {
                Ok(info) => break info,
                Err(_) => env.sleep(SEARCH).await,
            }
        };
        serve_metrics(&args.serve.metrics_listen, Scraped { leader: Some(client.clone()), parts }, env).await?;
        announce(json, &bound.to_string(), &info)?;
        std::future::pending::<Result<()>>().await
    };
    millstream_common::select! {
        result = &mut running => result.and_then(|r| r),
        result = announced => result,
        signal = signals::asked_to_end() => ended_by(signal?, "coordinator"),
    }
}

fn announce(json: bool, address: &str, info: &LeaderInfo) -> Result<()> {
    if json {
        return out::print_json(&json!({"listen": address, "state": info.state_url, "generation": info.generation}));
    }
    out::print(&format!("coordinator serves at {address}, state {}, generation {}", info.state_url, info.generation))
}

pub(super) fn worker(args: WorkerArgs, json: bool, registry: Arc<JobRegistry>, environment: Environment) -> Result<()> {
    refuse_open_addresses(&args.listen, &args.serve)?;
    let settings = options::of_server(&args.serve.settings, &options::of_memory(&args.memory))?;
    let coordinators = environment.coordinators(args.cluster.coordinator.as_deref())?;
    logs::start(&environment, LEVEL);
    let process = Process::start(environment::cores(), environment)?;
    process.block_on(work(&args, json, &settings, coordinators, registry, &process))
}

async fn work(
    args: &WorkerArgs,
    json: bool,
    settings: &Settings,
    coordinators: Vec<String>,
    registry: Arc<JobRegistry>,
    process: &Process,
) -> Result<()> {
    let env = &process.env;
    let network = NetworkSettings {
        data_listen: args.listen.clone(),
        data_advertise: args.serve.advertise.clone(),
        insecure: args.serve.insecure,
    };
    let transport = Arc::new(Network::new(env.clone(), network));
    let client = Client::new(transport.clone(), coordinators.clone(), env.clone());
    let parts = ProcessParts::default();
    serve_metrics(&args.serve.metrics_listen, Scraped { leader: None, parts: parts.clone() }, env).await?;
    let slots = args.slots.unwrap_or_else(|| u32::try_from(environment::cores()).unwrap_or(1));
    let leave = LeaveRequest::default();
    // Before it has been with a coordinator it can be missed by nobody.
    let registered = AtomicBool::new(false);
    let working = async {
        let url = state_of(&client, env).await;
        let state = process.open_store(&url, settings)?;
        // The coordinator has tried it.
        state.check_serves_cluster()?;
        let plan = MemoryPlan::new(settings, environment::ram_bytes());
        let stores = Arc::new(ProcessStores::open(state, &url, settings, plan, env).await?);
        parts.opened(stores.clone());
        let options =
            WorkerOptions { leave: leave.clone(), ..worker_options(coordinators, slots, settings, env, &parts) };
        if json {
            out::print_json(&json!({"worker": options.name, "slots": slots, "state": url}))?;
        } else {
            tracing::info!("worker {} offers {slots} slots, state {url}", options.name);
        }
        registered.store(true, Ordering::Relaxed);
        env.run(Lane::Io, "worker", run_worker(options, transport, registry, stores, env.clone())).await?
    };
    let mut signals = Signals::listen()?;
    let asked = async {
        let signal = signals.next().await;
        if !registered.load(Ordering::Relaxed) {
            return ended_by(signal, "worker");
        }
        out::note(&format!("{signal}: this worker hands over what it runs; a second signal ends it at once"));
        leave.ask();
        let second = signals.next().await;
        Err(Error::canceled(format!("{second} ended this worker before it had handed over what it ran"))
            .code(6001)
            .next("its jobs restart from their newest version"))
    };
    millstream_common::select! {
        result = working => result.map(|departure| out::note(&departed(&departure))),
        result = asked => result,
    }
}

/// The last line of a worker that was let go.
fn departed(departure: &Departure) -> String {
    if departure.waiting.is_empty() {
        return "this worker has handed over what it ran, and ends".to_owned();
    }
    let jobs = departure.waiting.join(", ");
    format!("this worker ends; waiting for slots, with their state as of the newest version: {jobs}")
}

/// Where the cluster's state is, from the first coordinator that answers.
pub(super) async fn state_of(client: &Client, env: &Env) -> String {
    let mut told = false;
    loop {
        match client.info().await {
            Ok(info) => return info.state_url,
            Err(e) if !told => {
                told = true;
                tracing::info!("waiting for a coordinator: {e}");
            }
            Err(_) => {}
        }
        env.sleep(SEARCH).await;
    }
}

/// Nothing that matters is lost with a process of a cluster: a signal is an ordinary end.
pub(super) fn ended_by(signal: &str, what: &str) -> Result<()> {
    tracing::info!("the {what} ends after {signal}");
    Ok(())
}
