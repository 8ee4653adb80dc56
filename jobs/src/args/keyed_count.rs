//! The arguments of `keyed-count`.

use std::path::Path;

use clap::{Parser, ValueEnum};
use millstream_common::Result;
use millstream_connectors::keyed_count::{self, KeyedCountSource};
use millstream_engine::dataflow::{JobArg, JobArgs, usage_error};

use super::{Output, parse_args, parse_rate};

/// The exponent of the zipf distribution when nothing else is said.
const SKEW: f64 = 0.99;

/// The arguments of `keyed-count`.
#[derive(Clone, Debug, Parser)]
#[command(name = "keyed-count", no_binary_name = true, disable_version_flag = true)]
pub struct KeyedCountArgs {
    /// Keys are 0 to N - 1
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64))]
    pub keys: u64,
    /// Bytes of state of each key, besides its count
    #[arg(long, value_name = "B", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=1 << 30))]
    pub value_bytes: u32,
    /// How many events there are; 0: without end [default: keys x passes]
    #[arg(long, value_name = "N")]
    pub events: Option<u64>,
    /// Events per second of real time, shared by the splits that have not ended; 0: as fast as possible
    #[arg(long, value_name = "N", default_value = "0", value_parser = parse_rate)]
    pub rate: f64,
    /// How often each key occurs
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Distribution::Uniform)]
    pub distribution: Distribution,
    /// The exponent of the zipf distribution [default: 0.99]
    #[arg(long, value_name = "S", value_parser = parse_skew)]
    pub skew: Option<f64>,
    /// Lets each key come once before the first event of --distribution
    #[arg(long, num_args = 0..=1, require_equals = true, value_name = "true|false", default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub fill: bool,
    /// Says how many events there are when --events does not: so many for each key
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub passes: u64,
    /// Where the results go: print, blackhole or files:DIR
    #[arg(long, value_name = "WHERE", default_value = "print")]
    pub output: Output,
}

/// How often each key occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Distribution {
    /// All keys alike.
    Uniform,
    /// A few keys often.
    Zipf,
}

fn parse_skew(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(skew) if skew.is_finite() && skew >= 0.0 => Ok(skew),
        _ => Err("write a number, 0 or above".into()),
    }
}

impl KeyedCountArgs {
    /// The source of the events.
    #[must_use]
    pub fn source(&self) -> KeyedCountSource {
        let distribution = match self.distribution {
            Distribution::Uniform => keyed_count::Distribution::Uniform,
            Distribution::Zipf => keyed_count::Distribution::Zipf { skew: self.skew() },
        };
        let source = KeyedCountSource::new(self.keys, self.event_count(), distribution);
        KeyedCountSource { fill: self.fill, ..source }
    }

    /// The exponent of the zipf distribution.
    #[must_use]
    pub fn skew(&self) -> f64 {
        self.skew.unwrap_or(SKEW)
    }

    /// How many events there are; 0: without end.
    #[must_use]
    pub fn event_count(&self) -> u64 {
        self.events.unwrap_or(self.keys.saturating_mul(self.passes))
    }
}

impl JobArgs for KeyedCountArgs {
    fn parse(args: &[String]) -> Result<Self> {
        let parsed: Self = parse_args(args)?;
        if parsed.skew.is_some() && parsed.distribution != Distribution::Zipf {
            return Err(usage_error(
                "--skew is given without --distribution zipf, and keys of a uniform one have none",
            )
            .next("add --distribution zipf, or leave --skew away"));
        }
        if parsed.events.is_none() && parsed.keys.checked_mul(parsed.passes).is_none() {
            return Err(usage_error(format!("{} keys x {} passes are too many events", parsed.keys, parsed.passes)));
        }
        Ok(parsed)
    }

    fn normalised(&self) -> Vec<JobArg> {
        let zipf = self.distribution == Distribution::Zipf;
        let mut args = vec![
            JobArg::identity("keys", self.keys),
            JobArg::identity("value-bytes", self.value_bytes),
            JobArg::identity("events", self.event_count()),
            JobArg::free("rate", self.rate),
            JobArg::identity("distribution", if zipf { "zipf" } else { "uniform" }),
        ];
        if zipf {
            args.push(JobArg::identity("skew", self.skew()));
        }
        if self.fill {
            args.push(JobArg::identity("fill", true));
        }
        args.push(JobArg::identity("output", &self.output));
        args
    }

    fn absolutise(&mut self, folder: &Path) {
        self.output.absolutise(folder);
    }
}
