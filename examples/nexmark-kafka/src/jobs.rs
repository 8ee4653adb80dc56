//! The jobs: events into Kafka, and queries from Kafka to Kafka.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{ArrayRef, Int32Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::take::take;
use millstream_common::{Error, Result};
use millstream_connectors::nexmark::{auction_schema, bid_schema, event_times, person_schema};
use millstream_engine::dataflow::{Dataflow, JobContext, JobDefinition, JobRegistry};
use millstream_engine::graph::JobGraph;
use millstream_engine::source::WatermarkStrategy;
use millstream_jobs::nexmark::query;

use crate::args::{FillArgs, QueryArgs};
use crate::enrich;

/// All jobs of this program.
pub fn registry() -> JobRegistry {
    let fill = JobDefinition::new("events", "Nexmark events, generated or from files, into a topic", fill);
    let job = |name: &'static str, about: &str, key: &'static [&'static str]| {
        JobDefinition::new(name, about, move |args: &QueryArgs, context: &JobContext| build(name, key, args, context))
    };
    JobRegistry::new()
        .with(fill)
        .with(job("q5", "auctions with the most bids of the last 10 s, every 2 s", &["auction"]))
        .with(job("q7", "the highest bid of each 10 s", &["auction"]))
        .with(job("q17", "bids and prices of each auction and day, as upserts by both", &["auction", "day"]))
        .with(job("q20", "bids for auctions of category 10, with their auction", &["auction"]))
}

fn fill(args: &FillArgs, context: &JobContext) -> Result<JobGraph> {
    let flow = Dataflow::new();
    let event_time = WatermarkStrategy::monotonous(Arc::new(event_times));
    let events = flow.source("events", args.source()).watermarks(event_time).rate(args.rate);
    let lines = events.map("members", members_schema(), members);
    lines.sink("out", args.to.sink(&args.events, &[], context)?);
    flow.build()
}

fn build(name: &str, key: &[&str], args: &QueryArgs, context: &JobContext) -> Result<JobGraph> {
    let flow = Dataflow::new();
    let delay = i64::try_from(args.watermark_delay.as_millis()).unwrap_or(i64::MAX);
    let event_time = WatermarkStrategy::bounded_out_of_orderness(Arc::new(event_times), delay);
    let idle = (!args.idle_timeout.is_zero()).then_some(args.idle_timeout);
    let mut event_time = event_time.with_idle_timeout(idle);
    if !args.max_drift.is_zero() {
        event_time = event_time.with_alignment("events", args.max_drift);
    }
    let events = flow.source("events", args.source(&context.env)?).watermarks(event_time).rate(args.rate);
    let results = match name {
        "q20" => enrich::q20(&events),
        _ => query(name).map(|plan| plan(&events)).ok_or_else(|| Error::internal(format!("there is no {name}")))?,
    };
    results.sink("out", args.to.sink(&args.results, key, context)?);
    flow.build()
}

/// The kinds of events, by their numbers.
const KINDS: [&str; 3] = ["person", "auction", "bid"];

/// An event as a record shows it: its kind, and one member that is not null.
fn members_schema() -> SchemaRef {
    let schemas = [person_schema(), auction_schema(), bid_schema()];
    let member = |(name, s): (&str, SchemaRef)| Field::new(name, DataType::Struct(s.fields().clone()), true);
    let members = KINDS.into_iter().zip(schemas).map(member);
    let kind = Field::new("event_type", DataType::Int32, false);
    Arc::new(Schema::new(std::iter::once(kind).chain(members).collect::<Vec<_>>()))
}

fn members(batch: &RecordBatch) -> Result<RecordBatch> {
    let wrong = |e| Error::internal("events that make no batch").source(e);
    let events = batch.column(0).as_union();
    let offsets = events.offsets().ok_or_else(|| Error::internal("events that are no dense union"))?;
    let kinds: Int32Array = events.type_ids().iter().map(|kind| i32::from(*kind)).collect();
    let mut columns: Vec<ArrayRef> = vec![Arc::new(kinds)];
    for kind in (0i8..).take(KINDS.len()) {
        let of_kind = events.type_ids().iter().zip(offsets.iter()).map(|(k, o)| (*k == kind).then_some(*o));
        columns.push(take(events.child(kind), &of_kind.collect::<Int32Array>(), None).map_err(wrong)?);
    }
    RecordBatch::try_new(members_schema(), columns).map_err(wrong)
}
