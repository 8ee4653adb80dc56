//! `run`: a whole cluster in this process. Coordinator, worker and client are the same code as in a cluster; only the
//! transport is one of memory.
//!
//! Order of events: the job is submitted; it is looked at until it has ended; the summary is written from its last
//! status; then the process ends with the job's outcome. A signal cancels the job, so it ends in the same way; a
//! coordinator that was fenced ends the process before.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use millstream_common::{Env, Error, ErrorKind, Lane, Result};
use millstream_connectors::print::STDOUT_CLOSED;
use millstream_engine::coordinator::{CoordinatorOptions, run_coordinator};
use millstream_engine::dataflow::JobRegistry;
use millstream_engine::memory_plan::MemoryPlan;
use millstream_engine::settings::Settings;
use millstream_engine::transport::in_process::InProcess;
use millstream_engine::worker::run_worker;
use millstream_proto::control::client_request::Request;
use millstream_proto::control::{Cancel, Submit};
use serde_json::{Value, json};

use super::ask::{already_finished, submission};
use super::offer::worker_options;
use super::serve::{Scraped, coordinator_options};
use crate::args::RunArgs;
use crate::client::{Client, IN_PROCESS, error_of_job};
use crate::environment::{self, Environment};
use crate::metrics::ProcessParts;
use crate::process::{Process, for_one_process};
use crate::progress::Progress;
use crate::stores::ProcessStores;
use crate::{http, logs, options, out, signals, usage};

/// From one look at the job to the next.
const LOOK: Duration = Duration::from_millis(50);

/// From one progress line to the next.
const PROGRESS: Duration = Duration::from_millis(500);

/// After a signal the job gets so long to end.
const CANCEL: Duration = Duration::from_secs(3);

pub(super) fn run(args: RunArgs, json: bool, registry: Arc<JobRegistry>, environment: Environment) -> Result<()> {
    options::refuse_contradictions(&args.job)?;
    options::refuse_what_is_not_built(&args.job)?;
    let settings = options::of_run(&args.job)?;
    let cores = environment::cores();
    let request = submission(&args.job, u32::try_from(cores).unwrap_or(1), &settings, &registry)?;
    if json {
        options::refuse_rows_beside_document(&request.args)?;
    }
    logs::start_for_one_job(&environment, "warn");
    let process = Process::start(cores, environment)?;
    let url = args.job.state.as_deref().unwrap_or("memory://");
    let (document, signal) = process.block_on(whole(&args, url, &settings, request, registry, &process))?;
    if let Some(file) = &args.summary {
        write_summary(file, &document)?;
    }
    if json {
        out::print_json(&document)?;
    }
    match signal {
        Some(name) if document["state"] == "canceled" => Err(interrupted(name, url)),
        _ => outcome(&document),
    }
}

/// Runs the cluster until the job has ended; gives its last status, and the signal that ended it if one did.
async fn whole(
    args: &RunArgs,
    url: &str,
    settings: &Settings,
    mut request: Submit,
    registry: Arc<JobRegistry>,
    process: &Process,
) -> Result<(Value, Option<&'static str>)> {
    let env = &process.env;
    request.state_url = String::new();
    let state = for_one_process(process.open_store(url, settings)?).await?;
    let job = Job { job: request.job.clone(), name: request.name.clone(), place: state.child(&request.name).url() };
    let plan = MemoryPlan::new(settings, environment::ram_bytes());
    let stores = Arc::new(ProcessStores::open(state, url, settings, plan, env).await?);
    let parts = ProcessParts::default();
    parts.opened(stores.clone());
    let net = InProcess::default();
    let arrivals = net.listen_coordinator(IN_PROCESS);
    let transport = Arc::new(net);
    let options: CoordinatorOptions = coordinator_options(None, url, IN_PROCESS, settings);
    let mut coordinator = env.run(
        Lane::Io,
        "coordinator",
        run_coordinator(options, arrivals, transport.clone(), registry.clone(), stores.clone(), env.clone()),
    );
    let options = worker_options(vec![IN_PROCESS.to_owned()], request.parallelism, settings, env, &parts);
    let mut worker =
        env.run(Lane::Io, "worker", run_worker(options, transport.clone(), registry, stores.clone(), env.clone()));
    let client = Client::new(transport, vec![IN_PROCESS.to_owned()], env.clone());
    if let Some(address) = &args.metrics_listen {
        options::refuse_open_address("--metrics-listen", address, args.insecure)?;
        let bound = http::serve(address, Arc::new(Scraped { leader: Some(client.clone()), parts }), env).await?;
        out::note(&format!("metrics at http://{bound}/metrics"));
    }
    let mut progress = Progress::of_stderr();
    let ended = millstream_common::select! {
        document = until_ended(&client, request, &job, &mut progress, env) => document.map(|d| (d, None)),
        result = &mut coordinator => result.and_then(|r| r).and_then(|()| Err(Error::internal("the coordinator ended").code(9304))),
        result = &mut worker => result.and_then(|r| r).and_then(|_| Err(Error::internal("the worker ended").code(9305))),
        signal = signals::asked_to_end() => match signal {
            Ok(name) => Ok((called_off(&client, &job, env).await, Some(name))),
            Err(e) => Err(e),
        },
    };
    // First: it would take the end of the worker for a loss.
    drop(coordinator);
    progress.end();
    drop(worker);
    stores.close(env).await;
    ended.map(|(document, signal)| (with_usage(document), signal))
}

