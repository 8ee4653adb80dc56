//! `compactor`: a process that merges state of the jobs of a cluster. Asked to end by a signal, it finishes what it merges,
//! or leaves it to others when that takes too long, and ends with 0; a second signal ends it at once, with 0 as well: nothing
//! of it is missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millstream_common::{Lane, Result};
use millstream_engine::dataflow::JobRegistry;
use millstream_engine::memory_plan::MemoryPlan;
use millstream_engine::settings::Settings;
use millstream_engine::transport::network::{Network, NetworkSettings};
use millstream_engine::worker::{LeaveRequest, Role, WorkerOptions, run_worker};
use serde_json::json;

use super::serve::{LEVEL, Scraped, ended_by, serve_metrics, state_of, worker_options};
use crate::args::CompactorArgs;
use crate::client::Client;
use crate::environment::{self, Environment};
use crate::metrics::ProcessParts;
use crate::process::Process;
use crate::signals::Signals;
use crate::stores::ProcessStores;
use crate::{logs, options, out};

pub(super) fn compactor(
    args: CompactorArgs,
    json: bool,
    registry: Arc<JobRegistry>,
    environment: Environment,
) -> Result<()> {
    if args.metrics_listen != "none" {
        options::refuse_open_address("--metrics-listen", &args.metrics_listen, args.insecure)?;
    }
    let more = [("cache.memory", args.cache_memory.clone()), ("memory.limit", args.memory_limit.clone())];
    let mut settings = options::of_server(&args.settings, &more)?;
    // What it reads it reads once.
    settings.cache.disk_bytes.get_or_insert(0);
    let coordinators = environment.coordinators(args.cluster.coordinator.as_deref())?;
    logs::start(&environment, LEVEL);
    let process = Process::start(environment::cores(), environment)?;
    process.block_on(compact(&args, json, &settings, coordinators, registry, &process))
}

async fn compact(
    args: &CompactorArgs,
    json: bool,
    settings: &Settings,
    coordinators: Vec<String>,
    registry: Arc<JobRegistry>,
    process: &Process,
) -> Result<()> {
    let env = &process.env;
    let network = NetworkSettings { insecure: args.insecure, ..NetworkSettings::default() };
    let transport = Arc::new(Network::new(env.clone(), network));
    let client = Client::new(transport.clone(), coordinators.clone(), env.clone());
    let parts = ProcessParts::default();
    serve_metrics(&args.metrics_listen, Scraped { leader: None, parts: parts.clone() }, env).await?;
    let slots = args.slots.unwrap_or_else(|| u32::try_from(environment::cores()).unwrap_or(1));
    let leave = LeaveRequest::default();
    // Before that there is nothing to finish.
    let registered = AtomicBool::new(false);
    let working = async {
        let url = state_of(&client, env).await;
        let state = process.open_store(&url, settings)?;
        let plan = MemoryPlan::of_compactor(settings, environment::ram_bytes());
        let stores = ProcessStores::open(state, &url, settings, plan, env).await?.for_merges(slots);
        let stores = Arc::new(stores);
        parts.opened(stores.clone());
        let options = worker_options(coordinators, slots, settings, env, &parts);
        let options = WorkerOptions { role: Role::Compactor, leave: leave.clone(), ..options };
        if json {
            out::print_json(&json!({"compactor": options.name, "slots": slots, "state": url}))?;
        } else {
            tracing::info!("compactor {} offers {slots} slots, state {url}", options.name);
        }
        registered.store(true, Ordering::Relaxed);
        let running = run_worker(options, transport, registry, stores, env.clone());
        env.run(Lane::Io, "compactor", running).await?
    };
    let mut signals = Signals::listen()?;
    let asked = async {
        let signal = signals.next().await;
        if !registered.load(Ordering::Relaxed) {
            return ended_by(signal, "compactor");
        }
        out::note(&format!("{signal}: this compactor finishes what it merges; a second signal ends it at once"));
        leave.ask();
        ended_by(signals.next().await, "compactor")
    };
    millstream_common::select! {
        result = working => result.map(|_| out::note("this compactor ends; what it has not merged is for others")),
        result = asked => result,
    }
}
