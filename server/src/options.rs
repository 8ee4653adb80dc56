//! From what was typed to checked settings: defaults < configuration file < `-D` < options.

use std::time::Duration;

use millstream_common::size::{parse_bytes, parse_duration};
use millstream_common::{Error, Result};
use millstream_engine::settings::{self, Reach, SETTINGS, SettingDef, Settings};

use crate::args::{JobOptions, MemoryArgs, SettingArgs};
use crate::failure::COMMAND_USAGE;
use crate::{address, config_file};

/// A setting of jobs is given to a process that runs those of others.
pub const NOT_OF_PROCESSES: u16 = 1405;

/// The least cache in memory: a few dozen blocks.
const LEAST_CACHE_BYTES: u64 = 1_000_000;
/// A size beyond this (1 PiB) is a slip of the keyboard.
const GREATEST_BYTES: u64 = 1 << 50;
/// So is a duration beyond this (100 years).
const LONGEST: Duration = Duration::from_secs(36_500 * 86_400);

/// Settings of a command that only looks, or of a whole cluster: `more` are the options of its command, which win.
pub fn of_process(args: &SettingArgs, more: &[(&str, Option<String>)]) -> Result<Settings> {
    checked(&given(args, more)?)
}

/// Settings of a process of a cluster: those that travel with jobs are refused.
pub fn of_server(args: &SettingArgs, more: &[(&str, Option<String>)]) -> Result<Settings> {
    let given = given(args, more)?;
    for g in &given {
        refuse_for_server(&g.key).map_err(|e| g.placed(e))?;
    }
    checked(&given)
}

/// Settings of `run`.
pub fn of_run(job: &JobOptions) -> Result<Settings> {
    let mut more = of_memory(&job.memory);
    more.extend(of_job(job));
    of_process(&job.settings, &more)
}

/// Settings of `submit`: those that belong to the processes of the cluster are refused.
pub fn of_submit(job: &JobOptions) -> Result<Settings> {
    for g in given(&job.settings, &of_memory(&job.memory))? {
        known(&g.key).and_then(|_| settings::refuse_for_job(&g.key)).map_err(|e| g.placed(e))?;
    }
    of_run(job)
}

/// The options about caches and memory, with the settings that they are short for.
#[must_use]
pub fn of_memory(args: &MemoryArgs) -> Vec<(&'static str, Option<String>)> {
    vec![
        ("cache.memory", args.cache_memory.clone()),
        ("cache.dir", args.cache_dir.as_ref().map(|d| d.display().to_string())),
        ("cache.disk", args.cache_disk.clone()),
        ("memory.limit", args.memory_limit.clone()),
    ]
}

fn of_job(job: &JobOptions) -> Vec<(&'static str, Option<String>)> {
    vec![("checkpoint.interval", job.checkpoint_interval.clone()), ("state.residency", job.residency.clone())]
}

/// A setting as it was given.
struct Given {
    key: String,
    value: String,
    /// The configuration file that it stands in.
    file: Option<String>,
}

impl Given {
    fn placed(&self, error: Error) -> Error {
        match &self.file {
            Some(file) if error.place().is_empty() => error.at(file),
            _ => error,
        }
    }

    /// Refuses what is far beyond anything that can be meant.
    fn refuse_absurd(&self, def: &SettingDef) -> Result<()> {
        let absurd = |limit: &str| {
            let what = format!("setting {}: '{}' is more than {limit}", self.key, self.value);
            let next = format!("give less; the default is {}", def.default);
            Err(Error::config(what).code(settings::MALFORMED_SETTING).next(next))
        };
        if def.unit.contains("duration") && parse_duration(&self.value).is_ok_and(|d| d > LONGEST) {
            return absurd("100 years");
        }
        if def.unit.contains("size") && parse_bytes(&self.value).is_ok_and(|b| b > GREATEST_BYTES) {
            return absurd("1 PiB");
        }
        Ok(())
    }
}

/// All that was given, from the weakest layer to the strongest.
fn given(args: &SettingArgs, more: &[(&str, Option<String>)]) -> Result<Vec<Given>> {
    let mut all = Vec::new();
    if let Some(path) = &args.config {
        let file = Some(path.display().to_string());
        all.extend(config_file::read(path)?.into_iter().map(|(key, value)| Given { key, value, file: file.clone() }));
    }
    all.extend(args.define.iter().map(|(key, value)| Given { key: key.clone(), value: value.clone(), file: None }));
    let options = more.iter().filter_map(|(k, v)| Some(((*k).to_owned(), v.clone()?)));
    all.extend(options.map(|(key, value)| Given { key, value, file: None }));
    Ok(all)
}

