//! What a user types: the definitions of all commands and options.
//!
//! This owns names, forms and help texts. Defaults that come from settings, the environment or the machine are filled
//! in by the commands; nothing here reads them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::address;
use crate::state_args::StateArgs;

/// A stream processor whose keyed state lives in object storage.
#[derive(Debug, Parser)]
#[command(name = "millstream", version, disable_help_subcommand = true, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// One JSON document on stdout instead of text for people.
    #[arg(long, global = true)]
    pub json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a job with a whole cluster in this process; ends with the job.
    Run(RunArgs),
    /// Serve as the coordinator of a cluster.
    Coordinator(CoordinatorArgs),
    /// Serve as a worker of a cluster.
    Worker(WorkerArgs),
    /// Serve as a compactor of a cluster: merge state of its jobs, so that workers need not.
    Compactor(CompactorArgs),
    /// Start a job on a cluster; prints the job's id.
    Submit(SubmitArgs),
    /// The jobs of a cluster, or of a place of state.
    List(ListArgs),
    /// What a job does now.
    Status(JobCommand),
    /// Take a checkpoint now.
    Checkpoint(WaitingCommand),
    /// Change the parallelism of a running job.
    Rescale(RescaleArgs),
    /// Spread the subtasks of a running job over the workers.
    Rebalance(WaitingCommand),
    /// The workers and compactors of a cluster, with their slots.
    Workers(ClusterArg),
    /// End a job at once.
    Cancel(WaitingCommand),
    /// End a job after a last checkpoint.
    Stop(StopArgs),
    /// The jobs that this binary contains.
    Jobs,
    /// Prove that every version in a place of state is whole.
    Fsck(FsckArgs),
    /// The committed versions of a job.
    Versions(VersionsArgs),
    /// A look into the state of a job, as it is or was at a version.
    State(StateArgs),
    /// Start a second job from a version of a job, which shares its state: nothing is copied.
    Fork(ForkArgs),
    /// Keep a version of a job restorable until its pin is released.
    Pin(PinArgs),
    /// What keeps versions of a job restorable; --release lets go of it.
    Pins(PinsArgs),
    /// All settings, with default, unit and meaning.
    Settings(SettingsArgs),
    /// All metrics that processes serve at /metrics, with type, labels and meaning.
    Metrics(MetricsArgs),
    /// Not built yet.
    #[command(hide = true)]
    Savepoint(NotBuiltArgs),
}

/// Words of a command that is not built yet.
#[derive(Debug, Args)]
pub struct NotBuiltArgs {
    /// Anything.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<String>,
}

/// Settings, wherever they come from.
#[derive(Debug, Default, Args)]
pub struct SettingArgs {
    /// A setting; `millstream settings` lists all.
    #[arg(short = 'D', value_name = "KEY=VALUE", value_parser = key_value)]
    pub define: Vec<(String, String)>,
    /// A file with settings in TOML.
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
}

/// Caches and the memory of a process.
#[derive(Debug, Default, Args)]
pub struct MemoryArgs {
    /// Bound of all clean state in memory, rows and blocks together [default: 1/4 of RAM].
    #[arg(long, value_name = "SIZE")]
    pub cache_memory: Option<String>,
    /// Folder of the SSD tier and of local state [default: a temporary one].
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Size of the SSD tier, and bound of local state; 0 switches both off [default: an SSD tier of 10GB when the state is
    /// remote, local state without a bound].
    #[arg(long, value_name = "SIZE")]
    pub cache_disk: Option<String>,
    /// The process stays below it: budgets are divided from it [default: none].
    #[arg(long, value_name = "SIZE")]
    pub memory_limit: Option<String>,
}

/// What `run` and `submit` share.
#[derive(Debug, Args)]
pub struct JobOptions {
    /// A job of this binary (`millstream jobs`).
    #[arg(value_name = "JOB")]
    pub job: String,
    /// Parallelism of every operator that sets none itself [default: run: number of cores; submit: 1].
    #[arg(short, long, value_name = "P", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub parallelism: Option<u32>,
    /// The job's name: its state lies below STATE-URL/NAME/ [default: JOB].
    #[arg(long, value_parser = job_name)]
    pub name: Option<String>,
    /// Place of state: memory://, file:///..., s3://bucket/prefix, gs://, az:// [default: run: memory://; submit: the coordinator's].
    #[arg(long, value_name = "URL")]
    pub state: Option<String>,
    /// Where live state is kept: memory, local, remote [default: remote].
    #[arg(long, value_name = "WHERE")]
    pub residency: Option<String>,
    /// Caches and memory.
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// From one checkpoint to the next; 0: none but the final one [default: 1s].
    #[arg(long, value_name = "DURATION")]
    pub checkpoint_interval: Option<String>,
    /// What to start from: latest, none or the number of a version.
    #[arg(long, value_name = "FROM", default_value = "latest", value_parser = from)]
    pub from: String,
    /// With --from none: give up the versions that are there.
    #[arg(long)]
    pub discard_state: bool,
    /// Settings.
    #[command(flatten)]
    pub settings: SettingArgs,
    /// The job's own arguments.
    #[arg(last = true, value_name = "JOB-ARGS")]
    pub job_args: Vec<String>,
}

/// `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The job.
    #[command(flatten)]
    pub job: JobOptions,
    /// Write a JSON summary to this file at the end.
    #[arg(long, value_name = "FILE")]
    pub summary: Option<PathBuf>,
    /// Serve /metrics here (docs/metrics.md), as 127.0.0.1:9100 [default: not at all].
    #[arg(long, value_name = "ADDR", value_parser = address::host_and_port)]
    pub metrics_listen: Option<String>,
    /// Allow an address that is not loopback, without TLS and authentication.
    #[arg(long)]
    pub insecure: bool,
}

