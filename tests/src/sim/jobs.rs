//! The jobs of the simulation, made with the public dataflow API.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use millstream_common::{Error, Result};
use millstream_engine::dataflow::{
    Assigned, Dataflow, JobArg, JobArgs, JobContext, JobDefinition, JobRegistry, JoinColumns, Session, Sliding, Stream,
    Tumbling, count, max, min, sum, usage_error,
};
use millstream_engine::graph::JobGraph;

use super::reminders::{self, Reminders};
use super::sink::{Outside, sink_uid};
use super::source::SimSource;
use super::visits::{self, Visits};

/// Size of sliding windows, ms.
pub const SLIDING_MS: i64 = 2_000;
/// From one sliding window to the next, ms.
pub const SLIDE_MS: i64 = 500;
/// Size of tumbling windows, ms.
pub const TUMBLING_MS: i64 = 1_000;
/// Gap of sessions, ms.
pub const GAP_MS: i64 = 600;

/// The job whose rows may come late.
pub const LATE: &str = "late";

/// The job whose state expires and changes from one release of the program to the next.
pub const VISITS: (&str, &[&str]) = ("visits", &["visits"]);

/// All other jobs, by name, with their sinks.
pub const JOBS: &[(&str, &[&str])] = &[
    ("running", &["running"]),
    ("windows", &["sliding", "tumbling"]),
    ("sessions", &["sessions"]),
    ("join", &["join"]),
    ("busiest", &["busiest"]),
    ("reminders", &["reminders"]),
    ("mixed", &["running", "busiest", "reminders"]),
    (LATE, &["counted"]),
];

/// What makes the jobs of a run.
pub struct JobParts {
    /// Where rows come from.
    pub source: Arc<SimSource>,
    /// Where they go.
    pub outside: Outside,
    /// Rows of a batch at most.
    pub batch_rows: usize,
}

fn ms(n: i64) -> Duration {
    Duration::from_millis(n.unsigned_abs())
}

/// The registry of a process.
#[must_use]
pub fn registry(parts: &Arc<JobParts>) -> JobRegistry {
    let mut registry = JobRegistry::new();
    for (name, _) in JOBS.iter().chain([&VISITS]) {
        let parts = parts.clone();
        let graph = move |args: &SimArgs, context: &JobContext| {
            Building { parts: parts.at(&args.output), context }.graph(name, args.release)
        };
        registry.add(JobDefinition::new(*name, "", graph));
    }
    registry
}

/// The arguments of a job.
#[derive(Debug, Default)]
pub struct SimArgs {
    /// The place of its output.
    pub output: String,
    /// The release of the program: 0 or 1.
    pub release: u32,
}

impl JobArgs for SimArgs {
    fn parse(args: &[String]) -> Result<Self> {
        let mut parsed = Self::default();
        for arg in args {
            match arg.split_once('=') {
                Some(("--output", output)) => output.clone_into(&mut parsed.output),
                Some(("--release", "1")) => parsed.release = 1,
                _ => return Err(usage_error(format!("unexpected argument {arg}"))),
            }
        }
        Ok(parsed)
    }

    fn normalised(&self) -> Vec<JobArg> {
        vec![JobArg::identity("output", &self.output), JobArg::free("release", self.release)]
    }
}

impl JobParts {
    fn at(&self, output: &str) -> Self {
        Self { source: self.source.clone(), outside: self.outside.at(output), batch_rows: self.batch_rows }
    }
}

/// A job that is being built.
struct Building<'a> {
    parts: JobParts,
    context: &'a JobContext,
}

impl Building<'_> {
    fn graph(&self, name: &str, release: u32) -> Result<JobGraph> {
        let flow = Dataflow::new();
        let source: Arc<SimSource> = self.parts.source.clone();
        let watermarks = source.watermarks();
        let events = flow.source("events", source).watermarks(watermarks).batch_rows(self.parts.batch_rows);
        match name {
            "running" => self.running(&events),
            "windows" => self.windows(&events),
            "sessions" => self.sessions(&events),
            "join" => self.join(&events),
            "busiest" => self.busiest(&events),
            "reminders" => self.reminders(&events),
            "visits" => self.visits(&events, release),
            LATE => {
                let tumbling = Tumbling::of(ms(TUMBLING_MS)).on("time").start_as("start");
                let counts = events.key_by(["key"]).window(tumbling).aggregate("counted", [count()]);
                self.sink(&counts, "counted");
            }
            "mixed" => {
                self.running(&events);
                self.busiest(&events);
                self.reminders(&events);
            }
            other => return Err(Error::config(format!("there is no job {other}"))),
        }
        flow.build()
    }

    fn sink(&self, stream: &Stream, name: &str) {
        let sink = self.parts.outside.sink(name, self.context).expect("settings that can be");
        stream.sink_with_uid(name, &sink_uid(name), sink);
    }

    fn running(&self, events: &Stream) {
        let totals = events.key_by(["key"]).aggregate("totals", [count(), sum("value"), max("value")]).uid("totals");
        self.sink(&totals, "running");
    }

    fn windows(&self, events: &Stream) {
        let by_key = events.key_by(["key"]);
        let sliding = Sliding::of(ms(SLIDING_MS), ms(SLIDE_MS)).on("time").end_as("end");
        self.sink(&by_key.window(sliding).aggregate("sliding", [count(), sum("value")]), "sliding");
        let tumbling = Tumbling::of(ms(TUMBLING_MS)).on("time").start_as("start");
        self.sink(&by_key.window(tumbling).aggregate("tumbling", [min("value"), max("value")]), "tumbling");
    }

    fn sessions(&self, events: &Stream) {
        let window = Session::gap(ms(GAP_MS)).on("time").start_as("start").end_as("end");
        self.sink(&events.key_by(["key"]).window(window).aggregate("sessions", [count(), sum("value")]), "sessions");
    }

    fn join(&self, events: &Stream) {
        let side = |side: i64| {
            let only = move |batch: &RecordBatch| {
                let sides = batch.column_by_name("side").ok_or_else(|| Error::internal("a batch without side"))?;
                Ok(sides.as_primitive::<Int64Type>().iter().map(|s| s.map(|s| s == side)).collect())
            };
            events.filter(if side == 0 { "left" } else { "right" }, only)
        };
        let right = side(1).select([("id", "right_id"), ("key", "key"), ("time", "time")]);
        let window = Tumbling::of(ms(TUMBLING_MS)).on("time");
        let pairs = side(0).key_by(["key"]).join(&right.key_by(["key"])).window(window).select(
            "pairs",
            JoinColumns::of(["id", "key"]),
            JoinColumns::of(["right_id"]),
        );
        self.sink(&pairs, "join");
    }

    fn busiest(&self, events: &Stream) {
        let sliding = Sliding::of(ms(SLIDING_MS), ms(SLIDE_MS)).on("time").end_as("end");
        let counts = events.key_by(["key"]).window(sliding).aggregate("counts", [count()]);
        let top = counts.key_by(["end"]).window(Assigned::ending_at("end")).top("top", "count");
        self.sink(&top.select(["end", "key", "count"]), "busiest");
    }

    fn visits(&self, events: &Stream, release: u32) {
        let visits = events.key_by(["key"]).process("visits", visits::schema(), move || Visits::new(release));
        self.sink(&visits.uid("visits"), "visits");
    }

    fn reminders(&self, events: &Stream) {
        let reminded =
            events.key_by(["key"]).process("reminders", reminders::schema(), Reminders::default).uid("reminders");
        self.sink(&reminded, "reminders");
    }
}
