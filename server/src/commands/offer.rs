//! What `worker` and `compactor` have in common: a process that offers slots to a coordinator.
//!
//! Order of events: it asks coordinators until one answers, opens the place of the state that this one names, and serves.
//! A first signal asks it to leave, a second one ends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millstream_common::{Env, Lane, Result};
use millstream_engine::dataflow::JobRegistry;
use millstream_engine::memory_plan::MemoryPlan;
use millstream_engine::settings::Settings;
use millstream_engine::transport::network::{Network, NetworkSettings};
use millstream_engine::worker::{Departure, LeaveRequest, Role, WorkerOptions, run_worker};
use serde_json::json;

use super::serve::{SEARCH, Scraped, ended_by, process_usage, serve_metrics};
use crate::client::Client;
use crate::metrics::ProcessParts;
use crate::process::Process;
use crate::signals::Signals;
use crate::stores::ProcessStores;
use crate::{environment, out};

/// Slots for a coordinator.
pub(super) struct Offer<'a> {
    pub(super) role: Role,
    pub(super) network: NetworkSettings,
    pub(super) metrics_listen: &'a str,
    /// None: the number of cores.
    pub(super) slots: Option<u32>,
    /// What it does when it is asked to leave.
    pub(super) on_signal: &'static str,
    /// What it comes to when it is told a second time.
    pub(super) second_signal: fn(&str) -> Result<()>,
    /// The last line.
    pub(super) farewell: fn(&Departure) -> String,
}

impl Offer<'_> {
    /// Until it is let go, or ended.
    pub(super) async fn serve(
        &self,
        json: bool,
        settings: &Settings,
        coordinators: Vec<String>,
        registry: Arc<JobRegistry>,
        process: &Process,
    ) -> Result<()> {
        let (env, what) = (&process.env, self.role.name());
        let transport = Arc::new(Network::new(env.clone(), self.network.clone()));
        let client = Client::new(transport.clone(), coordinators.clone(), env.clone());
        let parts = ProcessParts::default();
        serve_metrics(self.metrics_listen, Scraped { leader: None, parts: parts.clone() }, env).await?;
        let slots = self.slots.unwrap_or_else(|| u32::try_from(environment::cores()).unwrap_or(1));
        let leave = LeaveRequest::default();
        // Before it has been with a coordinator it can be missed by nobody.
        let registered = AtomicBool::new(false);
        let working = async {
            let url = state_of(&client, env).await;
            let state = process.open_store(&url, settings)?;
            // The coordinator has tried it.
            state.check_serves_cluster()?;
            let stores = match self.role {
                Role::Worker => {
                    let plan = MemoryPlan::new(settings, environment::ram_bytes());
                    ProcessStores::open(state, &url, settings, plan, env).await?
                }
                Role::Compactor => {
                    let plan = MemoryPlan::of_compactor(settings, environment::ram_bytes());
                    ProcessStores::open(state, &url, settings, plan, env).await?.for_merges(slots)
                }
            };
            let stores = Arc::new(stores);
            parts.opened(stores.clone());
            let options = WorkerOptions {
                role: self.role,
                leave: leave.clone(),
                ..worker_options(coordinators, slots, settings, env, &parts)
            };
            if json {
                out::print_json(&json!({what: options.name, "slots": slots, "state": url}))?;
            } else {
                tracing::info!("{what} {} offers {slots} slots, state {url}", options.name);
            }
            registered.store(true, Ordering::Relaxed);
            let work = run_worker(options, transport, registry, stores.clone(), env.clone());
            let departure = env.run(Lane::Io, what, work).await?;
            stores.close(env).await;
            departure
        };
        let mut signals = Signals::listen()?;
        let asked = async {
            let signal = signals.next().await;
            if !registered.load(Ordering::Relaxed) {
                return ended_by(signal, what);
            }
            out::note(&format!("{signal}: this {what} {}; a second signal ends it at once", self.on_signal));
            leave.ask();
            (self.second_signal)(signals.next().await)
        };
        millstream_common::select! {
            result = working => result.map(|departure| out::note(&(self.farewell)(&departure))),
            result = asked => result,
        }
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

/// Where the cluster's state is, from the first coordinator that answers.
async fn state_of(client: &Client, env: &Env) -> String {
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
