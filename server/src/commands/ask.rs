//! What a client asks of a coordinator.

use std::sync::Arc;

use millstream_common::{Error, Result};
use millstream_engine::dataflow::JobRegistry;
use millstream_engine::settings;
use millstream_engine::transport::network::{Network, NetworkSettings};
use millstream_proto::control::client_request::Request;
use millstream_proto::control::{
    Cancel, Checkpoint, Fork, List, Rebalance, Rescale, Status, Stop, Submit, Versions, Workers,
};
use serde_json::{Value, json};

use super::show;
use crate::args::{
    ClusterArg, JobCommand, JobOptions, RescaleArgs, StopArgs, SubmitArgs, VersionsArgs, WaitingCommand,
};
use crate::client::Client;
use crate::environment::{self, Environment};
use crate::process::Process;
use crate::{logs, options, out, people};

/// A client in a process of its own.
pub(super) struct Asking {
    pub(super) process: Process,
    pub(super) client: Client,
}

pub(super) fn start(cluster: &ClusterArg, environment: Environment) -> Result<Asking> {
    let addresses = environment.coordinators(cluster.coordinator.as_deref())?;
    logs::start(&environment, "warn");
    let process = Process::start(1, environment)?;
    let transport = Arc::new(Network::new(process.env.clone(), NetworkSettings::default()));
    let client = Client::new(transport, addresses, process.env.clone());
    Ok(Asking { process, client })
}

pub(super) fn list(cluster: &ClusterArg, json: bool, environment: Environment) -> Result<()> {
    look(cluster, Request::List(List {}), json, people::list, environment)
}

pub(super) fn workers(cluster: &ClusterArg, json: bool, environment: Environment) -> Result<()> {
    look(cluster, Request::Workers(Workers {}), json, people::workers, environment)
}

pub(super) fn status(args: &JobCommand, json: bool, environment: Environment) -> Result<()> {
    look(&args.cluster, Request::Status(Status { job: args.job.clone() }), json, people::status, environment)
}

pub(super) fn versions(args: &VersionsArgs, json: bool, environment: Environment) -> Result<()> {
    look(&args.cluster, Request::Versions(Versions { job: args.job.clone() }), json, people::versions, environment)
}

fn look(
    cluster: &ClusterArg,
    request: Request,
    json: bool,
    text: impl Fn(&Value) -> String,
    environment: Environment,
) -> Result<()> {
    let asking = start(cluster, environment)?;
    let document = asking.process.block_on(asking.client.document(request))?;
    show(json, &document, text)
}

pub(super) fn checkpoint(args: &WaitingCommand, json: bool, environment: Environment) -> Result<()> {
    let request = Request::Checkpoint(Checkpoint { job: args.job.job.clone(), no_wait: args.no_wait });
    change(args, request, json, environment)
}

pub(super) fn rescale(args: &RescaleArgs, json: bool, environment: Environment) -> Result<()> {
    let (job, no_wait) = (args.job.job.job.clone(), args.job.no_wait);
    let request = Request::Rescale(Rescale { job, parallelism: args.parallelism, no_wait });
    change(&args.job, request, json, environment)
}

pub(super) fn rebalance(args: &WaitingCommand, json: bool, environment: Environment) -> Result<()> {
    let request = Request::Rebalance(Rebalance { job: args.job.job.clone(), no_wait: args.no_wait });
    change(args, request, json, environment)
}

pub(super) fn cancel(args: &WaitingCommand, json: bool, environment: Environment) -> Result<()> {
    let request = Request::Cancel(Cancel { job: args.job.job.clone(), no_wait: args.no_wait });
    change(args, request, json, environment)
}

pub(super) fn stop(args: &StopArgs, json: bool, environment: Environment) -> Result<()> {
    if args.drain {
        return Err(settings::not_built_yet("stop --drain", "plain `stop` takes a last checkpoint"));
    }
    let request = Request::Stop(Stop { job: args.job.job.job.clone(), no_wait: args.job.no_wait });
    change(&args.job, request, json, environment)
}

