//! What a user types behind `millstream state`.

use clap::{Args, Subcommand};

use crate::args::{ClusterArg, SettingArgs};

/// `state`.
#[derive(Debug, Args)]
pub struct StateArgs {
    /// What to look at.
    #[command(subcommand)]
    pub command: StateCommand,
}

/// The commands of `state`.
#[derive(Debug, Subcommand)]
pub enum StateCommand {
    /// The states of a version: layout, schema, entries, bytes, runs.
    Ls(LsArgs),
    /// The values of some keys.
    Get(GetArgs),
    /// The entries of a state in key order, a JSON line each.
    Scan(ScanArgs),
    /// What was added, changed and removed from one version to another.
    Diff(DiffArgs),
}

/// Where the state lies.
#[derive(Debug, Args)]
pub struct PlaceArgs {
    /// The job's name; with a cluster its id, too.
    #[arg(long, value_name = "ID-OR-NAME")]
    pub job: String,
    /// The cluster that knows where the job's state lies; it is read from here.
    #[command(flatten)]
    pub cluster: ClusterArg,
    /// Without a cluster: the place of state, as file:///..., s3://bucket/prefix, gs://, az://.
    #[arg(long, value_name = "URL", conflicts_with = "coordinator")]
    pub state: Option<String>,
    /// Settings.
    #[command(flatten)]
    pub settings: SettingArgs,
}

/// `state ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Where.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// The number of the version [default: the newest].
    #[arg(long, value_name = "VERSION")]
    pub at: Option<u64>,
}

/// `state get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// Which, as `state ls` shows it.
    #[arg(value_name = "OPERATOR/STATE")]
    pub which: String,
    /// Keys: JSON of the key's columns, as '{"auction":1000}'; a single column's value may stand alone.
    #[arg(value_name = "KEY", required = true, allow_negative_numbers = true)]
    pub keys: Vec<String>,
    /// Of map states: the entry alone that each key has under this map key, JSON like a key [default: all entries].
    #[arg(long, value_name = "KEY", allow_negative_numbers = true)]
    pub map_key: Option<String>,
    /// Of time-ordered states: the time of the entries, as '2026-01-01 00:00:09.999' or in milliseconds since 1970.
    #[arg(long, value_name = "TIME", value_parser = time, allow_negative_numbers = true)]
    pub time: Option<i64>,
    /// Bytes as hexadecimal digits.
    #[arg(long)]
    pub raw: bool,
    /// Where.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// The number of the version [default: the newest].
    #[arg(long, value_name = "VERSION")]
    pub at: Option<u64>,
}

/// `state scan`.
#[derive(Debug, Args)]
pub struct ScanArgs {
    /// Which, as `state ls` shows it.
    #[arg(value_name = "OPERATOR/STATE")]
    pub which: String,
    /// The key to begin at: JSON of the key's columns. Keys are in the order of their key groups.
    #[arg(long, value_name = "KEY", allow_negative_numbers = true)]
    pub from: Option<String>,
    /// Of map states: the map key to begin at, of the key of --from.
    #[arg(long, value_name = "KEY", requires = "from", allow_negative_numbers = true)]
    pub map_key: Option<String>,
    /// Of time-ordered states: the time to begin at.
    #[arg(long, value_name = "TIME", value_parser = time, allow_negative_numbers = true)]
    pub time: Option<i64>,
    /// So many entries at most.
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// Only these key groups, both included, of 0 to 65535.
    #[arg(long, value_name = "A-B", value_parser = key_groups)]
    pub key_groups: Option<(u32, u32)>,
    /// Bytes as hexadecimal digits.
    #[arg(long)]
    pub raw: bool,
    /// Where.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// The number of the version [default: the newest].
    #[arg(long, value_name = "VERSION")]
    pub at: Option<u64>,
}

/// `state diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Which, as `state ls` shows it.
    #[arg(value_name = "OPERATOR/STATE")]
    pub which: String,
    /// The number of the first version.
    #[arg(long, value_name = "VERSION")]
    pub at: u64,
    /// The number of the second version [default: the newest].
    #[arg(long, value_name = "VERSION")]
    pub to: Option<u64>,
    /// Only these key groups, both included, of 0 to 65535.
    #[arg(long, value_name = "A-B", value_parser = key_groups)]
    pub key_groups: Option<(u32, u32)>,
    /// Bytes as hexadecimal digits.
    #[arg(long)]
    pub raw: bool,
    /// Where.
    #[command(flatten)]
    pub place: PlaceArgs,
}

fn time(text: &str) -> Result<i64, String> {
    let number = text.parse().ok().or_else(|| millstream_formats::time::parse_timestamp(text));
    number.ok_or_else(|| "give a time as '2026-01-01 00:00:09.999', or milliseconds since 1970".to_owned())
}

fn key_groups(text: &str) -> Result<(u32, u32), String> {
    let parts = text.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    parts
        .filter(|(a, b)| a <= b && *b < millstream_common::KEY_GROUPS)
        .ok_or_else(|| "give the first and the last key group, as 0-32767".to_owned())
}