/// `submit`.
#[derive(Debug, Args)]
pub struct SubmitArgs {
    /// The job.
    #[command(flatten)]
    pub job: JobOptions,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArg,
}

/// Which cluster is meant.
#[derive(Debug, Default, Args)]
pub struct ClusterArg {
    /// Address of the coordinator, several with commas [default: MILLSTREAM_COORDINATOR or 127.0.0.1:6123].
    #[arg(long, value_name = "ADDR", value_parser = address::coordinators)]
    pub coordinator: Option<String>,
}

/// What every process of a cluster takes.
#[derive(Debug, Args)]
pub struct ProcessArgs {
    /// Serve /metrics here (docs/metrics.md); none: not at all.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0", value_parser = address::host_and_port_or_none)]
    pub metrics_listen: String,
    /// Allow addresses that are not loopback, without TLS and authentication.
    #[arg(long)]
    pub insecure: bool,
    /// Settings.
    #[command(flatten)]
    pub settings: SettingArgs,
}

/// How a process of a cluster is reached.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The address that others are told to use [default: the one it listens at].
    #[arg(long, value_name = "ADDR", value_parser = address::host_perhaps_port)]
    pub advertise: Option<String>,
    /// Metrics, addresses, settings.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// `coordinator`.
#[derive(Debug, Args)]
pub struct CoordinatorArgs {
    /// Place of the cluster's state: file:///..., s3://bucket/prefix, gs://, az://.
    #[arg(long, value_name = "URL")]
    pub state: String,
    /// Where workers and clients reach it.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:6123", value_parser = address::host_and_port)]
    pub listen: String,
    /// How it serves.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// `worker`.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// The coordinator.
    #[command(flatten)]
    pub cluster: ClusterArg,
    /// How many subtasks of each chain it runs [default: number of cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub slots: Option<u32>,
    /// Where other workers reach it.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0", value_parser = address::host_and_port)]
    pub listen: String,
    /// Caches and memory.
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// How it serves.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// `compactor`.
#[derive(Debug, Args)]
pub struct CompactorArgs {
    /// The coordinator.
    #[command(flatten)]
    pub cluster: ClusterArg,
    /// How many compactions it runs at a time [default: number of cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub slots: Option<u32>,
    /// Bound of the blocks that it keeps in memory [default: 16MiB].
    #[arg(long, value_name = "SIZE")]
    pub cache_memory: Option<String>,
    /// The process stays below it: budgets are divided from it [default: none].
    #[arg(long, value_name = "SIZE")]
    pub memory_limit: Option<String>,
    /// Metrics, addresses, settings.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArg,
    /// Without a cluster: the jobs whose state lies here.
    #[arg(long, value_name = "URL", conflicts_with = "coordinator")]
    pub state: Option<String>,
    /// Settings.
    #[command(flatten)]
    pub settings: SettingArgs,
}

/// A command about one job.
#[derive(Debug, Args)]
pub struct JobCommand {
    /// The job's id, or its name.
    #[arg(value_name = "ID")]
    pub job: String,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArg,
}

/// A command about one job that returns when it is done.
#[derive(Debug, Args)]
pub struct WaitingCommand {
    /// The job.
    #[command(flatten)]
    pub job: JobCommand,
    /// Return when it is accepted, not when it is done.
    #[arg(long)]
    pub no_wait: bool,
}

/// `rescale`.
#[derive(Debug, Args)]
pub struct RescaleArgs {
    /// The job.
    #[command(flatten)]
    pub job: WaitingCommand,
    /// The new parallelism.
    #[arg(short, long, value_name = "P", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub parallelism: u32,
}

/// `stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// The job.
    #[command(flatten)]
    pub job: WaitingCommand,
    /// Advance the watermark to the end of time first (not built yet).
    #[arg(long)]
    pub drain: bool,
}

