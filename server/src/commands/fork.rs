//! `fork`: on a running cluster, or in a place of state that no cluster need run.

use std::collections::BTreeSet;
use std::sync::Arc;

use millstream_common::{Error, Result};
use millstream_engine::coordinator::fork::{ForkOrder, fork as make};
use millstream_engine::dataflow::JobRegistry;
use millstream_engine::settings;
use millstream_proto::control::Fork;
use millstream_state_store::version::VersionLog;
use serde_json::json;

use super::offline::no_version;
use super::{ask, show};
use crate::args::ForkArgs;
use crate::environment::{self, Environment};
use crate::process::Process;
use crate::{logs, options};

pub(super) fn fork(args: ForkArgs, json: bool, registry: &Arc<JobRegistry>, environment: Environment) -> Result<()> {
    match &args.state {
        Some(url) => in_place(&args, url, json, registry, environment),
        None => on_cluster(args, json, registry, environment),
    }
}

fn on_cluster(args: ForkArgs, json: bool, registry: &JobRegistry, environment: Environment) -> Result<()> {
    if !args.settings.define.is_empty() || args.settings.config.is_some() {
        return Err(settings::not_built_yet(
            "fork with settings on a cluster",
            "the fork takes those of its parent; stop it and submit it again with others",
        ));
    }
    let (at, parallelism) = (args.at.unwrap_or(0), args.parallelism.unwrap_or(0));
    ask::fork(&args.cluster, &args.job, json, environment, |job| {
        Ok(Fork {
            job: args.job.clone(),
            at,
            name: args.name.clone(),
            parallelism,
            args: given(registry, job, &args.job_args)?,
        })
    })
}

fn in_place(
    args: &ForkArgs,
    url: &str,
    json: bool,
    registry: &Arc<JobRegistry>,
    environment: Environment,
) -> Result<()> {
    if args.parallelism.is_some() {
        // It is for whoever runs the fork.
        let next = "leave -p away here, and give it to `run` or `submit`, which go on with the fork";
        return Err(Error::config("-p does not go with --state").code(1000).next(next));
    }
    logs::start(&environment, "warn");
    let settings = options::of_process(&args.settings, &[])?;
    let process = Process::start(1, environment)?;
    let parent = process.open_store_to_read(url, &settings)?.child(&args.job);
    let made = process.block_on(async {
        let newest = VersionLog::new(parent.clone(), process.env.clone()).newest().await?;
        let newest = newest.ok_or_else(|| no_version(&args.job, &parent))?;
        let job = newest.job.map(|j| j.job).unwrap_or_default();
        let order = ForkOrder {
            parent: args.job.clone(),
            at: args.at,
            name: args.name.clone(),
            args: given(registry, &job, &args.job_args)?,
            parent_args: None,
        };
        make(registry, &parent, &order, &process.env).await
    })?;
    let document = json!({
        "name": args.name, "job": made.job, "args": made.args, "parent": args.job, "version": made.version,
    });
    show(json, &document, |_| {
        format!(
            "{} begins with version {} of {}; go on with: millstream run {} --name {} --state {url} -- {}",
            args.name,
            made.version,
            args.job,
            made.job,
            args.name,
            made.args.join(" ")
        )
    })
}

/// What was given behind `--`, normalised and with absolute paths; nothing of what was not given.
fn given(registry: &JobRegistry, job: &str, args: &[String]) -> Result<Vec<String>> {
    let name = |a: &String| a.split('=').next().unwrap_or_default().to_owned();
    let names: BTreeSet<String> = args.iter().filter(|a| a.starts_with("--")).map(name).collect();
    if names.is_empty() && !args.is_empty() {
        return Err(Error::config(format!("'{}' is no argument of a job", args[0])).code(1002));
    }
    let all = registry.absolutise(job, args, &environment::current_folder()?)?;
    Ok(all.into_iter().filter(|a| names.contains(&name(a))).collect())
}
