//! From what was typed to checked settings: defaults < configuration file < `-D` < options.

use millstream_common::{Error, Result};
use millstream_engine::settings::{self, Settings};

use crate::args::{JobOptions, MemoryArgs, SettingArgs};
use crate::config_file;

/// Settings of any process: `more` are the options of its command, which win.
pub fn of_process(args: &SettingArgs, more: &[(&str, Option<String>)]) -> Result<Settings> {
    let mut settings = Settings::defaults();
    apply(&mut settings, args, more)?;
    Ok(settings)
}

/// Settings of `run`.
pub fn of_run(job: &JobOptions) -> Result<Settings> {
    let mut more = of_memory(&job.memory);
    more.extend(of_job(job));
    of_process(&job.settings, &more)
}

/// Settings of `submit`: those that belong to the processes of the cluster are refused.
pub fn of_submit(job: &JobOptions) -> Result<Settings> {
    let pairs = typed(&job.settings, &of_memory(&job.memory))?;
    for (key, _) in &pairs {
        settings::refuse_for_job(key)?;
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

fn apply(settings: &mut Settings, args: &SettingArgs, more: &[(&str, Option<String>)]) -> Result<()> {
    for (key, value) in typed(args, more)? {
        settings.set(&key, &value)?;
    }
    settings.validate()
}

/// All that was given, from the weakest layer to the strongest.
fn typed(args: &SettingArgs, more: &[(&str, Option<String>)]) -> Result<Vec<(String, String)>> {
    let mut pairs = match &args.config {
        Some(path) => config_file::read(path)?,
        None => Vec::new(),
    };
    pairs.extend(args.define.iter().cloned());
    pairs.extend(more.iter().filter_map(|(k, v)| Some(((*k).to_owned(), v.clone()?))));
    Ok(pairs)
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
    if insecure || is_loopback(address) {
        return Ok(());
    }
    Err(Error::config(format!(
        "{option} {address} is not a loopback address, and TLS and authentication are not built yet"
    ))
    .code(1420)
    .next("use 127.0.0.1, or add --insecure when only trusted machines reach it"))
}

/// Whether `host:port` can be reached from this machine alone. Names other than localhost count as open.
fn is_loopback(address: &str) -> bool {
    if let Ok(a) = address.parse::<std::net::SocketAddr>() {
        return a.ip().is_loopback();
    }
    address.rsplit_once(':').is_some_and(|(host, _)| host == "localhost")
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