/// The job of this process.
struct Job {
    job: String,
    name: String,
    /// Where its state is, for messages.
    place: String,
}

async fn until_ended(client: &Client, request: Submit, job: &Job, progress: &mut Progress, env: &Env) -> Result<Value> {
    let at_state = |e: Error| if e.place().is_empty() { e.at(&job.place) } else { e };
    let id = client.submit(request).await.map_err(at_state)?;
    let mut shown = env.now();
    loop {
        let document = client.status(&id).await?;
        if has_ended(&document) {
            return Ok(document);
        }
        if progress.is_on() && env.now().since(shown) >= PROGRESS {
            shown = env.now();
            progress.show(&document, shown, env.wall_ms());
        }
        env.sleep(LOOK).await;
    }
}

/// Cancels the job; gives its last status. A second signal, or a job that takes too long, ends the waiting.
async fn called_off(client: &Client, job: &Job, env: &Env) -> Value {
    let cancel = Request::Cancel(Cancel { job: job.name.clone(), no_wait: false });
    let canceled = async {
        match client.document_when_done(cancel).await {
            Ok(document) => Ok(document),
            Err(_) => client.status(&job.name).await,
        }
    };
    let last = millstream_common::select! {
        status = env.timeout(CANCEL, "canceling the job", canceled) => status.and_then(|s| s),
        _ = signals::asked_to_end() => Err(Error::canceled("a second signal")),
    };
    // It was not open yet, or hangs: all the same it ends with this process.
    let mut document = last.unwrap_or_else(|_| json!({"job": job.job, "name": job.name}));
    if !has_ended(&document) {
        document["state"] = "canceled".into();
    }
    document
}

fn has_ended(document: &Value) -> bool {
    matches!(document["state"].as_str(), Some("finished" | "stopped" | "failed" | "canceled"))
}

/// The process is the whole cluster: what it used, it used for the job.
fn with_usage(mut document: Value) -> Value {
    let used = usage::of_this_process();
    document["cpu_s"] = used.cpu_s.into();
    document["peak_rss_bytes"] = used.peak_rss_bytes.into();
    document
}

fn interrupted(signal: &str, url: &str) -> Error {
    let error = Error::canceled(format!("the job was interrupted by {signal}")).code(6001);
    if url.starts_with("memory:") {
        error.next("its state was in memory and is gone: give --state to keep it")
    } else {
        error.next("the same command goes on from its last version")
    }
}

fn write_summary(file: &Path, document: &Value) -> Result<()> {
    std::fs::write(file, format!("{document}\n")).map_err(|e| {
        Error::config("the summary cannot be written")
            .code(1424)
            .at(file.display().to_string())
            .next("give --summary a file that can be written")
            .source(e)
    })
}

/// How the process ends, from how the job did.
fn outcome(document: &Value) -> Result<()> {
    match document["state"].as_str() {
        Some("finished") => {
            if document["already_finished"] == true {
                out::note(&already_finished(document));
            }
            Ok(())
        }
        Some("stopped") => Ok(()),
        Some("canceled") => match error_of_job(document) {
            // As other programs do whose reader has seen enough.
            Some(e) if e.number() == STDOUT_CLOSED => Ok(()),
            Some(e) => Err(e),
            None => Err(Error::canceled("the job was canceled").code(6002)),
        },
        _ => Err(error_of_job(document).unwrap_or_else(|| Error::new(ErrorKind::Internal, 7000, "the job failed"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_process_ends_as_the_job_did() {
        outcome(&json!({"state": "finished", "already_finished": true, "version": 7})).unwrap();
        outcome(&json!({"state": "stopped"})).unwrap();
        let error = json!({"code": "MS5000", "kind": 4, "what": "a newer leader took over"});
        let e = outcome(&json!({"state": "failed", "error": error})).unwrap_err();
        assert!(crate::failure::error_line(&e).contains("fenced"));
        assert_eq!(outcome(&json!({"state": "canceled"})).unwrap_err().number(), 6002);
        let closed = json!({"code": format!("MS{STDOUT_CLOSED}"), "kind": 6, "what": "nobody reads"});
        outcome(&json!({"state": "canceled", "error": closed})).unwrap();
        assert!(!has_ended(&json!({"state": "restarting"})));
    }

    #[test]
    fn an_interruption_says_what_is_left() {
        assert!(interrupted("SIGINT", "memory://").to_string().contains("gone"));
        assert!(interrupted("SIGTERM", "file:///x").to_string().contains("goes on from its last version"));
    }

    #[test]
    fn a_summary_that_cannot_be_written_is_an_error() {
        let e = write_summary(Path::new("/nowhere/s.json"), &json!({})).unwrap_err();
        assert!(e.number() == 1424 && e.place() == "/nowhere/s.json", "{e}");
    }
}
