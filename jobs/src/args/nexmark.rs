//! The arguments of the Nexmark jobs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use millstream_common::{Error, Result};
use millstream_connectors::ndjson::{NdjsonSource, NexmarkLines};
use millstream_connectors::nexmark::NexmarkSource;
use millstream_engine::dataflow::{JobArg, JobArgs, usage_error};
use millstream_engine::settings::not_built_yet;
use millstream_engine::source::Source;
use millstream_formats::time::{format_timestamp_ms, parse_timestamp};

use super::{Output, absolute, duration_text, parse_args, parse_duration, parse_rate};

/// How many splits the generator has, whatever the parallelism.
const GENERATOR_SPLITS: u32 = 16;

/// How many events are generated when nothing else is said.
const EVENTS: u64 = 1_000_000;

/// Events per second of event time when nothing else is said.
const EVENT_RATE: u64 = 10_000;

/// Event time of the first generated event when nothing else is said: 2026-01-01T00:00:00Z.
const BASE_TIME_MS: i64 = 1_767_225_600_000;

/// The arguments of the Nexmark jobs.
#[derive(Clone, Debug, Parser)]
#[command(name = "nexmark", no_binary_name = true, disable_version_flag = true)]
pub struct NexmarkArgs {
    /// How many events are generated; 0: without end [default: 1000000]
    #[arg(long, value_name = "N", conflicts_with = "input")]
    pub events: Option<u64>,
    /// Events per second of event time: the spacing of time stamps [default: 10000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "input")]
    pub event_rate: Option<u64>,
    /// Events per second of real time, shared by the splits that have not ended; 0: as fast as possible
    #[arg(long, value_name = "N", default_value = "0", value_parser = parse_rate)]
    pub rate: f64,
    /// Reads these NDJSON files (.gz too) or patterns instead of generating: one file, one split
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub input: Vec<String>,
    /// Where the results go: print, blackhole or files:DIR
    #[arg(long, value_name = "WHERE", default_value = "print")]
    pub output: Output,
    /// Event time of the first generated event [default: 2026-01-01T00:00:00Z]
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "input")]
    pub base_time: Option<i64>,
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

/// Refuses an input that is named by a URL.
fn no_file(input: &str, scheme: &str) -> Error {
    if scheme.eq_ignore_ascii_case("file") {
        return usage_error(format!("--input takes paths, and {input} is a URL")).next("leave file:// away");
    }
    not_built_yet(&format!("an input from {input}"), "read files: --input FILE; or generate events: leave --input away")
}

impl NexmarkArgs {
    /// The source of the events: files, or the generator.
    #[must_use]
    pub fn source(&self) -> Arc<dyn Source> {
        if !self.input.is_empty() {
            return Arc::new(NdjsonSource::new(self.input.clone(), Arc::new(NexmarkLines)));
        }
        Arc::new(NexmarkSource {
            events: self.event_count(),
            event_rate: self.event_rate.unwrap_or(EVENT_RATE),
            base_time_ms: self.base_time.unwrap_or(BASE_TIME_MS),
            splits: GENERATOR_SPLITS,
        })
    }

    /// How many events are generated; 0: without end.
    #[must_use]
    pub fn event_count(&self) -> u64 {
        self.events.unwrap_or(EVENTS)
    }

    /// The delay of the watermark in milliseconds.
    #[must_use]
    pub fn watermark_delay_ms(&self) -> i64 {
        i64::try_from(self.watermark_delay.as_millis()).unwrap_or(i64::MAX)
    }
}

impl JobArgs for NexmarkArgs {
    fn parse(args: &[String]) -> Result<Self> {
        let parsed: Self = parse_args(args)?;
        match parsed.input.iter().find_map(|file| Some((file, file.split_once("://")?.0))) {
            // A file may well have such a name, below a folder.
            Some((file, scheme)) if !scheme.contains('/') => Err(no_file(file, scheme)),
            _ => Ok(parsed),
        }
    }

    /// What says how events are generated is left out when they are read.
    fn normalised(&self) -> Vec<JobArg> {
        let generated = self.input.is_empty();
        let mut args = Vec::new();
        if generated {
            args.push(JobArg::identity("events", self.event_count()));
            args.push(JobArg::identity("event-rate", self.event_rate.unwrap_or(EVENT_RATE)));
        }
        args.push(JobArg::free("rate", self.rate));
        args.extend(self.input.iter().map(|file| JobArg::identity("input", file)));
        args.push(JobArg::identity("output", &self.output));
        if generated {
            let base_time = format_timestamp_ms(self.base_time.unwrap_or(BASE_TIME_MS)).replace(' ', "T") + "Z";
            args.push(JobArg::identity("base-time", base_time));
        }
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
