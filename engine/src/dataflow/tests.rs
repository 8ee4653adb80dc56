use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use millstream_common::{Env, Error, ErrorKind, Result};

use super::*;
use crate::graph::{Head, JobGraph, Target};
use crate::operator::{Collector, KeyedBatch, Operator};
use crate::sink::{Committer, Sink, SinkContext, SinkWriter};
use crate::source::{Position, Source, Split, SplitEnumerator, SplitReader};

struct Orders;

impl Source for Orders {
    fn schema(&self) -> SchemaRef {
        schema(&[("shop", DataType::Utf8), ("amount", DataType::Int64), ("time", TIME), ("note", DataType::Utf8)])
    }
    fn enumerator(&self) -> Result<Box<dyn SplitEnumerator>> {
        Err(Error::internal("not read"))
    }
    fn reader(&self, _: &Split, _: Option<&Position>) -> Result<Box<dyn SplitReader>> {
        Err(Error::internal("not read"))
    }
}

struct Out;

impl Sink for Out {
    fn writer(&self, _: SchemaRef, _: SinkContext) -> Result<Box<dyn SinkWriter>> {
        Err(Error::internal("not written"))
    }
    fn committer(&self) -> Result<Box<dyn Committer>> {
        Err(Error::internal("not written"))
    }
}

/// Hands rows on.
struct Same;

impl Operator for Same {
    fn process(&mut self, _: usize, batch: &KeyedBatch, out: &mut Collector) -> Result<()> {
        out.emit(batch.records.clone());
        Ok(())
    }
}

const TIME: DataType = DataType::Timestamp(TimeUnit::Millisecond, None);
const SECOND: Duration = Duration::from_secs(1);

fn schema(columns: &[(&str, DataType)]) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(|(n, t)| Field::new(*n, t.clone(), false)).collect::<Vec<_>>()))
}

fn out() -> Arc<dyn Sink> {
    Arc::new(Out)
}

fn orders(flow: &Dataflow) -> SourceStream {
    flow.source("orders", Arc::new(Orders))
}

fn names(schema: &SchemaRef) -> Vec<&str> {
    schema.fields().iter().map(|f| f.name().as_str()).collect()
}

/// The error of a plan that goes on behind the orders in this way.
fn error_of(plan: impl Fn(&Stream) -> Stream) -> Error {
    let flow = Dataflow::new();
    plan(&orders(&flow)).sink("out", out());
    let error = flow.build().err().expect("the plan is refused");
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    error
}

