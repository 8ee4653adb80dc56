//! What can be read from a place of state without a cluster: `fsck`, and `versions` and `list` with `--state`.

use millstream_common::{Error, Result};
use millstream_engine::coordinator;
use millstream_objects::Store;
use millstream_state_store::fsck;
use millstream_state_store::version::VersionLog;
use serde_json::{Value, json};

use super::show;
use crate::args::{FsckArgs, SettingArgs};
use crate::environment::Environment;
use crate::process::Process;
use crate::table::{bytes, grouped};
use crate::{logs, options, people, versions};

pub(super) fn versions(job: &str, url: &str, args: &SettingArgs, json: bool, environment: Environment) -> Result<()> {
    logs::start(&environment, "warn");
    let settings = options::of_process(args, &[])?;
    let process = Process::start(1, environment)?;
    let store = process.open_store_to_read(url, &settings)?.child(job);
    let log = VersionLog::new(store.clone(), process.env.clone());
    let rows = process.block_on(async {
        if log.newest().await?.is_none() {
            return Err(no_version(job, &store));
        }
        coordinator::versions::list(&log).await
    })?;
    show(json, &Value::Array(rows), people::versions)
}

/// No job of this name has ever committed anything.
pub(super) fn no_version(job: &str, store: &Store) -> Error {
    Error::config(format!("there is no version of '{job}'"))
        .code(1422)
        .at(store.url())
        .next("`millstream list --state URL` shows the names that are there")
}

pub(super) fn list(url: &str, args: &SettingArgs, json: bool, environment: Environment) -> Result<()> {
    logs::start(&environment, "warn");
    let settings = options::of_process(args, &[])?;
    let process = Process::start(1, environment)?;
    let store = process.open_store_to_read(url, &settings)?;
    let jobs = process.block_on(versions::list(&store, &process.env))?;
    show(json, &jobs, people::list)
}

/// A slip in the URL must not look like a place that is whole.
fn nothing_there(objects: u64, place: &str) -> Error {
    let what = match objects {
        0 => "nothing is there".to_owned(),
        n => format!("no state of a job is there, only {n} other objects"),
    };
    Error::config(what)
        .code(1426)
        .at(place)
        .next("give the place that jobs were started with by --state, without a job's name behind it")
}

pub(super) fn fsck(args: &FsckArgs, json: bool, environment: Environment) -> Result<()> {
    logs::start(&environment, "warn");
    let settings = options::of_process(&args.settings, &[])?;
    let process = Process::start(1, environment)?;
    let store = process.open_store_to_read(&args.state, &settings)?;
    let report = process.block_on(fsck::check(&store, &process.env))?;
    if report.jobs.is_empty() && report.problems.is_empty() && !report.cluster {
        return Err(nothing_there(report.found, &store.url()));
    }
    let problems: Vec<String> = report.problems.iter().map(|p| format!("{}: {}", p.object, p.what)).collect();
    let (unreferenced, unreferenced_bytes) = report.unreferenced;
    let document = json!({
        "state": args.state, "jobs": report.jobs, "versions": report.versions, "objects": report.objects,
        "bytes": report.bytes, "given_up_versions": report.given_up, "pins": report.pins,
        "leaked_objects": report.leaks.values().sum::<u64>(), "unreferenced_objects": unreferenced, "unreferenced_bytes": unreferenced_bytes,
        "problems": problems, "whole": problems.is_empty(),
    });
    show(json, &document, |_| {
        let head = format!(
            "{}: {} jobs, {} versions, {} objects, {}",
            args.state,
            report.jobs.len(),
            grouped(report.versions),
            grouped(report.objects),
            bytes(report.bytes)
        );
        let head = match report.leaks.values().sum::<u64>() {
            0 => head,
            n => format!("{head}; {} more objects that no version ever listed", grouped(n)),
        };
        let end = if problems.is_empty() { "every version is whole".to_owned() } else { problems.join("\n") };
        format!("{head}\n{end}")
    })?;
    match problems.first() {
        None => Ok(()),
        Some(first) => Err(Error::corrupt(match problems.len() {
            1 => format!("a problem was found: {first}"),
            n => format!("{n} problems were found, the first: {first}"),
        })
        .code(4200)
        .at(&args.state)
        .next("what is named is damaged or missing: start from an older version, or restore it from a backup")),
    }
}
