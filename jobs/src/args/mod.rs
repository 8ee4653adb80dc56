//! The arguments of the jobs: parsing, their normal form, paths.
//!
//! Two ways to type the same thing have one normal form, so that a job is recognised when it goes on (`5s` and
//! `5000ms`, a default and its value).

mod keyed_count;
mod nexmark;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use millstream_common::Result;
use millstream_connectors::{blackhole::BlackholeSink, ndjson::FilesSink, print::PrintSink};
use millstream_engine::dataflow::usage_error;
use millstream_engine::sink::Sink;

pub use keyed_count::KeyedCountArgs;
pub use nexmark::NexmarkArgs;

/// Parses the arguments of a job; what clap says when it cannot stands in the error.
fn parse<A: Parser>(args: &[String]) -> Result<A> {
    A::try_parse_from(args).map_err(|e| {
        let text = e.to_string();
        let text = text.trim();
        usage_error(text.strip_prefix("error: ").unwrap_or(text)).at("the arguments of the job (behind `--`)")
    })
}

/// Where the rows of a job go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Print,
    /// Nowhere.
    Blackhole,
    /// NDJSON files in a folder, each exactly once.
    Files(String),
}

impl FromStr for Output {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "print" => Ok(Self::Print),
            "blackhole" => Ok(Self::Blackhole),
            _ => match text.strip_prefix("files:") {
                Some("") => Err("`files:` needs a folder behind it: files:DIR".into()),
                Some(folder) if folder.contains("://") => {
                    Err(format!("the file sink writes to a folder; writing to {folder} is not built yet"))
                }
                Some(folder) => Ok(Self::Files(folder.into())),
                None => Err("write print, blackhole or files:DIR".into()),
            },
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Print => f.write_str("print"),
            Self::Blackhole => f.write_str("blackhole"),
            Self::Files(folder) => write!(f, "files:{folder}"),
        }
    }
}

impl Output {
    /// The sink behind it.
    pub fn sink(&self) -> Result<Arc<dyn Sink>> {
        Ok(match self {
            Self::Print => Arc::new(PrintSink),
            Self::Blackhole => Arc::new(BlackholeSink),
            Self::Files(folder) => Arc::new(FilesSink::new(folder)),
        })
    }

    fn absolutise(&mut self, folder: &Path) {
        if let Self::Files(path) = self {
            *path = absolute(path, folder);
        }
    }
}

/// `path` as meant from `folder`, without `.` in it.
fn absolute(path: &str, folder: &Path) -> String {
    let joined = folder.join(path);
    let plain: std::path::PathBuf = joined.components().filter(|c| *c != std::path::Component::CurDir).collect();
    plain.to_string_lossy().into_owned()
}

/// A duration the way it is written back: in the greatest unit that keeps it whole.
fn duration_text(d: Duration) -> String {
    match d.as_micros() {
        0 => "0".into(),
        us if us % 1_000_000 == 0 => format!("{}s", us / 1_000_000),
        us if us % 1_000 == 0 => format!("{}ms", us / 1_000),
        us => format!("{us}us"),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    millstream_common::size::parse_duration(text).map_err(|e| e.to_string())
}

/// A rate in rows a second: 0 (as fast as possible) or above, also below 1.
fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate >= 0.0 => Ok(rate),
        _ => Err("write a number of events a second, 0 or above".into()),
    }
}