/// Asks for something that takes its time, then shows the job's status in a line, or as a document.
fn change(args: &WaitingCommand, request: Request, json: bool, environment: Environment) -> Result<()> {
    let asking = start(&args.job.cluster, environment)?;
    let document = asking.process.block_on(asking.client.document_when_done(request))?;
    show(json, &document, |doc| {
        let word = |field: &str| doc[field].as_str().unwrap_or("-").to_owned();
        let number = |field: &str| doc[field].as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string());
        format!(
            "{} ({}) is {}, parallelism {}, version {}",
            word("id"),
            word("job"),
            word("state"),
            number("parallelism"),
            number("version")
        )
    })
}

pub(super) fn submit(args: SubmitArgs, json: bool, registry: &JobRegistry, environment: Environment) -> Result<()> {
    options::refuse_contradictions(&args.job)?;
    options::refuse_what_is_not_built(&args.job)?;
    let settings = options::of_submit(&args.job)?;
    let request = submission(&args.job, 1, &settings, registry)?;
    let name = request.name.clone();
    let asking = start(&args.cluster, environment)?;
    let id = asking.process.block_on(async {
        let id = match asking.client.submit(request).await {
            Err(e) if ABOUT_STATE.contains(&e.number()) => Err(at_state(e, &asking.client, &name).await),
            answer => answer,
        }?;
        // The id stands whatever becomes of this look.
        if let Ok(status) = asking.client.status(&id).await
            && status["already_finished"] == true
        {
            out::note(&already_finished(&status));
        }
        Ok::<_, Error>(id)
    })?;
    if json { out::print_json(&json!({ "id": id })) } else { out::print(&id) }
}

/// Starts a fork. `order` makes the request, once the job's kind is known.
pub(super) fn fork(
    cluster: &ClusterArg,
    job: &str,
    json: bool,
    environment: Environment,
    order: impl FnOnce(&str) -> Result<Fork>,
) -> Result<()> {
    let asking = start(cluster, environment)?;
    let id = asking.process.block_on(async {
        let status = asking.client.status(job).await?;
        let request = order(status["job"].as_str().unwrap_or_default())?;
        asking.client.fork(request).await
    })?;
    if json { out::print_json(&json!({ "id": id })) } else { out::print(&id) }
}

/// Numbers of errors about what stands at the place of a job's state: versions that are there or are not, of this job or
/// another.
const ABOUT_STATE: std::ops::RangeInclusive<u16> = 1501..=1504;

/// The error, with the place of the job's state when the coordinator tells it.
async fn at_state(error: Error, client: &Client, name: &str) -> Error {
    match client.info().await {
        Ok(info) => error.at(format!("{}/{name}", info.state_url.trim_end_matches('/'))),
        Err(_) => error,
    }
}

/// What a user is told who starts a job that has finished.
pub(super) fn already_finished(status: &Value) -> String {
    format!(
        "{} has finished already: version {} is its last, nothing is left to do",
        status["name"].as_str().or(status["job"].as_str()).unwrap_or("the job"),
        status["version"]
    )
}

/// The request that starts a job. Relative paths in its arguments are meant from where the command was typed.
pub(super) fn submission(
    job: &JobOptions,
    parallelism: u32,
    settings: &settings::Settings,
    registry: &JobRegistry,
) -> Result<Submit> {
    Ok(Submit {
        job: job.job.clone(),
        args: registry.absolutise(&job.job, &job.job_args, &environment::current_folder()?)?,
        name: job.name.clone().unwrap_or_else(|| job.job.clone()),
        parallelism: job.parallelism.unwrap_or(parallelism),
        settings: settings.job_map().into_iter().collect(),
        from: job.from.clone(),
        discard_state: job.discard_state,
        state_url: job.state.clone().unwrap_or_default(),
    })
}
