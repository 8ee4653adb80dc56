//! `coordinator` and `worker`: the processes of a cluster. A coordinator ends with a signal, or when it is fenced. A
//! worker that is asked to end by a signal first hands over what it runs; a second signal ends it at once.

use std::sync::Arc;
use std::time::Duration;

use millstream_common::env::BoxFuture;
use millstream_common::{Env, Error, Lane, Result};
use millstream_engine::coordinator::{CoordinatorOptions, run_coordinator};
use millstream_engine::dataflow::JobRegistry;
use millstream_engine::settings::Settings;
use millstream_engine::transport::network::{Network, NetworkSettings};
use millstream_engine::worker::{Departure, Role};
use millstream_objects::Store;
use millstream_proto::control::{LeaderInfo, ProcessUsage};
use serde_json::{Value, json};

use super::offer::Offer;
use crate::args::{CoordinatorArgs, ProcessArgs, ServeArgs, WorkerArgs};
use crate::client::Client;
use crate::environment::{self, Environment};
use crate::metrics::{MetricsSource, ProcessFigures, ProcessParts};
use crate::process::{Process, for_cluster};
use crate::stores::ProcessStores;
use crate::{http, logs, options, out, signals, usage};

/// From one question for a coordinator to the next, while none answers.
pub(super) const SEARCH: Duration = Duration::from_millis(200);

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

pub(super) fn process_usage() -> ProcessUsage {
    let used = usage::of_this_process();
    ProcessUsage { cpu_s: used.cpu_s.unwrap_or(0.0), peak_rss_bytes: used.peak_rss_bytes.unwrap_or(0) }
}

fn refuse_open_addresses(listen: &str, serve: &ServeArgs) -> Result<()> {
    options::refuse_open_address("--listen", listen, serve.process.insecure)?;
    if let Some(address) = &serve.advertise {
        options::refuse_open_address("--advertise", address, serve.process.insecure)?;
    }
    refuse_open_metrics(&serve.process)
}

pub(super) fn refuse_open_metrics(process: &ProcessArgs) -> Result<()> {
    if process.metrics_listen == "none" {
        return Ok(());
    }
    options::refuse_open_address("--metrics-listen", &process.metrics_listen, process.insecure)
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
    let settings = options::of_server(&args.serve.process.settings, &[])?;
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
    let network = Network::new(
        env.clone(),
        NetworkSettings { insecure: args.serve.process.insecure, ..NetworkSettings::default() },
    );
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
        serve_metrics(&args.serve.process.metrics_listen, Scraped { leader: Some(client.clone()), parts }, env).await?;
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
    let settings = options::of_server(&args.serve.process.settings, &options::of_memory(&args.memory))?;
    let coordinators = environment.coordinators(args.cluster.coordinator.as_deref())?;
    logs::start(&environment, LEVEL);
    let process = Process::start(environment::cores(), environment)?;
    let offer = Offer {
        role: Role::Worker,
        network: NetworkSettings {
            data_listen: args.listen.clone(),
            data_advertise: args.serve.advertise.clone(),
            insecure: args.serve.process.insecure,
        },
        metrics_listen: &args.serve.process.metrics_listen,
        slots: args.slots,
        on_signal: "hands over what it runs",
        second_signal: |signal| {
            Err(Error::canceled(format!("{signal} ended this worker before it had handed over what it ran"))
                .code(6001)
                .next("its jobs restart from their newest version"))
        },
        farewell: departed,
    };
    process.block_on(offer.serve(json, &settings, coordinators, registry, &process))
}

/// The last line of a worker that was let go.
fn departed(departure: &Departure) -> String {
    if departure.waiting.is_empty() {
        return "this worker has handed over what it ran, and ends".to_owned();
    }
    let jobs = departure.waiting.join(", ");
    format!("this worker ends; waiting for slots, with their state as of the newest version: {jobs}")
}

/// Nothing that matters is lost with a process of a cluster: a signal is an ordinary end.
pub(super) fn ended_by(signal: &str, what: &str) -> Result<()> {
    tracing::info!("the {what} ends after {signal}");
    Ok(())
}