fn checked(given: &[Given]) -> Result<Settings> {
    let mut settings = Settings::defaults();
    for g in given {
        known(&g.key)
            .and_then(|def| g.refuse_absurd(def))
            .and_then(|()| settings.set(&g.key, &g.value))
            .map_err(|e| g.placed(e))?;
    }
    if let Some(bytes) = settings.cache.memory_bytes.filter(|b| *b < LEAST_CACHE_BYTES) {
        return Err(Error::config(format!("cache.memory (--cache-memory) is {bytes} bytes, too few for any block"))
            .code(settings::CONTRADICTION)
            .next("give 1MB at least; 64MiB and more are sensible"));
    }
    settings.validate()?;
    Ok(settings)
}

/// The definition of a setting, or an error that names one that is meant, perhaps.
fn known(key: &str) -> Result<&'static SettingDef> {
    if let Some(def) = SETTINGS.iter().find(|d| d.key == key) {
        return Ok(def);
    }
    let error = Error::config(format!("unknown setting '{key}'")).code(settings::UNKNOWN_SETTING);
    Err(match nearest_setting(key) {
        Some(near) => error.next(format!("the nearest known one is {near}; `millstream settings` lists all")),
        None => error.next("`millstream settings` lists those there are"),
    })
}

/// The setting whose key differs by the fewest letters, unless that is more than every third one.
fn nearest_setting(key: &str) -> Option<&'static str> {
    let most = (key.chars().count() / 3).max(1);
    SETTINGS.iter().map(|d| (strsim::osa_distance(key, d.key), d.key)).min().filter(|(n, _)| *n <= most).map(|(_, k)| k)
}

fn refuse_for_server(key: &str) -> Result<()> {
    let def = known(key)?;
    if def.reach == Reach::Process {
        return Ok(());
    }
    let next = match def.option {
        Some(option) => format!("give {option} (or -D {key}=...) to `millstream submit`"),
        None => format!("give -D {key}=... to `millstream submit`"),
    };
    Err(Error::config(format!("setting {key} is one of jobs, not of the processes of a cluster"))
        .code(NOT_OF_PROCESSES)
        .next(next))
}

/// Refuses options that have no meaning beside each other.
pub fn refuse_contradictions(job: &JobOptions) -> Result<()> {
    if job.discard_state && job.from != "none" {
        let what = format!("--discard-state goes with --from none alone, and --from is {}", job.from);
        return Err(Error::config(what).code(COMMAND_USAGE).next(
            "give --from none --discard-state to start without the versions that are there; leave --discard-state away to go on from them",
        ));
    }
    Ok(())
}

/// Refuses a document on stdout beside rows. Arguments of jobs are normalised: the default stands among them, too.
pub fn refuse_rows_beside_document(job_args: &[String]) -> Result<()> {
    if !job_args.iter().any(|a| a == "--output=print") {
        return Ok(());
    }
    Err(Error::config("--json and the output print both write to stdout: rows and the document would mix")
        .code(COMMAND_USAGE)
        .next("give -- --output blackhole or files:DIR, or leave --json away and use --summary FILE"))
}

/// Refuses jobs and arguments that have their place in the command line but are not built yet.
pub fn refuse_what_is_not_built(job: &JobOptions) -> Result<()> {
    if job.job.to_ascii_lowercase().ends_with(".sql") {
        let what = format!("the SQL job '{}'", job.job);
        return Err(settings::not_built_yet(&what, "`millstream jobs` lists the jobs of this binary"));
    }
    let text = job.job_args.join(" ");
    for scheme in ["s3://", "gs://", "az://"] {
        if text.contains(&format!("files:{scheme}")) {
            let what = format!("an output to files:{scheme}");
            return Err(settings::not_built_yet(&what, "write to a folder: --output files:DIR"));
        }
    }
    Ok(())
}

/// Refuses to listen where others can reach us, unless told so: there is no TLS yet.
pub fn refuse_open_address(option: &str, address: &str, insecure: bool) -> Result<()> {
    if insecure || address::is_loopback(address) {
        return Ok(());
    }
    Err(Error::config(format!(
        "{option} {address} is not a loopback address, and TLS and authentication are not built yet"
    ))
    .code(1420)
    .next("use 127.0.0.1, or add --insecure when only trusted machines reach it"))
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
