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
use clap::error::ErrorKind;
use millstream_common::{Error, Result};
use millstream_connectors::{blackhole::BlackholeSink, ndjson::FilesSink, print::PrintSink};
use millstream_engine::dataflow::usage_error;
use millstream_engine::sink::Sink;

pub use keyed_count::KeyedCountArgs;
pub use nexmark::NexmarkArgs;

/// The number of the "error" that carries the help of a job's arguments: somebody asked for it. The command line prints
/// its text and ends well.
pub const HELP_ASKED: u16 = 6003;

/// A duration beyond this is a slip of the keyboard.
const LONGEST_DURATION: Duration = Duration::from_secs(36_500 * 86_400);

/// Parses the arguments of a job; what clap says when it cannot stands in the error.
pub fn parse_args<A: Parser>(args: &[String]) -> Result<A> {
    A::try_parse_from(args).map_err(|e| {
        if e.kind() == ErrorKind::DisplayHelp {
            return Error::canceled(e.to_string()).code(HELP_ASKED);
        }
        let (what, tips) = refusal(&e);
        usage_error(what)
            .at("the arguments of the job (behind `--`)")
            .next([tips, vec!["`millstream run JOB -- --help` lists them".to_owned()]].concat().join("; "))
    })
}

/// What clap says about a command line that it refuses: what is wrong, and tips. Usage and hints at help, which it sets
/// on lines of their own below, are left to the caller.
#[must_use]
pub fn refusal(error: &clap::Error) -> (String, Vec<String>) {
    let mut what = Vec::new();
    let mut tips = Vec::new();
    for line in error.to_string().lines().map(str::trim).filter(|l| !l.is_empty()) {
        if let Some(tip) = line.strip_prefix("tip: ") {
            tips.push(tip.to_owned());
        } else if !line.starts_with("Usage:") && !line.starts_with("For more information") {
            what.push(line.trim_start_matches("error: ").to_owned());
        }
    }
    (what.join(" "), tips)
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
                None if text.contains("://") => {
                    Err(format!("an output to {text} is not built yet; write print, blackhole or files:DIR"))
                }
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
#[must_use]
pub fn absolute(path: &str, folder: &Path) -> String {
    let joined = folder.join(path);
    let plain: std::path::PathBuf = joined.components().filter(|c| *c != std::path::Component::CurDir).collect();
    plain.to_string_lossy().into_owned()
}

/// A duration the way it is written back: in the greatest unit that keeps it whole.
#[must_use]
pub fn duration_text(d: Duration) -> String {
    match d.as_micros() {
        0 => "0".into(),
        us if us % 1_000_000 == 0 => format!("{}s", us / 1_000_000),
        us if us % 1_000 == 0 => format!("{}ms", us / 1_000),
        us => format!("{us}us"),
    }
}

/// A duration, as `5s`; an error says what would be one.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    match millstream_common::size::parse_duration(text) {
        Ok(duration) if duration > LONGEST_DURATION => Err("it is more than 100 years".into()),
        parsed => parsed.map_err(|e| e.to_string()),
    }
}

/// A rate in rows a second: 0 (as fast as possible) or above, also below 1.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate >= 0.0 => Ok(rate),
        _ => Err("write a number of events a second, 0 or above".into()),
    }
}
