//! The commands, one module for each kind:
//!
//! - [`run`]: a whole cluster in this process.
//! - [`serve`]: `coordinator` and `worker`.
//! - [`compactor`]: a process that merges state.
//! - [`ask`]: what a client asks of a coordinator.
//! - [`state`]: a look into the state of a job, as it lies in the object store.
//! - [`offline`]: what else can be read from a place of state without a cluster.
//! - [`offline`]: what can be read from a place of state without a cluster.
//! - [`fork`]: a second job from a version of a job.
//! - [`pins`]: what keeps versions, in a place of state.
//!
//! Each reads what was typed, refuses what cannot be before anything starts, and prints its result once at the end.

use std::sync::Arc;

use millstream_common::Result;
use millstream_engine::dataflow::JobRegistry;
use millstream_engine::settings::{self, SETTINGS, Settings};
use serde_json::{Value, json};

use crate::args::{Cli, Command, MetricsArgs, SettingsArgs};
use crate::environment::Environment;
use crate::metrics::list::{METRICS, MetricDef, markdown};
use crate::table::Table;
use crate::{out, people};

mod ask;
mod compactor;
mod fork;
mod offer;
mod offline;
mod pins;
mod run;
mod serve;
mod state;

/// Carries out what was typed.
pub fn carry_out(cli: Cli, registry: Arc<JobRegistry>, environment: Environment) -> Result<()> {
    let json = cli.json;
    match cli.command {
        Command::Run(args) => run::run(args, json, registry, environment),
        Command::Coordinator(args) => serve::coordinator(args, json, registry, environment),
        Command::Worker(args) => serve::worker(args, json, registry, environment),
        Command::Compactor(args) => compactor::compactor(args, json, registry, environment),
        Command::Submit(args) => ask::submit(args, json, &registry, environment),
        Command::List(args) => match &args.state {
            Some(url) => offline::list(url, &args.settings, json, environment),
            None => ask::list(&args.cluster, json, environment),
        },
        Command::Versions(args) => match &args.state {
            Some(url) => offline::versions(&args.job, url, &args.settings, json, environment),
            None => ask::versions(&args, json, environment),
        },
        Command::Status(args) => ask::status(&args, json, environment),
        Command::Checkpoint(args) => ask::checkpoint(&args, json, environment),
        Command::Rescale(args) => ask::rescale(&args, json, environment),
        Command::Rebalance(args) => ask::rebalance(&args, json, environment),
        Command::Workers(args) => ask::workers(&args, json, environment),
        Command::Cancel(args) => ask::cancel(&args, json, environment),
        Command::Stop(args) => ask::stop(&args, json, environment),
        Command::State(args) => state::carry_out(&args.command, json, environment),
        Command::Fork(args) => fork::fork(args, json, &registry, environment),
        Command::Pins(args) => pins::pins(&args, json, environment),
        Command::Pin(args) => pins::pin(&args, json, environment),
        Command::Fsck(args) => offline::fsck(&args, json, environment),
        Command::Jobs => show(json, &jobs(&registry), people::jobs),
        Command::Settings(args) => settings(&args, json),
        Command::Metrics(args) => metrics(&args, json),
        Command::Savepoint(_) => Err(settings::not_built_yet(
            "savepoint",
            "`millstream checkpoint ID` commits a version; `millstream versions` lists them",
        )),
    }
}

/// Prints a document: as it is, or as text for people.
fn show(json: bool, document: &Value, text: impl Fn(&Value) -> String) -> Result<()> {
    if json { out::print_json(document) } else { out::print(&text(document)) }
}

fn jobs(registry: &JobRegistry) -> Value {
    registry.iter().map(|job| json!({"name": job.name, "description": job.description})).collect()
}

fn settings(args: &SettingsArgs, json: bool) -> Result<()> {
    if args.markdown {
        return out::print(settings::list::markdown().trim_end());
    }
    if json {
        let list = SETTINGS.iter().map(
            |d| json!({"key": d.key, "default": d.default, "unit": d.unit, "meaning": d.meaning, "option": d.option}),
        );
        return out::print_json(&list.collect());
    }
    let defaults = Settings::defaults();
    let mut table = Table::new(&["setting", "default", "meaning"]);
    for def in SETTINGS {
        table.row(vec![def.key.to_owned(), (def.get)(&defaults), def.meaning.to_owned()]);
    }
    out::print(&table.render())
}

fn metrics(args: &MetricsArgs, json: bool) -> Result<()> {
    if args.markdown {
        return out::print(markdown().trim_end());
    }
    let kind = |d: &MetricDef| format!("{:?}", d.kind).to_lowercase();
    if json {
        let row = |d: &MetricDef| json!({"name": d.name, "type": kind(d), "labels": d.labels, "meaning": d.help});
        return out::print_json(&METRICS.iter().map(row).collect());
    }
    let mut table = Table::new(&["metric", "type", "labels", "meaning"]);
    for def in METRICS {
        table.row(vec![def.name.to_owned(), kind(def), def.labels.join(" "), def.help.to_owned()]);
    }
    out::print(&table.render())
}