/// `fsck`.
#[derive(Debug, Args)]
pub struct FsckArgs {
    /// The place of state.
    #[arg(long, value_name = "URL")]
    pub state: String,
    /// Settings.
    #[command(flatten)]
    pub settings: SettingArgs,
}

/// `versions`.
#[derive(Debug, Args)]
pub struct VersionsArgs {
    /// The job's id, or its name; without a cluster its name.
    #[arg(value_name = "ID-OR-NAME")]
    pub job: String,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArg,
    /// Without a cluster: the place of state.
    #[arg(long, value_name = "URL", conflicts_with = "coordinator")]
    pub state: Option<String>,
    /// Settings.
    #[command(flatten)]
    pub settings: SettingArgs,
}

/// `fork`.
#[derive(Debug, Args)]
pub struct ForkArgs {
    /// The job's id, or its name; without a cluster its name.
    #[arg(value_name = "JOB")]
    pub job: String,
    /// The version to begin with [default: the newest].
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    pub at: Option<u64>,
    /// The fork's name: its own state lies below STATE-URL/NAME/.
    #[arg(long, value_parser = job_name)]
    pub name: String,
    /// Parallelism [default: that of the version].
    #[arg(short, long, value_name = "P", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub parallelism: Option<u32>,
    /// The cluster that runs the job and is to run the fork.
    #[command(flatten)]
    pub cluster: ClusterArg,
    /// Without a cluster: the place of state. The fork's first version is made; `run` or `submit --name NAME` goes on.
    #[arg(long, value_name = "URL", conflicts_with = "coordinator")]
    pub state: Option<String>,
    /// Settings.
    #[command(flatten)]
    pub settings: SettingArgs,
    /// Arguments of the job that replace the job's own: --output and those that may differ when a job goes on.
    #[arg(last = true, value_name = "JOB-ARGS")]
    pub job_args: Vec<String>,
}

/// `pin`.
#[derive(Debug, Args)]
pub struct PinArgs {
    /// The job's name.
    #[arg(value_name = "NAME", value_parser = job_name)]
    pub name: String,
    /// The place of state.
    #[arg(long, value_name = "URL")]
    pub state: String,
    /// The version [default: the newest].
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    pub at: Option<u64>,
    /// The pin's id: letters, digits, '.', '-' and '_'.
    #[arg(long = "as", value_name = "ID")]
    pub id: String,
    /// Settings.
    #[command(flatten)]
    pub settings: SettingArgs,
}

/// `pins`.
#[derive(Debug, Args)]
pub struct PinsArgs {
    /// The job's name.
    #[arg(value_name = "NAME", value_parser = job_name)]
    pub name: String,
    /// The place of state.
    #[arg(long, value_name = "URL")]
    pub state: String,
    /// Release the pin of this id: what only it kept is collected when the job runs.
    #[arg(long, value_name = "ID")]
    pub release: Option<String>,
    /// Settings.
    #[command(flatten)]
    pub settings: SettingArgs,
}

/// `settings`.
#[derive(Debug, Args)]
pub struct SettingsArgs {
    /// The page docs/settings.md.
    #[arg(long, conflicts_with = "json")]
    pub markdown: bool,
}

/// `metrics`.
#[derive(Debug, Args)]
pub struct MetricsArgs {
    /// The page docs/metrics.md.
    #[arg(long, conflicts_with = "json")]
    pub markdown: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err("write KEY=VALUE, as -D checkpoint.interval=500ms".to_owned()),
    }
}

/// A NAME is a part of paths of objects: `[A-Za-z0-9.-][A-Za-z0-9._-]*`. A leading underscore belongs to the cluster.
fn job_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if text.is_empty() || text.starts_with('_') || !text.chars().all(allowed) {
        return Err("a name has letters, digits, '.', '-' and '_', and does not begin with '_'".to_owned());
    }
    if text.chars().all(|c| c == '.') {
        return Err("a name of dots alone is none".to_owned());
    }
    Ok(text.to_owned())
}

fn from(text: &str) -> Result<String, String> {
    let number = || text.parse::<u64>().is_ok_and(|n| n > 0);
    if matches!(text, "latest" | "none") || number() {
        Ok(text.to_owned())
    } else {
        Err("give latest, none or the number of a version".to_owned())
    }
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
