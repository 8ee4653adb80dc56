//! The arguments of the Nexmark jobs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use millstream_common::Result;
use millstream_connectors::ndjson::{NdjsonSource, NexmarkLines};
use millstream_connectors::nexmark::NexmarkSource;
use millstream_connectors::time::{format_timestamp_ms, parse_timestamp};
use millstream_engine::dataflow::{JobArg, JobArgs};
use millstream_engine::source::Source;

use super::{Output, absolute, duration_text, parse, parse_duration, parse_rate};

/// How many splits the generator has, whatever the parallelism.
const GENERATOR_SPLITS: u32 = 16;

/// The arguments of the Nexmark jobs.
#[derive(Clone, Debug, Parser)]
#[command(name = "nexmark", no_binary_name = true, disable_version_flag = true)]
pub struct NexmarkArgs {
    /// How many events are generated; 0: without end
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    pub events: u64,
    /// Events per second of event time: the spacing of time stamps
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub event_rate: u64,
    /// Events per second of real time, shared by the splits that have not ended; 0: as fast as possible
    #[arg(long, value_name = "N", default_value = "0", value_parser = parse_rate)]
    pub rate: f64,
    /// Reads these NDJSON files (.gz too) or patterns instead of generating: one file, one split
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub input: Vec<String>,
    /// Where the results go: print, blackhole or files:DIR
    #[arg(long, value_name = "WHERE", default_value = "print")]
    pub output: Output,
    /// Event time of the first generated event
    #[arg(long, value_name = "TIME", default_value = "2026-01-01T00:00:00Z", value_parser = parse_time)]
    pub base_time: i64,
    /// The watermark stays so far behind the greatest event time of a split
    #[arg(long, value_name = "D", default_value = "4s", value_parser = parse_duration)]
    pub watermark_delay: Duration,
    /// A split without rows for so long no longer holds the watermark; none: it always does
    #[arg(long, value_name = "D", default_value = "none", value_parser = parse_timeout)]
    pub idle_timeout: Timeout,
}

/// A time-out, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout(pub Option<Duration>);

fn parse_timeout(text: &str) -> Result<Timeout, String> {
    if text == "none" { Ok(Timeout(None)) } else { parse_duration(text).map(|d| Timeout(Some(d))) }
}

fn parse_time(text: &str) -> Result<i64, String> {
    parse_timestamp(text).ok_or_else(|| "write a time like 2026-01-01T00:00:00Z".into())
}

impl NexmarkArgs {
    /// The source of the events: files, or the generator.
    #[must_use]
    pub fn source(&self) -> Arc<dyn Source> {
        if !self.input.is_empty() {
            return Arc::new(NdjsonSource::new(self.input.clone(), Arc::new(NexmarkLines)));
        }
        Arc::new(NexmarkSource {
            events: self.events,
            event_rate: self.event_rate,
            base_time_ms: self.base_time,
            splits: GENERATOR_SPLITS,
        })
    }

    /// The delay of the watermark in milliseconds.
    #[must_use]
    pub fn watermark_delay_ms(&self) -> i64 {
        i64::try_from(self.watermark_delay.as_millis()).unwrap_or(i64::MAX)
    }
}

impl JobArgs for NexmarkArgs {
    fn parse(args: &[String]) -> Result<Self> {
        parse(args)
    }

    fn normalised(&self) -> Vec<JobArg> {
        let base_time = format_timestamp_ms(self.base_time).replace(' ', "T") + "Z";
        let mut args = vec![
            JobArg::identity("events", self.events),
            JobArg::identity("event-rate", self.event_rate),
            JobArg::free("rate", self.rate),
        ];
        args.extend(self.input.iter().map(|file| JobArg::identity("input", file)));
        args.push(JobArg::identity("output", &self.output));
        args.push(JobArg::identity("base-time", base_time));
        args.push(JobArg::identity("watermark-delay", duration_text(self.watermark_delay)));
        args.push(JobArg::identity("idle-timeout", self.idle_timeout.0.map_or_else(|| "none".into(), duration_text)));
        args
    }

    fn absolutise(&mut self, folder: &Path) {
        for file in &mut self.input {
            *file = absolute(file, folder);
        }
        self.output.absolutise(folder);
    }
}