fn must_say(error: &Error, words: &[&str]) {
    let text = format!("{error:?}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn a_chain_ends_where_a_key_or_a_sink_begins() {
    let flow = Dataflow::new();
    let stream = orders(&flow).filter("all", |b| Ok(BooleanArray::from(vec![true; b.num_rows()])));
    stream.select(["amount", "shop"]).sink("raw", out());
    let keyed = stream.key_by(["shop"]).process("same", stream.schema().clone(), || Same);
    keyed.select([("shop", "name")]).sink("names", out());
    let graph = flow.build().unwrap();

    assert_eq!(graph.tasks.len(), 2);
    let Head::Source(source) = &graph.tasks[0].head else { panic!("the first task has no source") };
    assert_eq!(source.targets, [Target::Node(0)]);
    let first = &graph.tasks[0];
    assert_eq!(first.nodes[0].targets, [Target::Node(1), Target::Edge(0)]);
    assert_eq!(first.nodes[1].targets, [Target::Sink(0)]);
    assert_eq!(names(&first.sinks[0].schema), ["amount", "shop"]);
    let second = &graph.tasks[1];
    assert!(matches!(second.head, Head::Exchange));
    assert_eq!((second.nodes[0].name.as_str(), second.nodes[1].targets.as_slice()), ("same", &[Target::Sink(0)][..]));
    assert_eq!(names(&second.sinks[0].schema), ["name"]);
    let edge = &graph.edges[0];
    assert_eq!((edge.from, edge.to, edge.input, edge.key_columns.as_slice()), (0, 1, 0, &[0][..]));
}

#[test]
fn two_inputs_are_two_edges_with_their_own_keys() {
    let flow = Dataflow::new();
    let stream = orders(&flow);
    let right = stream.select([("amount", "n"), ("note", "label"), ("shop", "at")]);
    let both = stream.key_by(["shop", "amount"]).connect(&right.key_by(["at", "n"]));
    both.process("meet", stream.schema().clone(), || Same).sink("out", out());
    let graph = flow.build().unwrap();
    let edges: Vec<_> = graph.edges.iter().map(|e| (e.input, e.key_columns.clone())).collect();
    assert_eq!(edges, [(0, vec![0, 1]), (1, vec![2, 0])]);
    assert_eq!(graph.tasks[1].nodes[0].uid, "orders/process:meet");
}

fn sessions(flow: &Dataflow) -> JobGraph {
    orders(flow)
        .key_by(["shop"])
        .window(Session::gap(10 * SECOND).on("time").start_as("from").end_as("to"))
        .aggregate("visits", [count(), sum("amount")])
        .sink("out", out());
    flow.build().unwrap()
}

#[test]
fn an_exchange_carries_what_the_operator_reads() {
    let graph = sessions(&Dataflow::new());
    assert_eq!(names(&graph.edges[0].schema), ["shop", "amount", "time"]);
    assert_eq!(names(&graph.tasks[1].sinks[0].schema), ["shop", "count", "sum_amount", "from", "to"]);
}

#[test]
fn the_description_is_stable_and_tells_plans_apart() {
    let graph = sessions(&Dataflow::new());
    assert_eq!(graph.describe(), sessions(&Dataflow::new()).describe());
    let lines = graph.describe();
    assert_eq!(
        lines[0],
        "task orders; source orders -> ./project:visits; \
         ./project:visits (project shop, amount, time) -> orders/session-aggregate:visits#0"
    );
    assert!(lines[1].contains("input 0 from orders by (shop Utf8)"), "{}", lines[1]);
    assert!(lines[1].contains("session gap 10s on time: count(*) as count, sum(amount) as sum_amount"), "{}", lines[1]);

    let flow = Dataflow::new();
    orders(&flow).key_by(["shop"]).aggregate("visits", [count()]).sink("out", out());
    let other = flow.build().unwrap();
    assert_ne!(other.describe(), lines);
    let text = other.to_string();
    assert!(text.contains("exchange by shop to visits") && text.contains("sink out"), "{text}");
}

#[test]
fn ids_are_given_or_follow_the_path() {
    let flow = Dataflow::new();
    let stream = orders(&flow).uid("input");
    let counts = stream.key_by(["shop"]).aggregate("counts", [count()]).uid("counts-1");
    counts.sink("out", out());
    counts.select(["shop"]).sink_with_uid("shops", "shops-1", out());
    let graph = flow.build().unwrap();
    let Head::Source(source) = &graph.tasks[0].head else { panic!("the first task has no source") };
    assert_eq!((source.uid.as_str(), graph.tasks[0].nodes[0].uid.as_str()), ("input", "input/project:counts"));
    assert_eq!(graph.tasks[1].uid, "counts-1");
    // The kind of change stays in front by itself.
    assert_eq!(names(&graph.tasks[1].nodes[1].schema), ["__row_kind", "shop"]);
    assert_eq!(graph.tasks[1].nodes[1].uid, "counts-1/select:shop");
    let sinks: Vec<&str> = graph.tasks[1].sinks.iter().map(|s| s.uid.as_str()).collect();
    assert_eq!(sinks, ["counts-1/sink:out", "shops-1"]);

    // Maps and filters in front change nothing for what is durable.
    let flow = Dataflow::new();
    let stream = orders(&flow).filter("all", |b| Ok(BooleanArray::from(vec![true; b.num_rows()])));
    stream.key_by(["shop"]).aggregate("counts", [count()]).sink("out", out());
    let graph = flow.build().unwrap();
    assert_eq!(graph.tasks[1].uid, "orders/aggregate:counts");
    assert_eq!(graph.tasks[1].sinks[0].uid, "orders/aggregate:counts/sink:out");
}

#[test]
fn no_two_have_the_same_id() {
    // What keeps nothing is numbered.
    let flow = Dataflow::new();
    let stream = orders(&flow);
    for name in ["a", "b", "c"] {
        stream.select(["shop"]).sink(name, out());
    }
    let graph = flow.build().unwrap();
    let uids: Vec<&str> = graph.tasks[0].nodes.iter().map(|n| n.uid.as_str()).collect();
    assert_eq!(uids, ["orders/select:shop", "orders/select:shop#2", "orders/select:shop#3"]);

    let twice = |plan: fn(&Stream)| {
        let flow = Dataflow::new();
        plan(&orders(&flow));
        flow.build().err().expect("two have the same id")
    };
    must_say(&twice(|s| (0..2).for_each(|_| s.sink("out", out()))), &["orders/sink:out", ".uid("]);
    let same = |s: &Stream| {
        for key in ["shop", "note"] {
            s.key_by([key]).aggregate("n", [count()]).sink(key, out());
        }
    };
    must_say(&twice(same), &["orders/aggregate:n", "aggregate \"n\" and aggregate \"n\""]);
    must_say(&twice(|s| s.clone().uid("x").sink_with_uid("out", "x", out())), &["\"x\"", "sink \"out\""]);
}

#[test]
fn an_unknown_column_names_the_operator_and_those_there_are() {
    let there = "shop, amount, time, note";
    must_say(&error_of(|s| s.select(["shop", "price"])), &["\"price\"", "select", there]);
    must_say(&error_of(|s| s.key_by(["shp"]).aggregate("n", [count()])), &["\"shp\"", "aggregate \"n\"", there]);
    must_say(
        &error_of(|s| s.key_by(["shop"]).aggregate("n", [sum("price")])),
        &["\"price\"", "aggregate \"n\"", there],
    );
    must_say(&error_of(|s| s.key_by(["shop"]).aggregate("n", [count().filter("big")])), &["\"big\""]);
    must_say(
        &error_of(|s| s.key_by(["shop"]).window(Tumbling::of(SECOND).on("t")).top("x", "amount")),
        &["\"t\"", there],
    );
    must_say(
        &error_of(|s| s.key_by(["shop"]).window(Tumbling::of(SECOND).on("time")).top("x", "price")),
        &["\"price\""],
    );
    must_say(
        &error_of(|s| s.key_by(["nope"]).process("p", s.schema().clone(), || Same)),
        &["\"nope\"", "process \"p\""],
    );
    let join = |s: &Stream, columns: JoinColumns| {
        let keyed = s.key_by(["shop"]);
        keyed.join(&keyed).window(Tumbling::of(SECOND).on("time")).select("j", columns, JoinColumns::none())
    };
    must_say(&error_of(|s| join(s, JoinColumns::of(["price"]))), &["\"price\"", "window-join \"j\"", there]);
    // Only the first error counts: what follows from it is silent.
    must_say(&error_of(|s| s.select(["x"]).select(["y"]).key_by(["z"]).aggregate("n", [count()])), &["\"x\""]);
}

#[test]
fn windows_that_cannot_be_are_refused() {
    let windowed =
        |window: Window| error_of(move |s| s.key_by(["shop"]).window(window.clone()).aggregate("n", [count()]));
    must_say(&windowed(Tumbling::of(SECOND)), &[".on("]);
    must_say(&windowed(Tumbling::of(Duration::ZERO).on("time")), &["0ns", "above 0"]);
    must_say(&windowed(Tumbling::of(Duration::from_micros(1_500)).on("time")), &["1.5ms"]);
    must_say(&windowed(Tumbling::of(SECOND).on("amount")), &["\"amount\"", "Int64", "time stamp"]);
    must_say(&windowed(Sliding::of(SECOND, 2 * SECOND).on("time")), &["slide"]);
    must_say(&windowed(Assigned::ending_at("time")), &["not built"]);
    let top = |window: Window| error_of(move |s| s.key_by(["shop"]).window(window.clone()).top("x", "amount"));
    must_say(&top(Session::gap(SECOND).on("time")), &["not built"]);
    must_say(&top(Assigned::ending_at("time")), &["key_by([\"time\"])"]);
}

#[test]
fn other_plans_that_cannot_be() {
    let flow = Dataflow::new();
    must_say(&flow.build().err().unwrap(), &["empty"]);
    let unused = orders(&flow).select(["shop"]);
    must_say(&flow.build().err().unwrap(), &["select \"shop\"", "sink"]);
    let other = Dataflow::new();
    let mixed = unused.key_by(["shop"]).connect(&orders(&other).key_by(["shop"]));
    mixed.process("mixed", unused.schema().clone(), || Same).sink("out", out());
    must_say(&flow.build().err().unwrap(), &["different dataflows"]);

    must_say(&error_of(|s| s.key_by(Vec::<String>::new()).aggregate("n", [count()])), &["no column"]);
    let types = |s: &Stream| {
        let both = s.key_by(["shop"]).connect(&s.key_by(["amount"]));
        both.process("p", s.schema().clone(), || Same)
    };
    must_say(&error_of(types), &["Utf8", "Int64"]);
    let twice = |s: &Stream| s.key_by(["shop"]).aggregate("a", [count()]).key_by(["count"]).aggregate("b", [count()]);
    must_say(&error_of(twice), &["changelog", "not built yet", "aggregate \"b\""]);

    for (set, word) in [
        ((|s: SourceStream| s.rate(-1.0)) as fn(SourceStream) -> SourceStream, "rate"),
        (|s| s.rate(f64::NAN), "rate"),
        (|s| s.batch_rows(0), "row"),
    ] {
        let flow = Dataflow::new();
        set(orders(&flow)).sink("out", out());
        must_say(&flow.build().err().unwrap(), &[word, "source \"orders\""]);
    }
}

#[test]
fn closures_run_per_batch_and_are_held_to_their_schema() {
    let flow = Dataflow::new();
    let stream = orders(&flow);
    let kept = schema(&[("shop", DataType::Utf8)]);
    stream.map("wrong", kept.clone(), |b| Ok(b.clone())).sink("a", out());
    stream.filter("odd", |b| Ok((0..b.num_rows()).map(|i| Some(i % 2 == 1)).collect())).sink("b", out());
    stream.filter("short", |_| Ok(BooleanArray::from(vec![true]))).sink("c", out());
    let graph = flow.build().unwrap();
    let run = |node: usize, rows: i64| {
        let batch = RecordBatch::try_new(
            Orders.schema(),
            vec![
                Arc::new(arrow_array::StringArray::from_iter_values((0..rows).map(|_| "a"))),
                Arc::new(arrow_array::Int64Array::from_iter_values(0..rows)),
                Arc::new(arrow_array::TimestampMillisecondArray::from_iter_values(0..rows)),
                Arc::new(arrow_array::StringArray::from_iter_values((0..rows).map(|_| ""))),
            ],
        );
        let batch = KeyedBatch { records: batch.unwrap(), keys: Default::default() };
        let mut out = Collector::default();
        let mut operator = (graph.tasks[0].nodes[node].make)().unwrap();
        operator.process(0, &batch, &mut out).map(|()| out.take())
    };
    must_say(&run(0, 3).unwrap_err(), &["map \"wrong\"", "schema"]);
    assert_eq!(run(1, 5).unwrap()[0].num_rows(), 2);
    assert!(run(1, 1).unwrap().is_empty());
    assert!(run(2, 1).is_ok());
    must_say(&run(2, 3).unwrap_err(), &["filter \"short\"", "1 values for 3 rows"]);
}

#[test]
fn a_registry_builds_jobs_by_name() {
    let job = JobDefinition::new("visits", "shops by visits", |_: &NoArgs, _: &JobContext| {
        let flow = Dataflow::new();
        orders(&flow).sink("out", out());
        flow.build()
    });
    let registry = JobRegistry::new().with(job);
    let context = JobContext::new(Env::test(1), "test");
    let built = registry.build("visits", &[], &context).unwrap();
    assert_eq!((built.name.as_str(), built.identity_args.len(), built.graph.tasks.len()), ("visits", 0, 1));
    let error = registry.build("visit", &[], &context).err().unwrap();
    assert_eq!(error.number(), UNKNOWN_JOB);
    must_say(&error, &["\"visit\"", "did you mean \"visits\""]);
    let error = registry.build("visits", &["--fast".into()], &context).err().unwrap();
    assert_eq!((error.kind(), error.number()), (ErrorKind::Config, JOB_USAGE));
    assert!(registry.absolutise("visits", &[], Path::new("/")).unwrap().is_empty());
}

#[test]
fn states_are_described_by_the_plan_and_may_expire() {
    let flow = Dataflow::new();
    let keyed = orders(&flow).key_by(["shop", "time"]).state_ttl(60 * SECOND, TtlClock::EventTime);
    let aggregates = [count(), sum("amount").renamed_from("total")];
    keyed.aggregate("n", aggregates).sink("out", out());
    let graph = flow.build().unwrap();
    let node = &graph.tasks[1].nodes[0];
    assert!(node.detail.ends_with("as sum_amount, expires after 60000 ms of event time"), "{}", node.detail);
    let mut operator = (node.make)().unwrap();
    let schema = operator.states()[0].descriptor().schema(graph.key_of(1));
    assert_eq!(
        schema.to_string(),
        "key (shop: utf8, time: timestamp_ms), value aggregates (count: integer, sum_amount: sum (sum: integer, values: \
         integer)), expires after 60000 ms of event time"
    );
    let ids = match &schema.value {
        millstream_state_store::schema::Form::Record { fields, .. } => fields.iter().map(|f| f.id).collect::<Vec<_>>(),
        other => panic!("{other}"),
    };
    let id = millstream_state_store::schema::field_id;
    assert_eq!(ids, [id("count"), id("total")]);
    assert!(graph.key_of(0).is_empty());

    let with_ttl = |s: &Stream, ttl| s.key_by(["shop"]).state_ttl(ttl, TtlClock::ProcessingTime);
    must_say(&error_of(|s| with_ttl(s, Duration::from_micros(1_500)).aggregate("n", [count()])), &["TTL", "\"n\""]);
    let windowed = |s: &Stream| with_ttl(s, SECOND).window(Tumbling::of(SECOND).on("time")).aggregate("w", [count()]);
    must_say(&error_of(windowed), &["TTL", "window-aggregate \"w\"", "state_ttl"]);
    must_say(&error_of(|s| with_ttl(s, SECOND).process("p", s.schema().clone(), || Same)), &["process \"p\""]);
}
