//! `compactor`: a process that merges state of the jobs of a cluster. Asked to end by a signal, it finishes what it merges,
//! or leaves it to others when that takes too long, and ends with 0; a second signal ends it at once, with 0 as well: nothing
//! of it is missed.

use std::sync::Arc;

use millstream_common::Result;
use millstream_engine::dataflow::JobRegistry;
use millstream_engine::transport::network::NetworkSettings;
use millstream_engine::worker::Role;

use super::offer::Offer;
use super::serve::{LEVEL, ended_by, refuse_open_metrics};
use crate::args::CompactorArgs;
use crate::environment::{self, Environment};
use crate::process::Process;
use crate::{logs, options};

pub(super) fn compactor(
    args: CompactorArgs,
    json: bool,
    registry: Arc<JobRegistry>,
    environment: Environment,
) -> Result<()> {
    refuse_open_metrics(&args.process)?;
    let more = [("cache.memory", args.cache_memory.clone()), ("memory.limit", args.memory_limit.clone())];
    let mut settings = options::of_server(&args.process.settings, &more)?;
    // What it reads it reads once.
    settings.cache.disk_bytes.get_or_insert(0);
    let coordinators = environment.coordinators(args.cluster.coordinator.as_deref())?;
    logs::start(&environment, LEVEL);
    let process = Process::start(environment::cores(), environment)?;
    let offer = Offer {
        role: Role::Compactor,
        network: NetworkSettings { insecure: args.process.insecure, ..NetworkSettings::default() },
        metrics_listen: &args.process.metrics_listen,
        slots: args.slots,
        on_signal: "finishes what it merges",
        second_signal: |signal| ended_by(signal, Role::Compactor.name()),
        farewell: |_| "this compactor ends; what it has not merged is for others".to_owned(),
    };
    process.block_on(offer.serve(json, &settings, coordinators, registry, &process))
}
